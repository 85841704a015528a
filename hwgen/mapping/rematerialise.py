"""Rematerialisation: a LayerNorm is computed again just before its last reader, so that its output need not stay in the
scratchpad.

K and V of all tokens are made from a LayerNorm's output before the first score; Q may be made tile by tile behind them.
Repeating the LayerNorm for Q costs the vector unit some cycles and frees a buffer as large as the residual stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..intgraph import IntGraph, MatMul, Norm, Op
from .parts import read, renamed, written


def rematerialise(graph: IntGraph) -> IntGraph:
    """`graph` with every Norm repeated just before the last MatMul that streams its rows, if something else reads them before."""
    ops: list[Op] = list(graph.ops)
    buffers = dict(graph.buffers)
    writers, readers = (_users(graph, of) for of in (written, read))
    again: dict[int, Op] = {}  # in front of which operation
    for i, norm in [(i, op) for i, op in enumerate(graph.ops) if isinstance(op, Norm)]:
        reader = _last_reader(graph, i, norm, writers, readers)
        if reader is None:
            continue
        name = f"{norm.out.buffer}.again"
        buffers[name] = replace(buffers[norm.out.buffer], name=name)
        again[reader] = replace(norm, name=f"{norm.name}.again", out=replace(norm.out, buffer=name))
        ops[reader] = renamed(ops[reader], {norm.out.buffer: name})
    result: list[Op] = []
    for i, op in enumerate(ops):
        result += [again[i], op] if i in again else [op]
    return replace(graph, ops=result, buffers=buffers)


def _users(graph: IntGraph, of: Callable[[Op], set[str]]) -> dict[str, list[int]]:
    """By buffer the operations among whose buffers it is, in order."""
    found: dict[str, list[int]] = {}
    for i, op in enumerate(graph.ops):
        for name in of(op):
            found.setdefault(name, []).append(i)
    return found


def _last_reader(
    graph: IntGraph, i: int, norm: Norm, writers: dict[str, list[int]], readers: dict[str, list[int]]
) -> int | None:
    """The MatMul that a second Norm could serve beside operation i: the last of several readers, the Norm's x as it was till
    then."""
    buffer = norm.out.buffer
    if writers[buffer] != [i] or any(output.view.buffer == buffer for output in graph.outputs):
        return None
    users = readers.get(buffer, [])
    if len(users) < 2 or not isinstance(last := graph.ops[users[-1]], MatMul):
        return None
    plain = last.expert is None and last.walk is None and not last.continue_max
    streams = plain and (last.x.row, last.x.rows) == (norm.out.row, norm.out.rows)
    once = last.x.buffer == buffer and sum(view.buffer == buffer for view in last.views().values()) == 1
    kept = not any(i < writer < users[-1] for writer in writers.get(norm.x.buffer, []))
    return users[-1] if streams and once and kept else None

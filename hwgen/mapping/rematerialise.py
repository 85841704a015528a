"""Rematerialisation: a LayerNorm is computed again just before its last reader, so that its output need not stay in the
scratchpad.

K and V of all tokens are made from a LayerNorm's output before the first score; Q may be made tile by tile behind them.
Repeating the LayerNorm for Q costs the vector unit some cycles and frees a buffer as large as the residual stream.
"""

from __future__ import annotations

from dataclasses import replace

from ..intgraph import IntGraph, MatMul, Norm
from .parts import read, written


def rematerialise(graph: IntGraph) -> IntGraph:
    """`graph` with every Norm repeated just before the last MatMul that streams its rows, if something else reads them before."""
    ops, buffers = list(graph.ops), dict(graph.buffers)
    for norm in [op for op in graph.ops if isinstance(op, Norm)]:
        reader = _last_reader(graph, norm)
        if reader is None:
            continue
        name = f"{norm.out.buffer}.again"
        buffers[name] = replace(buffers[norm.out.buffer], name=name)
        at = next(i for i, op in enumerate(ops) if op is reader)
        ops[at : at + 1] = [
            replace(norm, name=f"{norm.name}.again", out=replace(norm.out, buffer=name)),
            replace(reader, x=replace(reader.x, buffer=name)),
        ]
    return replace(graph, ops=ops, buffers=buffers)


def _last_reader(graph: IntGraph, norm: Norm) -> MatMul | None:
    """The MatMul that a second Norm could serve: the last of several readers, the Norm's x as it was till then."""
    buffer = norm.out.buffer
    writers = [op for op in graph.ops if buffer in written(op)]
    if writers != [norm] or any(output.view.buffer == buffer for output in graph.outputs):
        return None
    readers = [op for op in graph.ops if buffer in read(op)]
    if len(readers) < 2 or not isinstance(readers[-1], MatMul):
        return None
    last = readers[-1]
    first, end = (next(i for i, op in enumerate(graph.ops) if op is which) for which in (norm, last))
    plain = last.expert is None and last.walk is None and not last.continue_max
    streams = plain and (last.x.row, last.x.rows) == (norm.out.row, norm.out.rows)
    once = last.x.buffer == buffer and sum(view.buffer == buffer for view in last.views().values()) == 1
    kept = not any(norm.x.buffer in written(op) for op in graph.ops[first + 1 : end])
    return last if streams and once and kept else None

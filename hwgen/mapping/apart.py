"""Values apart, so that each can be in DRAM or not, and attention head by head.

Attention head by head: the row maxima of all heads together are taken when all are there, by a product of rows with one.

The machine continues the maxima of one MatMul in the next only row for row, so that all heads of a block of queries follow
each other. With this, all queries pass a head before the next one: of K and V one head at a time is in the scratchpad.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..intgraph import Buffer, Constant, IntGraph, MatMul, Multiply, Norm, Op, View
from ..isa import RowMax
from ..numerics import GAMMA_SHIFT
from ..schedule.liveness import buffer_accesses, final_reads, spans
from .parts import part, part_name, parts, renamed, whole
from .runs import chains


def heads_apart(graph: IntGraph, chunk: int) -> IntGraph:
    """`graph` with `values_apart`, and no MatMuls that continue each other's maxima of magnitudes, where they write all of a
    buffer together."""
    graph = values_apart(graph)
    buffers, ops = dict(graph.buffers), list[Op]()
    for chain in chains(graph.ops):
        parts = [op for op in chain if isinstance(op, MatMul) and op.row_max == RowMax.ABS]
        if len(parts) < 2 or not _is_whole(graph, parts):
            ops += chain
            continue
        ops += [replace(op, row_max=RowMax.NONE, continue_max=False) if op in parts else op for op in chain]
        last, buffer = parts[-1], buffers[parts[-1].out.buffer]
        written = View(buffer.name, last.out.row, last.x.rows, 0, buffer.cols)
        ops += measure(f"{last.name}.maxima", written, buffer, chunk, buffers)
    return replace(graph, ops=ops, buffers=buffers)


def values_apart(graph: IntGraph) -> IntGraph:
    """`graph` with a buffer of its own for everything that a buffer holds one after another, experts' hidden rows apart."""
    buffers, renamed = dict(graph.buffers), dict[tuple[int, str], str]()
    final, queues = final_reads(graph), {op.out.buffer for op in graph.ops if isinstance(op, MatMul) and op.expert}
    for name, accesses in buffer_accesses(graph).items():
        if name in queues:
            continue
        for number, span in enumerate(spans(name, accesses, final[name])[:-1]):
            own = f"{name}.{number}"
            while own in buffers:  # a part of another one
                own += ".value"
            buffers[own] = replace(buffers[name], name=own)
            renamed |= {(access.index, name): own for access in accesses if span.first <= access.index <= span.last}
    ops: list[Op] = []
    for i, op in enumerate(graph.ops):
        moved: dict[str, Any] = {
            field: replace(v, buffer=renamed[i, v.buffer])
            for field, v in op.views().items()
            if (i, v.buffer) in renamed
        }
        ops.append(replace(op, **moved) if moved else op)
    index = {op.name: i for i, op in enumerate(graph.ops)}
    trace = {value: (v, op) for value, (v, op) in graph.trace.items() if (index[op], v.buffer) not in renamed}
    return replace(graph, ops=ops, buffers=buffers, trace=trace)


def sums_apart(graph: IntGraph, norms: bool) -> IntGraph:
    """`graph` with a buffer of its own for every sum in the place of what it is added to, where taps of a walk reach rows of that
    on their way into the sum (inverted residuals): a block's sums would stand where the next block still reads.

    norms: also where rows go through a LayerNorm before taps reach them; without it that is no part of a block.
    """
    buffers, ops, place = dict(graph.buffers), list[Op](), dict[str, str]()
    rows: dict[str, set[str]] = {}  # of each buffer those that its rows are made of, row by row
    taps: dict[str, set[str]] = {}  # and those of which it has what taps reach
    moved: list[tuple[int, str, str]] = []  # from which operation on a buffer's value lies in another one
    for i, source in enumerate(graph.ops):
        op = renamed(source, place)
        streamed = {view.buffer for field, view in op.reads().items() if field != "w"}
        made = streamed.union(*(rows.get(name, ()) for name in streamed))
        reached = set[str]().union(*(taps.get(name, ()) for name in streamed))
        if op.walk is not None and op.walk.count > 1:
            x = op.reads()["x"].buffer
            reached |= {x} | rows.get(x, set())
        if isinstance(op, MatMul) and op.residual == op.out == whole(buffers[op.out.buffer]) and op.out.buffer in reached:
            old = op.out.buffer
            new = next(name for k in itertools.count() if (name := f"{old}.sum{k}") not in buffers)
            buffers[new] = replace(buffers[old], name=new)
            op = replace(op, out=replace(op.out, buffer=new))
            origin = source.out.buffer if isinstance(source, MatMul) else old
            place[origin] = new
            moved.append((i, origin, new))
            made, reached = set(), set()
        if isinstance(op, Norm) and not norms:
            made = set()
        for view in op.writes().values():
            rows.setdefault(view.buffer, set()).update(made - {view.buffer})
            taps.setdefault(view.buffer, set()).update(reached - {view.buffer})
        ops.append(op)
    index = {op.name: i for i, op in enumerate(graph.ops)}
    trace = dict(graph.trace)
    for since, origin, new in moved:
        for value, (view, name) in graph.trace.items():
            if view.buffer == origin and index[name] >= since:
                trace[value] = replace(view, buffer=new), name
    outputs = [replace(o, view=replace(o.view, buffer=place.get(o.view.buffer, o.view.buffer))) for o in graph.outputs]
    return replace(graph, ops=ops, buffers=buffers, outputs=outputs, trace=trace)


def constants_apart(graph: IntGraph) -> IntGraph:
    """`graph` with constants in parts where the next operation on their buffer works on some of their rows."""
    found: list[list[Op]] = []
    following: dict[str, list[View]] = {}  # views of a buffer that the next operation on it has
    for op in reversed(graph.ops):
        pieces = [op]
        if isinstance(op, Constant):
            ends = {row - op.out.row for view in following.get(op.out.buffer, []) for row in (view.row, view.row + view.rows)}
            borders = sorted({0, op.out.rows} | {end for end in ends if 0 < end < op.out.rows})
            pairs = list(zip(borders, borders[1:], strict=False))
            if len(pairs) > 1:
                names = [part_name(op.name, k, k == len(pairs) - 1, "part") for k in range(len(pairs))]
                pieces = [part(op, a, b, name, lambda v: v) for name, (a, b) in zip(names, pairs, strict=True)]
        found.append(pieces)
        for name in {view.buffer for view in op.views().values()}:
            following[name] = [view for view in op.views().values() if view.buffer == name]
    ops = [op for pieces in reversed(found) for op in pieces]
    return replace(graph, ops=ops)


def weights_apart(graph: IntGraph, limit: int, chunk: int) -> IntGraph:
    """`graph` with products of weights that stream, from a Constant, in parts of rows of at most `limit` chunks of weights."""
    constants = {op.out.buffer for op in graph.ops if isinstance(op, Constant)}
    ops: list[Op] = []
    for chain in chains(graph.ops):
        for op in chain:
            size = -(-op.x.cols // chunk) * op.x.rows if isinstance(op, MatMul) else 0
            plain = isinstance(op, MatMul) and op.expert is None and op.walk is None and isinstance(op.w, View)
            if len(chain) > 1 or size <= limit or not (plain and isinstance(op, MatMul) and op.x.buffer in constants):
                ops.append(op)
                continue
            ops += parts(op, -(-size // limit), "weights")
    return replace(graph, ops=ops)


def measure(name: str, view: View, buffer: Buffer, chunk: int, buffers: dict[str, Buffer]) -> Iterator[Op]:
    """Operations that store the row maxima of a view of all columns of `buffer`, which stays as it is; ones join `buffers`."""
    width = buffer.cols // buffer.groups
    period = chunk if width % chunk == 0 else width
    ones = Buffer(f"{name}.ones", view.rows, period)
    buffers[ones.name] = ones
    factor = View(ones.name, 0, view.rows, 0, period)
    yield Constant(ones.name, factor, np.full((view.rows, period), 1 << GAMMA_SHIFT, np.int16))
    yield Multiply(name, view, view, factor, row_max=RowMax.ABS)


def _is_whole(graph: IntGraph, parts: list[MatMul]) -> bool:
    """Whether the MatMuls write all columns of the same rows of one buffer, each once."""
    first, columns = parts[0].out, sorted((op.out.col, op.out.col + op.out.cols) for op in parts)
    same = all((op.out.buffer, op.out.row, op.x.rows) == (first.buffer, first.row, parts[0].x.rows) for op in parts)
    joined = all(a[1] == b[0] for a, b in zip(columns, columns[1:], strict=False))
    complete = columns[0][0] == 0 and columns[-1][1] == graph.buffers[first.buffer].cols
    return same and joined and complete and all(op.continue_max for op in parts[1:]) and not parts[0].continue_max

"""Pieces: long operations of the vector unit, and the products around them, in pieces of rows that depend on few others.

A depthwise convolution of a whole map lets the array wait until its last row is there, and waits itself for the last row of
what is before it. In pieces, each reads the band of rows that its taps reach, and the array works on the rows of one piece
while the vector unit makes the next: `interleave` finds that order. Pieces lie where the whole lay, so they take no more room;
the cost is that weights and parameters are read once for every piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..intgraph import Buffer, Input, IntGraph, MatMul, Multiply, Norm, Op, ReduceWindow, Spill, View
from .bands import banded, cut_walk, reach
from .order import VECTOR, Timing, dependencies
from .parts import edges, is_token_wise, lifetimes, part_name, parts, read, renamed, whole, written
from .runs import chains

MIN_ROWS = 64  # of a piece of a product: its weights come from DRAM in about the cycles that its rows take


def norms_in_place(graph: IntGraph) -> IntGraph:
    """`graph` with the rows of a LayerNorm in the place of those it reads, where nothing else does and both are whole buffers.

    `trace` loses what was read.
    """
    spans = lifetimes([op] for op in graph.ops)
    kept = {output.view.buffer for output in graph.outputs}
    place: dict[str, str] = {}
    buffers, ops = dict(graph.buffers), list[Op]()
    for i, op in enumerate(graph.ops):
        if isinstance(op, Norm) and not {op.x.buffer, op.out.buffer} & kept:
            x, out = graph.buffers[op.x.buffer], graph.buffers[op.out.buffer]
            alone = spans[x.name][1] == i == spans[out.name][0] and (x.rows, x.cols, x.groups) == (out.rows, out.cols, out.groups)
            if alone and op.x == replace(op.out, buffer=x.name) == whole(x):
                place[out.name] = place.get(x.name, x.name)
                buffers[place[out.name]] = replace(buffers[place[out.name]], scale=out.scale)
                del buffers[out.name]
        ops.append(renamed(op, place))
    taken = set(place.values())
    trace = {
        value: (replace(view, buffer=place.get(view.buffer, view.buffer)), op)
        for value, (view, op) in graph.trace.items()
        if view.buffer not in taken
    }
    return replace(graph, ops=ops, buffers=buffers, trace=trace)


def pieces(graph: IntGraph, timing: Timing, load: Callable[[Op, dict[str, Buffer]], float], most: float) -> IntGraph:
    """`graph` with operations that take more than `most` cycles in pieces: those of the vector unit, and products of weights
    that read what it, or a load of the image, makes or make what it reads; such loads, too. The last piece of an operation keeps
    its name, for `trace`.
    """
    beside = [op for op in graph.ops if isinstance(op, (*VECTOR, Input))]
    made, taken = (set[str]().union(*(of(op) for op in beside)) for of in (written, read))
    ops: list[Op] = []
    for chain in chains(graph.ops):
        for op in chain:
            cycles = load(op, graph.buffers) if isinstance(op, Input) else timing.duration(op, 0)
            count = int(-(-cycles // most)) if len(chain) == 1 and _splits(op) else 1
            if isinstance(op, MatMul):
                meets = read(op) & made or written(op) & taken
                count = min(count, op.rows // MIN_ROWS) if meets else 1
            ops += _pieces(op, count) if count > 1 else [op]
    return replace(graph, ops=ops)


def _splits(op: Op) -> bool:
    if isinstance(op, MatMul):
        return op.expert is None and not isinstance(op.w, View) and (op.walk is not None or is_token_wise(op))
    return isinstance(op, Input | ReduceWindow) or (isinstance(op, Norm | Multiply) and is_token_wise(op))


def _pieces(op: Op, count: int) -> list[Op]:
    """The operation in about so many pieces of rows, fewer where a walk's steps are fewer."""
    if op.walk is None:
        return parts(op, count, "piece")
    axes = banded(op)
    if axes is None:
        return [op]
    found: list[Op] = []
    step = reach(op.walk).step
    steps = op.walk.rows // step
    for k, (first, end) in enumerate(edges(steps, count)):
        name = part_name(op.name, k, end == steps, "piece")
        found += cut_walk(op, axes, first * step, end * step, name, lambda field, view: view)
    return found


def when_wanted(graph: IntGraph) -> IntGraph:
    """`graph` with operations of the vector unit, and loads, just before the first product or spill that depends on them."""
    before = [sorted(node.before) for node in dependencies(graph)]
    order: dict[int, None] = {}
    last = len(graph.ops)
    for wanted in [*(i for i, op in enumerate(graph.ops) if isinstance(op, MatMul | Spill)), *range(last)]:
        stack = [wanted]
        while stack:
            if missing := [j for j in before[stack[-1]] if j not in order]:
                stack.append(missing[0])
            else:
                order.setdefault(stack.pop())
    return replace(graph, ops=[graph.ops[i] for i in order])

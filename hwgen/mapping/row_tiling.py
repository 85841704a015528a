"""Row tiling: LayerNorms and the linear layers around them in pieces, so that array and vector unit work side by side.

A linear layer in two tiles gives its first rows early; they are normalised while the array makes the others, and the
layer behind the LayerNorm starts on them while the others are normalised. The cost is that weights are read once for
every tile.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from ..intgraph import Constant, Input, IntGraph, MatMul, Multiply, Norm, Op, View
from .parts import is_token_wise, part, part_name, parts
from .runs import chains


def row_tiling(graph: IntGraph, tiles: int, chosen: set[str] | None = None, loads: bool = False) -> IntGraph:
    """`graph` with every LayerNorm, product of rows and linear layer (outside experts and chains) in `tiles` tiles of rows.

    chosen: names of those that may be split, if not all. loads: what they read from DRAM comes in tiles, too. An operation of
    fewer rows stays whole, and one with a walk. The last part of an operation keeps its name, for `trace`.
    """
    ops: list[tuple[int, Op]] = []  # with a number for the parts of each operation
    for number, chain in enumerate(chains(graph.ops)):
        for op in chain:
            split = len(chain) == 1 and _splits(op) and (chosen is None or op.name in chosen)
            ops += [(number, tile) for tile in (parts(op, tiles, "rows") if split else [op])]
    return replace(graph, ops=_loads_in_tiles(ops) if loads else [op for _, op in ops])


def waiting(ops: list[Op], least: int = 0) -> set[str]:
    """Operations between which the array waits for the vector unit: what makes its rows, itself, what streams them first.

    least: fewer rows than that are not worth it.
    """
    made: dict[str, Op] = {}  # by the array, or of that by the vector unit
    streamed: set[str] = set()
    found: set[str] = set()
    for op in ops:
        for view in op.reads().values():
            source = made.get(view.buffer)
            beside = isinstance(op, Norm | Multiply)
            long = view.rows >= least
            if long and source is not None and beside != isinstance(source, Norm | Multiply) and view.buffer not in streamed:
                found |= {op.name, source.name}
                streamed.add(view.buffer)
        if isinstance(op, MatMul) or (isinstance(op, Norm | Multiply) and op.name in found):
            made[op.out.buffer] = op
            streamed.discard(op.out.buffer)
    return found


def _loads_in_tiles(ops: list[tuple[int, Op]]) -> list[Op]:
    """Loads in the tiles in which the first linear layer that reads them does, so that it need not wait for all of them; but not
    those that another operation before it touches.

    ops: with a number for the parts of each.
    """
    readers: dict[str, list[tuple[int, int, int]]] = defaultdict(list)  # of a buffer: number, first row, operation
    touched: dict[str, list[tuple[int, View]]] = defaultdict(list)  # by which operations
    for i, (number, op) in enumerate(ops):
        for view in op.views().values():
            touched[view.buffer].append((i, view))
        if isinstance(op, MatMul) and _splits(op):
            for operand in (op.x, op.residual):
                if operand is not None:
                    readers[operand.buffer].append((number, operand.row, i))
    placed: list[tuple[int, int, Op]] = []  # each in front of which operation, and for which reader among those there
    for i, (_, op) in enumerate(ops):
        out = op.writes()["out"] if isinstance(op, Constant | Input) else None
        found = readers[out.buffer] if out is not None else []
        first, _, at = found[0] if found else (0, 0, -1)
        if out is None or at < i or any(i < j < at and view.overlaps(out) for j, view in touched[out.buffer]):
            placed.append((i, len(ops), op))
            continue
        cuts = {row - out.row: j for number, row, j in found if number == first and out.row < row < out.row + out.rows}
        starts = {0: at} | {row: j for row, j in sorted(cuts.items()) if j != at}
        for k, (begin, end) in enumerate(zip(starts, [*list(starts)[1:], out.rows], strict=True)):
            name = part_name(op.name, k, end == out.rows, "rows")
            placed.append((at, starts[begin], part(op, begin, end, name, lambda v: v)))
    return [op for *_, op in sorted(placed, key=lambda entry: entry[:2])]


def _splits(op: Op) -> bool:
    if isinstance(op, (Norm, Multiply)):
        return is_token_wise(op)
    return isinstance(op, MatMul) and op.expert is None and op.walk is None and not isinstance(op.w, View)

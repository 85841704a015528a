"""Row tiling: LayerNorms and the linear layers around them in pieces, so that array and vector unit work side by side.

A linear layer in two tiles gives its first rows early; they are normalised while the array makes the others, and the
layer behind the LayerNorm starts on them while the others are normalised. The cost is that weights are read once for
every tile.
"""

from __future__ import annotations

from dataclasses import replace

from ..intgraph import IntGraph, MatMul, Multiply, Norm, Op, View
from .parts import is_token_wise, parts
from .runs import chains


def row_tiling(graph: IntGraph, tiles: int, chosen: set[str] | None = None) -> IntGraph:
    """`graph` with every LayerNorm, product of rows and linear layer (outside experts and chains) in `tiles` tiles of rows.

    chosen: names of those that may be split, if not all. An operation of fewer rows stays whole, and one with a walk. The
    last part of an operation keeps its name, for `trace`.
    """
    ops: list[Op] = []
    for chain in chains(graph.ops):
        for op in chain:
            ops += parts(op, tiles, "rows") if len(chain) == 1 and _splits(op) and (chosen is None or op.name in chosen) else [op]
    return replace(graph, ops=ops)


def _splits(op: Op) -> bool:
    if isinstance(op, (Norm, Multiply)):
        return is_token_wise(op)
    return isinstance(op, MatMul) and op.expert is None and op.walk is None and not isinstance(op.w, View)

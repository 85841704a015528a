"""Row blocks: LayerNorms and the linear layers around them in pieces, so that array and vector unit work side by side.

A linear layer in two blocks gives its first rows early; they are normalised while the array makes the others, and the
layer behind the LayerNorm starts on them while the others are normalised. The price is that weights are read once for
every block.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..intgraph import IntGraph, MatMul, Norm, Op, RowScale, View
from .chains import chains


def row_blocks(graph: IntGraph, blocks: int) -> IntGraph:
    """`graph` with every LayerNorm and every linear layer (outside experts and chains) in `blocks` blocks of rows.

    An operation of fewer rows stays whole. The last part of an operation keeps its name, for `trace`.
    """
    ops: list[Op] = []
    for chain in chains(graph.ops):
        for op in chain:
            ops += _split(op, blocks) if len(chain) == 1 and _splits(op) else [op]
    return replace(graph, ops=ops)


def _splits(op: Op) -> bool:
    if isinstance(op, Norm):
        return True
    return isinstance(op, MatMul) and op.expert is None and not isinstance(op.w, View)


def _split(op: MatMul | Norm, blocks: int) -> list[Op]:
    rows = op.x.rows
    edges = sorted({rows * k // blocks for k in range(blocks + 1)})
    parts: list[Op] = []
    for k, (first, end) in enumerate(zip(edges, edges[1:], strict=False)):
        changes: dict = {
            name: replace(view, row=view.row + first, rows=end - first)
            for name in ("x", "out", "residual")
            if isinstance(view := getattr(op, name, None), View)
        }
        if isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
            changes["row_mult"] = np.broadcast_to(np.asarray(op.row_mult), rows)[first:end]
        name = op.name if end == rows else f"{op.name}.rows{k}"
        parts.append(replace(op, name=name, **changes))
    return parts

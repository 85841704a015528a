"""Columns that weights use: a product whose weights are zero but in some columns of what it reads, as one that picks a head out
of many has, streams these alone. A row takes a step of the array for every 64 columns, and a tile of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..intgraph import IntGraph, MatMul, Op
from ..isa import Convert


def used_columns(graph: IntGraph, chunk: int, lanes: int, spills: bool) -> IntGraph:
    """The graph with products of constant weights on the chunks of columns that have weight, where that saves steps of `lanes`
    columns. spills: values may lie in DRAM, where rows that are fetched in part have no maxima."""
    ops: list[Op] = []
    buffers = dict(graph.buffers)
    for op in graph.ops:
        ops.append(op)
        if not isinstance(op, MatMul) or not isinstance(op.w, np.ndarray) or op.expert is not None or op.indirect:
            continue
        if (op.walk is not None and op.walk.count > 1) or op.x_convert == Convert.PROBABILITY:  # sums of whole rows
            continue
        if spills and op.x_convert == Convert.ROW:
            continue
        buffer = buffers[op.x.buffer]
        used = np.flatnonzero(op.w.any(axis=0))
        if not used.size or (buffer.cols // buffer.groups) % chunk or op.x.col % chunk:
            continue
        first, end = int(used[0]) // chunk * chunk, min(op.x.cols, -(-(int(used[-1]) + 1) // chunk) * chunk)
        if -(-(end - first) // lanes) == -(-op.x.cols // lanes):
            continue
        if buffer.groups > 1:  # groups of whole chunks lie as one
            buffers[buffer.name] = replace(buffer, groups=1)
        x = replace(op.x, col=op.x.col + first, cols=end - first)
        ops[-1] = replace(op, x=x, w=np.ascontiguousarray(op.w[:, first:end]))
    return replace(graph, ops=ops, buffers=buffers)

"""Columns that weights use: a product whose weights are zero but in some columns of what they meet, as one that picks a head out
of many has, goes over these alone. A row takes a step of the array for every 64 columns, and a tile of weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..intgraph import Buffer, Constant, IntGraph, MatMul, Op, View
from ..isa import Convert

Span = tuple[int, int]  # first column, and the one behind the last


def used_columns(graph: IntGraph, chunk: int, lanes: int) -> IntGraph:
    """The graph with products with constants on the chunks of columns that have weight, where that saves steps of `lanes`
    columns."""
    buffers, changed = dict(graph.buffers), dict[str, Op]()
    cut: dict[tuple[int, Span], np.ndarray] = {}  # weights that blocks share stay one

    def span(weights: np.ndarray, view: View) -> Span | None:
        """The columns of a view that have weight, in whole chunks; None where they save nothing."""
        used, width = np.flatnonzero(weights.any(axis=0)), buffers[view.buffer].cols // buffers[view.buffer].groups
        if not used.size or width % chunk or view.col % chunk:
            return None
        first, end = int(used[0]) // chunk * chunk, min(view.cols, -(-(int(used[-1]) + 1) // chunk) * chunk)
        return (first, end) if -(-(end - first) // lanes) < -(-view.cols // lanes) else None

    def part(view: View, of: Span) -> View:
        buffers[view.buffer] = replace(buffers[view.buffer], groups=1)  # groups of whole chunks lie as one
        return replace(view, col=view.col + of[0], cols=of[1] - of[0])

    for op in graph.ops:
        if not isinstance(op, MatMul) or not isinstance(op.w, np.ndarray) or op.expert is not None:
            continue
        taps = op.walk is not None and op.walk.count > 1
        if taps or op.x_convert == Convert.PROBABILITY:  # of sums of whole rows
            continue
        if (found := span(op.w, op.x)) is not None:
            w = cut.setdefault((id(op.w), found), np.ascontiguousarray(op.w[:, slice(*found)]))
            changed[op.name] = replace(op, x=part(op.x, found), w=w)
    for constant, readers in _streamed(graph):
        views = [op.w for op in readers if isinstance(op.w, View)]
        spans = [span(constant.data, view) for view in views]
        if spans[0] is None or len(set(spans)) > 1:
            continue
        of = spans[0]
        out = View(constant.out.buffer, 0, constant.out.rows, 0, of[1] - of[0])
        buffers[out.buffer] = Buffer(out.buffer, out.rows, out.cols, scale=buffers[out.buffer].scale)
        changed[constant.name] = replace(constant, out=out, data=np.ascontiguousarray(constant.data[:, slice(*of)]))
        for op, view in zip(readers, views, strict=True):
            changed[op.name] = replace(op, x=out, w=part(view, of))
    return replace(graph, ops=[changed.get(op.name, op) for op in graph.ops], buffers=buffers)


def _streamed(graph: IntGraph) -> list[tuple[Constant, list[MatMul]]]:
    """Constants of which products with other values stream all rows, and nothing reads anything else."""
    users: dict[str, list[Op]] = {}
    for op in graph.ops:
        for name in {view.buffer for view in op.views().values()}:
            users.setdefault(name, []).append(op)
    kept = {output.view.buffer for output in graph.outputs}
    found = []
    for name, (first, *rest) in users.items():
        if not isinstance(first, Constant) or name in kept or not rest or first.out.cols != graph.buffers[name].cols:
            continue
        readers = [
            op
            for op in rest
            if isinstance(op, MatMul) and op.x == first.out and isinstance(op.w, View) and op.x_convert == Convert.STATIC
            if op.walk is None and op.w.buffer != name and all(v.buffer != name for v in op.writes().values())
        ]
        if len(readers) == len(rest) and all(op.residual is None or op.residual.buffer != name for op in readers):
            found.append((first, readers))
    return found

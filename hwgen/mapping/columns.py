"""Columns that weights use: a product whose weights are zero but in some columns of what they meet, as one that picks a head out
of many has, goes over these alone. A row takes a step of the array for every 64 columns, and a tile of weights. Where outputs use
different columns, as those of a convolution with groups do, those that the array makes together become a product of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..intgraph import Buffer, Constant, IntGraph, MatMul, Op, View
from ..isa import Convert, RowMax
from .parts import part_name

Span = tuple[int, int]  # first column, and the one behind the last


def used_columns(graph: IntGraph, chunk: int, lanes: int, outputs: int) -> IntGraph:
    """The graph with products with constants on the chunks of columns that have weight, where that saves steps of `lanes`
    columns for every `outputs` outputs."""
    graph = _outputs_apart(graph, chunk, lanes, outputs)
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
        if op.x_convert == Convert.PROBABILITY:  # of sums of whole rows
            continue
        by_tap = op.w.reshape(len(op.w) * op.taps, op.x.cols)
        if (found := span(by_tap, op.x)) is not None:
            key = id(op.w), found
            if key not in cut:
                cut[key] = np.ascontiguousarray(by_tap[:, slice(*found)]).reshape(len(op.w), -1)
            changed[op.name] = replace(op, x=part(op.x, found), w=cut[key])
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


def _outputs_apart(graph: IntGraph, chunk: int, lanes: int, outputs: int) -> IntGraph:
    """The graph with products with constants in parts of `outputs` outputs, where these use other columns each."""
    ops: list[Op] = []
    buffers = dict(graph.buffers)
    known: dict[tuple[int, int], Any] = {}  # of what blocks share each part once

    def rows(values: Any, first: int) -> Any:
        if np.ndim(values) == 0:
            return values
        return known.setdefault((id(values), first), np.ascontiguousarray(np.asarray(values)[first : first + outputs]))

    for op in graph.ops:
        plain = isinstance(op, MatMul) and isinstance(op.w, np.ndarray) and op.expert is None
        if not isinstance(op, MatMul) or not plain or not _apart(op, buffers, chunk, lanes, outputs):
            ops.append(op)
            continue
        for view in (op.out, *((op.residual,) if op.residual else ())):
            buffers[view.buffer] = replace(buffers[view.buffer], groups=1)  # groups of whole chunks lie as one
        for first in range(0, op.out.cols, outputs):
            cols = min(outputs, op.out.cols - first)
            last = first + outputs >= op.out.cols
            views = (("out", op.out), ("residual", op.residual))
            fields: dict[str, Any] = {f: replace(v, col=v.col + first, cols=cols) for f, v in views if v is not None}
            chained = op.row_max != RowMax.NONE and (first > 0 or op.continue_max)
            fields |= {f: rows(getattr(op, f), first) for f in ("w", "col_mult", "bias")} | {"continue_max": chained}
            ops.append(replace(op, name=part_name(op.name, first // outputs, last, "outputs"), **fields))
    return replace(graph, ops=ops, buffers=buffers)


def _apart(op: MatMul, buffers: dict[str, Buffer], chunk: int, lanes: int, outputs: int) -> bool:
    """Whether a product in parts of so many outputs takes less than half of the steps."""
    views = [op.x, op.out, *((op.residual,) if op.residual else ())]
    if op.out.cols <= outputs or op.x_convert == Convert.PROBABILITY or outputs % chunk:
        return False
    if any(buffers[v.buffer].cols // buffers[v.buffer].groups % chunk or v.col % chunk for v in views):
        return False
    assert isinstance(op.w, np.ndarray)
    used = np.asarray(op.w.reshape(len(op.w), op.taps, op.x.cols).any(axis=1))
    steps = 0
    for first in range(0, op.out.cols, outputs):
        columns = np.flatnonzero(used[first : first + outputs].any(axis=0))
        span = (int(columns[-1]) // chunk + 1 - int(columns[0]) // chunk) * chunk if columns.size else 1
        steps += -(-span // lanes)
    return 2 * steps <= -(-op.out.cols // outputs) * -(-op.x.cols // lanes)


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

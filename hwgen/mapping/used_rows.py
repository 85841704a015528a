"""Rows that something reads: behind a network's last attention its classifier takes the class token alone, and what every other
token goes through there is work for nothing. Products, LayerNorms and products of rows are made for the rows from the first
to the last one that an output hangs on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..intgraph import IntGraph, MatMul, Multiply, Norm, View
from .parts import is_token_wise, part
from .runs import links

Rows = tuple[int, int]  # first row of an operation's views, and the one behind the last


def used_rows(graph: IntGraph) -> IntGraph:
    """`graph` with operations that go row by row on the rows that are used."""
    whole: set[str] = set()  # operations that stay as they are
    while True:
        found = _used(graph, whole)
        # Row maxima are continued by row number: all operations of a chain have the same rows, or none is cut.
        torn = [chain for chain in links(graph.ops) if len({found.get(graph.ops[i].name) for i in chain}) > 1]
        if not torn:
            break
        whole |= {op.name for chain in torn for op in graph.ops[chain[0] : chain[-1] + 1]}
    ops = [op if op.name not in found else part(op, *found[op.name], op.name, lambda view: view) for op in graph.ops]
    return replace(graph, ops=ops)


def _used(graph: IntGraph, whole: set[str]) -> dict[str, Rows]:
    """The rows of operations by name, of those of which not all are used and that may be cut."""
    needed = {name: np.zeros(buffer.rows, bool) for name, buffer in graph.buffers.items()}  # rows, behind the operation

    def rows(view: View) -> np.ndarray:
        return needed[view.buffer][view.row : view.row + view.rows]

    for output in graph.outputs:
        rows(output.view)[:] = True
    found: dict[str, Rows] = {}
    for op in reversed(graph.ops):
        cut = isinstance(op, MatMul | Multiply | Norm) and op.expert is None and is_token_wise(op) and op.name not in whole
        views = op.row_views() if cut else {}
        used = np.flatnonzero(rows(op.writes()["out"])) if cut else np.zeros(0, int)
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)
        if cut and used.size and end - first < op.writes()["out"].rows:
            found[op.name] = first, end
        else:
            views = {}
        for view in op.writes().values():
            if view.col == 0 and view.cols == graph.buffers[view.buffer].cols and op.walk is None and op.expert is None:
                rows(view)[:] = False
        for name, view in op.reads().items():
            rows(replace(view, row=view.row + first, rows=end - first) if name in views else view)[:] = True
        for view in op.reads_maxima():
            part_of = op.name in found and view in views.values()
            rows(replace(view, row=view.row + first, rows=end - first) if part_of else view)[:] = True
    return found

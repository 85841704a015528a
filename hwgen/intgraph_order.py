"""Level M, in order or not: nothing reads rows, or maxima of rows, that no operation before it has written.

Passes that cut operations and move them can part a read from its write; what then stands in the scratchpad is whatever was
there before, and no other check of the build sees it: these compare the program with the graph as it was mapped.
"""

from __future__ import annotations

import numpy as np

from .intgraph import IntGraph, Transfer, View

Array = np.ndarray
ALL = slice(None)
Rows = Array | slice  # of a view, counted from its first


def written_first(graph: IntGraph) -> None:
    """Raise ValueError naming the operation that reads what is not written yet.

    A queue's rows count as written, and a Scatter's tokens too, whichever the router chooses. Rows that a Select leaves out
    count as read. What goes to DRAM and back may have gaps: blocks of which some rows are new are fetched whole.
    """
    values = _Written(graph, _edges(graph))
    maxima = _Written(graph, {})
    for op in graph.ops:
        if isinstance(op, Transfer):
            values.copy(op.x, op.out)
            continue
        rows = op.touched_rows()
        for name, view in op.reads().items():
            if not values.rows(view)[rows.get(name, ALL)].all():
                raise ValueError(f"{op.name}: reads rows of {view} before they are written")
        for view in op.reads_maxima():
            if not maxima.rows(view)[rows.get("x", ALL) if view is op.reads().get("x") else ALL].all():
                raise ValueError(f"{op.name}: reads maxima of rows of {view} before they are written")
        for name, view in op.writes().items():
            values.add(view, rows.get(name, ALL))
        if (out := op.writes_maxima()) is not None:
            maxima.add(out, rows.get("out", ALL))
    for output in graph.outputs:
        if not values.rows(output.view).all():
            raise ValueError(f"output {output.name}: {output.view} is not written")


class _Written:
    """Which rows of every buffer are written, by runs of columns that the operations tell apart."""

    def __init__(self, graph: IntGraph, edges: dict[str, set[int]]):
        self.edges = {name: np.array(sorted(found)) for name, found in edges.items()}
        runs = {name: max(1, len(found) - 1) for name, found in edges.items()}
        self.known = {name: np.zeros((runs.get(name, 1), buffer.rows), bool) for name, buffer in graph.buffers.items()}

    def _part(self, view: View) -> Array:
        known = self.known[view.buffer]
        if len(known) > 1:
            first, last = np.searchsorted(self.edges[view.buffer], (view.col, view.col + view.cols))
            known = known[int(first) : int(last)]
        return known[:, view.row : view.row + view.rows]

    def rows(self, view: View) -> Array:
        """Which rows of a view are written in all its columns: bool [rows]."""
        found: Array = self._part(view).all(axis=0)
        return found

    def add(self, view: View, rows: Rows) -> None:
        """These rows are."""
        self._part(view)[:, rows] = True

    def copy(self, x: View, out: View) -> None:
        """What is written of one view is of the other, column by column."""
        self._part(out)[:] |= self._part(x)


def _edges(graph: IntGraph) -> dict[str, set[int]]:
    """Columns of every buffer at which views begin or end, those of what is copied from and to it too."""
    edges: dict[str, set[int]] = {name: set() for name in graph.buffers}
    for op in graph.ops:
        for view in op.views().values():
            edges[view.buffer] |= {view.col, view.col + view.cols}
    copies = [op for op in graph.ops if isinstance(op, Transfer)]
    before = -1
    while before != (before := sum(map(len, edges.values()))):
        for op in copies:
            for here, there in ((op.x, op.out), (op.out, op.x)):
                inside = (edge - here.col for edge in edges[here.buffer] if here.col < edge < here.col + here.cols)
                edges[there.buffer].update(there.col + edge for edge in inside)
    return edges


"""Which rows and columns of which layers' values an operand shows, element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..recognise.match import at_columns
from ..tensor import Layout, Node

Array = np.ndarray
ZERO, LOWEST = -1, -2  # elements that no value holds: zero; less than any number, around what the largest is taken of


class Unsupported(Exception):
    """Raised where the row graph cannot hold a value: why, and what would help."""

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(eq=False)
class Place:
    """Where the value of a layer stands in the row graph: [rows, width]; row r of the layer's own value (of `columns`) is
    in row `row[r]`, from column `column[r]` on. None: where it is in the layer.

    at   (row, column) of each element of the layer's value in its own order, where that is not tokens by channels
    """

    rows: int
    width: int
    row: Array | None = None
    column: Array | None = None
    at: tuple[Array, Array] | None = None

    def alike(self, other: Place) -> bool:
        """Whether the rows of two layers stand alike, none of them in an order by element."""
        pairs = ((self.row, other.row), (self.column, other.column))
        same = all(a is b is None or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
        return same and self.rows == other.rows and self.at is None and other.at is None


@dataclass(eq=False)
class View:
    """Elements of values: row and column of each in the row graph, arrays that broadcast to `shape`.

    which   index in `sources` of the value, ZERO or LOWEST; None: all of the first
    """

    sources: tuple[Node, ...]
    shape: tuple[int, ...]
    rows: Array
    columns: Array
    which: Array | None = None

    @property
    def node(self) -> Node:
        return self.sources[0]

    @property
    def single(self) -> bool:
        return self.which is None

    def map(self, change: Callable[[Array], Array]) -> View:
        """Another arrangement of the same elements."""
        arrays = [None if a is None else change(np.broadcast_to(a, self.shape)) for a in (self.rows, self.columns, self.which)]
        rows, columns, which = arrays
        assert rows is not None and columns is not None
        return View(self.sources, rows.shape, rows, columns, which)

    def group(self, *groups: list[int]) -> View:
        """Axes joined group by group, the first one outermost; arrays that broadcast along a whole group stay small."""
        order = [i for axes in groups for i in axes]

        def change(a: Array) -> Array:
            a = a.reshape((1,) * (len(self.shape) - a.ndim) + a.shape)
            wide: list[int] = list(a.shape)
            for axes in groups:
                if any(wide[i] != 1 for i in axes):
                    wide = [self.shape[i] if i in axes else n for i, n in enumerate(wide)]
            made: Array = (
                np.broadcast_to(a, wide).transpose(order).reshape([int(np.prod([wide[i] for i in axes])) for axes in groups])
            )
            return made

        shape = tuple(int(np.prod([self.shape[i] for i in axes])) for axes in groups)
        which = None if self.which is None else change(self.which)
        return View(self.sources, shape, change(self.rows), change(self.columns), which)


def shown(at: Layout | Array, node: Node, place: Place) -> tuple[Array, Array]:
    """`at`, positions in the value of `node`, as rows and columns of the row graph."""
    if place.at is not None:
        at = at.positions() if isinstance(at, Layout) else at
        return place.at[0][at], place.at[1][at]
    width = node.shape[-1] if node.shape else 1
    split = at_columns(at, width) if isinstance(at, Layout) and width > 1 else None
    if split is not None:
        rows, columns = (_sums(split, width, down) for down in (True, False))
    else:
        at = at.positions() if isinstance(at, Layout) else at
        rows, columns = at // width, at % width
    if place.column is not None:
        columns = columns + place.column[rows]
    if place.row is not None:
        rows = place.row[rows]
    return rows, columns


def _sums(layout: Layout, width: int, down: bool) -> Array:
    """The rows (or columns) alone, with length 1 along axes that do not change them."""
    total = np.asarray(layout.offset // width if down else layout.offset % width, np.int64)
    rank = len(layout.axes)
    for i, axis in enumerate(layout.axes):
        own = np.zeros(1, np.int64)
        moves = [(n, s) for n, s in axis if s and (abs(s) >= width) == down]
        for n, s in axis if moves else ():
            step = (s // width if down else s) if (n, s) in moves else 0
            own = (own[:, None] + np.arange(n) * step).reshape(-1)
        total = total + own.reshape([-1 if j == i else 1 for j in range(rank)])
    return total.reshape([1] * rank) if total.ndim == 0 else total


def as_tokens(view: View, *others: View) -> tuple[View, list[int], int]:
    """(the same elements [R, C], the axes in the order in which they stand there, how many of these make the rows): the axes
    along which rows change first, then those along which columns do. What does not change along an axis goes as the first of
    `others` does that has columns change along it."""
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    which = None if view.which is None else np.broadcast_to(view.which, view.shape)
    down: list[int] = []
    across: list[int] = []
    for i, n in enumerate(view.shape):
        for step in range(1, max(2, min(n, MOST_SOURCES + 1))):  # of values in turns, the next element of the same
            cuts = slice(step, None), slice(None, -step)
            ahead, behind = (tuple(part if j == i else slice(None) for j in range(len(view.shape))) for part in cuts)
            same = np.True_ if which is None else (which[ahead] == which[behind]) & (which[ahead] >= 0)
            if np.any(same):
                break
        moves = [bool(((a[ahead] != a[behind]) & same).any()) for a in (rows, columns)]
        if all(moves):
            raise Unsupported("its input is not tokens by channels")
        last = n == 1 and i == len(view.shape) - 1 and not across
        wide = not any(moves) and any(_columns_along(other, i) for other in others)
        (across if moves[1] or last or wide else down).append(i)
    return view.group(down, across), down + across, len(down)


def _columns_along(view: View, axis: int) -> bool:
    """Whether columns, and no rows, change along an axis."""
    ahead, behind = (tuple(part if j == axis else slice(None) for j in range(len(view.shape))) for part in CUTS)
    rows, columns = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns))
    return bool((columns[ahead] != columns[behind]).any()) and bool((rows[ahead] == rows[behind]).all())


MOST_SOURCES = 8  # values whose elements stand in turns
CUTS = slice(1, None), slice(None, -1)

"""Which rows and columns of which layer's value an operand shows, element by element."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..recognise.match import at_columns
from ..tensor import Concat, Copy, Gather, Layout, Node, Ref

Array = np.ndarray


class Unsupported(Exception):
    """Raised where the row graph cannot hold a value: why, and what would help."""

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


@dataclass(eq=False)
class Place:
    """Where the value of a layer stands in the row graph: [rows, width]; row r of the layer's own value (of `columns`) is
    in row `row[r]`, from column `column[r]` on. None: where it is in the layer."""

    rows: int
    width: int
    row: Array | None = None
    column: Array | None = None


@dataclass(eq=False)
class View:
    """Elements of the value of `node`: row and column of each in the row graph, arrays that broadcast to `shape`."""

    node: Node
    shape: tuple[int, ...]
    rows: Array
    columns: Array

    def map(self, change: Callable[[Array], Array]) -> View:
        """Another arrangement of the same elements."""
        rows, columns = (change(np.broadcast_to(a, self.shape)) for a in (self.rows, self.columns))
        return View(self.node, rows.shape, rows, columns)


def behind(r: Ref) -> Node:
    """The layer behind moves that are nodes."""
    return base(r)[0] if isinstance(r.op, Copy | Gather | Concat) else r.node


def base(r: Ref) -> tuple[Node, Array]:
    """The layer behind moves that are nodes, and the position in its value of each element of r."""
    at = r.layout.positions()
    node = r.node
    while True:
        op = node.op
        if isinstance(op, Copy):
            (x,) = node.operands
        elif isinstance(op, Gather) and not op.elements and node.operands[1].constant is not None:
            x, index = node.operands
            at = np.take(x.layout.positions(), np.asarray(index.constant), axis=op.axis).reshape(-1)[at]
            node = x.node
            continue
        elif isinstance(op, Concat):
            parts = [base(p) for p in node.operands]
            if any(n is not parts[0][0] for n, _ in parts):
                return node, at
            node, at = parts[0][0], np.concatenate([p for _, p in parts], axis=op.axis).reshape(-1)[at]
            return node, at
        else:
            return node, at
        at = x.layout.positions().reshape(-1)[at]
        node = x.node


def shown(shape: tuple[int, ...], at: Layout | Array, node: Node, place: Place) -> View:
    """`at`, positions in the value of `node`, as rows and columns of the row graph."""
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
    return View(node, shape, rows, columns)


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


def as_rows(view: View) -> tuple[Array, Array]:
    """(row of each row, columns) of a view [R, C] of which every row shows the same columns of one row."""
    rows, columns = view.rows, view.columns
    if rows.ndim != 2 or (rows != rows[:, :1]).any() or (columns != columns[:1]).any():
        flat = (rows * (columns.max() + 1) + columns).reshape(-1)
        if rows.ndim == 2 and (rows[0] != rows[0, 0]).any() and np.bincount(flat).max() == 1:
            hint = "keep one grid of tokens from the patch embedding to the end"
            raise Unsupported("joins the channels of several tokens in one (patch merging)", hint)
        raise Unsupported("its input is not tokens by channels")
    return np.broadcast_to(rows[:, 0], view.shape[:1]), np.broadcast_to(columns[0], view.shape[1:])


def span(rows: Array) -> tuple[int, Array | None]:
    """(first, order) where `rows` are first .. first + n - 1, each once; order None where they rise."""
    first = int(rows.min()) if rows.size else 0
    order = rows - first
    if np.array_equal(order, np.arange(rows.size)):
        return first, None
    if not np.array_equal(np.sort(order), np.arange(rows.size)):
        raise Unsupported("uses some tokens twice or leaves tokens between them out", "use all tokens, or a range of them")
    return first, order

"""Values whose rows a reader takes for columns: the same value transposed, as a value of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..tensor import Builder, Const, Input, Layer, Node, Ref
from .views import Array, View


@dataclass(frozen=True)
class Standing(Layer):
    """x [R, C] as it is, as a value of these rows: its operand shows the columns of another."""

    def define(self, t: Builder, *operands: Ref) -> Ref:
        return t.copy(operands[0])


def upright(view: View, split: int, transposed: Callable[[Node], Node]) -> View:
    """The view, of which axes before `split` are to be rows and the others columns; what shows columns of a value as rows
    shows the same of that value transposed, which `transposed` makes."""
    if view.which is None and view.rows.shape[split:] == (1,) * (len(view.shape) - split):
        return view
    flat = (int(np.prod(view.shape[:split])), int(np.prod(view.shape[split:])))
    if min(flat) < 2:
        return view
    arrays = (view.rows, view.columns, np.zeros((1,) * len(view.shape), np.int64) if view.which is None else view.which)
    rows: Array
    columns: Array
    rows, columns, which = (np.broadcast_to(a, view.shape).reshape(flat) for a in arrays)
    sources = list(view.sources)
    for i, source in enumerate(view.sources):
        here = which == i
        if isinstance(source.op, Const | Input) or not _turned(rows, columns, here):
            continue
        sources[i] = transposed(source)
        rows, columns = np.where(here, columns, rows), np.where(here, rows, columns)
    if all(one is other for one, other in zip(sources, view.sources, strict=True)):
        return view
    return View(tuple(sources), view.shape, rows.reshape(view.shape), columns.reshape(view.shape), view.which)


def one_way(view: View, transposed: Callable[[Node], Node]) -> View:
    """The view of several values, of which those that stand the other way round than the first are transposed."""
    if view.which is None or len(view.sources) == 1:
        return view
    rows, columns, which = (np.broadcast_to(a, view.shape) for a in (view.rows, view.columns, view.which))
    sources, first = list(view.sources), _moving(rows, columns, which == 0)
    for i, source in enumerate(sources[1:], 1):
        here = which == i
        if isinstance(source.op, Const | Input) or first[0] == first[1] or _moving(rows, columns, here) != first[::-1]:
            continue
        sources[i] = transposed(source)
        rows, columns = np.where(here, columns, rows), np.where(here, rows, columns)
    return view if tuple(sources) == view.sources else View(tuple(sources), view.shape, rows, columns, view.which)


def _moving(rows: Array, columns: Array, here: Array) -> list[list[int]]:
    """The axes along which rows change where `here` holds, and those along which columns do."""
    found: list[list[int]] = [[], []]
    for axis in range(here.ndim):
        at = np.moveaxis(here, axis, 0)
        for changes, a in zip(found, (rows, columns), strict=True):
            a = np.moveaxis(a, axis, 0)
            if ((a[1:] != a[:-1]) & at[1:] & at[:-1]).any():
                changes.append(axis)
    return found


def _turned(rows: Array, columns: Array, here: Array) -> bool:
    """Whether, where `here` holds, columns change from row to row only, and rows from column to column."""
    across, down = here[:, 1:] & here[:, :-1], here[1:] & here[:-1]
    changes = [((a[:, 1:] != a[:, :-1]) & across).any() for a in (rows, columns)]
    return bool(changes[0] and not changes[1] and ((columns[1:] != columns[:-1]) & down).any())

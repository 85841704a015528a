"""Operations with walks in blocks of their rows: which rows of a map a block of rows needs, a band of it.

A convolution's block of output rows needs the input rows that its taps reach, those around the block's place in the map too.
So blocks go from one step of the walk's outermost loop to another, and consecutive bands overlap by what the taps reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from ..intgraph import MatMul, Op, ReduceWindow, View
from ..isa import ColScale, RowScale
from ..resampling import Resampled
from ..walks import Walk
from .parts import COLUMNS, ROWS, WHOLE, part, part_name

BAND = "band"  # axis of a view: of what a block of the operation's walk reaches

MOST_LANES = 16  # operations instead of one


@dataclass(frozen=True)
class Shape:
    """How an operation goes through in blocks: its number of tokens (0: not at all), the axis of each view by field, and what
    the borders of blocks are multiples of."""

    tokens: int
    axes: dict[str, str]
    step: int = 1


@dataclass(frozen=True)
class Reach:
    """Rows of x and of out that each step of a walk's outermost loop of more than one reaches: `low` to `high` - 1, where it
    reaches any. `step`: rows of the walk in one."""

    step: int
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]


def span(rows: np.ndarray) -> tuple[int, int]:
    """(first row, row behind the last) among those that lie within a map; of none its first one."""
    rows = rows[rows >= 0]
    return (int(rows.min()), int(rows.max()) + 1) if len(rows) else (0, 1)


def _outermost(walk: Walk) -> int:
    """The outermost loop of more than one."""
    return next(k for k, n in enumerate(walk.loops) if n > 1)


@lru_cache(maxsize=4096)
def reach(walk: Walk) -> Reach:
    """What the steps of a walk reach."""
    step = walk.rows // walk.loops[_outermost(walk)]
    low, high = {}, {}
    for side, rows in (("x", walk.x_rows()), ("out", walk.y_rows()[None])):
        steps = rows.reshape(len(rows), -1, step)
        low[side] = np.where(steps < 0, np.iinfo(np.int64).max, steps).min(axis=(0, 2))
        high[side] = steps.max(axis=(0, 2)) + 1
    return Reach(step, low, high)


@lru_cache(maxsize=65536)
def tallest(walk: Walk, side: str, height: int) -> int:
    """Rows of the tallest band of blocks of `height` rows of a walk, of all its lanes together. side: "x" or "out"."""
    steps = -(-height // reach(walk).step)
    if side == "out":
        return _tall(walk, side, steps)
    return sum(_tall(lane, side, steps) for lane in lanes(walk))


def _tall(walk: Walk, side: str, steps: int) -> int:
    """Rows of the tallest band of so many steps."""
    of = reach(walk)
    steps = min(len(of.low[side]), steps)
    low, high = (np.lib.stride_tricks.sliding_window_view(a[side], steps) for a in (of.low, of.high))
    return max(1, int((high.max(axis=1) - low.min(axis=1)).max()))


@lru_cache(maxsize=4096)
def lanes(walk: Walk) -> tuple[Walk, ...]:
    """Walks that make the same rows in as many steps, where each reads a narrow band and all together a wide one: one after
    another the rows of several maps below each other, such as pixels that are put side by side. Else the walk itself."""
    found: tuple[Walk, ...] = (walk,)
    least = _tall(walk, "x", 1)
    if walk.plane is not None or walk.count > 1 or isinstance(walk, Resampled):
        return found
    outer = _outermost(walk)
    for k in (k for k in range(outer + 1, len(walk.loops)) if 1 < walk.loops[k] <= MOST_LANES):

        def left(values: tuple[int, ...], k: int = k) -> tuple[int, ...]:
            return values[:k] + values[k + 1 :]

        inner = tuple(
            replace(walk, loops=left(walk.loops), x=left(walk.x), y=left(walk.y), x_start=walk.x_start + i * walk.x[k],
                    y_start=walk.y_start + i * walk.y[k])
            for i in range(walk.loops[k])
        )  # fmt: skip
        narrow = tuple(lane for wider in inner for lane in lanes(wider))
        wide = sum(_tall(lane, "x", 1) for lane in narrow)
        if len(narrow) <= MOST_LANES and 2 * wide <= least:
            found, least = narrow, wide
    return found


def rows_of(walk: Walk, first: int, end: int) -> Walk:
    """Rows first..end-1 of a walk, which are some steps of its outermost loop of more than one."""
    outer = _outermost(walk)
    step = walk.rows // walk.loops[outer]
    at, count = first // step, (end - first) // step
    zeros = (0,) * outer
    return walk.part((*zeros, at), (count, *walk.loops[outer + 1 :]))


def banded(op: Op) -> dict[str, str] | None:
    """The axis of each view of an operation with a walk that goes through in blocks of the walk's rows; None: it does not.

    What the walk passes row by row in order is `ROWS`, so that operations on the same tokens may share its blocks.
    """
    walk = op.walk
    if not isinstance(op, MatMul | ReduceWindow) or walk is None or walk.rows < 2 or op.x.buffer == op.out.buffer:
        return None
    if isinstance(op, ReduceWindow) and not op.cuts:
        return None
    if isinstance(op, MatMul) and (op.continue_max or op.row_scale == RowScale.TABLE):
        return None
    if isinstance(op, MatMul) and op.residual is not None and op.residual.buffer in (op.x.buffer, *_stationary(op)):
        return None
    order, axes = np.arange(walk.rows), dict.fromkeys(op.views(), BAND)
    if op.x.rows == walk.rows and walk.count == 1 and np.array_equal(walk.x_rows()[0], order):
        axes["x"] = ROWS
    if op.out.rows == walk.rows and np.array_equal(walk.y_rows(), order):
        axes["out"] = ROWS
    if "residual" in axes:
        axes["residual"] = axes["out"]
    return axes | ({"w": WHOLE} if "w" in axes else {})


def tight(op: Op) -> Op:
    """`op`, where its walk has one row, with views of the rows that this one reaches, and no others."""
    if not isinstance(op, MatMul | ReduceWindow) or op.walk is None or op.walk.rows > 1:
        return op
    x = op.walk.x_rows()
    if not (x >= 0).any():
        return op
    (low, high), y = span(x), int(op.walk.y_rows()[0])
    changes: dict[str, Any] = {"x": replace(op.x, row=op.x.row + low, rows=high - low)}
    for name in ("out", "residual"):
        if isinstance(view := op.views().get(name), View):
            changes[name] = replace(view, row=view.row + y, rows=1)
    return replace(op, walk=replace(op.walk, x_start=op.walk.x_start - low, y_start=op.walk.y_start - y), **changes)


def _stationary(op: Op) -> tuple[str, ...]:
    view = op.stationary()
    return () if view is None else (view.buffer,)


def cut_walk(
    op: Op, axes: dict[str, str], first: int, end: int, name: str, place: Callable[[str, View], View]
) -> list[Op]:
    """`op` on rows first..end-1 of its walk, lane by lane, the last one called `name`; place(field, view) may put what they
    then work on elsewhere."""
    assert isinstance(op, MatMul | ReduceWindow) and op.walk is not None
    step, found = reach(op.walk).step, lanes(op.walk)
    written = rows_of(op.walk, first, end).y_rows()
    pieces: list[Op] = []
    for n, lane in enumerate(found):
        own = reach(lane).step
        walk = rows_of(lane, first // step * own, end // step * own)
        reached = {"x": walk.x_rows(), "out": written, "residual": written}
        changes: dict[str, Any] = {}
        starts = {"x": walk.x_start, "out": walk.y_start}
        for field, view in op.views().items():
            if axes[field] == WHOLE:
                changes[field] = place(field, view)
                continue
            low, high = first, end
            if axes[field] == BAND:
                low, high = span(reached[field])
            changes[field] = place(field, replace(view, row=view.row + low, rows=high - low))
            if field in starts:
                starts[field] -= low
        moved = replace(walk, x_start=starts["x"], y_start=starts["out"])
        pieces.append(replace(op, name=part_name(name, n, n == len(found) - 1, "lane"), walk=moved, **changes))
    return pieces


def cut(op: Op, shape: Shape, first: int, end: int, name: str, place: Callable[[str, View], View]) -> list[Op]:
    """`op` called `name` on tokens first..end-1, in the order of these; place(field, view) may put what it then works on
    elsewhere. Several where a walk has `lanes`."""
    if op.walk is not None:
        return cut_walk(op, shape.axes, first, end, name, place)
    if COLUMNS not in shape.axes.values():
        piece, views = part(op, first, end, name, lambda view: view), op.views()
        placed: dict[str, Any] = {
            field: place(field, views[field] if shape.axes[field] == WHOLE else view)
            for field, view in piece.views().items()
        }
        return [replace(piece, **placed)]
    assert isinstance(op, MatMul) and isinstance(op.w, View)
    changes = {"w": replace(op.w, row=op.w.row + first, rows=end - first), "x": op.x}
    changes["out"] = replace(op.out, col=op.out.col + first, cols=end - first)
    values: dict[str, Any] = {field: place(field, view) for field, view in changes.items()}
    params: dict[str, Any] = {}
    if op.col_scale == ColScale.PARAMETERS:
        params["col_mult"] = np.broadcast_to(np.asarray(op.col_mult), op.out.cols)[first:end]
        params["bias"] = None if op.bias is None else np.asarray(op.bias)[first:end]
    return [replace(op, name=name, **values, **params)]

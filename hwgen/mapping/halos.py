"""Which rows each operation of a run makes in each block, where an operation takes bands of what another one makes.

A convolution needs the rows around those of a block. What is in front of it in the same run makes them too, and the next block
makes them again: what lies between the two is never a whole map. Blocks are tokens of the run's last operation. What is in
front of it makes of a value what its readers need for these; of what is needed elsewhere each operation makes its share.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..intgraph import Op, View
from ..walks import Walk
from .bands import BAND, Shape, lanes, reach
from .parts import ROWS

Array = np.ndarray
Rows = tuple[Array, Array]  # first row, and row behind the last, of every block
NONE = 1 << 40  # first row of none
Area = tuple[str, int, int]  # buffer, first column, columns: what is brought for several operations together


@dataclass(frozen=True)
class Blocks:
    """`made`: tokens of each operation. `kept`: rows of each buffer of which only a block is there. `taken`: of others those that
    are brought or taken away, by `area`."""

    made: list[Rows]
    kept: dict[str, Rows]
    taken: dict[Area, Rows]


@lru_cache(maxsize=4096)
def _reached(walk: Walk) -> Rows | None:
    """By step of a walk, the lowest row that it or a later one reaches, and the row behind the highest that it or an earlier
    one does; None where a step of one of its lanes reaches none."""
    if any((reach(lane).high["x"] <= 0).any() for lane in lanes(walk)):
        return None
    of = reach(walk)
    return np.minimum.accumulate(of.low["x"][::-1])[::-1], np.maximum.accumulate(of.high["x"])


def taken_by_band(view: View, rows: int, walk: Walk | None) -> bool:
    """Whether a view of a buffer of so many rows may be of what the same run makes, whose bands a walk takes."""
    return walk is not None and (view.row, view.rows) == (0, rows) and _reached(walk) is not None


def area(op: Op, shape: Shape, name: str, view: View) -> Area | None:
    """Where a view's rows are one range in every block; None: several, or all of them."""
    axis = shape.axes[name]
    if axis == BAND and name == "x" and op.walk is not None:
        return (view.buffer, view.col, view.cols) if len(lanes(op.walk)) == 1 and _reached(op.walk) else None
    return (view.buffer, view.col, view.cols) if axis == ROWS else None


def blocks(
    units: list[list[tuple[Op, Shape]]], edges: Array, local: Collection[str], written: Collection[str]
) -> Blocks:
    """What the operations of a run make in its blocks, whose borders are `edges`.

    local: buffers of which only a block is there. written: others that the run writes.
    """
    of = units[-1][-1][1].tokens
    steps: dict[int, int] = {}
    for _, shape in (entry for unit in units for entry in unit):
        steps[shape.tokens] = math.lcm(steps.get(shape.tokens, 1), shape.step)
    borders = {t: edges if t == of else np.append(edges[:-1] * t // (of * step) * step, t) for t, step in steps.items()}
    shares: dict[int, Rows] = {t: (cuts[:-1], cuts[1:]) for t, cuts in borders.items()}
    need: dict[str, Rows] = {}
    made: list[Rows] = []
    taken: dict[Area, Rows] = {}
    for unit in reversed(units):
        rows = _of_unit(unit, shares, need, local)
        made += [rows] * len(unit)
        for op, shape in unit:
            for name, view in op.views().items():
                place = None if view.buffer in local else area(op, shape, name, view)
                if place is not None:
                    taken[place] = _hull(taken.get(place), _needed(op, shape, name, view, rows))
            for name, view in op.reads().items():
                if view.buffer not in local and view.buffer not in written:
                    continue
                need[view.buffer] = _hull(need.get(view.buffer), _needed(op, shape, name, view, rows))
            for view in op.writes().values():
                if view.buffer in local:  # rounded to whole steps it may be more than is needed
                    need[view.buffer] = _hull(need.get(view.buffer), rows)
    made.reverse()
    kept = {name: (np.minimum(*need[name]), need[name][1]) for name in local}
    return Blocks(made, kept, {place: (np.minimum(*rows), rows[1]) for place, rows in taken.items()})


def sound(units: list[list[tuple[Op, Shape]]], blocks: Blocks, written: Collection[str]) -> bool:
    """Whether what a run writes is right behind it, but for its own buffers: where each row is made once, or where one
    operation makes a row from what it has not written, and again from the same."""
    entries = [entry for unit in units for entry in unit]
    return all(_sound(name, entries, blocks.made) for name in written)


def _of_unit(
    unit: list[tuple[Op, Shape]], shares: dict[int, Rows], need: dict[str, Rows], local: Collection[str]
) -> Rows:
    """Tokens that the operations of a unit make: what is needed of what they write, and their share of what stays."""
    found: Rows | None = None
    _, shape = unit[0]
    for op, own in unit:
        for name, view in op.writes().items():
            if view.buffer not in local or view.buffer not in need:
                found = _hull(found, shares[shape.tokens])
            if view.buffer in need:
                rows = need[view.buffer]
                found = _hull(found, _within(rows, view) if own.axes[name] == ROWS else rows)
    first, end = found or shares[shape.tokens]
    step = shape.step if len(unit) == 1 else math.lcm(*(s.step for _, s in unit))
    if step > 1:
        first, end = first // step * step, np.minimum(-(-end // step) * step, shape.tokens)
    return np.minimum(first, end), end


def _within(rows: Rows, view: View) -> Rows:
    """Which of the rows that are needed of a buffer a view of some of them is: tokens of what writes it."""
    first, end = (np.clip(a - view.row, 0, view.rows) for a in rows)
    return np.where(end <= first, NONE, first), np.where(end <= first, 0, end)


def _needed(op: Op, shape: Shape, name: str, view: View, rows: Rows) -> Rows:
    """Rows of a view's buffer that an operation reads for these tokens."""
    first, end = rows
    whole = bool((end > first).all())
    empty = end <= first
    if shape.axes[name] == BAND:
        assert op.walk is not None
        found = _reached(op.walk)
        assert found is not None
        step = reach(op.walk).step
        low, high = found
        first, end = low[np.minimum(first // step, len(low) - 1)], high[np.maximum(end // step - 1, 0)]
    if view.row:
        first, end = first + view.row, end + view.row
    return (first, end) if whole else (np.where(empty, NONE, first), np.where(empty, 0, end))


def _sound(name: str, entries: list[tuple[Op, Shape]], made: list[Rows]) -> bool:
    """Whether blocks one after another leave right what the operations do to a buffer."""
    touching = [i for i, (op, _) in enumerate(entries) if any(view.buffer == name for view in op.views().values())]
    maker = entries[touching[0]][0]
    first, end = made[touching[0]]
    if (first[1:] == end[:-1]).all() and all(np.array_equal(made[i], made[touching[0]]) for i in touching):
        by_rows = all(
            shape.axes[field] == ROWS
            for op, shape in (entries[i] for i in touching)
            for field, view in op.views().items()
            if view.buffer == name
        )
        if by_rows or len(touching) == 1:
            return True
    reads = any(view.buffer == name for view in maker.reads().values())
    again = any(view.buffer == name for i in touching[1:] for view in entries[i][0].writes().values())
    return not reads and not again and maker.expert is None


def _hull(a: Rows | None, b: Rows) -> Rows:
    """Rows that hold both."""
    return b if a is None else (np.minimum(a[0], b[0]), np.maximum(a[1], b[1]))

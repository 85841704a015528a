"""Runs of operations that work on whole values: what lives between them stays in the scratchpad, what enters and leaves lies
in DRAM.

Where a network narrows (the later stages of a backbone behind its large maps) whole values fit, and blocks would only move
them to DRAM and back. Such a run begins and ends where little lives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..intgraph import MatMul, Op, RouteTokens

NEAR = 8  # units on both sides, of which a border of runs has the least alive
EXPOSED = 0.25  # of the cycles of transfers: others wait for them
Cycles = Callable[[Op, int], float]


@dataclass(frozen=True)
class Touched:
    """What a unit does to a buffer. size, entries: of the whole buffer, chunks and row maxima."""

    name: str
    size: int
    entries: int
    writes: bool


class Kept:
    """Runs of units that may work on whole values.

    units: what each touches of what may be kept, and of constants; spans: first and last unit that touches a buffer; cycles:
    of array and vector unit; room: chunks and row maxima there is room for; bank: chunks of one; beats: of a chunk to or from
    DRAM.
    """

    def __init__(
        self,
        units: list[list[Touched]],
        spans: dict[str, list[int]],
        fixed: set[str],
        cycles: list[tuple[float, float]],
        room: tuple[int, int],
        bank: int,
        beats: int,
    ):
        self.units, self.spans, self.fixed, self.cycles = units, spans, fixed, cycles
        self.room, self.bank, self.beats = np.array(room), bank, beats
        alive = np.zeros(len(units) + 2, np.int64)  # chunks that live across the border before each unit
        for t in {t.name: t for unit in units for t in unit if t.name not in fixed}.values():
            first, last = spans[t.name]
            alive[first + 1 : last + 1] += t.size
        least = np.lib.stride_tricks.sliding_window_view(np.pad(alive, NEAR, mode="edge"), 2 * NEAR + 1).min(axis=1)
        first = np.diff(alive, prepend=-1) != 0  # of as many units with as much alive
        borders = np.flatnonzero((alive == least) & first)
        self.borders = {0, len(units), *borders.tolist()}

    def runs(self, first: int, resident: set[str], stays: Callable[[int], tuple[int, int]]) -> Iterator[tuple[int, float]]:
        """(end, cycles) of every run that fits from a border on. resident: what stays anyway, stays: its chunks and row maxima
        while each unit works."""
        if first not in self.borders:
            return
        live = np.zeros((len(self.units) - first, 2), np.int64)
        last: dict[str, int] = {}  # of each buffer, the last unit so far that touches it
        seen: dict[str, Touched] = {}
        written: set[str] = set()
        array = vector = 0.0
        for u in range(first, len(self.units)):
            live[u - first] += stays(u)
            for t in self.units[u]:
                if t.name in resident:
                    continue
                begin = u if t.name in self.fixed else last.get(t.name, u - 1) + 1
                live[begin - first : u - first + 1] += (t.size, t.entries)
                last[t.name] = u
                seen[t.name] = t
                if t.writes:
                    written.add(t.name)
            if (live[: u - first + 1].max(axis=0) > self.room).any() or any(t.size > self.bank for t in self.units[u]):
                return
            array, vector = array + self.cycles[u][0], vector + self.cycles[u][1]
            end = u + 1
            if end in self.borders and end > first + 1:
                read = sum(t.size for n, t in seen.items() if n in self.fixed or self.spans[n][0] < first)
                spilled = sum(seen[n].size for n in written if self.spans[n][1] >= end)
                yield end, side_by_side(array, vector, read * self.beats, spilled * self.beats)


def side_by_side(array: float, vector: float, read: float, written: float) -> float:
    """Cycles of units that work side by side, of which others wait for a part of what moves."""
    return max(array, vector, read, written) + EXPOSED * (read + written)


def whole_cycles(unit: list[Op], array: Cycles, vector: Cycles) -> tuple[float, float]:
    """Cycles of the array and of the vector unit for a unit's operations as they are."""
    on_array = beside = 0.0
    share = 1.0
    for op in unit:
        if isinstance(op, RouteTokens):
            share = op.top_k / op.logits.cols
        rows = rows_of(op)
        if isinstance(op, MatMul):
            on_array += array(op, math.ceil(rows * share) if op.expert is not None else rows)
        else:
            beside += vector(op, rows)
    return on_array, beside


def rows_of(op: Op) -> int:
    """Rows that go through an operation."""
    if op.walk is not None:
        return op.walk.rows
    views = op.row_views()
    return next(views[name].rows for name in ("x", "logits", "out") if name in views)

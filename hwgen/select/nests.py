"""Lists of rows as walks: nested loops with constant strides, found in the numbers themselves.

A list made by reshape, transpose, slice or repetition is such a nest; a cyclic shift is one in coordinates that wrap. What
is none falls into several: runs of equal length and stride are loops of their own, and so on outwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..isa import WALK_LOOPS, Border
from ..walks import ZERO_ROW, Plane, Walk

Array = np.ndarray
INNER_MAX = 4095  # steps of a loop but the outermost
Loop = tuple[int, tuple[int, ...]]  # steps, strides in each dimension


def walks(rows: Array, sources: int) -> tuple[list[Walk], list[Walk]]:
    """(walks that copy row rows[r] of `sources` to row r, walks over those r whose number is ZERO_ROW)."""
    rows = np.asarray(rows, np.int64)
    whole = walk(rows, sources)
    if whole is not None:
        return [whole], []
    place = np.arange(len(rows))
    held = rows != ZERO_ROW
    zeros = [_walk(start, loops) for start, loops in _parts(np.stack([0 * rows, place], 1)[~held])]
    if len(zeros) > 1:  # all at once: what is no zero is written over
        zeros = [_walk((0, 0), [(len(rows), (0, 1))])]
    return [_walk(start, loops) for start, loops in _parts(np.stack([rows, place], 1)[held])], zeros


def walk(rows: Array, sources: int) -> Walk | None:
    """One walk that copies row rows[r] of `sources` to row r, without zeros; None where there is none."""
    rows = np.asarray(rows, np.int64)
    if (rows < 0).any():
        return None
    place = np.arange(len(rows))
    points = np.stack([rows, place], 1)
    found = _fitting(nest(points))
    if found is not None:
        return _walk(points[0], found)
    if len(rows) != sources or not np.array_equal(np.sort(rows), place):
        return None
    there, back = _wrapped(rows), _wrapped(np.argsort(rows))
    if there is None and back is not None:
        assert back.plane is not None
        plane = replace(back.plane, border=Border.WRAP_Y)
        there = replace(back, x=back.y, y=back.x, x_start=0, y_start=back.x_start, plane=plane)
    return there


def nest(points: Array) -> list[Loop] | None:
    """Points [R, dimensions] as loops, outermost first, with constant strides; None where they are no such nest.

    The innermost loop is as long as it can be: a divisor of R and of every place where the step is another.
    """
    loops: list[Loop] = []
    while len(points) > 1:
        steps = np.diff(points, axis=0)
        breaks = np.flatnonzero((steps != steps[0]).any(axis=1)) + 1
        n = int(np.gcd.reduce(breaks, initial=len(points)))
        if n == 1:
            return None
        loops.insert(0, (n, tuple(steps[0].tolist())))
        points = points[::n]
    return loops


def _fitting(loops: list[Loop] | None) -> list[Loop] | None:
    """The loops such that an instruction holds them; None where it does not."""
    if loops is None:
        return None
    found: list[Loop] = []
    for level, (n, strides) in enumerate(loops or [(1, (0, 0))]):
        inner = n if level == 0 else max(d for d in range(1, min(n, INNER_MAX) + 1) if n % d == 0)
        if inner < n:
            found.append((n // inner, tuple(inner * stride for stride in strides)))
        found.append((inner, strides))
    return found if len(found) <= WALK_LOOPS else None


def _walk(start: Array | tuple[int, ...], loops: list[Loop]) -> Walk:
    x, y = zip(*(strides for _, strides in loops), strict=True)
    return Walk(tuple(n for n, _ in loops), x, y, int(start[0]), int(start[1]))


def _wrapped(rows: Array) -> Walk | None:
    """The walk through all rows of a map that is shifted cyclically; None where they do not stand so."""
    count, place = len(rows), np.arange(len(rows))
    for width in (w for w in range(2, count + 1) if count % w == 0):
        height = count // width
        u, v = divmod(int(rows[0]), width)
        points = np.stack([(rows // width - u) % height, (rows - v) % width, place], 1)
        loops = _fitting(nest(points))
        if loops is None:
            continue
        down, across, y = zip(*(strides for _, strides in loops), strict=True)
        plane = Plane(height, width, Border.WRAP_X, u, v, down, across)
        x = tuple(width * i + j for i, j in zip(down, across, strict=True))
        found = Walk(tuple(n for n, _ in loops), x, y, int(rows[0]), 0, plane=plane)
        if np.array_equal(found.x_rows()[0], rows):
            return found
    return None


def _parts(points: Array, inner: tuple[Loop, ...] = ()) -> Iterator[tuple[Array, list[Loop]]]:
    """Points that begin the loops `inner`, each once, as (start, loops) of several nests."""
    if not len(points):
        return
    outer = nest(points)
    if outer is not None and (fitting := _fitting([*outer, *inner])) is not None:
        yield points[0], fitting
        return
    if not inner and _fitting(nest(points[1:])) is not None:  # a class token before the map
        yield from (*_parts(points[:1]), *_parts(points[1:]))
        return
    if len(inner) == WALK_LOOPS - 1 or len(points) == 1:
        for start, end in _runs(points):
            step = points[start + 1] - points[start] if end - start > 1 else 0 * points[start]
            yield points[start], [(end - start, tuple(step.tolist())), *inner]
        return
    groups: dict[Loop, list[int]] = {}
    for start, end in _runs(points):
        step = points[start + 1] - points[start] if end - start > 1 else 0 * points[start]
        groups.setdefault((end - start, tuple(step.tolist())), []).append(start)
    for (n, strides), starts in groups.items():
        yield from _parts(points[starts], (*(((n, strides),) if n > 1 else ()), *inner))


def _runs(points: Array) -> Iterator[tuple[int, int]]:
    """(first, end) of stretches of equal steps, each as long as it can be, but no longer than a loop."""
    steps = np.diff(points, axis=0)
    change = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1 if len(steps) else np.zeros(0, np.int64)
    start, stops = 0, iter([*change.tolist(), len(points) - 1])
    stop = next(stops)
    while start < len(points):
        while stop <= start and stop < len(points) - 1:
            stop = next(stops)
        end = min(max(stop, start) + 1, start + INNER_MAX)
        yield start, end
        start = end

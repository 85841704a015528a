"""Operations on some of their rows: what row tiling and depth-first tiling cut networks into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..intgraph import Buffer, Constant, Input, MatMul, Op, ScanRows, SelectRows, View
from ..isa import RowScale

ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"  # along which axis of a view the tokens lie, or that all of it is needed


def written(op: Op) -> set[str]:
    """Buffers that an operation writes."""
    return {view.buffer for view in op.writes().values()}


def read(op: Op) -> set[str]:
    """Buffers that an operation reads, row by row or as a whole."""
    return {view.buffer for view in op.reads().values()}


def lifetimes(groups: Iterable[Iterable[Op]]) -> dict[str, list[int]]:
    """The first and the last of groups of operations that touch each buffer."""
    found: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        for op in group:
            for view in op.views().values():
                found.setdefault(view.buffer, [number, number])[1] = number
    return found


def whole(buffer: Buffer) -> View:
    """All of a buffer."""
    return View(buffer.name, 0, buffer.rows, 0, buffer.cols)


def renamed(op: Op, names: Mapping[str, str]) -> Op:
    """`op` on other buffers, where `names` has one for that of a view."""
    moved: dict[str, Any] = {f: replace(v, buffer=names[v.buffer]) for f, v in op.views().items() if v.buffer in names}
    return replace(op, **moved) if moved else op


def edges(rows: int, blocks: int) -> list[tuple[int, int]]:
    """(first row, row behind the last) of so many blocks of about equal size; fewer where there are fewer rows."""
    ends = sorted({rows * k // blocks for k in range(blocks + 1)})
    return list(zip(ends, ends[1:], strict=False))


def part(op: Op, first: int, end: int, name: str, place: Callable[[View], View]) -> Op:
    """`op` called `name` on rows first..end-1 of its views; `place` may put such a view into another buffer.

    An expert's MatMul then works on the queue of the router's part, whose name its caller sets.
    """
    changes: dict[str, Any] = {}
    for field, view in op.row_views().items():
        changes[field] = place(replace(view, row=view.row + first, rows=end - first))
    if isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
        changes["row_mult"] = np.broadcast_to(np.asarray(op.row_mult), op.x.rows)[first:end]
    elif isinstance(op, Constant):
        changes["data"] = op.data[first:end]
    elif isinstance(op, Input):
        changes["row"] = op.row + first
    return replace(op, name=name, **changes)


def part_name(name: str, number: int, last: bool, kind: str) -> str:
    """Of an operation's part: the last one keeps its name, so that `IntGraph.trace` finds it. kind: of parts, another one
    for each pass that may cut what another has cut."""
    return name if last else f"{name}.{kind}{number}"


def parts(op: Op, count: int, kind: str) -> list[Op]:
    """`op` in so many parts of about equal numbers of rows, fewer where it has fewer, each where its rows were."""
    rows = next(iter(op.row_views().values())).rows
    return [
        part(op, first, end, part_name(op.name, k, end == rows, kind), lambda view: view)
        for k, (first, end) in enumerate(edges(rows, count))
    ]


def is_token_wise(op: Op) -> bool:
    """Whether an operation gives row r of its result from rows r of what it reads: it has no walk, chooses no rows, keeps
    nothing from row to row, and has equal numbers of rows."""
    if op.walk is not None or isinstance(op, SelectRows | ScanRows):
        return False
    return len({view.rows for view in op.row_views().values()}) == 1

"""Operations on some of their rows: what `row_blocks` and `token_blocks` cut networks into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..intgraph import Constant, Input, MatMul, Op, RowScale, View

ROW_VIEWS = ("out", "x", "residual", "factor", "logits", "dense")  # views with a row a token; `w` is read as a whole


def row_views(op: Op) -> dict[str, View]:
    """The views of an operation whose rows go through it one by one, by field."""
    return {name: view for name in ROW_VIEWS if isinstance(view := getattr(op, name, None), View)}


def written(op: Op) -> set[str]:
    """Buffers that an operation writes."""
    return {view.buffer for name, view in row_views(op).items() if name in ("out", "dense")}


def read(op: Op) -> set[str]:
    """Buffers that an operation reads, row by row or as a whole."""
    names = {view.buffer for name, view in row_views(op).items() if name not in ("out", "dense")}
    return names | {op.w.buffer} if isinstance(getattr(op, "w", None), View) else names


def edges(rows: int, blocks: int) -> list[tuple[int, int]]:
    """(first row, row behind the last) of so many blocks of about equal size; fewer where there are fewer rows."""
    ends = sorted({rows * k // blocks for k in range(blocks + 1)})
    return list(zip(ends, ends[1:], strict=False))


def part(op: Op, first: int, end: int, name: str, place: Callable[[View], View]) -> Op:
    """`op` called `name` on rows first..end-1 of its views; `place` may put such a view into another buffer.

    An expert's MatMul then works on the queue of the router's part, whose name its caller sets.
    """
    changes: dict = {}
    for field, view in row_views(op).items():
        changes[field] = place(replace(view, row=view.row + first, rows=end - first))
    if isinstance(op, MatMul) and op.row_scale == RowScale.TABLE:
        changes["row_mult"] = np.broadcast_to(np.asarray(op.row_mult), op.x.rows)[first:end]
    elif isinstance(op, Constant):
        changes["data"] = op.data[first:end]
    elif isinstance(op, Input):
        changes["row"] = op.row + first
    return replace(op, name=name, **changes)


def part_name(name: str, number: int, last: bool) -> str:
    """Of an operation's part: the last one keeps its name, so that `IntGraph.trace` finds it."""
    return name if last else f"{name}.rows{number}"


def is_token_wise(op: Op) -> bool:
    """Whether all row views of an operation have the same number of rows."""
    return len({view.rows for view in row_views(op).values()}) == 1

"""Runs of operations on windows and bands: what each does with the tokens, and which can go through in blocks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ..intgraph import Constant, IntGraph, MatMul, Op, ReduceWindow, View
from ..walks import Walk
from .bands import BAND
from .parts import COLUMNS, ROWS, WHOLE, is_token_wise
from .runs import units


@dataclass(frozen=True)
class Shape:
    """How an operation takes the tokens: `axes` of its views by field, the tokens `first`..`end`-1 that it works on, and if it
    may be cut, the borders where it may: token -> row of its walk. A load waits for what uses it: `first` None."""

    axes: dict[str, str]
    first: int | None
    end: int
    borders: dict[int, int] | None = None
    walk: Walk | None = None  # whose band it works on, with its borders


def has_windows(graph: IntGraph) -> bool:
    """Whether there is a run of operations on windows."""
    return any(run.windows for run in window_runs(graph))


@dataclass
class Run:
    """Operations first..end-1, whose shapes agree on `tokens`."""

    first: int
    end: int
    tokens: int
    shapes: list[Shape]
    walks: bool = False
    ends: tuple[int, ...] = ()  # where it may end instead, rising

    @property
    def bands(self) -> int:
        """Operations up to the last one that takes a band."""
        return max((k + 1 for k, shape in enumerate(self.shapes) if BAND in shape.axes.values()), default=0)

    @property
    def windows(self) -> bool:
        """Whether some of them work on a window, and another one walks in the order of windows; or on a band."""
        windows = any(shape.borders is None and shape.first is not None for shape in self.shapes)
        return self.walks and (windows or self.bands > 0)


def window_runs(graph: IntGraph, trim: Callable[[Run], Run] = lambda run: run) -> Iterator[Run]:
    """The longest runs from each operation on, those that have windows, trimmed at either end; each other operation is one by
    itself."""
    ends = np.cumsum([len(unit) for unit in units(graph.ops)])
    starts, at, feeds = {0, *ends.tolist()}, 0, _feeds(graph)
    while at < len(graph.ops):
        run = _longest(graph, at, starts, feeds) if at in starts else None
        if run is not None and run.windows:
            run = trim(run)
            yield from (Run(i, i + 1, 0, []) for i in range(at, run.first))
            yield run
            at = run.end
        else:
            yield Run(at, at + 1, 0, [])
            at += 1


def _feeds(graph: IntGraph) -> dict[int, int]:
    """Token-wise products whose rows nothing but the taps of one operation reads, and that one, by index."""
    users: dict[str, list[int]] = {output.view.buffer: [-1] for output in graph.outputs}
    for i, op in enumerate(graph.ops):
        for name in {view.buffer for view in op.views().values()}:
            users.setdefault(name, []).append(i)
    found = {}
    for i, op in enumerate(graph.ops):
        if not isinstance(op, MatMul | ReduceWindow) or not _is_row_wise(op):
            continue
        buffer, used = graph.buffers[op.out.buffer], users[op.out.buffer]
        if len(used) != 2 or used[0] != i or (op.out.rows, op.out.cols) != (buffer.rows, buffer.cols):
            continue
        reader = graph.ops[used[1]]
        taps = isinstance(reader, MatMul | ReduceWindow) and reader.walk is not None and reader.walk.count > 1
        if taps and [n for n, v in reader.views().items() if v.buffer == buffer.name] == ["x"]:
            if reader.reads()["x"].rows == buffer.rows:
                found[i] = used[1]
    return found


def _is_row_wise(op: MatMul | ReduceWindow) -> bool:
    """Whether an operation makes rows of its own from the same rows: a product, or a copy, which has a walk."""
    if isinstance(op, ReduceWindow):
        rows = op.walk.rows
        return op.x.rows == op.out.rows == rows and op.walk == Walk((rows,), (1,), (1,))
    return op.expert is None and is_token_wise(op) and not op.continue_max


def _longest(graph: IntGraph, first: int, starts: set[int], feeds: dict[int, int]) -> Run | None:
    """The longest run that begins at an operation and ends where one of `starts` is, and no band is cut off."""
    tokens = _tokens(graph.ops[feeds.get(first, first)])
    if tokens < 2:
        return None
    shapes: list[Shape] = []
    together, ends = _Together(), list[int]()
    bands: dict[str, int] = {}  # buffers that a reader still has to come for
    for i in range(first, len(graph.ops)):
        op, reader = graph.ops[i], feeds.get(i)
        shape = _shape(graph, op, tokens) if reader is None else _band(graph, op, graph.ops[reader], tokens)
        if shape is not None and reader is None and op.walk is not None and op.reads()["x"].buffer in bands:
            shape = replace(shape, axes=shape.axes | {"x": BAND})
        if shape is None or not together.add(op, shape):
            break
        shapes.append(shape)
        if reader is not None:
            bands[op.writes()["out"].buffer] = reader
        if i + 1 in starts and all(user <= i for user in bands.values()):
            ends.append(i + 1)
    if not ends:
        return None
    found = ends[-1]
    walks = any(op.walk is not None for op in graph.ops[first:found])
    return Run(first, found, tokens, shapes[: found - first], walks, tuple(ends))


def _tokens(op: Op) -> int:
    """Rows of an operation that may begin a run, else 0."""
    if not op.reads():
        return 0
    return op.walk.rows if op.walk is not None else next(iter(op.row_views().values())).rows


class _Together:
    """Whether operations can go through in blocks together: what one writes no other touches in another block."""

    def __init__(self) -> None:
        self.axes: dict[str, str] = {}
        self.written: set[str] = set()
        self.users: dict[str, list[Shape]] = {}

    def add(self, op: Op, shape: Shape) -> bool:
        """Add one more operation; False where the run must end before it."""
        for view in op.writes().values():
            self.written.add(view.buffer)
        for name, view in op.views().items():
            if self.axes.setdefault(view.buffer, shape.axes[name]) != shape.axes[name]:
                self.axes[view.buffer] = WHOLE
            users = self.users.setdefault(view.buffer, [])
            if not users or users[-1] is not shape:
                users.append(shape)
        return all(
            self._in_order(self.users[view.buffer])
            for view in op.views().values()
            if view.buffer in self.written and self.axes[view.buffer] == WHOLE
        )

    @staticmethod
    def _in_order(users: list[Shape]) -> bool:
        """Whether blocks one after another leave the users of a buffer in their order."""
        if len(users) == 1:
            return True
        starts = [(user.first, user.end) for user in users if user.first is not None]
        return all(user.borders is None for user in users) and starts == sorted(starts)


def _shape(graph: IntGraph, op: Op, tokens: int) -> Shape | None:
    """How an operation takes so many tokens; None: not at all."""
    if op.expert is not None:
        return None
    if op.walk is not None:
        return _walked(graph, op, op.walk, tokens)

    def at(view: View) -> tuple[str, int, int]:
        buffer = graph.buffers[view.buffer]
        if buffer.rows == tokens:
            return ROWS, view.row, view.row + view.rows
        if buffer.cols == tokens and buffer.groups > 1:
            return COLUMNS, view.col, view.col + view.cols
        return WHOLE, 0, 0

    places = {name: at(view) for name, view in op.views().items()}
    rows = op.row_views()
    if not op.reads() and "out" in rows and graph.buffers[rows["out"].buffer].rows != tokens:
        return Shape({"out": WHOLE}, None, 0) if isinstance(op, Constant) else None
    all_rows = all(view.rows == tokens and places[name][0] == ROWS for name, view in rows.items())
    if is_token_wise(op) and all_rows:
        axes = {name: ROWS if name in rows else WHOLE for name in places}
        return Shape(axes, 0, tokens, {t: t for t in range(tokens + 1)})
    spans = {(first, end) for axis, first, end in places.values() if axis != WHOLE}
    if len(spans) != 1 or (0, tokens) in spans:
        return None
    ((first, end),) = spans
    return Shape({name: axis for name, (axis, _, _) in places.items()}, first, end)


def _band(graph: IntGraph, op: Op, reader: Op, tokens: int) -> Shape | None:
    """How a product goes through that makes the rows which the taps of another operation reach."""
    walk = reader.walk
    shape = None if walk is None else _walked(graph, reader, walk, tokens)
    if shape is None or shape.axes["x"] != WHOLE:
        return None
    axes = {name: BAND if name == "out" else WHOLE for name in op.views()}
    return replace(shape, axes=axes, walk=walk)


@lru_cache(maxsize=256)
def _borders(walk: Walk, side: str) -> dict[int, int] | None:
    """Where a walk may be cut: row of a side behind a part of it, all rows before which are in front -> row of the walk; None:
    nowhere, or some rows lie outside a map. Not to be changed."""
    rows = walk.y_rows() if side == "out" else walk.x_rows()[0]
    if rows.min() < 0:
        return None
    step = walk.rows // next((n for n in walk.loops if n > 1), 1)
    high = np.maximum.accumulate(rows)[step - 1 :: step] + 1  # behind each of its parts
    low = np.minimum.accumulate(rows[::-1])[::-1][step::step]  # where what follows begins
    return {0: 0} | {int(t): (k + 1) * step for k, t in enumerate(high)} if (high[:-1] == low).all() else None


def _walked(graph: IntGraph, op: Op, walk: Walk, tokens: int) -> Shape | None:
    """How an operation with a walk takes them: in the order of the rows that it writes, or else of those that it reads."""
    if walk.rows != tokens or walk.rows == 1 or (isinstance(op, ReduceWindow) and not op.cuts):
        return None
    sides = ("out", "x") if walk.count == 1 else ("out",)
    axes = dict.fromkeys(op.views(), WHOLE)
    borders: dict[int, int] | None = None
    for name in sides:
        view, found = op.views()[name], _borders(walk, name)
        if found is None or graph.buffers[view.buffer].rows != tokens or view.rows != tokens:
            continue
        if borders is not None and borders != found:
            continue
        borders = found
        axes[name] = ROWS
    if "residual" in axes and axes["out"] == ROWS:
        view = op.views()["residual"]
        axes["residual"] = ROWS if graph.buffers[view.buffer].rows == view.rows == tokens else WHOLE
    return None if borders is None else Shape(axes, 0, tokens, borders)

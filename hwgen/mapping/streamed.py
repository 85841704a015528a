"""Runs of operations through which tokens stream from DRAM: what the scratchpad must hold at one time, and what it costs.

As in depth-first tiling some tokens at a time go through a run, but what enters and leaves a run lies in DRAM: only a block of
it and the next one that is fetched meanwhile are in the scratchpad. An operand that is read as a whole (keys and values of
a head) is fetched once for the run; of a map that a convolution reads it is the band that a block reaches. Runs and their
numbers of blocks are chosen by dynamic programming over all cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..intgraph import Buffer, Constant, Input, IntGraph, MatMul, Multiply, Op, RouteTokens, View
from ..isa import ColScale, RowMax
from ..walks import Walk
from .bands import BAND, banded, cut_walk, reach, tallest
from .depth_first import MIN_ROWS, Bound, Cost, Limits
from .parts import COLUMNS, ROWS, WHOLE, is_token_wise, part
from .runs import units

PATIENCE = 16  # runs from a unit on, each longer than the one before, that find no room in any blocks: then none will


@dataclass
class Run:
    """Units first..end-1 together, `tokens` of them in `blocks` blocks whose borders are multiples of `step`; tokens 0: as
    they are. `cost` of everything up to its end."""

    first: int
    end: int
    blocks: int
    tokens: int
    step: int
    cost: Cost

    def edges(self) -> list[tuple[int, int]]:
        """(first token, token behind the last) of every block."""
        ends = {
            min(self.tokens, -(-self.tokens * k // (self.blocks * self.step)) * self.step)
            for k in range(self.blocks + 1)
        }
        ordered = sorted(ends)
        return list(zip(ordered, ordered[1:], strict=False))


@dataclass(frozen=True)
class Shape:
    """How an operation goes through in blocks: its number of tokens (0: not at all), the axis of each view by field, and what
    the borders of blocks are multiples of."""

    tokens: int
    axes: dict[str, str]
    step: int = 1


Scale = str | tuple[Walk, str]  # what a view's size grows with: an axis, or the band of one side of a walk
Sizes = tuple[tuple[int, int, Scale], ...]  # (chunks of a row, a granule's columns, all; copies; what this grows with)


@dataclass
class _Together:
    """Units that may share a run: equal numbers of tokens, and every token depends on those of its block only."""

    tokens: int = -1
    keys: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    whole: dict[str, set[str]] = field(default_factory=dict)  # with the operations that take them so
    banded: set[str] = field(default_factory=set)  # written in bands

    def add(self, ops: list[tuple[Op, Shape]]) -> bool:
        """Add a unit; False where the run must end before it."""
        for op, shape in ops:
            if self.tokens < 0:
                self.tokens = shape.tokens
            if not shape.tokens or shape.tokens != self.tokens:
                return False
            for name, view in op.views().items():
                axis = shape.axes[name]
                if axis in (WHOLE, BAND):
                    self.whole.setdefault(view.buffer, set()).add(op.name)
                    if name in op.WRITES:
                        self.banded.add(view.buffer)
                    continue
                self.keys.setdefault(view.buffer, set()).add((axis, view.row if axis == ROWS else view.col))
                if name in op.WRITES:
                    self.written.add(view.buffer)
        alone = all(len(self.whole[name]) == 1 and name not in self.keys for name in self.banded)
        return alone and not self.written & self.whole.keys() and all(len(self.keys[n]) == 1 for n in self.written)


class Streamed:
    """The runs of a graph. bound(op, rows): cycles of an operation; beats: of a chunk on its way from or to DRAM.

    `fixed`: buffers that one Constant or Input writes, loaded anew wherever they are read. `units`, `shapes`: of the others.
    """

    def __init__(self, graph: IntGraph, limits: Limits, bound: Bound, beats: int, granule: int):
        self.graph, self.limits, self.bound, self.beats, self.granule = graph, limits, bound, beats, granule
        outputs = {output.view.buffer for output in graph.outputs}
        writers: dict[str, list[Op]] = {}
        for op in graph.ops:
            for view in op.writes().values():
                writers.setdefault(view.buffer, []).append(op)
        self.fixed: dict[str, Constant | Input] = {}
        for name, ops in writers.items():
            only = ops[0]
            if len(ops) == 1 and isinstance(only, Constant | Input) and name not in outputs:
                buffer = graph.buffers[name]
                if (only.out.row, only.out.rows, only.out.cols) == (0, buffer.rows, buffer.cols):
                    self.fixed[name] = only
        loads = list(self.fixed.values())
        rest = [op for op in graph.ops if not any(op is load for load in loads)]
        self.units = [[(op, self.shape(op)) for op in unit] for unit in _with_maxima(units(rest), graph)]
        self.spans: dict[str, list[int]] = {}
        shared = set(outputs)  # cannot be as tall as a block
        for u, unit in enumerate(self.units):
            for op, shape in unit:
                for name, view in op.views().items():
                    self.spans.setdefault(view.buffer, [u, u])[1] = u
                    if shape.axes[name] != ROWS or view.row or view.rows != graph.buffers[view.buffer].rows:
                        shared.add(view.buffer)
        for name in outputs:
            self.spans[name][1] = len(self.units)
        self.shared = shared

    def shape(self, op: Op) -> Shape:
        """How an operation goes through in blocks."""
        if isinstance(op, MatMul) and isinstance(op.w, View) and self._by_columns(op):
            return Shape(op.w.rows, {"x": WHOLE, "w": ROWS, "out": COLUMNS})
        if is_token_wise(op):
            rows = next(iter(op.row_views().values())).rows
            return Shape(rows, {name: WHOLE if name == "w" else ROWS for name in op.views()})
        if isinstance(op, Multiply) and op.factor.rows == 1 and op.factor.buffer != op.out.buffer:
            return Shape(op.x.rows, {"x": ROWS, "factor": WHOLE, "out": ROWS})
        if op.walk is not None and (axes := banded(op)) is not None:
            return Shape(op.walk.rows, axes, reach(op.walk).step)
        return Shape(0, dict.fromkeys(op.views(), WHOLE))

    def _by_columns(self, op: MatMul) -> bool:
        """Whether tokens are the columns of a product of weights, which stream, with rows that are stationary: V^T."""
        plain = op.expert is None and op.walk is None and op.residual is None and op.row_max == RowMax.NONE
        aligned = self.graph.buffers[op.out.buffer].groups == 1 and op.out.col % self.limits.chunk == 0
        return plain and aligned and op.x.buffer in self.fixed and op.out.rows == op.x.rows

    def local(self, first: int, end: int) -> set[str]:
        """Buffers that live only inside units first..end-1, block by block."""
        names = {view.buffer for unit in self.units[first:end] for op, _ in unit for view in op.views().values()}
        inside = {n for n in names if n not in self.fixed and self.spans[n][0] >= first and self.spans[n][1] < end}
        return inside - self.shared

    # --- choice -----------------------------------------------------------------------------------------------------

    @cached_property
    def runs(self) -> list[Run]:
        """The cheapest cut into runs of those that need the least beyond the room there is."""
        best: dict[int, Run] = {0: Run(0, 0, 1, 0, 1, (0, 0.0))}
        for first in range(len(self.units)):
            short, cycles = best[first].cost
            for run in self._choices(first):
                run.cost = max(short, run.cost[0]), cycles + run.cost[1]
                if run.end not in best or run.cost < best[run.end].cost:
                    best[run.end] = run
        result, end = [], len(self.units)
        while end:
            result.append(best[end])
            end = best[end].first
        return result[::-1]

    def _choices(self, first: int) -> Iterator[Run]:
        """Runs that begin at a unit, longer and longer ones."""
        together, streams, misses = _Together(), True, 0
        for end in range(first + 1, len(self.units) + 1):
            if not together.add(self.units[end - 1]):
                streams = False
                break
            run = self._run(first, end, together.tokens)
            yield run
            misses = misses + 1 if run.cost[0] else 0
            if misses == PATIENCE:
                return
        if not streams and end == first + 1:
            yield self._run(first, end, 0)

    def _run(self, first: int, end: int, tokens: int) -> Run:
        """The run with the fewest blocks that fit."""
        shapes = [shape for unit in self.units[first:end] for _, shape in unit]
        step = math.lcm(*(shape.step for shape in shapes))
        if any(COLUMNS in shape.axes.values() for shape in shapes):
            step = math.lcm(step, self.granule if tokens >= 4 * self.granule else self.limits.chunk)
        most = tokens
        for op, _ in (entry for unit in self.units[first:end] for entry in unit):
            if isinstance(op, RouteTokens):
                most = min(most or op.logits.rows, max(1, min(self.limits.tokens, self.limits.entries // op.top_k)))
        alive = self._alive(first, end)
        if not tokens:
            return Run(first, end, 1, 0, 1, (self._over(alive, 0), self._cycles(first, end, 0)))

        def height(blocks: int) -> int:
            return min(tokens, -(-tokens // (blocks * step)) * step)

        few, many = -(-tokens // most), max(1, -(-tokens // most), -(-tokens // max(MIN_ROWS, step)))
        while few < many:  # the fewest blocks that fit lie between
            middle = (few + many) // 2
            few, many = (middle + 1, many) if self._over(alive, height(middle)) else (few, middle)
        over, tall = self._over(alive, height(few)), height(few)
        blocks = -(-tokens // tall)
        return Run(first, end, blocks, tokens, step, (over, blocks * self._cycles(first, end, tall, blocks)))

    def _alive(self, first: int, end: int) -> list[Sizes]:
        """For each unit of a run what lives while it works."""
        local = self.local(first, end)
        spans: dict[tuple[str, Scale, int, int, int], list[int]] = {}
        for u in range(first, end):
            for op, shape in self.units[u]:
                for name, view in op.views().items():
                    scale = ROWS if view.buffer in local else _scale(op, shape, name)
                    column = (0, 0) if view.buffer in local or scale == COLUMNS else (view.col, view.cols)
                    key = (view.buffer, scale, *column, view.rows)
                    if scale == WHOLE:
                        spans.setdefault(key, [first, end - 1])
                    spills = name in op.WRITES and view.buffer not in local
                    span = spans.setdefault(key, [u, u])
                    span[1] = end - 1 if scale == WHOLE or spills else max(span[1], u)
        found = []
        for u in range(first, end):
            sizes = []
            for (name, scale, _, columns, rows), (begin, last) in spans.items():
                if begin <= u <= last:
                    buffer = self.graph.buffers[name]
                    copies = 1 if name in local or (name in self.fixed and scale == WHOLE) else self.limits.copies
                    sizes.append((self._size(buffer, scale, columns, rows), copies, scale))
            found.append(tuple(sorted(sizes, key=lambda s: s[:2], reverse=True)))
        return list(dict.fromkeys(found))

    def _size(self, buffer: Buffer, scale: Scale, columns: int, rows: int) -> int:
        """Chunks of a row of so many columns (0: all), of so many rows of them, of one chunk of columns of these rows."""
        if scale == COLUMNS:
            return rows
        width, groups = buffer.cols // buffer.groups, buffer.groups
        row = -(-columns // self.limits.chunk)
        if groups > 1 or not columns:
            row = max(1, (columns or buffer.cols) // width) * -(-width // self.limits.chunk)
        return row * rows if scale == WHOLE else row

    def _times(self, scale: Scale, height: int) -> int:
        """What a size is multiplied by in blocks of so many tokens."""
        if scale == ROWS:
            return height
        if scale == WHOLE:
            return 1
        return tallest(*scale, height) if isinstance(scale, tuple) else -(-height // self.limits.chunk)

    def _over(self, alive: list[Sizes], height: int) -> int:
        """Chunks that are short where most are, in blocks of so many tokens."""
        times = {scale: self._times(scale, height) for sizes in alive for _, _, scale in sizes}
        return max(
            self.limits.over([size * times[scale] for size, copies, scale in sizes for _ in range(copies)])
            for sizes in alive
        )

    def _cycles(self, first: int, end: int, height: int, blocks: int = 1) -> float:
        """Of a block: those of the array or of the transfers, whichever take longer."""
        local, array, share = self.local(first, end), 0.0, 1.0
        moved: dict[tuple[str, Scale, int, bool], float] = {}
        for op, shape in (entry for unit in self.units[first:end] for entry in unit):
            if isinstance(op, RouteTokens):
                share = op.top_k / op.logits.cols
            expert = isinstance(op, MatMul) and op.expert is not None
            rows = height or _rows(op)
            by_columns = COLUMNS in shape.axes.values()
            if by_columns and isinstance(op, MatMul):
                array += self.bound(replace(op, out=replace(op.out, cols=rows)), op.x.rows)
            else:
                array += self.bound(op, math.ceil(rows * share) if expert else rows)
            for name, view in op.views().items():
                if view.buffer not in local:
                    scale = _scale(op, shape, name)
                    size = self._size(self.graph.buffers[view.buffer], scale, view.cols, view.rows)
                    times = 1 / blocks if scale == WHOLE else self._times(scale, height)
                    moved[view.buffer, scale, view.col, name in op.WRITES] = size * times * self.beats
        read, written = (sum(c for (*_, kind), c in moved.items() if kind == write) for write in (False, True))
        return max(array, read, written)


def _with_maxima(found: list[list[Op]], graph: IntGraph) -> list[list[Op]]:
    """Units joined where one reads row maxima of another that `apart.measure` could not take again from spilled rows: those
    of signed values, or of some columns."""
    first = list(range(len(found)))  # of each unit, where what it must stay with begins
    writers: dict[str, tuple[int, RowMax]] = {}
    for u, unit in enumerate(found):
        for op in unit:
            for view in op.reads_maxima():
                writer, kind = writers.get(view.buffer, (u, RowMax.ABS))
                if kind != RowMax.ABS or view.cols != graph.buffers[view.buffer].cols:
                    first[writer : u + 1] = [min(first[writer : u + 1])] * (u + 1 - writer)
            if (kept := op.writes_maxima()) is not None:
                before = writers.get(kept.buffer, (u, op.row_max))
                partial = kept.cols != graph.buffers[kept.buffer].cols
                writers[kept.buffer] = before if partial and before[1] == op.row_max else (u, op.row_max)
    result: list[list[Op]] = []
    for u, unit in enumerate(found):
        if first[u] == u:
            result.append([])
        result[-1] += unit
    return result


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


def _rows(op: Op) -> int:
    """Rows that go through an operation."""
    views = op.row_views()
    return next(views[name].rows for name in ("x", "logits", "out") if name in views)


def _scale(op: Op, shape: Shape, name: str) -> Scale:
    """What the size of one of an operation's views grows with."""
    if shape.axes[name] != BAND:
        return shape.axes[name]
    assert op.walk is not None
    return op.walk, "x" if name == "x" else "out"

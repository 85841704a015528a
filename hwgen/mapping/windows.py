"""Window tiling: attention of a few windows at a time, from the gathered rows to what is written back to the map.

Queries, keys, values and results of all windows together are several maps; of the windows of a block they are a few rows.
Here tokens are the rows of an order that operations agree on, as a rule window by window: an operation works on all of
them, which may be cut, or on one window. A walk may read or write the map in another order; that map stays as it is.

In front of a convolution, rows around those of a block are needed, too: the band that its taps reach. A linear layer that
only feeds a convolution (the hidden columns of an inverted residual) makes a band at a time, the rows that two blocks
share twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..intgraph import Buffer, Constant, IntGraph, MatMul, Op, ReduceWindow, View
from ..walks import Walk
from .bands import BAND, reach, rows_of
from .depth_first import Limits
from .parts import COLUMNS, ROWS, WHOLE, edges, lifetimes, part, part_name
from .window_runs import Run, Shape, window_runs


def window_tiling(graph: IntGraph, limits: Limits, convolutions: bool = True) -> IntGraph:
    """`graph` with runs of operations on windows in blocks of as many windows as find room; without `convolutions` only those
    that multiply two values. `trace` loses what is no longer there as a whole."""
    return _Windows(_weights_apart(graph, limits), limits, convolutions).graph()


class _Windows:
    """State of one transformation."""

    def __init__(self, graph: IntGraph, limits: Limits, convolutions: bool):
        self.source, self.limits, self.convolutions = graph, limits, convolutions
        self.spans = lifetimes([op] for op in graph.ops)
        for output in graph.outputs:
            self.spans[output.view.buffer][1] = len(graph.ops)
        self.size = {name: limits.size(graph.buffers[name], graph.buffers[name].rows) for name in self.spans}
        self.buffers = dict(graph.buffers)
        self.trace = dict(graph.trace)

    def graph(self) -> IntGraph:
        ops: list[Op] = []
        for run in window_runs(self.source, self._trimmed):
            own = self.source.ops[run.first : run.end]
            attention = any(isinstance(op, MatMul) and isinstance(op.w, View) for op in own)
            ops += self._run(run) if run.windows and (attention or self.convolutions) else own
        trace = {value: (view, op) for value, (view, op) in self.trace.items() if view.buffer in self.buffers}
        return replace(self.source, ops=ops, buffers=self.buffers, trace=trace)

    def _trimmed(self, run: Run) -> Run:
        """The run without operations behind its last window or band, where that takes fewer blocks, and without those in front
        that touch what is too large for a bank and outlives it: who spills that lets it stream past them once."""
        run = self._headless(run)
        inner = [shape.borders is None or BAND in shape.axes.values() for shape in run.shapes]
        least = run.first + len(inner) - inner[::-1].index(True)
        best = run
        fewest = len(self._blocks(run, self._local(run, self.source.ops[run.first : run.end]))[0])
        for end in (end for end in run.ends[-2::-1] if end >= least):
            shorter = replace(run, end=end, shapes=run.shapes[: end - run.first])
            blocks = len(self._blocks(shorter, self._local(shorter, self.source.ops[run.first : end]))[0])
            if shorter.windows and blocks < fewest:
                best, fewest = shorter, blocks
        return best

    def _headless(self, run: Run) -> Run:
        own = self.source.ops[run.first : run.end]
        large = {n for n, size in self.size.items() if size > self.limits.bank_chunks}
        large = {n for n in large if self.spans[n][0] < run.first or self.spans[n][1] >= run.end}
        head = next((k + 1 for k in range(len(own) - 1, -1, -1) if large & {v.buffer for v in own[k].views().values()}), 0)
        shorter = replace(run, first=run.first + head, shapes=run.shapes[head:])
        return shorter if head and shorter.windows else run

    def _run(self, run: Run) -> list[Op]:
        """The operations of a run, in blocks where they would find no room otherwise."""
        ops = self.source.ops[run.first : run.end]
        local = self._local(run, ops)
        blocks, copies = self._blocks(run, local)
        if len(blocks) == 1:
            return ops
        starts: list[int] = []  # of each operation that is not cut; of a load, where its first reader is
        needed: dict[str, int] = {}
        for op, shape in zip(reversed(ops), reversed(run.shapes), strict=True):
            first = shape.first
            if first is None:
                first = needed.get(op.writes()["out"].buffer, run.tokens - 1)
            starts.append(first)
            for view in op.views().values():
                needed[view.buffer] = first
        starts.reverse()
        parts: list[list[Op]] = []
        for k, (first, end) in enumerate(blocks):
            parts.append([])
            place = self._place(run, local, first, end, k)
            for op, shape, start in zip(ops, run.shapes, starts, strict=True):
                if shape.borders is not None:
                    name = part_name(op.name, k, end == run.tokens, "tile")
                    parts[k].append(self._cut(op, shape, first, end, name, place))
                elif first <= start < end:
                    moved: dict[str, Any] = {f: place(v, shape.axes[f]) for f, v in op.views().items()}
                    parts[k].append(replace(op, **moved))
        for name in local:
            del self.buffers[name]
        self._forget(ops)
        if copies == 1:
            return [op for block in parts for op in block]
        return _overlapped(parts, run.bands)

    def _local(self, run: Run, ops: list[Op]) -> dict[str, str]:
        """Buffers of which only a block is there at one time, and where they have the tokens."""
        axes: dict[str, set[str]] = {}
        for op, shape in zip(ops, run.shapes, strict=True):
            for name, view in op.views().items():
                axes.setdefault(view.buffer, set()).add(shape.axes[name])
        inside = [n for n in axes if self.spans[n][0] >= run.first and self.spans[n][1] < run.end]
        return {name: next(iter(axes[name])) for name in inside if len(axes[name]) == 1 and WHOLE not in axes[name]}

    @staticmethod
    def _reached(walk: Walk, borders: dict[int, int], first: int, end: int) -> tuple[int, int]:
        """(first row, row behind the last) that the taps of tokens first..end-1 reach."""
        of = reach(walk)
        steps = slice(borders[first] // of.step, borders[end] // of.step)
        high = int(of.high["x"][steps].max())
        return (int(of.low["x"][steps].min()), high) if high > 0 else (0, 1)

    def _blocks(self, run: Run, local: dict[str, str]) -> tuple[list[tuple[int, int]], int]:
        """The tallest blocks that fit with what lives beside them, the smallest ones if none do; and how many live at one time:
        of bands two where there is room, so that the array makes the next one while a convolution takes this one."""
        for copies in (2, 1) if run.bands else (1,):
            blocks, fits = self._tallest(run, local, copies)
            if fits:
                break
        return blocks, copies

    def _tallest(self, run: Run, local: dict[str, str], copies: int) -> tuple[list[tuple[int, int]], bool]:
        """The same where so many blocks live at one time, and whether they fit."""
        borders = set(range(run.tokens + 1))
        for shape in run.shapes:
            if shape.borders is not None:
                borders &= shape.borders.keys()
            elif shape.first is not None:
                borders -= set(range(shape.first + 1, shape.end))
        for name, axis in local.items():
            if axis == COLUMNS:
                width = run.tokens // self.source.buffers[name].groups
                borders = {t for t in borders if t % width == 0}
        cuts = sorted(borders)
        size = self.size
        alive = self._alive(run, local)

        def tried(count: int) -> tuple[list[tuple[int, int]], bool]:
            ends = [cuts[b] for _, b in edges(len(cuts) - 1, count)]
            blocks = list(zip([0, *ends], ends, strict=False))
            share = max(end - first for first, end in blocks) / run.tokens
            small = {name: int(size[name] * share) + 1 for name in local} | self._bands(run, blocks, local)
            sizes = (
                [small.get(n, size[n]) for n in names for _ in range(copies if n in local else 1)] for names in alive
            )
            return blocks, not any(self.limits.over(each) for each in sizes)

        few, many = 1, len(cuts) - 1
        smallest = tried(many)
        if not smallest[1]:
            return smallest
        while few < many:  # the fewest blocks that fit lie between
            middle = (few + many) // 2
            few, many = (few, middle) if tried(middle)[1] else (middle + 1, many)
        return tried(few)

    def _bands(self, run: Run, blocks: list[tuple[int, int]], local: dict[str, str]) -> dict[str, int]:
        """Chunks of the tallest band of each buffer that holds one."""
        found = {}
        for op, shape in zip(self.source.ops[run.first : run.end], run.shapes, strict=True):
            name = op.writes()["out"].buffer
            if shape.walk is not None and shape.borders is not None and name in local:
                reached = (self._reached(shape.walk, shape.borders, *block) for block in blocks)
                found[name] = self.limits.size(self.source.buffers[name], max(end - first for first, end in reached))
        return found

    def _alive(self, run: Run, local: dict[str, str]) -> list[list[str]]:
        """What lives while each operation works, different lists: what is not local does from the first block to the last."""
        around = [n for n, (first, last) in self.spans.items() if first < run.end and last >= run.first]
        starts = sorted({run.first} | {self.spans[n][0] for n in local})
        lists = (tuple(n for n in around if n not in local or self._lives(n, i)) for i in starts)
        return [list(names) for names in dict.fromkeys(lists)]

    def _lives(self, name: str, i: int) -> bool:
        first, last = self.spans[name]
        return first <= i <= last

    def _place(self, run: Run, local: dict[str, str], first: int, end: int, number: int) -> Callable[[View, str], View]:
        """Where a block has its views."""

        def place(view: View, axis: str) -> View:
            if view.buffer not in local:
                return view
            name, whole = f"{view.buffer}.block{number}", self.source.buffers[view.buffer]
            if axis == BAND:
                self.buffers.setdefault(name, replace(whole, name=name, rows=view.rows, scale=1.0))
                return replace(view, buffer=name, row=0)
            if axis == ROWS:
                self.buffers.setdefault(name, replace(whole, name=name, rows=end - first, scale=1.0))
                return replace(view, buffer=name, row=view.row - first)
            groups = whole.groups * (end - first) // run.tokens
            self.buffers.setdefault(name, replace(whole, name=name, cols=end - first, groups=groups, scale=1.0))
            return replace(view, buffer=name, col=view.col - first)

        return place

    def _cut(self, op: Op, shape: Shape, first: int, end: int, name: str, place: Callable[[View, str], View]) -> Op:
        """The part of an operation on tokens first..end-1."""
        moved: dict[str, Any] = {}
        if shape.walk is not None and shape.borders is not None:
            low, high = self._reached(shape.walk, shape.borders, first, end)
            piece = part(op, low, high, name, lambda view: view)
            moved |= {field: place(view, shape.axes[field]) for field, view in piece.views().items()}
            return replace(piece, **moved | ({} if op.walk is None else {"walk": Walk((high - low,), (1,), (1,))}))
        if not isinstance(op, MatMul | ReduceWindow) or op.walk is None:
            piece = part(op, first, end, name, lambda view: view)
            moved |= {field: place(view, shape.axes[field]) for field, view in piece.views().items()}
            return replace(piece, **moved)
        assert shape.borders is not None
        walk = rows_of(op.walk, shape.borders[first], shape.borders[end])
        for field, view in op.views().items():
            moved[field] = view
            if shape.axes[field] == BAND:
                low, high = self._reached(op.walk, shape.borders, first, end)
                moved[field] = place(replace(view, row=low, rows=high - low), BAND)
                walk = replace(walk, x_start=walk.x_start - low)
            if shape.axes[field] == ROWS:
                moved[field] = place(replace(view, row=first, rows=end - first), ROWS)
                if field in ("x", "out"):
                    start = "x_start" if field == "x" else "y_start"
                    walk = replace(walk, **{start: getattr(walk, start) - first})
        return replace(op, name=name, walk=walk, **moved)

    def _forget(self, ops: list[Op]) -> None:
        """Drop from `trace` what another operation of a run has overwritten when the last part writes it."""
        last: dict[str, str] = {}
        for op in ops:
            for view in op.writes().values():
                last[view.buffer] = op.name
        names = {op.name for op in ops}
        self.trace = {
            value: (view, name)
            for value, (view, name) in self.trace.items()
            if name not in names or last.get(view.buffer, name) == name
        }


def _overlapped(parts: list[list[Op]], head: int) -> list[Op]:
    """Blocks one after another, each one's first `head` operations before the rest of the block in front of it."""
    result: list[Op] = []
    for before, block in zip([[], *parts], [*parts, []], strict=True):
        result += block[:head] + before[head:]
    return result


def _weights_apart(graph: IntGraph, limits: Limits) -> IntGraph:
    """`graph` with weights that stream from a Constant, where they take more than half a bank, in pieces with a buffer each."""
    most = limits.bank_chunks // 2
    users: dict[str, list[Op]] = {}
    for op in graph.ops:
        for view in op.views().values():
            users.setdefault(view.buffer, []).append(op)
    pieces: dict[str, list[tuple[int, int]]] = {}
    buffers = dict(graph.buffers)
    for op in graph.ops:
        if not isinstance(op, Constant):
            continue
        buffer = graph.buffers[op.out.buffer]
        size = limits.size(buffer, buffer.rows)
        readers = [user for user in users[buffer.name] if user is not op]
        if size > most and op.out.rows == buffer.rows and all(_streams(reader, op.out) for reader in readers):
            pieces[buffer.name] = edges(buffer.rows, -(-size // most))
            del buffers[buffer.name]
    ops: list[Op] = []
    for op in graph.ops:
        views = op.views()
        name = next((view.buffer for view in views.values() if view.buffer in pieces), None)
        if name is None:
            ops.append(op)
            continue
        for k, (first, end) in enumerate(pieces[name]):
            own = f"{name}.{k}"
            buffers[own] = Buffer(own, end - first, graph.buffers[name].cols)

            def place(view: View, own: str = own, name: str = name) -> View:
                return replace(view, buffer=own, row=0) if view.buffer == name else view

            ops.append(part(op, first, end, part_name(op.name, k, end == pieces[name][-1][1], "slice"), place))
    trace = {value: (view, op) for value, (view, op) in graph.trace.items() if view.buffer in buffers}
    return replace(graph, ops=ops, buffers=buffers, trace=trace)


def _streams(op: Op, weights: View) -> bool:
    """Whether an operation is a product of weights, row by row, with rows that are stationary."""
    plain = isinstance(op, MatMul) and op.walk is None and op.expert is None and op.residual is None
    return plain and isinstance(op, MatMul) and op.x == weights and not op.continue_max and not op.row_max

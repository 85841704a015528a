"""Runs of operations through which tokens stream from DRAM: what the scratchpad must hold at one time, and what it costs.

As in depth-first tiling some tokens at a time go through a run, but what enters and leaves a run lies in DRAM: only a block of
it and the next one that is fetched meanwhile are in the scratchpad. An operand that is read as a whole (keys and values of
a head) is fetched once for the run; of a map that a convolution reads it is the band that a block reaches. What is small stays
in the scratchpad between runs. Runs and their numbers of blocks are chosen by dynamic programming over all cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..intgraph import Buffer, Constant, Input, IntGraph, MatMul, Multiply, Op, RouteTokens, View
from ..isa import RowMax
from .bands import BAND, Shape, banded, reach, tallest
from .depth_first import MIN_ROWS, Bound, Cost, Limits
from .halos import Blocks, area, blocks, sound, taken_by_band
from .kept import Kept, Touched, rows_of, side_by_side, whole_cycles
from .parts import COLUMNS, ROWS, WHOLE, is_token_wise, lifetimes
from .runs import units
from .sharing import Together, with_maxima
from .stays import Stays

AGAIN = 2  # times at most that what stays in the scratchpad is chosen from what a cut moves
KEPT = 0.5  # of the room, for what stays
LONGEST = 64  # units of a run whose operations make some rows again
PAIRS = 1 << 18  # first and last units of runs that are tried: in graphs of thousands of units, of windows, runs are shorter
PATIENCE = 16  # runs from a unit on, each longer than the one before, that find no room in any blocks: then none will


@dataclass
class Run:
    """Units first..end-1 together, `tokens` of them in `blocks` blocks whose borders are multiples of `step`; tokens 0: as
    they are. `cost` of everything up to its end. plain: every operation makes the run's tokens, each of them once."""

    first: int
    end: int
    blocks: int
    tokens: int
    step: int
    cost: Cost = (0, 0.0)
    plain: bool = True

    def edges(self) -> list[tuple[int, int]]:
        """(first token, token behind the last) of every block."""
        ends = {
            min(self.tokens, -(-self.tokens * k // (self.blocks * self.step)) * self.step)
            for k in range(self.blocks + 1)
        }
        ordered = sorted(ends)
        return list(zip(ordered, ordered[1:], strict=False))


Key = Any  # what a place's size grows with: an axis, the band of one side of a walk, or rows that `halos` finds


@dataclass
class _Place:
    """What lies in the scratchpad while units begin..last of a run work: `copies` of `size` chunks for each of what `key` tells,
    with row maxima or not, fetched or spilled or neither."""

    begin: int
    last: int
    size: int
    copies: int
    key: Key
    maxima: bool = False
    fetched: bool = False
    spilled: bool = False


@dataclass(frozen=True)
class _Sizes:
    """How tall the blocks of a run are: rows of a place at most and on average, and rows of an operation, by number. blocks:
    what is made in them, where the run is not plain."""

    most: Callable[[Key], int]
    mean: Callable[[Key], float]
    rows: Callable[[int], int]
    blocks: Blocks | None = None


class Streamed:
    """The runs of a graph. array(op, rows), vector(op, rows): cycles of an operation there; beats: of a chunk on its way from
    or to DRAM.

    `fixed`: buffers that one Constant or Input writes, loaded anew wherever they are read. `units`, `shapes`: of the others.
    """

    def __init__(
        self, graph: IntGraph, limits: Limits, array: Bound, vector: Bound, beats: int, granule: int, room: Limits | None = None
    ):
        self.graph, self.limits, self.array, self.vector = graph, limits, array, vector
        self.beats, self.granule = beats, granule
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
        loads = {id(op) for op in self.fixed.values()}
        rest = [op for op in graph.ops if id(op) not in loads]
        self.units = [[(op, self.shape(op)) for op in unit] for unit in with_maxima(units(rest), graph)]
        self.spans = lifetimes([op for op, _ in unit] for unit in self.units)
        shared = set(outputs)  # cannot be as tall as a block
        for unit in self.units:
            for op, shape in unit:
                for name, view in op.views().items():
                    rows = graph.buffers[view.buffer].rows
                    banded = shape.axes[name] == BAND and name == "x" and taken_by_band(view, rows, op.walk)
                    if not banded and (shape.axes[name] != ROWS or view.row or view.rows != rows):
                        shared.add(view.buffer)
        for name in outputs:
            self.spans[name][1] = len(self.units)
        self.shared = shared
        self.maxima = {view.buffer for op in rest for view in op.reads_maxima()}  # buffers of which row maxima are read
        self.resident: set[str] = set()
        self.changed = [0] * len(self.units)  # the last cut before which these became others
        self.cuts = 0
        self.tried: dict[tuple[int, int], tuple[int, Run | None]] = {}  # by units: in which cut, and what was found
        self.full = {name: self._full(name) for name in self.spans}
        self.entries = {name: self._entries(name) for name in self.spans}
        self.stays = Stays((), self.full, self.entries, self.spans, len(self.units))
        self.longest = max(2, PAIRS // max(1, len(self.units)))
        self.least = [np.array(self._least(unit)) for unit in self.units]
        self.kept = None if room is None else self._kept(room)

    def _kept(self, room: Limits) -> Kept:
        """What may work on whole values, of which there is so much room for."""
        touched: list[list[Touched]] = []
        for unit in self.units:
            writes = {view.buffer for op, _ in unit for view in op.writes().values()}
            names = dict.fromkeys(view.buffer for op, _ in unit for view in op.views().values())
            touched.append([Touched(n, self._full(n), self._entries(n), n in writes) for n in names])
        cycles = [whole_cycles([op for op, _ in unit], self.array, self.vector) for unit in self.units]
        total = (room.banks * room.bank_chunks, room.scales)
        return Kept(touched, self.spans, set(self.fixed), cycles, total, room.bank_chunks, self.beats)

    def _full(self, name: str) -> int:
        """Chunks of a buffer."""
        return self.limits.size(self.graph.buffers[name], self.graph.buffers[name].rows)

    def _least(self, unit: list[tuple[Op, Shape]]) -> tuple[float, float]:
        """Cycles of the array and of the vector unit that a unit takes in a run, however many blocks there are."""
        array, vector, share = 0.0, 0.0, 1.0
        for op, shape in unit:
            if not shape.tokens:
                continue
            if isinstance(op, RouteTokens):
                share = op.top_k / op.logits.cols
            if COLUMNS not in shape.axes.values():
                array += self.array(op, math.ceil(shape.tokens * share) if op.expert is not None else shape.tokens)
            vector += self.vector(op, shape.tokens)
        return array, vector

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
        return inside - self.shared - self.resident

    def blocks(self, run: Run) -> Blocks:
        """What the operations of a run make in its blocks."""
        units = self.units[run.first : run.end]
        edges = np.array([0, *(end for _, end in run.edges())])
        return blocks(units, edges, self.local(run.first, run.end), self._written(run))

    def _written(self, run: Run) -> set[str]:
        """Buffers that a run writes, but for its own."""
        units = self.units[run.first : run.end]
        written = {view.buffer for unit in units for op, _ in unit for view in op.writes().values()}
        return written - self.local(run.first, run.end)

    # --- choice -----------------------------------------------------------------------------------------------------

    @cached_property
    def runs(self) -> list[Run]:
        """The cheapest cut into runs of those that need the least beyond the room there is. What lies between runs stays in the
        scratchpad where it is small, and the cut is chosen again beside it."""
        found = self._cut()
        for _ in range(AGAIN):
            before = self.resident
            if found[-1].cost[0] or not self._keep(found):
                break
            again = self._cut()
            if again[-1].cost >= found[-1].cost:
                self._stay(before)
                break
            found = again
        for run in found:
            if not run.tokens and run.end > run.first + 1:  # its own values are whole
                inside = {n for n, (first, last) in self.spans.items() if run.first <= first and last < run.end}
                self.resident |= inside - self.fixed.keys()
        return found

    def _keep(self, runs: list[Run]) -> bool:
        """Let what is moved between runs stay where it takes little room for the traffic that it saves; whether something did."""
        known = {name for run in runs if run.tokens for name in self.local(run.first, run.end)} | self.resident
        uses: dict[str, int] = {}
        for unit in self.units:
            for op, _ in unit:
                for view in op.views().values():
                    uses[view.buffer] = uses.get(view.buffer, 0) + 1
        found = [name for name in self.spans if name not in self.fixed and name not in known]
        found.sort(key=lambda name: (self.spans[name][1] - self.spans[name][0] + 1) / uses[name])
        room, rows = self.stays.chunks.tolist(), self.stays.entries.tolist()
        most = KEPT * self.limits.banks * self.limits.bank_chunks
        chosen = set(self.resident)
        for name in found:
            first, last = self.spans[name][0], min(self.spans[name][1], len(self.units) - 1)
            size, entries = self.full[name], self.entries[name]
            if max(room[first : last + 1]) + size > most:
                continue
            if entries and max(rows[first : last + 1]) + entries > KEPT * self.limits.scales:
                continue
            chosen.add(name)
            for u in range(first, last + 1):
                room[u] += size
                rows[u] += entries
        before = self.resident
        self._stay(chosen)
        return chosen != before

    def _stay(self, names: set[str]) -> None:
        """These are resident: in the scratchpad as a whole for as long as they live."""
        self.resident, before = names, self.stays.names
        self.stays = Stays(names, self.full, self.entries, self.spans, len(self.units))
        for u, (old, new) in enumerate(zip(before, self.stays.names, strict=True)):
            self.changed[u] = self.changed[u] if old == new else self.cuts + 1

    def _entries(self, name: str) -> int:
        """Row maxima of a buffer."""
        return self.graph.buffers[name].rows if name in self.maxima else 0

    def _cut(self) -> list[Run]:
        """The cheapest cut for what is resident."""
        self.cuts += 1
        best: dict[int, Run] = {0: Run(0, 0, 1, 0, 1)}
        for first in range(len(self.units)):
            short, cycles = best[first].cost
            for run in self._choices(first, best):
                run = replace(run, cost=(max(short, run.cost[0]), cycles + run.cost[1]))
                if run.end not in best or run.cost < best[run.end].cost:
                    best[run.end] = run
        result, end = [], len(self.units)
        while end:
            result.append(best[end])
            end = best[end].first
        return result[::-1]

    def _choices(self, first: int, best: dict[int, Run]) -> Iterator[Run]:
        """Runs that begin at a unit, longer and longer ones; but those that cannot be cheaper than the `best` to their end."""
        together, streams, misses, guess = Together(self.graph.buffers), True, 0, 1
        short, cycles = best[first].cost
        least = np.zeros(2)  # cycles of array and vector unit
        changed = 0
        for end in range(first + 1, len(self.units) + 1):
            if not together.add(self.units[end - 1]):
                streams = False
                break
            if end - first > (self.longest if together.plain else min(self.longest, LONGEST)):
                break
            least = least + self.least[end - 1]
            changed = max(changed, self.changed[end - 1])
            if end in best and best[end].cost <= (short, cycles + least.max()):
                continue
            cut, run = self.tried.get((first, end), (0, None))
            if not cut or cut < changed:
                run = self._run(first, end, together.tokens, together.plain, guess)
                self.tried[first, end] = self.cuts, run
            if run is None:
                continue
            guess = run.blocks
            yield run
            misses = misses + 1 if short or run.cost[0] else 0
            if misses == PATIENCE:
                return
        if not streams and end == first + 1:
            yield self._whole(first)
        if self.kept is not None:
            for end, cycles in self.kept.runs(first, self.resident, self.stays.held):
                yield Run(first, end, 1, 0, 1, (0, cycles))

    def _whole(self, first: int) -> Run:
        """A unit as it is."""
        places = self._places(first, first + 1, set(), True)
        rows = [rows_of(op) for op, _ in self.units[first]]
        sizes = _Sizes(lambda key: 1, lambda key: 1, rows.__getitem__)
        over = self._over(first, first + 1, places, sizes)
        return Run(first, first + 1, 1, 0, 1, (over, self._cycles(first, first + 1, places, sizes, 1)))

    def _run(self, first: int, end: int, tokens: int, plain: bool, guess: int) -> Run | None:
        """The run with the fewest blocks that fit; None where blocks would not be right. guess: their number, about."""
        entries = [entry for unit in self.units[first:end] for entry in unit]
        step = math.lcm(*(shape.step for _, shape in entries if shape.tokens == tokens))
        if any(COLUMNS in shape.axes.values() for _, shape in entries):
            step = math.lcm(step, self.granule if tokens >= 4 * self.granule else self.limits.chunk)
        most = tokens
        for op, _ in entries:
            if isinstance(op, RouteTokens):
                most = min(most or op.logits.rows, max(1, min(self.limits.tokens, self.limits.entries // op.top_k)))

        def tried(blocks: int) -> Run:
            tall = min(tokens, -(-tokens // (blocks * step)) * step)
            return Run(first, end, -(-tokens // tall), tokens, step, plain=plain)

        places = self._places(first, end, self.local(first, end), plain)
        least = MIN_ROWS if any(isinstance(op, MatMul) for op, _ in entries) else 1
        few, many = -(-tokens // most), max(1, -(-tokens // most), -(-tokens // max(least, step)))
        known: dict[int, tuple[int, _Sizes]] = {}

        def over(blocks: int) -> int:
            if blocks not in known:
                sizes = self._sizes(tried(blocks))
                known[blocks] = self._over(first, end, places, sizes, exact=False), sizes
            return known[blocks][0]

        guess = min(max(few, guess), many)
        if over(guess):
            few = guess + 1 if guess < many else guess
        else:  # a run one unit longer mostly takes as many blocks
            many, few = guess, few if guess == few or not over(guess - 1) else guess
        while few < many:  # the fewest blocks that fit lie between
            middle = (few + many) // 2
            few, many = (middle + 1, many) if over(middle) else (few, middle)
        run, short = tried(few), over(few)
        _, sizes = known[few]
        short = short and self._over(first, end, places, sizes)
        if sizes.blocks is not None and not sound(self.units[first:end], sizes.blocks, self._written(run)):
            return None
        cycles = self._cycles(first, end, places, sizes, run.blocks)
        return replace(run, cost=(short, run.blocks * cycles))

    def _sizes(self, run: Run) -> _Sizes:
        """How tall the blocks of a run are."""
        if run.plain:
            height = run.edges()[0][1]

            def times(key: Key) -> int:
                return self._times(key, height)

            return _Sizes(times, times, lambda _: height)
        found = self.blocks(run)
        made = [end - first for first, end in found.made]
        rows: dict[Key, np.ndarray] = {WHOLE: np.ones(1, np.int64)}
        for key, (first, end) in (*found.kept.items(), *found.taken.items()):
            rows[key] = end - first

        def of(key: Key) -> np.ndarray:
            if key not in rows:
                walk, side, number = key
                rows[key] = np.array([tallest(walk, side, int(made[number].max()))])
            return rows[key]

        return _Sizes(
            lambda key: int(of(key).max()),
            lambda key: float(of(key).mean()),
            lambda number: -(-int(made[number].sum()) // run.blocks),
            found,
        )

    def _places(self, first: int, end: int, local: set[str], plain: bool) -> list[_Place]:
        """What lies in the scratchpad while a run works, but for what stays there. plain: all with the run's tokens."""
        places: dict[tuple[str, Key, int, int, int], _Place] = {}
        number = 0
        for u in range(first, end):
            for op, shape in self.units[u]:
                for name, view in op.views().items():
                    if view.buffer in self.resident:
                        continue
                    inside, axis = view.buffer in local, shape.axes[name]
                    key: Key = ROWS if inside else _scale(op, shape, name)
                    if not plain and inside:
                        key = view.buffer
                    elif not plain and axis != WHOLE:
                        key = area(op, shape, name, view) or (*key, number)
                    column = (0, 0) if inside or key == COLUMNS else (view.col, view.cols)
                    known = (view.buffer, key, *column, view.rows if plain or axis == WHOLE else 0)
                    if known not in places:
                        size = self._size(self.graph.buffers[view.buffer], key, column[1], view.rows)
                        copies = 1 if inside or (view.buffer in self.fixed and axis == WHOLE) else self.limits.copies
                        measured = view.buffer in self.maxima
                        places[known] = _Place(u, u, size, copies, key, measured, not inside and name not in op.WRITES)
                    place = places[known]
                    place.spilled |= name in op.WRITES and not inside
                    place.begin = first if axis == WHOLE else place.begin
                    place.last = end - 1 if axis == WHOLE or place.spilled else u
                number += 1
        return list(places.values())

    def _size(self, buffer: Buffer, key: Key, columns: int, rows: int) -> int:
        """Chunks of a row of so many columns (0: all), of so many rows of them, of one chunk of columns of these rows."""
        if key == COLUMNS:
            return rows
        width, groups = buffer.cols // buffer.groups, buffer.groups
        row = -(-columns // self.limits.chunk)
        if groups > 1 or not columns:
            row = max(1, (columns or buffer.cols) // width) * -(-width // self.limits.chunk)
        return row * rows if key == WHOLE else row

    def _times(self, key: Key, height: int) -> int:
        """What a size is multiplied by in blocks of so many tokens."""
        if key == ROWS:
            return height
        if key == WHOLE:
            return 1
        return tallest(*key, height) if isinstance(key, tuple) else -(-height // self.limits.chunk)

    def _over(self, first: int, end: int, places: list[_Place], sizes: _Sizes, exact: bool = True) -> int:
        """Chunks, and row maxima, that are short where most are."""
        found = np.zeros((len(places), 5), np.int64)
        for i, p in enumerate(places):
            n = sizes.most(p.key)
            maxima = n * p.copies if p.maxima and p.key not in (COLUMNS, WHOLE) else 0
            found[i] = p.begin, p.last, p.size * n, p.copies, maxima
        return self.stays.short(first, end, self.limits, found, exact)

    def _cycles(self, first: int, end: int, places: list[_Place], sizes: _Sizes, blocks: int) -> float:
        """Of a block: those of the array, of the vector unit or of the transfers, whichever take longer."""
        array, vector, share = 0.0, 0.0, 1.0
        for number, (op, shape) in enumerate(entry for unit in self.units[first:end] for entry in unit):
            if isinstance(op, RouteTokens):
                share = op.top_k / op.logits.cols
            height = sizes.rows(number)
            if COLUMNS in shape.axes.values() and isinstance(op, MatMul):
                array += self.array(replace(op, out=replace(op.out, cols=height)), op.x.rows)
            elif height:
                array += self.array(op, math.ceil(height * share) if op.expert is not None else height)
                vector += self.vector(op, height)
        # Row maxima of what is fetched are taken again, by a product with rows of one chunk.
        measured = (p for p in places if p.maxima and p.fetched and p.key not in (COLUMNS, WHOLE))
        vector += sum((p.size + 1) * sizes.mean(p.key) for p in measured)
        moved = [(p, p.size * sizes.mean(p.key) * self.beats / (blocks if p.key == WHOLE else 1)) for p in places]
        read, written = sum(c for p, c in moved if p.fetched), sum(c for p, c in moved if p.spilled)
        return side_by_side(array, vector, read, written)


def _scale(op: Op, shape: Shape, name: str) -> Key:
    """What the size of one of an operation's views grows with."""
    if shape.axes[name] != BAND:
        return shape.axes[name]
    assert op.walk is not None
    return op.walk, "x" if name == "x" else "out"

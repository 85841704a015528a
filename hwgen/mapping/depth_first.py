"""Depth-first tiling: a few tokens at a time through a run of operations, so that what lies between needs little room.

The hidden rows of an MLP, the scores of all heads, a mixture's tokens with their queues: where an operation gives row r
from row r of what it reads, a run of such operations can take some rows from its start to its end before the next ones.
What only lives inside the run is then as tall as a block. The cost is that weights are read once for every block.

Runs and their numbers of blocks are chosen by dynamic programming over all cuts of the network: the cheapest ones of
those whose live buffers fit the scratchpad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ..intgraph import Buffer, Constant, Input, IntGraph, MatMul, Multiply, Op, RouteTokens, View
from ..isa import RowMax
from .parts import edges, is_token_wise, lifetimes, part, part_name, read, written
from .rematerialise import rematerialise
from .runs import units

MIN_ROWS = 8  # of a block; fewer leave the array idle for most of the time
AGAIN = 0.9  # of the cycles: what repeated LayerNorms must save, which have none of their own

Bound = Callable[[Op, int], float]
Cost = tuple[int, float]  # chunks that are short where most are, cycles: room comes first


@dataclass(frozen=True)
class Limits:
    """What depth-first tiles must fit: `banks` of `bank_chunks` chunks of `chunk` elements, and the queues of the experts.

    tokens, entries: of a router's tokens, and of these times the experts that each chooses. copies: of a buffer that is
    loaded block by block, as many as live at one time if possible: two let the next block load, three are placed easily.
    scales: row maxima that there is room for.
    """

    banks: int
    bank_chunks: int
    chunk: int
    tokens: int
    entries: int
    copies: int = 1
    scales: int = 1 << 30

    def over(self, sizes: list[int]) -> int:
        """Chunks that are short where buffers of these sizes live at one time, each in one bank (first fit, decreasing)."""
        total = sum(sizes)
        if total <= self.bank_chunks:
            return 0
        free, short = [self.bank_chunks] * self.banks, 0
        for size in sorted(sizes, reverse=True):
            if total <= sum(left - size + 1 for left in free if left > size):
                break  # a bank without room for one of the rest has fewer free chunks than that: all of the rest fit
            total -= size
            bank = next((b for b, left in enumerate(free) if left >= size), None)
            if bank is None:
                short += size
            else:
                free[bank] -= size
        return short

    def surely(self, total: np.ndarray, largest: np.ndarray) -> np.ndarray:
        """Where buffers of so many chunks together, the `largest` of so many, fit whatever the sizes of the others are."""
        return (total <= self.bank_chunks) | (total <= self.banks * (self.bank_chunks - largest + 1))

    def size(self, buffer: Buffer, rows: int) -> int:
        """Chunks of so many rows of a buffer."""
        return rows * buffer.groups * -(-(buffer.cols // buffer.groups) // self.chunk)


def depth_first(graph: IntGraph, limits: Limits, bound: Bound) -> IntGraph:
    """`graph` in depth-first tiles where its buffers would not fit otherwise. bound(op, rows): cycles of an operation.

    Where nothing fits, the blocks are as small as they get. `trace` loses what is no longer there as a whole.
    """
    delayed = replace(graph, ops=_delayed(graph.ops))
    once, twice = (_Blocks(g, limits, bound) for g in (delayed, rematerialise(delayed)))
    short, cycles = once.cost
    return (twice if twice.cost < (short, AGAIN * cycles) else once).graph()


def _delayed(ops: list[Op]) -> list[Op]:
    """Loads and linear layers moved to just before the operation that streams their rows first: there a run can hold both.

    Q may then follow V, with which it shares its input, and lie in blocks.
    """
    result = list(ops)
    kinds = {op.row_max for op in ops if isinstance(op, MatMul) and op.continue_max}
    for at, op in reversed(list(enumerate(ops))):  # what is in front of it has not moved yet
        target = at + 1
        sources = read(op)
        if not isinstance(op, (Input, Constant, MatMul)) or op.out.buffer in sources or op.walk is not None:
            continue
        if isinstance(op, MatMul) and (op.expert is not None or (op.row_max != RowMax.NONE and op.row_max in kinds)):
            continue
        while target < len(result) and not _meets(result[target], op.out.buffer, sources):
            target += 1
        if target < len(result) and _streams(result[target], op):
            result.insert(target, op)
            del result[at]
    return result


def _streams(reader: Op, op: Op) -> bool:
    """Whether `reader` streams columns of all rows that `op` writes."""
    if not isinstance(reader, (MatMul, Multiply)) or reader.expert is not None or reader.walk is not None:
        return False
    out = op.writes()["out"]
    rows = (out.buffer, out.row, out.rows)
    streamed = [view for name, view in reader.reads().items() if name in ("x", "factor")]
    return any((view.buffer, view.row, view.rows) == rows for view in streamed)


def _meets(op: Op, out: str, sources: set[str]) -> bool:
    """Whether `op` touches buffer `out` or writes one of `sources`."""
    return out in read(op) | written(op) or bool(written(op) & sources)


@dataclass
class _Run:
    """Units from `first` on as a run in `blocks` blocks; `cost` of everything up to its end."""

    first: int
    blocks: int
    cost: Cost


@dataclass
class _Access:
    """What the units of a run do to one buffer: first rows of the views, whether one is written."""

    bases: set[int] = field(default_factory=set)
    written: bool = False


class _Together:
    """Whether units can go through in blocks together: equal rows, and every row depends on rows of its block only."""

    def __init__(self) -> None:
        self.rows = -1
        self.accesses: dict[str, _Access] = {}
        self.stationary: set[str] = set()

    def add(self, unit: list[Op]) -> bool:
        """Add one more unit; False where the run must end before it."""
        for op in unit:
            if not is_token_wise(op):
                return False
            for name, view in op.row_views().items():
                if self.rows < 0:
                    self.rows = view.rows
                if view.rows != self.rows:
                    return False
                access = self.accesses.setdefault(view.buffer, _Access())
                access.bases.add(view.row)
                access.written |= name in op.WRITES
                if access.written and len(access.bases) > 1:
                    return False
            if (whole := op.stationary()) is not None:
                self.stationary.add(whole.buffer)
        return not any(self.accesses[name].written for name in self.stationary & self.accesses.keys())


class _Blocks:
    """State of one transformation. `spans`: first and last unit that touches a buffer."""

    def __init__(self, graph: IntGraph, limits: Limits, bound: Bound):
        self.source, self.limits, self.bound = graph, limits, bound
        self.units = units(graph.ops)
        self.spans = lifetimes(self.units)
        shared: set[str] = {output.view.buffer for output in graph.outputs}  # not to be shortened
        for unit in self.units:
            for op in unit:
                rows = op.row_views().values()
                shared |= {v.buffer for v in rows if v.row or v.rows != graph.buffers[v.buffer].rows}
                if (whole := op.stationary()) is not None:
                    shared.add(whole.buffer)
        for output in graph.outputs:
            self.spans[output.view.buffer][1] = len(self.units)
        self.shared = shared
        self.loaded = {op.out.buffer for op in graph.ops if isinstance(op, Constant | Input)} - shared
        self.full = {name: limits.size(graph.buffers[name], graph.buffers[name].rows) for name in self.spans}
        self.starts: list[list[str]] = [[] for _ in self.units]
        self.ends: list[list[str]] = [[] for _ in range(len(self.units) + 1)]
        for name, (first, last) in self.spans.items():
            self.starts[first].append(name)
            self.ends[last].append(name)
        self.live: list[set[str]] = []  # what lives while a unit runs
        live: set[str] = set()
        for u in range(len(self.units)):
            live |= set(self.starts[u])
            self.live.append(set(live))
            live -= set(self.ends[u])

        self.runs = self._runs()

    # --- choice -----------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> Cost:
        """Of the whole network."""
        return self.runs[-1].cost

    def _runs(self) -> list[_Run]:
        """The cheapest cut of all units into runs, in order."""
        best = {0: _Run(0, 1, (0, 0.0))}
        for first in range(len(self.units)):
            for end, blocks, cost in self._choices(first):
                short, cycles = best[first].cost
                total = max(short, cost[0]), cycles + cost[1]
                if end not in best or total < best[end].cost:
                    best[end] = _Run(first, blocks, total)
        result, end = [], len(self.units)
        while end:
            result.append(best[end])
            end = best[end].first
        return result[::-1]

    def _choices(self, first: int) -> Iterator[tuple[int, int, Cost]]:
        """(end, blocks, cost) of runs that begin at a unit: it alone as a whole, then longer and longer ones in blocks."""
        queues = sum(
            max(0, op.logits.rows - self._tokens(op)) for op in self.units[first] if isinstance(op, RouteTokens)
        )
        over = self.limits.over([self.full[name] for name in self.live[first]])
        yield first + 1, 1, (over + queues, self._cost(first, first + 1, None, 1))
        together, outside = _Together(), set(self.live[first])
        inside: set[str] = set()
        for end in range(first + 1, len(self.units) + 1):
            if not together.add(self.units[end - 1]):
                return
            outside |= set(self.starts[end - 1])
            local = {n for n in self.ends[end - 1] if self.spans[n][0] >= first and n not in self.shared}
            inside, outside = inside | local, outside - local
            if inside and together.rows > MIN_ROWS:
                blocks, over = self._blocks(first, end, together.rows, inside, outside)
                yield end, blocks, (over, self._cost(first, end, together.rows, blocks))

    def _blocks(self, first: int, end: int, rows: int, inside: set[str], outside: set[str]) -> tuple[int, int]:
        """(fewest blocks that fit, chunks that are short with them) of a run of units.

        Beside a block that is loaded there is place for the next ones where possible, so that the array need not wait.
        """
        for copies in range(self.limits.copies, 0, -1):
            blocks, over = self._fewest(first, end, rows, inside, outside, copies)
            if not over:
                break
        return blocks, over

    def _fewest(
        self, first: int, end: int, rows: int, inside: set[str], outside: set[str], copies: int
    ) -> tuple[int, int]:
        """The same where so many blocks of a loaded buffer live at one time."""
        height = rows
        for unit in self.units[first:end]:
            for op in unit:
                if isinstance(op, RouteTokens):
                    height = min(height, self._tokens(op))
        fixed = [self.full[name] for name in outside]
        alive = []  # chunks of a row of each buffer that lives while a unit runs, largest first; different ones
        for u in range(first, end):
            names = [n for n in inside if self.spans[n][0] <= u <= self.spans[n][1]]
            names = [n for n in names for _ in range(copies if n in self.loaded else 1)]
            alive.append(tuple(sorted((self.limits.size(self.source.buffers[n], 1) for n in names), reverse=True)))
        alive = list(dict.fromkeys(alive))
        # No block can be taller than the space beside `fixed` holds in sum.
        free = self.limits.banks * self.limits.bank_chunks - sum(fixed)
        height = min([height, *(max(MIN_ROWS, free // sum(sizes)) for sizes in alive if sizes)])
        blocks = max(2, -(-rows // height))
        while True:
            height = -(-rows // blocks)
            over = max(self.limits.over([*fixed, *(height * size for size in sizes)]) for sizes in alive)
            if not over or height <= MIN_ROWS:
                return blocks, over
            blocks = -(-rows // (height - 1))  # the fewest that are less high

    def _tokens(self, route: RouteTokens) -> int:
        """Tokens that the machine can route at once."""
        return max(1, min(self.limits.tokens, self.limits.entries // route.top_k))

    def _cost(self, first: int, end: int, rows: int | None, blocks: int) -> float:
        """Cycles of a run whose operations have so many rows (None: each its own) in so many blocks."""
        total, share = 0.0, 1.0
        for op in (op for unit in self.units[first:end] for op in unit):
            height = -(-(_rows(op) if rows is None else rows) // blocks)
            if isinstance(op, RouteTokens):
                share = op.top_k / op.logits.cols
            expert = isinstance(op, MatMul) and op.expert is not None
            total += self.bound(op, math.ceil(height * share) if expert else height)
        return blocks * total

    # --- the graph --------------------------------------------------------------------------------------------------

    def graph(self) -> IntGraph:
        ops: list[Op] = []
        buffers = dict(self.source.buffers)
        for run, end in zip(self.runs, [*(run.first for run in self.runs[1:]), len(self.units)], strict=True):
            inside = [op for unit in self.units[run.first : end] for op in unit]
            if run.blocks == 1:
                ops += inside
                continue
            held = [name for u in range(run.first, end) for name in self.starts[u]]
            local = {name for name in held if self.spans[name][1] < end and name not in self.shared}
            ops += self._run(inside, run.blocks, local, buffers)
            for name in local:
                del buffers[name]
        trace = {value: (v, op) for value, (v, op) in self.source.trace.items() if v.buffer in buffers}
        return replace(self.source, ops=ops, buffers=buffers, trace=trace)

    def _run(self, ops: list[Op], blocks: int, local: set[str], buffers: dict[str, Buffer]) -> list[Op]:
        """The operations of a run block by block; buffers of block height join `buffers`."""
        rows = _rows(ops[0])
        result = []
        for k, (first, end) in enumerate(edges(rows, blocks)):

            def place(view: View, first: int = first, height: int = end - first) -> View:
                if view.buffer not in local:
                    return view
                name = f"{view.buffer}.{height}rows"
                buffers.setdefault(name, replace(self.source.buffers[view.buffer], name=name, rows=height, scale=1.0))
                return replace(view, buffer=name, row=view.row - first)

            for op in ops:
                piece: Op = part(op, first, end, part_name(op.name, k, end == rows, "deep"), place)
                if isinstance(piece, MatMul) and piece.expert is not None:
                    route, expert = piece.expert
                    piece = replace(piece, expert=(part_name(route, k, end == rows, "deep"), expert))
                result.append(piece)
        return result


def _rows(op: Op) -> int:
    """Rows that go through an operation."""
    if op.walk is not None:
        return op.walk.rows
    views = op.row_views()
    return next(views[name].rows for name in ("x", "logits", "out") if name in views)

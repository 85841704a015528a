"""Values in DRAM behind the scratchpad: the runs of `streamed` with what is fetched before and spilled behind each block."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..config import Config
from ..intgraph import (
    Buffer,
    Constant,
    Fetch,
    Input,
    IntGraph,
    MatMul,
    Op,
    RouteTokens,
    Spill,
    Transfer,
    View,
)
from .ahead import ahead
from .apart import constants_apart, heads_apart, measure, weights_apart
from .bands import Shape, cut, tight
from .bounds import aside, bound, vector
from .depth_first import Limits
from .halos import Rows
from .parts import WHOLE, part_name
from .row_tiling import row_tiling, waiting
from .streamed import Run, Streamed

TILES = 2  # of the rows of a block: the vector unit works on one while the array works on the other
LEAST_ROWS = 32  # of a tile: of fewer the latencies of another operation take longer than either waits
SAME = 1.125  # two rectangles are fetched as one that is at most so much larger than either
WEIGHTS = 2  # what streams from a constant takes at most this part of a bank


def spilled(graph: IntGraph, limits: Limits, config: Config, turns: bool = False, room: Limits | None = None) -> IntGraph:
    """`graph` with all that lives longer than a run of operations in DRAM, in blocks that fit the limits if any do.

    turns: another pass orders the operations of several blocks. room: for runs that work on whole values; None: there are no
    such. `trace` loses what is no longer there as a whole.
    """
    result, floors = _in_blocks(_Same(graph), limits, config, room)
    if turns or limits.copies == 1:  # no room for what comes next
        return result
    return loads_ahead(result, config, limits, floors)


@dataclass(frozen=True, eq=False)
class _Same:
    """A graph as a key: no other one is equal, whatever it holds."""

    graph: IntGraph

    def __hash__(self) -> int:
        return id(self.graph)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.graph is self.graph


@lru_cache(maxsize=8)
def _in_blocks(of: _Same, limits: Limits, config: Config, room: Limits | None) -> tuple[IntGraph, list[int]]:
    """The graph in blocks, and of each operation the one that it may go up to where loads go ahead. Kept, as a search asks
    for blocks in turns and then for the same ones one after another."""
    whole = weights_apart(constants_apart(of.graph), max(1, limits.bank_chunks // WEIGHTS), config.chunk)
    apart = heads_apart(replace(whole, ops=[tight(op) for op in whole.ops]), config.chunk)
    cycles = partial(bound, config=config), partial(vector, config=config)
    found = _Spills(Streamed(apart, limits, *cycles, config.chunk_beats, config.array_outputs, room))
    result = found.graph()
    ops: list[Op] = []
    floors: list[int] = []
    runs: dict[int, int] = {}  # where each begins
    begin = 0  # of the block before
    for number, block in found.blocks:
        runs.setdefault(number, len(ops))
        tiled = row_tiling(replace(result, ops=block), TILES, waiting(block, TILES * LEAST_ROWS)).ops
        floors += [runs.get(number - 1, 0) if op.name in found.lasting else begin for op in tiled]
        begin = len(ops)
        ops += tiled
    return replace(result, ops=ops), floors


def loads_ahead(graph: IntGraph, config: Config, limits: Limits, floors: list[int] | None = None) -> IntGraph:
    """`graph` with loads, and what the vector unit makes of them, ahead of their use, as long as what lives at one time keeps
    within the limits. floors: see `ahead`."""
    tokens = 0

    def work(op: Op) -> float:
        nonlocal tokens
        if isinstance(op, RouteTokens):
            tokens = -(-op.logits.rows * op.top_k // op.logits.cols)
        return bound(op, tokens if op.expert is not None else op.rows, config) if isinstance(op, MatMul) else 0.0

    def size(name: str) -> int:
        buffer = graph.buffers[name]
        return 0 if buffer.dram else limits.size(buffer, buffer.rows)

    most = limits.banks * limits.bank_chunks
    floors = floors or [0] * len(graph.ops)
    return replace(graph, ops=ahead(graph.ops, floors, lambda op: aside(op, graph.buffers, config), work, size, most))


@dataclass
class _Held:
    """A rectangle of a buffer that lies in the scratchpad, as buffer `name`, while a block or a run goes through.

    first, last: operations of the block that touch it first, and that write it last (-1: none). fetched: the first one
    needs what it held before. maxima: its row maxima are read before any are written.
    """

    view: View
    name: str
    first: int
    last: int
    fetched: bool
    maxima: bool
    lasts: bool = False  # for the whole run


class _Spills:
    def __init__(self, plan: Streamed):
        self.plan, self.source, self.chunk = plan, plan.graph, plan.limits.chunk
        self.buffers: dict[str, Buffer] = {}
        self.ops: list[Op] = []  # of the block that is being made
        self.blocks: list[tuple[int, list[Op]]] = []  # number of the run, operations
        self.lasting: set[str] = set()  # loads of what stays for a run
        self.partial: set[str] = set()  # operations that leave some rows of what they write as they were
        self.counts: dict[str, int] = {}

    def graph(self) -> IntGraph:
        for number, run in enumerate(self.plan.runs):
            self._run(number, run)
        outputs = [replace(o, view=self._whole_rows(o.view, len(self.plan.runs))) for o in self.source.outputs]
        ops = [op for _, block in self.blocks for op in block]
        moved = {op.out.buffer if isinstance(op, Spill) else op.x.buffer for op in ops if isinstance(op, Transfer)}
        for name in sorted(moved):
            self.buffers[name] = replace(self.source.buffers.get(name) or self.buffers[name], dram=True)
        kept = {op.name for op in ops}
        trace = {
            value: (view, op)
            for value, (view, op) in self.source.trace.items()
            if view.buffer in self.buffers and view.buffer not in moved and op in kept
        }
        return replace(self.source, ops=ops, outputs=outputs, buffers=self.buffers, trace=trace)

    def _whole_rows(self, view: View, number: int) -> View:
        """Where an output's rows lie one behind the other: as blocks of run `number` a copy, where columns were spilled apart."""
        if view.buffer in self.plan.resident:
            return view
        transfers = [op for _, block in self.blocks for op in block if isinstance(op, Transfer)]
        outside = [op.out if isinstance(op, Spill) else op.x for op in transfers]
        if all((v.col, v.cols) == (view.col, view.cols) for v in outside if v.buffer == view.buffer):
            return view
        source = self.source.buffers[view.buffer]
        width = source.cols // source.groups
        groups = view.cols // width if source.groups > 1 else 1
        scale = source.scale if np.ndim(source.scale) == 0 else 1.0
        name = f"{view.buffer}.{view.col}.whole"
        self.buffers[name] = Buffer(name, view.rows, view.cols, groups, scale)
        most = max(1, self.plan.limits.bank_chunks // TILES // self.plan.limits.size(self.buffers[name], 1))
        for first in range(0, view.rows, most):
            rows = min(most, view.rows - first)
            block = self._name(f"{name}.block")
            self.buffers[block] = replace(self.buffers[name], name=block, rows=rows)
            inside = View(block, 0, rows, 0, view.cols)
            fetch = Fetch(f"{block}.fetch", inside, replace(view, row=view.row + first, rows=rows))
            spill = Spill(f"{block}.spill", View(name, first, rows, 0, view.cols), inside)
            self.blocks.append((number, [fetch, spill]))
        return View(name, 0, view.rows, 0, view.cols)

    def _run(self, number: int, run: Run) -> None:
        """All blocks of a run."""
        entries = [entry for unit in self.plan.units[run.first : run.end] for entry in unit]
        local = self.plan.local(run.first, run.end) if run.tokens else set()
        lasting: dict[View, _Held] = {}
        edges = run.edges() if run.tokens else [(0, 0)]
        made, kept = self._made(run, entries, local, edges)
        for k in range(len(edges)):
            last = k == len(edges) - 1
            names = f"{number}.{k}"

            def place(field: str, view: View, k: int = k, names: str = names) -> View:
                if view.buffer not in local:
                    return view
                first, end = (int(rows[k]) for rows in kept[view.buffer])
                name = f"{view.buffer}.{end - first}rows.{names}"
                self.buffers.setdefault(
                    name, replace(self.source.buffers[view.buffer], name=name, rows=end - first, scale=1.0)
                )
                return replace(view, buffer=name, row=view.row - first)

            pieces: list[Op] = []
            whole: set[View] = set()
            for (op, shape), (firsts, ends) in zip(entries, made, strict=True):
                name, first, end = part_name(op.name, k, last, "block"), int(firsts[k]), int(ends[k])
                if run.tokens and first == end:
                    continue
                cuts = cut(op, shape, first, end, name, place) if run.tokens else [op]
                rows = sum(piece.walk.rows for piece in cuts if piece.walk is not None)  # that they write, each once
                if op.walk is not None and rows < cuts[0].writes()["out"].rows:
                    self.partial |= {piece.name for piece in cuts}
                for piece in cuts:
                    if isinstance(piece, MatMul) and piece.expert is not None:
                        route, expert = piece.expert
                        piece = replace(piece, expert=(part_name(route, k, last, "block"), expert))
                    pieces.append(piece)
                    whole |= {view for field, view in piece.views().items() if shape.axes[field] == WHOLE}
            held = self._held(pieces, names)
            for n, h in enumerate(held):
                if h.view in whole and h.last < 0:  # read as a whole in every block
                    known = lasting.setdefault(h.view, replace(h, lasts=True))
                    held[n] = replace(known, first=h.first if known.name == h.name else -1)
            self.ops = []
            self._block(pieces, held, run)
            self.blocks.append((number, self.ops))

    def _made(
        self, run: Run, entries: list[tuple[Op, Shape]], local: set[str], edges: list[tuple[int, int]]
    ) -> tuple[list[Rows], dict[str, Rows]]:
        """Tokens of each operation in every block of a run, and rows of what is local."""
        if not run.plain:
            found = self.plan.blocks(run)
            return found.made, found.kept
        first, end = np.array(edges).T
        return [(first, end)] * len(entries), dict.fromkeys(local, (first, end))

    def _block(self, pieces: list[Op], held: list[_Held], run: Run) -> None:
        """The operations of a block with the transfers around them."""
        for step, piece in enumerate(pieces):
            for h in held:
                if h.first == step:
                    self._bring(h, piece)
            moved: dict[str, Any] = {field: self._moved(view, held) for field, view in piece.views().items()}
            self.ops.append(replace(piece, **moved))
            for h in held:
                if h.last == step and self.plan.spans[h.view.buffer][1] >= run.end:
                    self._transfer(Spill, h)

    # --- rectangles -------------------------------------------------------------------------------------------------

    def _held(self, pieces: list[Op], names: str) -> list[_Held]:
        """What a block touches of buffers that are not its own: rectangles, those that overlap as one where one is written."""
        reads: list[list[View]] = []
        writes: list[list[View]] = []
        for piece in pieces:
            read = [self._complete(v) for v in piece.reads().values() if self._moves(v)]
            write = [_written(piece, v) for v in piece.writes().values() if self._moves(v)]
            if piece.expert is not None or piece.name in self.partial:
                read += write  # rows that it does not write stay as they were
            reads.append(read)
            writes.append(write)
        written = [view for views in writes for view in views]
        areas = _joined([view for views in reads for view in views] + written, written)
        return [self._area(area, pieces, reads, writes, f"{n}.{names}") for n, area in enumerate(areas)]

    def _area(
        self, area: View, pieces: list[Op], reads: list[list[View]], writes: list[list[View]], names: str
    ) -> _Held:
        """What the operations do to a rectangle."""
        touched = [s for s in range(len(pieces)) if any(area.covers(v) for v in reads[s] + writes[s])]
        wrote = [s for s in touched if any(area.covers(v) for v in writes[s])]
        first = touched[0]
        fetched = any(area.covers(v) for v in reads[first]) or area not in writes[first]
        maxima = False
        for piece in (pieces[s] for s in touched):
            if any(area.covers(v) for v in piece.reads_maxima()):
                maxima = True
                break
            if (kept := piece.writes_maxima()) is not None and area.covers(kept):
                break
        buffer = self.source.buffers[area.buffer]
        groups = area.cols // (buffer.cols // buffer.groups) if buffer.groups > 1 else 1
        name = f"{area.buffer}.{area.rows}x{area.cols}.{names}"
        self.buffers.setdefault(name, Buffer(name, area.rows, area.cols, groups))
        return _Held(area, name, first, wrote[-1] if wrote else -1, fetched, maxima)

    def _moves(self, view: View) -> bool:
        """Whether a view is of what lies in DRAM: neither of a block's own buffers nor of one that stays."""
        return view.buffer in self.source.buffers and view.buffer not in self.plan.resident

    def _complete(self, view: View) -> View:
        """What is brought for a view: all columns of an image's rows."""
        whole = isinstance(self.plan.fixed.get(view.buffer), Input)
        return replace(view, col=0, cols=self.source.buffers[view.buffer].cols) if whole else view

    def _moved(self, view: View, held: list[_Held]) -> View:
        """A view in the scratchpad."""
        if not self._moves(view):
            if view.buffer in self.plan.resident:
                self.buffers.setdefault(view.buffer, self.source.buffers[view.buffer])
            return view
        exact = [h for h in held if h.view == view] or [h for h in held if h.view.covers(view)]
        h = exact[0]
        return replace(view, buffer=h.name, row=view.row - h.view.row, col=view.col - h.view.col)

    # --- transfers --------------------------------------------------------------------------------------------------

    def _bring(self, h: _Held, reader: Op) -> None:
        """Fetch or load a rectangle before its first reader."""
        if not h.fetched:
            return
        out = View(h.name, 0, h.view.rows, 0, h.view.cols)
        source, before = self.plan.fixed.get(h.view.buffer), len(self.ops)
        rows, columns = slice(h.view.row, h.view.row + h.view.rows), slice(h.view.col, h.view.col + h.view.cols)
        if source is None:
            self._transfer(Fetch, h)
        else:
            name = self._name(f"{source.name}.load")
            if isinstance(source, Constant):
                self.ops.append(replace(source, name=name, out=out, data=source.data[rows, columns]))
            else:
                self.ops.append(replace(source, name=name, out=out, row=source.row + h.view.row))
        if h.lasts:
            self.lasting |= {op.name for op in self.ops[before:]}
        if h.maxima:
            if h.view.cols != self.source.buffers[h.view.buffer].cols:
                raise ValueError(f"{reader.name}: row maxima of some columns of {h.view.buffer!r}")
            self.ops += measure(
                self._name(f"{h.view.buffer}.maxima"), out, self.buffers[h.name], self.chunk, self.buffers
            )

    def _transfer(self, kind: type[Spill] | type[Fetch], h: _Held) -> None:
        inside = View(h.name, 0, h.view.rows, 0, h.view.cols)
        out, x = (h.view, inside) if kind is Spill else (inside, h.view)
        self.ops.append(kind(self._name(f"{h.view.buffer}.{kind.__name__.lower()}"), out, x))

    def _name(self, name: str) -> str:
        """Numbered, as each comes several times."""
        number = self.counts[name] = self.counts.get(name, -1) + 1
        return f"{name}{number}"


def _written(op: Op, view: View) -> View:
    """The rows that an operation may write of a view."""
    plain = isinstance(op, MatMul) and op.expert is None and op.walk is None
    return replace(view, rows=op.x.rows) if plain and isinstance(op, MatMul) else view


def _joined(views: Iterable[View], written: list[View]) -> list[View]:
    """Rectangles that hold all views, in order: those that overlap joined where one of them is written, and where both together
    are hardly larger than one, as what windows side by side read is."""
    areas = list(dict.fromkeys(views))
    changed = True
    while changed:
        changed = False
        for i, a in enumerate(areas):
            for b in areas[i + 1 :]:
                if not a.overlaps(b):
                    continue
                around = _around(a, b)
                much = around.rows * around.cols > SAME * max(a.rows * a.cols, b.rows * b.cols)
                if not much or any(area.overlaps(w) for w in written for area in (a, b) if w.buffer == a.buffer):
                    areas = list(dict.fromkeys(around if area in (a, b) else area for area in areas))
                    changed = True
                    break
            if changed:
                break
    return areas


def _around(a: View, b: View) -> View:
    row, col = min(a.row, b.row), min(a.col, b.col)
    rows, cols = max(a.row + a.rows, b.row + b.rows) - row, max(a.col + a.cols, b.col + b.cols) - col
    return View(a.buffer, row, rows, col, cols)

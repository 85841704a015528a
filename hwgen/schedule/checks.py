"""What must hold between a machine graph and its instructions, checked from the instructions' own fields.

Values: every instruction reads, in program order, what the graph says was written there last; so nothing that is still
needed has been overwritten. Waits: where two instructions touch the same place, the counts that the later one waits for
include the earlier one, by themselves or through what they wait for in turn; within a unit only a read after a write must
wait, because rows go through a unit in order. So no interleaving of the units that the counts allow changes a value.
Weights: streams come in the order in which Matmuls take them. Walks: those in front of an operation's instructions make, one
behind the other, the rows of its walk. DRAM: what is stored lies where nothing is loaded from, but for spilled values.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from .. import isa
from ..config import Config
from ..counts import data_beats
from ..intgraph import IntGraph, Op, ReduceWindow, SelectRows, Transfer, View
from ..isa import ColScale, Indirect, Unit, WeightSource
from ..program import Region as Part
from ..program import TaskProgram
from ..walks import Walk
from .areas import Areas
from .footprint import KEPT, PARAMS, QUEUE, SCALES, STORED, TABLE, Access, addresses, footprint, reach
from .hazards import Region, strided
from .layout import layout_of

Owners = dict[str, np.ndarray]


def _written(i: int, rows: int, width: int, first: int = 0) -> np.ndarray:
    """Numbers that tell apart what operation i writes: of each chunk of so many rows from row `first` on."""
    return (i << 32) + first * width + np.arange(rows * width).reshape(rows, width)


class Faulty(ValueError):
    """A program does not do what its graph says: a fault of the compiler."""


def verify_task(graph: IntGraph, task: TaskProgram, config: Config, regions: dict[str, Part] | None = None) -> None:
    """Raise Faulty naming the instruction that reads what it must not, or both of which one does not wait for the other.

    regions: parts of the data region, which a program's loads and stores must keep to; without them no value is spilled.
    """
    spills = 0
    if regions is not None:
        _check_dram(graph, task, config, regions)
        spills = regions["spills"].offset if "spills" in regions else 0
    ops = {op.name: (i, op) for i, op in enumerate(graph.ops)}
    expected = _Graph(graph, config)
    size = addresses(config, expected.areas.size)
    memory, clocks = np.full(size, -1), _Clocks(size, task.origins)
    rows_done: dict[str, int] = defaultdict(int)
    columns_done: dict[str, int] = defaultdict(int)  # chunks of a transfer
    params_loaded: dict[str, int] = defaultdict(int)
    params: dict[str, int] = {}  # where those of an operation begin
    held: dict[Unit | None, tuple[isa.WalkFields, str]] = {}  # of the unit's next instruction, and its operation
    walks: dict[str, list[tuple[Walk, int]]] = {}  # of each operation, and which of its chunks of parameters come first
    streamed = [name for insn, name in zip(task.instructions, task.origins, strict=True) if isinstance(insn, isa.Stream)]
    taken = 0
    for number, (insn, name) in enumerate(zip(task.instructions, task.origins, strict=True)):
        if isinstance(insn, isa.End):
            clocks.end(insn, number)
            continue
        i, op = ops[name]
        if isinstance(insn, isa.WalkFields):
            held[insn.unit] = insn, name
            continue
        if insn.unit in held or (op.walk is not None and isinstance(insn, (isa.Matmul, isa.ReduceWindow))):
            walk = _walk_of(insn, name, number, held)
            walks.setdefault(name, []).append((walk, getattr(insn, "params", 0)))
        else:
            walk = None
        picked = {} if walk is None else reach(walk)
        # Parameters or a table, which no view names.
        aside = isinstance(insn, (isa.Load, isa.LoadScales)) and hasattr(op, "x") and not isinstance(op, Transfer)
        first = rows_done[name] if walk is None and not aside else 0
        if aside and isinstance(insn, isa.Load):  # one may come in several
            first = params_loaded[name]
            params_loaded[name] += insn.rows
        if isinstance(insn, isa.Select) and not (isinstance(op, SelectRows) and insn.first == op.first):
            raise Faulty(f"instruction {number} ({name}): rows from {insn.first} of the order are not its own")
        if isinstance(insn, isa.Matmul) and insn.expert == isa.NO_EXPERT:
            rows_done[name] += insn.rows
        reads, writes = footprint(insn, op, config, walk, spills // config.axi_bytes)
        column = columns_done[name]
        if isinstance(insn, (isa.Load, isa.Store)):
            columns_done[name] += insn.chunks
        for field, region in reads:
            if field == QUEUE:
                continue
            base, rows = _rows(field, first, picked)
            if field == PARAMS:
                base += region.start - params.setdefault(name, region.start)
            found = strided(memory, region)[rows]
            want = expected.read(i, op, field, base, column, region)
            if want is not None and not ((found == want[rows]) | (want[rows] == -1)).all():
                raise Faulty(f"instruction {number} ({name}): {field} has been overwritten since it was written")
        clocks.check(insn, number, reads, writes)
        for field, region in writes:
            if isinstance(op, Transfer):
                whole = _written(i, region.rows, expected.width(op.out))
                strided(memory, region)[:] = whole[:, column : column + region.width]
            elif field != QUEUE:
                found = strided(memory, region)
                base, rows = _rows(field, first, picked)
                height, width = found.shape[::-1] if field.endswith(SCALES) and not aside else found.shape
                numbers = _written(i + aside * len(graph.ops), height, width, base).reshape(found.shape)
                found[rows] = numbers[rows]
        if isinstance(insn, isa.Matmul) and (insn.w_source == WeightSource.STREAM or insn.col_source == ColScale.PARAMETERS):
            if taken >= len(streamed) or streamed[taken] != name:
                raise Faulty(f"instruction {number} ({name}): weight stream {taken} is not its own")
            taken += 1
    if taken != len(streamed):
        raise Faulty(f"{len(streamed) - taken} weight streams that no Matmul takes")
    for name, parts in walks.items():
        _check_walks(ops[name][1], parts, expected)


def _rows(field: str, first: int, picked: dict[str, np.ndarray]) -> tuple[int, tuple[slice | np.ndarray, ...]]:
    """The row of a view at which a region begins, and the index of those of its rows that are used.

    first: the row without a walk; picked: `reach` of a walk.
    """
    used = picked.get(field.removesuffix(SCALES))
    if used is None:
        return first, (slice(None),)
    inside = used - used.min()
    return int(used.min()), (slice(None), inside) if field.endswith(SCALES) else (inside,)


def _walk_of(insn: isa.Insn, name: str, number: int, held: dict[Unit | None, tuple[isa.WalkFields, str]]) -> Walk:
    """The walk that is held for an instruction, which takes it."""
    fields, owner = held.pop(insn.unit, (None, ""))
    if fields is None or owner != name:
        raise Faulty(f"instruction {number} ({name}): the walk before it is {f'that of {owner}' if owner else 'missing'}")
    return Walk.of(fields, insn.rows)  # type: ignore[attr-defined]


def _check_walks(op: Op, parts: list[tuple[Walk, int]], graph: _Graph) -> None:
    """Whether the instructions of an operation go through its rows, with each kind of weights those that are of this kind."""
    wanted = op.parts if isinstance(op, ReduceWindow) else [(op.walk, None)] if op.walk is not None else []
    start, left = parts[0][1], list(parts)
    for walk, weights in wanted:
        own: list[Walk] = []
        while left and left[0][1] == start and sum(part.rows for part in own) < walk.rows:
            own.append(left.pop(0)[0])
        if not _same(walk, own):
            raise Faulty(f"{op.name}: its instructions' walks are not its own")
        if weights is not None:
            start += (2 + len(weights)) * graph.width(op.writes()["out"])
    if left:
        raise Faulty(f"{op.name}: its instructions' walks are not its own")


def _same(walk: Walk, parts: list[Walk]) -> bool:
    """Whether parts one behind the other are a walk."""
    sides = (Walk.x_rows, Walk.y_rows)
    return bool(parts) and all(np.array_equal(np.concatenate([rows(p) for p in parts], axis=-1), rows(walk)) for rows in sides)


def _check_dram(graph: IntGraph, task: TaskProgram, config: Config, regions: dict[str, Part]) -> None:
    moved = {op.name for op in graph.ops if isinstance(op, Transfer)}
    for number, (insn, name) in enumerate(zip(task.instructions, task.origins, strict=True)):
        if not isinstance(insn, (isa.Load, isa.LoadScales, isa.Store)):
            continue
        wanted = ("spills",) if name in moved else ("outputs",) if isinstance(insn, isa.Store) else ("constants", "inputs")
        first, end = (beat * config.axi_bytes for beat in (insn.dram, insn.dram + data_beats(insn, config)))
        if not any(regions[part].offset <= first and end <= regions[part].end for part in wanted):
            raise Faulty(f"instruction {number} ({name}): bytes {first} to {end} of DRAM are not its own")


class _Graph:
    """Which operation wrote each chunk of a view, and its rows' maxima, before an operation reads it; -1: none."""

    def __init__(self, graph: IntGraph, config: Config):
        self.layouts = layouts = {name: layout_of(buffer, config) for name, buffer in graph.buffers.items()}
        self.areas = Areas(graph, layouts, config)
        chunks: Owners = {n: np.full((b.rows, layouts[n].pitch), -1) for n, b in graph.buffers.items()}
        maxima: Owners = {n: np.full(b.rows, -1) for n, b in graph.buffers.items()}
        self.before: dict[tuple[int, str], np.ndarray] = {}
        self.count = len(graph.ops)

        def part(view: View) -> np.ndarray:
            layout = layouts[view.buffer]
            left = layout.start(view) - view.row * layout.pitch
            return chunks[view.buffer][view.row : view.row + view.rows, left : left + layout.chunks(view)]

        for i, op in enumerate(graph.ops):
            read = op.reads() | ({KEPT: op.writes()["out"]} if op.indirect == Indirect.SCATTER else {})
            for field, view in read.items():
                self.before[i, field] = part(view).copy()
                self.before[i, field + SCALES] = maxima[view.buffer][view.row : view.row + view.rows].copy()
            used = op.touched_rows()
            for field, view in op.writes().items():
                rows, written = used.get(field, slice(None)), part(view)
                written[rows] = _written(i, *written.shape)[rows]
                if op.writes_maxima() is not None:
                    maxima[view.buffer][view.row : view.row + view.rows][rows] = _written(i, view.rows, 1)[rows, 0]
        stored = defaultdict(list)
        for output in graph.outputs:
            stored[output.view.buffer].append(part(output.view).copy())
        self.stored = stored

    def width(self, view: View) -> int:
        """Chunks of a row of a view."""
        return self.layouts[view.buffer].chunks(view)

    def read(self, i: int, op: Op, field: str, first: int, column: int, region: Region) -> np.ndarray | None:
        """What a region read by operation i, of a transfer from a column on, must hold; None: not known from here."""
        if field in (PARAMS, TABLE + SCALES):
            return _written(self.count + i, 1, region.width) + first
        if field == STORED:
            stored = [s for view in op.writes().values() for s in self.stored[view.buffer]]
            found = [s for s in stored if s.shape == (region.rows, region.width)]
            return found[0] if len(found) == 1 else None
        whole = self.before[i, field]
        if field.endswith(SCALES):
            whole = whole[None, :]
            return whole[:, first : first + region.width] if not field.startswith("w") else whole[:, : region.width]
        if isinstance(op, Transfer):
            return whole[:, column : column + region.width]
        whole = whole if field == "w" else whole[first : first + region.rows]
        return whole[: region.rows, : region.width]


class _Clocks:
    """What is sure to have finished when an instruction starts: per unit, how many instructions."""

    def __init__(self, size: int, origins: list[str]):
        self.writes, self.reads = (np.zeros((len(Unit), size), np.int32) for _ in range(2))
        self.starts: list[list[np.ndarray]] = [[] for _ in Unit]  # of every instruction of a unit
        self.numbers: list[list[int]] = [[] for _ in Unit]  # in the program
        self.origins = origins

    def _sure(self, insn: isa.Insn, number: int) -> np.ndarray:
        sure = np.zeros(len(Unit), np.int64)
        for unit in Unit:
            count = getattr(insn, f"wait_{unit.name.lower()}")
            if count > len(self.starts[unit]):
                raise Faulty(f"instruction {number} waits for {unit.name} {count}, which comes later")
            if count:
                sure = np.maximum(sure, self.starts[unit][count - 1])
                sure[unit] = max(sure[unit], count)
        return sure

    def check(self, insn: isa.Insn, number: int, reads: list[Access], writes: list[Access]) -> None:
        """Raise Faulty where an instruction does not wait for one that it conflicts with; count it."""
        unit = insn.unit
        assert unit is not None
        sure, started = self._sure(insn, number), self.starts[unit]
        if started:
            sure = np.maximum(sure, started[-1])
        need = np.zeros(len(Unit), np.int64)
        for field, region in reads:
            if field == KEPT:
                continue
            need = np.maximum(need, strided(self.writes, region).max(axis=(1, 2)))
        for _, region in writes:
            others = np.maximum(strided(self.writes, region).max(axis=(1, 2)), strided(self.reads, region).max(axis=(1, 2)))
            others[unit] = 0
            need = np.maximum(need, others)
        for other in Unit:
            if sure[other] < need[other]:
                earlier = self.numbers[other][need[other] - 1]
                raise Faulty(
                    f"instruction {number} ({self.origins[number]}) does not wait for {other.name} {need[other]}, instruction "
                    f"{earlier} ({self.origins[earlier]}), which touches the same place"
                )
        started.append(sure)
        self.numbers[unit].append(number)
        for table, accesses in ((self.reads, reads), (self.writes, writes)):
            for _, region in accesses:
                strided(table, region)[unit] = len(started)

    def end(self, insn: isa.Insn, number: int) -> None:
        """END waits for everything."""
        waits = [getattr(insn, f"wait_{unit.name.lower()}") for unit in Unit]
        if waits != [len(started) for started in self.starts]:
            raise Faulty(f"instruction {number}: END does not wait for everything")

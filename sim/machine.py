"""Executes a program with NumPy, instruction by instruction: the executable definition of `hwgen.isa`.

Every instruction is two events: it starts, when its wait counts are met, and reads; it finishes, and its results appear.
Units take their own instructions in order; which unit acts next is free, and `order` chooses it, so that a missing wait
count shows as a wrong result or a fault. Instructions reach the units through queues filled in program order. A walk
(`isa.WalkFields`) is no event of its own: its unit holds it for the next instruction, and no count knows of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from hwgen import isa
from hwgen import numerics as num
from hwgen.config import Config
from hwgen.counts import stream_beats
from hwgen.isa import ColScale, Convert, Indirect, RowMax, RowScale, Unit, WeightSource

from . import vector
from .narrow import expand
from .walked import DramFault, MachineFault, Write, walk_rows

Array = np.ndarray

WAITS = [(unit, f"wait_{unit.name.lower()}") for unit in Unit]
PRIORITIES = {
    "program": None,
    "eager": (Unit.LOAD, Unit.WEIGHTS, Unit.STORE, Unit.VECTOR, Unit.MATMUL),
    "lazy": (Unit.MATMUL, Unit.VECTOR, Unit.STORE, Unit.WEIGHTS, Unit.LOAD),
}


@dataclass
class Segment:
    """Weight words first..first+words of those that a Stream brings, uint8 [all its words, array_inputs]."""

    brought: Array
    first: int
    words: int


@dataclass
class _Started:
    """An instruction between its start and its finish, with what it will write."""

    index: int
    insn: isa.Insn
    writes: list[Write] = field(default_factory=list)
    queues: list[tuple[Array, Array]] | None = None  # a Route's new queues


class Machine:
    """State of one machine. `scratch`: int16, flat; `scale`: u16 [scale_entries]; `queues`: (tokens, gates) by expert."""

    def __init__(self, config: Config):
        self.config = config
        self.scratch = np.zeros(config.scratch_chunks * config.chunk, np.int16)
        self.scale = np.zeros(config.scale_entries, np.uint16)
        self.queues: list[tuple[Array, Array]] = [(np.zeros(0, np.int64),) * 2] * config.max_experts
        self.running_max: dict[RowMax, Array] = {}

    def run(
        self,
        dram: bytearray | Array,
        program_offset: int,
        instructions: int,
        data_base: int,
        weight_bases: list[int],
        observe: Callable[[int, isa.Insn, Machine], None] | None = None,
        order: str | int = "program",
    ) -> None:
        """Run a program to its END. `dram` (bytes, or uint8 array) is read and written in place; offsets count its bytes.

        observe(index, instruction, machine) is called when an instruction has finished, or is held (a walk). order:
        "program", "eager" (DRAM transfers as early as possible), "lazy" (as late as possible) or the seed of a random order.
        Raises MachineFault.
        """
        self.dram = np.frombuffer(dram, np.uint8) if isinstance(dram, bytearray) else dram
        self.data_base, self.weight_bases = data_base, weight_bases
        code = self.dram[program_offset : program_offset + instructions * isa.WORD_BYTES].tobytes()
        program = isa.disassemble(code)
        if not program or len(program) != instructions or not isinstance(program[-1], isa.End):
            raise MachineFault("a program ends with END")
        run = _Run(self, program, observe, order)
        try:
            run.to_end()
        except (LookupError, ValueError, OverflowError, ZeroDivisionError) as error:
            raise MachineFault(f"{isa.text(program[run.asked])}: {error}") from error

    # --- memories -----------------------------------------------------------------------------------------------

    def rows(self, address: int, pitch: int, rows: Array, columns: int) -> Array:
        """Indices into `scratch` of elements 0..columns of the given rows: int64 [rows, columns]."""
        starts = (address + np.asarray(rows, np.int64) * pitch) * self.config.chunk
        if starts.size and columns and not 0 <= starts.min() <= starts.max() + columns - 1 < self.scratch.size:
            raise MachineFault(f"scratchpad access from chunk {address} reaches beyond the end")
        return starts[:, None] + np.arange(columns)

    def read_place(self, address: int, pitch: int, rows: int, columns: Array) -> Array:
        """int16 [rows, len(columns)] from a buffer's place (hwgen.program.Place)."""
        start = (address + np.arange(rows) * pitch) * self.config.chunk
        return self.scratch[start[:, None] + columns]

    def scales(self, address: int, rows: Array) -> Array:
        """Indices into `scale` of these entries behind an address."""
        index = address + rows
        if index.size and index.max() >= self.scale.size:
            raise MachineFault(f"scale entry {index.max()} of {self.scale.size}")
        return index

    def _data_bytes(self, beats: int, size: int) -> slice:
        start = self.data_base + beats * self.config.axi_bytes
        if start + size > self.dram.size:
            raise DramFault(f"DRAM access at byte {start} reaches beyond the end")
        return slice(start, start + size)

    def stream(self, insn: isa.Stream) -> Array:
        """uint8 [words, array_inputs] of a Stream, put together from the ports' stripes."""
        config, lanes, count = self.config, self.config.axi_bytes, stream_beats(insn, self.config)
        if insn.narrow and (not config.narrow_weights or insn.narrow not in num.NARROW_BITS):
            raise MachineFault(f"weights of {insn.narrow} bits on a machine with narrow_weights={config.narrow_weights}")
        parts = []
        for base in self.weight_bases:
            start = base + insn.dram * lanes
            beats = self.dram[start : start + count * lanes].reshape(-1, lanes)
            if len(beats) != count:
                raise DramFault(f"weight words at byte {start} reach beyond the end of DRAM")
            if insn.narrow:
                beats = expand(config, beats, insn.words * config.slice_beats, insn.narrow)
            parts.append(beats.reshape(insn.words, config.slice_bytes))
        words = np.stack(parts, axis=1)
        return words.reshape(insn.words, -1)[:, : config.array_inputs]

    # --- instructions: each returns what it will write --------------------------------------------------------------

    def load(self, insn: isa.Load) -> list[Write]:
        """Chunks from DRAM to the scratchpad."""
        config, chunk, count = self.config, self.config.chunk, insn.rows * insn.chunks
        size = (config.narrow_chunk_beats if insn.narrow else config.chunk_beats) * config.axi_bytes
        data = self.dram[self._data_bytes(insn.dram, count * size)].reshape(count, size)
        data = np.ascontiguousarray(data[:, : chunk if insn.narrow else 2 * chunk])
        values = data.view(np.int8).astype(np.int16) << num.STATIC_SHIFT if insn.narrow else data.view("<i2")
        values = values.reshape(insn.rows, insn.chunks * chunk)
        return [(self.scratch, self.rows(insn.dst, insn.pitch, np.arange(insn.rows), insn.chunks * chunk), values)]

    def load_scales(self, insn: isa.LoadScales) -> list[Write]:
        """Row multipliers from DRAM to the scale memory."""
        values = self.dram[self._data_bytes(insn.dram, 2 * insn.count)].view("<u2").copy()
        return [(self.scale, self.scales(insn.dst, np.arange(insn.count)), values)]

    def store(self, insn: isa.Store) -> list[Write]:
        """Chunks from the scratchpad to DRAM, padding zero."""
        chunk, size = self.config.chunk, self.config.chunk_beats * self.config.axi_bytes
        index = self.rows(insn.src, insn.pitch, np.arange(insn.rows), insn.chunks * chunk)
        data = np.zeros((insn.rows * insn.chunks, size // 2), "<i2")
        data[:, :chunk] = self.scratch[index].reshape(-1, chunk)
        target = self._data_bytes(insn.dram, data.size * 2)
        return [(self.dram, np.arange(target.start, target.stop), data.view(np.uint8).reshape(-1))]

    def queue(self, expert: int, rows: int) -> tuple[Array, Array, int]:
        """(tokens, gates, R) of a Matmul: its expert's queue, or all rows."""
        if expert == isa.NO_EXPERT:
            return np.arange(rows), np.zeros(rows, np.int64), rows
        tokens, gates = self.queues[expert]
        return tokens, gates, len(tokens)

    def words_needed(self, insn: isa.Matmul, walk: isa.WalkFields | None = None) -> int:
        """Weight words that a Matmul pops, behind its walk if it has one."""
        config, words = self.config, 0
        if self.queue(insn.expert, insn.rows)[2] == 0 and not insn.discard:
            return 0
        tiles = -(-insn.inputs // config.array_inputs) if insn.w_source == WeightSource.STREAM else 0
        if walk is not None:
            tiles *= walk.kernel_u * walk.kernel_v
        for first in range(0, insn.outputs, config.array_outputs):
            n = min(config.array_outputs, insn.outputs - first)
            words += config.param_words(n) * (insn.col_source == ColScale.PARAMETERS) + n * tiles
        return words

    def matmul(self, insn: isa.Matmul, words: Array, fields: isa.WalkFields | None = None) -> list[Write]:
        """One product; `words` are the weight words it pops, `fields` the walk before it."""
        tokens, gates, count = self.queue(insn.expert, insn.rows)
        if insn.discard and insn.w_source == WeightSource.SCRATCHPAD:
            raise MachineFault("discard goes with streamed weights")
        if fields is not None:
            self._allow_walk(insn, fields)
        if count == 0:
            return []
        if count > self.config.acc_rows:
            raise MachineFault(f"{count} rows exceed the {self.config.acc_rows} rows of the accumulators")
        r = np.arange(count)
        x_rows = tokens if insn.indirect == Indirect.GATHER else r
        y_rows = tokens if insn.indirect == Indirect.SCATTER else r
        taps, inside = x_rows[None], np.ones((1, count), bool)
        if fields is not None:
            taps, inside, y_rows = walk_rows(fields, count)
        x_rows = taps[0]
        converted = [self._tap(insn, *rows) for rows in zip(taps, inside, strict=True)]
        x = np.concatenate([part[0] for part in converted], axis=1)
        _, row_mult, exponent = converted[0]
        weights, col_mult, bias = self._stationary(insn, words, len(taps))
        if insn.row_source != RowScale.CONVERTED:
            exponent = np.zeros(count, np.int64)
        if insn.row_source == RowScale.IMMEDIATE:
            row_mult = np.full(count, insn.row_mult)
        elif insn.row_source == RowScale.TABLE:
            row_mult = self.scale[self.scales(insn.x_scale, x_rows)].astype(np.int64)
        if col_mult is None or row_mult is None:
            raise MachineFault(f"{isa.text(insn)}: multipliers of operands that are converted with none")
        if insn.indirect == Indirect.SCATTER:
            row_mult = num.gated_scale(row_mult, gates)

        y = num.requantise(num.product(x, weights), col_mult, row_mult[:, None], insn.shift + exponent[:, None], bias)
        if insn.gelu != isa.Gelu.OFF:
            y = num.gelu(y, insn.gelu.name.lower(), insn.gelu_shift)
        if insn.residual:
            y = num.add_residual(self.scratch[self.rows(insn.res, insn.res_pitch, y_rows, insn.outputs)], y)
        padded = np.zeros((count, -(-insn.outputs // self.config.chunk) * self.config.chunk), np.int64)
        padded[:, : insn.outputs] = y
        writes = [(self.scratch, self.rows(insn.y, insn.y_pitch, y_rows, padded.shape[1]), padded)]
        if insn.y_max != RowMax.NONE:
            largest = num.row_max_abs(y) if insn.y_max == RowMax.ABS else y.max(axis=1).astype(np.int64)
            if insn.max_continue:
                largest = np.maximum(largest, self.running_max[insn.y_max][:count])
            self.running_max[insn.y_max] = largest
            kept = y_rows if fields is not None else r
            writes.append((self.scale, self.scales(insn.y_scale, kept), largest & num.U16_MAX))
        return writes

    def _allow_walk(self, insn: isa.Matmul, fields: isa.WalkFields) -> None:
        """MachineFault where a walk does not go with a Matmul."""
        if insn.expert != isa.NO_EXPERT or insn.indirect != Indirect.NONE:
            raise MachineFault("an expert's rows do not walk")
        taps = fields.kernel_u * fields.kernel_v
        one = insn.x_convert != Convert.STATIC or insn.row_source != RowScale.IMMEDIATE
        if taps != 1 and (one or insn.w_source == WeightSource.SCRATCHPAD):
            what = f"{insn.x_convert.name} conversion, {insn.row_source.name} row multipliers"
            raise MachineFault(f"{taps} taps with {what} or weights in the scratchpad")

    def _tap(self, insn: isa.Matmul, rows: Array, inside: Array) -> tuple[Array, Array | None, Array]:
        """Operands as `_converted` gives them; zero where a row is not inside the border."""
        x = self.scratch[self.rows(insn.x, insn.x_pitch, rows, insn.inputs)] * inside[:, None]
        x, row_mult, exponent = self._converted(x, insn.x_convert, insn.x_scale, rows)
        return x * inside[:, None], row_mult, exponent

    def _converted(self, x: Array, convert: Convert, scale: int, rows: Array) -> tuple[Array, Array | None, Array]:
        """int8 operands of int16 rows, the row multipliers they bring and the exponents of these."""
        none = np.zeros(len(rows), np.int64)
        if convert == Convert.STATIC:
            return num.quantise_static(x), None, none
        maxima = self.scale[self.scales(scale, rows)]
        if convert == Convert.ROW:
            return *num.quantise_rows(x, maxima), none
        p = num.probabilities(x, maxima.view(np.int16))
        return p, *num.reciprocal(p.sum(axis=1))

    def _stationary(self, insn: isa.Matmul, words: Array, taps: int) -> tuple[Array, Array | int, Array | int]:
        """(weights [outputs, taps * inputs], column multiplier, bias)."""
        o, i = self.config.array_outputs, self.config.array_inputs
        tiles = taps * -(-insn.inputs // i)
        weights = np.empty((insn.outputs, tiles * i), np.int8)
        pairs = np.empty((insn.outputs, 2), np.uint16)
        at = 0
        for first in range(0, insn.outputs, o):
            n = min(o, insn.outputs - first)
            if insn.col_source == ColScale.PARAMETERS:
                count = self.config.param_words(n)
                part = words[at : at + count, : 4 * self.config.params_per_word].reshape(-1, 4)
                pairs[first : first + n] = np.ascontiguousarray(part).view("<u2")[:n]
                at += count
            if insn.w_source == WeightSource.STREAM:
                tile = words[at : at + n * tiles].view(np.int8).reshape(tiles, n, i)
                weights[first : first + n] = tile.transpose(1, 0, 2).reshape(n, -1)
                at += n * tiles
        weights = weights.reshape(insn.outputs, taps, -1)[:, :, : insn.inputs].reshape(insn.outputs, -1)
        row_scales = None
        if insn.w_source == WeightSource.SCRATCHPAD:
            r = np.arange(insn.outputs)
            data = self.scratch[self.rows(insn.w, insn.w_pitch, r, insn.inputs)]
            weights, row_scales, _ = self._converted(data, insn.w_convert, insn.w_scale, r)
        if insn.col_source == ColScale.PARAMETERS:
            return weights, pairs[:, 0].astype(np.int64), pairs[:, 1].view(np.int16).astype(np.int64)
        return weights, insn.col_mult if insn.col_source == ColScale.IMMEDIATE else row_scales, 0


class _Run:
    """One program on one machine: dispatch, wait counts, the weight buffer, walks held for the next instruction."""

    def __init__(self, machine: Machine, program: list[isa.Insn], observe, order: str | int):
        self.machine, self.program, self.observe = machine, program, observe
        self.random = None if isinstance(order, str) else np.random.default_rng(order)
        self.priority = None if self.random else PRIORITIES[order]
        self.in_flight = 1 if order == "program" else 2
        self.next = self.asked = 0  # instruction to dispatch, and the one that was looked at last
        self.queues: dict[Unit, deque[int]] = {unit: deque() for unit in Unit}
        self.started: dict[Unit, deque[_Started]] = {unit: deque() for unit in Unit}
        self.done = dict.fromkeys(Unit, 0)
        self.segments: deque[Segment] = deque()  # in the weight buffer, or on the way there
        self.popped: list[Segment] = []  # taken by the next Matmul
        self.walks: dict[Unit, isa.WalkFields] = {}

    def to_end(self) -> None:
        while True:
            self._dispatch()
            events = [(unit, False) for unit in Unit if self._can_finish(unit)]
            events += [(unit, True) for unit in Unit if self._can_start(unit)]
            if not events:
                break
            unit, start = self._choose(events)
            (self._start if start else self._finish)(unit)
        end = self.program[self.next]
        if not (isinstance(end, isa.End) and self._met(end)) or any(self.queues.values()) or any(self.started.values()):
            heads = [f"{u.name} at {q[0]}: {isa.text(self.program[q[0]])}" for u, q in self.queues.items() if q]
            raise MachineFault(f"deadlock: {'; '.join(heads) or 'END waits'}; finished {list(self.done.values())}")
        for walk in self.walks.values():
            raise MachineFault(f"a walk is left over: {isa.text(walk)}")
        if self.segments:
            raise MachineFault(f"{sum(s.words for s in self.segments)} weight words are left over")
        if self.observe:
            self.observe(self.next, end, self.machine)

    def _dispatch(self) -> None:
        while not isinstance(self.program[self.next], isa.End):
            queue = self.queues[self.program[self.next].unit]
            if len(queue) == isa.QUEUE_DEPTH:
                return
            queue.append(self.next)
            self.next += 1

    def _choose(self, events: list[tuple[Unit, bool]]) -> tuple[Unit, bool]:
        if self.random:
            return events[self.random.integers(len(events))]
        if self.priority:  # results as late as possible
            return max(events, key=lambda event: (event[1], -self.priority.index(event[0])))
        return min(events, key=lambda event: (event[1], self.queues[event[0]][0] if event[1] else 0))

    def _met(self, insn: isa.Insn) -> bool:
        return all(self.done[unit] >= getattr(insn, name) for unit, name in WAITS)

    def _can_start(self, unit: Unit) -> bool:
        if not self.queues[unit]:
            return False
        self.asked = self.queues[unit][0]
        insn = self.program[self.asked]
        if isinstance(insn, isa.WalkFields):
            return True
        if len(self.started[unit]) == self.in_flight or not self._met(insn):
            return False
        if unit == Unit.WEIGHTS:
            return not self.started[unit]
        return unit != Unit.MATMUL or self._pop(self.machine.words_needed(insn, self.walks.get(unit)))

    def _pop(self, needed: int) -> bool:
        """Take weight words for the next Matmul as far as there are any; whether it has all it needs."""
        needed -= sum(segment.words for segment in self.popped)
        while needed and self.segments:
            head = self.segments[0]
            words = min(needed, head.words)
            self.popped.append(Segment(head.brought, head.first, words))
            head.first, head.words = head.first + words, head.words - words
            if not head.words:
                self.segments.popleft()
            needed -= words
        return not needed

    def _can_finish(self, unit: Unit) -> bool:
        if unit == Unit.WEIGHTS and sum(s.words for s in self.segments) > self.machine.config.weight_words:
            return False  # the rest waits in DRAM until a Matmul makes room
        return bool(self.started[unit])

    def _start(self, unit: Unit) -> None:
        index = self.asked = self.queues[unit].popleft()
        insn, machine = self.program[index], self.machine
        if isinstance(insn, isa.WalkFields):
            self._hold(unit, index, insn)
            return
        entry, walk = _Started(index, insn), self.walks.pop(unit, None)
        if walk is not None and isa.WALKS.get(type(insn)) is not type(walk):
            raise MachineFault(f"a walk before {isa.text(insn)}")
        match insn:
            case isa.Load():
                entry.writes = machine.load(insn)
            case isa.LoadScales():
                entry.writes = machine.load_scales(insn)
            case isa.Stream():
                if insn.words and machine.queue(insn.expert, 1)[2]:
                    self.segments.append(Segment(machine.stream(insn), 0, insn.words))
            case isa.Matmul():
                parts = [s.brought[s.first : s.first + s.words] for s in self.popped]
                words = np.concatenate(parts) if parts else np.empty((0, machine.config.array_inputs), np.uint8)
                self.popped = []
                entry.writes = machine.matmul(insn, words, walk)
            case isa.Norm():
                entry.writes = vector.norm(machine, insn)
            case isa.Multiply():
                entry.writes = vector.multiply(machine, insn)
            case isa.ReduceWindow():
                entry.writes = vector.reduce_window(machine, insn, walk)
            case isa.Select():
                entry.writes = vector.select(machine, insn)
            case isa.Scan():
                entry.writes = vector.scan(machine, insn)
            case isa.Route():
                entry.writes, entry.queues = vector.route(machine, insn)
            case isa.Store():
                entry.writes = machine.store(insn)
        self.started[unit].append(entry)

    def _hold(self, unit: Unit, index: int, walk: isa.WalkFields) -> None:
        """Keep a walk for the unit's next instruction."""
        if unit in self.walks:
            raise MachineFault(f"a walk behind a walk: {isa.text(walk)}")
        if any(getattr(walk, name) for _, name in WAITS):
            raise MachineFault(f"a walk that waits: {isa.text(walk)}")
        self.walks[unit] = walk
        if self.observe:
            self.observe(index, walk, self.machine)

    def _finish(self, unit: Unit) -> None:
        entry = self.started[unit].popleft()
        for memory, index, values in entry.writes:
            memory[index] = values
        if entry.queues is not None:
            self.machine.queues = entry.queues
        self.done[unit] += 1
        if self.observe:
            self.observe(entry.index, entry.insn, self.machine)

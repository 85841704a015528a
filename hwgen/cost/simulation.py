"""The run of a program in the cycle model: sequencer, queues, units and what they wait for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .. import isa
from ..config import Config
from ..counts import data_beats, expansion, expected, stream_beats, taps, walks, windows
from ..dram import Dram
from ..isa import Unit
from ..latency import FETCH_BATCH, MOST_BEATS, window_reads
from ..memories import FETCH_QUEUE, QUEUE_HEADS
from ..timeline import Span
from .events import Clock
from .matmul import MatmulUnit, banks, overlap
from .traffic import EXPANDER_STEPS, FIRST_WORD_STEPS, Traffic
from .units import LOAD_END_STEPS, LOAD_STEPS, STORE_STEPS, least_data_cycles, vector_cycles

DISPATCH = 2  # from the last count that an instruction waits for to its start
QUEUE_STEPS = 5  # through the queue of a unit
NEXT_STEPS = 5  # from an instruction's start to the next one's at the earliest
FETCH_STEPS = 12  # of a fetch, beside DRAM
WORD_STEPS = 1  # of the sequencer for an instruction, beside its beats
VECTOR_STEP = 16  # cycles of the vector unit from one look at its scratchpad bank to the next
BANK_STEP = 16.0  # the same of the store unit, and of a load
STORE_SHARE = 0.5  # of the cycles that the vector unit leaves a bank: a store that waits does not meet each of them
WRITE_GAP = 2  # of a written burst, for its address
LEAST = 1e-6  # of a chunk: less is the rounding of floats
STREAM_STEPS = 4  # of the weight stream, from an instruction's start to its end if it has nothing to wait for


@dataclass
class Estimate:
    """One run of a program. Cycles are floats: DRAM delivers fractions of a word per cycle."""

    cycles: float = 0.0
    spans: list[Span] = field(default_factory=list)
    array_active: int = 0  # cycles in which a row enters the array
    macs: int = 0  # products of real operands, padding excluded
    weight_bytes: int = 0  # read by the weight ports, padding included
    read_bytes: int = 0  # read by the data port, the program apart
    write_bytes: int = 0


def balanced(program: list[isa.Insn]) -> list[list[int]]:
    """Queue lengths for each Route if every expert got the same number of tokens: the guess where no image is known."""
    return [expected(insn) for insn in program if isinstance(insn, isa.Route)]


def estimate(program: list[isa.Insn], config: Config, dram: Dram, queues: Sequence[Sequence[int]] | None = None) -> Estimate:
    """Follow `program` from start to END.

    queues: for each Route in program order the number of tokens per expert; None: `balanced`. Raises ValueError for a
    program that cannot end.
    """
    return _Simulation(program, config, dram, balanced(program) if queues is None else queues).run()


class _Simulation:
    def __init__(self, program: list[isa.Insn], config: Config, dram: Dram, queues: Sequence[Sequence[int]]):
        self.program, self.config, self.dram, self.queues = program, config, dram, queues
        self.clock = Clock()
        self.traffic = Traffic(config, dram, self.clock)
        self.matmul = MatmulUnit(config, self.traffic, self.clock)
        self.result = Estimate()
        self.queue: dict[Unit, deque[int]] = {unit: deque() for unit in Unit}
        self.free = dict.fromkeys(Unit, True)
        self.checking = dict.fromkeys(Unit, False)
        self.done = dict.fromkeys(Unit, 0)
        self.fetched = self.asked = self.next = 0  # instructions
        self.ready_at = 0.0  # the next instruction's word is whole
        self.waiting = False  # the dispatcher has an event to come
        self.ended = False
        self.routes = [-1]  # Routes up to each instruction
        for insn in program:
            self.routes.append(self.routes[-1] + isinstance(insn, isa.Route))
        self.walks = walks(program)
        self.queued: dict[int, float] = {}  # when an instruction has come through its queue
        self.last_start = dict.fromkeys(Unit, 0.0)
        self.vector_banks, self.vector_share, self.vector_until = (0, 0), 0.0, -1.0  # what the vector unit takes of which banks
        self.made_banks, self.made_share = (0, 0), 0.0  # the same of what it writes

    def run(self) -> Estimate:
        self._fetch()
        self.clock.run()
        if not self.ended:
            raise ValueError(f"the program stops at instruction {self.next}: {isa.text(self.program[self.next])}")
        self.result.spans.sort(key=lambda span: span.index)
        self.result.array_active, self.result.macs = self.matmul.array_active, self.matmul.macs
        return self.result

    # --- sequencer --------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        """Ask for the next instructions while the queue has room."""
        batch = min(FETCH_BATCH, len(self.program) - self.asked)
        if batch and self.asked - self.next + FETCH_BATCH <= FETCH_QUEUE:
            self.asked += batch
            self.traffic.move(batch * isa.WORD_BYTES / self.config.axi_bytes, lambda: self._fetched(batch), fetch=True)
            self._fetch()

    def _fetched(self, batch: int) -> None:
        """A batch of instructions has come; they are handed on one after another, as they came in."""
        beats = isa.WORD_BYTES / self.config.axi_bytes

        def whole() -> None:
            self.fetched += 1
            self._dispatch()

        for i in range(batch):
            self.clock.at(self.clock.now + FETCH_STEPS - (batch - 1 - i) * beats, whole)

    def _dispatch(self) -> None:
        """Hand the next instruction to its unit's queue; one every few cycles, in program order."""
        if self.waiting or self.next >= self.fetched or self.ended:
            return
        if self.clock.now < self.ready_at:
            self._later(self.ready_at)
            return
        insn = self.program[self.next]
        if isinstance(insn, isa.End):
            if self._met(insn):
                self.ended = True
                self.result.cycles = self.clock.now + 1
            return
        queue = self.queue[insn.unit]
        if len(queue) >= isa.QUEUE_DEPTH + QUEUE_HEADS:
            return
        queue.append(self.next)
        self.queued[self.next] = self.clock.now + QUEUE_STEPS
        self.next += 1
        self.ready_at = self.clock.now + isa.WORD_BYTES / self.config.axi_bytes + WORD_STEPS
        self._fetch()
        if len(queue) == 1:
            self._check(insn.unit, QUEUE_STEPS)
        self._dispatch()

    def _later(self, time: float) -> None:
        self.waiting = True

        def again() -> None:
            self.waiting = False
            self._dispatch()

        self.clock.at(time, again)

    def _met(self, insn: isa.Insn) -> bool:
        return all(self.done[unit] >= getattr(insn, f"wait_{unit.name.lower()}") for unit in Unit)

    def _check(self, unit: Unit, delay: float = 0.0) -> None:
        """Start the head of a queue, `delay` cycles from now, if it may start."""
        if self.queue[unit] and self.free[unit] and not self.checking[unit] and self._met(self.program[self.queue[unit][0]]):
            self.checking[unit] = True
            self.free[unit] = False
            start = max(self.clock.now + delay, self.last_start[unit] + NEXT_STEPS)
            self.clock.at(start, lambda: self._start(unit))

    def _start(self, unit: Unit) -> None:
        self.checking[unit] = False
        self.last_start[unit] = self.clock.now
        index = self.queue[unit].popleft()
        self._dispatch()
        insn = self.program[index]
        if isinstance(insn, isa.WalkFields):  # its unit keeps it for the next instruction
            self.clock.at(self.clock.now + 1, lambda: self._idle(unit))
            return
        {
            Unit.LOAD: self._load,
            Unit.WEIGHTS: self._stream,
            Unit.MATMUL: self._matmul,
            Unit.VECTOR: self._vector,
            Unit.STORE: self._store,
        }[unit](index, insn)

    def _idle(self, unit: Unit) -> None:
        self.free[unit] = True
        self._check(unit)

    def _finished(self, unit: Unit) -> None:
        """One more instruction of a unit is finished: what waited for it may start."""
        self.done[unit] += 1
        for other in Unit:
            self._check(other, DISPATCH)
        self._dispatch()

    # --- units ------------------------------------------------------------------------------------------------------

    def _rows(self, index: int, insn: isa.Insn) -> int | None:
        """Length of the queue that an instruction works on; None if it names no expert."""
        if insn.expert == isa.NO_EXPERT:
            return None
        # A program whose experts outnumber the known queues is followed with empty ones.
        counts = self.queues[self.routes[index]] if self.routes[index] >= 0 else []
        return counts[insn.expert] if insn.expert < len(counts) else 0

    def _end(self, index: int, unit: Unit, start: float, end: float) -> None:
        """A span, the count at its end and the unit free one cycle later."""

        def action() -> None:
            self.result.spans.append(Span(index, unit, start, end, end))
            self._finished(unit)
            self.clock.at(end + 1, lambda: self._idle(unit))

        self.clock.at(end, action)

    def _load(self, index: int, insn: isa.Load | isa.LoadScales) -> None:
        start, beats = self.clock.now, data_beats(insn, self.config)
        self.result.read_bytes += beats * self.config.axi_bytes
        least = start + LOAD_STEPS + self.dram.latency + least_data_cycles(insn, self.config)
        left = [-(-beats // MOST_BEATS)]  # commands, cut so that the program's fetch comes in between, and its writes

        def arrived() -> None:
            left[0] -= 1
            if not left[0]:
                self._end(index, Unit.LOAD, start, max(self.clock.now, least) + LOAD_END_STEPS)

        def ask() -> None:
            for first in range(0, beats, MOST_BEATS):
                self.traffic.move(min(MOST_BEATS, beats - first), arrived)

        self.clock.at(start + LOAD_STEPS, ask)
        if isinstance(insn, isa.Load):
            left[0] += 1
            self.clock.at(start + LOAD_STEPS + self.dram.latency, lambda: self._written(insn, beats, arrived))

    def _written(self, insn: isa.Load, beats: int, done: Callable[[], None]) -> None:
        """What a load writes comes last at a scratchpad bank: it gets the cycles that array and vector unit leave."""
        target = banks(self.config, insn.dst, insn.pitch, insn.rows)
        chunks = insn.rows * insn.chunks

        def rate() -> float:
            taken = self.made_share if self.clock.now < self.vector_until and overlap(target, self.made_banks) else 0.0
            return min(chunks / max(beats, 1), 1 - taken)

        self._at_bank(chunks, lambda: self.matmul.writes_until(target), rate, done)

    def _at_bank(self, chunks: int, blocked: Callable[[], float], rate: Callable[[], float], done: Callable[[], None]) -> None:
        """`done` when so many chunks have gone through a scratchpad bank: none until `blocked`, `rate` of them a cycle after."""
        left = float(chunks)

        def go() -> None:
            nonlocal left
            if (end := blocked()) >= self.clock.now:
                self.clock.at(end + 1, go)
                return
            speed = rate()
            step = min(BANK_STEP, left / speed) if speed > 0 else BANK_STEP
            left -= step * speed
            self.clock.at(self.clock.now + step, go if left > LEAST else done)

        go()

    def _store(self, index: int, insn: isa.Store) -> None:
        """Its reads come last at a scratchpad bank, behind those of the vector unit too: it gets the cycles that these leave."""
        start, beats = self.clock.now, data_beats(insn, self.config)
        self.result.write_bytes += beats * self.config.axi_bytes
        source = banks(self.config, insn.src, insn.pitch, insn.rows)
        burst = self.config.burst_beats
        most = burst / (burst + WRITE_GAP) / self.config.chunk_beats  # chunks a cycle
        going = [1]  # its beats and its reads

        def done() -> None:
            if not going[0]:
                self._end(index, Unit.STORE, start, self.clock.now + STORE_STEPS)
            going[0] -= 1

        def rate() -> float:
            taken = self.vector_share if self.clock.now < self.vector_until and overlap(source, self.vector_banks) else 0.0
            return min(most, STORE_SHARE * (1 - taken) if taken else 1.0)

        self.traffic.write(beats + WRITE_GAP * (-(-beats // burst) - 1), done)
        self._at_bank(insn.rows * insn.chunks, lambda: self.matmul.reads_until(source), rate, done)

    def _vector(self, index: int, insn: isa.Norm | isa.Multiply | isa.ReduceWindow | isa.Select | isa.Route) -> None:
        """Its reads come last at a scratchpad bank: while rows stream from there it stands still, and so it does while the array
        writes where it writes itself."""
        walk = self.walks.get(index)
        start, cycles = self.clock.now, vector_cycles(insn, self.config, walk)
        columns = insn.experts if isinstance(insn, isa.Route) else insn.columns
        chunks = -(-columns // self.config.chunk)
        x_banks = banks(self.config, insn.x, insn.x_pitch, insn.rows)
        reads = deque([[insn.rows * chunks, x_banks]])  # chunks, their banks
        if isinstance(insn, isa.Multiply):  # the rows of both in turns
            factor_banks = banks(self.config, insn.factor, insn.factor_pitch, insn.rows)
            together = max(1, VECTOR_STEP // (chunks + insn.period))
            reads.clear()
            for first in range(0, insn.rows, together):
                rows = min(together, insn.rows - first)
                reads += [[rows * chunks, x_banks], [rows * insn.period, factor_banks]]
        elif isinstance(insn, isa.ReduceWindow):
            weights, blocks = taps(walk) * (insn.reduce == isa.Reduce.WEIGHTED), -(-chunks // self.config.window_chunks)
            reads[0][0] = window_reads(self.config, insn.rows, *windows(walk)) * blocks
            reads.appendleft([2 * chunks + weights * blocks, banks(self.config, insn.params, (2 + weights) * chunks, 1)])
        elif isinstance(insn, isa.Norm):
            reads.appendleft([2 * chunks, banks(self.config, insn.params, 2 * chunks, 1)])  # gamma and beta come first
        behind = cycles - sum(left for left, _ in reads)
        self.vector_share, self.vector_until = 1 - behind / cycles, float("inf")
        made = banks(self.config, insn.y, insn.y_pitch, insn.rows)
        self.made_banks, self.made_share = made, 0.0 if isinstance(insn, isa.Route) else insn.rows * chunks / cycles

        def read() -> None:
            left, wanted = reads[0]
            self.vector_banks = wanted
            blocked = max(self.matmul.reads_until(wanted), self.matmul.writes_until(made) if self.made_share else 0.0)
            if blocked >= self.clock.now:
                self.clock.at(blocked + 1, read)
                return
            step = min(VECTOR_STEP, left)
            reads[0][0] -= step
            if not reads[0][0]:
                reads.popleft()
            after = self.clock.now + step
            if reads:
                self.clock.at(after, read)
            else:
                self.vector_until = after + behind
                self._end(index, Unit.VECTOR, start, after + behind)

        read()

    def _stream(self, index: int, insn: isa.Stream) -> None:
        start = self.clock.now
        words = insn.words if self._rows(index, insn) != 0 else 0
        if not words:
            self._end(index, Unit.WEIGHTS, start, start + STREAM_STEPS)
            return
        beats, cycles = stream_beats(insn, self.config), expansion(insn, self.config)
        self.result.weight_bytes += beats * self.config.axi_bytes * self.config.weight_ports
        span = Span(index, Unit.WEIGHTS, start, start, start)
        self.result.spans.append(span)

        def arrived() -> None:
            span.end = span.issued = self.clock.now

        def asked() -> None:
            self._finished(Unit.WEIGHTS)
            self.clock.at(self.clock.now + 1, lambda: self._idle(Unit.WEIGHTS))

        def issue() -> None:
            first = FIRST_WORD_STEPS + EXPANDER_STEPS * self.config.narrow_weights
            self.traffic.stream(words, beats, cycles, start + self.dram.latency + first, arrived, asked)

        self.clock.at(start + STREAM_STEPS, issue)

    def _matmul(self, index: int, insn: isa.Matmul) -> None:
        start = self.clock.now
        rows = self._rows(index, insn)

        def done(end: float, issued: float, causes: dict[str, float]) -> None:
            self.result.spans.append(Span(index, Unit.MATMUL, start, end, issued, causes))
            self.clock.at(end, lambda: self._finished(Unit.MATMUL))

        rows = insn.rows if rows is None else rows
        walk = self.walks.get(index)
        self.matmul.start(insn, rows, self.queued[index], done, lambda: self._idle(Unit.MATMUL), walk)

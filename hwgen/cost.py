"""The cycle model: what each instruction costs on a Config, and how the decoupled units overlap.

`estimate` walks a program once and keeps one clock per unit. An instruction starts when its unit is free and its wait
counts are met; a Matmul is followed tile by tile, because its tiles load while the previous tile's rows stream and their
words come from a buffer that the weight stream fills as fast as DRAM allows. What it leaves out: scratchpad bank
conflicts, and that the data port shares DRAM with the weight stream.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from . import boards, isa
from .boards import Board
from .config import Config
from .intgraph import ColScale
from .rtl.accumulator import Accumulator
from .rtl.array import MacArray
from .rtl.issue import QUEUE_DEPTH as ISSUE_QUEUE
from .rtl.norm import norm_cycles
from .rtl.ports import READ_LATENCY
from .rtl.post import PostProcessor
from .rtl.reader import RowQuantiser, RowReader
from .rtl.router import route_cycles
from .rtl.sequencer import FETCH_QUEUE
from .traffic import array_rows, data_beats

# Steps of the control logic between the pipelines, whose latencies the units state.
TILE_STEPS = PARAMS_STEPS = 2  # of the tile loader, from a tile's last word to the next tile's, or its parameters', first
START_STEPS = 11  # from a job's acceptance to its first row at the issue stage
DISPATCH = 4  # from the last count that an instruction waits for to its start
VECTOR_STEPS = 2  # of the vector unit, around its norm or router
REQUEST_STEPS = 4  # of an AXI reader, from a burst's last beat to the next request in its place
NEVER = -1e9  # a time before every other


@dataclass(frozen=True)
class Memory:
    """DRAM as the accelerator sees it.

    bytes_per_cycle: of all ports together. latency: cycles from request to first beat. open: fraction of the time in
    which no refresh shuts it.
    """

    bytes_per_cycle: float
    latency: int = boards.DRAM_LATENCY
    open: float = 1.0


def memory_of(board: Board, config: Config) -> Memory:
    """The DRAM of a board at the Config's clock."""
    rate = board.dram_bytes_per_second / (config.clock_mhz * 1e6)
    return Memory(rate, open=1 - boards.REFRESH_US / boards.REFRESH_PERIOD_US)


@dataclass(frozen=True)
class Span:
    """When one instruction ran: cycles `start` to `end`; `rows` it worked on, of a Matmul; `index` in the program."""

    index: int
    unit: isa.Unit
    start: float
    end: float
    rows: int = 0


@dataclass
class Estimate:
    """One run of a program. Cycles are floats: DRAM delivers fractions of a word per cycle."""

    cycles: float = 0.0
    spans: list[Span] = field(default_factory=list)
    array_active: int = 0  # cycles in which a row enters the array
    stall_weights: float = 0.0  # cycles the array waits for a tile
    macs: int = 0  # products of real operands, padding excluded
    weight_bytes: int = 0  # read by the weight ports, padding included
    read_bytes: int = 0  # read by the data port
    write_bytes: int = 0

    def busy(self) -> dict[str, float]:
        """Cycles in which each unit works on at least one instruction."""
        totals = {unit.name.lower(): 0.0 for unit in isa.Unit}
        ends = dict.fromkeys(isa.Unit, 0.0)
        for span in self.spans:
            begin = max(span.start, ends[span.unit])
            totals[span.unit.name.lower()] += max(0.0, span.end - begin)
            ends[span.unit] = max(ends[span.unit], span.end)
        return totals


def post_entry(config: Config) -> int:
    """Cycles from the issue of a row to its sums' entry into the post-processor."""
    sums = RowReader.LATENCY + MacArray.latency_of(config) + Accumulator.LATENCY
    return READ_LATENCY + max(sums, RowReader.ROW_MULT_LATENCY)


def pipeline(config: Config) -> int:
    """Cycles from the issue of a Matmul's last row until its results are visible to every reader."""
    return post_entry(config) + PostProcessor.latency_of(config)


def beat_cycles(config: Config, memory: Memory, ports: int) -> float:
    """Cycles per beat where so many ports share DRAM: the bus's one, DRAM's share, or what the bursts in flight allow."""
    beat = max(1.0, config.axi_bytes * ports / memory.bytes_per_cycle) / memory.open
    turn = memory.latency + REQUEST_STEPS + config.burst_beats * beat
    return max(beat, turn / (config.outstanding * config.burst_beats))


def word_cycles(config: Config, memory: Memory) -> float:
    """Cycles per weight word: all ports read their slices of it at the same time."""
    return config.slice_beats * beat_cycles(config, memory, config.weight_ports)


def transfer_cycles(config: Config, memory: Memory, beats: int) -> float:
    """Cycles of `beats` on the data port, its latency included."""
    return memory.latency + beats * beat_cycles(config, memory, 1)


def vector_cycles(insn: isa.Insn, config: Config) -> int:
    """Cycles of a Norm or Route, from its acceptance to the next."""
    if isinstance(insn, isa.Norm):
        return VECTOR_STEPS + norm_cycles(config, insn.rows, insn.columns)
    return VECTOR_STEPS + route_cycles(config, insn.rows, insn.experts, insn.top_k, bool(insn.dense))


def balanced(program: list[isa.Insn]) -> list[list[int]]:
    """Queue lengths for each Route if every expert got the same number of tokens: the guess where no image is known."""
    lengths = []
    for insn in program:
        if isinstance(insn, isa.Route):
            tokens = insn.rows * insn.top_k
            lengths.append([(tokens * (e + 1)) // insn.experts - tokens * e // insn.experts for e in range(insn.experts)])
    return lengths


def estimate(
    program: list[isa.Insn], config: Config, memory: Memory, queues: list[list[int]] | None = None
) -> Estimate:
    """Follow `program` from start to END.

    queues: for each Route in program order the number of tokens per expert; None: `balanced`.
    """
    queues = balanced(program) if queues is None else queues
    model = _Timeline(config, memory)
    route = -1
    for index, insn in enumerate(program):
        if isinstance(insn, isa.Route):
            route += 1
        counts = queues[route] if route >= 0 else []
        model.step(index, insn, counts)
    return model.result


class _Timeline:
    """The clocks of the units while a program is followed."""

    def __init__(self, config: Config, memory: Memory):
        self.config, self.memory = config, memory
        self.result = Estimate()
        self.finish: dict[isa.Unit, list[float]] = {unit: [] for unit in isa.Unit}
        self.free = dict.fromkeys(isa.Unit, 0.0)
        self.stream = _WeightStream(config, memory)
        self.streams: list[tuple[int, float]] = []  # (index, start) of the Stream instructions
        # Last tile taken, last row made, last row issued, tile loader idle.
        self.taken = self.generated = self.issued = self.loader = NEVER
        self.tiles: deque[tuple[float, int]] = deque(maxlen=ISSUE_QUEUE + 1)
        self.bank_users = deque([NEVER, NEVER], maxlen=2)  # last row issued of the two latest output tiles
        depth = isa.QUEUE_DEPTH
        self.accepted: dict[isa.Unit, deque[float]] = {unit: deque([NEVER] * depth, maxlen=depth) for unit in isa.Unit}
        self.dispatched: deque[float] = deque([0.0] * FETCH_QUEUE, maxlen=FETCH_QUEUE)
        self.fetched = 0.0

    def dispatch(self, insn: isa.Insn) -> float:
        """When `insn` enters its unit's queue: fetched, everything before it dispatched, room in the queue."""
        beats = isa.WORD_BYTES // self.config.axi_bytes
        self.fetched = max(self.fetched + beats, self.dispatched[0] + self.memory.latency + beats)
        room = NEVER if insn.unit is None else self.accepted[insn.unit][0]
        self.dispatched.append(max(self.fetched, self.dispatched[-1] + 1, room + 1))
        return self.dispatched[-1]

    def waits(self, insn: isa.Insn) -> float:
        """When `insn` may start: dispatched, and the counts reached that it waits for."""
        ready = self.dispatch(insn) + DISPATCH
        for unit in isa.Unit:
            count = getattr(insn, f"wait_{unit.name.lower()}")
            if count:
                if unit == isa.Unit.WEIGHTS:
                    self.stream.settle(count)
                    done = self.stream.finished[count - 1]
                else:
                    done = self.finish[unit][count - 1]
                ready = max(ready, done + DISPATCH)
        return ready

    def step(self, index: int, insn: isa.Insn, counts: list[int]) -> None:
        ready = self.waits(insn)
        if isinstance(insn, isa.End):
            self.stream.settle()
            for (at, start), end in zip(self.streams, self.stream.finished, strict=True):
                self.result.spans.append(Span(at, isa.Unit.WEIGHTS, start, end))
            self.result.spans.sort(key=lambda span: span.index)
            self.result.cycles = max([ready, *(span.end for span in self.result.spans)])
            return
        expert = getattr(insn, "expert", isa.NO_EXPERT)
        # A program whose experts outnumber the known queues is followed with empty ones.
        rows = None if expert == isa.NO_EXPERT else (counts[expert] if expert < len(counts) else 0)
        if isinstance(insn, isa.Stream):
            words = insn.words if rows != 0 else 0
            start = max(ready, self.free[insn.unit])
            self.stream.push(start, words)
            self.free[insn.unit] = start + words * self.stream.rate
            self.streams.append((index, start))
            self.accepted[insn.unit].append(start)
            self.result.weight_bytes += words * self.config.slice_bytes * self.config.weight_ports
            return
        elif isinstance(insn, isa.Matmul):
            rows = insn.rows if rows is None else rows
            start, end = self.matmul(insn, rows, ready)
        else:
            start = max(ready, self.free[insn.unit])
            if isinstance(insn, (isa.Norm, isa.Route)):
                end = start + vector_cycles(insn, self.config)
            else:
                beats = data_beats(insn, self.config)
                end = start + transfer_cycles(self.config, self.memory, beats)
                side = "write_bytes" if isinstance(insn, isa.Store) else "read_bytes"
                setattr(self.result, side, getattr(self.result, side) + beats * self.config.axi_bytes)
            self.free[insn.unit] = end
            rows = insn.rows if hasattr(insn, "rows") else 0
        self.accepted[insn.unit].append(start)
        self.finish[insn.unit].append(end)
        self.result.spans.append(Span(index, insn.unit, start, end, rows))

    def matmul(self, insn: isa.Matmul, rows: int, ready: float) -> tuple[float, float]:
        """(acceptance by the tile loader, time at which every result is visible)."""
        c = self.config
        start = max(ready, self.loader)
        job = max(start + 1, self.generated + 1)  # the row issuer takes the next job when it has made the last row
        first_row = job + START_STEPS
        if rows == 0:
            self.loader = job + 1
            if insn.discard:
                tiles = -(-insn.inputs // c.array_inputs)
                blocks = -(-insn.outputs // c.array_outputs)
                words = insn.outputs * tiles + (blocks - 1) * c.param_words(c.array_outputs)
                words += c.param_words(insn.outputs - (blocks - 1) * c.array_outputs)
                # Between tiles and blocks the loader steps as it does when it loads.
                self.loader = self.stream.pop(words, job) + blocks * (tiles * TILE_STEPS + PARAMS_STEPS)
            self.generated = job + 1
            self.issue(max(self.issued + 1, first_row), 1)
            return start, self.issued + pipeline(c)
        streamed = insn.w_source == isa.WeightSource.STREAM
        path = 0 if streamed else READ_LATENCY + RowQuantiser.LATENCY
        time = job  # the tile loader's state before the next tile
        for left in range(insn.outputs, 0, -c.array_outputs):
            columns = min(c.array_outputs, left)
            time = max(time, self.taken, self.bank_users[0] + post_entry(c) + PostProcessor.USED_LATENCY) + PARAMS_STEPS
            if insn.col_source == ColScale.PARAMETERS:
                time = self.stream.pop(c.param_words(columns), time)
            for tile in range(0, insn.inputs, c.array_inputs):
                time = (max(time, self.taken) + TILE_STEPS) if tile else time + 1
                loaded = self.stream.pop(columns, time) if streamed else time + columns + path
                free = max(self.issued + 1, first_row)
                self.result.stall_weights += max(0.0, loaded - free)
                self.result.array_active += rows
                self.issue(max(loaded, free), rows)
                time = loaded
            self.bank_users.append(self.issued)
        self.loader = time + 1
        self.generated = max(job + array_rows(insn, c, rows), self.issued_before(ISSUE_QUEUE))
        self.result.macs += rows * insn.inputs * insn.outputs
        return start, self.issued + pipeline(c)

    def issue(self, taken: float, rows: int) -> None:
        """A tile is taken and its rows go, one a cycle."""
        self.taken = taken
        self.issued = taken + rows - 1
        self.tiles.append((taken, rows))

    def issued_before(self, count: int) -> float:
        """When the row went that is `count` rows before the latest."""
        for taken, rows in reversed(self.tiles):
            if count < rows:
                return taken + rows - 1 - count
            count -= rows
        return NEVER


class _WeightStream:
    """The weight buffer: words arrive at `rate` cycles each, as far ahead as it has room, and are popped in order."""

    def __init__(self, config: Config, memory: Memory):
        self.rate = word_cycles(config, memory)
        self.latency = memory.latency
        self.depth = config.weight_words
        self.pending: deque[list] = deque()  # [arrival of its first word at the earliest, words left]
        self.finished: list[float] = []  # per Stream instruction: its last word is in the buffer
        self.arrived = NEVER
        self.words = 0  # arrived so far
        self.arrivals: deque[tuple[int, float]] = deque()  # (words arrived so far, when), oldest first
        self.popped = 0
        self.pops: deque[tuple[int, float]] = deque()  # (words popped so far, when), oldest first

    def push(self, start: float, words: int) -> None:
        """A Stream instruction that begins at `start`."""
        self.pending.append([start + self.latency, words])

    def pop(self, words: int, time: float) -> float:
        """Take `words`, one a cycle, from `time` on; returns when the last is out."""
        self.popped += words
        while self.words < self.popped and self.pending:
            self._arrive(self.popped - self.words)
        while self.arrivals and self.arrivals[0][0] < self.popped:
            self.arrivals.popleft()
        arrived = NEVER
        if self.arrivals:
            count, when = self.arrivals[0]
            arrived = when - (count - self.popped) * self.rate
        end = max(time + words, arrived + 1)
        self.pops.append((self.popped, end))
        return end

    def settle(self, streams: int | None = None) -> None:
        """Let the first `streams` Stream instructions finish (None: all)."""
        while self.pending and (streams is None or len(self.finished) < streams):
            self._arrive(self.pending[0][1])

    def _arrive(self, wanted: int) -> None:
        """Up to `wanted` words of the oldest Stream arrive."""
        earliest, left = self.pending[0]
        now = min(wanted, left)
        if now:
            self.arrived = max(self.arrived, earliest - self.rate) + now * self.rate
            self.words += now
            room = self.words - self.depth  # so many must have been popped before the last of them was asked for
            while self.pops and self.pops[0][0] < room:
                self.pops.popleft()
            if room > 0 and self.pops:
                self.arrived = max(self.arrived, self.pops[0][1] + self.latency)
            self.arrivals.append((self.words, self.arrived))
        if now == left:
            self.pending.popleft()
            self.finished.append(max(self.arrived, earliest))
        else:
            self.pending[0][1] = left - now

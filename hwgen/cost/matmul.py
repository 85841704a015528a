"""A Matmul in the cycle model, tile by tile: its tiles load while the previous tile's rows stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from .. import isa
from ..config import Config
from ..counts import taps
from ..isa import ColScale
from ..latency import ISSUE_QUEUE, PARAMS_USED, READ_SLOT, ROW_GAP, STATIONARY, WORDS_PER_CYCLE, pipeline, post_entry
from ..timeline import CAUSES
from ..walks import Walk
from .events import Clock
from .traffic import Traffic

# Steps of the control logic between the pipelines, whose latencies the units state.
TILE_STEPS = PARAMS_STEPS = 2  # of the tile loader, from a tile's last word to the next tile's, or its parameters', first
START_STEPS = 11  # from a job's acceptance to its first row at the issue stage
NEVER = -1e9  # a time before every other

Steps = Iterator[None]


def banks(config: Config, address: int, pitch: int, rows: int) -> tuple[int, int]:
    """First and last scratchpad bank of so many rows from a chunk address on."""
    return address // config.bank_chunks, (address + (rows - 1) * pitch) // config.bank_chunks


def overlap(a, b) -> bool:
    """Whether two ranges of banks have one in common."""
    return a[0] <= b[1] and b[0] <= a[1]


class MatmulUnit:
    """Tile loader and row issuer. `array_active`, `macs`: cycles with a row, products of real operands."""

    def __init__(self, config: Config, traffic: Traffic, clock: Clock):
        self.config, self.traffic, self.clock = config, traffic, clock
        # Last tile taken, last row made, last job whose rows are made, last row issued.
        self.taken = self.generated = self.begun = NEVER
        self.issued = -1.0
        self.tiles: deque[tuple[float, int]] = deque(maxlen=ISSUE_QUEUE + 1)
        # Rows of the latest tiles, and their residuals: first and last read, banks from, to.
        self.reads: deque[tuple[float, float, int, int]] = deque(maxlen=8)
        self.residuals: deque[tuple[float, float, int, int]] = deque(maxlen=4)  # among them those of residuals
        self.writes: deque[tuple[float, float, int, int]] = deque(maxlen=8)  # the same of rows that are made
        self.bank_users = deque([NEVER, NEVER], maxlen=2)  # last row issued of the two latest output tiles
        self.idle_at = NEVER  # the loader has finished its last instruction
        self.starved = 0.0  # cycles that the loader has waited for words since the last tile was taken
        self.causes = dict.fromkeys(CAUSES, 0.0)
        self.array_active = self.macs = 0
        self.depth = post_entry(config)
        self.pipeline = pipeline(config)
        self.ready = 0.0  # from when on the loader is to blame if no row goes
        self._resume: Steps | None = None

    def start(
        self,
        insn: isa.Matmul,
        rows: int,
        queued: float,
        done: Callable[[float, float, dict], None],
        idle: Callable[[], None],
        walk: isa.WalkFields | None = None,
    ) -> None:
        """Take an instruction now, behind its `walk`. queued: when it had come through the queue. done(end, last row issued,
        causes) once all its rows are on their way; `idle` when the tile loader takes the next one.
        """
        self._resume = self._run(insn, rows, queued, done, idle, walk)
        self._go()

    def _go(self) -> None:
        next(self._resume, None)

    def _until(self, time: float) -> bool:
        """Whether to wait: an event at `time` goes on."""
        if time <= self.clock.now:
            return False
        self.clock.at(time, self._go)
        return True

    def _pop(self, words: int, time: float) -> Steps:
        """Take `words` from the stream from `time` on."""
        if self._until(time):
            yield
        begin = self.clock.now
        self.traffic.pop(words, self._go)
        yield
        least = -(-words // WORDS_PER_CYCLE)
        if self._until(begin + least):
            yield
        self.starved += self.clock.now - begin - least

    def _run(self, insn: isa.Matmul, rows: int, queued: float, done, idle, walk: isa.WalkFields | None) -> Steps:
        c = self.config
        start = self.clock.now
        self.causes = dict.fromkeys(CAUSES, 0.0)
        # Since the last row the loader may have been discarding words; after that this instruction had to wait.
        free = self.issued + 1
        if start > free:
            idle_at = min(start, max(self.idle_at, free))
            self._wait(idle_at - free)
            queued = min(start, max(queued, idle_at))
            self.causes["other"] = queued - idle_at
            self.causes["depend"] = start - queued
        self.ready = max(start, free)
        # A job waits before the row issuer, which begins it when it has made the last row of the one before.
        time = max(start + 1, self.begun + 1)
        job = self.begun = max(time, self.generated + 1)
        first_row = job + START_STEPS
        if rows == 0:
            yield from self._empty(insn, time, job, first_row, done, idle)
            return
        streamed = insn.w_source == isa.WeightSource.STREAM
        path = 0 if streamed else READ_SLOT + STATIONARY
        x_banks, res_banks, y_banks = self._banks(insn, rows, walk)
        shared = not streamed and overlap(x_banks, banks(c, insn.w, insn.w_pitch, insn.outputs))
        residual = insn.residual and overlap(x_banks, res_banks)
        blocks = -(-insn.outputs // c.array_outputs)
        tiles = taps(walk) * -(-insn.inputs // c.array_inputs)
        for block in range(blocks):
            columns = min(c.array_outputs, insn.outputs - block * c.array_outputs)
            time = max(time, self.taken, self.bank_users[0] + self.depth + PARAMS_USED) + PARAMS_STEPS
            if insn.col_source == ColScale.PARAMETERS:
                yield from self._pop(c.param_words(columns), time)
                time = self.clock.now
            for tile in range(tiles):
                time = (max(time, self.taken) + TILE_STEPS) if tile else time + 1
                if streamed:
                    yield from self._pop(columns, time)
                    time = self.clock.now
                else:
                    if shared:  # rows go first: the loader reads when the last one has gone
                        time = max(time, self.issued + 1)
                    time = self._loaded(insn, time, columns) + path
                    if self._until(time):
                        yield
                free = max(self.issued + 1, first_row)
                if rows < ROW_GAP:
                    free = max(free, self.issued + ROW_GAP)
                taken, last = max(time, free), tile == tiles - 1
                own = max(0, rows - self.depth) if residual and last else 0
                self._issue(taken, rows, own + self._met(taken, rows, x_banks))
                self.reads.append((self.taken, self.issued, *x_banks))
                if last:
                    self.writes.append((self.taken + self.depth, self.issued + self.depth, *y_banks))
                if insn.residual and last:
                    self.reads.append((self.taken + self.depth, self.issued + self.depth, *res_banks))
                    self.residuals.append(self.reads[-1])
            self.bank_users.append(self.issued)
        total = rows * tiles * blocks
        self.generated = max(job + total, self._issued_before(ISSUE_QUEUE))
        self.macs += rows * taps(walk) * insn.inputs * insn.outputs
        done(self.issued + self.pipeline, self.issued, self.causes)
        if self._until(time + 1):
            yield
        self.idle_at = self.clock.now
        idle()

    def _empty(self, insn: isa.Matmul, time: float, job: float, first_row: float, done, idle) -> Steps:
        """An empty queue: a placeholder row, and words to discard."""
        c = self.config
        self.generated = job + 1
        self._issue(max(self.issued + 1, first_row), 1, 0)
        done(self.issued + self.pipeline, self.issued, self.causes)
        time += 1
        if insn.discard:
            for first in range(0, insn.outputs, c.array_outputs):
                columns = min(c.array_outputs, insn.outputs - first)
                if insn.col_source == ColScale.PARAMETERS:
                    yield from self._pop(c.param_words(columns), time + PARAMS_STEPS)
                for tile in range(-(-insn.inputs // c.array_inputs)):
                    yield from self._pop(columns, self.clock.now + (TILE_STEPS if tile else 1))
                time = self.clock.now
        if self._until(time):
            yield
        self.idle_at = self.clock.now
        idle()

    def _banks(self, insn: isa.Matmul, rows: int, walk: isa.WalkFields | None) -> tuple[tuple[int, int], ...]:
        """Banks of the streamed rows, of the residual rows and of the rows that are made."""
        x = y = np.array([0, rows - 1])
        if walk is not None:
            walked = Walk.of(walk, rows)
            x, y = np.maximum(walked.x_rows(), 0), walked.y_rows()  # beyond the border row 0 is read

        def used(address: int, pitch: int, indices: np.ndarray) -> tuple[int, int]:
            first, last = int(indices.min()), int(indices.max())
            return banks(self.config, address + first * pitch, pitch, last - first + 1)

        return used(insn.x, insn.x_pitch, x), used(insn.res, insn.res_pitch, y), used(insn.y, insn.y_pitch, y)

    def _loaded(self, insn: isa.Matmul, time: float, columns: int) -> float:
        """When so many stationary rows have been read from `time` on, one a cycle while no residual comes from their bank."""
        used = banks(self.config, insn.w, insn.w_pitch, insn.outputs)
        for begin, end, *others in self.residuals:
            if end >= time and begin < time + columns and overlap(others, used):
                columns -= max(0.0, begin - time)
                time = end + 1
        return time + columns

    def _met(self, taken: float, rows: int, used: tuple[int, int]) -> float:
        """How many residuals of the block before are still to be read from a bank of rows that go from `taken` on."""
        if not self.residuals:
            return 0
        begin, end, *others = self.residuals[-1]
        return min(rows, max(0, end - max(begin, taken) + 1)) if overlap(others, used) else 0

    def reads_until(self, wanted: tuple[int, int]) -> float:
        """Last cycle in which the rows that stream now read one of the banks `wanted`; NEVER if they do not."""
        return self._until_end(self.reads, wanted)

    def writes_until(self, wanted: tuple[int, int]) -> float:
        """The same of rows that are written into one of the banks."""
        return self._until_end(self.writes, wanted)

    def _until_end(self, spans: Iterable[tuple[float, float, int, int]], wanted: tuple[int, int]) -> float:
        now = self.clock.now
        ends = [end for begin, end, *used in spans if begin <= now <= end and overlap(used, wanted)]
        return max(ends, default=NEVER)

    def _issue(self, taken: float, rows: int, delayed: int) -> None:
        """A tile is taken and its rows go, one a cycle, `delayed` of the cycles apart."""
        self._wait(max(0.0, taken - self.ready))
        self.causes["active"] += rows
        self.causes["bank"] += delayed
        self.taken = taken
        self.issued = taken + rows + delayed - 1
        self.ready = self.issued + 1
        self.array_active += rows
        self.tiles.append((taken + delayed, rows))

    def _wait(self, cycles: float) -> None:
        """No row has gone for so long because the loader was at work, as far as it starved for want of words."""
        dram = min(cycles, self.starved)
        self.causes["dram"] += dram
        self.causes["tile"] += cycles - dram
        self.starved = 0.0

    def _issued_before(self, count: int) -> float:
        """When the row went that is `count` rows before the latest."""
        for taken, rows in reversed(self.tiles):
            if count < rows:
                return taken + rows - 1 - count
            count -= rows
        return NEVER

"""DRAM in the cycle model: the data port, both ways at once, and the weight stream as flows that share its bandwidth.

Between two events every flow has a constant rate. Bandwidth is shared as the simulated memory's rotating priority does:
a port takes what it wants, up to an equal share of what the others leave.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

from ..config import Config
from ..dram import CREDIT_BEATS, Dram
from ..latency import COMMANDS, WORDS_PER_CYCLE
from .events import Action, Clock

READ_STEPS = 8  # of a read of the data port, beside DRAM; those who read count them at its end, where it is answered
ASK_STEPS = 3  # from a place in the program's queue that is free to the fetch that asks for it: a load may come in between
REQUEST_STEPS = 4  # of an AXI reader, from a burst's last beat to the next request in its place
FIRST_WORD_STEPS = 13  # of the weight stream, from an instruction's start to its first word, beside DRAM's latency
EXPANDER_STEPS = 6  # more of them through the expander of narrow weights
FIFO_WORDS = 13  # of the weight buffer, beyond its RAM
NEVER = float("inf")
TINY = 1e-4  # of a word or beat: less is the rounding of floats, and counted as arrived


def port_rate(config: Config, dram: Dram) -> float:
    """Beats a cycle that one port reaches alone: the bus's one, the memory's, or what its bursts in flight allow.

    Where the latency is what counts, the memory has saved up enough for most of a burst when it comes.
    """
    beats, saved = dram.beats_per_cycle(config), CREDIT_BEATS * (config.weight_ports + 2)
    turn = dram.latency + REQUEST_STEPS + max(config.burst_beats, (config.burst_beats - saved) / beats)
    return min(beats, dram.open * min(1.0, config.outstanding * config.burst_beats / turn))


@dataclass
class _Command:
    """A read of the data port or a write, its beats not before `earliest`: a write's answer comes so much later instead."""

    left: float
    earliest: float
    arrived: Action


@dataclass
class _Segment:
    """Words of one Stream instruction that have not arrived; they do not before `earliest`."""

    left: float
    beats: float  # of each port for a word
    cycles: float  # of each port's expander for a word, at least
    earliest: float
    arrived: Action
    asked: Action | None  # until all words of the segments before it have been asked for


class Traffic:
    """Transfers of the data port, in order, and the weight stream with its buffer."""

    def __init__(self, config: Config, dram: Dram, clock: Clock):
        self.clock = clock
        self.ports, self.slice_beats = config.weight_ports, config.slice_beats
        self.total = dram.beats_per_cycle(config)
        self.port = port_rate(config, dram)
        # Words that are asked for ahead: the buffer's, and what the readers' queues hold.
        self.in_flight = config.outstanding * config.burst_beats  # beats
        self.buffered = config.weight_words + FIFO_WORDS
        self.latency = dram.latency
        self.data: deque[_Command] = deque()  # accepted reads, in order
        self.held = 0  # of them and of those before, which are not answered
        self.stores: deque[_Command] = deque()  # writes, of which the store unit has one at a time
        self.waiting: tuple[deque, deque] = (deque(), deque())  # (beats, action, when asked) of the program's fetch, of loads
        self.segments: deque[_Segment] = deque()
        self.level = 0.0  # words in the buffer
        self.wanted = 0.0  # words that the tile loader still wants to pop
        self.popped: Action | None = None
        self.since = 0.0
        self.data_rate = self.store_rate = self.arrival = self.pop_rate = 0.0
        self.version = 0

    # --- requests ---------------------------------------------------------------------------------------------------

    def move(self, beats: float, arrived: Action, fetch: bool = False) -> None:
        """Read `beats` through the data port; then `arrived`. A `fetch` of the program goes before others that wait."""
        self._advance()
        self.waiting[not fetch].append((beats, arrived, self.clock.now))
        self._accept()
        self._plan()

    def write(self, beats: float, sent: Action) -> None:
        """Write `beats` through the data port, beside what it reads; then `sent`."""
        self._advance()
        self.stores.append(_Command(beats, self.clock.now + self.latency, sent))
        self.clock.at(self.clock.now + self.latency, self._step)
        self._plan()

    def _accept(self) -> None:
        """Commands that the data port has room for."""
        while self.held < COMMANDS and any(self.waiting):
            self.held += 1
            fetches, loads = self.waiting
            late = bool(loads) and bool(fetches) and self.clock.now < fetches[0][2] + ASK_STEPS
            beats, arrived, _ = (loads if late or not fetches else fetches).popleft()
            earliest = self.clock.now + self.latency
            self.data.append(_Command(beats, earliest, arrived))
            self.clock.at(earliest, self._step)

    def _answered(self) -> None:
        """A read makes room for another one."""
        self._advance()
        self.held -= 1
        self._accept()
        self._plan()

    def stream(self, words: int, beats: int, cycles: float, earliest: float, arrived: Action, asked: Action) -> None:
        """`words` more into the weight buffer by so many beats of each port, a word in at least so many cycles, not before
        `earliest`; `arrived` when the last has come, `asked` when the readers have asked for all words before these.
        """
        self._advance()
        self.segments.append(_Segment(words, beats / words, cycles, earliest, arrived, asked))
        if earliest > self.clock.now:
            self.clock.at(earliest, self._step)
        self._plan()

    def pop(self, words: int, action: Action) -> None:
        """Take `words` from the buffer, WORDS_PER_CYCLE as far as there are any; then `action`."""
        self._advance()
        self.wanted, self.popped = words, action
        self._plan()

    # --- flows ------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._advance()
        self._plan()

    def _advance(self) -> None:
        """Move everything from the last event to now, and act where something is complete."""
        elapsed, self.since = self.clock.now - self.since, self.clock.now
        if elapsed > 0:
            if self.data:
                self.data[0].left -= self.data_rate * elapsed
            if self.stores:
                self.stores[0].left -= self.store_rate * elapsed
            if self.segments:
                self.segments[0].left -= self.arrival * elapsed
            self.wanted -= self.pop_rate * elapsed
            self.level = max(0.0, self.level + (self.arrival - self.pop_rate) * elapsed)
        if self.data and self.data[0].left <= TINY:
            self.clock.at(self.clock.now, self.data.popleft().arrived)
            self.clock.at(self.clock.now + READ_STEPS, self._answered)
        if self.stores and self.stores[0].left <= TINY:
            self.clock.at(self.clock.now, self.stores.popleft().arrived)
        if self.segments and self.segments[0].left <= TINY:
            segment = self.segments.popleft()
            self.level += segment.left  # no word is lost by rounding, or the last one would never come
            self.clock.at(self.clock.now, segment.arrived)
        if self.popped is not None and self.wanted <= TINY:
            self.level = max(0.0, self.level - self.wanted)
            self.wanted = 0.0
            self.clock.at(self.clock.now, self.popped)
            self.popped = None

    def _before_asked(self) -> float:
        """Words that must arrive until all before the latest segment are asked for."""
        ahead = self._ahead()
        room = max(0.0, min(ahead, self.buffered + ahead - self.level))
        return sum([segment.left for segment in islice(self.segments, len(self.segments) - 1)]) - room

    def _ahead(self) -> float:
        """Words that the readers ask for beyond what is in the buffer."""
        return self.in_flight / (self.segments[0].beats if self.segments else self.slice_beats)

    def _plan(self) -> None:
        """Rates from now on, and the time of the next change."""
        now, segments = self.clock.now, self.segments  # this is where the model spends its time
        before = NEVER
        if segments and segments[-1].asked is not None:
            before = self._before_asked()
            if before <= TINY:
                self.clock.at(now, segments[-1].asked)
                segments[-1].asked, before = None, NEVER
        capacity = self.buffered + self._ahead()
        full = self.level >= capacity - TINY
        empty = self.level <= TINY
        pop = float(WORDS_PER_CYCLE) if self.popped is not None else 0.0
        word = segments[0].beats if segments else float(self.slice_beats)  # beats of a port
        begun = bool(segments) and segments[0].earliest <= now + TINY
        most = min(self.port / word, 1 / segments[0].cycles) if begun else 0.0
        data, store = (self.port if q and q[0].earliest <= now + TINY else 0.0 for q in (self.data, self.stores))
        wanted = min(most, pop) if full else most
        self.data_rate, self.store_rate, share = self._shared(data, store, wanted * word)
        self.arrival = arrival = share / word
        self.pop_rate = pop_rate = min(pop, arrival) if empty else pop
        until = NEVER
        if self.data and self.data_rate > 0:
            until = self.data[0].left / self.data_rate
        if self.stores and self.store_rate > 0:
            until = min(until, self.stores[0].left / self.store_rate)
        if arrival > 0:
            until = min(until, segments[0].left / arrival)
            if before < NEVER:
                until = min(until, max(1.0, before / arrival))
        if pop_rate > 0:
            until = min(until, self.wanted / pop_rate)
        change = arrival - pop_rate
        if change > TINY and not full:
            until = min(until, (capacity - self.level) / change)
        elif change < -TINY and not empty:
            until = min(until, self.level / -change)
        self.version = version = self.version + 1
        if until < NEVER:
            self.clock.at(now + max(until, TINY), lambda: self.version == version and self._step())

    def _shared(self, data: float, store: float, weights: float) -> tuple[float, float, float]:
        """Beats a cycle of the data port's reads, of its writes and of each weight port, for what they want."""
        wants = [data, store] + [weights] * self.ports
        left, flows = self.total, len(wants)
        if sum(wants) <= left:
            return data, store, weights
        for want in sorted(wants):  # each what it wants, up to an equal share of what the smaller ones leave
            if want * flows > left:
                break
            left, flows = left - want, flows - 1
        most = left / max(flows, 1)
        return min(data, most), min(store, most), min(weights, most)

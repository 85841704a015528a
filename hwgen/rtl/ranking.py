"""A sort of scored items: what `select` ranks rows by."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from ..config import Config
from ..latency import DIGIT, PASSES, RAM
from ..memories import memories, selected_bits
from .common import delay, delay_valid
from .memory import Ram
from .small_memory import LutRam

DIGITS = 1 << DIGIT


class Ranking(Component):
    """items in the order numerics.ranked of their scores: the best first, those of equal scores as they came.

    Radix sort: PASSES passes over the list, from one RAM into the other and back, each item to the next place of its digit.
    The sort is stable and rises; its keys are the scores' complements. What comes and every pass count the digits of
    the next pass; a sweep over the digits turns their counts into places, and clears them.

    Parameters: config, with select_rows. Ports: start (strobe); i_valid, i_ready, i_score, i_item, i_last (at least one item, at
    most select_rows); done (strobe: the list can be read); index, o_item: an item of the list RAM cycles after its index,
    until the next start.
    Cycles from start, and from the last item to done: latency.DIGIT_SWEEP, and PASSES passes of `latency.SELECT_PASS` and one
    for each item. Cost: two RAMs of select_rows words, LUT RAM of twice DIGITS counts.
    """

    def __init__(self, config: Config):
        self.config = config
        self.bits = (config.select_rows - 1).bit_length()
        self.entry = data.StructLayout({"key": 16, "item": selected_bits(config)})
        super().__init__(
            {
                "start": In(1),
                "i_valid": In(1),
                "i_ready": Out(1),
                "i_score": In(16),
                "i_item": In(selected_bits(config)),
                "i_last": In(1),
                "done": Out(1),
                "index": In(self.bits),
                "o_item": Out(selected_bits(config)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        turn = Signal(range(PASSES + 1))  # 0: items come; then the passes
        sweeping, sweeps = Signal(), Signal()  # sweeps: ends
        last = self.items(m, turn, sweeping, sweeps)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += turn.eq(0)
                with m.If(self.start):
                    m.next = "SWEEP"
            with m.State("SWEEP"):
                m.d.comb += sweeping.eq(1)
                with m.If(sweeps):
                    m.next = "ITEMS"
            with m.State("ITEMS"):
                m.d.comb += self.i_ready.eq(turn == 0)
                with m.If(last):
                    m.d.sync += turn.eq(turn + 1)
                    m.next = "SWEEP"
                    with m.If(turn == PASSES):
                        m.next = "DONE"
            with m.State("DONE"):  # while the last one is written
                m.d.comb += self.done.eq(1)
                m.next = "IDLE"
        return m

    def items(self, m: Module, turn: Signal, sweeping: Signal, sweeps: Signal) -> Signal:
        """What comes and what a pass reads: into registers, then to its place in a list. Returns a strobe: the last is there."""
        lists = [Ram.of(memories(self.config)["selection"]) for _ in range(2)]
        m.submodules.even, m.submodules.odd = lists
        at, end, reading = Signal(self.bits), Signal(self.bits), Signal()  # entries of a list: the next one, the last one
        comes = Signal()
        m.d.comb += [comes.eq(self.i_valid & self.i_ready), self.o_item.eq(data.View(self.entry, lists[0].read_data).item)]
        with m.If(sweeping):
            m.d.sync += [at.eq(0), reading.eq(sweeps & (turn != 0))]
        with m.Else():
            m.d.sync += at.eq(at + (comes | reading))
            with m.If(at == end):
                m.d.sync += reading.eq(0)
        with m.If(comes):
            m.d.sync += end.eq(at)

        # --- an item in registers -------------------------------------------------------------------------------------
        read, chosen = (Signal(self.entry, name=name) for name in ("read", "chosen"))
        item = Signal(self.entry, reset_less=True)
        entry, digit, next_digit = Signal(self.bits, reset_less=True), Signal(DIGIT), Signal(DIGIT)
        valid, last = Signal(), Signal()
        incoming = turn == 0
        m.d.comb += [
            read.eq(Mux(turn[0], lists[0].read_data, lists[1].read_data)),
            chosen.key.eq(Mux(incoming, self.i_score ^ 0x7FFF, read.key)),
            chosen.item.eq(Mux(incoming, self.i_item, read.item)),
        ]
        m.d.sync += [
            item.eq(chosen),
            entry.eq(at),
            digit.eq(read.key.word_select((turn - 1)[:2], DIGIT)),
            next_digit.eq(chosen.key.word_select(turn[:2], DIGIT)),
            valid.eq(comes | delay_valid(m, reading, RAM, "came")),
            last.eq(Mux(incoming, comes & self.i_last, delay_valid(m, reading & (at == end), RAM, "came_last"))),
        ]

        # --- and at its place -----------------------------------------------------------------------------------------
        place = self.places(m, valid, digit, next_digit, sweeping, sweeps)
        write, placed = Signal(2), Signal(self.bits, reset_less=True)
        m.d.sync += [placed.eq(Mux(incoming, entry, place)), write.eq(Cat(valid & ~turn[0], valid & turn[0]))]
        written = delay(m, item, 1, "written")
        for k, ram in enumerate(lists):
            m.d.comb += [
                ram.read_addr.eq(Mux(reading, at, self.index)),
                ram.write_addr.eq(placed),
                ram.write_data.eq(written),
                ram.write_enable.eq(write[k]),
            ]
        return last

    def places(self, m: Module, valid: Signal, digit: Signal, next_digit: Signal, sweeping: Signal, sweeps: Signal) -> Signal:
        """The next place of `digit`, which `valid` takes; the digits to come are counted. `sweeps` ends a sweep."""
        counts, places = (LutRam(m, DIGITS, self.bits, name) for name in ("counts", "places"))
        step, total = Signal(DIGIT), Signal(self.bits)  # a count of all items is 0, and no other digit has a place then
        m.d.comb += sweeps.eq(sweeping & (step == DIGITS - 1))
        at = [Signal(DIGIT, name=name) for name in ("counted", "placed")]
        m.d.comb += [at[0].eq(Mux(sweeping, step, next_digit)), at[1].eq(Mux(sweeping, step, digit))]
        count, place = counts.read(at[0]), places.read(at[1])
        m.d.sync += [step.eq(Mux(sweeping, step + 1, 0)), total.eq(Mux(sweeping, total + count, 0))]
        m.d.comb += [
            counts.write_data.eq(Mux(sweeping, 0, count + 1)),
            places.write_data.eq(Mux(sweeping, total, place + 1)),
        ]
        for addr, ram in zip(at, (counts, places), strict=True):
            m.d.comb += [ram.write_addr.eq(addr), ram.write_enable.eq(valid | sweeping)]
        return place

"""A queue in a RAM with registered output."""

from __future__ import annotations

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from ..memories import Memory
from .claims import claim, claim_counter, claim_order, proves
from .common import counter, delay_valid
from .memory import RAM_LATENCY, Ram

FULL_RATE = 4  # lookahead that hides the RAM's latency: one word a cycle


class RamFifo(Component):
    """First in, first out, `depth` words of `width` bits in a Ram.

    Parameters: width in bits, depth (power of two), RAM style, lookahead: registers that hold the next words, 1 for a
    word every 4 cycles, FULL_RATE for a word every cycle. Takes at least `depth` words before it refuses one; `counted`:
    never refuses one, whoever pushes counts what is in it.
    Ports: i (stream in), o (stream out). Latency: 4 cycles through an empty queue.
    Cost: the RAM and (1 + lookahead) * width flip-flops, most of the first in the RAM.
    """

    def __init__(self, width: int, depth: int, style: str = "auto", lookahead: int = FULL_RATE, counted: bool = False):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"RamFifo depth={depth} is not a power of two")
        if lookahead not in (1, 2, 4):
            raise ValueError(f"RamFifo lookahead={lookahead} is not 1, 2 or 4")
        self.width, self.depth, self.style, self.lookahead, self.counted = width, depth, style, lookahead, counted
        super().__init__({"i": In(stream.Signature(width)), "o": Out(stream.Signature(width))})

    @classmethod
    def of(cls, memory: Memory) -> RamFifo:
        """A queue in one of the design's memories, a word every cycle."""
        return cls(memory.width, memory.depth, memory.style)

    def words(self, platform) -> Signal:
        """How many words are inside, for claims: on a platform that proves."""
        return platform.shown(self, "words", range(self.depth + self.lookahead + 1))

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(self.depth, self.width, style=self.style)
        push, fetch, pop = Signal(), Signal(), Signal()
        write_at, read_at = Signal(range(self.depth)), Signal(range(self.depth))
        in_ram, stored, full = counter(m, push, fetch, self.depth, "stored")
        # Registers neither filled nor promised.
        free, room, _ = counter(m, pop, fetch, self.lookahead, "room", init=self.lookahead)
        m.d.comb += [
            self.i.ready.eq(1 if self.counted else ~full),
            push.eq(self.i.valid & self.i.ready),
            fetch.eq(stored & room),
            pop.eq(self.o.valid & self.o.ready),
            ram.write_addr.eq(write_at),
            ram.write_data.eq(self.i.payload),
            ram.write_enable.eq(push),
            ram.read_addr.eq(read_at),
        ]
        m.d.sync += [
            write_at.eq(write_at + push),
            read_at.eq(read_at + fetch),
        ]

        first = delay_valid(m, fetch, 1, "reading")
        arrived = delay_valid(m, first, RAM_LATENCY - 1, "arriving")
        ahead = [Signal(self.width, name=f"ahead_{i}", reset_less=True) for i in range(self.lookahead)]
        in_ahead, held, _ = counter(m, arrived, pop, self.lookahead, "held")
        m.d.comb += self.o.valid.eq(held)
        fill_at, take_at = Const(0, 0), Const(0, 0)  # of a single word: no wire without bits in the Verilog
        if self.lookahead > 1:
            fill_at, take_at = Signal(range(self.lookahead), name="fill_at"), Signal(range(self.lookahead), name="take_at")
            m.d.sync += [fill_at.eq(fill_at + arrived), take_at.eq(take_at + pop)]
        for i, word in enumerate(ahead):
            with m.If(arrived & (fill_at == i)):
                m.d.sync += word.eq(ram.read_data)
        m.d.comb += self.o.payload.eq(Array(ahead)[take_at])

        claim_counter(m, platform, (in_ram, stored, full), self.depth)
        claim(m, platform, ~push | ~full)
        claim(
            m, platform, room == (free != 0), held == (in_ahead != 0), in_ahead + arrived + first + free == self.lookahead,
            (write_at - read_at - in_ram)[: len(write_at)] == 0, (fill_at - take_at - in_ahead)[: len(fill_at)] == 0,
        )  # fmt: skip
        on_the_way = in_ahead + arrived + first
        if proves(platform):
            m.d.comb += self.words(platform).eq(in_ram + on_the_way)
        if inside := claim_order(m, platform, self.i, self.o, self.depth + self.lookahead):
            place, made = inside.ahead, platform.opened(ram)
            found = Mux(
                place < in_ahead,
                Array(ahead)[(take_at + place)[: len(take_at)]],
                Mux(
                    place < on_the_way,
                    Mux(arrived & (place == in_ahead), made.second, made.first),
                    Array(made.rows)[(read_at + place - on_the_way)[: len(read_at)]],
                ),
            )
            claim(m, platform, inside.held == on_the_way + in_ram, ~inside.there | (found == inside.word))
        return m

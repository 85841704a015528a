"""A queue in a RAM with registered output."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from ..memories import Memory
from .common import counter, delay_valid
from .memory import RAM_LATENCY, Ram

FULL_RATE = 4  # lookahead that hides the RAM's latency: one word a cycle


class RamFifo(Component):
    """First in, first out, `depth` words of `width` bits in a Ram.

    Parameters: width in bits, depth (power of two), RAM style, lookahead: registers that hold the next words, 1 for a
    word every 4 cycles, FULL_RATE for a word every cycle. Takes at least `depth` words before it refuses one.
    Ports: i (stream in), o (stream out). Latency: 4 cycles through an empty queue.
    Cost: the RAM and (1 + lookahead) * width flip-flops, most of the first in the RAM.
    """

    def __init__(self, width: int, depth: int, style: str = "auto", lookahead: int = FULL_RATE):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"RamFifo depth={depth} is not a power of two")
        if lookahead not in (1, 2, 4):
            raise ValueError(f"RamFifo lookahead={lookahead} is not 1, 2 or 4")
        self.width, self.depth, self.style, self.lookahead = width, depth, style, lookahead
        super().__init__({"i": In(stream.Signature(width)), "o": Out(stream.Signature(width))})

    @classmethod
    def of(cls, memory: Memory) -> RamFifo:
        """A queue in one of the design's memories, a word every cycle."""
        return cls(memory.width, memory.depth, memory.style)

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(self.depth, self.width, style=self.style)
        push, fetch, pop = Signal(), Signal(), Signal()
        write_at, read_at = Signal(range(self.depth)), Signal(range(self.depth))
        _, stored, full = counter(m, push, fetch, self.depth, "stored")
        # Registers neither filled nor promised.
        _, room, _ = counter(m, pop, fetch, self.lookahead, "room", init=self.lookahead)
        m.d.comb += [
            self.i.ready.eq(~full),
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

        arrived = delay_valid(m, fetch, RAM_LATENCY, "arriving")
        ahead = [Signal(self.width, name=f"ahead_{i}", reset_less=True) for i in range(self.lookahead)]
        _, held, _ = counter(m, arrived, pop, self.lookahead, "held")
        m.d.comb += self.o.valid.eq(held)
        if self.lookahead == 1:
            with m.If(arrived):
                m.d.sync += ahead[0].eq(ram.read_data)
            m.d.comb += self.o.payload.eq(ahead[0])
            return m
        fill_at, take_at = Signal(range(self.lookahead)), Signal(range(self.lookahead))
        m.d.sync += [fill_at.eq(fill_at + arrived), take_at.eq(take_at + pop)]
        for i, word in enumerate(ahead):
            with m.If(arrived & (fill_at == i)):
                m.d.sync += word.eq(ram.read_data)
        m.d.comb += self.o.payload.eq(Array(ahead)[take_at])
        return m

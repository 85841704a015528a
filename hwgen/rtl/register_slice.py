"""A stream through registers, so that neither side's logic hangs on the other's."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream
from amaranth.lib.wiring import Component, In, Out

from .claims import claim, claim_order
from .common import WIDE


class RegisterSlice(Component):
    """o = i a cycle later, one a cycle: with two places for words no `ready` depends on another one.

    Parameters: shape of a word. Ports: i, o (streams); i.ready, o.valid and o.payload are registers; coming (combinational:
    o.valid in the next cycle, for who decides a cycle ahead of `o.ready`).
    While o.valid is low nothing is in it. Cost: two registers and a multiplexer for a word.
    """

    def __init__(self, shape):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape)), "coming": Out(1)})

    def elaborate(self, platform):
        m = Module()
        full, free = Signal(attrs=WIDE), Signal()  # full: o.valid as well
        spare = Signal.like(self.i.payload, name="spare", reset_less=True)
        m.d.comb += [self.i.ready.eq(~full), free.eq(~self.o.valid | self.o.ready)]
        m.d.comb += self.coming.eq(Mux(free, full | self.i.valid, self.o.valid))
        m.d.sync += self.o.valid.eq(self.coming)
        with m.If(free):
            m.d.sync += full.eq(0)
            m.d.sync += self.o.payload.eq(Mux(full, spare, self.i.payload))
        with m.Elif(self.i.valid):
            m.d.sync += full.eq(1)
        with m.If(~full):
            m.d.sync += spare.eq(self.i.payload)
        claim(m, platform, ~full | self.o.valid)
        if inside := claim_order(m, platform, self.i, self.o, 2):
            second = inside.there & (inside.ahead == 1)
            claim(m, platform, inside.held == self.o.valid + full, ~second | (Value.cast(spare) == inside.word))
        return m

"""A block of scratchpad chunks, as Load and Store name it."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from .ports import ADDRESS_BITS
from .walk import Walk


class Block(Component):
    """for r < rows: for c < chunks: addr = first + r*pitch + c, the next one after each `step`.

    Ports: start (takes first, rows, chunks, pitch); loaded (strobe, 2 cycles later; total, more and addr hold from then
    on), total = rows*chunks, more (addr is one of the block), addr, step (only with more).
    Cost: a 16x16 multiplier.
    """

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "first": In(ADDRESS_BITS),
                "rows": In(16),
                "chunks": In(16),
                "pitch": In(16),
                "loaded": Out(1),
                "total": Out(32),
                "more": Out(1),
                "addr": Out(ADDRESS_BITS),
                "step": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        walk = Walk("block")
        rows, chunks, pitch = (Signal(16, name=f"{n}_held", reset_less=True) for n in ("rows", "chunks", "pitch"))
        column, left = Signal(16, reset_less=True), Signal(32)
        multiply, last, more, some = Signal(), Signal(), Signal(), Signal(reset_less=True)
        product = rows * chunks
        m.d.comb += [last.eq(column + 1 == chunks), self.more.eq(more), self.addr.eq(walk.addr)]
        m.d.sync += [multiply.eq(self.start), self.loaded.eq(multiply)]
        with m.If(self.start):
            m.d.sync += some.eq((self.rows != 0) & (self.chunks != 0))
            m.d.sync += [column.eq(0), rows.eq(self.rows), chunks.eq(self.chunks), pitch.eq(self.pitch)]
            m.d.sync += walk.start(self.first, self.pitch)
        with m.Elif(multiply):
            m.d.sync += [self.total.eq(product), left.eq(product), more.eq(some)]
        with m.Elif(self.step):
            m.d.sync += [left.eq(left - 1), more.eq(left != 1), column.eq(Mux(last, 0, column + 1))]
            m.d.sync += walk.step(last, pitch)
        return m

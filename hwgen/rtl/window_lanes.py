"""Taps joined, in lanes as wide as the window engine's reads."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, Signature

from .. import latency
from ..config import Config
from ..isa import WINDOW_TAPS, Reduce
from ..numerics import STATIC_SHIFT, WINDOW_SUM_BITS
from . import ports
from .booth import booth
from .common import WIDE, delay, delay_valid, register
from .shared import Shared, place
from .small_memory import LutRam
from .window_reads import TAP, WEIGHT, read_tag

WEIGHT_BITS = 8


class WindowLane(Shared):
    """An element of a read: its tap times its weight, joined to the total, which is held when a row is done.

    Ports: x, inside, weight (of a tap; beyond the border it is zero), weighted (held; else the weight is one); PRODUCT cycles
    later take, or compare (take it if it is larger), fresh (it replaces the total), and a cycle later done; hold, from the
    next cycle on.
    Cost: about 130 LUTs.
    """

    MODULE = "hwgen_window_lane"
    PRODUCT = 1 + WEIGHT_BITS // 2

    @staticmethod
    def ports(config: Config) -> Signature:
        return Signature(
            {
                "x": In(ports.ELEMENT),
                "inside": In(1),
                "weight": In(signed(WEIGHT_BITS)),
                "weighted": In(1),
                "take": In(1),
                "compare": In(1),
                "fresh": In(1),
                "done": In(1),
                "hold": Out(signed(WINDOW_SUM_BITS)),
            }
        )

    def __init__(self, config: Config):
        super().__init__(self.ports(config))

    def elaborate(self, platform):
        m = Module()
        value = register(m, Mux(self.inside, self.x, Const(0, ports.ELEMENT)), "value")
        weight = register(m, Mux(self.weighted, self.weight, 1)[:WEIGHT_BITS], "weight_value")
        product = booth(m, value, weight.as_signed(), "product")
        total = Signal(signed(WINDOW_SUM_BITS), reset_less=True)
        hold = Signal(signed(WINDOW_SUM_BITS), name="held", reset_less=True)
        with m.If(self.take | (self.compare & (product[:16].as_signed() > total[:16].as_signed()))):
            m.d.sync += total.eq(product + Mux(self.fresh, 0, total))
        with m.If(self.done):
            m.d.sync += hold.eq(total)
        m.d.comb += self.hold.eq(hold)
        return m


class WindowLanes(Component):
    """numerics.reduce_window on the taps of a row in the order in which they come, window_chunks chunks side by side.

    Ports: reduce (held); i_valid, i_tag, i_data (what the scratchpad brings; parameters of other kinds than weights are
    ignored); o_valid (strobe, TOTAL_LATENCY after a row's last tap: its sums are there from the next cycle on, until the
    next strobe), chunk (of the sums), o_data (that chunk's, combinational).
    Cost: about 135 LUTs and 300 flip-flops an element of a read, WINDOW_TAPS x 8 bits of LUT RAM.
    """

    TOTAL_LATENCY = latency.WINDOW_TOTAL

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "reduce": In(2),
                "i_valid": In(1),
                "i_tag": In(read_tag(config)),
                "i_data": In(ports.elements(config, config.window_chunks)),
                "o_valid": Out(1),
                "chunk": In(range(max(config.window_chunks, 2))),
                "o_data": Out(data.ArrayLayout(signed(WINDOW_SUM_BITS), config.chunk)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.window_chunks * self.config.chunk
        x, tag = register(m, self.i_data, "x"), register(m, self.i_tag, "came")
        arrived = register(m, self.i_valid, "arrived")
        weighted = register(m, self.reduce == Reduce.WEIGHTED, "weighted")
        largest = register(m, self.reduce == Reduce.MAX, "largest")
        ram = LutRam(m, WINDOW_TAPS, WEIGHT_BITS * lanes, "weights")
        m.d.comb += [
            ram.write_addr.eq(tag.number),
            ram.write_data.eq(Cat(x[i][STATIC_SHIFT:] for i in range(lanes))),
            ram.write_enable.eq(arrived & (tag.kind == WEIGHT)),
        ]
        weights = ram.read(tag.number)

        # --- beside the products: what a tap does to the sums ----------------------------------------------------------
        valid = delay_valid(m, arrived & (tag.kind == TAP), WindowLane.PRODUCT - 1, "tap")
        first, last, inside = (
            delay(m, tag[name], WindowLane.PRODUCT - 1, f"tap_{name}") for name in ("first", "last", "inside")
        )
        none = Signal()  # no tap of the row was inside
        with m.If(valid):
            m.d.sync += none.eq((first | none) & ~inside)
        take = register(m, valid & (~largest | (inside & (first | none))), "take", WIDE)
        compare = register(m, valid & largest & inside & ~(first | none), "compare", WIDE)
        fresh = register(m, first | largest, "fresh", WIDE)
        done = delay_valid(m, valid & last, 2, "total")
        m.d.comb += self.o_valid.eq(done)

        # --- lanes ---------------------------------------------------------------------------------------------------
        held = []
        for i in range(lanes):
            lane = place(m, f"lane_{i}", WindowLane, self.config, platform)
            m.d.comb += [
                lane.x.eq(x[i]),
                lane.inside.eq(tag.inside),
                lane.weight.eq(weights.word_select(i, WEIGHT_BITS)),
                lane.weighted.eq(weighted),
                lane.take.eq(take),
                lane.compare.eq(compare),
                lane.fresh.eq(fresh),
                lane.done.eq(done),
            ]
            held.append(lane.hold)
        chunk = self.config.chunk
        for i in range(chunk):
            m.d.comb += self.o_data[i].eq(Array(held[i::chunk])[self.chunk])
        return m

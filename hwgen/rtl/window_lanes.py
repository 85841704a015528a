"""Taps joined, in lanes as wide as the window engine's reads."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
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
from .window_reads import WEIGHT, read_tag

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
    """numerics.reduce_window on the taps of a group of rows as they come, window_chunks chunks side by side.

    Each row of a group has lanes of its own. What is a tap of one row is the tap before it of the next: weights and what they
    do wait in a chain, a step a read, which is empty where a line of the kernel begins. Rows that a group does not have add up
    what is never asked for.

    Ports: reduce (held); i_valid, i_tag, i_data (what the scratchpad brings; parameters of other kinds than weights are
    ignored); i_tap (it is a tap); o_valid (strobe, TOTAL_LATENCY after a group's last tap: its sums are there two cycles
    later, a row's until that row of the next group has its last tap), row, chunk (of the sums), o_data (that chunk's,
    combinational).
    Cost: about 135 LUTs and 300 flip-flops an element of a read and row of a group, WINDOW_TAPS x 8 bits of LUT RAM.
    """

    TOTAL_LATENCY = latency.WINDOW_TOTAL - 1

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "reduce": In(2),
                "i_valid": In(1),
                "i_tap": In(1),
                "i_tag": In(read_tag(config)),
                "i_data": In(ports.elements(config, config.window_chunks)),
                "o_valid": Out(1),
                "row": In(range(max(config.window_rows, 2))),
                "chunk": In(range(max(config.window_chunks, 2))),
                "o_data": Out(data.ArrayLayout(signed(WINDOW_SUM_BITS), config.chunk)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.window_chunks * self.config.chunk
        # What every lane reads is decoded in front of registers that are copied near them.
        x, tag = register(m, self.i_data, "x"), register(m, self.i_tag, "came", WIDE)
        came = register(m, self.i_tap, "came_tap", WIDE)
        weighted = register(m, self.reduce == Reduce.WEIGHTED, "weighted")
        largest = register(m, self.reduce == Reduce.MAX, "largest")
        ram = LutRam(m, WINDOW_TAPS, WEIGHT_BITS * lanes, "weights")
        m.d.comb += [
            ram.write_addr.eq(tag.number),
            ram.write_data.eq(Cat(x[i][STATIC_SHIFT:] for i in range(lanes))),
            ram.write_enable.eq(register(m, self.i_valid & (self.i_tag.kind == WEIGHT), "came_weight", WIDE)),
        ]
        weights = ram.read(tag.number)

        # --- a row of the group after another ---------------------------------------------------------------------------
        flags = {"first": tag.first, "last": tag.row_last, "own": tag.own}
        held = []
        for row in range(self.config.window_rows):
            held.append(self._row(m, platform, row, came, tag.inside, flags, weighted, largest, x, weights))
            following = {name: Signal(name=f"{name}_{row}") for name in flags}
            behind = Signal(len(weights), name=f"weights_{row}", reset_less=True)
            with m.If(came):
                m.d.sync += [behind.eq(weights), *(following[name].eq(flags[name] & ~tag.line_end) for name in flags)]
            flags, weights = following, behind
        m.d.comb += self.o_valid.eq(delay_valid(m, came & tag.last, WindowLane.PRODUCT, "group"))
        chunk = self.config.chunk
        for i in range(chunk):
            m.d.comb += self.o_data[i].eq(Array(Array(row[i::chunk])[self.chunk] for row in held)[self.row])
        return m

    def _row(
        self, m: Module, platform, row: int, came: Value, inside: Value, flags: dict[str, Value], weighted: Value, largest: Value,
        x: list[Value], weights: Value,
    ) -> list[Value]:  # fmt: skip
        """Lanes of the group's row of that number: its sums."""
        # --- beside the products: what a tap does to the sums ----------------------------------------------------------
        valid = delay_valid(m, came & flags["own"], WindowLane.PRODUCT - 1, f"tap_{row}")
        first, last, within = (
            delay(m, value, WindowLane.PRODUCT - 1, f"tap_{row}_{name}")
            for name, value in (("first", flags["first"]), ("last", flags["last"]), ("inside", inside))
        )
        none = Signal(name=f"none_{row}")  # no tap of the row was inside
        with m.If(valid):
            m.d.sync += none.eq((first | none) & ~within)
        take = register(m, valid & (~largest | (within & (first | none))), f"take_{row}", WIDE)
        compare = register(m, valid & largest & within & ~(first | none), f"compare_{row}", WIDE)
        fresh = register(m, first | largest, f"fresh_{row}", WIDE)
        done = register(m, register(m, valid & last, f"total_{row}_last"), f"total_{row}", WIDE)

        # --- lanes ---------------------------------------------------------------------------------------------------
        held = []
        for i in range(self.config.window_chunks * self.config.chunk):
            lane = place(m, f"lane_{row}_{i}", WindowLane, self.config, platform)
            m.d.comb += [
                lane.x.eq(x[i]),
                lane.inside.eq(inside),
                lane.weight.eq(weights.word_select(i, WEIGHT_BITS)),
                lane.weighted.eq(weighted),
                lane.take.eq(take),
                lane.compare.eq(compare),
                lane.fresh.eq(fresh),
                lane.done.eq(done),
            ]
            held.append(lane.hold)
        return held

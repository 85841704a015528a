"""1/sqrt by table and one Newton step, pipelined: `numerics.rsqrt` in hardware."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..numerics import RSQRT_BITS, RSQRT_FIRST, RSQRT_TABLE
from .common import delay, register
from .small_memory import rom

EXPONENT_BITS = 5
_WIDE = 64


class Rsqrt(Component):
    """(o_r, o_e) = numerics.rsqrt(i_n): 1/sqrt(n) ~= r / 2^(17 + e), a new n every cycle.

    i_n is shifted left by pairs of bits until its leading pair is on top: the count gives e, the top bits are the radicand
    m in [1, 4) with 16 fraction bits. The table holds y ~= 1/sqrt(m) and y^2, both of 17 bits.

    Parameters: bits of n, 1..62; n = 0 gives a meaningless result.
    Ports: i_n; o_r (17 bits), o_e (5 bits). Latency: LATENCY. Cost: 2 multipliers (18x17, 19x17), a 256x34 table.
    """

    LATENCY = latency.RSQRT

    def __init__(self, bits: int):
        if not isinstance(bits, int) or not 1 <= bits <= 62:
            raise ValueError(f"Rsqrt bits={bits!r} is not in 1..62")
        super().__init__({"i_n": In(bits), "o_r": Out(RSQRT_BITS), "o_e": Out(EXPONENT_BITS)})

    def elaborate(self, platform):
        m = Module()
        top = (1 << RSQRT_BITS) - 1
        value = Signal(_WIDE)
        m.d.comb += value.eq(self.i_n)
        pairs = Signal(0)  # how many pairs n was shifted by, high bit first: e = 31 - pairs
        for width in latency.RSQRT_SHIFTS:
            empty = value[_WIDE - width :] == 0
            pairs = register(m, Cat(empty, pairs), f"pairs_{width}")
            value = register(m, Mux(empty, value << width, value)[:_WIDE], f"norm_{width}")
        radicand = value[_WIDE - 18 :]
        index = radicand[10:]  # 64..255: below RSQRT_FIRST only for n = 0
        table = [0] * RSQRT_FIRST + [int(y) | (int(y) * int(y) >> RSQRT_BITS) << RSQRT_BITS for y in RSQRT_TABLE]
        entry = rom(m, table, 2 * RSQRT_BITS, index, "rsqrt_table")
        y, y2 = entry[:RSQRT_BITS], entry[RSQRT_BITS:]
        product = register(m, delay(m, radicand, 2, "radicand") * y2, "my2")
        newton = register(m, (3 << RSQRT_BITS) - (product >> 16), "newton")[: RSQRT_BITS + 2]
        newton = register(m, newton, "newton_in")
        scaled = register(m, delay(m, y, 3, "y") * newton, "y_newton") >> (RSQRT_BITS + 1)
        m.d.comb += [
            self.o_r.eq(register(m, Mux(scaled > top, top, scaled), "r")),
            self.o_e.eq(delay(m, ~pairs, 7, "e")),
        ]
        return m

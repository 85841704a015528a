"""A chunk of the window engine's sums to stored activations."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, signed, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, Signature

from .. import latency
from ..config import Config
from ..numerics import INT16_MAX, WINDOW_SHIFT_MAX, WINDOW_SUM_BITS, WINDOW_VALUE_BITS
from . import ports
from .booth import booth
from .common import HALVES_BITS, add_halves, delay, delay_valid, largest_tree, register, saturate, shift_by_steps
from .gelu import gelu_lanes
from .shared import Shared, place

MULT_AT = 5
PRODUCT = (WINDOW_VALUE_BITS + 1) // 2  # steps of a product with a value of the first shift
BIAS_AT = MULT_AT + 1 + PRODUCT + 2


class WindowPostLane(Shared):
    """numerics.window_post of an element: y LATENCY cycles after its sum.

    Ports: sum; before, shift (held); mult, bias MULT_AT and BIAS_AT cycles later; y.
    Halves are rounded away from zero, so magnitudes are. Cost: about 410 LUTs.
    """

    MODULE = "hwgen_window_post"
    LATENCY = BIAS_AT + 2

    @staticmethod
    def ports(config: Config) -> Signature:
        return Signature(
            {
                "sum": In(signed(WINDOW_SUM_BITS)),
                "before": In(4),
                "shift": In(WINDOW_SHIFT_MAX.bit_length()),
                "mult": In(16),
                "bias": In(ports.ELEMENT),
                "y": Out(ports.ELEMENT),
            }
        )

    def __init__(self, config: Config):
        super().__init__(self.ports(config))

    def elaborate(self, platform):
        m = Module()
        value = register(m, self.sum, "chosen")  # of the sums of all lanes
        magnitude = register(m, Mux(value[-1], -value, value)[: WINDOW_SUM_BITS - 1], "magnitude")
        negative = delay(m, value[-1], BIAS_AT - 1, "negative")
        # Shifted less the bit that rounds, in two steps.
        bits = WINDOW_VALUE_BITS - 1
        halves, over = shift_by_steps(m, Cat(Const(0, 1), magnitude), self.before[2:], self.before[:2], bits + 1, "before")
        rounded = register(m, (halves + 1) >> 1, "rounded")
        over = register(m, over, "over")
        value = register(m, Mux(over | rounded[bits], (1 << bits) - 1, rounded[:bits]), "value")
        factor = register(m, self.mult, "factor")
        even = Const(0, 2 - bits % 2)
        product = booth(m, Cat(factor, Const(0, 1)).as_signed(), Cat(value, even).as_signed(), "scaled")
        product = product[: 16 + bits]
        halves, over = shift_by_steps(m, Cat(Const(0, 1), product), self.shift[3:], self.shift[:3], HALVES_BITS, "after")
        total = register(m, add_halves(self.bias, halves, negative), "biased")
        over, sign = register(m, over, "beyond"), register(m, negative, "sign")
        limit = Mux(sign, Const(-INT16_MAX, ports.ELEMENT), Const(INT16_MAX, ports.ELEMENT))
        m.d.comb += self.y.eq(register(m, Mux(over, limit, saturate(total, INT16_MAX))[:16].as_signed(), "result"))
        return m


class WindowPost(Component):
    """y = numerics.gelu(numerics.window_post(sum)), and the largest magnitude of a chunk.

    Ports: before, shift, gelu, gelu_shift (held); i_valid, i_data (a chunk of sums), i_keep (elements that are written; the
    others become zero); mult, bias (u16, int16 of the chunk: PARAMS_AT cycles after i_valid `mult`, BIAS_AT `bias`);
    o_valid, o_data LATENCY cycles after i_valid; o_max `max_latency_of(config)` cycles after i_valid.
    Cost: about 550 LUTs an element, a RAMB36 for two.
    """

    MULT_AT, BIAS_AT = MULT_AT, BIAS_AT
    LATENCY = latency.WINDOW_POST

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "before": In(4),
                "shift": In(WINDOW_SHIFT_MAX.bit_length()),
                "gelu": In(3),
                "gelu_shift": In(3),
                "i_valid": In(1),
                "i_data": In(data.ArrayLayout(signed(WINDOW_SUM_BITS), config.chunk)),
                "i_keep": In(config.chunk),
                "mult": In(data.ArrayLayout(unsigned(16), config.chunk)),
                "bias": In(ports.elements(config, 1)),
                "o_valid": Out(1),
                "o_data": Out(ports.elements(config, 1)),
                "o_max": Out(15),
            }
        )

    @staticmethod
    def max_latency_of(config: Config) -> int:
        """Cycles from a chunk to its largest magnitude."""
        return latency.window_maximum(config)

    def elaborate(self, platform):
        m = Module()
        results = []
        for i in range(self.config.chunk):
            lane = place(m, f"lane_{i}", WindowPostLane, self.config, platform)
            m.d.comb += [
                lane.sum.eq(self.i_data[i]),
                lane.before.eq(self.before),
                lane.shift.eq(self.shift),
                lane.mult.eq(self.mult[i]),
                lane.bias.eq(self.bias[i]),
            ]
            results.append(lane.y)
        keep = delay(m, self.i_keep, self.LATENCY - 1, "keep")
        results = gelu_lanes(m, results, lambda n: self.gelu, lambda n: self.gelu_shift, keep)
        magnitudes = [register(m, Mux(y[-1], -y, y)[:15], f"magnitude_{i}") for i, y in enumerate(results)]
        m.d.comb += [
            self.o_valid.eq(delay_valid(m, self.i_valid, self.LATENCY, "valid")),
            self.o_data.eq(Cat(results)),
            self.o_max.eq(largest_tree(m, magnitudes)[0]),
        ]
        return m

"""What a scan does with each element: its step and what it feeds, its states, their sum."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib.wiring import In, Out, Signature

from .. import latency
from .. import numerics as num
from ..config import Config
from ..isa import SCAN_ENTRIES
from ..latency import SCAN_FED_AT, SCAN_PRODUCT, SCAN_STATE_AT, SCAN_STEP
from . import ports
from .booth import booth
from .common import delay, delay_valid, register, saturate, tree
from .shared import Shared
from .small_memory import LutRam, lut_rom, rom

ENTRY_BITS = (SCAN_ENTRIES - 1).bit_length()
DECAY_BITS = num.SCAN_DECAY_BITS + 1
TABLE_BITS = num.DECAY_TABLE_BITS
SLOPE_BITS = int(num.DECAY_SLOPE.max()).bit_length()
SUM_BITS = 48
SKIP_STAGES = 4


def _half_up(m: Module, value: Value, shift: Value, coarse: tuple[int, ...], name: str) -> Value:
    """numerics._half_up by a variable shift, in steps: bits of `shift` from each of `coarse` up to the one before it, highest
    first, then those below the last; a register for each, and for the rounding. Signed where `value` is."""
    wide = Cat(Const(0, 1), value)  # the bit that rounds is kept until it has
    wide = wide.as_signed() if value.shape().signed else wide
    above = len(shift)
    for low in (*coarse, 0):
        wide = register(m, wide >> (shift[low:above] << low), f"{name}_{low}")
        above = low
    return register(m, (wide + 1).shift_right(1), f"{name}_rounded")


class ScanElement(Shared):
    """numerics.softplus_step of s and what it feeds with x: step SCAN_STEP cycles after s, fed SCAN_FED_AT cycles after that.

    Ports: s, x; steps, shift, fed_shift (held); step, fed. s and x may stand for several cycles, and so do the results.
    Cost: a RAMB18 and a multiplier, about 380 LUTs.
    """

    MODULE = "hwgen_scan_element"

    @staticmethod
    def ports(config: Config) -> Signature:
        return Signature(
            {
                "s": In(ports.ELEMENT),
                "x": In(ports.ELEMENT),
                "steps": In(3),
                "shift": In(4),
                "fed_shift": In(5),
                "step": Out(16),
                "fed": Out(ports.ELEMENT),
            }
        )

    def __init__(self, config: Config):
        super().__init__(self.ports(config))

    def elaborate(self, platform):
        m = Module()
        # 1: magnitude. 2, 3: shifted and rounded. 4, 5: in the table.
        magnitude = register(m, Mux(self.s[-1], -self.s, self.s)[:16], "magnitude")
        index = _half_up(m, magnitude, self.steps, (), "index")
        bits = (num.SOFTPLUS_ENTRIES - 1).bit_length()
        rest = rom(m, num.SOFTPLUS_TABLE, num.SOFTPLUS_BITS, index[:bits], "softplus")
        inside = delay(m, ~index[bits:].any(), 2, "inside")
        positive = delay(m, Mux(self.s[-1], 0, self.s)[:15], 3, "positive")
        scaled = register(m, Cat(Const(0, num.SOFTPLUS_BITS - 7), positive) >> self.steps, "scaled")
        whole = register(m, register(m, scaled, "beside") + Mux(inside, rest, 0), "whole")
        rounded = _half_up(m, whole, self.shift, (), "step")
        step = register(m, Mux(rounded[16:].any(), num.U16_MAX, rounded[:16]), "step_value")
        m.d.comb += self.step.eq(step)
        x = delay(m, self.x, SCAN_STEP, "x")
        product = register(m, register(m, Cat(step, Const(0, 1)).as_signed() * x, "product"), "product_out")
        fed = register(m, saturate(_half_up(m, product, self.fed_shift, (3,), "fed"), num.INT16_MAX), "fed_value")
        m.d.comb += self.fed.eq(delay(m, fed, SCAN_FED_AT - 6, "fed_late"))
        return m


class ScanLane(Shared):
    """A state of an element, one for each entry: its decay, its new value, its product with g SCAN_PRODUCT cycles after `step`.

    Ports: entry (of the states at hand), step, first (from a state of zero); fed and b SCAN_FED_AT cycles later, g when the
    state is known (SCAN_STATE_AT); valid (a step is there); decay_shift (held); product; rate_write, rate_entry, rate.
    Cost: four multipliers, about 320 LUTs, LUT RAM of SCAN_ENTRIES states and rates.
    """

    MODULE = "hwgen_scan_lane"

    @staticmethod
    def ports(config: Config) -> Signature:
        return Signature(
            {
                "rate_write": In(1),
                "rate_entry": In(ENTRY_BITS),
                "rate": In(16),
                "valid": In(1),
                "first": In(1),
                "entry": In(ENTRY_BITS),
                "step": In(16),
                "decay_shift": In(2),
                "fed": In(ports.ELEMENT),
                "b": In(ports.ELEMENT),
                "g": In(ports.ELEMENT),
                "product": Out(signed(32)),
            }
        )

    def __init__(self, config: Config):
        super().__init__(self.ports(config))

    def elaborate(self, platform):
        m = Module()
        rates = LutRam(m, SCAN_ENTRIES, 16, "rates")
        m.d.comb += [
            rates.write_addr.eq(self.rate_entry),
            rates.write_data.eq(self.rate),
            rates.write_enable.eq(self.rate_write),
        ]
        # 1 to 3: step * rate. 4: the exponent. 5: the tables. 6 to 9: between two entries. 10: the fraction. 11: the decay.
        rate, step = register(m, rates.read(self.entry), "rate_value"), register(m, self.step, "step_value")
        product = register(m, register(m, step * rate, "exponent"), "exponent_out")
        shifted = Signal(unsigned(32 - min(num.DECAY_SHIFTS)), reset_less=True)
        with m.Switch(self.decay_shift):
            for i, shift in enumerate(num.DECAY_SHIFTS):
                with m.Case(i):
                    m.d.sync += shifted.eq(product >> shift)
        part, whole = shifted[: num.SCAN_EXPONENT_BITS], shifted[num.SCAN_EXPONENT_BITS :]
        rows = [int(v) | int(s) << DECAY_BITS for v, s in zip(num.DECAY_TABLE, num.DECAY_SLOPE, strict=False)]
        table = register(m, lut_rom(m, rows, DECAY_BITS + SLOPE_BITS, part[TABLE_BITS:], "decays"), "table")
        rest = register(m, part[:TABLE_BITS], "rest")
        over = register(m, whole > num.SCAN_DECAY_BITS, "over")
        whole = register(m, whole[:5], "whole")
        slope = Cat(table[DECAY_BITS:], Const(0, 1)).as_signed()
        between = booth(m, slope, Cat(rest, Const(0, 8 - TABLE_BITS)).as_signed(), "between")
        base, over, whole = (delay(m, v, 4, n) for v, n in ((table[:DECAY_BITS], "base"), (over, "over"), (whole, "whole")))
        fall = (between + (1 << TABLE_BITS - 1))[TABLE_BITS : TABLE_BITS + SLOPE_BITS]
        value = register(m, (base - fall)[:DECAY_BITS], "value")
        over, whole = register(m, over, "over_value"), register(m, whole, "whole_value")
        decay = register(m, Mux(over, 0, value >> whole)[:DECAY_BITS], "decay")

        # The state, read while the decay is made; 12, 13: decay * state + fed * b * 2^8. 14: the new one.
        states = LutRam(m, SCAN_ENTRIES, num.SCAN_STATE_BITS, "states")
        entry = delay(m, self.entry, SCAN_STATE_AT - 4, "entry")
        first = delay(m, self.first, SCAN_STATE_AT - 4, "first")
        old = register(m, Mux(first, 0, states.read(entry))[: num.SCAN_STATE_BITS], "old").as_signed()
        kept = register(m, Cat(decay, Const(0, 1)).as_signed() * old, "kept")
        fed = register(m, self.fed * self.b, "fed_product")
        half = 1 << num.SCAN_DECAY_BITS - 1
        fed = register(m, (fed << num.SCAN_FED_BITS) + half, "fed_half")
        total = register(m, kept + fed, "total")
        state = register(m, saturate(total >> num.SCAN_DECAY_BITS, num.SCAN_STATE_MAX), "state")
        m.d.comb += [
            states.write_addr.eq(delay(m, entry, 4, "entry_back")),
            states.write_data.eq(state),
            states.write_enable.eq(delay_valid(m, self.valid, SCAN_STATE_AT, "valid")),
        ]
        read = register(m, (state >> num.SCAN_FED_BITS) * self.g, "read")
        m.d.comb += self.product.eq(register(m, read, "read_out"))
        assert SCAN_PRODUCT == SCAN_STATE_AT + 2
        return m


class ScanSum(Shared):
    """The result of an element: the products of its states, which come in several beats, and its skip.

    Ports: products (of scan_states lanes, side by side); first (beat of the element, when the tree has its sum); skip, x, keep
    (else the result is zero), SKIP_STAGES - 1 cycles before the last beat's sum; skip_shift, shift (held); y, SCAN_SUM cycles
    behind that sum.
    Cost: a multiplier, about 520 LUTs.
    """

    MODULE = "hwgen_scan_sum"

    @staticmethod
    def ports(config: Config) -> Signature:
        return Signature(
            {
                "products": In(32 * config.scan_states),
                "first": In(1),
                "skip": In(ports.ELEMENT),
                "x": In(ports.ELEMENT),
                "keep": In(1),
                "skip_shift": In(5),
                "shift": In(6),
                "y": Out(ports.ELEMENT),
            }
        )

    def __init__(self, config: Config):
        self.config = config
        super().__init__(self.ports(config))

    def elaborate(self, platform):
        m = Module()
        values = [self.products.word_select(s, 32).as_signed() for s in range(self.config.scan_states)]
        total, _ = tree(m, values, lambda a, b: a + b, latency.SCAN_LEVELS, "sum")
        held = Signal(signed(SUM_BITS), reset_less=True)
        m.d.sync += held.eq(total + Mux(self.first, 0, held))
        product = register(m, register(m, self.skip * self.x, "skip_product"), "skip_out")
        wide = Cat(Const(0, num.SCAN_SKIP_BITS), product).as_signed()
        wide = register(m, wide >> (self.skip_shift[3:] << 3), "skip_coarse")
        wide = register(m, wide >> self.skip_shift[:3], "skip_fine")
        both = register(m, (held + wide)[: SUM_BITS + 1].as_signed(), "both")
        rounded = _half_up(m, both, self.shift, (4, 2), "out")
        keep = delay(m, self.keep, SKIP_STAGES + 1 + 4, "keep_value")
        m.d.comb += self.y.eq(register(m, Mux(keep, saturate(rounded, num.INT16_MAX), 0)[:16].as_signed(), "y_value"))
        return m

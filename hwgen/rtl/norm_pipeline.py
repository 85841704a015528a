"""The two pipelines of the LayerNorm unit: statistics of a row, and its normalisation, which also multiplies rows."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib.wiring import Component, In, Out

from .. import latency
from ..config import Config
from ..latency import columns_bits, square_bits, sum_bits
from ..numerics import GAMMA_SHIFT, INT16_MAX, PRODUCT_SHIFT_MIN, RSQRT_BITS, XHAT_BITS, XHAT_MAX
from .common import (
    delay,
    delay_valid,
    largest_tree,
    register,
    round_shift,
    saturate,
    tree,
)
from .ports import ELEMENT, elements
from .rsqrt import EXPONENT_BITS, Rsqrt

EPSILON_BITS = 48
TREE_LEVELS = latency.NORM_LEVELS


def multiply(m: Module, a: Value, b: Value, name: str) -> tuple[Value, int]:
    """(a * b of unsigned values, latency): pieces that fit a 27x18 multiplier, registered around it, added in a tree."""
    parts = []
    width, height = latency.PIECE
    for i in range(0, len(a), width):
        for j in range(0, len(b), height):
            piece = register(m, a[i : i + width], f"{name}_a_{i}_{j}") * register(m, b[j : j + height], f"{name}_b_{i}_{j}")
            parts.append(Cat(Const(0, i + j), register(m, piece, f"{name}_p_{i}_{j}")))
    total, steps = tree(m, parts, lambda x, y: x + y, 1, name)
    return total[: len(a) + len(b)], steps + 2


class RowStatistics(Component):
    """S = sum(x), Q = sum(x^2) of a row, then (r, e) = rsqrt(D*Q - S^2 + epsilon), chunk by chunk, rows back to back.

    Ports: i_valid, i_first, i_last, i_data (a chunk; elements beyond the row are zero); columns (D), epsilon and centred (else
    S counts as zero), held during an instruction; o_valid, o_sum, o_r, o_e `latency_of(config)` cycles after the row's last
    chunk.
    Cost: a 16x16 multiplier per element of a chunk; about 8 multipliers for the row.
    """

    def __init__(self, config: Config):
        self.config = config
        self.sum_bits = sum_bits(config)
        super().__init__(
            {
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_data": In(elements(config, 1)),
                "columns": In(columns_bits(config)),
                "epsilon": In(EPSILON_BITS),
                "centred": In(1),
                "o_valid": Out(1),
                "o_sum": Out(signed(self.sum_bits)),
                "o_r": Out(RSQRT_BITS),
                "o_e": Out(EXPONENT_BITS),
            }
        )

    @staticmethod
    def products_latency_of(config: Config) -> int:
        """From the exact sums to D*Q and S^2."""
        return latency.row_products(config)

    @staticmethod
    def latency_of(config: Config) -> int:
        """Cycles from a row's last chunk to its statistics."""
        return latency.row_statistics(config)

    def elaborate(self, platform):
        m = Module()
        lanes = self.config.chunk

        def add(x, y):
            return x + y

        # --- every chunk ----------------------------------------------------------------------------------------
        squares = [register(m, self.i_data[i] * self.i_data[i], f"sq_{i}")[:31] for i in range(lanes)]
        copies = [register(m, self.i_data[i], f"x_{i}") for i in range(lanes)]
        chunk_q, steps = tree(m, squares, add, TREE_LEVELS, "q")
        chunk_s, _ = tree(m, copies, add, TREE_LEVELS, "s")
        first = delay(m, self.i_first, 1 + steps, "first")
        valid = delay_valid(m, self.i_valid, 1 + steps, "valid")
        row = delay_valid(m, self.i_valid & self.i_last, 2 + steps, "row")
        total = Signal(signed(self.sum_bits), reset_less=True)
        squared = Signal(square_bits(self.config), reset_less=True)
        with m.If(valid):
            m.d.sync += [
                total.eq(Mux(self.centred, Mux(first, 0, total) + chunk_s, 0)),
                squared.eq(Mux(first, 0, squared) + chunk_q),
            ]
        # --- every row ------------------------------------------------------------------------------------------
        wait = self.products_latency_of(self.config)
        magnitude = register(m, Mux(total < 0, -total, total)[: self.sum_bits], "s_abs")
        ss, ss_latency = multiply(m, magnitude, magnitude, "ss")
        dq, dq_latency = multiply(m, squared, self.columns, "dq")
        ss, dq = delay(m, ss, wait - 1 - ss_latency, "ss_wait"), delay(m, dq, wait - dq_latency, "dq_wait")
        m.submodules.rsqrt = rsqrt = Rsqrt(max(len(dq), EPSILON_BITS) + 1)
        shifted = register(m, dq + self.epsilon, "dq_eps")
        m.d.comb += [
            rsqrt.i_n.eq(register(m, shifted - register(m, ss, "ss_last"), "radicand")),
            self.o_valid.eq(delay_valid(m, row, wait + 2 + rsqrt.LATENCY, "row_path")),
            self.o_sum.eq(delay(m, total, wait + 2 + rsqrt.LATENCY, "sum_path")),
            self.o_r.eq(rsqrt.o_r),
            self.o_e.eq(rsqrt.o_e),
        ]
        return m


class NormLanes(Component):
    """y = saturate(round_shift(xhat * gamma, 12) + beta), xhat = saturate(round_shift((D*x - S) * r, 5 + e)), per element.

    With `product`, D = 1 and S = 0, an element has its own r, its `factor`: y = saturate(round_shift(x * factor, 5 + e)), as
    numerics.multiply. With `turning` too, r is the factor of the second lane of its pair, x that of the pair's other lane;
    added to the element's own x times gamma of the first lane, subtracted in the first lane, xhat gives numerics.turn.

    Ports: i_valid, i_first, i_last, i_data (a chunk), i_sum, i_r, i_e (of its row), i_mask (elements that are written; the
    others become zero); columns (D), product, turning, held; factor, gamma and beta of the chunk, FACTOR_AT, GAMMA_AT and
    BETA_AT cycles after i_valid; o_valid, o_last, o_data LATENCY cycles after i_valid; max_valid, max_data: largest
    magnitude of a row, `max_latency_of(config)` cycles after its last chunk.
    Cost: 3 multipliers per element (16 x column count, 27x18, 18x16) and a shifter.
    """

    FACTOR_AT = 3
    GAMMA_AT = 10
    BETA_AT = 12
    LATENCY = latency.NORM_LANES

    def __init__(self, config: Config):
        self.config = config
        self.sum_bits = sum_bits(config)
        super().__init__(
            {
                "i_valid": In(1),
                "i_first": In(1),
                "i_last": In(1),
                "i_data": In(elements(config, 1)),
                "i_sum": In(signed(self.sum_bits)),
                "i_r": In(RSQRT_BITS),
                "i_e": In(EXPONENT_BITS),
                "i_mask": In(config.chunk),
                "columns": In(columns_bits(config)),
                "product": In(1),
                "turning": In(1),
                "factor": In(elements(config, 1)),
                "gamma": In(elements(config, 1)),
                "beta": In(elements(config, 1)),
                "o_valid": Out(1),
                "o_last": Out(1),
                "o_data": Out(elements(config, 1)),
                "max_valid": Out(1),
                "max_data": Out(15),
            }
        )

    @staticmethod
    def max_latency_of(config: Config) -> int:
        """Cycles from a row's last chunk to its largest magnitude."""
        return latency.norm_maximum(config)

    def elaborate(self, platform):
        m = Module()
        lanes = range(self.config.chunk)
        # (D*x - S)^2 <= D * (D*Q - S^2), so |xhat| stays below 2^12 * sqrt(D); a product is at most 2^(30 - its shift).
        # The shifter needs no more bits. It shifts by 4 + e only: the last bit is for rounding.
        normalised = int(1.01 * 2 ** (XHAT_BITS + 1) * self.config.norm_columns**0.5 + 2)
        bits = max(normalised, 1 << (30 - PRODUCT_SHIFT_MIN + 1)).bit_length() + 1
        total = delay(m, self.i_sum, 2, "sum")
        r = delay(m, self.i_r, self.FACTOR_AT - 1, "r")
        r = Cat(register(m, Mux(self.product, 0, r)[: len(r)], "r_or_none"), Const(0, 1)).as_signed()
        e_high, e_low = delay(m, self.i_e[3:], 6, "e_high"), delay(m, self.i_e[:3], 7, "e_low")
        mask = delay(m, self.i_mask, self.LATENCY - 1, "mask")
        signed_columns = Cat(self.columns, Const(0, 1)).as_signed()
        magnitudes = []
        for i in lanes:
            other = self.i_data[i ^ 1] if (i ^ 1) < len(lanes) else self.i_data[i]
            x = register(m, Mux(self.turning, other, self.i_data[i]), f"x_{i}")
            dx = register(m, x * signed_columns, f"dx_{i}")
            d = register(m, (dx - total)[: self.sum_bits + 1].as_signed(), f"d_{i}")
            d = register(m, d, f"d_in_{i}")
            second = self.factor[i | 1] if (i | 1) < len(lanes) else self.factor[i]
            factor = Mux(self.turning, second, self.factor[i])
            by = register(m, Mux(self.product, factor, Const(0, ELEMENT)) | r, f"by_{i}")
            by_negative = register(m, self.product & factor[-1], f"by_neg_{i}")  # r is not; `by` itself is inside the multiplier
            # Half away from zero: a negative product is made one smaller before the shift, then rounded half up.
            product = register(m, d * by, f"dr_{i}")
            negative = register(m, (d < 0) ^ by_negative, f"neg_{i}")
            product = register(m, product - negative, f"dr_down_{i}")
            start = RSQRT_BITS - XHAT_BITS - 1
            coarse = Signal(signed(bits + 7), name=f"coarse_{i}", reset_less=True)
            with m.Switch(e_high):
                for high in range(4):
                    with m.Case(high):
                        m.d.sync += coarse.eq(product >> (start + 8 * high))
            fine = Signal(signed(bits), name=f"fine_{i}", reset_less=True)
            m.d.sync += fine.eq(coarse >> e_low)
            xhat = register(m, (fine + 1) >> 1, f"xr_{i}")
            inside = register(m, saturate(xhat, XHAT_MAX), f"inside_{i}")
            own = delay(m, self.i_data[i], 9, f"own_{i}")
            own = register(m, Mux(self.turning, own, Const(0, ELEMENT)), f"turned_{i}")  # zero in plain products
            gamma = register(m, Mux(self.turning, self.gamma[i & ~1], self.gamma[i]), f"gamma_{i}")
            scaled = register(m, register(m, Mux(self.product, own, inside), f"xhat_{i}") * gamma, f"xg_{i}")
            crossed = register(m, inside, f"crossed_{i}")
            crossed = register(m, Mux(self.turning, -crossed, crossed) if i % 2 == 0 else crossed, f"signed_{i}")
            scaled = register(m, round_shift(scaled, GAMMA_SHIFT), f"xs_{i}")
            term = register(m, Mux(self.product, crossed, self.beta[i]), f"term_{i}")
            y = register(m, scaled + term, f"yw_{i}")
            y = register(m, Mux(mask[i], saturate(y, INT16_MAX), Const(0, ELEMENT)), f"y_{i}")
            m.d.comb += self.o_data[i].eq(y)
            magnitudes.append(register(m, Mux(y < 0, -y, y)[:15], f"mag_{i}"))
        # --- row maximum ----------------------------------------------------------------------------------------
        chunk_max, steps = largest_tree(m, magnitudes)
        valid = delay_valid(m, self.i_valid, self.LATENCY, "valid")
        last = delay(m, self.i_last, self.LATENCY, "last")
        max_first = delay(m, self.i_first, self.LATENCY + 1 + steps, "first")
        with m.If(delay_valid(m, valid, 1 + steps, "max")):
            m.d.sync += self.max_data.eq(Mux(max_first | (chunk_max > self.max_data), chunk_max, self.max_data))
        m.d.comb += [
            self.o_valid.eq(valid),
            self.o_last.eq(last),
            self.max_valid.eq(delay_valid(m, valid & last, 2 + steps, "row")),
        ]
        return m

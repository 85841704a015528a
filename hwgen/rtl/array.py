"""The int8 multiply-accumulate array: weight-stationary, one activation row in and one row of sums out per cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from ..config import Config
from ..errors import UserError
from ..numerics import ACC_BITS, ACC_MAX, INT8_MAX
from .common import delay_valid, register, tree, tree_latency

GROUP = 8  # products in a cascade: 8 * 127 * 127 < 2^17, so that the low sum stays inside its 18 bits
LOW_BITS = 18
SPLIT_BITS = 18
PACKED_BITS = 27
SUM_BITS = 36
TREE_LEVELS = 2


class MacArray(Component):
    """y[o] = sum over i of w[o, i] * x[i]; two outputs share a multiplier: ((w1 << 18) + w0) * x.

    Per pair of outputs and input one cell, shaped like a DSP48E2: shadow weights (its A1 and D registers), the packed
    active weight (AD), the delayed input (B), the product (M), the running sum of the cascade (P). The cells of a group
    of at most GROUP inputs form a cascade, each one cycle behind the one before it, and everything that enters them is
    delayed alike: x, the swap and the shadow's writes. The groups' sums are split in two and added in a pipelined tree.

    Parameters: config (O = array_outputs, I = array_inputs). At most ACC_MAX / 127^2 inputs, else UserError.
    Ports: w_valid, w_row, w_data (I x signed(8)): the shadow weights of output w_row; x_valid, x_data (I x signed(8)),
    x_swap: this row is the first to use what the shadow holds; y_valid, y_data (O x signed(27)). Weights and x are in
    [-127, 127].
    Latency: `latency` cycles from x to y, no gaps needed. A row with x_swap may enter SHADOW_READY cycles after the
    last write of its weights or later; the next tile's weights may be written SHADOW_HOLD cycles after that row or
    later. As SHADOW_READY + SHADOW_HOLD is 1, weights can follow one another every cycle across tiles.
    Cost: O/2 * I DSPs with cascade; outside them 72 flip-flops of delay per input, 9 enables per output, and the
    trees of O * ceil(I / 8) 18-bit sums.
    """

    SHADOW_READY = 2
    SHADOW_HOLD = -1  # the write takes one register more than the swap: it may even come a cycle earlier

    def __init__(self, config: Config):
        if config.array_inputs * INT8_MAX**2 > ACC_MAX:
            raise UserError(f"Config array_inputs={config.array_inputs}: a sum would not fit {ACC_BITS} bits")
        self.config = config
        self.latency = self.latency_of(config)
        row = data.ArrayLayout(signed(8), config.array_inputs)
        super().__init__(
            {
                "w_valid": In(1),
                "w_row": In(range(config.array_outputs)),
                "w_data": In(row),
                "x_valid": In(1),
                "x_swap": In(1),
                "x_data": In(row),
                "y_valid": Out(1),
                "y_data": Out(data.ArrayLayout(signed(ACC_BITS), config.array_outputs)),
            }
        )

    @staticmethod
    def latency_of(config: Config) -> int:
        """Cycles from x to y: input, cascade, product, split, tree."""
        groups = -(-config.array_inputs // GROUP)
        return 1 + GROUP + 1 + 1 + tree_latency(groups, TREE_LEVELS)

    def elaborate(self, platform):
        m = Module()
        outputs, inputs = self.config.array_outputs, self.config.array_inputs
        groups = [range(start, min(start + GROUP, inputs)) for start in range(0, inputs, GROUP)]

        # --- what enters the cells, delayed by their position in the cascade -----------------------------------------
        swap = [Signal(name="swap_0")]
        write = [Signal(outputs, name="write_0")]
        m.d.comb += swap[0].eq(self.x_valid & self.x_swap)
        m.d.comb += [write[0][o].eq(self.w_valid & (self.w_row == o)) for o in range(outputs)]
        for p in range(1, GROUP + 1):
            for chain, name in ((swap, "swap"), (write, "write")):
                following = Signal.like(chain[-1], name=f"{name}_{p}")  # control: with reset
                m.d.sync += following.eq(chain[-1])
                chain.append(following)

        # Position of every input: a short last group stands at the end, so that all groups finish together.
        position = {i: GROUP - len(group) + k for group in groups for k, i in enumerate(group)}
        x, w = {}, {}
        for i, p in position.items():
            xi, wi = self.x_data[i], self.w_data[i]
            for k in range(p + 1):
                xi, wi = register(m, xi, f"x{i}_{k}"), register(m, wi, f"w{i}_{k}")
            x[i], w[i] = xi, wi

        # --- cells ------------------------------------------------------------------------------------------------
        def shadow(o: int, i: int) -> Signal:
            held = Signal(signed(8), name=f"s{o}_{i}", reset_less=True)
            with m.If(write[position[i] + 1][o]):
                m.d.sync += held.eq(w[i])
            return held

        def cell(o: int, i: int, before: Signal | None) -> Signal:
            """The cascade's sum up to input i for the outputs o and o + 1."""
            packed = Signal(signed(PACKED_BITS), name=f"a{o}_{i}", reset_less=True)
            product = Signal(signed(SUM_BITS), name=f"m{o}_{i}", reset_less=True, attrs={"use_dsp": "yes"})
            total = Signal(signed(SUM_BITS), name=f"p{o}_{i}", reset_less=True)
            w0, w1 = shadow(o, i), shadow(o + 1, i)
            with m.If(swap[position[i]]):
                m.d.sync += packed.eq((w1 << LOW_BITS) + w0)
            m.d.sync += [
                product.eq(packed * x[i]),
                total.eq(product if before is None else before + product),
            ]
            return total

        for o in range(0, outputs, 2):
            low, high = [], []
            for g, group in enumerate(groups):
                total = None
                for i in group:
                    total = cell(o, i, total)
                # The low sum borrowed from the high one where it is negative.
                low.append(register(m, total[:LOW_BITS].as_signed(), f"l{o}_{g}"))
                split = Signal(signed(SPLIT_BITS), name=f"h{o}_{g}", reset_less=True)
                m.d.sync += split.eq(total[LOW_BITS:].as_signed() + total[LOW_BITS - 1])
                high.append(split)
            for k, parts in enumerate((low, high)):
                result, _ = tree(m, parts, lambda a, b: a + b, TREE_LEVELS, f"t{o + k}")
                m.d.comb += self.y_data[o + k].eq(result)
        m.d.comb += self.y_valid.eq(delay_valid(m, self.x_valid, self.latency, "valid"))
        return m

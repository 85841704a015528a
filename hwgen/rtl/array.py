"""The int8 multiply-accumulate array: weight-stationary, one activation row in and one row of sums out per cycle."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out, Signature

from .. import latency
from ..config import Config
from ..errors import UserError
from ..latency import PACKED_BITS
from ..numerics import ACC_BITS, ACC_MAX, INT8_MAX
from .common import WIDE, delay, history, register, tree
from .shared import Shared, place

GROUP = latency.ARRAY_GROUP  # products in a cascade: 8 * 127 * 127 < 2^17, so that the low sum stays inside its 18 bits
LOW_BITS = 18
SPLIT_BITS = 18
SUM_BITS = 36
TREE_LEVELS = latency.ARRAY_LEVELS
DSP_BITS = 48
NEAR = 8  # multipliers that a register in front of them drives
EVERYWHERE = {**WIDE, "max_fanout": NEAR}
# A cell's registers and ways inside a DSP48E2. What is not named here or in `_primitives` stays at zero.
DSP48E2_SHAPE = (
    *(("p", f"{name}REG", 1) for name in ("A", "ACASC", "AD", "B", "BCASC", "C", "D", "M", "P")),
    *(("p", f"{name}REG", 0) for name in ("ALUMODE", "CARRYIN", "CARRYINSEL", "INMODE", "OPMODE")),
    ("p", "AMULTSEL", "AD"),
    *(("i", f"CE{name}", Const(0)) for name in ("A1", "ALUMODE", "B1", "C", "CARRYIN", "CTRL", "INMODE")),
    *(("i", f"RST{name}", Const(0)) for name in ("A", "ALLCARRYIN", "ALUMODE", "B", "C", "CTRL", "D", "INMODE", "M", "P")),
    ("i", "ACIN", Const(0, 30)),
    ("i", "ALUMODE", Const(0, 4)),
    ("i", "BCIN", Const(0, 18)),
    ("i", "CARRYCASCIN", Const(0)),
    ("i", "CARRYIN", Const(0)),
    ("i", "CARRYINSEL", Const(0, 3)),
    ("i", "MULTSIGNIN", Const(0)),
)


def groups(inputs: int) -> list[range]:
    """The inputs of each cascade."""
    return [range(start, min(start + GROUP, inputs)) for start in range(0, inputs, GROUP)]


def positions(inputs: int) -> dict[int, int]:
    """Every input's place in its cascade: a short last group stands at the end, so that all groups finish together."""
    return {i: GROUP - len(group) + k for group in groups(inputs) for k, i in enumerate(group)}


class MacPair(Shared):
    """Two outputs of the array: y0 and y1 = the sums over i of w[i] * x[i] with their own weights.

    Ports: x, w0, w1 (I x signed(8)), each input delayed by its `positions`; write0, write1, swap: bit p acts on the inputs
    at position p, swap on the x that came a cycle before; y0, y1 signed(27). Latency and cost: see `MacArray`.
    A platform with `primitives` gets each cell as an instance of a DSP48E2, else it is described.
    """

    MODULE = "hwgen_mac_pair"
    PRIMITIVES = "HWGEN_DSP48E2"

    def __init__(self, config: Config):
        self.config = config
        super().__init__(self.ports(config))

    @staticmethod
    def ports(config: Config) -> Signature:
        row = data.ArrayLayout(signed(8), config.array_inputs)
        ins = {"x": In(row), "w0": In(row), "w1": In(row), "write0": In(GROUP), "write1": In(GROUP), "swap": In(GROUP)}
        return Signature({**ins, "y0": Out(signed(ACC_BITS)), "y1": Out(signed(ACC_BITS))})

    def elaborate(self, platform):
        m = Module()
        cascades = self._primitives if getattr(platform, "primitives", False) else self._described
        low, high = [], []
        for g, total in enumerate(cascades(m)):
            # The low sum borrowed from the high one where it is negative.
            low.append(register(m, total[:LOW_BITS].as_signed(), f"l{g}"))
            split = Signal(signed(SPLIT_BITS), name=f"h{g}", reset_less=True)
            m.d.sync += split.eq(total[LOW_BITS:].as_signed() + total[LOW_BITS - 1])
            high.append(split)
        for y, parts, name in ((self.y0, low, "t0"), (self.y1, high, "t1")):
            result, _ = tree(m, parts, lambda a, b: a + b, TREE_LEVELS, name)
            m.d.comb += y.eq(result)
        return m

    def _described(self, m: Module) -> list[Signal]:
        """The sum of each cascade, of cells that tools map to multipliers as they can."""
        inputs = self.config.array_inputs
        position = positions(inputs)
        shadow = [[Signal(signed(8), name=f"s{k}_{i}", reset_less=True) for i in range(inputs)] for k in range(2)]
        packed = [Signal(signed(PACKED_BITS), name=f"a{i}", reset_less=True) for i in range(inputs)]
        for p in range(GROUP):
            here = [i for i in range(inputs) if position[i] == p]
            for k, (write, w) in enumerate(((self.write0, self.w0), (self.write1, self.w1))):
                with m.If(write[p]):
                    m.d.sync += [shadow[k][i].eq(w[i]) for i in here]
            with m.If(self.swap[p]):
                m.d.sync += [packed[i].eq((shadow[1][i] << LOW_BITS) + shadow[0][i]) for i in here]

        def cell(i: int, before: Signal | None) -> Signal:
            """The cascade's sum up to input i."""
            product = Signal(signed(SUM_BITS), name=f"m{i}", reset_less=True, attrs={"use_dsp": "yes"})
            total = Signal(signed(SUM_BITS), name=f"p{i}", reset_less=True)
            m.d.sync += [
                product.eq(packed[i] * register(m, self.x[i], f"b{i}")),
                total.eq(product if before is None else before + product),
            ]
            return total

        totals = []
        for group in groups(inputs):
            total = None
            for i in group:
                total = cell(i, total)
            totals.append(total)
        return totals

    def _primitives(self, m: Module) -> list[Signal]:
        """The same of DSP48E2 (UG579): shadow weights in D and A2, their packed sum in AD, x in B2, product in M, sum in P."""
        position = positions(self.config.array_inputs)
        totals = []
        for group in groups(self.config.array_inputs):
            cascade = Const(0, DSP_BITS)
            for i in group:
                p = position[i]
                w1 = Signal(signed(30), name=f"a{i}")
                m.d.comb += w1.eq(self.w1[i] << LOW_BITS)
                w0, x = Signal(signed(27), name=f"d{i}"), Signal(signed(18), name=f"b{i}")
                m.d.comb += [w0.eq(self.w0[i]), x.eq(self.x[i])]
                total, following = Signal(DSP_BITS, name=f"p{i}"), Signal(DSP_BITS, name=f"c{i}")
                m.submodules[f"cell_{i}"] = Instance(
                    "DSP48E2",
                    *DSP48E2_SHAPE,
                    i_CLK=ClockSignal(),
                    i_A=w1,
                    i_B=x,
                    i_C=Const(0, DSP_BITS),
                    i_D=w0,
                    i_PCIN=cascade,
                    i_CEA2=self.write1[p],
                    i_CED=self.write0[p],
                    i_CEAD=self.swap[p],
                    i_CEB2=Const(1),
                    i_CEM=Const(1),
                    i_CEP=Const(1),
                    i_INMODE=Const(0b00100, 5),  # AD = D + A2
                    i_OPMODE=Const(0b00_001_01_01 if i != group[0] else 0b00_000_01_01, 9),  # P = M + PCIN, or M
                    o_P=total,
                    o_PCOUT=following,
                )
                cascade = following
            totals.append(total[:SUM_BITS])
        return totals


class MacArray(Component):
    """y[o] = sum over i of w[o, i] * x[i]; two outputs share a multiplier: ((w1 << 18) + w0) * x.

    Per pair of outputs and input one cell, shaped like a DSP48E2: shadow weights (its A1 and D registers), the packed
    active weight (AD), the delayed input (B), the product (M), the running sum of the cascade (P). The cells of a group
    of at most GROUP inputs form a cascade, each one cycle behind the one before it, and everything that enters them is
    delayed alike: x, the swap and the shadow's writes. The groups' sums are split in two and added in a pipelined tree.
    The pairs lie all over the part: what goes to all of them comes from registers that are copied near them, which cost a
    cycle. Nothing here has a reset: strobes that stop before the soft reset ends are gone when it does.

    Parameters: config (O = array_outputs, I = array_inputs). At most ACC_MAX / 127^2 inputs, else UserError.
    Ports: w_valid[k], w_pair, w_data[k] (I x signed(8)): the shadow weights of output 2 * w_pair + k; x_valid, x_data
    (I x signed(8)), x_swap: this row is the first to use what the shadow holds; y_valid, y_data (O x signed(27)). Weights
    and x are in [-127, 127].
    Latency: `latency` cycles from x to y, no gaps needed. A row with x_swap may enter SHADOW_READY cycles after the
    last write of its weights or later; the next tile's weights may be written SHADOW_HOLD cycles after that row or
    later. As SHADOW_READY + SHADOW_HOLD is 1, weights can follow one another every cycle across tiles.
    Cost: O/2 * I DSPs with cascade; outside them for each input about 24 LUTs of delay and 24 flip-flops for every NEAR of its
    multipliers, 10 enables per output, and the trees of O * ceil(I / 8) 18-bit sums.
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
                "w_valid": In(2),
                "w_pair": In(range(config.array_outputs // 2)),
                "w_data": In(data.ArrayLayout(row, 2)),
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
        return latency.array(config)

    def elaborate(self, platform):
        m = Module()
        outputs, inputs = self.config.array_outputs, self.config.array_inputs

        # --- what enters the cells, delayed by their position in the cascade -----------------------------------------
        swap = history(m, self.x_valid & self.x_swap, "swap")
        swap = [register(m, swap(p), f"swap_near_{p}", EVERYWHERE) for p in range(GROUP)]
        write = Cat(self.w_valid[o % 2] & (self.w_pair == o // 2) for o in range(outputs))
        write = history(m, write, "write")
        entering = {"x": (self.x_data, 0), "w0": (self.w_data[0], 1), "w1": (self.w_data[1], 1)}
        late = {name: {} for name in entering}
        for i, p in positions(inputs).items():
            for name, (row, more) in entering.items():
                late[name][i] = register(m, delay(m, row[i], p + more, f"{name}_{i}"), f"{name}_near_{i}", EVERYWHERE)

        # --- pairs of outputs -------------------------------------------------------------------------------------
        for o in range(0, outputs, 2):
            pair = place(m, f"pair_{o}", MacPair, self.config, platform)
            for name, row in late.items():
                m.d.comb += [getattr(pair, name)[i].eq(value) for i, value in row.items()]
            m.d.comb += pair.swap.eq(Cat(swap))
            m.d.comb += pair.write0.eq(Cat(write(p + 2)[o] for p in range(GROUP)))
            m.d.comb += pair.write1.eq(Cat(write(p + 2)[o + 1] for p in range(GROUP)))
            m.d.comb += [self.y_data[o].eq(pair.y0), self.y_data[o + 1].eq(pair.y1)]
        m.d.comb += self.y_valid.eq(delay(m, self.x_valid, self.latency, "valid"))
        return m

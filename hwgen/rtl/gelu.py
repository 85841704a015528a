"""ReLU, GELU or SiLU = ReLU - delta(|x|), softplus = ReLU + delta(|x|), exp(min(x, 0)) = delta, or tanh =
sign(x) * (1 - delta(|x|)), on the lanes of a row: a pipelined table look-up."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib.memory import Memory

from .. import latency, numerics
from ..isa import Gelu
from .common import WIDE, delay, register

GELU_LATENCY = latency.GELU
DELTA_BITS = 15
INDEX_BITS = (numerics.GELU_ENTRIES - 1).bit_length()


def gelu_rom() -> list[int]:
    """The tables one behind the other: delta at (mode - 1) * GELU_ENTRIES + index, mode an isa.Gelu; tanh's behind the part of
    HARDSWISH's that is not zero, exp's behind softplus's, half a table each."""
    tables = numerics.GELU_TABLE
    assert not tables["hardswish"][numerics.TANH_FIRST :].any()
    halves = tables["softplus"], tables["exp"]
    shared = tables["hardswish"][: numerics.TANH_FIRST], tables["tanh"]
    return [int(delta) for table in (tables["gelu"], *halves, tables["silu"], *shared) for delta in table]


def gelu_lanes(m: Module, lanes: list, mode, shift, keep=None) -> list[Signal]:
    """numerics.gelu of each int16 lane, GELU_LATENCY cycles later; lanes pass unchanged in rows with Gelu.OFF.

    `mode(n)` and `shift(n)` are the row's isa.Gelu and gelu_shift (0..GELU_SHIFT_MAX), n >= -1 cycles after its lanes.
    `keep`: which lanes are not made zero, GELU_LATENCY - 1 cycles after them (softplus and exp of zero are not zero); None:
    all.
    Two lanes share a ROM (two read ports). Cost: a RAMB36 per two lanes, two shifters of 8 steps a lane.
    tanh and exp have no table of their own there, which would be a second RAMB36; signs are those of the last adder.
    """
    shifts = numerics.GELU_SHIFT_MAX + 1
    final_shift = numerics.GELU_DELTA_BITS - numerics.GELU_INDEX_BITS  # of delta, less gelu_shift
    behind = {Gelu.TANH: numerics.TANH_FIRST, Gelu.EXP: numerics.EXP_FIRST}
    one = numerics.TANH_ONE.bit_length() - 1

    def steer(name: str, cycles: int, value) -> Signal:
        """What `value` makes of the mode, `cycles` after the lanes: for all of them, in registers that are copied near them."""
        return register(m, value(mode(cycles - 1)), f"gelu_{name}_{cycles}", WIDE)

    def choose(of: Value, default, *others) -> Value:
        """The value of others' (mode, value) that has the mode, else the default."""
        for kind, value in others:
            default = Mux(of == kind, value, default)
        return default

    exp_0, tanh_6 = steer("exp", 0, lambda of: of == Gelu.EXP), steer("tanh", 6, lambda of: of == Gelu.TANH)
    first_entry = steer("first", 2, lambda of: choose(of, 0, *behind.items()))
    table = steer("table", 3, lambda of: choose(of, of - 1, (Gelu.TANH, Gelu.HARDSWISH - 1), (Gelu.EXP, Gelu.SOFTPLUS - 1))[:2])
    sizes = (Gelu.HARDSWISH, numerics.TANH_FIRST), (Gelu.SOFTPLUS, numerics.EXP_FIRST)
    entries = steer("entries", 3, lambda of: choose(of, numerics.GELU_ENTRIES, *sizes))
    looked_up = steer("used", 3, lambda of: (of != Gelu.OFF) & (of != Gelu.RELU))
    alone = steer("alone", 6, lambda of: (of == Gelu.TANH) | (of == Gelu.EXP))  # without x
    rectified = steer("rectified", 6, lambda of: of != Gelu.OFF)
    added = steer("added", 6, lambda of: (of == Gelu.SOFTPLUS) | (of == Gelu.EXP))
    shift_1 = register(m, shift(0), "gelu_shift_1", WIDE)
    shift_5 = Mux((mode(4) == Gelu.TANH) | (mode(4) == Gelu.EXP), shifts, shift(4))
    shift_5 = register(m, shift_5, "gelu_shift_5", WIDE)
    out = []
    for first in range(0, len(lanes), 2):
        rom = Memory(shape=unsigned(DELTA_BITS), depth=len(gelu_rom()), init=gelu_rom())
        m.submodules[f"rom{first // 2}"] = rom
        for k, x in enumerate(lanes[first : first + 2], first):
            # 1: magnitude. 2: shift, keeping the bit that rounds. 3: index.
            magnitude = Signal(unsigned(15), name=f"gelu_abs{k}", reset_less=True)
            m.d.sync += magnitude.eq(Mux(x[-1], -x, Mux(exp_0, 0, x)))
            doubled = Signal(unsigned(16), name=f"gelu_dbl{k}", reset_less=True)
            with m.Switch(shift_1):
                for s in range(shifts):
                    with m.Case(s):
                        m.d.sync += doubled.eq((magnitude << 1) >> s)
            index = Signal(unsigned(16), name=f"gelu_idx{k}", reset_less=True)
            m.d.sync += index.eq((doubled + Cat(Const(1, 1), first_entry)) >> 1)
            # 4: inside the ROM. 5: its output register, zero beyond the table.
            read = rom.read_port()
            m.d.comb += read.addr.eq(Cat(index[:INDEX_BITS], table))
            inside = register(m, (index < entries) & looked_up, f"gelu_in{k}")
            delta = Signal(unsigned(DELTA_BITS), name=f"gelu_delta{k}", reset_less=True)
            m.d.sync += delta.eq(Mux(inside, read.data, 0))
            # 6: scale to x's steps, keeping the bit that rounds. 7: ReLU -+ delta, or 1 - delta with the sign of x.
            scaled = Signal(unsigned(DELTA_BITS + 1), name=f"gelu_scaled{k}", reset_less=True)
            with m.Switch(shift_5):
                for s in range(shifts):
                    with m.Case(s):
                        m.d.sync += scaled.eq(delta >> (final_shift - s - 1))
                with m.Case(shifts):
                    m.d.sync += scaled.eq(delta << 1)
            before = delay(m, x, GELU_LATENCY - 1, f"gelu_x{k}")
            sign = before[-1]
            relu = Mux(alone | (sign & rectified), Const(0, signed(16)), before)
            base = Signal(signed(16), name=f"gelu_base{k}")  # tanh: 1 or -1, whose lower bits are zero
            m.d.comb += base.eq(Cat(relu[:one], relu[one] | tanh_6, relu[-1] | (tanh_6 & sign)))
            # base -+ round(scaled / 2), an even one where it is not in x's steps: one adder with a carry
            minus = ~((tanh_6 & sign) | added)
            halved = Cat((scaled >> 1)[:DELTA_BITS], Const(0, 16 - DELTA_BITS)) ^ minus.replicate(16)
            result = Signal(signed(16), name=f"gelu_y{k}", reset_less=True)
            m.d.sync += result.eq((Cat(Const(1, 1), base) + Cat(minus ^ scaled[0], halved))[1:17])
            if keep is not None:
                with m.If(~keep[k]):
                    m.d.sync += result.eq(0)
            out.append(result)
    return out

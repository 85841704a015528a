"""Small pieces of datapath that several units use. All registers made here are without reset."""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Cat, Const, Module, Mux, Shape, ShapeCastable, Signal, Value
from amaranth.lib import data

HALVES_BITS = 17  # of a stored element's magnitude in halves; more are beyond every one
# Of a register that steers many lanes: Vivado copies it until none drives more, each copy near its lanes (UG912), and leaves it
# a flip-flop behind a shift register.
WIDE = {"max_fanout": 64, "shreg_extract": "no"}


def register(m: Module, value, name: str | None = None, attrs: dict | None = None):
    """`value` one cycle later; keeps the layout of a view."""
    shape = value.shape() if isinstance(value, (Value, data.View)) else Value.cast(value).shape()
    kind = shape if isinstance(shape, ShapeCastable) else Shape.cast(shape)
    out = Signal(kind, name=name, reset_less=True, attrs=attrs)
    m.d.sync += out.eq(value)
    return out


def delay(m: Module, value, cycles: int, name: str | None = None):
    """`value` after `cycles` cycles (a shift register without reset: SRLs on Xilinx)."""
    for i in range(cycles):
        value = register(m, value, None if name is None else f"{name}_{i}")
    return value


def history(m: Module, value: Value, name: str) -> Callable[[int], Value]:
    """f(n) is `value` n cycles later; one shift register, as long as asked for."""
    stages = [value]

    def at(cycles: int) -> Value:
        while len(stages) <= cycles:
            stages.append(register(m, stages[-1], f"{name}_{len(stages)}"))
        return stages[cycles]

    return at


def delay_valid(m: Module, value: Value, cycles: int, name: str | None = None) -> Value:
    """A strobe, or several, after `cycles` cycles; these registers are reset."""
    for i in range(cycles):
        out = Signal(len(value), name=None if name is None else f"{name}_{i}")
        m.d.sync += out.eq(value)
        value = out
    return value


def round_shift(value: Value, shift: int) -> Value:
    """numerics.round_shift by a constant, combinational: value / 2^shift, half away from zero."""
    value = Value.cast(value)
    if shift == 0:
        return value
    half = (1 << (shift - 1)) - (value[-1] if value.shape().signed else 0)
    return (value + half) >> shift


def at_most(amount: Value) -> Value:
    """A bit for every amount below the largest: whether `amount` is no more."""
    return Cat(amount <= j for j in range((1 << len(amount)) - 1))


def shift_out(value: Value, amount: Value, bits: int, unit: int = 1, least: Value | None = None) -> tuple[Value, Value]:
    """The lowest `bits` of an unsigned value >> (amount * unit), and whether one above them is set; combinational.

    Only what is kept is shifted: of the rest it counts whether a bit is set that no shift brings down. least: `at_most` of
    amount, where a register holds it.
    """
    most = (1 << len(amount)) - 1
    above = value[bits:]
    least = at_most(amount) if least is None else least
    left = [(above[j * unit : (j + 1) * unit], least[j]) for j in range(most)]
    beyond = [part.any() & stays for part, stays in left if len(part)]
    if len(above) > most * unit:
        beyond.append(above[most * unit :].any())
    steps = Cat(Const(0, unit.bit_length() - 1), amount)
    return (value >> steps)[:bits], Cat(beyond).any()


def shift_by_steps(
    m: Module,
    value: Value,
    coarse: Value,
    fine: Value,
    bits: int,
    name: str = "shift",
    least: tuple[Value | None, Value | None] = (None, None),
) -> tuple[Signal, Signal]:
    """`shift_out` of an unsigned value by coarse and fine bits of an amount, two cycles later: what is kept, what is beyond.

    `coarse` counts as many steps as `fine` can hold, and is taken with the value, `fine` a cycle later. least: `at_most` of
    both, where many lanes shift by the same amount.
    """
    steps = 1 << len(fine)
    kept, large = shift_out(value, coarse, bits + steps - 1, steps, least[0])
    kept, large = register(m, kept, f"{name}_coarse"), register(m, large, f"{name}_large")
    kept, larger = shift_out(kept, fine, bits, 1, least[1])
    return register(m, kept, f"{name}_fine"), register(m, large | larger, f"{name}_beyond")


def add_halves(base: Value, halves: Value, negative: Value) -> Value:
    """base + round(halves / 2), or less it where `negative`; halves unsigned, a half counts as one; combinational, one adder.

    (2 * base + 1 + halves) / 2 rounded down; less it, -halves - 1 is the complement of halves.
    """
    either = Cat(halves ^ negative.replicate(len(halves)), negative).as_signed()
    return (Cat(Const(1, 1), base).as_signed() + either) >> 1


def saturate(value: Value, limit: int) -> Value:
    """numerics.saturate, combinational: clip to [-limit, limit]."""
    bits = limit.bit_length() + 1
    clipped = Mux(value > limit, limit, Mux(value < -limit, -limit, value))
    return clipped[:bits].as_signed()


def tree(m: Module, values: list, combine, levels: int, name: str = "tree") -> tuple[Value, int]:
    """Reduce `values` with `combine`, a register after every `levels` binary levels: (result, latency in cycles)."""
    latency = 0
    while len(values) > 1:
        for _ in range(levels):
            values = [combine(*values[i : i + 2]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
        values = [register(m, v, f"{name}_{latency}_{i}") for i, v in enumerate(values)]
        latency += 1
    return values[0], latency


def largest(values: list) -> Value:
    """The largest of one to four values, combinational: all are compared at the same time."""
    if len(values) == 1:
        return values[0]
    if len(values) == 2:
        return Mux(values[0] > values[1], *values)
    beats = {(i, j): values[i] > values[j] for j in range(len(values)) for i in range(j)}  # i ahead of j, i < j
    best = values[-1]
    for i in range(len(values) - 1):
        earlier = [~beats[j, i] for j in range(i)]
        later = [beats[i, j] for j in range(i + 1, len(values))]
        best = Mux(Cat(*earlier, *later).all(), values[i], best)
    return best


def largest_tree(m: Module, values: list, name: str = "max") -> tuple[Value, int]:
    """(the largest of values, latency in cycles): `largest` of four, a register, and so on."""
    latency = 0
    while len(values) > 1:
        values = [largest(values[i : i + 4]) for i in range(0, len(values), 4)]
        values = [register(m, v, f"{name}_{latency}_{i}") for i, v in enumerate(values)]
        latency += 1
    return values[0], latency


def counter(m: Module, up: Value, down: Value, limit: int, name: str, init: int = 0) -> tuple[Signal, Signal, Signal]:
    """(count, count != 0, count == limit), each a register: `up` and `down` are strobes, together they cancel out.

    `up` only below the limit, `down` only above zero.
    """
    count = Signal(range(limit + 1), name=name, init=init)
    some = Signal(name=f"{name}_some", init=init != 0)
    full = Signal(name=f"{name}_full", init=init == limit)
    m.d.sync += [
        some.eq(up | (count > 1) | (some & ~down)),
        full.eq(~down & (full | (up & (count == limit - 1)))),
    ]
    with m.If(up != down):
        m.d.sync += count.eq(count + Cat(1, down.replicate(len(count) - 1))[: len(count)])
    return count, some, full


def settled(m: Module, settle: Signal, done: Signal, following: str) -> None:
    """State SETTLE of the FSM at hand: counts the register `settle` down, is `done` at 0; `following` comes behind it."""
    with m.State("SETTLE"):
        m.d.sync += settle.eq(settle - 1)
        with m.If(settle == 0):
            m.d.comb += done.eq(1)
            m.next = following


def lanes_mask(count: Value, lanes: int) -> Value:
    """One bit per lane, set for lane < count."""
    return Cat(count > lane for lane in range(lanes))

"""Products in LUTs, for where there are many narrow ones and no multipliers left."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Value

from .common import delay, register


def booth(m: Module, a: Value, b: Value, name: str) -> Value:
    """a * b of signed values, len(b) / 2 cycles later, b of an even number of bits: a row of adders, then a register, a cycle.

    A. D. Booth's recoding in digits -2..2: a bit of a row is one function of six inputs (the sum so far, two bits of a,
    three of b) in front of a carry chain, so one LUT6. Cost: len(b) / 2 * (len(a) + 3) LUTs.
    """
    digits, wide = len(b) // 2, len(a) + 2
    above: Value = Cat(Const(0, 1), b)  # b with a zero below: digit i looks at bits 2i to 2i + 2
    total: Value | None = None
    low: list[Value] = []  # finished bits of the product, two for each row so far
    for i in range(digits):
        below, middle, top = above[0], above[1], above[2]
        one, two = middle ^ below, (top ^ middle) & ~(middle ^ below)
        twice = Cat(Const(0, 1), a, a[-1])[: len(a) + 1]
        once = Cat(a, a[-1])
        row = Cat(((x & one) | (y & two)) ^ top for x, y in zip(once, twice, strict=True))
        signed = Cat(row, row[-1])
        if total is None:
            result = (Cat(top, signed).as_signed() + Cat(top, Const(0, 1)).as_signed())[1 : wide + 1]
        else:
            # A bit below both makes the carry that a negative digit needs.
            before = Cat(total[2:], total[-1].replicate(2))
            result = (Cat(top, before) + Cat(top, signed))[1 : wide + 1]
            low = [register(m, bit, f"{name}_low_{i}_{k}") for k, bit in enumerate(low)]
            low.append(register(m, total[:2], f"{name}_done_{i}"))
        total = register(m, result, f"{name}_row_{i}")
        if i + 1 < digits:
            a = delay(m, a, 1, f"{name}_a_{i}")
            above = register(m, above[2:], f"{name}_b_{i}")
    assert total is not None
    return Cat(*low, total)[: len(a) + len(b)].as_signed()

# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.numerics import INT8_MAX, RECIPROCAL_NUMERATOR, reciprocal
from hwgen.rtl.divide import Divider


def divide(dut: Divider, numerators, denominators, rng) -> list[tuple[int, int]]:
    """Feed the divisions with random gaps; (quotient, tag) of every valid output, each checked to be on time."""
    results, due = [], []

    async def bench(ctx):
        todo = list(zip(numerators, denominators, strict=True))
        cycle = sent = 0
        while len(results) < len(todo):
            send = sent < len(todo) and rng.random() < 0.7
            ctx.set(dut.i_valid, send)
            # Between divisions garbage, also a zero denominator, must do no harm.
            numerator, denominator = todo[sent] if send else (int(rng.integers(4)), 0)
            ctx.set(dut.i_numerator, numerator)
            ctx.set(dut.i_denominator, denominator)
            if dut.tag_bits:
                ctx.set(dut.i_tag, sent % (1 << dut.tag_bits))
            if send:
                due.append(cycle + dut.latency)
                sent += 1
            assert ctx.get(dut.o_valid) == (cycle in due)
            if ctx.get(dut.o_valid):
                results.append((ctx.get(dut.o_quotient), ctx.get(dut.o_tag) if dut.tag_bits else 0))
            await ctx.tick()
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results


@pytest.mark.parametrize(
    "n,d,q,tag", [(23, 20, 16, 0), (31, 22, 16, 12), (5, 9, 7, 3), (8, 3, 8, 1), (4, 4, 1, 0), (3, 1, 3, 2)]
)
def test_random_and_corners(n, d, q, tag):
    rng = np.random.default_rng(n * 100 + d)
    pairs = [(0, 1), (0, (1 << d) - 1)]
    pairs.append((min((1 << n) - 1, (((1 << d) - 1) << q) - 1), (1 << d) - 1))  # the largest quotient
    pairs.append((min((1 << n) - 1, (1 << q) - 1), 1))
    for _ in range(120):
        denominator = int(rng.integers(1, 1 << int(rng.integers(1, d + 1))))
        pairs.append((int(rng.integers(0, min(1 << n, denominator << q))), denominator))
    numerators, denominators = zip(*pairs, strict=True)
    results = divide(Divider(n, d, q, tag), numerators, denominators, rng)
    assert results == [(a // b, i % (1 << tag)) for i, (a, b) in enumerate(pairs)]


def test_reciprocal_of_numerics():
    rng = np.random.default_rng(5)
    totals = [INT8_MAX, INT8_MAX + 1, 4096 * INT8_MAX, *(int(t) for t in rng.integers(INT8_MAX, 1 << 19, 100))]
    expected, exponents = reciprocal(np.array(totals))
    results = divide(Divider(35, 20, 16), [RECIPROCAL_NUMERATOR << int(e) for e in exponents], totals, rng)
    assert [q for q, _ in results] == expected.tolist() and min(expected) >= 32767


@pytest.mark.parametrize("bad", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0), (1, 1, 1, -1), (1, 1, 1.5, 0)])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match="Divider .* is not a whole number"):
        Divider(*bad)

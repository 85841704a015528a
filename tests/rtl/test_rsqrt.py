# amaranth: UnusedElaboratable=no
import numpy as np
import pytest
from amaranth.sim import Simulator

from hwgen.numerics import rsqrt
from hwgen.rtl.rsqrt import Rsqrt


@pytest.mark.parametrize("bits", [62, 51, 9])
def test_equals_numerics(bits):
    rng = np.random.default_rng(bits)
    radicands = [1, 2, 3, 4, (1 << bits) - 1, 1 << bits - 1]
    radicands += [(1 << b) + d for b in range(2, bits) for d in (-1, 0, 1)]
    radicands += [int(rng.integers(1, 1 << int(rng.integers(1, bits + 1)))) for _ in range(200)]
    dut = Rsqrt(bits)
    got = []

    async def bench(ctx):
        for i in range(len(radicands) + dut.LATENCY):
            if i < len(radicands):
                ctx.set(dut.i_n, radicands[i])
            if i >= dut.LATENCY:
                got.append((ctx.get(dut.o_r), ctx.get(dut.o_e)))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    r, e = rsqrt(np.array(radicands))
    assert got == list(zip(r.tolist(), e.tolist(), strict=True))


@pytest.mark.parametrize("bits", [0, 63, 1.5])
def test_bad_bits(bits):
    with pytest.raises(ValueError, match="Rsqrt bits"):
        Rsqrt(bits)

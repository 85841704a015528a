# amaranth: UnusedElaboratable=no
import random

import pytest

from hwgen.rtl.register_slice import RegisterSlice


@pytest.mark.parametrize("stall", [0.0, 0.3, 0.8])
def test_order_and_rate(axi_model, stall):
    """Every word once and in order; without stalls one a cycle; nothing is left where `valid` is low, which `coming` tells a
    cycle ahead."""
    rng = random.Random(1)
    dut, words = RegisterSlice(16), [rng.getrandbits(16) for _ in range(200)]
    assert len(set(words)) > len(words) // 2  # else a word lost and another doubled would not show
    cycles, got, told = 0, [], []

    async def put(ctx):
        await axi_model.send(ctx, dut.i, words, random.Random(2), stall)

    async def count(ctx):
        nonlocal cycles
        while True:
            _, _, valid, coming = await ctx.tick().sample(dut.o.valid, dut.coming)
            told.append((valid, coming))
            cycles += 1

    async def take(ctx):
        got.extend(await axi_model.receive(ctx, dut.o, len(words), random.Random(3), stall))
        assert not ctx.get(dut.o.valid)

    axi_model.simulate(dut, take, background=[put, count])
    assert got == words
    assert [valid for valid, _ in told[1:]] == [coming for _, coming in told[:-1]] and (1, 0) in told
    if not stall:
        assert cycles <= len(words) + 2

# amaranth: UnusedElaboratable=no
"""Expander: units of narrow and plain segments come out as sim.narrow makes them."""

import random

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.numerics import INT8_MAX, NARROW_FACTORS
from hwgen.rtl.expander import SEGMENT, Expander
from hwgen.schedule import narrow
from hwgen.sim.narrow import expand

# Units, bits of a code and the share of units that have them: each kind behind others, of one unit and of several blocks.
SEGMENTS = (
    *((0, 3, 0), (6, 70, 1), (5, 1, 1), (4, 64, 0.5), (0, 40, 0), (4, 33, 1), (6, 5, 0.5), (5, 97, 0.8), (6, 32, 0), (0, 1, 0)),
    *((4, 1, 1), (5, 8, 1), (5, 16, 1), (6, 4, 1), (4, 2, 1), (0, 0, 0), (6, 1, 0), (4, 64, 1)),
)


def segment(config, bits, units, share, rng):
    """(beats of a port, what comes of them), uint8 [n, axi_bytes] each."""
    factors = rng.choice(NARROW_FACTORS[1:], (units, 1))
    most = np.minimum(INT8_MAX // factors, (1 << max(bits, 1) - 1) - 1)
    words = (rng.integers(-most, most + 1, (units, config.array_inputs)) * factors).astype(np.int8)
    plain = rng.random(units) >= share
    words[plain] = rng.integers(-128, 128, (int(plain.sum()), config.array_inputs))
    wanted = words.view(np.uint8)[:, : config.axi_bytes]
    if not bits:
        return wanted, wanted
    beats = narrow.pack(config, words.view(np.uint8), ~plain, bits)[:, 0]
    np.testing.assert_array_equal(expand(config, beats, units, bits), wanted)
    return beats, wanted


def numbers(rows):
    return [int.from_bytes(row.tobytes(), "little") for row in rows]


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_segments_come_out_as_the_machine_makes_them(axi_model, lanes, stall):
    config = Config(array_outputs=8, array_inputs=2 * lanes, weight_ports=2, axi_bytes=lanes, narrow_weights=1)
    dut, rng = Expander(config), np.random.default_rng(lanes)
    made = [segment(config, *fields, rng) for fields in SEGMENTS]
    wanted = [number for _, units in made for number in numbers(units)]

    async def begin(ctx):
        commands = [SEGMENT.const({"units": units, "bits": bits}) for bits, units, _ in SEGMENTS]
        await axi_model.send(ctx, dut.segment, commands, random.Random(1), stall)

    async def feed(ctx):
        await axi_model.send(ctx, dut.i, [n for beats, _ in made for n in numbers(beats)], random.Random(2), stall)

    async def take(ctx):
        assert await axi_model.receive(ctx, dut.o, len(wanted), random.Random(3), stall) == wanted
        for _ in range(20):
            await ctx.tick()
            assert not ctx.get(dut.o.valid)

    axi_model.simulate(dut, begin, feed, take)


@pytest.mark.parametrize("bits", [0, 4, 5, 6])
def test_a_unit_a_cycle(axi_model, bits):
    """But for the numbers in front of each block."""
    config, units = Config(array_outputs=8, array_inputs=16, weight_ports=2, axi_bytes=8, narrow_weights=1), 200
    dut = Expander(config)
    beats, wanted = segment(config, bits, units, 1.0, np.random.default_rng(bits))
    cycles = []

    async def begin(ctx):
        await axi_model.send(ctx, dut.segment, [SEGMENT.const({"units": units, "bits": bits})], random.Random(1), 0)

    async def feed(ctx):
        await axi_model.send(ctx, dut.i, numbers(beats), random.Random(2), 0)

    async def take(ctx):
        assert await axi_model.receive(ctx, dut.o, units, random.Random(3), 0) == numbers(wanted)

    async def count(ctx):
        async for _, _, there in ctx.tick().sample(dut.o.valid):
            cycles.append(there)

    axi_model.simulate(dut, begin, feed, take, background=[count])
    assert len(cycles) <= units + (-(-units // 16) if bits else 0) + 10

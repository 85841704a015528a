# amaranth: UnusedElaboratable=no
"""The CRC of the fetched program against zlib's."""

import random
import zlib

import pytest

from hwgen.config import Config
from hwgen.rtl.checksum import LATENCY, Checksum


@pytest.mark.parametrize("axi_bytes", [4, 16, 64])
def test_equals_zlib(axi_model, axi_bytes):
    dut, rng = Checksum(Config(array_outputs=8, array_inputs=8, axi_bytes=axi_bytes)), random.Random(axi_bytes)

    async def process(ctx):
        for beats in (0, 1, 7, 20):
            ctx.set(dut.start, 1)
            await ctx.tick()
            ctx.set(dut.start, 0)
            sent = rng.randbytes(beats * axi_bytes)
            for i in range(beats):
                while rng.random() < 0.4:
                    ctx.set(dut.beat, rng.getrandbits(8 * axi_bytes))  # not valid: must not count
                    await ctx.tick()
                ctx.set(dut.valid, 1)
                ctx.set(dut.beat, int.from_bytes(sent[i * axi_bytes : (i + 1) * axi_bytes], "little"))
                await ctx.tick()
                ctx.set(dut.valid, 0)
            for _ in range(LATENCY):
                await ctx.tick()
            assert ctx.get(dut.crc) == zlib.crc32(sent)

    axi_model.simulate(dut, process)

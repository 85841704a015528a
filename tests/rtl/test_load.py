# amaranth: UnusedElaboratable=no
"""LoadUnit: chunks and scales land where the instruction says, and are there when `done` says so."""

import random

import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.counts import data_beats
from hwgen.latency import MOST_BEATS
from hwgen.rtl.load import LoadUnit

SHAPES = {
    "exact": {"array_outputs": 8, "array_inputs": 8, "axi_bytes": 16},
    "padded": {"array_outputs": 12, "array_inputs": 20, "axi_bytes": 16},  # chunk 4: half a beat
    "odd": {"array_outputs": 12, "array_inputs": 12, "axi_bytes": 16},  # chunk 12: a beat and a half
    "narrow": {"array_outputs": 16, "array_inputs": 16, "axi_bytes": 4},  # eight beats a chunk
    "wide": {"array_outputs": 8, "array_inputs": 8, "axi_bytes": 64},
    "halves": {"array_outputs": 24, "array_inputs": 24, "axi_bytes": 16},  # narrow: a beat and a half, else three
}

PROGRAM = [
    isa.Load(dram=3, dst=10, rows=1, chunks=1, pitch=1),
    isa.Load(dram=50, dst=100, rows=5, chunks=3, pitch=7),
    isa.LoadScales(dram=1000, dst=20, count=1),
    isa.Load(dram=0, dst=0, rows=0, chunks=4, pitch=4),
    isa.LoadScales(dram=1001, dst=50, count=37),
    isa.LoadScales(dram=0, dst=0, count=0),
    isa.Load(dram=200, dst=200, rows=2, chunks=40, pitch=40),
    isa.Load(dram=30, dst=300, rows=4, chunks=3, pitch=5, narrow=1),
    isa.Load(dram=30, dst=400, rows=1, chunks=2, pitch=2),
    isa.Load(dram=77, dst=410, rows=1, chunks=1, pitch=1, narrow=1),
    isa.LoadScales(dram=1010, dst=100, count=9),
    isa.Load(dram=0, dst=420, rows=0, chunks=3, pitch=3, narrow=1),
    isa.Load(dram=300, dst=500, rows=3, chunks=45, pitch=45, narrow=1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_load(axi_model, shape, stall):
    config = Config(**SHAPES[shape])
    dut, rng = LoadUnit(config), random.Random(1)
    memory = random.Random(2).randbytes(2048 * config.axi_bytes)
    scratch, scales, finished = {}, {}, []
    asked = 0

    async def dram(ctx):
        nonlocal asked
        answers = random.Random(3)
        while True:
            (command,) = await axi_model.receive(ctx, dut.command, 1, answers, stall)
            offset, beats = command & 0xFFFFFFFF, command >> 32
            assert 1 <= beats <= MOST_BEATS
            asked += beats
            parts = (memory[i * config.axi_bytes :][: config.axi_bytes] for i in range(offset, offset + beats))
            words = [int.from_bytes(p, "little") for p in parts]
            await axi_model.send(ctx, dut.beats, words, answers, stall)

    async def writes(ctx):
        ports = (dut.wr.valid, dut.wr.addr, dut.wr.data.as_value(), dut.wr.mask)
        ports += (dut.scale.valid, dut.scale.addr, dut.scale.data, dut.done)
        while True:
            chunk_ready, scale_ready = (rng.random() >= stall for _ in range(2))
            ctx.set(dut.wr.ready, chunk_ready)
            ctx.set(dut.scale.ready, scale_ready)
            sampled = await ctx.tick().sample(*ports)
            _, _, valid, addr, data, mask, scale_valid, scale_addr, scale, done = sampled
            if done:
                finished.append((dict(scratch), dict(scales)))
            if valid and chunk_ready:
                assert mask == 1 and addr not in scratch
                scratch[addr] = data
            if scale_valid and scale_ready:
                assert scale_addr not in scales
                scales[scale_addr] = scale

    async def issue(ctx):
        await axi_model.send(ctx, dut.insn, [isa.encode(i) for i in PROGRAM], random.Random(4), stall)
        while len(finished) < len(PROGRAM):
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.busy)

    axi_model.simulate(dut, issue, background=[dram, writes])

    want_scratch, want_scales = {}, {}
    assert asked == sum(data_beats(insn, config) for insn in PROGRAM)
    for insn, (seen_scratch, seen_scales) in zip(PROGRAM, finished, strict=True):
        at = insn.dram * config.axi_bytes
        if isinstance(insn, isa.LoadScales):
            for i in range(insn.count):
                want_scales[insn.dst + i] = int.from_bytes(memory[at + 2 * i : at + 2 * i + 2], "little")
        else:
            size = (config.narrow_chunk_beats if insn.narrow else config.chunk_beats) * config.axi_bytes
            for i in range(insn.rows * insn.chunks):
                r, c = divmod(i, insn.chunks)
                part = memory[at + i * size :][: config.chunk if insn.narrow else 2 * config.chunk]
                if insn.narrow:
                    part = b"".join(bytes([0, byte]) for byte in part)
                want_scratch[insn.dst + r * insn.pitch + c] = int.from_bytes(part, "little")
        assert seen_scratch == want_scratch and seen_scales == want_scales

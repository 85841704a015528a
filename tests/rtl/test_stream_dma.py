# amaranth: UnusedElaboratable=no
"""WeightStream: words are joined from all ports in order, experts without a token are skipped."""

import random

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.rtl.stream_dma import WeightStream
from hwgen.schedule import narrow

SHAPES = {
    "one-port": {"array_inputs": 8, "weight_ports": 1, "axi_bytes": 8},
    "two-ports": {"array_inputs": 16, "weight_ports": 2, "axi_bytes": 8},
    "padded": {"array_outputs": 12, "array_inputs": 20, "weight_ports": 3, "axi_bytes": 4},  # slices of 8 bytes
    "uneven": {"array_inputs": 24, "weight_ports": 1, "axi_bytes": 8},  # three beats a word
    "idle-port": {"array_inputs": 8, "weight_ports": 2, "axi_bytes": 16},  # the second port carries padding only
}
BASES = (0x0, 0x1000, 0x2000, 0x3000)
WITH_TOKENS = (3, 7)  # experts


def make(shape, **settings) -> Config:
    small = {"array_outputs": 8, "burst_beats": 4, "outstanding": 2, "weight_words": 32, "max_experts": 8}
    return Config(**(small | SHAPES[shape] | settings))


def word(memories, config, index) -> int:
    parts = []
    for base, memory in zip(BASES, memories, strict=False):
        at = base + index * config.slice_bytes
        parts.append(memory.data[at : at + config.slice_bytes])
    return int.from_bytes(b"".join(parts)[: config.array_inputs], "little")


def stream(axi_model, dut, program, memories, want, stall, *benches, background=()):
    """Streams of a program bring these words and no more, both halves of them; `benches` run beside it until they end."""

    async def issue(ctx):
        for p in range(dut.config.weight_ports):
            ctx.set(dut.base[p], BASES[p])
        ctx.set(dut.nonempty, sum(1 << expert for expert in WITH_TOKENS))
        await axi_model.send(ctx, dut.insn, [isa.encode(i) for i in program], random.Random(4), stall)

    def take(k: int):
        async def receive(ctx):
            half = want[k::2]
            assert await axi_model.receive(ctx, dut.words[k], len(half), random.Random(5 + k), stall) == half
            for _ in range(20):
                await ctx.tick()
            assert not ctx.get(dut.words[k].valid)

        return receive

    reads = [memory.read(dut.bus[p]) for p, memory in enumerate(memories)]
    axi_model.simulate(dut, issue, take(0), take(1), *benches, background=[*background, *reads])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_stream(axi_model, shape, stall):
    config = make(shape)
    dut = WeightStream(config)
    memories = [axi_model.AxiMemory(0x8000, p, stall) for p in range(config.weight_ports)]
    beats = config.slice_beats
    program = [
        isa.Stream(dram=0, words=1),
        isa.Stream(dram=7 * beats, words=60),
        isa.Stream(dram=90 * beats, words=5, expert=2),
        isa.Stream(dram=100 * beats, words=5, expert=3),
        isa.Stream(dram=0, words=0),
        isa.Stream(dram=110 * beats, words=9, expert=7),
    ]
    taken = [i for i in program if i.expert in (isa.NO_EXPERT, *WITH_TOKENS)]
    want = [word(memories, config, i.dram // beats + k) for i in taken for k in range(i.words)]
    dones = []

    async def watch(ctx):
        async for _, _, done in ctx.tick().sample(dut.done):
            dones.append(done)

    async def rest(ctx):
        await ctx.tick().until(dut.busy)
        await ctx.tick().until(~dut.busy & dut.idle & ~dut.insn.valid)

    stream(axi_model, dut, program, memories, want, stall, rest, background=[watch])
    assert sum(dones) == len(program)


def test_prefetches_to_the_brim_and_delivers_two_words_a_cycle(axi_model):
    config = make("two-ports", weight_words=64, outstanding=8)
    dut = WeightStream(config)
    memories = [axi_model.AxiMemory(0x8000, p, 0.0) for p in range(config.weight_ports)]

    async def process(ctx):
        for p in range(config.weight_ports):
            ctx.set(dut.base[p], BASES[p])
        await axi_model.send(ctx, dut.insn, [isa.encode(isa.Stream(dram=0, words=200))], random.Random(1), 0)
        for _ in range(300):
            await ctx.tick()
        assert ctx.get(dut.idle) and ctx.get(dut.busy)
        for words in dut.words:
            ctx.set(words.ready, 1)
        for i in range(64):
            words = dut.words[i % 2]
            assert ctx.get(words.valid)
            assert ctx.get(words.payload.as_value()) == word(memories, config, i)
            if i % 2:
                await ctx.tick()

    background = [memory.read(dut.bus[p]) for p, memory in enumerate(memories)]
    axi_model.simulate(dut, process, background=background)


def test_narrow_words_are_expanded(axi_model):
    """Plain and narrow instructions in turns, one of them of an expert without tokens."""
    config = make("two-ports", narrow_weights=1, outstanding=4)
    dut, rng = WeightStream(config), np.random.default_rng(0)
    program, image, want = [], np.zeros((0, config.weight_ports, config.axi_bytes), np.uint8), []
    for words, bits, expert in ((40, 5, isa.NO_EXPERT), (9, 0, 3), (30, 4, 2), (1, 6, 3), (50, 6, isa.NO_EXPERT), (12, 0, 7)):
        weights = np.arange(words) % 5 > 0
        data = (rng.integers(-7, 8, (words, config.array_inputs)) * rng.integers(1, 13, (words, 1))).astype(np.int8)
        data[~weights] = rng.integers(-128, 128, (int((~weights).sum()), config.array_inputs))
        plain = data.view(np.uint8)
        beats = narrow.pack(config, plain, weights, bits) if bits else narrow.stripe(config, plain)
        fields = {"narrow": bits, "beats": len(beats)} if bits else {}
        program.append(isa.Stream(dram=len(image), words=words, expert=expert, **fields))
        image = np.concatenate([image, beats, np.zeros((-len(beats) % config.burst_beats, *beats.shape[1:]), np.uint8)])
        want += [int.from_bytes(row.tobytes(), "little") for row in plain] if expert in (isa.NO_EXPERT, *WITH_TOKENS) else []
    memories = [axi_model.AxiMemory(0x8000, p, 0.3) for p in range(config.weight_ports)]
    for p, memory in enumerate(memories):
        stripe = image[:, p].tobytes()
        memory.data[BASES[p] : BASES[p] + len(stripe)] = stripe
    stream(axi_model, dut, program, memories, want, 0.2)

# amaranth: UnusedElaboratable=no
"""RamFifo, AxiReader, AxiWriter and ReadArbiter against a memory with random latency and back-pressure."""

import random

import pytest

from hwgen.config import Config
from hwgen.rtl.arbiter import ReadArbiter
from hwgen.rtl.axi import AxiReader, AxiWriter
from hwgen.rtl.fifo import RamFifo

BASE = 0x3000
SIZE = 1 << 16


def config(**settings) -> Config:
    small = {"array_outputs": 8, "array_inputs": 8, "axi_bytes": 8, "burst_beats": 4, "outstanding": 4}
    return Config(**(small | settings))


def commands(rng, axi_bytes, count=12):
    """Commands with corners: none, one beat, across 4 KiB."""
    per_page = 4096 // axi_bytes
    fixed = [(0, 0), (5, 1), (per_page - 3, 9), (3, 0), (per_page, 16)]
    return fixed + [(rng.randrange(2 * per_page), rng.randrange(40)) for _ in range(count)]


def expected(memory, axi_bytes, listed) -> list[int]:
    words = []
    for offset, beats in listed:
        for i in range(beats):
            at = BASE + (offset + i) * axi_bytes
            words.append(int.from_bytes(memory.data[at : at + axi_bytes], "little"))
    return words


@pytest.mark.parametrize("lookahead", [1, 2, 4])
@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_fifo_keeps_order(axi_model, lookahead, stall):
    dut, rng = RamFifo(16, 8, lookahead=lookahead), random.Random(1)
    items = [rng.getrandbits(16) for _ in range(200)]

    async def producer(ctx):
        await axi_model.send(ctx, dut.i, items, random.Random(2), stall)

    async def consumer(ctx):
        assert await axi_model.receive(ctx, dut.o, len(items), random.Random(3), stall) == items

    axi_model.simulate(dut, producer, consumer, cycles=2000)


def test_fifo_rate_and_depth(axi_model):
    dut = RamFifo(8, 16)

    async def process(ctx):
        ctx.set(dut.i.valid, 1)
        for _ in range(40):
            await ctx.tick()
        assert not ctx.get(dut.i.ready)
        ctx.set(dut.o.ready, 1)
        for _ in range(8):
            await ctx.tick()
        for _ in range(100):
            assert ctx.get(dut.o.valid)
            await ctx.tick()

    axi_model.simulate(dut, process)


def test_counted_fifo_never_refuses(axi_model):
    dut, got = RamFifo(8, 16, counted=True), []

    async def process(ctx):
        for word in range(16):
            assert ctx.get(dut.i.ready)
            ctx.set(dut.i.valid, 1)
            ctx.set(dut.i.payload, word)
            await ctx.tick()
        ctx.set(dut.i.valid, 0)
        assert ctx.get(dut.i.ready)
        got.extend(await axi_model.receive(ctx, dut.o, 16, random.Random(1), 0.0))

    axi_model.simulate(dut, process)
    assert got == list(range(16))


def test_fifo_refuses_bad_parameters():
    with pytest.raises(ValueError, match="depth=12"):
        RamFifo(8, 12)
    with pytest.raises(ValueError, match="lookahead=3"):
        RamFifo(8, 16, lookahead=3)


@pytest.mark.parametrize(
    "settings",
    [{}, {"axi_bytes": 64, "burst_beats": 16}, {"axi_bytes": 4, "burst_beats": 1}, {"outstanding": 1}],
    ids=["plain", "wide", "single-beats", "one-outstanding"],
)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_reader(axi_model, settings, stall):
    cfg = config(**settings)
    dut, memory = AxiReader(cfg), axi_model.AxiMemory(SIZE, 3, stall, most_beats=cfg.burst_beats)
    listed = commands(random.Random(4), cfg.axi_bytes)
    words = expected(memory, cfg.axi_bytes, listed)

    async def ask(ctx):
        ctx.set(dut.base, BASE)
        await axi_model.send(ctx, dut.command, [{"offset": o, "beats": b} for o, b in listed], random.Random(5), stall)

    async def take(ctx):
        assert await axi_model.receive(ctx, dut.beats, len(words), random.Random(6), stall) == words
        await ctx.tick().repeat(5)
        assert ctx.get(dut.idle) and not ctx.get(dut.busy)

    axi_model.simulate(dut, ask, take, background=[memory.read(dut.bus)])
    assert memory.most_in_flight <= cfg.outstanding


def test_reader_hides_latency(axi_model):
    """With enough bursts in flight a long run comes at one beat a cycle."""
    cfg = config(outstanding=8)
    dut, memory = AxiReader(cfg), axi_model.AxiMemory(SIZE, 3, 0.0, latency=(20, 20), most_beats=4)

    async def process(ctx):
        ctx.set(dut.command.payload, {"offset": 0, "beats": 400})
        ctx.set(dut.command.valid, 1)
        ctx.set(dut.beats.ready, 1)
        await ctx.tick().until(dut.command.ready)
        ctx.set(dut.command.valid, 0)
        await ctx.tick().until(dut.beats.valid)
        for _ in range(399):
            assert ctx.get(dut.beats.valid)
            await ctx.tick()
        assert not ctx.get(dut.beats.valid)

    axi_model.simulate(dut, process, background=[memory.read(dut.bus)])


def test_reader_asks_only_for_what_it_can_take(axi_model):
    """A consumer that stands still never makes the bus wait."""
    cfg = config()
    dut, memory = AxiReader(cfg), axi_model.AxiMemory(SIZE, 3, 0.0, most_beats=4)

    async def process(ctx):
        ctx.set(dut.command.payload, {"offset": 0, "beats": 400})
        ctx.set(dut.command.valid, 1)
        await ctx.tick().until(dut.command.ready)
        ctx.set(dut.command.valid, 0)
        for _ in range(300):
            assert ctx.get(dut.bus.rready)
            await ctx.tick()
        assert ctx.get(dut.idle) and ctx.get(dut.busy)
        assert sum(beats for _, beats in memory.reads) == cfg.outstanding * cfg.burst_beats

    axi_model.simulate(dut, process, background=[memory.read(dut.bus)])


def test_reader_reports_errors_and_drains(axi_model):
    cfg = config()
    dut, memory = AxiReader(cfg), axi_model.AxiMemory(SIZE, 3, 0.2, most_beats=4)
    memory.bad = range(BASE + 32, BASE + 40)
    errors = []

    async def watch(ctx):
        async for _, _, error in ctx.tick().sample(dut.error):
            errors.append(error)

    async def process(ctx):
        ctx.set(dut.base, BASE)
        ctx.set(dut.command.payload, {"offset": 0, "beats": 400})
        ctx.set(dut.command.valid, 1)
        ctx.set(dut.beats.ready, 1)
        await ctx.tick().until(dut.command.ready)
        await ctx.tick().repeat(60)
        ctx.set(dut.drain, 1)
        await ctx.tick().until(dut.idle)
        seen = len(memory.reads)
        await ctx.tick().repeat(60)
        assert ctx.get(dut.idle) and ctx.get(dut.busy) and len(memory.reads) == seen

    axi_model.simulate(dut, process, background=[memory.read(dut.bus), watch])
    assert sum(errors) == 1


@pytest.mark.parametrize("settings", [{}, {"axi_bytes": 4, "burst_beats": 1}, {"outstanding": 1, "burst_beats": 16}])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_writer(axi_model, settings, stall):
    cfg = config(**settings)
    dut, memory = AxiWriter(cfg), axi_model.AxiMemory(SIZE, 3, stall, most_beats=cfg.burst_beats)
    rng = random.Random(7)
    listed = commands(rng, cfg.axi_bytes)
    words = [rng.getrandbits(8 * cfg.axi_bytes) for _ in range(sum(beats for _, beats in listed))]
    after = bytearray(memory.data)
    at = iter(words)
    for offset, beats in listed:
        for i in range(beats):
            start = BASE + (offset + i) * cfg.axi_bytes
            after[start : start + cfg.axi_bytes] = next(at).to_bytes(cfg.axi_bytes, "little")
    memory.bad = range(BASE, BASE + (2 * 4096))
    errors = []

    async def ask(ctx):
        ctx.set(dut.base, BASE)
        await axi_model.send(ctx, dut.command, [{"offset": o, "beats": b} for o, b in listed], random.Random(5), stall)
        await ctx.tick()
        await ctx.tick().until(~dut.busy)
        assert ctx.get(dut.idle)

    async def give(ctx):
        await axi_model.send(ctx, dut.beats, words, random.Random(6), stall)

    async def watch(ctx):
        async for _, _, error in ctx.tick().sample(dut.error):
            errors.append(error)

    axi_model.simulate(dut, ask, give, background=[memory.write(dut.bus), watch])
    assert memory.data == after
    assert sum(errors) == sum(addr in memory.bad for addr, _ in memory.writes)


def test_arbiter(axi_model):
    """Each client gets its own beats in order, whatever the other one does."""
    cfg = config()
    dut = ReadArbiter(cfg)
    lists = [[(client * 1000 + i, 1 + i % 5) for i in range(20)] for client in (0, 1)]

    async def reader(ctx):
        rng = random.Random(8)
        for _ in range(40):
            (command,) = await axi_model.receive(ctx, dut.command, 1, rng)
            offset, beats = command & 0xFFFFFFFF, command >> 32
            await axi_model.send(ctx, dut.read, [offset * 100 + i for i in range(beats)], rng)

    def ask(client):
        async def process(ctx):
            items = [{"offset": o, "beats": b} for o, b in lists[client]]
            await axi_model.send(ctx, dut.commands[client], items, random.Random(9 + client))

        return process

    def take(client):
        async def process(ctx):
            words = [o * 100 + i for o, b in lists[client] for i in range(b)]
            got = await axi_model.receive(ctx, dut.beats[client], len(words), random.Random(11 + client))
            assert got == words

        return process

    axi_model.simulate(dut, ask(0), ask(1), take(0), take(1), background=[reader])

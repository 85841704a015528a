# amaranth: UnusedElaboratable=no
"""The register map and what stands behind it: start, interrupt, errors, soft reset, counters."""

import random

import pytest

from hwgen import isa, latency
from hwgen.config import Config
from hwgen.registers import (
    ADDRESS_BITS,
    BASE_ALIGNMENT,
    ID,
    REGISTERS,
    Control,
    State,
    Status,
    config_hash,
    identity,
    manifest,
    offset,
)
from hwgen.rtl.control import RESET_SPREAD
from hwgen.rtl.control import Control as ControlUnit

CONFIG = Config(array_outputs=8, array_inputs=8, weight_ports=2)


@pytest.fixture
def unit(axi_model):
    dut = ControlUnit(CONFIG)
    return dut, axi_model.Lite(dut.bus, random.Random(1))


def test_register_map():
    assert len({r.offset for r in REGISTERS}) == len({r.name for r in REGISTERS}) == len(REGISTERS)
    for register in REGISTERS:
        assert register.offset % 4 == 0 and 0 <= register.offset < 1 << ADDRESS_BITS
        assert register.access in ("ro", "wo", "rw") and register.doc
    assert identity(CONFIG).keys() == {"ID", "VERSION", "CONFIG_HASH", "ISA"}
    entries = manifest(CONFIG)
    assert {e["name"]: e["value"] for e in entries if "value" in e} == identity(CONFIG)
    status = next(entry for entry in entries if entry["name"] == "STATUS")
    assert status["offset"] == offset("STATUS") and status["bits"]["DONE"] == int(Status.DONE)


def test_config_hash_tells_configs_apart():
    assert config_hash(CONFIG) == config_hash(Config.from_dict(CONFIG.to_dict()))
    assert config_hash(CONFIG) != config_hash(CONFIG.replace({"weight_ports": "3"}))
    assert config_hash(CONFIG) == config_hash(CONFIG.replace({"clock_mhz": "100"}))


def test_read_and_write(axi_model, unit):
    dut, lite = unit
    rng = random.Random(2)

    async def process(ctx):
        for name, value in identity(CONFIG).items():
            assert await lite.read(ctx, offset(name)) == value
        plain = [r for r in REGISTERS if r.access == "rw" and r.name != "CONTROL"]
        values = {r.name: rng.getrandbits(32) for r in plain}
        for name, value in values.items():
            await lite.write(ctx, offset(name), value)
        for name, value in values.items():
            if name.endswith("BASE_LO") or name.startswith("WEIGHT_BASE") and name.endswith("LO"):
                value &= -BASE_ALIGNMENT
            assert await lite.read(ctx, offset(name)) == value
        await lite.write(ctx, offset("PROGRAM"), 0x11223344)
        await lite.write(ctx, offset("PROGRAM"), 0xAABBCCDD, strobe=0b0101)
        assert await lite.read(ctx, offset("PROGRAM")) == 0x11BB33DD
        assert ctx.get(dut.program) == 0x11BB33DD
        base = values["DATA_BASE_HI"] << 32 | values["DATA_BASE_LO"] & -BASE_ALIGNMENT
        assert ctx.get(dut.data_base) == base
        base = values["WEIGHT_BASE1_HI"] << 32 | values["WEIGHT_BASE1_LO"] & -BASE_ALIGNMENT
        assert ctx.get(dut.weight_base[1]) == base
        await lite.write(ctx, offset("ID"), 0)
        assert await lite.read(ctx, offset("ID")) == ID
        await lite.write(ctx, 0xFFC, 1)
        assert await lite.read(ctx, 0xFFC) == 0

    axi_model.simulate(dut, process)


def test_run_interrupt_and_counters(axi_model, unit):
    dut, lite = unit
    cycles, started = 50, []

    async def sequencer(ctx):
        while True:
            _, _, start = await ctx.tick().sample(dut.start)  # a background process must not hang in `until`
            if not start:
                continue
            started.append(1)
            ctx.set(dut.running, 1)
            ctx.set(dut.events, {"array_active": 1, "weight_beats": 0b10, "busy": 1 << isa.Unit.VECTOR})
            for _ in range(cycles - 1):
                await ctx.tick()
            ctx.set(dut.finished, 1)
            await ctx.tick()
            ctx.set(dut.events, {})
            ctx.set(dut.finished, 0)
            ctx.set(dut.running, 0)

    async def process(ctx):
        async def status():
            return Status(await lite.read(ctx, offset("STATUS")))

        async def finish():
            while Status.BUSY in await status():
                pass

        assert await status() == Status(0)
        await lite.write(ctx, offset("CONTROL"), Control.START)
        assert Status.BUSY in await status()
        await lite.write(ctx, offset("CONTROL"), Control.START)  # ignored: busy
        await finish()
        assert await status() == Status.DONE | Status.IRQ and not ctx.get(dut.irq)
        await lite.write(ctx, offset("CONTROL"), Control.IRQ_ENABLE)
        assert ctx.get(dut.irq)
        assert await lite.read(ctx, offset("CONTROL")) == Control.IRQ_ENABLE
        await lite.write(ctx, offset("IRQ_CLEAR"), 1)
        assert not ctx.get(dut.irq) and await status() == Status.DONE
        for _ in range(2):  # counters start anew
            for name in ("CYCLES_LO", "ARRAY_ACTIVE", "WEIGHT_BEATS1", "BUSY_VECTOR"):
                assert await lite.read(ctx, offset(name)) == cycles
            for name in ("CYCLES_HI", "STALL_BANK", "WEIGHT_BEATS0", "WEIGHT_BEATS3", "BUSY_MATMUL"):
                assert await lite.read(ctx, offset(name)) == 0
            await lite.write(ctx, offset("CONTROL"), Control.START | Control.IRQ_ENABLE)
            await finish()
            assert ctx.get(dut.irq)
        ctx.set(dut.counts[isa.Unit.STORE], 7)
        ctx.set(dut.instruction, 9)
        ctx.set(dut.program_crc, 0xDEADBEEF)
        ctx.set(dut.flying, {"data_writes": 1, "weight_reads": 1})
        ctx.set(dut.events, {"busy": 1 << isa.Unit.STORE | 1 << isa.Unit.LOAD})
        assert await lite.read(ctx, offset("PROGRAM_CRC")) == 0xDEADBEEF
        want = State.STORE | State.LOAD | State.DATA_WRITES | State.WEIGHT_READS
        assert await lite.read(ctx, offset("STATE")) == want
        assert await lite.read(ctx, offset("FINISHED_STORE")) == 7
        assert await lite.read(ctx, offset("INSTRUCTION")) == 9

    axi_model.simulate(dut, process, background=[sequencer])
    assert len(started) == 3


def test_errors_and_soft_reset(axi_model, unit):
    dut, lite = unit
    resets, starts = [], []

    async def watch(ctx):
        async for _, _, reset, start, flying in ctx.tick().sample(dut.reset, dut.start, dut.flying):
            resets.append(reset)
            starts.append(start)
            assert not (reset and flying.data_reads)

    async def process(ctx):
        async def strobe(*signals):
            for signal in signals:
                ctx.set(signal, 1)
            await ctx.tick()
            for signal in signals:
                ctx.set(signal, 0)
            await ctx.tick()

        async def status():
            return Status(await lite.read(ctx, offset("STATUS")))

        ctx.set(dut.flying, {"data_reads": 1})
        await strobe(dut.read_error)
        assert ctx.get(dut.fault)
        await strobe(dut.write_error)
        await strobe(dut.finished, dut.illegal)
        flags = Status.DONE | Status.IRQ | Status.READ_ERROR | Status.WRITE_ERROR | Status.ILLEGAL
        assert await status() == flags
        await lite.write(ctx, offset("CONTROL"), Control.START)  # ignored
        assert await status() == flags
        await lite.write(ctx, offset("CONTROL"), Control.RESET)
        for _ in range(30):
            await ctx.tick()
        assert ctx.get(dut.drain) and Status.BUSY in await status()
        assert await lite.read(ctx, offset("STATE")) == State.DATA_READS | State.DRAINING
        ctx.set(dut.flying, {})
        for _ in range(latency.RESET + RESET_SPREAD + 3):
            await ctx.tick()
        assert await status() == Status(0) and not ctx.get(dut.drain)
        assert sum(resets) == latency.RESET and not any(starts)
        await lite.write(ctx, offset("CONTROL"), Control.START)
        await ctx.tick()
        assert sum(starts) == 1

    axi_model.simulate(dut, process, background=[watch])

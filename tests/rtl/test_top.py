# amaranth: UnusedElaboratable=no
"""The shell around a stand-in core: a program loads, streams, stores; registers and Verilog."""

import random
import re
import zlib

import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import Component, In, Out

from hwgen import isa
from hwgen.config import Config
from hwgen.registers import Control, Status, offset
from hwgen.rtl import top as shell
from hwgen.rtl.common import delay_valid
from hwgen.rtl.memory import RAM_LATENCY, Ram
from hwgen.rtl.ports import READ_LATENCY, SCALE_WRITE, insn_stream, read_port, write_port

CONFIG = Config(array_outputs=8, array_inputs=8, axi_bytes=8, weight_ports=2, weight_words=64)
DATA_BASE, WEIGHT_BASES = 0x2000, (0x0, 0x1000)


class StandIn(Component):
    """A scratchpad of 256 chunks; a matmul instruction takes 8 weight words, a vector instruction none."""

    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "matmul_insn": In(insn_stream()),
                "vector_insn": In(insn_stream()),
                "words": In(stream.Signature(data.ArrayLayout(signed(8), config.array_inputs))).array(2),
                "rd_store": In(read_port(config, 1)),
                "wr_load": In(write_port(config, 1)),
                "wr_scale": In(SCALE_WRITE),
                "nonempty": Out(config.max_experts),
                "array_active": Out(1),
                "stall_weights": Out(1),
                "stall_bank": Out(1),
                **{f"{unit}_{name}": Out(1) for unit in ("matmul", "vector") for name in ("done", "busy")},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(256, len(self.wr_load.data.as_value()))
        words = Signal(4)  # left for the matmul instruction at work
        both = self.words[0].valid & self.words[1].valid
        m.d.comb += [
            self.wr_load.ready.eq(1),
            self.wr_scale.ready.eq(1),
            ram.write_enable.eq(self.wr_load.valid),
            ram.write_addr.eq(self.wr_load.addr),
            ram.write_data.eq(self.wr_load.data),
            self.rd_store.ready.eq(1),
            ram.read_addr.eq(self.rd_store.addr),
            self.words[0].ready.eq(self.array_active),
            self.words[1].ready.eq(self.array_active),
            self.array_active.eq((words != 0) & both),
            self.stall_weights.eq((words != 0) & ~both),
            self.matmul_insn.ready.eq(words == 0),
            self.matmul_busy.eq(words != 0),
            self.matmul_done.eq((words == 2) & self.array_active),
            self.vector_insn.ready.eq(1),
            self.vector_done.eq(delay_valid(m, self.vector_insn.valid, 1)),
        ]
        value = ram.read_data
        for _ in range(READ_LATENCY - RAM_LATENCY):
            later = Signal.like(value, name="read_later")
            m.d.sync += later.eq(value)
            value = later
        m.d.comb += self.rd_store.data.as_value().eq(value)
        with m.If(self.matmul_insn.ready & self.matmul_insn.valid):
            m.d.sync += words.eq(8)
        with m.Elif(self.array_active):
            m.d.sync += words.eq(words - 2)
        return m


PROGRAM = [
    isa.Load(dram=512, dst=10, rows=6, chunks=4, pitch=5),
    isa.Stream(dram=0, words=16),
    isa.Stream(dram=100, words=9, expert=2),  # no token: skipped
    *(isa.Matmul(rows=1, inputs=1, outputs=1, x=0, x_pitch=0, shift=0, y=0, y_pitch=0, wait_load=1) for _ in range(2)),
    isa.Norm(rows=1, columns=1, x=0, x_pitch=0, y=0, y_pitch=0, y_scale=0, params=0, epsilon=1, wait_matmul=2),
    isa.Store(dram=700, src=10, rows=6, chunks=4, pitch=5, wait_load=1, wait_vector=1),
    isa.End(wait_store=1, wait_weights=2),
]


@pytest.fixture
def machine(axi_model, monkeypatch):
    """Top with the stand-in, memory with the program at the data base, and their background processes."""
    monkeypatch.setattr(shell, "Core", StandIn)
    dut, memory = shell.Top(CONFIG), axi_model.AxiMemory(0x8000, 1)
    binary = isa.assemble(PROGRAM)
    memory.data[DATA_BASE : DATA_BASE + len(binary)] = binary
    data_bus = axi_model.flat_bus(dut, "m_axi_data")
    background = [memory.read(data_bus), memory.write(data_bus)]
    background += [memory.read(axi_model.flat_bus(dut, f"m_axi_w{p}")) for p in range(CONFIG.weight_ports)]
    return dut, memory, axi_model.Lite(axi_model.flat_bus(dut, "s_axi"), random.Random(2)), background


async def set_up(ctx, lite):
    values = {"DATA_BASE_LO": DATA_BASE, "WEIGHT_BASE0_LO": WEIGHT_BASES[0], "WEIGHT_BASE1_LO": WEIGHT_BASES[1]}
    values |= {"PROGRAM": 0, "PROGRAM_LENGTH": len(PROGRAM)}
    for name, value in values.items():
        await lite.write(ctx, offset(name), value)


async def run(ctx, lite) -> Status:
    await lite.write(ctx, offset("CONTROL"), Control.START | Control.IRQ_ENABLE)
    while Status.BUSY in (status := Status(await lite.read(ctx, offset("STATUS")))):
        pass
    return status


def test_program(axi_model, machine):
    dut, memory, lite, background = machine

    async def process(ctx):
        await set_up(ctx, lite)
        for _ in range(2):
            assert await run(ctx, lite) == Status.DONE | Status.IRQ
            assert ctx.get(dut.irq)
            loaded, stored = (DATA_BASE + beat * CONFIG.axi_bytes for beat in (512, 700))
            assert memory.data[stored : stored + 24 * 16] == memory.data[loaded : loaded + 24 * 16]
            want = {"ARRAY_ACTIVE": 8, "DATA_WRITE_BEATS": 48, "DATA_READ_BEATS": 48 + 8 * len(PROGRAM)}
            want |= {"WEIGHT_BEATS0": 16, "WEIGHT_BEATS1": 16, "INSTRUCTION": len(PROGRAM)}
            want |= {f"FINISHED_{u.name}": sum(i.unit == u for i in PROGRAM) for u in isa.Unit}
            want["PROGRAM_CRC"] = zlib.crc32(isa.assemble(PROGRAM))
            want["STATE"] = 0
            for name, value in want.items():
                assert await lite.read(ctx, offset(name)) == value, name
            assert await lite.read(ctx, offset("CYCLES_LO")) > await lite.read(ctx, offset("BUSY_STORE")) > 0
            memory.data[loaded : loaded + 24 * 16] = random.Random(3).randbytes(24 * 16)

    axi_model.simulate(dut, process, background=background)


def test_soft_reset_in_the_middle_and_after_an_error(axi_model, machine):
    dut, memory, lite, background = machine

    async def reset(ctx):
        await lite.write(ctx, offset("CONTROL"), Control.RESET)
        while Status.BUSY in Status(await lite.read(ctx, offset("STATUS"))):
            pass

    async def process(ctx):
        await set_up(ctx, lite)
        for wait in (3, 40, 77, 120):
            await lite.write(ctx, offset("CONTROL"), Control.START)
            for _ in range(wait):
                await ctx.tick()
            await reset(ctx)
            assert await lite.read(ctx, offset("STATUS")) == 0
        memory.bad = range(WEIGHT_BASES[1], WEIGHT_BASES[1] + 64)
        assert Status.READ_ERROR in await run(ctx, lite)
        memory.bad = range(0)
        await reset(ctx)
        assert await run(ctx, lite) == Status.DONE | Status.IRQ
        loaded, stored = (DATA_BASE + beat * CONFIG.axi_bytes for beat in (512, 700))
        assert memory.data[stored : stored + 24 * 16] == memory.data[loaded : loaded + 24 * 16]

    axi_model.simulate(dut, process, background=background)


def test_emit(monkeypatch):
    monkeypatch.setattr(shell, "Core", StandIn)
    files = shell.emit(CONFIG)
    assert files == shell.emit(CONFIG)
    assert set(files) == {"hwgen_top.v", "ram_sdp.v"}
    text = files["hwgen_top.v"]
    ports = re.search(r"^module hwgen_top\((.*?)\);", text, re.MULTILINE | re.DOTALL).group(1)
    names = {name.strip() for name in ports.split(",")}
    assert {"clk", "rst", "irq", "s_axi_awaddr", "m_axi_data_wstrb", "m_axi_w0_araddr", "m_axi_w1_rlast"} <= names
    assert "m_axi_w0_awaddr" not in names and "m_axi_w2_araddr" not in names
    assert re.search(r"^  input \[63:0\] m_axi_data_rdata;", text, re.MULTILINE)
    assert re.search(r"^  output \[63:0\] m_axi_w1_araddr;", text, re.MULTILINE)
    assert not re.search(r"/\w+/\w+/|src =|\[-1:0\]", text)

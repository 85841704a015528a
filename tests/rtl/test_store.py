# amaranth: UnusedElaboratable=no
"""StoreUnit with its AxiWriter: chunks reach DRAM, `done` comes after the last write is answered."""

import random

import pytest
from amaranth.hdl import Module
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from hwgen import isa
from hwgen.config import Config
from hwgen.rtl.axi import AxiWriter, axi_write
from hwgen.rtl.ports import READ_LATENCY, insn_stream, read_port
from hwgen.rtl.store import StoreUnit

SHAPES = {
    "exact": {"array_outputs": 8, "array_inputs": 8, "axi_bytes": 16},
    "padded": {"array_outputs": 12, "array_inputs": 20, "axi_bytes": 16},
    "odd": {"array_outputs": 12, "array_inputs": 12, "axi_bytes": 16},
    "narrow": {"array_outputs": 16, "array_inputs": 16, "axi_bytes": 4},
}

PROGRAM = [
    isa.Store(dram=5, src=10, rows=1, chunks=1, pitch=1),
    isa.Store(dram=100, src=100, rows=4, chunks=3, pitch=5),
    isa.Store(dram=0, src=0, rows=3, chunks=0, pitch=4),
    isa.Store(dram=240, src=50, rows=1, chunks=40, pitch=0),
]


class Storing(Component):
    def __init__(self, config: Config):
        self.config = config
        super().__init__(
            {
                "insn": In(insn_stream()),
                "rd": Out(read_port(config, 1)),
                "bus": Out(axi_write(config)),
                "done": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.unit = unit = StoreUnit(self.config)
        m.submodules.writer = writer = AxiWriter(self.config)
        connect(m, flipped(self.insn), unit.insn)
        connect(m, unit.rd, flipped(self.rd))
        connect(m, unit.command, writer.command)
        connect(m, unit.beats, writer.beats)
        connect(m, writer.bus, flipped(self.bus))
        m.d.comb += [self.done.eq(unit.done), self.busy.eq(unit.busy), unit.writing.eq(writer.busy)]
        return m


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_store(axi_model, shape, stall):
    config = Config(**SHAPES[shape])
    dut, rng = Storing(config), random.Random(1)
    memory = axi_model.AxiMemory(2048 * config.axi_bytes, 2, stall)
    want = bytearray(memory.data)
    scratch = [random.Random(3 + i).getrandbits(16 * config.chunk) for i in range(200)]
    finished = []

    async def reads(ctx):
        arriving = [None] * READ_LATENCY
        while True:
            ready = rng.random() >= stall
            ctx.set(dut.rd.ready, ready)
            now = arriving.pop(0)
            ctx.set(dut.rd.data.as_value(), rng.getrandbits(16 * config.chunk) if now is None else now)
            _, _, valid, addr, done = await ctx.tick().sample(dut.rd.valid, dut.rd.addr, dut.done)
            arriving.append(scratch[addr] if valid and ready else None)
            if done:
                finished.append(bytes(memory.data))

    async def issue(ctx):
        await axi_model.send(ctx, dut.insn, [isa.encode(i) for i in PROGRAM], random.Random(4), stall)
        while len(finished) < len(PROGRAM):
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(dut.busy)

    axi_model.simulate(dut, issue, background=[reads, memory.write(dut.bus)])

    padded = config.chunk_beats * config.axi_bytes
    for insn, seen in zip(PROGRAM, finished, strict=True):
        for i in range(insn.rows * insn.chunks):
            r, c = divmod(i, insn.chunks)
            at = insn.dram * config.axi_bytes + i * padded
            chunk = scratch[insn.src + r * insn.pitch + c].to_bytes(2 * config.chunk, "little")
            want[at : at + len(chunk)] = chunk
            want[at + len(chunk) : at + padded] = seen[at + len(chunk) : at + padded]  # padding: anything
        assert seen == want

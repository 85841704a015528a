"""cocotb's side of `test_foreign_bus`: the generated top between cocotbext-axi's models, with pauses and errors.

Works through `job.json` in $HWGEN_BENCH and leaves `result.json` there: of every run its status and what memory held.
"""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam, AxiRamRead, AxiReadBus, AxiResp

from hwgen import registers
from hwgen.registers import Control, Status

PATIENCE = 400_000  # cycles of a run


def pauses(rng: random.Random, share: float, longest: int):
    """Forever: whether a channel waits, `share` of the time, in stretches of up to `longest` cycles."""
    while True:
        waits = rng.random() < share
        yield from [waits] * rng.randint(1, longest)


class Faults:
    """Answers of one kind, one of which, counted from 0, is an error."""

    def __init__(self, channel, field: str):
        self.field, self.inner, self.at, self.count = field, channel.send, None, 0
        channel.send = self.send

    async def send(self, answer):
        if self.count == self.at:
            setattr(answer, self.field, AxiResp.SLVERR)
        self.count += 1
        await self.inner(answer)


class Bus:
    """The models around the design."""

    def __init__(self, dut, job: dict):
        self.dut, self.rng = dut, random.Random(job["seed"])
        size = 1 << (max(job["bases"]) + job["size"]).bit_length()
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi_data"), dut.clk, dut.rst, size=size)
        weights = [
            AxiRamRead(AxiReadBus.from_prefix(dut, f"m_axi_w{p}"), dut.clk, dut.rst, size=size, mem=self.ram.mem)
            for p in range(job["ports"])
        ]
        self.lite = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi"), dut.clk, dut.rst)
        write, read = self.ram.write_if, self.ram.read_if
        self.channels = [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
        self.channels += [c for w in weights for c in (w.ar_channel, w.r_channel)]
        write, read = self.lite.write_if, self.lite.read_if
        self.channels += [write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel]
        self.faults = [Faults(self.ram.read_if.r_channel, "rresp"), Faults(self.ram.write_if.b_channel, "bresp")]
        self.faults += [Faults(w.r_channel, "rresp") for w in weights]

    def pause(self, share: float, longest: int) -> None:
        for channel in self.channels:
            channel.set_pause_generator(pauses(random.Random(self.rng.random()), share, longest))

    async def write(self, name: str, value: int) -> None:
        await self.lite.write_dword(registers.offset(name), value)

    async def read(self, name: str) -> int:
        return await self.lite.read_dword(registers.offset(name))

    async def status(self) -> Status:
        return Status(await self.read("STATUS"))


async def run(bus: Bus, job: dict, entry: dict) -> dict:
    """One image: its status, what memory holds behind, and how many answers of each kind there were."""
    base = entry["base"]
    bus.pause(entry["share"], entry["longest"])
    bus.ram.write(base, Path(os.environ["HWGEN_BENCH"], "dram.bin").read_bytes())
    for offset, data in job["writes"][entry["image"]]:
        bus.ram.write(base + offset, base64.b64decode(data))
    places = {"DATA_BASE": job["data_base"], **{f"WEIGHT_BASE{p}": b for p, b in enumerate(job["weight_bases"])}}
    for name, place in places.items():
        await bus.write(f"{name}_LO", (base + place) & 0xFFFFFFFF)
        await bus.write(f"{name}_HI", (base + place) >> 32)
    await bus.write("PROGRAM", job["program"])
    await bus.write("PROGRAM_LENGTH", job["instructions"])
    for n, fault in enumerate(bus.faults):
        fault.count, fault.at = 0, entry["fault"][1] if entry["fault"] and entry["fault"][0] == n else None
    await bus.write("CONTROL", Control.START | Control.IRQ_ENABLE)
    for _ in range(PATIENCE // 16):
        await ClockCycles(bus.dut.clk, 16)
        if int(bus.dut.irq.value):
            break
    status = await bus.status()
    reads = [base64.b64encode(bus.ram.read(base + offset, length)).decode() for offset, length in job["reads"]]
    await bus.write("CONTROL", Control.RESET)
    while Status.BUSY in await bus.status():
        pass
    return {"status": int(status), "reads": reads, "answers": [fault.count for fault in bus.faults]}


@cocotb.test()
async def work(dut) -> None:
    folder = Path(os.environ["HWGEN_BENCH"])
    job = json.loads((folder / "job.json").read_text())
    Clock(dut.clk, 4, unit="ns").start()
    dut.rst.value = 1
    bus = Bus(dut, job)
    await ClockCycles(dut.clk, 8)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 4)
    assert await bus.read("CONFIG_HASH") == job["config_hash"]
    rng = random.Random(job["seed"])
    clean = [
        {"image": k % 2, "base": base, "share": share, "longest": longest, "fault": None}
        for k, (base, (share, longest)) in enumerate((b, p) for b in job["bases"] for p in job["pauses"])
    ]
    results = [entry | await run(bus, job, entry) for entry in clean]
    for kind, count in enumerate(results[0]["answers"]):
        for at in {0, count - 1, rng.randrange(count), rng.randrange(count)} if count else ():
            entry = {"image": 0, "base": job["bases"][-1], "share": 0.3, "longest": 3, "fault": [kind, at]}
            results.append(entry | await run(bus, job, entry))
            results.append({**entry, "fault": None} | await run(bus, job, {**entry, "fault": None}))
    (folder / "result.json").write_text(json.dumps(results))

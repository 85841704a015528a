"""The cocotb side of `tb.v`: writes the registers, starts, waits for the interrupt, reads counters and memory.

Works through the runs of `job.json` in the directory $HWGEN_BENCH and leaves `result.json` there.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, ReadOnly, RisingEdge, Timer, with_timeout

from hwgen import registers
from hwgen.registers import Control, Status

PERIOD_NS = 4
PROGRESS_CYCLES = 10_000


class Bench:
    """Register and back-door access to the bench `dut`."""

    def __init__(self, dut, beat: int):
        self.dut, self.beat = dut, beat

    async def reset(self) -> None:
        """All inputs low, then a reset of some clocks."""
        dut = self.dut
        for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
            getattr(dut, f"s_axi_{name}").value = 0
        for name in ("s_axi_awaddr", "s_axi_araddr", "s_axi_wdata", "fault_error", "fault_hold"):
            getattr(dut, name).value = 0
        for name in ("load", "write", "addr", "wdata"):
            getattr(dut, f"backdoor_{name}").value = 0
        await self.pulse_reset()

    async def pulse_reset(self) -> None:
        """The reset pin for some clocks."""
        dut = self.dut
        dut.rst.value = 1
        await ClockCycles(dut.clk, 8)
        dut.rst.value = 0
        await ClockCycles(dut.clk, 2)

    async def _until(self, signal) -> None:
        """Wait for the clock edge at which `signal` is high."""
        while True:
            await ReadOnly()
            high = bool(signal.value)
            await RisingEdge(self.dut.clk)
            if high:
                return

    async def write(self, name: str, value: int) -> None:
        """Write a register by its name in hwgen.registers."""
        await self.write_at(registers.offset(name), value)

    async def write_at(self, offset: int, value: int) -> None:
        """Write the register at a byte offset."""
        dut = self.dut
        dut.s_axi_awaddr.value, dut.s_axi_wdata.value = offset, value
        dut.s_axi_awvalid.value = dut.s_axi_wvalid.value = dut.s_axi_bready.value = 1
        pending = {"aw", "w", "b"}
        while pending:
            await ReadOnly()
            done = {
                "aw": dut.s_axi_awready.value == 1,
                "w": dut.s_axi_wready.value == 1,
                "b": dut.s_axi_bvalid.value == 1,
            }
            await RisingEdge(dut.clk)
            for channel in [c for c in pending if done[c]]:
                pending.discard(channel)
                getattr(dut, {"aw": "s_axi_awvalid", "w": "s_axi_wvalid", "b": "s_axi_bready"}[channel]).value = 0

    async def read(self, name: str) -> int:
        """Value of a register, by its name."""
        return await self.read_at(registers.offset(name))

    async def read_at(self, offset: int) -> int:
        """Value of the register at a byte offset."""
        dut = self.dut
        dut.s_axi_araddr.value = offset
        dut.s_axi_arvalid.value = 1
        await self._until(dut.s_axi_arready)
        dut.s_axi_arvalid.value, dut.s_axi_rready.value = 0, 1
        while True:
            await ReadOnly()
            valid, value = dut.s_axi_rvalid.value == 1, dut.s_axi_rdata.value
            await RisingEdge(dut.clk)
            if valid:
                dut.s_axi_rready.value = 0
                return int(value)

    async def poke(self, offset: int, data: bytes) -> None:
        """Write memory through the back door; whole beats, else ValueError."""
        dut = self.dut
        if offset % self.beat or len(data) % self.beat:
            raise ValueError(f"back-door write of {len(data)} bytes at {offset} is not whole beats")
        dut.backdoor_write.value = 1
        for i in range(0, len(data), self.beat):
            dut.backdoor_addr.value = (offset + i) // self.beat
            dut.backdoor_wdata.value = int.from_bytes(data[i : i + self.beat], "little")
            await RisingEdge(dut.clk)
        dut.backdoor_write.value = 0
        await RisingEdge(dut.clk)

    async def load(self, offset: int) -> None:
        """The words of the file that +load names, to memory from a beat-aligned byte offset on."""
        dut = self.dut
        dut.backdoor_addr.value, dut.backdoor_load.value = offset // self.beat, 1
        await RisingEdge(dut.clk)
        dut.backdoor_load.value = 0
        await RisingEdge(dut.clk)

    async def peek(self, offset: int, length: int) -> bytes:
        """Bytes of memory through the back door."""
        dut, data = self.dut, b""
        first, last = offset // self.beat, -(-(offset + length) // self.beat)
        for word in range(first, last):
            dut.backdoor_addr.value = word
            await ClockCycles(dut.clk, 2)
            await ReadOnly()
            data += int(dut.backdoor_rdata.value).to_bytes(self.beat, "little")
            await RisingEdge(dut.clk)
        start = offset - first * self.beat
        return data[start : start + length]

    async def snapshot(self) -> dict[str, int]:
        """Every readable register by name."""
        return {r.name: await self.read(r.name) for r in registers.REGISTERS if r.access != "wo"}


async def run(bench: Bench, job: dict, number: int, directory: Path) -> dict:
    """Run `number` of the job: registers and memory after the accelerator halted. Raises RuntimeError if it failed or hung.

    On the way it writes the number and the cycles so far to `directory`.
    """
    entry = job["runs"][number]
    dut = bench.dut
    for offset, data in entry["writes"]:
        await bench.poke(offset, base64.b64decode(data))
    for name, value in job["settings"].items():
        await bench.write(f"{name}_LO", value & 0xFFFFFFFF)
        await bench.write(f"{name}_HI", value >> 32)
    await bench.write("PROGRAM", entry["program"])
    await bench.write("PROGRAM_LENGTH", entry["instructions"])
    await bench.write("CONTROL", Control.START | Control.IRQ_ENABLE)
    for cycles in range(0, job["timeout"], PROGRESS_CYCLES):
        (directory / "progress.txt").write_text(f"{number} {cycles}")
        step = min(PROGRESS_CYCLES, job["timeout"] - cycles)
        await First(RisingEdge(dut.irq), Timer(step * PERIOD_NS, "ns"))
        if dut.irq.value == 1:
            break
    await RisingEdge(dut.clk)
    values = await bench.snapshot()
    status = Status(values["STATUS"])
    if status & (Status.READ_ERROR | Status.WRITE_ERROR | Status.ILLEGAL) or not status & Status.DONE:
        listed = ", ".join(f"{name}={value}" for name, value in values.items() if value)
        what = "failed" if status & Status.DONE or not status & Status.BUSY else f"did not halt in {job['timeout']} cycles"
        raise RuntimeError(f"the accelerator {what}: {status!r}; {listed}")
    await bench.write("IRQ_CLEAR", 1)
    reads = [base64.b64encode(await bench.peek(offset, length)).decode() for offset, length in entry["reads"]]
    return {"reads": reads, "registers": values}


@cocotb.test()
async def work(dut) -> None:
    """Every run of the job, in order."""
    directory = Path(os.environ["HWGEN_BENCH"])
    job = json.loads((directory / "job.json").read_text())
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    bench = Bench(dut, job["beat"])
    await bench.reset()
    try:
        if (found := await with_timeout(bench.read("CONFIG_HASH"), 10, "us")) != job["config_hash"]:
            raise RuntimeError(f"the hardware's Config hash {found:#x} is not the program's {job['config_hash']:#x}")
        report = {"runs": [await run(bench, job, number, directory) for number in range(len(job["runs"]))]}
    except RuntimeError as error:
        report = {"error": str(error)}
    (directory / "result.json").write_text(json.dumps(report))

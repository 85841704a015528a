"""The cocotb side of `hwgen.sim.cosim`: takes commands from the socket in $HWGEN_BENCH until its other end closes.

Every answer is (clocks since the start, value).
"""

from __future__ import annotations

import os
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, First, RisingEdge
from cocotb.utils import get_sim_time

from ..child import commands
from .bench import PERIOD_NS, Bench


class Server:
    """The commands by name, on a bench."""

    def __init__(self, bench: Bench):
        self.bench, self.dut = bench, bench.dut

    async def read(self, offset: int) -> int:
        return await self.bench.read_at(offset)

    async def write(self, offset: int, value: int) -> None:
        await self.bench.write_at(offset, value)

    async def advance(self, cycles: int) -> None:
        if cycles:
            await ClockCycles(self.dut.clk, cycles)

    async def wait(self, cycles: int) -> bool:
        if not self.dut.irq.value:
            await First(RisingEdge(self.dut.irq), ClockCycles(self.dut.clk, cycles))
            await RisingEdge(self.dut.clk)
        return bool(self.dut.irq.value)

    async def poke(self, offset: int, data: bytes) -> None:
        await self.bench.poke(offset, data)

    async def load(self, offset: int) -> None:
        await self.bench.load(offset)

    async def peek(self, offset: int, size: int) -> bytes:
        return await self.bench.peek(offset, size)

    async def fault(self, error: bool, hold: bool) -> None:
        self.dut.fault_error.value, self.dut.fault_hold.value = int(error), int(hold)
        await RisingEdge(self.dut.clk)

    async def reset(self) -> None:
        await self.bench.pulse_reset()


@cocotb.test()
async def serve(dut) -> None:
    """Commands until the connection closes."""
    folder = Path(os.environ["HWGEN_BENCH"])
    Clock(dut.clk, PERIOD_NS, unit="ns").start()
    bench = Bench(dut, len(dut.backdoor_wdata) // 8)
    await bench.reset()
    server = Server(bench)
    for name, arguments, answer in commands(folder):
        result = await getattr(server, name)(*arguments)
        answer((round(get_sim_time("ns")) // PERIOD_NS, result))

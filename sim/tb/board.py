"""The cocotb side of `board_tb.v`: bytes from the socket in $HWGEN_BENCH go to the board's serial line, and back.

Commands: ("write", bytes); ("read", count, clocks): at most `count` bytes, fewer where `clocks` pass without one;
("advance", clocks); ("state",): clocks since the start, LEDs, violations of the SDRAM and the first one's code.
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, First, Timer
from cocotb.utils import get_sim_time

from ..child import commands


class SerialLine:
    """The other end of the board's line: `period` picoseconds a clock, `bit` clocks a bit."""

    def __init__(self, dut, period: int, bit: int):
        self.dut, self.period, self.bit = dut, period, bit
        self.received: deque[int] = deque()
        dut.to_board.value = 1
        cocotb.start_soon(self._receive())

    async def clocks(self, count: int) -> None:
        await Timer(count * self.period, unit="ps")

    async def write(self, data: bytes) -> None:
        for byte in data:
            for bit in (0, *(byte >> i & 1 for i in range(8)), 1):
                self.dut.to_board.value = bit
                await self.clocks(self.bit)

    async def _receive(self) -> None:
        while True:
            await FallingEdge(self.dut.from_board)
            await self.clocks(self.bit + self.bit // 2)
            byte = 0
            for i in range(8):
                byte |= int(self.dut.from_board.value) << i
                await self.clocks(self.bit)
            assert self.dut.from_board.value == 1, "a byte without its stop bit"
            self.received.append(byte)

    async def read(self, count: int, patience: int) -> bytes:
        result, waited = bytearray(), 0
        while len(result) < count and waited < patience:
            if self.received:
                result.append(self.received.popleft())
                waited = 0
            else:
                edge = FallingEdge(self.dut.from_board)
                await First(edge, Timer(8 * self.bit * self.period, unit="ps"))
                await self.clocks(self.bit)
                waited += 8 * self.bit
        return bytes(result)


@cocotb.test()
async def serve(dut) -> None:
    """Commands until the connection closes."""
    folder = Path(os.environ["HWGEN_BENCH"])
    period, bit = int(os.environ["HWGEN_PERIOD_PS"]), int(os.environ["HWGEN_BIT_CYCLES"])
    dut.button_n.value = 1
    line = SerialLine(dut, period, bit)
    Clock(dut.clk, period, unit="ps").start()
    for name, arguments, answer in commands(folder):
        if name == "state":
            clocks = round(get_sim_time("ps")) // period
            answer((clocks, int(dut.led.value), int(dut.violations.value), int(dut.first.value)))
        elif name == "advance":
            answer(await line.clocks(*arguments))
        else:
            answer(await getattr(line, name)(*arguments))

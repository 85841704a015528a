"""The Verilog in a simulator that runs beside this process and does what it is told, register by register.

The simulator is a child process (`python -m hwgen.sim.cosim FOLDER`), whose cocotb side (`tb/server.py`) takes commands from a
socket; between commands simulated time stands still. The memory model is Verilog, so Python is at work at register accesses
only.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from hwgen import registers
from hwgen.config import Config
from hwgen.dram import Dram
from hwgen.energy import Activity, activity
from hwgen.registers import Control

from . import rtl
from .child import Child, main
from .dram import plusargs

LOAD_FILE = "load.bin"
POKE_BYTES = 4096  # what is longer goes through a file


class Cosimulation:
    """An engine for `hwgen.sim.device` over the simulated Verilog; see there for what it offers.

    Raises RuntimeError where the simulator is missing, does not compile the design, or dies.
    """

    name = "simulated Verilog"
    cycles_exact = True

    def __init__(
        self,
        verilog: dict[str, str],
        config: Config,
        size: int,
        dram: Dram,
        simulator: str = "verilator",
    ):
        self.config, self.bytes, self.cycles = config, size, 0
        self._total, self._offsets = Activity(), {name: r.offset for name, r in registers.BY_NAME.items()}
        job = {"verilog": verilog, "config": config.to_dict(), "size": size, "dram": asdict(dram), "simulator": simulator}
        self._child = Child("hwgen.sim.cosim", job)

    def _ask(self, *command):
        self.cycles, answer = self._child.ask(*command)
        return answer

    # --- what hwgen.sim.device asks for -------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Value of the register at a byte offset."""
        return self._ask("read", offset)

    def write(self, offset: int, value: int) -> None:
        """Write the register at a byte offset."""
        if offset == self._offsets["CONTROL"] and value & Control.START:
            self._collect()
        self._ask("write", offset, value)

    def advance(self, cycles: int) -> None:
        """Let clocks pass."""
        self._ask("advance", cycles)

    def wait(self, cycles: int) -> bool:
        """Let clocks pass until the interrupt, `cycles` at most; whether it is high."""
        return self._ask("wait", cycles)

    def poke(self, address: int, data: bytes) -> None:
        """Write memory from outside."""
        beat = self.config.axi_bytes
        self._check(address, len(data))
        before, after = address % beat, -(address + len(data)) % beat
        if before or after:  # memory is written in whole words
            around = self._ask("peek", address - before, before + len(data) + after)
            data = around[:before] + data + around[len(around) - after :]
        if len(data) > POKE_BYTES:
            (self._child.path / LOAD_FILE).write_bytes(rtl.memory_file(data, beat))
            self._ask("load", address - before)
        else:
            self._ask("poke", address - before, data)

    def peek(self, address: int, size: int) -> bytes:
        """Read memory from outside."""
        self._check(address, size)
        return self._ask("peek", address, size)

    def _check(self, address: int, size: int) -> None:
        if not 0 <= address <= address + size <= self.bytes:
            raise ValueError(f"bytes {address} to {address + size} lie outside the {self.bytes} of DRAM")

    def fault(self, error: bool, hold: bool) -> None:
        """error: DRAM answers with errors; hold: it does not answer at all."""
        self._ask("fault", error, hold)

    def reset(self) -> None:
        """The reset pin."""
        self._collect()
        self._ask("reset")

    def activity(self) -> Activity:
        """What all runs so far have done."""
        lanes = Activity(lane_cycles=self.cycles * self.config.macs_per_cycle)
        return self._total + self._last() + lanes

    def _collect(self) -> None:
        """The counters start anew: keep what they hold."""
        self._total += self._last()

    def _last(self) -> Activity:
        get = {name: self.read(at) for name, at in self._offsets.items() if "BEATS" in name or name == "ARRAY_ACTIVE"}
        beat = self.config.axi_bytes
        return activity(
            self.config,
            cycles=0,  # counted with time
            array_active=get["ARRAY_ACTIVE"],
            weight_bytes=beat * sum(value for name, value in get.items() if name.startswith("WEIGHT_BEATS")),
            data_bytes=beat * (get["DATA_READ_BEATS"] + get["DATA_WRITE_BEATS"]),
        )

    def close(self) -> None:
        """End the simulator."""
        self._child.close()


def serve(folder: Path, job: dict) -> None:
    """The child: compile the design where no build is cached, and run it until the commands end."""
    arguments = (f"+load={folder / LOAD_FILE}", *plusargs(Dram(**job["dram"])))
    rtl.run_bench(
        job["verilog"],
        Config.from_dict(job["config"]),
        job["size"],
        "hwgen.sim.tb.server",
        folder,
        simulator=job["simulator"],
        plusargs=arguments,
    )


if __name__ == "__main__":
    sys.exit(main(serve))

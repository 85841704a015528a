"""An ECP5 board in simulation: its pins, the SDRAM beside it, and the serial line as a port for `hwgen.host.serial_link`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from . import simulators
from .child import Child, main


@dataclass(frozen=True)
class State:
    """Clocks since the start, the LEDs, and what the SDRAM found wrong (the first one's code, see `tb/sdram.v`)."""

    clocks: int
    led: int
    violations: int
    first: int


class SimulatedBoard:
    """The design `verilog` (file name -> text, top module board_ecp5) in Verilator, with a serial line.

    clock_mhz: of the machine; bit_cycles: clocks of a bit. Raises RuntimeError as `Child`.
    """

    def __init__(self, verilog: dict[str, str], clock_mhz: float, bit_cycles: int):
        self.clock_mhz = clock_mhz
        period = 2 * round(5e5 / clock_mhz)  # picoseconds, even
        self._child = Child("hwgen.sim.board", {"verilog": verilog, "period": period, "bit_cycles": bit_cycles})

    def write(self, data: bytes) -> None:
        """Bytes to the board."""
        self._child.ask("write", data)

    def read(self, count: int, seconds: float) -> bytes:
        """At most `count` bytes from the board, fewer where simulated `seconds` pass without one."""
        return self._child.ask("read", count, round(seconds * self.clock_mhz * 1e6))

    def advance(self, clocks: int) -> None:
        """Let clocks pass."""
        self._child.ask("advance", clocks)

    def now(self) -> float:
        """Simulated seconds."""
        return self.state().clocks / (self.clock_mhz * 1e6)

    def sleep(self, seconds: float) -> None:
        """Let simulated seconds pass."""
        self.advance(max(1, round(seconds * self.clock_mhz * 1e6)))

    def state(self) -> State:
        """What can be seen of the board."""
        return State(*self._child.ask("state"))

    def close(self) -> None:
        """End the simulator."""
        self._child.close()


def serve(folder: Path, job: dict) -> None:
    """The child: compile the design where no build is cached, and run it until the commands end."""
    bench = resources.files("hwgen.sim").joinpath("tb")
    sources = dict(job["verilog"])
    for name in ("ecp5.v", "sdram.v", "board_tb.v"):
        sources[name] = bench.joinpath(name).read_text()
    environment = {
        "HWGEN_BENCH": str(folder),
        "HWGEN_PERIOD_PS": str(job["period"]),
        "HWGEN_BIT_CYCLES": str(job["bit_cycles"]),
    }
    simulators.run_bench(sources, "board_tb", "hwgen.sim.tb.board", folder, environment=environment)


if __name__ == "__main__":
    sys.exit(main(serve))

"""A simulated board for the driver: registers, buffers, interrupt, clock and power rails over an engine.

The engine is the machine model (`register_file`, fast) or the Verilog in a simulator (`cosim`, exact). Time is
simulated: it passes while the driver sleeps, waits or reads registers. CPU caches are modelled the hard way: what the
driver does not flush the accelerator never sees, what it does not invalidate it never sees itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwgen import boards
from hwgen.config import Config
from hwgen.dram import of_board
from hwgen.energy import Activity, estimate
from hwgen.errors import UserError

PAGE = 4096
POLL_SECONDS = 10e-6
COPIES = 3  # the data region twice, and gaps: room that a bundle's memory gets


class Buffer:
    """Memory of the simulated board: `array` is the CPU's view, `address` the accelerator's."""

    def __init__(self, board: SimulatedBoard, address: int, size: int):
        self.array, self.address, self._board = np.zeros(size, np.uint8), address, board

    def flush(self, start: int, size: int) -> None:
        """Make bytes that the CPU wrote visible to the accelerator."""
        self._board.engine.poke(self.address + start, self.array[start : start + size].tobytes())

    def invalidate(self, start: int, size: int) -> None:
        """Make bytes that the accelerator wrote visible to the CPU."""
        data = self._board.engine.peek(self.address + start, size)
        self.array[start : start + size] = np.frombuffer(data, np.uint8)

    def free(self) -> None:
        self._board.release(self)


class SimulatedBoard:
    """What `hwgen.host.device` asks of a device, over `engine`.

    engine: read(offset), write(offset, value), advance(cycles), wait(cycles) -> interrupt, poke(address, data),
    peek(address, size), cycles, bytes, fault(error, hold), reset(), close(). lock_path: a lock file that processes share.
    """

    simulated = True
    grace = 0.0
    poll_seconds = POLL_SECONDS
    sample_seconds, idle_seconds = 20e-6, 1e-3

    def __init__(self, engine, config: Config, board: boards.Board, lock_path: Path | str | None = None):
        self.engine, self.lock_path = engine, lock_path
        self.name = f"simulated {board.name} ({engine.name})"
        self.clock_mhz = config.clock_mhz
        self.cycles_exact = engine.cycles_exact
        self._config, self._board = config, board
        self._buffers: list[Buffer] = []
        self._observers: list[list] = []  # period, last call, function
        self._sampled = (0, Activity())
        self._watts: dict[str, float] = {}
        self._closed = False

    def read(self, offset: int) -> int:
        return self.engine.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.engine.write(offset, value)

    # --- memory -------------------------------------------------------------------------------------------------

    @property
    def allocated(self) -> int:
        """Bytes in buffers that are not freed."""
        return sum(len(buffer.array) for buffer in self._buffers)

    def allocate(self, size: int) -> Buffer:
        """The first gap that is large enough; a page is left free before each buffer. Raises MemoryError."""
        start = PAGE
        for buffer in sorted(self._buffers, key=lambda b: b.address):
            if start + size <= buffer.address - PAGE:
                break
            start = -(-(buffer.address + len(buffer.array)) // PAGE) * PAGE + PAGE
        if start + size > self.engine.bytes:
            raise MemoryError(f"no {size} bytes free in the {self.engine.bytes} of the simulated DRAM")
        buffer = Buffer(self, start, size)
        self._buffers.append(buffer)
        return buffer

    def release(self, buffer: Buffer) -> None:
        """Take a buffer back; ValueError if it is none of ours."""
        self._buffers.remove(buffer)

    # --- time ---------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.engine.cycles / (self.clock_mhz * 1e6)

    def sleep(self, seconds: float) -> None:
        self.engine.advance(self._cycles(seconds))
        self._call()

    def wait_interrupt(self, seconds: float) -> bool:
        """In steps of the observers' period, so that they see what happens meanwhile."""
        end = self.now() + seconds
        step = min((period for period, _, _ in self._observers), default=seconds)
        while (left := end - self.now()) > 0:
            if self.engine.wait(self._cycles(min(left, step))):
                return True
            self._call()
        return False

    def every(self, seconds: float, call):
        """Call whenever so much simulated time has passed, until the returned function is called."""
        entry = [seconds, self.now(), call]
        self._observers.append(entry)
        return lambda: self._observers.remove(entry)

    def _call(self) -> None:
        for entry in self._observers:
            if self.now() - entry[1] >= entry[0]:
                entry[1] = self.now()
                entry[2]()

    def _cycles(self, seconds: float) -> int:
        return max(1, round(seconds * self.clock_mhz * 1e6))

    # --- power --------------------------------------------------------------------------------------------------

    def rails(self) -> dict:
        """The board's rails. A sample is the estimate of hwgen.energy over the simulated time since the last one."""
        return {rail: lambda rail=rail: self._sample()[rail] for rail in self._board.rails}

    def _sample(self) -> dict[str, float]:
        cycles, before = self._sampled
        now = self.engine.cycles
        if now > cycles or not self._watts:
            activity = self.engine.activity()
            seconds = max(now - cycles, 1) / (self.clock_mhz * 1e6)
            joules = estimate(activity - before, seconds)
            fabric = (joules["total"] - joules["dram"]) / seconds
            board = (self._board.idle_w or 0.0) + (joules["total"] - joules["static"]) / seconds
            # The first rail is the whole board, idle power included; the others are the fabric's.
            self._watts = {rail: fabric if i else board for i, rail in enumerate(self._board.rails)}
            self._sampled = now, activity
        return self._watts

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.engine.close()


def open_device(bundle, engine: str, lock_path: Path | str | None = None) -> SimulatedBoard:
    """A simulated board that carries the hardware of `bundle` (a hwgen.host.bundle.Bundle), with room for its memory.

    engine: "machine" or "rtl". Raises RuntimeError where the bundle is of another hwgen or the simulator is missing.
    """
    try:
        config = Config.from_dict(bundle.config)
        board = boards.of_bundle(bundle.files, bundle.path)
        size = COPIES * bundle.memory["bytes"] + 16 * PAGE
        if engine == "rtl":
            from .cosim import Cosimulation
            verilog = {n.removeprefix("rtl/"): d.decode() for n, d in bundle.files.items() if n.startswith("rtl/")}
            running = Cosimulation(verilog, config, size, of_board(board, config))
        else:
            from .register_file import DEFAULT_CYCLES, MachineEngine

            runs = [*bundle.tasks, *bundle.together]
            programs = {bundle.program(task): bundle.estimated_cycles(task) or DEFAULT_CYCLES for task in runs}
            running = MachineEngine(config, size, programs)
    except UserError as error:
        raise RuntimeError(str(error)) from None
    return SimulatedBoard(running, config, board, lock_path)

"""The board: what `host.device` asks for, through PYNQ."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .bundle import Bundle
from .errors import DeviceError
from .lock import default_path

BITSTREAM = "hwgen.bit"
IP_NAME = "hwgen_top"  # part of the IP's type in the hardware handoff


class Buffer:
    """Contiguous memory from pynq.allocate."""

    def __init__(self, memory):
        self._memory = memory
        self.address = memory.physical_address
        self.array = np.asarray(memory).view(np.ndarray)

    def flush(self, start: int, size: int) -> None:
        """Write the CPU's caches back."""
        self._memory[start : start + size].flush()

    def invalidate(self, start: int, size: int) -> None:
        """Drop what the CPU's caches hold."""
        self._memory[start : start + size].invalidate()

    def free(self) -> None:
        self.array = None
        self._memory.freebuffer()


class Board:
    """A board under PYNQ that carries the accelerator.

    bitstream: the .bit file, its .hwh beside it; by default `hwgen.bit` in the bundle or beside it. device: a
    pynq.Device instead of the active one; one that already carries the accelerator needs no bitstream: its `ip_dict`
    tells where it is. Raises DeviceError where there is no PYNQ, no board, no bitstream or no accelerator in it.
    """

    simulated = False
    cycles_exact = True
    grace = 1.0  # Linux is no real-time system
    poll_seconds = 0.0
    sample_seconds, idle_seconds = 0.02, 2.0

    def __init__(self, bundle: Bundle, bitstream: Path | str | None = None, device=None):
        try:
            import pynq
        except ImportError as error:
            raise DeviceError(f"the board needs PYNQ here ({error}); --device sim or rtl needs none") from None
        self._interrupt, self._loop = None, None
        self._carried = device is not None and bitstream is None
        if self._carried:
            blocks, self.clock_mhz, self.simulated = device.ip_dict, device.clock_mhz, device.simulated
            self.poll_seconds, self.grace = device.poll_seconds, device.grace
            self.sample_seconds, self.idle_seconds = device.sample_seconds, device.idle_seconds
            self.cycles_exact = device.cycles_exact
        else:
            file = find_bitstream(bundle, bitstream)
            try:
                overlay = pynq.Overlay(str(file), device=device)
            except Exception as error:  # PYNQ raises what its layers raise
                raise DeviceError(f"{file}: PYNQ cannot load it ({' '.join(str(error).split())})") from None
            blocks, device = overlay.ip_dict, overlay.device
            self.clock_mhz = float(pynq.Clocks.fclk0_mhz)
        self.name, block = find_block(blocks)
        self._pynq, self._device = pynq, device
        self.lock_path = getattr(device, "lock_path", None) if self._carried else default_path("board")
        self._mmio = pynq.MMIO(block["phys_addr"], block["addr_range"], device=device)
        self._registers = self._mmio.array

    # --- registers and memory -----------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        return int(self._registers[offset >> 2])

    def write(self, offset: int, value: int) -> None:
        self._registers[offset >> 2] = value

    def allocate(self, size: int) -> Buffer:
        """Contiguous memory. Raises DeviceError where PYNQ has none."""
        try:
            return Buffer(self._pynq.allocate((size,), "u1", target=self._device))
        except Exception as error:
            raise DeviceError(f"PYNQ cannot allocate {size} bytes ({' '.join(str(error).split())})") from None

    # --- time ---------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._device.now() if self._carried else time.monotonic()

    def sleep(self, seconds: float) -> None:
        if self._carried:
            self._device.sleep(seconds)
        elif seconds:
            time.sleep(seconds)

    def wait_interrupt(self, seconds: float) -> bool:
        """Sleep until the interrupt, `seconds` at most. Raises DeviceError in a notebook, whose event loop is at work."""
        if self._carried:
            return self._device.wait_interrupt(seconds)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        if self._interrupt is None:
            self._interrupt = self._pynq.Interrupt(f"{self.name}/irq")
        try:
            self._loop.run_until_complete(asyncio.wait_for(self._interrupt.wait(), seconds))
        except asyncio.TimeoutError:
            return False
        except RuntimeError as error:
            raise DeviceError(f"interrupts do not work here ({error}); wait='polling' does") from None
        return True

    # --- power --------------------------------------------------------------------------------------------------

    def rails(self) -> dict:
        """PYNQ's power rails that have a power sensor, or voltage and current."""
        if self._carried:
            return self._device.rails()
        found = {}
        for name, rail in self._pynq.get_rails().items():
            if rail.power is not None:
                found[name] = lambda sensor=rail.power: float(sensor.value)
            elif rail.voltage is not None and rail.current is not None:
                found[name] = lambda rail=rail: float(rail.voltage.value) * float(rail.current.value)
        return found

    def every(self, seconds: float, call) -> Callable[[], None]:
        """Call from a thread until the returned function is called."""
        if self._carried:
            return self._device.every(seconds, call)
        over = threading.Event()

        def work() -> None:
            while not over.wait(seconds):
                call()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def stop() -> None:
            over.set()
            thread.join()

        return stop

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None


def find_bitstream(bundle: Bundle, given: Path | str | None) -> Path:
    """The .bit file to load. Raises DeviceError where it, or the .hwh beside it, is missing."""
    candidates = [Path(given)] if given is not None else [bundle.path / BITSTREAM, bundle.path.parent / BITSTREAM]
    for file in candidates:
        if file.is_file():
            if not file.with_suffix(".hwh").is_file():
                raise DeviceError(f"{file.with_suffix('.hwh')}: missing; PYNQ needs it beside the bitstream")
            return file.resolve()
    raise DeviceError(
        f"no bitstream {' or '.join(map(str, candidates))}; Vivado makes it from the scripts in {bundle.path / 'vivado'}"
    )


def find_block(blocks: dict) -> tuple[str, dict]:
    """(name, entry) of the accelerator among the IP blocks of an overlay. Raises DeviceError."""
    for name, entry in blocks.items():
        if IP_NAME in entry.get("type", ""):
            return name, entry
    raise DeviceError(f"the bitstream holds no {IP_NAME}; it has {', '.join(blocks) or 'no IP'}")

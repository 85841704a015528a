"""The simulated board as a pynq.Device: `pynq.MMIO` and `pynq.allocate`, and so `hwgen.host.board`, run on it unchanged."""

from __future__ import annotations

import numpy as np
import pynq
from pynq.buffer import PynqBuffer

from .device import SimulatedBoard

BASE, RANGE = 0xA000_0000, 0x1000  # where boards/zcu104 has the registers
BLOCK = "hwgen_0"
# What a simulated board knows better than Linux does.
CARRIED = (
    *("simulated", "cycles_exact", "clock_mhz", "lock_path", "grace", "poll_seconds", "sample_seconds", "idle_seconds"),
    *("now", "sleep", "wait_interrupt", "rails", "every"),
)


class SimulatedBuffer(PynqBuffer):
    """A PynqBuffer whose memory belongs to the simulated board. Slices have no `memory` and free nothing."""

    def freebuffer(self) -> None:
        """Give the memory back, once."""
        memory, self.memory = getattr(self, "memory", None), None
        if memory is not None:
            memory.free()


class PynqDevice(pynq.Device):
    """A device that carries the accelerator of `board`: `ip_dict` tells where; no bitstream is loaded."""

    def __init__(self, board: SimulatedBoard):
        super().__init__(f"hwgen {board.name}")
        self.board = board
        self.capabilities = {"REGISTER_RW": True}
        self.ip_dict = {BLOCK: {"type": "hwgen:hwgen:hwgen_top:1.0", "phys_addr": BASE, "addr_range": RANGE}}
        for name in CARRIED:
            setattr(self, name, getattr(board, name))

    def read_registers(self, address: int, length: int) -> bytes:
        """Registers by their physical address."""
        words = [self.board.read(address - BASE + i) for i in range(0, length, 4)]
        return np.array(words, "<u4").tobytes()

    def write_registers(self, address: int, data: bytes) -> None:
        """As `read_registers`."""
        for i, word in enumerate(np.frombuffer(bytes(data), "<u4")):
            self.board.write(address - BASE + 4 * i, int(word))

    def allocate(self, shape, dtype, **_) -> PynqBuffer:
        """Memory of the simulated board; the array is the CPU's view of it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self.board.allocate(size)
        buffer = SimulatedBuffer(
            shape, dtype, buffer=memory.array.data, device=self, device_address=memory.address, bo=memory
        )
        buffer.memory = memory
        return buffer

    def flush(self, memory, offset: int, _pointer: int, size: int) -> None:
        memory.flush(offset, size)

    def invalidate(self, memory, offset: int, _pointer: int, size: int) -> None:
        memory.invalidate(offset, size)

"""The bundle's memory map in buffers of the device: the weights once, the data region once per slot.

A run finds program, constants, inputs and outputs behind the data base register, which is set at every start. So a
second copy of that region (it is small) is a second slot: the host fills or reads one while the machine works in the
other, and nothing is copied.
"""

from __future__ import annotations

import numpy as np

from .bundle import INSTRUCTION_BYTES, Bundle
from .errors import BundleError, DeviceError

SLOTS = 2


class Memory:
    """Buffers with everything that must lie in DRAM before the first run.

    `device.allocate(bytes)` gives a buffer: `array` (uint8), `address` (as the accelerator sees it), `flush(start,
    size)` and `invalidate(start, size)` for the CPU's caches, `free()`. Raises DeviceError where there is no room.
    """

    def __init__(self, device, bundle: Bundle):
        memory = bundle.memory
        self._bundle = bundle
        self._start, self._end = memory["data_base"], min(memory["weight_bases"])
        if self._start >= self._end:
            raise BundleError(f"{bundle.path}: its weights do not lie behind its data")
        self._buffers: list = []
        try:
            self._data = [self._allocate(device, self._end - self._start) for _ in range(SLOTS)]
            self._weights = self._allocate(device, memory["bytes"] - self._end)
            self.load()
        except BaseException:
            self.free()
            raise

    def _allocate(self, device, size: int):
        try:
            buffer = device.allocate(size)
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(f"no {size} bytes of memory that the accelerator can reach ({error})") from None
        self._buffers.append(buffer)
        alignment = self._bundle.memory["alignment"]
        if buffer.address % alignment:
            raise DeviceError(f"a buffer lies at {buffer.address:#x}, no multiple of {alignment}")
        return buffer

    def load(self) -> None:
        """Write programs, constants and weights, all slots."""
        for buffer in self._buffers:
            buffer.array[:] = 0
        for offset, data in self._segments():
            for buffer, at in self._places(offset, len(data)):
                buffer.array[at : at + len(data)] = data
        for buffer in self._buffers:
            buffer.flush(0, len(buffer.array))

    def reload_data(self) -> None:
        """Write programs and constants again, all slots: after a fault they may be what failed."""
        for offset, data in self._segments():
            if offset < self._end:
                for buffer, at in self._places(offset, len(data)):
                    buffer.array[at : at + len(data)] = data
                    buffer.flush(at, len(data))

    def damaged(self) -> list[str]:
        """Segments that are not in DRAM as the bundle has them, one text each."""
        found = []
        for offset, data in self._segments():
            for number, (buffer, at) in enumerate(self._places(offset, len(data))):
                buffer.invalidate(at, len(data))
                bad = np.flatnonzero(buffer.array[at : at + len(data)] != data)
                if len(bad):
                    copy = f" (slot {number})" if offset < self._end else ""
                    found.append(f"{len(bad)} bytes from byte {offset + bad[0]}{copy} on differ from the bundle's")
        return found

    def damaged_instruction(self, slot: int, task: str) -> int | None:
        """Index of the first instruction in DRAM that is not the bundle's."""
        expected = np.frombuffer(self._bundle.program(task), np.uint8)
        at = self._bundle.task(task)["program"]["offset_bytes"] - self._start
        buffer = self._data[slot]
        buffer.invalidate(at, len(expected))
        bad = np.flatnonzero(buffer.array[at : at + len(expected)] != expected)
        return int(bad[0]) // INSTRUCTION_BYTES if len(bad) else None

    def _segments(self):
        for segment in self._bundle.memory["segments"]:
            data = np.frombuffer(
                self._bundle.files[segment["file"]], np.uint8, segment["bytes"], segment["file_offset"]
            )
            yield segment["dram_offset"], data

    def _places(self, offset: int, size: int) -> list[tuple]:
        """(buffer, position) of every copy of a range of the memory map."""
        if offset >= self._end:
            return [(self._weights, offset - self._end)]
        if offset < self._start or offset + size > self._end:
            raise BundleError(f"{self._bundle.path}: bytes {offset} to {offset + size} belong to no buffer")
        return [(buffer, offset - self._start) for buffer in self._data]

    def data_base(self, slot: int) -> int:
        """What the data base register must hold for a run in this slot."""
        return self._data[slot].address

    def weight_bases(self) -> list[int]:
        """What the weight base registers must hold."""
        return [self._weights.address + base - self._end for base in self._bundle.memory["weight_bases"]]

    def write(self, slot: int, offset: int, data: bytes) -> None:
        """Bytes into a slot, visible to the accelerator."""
        buffer, at = self._data[slot], offset - self._start
        buffer.array[at : at + len(data)] = np.frombuffer(data, np.uint8)
        buffer.flush(at, len(data))

    def read(self, slot: int, offset: int, size: int) -> np.ndarray:
        """A copy of what the accelerator wrote: uint8 [size]."""
        buffer, at = self._data[slot], offset - self._start
        buffer.invalidate(at, size)
        return np.array(buffer.array[at : at + size])

    def free(self) -> None:
        """Give the buffers back; the accelerator must be idle."""
        while self._buffers:
            self._buffers.pop().free()

"""A board without a processor, reached over its serial line: `--device serial:PATH`, PATH such as the one of its USB adapter.

By hand, not with pyserial: two dozen lines of termios do, and the driver needs nothing but NumPy.
"""

from __future__ import annotations

import json
import os
import select
import termios
import time

import numpy as np

from .bundle import Bundle
from .errors import DeviceError
from .lock import default_path
from .serial_link import SerialLink

PAGE = 4096
BOARD_FILE = "board.json"
SPEEDS = {int(name[1:]): getattr(termios, name) for name in dir(termios) if name.startswith("B") and name[1:].isdigit()}


class SerialPort:
    """The serial line at `path`, raw, eight data bits. Raises DeviceError where it cannot be opened or has no such speed."""

    def __init__(self, path: str, baud: int):
        if baud not in SPEEDS:
            raise DeviceError(f"{path}: this system has no serial line of {baud} baud")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"{path}: the serial line cannot be opened ({error.strerror})") from None
        try:
            control = list(termios.tcgetattr(self._file)[6])
            control[termios.VMIN], control[termios.VTIME] = 0, 0
            flags = termios.CS8 | termios.CREAD | termios.CLOCAL
            termios.tcsetattr(self._file, termios.TCSANOW, [0, 0, flags, 0, SPEEDS[baud], SPEEDS[baud], control])
            termios.tcflush(self._file, termios.TCIOFLUSH)
        except termios.error as error:
            os.close(self._file)
            raise DeviceError(f"{path}: is no serial line ({error})") from None

    def write(self, data: bytes) -> None:
        """All of `data`."""
        while data:
            data = data[os.write(self._file, data) :]

    def read(self, count: int, seconds: float) -> bytes:
        """At most `count` bytes, fewer where `seconds` pass without one."""
        result = b""
        while len(result) < count and select.select([self._file], [], [], seconds)[0]:
            piece = os.read(self._file, count - len(result))
            if not piece:
                break
            result += piece
        return result

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        if seconds:
            time.sleep(seconds)

    def close(self) -> None:
        os.close(self._file)


class Buffer:
    """Memory of the board with a copy here: `flush` writes from it, `invalidate` reads into it."""

    def __init__(self, link: SerialLink, address: int, size: int):
        self._link, self.address = link, address
        self.array = np.zeros(size, np.uint8)

    def flush(self, start: int, size: int) -> None:
        self._link.write_memory(self.address + start, self.array[start : start + size].tobytes())

    def invalidate(self, start: int, size: int) -> None:
        data = self._link.read_memory(self.address + start, size)
        self.array[start : start + size] = np.frombuffer(data, np.uint8)

    def free(self) -> None:
        """Nothing: the memory is given away once."""


class SerialBoard:
    """A device (see `host.device`) on a serial port, real or simulated. memory_bytes: of the board."""

    simulated = False
    cycles_exact = True
    grace = 1.0  # a register takes milliseconds
    poll_seconds = 0.0
    sample_seconds = idle_seconds = 0.0  # no power rail can be sampled

    def __init__(self, port, name: str, clock_mhz: float, memory_bytes: int, lock_path=None):
        self._port, self._link, self._next = port, SerialLink(port), 0
        self.name, self.clock_mhz, self._bytes, self.lock_path = name, clock_mhz, memory_bytes, lock_path

    def read(self, offset: int) -> int:
        return self._link.read_registers(offset)[0]

    def write(self, offset: int, value: int) -> None:
        self._link.write_register(offset, value)

    def allocate(self, size: int) -> Buffer:
        """The memory behind what was given before. Raises MemoryError where it is full."""
        if self._next + size > self._bytes:
            raise MemoryError(f"{self._next} of {self._bytes} bytes are given away")
        buffer = Buffer(self._link, self._next, size)
        self._next += -(-size // PAGE) * PAGE
        return buffer

    def wait_interrupt(self, seconds: float) -> bool:
        raise DeviceError("a serial line carries no interrupt; wait='polling' does")

    def now(self) -> float:
        return self._port.now()

    def sleep(self, seconds: float) -> None:
        self._port.sleep(seconds)

    def rails(self) -> dict:
        return {}

    def close(self) -> None:
        self._port.close()


def open_serial(path: str, bundle: Bundle) -> SerialBoard:
    """The board of `bundle` at a serial line. Raises DeviceError where the bundle's board has none."""
    board = json.loads(bundle.files.get(BOARD_FILE, b"{}"))
    line = board.get("bitstream") or {}
    if not line:
        raise DeviceError(f"{bundle.path}: its board, {board.get('name')}, has no serial line to the machine")
    port, name = SerialPort(path, line["baud"]), f"{board['name']} at {path}"
    lock = default_path(os.path.basename(path))
    return SerialBoard(port, name, bundle.config["clock_mhz"], line["memory_bytes"], lock)

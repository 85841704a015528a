"""Registers and memory of a board over its serial line, in the frames that the hardware's host link takes.

A request: 0x5A, op, sequence number, words - 1, address (4 bytes, low byte first), the words of a write, CRC (low byte first);
the answer: 0xA5, status, sequence number, words - 1, the words of a read, CRC. The CRC is CRC-16/IBM-3740 of what stands
between the first byte and itself. See hwgen/rtl/shell/link.py.
"""

from __future__ import annotations

import binascii
import struct

from .errors import DeviceError

READ_REGISTERS, WRITE_REGISTERS, READ_MEMORY, WRITE_MEMORY = 1, 2, 3, 4
REQUEST, ANSWER = b"\x5a", b"\xa5"
RESULTS = {1: "the request came damaged", 2: "the board refuses the request"}
DAMAGED = 1
MOST_WORDS = 256
TRIES = 4
SECONDS = 1.0  # for an answer; longer than the pause after which the board forgets half a request


def crc(data: bytes) -> bytes:
    """CRC-16/IBM-3740, low byte first."""
    return struct.pack("<H", binascii.crc_hqx(data, 0xFFFF))


class SerialLink:
    """Requests and their answers over `port`, an object with write(bytes) and read(count, seconds) -> at most so many bytes.

    A request without a right answer is repeated TRIES times. Raises DeviceError.
    """

    def __init__(self, port):
        self._port, self._sequence = port, 0

    def read_registers(self, offset: int, count: int = 1) -> list[int]:
        """Values of `count` registers from a byte offset on."""
        return list(struct.unpack(f"<{count}I", self._ask(READ_REGISTERS, offset, count)))

    def write_register(self, offset: int, value: int) -> None:
        """Write the register at a byte offset."""
        self._ask(WRITE_REGISTERS, offset, 1, struct.pack("<I", value & 0xFFFFFFFF))

    def read_memory(self, address: int, size: int) -> bytes:
        """`size` bytes from `address` on."""
        first, result = address & ~3, b""
        words = (address + size + 3 - first) // 4
        for at in range(0, words, MOST_WORDS):
            count = min(MOST_WORDS, words - at)
            result += self._ask(READ_MEMORY, first + 4 * at, count)
        return result[address - first :][:size]

    def write_memory(self, address: int, data: bytes) -> None:
        """Write bytes; what stands around them in their words stays."""
        before, after = address % 4, -(address + len(data)) % 4
        if before:
            data = self.read_memory(address - before, before) + data
        if after:
            data += self.read_memory(address - before + len(data), after)
        for at in range(0, len(data), 4 * MOST_WORDS):
            piece = data[at : at + 4 * MOST_WORDS]
            self._ask(WRITE_MEMORY, address - before + at, len(piece) // 4, piece)

    def _ask(self, op: int, address: int, words: int, data: bytes = b"") -> bytes:
        """The words of the answer."""
        self._sequence = (self._sequence + 1) % 256
        body = struct.pack("<BBBI", op, self._sequence, words - 1, address) + data
        expected = 0 if data else words
        problem = ""
        for _ in range(TRIES):
            self._port.write(REQUEST + body + crc(body))
            try:
                return self._answer(expected)
            except _Missed as missed:
                problem = str(missed)
        raise DeviceError(f"no answer on the serial line after {TRIES} tries: {problem}")

    def _answer(self, expected: int) -> bytes:
        while (start := self._port.read(1, SECONDS)) != ANSWER:  # what a request before has left
            if not start:
                raise _Missed("nothing comes back")
        head = self._port.read(3, SECONDS)
        if len(head) < 3:
            raise _Missed("the answer breaks off")
        status, sequence, _ = head
        count = 4 * expected if status == 0 else 0
        rest = self._port.read(count + 2, SECONDS)
        if len(rest) < count + 2 or crc(head + rest[:count]) != rest[count:]:
            raise _Missed("the answer came damaged")
        if status == DAMAGED or sequence != self._sequence:
            raise _Missed(RESULTS[DAMAGED])
        if status:
            raise DeviceError(f"serial line: {RESULTS.get(status, f'status {status}')}")
        return rest[:count]


class _Missed(Exception):
    """An answer that did not come, or not as it was sent."""

"""The serial line: requests are repeated until their answers come right; a board at a terminal line as device."""

from __future__ import annotations

import json
import os
import pty
import struct
import threading
import tty
from types import SimpleNamespace

import numpy as np
import pytest

from hwgen.host import serial_device, serial_link
from hwgen.host.device import open_device
from hwgen.host.errors import DeviceError
from hwgen.host.serial_link import SerialLink, crc


class FakeBoard:
    """The other end of the line, with registers and 4 KiB of memory. `spoil`: answers that go wrong, as functions of them."""

    def __init__(self):
        self.registers, self.memory = {}, bytearray(4096)
        self.spoil, self.requests, self._answer = [], [], b""

    def write(self, data: bytes) -> None:
        assert data[0] == 0x5A
        body, check = data[1:-2], data[-2:]
        assert crc(body) == check
        op, sequence, most, address = struct.unpack("<BBBI", body[:7])
        count, status, out = most + 1, 0, b""
        if address % 4 or (op > 2 and address + 4 * count > len(self.memory)):
            status = 2
        elif op == 1:
            out = b"".join(struct.pack("<I", self.registers.get(address + 4 * i, 0)) for i in range(count))
        elif op == 2:
            self.registers[address] = struct.unpack("<I", body[7:11])[0]
        elif op == 3:
            out = bytes(self.memory[address : address + 4 * count])
        else:
            assert len(body) == 7 + 4 * count
            self.memory[address : address + 4 * count] = body[7:]
        self.requests.append((op, sequence))
        head = bytes([status, sequence, most if out else 0]) + out
        answer = b"\xa5" + head + crc(head)
        self._answer += self.spoil.pop(0)(answer) if self.spoil else answer

    def read(self, count: int, seconds: float) -> bytes:
        taken, self._answer = self._answer[:count], self._answer[count:]
        return taken


@pytest.fixture
def board():
    return FakeBoard()


@pytest.fixture
def link(board):
    return SerialLink(board)


def test_registers_and_memory(board, link):
    link.write_register(8, -1)
    assert link.read_registers(8, 2) == [0xFFFFFFFF, 0]
    data = np.random.default_rng(1).bytes(2999)
    link.write_memory(101, data)
    assert link.read_memory(101, 2999) == data
    assert board.memory[:101] == bytes(101) and board.memory[3100:] == bytes(996)
    sequences = [sequence for _, sequence in board.requests]
    assert all(b == (a + 1) % 256 for a, b in zip(sequences, sequences[1:], strict=False))


@pytest.mark.parametrize(
    "fault",
    [
        lambda answer: b"",
        lambda answer: answer[:5],
        lambda answer: answer[:6] + bytes([answer[6] ^ 4]) + answer[7:],
        lambda answer: b"\xa5" + (head := bytes([1, answer[2], 0])) + crc(head),
        lambda answer: b"noise" + answer,
    ],
)
def test_an_answer_that_goes_wrong_is_asked_for_again(fault, board, link):
    board.registers[4] = 77
    board.spoil = [fault]
    assert link.read_registers(4) == [77]
    assert len({sequence for _, sequence in board.requests}) == 1


def test_no_answer_at_all(board, link):
    board.spoil = [lambda answer: b""] * serial_link.TRIES
    with pytest.raises(DeviceError, match="after 4 tries: nothing comes back"):
        link.read_registers(0)


def test_refused(link):
    with pytest.raises(DeviceError, match="refuses the request"):
        link.read_memory(4092, 8)


@pytest.fixture
def line(board):
    """A terminal line with the board at its other end; its path."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)

    def serve() -> None:
        pending = b""
        while True:
            try:
                pending += os.read(ours, 4096)
            except OSError:
                return
            while len(pending) >= 10:
                words = pending[3] + 1 if pending[1] in (2, 4) else 0
                size = 10 + 4 * words
                if len(pending) < size:
                    break
                board.write(pending[:size])
                pending = pending[size:]
                os.write(ours, board.read(1 << 16, 0))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield os.ttyname(theirs)
    os.close(theirs)
    os.close(ours)


def bundle(section) -> SimpleNamespace:
    text = json.dumps({"name": "small", "bitstream": section}).encode()
    return SimpleNamespace(path="some.bundle", files={"board.json": text}, config={"clock_mhz": 50.0})


def test_device(line, board):
    device = open_device(f"serial:{line}", bundle({"baud": 115200, "memory_bytes": 4096}))
    assert device.name == f"small at {line}" and device.clock_mhz == 50.0 and device.rails() == {}
    device.write(12, 5)
    assert device.read(12) == 5 and board.registers == {12: 5}
    buffer = device.allocate(1000)
    buffer.array[:] = np.arange(1000) % 251
    buffer.flush(10, 20)
    assert board.memory[10:30] == bytes(buffer.array[10:30]) and not any(board.memory[30:])
    board.memory[100:104] = b"abcd"
    buffer.invalidate(100, 4)
    assert bytes(buffer.array[99:105]) == bytes([99, *b"abcd", 104])
    with pytest.raises(MemoryError, match="4096 of 4096 bytes"):
        device.allocate(8)
    with pytest.raises(DeviceError, match="no interrupt"):
        device.wait_interrupt(1.0)
    device.close()


def test_faults(tmp_path):
    section = {"baud": 115200, "memory_bytes": 4096}
    with pytest.raises(DeviceError, match="no serial line to the machine"):
        open_device("serial:/dev/null", bundle({}))
    with pytest.raises(DeviceError, match="missing: the serial line cannot be opened"):
        open_device(f"serial:{tmp_path / 'missing'}", bundle(section))
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="file: is no serial line"):
        open_device(f"serial:{tmp_path / 'file'}", bundle(section))
    with pytest.raises(DeviceError, match="no serial line of 12345 baud"):
        serial_device.SerialPort("/dev/null", 12345)

"""The simulated board: memory with caches that must be flushed, time, rails; the machine engine's registers."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from hwgen import boards, isa, registers
from hwgen.config import Config
from hwgen.registers import Control, State, Status, offset
from hwgen.sim.device import PAGE, SimulatedBoard
from hwgen.sim.register_file import DEFAULT_CYCLES, MachineEngine

CONFIG = Config(array_outputs=8, array_inputs=8, weight_ports=1)
COPY = [
    isa.Load(dram=256, dst=0, rows=4, chunks=2, pitch=2),
    isa.Store(dram=512, src=0, rows=4, chunks=2, pitch=2, wait_load=1),
    isa.End(wait_store=1),
]
CODE = isa.assemble(COPY)
CYCLES = 500


@pytest.fixture
def engine():
    engine = MachineEngine(CONFIG, 1 << 16, {CODE: CYCLES})
    engine.poke(0, CODE)
    engine.poke(4096, bytes(range(128)))
    return engine


@pytest.fixture
def board(engine):
    return SimulatedBoard(engine, CONFIG, boards.load("zcu104"))


def start(engine, control=Control.START, code: bytes = CODE):
    engine.write(offset("PROGRAM_LENGTH"), len(code) // isa.WORD_BYTES)
    engine.write(offset("CONTROL"), control)


def status(engine) -> Status:
    return Status(engine.read(offset("STATUS")))


def test_buffers(board):
    first, second = board.allocate(5000), board.allocate(100)
    assert first.address % PAGE == second.address % PAGE == 0
    assert second.address >= first.address + 5000 + PAGE
    assert board.allocated == 5100
    first.free()
    third = board.allocate(4096)
    assert third.address == first.address  # the gap is used again
    with pytest.raises(MemoryError, match="no 65536 bytes free"):
        board.allocate(1 << 16)
    with pytest.raises(ValueError):
        first.free()


def test_caches(board):
    buffer = board.allocate(64)
    buffer.flush(0, 64)
    buffer.array[:] = 7
    assert board.engine.peek(buffer.address, 64) == bytes(64)  # not flushed
    buffer.flush(16, 8)
    assert board.engine.peek(buffer.address, 64) == bytes(16) + b"\7" * 8 + bytes(40)
    board.engine.poke(buffer.address, b"\1" * 64)
    assert (buffer.array == 7).all()  # not invalidated
    buffer.invalidate(0, 4)
    assert buffer.array[:5].tolist() == [1, 1, 1, 1, 7]


def test_run(engine):
    for name, value in registers.identity(CONFIG).items():
        assert engine.read(offset(name)) == value
    start(engine)
    assert status(engine) == Status.BUSY and engine.read(offset("STATE")) == State.RUNNING
    engine.write(offset("CONTROL"), Control.START)  # ignored: busy
    assert engine.peek(8192, 128) == bytes(128)  # the work is done at the end
    engine.advance(CYCLES)
    assert status(engine) == Status.DONE | Status.IRQ
    assert engine.peek(8192, 128) == bytes(range(128))
    want = {"CYCLES_LO": CYCLES, "PROGRAM_CRC": zlib.crc32(CODE), "FINISHED_LOAD": 1, "FINISHED_STORE": 1, "INSTRUCTION": 3}
    want |= {"DATA_READ_BEATS": 8 + len(CODE) // 16, "DATA_WRITE_BEATS": 8, "WEIGHT_BEATS0": 0, "STATE": 0}
    assert {name: engine.read(offset(name)) for name in want} == want
    engine.write(offset("IRQ_CLEAR"), 1)
    assert status(engine) == Status.DONE
    assert engine.read(0xFFC) == 0


def test_interrupt(engine, board):
    start(engine)
    assert not board.wait_interrupt(1e-4)  # not enabled
    start(engine, Control.START | Control.IRQ_ENABLE)
    began = engine.cycles
    assert board.wait_interrupt(1e-3) and engine.cycles - began <= CYCLES + 1


@pytest.mark.parametrize(
    ("code", "flag"),
    [
        (b"\xff" + CODE[1:], Status.ILLEGAL),
        (isa.assemble([isa.Load(dram=1 << 20, dst=0, rows=1, chunks=1, pitch=1), isa.End(wait_load=1)]), Status.READ_ERROR),
        (isa.assemble([isa.End(wait_load=1)]), None),
    ],
    ids=["unknown operation", "address outside", "deadlock"],
)
def test_bad_programs(engine, code, flag):
    engine.poke(0, code)
    start(engine, code=code)
    engine.advance(DEFAULT_CYCLES)
    assert engine.why
    if flag is None:
        assert status(engine) == Status.BUSY
    else:
        assert status(engine) == Status.DONE | Status.IRQ | flag
        start(engine)
        assert Status.BUSY not in status(engine)  # an error bars the next start
    engine.write(offset("CONTROL"), Control.RESET)
    engine.advance(1)
    assert status(engine) == Status(0)
    engine.poke(0, CODE)
    start(engine)
    engine.advance(CYCLES)
    assert status(engine) == Status.DONE | Status.IRQ


def test_memory_that_does_not_answer(engine):
    start(engine)
    engine.fault(error=False, hold=True)
    engine.advance(10 * CYCLES)
    engine.write(offset("CONTROL"), Control.RESET)
    engine.advance(CYCLES)
    assert status(engine) == Status.BUSY and engine.read(offset("STATE")) == State.DRAINING | State.DATA_READS
    engine.fault(error=False, hold=False)
    engine.advance(1)
    assert status(engine) == Status(0) and engine.peek(8192, 1) == b"\0"


def test_rails_follow_activity(engine, board):
    rails = board.rails()
    assert set(rails) == {"12V", "INT"}
    board.sleep(1e-3)
    idle = {name: read() for name, read in rails.items()}
    assert idle["12V"] > boards.load("zcu104").idle_w > idle["INT"] > 0
    for _ in range(20):
        start(engine)
        engine.advance(CYCLES)
    busy = {name: read() for name, read in rails.items()}
    assert busy["12V"] > idle["12V"] and busy["INT"] > idle["INT"]


def test_observers(board):
    seen = []
    stop = board.every(1e-5, lambda: seen.append(board.now()))
    for _ in range(10):
        board.sleep(4e-6)
    board.wait_interrupt(5e-5)
    stop()
    board.sleep(1e-3)
    gaps = np.diff([0.0, *seen])
    assert len(seen) >= 6 and gaps.min() >= 0.999e-5 and gaps.max() <= 2.001e-5

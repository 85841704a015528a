"""A whole ECP5 board, from its serial line to its SDRAM: frames, memory, and a small network equal to golden; slow: the same of
the mapped netlist."""

import binascii
import re
import struct
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hwgen import bitstream, boards, registers, steps
from hwgen.config import Config
from hwgen.host import serial_link
from hwgen.host.errors import DeviceError
from hwgen.host.pack import pack_input, unpack_output
from hwgen.host.serial_link import SerialLink
from hwgen.registers import Control, Status
from hwgen.rtl.shell.shell import ShellTiming, emit_shell
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.board import SimulatedBoard
from hwgen.sim.tb.graphs import Shape, random_graph, random_images

RTL_MODELS = Path(__file__).parents[1] / "rtl"
CLOCK_MHZ, BIT_CYCLES, TIMEOUT_MS = 62.5, 8, 0.02
SMALL = {
    **{"array_outputs": 8, "array_inputs": 8, "banks": 2, "bank_words": 512, "acc_rows": 64, "scale_entries": 256},
    **{
        "queue_entries": 64,
        "max_experts": 8,
        "norm_columns": 64,
        "weight_words": 64,
        "weight_ports": 1,
        "axi_bytes": 4,
    },
    **{"burst_beats": 16, "outstanding": 2, "clock_mhz": CLOCK_MHZ},
}
CONFIG = Config(**SMALL)
SHAPE = Shape(patches=(2, 2), layers=2, experts=3)
MEMORY = 1 << 25
PAGE = 256
START_SECONDS = 3e-4  # the SDRAM is ready 200 us after power comes


def design() -> dict[str, str]:
    """The board's Verilog with a serial line that is fast to simulate."""
    files = bitstream.sources(steps.verilog(CONFIG), CONFIG, boards.load("ulx3s-85f"))
    timing = ShellTiming(CLOCK_MHZ, round(CLOCK_MHZ * 1e6 / BIT_CYCLES), TIMEOUT_MS)
    return {**files, bitstream.SHELL_FILE: emit_shell(CONFIG, timing)}


@pytest.fixture(scope="module")
def board():
    simulated = SimulatedBoard(design(), CLOCK_MHZ, BIT_CYCLES)
    simulated.sleep(START_SECONDS)
    yield simulated
    simulated.close()


@pytest.fixture
def link(board, monkeypatch):
    monkeypatch.setattr(serial_link, "SECONDS", 0.001)
    yield SerialLink(board)
    state = board.state()
    assert (state.violations, state.first) == (0, 0), "the SDRAM would not take this"
    assert not state.led >> 4 & 1, "a beat was lost"


def request(op: int, sequence: int, words: int, address: int, data: bytes = b"") -> bytes:
    body = struct.pack("<BBBI", op, sequence, words - 1, address) + data
    return b"\x5a" + body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))


def test_registers(link):
    identity = registers.identity(CONFIG)
    assert link.read_registers(registers.offset("ID"), 3) == [identity[n] for n in ("ID", "VERSION", "CONFIG_HASH")]
    at = registers.offset("DATA_BASE_LO")
    link.write_register(at, 0x123000)
    assert link.read_registers(at) == [0x123000]


@pytest.mark.parametrize("address, size", [(0, 4), (0x1003, 1500), (MEMORY - 600, 600), (0x3FE, 7)])
def test_memory(link, address, size):
    """Whole words and pieces of them, across rows and up to the memory's end; what stands around stays."""
    rng = np.random.default_rng(size)
    first, last = max(0, address - 8), min(MEMORY, address + size + 8)
    around, data = rng.bytes(last - first), rng.bytes(size)
    link.write_memory(first, around)
    link.write_memory(address, data)
    start = address - first
    assert link.read_memory(first, last - first) == around[:start] + data + around[start + size :]


def test_faulty_requests(link, board):
    def answer(data: bytes) -> bytes:
        board.write(data)
        return board.read(64, 0.0005)

    at = registers.offset("DATA_BASE_LO")
    good = request(2, 7, 1, at, struct.pack("<I", 0x5000))
    damaged = bytes([*good[:-1], good[-1] ^ 1])
    assert answer(damaged)[:4] == b"\xa5\x01\x07\x00"
    link.write_register(at, 0x4000)
    assert answer(damaged)[1] == 1 and link.read_registers(at) == [0x4000], "a damaged request was carried out"
    for op, address in ((9, 0), (0, 0), (3, 2), (3, MEMORY), (1, 0x1000)):
        assert answer(request(op, 8, 1, address))[1] == 2, (op, address)
    with pytest.raises(DeviceError, match="refuses"):
        link.read_memory(MEMORY - 4, 8)
    # A request that stops in its middle is forgotten after a pause.
    assert answer(good[:5]) == b""
    board.sleep(2e-3 * TIMEOUT_MS)
    assert answer(good)[:4] == b"\xa5\x00\x07\x00" and link.read_registers(at) == [0x5000]


def test_repeated_register_write_is_done_once(link, board):
    at = registers.offset("DATA_BASE_LO")
    write = request(2, 77, 1, at, struct.pack("<I", 0x9000))
    board.write(write)
    assert board.read(6, 0.001)[1] == 0
    board.write(request(2, 77, 1, at, struct.pack("<I", 0xA000)))
    assert board.read(6, 0.001)[1] == 0
    assert link.read_registers(at) == [0x9000]


def run(board, link, seed: int) -> dict[str, np.ndarray]:
    """A small network over the serial line, equal to golden; its outputs."""
    graph = random_graph(seed, SHAPE)
    image = random_images(graph, seed)
    program = schedule({"": graph}, CONFIG)
    task, offset = program.tasks[""], registers.offset
    contents = program.dram().tobytes()
    for first in range(0, len(contents), PAGE):
        if any(contents[first : first + PAGE]):  # the simulated memory starts with zeros, and the line is slow
            link.write_memory(first, contents[first : first + PAGE])
    for slot in task.inputs:
        link.write_memory(slot.dram, pack_input(asdict(slot), image[slot.name]))
    settings = {
        "DATA_BASE_LO": program.data_base,
        "WEIGHT_BASE0_LO": program.weight_bases[0],
        "PROGRAM": (task.offset - program.data_base) // CONFIG.axi_bytes,
        "PROGRAM_LENGTH": len(task.instructions),
        "CONTROL": Control.START,
    }
    for name, value in settings.items():
        link.write_register(offset(name), value)
    for _ in range(200):
        if link.read_registers(offset("STATUS"))[0] & Status.DONE:
            break
        board.advance(2000)
    status = Status(link.read_registers(offset("STATUS"))[0])
    assert status & Status.DONE and not status & (Status.READ_ERROR | Status.WRITE_ERROR | Status.ILLEGAL), status
    expected = golden.run(graph, image).outputs
    for slot in task.outputs:
        found = unpack_output(asdict(slot), link.read_memory(slot.dram, slot.layout.bytes))
        assert np.ptp(found) > 0
        np.testing.assert_array_equal(found, expected[slot.name])
    return link.read_registers(offset("CYCLES_LO"))[0]


def test_network(board, link):
    assert run(board, link, 3) > 1000


def ports_only(text: str) -> str:
    """The module hwgen_top of a file without what is in it."""
    module = re.search(r"^module hwgen_top\(.*?^endmodule\n", text, re.S | re.M)[0]
    ports = re.findall(r"^ +(?:input|output) [^\n]*;\n", module, re.M)
    return f"(* blackbox *)\n{module[: module.index(';') + 2]}{''.join(ports)}endmodule\n"


@pytest.mark.slow
@pytest.mark.parametrize("mapped", ["shell", "machine"])
def test_network_on_the_mapped_netlist(mapped, monkeypatch):
    """The shell, or everything behind the pins, as Yosys maps it to the ECP5: as many cycles as the Verilog, the same outputs."""
    pytest.importorskip("pyosys", reason="no Yosys")
    from hwgen.synth import netlist_verilog

    files = design()
    kept = {"board_ecp5.v": files.pop("board_ecp5.v")}
    if mapped == "shell":
        kept |= {name: text for name, text in files.items() if name != bitstream.SHELL_FILE}
        files = {bitstream.SHELL_FILE: files[bitstream.SHELL_FILE], "hwgen_top.v": ports_only(files["hwgen_top.v"])}
    netlist, library = netlist_verilog(files, "ecp5", "hwgen_shell", whole=True)
    cells = ("TRELLIS_FF", "CCU2C", "DP16KD") + (("MULT18X18D", "TRELLIS_DPR16X4") if mapped == "machine" else ())
    assert all(f"  {cell} " in netlist for cell in cells)
    models = {name: (RTL_MODELS / name).read_text() for name in ("mult18x18d.v", "dp16kd.v")}
    # Of the netlist, whose vectors are driven bit by bit, and of Yosys' own model of the small RAMs.
    netlist, library = f"/* verilator lint_off UNOPTFLAT */\n{netlist}", f"/* verilator lint_off INITIALDLY */\n{library}"
    monkeypatch.setattr(serial_link, "SECONDS", 0.001)
    cycles = []  # both from power up, so that the SDRAM's refreshes fall alike
    for sources in (design(), {**kept, "mapped.v": netlist, "cells.v": library, **models}):
        simulated = SimulatedBoard(sources, CLOCK_MHZ, BIT_CYCLES)
        try:
            simulated.sleep(START_SECONDS)
            cycles.append(run(simulated, SerialLink(simulated), 3))
            assert simulated.state().violations == 0
        finally:
            simulated.close()
    assert cycles[0] == cycles[1]

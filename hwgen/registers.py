"""The AXI4-Lite register map: the RTL (`rtl.control`), the manifest and so the driver derive from this one list.

Registers are 32 bits wide at byte offsets in a space of 4 KiB. Counters start at zero with every run and hold their
values when it ends.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import IntFlag

from .config import MAX_WEIGHT_PORTS, Config
from .isa import Unit, fingerprint

ADDRESS_BITS = 12
DATA_BITS = 32
ID = 0x4857474E  # "HWGN"
VERSION = 0x00010001  # major, minor: a driver accepts its own major
BASE_ALIGNMENT = 4096  # of the base registers, bytes: their low bits read as zero


class Control(IntFlag):
    """Bits of CONTROL. START and RESET act when written and read as zero."""

    START = 1 << 0
    RESET = 1 << 1
    IRQ_ENABLE = 1 << 2


class Status(IntFlag):
    """Bits of STATUS. While an error is set START is ignored; RESET clears it."""

    BUSY = 1 << 0
    DONE = 1 << 1
    IRQ = 1 << 2
    READ_ERROR = 1 << 4
    WRITE_ERROR = 1 << 5
    ILLEGAL = 1 << 6


class State(IntFlag):
    """Bits of STATE: what is at work in this clock. The first ones are the units, in the order of isa.Unit."""

    LOAD = 1 << Unit.LOAD
    WEIGHTS = 1 << Unit.WEIGHTS
    MATMUL = 1 << Unit.MATMUL
    VECTOR = 1 << Unit.VECTOR
    STORE = 1 << Unit.STORE
    RUNNING = 1 << 8
    DATA_READS = 1 << 9  # bursts that DRAM has not answered, by master
    DATA_WRITES = 1 << 10
    WEIGHT_READS = 1 << 11
    DRAINING = 1 << 12  # a soft reset waits for them
    RESETTING = 1 << 13


@dataclass(frozen=True)
class Register:
    """One register: `access` is ro, wo or rw; `bits` names single bits by their mask."""

    name: str
    offset: int
    access: str
    doc: str
    bits: type[IntFlag] | None = None


def _block(offset: int, *entries: tuple) -> list[Register]:
    """Consecutive registers from (name, access, doc[, bits])."""
    return [Register(entry[0], offset + 4 * i, *entry[1:]) for i, entry in enumerate(entries)]


def _wide(name: str, access: str, doc: str) -> list[tuple]:
    return [(f"{name}_LO", access, f"{doc}, low half"), (f"{name}_HI", access, f"{doc}, high half")]


_PORTS = range(MAX_WEIGHT_PORTS)

REGISTERS: tuple[Register, ...] = (
    *_block(
        0x000,
        ("ID", "ro", f"{ID:#010x}, ASCII HWGN"),
        ("VERSION", "ro", "version of the register map: major in the high half, minor in the low half"),
        ("CONFIG_HASH", "ro", "config_hash of the Config this hardware was made from"),
        ("CONTROL", "rw", "start, soft reset, interrupt enable", Control),
        ("STATUS", "ro", "busy, done, interrupt pending, error flags", Status),
        ("IRQ_CLEAR", "wo", "writing bit 0 as one clears the pending interrupt"),
        ("PROGRAM", "rw", "first instruction, in AXI beats from the data base"),
        ("PROGRAM_LENGTH", "rw", "instructions of the program, its END, the last one, included"),
    ),
    *_block(0x020, *_wide("DATA_BASE", "rw", "byte address of program and data; 4 KiB aligned")),
    *_block(
        0x028,
        *(r for p in _PORTS for r in _wide(f"WEIGHT_BASE{p}", "rw", f"byte address of weight port {p}; 4 KiB aligned")),
    ),
    *_block(
        0x060,
        ("STATE", "ro", "units at work and bursts in flight, now", State),
        ("PROGRAM_CRC", "ro", "CRC-32 (as zlib's) of the instruction words fetched since start, in order"),
        ("ISA", "ro", "first half of the fingerprint of the instruction set that this hardware decodes"),
    ),
    *_block(
        0x080,
        *_wide("CYCLES", "ro", "cycles from start to halt"),
        ("INSTRUCTION", "ro", "instructions handed to the units so far: the index of the next one"),
        ("ARRAY_ACTIVE", "ro", "cycles in which a row enters the array"),
        ("STALL_WEIGHTS", "ro", "cycles the matmul unit waits for weight words"),
        ("STALL_DEPEND", "ro", "cycles an instruction at the head of the matmul queue waits for its counts"),
        ("STALL_BANK", "ro", "cycles a row waits for a scratchpad bank"),
        ("DATA_READ_BEATS", "ro", "beats read by the data master, program included"),
        ("DATA_WRITE_BEATS", "ro", "beats written by the data master"),
        *((f"WEIGHT_BEATS{p}", "ro", f"beats read by weight port {p}") for p in _PORTS),
    ),
    *_block(0x0C0, *((f"BUSY_{u.name}", "ro", f"cycles that {u.name.lower()} is at work") for u in Unit)),
    *_block(0x0E0, *((f"FINISHED_{u.name}", "ro", f"instructions that {u.name.lower()} has finished") for u in Unit)),
)

BY_NAME: dict[str, Register] = {r.name: r for r in REGISTERS}


def offset(name: str) -> int:
    """Byte offset of a register; KeyError for an unknown name."""
    return BY_NAME[name].offset


def config_hash(config: Config) -> int:
    """32 bits that tell whether a program was built for this hardware. The clock does not change the hardware."""
    values = {name: value for name, value in config.to_dict().items() if name != "clock_mhz"}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def isa_word() -> int:
    """What register ISA reads."""
    return int(fingerprint()[:8], 16)


def identity(config: Config) -> dict[str, int]:
    """The read-only registers that tell which hardware this is, by name: a driver compares them with its bundle."""
    return {"ID": ID, "VERSION": VERSION, "CONFIG_HASH": config_hash(config), "ISA": isa_word()}


def manifest(config: Config) -> list[dict]:
    """The map as plain JSON values: name, offset, access, doc, `bits` by name, `value` of those that are constant."""
    listed, constants = [], identity(config)
    for register in REGISTERS:
        entry = {"name": register.name, "offset": register.offset, "access": register.access, "doc": register.doc}
        if register.bits is not None:
            entry["bits"] = {bit.name: int(bit) for bit in register.bits}
        if register.name in constants:
            entry["value"] = constants[register.name]
        listed.append(entry)
    return listed

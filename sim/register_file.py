"""The accelerator's registers over the machine model: what rtl/control.py does in hardware, with estimated cycles.

A run takes the cycles that the build estimated; the machine model does its work at the end of them, so a reset in
between leaves memory as it was. Time passes only through `advance`, `wait` and register reads.
"""

from __future__ import annotations

import zlib

import numpy as np

from hwgen import isa, registers
from hwgen.config import Config
from hwgen.counts import array_rows, data_beats, stream_beats
from hwgen.energy import Activity, activity
from hwgen.registers import Control, State, Status

from .machine import DramFault, Machine, MachineFault

ACCESS_CYCLES = 8  # that a register access takes
NEVER = float("inf")
ERRORS = Status.READ_ERROR | Status.WRITE_ERROR | Status.ILLEGAL
DEFAULT_CYCLES = 100_000  # of a program whose length nobody estimated


class MachineEngine:
    """Registers, DRAM and time. programs: instruction words -> estimated cycles of a run.

    `why` keeps what the machine model had to say when a run failed.
    """

    name = "machine model"
    cycles_exact = False

    def __init__(self, config: Config, size: int, programs: dict[bytes, int] | None = None):
        self.config, self.bytes, self.cycles, self.why = config, size, 0, ""
        self._memory = np.zeros(size, np.uint8)
        self._estimates = {zlib.crc32(code): cycles for code, cycles in (programs or {}).items()}
        self._by_offset = {r.offset: r for r in registers.REGISTERS}
        self._error = self._hold = False
        self._total = Activity()
        self.reset()

    def reset(self) -> None:
        """The reset pin: every register zero, nothing runs."""
        self._values = dict.fromkeys((r.name for r in registers.REGISTERS), 0) | registers.identity(self.config)
        self._status, self._irq_enable = Status(0), False
        self._end: float | None = None  # cycle at which the run is over, while there is one
        self._draining = False

    def fault(self, error: bool, hold: bool) -> None:
        """error: DRAM answers with errors; hold: it does not answer at all."""
        self._error, self._hold = error, hold

    # --- memory and time ----------------------------------------------------------------------------------------

    def poke(self, address: int, data: bytes) -> None:
        """Write DRAM from outside."""
        self._memory[self._range(address, len(data))] = np.frombuffer(data, np.uint8)

    def peek(self, address: int, size: int) -> bytes:
        """Read DRAM from outside."""
        return self._memory[self._range(address, size)].tobytes()

    def _range(self, address: int, size: int) -> slice:
        if not 0 <= address <= address + size <= self.bytes:
            raise ValueError(f"bytes {address} to {address + size} lie outside the {self.bytes} of DRAM")
        return slice(address, address + size)

    def advance(self, cycles: int) -> None:
        """Let time pass."""
        self.cycles += cycles
        if self._hold:
            return
        if self._draining:
            self._draining, self._end, self._status = False, None, Status(0)
        elif self._end is not None and self.cycles >= self._end:
            errors = self._run()
            self._end = NEVER if errors is None else None
            if errors is not None:
                self._status |= errors | Status.DONE | Status.IRQ

    def wait(self, cycles: int) -> bool:
        """Let time pass until the interrupt, `cycles` at most; whether it is high."""
        limit = self.cycles + cycles
        if not self._interrupt():
            self.advance(int(min(max(self._end - self.cycles, 1), cycles)) if self._end not in (None, NEVER) else cycles)
        if not self._interrupt():
            self.advance(max(0, limit - self.cycles))
        return self._interrupt()

    def _interrupt(self) -> bool:
        return self._irq_enable and Status.IRQ in self._status

    def activity(self) -> Activity:
        """What all runs so far have done."""
        lanes = Activity(lane_cycles=self.cycles * self.config.macs_per_cycle)
        return self._total + lanes

    def close(self) -> None:
        """Nothing to give back."""

    # --- registers ----------------------------------------------------------------------------------------------

    def read(self, offset: int) -> int:
        """Value of the register at a byte offset."""
        self.advance(ACCESS_CYCLES)
        register = self._by_offset.get(offset)
        if register is None or register.access == "wo":
            return 0
        if register.name == "STATUS":
            return int(self._status | (Status.BUSY if self._end is not None or self._draining else 0))
        if register.name == "CONTROL":
            return int(Control.IRQ_ENABLE) if self._irq_enable else 0
        if register.name == "STATE":
            waiting = State.DATA_READS if self._hold else State(0)
            return int((State.DRAINING if self._draining else State.RUNNING) | waiting) if self._busy() else 0
        return self._values[register.name]

    def write(self, offset: int, value: int) -> None:
        """Write the register at a byte offset."""
        self.advance(ACCESS_CYCLES)
        register = self._by_offset.get(offset)
        if register is None or register.access == "ro":
            return
        if register.name == "CONTROL":
            self._control(Control(value & int(Control.START | Control.RESET | Control.IRQ_ENABLE)))
        elif register.name == "IRQ_CLEAR":
            if value & 1:
                self._status &= ~Status.IRQ
        else:
            if register.name.endswith("_LO"):
                value &= -registers.BASE_ALIGNMENT
            self._values[register.name] = value & 0xFFFFFFFF

    def _busy(self) -> bool:
        return self._end is not None or self._draining

    def _control(self, bits: Control) -> None:
        self._irq_enable = Control.IRQ_ENABLE in bits
        if Control.RESET in bits:
            self._draining = True
        elif Control.START in bits and not self._busy() and not self._status & ERRORS:
            for register in registers.REGISTERS:
                if register.offset >= registers.offset("CYCLES_LO"):
                    self._values[register.name] = 0
            self._status = Status(0)
            code = self._code()
            self._values["PROGRAM_CRC"] = zlib.crc32(code)
            self._end = self.cycles + self._estimates.get(self._values["PROGRAM_CRC"], DEFAULT_CYCLES)

    # --- the run ------------------------------------------------------------------------------------------------

    def _base(self, name: str) -> int:
        return self._values[f"{name}_LO"] | self._values[f"{name}_HI"] << 32

    def _program(self) -> int:
        """Byte address of the first instruction."""
        return self._base("DATA_BASE") + self._values["PROGRAM"] * self.config.axi_bytes

    def _code(self) -> bytes:
        start = self._program()
        return self._memory[start : start + self._values["PROGRAM_LENGTH"] * isa.WORD_BYTES].tobytes()

    def _run(self) -> Status | None:
        """Run the program in DRAM and set the counters; errors as hardware would flag them, None where it would hang."""
        self.why = ""
        if self._error:
            return Status.READ_ERROR
        values, config = self._values, self.config
        counted = dict.fromkeys(("read", "written", "weights", "active", "instructions"), 0)
        walk: list[isa.MatmulWalk] = []  # of the next Matmul

        def observe(index: int, insn: isa.Insn, machine: Machine) -> None:
            counted["instructions"] += 1
            if insn.unit is not None and not isinstance(insn, isa.WalkFields):
                values[f"FINISHED_{insn.unit.name}"] += 1
            match insn:
                case isa.Load() | isa.LoadScales():
                    counted["read"] += data_beats(insn, config)
                case isa.Store():
                    counted["written"] += data_beats(insn, config)
                case isa.Stream():
                    if machine.queue(insn.expert, 1)[2]:
                        counted["weights"] += stream_beats(insn, config)
                case isa.MatmulWalk():
                    walk.append(insn)
                case isa.Matmul():
                    rows = machine.queue(insn.expert, insn.rows)[2]
                    counted["active"] += array_rows(insn, config, rows, walk.pop() if walk else None)

        length, bases = values["PROGRAM_LENGTH"], [self._base(f"WEIGHT_BASE{p}") for p in range(config.weight_ports)]
        started = self.cycles
        try:
            Machine(config).run(self._memory, self._program(), length, self._base("DATA_BASE"), bases, observe)
        except DramFault as error:
            self.why = str(error)
            return Status.READ_ERROR
        except ValueError as error:  # no instruction
            self.why = str(error)
            return Status.ILLEGAL
        except MachineFault as error:  # hardware would wait for ever, or do something that nobody defined
            self.why = str(error)
            return None
        finally:
            self._count(counted, started)
        return Status(0)

    def _count(self, counted: dict[str, int], started: int) -> None:
        values, config = self._values, self.config
        cycles = self._estimates.get(values["PROGRAM_CRC"], DEFAULT_CYCLES)
        fetched = values["PROGRAM_LENGTH"] * isa.WORD_BYTES // config.axi_bytes
        values |= {
            "CYCLES_LO": cycles & 0xFFFFFFFF,
            "CYCLES_HI": cycles >> 32,
            "INSTRUCTION": counted["instructions"],
            "ARRAY_ACTIVE": counted["active"],
            "DATA_READ_BEATS": counted["read"] + fetched,
            "DATA_WRITE_BEATS": counted["written"],
            **{f"WEIGHT_BEATS{p}": counted["weights"] for p in range(config.weight_ports)},
        }
        self._total += activity(
            config,
            cycles=0,  # counted with time
            array_active=counted["active"],
            weight_bytes=counted["weights"] * config.weight_ports * config.axi_bytes,
            data_bytes=(counted["read"] + fetched + counted["written"]) * config.axi_bytes,
        )

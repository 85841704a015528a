"""Start, wait, diagnose, recover: what the driver does to the registers."""

from __future__ import annotations

from .bundle import Bundle
from .errors import BusError, DeviceFault, IllegalProgram, ProgramCorrupted, ResetTimeout, RunLost, RunTimeout
from .job import Job
from .memory import Memory
from .registers import Registers

RESET_SECONDS = 1e-4  # that a soft reset may take, beyond the device's grace: bursts in flight end within microseconds
COUNTERS = ("ARRAY_ACTIVE", "DATA_READ_BEATS", "DATA_WRITE_BEATS")


class Runner:
    """The registers of one device. `interrupt`: sleep until the interrupt instead of polling STATUS."""

    memory: Memory  # set once it is allocated: a reset comes first

    def __init__(self, device, registers: Registers, bundle: Bundle, interrupt: bool):
        self.registers, self._device, self._interrupt = registers, device, interrupt
        self._beat_bytes = bundle.config["axi_bytes"]
        self._written: tuple | None = None  # program registers as they were last set
        self._dirty = False  # a fault was seen and the machine not reset since
        self._counted = [*COUNTERS, *(f"WEIGHT_BEATS{p}" for p in range(len(bundle.memory["weight_bases"])))]
        bit = registers.bit
        self._busy, self._done = bit("STATUS", "BUSY"), bit("STATUS", "DONE")
        self._bus_errors = bit("STATUS", "READ_ERROR") | bit("STATUS", "WRITE_ERROR")
        self._illegal = bit("STATUS", "ILLEGAL")
        self._go = bit("CONTROL", "START") | (bit("CONTROL", "IRQ_ENABLE") if interrupt else 0)

    def start(self, job: Job) -> None:
        """Start a job's run. The machine must be idle; after a fault it is reset first. Raises ResetTimeout."""
        registers = self.registers
        if self._dirty:
            self.recover()
            if self._dirty:
                raise ResetTimeout("the soft reset after the last fault does not end: DRAM owes answers", self._state())
        program = (job.first, job.instructions)
        # After a reset of the whole chip every register reads zero; PROGRAM_LENGTH is never zero otherwise.
        if self._written is None or registers.read("PROGRAM_LENGTH") != self._written[1]:
            for port, base in enumerate(self.memory.weight_bases()):
                registers.write_wide(f"WEIGHT_BASE{port}", base)
            self._written = None
        if self._written != program:
            registers.write("PROGRAM", job.first)
            registers.write("PROGRAM_LENGTH", job.instructions)
            self._written = program
        registers.write_wide("DATA_BASE", self.memory.data_base(job.slot))
        registers.write("CONTROL", self._go)
        job.started = self._device.now()

    def finish(self, job: Job, block: bool) -> bool:
        """Whether the job's run has ended well; without `block` False while it is at work. Raises DeviceFault."""
        device, registers = self._device, self.registers
        deadline = job.started + job.limit
        while (status := registers.read("STATUS")) & self._busy:
            remaining = deadline - device.now()
            if remaining <= 0:
                self._raise(RunTimeout, job, f"no halt within {job.limit:.6g} s")
            if not block:
                return False
            if self._interrupt:
                device.wait_interrupt(remaining)
            else:
                device.sleep(device.poll_seconds)
        job.seconds = device.now() - job.started
        if status & self._bus_errors:
            self._raise(BusError, job, f"DRAM answered with {', '.join(registers.flags('STATUS', status & self._bus_errors))}")
        if status & self._illegal:
            self._raise(IllegalProgram, job, "the machine met an instruction that it does not know")
        if not status & self._done:
            self._raise(RunLost, job, "the machine is idle and has not finished: it was reset in the middle of the run")
        if (crc := registers.read("PROGRAM_CRC")) != job.crc:
            what = f"the machine fetched a program of CRC {crc:#010x}, the bundle's has {job.crc:#010x}"
            self._raise(ProgramCorrupted, job, what)
        if self._interrupt:
            registers.write("IRQ_CLEAR", 1)
        job.counters = self._counters()
        return True

    def _counters(self) -> dict[str, int]:
        registers = self.registers
        found = {"cycles": registers.read_wide("CYCLES")}
        found |= {name.lower(): registers.read(name) for name in self._counted}
        beats = sum(value for name, value in found.items() if "beats" in name)
        return found | {"dram_bytes": beats * self._beat_bytes}

    # --- faults -------------------------------------------------------------------------------------------------

    def _state(self) -> dict[str, int]:
        return self.registers.snapshot()

    def _raise(self, kind: type[DeviceFault], job: Job, what: str) -> None:
        """Raise `kind` with the machine's state, or ProgramCorrupted where the program in DRAM is to blame."""
        self._dirty = True
        state = self._state()
        bad = self.memory.damaged_instruction(job.slot, job.task)
        if bad is not None and kind is not RunLost:
            kind, what = ProgramCorrupted, f"instruction {bad} in DRAM is not the bundle's ({what})"
        raise kind(f"{what}; {describe(self.registers, state, job.instructions)}", state)

    def recover(self) -> None:
        """After a fault: reset, and write again what may have been damaged. Stays `dirty` where the reset hangs."""
        try:
            self.reset()
        except ResetTimeout:
            self._dirty = True
            return
        self.memory.reload_data()

    def reset(self) -> None:
        """Soft reset: ends what runs and clears the errors. Raises ResetTimeout where DRAM does not answer."""
        registers, device = self.registers, self._device
        registers.write("CONTROL", registers.bit("CONTROL", "RESET"))
        deadline = device.now() + RESET_SECONDS + device.grace
        while registers.read("STATUS") & self._busy:
            if device.now() > deadline:
                state = self._state()
                raise ResetTimeout(f"a soft reset does not end; {describe(registers, state, 0)}", state)
            device.sleep(device.poll_seconds)
        self._written, self._dirty = None, False


def describe(registers: Registers, state: dict[str, int], instructions: int) -> str:
    """The machine's state on one line: instruction pointer, units at work, bursts in flight, counters."""
    finished = {name[9:]: value for name, value in state.items() if name.startswith("FINISHED_")}
    parts = [
        f"at instruction {state['INSTRUCTION']}" + (f" of {instructions}" if instructions else ""),
        f"status {' '.join(registers.flags('STATUS', state['STATUS'])) or 'idle'}",
        f"at work {' '.join(registers.flags('STATE', state['STATE'])) or 'nothing'}",
        f"finished {' '.join(f'{name} {value}' for name, value in finished.items())}",
        f"cycles {state['CYCLES_LO'] | state['CYCLES_HI'] << 32}",
        f"beats read {state['DATA_READ_BEATS']} written {state['DATA_WRITE_BEATS']} weights {state['WEIGHT_BEATS0']}",
    ]
    return "; ".join(parts)

"""Injected faults: each is a named error in bounded time, and the next run is right without loading anything again."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from hwgen import isa, registers
from hwgen.host.accelerator import Accelerator
from hwgen.host.errors import (
    BusError,
    Cancelled,
    DeviceBusy,
    DeviceFault,
    ProgramCorrupted,
    ResetTimeout,
    RunLost,
    RunTimeout,
)
from hwgen.host.lock import DeviceLock

BOUND = 60.0  # seconds of this machine that a fault may take to be told, simulator included


@pytest.fixture
def accelerator(faulty):
    with Accelerator(faulty.bundle, faulty.device, say=None) as opened:
        yield opened


@pytest.fixture
def good(faulty, accelerator):
    """Call it after a fault: the next run gives the right answer."""

    def check() -> None:
        faulty.engine.fault(error=False, hold=False)
        np.testing.assert_array_equal(accelerator(faulty.images[:2]), faulty.golden["digit"]["digit"][:2])
        if faulty.name != "rtl":  # reading all of a simulator's memory takes seconds
            assert accelerator.verify() == []

    started = time.monotonic()
    yield check
    assert time.monotonic() - started < BOUND


def test_bus_error(faulty, accelerator, good):
    faulty.engine.fault(error=True, hold=False)
    with pytest.raises(BusError, match=r"DRAM answered with READ_ERROR; at instruction \d+ of \d+; status DONE"):
        accelerator(faulty.images[:1])
    good()


def test_bus_error_in_mid_run_cancels_what_waits(faulty, accelerator, good):
    running, waiting = (accelerator.submit(faulty.images[:1]) for _ in range(2))
    faulty.device.sleep(2e-5)
    faulty.engine.fault(error=True, hold=False)
    with pytest.raises(Cancelled, match="a run before this one failed: .*READ_ERROR"):
        waiting.wait()
    with pytest.raises(BusError) as caught:
        running.wait()
    assert caught.value.state["STATUS"] & registers.Status.READ_ERROR
    good()


def test_memory_stops_answering(faulty, accelerator, good):
    job = accelerator.submit(faulty.images[:1])
    faulty.device.sleep(2e-5)
    faulty.engine.fault(error=False, hold=True)
    with pytest.raises(RunTimeout, match=r"no halt within .* at work .*READS") as caught:
        job.wait()
    assert caught.value.state["INSTRUCTION"] <= len(faulty.bundle.program("digit")) // isa.WORD_BYTES
    with pytest.raises(ResetTimeout, match="DRAM owes answers"):  # as long as it lasts
        accelerator(faulty.images[:1])
    good()


def _corrupt(accelerator, faulty, index: int, change) -> None:
    """Change an instruction of task digit in DRAM, in every slot, from outside."""
    size = isa.WORD_BYTES
    at = faulty.bundle.task("digit")["program"]["offset_bytes"] + index * size
    for slot in range(2):
        address = accelerator._memory.data_base(slot) + at
        faulty.engine.poke(address, change(faulty.engine.peek(address, size)))


def _insn(change):
    """A change of an instruction's fields as a change of its bytes."""
    return lambda word: isa.assemble([change(isa.disassemble(word)[0])])


def _with(**fields):
    from dataclasses import replace

    return _insn(lambda insn: replace(insn, **fields))


def _matmul(bundle) -> int:
    program = isa.disassemble(bundle.program("digit"))
    return next(i for i, insn in enumerate(program) if isinstance(insn, isa.Matmul) and insn.shift)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda word: b"\xff" + word[1:], "an instruction that it does not know"),
        (_with(wait_store=9999), "no halt within"),
        (_insn(lambda insn: type(insn)(**{**vars(insn), "shift": insn.shift ^ 1})), "fetched a program of CRC"),
    ],
    ids=["unknown operation", "endless wait", "wrong value"],
)
def test_corrupted_program(faulty, accelerator, good, change, said):
    index = _matmul(faulty.bundle)
    _corrupt(accelerator, faulty, index, change)
    if faulty.name != "rtl":
        assert len(accelerator.verify()) == 2
    with pytest.raises(ProgramCorrupted, match=f"instruction {index} in DRAM is not the bundle's .*{said}"):
        accelerator(faulty.images[:1])
    good()


@pytest.mark.parametrize("pin", [True, False], ids=["pin", "register"])
def test_reset_in_mid_run(faulty, accelerator, good, pin):
    job = accelerator.submit(faulty.images[:1])
    faulty.device.sleep(2e-5)
    if pin:
        faulty.engine.reset()
    else:
        faulty.engine.write(registers.offset("CONTROL"), registers.Control.RESET)
        faulty.device.sleep(1e-5)
    with pytest.raises(RunLost, match="was reset in the middle of the run"):
        job.wait()
    good()


def test_reset_between_runs_is_no_fault(faulty, accelerator, good):
    accelerator(faulty.images[:1])
    faulty.engine.reset()  # every register is zero: the next start writes them all
    good()


def test_short_timeout(faulty):
    with Accelerator(faulty.bundle, faulty.device, timeout=1e-5, say=None) as accelerator:
        for _ in range(2):
            with pytest.raises(RunTimeout, match="no halt within 1e-05 s"):
                accelerator(faulty.images[:1])
    with Accelerator(faulty.bundle, faulty.device, say=None) as accelerator:
        np.testing.assert_array_equal(accelerator(faulty.images[:1]), faulty.golden["digit"]["digit"][:1])


def test_every_fault_tells_the_machine_state(faulty, accelerator):
    faulty.engine.fault(error=True, hold=False)
    with pytest.raises(DeviceFault) as caught:
        accelerator(faulty.images[:1])
    assert {"INSTRUCTION", "STATE", "CYCLES_LO", "FINISHED_MATMUL", "BUSY_LOAD"} <= caught.value.state.keys()


def test_two_processes(faulty, tmp_path, monkeypatch):
    lock = tmp_path / "device.lock"
    monkeypatch.setattr(faulty.device, "lock_path", lock)
    code = (
        "import sys; from hwgen.host.lock import DeviceLock; "
        "DeviceLock(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(DeviceBusy, match=f"used by process {holder.pid} .*device.lock"):
        Accelerator(faulty.bundle, faulty.device, say=None)
    holder.kill()  # without a chance to clean up
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    with Accelerator(faulty.bundle, faulty.device, say=None) as accelerator:
        np.testing.assert_array_equal(accelerator(faulty.images[:1]), faulty.golden["digit"]["digit"][:1])
        with pytest.raises(DeviceBusy):
            DeviceLock(lock)
    DeviceLock(lock).release()

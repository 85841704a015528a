"""The seam between driver and device: what a board, or something that stands in for one, offers.

    name, clock_mhz    for people; the clock that the accelerator really runs at
    simulated          True where nothing is measured on hardware; `cycles_exact`: whether the cycle counter is hardware's
    grace              seconds that the operating system may keep the driver waiting; added to every time limit
    poll_seconds       pause between two looks at STATUS
    lock_path          lock file of the device, None where every process has its own
    read(offset), write(offset, value)      32-bit registers
    allocate(size)     a buffer as `host.memory` describes it; raises DeviceError
    wait_interrupt(seconds)                 True once the interrupt is high, False when the time is over
    sleep(seconds), now()                   the device's time: simulated where the device is
    rails()            power rails that can be sampled: {name: function that gives watts}
    every(seconds, call)                    calls until the function that it returns is called; sample_seconds and
                       idle_seconds are how often and how long rails are sampled
    close()

`host.board` is the board with PYNQ, `host.serial_device` one at a serial line, `sim.device` the simulated one over the machine
model or the Verilog.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from .bundle import Bundle
from .errors import DeviceError

SIMULATED = {"sim": "machine", "rtl": "rtl"}
SERIAL = "serial:"  # and the path of the line
NAMES = ("board", *SIMULATED, f"{SERIAL}PATH")


def open_device(device, bundle: Bundle, bitstream: Path | str | None = None):
    """A device from its name in NAMES, None for the board; an object is taken as it is. Raises DeviceError.

    bitstream: for the board, see `host.board`.
    """
    if device is None or device == "board":
        from .board import Board

        return Board(bundle, bitstream)
    if bitstream is not None:
        raise DeviceError(f"{bitstream}: a bitstream goes to the board, not to a simulated device")
    if not isinstance(device, str):
        return device
    if device.startswith(SERIAL):
        from .serial_device import open_serial

        return open_serial(device.removeprefix(SERIAL), bundle)
    if device not in SIMULATED:
        raise DeviceError(f"unknown device {device!r}; there are {', '.join(NAMES)}")
    try:
        simulation = importlib.import_module("hwgen.sim.device")  # by name: the board does not have it
    except ImportError as error:
        raise DeviceError(f"device {device!r} needs hwgen's simulation here ({error})") from None
    try:
        return simulation.open_device(bundle, SIMULATED[device])
    except RuntimeError as error:
        raise DeviceError(f"device {device!r}: {error}") from None

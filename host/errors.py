"""What can go wrong on the host's side, by name. Everything the driver raises on purpose is a HostError."""

from __future__ import annotations


class HostError(Exception):
    """Base of the driver's errors; the message is one sentence that names file, array, register or value."""


class BundleError(HostError, ValueError):
    """The directory is no intact bundle, or does not hold what is asked for. The message names the file."""


class InputError(HostError, ValueError):
    """An image of wrong shape or type, or with NaN in it; an unknown task."""


class DeviceError(HostError):
    """The device cannot be had: no board, no bitstream, no memory."""


class DeviceBusy(DeviceError):
    """Another process has the accelerator."""


class WrongHardware(DeviceError):
    """The bitstream on the device was not made for this bundle."""


class DeviceFault(HostError):
    """A run failed. `state`: registers by name when that was seen; the next run starts from a reset machine."""

    def __init__(self, message: str, state: dict[str, int] | None = None):
        super().__init__(message)
        self.state = state or {}


class BusError(DeviceFault):
    """DRAM or the interconnect answered a burst with an error."""


class IllegalProgram(DeviceFault):
    """The machine met an instruction that it does not know."""


class ProgramCorrupted(DeviceFault):
    """The program that was fetched, or that lies in DRAM, is not the bundle's."""


class RunTimeout(DeviceFault):
    """The machine did not halt in time."""


class RunLost(DeviceFault):
    """The machine is idle and has not finished: something reset it in the middle of a run."""


class ResetTimeout(DeviceFault):
    """A soft reset does not end: DRAM still owes answers."""


class Cancelled(DeviceFault):
    """The run was never started, since one before it failed or the accelerator was closed."""

"""`python -m hwgen.host.self_test PACKAGE`: whether the board does what the simulation did.

Checks every file against its hash, the hardware against the bundle, DRAM after loading, and the outputs of every task
against those that golden gave when the package was made, polling and by interrupt. Exit code 0: all good; 1: not; 2:
the package or the device cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from .accelerator import WAITS, Accelerator
from .bundle import Bundle
from .device import NAMES
from .errors import BundleError, DeviceError, DeviceFault, HostError
from .files import read_npz
from .measure import measure
from .stop import stoppable

BUNDLE, DRIVER, IMAGES = "bundle", "driver", "self_test.npz"  # within a package's folder, with the bitstream


def self_test(folder: Path, device="board", say=print) -> bool:
    """Test the package in `folder`; says a line per check and returns whether all are good. Raises HostError."""
    data = find(folder)
    bundle = Bundle(data / BUNDLE)
    say(f"good  bundle: {len(bundle.files)} files, tasks {', '.join(map(repr, bundle.tasks))}")
    good = True
    for wait in WAITS:
        with Accelerator(bundle, device, wait=wait, say=None) as accelerator:
            say(f"good  hardware is the bundle's; {accelerator.describe()}")
            damaged = accelerator.verify()
            good &= not damaged
            say("good  DRAM holds the bundle" if not damaged else f"BAD   DRAM: {'; '.join(damaged)}")
            for task in bundle.tasks:
                good &= _task(accelerator, task, data / IMAGES, wait, say)
    return good


def find(folder: Path) -> Path:
    """Where bundle and images stand in the package `folder`, which may also be that itself. Raises BundleError."""
    found = [path for path in (folder, *sorted(folder.glob("*"))) if (path / BUNDLE).is_dir() and (path / IMAGES).is_file()]
    if len(found) != 1:
        raise BundleError(f"{folder}: is no package of hwgen: {len(found)} of its folders hold {BUNDLE} and {IMAGES}")
    return found[0]


def own() -> Path:
    """The package that this driver is a part of; without one, this folder."""
    package = Path(__file__).resolve().parents[1]
    return package if (package / BUNDLE).is_dir() else Path()


def _task(accelerator: Accelerator, task: str, images: Path, wait: str, say) -> bool:
    inputs = {name: array_name(task, "in", name) for name in accelerator.bundle.inputs(task)}
    outputs = {name: array_name(task, "out", name) for name in accelerator.bundle.outputs(task)}
    arrays = read_npz(images, [*inputs.values(), *outputs.values()])
    try:
        found = measure(accelerator, {name: arrays[stored] for name, stored in inputs.items()}, task)
    except DeviceFault as error:
        say(f"BAD   task {task!r}, {wait}: {type(error).__name__}: {error}")
        return False
    bad = [name for name, stored in outputs.items() if not np.array_equal(found.outputs[task][name], arrays[stored])]
    milliseconds = found.summary()["latency_ms"]["p50"]
    say(f"{'BAD ' if bad else 'good'}  task {task!r}, {wait}: {found.images} images, {milliseconds:.3f} ms each"
        + (f"; not as golden: {', '.join(bad)}" if bad else ", bit for bit as golden"))  # fmt: skip
    return not bad


def array_name(task: str, kind: str, name: str) -> str:
    """Name of a task's array in the package's images; kind: "in" or "out"."""
    return f"{task}|{kind}|{name}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return stoppable(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.self_test", description="Test a package on its board.")
    parser.add_argument("folder", type=Path, nargs="?", default=own(), metavar="PACKAGE", help="default: %(default)s")
    parser.add_argument("--device", choices=NAMES, default="board", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        return 0 if self_test(options.folder, options.device) else 1
    except (DeviceError, HostError) as error:
        print(f"host: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

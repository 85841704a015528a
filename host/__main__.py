"""`python -m hwgen.host BUNDLE IN.npz`: run a bundle on a device.

Exit codes: 0 good; 1 outputs differ from those expected, or the device failed; 2 the input is at fault, told in one line.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .accelerator import WAITS, Accelerator
from .bundle import Bundle
from .device import NAMES, SERIAL
from .energy import Recorder
from .errors import DeviceFault, HostError, InputError
from .files import check_writable, read_npz, write, write_npz
from .measure import measure
from .stop import stoppable

GOOD, FAILED, USER_FAULT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others."""

    def error(self, message: str):
        print(f"host: error: {message} ({self.prog} --help tells more)", file=sys.stderr)
        raise SystemExit(USER_FAULT)


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog=f"python -m {__package__}", description="Run a bundle on the board or a simulated one.")
    top.add_argument("bundle", type=Path, metavar="BUNDLE")
    top.add_argument("input", type=Path, metavar="IN.npz", help="one array per ONNX input, first axis = images")
    what = f"{', '.join(NAMES)}; default: %(default)s"
    top.add_argument("--device", type=_device, default="board", metavar="DEVICE", help=what)
    top.add_argument("--bitstream", type=Path, metavar="FILE.bit", help="default: hwgen.bit in the bundle or beside it")
    top.add_argument("--output", type=Path, metavar="OUT.npz", help="one float32 array per ONNX output")
    top.add_argument("--task", metavar="T", help="needed where the bundle holds several; T,U: both of each image")
    top.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    top.add_argument("--wait", choices=WAITS, default="polling", help="default: %(default)s")
    top.add_argument("--expect", type=Path, metavar="OUT.npz", help="outputs that must come out, bit for bit")
    top.add_argument("--check", action="store_true", help="compare with the golden model, where hwgen is installed")
    top.add_argument("--energy", type=Path, metavar="FILE.csv", help="record the power rails; a plot goes beside it")
    top.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return top


def _device(name: str) -> str:
    if name not in NAMES and not (name.startswith(SERIAL) and name != SERIAL):
        raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(NAMES)}")
    return name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return stoppable(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    try:
        return run(parser().parse_args(arguments))
    except DeviceFault as error:
        print(f"host: {type(error).__name__}: {_line(error)}", file=sys.stderr)
        return FAILED
    except HostError as error:
        print(f"host: error: {_line(error)}", file=sys.stderr)
        return USER_FAULT


def run(options) -> int:
    if options.limit is not None and options.limit < 1:
        raise InputError(f"--limit {options.limit}: must be at least 1")
    for path in (options.output, options.energy):
        if path is not None:
            check_writable(path)
    bundle = Bundle(options.bundle)
    task = bundle.choose(options.task)
    images = {name: array[: options.limit] for name, array in read_npz(options.input, list(bundle.inputs(task))).items()}
    names = bundle.outputs(task)
    expected = read_npz(options.expect, names) if options.expect else None
    device, bitstream = options.device, options.bitstream
    count = len(next(iter(images.values())))
    with shown(f"device {device}", count) as told:
        with Accelerator(bundle, device, task=task, bitstream=bitstream, wait=options.wait, say=None) as accelerator:
            clock, exact = accelerator.describe(), accelerator.device.cycles_exact
            recorder = Recorder(accelerator.device) if options.energy else None

            def work():
                return measure(accelerator, images, task, told)

            found = work() if recorder is None else recorder.record(work)
        if options.check:
            expected = golden(bundle, task, images)
    outputs, summary = found.outputs[task], found.summary() | {"device": options.device, "task": task}
    summary["cycles_exact"] = exact
    if options.output is not None:
        write_npz(options.output, outputs)
    if recorder is not None:
        summary["energy"] = recorder.summary(found.images)
        write(options.energy, recorder.csv())
        write(options.energy.with_suffix(".svg"), recorder.plot())
    differing = [] if expected is None else [name for name in names if not equal(outputs[name], expected[name])]
    if expected is not None:
        summary["equal"] = not differing
    print(json.dumps(summary) if options.json else text(clock, summary, recorder))
    if differing:
        print(f"host: mismatch: {', '.join(differing)} not as expected", file=sys.stderr)
        return FAILED
    return GOOD


@contextmanager
def shown(what: str, images: int):
    """Meanwhile show on stderr how far it is: where hwgen is installed, as it is for the slow, simulated devices."""
    try:
        progress = importlib.import_module("hwgen.progress")  # by name: a board does not have it
    except ImportError:
        yield lambda done: None
        return
    with progress.shown(), progress.work(what, images, "images") as here:
        yield here.at


def equal(found: np.ndarray, expected: np.ndarray) -> bool:
    """Bit for bit; more expected images than found are no fault."""
    return len(expected) >= len(found) and np.array_equal(found, expected[: len(found)])


def golden(bundle: Bundle, task: str, images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of the golden model. Raises InputError where hwgen is not installed."""
    try:
        engines = importlib.import_module("hwgen.run")  # by name: a board does not have it
    except ImportError as error:
        raise InputError(f"--check needs hwgen here ({error}); --expect takes outputs that were made elsewhere") from None
    single = {name: np.asarray(array, np.float32) for name, array in images.items()}
    return engines.run(bundle, "golden", single, task).outputs


def text(clock: str, summary: dict, recorder: Recorder | None) -> str:
    """The summary for people."""
    latency = ", ".join(f"{name} {value:.3f}" for name, value in summary["latency_ms"].items())
    cycles = "cycles" if summary["cycles_exact"] else "cycles (estimated)"
    lines = [
        clock,
        f"{summary['images']} images in {summary['seconds']:.6f} s: {summary['images_per_second']:,.1f} images/s",
        f"latency in ms: {latency}; {summary['cycles_per_image']:,.0f} {cycles} an image",
        f"DRAM: {summary['dram_bytes_per_image']:,.0f} bytes an image",
    ]
    if "equal" in summary:
        lines.append("outputs: " + ("as expected, bit for bit" if summary["equal"] else "NOT as expected"))
    if recorder is not None:
        lines.append(recorder.text(summary["images"]))
    return "\n".join(lines)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())

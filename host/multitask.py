"""`python -m hwgen.host.multitask BUNDLE IN.npz`: one stream of images, its tasks alternating, against one task at a time.

M3ViT's point: tasks share all weights but their gates, so switching task moves no weight. What a switch costs is
measured: cycles and DRAM bytes of every image in the alternating stream, less those of the same image and task in a
stream of that task alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from .accelerator import Accelerator
from .bundle import Bundle
from .device import NAMES
from .errors import HostError, InputError
from .files import read_npz
from .measure import Measurement, measure
from .stop import stoppable


@dataclass
class Overhead:
    """What alternating tasks costs, in all runs together. `exact`: whether cycles are hardware's and no estimate."""

    switches: int
    images: int
    cycles: int  # of the alternating stream
    extra_cycles: int
    dram_bytes: int
    extra_bytes: int
    equal: bool  # outputs are those of the single-task streams
    exact: bool

    def text(self) -> str:
        """For people."""
        cycles = f"{self.extra_cycles:+,} cycles" + ("" if self.exact else " (estimated, the same for every image)")
        return (
            f"{self.images} images, {self.switches} task switches: {self.cycles:,} cycles, {self.dram_bytes:,} bytes of DRAM\n"
            f"against one task at a time: {cycles} ({self.extra_cycles / self.cycles:+.3%}), {self.extra_bytes:+,} bytes\n"
            f"outputs {'equal' if self.equal else 'DIFFER'}, bit for bit"
        )


def overhead(accelerator: Accelerator, images) -> Overhead:
    """Measure it. images: {input: [images, ...]} that every task takes. Raises InputError where there is one task."""
    tasks = accelerator.tasks
    if len(tasks) < 2:
        raise InputError(f"{accelerator.bundle.path}: holds one task; alternating takes two")
    if accelerator.bundle.batch != 1:
        raise InputError(f"{accelerator.bundle.path}: tasks alternate by image, its runs take {accelerator.bundle.batch}")
    alone = {task: measure(accelerator, images, task) for task in tasks}
    mixed = measure(accelerator, images, cycle(tasks))
    single = [alone[task] for task in mixed.tasks]
    return Overhead(
        switches=sum(a != b for a, b in zip(mixed.tasks, mixed.tasks[1:], strict=False)),
        images=mixed.images,
        cycles=sum(mixed.cycles),
        extra_cycles=sum(mixed.cycles) - sum(one.cycles[i] for i, one in enumerate(single)),
        dram_bytes=sum(mixed.dram_bytes),
        extra_bytes=sum(mixed.dram_bytes) - sum(one.dram_bytes[i] for i, one in enumerate(single)),
        equal=all(_equal(mixed, alone, task) for task in tasks),
        exact=accelerator.device.cycles_exact,
    )


def _equal(mixed: Measurement, alone: dict[str, Measurement], task: str) -> bool:
    at = [i for i, name in enumerate(mixed.tasks) if name == task]
    outputs = mixed.outputs.get(task, {})
    return all((values == alone[task].outputs[task][name][at]).all() for name, values in outputs.items())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 good, 1 outputs differ, 2 the input is at fault."""
    return stoppable(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}.multitask", description="The cost of switching task.")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("input", type=Path, metavar="IN.npz")
    parser.add_argument("--device", choices=NAMES, default="board", help="default: %(default)s")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    try:
        bundle = Bundle(options.bundle)
        names = sorted({name for task in bundle.tasks for name in bundle.inputs(task)})
        images = {name: array[: options.limit] for name, array in read_npz(options.input, names).items()}
        with Accelerator(bundle, options.device, say=None) as accelerator:
            found = overhead(accelerator, images)
    except HostError as error:
        print(f"host: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(json.dumps(vars(found)) if options.json else found.text())
    return 0 if found.equal else 1


if __name__ == "__main__":
    sys.exit(main())

"""`hwgen build --verify`: the program of a build on the machine model against its integer graphs, on one image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from . import transfer
from .intgraph import Input, IntGraph
from .program import Program, TaskProgram, task_entry
from .progress import work
from .quantise.calibrate import noise
from .transfer import Images


class Disagreement(RuntimeError):
    """A program computes something else than the graph that it was made from: a fault of the compiler."""


def check(program: Program, graphs: Mapping[str, IntGraph], images: Images | None) -> str:
    """What was compared, in words. graphs: of every task of the program, one image each.

    images: calibration images [n, ...] by input, of which the program's batch is filled; seeded noise without them. Raises
    Disagreement, naming task, output and the first value that differs.
    """
    with work("verify", len(program.tasks), "tasks") as here:
        for done, (name, task) in enumerate(program.tasks.items()):
            _compare(name, task, program, graphs[name], images)
            here.at(done + 1)
    return f"equal to golden on {'an image' if program.batch == 1 else f'{program.batch} images'}"


def _compare(name: str, task: TaskProgram, program: Program, graph: IntGraph, images: Images | None) -> None:
    from .sim import golden

    if images is None:
        images = {op.image: noise(op.shape) for op in graph.ops if isinstance(op, Input)}
    batch = [{image: array[i % len(array)] for image, array in images.items()} for i in range(program.batch)]
    bases = program.data_base, program.weight_bases
    found = transfer.on_machine(program.config, task_entry(task), program.dram(), *bases, batch)
    for i, image in enumerate(batch):
        for output, wanted in golden.run(graph, image).outputs.items():
            got = found[i][output]
            if np.array_equal(got, wanted):
                continue
            where = tuple(int(k) for k in np.argwhere(got != wanted)[0])
            raise Disagreement(
                f"{f'task {name}, ' if name else ''}output {output!r}: {int((got != wanted).sum())} of {wanted.size} values of "
                f"the program differ from those of the quantised graph, the first at {list(where)}: {got[where]} for "
                f"{wanted[where]}; no bundle was written"
            )

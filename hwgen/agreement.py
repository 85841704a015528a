"""`hwgen build --verify`: the program of a build on the machine model against its integer graphs, on one image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from .host.pack import pack_input, unpack_output
from .intgraph import Input, IntGraph
from .program import Program, TaskProgram
from .progress import work
from .quantise.calibrate import noise

Images = dict[str, np.ndarray]


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
    found = _on_machine(program, task, batch)
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


def _on_machine(program: Program, task: TaskProgram, batch: list[Images]) -> list[Images]:
    """Outputs of each image of a batch."""
    from .sim.machine import Machine

    dram = program.dram()
    for slot in task.inputs:
        data = pack_input(asdict(slot), batch[slot.index][slot.name])
        dram[slot.dram : slot.dram + len(data)] = np.frombuffer(data, np.uint8)
    machine = Machine(program.config)
    machine.run(dram, task.offset, len(task.instructions), program.data_base, program.weight_bases)
    found: list[Images] = [{} for _ in batch]
    for out in task.outputs:
        data = dram[out.dram : out.dram + out.layout.bytes].tobytes()
        found[out.index][out.name] = unpack_output(asdict(out), data)
    return found

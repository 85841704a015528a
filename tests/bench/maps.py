"""How far ONNX files come: lowered, built for a board, accurate, and the same on the machine as on golden.

    python tests/bench/maps.py [--board zcu104] [--seconds 120] FILE.onnx [FILE.onnx ...]

Calibrated, as a build without images is, with seeded noise; the error is that of golden against the float row graph, in dB,
on an image of other noise. A network whose golden takes longer than so many seconds is not run on the machine.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from host.pack import pack_input, unpack_output
from hwgen import boards, explore
from hwgen import graph as fg
from hwgen.dram import of_board
from hwgen.errors import UserError
from hwgen.intgraph import Constant, IntGraph
from hwgen.levels import import_model
from hwgen.mapping import choose, mapped
from hwgen.program import Program
from hwgen.quantise import quantise
from hwgen.quantise.calibrate import noise
from hwgen.select import select
from sim import golden
from sim.machine import Machine

Values = dict[str, np.ndarray]


def decibels(wanted: Values, found: Values) -> float:
    """Signal to noise of the worst output."""
    errors = [(np.square(y).sum(), np.square(y - found[name]).sum()) for name, y in wanted.items()]
    return min(10 * float(np.log10(signal / max(error, 1e-30))) for signal, error in errors)


def run_machine(program: Program, images: Values) -> Values:
    """The outputs of one image on the machine."""
    machine, task, dram = Machine(program.config), program.tasks[""], program.dram()
    for slot in task.inputs:
        data = pack_input(asdict(slot), images[slot.name])
        dram[slot.dram : slot.dram + len(data)] = np.frombuffer(data, np.uint8)
    machine.run(dram, task.offset, len(task.instructions), program.data_base, program.weight_bases, None, "program")
    return {s.name: unpack_output(asdict(s), dram[s.dram : s.dram + s.layout.bytes]) for s in task.outputs}


def program_of(graph: IntGraph, board: boards.Board) -> Program:
    """On the board's Config with a window engine, or where it does not fit on one that is searched for."""
    graphs, config = {"": graph}, board.make_config()
    if not config.window_chunks:
        config = replace(config, window_chunks=config.input_chunks)
    try:
        return mapped(graphs, config, choose(graphs, config, of_board(board, config)).mapping)
    except UserError:
        points = explore.explore(graphs, board, batches=(1,), workers=1)
        config = explore.choose(points).config
        return mapped(graphs, config, choose(graphs, config, of_board(board, config)).mapping)


def line(path: Path, board: boards.Board, seconds: float) -> str:
    """What became of a file."""
    try:
        graph = import_model(path)
    except UserError as error:
        return f"refused: {error}"
    level_q = quantise({"": graph}, None)[""]
    machine = select(level_q)
    kinds = Counter(type(op).__name__ for op in machine.ops if not isinstance(op, Constant))
    image = {name: noise(shape, graph.ranges.get(name), seed=1)[0] for name, shape in graph.inputs.items()}
    begin = time.monotonic()
    found = golden.run(machine, image).outputs
    took = time.monotonic() - begin
    error = decibels(fg.outputs(graph, fg.evaluate(graph, image)), found)
    said = f"{error:.1f} dB, " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    try:
        program = program_of(machine, board)
    except UserError as error:
        return f"{said}; not built: {error}"
    said += f"; {len(program.tasks[''].instructions)} instructions"
    if took > seconds:
        return f"{said}; machine not run"
    same = run_machine(program, image)
    equal = all(np.array_equal(same[name], value) for name, value in found.items())
    return f"{said}; machine {'= golden' if equal else 'DIFFERS FROM GOLDEN'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="zcu104")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    board = boards.load(arguments.board)
    for path in arguments.files:
        try:
            said = line(path, board, arguments.seconds)
        except Exception as error:  # a fault of ours: the next file is still of interest
            said = f"FAULT {type(error).__name__}: {error}"
        print(f"{path.name}: {said}", flush=True)


if __name__ == "__main__":
    main()

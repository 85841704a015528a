"""How far ONNX files come: lowered, built for a board, accurate, and the same on the machine as on golden.

    python tests/bench/maps.py [--board zcu104] [--seconds 120] [--engine rtl] FILE.onnx [FILE.onnx ...]

Calibrated, as a build without images is, with seeded noise; the error is that of golden against the float row graph, in dB,
on an image of other noise. A network whose golden takes longer than so many seconds is not run on the machine.

--engine rtl: also in the simulated Verilog of two small machines, `SMALL`, with the DRAM of the board; the cycle model is
compared with the counters. The exit code is 1 where an engine differs from golden, or the model from RTL by more than 3 %.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from hwgen import boards, cost, explore, isa
from hwgen import graph as fg
from hwgen.config import Config
from hwgen.dram import of_board
from hwgen.errors import UserError
from hwgen.host.pack import pack_input, unpack_output
from hwgen.intgraph import Constant, IntGraph
from hwgen.levels import import_model
from hwgen.mapping import choose, mapped
from hwgen.program import Program, TaskProgram
from hwgen.quantise import quantise
from hwgen.quantise.calibrate import noise
from hwgen.select import select
from hwgen.sim import golden, rtl
from hwgen.sim.machine import Machine
from hwgen.steps import verilog

Values = dict[str, np.ndarray]
SMALL = (  # arrays small enough to compile in a minute; the second divides no width. Memories hold networks of test size
    Config(
        array_outputs=16, array_inputs=16, bank_words=8192, acc_rows=512, scale_entries=16384, queue_entries=4096,
        norm_columns=2048, weight_words=4096, window_chunks=1,
    ),
    Config(
        array_outputs=12, array_inputs=20, bank_words=8192, acc_rows=512, scale_entries=16384, queue_entries=4096,
        norm_columns=2048, weight_words=4096, window_chunks=3, weight_ports=1,
    ),
)  # fmt: skip
MODEL_ERROR = 0.03


def decibels(wanted: Values, found: Values) -> float:
    """Signal to noise of the worst output."""
    errors = [(np.square(y).sum(), np.square(y - found[name]).sum()) for name, y in wanted.items()]
    return min(10 * float(np.log10(signal / max(error, 1e-30))) for signal, error in errors)


def writes(task: TaskProgram, images: Values) -> list[tuple[int, bytes]]:
    """What to put into DRAM for an image."""
    return [(slot.dram, pack_input(asdict(slot), images[slot.name])) for slot in task.inputs]


def run_machine(program: Program, images: Values) -> tuple[Values, list[list[int]]]:
    """The outputs of one image on the machine, and the tokens of every expert of each Route."""
    machine, task, dram = Machine(program.config), program.tasks[""], program.dram()
    for offset, data in writes(task, images):
        dram[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    queues: list[list[int]] = []

    def observe(index: int, insn: isa.Insn, machine: Machine) -> None:
        if isinstance(insn, isa.Route):
            queues.append([len(tokens) for tokens, _ in machine.queues[: insn.experts]])

    machine.run(dram, task.offset, len(task.instructions), program.data_base, program.weight_bases, observe)
    return {s.name: unpack_output(asdict(s), dram[s.dram : s.dram + s.layout.bytes]) for s in task.outputs}, queues


def run_rtl(program: Program, images: Values, board: boards.Board) -> tuple[Values, int]:
    """The outputs of one image in the simulated Verilog, and its cycles."""
    task, config = program.tasks[""], program.config
    first = (task.offset - program.data_base) // config.axi_bytes
    reads = [(slot.dram, slot.layout.bytes) for slot in task.outputs]
    (result,) = rtl.simulate(
        verilog(config), config, program.dram().tobytes(),
        [rtl.Run(writes(task, images), first, len(task.instructions), reads)],
        data_base=program.data_base, weight_bases=program.weight_bases, dram=of_board(board, config),
    )  # fmt: skip
    slots = zip(task.outputs, result.reads, strict=True)
    return {s.name: unpack_output(asdict(s), data) for s, data in slots}, result.cycles


def equal(a: Values, b: Values) -> bool:
    return all(np.array_equal(a[name], value) for name, value in b.items())


def on_small(graph: IntGraph, image: Values, wanted: Values, board: boards.Board) -> tuple[str, bool]:
    """The network in RTL on each of the small machines: what to say, and whether all is as it must be."""
    said, good = [], True
    for config in SMALL:
        shape, memory = f"{config.array_outputs}x{config.array_inputs}", of_board(board, config)
        try:
            program = mapped({"": graph}, config, choose({"": graph}, config, memory).mapping)
        except UserError as error:
            said.append(f"{shape} not built: {error}")
            continue
        same, queues = run_machine(program, image)
        estimate = cost.estimate(program.tasks[""].instructions, config, memory, queues)
        found, cycles = run_rtl(program, image, board)
        off = estimate.cycles / cycles - 1
        verdicts = [equal(same, wanted), equal(found, wanted), abs(off) <= MODEL_ERROR]
        names = ("machine = golden", "RTL = golden", f"{cycles:,} cycles, model {off:+.2%}")
        said.append(f"{shape} " + ", ".join(n if v else f"{n} FAILS" for n, v in zip(names, verdicts, strict=True)))
        good &= all(verdicts)
    return "; ".join(said), good


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


def line(path: Path, board: boards.Board, seconds: float, in_rtl: bool) -> tuple[str, bool]:
    """What became of a file, and whether the engines agree on it."""
    try:
        graph = import_model(path)
    except UserError as error:
        return f"refused: {error}", True
    level_q = quantise({"": graph}, None)[""]
    machine = select(level_q)
    kinds = Counter(type(op).__name__ for op in machine.ops if not isinstance(op, Constant))
    image = {name: noise(shape, graph.ranges.get(name), seed=1)[0] for name, shape in graph.inputs.items()}
    begin = time.monotonic()
    found = golden.run(machine, image).outputs
    took = time.monotonic() - begin
    error = decibels(fg.outputs(graph, fg.evaluate(graph, image)), found)
    said = f"{error:.1f} dB, " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items()))
    if in_rtl:
        more, good = on_small(machine, image, found, board)
        return f"{said}; {more}", good
    try:
        program = program_of(machine, board)
    except UserError as error:
        return f"{said}; not built: {error}", True
    said += f"; {len(program.tasks[''].instructions)} instructions"
    if took > seconds:
        return f"{said}; machine not run", True
    good = equal(run_machine(program, image)[0], found)
    return f"{said}; machine {'= golden' if good else 'DIFFERS FROM GOLDEN'}", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--board", default="zcu104")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--engine", choices=("machine", "rtl"), default="machine")
    parser.add_argument("files", nargs="+", type=Path)
    arguments = parser.parse_args()
    board, good = boards.load(arguments.board), True
    for path in arguments.files:
        try:
            said, right = line(path, board, arguments.seconds, arguments.engine == "rtl")
        except Exception as error:  # a fault of ours: the next file is still of interest
            said, right = f"FAULT {type(error).__name__}: {error}", False
        print(f"{path.name}: {said}", flush=True)
        good &= right
    raise SystemExit(not good)


if __name__ == "__main__":
    main()

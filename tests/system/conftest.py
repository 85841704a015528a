"""Fixtures of the system tests: the same network on golden, machine and RTL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import pytest

from host.pack import pack_input, unpack_output
from hwgen import boards, build, isa
from hwgen.config import Config
from hwgen.intgraph import IntGraph
from hwgen.program import Program, TaskProgram
from hwgen.schedule import schedule
from hwgen.traffic import data_beats
from sim import golden, rtl
from sim.dram import of_board
from sim.machine import Machine

Images = dict[str, np.ndarray]


@dataclass
class MachineRun:
    """What the machine model gave for an image, and what the hardware's counters must show for it."""

    outputs: Images
    queue_lengths: list[int] = field(default_factory=list)  # of every expert queue, at each Route
    weight_beats: int = 0
    data_read_beats: int = 0
    data_write_beats: int = 0


def writes(task: TaskProgram, image: Images) -> list[tuple[int, bytes]]:
    return [(slot.dram, pack_input(asdict(slot), image[slot.name])) for slot in task.inputs]


def unpack(task: TaskProgram, data: list[bytes]) -> Images:
    return {s.name: unpack_output(asdict(s), part) for s, part in zip(task.outputs, data, strict=True)}


def run_machine(program: Program, name: str, image: Images) -> MachineRun:
    """One image on the machine model."""
    task, config, dram = program.tasks[name], program.config, program.dram()
    for offset, data in writes(task, image):
        dram[offset : offset + len(data)] = np.frombuffer(data, np.uint8)
    seen = MachineRun({}, data_read_beats=len(task.instructions) * isa.WORD_BYTES // config.axi_bytes)

    def observe(index: int, insn: isa.Insn, machine: Machine) -> None:
        match insn:
            case isa.Load() | isa.LoadScales():
                seen.data_read_beats += data_beats(insn, config)
            case isa.Store():
                seen.data_write_beats += data_beats(insn, config)
            case isa.Stream():
                if insn.expert == isa.NO_EXPERT or len(machine.queues[insn.expert][0]):
                    seen.weight_beats += insn.words * config.slice_beats
            case isa.Route():
                seen.queue_lengths += [len(tokens) for tokens, _ in machine.queues[: insn.experts]]

    Machine(config).run(
        dram, task.offset, len(task.instructions), program.data_base, program.weight_bases, observe=observe
    )
    reads = [dram[s.dram : s.dram + s.layout.bytes].tobytes() for s in task.outputs]
    seen.outputs = unpack(task, reads)
    return seen


@dataclass
class Ladder:
    """What `climb` compared: per image the machine's and the hardware's run."""

    machine: list[MachineRun]
    rtl: list[rtl.RunResult]


@pytest.fixture
def climb(tmp_path) -> Callable[..., Ladder]:
    """climb(graphs, config, task, images): the images on golden, machine and RTL; every output and counter must agree.

    The memory is a ZCU104's; `stall` and `seed` let it withhold handshakes.
    """

    def run(
        graphs: dict[str, IntGraph],
        config: Config,
        task_name: str,
        images: list[Images],
        simulator: str = "verilator",
        **stalls: int,
    ) -> Ladder:
        program = schedule(graphs, config)
        task = program.tasks[task_name]
        expected = [golden.run(graphs[task_name], image).outputs for image in images]
        machine = [run_machine(program, task_name, image) for image in images]
        first = (task.offset - program.data_base) // config.axi_bytes
        reads = [(slot.dram, slot.layout.bytes) for slot in task.outputs]
        hardware = rtl.simulate(
            build.verilog(config),
            config,
            program.dram().tobytes(),
            [rtl.Run(writes(task, image), first, len(task.instructions), reads) for image in images],
            data_base=program.data_base,
            weight_bases=program.weight_bases,
            dram=of_board(boards.load("zcu104"), config, **stalls),
            simulator=simulator,
            workdir=tmp_path / f"{task_name or 'run'}-{config.array_outputs}x{config.array_inputs}-{simulator}",
        )
        of_unit = [insn.unit for insn in task.instructions]
        for i, (wanted, model, result) in enumerate(zip(expected, machine, hardware, strict=True)):
            found = unpack(task, result.reads)
            for name, values in wanted.items():
                np.testing.assert_array_equal(model.outputs[name], values, f"machine, image {i}, {name}")
                np.testing.assert_array_equal(found[name], values, f"RTL, image {i}, {name}")
            counted = result.registers
            assert {u: counted[f"FINISHED_{u.name}"] for u in isa.Unit} == {u: of_unit.count(u) for u in isa.Unit}
            assert [counted[f"WEIGHT_BEATS{p}"] for p in range(config.weight_ports)] == (
                [model.weight_beats] * config.weight_ports
            )
            assert counted["DATA_READ_BEATS"] == model.data_read_beats
            assert counted["DATA_WRITE_BEATS"] == model.data_write_beats
        return Ladder(machine, hardware)

    return run

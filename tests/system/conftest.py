"""Fixtures of the system tests: the same network on golden, machine and RTL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest

from hwgen import boards, cost, isa, steps, timeline
from hwgen.config import Config
from hwgen.counts import data_beats, stream_beats
from hwgen.dram import Dram, setting
from hwgen.host.pack import pack_input, unpack_output
from hwgen.intgraph import IntGraph
from hwgen.mapping import Mapping
from hwgen.program import Program, TaskProgram
from hwgen.schedule import schedule
from hwgen.sim import golden, rtl
from hwgen.sim.machine import Machine

Images = dict[str, np.ndarray]


@dataclass
class MachineRun:
    """What the machine model gave for an image, and what the hardware's counters must show for it."""

    outputs: Images
    queues: list[list[int]] = field(default_factory=list)  # length of every expert queue, for each Route
    weight_beats: int = 0
    data_read_beats: int = 0
    data_write_beats: int = 0


def writes(program: Program, task: TaskProgram, image: Images) -> list[tuple[int, bytes]]:
    """What to put into DRAM for an image, or for the images of a batch along the first axis."""
    parts = {slot: image[slot.name] if program.batch == 1 else image[slot.name][slot.index] for slot in task.inputs}
    return [(slot.dram, pack_input(asdict(slot), part)) for slot, part in parts.items()]


def unpack(program: Program, task: TaskProgram, data: list[bytes]) -> Images:
    """Outputs of an image, or of the images of a batch along the first axis."""
    found: dict[str, list[np.ndarray]] = {}
    for slot, part in zip(task.outputs, data, strict=True):
        found.setdefault(slot.name, []).append(unpack_output(asdict(slot), part))
    return {name: parts[0] if program.batch == 1 else np.stack(parts) for name, parts in found.items()}


def run_machine(program: Program, name: str, image: Images) -> MachineRun:
    """One image on the machine model."""
    task, config, dram = program.tasks[name], program.config, program.dram()
    for offset, data in writes(program, task, image):
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
                    seen.weight_beats += stream_beats(insn, config)
            case isa.Route():
                seen.queues.append([len(tokens) for tokens, _ in machine.queues[: insn.experts]])

    Machine(config).run(
        dram, task.offset, len(task.instructions), program.data_base, program.weight_bases, observe=observe
    )
    reads = [dram[s.dram : s.dram + s.layout.bytes].tobytes() for s in task.outputs]
    seen.outputs = unpack(program, task, reads)
    return seen


@pytest.fixture(scope="session")
def in_memory() -> SimpleNamespace:
    """in_memory.writes(program, task, image), in_memory.unpack(program, task, data): what a run finds and leaves in DRAM."""
    return SimpleNamespace(writes=writes, unpack=unpack)


@pytest.fixture(scope="session")
def on_machine() -> Callable[[Program, str, Images], Images]:
    """on_machine(program, task, image): outputs of one image on the machine model."""
    return lambda program, task, image: run_machine(program, task, image).outputs


@dataclass
class Ladder:
    """What `climb` compared: per image the machine's and the hardware's run."""

    machine: list[MachineRun]
    rtl: list[rtl.RunResult]


def check_cycles(task: TaskProgram, config: Config, dram: Dram, machine: MachineRun, result: rtl.RunResult) -> None:
    """The cycle model against the hardware: within 3 %, the whole run and every layer of it.

    A layer may differ by one refresh, as the model knows their mean and not their phase: the cycles in which DRAM is shut
    and those until it answers again.
    """
    estimate = cost.estimate(task.instructions, config, dram, machine.queues)
    assert abs(estimate.cycles - result.cycles) <= 0.03 * result.cycles + dram.refresh_cycles
    counted = [i for i, insn in enumerate(task.instructions[:-1]) if not isinstance(insn, isa.WalkFields)]
    assert [s.index for s in result.spans] == [s.index for s in estimate.spans] == counted
    measured, expected = (timeline.layers(task.instructions, task.origins, s) for s in (result.spans, estimate.spans))
    for real, model in zip(measured, expected, strict=True):
        limit = 0.03 * real.cycles + (dram.refresh_cycles + dram.latency if dram.refresh_period else 0)
        assert abs(real.cycles - model.cycles) <= limit, f"{real.name}: {real.cycles} cycles, the model says {model.cycles}"
    spent = timeline.causes(result.spans)
    assert spent["active"] == result.registers["ARRAY_ACTIVE"] == estimate.array_active
    assert abs(spent["depend"] - timeline.causes(estimate.spans)["depend"]) <= 0.05 * result.cycles


@pytest.fixture
def hardware(tmp_path) -> Callable[..., list[rtl.RunResult]]:
    """hardware(program, [(task, image), ...]): the runs one after another on the simulated RTL of the program's Config.

    The memory is a ZCU104's, or one without limits; `stall` and `seed` let it withhold handshakes.
    """

    def run(
        program: Program, work: list[tuple[str, Images]], simulator: str = "verilator", dram: str = "board", **stalls: int
    ) -> list[rtl.RunResult]:
        config, runs = program.config, []
        for name, image in work:
            task = program.tasks[name]
            first = (task.offset - program.data_base) // config.axi_bytes
            reads = [(slot.dram, slot.layout.bytes) for slot in task.outputs]
            runs.append(rtl.Run(writes(program, task, image), first, len(task.instructions), reads))
        return rtl.simulate(
            steps.verilog(config),
            config,
            program.dram().tobytes(),
            runs,
            data_base=program.data_base,
            weight_bases=program.weight_bases,
            dram=replace(setting(dram, boards.load("zcu104"), config), **stalls),
            simulator=simulator,
            workdir=tmp_path / f"{config.array_outputs}x{config.array_inputs}-{simulator}",
        )

    return run


@pytest.fixture
def climb(hardware) -> Callable[..., Ladder]:
    """climb(graphs, config, task, images): the images on golden, machine and RTL; every output and counter must agree.

    With a batch every entry of `images` holds a batch along the first axis. `simulator`, `dram`, `stall`, `seed`: as
    `hardware`. Without stalls the cycle model must agree too.
    """

    def run(
        graphs: dict[str, IntGraph],
        config: Config,
        task_name: str,
        images: list[Images],
        dram: str = "board",
        mapping: Mapping | None = None,
        batch: int = 1,
        **options,
    ) -> Ladder:
        if mapping is not None:
            graphs = {name: mapping.apply(graph, config, batch) for name, graph in graphs.items()}
        program = schedule(graphs, config)
        task = program.tasks[task_name]
        expected = [golden.run(graphs[task_name], image).outputs for image in images]
        machine = [run_machine(program, task_name, image) for image in images]
        measured = hardware(program, [(task_name, image) for image in images], dram=dram, **options)
        memory = setting(dram, boards.load("zcu104"), config)
        of_unit = [insn.unit for insn in task.instructions if not isinstance(insn, isa.WalkFields)]
        for i, (wanted, model, result) in enumerate(zip(expected, machine, measured, strict=True)):
            found = unpack(program, task, result.reads)
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
            if "stall" not in options:
                check_cycles(task, config, memory, model, result)
        return Ladder(machine, measured)

    return run

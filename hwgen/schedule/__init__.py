"""From integer graphs to a Program: layout, allocation, instructions with wait counts, memory map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .. import isa
from ..config import Config
from ..counts import expected
from ..errors import Shortage, UserError
from ..intgraph import Input, IntGraph, RouteTokens
from ..intgraph_checks import verify
from ..intgraph_order import written_first
from ..program import InputSlot, OutputSlot, Program, RowLayout, TaskProgram, memory_map
from .checks import verify_task
from .emit import Emitter
from .layout import DataStore, WeightStore, align, chunk_bytes
from .prepare import Needs, input_key, prepare, row_layout

__all__ = ["attempt", "schedule", "shortages"]


class _Region:
    """Places of inputs or outputs, each at a burst's start; equal keys share one."""

    def __init__(self, config: Config):
        self.step = config.axi_bytes * config.burst_beats
        self.size = 0
        self.known: dict[object, int] = {}

    def add(self, key: object, size: int) -> int:
        if key not in self.known:
            self.known[key] = self.size
            self.size += align(size, self.step)
        return self.known[key]


def shortages(graph: IntGraph, config: Config) -> list[Shortage]:
    """What the operations of a graph exceed of a Config, one by one, before anything is placed."""
    return prepare(graph, config, WeightStore(config, False), DataStore(config)).shortages


def attempt(graphs: dict[str, IntGraph], config: Config) -> Program | UserError:
    """The program without its weights, for an estimate of its cycles; or why a network does not fit the Config."""
    try:
        return schedule(graphs, config, contents=False)
    except UserError as error:
        return error


def schedule(graphs: dict[str, IntGraph], config: Config, contents: bool = True) -> Program:
    """The program of every task, in one memory image in which tasks share equal weights and constants.

    contents: False leaves the weights out, which is enough to estimate cycles and takes half the time.
    Raises UserError where a network does not fit the Config, saying what is short and which field would help.
    """
    weights, constants = WeightStore(config, contents), DataStore(config)
    needs: dict[str, Needs] = {}
    for task, graph in graphs.items():
        if contents:
            verify(graph)
            written_first(graph)
        needs[task] = prepare(graph, config, weights, constants)
        for short in needs[task].shortages:
            raise short
    inputs, outputs = _Region(config), _Region(config)
    slots = {task: _slots(task, graphs[task], needs[task], config, inputs, outputs) for task in graphs}

    # Instructions address the data region from its start, where the programs lie, whose length is known at the end.
    spilled = max(n.areas.size for n in needs.values()) * chunk_bytes(config)  # tasks run one at a time
    sizes = (constants.size, inputs.size, outputs.size, weights.size * config.axi_bytes, spilled)
    zero, _ = memory_map(config, {}, *sizes)
    code = {}
    for task, graph in graphs.items():
        in_slots, out_slots = slots[task]
        input_offsets = {
            i: zero["inputs"].offset + slot.dram + op.row * slot.layout.bytes // slot.layout.rows
            for i, slot in in_slots.items()
            if isinstance(op := graph.ops[i], Input)
        }
        output_offsets = [zero["outputs"].offset + slot.dram for slot in out_slots]
        spills = zero["spills"].offset if spilled else 0
        code[task] = Emitter(graph, config, needs[task], input_offsets, output_offsets, spills).program()

    lengths = {task: len(instructions) * isa.WORD_BYTES for task, (instructions, _, _) in code.items()}
    regions, offsets = memory_map(config, lengths, *sizes)
    moved = regions["programs"].size // config.axi_bytes
    tasks = {}
    for task, (instructions, origins, places) in code.items():
        in_slots, out_slots = slots[task]
        in_spills = [output.view.buffer in needs[task].areas.pieces for output in graphs[task].outputs]
        tasks[task] = TaskProgram(
            [_relocate(insn, moved) for insn in instructions],
            origins,
            [replace(slot, dram=regions["inputs"].offset + slot.dram) for slot in _each_once(in_slots.values())],
            [
                replace(slot, dram=regions["spills" if there else "outputs"].offset + slot.dram)
                for slot, there in zip(out_slots, in_spills, strict=True)
            ],
            places,
            offsets[task],
            queues=_queues(graphs[task], instructions, origins),
        )
        if contents:
            verify_task(graphs[task], tasks[task], config, regions)
    batch = max(graph.batch for graph in graphs.values())
    return Program(config, tasks, constants.image(), weights.stripes() if contents else [], regions, batch)


def _queues(graph: IntGraph, instructions: list[isa.Insn], origins: list[str]) -> tuple[tuple[int, ...], ...]:
    """Of each Route, the tokens that each of its experts is expected to have."""
    loads = {op.name: op.loads for op in graph.ops if isinstance(op, RouteTokens)}
    routes = zip(instructions, origins, strict=True)
    return tuple(tuple(expected(insn, loads[name])) for insn, name in routes if isinstance(insn, isa.Route))


def _slots(
    task: str, graph: IntGraph, needs: Needs, config: Config, inputs: _Region, outputs: _Region
) -> tuple[dict[int, InputSlot], list[OutputSlot]]:
    """Inputs by op index and outputs, with offsets inside their regions."""
    in_slots, out_slots = {}, []
    for i, op in enumerate(graph.ops):
        if isinstance(op, Input):
            layout = needs.layouts[op.out.buffer]
            rows: RowLayout = row_layout(layout, op.out, op.patches, config, i in needs.narrow)
            offset = inputs.add(input_key(op, rows), rows.bytes)
            slot = InputSlot(
                op.image,
                op.shape,
                op.patch,
                float(op.step),
                float(op.offset),
                offset,
                rows,
                op.index,
                op.stride,
                op.pads,
                op.fine,
                op.type,
            )
            in_slots[i] = slot
    for number, output in enumerate(graph.outputs):
        rows = row_layout(needs.layouts[output.view.buffer], output.view, output.view.rows, config)
        if output.view.buffer in needs.areas.pieces:
            address = needs.areas.contiguous(output.view)
            if address is None:
                raise UserError(f"output {output.name!r}: its rows are spilled in pieces")
            offset = address * chunk_bytes(config)
        else:
            offset = outputs.add((task, number), rows.bytes)
        shape, scale = tuple(output.shape), float(output.scale)
        out_slots.append(OutputSlot(output.name, shape, scale, offset, rows, output.transposed, output.index))
    return in_slots, out_slots


def _each_once(slots: Iterable[InputSlot]) -> list[InputSlot]:
    """Loads of parts of an image share its slot."""
    return list(dict.fromkeys(slots))


def _relocate(insn: isa.Insn, beats: int) -> isa.Insn:
    return replace(insn, dram=insn.dram + beats) if isinstance(insn, (isa.Load, isa.LoadScales, isa.Store)) else insn

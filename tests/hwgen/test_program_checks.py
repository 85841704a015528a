"""A program that does not do what its graph says is found out: one fault at a time is put into good programs."""

from dataclasses import replace

import numpy as np
import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.schedule.checks import Faulty, verify_task
from hwgen.sim.tb.graphs import Shape, random_graph
from hwgen.sim.tb.scans import random_scan_graph
from hwgen.sim.tb.selections import random_selection_graph
from hwgen.sim.tb.windows import random_window_graph

CONFIG = Config(bank_words=512)
GRAPH = random_graph(3, Shape())
TASK = schedule({"": GRAPH}, CONFIG).tasks[""]


def changed(number, **values):
    insns = list(TASK.instructions)
    insns[number] = replace(insns[number], **values)
    return replace(TASK, instructions=insns)


def numbers(kind):
    return [n for n, insn in enumerate(TASK.instructions) if isinstance(insn, kind)]


@pytest.mark.parametrize("mapping", [Mapping(), Mapping(row_tiles=2), Mapping(shared_hidden=True, room=0.1)], ids=str)
def test_good_programs(mapping):
    for seed in range(3):
        graph = mapping.apply(random_graph(seed, Shape()), CONFIG, 1)
        verify_task(graph, schedule({"": graph}, CONFIG).tasks[""], CONFIG)


def test_a_wait_that_is_missing():
    """Units start in order, so some waits follow from those of the instruction before; most do not."""
    waits = {f"wait_{unit.name.lower()}": 0 for unit in isa.Unit}
    waiting = [n for n, insn in enumerate(TASK.instructions[:-1]) if any(getattr(insn, name) for name in waits)]
    faults = 0
    for number in waiting:
        try:
            verify_task(GRAPH, changed(number, **waits), CONFIG)
        except Faulty as fault:
            assert "does not wait for" in str(fault)
            faults += 1
    assert faults > 0.7 * len(waiting) > 20


UNITS = Config(bank_words=512, acc_rows=32, window_chunks=1, select_rows=64, scan_states=2)
NETWORKS = {
    "experts": (GRAPH, CONFIG),
    "windows": (random_window_graph(0), UNITS),
    "selection": (random_selection_graph(0), UNITS),
    "scans": (random_scan_graph(0), UNITS),
    "spilled": (Mapping(spill=0.02).apply(random_graph(3, Shape(patches=(4, 5))), CONFIG, 1), CONFIG),
}


def finished(instructions) -> list[np.ndarray]:
    """For each instruction how many of every unit have finished when it starts, by the waits and the units' order alone."""
    found, of = [], {unit: [] for unit in isa.Unit}
    for insn in instructions:
        sure = np.max([np.zeros(len(isa.Unit), int), *of.get(insn.unit, [])[-1:]], axis=0)
        for unit in isa.Unit:
            if count := getattr(insn, f"wait_{unit.name.lower()}", 0):
                sure = np.maximum(sure, of[unit][count - 1])
                sure[unit] = max(sure[unit], count)
        found.append(sure)
        if insn.unit is not None and not isinstance(insn, isa.WalkFields):
            of[insn.unit].append(sure)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_each_wait_is_needed_or_follows_from_others(name):
    """Waits taken away one by one: the program is refused, naming both instructions, or nothing is less sure than before.
    Streams wait for the queue of their Route, which has one place; that the first ones wait for the image is for speed alone."""
    graph, config = NETWORKS[name]
    program = schedule({"": graph}, config)
    task = program.tasks[""]
    waits = [(n, w) for n, insn in enumerate(task.instructions[:-1]) for w in vars(insn) if w[:5] == "wait_" and getattr(insn, w)]
    waits = [(n, w) for n, w in waits if not (isinstance(task.instructions[n], isa.Stream) and w == "wait_load")]
    drawn = np.random.default_rng(0).permutation(len(waits))[:40]
    before, noticed = finished(task.instructions), 0
    for number, wait in (waits[i] for i in drawn):
        insns = list(task.instructions)
        insns[number] = replace(insns[number], **{wait: 0})
        implied = all(map(np.array_equal, finished(insns), before))
        try:
            verify_task(graph, replace(task, instructions=insns), config, program.regions)
        except Faulty as fault:
            assert not implied and f"instruction {number} (" in str(fault) and str(fault).count("instruction ") == 2
            noticed += 1
        else:
            assert implied, f"instruction {number} without {wait}"
    assert noticed > len(drawn) // 4


@pytest.mark.parametrize("kind, region", [(isa.Store, "inputs"), (isa.Store, "constants"), (isa.Load, "outputs")])
def test_another_place_in_dram(kind, region):
    """Stores keep to the outputs, and loads away from them."""
    program = schedule({"": GRAPH}, CONFIG)
    beat = program.regions[region].offset // CONFIG.axi_bytes
    verify_task(GRAPH, TASK, CONFIG, program.regions)
    with pytest.raises(Faulty, match="of DRAM are not its own"):
        verify_task(GRAPH, changed(numbers(kind)[0], dram=beat), CONFIG, program.regions)


@pytest.mark.parametrize("kind, field", [(isa.Matmul, "y"), (isa.Norm, "y"), (isa.Matmul, "x"), (isa.Store, "src")])
def test_another_place(kind, field):
    """Rows written or read where they do not belong."""
    number = numbers(kind)[-1]
    for shift in (-1, 1):
        with pytest.raises(ValueError, match="overwritten|does not wait|outside"):
            verify_task(GRAPH, changed(number, **{field: getattr(TASK.instructions[number], field) + shift}), CONFIG)


def test_a_wait_for_what_comes_later():
    with pytest.raises(Faulty, match="which comes later"):
        verify_task(GRAPH, changed(numbers(isa.Matmul)[0], wait_vector=5000), CONFIG)


def test_streams_in_another_order():
    first, second = numbers(isa.Stream)[:2]
    origins = list(TASK.origins)
    origins[first], origins[second] = origins[second], origins[first]
    with pytest.raises(Faulty, match="weight stream 0 is not its own"):
        verify_task(GRAPH, replace(TASK, origins=origins), CONFIG)


def test_an_end_that_does_not_wait():
    with pytest.raises(Faulty, match="END does not wait"):
        verify_task(GRAPH, changed(len(TASK.instructions) - 1, wait_store=0), CONFIG)

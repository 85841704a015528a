"""Walks on the machine against golden, through the scheduler: convolutions, shifted windows, attention in a window."""

from dataclasses import replace

import numpy as np
import pytest

import test_machine as machine
from hwgen import intgraph_checks, intgraph_io, isa, mapping
from hwgen.schedule import schedule
from hwgen.schedule.checks import Faulty, verify_task
from hwgen.sim import golden
from hwgen.sim.tb.graphs import random_images
from hwgen.sim.tb.maps import random_map_graph
from hwgen.walks import Walk

CONFIGS, assert_equal, assert_keeps, run = machine.CONFIGS, machine.assert_equal, machine.assert_keeps, machine.run

SHAPES = {
    "plain": {},
    "wide": {"width": 44, "windows": (1, 3), "size": (2, 3)},
    "tall": {"windows": (3, 2), "size": (2, 2), "width": 16},
}


def roomy(name, **fields):
    return replace(CONFIGS[name], bank_words=1024, scale_entries=512, **fields)


@pytest.mark.parametrize("acc_rows", [8, 16, 256])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_maps_equal_golden(config, shape, acc_rows):
    """Whole, and in parts where the accumulators have fewer rows."""
    seed = len(shape) + acc_rows
    graph = random_map_graph(seed, **SHAPES[shape])
    intgraph_checks.verify(graph)
    images = random_images(graph, seed)
    wanted = golden.run(graph, images).outputs
    assert all(0 < value.std() and (np.abs(value) < 32).mean() > 0.8 for value in wanted.values())  # few saturate
    program = schedule({"": graph}, roomy(config, acc_rows=acc_rows))
    for order in ("program", "lazy", seed):
        assert_equal(run(program, images, order), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_random_convolutions(seed):
    graph = random_map_graph(seed, windows=(2, 3))
    images = random_images(graph, seed)
    program = schedule({"": graph}, roomy("12x20", acc_rows=16))
    assert_equal(run(program, images, seed), golden.run(graph, images).outputs)


@pytest.mark.parametrize("chosen", [*mapping.candidates(1), *mapping.candidates(2), mapping.Mapping(room=0.0)], ids=str)
def test_mappings_keep_walks(chosen):
    batch = 2 if chosen in mapping.candidates(2) else 1
    graph, config = random_map_graph(3), roomy("12x20")
    mapped = chosen.apply(graph, config, batch)
    intgraph_checks.verify(mapped)
    if chosen.group == 2:  # a convolution of both images reads its weights once
        assert next(op for op in mapped.ops if op.name.startswith("down")).walk.rows > graph.buffers["down"].rows
    assert_keeps(graph, mapped, config, batch)


def test_saved_and_read_again():
    graph = random_map_graph(1)
    again = intgraph_io.load(intgraph_io.save({"": graph}))[""]
    assert [op.walk for op in again.ops] == [op.walk for op in graph.ops]
    assert any(op.walk and op.walk.plane for op in again.ops)


def test_without_contents_the_instructions_are_the_same():
    graph, config = random_map_graph(2), roomy("16x16")
    full, bare = (schedule({"": graph}, config, contents=contents).tasks[""] for contents in (True, False))
    assert full.instructions == bare.instructions


def test_walks_are_not_counted():
    task = schedule({"": random_map_graph(2)}, roomy("16x16")).tasks[""]
    products = sum(isinstance(insn, isa.Matmul) for insn in task.instructions)
    assert sum(isinstance(insn, isa.MatmulWalk) for insn in task.instructions) > 10
    assert task.instructions[-1].wait_matmul == products


def test_a_wrong_walk_shows():
    graph, config = random_map_graph(2), roomy("16x16")
    task = schedule({"": graph}, config).tasks[""]
    verify_task(graph, task, config)
    walks = [i for i, insn in enumerate(task.instructions) if isinstance(insn, isa.WalkFields)]
    for i in (walks[0], walks[3]):
        good = task.instructions[i]
        task.instructions[i] = replace(good, y_start=good.y_start ^ 1)
        with pytest.raises(Faulty, match="walk|overwritten|wait|lies outside"):
            verify_task(graph, task, config)
        task.instructions[i] = good
    for wrong in (task.instructions[: walks[1]] + task.instructions[walks[1] + 1 :],):
        names = task.origins[: walks[1]] + task.origins[walks[1] + 1 :]
        with pytest.raises(Faulty, match="the walk before it is missing"):
            verify_task(graph, replace(task, instructions=wrong, origins=names), config)


def test_what_a_walk_leaves_out_stays():
    """Rows that a walk does not write are those of whoever wrote them before, on golden, machine and in the checks."""
    graph = random_map_graph(4)
    back = next(op for op in graph.ops if op.name == "skip.back")
    assert set(back.walk.y_rows()) == set(range(1, graph.buffers["x"].rows, 2))
    assert isinstance(back.walk, Walk)
    images = random_images(graph, 4)
    assert_equal(run(schedule({"": graph}, roomy("16x16")), images, "lazy"), golden.run(graph, images).outputs)

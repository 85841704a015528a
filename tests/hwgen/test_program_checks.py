"""A program that does not do what its graph says is found out: one fault at a time is put into good programs."""

from dataclasses import replace

import pytest

from hwgen import isa
from hwgen.config import Config
from hwgen.mapping import Mapping
from hwgen.schedule import schedule
from hwgen.schedule.checks import Faulty, verify_task
from hwgen.sim.tb.graphs import Shape, random_graph

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

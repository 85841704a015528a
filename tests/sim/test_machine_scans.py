"""Selective scans on the machine against golden, through the scheduler."""

from dataclasses import replace

import numpy as np
import pytest

import test_machine as machine
from hwgen import intgraph_checks, isa, mapping
from hwgen.config import Config
from hwgen.errors import Shortage, UserError
from hwgen.intgraph import Buffer, Constant, IntGraph, Output, ScanRows, View
from hwgen.numerics import ScanShifts
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.machine import MachineFault
from hwgen.sim.tb.graphs import random_images
from hwgen.sim.tb.scans import random_scan_graph

SHAPES = {
    "plain": {},
    "many states": {"states": 16},
    "wide": {"width": 70, "tokens": (2, 4), "states": 1},
    "one row": {"tokens": (1, 1)},
}
SHIFTS = ScanShifts(5, 3, 12, 2, 20, 10)


def roomy(name, **fields):
    return replace(machine.CONFIGS[name], bank_words=2048, scale_entries=1024, **{"scan_states": 3} | fields)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", machine.CONFIGS)
def test_scans_equal_golden(config, shape):
    graph = random_scan_graph(len(shape), **SHAPES[shape])
    intgraph_checks.verify(graph)
    images = random_images(graph, 1)
    wanted = golden.run(graph, images).outputs
    assert all(100 < np.abs(value * 1024).max() and (np.abs(value) * 1024 < 32767).any() for value in wanted.values())
    program = schedule({"": graph}, roomy(config))
    for order in ("program", "lazy", 3):
        machine.assert_equal(machine.run(program, images, order), wanted)


@pytest.mark.parametrize("chosen", [*mapping.candidates(1), *mapping.candidates(2), mapping.Mapping(room=0.0)], ids=str)
def test_mappings_keep_scans(chosen):
    batch = 2 if chosen in mapping.candidates(2) else 1
    graph, config = random_scan_graph(3), roomy("12x20")
    mapped = chosen.apply(graph, config, batch)
    intgraph_checks.verify(mapped)
    machine.assert_keeps(graph, mapped, config, batch)


def test_saved_and_read_again():
    machine.assert_saved(random_scan_graph(1))


def test_a_wrong_place_shows():
    fields = ("x", "y", "steps", "mix", "params")
    machine.assert_checked(random_scan_graph(2), roomy("16x16"), isa.Scan, fields, "MATMUL")


def small(config=None, groups=1, states=4, shifts=SHIFTS, mixed=None, out="y"):
    """A scan of zeros."""
    sizes = {"x": (16, 20), "s": (16, 20), "m": (16, mixed or 2 * states), "p": (1 + states, 20), "y": (16, 20)}
    buffers = {name: Buffer(name, *size, groups if name == "s" else 1) for name, size in sizes.items()}
    views = {name: View(name, 0, b.rows, 0, b.cols) for name, b in buffers.items()}
    ops = [Constant(f"{name}.load", views[name], np.zeros(sizes[name], np.int16)) for name in "xsmp"]
    ops.append(ScanRows("scanned", views[out], *(views[name] for name in "xsmp"), shifts))
    graph = IntGraph(buffers, ops, [Output("y", views[out], 1.0, (16, 20))])
    return schedule({"": graph}, config or roomy("16x16"))


def test_what_the_machine_cannot_do_is_named():
    small()
    with pytest.raises(Shortage, match="scanned: selective scans need scan_states=1, it is 0") as short:
        small(config=Config())
    assert short.value.field == "scan_states"
    with pytest.raises(UserError, match="scanned: 's' has padding between its groups"):
        small(groups=2)
    with pytest.raises(ValueError, match="scanned: 17 states"):
        small(states=17)
    with pytest.raises(ValueError, match="scanned: ScanShifts"):
        small(shifts=ScanShifts(7, 3, 12, 2, 20, 10))
    with pytest.raises(ValueError, match="scanned: mix"):
        small(mixed=9)
    with pytest.raises(ValueError, match="scanned: out overlaps what is read"):
        small(out="x")


def test_faults():
    config = roomy("16x16", scan_states=4)
    fields = {"x": 0, "y": 100, "steps": 20, "mix": 40, "params": 60}
    fields |= {f"{name}_pitch": 1 for name in fields}
    fields |= {"steps_shift": 5, "step_shift": 3, "fed_shift": 12, "decay_shift": 2, "skip_shift": 20, "shift": 10}
    insn = isa.Scan(rows=4, columns=16, states=8, beats=2, group=1, **fields)
    end = isa.End(wait_vector=1)
    machine.execute(config, [insn, end])
    wrong = [replace(insn, beats=3), replace(insn, group=17), replace(insn, states=17, beats=5), replace(insn, group=0)]
    for program in wrong:
        with pytest.raises(MachineFault, match=f"{program.states} states in {program.beats} beats"):
            machine.execute(config, [program, end])
    with pytest.raises(MachineFault, match="shifts by"):
        machine.execute(config, [replace(insn, shift=48), end])
    with pytest.raises(MachineFault, match="without scan_states"):
        machine.execute(replace(config, scan_states=0), [insn, end])

"""Rows chosen by their scores on the machine against golden, through the scheduler."""

from dataclasses import replace

import numpy as np
import pytest

import test_machine as machine
from hwgen import intgraph_checks, isa, mapping
from hwgen.config import Config
from hwgen.errors import Shortage, UserError
from hwgen.intgraph import Buffer, Constant, IntGraph, Output, SelectRows, View
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.machine import MachineFault
from hwgen.sim.tb.graphs import random_images
from hwgen.sim.tb.selections import random_selection_graph, tied

NAMES = ("CONFIGS", "assert_equal", "assert_keeps", "run", "execute", "assert_saved", "assert_checked")
CONFIGS, assert_equal, assert_keeps, run, execute, assert_saved, assert_checked = (getattr(machine, name) for name in NAMES)
SHAPES = {"plain": {}, "grouped": {"groups": 3}, "wide": {"width": 70, "tokens": (2, 4)}}


def roomy(name, **fields):
    return replace(CONFIGS[name], bank_words=2048, scale_entries=1024, **{"select_rows": 32} | fields)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_selections_equal_golden(config, shape):
    graph = random_selection_graph(len(shape), **SHAPES[shape])
    intgraph_checks.verify(graph)
    images = random_images(graph, 1)
    wanted = golden.run(graph, images).outputs
    assert all(value.std() > 0 for value in wanted.values())
    program = schedule({"": graph}, roomy(config))
    for order in ("program", "lazy", 3):
        assert_equal(run(program, images, order), wanted)


def test_order_of_rows():
    """Golden against the float rule: best first, equal scores in their order; what is kept and dropped is everything once."""
    graph = random_selection_graph(1)
    images = random_images(graph, 2)
    steps = golden.run(graph, images, trace=True).snapshots
    x, scores = steps["stem"], steps["scores"].reshape(-1)
    assert tied(scores)
    order = sorted(range(len(scores)), key=lambda i: (-int(scores[i]), i))
    np.testing.assert_array_equal(np.concatenate([steps["kept"], steps["dropped"]]), x[order])


@pytest.mark.parametrize("chosen", [*mapping.candidates(1), *mapping.candidates(2), mapping.Mapping(room=0.0)], ids=str)
def test_mappings_keep_selections(chosen):
    batch = 2 if chosen in mapping.candidates(2) else 1
    graph, config = random_selection_graph(3), roomy("12x20")
    mapped = chosen.apply(graph, config, batch)
    intgraph_checks.verify(mapped)
    assert_keeps(graph, mapped, config, batch)


def test_saved_and_read_again():
    assert_saved(random_selection_graph(1))


def test_a_wrong_place_shows():
    assert_checked(random_selection_graph(2), roomy("16x16"), isa.Select, ("x", "y", "scores", "first"), "MATMUL")


def small(config=None, scores=(16, 1), out_groups=1, score_groups=1, rows=4, first=0, scores_of="s"):
    """Some of 16 rows by constant scores."""
    buffers = {"x": Buffer("x", 16, 20), "y": Buffer("y", rows, 20, out_groups), "s": Buffer("s", *scores, score_groups)}
    views = {name: View(name, 0, buffer.rows, 0, buffer.cols) for name, buffer in buffers.items()}
    ops = [Constant(f"{name}.load", views[name], np.zeros((buffers[name].rows, buffers[name].cols), np.int16)) for name in "xs"]
    ops.append(SelectRows("chosen", views["y"], views["x"], views[scores_of], first))
    graph = IntGraph(buffers, ops, [Output("y", views["y"], 1.0, (rows, 20))])
    return schedule({"": graph}, config or roomy("16x16"))


def test_what_the_machine_cannot_do_is_named():
    small()
    with pytest.raises(Shortage, match="chosen: choices among 16 rows need select_rows=16, it is 0") as short:
        small(config=Config())
    assert short.value.field == "select_rows"
    with pytest.raises(UserError, match="chosen: columns of 'x' and 'y' are padded differently"):
        small(out_groups=2)
    with pytest.raises(ValueError, match="chosen: scores in groups"):
        small(scores=(1, 16), score_groups=2)
    with pytest.raises(ValueError, match="chosen: scores .* are no column and no row"):
        small(scores_of="x")
    with pytest.raises(ValueError, match="chosen: 15 scores of 16 rows"):
        small(scores=(15, 1))
    with pytest.raises(ValueError, match="chosen: rows 13.. of 16"):
        small(first=13)


def test_faults():
    config = roomy("16x16", select_rows=16)
    pick = isa.Select(rows=4, columns=16, x=0, x_pitch=1, y=64, y_pitch=1, scores=100, score_rows=1, score_columns=16, first=12)
    end = isa.End(wait_vector=1)
    execute(config, [pick, end])
    wrong = (replace(pick, first=13), "rows 13..17 of 16 scores"), (replace(pick, score_columns=17), "17 scores, 16 at most")
    for program, message in wrong:
        with pytest.raises(MachineFault, match=message):
            execute(config, [program, end])
    with pytest.raises(MachineFault, match="0 at most"):
        execute(replace(config, select_rows=0), [pick, end])

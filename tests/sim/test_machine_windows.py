"""Windowed reductions on the machine against golden, through the scheduler: depthwise convolution, pooling, copies of rows."""

from dataclasses import replace

import numpy as np
import pytest

import test_machine as machine
from hwgen import intgraph_checks, isa, mapping
from hwgen.config import Config
from hwgen.errors import Shortage, UserError
from hwgen.intgraph import Buffer, Constant, IntGraph, Output, ReduceWindow, View
from hwgen.isa import Reduce
from hwgen.schedule import schedule
from hwgen.sim import golden
from hwgen.sim.machine import MachineFault
from hwgen.sim.tb.graphs import random_images
from hwgen.sim.tb.windows import random_window_graph
from hwgen.walks import window

NAMES = ("CONFIGS", "assert_equal", "assert_keeps", "run", "execute", "assert_saved", "assert_checked")
CONFIGS, assert_equal, assert_keeps, run, execute, assert_saved, assert_checked = (getattr(machine, name) for name in NAMES)

SHAPES = {
    "plain": {},
    "grouped": {"width": 24, "groups": 3},
    "wide": {"width": 70, "size": (2, 4)},
}


def roomy(name, **fields):
    config = replace(CONFIGS[name], bank_words=2048, scale_entries=1024, **fields)
    return replace(config, window_chunks=config.input_chunks)


@pytest.mark.parametrize("acc_rows", [8, 256])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", CONFIGS)
def test_windows_equal_golden(config, shape, acc_rows):
    """Whole, and in parts where the engine keeps the maxima of fewer rows."""
    seed = len(shape) + acc_rows
    graph = random_window_graph(seed, **SHAPES[shape])
    intgraph_checks.verify(graph)
    images = random_images(graph, seed)
    wanted = golden.run(graph, images).outputs
    assert all(0 < value.std() and (np.abs(value) < 31).mean() > 0.7 for name, value in wanted.items() if name != "logits")
    program = schedule({"": graph}, roomy(config, acc_rows=acc_rows))
    for order in ("program", "lazy", seed):
        assert_equal(run(program, images, order), wanted)


@pytest.mark.parametrize("seed", range(8))
def test_random_windows(seed):
    graph = random_window_graph(seed, size=(4, 6))
    images = random_images(graph, seed)
    program = schedule({"": graph}, roomy("12x20", acc_rows=16))
    assert_equal(run(program, images, seed), golden.run(graph, images).outputs)


@pytest.mark.parametrize("chosen", [*mapping.candidates(1), *mapping.candidates(2), mapping.Mapping(room=0.0)], ids=str)
def test_mappings_keep_windows(chosen):
    batch = 2 if chosen in mapping.candidates(2) else 1
    graph, config = random_window_graph(3), roomy("12x20")
    mapped = chosen.apply(graph, config, batch)
    intgraph_checks.verify(mapped)
    if chosen.group == 2:  # one instruction, and one load of its parameters, for the windows of both images
        assert next(op for op in mapped.ops if op.name.startswith("dw")).walk.rows == 2 * graph.buffers["mixed"].rows
    assert_keeps(graph, mapped, config, batch)


def test_saved_and_read_again():
    assert_saved(random_window_graph(1))


def test_weights_are_loaded_as_bytes():
    """Two rows of multipliers and biases, then the taps' weights; the program is the same without contents."""
    graph, config = random_window_graph(2), roomy("16x16")
    full, bare = (schedule({"": graph}, config, contents=contents).tasks[""] for contents in (True, False))
    assert full.instructions == bare.instructions
    loads = [i for i, name in zip(full.instructions, full.origins, strict=True) if name == "dw" and isinstance(i, isa.Load)]
    assert [(load.rows, load.narrow) for load in loads] == [(2, 0), (9, 1)]
    params = next(i for i, name in zip(full.instructions, full.origins, strict=True) if name == "dw" and i.unit == isa.Unit.VECTOR
                  and isinstance(i, isa.ReduceWindow)).params  # fmt: skip
    assert [load.dst for load in loads] == [params, params + 2 * loads[0].chunks]


def test_a_wrong_place_shows():
    assert_checked(random_window_graph(2), roomy("16x16"), isa.ReduceWindow, ("params", "x", "y"), "LOAD")


def small(x_rows=16, config=None, out_groups=1, **options):
    """One reduction of a map of four by four rows."""
    out_rows = options.setdefault("walk", window((4, 4), (2, 2))).rows
    buffers = {"x": Buffer("x", x_rows, 20), "y": Buffer("y", out_rows, 20, out_groups)}
    x, y = View("x", 0, x_rows, 0, 20), View("y", 0, out_rows, 0, 20)
    fields = {"name": "pool", "out": y, "x": x, "mult": np.ones(20, np.uint16), "bias": np.zeros(20, np.int16)}
    ops = [Constant("c", x, np.zeros((x_rows, 20), np.int16)), ReduceWindow(**fields | options)]
    graph = IntGraph(buffers, ops, [Output("y", y, 1.0, (out_rows, 20))])
    return schedule({"": graph}, config or roomy("16x16"))


def test_what_the_machine_cannot_do_is_named():
    small()
    with pytest.raises(Shortage, match="pool: windows of rows need window_chunks=1, it is 0") as short:
        small(config=Config())
    assert short.value.field == "window_chunks"
    with pytest.raises(UserError, match="pool: columns of 'x' and 'y' are padded differently"):
        small(out_groups=2)
    weighted = {"reduce": Reduce.WEIGHTED, "walk": window((9, 9), (9, 8)), "x_rows": 81}
    with pytest.raises(UserError, match="pool: a window of 72 taps with weights, the machine takes at most 64"):
        small(weights=np.ones((72, 20), np.int8), **weighted)
    with pytest.raises(ValueError, match=r"pool: sums up to 29[0-9]+ overflow 29 bits"):
        small(weights=np.full((72, 20), 127, np.int8), **weighted)
    with pytest.raises(ValueError, match="pool: the largest of no rows"):
        small(reduce=Reduce.MAX, walk=window((4, 4), (1, 1), pads=(1, 0, 0, 0)))
    with pytest.raises(ValueError, match="pool: x overlaps out"):
        small(walk=window((4, 4), (1, 1)), out=View("x", 0, 16, 0, 20))


def test_faults():
    config = roomy("16x16", acc_rows=8)
    pool = isa.ReduceWindow(rows=8, columns=16, x=0, x_pitch=1, y=64, y_pitch=1, params=100, shift=14)
    walk, end = isa.WindowWalk(n0=2, x0=1, y0=1, x1=2, y1=2, n1=4), isa.End(wait_vector=1)
    execute(config, [pool, end])
    execute(config, [walk, pool, end])
    for program, message in (
        ([walk, replace(pool, rows=9)], r"9 rows in loops of \[2, 4, 1\]"),
        ([replace(pool, rows=9)], "9 rows of 1 taps exceed the window engine"),
        ([replace(walk, kernel_u=9, kernel_v=8), replace(pool, reduce=Reduce.WEIGHTED)], "72 taps exceed"),
        ([isa.MatmulWalk(), pool], "a walk before|a walk is left over"),
    ):
        with pytest.raises(MachineFault, match=message):
            execute(config, [*program, end])
    with pytest.raises(MachineFault, match="without window_chunks"):
        execute(CONFIGS["16x16"], [pool, end])

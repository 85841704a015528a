"""Rows that several readers ask for: made once, the same as before, whatever makes them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import form_maker as maker
from hwgen import graph as fg
from hwgen.levels import import_model
from hwgen.rows.once import once

WIDTH, ROWS = 4, 12


def network(spans, ranges=()):
    """A chain of layers of each of some rows of a sum, stacked."""
    rng = np.random.default_rng(0)
    weight, bias, table = (rng.normal(0, 1, s).astype(np.float32) for s in ((WIDTH, WIDTH), WIDTH, (ROWS, WIDTH)))
    nodes = [
        fg.PatchEmbed("x", "image", rng.normal(0, 1, (WIDTH, 1, 1, 1)).astype(np.float32), None),
        fg.Embed("y", "x", np.zeros((0, WIDTH), np.float32), table),
    ]
    for i, (start, stop) in enumerate(spans):
        nodes += [
            fg.Rows(f"rows{i}", "y", start, stop),
            fg.Linear(f"linear{i}", f"rows{i}", weight, bias),
            fg.Activation(f"act{i}", f"linear{i}", "relu"),
            fg.Multiply(f"gated{i}", f"linear{i}", f"act{i}"),
        ]
    nodes.append(fg.Stack("all", tuple(f"gated{i}" for i in range(len(spans)))))
    limits = {name: (np.full(WIDTH, -1.0), np.full(WIDTH, 1.0)) for name in ranges}
    return fg.Graph({"image": (1, 3, 4)}, nodes, [fg.Output("out", "all", (sum(b - a for a, b in spans), WIDTH))], limits)


@pytest.mark.parametrize(
    ("spans", "rows"),
    [
        ([(0, 12), (3, 7), (11, 12)], [12]),  # of the whole
        ([(2, 6), (4, 9), (8, 12)], [10]),  # of what they make up together
        ([(5, 9), (4, 8), (0, 2)], [5, 2]),
        ([(0, 4), (0, 4)], [4]),
        ([(0, 4), (4, 8)], [4, 4]),  # neighbours stay apart
    ],
)
def test_rows_are_made_once(spans, rows):
    before = network(spans)
    after = once(before)
    fg.verify(after)
    known = fg.shapes(after)
    for kind in (fg.Linear, fg.Activation, fg.Multiply):
        assert sorted(known[n.name][0] for n in after.nodes if isinstance(n, kind)) == sorted(rows)
    image = {"image": np.random.default_rng(1).normal(size=(1, 3, 4)).astype(np.float32)}
    wanted, got = (fg.outputs(g, fg.evaluate(g, image, np.float64))["out"] for g in (before, after))
    assert np.abs(wanted - got).max() < 1e-12
    if (0, 12) in spans:
        assert "linear0" in known and "linear1" not in known  # the name of what makes all of them


def test_rows_with_limits_of_their_own_stay_apart():
    """Of a quantised file: only what has the same limits is the same value."""
    spans = [(0, 12), (3, 7)]
    assert sum(isinstance(n, fg.Linear) for n in once(network(spans, ["linear0"])).nodes) == 2
    both = once(network([(3, 8), (5, 12)], ["linear0", "linear1"]))
    (linear,) = (n for n in both.nodes if isinstance(n, fg.Linear))
    assert linear.name in both.ranges and both.ranges.keys() <= {n.name for n in both.nodes}


def test_other_weights_are_another_value():
    made = network([(0, 12), (3, 7)])
    nodes = [replace(n, weight=n.weight * 2) if n.name == "linear1" else n for n in made.nodes]
    assert sum(isinstance(n, fg.Linear) for n in once(replace(made, nodes=nodes)).nodes) == 2


def test_norms_of_other_readers_stay_apart():
    """Nothing but a norm would be saved, whose readers each want their own steps of it."""
    made = network([(0, 12), (3, 7)])
    none, one = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    nodes = []
    for node in made.nodes:
        if isinstance(node, fg.Linear):
            nodes.append(fg.LayerNorm(f"norm{node.name}", node.x, one, none, 1e-6))
            node = replace(node, x=f"norm{node.name}", weight=node.weight * len(nodes))
        nodes.append(node)
    after = once(replace(made, nodes=nodes))
    assert sum(isinstance(n, fg.LayerNorm) for n in after.nodes) == 2
    same = [replace(n, weight=made.nodes[3].weight) if isinstance(n, fg.Linear) else n for n in nodes]
    after = once(replace(made, nodes=same))
    assert [sum(isinstance(n, kind) for n in after.nodes) for kind in (fg.LayerNorm, fg.Linear)] == [1, 1]


def test_a_shortcut_reads_rows_that_are_there(tmp_path):
    """A convolution of one pixel and stride 2 beside a whole map behind ReLU, as in ResNets."""
    w = maker.Writer()
    y = w.patches()
    x = w.op("Relu", w.op("Add", y, w.op("Conv", y, w.normal(maker.D, maker.D, 3, 3), kernel_shape=[3, 3], pads=[1] * 4)))
    main = w.op("Conv", x, w.normal(maker.D, maker.D, 3, 3), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    aside = w.op("Conv", x, w.normal(maker.D, maker.D, 1, 1), kernel_shape=[1, 1], strides=[2, 2])
    graph = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, w.as_tokens(w.op("Add", main, aside)), [1, 2, maker.D]))
    assert sum(isinstance(n, fg.Activation) for n in graph.nodes) == 1

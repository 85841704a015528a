"""Nodes of maps and windows in the row graph, each against its definition written as loops, and what `verify` refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen import graph

SIZE = (5, 6)
SHAPES = [
    {"kernel": (3, 3), "pads": (1, 1, 1, 1)},
    {"kernel": (3, 2), "stride": (2, 1), "pads": (0, 1, 2, 0)},
    {"kernel": (2, 2), "stride": (2, 2)},
    {"kernel": (3, 3), "pads": (2, 2, 2, 2), "dilation": (2, 2)},
    {"kernel": (1, 1)},
]


def run(node, *arrays):
    """The node's value of arrays x0, x1, .., verified and in float64."""
    one = graph.Graph({f"x{i}": a.shape for i, a in enumerate(arrays)}, [node], [])
    graph.verify(one)
    y = graph.evaluate(one, {f"x{i}": a for i, a in enumerate(arrays)}, np.float64)[node.name]
    assert y.shape == graph.shapes(one)[node.name]
    return y


def taps(x, size, kernel, stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1)):
    """For each position, [(a, b, the row of the map or None beyond it)]."""
    down = (size[0] + pads[0] + pads[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    across = (size[1] + pads[1] + pads[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    found = []
    for i in range(down):
        for j in range(across):
            here = []
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    u, v = i * stride[0] + a * dilation[0] - pads[0], j * stride[1] + b * dilation[1] - pads[1]
                    here.append((a, b, x[u * size[1] + v] if 0 <= u < size[0] and 0 <= v < size[1] else None))
            found.append(here)
    return found


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("form", SHAPES)
def test_conv_sums_taps_times_weights(rng, form):
    x, w, b = rng.normal(size=(30, 4)), rng.normal(size=(3, *form["kernel"], 4)), rng.normal(size=3)
    fields = {k: v for k, v in form.items() if k != "kernel"}
    y = run(graph.Conv("y", "x0", w, b, SIZE, **fields), x)
    wanted = [sum(w[:, a, c] @ row for a, c, row in here if row is not None) + b for here in taps(x, SIZE, **form)]
    np.testing.assert_allclose(y, wanted)


@pytest.mark.parametrize("form", SHAPES)
def test_window_weighs_averages_or_takes_the_largest(rng, form):
    x, w, b = rng.normal(size=(30, 4)) - 9, rng.normal(size=(*form["kernel"], 4)), rng.normal(size=4)
    here = taps(x, SIZE, **form)
    y = run(graph.Window("y", "x0", "weighted", SIZE, **form, weight=w, bias=b), x)
    np.testing.assert_allclose(y, [sum(w[a, c] * row for a, c, row in h if row is not None) + b for h in here])
    inside = [[row for _, _, row in h if row is not None] for h in here]
    total = np.array([sum(rows) for rows in inside])
    np.testing.assert_allclose(run(graph.Window("y", "x0", "mean", SIZE, **form), x), total / np.prod(form["kernel"]))
    own = run(graph.Window("y", "x0", "mean", SIZE, **form, count_pads=False), x)
    np.testing.assert_allclose(own, total / np.array([[len(rows)] for rows in inside]))
    np.testing.assert_allclose(
        run(graph.Window("y", "x0", "max", SIZE, **form), x), [np.max(rows, axis=0) for rows in inside]
    )


def test_gather_permutes_repeats_and_has_rows_of_zeros(rng):
    x = rng.normal(size=(4, 3))
    y = run(graph.Gather("y", "x0", np.array([3, -1, 0, 3])), x)
    np.testing.assert_array_equal(y, [x[3], [0, 0, 0], x[0], x[3]])


def test_join_and_stack(rng):
    a, b, c = rng.normal(size=(4, 3)), rng.normal(size=(4, 2)), rng.normal(size=(1, 3))
    np.testing.assert_array_equal(
        run(graph.Join("y", ("x0", "x1")), a, b), [[*r, *s] for r, s in zip(a, b, strict=True)]
    )
    np.testing.assert_array_equal(run(graph.Stack("y", ("x0", "x1")), a, c), [*a, *c])


def test_product_with_one_row(rng):
    a, b = rng.normal(size=(4, 3)), rng.normal(size=(1, 3))
    np.testing.assert_array_equal(run(graph.Multiply("y", "x0", "x1"), a, b), [row * b[0] for row in a])


@pytest.mark.parametrize("own", [None, "shared", "by window"])
def test_attention_of_windows_is_attention_of_each(rng, own):
    q, k, v = rng.normal(size=(6, 4)), rng.normal(size=(9, 4)), rng.normal(size=(9, 8))
    bias = {None: None, "shared": -rng.random((2, 2, 3)), "by window": -rng.random((3, 2, 2, 3))}[own]
    y = run(graph.Attention("y", "x0", "x1", "x2", 2, 0.7, bias, 3), q, k, v)
    for w in range(3):
        alone = graph.Attention("y", "x0", "x1", "x2", 2, 0.7, bias[w] if own == "by window" else bias)
        part = run(alone, q[2 * w : 2 * w + 2], k[3 * w : 3 * w + 3], v[3 * w : 3 * w + 3])
        np.testing.assert_allclose(y[2 * w : 2 * w + 2], part)


CONV = graph.Conv("y", "x0", np.zeros((3, 3, 3, 4)), None, SIZE, pads=(1, 1, 1, 1))
POOL = graph.Window("y", "x0", "mean", SIZE, (2, 2))


@pytest.mark.parametrize(
    "node, shapes",
    [
        (replace(CONV, size=(5, 5)), [(30, 4)]),
        (CONV, [(30, 5)]),
        (replace(CONV, dilation=(4, 4)), [(30, 4)]),
        (replace(CONV, bias=np.zeros(4)), [(30, 4)]),
        (replace(POOL, form="sum"), [(30, 4)]),
        (replace(POOL, form="weighted"), [(30, 4)]),
        (replace(POOL, weight=np.zeros((2, 2, 4))), [(30, 4)]),
        (replace(POOL, pads=(0, 0, 0, 3), count_pads=False), [(30, 4)]),
        (graph.Gather("y", "x0", np.array([0, 4])), [(4, 2)]),
        (graph.Gather("y", "x0", np.array([0.0, 1.0])), [(4, 2)]),
        (graph.Join("y", ("x0", "x1")), [(4, 2), (3, 2)]),
        (graph.Stack("y", ("x0", "x1")), [(4, 2), (4, 3)]),
        (graph.Multiply("y", "x0", "x1"), [(4, 2), (2, 2)]),
        (graph.Add("y", "x0", "x1"), [(4, 2), (1, 2)]),
        (graph.Attention("y", "x0", "x1", "x2", 1, 1.0, None, 3), [(4, 2), (6, 2), (6, 2)]),
        (graph.Attention("y", "x0", "x1", "x2", 1, 1.0, np.zeros((2, 1, 4, 6)), 2), [(4, 2), (6, 2), (6, 2)]),
    ],
)
def test_misfits_are_named(node, shapes):
    with pytest.raises(ValueError, match=r"^y \("):
        graph.verify(graph.Graph({f"x{i}": s for i, s in enumerate(shapes)}, [node], []))

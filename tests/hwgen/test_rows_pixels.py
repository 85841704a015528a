"""Products that only the host reads: the longer value as rows, the outputs as before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen import graph as fg
from hwgen.rows.pixels import pixels_as_rows

FEW, MANY, WIDTH = 3, 12, 4


def network():
    """Embeddings of a few queries times those of the pixels, and the pixels' own."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 1, (WIDTH, 1, 1, 1)).astype(np.float32)
    nodes = [
        fg.PatchEmbed("pixels", "image", weight, None),
        fg.Rows("queries", "pixels", 2, 2 + FEW),
        fg.Product("masks", "queries", "pixels", 0.5),
    ]
    shape = (FEW, 3, 4)
    outputs = [fg.Output("out", "masks", shape), fg.Output("turned", "masks", (3, 4, FEW), True)]
    return fg.Graph({"image": (1, 3, 4)}, nodes, outputs)


def same(graph, found):
    image = {"image": np.random.default_rng(1).normal(0, 1, (1, 3, 4)).astype(np.float32)}
    wanted, made = (fg.outputs(g, fg.evaluate(g, image)) for g in (graph, found))
    for name, values in wanted.items():
        np.testing.assert_allclose(made[name], values, rtol=1e-5)


def test_pixels_stream():
    graph = network()
    found = pixels_as_rows(graph)
    product = found.node("masks")
    assert (product.a, product.b) == ("pixels", "queries")
    assert [output.transposed for output in found.outputs] == [True, False]
    same(graph, found)


@pytest.mark.parametrize("kind", ["read", "limited", "long"])
def test_others_stay(kind):
    graph = network()
    if kind == "read":
        graph = replace(graph, nodes=[*graph.nodes, fg.Softmax("s", "masks")])
    elif kind == "limited":
        graph = replace(graph, ranges={"masks": (np.full(MANY, -1.0), np.full(MANY, 1.0))})
    else:
        graph = pixels_as_rows(graph)
    assert pixels_as_rows(graph).nodes == graph.nodes

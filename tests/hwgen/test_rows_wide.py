"""Convolutions of values side by side that no memory holds together: of each of them, the sum the same as before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwgen import graph as fg
from hwgen.rows import wide

WIDTHS, SIZE = (3, 5, 4), (4, 6)


def network(limits=()):
    """A convolution of three values side by side, one of which another node reads too."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(0, 1, shape).astype(np.float32)

    nodes = [fg.PatchEmbed(f"x{i}", "image", normal(n, 2, 1, 1), normal(n)) for i, n in enumerate(WIDTHS)]
    nodes += [
        fg.Join("all", ("x0", "x1", "x2")),
        fg.Conv("y", "all", normal(7, 3, 3, 12), normal(7), SIZE, (2, 1), (1, 1, 1, 1)),
        fg.Conv("y.of1", "x1", normal(7, 1, 1, 5), None, SIZE, (2, 1)),
        fg.Add("z", "y", "y.of1"),
    ]
    ranges = {name: (np.full(12, -9.0), np.full(12, 9.0)) for name in limits}
    return fg.Graph({"image": (2, *SIZE)}, nodes, [fg.Output("out", "z", (12, 7))], ranges)


def test_the_sum_of_each_is_that_of_all(monkeypatch):
    monkeypatch.setattr(wide, "BAND", 3 * 6 * 12 - 1)
    graph = network()
    found = wide.one_by_one(graph)
    convs = [node for node in found.nodes if isinstance(node, fg.Conv) and node.name != "y.of1"]
    assert [node.x for node in convs] == ["x0", "x1", "x2"]
    assert not any(isinstance(node, fg.Join) for node in found.nodes)
    assert len({node.name for node in found.nodes}) == len(found.nodes)
    image = {"image": np.random.default_rng(1).normal(0, 1, (2, *SIZE)).astype(np.float32)}
    wanted, made = (fg.evaluate(g, image)["z"] for g in (graph, found))
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def test_another_reader_keeps_them_side_by_side_too(monkeypatch):
    monkeypatch.setattr(wide, "BAND", 3 * 6 * 12 - 1)
    graph = network()
    other = fg.Linear("other", "all", np.ones((7, 12), np.float32), None)
    outputs = [*graph.outputs, fg.Output("o", "other", (24, 7))]
    found = wide.one_by_one(replace(graph, nodes=[*graph.nodes, other], outputs=outputs))
    assert any(isinstance(node, fg.Join) for node in found.nodes)
    assert sum(isinstance(node, fg.Conv) for node in found.nodes) == 4


@pytest.mark.parametrize("limits", [("y",), ("all",)])
def test_what_a_file_limits_stays_whole(monkeypatch, limits):
    monkeypatch.setattr(wide, "BAND", 3 * 6 * 12 - 1)
    graph = network(limits)
    assert wide.one_by_one(graph).nodes == graph.nodes


def test_a_band_that_a_bank_holds_stays_whole(monkeypatch):
    monkeypatch.setattr(wide, "BAND", 3 * 6 * 12)
    graph = network()
    assert wide.one_by_one(graph).nodes == graph.nodes

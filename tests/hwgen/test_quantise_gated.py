"""Lowering of gated MLPs, rotary positions and norms of queries and keys."""

from dataclasses import replace

import numpy as np
import pytest

import gated_maker as maker
from hwgen import graph as fg
from hwgen.compare import compare
from hwgen.errors import UserError
from hwgen.intgraph import Norm
from hwgen.select import integers
from hwgen.sim import golden


def test_norms_of_heads_leave_no_row_maxima():
    integer = integers({"": maker.vit(norm_heads=True, rotate=True)}, None)[""]
    heads = [op for op in integer.ops if isinstance(op, Norm) and op.out.cols == maker.WIDTH // maker.HEADS]
    assert len(heads) == 2 * 2 * maker.HEADS and not any(op.row_max for op in heads)


def test_what_cannot_be_done_is_refused():
    graph = maker.vit(norm_heads=True)
    with pytest.raises(UserError, match="LayerNorm '0.q.norm'.*only be used by attention"):
        integers({"": replace(graph, outputs=[fg.Output("y", "0.q.norm", (7, maker.WIDTH))])}, None)


@pytest.mark.parametrize("kind", (dict(norm_heads=True), dict(rotate=True), dict(norm_heads=True, rotate=True)))
def test_queries_are_compared_in_their_own_steps(kind):
    """Norm and rotation lie in the buffer of the linear layer, whose steps are others."""
    graph = maker.vit(**kind)
    rng = np.random.default_rng(0)
    images = {name: rng.uniform(-1, 1, (4, *shape)).astype(np.float32) for name, shape in graph.inputs.items()}
    found = compare(graph, integers({"": graph}, images)[""], images, golden.run)
    layers = {layer.name: layer.own_db for layer in found.layers}
    assert layers[graph.node("0.attn").q] > 25


@pytest.mark.parametrize("epsilon", [0.3, 2.0])
def test_norms_of_queries_keep_a_large_epsilon(epsilon):
    """One beside which the variance of a head is small: it is brought to the square of the layer's steps."""
    graph = maker.vit(norm_heads=True, epsilon=epsilon)
    rng = np.random.default_rng(0)
    images = {name: rng.uniform(-1, 1, (4, *shape)).astype(np.float32) for name, shape in graph.inputs.items()}
    found = compare(graph, integers({"": graph}, images)[""], images, golden.run)
    norms = {layer.name: layer.own_db for layer in found.layers if layer.name.endswith(".norm")}
    assert norms and min(norms.values()) > 25, norms

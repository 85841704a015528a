"""Layers lowered to the row graph compute what they do by their definition."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen import graph, rows
from hwgen import tensor as ir
from hwgen.layers import Attention, Clip, Combine, Dispatch, Experts, Linear, Norm, Router, SlotExperts
from hwgen.proof import evaluate

T, D, E, H = 8, 6, 4, 5  # tokens (patches of 4 x 2 pixels), channels, experts, hidden channels


class Net:
    """Tokens `x` [T, D] of an image, random constants, and lowering of outputs with a check of all numbers."""

    def __init__(self):
        self.t, self.rng = ir.Builder(), np.random.default_rng(3)
        image = self.t.input("image", (1, 1, 4, 2 * T))
        patches = self.t.reshape(self.t.transpose(self.t.reshape(image, (4, T, 2)), (1, 0, 2)), (T, 8))
        self.x = self.linear(patches, D)

    def const(self, *shape: int) -> ir.Ref:
        return self.t.const(self.rng.standard_normal(shape, np.float32))

    def linear(self, x: ir.Ref, columns: int) -> ir.Ref:
        return self.t.node(Linear(), x, self.const(columns, x.shape[1]), self.const(columns))

    def experts(self) -> list[ir.Ref]:
        return [self.const(*shape) for shape in ((E, H, D), (E, H), (E, D, H), (E, D))]

    def rows(self, r: ir.Ref, start: int, stop: int) -> ir.Ref:
        return self.t.slice(r, 0, start, stop - start)

    def turned(self, r: ir.Ref) -> ir.Ref:
        return self.t.slice(r, 0, r.shape[0] - 1, r.shape[0], -1)

    def lowered(self, *outputs: ir.Ref) -> graph.Graph:
        found = {f"y{i}": self.t.reshape(r, (1, *r.shape)) for i, r in enumerate(outputs)}
        program = ir.Program(found)
        result, findings = rows.lower(program)
        assert not findings, findings
        graph.verify(result)
        image = {"image": self.rng.standard_normal((1, 1, 4, 2 * T), np.float32)}
        got, wanted = evaluate(result, image), evaluate(program, image)
        for name, array in wanted.items():
            np.testing.assert_allclose(got[name], array[0], rtol=0, atol=1e-4 * np.abs(array).max(), err_msg=name)
        return result


@pytest.mark.parametrize("of_x, of_logits", [((0, 5), (1, 6)), ((3, 8), (0, 5)), ((2, 4), (2, 4))])
def test_experts_read_a_range_and_their_router_another(of_x, of_logits):
    net = Net()
    gates = net.t.node(Router(2), net.rows(net.linear(net.x, E), *of_logits))
    net.lowered(net.t.node(Experts("gelu"), net.rows(net.x, *of_x), gates, *net.experts()))


def test_experts_of_other_numbers_of_tokens_have_other_lists():
    """One router for the first 5 tokens of one mixture and the first 7 of another: two lists of rows."""
    net = Net()
    logits = net.linear(net.x, E)
    outputs = []
    for count in (5, 7, 5):
        gates = net.t.node(Router(2), net.rows(logits, 0, count))
        outputs.append(net.t.node(Experts("gelu"), net.rows(net.x, 0, count), gates, *net.experts()))
    result = net.lowered(*outputs)
    assert sum(isinstance(n, graph.Route) for n in result.nodes) == 2


def test_experts_of_tokens_in_another_order():
    net = Net()
    gates = net.t.node(Router(2), net.linear(net.turned(net.x), E))
    net.lowered(net.turned(net.t.node(Experts("gelu"), net.turned(net.x), gates, *net.experts())))


@pytest.mark.parametrize("of_x, of_logits, combined", [((0, 5), (1, 6), (0, 8)), ((4, 8), (4, 8), (1, 4))])
def test_slots_read_a_range_and_are_combined_for_another(of_x, of_logits, combined):
    net = Net()
    logits = net.linear(net.x, 2 * E)
    slots = net.t.node(Dispatch(), net.rows(logits, *of_logits), net.rows(net.x, *of_x))
    outputs = net.t.node(SlotExperts("gelu"), slots, *net.experts())
    net.lowered(net.t.node(Combine(), net.rows(logits, *combined), outputs))


def test_a_token_is_not_routed_by_another_one():
    """Rows in another order than those of the logits are refused."""
    net = Net()
    gates = net.t.node(Router(2), net.linear(net.x, E))
    y = net.t.node(Experts("gelu"), net.turned(net.x), gates, *net.experts())
    _, findings = rows.lower(ir.Program({"y": net.t.reshape(y, (1, T, D))}))
    assert [f.reason for f in findings] == ["routes tokens in another order than it computes them"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("start, stop", [(0, 8), (2, 7)])
def test_positions_added_to_a_norm(turned, start, stop):
    """As where patches are normalised before (AIMv2): one constant for each token behind the norm."""
    net = Net()
    x = net.turned(net.x) if turned else net.x
    y = net.t.node(Norm(1e-5, False), net.rows(x, start, stop), net.const(1, D), net.const(stop - start, D))
    result = net.lowered(net.turned(y) if turned else y)
    assert [type(n) for n in result.nodes][-2:] == [graph.LayerNorm, graph.Embed]


def test_limits_on_normalised_heads():
    """A quantised file's pair on queries that are normalised head by head: the range of that value."""
    net, heads = Net(), 2

    def by_head(r: ir.Ref) -> ir.Ref:
        return net.t.transpose(net.t.reshape(r, (1, T, heads, D // heads)), (0, 2, 1, 3))

    q, k, v = (net.linear(net.x, D) for _ in range(3))
    normal = net.t.node(Norm(1e-5), net.t.reshape(q, (T * heads, D // heads)), net.const(1, D // heads), net.const(1, D // heads))
    limited = net.t.node(Clip(-0.7, 0.6, 0.01), normal)
    result = net.lowered(net.t.node(Attention(0.5), by_head(limited), by_head(k), by_head(v)))
    clip = next(n for n in result.nodes if isinstance(n, graph.Clip))
    assert result.node(clip.x).heads == heads
    low, high = result.ranges[clip.name]
    assert low.shape == (D,) and (low == -0.7).all() and (high == 0.6).all()

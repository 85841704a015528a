"""The layers of mixtures of experts: level L against the row graph that it becomes, and as text."""

from __future__ import annotations

import numpy as np
import pytest

from hwgen import graph
from hwgen.layers import LAYERS, Activation, Combine, Dispatch, Experts, Router, SlotExperts
from hwgen.tensor import Builder, Program, evaluate, parse, text
from hwgen.tensor.evaluate import apply

T, K, E, H, D = 7, 6, 5, 4, 3
FORMS = ("gelu", "gelu_tanh", "silu", "relu")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def parameters():
    return [normal(*shape, seed=i + 1) for i, shape in enumerate([(E, H, K), (E, H), (E, D, H), (E, D)])]


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_mixture_is_route_and_experts(form, renormalise):
    logits, x = normal(T, E), normal(T, K, seed=9)
    logits[0] = 0.5  # a tie of all experts
    slope = 0.0 if form == "relu" else 1.0
    gates = apply(Router(2, renormalise), [logits], np.float64)
    y = apply(Experts(form, slope), [x, gates, *parameters()], np.float64)
    routing = graph.evaluate_node(graph.Route("r", "l", 2, renormalise), {"l": logits})
    node = graph.Experts("e", "x", "r", *parameters(), form=form)
    np.testing.assert_allclose(y, graph.evaluate_node(node, {"x": x, "r": routing}), rtol=1e-6, atol=1e-7)
    assert np.flatnonzero(gates[0]).tolist() == [0, 1]


def test_soft_mixture_is_dispatch_experts_and_combine():
    x, slots = normal(T, K), normal(2 * E, K, seed=7)
    values = {"x": x}
    weights = parameters()
    for node in (
        graph.Dispatch("slots", "x", "x", slots),
        graph.SlotExperts("made", "slots", *weights, form="gelu"),
        graph.Combine("y", "x", "made", slots, None),
    ):
        values[node.name] = graph.evaluate_node(node, values)
    logits = x @ slots.T
    inputs = apply(Dispatch(), [logits, x], np.float64)
    outputs = apply(SlotExperts("gelu"), [inputs, *weights], np.float64)
    np.testing.assert_allclose(apply(Combine(), [logits, outputs], np.float64), values["y"], rtol=1e-6, atol=1e-7)


def test_gated_experts_by_hand():
    x, gates = normal(T, K), np.abs(normal(T, E, seed=2))
    w1, b1, w2, b2 = normal(E, 2 * H, K, seed=3), normal(E, 2 * H, seed=4), normal(E, D, H, seed=5), normal(E, D, seed=6)
    y = apply(Experts("silu", 1.0, True), [x, gates, w1, b1, w2, b2], np.float64)
    wanted = 0
    for e in range(E):
        a, b = np.split(x @ w1[e].T + b1[e], 2, axis=1)
        hidden = apply(Activation("silu"), [a], np.float64) * b
        wanted = wanted + gates[:, e : e + 1] * (hidden @ w2[e].T + b2[e])
    np.testing.assert_allclose(y, wanted, rtol=1e-9)


def test_sigmoid_router_divides_by_the_chosen_scores():
    logits = normal(T, E)
    gates = apply(Router(2, True, "sigmoid"), [logits], np.float64)
    best = np.argsort(-logits, axis=1)[:, :2]
    scores = np.take_along_axis(1 / (1 + np.exp(-logits)), best, 1)
    np.testing.assert_allclose(np.take_along_axis(gates, best, 1), scores / scores.sum(axis=1, keepdims=True), rtol=1e-9)
    assert ((gates != 0).sum(axis=1) == 2).all()


def test_layers_as_text_and_back():
    t = Builder()
    x = t.input("x", (T, K))
    logits = t.input("logits", (T, E))
    y = t.node(Experts("gelu"), x, t.node(Router(2, True), logits), *(t.const(p.astype(np.float32)) for p in parameters()))
    written = text(Program({"y": y}))
    lines = [line.replace("const ...", f"const normal({i})") for i, line in enumerate(written.splitlines())]
    again = parse("\n".join(lines), LAYERS)
    assert text(again) == written


def test_a_program_is_evaluated_from_given_values_on():
    t = Builder()
    x = t.input("x", (2, 3))
    hidden = t.map("mul", x, 3.0)
    y = t.map("add", hidden, 1.0)
    made, kept = evaluate(Program({"y": y}), {}, np.float64, [hidden.node], {hidden.node: np.ones(6)})
    assert (made["y"] == 2).all() and (kept[hidden.node] == np.ones((2, 3))).all()


@pytest.mark.parametrize("reduction", ["none", "add"])
@pytest.mark.parametrize("rows", [[0, 2], [2, 0, 1], [1, 1, 2]])
def test_scatter_to_known_places_is_what_the_interpreter_says(rows, reduction):
    """Built with constant indices, with those as an input, and by hand."""
    t = Builder()
    x, u, places = t.input("x", (3, 4)), t.input("u", (len(rows), 4)), t.input("i", (len(rows), 4), "i")
    index = np.repeat(np.array(rows)[:, None], 4, axis=1)
    outputs = {"known": t.scatter(x, t.const(index), u, 0, reduction), "read": t.scatter(x, places, u, 0, reduction)}
    values = {"x": normal(3, 4), "u": normal(len(rows), 4, seed=1), "i": index}
    found = evaluate(Program(outputs), values, np.float64)[0]
    wanted = values["x"].copy()
    for row, update in zip(rows, values["u"], strict=True):
        wanted[row] = update + (wanted[row] if reduction == "add" else 0)
    np.testing.assert_allclose(found["known"], wanted)
    np.testing.assert_allclose(found["read"], wanted)


def test_gather_of_elements_by_known_places():
    t = Builder()
    x = t.input("x", (3, 4))
    index = np.array([[3, 1], [0, 0], [2, 3]])
    y = evaluate(Program({"y": t.gather(x, t.const(index), 1, elements=True)}), {"x": normal(3, 4)}, np.float64)[0]["y"]
    np.testing.assert_array_equal(y, np.take_along_axis(normal(3, 4), index, 1))
    one = t.gather(t.slice(x, 1, 0, 1), t.const(np.zeros((3, 2), int)), 1, elements=True)
    assert one.node is x.node  # a layout only

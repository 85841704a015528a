"""A mixture of experts in the many ways exporters write it, and the ways in which it can be incomplete."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import moe_maker as maker
from hwgen import graph
from hwgen.errors import UserError
from hwgen.layers import Experts
from hwgen.levels import check, import_model, layers, tasks, tensor
from hwgen.tensor import evaluate

gathered = maker.gathered

T, D, E, HIDDEN = 6, 8, 4, 5


class Moe(maker.Moe):
    """A graph of patch embedding, gate and experts. `x` [1, T, D], `tokens` [T, D]."""

    def __init__(self, k=2, seed=0, experts=E, hidden=HIDDEN, **options):
        writer = maker.Writer(seed)
        conv = writer.op("Conv", "image", writer.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        self.x = writer.op("Transpose", writer.op("Reshape", conv, [1, D, T]), perm=[0, 2, 1])
        super().__init__(writer, writer.op("Reshape", self.x, [T, D]), (T, D), experts, hidden, k, **options)

    def normal(self, *shape):
        return self.w.normal(*shape)

    def save(self, path, y):
        """Output [1, T, D] = x + y."""
        return self.w.write(path, (1, 4, 6), self.op("Add", self.x, self.op("Reshape", y, [1, T, D])), [1, T, D])


@pytest.mark.parametrize("form", [*maker.FORMS, maker.roomy_capacity])
@pytest.mark.parametrize("k, bias", [(1, True), (2, False), (3, True)])
def test_every_form_is_one_mixture(tmp_path, form, k, bias):
    moe = Moe(k, bias=bias)
    result = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "Linear", "Route", "Experts", "Add"]
    route, experts = result.nodes[2:4]
    renormalised = form.__name__.startswith("renormalised") or form is maker.noisy_gate
    assert route.top_k == k and route.renormalise == renormalised
    np.testing.assert_allclose(experts.w1, moe.w1.transpose(0, 2, 1), rtol=1e-6)
    factor = 2.5 if form is maker.scaled_scores else 1
    np.testing.assert_allclose(experts.w2, factor * moe.w2.transpose(0, 2, 1), rtol=1e-6)
    assert (experts.b2 is None) == (not bias)


@pytest.mark.parametrize("form", maker.FORMS)
def test_one_expert(tmp_path, form):
    """Its weight is 1 whatever the logits; where the steps that make it 1 are all there, none is left."""
    moe = Moe(1, experts=1)
    result = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    kinds = [type(n).__name__ for n in result.nodes]
    assert kinds[2:-1] in (["Activation", "Linear"], ["Route", "Experts"]) and kinds[1] == "Linear"


@pytest.mark.parametrize("form", maker.SOFT_FORMS)
@pytest.mark.parametrize("slots", [1, 3])
def test_soft_mixture(tmp_path, form, slots):
    moe = Moe(slots)
    result = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    kinds = [type(n).__name__ for n in result.nodes]
    assert kinds == ["PatchEmbed", "Dispatch", "SlotExperts", "Combine", "Add"]
    assert result.nodes[1].weight.shape == (E * slots, D)
    np.testing.assert_allclose(result.nodes[2].w2, moe.w2.transpose(0, 2, 1), rtol=1e-6)


@pytest.mark.parametrize("form", maker.SOFT_FORMS)
@pytest.mark.parametrize("experts, slots, hidden", [(1, 1, 5), (1, 2, 5), (1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1)])
def test_soft_mixture_of_one_slot_or_one_hidden_channel(tmp_path, form, experts, slots, hidden):
    """The softmax over one slot, and the sum over one channel, are not there any more."""
    moe = Moe(slots, experts=experts, hidden=hidden)
    result = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "Dispatch", "SlotExperts", "Combine", "Add"]
    assert result.nodes[1].weight.shape == (experts * slots, D)
    np.testing.assert_allclose(result.nodes[2].w1, moe.w1.transpose(0, 2, 1), rtol=1e-6)


def soft_and_normalised(moe):
    """Tokens and slots of length 1 times a factor, as soft mixtures for large images have them."""
    length = moe.op("Clip", moe.op("ReduceL2", moe.tokens, [-1], keepdims=1), np.float32(1e-12))
    x = moe.op("Mul", moe.op("Div", moe.tokens, moe.op("Expand", length, [moe.count, moe.width])), 3.0)
    slots = moe.w.normal(moe.experts * moe.k, moe.width).astype(np.float32)
    norms = moe.op("Clip", np.linalg.norm(slots, axis=1, keepdims=True), np.float32(1e-12))
    scores = moe.op("Einsum", x, moe.op("Div", slots, norms), equation="td,sd->ts")
    inputs = moe.op("Einsum", x, moe.op("Softmax", scores, axis=0), equation="td,ts->sd")
    parts = moe.op("Split", inputs, outputs=moe.experts, axis=0, num_outputs=moe.experts)
    parts = [parts] if moe.experts == 1 else parts
    outputs = moe.op("Concat", *(moe.expert(e, part) for e, part in enumerate(parts)), axis=0)
    return moe.op("Einsum", outputs, moe.op("Softmax", scores, axis=1), equation="sd,ts->td")


def test_soft_mixture_of_normalised_tokens_and_slots(tmp_path):
    moe = Moe(3)
    result = import_model(moe.save(tmp_path / "m.onnx", soft_and_normalised(moe)))
    kinds = [type(n).__name__ for n in result.nodes]
    assert kinds == ["PatchEmbed", "LayerNorm", "Dispatch", "SlotExperts", "Combine", "Add"]
    norm, dispatch = result.nodes[1:3]
    assert not norm.centred and dispatch.keys == dispatch.x == norm.name


def test_top_1_by_arg_max_without_sum(tmp_path):
    moe = Moe()
    index = moe.op("ArgMax", moe.gate, axis=-1, keepdims=1)
    score = moe.op("ReduceMax", moe.gate, [-1], keepdims=1)
    outputs = moe.op("Transpose", moe.all_experts(), perm=[1, 0, 2])
    picked = moe.op("GatherElements", outputs, moe.op("Expand", moe.op("Unsqueeze", index, [2]), [T, 1, D]), axis=1)
    y = moe.op("Mul", moe.op("Squeeze", picked, [1]), score)
    result = import_model(moe.save(tmp_path / "m.onnx", y))
    assert next(n for n in result.nodes if isinstance(n, graph.Route)).top_k == 1


def test_all_experts_weighted_by_the_softmax(tmp_path):
    moe = Moe()
    outputs = moe.op("Transpose", moe.all_experts(), perm=[1, 0, 2])
    y = moe.op("MatMul", moe.op("Unsqueeze", moe.gate, [1]), outputs)
    result = import_model(moe.save(tmp_path / "m.onnx", y))
    assert next(n for n in result.nodes if isinstance(n, graph.Route)).top_k == E


def test_gate_of_tokens_and_task_vector_is_a_linear_with_bias(tmp_path):
    moe = Moe()
    task = moe.op("Expand", moe.normal(1, 3), [T, 3])
    joined = moe.op("Concat", moe.tokens, task, axis=-1)
    moe.gate = moe.op("Softmax", moe.op("MatMul", joined, moe.normal(D + 3, E)), axis=-1)
    result = import_model(moe.save(tmp_path / "m.onnx", maker.gather_elements(moe)))
    gate = next(n for n in result.nodes if isinstance(n, graph.Linear))
    assert gate.weight.shape == (E, D) and gate.bias.shape == (E,)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_scaled_scores_over_their_sum(tmp_path, slots):
    """DeepSeek's: a factor on scores that are renormalised."""
    moe = Moe(slots)
    values, indices = moe.top()
    total = moe.op("Add", moe.op("ReduceSum", values, [-1]), 1e-20)
    result = import_model(moe.save(tmp_path / "m.onnx", gathered(moe, moe.op("Div", moe.op("Mul", values, 2.5), total), indices)))
    (route,), (experts,) = ([n for n in result.nodes if isinstance(n, kind)] for kind in (graph.Route, graph.Experts))
    assert route.renormalise and route.top_k == slots
    np.testing.assert_allclose(experts.w2, 2.5 * moe.w2.transpose(0, 2, 1), rtol=1e-6)


@pytest.mark.parametrize("normalise", [0, 1])
@pytest.mark.parametrize("activation, form", [("gelu", "gelu_tanh"), ("silu", "silu"), ("relu", "relu")])
def test_operator_of_onnxruntime(tmp_path, activation, form, normalise):
    pytest.importorskip("onnxruntime")
    moe = Moe()
    w1, w2 = (w.transpose(0, 2, 1).copy() for w in (moe.w1, moe.w2))
    options = {"k": 2, "activation_type": activation, "normalize_routing_weights": normalise, "domain": "com.microsoft"}
    y = moe.op("MoE", moe.tokens, moe.logits, w1, moe.b1, w2, moe.b2, **options)
    result = import_model(moe.save(tmp_path / "m.onnx", y))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "Linear", "Route", "Experts", "Add"]
    route, experts = result.nodes[2:4]
    assert (route.top_k, route.renormalise, experts.form) == (2, bool(normalise), form)
    np.testing.assert_allclose(experts.w1, w1, rtol=1e-6)


@pytest.mark.parametrize("form", [maker.dense_weights, maker.rows_of_tokens])
def test_shared_expert_behind_a_gate_of_its_own(tmp_path, form):
    """Qwen's: sigmoid(x @ g) * shared(x), here the routed expert 0 among two, of which the other one gives zero."""
    moe = Moe()
    routed = form(moe)
    gate = moe.op("Sigmoid", moe.op("MatMul", moe.tokens, moe.normal(D, 1)))
    y = moe.op("Add", routed, moe.op("Mul", gate, moe.expert(2)))
    result = import_model(moe.save(tmp_path / "m.onnx", y))
    routes = [n for n in result.nodes if isinstance(n, graph.Route)]
    shared = next(n for n in result.nodes if isinstance(n, graph.Experts) and len(n.w1) == 2)
    assert len(routes) == 2
    np.testing.assert_allclose(shared.w1[0], moe.w1[2].T, rtol=1e-6)
    assert not shared.w2[1].any()


def test_task_number_is_an_input_whose_values_become_tasks(tmp_path):
    """Gates of three tasks in one array, of which an integer input picks one; experts are shared."""
    moe = Moe()
    gates = moe.normal(3, D, E)
    moe.gate = moe.op("Softmax", moe.op("MatMul", moe.tokens, moe.op("Gather", gates, "task", axis=0)), axis=-1)
    path = moe.save(tmp_path / "m.onnx", maker.rows_of_tokens(moe))
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("task", TensorProto.INT64, []))
    onnx.save(model, path)
    found = tasks(path)
    assert [task.numbers for task in found.values()] == [{"task": 0}, {"task": 1}, {"task": 2}]
    for gate, task in zip(gates, found.values(), strict=True):
        result = import_model(path, fixed=task.numbers)
        (linear,) = (n for n in result.nodes if isinstance(n, graph.Linear))
        np.testing.assert_allclose(linear.weight, gate.T, rtol=1e-6)
        (experts,) = (n for n in result.nodes if isinstance(n, graph.Experts))
        np.testing.assert_allclose(experts.w1, moe.w1.transpose(0, 2, 1), rtol=1e-6)


def test_two_tasks_in_one_graph_share_their_experts(tmp_path):
    """The same experts behind two gates, one output each: one array of weights for both."""
    moe = Moe()
    terms = [maker.places_of_slots(moe)]
    moe.gate = moe.op("Softmax", moe.op("MatMul", moe.tokens, moe.normal(D, E)), axis=-1)
    terms.append(maker.places_of_slots(moe))
    path = moe.save(tmp_path / "m.onnx", moe.sum_of(terms))
    routes, experts = ([n for n in import_model(path).nodes if isinstance(n, kind)] for kind in (graph.Route, graph.Experts))
    assert len(routes) == 2 and len(experts) == 2 and routes[0].logits != routes[1].logits
    assert all(getattr(experts[0], name) is getattr(experts[1], name) for name in ("w1", "b1", "w2", "b2"))


def test_residual_stream_within_the_sum(tmp_path):
    """index_add_ into the tokens themselves, not into zeros."""
    moe = Moe()
    values, indices = moe.top()
    y = moe.op("Mul", moe.tokens, np.float32(1))
    for e in range(E):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, e)), perm=[1, 0])
        token = moe.op("Slice", places, [0], [1], [1])
        weight = moe.op("Unsqueeze", moe.op("GatherND", values, places), [1])
        rows = moe.op("Mul", weight, moe.expert(e, moe.op("GatherND", moe.tokens, token)))
        y = moe.op("ScatterND", y, token, rows, reduction="add")
    y = moe.op("Reshape", y, [1, T, D])
    result = import_model(moe.w.write(tmp_path / "m.onnx", (1, 4, 6), y, [1, T, D]))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "Linear", "Route", "Experts", "Add"]


@pytest.mark.parametrize("act", ["Relu", "HardSwish", "Elu"])
def test_layers_are_what_they_define(tmp_path, act):
    """Level L against level T, for a mixture whose activation the machine has or has not."""
    moe = Moe(act=lambda x: moe.op(act, x))
    path = moe.save(tmp_path / "m.onnx", maker.index_add(moe))
    before, after = tensor(path), layers(path)
    assert sum(isinstance(n.op, Experts) for n in after.nodes()) == 1
    image = {"image": np.random.default_rng(4).standard_normal((1, 1, 4, 6))}
    results = [next(iter(evaluate(p, image, np.float64)[0].values())) for p in (before, after)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)
    assert [f.level for f in check(path)] == (["select"] if act == "Elu" else [])


# --- near misses -------------------------------------------------------------------------------------------------


def expert_missing(moe):
    values, indices = moe.top()
    buffer = np.zeros((T, moe.k, D), np.float32)
    for e in range(E - 1):
        mask = moe.op("Unsqueeze", moe.op("Equal", indices, e), [2])
        buffer = moe.op("Where", mask, moe.op("Unsqueeze", moe.expert(e), [1]), buffer)
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), buffer)


def expert_twice(moe):
    values, indices = moe.top()
    y = None
    for e in (0, 1, 2, 2, 3):
        mask = moe.op("Cast", moe.op("Equal", indices, e), to=TensorProto.FLOAT)
        term = moe.op("Mul", moe.expert(e), moe.op("ReduceSum", moe.op("Mul", mask, values), [1], keepdims=1))
        y = term if y is None else moe.op("Add", y, term)
    return y


@pytest.mark.parametrize("form, factor", [(expert_missing, [1, 1, 1, 0]), (expert_twice, [1, 1, 2, 1])])
def test_sum_over_some_experts_or_one_twice(tmp_path, form, factor):
    """What is no whole mixture is one whose experts have other factors."""
    moe = Moe()
    (experts,) = (n for n in import_model(moe.save(tmp_path / "m.onnx", form(moe))).nodes if isinstance(n, graph.Experts))
    np.testing.assert_allclose(experts.w2, np.reshape(factor, (-1, 1, 1)) * moe.w2.transpose(0, 2, 1), rtol=1e-6)


def not_weighted(moe):
    _, indices = moe.top()
    buffer = np.zeros((T, moe.k, D), np.float32)
    for e in range(E):
        mask = moe.op("Unsqueeze", moe.op("Equal", indices, e), [2])
        buffer = moe.op("Where", mask, moe.op("Unsqueeze", moe.expert(e), [1]), buffer)
    return moe.op("ReduceSum", buffer, [1], keepdims=0)


def other_gate(moe):
    values, _ = moe.top()
    second = moe.op("Softmax", moe.op("MatMul", moe.tokens, moe.normal(D, E)), axis=-1)
    return gathered(moe, values, moe.top(of=second)[1])


def normalised_over_more(moe):
    values, indices = moe.top(k=moe.k + 1)
    values = moe.op("Div", values, moe.op("ReduceSum", values, [-1]))
    values, indices = (moe.op("Slice", v, [0], [moe.k], [1]) for v in (values, indices))
    return gathered(moe, values, indices)


def worst_slots(moe):
    values, indices = (moe.op("Slice", v, [1], [moe.k + 1], [1]) for v in moe.top(k=moe.k + 1))
    return gathered(moe, values, indices)


def raw_logits(moe):
    return gathered(moe, *moe.top(of=moe.logits))


def slots_exchanged(moe):
    values, indices = moe.top()
    return gathered(moe, moe.op("Gather", values, [1, 0], axis=1), indices)


def rows_weighted_by_other_tokens(moe):
    values, indices = moe.top()
    return gathered(moe, moe.op("Gather", values, list(reversed(range(T))), axis=0), indices)


def five_of_eight(moe):
    """More experts a token than a router chooses."""
    moe.k, moe.experts = 5, 2 * E
    moe.w1, moe.b1, moe.w2, moe.b2 = (np.concatenate([a, a]) for a in (moe.w1, moe.b1, moe.w2, moe.b2))
    gate = moe.op("Softmax", moe.op("MatMul", moe.tokens, moe.normal(D, 2 * E)), axis=-1)
    return gathered(moe, *moe.top(of=gate))


def room_for_all_but_one(moe):
    """The token that comes last to an expert is dropped, if all tokens choose that."""
    return maker.roomy_capacity(moe, moe.count - 1)


def smallest(moe):
    values, indices = moe.op("TopK", moe.gate, [2], outputs=2, axis=-1, largest=0)
    return gathered(moe, values, indices)


@pytest.mark.parametrize(
    "form, words",
    [
        (not_weighted, "summed without the weights"),
        (other_gate, "more than the logits of one router"),
        (normalised_over_more, "normalised over the best 3 experts, of which 2 are used"),
        (worst_slots, "have ranks from 2 to 3"),
        (raw_logits, "their logits as they are"),
        (slots_exchanged, "neither the softmax nor the sigmoid of their own logits"),
        (rows_weighted_by_other_tokens, "depend on other tokens"),
        (smallest, "have ranks from 3 to 4"),
        (five_of_eight, "best 5 of 8 experts, at most the best 4"),
        (room_for_all_but_one, "as with expert capacity"),
    ],
)
def test_incomplete_mixture_is_refused(tmp_path, form, words):
    moe = Moe()
    path = moe.save(tmp_path / "m.onnx", form(moe))
    findings = check(path)
    assert findings and words in findings[0].reason, findings
    assert len(findings) == 1, findings
    with pytest.raises(UserError, match=words):
        import_model(path)


# --- what routers and experts may not be ---------------------------------------------------------------------------


def frozen_routing(moe):
    """A loop whose export held how many tokens expert 0 got from the example: 3."""
    values, indices = moe.top()
    places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, 0)), perm=[1, 0])
    token = moe.op("Slice", places, [0], [1], [1])
    weight = moe.op("Unsqueeze", moe.op("GatherND", values, places), [1])
    rows = moe.op("Mul", weight, moe.expert(0, moe.op("GatherND", moe.tokens, token)))
    return moe.op("ScatterND", moe.zeros(T, D), token, moe.op("Reshape", rows, [3, D]), reduction="add")


def sigmoid_of_the_chosen(moe):
    values, indices = moe.top(of=moe.logits)
    return gathered(moe, moe.op("Sigmoid", values), indices)


def chosen_by_sigmoid(moe):
    values, indices = moe.top(of=moe.op("Sigmoid", moe.logits))
    return gathered(moe, values, indices)


def sigmoid_with_correction(moe):
    """DeepSeek-V3's: the choice goes by scores plus a bias of each expert, the weights by the scores alone."""
    scores = moe.op("Sigmoid", moe.logits)
    _, indices = moe.top(of=moe.op("Add", scores, moe.normal(E)))
    return gathered(moe, moe.op("GatherElements", scores, indices, axis=1), indices)


def gated_experts(moe):
    outputs = []
    for e in range(E):
        x = moe.op("MatMul", moe.tokens, moe.w1[e])
        gate = moe.op("Mul", x, moe.op("Sigmoid", x))
        hidden = moe.op("Mul", gate, moe.op("MatMul", moe.tokens, moe.normal(D, HIDDEN)))
        outputs.append(moe.op("Unsqueeze", moe.op("MatMul", hidden, moe.w2[e]), [1]))
    moe.by_token = lambda: moe.op("Concat", *outputs, axis=1)
    return gathered(moe, *moe.top())


def linear_experts(moe):
    moe.act = lambda x: moe.op("Identity", x)
    return gathered(moe, *moe.top())


def gated_operator(moe):
    w1, w2 = (w.transpose(0, 2, 1).copy() for w in (moe.w1, moe.w2))
    return moe.op("MoE", moe.tokens, moe.logits, w1, "", w2, "", w1, k=2, activation_type="silu", domain="com.microsoft")


def quantised_operator(moe):
    w1, w2 = (np.zeros(w.transpose(0, 2, 1).shape, np.uint8) for w in (moe.w1, moe.w2))
    scales = [np.ones(shape, np.float32) for shape in ((E, HIDDEN), (E, D))]
    inputs = moe.tokens, moe.logits, w1, scales[0], "", w2, scales[1], ""
    return moe.op("QMoE", *inputs, k=2, activation_type="relu", domain="com.microsoft")


def expert_capacity(moe):
    """V-MoE's: the place of a token in its expert's queue, by a cumulative sum."""
    values, indices = moe.top()
    hot = moe.op("OneHot", indices, moe.experts, np.float32([0, 1]))
    place = moe.op("CumSum", hot, np.int64(0))
    return gathered(moe, moe.op("ReduceSum", moe.op("Mul", place, hot), [2], keepdims=0), indices)


@pytest.mark.parametrize(
    "form, words, hint",
    [
        (frozen_routing, "froze how many tokens each expert got in its example: the shape [3, 8]", "dynamic shapes"),
        (sigmoid_with_correction, "weighted by the sigmoid of their logits, but chosen by something else", "softmax"),
        (gated_operator, "gated activation", "linear, activation, linear"),
        (quantised_operator, "not supported", "give the float model"),
        (expert_capacity, "expert capacity", "softmax"),
    ],
)
def test_router_or_expert_is_refused_by_name(tmp_path, form, words, hint):
    moe = Moe()
    path = moe.save(tmp_path / "m.onnx", form(moe))
    findings = check(path)
    assert findings[0].node in {n.name for n in moe.w.nodes} and len(findings) == 1, findings
    assert words in findings[0].reason and hint in findings[0].hint, findings[0]
    with pytest.raises(UserError, match=findings[0].node):
        import_model(path)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_experts_are_layers_of_all_tokens(tmp_path, bias):
    """Their gates are what experts without weights add; nothing else is left of the choice."""
    moe = Moe(bias=bias)
    made = import_model(moe.save(tmp_path / "m.onnx", gated_experts(moe)))
    assert sum(isinstance(n, graph.Route) for n in made.nodes) == 1
    assert all(not n.w1.any() and not n.w2.any() for n in made.nodes if isinstance(n, graph.Experts))
    assert [n.weight.shape for n in made.nodes if isinstance(n, graph.Linear)].count((E * HIDDEN, D)) == 2


@pytest.mark.parametrize("form", [sigmoid_of_the_chosen, chosen_by_sigmoid])
def test_routers_by_sigmoids_are_layers_of_all_tokens(tmp_path, form):
    """What they choose is numbers that the network computes, with which all experts are weighed."""
    moe = Moe()
    made = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    assert not any(isinstance(n, graph.Route | graph.Experts) for n in made.nodes)
    assert [n.weight.shape for n in made.nodes if isinstance(n, graph.Linear)].count((E * HIDDEN, D)) == 1


def test_linear_experts_are_choices(tmp_path):
    """What is chosen among layers without an activation is no mixture, and taken as any choice is: row by row."""
    moe = Moe()
    made = import_model(moe.save(tmp_path / "m.onnx", linear_experts(moe)))
    assert not any(isinstance(n, graph.Experts) for n in made.nodes) and any(isinstance(n, graph.Select) for n in made.nodes)

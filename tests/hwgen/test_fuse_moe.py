"""A mixture of experts in the many ways exporters write it, and the ways in which it can be incomplete."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph
from hwgen.errors import UserError
from hwgen.frontend import check, import_model

T, D, E, HIDDEN = 6, 8, 4, 5


class Moe:
    """An ONNX graph of patch embedding, gate and experts, written node by node. `x` [1, T, D], `tokens` [T, D]."""

    def __init__(self, k=2, seed=0):
        self.rng, self.k = np.random.default_rng(seed), k
        self.nodes, self.constants = [], []
        self.w1, self.b1 = self.normal(E, D, HIDDEN), self.normal(E, HIDDEN)
        self.w2, self.b2 = self.normal(E, HIDDEN, D), self.normal(E, D)
        conv = self.op("Conv", "image", self.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        self.x = self.op("Transpose", self.op("Reshape", conv, [1, D, T]), perm=[0, 2, 1])
        self.tokens = self.op("Reshape", self.x, [T, D])
        self.logits = self.op("MatMul", self.tokens, self.normal(D, E))
        self.gate = self.op("Softmax", self.logits, axis=-1)

    def normal(self, *shape):
        return self.rng.normal(0, 0.7, shape)

    def op(self, kind, *inputs, outputs=1, **attributes):
        def const(array):
            array = np.asarray(array)
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
            self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
            return self.constants[-1].name

        inputs = [i if isinstance(i, str) else const(i) for i in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def top(self, of=None, k=None):
        return self.op("TopK", of or self.gate, [k or self.k], outputs=2, axis=-1)

    def expert(self, e, x=None):
        hidden = self.op("Add", self.op("MatMul", x or self.tokens, self.w1[e]), self.b1[e])
        return self.op("Add", self.op("MatMul", self.op("Gelu", hidden), self.w2[e]), self.b2[e])

    def all_experts(self):
        """Outputs of all experts, [E, T, D]."""
        x = self.op("Expand", self.op("Unsqueeze", self.tokens, [0]), [len(self.w1), T, D])
        hidden = self.op("Gelu", self.op("Add", self.op("MatMul", x, self.w1), self.b1[:, None]))
        return self.op("Add", self.op("MatMul", hidden, self.w2), self.b2[:, None])

    def save(self, path, y):
        """Output [1, T, D] = x + y."""
        y = self.op("Add", self.x, self.op("Reshape", y, [1, T, D]))
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, 4, 6])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, [1, T, D])
        body = helper.make_graph(self.nodes, "g", [image], [out], self.constants)
        onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
        return path


def gathered(moe, values, indices, k=None):
    """Pick by GatherElements, weight by MatMul."""
    k = k or moe.k
    outputs = moe.op("Transpose", moe.all_experts(), perm=[1, 0, 2])
    index = moe.op("Expand", moe.op("Unsqueeze", indices, [2]), [T, k, D])
    picked = moe.op("GatherElements", outputs, index, axis=1)
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), picked)


def gather_elements(moe):
    return gathered(moe, *moe.top())


def gather_elements_and_sum(moe):
    values, indices = moe.top()
    stacked = moe.op("Concat", *(moe.op("Unsqueeze", moe.expert(e), [1]) for e in range(E)), axis=1)
    index = moe.op("Tile", moe.op("Unsqueeze", indices, [2]), [1, 1, D])
    picked = moe.op("GatherElements", stacked, index, axis=1)
    return moe.op("ReduceSum", moe.op("Mul", picked, moe.op("Unsqueeze", values, [-1])), [1], keepdims=0)


def more_chosen_than_used(moe):
    values, indices = (moe.op("Slice", v, [0], [moe.k], [1]) for v in moe.top(k=moe.k + 1))
    return gathered(moe, values, indices)


def renormalised_by_division(moe):
    values, indices = moe.top()
    total = moe.op("Add", moe.op("ReduceSum", values, [-1]), 1e-9)
    return gathered(moe, moe.op("Div", values, total), indices)


def renormalised_by_softmax(moe):
    values, indices = moe.top(of=moe.logits)
    return gathered(moe, moe.op("Softmax", values, axis=-1), indices)


def scaled_scores(moe):
    values, indices = moe.top()
    return gathered(moe, moe.op("Mul", values, 2.5), indices)


def where_chain(moe):
    values, indices = moe.top()
    buffer = np.zeros((T, moe.k, D), np.float32)
    for e in range(E):
        mask = moe.op("Unsqueeze", moe.op("Equal", indices, e), [2])
        buffer = moe.op("Where", mask, moe.op("Unsqueeze", moe.expert(e), [1]), buffer)
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), buffer)


def masked_weights(moe):
    """One weight per token and expert: the chosen score or zero."""
    values, indices = moe.top()
    y = None
    for e in range(E):
        mask = moe.op("Cast", moe.op("Equal", indices, e), to=TensorProto.FLOAT)
        weight = moe.op("ReduceSum", moe.op("Mul", mask, values), [1], keepdims=1)
        term = moe.op("Mul", moe.expert(e), weight)
        y = term if y is None else moe.op("Add", y, term)
    return y


def dense_weights(moe):
    """Scores scattered into [T, E], all experts weighted at once."""
    values, indices = moe.top()
    gates = moe.op("ScatterElements", np.zeros((T, E), np.float32), indices, values, axis=1)
    outputs = moe.op("Transpose", moe.all_experts(), perm=[1, 0, 2])
    return moe.op("MatMul", moe.op("Unsqueeze", gates, [1]), outputs)


def one_hot_weights(moe):
    values, indices = moe.top()
    hot = moe.op("OneHot", indices, E, np.array([0.0, 1.0], np.float32))
    gates = moe.op("ReduceSum", moe.op("Mul", hot, moe.op("Unsqueeze", values, [2])), [1], keepdims=0)
    parts = moe.op("Split", gates, outputs=E, axis=1, num_outputs=E)
    y = moe.op("Mul", parts[0], moe.expert(0))
    for e in range(1, E):
        y = moe.op("Add", y, moe.op("Mul", parts[e], moe.expert(e)))
    return y


def rows_of_slots(moe):
    """Gather the rows of each expert, scatter them to token and slot."""
    values, indices = moe.top()
    flat = moe.op("Reshape", indices, [-1])
    buffer = np.zeros((T * moe.k, D), np.float32)
    for e in range(E):
        places = moe.op("Squeeze", moe.op("NonZero", moe.op("Equal", flat, e)), [0])
        rows = moe.op("Gather", moe.tokens, moe.op("Div", places, moe.k), axis=0)
        where = moe.op("Unsqueeze", places, [1])
        buffer = moe.op("ScatterND", buffer, where, moe.expert(e, rows), reduction="add")
    return moe.op("MatMul", moe.op("Unsqueeze", values, [1]), moe.op("Reshape", buffer, [T, moe.k, D]))


def rows_of_tokens(moe):
    """Gather the rows of each expert, weight them, add them to the tokens."""
    values, indices = moe.top()
    y = np.zeros((T, D), np.float32)
    for e in range(E):
        places = moe.op("Transpose", moe.op("NonZero", moe.op("Equal", indices, e)), perm=[1, 0])
        token = moe.op("Slice", places, [0], [1], [1])
        weight = moe.op("Unsqueeze", moe.op("GatherND", values, places), [1])
        rows = moe.op("Mul", weight, moe.expert(e, moe.op("GatherND", moe.tokens, token)))
        y = moe.op("ScatterND", y, token, rows, reduction="add")
    return y


ONE_FORM = [
    gather_elements,
    gather_elements_and_sum,
    more_chosen_than_used,
    renormalised_by_division,
    renormalised_by_softmax,
    scaled_scores,
    where_chain,
    masked_weights,
    dense_weights,
    one_hot_weights,
    rows_of_slots,
    rows_of_tokens,
]


@pytest.mark.parametrize("form", ONE_FORM)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_form_is_one_mixture(tmp_path, form, k):
    moe = Moe(k)
    result = import_model(moe.save(tmp_path / "m.onnx", form(moe)))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "Linear", "Route", "Experts", "Add"]
    route, experts = result.nodes[2:4]
    assert route.top_k == k and route.renormalise == form.__name__.startswith("renormalised")
    np.testing.assert_array_equal(experts.w1, moe.w1.transpose(0, 2, 1).astype(np.float32))
    factor = 2.5 if form is scaled_scores else 1
    np.testing.assert_allclose(experts.b2, factor * moe.b2, rtol=1e-6)


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
    result = import_model(moe.save(tmp_path / "m.onnx", gather_elements(moe)))
    gate = next(n for n in result.nodes if isinstance(n, graph.Linear))
    assert gate.weight.shape == (E, D) and gate.bias.shape == (E,)


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
    moe.k = 5
    moe.w1, moe.b1, moe.w2, moe.b2 = (np.concatenate([a, a]) for a in (moe.w1, moe.b1, moe.w2, moe.b2))
    gate = moe.op("Softmax", moe.op("MatMul", moe.tokens, moe.normal(D, 2 * E)), axis=-1)
    return gathered(moe, *moe.top(of=gate))


def smallest(moe):
    values, indices = moe.op("TopK", moe.gate, [2], outputs=2, axis=-1, largest=0)
    return gathered(moe, values, indices)


@pytest.mark.parametrize(
    "form, words",
    [
        (expert_missing, "no branch for expert 3 of 4"),
        (expert_twice, "adds expert 2 twice"),
        (not_weighted, "sums over something"),
        (other_gate, "different routers"),
        (normalised_over_more, "fewer slots than"),
        (worst_slots, "best slots"),
        (raw_logits, "no expert's output"),
        (slots_exchanged, "different slots"),
        (rows_weighted_by_other_tokens, "different tokens"),
        (smallest, "largest"),
        (five_of_eight, "best 5 of 8 experts, at most the best 4"),
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

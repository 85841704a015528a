"""Masks, biases and positions of attention, activations by other names, and what may follow the last block.

Every form that is taken is checked against the ONNX model itself, which `import_model` does.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import moe_maker as maker
from hwgen import graph
from hwgen.levels import check, import_model
from hwgen.quantise.calibrate import noise
from hwgen.select import integers
from hwgen.sim import golden

T, D, H = 6, 8, 2  # tokens, width, heads
MICROSOFT = {"domain": "com.microsoft"}


class Writer(maker.Writer):
    def tokens(self):
        """[1, T, D]."""
        conv = self.op("Conv", "image", self.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
        return self.op("Transpose", self.op("Reshape", conv, [1, D, T]), perm=[0, 2, 1])

    def linear(self, x, inputs=D, outputs=D):
        y = self.op("MatMul", x, self.normal(inputs, outputs, scale=inputs**-0.5))
        return self.op("Add", y, self.normal(outputs, scale=0.3))

    def heads(self):
        """Queries, keys and values [1, H, T, D / H]."""
        x = self.tokens()
        parts = (self.op("Reshape", self.linear(x), [1, T, H, D // H]) for _ in range(3))
        return [self.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]

    def attend(self, change, scale=0.5):
        """softmax(change(scores)) @ values."""
        q, k, v = self.heads()
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), scale)
        return self.side_by_side(self.op("MatMul", self.op("Softmax", change(self, scores), axis=-1), v))

    def side_by_side(self, y):
        return self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), [1, T, D])

    def save(self, folder, y, shape=(1, T, D), opset=20):
        return self.write(folder / "m.onnx", (1, 4, 6), y, list(shape), opset)


def attention_of(tmp_path, y, w, **options):
    (node,) = (n for n in import_model(w.save(tmp_path, y, **options)).nodes if isinstance(n, graph.Attention))
    return node


# --- windows -----------------------------------------------------------------------------------------------------


def windows(w, order, change=lambda w, scores: scores):
    """Attention within windows of 3 tokens, each the next 3 of `order`; tokens in their own order again behind it."""
    x = w.op("Gather", w.tokens(), np.array(order), axis=1)
    parts = (w.op("Reshape", w.linear(x), [2, 3, H, D // H]) for _ in range(3))
    q, k, v = (w.op("Transpose", part, perm=[0, 2, 1, 3]) for part in parts)
    scores = w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), 0.5)
    y = w.op("MatMul", w.op("Softmax", change(w, scores), axis=-1), v)
    return w.op("Gather", w.side_by_side(y), np.argsort(order), axis=1)


SHIFTED = [2, 3, 4, 5, 0, 1]
ORDERS = {"rows": range(6), "columns": [0, 3, 1, 4, 2, 5], "shifted": SHIFTED}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_windows_are_gathered_and_put_back(tmp_path, order):
    w = Writer()
    found = import_model(w.save(tmp_path, windows(w, list(order))))
    (node,) = (n for n in found.nodes if isinstance(n, graph.Attention))
    assert node.windows == 2 and node.bias is None
    rows = [n.rows for n in found.nodes if isinstance(n, graph.Gather)]
    back = np.argsort(order)
    assert all(np.array_equal(r, order) or np.array_equal(r, back) for r in rows)
    assert len(rows) == (0 if np.array_equal(order, range(T)) else 2)


def test_windows_with_relative_positions_and_a_mask_of_their_own(tmp_path):
    """As in Swin: a bias for each head, the same in all windows, then a mask for each window."""
    w = Writer()
    relative, mask = np.random.default_rng(5).normal(0, 2, (1, H, 3, 3)), np.zeros((2, 1, 3, 3))
    mask[1, 0, :1, 1:] = mask[1, 0, 1:, :1] = -100.0

    def change(w, scores):
        scores = w.op("Reshape", w.op("Add", scores, relative), [1, 2, H, 3, 3])
        return w.op("Reshape", w.op("Add", scores, mask[None]), [2, H, 3, 3])

    node = attention_of(tmp_path, windows(w, SHIFTED, change), w)
    assert node.windows == 2 and node.bias.shape == (2, H, 3, 3)
    assert (node.bias[1, :, 0, 1:] < -50).all() and (node.bias[0] > -50).all()


# --- masks and biases --------------------------------------------------------------------------------------------


def nothing_masked(w, scores):
    """Hugging Face's (1 - mask) * -10000 with a mask of ones."""
    ones = w.op("Expand", 1.0, w.op("Shape", scores))
    return w.op("Add", scores, w.op("Mul", w.op("Sub", 1.0, ones), -1e4))


def where_of_ones(w, scores):
    return w.op("Where", np.ones((1, 1, T, T), bool), scores, np.float32(-np.inf))


def same_for_all_keys(w, scores):
    return w.op("Add", scores, w.normal(1, H, T, 1))


@pytest.mark.parametrize("change", [nothing_masked, where_of_ones, same_for_all_keys])
def test_a_mask_without_effect_vanishes(tmp_path, change):
    w = Writer()
    assert attention_of(tmp_path, w.attend(change), w).bias is None


BIAS = np.random.default_rng(3).normal(0, 2, (1, H, T, T))
CLOSED = np.random.default_rng(4).random((1, 1, T, T)) < 0.3
CLOSED[..., 0] = False
LEAST = np.finfo(np.float32).min


@pytest.mark.parametrize(
    "change, bias",
    [
        (lambda w, x: w.op("Add", x, BIAS), BIAS),
        (lambda w, x: w.op("Add", w.op("Add", x, BIAS), BIAS), 2 * BIAS),
        (lambda w, x: w.op("Where", CLOSED, np.float32(-np.inf), x), np.where(CLOSED, -1e4, 0)),
        (lambda w, x: w.op("Add", x, np.where(CLOSED, LEAST, np.float32(0))), np.where(CLOSED, -1e4, 0)),
        (lambda w, x: w.op("Add", x, np.where(CLOSED, -np.inf, np.float32(0))), np.where(CLOSED, -1e4, 0)),
    ],
    ids=["relative position", "two", "where", "least number", "minus infinity"],
)
def test_constant_bias_of_scores(tmp_path, change, bias):
    """It is the file's, lowered to at most zero in every row, which a softmax does not see."""
    w = Writer()
    got = attention_of(tmp_path, w.attend(change), w).bias
    wanted = np.broadcast_to((bias - bias.max(-1, keepdims=True))[0], (H, T, T))
    np.testing.assert_allclose(np.broadcast_to(got, (H, T, T)), wanted, rtol=1e-5, atol=1e-5)


def test_infinity_that_masks_nothing_is_refused(tmp_path):
    w = Writer()
    bias = np.zeros(D, np.float32)
    bias[3] = -np.inf
    y = w.op("Add", w.attend(lambda w, x: x), bias)
    name = w.nodes[-1].name
    (finding,) = check(w.save(tmp_path, y))
    assert finding.node == name and "only an attention mask" in finding.reason


@pytest.mark.parametrize("largest", [False, True])
def test_softmax_written_out(tmp_path, largest):
    w = Writer()
    q, k, v = w.heads()
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    if largest:
        scores = w.op("Sub", scores, w.op("ReduceMax", scores, [-1], keepdims=1))
    weights = w.op("Exp", scores)
    weights = w.op("Div", weights, w.op("ReduceSum", weights, [-1], keepdims=1))
    assert attention_of(tmp_path, w.side_by_side(w.op("MatMul", weights, v)), w).scale == 1


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx knows no Attention operator")
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_mask_of_the_operator(tmp_path, kind):
    w = Writer()
    mask = ~CLOSED if kind == "bool" else np.where(CLOSED, LEAST, np.float32(0))
    node = attention_of(tmp_path, w.side_by_side(w.op("Attention", *w.heads(), mask)), w, opset=23)
    assert ((np.broadcast_to(node.bias, (H, T, T)) < -1e3) == CLOSED[0]).all()


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx knows no Attention operator")
def test_causal_attention_is_a_mask(tmp_path):
    w = Writer()
    bias = attention_of(tmp_path, w.side_by_side(w.op("Attention", *w.heads(), is_causal=1)), w, opset=23).bias
    np.testing.assert_array_equal(bias[0] < -1e3, np.triu(np.ones((T, T), bool), 1))


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx knows no Attention operator")
def test_soft_cap_of_scores_is_an_activation_of_them(tmp_path):
    w = Writer()
    result = import_model(w.save(tmp_path, w.side_by_side(w.op("Attention", *w.heads(), softcap=5.0)), opset=23))
    caps = [n for n in result.nodes if isinstance(n, graph.Activation)]
    assert [n.form for n in caps] == ["tanh"] * H and not any(isinstance(n, graph.Attention) for n in result.nodes)
    assert sum(isinstance(n, graph.Softmax) for n in result.nodes) == H


def onnxruntime_attention(w, mask="", bias=""):
    x = w.tokens()
    return w.op("Attention", x, w.normal(D, 3 * D), w.normal(3 * D), mask, "", bias, num_heads=H, **MICROSOFT)


def onnxruntime_multi_head(w, mask="", bias=""):
    x = w.tokens()
    parts = [w.linear(x) for _ in range(3)]
    return w.op("MultiHeadAttention", *parts, "", mask, bias, num_heads=H, **MICROSOFT)


@pytest.mark.parametrize("form", [onnxruntime_attention, onnxruntime_multi_head])
def test_bias_and_open_mask_of_onnxruntimes_operators(tmp_path, form):
    pytest.importorskip("onnxruntime")
    w = Writer()
    node = attention_of(tmp_path, w.op("Identity", form(w, np.ones((1, T), np.int32), BIAS)), w)
    np.testing.assert_allclose(node.bias, (BIAS - BIAS.max(-1, keepdims=True))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [onnxruntime_attention, onnxruntime_multi_head])
def test_mask_of_onnxruntimes_operators_is_refused(tmp_path, form):
    w = Writer()
    y = form(w, np.array([[1, 1, 1, 1, 0, 0]], np.int32))
    (finding,) = check(w.save(tmp_path, y))
    assert finding.op.startswith("com.microsoft.") and "has a mask" in finding.reason


def with_positions(w, q, k, v):
    """Attention with positions that the queries see, which are products with what goes into the scores."""
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = w.op("Add", scores, w.op("MatMul", q, w.normal(1, H, D // H, T)))
    return w.side_by_side(w.op("MatMul", w.op("Softmax", scores, axis=-1), v))


def test_positions_computed_from_queries(tmp_path):
    """A second product with the queries, added to the scores: queries and keys become wider by it."""
    w = Writer()
    attention = attention_of(tmp_path, with_positions(w, *w.heads()), w)
    assert attention.balanced and attention.bias is None


def test_positions_computed_from_rotated_queries(tmp_path):
    """Scores as a value: a product for each row, and for each column, of the map. Proven against the file."""
    w, angle = Writer(), np.arange(T)[:, None] * 100.0 ** -np.repeat(np.arange(D // H // 2), 2)[None]
    cos, sin = (f(angle).astype(np.float32) for f in (np.cos, np.sin))

    def turned(x):
        pairs = w.op("Reshape", x, [1, H, T, D // H // 2, 2])
        first, second = (w.op("Slice", pairs, np.array([i]), np.array([i + 1]), np.array([4])) for i in (0, 1))
        other = w.op("Reshape", w.op("Concat", w.op("Neg", second), first, axis=4), [1, H, T, D // H])
        return w.op("Add", w.op("Mul", x, cos), w.op("Mul", other, sin))

    q, k, v = w.heads()
    q, k = turned(q), turned(k)
    places = w.op("Reshape", q, [H, 2, 3, D // H])  # rows and columns of the map, each with keys of its own
    down = w.op("MatMul", places, w.normal(2, D // H, 2))
    across = w.op("MatMul", w.op("Transpose", places, perm=[0, 2, 1, 3]), w.normal(3, D // H, 3))
    across = w.op("Transpose", across, perm=[0, 2, 1, 3])
    both = w.op("Add", w.op("Unsqueeze", down, np.array([4])), w.op("Unsqueeze", across, np.array([3])))
    scores = w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2]))
    scores = w.op("Add", scores, w.op("Reshape", both, [1, H, T, T]))
    path = w.save(tmp_path, w.side_by_side(w.op("MatMul", w.op("Softmax", scores, axis=-1), v)))
    rows = import_model(path)
    made = integers({"": rows}, {n: noise(s) for n, s in rows.inputs.items()})[""]
    image = {n: noise(s, seed=1)[0] for n, s in rows.inputs.items()}
    (wanted,), (found,) = graph.outputs(rows, graph.evaluate(rows, image)).values(), golden.run(made, image).outputs.values()
    assert 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found).sum()) > 25


def test_positions_computed_from_normalised_queries(tmp_path):
    """The norm of a head stays within the scores, so that what else reads it gets a norm of each head by itself."""
    w = Writer()
    q, k, v = w.heads()
    tables = 1 + w.normal(D // H, scale=0.1), w.normal(D // H, scale=0.1)
    q, k = (w.op("LayerNormalization", x, *tables, axis=-1) for x in (q, k))
    made = import_model(w.save(tmp_path, with_positions(w, q, k, v)))
    assert not any(isinstance(n, graph.LayerNorm) and n.heads > 1 and n.name.endswith("q") for n in made.nodes)
    assert sum(isinstance(n, graph.LayerNorm) and n.heads == 1 for n in made.nodes) >= H


def test_not_a_number_guard_of_a_softmax_vanishes(tmp_path):
    """PyTorch's scaled_dot_product_attention with a mask: where(isnan(p), 0, p)."""
    w = Writer()
    q, k, v = w.heads()
    p = w.op("Softmax", w.op("MatMul", q, w.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    p = w.op("Where", w.op("IsNaN", p), np.float32(0), p)
    assert attention_of(tmp_path, w.side_by_side(w.op("MatMul", p, v)), w).scale == 1


# --- activations -------------------------------------------------------------------------------------------------


def quick_gelu(w, x):
    return w.op("Mul", x, w.op("Sigmoid", w.op("Mul", x, 1.702)))


ACTIVATIONS = {
    "silu": (lambda w, x: w.op("Mul", w.op("Sigmoid", x), x), "silu", 1.0),
    "quick gelu": (quick_gelu, "silu", 1.702),
    "HardSwish": (lambda w, x: w.op("HardSwish", x), "hardswish", 1.0),
    "QuickGelu": (lambda w, x: w.op("QuickGelu", x, alpha=1.5, **MICROSOFT), "silu", 1.5),
    "Relu": (lambda w, x: w.op("Relu", x), "relu", 1.0),
    "Gelu of onnxruntime": (lambda w, x: w.op("Gelu", x, **MICROSOFT), "gelu", 1.0),
    "half precision between": (
        lambda w, x: w.op("Gelu", w.op("Cast", w.op("Cast", x, to=TensorProto.FLOAT16), to=TensorProto.FLOAT)),
        "gelu",
        1.0,
    ),
    "CastLike": (lambda w, x: w.op("Gelu", w.op("CastLike", x, x)), "gelu", 1.0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(tmp_path, name):
    if "Quick" in name or "onnxruntime" in name:
        pytest.importorskip("onnxruntime")
    activation, form, slope = ACTIVATIONS[name]
    w = Writer()
    path = w.save(tmp_path, w.linear(activation(w, w.linear(w.tokens()))))
    node = import_model(path).nodes[2]
    assert node.form == form and node.slope == pytest.approx(slope)


# --- what comes out ----------------------------------------------------------------------------------------------


def test_feature_map_and_two_heads_of_a_distilled_model(tmp_path):
    """The mean of two heads' logits is one product with both weights."""
    w = Writer()
    x = w.linear(w.tokens())
    one, other = (w.linear(w.op("Gather", x, np.int64(i), axis=1), D, 3) for i in range(2))
    y = w.op("Div", w.op("Add", one, other), 2.0)
    result = import_model(w.save(tmp_path, y, (1, 3)))
    assert result.outputs[0].shape == (3,)
    w = Writer()
    y = w.op("Reshape", w.op("Transpose", w.linear(w.tokens()), perm=[0, 2, 1]), [1, D, 2, 3])
    (output,) = import_model(w.save(tmp_path, y, (1, D, 2, 3))).outputs
    assert output.shape == (D, 2, 3) and output.transposed

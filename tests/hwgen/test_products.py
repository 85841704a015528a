"""Products of two computed values outside softmax attention of tokens: from ONNX to the machine, each form in small."""

from dataclasses import replace

import numpy as np
import pytest

import form_maker as maker
import test_machine as machine
from hwgen import graph as fg
from hwgen.errors import UserError
from hwgen.levels import import_model
from hwgen.leveltext import parse, text
from hwgen.qgraph import QGraph
from hwgen.quantise import quantise
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden, quantised

T, D, H = maker.T, maker.D, maker.H
TURNED = [0, 1, 3, 2]


def sides(w, count=3):
    x = w.norm(w.tokens())
    return [w.heads(w.linear(x)) for _ in range(count)]


def scores(w, q, k):
    return w.op("Mul", w.op("MatMul", q, w.op("Transpose", k, perm=TURNED)), 0.5)


def merged(w, y, perm=(0, 2, 1, 3)):
    return w.linear(w.op("Reshape", w.op("Transpose", y, perm=list(perm)), [1, T, D]))


def mixed(w, x):
    """Heads mixed with each other, each element of the scores by itself."""
    y = w.op("MatMul", w.op("Transpose", x, perm=[0, 2, 3, 1]), w.normal(H, H))
    return w.op("Transpose", w.op("Add", y, w.normal(H, scale=0.1)), perm=[0, 3, 1, 2])


def talking_heads(w):
    """As in CaiT (Touvron et al. 2021), before the softmax and after it."""
    q, k, v = sides(w)
    return merged(w, w.op("MatMul", mixed(w, w.op("Softmax", mixed(w, scores(w, q, k)), axis=-1)), v))


def mixed_scores(w):
    q, k, v = sides(w)
    return merged(w, w.op("MatMul", w.op("Softmax", mixed(w, scores(w, q, k)), axis=-1), v))


def biased_scores(w):
    """A bias of its own for every pair of tokens between the mixture of heads and the softmax."""
    q, k, v = sides(w)
    y = w.op("Add", mixed(w, scores(w, q, k)), w.normal(1, H, T, T))
    return merged(w, w.op("MatMul", w.op("Softmax", y, axis=-1), v))


def mixed_weights(w):
    """As in DeepViT (Zhou et al. 2021), without its norm."""
    q, k, v = sides(w)
    return merged(w, w.op("MatMul", mixed(w, w.op("Softmax", scores(w, q, k), axis=-1)), v))


def gated_positions(w):
    """As in ConViT (d'Ascoli et al. 2021): of each head a part of what it attends to is constant, and rows sum to one."""
    q, k, v = sides(w)
    gate = np.array([0.3, 0.6]).reshape(1, H, 1, 1)
    constant = np.exp(w.normal(1, H, T, T))
    constant = gate * constant / constant.sum(-1, keepdims=True)
    y = w.op("Add", w.op("Mul", w.op("Softmax", scores(w, q, k), axis=-1), 1 - gate), constant)
    y = w.op("Div", y, w.op("ReduceSum", y, np.array([-1]), keepdims=1))
    return merged(w, w.op("MatMul", y, v))


def cross_covariance(w):
    """As in XCiT (El-Nouby et al. 2021): channels of a head attend to each other, each of length one over all tokens."""
    parts = [w.op("Transpose", x, perm=TURNED) for x in sides(w)]
    q, k = (w.op("Div", x, w.op("ReduceL2", x, np.array([-1]), keepdims=1)) for x in parts[:2])
    y = w.op("Softmax", w.op("MatMul", q, w.op("Transpose", k, perm=TURNED)), axis=-1)
    return merged(w, w.op("MatMul", y, parts[2]), (0, 3, 1, 2))


def channel_attention(w):
    """As in DaViT (Ding et al. 2022): attention of channels within a head, without a norm."""
    q, k, v = (w.op("Transpose", x, perm=TURNED) for x in sides(w))
    return merged(w, w.op("MatMul", w.op("Softmax", scores(w, q, k), axis=-1), v), (0, 3, 1, 2))


def linear_attention(w):
    """Keys times values first (Katharopoulos et al. 2020), without the division by the sum of weights."""
    q, k, v = sides(w)
    q, k = w.op("Relu", q), w.op("Relu", k)
    return merged(w, w.op("MatMul", q, w.op("MatMul", w.op("Transpose", k, perm=TURNED), v)))


def relu_linear_attention(w):
    """As in EfficientViT (Cai et al. 2023): a column of ones beside the values makes the sums of the weights."""
    q, k, v = sides(w)
    return merged(w, divided(w, w.op("Relu", q), w.op("Relu", k), v))


def divided(w, q, k, v):
    v = w.op("Pad", v, np.array([0, 0, 0, 0, 0, 0, 0, 1]), np.float32(1))
    y = w.op("MatMul", q, w.op("MatMul", w.op("Transpose", k, perm=TURNED), v))
    values, sums = w.op("Split", y, np.array([D // H, 1]), axis=-1, outputs=2)
    return w.op("Div", values, w.op("Add", sums, 1e-5))


def small_sums(w):
    """The same of queries of which some are a hundredth of the others, and of values a thousand times the ones beside them."""
    q, k, v = sides(w)
    q = w.op("Mul", w.op("Relu", q), 10.0 ** -(np.arange(T) % 3).reshape(T, 1))
    return merged(w, divided(w, q, w.op("Relu", k), w.op("Mul", v, 1000.0)))


def retention(w):
    """In parallel form (Sun et al. 2023): decay instead of softmax, rotary positions, a norm of each head."""
    x = w.norm(w.tokens())
    q, k, v = (w.heads(w.linear(x)) for _ in range(3))
    half = D // H // 2
    angle = np.tile(np.arange(T)[:, None] * 0.3 ** np.arange(half), 2)

    def turned(x):
        a, b = w.op("Split", x, axis=-1, num_outputs=2, outputs=2)
        other = w.op("Concat", w.op("Neg", b), a, axis=-1)
        return w.op("Add", w.op("Mul", x, np.cos(angle)), w.op("Mul", other, np.sin(angle)))

    distance = np.arange(T)[:, None] - np.arange(T)
    decay = np.where(distance >= 0, np.array([0.9, 0.7]).reshape(1, H, 1, 1) ** np.maximum(distance, 0), 0.0)
    y = w.op("MatMul", w.op("Mul", w.op("MatMul", turned(q), w.op("Transpose", turned(k), perm=TURNED)), decay), v)
    return merged(w, w.op("LayerNormalization", y, np.ones(D // H), axis=-1))


def re_attention(w):
    """As in DeepViT: heads mixed after the softmax, and then a norm over the heads of each pair of tokens."""
    heads, depth = 10, 2
    x = w.norm(w.tokens())
    q, k, v = (
        w.op("Transpose", w.op("Reshape", w.linear(x, D, heads * depth), [1, T, heads, depth]), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    y = w.op("Transpose", w.op("Softmax", scores(w, q, k), axis=-1), perm=[0, 2, 3, 1])
    y = w.op("MatMul", y, w.normal(heads, heads))
    y = w.op("LayerNormalization", y, 1 + w.normal(heads, scale=0.2), w.normal(heads, scale=0.2), axis=-1)
    y = w.op("MatMul", w.op("Transpose", y, perm=[0, 3, 1, 2]), v)
    return w.linear(w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3]), [1, T, heads * depth]), heads * depth)


def additive_attention(w):
    """As in MobileViTv2 (Mehta and Rastegari 2022): one score a token, softmax over all tokens, a sum of keys by these."""
    x = w.op("Concat", *[w.norm(w.linear(w.tokens())) for _ in range(2)], axis=1)
    weights = w.op("Softmax", w.linear(x, D, 1), axis=1)
    context = w.op("ReduceSum", w.op("Mul", w.linear(x), weights), np.array([1]), keepdims=1)
    return w.linear(w.op("Mul", w.op("Relu", w.linear(x)), context))


def response_norm(w):
    """As in ConvNeXtV2 (Woo et al. 2023): channels by their lengths over all tokens, by the mean of these."""
    x = w.op("Gelu", w.linear(w.tokens(), D, 12))
    lengths = w.op("ReduceL2", x, np.array([1]), keepdims=1)
    y = w.op("Div", lengths, w.op("Add", w.op("ReduceMean", lengths, np.array([-1]), keepdims=1), 1e-6))
    y = w.op("Add", w.op("Mul", w.op("Mul", x, y), w.normal(12)), w.normal(12))
    return w.linear(w.op("Add", x, y), 12)


def norm_of_channels(w):
    """Each row of what is normalised holds a channel of all tokens."""
    x = w.op("Transpose", w.op("Concat", *[w.linear(w.tokens()) for _ in range(6)], axis=1), perm=[0, 2, 1])
    x = w.op("LayerNormalization", x, 1 + w.normal(6 * T, scale=0.2), axis=-1)
    return w.linear(w.op("Transpose", x, perm=[0, 2, 1]))


def relative_positions(w, shifted):
    """Biases of scores made of the queries, by rows and by columns of the map of 2 x 3 tokens: a table for each row or column
    (ViTDet, Li et al. 2022), or for columns one of all distances, shifted by a border (BoTNet, Srinivas et al. 2021)."""
    height, width, depth = 2, 3, D // H
    q, k, v = sides(w)
    places = w.op("Reshape", q, [H, height, width, depth])
    y = w.op("Reshape", scores(w, q, k), [H, height, width, height, width])
    rows = w.op("Einsum", places, w.normal(height, height, depth), equation="bhwc,hkc->bhwk")
    y = w.op("Add", y, w.op("Reshape", rows, [H, height, width, height, 1]))
    if shifted:
        far = w.op("MatMul", w.op("Reshape", places, [H * height, width, depth]), w.normal(depth, 2 * width - 1))
        far = w.op("Reshape", w.op("Pad", far, np.array([0, 0, 0, 0, 0, 1])), [H * height, 2 * width**2])
        far = w.op("Pad", far, np.array([0, 0, 0, width - 1]))
        far = w.op("Reshape", far, [H * height, width + 1, 2 * width - 1])
        columns = w.op("Slice", far, np.array([0, width - 1]), np.array([width, 2 * width - 1]), np.array([1, 2]))
    else:
        columns = w.op("Einsum", places, w.normal(width, width, depth), equation="bhwc,wkc->bhwk")
    y = w.op("Add", y, w.op("Reshape", columns, [H, height, width, 1, width]))
    weights = w.op("Softmax", w.op("Reshape", y, [1, H, T, T]), axis=-1)
    return merged(w, w.op("MatMul", weights, v))


PRODUCTS = [
    talking_heads,
    mixed_scores,
    biased_scores,
    mixed_weights,
    gated_positions,
    cross_covariance,
    channel_attention,
    linear_attention,
    relu_linear_attention,
    small_sums,
    retention,
    re_attention,
]
FORMS = [*PRODUCTS, norm_of_channels, additive_attention, response_norm]


def made(tmp_path, form):
    """(row graph, which equals the file; level Q; an image that calibration did not see)."""
    w = maker.Writer()
    graph = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, form(w), ["n", "t", D]))
    images = np.random.default_rng(1).standard_normal((25, *maker.IMAGE)).astype(np.float32)
    return graph, quantise({"": graph}, {"image": images[:24]})[""], {"image": images[24]}


@pytest.mark.parametrize("form", FORMS)
def test_from_onnx_to_the_machine(tmp_path, form):
    graph, level_q, image = made(tmp_path, form)
    kinds = {type(n) for n in graph.nodes}
    assert fg.Attention not in kinds and (fg.Product in kinds) == (form in PRODUCTS)
    agree(graph, level_q, image)


@pytest.mark.parametrize("shifted", [False, True])
def test_relative_positions_of_queries(tmp_path, shifted):
    graph, level_q, image = made(tmp_path, lambda w: relative_positions(w, shifted))
    (attention,) = [n for n in graph.nodes if isinstance(n, fg.Attention)]
    assert attention.bias is None and attention.balanced
    assert fg.shapes(graph)[attention.q] == (T, H * (D // H + 2 + 3))
    agree(graph, level_q, image)


def agree(graph, level_q, image):
    """Golden is level Q and near the row graph, the machine is golden."""
    level_m = select(level_q)
    found = golden.run(level_m, image).outputs
    for name, rows in quantised.outputs(level_q, quantised.evaluate(level_q, image)).items():
        np.testing.assert_array_equal(found[name], rows, name)
    for name, wanted in fg.outputs(graph, fg.evaluate(graph, image)).items():
        error = 10 * np.log10(np.square(wanted).sum() / np.square(wanted - found[name]).sum())
        assert error > 26, error
    sizes = {"bank_words": 4096, "scale_entries": 4096, "acc_rows": 64, "norm_columns": 256, "window_chunks": 1}
    program = schedule({"": level_m}, replace(machine.CONFIGS["12x20"], **sizes))
    machine.assert_equal(machine.run(program, image), found)


def test_sums_below_zero_are_refused(tmp_path):
    """Division by the largest of a row is a division by the sum only where weights are no negative numbers."""

    def signed(w):
        q, k, v = sides(w)
        v = w.op("Pad", v, np.array([0, 0, 0, 0, 0, 0, 0, 1]), np.float32(1))
        y = w.op("MatMul", q, w.op("MatMul", w.op("Transpose", k, perm=TURNED), v))
        values, sums = w.op("Split", y, np.array([D // H, 1]), axis=-1, outputs=2)
        return merged(w, w.op("Div", values, w.op("Add", sums, 1e-5)))

    with pytest.raises(UserError, match="Ratio.*some are below zero"):
        made(tmp_path, signed)


def test_logits_beyond_all_bits_are_refused(tmp_path):
    def masked(w):
        q, k, v = sides(w)
        mask = np.where(np.tri(T) > 0, 0.0, -1e5)
        return merged(w, w.op("MatMul", w.op("Softmax", w.op("Add", mixed(w, scores(w, q, k)), mask), axis=-1), v))

    with pytest.raises(UserError, match="Softmax.*logits up to 100000 leave no bits"):
        made(tmp_path, masked)


def test_text_of_level_q(tmp_path):
    _, level_q, _ = made(tmp_path, talking_heads)
    arrays = []
    written = text(level_q, arrays)
    assert text(parse(written, QGraph, arrays), []) == written


def test_a_number_times_a_product_costs_nothing(tmp_path):
    """0.5 times the scores is a step of the product, not a layer."""
    graph, _, _ = made(tmp_path, gated_positions)
    products = [n for n in graph.nodes if isinstance(n, fg.Product)]
    assert [n.scale for n in products] == [0.5] * H + [1.0] * H


def test_shapes_and_numbers_of_products():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(4, 3)
    nodes = [fg.Product("p", "a", "b", 2.0), fg.Transpose("t", "p"), fg.Softmax("s", "t")]
    graph = fg.Graph({"a": a.shape, "b": b.shape}, nodes, [])
    values = fg.evaluate(graph, {"a": a, "b": b}, np.float64)
    np.testing.assert_array_equal(values["p"], 2 * a @ b.T)
    np.testing.assert_array_equal(values["t"], values["p"].T)
    np.testing.assert_allclose(values["s"].sum(axis=1), 1)
    assert {n: fg.shapes(graph)[n] for n in "pts"} == {"p": (2, 4), "t": (4, 2), "s": (4, 2)}
    with pytest.raises(ValueError, match="p .Product.*times the transpose"):
        fg.shapes(fg.Graph({"a": a.shape, "b": (4, 2)}, nodes, []))

"""Forms that users bring and that need more than one node: each is proven against its file by the import itself."""

from __future__ import annotations

import numpy as np
import pytest

import form_maker as maker
from hwgen import graph
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim import golden

D, T, IMAGE = maker.D, maker.T, maker.IMAGE


def imported(tmp_path, form, shape=(1, T, D)) -> graph.Graph:
    w = maker.Writer()
    return import_model(w.write(tmp_path / "m.onnx", IMAGE, form(w), list(shape)))


def agrees(graph_: graph.Graph, least=20.0, image=IMAGE) -> None:
    """Golden of the graph within `least` dB of it."""
    data = np.random.default_rng(0).normal(0, 1, (8, *image)).astype(np.float32)
    integer = integers({"": graph_}, {"image": data})[""]
    got = [golden.run(integer, {"image": one}).outputs for one in data]
    for name in got[0]:
        wanted = [graph.outputs(graph_, graph.evaluate(graph_, {"image": one}))[name] for one in data]
        error = np.sum(np.square(np.stack(wanted) - np.stack([g[name] for g in got])))
        assert 10 * np.log10(np.sum(np.square(wanted)) / error) > least


def by_total(form):
    """Linear attention whose sum of weights is a product of its own."""

    def write(w):
        x = w.tokens()
        q, k, v = (w.linear(x) for _ in range(3))
        q, k = w.op("Relu", q), w.op("Relu", k)
        total = w.op("MatMul", q, w.op("Transpose", w.op("ReduceSum", k, [1]), perm=[0, 2, 1]))
        y = w.op("MatMul", q, w.op("MatMul", w.op("Transpose", k, perm=[0, 2, 1]), v))
        total = w.op("Add", total, np.float32(1e-3))
        return w.op("Div", y, total) if form == "Div" else w.op("Mul", y, w.op("Reciprocal", total))

    return write


@pytest.mark.parametrize("form", ["Div", "Mul"])
def test_rows_divided_by_a_total(tmp_path, form):
    made = imported(tmp_path, by_total(form))
    assert sum(isinstance(n, graph.Ratio) for n in made.nodes) == 1
    agrees(made)


@pytest.mark.parametrize("first", ["stream", "branch"])
def test_tokens_mixed_beside_a_stream(tmp_path, first):
    """A branch whose value has channels as rows joins a stream of tokens: one of the two is transposed."""

    def form(w):
        x = w.tokens()
        y = w.op("Relu", w.op("MatMul", w.normal(40, T), x))
        y = w.op("Add", w.op("MatMul", w.normal(T, 40, scale=0.2), y), w.normal(T, 1))
        return w.linear(w.op("Add", x, y) if first == "stream" else w.op("Add", y, x))

    agrees(imported(tmp_path, form))


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"])
def test_pools_of_a_map_whose_rows_are_channels(tmp_path, pool):
    """Behind an InstanceNormalization."""

    def form(w):
        x = w.op("InstanceNormalization", w.patches(), np.abs(w.normal(D)) + 0.5, w.normal(D))
        options = {} if pool.startswith("Global") else {"kernel_shape": [2, 2], "strides": [1, 1]}
        return w.op(pool, x, **options)

    agrees(imported(tmp_path, form, (1, D, 1, 1) if pool.startswith("Global") else (1, D, 1, 2)))


@pytest.mark.parametrize("function", ["Relu", "Tanh"])
def test_the_largest_of_values_and_zeros_around_them(tmp_path, function):
    """As the stem of HGNetV2 pads before it pools: behind a ReLU they change nothing."""

    def form(w):
        x = w.op("Pad", w.op(function, w.patches()), np.array([0, 0, 0, 0, 0, 0, 1, 1]))
        return w.as_tokens(w.op("MaxPool", x, kernel_shape=[2, 2], strides=[1, 1]))

    made = imported(tmp_path, form)
    assert any(isinstance(n, graph.Gather) for n in made.nodes) == (function == "Tanh"), "zeros as rows only where they count"
    agrees(made)


def test_a_product_by_axes_that_both_have_is_elementwise(tmp_path):
    """The mean of all tokens times each of six constant rows, as prompts that are chosen by likeness write it."""

    def form(w):
        mean = w.op("ReduceMean", w.tokens(), [1], keepdims=0)
        return w.linear(w.norm(w.op("Einsum", mean, w.normal(T, D), equation="bd,kd->bkd")))

    agrees(imported(tmp_path, form))


@pytest.mark.parametrize("before", ["linear", "conv", "sum"])
def test_leaky_relu(tmp_path, before):
    def form(w):
        x = w.tokens() if before == "conv" else w.linear(w.tokens())
        x = w.op("Add", x, w.linear(x)) if before == "sum" else x
        return w.linear(w.op("LeakyRelu", x, alpha=0.1))

    made = imported(tmp_path, form)
    assert sum(isinstance(n, graph.Activation) for n in made.nodes) == 1
    agrees(made)


@pytest.mark.parametrize("low, high", [(-0.5, None), (0.0, None), (None, 0.25), (-2.0, 0.5)])
@pytest.mark.parametrize("depthwise", [False, True])
def test_limits_on_one_side(tmp_path, low, high, depthwise):
    """What has no limit on one side keeps its reach there."""

    def form(w):
        x = w.patches()
        if depthwise:
            x = w.op("Conv", x, w.normal(D, 1, 3, 3), group=D, pads=[1] * 4, kernel_shape=[3, 3])
        limits = [np.float32(low) if low is not None else "", np.float32(high) if high is not None else ""]
        return w.as_tokens(w.op("Clip", x, *(limits if high is not None else limits[:1])))

    agrees(imported(tmp_path, form), 25.0)


def test_gathered_rows_that_are_added_to_their_own_product(tmp_path):
    """They are read where they lie, and are a value of their own all the same."""

    def form(w):
        x = w.linear(w.tokens())
        y = w.op("Gather", x, np.array([0, 0, 2, 2, 4, 4]), axis=1)
        return w.op("Add", y, w.linear(y))

    made = imported(tmp_path, form)
    assert any(isinstance(n, graph.Gather) for n in made.nodes)
    agrees(made)

@pytest.mark.parametrize("kind", ["flat", "pool", "joined pool"])
def test_more_tokens_than_a_kernel_is_wide(tmp_path, kind):
    """A layer of all tokens of a large map, the largest of them, and of two values side by side: in walks of two axes."""

    def form(w):
        x = w.op("Conv", "image", w.normal(D, 2, 1, 1), kernel_shape=[1, 1])
        if kind == "flat":
            y = w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 3, 1]), [1, 80 * D])
            return w.op("MatMul", y, w.normal(80 * D, 5, scale=0.05))
        if kind == "joined pool":
            x = w.op("Concat", x, w.op("Relu", x), axis=1)
        y = w.op("Squeeze", w.op("GlobalMaxPool", x), [2, 3])
        return w.op("MatMul", y, w.normal(2 * D if kind == "joined pool" else D, 5))

    w = maker.Writer()
    made = import_model(w.write(tmp_path / "m.onnx", (2, 8, 10), form(w), [1, 5]))
    kernels = [n.kernel if isinstance(n, graph.Window) else n.weight.shape[1:3] for n in made.nodes
               if isinstance(n, graph.Window | graph.Conv)]  # fmt: skip
    assert all(max(k) <= 63 for k in kernels)
    agrees(made, image=(2, 8, 10))


@pytest.mark.parametrize("first", ["stream", "branch"])
def test_sums_of_maps_that_were_normalised_as_one_row(tmp_path, first):
    """GroupNorm of one group, as PyTorch's exporter writes it, before a stream of tokens."""

    def form(w):
        x = w.op("InstanceNormalization", w.op("Reshape", w.patches(), [1, 1, -1]), np.ones(1), np.zeros(1))
        x = w.op("Mul", w.op("Reshape", x, [1, D, 2, 3]), 1 + w.normal(D, 1, 1, scale=0.2))
        x = w.as_tokens(w.op("Add", x, w.normal(D, 1, 1)))
        y = w.linear(w.norm(x))
        return w.linear(w.op("Add", x, y) if first == "stream" else w.op("Add", y, x))

    agrees(imported(tmp_path, form))


def masks_of_queries(w):
    """As in MaskFormer (Cheng et al. 2021): each query times each pixel of a map."""
    queries = w.op("Slice", w.linear(w.tokens()), np.array([0]), np.array([2]), np.array([1]))
    return w.op("Einsum", queries, w.patches(), equation="bqc,bchw->bqhw")


def largest_of_values_and_zeros(w):
    """As in BiT (Kolesnikov et al. 2020), whose stem pads by zeros before it pools."""
    x = w.op("Pad", w.op("Sub", w.patches(), np.float32(2)), np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    return w.as_tokens(w.op("MaxPool", x, kernel_shape=[2, 2]))


def normalised_image_with_a_border(w):
    """Mean and deviation of the pixels in the file, and a stem that pads."""
    mean, deviation = np.array([0.5, 0.3]).reshape(1, 2, 1, 1), np.array([0.2, 0.3]).reshape(1, 2, 1, 1)
    x = w.op("Div", w.op("Sub", "image", mean), deviation)
    return w.as_tokens(w.patches(x, kernel_shape=[3, 3], pads=[1, 1, 0, 0]))


def groups_through_a_function(w):
    """GroupNorm, ReLU and a convolution of every other place."""
    x = w.op("InstanceNormalization", w.op("Reshape", w.patches(), [1, 4, -1]), np.ones(4), np.zeros(4))
    x = w.op("Relu", w.op("Reshape", x, [1, D, 2, 3]))
    return w.as_tokens(w.op("Conv", x, w.normal(D, D, 1, 1), kernel_shape=[1, 1], strides=[2, 2]))


def standardised_weights(w):
    """Weights that a batch norm in training mode standardises (BiT)."""
    x = w.op("Reshape", w.normal(D, D, 1, 1), [1, D, D])
    none = np.zeros(D, np.float32)
    x = w.op("BatchNormalization", x, np.ones(D), none, none, none, outputs=3, training_mode=1)[0]
    return w.as_tokens(w.op("Conv", w.patches(), w.op("Reshape", x, [D, D, 1, 1]), kernel_shape=[1, 1]))


def gates_of_one_channel(w):
    """As in GLPN (Kim et al. 2022): a map for every value of two, times all channels."""
    gate = w.op("Sigmoid", w.op("Conv", w.patches(), w.normal(2, D, 1, 1), kernel_shape=[1, 1]))
    first, second = w.op("Split", gate, np.array([1, 1]), axis=1, outputs=2)
    x = w.patches()
    return w.as_tokens(w.op("Add", w.op("Mul", x, first), w.op("Mul", w.op("Relu", x), second)))


def outer_products(w):
    """As in hyper-connections (Zhu et al. 2024): tokens by a few computed weights each, put into two streams."""
    x = w.op("Einsum", w.linear(w.tokens()), w.op("Tanh", w.linear(w.tokens(), D, 2)), equation="abc,abd->abdc")
    return w.linear(w.op("Reshape", x, [1, T, 2 * D]), 2 * D)


def small_products(w):
    """A product of 2 x 2 matrices for each of 66 places, more than heads."""
    a, b = (w.op("Reshape", w.linear(w.op("Concat", *[w.tokens()] * 11, axis=1), D, 4), [66, 2, 2]) for _ in range(2))
    return w.op("Reshape", w.op("MatMul", a, b), [1, 66, 4])


def constants_of_repeated_rows(w):
    """Each token twice, times constants of which each of the two has its own."""
    x = w.op("Expand", w.op("Reshape", w.linear(w.tokens()), [T, 1, D]), np.array([T, 2, D]))
    return w.op("Reshape", w.op("Add", w.op("Mul", x, w.normal(T, 2, 1)), w.normal(T, 2, 1)), [1, 2 * T, D])


def chosen_by_constants(w):
    a, b = w.linear(w.tokens()), w.op("Relu", w.linear(w.tokens()))
    return w.op("Where", (np.arange(T) == 2)[:, None], np.float32(0.5), w.op("Where", np.arange(D) % 3 > 0, a, b))


def scores_over_all_tokens(w):
    """As in SwiftFormer (Shaker et al. 2023): a number for each of many tokens, of length one over all, times the tokens."""
    x = w.linear(w.op("Concat", *[w.tokens()] * 11, axis=1))
    scores = w.linear(x, D, 1)
    scores = w.op("Div", scores, w.op("ReduceL2", scores, np.array([1]), keepdims=1))
    return w.linear(w.op("Add", w.op("ReduceSum", w.op("Mul", x, scores), np.array([1]), keepdims=1), x))


def pairs_turned_unevenly(w):
    """Neighbours in heads turned by cosines of which the two of a pair have different ones (V-JEPA 2): no rotation."""
    x = w.linear(w.op("Concat", w.tokens(), w.linear(w.tokens()), axis=2), 2 * D, 3 * D)
    x = w.op("Transpose", w.op("Reshape", x, [1, T, 2, -1]), perm=[0, 2, 1, 3])
    first, second = w.op("Split", w.op("Reshape", x, [1, 2, T, -1, 2]), np.array([1, 1]), axis=4, outputs=2)
    other = w.op("Reshape", w.op("Concat", w.op("Neg", second), first, axis=4), [1, 2, T, -1])
    angles = w.normal(T, 3 * D // 2)
    y = w.op("Add", w.op("Mul", x, np.cos(angles)), w.op("Mul", other, np.sin(angles)))
    return w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3]), [1, T, 3 * D])


@pytest.mark.parametrize(
    "form, shape",
    [
        (outer_products, (1, T, D)),
        (small_products, (1, 66, 4)),
        (constants_of_repeated_rows, (1, 2 * T, D)),
        (chosen_by_constants, (1, T, D)),
        (scores_over_all_tokens, (1, 66, D)),
        (pairs_turned_unevenly, (1, T, 3 * D)),
        (masks_of_queries, (1, 2, 2, 3)),
        (largest_of_values_and_zeros, (1, 2, D)),
        (normalised_image_with_a_border, (1, 6, D)),
        (groups_through_a_function, (1, 2, D)),
        (standardised_weights, (1, T, D)),
        (gates_of_one_channel, (1, T, D)),
    ],
)
def test_forms_of_decoders_and_stems(tmp_path, form, shape):
    agrees(imported(tmp_path, form, shape), 26)


def test_overlapping_windows_added_up(tmp_path):
    """`fold`, as VOLO's outlook attention ends."""

    def form(w):
        taps = w.op("Transpose", w.linear(w.tokens(), D, 4 * D), perm=[0, 2, 1])
        return w.op("Col2Im", taps, np.array([3, 4]), np.array([2, 2]))

    agrees(imported(tmp_path, form, (1, D, 3, 4)))


def test_channels_of_zeros(tmp_path):
    agrees(imported(tmp_path, lambda w: w.norm(w.op("Pad", w.tokens(), np.array([0, 0, 2, 0, 0, 0])), D + 2), (1, T, D + 2)))


def test_masks_of_queries_over_pixels(tmp_path):
    """Queries by pixels, as MaskFormer's last product gives them: the pixels stream, and the host turns what they make."""
    height, width = 24, 20

    def form(w):
        x = w.op("Resize", w.patches(), "", "", np.array([1, D, height, width]), mode="nearest")
        pixels = w.op("Conv", x, w.normal(16, D, 1, 1), w.normal(16), kernel_shape=[1, 1])
        return w.op("Einsum", w.linear(w.tokens(), D, 16), pixels, equation="bqc,bchw->bqhw")

    made = imported(tmp_path, form, (1, T, height, width))
    product = made.node(made.outputs[0].value)
    assert isinstance(product, graph.Product) and made.outputs[0].transposed
    assert graph.shapes(made)[product.name] == (height * width, T)
    agrees(made)

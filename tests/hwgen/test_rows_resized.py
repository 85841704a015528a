"""Maps and images that a network resizes, what is projected before or behind, means of whole maps, values side by side: few
products and copies, the same as the ONNX model in floats, and golden and machine alike."""

from dataclasses import replace

import numpy as np
import pytest

import form_maker as maker
import test_machine as machine
from hwgen import graph, qgraph
from hwgen.compare import compare
from hwgen.errors import UserError
from hwgen.intgraph import ReduceWindow
from hwgen.levels import import_model
from hwgen.quantise import quantise
from hwgen.rows import apart
from hwgen.schedule import schedule
from hwgen.select import select
from hwgen.sim import golden

D = maker.D


def resized_image(w):
    """Patches of an image of a size that the network chooses (CrossViT, Chen et al. 2021)."""
    x = w.op("Resize", "image", "", "", np.array([1, 2, 6, 9]), mode="cubic")
    return w.as_tokens(w.op("Conv", x, w.normal(D, 2, 2, 3), w.normal(D), kernel_shape=[2, 3], strides=[2, 3]))


def fused(bias=True, mode="linear", shared=False, width=D):
    """Projections of two maps, one made as large as the other, fused (SegFormer, Xie et al. 2021)."""

    def form(w):
        small = w.patches()
        large = w.op("Conv", "image", w.normal(16, 2, 1, 1), w.normal(16), kernel_shape=[1, 1])
        small = w.op("Conv", small, w.normal(16, D, 1, 1), kernel_shape=[1, 1])
        small = w.op("Relu", small)
        one = w.op("Conv", small, w.normal(32, 16, 1, 1), *([w.normal(32)] if bias else []), kernel_shape=[1, 1])
        two = w.op("Conv", w.op("Relu", large), w.normal(32, 16, 1, 1), w.normal(32), kernel_shape=[1, 1])
        larger = w.op("Resize", one, "", np.array([1, 1, 2, 2], np.float32), mode=mode)
        y = w.op("Conv", w.op("Concat", larger, two, axis=1), w.normal(width, 64, 1, 1), kernel_shape=[1, 1])
        y = w.as_tokens(w.op("Relu", y))
        if not shared:
            return y
        return w.op("Concat", y, w.as_tokens(w.op("Conv", one, w.normal(width, 32, 1, 1), kernel_shape=[1, 1])), axis=1)

    return form


def averaged(height, width):
    """Squeeze and excitation (Hu et al. 2018) of a map of `height` x `width` behind a depthwise convolution."""

    def form(w):
        x = w.op("Resize", w.patches(), "", "", np.array([1, D, height, width]), mode="nearest")
        x = w.op("Conv", x, w.normal(D, 1, 3, 3), group=D, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
        row = w.op("Conv", w.op("GlobalAveragePool", x), w.normal(D, D, 1, 1), kernel_shape=[1, 1])
        y = w.as_tokens(w.op("Mul", x, row))
        return w.op("ReduceMean", y, [1], keepdims=1)

    return form


def linear_attention(w):
    """ReLU linear attention, whose weights a column of ones beside the values sums up (EfficientViT, Cai et al. 2023)."""
    x = w.patches(kernel_shape=[1, 1], strides=[1, 1])
    positive = np.full(D, 3, np.float32)  # no token without weights, which would be nothing divided by nothing
    qkv = [w.op("Conv", x, w.normal(D, D, 1, 1), positive, kernel_shape=[1, 1]) for _ in range(3)]
    q, k, v = (w.op("Reshape", y, [1, 2, D // 2, 24]) for y in qkv)
    q, k = w.op("Relu", q), w.op("Relu", k)
    v = w.op("Pad", w.op("Transpose", v, perm=[0, 1, 3, 2]), [0, 0, 0, 0, 0, 0, 0, 1], np.array(1, np.float32))
    y = w.op("MatMul", w.op("Transpose", q, perm=[0, 1, 3, 2]), w.op("MatMul", k, v))
    top, bottom = (w.op("Slice", y, [a], [b], [3]) for a, b in ((0, D // 2), (D // 2, D // 2 + 1)))
    y = w.op("Transpose", w.op("Div", top, w.op("Add", bottom, np.array(1e-6, np.float32))), perm=[0, 2, 1, 3])
    return w.linear(w.op("Reshape", y, [1, 24, D]))


def joined_and_activated(w):
    x = w.patches()
    parts = [w.op("Conv", x, w.normal(16, D, 1, 1), w.normal(16), kernel_shape=[1, 1]) for _ in range(2)]
    y = w.op("Relu", w.op("Concat", *parts, axis=1))
    return w.linear(w.op("Transpose", w.op("Reshape", y, [1, 32, 6]), perm=[0, 2, 1]), 32, D)


def gated_by_columns(w):
    """A map of which each column is weighted by its own mean (coordinate attention, Hou et al. 2021)."""
    x = w.op("Resize", w.patches(), "", "", np.array([1, D, 64, 65]), mode="nearest")
    x = w.op("Relu", w.op("Conv", x, w.normal(D, D, 3, 1), pads=[1, 0, 1, 0], kernel_shape=[3, 1]))
    return w.as_tokens(w.op("Mul", x, w.op("Sigmoid", w.op("ReduceMean", x, [2], keepdims=1))))


def tall_kernel(w):
    """A depthwise convolution of more taps along an axis than a walk has, by the bits that count them."""
    x = w.op("Resize", w.patches(), "", "", np.array([1, D, 40, 3]), mode="nearest")
    return w.as_tokens(w.op("Conv", x, w.normal(D, 1, 64, 1), group=D, pads=[32, 0, 31, 0], kernel_shape=[64, 1]))


FORMS = {
    "gated by columns": gated_by_columns,
    "tall kernel": tall_kernel,
    "image": resized_image,
    "fused": fused(),
    "fused without bias": fused(bias=False),
    "linear attention": linear_attention,
    "joined and activated": joined_and_activated,
    "mean": averaged(4, 6),
    "mean of parts": averaged(24, 17),
    "mean of no map of windows": averaged(1, 29),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_on_golden_and_machine(tmp_path, form):
    w = maker.Writer()
    made = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, form(w), [1, "t", D]))  # compares with the ONNX model
    images = np.random.default_rng(0).normal(size=(8, *maker.IMAGE)).astype(np.float32)
    integer = select(quantise({"": made}, {"image": images})[""])
    found = compare(made, integer, {"image": images[:3]}, golden.run)
    assert min(o.snr_db for o in found.outputs) > 28
    image = {"image": images[0]}
    sizes = {"bank_words": 16384, "scale_entries": 16384, "acc_rows": 64, "norm_columns": 256, "window_chunks": 1}
    program = schedule({"": integer}, replace(machine.CONFIGS["12x20"], **sizes))
    machine.assert_equal(machine.run(program, image), golden.run(integer, image).outputs)


def test_patches_of_a_resized_image_are_one_convolution(tmp_path):
    """Not a product for each row and column of patches: one for each of the three that lie beside each other."""
    _, kinds = maker.imported(tmp_path, resized_image, (1, 9, D))
    assert (kinds.count("Conv"), kinds.count("Join"), kinds.count("Linear"), kinds.count("Multiply")) == (1, 0, 3, 0)


@pytest.mark.parametrize(
    ("form", "layers"),
    [
        (fused(), 2),  # in front of each Relu one, that fuses
        (fused(bias=False), 2),
        (fused(mode="nearest"), 2),
        (fused(shared=True), 5),  # something else reads the projection
    ],
)
def test_projections_go_behind_what_makes_maps_larger(tmp_path, form, layers):
    w = maker.Writer()
    made = import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, form(w), [1, "t", D]))
    linear = [n for n in made.nodes if isinstance(n, graph.Linear | graph.Conv)]  # the one that fuses is of one tap
    assert len(linear) == layers, [n.name for n in linear]
    assert max(n.weight.shape[-1] for n in linear) == (32 if layers == 2 else 64)


@pytest.mark.parametrize(
    ("size", "steps"), [((4, 6), [(4, 6)]), ((16, 16), [(16, 16)]), ((24, 17), None), ((32, 24), [(2, 2), (12, 16)])]
)
def test_means_of_maps_are_windows(tmp_path, size, steps):
    found, kinds = maker.imported(tmp_path, averaged(*size), (1, 1, D))
    means = [n for n in found.nodes if isinstance(n, graph.Window) and n.form == "mean"]
    if steps is None:
        assert "Mean" in kinds and not means
        return
    assert "Mean" not in kinds and sorted({n.kernel for n in means}) == sorted(steps)


def test_a_network_without_windows_needs_no_engine_for_its_mean(tmp_path):
    found, kinds = maker.imported(tmp_path, lambda w: w.op("ReduceMean", w.tokens(), [1], keepdims=1), (1, 1, D))
    assert kinds.count("Mean") == 1 and "Window" not in kinds


def test_as_many_heads_as_the_limit_are_divided_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "MOST_HEADS", 2)
    _, kinds = maker.imported(tmp_path, linear_attention, (1, 24, D))
    assert kinds.count("Ratio") == 2


def test_ones_beside_values_are_an_output_of_their_layer(tmp_path):
    found, kinds = maker.imported(tmp_path, linear_attention, (1, 24, D))
    assert kinds.count("Ratio") == 2
    joined = [n for n in found.nodes if isinstance(n, graph.Join) and len(n.xs) == 2 and graph.shapes(found)[n.name][1] == 5]
    wide = [n for n in found.nodes if isinstance(n, graph.Linear) and len(n.weight) == 10]
    assert not joined and len(wide) == 1 and not wide[0].weight[[4, 9]].any() and (wide[0].bias[[4, 9]] == 1).all()


def test_heads_of_linear_attention_take_few_operations(tmp_path):
    """Values of both heads are turned at once, keys, whose layers read values of their own, are not; products of keys and values
    are made the way that they are read; heads are made side by side."""
    found, kinds = maker.imported(tmp_path, linear_attention, (1, 24, D))
    made = {n.name: n for n in found.nodes}
    of_layers = [n for n in found.nodes if isinstance(n, graph.Transpose) and isinstance(made[n.x], graph.Linear)]
    of_products = [n for n in found.nodes if isinstance(n, graph.Transpose) and isinstance(made[n.x], graph.Product)]
    assert sorted(len(made[n.x].weight) for n in of_layers) == [10] and kinds.count("Product") == 4
    lowered = quantise({"": found}, None)[""]
    assert len(of_products) == 2 and not {n.x for n in of_products} & {n.name for n in lowered.nodes}
    assert not any(isinstance(op, ReduceWindow) for op in select(lowered).ops)


def test_steps_of_a_sum_are_reached_by_one_row_of_factors(tmp_path):
    """A sum so much larger than the activation that it begins with that they share no steps."""

    def form(w):
        y = w.op("Relu", w.linear(w.tokens()))
        return w.op("Add", y, w.op("Mul", w.linear(y), np.float32(30)))

    lowered = quantise({"": maker.imported(tmp_path, form)[0]}, None)[""]
    (factors,) = [n for n in lowered.nodes if isinstance(n, qgraph.Table)]
    assert lowered.values[factors.name].rows == 1


def test_what_is_joined_is_activated_as_it_is_made(tmp_path):
    found, _ = maker.imported(tmp_path, joined_and_activated)
    made = {n.name: n for n in found.nodes}
    activations = [n for n in found.nodes if isinstance(n, graph.Activation)]
    assert len(activations) == 2 and all(isinstance(made[n.x], graph.Linear) for n in activations)


def test_a_head_of_one_of_several_values_side_by_side_reads_that_one(tmp_path):
    """Of activations of two layers side by side, of which channels of one go into a layer (EfficientViT, Cai et al. 2023)."""

    def form(w):
        x = w.tokens()
        y = w.op("Relu", w.op("Concat", w.linear(x), w.linear(w.op("Tanh", x)), axis=2))
        parts = w.op("Split", y, np.array([4, D, D - 4]), axis=2, outputs=3)
        return w.op("Concat", *(w.op("MatMul", p, w.normal(n, 4)) for p, n in zip(parts, (4, D, D - 4), strict=True)), axis=2)

    found, _ = maker.imported(tmp_path, form, (1, maker.T, 12))
    made = {n.name: n for n in found.nodes}
    read = [made[n.x] for n in found.nodes if isinstance(n, graph.Linear)]
    assert [isinstance(x, graph.Activation) for x in read].count(True) == 2 + 1, [type(x) for x in read]
    assert [isinstance(x, graph.Join) for x in read].count(True) == 1


def test_convolutions_that_no_walk_holds_are_refused(tmp_path):
    def refused(slide, message, size=(1, 1)):
        w = maker.Writer()
        y = w.op("Conv", w.patches(), w.normal(D, D, *size), kernel_shape=size, **slide)
        with pytest.raises(UserError, match=message):
            import_model(w.write(tmp_path / "m.onnx", maker.IMAGE, w.as_tokens(y), [1, "t", D]))

    refused({"pads": [40, 0, 40, 0]}, "convolves with 64 taps along an axis", (64, 1))
    refused({"pads": [0, 70, 0, 70], "dilations": [1, 64]}, "convolves taps 64 apart over a border", (1, 3))

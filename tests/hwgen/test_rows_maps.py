"""Feature maps, windows and streams of tokens on their way to the row graph: each form is proven against its ONNX file by
`import_model`, and has the nodes that the machine runs fast."""


import numpy as np
import pytest

import form_maker as maker
from hwgen import graph

D, H, T, imported = maker.D, maker.H, maker.T, maker.imported


def other_windows(w):
    """Attention of the first three tokens to the others and back."""
    x = w.tokens()
    q, k, v = (w.op("Reshape", w.linear(x), [2, 3, H, D // H]) for _ in range(3))
    k = w.op("Gather", k, np.array([1, 0]), axis=0)
    return w.attend(*(w.op("Transpose", t, perm=[0, 2, 1, 3]) for t in (q, k, v)))


def merged_patches(w):
    x = w.op("Reshape", w.tokens(), [1, 1, 2, 3, D])
    x = w.op("Reshape", w.op("Transpose", x, perm=[0, 1, 3, 2, 4]), [1, 3, 2 * D])
    return w.linear(w.norm(x, 2 * D), 2 * D, D)


def patches_merged_by_channel(w):
    """Channels of merged patches as `Rearrange("b c (h p) (w q) -> b (c p q) h w")` leaves them: those of one pixel apart."""
    x = w.op("Resize", w.patches(), "", np.array([1, 1, 2, 2], np.float32), mode="nearest")
    x = w.op("Reshape", x, [1, D, 2, 2, 3, 2])
    x = w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 4, 1, 3, 5]), [1, T, 4 * D])
    return w.linear(w.norm(x, 4 * D), 4 * D, D)


def joined_tokens(w):
    x = w.tokens()
    return w.op("Concat", w.linear(x), w.norm(x), axis=1)


def shifted(w):
    x = w.tokens()
    return w.op("Add", x, w.op("Gather", w.linear(x), np.array([2, 3, 4, 5, 0, 1]), axis=1))


def convolutions_before_patches(w):
    x = w.op("Relu", w.patches(kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]))
    x = w.op("Conv", x, w.normal(D, D, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    return w.as_tokens(x)


def grouped_convolution(w):
    y = w.op("Conv", "image", w.normal(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2], group=2)
    return w.as_tokens(y)


def largest_of_tokens(w):
    return w.op("ReduceMax", w.norm(w.tokens()), [1], keepdims=1)


def depthwise(w):
    y = w.op("Conv", w.patches(), w.normal(D, 1, 3, 3), w.normal(D), group=D, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    return w.as_tokens(y)


def groups_of_two(w):
    y = w.op("Conv", w.op("Relu", w.patches()), w.normal(D, 2, 3, 3), group=4, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    return w.as_tokens(y)


def groups_alone(w):
    y = w.op("Conv", w.op("Relu", w.patches()), w.normal(D, 2, 1, 1), w.normal(D), group=4, kernel_shape=[1, 1])
    return w.as_tokens(y)


def normalised_beside(w):
    """A convolution whose result is read as it is and normalised (as MaxViT's stem): computed once."""
    y = w.op("Conv", w.op("Relu", w.patches()), w.normal(D, D, 3, 3), w.normal(D), pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    parameters = 1 + w.normal(D, scale=0.2), w.normal(D), w.normal(D), w.rng.uniform(0.5, 2, D)
    z = w.op("Conv", w.op("BatchNormalization", y, *parameters), w.normal(D, D, 1, 1), w.normal(D), kernel_shape=[1, 1])
    return w.as_tokens(w.op("Add", w.op("Relu", y), w.op("Relu", z)))


def pooled(kind, **attributes):
    def form(w):
        return w.as_tokens(w.op(kind, w.patches(), kernel_shape=[2, 3], pads=[1, 1, 0, 1], **attributes))

    return form


def squeeze_and_excite(w):
    x = w.patches()
    row = w.op("Conv", w.op("GlobalAveragePool", x), w.normal(D, D, 1, 1), kernel_shape=[1, 1])
    return w.as_tokens(w.op("Mul", x, row))


def outer_product(w):
    """A row for all tokens times a number for each, as focal modulation has it (Yang et al. 2022)."""
    x = w.patches()
    row = w.op("Relu", w.op("GlobalAveragePool", x))
    number = w.op("Conv", x, w.normal(1, D, 1, 1), kernel_shape=[1, 1])
    return w.as_tokens(w.op("Add", w.op("Mul", row, number), x))


def large_kernel(**slide):
    """Kernels of more taps than the machine takes at once, here nine rows of nine, over a map of four rows of six."""

    def written(w):
        x = w.op("Resize", w.patches(), "", np.array([1, 1, 2, 2], np.float32), mode="nearest")
        return w.as_tokens(w.op("Conv", x, w.normal(D, 1, 9, 9), w.normal(D), group=D, kernel_shape=[9, 9], **slide))

    return written


def upsampled(w):
    return w.as_tokens(w.op("Resize", w.patches(), "", np.array([1, 1, 2, 2], np.float32), mode="nearest"))


def smoothly_upsampled(w):
    return w.as_tokens(w.op("Resize", w.patches(), "", np.array([1, 1, 2, 2], np.float32), mode="linear"))


def resized(height, width, mode, **attributes):
    """A map [2, 3] to another size, by any ratios."""

    def form(w):
        return w.as_tokens(w.op("Resize", w.patches(), "", "", np.array([1, D, height, width]), mode=mode, **attributes))

    return form


def large_map_resized(to):
    """A map of 96 rows, more than a kernel is tall, to so many."""

    def form(w):
        x = w.op("Resize", w.patches(), "", "", np.array([1, D, 96, 3]), mode="nearest")
        return w.as_tokens(w.op("Resize", x, "", "", np.array([1, D, to, 3]), mode="linear"))

    return form


def reduced_keys(w):
    """Keys and values of a map that a convolution has made smaller."""
    x = w.patches()
    small = w.op("Conv", x, w.normal(D, D, 2, 1), kernel_shape=[2, 1], strides=[2, 1])
    small = w.op("Transpose", w.op("Reshape", small, [1, D, 3]), perm=[0, 2, 1])
    q = w.heads(w.linear(w.as_tokens(x)))
    k, v = (w.op("Transpose", w.op("Reshape", w.linear(small), [1, 3, H, D // H]), perm=[0, 2, 1, 3]) for _ in range(2))
    return w.linear(w.attend(q, k, v))


def channels_in_two(w):
    first, second = w.op("Split", w.tokens(), [3, 5], outputs=2, axis=2)
    return w.op("Concat", w.linear(second, 5, 5), w.op("Relu", first), axis=2)


def pixels_shuffled(w):
    """Four tokens of each, as a transposed convolution whose kernel is its stride."""
    x = w.op("Reshape", w.linear(w.tokens(), D, 4 * D), [1, 2, 3, 2, 2, D])
    return w.linear(w.op("Reshape", w.op("Transpose", x, perm=[0, 1, 3, 2, 4, 5]), [1, 4 * T, D]))


TAKEN = {
    "windows attend to each other": (other_windows, (1, T, D), {"Attention": 1}),
    "patch merging": (merged_patches, (1, 3, D), {"Join": 1, "LayerNorm": 1}),
    "joined tokens": (joined_tokens, (1, 2 * T, D), {"Stack": 1}),
    "shifted": (shifted, (1, T, D), {"Gather": 1, "Add": 1}),
    "stem": (convolutions_before_patches, (1, "t", D), {"PatchEmbed": 1, "Conv": 1, "Gather": 0}),
    "largest of tokens": (largest_of_tokens, (1, 1, D), {"Window": 1}),
    "depthwise": (depthwise, (1, T, D), {"Window": 1, "Gather": 0}),
    "groups": (groups_of_two, (1, T, D), {"Conv": 1}),
    "groups of channels": (groups_alone, (1, T, D), {"Linear": 1, "Conv": 0, "Join": 0}),
    "normalised beside": (normalised_beside, (1, T, D), {"Conv": 1, "Linear": 1}),
    "mean with border": (pooled("AveragePool", count_include_pad=1), (1, "t", D), {"Window": 1, "Linear": 0}),
    "mean within border": (pooled("AveragePool", count_include_pad=0), (1, "t", D), {"Window": 1, "Multiply": 0}),
    "largest": (pooled("MaxPool", strides=[1, 2]), (1, "t", D), {"Window": 1, "Gather": 0}),
    "squeeze and excite": (squeeze_and_excite, (1, T, D), {"Mean": 1, "Multiply": 1, "Gather": 0}),
    "merged by channel": (patches_merged_by_channel, (1, T, D), {"LayerNorm": 1, "Linear": 1}),
    "outer product": (outer_product, (1, T, D), {"Mean": 1, "Multiply": 1}),
    "large kernel": (large_kernel(pads=[4, 4, 4, 4]), (1, 4 * T, D), {"Window": 2, "Add": 1}),
    "large kernel, strides": (large_kernel(pads=[4, 4, 3, 5], strides=[2, 1]), (1, "t", D), {"Window": 2, "Add": 1}),
    "kernel mostly beyond the map": (large_kernel(pads=[8] * 4, dilations=[2, 2]), (1, 4 * T, D), {"Window": 1, "Add": 0}),
    "nearest": (upsampled, (1, 4 * T, D), {"Gather": 1}),
    "linear": (smoothly_upsampled, (1, 4 * T, D), {"Multiply": 0}),
    "reduced keys": (reduced_keys, (1, T, D), {"Conv": 1, "Attention": 1, "Gather": 0}),
    "channels": (channels_in_two, (1, T, D), {"Join": 1}),
    "pixel shuffle": (pixels_shuffled, (1, 4 * T, D), {"Stack": 1, "Linear": 5}),
}


@pytest.mark.parametrize("form", TAKEN)
def test_what_is_no_plain_transformer(tmp_path, form):
    written, shape, counts = TAKEN[form]
    _, kinds = imported(tmp_path, written, shape)
    assert {kind: kinds.count(kind) for kind in counts} == counts, kinds


def test_one_row_for_all_stays_one_row(tmp_path):
    found, _ = imported(tmp_path, squeeze_and_excite)
    (node,) = (n for n in found.nodes if isinstance(n, graph.Multiply))
    assert graph.shapes(found)[node.b] == (1, D)


def test_border_counts_as_the_file_says(tmp_path):
    for count in (0, 1):
        found, _ = imported(tmp_path, pooled("AveragePool", count_include_pad=count), (1, "t", D))
        (node,) = (n for n in found.nodes if isinstance(n, graph.Window))
        assert (node.form, node.count_pads, node.kernel, node.pads) == ("mean", bool(count), (2, 3), (1, 1, 0, 1))


@pytest.mark.parametrize(
    ("form", "rows", "taps"),
    [
        (resized(4, 9, "linear", coordinate_transformation_mode="align_corners"), 36, 2),
        (resized(2, 2, "linear"), 4, 2),  # smaller
        (resized(1, 1, "linear", antialias=1), 1, 3),
        (resized(4, 6, "cubic"), 24, 3),
        (large_map_resized(192), 576, 2),
        (large_map_resized(144), 432, 2),
    ],
)
def test_resizing_reads_only_what_has_weight(tmp_path, form, rows, taps):
    found, kinds = imported(tmp_path, form, (1, rows, D))
    axes = [axis for n in found.nodes if isinstance(n, graph.Resample) for axis in (n.resampling.down, n.resampling.across)]
    assert axes and max(axis.weights.shape[1] for axis in axes) == taps
    assert not {"Multiply", "Transpose"} & set(kinds), kinds


TURNED = {
    "one pixel": ((D, D, 1, 1), {}),
    "windows": ((D, D, 2, 3), {}),
    "with borders": ((D, D, 3, 3), {"pads": [1, 1, 1, 1]}),
    "with strides": ((D, D, 1, 2), {"strides": [2, 1]}),
    "with gaps": ((D, D, 2, 2), {"dilations": [1, 2]}),
    "depthwise": ((D, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": D}),
    "groups": ((D, 2, 2, 2), {"group": D // 2}),
}


@pytest.mark.parametrize("axes", [[2], [3], [2, 3]], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("kind", TURNED)
def test_convolution_of_a_map_that_is_turned_round(tmp_path, kind, axes):
    """Rows and columns from the last to the first, as a backward scan leaves them."""
    shape, attributes = TURNED[kind]

    def form(w):
        x = w.op("Slice", w.op("Relu", w.patches()), [-1] * len(axes), [-(1 << 40)] * len(axes), axes, [-1] * len(axes))
        return w.as_tokens(w.op("Conv", x, w.normal(*shape), kernel_shape=list(shape[2:]), **attributes))

    assert "PatchEmbed" in imported(tmp_path, form, (1, "t", D))[1]

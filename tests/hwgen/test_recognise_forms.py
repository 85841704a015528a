"""What is written differently from model to model around the blocks, and architectures that are refused by name.

Every form that is taken is checked against the ONNX model itself, which `import_model` does.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import form_maker as maker
from hwgen import graph
from hwgen.levels import check, import_model

IMAGE, PIXELS, MICROSOFT, Writer, imported = maker.IMAGE, maker.PIXELS, maker.MICROSOFT, maker.Writer, maker.imported
T, D, H = maker.T, maker.D, maker.H


# --- patches -----------------------------------------------------------------------------------------------------


def reshaped(w):
    x = w.op("Transpose", w.op("Reshape", "image", [1, 2, 2, 2, 3, 2]), perm=[0, 2, 4, 3, 5, 1])
    return w.linear(w.op("Reshape", x, [1, T, PIXELS]), PIXELS)


def unfolded(w):
    """torch.nn.functional.unfold as TorchScript writes it: gathered along both axes, after a Pad by nothing."""
    x = w.op("Pad", "image", [0] * 8)
    x = w.op("Gather", x, np.array([[0, 2], [1, 3]]), axis=2)
    x = w.op("Gather", x, np.array([[0, 2, 4], [1, 3, 5]]), axis=4)
    x = w.op("Reshape", w.op("Transpose", x, perm=[0, 1, 2, 4, 3, 5]), [1, PIXELS, T])
    return w.linear(w.op("Transpose", x, perm=[0, 2, 1]), PIXELS)


def space_to_depth(w):
    x = w.op("Reshape", w.op("SpaceToDepth", "image", blocksize=2), [1, PIXELS, T])
    return w.linear(w.op("Transpose", x, perm=[0, 2, 1]), PIXELS)


def normalised_image(w):
    mean, deviation = (w.rng.uniform(0.2, 0.8, (1, 2, 1, 1)) for _ in range(2))
    return w.as_tokens(w.patches(w.op("Div", w.op("Sub", "image", mean), deviation)))


def batch_norm(w):
    parameters = 1 + w.normal(D, scale=0.2), w.normal(D), w.normal(D), w.rng.uniform(0.5, 2, D)
    return w.as_tokens(w.op("BatchNormalization", w.patches(), *parameters))


def normalised_in_blocks(w):
    """Numbers added to the pixels while these stand in blocks, and a border around the image behind that."""
    x = w.op("Reshape", "image", [1, 2, 2, 2, 3, 2])
    x = w.op("Reshape", w.op("Sub", x, w.rng.uniform(0.2, 0.8, (2, 1, 1, 1, 1))), [1, *IMAGE])
    return w.as_tokens(w.patches(x, pads=[0, 1, 0, 1], strides=[2, 3]))


@pytest.mark.parametrize("form", [reshaped, unfolded, space_to_depth, normalised_image, batch_norm])
def test_patches(tmp_path, form):
    result, kinds = imported(tmp_path, form)
    assert kinds == ["PatchEmbed"] or kinds == ["PatchEmbed", "Linear"]
    assert result.outputs[0].shape == (T, D)


def test_a_border_around_pixels_that_were_normalised_in_blocks(tmp_path):
    w = Writer()
    path = w.write(tmp_path / "m.onnx", IMAGE, normalised_in_blocks(w), [1, "t", D])
    assert {f.op for f in check(path)} <= {"input"}, "taken, or said by name"


CUTS = {
    "overlapping": {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    "beyond one border": {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 2]},
    "with gaps": {"kernel_shape": [1, 2], "strides": [3, 4]},
    "remainder": {"kernel_shape": [2, 4], "strides": [1, 3]},
}


@pytest.mark.parametrize("attributes", CUTS.values(), ids=CUTS)
def test_patches_that_overlap_or_reach_over_the_border(tmp_path, attributes):
    result, kinds = imported(tmp_path, lambda w: w.as_tokens(w.patches(**attributes)), (1, "t", D))
    assert kinds == ["PatchEmbed"]


@pytest.mark.parametrize("attributes", [{}, *CUTS.values()], ids=["plain", *CUTS])
def test_image_with_channels_last(tmp_path, attributes):
    """As Keras has it: [1, H, W, C], turned before the convolution."""
    w = Writer()
    y = w.as_tokens(w.patches(w.op("Transpose", "image", perm=[0, 3, 1, 2]), **attributes))
    result = import_model(w.write(tmp_path / "m.onnx", (4, 6, 2), y, [1, "t", D]))
    (node,) = result.nodes
    kernel = attributes.get("kernel_shape", [2, 2])
    assert result.inputs == {"image": (4, 6, 2)} and node.weight.shape == (D, *kernel, 2)


def test_image_turned_cropped_and_made_grey(tmp_path):
    """BGR, a cut of the centre, and one channel as two: all in the patches and their weights."""
    w = Writer()
    x = w.op("Gather", "image", np.array([1, 0]), axis=1)
    x = w.op("Slice", x, [0, 1], [4, 5], [2, 3])
    (node,) = import_model(w.write(tmp_path / "m.onnx", IMAGE, w.as_tokens(w.patches(x)), [1, "t", D])).nodes
    assert node.pads == (0, 0, -1, 0, 0, 0)
    w = Writer()
    x = w.op("Expand", w.op("Slice", "image", [0], [1], [1]), [1, 2, 4, 6])
    (node,) = import_model(w.write(tmp_path / "m.onnx", IMAGE, w.as_tokens(w.patches(x)), [1, "t", D])).nodes
    assert node.weight.shape == (D, 1, 2, 2) and node.pads == (0, 0, 0, -1, 0, 0)


VIDEO = (4, 2, 4, 6)  # frames, channels, height, width


def tubelets(w, **attributes):
    """A convolution over frames, rows and columns."""
    x = w.op("Transpose", "image", perm=[0, 2, 1, 3, 4])
    y = w.op("Conv", x, w.normal(D, 2, *attributes["kernel_shape"]), w.normal(D), **attributes)
    return w.as_tokens(y)


def frames(w):
    """Frames one by one, each with a class token and positions of its own, of which the first is read before the patches."""
    image = w.op("Reshape", "image", list(VIDEO))
    x = w.op("Conv", image, w.normal(D, 2, 2, 2), w.normal(D), kernel_shape=[2, 2], strides=[2, 2])
    x = w.op("Transpose", w.op("Reshape", x, [4, D, T]), perm=[0, 2, 1])
    x = w.op("Add", w.op("Concat", w.normal(4, 1, D), x, axis=1), w.normal(1, T + 1, D))
    parts = w.op("Slice", x, [0], [1], [1]), w.op("Slice", x, [1], [T + 1], [1])
    one = w.op("Slice", parts[0], [0], [1], [0])
    return w.linear(w.op("Concat", one, w.op("Reshape", parts[1], [1, 4 * T, D]), axis=1))


TUBELETS = {
    "side by side": ({"kernel_shape": [1, 2, 3], "strides": [1, 2, 3]}, (), None),
    "overlapping, over the border": (
        {"kernel_shape": [3, 2, 2], "strides": [2, 1, 2], "pads": [1, 0, 0, 0, 1, 0]}, (1, 0, 0, 0, 0, 0, 1, 0), (2, 2, 1, 2)
    ),
    "some frames": ({"kernel_shape": [1, 2, 2], "strides": [3, 2, 2]}, (), (3, 2, 2, 2)),
}  # fmt: skip


@pytest.mark.parametrize("attributes, pads, stride", TUBELETS.values(), ids=TUBELETS)
def test_tubelets_of_a_video(tmp_path, attributes, pads, stride):
    w = Writer()
    (node,) = import_model(w.write(tmp_path / "m.onnx", VIDEO, tubelets(w, **attributes), [1, "t", D])).nodes
    length, *size = attributes["kernel_shape"]
    assert isinstance(node, graph.PatchEmbed) and node.weight.shape == (D, length, 2, *size)
    assert (node.pads, node.stride) == (pads, stride)


def test_frames_one_by_one(tmp_path):
    w = Writer()
    result = import_model(w.write(tmp_path / "m.onnx", VIDEO, frames(w), [1, "t", D]))
    assert [n.patch for n in result.nodes if isinstance(n, graph.PatchEmbed)] == [(1, 2, 2, 2)]


def test_patches_of_a_signal(tmp_path):
    """Channels by samples."""
    w = Writer()
    y = w.op("Conv", "image", w.normal(D, 2, 3), w.normal(D), kernel_shape=[3], strides=[2], pads=[1, 0])
    (node,) = import_model(w.write(tmp_path / "m.onnx", (2, 12), w.as_tokens(y), [1, "t", D])).nodes
    assert (node.patch, node.stride, node.pads) == ((2, 3), (2, 2), (0, 1, 0, 0))


def test_border_inside_the_network(tmp_path):
    def form(w):
        return w.linear(w.op("Pad", w.tokens(), np.array([0, 1, 0, 0, 0, 0])))

    result, kinds = imported(tmp_path, form, (1, T + 1, D))
    assert kinds == ["PatchEmbed", "Gather", "Linear"] and result.nodes[1].rows.tolist() == [-1, *range(T)]


def test_border_of_an_image_from_which_a_mean_is_subtracted(tmp_path):
    """Zeros around pixels less their mean are no zeros around the pixels: these become tokens of their own first."""

    def form(w):
        return w.as_tokens(w.patches(w.op("Sub", "image", 0.5), pads=[1, 1, 1, 1]))

    result, kinds = imported(tmp_path, form, (1, 12, D))
    assert kinds == ["PatchEmbed", "Conv"] and result.nodes[0].patch == (IMAGE[0], 1, 1)


def test_norm_of_raw_patches(tmp_path):
    def form(w):
        x = w.op("Transpose", w.op("Reshape", "image", [1, 2, 2, 2, 3, 2]), perm=[0, 2, 4, 3, 5, 1])
        return w.norm(w.linear(w.norm(w.op("Reshape", x, [1, T, PIXELS]), PIXELS), PIXELS))

    assert imported(tmp_path, form)[1] == ["PatchEmbed", "LayerNorm", "Linear", "LayerNorm"]


# --- positions ---------------------------------------------------------------------------------------------------


def sines(w):
    place = w.op("Cast", w.op("Range", np.int64(0), np.int64(T), np.int64(1)), to=TensorProto.FLOAT)
    angle = w.op("Mul", w.op("Unsqueeze", place, [1]), 100.0 ** -np.arange(D // 2))
    return w.op("Concat", w.op("Sin", angle), w.op("Cos", angle), axis=-1)


def looked_up(w):
    return w.op("Gather", w.normal(9, D), w.op("Range", np.int64(0), np.int64(T), np.int64(1)), axis=0)


def cut(w):
    """The first rows of a longer table, as many as there are tokens."""
    count = w.op("Slice", w.op("Shape", w.made), [1], [2], [0])
    return w.op("Slice", w.normal(1, 9, D), [0], count, [1])


@pytest.mark.parametrize("table", [sines, looked_up, cut])
def test_positions(tmp_path, table):
    def form(w):
        w.made = w.tokens()
        return w.op("Add", w.made, table(w))

    result, kinds = imported(tmp_path, form)
    assert kinds == ["PatchEmbed", "Embed"]
    assert result.nodes[1].position.shape == (T, D) and result.nodes[1].position.any(axis=1).all()


@pytest.mark.parametrize("expand", ["Expand", "Tile"])
def test_class_token_repeated_for_the_batch(tmp_path, expand):
    def form(w):
        x = w.tokens()
        batch = w.op("Slice", w.op("Shape", x), [0], [1], [0])
        token = w.op(expand, w.normal(1, 1, D), w.op("Concat", batch, [1, 1 if expand == "Tile" else D], axis=0))
        return w.op("Concat", token, x, axis=1)

    result, kinds = imported(tmp_path, form, (1, T + 1, D))
    assert kinds == ["PatchEmbed", "Embed"] and result.nodes[1].prefix.shape == (1, D)


# --- pooling -----------------------------------------------------------------------------------------------------


def channels_first(w, x):
    return w.op("Transpose", x, perm=[0, 2, 1])


MEANS = {
    "ReduceMean": lambda w, x: w.op("ReduceMean", x, [1], keepdims=0),
    "GlobalAveragePool": lambda w, x: w.op("Squeeze", w.op("GlobalAveragePool", channels_first(w, x)), [2]),
    "AveragePool": lambda w, x: w.op("Reshape", w.op("AveragePool", channels_first(w, x), kernel_shape=[T]), [1, D]),
    "sum": lambda w, x: w.op("Div", w.op("ReduceSum", x, [1], keepdims=0), float(T)),
    "map": lambda w, x: w.op("ReduceMean", w.op("Reshape", channels_first(w, x), [1, D, 2, 3]), [2, 3], keepdims=0),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean_of_all_tokens(tmp_path, name):
    result, kinds = imported(tmp_path, lambda w: w.linear(MEANS[name](w, w.norm(w.tokens()))), (1, D))
    assert kinds == ["PatchEmbed", "LayerNorm", "Mean", "Linear"]
    assert (result.nodes[2].start, result.nodes[2].stop) == (0, T)


def test_mean_without_the_class_token(tmp_path):
    def form(w):
        x = w.norm(w.op("Concat", w.normal(1, 1, D), w.tokens(), axis=1))
        return w.linear(w.op("ReduceMean", w.op("Slice", x, [1], [T + 1], [1]), [1], keepdims=0))

    result, _ = imported(tmp_path, form, (1, D))
    (mean,) = (n for n in result.nodes if isinstance(n, graph.Mean))
    assert (mean.start, mean.stop) == (1, T + 1)


# --- onnxruntime's operators -------------------------------------------------------------------------------------


def with_bias(w, x):
    q, k, v = (w.op("MatMul", x, w.normal(D, D, scale=0.5)) for _ in range(3))
    return w.op("MultiHeadAttention", q, k, v, w.normal(3 * D), num_heads=H, **MICROSOFT)


def fused_products(w, x):
    q, k, v = (w.heads(w.linear(x)) for _ in range(3))
    p = w.op("Softmax", w.op("FusedMatMul", q, k, transB=1, alpha=0.4, **MICROSOFT), axis=-1)
    return w.op("Reshape", w.op("Transpose", w.op("MatMul", p, v), perm=[0, 2, 1, 3]), [1, T, D])


def fused_products_of_transposed(w, x):
    """Queries transposed before, and back by the product."""
    q, k, v = (w.heads(w.linear(x)) for _ in range(3))
    q, k = (w.op("Transpose", part, perm=[0, 1, 3, 2]) for part in (q, k))
    p = w.op("Softmax", w.op("FusedMatMul", q, k, transA=1, alpha=0.4, **MICROSOFT), axis=-1)
    y = w.op("FusedMatMul", p, v, **MICROSOFT)
    return w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3]), [1, T, D])


@pytest.mark.parametrize("attention", [with_bias, fused_products, fused_products_of_transposed])
def test_attention_of_onnxruntime(tmp_path, attention):
    pytest.importorskip("onnxruntime")
    result, kinds = imported(tmp_path, lambda w: w.linear(attention(w, w.norm(w.tokens()))))
    assert kinds == ["PatchEmbed", "LayerNorm", "Linear", "Linear", "Linear", "Attention", "Linear"]
    scale = 0.5 if attention is with_bias else 0.4
    assert result.nodes[5].heads == H and result.nodes[5].scale == pytest.approx(scale)


@pytest.mark.parametrize("parts", [3, 2], ids=["queries, keys and values", "keys and values"])
def test_packed_attention_of_onnxruntime(tmp_path, parts):
    """[1, T, heads, parts, d], which onnxruntime computes on GPUs only: so the weights are compared."""
    w = Writer()
    x, weight = w.norm(w.tokens()), w.normal(D, parts * D)
    packed = w.op("Reshape", w.op("MatMul", x, weight), [1, T, H, parts, D // H])
    queries = [] if parts == 3 else [w.op("MatMul", x, w.normal(D, D))]
    y = w.op("MultiHeadAttention", *queries, packed, num_heads=H, scale=0.3, **MICROSOFT)
    result = import_model(w.write(tmp_path / "m.onnx", IMAGE, w.linear(y), [1, T, D]), confirmed=False)
    (attention,) = (n for n in result.nodes if isinstance(n, graph.Attention))
    assert attention.heads == H and attention.scale == pytest.approx(0.3)
    made = [result.node(name).weight for name in (attention.q, attention.k, attention.v)][-parts:]
    columns = weight.T.reshape(H, parts, D // H, D)
    for i, got in enumerate(made):
        np.testing.assert_allclose(got, columns[:, i].reshape(D, D), rtol=1e-6)


def test_norm_of_a_sum_that_is_used_again(tmp_path):
    def form(w):
        x = w.tokens()
        parts = 1 + w.normal(D, scale=0.2), w.normal(D), w.normal(D)
        y, _, _, total = w.op("SkipLayerNormalization", x, w.linear(x), *parts, outputs=4, epsilon=1e-6, **MICROSOFT)
        return w.op("Add", total, w.linear(y))

    assert imported(tmp_path, form)[1] == ["PatchEmbed", "Linear", "Add", "LayerNorm", "Linear", "Add"]


# --- graphs ------------------------------------------------------------------------------------------------------


def test_if_of_a_constant_is_the_branch_taken(tmp_path):
    """`if x.shape[1] == T` as TorchScript leaves it; the other branch holds what could not be built."""
    w = Writer()
    x = w.linear(w.tokens())

    def branch(kind):
        out = helper.make_tensor_value_info(kind, TensorProto.FLOAT, [1, T, D])
        return helper.make_graph([helper.make_node(kind, [x], [kind], f"inner {kind}")], kind, [], [out])

    same = w.op("Equal", w.op("Gather", w.op("Shape", x), np.int64(1), axis=0), np.int64(T))
    y = w.op("If", same, then_branch=branch("Relu"), else_branch=branch("Sin"))
    path = w.write(tmp_path / "m.onnx", IMAGE, w.linear(y), [1, T, D])
    assert [type(n).__name__ for n in import_model(path).nodes] == ["PatchEmbed", "Linear", "Activation", "Linear"]
    proto = onnx.load(path)
    node = next(n for n in proto.graph.node if n.op_type == "If")
    for a in node.attribute:
        a.name = {"then_branch": "else_branch", "else_branch": "then_branch"}[a.name]
    onnx.save(proto, path)
    assert [(f.node, f.op) for f in check(path)] == [("inner Sin", "Sin")]


@pytest.mark.parametrize("kind", ["If", "Loop"])
def test_control_flow_that_depends_on_the_image(tmp_path, kind):
    w = Writer()
    x = w.tokens()
    score = w.op("MatMul", w.op("ReduceMean", x, np.array([1], np.int64)), np.linspace(-1, 1, D)[:, None])
    holds = w.op("Greater", w.op("Squeeze", score), 0.0)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, T, D])
    if kind == "If":
        one, other = (helper.make_graph([helper.make_node(k, [x], ["y"], k)], k, [], [out]) for k in ("Relu", "Tanh"))
        y = w.op("If", holds, then_branch=one, else_branch=other)
    else:
        flags = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("more", "again")]
        count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
        state = helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, T, D])
        nodes = [helper.make_node("Relu", ["state"], ["y"]), helper.make_node("Identity", ["more"], ["again"])]
        trips = w.op("Cast", w.op("ReduceMax", x, keepdims=0), to=TensorProto.INT64)
        y = w.op("Loop", trips, "", x, body=helper.make_graph(nodes, "g", [count, flags[0], state], [flags[1], out]))
    name, path = w.nodes[-1].name, w.write(tmp_path / "m.onnx", IMAGE, w.linear(y), [1, T, D])
    if kind == "If":  # both ways, of which the condition chooses
        assert any(isinstance(n, graph.Step) for n in import_model(path).nodes)
        return
    (finding,) = (f for f in check(path) if f.node == name)
    assert finding.op == kind and "rounds" in finding.reason


def test_nodes_in_any_order(tmp_path):
    w = Writer()
    y = w.linear(w.norm(w.tokens()))
    w.nodes.reverse()
    result = import_model(w.write(tmp_path / "m.onnx", IMAGE, y, [1, T, D]))
    assert [type(n).__name__ for n in result.nodes] == ["PatchEmbed", "LayerNorm", "Linear"]


# --- architectures that are refused, and windows ------------------------------------------------------------------------------


def some_windows(w):
    """Attention within windows that leave tokens out."""
    x = w.tokens()
    q, k, v = (
        w.op("Transpose", w.op("Reshape", w.op("Slice", w.linear(x), [0], [4], [1]), [2, 2, H, D // H]), perm=[0, 2, 1, 3])
        for _ in range(3)
    )
    return w.linear(w.attend(q, k, v, (1, 4, D)))


def test_windows_of_some_tokens(tmp_path):
    found, kinds = imported(tmp_path, some_windows, (1, 4, D))
    assert kinds.count("Attention") == 1
    (node,) = (n for n in found.nodes if isinstance(n, graph.Attention))
    assert node.windows == 2 and node.bias is None


@pytest.mark.parametrize("bias, gain", [(True, False), (False, True), (True, True)])
def test_biases_behind_a_split_product(tmp_path, bias, gain):
    """An optimiser joins the products of queries, keys and values and leaves what follows each of them behind the split."""
    w = Writer()
    parts = w.op("Split", w.op("MatMul", w.tokens(), w.normal(D, D + 6)), [D, 6], outputs=2, axis=-1)
    made = []
    for part, size in zip(parts, (D, 6), strict=True):
        part = w.op("Add", w.normal(size), part) if bias else part
        part = w.op("Mul", part, 1 + w.normal(size, scale=0.2)) if gain else part
        made.append(w.op("MatMul", w.op("Gelu", part), w.normal(size, D)))
    result = import_model(w.write(tmp_path / "m.onnx", IMAGE, w.op("Add", *made), [1, T, D]))
    kinds = [type(n).__name__ for n in result.nodes]
    assert kinds.count("Linear") == 4 and set(kinds) == {"PatchEmbed", "Linear", "Activation", "Add"}

"""The same small network written in many ways must become the same graph, and near misses must be refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph
from hwgen.errors import UserError
from hwgen.levels import check, import_model

T, D, H, E = 5, 8, 2, 4  # tokens, width, heads, experts
HIDDEN = 12


class Net:
    """Writes an ONNX graph node by node."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def const(self, array, dtype=None):
        array = np.asarray(array)
        array = array.astype(dtype or (np.float32 if array.dtype.kind == "f" else np.int64))
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def weight(self, *shape):
        return self.const(self.rng.normal(0, 0.5, shape))

    def op(self, kind, *inputs, outputs=1, domain="", **attributes):
        inputs = [i if isinstance(i, str) else self.const(i) for i in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def linear(self, x, k, n, bias=True):
        y = self.op("MatMul", x, self.weight(k, n))
        return self.op("Add", y, self.weight(n)) if bias else y

    def reshape(self, x, *shape):
        return self.op("Reshape", x, np.array(shape))

    def embed(self):
        conv = self.op("Conv", "image", self.weight(D, 1, 2, 2), self.weight(D), kernel_shape=[2, 2], strides=[2, 2])
        x = self.op("Transpose", self.reshape(conv, 1, D, -1), perm=[0, 2, 1])
        return self.op("Add", self.op("Concat", self.weight(1, 1, D), x, axis=1), self.weight(1, T, D))

    def norm(self, x):
        return self.op("LayerNormalization", x, self.weight(D), self.weight(D), axis=-1, epsilon=1e-6)

    def save(self, path, output, opset=18, shape=(1, T, D), batch=1):
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 4, 4])
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, list(shape))
        nodes = [*self.nodes, helper.make_node("Identity", [output], ["out"], "last")]
        body = helper.make_graph(nodes, "g", [image], [out], self.constants)
        sets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(body, opset_imports=sets, ir_version=8), path)
        return path


def kinds(result):
    return [type(n).__name__ for n in result.nodes]


def residual(tmp_path, branch, opset=18, seed=0):
    """Graph of x + branch(norm(x))."""
    net = Net(seed)
    x = net.embed()
    y = net.op("Add", x, branch(net, net.norm(x)))
    return import_model(net.save(tmp_path / "m.onnx", y, opset))


# --- LayerNorm and GELU ------------------------------------------------------------------------------------------


def norm_pow(net, x):
    c = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    v = net.op("ReduceMean", net.op("Pow", c, 2.0), axes=[-1])
    y = net.op("Div", c, net.op("Sqrt", net.op("Add", v, 1e-5)))
    return net.op("Add", net.op("Mul", y, net.weight(D)), net.weight(D))


def norm_twice(net, x):
    mean = net.op("ReduceMean", x, axes=[2])
    c, again = net.op("Sub", x, mean), net.op("Sub", x, mean)
    v = net.op("ReduceMean", net.op("Mul", c, c), axes=[2])
    inverse = net.op("Reciprocal", net.op("Sqrt", net.op("Add", 1e-5, v)))
    return net.op("Mul", net.weight(D), net.op("Mul", inverse, again))


@pytest.mark.parametrize("norm", [norm_pow, norm_twice])
def test_layer_norm_written_out(tmp_path, norm):
    result = residual(tmp_path, norm, opset=17)
    assert kinds(result) == ["PatchEmbed", "Embed", "LayerNorm", "LayerNorm", "Add"]
    assert result.nodes[3].epsilon == pytest.approx(1e-5)


def gelu_div(net, x):
    y = net.op("Mul", x, net.op("Add", net.op("Erf", net.op("Div", x, np.sqrt(2.0))), 1.0))
    return net.op("Mul", y, 0.5)


def gelu_half_first(net, x):
    phi = net.op("Add", 1.0, net.op("Erf", net.op("Mul", x, np.sqrt(0.5))))
    return net.op("Mul", phi, net.op("Mul", 0.5, x))


def gelu_tanh(net, x):
    cube = net.op("Mul", net.op("Pow", x, 3.0), 0.044715)
    t = net.op("Tanh", net.op("Mul", net.op("Add", x, cube), np.sqrt(2 / np.pi)))
    return net.op("Mul", net.op("Mul", 0.5, x), net.op("Add", t, 1.0))


def gelu_tanh_factored(net, x):
    inner = net.op("Add", net.op("Mul", net.op("Mul", x, x), 0.0356774081), 0.7978845608)
    t = net.op("Tanh", net.op("Mul", x, inner))
    return net.op("Mul", x, net.op("Add", net.op("Mul", t, 0.5), 0.5))


GELUS = {
    "div": (gelu_div, "gelu"),
    "half first": (gelu_half_first, "gelu"),
    "tanh": (gelu_tanh, "gelu_tanh"),
    "tanh factored": (gelu_tanh_factored, "gelu_tanh"),
    "operator": (lambda net, x: net.op("Gelu", x, approximate="tanh"), "gelu_tanh"),
    "bias": (lambda net, x: net.op("BiasGelu", x, net.weight(HIDDEN), domain="com.microsoft"), "gelu"),
    "fast": (lambda net, x: net.op("FastGelu", x, net.weight(HIDDEN), domain="com.microsoft"), "gelu_tanh"),
}


@pytest.mark.parametrize("name", GELUS)
def test_gelu(tmp_path, name):
    gelu, form = GELUS[name]
    result = residual(tmp_path, lambda n, x: n.linear(gelu(n, n.linear(x, D, HIDDEN)), HIDDEN, D), opset=20)
    assert kinds(result)[3:] == ["Linear", "Activation", "Linear", "Add"]
    assert result.nodes[4].form == form


# --- attention ---------------------------------------------------------------------------------------------------


def heads_of(net, x):
    return net.op("Transpose", net.reshape(x, 1, T, H, D // H), perm=[0, 2, 1, 3])


def attend(net, q, k_transposed, v, scale=None):
    scores = net.op("MatMul", q, k_transposed)
    p = net.op("Softmax", scores if scale is None else net.op("Mul", scores, scale), axis=-1)
    y = net.op("Transpose", net.op("MatMul", p, v), perm=[0, 2, 1, 3])
    return net.linear(net.reshape(y, 1, T, D), D, D)


def attention_qkv_split(net, x):
    qkv = net.op("Transpose", net.reshape(net.linear(x, D, 3 * D), 1, T, 3, H, D // H), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Squeeze", p, [0]) for p in net.op("Split", qkv, [1, 1, 1], axis=0, outputs=3))
    return attend(net, q, net.op("Transpose", k, perm=[0, 1, 3, 2]), v, 0.5)


def attention_qkv_gather(net, x):
    qkv = net.op("Transpose", net.reshape(net.linear(x, D, 3 * D, False), 1, T, 3, H, D // H), perm=[2, 0, 3, 1, 4])
    q, k, v = (net.op("Gather", qkv, np.array(i), axis=0) for i in range(3))
    root = np.sqrt(np.sqrt(D // H))
    return attend(net, net.op("Div", q, root), net.op("Transpose", net.op("Div", k, root), perm=[0, 1, 3, 2]), v)


def attention_interleaved(net, x):
    """Heads outside, q, k, v inside: [T, H, 3 d]."""
    qkv = net.op("Transpose", net.reshape(net.linear(x, D, 3 * D), 1, T, H, 3 * D // H), perm=[0, 2, 1, 3])
    d = D // H
    q, k, v = (net.op("Slice", qkv, [i * d], [i * d + d], [3]) for i in range(3))
    return attend(net, q, net.op("Transpose", k, perm=[0, 1, 3, 2]), v, 0.5)


def attention_separate(net, x):
    q, k, v = (net.linear(x, D, D) for _ in range(3))
    keys = net.op("Transpose", net.reshape(k, 1, T, H, D // H), perm=[0, 2, 3, 1])
    return attend(net, heads_of(net, net.op("Mul", q, 0.5)), keys, heads_of(net, v))


def attention_multi_query(net, x):
    """Both heads share k and v."""
    q = heads_of(net, net.linear(x, D, D))
    k, v = (net.reshape(net.linear(x, D, D // H), 1, 1, T, D // H) for _ in range(2))
    k, v = (net.op("Expand", a, [1, H, T, D // H]) for a in (k, v))
    return attend(net, q, net.op("Transpose", k, perm=[0, 1, 3, 2]), v, 0.5)


def attention_contrib(net, x):
    y = net.op("Attention", x, net.weight(D, 3 * D), net.weight(3 * D), domain="com.microsoft", num_heads=H)
    return net.linear(y, D, D)


@pytest.mark.parametrize(
    "attention",
    [
        attention_qkv_split,
        attention_qkv_gather,
        attention_interleaved,
        attention_separate,
        attention_multi_query,
        attention_contrib,
    ],
)
def test_attention(tmp_path, attention):
    result = residual(tmp_path, attention)
    assert kinds(result)[3:] == ["Linear", "Linear", "Linear", "Attention", "Linear", "Add"]
    node = result.nodes[6]
    assert node.heads == H
    assert node.scale == pytest.approx(0.5)


@pytest.mark.skipif(onnx.defs.onnx_opset_version() < 23, reason="this onnx knows no Attention operator")
def test_attention_operator(tmp_path):
    def branch(net, x):
        q, k, v = (net.linear(x, D, D) for _ in range(3))
        return net.op("Attention", q, k, v, q_num_heads=H, kv_num_heads=H)

    net = Net()
    x = net.embed()
    path = net.save(tmp_path / "m.onnx", net.op("Add", x, branch(net, net.norm(x))), opset=23)
    assert kinds(import_model(path))[3:] == ["Linear", "Linear", "Linear", "Attention", "Add"]


def test_attention_mask_of_the_image_beside_the_keys(tmp_path):
    net = Net()
    x = net.norm(net.embed())
    q, k, v = (heads_of(net, net.linear(x, D, D)) for _ in range(3))
    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    masked = net.op("Add", scores, net.op("ReduceMean", net.linear(x, D, T), [1], keepdims=1))
    y = net.reshape(net.op("Transpose", net.op("MatMul", net.op("Softmax", masked), v), perm=[0, 2, 1, 3]), 1, T, D)
    result = import_model(net.save(tmp_path / "m.onnx", y))
    (attention,) = [n for n in result.nodes if isinstance(n, graph.Attention)]
    assert attention.balanced and graph.shapes(result)[attention.k] == (T, D + attention.heads * T)


# --- embedding and parameters ------------------------------------------------------------------------------------


def test_position_before_class_token_and_dynamic_batch(tmp_path):
    net = Net()
    conv = net.op("Conv", "image", net.weight(D, 1, 2, 2), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Transpose", net.op("Flatten", net.op("Squeeze", conv, [0]), axis=1), perm=[1, 0])
    x = net.op("Add", net.op("Unsqueeze", x, [0]), net.weight(1, T - 1, D))
    x = net.op("Concat", net.weight(1, 1, D), x, axis=1)
    path = net.save(tmp_path / "m.onnx", net.norm(x), batch="n")
    result = import_model(path)
    assert kinds(result) == ["PatchEmbed", "Embed", "LayerNorm"]
    assert result.nodes[1].prefix.shape == (1, D) and not result.nodes[1].position[0].any()


@pytest.mark.parametrize("position", [True, False])
def test_no_class_token(tmp_path, position):
    net = Net()
    conv = net.op("Conv", "image", net.weight(D, 1, 2, 2), net.weight(D), kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Transpose", net.reshape(conv, 1, D, -1), perm=[0, 2, 1])
    x = net.op("Add", x, net.weight(1, T - 1, D)) if position else x
    path = net.save(tmp_path / "m.onnx", net.op("Add", x, net.linear(net.norm(x), D, D)), shape=(1, T - 1, D))
    assert kinds(import_model(path)) == ["PatchEmbed", *["Embed"] * position, "LayerNorm", "Linear", "Add"]


def test_registers_and_two_outputs(tmp_path):
    net = Net()
    x = net.embed()
    for kind in (net.weight(1, 2, D), net.weight(1, 1, D)):
        x = net.op("Concat", kind, x, axis=1)
    x = net.norm(x)
    parts = [net.op("Slice", x, [a], [b], [1]) for a, b in ((0, 1), (4, 8))]
    path = net.save(tmp_path / "m.onnx", parts[0], shape=(1, 1, D))
    proto = onnx.load(path)
    proto.graph.output.append(helper.make_tensor_value_info(parts[1], TensorProto.FLOAT, [1, 4, D]))
    onnx.save(proto, path)
    result = import_model(path)
    assert [o.shape for o in result.outputs] == [(1, D), (4, D)]
    assert [(n.start, n.stop) for n in result.nodes if isinstance(n, graph.Rows)] == [(0, 1), (4, 8)]


def test_class_token_is_taken_before_the_last_layers(tmp_path):
    net = Net()
    x = net.op("Gather", net.norm(net.embed()), np.array(0), axis=1)
    y = net.op("Gemm", x, net.weight(3, D), net.weight(3), transB=1, alpha=0.5, beta=2.0)
    result = import_model(net.save(tmp_path / "m.onnx", y, shape=(1, 3)))
    assert kinds(result) == ["PatchEmbed", "Embed", "Rows", "LayerNorm", "Linear"]
    assert result.outputs == [graph.Output("out", result.nodes[-1].name, (3,))]


def test_layer_scale_and_permuted_channels_fold_into_the_linear_layers(tmp_path):
    def branch(net, x):
        y = net.op("Mul", net.linear(x, D, D), net.weight(D))
        y = net.op("Gather", y, np.array([3, 1, 0, 2, 7, 6, 5, 4]), axis=2)
        return net.linear(net.op("Mul", y, 3.0), D, D)

    assert kinds(residual(tmp_path, branch))[3:] == ["Linear", "Linear", "Add"]


def test_noise_times_zero_vanishes(tmp_path):
    def branch(net, x):
        y = net.linear(x, D, D)
        return net.op("Add", y, net.op("Mul", net.op("RandomNormalLike", y), 0.0))

    assert kinds(residual(tmp_path, branch))[3:] == ["Linear", "Add"]


def test_equal_weights_are_one_array(tmp_path):
    def branch(net, x):
        w = net.rng.normal(0, 1, (D, D))
        return net.op("Add", net.op("MatMul", x, w), net.op("MatMul", net.op("Add", x, net.weight(D)), w))

    linears = [n for n in residual(tmp_path, branch).nodes if isinstance(n, graph.Linear)]
    assert len(linears) == 2 and linears[0].weight is linears[1].weight


# --- near misses -------------------------------------------------------------------------------------------------


def refused(tmp_path, branch, op, word):
    net = Net()
    x = net.embed()
    path = net.save(tmp_path / "m.onnx", net.op("Add", x, branch(net, net.norm(x))))
    findings = check(path)
    assert [f.op for f in findings] == [op], findings
    assert word in findings[0].reason
    with pytest.raises(UserError, match=findings[0].node):
        import_model(path)


def test_all_unsupported_nodes_are_named_at_once(tmp_path):
    net = Net()
    x = net.embed()
    wrong = []
    for kind in ("Sin", "Cos", "Atan"):
        x = net.op("Add", x, net.linear(net.op(kind, net.linear(net.norm(x), D, HIDDEN)), HIDDEN, D))
        wrong.append(next(n.name for n in net.nodes if n.op_type == kind))
    path = net.save(tmp_path / "m.onnx", x)
    assert [f.node for f in check(path)] == wrong
    with pytest.raises(UserError) as error:
        import_model(path)
    assert all(name in str(error.value) for name in wrong)


def test_wrong_gelu_constant(tmp_path):
    def branch(net, x):
        return net.op("Mul", x, net.op("Add", net.op("Erf", net.op("Div", x, 1.5)), 1.0))

    refused(tmp_path, branch, "Erf", "GELU")


def test_mean_of_channels_of_which_others_stay(tmp_path):
    """A linear layer of equal weights."""

    def branch(net, x):
        return net.linear(net.op("ReduceMean", net.reshape(x, 1, T, 2, D // 2), [2], keepdims=0), D // 2, D)

    assert "Transpose" not in kinds(residual(tmp_path, branch))


def test_wrong_shape_is_named(tmp_path):
    refused(tmp_path, lambda n, x: n.op("MatMul", x, n.weight(D + 1, D)), "MatMul", "do not fit")


@pytest.mark.parametrize("name, value", [("auto_pad", "SAME_UPPER"), ("dilations", [2, 2])])
def test_patch_convolution_with_borders_and_gaps(tmp_path, name, value):
    net = Net()
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2], name: value}
    conv = net.op("Conv", "image", net.weight(D, 1, 2, 2), **attributes)
    y = net.op("Transpose", net.reshape(conv, 1, D, -1), perm=[0, 2, 1])
    result = import_model(net.save(tmp_path / "m.onnx", net.linear(y, D, D), shape=(1, "t", D)))
    assert kinds(result) == ["PatchEmbed", "Linear"]


def test_softmax_on_the_output(tmp_path):
    net = Net()
    y = net.op("Softmax", net.linear(net.norm(net.embed()), D, D), axis=-1)
    assert isinstance(import_model(net.save(tmp_path / "m.onnx", y)).nodes[-1], graph.Softmax)

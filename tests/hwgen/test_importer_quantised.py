"""Files on integers, imported to tensor IR: T equals the file as onnxruntime runs it, and its grids can be read."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen.errors import UserError
from hwgen.importer.importer import import_program
from hwgen.importer.load import load
from hwgen.importer.quantised import grid, read_dynamic, read_grid
from hwgen.importer.reference import reference
from hwgen.proof import confirm
from hwgen.tensor import Builder, evaluate, verify

quantization = pytest.importorskip("onnxruntime.quantization")

D, TOKENS = 8, 6
KINDS = {
    name: getattr(TensorProto, name.upper()) for name in ("int4", "uint4", "int8", "uint8", "int16", "uint16", "int32")
}


class Net:
    """Nodes and initialisers of a network from `image` [1, 1, 4, 6] over `x` [1, 6, 8]."""

    def __init__(self, opset=21):
        self.opset, self.nodes, self.tensors = opset, [], []
        self.rng = np.random.default_rng(0)
        conv = self.op("Conv", "image", self.normal(D, 1, 2, 2), strides=[2, 2])
        self.x = self.op("Transpose", self.op("Reshape", conv, np.array([1, D, TOKENS])), perm=[0, 2, 1])

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def const(self, value, kind=None):
        name = f"c{len(self.tensors)}"
        tensor = numpy_helper.from_array(np.asarray(value), name)
        if kind is not None:
            tensor = helper.make_tensor(name, kind, np.shape(value), np.asarray(value).reshape(-1))
        self.tensors.append(tensor)
        return name

    def op(self, kind, *inputs, outputs=1, **attributes):
        inputs = [i if isinstance(i, str) else self.const(i) for i in inputs]
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, f"n{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def pair(self, x, scale=0.05, zero=3, kind="int8", between=lambda q: q, **attributes):
        parameters = [self.const(np.asarray(scale, np.float32)), self.const(zero, KINDS[kind])]
        q = between(self.op("QuantizeLinear", x, *parameters, **attributes))
        return self.op("DequantizeLinear", q, *parameters, **attributes)

    def save(self, path, y, shape=None):
        infos = [helper.make_tensor_value_info("image", 1, [1, 1, 4, 6]), helper.make_tensor_value_info(y, 1, shape)]
        graph = helper.make_graph(self.nodes, "g", infos[:1], infos[1:], self.tensors)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
        return path


def program_of(path):
    program, findings = import_program(load(path))
    assert not findings, findings
    verify(program)
    return program


def proven(path, images=3, size=(1, 4, 6), scale=1.0, steps=0.0):
    """The program, after a comparison with the file; `steps`: the share of elements that may be another step of their grid,
    where a product in floating point ends on the other side of a half."""
    program = program_of(path)
    rng = np.random.default_rng(1)
    image = (scale * rng.standard_normal((images, *size))).astype(np.float32)
    ((name, expected),) = reference(path, {"image": image}).items()
    for i in range(images):
        found = evaluate(program, {"image": image[i : i + 1]})[0][name]
        error = np.abs(found[0] - expected[i]) / max(expected[i].std(), 1e-9)
        assert (error > 1e-4).mean() <= steps and error.max() <= (0.1 if steps else 1e-4), i
    return program


def grids(program):
    """What `read_grid` finds, and how many roundings there are."""
    nodes = [n for n in program.nodes() if n.op.kind == "map"]
    found = [read_grid(n.ref) for n in nodes if n.op.function == "mul"]
    return [g for g in found if g], sum(n.op.function == "round" for n in nodes)


LIMITS = {
    "int4": (-8, 7),
    "uint4": (0, 15),
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}


@pytest.mark.parametrize("kind", LIMITS)
@pytest.mark.parametrize("zero", [0, 3])
def test_a_pair_is_one_grid(tmp_path, kind, zero):
    net = Net()
    program = proven(net.save(tmp_path / "m.onnx", net.pair(net.x, 0.05, zero, kind)), scale=2.0)
    ((x, scale, low, high),), rounds = grids(program)
    assert rounds == 1 and scale == np.float32(0.05) and x.shape == (1, TOKENS, D)
    assert (low, high) == (LIMITS[kind][0] - zero, LIMITS[kind][1] - zero)


def identity(net, x):
    scale, zero = (net.op("Identity", net.const(v)) for v in (np.float32(0.1), np.int8(1)))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)


def cast_and_reshaped(net, x):
    scale = net.op("Cast", net.op("Reshape", net.const(np.float16([[0.125]])), np.array([], np.int64)), to=1)
    zero = net.op("Squeeze", net.const(np.uint8([7])), [0])
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)


def constant_nodes(net, x):
    tensors = (numpy_helper.from_array(v) for v in (np.float32(0.1), np.int8(-4)))
    scale, zero = (net.op("Constant", value=tensor) for tensor in tensors)
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)


def output_dtype(net, x):
    scale = net.const(np.float32(0.1))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, output_dtype=TensorProto.INT8), scale)


def without_zero_point(net, x):
    scale = net.const(np.float32(0.1))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale), scale)


def moved(net, x):
    def between(q):
        q = net.op("Transpose", net.op("Reshape", q, np.array([1, TOKENS, 2, 4])), perm=[0, 2, 1, 3])
        return net.op("Slice", q, [0], [1], [1])

    return net.pair(x, between=between)


def clipped(net, x):
    bounds = [net.const(v, TensorProto.INT8) for v in (-100, 90)]
    return net.pair(x, between=lambda q: net.op("Clip", q, *bounds))


def scale_of_one(net, x):
    return net.pair(net.op("Mul", x, np.float32(20)), 1.0, 0)


@pytest.mark.parametrize(
    "form",
    [identity, cast_and_reshaped, constant_nodes, output_dtype, without_zero_point, moved, clipped, scale_of_one],
)
def test_forms_of_a_pair(tmp_path, form):
    net = Net()
    program = proven(net.save(tmp_path / "m.onnx", form(net, net.x)), scale=3.0)
    if form is scale_of_one:
        assert read_grid(next(iter(program.outputs.values())))[1] == 1
    else:
        ((_, _, low, high),), rounds = grids(program)
        assert rounds == 1
        assert form is not clipped or (low, high) == (-103, 87)
        assert form is not output_dtype or (low, high) == (-128, 127)


def test_read_grid_gives_what_grid_was_given():
    t = Builder()
    x = t.input("x", (2, 3))
    for scale, low, high in ((0.25, -3, 12), (1.0, -1, 1), (0.5, 0, 255)):
        made = grid(t, x, scale, low, high)
        found = read_grid(made)
        assert found[0] == x and tuple(map(float, found[1:])) == (scale, low, high)
        assert read_grid(t.transpose(made, (1, 0)))[0] == t.transpose(x, (1, 0))
    steps = np.float32([0.5, 0.25, 2])
    np.testing.assert_array_equal(
        np.broadcast_to(read_grid(grid(t, x, steps, -8, 7))[1], (2, 3)), np.tile(steps, (2, 1))
    )
    assert read_grid(t.map("mul", t.map("round", t.map("div", x, 0.5)), 0.5)) is None
    assert read_grid(t.map("mul", t.map("min", t.map("max", t.map("round", t.map("div", x, 0.5)), 0), 1), 0.25)) is None


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_scales_along_an_axis(tmp_path, axis):
    net = Net()
    n = (1, TOKENS, D)[axis]
    y = net.pair(net.x, 0.02 + 0.1 * net.rng.random(n), net.rng.integers(-5, 5, n), axis=axis)
    proven(net.save(tmp_path / "m.onnx", y))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["tensor", "axis", "block", "uneven block"])
def test_weights(tmp_path, kind, form):
    """Fold to numbers on the grid of the file."""
    net = Net()
    low, high = LIMITS.get(kind, (-9999, 9999))
    weight = net.rng.integers(low, high + 1, (D, 4))
    shape, attributes = {
        "tensor": ((), {}),
        "axis": ((4,), {"axis": 1}),
        "block": ((2, 4), {"axis": 0, "block_size": 4}),
        "uneven block": ((3, 4), {"axis": 0, "block_size": 3}),
    }[form]
    scale = (0.01 + net.rng.random(shape) / 50).astype(np.float32)
    zero = net.const(np.broadcast_to(0 if kind == "int32" else (low + high) // 2, shape), KINDS[kind])
    q = net.op("DequantizeLinear", net.const(weight, KINDS[kind]), net.const(scale), zero, **attributes)
    program = proven(net.save(tmp_path / "m.onnx", net.op("MatMul", net.x, q)))
    assert not grids(program)[1]


@pytest.mark.parametrize("opset", [10, 13, 17, 19, 21, 23, 25])
def test_opsets(tmp_path, opset):
    net = Net(opset)
    y = net.op(
        "MatMul",
        net.pair(net.x, kind="uint8"),
        net.op("DequantizeLinear", np.int8(net.normal(D, D) * 50), np.float32(0.02)),
    )
    proven(net.save(tmp_path / "m.onnx", net.pair(y)))


# --- what onnxruntime's quantiser and optimiser write -----------------------------------------------------------------


@pytest.fixture
def float_model(tmp_path):
    net = Net(17)
    hidden = net.op("Relu", net.op("Add", net.op("MatMul", net.x, net.normal(D, 16)), net.normal(16)))
    y = net.op("Sigmoid", net.op("Add", net.op("MatMul", hidden, net.normal(16, D) / 4), net.x))
    y = net.op("MatMul", y, net.op("Transpose", net.op("Mul", y, y), perm=[0, 2, 1]))
    return net.save(tmp_path / "float.onnx", net.op("Concat", y, net.x, axis=2), [1, TOKENS, TOKENS + D])


class Images:
    def __init__(self):
        rng = np.random.default_rng(2)
        self.rest = iter({"image": rng.standard_normal((1, 1, 4, 6)).astype(np.float32)} for _ in range(8))

    def get_next(self):
        return next(self.rest, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("kind", ["QInt8", "QUInt8", "QInt16"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_static_quantisation_of_onnxruntime(float_model, tmp_path, form, kind, per_channel):
    if form == "QOperator" and kind == "QInt16":
        pytest.skip("onnxruntime has no such operators")
    options = {"quant_format": quantization.QuantFormat[form], "activation_type": quantization.QuantType[kind]}
    options["reduce_range"] = form == "QOperator"  # onnxruntime's products saturate in 16 bits on CPUs without VNNI
    logging.disable(logging.WARNING)
    path = tmp_path / "q.onnx"
    options |= {"weight_type": quantization.QuantType.QInt8, "per_channel": per_channel}
    quantization.quantize_static(float_model, path, Images(), **options)
    logging.disable(logging.NOTSET)
    program = proven(path, steps=0.05)
    found, rounds = grids(program)
    assert rounds > 5 and len(found) == rounds or form == "QOperator"


def test_grids_in_half_precision(tmp_path):
    """Where the file computes in 16 bit, many an element is rounded to the next step of its grid: no other graph for that."""
    net = Net(21)
    x = net.pair(net.x, 0.3, 0)
    for _ in range(10):
        y = net.op("MatMul", x, net.pair(net.op("Identity", net.normal(D, D) / 3), 0.01, 0))
        x = net.pair(net.op("Add", net.op("Relu", y), x), 0.3, 0)
    path = net.save(tmp_path / "float.onnx", x, [1, TOKENS, D])
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)
    assert load(path).half and load(path).quantised
    confirm(path, program_of(path))
    guilty = next(n for n in model.graph.node if n.op_type == "Relu")
    guilty.op_type = "Abs"
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match="not understood"):
        confirm(tmp_path / "other.onnx", program_of(path))


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantisation_of_onnxruntime(float_model, tmp_path, per_channel):
    logging.disable(logging.WARNING)
    path = tmp_path / "q.onnx"
    options = {"weight_type": quantization.QuantType.QInt8, "reduce_range": True}
    quantization.quantize_dynamic(float_model, path, per_channel=per_channel, **options)
    logging.disable(logging.NOTSET)
    kinds = {n.op_type for n in onnx.load(path).graph.node}
    assert {"DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"} <= kinds
    program = proven(path)
    read = [read_dynamic(n.ref) for n in program.nodes() if n.op.kind == "map" and n.op.function == "sub"]
    assert sum(r is not None for r in read) >= 3
    assert not [n for n in program.nodes() if n.op.kind == "map" and n.op.function == "int"]


def test_the_dynamic_scale_of_nothing_is_one(tmp_path):
    net = Net()
    q, scale, zero = net.op("DynamicQuantizeLinear", net.op("Mul", net.x, np.float32(0)), outputs=3)
    y = net.op("Add", net.op("DequantizeLinear", q, scale, zero), scale)
    proven(net.save(tmp_path / "m.onnx", net.op("Add", net.op("Mul", net.x, np.float32(1e-3)), y)))


def integers(net, x, scale=0.03, zero=2):
    return net.op("QuantizeLinear", x, np.float32(scale), np.int8(zero)), np.float32(scale), np.int8(zero)


def contrib(kind, count, **attributes):
    def form(net):
        parts = [v for i in range(count) for v in integers(net, net.x, 0.031 + 0.0107 * i)]
        y = net.op(kind, *parts, np.float32(0.04), np.int8(5), domain="com.microsoft", **attributes)
        return net.op("DequantizeLinear", y, np.float32(0.04), np.int8(5))

    form.__name__ = kind
    return form


def qgemm(net):
    q, s, z = integers(net, net.op("Reshape", net.x, np.array([TOKENS, D])))
    weight, ws = np.int8(net.normal(4, D) * 20), (0.01 + net.rng.random(4) / 50).astype(np.float32)
    bias = np.int32(net.normal(4) * 2000)
    y = net.op(
        "QGemm",
        q,
        s,
        z,
        weight,
        ws,
        np.zeros(4, np.int8),
        bias,
        np.float32(0.05),
        np.int8(0),
        transB=1,
        domain="com.microsoft",
    )
    return net.op("Unsqueeze", net.op("DequantizeLinear", y, np.float32(0.05), np.int8(0)), [0])


def qlinear_softmax(net):
    y = net.op(
        "QLinearSoftmax",
        *integers(net, net.x),
        np.float32(1 / 256),
        np.int8(-128),
        axis=1,
        opset=13,
        domain="com.microsoft",
    )
    return net.op("DequantizeLinear", y, np.float32(1 / 256), np.int8(-128))


def pooled(kind, **attributes):
    def form(net):
        x = net.op("Reshape", net.x, np.array([1, 3, 4, 4]))
        y = net.op(kind, *integers(net, x), np.float32(0.027), np.int8(3), domain="com.microsoft", **attributes)
        return net.op("DequantizeLinear", y, np.float32(0.027), np.int8(3))

    form.__name__ = kind
    return form


def qlinear_where(net):
    parts = [*integers(net, net.x), *integers(net, net.op("Neg", net.x), 0.043), np.float32(0.037), np.int8(5)]
    y = net.op("QLinearWhere", net.op("Greater", net.x, np.float32(0.2)), *parts, domain="com.microsoft")
    return net.op("DequantizeLinear", y, np.float32(0.037), np.int8(5))


def qlinear_concat(net):
    parts = [*integers(net, net.x), *integers(net, net.x, 0.05)]
    y = net.op("QLinearConcat", np.float32(0.04), np.int8(1), *parts, axis=2, domain="com.microsoft")
    return net.op("DequantizeLinear", y, np.float32(0.04), np.int8(1))


def matmul_nbits(bits, zeros, bias=False):
    def form(net):
        outputs, inputs, block = 5, 40, 16  # the last block is not full
        w = net.rng.integers(0, 256, (outputs, 3, block * bits // 8)).astype(np.uint8)
        scales = (0.01 + net.rng.random((outputs, 3)) / 20).astype(np.float32)
        zero = [net.rng.integers(0, 256, (outputs, -(-3 * bits // 8))).astype(np.uint8)] if zeros else [""]
        x = net.op("MatMul", net.x, net.normal(D, inputs))
        rest = [*zero, "", net.normal(outputs)] if bias else zero if zeros else []
        return net.op(
            "MatMulNBits", x, w, scales, *rest, K=inputs, N=outputs, bits=bits, block_size=block, domain="com.microsoft"
        )

    form.__name__ = f"matmul_{bits}_bits"
    return form


def zeros_that_are_no_integers(net):
    w, scales = net.rng.integers(0, 256, (5, 1, 16)).astype(np.uint8), np.full(5, 0.01, np.float32)
    x = net.op("MatMul", net.x, net.normal(D, 16))
    numbers = {"K": 16, "N": 5, "bits": 8, "block_size": 16, "domain": "com.microsoft"}
    return net.op("MatMul", net.op("MatMulNBits", x, w, scales, np.full(5, 99.5, np.float32), **numbers), net.normal(5, D))


def blocks_of_int4(kind, zeros):
    """A weight whose initialiser has 4 bits, in blocks along its inputs."""

    def form(net):
        low, high = LIMITS[kind]
        w = net.const(net.rng.integers(low, high + 1, (D, 5)), KINDS[kind])
        scales = (0.01 + net.rng.random((2, 5)) / 20).astype(np.float32)
        zero = [net.const(net.rng.integers(low, high + 1, (2, 5)), KINDS[kind])] if zeros else []
        return net.op("MatMul", net.x, net.op("DequantizeLinear", w, scales, *zero, axis=0, block_size=4))

    form.__name__ = f"blocks_of_{kind}{'_with_zero_points' if zeros else ''}"
    return form


def dynamic_matmul(net):
    weight, scale = np.int8(net.normal(D, 5) * 40), (0.01 + net.rng.random(5) / 50).astype(np.float32)
    return net.op("DynamicQuantizeMatMul", net.x, weight, scale, domain="com.microsoft")


FORMS = [
    *(
        contrib("QLinearAdd", 2),
        contrib("QLinearMul", 2),
        contrib("QLinearSigmoid", 1),
        contrib("QLinearLeakyRelu", 1, alpha=0.2),
    ),
    *(qlinear_softmax, qlinear_where, pooled("QLinearGlobalAveragePool", channels_last=0)),
    pooled("QLinearAveragePool", kernel_shape=[2, 2], strides=[2, 2]),
    *(
        qgemm,
        qlinear_concat,
        dynamic_matmul,
        matmul_nbits(4, False),
        matmul_nbits(4, True),
        matmul_nbits(8, True, bias=True),
        *(blocks_of_int4(kind, zeros) for kind in ("int4", "uint4") for zeros in (False, True)),
    ),
]


@pytest.mark.parametrize("form", FORMS)
def test_operators_of_onnxruntime(tmp_path, form):
    net = Net()
    proven(net.save(tmp_path / "m.onnx", form(net)), steps=0.05)


@pytest.mark.parametrize(
    "form, words",
    [
        (
            lambda n: n.op("DequantizeLinear", n.const(np.ones(4), TensorProto.FLOAT8E4M3FN), np.float32(1)),
            "holds float8_e4m3fn",
        ),
        (lambda n: n.op("DequantizeLinear", np.ones((3, 4), np.int8), np.ones(2, np.float32), axis=1), "does not fit"),
        (zeros_that_are_no_integers, "8 bits and zero points that are no whole numbers"),
        (lambda n: n.op("QMoE", n.x, n.x, n.x, domain="com.microsoft"), "not supported"),
    ],
)
def test_refused(tmp_path, form, words):
    net = Net()
    path = net.save(tmp_path / "m.onnx", net.op("Add", net.x, form(net)))
    found = import_program(load(path))[1]
    assert found and words in found[0].reason, found

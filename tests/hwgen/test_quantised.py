"""Models that are quantised already: QDQ and dynamic quantisation are understood, integer operators are refused."""

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph as fg
from hwgen.errors import UserError
from hwgen.importer.reference import reference
from hwgen.intgraph import Constant, Input, MatMul
from hwgen.levels import check, import_model
from hwgen.select import integers
from sim import golden

quantization = pytest.importorskip("onnxruntime.quantization")


class Images:
    """Calibration data as onnxruntime wants it."""

    def __init__(self, images):
        self.rest = iter({"image": image[None]} for image in images)

    def get_next(self):
        return next(self.rest, None)


@pytest.fixture(scope="module")
def data(models):
    with np.load(models / "digits_calib.npz") as file:
        return file["image"]


def static(source, target, images, **options):
    logging.disable(logging.WARNING)
    try:
        options = {"weight_type": quantization.QuantType.QInt8, **options}
        options.setdefault("quant_format", quantization.QuantFormat.QDQ)
        quantization.quantize_static(str(source), str(target), Images(images), **options)
    finally:
        logging.disable(logging.NOTSET)
    return target


def snr(expected, found):
    return 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum())


def run(integer, images):
    found = [golden.run(integer, {"image": image}).outputs for image in images]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}


def emulated(path, images):
    """The file's own answers, its rounding of activations included."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    rows = [session.run(names, {"image": image[None]}) for image in images]
    return {name: np.concatenate([row[i] for row in rows]) for i, name in enumerate(names)}


def file_weights(path):
    """The 2-D int8 weights of a QDQ file, [columns, inputs] each as in its MatMul or Gemm."""
    proto = onnx.load(path)
    transposed = {n.input[1] for n in proto.graph.node if n.op_type == "Gemm"}
    held = {t.name: t for t in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        tensor = held.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if tensor is not None and len(tensor.dims) == 2 and tensor.data_type == TensorProto.INT8:
            array = numpy_helper.to_array(tensor)
            found.append(array if node.output[0] in transposed else array.T)
    return found


def test_the_shared_model_keeps_weights_and_accuracy_without_calibration(models, data):
    """Every int8 matrix of the file is a matrix of the array, and the answers are nearer to float than the file's own."""
    path = models / "vit_digits_qdq.onnx"
    graph = import_model(path)
    assert not fg.without_range(graph)
    integer = integers({"": graph}, None)[""]
    ours = {op.w.tobytes() for op in integer.ops if isinstance(op, MatMul) and isinstance(op.w, np.ndarray)}
    ours |= {(op.data // 256).astype(np.int8).tobytes() for op in integer.ops if isinstance(op, Constant)}  # V: streamed
    theirs = file_weights(path)
    assert len(theirs) == 17
    for weight in theirs:
        for part in np.split(weight, 3) if len(weight) == 192 else [weight]:  # q, k and v
            assert np.ascontiguousarray(part).tobytes() in ours, weight.shape
    with np.load(models / "digits_test.npz") as file:
        images, labels = file["image"][:40], file["label_digit"][:40]
    found = run(integer, images)["logits"]
    float_model = reference(models / "vit_digits.onnx", {"image": images})["logits"]
    assert (found.argmax(1) == labels).mean() >= (float_model.argmax(1) == labels).mean() - 0.025
    theirs = emulated(path, images)["logits"]
    assert snr(float_model, found) > 28 > snr(float_model, theirs) and snr(theirs, found) > 18


@pytest.mark.parametrize(
    "name, options",
    [
        ("vit_digits", {"activation_type": quantization.QuantType.QUInt8}),
        ("vit_digits_dynamo", {"activation_type": quantization.QuantType.QInt16, "per_channel": True}),
        ("m3vit_digits_digit", {"activation_type": quantization.QuantType.QInt8, "per_channel": True}),
        (
            "m3vit_digits_parity",
            {
                **dict.fromkeys(("weight_type", "activation_type"), quantization.QuantType.QUInt8),
                "op_types_to_quantize": ["MatMul", "Conv", "Gemm"],
            },
        ),
    ],
)
def test_static_quantisation_of_onnxruntime(models, data, tmp_path, name, options):
    path = static(models / f"{name}.onnx", tmp_path / "q.onnx", data[:16], **options)
    integer = integers({"": import_model(path)}, None)[""]
    images = data[100:120]
    (found,), (wanted,) = run(integer, images).values(), reference(models / f"{name}.onnx", {"image": images}).values()
    (theirs,) = emulated(path, images).values()
    assert snr(wanted, found) > max(snr(wanted, theirs), 22)


@pytest.mark.parametrize("per_channel", (False, True))
def test_dynamic_quantisation_of_onnxruntime(models, data, tmp_path, per_channel):
    logging.disable(logging.WARNING)
    quantization.quantize_dynamic(
        str(models / "vit_digits.onnx"), str(tmp_path / "q.onnx"), per_channel=per_channel,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    logging.disable(logging.NOTSET)
    graph = import_model(tmp_path / "q.onnx")
    assert not graph.ranges
    found = run(integers({"": graph}, {"image": data[:32]})[""], data[100:120])["logits"]
    assert snr(reference(models / "vit_digits.onnx", {"image": data[100:120]})["logits"], found) > 25


def test_operators_on_integers_are_refused(models, data, tmp_path):
    path = static(
        models / "vit_digits_dynamo.onnx",
        tmp_path / "q.onnx",
        data[:4],
        quant_format=quantization.QuantFormat.QOperator,
    )
    findings = check(path)
    assert {"QLinearConv", "QLinearMatMul"} <= {f.op for f in findings}
    assert all("QDQ format" in f.hint for f in findings)
    with pytest.raises(UserError, match="QLinearMatMul: not supported.*QDQ format"):
        import_model(path)


# --- by hand ---------------------------------------------------------------------------------------------------------


def small(tmp_path, middle, initialisers, opset=21):
    """image -> 4x4 patches [1, 4, 8] "tokens"; `middle` makes "y" [1, 4, n] of them."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.standard_normal((8, 1, 4, 4)).astype(np.float32),
        "shape": np.array([1, 8, 4]),
        **initialisers,
    }
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv", strides=[4, 4]),
        helper.make_node("Reshape", ["c", "shape"], ["r"], "reshape"),
        helper.make_node("Transpose", ["r"], ["tokens"], "transpose", perm=[0, 2, 1]),
        *middle,
    ]
    info = helper.make_tensor_value_info
    tensors = [a if isinstance(a, TensorProto) else numpy_helper.from_array(a, n) for n, a in constants.items()]
    graph = helper.make_graph(nodes, "g", [info("image", 1, [1, 1, 8, 8])], [info("y", 1, [1, 4, None])], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def pair(name, scale="s", zero="z", back=None):
    back = back or (scale, zero)
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], f"{name}_quantise"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *back], [f"{name}_d"], f"{name}_dequantise"),
    ]


def constants(scale=0.5, zero=3, kind=np.uint8):
    return {"s": np.float32(scale), "z": kind(zero)}


def test_a_pair_tells_the_range(tmp_path):
    weight = np.eye(8, dtype=np.float32)
    nodes = [*pair("tokens"), helper.make_node("MatMul", ["tokens_d", "m"], ["y"], "mm")]
    graph = import_model(small(tmp_path, nodes, {**constants(), "m": weight}))
    patches, linear = graph.nodes
    ((name, (low, high)),) = graph.ranges.items()
    assert name == patches.name and np.all(low == -1.5) and np.all(high == 126.0) and low.shape == (8,)
    assert fg.without_range(graph) == ["image", linear.name]


def test_integers_may_be_moved_between_the_pair(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["tokens", "s", "z"], ["q"], "quantise"),
        helper.make_node("Transpose", ["q"], ["t"], "t1", perm=[0, 2, 1]),
        helper.make_node("Transpose", ["t"], ["u"], "t2", perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["u", "s", "z"], ["y"], "dequantise"),
    ]
    graph = import_model(small(tmp_path, nodes, constants()))
    assert [type(n) for n in graph.nodes] == [fg.PatchEmbed] and graph.ranges


@pytest.mark.parametrize(
    "nodes, extra, said",
    [
        (
            [*pair("tokens", back=("s2", "z")), helper.make_node("Identity", ["tokens_d"], ["y"], "out")],
            {"s2": np.float32(0.25)},
            "QuantizeLinear: not supported",
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["tokens", "s", "z"], ["q"], "quantise"),
                helper.make_node("Cast", ["q"], ["y"], "cast", to=1),
            ],
            {},
            "QuantizeLinear: not supported",
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["m", "ms"], ["md"], "dequantise", axis=0, block_size=4),
                helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
            ],
            {"m": np.ones((8, 8), np.int8), "ms": np.ones((2, 8), np.float32)},
            "quantised in blocks of 4",
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["m", "ms"], ["md"], "dequantise"),
                helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
            ],
            {"m": helper.make_tensor("m", TensorProto.FLOAT8E4M3FN, [8, 8], np.ones(64)), "ms": np.float32(1)},
            "holds float8_e4m3fn",
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["m", "ms"], ["md"], "dequantise"),
                helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
            ],
            {"m": helper.make_tensor("m", TensorProto.INT4, [8, 8], np.ones(64, int)), "ms": np.float32(1)},
            "holds int4",
        ),
    ],
)
def test_refused(tmp_path, nodes, extra, said):
    path = small(tmp_path, nodes, {**constants(), **extra})
    with pytest.raises(UserError, match=said):
        import_model(path)


def test_weights_are_kept_through_zero_points_and_minus_128(tmp_path):
    """A uint8 file with zero point 128: the same integers; -128, which the array cannot hold, becomes -127."""
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 256, (8, 6)).astype(np.uint8)
    weight[:, 0] = [0, 255, 128, 1, 2, 3, 4, 5]
    nodes = [
        helper.make_node("DequantizeLinear", ["m", "ms", "mz"], ["md"], "dequantise", axis=1),
        helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
    ]
    step = np.exp(rng.uniform(-6, -3, 6)).astype(np.float32)
    path = small(tmp_path, nodes, {"m": weight, "ms": step, "mz": np.full(6, 128, np.uint8)})
    integer = integers({"": import_model(path)}, {"image": rng.standard_normal((4, 1, 8, 8)).astype(np.float32)})[""]
    (product,) = [op for op in integer.ops if isinstance(op, MatMul) and op.w.shape == (6, 8)]
    expected = np.maximum(weight.T.astype(int) - 128, -127)
    np.testing.assert_array_equal(product.w, expected)


def test_the_image_keeps_the_scale_of_the_file(tmp_path):
    nodes = [helper.make_node("MatMul", ["tokens", "m"], ["y"], "mm")]
    path = small(tmp_path, nodes, {"m": np.eye(8, dtype=np.float32), **constants(0.02, 118)})
    proto = onnx.load(path)
    for node in reversed(pair("image")):
        proto.graph.node.insert(0, node)
    proto.graph.node[2].input[0] = "image_d"
    onnx.save(proto, path)
    graph = import_model(path)
    low, high = graph.ranges["image"]
    assert (*low, *high) == pytest.approx((-2.36, 2.74))
    (image,) = (op for op in integers({"": graph}, None)[""].ops if isinstance(op, Input))
    assert image.step == pytest.approx(0.02 * 255 / 254) and image.offset == pytest.approx(0.19)


def test_a_pair_around_some_columns_or_rows_limits_only_these(tmp_path):
    rng = np.random.default_rng(2)
    values = {"m": rng.standard_normal((8, 6)).astype(np.float32), "half": np.array([2, 4]), **constants(0.1, 128)}
    values |= {"at": np.array([0]), "one": np.array([1]), "axis": np.array([1]), "zero": np.zeros((1, 1, 6), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["tokens", "m"], ["p"], "mm"),
        helper.make_node("Split", ["p", "half"], ["left", "right"], "split", axis=2),
        *pair("left"),
        helper.make_node("Concat", ["left_d", "right"], ["joined"], "join", axis=2),
        helper.make_node("Slice", ["joined", "at", "one", "axis"], ["row"], "row"),
        *pair("row"),
        helper.make_node("Mul", ["row_d", "zero"], ["nothing"], "nothing"),
        helper.make_node("Add", ["joined", "nothing"], ["y"], "add"),
    ]
    graph = import_model(small(tmp_path, nodes, values))
    low, high = graph.ranges[graph.outputs[0].value]
    np.testing.assert_allclose(low, [-12.8] * 2 + [-np.inf] * 4)
    np.testing.assert_allclose(high, [12.7] * 2 + [np.inf] * 4)
    assert graph.outputs[0].value in fg.without_range(graph)


def test_command_line(models, data, hwgen, tmp_path):
    """No calibration is asked for where the file brings all scales; where it brings some, the warning says how many lack."""
    shape = ["--set", "array_outputs=16", "--set", "array_inputs=16", "--stop-after", "schedule", "-o", tmp_path / "b"]
    code, _, err = hwgen("build", models / "vit_digits_qdq.onnx", *shape)
    assert code == 0 and "warning" not in err and "the scales of the quantised model" in err
    path = static(models / "vit_digits.onnx", tmp_path / "q.onnx", data[:4], op_types_to_quantize=["MatMul"])
    code, _, err = hwgen("build", path, *shape)
    assert code == 0 and "q.onnx: " in err and "values have no scale in the file; no --calibrate data" in err

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
from hwgen.levels import import_model
from hwgen.select import integers
from hwgen.sim import golden

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


def test_operators_on_integers_are_what_they_emulate(models, data, tmp_path):
    path = static(
        models / "vit_digits_dynamo.onnx",
        tmp_path / "q.onnx",
        data[:16],
        quant_format=quantization.QuantFormat.QOperator,
    )
    assert {"QLinearConv", "QLinearMatMul"} <= {n.op_type for n in onnx.load(path).graph.node}
    found = run(integers({"": import_model(path)}, None)[""], data[100:110])["logits"]
    assert snr(reference(models / "vit_digits_dynamo.onnx", {"image": data[100:110]})["logits"], found) > 18


def map_network(path):
    """A stem whose kernel overlaps, GELU of which the half is in the next weights (as onnxsim folds it), a depthwise convolution,
    maps side by side by channels, and a token of means before those of the map."""
    rng = np.random.default_rng(5)
    shapes = {"stem": (8, 3, 3, 3), "deep": (8, 1, 3, 3), "left": (8, 8, 1, 1), "right": (8, 8, 3, 3), "head": (16, 10)}
    held = {n: (rng.standard_normal(s) * np.prod(s[1:]) ** -0.5).astype(np.float32) for n, s in shapes.items()}
    held |= {"root": np.float32(2**0.5), "one": np.float32(1), "flat": np.array([0, 0, -1])}
    held["bias"] = rng.standard_normal(8).astype(np.float32) / 4
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "stem", "bias"], ["s"], "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Div", ["s", "root"], ["d"], "div"),
        node("Erf", ["d"], ["e"], "erf"),
        node("Add", ["e", "one"], ["f"], "add"),
        node("Mul", ["s", "f"], ["g"], "mul"),
        node("Conv", ["g", "deep"], ["w"], "deep", group=8, pads=[1, 1, 1, 1]),
        node("Conv", ["w", "left"], ["l"], "left"),
        node("Conv", ["w", "right"], ["r"], "right", pads=[1, 1, 1, 1]),
        node("Concat", ["l", "r"], ["m"], "both", axis=1),
        node("GlobalAveragePool", ["m"], ["p"], "pool"),
        node("Reshape", ["m", "flat"], ["tokens"], "tokens"),
        node("Reshape", ["p", "flat"], ["token"], "token"),
        node("Concat", ["token", "tokens"], ["all"], "all", axis=2),
        node("Transpose", ["all"], ["t"], "turned", perm=[0, 2, 1]),
        node("MatMul", ["t", "head"], ["y"], "head"),
    ]
    info = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(a, n) for n, a in held.items()]
    graph = helper.make_graph(nodes, "g", [info("image", 1, [1, 3, 16, 16])], [info("y", 1, [1, 65, 10])], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize("form", ["float", "QDQ", "QOperator", "dynamic"])
def test_maps_as_onnxruntime_quantises_them(tmp_path, form):
    path, q = map_network(tmp_path / "m.onnx"), tmp_path / "q.onnx"
    images = np.random.default_rng(6).standard_normal((12, 3, 16, 16)).astype(np.float32)
    if form == "dynamic":
        quantization.quantize_dynamic(str(path), str(q), weight_type=quantization.QuantType.QInt8)
    elif form != "float":
        kind = quantization.QuantType.QUInt8 if form == "QOperator" else quantization.QuantType.QInt8
        static(path, q, images[:8], quant_format=quantization.QuantFormat[form], activation_type=kind, per_channel=True)
    graph = import_model(path if form == "float" else q)
    found = run(integers({"": graph}, {"image": images[:8]})[""], images[8:])["y"]
    assert snr(reference(path, {"image": images[8:]})["y"], found) > 28


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
    patches, limit, linear = graph.nodes
    assert (limit.x, limit.low, limit.high, linear.x) == (patches.name, -1.5, 126.0, limit.name)
    assert all(np.all(low == -1.5) and np.all(high == 126.0) for low, high in graph.ranges.values())
    assert fg.without_range(graph) == ["image", linear.name]


def test_integers_may_be_moved_between_the_pair(tmp_path):
    nodes = [
        helper.make_node("QuantizeLinear", ["tokens", "s", "z"], ["q"], "quantise"),
        helper.make_node("Transpose", ["q"], ["t"], "t1", perm=[0, 2, 1]),
        helper.make_node("Transpose", ["t"], ["u"], "t2", perm=[0, 2, 1]),
        helper.make_node("DequantizeLinear", ["u", "s", "z"], ["y"], "dequantise"),
    ]
    graph = import_model(small(tmp_path, nodes, constants()))
    assert [type(n) for n in graph.nodes] == [fg.PatchEmbed, fg.Clip] and graph.ranges


def taken(tmp_path, nodes, extra):
    """A file's graph, proven against the file."""
    return import_model(small(tmp_path, nodes, {**constants(), **extra}))


def test_another_scale_on_the_way_back_is_a_factor(tmp_path):
    nodes = [*pair("tokens", back=("s2", "z")), helper.make_node("MatMul", ["tokens_d", "m"], ["y"], "mm")]
    graph = taken(tmp_path, nodes, {"s2": np.float32(0.25), "m": np.eye(8, dtype=np.float32)})
    patches, limit, linear = graph.nodes
    assert (limit.low, limit.high) == (-0.75, 63.0)
    np.testing.assert_allclose(linear.weight, np.eye(8))
    assert linear.x == limit.name


@pytest.mark.parametrize("kind", ["blocks", "INT4"])
def test_weights_of_few_bits(tmp_path, kind):
    rng = np.random.default_rng(3)
    q = rng.integers(-8, 8, (8, 8))
    scale = (0.01 + rng.random((2, 8) if kind == "blocks" else ())).astype(np.float32)
    options = {"axis": 0, "block_size": 4} if kind == "blocks" else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["m", "ms"], ["md"], "dequantise", **options),
        helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
    ]
    held = q.astype(np.int8) if kind == "blocks" else helper.make_tensor("m", TensorProto.INT4, [8, 8], q.reshape(-1))
    linear = taken(tmp_path, nodes, {"m": held, "ms": scale}).nodes[-1]
    wide = np.repeat(scale, 4, axis=0) if kind == "blocks" else scale
    np.testing.assert_allclose(linear.weight, (q * wide).T, rtol=1e-6)


@pytest.mark.parametrize(
    "nodes, extra, said",
    [
        (
            [
                helper.make_node("QuantizeLinear", ["tokens", "s", "z"], ["q"], "quantise"),
                helper.make_node("Cast", ["q"], ["y"], "cast", to=1),
            ],
            {},
            "QuantizeLinear: is round of a value",
        ),
        (
            [
                helper.make_node("DequantizeLinear", ["m", "ms"], ["md"], "dequantise"),
                helper.make_node("MatMul", ["tokens", "md"], ["y"], "mm"),
            ],
            {"m": helper.make_tensor("m", TensorProto.FLOAT8E4M3FN, [8, 8], np.ones(64)), "ms": np.float32(1)},
            "holds float8_e4m3fn",
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


def test_each_reader_has_the_range_of_its_own_pair(tmp_path):
    rng = np.random.default_rng(2)
    values = {n: rng.standard_normal((8, 8)).astype(np.float32) for n in ("a", "b", "m")}
    values |= {"wide": np.float32(1), **constants(0.02, 128)}
    nodes = [
        helper.make_node("MatMul", ["tokens", "a"], ["p"], "mm"),
        *pair("p"),
        helper.make_node("Identity", ["p"], ["p2"], "again"),
        *pair("p2", scale="wide"),
        helper.make_node("MatMul", ["p_d", "b"], ["narrow"], "narrow"),
        helper.make_node("MatMul", ["p2_d", "m"], ["other"], "other"),
        helper.make_node("Add", ["narrow", "other"], ["sum"], "add"),
        helper.make_node("Add", ["sum", "p"], ["y"], "unlimited"),
    ]
    graph = import_model(small(tmp_path, nodes, values))
    limits = {n.name: (n.low, n.high) for n in graph.nodes if isinstance(n, fg.Clip)}
    readers = {n.x: n for n in graph.nodes if isinstance(n, fg.Linear) and n.x in limits}
    found = {round(limits[x][0], 4): n.weight.tolist() for x, n in readers.items()}
    assert found == {-2.56: values["b"].T.tolist(), -128.0: values["m"].T.tolist()}


def test_command_line(models, data, hwgen, tmp_path):
    """No calibration is asked for where the file brings all scales; where it brings some, the warning says how many lack."""
    shape = ["--set", "array_outputs=16", "--set", "array_inputs=16", "--stop-after", "schedule", "-o", tmp_path / "b"]
    code, _, err = hwgen("build", models / "vit_digits_qdq.onnx", *shape)
    assert code == 0 and "warning" not in err and "the scales of the quantised model" in err
    path = static(models / "vit_digits.onnx", tmp_path / "q.onnx", data[:4], op_types_to_quantize=["MatMul"])
    code, _, err = hwgen("build", path, *shape)
    assert code == 0 and "q.onnx: " in err and "values have no scale in the file; no --calibrate data" in err

"""The importer as a whole: what it folds, what it leaves out, what it refuses and by which words."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.helper import make_node

import operator_maker as maker
from hwgen.importer.importer import import_program
from hwgen.tensor import TooLarge, evaluate


def image(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape, np.float32)


def findings(proto):
    return import_program(maker.model_of(proto))[1]


def kinds(program) -> list[str]:
    return [n.op.kind for n in program.nodes() if n.op.kind not in ("input", "const")]


def test_log_of_sigmoid_has_no_infinity():
    """onnxruntime's sigmoid is 0 from -18 down, whose logarithm is minus infinity; the file means a log-sigmoid."""
    proto = maker.graph([make_node("Sigmoid", ["x"], ["s"]), make_node("Log", ["s"], ["y"])], {"x": (1, 4)}, ["y"])
    x = np.array([[-80.0, -20.0, 0.0, 30.0]], np.float32)
    got = evaluate(maker.lowered(proto), {"x": x})[0]["y"]
    np.testing.assert_allclose(got, -np.logaddexp(0, -x), rtol=1e-6, atol=1e-12)


def test_row_of_a_mask_that_is_all_false_is_the_mean():
    """Exporters fill masked scores with -3.4e38, so that a row without keys attends to all; NaN never comes up."""
    seen = np.array([[True, False, True], [False, False, False]])
    nodes = [
        make_node("Where", ["seen", "zero", "lowest"], ["bias"]),
        make_node("Add", ["x", "bias"], ["scores"]),
        make_node("Softmax", ["scores"], ["p"]),
        make_node("IsNaN", ["p"], ["bad"]),
        make_node("Where", ["bad", "zero", "p"], ["y"]),
    ]
    lowest = np.float32(np.finfo(np.float32).min)
    proto = maker.graph(nodes, {"x": (2, 3)}, ["y"], seen=seen, zero=np.float32(0), lowest=lowest)
    x = image(2, 3)
    program = maker.lowered(proto)
    got = evaluate(program, {"x": x})[0]["y"]
    np.testing.assert_allclose(got[1], [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(got, maker.run(proto, {"x": x}, "evaluator")[0], rtol=1e-5)


def test_shapes_and_constants_fold():
    nodes = [
        make_node("Shape", ["x"], ["shape"]),
        make_node("Gather", ["shape", "zero"], ["batch"]),
        make_node("Unsqueeze", ["batch", "zeros"], ["batch1"]),
        make_node("Concat", ["batch1", "rest"], ["target"], axis=0),
        make_node("Reshape", ["x", "target"], ["y"]),
    ]
    proto = maker.graph(nodes, {"x": (1, 3, 4)}, ["y"], zero=np.array(0), zeros=np.array([0]), rest=np.array([-1]))
    program = maker.lowered(proto)
    assert kinds(program) == [] and program.outputs["y"].shape == (1, 12)


def test_noise_times_zero_is_nothing_and_noise_is_refused():
    def proto(scale):
        nodes = [
            make_node("RandomNormalLike", ["x"], ["noise"], "noise"),
            make_node("Mul", ["noise", "scale"], ["scaled"]),
            make_node("Add", ["x", "scaled"], ["y"]),
        ]
        return maker.graph(nodes, {"x": (1, 4)}, ["y"], scale=np.float32(scale))

    assert kinds(maker.lowered(proto(0))) == []
    (found,) = findings(proto(0.1))
    assert (found.node, found.op) == ("noise", "RandomNormalLike") and "random" in found.reason


def test_nodes_behind_a_refused_one_are_judged_too():
    nodes = [
        make_node("NonMaxSuppression", ["x", "x"], ["picked"], "first"),
        make_node("Det", ["x"], ["d"], "second"),
        make_node("Add", ["d", "d"], ["e"]),
        make_node("Unsqueeze", ["e", "axes"], ["f"]),
        make_node("MatMul", ["f", "x"], ["g"], "fits not"),
        make_node("Det", ["x"], ["dead"], "dead"),
        make_node("Concat", ["f", "f"], ["y"], axis=1),
    ]
    proto = maker.graph(nodes, {"x": (1, 4, 4)}, ["y", "g", "picked"], axes=np.array([1]))
    found = findings(proto)
    assert [f.node for f in found] == ["first", "second", "fits not"]
    assert all(f.level == "import" for f in found) and "do not fit" in found[2].reason


def test_nodes_behind_an_unknown_operator_are_judged_by_the_shapes_that_the_file_holds():
    nodes = [
        make_node("Strange", ["x"], ["s"], "first", domain="com.example"),
        make_node("Det", ["s"], ["d"], "second"),
        make_node("Strange", ["x"], ["unknown"], "third", domain="com.example"),
        make_node("Det", ["unknown"], ["e"], "cannot be judged"),
    ]
    proto = maker.graph(nodes, {"x": (1, 4)}, ["d", "e"])
    assert [f.node for f in findings(proto)] == ["first", "third"]
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, ["batch", 4, 4]))
    program, found = import_program(maker.model_of(proto))
    assert [f.node for f in found] == ["first", "second", "third"]
    assert program.outputs["d"].shape == (1,)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (make_node("BatchNormalization", ["x", "v", "v", "v", "v"], ["y", "m", "w"], training_mode=1), "training_mode=1"),
        (make_node("Relu", ["x"], ["y"], sharpness=2.0), "attribute sharpness"),
        (make_node("Dropout", ["x", "rate", "true"], ["y"]), "training_mode"),
        (make_node("MaxPool", ["x"], ["z", "y"], kernel_shape=[2, 2]), "indices of its maxima"),
        (make_node("Resize", ["x", "", "twice"], ["y"], mode="lanczos"), "lanczos"),
        (make_node("Resize", ["x", "", "twice"], ["y"], coordinate_transformation_mode="odd"), "odd"),
        (make_node("Pad", ["x", "pads"], ["y"], mode="twist"), "twist"),
        (make_node("Gelu", ["x"], ["y"], approximate="fast", domain="com.microsoft"), "fast"),
        (make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME"), "SAME"),
        (make_node("Conv", ["x", "w"], ["y"], kernel_shape=[2, 2]), "kernel_shape"),
        (make_node("Conv", ["x", "w"], ["y"], group=2), "do not fit"),
        *((make_node(op, ["x"], ["y"], axis=4), "axis 4") for op in ("Softmax", "ArgMax", "Split", "LayerNormalization")),
        (make_node("Concat", ["x", "x"], ["y"], axis=-5), "axis -5"),
        (make_node("ReduceMax", ["x"], ["y"], keepdims=3), "keepdims is 3"),
        (make_node("FusedConv", ["x", "w"], ["y"], activation="Cube", domain="com.microsoft"), "Cube"),
        (make_node("Cast", ["x"], ["y"], to=2), "uint8"),
        (make_node("Cast", ["x"], ["y"], to=8), "type 8"),
        (make_node("ConvTranspose", ["x", "w3"], ["y"], output_shape=[9, 9]), "output_shape"),
        (make_node("GridSample", ["x", "far"], ["y"], padding_mode="border"), "samples at 1e+07"),
        (make_node("Nothing", ["x"], ["y"], domain="com.example"), "not an operator that hwgen knows"),
        (make_node("Det", ["x"], ["y"]), "no rule"),
    ],
    ids=lambda v: v.op_type if hasattr(v, "op_type") else v,
)
def test_refusals_name_the_node_and_what_it_holds(node, said):
    node.name = "this one"
    constants = {"v": np.ones(3, np.float32), "w": np.ones((4, 3, 3, 3), np.float32), "true": np.array(True)}
    constants |= {"rate": np.float32(0.5), "twice": np.array([1, 1, 2, 2], np.float32), "pads": np.ones(8, np.int64)}
    constants |= {"w3": np.ones((3, 4, 2, 2), np.float32), "far": np.full((1, 2, 2, 2), 1e7, np.float32)}
    proto = maker.graph([node, make_node("Exp", ["y"], ["z0"])], {"x": (1, 3, 6, 6)}, ["z0"], **constants)
    found = findings(proto)
    assert found[0].node == "this one" and said in f"{found[0].reason} {found[0].hint}"


def test_a_constant_that_would_be_huge_is_refused_with_its_size():
    nodes = [make_node("Expand", ["v", "huge"], ["wide"]), make_node("CumSum", ["wide", "axis"], ["sums"], "sums")]
    nodes.append(make_node("Add", ["x", "sums"], ["y"]))
    huge = {"huge": np.array([1 << 14, 1 << 14, 3]), "axis": np.array(2), "v": np.arange(3, dtype=np.float32)}
    with pytest.raises(TooLarge, match="16384 x 16384 x 3"):
        findings(maker.graph(nodes, {"x": (1, 3)}, ["y"], **huge))


def test_operators_that_onnx_defines_by_others_need_no_rule():
    """The attributes of the node, and where it has none its defaults, reach the nodes of the definition."""
    for given in ({}, {"alpha": 0.3}):
        proto = maker.graph([make_node("Elu", ["x"], ["y"], **given)], {"x": (2, 5)}, ["y"], opset=13)
        x = image(2, 5)
        got = evaluate(maker.lowered(proto), {"x": x})[0]["y"]
        np.testing.assert_allclose(got, maker.run(proto, {"x": x}, "evaluator")[0], 1e-5)


def test_blocked_layout_of_the_optimisers_highest_level(tmp_path):
    """Convolutions, depthwise and strided ones, pools, a sum and an activation in onnxruntime's own layout for channels."""
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(5)
    shapes = {"w0": (20, 3, 3, 3), "w1": (20, 1, 3, 3), "w2": (32, 20, 1, 1), "w3": (32, 32, 3, 3), "w4": (16, 16, 1, 1)}
    held = {n: rng.standard_normal(s, np.float32) / np.float32(np.prod(s[1:]) ** 0.5) for n, s in shapes.items()}
    nodes = [
        make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        make_node("Conv", ["a", "w1"], ["b"], pads=[1, 1, 1, 1], group=20),
        make_node("Relu", ["b"], ["c"]),
        make_node("Conv", ["c", "w2"], ["d"]),
        make_node("MaxPool", ["d"], ["e"], kernel_shape=[2, 2], strides=[2, 2]),
        make_node("Conv", ["e", "w3"], ["f"], pads=[1, 1, 1, 1]),
        make_node("Add", ["e", "f"], ["g"]),
        make_node("Sigmoid", ["g"], ["h"]),
        make_node("Split", ["h"], ["i", "j"], axis=1, num_outputs=2),
        make_node("Conv", ["i", "w4"], ["k"]),
        make_node("Resize", ["k", "", "twice"], ["l"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        make_node("AveragePool", ["l"], ["m"], kernel_shape=[2, 2]),
        make_node("GlobalAveragePool", ["m"], ["y"]),
    ]
    proto = maker.graph(nodes, {"x": (1, 3, 16, 16)}, ["y", "l"], twice=np.array([1, 1, 2, 2], np.float32), **held)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "m.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    written = onnx.load(tmp_path / "m.onnx")
    blocked = [n.op_type for n in written.graph.node if n.domain == "com.microsoft.nchwc"]
    if not blocked:
        pytest.skip("this machine's onnxruntime blocks nothing")
    assert blocked.count("Conv") == 5 and {"MaxPool", "ReorderInput", "ReorderOutput"} <= set(blocked)
    x = image(1, 3, 16, 16)
    for got, wanted in zip(evaluate(maker.lowered(written), {"x": x})[0].values(), maker.run(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_outputs_that_nothing_reads_are_not_needed():
    nodes = [make_node("MaxPool", ["x"], ["y", "indices"], kernel_shape=[2, 2])]
    assert kinds(maker.lowered(maker.graph(nodes, {"x": (1, 3, 4, 4)}, ["y"])))[-1] == "reduce"


def test_attention_gathers_and_windows_move_nothing():
    """Window partition, unfolding by a table of indices, and pixel shuffle are layouts."""
    unfold = np.arange(5)[:, None] * 2 + np.arange(3)
    nodes = [
        make_node("Reshape", ["x", "windows"], ["a"]),
        make_node("Transpose", ["a"], ["b"], perm=[0, 2, 4, 3, 5, 1]),
        make_node("Reshape", ["b", "rows"], ["y0"]),
        make_node("Gather", ["x", "unfold"], ["y1"], axis=2),
        make_node("DepthToSpace", ["x"], ["y2"], blocksize=2, mode="CRD"),
    ]
    held = {"windows": np.array([1, 4, 3, 4, 4, 3]), "rows": np.array([12, 12, 4]), "unfold": unfold}
    proto = maker.graph(nodes, {"x": (1, 4, 12, 12)}, ["y0", "y1", "y2"], **held)
    program = maker.lowered(proto)
    assert kinds(program) == []
    x = image(1, 4, 12, 12)
    for got, wanted in zip(evaluate(program, {"x": x})[0].values(), maker.run(proto, {"x": x}, "evaluator"), strict=True):
        np.testing.assert_array_equal(got, wanted)

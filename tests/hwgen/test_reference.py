"""The float reference is the file itself, by onnxruntime or without it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen.errors import UserError
from hwgen.importer.reference import reference

IMAGES = np.random.default_rng(1).standard_normal((3, 6, 8)).astype(np.float32)


def written(tmp_path, nodes, constants, opset=17, shape=(1, 6, 8), domains=()) -> Path:
    """A model image -> y of `nodes` (operator, inputs, outputs, attributes), whatever shape y has."""
    made = [helper.make_node(kind, list(i), list(o), domain=a.pop("domain", ""), **a) for kind, i, o, a in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    sets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def without(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)


def both(path, images, monkeypatch):
    """(by onnxruntime, by the evaluator)."""
    pytest.importorskip("onnxruntime")
    fast = reference(path, {"image": images})["y"]
    without(monkeypatch)
    return fast, reference(path, {"image": images})["y"]


@pytest.mark.parametrize("opset", [13, 17, 18, 19, 21])
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_quantised_files_of_any_opset_without_onnxruntime(tmp_path, monkeypatch, opset, kind):
    rng = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.05),
        "z": np.asarray(3, kind),
        "q": rng.integers(-127, 127, (8, 5)).astype(np.int8),
        "sw": rng.uniform(0.01, 0.02, 5).astype(np.float32),
        "zw": np.zeros(5, np.int8),
    }
    nodes = [
        ("QuantizeLinear", ["image", "s", "z"], ["qx"], {}),
        ("DequantizeLinear", ["qx", "s", "z"], ["x"], {}),
        ("DequantizeLinear", ["q", "sw", "zw"], ["w"], {"axis": 1}),
        ("MatMul", ["x", "w"], ["y"], {}),
    ]
    fast, slow = both(written(tmp_path, nodes, constants, opset), IMAGES * 4, monkeypatch)
    low, high = (np.iinfo(kind).min - 3) * 0.05, (np.iinfo(kind).max - 3) * 0.05
    rounded = np.clip(np.rint(IMAGES * 4 / np.float32(0.05)) * 0.05, low, high)
    np.testing.assert_allclose(fast, rounded @ (constants["q"] * constants["sw"]), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slow, fast, rtol=1e-5, atol=1e-5)


def test_the_file_is_run_as_it_is(tmp_path):
    """A value beyond the range of a pair saturates: that is what the file says, whatever a quantiser meant by it."""
    constants = {"s": np.float32(0.01), "z": np.asarray(0, np.uint8)}
    nodes = [("QuantizeLinear", ["image", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["y"], {})]
    got = reference(written(tmp_path, nodes, constants), {"image": IMAGES})["y"]
    assert got.min() == 0 and got.max() <= np.float32(2.55) and (IMAGES < 0).any()


def test_contrib_operators_without_onnxruntime(tmp_path, monkeypatch):
    weights = {n: np.random.default_rng(i).standard_normal(8).astype(np.float32) for i, n in enumerate("gbc")}
    ms = {"domain": "com.microsoft"}
    nodes = [
        ("BiasGelu", ["image", "c"], ["a"], dict(ms)),
        ("FastGelu", ["a"], ["f"], dict(ms)),
        ("SkipLayerNormalization", ["f", "image", "g", "b", "c"], ["n", "", "", "s"], {**ms, "epsilon": 1e-3}),
        ("Gelu", ["s"], ["t"], dict(ms)),
        ("Add", ["n", "t"], ["y"], {}),
    ]
    fast, slow = both(written(tmp_path, nodes, weights, domains=["com.microsoft"]), IMAGES, monkeypatch)
    np.testing.assert_allclose(slow, fast, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("opset", [9, 13, 14, 17])
def test_batch_norm_without_onnxruntime(tmp_path, monkeypatch, opset):
    """By the file's mean and variance, in every opset."""
    rng = np.random.default_rng(0)
    held = {"s": rng.normal(size=6), "b": rng.normal(size=6), "m": rng.normal(size=6), "v": rng.uniform(0.3, 2, 6)}
    held = {name: array.astype(np.float32) for name, array in held.items()}
    nodes = [("BatchNormalization", ["image", *held], ["y"], {"epsilon": 0.01})]
    fast, slow = both(written(tmp_path, nodes, held, opset), IMAGES, monkeypatch)
    m, v, s, b = (held[n][:, None] for n in "mvsb")
    np.testing.assert_allclose(fast, (IMAGES - m) / np.sqrt(v + 0.01) * s + b, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slow, fast, rtol=1e-4, atol=1e-5)


def test_onnxruntime_runs_a_file_whose_shapes_lie_beside_it(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    held = {"shape": np.array([1, 48]), "w": rng.normal(size=(48, 5)).astype(np.float32)}
    path = written(tmp_path, [("Reshape", ["image", "shape"], ["x"], {}), ("MatMul", ["x", "w"], ["y"], {})], held)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", None)
    one = IMAGES[:1]
    np.testing.assert_allclose(reference(path, {"image": one})["y"], one.reshape(1, 48) @ held["w"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("k", [0, 1])
def test_onnxruntime_runs_a_file_with_a_diagonal_of_booleans(tmp_path, monkeypatch, k):
    """Which PyTorch's exporter writes for torch.eye in a mask, and for which onnxruntime has no kernel."""
    pytest.importorskip("onnxruntime")
    nodes = [("EyeLike", ["like"], ["eye"], {"k": k} if k else {}), ("Where", ["eye", "zero", "image"], ["y"], {})]
    path = written(tmp_path, nodes, {"like": np.ones((6, 8), bool), "zero": np.float32(0)})
    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", None)
    np.testing.assert_array_equal(reference(path, {"image": IMAGES})["y"], np.where(np.eye(6, 8, k), 0, IMAGES))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_sampling_in_the_words_of_opset_16(tmp_path, monkeypatch, mode):
    """Also where places are in double precision, which onnxruntime refuses: so TorchScript writes Mask2Former."""
    places = np.random.default_rng(0).uniform(-1.2, 1.2, (1, 3, 5, 2)).astype(np.float32)
    steps = [("Reshape", ["image", "shape"], ["x"], {}), ("GridSample", ["x", "at"], ["y"], {"mode": mode})]
    shape = np.array([-1, 1, 6, 8])
    fast, slow = both(written(tmp_path, steps, {"at": places, "shape": shape}), IMAGES[:1], monkeypatch)
    np.testing.assert_allclose(slow, fast, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kind, inputs, attributes, opset, said",
    [
        ("Softmax", ["image"], {"axis": 1}, 12, "Softmax of opset 12"),
        ("AveragePool", ["image"], {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}, 19, "AveragePool with ceil_mode"),
        ("MaxPool", ["image"], {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"}, 17, "MaxPool with auto_pad"),
        ("LpNormalization", ["image"], {"p": 1, "axis": 2}, 17, "LpNormalization of p = 1"),
        ("Resize", ["image", "", "scales"], {"mode": "linear"}, 17, "Resize by such scales"),
    ],
)
def test_the_evaluator_is_not_asked_where_it_is_wrong(tmp_path, monkeypatch, kind, inputs, attributes, opset, said):
    nodes = [(kind, inputs, ["y"], attributes)]
    path = written(tmp_path, nodes, {"scales": np.array([1, 1, 1.5], np.float32)}, opset)
    without(monkeypatch)
    with pytest.raises(UserError, match=f"m.onnx: onnxruntime is needed: .*is wrong on {said} in node 'y'"):
        reference(path, {"image": IMAGES})


def test_an_onnxruntime_too_old_for_the_model(tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = written(tmp_path, [("Neg", ["image"], ["y"], {})], {})

    def refuse(*arguments, **options):
        raise RuntimeError("Unsupported model IR version")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    np.testing.assert_array_equal(reference(path, {"image": IMAGES})["y"], -IMAGES)
    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", refuse)
    with pytest.raises(UserError, match="onnxruntime cannot run it: Unsupported model IR version"):
        reference(path, {"image": IMAGES})


def test_any_number_of_images_on_a_fixed_batch_and_sizes_from_the_images(tmp_path):
    for shape in ((1, 6, 8), ("n", "h", "w")):
        path = written(tmp_path, [("ReduceSum", ["image"], ["y"], {"keepdims": 0})], {}, shape=shape)
        np.testing.assert_allclose(reference(path, {"image": IMAGES})["y"], IMAGES.sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize(
    "images, words",
    [
        ({"picture": np.zeros((1, 6, 8))}, "no array for input 'image'"),
        ({"image": np.zeros((1, 3, 8))}, r"array 'image' has shape \(1, 3, 8\), must be \(images, 6, 8\)"),
        ({"image": np.zeros((0, 6, 8))}, "must be one number above 0"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, images, words):
    with pytest.raises(UserError, match=words):
        reference(written(tmp_path, [("Neg", ["image"], ["y"], {})], {}), images)


def test_half_precision_is_rounded_to_its_grid(tmp_path):
    """onnxruntime before 1.30, newer than which Python 3.10 has none, truncates it."""
    constants = {"s": np.float16(1), "z": np.int8(0)}
    nodes = [
        ("Cast", ["image"], ["h"], {"to": TensorProto.FLOAT16}),
        ("QuantizeLinear", ["h", "s", "z"], ["q"], {}),
        ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
        ("Cast", ["d"], ["y"], {"to": TensorProto.FLOAT}),
    ]
    path = written(tmp_path, nodes, constants, opset=19, shape=(1, 4))
    image = np.array([[0.75, -0.75, 1.5, 2.25]], np.float32)
    np.testing.assert_array_equal(reference(path, {"image": image})["y"], [[1, -1, 2, 2]])

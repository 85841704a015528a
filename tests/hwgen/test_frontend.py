"""Real exporters' files become the graph that they are, and bad files are refused by name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph
from hwgen.errors import UserError
from hwgen.levels import check, confirm, import_model, load, reference

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"
pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the real models (../shared/models) are not here")

HOLLOW = {
    "timm_deit_tiny_ts17": (12, 0),
    "timm_deit_tiny_dy18": (12, 0),
    "hf_vit_tiny_ts17_dyn": (12, 0),
    "timm_vit_small_ts16_dyn": (12, 0),
    "timm_deit_tiny_ts17__orttransformers": (12, 0),
    "m3vit_micro_nonzero_dy20": (4, 2),
    "m3vit_micro_taskcond_ts17": (4, 2),
}


def model(name: str) -> Path:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"{path.name} is not here")
    return path


def filled(name: str, folder: Path) -> Path:
    runpy.run_path(str(MODELS / "hollow.py"))["fill"](str(MODELS / "hollow" / f"{name}.onnx"), str(folder / "m.onnx"))
    return folder / "m.onnx"


def count(result: graph.Graph, kind: type) -> int:
    return sum(isinstance(n, kind) for n in result.nodes)


def worst_error(path: Path, result: graph.Graph, images: dict[str, np.ndarray]) -> float:
    """Largest error of the graph's outputs against the ONNX model, in standard deviations."""
    expected = reference(path, images)
    worst = 0.0
    for i in range(len(next(iter(images.values())))):
        got = graph.outputs(result, graph.evaluate(result, {name: images[name][i] for name in result.inputs}))
        for name, array in got.items():
            worst = max(worst, float(np.abs(array - expected[name][i]).max() / expected[name].std()))
    return worst


@pytest.mark.parametrize(
    "name, layers, routers, outputs",
    [
        ("vit_digits", 4, 0, ["logits"]),
        ("vit_digits_dynamo", 4, 0, ["logits"]),
        ("m3vit_digits_digit", 4, 2, ["digit"]),
        ("m3vit_digits_parity", 4, 2, ["parity"]),
        ("m3vit_digits_2task", 6, 4, ["digit", "parity"]),
    ],
)
def test_trained_digit_models(name, layers, routers, outputs):
    path = model(name)
    result = import_model(path)
    assert count(result, graph.Attention) == layers and count(result, graph.Route) == routers
    assert [o.name for o in result.outputs] == outputs
    images = np.load(MODELS / "digits_test.npz")["image"][:12]
    assert worst_error(path, result, {"image": images}) < 1e-3
    assert check(path) == []


def test_two_tasks_share_their_weights():
    result = import_model(model("m3vit_digits_2task"))
    one, other = (result.node(f"backbone.blocks.1.mlp.experts{task}") for task in ("", "_1"))
    assert one.w1 is other.w1 and one.b2 is other.b2 and one.routing != other.routing


def test_exporters_agree():
    """Both exports of one trained network are the same graph with the same weights."""
    a, b = (import_model(model(n)) for n in ("vit_digits", "vit_digits_dynamo"))
    assert [type(n) for n in a.nodes] == [type(n) for n in b.nodes]
    for x, y in zip(a.nodes, b.nodes, strict=True):
        if isinstance(x, graph.Linear):
            np.testing.assert_array_equal(x.weight, y.weight)


def test_names_are_readable_and_lead_back():
    result = import_model(model("m3vit_digits_digit"))
    names = [n.name for n in result.nodes]
    for name in ("norm1", "attn.q", "attn", "attn.proj", "mlp.gate.0", "mlp.experts"):
        assert f"backbone.blocks.1.{name}" in names
    assert result.node("backbone.blocks.1.attn.q").source == "/backbone/blocks.1/attn/qkv/MatMul"


@pytest.mark.parametrize("name", HOLLOW)
def test_public_exporters(name, tmp_path):
    path = filled(name, tmp_path)
    result = import_model(path, confirmed=False)
    layers, routers = HOLLOW[name]
    assert count(result, graph.Attention) == layers and count(result, graph.Route) == routers
    (image,) = result.inputs
    images = np.random.default_rng(1).standard_normal((1, *result.inputs[image]), np.float32)
    assert worst_error(path, result, {image: images}) < 1e-3


@pytest.mark.parametrize("task", [0, 1])
def test_full_size_m3vit_with_half_precision_external_weights(task):
    path = model(f"m3vit_edge_task{task}")
    result = import_model(path, confirmed=False)
    routes = [n for n in result.nodes if isinstance(n, graph.Route)]
    assert len(routes) == 6 and all(r.top_k == 2 and not r.renormalise for r in routes)
    assert all(n.w1.dtype == np.float32 for n in result.nodes if isinstance(n, graph.Experts))
    images = np.load(MODELS / "edge_images.npz")["test"][:1].astype(np.float32) / 256
    assert worst_error(path, result, {"image": images}) < 1e-3


def test_confirm_sees_a_wrong_weight():
    path = model("vit_digits")
    result = import_model(path)
    node = next(n for n in result.nodes if isinstance(n, graph.Linear))
    node.weight[3] *= 1.5
    with pytest.raises(UserError, match="not understood .* 'logits'"):
        confirm(path, result)


@pytest.mark.parametrize("name", ["vit_digits_dynamo", "m3vit_digits_digit"])
def test_reference_without_onnxruntime(name, monkeypatch):
    path = model(name)
    images = {"image": np.load(MODELS / "digits_test.npz")["image"][:3], "label": np.zeros(3)}
    fast = reference(path, images)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    slow = reference(path, images)
    for output, array in fast.items():
        np.testing.assert_allclose(slow[output], array, atol=1e-3)
    import_model(path)


def test_reference_with_an_onnxruntime_too_old_for_the_model(monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = model("vit_digits_dynamo")
    images = {"image": np.load(MODELS / "digits_test.npz")["image"][:2]}
    fast = reference(path, images)

    def refuse(*arguments, **options):
        raise RuntimeError("Unsupported model IR version")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    np.testing.assert_allclose(reference(path, images)["logits"], fast["logits"], atol=1e-3)
    monkeypatch.setattr("onnx.reference.ReferenceEvaluator", refuse)
    with pytest.raises(UserError, match="onnxruntime cannot run it: Unsupported model IR version"):
        reference(path, images)


def test_reference_runs_any_number_of_images_on_a_fixed_batch():
    images = np.load(MODELS / "digits_test.npz")["image"][:5]
    got = reference(model("m3vit_digits_2task"), {"image": images})
    assert got["digit"].shape == (5, 10) and got["parity"].shape == (5, 2)


@pytest.mark.parametrize(
    "images, words",
    [
        ({"picture": np.zeros((1, 1, 8, 8))}, "no array for input 'image'"),
        ({"image": np.zeros((1, 3, 8, 8))}, r"array 'image' has shape \(1, 3, 8, 8\)"),
        ({"image": np.zeros((0, 1, 8, 8))}, "must be one number above 0"),
    ],
)
def test_reference_names_wrong_arrays(images, words):
    with pytest.raises(UserError, match=words):
        reference(model("vit_digits"), images)


# --- files that are at fault -------------------------------------------------------------------------------------


def edited(tmp_path, edit) -> Path:
    proto = onnx.load(model("vit_digits"))
    edit(proto.graph)
    onnx.save(proto, tmp_path / "edited.onnx")
    return tmp_path / "edited.onnx"


def test_missing_file(tmp_path):
    for path in (tmp_path / "absent.onnx", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            check(path)


def test_truncated_or_foreign_file(tmp_path):
    whole = model("vit_digits").read_bytes()
    path = tmp_path / "cut.onnx"
    for data in (whole[: len(whole) // 2], whole[:-1], whole[:7], b"", b"not a model", whole[1:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match="cut.onnx"):
            check(path)


def test_external_data_missing_or_short(tmp_path):
    proto = onnx.load(model("vit_digits"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=1000)
    assert check(path) == []
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:-4])
    with pytest.raises(UserError, match="m.data is truncated"):
        check(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(UserError, match="external data of initialiser '.*': no such file .*m.data"):
        check(path)
    (tmp_path / "m.data").write_bytes(data)
    proto = onnx.load(path, load_external_data=False)
    where = next(t for t in proto.graph.initializer if t.external_data).external_data
    next(e for e in where if e.key == "offset").value = "far"
    onnx.save(proto, path)
    with pytest.raises(UserError, match="external data of initialiser '.*': bad offset or length"):
        check(path)


def test_newer_opset_is_named(tmp_path):
    proto = onnx.load(model("vit_digits"))
    proto.opset_import[0].version = 99
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UserError, match="m.onnx: opset 99; the newest that onnx .* knows is"):
        check(tmp_path / "m.onnx")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(tmp_path, value):
    def poison(g):
        tensor = next(t for t in g.initializer if t.name == "blocks.1.mlp.fc1.bias")
        array = numpy_helper.to_array(tensor).copy()
        array[5] = value
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    with pytest.raises(UserError, match=r"'blocks.1.mlp.fc1.bias' holds NaN or infinity at \[5\]"):
        check(edited(tmp_path, poison))


def test_graph_with_a_missing_value(tmp_path):
    def cut(g):
        del g.initializer[0]

    with pytest.raises(UserError, match="not a valid ONNX graph"):
        check(edited(tmp_path, cut))


@pytest.mark.parametrize(
    "shape, words",
    [
        (["n", 1, 8, "w"], r"input 'image' has shape \[\?, 1, 8, \?\]"),
        ([4, 1, 8, 8], "export with batch 1 or a dynamic batch axis"),
        ([1, 64], r"must be \[batch, C, H, W\]"),
    ],
)
def test_input_shapes(tmp_path, shape, words):
    def change(g):
        g.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, shape))

    with pytest.raises(UserError, match=words):
        check(edited(tmp_path, change))


@pytest.mark.parametrize("shape, words", [((1, 9, 9), "image remainder"), ((3, 8, 8), "Conv: the image is")])
def test_image_that_does_not_fit_the_patches(tmp_path, shape, words):
    def change(g):
        g.input[0].CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *shape]))

    with pytest.raises(UserError, match=words):
        import_model(edited(tmp_path, change))


def test_integer_images_are_refused(tmp_path):
    def change(g):
        g.input[0].type.tensor_type.elem_type = TensorProto.UINT8

    with pytest.raises(UserError, match="input 'image' is UINT8"):
        check(edited(tmp_path, change))


def test_weight_of_the_wrong_shape_is_named(tmp_path):
    def change(g):
        node = next(n for n in g.node if n.name == "/blocks/blocks.2/mlp/fc1/MatMul")
        tensor = next(t for t in g.initializer if t.name == node.input[1])
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:-3].copy(), tensor.name))

    findings = check(edited(tmp_path, change))
    assert [f.node for f in findings] == ["/blocks/blocks.2/mlp/fc1/MatMul"]
    assert "do not match" in findings[0].reason


def test_weights_are_loaded_as_float32():
    held = load(model("m3vit_edge_task0"))
    assert {a.dtype for a in held.constants.values() if a.dtype.kind == "f"} == {np.dtype(np.float32)}
    assert held.inputs == {"image": (1, 3, 128, 256)} and held.outputs == ["tokens"]

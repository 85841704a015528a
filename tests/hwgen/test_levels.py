"""Real exporters' files become the graph that they are, level by level, each proven against the file."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import graph, leveltext, tensor
from hwgen.errors import UserError
from hwgen.importer.load import load
from hwgen.importer.reference import reference
from hwgen.levels import check, compiled, confirm, import_model, layers, tasks
from hwgen.levels import tensor as level_t
from hwgen.proof import difference

MODELS = Path(__file__).resolve().parents[2].parent / "shared" / "models"

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
    if not MODELS.exists():
        pytest.skip("the hollow files of real networks are not here")
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




@pytest.mark.parametrize("name", ["vit_digits_dynamo", "m3vit_digits_parity"])
def test_without_onnxruntime(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    import_model(model(name))


def test_weights_are_loaded_as_float32():
    held = load(model("m3vit_edge_task0"))
    assert {a.dtype for a in held.constants.values() if a.dtype.kind == "f"} == {np.dtype(np.float32)}
    assert held.inputs == {"image": (1, 3, 128, 256)} and held.outputs == ["tokens"]


# --- levels and their proof, on networks written here ---------------------------------------------------------------

D, T = 8, 4
RNG = np.random.default_rng(0)
WEIGHTS = {
    "patch": RNG.standard_normal((D, 3, 2, 2)) * 0.3,
    "w1": RNG.standard_normal((D, 16)) * 0.3,
    "w2": RNG.standard_normal((16, D)) * 0.3,
    "g": 1 + 0.1 * RNG.standard_normal(D),
    "b": 0.1 * RNG.standard_normal(D),
    "head": RNG.standard_normal((D, 5)) * 0.5,
    "heads": RNG.standard_normal((3, D, 5)) * 0.5,
    "one": RNG.standard_normal((D, 1)) * 0.5,
}


def network(tmp_path, end, outputs, extra=(), inputs=(), constants=(), act="Gelu", name="m.onnx"):
    """Patches, LayerNorm, MLP, the mean of the tokens as `pooled`; then `end`: (operator, inputs, outputs, attributes)."""
    chain = [
        ("Conv", ["image", "patch"], ["c"], {"strides": [2, 2]}),
        ("Reshape", ["c", "flat"], ["r"], {}),
        ("Transpose", ["r"], ["x"], {"perm": [0, 2, 1]}),
        ("LayerNormalization", ["x", "g", "b"], ["n"], {}),
        ("MatMul", ["n", "w1"], ["h"], {}),
        (act, ["h"], ["a"], {}),
        ("MatMul", ["a", "w2"], ["y"], {}),
        ("Add", ["x", "y"], ["z"], {}),
        ("ReduceMean", ["z", "axis"], ["pooled"], {"keepdims": 0}),
        *end,
    ]
    held = {k: v.astype(np.float32) for k, v in WEIGHTS.items()} | {"flat": np.array([1, D, -1]), "axis": np.array([1])}
    held |= dict(constants)
    made = helper.make_graph(
        [helper.make_node(kind, i, o, f"n_{o[0]}", **a) for kind, i, o, a in chain],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 4, 4]), *inputs],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / name)
    return tmp_path / name


HEAD = [("MatMul", ["pooled", "head"], ["logits"], {})]


def test_levels_are_proven_one_by_one_and_readable(tmp_path):
    path = network(tmp_path, HEAD, ["logits"])
    done = compiled(path).until("rows")
    assert not done.findings and list(done.levels) == ["tensor", "layers", "rows"]
    for level in done.levels.values():
        found = difference(done.model, level)
        assert found.error < 1e-5 and found.output == "logits" and not found.wrong
    assert "contract" in tensor.text(level_t(path)) and " norm " in tensor.text(layers(path))
    assert "nodes += Linear(" in leveltext.text(done.levels["rows"])


def test_the_level_at_fault_is_named(tmp_path):
    done = compiled(network(tmp_path, HEAD, ["logits"])).until("rows")
    node = next(n for n in done.levels["rows"].nodes if isinstance(n, graph.Linear))
    node.weight[0] *= 1.5
    with pytest.raises(UserError, match=r"not understood .*'logits' differs .* from level 'rows' on"):
        confirm(done.model, done.levels["rows"], done.levels)


@pytest.mark.parametrize("end", ["one logit", "one logit beside others", "mean of the scores", "constant output"])
def test_outputs_of_one_element(tmp_path, end):
    """The deviation of one element over one image is 0: it is taken over several."""
    mean = [("ReduceMean", ["logits", "all"], ["score"], {"keepdims": 1})]
    ends = {
        "one logit": ([("MatMul", ["pooled", "one"], ["score"], {})], ["score"]),
        "one logit beside others": ([*HEAD, ("MatMul", ["pooled", "one"], ["score"], {})], ["logits", "score"]),
        "mean of the scores": ([*HEAD, *mean], ["score"]),
        "constant output": ([("MatMul", ["pooled", "zero"], ["p"], {}), ("Add", ["p", "b1"], ["score"], {})], ["score"]),
    }
    nodes, outputs = ends[end]
    constants = {"all": np.array([1]), "zero": np.zeros((D, 1), np.float32), "b1": np.full((1, 1), 7, np.float32)}
    done = compiled(network(tmp_path, nodes, outputs, constants=constants)).until("tensor")
    assert not done.findings
    confirm(done.model, done.levels["tensor"])


def test_a_wrong_output_of_one_element_is_seen(tmp_path):
    """Also where its value hardly varies: 7 plus something small."""
    end = [("MatMul", ["pooled", "small"], ["p"], {}), ("Add", ["p", "b1"], ["score"], {})]
    right, wrong = (
        compiled(
            network(tmp_path, end, ["score"], name=f"{i}.onnx", constants={"b1": np.full((1, 1), 7, np.float32), "small": small})
        ).until("tensor")
        for i, small in enumerate(np.float32(0.01) * WEIGHTS["one"].astype(np.float32) * np.float32([[[1]], [[1.1]]]))
    )
    confirm(right.model, right.levels["tensor"])
    with pytest.raises(UserError, match="output 'score' differs"):
        confirm(right.model, wrong.levels["tensor"])


def test_check_names_everything_at_once_also_behind_a_refused_node(tmp_path):
    end = [
        ("Bernoulli", ["pooled"], ["random"], {}),
        ("MatMul", ["random", "head"], ["l"], {}),
        ("Sin", ["l"], ["s"], {}),
        ("MatMul", ["pooled", "head"], ["k"], {}),
        ("Cos", ["k"], ["t"], {}),
        ("Add", ["s", "t"], ["logits"], {}),
    ]
    path = network(tmp_path, end, ["logits"])
    found = {f.node: f for f in check(path)}
    assert {"n_random", "n_s", "n_t"} <= set(found) and found["n_random"].level == "import"
    assert found["n_s"].level == found["n_t"].level != "import"
    assert all(f.reason for f in found.values())
    with pytest.raises(UserError) as refused:
        import_model(path)
    assert all(node in str(refused.value) for node in found)


TASK = helper.make_tensor_value_info("task", TensorProto.INT64, [])
PICKED = [("Gather", ["heads", "task"], ["w"], {"axis": 0}), ("MatMul", ["pooled", "w"], ["logits"], {})]
COMPARED = [
    ("Equal", ["task", "seven"], ["is"], {}),
    ("Where", ["is", "heads0", "heads1"], ["w"], {}),
    ("MatMul", ["pooled", "w"], ["logits"], {}),
]
WHERE = {"seven": np.array(1), "heads0": WEIGHTS["heads"][0].astype(np.float32), "heads1": WEIGHTS["heads"][1].astype(np.float32)}


@pytest.mark.parametrize("end, count", [(PICKED, 3), (COMPARED, 2), (HEAD, 1)], ids=["picked", "compared", "unused"])
def test_an_integer_input_becomes_tasks(tmp_path, end, count):
    path = network(tmp_path, end, ["logits"], inputs=[TASK], constants=WHERE)
    found = tasks(path)
    assert {name: task.numbers for name, task in found.items()} == {f"task{i}": {"task": i} for i in range(count)}
    image = RNG.standard_normal((2, 3, 4, 4)).astype(np.float32)
    seen = []
    for numbers in (task.numbers for task in found.values()):
        result = import_model(path, fixed=numbers)
        assert list(result.inputs) == ["image"]
        feed = {"image": image, "task": np.repeat(numbers["task"], 2)}
        expected = reference(path, feed)["logits"]
        got = [graph.outputs(result, graph.evaluate(result, {"image": i}))["logits"] for i in image]
        np.testing.assert_allclose(np.stack(got).reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)
        seen.append(expected.tobytes())
    assert len(set(seen)) == count
    assert check(path) == []


@pytest.mark.parametrize("reads", ["cast", "moved and cast", "integers"])
def test_images_of_whole_numbers(tmp_path, reads):
    """A cast behind nothing but movement makes them floating point; whoever computes with the integers is named."""
    path = network(tmp_path, HEAD, ["logits"])
    model = onnx.load(path)
    image = model.graph.input[0]
    image.type.tensor_type.elem_type = TensorProto.UINT8
    image.name = "bytes"
    steps = [helper.make_node("Cast", ["bytes"], ["image"], "cast", to=TensorProto.FLOAT)]
    if reads == "moved and cast":
        image.type.tensor_type.shape.dim[2].dim_value = 6
        model.graph.initializer.extend(numpy_helper.from_array(np.array([n]), f"at{n}") for n in (1, 5, 2))
        cut = helper.make_node("Slice", ["bytes", "at1", "at5", "at2"], ["cut"], "cut")
        steps = [cut, helper.make_node("Cast", ["cut"], ["image"], "cast", to=TensorProto.FLOAT)]
    if reads == "integers":
        model.graph.initializer.append(numpy_helper.from_array(np.array(7, np.uint8), "seven"))
        divide = helper.make_node("Div", ["bytes", "seven"], ["part"], "divide")
        steps = [divide, helper.make_node("Cast", ["part"], ["image"], "cast", to=TensorProto.FLOAT)]
    for node in reversed(steps):
        model.graph.node.insert(0, node)
    onnx.save(model, path)
    if reads == "integers":
        assert check(path)
        return
    result = import_model(path)
    pixels = RNG.integers(0, 256, (2, 3, 6 if reads == "moved and cast" else 4, 4)).astype(np.float32)
    expected = reference(path, {"bytes": pixels})["logits"]
    got = [graph.outputs(result, graph.evaluate(result, {"bytes": p}))["logits"] for p in pixels]
    np.testing.assert_allclose(np.stack(got).reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)

"""A file that ends in values that are named: `--outputs`, and the cut that `check` proposes."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwgen import cli, levels
from hwgen.errors import UserError
from hwgen.importer.load import load
from hwgen.importer.part import Cut
from hwgen.importer.reference import reference

RNG = np.random.default_rng(0)
DIM, CLASSES = 16, 8


def _linear(name, source, target, rows, columns):
    weight = numpy_helper.from_array(RNG.normal(0, rows**-0.5, (rows, columns)).astype(np.float32), f"{name}_w")
    return helper.make_node("MatMul", [source, f"{name}_w"], [target], name), weight


@pytest.fixture
def model(tmp_path):
    """Tokens -> two products -> logits -> classes by ArgMax, which leave as integers; beside them a second input's sum.

    The second input is what only the second output reads.
    """
    first, w0 = _linear("first", "x", "hidden", DIM, DIM)
    second, w1 = _linear("second", "act", "logits", DIM, CLASSES)
    nodes = [
        first,
        helper.make_node("Relu", ["hidden"], ["act"], "relu"),
        second,
        helper.make_node("ArgMax", ["logits"], ["classes"], "best", axis=-1, keepdims=0),
        helper.make_node("NonZero", ["text"], ["words"], "words"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, DIM]),
        helper.make_tensor_value_info("text", TensorProto.FLOAT, [1, 6]),
    ]
    outputs = [
        helper.make_tensor_value_info("classes", TensorProto.INT64, [1, 4]),
        helper.make_tensor_value_info("words", TensorProto.INT64, [2, None]),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [w0, w1])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_part_has_what_its_outputs_need(model):
    part = load(model, outputs=["logits"])
    assert part.part and part.outputs == ["logits"]
    assert list(part.inputs) == ["x"] and set(part.constants) == {"first_w", "second_w"}
    assert [n.name for n in part.graph.node] == ["first", "relu", "second"]
    assert not load(model).part


def test_reference_of_part_is_that_value_of_the_file(model):
    x = RNG.normal(size=(2, 4, DIM)).astype(np.float32)
    part = load(model, outputs=["act", "logits"])
    found = reference(part, {"x": x})
    hidden = np.maximum(x @ part.constants["first_w"], 0)
    np.testing.assert_allclose(found["act"], hidden, atol=1e-5)
    np.testing.assert_allclose(found["logits"], hidden @ part.constants["second_w"], atol=1e-5)


def test_part_with_external_data(model, tmp_path):
    proto = onnx.load(model)
    onnx.save(proto, tmp_path / "big.onnx", save_as_external_data=True, size_threshold=0, location="big.data")
    x = RNG.normal(size=(1, 4, DIM)).astype(np.float32)
    small, big = (reference(load(p, outputs=["logits"]), {"x": x}) for p in (model, tmp_path / "big.onnx"))
    np.testing.assert_array_equal(small["logits"], big["logits"])


@pytest.mark.parametrize("names, said", [(["nothing"], "no node makes a value 'nothing'"), (["act", "act"], "'act' twice")])
def test_bad_names_are_refused(model, names, said):
    with pytest.raises(UserError, match=said):
        load(model, outputs=names)


def test_check_proposes_a_cut_that_builds(model, capsys):
    assert cli.main(["check", str(model)]) == 2
    assert "3 of 5 nodes build by themselves: --outputs logits" in capsys.readouterr().out
    assert cli.main(["check", str(model), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["cut"] == {"outputs": ["logits"], "nodes": 3, "of": 5}
    assert cli.main(["check", str(model), "--outputs", "logits"]) == 0


def test_no_cut_without_a_product(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"], "only")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])],
    )
    path = tmp_path / "none.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    findings = levels.check(path)
    assert findings and levels.proposal(path, findings) is None


def test_cut_is_the_last_value_before_each_refused_node(model):
    assert levels.proposal(model, levels.check(model)) == Cut(("logits",), 3, 5)


def test_bundle_of_a_part_is_compared_with_that_part(model, tmp_path, capsys):
    bundle, images = str(tmp_path / "b"), str(tmp_path / "in.npz")
    np.savez(images, x=RNG.normal(size=(3, 4, DIM)).astype(np.float32))
    small = "--set array_outputs=16 --set array_inputs=16 --set banks=2 --set bank_words=256".split()
    assert cli.main(["build", str(model), "--outputs", "logits", "--calibrate", images, "-o", bundle, *small]) == 0
    assert cli.main(["compare", str(model), bundle, "--input", images, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [o["name"] for o in found["outputs"]] == ["logits"] and found["outputs"][0]["snr_db"] > 30


def test_outputs_in_a_build_file(model, tmp_path, capsys):
    file = tmp_path / "build.toml"
    file.write_text('model = "model.onnx"\noutputs = ["act"]\nstop_after = "import"\nprint = "T"\n')
    assert cli.main(["build", "--config", str(file)]) == 0
    assert "second" not in capsys.readouterr().out
    file.write_text('model = "model.onnx"\noutputs = "act"\n')
    assert cli.main(["build", "--config", str(file)]) == 2

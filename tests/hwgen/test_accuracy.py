"""What a build promises of its accuracy: measured, mended where 16 bits can, told where they cannot."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hwgen
from hwgen import accuracy, steps
from hwgen.accuracy import accurate, told
from hwgen.errors import UserError
from hwgen.levels import import_model
from hwgen.quantise import Quantisation, quantise


def network(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """Patches, a layer, an activation, a layer."""
    rng = np.random.default_rng(0)
    held = {"p": (8, 3, 4, 4), "a": (16, 8, 1, 1), "b": (5, 16, 1, 1)}
    weights = [numpy_helper.from_array((rng.standard_normal(s) * 0.2).astype(np.float32), n) for n, s in held.items()]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "p"], ["x"], strides=[4, 4]),
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info(n, k, [1, *s]) for n, k, s in (("image", kind, (3, 16, 16)), ("out", 1, (5, 4, 4)))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def graph(tmp_path):
    return import_model(network(tmp_path / "m.onnx"))


def test_what_is_promised_is_measured(graph):
    options = Quantisation()
    made = accurate({"": graph}, None, options)
    assert made.before is None and 25 < made.worst < 60 and not told(made, options, None)
    assert {n.name for n in made.graphs[""].nodes} == {n.name for n in quantise({"": graph}, None, options)[""].nodes}
    nothing = Quantisation(min_snr=0.0)
    assert not told(accurate({"": graph}, None, nothing), nothing, None)


def test_where_the_estimate_promised_too_much_more_layers_have_sixteen_bits(graph, monkeypatch):
    """A measurement that loses 15 dB more than the estimate knows of."""
    kept = accuracy._kept
    monkeypatch.setattr(accuracy, "_kept", lambda *a: (kept(*a)[0] - 15, "out"))
    options = Quantisation(min_snr=float(round(kept(quantise({"": graph}, None)[""], accuracy._sample(graph, None))[0] - 3)))
    made = accurate({"": graph}, None, options)
    assert made.before is not None and made.before < options.min_snr <= made.worst
    assert len(made.graphs[""].nodes) > len(quantise({"": graph}, None, options)[""].nodes)


def test_first_what_is_missing_is_asked_for_then_all_that_there_is(graph, monkeypatch):
    asked, integers = [], accuracy.integers
    monkeypatch.setattr(accuracy, "integers", lambda known, options: asked.append(options.min_snr) or integers(known, options))
    monkeypatch.setattr(accuracy, "_kept", lambda *_: (31.0, "out"))
    made = accurate({"": graph}, None, Quantisation(min_snr=40.0))
    assert asked == [40.0, 49.0 + accuracy.MORE, accuracy.MOST_SNR] and made.before is None


def test_what_is_not_mended_is_told(graph, monkeypatch):
    options = Quantisation(min_snr=99.0)
    made = accurate({"a": graph}, None, options)
    (said,) = told(made, options, None)
    assert f"task a: output 'out' keeps {made.worst:.1f} dB" in said and "less than min_snr=99" in said and "--calibrate" in said
    (said,) = told(made, options, {"image": np.zeros((1, 3, 16, 16), np.float32)})
    assert "--calibrate" not in said and f"--set min_snr={made.worst:.0f}" in said


def test_a_build_warns_of_what_it_does_not_keep(tmp_path):
    model, board = network(tmp_path / "m.onnx"), "zcu104"
    told = {
        wanted: [w for w in steps.build({"": model}, tmp_path, board=board, **how, stop_after="quantise").warnings if " dB " in w]
        for wanted, how in (("20", {}), ("99", {"settings": {"min_snr": "99"}}))
    }
    assert not told["20"] and len(told["99"]) == 1 and "output 'out' keeps" in told["99"][0]


def test_images_of_bytes_are_bytes_everywhere(tmp_path):
    model = network(tmp_path / "m.onnx", TensorProto.UINT8)
    rng = np.random.default_rng(1)
    good = {"image": rng.integers(0, 256, (4, 3, 16, 16), np.uint8)}
    bad = {"image": rng.uniform(0, 1, (4, 3, 16, 16)).astype(np.float32)}
    with pytest.raises(UserError, match=r"array 'image' holds 0\.\d+ in image 0, the input takes uint8, whole numbers from 0"):
        hwgen.build(model, tmp_path / "b", calibrate=bad)
    bundle = hwgen.build(model, tmp_path / "b", calibrate=good)
    (slot,) = bundle.manifest["tasks"][""]["inputs"]
    assert slot["type"] == "uint8"
    whole = {"image": good["image"].astype(np.float64)}
    np.testing.assert_array_equal(bundle.run(whole).outputs["out"], bundle.run(good, "machine").outputs["out"])
    for call in (bundle.run, lambda images: bundle.compare(model, images), lambda images: bundle.verify(images, min_snr=5.0)):
        with pytest.raises(UserError, match="holds .* in image 0, the input takes uint8"):
            call(bad)

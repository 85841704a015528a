"""`import hwgen`: the same bundle from path, ModelProto and bytes; run, compare, verify, report with NumPy in and out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import hwgen
from hwgen import run as engines
from hwgen.errors import UserError
from hwgen.example import write
from hwgen.steps import STEPS

pytestmark = pytest.mark.xdist_group("api")  # they share a bundle

TOP = Path(__file__).resolve().parents[2]
SETTINGS = {"array_outputs": 8, "array_inputs": 8}


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> tuple[Path, dict, dict]:
    """m3vit-micro: its file, calibration images, test images with labels."""
    model, calibration, test = write("m3vit-micro", tmp_path_factory.mktemp("api") / "micro.onnx")
    with np.load(calibration) as first, np.load(test) as second:
        return model, dict(first), {**second, "label": np.arange(4) % 5}


@pytest.fixture(scope="module")
def bundle(example) -> hwgen.Bundle:
    model, calibration, _ = example
    return hwgen.build(model, model.with_suffix(".bundle"), calibrate=calibration, settings=SETTINGS)


def test_importing_it_loads_no_library():
    code = "import sys, hwgen; assert 'build' in dir(hwgen); sys.exit(any(m in sys.modules for m in ('numpy', 'onnx')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=TOP).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        hwgen.biuld  # noqa: B018


def test_every_kind_of_model_and_images_gives_the_same_program(example, bundle):
    model, calibration, _ = example
    held = [onnx.load(model), model.read_bytes()]
    images = [(image[None] for image in calibration["image"]), calibration["image"]]
    steps: list[str] = []
    for given, calibrate in zip(held, images, strict=True):
        other = hwgen.build(given, calibrate=calibrate, settings=SETTINGS, progress=lambda *step: steps.append(step[0]))
        assert other.manifest["files"]["program.bin"] == bundle.manifest["files"]["program.bin"]
        assert other.manifest["files"]["dram.bin"] == bundle.manifest["files"]["dram.bin"]
    assert steps == list(STEPS) * 2


def test_a_bundle_without_a_place_lives_as_long_as_the_object(example, bundle, tmp_path):
    model, calibration, _ = example
    other = hwgen.build(model, calibrate=calibration, settings=SETTINGS)
    folder = other.path.parent
    assert other.manifest == bundle.manifest
    kept = other.save(tmp_path / "kept.bundle")
    del other
    assert not folder.exists()
    assert kept.manifest == bundle.manifest and kept.path == tmp_path / "kept.bundle"


def test_a_failed_build_leaves_no_folder(example, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(UserError, match="no array for input 'image'"):
        hwgen.build(onnx.load(example[0]), calibrate={"picture": np.zeros((2, 1, 8, 8))}, settings=SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_open_sizes_come_from_arrays(example):
    proto = onnx.load(example[0])
    for axis, dim in enumerate(proto.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"d{axis}"
    made = hwgen.build(proto, calibrate=example[1]["image"], settings=SETTINGS)
    assert made.inputs() == {"image": (1, 8, 8)}
    assert hwgen.check(proto, shapes={"image": (1, 1, 8, 8)}) == []


def test_noise_is_a_warning(example):
    with pytest.warns(UserWarning, match="calibrated with seeded noise"):
        hwgen.build({"a": example[0], "b": example[0]}, settings=SETTINGS | {"wide": []})


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"model": 5}, "a model is a path, an onnx.ModelProto or bytes, not int"),
        ({"model": b"none"}, "model.onnx: not an ONNX file"),
        ({"model": {"a/b": b""}}, "'a/b' is no task name"),
        ({"model": "gone.onnx"}, "gone.onnx: no such file"),
        ({"board": "nexys"}, "unknown board 'nexys'"),
        ({"settings": {"rows": 1}}, "Config has no such field"),
        ({"calibrate": "gone"}, "gone: no such file"),
        ({"output": "gone/x"}, "folder gone does not exist"),
    ],
)
def test_faults_are_user_errors(example, arguments, said):
    with pytest.raises(UserError, match=said):
        hwgen.build(**{"model": example[0], **arguments})


def test_a_model_without_a_file_is_named_without_a_folder():
    with pytest.raises(UserError, match="^model.onnx: not an ONNX file"):
        hwgen.build(b"nothing")


def test_weights_beside_a_model_need_its_path(example, tmp_path):
    onnx.save(onnx.load(example[0]), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
    with pytest.raises(UserError, match="stands in a file beside the model: give the model's path"):
        hwgen.check((tmp_path / "m.onnx").read_bytes())


# --- what a bundle does --------------------------------------------------------------------------------------------


def test_it_says_what_it_is(example, bundle):
    assert (bundle.tasks, bundle.inputs(), bundle.outputs()) == ([""], {"image": (1, 8, 8)}, ["logits"])
    assert (bundle.board.name, bundle.config.array_outputs) == ("zcu104", 8)
    assert "hwgen_top.v" in bundle.verilog() and bundle.report()["tasks"][""]["cycles"] > 0
    assert "micro.bundle" in bundle._repr_html_() and "images/s" in bundle._repr_html_()
    with pytest.raises(UserError, match="gone: no bundle directory"):
        hwgen.Bundle("gone")


def test_it_runs_and_compares(example, bundle):
    model, _, test = example
    golden, machine = (bundle.run(test, engine).outputs["logits"] for engine in ("golden", "machine"))
    assert golden.shape == (4, 5) and golden.dtype == np.float32 and np.array_equal(golden, machine)
    assert np.array_equal(bundle.run(test["image"], limit=2).outputs["logits"], golden[:2])
    found = bundle.compare(onnx.load(model), test, limit=2, warn=pytest.fail)
    assert found.images == 2 and 10 < found.outputs[0].snr_db < 60
    said = []
    changed = onnx.load(model)
    changed.producer_name = "someone else"
    bundle.compare(changed, test, limit=1, warn=said.append)
    assert len(said) == 1 and "is not the file that" in said[0]
    with pytest.raises(UserError, match="unknown engine 'rtx'"):
        bundle.run(test, "rtx")
    with pytest.raises(UserError, match="--limit 0"):
        bundle.run(test, limit=0)


@pytest.mark.parametrize("method, function", [("timing", "hwgen.timing.estimate"), ("synth", "hwgen.synth.synthesise")])
def test_it_goes_to_yosys(bundle, monkeypatch, method, function):
    given = {}
    monkeypatch.setattr(function, lambda verilog, board, **options: given.update(options, verilog=verilog, board=board) or 7)
    assert getattr(bundle, method)("core", jobs=2) == 7
    assert (given["only"], given["jobs"], given["board"]) == ("core", 2, bundle.board) and given["verilog"] == bundle.verilog()
    with pytest.raises(UserError, match="--jobs 0"):
        getattr(bundle, method)(jobs=0)


# --- verify --------------------------------------------------------------------------------------------------------


def test_a_good_bundle_passes_every_check(example, bundle):
    model, _, test = example
    right = bundle.run(test).outputs["logits"].argmax(axis=1)
    found = bundle.verify(
        {**test, "right": right}, "machine", max_cycles=10**6, min_snr=5, model=model, labels="right", min_accuracy=1
    )
    assert found.passed and [c.name for c in found.checks] == [
        "logits as golden",
        "cycles",
        "logits SNR",
        "logits accuracy",
    ]
    assert "by the cycle model" in str(found) and "4 of 4 right" in str(found)


def test_a_differing_engine_fails(example, bundle, monkeypatch):
    def off_by_one(*arguments):
        found = real(*arguments)
        found[1]["logits"] = found[1]["logits"] + 1
        return found

    real = engines._machine
    monkeypatch.setattr(engines, "_machine", off_by_one)
    found = bundle.verify(example[2], "machine")
    assert not found.passed and found.checks[0].found == "5 of 20 values differ, the first in image 1"


def test_a_simulation_that_does_not_halt_is_a_failed_check(example, bundle, monkeypatch):
    def stuck(*arguments):
        raise RuntimeError("verilator: does not halt")

    monkeypatch.setattr(engines, "_rtl", stuck)
    found = bundle.verify(example[2], "rtl")
    assert [(c.name, c.passed, c.found) for c in found.checks] == [("rtl", False, "verilator: does not halt")]


def test_each_bound_is_held(example, bundle):
    test = example[2]
    cycles, golden = bundle.report()["tasks"][""]["cycles"], bundle.run(test).outputs["logits"]
    assert bundle.verify(test, max_cycles=cycles).passed
    assert not bundle.verify(test, max_cycles=cycles - 1).passed
    noisy = {**test, "logits": golden * 10 / 9}  # a tenth of it is missing: 20 dB
    assert bundle.verify(noisy, min_snr=19.9).passed
    assert not bundle.verify(noisy, min_snr=20.1).passed
    labels = golden.argmax(axis=1)
    labels[0] = (labels[0] + 1) % 5
    assert bundle.verify(test, labels={"logits": labels}, min_accuracy=0.75).passed
    assert not bundle.verify(test, labels=labels, min_accuracy=0.76).passed


@pytest.mark.parametrize(
    "options, said",
    [
        ({"labels": "label"}, "one needs the other"),
        ({"min_accuracy": 0.5}, "one needs the other"),
        ({"labels": "label", "min_accuracy": 50}, "min_accuracy=50: must be from 0 to 1"),
        ({"labels": "gone", "min_accuracy": 0.5}, "hold no array 'gone'; there are image, label"),
        ({"labels": {"heads": "label"}, "min_accuracy": 0.5}, "no output 'heads' for labels; it has logits"),
        ({"labels": np.zeros(4), "min_accuracy": 0.5}, "must be whole numbers .4."),
        ({"labels": np.zeros(3, int), "min_accuracy": 0.5}, "must be whole numbers .4."),
        ({"labels": np.full(4, 5), "min_accuracy": 0.5}, "5 to 5, the output has 5 classes"),
        ({"max_cycles": 0}, "max_cycles=0: must be at least 1"),
        ({"min_snr": float("nan")}, "min_snr=nan: must be finite"),
        ({"min_snr": 3}, "no array of the float model's output 'logits'"),
        ({"limit": 0}, "--limit 0"),
    ],
)
def test_what_cannot_be_checked_is_a_fault_of_the_user(example, bundle, options, said):
    with pytest.raises(UserError, match=said):
        bundle.verify(example[2], **options)


def test_exit_codes_json_and_junit(hwgen, example, bundle, tmp_path):
    from xml.etree import ElementTree

    data, junit = tmp_path / "x.npz", tmp_path / "x.xml"
    np.savez(data, **example[2])
    command = ["verify", bundle.path, "--input", data, "--engine", "golden"]
    code, out, err = hwgen(*command, "--max-cycles", 10**6, "--junit", junit, "--json")
    assert (code, err) == (0, "")
    assert ElementTree.parse(junit).getroot()[0].attrib["failures"] == "0"
    code, out, err = hwgen(*command, "--max-cycles", 1, "--labels", "label", "--min-accuracy", 0, "--junit", junit)
    assert code == 1 and "FAILED  cycles" in out and err == "hwgen: mismatch: 1 of 2 checks failed: cycles\n"
    (suite,) = ElementTree.parse(junit).getroot()
    assert suite.attrib["tests"] == "2" and suite.attrib["failures"] == "1"
    assert [case.find("failure") is not None for case in suite] == [True, False]
    assert hwgen(*command, "--labels", "logits=label", "--min-accuracy", 0, "--limit", 2)[0] == 0
    for options in (
        ["--labels", "=x"],
        ["--labels", "a", "--labels", "b"],
        ["--min-accuracy", "2"],
        ["--junit", tmp_path],
    ):
        code, _, err = hwgen(*command, *options)
        assert code == 2 and err.count("\n") == 1, err

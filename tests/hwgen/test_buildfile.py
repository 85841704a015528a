"""A build as a file: the same bundle as by options, options on top of it, every fault named; the list of its fields."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from hwgen import buildfile, fields
from hwgen.arguments import parse
from hwgen.config import Config
from hwgen.errors import UserError
from hwgen.example import write
from hwgen.quantise.options import Quantisation

WHOLE = """\
model = "micro.onnx"
board = "zcu104"
output = "made here.bundle"
calibrate = "micro_calib.npz"
batch = 2
[set]
array_outputs = 8
array_inputs = 8
equalise = 0.25
wide = ["*/fc1", "head"]
[shape]
image = [1, 1, 8, 8]
"""


def test_a_file_is_the_options_of_a_build(tmp_path):
    (tmp_path / "build.toml").write_text(WHOLE)
    by_file = parse(["build", "--config", str(tmp_path / "build.toml")])
    options = f"build {tmp_path}/micro.onnx --board zcu104 --calibrate {tmp_path}/micro_calib.npz --batch 2".split()
    options += ["-o", f"{tmp_path}/made here.bundle", "--shape", "image=1,1,8,8"]
    for setting in ("array_outputs=8", "array_inputs=8", "equalise=0.25", "wide=*/fc1,head"):
        options += ["--set", setting]
    by_hand = parse(options)
    assert {**vars(by_file), "config": None} == vars(by_hand)


def test_options_come_on_top(tmp_path):
    (tmp_path / "build.toml").write_text(WHOLE + "other = [1]\n")
    options = ["b.onnx", "--board", "kv260", "--set", "equalise=1", "--batch", "4", "-o", "x"]
    found = parse(["build", "--config", str(tmp_path / "build.toml"), *options])
    assert (found.models, found.board, found.batch, found.output) == (["b.onnx"], "kv260", 4, Path("x"))
    assert found.settings[-1] == "equalise=1" and found.settings[0] == "array_outputs=8"
    assert found.shapes == ["image=1,1,8,8", "other=1"]


def test_tasks_are_a_table(tmp_path):
    (tmp_path / "b.toml").write_text(
        'board = "mine.toml"\nexplore = true\n[model]\ndigit = "d.onnx"\nparity = "p.onnx"\n'
    )
    found = buildfile.read(tmp_path / "b.toml")
    assert found["models"] == [f"digit={tmp_path}/d.onnx", f"parity={tmp_path}/p.onnx"]
    assert found["board"] == f"{tmp_path}/mine.toml" and found["explore"] is True


@pytest.mark.parametrize(
    "text, said",
    [
        ("model = ", "b.toml: "),
        ("modell = 'x'", "unknown key 'modell'; known are model, board"),
        ("model = 5", "model=5: must be a text or a table"),
        ("model = {a = 5}", "a=5: must be the path of a file"),
        ("batch = true", "batch=True: must be a whole number"),
        ("explore = 1", "explore=1: must be true or false"),
        ("[set]\nwide = true", "set.wide=True: must be a number, a text or a list"),
        ("[set]\nwide = []", "set.wide=.*: must be a number"),
        ("shape = [1]", "shape=.1.: must be a table"),
        ("[shape]\nimage = 5", "shape.image=5: must be a list of whole numbers"),
    ],
)
def test_faults_of_the_file_are_named(hwgen, tmp_path, text, said):
    (tmp_path / "b.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        buildfile.read(tmp_path / "b.toml")
    code, _, err = hwgen("build", "--config", tmp_path / "b.toml")
    assert code == 2 and err.count("\n") == 1 and "b.toml" in err


def test_a_missing_file_or_model_is_named(hwgen, tmp_path):
    assert "gone.toml: No such file" in hwgen("build", "--config", tmp_path / "gone.toml")[2]
    (tmp_path / "b.toml").write_text("batch = 1")
    code, _, err = hwgen("build", "--config", tmp_path / "b.toml")
    assert code == 2 and "no model: name [TASK=]MODEL.onnx" in err


def test_a_build_by_file(hwgen, tmp_path):
    write("m3vit-micro", tmp_path / "micro.onnx")
    (tmp_path / "build.toml").write_text(WHOLE.replace('wide = ["*/fc1", "head"]\n', ""))
    code, out, err = hwgen("build", "--config", tmp_path / "build.toml")
    assert code == 0, err
    manifest = json.loads((tmp_path / "made here.bundle" / "manifest.json").read_text())
    assert manifest["batch"] == 2 and manifest["quantisation"]["equalise"] == 0.25
    assert manifest["config"]["array_outputs"] == 8
    images = tmp_path / "images"
    images.mkdir()
    np.save(images / "0.npy", np.zeros((1, 8, 8), np.float32))
    made, results = tmp_path / "made here.bundle", tmp_path / "o ut.npz"
    assert hwgen("run", made, "--engine", "machine", "--input", images, "--output", results)[0] == 0
    with np.load(results) as outputs:
        assert outputs["logits"].shape == (1, 5)


# --- the list of fields --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Config, Quantisation])
def test_every_field_says_what_it_means(cls):
    listed = fields.fields_of(cls)
    assert [f.name for f in listed] == [f.name for f in dataclasses.fields(cls)]
    assert all(len(f.meaning) > 10 or f.name == "clock_mhz" for f in listed), (
        "a comment behind or above a field is missing"
    )
    assert [f.default for f in listed] == [getattr(cls(), f.name) for f in listed]


def test_the_list_is_printed(hwgen):
    code, out, _ = hwgen("config")
    assert code == 0 and "acc_rows" in out and "(zcu104: 48)" in out and "SmoothQuant" in out
    found = json.loads(hwgen("config", "--board", "pynq-z2", "--json")[1])
    entry = next(f for f in found["fields"] if f["name"] == "array_inputs")
    assert (found["board"], entry["owner"], entry["default"], entry["board"]) == ("pynq-z2", "Config", 16, 8)
    assert next(f for f in found["fields"] if f["name"] == "equalise")["board"] is None
    assert hwgen("config", "--board", "gone")[0] == 2

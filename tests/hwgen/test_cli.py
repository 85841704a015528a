"""The command line where no bundle is needed: exit codes, one-line messages, nothing half-written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from hwgen import __version__, arguments
from hwgen.cli import COMMANDS
from hwgen.errors import Mismatch, UserError
from hwgen.example import write
from hwgen.files import write_atomic

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Path:
    return write("m3vit-micro", tmp_path_factory.mktemp("micro") / "micro.onnx")[0]


def one_line(err: str) -> bool:
    return err.startswith("hwgen: ") and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "required"),
        (["fly"], "invalid choice: 'fly'"),
        (["build"], "MODEL.onnx"),
        (["run", "b", "--engine", "rtl"], "--input"),
        (["build", "no-such.onnx"], "no-such.onnx: no such file"),
        (["build", "."], ".: is a folder"),
        (["build", "no-such.onnx", "--bord", "x"], "unrecognized arguments: --bord x (hwgen build --help tells more)"),
        (["build", "a=x.onnx", "y.onnx"], "y.onnx: several models are several tasks"),
        (["build", "a=x.onnx", "a=y.onnx"], "task 'a' is named twice"),
        (["build", "a/b=x.onnx", "c=y.onnx"], "'a/b' is no task name"),
        (["build", "a=x.onnx", "b="], "b=: task 'b' names no file"),
        (["check", "no-such.onnx"], "no-such.onnx: no such file"),
        (["example", "resnet", "-o", "x.onnx"], "unknown example 'resnet'; known are"),
        (["example", "m3vit-micro"], "-o FILE.onnx"),
        (["demo", "--images", "0"], "--images 0"),
        (["check", "x.onnx", "--board", "kv260"], "--board kv260: whose Config --html FILE.html shows"),
        (["run", "b", "--input", "x", "--engine", "golden", "--dram", "unlimited"], "golden has no DRAM; rtl has"),
        (["verify", "b", "--input", "x", "--engine", "machine", "--dram", "unlimited"], "machine has no DRAM; rtl has"),
        (["verify", "b", "--input", "x", "--engine", "golden", "--model", "m.onnx"], "--model m.onnx: the float model for"),
        (["explore", "x.onnx", "--workers", "2", "--cluster", "tcp://h:1"], "--workers: processes of this machine"),
    ],
)
def test_bad_arguments_are_exit_2_and_one_line(hwgen, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = hwgen(*arguments)
    assert code == 2
    assert one_line(err), err
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options, said",
    [
        (["--board", "nexys"], "unknown board 'nexys'; known are"),
        (["--set", "array_outputs"], "--set array_outputs: written as KEY=VALUE"),
        (["--set", "array_outputs=lots"], "array_outputs=lots: not a whole number"),
        (["--set", "array_outputs=7"], "array_outputs=7"),
        (["--set", "rows=7"], "--set rows: Config has no such field"),
        (["--stop-after", "lunch"], "unknown step 'lunch'; the steps are import"),
        (["--calibrate", "gone.npz"], "gone.npz: no such file"),
        (["-o", "nowhere/x.bundle"], "nowhere"),
    ],
)
def test_bad_build_options_are_told_before_the_work(hwgen, micro, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = hwgen("build", micro, *options)
    assert code == 2
    assert one_line(err), err
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"picture": np.zeros((2, 1, 8, 8))}, "no array 'image'"),
        ({"image": np.zeros((2, 8, 8))}, "has shape [2, 8, 8], expected [images, 1, 8, 8]"),
        ({"image": np.full((2, 1, 8, 8), np.nan)}, "NaN"),
        ({"image": np.zeros((0, 1, 8, 8))}, "no image"),
        ({"image": np.array([["a"]])}, "expected [images, 1, 8, 8]"),
        (b"not a zip file", "not an .npz file"),
    ],
)
def test_bad_calibration_data_is_named(hwgen, micro, tmp_path, arrays, said):
    data = tmp_path / "calib.npz"
    if isinstance(arrays, bytes):
        data.write_bytes(arrays)
    else:
        np.savez(data, **arrays)
    code, _, err = hwgen("build", micro, "--calibrate", data, "-o", tmp_path / "x.bundle")
    assert code == 2
    assert "calib.npz" in err
    assert said in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calib.npz"]


def test_single_array_file_is_no_npz(hwgen, micro, tmp_path):
    data = tmp_path / "calib.npy"
    np.save(data, np.zeros((2, 1, 8, 8)))
    code, _, err = hwgen("build", micro, "--calibrate", data, "-o", tmp_path / "x.bundle")
    assert (code, "calib.npy: not an .npz" in err) == (2, True)


def test_stop_after_writes_nothing(hwgen, micro, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = hwgen("build", micro, "--stop-after", "import")
    assert code == 0
    assert "import" in err
    assert list(tmp_path.iterdir()) == []


def test_check_accepts_a_supported_model(hwgen, micro):
    code, out, err = hwgen("check", micro)
    assert (code, err) == (0, "")
    assert "every node is supported" in out


def test_check_lists_every_unsupported_node(hwgen, micro, tmp_path):
    model = onnx.load(micro)
    names = []
    for node in model.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Sin"
            names.append(node.name)
    onnx.save(model, tmp_path / "odd.onnx")
    code, out, err = hwgen("check", tmp_path / "odd.onnx")
    assert code == 2
    assert one_line(err)
    assert "odd.onnx" in err
    assert len(names) == 2
    assert all(name in out for name in names)


def test_truncated_model_is_named(hwgen, micro, tmp_path):
    bad = tmp_path / "short.onnx"
    bad.write_bytes(micro.read_bytes()[:-100])
    code, _, err = hwgen("build", bad, "-o", tmp_path / "x.bundle")
    assert (code, one_line(err), "short.onnx" in err) == (2, True, True)


def test_boards_doctor_example(hwgen, tmp_path):
    code, out, _ = hwgen("boards")
    assert code == 0 and "zcu104" in out and "ulx3s-85f" in out
    code, out, _ = hwgen("doctor")
    assert code in (0, 1) and "numpy" in out
    code, out, _ = hwgen("example")
    assert code == 0 and "m3vit-tiny" in out
    code, out, _ = hwgen("example", "m3vit-digits", "-o", tmp_path / "d.onnx")
    assert code == 0 and out.split() == [str(tmp_path / n) for n in ("d.onnx", "d_calib.npz", "d_test.npz")]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("a\nb"), 2, "hwgen: error: a b\n"),
        (Mismatch("x is not y"), 1, "hwgen: mismatch: x is not y\n"),
        (KeyboardInterrupt(), 130, "hwgen: interrupted\n"),
    ],
)
def test_exit_codes(hwgen, monkeypatch, error, code, said):
    def fail():
        raise error

    monkeypatch.setattr("hwgen.boards.table", fail)
    assert hwgen("boards") == (code, "", said)


def test_a_fault_of_ours_says_so(hwgen, monkeypatch):
    monkeypatch.setattr("hwgen.boards.table", lambda: 1 / 0)
    code, _, err = hwgen("boards")
    assert code == 3
    assert "ZeroDivisionError" in err and "fault of hwgen" in err


def test_a_terminated_command_leaves_nothing(hwgen, tmp_path, monkeypatch):
    def stopped(file):
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr("hwgen.boards.table", lambda: write_atomic(tmp_path / "x", stopped))
    before = signal.getsignal(signal.SIGTERM)
    assert hwgen("boards")[0] == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_models_and_settings_are_parsed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.onnx").touch()
    assert arguments.parse_models(["a=b.onnx"]) == {"": Path("a=b.onnx")}
    assert arguments.parse_models(["a=x.onnx"]) == {"a": Path("x.onnx")}
    assert arguments.parse_models(["a=x.onnx", "b=y.onnx"]) == {"a": Path("x.onnx"), "b": Path("y.onnx")}
    assert arguments.parse_settings(["a=1", "b=x=y", "a=2"]) == {"a": "2", "b": "x=y"}


def test_closed_pipe_is_no_fault():
    script = "import sys; from hwgen.cli import main; sys.exit(main(['boards']))"
    read, write_end = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    run = subprocess.run([sys.executable, "-c", script], stdout=write_end, stderr=subprocess.PIPE, env=environment)
    os.close(write_end)
    assert (run.returncode, run.stderr) == (0, b"")


def test_module_is_runnable():
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    command = [sys.executable, "-m", "hwgen", "--version"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout) == (0, f"hwgen {__version__}\n")
    assert json.dumps(__version__)


# --- levels, shapes, findings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "letter, name, holds",
    [
        ("T", "tensor", "%0 = "),
        ("L", "layers", " attention "),
        ("R", "rows", "nodes += Experts("),
        ("Q", "integers", "scale="),
        ("M", "machine", "ops += MatMul("),
        ("P", "program", "MATMUL "),
    ],
)
def test_a_level_is_printed(hwgen, micro, tmp_path, monkeypatch, letter, name, holds):
    monkeypatch.chdir(tmp_path)
    code, out, _ = hwgen("build", micro, "--stop-after", letter, "--print", name)
    assert code == 0 and holds in out
    assert list(tmp_path.iterdir()) == []
    if letter == "T":
        code, again, err = hwgen("build", micro, "--stop-after", "import", "--print", letter)
        assert (code, again) == (0, out) and "recognise" not in err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--print", "X"], "unknown level 'X'; the levels are T (tensor)"),
        (["--stop-after", "import", "--print", "Q"], "level integers is made by step quantise, behind import"),
        (["--shape", "image"], "--shape image: written as INPUT=1,3,224,224"),
        (["--shape", "image=1,0"], "--shape image=1,0"),
        (["--shape", "1,1,8,8", "--shape", "1,1,8,8"], "its input is named twice"),
        (["--shape", "picture=1,1,8,8"], "has no input 'picture'"),
        (["--shape", "image=1,3,8,8"], "input 'image' has shape [1, 1, 8, 8], not [1, 3, 8, 8]"),
    ],
)
def test_levels_and_shapes_that_do_not_exist(hwgen, micro, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = hwgen("build", micro, *options)
    assert code == 2 and one_line(err) and said in err, err


def test_open_sizes_are_told_or_come_from_the_images(hwgen, micro, tmp_path):
    model = onnx.load(micro)
    for axis, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"d{axis}"
    path, data = tmp_path / "open.onnx", tmp_path / "calib.npz"
    onnx.save(model, path)
    np.savez(data, image=np.zeros((2, 1, 8, 8), np.float32), label=np.zeros(2))
    code, _, err = hwgen("check", path)
    assert code == 2 and one_line(err) and "[1, ?, ?, ?]; give its size, as --shape image=1,3,224,224" in err
    assert hwgen("check", path, "--shape", "image=1,1,8,8")[0] == 0
    assert hwgen("build", path, "--shape", "1,1,8,8", "--stop-after", "recognise")[0] == 0
    assert hwgen("build", path, "--calibrate", data, "--stop-after", "recognise")[0] == 0


def test_findings_as_json(hwgen, micro, tmp_path):
    model = onnx.load(micro)
    node = next(n for n in model.graph.node if n.op_type == "Erf")
    node.op_type = "Atan"
    onnx.save(model, tmp_path / "odd.onnx")
    code, out, err = hwgen("check", tmp_path / "odd.onnx", "--json")
    found = json.loads(out)
    assert code == 2 and one_line(err) and not found["supported"]
    finding = next(f for f in found["findings"] if f["node"] == node.name)
    assert finding["op"] == "Atan" and finding["level"] == "select" and "atan" in finding["reason"]
    assert "GELU" in finding["nearest_form"]
    code, out, err = hwgen("check", micro, "--json")
    assert (code, err, json.loads(out)) == (0, "", {"model": str(micro), "supported": True, "findings": []})


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_has_an_example_that_parses(hwgen, command):
    code, out, _ = hwgen(command, "--help")
    examples = re.findall(rf"^  hwgen ({command}\b.*)$", out, re.M)
    assert code == 0 and "\nexample:\n" in out and examples
    for example in examples:
        assert arguments.parse(example.split()).command == command


def test_every_command_is_listed(hwgen):
    code, out, _ = hwgen("--help")
    assert code == 0 and re.findall(r"^    (\w+)(?: |$)", out, re.M) == list(arguments.EXAMPLES)
    assert set(arguments.EXAMPLES) == set(COMMANDS)


def test_a_system_without_posix_is_told_what_is_not_there(hwgen, monkeypatch):
    monkeypatch.setattr("hwgen.cli.POSIX", False)
    code, out, err = hwgen("boards")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "no file locks and process groups" in err and "WSL" in err

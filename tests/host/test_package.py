"""`hwgen package`: the folder for the board works on its own, with its own copy of the driver."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import hwgen
from hwgen import files
from hwgen.host.self_test import IMAGES, main, self_test
from hwgen.package import MARK
from hwgen.sim.register_file import MachineEngine

FOLDER = "hwgen_m3vit_digits_digit_m3vit_digits_parity"  # by the names of the two models

ROOT = Path(hwgen.__file__).parents[1]


@pytest.fixture(scope="module")
def package(digits_bundle, tmp_path_factory):
    from hwgen.package import package

    folder = tmp_path_factory.mktemp("package")
    bitstream = folder / "made.bit"
    bitstream.write_bytes(b"bits")
    bitstream.with_suffix(".hwh").write_text("<xml/>")
    package(digits_bundle, folder / "p", bitstream)
    return folder / "p"


def test_self_test_uses_the_packages_own_driver(package):
    code = "import host.self_test as s; print(s.__file__); raise SystemExit(s.main(['.', '--device', 'sim']))"
    path = f"{package}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(package / FOLDER / "driver" / "self_test.py")
    assert all(line.startswith("good") for line in lines[1:])
    assert sum("bit for bit as golden" in line for line in lines) == 4  # two tasks, two ways to wait


@pytest.mark.parametrize("module", ["host", f"{FOLDER}.driver"])
def test_the_driver_runs_by_its_name_and_here_by_a_short_one(package, module, tmp_path):
    bundle, images = package / FOLDER / "bundle", tmp_path / "in.npz"
    np.savez(images, image=np.zeros((1, 1, 8, 8), np.float32))
    command = [sys.executable, "-m", module, str(bundle), str(images), "--device", "sim", "--task", "digit"]
    how = {"cwd": package, "capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, **how)
    assert done.returncode == 0 and "1 images in" in done.stdout, done.stderr
    usage = subprocess.run([sys.executable, "-m", module, "-h"], **how).stdout
    assert usage.split()[:4] == ["usage:", "python", "-m", module]


def test_two_packages_installed_beside_each_other(package):
    """Nothing that pip installs of a package has a name that another network's has."""
    project = files.read_toml(package / "pyproject.toml")
    names = project["tool"]["setuptools"]["packages"]
    assert names == [FOLDER, f"{FOLDER}.driver", f"{FOLDER}.notebooks"]
    assert all((package / name.replace(".", "/") / "__init__.py").is_file() for name in names)
    assert project["project"]["name"] == FOLDER.replace("_", "-")


def test_a_folder_that_is_no_package(tmp_path, capsys):
    assert main([str(tmp_path), "--device", "sim"]) == 2
    said = f"host: error: {tmp_path}: is no package of hwgen: 0 of its folders hold bundle and self_test.npz\n"
    assert capsys.readouterr().err == said


def test_self_test_finds_what_is_wrong(package, monkeypatch, tmp_path):
    said = []
    with np.load(package / FOLDER / IMAGES) as file:
        arrays = dict(file)
    arrays["parity|out|parity"] = arrays["parity|out|parity"] + 1
    wrong = tmp_path / FOLDER
    wrong.mkdir()
    (wrong / "bundle").symlink_to(package / FOLDER / "bundle")
    np.savez(wrong / IMAGES, **arrays)
    assert not self_test(tmp_path, "sim", said.append)
    assert [line for line in said if "BAD" in line and "'parity'" in line and "not as golden: parity" in line]
    monkeypatch.setattr(MachineEngine, "_run", lambda self: None)
    said.clear()
    assert not self_test(package, "sim", said.append)
    assert sum("BAD" in line and "RunTimeout" in line for line in said) == 4


def test_notebook_runs(package, monkeypatch, capsys):
    shown = []
    display = types.ModuleType("IPython.display")
    display.SVG, display.display = (lambda data: data), shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.syspath_prepend(str(package))
    notebook = json.loads((package / FOLDER / "notebooks" / f"{FOLDER}.ipynb").read_text())
    assert notebook["nbformat"] == 4
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("DEVICE = 'board'", "DEVICE = 'sim'"), names)
    for module in [name for name in sys.modules if name.split(".")[0] == FOLDER]:
        monkeypatch.delitem(sys.modules, module)
    said = capsys.readouterr().out
    assert "digit (4, 10) bit for bit as simulated" in said and "(simulated sensors)" in said
    assert "+0 bytes" in said and "outputs equal" in said
    assert len(shown) == 2 and all(svg.startswith("<svg") and "simulated" in svg for svg in shown)


def test_contents(package, digits_bundle):
    mark = json.loads((package / MARK).read_text())
    for name, digest in mark["files"].items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == digest
    found = {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert found == {*mark["files"], MARK}
    assert (package / FOLDER / "hwgen.bit").read_bytes() == b"bits"
    assert "[project.entry-points.\"pynq.notebooks\"]" in (package / "pyproject.toml").read_text()
    assert "is part of this package" in (package / "README.md").read_text()


def test_command_line(hwgen, digits_bundle, tmp_path):
    folder = tmp_path / "p"
    assert hwgen("package", digits_bundle, "-o", folder)[0] == 0
    first = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hwgen("package", digits_bundle, "-o", folder)[0] == 0  # its own package is replaced
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == first
    assert "vivado -mode batch" in (folder / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    for arguments, said in (
        ((digits_bundle, "-o", tmp_path / "mine"), "exists and is no package; it is left as it is"),
        ((digits_bundle, "-o", tmp_path / "q", "--bitstream", tmp_path / "no.bit"), "no.bit: cannot be read"),
        ((digits_bundle, "-o", tmp_path / "q", "--input", tmp_path / "no.npz"), "no.npz: no such file"),
        ((tmp_path, "-o", tmp_path / "q"), "manifest.json: cannot be read"),
    ):
        code, out, err = hwgen("package", *arguments)
        assert code == 2 and not out and said in err
        assert not (tmp_path / "q").exists()

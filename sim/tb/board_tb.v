// Test bench of a whole ECP5 board: its pins with the SDRAM beside it. The simulator's Python side is the serial line.
`timescale 1ns / 1ps
`default_nettype none
module board_tb (
    input  wire        clk,
    input  wire        button_n,
    input  wire        to_board,
    output wire        from_board,
    output wire [7:0]  led,
    output wire [31:0] violations,
    output wire [7:0]  first
);
    wire sdram_clk, cke, cs_n, ras_n, cas_n, we_n, keep_alive;
    wire [1:0] ba, dqm;
    wire [12:0] a;
    wire [15:0] dq;
    board_ecp5 board (
        .oscillator(clk), .button_reset_n(button_n), .serial_rx(to_board), .serial_tx(from_board), .led(led),
        .keep_alive(keep_alive), .sdram_clk(sdram_clk), .sdram_cke(cke), .sdram_cs_n(cs_n), .sdram_ras_n(ras_n),
        .sdram_cas_n(cas_n), .sdram_we_n(we_n), .sdram_ba(ba), .sdram_a(a), .sdram_dqm(dqm), .sdram_dq(dq)
    );
    sdram memory (
        .clk(sdram_clk), .cke(cke), .cs_n(cs_n), .ras_n(ras_n), .cas_n(cas_n), .we_n(we_n), .ba(ba), .a(a), .dqm(dqm),
        .dq(dq), .violations(violations), .first(first)
    );
endmodule
`default_nettype wire

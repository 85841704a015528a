// Models of the ECP5 cells that rtl_templates/board_ecp5.v names. The PLL passes its input on: the bench's oscillator runs
// at the machine's clock.
`timescale 1ns / 1ps
`default_nettype none
/* verilator lint_off DECLFILENAME */
module EHXPLLL #(
    parameter CLKI_DIV = 1, CLKFB_DIV = 1, CLKOP_DIV = 8, CLKOP_CPHASE = 0, FEEDBK_PATH = "CLKOP"
) (
    input wire CLKI, CLKFB, RST, STDBY, ENCLKOP, PLLWAKESYNC, PHASESEL0, PHASESEL1, PHASEDIR, PHASESTEP, PHASELOADREG,
    output wire CLKOP, output wire LOCK
);
    reg [3:0] count = 0;
    always @(posedge CLKI) if (!LOCK) count <= count + 1;
    assign LOCK = &count;
    assign CLKOP = CLKI;
endmodule

module ODDRX1F (input wire SCLK, RST, D0, D1, output wire Q);
    assign Q = SCLK ? D0 : D1;  // of constants
endmodule

// Q1: what stood at D at the falling edge before; Q0: at the rising edge before that one.
module IDDRX1F (input wire SCLK, RST, D, output reg Q0, output reg Q1);
    reg rise, fall;
    always @(posedge SCLK) begin
        rise <= D;
        Q0 <= rise;
        Q1 <= fall;
    end
    always @(negedge SCLK) fall <= D;
endmodule

module OFS1P3DX (input wire CD, D, SP, SCLK, output reg Q);
    always @(posedge SCLK or posedge CD) if (CD) Q <= 0; else if (SP) Q <= D;
endmodule

module BB (input wire I, T, output wire O, inout wire B);
    assign B = T ? 1'bz : I;
    assign O = B;
endmodule
/* verilator lint_on DECLFILENAME */
`default_nettype wire

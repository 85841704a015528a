// Pins of an ECP5 board with 16-bit SDRAM and a serial line around hwgen_shell: PLL, reset, registers beside the pins.
//
// The SDRAM's clock is the machine's, inverted: what leaves at a rising edge is taken half a clock later. Data that it
// gives for a command come back around the falling edge CAS latency + 1.5 clocks after the command's register in the pin;
// there they are taken, and shown to the shell at the next rising edge.
`default_nettype none
module board_ecp5 #(
    parameter INPUT_DIVIDER = 2,     // PLL: clock = oscillator * FEEDBACK_DIVIDER / INPUT_DIVIDER
    parameter FEEDBACK_DIVIDER = 5,
    parameter OUTPUT_DIVIDER = 10    // its oscillator runs at clock * OUTPUT_DIVIDER, 400 to 800 MHz
) (
    input  wire        oscillator,
    input  wire        button_reset_n,
    input  wire        serial_rx,
    output wire        serial_tx,
    output wire [7:0]  led,
    output wire        keep_alive,   // high: other chips of the board leave the FPGA alone
    output wire        sdram_clk,
    output wire        sdram_cke,
    output wire        sdram_cs_n,
    output wire        sdram_ras_n,
    output wire        sdram_cas_n,
    output wire        sdram_we_n,
    output wire [1:0]  sdram_ba,
    output wire [12:0] sdram_a,
    output wire [1:0]  sdram_dqm,
    inout  wire [15:0] sdram_dq
);
    wire clk, locked;
    EHXPLLL #(
        .CLKI_DIV(INPUT_DIVIDER),
        .CLKFB_DIV(FEEDBACK_DIVIDER),
        .CLKOP_DIV(OUTPUT_DIVIDER),
        .CLKOP_CPHASE(OUTPUT_DIVIDER - 1),
        .FEEDBK_PATH("CLKOP")
    ) pll (
        .CLKI(oscillator), .CLKFB(clk), .CLKOP(clk), .LOCK(locked),
        .RST(1'b0), .STDBY(1'b0), .ENCLKOP(1'b0), .PLLWAKESYNC(1'b0),
        .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0)
    );

    // The reset begins at once, and ends with the clock some clocks after the PLL has locked.
    wire reset_now = ~locked | ~button_reset_n;
    reg [7:0] reset_chain = 8'hff;
    always @(posedge clk or posedge reset_now)
        if (reset_now) reset_chain <= 8'hff;
        else reset_chain <= {reset_chain[6:0], 1'b0};
    reg rst = 1'b1;
    always @(posedge clk) rst <= reset_chain[7];

    assign keep_alive = 1'b1;

    wire        cke, dq_oe;
    wire [2:0]  command;
    wire [1:0]  ba, dqm;
    wire [12:0] a;
    wire [15:0] dq_o, dq_i;
    hwgen_shell shell (
        .clk(clk), .rst(rst), .rx(serial_rx), .tx(serial_tx), .led(led),
        .sdram_cke(cke), .sdram_command(command), .sdram_ba(ba), .sdram_a(a), .sdram_dqm(dqm),
        .sdram_dq_o(dq_o), .sdram_dq_oe(dq_oe), .sdram_dq_i(dq_i)
    );

    ODDRX1F clock_out (.SCLK(clk), .RST(1'b0), .D0(1'b0), .D1(1'b1), .Q(sdram_clk));
    assign sdram_cs_n = 1'b0;

`define PIN_OUT(NAME, FROM, TO) \
    OFS1P3DX NAME (.CD(1'b0), .D(FROM), .SP(1'b1), .SCLK(clk), .Q(TO));
    `PIN_OUT(cke_out, cke, sdram_cke)
    `PIN_OUT(ras_out, command[2], sdram_ras_n)
    `PIN_OUT(cas_out, command[1], sdram_cas_n)
    `PIN_OUT(we_out, command[0], sdram_we_n)
    genvar i;
    generate
        for (i = 0; i < 13; i = i + 1) begin : gen_a
            `PIN_OUT(a_out, a[i], sdram_a[i])
        end
        for (i = 0; i < 2; i = i + 1) begin : gen_bank
            `PIN_OUT(ba_out, ba[i], sdram_ba[i])
            `PIN_OUT(dqm_out, dqm[i], sdram_dqm[i])
        end
        for (i = 0; i < 16; i = i + 1) begin : gen_dq
            wire out, in, off, unused;
            `PIN_OUT(dq_out, dq_o[i], out)
            `PIN_OUT(off_out, ~dq_oe, off)
            BB pad (.I(out), .T(off), .O(in), .B(sdram_dq[i]));
            IDDRX1F dq_in (.SCLK(clk), .RST(1'b0), .D(in), .Q0(unused), .Q1(dq_i[i]));
        end
    endgenerate
`undef PIN_OUT
endmodule
`default_nettype wire

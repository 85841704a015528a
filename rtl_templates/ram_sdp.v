// Simple dual-port RAM with a registered output: read_data = memory[read_addr] two clocks later.
// STYLE: "block", "ultra", "distributed" or "auto".
`default_nettype none
/* verilator lint_off WIDTHEXPAND */  // STYLE takes the width of the string it is given
module ram_sdp #(
    parameter DEPTH = 1024,
    parameter WIDTH = 32,
    parameter STYLE = "auto",
    parameter ADDRESS = (DEPTH <= 2) ? 1 : $clog2(DEPTH)
) (
    input  wire               clk,
    input  wire [ADDRESS-1:0] write_addr,
    input  wire [WIDTH-1:0]   write_data,
    input  wire               write_enable,
    input  wire [ADDRESS-1:0] read_addr,
    output reg  [WIDTH-1:0]   read_data
);
    reg [WIDTH-1:0] fetched;

    // One block per style: the attribute must stand at the declaration, and Verilog cannot take it from a parameter
    // in every tool.
    generate
        if (STYLE == "ultra") begin : gen_ultra
            (* ram_style = "ultra" *) reg [WIDTH-1:0] memory [0:DEPTH-1];
            always @(posedge clk) begin
                if (write_enable) memory[write_addr] <= write_data;
                fetched <= memory[read_addr];
            end
        end else if (STYLE == "block") begin : gen_block
            (* ram_style = "block" *) reg [WIDTH-1:0] memory [0:DEPTH-1];
            always @(posedge clk) begin
                if (write_enable) memory[write_addr] <= write_data;
                fetched <= memory[read_addr];
            end
        end else if (STYLE == "distributed") begin : gen_distributed
            (* ram_style = "distributed" *) reg [WIDTH-1:0] memory [0:DEPTH-1];
            always @(posedge clk) begin
                if (write_enable) memory[write_addr] <= write_data;
                fetched <= memory[read_addr];
            end
        end else begin : gen_auto
            reg [WIDTH-1:0] memory [0:DEPTH-1];
            always @(posedge clk) begin
                if (write_enable) memory[write_addr] <= write_data;
                fetched <= memory[read_addr];
            end
        end
    endgenerate

    always @(posedge clk) read_data <= fetched;
endmodule
/* verilator lint_on WIDTHEXPAND */
`default_nettype wire

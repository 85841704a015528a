// Which cycles the FST file holds, said to `waves.cpp` at every clock: of each run those from +waves_from=N on, before +waves_to=N,
// counted as `trace` counts them; without +waves_from all, and the reset and what lies between the runs too.
`default_nettype none
import "DPI-C" function void waves_window(input bit now);
module waves (
    input wire clk,
    input wire rst,
    input wire running
);
    reg was_running;
    reg [31:0] cycle, from, to;
    initial begin
        if ($value$plusargs("waves_to=%d", to) == 0) to = 32'hffffffff;
        if ($value$plusargs("waves_from=%d", from) == 0) from = 32'hffffffff;
        else waves_window(0);
    end
    always @(posedge clk) begin
        was_running <= running && !rst;
        cycle = was_running ? cycle + 1 : 0;
        if (from != 32'hffffffff) waves_window(running && !rst && cycle >= from && cycle < to);
    end
endmodule
`default_nettype wire
bind trace waves gate (.clk(clk), .rst(rst), .running(running));

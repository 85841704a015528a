// A 16-bit SDRAM of 256 Mbit for simulation: bursts of one column, CAS latency 2. It counts what a part would not take:
// commands before the initialisation, too early, to a closed row; a collision on dq; a refresh that comes too late.
// `violations` is their number, `first` the code of the first one (see `check`). Times are nanoseconds of $realtime.
`timescale 1ns / 1ps
`default_nettype none
module sdram (
    input  wire        clk,
    input  wire        cke,
    input  wire        cs_n,
    input  wire        ras_n,
    input  wire        cas_n,
    input  wire        we_n,
    input  wire [1:0]  ba,
    input  wire [12:0] a,
    input  wire [1:0]  dqm,
    inout  wire [15:0] dq,
    output reg  [31:0] violations,
    output reg  [7:0]  first
);
    localparam real POWER_UP = 200000.0, T_RP = 20.0, T_RCD = 20.0, T_RAS = 45.0, T_RC = 67.5, T_RFC = 67.5, T_RRD = 15.0,
        T_WR = 15.0, T_MRD = 20.0, REFRESH_LATE = 9000.0, NEVER = -1.0e9;
    localparam [2:0] ACTIVATE = 3'b011, READ = 3'b101, WRITE = 3'b100, PRECHARGE = 3'b010, REFRESH = 3'b001, MODE = 3'b000;

    reg [15:0] memory [0:(1 << 24) - 1];
    reg        open [0:3];
    reg [12:0] row [0:3];
    real       activated [0:3];
    real       precharged [0:3];
    real       written [0:3];
    real       refreshed, moded, any_activated;
    integer    refreshes;
    reg        ready;
    integer    b;

    // What was read: the word that the next clock's edge finds on the bus, and the one after it.
    reg [15:0] next_word, word;
    reg        next_driven, driven;
    assign dq = driven ? word : 16'bz;

    initial begin
        violations = 0; first = 0; ready = 0; refreshes = 0; driven = 0; next_driven = 0;
        refreshed = NEVER; moded = NEVER; any_activated = NEVER;
        for (b = 0; b < 4; b = b + 1) begin
            open[b] = 0; activated[b] = NEVER; precharged[b] = NEVER; written[b] = NEVER;
        end
    end

    task check(input good, input [7:0] code);
        if (!good) begin
            violations = violations + 1;
            if (first == 0) first = code;
        end
    endtask

    // A clock's time is rounded to the simulator's step.
    function since(input real when_, input real least);
        since = $realtime - when_ > least - 0.1;
    endfunction

    wire [23:0] at = {row[ba], ba, a[8:0]};
    always @(posedge clk) begin
        driven <= next_driven;
        word <= next_word;
        next_driven <= 0;
        if (cke && !cs_n) case ({ras_n, cas_n, we_n})
            ACTIVATE: begin
                check(ready, 1);
                check(!open[ba], 2);
                check(since(precharged[ba], T_RP), 3);
                check(since(activated[ba], T_RC) && since(any_activated, T_RRD), 4);
                check(since(refreshed, T_RFC) && since(moded, T_MRD), 5);
                open[ba] = 1; row[ba] = a; activated[ba] = $realtime; any_activated = $realtime;
            end
            READ: begin
                check(open[ba], 6);
                check(since(activated[ba], T_RCD), 7);
                check(!a[10], 8);
                next_driven <= 1;
                next_word <= memory[at];
            end
            WRITE: begin
                check(open[ba], 9);
                check(since(activated[ba], T_RCD), 10);
                check(!a[10], 11);
                check(!driven && !next_driven, 12);
                if (!dqm[0]) memory[at][7:0] <= dq[7:0];
                if (!dqm[1]) memory[at][15:8] <= dq[15:8];
                written[ba] = $realtime;
            end
            PRECHARGE: begin
                check($realtime > POWER_UP, 13);
                for (b = 0; b < 4; b = b + 1) if (a[10] || ba == b) begin
                    if (open[b]) begin
                        check(since(activated[b], T_RAS), 14);
                        check(since(written[b], T_WR), 15);
                    end
                    open[b] = 0; precharged[b] = $realtime;
                end
            end
            REFRESH: begin
                for (b = 0; b < 4; b = b + 1) begin
                    check(!open[b], 16);
                    check(since(precharged[b], T_RP), 17);
                end
                check(since(refreshed, T_RFC), 18);
                refreshed = $realtime;
                refreshes = refreshes + 1;
            end
            MODE: begin
                for (b = 0; b < 4; b = b + 1) check(!open[b], 19);
                check(refreshes >= 2 && since(refreshed, T_RFC), 20);
                check(a == 13'h020 && ba == 0, 21);  // single columns, CAS latency 2
                ready = 1; moded = $realtime;
            end
            default: ;
        endcase
        if (ready) check($realtime - refreshed < REFRESH_LATE, 22);
    end
endmodule
`default_nettype wire

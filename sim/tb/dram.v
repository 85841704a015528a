// DRAM behind several AXI4 ports: one data port (read and write, port 0) and read-only ports, over one memory.
//
// Every read burst waits +latency clocks; all ports together move at most +rate / 16 bytes a clock (0: no limit), of which
// a pause saves up +credit beats for each port and once more; every +refresh_period clocks (0: never) nothing moves for
// +refresh_clocks; +stall / 256 of the clocks withhold each handshake at random, drawn from +seed. Addresses outside the
// memory answer SLVERR. The back door reads and writes one word a clock, for the test bench. +dram names the file of the
// memory's first contents; at each backdoor_load the words of the file that +load names go to backdoor_addr and behind it.
// Faults, while their input is high: fault_error answers SLVERR to every beat read and every burst written (which is
// not stored), fault_hold takes and answers nothing.
`default_nettype none
module dram #(
    parameter PORTS = 3,
    parameter BYTES = 16,
    parameter WORDS = 1024
) (
    input  wire                     clk,
    input  wire                     rst,

    input  wire [PORTS-1:0]         arvalid,
    output reg  [PORTS-1:0]         arready,
    input  wire [PORTS*64-1:0]      araddr,
    input  wire [PORTS*8-1:0]       arlen,
    output reg  [PORTS-1:0]         rvalid,
    input  wire [PORTS-1:0]         rready,
    output reg  [PORTS*BYTES*8-1:0] rdata,
    output reg  [PORTS*2-1:0]       rresp,
    output reg  [PORTS-1:0]         rlast,

    input  wire                     awvalid,
    output reg                      awready,
    input  wire [63:0]              awaddr,
    input  wire                     wvalid,
    output reg                      wready,
    input  wire [BYTES*8-1:0]       wdata,
    input  wire [BYTES-1:0]         wstrb,
    input  wire                     wlast,
    output reg                      bvalid,
    input  wire                     bready,
    output reg  [1:0]               bresp,

    input  wire                     fault_error,
    input  wire                     fault_hold,
    input  wire                     backdoor_load,
    input  wire                     backdoor_write,
    input  wire [31:0]              backdoor_addr,
    input  wire [BYTES*8-1:0]       backdoor_wdata,
    output reg  [BYTES*8-1:0]       backdoor_rdata
);
    localparam DEPTH = 32;                   // bursts waiting per port
    localparam SHIFT = $clog2(BYTES);
    localparam COST = BYTES * 16;            // credit of one beat

    reg [BYTES*8-1:0] memory [0:WORDS-1];
    reg [8*1024-1:0] file, load_file;
    integer handle, got;
    integer latency, rate, credit_max, refresh_period, refresh_clocks, stall, seed;
    initial begin
        if (!$value$plusargs("latency=%d", latency)) latency = 0;
        if (!$value$plusargs("rate=%d", rate)) rate = 0;
        if (!$value$plusargs("credit=%d", credit_max)) credit_max = 4;
        credit_max = credit_max * COST * (PORTS + 1);
        if (!$value$plusargs("refresh_period=%d", refresh_period)) refresh_period = 0;
        if (!$value$plusargs("refresh_clocks=%d", refresh_clocks)) refresh_clocks = 0;
        if (!$value$plusargs("stall=%d", stall)) stall = 0;
        if (!$value$plusargs("seed=%d", seed)) seed = 1;
        if (!$value$plusargs("load=%s", load_file)) load_file = "";
        if ($value$plusargs("dram=%s", file)) begin
            handle = $fopen(file, "rb");
            got = $fread(memory, handle);
            $fclose(handle);
        end
    end

    // Waiting read bursts, a ring per port: address, beats left, first clock it may answer.
    reg [63:0] burst_addr  [0:PORTS*DEPTH-1];
    reg [8:0]  burst_beats [0:PORTS*DEPTH-1];
    reg [31:0] burst_time  [0:PORTS*DEPTH-1];
    reg [4:0]  head  [0:PORTS-1];
    reg [4:0]  tail  [0:PORTS-1];
    reg [5:0]  count [0:PORTS-1];
    // Waiting writes: start addresses; the current one; responses by time.
    reg [63:0] write_addr [0:DEPTH-1];
    reg [4:0]  write_head, write_tail;
    reg [5:0]  writes;
    reg [31:0] answer_time [0:DEPTH-1];
    reg [1:0]  answer_resp [0:DEPTH-1];
    reg [4:0]  answer_head, answer_tail;
    reg [5:0]  answers;
    reg        write_error;

    reg [31:0] now;
    reg [31:0] random;
    reg        refreshing;
    reg [PORTS-1:0] showing;
    integer credit, turn, k, p, slot, b;
    reg [63:0] word;

    function [31:0] next_random(input [31:0] x);
        reg [31:0] y;
        begin
            y = x ^ (x << 13);
            y = y ^ (y >> 17);
            next_random = y ^ (y << 5);
        end
    endfunction

    always @(posedge clk) begin
        if (rst) begin
            arready <= 0; rvalid <= 0; awready <= 0; wready <= 0; bvalid <= 0;
            showing = 0; now = 0; random = seed + 32'h9e3779b9; credit = 0; turn = 0;
            write_head = 0; write_tail = 0; writes = 0; answer_head = 0; answer_tail = 0; answers = 0; write_error = 0;
            for (p = 0; p < PORTS; p = p + 1) begin
                head[p] = 0; tail[p] = 0; count[p] = 0;
            end
        end else begin
            now = now + 1;
            credit = credit + rate;
            if (rate == 0 || credit > credit_max) credit = credit_max;
            refreshing = fault_hold
                || (refresh_period != 0 && (now % (refresh_period == 0 ? 1 : refresh_period)) < refresh_clocks);
            turn = (turn + 1) % PORTS;
            for (k = 0; k < PORTS; k = k + 1) begin
                p = (turn + k) % PORTS;
                if (arvalid[p] && arready[p]) begin
                    slot = p * DEPTH + tail[p];
                    burst_addr[slot] = araddr[p*64 +: 64];
                    burst_beats[slot] = arlen[p*8 +: 8] + 1;
                    burst_time[slot] = now + latency;
                    tail[p] = tail[p] + 1;
                    count[p] = count[p] + 1;
                end
                random = next_random(random);
                arready[p] <= count[p] < DEPTH - 2 && random[7:0] >= stall && !fault_hold;
                if (rvalid[p] && rready[p]) showing[p] = 0;
                random = next_random(random);
                slot = p * DEPTH + head[p];
                if (!showing[p] && count[p] != 0 && now >= burst_time[slot] && credit >= COST && !refreshing
                    && random[7:0] >= stall) begin
                    word = burst_addr[slot] >> SHIFT;
                    rdata[p*BYTES*8 +: BYTES*8] <= word < WORDS ? memory[word] : {BYTES*8{1'b0}};
                    rresp[p*2 +: 2] <= word < WORDS && !fault_error ? 2'b00 : 2'b10;
                    rlast[p] <= burst_beats[slot] == 1;
                    showing[p] = 1;
                    credit = credit - COST;
                    burst_addr[slot] = burst_addr[slot] + BYTES;
                    burst_beats[slot] = burst_beats[slot] - 1;
                    if (burst_beats[slot] == 0) begin
                        head[p] = head[p] + 1;
                        count[p] = count[p] - 1;
                    end
                end
            end
            rvalid <= showing;

            if (awvalid && awready) begin
                write_addr[write_tail] = awaddr;
                write_tail = write_tail + 1;
                writes = writes + 1;
            end
            if (wvalid && wready) begin
                word = write_addr[write_head] >> SHIFT;
                if (word < WORDS && !fault_error) begin
                    for (b = 0; b < BYTES; b = b + 1)
                        if (wstrb[b]) memory[word][b*8 +: 8] = wdata[b*8 +: 8];
                end else
                    write_error = 1;
                write_addr[write_head] = write_addr[write_head] + BYTES;
                credit = credit - COST;
                if (wlast) begin
                    write_head = write_head + 1;
                    writes = writes - 1;
                    answer_time[answer_tail] = now + latency;
                    answer_resp[answer_tail] = write_error ? 2'b10 : 2'b00;
                    write_error = 0;
                    answer_tail = answer_tail + 1;
                    answers = answers + 1;
                end
            end
            random = next_random(random);
            awready <= writes < DEPTH - 2 && random[7:0] >= stall && !fault_hold;
            wready <= writes != 0 && credit >= COST && !refreshing && random[15:8] >= stall;
            if (bvalid && bready) bvalid <= 0;
            if ((!bvalid || bready) && answers != 0 && now >= answer_time[answer_head]
                && !fault_hold) begin
                bvalid <= 1;
                bresp <= answer_resp[answer_head];
                answer_head = answer_head + 1;
                answers = answers - 1;
            end
        end
        if (backdoor_load) begin
            handle = $fopen(load_file, "rb");
            got = $fread(memory, handle, backdoor_addr);
            $fclose(handle);
        end
        if (backdoor_write) memory[backdoor_addr] = backdoor_wdata;
        backdoor_rdata <= memory[backdoor_addr];
    end
endmodule
`default_nettype wire

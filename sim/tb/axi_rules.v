// The rules of AXI4 that masters keep, and this design's own: bursts of at most BURST beats, OUTSTANDING of them under way in each
// direction of a port, beats of a write behind its address, whole beats only. Watches only; what breaks a rule ends the simulation.
`default_nettype none
module axi_rules #(
    parameter PORTS = 3,
    parameter BYTES = 16,
    parameter BURST = 16,
    parameter OUTSTANDING = 16
) (
    input wire                clk,
    input wire                rst,
    input wire [PORTS-1:0]    arvalid,
    input wire [PORTS-1:0]    arready,
    input wire [PORTS*64-1:0] araddr,
    input wire [PORTS*8-1:0]  arlen,
    input wire [PORTS-1:0]    rvalid,
    input wire [PORTS-1:0]    rready,
    input wire [PORTS-1:0]    rlast,
    input wire                awvalid,
    input wire                awready,
    input wire [63:0]         awaddr,
    input wire [7:0]          awlen,
    input wire                wvalid,
    input wire                wready,
    input wire [BYTES*8-1:0]  wdata,
    input wire [BYTES-1:0]    wstrb,
    input wire                wlast,
    input wire                bvalid,
    input wire                bready
);
    reg [PORTS-1:0]    ar_waits;
    reg [PORTS*64-1:0] ar_addr;
    reg [PORTS*8-1:0]  ar_len;
    reg                aw_waits, w_waits, w_last;
    reg [63:0]         aw_addr;
    reg [7:0]          aw_len;
    reg [BYTES*8-1:0]  w_data;
    reg [31:0]         reads [0:PORTS-1];  // bursts under way
    reg [31:0]         writes;             // bursts without an answer
    reg [8:0]          lengths [0:255];    // beats of the writes whose address was taken, a ring
    reg [7:0]          first, next;
    reg [8:0]          beat;               // of the first of them
    integer p;

    task broken(input integer port, input [8*64-1:0] what);
        begin
            $display("AXI rules: port %0d: %0s", port, what);
            $fatal;
        end
    endtask

    task address(input integer port, input [63:0] addr, input [7:0] len, input [31:0] under_way);
        begin
            if (len >= BURST) broken(port, "a burst is too long");
            if (addr[11:0] + (len + 1) * BYTES > 4096) broken(port, "a burst crosses 4 KiB");
            if (addr % BYTES != 0) broken(port, "an address is not whole beats");
            if (under_way >= OUTSTANDING) broken(port, "too many bursts are under way");
        end
    endtask

    always @(posedge clk) begin
        if (rst) begin
            ar_waits <= 0; aw_waits <= 0; w_waits <= 0;
            writes = 0; first = 0; next = 0; beat = 0;
            for (p = 0; p < PORTS; p = p + 1) reads[p] = 0;
        end else begin
            for (p = 0; p < PORTS; p = p + 1) begin
                if (ar_waits[p] && (!arvalid[p] || araddr[p*64 +: 64] != ar_addr[p*64 +: 64] || arlen[p*8 +: 8] != ar_len[p*8 +: 8]))
                    broken(p, "a read address changed before it was taken");
                if (rvalid[p] && rready[p] && rlast[p]) reads[p] = reads[p] - 1;
                if (arvalid[p] && arready[p]) begin
                    address(p, araddr[p*64 +: 64], arlen[p*8 +: 8], reads[p]);
                    reads[p] = reads[p] + 1;
                end
            end
            ar_waits <= arvalid & ~arready;
            ar_addr <= araddr;
            ar_len <= arlen;

            if (aw_waits && (!awvalid || awaddr != aw_addr || awlen != aw_len))
                broken(0, "a write address changed before it was taken");
            if (w_waits && (!wvalid || wdata != w_data || wlast != w_last)) broken(0, "a beat changed before it was taken");
            if (bvalid && bready) writes = writes - 1;
            if (wvalid && first == next) broken(0, "a beat is ahead of its address");
            if (wvalid && wlast != (beat + 1 == lengths[first])) broken(0, "the last beat is not the one that is marked");
            if (wvalid && !(&wstrb)) broken(0, "a beat is not whole");
            if (wvalid && wready) begin
                beat = beat + 1;
                if (wlast) begin
                    beat = 0;
                    first = first + 1;
                end
            end
            if (awvalid && awready) begin
                address(0, awaddr, awlen, writes);
                writes = writes + 1;
                lengths[next] = awlen + 1;
                next = next + 1;
            end
            aw_waits <= awvalid && !awready;
            w_waits <= wvalid && !wready;
            aw_addr <= awaddr;
            aw_len <= awlen;
            w_data <= wdata;
            w_last <= wlast;
        end
    end
endmodule
`default_nettype wire

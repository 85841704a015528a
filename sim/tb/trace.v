// Timing of a run, written to +trace=FILE (nothing without it), one event a line, cycles counted as the register CYCLES does:
//   R                                      a run begins
//   A unit cycle                           the unit takes its next instruction
//   F unit cycle wanted                    it finishes its oldest; wanted: 0 where a weight stream had nothing to move
//   I cycle active dram tile bank depend other
//                                          the last row of a Matmul is issued, and the cycles of each kind so far: a row
//                                          enters the array, or none does for want of a weight word, a tile, a memory
//                                          bank, an instruction that this one waits for, or (other) a step of the control
//   W words cycle                          so many weight words, a multiple of 64, have entered the buffer
`default_nettype none
module trace #(
    parameter UNITS = 5
) (
    input wire             clk,
    input wire             rst,
    input wire             running,
    input wire [UNITS-1:0] accepted,
    input wire [UNITS-1:0] finished,
    input wire             wanted,        // of the weight stream's instruction
    input wire             word_in,       // a weight word enters the buffer
    input wire             issued,        // a row is issued
    input wire             last,          // it is its Matmul's last
    input wire             row_waits,     // for its tile
    input wire             bank_waits,    // row or tile, for a scratchpad bank
    input wire             starved,       // the tile loader waited for words in the cycle before
    input wire             word_taken,    // by the tile loader
    input wire             tile_reads,    // the tile loader reads the scratchpad
    input wire             depend_waits   // the next Matmul, for its counts
);
    localparam ACTIVE = 0, DRAM = 1, TILE = 2, BANK = 3, DEPEND = 4, OTHER = 5;
    reg [8*1024-1:0] file;
    integer handle, u;
    reg was_running;
    reg [31:0] cycle, words;
    reg [31:0] spent [0:5];
    reg [2:0] kind;

    initial begin
        handle = 0;
        if ($value$plusargs("trace=%s", file)) handle = $fopen(file, "w");
    end

    always @* begin
        if (issued) kind = ACTIVE;
        else if (bank_waits) kind = BANK;
        else if (starved) kind = DRAM;
        else if (word_taken || tile_reads || row_waits) kind = TILE;
        else if (depend_waits) kind = DEPEND;
        else kind = OTHER;
    end

    always @(posedge clk) if (handle != 0) begin
        was_running <= running && !rst;
        if (running && !rst) begin
            if (!was_running) begin
                $fwrite(handle, "R\n");
                words = 0;
                for (u = 0; u < 6; u = u + 1) spent[u] = 0;
            end
            cycle = was_running ? cycle + 1 : 0;
            spent[kind] = spent[kind] + 1;
            for (u = 0; u < UNITS; u = u + 1) begin
                if (finished[u]) $fwrite(handle, "F %0d %0d %0d\n", u, cycle, wanted);
                if (accepted[u]) $fwrite(handle, "A %0d %0d\n", u, cycle);
            end
            if (last)
                $fwrite(handle, "I %0d %0d %0d %0d %0d %0d %0d\n",
                        cycle, spent[0], spent[1], spent[2], spent[3], spent[4], spent[5]);
            if (word_in) begin
                words = words + 1;
                if (words[5:0] == 0) $fwrite(handle, "W %0d %0d\n", words, cycle);
            end
        end else if (was_running) $fflush(handle);
    end
endmodule
`default_nettype wire

// DP16KD in the modes that Yosys maps memories to, after Lattice's FPGA-TN-02204: ports of up to 18 bits, or port A writing
// and port B reading 36 bits; no output registers. Anything else that it is asked for stops the simulation.
`default_nettype none
module DP16KD #(
    parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18, REGMODE_A = "NOREG", REGMODE_B = "NOREG", RESETMODE = "SYNC",
    parameter ASYNC_RESET_RELEASE = "SYNC", CSDECODE_A = "0b000", CSDECODE_B = "0b000", CLKAMUX = "CLKA", CLKBMUX = "CLKB",
    parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL", GSR = "AUTO",
    parameter [319:0]
        INITVAL_00 = 320'b0, INITVAL_01 = 320'b0, INITVAL_02 = 320'b0, INITVAL_03 = 320'b0, INITVAL_04 = 320'b0,
        INITVAL_05 = 320'b0, INITVAL_06 = 320'b0, INITVAL_07 = 320'b0, INITVAL_08 = 320'b0, INITVAL_09 = 320'b0,
        INITVAL_0A = 320'b0, INITVAL_0B = 320'b0, INITVAL_0C = 320'b0, INITVAL_0D = 320'b0, INITVAL_0E = 320'b0,
        INITVAL_0F = 320'b0, INITVAL_10 = 320'b0, INITVAL_11 = 320'b0, INITVAL_12 = 320'b0, INITVAL_13 = 320'b0,
        INITVAL_14 = 320'b0, INITVAL_15 = 320'b0, INITVAL_16 = 320'b0, INITVAL_17 = 320'b0, INITVAL_18 = 320'b0,
        INITVAL_19 = 320'b0, INITVAL_1A = 320'b0, INITVAL_1B = 320'b0, INITVAL_1C = 320'b0, INITVAL_1D = 320'b0,
        INITVAL_1E = 320'b0, INITVAL_1F = 320'b0, INITVAL_20 = 320'b0, INITVAL_21 = 320'b0, INITVAL_22 = 320'b0,
        INITVAL_23 = 320'b0, INITVAL_24 = 320'b0, INITVAL_25 = 320'b0, INITVAL_26 = 320'b0, INITVAL_27 = 320'b0,
        INITVAL_28 = 320'b0, INITVAL_29 = 320'b0, INITVAL_2A = 320'b0, INITVAL_2B = 320'b0, INITVAL_2C = 320'b0,
        INITVAL_2D = 320'b0, INITVAL_2E = 320'b0, INITVAL_2F = 320'b0, INITVAL_30 = 320'b0, INITVAL_31 = 320'b0,
        INITVAL_32 = 320'b0, INITVAL_33 = 320'b0, INITVAL_34 = 320'b0, INITVAL_35 = 320'b0, INITVAL_36 = 320'b0,
        INITVAL_37 = 320'b0, INITVAL_38 = 320'b0, INITVAL_39 = 320'b0, INITVAL_3A = 320'b0, INITVAL_3B = 320'b0,
        INITVAL_3C = 320'b0, INITVAL_3D = 320'b0, INITVAL_3E = 320'b0, INITVAL_3F = 320'b0
) (
    input wire DIA0, DIA1, DIA2, DIA3, DIA4, DIA5, DIA6, DIA7, DIA8, DIA9, DIA10, DIA11, DIA12, DIA13, DIA14,
    DIA15, DIA16, DIA17, ADA0, ADA1, ADA2, ADA3, ADA4, ADA5, ADA6, ADA7, ADA8, ADA9, ADA10, ADA11, ADA12, ADA13,
    CEA, OCEA, CLKA, WEA, RSTA, CSA0, CSA1, CSA2,
    input wire DIB0, DIB1, DIB2, DIB3, DIB4, DIB5, DIB6, DIB7, DIB8, DIB9, DIB10, DIB11, DIB12, DIB13, DIB14,
    DIB15, DIB16, DIB17, ADB0, ADB1, ADB2, ADB3, ADB4, ADB5, ADB6, ADB7, ADB8, ADB9, ADB10, ADB11, ADB12, ADB13,
    CEB, OCEB, CLKB, WEB, RSTB, CSB0, CSB1, CSB2,
    output wire DOA0, DOA1, DOA2, DOA3, DOA4, DOA5, DOA6, DOA7, DOA8, DOA9, DOA10, DOA11, DOA12, DOA13, DOA14,
    DOA15, DOA16, DOA17, DOB0, DOB1, DOB2, DOB3, DOB4, DOB5, DOB6, DOB7, DOB8, DOB9, DOB10, DOB11, DOB12, DOB13,
    DOB14, DOB15, DOB16, DOB17
);
    localparam WIDE = DATA_WIDTH_A == 36 || DATA_WIDTH_B == 36;
    function narrow(input integer width);
        narrow = width == 1 || width == 2 || width == 4 || width == 9 || width == 18;
    endfunction
    initial if (!(narrow(DATA_WIDTH_A) && narrow(DATA_WIDTH_B)) && !(DATA_WIDTH_A == 36 && DATA_WIDTH_B == 36)
                || REGMODE_A != "NOREG" || REGMODE_B != "NOREG"
                || CLKAMUX != "CLKA" || CLKBMUX != "CLKB") begin
        $display("DP16KD: no model of widths %0d and %0d, or of its registers", DATA_WIDTH_A, DATA_WIDTH_B);
        $finish;
    end

    wire [17:0] dia =
        {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2,
        DIA1, DIA0};
    wire [17:0] dib =
        {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2,
        DIB1, DIB0};
    wire [13:0] ada =
        {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
    wire [13:0] adb =
        {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
    reg [17:0] a, b;
    assign
        {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2,
        DOA1, DOA0} = a,
        {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2,
        DOB1, DOB0} = b;

    // Words of 18 bits; sixteen of them, 20 bits apart, in an INITVAL.
    reg [17:0] memory [0:1023];
    wire [20479:0] first =
        {INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38,
        INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30,
        INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28,
        INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20,
        INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18,
        INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10,
        INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
        INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00};
    integer i;
    initial for (i = 0; i < 1024; i = i + 1) memory[i] = first[20 * i +: 18];

    // The first bit of a word that a port of up to 9 bits reaches, which bits it writes, and the word as it stands on it.
    function [4:0] start(input integer width, input [13:0] address);
        start = width == 18 ? 0 : (address[3] ? 9 : 0) + (width == 9 ? 0 : address[2:0] & (8 - width));
    endfunction
    function [17:0] mask(input integer width, input [13:0] address);
        mask = width == 18 ? {{9{address[1]}}, {9{address[0]}}} : ((18'd1 << width) - 18'd1) << start(width, address);
    endfunction
    function [17:0] shown(input integer width, input [13:0] address, input [17:0] word);
        shown = width == 18 ? word : (word >> start(width, address)) & ((18'd1 << width) - 18'd1);
    endfunction
    wire [17:0] ma = mask(DATA_WIDTH_A, ada), mb = mask(DATA_WIDTH_B, adb);
    wire [17:0] wa = dia << start(DATA_WIDTH_A, ada), wb = dib << start(DATA_WIDTH_B, adb);
    wire [8:0] pa = ada[13:5], pb = adb[13:5];

    generate
        if (WIDE) begin : gen_wide
            always @(posedge CLKA) if (CEA && WEA) begin
                if (ada[0]) memory[{pa, 1'b0}][8:0] <= dia[8:0];
                if (ada[1]) memory[{pa, 1'b0}][17:9] <= dia[17:9];
                if (ada[2]) memory[{pa, 1'b1}][8:0] <= dib[8:0];
                if (ada[3]) memory[{pa, 1'b1}][17:9] <= dib[17:9];
            end
            always @(posedge CLKB) begin
                if (CEB) begin
                    a <= memory[{pb, 1'b0}];
                    b <= memory[{pb, 1'b1}];
                end
                if (RSTB) begin a <= 0; b <= 0; end
            end
        end else begin : gen_ports
            always @(posedge CLKA) begin
                if (CEA) begin
                    if (WEA) memory[ada[13:4]] <= (memory[ada[13:4]] & ~ma) | (wa & ma);
                    if (!WEA || WRITEMODE_A == "READBEFOREWRITE") a <= shown(DATA_WIDTH_A, ada, memory[ada[13:4]]);
                end
                if (RSTA) a <= 0;
            end
            always @(posedge CLKB) begin
                if (CEB) begin
                    if (WEB) memory[adb[13:4]] <= (memory[adb[13:4]] & ~mb) | (wb & mb);
                    if (!WEB || WRITEMODE_B == "READBEFOREWRITE") b <= shown(DATA_WIDTH_B, adb, memory[adb[13:4]]);
                end
                if (RSTB) b <= 0;
            end
        end
    endgenerate
endmodule
`default_nettype wire

// The modes of a DSP48E2 that MacPair uses, after AMD's UG579: D and A2 into the pre-adder's register, times B2, M, P
// with the cascade. Anything else that it is asked for stops the simulation.
module DSP48E2 #(
    parameter AREG = 1, ACASCREG = 1, ADREG = 1, DREG = 1, MREG = 1, PREG = 1, CREG = 1,
    parameter BREG = 1, BCASCREG = 1, ALUMODEREG = 1, CARRYINREG = 1, CARRYINSELREG = 1, INMODEREG = 1, OPMODEREG = 1,
    parameter AMULTSEL = "A", BMULTSEL = "B", PREADDINSEL = "A", A_INPUT = "DIRECT", B_INPUT = "DIRECT",
    parameter USE_MULT = "MULTIPLY", USE_SIMD = "ONE48"
) (
    input wire CLK,
    input wire signed [29:0] A,
    input wire signed [17:0] B,
    input wire [47:0] C,
    input wire signed [26:0] D,
    input wire [47:0] PCIN,
    input wire CEA1, CEA2, CEB1, CEB2, CEC, CED, CEAD, CEM, CEP, CEALUMODE, CECARRYIN, CECTRL, CEINMODE,
    input wire RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTALLCARRYIN, RSTALUMODE, RSTCTRL, RSTINMODE,
    input wire [29:0] ACIN,
    input wire [17:0] BCIN,
    input wire [3:0] ALUMODE,
    input wire [4:0] INMODE,
    input wire [8:0] OPMODE,
    input wire [2:0] CARRYINSEL,
    input wire CARRYCASCIN, CARRYIN, MULTSIGNIN,
    output wire [47:0] P, PCOUT
);
    initial begin
        if (!(AREG == 1 && ADREG == 1 && DREG == 1 && MREG == 1 && PREG == 1 && BREG == 1 && BCASCREG == 1 && INMODEREG == 0
              && OPMODEREG == 0 && ALUMODEREG == 0 && CARRYINREG == 0 && CARRYINSELREG == 0 && AMULTSEL == "AD")) begin
            $display("DSP48E2: no model of these registers");
            $finish;
        end
    end

    reg signed [26:0] a2, d, ad;
    reg signed [17:0] b2;
    reg signed [44:0] product;
    reg [47:0] p;
    always @(posedge CLK) begin
        if (RSTA || RSTB || RSTC || RSTD || RSTM || RSTP || RSTALLCARRYIN || RSTALUMODE || RSTCTRL || RSTINMODE
            || INMODE != 5'b00100 || ALUMODE != 0 || CARRYINSEL != 0 || CARRYIN || !CEM || !CEP || !CEB2 || CEB1) begin
            $display("DSP48E2: no model of this mode");
            $finish;
        end
        if (CEA2) a2 <= A[26:0];
        if (CED) d <= D;
        if (CEAD) ad <= d + a2;
        b2 <= B;
        product <= ad * b2;
        case (OPMODE)
            9'b000000101: p <= {{3{product[44]}}, product};
            9'b000010101: p <= PCIN + {{3{product[44]}}, product};
            default: begin
                $display("DSP48E2: no model of OPMODE %b", OPMODE);
                $finish;
            end
        endcase
    end
    assign P = p;
    assign PCOUT = p;
endmodule

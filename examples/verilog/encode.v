// An encoder of float32 numbers to FP8 E4M3FN: to nearest, ties to even, saturating.
// With NO_STICKY it has a fault: the bits behind the rounding bit do not count.
module encode (
    input  wire [31:0] x,
    output wire [7:0]  code
);
    wire        sign     = x[31];
    wire [7:0]  exponent = x[30:23];
    wire [22:0] fraction = x[22:0];
    wire        nan      = exponent == 8'hFF && fraction != 0;

    // 121 is 2^-6, the smallest normal number. Below it, the significand is shifted right.
    wire        subnormal = exponent < 121;
    wire [7:0]  distance  = 8'd121 - exponent;
    wire [4:0]  shift     = !subnormal ? 5'd0 : distance > 8'd26 ? 5'd26 : distance[4:0];

    // Four bits stay; a rounding bit and all others, which are "sticky", decide.
    wire [23:0] significand = {exponent != 0, fraction};
    wire [49:0] shifted     = {significand, 26'd0} >> shift;
    wire [3:0]  kept        = shifted[49:46];
    wire        rounding    = shifted[45];
`ifdef NO_STICKY
    wire        sticky      = 1'b0;
`else
    wire        sticky      = shifted[44:0] != 0;
`endif
    wire        up          = rounding && (sticky || kept[0]);

    // The leading one in kept adds one to the exponent; so does a carry.
    wire [7:0]  base      = subnormal ? 8'd0 : exponent - 8'd121;
    wire [11:0] magnitude = {1'b0, base, 3'd0} + {8'd0, kept} + {11'd0, up};

    assign code = nan                 ? {sign, 7'h7F} :
                  magnitude > 12'h7E  ? {sign, 7'h7E} : {sign, magnitude[6:0]};
endmodule

// A dot-product unit for E4M3FN with an exact accumulator, and its test bench for one case of the
// kit: iverilog -I CASE_FOLDER dot_product.v, then vvp in CASE_FOLDER. It compares its
// accumulator with sum.exact.mem and writes sum.mem.
// With -DFLUSH it has a bug: subnormal operands count as 0.

// The value of a code in units of 2^-9.
module decode_e4m3 (input [7:0] code, output reg signed [19:0] value, output is_nan);
  wire [3:0] exponent = code[6:3];
  wire [2:0] mantissa = code[2:0];
  reg [19:0] magnitude;
  assign is_nan = &code[6:0];
  always @* begin
    if (exponent == 0)
`ifdef FLUSH
      magnitude = 0;
`else
      magnitude = {17'd0, mantissa};
`endif
    else
      magnitude = {16'd0, 1'b1, mantissa} << (exponent - 1);
    value = code[7] ? -$signed(magnitude) : $signed(magnitude);
  end
endmodule

// A fixed-point number of 2^-18 as float32, rounded to nearest even. It is never subnormal.
module round_float32 (input signed [63:0] fixed, output reg [31:0] bits);
  reg [63:0] magnitude, rest, half;
  reg [24:0] significand;
  integer top, i;
  always @* begin
    magnitude = fixed < 0 ? -fixed : fixed;
    top = 0;
    for (i = 0; i < 64; i = i + 1) if (magnitude[i]) top = i;
    if (magnitude == 0)
      bits = 0;
    else begin
      if (top <= 23)
        significand = magnitude << (23 - top);
      else begin
        significand = magnitude >> (top - 23);
        rest = magnitude & ((64'd1 << (top - 23)) - 1);
        half = 64'd1 << (top - 24);
        if (rest > half || (rest == half && significand[0])) significand = significand + 1;
        if (significand[24]) begin
          significand = significand >> 1;
          top = top + 1;
        end
      end
      bits = {fixed[63], 8'd127 + top[7:0] - 8'd18, significand[22:0]};
    end
  end
endmodule

module test_bench;
  `include "case.vh"
  reg [A_BITS-1:0] a [0:A_WORDS-1];
  reg [B_BITS-1:0] b [0:B_WORDS-1];
  reg [SUM_EXACT_BITS-1:0] exact [0:SUM_EXACT_WORDS-1];
  reg [SUM_BITS-1:0] sum [0:SUM_WORDS-1];
  reg [7:0] left, right;
  reg signed [63:0] total;
  reg special;
  wire signed [19:0] left_value, right_value;
  wire left_nan, right_nan;
  wire [31:0] rounded;
  integer m, n, k, wrong;

  decode_e4m3 decode_left (left, left_value, left_nan);
  decode_e4m3 decode_right (right, right_value, right_nan);
  round_float32 round (total, rounded);

  initial begin
    $readmemh("a.input.mem", a);
    $readmemh("b.input.mem", b);
    $readmemh("sum.exact.mem", exact);
    wrong = 0;
    for (m = 0; m < A_ROWS; m = m + 1)
      for (n = 0; n < B_COLUMNS; n = n + 1) begin
        total = 0;
        special = 0;
        for (k = 0; k < A_COLUMNS; k = k + 1) begin
          left = a[m * A_COLUMNS + k];
          right = b[k * B_COLUMNS + n];
          #1 special = special | left_nan | right_nan;
          total = total + left_value * right_value;
        end
        #1 if (!special && total !== $signed(exact[m * B_COLUMNS + n])) wrong = wrong + 1;
        sum[m * B_COLUMNS + n] = special ? 32'h7FC00000 : rounded;
      end
    $display("%0d of %0d accumulators are wrong", wrong, SUM_WORDS);
    $writememh("sum.mem", sum);
    $finish;
  end
endmodule

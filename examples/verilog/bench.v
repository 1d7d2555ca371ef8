// Encodes the inputs of a case of the kit, in a memory file, and writes the codes to another.
module bench;
    `include "kit/codec/E4M3FN/case.vh"

    reg  [31:0] x [0:X_WORDS-1];
    reg  [31:0] word;
    wire [7:0]  code;
    integer     i, file;

    encode dut (.x(word), .code(code));

    initial begin
        $readmemh("kit/codec/E4M3FN/x.input.mem", x);
        file = $fopen("kit/codec/E4M3FN/nearest-saturating.mem", "w");
        for (i = 0; i < X_WORDS; i = i + 1) begin
            word = x[i];
            #1 $fdisplay(file, "%02x", code);
        end
        $fclose(file);
        $display("%0d codes", X_WORDS);
    end
endmodule

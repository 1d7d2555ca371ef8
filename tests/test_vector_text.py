"""Tables as text, memory files and C headers: round trips, strict reading, tools that read them."""

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npfp8 import E4M3FN
from npfp8.vectors import check_results, format_vectors, make_vectors, read_vectors
from npfp8.vectors.columns import Column
from npfp8.vectors.readers import read_memory, read_text
from npfp8.vectors.writers import FORMS, write_c_header, write_memory, write_text

DTYPES = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}


def column(name, bits, values):
    width = next(width for width in DTYPES if bits <= width)
    return Column(name, bits, np.array(values, DTYPES[width]))


@st.composite
def tables(draw):
    cases = draw(st.integers(0, 5))
    widths = draw(st.lists(st.integers(1, 64), min_size=1, max_size=4))
    return [
        column(
            f"c{i}",
            bits,
            draw(st.lists(st.integers(0, 2**bits - 1), min_size=cases, max_size=cases)),
        )
        for i, bits in enumerate(widths)
    ]


def assert_same(columns, others):
    assert [(one.name, one.bits) for one in columns] == [(one.name, one.bits) for one in others]
    for one, other in zip(columns, others, strict=True):
        assert one.values.dtype == other.values.dtype
        assert np.array_equal(one.values, other.values)


COMMENTS = st.lists(st.text("ab 0#/", max_size=9).map(str.strip), max_size=3)


@given(COMMENTS, tables(), st.booleans(), st.booleans(), st.booleans())
def test_round_trips(comments, columns, lower, carriage, last):
    """In lower case too, with line ends of the other kind, and without the last one."""
    widths = {one.name: one.bits for one in columns}
    cases = columns[0].values.size
    for write, read in ((write_text, read_text), (write_memory, read_memory)):
        text = write(comments, columns)
        text = text.lower() if lower else text
        text = text.replace("\n", "\r\n") if carriage else text
        text = text.rstrip("\r\n") if last else text
        found, others = read(text, widths, cases)
        assert found[: len(comments)] == comments
        assert_same(columns, others)


@given(tables())
def test_the_lines_by_pythons_formatting(columns):
    rows = list(zip(*(one.values.tolist() for one in columns), strict=True))
    words = [
        [f"{x:0{-(-one.bits // 4)}X}" for x, one in zip(row, columns, strict=True)] for row in rows
    ]
    assert write_text([], columns).splitlines() == [" ".join(row) for row in words]
    memory = [line for line in write_memory([], columns).splitlines() if line[:2] != "//"]
    assert memory == ["".join(row) for row in words]


TABLE = [column("x", 16, [1, 2, 0xABCD]), column("code", 8, [3, 4, 0xEF])]
WIDTHS = {"x": 16, "code": 8}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0001 03\n0002 04\n", "cut off after line 2: expected 3 cases, found 2"),
        ("# a\n0001 03\n0002 0", "line 3: cut off within the line: expected 3 cases, found 1 and"),
        ("0001 03\n0002 04\nABCD", "line 3: cut off within the line: expected 3 cases, found 2"),
        ("", "cut off before the first case: expected 3 cases, found 0"),
        ("0001 03\n" * 4, "line 4: expected 3 cases, found 4"),
        ("0001 03\n0002 0\nABCD EF\n", "line 2: expected hexadecimal digits as in 'FFFF FF'"),
        ("0001 03\n0002 0\n", "line 2: expected hexadecimal digits as in 'FFFF FF'"),
        ("0001 03\n0002  4\nABCD EF\n", "line 2: expected hexadecimal digits"),
        ("0001 03\n+002 04\nABCD EF\n", "line 2: expected hexadecimal digits"),
    ],
)
def test_text_that_is_wrong(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_text(text, WIDTHS, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000103\n000204\n", "cut off after line 2: expected 3 cases, found 2"),
        ("000103\n0002", "line 2: cut off within the line"),
        ("000103\n00xx04\nABCDEF\n", "line 2: expected a known value, found '00xx04'"),
        ("000103\n@2\n000204\n", "line 2: expected the address @1, found '@2'"),
        ("000103\n0002040\nABCDEF\n", "line 2: expected hexadecimal digits as in 'FFFFFF'"),
    ],
)
def test_memory_that_is_wrong(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_memory(text, WIDTHS, 3)


def test_memory_as_simulators_write_it():
    text = "// 0x00000000\n@0\n0001_03 // one\n000204\n\n@2\nabcdef\n"
    assert_same(read_memory(text, WIDTHS, 3)[1], TABLE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: column("1x", 8, [1]), "name: expected a name of C, found '1x'"),
        (
            lambda: column("x", 65, []) if False else Column("x", 65, np.zeros(1, np.uint64)),
            "1 to 64",
        ),
        (lambda: column("x", 3, [8]), "expected at most 3 bits, found 0x8"),
        (lambda: Column("x", 8, np.zeros(1)), "unsigned integers of one axis"),
        (lambda: write_text([], []), "expected some of equal length"),
        (lambda: write_text([], [TABLE[0], column("y", 8, [1])]), "found lengths [3, 1]"),
        (lambda: write_text(["a\nb"], TABLE), "expected lines of ASCII"),
        (lambda: write_c_header("x", ["*/"], TABLE), "expected none with"),
        (lambda: write_c_header("x-y", [], TABLE), "expected a name of C"),
        (lambda: write_c_header("x", [], [column("x", 8, [])]), "expected a case"),
        (lambda: write_text([], [1]), "expected columns"),
    ],
)
def test_tables_that_are_wrong(make, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        make()


def test_the_forms():
    assert {name: form.suffix for name, form in FORMS.items()} == {
        "text": ".txt",
        "memory": ".mem",
        "c": ".h",
    }
    for form in FORMS.values():
        assert form.write("name", ["words"], TABLE).startswith(f"{form.comment} words")


# Tools that read them

ENCODER_IN_C = """
static uint8_t encode(uint32_t u) /* to E4M3FN, saturating, to nearest */
{
    uint32_t magnitude = u & 0x7FFFFFFF, sign = u >> 31 << 7;
    int exponent = (int)(magnitude >> 23) - 127, subnormal = exponent < -6;
    int shift = subnormal ? 14 - exponent : 20;
    uint32_t significand = (magnitude & 0x7FFFFF) | 0x800000, kept, half, rest, code;
    if (magnitude > 0x7F800000) return 0x7F;
    if (exponent > 8) return sign | 0x7E;
    if (shift > 25) shift = 25;
    kept = significand >> shift, half = 1u << (shift - 1);
    rest = significand & (2 * half - 1);
    kept += rest > half || (rest == half && (TIE));
    code = subnormal ? kept : ((uint32_t)(exponent + 6) << 3) + kept;
    return sign | (code > 0x7E ? 0x7E : code);
}
"""

WITH_HEADER = """
#include <stdio.h>
#include "vectors.h"
ENCODER
int main(void)
{
    int i, wrong = 0;
    for (i = 0; i < E4M3FN_nearest_saturating_float32_count; i++) {
        E4M3FN_nearest_saturating_float32_case c = E4M3FN_nearest_saturating_float32[i];
        int both = (encode(c.input) & 0x7F) == 0x7F && (c.expected & 0x7F) == 0x7F;
        wrong += encode(c.input) != c.expected && !both;
    }
    printf("%d of %d", wrong, E4M3FN_nearest_saturating_float32_count);
    return 0;
}
"""

WITH_TEXT = """
#include <stdint.h>
#include <stdio.h>
#include <string.h>
ENCODER
int main(void)
{
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        unsigned input, expected;
        if (strcmp(line, "# columns: input expected flags\\n") == 0)
            fputs("# columns: input expected found\\n", stdout);
        else if (line[0] == '#')
            fputs(line, stdout);
        else if (sscanf(line, "%x %x", &input, &expected) == 2)
            printf("%08x %02x %02x\\n", input, expected, encode(input));
    }
    return 0;
}
"""


def tool(name):
    if (path := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return path


def run(*command, **options):
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def vectors():
    return make_vectors(E4M3FN, "nearest-saturating", "float32")


def compiled(folder, source, tie):
    source = source.replace("ENCODER", ENCODER_IN_C.replace("TIE", tie))
    (folder / "test.c").write_text(source)
    flags = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-O1")
    run(tool("gcc"), *flags, "-o", folder / "test", folder / "test.c")
    return folder / "test"


@pytest.mark.parametrize(("tie", "cause"), [("kept & 1", ""), ("1", "ties rounded away from zero")])
def test_a_c_program(tmp_path, vectors, tie, cause):
    """It includes the header; another parses the text and writes results in lower case."""
    (tmp_path / "vectors.h").write_text(format_vectors(vectors, "c"))
    counted = run(compiled(tmp_path, WITH_HEADER, tie))
    program = compiled(tmp_path, WITH_TEXT, tie)
    (tmp_path / "results.txt").write_text(run(program, input=format_vectors(vectors)))
    report = check_results(read_vectors(tmp_path / "results.txt"))
    assert counted == f"{report.wrong} of {vectors.inputs.size}"
    assert report.cause == cause
    assert (report.wrong > 0) == bool(cause)


@pytest.mark.parametrize("standard", ["-std=c99", "-std=c11", "-xc++"])
def test_every_kind_of_header_compiles(tmp_path, standard):
    gcc = tool("gcc")
    probe = (gcc, standard, "-E", "-x", "c++" if "++" in standard else "c", "/dev/null")
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip(f"gcc does not take {standard}")
    names = []
    for mode, source in (
        ("nearest", "float16"),
        ("stochastic-13", "bfloat16"),
        ("decode", "float32"),
    ):
        made = make_vectors("E2M1", mode, source)
        (tmp_path / f"{made.stem}.h").write_text(format_vectors(made, "c"))
        names.append(made.stem)
    lines = [f'#include "{name}.h"\n' for name in names * 2]
    total = " + ".join(f"{name.replace('-', '_')}[1].expected" for name in names)
    (tmp_path / "all.c").write_text("".join(lines) + f"int main(void) {{ return {total}; }}\n")
    try:
        run(gcc, standard, "-Wall", "-Werror", "-o", tmp_path / "all", tmp_path / "all.c")
    except AssertionError as error:
        if "++" in standard and "cc1plus" in str(error):
            pytest.skip("gcc has no C++")
        raise


VERILOG = """
module encoder(input [31:0] x, output [7:0] code); // to E4M3FN, saturating, to nearest
  wire [7:0] field = x[30:23];
  wire nan = &field & |x[22:0];
  wire subnormal = field < 121;
  wire [8:0] wanted = subnormal ? 9'd121 - field : 9'd0;
  wire [5:0] shift = wanted > 30 ? 6'd30 : wanted[5:0];
  wire [63:0] wide = {1'b1, x[22:0], 40'b0} >> shift;
  wire [3:0] kept = wide[63:60];
  wire guard = wide[59];
  wire sticky = STICKY;
  wire up = guard & (sticky | kept[0]);
  wire [11:0] base = subnormal ? 12'd0 : (field - 9'd121) << 3;
  wire [11:0] whole = base + kept + up;
  wire [6:0] magnitude = field > 135 || whole > 12'h7E ? 7'h7E : whole[6:0];
  assign code = nan ? 8'h7F : {x[31], magnitude};
endmodule

module test;
  reg [47:0] words [0:`CASES - 1];
  reg [7:0] found [0:`CASES - 1];
  reg [31:0] x;
  wire [7:0] code;
  integer i, wrong;
  encoder under_test(x, code);
  initial begin
    wrong = 0;
    $readmemh("vectors.mem", words);
    for (i = 0; i < `CASES; i = i + 1) begin
      x = words[i][47:16];
      #1 found[i] = code;
      if (code !== words[i][15:8] && !(&code[6:0] && &words[i][14:8])) wrong = wrong + 1;
    end
    $writememh("E4M3FN-nearest-saturating-float32.mem", found);
    $display("%0d wrong", wrong);
  end
endmodule
"""


@pytest.mark.parametrize(
    ("sticky", "cause"), [("|wide[58:0]", ""), ("1'b0", "a missing sticky bit")]
)
def test_a_verilog_testbench(tmp_path, vectors, sticky, cause):
    """It reads the vectors by $readmemh, and writes the codes by $writememh."""
    compiler, simulator = tool("iverilog"), tool("vvp")
    (tmp_path / "vectors.mem").write_text(format_vectors(vectors, "memory"))
    (tmp_path / "test.v").write_text(VERILOG.replace("STICKY", sticky))
    cases = f"-DCASES={vectors.inputs.size}"
    run(compiler, "-g2005", cases, "-o", "test", "test.v", cwd=tmp_path)
    shown = run(simulator, "test", cwd=tmp_path)
    report = check_results(read_vectors(tmp_path / "E4M3FN-nearest-saturating-float32.mem"))
    assert f"{report.wrong} wrong" in shown
    assert (report.wrong > 0) == bool(cause)
    assert report.cause == cause


def test_results_in_a_memory_file(tmp_path, vectors):
    path = tmp_path / "results.mem"
    path.write_text(format_vectors(replace(vectors, third=vectors.codes, column="found"), "memory"))
    assert check_results(read_vectors(path)).wrong == 0
    (tmp_path / "other.mem").write_text("// 0x00000000\n7e\n")
    with pytest.raises(ValueError, match="line 1: expected '// npfp8 test vectors 2'"):
        read_vectors(tmp_path / "other.mem")

"""The codec's test vectors as text: complete, read strictly, and they catch the field's defects."""

import dataclasses
import functools
import hashlib
import itertools

import integer_rounding
import numpy as np
import pytest

from bert_numpy.commands import vectors as commands
from npfp8 import E4M3FN, E5M2, encode
from npfp8.formats import FLOAT_FORMATS
from npfp8.vectors import (
    DECODE,
    DEFAULT_MODES,
    MODES,
    SOURCES,
    boundary_inputs,
    check_results,
    format_vectors,
    make_vectors,
    read_vectors,
    write_all_vectors,
)
from npfp8.vectors.writers import FORMS

FORMATS = list(FLOAT_FORMATS.values())
by_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)


@functools.cache
def made(fmt, mode, source):
    """Vectors that several tests look at."""
    return make_vectors(fmt, mode, source)


def numbers(vectors):
    with np.errstate(invalid="ignore"):
        return SOURCES[vectors.source].to_float(vectors.inputs).astype(np.float32)


def results(vectors, codes):
    return dataclasses.replace(
        vectors, third=np.asarray(codes).astype(vectors.expected.dtype), column="found"
    )


@by_format
@pytest.mark.parametrize("source", SOURCES)
def test_inputs_have_every_boundary_and_its_neighbours(fmt, source):
    bits = set(boundary_inputs(fmt, source).tolist())
    sign = 1 << (8 * SOURCES[source].bits.itemsize - 1)
    with np.errstate(over="ignore", under="ignore"):
        for x in (*fmt.grid, *((fmt.grid[:-1] + fmt.grid[1:]) / 2)):
            near = int(SOURCES[source].from_float64(np.array([x]))[0])
            here = {n for n in (near - 1, near, near + 1) if 0 <= n <= SOURCES[source].infinity}
            assert here <= bits
            assert {n + sign for n in here} <= bits
    assert {0, sign, 1, SOURCES[source].infinity, SOURCES[source].infinity + sign} <= bits
    nans = [n for n in bits if (n & (sign - 1)) > SOURCES[source].infinity]
    assert len(nans) == (0 if fmt.nan_code is None else 10)


#: The digest of all files of a format, in every mode and from every float type.
DIGESTS = {
    "E4M3FN": "386eac2ff3c40418",
    "E5M2": "6d381231366d4275",
    "E4M3FNUZ": "5aaa601e4a52bdc5",
    "E5M2FNUZ": "4844f2770ae90d2e",
    "E4M3": "38d39e50074db2ff",
    "E3M4": "e312fcf474154095",
    "E4M3B11FNUZ": "c80a653a4358b6c2",
    "E8M0FNU": "c22f680206aaa85e",
    "E2M3": "a027a9c5ad87ff08",
    "E3M2": "02cb0fcd2319e48a",
    "E2M1": "d887347b3fab6dcf",
    "E3M4FN": "16a87226707dc1f5",
    "P3109_K8P3": "507bb68e0e0f3178",
    "P3109_K8P4": "3a51f6216744d608",
    "UE4M3": "be17e2e16789b72a",
}


@by_format
def test_the_files_are_those_of_before(fmt):
    """Results are compared with them line by line, so a file that someone has must stay right."""
    digest = hashlib.sha256()
    for mode, source in itertools.product((*MODES, DECODE), SOURCES):
        try:
            vectors = made(fmt, mode, source)
        except ValueError:
            assert mode == DECODE
            continue
        digest.update(format_vectors(vectors).encode())
    assert digest.hexdigest()[:16] == DIGESTS[fmt.name]


def test_expected_codes_and_flags_of_known_cases():
    def case(mode, source, bits, fmt=E4M3FN):
        vectors = make_vectors(fmt, mode, source)
        i = vectors.inputs.tolist().index(bits)
        return int(vectors.codes[i]), int(vectors.third[i])

    assert case("nearest-saturating", "float32", 0x43E80000) == (0x7E, 0x01)  # 464, a tie: even
    assert case("nearest-saturating", "float32", 0x43E80001) == (0x7E, 0x05)
    assert case("nearest", "float32", 0x43E80001) == (0x7F, 0x05)
    assert case("nearest", "float32", 0x7F800000) == (0x7F, 0x05)  # infinity
    assert case("nearest", "float32", 0x7F800000, E5M2) == (0x7C, 0x00)
    assert case("nearest", "float32", 0x47700000, E5M2) == (0x7C, 0x05)  # 61440, a tie: up
    assert case("toward-zero", "float32", 0x47700000, E5M2) == (0x7B, 0x01)
    assert case("toward-zero", "bfloat16", 0xC3F0, E4M3FN) == (0xFE, 0x05)  # -480
    assert case("nearest-saturating", "float32", 0x3A800000) == (0x00, 0x03)  # half the smallest
    assert case("nearest-saturating", "float16", 0x1401) == (0x01, 0x03)
    assert case("nearest-saturating", "float32", 0xFFC00000) == (0x7F, 0x10)


@by_format
@pytest.mark.parametrize("mode", [*MODES, DECODE])
def test_right_results_pass(fmt, mode):
    for source in SOURCES:
        if mode == DECODE and source == "float16" and fmt.name == "E8M0FNU":
            continue
        vectors = made(fmt, mode, source)
        report = check_results(results(vectors, vectors.expected))
        assert (report.wrong, report.cause, report.cases) == (0, "", vectors.inputs.size)


def test_ml_dtypes_passes(ml_dtypes):
    for fmt, name in ((E4M3FN, "float8_e4m3fn"), (E5M2, "float8_e5m2")):
        for source in SOURCES:
            vectors = make_vectors(fmt, "nearest", source)
            with np.errstate(all="ignore"):
                codes = numbers(vectors).astype(getattr(ml_dtypes, name)).view(np.uint8)
            assert check_results(results(vectors, codes)).wrong == 0


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_defects_of_the_field_written_out(fmt):
    """The same defects as others would have them, without this package's encoder."""
    x = numbers(vectors := make_vectors(fmt, "nearest-saturating", "float32"))
    nan = np.isnan(x)
    magnitude = np.abs(np.where(nan, 0, x).astype(np.float64))
    midpoints = (fmt.grid[:-1] + fmt.grid[1:]) / 2
    sign = np.where(np.signbit(x) & ~nan, 0x80, 0)

    def codes(index):
        return np.where(nan, fmt.nan_code, np.minimum(index, fmt.max_code) | sign)

    away = np.searchsorted(midpoints, magnitude, side="right")
    assert check_results(results(vectors, codes(away))).cause == "ties rounded away from zero"
    down = np.searchsorted(fmt.grid[:-1], magnitude, side="right") - 1
    assert check_results(results(vectors, codes(down))).cause == "truncation"
    early = np.minimum(vectors.codes & 0x7F, 0x77 if fmt == E4M3FN else 0x78) | sign
    found = results(vectors, np.where(nan, fmt.nan_code, early))
    assert check_results(found).cause == "saturation at too small a value"
    no_sign = np.where(vectors.codes == 0x80, 0, vectors.codes)
    assert check_results(results(vectors, no_sign)).cause == "-0 encoded as 0"
    noise = vectors.codes ^ (vectors.inputs % 7 == 0)
    assert check_results(results(vectors, noise)).cause == ""


def test_files_are_the_same_again_and_read_back(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first, second = (write_all_vectors(tmp_path / name) for name in "ab")
    # Float16 does not have all values of E8M0FNU.
    assert len(first) == len(FORMATS) * len(DEFAULT_MODES) * len(SOURCES) - 1
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        vectors = read_vectors(one)
        assert vectors.name == one.name
        assert format_vectors(vectors).encode() == one.read_bytes()
    assert sum(path.stat().st_size for path in first) < 8_000_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# npfp8 test vectors 2", "# something", "line 1: expected '# npfp8 test vectors 2'"),
        ("# format: E4M3FN", "# format: E9M9", "'# format: '"),
        ("# mode: nearest", "# mode: sideways", "'# mode: '"),
        ("# source: float16\n", "", "'# source: '"),
        ("# columns: input expected flags", "# columns: a b", "'# columns: '"),
        ("0001 00 03\n", "", "expected the input 0001, found '0002 00 03'; 1 of"),
        ("# cases: ", "# cases: 1", "'# cases: '"),
        ("0001 00 03", "001 00 03", "expected hexadecimal digits as in 'FFFF FF FF'"),
        ("0001 00 03", "0001 0g 03", "expected hexadecimal digits"),
        ("0001 00 03", "0001  00 3", "expected hexadecimal digits"),
        ("0001 00 03", "0001 00 é3", "expected ASCII"),
    ],
)
def test_reading_is_strict(tmp_path, old, new, message):
    text = format_vectors(make_vectors(E4M3FN, "nearest", "float16"))
    assert old in text
    path = tmp_path / "vectors.txt"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vectors\.txt") as caught:
        read_vectors(path)
    assert message in str(caught.value)


def test_files_larger_than_any_are_not_read(tmp_path):
    path = tmp_path / "vectors.txt"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no space
    with pytest.raises(ValueError, match=r"vectors\.txt: expected at most 16777216 bytes"):
        read_vectors(path)


def test_results_of_other_vectors_are_refused():
    vectors = make_vectors(E4M3FN, "nearest", "float16")
    with pytest.raises(ValueError, match="expected the column 'found'"):
        check_results(vectors)
    moved = results(vectors, vectors.codes)
    with pytest.raises(ValueError, match="case 6"):
        check_results(
            dataclasses.replace(
                moved, inputs=moved.inputs + (np.arange(moved.inputs.size) == 5).astype(np.uint16)
            )
        )
    with pytest.raises(ValueError, match="cases, found 3"):
        check_results(dataclasses.replace(moved, inputs=moved.inputs[:3]))
    with pytest.raises(ValueError, match="mode: expected one of"):
        make_vectors(E4M3FN, "sideways", "float16")


@pytest.mark.parametrize("form", ["text", "memory"])
def test_a_file_that_ends_too_early_is_named_as_that(tmp_path, form):
    vectors = make_vectors(E4M3FN, "nearest", "bfloat16")
    text = format_vectors(vectors, form)
    lines = text.count("\n")
    path = tmp_path / f"vectors{FORMS[form].suffix}"
    path.write_text("\n".join(text.split("\n")[: lines - 9]))
    match = f"cut off after line {lines - 9}: expected 3118 cases, found 3109"
    with pytest.raises(ValueError, match=match):
        read_vectors(path)
    path.write_text(text[:-5])
    with pytest.raises(ValueError, match=f"line {lines}: cut off within the line"):
        read_vectors(path)


@pytest.mark.parametrize("form", ["text", "memory"])
@pytest.mark.parametrize("mode", ["up-ieee", "stochastic-13", DECODE])
def test_every_kind_of_file_is_read_back(tmp_path, form, mode):
    """Also in lower case, with the line ends of Windows, and without the last one."""
    vectors = make_vectors(E5M2, mode, "float16")
    path = tmp_path / f"vectors{FORMS[form].suffix}"
    text = format_vectors(vectors, form)
    comments, _, cases = text.partition("\n0")
    for changed in (text, text.rstrip(), f"{comments}\n0{cases.lower()}".replace("\n", "\r\n")):
        path.write_bytes(changed.encode())
        assert format_vectors(read_vectors(path), form) == text


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_codes_by_rational_arithmetic(fmt, mode, source):
    """By integers alone (tests/integer_rounding.py), every seventh case."""
    how, vectors = MODES[mode], made(fmt, mode, source)
    places = slice(None, None, 7)
    bits = vectors.inputs[places].astype(np.int64)
    exponent_bits = 8 * vectors.inputs.itemsize - 1 - SOURCES[source].mantissa_bits
    parts = integer_rounding.parts_of(bits, SOURCES[source].mantissa_bits, exponent_bits)
    words = None if vectors.random_bits is None else vectors.random_bits[places].astype(np.int64)
    right = integer_rounding.codes(
        parts, fmt.name, how.rounding, how.saturate, how.overflow, words, how.bit_count
    )
    assert np.array_equal(right, vectors.codes[places])


def test_flags_of_directed_overflow():
    def flag(mode, x, fmt=E4M3FN):
        vectors = make_vectors(fmt, mode, "float32")
        i = vectors.inputs.tolist().index(int(np.float32(x).view(np.uint32)))
        return int(vectors.codes[i]), int(vectors.third[i])

    assert flag("toward-zero-ieee", 462.0) == (0x7E, 0x01)
    assert flag("toward-zero-ieee", 480.0) == (0x7E, 0x05)
    assert flag("toward-zero-special", 480.0) == (0x7F, 0x05)
    assert flag("up-ieee", 462.0) == (0x7F, 0x05)
    assert flag("up-ieee", -462.0) == (0xFE, 0x01)
    assert flag("up-ieee", -480.0) == (0xFE, 0x05)
    assert flag("up-special", -480.0) == (0xFF, 0x05)
    assert flag("down-ieee", -462.0) == (0xFF, 0x05)
    assert flag("odd-ieee", 462.0) == (0x7E, 0x05)


def test_random_bits_are_those_that_decide():
    """Each inexact input has the fewest random bits that carry, and one less."""
    vectors = make_vectors(E4M3FN, "stochastic-8", "bfloat16")
    assert set(vectors.random_bits.tolist()) <= set(range(256))
    down = encode(numbers(vectors), E4M3FN, False, rounding="toward_zero")
    both = [
        codes
        for x in np.unique(vectors.inputs[np.abs(numbers(vectors)) < 448])[::50]
        for codes in [vectors.codes[vectors.inputs == x]]
        if (codes != down[vectors.inputs == x]).any()
    ]
    assert len(both) > 20
    assert all(len(set(codes.tolist())) == 2 for codes in both)


def test_the_commands_modes_and_forms_are_all():
    assert tuple(MODES) == commands.MODES
    assert tuple(FORMS) == commands.FORMS


def test_a_float_type_without_all_values_does_not_decode():
    with pytest.raises(ValueError, match="expected a type with every value of E8M0FNU"):
        make_vectors("E8M0FNU", DECODE, "float16")

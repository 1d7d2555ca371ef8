"""The codec's test vectors as text: complete, read strictly, and they catch the field's defects."""

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest

from npfp8 import E4M3FN, E5M2, testing
from npfp8.formats import FLOAT_FORMATS
from npfp8.mistakes import encoder_mistakes
from npfp8.vectors import (
    MODES,
    SOURCES,
    boundary_inputs,
    check_results,
    format_vectors,
    make_vectors,
    read_vectors,
    write_all_vectors,
)

FORMATS = list(FLOAT_FORMATS.values())
by_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)


def numbers(vectors):
    with np.errstate(invalid="ignore"):
        return SOURCES[vectors.source].to_float(vectors.inputs).astype(np.float32)


def results(vectors, codes):
    return dataclasses.replace(vectors, third=np.asarray(codes, np.uint8), column="found")


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


#: The digests of the files, by the formats that were added together, in their order.
DIGESTS = {
    "5ef9fb706bcd60daf3f3203bfbf52e9890532997a2db583975d6c8ea9fa062ca": (
        *("E4M3FN", "E5M2", "E4M3FNUZ", "E5M2FNUZ", "E4M3", "E3M4", "E4M3B11FNUZ", "E8M0FNU"),
        *("E2M3", "E3M2", "E2M1"),
    ),
    "7cdaec34428cfab1893e77189870144979d21cfbd2dae0a823f6655a2165b277": (
        "E3M4FN",
        "P3109_K8P3",
        "P3109_K8P4",
        "UE4M3",
    ),
}


@pytest.mark.parametrize("known", DIGESTS)
def test_the_files_are_those_of_before(known):
    """Results are compared with them line by line, so a file that someone has must stay right."""
    digest = hashlib.sha256()
    for fmt, mode, source in itertools.product(DIGESTS[known], MODES, SOURCES):
        digest.update(format_vectors(make_vectors(fmt, mode, source)).encode())
    assert digest.hexdigest() == known


def test_every_format_has_a_digest():
    assert [name for names in DIGESTS.values() for name in names] == list(FLOAT_FORMATS)


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
@pytest.mark.parametrize("mode", MODES)
def test_right_results_pass(fmt, mode):
    for source in SOURCES:
        vectors = make_vectors(fmt, mode, source)
        report = check_results(results(vectors, vectors.codes))
        assert (report.wrong, report.cause, report.cases) == (0, "", vectors.inputs.size)


def test_ml_dtypes_passes(ml_dtypes):
    for fmt, name in ((E4M3FN, "float8_e4m3fn"), (E5M2, "float8_e5m2")):
        for source in SOURCES:
            vectors = make_vectors(fmt, "nearest", source)
            with np.errstate(all="ignore"):
                codes = numbers(vectors).astype(getattr(ml_dtypes, name)).view(np.uint8)
            assert check_results(results(vectors, codes)).wrong == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_each_planted_mistake_is_caught_and_named(fmt, mode):
    """By the float32 vectors all of them, but what cannot show: a sticky bit in truncation."""
    how = MODES[mode]
    vectors = make_vectors(fmt, mode, "float32")
    for name, mistaken in encoder_mistakes(fmt, how.saturate, how.rounding):
        with np.errstate(all="ignore"):
            report = check_results(results(vectors, mistaken(numbers(vectors))))
        if mode == "toward-zero" and name == "a missing sticky bit":
            assert report.wrong == 0
            continue
        assert report.wrong > 0, name
        assert report.cause == name
        assert "expected" in report.first


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
    assert len(first) == len(FORMATS) * len(MODES) * len(SOURCES)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        vectors = read_vectors(one)
        assert vectors.name == one.name
        assert format_vectors(vectors).encode() == one.read_bytes()
    assert sum(path.stat().st_size for path in first) < 8_000_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("# npfp8 test vectors 1", "# something", "line 1: expected '# npfp8 test vectors 1'"),
        ("# format: E4M3FN", "# format: E9M9", "'# format: '"),
        ("# mode: nearest", "# mode: up", "'# mode: '"),
        ("# source: float16\n", "", "'# source: '"),
        ("# columns: input expected flags", "# columns: a b", "'# columns: '"),
        ("0001 00 03\n", "", "'# cases: '"),
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
        make_vectors(E4M3FN, "up", "float16")


def test_the_vectors_see_what_check_encoder_sees():
    """Each planted mistake that 400,000 numbers show, the few thousand of the vectors do too."""
    for fmt in (E4M3FN, E5M2):
        x = numbers(vectors := make_vectors(fmt, "nearest-saturating", "float32"))
        for name, mistaken in encoder_mistakes(fmt):
            with np.errstate(all="ignore"):
                wrong = check_results(results(vectors, mistaken(x))).wrong
            with pytest.raises(AssertionError), np.errstate(all="ignore"):
                testing.check_encoder(mistaken, fmt)
            assert wrong, name

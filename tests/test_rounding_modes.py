"""Every rounding of encode, against shifts of integers: every number of 16 bits, and more."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from integer_rounding import FACTS, Numbers, codes, integer_codes, parts_of

import npfp8
from npfp8 import FIXED8, INT8, ROUNDINGS, UINT8, FloatFormat, IntFormat, encode, encode_bfloat16
from npfp8.bfloat16 import from_bits
from npfp8.codec import codes_of
from npfp8.formats import FLOAT_FORMATS
from npfp8.testing import edge_cases

BITS = np.arange(1 << 16, dtype=np.uint16)
with np.errstate(invalid="ignore"):
    INPUTS = {"float16": BITS.view(np.float16), "bfloat16": from_bits(BITS)}
PARTS = {"float16": parts_of(BITS, 10, 5), "bfloat16": parts_of(BITS, 7, 8)}
FIXED = [how for how in ROUNDINGS if how != "stochastic"]
DIRECTED = ["toward_zero", "up", "down", "odd"]
#: Saturation and the option of overflow.
WAYS = [(True, "ieee"), (False, "ieee"), (False, "special")]
by_rounding = pytest.mark.parametrize("rounding", FIXED)


def test_every_format_has_a_row():
    assert set(FACTS) == set(FLOAT_FORMATS)


def test_the_roundings():
    assert ROUNDINGS == (
        "nearest", "nearest_away", "nearest_toward_zero", "toward_zero", "up", "down", "odd",
        "stochastic",
    )  # fmt: skip


@by_rounding
@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("source", INPUTS)
def test_every_number_of_16_bits(name, source, rounding):
    x, kept = INPUTS[source], np.ones(BITS.size, bool)
    if FACTS[name].nan is None:
        kept = ~np.isnan(x)
    for saturate, overflow in WAYS:
        right = codes(PARTS[source], name, rounding, saturate, overflow)[kept]
        with np.errstate(invalid="ignore"):
            wide = x[kept].astype(np.float64)
            found = encode(x[kept], name, saturate, rounding=rounding, overflow=overflow)
            of_wide = encode(wide, name, saturate, rounding=rounding, overflow=overflow)
        wrong = np.flatnonzero(found != right)
        where = (saturate, overflow, x[kept][wrong[:3]], found[wrong[:3]], right[wrong[:3]])
        assert not wrong.size, where
        assert np.array_equal(of_wide, right)  # through the tables of float32
        if source == "bfloat16":
            found = encode_bfloat16(
                BITS[kept], name, saturate, rounding=rounding, overflow=overflow
            )
            assert np.array_equal(found, right)


def test_the_oracle_tells_the_roundings_apart():
    for name in FACTS:
        found = {how: tuple(codes(PARTS["bfloat16"], name, how, True)) for how in FIXED}
        # Without mantissa bits every significand is odd: nearest is away from zero on a tie, and
        # odd toward zero. Without a sign, up and down do not differ for the rest, toward zero.
        same = {"E8M0FNU": 4, "UE4M3": 6}.get(name, 7)
        assert len(set(found.values())) == same, name


def numbers_around(name):
    """float64 numbers on, and by less than float32 can tell beside, every value and midpoint."""
    grid = FLOAT_FORMATS[name].grid
    points = np.concatenate([grid, (grid[:-1] + grid[1:]) / 2, [0.0, 2.0**-1074, 1e300, 5e-324]])
    moved = [points * (1 + sign * 2.0**-bits) for bits in (52, 40, 24, 12, 9) for sign in (1, -1)]
    x = np.concatenate([points, *moved, [np.inf, np.nan, np.finfo(np.float64).max]])
    return np.concatenate([x, -x])


def of_float64(x):
    return parts_of(x.view(np.uint64), 52, 11)


@by_rounding
@pytest.mark.parametrize("name", FACTS)
def test_float64_is_rounded_once(name, rounding):
    x = numbers_around(name)
    x = x[~np.isnan(x)] if FACTS[name].nan is None else x
    for saturate, overflow in WAYS:
        right = codes(of_float64(x), name, rounding, saturate, overflow)
        found = encode(x, name, saturate, rounding=rounding, overflow=overflow)
        wrong = np.flatnonzero(found != right)
        assert not wrong.size, (
            saturate,
            overflow,
            x[wrong[:3]],
            found[wrong[:3]],
            right[wrong[:3]],
        )


@by_rounding
@pytest.mark.parametrize("name", FACTS)
def test_float32_around_the_boundaries(name, rounding):
    x = edge_cases(name)
    x = x[~np.isnan(x)] if FACTS[name].nan is None else x
    parts = parts_of(x.view(np.uint32), 23, 8)
    for saturate, overflow in WAYS:
        right = codes(parts, name, rounding, saturate, overflow)
        found = encode(x, name, saturate, rounding=rounding, overflow=overflow)
        assert np.array_equal(found, right)


@given(st.integers(0, 2**32 - 1), st.sampled_from(FIXED), st.sampled_from(WAYS))
def test_any_float32(bits, rounding, way):
    x = np.uint32([bits]).view(np.float32)
    for name, facts in FACTS.items():
        if facts.nan is None and np.isnan(x).any():
            continue
        right = codes(parts_of(np.uint32([bits]), 23, 8), name, rounding, *way)
        assert encode(x, name, way[0], rounding=rounding, overflow=way[1]) == right, name


@given(st.integers(0, 2**64 - 1), st.sampled_from(FIXED), st.sampled_from(WAYS))
def test_any_float64(bits, rounding, way):
    x = np.uint64([bits]).view(np.float64)
    for name, facts in FACTS.items():
        if facts.nan is None and np.isnan(x).any():
            continue
        right = codes(of_float64(x), name, rounding, *way)
        assert encode(x, name, way[0], rounding=rounding, overflow=way[1]) == right, name


@given(
    st.integers(1, 2**50), st.integers(0, 12), st.booleans(), st.sampled_from(FIXED),
    st.sampled_from(WAYS),
)  # fmt: skip
def test_integers(significand, exponent, negative, rounding, way):
    """Up to 2^62, of which float32 and float64 hold few."""
    value = np.int64([(-1 if negative else 1) * significand << exponent])
    yes, no = np.array([negative]), np.array([False])
    parts = Numbers(yes, np.int64([significand]), np.int64([exponent]), no, no)
    for name in FACTS:
        right = codes(parts, name, rounding, *way)
        assert encode(value, name, way[0], rounding=rounding, overflow=way[1]) == right, name


def test_wide_integers_round_once():
    """Beside 2^60, where float64 has a step of 256: up and to odd see the last bit."""
    fmt = FloatFormat(7, 0, 63, name="E7M0")
    x = np.int64([2**60, 2**60 + 1, -(2**60) - 1])
    at = 60 + 63
    for how, expected in {
        "up": [at, at + 1, at | 128],
        "down": [at, at, at + 1 | 128],
        "toward_zero": [at, at, at | 128],
        "odd": [at, at, at | 128],  # without mantissa bits the significand is 1
    }.items():
        assert encode(x, fmt, rounding=how).tolist() == expected
    assert encode(np.uint64([2**64 - 1, 2**63 + 1]), fmt, rounding="up").tolist() == [127, 127]


# What overflow becomes


def code(x, fmt, rounding, **options):
    return [int(one) for one in encode(np.float64(x), fmt, False, rounding=rounding, **options)]


def test_overflow_as_ieee_754_has_it():
    x = [1e9, -1e9, np.inf, -np.inf]
    for rounding, expected in {
        "nearest": [0x7C, 0xFC],
        "nearest_away": [0x7C, 0xFC],
        "nearest_toward_zero": [0x7C, 0xFC],
        "toward_zero": [0x7B, 0xFB],
        "up": [0x7C, 0xFB],
        "down": [0x7B, 0xFC],
        "odd": [0x7B, 0xFB],
    }.items():
        assert code(x, "E5M2", rounding) == [*expected, 0x7C, 0xFC]  # an infinity stays one
        assert code(x, "E5M2", rounding, overflow="special") == [0x7C, 0xFC] * 2
        assert encode(x, "E5M2", rounding=rounding).tolist() == [0x7B, 0xFB] * 2


def test_the_disputed_case():
    """riscv-isa-sim 2284: bfloat16 0x5BF8 to E4M3 toward zero, not saturating: 0x7E or 0x7F."""
    bits = np.uint16([0x5BF8])
    assert encode_bfloat16(bits, "E4M3FN", False, rounding="toward_zero") == 0x7E
    special = encode_bfloat16(bits, "E4M3FN", False, rounding="toward_zero", overflow="special")
    assert special == 0x7F
    assert encode_bfloat16(bits, "E4M3FN", False) == 0x7F


def test_an_overflow_is_one_after_rounding():
    """Toward zero, 479 becomes 448 with any exponents; 480 is the next value there would be."""
    for how, expected in {
        "toward_zero": [0x7E, 0x7E, 0x7F],
        "down": [0x7E, 0x7E, 0x7F],
        "up": [0x7E, 0x7F, 0x7F],
        "odd": [0x7E, 0x7F, 0x7F],  # 448 is 14 steps of 32, an even number
    }.items():
        assert code([448, 479, 480], "E4M3FN", how, overflow="special") == expected
    assert code([448, 479, 480], "E4M3FN", "odd") == [0x7E] * 3
    # E5M2's largest value is 7 steps: to odd, nothing below 65536 overflows.
    assert code([57345, 65535, 65536], "E5M2", "odd", overflow="special") == [0x7B, 0x7B, 0x7C]
    # 2^128 would follow E8M0FNU's largest value. No float32 is that large.
    largest = float(np.finfo(np.float32).max)
    for how in ("toward_zero", "down", "odd"):
        found = code([largest, 2.0**128, 1e300], "E8M0FNU", how, overflow="special")
        assert found == [0xFE, 0xFF, 0xFF]
        assert code([largest, 2.0**128, 1e300], "E8M0FNU", how) == [0xFE] * 3


def test_formats_without_infinity_or_nan():
    x = [7.9, -7.9, 1e9, -1e9, np.inf, -np.inf]
    for how, overflow in itertools.product(FIXED, ("ieee", "special")):
        assert code(x, "E2M1", how, overflow=overflow) == [7, 15] * 3
    assert code([1e9, -1e9], "E4M3FNUZ", "up") == [0x80, 0xFF]
    assert code([1e9, -1e9], "E4M3FNUZ", "down") == [0x7F, 0x80]


def test_signs_of_zero():
    x = [0.0, -0.0, 1e-30, -1e-30]
    for how, expected in {
        "up": [0, 0x80, 1, 0x80],
        "down": [0, 0x80, 0, 0x81],
        "odd": [0, 0x80, 1, 0x81],
        "toward_zero": [0, 0x80, 0, 0x80],
    }.items():
        assert encode(x, "E4M3FN", rounding=how).tolist() == expected
        no_minus = [0 if one == 0x80 else one for one in expected]
        assert encode(x, "E4M3FNUZ", rounding=how).tolist() == no_minus
        # A negative number has no code in a format without sign, whatever it would round to.
        assert encode(x, "UE4M3", rounding=how).tolist() == [0, 0, expected[2], 0x7F]
        # Nothing is below the smallest value of a format without zero.
        assert encode([0.0, 1e-45, -1e-45], "E8M0FNU", rounding=how).tolist() == [0, 0, 0xFF]


@pytest.mark.parametrize("name", FACTS)
def test_values_are_never_moved(name):
    fmt = FLOAT_FORMATS[name]
    every = np.arange(fmt.values.size, dtype=np.uint8)[fmt.is_finite]
    for how, (saturate, overflow) in itertools.product(FIXED, WAYS):
        x = npfp8.decode(every, fmt, np.float64)
        found = encode(x, fmt, saturate, rounding=how, overflow=overflow)
        assert np.array_equal(found, every)


@pytest.mark.parametrize("name", FACTS)
def test_up_is_down_mirrored(name):
    """And both enclose the number, one value apart."""
    fmt = FLOAT_FORMATS[name]
    x = numbers_around(name)
    x = x[np.isfinite(x) & (np.abs(x) <= fmt.max) & (x != 0)]
    if not fmt.signed:
        x = x[x >= fmt.min_positive]
    low, high = (fmt.values[encode(x, fmt, rounding=how)] for how in ("down", "up"))
    assert (low <= x).all()
    assert (x <= high).all()
    assert ((low == high) == np.isin(x, fmt.values)).all()
    if fmt.signed:
        assert np.array_equal(high, -fmt.values[encode(-x, fmt, rounding="down")])


@by_rounding
@pytest.mark.parametrize("fmt", [INT8, UINT8, FIXED8, IntFormat(-8, 7, "int8", "Q0.3", 3)], ids=str)
@pytest.mark.parametrize("source", INPUTS)
def test_integer_formats(fmt, source, rounding):
    x, parts = INPUTS[source], PARTS[source]
    kept = ~np.isnan(x)
    right, beyond = integer_codes(parts, fmt.min_code, fmt.max_code, fmt.fraction_bits, rounding)
    assert np.array_equal(encode(x[kept], fmt, rounding=rounding), right[kept])
    wide = x[kept].astype(np.float64)
    assert np.array_equal(encode(wide, fmt, rounding=rounding), right[kept])
    inside = kept & ~beyond
    found = encode(x[inside], fmt, False, rounding=rounding)
    assert np.array_equal(found, right[inside])
    with pytest.raises(ValueError, match="with saturate=False"):
        encode(x[kept & beyond][:1], fmt, False, rounding=rounding)


def test_integer_formats_stated():
    x = [2.1, -2.1, 3.1, -3.1, 2.0, 126.5, -126.5, 1e30, -1e30, np.inf, -np.inf]
    ends = [127, -127, 127, -127]
    assert encode(x, INT8, rounding="up").tolist() == [3, -2, 4, -3, 2, 127, -126, *ends]
    assert encode(x, INT8, rounding="down").tolist() == [2, -3, 3, -4, 2, 126, -127, *ends]
    assert encode(x, INT8, rounding="odd").tolist() == [3, -3, 3, -3, 2, 127, -127, *ends]
    assert encode(np.int64([5, -300]), INT8, rounding="odd").tolist() == [5, -127]


def test_options_that_do_not_go_together():
    with pytest.raises(ValueError, match="overflow: expected one of 'ieee', 'special', found 'n"):
        encode([1.0], "E4M3FN", False, overflow="nan")
    with pytest.raises(ValueError, match="overflow: expected 'ieee' with saturate=True, found 's"):
        encode([1.0], "E4M3FN", overflow="special")
    with pytest.raises(ValueError, match="overflow: expected 'ieee' for INT8, found 'special'"):
        encode([1.0], "INT8", False, overflow="special")
    with pytest.raises(ValueError, match="overflow: expected 'ieee' with saturate=True"):
        encode_bfloat16(np.uint16([0]), "E4M3FN", overflow="special")
    with pytest.raises(TypeError, match="overflow: expected one of 'ieee', 'special', found None"):
        encode([1.0], "E4M3FN", overflow=None)


@pytest.mark.parametrize("rounding", DIRECTED)
def test_formats_of_ones_own(rounding):
    """Few fields, by hand: 0, 1, 2, 3 and their signs; no mantissa bits; no sign and no zero."""
    fixed = FloatFormat(0, 2, 0, name="fixed point")  # 0, 1/2, 1, 3/2
    x = np.float64([0.3, -0.3, 0.7, -0.7, 1.6, -1.6])
    expected = {
        "toward_zero": [0, 4, 1, 5, 3, 7],
        "up": [1, 4, 2, 5, 3, 7],
        "down": [0, 5, 1, 6, 3, 7],
        "odd": [1, 5, 1, 5, 3, 7],
    }[rounding]
    assert encode(x / fixed.min_subnormal / 2, fixed, rounding=rounding).tolist() == expected
    powers = FloatFormat(3, 0, 3, signed=False, has_zero=False, name="UE3M0")
    y = np.float64([2.0**-3, 2.0**-3 * 1.5, 3.0, 1e-9])
    expected = {"up": [0, 1, 5, 0]}.get(rounding, [0, 0, 4, 0])
    assert encode(y, powers, rounding=rounding).tolist() == expected


@pytest.mark.parametrize("name", ["E4M3FN", "E5M2", "E8M0FNU", "E2M1"])
def test_the_definition_takes_the_same_options(name):
    x = numbers_around(name)
    x = x[~np.isnan(x)]
    for how, (saturate, overflow) in itertools.product(FIXED, WAYS):
        found = encode(x, name, saturate, rounding=how, overflow=overflow)
        defined = codes_of(x, FLOAT_FORMATS[name], saturate, how, overflow)
        assert np.array_equal(found, defined)


# gfloat


#: gfloat's formats of the same values, by ours.
GFLOAT = {
    "E4M3FN": "ocp_e4m3",
    "E5M2": "ocp_e5m2",
    "E2M3": "ocp_e2m3",
    "E3M2": "ocp_e3m2",
    "E2M1": "ocp_e2m1",
}
MODES = {
    "nearest": "TiesToEven",
    "nearest_away": "TiesToAway",
    "toward_zero": "TowardZero",
    "up": "TowardPositive",
    "down": "TowardNegative",
}


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("name", [*GFLOAT, "P3109_K8P3", "P3109_K8P4"])
@pytest.mark.parametrize("source", INPUTS)
def test_gfloat_agrees(name, source, saturate, rounding, gfloat):
    """All finite numbers; a number beyond the range of a format without NaN is gfloat's error."""
    formats = pytest.importorskip("gfloat.formats")
    if name in GFLOAT:
        info = getattr(formats, f"format_info_{GFLOAT[name]}")
    else:
        info = formats.format_info_p3109(8, int(name[-1]))
    fmt = FLOAT_FORMATS[name]
    x = INPUTS[source]
    x = x[np.isfinite(x)].astype(np.float64)
    if fmt.nan_code is None:
        x = x[np.abs(x) <= fmt.max]
    mode = gfloat.RoundMode[MODES[rounding]]
    theirs = gfloat.round_ndarray(info, x, mode, saturate)
    found = npfp8.decode(encode(x, fmt, saturate, rounding=rounding), fmt, np.float64)
    nan = np.isnan(theirs)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(found[~nan], theirs[~nan])
    assert np.array_equal(np.signbit(found[~nan]), np.signbit(theirs[~nan]))

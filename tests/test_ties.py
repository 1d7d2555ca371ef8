"""Every float16 and bfloat16 number, in every format and rounding, by integers.

The oracle shares no code with the package. A row of ``FACTS`` is what a specification says
of a format. The numbers are integers, multiples of 2^-200: a format's values by the definition,
and the inputs by their bits. A code is found by comparing twice a remainder with a step.
"""

import itertools
from bisect import bisect_right
from functools import cache

import numpy as np
import pytest
from integer_rounding import FACTS

from npfp8 import FIXED8, INT8, UINT8, IntFormat, encode, encode_bfloat16
from npfp8.bfloat16 import from_bits
from npfp8.formats import FLOAT_FORMATS, FORMATS

ONE = 200
BITS = np.arange(1 << 16, dtype=np.uint16)
with np.errstate(invalid="ignore"):
    INPUTS = {"float16": BITS.view(np.float16), "bfloat16": from_bits(BITS)}

ROUNDINGS = ("nearest", "nearest_away", "nearest_toward_zero", "toward_zero")


def value(name, code):
    """The value of a code without its sign, in units of 2^-200."""
    _, m, bias = FACTS[name][:3]
    exponent, mantissa = divmod(code, 1 << m)
    if exponent == 0 and FACTS[name].zero:
        return mantissa << (ONE + 1 - bias - m)
    return ((1 << m) + mantissa) << (ONE + exponent - bias - m)


def magnitudes(source):
    """The magnitudes of the finite numbers with a positive sign, by their bits, in units."""
    m, bias, top = (10, 15, 31) if source == "float16" else (7, 127, 255)
    for bits in range(top << m):
        exponent, mantissa = divmod(bits, 1 << m)
        significand = mantissa if exponent == 0 else (1 << m) + mantissa
        yield significand << (ONE + max(exponent, 1) - bias - m)


@cache
def places(name, source):
    """For each magnitude: the code of the value not above it, and its place above that value.

    The place is 0 on the value, 1 below the middle to the next, 2 on it, 3 above it.
    """
    largest = FACTS[name].largest
    points = [value(name, code) for code in range(largest + 1)]
    step = points[-1] - points[-2] if FACTS[name].m else points[-1]
    # The step above the largest number is that of its binade, also where its codes end.
    points.append(points[-1] + step)
    below, place = [], []
    for magnitude in magnitudes(source):
        code = bisect_right(points, magnitude) - 1
        if code < 0 or code > largest:
            below.append(max(code, 0))
            place.append(0)
            continue
        rest, gap = magnitude - points[code], points[code + 1] - points[code]
        below.append(code)
        place.append((rest > 0) + (2 * rest >= gap) + (2 * rest > gap))
    return np.array(below), np.array(place)


def expected(name, source, rounding, saturate):
    """The codes of all 65,536 bit patterns."""
    facts = FACTS[name]
    below, place = places(name, source)
    if rounding == "toward_zero":
        codes = np.minimum(below, facts.largest)
    else:
        even = (below % 2 == 0) if facts.m else np.zeros(below.shape, bool)
        up = {"nearest": ~even, "nearest_away": True, "nearest_toward_zero": False}[rounding]
        codes = below + ((place == 3) | ((place == 2) & up))
    count = codes.size
    full = np.zeros(1 << 15, int)
    full[:count] = codes
    beyond = full > facts.largest
    beyond[count] = True  # infinity
    too_large = facts.largest
    if not saturate:
        too_large = next(c for c in (facts.infinity, facts.quiet, facts.largest) if c is not None)
    full[beyond] = too_large
    nan = facts.nan if saturate else facts.quiet
    negative = full.copy()
    sign = 1 << (facts.e + facts.m)
    if facts.signed:
        moved = (full != facts.nan) if not facts.minus_zero else np.ones(full.shape, bool)
        if not facts.minus_zero:
            moved &= full != 0
        negative[moved] |= sign
    else:
        negative[1:] = 0 if nan is None else nan
    if not FACTS[name].zero and not saturate:
        full[0] = negative[0] = nan
    if nan is not None:
        full[count + 1 :] = nan
        own_sign = facts.signed and facts.minus_zero and not saturate
        negative[count + 1 :] = nan | sign if own_sign else nan
    return np.concatenate([full, negative])


def test_every_format_has_a_row():
    assert set(FACTS) == set(FLOAT_FORMATS)


@pytest.mark.parametrize("name", FACTS)
@pytest.mark.parametrize("source", INPUTS)
def test_every_number_in_every_rounding(name, source):
    x = INPUTS[source]
    for rounding, saturate in itertools.product(ROUNDINGS, (True, False)):
        right = expected(name, source, rounding, saturate)
        given, bits = x, BITS
        if FACTS[name].nan is None:
            right, given, bits = (one[~np.isnan(x)] for one in (right, x, BITS))
        with np.errstate(invalid="ignore"):
            found = encode(given, name, saturate, rounding=rounding)
        wrong = np.flatnonzero(found != right)
        where = (rounding, saturate, given[wrong[:1]], found[wrong[:1]], right[wrong[:1]])
        assert not wrong.size, where
        if source == "bfloat16":
            found = encode_bfloat16(bits, name, saturate, rounding=rounding)
        else:  # through the tables of float32 and, rounded to odd, of float64
            with np.errstate(invalid="ignore"):
                wide = given.astype(np.float64)
            found = encode(wide, name, saturate, rounding=rounding)
        assert np.array_equal(found, right)


def test_the_oracle_has_ties():
    """Without them the roundings would not be told apart."""
    for name in FACTS:
        found = [tuple(expected(name, "bfloat16", how, True)) for how in ROUNDINGS]
        # Without mantissa bits every significand is odd: nearest is away from zero.
        assert len(set(found)) == (3 if name == "E8M0FNU" else 4), name


@pytest.mark.parametrize("name", ["E4M3FN", "E2M1", "P3109_K8P4", "FIXED8"])
def test_ties_stated(name):
    fmt = FORMATS[name]
    value_of = fmt.values.astype(np.float64)
    codes = np.arange(1, 7)
    middles = (value_of[codes] + value_of[codes + 1]) / 2
    for sign in (1, -1):
        x = sign * middles
        for dtype in (np.float32, np.float64):
            found = {
                how: np.abs(value_of[encode(x.astype(dtype), fmt, rounding=how).view(np.uint8)])
                for how in ROUNDINGS
            }
            assert np.array_equal(found["nearest_away"], value_of[codes + 1])
            assert np.array_equal(found["nearest_toward_zero"], value_of[codes])
            assert np.array_equal(found["toward_zero"], value_of[codes])
            assert np.array_equal(found["nearest"], value_of[codes + codes % 2])


def test_float64_beside_a_tie_is_no_tie():
    for how, low, high in (("nearest_away", 0x39, 0x39), ("nearest_toward_zero", 0x38, 0x38)):
        tie = 1.0625  # of 1 and 1.125
        found = encode([tie - 2.0**-50, tie, tie + 2.0**-50], "E4M3FN", rounding=how)
        assert found.tolist() == [0x38, low if low == 0x38 else 0x39, 0x39]
        assert encode(tie, "E4M3FN", rounding=how) == high
        wide = np.int64([17 * 2**40 - 1, 17 * 2**40, 17 * 2**40 + 1])  # a tie of 16 and 18
        assert encode(wide, "E5M2", rounding=how).tolist() == [0x7B] * 3


def test_integers_beside_a_tie():
    x = np.int64([17, 19, -17])  # ties of 16, 18 and 20 in E4M3FN
    assert encode(x, "E4M3FN").tolist() == [0x58, 0x5A, 0xD8]
    assert encode(x, "E4M3FN", rounding="nearest_away").tolist() == [0x59, 0x5A, 0xD9]
    assert encode(x, "E4M3FN", rounding="nearest_toward_zero").tolist() == [0x58, 0x59, 0xD8]


def test_overflow_is_a_tie_too():
    """464 is half way from 448 to 480, which E4M3FN does not have."""
    x = np.float32([464, np.nextafter(np.float32(464), np.float32(500)), -464])
    for how, codes in (
        ("nearest", [0x7E, 0x7F, 0xFE]),
        ("nearest_away", [0x7F, 0x7F, 0xFF]),
        ("nearest_toward_zero", [0x7E, 0x7F, 0xFE]),
        ("toward_zero", [0x7E, 0x7E, 0xFE]),
    ):
        assert encode(x, "E4M3FN", False, rounding=how).tolist() == codes
        assert encode(x, "E4M3FN", rounding=how).tolist() == [0x7E, 0x7E, 0xFE]
    # The P3109 formats: 232 is half way from 224 to 240, 53248 from 49152 to 57344.
    for name, tie in (("P3109_K8P4", 232.0), ("P3109_K8P3", 53248.0)):
        x = np.array([tie, -tie, np.inf, -np.inf])
        assert encode(x, name).tolist() == [0x7E, 0xFE, 0x7E, 0xFE]
        assert encode(x, name, False).tolist() == [0x7E, 0xFE, 0x7F, 0xFF]
        away = encode(x, name, False, rounding="nearest_away")
        assert away.tolist() == [0x7F, 0xFF, 0x7F, 0xFF]


# Integers and fixed point


def integer_code(magnitude, negative, fmt, rounding):
    """The code of a magnitude in units of 2^-200."""
    step = 1 << (ONE - fmt.fraction_bits)
    whole, rest = divmod(magnitude, step)
    up = {
        "nearest": 2 * rest > step or (2 * rest == step and whole % 2 == 1),
        "nearest_away": 2 * rest >= step,
        "nearest_toward_zero": 2 * rest > step,
        "toward_zero": False,
    }[rounding]
    code = whole + up
    return min(max(-code if negative else code, fmt.min_code), fmt.max_code)


@pytest.mark.parametrize("fmt", [INT8, UINT8, FIXED8, IntFormat(-8, 7, "int8", "Q0.3", 3)], ids=str)
@pytest.mark.parametrize("source", INPUTS)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_every_number_in_integers(fmt, source, rounding):
    x = INPUTS[source]
    finite = np.isfinite(x)
    numbers = list(magnitudes(source))
    right = [
        integer_code(magnitude, negative, fmt, rounding)
        for negative in (False, True)
        for magnitude in numbers
    ]
    found = encode(x[finite], fmt, rounding=rounding)
    assert found.dtype == fmt.code_dtype
    assert found.tolist() == right
    assert encode(x[finite].astype(np.float64), fmt, rounding=rounding).tolist() == right
    assert encode(x[np.isinf(x)], fmt, rounding=rounding).tolist() == [fmt.max_code, fmt.min_code]
    inside = (found > fmt.min_code) & (found < fmt.max_code)
    kept = encode(x[finite][inside], fmt, False, rounding=rounding)
    assert np.array_equal(kept, found[inside])


def test_fixed_point():
    assert (FIXED8.max, FIXED8.min_subnormal, FIXED8.values.min()) == (127 / 64, 1 / 64, -2.0)
    x = np.float32([0.5 / 64, 1.5 / 64, -0.5 / 64, 2.0, -2.0, 1e-30])
    assert encode(x, FIXED8).tolist() == [0, 2, 0, 127, -127, 0]
    assert encode(x, FIXED8, rounding="nearest_away").tolist() == [1, 2, -1, 127, -127, 0]
    assert encode(np.int64([0, 1, -1, 2, 2**62]), FIXED8).tolist() == [0, 64, -64, 127, 127]
    assert encode([np.finfo(np.float64).max], FIXED8).tolist() == [127]
    with pytest.raises(ValueError, match="found NaN, and FIXED8 has no code"):
        encode([np.nan], FIXED8)
    with pytest.raises(ValueError, match=r"outside FIXED8's -127\.\.127 with saturate=False"):
        encode([2.0], FIXED8, False)

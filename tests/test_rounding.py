"""Rounding to odd, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import BFLOAT16, FLOAT32, FLOAT64, assert_same_bits, nearest, to_odd

from npfp8.bfloat16 import from_bits
from npfp8.rounding import float32_to_bfloat16_bits, float64_to_float32, integer_to_float64


def near_powers_of_two(precision: int, lowest: int, highest: int) -> np.ndarray:
    """Powers of two, halfway points beside them and what lies just off either, of both signs.

    ``precision`` is that of the narrower format, whose grid the values surround.
    """
    powers = np.ldexp(1.0, np.arange(lowest, highest + 1))
    half_steps = np.arange(-4, 5) * 2.0 ** -(precision + 1)
    points = np.outer(powers, 1 + half_steps).ravel()
    points = np.concatenate([points, np.nextafter(points, 0), np.nextafter(points, np.inf)])
    points = points[np.isfinite(points)]
    return np.concatenate([points, -points])


# float32 to bfloat16


def odd_bfloat16_bits(bits: np.ndarray) -> np.ndarray:
    return (bits >> 16 | (bits % (1 << 16) != 0)).astype(np.uint16)


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_every_bfloat16_and_what_lies_between(low: int) -> None:
    bits = np.arange(1 << 16, dtype=np.uint32) << 16 | np.uint32(low)
    assert_same_bits(float32_to_bfloat16_bits(bits.view(np.float32)), odd_bfloat16_bits(bits))


@given(st.floats(width=32, allow_nan=False))
def test_float32_to_bfloat16_rounds_to_odd(x: float) -> None:
    found = from_bits(float32_to_bfloat16_bits(np.float32([x])))
    assert_same_bits(found, np.float32([to_odd(x, BFLOAT16)]))


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF, 0x7F80FFFF])
def test_float32_nan_stays_nan_with_its_sign(bits: int) -> None:
    (found,) = float32_to_bfloat16_bits(np.uint32([bits]).view(np.float32))
    assert found & 0x7F80 == 0x7F80
    assert found & 0x7F
    assert found >> 15 == bits >> 31


# float64 to float32

FLOAT64_EXTREMES = [
    0.0,
    5e-324,
    2.0**-1022,
    2.0**-150,
    np.nextafter(2.0**-150, 1),
    2.0**-149,
    2.0**-149 * 1.5,
    2.0**-126 - 2.0**-150,
    2.0**-126,
    float(FLOAT32.max),
    np.nextafter(float(FLOAT32.max), np.inf),
    float(FLOAT32.max) + 2.0**103,
    2.0**128,
    float(FLOAT64.max),
]


def check_float64(x: float) -> None:
    found = float64_to_float32(np.float64([x]))
    assert_same_bits(found, np.float32([to_odd(x, FLOAT32)]))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_float64_to_float32_rounds_to_odd(x: float) -> None:
    check_float64(x)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 2**30))
def test_float64_close_to_a_float32(x: float, lower_bits: int) -> None:
    (close,) = (np.float64([x]).view(np.int64) ^ lower_bits).view(np.float64)
    if np.isfinite(close):
        check_float64(float(close))


@pytest.mark.parametrize("x", FLOAT64_EXTREMES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float64_extremes(x: float, sign: float) -> None:
    check_float64(sign * x)


def test_float64_near_every_power_of_two() -> None:
    x = np.concatenate([near_powers_of_two(24, -152, 128), near_powers_of_two(24, -1074, -1070)])
    expected = np.array([to_odd(v, FLOAT32) for v in x.tolist()])
    assert_same_bits(float64_to_float32(x), expected.astype(np.float32))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_second_rounding_is_innocuous(x: float) -> None:
    """A second rounding after rounding to odd gives the correctly rounded result."""
    odd = float(float64_to_float32(np.float64([x]))[0])
    assert nearest(odd, BFLOAT16) == nearest(x, BFLOAT16)


def test_rounding_twice_to_nearest_would_be_wrong() -> None:
    """The trap that rounding to odd avoids; were it none, the tests above would show little."""
    x = 1 + 2.0**-8 + 2.0**-40
    twice = nearest(nearest(x, FLOAT32), BFLOAT16)
    assert twice != nearest(x, BFLOAT16)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x7FF0000000000000, 0x7F800000),
        (0xFFF0000000000000, 0xFF800000),
        (0x7FF8000000000000, 0x7FC00000),
        (0xFFF8000000000000, 0xFFC00000),
        (0x7FF0000000000001, 0x7FC00000),
        (0xFFF0000000000001, 0xFFC00000),
        (0x7FFFFFFFFFFFFFFF, 0x7FC00000),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_float64_specials(bits: int, expected: int, shape: tuple[int, ...]) -> None:
    found = float64_to_float32(np.full(shape, bits, np.uint64).view(np.float64))
    assert_same_bits(found.view(np.uint32), np.full(shape, expected, np.uint32))


def test_float64_strided_input_is_left_alone() -> None:
    x = np.linspace(-3, 3, 24).reshape(4, 6)
    x.flags.writeable = False
    expected = np.array([to_odd(v, FLOAT32) for v in x.ravel().tolist()])
    expected = expected.reshape(4, 6).astype(np.float32)
    assert_same_bits(float64_to_float32(x.T), expected.T)
    assert_same_bits(float64_to_float32(x[::2, ::-3]), expected[::2, ::-3])


# integers to float64


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16"])
def test_every_short_integer_is_exact(dtype: str) -> None:
    limits = np.iinfo(dtype)
    x = np.arange(limits.min, limits.max + 1).astype(dtype)
    assert_same_bits(integer_to_float64(x), np.array([float(v) for v in x.tolist()]))


def check_integer(x: int, dtype: str) -> None:
    """Exact below 2^53; then a multiple of 2^11, an odd one where that lost something."""
    found = integer_to_float64(np.array([x], dtype))
    assert found.dtype == np.float64
    value = int(found[0])
    if abs(x) < 2**53:
        assert value == x
    else:
        kept, lost = divmod(abs(x), 2**11)
        assert abs(value) == (kept | (lost != 0)) * 2**11
        assert (value < 0) == (x < 0)
    for kind in (FLOAT32, BFLOAT16):
        assert nearest(Fraction(value), kind) == nearest(Fraction(x), kind)


@given(st.integers(-(2**63), 2**63 - 1))
def test_int64_rounds_to_odd(x: int) -> None:
    check_integer(x, "int64")


@given(st.integers(0, 2**64 - 1))
def test_uint64_rounds_to_odd(x: int) -> None:
    check_integer(x, "uint64")


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64"])
def test_integers_near_powers_of_two(dtype: str) -> None:
    limits = np.iinfo(dtype)
    for exponent in range(65):
        for middle in (2**exponent, 2**exponent + 2 ** max(exponent - 24, 0)):
            for x in (middle - 1, middle, middle + 1, -middle - 1, -middle, -middle + 1):
                if limits.min <= x <= limits.max:
                    check_integer(x, dtype)


def test_integers_whose_nearest_float64_is_a_float32_tie() -> None:
    x = 2**62 + 2**38 + 1
    twice = nearest(nearest(Fraction(x), FLOAT64), FLOAT32)
    assert twice != nearest(Fraction(x), FLOAT32)  # it is a trap
    check_integer(x, "int64")
    check_integer(-x, "int64")
    check_integer(2 * x, "uint64")


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint64"])
def test_integer_shapes(dtype: str) -> None:
    assert integer_to_float64(np.array(7, dtype)).shape == ()
    assert integer_to_float64(np.empty((0, 3), dtype)).shape == (0, 3)
    x = np.arange(6, dtype=dtype).reshape(2, 3)
    np.testing.assert_array_equal(integer_to_float64(x.T), [[0, 3], [1, 4], [2, 5]])

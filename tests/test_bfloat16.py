"""bfloat16: bits, values and rounding, against exact fractions and ml_dtypes."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import BFLOAT16, assert_same_bits, nearest

from npfp8.bfloat16 import from_bits, round_to_bfloat16, round_to_bits, to_bits

EVERY = np.arange(1 << 16, dtype=np.uint16)
MAGNITUDES = np.arange(0x7F80, dtype=np.int64)  # the finite ones from 0 up
SIZES = [0, 1, 65535, 65536, 65537, 131072, 131075]


def every_value() -> np.ndarray:
    """The value of each bit pattern as float64, from the three fields."""
    bits = EVERY.astype(np.int64)
    exponent, mantissa = bits >> 7 & 0xFF, bits & 0x7F
    significand = np.where(exponent > 0, 128 + mantissa, mantissa).astype(np.float64)
    values = np.ldexp(significand, np.maximum(exponent, 1) - 127 - 7)
    values[exponent == 0xFF] = np.where(mantissa[exponent == 0xFF] == 0, np.inf, np.nan)
    return np.where(bits >> 15, -values, values)


def float32_with_specials(size: int) -> np.ndarray:
    """Random bit patterns, one in 256 of which is a NaN or an infinity, ones at both ends."""
    bits = np.random.default_rng(size).integers(0, 1 << 32, size, np.uint32)
    bits[:1] = 0xFF800001
    bits[-1:] = 0x7FFFFFFF
    return bits.view(np.float32)


def rounded_bits(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bits in 64-bit integers: the upper half, one more if that is nearer."""
    bits = x.view(np.uint32).astype(np.int64)
    upper, lower = bits >> 16, bits & 0xFFFF
    upper += (lower > 0x8000) | ((lower == 0x8000) & (upper % 2 == 1))
    return np.where(np.isnan(x), bits >> 31 << 15 | 0x7FC0, upper).astype(np.uint16)


# Bits


def test_every_bit_pattern_has_its_value() -> None:
    values = from_bits(EVERY)
    assert values.dtype == np.float32
    with np.errstate(invalid="ignore"):  # among the NaNs are signalling ones
        np.testing.assert_array_equal(values.astype(np.float64), every_value())
    np.testing.assert_array_equal(np.signbit(values), EVERY >> 15 == 1)


def test_every_bit_pattern_round_trips() -> None:
    assert_same_bits(to_bits(from_bits(EVERY)), EVERY)


def test_values_equal_those_of_ml_dtypes(ml_dtypes: ModuleType) -> None:
    theirs = EVERY.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(from_bits(EVERY), theirs)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 3, 4)])
def test_shapes_of_bits(shape: tuple[int, ...]) -> None:
    bits = np.resize(np.uint16([0x3F80, 0xC000, 0x0001]), shape)
    values = from_bits(bits)
    assert isinstance(values, np.ndarray)
    assert values.shape == shape
    assert_same_bits(to_bits(values), bits)


def test_strided_bits() -> None:
    bits = EVERY.reshape(256, 256).T[::3, ::-5]
    assert_same_bits(from_bits(bits), from_bits(EVERY).reshape(256, 256).T[::3, ::-5])
    assert_same_bits(to_bits(from_bits(EVERY).reshape(256, 256).T[::3, ::-5]), bits)


def test_from_bits_does_not_share_memory() -> None:
    bits = np.uint16([0x3F80])
    from_bits(bits)[0] = 7
    assert bits[0] == 0x3F80


@pytest.mark.parametrize("bits", [[1], np.int16([1]), np.uint32([1]), np.float32([1])])
def test_from_bits_wants_uint16(bits: object) -> None:
    with pytest.raises(TypeError, match=rf"expected uint16, found {np.asarray(bits).dtype}"):
        from_bits(bits)


@pytest.mark.parametrize("x", [[1.0], np.float64([1]), np.float16([1]), np.uint16([1])])
def test_to_bits_wants_float32(x: object) -> None:
    with pytest.raises(TypeError, match=rf"expected float32, found {np.asarray(x).dtype}"):
        to_bits(x)
    with pytest.raises(TypeError, match=rf"expected float32, found {np.asarray(x).dtype}"):
        round_to_bits(x)


# Rounding float32


def test_what_is_bfloat16_stays() -> None:
    values = from_bits(EVERY)
    expected = np.where(np.isnan(values), EVERY & 0x8000 | 0x7FC0, EVERY).astype(np.uint16)
    assert_same_bits(to_bits(round_to_bfloat16(values)), expected)
    assert_same_bits(round_to_bits(values), expected)
    assert_same_bits(round_to_bits(values.reshape(256, 256).T), expected.reshape(256, 256).T.copy())


@pytest.mark.parametrize("low", [0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
@pytest.mark.parametrize("sign", [0, 0x8000])
def test_halfway_between_neighbours(low: int, sign: int) -> None:
    """Above each finite value: next to it, the midpoint and its float32 neighbours."""
    x = (MAGNITUDES << 16 | sign << 16 | low).astype(np.uint32).view(np.float32)
    up = low > 0x8000 or (MAGNITUDES % 2 == 1 if low == 0x8000 else False)
    assert_same_bits(to_bits(round_to_bfloat16(x)), (MAGNITUDES + up + sign).astype(np.uint16))
    assert_same_bits(round_to_bits(x), (MAGNITUDES + up + sign).astype(np.uint16))


@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_ml_dtypes_rounds_alike(ml_dtypes: ModuleType, low: int) -> None:
    x = (EVERY.astype(np.uint32) << 16 | np.uint32(low)).view(np.float32)
    x = x[~np.isnan(x)]
    theirs = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert_same_bits(to_bits(round_to_bfloat16(x)), theirs)


@given(st.floats(width=32, allow_nan=False))
def test_float32_rounds_to_nearest(x: float) -> None:
    assert_same_bits(round_to_bfloat16(np.float32([x])), np.float32([nearest(x, BFLOAT16)]))


@given(st.floats(width=32))
def test_ml_dtypes_rounds_any_float32_alike(ml_dtypes: ModuleType, x: float) -> None:
    theirs = np.float32([x]).astype(ml_dtypes.bfloat16)
    assert_same_bits(to_bits(round_to_bfloat16(np.float32([x]))), theirs.view(np.uint16))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x7F800001, 0x7FC0),  # a payload only in the bits cut off: not infinity
        (0xFF800001, 0xFFC0),
        (0x7FC00000, 0x7FC0),
        (0xFFC00000, 0xFFC0),
        (0x7FFFFFFF, 0x7FC0),  # adding to these would wrap to zero
        (0xFFFFFFFF, 0xFFC0),
        (0x7F800000, 0x7F80),
        (0xFF800000, 0xFF80),
        (0x7F7FFFFF, 0x7F80),
        (0x7F7F8000, 0x7F80),
        (0x7F7F7FFF, 0x7F7F),
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),
        (0x80000001, 0x8000),
        (0x00008001, 0x0001),
    ],
)
def test_specials(bits: int, expected: int) -> None:
    found = round_to_bfloat16(np.uint32([bits]).view(np.float32))
    assert_same_bits(to_bits(found), np.uint16([expected]))
    assert found.view(np.uint32)[0] & 0xFFFF == 0


# Rounding float64


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_float64_rounds_once(sign: float) -> None:
    """The inputs are midpoints of neighbours and the float64 numbers next to them."""
    lower = every_value()[MAGNITUDES]
    upper = np.append(lower[1:], 2.0**128)  # beyond the largest, where infinity begins
    middle = (lower + upper) / 2
    bits = MAGNITUDES.astype(np.uint16)
    even = bits + bits % 2
    below, above = np.nextafter(middle, 0), np.nextafter(middle, np.inf)
    for x, expected in ((below, bits), (middle, even), (above, bits + 1)):
        found = to_bits(round_to_bfloat16(sign * x))
        assert_same_bits(found, expected.astype(np.uint16) | np.uint16(0x8000 * (sign < 0)))

    # It is a trap: over float32 each of them is taken for the midpoint.
    with np.errstate(over="ignore"):
        twice = rounded_bits(below.astype(np.float32))
    assert (twice != bits).sum() == len(bits) // 2


@given(st.floats(allow_nan=False))
def test_float64_rounds_to_nearest(x: float) -> None:
    assert_same_bits(round_to_bfloat16(np.float64([x])), np.float32([nearest(x, BFLOAT16)]))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (5e-324, 0x0000),
        (-5e-324, 0x8000),
        (2.0**-134, 0x0000),
        (np.nextafter(2.0**-134, 1), 0x0001),
        (1.7e308, 0x7F80),
        (-1.7e308, 0xFF80),
        (-np.inf, 0xFF80),
        (np.nan, 0x7FC0),
        (-np.nan, 0xFFC0),
    ],
)
def test_float64_extremes(x: float, expected: int) -> None:
    assert to_bits(round_to_bfloat16(x)) == expected


@given(st.floats(-(2.0**-125), 2.0**-125))
def test_subnormal_float64_rounds_to_nearest(x: float) -> None:
    """Smaller subnormal numbers have fewer bits."""
    assert_same_bits(round_to_bfloat16(np.float64([x])), np.float32([nearest(x, BFLOAT16)]))


@given(st.integers(0, 0x7F7F), st.integers(-3, 3), st.booleans())
def test_float64_beside_midpoints(lower: int, steps: int, negative: bool) -> None:
    """Some float64 numbers away from each, which a float32 in between would not tell from it."""
    ends = from_bits(np.uint16([lower, min(lower + 1, 0x7F7F)])).astype(np.float64)
    x = np.float64([ends.sum() / 2]).view(np.int64) + (steps if lower else abs(steps))
    value = float(x.view(np.float64)[0]) * (-1 if negative else 1)
    assert_same_bits(round_to_bfloat16(np.float64([value])), np.float32([nearest(value, BFLOAT16)]))


@pytest.mark.parametrize("exponent", [-1074, -1022, -150, -149, -135, -134, -133, -127, -126, 127])
def test_float64_around_powers_of_two(exponent: int) -> None:
    """Below 2^-126 8 bits are too many: what rounds up to it from there must do so once."""
    offsets = [sign * 2.0**-i for i in range(1, 53) for sign in (-1, 1)]
    offsets += [-(2.0**-8) + 2.0**-20, -(2.0**-8) - 2.0**-20, -(2.0**-9), -3 * 2.0**-9, 0.0]
    offsets += [-(2.0**-8) + 2.0**-52, -(2.0**-8) - 2.0**-52]
    x = np.ldexp(1 + np.float64(offsets), exponent)
    x = np.concatenate([x, -x])
    expected = np.float32([nearest(value, BFLOAT16) for value in x.tolist()])
    assert_same_bits(round_to_bfloat16(x), expected)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (np.nextafter(2.0**128 - 2.0**119, 0), 0x7F7F),
        (2.0**128 - 2.0**119, 0x7F80),  # a tie, and infinity is even
        (2.0**128, 0x7F80),
        (np.finfo(np.float64).max, 0x7F80),
        (np.nextafter(2.0**-126 - 2.0**-134, 0), 0x007F),
        (2.0**-126 - 2.0**-134, 0x0080),
        (np.nextafter(2.0**-126, 0), 0x0080),
    ],
)
def test_float64_at_the_ends_of_the_normal_range(x: float, expected: int) -> None:
    assert_same_bits(
        to_bits(round_to_bfloat16(np.float64([x, -x]))), np.uint16([expected, expected | 0x8000])
    )


@pytest.mark.parametrize(
    "bits", [0x7FF0000000000001, 0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF, 0x7FF7FFFFFFFFFFFF]
)
def test_float64_nan_keeps_only_its_sign(bits: int) -> None:
    """Adding to these could wrap, or lose the payload and so be infinity."""
    x = np.uint64([bits, bits | 1 << 63]).view(np.float64)
    assert_same_bits(to_bits(round_to_bfloat16(x)), np.uint16([0x7FC0, 0xFFC0]))


@pytest.mark.parametrize("x", [[1, 2], np.float16([1]), np.uint16([1]), np.bool_([1]), ["1"]])
def test_rounding_wants_floats(x: object) -> None:
    with pytest.raises(
        TypeError, match=rf"expected float32 or float64, found {np.asarray(x).dtype}"
    ):
        round_to_bfloat16(x)


# Blocks, shapes and `out`


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_a_block(size: int) -> None:
    x = float32_with_specials(size)
    expected = rounded_bits(x)
    x.flags.writeable = False
    assert_same_bits(to_bits(round_to_bfloat16(x)), expected)
    assert_same_bits(round_to_bits(x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_out_may_be_the_input(size: int) -> None:
    x = float32_with_specials(size)
    expected = rounded_bits(x)
    assert round_to_bfloat16(x, out=x) is x
    assert_same_bits(to_bits(x), expected)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_a_block_of_float64(size: int) -> None:
    """With a NaN, an infinity and subnormal numbers in every block."""
    rng = np.random.default_rng(size)
    x = np.ldexp(rng.uniform(-1, 1, size), rng.integers(-140, 132, size))
    x[:1], x[-1:], x[3:size:1000] = -np.nan, np.inf, np.nan
    expected = np.concatenate(
        [round_to_bfloat16(x[i : i + 1000]) for i in range(0, size, 1000)] or [x]
    )
    kept = x.copy()
    x.flags.writeable = False
    out = np.full(size, 9, np.float32)
    assert round_to_bfloat16(x, out=out) is out
    assert_same_bits(out, expected.astype(np.float32))
    assert_same_bits(round_to_bfloat16(x), out)
    assert_same_bits(x, kept)
    some = slice(max(size - 300, 0), size)
    by_hand = [nearest(value, BFLOAT16) for value in x[some].tolist()]
    np.testing.assert_array_equal(out[some], np.float32(by_hand))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5)])
def test_out_takes_the_result(dtype: type, shape: tuple[int, ...]) -> None:
    x = np.resize(np.array([1.00390625, -3.3, np.nan, 1e-40], dtype), shape)
    out = np.full(shape, 9, np.float32)
    kept = x.copy()
    assert round_to_bfloat16(x, out=out) is out
    assert_same_bits(to_bits(out), rounded_bits(x.astype(np.float32)))
    assert_same_bits(x, kept)


def test_out_of_another_dtype() -> None:
    with pytest.raises(TypeError, match="out: expected an array of float32, found float64"):
        round_to_bfloat16(np.float32([1]), out=np.empty(1))


@pytest.mark.parametrize("shape", [(), (3,), (2, 1), (1, 2, 1)])
def test_out_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected C-contiguous shape \(2,\), found \("):
        round_to_bfloat16(np.float32([1, 2]), out=np.empty(shape, np.float32))


def test_out_that_is_not_contiguous() -> None:
    out = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match="expected C-contiguous"):
        round_to_bfloat16(np.ones((3, 4), np.float32), out=out.T)
    assert not out.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_strided_input(dtype: type) -> None:
    x = np.linspace(-3, 3, 48, dtype=dtype).reshape(6, 8)
    whole = round_to_bfloat16(x)
    assert_same_bits(round_to_bfloat16(x.T), whole.T)
    assert_same_bits(round_to_bfloat16(x[::2, ::-3]), whole[::2, ::-3])
    out = np.empty((8, 6), np.float32)
    assert_same_bits(round_to_bfloat16(x.T, out=out), whole.T)


@pytest.mark.parametrize("x", [1.3, np.float32(1.3), [1.3], [[1.3, 2.6]]])
def test_results_are_arrays(x: object) -> None:
    found = round_to_bfloat16(x)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float32
    assert found.shape == np.shape(x)
    assert found.flat[0] == 1.296875


def test_no_warning_even_where_warnings_are_errors() -> None:
    with np.errstate(all="raise"):
        x = np.float64([1e-300, 1e300, np.nan, -np.inf, 1e-40])
        round_to_bfloat16(x)
        with np.errstate(over="ignore", under="ignore"):
            x = x.astype(np.float32)
        round_to_bfloat16(x)

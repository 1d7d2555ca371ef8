"""Quantized tensors: their checks, their meaning, and their making."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import (
    FLOAT32,
    assert_same_bits,
    code_values,
    finite_codes,
    multiply32,
    nearest,
    nearest_code,
)

from npfp8 import (
    E2M1,
    E3M2,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E8M0FNU,
    INT8,
    UINT8,
    FloatFormat,
    Format,
    IntFormat,
    QuantizedTensor,
    absmax_scale,
    decode,
    encode,
    quantize,
    quantize_bfloat16,
)
from npfp8.bfloat16 import from_bits
from npfp8.scaling import (
    affine_scale,
    axis_and_block,
    dynamic_scale,
    group_extrema,
    power_of_two_scale,
    scale_of_range,
    spread,
)

FORMATS = [E4M3FN, E5M2, INT8, UINT8]
LARGEST = {"E4M3FN": 448, "E5M2": 57344, "INT8": 127, "UINT8": 255}
MIN_NORMAL = np.float32(2.0**-126)

every_format = pytest.mark.parametrize("fmt", FORMATS, ids=str)

# Numbers whose squares and quotients stay far from float32's ends.
moderate = st.floats(-(2.0**40), 2.0**40, width=32)
scales = st.floats(2.0**-40, 2.0**40, width=32)


def quantized_by_hand(x: np.ndarray, scale: np.ndarray, fmt: Format) -> np.ndarray:
    """The codes of finite ``x``, element by element, in exact fractions."""
    codes = np.empty(x.shape, np.uint8)
    for index in np.ndindex(x.shape):
        quotient = Fraction(float(x[index])) / Fraction(float(scale[index]))
        rounded = nearest(quotient, FLOAT32) if quotient else float(x[index])
        codes[index] = nearest_code(fmt.name, rounded)
    return codes.view(fmt.code_dtype)


@st.composite
def arrays_with_axis(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A small float32 array of one to three axes, and one of the axes, perhaps negative."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return draw(hnp.arrays(np.float32, shape, elements=moderate)), axis


# The fields of a QuantizedTensor


def test_defaults() -> None:
    x = QuantizedTensor(np.uint8([[1, 2, 3], [4, 5, 6]]), 0.5, E4M3FN)
    assert (x.axis, x.zero_point, x.block) == (None, None, None)
    assert (x.shape, x.ndim) == ((2, 3), 2)
    assert_same_bits(x.scale, np.array(0.5, np.float32))


def test_lists_become_arrays() -> None:
    x = QuantizedTensor(np.int8([[1], [2]]), [1, 0.1], INT8, axis=0, zero_point=np.int8([1, 2]))
    assert_same_bits(x.scale, np.float32([1, 0.1]))
    assert x.zero_point is not None
    assert x.zero_point.dtype == np.int8


@pytest.mark.parametrize(("axis", "stored"), [(-1, 2), (-2, 1), (-3, 0), (0, 0), (2, 2)])
def test_axis_is_stored_from_the_front(axis: int, stored: int) -> None:
    shape = (2, 3, 4)
    x = QuantizedTensor(np.zeros(shape, np.uint8), np.ones(shape[stored]), E5M2, axis=axis)
    assert x.axis == stored


def test_is_frozen_and_compared_by_identity() -> None:
    x, y = (QuantizedTensor(np.uint8([1, 2]), 1.0, E4M3FN) for _ in range(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.scale = np.float32(2)  # type: ignore[misc]
    assert x != y
    assert len({x, y, x}) == 2


def test_codes_are_not_copied() -> None:
    codes = np.zeros((2, 3), np.uint8)[:, ::2]
    assert QuantizedTensor(codes, 1.0, E4M3FN).codes is codes


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (QuantizedTensor(np.zeros((4, 6), np.uint8), 1.0, E4M3FN), 24 + 4),
        (QuantizedTensor(np.zeros((4, 6), np.uint8), np.ones(6), E4M3FN, axis=1), 24 + 24),
        (QuantizedTensor(np.zeros((4, 6), np.uint8), np.ones((4, 2)), E5M2, 1, block=5), 24 + 32),
        (
            QuantizedTensor(np.zeros((4, 6), np.uint8), np.ones(4), UINT8, 0, np.zeros(4, "u1")),
            24 + 16 + 4,
        ),
        (QuantizedTensor(np.zeros((0, 6), np.int8), 1.0, INT8), 4),
        (QuantizedTensor(np.uint8(7), 1.0, E4M3FN), 1 + 4),
    ],
)
def test_nbytes(tensor: QuantizedTensor, expected: int) -> None:
    assert tensor.nbytes == expected


# What is refused

BYTES = np.zeros((3, 5), np.uint8)
INTS = np.zeros((3, 5), np.int8)

BAD_TENSORS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: QuantizedTensor(INTS, 1.0, E4M3FN),
        TypeError,
        "E4M3FN codes: expected uint8, found int8",
    ),
    (
        lambda: QuantizedTensor(BYTES, 1.0, INT8),
        TypeError,
        "INT8 codes: expected int8, found uint8",
    ),
    (
        lambda: QuantizedTensor(np.zeros(3, np.float32), 1.0, UINT8),
        TypeError,
        "UINT8 codes: expected uint8, found float32",
    ),
    (
        lambda: QuantizedTensor(np.uint8([3, 16]), 1.0, E2M1),
        ValueError,
        r"E2M1 codes: expected 0\.\.15, found 16",
    ),
    (
        lambda: QuantizedTensor(BYTES, [1.0], E5M2),
        ValueError,
        r"scale: expected shape \(\) .* \(3, 5\).*, found \(1,\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones(3), E5M2, axis=1),
        ValueError,
        r"scale: expected shape \(5,\) .* axis 1 .*, found \(3,\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, 1.0, E5M2, axis=0),
        ValueError,
        r"scale: expected shape \(3,\) .*, found \(\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones((3, 1)), E5M2, axis=0),
        ValueError,
        r"scale: expected shape \(3,\) .*, found \(3, 1\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones((3, 2)), E5M2, axis=1, block=2),
        ValueError,
        r"scale: expected shape \(3, 3\) .* block 2, found \(3, 2\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones(3), E5M2, axis=1, block=2),
        ValueError,
        r"scale: expected shape \(3, 3\) .*, found \(3,\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones(3), E5M2, axis=2),
        ValueError,
        "axis: expected one of 2 axes, found 2",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones(3), E5M2, axis=-3),
        ValueError,
        "axis: expected one of 2 axes, found -3",
    ),
    (
        lambda: QuantizedTensor(np.uint8(3), 1.0, E5M2, axis=0),
        ValueError,
        "axis: expected one of 0 axes, found 0",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones((3, 5)), E5M2, axis=1, block=0),
        ValueError,
        "block: expected at least 1, with an axis; found 0, axis 1",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones((3, 5)), E5M2, axis=1, block=-1),
        ValueError,
        "block: expected at least 1, with an axis; found -1, axis 1",
    ),
    (
        lambda: QuantizedTensor(BYTES, 1.0, E5M2, block=4),
        ValueError,
        "block: expected at least 1, with an axis; found 4, axis None",
    ),
    (
        lambda: QuantizedTensor(BYTES, 1.0, E4M3FN, zero_point=np.uint8(0)),
        ValueError,
        "zero_point: expected None for E4M3FN",
    ),
    (
        lambda: QuantizedTensor(BYTES, 1.0, UINT8, zero_point=np.int8(3)),
        ValueError,
        r"zero_point: expected uint8 of shape \(\), found int8 of shape \(\)",
    ),
    (
        lambda: QuantizedTensor(BYTES, np.ones(5), UINT8, axis=1, zero_point=np.uint8(3)),
        ValueError,
        r"zero_point: expected uint8 of shape \(5,\), found uint8 of shape \(\)",
    ),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD_TENSORS)
def test_refused_tensors(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (-1.0, "-1.0"),
        (np.nan, "nan"),
        (np.inf, "inf"),
        (-np.inf, "-inf"),
        (np.float32(2.0**-127), "5.877471"),
        (np.nextafter(MIN_NORMAL, np.float32(0)), "1.175494"),
        (1e-60, "1e-60"),  # a float64 that underflows
        (1e60, r"1e\+60"),  # and one that overflows
    ],
)
@pytest.mark.parametrize("fmt", [E4M3FN, INT8], ids=str)
def test_refused_scales(scale: float, found: str, fmt: Format) -> None:
    message = f"scale: expected positive, finite, normal float32, found {found}"
    with pytest.raises(ValueError, match=message):
        QuantizedTensor(np.zeros(3, fmt.code_dtype), scale, fmt)
    with pytest.raises(ValueError, match=message):
        QuantizedTensor(np.zeros(3, fmt.code_dtype), [1.0, scale, 2.0], fmt, axis=0)
    with pytest.raises(ValueError, match=message):
        quantize(np.zeros(3), fmt, scale=scale)


@pytest.mark.parametrize("scale", [MIN_NORMAL, np.finfo(np.float32).max, 1, np.float64(0.1)])
def test_accepted_scales(scale: float) -> None:
    x = QuantizedTensor(np.uint8([0x38]), scale, E4M3FN)
    assert_same_bits(x.dequantize(), np.float32([scale]))


# Swapping the last two axes


@pytest.mark.parametrize(
    ("axis", "block", "swapped"),
    [
        (None, None, None),
        (0, None, 0),
        (1, None, 2),
        (2, None, 1),
        (0, 2, 0),
        (1, 2, 2),
        (2, 2, 1),
    ],
)
def test_mt_swaps_values_and_scales(axis: int | None, block: int | None, swapped: int) -> None:
    rng = np.random.default_rng(0)
    shape = (3, 4, 5)
    scale_shape: tuple[int, ...] = ()
    if axis is not None:
        blocks = -(-shape[axis] // (block or 1))
        scale_shape = (*shape[:axis], blocks, *shape[axis + 1 :]) if block else (blocks,)
    codes = rng.integers(0, 256, shape, np.uint8)
    zero_point = rng.integers(0, 256, scale_shape, np.uint8)
    x = QuantizedTensor(codes, rng.uniform(1, 2, scale_shape), UINT8, axis, zero_point, block)
    y = x.mT
    assert (y.axis, y.block, y.shape) == (swapped, block, (3, 5, 4))
    assert np.shares_memory(y.codes, codes)
    assert np.shares_memory(y.scale, x.scale)
    assert_same_bits(y.dequantize(), x.dequantize().swapaxes(1, 2))
    assert_same_bits(y.mT.dequantize(), x.dequantize())


@pytest.mark.parametrize("shape", [(), (3,)])
def test_mt_wants_two_axes(shape: tuple[int, ...]) -> None:
    x = QuantizedTensor(np.zeros(shape, np.uint8), 1.0, E4M3FN)
    with pytest.raises(ValueError, match=r"mT: expected at least 2 axes, found shape \(3?,?\)"):
        _ = x.mT


# What the codes mean


@every_format
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_code_values_of_every_code(fmt: Format, dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8).view(fmt.code_dtype)
    found = QuantizedTensor(codes, 3.0, fmt).code_values(dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.array(code_values(fmt.name), dtype))


@pytest.mark.parametrize("fmt", [INT8, UINT8], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_code_values_take_the_zero_point_off(fmt: Format, dtype: str) -> None:
    codes = np.arange(256, dtype=np.uint8).view(fmt.code_dtype)
    table = np.tile(codes[:, None], 256)
    x = QuantizedTensor(table, np.ones(256), fmt, axis=1, zero_point=codes)
    wide = codes.astype(np.int64)
    np.testing.assert_array_equal(x.code_values(dtype), wide[:, None] - wide)


def test_zero_points_of_blocks() -> None:
    x = QuantizedTensor(
        np.uint8([[1, 2, 3, 4, 5]]),
        np.float32([[1, 10, 100]]),
        UINT8,
        axis=1,
        zero_point=np.uint8([[0, 5, 2]]),
        block=2,
    )
    np.testing.assert_array_equal(x.code_values(), [[1, 2, -2, -1, 3]])
    np.testing.assert_array_equal(x.dequantize(), [[1, 2, -20, -10, 300]])


@every_format
@given(scale=st.floats(float(MIN_NORMAL), float(np.finfo(np.float32).max), width=32))
def test_dequantize_rounds_once(fmt: Format, scale: float) -> None:
    """Every code by any scale: exact product, rounded to float32, infinity if it must be."""
    codes = np.uint8(finite_codes(fmt.name))
    found = QuantizedTensor(codes.view(fmt.code_dtype), scale, fmt).dequantize()
    signs = decode(codes.view(fmt.code_dtype), fmt)  # a Fraction has no -0
    values = [code_values(fmt.name)[code] for code in codes]
    expected = [multiply32(float(v), scale) if v else s for v, s in zip(values, signs, strict=True)]
    assert_same_bits(found, np.float32(expected))


def test_dequantize_specials() -> None:
    x = QuantizedTensor(np.uint8([0x7C, 0xFC, 0x7E, 0x80]), 2.0, E5M2)
    assert_same_bits(x.dequantize()[[0, 1, 3]], np.float32([np.inf, -np.inf, -0.0]))
    assert np.isnan(x.dequantize()[2])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("block", [None, 1, 2, 3, 4, 100])
def test_each_element_has_its_scale(axis: int, block: int | None) -> None:
    shape = (3, 4, 5)
    grid = list(shape)
    if block:
        grid[axis] = -(-shape[axis] // block)
    scale = np.arange(1, 1 + np.prod(grid if block else shape[axis]), dtype=np.float32)
    scale = scale.reshape(grid if block else shape[axis])
    found = QuantizedTensor(np.full(shape, 0x38, np.uint8), scale, E4M3FN, axis, block=block)
    for index in np.ndindex(shape):
        at = list(index)
        at[axis] //= block or 1
        expected = scale[tuple(at)] if block else scale[index[axis]]
        assert found.dequantize()[index] == expected


# Scales from the largest magnitude


@every_format
def test_scale_maps_absmax_to_the_largest_value(fmt: Format) -> None:
    assert float(absmax_scale(LARGEST[fmt.name] * 2.0, fmt)) == 2.0
    assert float(absmax_scale(LARGEST[fmt.name] * 0.125, fmt)) == 0.125


@every_format
@given(absmax=st.floats(0, width=32, allow_infinity=False, exclude_min=True))
def test_scale_is_one_rounded_division(fmt: Format, absmax: float) -> None:
    exact = Fraction(absmax) / LARGEST[fmt.name]
    expected = max(nearest(exact, FLOAT32), float(MIN_NORMAL))
    assert_same_bits(absmax_scale(absmax, fmt), np.array(expected, np.float32))


@every_format
def test_scale_of_nothing_is_one(fmt: Format) -> None:
    found = absmax_scale(np.float32([[0.0, -0.0], [1.0, 0.0]]), fmt)
    assert_same_bits(found[0], np.float32([1, 1]))
    assert found[1, 0] != 1
    for empty in (np.zeros((0,)), np.zeros((2, 0))):
        assert_same_bits(quantize(empty, fmt).scale, np.array(1, np.float32))


@every_format
def test_scale_is_never_subnormal(fmt: Format) -> None:
    edge = np.float32(LARGEST[fmt.name]) * MIN_NORMAL
    assert_same_bits(absmax_scale(edge, fmt), np.array(MIN_NORMAL))
    assert absmax_scale(edge * 2, fmt) > MIN_NORMAL
    for absmax in (np.nextafter(edge, np.float32(0)), MIN_NORMAL, np.float32(2.0**-149)):
        assert_same_bits(absmax_scale(absmax, fmt), np.array(MIN_NORMAL))


@every_format
@pytest.mark.parametrize("bad", [-1.0, -(2.0**-149), np.nan, np.inf, -np.inf])
def test_refused_absmax(fmt: Format, bad: float) -> None:
    with pytest.raises(ValueError, match=f"absmax: expected finite and not negative, found {bad}"):
        absmax_scale(np.float32([1, bad]), fmt)


def test_absmax_beyond_float32() -> None:
    with pytest.raises(ValueError, match="absmax: expected finite and not negative, found inf"):
        absmax_scale(1e60, E4M3FN)


# Quantizing


@every_format
@given(
    x=hnp.arrays(
        np.float32, 8, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    ),
    scale=st.floats(float(MIN_NORMAL), float(np.finfo(np.float32).max), width=32),
)
def test_codes_are_those_of_the_float32_quotient(fmt: Format, x: np.ndarray, scale: float) -> None:
    found = quantize(x, fmt, scale=scale)
    assert_same_bits(found.codes, quantized_by_hand(x, np.full(x.shape, scale), fmt))


@every_format
@given(
    scale=scales, steps=st.lists(st.integers(-3, 3), min_size=8, max_size=8), seed=st.integers(0)
)
def test_codes_around_midpoints(fmt: Format, scale: float, steps: list[int], seed: int) -> None:
    """Here a product with the reciprocal, or a float64 quotient, rounds to the wrong side."""
    values = sorted(v for v in code_values(fmt.name) if isinstance(v, Fraction))
    rng = np.random.default_rng(seed)
    lower = rng.integers(0, len(values) - 1, len(steps))
    middle = [float(values[i] + values[i + 1]) / 2 * scale for i in lower]
    x = np.float32(middle).view(np.int32)
    x = (x + np.int32(steps)).view(np.float32)
    x[~np.isfinite(x)] = 1
    found = quantize(x, fmt, scale=scale)
    assert_same_bits(found.codes, quantized_by_hand(x, np.full(x.shape, scale), fmt))


def test_the_quotient_is_rounded_to_float32() -> None:
    """Two cases in which an exact quotient, or a reciprocal, gives another code."""
    rng = np.random.default_rng(1)
    scale = np.float32(rng.uniform(1, 2, 20000))
    x = np.float32(scale.astype(np.float64) * 1.0625)  # around the midpoint of 1 and 1.125
    codes = quantize(x, E4M3FN, scale=scale, axis=0).codes
    assert_same_bits(codes, encode(np.divide(x, scale, dtype=np.float32), E4M3FN))
    with_float64 = encode(x / scale.astype(np.float64), E4M3FN)
    with_reciprocal = encode(x * (np.float32(1) / scale), E4M3FN)
    assert (codes != with_float64).sum() > 100
    assert (codes != with_reciprocal).sum() > 100
    some = slice(0, 500)
    assert_same_bits(codes[some], quantized_by_hand(x[some], scale[some], E4M3FN))


@pytest.mark.parametrize(
    ("fmt", "peer"), [(E4M3FN, "float8_e4m3fn"), (E5M2, "float8_e5m2")], ids=["E4M3FN", "E5M2"]
)
def test_codes_equal_those_of_ml_dtypes(ml_dtypes: ModuleType, fmt: Format, peer: str) -> None:
    rng = np.random.default_rng(2)
    scale = np.float32(0.0371)
    x = np.ldexp(rng.uniform(-1, 1, 200_000), rng.integers(-30, 20, 200_000)).astype(np.float32)
    quotient = np.clip(x / scale, -np.float32(fmt.max), np.float32(fmt.max))
    expected = quotient.astype(getattr(ml_dtypes, peer)).view(np.uint8)
    assert_same_bits(quantize(x, fmt, scale=scale).codes, expected)


@pytest.mark.parametrize(
    ("fmt", "relative", "absolute"),
    [
        (E4M3FN, Fraction(1, 2**4), Fraction(1, 2**10)),
        (E5M2, Fraction(1, 2**3), Fraction(1, 2**17)),
        (INT8, Fraction(0), Fraction(1, 2)),
    ],
    ids=["E4M3FN", "E5M2", "INT8"],
)
@given(x=hnp.arrays(np.float32, 12, elements=moderate), per_tensor=st.booleans())
def test_error_of_a_round_trip(
    fmt: Format, relative: Fraction, absolute: Fraction, x: np.ndarray, per_tensor: bool
) -> None:
    """At most half a step: half the last mantissa bit, or half a subnormal, of the code."""
    x = x.reshape(3, 4)
    q = quantize(x, fmt) if per_tensor else quantize(x, fmt, axis=0)
    spread = np.broadcast_to(q.scale.reshape(-1, 1), x.shape)
    for found, given_x, scale in zip(q.dequantize().flat, x.flat, spread.flat, strict=True):
        exact = Fraction(float(given_x))
        half_step = max(relative * abs(exact), absolute * Fraction(float(scale)))
        # The quotient and the product are float32: each adds half a unit in its last place.
        slack = abs(exact) * Fraction(1, 2**22) + Fraction(1, 2**149)
        assert abs(Fraction(float(found)) - exact) <= half_step + slack


@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
@every_format
def test_negative_axis(fmt: Format, axis: int) -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 4))
    found, expected = quantize(x, fmt, axis=axis), quantize(x, fmt, axis=axis % 3)
    assert found.axis == axis % 3
    assert_same_bits(found.codes, expected.codes)
    assert_same_bits(found.scale, expected.scale)


@every_format
@given(array=arrays_with_axis(), given_scale=st.booleans())
def test_per_axis_is_each_slice_by_itself(
    fmt: Format, array: tuple[np.ndarray, int], given_scale: bool
) -> None:
    x, axis = array
    scale = np.arange(1, x.shape[axis] + 1, dtype=np.float32) if given_scale else None
    q = quantize(x, fmt, scale=scale, axis=axis)
    assert (q.axis, q.block, q.shape) == (axis % x.ndim, None, x.shape)
    for i in range(x.shape[axis]):
        alone = quantize(x.take(i, axis), fmt, scale=None if scale is None else scale[i])
        assert_same_bits(q.codes.take(i, axis), alone.codes)
        assert_same_bits(q.scale[i : i + 1].reshape(()), alone.scale)


@every_format
@given(array=arrays_with_axis(), block=st.integers(1, 6))
def test_per_block_is_each_run_by_itself(
    fmt: Format, array: tuple[np.ndarray, int], block: int
) -> None:
    x, axis = array
    q = quantize(x, fmt, axis=axis, block=block)
    assert (q.axis, q.block) == (axis % x.ndim, block)
    rows, codes, scale = (np.moveaxis(y, axis, -1) for y in (x, q.codes, q.scale))
    values = np.moveaxis(q.dequantize(), axis, -1)
    for index in np.ndindex(rows.shape[:-1]):
        for i, start in enumerate(range(0, rows.shape[-1], block)):
            run = (*index, slice(start, start + block))
            alone = quantize(rows[run], fmt)
            assert_same_bits(codes[run], alone.codes)
            assert_same_bits(np.array(scale[(*index, i)]), alone.scale)
            assert_same_bits(values[run], alone.dequantize())


def test_scale_is_set_by_the_largest_magnitude_of_either_sign() -> None:
    x = np.float32([[1, -254], [127, 2], [0, 0]])
    assert float(quantize(x, INT8).scale) == 2.0
    np.testing.assert_array_equal(quantize(x, INT8, axis=0).scale, [2, 1, 1])
    np.testing.assert_array_equal(quantize(x, INT8, axis=1).scale, [1, 2])
    np.testing.assert_array_equal(quantize(x, INT8, axis=1).codes, [[1, -127], [127, 1], [0, 0]])
    np.testing.assert_array_equal(quantize(x, INT8, axis=0, block=2).scale, [[1, 2], [1, 1]])


def test_ties_go_to_even_and_beyond_the_range_it_saturates() -> None:
    x = np.float32([0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9])
    np.testing.assert_array_equal(
        quantize(x, INT8, scale=1.0).codes, np.int8([0, 2, 2, 0, -2, 127, -127])
    )
    np.testing.assert_array_equal(
        quantize(x, UINT8, scale=1.0).codes, np.uint8([0, 2, 2, 0, 0, 255, 0])
    )
    np.testing.assert_array_equal(
        quantize(x[-2:], E4M3FN, scale=1.0).dequantize(), np.float32([448, -448])
    )


@every_format
def test_a_quotient_beyond_float32_saturates(fmt: Format) -> None:
    x = np.float32([3e38, -3e38])
    codes = quantize(x, fmt, scale=MIN_NORMAL).codes
    assert_same_bits(codes, encode(np.float32([1e9, -1e9]), fmt))


@every_format
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, None), (1, 2)])
def test_specials_without_a_scale_are_refused(
    fmt: Format, bad: float, axis: int | None, block: int | None
) -> None:
    x = np.ones((2, 3), np.float32)
    x[1, 1] = bad
    with pytest.raises(ValueError, match=r"^x: expected finite .*, found -?(nan|inf)"):
        quantize(x, fmt, axis=axis, block=block)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_specials_with_a_scale(fmt: Format) -> None:
    top = encode(fmt.max, fmt)
    x = np.float32([np.nan, -np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(
        quantize(x, fmt, scale=0.25).codes, np.uint8([0x7F, 0x7F, top, top | 0x80])
    )


@pytest.mark.parametrize("fmt", [INT8, UINT8], ids=str)
def test_specials_with_a_scale_in_integers(fmt: Format) -> None:
    x = np.float32([np.inf, -np.inf])
    low = -127 if fmt is INT8 else 0
    np.testing.assert_array_equal(quantize(x, fmt, scale=0.25).codes, [LARGEST[fmt.name], low])
    with pytest.raises(ValueError, match=f"found NaN, and {fmt} has no code"):
        quantize(np.float32([1, np.nan]), fmt, scale=0.25)


@every_format
def test_without_axes(fmt: Format) -> None:
    q = quantize(np.float32(3), fmt)
    assert q.shape == q.scale.shape == ()
    for value in (q.codes, q.code_values(), q.dequantize()):
        assert isinstance(value, np.ndarray)
        assert value.shape == ()
    assert float(q.code_values()) == LARGEST[fmt.name]
    assert float(q.dequantize()) == pytest.approx(3, rel=1e-6)
    assert float(quantize(3.0, fmt, scale=1.5).dequantize()) == 3


@every_format
@pytest.mark.parametrize(
    ("shape", "axis", "block", "scale_shape"),
    [
        ((0,), None, None, ()),
        ((0,), 0, None, (0,)),
        ((0,), 0, 4, (0,)),
        ((2, 0), 0, None, (2,)),
        ((2, 0), 1, None, (0,)),
        ((2, 0), 1, 4, (2, 0)),
        ((2, 0), 0, 4, (1, 0)),
        ((0, 5), 1, 2, (0, 3)),
        ((3, 0, 5), 2, 2, (3, 0, 3)),
    ],
)
def test_empty_arrays(
    fmt: Format,
    shape: tuple[int, ...],
    axis: int | None,
    block: int | None,
    scale_shape: tuple[int, ...],
) -> None:
    q = quantize(np.zeros(shape, np.float32), fmt, axis=axis, block=block)
    assert q.codes.dtype == fmt.code_dtype
    assert q.scale.shape == scale_shape
    assert (q.scale == 1).all()
    assert_same_bits(q.dequantize(), np.zeros(shape, np.float32))
    again = quantize(np.zeros(shape), fmt, scale=np.ones(scale_shape), axis=axis, block=block)
    assert again.shape == shape


def test_a_block_far_longer_than_the_axis() -> None:
    x = np.float32([[1, 2, 3]])
    q = quantize(x, INT8, axis=1, block=1 << 40)
    assert q.scale.shape == (1, 1)
    assert_same_bits(q.codes, quantize(x, INT8).codes)
    assert_same_bits(q.dequantize(), quantize(x, INT8).dequantize())


@every_format
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, None), (1, 3)])
def test_strided_input(fmt: Format, axis: int | None, block: int | None) -> None:
    whole = np.random.default_rng(4).normal(size=(8, 14)).astype(np.float32)
    whole.flags.writeable = False
    for x in (whole.T, whole[::-2, ::3], np.broadcast_to(whole[0], (4, 14))):
        found = quantize(x, fmt, axis=axis, block=block)
        expected = quantize(x.copy(order="C"), fmt, axis=axis, block=block)
        assert_same_bits(found.codes, expected.codes)
        assert_same_bits(found.scale, expected.scale)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "longdouble", "int8", "uint16", "int64", ">f4", ">f8"],
)
def test_input_dtypes(dtype: str) -> None:
    x = np.array([[0, 1, 2], [3, 100, 120]], dtype)
    for fmt in FORMATS:
        found = quantize(x, fmt, axis=0)
        assert_same_bits(found.codes, quantize(x.astype(np.float32), fmt, axis=0).codes)
        assert_same_bits(found.scale, quantize(x.astype(np.float32), fmt, axis=0).scale)


def test_bfloat16_input(ml_dtypes: ModuleType) -> None:
    x = np.array([0.1, 3.0, -7.0], ml_dtypes.bfloat16)
    for fmt in FORMATS:
        assert_same_bits(quantize(x, fmt).codes, quantize(x.astype(np.float32), fmt).codes)


def test_float64_is_rounded_to_float32_first() -> None:
    x = 1.0625 + 2.0**-40  # above the midpoint of 1 and 1.125, but on it in float32
    assert encode(x, E4M3FN) == 0x39
    assert quantize(x, E4M3FN, scale=1.0).codes == 0x38
    assert quantize([1e60, -1e60], E4M3FN, scale=1.0).codes.tolist() == [0x7E, 0xFE]
    with pytest.raises(ValueError, match=r"^x: expected finite"):
        quantize([1e60], E4M3FN)


@pytest.mark.parametrize("x", [[True], [1j], ["1"], [None], np.zeros(2, "M8[s]")])
def test_input_that_is_no_number(x: Any) -> None:
    found = re.escape(str(np.asarray(x).dtype))
    with pytest.raises(TypeError, match=f"x: expected real numbers, found {found}"):
        quantize(x, E4M3FN)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": [1.0, 1.0]}, r"scale: expected shape \(\), found \(2,\)"),
        ({"scale": 1.0, "axis": 0}, r"scale: expected shape \(2,\), found \(\)"),
        ({"scale": [1.0] * 3, "axis": 0}, r"scale: expected shape \(2,\), found \(3,\)"),
        ({"scale": [1.0] * 2, "axis": 0, "block": 2}, r"expected shape \(1, 3\), found \(2,\)"),
        ({"axis": 2}, "axis: expected one of 2 axes, found 2"),
        ({"axis": -3}, "axis: expected one of 2 axes, found -3"),
        ({"block": 2}, "block: expected at least 1, with an axis; found 2, axis None"),
        ({"axis": 0, "block": 0}, "block: expected at least 1, with an axis; found 0, axis 0"),
    ],
)
@every_format
def test_refused_arguments(fmt: Format, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(np.ones((2, 3)), fmt, **kwargs)


def test_input_is_left_alone_and_not_shared() -> None:
    x = np.float32([[1, -2], [3, 4]])
    kept = x.copy()
    scale = np.float32([1, 2])
    q = quantize(x, E4M3FN, scale=scale, axis=1)
    q.dequantize()
    assert_same_bits(x, kept)
    assert_same_bits(scale, np.float32([1, 2]))
    values = q.code_values()
    values[:] = 9
    q.dequantize()[:] = 9
    assert_same_bits(q.dequantize(), kept)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, INT8], ids=str)
def test_negating_the_input_negates_the_values(fmt: Format) -> None:
    x = np.random.default_rng(5).normal(size=1000).astype(np.float32)
    plus, minus = quantize(x, fmt).dequantize(), quantize(-x, fmt).dequantize()
    np.testing.assert_array_equal(plus, -minus)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)
def test_zeros_keep_their_sign(fmt: Format) -> None:
    found = quantize(np.float32([0.0, -0.0, 1e-45, -1e-45]), fmt, scale=1.0)
    assert_same_bits(found.codes, np.uint8([0, 0x80, 0, 0x80]))
    np.testing.assert_array_equal(np.signbit(found.dequantize()), [False, True, False, True])


@every_format
def test_no_floating_point_exception_reaches_the_caller(fmt: Format) -> None:
    x = np.float64([1e-300, 1e-42, 1e38])
    with np.errstate(all="raise"):
        quantize(x, fmt, scale=2.0**-100).dequantize()
        quantize(x, fmt, scale=2.0**100).dequantize()
        quantize(x[:2], fmt).dequantize()
        QuantizedTensor(np.full(2, 100, fmt.code_dtype), 3e38, fmt).dequantize()
    overflowed = QuantizedTensor(np.full(2, 100, fmt.code_dtype), 3e38, fmt).dequantize()
    assert_same_bits(overflowed, np.float32([np.inf, np.inf]))


# Quantizing bfloat16 values by a table


EVERY_BFLOAT16 = from_bits(np.arange(1 << 16, dtype=np.uint16))
EXTREME_SCALES = [
    1.0,
    0.0371,
    2.0**-126,
    1e-38 * 1.5,
    3.0,
    2.0**100,
    float(np.finfo(np.float32).max),
]

every_table = pytest.mark.parametrize("fmt", [*FORMATS, E2M1, E3M2, E8M0FNU, E4M3FNUZ], ids=str)


def have_codes(fmt: Format) -> np.ndarray:
    """Every bfloat16 value, without NaN if the format has none."""
    nan = np.isnan(decode(np.arange(fmt.values.size, dtype=np.uint8).view(fmt.code_dtype), fmt))
    return EVERY_BFLOAT16 if nan.any() else EVERY_BFLOAT16[~np.isnan(EVERY_BFLOAT16)]


def assert_same_tensors(found: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert_same_bits(found.codes, expected.codes)
    assert_same_bits(found.scale, expected.scale)
    for name in ("fmt", "axis", "zero_point", "block"):
        assert getattr(found, name) == getattr(expected, name)


@every_table
@pytest.mark.parametrize("scale", EXTREME_SCALES)
def test_the_table_gives_the_codes_of_quantize(fmt: Format, scale: float) -> None:
    x = have_codes(fmt)
    assert len(x) >= 65536 - 254
    kept = x.copy()
    found = quantize_bfloat16(x, fmt, scale)
    assert_same_tensors(found, quantize(x, fmt, scale))
    assert_same_bits(x, kept)


@every_table
@given(scale=st.floats(float(MIN_NORMAL), float(np.finfo(np.float32).max), width=32))
def test_the_table_is_that_of_its_scale(fmt: Format, scale: float) -> None:
    x = have_codes(fmt)[::97]
    assert_same_tensors(quantize_bfloat16(x, fmt, scale), quantize(x, fmt, scale))


@every_table
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3, 4)])
def test_shapes_and_layouts_of_tables(fmt: Format, shape: tuple[int, ...]) -> None:
    x = np.resize(np.float32([1, -2, 0.5, 96]), shape)
    assert_same_tensors(quantize_bfloat16(x, fmt, 0.5), quantize(x, fmt, 0.5))
    assert_same_tensors(quantize_bfloat16(x.T, fmt, 0.5), quantize(x.T, fmt, 0.5))
    scale = np.array(0.5, np.float32)
    assert_same_tensors(quantize_bfloat16(x, fmt, scale), quantize(x, fmt, scale))


def test_a_table_cannot_be_changed_through_its_results() -> None:
    x = np.float32([1, 2])
    quantize_bfloat16(x, E4M3FN, 1.0).codes[:] = 0
    assert_same_bits(quantize_bfloat16(x, E4M3FN, 1.0).codes, quantize(x, E4M3FN, 1.0).codes)


def test_lower_bits_are_not_looked_at() -> None:
    x = np.float32([1 + 2.0**-4 + 2.0**-20])  # above a midpoint of E4M3FN only by these
    assert quantize(x, E4M3FN, 1.0).codes == 0x39
    assert quantize_bfloat16(x, E4M3FN, 1.0).codes == 0x38


@pytest.mark.parametrize("fmt", [INT8, UINT8, E2M1], ids=str)
@pytest.mark.parametrize("bits", [0x7FC0, 0xFFC0, 0x7F81, 0xFFFF])
def test_nan_without_a_code_is_refused(fmt: Format, bits: int) -> None:
    x = np.concatenate([np.ones(9, np.float32), EVERY_BFLOAT16[[bits]]])
    message = f"found NaN, and {fmt} has no code"
    with pytest.raises(ValueError, match=message):
        quantize_bfloat16(x, fmt, 0.25)
    with pytest.raises(ValueError, match=message):
        quantize(x, fmt, 0.25)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        ([1.0], "list"),
        (np.float64([1]), "float64"),
        (np.uint16([1]), "uint16"),
        (np.float32(1), "float32"),
        (np.ones(1, ">f4"), ">f4"),
    ],
)
def test_tables_want_arrays_of_float32(x: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"x: expected an array of float32, found {found}"):
        quantize_bfloat16(x, E4M3FN, 1.0)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf, 1e-40, 1e60])
def test_tables_want_a_scale_that_is_one(scale: float) -> None:
    message = "scale: expected positive, finite, normal float32, found"
    with pytest.raises(ValueError, match=message):
        quantize_bfloat16(np.float32([1]), E4M3FN, scale)


@pytest.mark.parametrize("shape", [(1,), (2,), (1, 1)])
def test_tables_want_one_scale(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"scale: expected one number, found shape \("):
        quantize_bfloat16(np.ones(2, np.float32), E4M3FN, np.ones(shape, np.float32))


def test_no_floating_point_exception_reaches_the_caller_of_a_table() -> None:
    with np.errstate(all="raise"):
        for fmt in (E4M3FN, E5M2):
            quantize_bfloat16(EVERY_BFLOAT16, fmt, 2.0**-126 * 1.25)
            quantize_bfloat16(EVERY_BFLOAT16, fmt, 2.0**126 * 1.25)


# Scales with zero points

INTEGERS = [INT8, UINT8]
every_integer = pytest.mark.parametrize("fmt", INTEGERS, ids=str)
CODES = {"INT8": (-127, 127), "UINT8": (0, 255)}
FLOAT32_MAX = float(np.finfo(np.float32).max)


def affine_by_hand(low: float, high: float, name: str) -> tuple[float, int]:
    """In exact fractions, rounded where the definition says."""
    least, largest = CODES[name]
    width = Fraction(high) - Fraction(low)
    if not width:
        return 1.0, least
    # The width is taken in float64, so that it may be rounded there before it is to float32.
    exact = np.float64(high) - np.float64(low)
    scale = max(float(np.float32(exact / (largest - least))), 2.0**-126)
    quotient = nearest(Fraction(low) / Fraction(scale), FLOAT32)
    return scale, min(max(least - round(Fraction(quotient)), least), largest)


below, above = (
    st.just(0.0) | st.floats(*ends, width=32) for ends in ((-FLOAT32_MAX, 0), (0, FLOAT32_MAX))
)


@every_integer
@given(low=below, high=above)
@example(-1.0, 4.125)
@example(-FLOAT32_MAX, FLOAT32_MAX)
@example(-(2.0**-149), 0.0)
@example(-(2.0**-140), 2.0**-149)
def test_affine_scale(fmt: Format, low: float, high: float) -> None:
    scale, zero_point = affine_scale(low, high, fmt)
    assert scale.dtype == np.float32
    assert zero_point.dtype == fmt.code_dtype
    assert scale.shape == zero_point.shape == ()
    assert (float(scale), int(zero_point)) == affine_by_hand(low, high, fmt.name)


@every_integer
@given(low=st.floats(-(2.0**60), 0, width=32), high=st.floats(0, 2.0**60, width=32))
def test_ends_of_an_affine_range(fmt: Format, low: float, high: float) -> None:
    """Zero is exact; the ends are within a scale and a half: both roundings, and no more."""
    scale, zero_point = affine_scale(low, high, fmt)
    x = np.float32([low, 0, high])
    q = quantize(x, fmt, scale, zero_point=zero_point)
    assert q.codes[1] == zero_point
    least, largest = CODES[fmt.name]
    if high - low > 300 * 2.0**-126:
        assert q.codes[0] <= least + 1
        assert q.codes[2] >= largest - 1
    found = q.dequantize().astype(np.float64)
    assert found[1] == 0
    assert (np.abs(found - x) <= 0.5001 * float(scale)).all()


@every_integer
def test_affine_scales_of_arrays(fmt: Format) -> None:
    lows, highs = np.float32([[-1, 0, 0], [-2, -3, -1e30]]), np.float32([[1, 2, 0], [0, 1, 5]])
    scale, zero_point = affine_scale(lows, highs, fmt)
    for index in np.ndindex(lows.shape):
        one = affine_scale(lows[index], highs[index], fmt)
        assert (scale[index], zero_point[index]) == one


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.5, 1), (-2, -1), (np.nan, 1), (-1, np.nan), (-np.inf, 0), (0, np.inf), (1, -1)],
)
def test_refused_ranges(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low and high: expected a finite range, with 0, found"):
        affine_scale(low, high, UINT8)
    with pytest.raises(ValueError, match="low and high: expected a finite range, with 0, found"):
        affine_scale([-1.0, low], [1.0, high], INT8)


def shifted_by_hand(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, fmt: Format) -> np.ndarray:
    least, largest = CODES[fmt.name]
    codes = np.empty(x.shape, np.int64)
    for index in np.ndindex(x.shape):
        quotient = nearest(Fraction(float(x[index])) / Fraction(float(scale[index])), FLOAT32)
        # What lies beyond 2^24 saturates, whatever rounding the float32 sum does.
        codes[index] = min(max(round(Fraction(quotient)) + int(zero[index]), least), largest)
    return codes.astype(fmt.code_dtype)


@every_integer
@settings(max_examples=60)
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.floats(-300, 300, width=32) | moderate,
    ),
    granularity=st.sampled_from(["tensor", "axis", "block"]),
    data=st.data(),
)
def test_quantize_with_zero_points(
    fmt: Format, x: np.ndarray, granularity: str, data: st.DataObject
) -> None:
    axis = None if granularity == "tensor" else data.draw(st.integers(0, x.ndim - 1))
    block = data.draw(st.integers(1, 4)) if granularity == "block" else None
    shape: tuple[int, ...] = ()
    where: Any = (Ellipsis,)
    if axis is not None:
        index = np.indices(x.shape)
        shape, where = (x.shape[axis],), (index[axis],)
        if block is not None:
            shape = (*x.shape[:axis], -(-x.shape[axis] // block), *x.shape[axis + 1 :])
            index[axis] //= block
            where = tuple(index)
    scale = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(2.0**-10, 8, width=32)))
    least, largest = CODES[fmt.name]
    zero = data.draw(hnp.arrays(fmt.code_dtype, shape, elements=st.integers(least, largest)))
    q = quantize(x, fmt, scale, axis, block, zero)
    spread_scale, spread_zero = (np.broadcast_to(v[where], x.shape) for v in (scale, zero))
    assert_same_bits(q.codes, shifted_by_hand(x, spread_scale, spread_zero, fmt))
    assert q.zero_point is not None
    assert_same_bits(q.zero_point, zero)
    values = q.codes.astype(np.float64) - spread_zero
    expected = (values * spread_scale.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(q.dequantize(), expected)
    assert (quantize(np.zeros_like(x), fmt, scale, axis, block, zero).codes == spread_zero).all()


def test_zero_points_and_saturation() -> None:
    x = np.float32([-np.inf, -1e38, -10.5, -9.5, -0.5, 0.5, 1.5, 245, 245.5, 3e38, np.inf])
    q = quantize(x, UINT8, 1.0, zero_point=10)
    assert q.codes.tolist() == [0, 0, 0, 0, 10, 10, 12, 255, 255, 255, 255]
    q = quantize(x, INT8, 1.0, zero_point=-120)
    assert q.codes.tolist() == [-127, -127, -127, -127, -120, -120, -118, 125, 126, 127, 127]


@pytest.mark.parametrize(
    ("x", "fmt", "kwargs", "message"),
    [
        ([1.0], UINT8, {"zero_point": 3}, "zero_point: expected a scale with it"),
        ([1.0], E4M3FN, {"scale": 1.0, "zero_point": 3}, "zero_point: expected"),
        ([1.0], UINT8, {"scale": 1.0, "zero_point": [3]}, "zero_point: expected"),
        ([1.0], UINT8, {"scale": [1.0], "axis": 0, "zero_point": 3}, "zero_point: expected"),
        ([np.nan], UINT8, {"scale": 1.0, "zero_point": 3}, "encode: found NaN"),
    ],
)
def test_refused_zero_points(x: Any, fmt: Format, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(x, fmt, **kwargs)


@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
@pytest.mark.parametrize("scale", [0.0371, 2.0**-126, 3.0, 2.0**100])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_the_table_with_a_zero_point(fmt: Format, scale: float, share: float) -> None:
    least, largest = CODES[fmt.name]
    zero_point = round(least + share * (largest - least))
    x = have_codes(fmt)
    found = quantize_bfloat16(x, fmt, scale, zero_point)
    assert_same_tensors(found, quantize(x, fmt, scale, zero_point=zero_point))
    assert found.zero_point == zero_point
    other = quantize_bfloat16(x, fmt, scale, zero_point + (1 if zero_point < largest else -1))
    assert (found.codes != other.codes).any()


# Powers of two


def test_powers_of_two_stay() -> None:
    powers = np.exp2(np.arange(-126, 128)).astype(np.float32)
    assert_same_bits(power_of_two_scale(powers), powers)
    upward = np.nextafter(powers[:-1], np.float32(np.inf))
    assert_same_bits(power_of_two_scale(upward), powers[1:])
    assert_same_bits(power_of_two_scale(np.nextafter(powers[1:], np.float32(0))), powers[1:])


@given(st.floats(2.0**-126, 2.0**127, width=32))
def test_power_of_two_is_the_smallest_that_is_not_below(scale: float) -> None:
    found = power_of_two_scale(scale)
    assert (found.dtype, found.shape) == (np.float32, ())
    assert np.frexp(found)[0] == 0.5
    assert scale <= float(found) < 2 * scale


def test_largest_power_of_two() -> None:
    """Above 2^127 there is none in float32: it is 2^127, the only one that is below its scale."""
    assert power_of_two_scale([2.0**127 * 1.5, FLOAT32_MAX]).tolist() == [2.0**127] * 2


@pytest.mark.parametrize("bad", [0.0, -1.0, 1e-40, np.nan, np.inf])
def test_refused_powers_of_two(bad: float) -> None:
    with pytest.raises(ValueError, match="scale: expected positive, finite, normal"):
        power_of_two_scale([1.0, bad])


# Extrema of groups


@given(arrays_with_axis(), st.none() | st.integers(1, 6))
def test_group_extrema(case: tuple[np.ndarray, int], block: int | None) -> None:
    x, axis = case
    low, high = group_extrema(x)
    assert (low, high) == (min(x.min(), 0), max(x.max(), 0))
    low, high = group_extrema(x, axis, block)
    moved = np.moveaxis(x, axis, 0)
    if block is None:
        lows = [min(part.min(), 0) for part in moved]
        highs = [max(part.max(), 0) for part in moved]
        assert (low.tolist(), high.tolist()) == (lows, highs)
        return
    parts = [moved[start : start + block] for start in range(0, len(moved), block)]
    lows = np.moveaxis([np.minimum(part.min(axis=0), 0) for part in parts], 0, axis)
    highs = np.moveaxis([np.maximum(part.max(axis=0), 0) for part in parts], 0, axis)
    np.testing.assert_array_equal(low, lows, strict=True)
    np.testing.assert_array_equal(high, highs, strict=True)


@pytest.mark.parametrize(
    ("shape", "axis", "block", "expected"),
    [
        ((0, 3), None, None, ()),
        ((0, 3), 0, None, (0,)),
        ((0, 3), 1, None, (3,)),
        ((0, 3), 0, 2, (0, 3)),
        ((0, 3), 1, 2, (0, 2)),
    ],
)
def test_extrema_of_nothing(
    shape: tuple[int, ...], axis: int | None, block: int | None, expected: tuple[int, ...]
) -> None:
    for found in group_extrema(np.zeros(shape, np.float32), axis, block):
        assert found.shape == expected
        assert not found.any()


# Blocks as long as an axis, or longer


@pytest.mark.parametrize("block", [7, 2**31 - 1, 2**31, 2**32, 2**63, 2**100])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("fmt", [E4M3FN, UINT8], ids=str)
def test_a_block_beyond_the_axis_is_the_axis(fmt: Format, axis: int, block: int) -> None:
    """Also where the block is no number that an index of the machine can hold."""
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    length = x.shape[axis]
    for low, high in zip(
        group_extrema(x, axis, block), group_extrema(x, axis, length), strict=True
    ):
        assert np.array_equal(low, high)
    whole, beyond = (quantize(x, fmt, axis=axis, block=size) for size in (length, block))
    assert np.array_equal(whole.codes, beyond.codes)
    assert np.array_equal(whole.scale, beyond.scale)
    assert np.array_equal(whole.dequantize(), beyond.dequantize())
    assert np.array_equal(whole.mT.dequantize(), beyond.mT.dequantize())
    made = QuantizedTensor(beyond.codes, beyond.scale, fmt, axis, block=block)
    assert np.array_equal(made.dequantize(), whole.dequantize())


@pytest.mark.parametrize("block", [2**31, 2**63])
def test_a_huge_block_with_zero_points_and_of_nothing(block: int) -> None:
    x = np.float32([[-1, 2, 3]])
    zero_point = np.array([[7]], np.uint8)
    scale = np.float32([[0.5]])
    found = quantize(x, UINT8, scale, 1, block, zero_point)
    assert found.code_values().tolist() == [[-2, 4, 6]]
    nothing = quantize(np.zeros((2, 0), np.float32), E4M3FN, axis=1, block=block)
    assert nothing.dequantize().shape == (2, 0)


def test_a_scale_beyond_float32_is_refused() -> None:
    small = FloatFormat(4, 3, bias=110)
    assert small.max < 1
    with pytest.raises(ValueError, match="is beyond float32"):
        absmax_scale(np.float32(3e38), small)
    with pytest.raises(ValueError, match="is beyond float32"):
        quantize(np.float32([1, 3e38]), small)
    with pytest.raises(ValueError, match="is beyond float32"):
        affine_scale(-3e38, 3e38, IntFormat(0, 1, "uint8"))
    assert np.isfinite(affine_scale(-3e38, 3e38, UINT8)[0])


# Where scales come from


@pytest.mark.parametrize("k_axis", [-1, -2])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "token", "block"])
def test_granularities_are_axes_and_blocks(granularity: str, k_axis: int) -> None:
    """Per element, who shares its scale: by the words of the granularity."""
    shape = (2, 6, 8)
    axis, block = axis_and_block(granularity, shape, k_axis, 3)
    index = np.indices(shape)
    k, other = index[k_axis], index[-3 - k_axis]
    group = {
        "tensor": np.zeros(shape),
        "channel": other,
        "token": index[0] * 100 + other,
        "block": (index[0] * 100 + other) * 100 + k // 3,
    }[granularity]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scale, zero_point = dynamic_scale(x, E4M3FN, axis, block)
    assert zero_point is None
    found = np.broadcast_to(spread(scale, shape, axis, block), shape)
    for name in np.unique(group):
        largest = np.abs(x[group == name]).max()
        assert_same_bits(np.unique(found[group == name]), np.float32([largest]) / np.float32(448))


def test_a_scale_of_a_range() -> None:
    low, high = np.float32([-3, 0, -1]), np.float32([1, 5, 1])
    for fmt in (E4M3FN, INT8):
        scale, none = scale_of_range(low, high, fmt)
        assert none is None
        assert_same_bits(scale, absmax_scale(np.float32([3, 5, 1]), fmt))
        scale, none = scale_of_range(low, high, fmt, power_of_two=True)
        assert_same_bits(scale, power_of_two_scale(absmax_scale(np.float32([3, 5, 1]), fmt)))
        assert none is None
    found, expected = scale_of_range(low, high, UINT8), affine_scale(low, high, UINT8)
    for x, y in zip(found, expected, strict=True):
        assert x is not None
        np.testing.assert_array_equal(x, y, strict=True)


# What is checked once


def test_nothing_is_checked_again() -> None:
    """A code that cannot be, put in after the tensor was made, is not found: nothing looks."""
    codes = np.zeros((4, 6), np.uint8)
    scale = np.ones((4, 2), np.float32)
    q = QuantizedTensor(codes, scale, E2M1, axis=1, block=3)
    codes[1, 2] = 0xFF
    scale[0] = np.nan
    turned = q.mT
    assert turned.codes.base is not None
    assert turned.codes[2, 1] == 0xFF
    assert turned.scale.shape == (2, 4)
    assert (turned.axis, turned.block, turned.fmt) == (0, 3, E2M1)
    assert turned.zero_point is None
    q.code_values()
    q.dequantize()
    with pytest.raises(ValueError, match=r"E2M1 codes: expected 0\.\.15, found 255"):
        QuantizedTensor(codes, 1.0, E2M1)


def test_what_is_quantized_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes are the encoder's, the scales were checked: both are right as they are made."""
    calls: list[QuantizedTensor] = []
    monkeypatch.setattr(QuantizedTensor, "__post_init__", calls.append)
    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    made = [
        quantize(x, E2M1),
        quantize(x, E2M1, axis=-1, block=4),
        quantize(x, UINT8, [1.0] * 6, axis=-2, zero_point=[3] * 6),
        quantize_bfloat16(x, E4M3FN, 0.5),
        quantize_bfloat16(x, UINT8, 0.5, 3),
    ]
    assert not calls
    monkeypatch.undo()
    for q in made:
        checked = QuantizedTensor(q.codes, q.scale, q.fmt, q.axis, q.zero_point, q.block)
        for field in dataclasses.fields(checked):
            found, expected = getattr(q, field.name), getattr(checked, field.name)
            if isinstance(expected, np.ndarray):
                np.testing.assert_array_equal(found, expected, strict=True)
            else:
                assert type(found) is type(expected)
                assert found == expected


# Other roundings


@pytest.mark.parametrize("rounding", ["nearest_away", "toward_zero", "up", "down", "odd"])
@pytest.mark.parametrize("fmt", [E4M3FN, INT8], ids=str)
def test_quantize_rounds_as_encode(fmt, rounding):
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    x[:, :2] = [[fmt.max, 8.5 * fmt.min_subnormal]]  # a scale of 1, and a tie
    q = quantize(x, fmt, axis=0, rounding=rounding)
    expected = encode(x / q.scale[:, None], fmt, rounding=rounding)
    assert np.array_equal(q.codes, expected)
    assert not np.array_equal(q.codes, quantize(x, fmt, axis=0).codes)


def test_quantize_stochastically():
    x = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    bits = np.random.default_rng(1).integers(0, 1 << 16, x.shape, np.uint16)
    how = {"rounding": "stochastic", "random_bits": bits, "bit_count": 13}
    q = quantize(x, E4M3FN, np.float32(0.01), **how)
    assert np.array_equal(q.codes, encode(x / np.float32(0.01), E4M3FN, **how))
    how = {"rounding": "stochastic"}
    q = quantize(x, E4M3FN, np.float32(0.01), rng=np.random.default_rng(2), **how)
    expected = encode(x / np.float32(0.01), E4M3FN, rng=np.random.default_rng(2), **how)
    assert np.array_equal(q.codes, expected)


def test_roundings_that_quantize_refuses():
    x = np.float32([1, 2])
    with pytest.raises(ValueError, match="rounding: expected 'nearest' for MXFP4, whose rules st"):
        quantize(x, "MXFP4", rounding="up")
    with pytest.raises(ValueError, match=r"random_bits: expected None for MXFP4, a block format"):
        quantize(x, "MXFP4", random_bits=np.uint8([1, 2]))
    with pytest.raises(ValueError, match="rounding: expected 'nearest' with a zero point, found"):
        quantize(x, "UINT8", 1.0, zero_point=np.uint8(0), rounding="up")
    with pytest.raises(ValueError, match="rounding: expected 'nearest' with a zero point, found"):
        quantize(x, "UINT8", 1.0, zero_point=np.uint8(0), random_bits=np.uint8([1, 2]))
    with pytest.raises(ValueError, match=r"rounding: expected one of 'nearest', .* 'ceil'"):
        quantize(x, E4M3FN, rounding="ceil")

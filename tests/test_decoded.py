"""Decoded operands give the bits of products of codes, and are kept within a budget."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from factories import VOCABULARY, write_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import BFLOAT16, FLOAT32, add32, assert_same_bits, bits_of, multiply32, nearest

import bert_numpy
from bert_numpy import PRESETS, Calibration, Model, QuantizedModel, Recipe
from bert_numpy.engines.functions import ACTIVATIONS
from bert_numpy.quantization.convert import planned_model
from bert_numpy.quantization.decoded_weights import DECODED_BUDGET, DecodedWeights, decoded_nbytes
from bert_numpy.quantization.engine import QuantizedEngine, engine_of
from npfp8 import (
    ACCUMULATORS,
    E4M3FN,
    E5M2,
    INT8,
    UINT8,
    Accumulator,
    BlockFormat,
    Format,
    QuantizedTensor,
    exact_k_limit,
    matmul,
    quantize,
    quantize_bfloat16,
)
from npfp8.bfloat16 import (
    add_half,
    as_bfloat16,
    from_bits,
    round_finite,
    round_in_place,
    round_to_bfloat16,
)
from npfp8.formats import FORMATS, IntFormat
from npfp8.golden import UNARY, unary
from npfp8.products import exact as exact_module
from npfp8.products import operands as operands_module
from npfp8.products.blocks import PREPARED_BYTES
from npfp8.products.operands import (
    Decoded,
    decoded,
    decoded_bfloat16,
    decoded_product,
    product_dtype,
)

Float32Array = npt.NDArray[np.float32]
DTYPES = (np.float32, np.float64)
EXACT, BLAS = ACCUMULATORS["exact"], ACCUMULATORS["float32"]

#: Every bfloat16: the numbers from -infinity to infinity in order, and then the NaN.
_BITS = np.arange(1 << 16, dtype=np.uint16)
_EVERY = from_bits(_BITS)
NUMBERS = np.concatenate([_EVERY[0xFF80:0x7FFF:-1], _EVERY[: 0x7F80 + 1]])
NAN = _EVERY[np.isnan(_EVERY)]

#: Powers of two, numbers that are no bfloat16, and the ends of the normal numbers.
SCALES = (
    *(1.0, 2.0**-7, 2.0**9, 0.017188845, 3.3, 1 / 448),
    *(2.0**-126, 1.25 * 2.0**-126, 1.25 * 2.0**126, float(np.finfo(np.float32).max)),
)


def zero_points(fmt: Format) -> list[int | None]:
    if not isinstance(fmt, IntFormat) or fmt.fraction_bits:
        return [None]
    low, high = fmt.min_code, fmt.max_code
    return [None, low, 5, high - 1, high]


HOW = [(fmt, zero_point) for fmt in FORMATS.values() for zero_point in zero_points(fmt)]
every_format = pytest.mark.parametrize(
    ("fmt", "zero_point"), HOW, ids=[f"{fmt}-{zero_point}" for fmt, zero_point in HOW]
)


#: Formats that are tried after a function.
FOR_FUNCTIONS = [
    *((FORMATS[name], None) for name in ("E4M3FN", "E5M2", "E4M3FNUZ", "E2M1", "UE4M3", "E8M0FNU")),
    *((INT8, None), (UINT8, None), (UINT8, 30), (INT8, -100)),
]


def assert_same_operands(found: Decoded, expected: Decoded) -> None:
    """Compare operands: the same bits, but for the signs of zeros."""
    assert_same_bits(found.values + 0, expected.values + 0)
    assert_same_bits(found.scale, expected.scale)
    assert found.span == expected.span
    assert (found.specials is None) == (expected.specials is None)
    if expected.specials is not None:
        assert_same_bits(found.specials, expected.specials)


def check_decoded_bfloat16(
    x: Float32Array,
    fmt: Format,
    scale: Any,
    zero_point: int | None,
    dtype: Any,
    function: str | None = None,
) -> None:
    """Compare with codes that are made, counted and decoded."""
    y = x if function is None else unary(function, x)
    q = quantize_bfloat16(y, fmt, scale, zero_point)
    found, lost = decoded_bfloat16(x, fmt, scale, zero_point, dtype, function)
    assert_same_operands(found, decoded(q, -1, dtype))
    assert tuple(lost) == q.lost(y)
    assert all(type(count) is int for count in lost)


# From bfloat16 to the value of its code


@every_format
def test_every_bfloat16(fmt: Format, zero_point: int | None) -> None:
    """Together, by sign, and in short runs, so that no two mistakes in the counts make up."""
    arrays = [NUMBERS, *np.array_split(NUMBERS, 2), *np.array_split(NUMBERS, 15)]
    if np.isnan(fmt.values).any():
        arrays += [np.concatenate([NUMBERS, NAN]), NAN]
    for scale in SCALES:
        for x in arrays:
            check_decoded_bfloat16(x, fmt, np.float32(scale), zero_point, np.float64)
    for x in arrays[:3]:
        check_decoded_bfloat16(x, fmt, np.float32(0.7), zero_point, np.float32)


@pytest.mark.parametrize("function", UNARY)
@pytest.mark.parametrize(("fmt", "zero_point"), FOR_FUNCTIONS)
def test_every_function_of_every_bfloat16(
    fmt: Format, zero_point: int | None, function: str
) -> None:
    """Where a function of one is no number, it is so in the codes too, or the same error."""
    is_number = np.isfinite(unary(function, NUMBERS))
    arrays = [NUMBERS[is_number], *np.array_split(NUMBERS[is_number], 15)]
    if np.isnan(fmt.values).any():
        arrays += [NUMBERS, NAN]
    for scale in (0.017188845, 1.0, 2.0**-20, 1.25 * 2.0**-126, 2.0**100):
        for x in arrays:
            check_decoded_bfloat16(x, fmt, np.float32(scale), zero_point, np.float64, function)


@pytest.mark.parametrize("function", [None, *UNARY])
def test_no_codes_are_made(function: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of usual formats and numbers: the table tells everything."""
    monkeypatch.setattr(operands_module, "_by_codes", None)
    x = NUMBERS[np.isfinite(NUMBERS)]
    for fmt in (E4M3FN, E5M2, INT8, UINT8):
        for zero_point in (None, 30) if fmt is UINT8 else (None,):
            decoded_bfloat16(x, fmt, np.float32(0.017), zero_point, np.float64, function)


@every_format
def test_counts_of_each_number_near_the_ends(fmt: Format, zero_point: int | None) -> None:
    """One array per number, around the smallest and the largest that are lost."""
    for scale in (np.float32(0.017188845), np.float32(1)):
        q = quantize_bfloat16(NUMBERS, fmt, scale, zero_point)
        codes = np.flatnonzero(np.diff(q.codes.astype(np.int16)))
        for place in {int(place) for place in codes[[0, -1, len(codes) // 2 - 1, len(codes) // 2]]}:
            for number in NUMBERS[max(place - 3, 0) : place + 4]:
                for x in (np.full(1, number), np.full(3, -number)):
                    check_decoded_bfloat16(x, fmt, scale, zero_point, np.float64)


def test_counts_with_a_zero_point_of_a_signed_format() -> None:
    """Both ends of the codes are ends; the code 0 is none."""
    x = np.float32([-1000, 1000, 0.25, 0, -5.75, -6])
    operand, lost = decoded_bfloat16(x, INT8, 1.0, 5, np.float64)
    assert operand.values.tolist() == [-132, 122, 0, 0, -6, -6]
    assert lost == quantize_bfloat16(x, INT8, 1.0, 5).lost(x) == (2, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_product_depends_on_the_signs_of_zeros(dtype: Any) -> None:
    """What underflows is -0 among the values of a table, and every other zero is +0."""
    x = np.float32([[-1e-9, 1e-9], [-0.0, 0.0]])
    a, lost = decoded_bfloat16(x, E4M3FN, 1.0, None, dtype)
    assert lost == (0, 2)
    assert np.signbit(a.values).tolist() == [[True, True], [False, False]]
    b = decoded(quantize(np.float32([[1, -1], [-1, 0]]), E4M3FN, 1.0), -2, dtype)
    accumulator = ACCUMULATORS["exact" if dtype is np.float64 else "float32"]
    for bias in (None, np.float32([0.0, -0.0])):
        product = decoded_product(a, b, accumulator, bias, to_bfloat16=True)
        assert_same_bits(product, np.zeros((2, 2), np.float32))


@every_format
def test_nan_without_a_code(fmt: Format, zero_point: int | None) -> None:
    """The same error, wherever the NaN is."""
    if np.isnan(fmt.values).any():
        return
    for place in (0, 200_000):
        x = np.ones(300_000, np.float32)
        x[place] = np.nan
        with pytest.raises(ValueError, match="NaN") as expected:
            quantize_bfloat16(x, fmt, 1.0, zero_point)
        with pytest.raises(ValueError, match="NaN") as found:
            decoded_bfloat16(x, fmt, 1.0, zero_point, np.float64)
        assert str(found.value) == str(expected.value)


def hard_numbers(shape: tuple[int, ...], nan: bool = False) -> Float32Array:
    """Numbers of every magnitude, of those around 1 the most."""
    generator = np.random.default_rng(7)
    some = generator.choice(NUMBERS, shape)
    usual = round_to_bfloat16(generator.normal(0, 100, shape).astype(np.float32))
    x = np.where(generator.random(shape) < 0.2, some, usual)
    if nan:
        x.reshape(-1)[-1] = np.nan
    return x


LAYOUTS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.T,
    "strided": lambda x: x[::2, ::3, 1:],
    "backwards": lambda x: x[::-1, :, ::-1],
    "heads split": lambda x: x.reshape(*x.shape[:2], 3, -1).transpose(0, 2, 1, 3),
    "one row": lambda x: x[0, 0],
    "one column": lambda x: x[0, :, :1],
    "repeated": lambda x: np.broadcast_to(x[0, 0, 0], (3, 5)),
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "unaligned": lambda x: np.frombuffer(b"-" + x.tobytes(), np.float32, offset=1),
    "empty": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "a number": lambda x: x[0, 0, 0, ...],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("nan", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(layout: str, nan: bool, dtype: Any) -> None:
    """Of more than one chunk, too."""
    for shape in ((4, 5, 12), (8, 130, 132)):
        x = LAYOUTS[layout](hard_numbers(shape, nan))
        before = x.copy()
        for fmt in (E4M3FN, E5M2) if nan else (E4M3FN, E5M2, INT8, UINT8, FORMATS["UE4M3"]):
            check_decoded_bfloat16(x, fmt, np.float32(0.7), None, dtype)
        if not nan:
            check_decoded_bfloat16(x, UINT8, np.float32(0.7), 100, dtype)
        assert_same_bits(x, before)


@pytest.mark.parametrize(
    "x",
    [
        np.zeros(3),
        np.zeros(3, np.float32).astype(">f4"),
        np.zeros((0, 2), np.float16),
        [1.0, 2.0],
    ],
    ids=["float64", "other bytes", "float16", "list"],
)
def test_wrong_arrays(x: Any) -> None:
    with pytest.raises(TypeError, match="x: expected an array of float32"):
        decoded_bfloat16(x, E4M3FN, 1.0, None, np.float64)


@pytest.mark.parametrize(
    ("fmt", "scale", "zero_point"),
    [
        (E4M3FN, -1.0, None),
        (E4M3FN, 0.0, None),
        (E4M3FN, np.nan, None),
        (E4M3FN, 2.0**-127, None),
        (E4M3FN, 1e39, None),
        (E4M3FN, np.ones(2, np.float32), None),
        (E4M3FN, np.ones(1, np.float32), None),
        (E4M3FN, 1.0, 3),
        (INT8, 1.0, 200),
        (INT8, 1.0, 3.5),
    ],
)
def test_wrong_scales(fmt: Format, scale: Any, zero_point: Any) -> None:
    """The errors are those of quantize_bfloat16."""
    x = np.ones(3, np.float32)
    with pytest.raises((TypeError, ValueError)) as expected:
        quantize_bfloat16(x, fmt, scale, zero_point)
    with pytest.raises(type(expected.value)) as found:
        decoded_bfloat16(x, fmt, scale, zero_point, np.float64)
    assert str(found.value) == str(expected.value)


def test_a_result_is_the_callers() -> None:
    """Writing to it changes no later one."""
    x = np.float32([1, 2, 300])
    first, _ = decoded_bfloat16(x, INT8, 1.0, None, np.float64)
    expected = first.values.copy()
    first.values[:] = 7
    second, _ = decoded_bfloat16(x, INT8, 1.0, None, np.float64)
    assert_same_bits(second.values, expected)


# Decoding


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_decoded_values(name: str, dtype: Any) -> None:
    """Of every code, from the list of the format's values; the span is in steps of them all."""
    fmt = FORMATS[name]
    codes = np.arange(len(fmt.values)).astype(fmt.code_dtype)
    if isinstance(fmt, IntFormat):
        codes = np.arange(fmt.code_range[0], fmt.code_range[1] + 1).astype(fmt.code_dtype)
    q = QuantizedTensor(codes[None], 1.0, fmt)
    found = decoded(q, -1, dtype)
    values = q.dequantize().astype(np.float64)[0]
    assert found.values.dtype == dtype
    np.testing.assert_array_equal(found.values[0], np.where(np.isfinite(values), values, 0))
    if np.isfinite(values).all():
        assert found.specials is None
    else:
        assert found.specials is not None
        np.testing.assert_array_equal(found.specials[0], values.astype(dtype))
    numbers = [Fraction(x) for x in values[np.isfinite(values)].tolist() if x]
    step = min(abs(x) for x in numbers)
    assert all((x / step).denominator == 1 for x in numbers)
    assert found.span >= max(abs(x) for x in numbers) / step


def test_decoded_zero_points() -> None:
    q = QuantizedTensor(np.uint8([[0, 7, 255]]), 0.5, UINT8, zero_point=np.uint8(7))
    assert_same_bits(decoded(q, -1, np.float32).values, np.float32([[-7, 0, 248]]))
    assert decoded(q, -1, np.float32).span == 255


@pytest.mark.parametrize(
    ("axis", "block", "k_axis", "shape"),
    [
        (None, None, -1, ()),
        (None, None, -2, ()),
        (0, None, -1, (2, 1, 1)),
        (1, None, -1, (1, 3, 1)),
        (2, None, -2, (1, 1, 4)),
        (2, 4, -1, (2, 3, 1)),
        (2, 9, -1, (2, 3, 1)),
        (1, 3, -2, (2, 1, 4)),
    ],
)
def test_decoded_scales(
    axis: int | None, block: int | None, k_axis: int, shape: tuple[int, ...]
) -> None:
    x = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    q = quantize(x, INT8, axis=axis, block=block)
    found = decoded(q, k_axis, np.float64)
    assert found.scale.shape == shape
    np.testing.assert_array_equal((found.values * found.scale).astype(np.float32), q.dequantize())


@pytest.mark.parametrize(
    ("axis", "block", "k_axis"), [(2, None, -1), (1, None, -2), (2, 2, -1), (2, 4, -2), (0, 1, -1)]
)
def test_scales_that_vary_along_k(axis: int, block: int | None, k_axis: int) -> None:
    q = quantize(np.ones((2, 3, 4), np.float32), INT8, axis=axis, block=block)
    with pytest.raises(ValueError, match="varies along K"):
        decoded(q, k_axis, np.float64)


# Products


def plain_product(
    a: Decoded,
    b: Decoded,
    bias: Float32Array | None = None,
    to_bfloat16: bool = False,
    nan_bits: int = 0x7FC00000,
) -> Float32Array:
    """Every step over the whole array; the sums are exact in float64, term by term."""
    x, y = (
        (operand.values if operand.specials is None else operand.specials).astype(np.float64)
        for operand in (a, b)
    )
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    sums = np.zeros((*lead, x.shape[-2], y.shape[-1]))
    with np.errstate(all="ignore"):
        for k in range(x.shape[-1]):
            sums += x[..., :, k, None] * y[..., None, k, :]
        result = sums.astype(np.float32)
        result = result + np.float32(0)
        result = result * (a.scale * b.scale)
        result.view(np.uint32)[np.isnan(result)] = nan_bits
        if bias is not None:
            result = result + bias
    return round_to_bfloat16(result) if to_bfloat16 else result


def check_product(
    a: Decoded,
    b: Decoded,
    bias: Float32Array | None = None,
    accumulator: Accumulator = EXACT,
) -> None:
    kept = [x.copy() for x in (a.values, b.values)]
    for to_bfloat16 in (False, True):
        found = decoded_product(a, b, accumulator, bias, to_bfloat16)
        assert_same_bits(found, plain_product(a, b, bias, to_bfloat16, accumulator.nan_bits))
    for x, before in zip((a.values, b.values), kept, strict=True):
        assert_same_bits(x, before)


def operand(
    shape: tuple[int, ...], dtype: Any, scale: Any = 1.0, seed: int = 0, largest: int = 127
) -> Decoded:
    """Make whole numbers, zeros of both signs and cancelling ones among them.

    In float64 half of them are divided by 2^16. All sums are exact.
    """
    generator = np.random.default_rng(seed)
    values = generator.integers(-largest, largest, shape, endpoint=True).astype(dtype)
    if dtype == np.float64:
        values[generator.random(shape) < 0.5] *= 2.0**-16
    values[generator.random(shape) < 0.4] = 0
    values[generator.random(shape) < 0.2] = -0.0
    return Decoded(values, np.asarray(scale, np.float32), 128.0)


#: What a bias may be, beside usual numbers.
PAYLOADS = np.uint32([0x7F800001, 0xFFC00003, 0x7FD55555, 0xFFFFFFFF]).view(np.float32)
BIASES = {
    "none": None,
    "zeros": np.zeros(6, np.float32),
    "negative zeros": np.full(6, -0.0, np.float32),
    "usual": np.float32([1, -0.3, 0.1, 1e-3, -7, 3.14159]),
    "one infinity": np.float32([1, 2, np.inf, 3, 4, 5]),
    "infinities": np.float32([np.inf, -np.inf, 0, 1, 2, 3]),
    "large": np.float32([3e38, 3e38, 3.4e38, -3.4e38, 1, 2]),
    "subnormal": np.float32([1e-40, -1e-40, 1e-45, 0, -1e-45, 1e-38]),
    "NaN": np.float32([np.nan, 0, 0, 0, 0, 0]),
    "payloads": np.concatenate([PAYLOADS, np.float32([0, 1])]),
}

#: The product of both is smaller than any number, usual, or so large that sums overflow.
FACTORS = (1.0, 0.017, 1.25 * 2.0**-63, 1.25 * 2.0**62)


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_products(name: str, factor: float, dtype: Any) -> None:
    """Sums that are -0, that overflow and that vanish once scaled, with each bias."""
    for seed, (m, k) in enumerate([(1, 1), (7, 1), (7, 5), (40, 64), (0, 3), (3, 0)]):
        a, b = operand((m, k), dtype, factor, seed), operand((k, 6), dtype, factor, seed + 9)
        check_product(a, b, BIASES[name])
        if dtype == np.float32:
            check_product(a, b, BIASES[name], BLAS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_blas_may_return_negative_zeros(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some do, by how they begin a sum; the product has none."""

    def other(x: Any, y: Any) -> Any:
        product = np.matmul(x, y)
        return np.where(product == 0, -product, product)

    for module in (operands_module, exact_module):
        monkeypatch.setattr(module, "blas_product", other)
    for k in (1, 5):
        a, b = operand((7, k), dtype), operand((k, 6), dtype, seed=1)
        for bias in (None, BIASES["zeros"], BIASES["negative zeros"]):
            check_product(a, b, bias)


def test_hard_cases_are_met() -> None:
    """The operands above have sums of -0 by some order, infinities and zeros after scaling."""
    large, small = (operand((7, 5), np.float64, factor) for factor in (FACTORS[3], FACTORS[2]))
    b = operand((5, 6), np.float64)
    assert np.isinf(plain_product(large, replace(b, scale=large.scale))).any()
    tiny = plain_product(small, replace(b, scale=small.scale))
    assert ((tiny != 0) & (np.abs(tiny) < np.finfo(np.float32).tiny)).any()
    terms = operand((7, 1), np.float64).values * operand((1, 6), np.float64, seed=1).values
    assert (np.signbit(terms) & (terms == 0)).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_columns(dtype: Any) -> None:
    a, b = operand((3, 4), dtype), operand((4, 0), dtype)
    assert decoded_product(a, b, EXACT).shape == (3, 0)


#: Scales of both operands, of shapes (2, 3, M=4, K=5) and (3, K=5, N=6).
SCALE_SHAPES = {
    "tensor": ((), ()),
    "channel": ((), (1, 1, 6)),
    "token": ((2, 3, 4, 1), ()),
    "token and channel": ((2, 3, 4, 1), (3, 1, 6)),
    "row": ((1, 1, 4, 1), ()),
    "matrix": ((2, 1, 1, 1), (3, 1, 1)),
}


@pytest.mark.parametrize("name", SCALE_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_of_scales(name: str, dtype: Any) -> None:
    """Every scale is another number."""
    of_a, of_b = SCALE_SHAPES[name]
    generator = np.random.default_rng(3)
    a = operand((2, 3, 4, 5), dtype, generator.random(of_a) + 0.5)
    b = operand((3, 5, 6), dtype, generator.random(of_b) + 0.5, seed=1)
    for bias in (None, BIASES["usual"], BIASES["payloads"]):
        check_product(a, b, bias)


@pytest.mark.parametrize("shapes", [((4, 5), (2, 3, 5, 6)), ((3, 1, 4, 5), (2, 5, 6))])
def test_leading_axes_broadcast(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    for dtype in DTYPES:
        check_product(operand(shapes[0], dtype, 0.3), operand(shapes[1], dtype), BIASES["usual"])


@pytest.mark.parametrize("axes", [(1, 0, 2, 3), (1, 2, 0, 3), (2, 0, 1, 3), (0, 2, 1, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_of_operands(axes: tuple[int, ...], dtype: Any) -> None:
    """NumPy lays the products of permuted stacks out as the stacks: no row may be missed."""
    x = operand((2, 3, 4, 6), dtype, 0.3)
    permuted = replace(x, values=x.values.transpose(axes))
    transposed = replace(permuted, values=permuted.values.mT)
    for a, b in ((permuted, transposed), (transposed, permuted)):
        check_product(a, b, np.linspace(-1, 1, b.values.shape[-1], dtype=np.float32))
        check_product(a, b, None, EXACT if dtype == np.float64 else BLAS)


@pytest.mark.parametrize("name", ["E4M3FN", "E5M2", "INT8"])
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_permuted_stacks_of_codes(name: str, accumulate: str) -> None:
    """The public product, too."""
    x = np.random.default_rng(0).integers(-3, 3, (2, 3, 4, 6)).astype(np.float32)
    q = quantize(x, name, 0.5)
    permuted = replace(q, codes=q.codes.transpose(1, 0, 2, 3))
    found = matmul(permuted, permuted.mT, accumulate)
    values = permuted.dequantize()
    np.testing.assert_array_equal(found, np.einsum("...mk,...nk->...mn", values, values))


@pytest.mark.parametrize(("rows", "columns"), [(70_001, 3), (3, 70_001), (301, 700)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_several_chunks(rows: int, columns: int, dtype: Any) -> None:
    """A scale for each row, which must go with it into the chunks."""
    generator = np.random.default_rng(5)
    per_row = generator.random((rows, 1)) + 0.5
    a, b = operand((rows, 2), dtype, per_row), operand((2, columns), dtype, seed=1)
    bias = generator.normal(size=columns).astype(np.float32)
    check_product(a, b, bias)
    check_product(replace(a, scale=np.float32(0.3)), b, bias)
    bias[-1] = PAYLOADS[0]
    check_product(a, b, bias)


def test_long_sums_of_integers() -> None:
    """Beyond 2^24 in float32; the sums are exact in int64."""
    for k in (1023, 1024, 1025, 2050, 5000):
        for low in (-128, 0, 126):
            generator = np.random.default_rng(k)
            x, y = generator.integers(low, 128, (16, k)), generator.integers(low, 128, (k, 20))
            a, b = (Decoded(v.astype(np.float32), np.float32(1), 128.0) for v in (x, y))
            found = decoded_product(a, b, EXACT)
            assert_same_bits(found, (x @ y).astype(np.float32))


def test_long_sums_with_zero_points() -> None:
    """The differences reach 255, so the blocks are shorter."""
    generator = np.random.default_rng(0)
    for k, fmt in itertools.product((257, 258, 259, 600, 3000), (UINT8, INT8)):
        low, high = fmt.code_range
        codes = generator.integers(high - 5, high, (16, k), endpoint=True).astype(fmt.code_dtype)
        zeros = np.array([low, low + 1], fmt.code_dtype)
        a = QuantizedTensor(codes, 1.0, fmt, zero_point=zeros[0])
        b = QuantizedTensor(codes.T, 1.0, fmt, zero_point=zeros[1])
        x, y = (v.astype(np.int64) - zero for v, zero in ((codes, low), (codes.T, low + 1)))
        found = decoded_product(decoded(a, -1, np.float32), decoded(b, -2, np.float32), EXACT)
        assert_same_bits(found, (x @ y).astype(np.float32))


SPECIALS = (np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("name", BIASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity(name: str, dtype: Any) -> None:
    """Of either operand and of both: 0 times infinity, and infinities of both signs."""
    for seed in range(6):
        generator = np.random.default_rng(seed)
        operands = []
        for shape, which in (((5, 4), seed % 3 != 1), ((4, 6), seed % 3 != 0)):
            x = operand(shape, dtype, 0.3, seed, largest=3)
            if which:
                specials = x.values.copy()
                places = generator.random(shape) < 0.15
                specials[places] = generator.choice(SPECIALS, places.sum())
                x = replace(x, values=np.where(places, 0, specials), specials=specials)
            operands.append(x)
        check_product(*operands, BIASES[name])
        check_product(*operands, BIASES[name], replace(EXACT, nan_bits=0x7FFFFFFF))
        if dtype == np.float32:
            check_product(*operands, BIASES[name], BLAS)


def whole_numbers(shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    return hnp.arrays(np.float64, shape, elements=st.integers(-255, 255))


@settings(max_examples=60)
@example(
    np.zeros((2, 3)),
    -np.ones((3, 2)),
    np.float32([-0.0, 1]),
    np.float32([1, 1]),
    np.float32([1, 1]),
)
@given(
    whole_numbers((2, 3)),
    whole_numbers((3, 2)),
    hnp.arrays(np.float32, 2, elements=st.floats(width=32, allow_nan=False)),
    hnp.arrays(np.float32, 2, elements=st.floats(2.0**-60, 2.0**60, width=32)),
    hnp.arrays(np.float32, 2, elements=st.floats(2.0**-60, 2.0**60, width=32)),
)
def test_products_by_fractions(
    x: Any, y: Any, bias: Float32Array, rows: Float32Array, columns: Float32Array
) -> None:
    """Each number by exact arithmetic, rounded after each step."""
    for dtype in DTYPES:
        a = Decoded(x.astype(dtype), rows[:, None], 255.0)
        b = Decoded(y.astype(dtype), columns[None], 255.0)
        for rounds in (False, True):
            found = decoded_product(a, b, EXACT, bias, rounds)
            for i, j in np.ndindex(2, 2):
                total = sum(int(x[i, k]) * int(y[k, j]) for k in range(3))
                scale = multiply32(float(rows[i]), float(columns[j]))
                scaled = multiply32(float(total), scale)  # a sum below 2^24 is a float32
                result = add32(scaled, float(bias[j]))
                expected = nearest(result, BFLOAT16) if rounds else result
                assert math.isnan(expected) == math.isnan(found[i, j])
                if not math.isnan(expected):
                    assert_same_bits(found[i, j], np.float32(expected))
                assert nearest(result, FLOAT32) == result or math.isnan(result)


@pytest.mark.parametrize(
    ("scale_a", "scale_b"), [(2.0**-100, 2.0**-100), (2.0**100, 2.0**100), ([[1.0], [2.0**127]], 4)]
)
def test_products_of_scales_that_are_none(scale_a: Any, scale_b: Any) -> None:
    a, b = operand((2, 3), np.float64, scale_a), operand((3, 2), np.float64, scale_b)
    for _ in range(2):
        with pytest.raises(ValueError, match="overflows or underflows"):
            decoded_product(a, b, EXACT)


@pytest.mark.parametrize("shapes", [((2, 3), (4, 2)), ((3,), (3, 2)), ((2, 3), (3,))])
def test_shapes_that_do_not_fit(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (operand(shape, np.float64) for shape in shapes)
    with pytest.raises(ValueError, match="expected"):
        decoded_product(a, b, EXACT)


# Where codes are needed


def steps_in(fmt: Format) -> Fraction:
    """The largest value of a format in steps of which all are multiples; zero points included."""
    if isinstance(fmt, IntFormat):
        return Fraction(fmt.code_range[1] - fmt.code_range[0])
    numbers = [Fraction(x) for x in fmt.values[np.isfinite(fmt.values)].tolist() if x]
    return max(numbers) / min(abs(x) for x in numbers)


def test_dtypes_of_products() -> None:
    """Of all pairs of formats: float64 up to the K whose sums are exact in it."""
    for a in FORMATS.values():
        for b in FORMATS.values():
            limit = exact_k_limit(a, b, parts=1, zero_point=True)
            whole = 2**53 // (steps_in(a) * steps_in(b))
            integers = isinstance(a, IntFormat) and isinstance(b, IntFormat)
            assert limit <= whole
            if not isinstance(a, IntFormat) and not isinstance(b, IntFormat):
                assert limit == whole
            for k in {0, 1, 10, 128, 768, 3072, max(limit, 1), limit, limit + 1}:
                found = product_dtype(a, b, k, EXACT)
                usual = np.float32 if integers else np.float64
                assert found is (usual if k <= limit else None)
                assert product_dtype(a, b, k, BLAS) is np.float32


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_accumulators_of_codes(name: str) -> None:
    accumulator = ACCUMULATORS[name]
    found = product_dtype(E4M3FN, E4M3FN, 768, accumulator)
    assert found is {"exact": np.float64, "float32": np.float32}.get(name)


@pytest.mark.parametrize(("a", "b"), [("E4M3FN", "E5M2"), ("E5M2", "E5M2"), ("E4M3FN", "E4M3FN")])
def test_products_of_codes_at_the_limit(a: str, b: str) -> None:
    """The largest values and the smallest, at the K where codes begin and beyond."""
    limit = exact_k_limit(a, b, parts=1)
    for k in (limit, limit + 1) if limit < 100 else (50,):
        fa, fb = FORMATS[a], FORMATS[b]
        x = np.float32([[fa.max] * (k - 1) + [fa.min_subnormal]])[:, :k]
        y = np.float32([[fb.max] * (k - 1) + [fb.min_subnormal]])[:, :k].T
        found = matmul(quantize(x, fa, 1.0), quantize(y, fb, 1.0))
        total = sum(
            Fraction(p) * Fraction(q) for p, q in zip(x[0].tolist(), y[:, 0].tolist(), strict=True)
        )
        assert_same_bits(found, np.float32([[nearest(total, FLOAT32)]]))


# Models


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), shape),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        "token_type_ids": generator.integers(0, 2, shape),
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Calibration]:
    model = bert_numpy.load(write_checkpoint(tmp_path_factory.mktemp("model")))
    return model, bert_numpy.calibrate(model, [batch_of((9, 6, 7))], hessians=True)


@pytest.fixture(scope="module")
def tiny() -> tuple[Model, Calibration]:
    model = bert_numpy.load("bert-tiny-sst2")
    return model, bert_numpy.calibrate(model, [batch_of((9, 6, 7))])


def made(
    source: tuple[Model, Calibration], recipe: str | Recipe, golden: bool = False
) -> QuantizedModel:
    found = bert_numpy.apply_recipe(source[0], recipe, source[1])
    return bert_numpy.apply_recipe(found, found.recipe, golden=golden) if golden else found


def with_budget(model: QuantizedModel, budget: int, golden: bool = False) -> QuantizedModel:
    engine = engine_of(model.recipe, model.plans, golden, budget)
    return replace(model, engine=engine)


def kept_of(model: QuantizedModel) -> DecodedWeights:
    kept = model.engine.keywords["kept"]  # type: ignore[attr-defined]
    assert isinstance(kept, DecodedWeights)
    return kept


def assert_same_outputs(found: bert_numpy.ModelOutput, expected: bert_numpy.ModelOutput) -> None:
    assert found.counts == expected.counts
    for name in ("logits", "last_hidden_state", "pooler_output"):
        assert_same_bits(getattr(found, name), getattr(expected, name))


def check_model(
    source: tuple[Model, Calibration], recipe: str | Recipe, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QuantizedModel]:
    """Compare a model with products of codes, with no budget, and with its own second run."""
    batch = batch_of((9, 4), seed=5)
    for golden in (False, True):
        model = made(source, recipe, golden)
        with monkeypatch.context() as patch:
            patch.setattr(QuantizedEngine, "decoded_dtype", lambda *_: None)
            expected = with_budget(model, 0, golden)(**batch)
        for other in (model, model, with_budget(model, 0, golden), with_budget(model, 999, golden)):
            assert_same_outputs(other(**batch), expected)
        yield model


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(
    name: str, small: tuple[Model, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in check_model(small, name, monkeypatch):
        a, b = model.recipe.linear.a, model.recipe.linear.b
        decodes = (
            isinstance(a.fmt, Format)
            and isinstance(b.fmt, Format)
            and "block" not in (a.granularity, b.granularity)
            and model.recipe.linear.outlier_threshold is None
            and product_dtype(a.fmt, b.fmt, 16, EXACT) is not None
        ) or (a.fmt is not None and isinstance(b.fmt, BlockFormat))
        kept = kept_of(model)
        assert (kept.nbytes > 0) == decodes
        assert decoded_nbytes(model.weights, model.plans, EXACT) == kept.nbytes == bytes_in(kept)


@pytest.mark.parametrize(
    "name", ["int8", "e4m3", "e5m2", "int8-asymmetric", "int8-token", "e4m3-channel", "mixed"]
)
def test_bert_tiny(
    name: str, tiny: tuple[Model, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(check_model(tiny, name, monkeypatch))


RECIPES = {
    "float32 arithmetic": replace(PRESETS["e4m3"], arithmetic="float32"),
    "INT8 in float32": replace(PRESETS["int8"], arithmetic="float32"),
    "the rest in bfloat16": replace(PRESETS["e4m3"], accumulate_rest="hopper-16bit"),
    "a tensor core": replace(PRESETS["e4m3"], accumulate="hopper-fast"),
    "block sums": replace(PRESETS["e4m3"], accumulate="block-sums"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_other_recipes(
    name: str, small: tuple[Model, Calibration], monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in check_model(small, RECIPES[name], monkeypatch):
        exact = model.recipe.accumulate == "exact"
        assert (kept_of(model).nbytes > 0) == exact


def test_float32_sums_are_close(small: tuple[Model, Calibration]) -> None:
    """Their bits are the BLAS's, which may depend on how a weight lies in memory."""
    model = made(small, replace(PRESETS["int8"], accumulate="float32"))
    batch = batch_of((9, 4), seed=5)
    found, other = model(**batch).logits, with_budget(model, 0)(**batch).logits
    exact = made(small, "int8")(**batch).logits
    assert_same_bits(found, exact)  # sums of few integers are exact
    assert_same_bits(other, exact)


#: Where NaN and infinity of a bias go: through an activation, a softmax, or to the residual.
LAYERS = ("intermediate.dense", "attention.self.query", "output.dense")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["e4m3", "int8", "e4m3-token"])
@pytest.mark.parametrize("golden", [False, True])
def test_nan_in_a_layer(
    name: str,
    layer: str,
    golden: bool,
    small: tuple[Model, Calibration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same bits, or an error of the same site."""
    batch = batch_of((5, 3))
    for specials in (PAYLOADS, np.float32([np.inf]), np.float32([-np.inf, 3e38])):
        model = made(small, name, golden)
        key = f"encoder.layer.1.{layer}.bias"
        bias = np.array(model.weights[key])
        bias[: len(specials)] = specials
        model = replace(model, weights=dict(model.weights) | {key: bias})

        def run(model: QuantizedModel = model) -> bert_numpy.ModelOutput | str:
            try:
                with np.errstate(all="ignore"):
                    return model(**batch)
            except bert_numpy.BertNumpyError as error:
                return str(error)

        found = run()
        with monkeypatch.context() as patch:
            patch.setattr(QuantizedEngine, "decoded_dtype", lambda *_: None)
            expected = run()
        if isinstance(found, str) or isinstance(expected, str):
            assert found == expected
        else:
            assert_same_outputs(found, expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the next layer does to it: its scale, a zero point, smoothing, other scales."""
    overrides = {"hidden_act": activation}
    model = bert_numpy.load(write_checkpoint(tmp_path / "model", config_overrides=overrides))
    source = model, bert_numpy.calibrate(model, [batch_of((9, 6, 7))])
    smooth = replace(PRESETS["int8-smooth"], overrides=())
    for recipe in ("e4m3", "int8-asymmetric", smooth):
        assert list(check_model(source, recipe, monkeypatch))


def together(count: int, work: Callable[[], Any]) -> list[Any]:
    """Run work in threads that start at once; return what each returned."""
    barrier, results, errors = threading.Barrier(count), [], []

    def run() -> None:
        barrier.wait()
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("budget", [DECODED_BUDGET, 20_000, 0])
def test_threads_that_start_at_once(budget: int, small: tuple[Model, Calibration]) -> None:
    batch = batch_of((9, 4), seed=5)
    for name in ("e4m3", "int8-token"):
        expected = made(small, name)(**batch)
        for _ in range(5):
            model = with_budget(made(small, name), budget)
            for found in together(2, lambda model=model: model(**batch)):
                assert_same_outputs(found, expected)
            assert kept_of(model).nbytes == bytes_in(kept_of(model)) <= budget


# Weights that are kept


def weight(seed: int, shape: tuple[int, int] = (4, 3), fmt: Format = E4M3FN) -> QuantizedTensor:
    return quantize(np.random.default_rng(seed).normal(size=shape).astype(np.float32), fmt)


def bytes_in(kept: DecodedWeights) -> int:
    """The memory of the arrays that are kept, and the most that prepared ones may take."""
    return sum(
        one.operand.values.nbytes
        if isinstance(one.operand, Decoded)
        else one.weight.size * PREPARED_BYTES
        for one in kept._kept.values()
    )


def test_a_weight_is_decoded_once() -> None:
    kept, w = DecodedWeights(), weight(0)
    found = kept.decoded("w", w, np.float64)
    assert_same_operands(
        replace(found, values=np.asfortranarray(found.values)), decoded(w.mT, -2, np.float64)
    )
    assert kept.decoded("w", w, np.float64) is found
    assert kept.nbytes == found.values.nbytes == 4 * 3 * 8


@pytest.mark.parametrize(("shape", "by_rows"), [((512, 512), True), ((513, 512), False)])
def test_layouts_of_decoded_weights(shape: tuple[int, int], by_rows: bool) -> None:
    """Sums in float64 are exact, so a small weight may be laid out as single texts need it."""
    w = weight(0, shape)
    exact = DecodedWeights().decoded("layer", w, np.float64)
    assert exact.values.flags.c_contiguous == by_rows
    assert exact.values.flags.f_contiguous != by_rows
    assert_same_operands(exact, decoded(w.mT, -2, np.float64))
    assert DecodedWeights().decoded("layer", w, np.float32).values.flags.f_contiguous


def test_a_weight_is_found_by_name_and_identity() -> None:
    kept, w = DecodedWeights(), weight(0)
    assert kept.get("layer", w) is None
    operand = kept.decoded("layer", w, np.float64)
    assert kept.get("layer", w) is operand
    assert kept.get("layer", weight(0)) is kept.get("other", w) is None


def test_another_weight_or_dtype_of_the_name_replaces_it() -> None:
    kept = DecodedWeights()
    first = weight(0)
    for w, dtype in [
        (first, np.float64),
        (weight(1), np.float64),
        (weight(1, (5, 7)), np.float64),
        (weight(0, fmt=INT8), np.float64),
        (first, np.float32),
        (first, np.float64),
    ]:
        found = kept.decoded("w", w, dtype)
        np.testing.assert_array_equal(found.values, w.mT.code_values(dtype))
        assert found.values.dtype == dtype
        assert kept.nbytes == bytes_in(kept) == found.values.nbytes
        assert kept.decoded("w", w, dtype) is found


def test_equal_weights_of_two_names() -> None:
    kept, w = DecodedWeights(), weight(0)
    first, second = kept.decoded("v", w, np.float64), kept.decoded("w", w, np.float64)
    assert_same_operands(first, second)
    assert kept.nbytes == bytes_in(kept) == 2 * 96


@given(
    st.integers(0, 1000),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.sampled_from(DTYPES))),
)
def test_the_budget_is_kept(budget: int, asked: list[tuple[str, int, Any]]) -> None:
    kept = DecodedWeights(budget)
    weights = [weight(n, (n + 1, 4)) for n in range(6)]
    for name, n, dtype in asked:
        found = kept.decoded(name, weights[n], dtype)
        assert found.values.dtype == dtype
        np.testing.assert_array_equal(found.values, weights[n].mT.code_values(dtype))
        assert kept.nbytes == bytes_in(kept) <= budget
        others = kept.nbytes - (found.values.nbytes if kept._kept.get(name) else 0)
        fits = others + found.values.nbytes <= budget
        assert (kept.decoded(name, weights[n], dtype) is found) == fits


@pytest.mark.parametrize("short", [0, 1])
def test_a_budget_to_the_byte(short: int) -> None:
    kept, w = DecodedWeights(96 - short), weight(0)
    assert (kept.decoded("w", w, np.float64) is kept.decoded("w", w, np.float64)) == (not short)


def test_threads_share_one_account() -> None:
    weights = [weight(n, (40, 30)) for n in range(4)]
    for budget in (DECODED_BUDGET, 3 * 9600):
        kept = DecodedWeights(budget)

        def work(kept: DecodedWeights = kept) -> None:
            for n in range(200):
                kept.decoded(f"w{n % 5}", weights[n % 4], DTYPES[n % 2])

        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            together(4, work)
        finally:
            sys.setswitchinterval(usual)
        assert kept.nbytes == bytes_in(kept) <= budget


def test_nan_in_a_weight_is_kept() -> None:
    """The values with NaN and infinity beside the others."""
    w = QuantizedTensor(np.uint8([[0x7C, 0x3C], [0xFC, 0x7F]]), 1.0, E5M2)
    kept = DecodedWeights()
    for _ in range(2):
        assert_same_operands(
            kept.decoded("w", w, np.float64),
            replace(decoded(w.mT, -2, np.float64), values=np.array([[0, 0], [1.0, 0]])),
        )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
@pytest.mark.parametrize("name", ["e4m3", "int8"])
def test_copies_have_no_decoded_weights(
    copied: Callable[[Any], Any], name: str, small: tuple[Model, Calibration]
) -> None:
    model, batch = made(small, name), batch_of((9, 4), seed=5)
    before = len(pickle.dumps(model))
    expected = model(**batch)
    assert kept_of(model).nbytes > 2 * 16 * 16 * 4
    assert len(pickle.dumps(model)) == before
    other = copied(model)
    assert kept_of(other) is not kept_of(model)
    assert kept_of(other).nbytes == 0
    assert kept_of(other).budget == kept_of(model).budget == DECODED_BUDGET
    assert_same_outputs(other(**batch), expected)
    assert kept_of(other).nbytes == kept_of(model).nbytes
    assert kept_of(copied(with_budget(model, 77))).budget == 77


def test_a_model_of_other_weights_has_its_own_bits(small: tuple[Model, Calibration]) -> None:
    """A model made from another by replacing weights shares its engine, and so what is kept."""
    model, batch = made(small, "e4m3"), batch_of((9, 4), seed=5)
    key = "encoder.layer.0.intermediate.dense.weight"
    changed = model.weights[key]
    assert isinstance(changed, QuantizedTensor)
    changed = replace(changed, codes=changed.codes ^ np.uint8(0x80))
    other = replace(model, weights=dict(model.weights) | {key: changed})
    first, second = model(**batch), other(**batch)
    fresh = planned_model(other.config, other.weights, other.recipe, other.plans, other.name)
    assert (bits_of(first.logits) != bits_of(second.logits)).any()
    assert_same_outputs(second, fresh(**batch))
    assert_same_outputs(model(**batch), first)
    assert kept_of(model).nbytes == bytes_in(kept_of(model)) == kept_of(fresh).nbytes


# Rounding to bfloat16


def hard_floats() -> Iterator[Float32Array]:
    """Every bfloat16 with tails below, at and above half, and random patterns."""
    upper = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    for tail in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        yield (upper | np.uint32(tail)).view(np.float32)
    yield np.random.default_rng(0).integers(0, 1 << 32, 300_000, dtype=np.uint32).view(np.float32)


def test_rounding_in_place() -> None:
    for x in hard_floats():
        for part in (x, x[~np.isnan(x)]):
            expected = round_to_bfloat16(part)
            given = part.copy()
            assert round_in_place(given) is given
            assert_same_bits(given, expected)


def test_rounding_of_what_operations_make() -> None:
    """Numbers, and NaN as the processor makes it."""
    with np.errstate(invalid="ignore"):
        made_nan = np.float32([np.inf, -np.inf]) + np.float32([-np.inf, np.inf])
        zero_times = np.float32([0, -0.0]) * np.float32([np.inf, np.inf])
    for x in hard_floats():
        given = np.concatenate([x[~np.isnan(x)], made_nan, zero_times])
        expected = round_to_bfloat16(given)
        round_finite(given)
        assert_same_bits(given, expected)


def test_bits_with_half_of_the_last_place() -> None:
    """Their upper half are those of the rounded number, in any layout."""
    for x in hard_floats():
        numbers = x[~np.isnan(x)]
        given = numbers[: len(numbers) // 2 * 2].reshape(-1, 2).T
        out = np.empty(given.shape, np.uint32)
        add_half(given, out)
        assert_same_bits((out >> 16 << 16).view(np.float32), round_to_bfloat16(given))
    for shape, writable, expected in (((3,), True, "expected shape"), ((2,), False, "read-only")):
        out = np.zeros(shape, np.uint32)
        out.flags.writeable = writable
        with pytest.raises(ValueError, match=expected):
            add_half(np.zeros(2, np.float32), out)


@pytest.mark.parametrize("place", [0, 131_071, 131_072, 262_144, 299_999])
@pytest.mark.parametrize("nan", [0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000])
def test_nan_in_one_chunk_of_several(place: int, nan: int) -> None:
    x = np.random.default_rng(1).normal(size=300_000).astype(np.float32)
    x.view(np.uint32)[place] = nan
    expected = round_to_bfloat16(x)
    assert_same_bits(as_bfloat16(x), expected)
    assert_same_bits(round_in_place(x.copy()), expected)


def test_rounding_of_layouts() -> None:
    x = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    for array in (x.T, x[::2, 1:], x[:0], x[0, 0, ...], x[..., None]):
        expected = round_to_bfloat16(array)
        before = array.copy()
        assert_same_bits(as_bfloat16(array), expected)
        assert_same_bits(array, before)
        found = round_in_place(array)
        assert_same_bits(found.reshape(expected.shape), expected)


def test_only_other_values_are_rounded() -> None:
    for x in hard_floats():
        rounded = round_to_bfloat16(x[~np.isnan(x)])
        assert as_bfloat16(rounded) is rounded
        found = as_bfloat16(x)
        assert (found is x) == (not (x.view(np.uint32) & 0xFFFF).any())
        assert_same_bits(
            np.where(np.isnan(found), 0, found),
            round_to_bfloat16(np.where(np.isnan(x), np.float32(0), x)),
        )


@pytest.mark.parametrize("name", ["gelu", "tanh", "exp"])
def test_functions_of_any_nan(name: str) -> None:
    """A NaN that is left as it is has the same value as one of the usual bits."""
    assert_same_bits(unary(name, as_bfloat16(NAN)), unary(name, round_to_bfloat16(NAN)))

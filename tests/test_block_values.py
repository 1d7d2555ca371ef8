"""Operands in blocks without codes on the way, against the tensors with codes, bit by bit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from oracles import assert_same_bits

import npfp8
from npfp8 import (
    BLOCK_FORMATS,
    E4M3FN,
    INT4,
    MXFP4,
    MXFP8_E4M3,
    NVFP4,
    POWER_RULES,
    RATIO_RULES,
    BlockFormat,
    FloatFormat,
    matmul,
    quantize,
)
from npfp8.bfloat16 import from_bits, round_to_bfloat16
from npfp8.products import prepared_product
from npfp8.products.blocks import Prepared, operand_of, prepared_blocks
from npfp8.products.float32 import lowest_bits

FINITE = from_bits(np.r_[0:0x7F80, 0x8000:0xFF80].astype(np.uint16))

#: The formats, and those of other rules, lengths, elements and scales.
FORMATS = [
    *BLOCK_FORMATS.values(),
    *(BlockFormat("E4M3FN", 32, rule=rule) for rule in ("rceil", "ceil", "even", "trunc")),
    *(BlockFormat("E2M1", 16, E4M3FN, rule, True) for rule in RATIO_RULES if rule != "te"),
    BlockFormat("E2M1", 24, E4M3FN, "exact", False),
    BlockFormat("E5M2", 5, E4M3FN, "te", True),
    BlockFormat("E4M3FNUZ", 7),
    BlockFormat("FIXED8", 16, E4M3FN, "te", True),
    BlockFormat(INT4, 3),
    BlockFormat("E2M1", 8, FloatFormat(5, 3, 15, signed=False, name="UE5M3"), "te", True),
]


def name(fmt: BlockFormat) -> str:
    return f"{fmt.element}-{fmt.block}-{fmt.scale_format}-{fmt.rule}"


formats = pytest.mark.parametrize("fmt", FORMATS, ids=name)


def check(x: np.ndarray, fmt: BlockFormat, axis: int = -1, number: Any = None) -> bool:
    """Compare all that products need; return whether there were no codes on the way."""
    number = np.float32(number) if fmt.tensor_scale and number is not None else None
    before = x.copy()
    found, lost = prepared_blocks(x, fmt, axis, number)
    direct = found.values is not None
    q = quantize(x, fmt, axis=axis, tensor_scale=number)
    plain = Prepared(q, axis)
    assert tuple(lost) == q.lost(x)
    assert (found.tensor.shape, found.tensor.ndim) == (q.shape, q.ndim)
    assert found.tensor.is_finite == q.is_finite
    for one, other in zip(found.lines, plain.lines, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.span == plain.span
    for kind in ("wide", "narrow"):
        one, other = getattr(found, kind), getattr(plain, kind)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.values.dtype == other.values.dtype
            np.testing.assert_array_equal(one.values, other.values)
            assert (one.specials is None) == (other.specials is None)
    np.testing.assert_array_equal(found.element_units, plain.element_units)
    assert not direct or "codes" not in vars(found.tensor)
    for part in ("codes", "scale_codes", "scale"):
        assert_same_bits(getattr(found.tensor, part), getattr(q, part))
    if fmt.tensor_scale:
        assert_same_bits(np.asarray(found.tensor.tensor_scale), np.asarray(q.tensor_scale))
    assert (found.tensor.fmt, found.tensor.block_format) == (q.fmt, q.block_format)
    assert_same_bits(x, before)
    return direct


def in_blocks(x: np.ndarray, amax: float, fmt: BlockFormat) -> np.ndarray:
    """Lay numbers out in blocks that have one magnitude, too."""
    size = fmt.block - 1
    x = np.pad(x, (0, -len(x) % (4 * size))).reshape(-1, size)
    return np.concatenate([x, np.full((len(x), 1), amax, np.float32)], 1).reshape(-1, 4 * fmt.block)


@formats
@pytest.mark.parametrize("exponent", [-45, -20, -3, 0, 7, 45])
def test_every_bfloat16_below_a_largest_magnitude(fmt: BlockFormat, exponent: int) -> None:
    """Every number of 58 binades, and zeros, below the two ends of a binade."""
    for amax in (1.0, 1.390625, 1.5, 1.7421875, 1.75, 1.9921875):
        largest = np.float32(amax * 2.0**exponent)
        x = FINITE[np.abs(FINITE) <= largest]
        x = x[(np.abs(x) >= largest * 2.0**-50) | (x == 0)]
        direct = check(in_blocks(x, largest, fmt), fmt, number=2.0 ** (exponent + 2))
        usual = fmt.rule != "exact" and fmt.element != INT4
        tiny = exponent == -45 and fmt.powers_of_two and "E" in fmt.element.name[:2]
        assert direct == (usual and not (tiny and fmt.element.exponent_bits > 3))


@formats
def test_every_bfloat16(fmt: BlockFormat) -> None:
    """In the order of numbers, and each beside any other: the ends of float32, and fallbacks."""
    rng = np.random.default_rng(1)
    check(np.sort(FINITE).reshape(-1, 255), fmt, number=1.0)
    check(rng.permutation(FINITE).reshape(-1, 255), fmt, number=1.0)
    usual = rng.permutation(FINITE[(np.abs(FINITE) < 2.0**40) & (np.abs(FINITE) > 2.0**-30)])
    check(usual[: usual.size // 35 * 35].reshape(-1, 35), fmt, number=2.0**20)


@formats
def test_float32_and_zeros(fmt: BlockFormat) -> None:
    """Numbers with all bits; zeros of both signs; blocks and tensors of zeros."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((40, 100)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = -0.0
    x[3], x[7, 48:96] = 0, -0.0
    direct = check(x, fmt, number=3.7)
    assert direct == (fmt.rule != "exact" and fmt.element != INT4)
    check(np.zeros((2, 50), np.float32), fmt)
    check(np.zeros((2, 50), np.float32), fmt, number=1.0)
    check(np.zeros((0, 50), np.float32), fmt, number=1.0)
    check(np.zeros((2, 0), np.float32), fmt, number=1.0)


@formats
def test_saturation_within_a_rounding(fmt: BlockFormat) -> None:
    """Quotients a few last bits below and above what counts as beyond the largest value.

    Beside them are blocks whose scale is 0 in a format with a number of the tensor.
    """
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, fmt.block)).astype(np.float32)
    scale = quantize(x, fmt, tensor_scale=np.float32(2.9) if fmt.tensor_scale else None).scale
    edge = scale * np.float32(fmt.element.reach * (1 + 2.0**-20))
    for step in range(-40, 41, 3):
        bits = edge.view(np.int32) + step
        y = x.copy()
        y[:, :1] = np.minimum(bits.view(np.float32), np.abs(x).max(1, keepdims=True))
        y[:5] *= np.float32(2.0**-30)
        check(y, fmt, number=2.9)


@pytest.mark.parametrize("rule", RATIO_RULES)
@pytest.mark.parametrize("largest", [1.0, 2.0**-10, 2.0**30])
def test_blocks_far_below_the_largest(rule: str, largest: float) -> None:
    """Scales of blocks that are subnormal, and 0."""
    rng = np.random.default_rng(4)
    fmt = BlockFormat("E2M1", 16, E4M3FN, rule, True)
    x = rng.standard_normal((64, 64)) * 2.0 ** rng.integers(-35, 0, (64, 4)).repeat(16, 1)
    x = round_to_bfloat16((x * largest).astype(np.float32))
    number = float(npfp8.quantize(x, fmt).tensor_scale)
    assert check(x, fmt, number=number) == (rule not in ("exact",) and largest < 2.0**20) or (
        rule not in ("te", "exact")
    )


def error_of(function: Any, *arguments: Any, **options: Any) -> str | None:
    try:
        function(*arguments, **options)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("rule", [*POWER_RULES, *RATIO_RULES])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3.3e38, 1e-45])
def test_specials(rule: str, special: float) -> None:
    """NaN, infinity and the ends of float32: what the rule makes of them, or its error."""
    fmt = BlockFormat("E2M1", 32, rule=rule) if rule in POWER_RULES else None
    fmt = fmt or BlockFormat("E2M1", 16, E4M3FN, rule, True)
    x = np.random.default_rng(5).standard_normal((4, 80)).astype(np.float32)
    x[1, 3] = special
    if rule == "vllm":
        x[2, 64:] = special
    number = np.float32(2) if fmt.tensor_scale else None
    error = error_of(quantize, x, fmt, tensor_scale=number)
    assert error_of(prepared_blocks, x, fmt, -1, number) == error
    if error is None:
        check(x, fmt, number=2)


def test_a_rule_refuses_formats_and_numbers_of_the_tensor() -> None:
    x = np.ones((2, 32), np.float32)
    for fmt, number in (
        (BlockFormat("INT4", 32, rule="torchao"), None),
        (MXFP4, np.float32(1)),
        (NVFP4, np.float32(-1)),
        (NVFP4, np.float32([1, 2])),
    ):
        error = error_of(quantize, x, fmt, tensor_scale=number)
        assert error is not None
        assert error_of(prepared_blocks, x, fmt, -1, number) == error


@pytest.mark.parametrize("fmt", [MXFP8_E4M3, MXFP4, NVFP4, BLOCK_FORMATS["MXINT8"]], ids=str)
@pytest.mark.parametrize("tokens", [1, 13, 32, 45, 64])
def test_operands_of_attention(fmt: BlockFormat, tokens: int) -> None:
    """Heads in place: blocks along the last axis or the one before, with short last blocks."""
    rng = np.random.default_rng(6)
    x = round_to_bfloat16(rng.standard_normal((3, tokens, 5, 40)).astype(np.float32))
    heads = x.swapaxes(1, 2)
    assert check(heads, fmt, -1, 5)
    assert check(heads.mT, fmt, -2, 5)
    assert check(heads, fmt, -2, 5)
    assert check(heads[:, ::2], fmt, -2, 5)
    weights = np.exp2(rng.integers(-30, 0, (3, 5, tokens, tokens))).astype(np.float32)
    check(weights, fmt, -1, 1)
    assert check(x.reshape(3 * tokens, 200)[::-1], fmt, -1, 5)


def test_more_than_a_chunk() -> None:
    rng = np.random.default_rng(7)
    x = round_to_bfloat16(rng.standard_normal((700, 800)).astype(np.float32))
    for fmt in (MXFP8_E4M3, NVFP4):
        assert check(x, fmt, -1, 4)
        assert check(x, fmt, -2, 4)


@pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
@pytest.mark.parametrize("to_bfloat16", [False, True])
def test_products_with_a_bias(fmt: BlockFormat, to_bfloat16: bool) -> None:
    """As the plain product, plus the bias in float32, rounded; also with NaN in the bias."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((70, 200)).astype(np.float32)
    b = quantize(rng.standard_normal((200, 33)).astype(np.float32), fmt, axis=0)
    bias = rng.standard_normal(33).astype(np.float32)
    number = np.float32(3) if fmt.tensor_scale else None
    a = quantize(x, fmt, tensor_scale=number)
    for value in (bias[5], np.nan, np.inf):
        bias[5] = value
        expected = matmul(a, b) + bias
        expected = round_to_bfloat16(expected) if to_bfloat16 else expected
        operand, _ = prepared_blocks(x, fmt, -1, number)
        assert_same_bits(prepared_product(operand, Prepared(b, -2), bias, to_bfloat16), expected)
        assert_same_bits(prepared_product(a, b, bias, to_bfloat16), expected)
    operand, _ = prepared_blocks(x, fmt, -1, number)
    assert_same_bits(prepared_product(operand, b), matmul(a, b))


def test_codes_are_made_when_they_are_needed() -> None:
    """By other accumulators, and by whoever asks; until then there are none."""
    x = np.random.default_rng(9).standard_normal((6, 64)).astype(np.float32)
    operand, _ = prepared_blocks(x, MXFP8_E4M3, -1)
    q = quantize(x, MXFP8_E4M3)
    b = quantize(x.T, MXFP8_E4M3, axis=0)
    assert_same_bits(prepared_product(operand, b), matmul(q, b))
    assert "codes" not in vars(operand.tensor)
    assert_same_bits(matmul(operand.tensor, b, "block-sums"), matmul(q, b, "block-sums"))
    assert "codes" in vars(operand.tensor)
    other, _ = prepared_blocks(x, MXFP8_E4M3, -1)
    assert_same_bits(other.tensor.dequantize(), q.dequantize())
    assert_same_bits(other.tensor.mT.codes, q.mT.codes)
    assert repr(other.tensor) == repr(q)
    assert_same_bits(operand_of(other.tensor).values, operand_of(q).values)


def test_lowest_bits() -> None:
    """Against Fractions, for numbers of every kind."""
    rng = np.random.default_rng(10)
    x = rng.integers(0, 1 << 63, 2000).view(np.float64)
    x[::3] = np.ldexp(rng.integers(-300, 300, len(x[::3])), rng.integers(-1100, 900, len(x[::3])))
    x[:9] = 0, -0.0, np.inf, -np.inf, np.nan, 5e-324, -(2.0**-1022), 1, 2.0**1023
    for number, found in zip(x.tolist(), lowest_bits(x).tolist(), strict=True):
        if number == 0 or not np.isfinite(number):
            assert found == np.inf
        else:
            assert Fraction(number) / Fraction(found) % 2 == 1
    small = np.float32([[0.75, -6, 0, 1e-45, np.nan]])
    assert_same_bits(lowest_bits(small), lowest_bits(small.astype(np.float64)))

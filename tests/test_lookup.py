"""Products by look-up tables, against sums of fractions, integers and exact products."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import assert_same_bits, code_values
from test_matmul import expected_product, one_by_one

from npfp8 import (
    E2M1,
    E4M3FN,
    E5M2,
    INT8,
    UINT8,
    FloatFormat,
    Format,
    IntFormat,
    LookupWeights,
    QuantizedTensor,
    encode,
    lookup_matmul,
    lookup_weights,
    matmul,
    quantize,
)
from npfp8.products.lookup_tables import field_values

SIGNED = [
    IntFormat(-(1 << bits - 1), (1 << bits - 1) - 1, "int8", f"INT{bits}") for bits in (2, 3, 4)
]
UNSIGNED = [IntFormat(0, (1 << bits) - 1, "uint8", f"UINT{bits}") for bits in (1, 2, 3, 4)]
TERNARY = IntFormat(-1, 1, "int8", "ternary")
SYMMETRIC = IntFormat(-7, 7, "int8", "symmetric INT4")
FIXED4 = IntFormat(-8, 7, "int8", "FIXED4", 2)
WEIGHTS = [*SIGNED, *UNSIGNED, TERNARY, SYMMETRIC, FIXED4, E2M1]
ACTIVATIONS = [INT8, UINT8, E4M3FN, E5M2]

every_weight = pytest.mark.parametrize("weight", WEIGHTS, ids=str)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)


def codes_of(fmt: Format) -> np.ndarray:
    """All codes of a weight format's bits, as an array of its dtype."""
    low, high = fmt.code_range if isinstance(fmt, IntFormat) else (0, (1 << fmt.bits) - 1)
    return np.arange(low, high + 1, dtype=fmt.code_dtype)


def in_8_bits(b: QuantizedTensor) -> QuantizedTensor:
    """The same values in a format that the oracle knows."""
    if b.fmt in (E2M1, FIXED4):
        return replace(b, codes=encode(b.code_values(), E4M3FN), fmt=E4M3FN)
    return replace(b, fmt=INT8 if b.codes.dtype == np.int8 else UINT8)


def exact_integers(a: QuantizedTensor, b: QuantizedTensor) -> np.ndarray:
    """The product of integer tensors of scale 1 in Python's integers, rounded to float32 once."""
    x, y = a.codes.astype(object), b.codes.astype(object)
    return (x @ y).astype(np.float64).astype(np.float32)


def random_weights(fmt: Format, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(codes_of(fmt), shape)


# Formats


@every_weight
def test_fields_have_the_values_of_the_codes(weight: Format) -> None:
    codes = codes_of(weight)
    fields = codes.view(np.uint8) & (1 << weight.bits) - 1
    values = QuantizedTensor(codes, 1.0, weight).dequantize()
    assert sorted(fields) == list(range(len(codes)))
    assert np.array_equal(field_values(weight)[fields] * weight.min_subnormal, values)


# Every product


@every_activation
@every_weight
@pytest.mark.parametrize("expanded", [False, True])
def test_every_pair_of_codes(activation: Format, weight: Format, expanded: bool) -> None:
    """K = 1: all products, NaN and infinities included."""
    codes = np.arange(256, dtype=np.uint8).view(activation.code_dtype)
    a = QuantizedTensor(codes[:, None], 1.0, activation)
    b = QuantizedTensor(codes_of(weight)[None, :], 1.0, weight)
    x = np.array([float(value) for value in code_values(activation.name)])
    y = in_8_bits(b).dequantize()[0].astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = np.multiply.outer(x, y).astype(np.float32) + np.float32(0)
    expected[np.isnan(expected)] = np.nan
    assert_same_bits(lookup_matmul(a, lookup_weights(b, expanded=expanded)), expected)


@every_weight
def test_every_index_of_a_group(weight: Format) -> None:
    """All columns of the largest group within 8 bits, and of one across several groups."""
    bits = weight.bits
    group = 8 // bits
    fields = np.arange(1 << bits * group)[None, :] >> bits * np.arange(group)[:, None]
    codes = np.sort(codes_of(weight))[fields & (1 << bits) - 1]
    b = QuantizedTensor(np.concatenate([codes, codes[::-1], codes[:1]]), 1.0, weight)
    x = np.random.default_rng(0).integers(-128, 128, (3, len(b.codes)), np.int8)
    values = in_8_bits(b).dequantize().astype(np.float64)
    for grouped in (group, max(1, group - 1), group + 1):
        weights = lookup_weights(b, grouped)
        assert weights.indices.dtype == (np.uint8 if bits * grouped <= 8 else np.uint16)
        assert_same_bits(
            lookup_matmul(QuantizedTensor(x, 1.0, INT8), weights),
            (x.astype(np.float64) @ values).astype(np.float32),  # small integers: exact
        )


@st.composite
def operands(draw: st.DrawFn, activation: Format, weight: Format) -> tuple[Any, Any]:
    """Two small matrices of any codes, scaled in any way that a product takes."""
    m, n, k = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 9))
    block = draw(st.none() | st.integers(1, 10))

    def operand(fmt: Format, codes: np.ndarray, shape: tuple[int, int], k_axis: int) -> Any:
        found = draw(hnp.arrays(codes.dtype, shape, elements=st.sampled_from(codes.tolist())))
        along = draw(st.sampled_from(["tensor", "other axis"] + ["K"] * (block is not None)))
        axis = {"tensor": None, "other axis": 1 - k_axis, "K": k_axis}[along]
        scale_shape: tuple[int, ...] = () if axis is None else (shape[axis],)
        if along == "K" and block:
            blocks = -(-k // block)
            scale_shape = (shape[0], blocks) if k_axis == 1 else (blocks, shape[1])
        scale = draw(
            hnp.arrays(np.float32, scale_shape, elements=st.floats(2.0**-60, 2.0**60, width=32))
        )
        zero_point = None
        if isinstance(fmt, IntFormat) and not fmt.fraction_bits and draw(st.booleans()):
            elements = st.sampled_from(codes.tolist())
            zero_point = draw(hnp.arrays(codes.dtype, scale_shape, elements=elements))
        return QuantizedTensor(found, scale, fmt, axis, zero_point, block if along == "K" else None)

    bytes_of_a = np.arange(256, dtype=np.uint8).view(activation.code_dtype)
    a = operand(activation, bytes_of_a, (m, k), 1)
    return a, operand(weight, codes_of(weight), (k, n), 0)


@pytest.mark.parametrize(
    ("activation", "weight"),
    [
        *((INT8, SIGNED[2]), (UINT8, UNSIGNED[3]), (E4M3FN, SIGNED[0]), (E5M2, SIGNED[1])),
        *((INT8, E2M1), (E4M3FN, E2M1), (E5M2, UNSIGNED[2])),
    ],
    ids=str,
)
@settings(max_examples=40)
@given(data=st.data())
def test_random_operands(activation: Format, weight: Format, data: st.DataObject) -> None:
    """Scales, zero points, blocks, specials, against sums of fractions."""
    a, b = data.draw(operands(activation, weight))
    expected = expected_product(a, in_8_bits(b))
    assert_same_bits(lookup_matmul(a, b), expected)
    group = data.draw(st.integers(1, 16 // weight.bits))
    block = a.block if b.block is None else None
    expanded = data.draw(st.booleans())
    weights = lookup_weights(b, group, block=block, expanded=expanded)
    assert_same_bits(lookup_matmul(a, weights), expected)
    back = weights.unpack()
    assert back.codes.dtype == b.codes.dtype
    assert np.array_equal(back.codes, b.codes)
    assert np.array_equal(matmul(a, back), matmul(a, b), equal_nan=True)


# Many rows, columns and groups


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("shape", [(1, 40, 5000), (2, 33, 1500), (5, 64, 700), (65, 200, 300)])
@pytest.mark.parametrize("weight", [SIGNED[0], SIGNED[1], E2M1], ids=str)
def test_large_shapes(weight: Format, shape: tuple[int, int, int], expanded: bool) -> None:
    """More rows, columns or groups than are worked on at a time."""
    m, k, n = shape
    a = quantize(np.random.default_rng(1).standard_normal((m, k)), "E4M3FN")
    b = QuantizedTensor(random_weights(weight, (k, n)), 0.5, weight)
    for group in (None, 2, 4):
        weights = lookup_weights(b, group, expanded=expanded)
        assert_same_bits(lookup_matmul(a, weights), matmul(a, b))


def test_leading_axes_and_rows_do_not_mix() -> None:
    rng = np.random.default_rng(2)
    a = quantize(rng.standard_normal((2, 3, 11, 48)), "INT8", axis=2)
    b = QuantizedTensor(random_weights(SIGNED[2], (48, 20)), rng.random(20) + 1, SIGNED[2], axis=1)
    weights = lookup_weights(b)
    found = lookup_matmul(a, weights)
    assert_same_bits(found, matmul(a, b))
    for index in np.ndindex(2, 3, 11):
        one = QuantizedTensor(a.codes[index][None], a.scale[index[-1]], INT8)
        assert_same_bits(lookup_matmul(one, weights)[0], found[index])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("expanded", [False, True])
def test_blocks_of_activations_alone(rows: int, expanded: bool) -> None:
    """Blocks that are whole groups need no other grouping; the last block may be short."""
    x = np.random.default_rng(10).standard_normal((rows, 46))
    a = quantize(x, "INT8", axis=1, block=12)
    b = QuantizedTensor(random_weights(SIGNED[2], (46, 5)), 1.0, SIGNED[2])
    for group in (1, 2, 3, 4):
        weights = lookup_weights(b, group, expanded=expanded)
        assert weights.run == 46
        assert_same_bits(lookup_matmul(a, weights), matmul(a, b))
        weights = lookup_weights(b, group, block=12, expanded=expanded)
        assert weights.run == 12
        whole = quantize(x, "INT8")  # without blocks, by weights that are grouped in some
        assert_same_bits(lookup_matmul(whole, weights), matmul(whole, b))


@pytest.mark.parametrize("activation", ["INT8", "E4M3FN", "E5M2", "UINT8"])
def test_asymmetric_weights_by_block(activation: str) -> None:
    """UINT4 with a zero point for each 16 rows of a column: each block subtracts its own."""
    rng = np.random.default_rng(11)
    codes, zero_point = (
        rng.integers(0, 16, (40, 3), np.uint8),
        rng.integers(0, 16, (3, 3), np.uint8),
    )
    scale = rng.random((3, 3)) + 0.5
    b = QuantizedTensor(codes, scale, UNSIGNED[3], 0, zero_point, 16)
    a = quantize(np.abs(rng.standard_normal((2, 40))), activation)
    for group in (1, 2, 3):
        found = lookup_matmul(a, lookup_weights(b, group))
        assert_same_bits(found, expected_product(a, in_8_bits(b)))


@pytest.mark.parametrize("rows", [1, 3])
def test_weights_at_their_zero_point(rows: int) -> None:
    """Every weight is 0, though the sum of the activations, in units, needs more than 24 bits."""
    codes = np.full((rows, 512), encode(448.0, E4M3FN), np.uint8)
    codes[:, ::7] = 1
    a = QuantizedTensor(codes, 1.0, E4M3FN)
    b = QuantizedTensor(np.full((512, 2), 9, np.uint8), 1.0, UNSIGNED[3], None, np.uint8(9))
    assert_same_bits(lookup_matmul(a, b), np.zeros((rows, 2), np.float32))


def test_transposed_weights() -> None:
    """A linear layer keeps its weights as (N, K)."""
    w = quantize(np.random.default_rng(3).standard_normal((24, 64)), "E2M1", axis=0)
    a = quantize(np.random.default_rng(4).standard_normal((3, 64)), "E5M2")
    assert_same_bits(lookup_matmul(a, lookup_weights(w.mT)), matmul(a, w.mT))


# Sums that do not fit narrow integers


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("k", [1, 15, 16, 17, 32, 33, 2048, 5000])
def test_extreme_integers(rows: int, k: int) -> None:
    """Runs of int16 end exactly at its largest sum, 2^15 - 1, or move on before."""
    for x, w in ((-128, -8), (127, -8), (-128, 7), (127, 7)):
        a = QuantizedTensor(np.full((rows, k), x, np.int8), 1.0, INT8)
        b = QuantizedTensor(np.full((k, 3), w, np.int8), 1.0, SIGNED[2])
        for group in (1, 2, 3):
            for expanded in (False, True):
                weights = lookup_weights(b, group, expanded=expanded)
                assert_same_bits(lookup_matmul(a, weights), exact_integers(a, b))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_entries_larger_than_the_sum_of_activations(rows: int, group: int) -> None:
    """Signs that cancel in the activations add up with the weights'."""
    signs = np.resize([1, -1], 64)
    a = QuantizedTensor(np.tile(127 * signs, (rows, 1)).astype(np.int8), 1.0, INT8)
    b = QuantizedTensor(np.where(signs > 0, 7, -8).astype(np.int8)[:, None], 1.0, SIGNED[2])
    assert_same_bits(lookup_matmul(a, lookup_weights(b, group)), exact_integers(a, b))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("k", [2047, 2048, 2049])
def test_the_end_of_int32(rows: int, k: int) -> None:
    """256 is 2^17 units: 2048 products by 8 are 2^31."""
    codes = np.full((rows, k), encode(-256.0, E4M3FN), np.uint8)
    a = QuantizedTensor(codes, 1.0, E4M3FN)
    b = QuantizedTensor(np.full((k, 2), -8, np.int8), 1.0, SIGNED[2])
    for group in (1, 2, 3):
        found = lookup_matmul(a, lookup_weights(b, group))
        assert_same_bits(found, np.full((rows, 2), 2048 * k, np.float32))


@pytest.mark.parametrize("rows", [1, 3])
def test_entries_that_float32_does_not_hold(rows: int) -> None:
    """Two groups: 49 * 2^19 + 1 units, beyond 2^24 and odd, and 1; their sum is even."""
    unit = E5M2.min_subnormal
    codes = encode(np.array([7 * 2**19, 1, 1, 0]) * unit, E5M2)
    a = QuantizedTensor(np.tile(codes, (rows, 1)), 1.0, E5M2)
    b = QuantizedTensor(np.int8([[7], [1], [1], [0]]), 1.0, SIGNED[2])
    expected = np.full((rows, 1), (49 * 2**19 + 2) * unit, np.float32)
    assert_same_bits(lookup_matmul(a, lookup_weights(b, 2)), expected)


@pytest.mark.parametrize(("activation", "code"), [(E4M3FN, 0x7E), (E5M2, 0x7B), (UINT8, 255)])
@pytest.mark.parametrize("rows", [1, 2])
def test_extreme_values(activation: Format, code: int, rows: int) -> None:
    """Beyond 2^31 in units: entries of E5M2, and long sums of E4M3FN; and odd ends below 2^24."""
    k = 4099
    codes = np.full((rows, k), code, np.uint8)
    codes[:, ::7] = 1  # the smallest subnormal: the sum's last bits
    a = QuantizedTensor(codes, 1.0, activation)
    b = QuantizedTensor(np.full((k, 2), -8, np.int8), 1.0, SIGNED[2])
    one = replace(b, codes=b.codes[:, :1])
    expected = expected_product(replace(a, codes=codes[:1]), in_8_bits(one))
    for group in (1, 2, 3):
        found = lookup_matmul(a, lookup_weights(b, group))
        assert_same_bits(found, np.broadcast_to(expected, (rows, 2)))


@pytest.mark.parametrize("rows", [1, 2])
def test_ties_and_signs_of_zero(rows: int) -> None:
    """2^24 + 1 is a tie in float32; a sum of nothing, of zeros, and of opposites is +0."""
    k = 2**24 // (64 * 8) + 1
    x = np.full((rows, k), -64, np.int8)
    x[:, -1] = 1
    w = np.full((k, 1), -8, np.int8)
    w[-1] = 1
    for last in (1, 3):
        x[:, -1] = last
        a, b = QuantizedTensor(x, 1.0, INT8), QuantizedTensor(w, 1.0, SIGNED[2])
        assert_same_bits(lookup_matmul(a, b), exact_integers(a, b))
    zeros = QuantizedTensor(np.full((rows, 4), 0x80, np.uint8), 1.0, E4M3FN)  # -0
    b = QuantizedTensor(np.int8([[1], [1], [-1], [-1]]), 1.0, SIGNED[2])
    assert_same_bits(lookup_matmul(zeros, b), np.zeros((rows, 1), np.float32))
    ones = QuantizedTensor(np.ones((rows, 4), np.int8), 1.0, INT8)
    assert_same_bits(lookup_matmul(ones, b), np.zeros((rows, 1), np.float32))


@pytest.mark.parametrize("reverse", [False, True])
def test_any_blas(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A BLAS may add the products of a group in any order."""
    a = quantize(np.random.default_rng(5).standard_normal((4, 30)), "E5M2")
    b = QuantizedTensor(random_weights(SIGNED[1], (30, 6)), 1.0, SIGNED[1])
    expected = expected_product(a, in_8_bits(b))
    monkeypatch.setattr(np, "matmul", one_by_one(reverse))
    assert_same_bits(lookup_matmul(a, lookup_weights(b, 5)), expected)


# Specials


def test_specials_follow_ieee_754() -> None:
    codes = np.array([0x7C, 0xFC, 0x7E, 0x3C], np.uint8)  # inf, -inf, NaN, 1
    w = np.int8([[0, 1, -1, 1], [0, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, 1]])
    b = QuantizedTensor(w, 1.0, SIGNED[0])
    for keep in ([0], [1], [2], [0, 1], [0, 3], [3], []):
        chosen = np.full((2, 4), 0x3C, np.uint8)
        chosen[0, keep] = codes[keep]
        a = QuantizedTensor(chosen, 1.0, E5M2)
        assert_same_bits(lookup_matmul(a, b), expected_product(a, in_8_bits(b)))


# Block formats


@pytest.mark.parametrize("expanded", [False, True])
@pytest.mark.parametrize("weight", ["MXFP4", "NVFP4"])
def test_block_formats(weight: str, expanded: bool) -> None:
    """MX and NVFP4 weights with activations of all kinds, at both numbers of rows."""
    rng = np.random.default_rng(6)
    b = quantize(rng.standard_normal((96, 10)), weight, axis=0)
    length = b.block or 0
    x = rng.standard_normal((3, 96)).astype(np.float32)
    kinds = [quantize(x, fmt) for fmt in ("INT8", "E4M3FN", "E5M2", weight)]
    kinds += [quantize(x, "INT8", axis=0), quantize(x[:1], "E4M3FN")]
    kinds += [quantize(np.abs(x), "UINT8", 0.01, zero_point=np.uint8(7))]
    if weight == "MXFP4":
        kinds += [quantize(x, "MXFP8_E4M3"), quantize(x, "MXINT8")]
    for a in kinds:
        for group in (1, 2, 3):
            weights = lookup_weights(b, group, expanded=expanded)
            assert weights.run == length
            assert_same_bits(lookup_matmul(a, weights), matmul(a, b))


@pytest.mark.parametrize("weight", [SIGNED[2], UNSIGNED[3], E2M1], ids=str)
def test_block_scaled_activations(weight: Format) -> None:
    """Weights of one scale, of one per column, and of one per block, by an MX operand."""
    rng = np.random.default_rng(7)
    codes = random_weights(weight, (64, 6))
    zero = None if weight != UNSIGNED[3] else np.uint8(8)
    whole = QuantizedTensor(codes, 0.75, weight, None, zero)
    columns = QuantizedTensor(codes, rng.random(6) + 1, weight, 1)
    for fmt in ("MXFP8_E4M3", "MXFP4", "NVFP4"):
        a = quantize(rng.standard_normal((2, 3, 64)), fmt)
        for b in (whole, columns):
            weights = lookup_weights(b, 2)
            assert_same_bits(lookup_matmul(a, weights), matmul(a, b))
    blocks = QuantizedTensor(codes, np.exp2(rng.integers(-3, 3, (2, 6))), weight, 0, None, 32)
    a = quantize(rng.standard_normal((3, 64)), "MXFP4")
    assert_same_bits(lookup_matmul(a, blocks), matmul(a, blocks))


def test_block_scales_that_are_special() -> None:
    """A scale of NaN or 0, and infinities of E5M2 times a scale."""
    b = quantize(np.random.default_rng(8).standard_normal((64, 4)), "MXFP4", axis=0)
    scale_codes = b.scale_codes.copy()
    scale_codes[0, 1] = 0xFF  # NaN
    b = QuantizedTensor(b.codes, None, "MXFP4", 0, scale_codes=scale_codes)
    a = quantize(np.random.default_rng(9).standard_normal((2, 64)), "E5M2")
    codes = a.codes.copy()
    codes[1, 3] = 0x7C
    for x in (a, replace(a, codes=codes)):
        found = lookup_matmul(x, lookup_weights(b))
        assert np.isnan(found[:, 1]).all()
        assert_same_bits(found, matmul(x, b))
    zeros = quantize(np.zeros((32, 2)), "NVFP4", axis=0)
    a = quantize(np.ones((1, 32)), "INT8")
    assert_same_bits(lookup_matmul(a, zeros), matmul(a, zeros))


def test_sums_below_float32_are_positive_zeros() -> None:
    """Scales of 2^-127 on both sides: the exact sum is negative, and rounds to zero."""
    tiny = np.zeros((1, 1), np.uint8)
    a = QuantizedTensor(np.full((1, 32), 0xB8, np.uint8), None, "MXFP8_E4M3", scale_codes=tiny)
    b = QuantizedTensor(np.full((32, 1), 2, np.uint8), None, "MXFP4", 0, scale_codes=tiny)
    assert_same_bits(lookup_matmul(a, b), np.zeros((1, 1), np.float32))


@pytest.mark.parametrize("lowest", [40, 127])
def test_scales_too_far_apart_are_refused(lowest: int) -> None:
    b = quantize(np.ones((64, 2)), "MXFP4", axis=0)
    a = quantize(np.ones((1, 64)), "E4M3FN")  # 2^17.8 of its own, 2^3.6 of E2M1, 2^6 of K
    codes = np.full((2, 2), lowest, np.uint8)
    codes[1] += 24
    fits = QuantizedTensor(b.codes, None, "MXFP4", 0, scale_codes=codes)
    assert_same_bits(lookup_matmul(a, fits), matmul(a, fits))
    codes = codes + np.uint8([[0], [4]])
    beyond = QuantizedTensor(b.codes, None, "MXFP4", 0, scale_codes=codes)
    with pytest.raises(ValueError, match=r"E4M3FN by MXFP4: .* 28 binades.* npfp8.matmul"):
        lookup_matmul(a, beyond)


def test_the_longest_sums() -> None:
    """E5M2 spans 2^31.8, so float64 holds K of some 300,000; a zero point counts as a weight."""
    most = 2**53 // (3_758_096_384 * 8)

    def product(k: int, fmt: IntFormat, code: int, zero_point: Any = None) -> np.ndarray:
        a = QuantizedTensor(np.full((1, k), 0x7B, np.uint8), 1.0, E5M2)
        codes = np.full((k, 1), code, fmt.code_dtype)
        return lookup_matmul(a, QuantizedTensor(codes, 1.0, fmt, zero_point=zero_point))

    assert product(most, SIGNED[2], -8)[0, 0] == np.float32(-8 * 57344.0 * most)
    with pytest.raises(ValueError, match=f"E5M2 by INT4: expected K of at most {most} for look-up"):
        product(most + 1, SIGNED[2], -8)
    assert product(100_000, UNSIGNED[3], 15)[0, 0] == np.float32(15 * 57344.0 * 100_000)
    with pytest.raises(ValueError, match="E5M2 by UINT4: expected K of at most 79891 for look-up"):
        product(100_000, UNSIGNED[3], 15, np.uint8(15))


# Groups and sizes


def test_groups_by_default() -> None:
    """Wider groups where the table of a group is short beside a row of the weights."""

    def group(fmt: Format, n: int) -> int:
        return lookup_weights(QuantizedTensor(np.zeros((4, n), fmt.code_dtype), 1.0, fmt)).group

    assert [group(SIGNED[0], n) for n in (1, 768, 3072, 30522)] == [1, 4, 4, 6]
    assert [group(SIGNED[1], n) for n in (1, 300, 768, 3072)] == [1, 2, 3, 3]
    assert [group(E2M1, n) for n in (1, 768, 3072)] == [1, 2, 2]


def test_bytes() -> None:
    b = quantize(np.ones((768, 512)), "E2M1", axis=1)
    assert lookup_weights(b, 2).nbytes == 768 * 512 // 2 + 4 * 512
    assert lookup_weights(b, 3).nbytes == 256 * 512 * 2 + 4 * 512
    assert lookup_weights(b, 2, expanded=True).nbytes == 384 * 512 * 8 + 4 * 512


def test_repr() -> None:
    q = quantize(np.ones((64, 4)), "MXFP4", axis=0)
    assert repr(lookup_weights(q, 2)) == "<LookupWeights (64, 4) MXFP4, 32 groups of 2, 136 bytes>"
    expanded = lookup_weights(q, 3, expanded=True)
    assert repr(expanded) == "<LookupWeights (64, 4) MXFP4, 22 groups of 3 expanded, 712 bytes>"


# What is refused

Q = QuantizedTensor(np.ones((6, 2), np.int8), 1.0, SIGNED[2])
A = QuantizedTensor(np.ones((1, 6), np.int8), 1.0, INT8)
PACKED = lookup_weights(Q, 2)
EIGHT = QuantizedTensor(np.ones((6, 2), np.uint8), 1.0, E4M3FN)
STACK = QuantizedTensor(np.ones((2, 6, 2), np.int8), 1.0, SIGNED[2])
NAN4 = FloatFormat(2, 1, bias=1, nan_codes=(7, 15), name="E2M1 with NaN")
BLOCKS = quantize(np.ones((6, 2)), SIGNED[2], axis=0, block=3)
A_BLOCKS = quantize(np.ones((1, 6)), "INT8", axis=1, block=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lookup_weights(EIGHT),
            "b: expected a format of at most 4 bits, found E4M3FN of 8",
        ),
        (lambda: lookup_weights(STACK), "b: expected a matrix (K, N), found shape (2, 6, 2)"),
        (
            lambda: lookup_weights(quantize(np.ones((6, 2)), NAN4)),
            "b: expected a format without infinity and NaN, found E2M1 with NaN",
        ),
        (lambda: lookup_weights(Q, 5), "group: expected 1 to 4 for weights of 4 bits, found 5"),
        (lambda: lookup_weights(Q, 0), "group: expected 1 to 4 for weights of 4 bits, found 0"),
        (lambda: lookup_weights(Q, block=0), "block: expected at least 1, found 0"),
        (
            lambda: lookup_weights(BLOCKS, block=2),
            "block: expected 3, which the blocks of b are, found 2",
        ),
        (
            lambda: lookup_matmul(A_BLOCKS, PACKED),
            "b: expected groups within the blocks of 3 of a, found groups of 2 in runs of 6: "
            "lookup_weights takes block=3",
        ),
        (
            lambda: lookup_matmul(quantize(np.ones((1, 6)), "INT8", axis=1, block=2), BLOCKS),
            "blocks along K: expected equal ones, found 2 and 3",
        ),
        (
            lambda: lookup_matmul(quantize(np.ones((1, 5)), "INT8"), PACKED),
            "expected shapes (..., M, K) and (..., K, N), found (1, 5) and (6, 2)",
        ),
        (
            lambda: lookup_matmul(quantize(np.ones(6), "INT8"), PACKED),
            "a: expected at least 2 axes, found shape (6,)",
        ),
        (
            lambda: lookup_matmul(quantize(np.ones((1, 6)), "E8M0FNU", 1.0), PACKED),
            "E8M0FNU by INT4: expected K of at most 0 for look-up tables, found 6",
        ),
        (
            lambda: lookup_matmul(A, quantize(np.ones((6, 2)), SIGNED[2], axis=0)),
            "a scale that varies along K does not factor out of the sum",
        ),
        (
            lambda: lookup_matmul(A, quantize(np.ones((6, 32)), "MXFP4", axis=1)),
            "b: expected blocks along K, found them along axis 1",
        ),
        (
            lambda: lookup_matmul(replace(A, scale=1e30), replace(Q, scale=1e30)),
            "the product of the operands' scales overflows or underflows float32",
        ),
        (lambda: replace(PACKED, run=0), "run: expected at least 1, found 0"),
        (lambda: replace(PACKED, group=3), "indices: expected shape (2, 2), found (3, 2)"),
    ],
)
def test_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lookup_weights(np.ones((2, 2))), "b: expected a QuantizedTensor, found ndarray"),
        (lambda: lookup_weights(Q, 2.0), "group: expected an integer, found float"),
        (lambda: lookup_weights(Q, expanded=1), "expanded: expected True or False, found int"),
        (lambda: lookup_matmul(Q, np.ones(2)), "b: expected LookupWeights or a QuantizedTensor"),
        (lambda: lookup_matmul(PACKED, Q), "a: expected a QuantizedTensor, found LookupWeights"),
        (
            lambda: LookupWeights(np.zeros((1, 1)), Q, 2, 6),
            f"indices: expected an array of uint8 or uint16 or {np.dtype(np.intp)}, found float64",
        ),
    ],
)
def test_wrong_types(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call()

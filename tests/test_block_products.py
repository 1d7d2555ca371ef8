"""Products of block-scaled operands, against sums of fractions rounded once."""

from __future__ import annotations

import functools
import itertools
import math
import re
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import FLOAT32, add32, assert_same_bits, multiply32, nearest
from test_matmul import one_by_one

import npfp8
from npfp8 import (
    BLOCK_FORMATS,
    E4M3FN,
    E5M2,
    INT8,
    MXFP4,
    MXFP6_E2M3,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    UINT8,
    Accumulator,
    BlockFormat,
    QuantizedTensor,
    exact_k_limit,
    matmul,
    quantize,
)
from npfp8.products import blocks as block_products
from npfp8.products import float32 as float_matmul

PAIRS = list(itertools.product(BLOCK_FORMATS.values(), repeat=2))
EQUAL_BLOCKS = [(a, b) for a, b in PAIRS if a.block == b.block]

#: NVFP4 whose stored number is the factor itself.
PLAIN_NVFP4 = BlockFormat("E2M1", 16, "E4M3FN", "exact", True, "plain NVFP4")

#: The fields of the formats, and their bias: the codes' values are made from these alone.
FIELDS = {
    "E4M3FN": (4, 3, 7),
    "E5M2": (5, 2, 15),
    "E3M2": (3, 2, 3),
    "E2M3": (2, 3, 1),
    "E2M1": (2, 1, 1),
}


# The oracle


def code_value(name: str, code: int) -> Fraction | float:
    """The value of a code, from its bits."""
    if name in ("FIXED8", "INT8"):
        return Fraction(code - 256 * (code > 127), 64 if name == "FIXED8" else 1)
    if name == "UINT8":
        return Fraction(code)
    if name == "E8M0FNU":
        return math.nan if code == 255 else Fraction(2) ** (code - 127)
    exponent_bits, mantissa_bits, bias = FIELDS[name]
    sign = -1 if code >> (exponent_bits + mantissa_bits) else 1
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = Fraction(code & (1 << mantissa_bits) - 1, 1 << mantissa_bits)
    if name == "E4M3FN" and code & 0x7F == 0x7F:
        return math.nan
    if name == "E5M2" and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    whole = int(exponent > 0)
    return sign * (whole + mantissa) * Fraction(2) ** (max(exponent, 1) - bias)


def times(x: Fraction | float, y: Fraction | float) -> Fraction | float:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * y
    return float((x > 0) - (x < 0) if isinstance(x, Fraction) else x) * float(
        (y > 0) - (y < 0) if isinstance(y, Fraction) else y
    )


def elements(x: QuantizedTensor) -> np.ndarray:
    """Code value times block scale: Fractions, and floats where it is a special."""
    bits = x.codes.view(np.uint8)
    out = np.empty(x.shape, object)
    for index in np.ndindex(x.shape):
        value = code_value(x.fmt.name, int(bits[index]))
        if x.zero_point is not None:
            value -= int(x.zero_point if x.zero_point.ndim == 0 else x.zero_point[index[x.axis]])
        if x.block is not None:
            place = tuple(i // x.block if j == x.axis else i for j, i in enumerate(index))
            if x.scale_codes is None:
                scale: Fraction | float = Fraction(float(x.scale[place]))
            else:
                code = int(x.scale_codes[place])
                scale = code_value(x.block_format.scale_format.name, code)
            value = times(value, scale)
        out[index] = value
    return out


def sum_of(xs: Any, ys: Any) -> Fraction | float:
    """The exact sum of products; a special as IEEE arithmetic has it."""
    terms = [times(x, y) for x, y in zip(xs, ys, strict=True)]
    specials = [term for term in terms if not isinstance(term, Fraction)]
    return sum(specials) if specials else sum(terms, Fraction(0))


def rounded(x: Fraction | float) -> float:
    return nearest(x, FLOAT32) + 0.0


def factor(x: QuantizedTensor, index: tuple[int, ...]) -> float:
    """What multiplies the sum of an operand at a place of the result."""
    if x.block is not None:
        if x.tensor_scale is None:
            return 1.0
        number = x.tensor_scale
        return {
            "exact": lambda: float(number),
            "te": lambda: float(number / np.float32(2688)),
            "compressed-tensors": lambda: float(np.float32(1) / number),
        }[x.block_format.rule]()
    return float(x.scale if x.axis is None else x.scale[index[x.axis - x.ndim]])


def expected(a: QuantizedTensor, b: QuantizedTensor, block: int | None = None) -> np.ndarray:
    """The exact sum rounded once, or with ``block`` the blocks' sums, each rounded and added."""
    x, y = elements(a), elements(b)
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n = a.shape[-2:], b.shape[-1]
    x, y = np.broadcast_to(x, (*lead, m, k)), np.broadcast_to(y, (*lead, k, n))
    out = np.zeros((*lead, m, n), np.float32)
    for index in np.ndindex(out.shape):
        row, column = x[index[:-1]], y[(*index[:-2], slice(None), index[-1])]
        length = block or max(k, 1)
        parts = [
            rounded(sum_of(row[i : i + length], column[i : i + length]))
            for i in range(0, k, length)
        ]
        total = parts[0] if parts else 0.0
        for part in parts[1:]:
            total = add32(total, part)
        scale = multiply32(factor(a, index), factor(b, index))
        value = multiply32(total, scale)
        out[index] = math.nan if math.isnan(value) else value
    return out


def check(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert_same_bits(matmul(a, b), expected(a, b))


# Operands


def tensor(
    fmt: BlockFormat, bits: Any, scale_codes: Any, axis: int = -1, tensor_scale: Any = None
) -> QuantizedTensor:
    """A tensor of codes given as their bits; read-only, as no product may change it."""
    codes = np.array(bits, np.uint8).view(fmt.element.code_dtype)
    scales = np.array(scale_codes, np.uint8)
    codes.flags.writeable = scales.flags.writeable = False
    if fmt.tensor_scale and tensor_scale is None:
        tensor_scale = np.float32(1)
    return QuantizedTensor(codes, None, fmt, axis, scale_codes=scales, tensor_scale=tensor_scale)


def scale_shape(fmt: BlockFormat, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return tuple(-(-n // fmt.block) if i == axis else n for i, n in enumerate(shape))


def finite_bits(fmt: npfp8.Format) -> list[int]:
    count = 256 if isinstance(fmt, npfp8.IntFormat) else fmt.values.size
    return [c for c in range(count) if math.isfinite(code_value(fmt.name, c))]


def random_tensor(
    fmt: BlockFormat,
    shape: tuple[int, ...],
    seed: int,
    axis: int = -1,
    scales: tuple[int, int] = (0, 255),
    **fields: Any,
) -> QuantizedTensor:
    """Finite codes, all equally likely; scales too, within a range of codes."""
    rng = np.random.default_rng([seed, *shape])
    known = finite_bits(fmt.scale_format)
    known = [c for c in known if scales[0] <= c < scales[1]]
    return tensor(
        fmt,
        rng.choice(finite_bits(fmt.element), shape),
        rng.choice(known, scale_shape(fmt, shape, axis)),
        axis,
        **fields,
    )


#: One code of each format for 1, or a power of two beside it.
ONE = {"E4M3FN": 0x38, "E5M2": 0x3C, "E3M2": 0x0C, "E2M3": 0x08, "E2M1": 0x02, "FIXED8": 64}


def of_powers(fmt: BlockFormat, exponents: list[int], signs: list[int]) -> QuantizedTensor:
    """One row with one number in each block: plus or minus 2 to each exponent."""
    one = ONE[fmt.element.name]
    sign_bit = 1 << (fmt.element.bits - 1) if isinstance(fmt.element, npfp8.FloatFormat) else 0
    codes = np.zeros((1, fmt.block * len(exponents)), np.uint8)
    for i, sign in enumerate(signs):
        minus = one | sign_bit if sign_bit else 256 - one
        codes[0, i * fmt.block + i % fmt.block] = one if sign > 0 else minus
    return tensor(fmt, codes, np.array([[e + 127 for e in exponents]]))


def ones(fmt: BlockFormat, k: int, exponent: int = 0) -> QuantizedTensor:
    """A column of ones times a power of two."""
    codes = np.full((k, 1), ONE[fmt.element.name], np.uint8)
    scale = np.full((-(-k // fmt.block), 1), exponent + 127)
    return tensor(fmt, codes, scale, 0)


#: MX formats of each width.
SOME = [MXFP4, MXFP8_E4M3, MXFP8_E5M2, MXINT8]
some = pytest.mark.parametrize("fmt", SOME, ids=str)
pairs = pytest.mark.parametrize(("fmt_a", "fmt_b"), PAIRS, ids=str)


@pytest.fixture(params=["BLAS", "forwards", "backwards"])
def blas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever BLAS there is, and two that add one product after the other."""
    if request.param != "BLAS":
        monkeypatch.setattr(np, "matmul", one_by_one(request.param == "backwards"))
    return request.param


# The exact sum


@functools.cache
def pair(
    fmt_a: BlockFormat, fmt_b: BlockFormat, k: int, scales: tuple[int, int], block: int | None
) -> tuple[QuantizedTensor, QuantizedTensor, np.ndarray]:
    """Two operands, and their product: once for all BLAS."""
    a = random_tensor(fmt_a, (3, k), 1, scales=scales if not fmt_a.tensor_scale else (0, 255))
    b = random_tensor(fmt_b, (k, 3), 2, 0, scales if not fmt_b.tensor_scale else (0, 255))
    return a, b, expected(a, b, block)


@pairs
@pytest.mark.parametrize("scales", [(120, 134), (0, 255)], ids=["near", "wide"])
def test_every_pair_of_formats(
    fmt_a: BlockFormat, fmt_b: BlockFormat, scales: tuple[int, int], blas: str
) -> None:
    a, b, product = pair(fmt_a, fmt_b, 70, scales, None)
    assert_same_bits(matmul(a, b), product)


@st.composite
def operands(draw: st.DrawFn) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Small matrices of any codes and scales, in blocks of any length along any axis."""
    m, n, k = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 9))
    specials = draw(st.booleans())

    def operand(shape: tuple[int, int]) -> QuantizedTensor:
        known = draw(st.sampled_from([*BLOCK_FORMATS.values(), PLAIN_NVFP4]))
        own = BlockFormat(
            known.element,
            draw(st.integers(1, 10)),
            known.scale_format,
            known.rule,
            known.tensor_scale,
        )
        axis = draw(st.sampled_from([0, 1]))
        codes = range(256 if own.element.name == "FIXED8" else own.element.values.size)
        chosen = list(codes) if specials else finite_bits(own.element)
        scales = list(range(256)) if specials else finite_bits(own.scale_format)
        if draw(st.booleans()):
            scales = scales[:2] + scales[110:140] + scales[-2:]
        bits = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(chosen)))
        scale_codes = draw(
            hnp.arrays(np.uint8, scale_shape(own, shape, axis), elements=st.sampled_from(scales))
        )
        number = draw(st.floats(2.0**-30, 2.0**30, width=32)) if own.tensor_scale else None
        return tensor(own, bits, scale_codes, axis, None if number is None else np.float32(number))

    return operand((m, k)), operand((k, n))


@settings(max_examples=300)
@given(operands())
def test_random_operands(both: tuple[QuantizedTensor, QuantizedTensor]) -> None:
    check(*both)


#: Terms as powers of two with their signs, and the sum in float32: each needs one rounding only.
SUMS = {
    "a tie to even below": ([30, 6], [1, 1], 2.0**30),
    "a tie to even above": ([30, 7, 6], [1, 1, 1], 2.0**30 + 2.0**8),
    "just above a tie": ([30, 6, -32], [1, 1, 1], 2.0**30 + 2.0**7),
    "far above a tie": ([30, 6, -90], [1, 1, 1], 2.0**30 + 2.0**7),
    "far below a tie": ([30, 7, 6, -90], [1, 1, 1, -1], 2.0**30 + 2.0**7),
    "below a power of two": ([30, 5, 4, -60], [1, -1, -1, 1], 2.0**30 - 2.0**6),
    "all cancels": ([60, 60, -60, -60], [1, -1, -1, 1], 0.0),
    "a rest": ([60, 3, 60], [1, -1, -1], -8.0),
    "a rest far below": ([100, -60, 20, 100, 20], [1, 1, 1, -1, -1], 2.0**-60),
    "one binade": ([1] * 12, [1, -1, 1, 1] * 3, 12.0),
}


@some
@pytest.mark.parametrize("case", SUMS)
@pytest.mark.parametrize(("sign", "shift"), [(1, 0), (-1, -30), (1, 20)])
def test_sums_are_rounded_once(
    fmt: BlockFormat, case: str, sign: int, shift: int, blas: str
) -> None:
    exponents, signs, total = SUMS[case]
    value = sign * total * 2.0**shift + 0.0
    others = itertools.cycle((fmt, MXFP4, MXFP8_E5M2))
    for order in itertools.islice(itertools.permutations(range(len(exponents))), 24):
        row = of_powers(fmt, [exponents[i] for i in order], [sign * signs[i] for i in order])
        column = ones(next(others), row.shape[1], shift)
        assert_same_bits(matmul(row, column), np.float32([[value]]))


@pytest.mark.parametrize(
    ("exponents", "signs", "value"),
    [
        ([-150], [1], 0.0),
        ([-150], [-1], 0.0),
        ([-150, -250], [1, 1], 2.0**-149),
        ([-149, -150], [1, 1], 2.0**-148),
        ([-149, -150, -240], [1, 1, -1], 2.0**-149),
        ([-126, -150], [1, -1], 2.0**-126),
        ([-126, -150, -254], [1, -1, -1], 2.0**-126 - 2.0**-149),
        ([-254], [1], 0.0),
        ([128], [1], math.inf),
        ([254, 254], [1, 1], math.inf),
        ([254, 254, -254], [1, -1, -1], 0.0),
        ([254, 254, -127], [1, -1, -1], -(2.0**-127)),
        ([128, 103], [1, -1], math.inf),
        ([128, 103, -254], [1, -1, -1], 2.0**128 - 2.0**104),
        ([128, 103, -254], [-1, 1, 1], -(2.0**128 - 2.0**104)),
    ],
)
@some
def test_the_ends_of_float32(
    fmt: BlockFormat, exponents: list[int], signs: list[int], value: float, blas: str
) -> None:
    """The two scales of a block have half of the exponent each."""
    halves = [exponent // 2 for exponent in exponents]
    row = of_powers(fmt, halves, signs)
    others = [exponent - half for exponent, half in zip(exponents, halves, strict=True)]
    column = of_powers(fmt, others, [1] * len(others))
    assert_same_bits(matmul(row, column.mT), np.float32([[value]]))


@some
def test_every_pair_of_scales(fmt: BlockFormat) -> None:
    """One product: 2 to any sum of two exponents, from 0 to infinity."""
    codes = np.full((255, 1), ONE[fmt.element.name])
    every = np.arange(255)[:, None]
    a, b = tensor(fmt, codes, every), tensor(fmt, codes, every)
    with np.errstate(over="ignore", under="ignore"):
        powers = np.ldexp(1.0, every + every.T - 254).astype(np.float32)
    assert_same_bits(matmul(a, b.mT), powers)


def test_a_scale_of_zero() -> None:
    """NVFP4's 0x00, and 0x80: the block counts as zeros, and is no NaN beside large numbers."""
    codes = np.full((1, 32), 7)
    a = tensor(PLAIN_NVFP4, codes, [[0x00, 0x01]])
    b = tensor(PLAIN_NVFP4, codes.T, [[0x7E], [0x80]], 0)
    assert_same_bits(matmul(a, b), np.float32([[0.0]]))
    assert_same_bits(matmul(a, a.mT), np.float32([[36 * 16 * 2.0**-18]]))


def test_negative_scales_of_nvfp4() -> None:
    a = tensor(PLAIN_NVFP4, np.full((1, 16), 2), [[0xB8]])
    assert_same_bits(matmul(a, ones(MXFP4, 16)), np.float32([[-16.0]]))


@pairs
def test_specials(fmt_a: BlockFormat, fmt_b: BlockFormat) -> None:
    """NaN scales and elements, infinities of E5M2, zeros beside them."""
    rng = np.random.default_rng(5)

    def operand(fmt: BlockFormat, shape: tuple[int, int], axis: int) -> QuantizedTensor:
        codes = np.zeros(shape, np.uint8)
        some = rng.random(shape) < 0.3
        count = 256 if fmt.element.name == "FIXED8" else fmt.element.values.size
        codes[some] = rng.choice(count, int(some.sum()))
        for bits in (0x7C, 0xFC, 0x7F):
            if fmt.element.name == "E5M2":
                codes[rng.random(shape) < 0.01] = bits
        scales = rng.integers(100, 126, scale_shape(fmt, shape, axis))
        scales[rng.random(scales.shape) < 0.1] = 0xFF if not fmt.tensor_scale else 0x7F
        return tensor(fmt, codes, scales, axis)

    a, b = operand(fmt_a, (6, 50), 1), operand(fmt_b, (50, 6), 0)
    found = matmul(a, b)
    assert_same_bits(found, expected(a, b))
    assert np.isnan(found).any()
    assert not np.isnan(found).all()
    if fmt_a.block == fmt_b.block:
        found = matmul(a, b, "block-sums")
        assert_same_bits(found, expected(a, b, fmt_a.block))


def test_a_scale_that_is_nan_makes_its_block_nan() -> None:
    a = tensor(MXFP4, np.zeros((2, 64)), [[127, 127], [127, 255]])
    for accumulate in npfp8.ACCUMULATORS.values():
        if accumulate.scales_along_k and accumulate.block != 16:
            found = matmul(a, ones(MXFP4, 64), accumulate)
            wanted = np.uint32([[0], [accumulate.nan_bits]])
            np.testing.assert_array_equal(found.view(np.uint32), wanted)


# Operands of other kinds


def plain_operands() -> dict[str, QuantizedTensor]:
    """Matrices (70, 3) and their scales: per tensor, per channel, with zero points, in blocks."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((70, 3)).astype(np.float32)
    scales = np.abs(rng.standard_normal((3, 3))).astype(np.float32) + np.float32(0.1)
    codes = rng.integers(0, 256, (70, 3)).astype(np.uint8)
    return {
        "E4M3FN": quantize(x, E4M3FN),
        "E5M2 per channel": quantize(x, E5M2, axis=1),
        "INT8 per channel": quantize(x, INT8, axis=1),
        "UINT8 with zero point": QuantizedTensor(codes, 0.37, UINT8, zero_point=np.uint8(130)),
        "UINT8 with zero points": QuantizedTensor(
            codes, scales[0], UINT8, 1, zero_point=np.uint8([0, 255, 17])
        ),
        "E4M3FN in blocks": QuantizedTensor(codes & 0x77, scales, E4M3FN, 0, block=24),
        "E4M3FN in blocks along N": QuantizedTensor(
            codes & 0x77, np.resize(scales, (70, 2)), E4M3FN, 1, block=2
        ),
    }


@pytest.mark.parametrize("name", plain_operands())
@pytest.mark.parametrize("fmt", [MXFP4, MXFP8_E5M2, NVFP4, MXINT8], ids=str)
@pytest.mark.parametrize("scales", [(120, 126), (0, 255)], ids=["near", "wide"])
def test_with_operands_that_are_not_block_scaled(
    fmt: BlockFormat, name: str, scales: tuple[int, int], blas: str
) -> None:
    b = plain_operands()[name]
    a = random_tensor(fmt, (3, 70), 3, scales=scales)
    check(a, b)
    check(b.mT, a.mT)


@pytest.mark.parametrize("rule", ["exact", "te", "compressed-tensors"])
def test_the_factor_is_the_rules_multiplier(rule: str) -> None:
    rng = np.random.default_rng(8)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 40), (40, 3)))
    a, b = quantize(x, NVFP4, rule=rule), quantize(3 * y, NVFP4, axis=0, rule=rule)
    assert a.tensor_scale != b.tensor_scale
    check(a, b)
    np.testing.assert_allclose(matmul(a, b), 3 * x @ y, rtol=0, atol=12)
    check(a, quantize(y, E4M3FN))
    check(a, quantize(y, MXFP4, axis=0))


def test_the_sum_is_rounded_before_the_factor() -> None:
    codes = np.zeros((1, 64), np.uint8)
    codes[0, [0, 17, 33]] = 2
    a = tensor(PLAIN_NVFP4, codes, [[0x7E, 0x01, 0x01, 0x08]], tensor_scale=np.float32(1 / 3))
    b = tensor(PLAIN_NVFP4, np.full((64, 1), 2), [[0x7D], [0x02], [0x01], [0x7E]], 0)
    check(a, b)


def test_factors_whose_product_is_no_float32() -> None:
    codes, scales = np.full((1, 16), 2), [[0x38]]
    tiny = tensor(PLAIN_NVFP4, codes, scales, tensor_scale=np.float32(2.0**-100))
    with pytest.raises(ValueError, match="overflows or underflows float32"):
        matmul(tiny, tiny.mT)
    huge = tensor(PLAIN_NVFP4, codes, scales, tensor_scale=np.float32(2.0**100))
    with pytest.raises(ValueError, match="overflows or underflows float32"):
        matmul(huge, huge.mT)
    assert_same_bits(matmul(tiny, huge.mT), np.float32([[16.0]]))


def test_a_tensor_of_zeros() -> None:
    """The number that is stored for it is 0 with some rules."""
    zero = quantize(np.zeros((2, 32), np.float32), NVFP4)
    assert zero.tensor_scale == 0
    other = quantize(np.ones((32, 2), np.float32), NVFP4, axis=0)
    for accumulate in ("exact", "float32", "block-sums", "bfloat16"):
        assert_same_bits(matmul(zero, other, accumulate), np.zeros((2, 2), np.float32))


# Shapes and layouts


@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((2, 3, 40), (2, 40, 3)),
        ((2, 1, 2, 40), (3, 40, 2)),
        ((2, 40), (2, 2, 40, 3)),
        ((2, 2, 3, 40), (40, 2)),
    ],
)
@pytest.mark.parametrize("scales", [(120, 126), (0, 255)], ids=["near", "wide"])
def test_leading_axes_broadcast(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], scales: tuple[int, int]
) -> None:
    for fmt in (MXFP8_E5M2, NVFP4):
        a = random_tensor(fmt, shape_a, 1, scales=scales)
        b = random_tensor(fmt, shape_b, 2, -2, scales)
        check(a, b)
        assert_same_bits(matmul(a, b, "block-sums"), expected(a, b, fmt.block))


@pytest.mark.parametrize("axis_a", [0, 1, 2])
@pytest.mark.parametrize("axis_b", [0, 1, 2])
@pytest.mark.parametrize("scales", [(120, 126), (0, 255)], ids=["near", "wide"])
def test_blocks_along_any_axis(axis_a: int, axis_b: int, scales: tuple[int, int]) -> None:
    short = BlockFormat("E4M3FN", 2, name="blocks of 2")
    a = random_tensor(short, (3, 3, 7), 1, axis_a, scales)
    b = random_tensor(short, (3, 7, 3), 2, axis_b, scales)
    check(a, b)


@pytest.mark.parametrize("accumulate", ["exact", "block-sums", "float32", "float16"])
@pytest.mark.parametrize("shape", [(0, 40, 2), (2, 40, 0), (2, 0, 3), (0, 0, 0)])
@pytest.mark.parametrize("fmt", [MXFP4, NVFP4, MXFP8_E5M2], ids=str)
def test_empty_products(fmt: BlockFormat, shape: tuple[int, int, int], accumulate: str) -> None:
    m, k, n = shape
    a = random_tensor(fmt, (m, k), 1)
    b = random_tensor(fmt, (k, n), 2, 0)
    assert_same_bits(matmul(a, b, accumulate), np.zeros((m, n), np.float32))
    plain = quantize(np.ones((k, n), np.float32), E4M3FN)
    assert_same_bits(matmul(a, plain, accumulate), np.zeros((m, n), np.float32))


@pytest.mark.parametrize("fmt", [MXFP8_E5M2, NVFP4], ids=str)
def test_operands_of_any_layout(fmt: BlockFormat) -> None:
    a, b = random_tensor(fmt, (6, 70), 1), random_tensor(fmt, (70, 8), 2, 0)
    for accumulate in ("exact", "block-sums"):
        found = matmul(a, b, accumulate)

        def strided(x: QuantizedTensor) -> QuantizedTensor:
            return QuantizedTensor(
                np.asfortranarray(x.codes.repeat(2, 0))[::2],
                None,
                x.block_format,
                x.axis,
                scale_codes=x.scale_codes[:, ::-1].copy()[:, ::-1],
                tensor_scale=x.tensor_scale,
            )

        assert_same_bits(matmul(strided(a), strided(b), accumulate), found)
        assert_same_bits(matmul(b.mT, a.mT, accumulate), found.T)
    assert_same_bits(a @ b, matmul(a, b))


def test_blocks_of_different_lengths() -> None:
    for length_a, length_b in itertools.product((1, 3, 16, 1000), repeat=2):
        a = random_tensor(BlockFormat("E2M1", length_a), (2, 50), 1, scales=(100, 150))
        b = random_tensor(BlockFormat("E4M3FN", length_b), (50, 2), 2, 0, (100, 150))
        check(a, b)


# The bits do not depend on how they are computed


@pytest.mark.parametrize("fmt", [MXFP4, MXFP8_E4M3, MXFP8_E5M2, NVFP4], ids=str)
def test_the_order_of_the_blocks_changes_no_bit(fmt: BlockFormat) -> None:
    scales = (0, 127) if fmt.tensor_scale else (90, 126)
    a = random_tensor(fmt, (20, 320), 1, scales=scales)
    b = random_tensor(fmt, (320, 20), 2, 0, scales)
    found, float32 = matmul(a, b), matmul(a, b, "float32")
    rng = np.random.default_rng(9)
    changed = 0
    for _ in range(4):
        order = rng.permutation(320 // fmt.block)
        each = (order[:, None] * fmt.block + np.arange(fmt.block)).ravel()
        x = tensor(fmt, a.codes[:, each], a.scale_codes[:, order])
        y = tensor(fmt, b.codes[each], b.scale_codes[order], 0)
        assert_same_bits(matmul(x, y), found)
        changed += int((matmul(x, y, "float32") != float32).sum())
    assert changed > 100  # a BLAS in float32 is another matter


@pytest.mark.parametrize("fmt", [MXFP4, MXFP8_E4M3, MXFP8_E5M2, NVFP4, MXINT8], ids=str)
@pytest.mark.parametrize("accumulate", ["exact", "block-sums"])
@pytest.mark.parametrize("scales", [(118, 126), (0, 255)], ids=["near", "wide"])
def test_every_way_gives_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, fmt: BlockFormat, accumulate: str, scales: tuple[int, int]
) -> None:
    """The bound may settle all, the error may settle most, or all may be added exactly."""
    a = random_tensor(fmt, (20, 96), 1, scales=scales)
    b = random_tensor(fmt, (96, 15), 2, 0, scales)
    found = matmul(a, b, accumulate)
    monkeypatch.setattr(block_products, "code_span", lambda *_: math.inf)
    monkeypatch.setattr(block_products, "_largest_span", lambda *_: math.inf)
    for name in ("span", "wide_span", "element_span"):
        monkeypatch.setattr(block_products.Prepared, name, math.inf)
    assert_same_bits(matmul(a, b, accumulate), found)
    original, seen = float_matmul._round_settled, []

    def doubting(sums: Any, error: np.ndarray, *rest: Any) -> None:
        seen.append(sums.size)
        original(sums, np.full_like(error, np.inf), *rest)

    monkeypatch.setattr(float_matmul, "_round_settled", doubting)
    assert_same_bits(matmul(a, b, accumulate), found)
    assert sum(seen) >= found.size


def test_results_of_more_than_a_chunk() -> None:
    """Rows and columns alone have the bits that they have together."""
    a = random_tensor(MXFP4, (300, 64), 1)
    b = random_tensor(MXFP4, (64, 900), 2, 0)
    together, in_blocks = matmul(a, b), matmul(a, b, "block-sums")
    assert together.size > 2 * float_matmul._CHUNK
    for i in range(0, 300, 37):
        row = tensor(MXFP4, a.codes[i : i + 1], a.scale_codes[i : i + 1])
        assert_same_bits(matmul(row, b), together[i : i + 1])
        assert_same_bits(matmul(row, b, "block-sums"), in_blocks[i : i + 1])


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Count the calls of a function of the products of blocks."""
    original, calls = getattr(block_products, name), []

    def counting(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(block_products, name, counting)
    return calls


@pytest.mark.parametrize("fmt", [f for f in BLOCK_FORMATS.values() if f != MXFP8_E5M2], ids=str)
def test_normal_numbers_need_one_product(monkeypatch: pytest.MonkeyPatch, fmt: BlockFormat) -> None:
    rng = np.random.default_rng(10)
    a = quantize(rng.standard_normal((64, 768)).astype(np.float32), fmt)
    b = quantize(rng.standard_normal((768, 64)).astype(np.float32), fmt, axis=0)
    calls = counted(monkeypatch, "rounded_product")
    matmul(a, b)
    assert not calls


def test_few_sums_of_wide_scales_are_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    original = float_matmul._exact_sums

    def counting(terms: np.ndarray) -> np.ndarray:
        counts.append(len(terms))
        return original(terms)

    monkeypatch.setattr(float_matmul, "_exact_sums", counting)
    rng = np.random.default_rng(11)
    for fmt in (MXFP8_E4M3, MXFP8_E5M2):
        a, b = (quantize(rng.standard_normal((200, 768)).astype(np.float32), fmt) for _ in "ab")
        a, b = (tensor(fmt, x.codes, rng.integers(0, 255, x.scale.shape)) for x in (a, b))
        matmul(a, b.mT)
        assert sum(counts) < 200 * 200 / 1000
        counts.clear()


# The bound of one product


def test_limits_of_the_documentation() -> None:
    assert exact_k_limit(NVFP4, NVFP4, parts=1) == exact_k_limit("nvfp4", "NVFP4", parts=1) == 1188
    assert exact_k_limit(MXFP4, MXFP4, parts=1) == 0
    assert exact_k_limit(MXFP4, NVFP4) == exact_k_limit(E4M3FN, MXFP4) == 2**24
    assert exact_k_limit(NVFP4, E4M3FN, parts=1) == 2**53 // (12 * 448 * 512 * 448 * 512)
    assert exact_k_limit("FIXED8", "FIXED8") == exact_k_limit(INT8, INT8)
    # MXFP4 of K = 1024: the binades of the scales of a row and of a column together.
    assert 1024 * 12 * 12 * 2**35 <= 2**53 < 1024 * 12 * 12 * 2**36
    span = 448 * 2**9
    assert 1024 * span * span * 2**7 <= 2**53 < 1024 * span * span * 2**8


@pytest.mark.parametrize("tiny", [False, True])
def test_nvfp4_around_its_bound(monkeypatch: pytest.MonkeyPatch, tiny: bool, blas: str) -> None:
    """All products are the largest but one, which is the smallest: the sum has every bit."""
    calls = counted(monkeypatch, "rounded_product")
    for k in (1200, 1216):
        calls.clear()
        codes = np.full((1, k), 7, np.uint8)
        codes[0, :16] = 0
        codes[0, 3] = tiny
        scales = np.full((1, k // 16), 0x7E, np.uint8)
        scales[0, 0] = 1
        a = tensor(PLAIN_NVFP4, codes, scales)
        total = (k - 16) * Fraction(6 * 448) ** 2 + tiny * Fraction(1, 2**20)
        assert_same_bits(matmul(a, a.mT), np.float32([[nearest(total, FLOAT32)]]))
        assert bool(calls) == (tiny and k - 16 > 1188)  # the zeros count for nothing
        # A tie of float32, and the smallest product beside it.
        for sign in (0, 8):
            codes[0, 3] = 1 | sign if tiny else 0
            b = tensor(PLAIN_NVFP4, codes, scales)
            check(b, a.mT)


@pytest.mark.parametrize(("binades", "beyond"), [(35, False), (36, True)])
def test_mxfp4_around_its_bound(
    monkeypatch: pytest.MonkeyPatch, binades: int, beyond: bool, blas: str
) -> None:
    calls = counted(monkeypatch, "rounded_product")
    codes = np.full((1, 1024), 7, np.uint8)
    codes[0, :32] = 0
    codes[0, 0] = 1
    scales_a, scales_b = np.full((2, 32, 1), 127)
    scales_a[0] -= binades - 10
    scales_b[0] -= 10
    a, b = tensor(MXFP4, codes, scales_a.T), tensor(MXFP4, codes.T, scales_b, 0)
    check(a, b)
    assert bool(calls) == beyond


@pytest.fixture
def dtypes(monkeypatch: pytest.MonkeyPatch) -> list[np.dtype[Any]]:
    """The types of the numbers that the BLAS multiplies from now on."""
    original, found = block_products.blas_product, []

    def noting(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        found.append(x.dtype)
        assert x.dtype == y.dtype
        return original(x, y)

    monkeypatch.setattr(block_products, "blas_product", noting)
    return found


@pytest.mark.parametrize(
    ("binades", "types"),
    [
        (6, [np.float32]),
        (7, [np.float32] * 8),
        (10, [np.float32] * 8),
        (11, [np.float64, *[np.float32] * 7]),
    ],
)
def test_mxfp4_in_float32_up_to_its_bound(
    dtypes: list[np.dtype[Any]], binades: int, types: list[Any], blas: str
) -> None:
    """992 products of 36 and one of 2^-2 or less beside them: 992 * 144 * 2^6 < 2^24.

    Of the first part of 128 there are 96: 96 * 144 * 2^10 < 2^24.
    """
    codes = np.full((1, 1024), 7, np.uint8)
    codes[0, :32] = 0
    codes[0, 0] = 1
    scales = np.full((32, 1), 127)
    scales[0] -= binades
    a, b = tensor(MXFP4, codes, scales.T), tensor(MXFP4, codes.T, np.full((32, 1), 127), 0)
    check(a, b)
    assert dtypes == types


@pytest.mark.parametrize(
    ("rows", "types"), [(1, ["f4", "f8"]), (2, ["f4", "f8"]), (3, ["f4"] * 8), (8, ["f4"] * 8)]
)
def test_few_rows_beyond_float32(
    dtypes: list[np.dtype[Any]], rows: int, types: list[str], blas: str
) -> None:
    """Up to a quarter of eight rows are multiplied again; parts of K hold more of them."""
    rng = np.random.default_rng(16)
    codes, scales = rng.integers(6, 8, (8, 1024)), np.full((8, 32), 127)
    for row in rng.permutation(8)[:rows]:
        codes[row, :32] = rng.integers(0, 16, 32)
        scales[row, 0] -= 9
    codes[:, 1000] = 1
    a, b = tensor(MXFP4, codes, scales), tensor(MXFP4, codes.T, np.full((32, 8), 127), 0)
    check(a, b)
    assert dtypes == types


@pytest.mark.parametrize("fmt_b", [MXFP4, NVFP4, MXFP6_E2M3, MXINT8, E4M3FN, INT8], ids=str)
@pytest.mark.parametrize("fmt_a", [MXFP4, NVFP4, MXFP6_E2M3, MXINT8], ids=str)
def test_parts_of_k(
    dtypes: list[np.dtype[Any]], fmt_a: BlockFormat, fmt_b: BlockFormat, blas: str
) -> None:
    """Outliers in one of five parts of K; the last part is short, and its last block, too."""
    rng = np.random.default_rng(15)
    x, y = rng.standard_normal((3, 530)), rng.standard_normal((530, 4))
    x[:, 130:200] *= 2.0 ** rng.integers(-14, 14, 70)
    y[130:200] *= 2.0 ** -rng.integers(-14, 14, (70, 1))
    a = quantize(x.astype(np.float32), fmt_a)
    axis = {"axis": 0} if isinstance(fmt_b, BlockFormat) else {}
    b = quantize(y.astype(np.float32), fmt_b, **axis)
    check(a, b)
    if {fmt_a, fmt_b} <= {MXFP4, NVFP4}:
        assert {*dtypes} == {np.dtype(np.float32), np.dtype(np.float64)}


@pytest.mark.parametrize("exponent", [-127, -62, -61, 0, 58, 59, 127])
def test_float32_is_for_scales_far_from_its_ends(
    dtypes: list[np.dtype[Any]], exponent: int
) -> None:
    """Elements are multiples of 1 / 2 and at most 6."""
    rng = np.random.default_rng(12)
    codes, scales = rng.integers(0, 16, (3, 32)), np.full((3, 1), exponent + 127)
    a, b = tensor(MXFP4, codes, scales), tensor(MXFP4, codes.T, scales.T, 0)
    check(a, b)
    assert dtypes == [np.float32 if -60 < exponent < 58 else np.float64]


def test_blocks_of_zeros_are_multiples_of_anything(dtypes: list[np.dtype[Any]]) -> None:
    """The rules give them the smallest scale, which numbers may have, too."""
    x = np.random.default_rng(13).standard_normal((8, 96)).astype(np.float32)
    x[2, 32:64] = x[5] = 0
    for axis in (0, 1):
        a, b = quantize(x, MXFP4, axis=axis), quantize(x.T, MXFP4, axis=0)
        assert (a.scale_codes == 0).any() == (axis == 1)
        check(a, b)
    assert dtypes == [np.float32, np.float32]
    x[5, 40] = 2.0**-125
    check(quantize(x, MXFP4), b)
    assert dtypes[2:] == [np.float64]


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
def test_spans_are_bounds(fmt: BlockFormat, axis: int) -> None:
    """Norms over units by Fractions: no bound is less, and none that sees the elements is far."""
    x = random_tensor(fmt, (5, 40), 3, scales=(100, 140))
    exact = elements(x)
    for k_axis in (-1, -2):
        operand = block_products.Prepared(x, k_axis)
        lines = np.broadcast_to(operand.lines.units, np.delete(x.shape, k_axis))
        real = operand.element_units
        spans = {"lines": Fraction(0), "real": Fraction(0)}
        for i, line in enumerate(exact if k_axis == -1 else exact.T):
            norm = sum(value**2 for value in line)
            for name, unit in (("lines", lines[i]), ("real", real[i])):
                if not math.isinf(unit):
                    assert all(value % Fraction(unit) == 0 for value in line)
                    spans[name] = max(spans[name], norm / Fraction(unit) ** 2)
        for name, kind in (("span", "lines"), ("wide_span", "lines"), ("element_span", "real")):
            found = Fraction(getattr(operand, name))
            assert found**2 >= spans[kind]
            assert name == "span" or found**2 <= spans[kind] * Fraction(1 + 2.0**-30)
        if operand.narrow is not None:
            found = Fraction(float(operand.narrow_spans[0].max()))
            assert spans["lines"] <= found**2 <= spans["lines"] * Fraction(1.01)
            assert_same_bits(operand.narrow.values.astype(np.float64), operand.wide.values)


@pairs
@pytest.mark.parametrize("accumulate", ["exact", "block-sums", "float32"])
def test_prepared_operands(fmt_a: BlockFormat, fmt_b: BlockFormat, accumulate: str) -> None:
    """What is prepared once has the same products as what is prepared for each, specials too."""
    rng = np.random.default_rng(14)

    def operand(fmt: BlockFormat, shape: tuple[int, int], axis: int) -> QuantizedTensor:
        codes = rng.integers(0, fmt.element.values.size, shape)
        return tensor(fmt, codes, rng.integers(110, 127, scale_shape(fmt, shape, axis)), axis)

    if accumulate == "block-sums" and fmt_a.block != fmt_b.block:
        return
    b = operand(fmt_b, (64, 6), 0)
    kept = block_products.Prepared(b, -2)
    how = npfp8.ACCUMULATORS[accumulate]
    for _ in range(2):
        a = operand(fmt_a, (4, 64), 1)
        factors = np.ones((), np.float32), np.ones((), np.float32)
        found, plain = (
            block_products.block_scaled_product(x, y, how, factors, fmt_a.block, None)
            for x, y in ((block_products.Prepared(a, -1), kept), (a, b))
        )
        assert_same_bits(found, plain)


@pytest.mark.parametrize("accumulate", ["exact", "block-sums"])
def test_the_bound_counts_the_bits_of_scales(
    monkeypatch: pytest.MonkeyPatch, accumulate: str
) -> None:
    """1.875 = 15 / 8 makes every partial sum a multiple of 1 / 64 of what it was."""
    original, spans = block_products._once_rounded, []

    def noting(x: Any, y: Any, span: float, *rest: Any) -> Any:
        spans.append(span)
        return original(x, y, span, *rest)

    monkeypatch.setattr(block_products, "_once_rounded", noting)
    fmt = BlockFormat("E4M3FN", 64, "E4M3FN", "exact", True)
    a = tensor(fmt, np.full((1, 64), 0x7E), [[0x3F]])
    matmul(a, a.mT, accumulate)
    assert spans == [64 * (448 * 2**9 * 15) ** 2]


def test_a_bound_beyond_float64() -> None:
    """Elements and scales that are any powers of two: no warning, and the same way on."""
    fmt = BlockFormat("E8M0FNU", 1)
    row = np.full((1, 1024), 254)
    row[0, :2] = 0
    a = tensor(fmt, row, row)
    assert_same_bits(matmul(a, a.mT), np.float32([[np.inf]]))
    small = tensor(fmt, np.zeros((1024, 1)), 254 - row.T, 0)
    total = 2 * Fraction(2) ** (-127 * 2) + 1022 * Fraction(2) ** (127 * 2 - 127 * 2)
    assert_same_bits(matmul(a, small), np.float32([[nearest(total, FLOAT32)]]))


def test_k_beyond_the_limit_is_refused() -> None:
    k = 2**24 + 1
    codes = np.broadcast_to(np.uint8(0), (1, k))
    scales = np.broadcast_to(np.uint8(127), (1, -(-k // 32)))
    a = QuantizedTensor(codes, None, MXFP4, scale_codes=scales)
    for accumulate in ("exact", "block-sums"):
        with pytest.raises(ValueError, match="expected K of at most 16777216, found 16777217"):
            matmul(a, a.mT, accumulate)


# Block sums


@pytest.mark.parametrize(("fmt_a", "fmt_b"), EQUAL_BLOCKS, ids=str)
@pytest.mark.parametrize("scales", [(110, 126), (0, 255)], ids=["near", "wide"])
def test_block_sums(
    fmt_a: BlockFormat, fmt_b: BlockFormat, scales: tuple[int, int], blas: str
) -> None:
    a, b, product = pair(fmt_a, fmt_b, 135, scales, fmt_a.block)
    assert_same_bits(matmul(a, b, "block-sums"), product)


@pytest.mark.parametrize("name", plain_operands())
def test_block_sums_with_other_operands(name: str) -> None:
    b = plain_operands()[name]
    fmt = BlockFormat("E2M1", 24, "E4M3FN", "exact", True)
    a = random_tensor(fmt, (3, 70), 4)
    if name.endswith("along N"):
        with pytest.raises(ValueError, match="does not factor out of the sum"):
            matmul(a, b, "block-sums")
        return
    assert_same_bits(matmul(a, b, "block-sums"), expected(a, b, 24))
    assert_same_bits(matmul(b.mT, a.mT, "block-sums"), expected(b.mT, a.mT, 24))


def test_blocks_are_added_in_order() -> None:
    for order, value in (([40, 10, 40], 0.0), ([40, 40, 10], 1024.0)):
        row = of_powers(MXFP4, order, [1, 1 if order[1] == 10 else -1, -1 if order[2] == 40 else 1])
        column = ones(MXFP4, row.shape[1])
        assert_same_bits(matmul(row, column, "block-sums"), np.float32([[value]]))
        assert_same_bits(matmul(row, column), np.float32([[1024.0]]))


def test_a_block_is_rounded_once() -> None:
    """The product of the scales is beyond float32, and that of the sum and both is not."""
    a = of_powers(MXFP4, [-127], [1])
    b = tensor(MXFP8_E4M3, np.full((32, 1), 0x7E), [[105]], 0)
    value = nearest(Fraction(448) * Fraction(2) ** (-127 + 105 - 127), FLOAT32)
    assert value == 448 * 2.0**-149
    assert_same_bits(matmul(a, b, "block-sums"), np.float32([[value]]))
    assert_same_bits(matmul(a, b), np.float32([[value]]))


def test_block_sums_without_block_scales_are_the_exact_ones() -> None:
    rng = np.random.default_rng(12)
    x = rng.standard_normal((5, 100)).astype(np.float32)
    y = rng.standard_normal((100, 4)).astype(np.float32)
    for fmt in (E4M3FN, E5M2, INT8):
        for block, axes in ((None, (None, None)), (None, (0, 1)), (16, (1, 0))):
            a = quantize(x, fmt, axis=axes[0], block=block)
            b = quantize(y, fmt, axis=axes[1], block=block)
            assert_same_bits(matmul(a, b, "block-sums"), matmul(a, b))


# The other accumulators


@pytest.mark.parametrize(("fmt_a", "fmt_b"), PAIRS[::5], ids=str)
def test_float32_multiplies_the_elements(fmt_a: BlockFormat, fmt_b: BlockFormat) -> None:
    a = random_tensor(fmt_a, (5, 70), 1, scales=(100, 126), tensor_scale=None)
    b = random_tensor(fmt_b, (70, 4), 2, 0, (100, 126))
    x, y = (elements(one).astype(np.float32) for one in (a, b))
    scale = np.float32(multiply32(factor(a, (0, 0)), factor(b, (0, 0))))
    assert_same_bits(matmul(a, b, "float32"), np.matmul(x, y) * scale + np.float32(0))


def test_float32_beyond_its_range() -> None:
    """An element that float32 does not hold is an infinity, and a sum too."""
    a = tensor(MXFP8_E4M3, np.full((2, 32), 0x7E), [[254], [127]])
    b = tensor(MXFP8_E4M3, np.full((32, 2), 0x7E), [[127, 254]], 0)
    found = matmul(a, b, "float32")
    assert_same_bits(found, np.float32([[np.inf, np.inf], [448 * 448 * 32, np.inf]]))


@pytest.mark.parametrize("accumulate", ["float16", "bfloat16"])
@pytest.mark.parametrize("fmt", [MXFP8_E4M3, NVFP4, MXINT8], ids=str)
def test_narrow_sums_are_those_of_each_block(fmt: BlockFormat, accumulate: str) -> None:
    a = random_tensor(fmt, (4, 70), 1, scales=(110, 126))
    b = random_tensor(fmt, (70, 3), 2, 0, (110, 126))
    total = None
    for i, start in enumerate(range(0, 70, fmt.block)):
        ks = slice(start, start + fmt.block)
        x, y = (QuantizedTensor(codes, 1.0, fmt.element) for codes in (a.codes[:, ks], b.codes[ks]))
        sums = matmul(x, y, accumulate).astype(np.float64)
        values = fmt.scale_format.values
        scales = values[a.scale_codes[:, i, None]] * values[b.scale_codes[i]]
        part = (sums * scales).astype(np.float32)
        total = part if total is None else total + part
    scale = np.float32(multiply32(factor(a, (0, 0)), factor(b, (0, 0))))
    assert_same_bits(matmul(a, b, accumulate), total * scale)


@pytest.mark.parametrize("k", [32, 64])
def test_an_accumulator_of_ones_own(k: int) -> None:
    """Hopper's with blocks: each block's sum starts from zero, and is scaled once."""
    fields = {"step": 8, "fraction_bits": 13, "precision": 14, "formats": ("E2M1", "E4M3FN")}
    mine = Accumulator("mine", "fused", **fields)
    a = random_tensor(MXFP4, (4, k), 1, scales=(120, 126))
    b = random_tensor(MXFP4, (k, 3), 2, 0, (120, 126))
    # The products of 2 + 2 bits and 5 binades are all within its 13 bits.
    assert_same_bits(matmul(a, b, mine), matmul(a, b, "block-sums"))
    other = random_tensor(MXFP8_E5M2, (k, 3), 2, 0)
    with pytest.raises(ValueError, match=r"^b: accumulate 'mine': expected E2M1 or E4M3FN"):
        matmul(a, other, mine)


def test_a_narrow_sum_times_scales_is_rounded_once() -> None:
    """A sum of 24 bits, a float32 scale and a code of 8 bits: 56 bits, just beside a tie."""
    wide = Accumulator("wide", "sequential", precision=24, emin=-126, emax=127)
    codes = np.full((1, 939), 127, np.int8)
    others = codes.copy().T
    codes[0, -2:], others[-2:, 0] = (127, 45), (56, 1)
    mine = BlockFormat(INT8, 939, npfp8.FloatFormat(1, 7, 0, signed=False), "exact")
    a = QuantizedTensor(codes, None, mine, scale_codes=np.uint8([[255]]))
    b = QuantizedTensor(others, np.float32([[16545105]]), INT8, 0, block=939)
    total = 937 * 127**2 + 127 * 56 + 45
    value = Fraction(total) * 16545105 * Fraction(float(mine.scale_format.max))
    assert_same_bits(matmul(a, b, wide), np.float32([[nearest(value, FLOAT32)]]))
    assert nearest(Fraction(float(value)), FLOAT32) != nearest(value, FLOAT32)
    assert_same_bits(matmul(b.mT, a.mT, wide), matmul(a, b, wide))


def test_infinite_sums_and_scales_of_narrow_sums() -> None:
    """Scales of E5M2 have infinities, and sums overflow: as IEEE 754 has their products."""
    fmt = BlockFormat("E5M2", 2, "E5M2", "exact")
    a = tensor(fmt, [[0x7B, 0x7B], [0x3C, 0], [0, 0]], [[0x3D], [0x7C], [0x7C]])
    b = tensor(fmt, [[0x7B, 0x3C], [0x7B, 0]], [[0x3D, 0xFC]], 0)
    value = [[np.inf, -np.inf], [np.inf, -np.inf], [np.nan, np.nan]]
    assert_same_bits(matmul(a, b, "float16"), np.float32(value))


# What is refused


def refused(a: QuantizedTensor, b: QuantizedTensor, accumulate: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        matmul(a, b, accumulate)


@pytest.mark.parametrize("mode", ["hopper", "hopper-fast"])
def test_hopper_takes_no_blocks(mode: str) -> None:
    a, b = random_tensor(MXFP4, (2, 64), 1), random_tensor(MXFP8_E4M3, (64, 2), 2, 0)
    found = f"a: accumulate '{mode}': expected E4M3FN or E5M2, found MXFP4"
    refused(a, b, mode, found)
    found = f"accumulate '{mode}': expected scales that do not vary along K, found blocks of 32"
    refused(b.mT, b, mode, found)
    refused(b.mT, quantize(np.ones((64, 2)), E4M3FN), mode, found)


@pytest.mark.parametrize("accumulate", ["block-sums", "float16", "bfloat16"])
def test_unequal_blocks(accumulate: str) -> None:
    a, b = random_tensor(MXFP4, (2, 64), 1), random_tensor(NVFP4, (64, 2), 2, 0)
    refused(a, b, accumulate, "blocks along K: expected equal ones, found 32 and 16")
    short = random_tensor(MXFP4, (2, 16), 1), random_tensor(PLAIN_NVFP4, (16, 2), 2, 0)
    matmul(*short, accumulate)  # both are all of K


@pytest.mark.parametrize("accumulate", ["block-sums", "float16", "bfloat16"])
def test_blocks_along_another_axis(accumulate: str) -> None:
    a, b = random_tensor(MXFP4, (64, 64), 1, 0), random_tensor(MXFP4, (64, 2), 2, 0)
    message = "a scale that varies along K does not factor out of the sum"
    refused(a, b, accumulate, message)
    refused(b.mT, a.mT, accumulate, message)
    check(random_tensor(MXFP4, (3, 64), 1, 0), b)


def test_other_scales_along_k() -> None:
    a = random_tensor(MXFP4, (2, 64), 1)
    b = quantize(np.ones((64, 2)), E4M3FN, axis=0)
    for accumulate in ("exact", "float32", "block-sums"):
        refused(a, b, accumulate, "a scale that varies along K does not factor out of the sum")


def test_shapes_that_do_not_fit() -> None:
    a = random_tensor(MXFP4, (2, 64), 1)
    refused(a, a, "exact", "expected shapes (..., M, K) and (..., K, N), found (2, 64) and (2, 64)")


# Others' products


def transformer_engine(a: QuantizedTensor, b: QuantizedTensor) -> np.ndarray:
    """The product by the rule of TransformerEngine's reference (reference_nvfp4.py, qgemm).

    Over the blocks of 16, float32 products of the codes' values, each times the product of
    the two scales, are added in float32; the sum is multiplied by the largest magnitudes of
    the two tensors over (6 * 448)^2.
    """
    values = npfp8.E4M3FN.values.astype(np.float32)
    x, y = a.code_values(), b.code_values()
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for i, start in enumerate(range(0, a.shape[1], 16)):
        part = np.matmul(x[:, start : start + 16], y[start : start + 16])
        total += part * (values[a.scale_codes[:, i, None]] * values[b.scale_codes[i]])
    factor = (a.tensor_scale * b.tensor_scale) / np.float32(6.0 * 6.0 * 448.0 * 448.0)
    return total * np.float32(factor)


@pytest.mark.parametrize("largest", [2688.0, 3.7])
def test_block_sums_are_transformer_engines(largest: float) -> None:
    """A block's scaled sum has at most 20 bits, so that float32 holds it in any order."""
    rng = np.random.default_rng(13)
    x, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 320), (320, 30)))
    a, b = (one / np.abs(one).max() * np.float32(largest) for one in (x, y))
    a, b = quantize(a, NVFP4, rule="te"), quantize(b, NVFP4, axis=0, rule="te")
    theirs, ours = transformer_engine(a, b), matmul(a, b, "block-sums")
    if largest == 2688.0:  # its factors are 1
        assert (a.tensor_scale, b.tensor_scale) == (2688, 2688)
        assert_same_bits(ours, theirs)
    # The factor is a product and a quotient there, two quotients and a product here: three and
    # four roundings with the last one.
    np.testing.assert_allclose(ours, theirs, rtol=7.01 * 2.0**-24, atol=0)
    np.testing.assert_allclose(matmul(a, b), theirs, rtol=0, atol=np.abs(theirs).max() * 2.0**-20)


@pytest.mark.parametrize("fmt", [f for f in BLOCK_FORMATS.values() if not f.tensor_scale], ids=str)
def test_emulation_in_torch(fmt: BlockFormat, torch: ModuleType) -> None:
    """Dequantized and multiplied in float64 it is the same where (1) holds, close in float32."""
    rng = np.random.default_rng(14)
    x, y = (rng.uniform(1, 2, shape).astype(np.float32) for shape in ((40, 320), (320, 30)))
    x *= rng.choice([-1, 1], x.shape)
    a, b = quantize(x, fmt), quantize(y, fmt, axis=0)
    left, right = (torch.from_numpy(one.dequantize()) for one in (a, b))
    assert_same_bits(matmul(a, b), (left.double() @ right.double()).float().numpy())
    np.testing.assert_allclose(matmul(a, b), (left @ right).numpy(), rtol=0, atol=1e-3)

"""Exact products of quantized tensors, against sums of fractions rounded once."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import (
    FLOAT32,
    FLOAT64,
    add32,
    assert_same_bits,
    code_values,
    finite_codes,
    multiply32,
    nearest,
    nearest_code,
)

import npfp8
from npfp8 import (
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    INT8,
    UINT8,
    FloatFormat,
    Format,
    QuantizedTensor,
    exact_k_limit,
    matmul,
    quantize,
)
from npfp8.products import ACCUMULATIONS
from npfp8.scaling import affine_scale, group_extrema

FLOAT_PAIRS = list(itertools.product((E4M3FN, E5M2), repeat=2))
INTEGER_PAIRS = list(itertools.product((INT8, UINT8), repeat=2))
MIXED_PAIRS = [(E4M3FN, INT8), (UINT8, E4M3FN), (E5M2, INT8), (UINT8, E5M2)]
PAIRS = FLOAT_PAIRS + INTEGER_PAIRS + MIXED_PAIRS


def over_pairs(pairs: list[tuple[Format, Format]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("fmt_a", "fmt_b"), pairs, ids=str)


every_pair = over_pairs(PAIRS)


# Operands


def tensor(fmt: Format, bits: Any, scale: Any = 1.0, **fields: Any) -> QuantizedTensor:
    """A tensor of codes given as their eight bits; read-only, as no product may change it."""
    codes = np.array(bits, np.uint8).view(fmt.code_dtype)
    codes.flags.writeable = False
    return QuantizedTensor(codes, scale, fmt, **fields)


def tensor_of(fmt: Format, values: Any, scale: Any = 1.0, **fields: Any) -> QuantizedTensor:
    """A tensor of values that the format holds exactly."""
    exact = np.asarray(values, np.float64)
    bits = [nearest_code(fmt.name, value) for value in exact.ravel().tolist()]
    assert [float(code_values(fmt.name)[code]) for code in bits] == exact.ravel().tolist()
    return tensor(fmt, np.reshape(bits, exact.shape), scale, **fields)


def dot(fmt_a: Format, fmt_b: Format, terms: list[tuple[float, float, int]]) -> tuple[Any, Any]:
    """Operands (1, K) and (K, 1) of terms ``(x, y, how often)``."""
    counts = [count for *_, count in terms]
    x = tensor_of(fmt_a, [x for x, _, _ in terms]).codes.repeat(counts)
    y = tensor_of(fmt_b, [y for _, y, _ in terms]).codes.repeat(counts)
    return QuantizedTensor(x[None, :], 1.0, fmt_a), QuantizedTensor(y[:, None], 1.0, fmt_b)


def exact_dot(terms: list[tuple[float, float, int]]) -> Fraction:
    return sum((Fraction(x) * Fraction(y) * count for x, y, count in terms), Fraction(0))


def random_tensor(fmt: Format, shape: tuple[int, ...], seed: int, **fields: Any) -> QuantizedTensor:
    """Finite codes, all equally likely."""
    return tensor(fmt, np.random.default_rng(seed).choice(finite_codes(fmt.name), shape), **fields)


def same(x: QuantizedTensor, codes: np.ndarray) -> QuantizedTensor:
    """``x`` with other codes, one scale and zero point for all."""
    return QuantizedTensor(codes, x.scale, x.fmt, zero_point=x.zero_point)


# The oracle


def per_element(per_scale: np.ndarray, x: QuantizedTensor) -> np.ndarray:
    """The scale or the zero point of each element."""
    if x.axis is None:
        return np.full(x.shape, per_scale)
    index = np.indices(x.shape)
    if x.block is None:
        return per_scale[index[x.axis]]
    index[x.axis] //= x.block
    return per_scale[tuple(index)]


def exact_values(x: QuantizedTensor) -> np.ndarray:
    """The code values, zero point taken off: Fractions, specials as floats."""
    values = np.array(code_values(x.fmt.name), object)[x.codes.view(np.uint8)]
    if x.zero_point is not None:
        values = values - per_element(x.zero_point, x).astype(object)
    return values


def rounded_sum(xs: np.ndarray, ys: np.ndarray) -> float:
    """The sum of products, rounded to float32 once; a sum of nothing or zeros is +0."""
    # Which special it is, if one, IEEE arithmetic of any precision tells: nothing overflows.
    approximate = sum(float(x) * float(y) for x, y in zip(xs, ys, strict=True))
    if not math.isfinite(approximate):
        return approximate
    exact = sum((x * y for x, y in zip(xs, ys, strict=True)), Fraction(0))
    return nearest(exact, FLOAT32) if exact else 0.0


def expected_product(a: QuantizedTensor, b: QuantizedTensor) -> np.ndarray:
    """Element by element: for each block of K the rounded sum, times the rounded scale."""
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n = a.shape[-2:], b.shape[-1]
    x, scale_x = (
        np.broadcast_to(array, (*lead, m, k))
        for array in (exact_values(a), per_element(a.scale, a))
    )
    y, scale_y = (
        np.broadcast_to(array, (*lead, k, n))
        for array in (exact_values(b), per_element(b.scale, b))
    )
    block = (a.axis == a.ndim - 1 and a.block) or (b.axis == b.ndim - 2 and b.block) or max(k, 1)
    out = np.empty((*lead, m, n), np.float32)
    for index in np.ndindex(out.shape):
        row, column = index[:-1], (*index[:-2], slice(None), index[-1])
        parts = [
            multiply32(
                rounded_sum(x[row][start : start + block], y[column][start : start + block]),
                multiply32(float(scale_x[row][start]), float(scale_y[column][start])),
            )
            for start in range(0, k, block)
        ]
        total = parts[0] if parts else 0.0
        for part in parts[1:]:
            total = add32(total, part)
        out[index] = math.nan if math.isnan(total) else total  # the canonical one
    return out


def check(a: QuantizedTensor, b: QuantizedTensor) -> None:
    assert_same_bits(matmul(a, b), expected_product(a, b))


# A BLAS may add in any order: here are two that add one product after the other


def one_by_one(reverse: bool) -> Callable[..., np.ndarray]:
    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        terms = x[..., :, None, :] * np.swapaxes(y, -1, -2)[..., None, :, :]
        if not terms.shape[-1]:
            return terms.sum(axis=-1)
        return np.add.accumulate(terms[..., ::-1] if reverse else terms, axis=-1)[..., -1]

    return product


@pytest.fixture(params=["BLAS", "forwards", "backwards"])
def blas(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whatever BLAS there is, and the two above; ``request.param`` by name."""
    if request.param != "BLAS":
        monkeypatch.setattr(np, "matmul", one_by_one(request.param == "backwards"))
    return request.param


# Random operands


@st.composite
def operands(draw: st.DrawFn, fmt_a: Format, fmt_b: Format) -> tuple[Any, Any]:
    """Two small matrices of any codes, scaled in any way that a product takes."""
    m, n, k = draw(st.integers(0, 3)), draw(st.integers(0, 3)), draw(st.integers(0, 7))
    block = draw(st.none() | st.integers(1, 8))
    only_finite = draw(st.booleans())

    def operand(fmt: Format, shape: tuple[int, int], k_axis: int) -> QuantizedTensor:
        choices = finite_codes(fmt.name) if only_finite else range(256)
        codes = draw(hnp.arrays(np.uint8, shape, elements=st.sampled_from(choices)))
        along = draw(st.sampled_from(["tensor", "other axis"] + ["K"] * (block is not None)))
        axis = {"tensor": None, "other axis": 1 - k_axis, "K": k_axis}[along]
        scale_shape: tuple[int, ...] = ()
        if axis is not None:
            scale_shape = (shape[axis],)
        if along == "K" and block:
            blocks = -(-k // block)
            scale_shape = (shape[0], blocks) if k_axis == 1 else (blocks, shape[1])
        fields: dict[str, Any] = {"axis": axis, "block": block if along == "K" else None}
        scale = draw(
            hnp.arrays(np.float32, scale_shape, elements=st.floats(2.0**-60, 2.0**60, width=32))
        )
        if fmt in (INT8, UINT8) and draw(st.booleans()):
            zero_point = draw(hnp.arrays(np.uint8, scale_shape))
            fields["zero_point"] = zero_point.view(fmt.code_dtype)
        return tensor(fmt, codes, scale, **fields)

    return operand(fmt_a, (m, k), 1), operand(fmt_b, (k, n), 0)


@every_pair
@settings(max_examples=70)
@given(data=st.data())
def test_random_operands(fmt_a: Format, fmt_b: Format, data: st.DataObject) -> None:
    check(*data.draw(operands(fmt_a, fmt_b)))


@every_pair
def test_every_pair_of_codes(fmt_a: Format, fmt_b: Format) -> None:
    """K = 1, all 65,536 products; the float64 product is exact, and so is its float32."""
    x, y = (np.array([float(v) for v in code_values(fmt.name)]) for fmt in (fmt_a, fmt_b))
    with np.errstate(invalid="ignore"):
        expected = np.multiply.outer(x, y).astype(np.float32) + np.float32(0)
    expected[np.isnan(expected)] = np.nan
    codes = np.arange(256, dtype=np.uint8)
    found = matmul(tensor(fmt_a, codes[:, None]), tensor(fmt_b, codes[None, :]))
    assert_same_bits(found, expected)


@over_pairs([*FLOAT_PAIRS, (INT8, INT8), (UINT8, E5M2)])
@pytest.mark.parametrize("k", [1, 40])
def test_more_outputs_than_a_block(fmt_a: Format, fmt_b: Format, k: int) -> None:
    """131 by 131 is more than 2^14; a few of them checked, at the ends and around 2^14."""
    a, b = random_tensor(fmt_a, (131, k), 1), random_tensor(fmt_b, (k, 131), 2)
    found = matmul(a, b).ravel()
    for i in (0, 1, 16383, 16384, 16385, 17160):
        row, column = divmod(i, 131)
        expected = expected_product(same(a, a.codes[row, None]), same(b, b.codes[:, column, None]))
        assert_same_bits(found[i], expected[0, 0])


# Sums that are hard for floating point


def naive(terms: list[tuple[float, float, int]]) -> float:
    """Add in float64, term after term, and then round to float32."""
    products = np.repeat([x * y for x, y, _ in terms], [count for *_, count in terms])
    return float(np.float32(np.add.accumulate(products)[-1]))


CANCELLING = {
    "huge, tiny, minus huge": (
        E5M2,
        E5M2,
        [(2.0**15, 2.0**15, 1), (2.0**-16, 2.0**-16, 1), (-(2.0**15), 2.0**15, 1)],
    ),
    "largest, smallest, minus largest": (
        E5M2,
        E5M2,
        [(57344.0, 57344.0, 3), (2.0**-16, -(2.0**-16), 1), (57344.0, -57344.0, 3)],
    ),
    "many smallest": (
        E5M2,
        E5M2,
        [(2.0**15, 2.0**15, 1), (2.0**-16, 3 * 2.0**-16, 999), (2.0**15, -(2.0**15), 1)],
    ),
    "E4M3FN by E5M2": (
        E4M3FN,
        E5M2,
        [(448.0, 57344.0, 50), (2.0**-9, 2.0**-16, 1), (448.0, -57344.0, 50)],
    ),
    "E5M2 by E4M3FN": (
        E5M2,
        E4M3FN,
        [(57344.0, 448.0, 50), (2.0**-16, -(2.0**-9), 1), (-57344.0, 448.0, 50)],
    ),
    "UINT8 by E5M2": (
        UINT8,
        E5M2,
        [(255.0, 57344.0, 10000), (1.0, 2.0**-16, 1), (255.0, -57344.0, 10000)],
    ),
}


@pytest.mark.parametrize("case", CANCELLING)
def test_what_cancels_leaves_the_rest(case: str, blas: str) -> None:
    fmt_a, fmt_b, terms = CANCELLING[case]
    expected = nearest(exact_dot(terms), FLOAT32)
    assert expected != 0
    assert naive(terms) != expected  # it is hard
    assert_same_bits(matmul(*dot(fmt_a, fmt_b, terms)), np.float32([[expected]]))


TOP = 2.0**15  # the largest power of two in E5M2
DOUBLE_ROUNDINGS = {
    # The sum is next to a tie of float32 by too little for float64; up or down is decided there.
    "above a tie with even": (E5M2, E5M2, [(TOP, TOP, 1), (8, 8, 1), (2.0**-16, 2.0**-16, 1)]),
    "below a tie with odd": (
        E5M2,
        E5M2,
        [(TOP, TOP, 1), (16, 8, 1), (8, 8, 1), (2.0**-16, -(2.0**-16), 1)],
    ),
    "below a tie, from a power of two down": (
        E5M2,
        E5M2,
        [(TOP, TOP, 2), (8, -8, 1), (2.0**-16, -(2.0**-16), 1)],
    ),
    "above a tie, sum of many": (
        E5M2,
        E5M2,
        [(2.0**-16, 2.0**-16, 3), (2.0**14, 2.0**14, 64), (2.0**6, 2.0**4, 1)],
    ),
    "E4M3FN by E5M2": (
        E4M3FN,
        E5M2,
        [(256, TOP, 64), (4, 8, 1), (2.0**-9, 2.0**-16, 1)],
    ),
    "E5M2 by E4M3FN": (
        E5M2,
        E4M3FN,
        [(TOP, 256, 64), (8, 4, 1), (-(2.0**-16), -(2.0**-9), 1)],
    ),
    "E5M2 of so few binades that one float64 product is almost enough": (
        E5M2,
        E5M2,
        [(1.25, 1.25, 1), (-1.5, 1, 1), (57344, 57344, 171_200), (2.0**13, 2.0**12, 1)],
    ),
    "UINT8 by E5M2": (UINT8, E5M2, [(128, TOP, 2**15), (128, 64, 1), (1, 2.0**-16, 1)]),
    "E4M3FN beyond one float64 product": (
        E4M3FN,
        E4M3FN,
        [(448, 448, 171_200), (64, 32, 1), (2.0**-9, 2.0**-9, 1)],
    ),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("case", DOUBLE_ROUNDINGS)
def test_sums_are_rounded_once(case: str, sign: int, blas: str) -> None:
    fmt_a, fmt_b, terms = DOUBLE_ROUNDINGS[case]
    if sign < 0:
        terms = [(x, -y, count) for x, y, count in terms]
    exact = exact_dot(terms)
    expected = nearest(exact, FLOAT32)
    assert nearest(nearest(exact, FLOAT64), FLOAT32) != expected  # it is a trap
    assert_same_bits(matmul(*dot(fmt_a, fmt_b, terms)), np.float32([[expected]]))


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([(TOP, TOP, 1), (8, 8, 1)], 2.0**30),
        ([(TOP, TOP, 1), (16, 8, 1), (8, 8, 1)], 2.0**30 + 2.0**8),
        ([(TOP, TOP, 1), (-8, 4, 1)], 2.0**30),
        ([(TOP, TOP, 1), (-8, 8, 1), (-8, 4, 1)], 2.0**30 - 2.0**7),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_even(terms: list[tuple[float, float, int]], expected: float, sign: int) -> None:
    terms = [(sign * x, y, count) for x, y, count in terms]
    # The smallest products, which cancel, make the range as wide as it gets.
    terms += [(2.0**-16, 2.0**-16, 1), (2.0**-16, -(2.0**-16), 1)]
    assert_same_bits(matmul(*dot(E5M2, E5M2, terms)), np.float32([[sign * expected]]))


#: E5M2 with every value 2^-25 of what it was, so that the sums are far below one.
E5M2B40 = dataclasses.replace(E5M2, bias=E5M2.bias + 25, name="E5M2B40")


@pytest.mark.parametrize("odd", [0, 1], ids=["even", "odd"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("binade", [20, 21, 22, 23])
def test_sums_around_a_tie(binade: int, sign: int, odd: int) -> None:
    """Two steps of float64 to either side of a tie of float32, by the smallest product there is.

    From the binade of 2^21 on float64 does not hold them all.
    """
    tie = [
        (2.0**11, sign * 2.0 ** (binade - 11), 1),
        (1.0, sign * 2.0 ** (binade - 23), odd),
        (1.0, sign * 2.0 ** (binade - 24), 1),
    ]
    reach = 2 ** (binade - 52 + 32 + 1)  # in the smallest products, of 2^-32 each
    for count in range(-reach, reach + 1):
        terms = [*tie, (2.0**-16, math.copysign(2.0**-16, count), abs(count))]
        expected = nearest(exact_dot(terms), FLOAT32)
        a, b = dot(E5M2, E5M2, terms)
        assert_same_bits(matmul(a, b), np.float32([[expected]]))
        a, b = dataclasses.replace(a, fmt=E5M2B40), dataclasses.replace(b, fmt=E5M2B40)
        assert_same_bits(matmul(a, b), np.float32([[expected * 2.0**-50]]))


@over_pairs(FLOAT_PAIRS)
def test_sums_of_subnormals(fmt_a: Format, fmt_b: Format) -> None:
    smallest = {E4M3FN: 2.0**-9, E5M2: 2.0**-16}
    terms = [(smallest[fmt_a], smallest[fmt_b], 5), (smallest[fmt_a], -3 * smallest[fmt_b], 1)]
    found = matmul(*dot(fmt_a, fmt_b, terms))
    assert_same_bits(found, np.float32([[2 * smallest[fmt_a] * smallest[fmt_b]]]))


@every_pair
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_zero_sums_are_plus_zero(fmt_a: Format, fmt_b: Format, accumulate: str) -> None:
    negative = 0 if fmt_b is UINT8 else -1
    minus_zero = 0x80 if fmt_a in (E4M3FN, E5M2) else 0
    ones = tensor_of(fmt_b, [[1, negative], [negative, 1]])
    zeros = tensor(fmt_a, [[minus_zero, minus_zero], [minus_zero, 0]])
    assert_same_bits(matmul(zeros, ones, accumulate), np.zeros((2, 2), np.float32))
    cancelled = matmul(tensor_of(fmt_a, [[1, 1]]), tensor_of(fmt_b, [[1], [negative]]), accumulate)
    assert_same_bits(cancelled, np.float32([[1 + negative]]))


# The extremes of K


@every_pair
@pytest.mark.parametrize("zero_point", [False, True])
def test_limit_of_one_product(fmt_a: Format, fmt_b: Format, zero_point: bool) -> None:
    """2^53 over the largest product of magnitudes in units of the smallest."""
    spans = {E4M3FN: 448 * 2**9, E5M2: 57344 * 2**16, INT8: 128, UINT8: 255}
    if zero_point:
        spans[INT8] = 255
    limit = exact_k_limit(fmt_a, fmt_b, parts=1, zero_point=zero_point)
    assert limit == 2**53 // (spans[fmt_a] * spans[fmt_b])
    assert limit <= exact_k_limit(fmt_a, fmt_b, zero_point=zero_point)


def test_limits_of_the_documentation() -> None:
    assert exact_k_limit(E4M3FN, E4M3FN, parts=1) == 171_196
    assert exact_k_limit(E4M3FN, E5M2, parts=1) == 10
    assert exact_k_limit(E5M2, E5M2, parts=1) == 0
    assert exact_k_limit(E5M2, E5M2) == 684_784


def repeated_code(fmt: Format, shape: tuple[int, int], code: int) -> QuantizedTensor:
    """One code, over and over, in one byte of memory."""
    one = np.array(code, np.uint8).view(fmt.code_dtype)
    return QuantizedTensor(np.broadcast_to(one, shape), 1.0, fmt)


@every_pair
def test_k_beyond_the_limit_is_refused(fmt_a: Format, fmt_b: Format) -> None:
    limit = exact_k_limit(fmt_a, fmt_b)
    a = repeated_code(fmt_a, (1, limit + 1), 1)
    b = repeated_code(fmt_b, (limit + 1, 1), 1)
    message = f"{fmt_a} by {fmt_b}: expected K of at most {limit}, found {limit + 1}"
    with pytest.raises(ValueError, match=message):
        matmul(a, b)


def test_a_zero_point_lowers_the_limit() -> None:
    """Codes less their zero point span twice the range."""
    limit = exact_k_limit(INT8, INT8, zero_point=True)
    assert limit < exact_k_limit(INT8, INT8)
    a = repeated_code(INT8, (1, limit + 1), 1)
    b = repeated_code(INT8, (limit + 1, 1), 1)
    with pytest.raises(ValueError, match=f"expected K of at most {limit}, found {limit + 1}"):
        matmul(dataclasses.replace(a, zero_point=np.int8(-128)), b)


FEW, ALL = [1.0, 2.0], [2.0**-16, 57344.0]  # of the magnitudes of E5M2
PRODUCTS = {
    "E4M3FN": (E4M3FN, [2.0**-9, 448.0], E4M3FN, [2.0**-9, 448.0], 2, 1),
    "few by few": (E5M2, FEW, E5M2, FEW, 2, 1),
    "all by few": (E5M2, ALL, E5M2, FEW, 2, 1),
    "all by all": (E5M2, ALL, E5M2, ALL, 2, 2),
    "all by all, long": (E5M2, ALL, E5M2, ALL, 4096, 4),
    # Up to 2^15 in multiples of 2^-16 are 31 bits, up to 2^11 in multiples of 2^-10 are 21, and
    # K = 2 is one: 53 together.
    "just one": (E5M2, [2.0**-16, 2.0**15], E5M2, [2.0**-8, 2.0**11], 2, 1),
    "just not one": (E5M2, [2.0**-16, 2.0**15], E5M2, [2.0**-8, 2.0**12], 2, 2),
    "just one, from the other side": (E5M2, [2.0**-8, 2.0**11], E5M2, [2.0**-16, 2.0**15], 2, 1),
    "longer": (E5M2, [2.0**-16, 2.0**15], E5M2, [2.0**-8, 2.0**11], 3, 2),
    "only the first is cut": (E5M2, ALL, E5M2, [2.0**-14, 2.0**8], 2048, 2),
    "only the second is cut": (E5M2, [2.0**-14, 2.0**8], E5M2, ALL, 2048, 2),
}


def products_of(a: QuantizedTensor, b: QuantizedTensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count the float64 BLAS products that ``matmul`` takes."""
    true, count = np.matmul, 0

    def counted(x: Any, y: Any) -> Any:
        nonlocal count
        count += x.dtype == np.float64
        return true(x, y)

    with monkeypatch.context() as patch:
        patch.setattr(np, "matmul", counted)
        matmul(a, b)
    return count


@pytest.mark.parametrize("case", PRODUCTS)
def test_the_fewest_products(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operand is cut only where the magnitudes that it has ask for it."""
    fmt_a, x, fmt_b, y, k, expected = PRODUCTS[case]
    a = tensor_of(fmt_a, np.resize(x, (1, k)))
    b = tensor_of(fmt_b, np.resize(y, (k, 1)))
    assert products_of(a, b, monkeypatch) == expected


def test_zeros_and_specials_need_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    infinity, nan = 0x7C, 0x7E
    few = [nearest_code("E5M2", x) for x in (2.0**-6, 2.0**9)]
    a = tensor(E5M2, [[*few, 0, 0x80, infinity, nan]])
    b = tensor_of(E5M2, np.resize([2.0**-16, 2.0**15], (6, 1)))
    assert products_of(a, b, monkeypatch) == 1


@pytest.mark.parametrize("fmt", [E4M3FNUZ, E5M2FNUZ, E4M3B11FNUZ], ids=str)
@pytest.mark.parametrize("other", [E4M3FN, INT8], ids=str)
def test_nothing_but_nan_in_the_place_of_negative_zero(fmt: Format, other: Format) -> None:
    nan = np.full((1, 1), np.float32(np.nan))
    assert_same_bits(matmul(tensor(fmt, [[0x80]]), tensor(other, [[0x38]])), nan)
    assert_same_bits(matmul(tensor(other, [[0x38]]), tensor(fmt, [[0x80]])), nan)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, E4M3FNUZ, INT8], ids=str)
@pytest.mark.parametrize("other", [E4M3FN, INT8], ids=str)
def test_specials_are_laid_over_only_where_they_are(
    fmt: Format, other: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("there is no special")

    monkeypatch.setattr(sys.modules[matmul.__module__], "overlay_specials", refuse)
    largest, zero = fmt.max_code, 0
    a = tensor(fmt, [[largest, zero, 0x80 if fmt in (E4M3FN, E5M2, INT8) else zero]])
    b = tensor(other, [[0x38], [0x80], [0x01]])
    matmul(a, b)
    matmul(tensor(other, b.codes.reshape(1, 3)), tensor(fmt, a.codes.reshape(3, 1)))


def test_the_fewest_products_of_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block's terms do not affect the other blocks."""
    a = tensor_of(E5M2, [FEW + ALL], np.ones((1, 2)), axis=1, block=2)
    b = tensor_of(E5M2, np.reshape(FEW + ALL, (4, 1)), np.ones((2, 1)), axis=0, block=2)
    assert products_of(a, b, monkeypatch) == 1 + 2


def test_blocks_of_k_have_the_limit_each() -> None:
    k = exact_k_limit(E5M2, E5M2) + 1
    a = QuantizedTensor(
        np.broadcast_to(np.uint8(0x7B), (1, k)), np.ones((1, 2)), E5M2, axis=1, block=k - 1
    )
    found = matmul(a, repeated_code(E5M2, (k, 1), 0x7B))
    first = nearest(Fraction(57344**2 * (k - 1)), FLOAT32)
    assert_same_bits(found, np.float32([[add32(first, 57344.0**2)]]))


@pytest.mark.parametrize(
    "terms",
    [
        [(448, 448, 171_196)],
        [(448, -448, 171_196)],
        [(448, 448, 171_194), (32, 32, 1), (2.0**-9, 2.0**-9, 1)],  # next to a tie
        [(448, -448, 171_194), (-32, 32, 1), (2.0**-9, -(2.0**-9), 1)],
        [(448, 448, 171_194), (32, 32, 1), (-(2.0**-9), 2.0**-9, 1)],
        [(448, 448, 85_597), (2.0**-9, 2.0**-9, 2), (-448, 448, 85_597)],
    ],
)
def test_e4m3fn_at_the_limit_of_one_product(
    terms: list[tuple[float, float, int]], blas: str
) -> None:
    assert sum(count for *_, count in terms) == 171_196
    expected = nearest(exact_dot(terms), FLOAT32)
    assert_same_bits(matmul(*dot(E4M3FN, E4M3FN, terms)), np.float32([[expected]]))


SMALL = 2.0**-16  # the smallest number in E5M2


@pytest.mark.parametrize(
    "terms",
    [
        [(57344, 57344, 684_784)],
        # Next to a tie: the last bit counts. The smallest number makes cutting necessary.
        [(57344, 57344, 684_776), (2.0**13, 2.0**13, 1), (SMALL, SMALL, 7)],
        [(57344, -57344, 684_776), (2.0**13, -(2.0**13), 1), (SMALL, -SMALL, 7)],
        [(57344, 57344, 684_776), (2.0**13, 2.0**13, 1), (SMALL, -SMALL, 7)],
        [(SMALL, SMALL, 684_783), (57344, 57344, 1)],
        [(SMALL, 57344, 342_392), (57344, -SMALL, 342_391), (SMALL, SMALL, 1)],
    ],
)
def test_e5m2_at_its_limit(terms: list[tuple[float, float, int]], blas: str) -> None:
    assert sum(count for *_, count in terms) == 684_784
    expected = nearest(exact_dot(terms), FLOAT32)
    assert_same_bits(matmul(*dot(E5M2, E5M2, terms)), np.float32([[expected]]))


@pytest.mark.parametrize("exponent", range(-32, 16, 3))
@pytest.mark.parametrize("sign", [1, -1])
def test_e5m2_sums_have_every_bit(exponent: int, sign: int) -> None:
    """The largest sum, at a tie, and a bit of any weight below it that decides."""
    y = 2.0 ** min(exponent + 16, 15)
    x = sign * 2.0**exponent / y
    terms = [(57344, 57344, 684_776), (2.0**13, 2.0**13, 1), (x, y, 1), (SMALL, 0, 2)]
    expected = 57344.0**2 * 684_776 + (2.0**27 if sign > 0 else 0.0)
    assert nearest(exact_dot(terms), FLOAT32) == expected
    assert_same_bits(matmul(*dot(E5M2, E5M2, terms)), np.float32([[expected]]))


@pytest.mark.parametrize("exponent", range(-14, 16))
def test_e5m2_keeps_the_smallest_bit_under_any_magnitude(exponent: int, blas: str) -> None:
    """A long run of each binade's largest, up and down again, and one smallest product.

    Wherever the operands are cut, some binade is the top of the lower part, and
    its run is the largest sum that the smallest bit has to outlast.
    """
    x = 1.75 * 2.0**exponent
    terms = [
        (57344, 57344, 1),
        (x, x, 342_390),
        (SMALL, SMALL, 1),
        (x, -x, 342_390),
        (57344, -57344, 1),
        (SMALL, 0, 1),
    ]
    assert_same_bits(matmul(*dot(E5M2, E5M2, terms)), np.float32([[2.0**-32]]))


LENGTHS = [1, 127, 128, 129, 257, 258, 259, 260, 514, 518, 519, 1023, 1024, 1025, 1026]
LENGTHS += [1039, 1040, 1041, 1042, 1536, 2047, 2048, 2080, 2081, 3072, 4100]


def check_integers(a: QuantizedTensor, b: QuantizedTensor) -> None:
    """Against int64, in which nothing here overflows; float32 rounds an integer once."""
    x, y = (t.codes.astype(np.int64) - np.int64(t.zero_point or 0) for t in (a, b))
    exact = [[sum((row * column).tolist()) for column in y.T] for row in x]
    expected = [[nearest(Fraction(value), FLOAT32) for value in row] for row in exact]
    assert_same_bits(matmul(a, b), np.float32(expected))


@pytest.mark.parametrize("k", LENGTHS)
def test_int8_of_the_largest_magnitudes(k: int, blas: str) -> None:
    largest = np.full((1, k), 127, np.int8)
    wave = np.where(np.arange(k) % 2, -127, 127).astype(np.int8)[None]
    steps = np.where(np.arange(k) < k // 2, 127, -127).astype(np.int8)[None]
    a = QuantizedTensor(np.concatenate([largest, -largest, wave, steps]), 1.0, INT8)
    check_integers(a, a.mT)


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("smallest", [-127, -128])
def test_int8_sums_that_pass_2_to_the_24(k: int, smallest: int, blas: str) -> None:
    """Large products to leave float32's integers, then odd ones that a rounding would lose."""
    x = np.full((4, k), smallest, np.int8)
    for row, odd in enumerate((1, 2, 9, 33)):
        x[row, -odd:] = 1
    x = np.concatenate([x, x[:, ::-1]])
    a = QuantizedTensor(x, 1.0, INT8)
    check_integers(a, a.mT)


@pytest.mark.parametrize("k", LENGTHS)
@pytest.mark.parametrize("zero_point", [None, 0, 1, 128, 255])
def test_uint8_with_zero_point(k: int, zero_point: int | None, blas: str) -> None:
    x = np.full((3, k), 255, np.uint8)
    x[1] = 0
    x[2, -7:] = 254
    a = QuantizedTensor(
        x, 1.0, UINT8, zero_point=None if zero_point is None else np.uint8(zero_point)
    )
    y = np.full((k, 3), 127, np.int8)
    y[:, 1] = -127
    y[-5:, 2] = 126
    check_integers(a, QuantizedTensor(y, 1.0, INT8))
    check_integers(a, a.mT)


@pytest.mark.parametrize("k", [258, 259, 1030, 1536])
@pytest.mark.parametrize("zero_point", [-128, -127, 127])
def test_int8_with_zero_point(k: int, zero_point: int, blas: str) -> None:
    x = np.random.default_rng(k).integers(-128, 128, (4, k)).astype(np.int8)
    x[:2] = 127
    x[2, :-9] = -128
    a = QuantizedTensor(x, 1.0, INT8, zero_point=np.int8(zero_point))
    check_integers(a, a.mT)


def test_a_zero_point_counts_in_cutting_e5m2(blas: str) -> None:
    """127 - (-127) doubles the sum: a K that needs no cut without the zero point needs one."""
    terms = [(254, 57344, 10_000), (1, 2.0**13, 1), (1, 2.0**-16, 1)]
    k = 10_002
    assert exact_k_limit(INT8, E5M2, parts=1, zero_point=True) < k
    assert exact_k_limit(INT8, E5M2, parts=1) > k
    exact = exact_dot(terms)
    assert nearest(nearest(exact, FLOAT64), FLOAT32) != nearest(exact, FLOAT32)  # it is a trap
    shifted = [(x - 127, y, count) for x, y, count in terms]
    a, b = dot(INT8, E5M2, shifted)
    a = QuantizedTensor(a.codes, 1.0, INT8, zero_point=np.int8(-127))
    assert_same_bits(matmul(a, b), np.float32([[nearest(exact, FLOAT32)]]))
    assert_same_bits(matmul(b.mT, a.mT), np.float32([[nearest(exact, FLOAT32)]]))


# NaN and infinity

SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -2.0, 57344.0]


def ieee(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of products in float64, which rounds none of these few; canonical NaN, +0."""
    with np.errstate(invalid="ignore"):
        sums = (x[:, None, :] * y.T[None, :, :]).sum(axis=-1)
    return np.where(np.isnan(sums), np.nan, sums + 0.0).astype(np.float32)


def rows_of(values: list[float]) -> np.ndarray:
    return np.array(list(itertools.product(values, repeat=2)))


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_specials_of_e5m2(accumulate: str) -> None:
    """Every two specials, zeros and numbers times every two."""
    x = rows_of(SPECIAL)
    bits = [0x7E if math.isnan(v) else int(np.float16(v).view(np.uint16)) >> 8 for v in x.ravel()]
    a = tensor(E5M2, np.reshape(bits, x.shape))
    np.testing.assert_array_equal(a.code_values(), x)
    assert_same_bits(matmul(a, a.mT, accumulate), ieee(x, x.T))


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize("nan", [0x7F, 0xFF])
def test_nan_of_e4m3fn_beside_infinities(accumulate: str, nan: int) -> None:
    x = rows_of([math.nan, 0.0, -0.0, 1.0, -448.0])
    bits = [nan if math.isnan(v) else nearest_code("E4M3FN", v) for v in x.ravel()]
    a = tensor(E4M3FN, np.reshape(bits, x.shape))
    y = rows_of([math.inf, -math.inf, 0.0, 4.0, -8.0]).T
    codes = np.float16(y).view(np.uint16) >> 8
    assert_same_bits(matmul(a, tensor(E5M2, codes), accumulate), ieee(x, y))
    assert_same_bits(matmul(a, a.mT, accumulate), ieee(x, x.T))


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize("per_column", [False, True])
def test_infinities_meet_a_zero_point(accumulate: str, per_column: bool) -> None:
    """The sign of an infinity times a code depends on the code's side of the zero point."""
    codes = np.uint8([[3, 5], [5, 7], [7, 9], [0, 255]])
    zero_point = np.uint8([5] * 4 if per_column else 5)
    a = QuantizedTensor(
        codes,
        np.ones(4) if per_column else 1.0,
        UINT8,
        axis=0 if per_column else None,
        zero_point=zero_point,
    )
    x = codes.astype(np.float64) - 5
    y = rows_of([math.nan, math.inf, -math.inf, 0.0, 1.0]).T
    b = tensor(
        E5M2, [[0x7E if math.isnan(v) else np.float16(v).view("u2") >> 8 for v in row] for row in y]
    )
    assert_same_bits(matmul(a, b, accumulate), ieee(x, y))
    assert_same_bits(matmul(b.mT, a.mT, accumulate), ieee(x, y).T)


def test_a_special_stays_in_its_row_and_column() -> None:
    a, b = random_tensor(E5M2, (5, 6), 3), random_tensor(E5M2, (6, 4), 4)
    clean = matmul(a, b)
    codes = a.codes.copy()
    codes[2, 3] = 0x7D
    found = matmul(same(a, codes), b)
    assert_same_bits(found[2], np.full(4, np.nan, np.float32))
    assert_same_bits(np.delete(found, 2, 0), np.delete(clean, 2, 0))


# Layouts


@over_pairs([(E5M2, E5M2), (E4M3FN, E4M3FN), (UINT8, INT8)])
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((2, 2, 3), (3, 4)),
        ((2, 3), (2, 3, 4)),
        ((2, 1, 2, 3), (4, 3, 2)),
        ((1, 2, 3), (5, 3, 1)),
        ((2, 3, 1, 1), (2, 1, 1, 3)),
        ((0, 2, 3), (3, 4)),
        ((0, 2, 3), (1, 3, 4)),
    ],
)
def test_leading_axes_broadcast(
    fmt_a: Format, fmt_b: Format, shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> None:
    a, b = random_tensor(fmt_a, shape_a, 5), random_tensor(fmt_b, shape_b, 6)
    shape = (*np.broadcast_shapes(shape_a[:-2], shape_b[:-2]), shape_a[-2], shape_b[-1])
    assert matmul(a, b).shape == shape
    check(a, b)


def test_specials_in_leading_axes() -> None:
    a = random_tensor(E5M2, (2, 1, 3, 4), 7)
    codes = a.codes.copy()
    codes[0, 0, 1, 2], codes[1, 0, 2, 0] = 0x7C, 0x7F
    check(same(a, codes), random_tensor(E5M2, (3, 4, 2), 8))


@pytest.mark.parametrize(("axis_a", "axis_b"), [(0, 0), (1, 0), (0, 2), (1, 2), (0, None)])
def test_scales_along_leading_axes_rows_and_columns(axis_a: int, axis_b: int | None) -> None:
    shape_a, shape_b = (3, 2, 4), (3, 4, 5)
    rng = np.random.default_rng(9)
    scale_a = rng.uniform(0.1, 3, shape_a[axis_a])
    scale_b = 0.7 if axis_b is None else rng.uniform(0.1, 3, shape_b[axis_b])
    a = random_tensor(E4M3FN, shape_a, 10, scale=scale_a, axis=axis_a)
    b = random_tensor(E5M2, shape_b, 11, scale=scale_b, axis=axis_b)
    check(a, b)


@over_pairs([(E5M2, E5M2), (E4M3FN, E4M3FN), (INT8, INT8), (UINT8, E5M2)])
@pytest.mark.parametrize("k", [7, 1300])
def test_strided_operands(fmt_a: Format, fmt_b: Format, k: int) -> None:
    a, b = random_tensor(fmt_a, (4, k), 12), random_tensor(fmt_b, (k, 6), 13)
    expected = matmul(a, b)
    layouts_a = [
        np.asfortranarray(a.codes),
        a.codes.repeat(2, axis=0)[::2],
        a.codes.repeat(3, axis=1)[:, ::3],
        a.codes[::-1, ::-1].copy()[::-1, ::-1],
    ]
    layouts_b = [
        np.asfortranarray(b.codes),
        b.codes.repeat(2, axis=0)[::2],
        b.codes.repeat(3, axis=1)[:, ::3],
        b.codes[::-1, ::-1].copy()[::-1, ::-1],
    ]
    for codes_a, codes_b in zip(layouts_a, layouts_b, strict=True):
        assert_same_bits(matmul(same(a, codes_a), same(b, codes_b)), expected)
    assert_same_bits(matmul(b.mT, a.mT), expected.T)
    row = same(a, np.broadcast_to(a.codes[:1], a.shape))
    assert_same_bits(matmul(row, b), np.broadcast_to(expected[:1], expected.shape))


def test_transposed_operands_keep_their_scales() -> None:
    rng = np.random.default_rng(14)
    a = random_tensor(E4M3FN, (2, 6, 3), 15, scale=rng.uniform(1, 2, 3), axis=2)
    b = random_tensor(E4M3FN, (5, 6), 16, scale=rng.uniform(1, 2, (5, 2)), axis=1, block=4)
    check(a.mT, b.mT)
    assert_same_bits(matmul(b, a), matmul(a.mT, b.mT).swapaxes(1, 2))


# Scales and blocks


@over_pairs([(E4M3FN, E4M3FN), (E5M2, E5M2), (INT8, INT8)])
@pytest.mark.parametrize("block", [1, 3, 4, 7, 10, 11, 1000])
@pytest.mark.parametrize("blocks_of", ["a", "b", "both"])
def test_blocks_along_k(fmt_a: Format, fmt_b: Format, block: int, blocks_of: str) -> None:
    m, k, n = 3, 10, 4
    count = -(-k // block)
    rng = np.random.default_rng(block)
    in_a: dict[str, Any] = {"scale": rng.uniform(0.1, 9, (m, count)), "axis": 1, "block": block}
    in_b: dict[str, Any] = {"scale": rng.uniform(0.1, 9, (count, n)), "axis": 0, "block": block}
    if blocks_of == "a":
        in_b = {"scale": rng.uniform(0.1, 9, n), "axis": 1}
    if blocks_of == "b":
        in_a = {"scale": rng.uniform(0.1, 9, m), "axis": 0}
    check(random_tensor(fmt_a, (m, k), 17, **in_a), random_tensor(fmt_b, (k, n), 18, **in_b))


def test_zero_points_of_blocks_along_k() -> None:
    rng = np.random.default_rng(19)
    zero_point = rng.integers(0, 256, (3, 4), np.uint8)
    a = random_tensor(
        UINT8, (3, 10), 20, scale=rng.uniform(1, 2, (3, 4)), axis=1, zero_point=zero_point, block=3
    )
    check(a, random_tensor(INT8, (10, 2), 21, scale=0.3))
    check(random_tensor(INT8, (2, 10), 21, scale=0.3), a.mT)


def test_blocks_of_stacked_matrices() -> None:
    rng = np.random.default_rng(22)
    a = random_tensor(E5M2, (2, 3, 7), 23, scale=rng.uniform(1, 2, (2, 3, 3)), axis=-1, block=3)
    b = random_tensor(E4M3FN, (7, 2), 24, scale=rng.uniform(1, 2, (3, 2)), axis=0, block=3)
    check(a, b)


def test_blocks_are_added_from_the_first_to_the_last() -> None:
    """In float32: 2^24 + 1 - 2^24 is 0 and 2^24 - 2^24 + 1 is 1."""
    ones = tensor_of(E4M3FN, [[1.0]] * 3)

    def total(scales: list[float], signs: list[float]) -> float:
        a = tensor_of(E4M3FN, [signs], scale=[scales], axis=1, block=1)
        return float(matmul(a, ones)[0, 0])

    assert total([2.0**24, 1.0, 2.0**24], [1, 1, -1]) == 0.0
    assert total([2.0**24, 2.0**24, 1.0], [1, -1, 1]) == 1.0
    assert total([1.0, 2.0**24, 2.0**24], [1, 1, -1]) == 0.0


def test_infinities_of_different_blocks_make_the_canonical_nan() -> None:
    a = tensor(E5M2, [[0x7C, 0xFC], [0xFC, 0x7C], [0x7C, 0x3C], [0xFC, 0xFC]])
    b = tensor(E5M2, [[0x3C], [0x3C]], scale=[[1.0], [2.0]], axis=0, block=1)
    expected = np.float32([[np.nan], [np.nan], [np.inf], [-np.inf]])
    assert_same_bits(matmul(a, b), expected)
    with np.errstate(all="raise"):
        assert_same_bits(matmul(a, b, "float32"), expected)


def test_blocks_that_overflow_float32() -> None:
    a = tensor_of(E4M3FN, [[448, 448], [448, -448]], scale=2.0**100)
    b = tensor_of(E4M3FN, [[448], [448]], scale=[[2.0**12], [2.0**10]], axis=0, block=1)
    assert_same_bits(matmul(a, b), np.float32([[np.inf], [np.inf]]))
    finite = tensor_of(E4M3FN, [[448], [448]], scale=[[2.0**10], [2.0**10]], axis=0, block=1)
    assert_same_bits(matmul(a, finite)[1], np.float32([0]))
    just_under = tensor_of(E4M3FN, [[224], [448]], scale=[[2.0**10], [2.0**9.5]], axis=0, block=1)
    check(a, just_under)


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize(
    ("scale_a", "scale_b"),
    [(1e30, 1e30), (1e-30, 1e-30), (2.0**-100, 2.0**-50), (2.0**64, 2.0**64)],
)
def test_scales_whose_product_is_no_float32(
    scale_a: float, scale_b: float, accumulate: str
) -> None:
    a, b = tensor_of(E4M3FN, [[1.0]], scale_a), tensor_of(E4M3FN, [[1.0]], scale_b)
    with pytest.raises(
        ValueError, match=r"^the product of the operands' scales overflows or underflows float32$"
    ):
        matmul(a, b, accumulate)
    one_of_many = tensor_of(E4M3FN, [[1.0, 1.0]], [1.0, scale_b], axis=1)
    with pytest.raises(
        ValueError, match=r"^the product of the operands' scales overflows or underflows float32$"
    ):
        matmul(a, one_of_many, accumulate)


@pytest.mark.parametrize(
    ("scale_a", "scale_b"),
    [
        (2.0**-100, 2.0**-49),  # the smallest subnormal, and others
        (2.0**-100, 1.7 * 2.0**-30),
        (1.3 * 2.0**-74, 1.9 * 2.0**-74),
        (2.0**63, 1.99 * 2.0**64),
        (1.1 * 2.0**60, 1.3 * 2.0**60),
    ],
)
def test_scales_at_the_ends_of_float32(scale_a: float, scale_b: float) -> None:
    """A product of scales may be subnormal; the result may be too, or infinite."""
    values = [[0.001953125, 0.75, -0.625, 1.0, -1.25, 3.5, 448.0, -448.0, 0.0]]
    a, b = tensor_of(E4M3FN, values, scale_a).mT, tensor_of(E4M3FN, values, scale_b)
    with np.errstate(all="raise"):
        found = matmul(a, b)
    assert_same_bits(found, expected_product(a, b))


def test_the_scales_are_multiplied_first() -> None:
    """(sum * a) * b would round elsewhere."""
    rng = np.random.default_rng(25)
    a = random_tensor(E4M3FN, (40, 5), 26, scale=rng.uniform(1, 2, 40), axis=0)
    b = random_tensor(E4M3FN, (5, 30), 27, scale=rng.uniform(1, 2, 30), axis=1)
    found = matmul(a, b)
    sums = matmul(same_unscaled(a), same_unscaled(b))
    assert_same_bits(found, sums * (a.scale[:, None] * b.scale))
    assert (found != sums * a.scale[:, None] * b.scale).any()


def same_unscaled(x: QuantizedTensor) -> QuantizedTensor:
    return QuantizedTensor(x.codes, 1.0, x.fmt)


# Empty products


@every_pair
@pytest.mark.parametrize(("m", "k", "n"), [(2, 0, 3), (0, 4, 3), (2, 4, 0), (0, 0, 0)])
@pytest.mark.parametrize("accumulate", ["exact", "float32"])
@pytest.mark.parametrize("block", [None, 3])
def test_empty_products(
    fmt_a: Format, fmt_b: Format, m: int, k: int, n: int, accumulate: str, block: int | None
) -> None:
    fields: dict[str, Any] = {}
    if block:
        fields = {"scale": np.ones((m, -(-k // block))), "axis": 1, "block": block}
    a = random_tensor(fmt_a, (m, k), 28, **fields)
    found = matmul(a, random_tensor(fmt_b, (k, n), 29), accumulate)
    assert_same_bits(found, np.zeros((m, n), np.float32))


# float32 accumulation


@every_pair
def test_float32_accumulation_is_close(fmt_a: Format, fmt_b: Format) -> None:
    k = 50
    a, b = random_tensor(fmt_a, (6, k), 30, scale=0.3), random_tensor(fmt_b, (k, 7), 31, scale=3.1)
    found, exact = matmul(a, b, "float32"), matmul(a, b)
    magnitudes = np.abs(a.dequantize().astype(np.float64)) @ np.abs(b.dequantize())
    assert (np.abs(found - exact.astype(np.float64)) <= (k + 4) * 2.0**-24 * magnitudes).all()


def test_float32_accumulation_is_float32(blas: str) -> None:
    """It may lose what exact sums keep; term after term it must."""
    terms = [(2.0**15, 2.0**15, 1), (2.0**-16, 2.0**-16, 1), (2.0**15, -(2.0**15), 1)]
    a, b = dot(E5M2, E5M2, terms)
    in_blocks = QuantizedTensor(a.codes, [[1.0]], E5M2, axis=1, block=3)
    for x in (a, in_blocks):
        assert float(matmul(x, b)[0, 0]) == 2.0**-32
        assert float(matmul(x, b, "float32")[0, 0]) == 0.0


# What is refused


@pytest.mark.parametrize(
    ("name", "nearest"), [("", None), ("float64", "float16"), ("hopper32", "hopper")]
)
def test_unknown_accumulation(name: str, nearest: str | None) -> None:
    a = tensor_of(E4M3FN, [[1.0]])
    modes = ", ".join(map(repr, npfp8.ACCUMULATIONS))
    end = "" if nearest is None else f"; did you mean {nearest!r}?"
    expected = f"accumulate: expected one of {modes}, found {name!r}{end}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        matmul(a, a, name)


def test_an_accumulation_that_is_no_name() -> None:
    a = tensor_of(E4M3FN, [[1.0]])
    with pytest.raises(TypeError, match=r"^accumulate: expected one of 'exact', .*, found None$"):
        matmul(a, a, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [np.ones((1, 1), np.float32), np.ones((1, 1), np.uint8), [[1.0]]])
def test_operands_that_are_not_quantized(other: Any) -> None:
    a = tensor_of(E4M3FN, [[1.0]])
    found = type(other).__name__
    with pytest.raises(TypeError, match=f"a: expected a QuantizedTensor, found {found}"):
        matmul(other, a)
    with pytest.raises(TypeError, match=f"b: expected a QuantizedTensor, found {found}"):
        matmul(a, other)


def test_operands_of_fewer_than_two_axes() -> None:
    matrix, vector = tensor(E4M3FN, np.zeros((3, 3))), tensor(E4M3FN, np.zeros(3))
    with pytest.raises(ValueError, match=r"a: expected at least 2 axes, found shape \(3,\)"):
        matmul(vector, matrix)
    with pytest.raises(ValueError, match=r"b: expected at least 2 axes, found shape \(\)"):
        matmul(matrix, tensor(E4M3FN, 0))


def test_shapes_that_do_not_fit() -> None:
    a, b = tensor(E5M2, np.zeros((2, 3))), tensor(E5M2, np.zeros((4, 3)))
    message = r"expected shapes \(..., M, K\) and \(..., K, N\), found \(2, 3\) and \(4, 3\)"
    with pytest.raises(ValueError, match=message):
        matmul(a, b)
    with pytest.raises(ValueError, match="broadcast"):
        matmul(tensor(E5M2, np.zeros((2, 2, 3))), tensor(E5M2, np.zeros((3, 3, 2))))


@pytest.mark.parametrize("accumulate", ["exact", "float32"])
def test_scales_that_vary_along_k(accumulate: str) -> None:
    plain_a, plain_b = tensor(E4M3FN, np.zeros((2, 4))), tensor(E4M3FN, np.zeros((4, 3)))
    bad_a = [
        tensor(E4M3FN, np.zeros((2, 4)), np.ones(4), axis=1),
        tensor(E4M3FN, np.zeros((2, 4)), np.ones((1, 4)), axis=0, block=2),
    ]
    bad_b = [
        tensor(E4M3FN, np.zeros((4, 3)), np.ones(4), axis=0),
        tensor(E4M3FN, np.zeros((4, 3)), np.ones((4, 2)), axis=1, block=2),
    ]
    blocks_a = tensor(E4M3FN, np.zeros((2, 4)), np.ones((2, 2)), axis=1, block=2)
    blocks_b = tensor(E4M3FN, np.zeros((4, 3)), np.ones((2, 3)), axis=0, block=2)
    pairs = [(a, b) for a in bad_a for b in (plain_b, blocks_b)]
    pairs += [(a, b) for a in (plain_a, blocks_a) for b in bad_b]
    for a, b in pairs:
        x = a if any(a is bad for bad in bad_a) else b
        message = (
            f"^a scale that varies along K .* found axis {x.axis} and block {x.block} of shape"
        )
        with pytest.raises(ValueError, match=message):
            matmul(a, b, accumulate)


def test_unequal_blocks_along_k() -> None:
    a = tensor(E4M3FN, np.zeros((2, 4)), np.ones((2, 2)), axis=1, block=2)
    b = tensor(E4M3FN, np.zeros((4, 3)), np.ones((2, 3)), axis=0, block=3)
    with pytest.raises(ValueError, match="blocks along K: expected equal ones, found 2 and 3"):
        matmul(a, b)


# Reproducibility


@over_pairs([(E5M2, E5M2), (E4M3FN, E5M2), (E4M3FN, E4M3FN), (INT8, UINT8), (UINT8, E4M3FN)])
@pytest.mark.parametrize("shape", [(9, 700, 11), (1, 1300, 33), (64, 64, 2)])
def test_the_order_of_rows_columns_and_k_changes_no_bit(
    fmt_a: Format, fmt_b: Format, shape: tuple[int, int, int]
) -> None:
    m, k, n = shape
    a, b = random_tensor(fmt_a, (m, k), 32, scale=0.1), random_tensor(fmt_b, (k, n), 33)
    expected = matmul(a, b)
    rng = np.random.default_rng(34)
    rows, ks, columns = rng.permutation(m), rng.permutation(k), rng.permutation(n)
    found = matmul(same(a, a.codes[rows][:, ks]), same(b, b.codes[ks][:, columns]))
    assert_same_bits(found[np.argsort(rows)][:, np.argsort(columns)], expected)
    for i in range(min(m, 3)):  # and each by itself, which takes another BLAS routine
        assert_same_bits(matmul(same(a, a.codes[i : i + 1]), b), expected[i : i + 1])
    middle = k // 2  # zeros change nothing either
    wide = same(a, np.insert(a.codes, middle, 0, axis=1))
    assert_same_bits(matmul(wide, same(b, np.insert(b.codes, middle, 0x30, axis=0))), expected)


# The other formats

WIDE = FloatFormat(6, 1, bias=31, name="E6M1")
UNSIGNED = FloatFormat(4, 4, bias=7, signed=False, name="UE4M4")
OTHERS = [E2M1, E2M3, E3M2, E3M4, E4M3, E4M3B11FNUZ, E4M3FNUZ, E5M2FNUZ, UNSIGNED]
OTHER_PAIRS = [(fmt, fmt) for fmt in OTHERS] + [(fmt, E5M2) for fmt in OTHERS]
OTHER_PAIRS += [(E5M2FNUZ, E4M3FNUZ), (E4M3FNUZ, E2M1), (E2M1, INT8), (WIDE, E4M3FN), (INT8, WIDE)]


@over_pairs(OTHER_PAIRS)
def test_every_pair_of_codes_of_other_formats(fmt_a: Format, fmt_b: Format) -> None:
    with np.errstate(invalid="ignore"):
        expected = np.multiply.outer(fmt_a.values, fmt_b.values).astype(np.float32) + np.float32(0)
    expected[np.isnan(expected)] = np.nan
    x, y = (np.arange(fmt.values.size) for fmt in (fmt_a, fmt_b))
    a, b = tensor(fmt_a, x[:, None]), tensor(fmt_b, y[None, :])
    assert_same_bits(matmul(a, b), expected)
    assert_same_bits(matmul(a, b, "float32"), expected)


@over_pairs(OTHER_PAIRS)
def test_sums_in_other_formats(fmt_a: Format, fmt_b: Format, blas: str) -> None:
    def operand(fmt: Format, shape: tuple[int, int], seed: int) -> tuple[QuantizedTensor, Any]:
        codes = np.random.default_rng(seed).choice(np.flatnonzero(np.isfinite(fmt.values)), shape)
        to_fraction = np.vectorize(Fraction, otypes=[object])
        return tensor(fmt, codes), to_fraction(fmt.values[codes])

    a, x = operand(fmt_a, (4, 60), 35)
    b, y = operand(fmt_b, (60, 5), 36)
    expected = [[rounded_sum(row, column) for column in y.T] for row in x]
    assert_same_bits(matmul(a, b), np.float32(expected))


def test_formats_too_wide_for_exact_sums() -> None:
    """Parts that satisfy the bound are not enough where their sum has too many bits."""
    for fmt_a, fmt_b in ((WIDE, WIDE), (WIDE, E5M2), (E8M0FNU, E4M3FN), (E2M1, E8M0FNU)):
        a, b = tensor(fmt_a, [[1]]), tensor(fmt_b, [[1]])
        with pytest.raises(ValueError, match=f"{fmt_a} by {fmt_b}: expected K of at most 0"):
            matmul(a, b)


def test_scales_of_mx_in_float32() -> None:
    """E8M0FNU, which has no zero, is too wide to be exact but not for float32."""
    a, b = tensor(E8M0FNU, [[0, 127], [253, 255]]), tensor_of(E4M3FN, [[2.0, 0.0], [0.0, 1.0]])
    expected = np.float32([[2.0**-126, 1.0], [np.nan, np.nan]])
    assert_same_bits(matmul(a, b, "float32"), expected)


# What a model multiplies: quantized numbers, with every kind of scale and zero point

KINDS: dict[str, dict[str, Any]] = {
    "tensor": {},
    "row": {"axis": 1},
    "token": {"axis": 2, "block": 48},
    "block": {"axis": 2, "block": 16},
    "short last block": {"axis": 2, "block": 20},
}


def quantized_left(x: np.ndarray, fmt: Format, kind: str) -> QuantizedTensor:
    if fmt not in (INT8, UINT8):
        return quantize(x, fmt, **KINDS[kind])
    extrema = group_extrema(x, **KINDS[kind])
    scale, zero_point = affine_scale(*extrema, fmt)
    return quantize(x, fmt, scale, zero_point=zero_point, **KINDS[kind])


@pytest.mark.parametrize("right", ["tensor", "column", "same block"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fmt_a", "fmt_b"), [(UINT8, INT8), (INT8, UINT8), (INT8, INT8), (E4M3FN, E5M2)], ids=str
)
def test_product_is_that_of_the_dequantized_operands(
    fmt_a: Format, fmt_b: Format, kind: str, right: str
) -> None:
    rng = np.random.default_rng(5)
    a = quantized_left(rng.normal(0.3, 1, (2, 7, 48)).astype(np.float32), fmt_a, kind)
    y = rng.normal(-0.2, 2, (2, 48, 5)).astype(np.float32)
    block = KINDS[kind].get("block", 12)
    how = {"tensor": {}, "column": {"axis": 2}, "same block": {"axis": 1, "block": block}}[right]
    if fmt_b in (INT8, UINT8):
        scale, zero_point = affine_scale(*group_extrema(y, **how), fmt_b)
        b = quantize(y, fmt_b, scale, zero_point=zero_point, **how)
    else:
        b = quantize(y, fmt_b, **how)
    left, right_values = (
        x.code_values(np.float64) * per_element(x.scale, x).astype(np.float64) for x in (a, b)
    )
    magnitude = np.abs(left) @ np.abs(right_values)
    error = np.abs(matmul(a, b) - left @ right_values)
    assert (error <= 4 * 2.0**-24 * magnitude).all()


# Blocks as long as K, or longer


@pytest.mark.parametrize("blocks", [(8, 2**31), (2**31, 2**63), (9, 2**100), (2**31, None)])
@pytest.mark.parametrize("accumulate", ["exact", "float32", "float16"])
def test_blocks_beyond_k_are_all_of_it(blocks, accumulate):
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=shape).astype(np.float32) for shape in ((3, 8), (8, 4)))

    def quantized(z, axis, block):
        if block is None:
            return quantize(z, E4M3FN)
        return quantize(z, E4M3FN, axis=axis, block=block)

    found = matmul(quantized(x, 1, blocks[0]), quantized(y, 0, blocks[1]), accumulate)
    alike = [None if block is None else 8 for block in blocks]
    expected = matmul(quantized(x, 1, alike[0]), quantized(y, 0, alike[1]), accumulate)
    assert np.array_equal(found, expected)


def test_blocks_along_k_that_do_differ_are_refused():
    x = np.ones((3, 8), np.float32)
    a, b = quantize(x, E4M3FN, axis=1, block=4), quantize(x.T, E4M3FN, axis=0, block=2**31)
    with pytest.raises(ValueError, match="expected equal ones, found 4 and 8"):
        matmul(a, b)


def test_names_of_the_package():
    assert npfp8.exact_k_limit(E4M3FN, E4M3FN, parts=1) == 171_196
    assert npfp8.ACCUMULATIONS is ACCUMULATIONS

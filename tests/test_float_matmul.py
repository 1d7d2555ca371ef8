"""Products of float32 matrices, against exact integers: every element rounded once.

A float32 number is an integer times 2^-149, so a sum of products is an integer
times 2^-298, which Python's integers hold at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import FLOAT32, FLOAT64, assert_same_bits, nearest

from npfp8 import matmul_float32
from npfp8.bfloat16 import from_bits, round_to_bfloat16
from npfp8.products import float32 as float_matmul

LARGEST = np.finfo(np.float32).max
CANONICAL_NAN = 0x7FC00000

#: Where float32 overflows: the midpoint of the largest number and 2^128.
OVERFLOW = Fraction(2**128 - 2**103)


def integers(x: np.ndarray) -> np.ndarray:
    """Finite float32 numbers in units of 2^-149; the product with 2^149 is exact in float64."""
    units = np.empty(x.size, object)
    units[:] = [int(value * 2.0**149) for value in x.ravel().tolist()]
    return units.reshape(x.shape)


def round_sum(units: int) -> float:
    """An integer times 2^-298, rounded once; a result of 0, even of underflow, is +0."""
    return nearest(Fraction(units, 1 << 298), FLOAT32) + 0.0


def exact_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sums = np.asarray(np.matmul(integers(a), integers(b)))
    rounded = np.array([round_sum(units) for units in sums.ravel().tolist()], np.float32)
    return rounded.reshape(sums.shape)


def check(a: np.ndarray, b: np.ndarray) -> None:
    assert_same_bits(matmul_float32(a, b), exact_matmul(a, b))


def row_sums(rows: np.ndarray) -> np.ndarray:
    """Each row added up by a product with ones."""
    return matmul_float32(rows, np.ones((rows.shape[-1], 1), np.float32))[:, 0]


def random_bits(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Finite float32 numbers of every exponent, subnormal ones too."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, shape, np.uint32)
    bits &= np.where(bits & 0x7F800000 == 0x7F800000, 0xBFFFFFFF, 0xFFFFFFFF).astype(np.uint32)
    return bits.view(np.float32)


def hard_rows(count: int, seed: int) -> np.ndarray:
    """Rows whose sums are a midpoint of float32, or 2^-20 to 2^-80 of a unit beside one.

    Larger numbers that cancel, and the order, hide it.
    """
    rng = np.random.default_rng(seed)
    number = rng.uniform(1, 2, count).astype(np.float32)
    unit = 2.0**-23
    beside = rng.choice([-1.0, 0.0, 1.0], count) * unit * np.exp2(rng.integers(-80, -19, count))
    large = np.ldexp(rng.uniform(1, 2, count), rng.integers(0, 60, count)).astype(np.float32)
    rows = np.stack([number, np.full(count, unit / 2), beside, large, -large], axis=-1)
    scale = np.ldexp(rng.choice([-1.0, 1.0], count), rng.integers(-40, 40, count))
    return rng.permuted(rows * scale[:, None], axis=-1).astype(np.float32)


class Counter:
    """Stands in for _exact_sums and counts the sums that it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sums = 0
        self._original = float_matmul._exact_sums
        monkeypatch.setattr(float_matmul, "_exact_sums", self._count)

    def _count(self, terms: np.ndarray) -> np.ndarray:
        self.sums += len(terms)
        return self._original(terms)


def doubt_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the error bound settle nothing."""
    original = float_matmul._round_settled

    def doubting(sums: Any, error: np.ndarray, *rest: Any) -> None:
        original(sums, np.full_like(error, np.inf), *rest)

    monkeypatch.setattr(float_matmul, "_round_settled", doubting)


# Any numbers


finite_floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
#: Few exponents and few mantissas: sums that are ties, cancel, or nearly so.
alike = st.builds(
    lambda sign, mantissa, exponent: float(np.float32(sign * mantissa * 2.0**exponent)),
    st.sampled_from([-1.0, 1.0]),
    st.sampled_from([1.0, 1.5, 1 + 2.0**-23, 2 - 2.0**-23, 1 + 2.0**-12]),
    st.sampled_from([-149, -126, -75, -25, -24, -23, -1, 0, 1, 23, 24, 52, 63, 127]),
)


@st.composite
def operands(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> tuple[np.ndarray, np.ndarray]:
    m, n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    k = draw(st.integers(0, 9))
    shapes = ((m, k), (k, n))
    a, b = (draw(hnp.arrays(np.float32, shape, elements=elements)) for shape in shapes)
    return a, b


@given(operands(finite_floats))
def test_any_numbers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    check(*pair)


@settings(max_examples=300)
@given(operands(alike))
def test_numbers_of_few_exponents(pair: tuple[np.ndarray, np.ndarray]) -> None:
    check(*pair)


@given(operands(st.integers(0, 0xFFFF).map(lambda bits: float(from_bits(np.uint16(bits))))))
def test_any_bfloat16_numbers(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = (np.where(np.isfinite(x), x, np.float32(0)) for x in pair)
    check(a, b)


@pytest.mark.parametrize("k", [1, 2, 3, 17, 64, 65])
def test_random_bit_patterns(k: int) -> None:
    check(random_bits((20, k), k), random_bits((k, 20), k + 100))


@pytest.mark.parametrize("k", [1, 2, 3, 64, 255, 257])
def test_random_normal_numbers(k: int) -> None:
    rng = np.random.default_rng(k)
    check(*(rng.normal(size=shape).astype(np.float32) for shape in ((20, k), (k, 20))))


# Numbers that are hard to round


def test_sums_beside_midpoints() -> None:
    rows = hard_rows(3000, 1)
    expected = exact_matmul(rows, np.ones((5, 1), np.float32))[:, 0]
    assert_same_bits(row_sums(rows), expected)

    # They are hard: neither a float64 product nor the exact sum rounded twice will do.
    float64 = (rows.astype(np.float64) @ np.ones(5)).astype(np.float32)
    twice = np.float32([math.fsum(row) for row in rows.tolist()])
    assert (float64 != expected).sum() > 100
    assert (twice != expected).sum() > 100


def test_products_beside_midpoints() -> None:
    """The same with factors that are not 1: halves of both signs, and the columns shuffled."""
    rows = hard_rows(300, 2)
    factors = np.ldexp(np.float32([1, -1, 1, -1, 1]), [3, -7, 0, 20, -20]).astype(np.float32)
    columns = np.stack([factors, -factors, factors * 8], axis=-1)
    a = rows / factors
    assert_same_bits(a * factors, rows)
    check(a, columns)


def test_the_trap_of_rounding_twice() -> None:
    row = np.float32([[2**30, 2**6, 2.0**-32]])
    exact = Fraction(2**30 + 2**6) + Fraction(1, 2**32)
    twice = nearest(nearest(exact, FLOAT64), FLOAT32)
    assert twice != nearest(exact, FLOAT32)
    assert row_sums(row)[0] == nearest(exact, FLOAT32) == 2**30 + 2**7
    assert row_sums(-row)[0] == -(2**30) - 2**7
    below = np.float32([[2**30, 2**6, -(2.0**-32)]])
    assert row_sums(below)[0] == 2**30


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([2**24, 1], 2**24),  # ties
        ([2**24, 3], 2**24 + 4),
        ([2**24, 2, 1], 2**24 + 4),
        ([2**24, 1, 2.0**-149], 2**24 + 2),
        ([2**24, 3, -(2.0**-149)], 2**24 + 2),
        ([-(2**24), -1], -(2**24)),
        ([-(2**24), -1, -(2.0**-149)], -(2**24) - 2),
        ([2**24, 1, 2.0**60, -(2.0**60), 2.0**-60, -(2.0**-60)], 2**24),
        ([1e30, 1, -1e30], 1),  # cancellation
        ([LARGEST, 2.0**-149, -LARGEST], 2.0**-149),
        ([LARGEST, LARGEST, 1, -LARGEST, -LARGEST, 2.0**-24, 2.0**-100], 1 + 2.0**-23),
        ([1e30, -1e30, 3, -3], 0.0),
        ([-1e30, 1e30], 0.0),
        ([0.0, -0.0], 0.0),
        ([-0.0, -0.0], 0.0),
        ([LARGEST, 2.0**102], LARGEST),  # overflow
        ([LARGEST, 2.0**103], math.inf),
        ([LARGEST, 2.0**103, -(2.0**-149)], LARGEST),
        ([-LARGEST, -(2.0**103), 2.0**-149], -LARGEST),
        ([-LARGEST, -(2.0**103)], -math.inf),
        ([LARGEST] * 4, math.inf),
        ([LARGEST] * 4 + [-LARGEST] * 3, LARGEST),
    ],
)
def test_sums_by_hand(row: list[float], expected: float) -> None:
    for values in (row, row[::-1]):
        assert_same_bits(row_sums(np.float32([values])), np.float32([expected]))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([2.0**-75], [2.0**-75], 0.0),  # a tie of 0 and the smallest number
        ([2.0**-75], [2.0**-75 * (1 + 2.0**-23)], 2.0**-149),
        ([2.0**-75, 2.0**-149], [2.0**-75, 2.0**-149], 2.0**-149),
        ([2.0**-75, -(2.0**-149)], [2.0**-75, 2.0**-149], 0.0),
        ([2.0**-75] * 3, [2.0**-75] * 3, 2.0**-148),  # 1.5 of it: a tie again
        ([2.0**-63] * 2, [2.0**-63, -(2.0**-87)], 2.0**-126),  # a tie with the first normal one
        ([2.0**-63] * 3, [2.0**-63, -(2.0**-87), -(2.0**-99)], 2.0**-126 - 2.0**-149),
        ([2.0**-149], [2.0**-149], 0.0),
        ([-(2.0**-149)], [2.0**-149], 0.0),  # a result of 0 is +0
        ([-(2.0**-75)], [2.0**-75], 0.0),
        ([2.0**-149], [2.0**127], 2.0**-22),
        ([LARGEST], [LARGEST], math.inf),
        ([LARGEST, -LARGEST], [LARGEST, LARGEST], 0.0),
        ([LARGEST, -LARGEST, 2.0**-149], [LARGEST, LARGEST, 2.0**-149], 0.0),
        ([LARGEST, -LARGEST, 2.0**-149], [LARGEST, LARGEST, 1.0], 2.0**-149),
    ],
)
def test_products_by_hand(a: list[float], b: list[float], expected: float) -> None:
    left, right = np.float32([a]), np.float32([b]).T
    assert_same_bits(matmul_float32(left, right), np.float32([[expected]]))
    assert_same_bits(matmul_float32(right.T, left.T), np.float32([[expected]]))
    assert_same_bits(matmul_float32(-left, -right), np.float32([[expected]]))


@settings(max_examples=300)
@given(st.integers(-(2**26), 2**26), st.integers(-400, 400), st.booleans())
def test_around_the_overflow_threshold(units: int, tiny: int, negative: bool) -> None:
    """2^128 - 2^103 and some 2^85, or 2^-140, more or less."""
    row = np.float32([LARGEST, 2.0**103, units * 2.0**85 if units % 3 else 0, tiny * 2.0**-140])
    check(-row[None] if negative else row[None], np.ones((4, 1), np.float32))


@given(st.lists(st.integers(-(2**13), 2**13), min_size=1, max_size=20), st.integers(-90, -60))
def test_subnormal_sums(values: list[int], exponent: int) -> None:
    a = np.float32([values]) * np.float32(2.0**-74)
    b = np.full((len(values), 1), 2.0**exponent, np.float32)
    check(a, b)


# The doubtful ones, computed exactly


def test_doubtful_sums_are_computed_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    row_sums(hard_rows(1000, 3))
    assert counter.sums > 500


def test_few_random_sums_are_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter(monkeypatch)
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 64), (64, 300)))
    matmul_float32(a, b)
    assert counter.sums <= 90_000 / 1e4


@pytest.mark.parametrize("kind", ["bfloat16", "integers"])
def test_sums_that_float64_holds_are_not_doubted(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """However many of them are ties of float32."""
    rng = np.random.default_rng(4)
    shapes = ((30, 20), (20, 30))
    if kind == "integers":
        a, b = (rng.integers(-(2**13), 2**13, shape).astype(np.float32) for shape in shapes)
    else:
        a, b = (round_to_bfloat16(rng.choice([-1, 1], s) * rng.uniform(1, 64, s)) for s in shapes)
    sums = np.asarray(np.matmul(integers(a), integers(b))).ravel()
    with_ties = [units for units in sums if abs(Fraction(units, 1 << 298)) > 2**24]
    assert kind == "bfloat16" or any((units >> 298) & 1 for units in with_ties)
    counter = Counter(monkeypatch)
    check(a, b)
    assert counter.sums == 0


@pytest.mark.parametrize("exponent", [0, -96, 60])
@pytest.mark.parametrize("mantissa", [1.0, 1.5, 1 + 2.0**-7, 1 + 2.0**-23])
def test_around_what_float64_holds(exponent: int, mantissa: float) -> None:
    """The sum is a float32 tie plus a number that float64 just holds, or just fails to hold."""
    wrong = 0
    for spread in range(22, 58):
        small = 2.0**-spread * mantissa
        rows = np.float32([[1, 2.0**-24, small], [1, 2.0**-24, -small], [1, 3 * 2.0**-24, -small]])
        rows *= np.float32(2.0**exponent)
        ones = np.ones((3, 1), np.float32)
        check(rows, ones)
        float64 = np.matmul(rows.astype(np.float64), ones).astype(np.float32)
        wrong += int((float64 != exact_matmul(rows, ones)).sum())
        # The same products, their exponents shared out between the two.
        half = spread // 2
        a = np.float32([[1, 2.0**-12, 2.0**-half]]) * np.float32(2.0**exponent)
        check(a, np.float32([[1], [2.0**-12], [2.0 ** (half - spread) * mantissa]]))
    assert wrong


def exact_terms(terms: np.ndarray) -> np.ndarray:
    """Terms that are multiples of 2^-298, added up."""
    totals = [sum(map(Fraction, row)) for row in terms.tolist()]
    return np.float32([round_sum(int(total * 2**298)) for total in totals])


def some_terms(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    top = float(LARGEST) ** 2
    if kind == "every exponent":
        terms = np.ldexp(rng.uniform(0.5, 1, (40, 600)), rng.integers(-245, 257, (40, 600)))
        terms[:, ::2] = -terms[:, 1::2]
        terms[:, 2] = np.ldexp(1.0, rng.integers(-298, 120, 40))
        return rng.permuted(terms, axis=-1)
    if kind == "one":
        return np.float64([[top], [2.0**-298], [-(2.0**-149)], [0.0]])
    if kind == "smallest":
        return np.float64([[2.0**-150, 2.0**-298, 0], [2.0**-150, -(2.0**-298), 0], [0, 0, 0]])
    terms = np.full((4, 1 << 16), top)  # "equal": each of the largest number of terms
    terms[1:, 1 << 15 :] = -top
    terms[1, 5] = terms[1, -5] = 0
    terms[2, 5], terms[2, -5], terms[2, 6], terms[2, -6] = 2.0**-150, 2.0**-298, 0, 0
    terms[3, 5], terms[3, -5], terms[3, 6], terms[3, -6] = 2.0**-150, -(2.0**-298), 0, 0
    return terms


@pytest.mark.parametrize("kind", ["every exponent", "one", "smallest", "equal"])
def test_splitting_loses_nothing(kind: str) -> None:
    terms = some_terms(kind)
    expected = exact_terms(terms)
    assert_same_bits(float_matmul._exact_sums(terms), expected)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 127, 128, 129, 65535, 65536])
def test_splitting_of_equal_terms(count: int) -> None:
    """The terms are as many as the first cut's bits allow."""
    for term in (2.0**100 * (2 - 2.0**-47), -(2.0**100), 2.0**-160 * (1 + 2.0**-47)):
        found = float_matmul._exact_sums(np.full((1, count), term))
        assert_same_bits(found, np.float32([nearest(count * Fraction(term), FLOAT32) + 0.0]))


@pytest.mark.parametrize("k", [1, 2, 5, 64, 300])
def test_the_exact_way_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    """The BLAS may decide which elements are doubtful; here all are, in several blocks."""
    rng = np.random.default_rng(k)
    shapes = ((40, k), (k, 50))
    cases = [
        tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes),
        tuple(round_to_bfloat16(rng.normal(size=shape)) for shape in shapes),
        tuple(random_bits(shape, k) for shape in shapes),
    ]
    expected = [matmul_float32(a, b) for a, b in cases]
    doubt_everything(monkeypatch)
    counter = Counter(monkeypatch)
    for (a, b), product in zip(cases, expected, strict=True):
        assert_same_bits(matmul_float32(a, b), product)
    assert counter.sums == 3 * 40 * 50


def test_the_exact_way_with_leading_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    a = rng.normal(size=(2, 1, 3, 5)).astype(np.float32)
    b = rng.normal(size=(4, 5, 2)).astype(np.float32)
    expected = exact_matmul(a, b)
    doubt_everything(monkeypatch)
    assert_same_bits(matmul_float32(a, b), expected)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_order_along_k_changes_no_bit(bfloat16: bool) -> None:
    rng = np.random.default_rng(7)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((40, 300), (300, 40)))
    if bfloat16:
        a, b = round_to_bfloat16(a), round_to_bfloat16(b)
    expected, float32 = matmul_float32(a, b), np.matmul(a, b)
    changed = 0
    for _ in range(5):
        order = rng.permutation(300)
        assert_same_bits(matmul_float32(a[:, order], b[order]), expected)
        changed += int((np.matmul(a[:, order], b[order]) != float32).sum())
    assert changed > 1000  # a BLAS in float32 is another matter


def test_neighbours_change_no_bit() -> None:
    """Each row and column alone, although the BLAS has another way for each shape."""
    a = np.concatenate([hard_rows(30, 8), random_bits((10, 5), 8)])
    b = np.concatenate([np.ones((5, 1), np.float32), random_bits((5, 20), 9)], axis=-1)
    together = matmul_float32(a, b)
    for i in range(len(a)):
        assert_same_bits(matmul_float32(a[i : i + 1], b), together[i : i + 1])
    for j in range(b.shape[1]):
        assert_same_bits(matmul_float32(a, b[:, j : j + 1]), together[:, j : j + 1])


def test_results_of_more_than_a_block() -> None:
    rows = np.resize(hard_rows(450, 10), (450, 5))
    b = np.repeat(np.float32([1, -2, 0.25]), 200)[None].repeat(5, 0)
    assert len(rows) * b.shape[1] > 2 * float_matmul._CHUNK
    column = exact_matmul(rows, np.ones((5, 1), np.float32))
    assert_same_bits(matmul_float32(rows, b), column * b[:1])


# Shapes and layouts


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((1, 1), (1, 1)),
        ((3, 1), (1, 4)),
        ((3, 0), (0, 4)),
        ((0, 3), (3, 4)),
        ((4, 3), (3, 0)),
        ((0, 0), (0, 0)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((1, 3, 4), (6, 4, 2)),
        ((2, 3, 0), (0, 4)),
        ((0, 3, 4), (4, 2)),
    ],
)
def test_shapes_broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(11)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in (left, right))
    a.flags.writeable = b.flags.writeable = False
    kept = a.copy(), b.copy()
    check(a, b)
    assert matmul_float32(a, b).shape == np.matmul(a, b).shape
    assert_same_bits(a, kept[0])
    assert_same_bits(b, kept[1])


def test_a_sum_of_nothing_is_plus_zero() -> None:
    found = matmul_float32(np.empty((2, 0), np.float32), np.empty((0, 3), np.float32))
    assert_same_bits(found, np.zeros((2, 3), np.float32))


def test_operands_of_any_layout() -> None:
    whole = random_bits((12, 14, 16), 13)
    views: list[Callable[[np.ndarray], np.ndarray]] = [
        lambda x: x[0],
        lambda x: x[0, ::-1, ::-1],
        lambda x: x[:, 3],
        lambda x: x[::2, 1::3, 5],
        lambda x: np.broadcast_to(x[1, 1], (4, 16)),
        lambda x: np.asfortranarray(x[2]),
        lambda x: x[..., ::5],
    ]
    for view in views:
        a = view(whole)
        b = a.swapaxes(-1, -2)
        assert_same_bits(matmul_float32(a, b), matmul_float32(a.copy("C"), b.copy("C")))
        check(a[..., :4, :], b[..., :3])


# NaN and infinity


def ieee_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Element by element: specials by their products, finite sums exactly."""
    result = np.empty((a.shape[0], b.shape[1]), np.float32)
    for i, j in np.ndindex(result.shape):
        pairs = list(zip(a[i].tolist(), b[:, j].tolist(), strict=True))
        specials = [x * y for x, y in pairs if not (math.isfinite(x) and math.isfinite(y))]
        if specials:
            result[i, j] = math.nan if math.isnan(sum(specials)) else sum(specials)
        else:
            result[i, j] = round_sum(sum(int(x * 2.0**149) * int(y * 2.0**149) for x, y in pairs))
    return result


special_floats = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, float(LARGEST)]),
    st.floats(width=32),
)


@settings(max_examples=300)
@given(operands(special_floats))
def test_specials(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = matmul_float32(*pair)
    assert_same_bits(found, ieee_matmul(*pair))
    assert (found.view(np.uint32)[np.isnan(found)] == CANONICAL_NAN).all()


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ([np.inf, 1], [2, 3], np.inf),
        ([np.inf, 1], [-2, 3], -np.inf),
        ([np.inf, 1], [0, 3], np.nan),
        ([np.inf, 1], [-0.0, 3], np.nan),
        ([np.inf, np.inf], [1, -1], np.nan),
        ([np.inf, 1], [1, -np.inf], np.nan),
        ([np.inf, np.inf], [np.inf, 2.0**-149], np.inf),
        ([-np.inf, LARGEST], [2.0**-149, LARGEST], -np.inf),
        ([np.nan, 1], [0, 3], np.nan),
        ([1, 2], [3, -np.nan], np.nan),
        ([np.nan, np.inf], [1, 1], np.nan),
        ([LARGEST, -np.inf], [LARGEST, 1], -np.inf),
    ],
)
def test_specials_by_hand(row: list[float], column: list[float], expected: float) -> None:
    found = matmul_float32(np.float32([row]), np.float32([column]).T)
    assert_same_bits(found, np.float32([[expected]]))


def test_specials_stay_in_their_rows_and_columns() -> None:
    a, b = random_bits((2, 6, 5), 14), random_bits((5, 7), 15)
    expected = matmul_float32(a, b)
    a[1, 2, 3] = -np.nan
    b[4, 6] = np.inf
    found = matmul_float32(a, b)
    assert_same_bits(found[0, :, :6], expected[0, :, :6])
    others = [0, 1, 3, 4, 5]
    assert_same_bits(found[1, others, :6], expected[1, others, :6])
    assert (found[1, 2].view(np.uint32) == CANONICAL_NAN).all()
    assert not np.isfinite(found[..., 6]).any()


def test_no_floating_point_exception_reaches_the_caller() -> None:
    a = np.float32([[LARGEST, 2.0**-149, 1], [np.inf, 1, 0], [1, np.nan, 2.0**-75]])
    with np.errstate(all="raise"):
        matmul_float32(a, a)
        matmul_float32(a, a.T)
        matmul_float32(np.full((2, 3), LARGEST), np.full((3, 2), LARGEST))
        row_sums(hard_rows(50, 16))
        matmul_float32(np.full((1, 3), 2.0**-75, np.float32), np.full((3, 1), 2.0**-76, np.float32))


@pytest.mark.parametrize("bits", [0x7F800001, 0xFF800001, 0x7FBFFFFF])
def test_a_signalling_nan_is_a_nan_like_others(bits: int) -> None:
    """Converting one to float64 is an invalid operation, of which the caller hears nothing."""
    row = np.uint32([[bits, 0x3F800000]]).view(np.float32)
    found = row_sums(row)
    assert_same_bits(found.view(np.uint32), np.uint32([CANONICAL_NAN]))
    assert_same_bits(matmul_float32(np.ones((1, 2), np.float32), row.T)[0], found)


# Errors


SQUARE = np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    ("operand", "found"),
    [
        ([[1.0, 2.0]], "list"),
        (SQUARE.astype(np.float64), "float64"),
        (SQUARE.astype(np.int8), "int8"),
        (SQUARE.astype(">f4"), ">f4"),
        (np.float32(1), "float32"),
    ],
)
def test_what_is_no_array_of_float32_is_refused(operand: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"^a: expected an array of float32, found {found}"):
        matmul_float32(operand, SQUARE)
    with pytest.raises(TypeError, match=f"^b: expected an array of float32, found {found}"):
        matmul_float32(SQUARE, operand)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_vectors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^a: expected at least 2 axes, found shape \("):
        matmul_float32(np.ones(shape, np.float32), SQUARE)
    with pytest.raises(ValueError, match=r"^b: expected at least 2 axes, found shape \("):
        matmul_float32(SQUARE, np.ones(shape, np.float32))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found \(2, 2\) and \(3, 2\)"):
        matmul_float32(SQUARE, np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match=r"found \(2, 0\) and \(2, 2\)"):
        matmul_float32(SQUARE[:, :0], SQUARE)
    with pytest.raises(ValueError, match="broadcast"):
        matmul_float32(np.ones((2, 2, 2), np.float32), np.ones((3, 2, 2), np.float32))


def test_too_many_products_are_refused() -> None:
    k = (1 << 24) + 1
    row = np.broadcast_to(np.float32(0), (1, k))
    with pytest.raises(ValueError, match=f"expected K of at most {1 << 24}, found {k}"):
        matmul_float32(row, row.T)

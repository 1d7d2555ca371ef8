"""Golden arithmetic: against exact and arbitrary-precision values, and bit for bit against itself.

The tests round once, from integers; see :func:`rounded`.
"""

from __future__ import annotations

import ctypes
import math
import operator
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import BFLOAT16, FLOAT32, Binary, assert_same_bits, nearest

from npfp8 import elementary, golden
from npfp8.bfloat16 import from_bits, round_to_bfloat16

EVERY = from_bits(np.arange(1 << 16, dtype=np.uint16))
KINDS = {"bfloat16": BFLOAT16, "float32": FLOAT32}
CANONICAL_NAN = 0x7FC00000

every_precision = pytest.mark.parametrize("precision", KINDS)

#: The functions that are 0 with the sign of their input, and all functions' limits at -inf, +inf.
ODD_AT_ZERO = {"gelu", "gelu_tanh", "silu", "tanh"}
LIMITS = {
    "exp": (0.0, math.inf),
    "gelu": (-0.0, math.inf),
    "gelu_tanh": (-0.0, math.inf),
    "relu": (0.0, math.inf),
    "sigmoid": (0.0, 1.0),
    "silu": (-0.0, math.inf),
    "tanh": (-1.0, 1.0),
}


def rounded(x: Any, kind: Binary) -> float:
    """An mpmath number to nearest, ties to even; its exponent may be beyond all bounds."""
    sign, mantissa, exponent, bits = x._mpf_
    if not mantissa:
        return 0.0
    quantum = max(exponent + bits - kind.precision, kind.emin - kind.precision + 1)
    cut = quantum - exponent
    if cut > bits + 1:
        whole = 0
    elif cut <= 0:
        whole = mantissa << -cut
    else:
        whole, rest = divmod(mantissa, 1 << cut)
        whole += rest > 1 << (cut - 1) or (rest == 1 << (cut - 1) and whole % 2 == 1)
    overflows = whole.bit_length() + quantum > kind.emax + 1
    value = math.inf if overflows else math.ldexp(whole, quantum)
    return -value if sign else value


def definitions(mpmath: ModuleType) -> dict[str, Callable[[Any], Any]]:
    """The functions by the textbook, without cancellation."""
    mp, one = mpmath, mpmath.mpf(1)

    def gelu_tanh(x: Any) -> Any:
        u = mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
        return x / (one + mp.exp(-2 * u))

    return {
        "exp": mp.exp,
        "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
        "gelu_tanh": gelu_tanh,
        "relu": lambda x: max(x, mp.mpf(0)),
        "sigmoid": lambda x: one / (one + mp.exp(-x)),
        "silu": lambda x: x / (one + mp.exp(-x)),
        "tanh": mp.tanh,
    }


def exact_unary(mpmath: ModuleType, name: str, x: np.ndarray, kind: Binary) -> np.ndarray:
    """The function of each number, rounded once."""
    define = definitions(mpmath)[name]
    results = []
    for value in x.tolist():
        if math.isnan(value):
            results.append(math.nan)
            continue
        if math.isinf(value):
            results.append(LIMITS[name][value > 0])
            continue
        # x / 2 + c x^2 is told from x / 2, perhaps a tie, if x itself is less than a digit.
        with mpmath.workdps(120 if abs(value) < 1e-10 else 40):
            result = rounded(define(mpmath.mpf(value)), kind)
        results.append(math.copysign(result, value) if name in ODD_AT_ZERO else result)
    return np.array(results, np.float32)


def random_bfloat16(shape: tuple[int, ...], seed: int, spread: float = 2.0) -> np.ndarray:
    return round_to_bfloat16(np.random.default_rng(seed).normal(0, spread, shape))


def check_rounding(found: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Check that nearly all results are correctly rounded, and the others are neighbours."""
    assert (found.dtype, found.shape) == (np.float32, expected.shape)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    unit = 1 << 16 if precision == "bfloat16" else 1
    distance = found.view(np.int32) - expected.view(np.int32)
    assert (np.isin(distance, [-unit, 0, unit])).all()
    assert (distance == 0).mean() >= 0.9999


# Functions of one number


@pytest.mark.parametrize("name", golden.UNARY)
def test_all_bfloat16_inputs_are_correctly_rounded(mpmath: ModuleType, name: str) -> None:
    assert_same_bits(golden.unary(name, EVERY), exact_unary(mpmath, name, EVERY, BFLOAT16))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_near_zero_the_half_and_rounding_twice_would_be_wrong(name: str) -> None:
    """The traps that the test of all inputs is about: ties of x / 2 among subnormal numbers."""
    found = golden.unary(name, EVERY)
    finite = np.isfinite(EVERY)
    half = round_to_bfloat16(EVERY[finite].astype(np.float64) / 2)
    near = np.abs(EVERY[finite]) < 2.0**-100
    assert (half != found[finite])[near].sum() >= 64
    with np.errstate(over="ignore", under="ignore"):
        once = golden.UNARY[name](EVERY[finite].astype(np.float64)).astype(np.float32)
    assert (round_to_bfloat16(once) != found[finite]).sum() >= 64


@pytest.mark.parametrize("name", golden.UNARY)
def test_every_nan_gives_the_canonical_one(name: str) -> None:
    nan = EVERY[np.isnan(EVERY)]
    assert len(nan) == 2 * 127
    expected = np.full(nan.shape, CANONICAL_NAN, np.uint32).view(np.float32)
    assert_same_bits(golden.unary(name, nan), expected)


@pytest.mark.parametrize("name", golden.UNARY)
def test_float32_results_of_every_nan(name: str) -> None:
    nan = EVERY[np.isnan(EVERY)]
    expected = np.full(nan.shape, CANONICAL_NAN, np.uint32).view(np.float32)
    assert_same_bits(golden.unary(name, nan, "float32"), expected)


@every_precision
@pytest.mark.parametrize("name", golden.UNARY)
def test_infinities_and_zeros(name: str, precision: str) -> None:
    x = np.float32([-np.inf, np.inf, 0.0, -0.0])
    at_zero = {"exp": 1.0, "sigmoid": 0.5}.get(name, 0.0)
    at_minus_zero = -0.0 if name in ODD_AT_ZERO else at_zero
    expected = np.float32([*LIMITS[name], at_zero, at_minus_zero])
    assert_same_bits(golden.unary(name, x, precision), expected)


@pytest.mark.parametrize("name", golden.UNARY)
def test_float32_results(mpmath: ModuleType, name: str) -> None:
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.uniform(-90, 90, 1500), rng.normal(0, 2, 1500)])
    x = np.concatenate([x, np.ldexp(rng.uniform(-1, 1, 500), rng.integers(-140, 128, 500))])
    x = x.astype(np.float32)
    expected = exact_unary(mpmath, name, x, FLOAT32)
    check_rounding(golden.unary(name, x, "float32"), expected, "float32")


def test_lower_bits_of_bfloat16_inputs_are_not_looked_at() -> None:
    x = (EVERY.view(np.uint32) | np.uint32(0xFFFF)).view(np.float32)
    for name in golden.UNARY:
        assert_same_bits(golden.unary(name, x), golden.unary(name, EVERY))


@every_precision
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3, 4)])
def test_shapes_of_functions(precision: str, shape: tuple[int, ...]) -> None:
    x = np.resize(np.float32([-1, 0.5, 3]), shape)
    kept = x.copy()
    x.flags.writeable = False
    for name in golden.UNARY:
        found = golden.unary(name, x, precision)
        expected = golden.unary(name, x.reshape(-1), precision).reshape(shape)
        assert_same_bits(found, expected)
        assert_same_bits(golden.unary(name, x.T, precision), expected.T)
    assert_same_bits(x, kept)


# Sums


def folded(values: list[Any], zero: Any) -> Any:
    """The definition: pad with zeros to a power of two, add the second half to the first."""
    size = 1
    while size < len(values):
        size *= 2
    values = values + [zero] * (size - len(values))
    while size > 1:
        size //= 2
        values = [values[i] + values[size + i] for i in range(size)]
    return values[0] + zero


def spread_numbers(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Numbers of many exponents, whose sums depend on their order."""
    rng = np.random.default_rng(seed)
    return np.ldexp(rng.normal(size=shape), rng.integers(-20, 21, shape)).astype(dtype)


every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@every_dtype
@pytest.mark.parametrize("length", [*range(71), 127, 128, 129, 768, 1000, 1025])
def test_tree_sum_is_its_definition(dtype: type, length: int) -> None:
    x = spread_numbers((5, length), dtype, length)
    expected = np.array([folded(list(row), dtype(0)) for row in x])
    assert_same_bits(golden.tree_sum(x), expected)
    for axis in (0, -2):
        assert_same_bits(golden.tree_sum(x.T.copy(), axis), expected)
        assert_same_bits(golden.tree_sum(x.T, axis), expected)


@every_dtype
def test_another_order_would_give_other_bits(dtype: type) -> None:
    x = spread_numbers((1000, 70), dtype, 1)
    found = golden.tree_sum(x)
    running = np.cumsum(x, axis=-1)[:, -1]
    assert (found != running).mean() > 0.3
    shuffled = golden.tree_sum(x[:, np.random.default_rng(1).permutation(70)])
    assert (found != shuffled).mean() > 0.3


@every_dtype
@pytest.mark.parametrize("axis", [-3, -2, -1, 0, 1, 2])
def test_tree_sum_along_any_axis(dtype: type, axis: int) -> None:
    x = spread_numbers((5, 6, 7), dtype, 2)
    found = golden.tree_sum(x, axis)
    moved = np.moveaxis(x, axis, -1)
    assert found.shape == moved.shape[:-1]
    for index in np.ndindex(found.shape):
        assert_same_bits(found[index], folded(list(moved[index]), dtype(0)))


@every_dtype
@pytest.mark.parametrize("zeros", [1, 2, 30, 200])
def test_appended_zeros_change_no_bit(dtype: type, zeros: int) -> None:
    for length in range(1, 40):
        x = spread_numbers((4, length), dtype, length)
        x[0] = -0.0
        padded = np.concatenate([x, np.zeros((4, zeros), dtype)], axis=-1)
        assert_same_bits(golden.tree_sum(padded), golden.tree_sum(x))


@every_dtype
@pytest.mark.parametrize("values", [[], [-0.0], [-0.0] * 2, [-0.0] * 3, [1.5, -1.5], [0.0, -0.0]])
def test_a_sum_of_zero_is_plus_zero(dtype: type, values: list[float]) -> None:
    assert_same_bits(golden.tree_sum(np.array(values, dtype)), np.array(0, dtype))


@every_dtype
@pytest.mark.parametrize("length", [3, 64, 300])
def test_tree_sum_of_a_row_depends_on_that_row_alone(dtype: type, length: int) -> None:
    x = spread_numbers((37, length), dtype, 3)
    x[5, 1], x[6, 2] = np.nan, np.inf
    kept = x.copy()
    together = golden.tree_sum(x)
    assert_same_bits(x, kept)
    for i in range(len(x)):
        alone = golden.tree_sum(x[i])
        assert isinstance(alone, np.ndarray)
        np.testing.assert_array_equal(alone, together[i])
        if i not in (5, 6):
            assert_same_bits(alone, together[i])
    order = np.random.default_rng(3).permutation(len(x))
    np.testing.assert_array_equal(golden.tree_sum(x[order]), together[order])


@pytest.mark.parametrize(
    ("x", "found"),
    [
        ([1.0, 2.0], "list"),
        (np.float32(1), "float32"),
        (np.arange(3, dtype=np.int64), "int64"),
        (np.float16([1]), "float16"),
        (np.ones(2, ">f4"), ">f4"),
    ],
)
def test_tree_sum_wants_an_array_of_float32_or_float64(x: Any, found: str) -> None:
    with pytest.raises(TypeError, match=f"x: expected an array .*, found {found}"):
        golden.tree_sum(x)


# Sums and products of two


bfloat16_values = st.integers(0, 0xFFFF).map(lambda bits: float(EVERY[bits]))
float32_values = st.floats(width=32)


def expected_sum(x: float, y: float, kind: Binary) -> np.ndarray:
    """Rounded once; zeros and specials follow from the operands alone, in any precision."""
    special = not (math.isfinite(x) and math.isfinite(y)) or x + y == 0
    result = x + y if special else nearest(Fraction(x) + Fraction(y), kind)
    return np.float32([math.nan if math.isnan(result) else result])


def expected_product(x: float, y: float, kind: Binary) -> np.ndarray:
    special = not (math.isfinite(x) and math.isfinite(y) and x and y)
    result = x * y if special else nearest(Fraction(x) * Fraction(y), kind)
    return np.float32([math.nan if math.isnan(result) else result])


@given(bfloat16_values, bfloat16_values)
def test_bfloat16_sums_are_rounded_once(x: float, y: float) -> None:
    found = golden.add(np.float32([x]), np.float32([y]))
    assert_same_bits(found, expected_sum(x, y, BFLOAT16))


@given(bfloat16_values, st.integers(-12, 12), st.integers(0, 255))
def test_bfloat16_sums_of_like_exponents_are_rounded_once(x: float, step: int, low: int) -> None:
    """The last bits meet in these sums: ties, and numbers next to ties."""
    bits = int(np.float32(x).view(np.uint32)) >> 16
    y = float(EVERY[(bits + (step << 7) ^ low) & 0xFFFF])
    found = golden.add(np.float32([x]), np.float32([y]))
    assert_same_bits(found, expected_sum(x, y, BFLOAT16))


@given(float32_values, float32_values)
def test_float32_sums_are_rounded_once(x: float, y: float) -> None:
    found = golden.add(np.float32([x]), np.float32([y]), "float32")
    assert_same_bits(found, expected_sum(x, y, FLOAT32))


@given(bfloat16_values, float32_values)
def test_bfloat16_products_are_rounded_once(x: float, factor: float) -> None:
    if not math.isnan(factor):
        found = golden.multiply(np.float32([x]), factor)
        assert_same_bits(found, expected_product(x, factor, BFLOAT16))


@given(float32_values, float32_values)
def test_float32_products_are_rounded_once(x: float, factor: float) -> None:
    if not math.isnan(factor):
        found = golden.multiply(np.float32([x]), factor, "float32")
        assert_same_bits(found, expected_product(x, factor, FLOAT32))


def test_products_that_are_float32_ties_are_rounded_once() -> None:
    """Products of 32 bits that are next to a midpoint of bfloat16, and in float32 are one."""
    traps = 0
    for x in EVERY[0x3F80:0x4000:4]:
        for middle in EVERY[0x3F80:0x4000].astype(np.float64) + 2.0**-8:
            factor = np.float32(middle / float(x))
            product = float(x) * float(factor)
            if np.float32(product) == middle != product:
                found = golden.multiply(np.array([x]), factor)
                assert_same_bits(found, expected_product(float(x), float(factor), BFLOAT16))
                traps += bool(found[0] != round_to_bfloat16(np.float32([product]))[0])
    assert traps > 200


@every_precision
def test_sums_and_products_that_are_no_numbers_are_the_canonical_nan(precision: str) -> None:
    nan = np.full(1, CANONICAL_NAN, np.uint32).view(np.float32)
    infinity, zero = np.float32([np.inf]), np.float32([0])
    odd_nan = np.uint32([0xFFF00001]).view(np.float32)
    assert_same_bits(golden.add(infinity, -infinity, precision), nan)
    assert_same_bits(golden.add(odd_nan, zero, precision), nan)
    assert_same_bits(golden.multiply(zero, math.inf, precision), nan)
    assert_same_bits(golden.multiply(odd_nan, 1.0, precision), nan)


def test_sums_broadcast() -> None:
    x, y = random_bfloat16((2, 3, 4), 1), random_bfloat16((3, 1), 2)
    assert_same_bits(golden.add(x, y), golden.add(x, np.broadcast_to(y, x.shape).copy()))


# Softmax and layer normalisation


def exact_softmax(mpmath: ModuleType, x: np.ndarray, kind: Binary) -> np.ndarray:
    results = np.empty_like(x)
    with mpmath.workdps(40):
        for row, result in zip(x, results, strict=True):
            largest = mpmath.mpf(float(row.max()))
            weights = [mpmath.exp(mpmath.mpf(value) - largest) for value in row.tolist()]
            total = mpmath.fsum(weights)
            result[:] = [rounded(weight / total, kind) for weight in weights]
    return results


def exact_layer_norm(
    mpmath: ModuleType,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    kind: Binary,
) -> np.ndarray:
    results = np.empty_like(x)
    with mpmath.workdps(60):
        mpf = mpmath.mpf
        for row, result in zip(x, results, strict=True):
            values = [mpf(value) for value in row.tolist()]
            mean = mpmath.fsum(values) / len(values)
            variance = mpmath.fsum((value - mean) ** 2 for value in values) / len(values)
            deviation = mpmath.sqrt(variance + mpf(eps))
            result[:] = [
                rounded((value - mean) / deviation * mpf(scale) + mpf(shift), kind)
                for value, scale, shift in zip(values, weight.tolist(), bias.tolist(), strict=True)
            ]
    return results


@every_precision
@pytest.mark.parametrize(("length", "spread"), [(1, 1), (2, 3), (5, 30), (64, 3), (300, 1)])
def test_softmax_is_rounded_once(
    mpmath: ModuleType, precision: str, length: int, spread: float
) -> None:
    x = random_bfloat16((12_000 // length, length), length, spread)
    expected = exact_softmax(mpmath, x, KINDS[precision])
    check_rounding(golden.softmax(x, precision), expected, precision)


def test_softmax_of_far_apart_numbers(mpmath: ModuleType) -> None:
    """Down to results that are subnormal and 0."""
    x = np.float32([np.linspace(0, -110, 300), np.linspace(3e38, -3e38, 300)])
    x = round_to_bfloat16(x)
    for precision, kind in KINDS.items():
        found = golden.softmax(x, precision)
        assert_same_bits(found, exact_softmax(mpmath, x, kind))
        assert ((found > 0) & (found < 2.0**-126)).any()
        assert (found == 0).any()


def layer_norm_operands(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = random_bfloat16((12_000 // length, length), length, 1.5)
    x = golden.add(x, random_bfloat16((len(x), 1), length + 1, 4))
    return x, random_bfloat16((length,), 2), random_bfloat16((length,), 3, 0.3)


@every_precision
@pytest.mark.parametrize(("length", "eps"), [(1, 1e-12), (2, 0.1), (64, 1e-12), (300, 1e-5)])
def test_layer_norm_is_rounded_once(
    mpmath: ModuleType, precision: str, length: int, eps: float
) -> None:
    x, weight, bias = layer_norm_operands(length)
    expected = exact_layer_norm(mpmath, x, weight, bias, eps, KINDS[precision])
    found = golden.layer_norm(x, weight, bias, eps, precision)
    check_rounding(found, expected, precision)


def test_layer_norm_of_extremes(mpmath: ModuleType) -> None:
    """The squares of numbers of 2^127 and of 2^-133 are beyond float32."""
    large = np.float32([[1, -1, 0.5, 0.25], [-1, 1, 1, 1]]) * np.float32(2.0**127)
    small = np.float32([[1, 2, 3, 100], [3, 2, 1, 0]]) * np.float32(2.0**-133)
    weight, bias = np.float32([1, 2, -3, 0.5]), np.float32([0, 1, 0, -1])
    for x, eps in ((large, 1e-12), (small, 0.0), (small, 1e-12)):
        expected = exact_layer_norm(mpmath, x, weight, bias, eps, BFLOAT16)
        assert_same_bits(golden.layer_norm(x, weight, bias, eps), expected)


@every_precision
@pytest.mark.parametrize(("rows", "features"), [(1, 5), (2, 5), (7, 300), (129, 40)])
def test_mean_is_rounded_once(precision: str, rows: int, features: int) -> None:
    x = random_bfloat16((3, rows, features), 7)
    expected = [
        [nearest(sum(map(Fraction, column.tolist())) / rows, KINDS[precision]) for column in part.T]
        for part in x
    ]
    found = golden.mean(x, precision)
    assert found.shape == (3, features)
    check_rounding(found, np.array(expected, np.float32), precision)
    assert_same_bits(golden.mean(x[1], precision), found[1])
    assert_same_bits(golden.mean(x.transpose(0, 2, 1).copy().swapaxes(1, 2), precision), found)


@pytest.mark.parametrize("mode", golden.POOLINGS)
@pytest.mark.parametrize(("rows", "features"), [(1, 5), (2, 5), (7, 300), (129, 40)])
def test_pool_is_rounded_once(mpmath: ModuleType, mode: str, rows: int, features: int) -> None:
    x = random_bfloat16((3, rows, features), 9)
    places = np.arange(1, rows + 1) * np.array([[1], [2], [3]])

    def pooled(column: list[float], weights: list[int]) -> float:
        """Compute the exact number, or a root with enough digits to round it correctly."""
        exact = [Fraction(value) for value in column]
        if mode == "mean_sqrt_len_tokens":
            total = sum(exact, Fraction())
            with mpmath.workdps(50):
                size = mpmath.mpf(abs(total.numerator)) / total.denominator / mpmath.sqrt(rows)
                return math.copysign(rounded(size, KINDS["float32"]), total)
        found = {
            "mean": sum(exact) / rows,
            "weightedmean": sum(map(operator.mul, exact, weights)) / sum(weights),
            "max": max(exact),
            "lasttoken": exact[-1],
        }
        return nearest(found[mode], KINDS["float32"])

    expected = [
        [pooled(column.tolist(), weights) for column in part.T]
        for part, weights in zip(x, places.tolist(), strict=True)
    ]
    found = golden.pool(mode, x, places)
    assert found.shape == (3, features)
    check_rounding(found, np.array(expected, np.float32), "float32")
    assert_same_bits(golden.pool(mode, x[1], places[1]), found[1])
    assert_same_bits(golden.pool(mode, x.swapaxes(0, 2).copy().swapaxes(0, 2), places), found)


def test_pool_of_zeros_and_of_what_is_not_finite() -> None:
    """The processor may decide which zero is NumPy's maximum; ours is +0."""
    zeros = np.float32([[-0.0, 0.0, -0.0], [0.0, -0.0, -0.0]])
    places = np.array([1, 2])
    assert_same_bits(golden.pool("max", zeros, places), np.zeros(3, np.float32))
    infinite = np.float32([[np.inf, np.nan], [1, 1]])
    found = golden.pool("max", infinite, places)
    assert_same_bits(found, np.float32([np.inf, np.nan]))


@pytest.mark.parametrize(
    ("mode", "x", "places", "message"),
    [
        ("median", np.ones((2, 3), np.float32), np.ones(2, int), "mode: expected one of 'mean', "),
        ("max", np.ones((0, 3), np.float32), np.ones(0, int), "x: expected at least one row"),
        ("max", np.ones((2, 3), np.float32), np.ones(3, int), "places: expected shape"),
    ],
)
def test_pool_refuses(mode: str, x: np.ndarray, places: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        golden.pool(mode, x, places)


@every_precision
@pytest.mark.parametrize("length", [1, 2, 24, 384])
def test_normalize_is_rounded_once(mpmath: ModuleType, precision: str, length: int) -> None:
    x = random_bfloat16((40, length), 8)
    x[:6] *= np.float32([[0], [2.0**-60], [2.0**-45], [2.0**-30], [2.0**60], [2.0**120]])
    expected = []
    with mpmath.workdps(50):
        for row in x.tolist():
            norm = mpmath.sqrt(mpmath.fsum(mpmath.mpf(value) ** 2 for value in row))
            norm = max(norm, mpmath.mpf(1e-12))
            results = (rounded(mpmath.mpf(value) / norm, KINDS[precision]) for value in row)
            expected.append([math.copysign(*pair) for pair in zip(results, row, strict=True)])
    found = golden.normalize(x, precision)
    check_rounding(found, np.array(expected, np.float32), precision)
    assert_same_bits(golden.normalize(x[7:9], precision), found[7:9])
    assert_same_bits(golden.normalize(np.asfortranarray(x), precision), found)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 0, 3)])
def test_means_of_nothing_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^x: expected at least one row of features, found"):
        golden.mean(np.zeros(shape, np.float32))


def layer_norm_of(length: int) -> Callable[..., np.ndarray]:
    weight, bias = random_bfloat16((length,), 4), random_bfloat16((length,), 5)
    return lambda x, precision: golden.layer_norm(x, weight, bias, 1e-12, precision)


def row_functions(length: int) -> list[Callable[..., np.ndarray]]:
    return [golden.softmax, layer_norm_of(length)]


@every_precision
@pytest.mark.parametrize(("count", "length"), [(40, 7), (300, 768), (5, 70_000)])
def test_a_row_depends_on_that_row_alone(precision: str, count: int, length: int) -> None:
    """In blocks of many rows, in rows longer than a block, next to NaN, in any order."""
    x = random_bfloat16((count, length), 6)
    x[1, 3], x[2, 0] = np.nan, np.inf
    x[-1, 1] = -np.inf
    x.flags.writeable = False
    order = np.random.default_rng(6).permutation(count)
    for function in row_functions(length):
        together = function(x, precision)
        for i in {0, 1, 2, 3, count // 2, 84, 85, 86, 169, 170, 171, count - 1} & set(range(count)):
            assert_same_bits(function(x[i], precision), together[i])
        assert_same_bits(function(x[order], precision), together[order])
        assert_same_bits(function(x[1:], precision), together[1:])
        assert_same_bits(function(x.reshape(count, 1, length), precision)[:, 0], together)


@every_precision
def test_rows_of_any_layout(precision: str) -> None:
    whole = random_bfloat16((6, 8, 10), 7)
    for x in (whole.T, whole[::-2, ::3], whole[..., ::-1], np.broadcast_to(whole[0], (2, 8, 10))):
        for function in row_functions(x.shape[-1]):
            assert_same_bits(function(x, precision), function(x.copy(), precision))
    for function in row_functions(10):
        assert function(whole[:0], precision).shape == (0, 8, 10)


@every_precision
def test_rows_that_are_no_numbers_are_the_canonical_nan(precision: str) -> None:
    odd_nan = np.uint32([0xFFF00001]).view(np.float32)[0]
    x = np.float32([[1, 2, 3]] * 4)
    x[0, 1], x[1, 1], x[2, 1] = odd_nan, np.inf, -np.inf
    nan = np.full(3, CANONICAL_NAN, np.uint32).view(np.float32)
    soft, norm = (function(x, precision) for function in row_functions(3))
    for found in (soft[0], soft[1], norm[0], norm[1], norm[2]):
        assert_same_bits(found, nan)
    assert not np.isnan(norm[3]).any()
    # To softmax -infinity is a weight of 0; a row of nothing else has none.
    assert_same_bits(soft[2][[0, 2]], golden.softmax(np.float32([1, 3]), precision))
    assert_same_bits(soft[2][1], np.float32(0))
    assert_same_bits(golden.softmax(np.full(3, -np.inf, np.float32), precision), nan)


def plain_softmax(x: np.ndarray) -> np.ndarray:
    """In float64, row by row, as the formula is written."""
    with np.errstate(all="ignore"):
        weights = elementary.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
        return weights / golden.tree_sum(weights)[..., None]


def plain_layer_norm(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float = 1e-12,
    add: Callable[[np.ndarray], np.ndarray] = golden.tree_sum,
) -> np.ndarray:
    """As the formula is written."""
    with np.errstate(all="ignore"):
        centred = x.astype(np.float64)
        centred = centred - add(centred)[..., None] / x.shape[-1]
        variance = add(centred * centred)[..., None] / x.shape[-1]
        return centred / np.sqrt(variance + eps) * weight.astype(float) + bias.astype(float)


def plainly_rounded(plain: np.ndarray) -> np.ndarray:
    expected = round_to_bfloat16(plain)
    return np.where(np.isnan(expected), np.float32(np.nan), expected)


@every_precision
@pytest.mark.parametrize("shape", [(3, 1), (2, 3, 25, 25), (5000, 12), (200, 384), (2, 40_000)])
def test_columns_have_the_bits_of_rows(precision: str, shape: tuple[int, ...]) -> None:
    """Whichever axis is first in memory, and whatever is rounded on the way."""
    x = 4 * random_bfloat16(shape, 7)
    x.reshape(-1)[[0, -1]] = -np.inf, 1e30
    weight, bias = random_bfloat16((2, shape[-1]), 8)
    for found, plain in (
        (golden.softmax(x, precision), plain_softmax(x)),
        (golden.layer_norm(x, weight, bias, 1e-12, precision), plain_layer_norm(x, weight, bias)),
    ):
        expected = plain.astype(np.float32) if precision == "float32" else plainly_rounded(plain)
        assert_same_bits(found, np.where(np.isnan(expected), np.float32(np.nan), expected))


def extreme_rows(length: int, seed: int) -> np.ndarray:
    """Rows of every size: with large means, infinities, NaN, constants, subnormals, any bits."""
    rng = np.random.default_rng(seed)
    scales = [1e-38, 1e-30, 1e-3, 0.3, 1, 3, 10, 40, 120, 300, 1e4, 1e30, 3e38]
    offsets = [0, 0, 0, 1, 50, -100, -240, 349, 400, 1e20]
    with np.errstate(over="ignore"):
        x = rng.normal(size=(200, length)) * rng.choice(scales, (200, 1))
        x = (x + rng.choice(offsets, (200, 1))).astype(np.float32)
    bits = rng.integers(0, 1 << 32, x.shape, np.uint64).astype(np.uint32)
    x[:20] = bits[:20].view(np.float32)
    x[20:40][rng.random((20, length)) < 0.2] = -np.inf
    x[40:60][rng.random((20, length)) < 0.2] = -10_000
    x[60:65][rng.random((5, length)) < 0.02] = np.nan
    x[65:70][rng.random((5, length)) < 0.02] = np.inf
    x[70:80] = x[70:80, :1]
    x[80:100][rng.random((20, length)) < 0.5] = -0.0
    x[1::3] = np.where(np.isnan(x[1::3]), x[1::3], round_to_bfloat16(x[1::3]))
    x[101:200:3] = from_bits((bits[101:200:3] & 0xFFFF).astype(np.uint16))
    return x


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 16, 27, 64, 100, 128, 129, 384, 1000])
def test_quick_rows_have_the_bits_of_the_rule(length: int) -> None:
    """Rows by themselves take the quick way, or not, by what they hold and not by the others."""
    rng = np.random.default_rng(length)
    x = extreme_rows(length, length)
    bfloat16 = np.where(np.isnan(x), x, round_to_bfloat16(x))
    weight, bias = rng.normal(size=(2, length)).astype(np.float32)
    weight[rng.random(length) < 0.1] = 0
    bias[rng.random(length) < 0.2] = -0.0
    tiny, huge = weight * np.float32(2.0**-140), weight * np.float32(2.0**126)
    odd = bias.copy()
    odd[-1] = np.nan
    for rows in (x, bfloat16):
        assert_same_bits(golden.softmax(rows), plainly_rounded(plain_softmax(rows)))
        for scale, shift, eps in (
            (weight, bias, 1e-12),
            (weight, bias, 0.0),
            (weight, bias, -1e-3),
            (weight, -weight, 1e-5),
            (tiny, 0 * bias, 1e-12),
            (huge, huge, 1e-12),
            (weight, odd, 1e-12),
            (odd, bias, 1e-12),
        ):
            expected = plainly_rounded(plain_layer_norm(rows, scale, shift, eps))
            assert_same_bits(golden.layer_norm(rows, scale, shift, eps), expected)


any_bits = st.integers(0, 0xFFFF_FFFF)


@given(st.data(), st.integers(1, 40), st.integers(1, 5), st.booleans())
def test_any_rows_have_the_bits_of_the_rule(
    data: st.DataObject, length: int, rows: int, bfloat16: bool
) -> None:
    def draw(count: int) -> np.ndarray:
        bits = st.lists(any_bits, min_size=count, max_size=count)
        return np.array(data.draw(bits), np.uint32)

    x = draw(rows * length).reshape(rows, length)
    if data.draw(st.booleans()):  # of like sizes
        x = x & np.uint32(0x81FF_FFFF) | np.uint32(0x3E00_0000)
    x = (x & np.uint32(0xFFFF_0000 if bfloat16 else 0xFFFF_FFFF)).view(np.float32)
    weight, bias = draw(2 * length).reshape(2, length).view(np.float32)
    assert_same_bits(golden.softmax(x), plainly_rounded(plain_softmax(x)))
    expected = plainly_rounded(plain_layer_norm(x, weight, bias, 0.0))
    assert_same_bits(golden.layer_norm(x, weight, bias, 0.0), expected)


@pytest.mark.parametrize("length", [1, 2, 30, 128, 1000, 32_768])
@pytest.mark.parametrize("spread", [0.1, 3, 100, 350])
def test_quotients_by_the_table_are_as_close_as_the_proof_says(length: int, spread: float) -> None:
    """In another order, too; next to the numbers that are not in the table."""
    x = np.random.default_rng(length).uniform(-spread, spread, (max(1, 2000 // length), length))
    x = round_to_bfloat16(x.astype(np.float32))
    table = golden._exponentials()[x.view(np.uint32) >> 16]
    quotients = table / np.cumsum(table[:, ::-1], axis=1)[:, -1:]
    plain = plain_softmax(x)
    assert (np.abs(quotients - plain) <= golden._DOUBTFUL / 2 * plain).all()


def test_the_table_of_exponentials() -> None:
    table = golden._exponentials()
    inside = np.abs(EVERY) <= 350
    assert_same_bits(table[inside], elementary.exp(EVERY[inside].astype(np.float64)))
    assert (table[EVERY < -350] == 0).all()
    assert np.isnan(table[~(inside | (EVERY < -350))]).all()


@pytest.mark.parametrize("length", [2, 27, 64, 384, 1000])
def test_sums_in_another_order_differ_by_less_than_the_proof_says(length: int) -> None:
    x = random_bfloat16((20_000 // length, length), length) * np.float32(1 / 3)
    x = x + np.linspace(0, 3, len(x), dtype=np.float32)[:, None]
    x[::2, 0] += 3 * length
    x = x[np.abs(x.mean(axis=1)) < golden._LARGEST_MEAN * x.std(axis=1)]
    assert len(x) > 10
    weight, bias = random_bfloat16((2, length), 8)
    weight = weight * np.float32([1000, 1, 1e-3, 0] * length)[:length]
    tree = plain_layer_norm(x, weight, bias, 0.0)

    def running(x: np.ndarray) -> np.ndarray:
        blocks = x.reshape(len(x), -1, math.gcd(length, golden._BLOCK))
        return np.cumsum(np.cumsum(blocks, axis=-1)[..., -1], axis=-1)[..., -1]

    other = plain_layer_norm(x, weight, bias, 0.0, running)
    bound = golden._difference(weight.astype(np.float64)) + 2.0**-50 * np.abs(tree)
    assert (np.abs(tree - other) <= bound).all()
    assert (tree != other).any() or length == 2


def test_variances_that_cancel_have_the_bits_of_the_rule() -> None:
    """With a negative eps that is next to the variance, the last bits of sums decide."""
    weight, bias = random_bfloat16((2, 384), 8)
    for half in np.random.default_rng(9).normal(size=(30, 1, 192)).astype(np.float32):
        x = np.concatenate([half, -half], axis=1)  # of mean 0
        variance = x.astype(np.float64).var()
        eps = -variance * (1 - 2.0**-46)
        expected = plainly_rounded(plain_layer_norm(x, weight, bias, eps))
        assert_same_bits(golden.layer_norm(x, weight, bias, eps), expected)


def doubtful_layer_norms(weight: np.ndarray, bias: np.ndarray, x: np.ndarray) -> list[int]:
    wide = weight.astype(np.float64)
    difference, out = golden._difference(wide), np.empty_like(x)
    found = golden._quick_layer_norm(wide, bias.astype(np.float64), 0.0, difference, x, out)
    return found.tolist()


def test_which_layer_norms_are_in_doubt() -> None:
    """Norms of 1 and -1 alone are exact, so the results are what the weight and bias say."""
    x = np.float32([[1, -1], [-1, 1]])
    one, step = np.float32([1, 0.5]), 2.0**-31
    for bias, expected in (
        ([2.0**-8, 0], [0]),  # 1 + 2^-8 is a midpoint, -1 + 2^-8 a number
        ([2.0**-8 + step, 0], []),
        ([-1, 0.0], [0]),  # results of 0, and of about 2^-24
        ([1 - 2.0**-24, 0.0], [1]),
        ([-0.5, 0.25], []),
    ):
        assert doubtful_layer_norms(one, np.float32(bias), x) == expected
    assert doubtful_layer_norms(np.float32([0, 1]), np.float32([-0.0, 2]), x) == [0, 1]
    assert doubtful_layer_norms(np.float32([0, 1]), np.float32([1, 2]), x) == []
    assert doubtful_layer_norms(np.float32([0, 0]), np.float32([-0.0, 2]), x) == [0, 1]
    bias = np.zeros(2, np.float32)
    assert doubtful_layer_norms(one, bias, x + np.float32([[3], [5]])) == [1]
    assert doubtful_layer_norms(one, bias, np.float32([[3, 3], [np.nan, 1], [1, 2]])) == [0, 1]


@pytest.mark.parametrize("step", [0.0, 2.0**-30, -(2.0**-30), 2.0**-60, -(2.0**-60)])
def test_layer_norms_at_every_midpoint(step: float) -> None:
    """And next to it: norms of 1 and -1 are exact, so the results are the weights and biases."""
    codes = np.arange(0x7F80, dtype=np.uint32)
    weight = (codes << 16 | 0x8000).view(np.float32)
    bias = (weight * np.float32(step)).astype(np.float32)
    x = np.ones((2, len(weight)), np.float32)
    x[0, ::2] = x[1, 1::2] = -1
    expected = plainly_rounded(x * weight.astype(np.float64) + bias.astype(np.float64))
    assert_same_bits(golden.layer_norm(x, weight, bias, 0.0), expected)


def test_which_softmaxes_are_in_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a table in which the exponentials of 1 and of 2 make a midpoint of bfloat16."""
    x = np.float32([[1, 2], [2, 2], [3, 2], [4, 2], [-300, -250], [400, 2]])
    table = golden._exponentials().copy()
    codes = np.float32([1, 2, 3, 4]).view(np.uint32) >> 16
    table[codes] = 257, 255, 257 * (1 + 2.0**-34), 257 * (1 + 2.0**-40)
    monkeypatch.setattr(golden, "_exponentials", lambda: table)
    out = np.empty_like(x)
    assert golden._softmax_by_table(x, out).tolist() == [0, 3, 4, 5]
    assert_same_bits(out[2], np.float32([0.50390625, 0.498046875]))
    assert golden._softmax_by_table(x + np.float32(2.0**-20), out).tolist() == list(range(6))


def test_products_in_another_layout() -> None:
    """Products that are midpoints of bfloat16, and next to some: they are settled one by one."""
    x = np.resize(EVERY[0x3F80:0x4000], (4, 3, 1000))
    for factor in (1 + 2.0**-7, 257 / 256, 1.5 + 2.0**-23):
        expected = round_to_bfloat16(x.astype(np.float64) * factor)
        for axes in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            moved = x.transpose(axes)
            assert_same_bits(golden.multiply(moved, factor), expected.transpose(axes))
            found = golden.add(moved, moved * np.float32(factor - 1))
            assert_same_bits(found, expected.transpose(axes))


@pytest.mark.parametrize("off", [0.0, 2.0**-52, -(2.0**-52), 2.0**-26, -(2.0**-26), 2.0**-20])
def test_float64_is_rounded_once_by_way_of_float32(off: float) -> None:
    """Of all midpoints of bfloat16, subnormal ones too, and of what float32 rounds to them."""
    codes = np.arange(0x7F80, dtype=np.uint32)
    below, above = ((codes + i << 16).view(np.float32) for i in (0, 1))
    wide = above.astype(np.float64)
    wide[-1] = 2.0**128  # where infinity is
    middles = (below + wide) / 2 * (1 + off)
    for x in (middles, -middles, middles.reshape(-1, 128).T):
        expected = round_to_bfloat16(x)
        assert_same_bits(golden._rounded(x, "bfloat16"), expected)
    if off == 0:
        even = np.where(codes % 2 == 0, below, above)
        assert_same_bits(golden._rounded(middles, "bfloat16"), even)


def test_any_float64_is_rounded_once_by_way_of_float32() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 64, 200_000, np.uint64)
    bits[::2] &= np.uint64(0x47FF_FFFF_FFFF_FFFF)  # more of those that float32 has
    with np.errstate(all="ignore"):
        expected = round_to_bfloat16(bits.view(np.float64))
        found = golden._rounded(bits.view(np.float64), "bfloat16")
    assert_same_bits(found, np.where(np.isnan(expected), np.float32(np.nan), expected))


def test_a_constant_row_is_the_bias() -> None:
    x = np.full((2, 5), 0.1, np.float32)
    weight, bias = random_bfloat16((5,), 8), random_bfloat16((5,), 9)
    assert_same_bits(golden.layer_norm(x[:, :4], weight[:4], bias[:4], 1e-5)[0], bias[:4])
    assert np.isnan(golden.layer_norm(x[:, :4], weight[:4], bias[:4], 0.0)).all()  # 0 / 0


# Errors


ROW = np.ones((2, 3), np.float32)
VECTOR = np.ones(3, np.float32)
CALLS: dict[str, Callable[..., Any]] = {
    "unary": lambda x, **options: golden.unary("exp", x, **options),
    "add": lambda x, **options: golden.add(x, ROW, **options),
    "multiply": lambda x, **options: golden.multiply(x, 0.5, **options),
    "softmax": golden.softmax,
    "layer_norm": lambda x, **options: golden.layer_norm(x, VECTOR, VECTOR, 1e-5, **options),
    "mean": golden.mean,
    "normalize": golden.normalize,
}


@pytest.mark.parametrize("name", CALLS)
def test_unknown_precisions_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match="precision: expected one of 'bfloat16', 'float32', found 'f"
    ):
        CALLS[name](ROW, precision="float64")


@every_precision
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("x", "found"), [(ROW.astype(np.float64), "float64"), ([[1.0, 2.0, 3.0]], "list")]
)
def test_what_is_no_array_of_float32_is_refused(
    name: str, x: Any, found: str, precision: str
) -> None:
    with pytest.raises(TypeError, match=f"x: expected an array of float32, found {found}"):
        CALLS[name](x, precision=precision)


def test_every_operand_is_named() -> None:
    wide = VECTOR.astype(np.float64)
    with pytest.raises(TypeError, match="y: expected an array of float32, found float64"):
        golden.add(VECTOR, wide)
    with pytest.raises(TypeError, match="weight: expected an array of float32, found float64"):
        golden.layer_norm(ROW, wide, VECTOR, 1e-5)
    with pytest.raises(TypeError, match="bias: expected an array of float32, found list"):
        golden.layer_norm(ROW, VECTOR, [0.0, 0.0, 0.0], 1e-5)


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((3,), (1,)), ((1, 3), (3,)), ((), ())])
def test_weight_and_bias_of_another_shape(shapes: tuple[tuple[int, ...], ...]) -> None:
    weight, bias = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match=r"weight and bias: expected shape \(3,\), found \("):
        golden.layer_norm(ROW, weight, bias, 1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0)])
@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_rows_of_nothing_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x: expected a last axis of at least 1, found shape \("):
        CALLS[name](np.ones(shape, np.float32))


def test_unknown_functions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name: expected one of 'exp', 'gelu', .*, found 'cos'"):
        golden.unary("cos", VECTOR)


@pytest.mark.parametrize("factor", [0.1, 1e60, 1e-60, np.float64(1 + 2.0**-24), math.nan])
def test_factors_that_are_no_float32_numbers_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor: expected a float32 number, found"):
        golden.multiply(VECTOR, factor)


#: A signalling NaN, numbers that overflow and underflow in whatever is done with them.
AWKWARD = np.uint32([0x7F810000, 0x7F7F0000, 0xFF7F0000, 1, 0x80010000, 0xFF800000, 0x7F800000])
AWKWARD = AWKWARD.view(np.float32)
ONES = np.ones(7, np.float32)


@every_precision
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda x, p: golden.add(x[:, None], x, p), id="add"),
        pytest.param(lambda x, p: golden.multiply(x, 2.0**127, p), id="multiply"),
        pytest.param(lambda x, p: golden.multiply(x, 2.0**-149, p), id="multiply tiny"),
        pytest.param(golden.softmax, id="softmax"),
        pytest.param(
            lambda x, p: golden.softmax(np.float32([0, 0, 0, -744.25]), p), id="softmax tiny"
        ),
        pytest.param(lambda x, p: golden.layer_norm(x, ONES, ONES, 0.0, p), id="layer_norm"),
        pytest.param(lambda x, p: golden.mean(x.reshape(1, -1), p), id="mean"),
        pytest.param(golden.normalize, id="normalize"),
        pytest.param(
            lambda x, p: golden.layer_norm(np.arange(7, dtype=np.float32), x, x, 0.0, p),
            id="layer_norm weights",
        ),
        *(
            pytest.param(lambda x, p, name=name: golden.unary(name, x, p), id=name)
            for name in golden.UNARY
        ),
    ],
)
def test_no_floating_point_exception_reaches_the_caller(
    call: Callable[[np.ndarray, str], np.ndarray], precision: str
) -> None:
    with np.errstate(all="raise"):
        call(AWKWARD, precision)


# The processor's state


@contextmanager
def processor_mode(mxcsr: int = 0, rounding: int = 0) -> Iterator[None]:
    """Set bits of x86's MXCSR, and a rounding mode, for the thread, as -ffast-math code does."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("sets the modes of x86-64 on Linux")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("sets the modes through glibc's fenv")
    libm = ctypes.CDLL("libm.so.6")
    saved, changed = (ctypes.create_string_buffer(32) for _ in range(2))  # fenv_t: 28 + 4 bytes
    assert libm.fegetenv(saved) == 0
    try:
        libm.fegetenv(changed)
        word = ctypes.c_uint32.from_buffer(changed, 28)
        word.value |= mxcsr
        libm.fesetenv(changed)
        libm.fesetround(rounding)
        yield
    finally:
        libm.fesetenv(saved)


def found_wrong(mxcsr: int = 0, rounding: int = 0) -> str:
    """Return the error of require_ieee754 in that mode; pytest must not run in it."""
    message = ""
    with processor_mode(mxcsr, rounding):
        try:
            golden.require_ieee754()
        except FloatingPointError as error:
            message = str(error)
    return message


def test_the_default_mode_is_ieee754() -> None:
    golden.require_ieee754()


@pytest.mark.parametrize("mxcsr", [0x8000, 0x0040, 0x8040], ids=["FTZ", "DAZ", "both"])
def test_flushing_to_zero_is_found(mxcsr: int) -> None:
    assert "found that subnormal numbers are flushed to zero" in found_wrong(mxcsr=mxcsr)
    golden.require_ieee754()


@pytest.mark.parametrize("rounding", [0x400, 0x800, 0xC00], ids=["down", "up", "to zero"])
def test_other_rounding_is_found(rounding: int) -> None:
    assert "found another rounding mode" in found_wrong(rounding=rounding)
    golden.require_ieee754()


def test_the_modes_are_set_and_restored() -> None:
    """Else the tests above would not be about them."""
    one, tiny = np.ones(9), np.full(9, 2.0**-60)
    with processor_mode(rounding=0x800):
        up = one + tiny
    with processor_mode(mxcsr=0x8000):
        flushed = np.full(9, 2.0**-1022) * 0.5
    assert (up > 1).all()
    assert (flushed == 0).all()
    assert (one + tiny == 1).all()

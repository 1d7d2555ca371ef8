"""The elementary functions in float64, against an arbitrary-precision library."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from oracles import assert_same_bits

from npfp8 import elementary

NAMES = elementary.__all__
BLOCK = elementary._CHUNK

#: The smallest number above 0: what a subnormal result may be off by.
SMALLEST = 2.0**-1074

#: Where a function is neither 0, nor infinite, nor its limit. normal_tail is for a >= 0.
RANGES = {
    "exp": (-746.0, 710.0),
    "gelu": (-38.6, 40.0),
    "gelu_tanh": (-22.0, 40.0),
    "normal_tail": (0.0, 38.6),
    "sigmoid": (-746.0, 45.0),
    "silu": (-746.0, 45.0),
    "tanh": (-25.0, 25.0),
}

#: Of the docstrings, in units in the last place or relative; gelu's and silu's have none.
ULPS = {"exp": 1, "sigmoid": 4}
RELATIVE = {
    "gelu": 2.0**-50,
    "gelu_tanh": 2.0**-40,
    "normal_tail": 2.0**-50,
    "silu": 2.0**-50,
    "tanh": 2.0**-49,
}

#: The results at +0, -0, +infinity and -infinity.
LIMITS = {
    "exp": (1.0, 1.0, math.inf, 0.0),
    "gelu": (0.0, -0.0, math.inf, -0.0),
    "gelu_tanh": (0.0, -0.0, math.inf, -0.0),
    "relu": (0.0, 0.0, math.inf, 0.0),
    "sigmoid": (0.5, 0.5, 1.0, 0.0),
    "silu": (0.0, -0.0, math.inf, -0.0),
    "tanh": (0.0, -0.0, 1.0, -1.0),
}

every_function = pytest.mark.parametrize("name", NAMES)


def definitions(mpmath: ModuleType) -> dict[str, Callable[[Any], Any]]:
    """The functions by the textbook, in the precision that is set; without cancellation."""
    mp, one, half = mpmath, mpmath.mpf(1), mpmath.mpf(0.5)

    def gelu_tanh(x: Any) -> Any:
        u = mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
        return x / (one + mp.exp(-2 * u))

    return {
        "exp": mp.exp,
        "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) * half,
        "gelu_tanh": gelu_tanh,
        "normal_tail": lambda a: mp.erfc(a / mp.sqrt(2)) * half,
        "sigmoid": lambda x: one / (one + mp.exp(-x)),
        "silu": lambda x: x / (one + mp.exp(-x)),
        "tanh": mp.tanh,
    }


def inputs(name: str, count: int) -> np.ndarray:
    """float32 numbers spread over the range, and over its exponents down to subnormal ones."""
    low, high = RANGES[name]
    rng = np.random.default_rng(count)
    evenly = rng.uniform(low, high, count)
    by_exponent = np.exp2(rng.uniform(-149, math.log2(max(-low, high)), count))
    signs = rng.choice([-1.0, 1.0], count) if low < 0 else 1.0
    x = np.concatenate([evenly, signs * by_exponent])
    return np.clip(x, low, high).astype(np.float32).astype(np.float64)


def check(mpmath: ModuleType, name: str, x: np.ndarray) -> None:
    found = getattr(elementary, name)(x)
    with mpmath.workdps(60):
        define = definitions(mpmath)[name]
        for given, result in zip(x.tolist(), found.tolist(), strict=True):
            exact = define(mpmath.mpf(given))
            error = abs(mpmath.mpf(result) - exact)
            if name in ULPS:
                allowed = ULPS[name] * math.ulp(float(exact))
            else:
                # A factor that is subnormal is off by 2^-1074, and x magnifies that.
                allowed = RELATIVE[name] * abs(exact) + max(1.0, abs(given)) * SMALLEST
            assert error <= allowed, (name, given, result)


# Accuracy


@pytest.mark.parametrize("name", RANGES)
def test_is_as_accurate_as_stated(mpmath: ModuleType, name: str) -> None:
    check(mpmath, name, inputs(name, 3000))


@pytest.mark.parametrize("name", ["exp", "sigmoid", "silu", "tanh"])
def test_float64_inputs_are_no_less_accurate(mpmath: ModuleType, name: str) -> None:
    """The other functions are for float32's 24 bits; softmax gives exp all 53."""
    check(mpmath, name, np.random.default_rng(7).uniform(*RANGES[name], 3000))


@pytest.mark.parametrize("name", RANGES)
def test_is_accurate_at_seams_and_extremes(mpmath: ModuleType, name: str) -> None:
    """One formula takes over from another here, or results become subnormal, 0 or limits."""
    seams = [2.0**-60, 2.0**-5, math.log(2) / 2, 1.0, 3.75, *(abs(end) for end in RANGES[name])]
    seams += [8.3, 17.3, 18.7, 21.4, 36.7, 37.5, 40.0, 707.0, 708.4, 709.7, 744.4, 745.2]
    x = np.float32([*seams, 2.0**-149, 2.0**-133, 2.0**-126, 1e4, 1e30])
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    x = np.append(x, np.finfo(np.float32).max).astype(np.float64)
    # exp would be infinite, and the tail of what is below 0 is not defined.
    above = x[x < 709.78] if name == "exp" else x
    below = x[:0] if name == "normal_tail" else -x
    check(mpmath, name, np.concatenate([above, below]))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (709.782712893384, 1.797693134862273e308),  # ln(2^1024) is 709.78271289338399..
        (709.7827128933841, math.inf),
        (710.0, math.inf),
        (1e308, math.inf),
        (-745.13, SMALLEST),  # ln(2^-1075) is -745.1332..
        (-745.14, 0.0),
        (-746.0, 0.0),
        (-1e308, 0.0),
    ],
)
def test_exp_where_it_overflows_and_underflows(x: float, expected: float) -> None:
    assert float(elementary.exp(x)) == pytest.approx(expected, rel=1e-12, abs=0)


# Specials and signs


@pytest.mark.parametrize("name", LIMITS)
def test_zeros_and_infinities(name: str) -> None:
    x = np.float64([0.0, -0.0, np.inf, -np.inf])
    assert_same_bits(getattr(elementary, name)(x), np.float64(LIMITS[name]))


def test_normal_tail_at_both_ends() -> None:
    assert_same_bits(elementary.normal_tail(np.float64([0.0, np.inf])), np.float64([0.5, 0.0]))


@every_function
def test_nan_stays_nan_and_alone(name: str) -> None:
    x = np.float64([1.0, np.nan, -np.nan, 2.0])
    found = getattr(elementary, name)(x)
    np.testing.assert_array_equal(np.isnan(found), [False, True, True, False])


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "tanh"])
def test_a_result_has_the_sign_of_its_input(name: str) -> None:
    """Also where it is 0: far below, the functions approach 0 from below."""
    x = np.exp2(np.arange(-149.0, 128.0))
    x = np.concatenate([x, -x, [0.0, -0.0, np.inf, -np.inf, 1e300, -1e300]])
    found = getattr(elementary, name)(x)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(x))


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_next_to_zero_a_result_is_above_half_its_input(name: str) -> None:
    """x / 2 is a midpoint of the numbers to round to; on which side of it a result is matters."""
    x = np.exp2(np.arange(-149.0, -60.0))
    x = np.concatenate([x, -x])
    found = getattr(elementary, name)(x)
    assert_same_bits(found, np.nextafter(x / 2, np.inf))


def test_relu_is_the_larger_of_x_and_zero() -> None:
    x = np.float64([-np.inf, -1e308, -1.5, -5e-324, 5e-324, 1.5, 1e308])
    expected = np.float64([0, 0, 0, 0, 5e-324, 1.5, 1e308])
    assert_same_bits(elementary.relu(x), expected)


# Arrays


@every_function
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 0), (1,), (2, 3, 4)])
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    function = getattr(elementary, name)
    x = np.resize(np.float64([0.5, 1.5, 2.5]), shape)
    kept = x.copy()
    found = function(x)
    assert isinstance(found, np.ndarray)
    assert (found.dtype, found.shape) == (np.float64, shape)
    expected = [float(function(np.float64([v]))[0]) for v in x.ravel().tolist()]
    assert_same_bits(found, np.float64(expected).reshape(shape))
    assert_same_bits(x, kept)


@every_function
def test_an_element_alone_gives_the_bits_it_gives_in_an_array(name: str) -> None:
    """Whatever its place in a block or in a SIMD register, and whatever its neighbours."""
    function = getattr(elementary, name)
    x = np.random.default_rng(8).uniform(0, 30, 2 * BLOCK + 3).astype(np.float32)
    x = x.astype(np.float64) * (1 if name == "normal_tail" else np.resize([1.0, -1.0], x.shape))
    x[[0, BLOCK, -2]] = np.nan, np.inf, 1e-40
    found = function(x)
    ends = (0, 1, 2, 3, 4, 5, 6, 7, BLOCK - 2, BLOCK - 1)
    places = [*ends, *(BLOCK + i for i in ends), 2 * BLOCK, 2 * BLOCK + 1, 2 * BLOCK + 2]
    for i in places:
        if not np.isnan(x[i]):
            assert_same_bits(found[i : i + 1], function(x[i : i + 1].copy()))
    assert_same_bits(found[1 : BLOCK + 5], function(x[1 : BLOCK + 5]))


def plain_exp(x: np.ndarray) -> np.ndarray:
    """exp with the same operations, and always in two steps at the end."""
    x = np.clip(x, -746.0, 710.0)
    k = np.rint(x * math.log2(math.e))
    r = (x - k * elementary._LN_2_HIGH) - k * elementary._LN_2_LOW
    p = r * (1 / math.factorial(13))
    for n in range(12, 1, -1):
        p = (p + 1 / math.factorial(n)) * r
    p = (p * r + r) + 1
    half = np.floor(k / 2)
    return p * 2.0**half * 2.0 ** (k - half)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *[(-1.0, 1.0), (-708.0, 708.0), (-708.7, 0.0), (-710.0, 0.0), (0.0, 709.5), (0.0, 709.9)],
        *[(-760.0, 720.0), (-1e300, 1e300), (-np.inf, 1.0), (0.0, np.inf)],
    ],
)
def test_exp_is_its_definition(low: float, high: float) -> None:
    """It adds to the exponent where all results are normal: from -708.4 to 709.8."""
    x = np.random.default_rng(0).uniform(max(low, -1e3), min(high, 1e3), BLOCK)
    x[:4] = 0.0, -0.0, low, high
    with np.errstate(all="ignore"):
        expected = plain_exp(x)
    assert_same_bits(elementary.exp(x), expected)


@every_function
def test_results_in_the_memory_of_the_argument(name: str) -> None:
    function = getattr(elementary, name)
    x = np.random.default_rng(1).uniform(0, 9, (3, BLOCK // 2))
    expected = function(x)
    assert function(x, out=x) is x
    assert_same_bits(x, expected)


@every_function
def test_strided_and_read_only_input(name: str) -> None:
    function = getattr(elementary, name)
    x = np.linspace(0, 9, 48).reshape(6, 8)
    x.flags.writeable = False
    whole = function(x)
    assert_same_bits(function(x.T), whole.T)
    assert_same_bits(function(x[::2, ::-3]), whole[::2, ::-3])


@every_function
def test_no_floating_point_exception_reaches_the_caller(name: str) -> None:
    x = np.float64([0.0, 1e-310, 1e-45, 1.0, 38.0, 720.0, 1e300, np.inf, np.nan])
    with np.errstate(all="raise"):
        getattr(elementary, name)(x)
        if name != "normal_tail":
            getattr(elementary, name)(-x)


# The logarithm, which the observers take


def log_inputs() -> np.ndarray:
    rng = np.random.default_rng(7)
    near_one = 1 + np.concatenate([rng.uniform(-1e-3, 1e-3, 500), rng.uniform(-1e-12, 1e-12, 200)])
    ulps = 1 + 2.0**-52 * np.arange(-40, 41)
    seams = [math.sqrt(0.5), math.sqrt(2), 0.5, 2.0, 2.0**-1022, 2.0**-1074, 1.7976931348623157e308]
    around = [np.nextafter(x, [0, np.inf]) for x in seams[:-2]]
    return np.concatenate(
        [
            *(rng.uniform(0, 10, 1000), rng.uniform(0.5, 1.5, 1000), near_one, ulps, seams),
            *(np.exp2(rng.uniform(-1022, 1023, 1000)), np.exp2(rng.uniform(-1074, -1022, 300))),
            *around,
        ]
    )


def test_log_is_as_accurate_as_stated(mpmath: ModuleType) -> None:
    x = log_inputs()
    with mpmath.workdps(60):
        for given, found in zip(x.tolist(), elementary.log(x).tolist(), strict=True):
            exact = mpmath.log(mpmath.mpf(given))
            assert abs(mpmath.mpf(found) - exact) <= 4 * math.ulp(float(exact)), given


def test_log_of_powers_of_two_and_of_one() -> None:
    assert_same_bits(elementary.log(np.float64([1])), np.float64([0]))
    k = np.arange(-1074, 1024)
    np.testing.assert_allclose(elementary.log(np.ldexp(1.0, k)), k * math.log(2), rtol=4e-16)


def test_log_of_specials() -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, -1.0, -(2.0**-1074), np.nan])
    with np.errstate(all="raise"):
        found = elementary.log(x)
    np.testing.assert_array_equal(found, [-np.inf, -np.inf, np.inf, *[np.nan] * 4])


def test_log_of_no_elements_and_of_one_at_a_time() -> None:
    x = log_inputs()[:500].reshape(10, 50)
    found = elementary.log(x)
    assert found.shape == x.shape
    for index in np.ndindex(x.shape):
        assert_same_bits(elementary.log(x[index].reshape(1)), found[index].reshape(1))
    assert elementary.log(np.zeros((0, 3))).shape == (0, 3)

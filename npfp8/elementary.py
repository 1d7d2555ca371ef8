"""exp, tanh, the logistic and the GELU functions in float64, the same bits on every machine.

NumPy's ``exp`` and ``tanh``, and C's ``erf``, differ in their last bits between
versions, processors and libraries. Here every result is a fixed sequence of the
operations that IEEE 754 defines to the last bit (+, -, x, /, and bit shifts on
integers), one elementwise NumPy call each, so that nothing can be fused or
reordered. The results are within a few units in the last place of float64;
``tests/test_elementary.py`` checks this with an arbitrary-precision library, and
``npfp8.golden`` makes correctly rounded bfloat16 tables of them.

All functions take float64 arrays and return new ones, or a C-contiguous array given as
``out``, which may be the argument. NaN gives NaN, and a result
that overflows or underflows is the limit. The relative bounds hold if the result and
the exponential from which it is computed are not subnormal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from npfp8.arrays import Float64Array, IntArray, chunks

__all__ = ["exp", "gelu", "gelu_tanh", "log", "normal_tail", "relu", "sigmoid", "silu", "tanh"]

Function = Callable[..., Float64Array]

#: Elements worked on at a time: the four temporaries of exp (128 kB each) stay in the cache of
#: a core, and calls of NumPy cost less than the work.
_CHUNK = 1 << 14

_LOG2_E = 1.4426950408889634
#: ln 2 in two parts; the first has 32 significant bits, so that k times it is exact.
_LN_2_HIGH, _LN_2_LOW = 0.6931471803691238, 1.9082149292705877e-10
#: Added and taken off again, it rounds to an integer, which its low bits then hold.
_ROUNDER = 1.5 * 2.0**52
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))
#: Beyond these exp is infinite, or 0 even as a subnormal.
_EXP_RANGE = (-746.0, 710.0)
#: 2^k times a number between 1/2 and 1 is normal from this k on.
_LEAST_NORMAL = -1021
#: 1/13! .. 1/2!: on |r| <= ln(2)/2 the series cut off after r^13 / 13! is exact to 2^-57.
_EXP_SERIES = tuple(1 / math.factorial(n) for n in range(13, 1, -1))

#: log's series ends with s^21 / 21: |s| <= 0.172, so what is cut off is below 2^-60 s.
_LOG_TERMS = 21

#: tanh(x) / x - 1 by powers of x^2, from x^10 down; to 2^-56 for |x| <= 2^-5.
_TANH_SERIES = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3)
_TANH_SERIES_LIMIT = 2.0**-5

#: (1 + 2 a) exp(a^2 / 2) Q(a): its Chebyshev coefficients, by scripts/fit_normal_tail.py.
_TAIL_CENTRE = 3.75
_TAIL = (
    0.7612344158611731,
    0.10392177489838174,
    -0.1006326109554889,
    0.043229756269229355,
    -0.011602184280511215,
    0.0018276525725409206,
    -6.26684827664919e-05,
    -3.764087605019632e-05,
    5.541035166908334e-06,
    7.578654642204564e-07,
    -2.2097858194586004e-07,
    -2.1218041230088276e-08,
    8.523436961136773e-09,
    9.420948872957978e-10,
    -3.3280985694432493e-10,
    -5.5470877567387454e-11,
    1.2131779029806842e-11,
    3.4801889123539773e-12,
    -3.14191830727297e-13,
    -2.065297044564798e-13,
    -4.994123112347297e-15,
    1.0592946745968195e-14,
    1.5947174508147315e-15,
    -3.9032205520526494e-16,
    -1.4884718748299816e-16,
    7.842024868505705e-19,
)
#: Where exp(-a^2 / 2) is 0; larger arguments are as good as this one.
_TAIL_LIMIT = 40.0

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)

#: Below this, x Phi(x) and x / (1 + exp(-x)) are x / 2 plus less than float64 can show.
_TINY = 2.0**-60


def _chunkwise(function: Function) -> Function:
    """Apply a function to any array, chunk by chunk."""

    @wraps(function)
    def wrapped(x: Any, out: Float64Array | None = None) -> Float64Array:
        flat = np.asarray(x, np.float64).reshape(-1)
        if out is None:
            out = np.empty(np.shape(x))
        results = out.reshape(-1)
        with np.errstate(all="ignore"):
            for chunk in chunks(flat.size, _CHUNK):
                results[chunk] = function(flat[chunk])
        return out

    return wrapped


def _exp(x: Float64Array) -> Float64Array:
    """Compute 2^k exp(r), where k is the integer nearest x / ln 2 and r = x - k ln 2."""
    k, exponent = _nearest_power(x)
    normal = exponent.min() >= _LEAST_NORMAL and exponent.max() < 1023
    if not normal:
        x = np.clip(x, *_EXP_RANGE)
        k, exponent = _nearest_power(x)
    p = k * _LN_2_HIGH  # exact, and so is its subtraction
    r = x - p
    k *= _LN_2_LOW
    r -= k
    # exp(r) = 1 + (r + r^2 (1/2 + r (1/6 + ...))): the largest term is added last.
    np.multiply(r, _EXP_SERIES[0], out=p)
    for coefficient in _EXP_SERIES[1:]:
        p += coefficient
        p *= r
    p *= r
    p += r
    p += 1.0
    if normal:  # times 2^k is an addition to the exponent, as p > 1/2
        bits = p.view(np.int64)
        exponent <<= 52
        bits += exponent
        return p
    # Times 2^k in two steps, of which only the second can overflow or underflow.
    half = np.right_shift(exponent, 1, out=k.view(np.int64))
    exponent -= half
    for power in (half, exponent):
        p *= ((power + 1023) << 52).view(np.float64)
    return p


def _nearest_power(x: Float64Array) -> tuple[Float64Array, IntArray]:
    """Compute the integer k nearest x / ln 2, also as an int; of large numbers and NaN, nonsense.

    The int is then far outside of float64's exponents.
    """
    k = x * _LOG2_E
    k += _ROUNDER
    exponent = k.view(np.int64) - _ROUNDER_BITS
    k -= _ROUNDER
    return k, exponent


def _normal_tail(a: Float64Array) -> Float64Array:
    a = np.minimum(a, _TAIL_LIMIT)
    t = (a - _TAIL_CENTRE) / (a + _TAIL_CENTRE)
    # Clenshaw's recurrence, b_n = c_n + 2 t b_(n+1) - b_(n+2).
    twice = t + t
    b, after, spare = np.full_like(t, _TAIL[-1]), np.zeros_like(t), np.empty_like(t)
    for coefficient in _TAIL[-2:0:-1]:
        np.multiply(twice, b, out=spare)
        spare -= after
        spare += coefficient
        b, after, spare = spare, b, after
    b *= t
    b -= after
    b += _TAIL[0]
    b /= 1.0 + 2.0 * a
    # a^2 is exact for every a of float32's 24 bits.
    b *= _exp(a * a * -0.5)
    return b


@_chunkwise
def exp(x: Float64Array) -> Float64Array:
    """Compute the exponential function, within 1 ulp (2^-1074 for a subnormal result)."""
    return _exp(x)


@_chunkwise
def log(x: Float64Array) -> Float64Array:
    """Compute the natural logarithm, within 4 ulp; -inf for 0, NaN below it.

    With ``x = 2^k m`` and m between sqrt(1/2) and sqrt(2), ``log(m) = 2 artanh(s)``
    for ``s = (m - 1) / (m + 1)``, by its series.
    """
    m, k = np.frexp(x)
    low = m < math.sqrt(0.5)
    m = np.where(low, 2.0 * m, m)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    p = np.full_like(s, 1 / _LOG_TERMS)
    for n in range(_LOG_TERMS - 2, 0, -2):
        p *= square
        p += 1 / n
    exponent = (k - low).astype(np.float64)
    result = exponent * _LN_2_HIGH + (2.0 * (s * p) + exponent * _LN_2_LOW)
    result = np.where(x == 0, -np.inf, np.where(x == np.inf, np.inf, result))
    return np.where(x < 0, np.nan, result)


@_chunkwise
def tanh(x: Float64Array) -> Float64Array:
    """Compute the hyperbolic tangent, within 2^-49 relative.

    It is ``(1 - e) / (1 + e)`` with e = exp(-2 |x|); near 0, where this cancels, its series.
    """
    a = np.abs(x)
    e = _exp(-2.0 * a)
    result = (1.0 - e) / (1.0 + e)
    near = a < _TANH_SERIES_LIMIT
    small = a[near]
    square = small * small
    p = np.full_like(square, _TANH_SERIES[0])
    for coefficient in _TANH_SERIES[1:]:
        p *= square
        p += coefficient
    p *= square
    p *= small
    result[near] = small + p
    return np.copysign(result, x)


@_chunkwise
def sigmoid(x: Float64Array) -> Float64Array:
    """Compute the logistic function ``1 / (1 + exp(-x))``, within 4 ulp, however small."""
    e = _exp(-np.abs(x))
    return np.where(x < 0, e, 1.0) / (1.0 + e)


@_chunkwise
def normal_tail(a: Float64Array) -> Float64Array:
    """Compute Q(a), the upper tail of the normal distribution, for a >= 0 of at most 24 bits.

    The result is within 2^-50 relative: for such numbers (float32) a^2 is exact.
    """
    return _normal_tail(a)


@_chunkwise
def gelu(x: Float64Array) -> Float64Array:
    """Compute GELU, ``x Phi(x)`` (Hendrycks and Gimpel, arXiv 1606.08415).

    It is ``max(x, 0) - |x| Q(|x|)``, where neither term cancels digits of the other: within
    2^-50 relative, for x of at most 24 bits.
    """
    a = np.abs(x)
    result = np.where(x > 0, x, 0.0) - _finite(a) * _normal_tail(a)
    return _half_near_zero(np.copysign(result, x), x)


@_chunkwise
def gelu_tanh(x: Float64Array) -> Float64Array:
    """Compute GELU by tanh, ``x (1 + tanh u) / 2``, ``u = sqrt(2 / pi) (x + 0.044715 x^3)``.

    It is computed as ``x / (1 + exp(-2 u))``, which does not cancel; within 2^-40 relative.
    """
    u = _SQRT_2_OVER_PI * (x + 0.044715 * (x * x * x))
    return _half_near_zero(_times_sigmoid(x, 2.0 * u), x)


@_chunkwise
def silu(x: Float64Array) -> Float64Array:
    """Compute SiLU, ``x / (1 + exp(-x))``, within 2^-50 relative."""
    return _half_near_zero(_times_sigmoid(x, x), x)


@_chunkwise
def relu(x: Float64Array) -> Float64Array:
    """Compute ``max(x, 0)``; +0 for -0 and for negative numbers."""
    return np.where(x < 0, 0.0, x) + 0.0


def _times_sigmoid(x: Float64Array, argument: Float64Array) -> Float64Array:
    e = _exp(-np.abs(argument))
    below = argument < 0
    return np.where(below, _finite(x), x) * np.where(below, e, 1.0) / (1.0 + e)


def _finite(x: Float64Array) -> Float64Array:
    """Replace infinity by the largest number: times 0 it is 0, not NaN."""
    largest = np.finfo(np.float64).max
    return np.clip(x, -largest, largest)


def _half_near_zero(result: Float64Array, x: Float64Array) -> Float64Array:
    """Put in, near 0, the number just above x / 2 if x is not 0.

    The functions there are x / 2 + c x^2 with a positive c. x / 2 itself may be
    the midpoint of two numbers of the precision to which it is rounded later;
    then the small term decides.
    """
    half = x * 0.5
    half = np.where(half == 0, half, np.nextafter(half, np.inf))
    return np.where(np.abs(x) < _TINY, half, result)

"""Arithmetic with bounds: every number that a library's float32 may come to.

Two right libraries differ in the last bit of a tanh, and two right kernels in the order of a
sum. No formula then reproduces a tensor to the last bit. So a formula is computed here with
spans, from the least to the largest number that it can give if

- each operation is rounded to the working type, in any direction;
- each function is as far off as OpenCL allows (OpenCL C 3.0, *Relative error as ULPs*, full
  profile: exp 3 ulp, tanh 5, erf 16, sqrt 3, division 2.5), which the libraries of C, NumPy,
  SLEEF and CUDA keep;
- a sum of n numbers has an error of n roundings of the sum of their magnitudes, which holds
  for every order (Higham, *Accuracy and Stability of Numerical Algorithms*, section 4.2).

A tensor agrees with the formula if each of its elements lies in its span. In most of a range
a span, rounded to bfloat16, is one number: the comparison is nearly as strict as one of bits,
except where the formula cancels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from npfp8 import elementary
from npfp8.arrays import Array, Float64Array
from npfp8.bfloat16 import round_to_bfloat16

__all__ = ["BFLOAT16", "FLOAT16", "FLOAT32", "FLOAT64", "Span", "Working", "is_within"]

#: OpenCL's limits, in units of the last place.
_ULPS = {"exp": 3.0, "tanh": 5.0, "erf": 16.0, "sqrt": 3.0, "divide": 2.5}

#: The error of :func:`_erf` itself, absolutely.
_ERF_ERROR = 2.0**-50


@dataclass(frozen=True)
class Working:
    """The type in which a formula is computed.

    Attributes
    ----------
    name : str
    unit : float
        Half a unit in the last place of 1, the error of one rounding.
    largest, smallest : float
        What is beyond ``largest`` may be infinity; ``smallest`` is the smallest subnormal.
    store : callable, optional
        Rounds each result to a narrower type, if results are kept in it.
    approximate : float
        The relative error of exp and tanh, if it is larger than a library's.
    """

    name: str
    unit: float
    largest: float
    smallest: float
    store: Callable[[Float64Array], Array] | None = field(default=None, compare=False)
    approximate: float = 0.0

    def span(self, x: Array | float) -> Span:
        """Make the span of numbers that are known exactly."""
        wide = np.asarray(x, np.float64)
        return Span(wide, wide, np.isnan(wide), self)

    def error(self, function: str) -> float:
        """Return the relative error of a function."""
        error = 2 * self.unit * _ULPS[function]
        return max(error, self.approximate) if function in ("exp", "tanh") else error


@dataclass(frozen=True, eq=False)
class Span:
    """The least and the largest number that each element may be.

    Attributes
    ----------
    low, high : ndarray of float64
    nan : ndarray of bool
        Where the element may be NaN; if it must be, the ends are NaN.
    working : Working
    """

    low: Float64Array
    high: Float64Array
    nan: npt.NDArray[np.bool_]
    working: Working

    def __add__(self, other: Span) -> Span:
        """Add; if an end is the sum of two infinities of unlike sign, the sum may be NaN."""
        return self._rounded([self.low + other.low, self.high + other.high], other)

    def __sub__(self, other: Span) -> Span:
        """Subtract."""
        return self + Span(-other.high, -other.low, other.nan, other.working)

    def __mul__(self, other: Span) -> Span:
        """Multiply."""
        ends = [x * y for x in (self.low, self.high) for y in (other.low, other.high)]
        return self._rounded(ends, other)

    def __truediv__(self, other: Span) -> Span:
        """Divide by positive numbers, or 0."""
        ends = [x / y for x in (self.low, self.high) for y in (other.low, other.high)]
        return self._rounded(ends, other, self.working.error("divide"))

    def squared(self) -> Span:
        """Multiply each number by itself."""
        ends = [self.low * self.low, self.high * self.high]
        around = (self.low < 0) & (self.high > 0)
        return self._rounded([*ends, np.where(around, 0.0, ends[0])], self)

    def sigmoid(self) -> Span:
        """Compute the logistic function ``1 / (1 + exp(-x))``, at once or step by step."""
        error = self.working.error("exp") + self.working.error("divide") + self.working.unit
        ends = [elementary.sigmoid(self.low), elementary.sigmoid(self.high)]
        # Where exp(-x) overflows, the result is 0.
        ends = [np.where(end * self.working.largest < 1, 0.0 * end, end) for end in ends]
        return self._rounded([*ends, elementary.sigmoid(self.high)], self, error)

    def flushed(self) -> Span:
        """Let what is below float32's normal numbers be 0, too, as with flags of compilers."""
        low, high = self.low, self.high
        small = np.finfo(np.float32).smallest_normal
        low = np.where((low > 0) & (low < small), 0.0, low)
        high = np.where((high < 0) & (high > -small), -0.0, high)
        return Span(low, high, self.nan, self.working)

    def overflowing(self, magnitudes: Array) -> Span:
        """Let results of numbers beyond 2^126, whose double overflows, be infinity or NaN, too."""
        beyond = np.abs(magnitudes) >= 2.0**126
        high = np.where(beyond & (self.high > 0), np.inf, self.high)
        return Span(self.low, high, self.nan | beyond, self.working)

    def exp(self) -> Span:
        """Compute the exponential function."""
        return self._by(elementary.exp, "exp")

    def tanh(self) -> Span:
        """Compute the hyperbolic tangent, which no library lets exceed 1."""
        return self._by(elementary.tanh, "tanh")._clipped(-1.0, 1.0)

    def erf(self) -> Span:
        """Compute the error function, which no library lets exceed 1."""
        found = self._by(_erf, "erf")
        low, high = found.low - _ERF_ERROR, found.high + _ERF_ERROR
        return Span(low, high, found.nan, self.working)._clipped(-1.0, 1.0)

    def sqrt(self) -> Span:
        """Compute the square root; of what may be below 0 it may be NaN."""
        nan = self.nan | (self.low < 0)
        clipped = Span(np.maximum(self.low, 0), np.maximum(self.high, 0), nan, self.working)
        return clipped._by(np.sqrt, "sqrt")

    def sum(self) -> Span:
        """Add along the last axis, which stays with length 1, in any order."""
        count = self.low.shape[-1]
        low, high = (end.sum(axis=-1, keepdims=True) for end in (self.low, self.high))
        magnitudes = np.maximum(np.abs(self.low), np.abs(self.high)).sum(axis=-1, keepdims=True)
        bound = count * self.working.unit * magnitudes
        nan = self.nan.any(axis=-1, keepdims=True) | np.isnan(low) | np.isnan(high)
        ends = [low - bound, high + bound]
        return Span(*_hull(ends), nan | np.isnan(bound), self.working)._stored()

    def max(self) -> Span:
        """Take the largest along the last axis, which stays with length 1."""
        low, high = (end.max(axis=-1, keepdims=True) for end in (self.low, self.high))
        nan = np.asarray(self.nan.any(axis=-1, keepdims=True))
        return Span(low, high, nan, self.working)

    def through(self, change: Callable[[Float64Array], Array]) -> Span:
        """Apply a function that never exchanges two numbers, such as a rounding."""
        low, high = (np.asarray(change(end), np.float64) for end in (self.low, self.high))
        return Span(low, high, self.nan | np.isnan(low) | np.isnan(high), self.working)

    def _by(self, function: Callable[[Float64Array], Float64Array], name: str) -> Span:
        ends = [function(self.low), function(self.high)]
        return self._rounded(ends, self, self.working.error(name))

    def _clipped(self, least: float, largest: float) -> Span:
        low, high = (np.clip(end, least, largest) for end in (self.low, self.high))
        return Span(low, high, self.nan, self.working)

    def _rounded(self, ends: list[Float64Array], other: Span, error: float = 0.0) -> Span:
        """Make the span of all ends, each with its error: of one rounding, or a larger one."""
        nan = self.nan | other.nan
        for end in ends:
            nan = nan | np.isnan(end)
        low, high = _hull(ends)
        error = max(error, self.working.unit)
        least = np.where(low == 0, 0.0, np.abs(low) * error + self.working.smallest)
        most = np.where(high == 0, -0.0, np.abs(high) * error + self.working.smallest)
        low, high = (
            np.where(np.isinf(end), end, moved)
            for end, moved in ((low, low - least), (high, high + most))
        )
        low = np.where(low < -self.working.largest, -np.inf, low)
        high = np.where(high > self.working.largest, np.inf, high)
        return Span(low, high, nan, self.working)._stored()

    def _stored(self) -> Span:
        return self if self.working.store is None else self.through(self.working.store)


def _hull(ends: list[Float64Array]) -> tuple[Float64Array, Float64Array]:
    low = high = ends[0]
    for end in ends[1:]:
        low, high = np.fmin(low, end), np.fmax(high, end)
    return low, high


def _erf(z: Float64Array) -> Float64Array:
    tail = elementary.normal_tail(np.abs(z) * np.sqrt(2.0))
    return np.copysign(1.0 - 2.0 * tail, z)


def is_within(span: Span, found: Array) -> npt.NDArray[np.bool_]:
    """Mark the elements that lie in their spans. A zero that is certain has its sign.

    Parameters
    ----------
    span : Span
        Of results that are rounded to the type of the tensor.
    found : ndarray of float32
    """
    inside = (span.low <= found) & (found <= span.high)
    zero = (span.low == 0) & (span.high == 0) & (np.signbit(span.low) == np.signbit(span.high))
    inside &= ~zero | (np.signbit(found) == np.signbit(span.low))
    return np.asarray(inside | (np.isnan(found) & span.nan))


def _to_float16(x: Float64Array) -> Array:
    return x.astype(np.float16)


_FLOAT32 = (2.0**-24, float(np.finfo(np.float32).max), 2.0**-149)

FLOAT64 = Working("float64", 2.0**-53, float(np.finfo(np.float64).max), 0.0)
FLOAT32 = Working("float32", *_FLOAT32)
#: Each operation in float32, its result rounded to bfloat16 or to float16.
BFLOAT16 = Working("bfloat16", *_FLOAT32, store=round_to_bfloat16)
FLOAT16 = Working("float16", *_FLOAT32, store=_to_float16)

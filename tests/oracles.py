"""Exact arithmetic to compare with, straight from the formats' definitions, without npfp8.

Values are Fractions (Python floats if they are infinite or NaN), so that
nothing here rounds except :func:`nearest` and :func:`to_odd`, once each.
"""

from __future__ import annotations

import bisect
import itertools
import math
import struct
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Exact = Fraction | float


class Binary(NamedTuple):
    """A binary interchange format of IEEE 754: significant bits, exponents of its normals."""

    precision: int
    emin: int
    emax: int

    @property
    def max(self) -> Fraction:
        return (2 - Fraction(2) ** (1 - self.precision)) * Fraction(2) ** self.emax


BFLOAT16 = Binary(8, -126, 127)
FLOAT16 = Binary(11, -14, 15)
FLOAT32 = Binary(24, -126, 127)
FLOAT64 = Binary(53, -1022, 1023)


def _is_special(x: Exact) -> bool:
    """Check for a zero, which may have a sign, an infinity or a NaN."""
    return not x or (isinstance(x, float) and not math.isfinite(x))


def _quantum(x: Fraction, kind: Binary) -> Fraction:
    """The distance of neighbouring numbers of ``kind`` around ``x``."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    if abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    return Fraction(2) ** (max(exponent, kind.emin) - kind.precision + 1)


def nearest(x: Exact, kind: Binary) -> float:
    """Round to nearest, ties to even, once; a zero has the sign of ``x``, specials stay."""
    if _is_special(x):
        return float(x)
    x = Fraction(x)
    quantum = _quantum(x, kind)
    rounded = round(x / quantum) * quantum  # Python rounds a Fraction's ties to even
    return math.copysign(float(rounded) if abs(rounded) <= kind.max else math.inf, x)


def to_odd(x: Exact, kind: Binary) -> float:
    """Cut off and, if anything was lost, take the neighbour whose last bit is 1; no overflow."""
    if _is_special(x):
        return float(x)
    x = Fraction(x)
    quantum = _quantum(x, kind)
    whole = math.floor(abs(x) / quantum)
    whole += whole * quantum != abs(x) and whole % 2 == 0
    return math.copysign(float(min(whole * quantum, kind.max)), x)


def _float32_op(x: float, y: float, exact: Exact, ieee: float) -> float:
    # Zeros and specials follow from the operands' signs alone, in any precision.
    return nearest(exact, FLOAT32) if isinstance(exact, Fraction) and exact else ieee


def multiply32(x: float, y: float) -> float:
    """The float32 product of two float32 numbers."""
    finite = math.isfinite(x) and math.isfinite(y)
    return _float32_op(x, y, Fraction(x) * Fraction(y) if finite else math.nan, x * y)


def add32(x: float, y: float) -> float:
    """The float32 sum of two float32 numbers."""
    finite = math.isfinite(x) and math.isfinite(y)
    return _float32_op(x, y, Fraction(x) + Fraction(y) if finite else math.nan, x + y)


@cache
def code_values(name: str) -> tuple[Exact, ...]:
    """The value of each of the 256 codes of a format, by the code's eight bits."""
    return tuple(_code_value(name, code) for code in range(256))


def _code_value(name: str, code: int) -> Exact:
    if name == "UINT8":
        return Fraction(code)
    if name == "INT8":
        return Fraction(code - 256 if code > 127 else code)
    exponent_bits, bias = {"E4M3FN": (4, 7), "E5M2": (5, 15)}[name]
    mantissa_bits = 7 - exponent_bits
    sign = -1 if code & 0x80 else 1
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = Fraction(code & ((1 << mantissa_bits) - 1), 1 << mantissa_bits)
    if name == "E4M3FN" and code & 0x7F == 0x7F:
        return math.nan
    if name == "E5M2" and exponent == 31:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * mantissa * Fraction(2) ** (1 - bias)
    return sign * (1 + mantissa) * Fraction(2) ** (exponent - bias)


def finite_codes(name: str) -> list[int]:
    """The codes of a format (their eight bits) whose values are finite."""
    return [code for code, value in enumerate(code_values(name)) if isinstance(value, Fraction)]


def nearest_code(name: str, x: float) -> int:
    """The eight bits of the code nearest to ``x``, ties to even, saturating; ``x`` no NaN."""
    exact = Fraction(x) if math.isfinite(x) else Fraction(2) ** 200 * (1 if x > 0 else -1)
    if name in ("INT8", "UINT8"):
        low, high = (-127, 127) if name == "INT8" else (0, 255)
        return min(max(round(exact), low), high) & 0xFF
    positive = [value for value in code_values(name)[:128] if isinstance(value, Fraction)]
    above = bisect.bisect(positive, abs(exact))
    candidates = range(max(above - 1, 0), min(above + 1, len(positive)))
    code = min(candidates, key=lambda code: (abs(positive[code] - abs(exact)), code % 2))
    return code | (0x80 if math.copysign(1, x) < 0 else 0)


def _integer_fields(name: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
    """Return each code's signed integer significand and exponent, and the bits of the fraction."""
    exponent_bits, bias = {"E4M3FN": (4, 7), "E5M2": (5, 15)}[name]
    fraction_bits = 7 - exponent_bits
    codes = np.arange(256)
    exponents = (codes & 0x7F) >> fraction_bits
    significands = codes & ((1 << fraction_bits) - 1) | (exponents > 0) << fraction_bits
    significands = np.where(codes & 0x80, -significands, significands)
    return significands, np.maximum(exponents, 1) - bias, fraction_bits


def hopper_sums(
    name_a: str, a: npt.NDArray[Any], name_b: str, b: npt.NDArray[Any], fast: bool
) -> npt.NDArray[np.float32]:
    """The product of codes (M, K) and (K, N) as Hopper's tensor cores add it up, all finite."""
    return fused_sums(name_a, a, name_b, b, 32, 13, None if fast else 4)


def fused_sums(
    name_a: str,
    a: npt.NDArray[Any],
    name_b: str,
    b: npt.NDArray[Any],
    step: int,
    fraction_bits: int,
    steps_to_float32: int | None,
) -> npt.NDArray[np.float32]:
    """The product of codes (M, K) and (K, N) in an accumulator that cuts off, finite codes only.

    The sum is cut off to as many bits as the terms.

    The rule product by product, in 64-bit integers. The accumulator is
    ``total * 2^unit``.
    """
    (mantissas_a, exponents_a, bits_a), (mantissas_b, exponents_b, bits_b) = (
        _integer_fields(name) for name in (name_a, name_b)
    )
    sums = np.zeros((a.shape[0], b.shape[1]), np.float32)
    total, unit = np.zeros(sums.shape, np.int64), np.zeros(sums.shape, np.int64)

    def cut(x: npt.NDArray[Any], shift: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``x * 2^shift``, cut off to an integer."""
        magnitude = np.abs(x) << np.maximum(shift, 0) >> np.minimum(np.maximum(-shift, 0), 62)
        return np.sign(x) * magnitude

    def exponent(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.frexp(x.astype(np.float64))[1].astype(np.int64) - 1

    for number, start in enumerate(range(0, a.shape[1], step), 1):
        x, y = a[:, start : start + step, None], b[None, start : start + step]
        products = mantissas_a[x] * mantissas_b[y]
        exponents = exponents_a[x] + exponents_b[y]
        largest = np.where(products == 0, -1000, exponents).max(axis=1)
        largest = np.maximum(largest, np.where(total == 0, -1000, exponent(total) + unit))
        terms = cut(products, exponents - bits_a - bits_b - (largest[:, None] - fraction_bits))
        total = terms.sum(axis=1) + cut(total, unit - (largest - fraction_bits))
        unit = np.where(total == 0, 0, largest - fraction_bits)
        excess = np.maximum(exponent(total) - fraction_bits, 0)
        total, unit = cut(total, -excess), unit + excess
        if steps_to_float32 and number % steps_to_float32 == 0:
            sums += np.ldexp(total.astype(np.float64), unit).astype(np.float32)
            total[:] = unit[:] = 0
    return sums + np.ldexp(total.astype(np.float64), unit).astype(np.float32)


def bits_of(x: npt.ArrayLike) -> npt.NDArray[Any]:
    """The bits of a float array, so that comparing tells -0 from +0 and NaN from NaN."""
    values = np.asarray(x)
    return values.view(f"u{values.itemsize}")


def assert_same_bits(actual: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Assert that dtypes, shapes and bits are equal."""
    assert np.asarray(actual).dtype == np.asarray(expected).dtype
    np.testing.assert_array_equal(bits_of(actual), bits_of(expected), strict=True)


Levels = Callable[[int], npt.NDArray[np.int64]]


def equal_levels(levels: int) -> Levels:
    """Make a function that assigns the kept bins to ``levels`` equal levels."""
    return lambda kept: np.arange(kept) * levels // kept


def levels_of_values(values: list[Fraction]) -> Levels:
    """The number of the value that is nearest to each bin's centre; of two, the smaller."""
    twice = np.array([float(a + b) for a, b in itertools.pairwise(values)])
    # A centre, (place + 1/2) / kept of the largest, against a middle: times 2 kept, exact.
    return lambda kept: np.searchsorted(
        twice * kept, (2 * np.arange(kept) + 1) * float(values[-1]), side="left"
    )


def magnitude_bins(x: list[float], absmax: float) -> list[Fraction]:
    """The elements, bfloat16 values, in 2,048 bins: each along the interval that rounds to it.

    At its own place if no two of the values are neighbours.
    """
    codes = Counter(struct.unpack(">H", struct.pack(">f", abs(value))[:2])[0] for value in x)

    def in_bins(code: int) -> Fraction:
        (value,) = struct.unpack(">f", struct.pack(">H", min(max(code, 0), 0x7F7F)) + bytes(2))
        return Fraction(value) * 2048 / Fraction(absmax)

    bins = [Fraction(0)] * 2048
    dense = any(code + 1 in codes for code in codes)
    for code, count in codes.items():
        high = min((in_bins(code) + in_bins(code + 1)) / 2, Fraction(2048))
        low = min((in_bins(code) + in_bins(code - 1)) / 2, high)
        if not dense:
            low = high = min(in_bins(code), Fraction(2048))
        if low == high:
            bins[min(math.floor(low), 2047)] += count
            continue
        for place in range(math.floor(low), math.ceil(high)):
            inside = min(high, Fraction(place + 1)) - max(low, Fraction(place))
            bins[place] += count * inside / (high - low)
    return bins


def entropy_divergences(
    x: list[float], levels: Levels | None = None, absmax: float | None = None
) -> dict[int, float]:
    """The divergence of each number of bins that Migacz's calibration may keep, 128 to 2,048.

    Distribution by distribution as NVIDIA's toolkit has it. Two all-empty ones are
    infinitely far apart. ``absmax`` is that of the elements before they were rounded, by
    default of ``x``. ``levels`` numbers the bins' levels, by default 128 equal ones.
    """
    levels = levels or equal_levels(128)
    bins = np.array(magnitude_bins(x, absmax or max(abs(value) for value in x)), np.float64)
    bins[0] = bins[1]
    found = {}
    for kept in range(128, 2049):
        reference = bins[:kept].copy()
        reference[-1] += bins[kept:].sum()
        level, full = levels(kept), bins[:kept] > 0
        in_level = np.bincount(level[full], bins[:kept][full], minlength=256)
        kinds = np.bincount(level[full], minlength=256)
        candidate = np.where(full, (in_level / np.maximum(kinds, 1))[level], 0)
        some = reference > 0
        found[kept] = math.inf
        if some.any() and candidate[some].all():
            p, q = reference[some] / reference.sum(), candidate[some] / candidate.sum()
            found[kept] = math.fsum(p * np.log(p / q))
    return found

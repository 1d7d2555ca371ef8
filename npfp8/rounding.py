"""Rounding to odd: a narrowing step that does not affect a later rounding to nearest.

Rounding to odd cuts the lower bits off and, if any of them was set, sets the last bit
kept. A value rounded to odd stays on the same side of every coarser value and midpoint.
So rounding it again, to nearest and to at least two bits less, gives the same as
rounding the exact value (Boldo and
Melquiond, IEEE Transactions on Computers 57, 2008).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["float32_to_bfloat16_bits", "float64_to_float32", "integer_to_float64", "sum_to_odd"]


def float32_to_bfloat16_bits(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to odd to bfloat16. A NaN with a cut-off payload stays a NaN: bit 0 is set."""
    bits = x.view(np.uint32)
    inexact = (bits & np.uint32(0xFFFF)) != 0
    keys = (bits >> np.uint32(16)).astype(np.uint16)
    np.bitwise_or(keys, inexact, out=keys)
    return keys


def float64_to_float32(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Round float64 to odd to float32: beyond the range, to the largest finite float32."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        nearest = x.astype(np.float32)
    back = nearest.astype(np.float64)
    bits = nearest.view(np.uint32)
    # Where the cast went away from zero step back: now it is a truncation.
    np.subtract(bits, np.abs(back) > np.abs(x), out=bits)
    np.bitwise_or(bits, back != x, out=bits)
    nan = np.isnan(x)
    if nan.any():  # stated, because processors differ in a NaN's sign after a cast
        bits[nan] = np.where(np.signbit(x[nan]), 0xFFC00000, 0x7FC00000)
    return nearest


def integer_to_float64(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Round integers to odd to float64: exact below 2^53, to a multiple of 2^11 from there on."""
    if x.dtype.itemsize < 8:
        return x.astype(np.float64)
    negative = x < 0
    magnitude = x.astype(np.uint64)
    np.negative(magnitude, where=negative, out=magnitude)  # wraps: -2^63 becomes 2^63
    sticky = (magnitude & np.uint64(0x7FF) != 0).astype(np.uint64) << np.uint64(11)
    odd = magnitude & ~np.uint64(0x7FF) | sticky
    result = np.where(magnitude >> np.uint64(53) != 0, odd, magnitude).astype(np.float64)
    np.negative(result, where=negative, out=result)
    return result


def sum_to_odd(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add float64 numbers, and round the sum to odd; one that is not finite as IEEE 754 has it."""
    # Knuth's two-sum: x + y == s + r exactly, whatever their sizes.
    s = x + y
    back = s - x
    r = (x - (s - back)) + (y - back)
    bits = s.view(np.int64)
    to_odd = (np.abs(r) > 0) & (bits & 1 == 0)
    away_from_zero = (r > 0) == (s > 0)
    bits += to_odd * np.where(away_from_zero, 1, -1)
    return s

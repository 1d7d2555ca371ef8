"""Rounding of float64 numbers to a narrower type, in place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float64Array

__all__ = ["round_to_nearest", "round_toward_zero"]


def round_to_nearest(
    x: Float64Array,
    precision: int,
    emin: int,
    emax: int,
    work: npt.NDArray[np.int64] | None = None,
) -> None:
    """Round to nearest, ties to even; beyond the largest number to infinity.

    ``(x + c) - c`` rounds to float64's step at ``c``; ``c`` is 1.5 times the power
    of two at which that is the narrow type's step at ``x``. For infinity and NaN
    ``c`` is some finite number. Scaled so that the two types' ranges end
    together, what overflows in one does in the other. ``work`` is memory to work in.
    """
    work = np.bitwise_and(x.view(np.int64), 0x7FF << 52, out=work)
    np.maximum(work, (1023 + emin) << 52, out=work)
    work += (53 - precision << 52) + (1 << 51)
    c = work.view(np.float64)
    x += c
    x -= c
    scale = 2.0 ** (1023 - emax)
    x *= scale
    x /= scale


def round_toward_zero(x: Float64Array, precision: int, emin: int, emax: int) -> None:
    """Cut off; from ``2^(emax + 1)`` on, a number becomes infinite."""
    x.view(np.int64)[...] &= -1 << (53 - precision)
    magnitude = np.abs(x)
    small = magnitude < 2.0**emin
    if small.any():
        unit = 2.0 ** (emin - precision + 1)
        x[small] = np.trunc(x[small] / unit) * unit
    large = magnitude >= 2.0 ** (emax + 1)
    if large.any():
        x[large] = np.copysign(np.inf, x[large])

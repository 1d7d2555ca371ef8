"""The flags of a case: they say what happens to its number, and are not compared.

They are computed from the number's place between two values of the format, as a fraction, and not
by the encoder. This second way is on purpose: the flags are independent of the codes beside them,
so that an error of either shows where the two do not go together.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float64Array
from npfp8.formats import FloatFormat
from npfp8.vectors.modes import Mode
from npfp8.vectors.sources import Bits

__all__ = ["INEXACT", "NAN", "OVERFLOW", "UNDERFLOW", "flags_of", "fractions"]

INEXACT, UNDERFLOW, OVERFLOW, NAN = 0x01, 0x02, 0x04, 0x10


def flags_of(
    x: Float64Array, codes: npt.NDArray[np.uint8], fmt: FloatFormat, how: Mode, bits: Bits | None
) -> npt.NDArray[np.uint8]:
    """Return the flags of numbers and their codes; in stochastic rounding, by the random bits."""
    values = fmt.values[codes]
    nan = np.isnan(x)
    inexact = (values != x) & ~nan
    overflow = _overflows(x, fmt, how, bits) & inexact
    underflow = inexact & (np.abs(values) < fmt.min_normal)
    flags = INEXACT * inexact + UNDERFLOW * underflow + OVERFLOW * overflow + NAN * nan
    return flags.astype(np.uint8)


def _overflows(
    x: Float64Array, fmt: FloatFormat, how: Mode, bits: Bits | None
) -> npt.NDArray[np.bool_]:
    """Return where a number rounds beyond the largest value, were there larger exponents."""
    last, beyond = fmt.grid[-2:]
    with np.errstate(invalid="ignore"):  # NaN
        part = (np.abs(x) - last) / (beyond - last)
    odd = bool(last / (beyond - last) % 2 == 1)
    up = {
        "nearest": (part > 0.5) | ((part == 0.5) & odd),
        "nearest_away": part >= 0.5,
        "nearest_toward_zero": part > 0.5,
        "toward_zero": np.zeros(x.shape, bool),
        "up": (part > 0) & (x > 0),
        "down": (part > 0) & (x < 0),
        "odd": (part > 0) & (not odd),
    }
    if bits is None:
        return up[how.rounding] | (part >= 1)
    assert how.bit_count is not None
    fraction, whole = fractions(x, fmt, how.bit_count)
    carries = fraction + bits.astype(np.int64) >= 1 << how.bit_count
    return (part >= 1) | (whole | carries) & (part > 0)


def fractions(
    x: Float64Array, fmt: FloatFormat, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the first bits that are cut off toward zero, and what lies beyond the range."""
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    grid = fmt.grid
    below = np.clip(np.searchsorted(grid, magnitude, side="right") - 1, 0, fmt.max_code)
    part = (magnitude - grid[below]) / np.diff(grid)[below]  # exact: a division by a power of 2
    fraction = np.floor(np.clip(part, 0, 1 - 2.0**-53) * 2.0**count).astype(np.int64)
    return fraction, part >= 1

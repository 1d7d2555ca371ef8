"""The numbers at which rounding to a format changes its mind, for the tests of an encoder.

There is one set. The property checks of :mod:`npfp8.testing` take all of it. The files
of :mod:`npfp8.vectors`, and the kits that are made of them, hold its coarser part and no
more: results are compared line by line with files that were written before, so what is
in them stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float64Array, IntArray
from npfp8.formats import FloatFormat

__all__ = ["boundary_bits", "boundary_numbers"]


def boundary_numbers(fmt: FloatFormat, finer: bool = False) -> Float64Array:
    """The boundaries of a format and what is told apart from them, not negative, exact.

    Every value and every midpoint; these moved by less than a bfloat16's and a float16's
    last bit, where rounding twice goes wrong; and what lies beyond the range, for an
    overflow threshold that is off or another format's.

    Parameters
    ----------
    fmt : FloatFormat
    finer : bool
        Whether the eighths between neighbouring values, which tell a lost sticky bit, and
        thresholds nearer to the largest value are there too.
    """
    grid = fmt.grid
    boundaries = np.concatenate([grid, (grid[:-1] + grid[1:]) / 2])
    traps = [boundaries * (1 + sign * 2.0**-bits) for bits in (9, 12) for sign in (1, -1)]
    beyond = fmt.max * np.array([1.125, 1.25, 1.5, 2.0, 4.0, 1024.0])
    numbers = [boundaries, *traps, beyond]
    if finer:
        numbers += [grid[:-1] + np.diff(grid) * part / 8 for part in (1, 2, 3, 5, 6, 7)]
        numbers.append(fmt.max * np.array([1.03125, 1.0625]))
    return np.concatenate(numbers)


def boundary_bits(
    numbers: Float64Array,
    mantissa_bits: int,
    infinity: int,
    from_float64: Callable[[Float64Array], npt.NDArray[np.unsignedinteger[Any]]],
) -> IntArray:
    """The bits of numbers in a float type, those before and after each, and the type's ends.

    Parameters
    ----------
    numbers : ndarray of float64
        Not negative.
    mantissa_bits, infinity : int
        Of the type.
    from_float64 : callable
        Rounds to the type; returns its bits.

    Returns
    -------
    ndarray of int64
        From 0 to infinity, ascending, each once.
    """
    with np.errstate(over="ignore", under="ignore"):
        near = from_float64(numbers).astype(np.int64)
    one = 1 << mantissa_bits  # the smallest normal number's bits
    ends = np.array([0, 1, 2, one - 1, one, one + 1, infinity - 1, infinity])
    bits = np.unique(np.concatenate([near - 1, near, near + 1, ends]))
    return bits[(bits >= 0) & (bits <= infinity)]

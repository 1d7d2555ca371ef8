"""The numbers at which rounding to a format changes its result, to test encoders with.

There is one set of numbers. The property checks of :mod:`npfp8.testing` use all of it. The
files of :mod:`npfp8.vectors`, and the kits made of them, hold only its coarser part: results
are compared line by line with files that were written earlier, so their content is fixed.
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
    """Return the boundaries of a format and the numbers to tell apart from them; exact.

    They are every value and every midpoint that is not negative; these moved by less than
    the last bit of bfloat16 and of float16, where double rounding goes wrong; and numbers
    beyond the range, which show a wrong overflow threshold.

    Parameters
    ----------
    fmt : FloatFormat
    finer : bool
        Whether to add the eighths between neighbouring values, which show a lost sticky
        bit, and thresholds nearer to the largest value.
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
    """Return the bits of numbers in a float type, of their neighbours, and of its ends.

    Parameters
    ----------
    numbers : ndarray of float64
        Not negative.
    mantissa_bits, infinity : int
        The parameters of the type.
    from_float64 : callable
        It rounds to the type, and returns the bits.

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

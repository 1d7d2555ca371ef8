"""The numbers at which rounding to a format changes its result, to test encoders with.

There is one set of numbers. The property checks of :mod:`npfp8.testing`, the files of
:mod:`npfp8.vectors` and the kits of ``bert_numpy`` all use it, so that what one of them shows,
all show. The tests prove that the set tells apart every two mistakes of
:mod:`npfp8.mistakes` that some hundred thousand other numbers tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float64Array, IntArray
from npfp8.formats import FloatFormat

__all__ = ["boundary_bits"]

#: A float type's numbers, rounded to nearest from float64, as bits.
FromFloat64 = Callable[[Float64Array], npt.NDArray[np.unsignedinteger[Any]]]


def boundary_bits(
    fmt: FloatFormat, mantissa_bits: int, infinity: int, from_float64: FromFloat64
) -> IntArray:
    """Return the boundaries of a format, and numbers to tell apart from them, in a float type.

    They are:

    - every value and every midpoint, numbers beyond the range, which show a wrong overflow
      threshold, and the numbers of the float type before and after each of these;
    - values and midpoints moved by less than the last bit of bfloat16 and of float16, where
      double rounding goes wrong;
    - the eighths between neighbouring values, which show a lost sticky bit;
    - the ends of the float type, and the smallest normal numbers of bfloat16 and float16.

    Parameters
    ----------
    fmt : FloatFormat
    mantissa_bits, infinity : int
        The parameters of the float type.
    from_float64 : callable
        It rounds to the float type, and returns the bits.

    Returns
    -------
    ndarray of int64
        From 0 to infinity, ascending, each once.
    """
    grid = fmt.grid
    boundaries = np.concatenate([grid, (grid[:-1] + grid[1:]) / 2])
    beyond = fmt.max * np.array([1.03125, 1.0625, 1.125, 1.25, 1.5, 2.0, 4.0, 1024.0])
    moved = [boundaries * (1 + sign * 2.0**-bits) for bits in (9, 12) for sign in (1, -1)]
    # By more than half a last bit of bfloat16, and less than one: it rounds up what cutting
    # would move back.
    moved.append(boundaries * (1 + 65 * 2.0**-14))
    eighths = [grid[:-1] + np.diff(grid) * part / 8 for part in (1, 2, 3, 5, 6, 7)]
    with np.errstate(over="ignore", under="ignore"):
        around = from_float64(np.concatenate([boundaries, beyond, [2.0**-14]])).astype(np.int64)
        alone = from_float64(np.concatenate([*moved, *eighths])).astype(np.int64)
    one = 1 << mantissa_bits  # the smallest normal number's bits
    ends = np.array([0, 1, 2, one - 1, one, one + 1, infinity - 1, infinity])
    bits = np.unique(np.concatenate([around - 1, around, around + 1, alone, ends]))
    return bits[(bits >= 0) & (bits <= infinity)]

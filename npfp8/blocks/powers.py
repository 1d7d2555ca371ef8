"""Scales that are powers of two (OCP MX): from the largest magnitude of a block to its exponent.

With ``a`` the largest magnitude of a block, ``M`` the largest value of the elements' format,
``emax`` the exponent of ``M`` and ``m`` its mantissa bits, a rule gives an exponent ``e``. The
scale is ``2^e``, within the range of the scales' format, and an element's code is that of
``x / 2^e``, which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, IntArray
from npfp8.codec import encode
from npfp8.formats import FloatFormat, Format

__all__ = ["POWER_RULES", "PowerRule", "power_codes"]


@dataclass(frozen=True)
class PowerRule:
    """A rule for the exponents of blocks.

    Attributes
    ----------
    name : str
    exponent : callable (ndarray of float32, Format) -> ndarray of int64
        From the largest magnitudes, positive and finite, to exponents; they are clipped to the
        range of the scales afterwards.
    description : str
        The rule in words, and its source.
    rounding : str
        The rounding of the elements: a name of :func:`npfp8.encode`.
    """

    name: str
    exponent: Callable[[Float32Array, Format], IntArray]
    description: str
    rounding: str = "nearest"


def _floor_log2(x: Array) -> IntArray:
    """Return floor(log2 x) of positive numbers; exact."""
    exponents: IntArray = np.frexp(x)[1].astype(np.int64) - 1
    return exponents


def _emax(fmt: Format) -> int:
    return int(np.frexp(fmt.max)[1]) - 1


def _floor(amax: Float32Array, fmt: Format) -> IntArray:
    return _floor_log2(amax) - _emax(fmt)


#: The rules, by name.
POWER_RULES = {
    rule.name: rule
    for rule in (
        PowerRule(
            "floor",
            _floor,
            "floor(log2 a) - emax: OCP MX 1.0, section 6.3; values above M saturate",
        ),
    )
}


def power_codes(
    x: Float32Array,
    amax: Float32Array,
    element: Format,
    scale_format: FloatFormat,
    rule: PowerRule,
    spread: Callable[[Array], Array],
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Return the codes of numbers, and of the scales of their blocks.

    Parameters
    ----------
    x : ndarray of float32
    amax : ndarray of float32
        The largest magnitude of each block.
    element, scale_format : Format, FloatFormat
    rule : PowerRule
    spread : callable (ndarray) -> ndarray
        From one value per block to one per element.
    """
    zero = amax == 0
    exponents = rule.exponent(np.where(zero, np.float32(1), amax), element)
    ends = scale_format.min_positive, scale_format.max
    smallest, largest = (int(np.frexp(end)[1]) - 1 for end in ends)
    exponents = np.clip(np.where(zero, smallest, exponents), smallest, largest)
    scale_codes = (exponents - smallest).astype(np.uint8)
    scaled = np.ldexp(x, -spread(exponents).astype(np.int32))
    return encode(scaled, element, rounding=rule.rounding), scale_codes

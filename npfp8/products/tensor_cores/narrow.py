"""The fused rule with few fraction bits, in float32: twice as fast as in float64.

In units of ``2^(e - f)`` a product is below 2^(f + 2), the accumulator below 2^(f + 1) and
their sum below ``(2 step + 1) 2^(f + 1)``. Where that is at most 2^24 (Hopper and Ada: below
2^21), the cut-off terms are integers that float32 adds exactly in any order, so the products
of a step go through a few float32 operations over a tile of results, with no table and no
branch: the speed does not depend on the data. Cutting the sum off is clearing bits of a
float32. No product of codes has more than 14 significant bits and no accumulator more than
``f + 1``, so the multiplications are exact too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float32Array
from npfp8.products.accumulator import Accumulator
from npfp8.products.tensor_cores.steps import Step

__all__ = ["add_narrow", "is_narrow"]


def is_narrow(how: Accumulator) -> bool:
    """Return whether float32 holds every sum of a fused accumulator, and has its rounding."""
    known = (how.nearest, how.emin, how.emax) == (False, -126, 127) or (
        (how.nearest, how.precision, how.emin, how.emax) == (True, 11, -14, 15)
    )
    return known and (2 * how.step + 1) << (how.fraction_bits + 1) <= 1 << 24


def add_narrow(total: Float32Array, step: Step, how: Accumulator) -> Float32Array:
    """Return the next accumulator, as :func:`npfp8.products.tensor_cores.rules.add_fused`."""
    e = (total.view(np.int32) >> 23 & 0xFF) - 127
    if how.emin > -126:
        e = np.where(total == 0, np.int32(how.least_exponent), np.maximum(e, how.emin))
    np.maximum(e, step.largest(), out=e)
    np.maximum(e, _SMALLEST, out=e)  # where there is nothing but zeros
    products = step.products()
    per_unit = _power_of_two(how.fraction_bits - e)
    products *= per_unit
    np.trunc(products, out=products)
    total *= per_unit
    np.trunc(total, out=total)
    terms: Float32Array = np.add.reduce(products, axis=0)
    terms += total
    if not how.nearest:
        terms.view(np.int32)[...] &= -1 << 24 - how.precision
    terms *= _power_of_two(e - how.fraction_bits)
    specials = step.specials()
    if specials is not None:
        terms += specials.astype(np.float32)
    if how.nearest:
        terms = terms.astype(np.float16).astype(np.float32)
    return terms


#: Below the exponents of products of codes, and above those whose inverse float32 lacks.
_SMALLEST = -64


def _power_of_two(exponent: npt.NDArray[np.int32]) -> Float32Array:
    """Return 2^exponent, for the exponents of normal numbers."""
    return ((exponent + 127) << 23).view(np.float32)

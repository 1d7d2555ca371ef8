"""The operands of a tensor core: what each element contributes to a product, as arrays.

A product of two elements has the exponent ``ea + eb``, the sum of its operands', whatever
the exponent of the normalised product is. A subnormal counts with the smallest exponent of
its format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, Float64Array, lookup
from npfp8.codec.tables import values_of
from npfp8.formats import FloatFormat
from npfp8.products.float32 import lowest_bits
from npfp8.tensor import QuantizedTensor

__all__ = [
    "NO_EXPONENT",
    "NO_LOWEST",
    "NO_PRODUCT",
    "BlockScales",
    "Terms",
    "terms_of_codes",
    "terms_of_floats",
]

#: The exponent of a zero, for int8 and for int16: a product with it is below all others, and
#: the sum of two such exponents is still in range.
NO_EXPONENT = {np.dtype(np.int8): -64, np.dtype(np.int16): -4096}

#: The exponents of products of codes that are not zero are above this one, the others' below.
NO_PRODUCT = -48

#: What a zero is a multiple of, as an exponent: a product with it loses no bit.
NO_LOWEST = {np.dtype(np.int8): 63, np.dtype(np.int16): 4096}


#: Operands with exponents up to this one, above and below 0, are multiplied in float32.
_FLOAT32 = 36


@dataclass(frozen=True, eq=False)
class BlockScales:
    """The scales of the blocks of K, one block after the other.

    ``significands`` and ``exponents`` are of the shape (..., M, blocks) for the left operand
    and (..., blocks, N) for the right one; a NaN scale has a NaN significand.
    """

    block: int
    significands: Float64Array
    exponents: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Terms:
    """An operand (..., M, K) or (..., K, N), element by element.

    Parameters
    ----------
    values : ndarray of float32, or float64 if float32 could not hold a product
        NaN and infinity are zeros.
    exponents : ndarray of int8 or int16
        Of the elements' significands, not normalised; :data:`NO_EXPONENT` for a zero.
    lowest : ndarray of int8 or int16
        The exponent of the lowest bit that is set; :data:`NO_LOWEST` for a zero.
    specials : ndarray of float64, optional
        The values with NaN and infinity, if there are any.
    scales : BlockScales, optional
    """

    values: Array
    exponents: Array
    lowest: Array
    specials: Float64Array | None = None
    scales: BlockScales | None = None


def terms_of_codes(x: QuantizedTensor, k_axis: int, ks: slice, emin: int | None) -> Terms:
    """Return the terms of an operand's codes over the part ``ks`` of K.

    Parameters
    ----------
    x : QuantizedTensor
    k_axis : int
        -1 for the left operand, -2 for the right one.
    ks : slice
    emin : int, optional
        The smallest exponent of an element; None: that of its format.
    """
    assert isinstance(x.fmt, FloatFormat)
    index = (..., ks) if k_axis == -1 else (..., ks, slice(None))
    codes = x.codes[index]
    values, exponents, lowest = _tables(x.fmt, emin)
    terms = Terms(lookup(values, codes), lookup(exponents, codes), lookup(lowest, codes))
    if not x.is_finite:
        specials = x.code_values(np.float64)[index]
        if not np.isfinite(specials).all():
            terms = replace(terms, specials=specials)
    if x.scale_codes is not None:
        terms = replace(terms, scales=_block_scales(x))
    return terms


def terms_of_floats(x: Array, emin: int) -> Terms:
    """Return the terms of float16 numbers, or of bfloat16 numbers as float32."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = x.astype(np.float64)
    finite = np.isfinite(wide)
    values = np.where(finite, wide, 0.0)
    specials = None if finite.all() else wide
    dtype = np.dtype(np.int8 if x.dtype == np.float16 else np.int16)
    exponents, lowest = _exponents(values, emin, dtype)
    # Products of float32, and such a product in units of the cut, must be within float32's range.
    some = exponents[values != 0]
    if not some.size or (some.min() >= -_FLOAT32 and some.max() <= _FLOAT32):
        values = values.astype(np.float32)
    return Terms(values, exponents, lowest, specials)


def _exponents(values: Float64Array, emin: int, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    zero = values == 0
    exponents = np.maximum(np.frexp(values)[1] - 1, emin)
    lowest = np.frexp(np.where(zero, 1.0, lowest_bits(values)))[1] - 1
    return (
        np.where(zero, NO_EXPONENT[dtype], exponents).astype(dtype),
        np.where(zero, NO_LOWEST[dtype], lowest).astype(dtype),
    )


@lru_cache(maxsize=32)
def _tables(fmt: FloatFormat, emin: int | None) -> tuple[Float32Array, Array, Array]:
    """Return the value, the exponent and the lowest bit of each code; specials count as zeros."""
    values = np.where(fmt.is_finite, fmt.values, 0.0)
    values = np.resize(values, 256)
    smallest = int(np.frexp(fmt.min_normal)[1]) - 1
    exponents, lowest = _exponents(values, smallest if emin is None else emin, np.dtype(np.int8))
    return values.astype(np.float32), exponents, lowest


def _block_scales(x: QuantizedTensor) -> BlockScales:
    assert x.block_format is not None
    assert x.scale_codes is not None
    fmt = x.block_format.scale_format
    values = np.abs(values_of(x.scale_codes, fmt, np.dtype(np.float64)))
    smallest = int(np.frexp(fmt.min_normal)[1]) - 1
    finite = np.where(np.isfinite(values), values, 1.0)
    exponents = np.maximum(np.frexp(finite)[1].astype(np.int64) - 1, smallest)
    return BlockScales(x.block_format.block, np.ldexp(values, -exponents), exponents)

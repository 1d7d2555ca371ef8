"""The operands of a tensor core: what each element contributes to a product, as arrays.

A product of two elements has the exponent ``ea + eb``, the sum of its operands', whatever
the exponent of the normalised product is. A subnormal counts with the smallest exponent of
its format. An element of a block is multiplied by the block's scale, and the scale's exponent
is added to its own.

All of this is read from tables, by the 8 or 16 bits of an element.
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
from npfp8.products.accumulator import Accumulator
from npfp8.products.float32 import lowest_bits
from npfp8.tensor import QuantizedTensor

__all__ = [
    "NO_EXPONENT",
    "NO_LOWEST",
    "BlockExponents",
    "Terms",
    "of_one_type",
    "terms_of_codes",
    "terms_of_floats",
]

#: The exponent of a zero, for int8 and for int16: a product with it is below all others, and
#: the sum of two such exponents is still in range.
NO_EXPONENT = {np.dtype(np.int8): -64, np.dtype(np.int16): -4096}

#: What a zero is a multiple of, as an exponent: a product with it loses no bit.
NO_LOWEST = {np.dtype(np.int8): 63, np.dtype(np.int16): 4096}

#: Operands with exponents up to this one, above and below 0, are multiplied in float32.
_FLOAT32 = 36

#: Exponents from -16 to 15 are int8: a product with a zero is below all others.
_INT8 = 16


@dataclass(frozen=True, eq=False)
class BlockExponents:
    """The exponents of the blocks' scales, (..., M, blocks) or (..., blocks, N)."""

    block: int
    exponents: npt.NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Terms:
    """An operand (..., M, K) or (..., K, N), element by element.

    Parameters
    ----------
    values : ndarray of float32, or float64 if float32 could not hold a product
        With the blocks' scales, and then float64 in groups. NaN and infinity are zeros.
    exponents : ndarray of int8 or int16
        Of the elements' significands, not normalised; :data:`NO_EXPONENT` for a zero.
    lowest : ndarray of int8 or int16
        The exponent of the lowest bit that is set; :data:`NO_LOWEST` for a zero.
    specials : ndarray of float64, optional
        The values with NaN and infinity, if there are any.
    scales : BlockExponents, optional
    """

    values: Array
    exponents: Array
    lowest: Array
    specials: Float64Array | None = None
    scales: BlockExponents | None = None


def terms_of_codes(x: QuantizedTensor, k_axis: int, ks: slice, how: Accumulator) -> Terms:
    """Return the terms of an operand's codes over the part ``ks`` of K.

    Parameters
    ----------
    x : QuantizedTensor
    k_axis : int
        -1 for the left operand, -2 for the right one.
    ks : slice
        All of K, with block scales.
    how : Accumulator
    """
    assert isinstance(x.fmt, FloatFormat)
    index = (..., ks) if k_axis == -1 else (..., ks, slice(None))
    codes = x.codes[index]
    values, exponents, lowest = _tables(x.fmt, how.operand_emin)
    terms = Terms(lookup(values, codes), lookup(exponents, codes), lookup(lowest, codes))
    if not x.is_finite:
        specials = x.code_values(np.float64)[index]
        if not np.isfinite(specials).all():
            terms = replace(terms, specials=specials)
    # An accumulator without blocks adds unscaled codes; their scales are applied to its sums.
    if x.scale_codes is None or how.block is None:
        return terms
    return _block_scaled(terms, x, k_axis, how.kind == "groups")


def terms_of_floats(x: Array) -> Terms:
    """Return the terms of float16 numbers, or of bfloat16 numbers as float32."""
    values, exponents, lowest = _tables_of_floats(x.dtype)
    keys = x.view(np.uint16) if x.dtype == np.float16 else x
    terms = Terms(lookup(values, keys), lookup(exponents, keys), lookup(lowest, keys))
    if not np.isfinite(x).all():
        with np.errstate(invalid="ignore"):  # a signalling NaN
            terms = replace(terms, specials=x.astype(np.float64))
    return _in_float32(terms)


def of_one_type(x: Terms, y: Terms) -> tuple[Terms, Terms]:
    """Return both operands with the wider of their types."""
    if x.exponents.dtype != y.exponents.dtype:
        x, y = _in_int16(x), _in_int16(y)
    if x.values.dtype != y.values.dtype:
        x, y = (replace(side, values=side.values.astype(np.float64)) for side in (x, y))
    return x, y


def _in_int16(terms: Terms) -> Terms:
    if terms.exponents.dtype == np.int16:
        return terms
    old, new = np.dtype(np.int8), np.dtype(np.int16)
    zero = terms.exponents == NO_EXPONENT[old]
    exponents, lowest = terms.exponents.astype(new), terms.lowest.astype(new)
    exponents[zero], lowest[zero] = NO_EXPONENT[new], NO_LOWEST[new]
    return replace(terms, exponents=exponents, lowest=lowest)


def _in_float32(terms: Terms) -> Terms:
    """Return terms with values of float64 if products might be out of the range of float32.

    In float32 must be the products, and such a product in units of the cut.
    """
    exponents = terms.exponents
    if exponents.dtype == np.int8:
        return replace(terms, values=terms.values.astype(np.float32, copy=False))
    some = exponents > NO_EXPONENT[exponents.dtype]
    near = (np.abs(exponents) <= _FLOAT32) | ~some
    dtype = np.float32 if near.all() else np.float64
    return replace(terms, values=terms.values.astype(dtype, copy=False))


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


@lru_cache(maxsize=2)
def _tables_of_floats(dtype: np.dtype[Any]) -> tuple[Float32Array, Array, Array]:
    """Return the same by the bits of a float16, or by the upper 16 bits of a float32."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    half = dtype == np.float16
    numbers = bits.view(np.float16) if half else (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(invalid="ignore"):
        values = numbers.astype(np.float64)
    values[~np.isfinite(values)] = 0.0
    exponents = _exponents(
        values, *((-14, np.dtype(np.int8)) if half else (-126, np.dtype(np.int16)))
    )
    return values.astype(np.float32), *exponents


def _block_scaled(terms: Terms, x: QuantizedTensor, k_axis: int, groups: bool) -> Terms:
    """Multiply the elements by the scales of their blocks, without the scales' signs.

    In groups, the elements' exponents do not matter, and are left.
    """
    assert x.block_format is not None
    assert x.scale_codes is not None
    fmt, block, k = x.block_format.scale_format, x.block_format.block, x.shape[k_axis]
    scales = np.abs(values_of(x.scale_codes, fmt, np.dtype(np.float64)))
    nan = np.isnan(scales)
    scales[nan] = 1.0
    smallest = int(np.frexp(fmt.min_normal)[1]) - 1
    of_blocks = _exponents(scales, smallest, np.dtype(np.int16))
    of_blocks[0][scales == 0] = smallest

    def along_k(array: Array) -> Array:
        whole = np.repeat(array, block, axis=k_axis)
        return whole[..., :k] if k_axis == -1 else whole[..., :k, :]

    values = terms.values * along_k(scales)
    specials = terms.specials
    if nan.any():
        specials = values if specials is None else specials
        specials = np.where(along_k(nan), np.nan, specials)
    scales_of_blocks = BlockExponents(block, of_blocks[0])
    scaled = replace(terms, values=values, specials=specials, scales=scales_of_blocks)
    if groups:
        return scaled
    zero = values == 0
    dtype: np.dtype[Any] = np.dtype(np.int16)
    exponents, lowest = (
        np.where(zero, no[dtype], own + along_k(of_block))
        for no, own, of_block in zip(
            (NO_EXPONENT, NO_LOWEST), (terms.exponents, terms.lowest), of_blocks, strict=True
        )
    )
    some = exponents[~zero]
    if not some.size or (some.min() >= -_INT8 and some.max() < _INT8):
        dtype = np.dtype(np.int8)
        exponents = np.maximum(exponents, NO_EXPONENT[dtype]).astype(dtype)
        lowest = np.minimum(lowest, NO_LOWEST[dtype]).astype(dtype)
    return _in_float32(replace(scaled, exponents=exponents, lowest=lowest))

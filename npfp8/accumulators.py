"""Sums of products in accumulators that lose bits: Hopper's tensor cores, float16, bfloat16.

Hopper (H100, H200), as measured; ``docs/hopper.md`` has the evidence
----------------------------------------------------------------------
K is cut into blocks of 32. In a block each product has the exponent ``ea + eb``,
the sum of its operands' (a subnormal counts with its format's smallest one), not
that of the normalised product. Let ``e`` be the largest of these over the
products that are not zero and of the accumulator's own exponent.

1. Every product and the accumulator are cut off, toward zero, to multiples of
   ``2^(e - 13)``, and added exactly.
2. The sum is cut off, toward zero, to 13 bits after the leading one: the new
   accumulator.

With fast accumulation this goes on over all of K. Without, after every four
blocks the accumulator is added to a float32 sum (nearest, ties to even) and
starts again from zero.

How it is computed here
-----------------------
In units of ``2^(e - 13)`` a product is below 2^15, the accumulator below 2^14
and their sum below 2^21: cut off by ``trunc``, they are integers that float32
adds exactly in any order, so a block of 32 products goes through a few float32
operations over a tile of results, with no table and no branch: the speed does
not depend on the data. Cutting the sum off is clearing the lowest 10 of
float32's 24 bits. No product has more than 8 significant bits and no accumulator
more than 14, so the multiplications are exact too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.formats import FloatFormat
from npfp8.lookup import lookup
from npfp8.tensor import QuantizedTensor

__all__ = ["ROUNDED", "hopper_sums", "rounded_sums"]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

#: Products that Hopper's tensor core adds in one step, and steps between two float32 sums.
_BLOCK = 32
_BLOCKS_TO_SUM = 4

#: Bits after the leading one: of the accumulator, and of the term of exponent ``e``.
_FRACTION_BITS = 13

#: The exponent of zero: a product with it is below every other's, -28 in E5M2, in 8 bits.
_ZERO_EXPONENT = -64

#: Results worked on at a time: 32 products of each in float32 are 1 MB.
_TILE = 1 << 13


class _Rounding(NamedTuple):
    """A binary format to round to: its bits with the leading one, its exponents."""

    precision: int
    emin: int
    emax: int


#: The accumulators of :func:`rounded_sums`, by name.
ROUNDED = {"float16": _Rounding(11, -14, 15), "bfloat16": _Rounding(8, -126, 127)}


def hopper_sums(a: QuantizedTensor, b: QuantizedTensor, *, fast: bool) -> Float32Array:
    """The matrix product as Hopper's tensor cores add it up; NaN and infinity count as 0.

    Parameters
    ----------
    a : QuantizedTensor of shape (..., M, K)
        E4M3FN or E5M2; the leading axes broadcast. The scales are not looked at.
    b : QuantizedTensor of shape (..., K, N)
    fast : bool
        Whether all of K stays in the tensor core.

    Returns
    -------
    ndarray of float32, (..., M, N)
    """
    if b.shape[-1] < a.shape[-2]:  # the longer inner loop is the faster one
        return np.ascontiguousarray(hopper_sums(b.mT, a.mT, fast=fast).swapaxes(-1, -2))
    x, y, shape = _layers(a.codes, b.codes)
    k = len(x)
    x_values, x_exponents = (lookup(table, x) for table in _operand_tables(a.fmt))
    y_values, y_exponents = (lookup(table, y) for table in _operand_tables(b.fmt))
    out = np.empty((*x.shape[1:], y.shape[2]), np.float32)
    for layers, rows, columns in _tiles(out.shape):
        result = out[layers, rows, columns]
        products = np.empty((min(k, _BLOCK), *result.shape), np.float32)
        exponents = np.empty(products.shape, np.int8)
        result[...] = 0
        accumulator = np.zeros(result.shape, np.float32)
        for start in range(0, k, _BLOCK):
            left = (slice(start, start + _BLOCK), layers, rows)
            right = (slice(start, start + _BLOCK), layers, columns)
            n = min(_BLOCK, k - start)
            # An outer product per k, as einsum makes it fastest; it adds nothing up.
            np.einsum("kli,klj->klij", x_values[left], y_values[right], out=products[:n])
            np.add(
                x_exponents[left][..., None],
                y_exponents[right][:, :, None],
                out=exponents[:n],
            )
            accumulator = _add_block(accumulator, products[:n], exponents[:n].max(axis=0))
            if not fast and start // _BLOCK % _BLOCKS_TO_SUM == _BLOCKS_TO_SUM - 1:
                result += accumulator
                accumulator[...] = 0
        result += accumulator
    return out.reshape(shape)


def _add_block(
    accumulator: Float32Array, products: Float32Array, exponent: npt.NDArray[np.int8]
) -> Float32Array:
    """The next accumulator. Overwrites the operands; ``exponent`` is the products' largest."""
    e = (accumulator.view(np.int32) >> 23 & 0xFF) - 127
    np.maximum(e, exponent, out=e)
    np.maximum(e, _ZERO_EXPONENT, out=e)  # where there is nothing but zeros
    unit = _power_of_two(e - _FRACTION_BITS)
    per_unit = _power_of_two(_FRACTION_BITS - e)
    products *= per_unit
    np.trunc(products, out=products)
    accumulator *= per_unit
    np.trunc(accumulator, out=accumulator)
    total: Float32Array = np.add.reduce(products, axis=0)
    total += accumulator
    total.view(np.int32)[...] &= -1 << 23 - _FRACTION_BITS
    total *= unit
    return total


def _power_of_two(exponent: npt.NDArray[np.int32]) -> Float32Array:
    """2^exponent, for the exponents of normal numbers."""
    return ((exponent + 127) << 23).view(np.float32)


@lru_cache(maxsize=16)
def _operand_tables(fmt: FloatFormat) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """The value and the exponent of each code, NaN and infinity counted as zeros."""
    values = np.where(fmt.is_finite, fmt.values, 0.0)
    magnitudes = np.maximum(np.abs(values), fmt.min_normal)
    exponents = np.where(values == 0, _ZERO_EXPONENT, np.frexp(magnitudes)[1] - 1)
    return values.astype(np.float32), exponents.astype(np.int8)


def rounded_sums(x: Float64Array, y: Float64Array, accumulator: str) -> Float32Array:
    """The matrix product, the sum rounded to a narrow type after every product.

    ``sum = round(sum + x[k] * y[k])`` for k = 0, 1, ... from ``sum = 0``: the
    product is exact, and added to the sum it is rounded once, to nearest, ties
    to even; subnormal results are exact, overflow gives infinity, for good.
    NaN and infinity among the operands propagate as in IEEE 754.

    Parameters
    ----------
    x : ndarray of float64, (..., M, K)
        Values of 8-bit formats; the leading axes broadcast.
    y : ndarray of float64, (..., K, N)
    accumulator : {"float16", "bfloat16"}

    Returns
    -------
    ndarray of float32, (..., M, N)
        Every value is one of the accumulator's type; a NaN has any bits.

    Notes
    -----
    The sum in float64 is exact, or its two terms are so far apart that the
    smaller is less than a quarter of the other's last place in the narrow type:
    then a rounding to float64 in between makes no difference. A product of two
    8-bit numbers whose formats span so many binades has at most 8 bits itself.
    """
    left, right, shape = _layers(x, y)
    kind = ROUNDED[accumulator]
    out = np.empty((*left.shape[1:], right.shape[2]), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for layers, rows, columns in _tiles(out.shape):
            total = np.zeros(out[layers, rows, columns].shape)
            term, work = np.empty_like(total), np.empty(total.shape, np.int64)
            for k in range(len(left)):
                np.multiply(left[k, layers, rows, None], right[k, layers, None, columns], out=term)
                total += term
                _round(total, kind, work)
            out[layers, rows, columns] = total
    return out.reshape(shape)


def _round(x: Float64Array, kind: _Rounding, work: npt.NDArray[np.int64]) -> None:
    """Round in place to nearest, ties to even; beyond the largest number to infinity.

    ``(x + c) - c`` rounds to float64's step at ``c``; ``c`` is 1.5 times the power
    of two at which that is the narrow type's step at ``x``. For infinity and NaN
    ``c`` is some finite number. Scaled so that the two types' ranges end
    together, what overflows in one does in the other.
    """
    np.bitwise_and(x.view(np.int64), 0x7FF << 52, out=work)
    np.maximum(work, (1023 + kind.emin) << 52, out=work)
    work += (53 - kind.precision << 52) + (1 << 51)
    c = work.view(np.float64)
    x += c
    x -= c
    scale = 2.0 ** (1023 - kind.emax)
    x *= scale
    x /= scale


def _layers(
    a: npt.NDArray[Any], b: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[int, ...]]:
    """The operands as (K, L, M) and (K, L, N), contiguous, and the shape of the product.

    L counts the matrices of the leading axes. If ``b`` is a single one they
    become rows of ``a``.
    """
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n = a.shape[-2:], b.shape[-1]
    if math.prod(b.shape[:-2]) == 1:
        rows = np.broadcast_to(a, (*lead, m, k)).reshape(1, math.prod(lead) * m, k)
        columns = b.reshape(1, k, n)
    else:
        rows = np.broadcast_to(a, (*lead, m, k)).reshape(math.prod(lead), m, k)
        columns = np.broadcast_to(b, (*lead, k, n)).reshape(math.prod(lead), k, n)
    x, y = rows.transpose(2, 0, 1), columns.transpose(1, 0, 2)
    return np.ascontiguousarray(x), np.ascontiguousarray(y), (*lead, m, n)


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice, slice]]:
    """Cut an array (L, M, N) into pieces of about :data:`_TILE` elements, as wide as possible."""
    steps, room = [], _TILE
    for length in reversed(shape):
        steps.append(max(1, min(length, room)))
        room //= steps[-1]
    ranges = [range(0, n, step) for n, step in zip(shape, reversed(steps), strict=True)]
    for i in ranges[0]:
        for j in ranges[1]:
            for k in ranges[2]:
                starts = zip((i, j, k), reversed(steps), strict=True)
                layers, rows, columns = (slice(start, start + step) for start, step in starts)
                yield layers, rows, columns

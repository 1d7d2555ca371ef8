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
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float32Array, Float64Array
from npfp8.formats import FloatFormat
from npfp8.lookup import lookup
from npfp8.tensor import QuantizedTensor

__all__ = ["ROUNDED", "hopper_sums", "rounded_sums"]

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
    x, y, order, shape = _outer(a.codes, b.codes)
    x_values, x_exponents = (lookup(table, x) for table in _operand_tables(a.fmt))
    y_values, y_exponents = (lookup(table, y) for table in _operand_tables(b.fmt))
    out = np.empty(np.broadcast_shapes(x.shape[1:], y.shape[1:]), np.float32)
    for tile in _tiles(out.shape):
        result = out[tile]
        products = np.empty((min(len(x), _BLOCK), *result.shape), np.float32)
        exponents = np.empty(products.shape, np.int8)
        result[...] = 0
        accumulator = np.zeros(result.shape, np.float32)
        for start in range(0, len(x), _BLOCK):
            ks = slice(start, start + _BLOCK)
            n = min(_BLOCK, len(x) - start)
            # All products of each k, as einsum makes them fastest; it adds nothing up.
            np.einsum(
                "kijl,kijl->kijl",
                _part(x_values, ks, tile),
                _part(y_values, ks, tile),
                out=products[:n],
            )
            np.add(_part(x_exponents, ks, tile), _part(y_exponents, ks, tile), out=exponents[:n])
            accumulator = _add_block(accumulator, products[:n], exponents[:n].max(axis=0))
            if not fast and start // _BLOCK % _BLOCKS_TO_SUM == _BLOCKS_TO_SUM - 1:
                result += accumulator
                accumulator[...] = 0
        result += accumulator
    return _in_order(out, order, shape)


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
    left, right, order, shape = _outer(x, y)
    kind = ROUNDED[accumulator]
    out = np.empty(np.broadcast_shapes(left.shape[1:], right.shape[1:]), np.float32)
    every = slice(None)
    with np.errstate(over="ignore", invalid="ignore"):
        for tile in _tiles(out.shape):
            total = np.zeros(out[tile].shape)
            term, work = np.empty_like(total), np.empty(total.shape, np.int64)
            for a, b in zip(_part(left, every, tile), _part(right, every, tile), strict=True):
                np.multiply(a, b, out=term)
                total += term
                _round(total, kind, work)
            out[tile] = total
    return _in_order(out, order, shape)


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


def _outer(
    a: npt.NDArray[Any], b: npt.NDArray[Any]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], tuple[int, ...], tuple[int, ...]]:
    """The operands so laid out that ``x[k] * y[k]`` are the products of one k.

    Returns
    -------
    x, y : ndarray, (K, ., ., .)
        The axes are layers (matrices of the leading axes), rows and columns of the
        product in the order of their lengths, so that the inner loop is the longest.
        If ``b`` is a single matrix, layers become rows. Of length 1 in ``x`` are
        columns, in ``y`` rows.
    order : tuple of int
        Which of layers (0), rows (1) and columns (2) each axis is.
    shape : tuple of int
        The product's.
    """
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    (m, k), n = a.shape[-2:], b.shape[-1]
    layers = math.prod(lead)
    rows = np.broadcast_to(a, (*lead, m, k))
    if math.prod(b.shape[:-2]) == 1:
        x, y = rows.reshape(1, layers * m, k), b.reshape(1, k, n)
    else:
        x = rows.reshape(layers, m, k)
        y = np.broadcast_to(b, (*lead, k, n)).reshape(layers, k, n)
    lengths = (len(x), x.shape[1], n)
    order = tuple(sorted(range(3), key=lengths.__getitem__))
    axes = (0, *(axis + 1 for axis in order))
    x = x.transpose(2, 0, 1)[..., None].transpose(axes)
    y = y.transpose(1, 0, 2)[:, :, None].transpose(axes)
    return np.ascontiguousarray(x), np.ascontiguousarray(y), order, (*lead, m, n)


def _in_order(out: Float32Array, order: tuple[int, ...], shape: tuple[int, ...]) -> Float32Array:
    """The product of :func:`_outer`'s operands with its axes as they should be."""
    return np.ascontiguousarray(out.transpose(np.argsort(order))).reshape(shape)


def _part(x: npt.NDArray[Any], ks: slice, tile: tuple[slice, ...]) -> npt.NDArray[Any]:
    """What of an operand belongs to a tile: all of an axis of length 1."""
    parts = (part if n > 1 else slice(None) for n, part in zip(x.shape[1:], tile, strict=True))
    index = (ks, *parts)
    return x[index]


def _tiles(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Cut an array into pieces of about :data:`_TILE` elements, as wide as possible."""
    steps, room = [], _TILE
    for length in reversed(shape):
        steps.append(max(1, min(length, room)))
        room //= steps[-1]
    cuts = (
        [slice(start, start + step) for start in range(0, length, step)]
        for length, step in zip(shape, reversed(steps), strict=True)
    )
    yield from product(*cuts)

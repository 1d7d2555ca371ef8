"""Fused sums of products, as tensor cores make them: some products at a time, cut off.

The rule; its numbers are an :class:`Accumulator`'s
---------------------------------------------------
K is cut into steps of ``step`` products (Hopper: 32). In a step each product has the
exponent ``ea + eb``, the sum of its operands' (a subnormal counts with its format's
smallest one), not that of the normalised product. Let ``e`` be the largest of these
over the products that are not zero and of the accumulator's own exponent, and ``f``
the ``fraction_bits`` (Hopper: 13, as measured; ``docs/hopper.md`` has the evidence).

1. Every product and the accumulator are cut off, toward zero, to multiples of
   ``2^(e - f)``, and added exactly.
2. The sum is cut off, toward zero, to ``f`` bits after the leading one: the new
   accumulator.

This goes on over all of K; or, after every ``steps_to_float32`` steps (Hopper without
fast accumulation: 4), the accumulator is added to a float32 sum (nearest, ties to
even) and starts again from zero.

How it is computed here
-----------------------
In units of ``2^(e - f)`` a product is below 2^(f + 2), the accumulator below 2^(f + 1)
and their sum below ``(2 step + 1) 2^(f + 1)``, which :class:`Accumulator` keeps to at
most 2^24 (Hopper: below 2^21): cut off by ``trunc``, they are integers that float32
adds exactly in any order, so the products of a step go through a few float32 operations
over a tile of results, with no table and no branch: the speed does not depend on the
data. Cutting the sum off is clearing the lowest ``23 - f`` of float32's 24 bits. No
product has more than 14 significant bits and no accumulator more than ``f + 1``, so the
multiplications are exact too.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float32Array, chunks, lookup
from npfp8.formats import FloatFormat
from npfp8.products.accumulator import Accumulator
from npfp8.products.tiles import in_order, outer, part, tiles

__all__ = ["fused_sums"]

#: The exponent of zero: a product with it, at most -64 + 15, does not count beside the others',
#: at least -32; and twice it is in 8 bits.
_ZERO_EXPONENT = -64


def fused_sums(
    a: npt.NDArray[np.uint8],
    fmt_a: FloatFormat,
    b: npt.NDArray[np.uint8],
    fmt_b: FloatFormat,
    accumulator: Accumulator,
) -> Float32Array:
    """Multiply matrices of codes in a fused accumulator; NaN and infinity count as 0.

    Parameters
    ----------
    a : ndarray of uint8, (..., M, K)
        The leading axes broadcast.
    fmt_a, fmt_b : FloatFormat
        Two of the formats of the accumulator.
    b : ndarray of uint8, (..., K, N)
    accumulator : Accumulator

    Returns
    -------
    ndarray of float32, (..., M, N)
    """
    step, fraction_bits = accumulator.step, accumulator.fraction_bits
    x, y, order, shape = outer(a, b)
    x_values, x_exponents = (lookup(table, x) for table in _operand_tables(fmt_a))
    y_values, y_exponents = (lookup(table, y) for table in _operand_tables(fmt_b))
    out = np.empty(np.broadcast_shapes(x.shape[1:], y.shape[1:]), np.float32)
    for tile in tiles(out.shape):
        result = out[tile]
        products = np.empty((min(len(x), step), *result.shape), np.float32)
        exponents = np.empty(products.shape, np.int8)
        result[...] = 0
        total = np.zeros(result.shape, np.float32)
        for number, ks in enumerate(chunks(len(x), step), 1):
            n = min(step, len(x) - ks.start)
            # All products of each k, as einsum makes them fastest; it adds nothing up.
            np.einsum(
                "kijl,kijl->kijl",
                part(x_values, ks, tile),
                part(y_values, ks, tile),
                out=products[:n],
            )
            np.add(part(x_exponents, ks, tile), part(y_exponents, ks, tile), out=exponents[:n])
            total = _add_step(total, products[:n], exponents[:n].max(axis=0), fraction_bits)
            if accumulator.steps_to_float32 and number % accumulator.steps_to_float32 == 0:
                result += total
                total[...] = 0
        result += total
    return in_order(out, order, shape)


def _add_step(
    accumulator: Float32Array,
    products: Float32Array,
    exponent: npt.NDArray[np.int8],
    fraction_bits: int,
) -> Float32Array:
    """Return the next accumulator. ``exponent`` is the largest; the operands are overwritten."""
    e = (accumulator.view(np.int32) >> 23 & 0xFF) - 127
    np.maximum(e, exponent, out=e)
    np.maximum(e, _ZERO_EXPONENT, out=e)  # where there is nothing but zeros
    unit = _power_of_two(e - fraction_bits)
    per_unit = _power_of_two(fraction_bits - e)
    products *= per_unit
    np.trunc(products, out=products)
    accumulator *= per_unit
    np.trunc(accumulator, out=accumulator)
    total: Float32Array = np.add.reduce(products, axis=0)
    total += accumulator
    total.view(np.int32)[...] &= -1 << 23 - fraction_bits
    total *= unit
    return total


def _power_of_two(exponent: npt.NDArray[np.int32]) -> Float32Array:
    """Return 2^exponent, for the exponents of normal numbers."""
    return ((exponent + 127) << 23).view(np.float32)


@lru_cache(maxsize=16)
def _operand_tables(fmt: FloatFormat) -> tuple[Float32Array, npt.NDArray[np.int8]]:
    """Return the value and the exponent of each code; NaN and infinity count as zeros."""
    values = np.where(fmt.is_finite, fmt.values, 0.0)
    magnitudes = np.maximum(np.abs(values), fmt.min_normal)
    exponents = np.where(values == 0, _ZERO_EXPONENT, np.frexp(magnitudes)[1] - 1)
    return values.astype(np.float32), exponents.astype(np.int8)

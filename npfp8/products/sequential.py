"""Sums of products rounded to a narrow type after every product: too small an accumulator."""

from __future__ import annotations

import numpy as np

from npfp8.arrays import Float32Array, Float64Array
from npfp8.products.accumulator import Accumulator
from npfp8.products.rounding import round_to_nearest
from npfp8.products.tiles import in_order, outer, part, tiles

__all__ = ["sequential_sums"]


def sequential_sums(x: Float64Array, y: Float64Array, accumulator: Accumulator) -> Float32Array:
    """Multiply matrices; the sum is rounded to a narrow type after every product.

    ``sum = round(sum + x[k] * y[k])`` for k = 0, 1, ... from ``sum = 0``: the
    product is exact, and added to the sum it is rounded once, to nearest, ties
    to even. Subnormal results are exact; overflow gives infinity, which stays.
    NaN and infinity among the operands propagate as in IEEE 754.

    Parameters
    ----------
    x : ndarray of float64, (..., M, K)
        Values of 8-bit formats; the leading axes broadcast.
    y : ndarray of float64, (..., K, N)
    accumulator : Accumulator
        A sequential one.

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
    left, right, order, shape = outer(x, y)
    out = np.empty(np.broadcast_shapes(left.shape[1:], right.shape[1:]), np.float32)
    every = slice(None)
    type_of_sum = accumulator.precision, accumulator.emin, accumulator.emax
    with np.errstate(over="ignore", invalid="ignore"):
        for tile in tiles(out.shape):
            total = np.zeros(out[tile].shape)
            term, work = np.empty_like(total), np.empty(total.shape, np.int64)
            for a, b in zip(part(left, every, tile), part(right, every, tile), strict=True):
                np.multiply(a, b, out=term)
                total += term
                round_to_nearest(total, *type_of_sum, work)
            out[tile] = total
    return in_order(out, order, shape)

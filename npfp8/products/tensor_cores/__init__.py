"""Sums of products as tensor cores make them: some products at a time, cut off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from npfp8.arrays import Array, Float32Array, chunks
from npfp8.products.accumulator import Accumulator
from npfp8.products.tensor_cores.narrow import narrow_rule
from npfp8.products.tensor_cores.rules import RULES
from npfp8.products.tensor_cores.steps import Products
from npfp8.products.tensor_cores.terms import NO_EXPONENT, NO_LOWEST, Terms
from npfp8.products.tiles import in_order, tiles

__all__ = ["tensor_core_sums"]

#: Tiles are so many times as large as usual. The products of 16 k are then 4 MB in float32; but
#: in smaller tiles, the calls of NumPy and of the BLAS take a larger part of the time.
_TIMES = 4

#: NumPy 2 copies an operand that is broadcast along rows into a buffer, of 8,192 elements, if
#: two rows fit. With a smaller one it reads the operand, twice as fast in rows of 512.
_BUFFER = 1 << 10


def tensor_core_sums(x: Terms, y: Terms, how: Accumulator) -> Float32Array:
    """Multiply matrices in the accumulator of a tensor core.

    Parameters
    ----------
    x, y : Terms
        Of shapes (..., M, K) and (..., K, N); the leading axes broadcast.
    how : Accumulator

    Returns
    -------
    ndarray of float32, (..., M, N)
        A zero may have either sign, and a NaN any bits.
    """
    if order := _order(how):
        x, y = _in_order_of_k(x, -1, order), _in_order_of_k(y, -2, order)
    products = Products(x, y, how.group)
    narrow = narrow_rule(how) if products.in_float32 else None
    rule, dtype = (narrow, np.float32) if narrow else (RULES[how.kind], np.float64)
    out = np.zeros(products.shape, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"), _buffers(_BUFFER):
        for tile in tiles(out.shape, _TIMES):
            result = out[tile]
            total: Array = np.zeros(result.shape, dtype)
            for number, ks in enumerate(chunks(products.k, how.step), 1):
                total = rule(total, products.step(tile, ks), how)
                if how.steps_to_float32 and number % how.steps_to_float32 == 0:
                    result += total.astype(np.float32, copy=False)
                    total[...] = 0
            result += total.astype(np.float32, copy=False)
    return in_order(out, products.order, products.whole)


@contextmanager
def _buffers(size: int) -> Iterator[None]:
    """Set the elements of NumPy's buffers for a while."""
    before = np.setbufsize(size)
    try:
        yield
    finally:
        np.setbufsize(before)


def _order(how: Accumulator) -> tuple[int, ...]:
    """Return the order of K in which a step, and each half of one, is contiguous."""
    if how.apart == 1:
        return how.order
    order = how.order or tuple(range(how.step))
    return tuple(
        k
        for ks in chunks(len(order), how.step)
        for first in range(how.apart)
        for k in order[ks][first :: how.apart]
    )


def _in_order_of_k(x: Terms, k_axis: int, order: tuple[int, ...]) -> Terms:
    """Fill K up with zeros to whole runs of the order, and permute each run."""
    k, run = x.values.shape[k_axis], len(order)
    runs = -(-k // run)
    index = (np.arange(runs)[:, None] * run + order).reshape(-1)
    missing = index >= k

    def permuted(array: Array, zero: float) -> Array:
        taken = array.take(np.minimum(index, k - 1), axis=k_axis)
        np.moveaxis(taken, k_axis, 0)[missing] = zero
        return taken

    return replace(
        x,
        values=permuted(x.values, 0.0),
        exponents=permuted(x.exponents, NO_EXPONENT[x.exponents.dtype]),
        lowest=permuted(x.lowest, NO_LOWEST[x.lowest.dtype]),
        specials=None if x.specials is None else permuted(x.specials, 0.0),
    )

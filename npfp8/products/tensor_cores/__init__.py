"""Sums of products as tensor cores make them: some products at a time, cut off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from npfp8.arrays import Array, Float32Array, chunks
from npfp8.products.accumulator import Accumulator
from npfp8.products.tensor_cores.narrow import add_narrow, is_narrow
from npfp8.products.tensor_cores.rules import RULES
from npfp8.products.tensor_cores.steps import Products, Step
from npfp8.products.tensor_cores.terms import NO_EXPONENT, NO_LOWEST, Terms
from npfp8.products.tiles import in_order, tiles

__all__ = ["tensor_core_sums"]


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
    if how.order:
        x, y = _in_order_of_k(x, -1, how.order), _in_order_of_k(y, -2, how.order)
    products = Products(x, y)
    narrow = how.kind == "fused" and how.block is None and is_narrow(how)
    narrow &= x.values.dtype == np.float32
    rule: Callable[[Any, Step, Accumulator], Array] = add_narrow if narrow else RULES[how.kind]
    out = np.zeros(products.shape, np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for tile in tiles(out.shape):
            result = out[tile]
            total: Array = np.zeros(result.shape, np.float32 if narrow else np.float64)
            for number, ks in enumerate(chunks(products.k, how.step), 1):
                total = rule(total, products.step(tile, ks), how)
                if how.steps_to_float32 and number % how.steps_to_float32 == 0:
                    result += total.astype(np.float32, copy=False)
                    total[...] = 0
            result += total.astype(np.float32, copy=False)
    return in_order(out, products.order, products.whole)


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

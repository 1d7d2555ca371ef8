"""The operands of a matrix product laid out for elementwise work, and cut into tiles.

Where the sum over K is not a BLAS's, all products of a tile of results are made for
some of K at a time, by elementwise operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np

from npfp8.arrays import Array, Float32Array

__all__ = ["in_order", "outer", "part", "tiles"]

#: Results worked on at a time: some numbers in float64 for each are in the cache of a core.
_TILE = 1 << 14


def outer(a: Array, b: Array) -> tuple[Array, Array, tuple[int, ...], tuple[int, ...]]:
    """Lay the operands out so that ``x[k] * y[k]`` are the products of one k.

    Returns
    -------
    x, y : ndarray, (K, ., ., .)
        The axes are layers (matrices of the leading axes), rows and columns of the
        product in the order of their lengths, so that the inner loop is the longest.
        If ``b`` is a single matrix, layers become rows. Columns have length 1 in ``x``,
        rows in ``y``.
    order : tuple of int
        For each axis, 0 if it is the layers, 1 the rows, 2 the columns.
    shape : tuple of int
        The shape of the product.
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


def in_order(out: Float32Array, order: tuple[int, ...], shape: tuple[int, ...]) -> Float32Array:
    """Return a product of the operands of :func:`outer` with its axes in their order."""
    return np.ascontiguousarray(out.transpose(np.argsort(order))).reshape(shape)


def part(x: Array, ks: slice, tile: tuple[slice, ...]) -> Array:
    """Return the part of an operand that contributes to a tile; axes of length 1 are kept whole."""
    index = (ks, *(cut if n > 1 else slice(None) for n, cut in zip(x.shape[1:], tile, strict=True)))
    return x[index]


def tiles(shape: tuple[int, ...], times: int = 1) -> Iterator[tuple[slice, ...]]:
    """Cut an array into pieces of about ``times`` :data:`_TILE` elements, as wide as possible."""
    steps, room = [], times * _TILE
    for length in reversed(shape):
        steps.append(max(1, min(length, room)))
        room //= steps[-1]
    cuts = (
        [slice(start, start + step) for start in range(0, length, step)]
        for length, step in zip(shape, reversed(steps), strict=True)
    )
    yield from product(*cuts)

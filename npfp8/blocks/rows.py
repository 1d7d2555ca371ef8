"""Arrays as rows of one block each: filled up with zeros, and the way back."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np

from npfp8.arrays import Array, Float32Array, chunks

__all__ = ["BlockRows", "block_rows", "row_absmax"]

#: Elements per chunk: few enough that temporaries stay in the L2 cache.
_CHUNK = 1 << 15


#: Rows and columns of a tile that is transposed.
_TILE = 64


class BlockRows(NamedTuple):
    """The blocks of an array along an axis.

    Attributes
    ----------
    rows : ndarray, (blocks, elements of a block)
    shape : tuple of int
        The shape of the array with the axis last, and filled up to a multiple of the block.
    length : int
        The length of the axis.
    axis : int
    """

    rows: Array
    shape: tuple[int, ...]
    length: int
    axis: int

    def elements(self, rows: Array) -> Array:
        """Return one value per element of the rows in the shape of the array."""
        whole = np.ascontiguousarray(rows.reshape(self.shape)[..., : self.length])
        last = len(self.shape) - 1
        return whole if self.axis == last else _moved(whole, last, self.axis)

    def per_block(self, values: Array) -> Array:
        """Return one value per row in the shape of the scales."""
        shape = (*self.shape[:-1], self.shape[-1] // self.rows.shape[1])
        return np.ascontiguousarray(np.moveaxis(values.reshape(shape), -1, self.axis))


def block_rows(x: Array, axis: int, block: int) -> BlockRows:
    """Return the blocks of an array along an axis; they share its memory where they can."""
    last = np.moveaxis(x, axis, -1)
    length = last.shape[-1]
    if not last.flags.c_contiguous and x.flags.c_contiguous:
        last = _moved(x, axis, x.ndim - 1)
    block = min(block, max(length, 1))
    if padding := -length % block:
        zeros = np.zeros((*last.shape[:-1], padding), x.dtype)
        last = np.concatenate([last, zeros], axis=-1)
    return BlockRows(last.reshape(-1, block), last.shape, length, axis)


def _moved(x: Array, axis: int, to: int) -> Array:
    """Return a copy of an array with its axis moved to the end, or its last axis to a place.

    It is made tile by tile: rows that lie far apart evict each other from a cache.
    """
    first = min(axis, to)
    outer, *middle = prod(x.shape[:first]), *x.shape[first:]
    split = 1 if axis < to else len(middle) - 1
    source = x.reshape(outer, prod(middle[:split]), prod(middle[split:]))
    target = np.empty((outer, source.shape[2], source.shape[1]), x.dtype)
    for part, moved in zip(source, target, strict=True):
        for rows in chunks(part.shape[0], _TILE):
            for columns in chunks(part.shape[1], _TILE):
                moved[columns, rows] = np.ascontiguousarray(part[rows, columns]).T
    return target.reshape(*x.shape[:first], *middle[split:], *middle[:split])


def row_absmax(rows: Float32Array) -> Float32Array:
    """Return the largest magnitude of each row; a NaN if there is one.

    Magnitudes are compared as integers, which vectors of a processor do fast, and neighbours
    at a time: a reduction over few elements is slow.
    """
    count, block = rows.shape
    largest = np.empty(count, np.int32)
    bits = rows.view(np.int32)
    length = max(1, _CHUNK // block)
    magnitude = np.int32(0x7FFFFFFF)
    for chunk in chunks(count, length):
        rest = np.bitwise_and(bits[chunk], magnitude).reshape(-1)
        width = block
        while width % 2 == 0:
            rest, width = np.maximum(rest[0::2], rest[1::2]), width // 2
        largest[chunk] = rest if width == 1 else rest.reshape(-1, width).max(axis=1)
    return largest.view(np.float32)

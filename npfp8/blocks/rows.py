"""Arrays as rows of one block each: filled up with zeros, and the way back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npfp8.arrays import Array, Float32Array, chunks

__all__ = ["BlockRows", "block_rows", "row_absmax"]

#: Elements per chunk: few enough that temporaries stay in the L2 cache.
_CHUNK = 1 << 15


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
        whole = rows.reshape(self.shape)[..., : self.length]
        return np.ascontiguousarray(np.moveaxis(whole, -1, self.axis))

    def per_block(self, values: Array) -> Array:
        """Return one value per row in the shape of the scales."""
        shape = (*self.shape[:-1], self.shape[-1] // self.rows.shape[1])
        return np.ascontiguousarray(np.moveaxis(values.reshape(shape), -1, self.axis))


def block_rows(x: Array, axis: int, block: int) -> BlockRows:
    """Return the blocks of an array along an axis; they share its memory where they can."""
    last = np.moveaxis(x, axis, -1)
    length = last.shape[-1]
    block = min(block, max(length, 1))
    if padding := -length % block:
        zeros = np.zeros((*last.shape[:-1], padding), x.dtype)
        last = np.concatenate([last, zeros], axis=-1)
    return BlockRows(last.reshape(-1, block), last.shape, length, axis)


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

"""Arrays in blocks, cut into pieces that stay in the cache of a core.

An array is seen as (outer, axis, inner), and a piece of it as (outer, blocks, elements of a
block, inner), where all blocks have one length: those of a shorter last block are pieces of
their own. A piece has at most as many elements as a chunk (:mod:`npfp8.arrays`), or is one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import CHUNK, Array, Float32Array, Kernel, scratch
from npfp8.scaling import scale_shape

__all__ = ["block_amax", "encode_blocks"]

_MAGNITUDE = np.int32(0x7FFFFFFF)

#: The slices of a piece in an array (outer, axis, inner), and in one with an element per block.
_Slices = tuple[tuple[slice, slice, slice], tuple[slice, slice, slice]]


def _pieces(shape: tuple[int, int, int], block: int) -> Iterator[tuple[_Slices, int]]:
    """Cut (outer, axis, inner) into pieces; return the slices and the length of the blocks."""
    outer, length, inner = shape
    whole = length - length % block
    spans = [(0, whole, block), (whole, length, length - whole)]
    for start, stop, size in spans:
        if start == stop:
            continue
        columns = max(1, min(inner, CHUNK // size))
        count = max(1, min((stop - start) // size, CHUNK // (size * columns)))
        rows = max(1, CHUNK // ((stop - start) * columns)) if count * size == stop - start else 1
        for i in range(0, outer, rows):
            for j in range(start, stop, count * size):
                end = min(j + count * size, stop)
                blocks = slice(j // block, -(-end // block))
                for k in range(0, inner, columns):
                    first, last = slice(i, i + rows), slice(k, k + columns)
                    yield ((first, slice(j, end), last), (first, blocks, last)), size


def _shape(x: Array, axis: int) -> tuple[int, int, int]:
    return prod(x.shape[:axis]), x.shape[axis], prod(x.shape[axis + 1 :])


def _flat(shape: tuple[int, int, int], block: int) -> tuple[int, int, int]:
    """Return an equivalent shape whose axis is one block, if the blocks lie one after another."""
    outer, length, inner = shape
    if inner == 1 and length and length % block == 0:
        return 1, outer * length, 1
    return shape


def _layout(x: Array, axis: int) -> tuple[Array, int, bool]:
    """Return an array or its transpose, whichever lies row by row; the axis; and which it is."""
    transposed = x.flags.f_contiguous and not x.flags.c_contiguous
    return (x.T, x.ndim - 1 - axis, True) if transposed else (x, axis, False)


def _largest(magnitudes: npt.NDArray[np.int32], block: int) -> npt.NDArray[np.int32]:
    """Return the largest of each block of a contiguous piece (..., block, inner), which is lost.

    Halves are compared element by element: a reduction over few elements is slow.
    """
    *outer, _, inner = magnitudes.shape
    if inner == 1:
        rest = magnitudes.reshape(-1)
        # The thread's int32 memory holds the magnitudes: halves go to and fro between the two.
        other = scratch(rest.size // 2, np.uint32).view(np.int32)
        while block % 2 == 0:
            half = other[: rest.size // 2]
            rest, other, block = np.maximum(rest[0::2], rest[1::2], out=half), rest, block // 2
        return (rest if block == 1 else rest.reshape(-1, block).max(1)).reshape(*outer, 1)
    while block % 2 == 0:
        block //= 2
        low, high = magnitudes[..., :block, :], magnitudes[..., block:, :]
        magnitudes = np.maximum(low, high, out=low)
    return magnitudes[..., 0, :] if block == 1 else magnitudes.max(-2)


def block_amax(x: Float32Array, axis: int, block: int) -> Float32Array:
    """Return the largest magnitude of each block: NaN if there is one in it."""
    shape = scale_shape(x.shape, axis, block)
    x, axis, transposed = _layout(x, axis)
    size = min(block, x.shape[axis] or 1)
    cut = _flat(_shape(x, axis), size)
    bits = x.reshape(cut).view(np.int32)
    amax = np.empty((cut[0], -(-cut[1] // size), cut[2]), np.int32)
    for (piece, blocks), length in _pieces(cut, size):
        part = bits[piece]
        outer, run, inner = part.shape
        magnitudes = scratch(part.size, np.int32).reshape(part.shape)
        np.bitwise_and(part, _MAGNITUDE, out=magnitudes)
        amax[blocks] = _largest(magnitudes.reshape(outer, run // length, length, inner), length)
    result = amax.view(np.float32).reshape(scale_shape(x.shape, axis, size))
    return result.T if transposed else result.reshape(shape)


def encode_blocks(
    x: Float32Array,
    factors: Array,
    axis: int,
    block: int,
    kernel: Kernel,
    dtype: np.dtype[Any],
    correct: Callable[[Float32Array, Array, Array], None] | None = None,
    operation: np.ufunc = np.multiply,
) -> Array:
    """Multiply, or divide, numbers by one factor per block, and encode them by a kernel.

    Parameters
    ----------
    x : ndarray of float32
    factors : ndarray of float32 or float64
        One per block.
    axis, block : int
    kernel : callable (scaled, codes)
        It encodes a 1-D chunk.
    dtype : dtype
        The dtype of the codes.
    correct : callable (numbers, scaled, codes), optional
        It is called for each chunk afterwards, to change codes in place.
    operation : ufunc
        np.multiply or np.divide.
    """
    x, axis, transposed = _layout(x, axis)
    factors = factors.T if transposed else factors
    size = min(block, x.shape[axis] or 1)
    cut = _flat(_shape(x, axis), size)
    numbers = x.reshape(cut)
    per_block = factors.reshape(cut[0], -(-cut[1] // size), cut[2])
    codes = np.empty(cut, dtype)
    wide = np.result_type(numbers, per_block).type
    for (piece, blocks), length in _pieces(cut, size):
        part = numbers[piece]
        outer, run, inner = part.shape
        grid = part.reshape(outer, run // length, length, inner)
        scaled = scratch(part.size, wide)
        operation(grid, per_block[blocks][:, :, None, :], out=scaled.reshape(grid.shape))
        found = codes[piece]
        target = found.reshape(-1) if found.flags.c_contiguous else np.empty(scaled.size, dtype)
        kernel(scaled, target)
        if correct is not None:
            correct(grid.reshape(-1), scaled, target)
        if not found.flags.c_contiguous:
            found[...] = target.reshape(found.shape)
    result = codes.reshape(x.shape)
    return result.T if transposed else result

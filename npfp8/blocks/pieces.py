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

__all__ = ["block_amax", "encode_blocks", "grids", "like"]

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


def _flat(shape: tuple[int, int, int], block: int) -> tuple[int, int, int]:
    """Return an equivalent shape whose axis is one block, if the blocks lie one after another."""
    outer, length, inner = shape
    if inner == 1 and length and length % block == 0:
        return 1, outer * length, 1
    return shape


def _order(x: Array) -> tuple[int, ...]:
    """Return the order of the axes in which an array lies row by row, if there is one."""
    if x.flags.c_contiguous:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


def like(x: Array, dtype: npt.DTypeLike, shape: tuple[int, ...] | None = None) -> Array:
    """Return a new array, of another shape if one is given, that lies in memory as ``x`` does."""
    order = _order(x)
    shape = x.shape if shape is None else shape
    return np.empty([shape[i] for i in order], dtype).transpose(np.argsort(order))


def _largest(magnitudes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return the largest of each block of a contiguous piece (..., block, inner), which is lost.

    Halves are compared element by element: a reduction over few elements is slow. With one inner
    element, blocks have a power of two of elements.
    """
    *outer, block, inner = magnitudes.shape
    if inner == 1:
        rest = magnitudes.reshape(-1)
        # The thread's int32 memory holds the magnitudes: halves go to and fro between the two.
        other = scratch(rest.size // 2, np.uint32).view(np.int32)
        while block > 1:
            half = other[: rest.size // 2]
            rest, other, block = np.maximum(rest[0::2], rest[1::2], out=half), rest, block // 2
        return rest.reshape(*outer, 1)
    while block % 2 == 0:
        block //= 2
        low, high = magnitudes[..., :block, :], magnitudes[..., block:, :]
        magnitudes = np.maximum(low, high, out=low)
    return magnitudes[..., 0, :] if block == 1 else magnitudes.max(-2)


def block_amax(x: Float32Array, axis: int, block: int) -> Float32Array:
    """Return the largest magnitude of each block: NaN if there is one in it."""
    amax = like(x, np.int32, scale_shape(x.shape, axis, block))
    for part, largest in grids((x.view(np.int32),), (amax,), axis, block):
        outer, count, size, inner = part.shape
        padded = 1 << (size - 1).bit_length() if inner == 1 else size
        shape = outer, count, padded, inner
        magnitudes = scratch(outer * count * padded * inner, np.int32).reshape(shape)
        np.bitwise_and(part, _MAGNITUDE, out=magnitudes[:, :, :size])
        magnitudes[:, :, size:] = 0
        largest[:, :, 0] = _largest(magnitudes)
    return amax.view(np.float32)


def grids(
    arrays: tuple[Array, ...], per_block: tuple[Array, ...], axis: int, block: int
) -> Iterator[tuple[Array, ...]]:
    """Yield the pieces of arrays of one shape, and of arrays with an element per block.

    Parameters
    ----------
    arrays : tuple of ndarray
        The pieces of those that lie in memory as the first one does are views.
    per_block : tuple of ndarray
    axis, block : int
        The axis, not negative, and the length of the blocks.

    Yields
    ------
    tuple of ndarray
        Of each array a piece (outer, blocks, elements of a block, inner), and of each array
        with an element per block one that broadcasts against it.
    """
    order = _order(arrays[0])
    shape = tuple(arrays[0].shape[i] for i in order)
    axis = order.index(axis)
    size = min(block, shape[axis] or 1)
    cut = _flat((prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])), size)
    wholes = [x.transpose(order).reshape(cut) for x in arrays]
    singles = [x.transpose(order).reshape(cut[0], -(-cut[1] // size), cut[2]) for x in per_block]
    for (piece, blocks), length in _pieces(cut, size):
        parts = [x[piece] for x in wholes]
        outer, run, inner = parts[0].shape
        grid = outer, run // length, length, inner
        yield (*(x.reshape(grid) for x in parts), *(x[blocks][:, :, None] for x in singles))


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
    codes = like(x, dtype)
    wide = np.result_type(x, factors).type
    for grid, found, factor in grids((x, codes), (factors,), axis, block):
        scaled = scratch(grid.size, wide)
        operation(grid, factor, out=scaled.reshape(grid.shape))
        target = found.reshape(-1) if found.flags.c_contiguous else np.empty(scaled.size, dtype)
        kernel(scaled, target)
        if correct is not None:
            correct(grid.reshape(-1), scaled, target)
        if not found.flags.c_contiguous:
            found[...] = target.reshape(found.shape)
    return codes

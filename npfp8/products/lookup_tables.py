"""Sums of products by tables of partial sums: the kernel of :mod:`npfp8.products.lookup`.

All numbers here are integers: the activations and the weights are divided by the smallest
subnormals of their formats before, and the sums are multiplied by both afterwards. Those are
powers of two, so nothing is rounded.

For one group of ``g`` weights of ``b`` bits there are ``2^(b g)`` different columns. A table has
the product of the activations with each of them, and a column of the weights finds its own by
one look-up. A row of activations thus needs ``K / g`` look-ups and additions for each column,
instead of K multiplications and additions.

The dtype of tables
-------------------
In a table, no entry is larger in magnitude than the sum of the group's activations, without
their signs, times the largest weight. The sum of these bounds over some groups bounds every
partial sum of theirs. The narrowest of int16, int32 and float64 that holds several entries is
taken. When the bounds say that it may not hold another entry, the sum moves to a wider total,
which holds K products. No addition wraps and none rounds, so the total is the exact sum, in
whatever order and dtype.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from npfp8.arrays import Array, Float32Array, Float64Array, blas_product
from npfp8.formats import Format

__all__ = ["field_values", "table_sums"]

#: Rows of activations that share a gather: their entries lie side by side, so that a look-up
#: copies a run of memory.
_ROWS = 64

#: Rows up to which a power of two is made of their number: NumPy copies runs of 2, 4, 8, 16 and
#: 32 bytes faster than others.
_PADDED_ROWS = 16

#: Entries that are looked up at a time: they stay in the cache, and calls are few.
_ENTRIES = 3 << 14

#: The same for several rows of activations, and the entries of tables that are made at a time.
_FEW, _BUILT = 1 << 13, 1 << 17

#: The integer dtypes of tables, with the largest sum that each holds.
_HOLD = ((np.int16, 2**15 - 1), (np.int32, 2**31 - 1))

#: Entries of the largest group that a dtype has to hold the sum of, to be worth moving it.
_SEVERAL = 4


@lru_cache(maxsize=64)
def field_values(fmt: Format) -> Float64Array:
    """Return the value of each code, in the order of its bits, over the smallest subnormal.

    Examples
    --------
    >>> from npfp8 import E2M1, IntFormat
    >>> field_values(IntFormat(-2, 1, "int8"))
    array([ 0.,  1., -2., -1.])
    >>> field_values(E2M1)[:8]
    array([ 0.,  1.,  2.,  3.,  4.,  6.,  8., 12.])
    """
    values: Float64Array = fmt.values / fmt.min_subnormal
    return values


@lru_cache(maxsize=64)
def _columns(fmt: Format, group: int) -> Float32Array:
    """Return the weights of every index of a group, (group, 2^(bits * group)); read-only."""
    bits = fmt.bits
    indices = np.arange(1 << bits * group)
    fields = [indices >> bits * place & (1 << bits) - 1 for place in range(group)]
    columns: Float32Array = field_values(fmt)[np.array(fields)].astype(np.float32)
    columns.flags.writeable = False
    return columns


def table_sums(
    x: Float32Array, indices: Array, fmt: Format, group: int, first: int = 0
) -> Float64Array:
    """Compute the sums of products of activations and grouped weights, exactly.

    Parameters
    ----------
    x : ndarray of float32, (M, K)
        Integers. K is at most ``group * G``; the weights beyond it count as multiplied by 0.
    indices : ndarray of uint8, uint16 or intp, (G, N)
        The weights of each group of K as one number, the first in its lowest bits. intp ones
        are places in the tables of all groups: group ``j``, counted from ``first``, begins at
        ``2^(bits * group) * (first + j)``.
    fmt : FloatFormat or IntFormat
        The format of the weights.
    group : int
    first : int

    Returns
    -------
    ndarray of float64, (M, N)
        Exact if ``K * max(x) * max(weights)`` is at most 2^53, which is up to the caller.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import IntFormat
    >>> four = IntFormat(-2, 1, "int8", name="two bits")
    >>> table_sums(np.float32([[5, 7, 3]]), np.uint8([[0b1101], [0b0010]]), four, 2)
    array([[-8.]])
    """
    rows, columns = len(x), indices.shape[1]
    out = np.zeros((rows, columns))
    if not out.size or not x.any():
        return out
    groups = len(indices)
    padded = np.zeros((rows, groups * group), np.float32)
    padded[:, : x.shape[1]] = x
    blocks = -(-rows // _ROWS)
    for block in range(blocks):
        some = slice(rows * block // blocks, rows * (block + 1) // blocks)
        out[some] = _block_sums(padded[some].reshape(-1, groups, group), indices, fmt, first).T
    return out


class _Sums(NamedTuple):
    """How entries of tables are added up.

    ``dtype`` is that of the tables, ``runs`` the groups whose entries it holds the sum of, one run
    after the other, and ``total`` the dtype of the sum over all groups.
    """

    dtype: np.dtype[Any]
    runs: list[slice]
    total: np.dtype[Any]


def _plan(bounds: Float64Array) -> _Sums:
    """Choose dtypes and runs by the bound of the entries of each group."""
    largest, whole = float(bounds.max()), float(bounds.sum())
    dtype, hold = next(
        (kind for kind in _HOLD if min(_SEVERAL * largest, whole) <= kind[1]), (np.float64, 2**53)
    )
    total = np.int32 if whole <= np.iinfo(np.int32).max else np.float64
    begins, held = [0], 0.0
    for place, bound in enumerate(bounds.tolist()):
        held += bound
        if held > hold:
            begins.append(place)
            held = bound
    runs = [slice(*ends) for ends in pairwise([*begins, len(bounds)])]
    return _Sums(np.dtype(dtype), runs, np.dtype(dtype if len(runs) == 1 else total))


def _block_sums(x: Float32Array, indices: Array, fmt: Format, first: int) -> Array:
    """Compute the sums of some rows of activations, (rows, G, group); (N, rows) of any dtype."""
    columns = _columns(fmt, x.shape[-1])
    bounds = np.abs(x).sum(axis=-1, dtype=np.float64).max(axis=0) * float(np.abs(columns).max())
    if bounds.max() > 2**24:  # float32 may not hold the products of a group, which float64 does
        return _gathered(x.astype(np.float64), indices, columns.astype(np.float64), bounds, first)
    return _gathered(x, indices, columns, bounds, first)


def _gathered(x: Array, indices: Array, columns: Array, bounds: Float64Array, first: int) -> Array:
    """Make the tables, look the entries up and add them: (N, rows)."""
    sums = _plan(bounds)
    rows, length = len(x), indices.shape[1]
    if rows == 1:
        return _sums_of_one_row(x[0], indices, columns, sums, first)[:, None]
    width = 1 << (rows - 1).bit_length() if rows <= _PADDED_ROWS else rows
    total = np.zeros((length, width), sums.total)
    held = total if len(sums.runs) == 1 else np.empty((length, width), sums.dtype)
    for run in sums.runs:
        if held is not total:
            held[...] = 0
        _add_entries(x[:, run], indices[run], columns, first + run.start, held)
        if held is not total:
            total += held
    return total[:, :rows]


def _sums_of_one_row(x: Array, indices: Array, columns: Array, sums: _Sums, first: int) -> Array:
    """Compute the sums of one row of activations: all tables first, then several groups at once."""
    (groups, length), entries = indices.shape, columns.shape[1]
    tables = blas_product(x, columns).astype(sums.dtype, copy=False).reshape(-1)
    at_once = min(max(1, _ENTRIES // length), groups)
    places = np.empty((at_once, length), np.intp)
    found = np.empty((at_once, length), sums.dtype)
    begins = np.multiply(np.arange(groups), entries)[:, None]
    total = np.zeros(length, sums.total)
    for run in sums.runs:
        for start in range(run.start, run.stop, at_once):
            keys = indices[start : min(start + at_once, run.stop)]
            count = len(keys)
            if keys.dtype != np.intp:
                places[:count] = keys
                keys = np.add(places[:count], begins[start : start + count], out=places[:count])
            elif first:
                keys = np.subtract(keys, first * entries, out=places[:count])
            # mode="clip" spares take's bounds check; every place is within the tables.
            tables.take(keys, None, found[:count], "clip")
            total += np.add.reduce(found[:count], axis=0, dtype=sums.dtype)
    return total


def _add_entries(x: Array, indices: Array, columns: Array, first: int, held: Array) -> None:
    """Add the entries of several rows: a look-up copies the entries of all of them."""
    (groups, length), (group, entries) = indices.shape, columns.shape
    (rows, width), dtype = (len(x), held.shape[1]), held.dtype
    by_group = np.zeros((groups, group, width), x.dtype)
    by_group[..., :rows] = x.transpose(1, 2, 0)
    at_once = min(max(1, _FEW // (length * width)), groups)
    built = max(1, _BUILT // (entries * width * at_once)) * at_once
    places = np.empty((at_once, length), np.intp)
    found = np.empty((at_once, length, width), dtype)
    begins = np.multiply(np.arange(built), entries)[:, None]
    for start in range(0, groups, at_once):
        place = start % built
        if not place:
            tables = blas_product(columns.T, by_group[start : start + built])
            tables = tables.astype(dtype, copy=False).reshape(-1, width)
        some = indices[start : start + at_once]
        count = len(some)
        keys = places[:count]
        if some.dtype == np.intp:
            np.subtract(some, (first + start - place) * entries, out=keys)
        else:
            keys[...] = some
            if place or count > 1:
                keys += begins[place : place + count]
        tables.take(keys, 0, found[:count], "clip")
        held += found[0] if count == 1 else np.add.reduce(found[:count], 0, dtype)

"""Encoding arrays to 8-bit codes and decoding them, exact to the last bit.

How encoding works
------------------
Every boundary between two neighbouring codes of an 8-bit float (a midpoint)
has at most ``mantissa_bits + 2`` significant bits, so it is a bfloat16 value
whose last bit is 0. Reduce the input to bfloat16 by *rounding to odd*: cut the
lower bits off and, if any of them was set, set the last bit kept. That moves no
input across a boundary or onto one (an odd last bit is never a boundary), so
the code of the reduced value is the code of the exact input, rounded once. A
bfloat16 has 65,536 values: one table, made from the format's description by
sorting, holds all their codes. This is the argument of Boldo and Melquiond,
*Emulation of FMA and correctly rounded sums: proved algorithms using rounding
to odd* (IEEE Transactions on Computers 57, 2008): rounding to odd first, with
at least two bits more, makes the second rounding innocuous.

A float16 input indexes a table of its own; float64 and integers are rounded to
odd to float32 first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.bfloat16 import from_bits
from npfp8.formats import FloatFormat, Format, IntFormat
from npfp8.rounding import float32_to_bfloat16_bits, float64_to_float32, integer_to_float64

__all__ = ["decode", "encode", "encode_bfloat16"]

#: Elements worked on at a time: a block's temporaries fit a core's cache.
_BLOCK = 1 << 16


def encode(x: npt.ArrayLike, fmt: Format, saturate: bool = True) -> npt.NDArray[Any]:
    """Encode numbers as 8-bit codes: round to nearest, ties to the even code, once.

    Parameters
    ----------
    x : array_like
        float16, bfloat16 (an ml_dtypes array), float32, float64, or integers,
        of any shape. Each element is rounded once, from its exact value.
    fmt : FloatFormat or IntFormat
        The format of the codes.
    saturate : bool
        True, as ``cvt.rn.satfinite`` of the PTX ISA: what lies beyond the
        largest finite value, infinity included, becomes that value with its
        sign; every NaN becomes the positive NaN of the largest payload (0x7F in
        E4M3FN and E5M2).

        False, as ``ml_dtypes``: what rounds beyond the largest finite value
        becomes infinity, or NaN with the input's sign where the format has no
        infinity; a NaN keeps its sign and becomes the quiet NaN of no payload
        (E5M2: 0x7E or 0xFE). The tie above the largest value goes to the even
        code: 464 is 448 in E4M3FN, 61440 is infinity in E5M2.

        An IntFormat always saturates; with False, a number beyond its range is
        an error.

    Returns
    -------
    ndarray of uint8 (int8 for INT8), C-contiguous, of the shape of ``x``

    Raises
    ------
    TypeError
        If ``x`` is not of one of the dtypes above.
    ValueError
        If ``x`` has a NaN and ``fmt`` is an IntFormat, which has no code for
        it; or a number beyond its range with ``saturate=False``.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, E5M2, encode
    >>> encode([0.0, 1.0, -1.0, 448.0, 1e9], E4M3FN)
    array([  0,  56, 184, 126, 126], dtype=uint8)
    >>> encode(np.float32([464.0, 464.1]), E4M3FN, saturate=False)
    array([126, 127], dtype=uint8)
    """
    values = np.asarray(x)
    if isinstance(fmt, IntFormat):
        return _encode_integer(values, fmt, saturate)
    if values.dtype.kind in "fiu":
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    table = _code_table(fmt, saturate, "float16" if values.dtype == np.float16 else "bfloat16")
    return lookup(table, values, _keys)


def encode_bfloat16(
    bits: npt.ArrayLike, fmt: FloatFormat, saturate: bool = True
) -> npt.NDArray[np.uint8]:
    """Encode bfloat16 numbers given as their 16 bits; see :func:`encode`.

    Parameters
    ----------
    bits : array_like of uint16
        bfloat16 bit patterns.
    fmt : FloatFormat
    saturate : bool

    Returns
    -------
    ndarray of uint8, of the shape of ``bits``

    Raises
    ------
    TypeError
        If ``bits`` is not uint16.
    """
    patterns = np.asarray(bits)
    if patterns.dtype != np.uint16:
        raise TypeError(f"bfloat16 bits: expected uint16, found {patterns.dtype}")
    return lookup(_code_table(fmt, saturate, "bfloat16"), patterns, lambda keys: keys)


def decode(
    codes: npt.ArrayLike, fmt: Format, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """Return the values of 8-bit codes; exact.

    Parameters
    ----------
    codes : array_like of uint8 (int8 for INT8)
        Codes, of any shape.
    fmt : FloatFormat or IntFormat
        Their format.
    dtype : dtype
        float32 (default), float64, or any float dtype that holds every value
        of the format exactly (float16 does for E4M3FN, E5M2 and the integers).

    Returns
    -------
    ndarray of ``dtype``, of the shape of ``codes``
        NaN codes become a NaN of their sign.

    Raises
    ------
    TypeError
        If ``codes`` has another dtype, or ``dtype`` cannot hold the values.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, decode
    >>> decode(np.uint8([0x38, 0x7E, 0xFF]), E4M3FN)
    array([  1., 448.,  nan], dtype=float32)
    """
    patterns = np.asarray(codes)
    if patterns.dtype != fmt.code_dtype:
        raise TypeError(f"{fmt} codes: expected {fmt.code_dtype}, found {patterns.dtype}")
    table = _value_table(fmt, np.dtype(dtype))
    return lookup(table, patterns, lambda block: block.view(np.uint8))


@lru_cache(maxsize=64)
def _value_table(fmt: Format, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The value of each code, indexed by the code's 8 bits; raises TypeError if inexact."""
    if isinstance(fmt, FloatFormat):
        exact = fmt.values
    else:
        exact = np.arange(256, dtype=np.uint8).view(fmt.code_dtype).astype(np.float64)
    with np.errstate(over="ignore"):
        table = exact.astype(dtype)
    if not np.array_equal(table.astype(np.float64), exact, equal_nan=True):
        raise TypeError(f"decode: dtype {dtype} cannot hold every value of {fmt} exactly")
    table.flags.writeable = False
    return table


@lru_cache(maxsize=64)
def _code_table(fmt: FloatFormat, saturate: bool, source: str) -> npt.NDArray[np.uint8]:
    """The code of each of the 65,536 values of a 16-bit ``source`` type, by its bits."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):  # the table has signalling NaNs too
        narrow = from_bits(bits) if source == "bfloat16" else bits.view(np.float16)
        values = narrow.astype(np.float64)
    sign = (bits >> 8 & 0x80).astype(np.uint8)
    magnitude = np.abs(values)

    # Positive codes 0..max_code, and one more: the value that would follow if
    # the largest exponent went on. What rounds to that one overflows.
    top = fmt.values[fmt.max_code]
    step = top - fmt.values[fmt.max_code - 1]
    grid = np.append(fmt.values[: fmt.max_code + 1], top + step)
    midpoints = (grid[:-1] + grid[1:]) / 2  # exact: one more bit than the grid's
    below = np.searchsorted(midpoints, magnitude, side="left")
    above = np.searchsorted(midpoints, magnitude, side="right")
    code = np.where(below % 2 == 0, below, above)  # equal but on a tie: there, the even one
    overflow = code > fmt.max_code
    nan = np.isnan(values)

    if saturate:
        code[overflow] = fmt.max_code
        code |= sign
        code[nan] = fmt.positive_nan_codes[-1]
    else:
        # The quiet NaN of no payload has only the mantissa's top bit set; a
        # format with a single NaN has that one.
        quiet = fmt.max_code + 1 + (1 << (fmt.mantissa_bits - 1))
        quiet = quiet if quiet in fmt.positive_nan_codes else fmt.positive_nan_codes[-1]
        code[overflow] = quiet if fmt.infinity_code is None else fmt.infinity_code
        code[nan] = quiet
        code |= sign
    table = code.astype(np.uint8)
    table.flags.writeable = False
    return table


def lookup(
    table: npt.NDArray[Any],
    x: npt.NDArray[Any],
    keys_of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
) -> npt.NDArray[Any]:
    """Return ``table[keys_of(x)]``, block by block so that what ``keys_of`` makes stays cached."""
    out = np.empty(x.shape, table.dtype)
    source = np.ascontiguousarray(x).reshape(-1)
    target = out.reshape(-1)
    for start in range(0, max(source.size, 1), _BLOCK):  # once even if empty: dtypes are checked
        keys = keys_of(source[start : start + _BLOCK])
        # mode="clip" spares take's bounds check; every key is within the table.
        np.take(table, keys, out=target[start : start + _BLOCK], mode="clip")
    return out


def _keys(x: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    """The 16 bits that decide the code of each element: from wide to narrow, rounding to odd."""
    if x.dtype.kind in "iu":
        x = integer_to_float64(x)
    if x.dtype == np.float64:
        x = float64_to_float32(x)
    if x.dtype == np.float32:
        return float32_to_bfloat16_bits(x)
    if x.dtype == np.float16 or is_bfloat16(x.dtype):
        return x.view(np.uint16)
    raise TypeError(
        "encode: expected float16, bfloat16, float32, float64 or integers, found " + str(x.dtype)
    )


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is ml_dtypes' bfloat16, told without importing ml_dtypes."""
    return dtype.name == "bfloat16" and dtype.itemsize == 2


def _encode_integer(
    values: npt.NDArray[Any], fmt: IntFormat, saturate: bool
) -> npt.NDArray[np.int8 | np.uint8]:
    """Round to the nearest integer, ties to even, and saturate to the format's range."""
    if values.dtype == np.float16 or is_bfloat16(values.dtype):
        values = values.astype(np.float32)  # exact
    if values.dtype.kind == "f" and values.dtype.itemsize in (4, 8):
        if np.isnan(values).any():
            raise ValueError(f"encode: found NaN, and {fmt} has no code for it")
        values = np.rint(values)
    elif values.dtype.kind not in "iu":
        raise TypeError(
            "encode: expected float16, bfloat16, float32, float64 or integers, found "
            + str(values.dtype)
        )
    clipped = np.clip(values, fmt.min_code, fmt.max_code)
    if not saturate and not np.array_equal(clipped, values):
        raise ValueError(
            f"encode: found a number outside {fmt}'s {fmt.min_code}..{fmt.max_code} "
            "with saturate=False"
        )
    return np.asarray(clipped.astype(fmt.code_dtype), order="C")

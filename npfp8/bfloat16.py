"""bfloat16 in NumPy: float32 arrays whose values are bfloat16 values, and their bits.

NumPy has no bfloat16. Here a bfloat16 number is stored in a float32 array (a bfloat16
is the upper half of a float32, so this is exact), or as its 16 bits in a uint16 array.
Float32 is rounded only by integer operations, so the result does not depend on the
rounding or flush-to-zero mode of the processor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, wrong_array
from npfp8.arrays import (
    Float32Array,
    Float64Array,
    chunks,
    parts,
    require_array,
    require_writable,
    scratch,
)
from npfp8.rounding import float64_to_float32

__all__ = [
    "add_half",
    "as_bfloat16",
    "from_bits",
    "round_finite",
    "round_in_place",
    "round_to_bfloat16",
    "round_to_bits",
    "to_bits",
]

#: Elements worked on at a time: a chunk's temporaries (512 kB or 1 MB each) stay in cache.
_CHUNK = 1 << 17

#: Round half up by adding just under a half, made half-to-even by the kept bit. NumPy takes
#: arrays without axes as they are, and converts scalars first.
_HALF_MINUS, _ONE, _WIDTH = (np.array(x, np.uint32) for x in (0x7FFF, 1, 16))
_UPPER = np.array(0xFFFF0000, np.uint32)
_HALF_MINUS_64 = np.uint64((1 << 44) - 1)

_NAN, _NEGATIVE_NAN = np.uint32(0x7FC00000), np.uint32(0xFFC00000)


def from_bits(bits: npt.ArrayLike) -> Float32Array:
    """Return the float32 values of bfloat16 bit patterns; exact.

    Parameters
    ----------
    bits : array_like of uint16
        bfloat16 codes.

    Returns
    -------
    ndarray of float32, of the same shape

    Raises
    ------
    TypeError
        If ``bits`` is not uint16.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import from_bits
    >>> from_bits(np.uint16([0x3F80, 0xC000]))
    array([ 1., -2.], dtype=float32)
    """
    codes = array_of("bits", bits, np.uint16)
    wide = np.atleast_1d(codes.astype(np.uint32))
    wide <<= np.uint32(16)
    return wide.view(np.float32).reshape(codes.shape)


def to_bits(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Return the bits of float32 values that are already bfloat16 values.

    Parameters
    ----------
    x : array_like of float32
        bfloat16 values, as :func:`round_to_bfloat16` makes them. The lower 16 bits are
        not read.

    Returns
    -------
    ndarray of uint16, of the same shape

    Raises
    ------
    TypeError
        If ``x`` is not float32.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import to_bits
    >>> [hex(bits) for bits in to_bits(np.float32([1.0, -2.0])).tolist()]
    ['0x3f80', '0xc000']
    """
    values = _as_float32(x)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(np.shape(x))


def round_to_bfloat16(x: npt.ArrayLike, out: Float32Array | None = None) -> Float32Array:
    """Round once to the nearest bfloat16 value, ties to even; the result is float32.

    Values beyond the largest bfloat16 become infinity (IEEE 754 rounding); a
    NaN becomes the canonical quiet NaN 0x7FC0 with its sign.

    Parameters
    ----------
    x : array_like of float32 or float64
        Values to round.
    out : ndarray of float32, optional
        The array for the result: C-contiguous, of the same shape; it may be ``x``.

    Returns
    -------
    ndarray of float32

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``out`` is not float32.
    ValueError
        If ``out`` has another shape, is not C-contiguous or is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import round_to_bfloat16
    >>> round_to_bfloat16(np.float32([1.00390625, 1.01171875, 3.0]))
    array([1.      , 1.015625, 3.      ], dtype=float32)
    """
    given = x if isinstance(x, np.ndarray) else array_of("x", x)
    if given.dtype not in (np.float32, np.float64):
        raise wrong_array("x", "float32 or float64", given, x)
    if out is None:
        out = np.empty(given.shape, np.float32)
    require_array("out", out, np.float32)
    if out.shape != given.shape or not out.flags.c_contiguous:
        raise ValueError(f"out: expected C-contiguous shape {given.shape}, found {out.shape}")
    require_writable("out", out)
    source = np.ascontiguousarray(given, given.dtype.newbyteorder("=")).reshape(-1)
    target = out.reshape(-1)
    round_part = _round_float64 if source.dtype == np.float64 else _round_float32
    work_dtype = np.uint64 if source.dtype == np.float64 else np.uint32
    for chunk in chunks(source.size, _CHUNK):
        part, result = source[chunk], target[chunk]
        # NaN is looked for first: the result may be in the memory of the source.
        nan = np.isnan(part)
        signs = np.signbit(part[nan]) if nan.any() else None
        round_part(part, result, scratch(part.size, work_dtype))
        if signs is not None:
            result[nan] = np.where(signs, _NEGATIVE_NAN, _NAN).view(np.float32)
    return out


def round_in_place(x: Float32Array) -> Float32Array:
    """Round to bfloat16 as :func:`round_to_bfloat16` does, in the memory of the array.

    An array that is not C-contiguous is copied.

    Parameters
    ----------
    x : ndarray of float32

    Returns
    -------
    ndarray of float32, ``x`` itself if it is C-contiguous

    Raises
    ------
    TypeError
        If ``x`` is not an array of float32.
    ValueError
        If it is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import round_in_place
    >>> round_in_place(np.float32([3.14159]))
    array([3.140625], dtype=float32)
    """
    require_array("x", x, np.float32)
    contiguous = np.ascontiguousarray(x)
    require_writable("x", contiguous)
    for part in parts(contiguous.reshape(-1), _CHUNK):
        if part.size and math.isnan(np.maximum.reduce(part)):  # a maximum with NaN is one
            round_to_bfloat16(part, out=part)
        else:
            _round_float32(part, part, scratch(part.size, np.uint32))
    return contiguous


def round_finite(x: Float32Array) -> None:
    """Round to bfloat16 as :func:`round_in_place` does, without a look for NaN.

    Parameters
    ----------
    x : ndarray of float32
        C-contiguous. A NaN may only be one that an operation on other numbers has made.

    Raises
    ------
    TypeError
        If ``x`` is not an array of float32.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import round_finite
    >>> x = np.float32([3.14159, np.inf])
    >>> round_finite(x)
    >>> x
    array([3.140625,      inf], dtype=float32)
    """
    require_array("x", x, np.float32)
    for part in parts(x.reshape(-1), _CHUNK):
        _round_float32(part, part, scratch(part.size, np.uint32))


def as_bfloat16(x: Float32Array) -> Float32Array:
    """Return an array itself if it has bfloat16 values alone, and rounded otherwise.

    Parameters
    ----------
    x : ndarray of float32

    Raises
    ------
    TypeError
        If ``x`` is not an array of float32.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import as_bfloat16
    >>> x = np.float32([1.0, 3.140625])
    >>> as_bfloat16(x) is x, as_bfloat16(np.float32([3.14159]))
    (True, array([3.140625], dtype=float32))
    """
    require_array("x", x, np.float32)
    bits = np.bitwise_or.reduce(x.view(np.uint32), axis=None)
    return round_to_bfloat16(x) if bits & 0xFFFF else x


def add_half(x: Float32Array, out: npt.NDArray[np.uint32]) -> None:
    """Add half of bfloat16's last place to the bits of float32: the upper 16 are then rounded.

    Parameters
    ----------
    x : ndarray of float32
        In native byte order. The bits of a NaN may become those of another number.
    out : ndarray of uint32, of the same shape
        The array for the result. Its upper 16 bits are those of ``round_to_bits(x)``, the
        lower ones mean nothing.

    Raises
    ------
    TypeError
        If an argument is not an array of the dtype stated.
    ValueError
        If ``out`` has another shape or is read-only.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import add_half
    >>> out = np.empty(2, np.uint32)
    >>> add_half(np.float32([3.14159, -2.0]), out)
    >>> [hex(bits) for bits in (out >> 16).tolist()]
    ['0x4049', '0xc000']
    """
    require_array("x", x, np.float32)
    require_array("out", out, np.uint32)
    if out.shape != x.shape:
        raise ValueError(f"out: expected shape {x.shape}, found {out.shape}")
    require_writable("out", out)
    _add_half(x, out)


def _add_half(x: Float32Array, out: npt.NDArray[np.uint32]) -> None:
    bits = x.view(np.uint32)
    np.right_shift(bits, _WIDTH, out)
    np.bitwise_and(out, _ONE, out)
    np.add(out, _HALF_MINUS, out)
    np.add(bits, out, out)


def round_to_bits(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Compute ``to_bits(round_to_bfloat16(x))`` of float32 in half as many passes.

    Parameters
    ----------
    x : array_like of float32

    Returns
    -------
    ndarray of uint16, of the same shape

    Raises
    ------
    TypeError
        If ``x`` is not float32.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import round_to_bits
    >>> [hex(bits) for bits in round_to_bits(np.float32([3.14159])).tolist()]
    ['0x4049']
    """
    values = _as_float32(x)
    work = np.empty(values.shape, np.uint32)
    _add_half(values, work)
    work >>= np.uint32(16)
    found = work.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        found[nan] = np.where(np.signbit(values[nan]), _NEGATIVE_NAN, _NAN) >> np.uint32(16)
    return found.reshape(np.shape(x))


def _round_float32(x: Float32Array, out: Float32Array, work: npt.NDArray[np.uint32]) -> None:
    _add_half(x, work)
    np.bitwise_and(work, _UPPER, out.view(np.uint32))


def _round_float64(x: Float64Array, out: Float32Array, work: npt.NDArray[np.uint64]) -> None:
    """Round to 8 significant bits; subnormal results, which have fewer, by rounding to odd."""
    bits = x.view(np.uint64)
    np.right_shift(bits, np.uint64(45), out=work)
    np.bitwise_and(work, np.uint64(1), out=work)
    np.add(work, _HALF_MINUS_64, out=work)
    np.add(bits, work, out=work)
    np.bitwise_and(work, ~np.uint64((1 << 45) - 1), out=work)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        out[...] = work.view(np.float64)
    subnormal = (out.view(np.uint32) & np.uint32(0x7F800000)) == 0
    if subnormal.any():
        odd = float64_to_float32(x[subnormal])
        _round_float32(odd, odd, np.empty(odd.shape, np.uint32))
        out[subnormal] = odd


def _as_float32(x: npt.ArrayLike) -> Float32Array:
    """Return a C-contiguous float32 array of at least one dimension, in native byte order."""
    values = array_of("x", x, np.float32)
    return np.ascontiguousarray(values, dtype=np.float32)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is the bfloat16 of ml_dtypes, without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"

"""bfloat16 in NumPy: float32 arrays whose values are bfloat16 values, and their bits.

NumPy has no bfloat16. Here a bfloat16 number lives in a float32 array (a
bfloat16 is the upper half of a float32, so every one is exactly a float32), or
as its 16 bits in a uint16 array. Float32 is rounded by integer operations only,
so the result does not depend on the processor's rounding or flush-to-zero mode.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Float32Array, Float64Array, chunks
from npfp8.rounding import float64_to_float32

__all__ = ["from_bits", "round_in_place", "round_to_bfloat16", "round_to_bits", "to_bits"]

#: Elements worked on at a time: a chunk's temporaries (512 kB or 1 MB each) stay in cache.
_CHUNK = 1 << 17

#: Round half up by adding just under a half, made half-to-even by the kept bit.
_HALF_MINUS = np.uint32(0x7FFF)
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
    """
    codes = np.asarray(bits)
    if codes.dtype != np.uint16:
        raise TypeError(f"bfloat16 bits: expected uint16, found {codes.dtype}")
    wide = np.atleast_1d(codes.astype(np.uint32))
    wide <<= np.uint32(16)
    return wide.view(np.float32).reshape(codes.shape)


def to_bits(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Return the bits of float32 values that are already bfloat16 values.

    Parameters
    ----------
    x : array_like of float32
        Values on the bfloat16 grid, as :func:`round_to_bfloat16` makes them.
        The lower 16 bits are dropped unseen.

    Returns
    -------
    ndarray of uint16, of the same shape
    """
    values = _as_float32(x)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(np.shape(x))


def round_to_bfloat16(x: npt.ArrayLike, out: Float32Array | None = None) -> Float32Array:
    """Round to the nearest bfloat16 value, ties to even, once, kept as float32.

    Values beyond the largest bfloat16 become infinity (IEEE 754 rounding); a
    NaN becomes the canonical quiet NaN 0x7FC0 with its sign.

    Parameters
    ----------
    x : array_like of float32 or float64
        Values to round.
    out : ndarray of float32, optional
        Where to put the result; C-contiguous, of the same shape, may be ``x``.

    Returns
    -------
    ndarray of float32

    Raises
    ------
    TypeError
        If ``x`` is neither float32 nor float64, or ``out`` is not float32.
    ValueError
        If ``out`` has another shape or is not C-contiguous.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import round_to_bfloat16
    >>> round_to_bfloat16(np.float32([1.00390625, 1.01171875, 3.0]))
    array([1.      , 1.015625, 3.      ], dtype=float32)
    """
    given = np.asarray(x)
    if given.dtype not in (np.float32, np.float64):
        raise TypeError(f"bfloat16 rounding: expected float32 or float64, found {given.dtype}")
    if out is None:
        out = np.empty(given.shape, np.float32)
    elif out.dtype != np.float32:
        raise TypeError(f"out: expected float32, found {out.dtype}")
    elif out.shape != given.shape or not out.flags.c_contiguous:
        raise ValueError(f"out: expected C-contiguous shape {given.shape}, found {out.shape}")
    source = np.ascontiguousarray(given, given.dtype.newbyteorder("=")).reshape(-1)
    target = out.reshape(-1)
    round_part = _round_float64 if source.dtype == np.float64 else _round_float32
    work = np.empty(min(_CHUNK, source.size), f"u{source.itemsize}")
    for chunk in chunks(source.size, _CHUNK):
        part, result = source[chunk], target[chunk]
        # NaN is looked for first: the result may be in the memory of the source.
        nan = np.isnan(part)
        signs = np.signbit(part[nan]) if nan.any() else None
        round_part(part, result, work[: part.size])
        if signs is not None:
            result[nan] = np.where(signs, _NEGATIVE_NAN, _NAN).view(np.float32)
    return out


def round_in_place(x: Float32Array) -> Float32Array:
    """:func:`round_to_bfloat16` of an array that is not needed any more: in its own memory."""
    contiguous = np.ascontiguousarray(x)
    return round_to_bfloat16(contiguous, out=contiguous)


def round_to_bits(x: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """``to_bits(round_to_bfloat16(x))`` of float32 in half as many passes.

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


def _add_half(x: Float32Array, out: npt.NDArray[np.uint32]) -> None:
    """The bits of ``x`` and half of bfloat16's last place: the upper 16 are those rounded."""
    bits = x.view(np.uint32)
    np.right_shift(bits, np.uint32(16), out=out)
    np.bitwise_and(out, np.uint32(1), out=out)
    np.add(out, _HALF_MINUS, out=out)
    np.add(bits, out, out=out)


def _round_float32(x: Float32Array, out: Float32Array, work: npt.NDArray[np.uint32]) -> None:
    _add_half(x, work)
    np.bitwise_and(work, np.uint32(0xFFFF0000), out=out.view(np.uint32))


def _round_float64(x: Float64Array, out: Float32Array, work: npt.NDArray[np.uint64]) -> None:
    """To 8 significant bits; where float32's exponent ends, which has fewer, by way of odd."""
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
    """A C-contiguous float32 array of at least one dimension, in native byte order."""
    values = np.asarray(x)
    if values.dtype != np.float32:
        raise TypeError(f"bfloat16 values: expected float32, found {values.dtype}")
    return np.ascontiguousarray(values, dtype=np.float32)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is ml_dtypes' bfloat16, told without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"

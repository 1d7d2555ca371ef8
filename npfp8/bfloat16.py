"""bfloat16 in NumPy: float32 arrays whose values are bfloat16 values, and their bits.

NumPy has no bfloat16. Here a bfloat16 number lives in a float32 array (a
bfloat16 is the upper half of a float32, so every one is exactly a float32), or
as its 16 bits in a uint16 array. Only integer operations are used, so the
result does not depend on the processor's rounding or flush-to-zero mode.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.rounding import float64_to_float32

__all__ = ["from_bits", "round_to_bfloat16", "to_bits"]

Float32Array = npt.NDArray[np.float32]

#: Elements worked on at a time: the block's temporaries (256 kB each) stay in cache.
_BLOCK = 1 << 16

#: Round half up by adding just under a half, made half-to-even by the kept bit.
_HALF_MINUS = np.uint32(0x7FFF)


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
    shape = given.shape
    values = _as_float32(float64_to_float32(given) if given.dtype == np.float64 else given)
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.dtype != np.float32:
        raise TypeError(f"out: expected float32, found {out.dtype}")
    elif out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(f"out: expected C-contiguous shape {shape}, found {out.shape}")
    source = values.view(np.uint32).reshape(-1)
    target = out.reshape(-1).view(np.uint32)
    carry = np.empty(min(_BLOCK, source.size), np.uint32)
    for start in range(0, source.size, _BLOCK):
        bits = source[start : start + _BLOCK]
        result = target[start : start + _BLOCK]
        add = carry[: bits.size]
        # NaN is looked for first: `result` may be the memory of `bits`.
        is_nan = np.isnan(bits.view(np.float32))
        any_nan = bool(is_nan.any())
        signs = bits[is_nan] & np.uint32(0x80000000) if any_nan else None
        np.right_shift(bits, np.uint32(16), out=add)
        np.bitwise_and(add, np.uint32(1), out=add)
        np.add(add, _HALF_MINUS, out=add)
        np.add(bits, add, out=result)
        np.bitwise_and(result, np.uint32(0xFFFF0000), out=result)
        if any_nan:
            result[is_nan] = signs | np.uint32(0x7FC00000)
    return out


def _as_float32(x: npt.ArrayLike) -> Float32Array:
    """A C-contiguous float32 array of at least one dimension, in native byte order."""
    values = np.asarray(x)
    if values.dtype != np.float32:
        raise TypeError(f"bfloat16 values: expected float32, found {values.dtype}")
    return np.ascontiguousarray(values, dtype=np.float32)

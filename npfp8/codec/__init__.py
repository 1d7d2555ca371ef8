"""Encoding arrays to 8-bit codes and decoding them, exact to the last bit.

How encoding works
------------------
Every boundary at which rounding to an 8-bit float changes its mind (a value of
the format, or a midpoint of two) has few significant bits: as a float32, its
low 16 bits and the next one are 0 (:attr:`FloatFormat.key_shift` checks it, and
says how many they are for an unusual format). Reduce the input to the bits
above by *rounding to odd*: cut the low bits off and, if any of them was set,
set the last bit kept. That moves no input across a boundary or onto one (an odd
last bit is never a boundary), so the code of the reduced value is the code of
the exact input, rounded once. There are 65,536 reduced values: one table, made
from the format's description by :func:`codes_of`, holds all their codes. This
is the argument of Boldo and Melquiond, *Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd* (IEEE Transactions on Computers
57, 2008): rounding to odd first, with at least two bits more, makes the second
rounding innocuous.

float16 and bfloat16 inputs index tables of their own; float64 and integers are
rounded to odd to float32 first. Decoding looks two codes up at a time.

``docs/codec.md`` derives this at length.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Kernel, apply_chunkwise
from npfp8.bfloat16 import from_bits, is_bfloat16
from npfp8.codec.definition import codes_of, integer_kernel, quietly, stochastic_kernel
from npfp8.codec.tables import table_encoder, values_of
from npfp8.formats import FloatFormat, Format, IntFormat

__all__ = ["codes_of", "decode", "decode_bfloat16", "encode", "encode_bfloat16"]

_ROUNDINGS = ("nearest", "toward_zero", "stochastic")


def encode(
    x: npt.ArrayLike,
    fmt: Format,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Encode numbers as 8-bit codes, each rounded once from its exact value.

    Parameters
    ----------
    x : array_like
        float16, bfloat16 (an ml_dtypes array; for bits see
        :func:`encode_bfloat16`), float32, float64, or integers; of any shape,
        memory layout and byte order.
    fmt : FloatFormat or IntFormat
        The format of the codes.
    saturate : bool
        True, as ``cvt.rn.satfinite`` of the PTX ISA: what lies beyond the
        largest finite value, infinity included, becomes that value with its
        sign; every NaN becomes :attr:`FloatFormat.nan_code` (0x7F in E4M3FN and
        E5M2), whatever its sign.

        False, as ``ml_dtypes``: what rounds beyond the largest finite value
        becomes infinity, or NaN with the input's sign where the format has no
        infinity (and the largest value where it has no NaN either); a NaN keeps
        its sign and becomes :attr:`FloatFormat.quiet_nan_code` (E5M2: 0x7E or
        0xFE). The tie above the largest value goes to the even significand: 464
        is 448 in E4M3FN, 61440 is infinity in E5M2.

        An IntFormat always saturates; with False, a number beyond its range is
        an error.
    rounding : {"nearest", "toward_zero", "stochastic"}
        To the nearest value, ties to the even significand; to the nearest value
        not larger in magnitude; or up or down in magnitude at random, up with
        the probability that the number has gone of its way to the next value,
        exactly. Toward zero, a finite number never exceeds the largest finite
        value; stochastic rounding overflows from it to the value that would
        follow. IntFormats are rounded to nearest only.
    rng : numpy.random.Generator
        For stochastic rounding: 64 bits for each element, in C order, and more
        for those that these do not decide.
    out : ndarray of uint8 (int8 for INT8), optional
        Where to put the codes; of the shape of ``x``, in any layout.
    threads : int
        Threads that share the work on a large array. The result is the same.

    Returns
    -------
    ndarray of uint8 (int8 for INT8), of the shape of ``x``
        ``out``, or a new array in the memory layout of ``x``. A format without
        sign has no code for negative numbers: they become NaN, or code 0 where
        there is none. A format without zero (E8M0FNU) encodes 0 as its smallest
        value, with the sign of the 0, if saturating or without a NaN, and
        otherwise as a NaN.

    Raises
    ------
    TypeError
        If ``x`` is not of one of the dtypes above, or ``out`` or ``rng`` is not
        as said.
    ValueError
        If ``x`` has a NaN and ``fmt`` has no code for it (an IntFormat, or the
        formats of fewer than 8 bits); a number is beyond an IntFormat's range
        with ``saturate=False``; a rounding is unknown; integers beyond 2^53 are
        to be rounded stochastically.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, E5M2, encode
    >>> encode([0.0, 1.0, -1.0, 448.0, 1e9], E4M3FN)
    array([  0,  56, 184, 126, 126], dtype=uint8)
    >>> encode(np.float32([464.0, 464.1]), E4M3FN, saturate=False)
    array([126, 127], dtype=uint8)
    >>> encode([0.99, -0.99], E4M3FN, rounding="toward_zero")
    array([ 55, 183], dtype=uint8)
    >>> generator = np.random.default_rng(0)
    >>> codes = encode(np.full(1000, 1.03125), E4M3FN, rounding="stochastic", rng=generator)
    >>> int(codes.min()), int(codes.max())  # a quarter of the way from 1 to 1.125
    (56, 57)
    """
    values = np.asarray(x)
    if rounding not in _ROUNDINGS:
        raise ValueError(f"rounding: expected one of {', '.join(_ROUNDINGS)}, found {rounding!r}")
    source = _source(values.dtype)
    if source == "bfloat16":
        values = values.view(np.uint16)
    if isinstance(fmt, IntFormat):
        if rounding != "nearest":
            raise ValueError(f"rounding: expected 'nearest' for {fmt}, found {rounding!r}")
        kernel = _widened(integer_kernel(fmt, saturate), source)
    elif rounding == "stochastic":
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: expected a numpy.random.Generator, found {type(rng).__name__}")
        kernel = _widened(stochastic_kernel(fmt, saturate, rng), source)
        # In C order and on one thread, so that each element gets the bits it is due.
        return apply_chunkwise(kernel, values, fmt.code_dtype, out=out, order="C")
    else:
        kernel = table_encoder(fmt, saturate, rounding, source)
    return apply_chunkwise(kernel, values, fmt.code_dtype, out=out, threads=threads)


def encode_bfloat16(
    bits: npt.ArrayLike,
    fmt: FloatFormat,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    out: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """Encode bfloat16 numbers given as their 16 bits; see :func:`encode`.

    Parameters
    ----------
    bits : array_like of uint16
        bfloat16 bit patterns.
    fmt : FloatFormat
    saturate, out, threads
        As in :func:`encode`.
    rounding : {"nearest", "toward_zero"}

    Returns
    -------
    ndarray of uint8, of the shape of ``bits``

    Raises
    ------
    TypeError
        If ``bits`` is not uint16.
    ValueError
        As :func:`encode`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, encode_bfloat16
    >>> encode_bfloat16(np.uint16([0x3F80, 0xC000]), E4M3FN)  # 1 and -2
    array([ 56, 192], dtype=uint8)
    """
    patterns = np.asarray(bits)
    if patterns.dtype != np.uint16:
        raise TypeError(f"bfloat16 bits: expected uint16, found {patterns.dtype}")
    if rounding not in _ROUNDINGS[:2]:
        expected = " or ".join(_ROUNDINGS[:2])
        raise ValueError(f"rounding: expected {expected} for bits, found {rounding!r}")
    kernel = table_encoder(fmt, saturate, rounding, "bfloat16")
    return apply_chunkwise(kernel, patterns, fmt.code_dtype, out=out, threads=threads)


def decode(
    codes: npt.ArrayLike,
    fmt: Format,
    dtype: npt.DTypeLike = np.float32,
    *,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Return the values of 8-bit codes; exact.

    Parameters
    ----------
    codes : array_like of uint8 (int8 for INT8)
        Codes, of any shape and memory layout.
    fmt : FloatFormat or IntFormat
        Their format.
    dtype : dtype
        float32 (default), float64, or any float dtype, of either byte order, that
        holds every value of the format exactly (float16 does for E4M3FN, E5M2
        and the integers); ml_dtypes' bfloat16 too, for whose bits see
        :func:`decode_bfloat16`.
    out : ndarray of ``dtype``, optional
        Where to put the values; of the shape of ``codes``, in any layout.
    threads : int
        Threads that share the work on a large array.

    Returns
    -------
    ndarray of ``dtype``, of the shape of ``codes``
        ``out``, or a new array in the memory layout of ``codes``. NaN codes
        become the positive quiet NaN.

    Raises
    ------
    TypeError
        If ``codes`` has another dtype, ``dtype`` is no float's or cannot hold the
        values, or ``out`` is not as said.
    ValueError
        If a code has more bits than the format.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, decode
    >>> decode(np.uint8([0x38, 0x7E, 0xFF]), E4M3FN)
    array([  1., 448.,  nan], dtype=float32)
    """
    return values_of(_checked(codes, fmt), fmt, np.dtype(dtype), out, threads)


def decode_bfloat16(
    codes: npt.ArrayLike,
    fmt: Format,
    *,
    out: npt.NDArray[np.uint16] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint16]:
    """Return the values of 8-bit codes as the 16 bits of bfloat16 numbers; exact.

    Parameters
    ----------
    codes, fmt, threads
        As in :func:`decode`.
    out : ndarray of uint16, optional
        Where to put the bits; of the shape of ``codes``, in any layout.

    Returns
    -------
    ndarray of uint16, of the shape of ``codes``

    Raises
    ------
    TypeError, ValueError
        As :func:`decode`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, decode_bfloat16
    >>> [hex(bits) for bits in decode_bfloat16(np.uint8([0x38, 0xC0]), E4M3FN).tolist()]
    ['0x3f80', '0xc000']
    """
    return values_of(_checked(codes, fmt), fmt, None, out, threads)


def _checked(codes: npt.ArrayLike, fmt: Format) -> Array:
    """The codes as an array, known to be the format's."""
    patterns = np.asarray(codes)
    if patterns.dtype != fmt.code_dtype:
        raise TypeError(f"{fmt} codes: expected {fmt.code_dtype}, found {patterns.dtype}")
    if fmt.values.size < 256 and patterns.max(initial=0) >= fmt.values.size:
        raise ValueError(f"{fmt} codes: expected 0..{fmt.values.size - 1}, found {patterns.max()}")
    return patterns


@lru_cache(maxsize=64)
def _source(dtype: np.dtype[Any]) -> str:
    """How an input is read: as float16, as bfloat16, or by way of float32."""
    if is_bfloat16(dtype):
        return "bfloat16"
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise TypeError(
            f"encode: expected float16, bfloat16, float32, float64 or integers, found {dtype}"
        )
    return "float16" if dtype.kind == "f" and dtype.itemsize == 2 else "float32"


def _widened(kernel: Kernel, source: str) -> Kernel:
    """A kernel for float32 and wider, applied to a source; the widening is exact."""
    if source == "bfloat16":
        return lambda x, codes: kernel(from_bits(x), codes)
    if source == "float16":
        return lambda x, codes: kernel(quietly(x, np.float32), codes)
    return kernel

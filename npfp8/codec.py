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

from npfp8.arrays import Float64Array
from npfp8.bfloat16 import from_bits, to_bits
from npfp8.formats import FloatFormat, Format, IntFormat
from npfp8.lookup import Kernel, apply_chunkwise, lookup, require_array, table_kernel
from npfp8.rounding import float64_to_float32, integer_to_float64

__all__ = ["codes_of", "decode", "decode_bfloat16", "encode", "encode_bfloat16"]

_ROUNDINGS = ("nearest", "toward_zero", "stochastic")


def encode(
    x: npt.ArrayLike,
    fmt: Format,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    out: npt.NDArray[Any] | None = None,
    threads: int = 1,
) -> npt.NDArray[Any]:
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
        kernel = _widened(_integer_kernel(fmt, saturate), source)
    elif rounding == "stochastic":
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng: expected a numpy.random.Generator, found {type(rng).__name__}")
        kernel = _widened(_stochastic_kernel(fmt, saturate, rng), source)
        # In C order and on one thread, so that each element gets the bits it is due.
        return apply_chunkwise(kernel, values, fmt.code_dtype, out=out, order="C")
    else:
        kernel = _table_encoder(fmt, saturate, rounding, source)
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
    kernel = _table_encoder(fmt, saturate, rounding, "bfloat16")
    return apply_chunkwise(kernel, patterns, fmt.code_dtype, out=out, threads=threads)


def decode(
    codes: npt.ArrayLike,
    fmt: Format,
    dtype: npt.DTypeLike = np.float32,
    *,
    out: npt.NDArray[Any] | None = None,
    threads: int = 1,
) -> npt.NDArray[Any]:
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
    wanted = np.dtype(dtype)
    if not is_bfloat16(wanted):
        return _decoded(codes, fmt, wanted, out, threads)
    if out is None:
        return decode_bfloat16(codes, fmt, threads=threads).view(wanted)
    require_array("out", out, wanted)
    decode_bfloat16(codes, fmt, out=out.view(np.uint16), threads=threads)
    return out


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
    return _decoded(codes, fmt, None, out, threads)


def _decoded(
    codes: npt.ArrayLike,
    fmt: Format,
    dtype: np.dtype[Any] | None,
    out: npt.NDArray[Any] | None,
    threads: int,
) -> npt.NDArray[Any]:
    """The values of codes as a float dtype; as the bits of bfloat16 for None."""
    patterns = np.asarray(codes)
    if patterns.dtype != fmt.code_dtype:
        raise TypeError(f"{fmt} codes: expected {fmt.code_dtype}, found {patterns.dtype}")
    if fmt.values.size < 256 and patterns.max(initial=0) >= fmt.values.size:
        raise ValueError(f"{fmt} codes: expected 0..{fmt.values.size - 1}, found {patterns.max()}")
    return lookup(_value_table(fmt, dtype), patterns.view(np.uint8), out=out, threads=threads)


def codes_of(x: Float64Array, fmt: FloatFormat, saturate: bool, rounding: str) -> npt.NDArray[Any]:
    """Encode float64 numbers by searching the format's grid: slow, and the definition.

    Everything that :func:`encode` says of rounding to nearest and toward zero
    is said here in code, once. It makes the tables.

    Parameters
    ----------
    x : ndarray of float64
    fmt : FloatFormat
    saturate : bool
    rounding : {"nearest", "toward_zero"}

    Returns
    -------
    ndarray of uint8; 0 for a NaN where the format has none
    """
    magnitude = np.abs(x)
    grid = fmt.grid
    if rounding == "toward_zero":
        code = np.searchsorted(grid[:-1], magnitude, side="right") - 1
        code = np.maximum(code, 0)  # below the smallest value of a format without zero
        overflow = np.isinf(x)
    else:
        midpoints = (grid[:-1] + grid[1:]) / 2  # exact: one more bit than the grid's
        below = np.searchsorted(midpoints, magnitude, side="left")
        above = np.searchsorted(midpoints, magnitude, side="right")
        # `below` and `above` are equal but on a tie. The significand of `below`
        # counts steps to the value above it; the tie goes to the even one.
        significand = grid[:-1] / np.diff(grid)
        odd = np.append(significand % 2 == 1, False)
        code = np.where(odd[below], above, below)
        overflow = code > fmt.max_code
    return _signed_codes(code, x, overflow, fmt, saturate)


def _signed_codes(
    code: npt.NDArray[np.intp],
    x: npt.NDArray[Any],
    overflow: npt.NDArray[np.bool_],
    fmt: FloatFormat,
    saturate: bool,
) -> npt.NDArray[np.uint8]:
    """Complete the codes of magnitudes: overflow, sign and NaN."""
    negative, nan = np.signbit(x), np.isnan(x)
    nan_code, quiet = fmt.nan_code or 0, fmt.quiet_nan_code or 0
    too_large = fmt.max_code
    if not saturate:
        too_large = next(c for c in (fmt.infinity_code, fmt.quiet_nan_code, too_large) if c)
        if not fmt.has_zero:
            nan = nan | (x == 0)
    code = np.where(overflow, too_large, code)
    code[nan] = nan_code if saturate else quiet
    if fmt.signed:
        # Keep the sign bit off what it would change: a NaN as saturation has it,
        # and, where a NaN has the place of -0, zero and that NaN.
        keeps = ~nan if saturate else np.ones_like(nan)
        if fmt.sign_bit in fmt.nan_codes:
            keeps &= (code & (fmt.sign_bit - 1)) != 0
        code[negative & keeps] |= fmt.sign_bit
    else:
        below_range = negative & (x != 0) & ~nan
        code[below_range] = nan_code if saturate else quiet
    return code.astype(np.uint8)


@lru_cache(maxsize=64)
def _value_table(fmt: Format, dtype: np.dtype[Any] | None) -> npt.NDArray[Any]:
    """The value of each code, by the code's 8 bits, as a float dtype; None for bfloat16's bits.

    Raises TypeError if a value is not one of that dtype.
    """
    exact = np.resize(fmt.values, 256)
    is_float = dtype is None or dtype.kind == "f"
    with np.errstate(all="ignore"):
        if dtype is None:
            table = to_bits(exact.astype(np.float32))
            back = from_bits(table)
        else:
            table = back = exact.astype(dtype if is_float else np.float16)
    if not is_float or not np.array_equal(back.astype(np.float64), exact, equal_nan=True):
        name = "bfloat16" if dtype is None else dtype
        raise TypeError(
            f"decode: dtype {name} cannot hold every value of {fmt} exactly: expected a float "
            "dtype that does"
        )
    table.flags.writeable = False
    return table


@lru_cache(maxsize=64)
def _code_table(
    fmt: FloatFormat, saturate: bool, rounding: str, source: str
) -> npt.NDArray[np.uint8]:
    """The code of every bit pattern of a ``source`` type: float16, bfloat16, or float32's keys."""
    shift = fmt.key_shift if source == "float32" else 16
    keys = np.arange(1 << (32 - shift), dtype=np.uint32)
    if source == "float16":
        numbers = keys.astype(np.uint16).view(np.float16)
    else:
        numbers = (keys << np.uint32(shift)).view(np.float32)
    with np.errstate(invalid="ignore"):  # the table has signalling NaNs too
        table = codes_of(numbers.astype(np.float64), fmt, saturate, rounding)
    table.flags.writeable = False
    return table


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


def _table_encoder(fmt: FloatFormat, saturate: bool, rounding: str, source: str) -> Kernel:
    """The kernel that encodes chunks of a source by a table."""
    kernel = _table_kernel(fmt, saturate, rounding, source)
    if fmt.nan_code is not None:
        return kernel

    def strict(x: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        _refuse_nan(from_bits(x) if source == "bfloat16" else x, fmt)
        kernel(x, codes)

    return strict


@lru_cache(maxsize=256)
def _table_kernel(fmt: FloatFormat, saturate: bool, rounding: str, source: str) -> Kernel:
    """As :func:`_table_encoder`, without a look at NaN; equal formats share it, by any name."""
    if source == "float32":
        return _float32_kernel(fmt, saturate, rounding)
    find = table_kernel(_code_table(fmt, saturate, rounding, source))
    return lambda x, codes: find(x.view(np.uint16), codes)


def _float32_kernel(fmt: FloatFormat, saturate: bool, rounding: str) -> Kernel:
    """The kernel for float32, and for what is rounded to odd to float32 first."""
    find = table_kernel(_code_table(fmt, saturate, rounding, "float32"))
    shift = np.array(fmt.key_shift, np.uint32)
    low = np.array((1 << fmt.key_shift) - 1, np.uint32)

    def kernel(x: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        if x.dtype.kind != "f":
            x = integer_to_float64(x)
        if x.dtype != np.float32:
            x = float64_to_float32(x)
        bits = x.view(np.uint32)
        # To odd: adding `low` carries into the last bit kept if a low bit is set.
        keys = np.bitwise_and(bits, low)
        np.add(keys, low, keys)
        np.bitwise_or(keys, bits, keys)
        np.right_shift(keys, shift, keys)
        find(keys, codes)

    return kernel


def _widened(kernel: Kernel, source: str) -> Kernel:
    """A kernel for float32 and wider, applied to a source; the widening is exact."""
    if source == "bfloat16":
        return lambda x, codes: kernel(from_bits(x), codes)
    if source == "float16":
        return lambda x, codes: kernel(_quietly(x, np.float32), codes)
    return kernel


def _quietly(x: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """``x.astype(dtype)`` without a warning of signalling NaNs."""
    with np.errstate(invalid="ignore"):
        return x.astype(dtype)


def _stochastic_kernel(fmt: FloatFormat, saturate: bool, rng: np.random.Generator) -> Kernel:
    """Round toward zero, then up with the probability of the fraction cut off, exactly."""
    steps = np.diff(fmt.grid)

    def kernel(x: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        if x.dtype.itemsize == 8 and x.dtype.kind in "iu" and _exceeds(x, 1 << 53):
            raise ValueError("stochastic rounding: expected integers up to 2^53, found larger ones")
        exact = _quietly(x, np.float64)
        if fmt.nan_code is None:
            _refuse_nan(exact, fmt)
        magnitude = np.where(np.isfinite(exact), np.abs(exact), 0.0)
        code = codes_of(magnitude, fmt, True, "toward_zero").astype(np.intp)
        step = steps[code]
        # Exact: either the code is that of 0, or the number is between it and its double.
        rest = np.maximum(magnitude - fmt.grid[code], 0.0)
        up = rest >= step
        # Compare rest / step with a random number, 64 bits of both at a time, as
        # long as they are equal. All is exact: a product with 2^64, the quotient
        # by a power of two down to its integer, the remainder.
        undecided = np.arange(x.size)
        while undecided.size:
            scaled = rest[undecided] * 2.0**64
            digit = np.minimum(np.floor(scaled / step[undecided]), 2.0**64 - 2.0**11)
            rest[undecided] = np.fmod(scaled, step[undecided])
            drawn = rng.integers(0, 1 << 64, undecided.size, np.uint64)
            up[undecided] |= drawn < digit.astype(np.uint64)
            equal = drawn == digit.astype(np.uint64)
            undecided = undecided[equal & (rest[undecided] > 0) & ~up[undecided]]
        code += up
        overflow = (code > fmt.max_code) | np.isinf(exact)
        codes[...] = _signed_codes(code, exact, overflow, fmt, saturate)

    return kernel


def _integer_kernel(fmt: IntFormat, saturate: bool) -> Kernel:
    """Round to the nearest integer, ties to even, and saturate to the format's range."""

    def kernel(x: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        low, high = fmt.min_code, fmt.max_code
        if x.dtype.kind == "f":
            _refuse_nan(x, fmt)
            x = np.rint(x)
        elif x.dtype.kind in "iu":  # NumPy 2.0 refuses bounds beyond the type's own
            own = np.iinfo(x.dtype)
            low, high = max(low, own.min), min(high, own.max)
        clipped = np.clip(x, low, high)
        if not saturate and not np.array_equal(clipped, x):
            raise ValueError(
                f"encode: found a number outside {fmt}'s {fmt.min_code}..{fmt.max_code} "
                "with saturate=False"
            )
        codes[...] = clipped.astype(fmt.code_dtype)

    return kernel


def _refuse_nan(x: npt.NDArray[Any], fmt: Format) -> None:
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise ValueError(f"encode: found NaN, and {fmt} has no code for it")


def _exceeds(x: npt.NDArray[Any], limit: int) -> bool:
    return bool(x.max(initial=0) > limit or x.min(initial=0) < -limit)


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is ml_dtypes' bfloat16, told without importing ml_dtypes."""
    return dtype.itemsize == 2 and dtype.name == "bfloat16"

"""Encoding arrays to 8-bit codes and decoding them, exact to the last bit.

How encoding works
------------------
Rounding to an 8-bit float changes its result at the values of the format and at
the midpoints between them. These boundaries have few significant bits: as a
float32, the low 16 bits and the next one are 0 (:attr:`FloatFormat.key_shift`
checks this, and counts the bits for an unusual format). Reduce the input to the
bits above by *rounding to odd*: cut the low bits off and, if any of them was set,
set the last bit kept. This moves no input across a boundary or onto one (an odd
last bit is never a boundary), so the code of the reduced value is the code of
the exact input, rounded once. There are 65,536 reduced values: one table, made
from the format's description by :func:`codes_of`, holds all their codes. The
argument is that of Boldo and Melquiond, *Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd* (IEEE Transactions on Computers
57, 2008): rounding to odd first, with at least two bits more, makes the second
rounding innocuous.

float16 and bfloat16 inputs index tables of their own; float64 and integers are
first rounded to odd to float32. Decoding looks up two codes at a time.

``docs/codec.md`` has the derivation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import (
    array_of,
    choice,
    dtype_of,
    flag,
    integer,
    require,
    wrong_array,
    wrong_type,
)
from npfp8.arrays import Array, Kernels, apply_chunkwise
from npfp8.bfloat16 import from_bits, is_bfloat16
from npfp8.codec.definition import (
    ROUNDINGS,
    codes_of,
    given_bits_kernel,
    integer_kernel,
    quietly,
    stochastic_kernel,
)
from npfp8.codec.tables import checked_codes, table_encoder, values_of
from npfp8.formats import FloatFormat, Format, IntFormat, as_float_format, as_format

__all__ = [
    "ROUNDINGS",
    "check_random",
    "codes_of",
    "decode",
    "decode_bfloat16",
    "encode",
    "encode_bfloat16",
]

_OVERFLOWS = ("ieee", "special")


def encode(
    x: npt.ArrayLike,
    fmt: Format | str,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    overflow: str = "ieee",
    rng: np.random.Generator | None = None,
    random_bits: npt.ArrayLike | None = None,
    bit_count: int | None = None,
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
    fmt : FloatFormat, IntFormat or str
        The format of the codes, or its name (:func:`npfp8.formats.as_format`).
    saturate : bool
        True, as ``cvt.rn.satfinite`` of the PTX ISA: numbers beyond the largest
        finite value, and infinities, become that value with their sign; every NaN
        becomes :attr:`FloatFormat.nan_code` (0x7F in E4M3FN and E5M2), whatever
        its sign.

        False, as ``ml_dtypes``: a number that rounds beyond the largest finite
        value becomes infinity; if the format has no infinity, a NaN with the
        input's sign; if it has no NaN either, the largest value. (Other roundings than
        to nearest may give the largest value: see ``overflow``.) A NaN keeps its
        sign and becomes :attr:`FloatFormat.quiet_nan_code` (E5M2: 0x7E or 0xFE).
        The tie above the largest value goes to the even significand: 464 is 448 in
        E4M3FN, 61440 is infinity in E5M2.

        An IntFormat always saturates; with False, a number beyond its range is
        an error.
    rounding : str
        One of :data:`npfp8.ROUNDINGS`:

        - "nearest", "nearest_away", "nearest_toward_zero": to the nearest value, and on a
          tie to the even significand, away from zero, or toward zero;
        - "toward_zero": to the nearest value that is not larger in magnitude;
        - "up", "down": to the nearest value that is not smaller, or not larger, than the
          number. A number that becomes zero keeps its sign;
        - "odd": toward zero, and then, if anything was cut off, to the odd one of the two
          neighbouring significands;
        - "stochastic": away from zero with a probability, otherwise toward zero; see ``rng``
          and ``random_bits``. Not for IntFormats.
    overflow : {"ieee", "special"}
        What an overflow becomes with ``saturate=False``. A number overflows if it would be
        rounded beyond the largest finite value, were there larger exponents.

        "ieee", as IEEE 754-2019 has it (7.4): infinity (or the NaN that has its place) in the
        roundings to nearest; the largest finite value toward zero; in "up", infinity for a
        positive and the largest finite value for a negative number; in "down", the other way
        round. Of the roundings that IEEE 754 does not have, "odd" gives the largest finite
        value (as SoftFloat and RISC-V's vfncvt.rod), although its significand may be even;
        "stochastic" gives infinity or NaN.

        "special": infinity or NaN in every rounding. The conversion table of OFP8 (revision
        1.0, table 3) says so for the one rounding that it defines, to nearest; whether it holds
        for others is disputed (riscv-isa-sim, issue 2284; ``docs/codec.md``).

        An infinity is no overflow: it stays infinity (or becomes NaN) in every rounding.
    rng : numpy.random.Generator
        For stochastic rounding: away from zero with probability exactly
        ``(x - below) / (above - below)``. It draws 64 bits per element, in C order, and more
        for elements that these do not decide.
    random_bits : array_like of unsigned integers, optional
        For stochastic rounding that reproduces, instead of ``rng``: words, of the shape of
        ``x`` or broadcast to it, whose low ``bit_count`` bits decide. With ``n`` of them as an
        integer ``r``, a number is rounded away from zero if ``floor(f * 2^n) + r >= 2^n``,
        where ``f`` is the fraction ``(x - below) / (above - below)``: if adding the bits to the
        first ``n`` bits that are cut off carries. Of all ``2^n`` values of ``r``, exactly
        ``floor(f * 2^n)`` round away. :mod:`npfp8.random_bits` makes words as kernels do.
    bit_count : int, optional
        With ``random_bits``: ``n``, from 1 to the width of a word.
    out : ndarray of uint8 (int8 for INT8), optional
        The array for the codes, of the shape of ``x``, in any layout.
    threads : int
        The number of threads that share the work on a large array. The result does
        not depend on it.

    Returns
    -------
    ndarray of uint8 (int8 for INT8), of the shape of ``x``
        ``out``, or a new array in the memory layout of ``x``. A format without
        sign has no code for negative numbers: they become NaN, or code 0 if there
        is none. A format without zero (E8M0FNU) encodes 0 as its smallest value,
        with the sign of the 0, if it saturates or has no NaN, and otherwise as a
        NaN.

    Raises
    ------
    TypeError
        If ``x`` is not of one of the dtypes above, or another argument is not of the
        type stated.
    ValueError
        If ``x`` has a NaN and ``fmt`` has no code for it (an IntFormat, or the
        formats of fewer than 8 bits); a number is beyond an IntFormat's range
        with ``saturate=False``; a format, a rounding or an ``overflow`` is unknown;
        ``overflow`` is "special" for an IntFormat or with saturation; integers beyond
        2^53 are to be rounded stochastically; or ``rng``, ``random_bits`` and ``bit_count``
        do not go together, or not with the rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, E5M2, encode
    >>> encode([0.0, 1.0, -1.0, 448.0, 1e9], E4M3FN)
    array([  0,  56, 184, 126, 126], dtype=uint8)
    >>> encode(np.float32([464.0, 464.1]), "E4M3FN", saturate=False)
    array([126, 127], dtype=uint8)
    >>> encode([0.99, -0.99], E4M3FN, rounding="toward_zero")
    array([ 55, 183], dtype=uint8)
    >>> generator = np.random.default_rng(0)
    >>> codes = encode(np.full(1000, 1.03125), E4M3FN, rounding="stochastic", rng=generator)
    >>> int(codes.min()), int(codes.max())  # a quarter of the way from 1 to 1.125
    (56, 57)
    >>> four_bits = np.uint8([3, 11, 12, 15])  # 4 / 16 of the way, plus 12 / 16 and more: up
    >>> x = np.full(4, 1.03125)
    >>> encode(x, E4M3FN, rounding="stochastic", random_bits=four_bits, bit_count=4)
    array([56, 56, 57, 57], dtype=uint8)
    >>> [encode(1e9, "E5M2", False, rounding=how).item() for how in ("nearest", "toward_zero")]
    [124, 123]
    >>> encode(1e9, "E5M2", False, rounding="toward_zero", overflow="special").item()
    124
    """
    fmt = as_format(fmt)
    values = array_of("x", x)
    source = _source(values.dtype)
    if not source:
        expected = "float16, bfloat16, float32, float64 or integers"
        raise wrong_array("x", expected, values, x)
    if source == "bfloat16":
        values = values.view(np.uint16)
    how = _checked(fmt, saturate, rounding, overflow)
    return _encoded(values, source, how, rng, random_bits, bit_count, out, threads)


def encode_bfloat16(
    bits: npt.ArrayLike,
    fmt: FloatFormat | str,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    overflow: str = "ieee",
    rng: np.random.Generator | None = None,
    random_bits: npt.ArrayLike | None = None,
    bit_count: int | None = None,
    out: npt.NDArray[np.uint8] | None = None,
    threads: int = 1,
) -> npt.NDArray[np.uint8]:
    """Encode bfloat16 numbers given as their 16 bits; see :func:`encode`.

    Parameters
    ----------
    bits : array_like of uint16
        bfloat16 bit patterns.
    fmt : FloatFormat or str
        The format of the codes, or its name.
    saturate, rounding, overflow, rng, random_bits, bit_count, out, threads
        As in :func:`encode`.

    Returns
    -------
    ndarray of uint8, of the shape of ``bits``

    Raises
    ------
    TypeError
        If ``bits`` is not uint16, or another argument is not of the type stated.
    ValueError
        As :func:`encode`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, encode_bfloat16
    >>> encode_bfloat16(np.uint16([0x3F80, 0xC000]), E4M3FN)  # 1 and -2
    array([ 56, 192], dtype=uint8)
    """
    fmt = as_float_format(fmt)
    patterns = array_of("bits", bits, np.uint16)
    how = _checked(fmt, saturate, rounding, overflow)
    return _encoded(patterns, "bfloat16", how, rng, random_bits, bit_count, out, threads)


def decode(
    codes: npt.ArrayLike,
    fmt: Format | str,
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
    fmt : FloatFormat, IntFormat or str
        Their format, or its name.
    dtype : dtype
        float32 (default), float64, or any float dtype, of either byte order, that
        holds every value of the format exactly (float16 does for E4M3FN, E5M2
        and the integers); also ml_dtypes' bfloat16. :func:`decode_bfloat16` returns
        the bits of bfloat16.
    out : ndarray of ``dtype``, optional
        The array for the values, of the shape of ``codes``, in any layout.
    threads : int
        The number of threads that share the work on a large array.

    Returns
    -------
    ndarray of ``dtype``, of the shape of ``codes``
        ``out``, or a new array in the memory layout of ``codes``. NaN codes
        become the positive quiet NaN.

    Raises
    ------
    TypeError
        If ``codes`` has another dtype; ``dtype`` is not a float dtype, or cannot hold
        the values; or another argument is not of the type stated.
    ValueError
        If a code has more bits than the format, or no format has the name.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, decode
    >>> decode(np.uint8([0x38, 0x7E, 0xFF]), E4M3FN)
    array([  1., 448.,  nan], dtype=float32)
    """
    fmt = as_format(fmt)
    kind = dtype_of("dtype", dtype, "a float dtype")
    return values_of(checked_codes(codes, fmt), fmt, kind, out, threads)


def decode_bfloat16(
    codes: npt.ArrayLike,
    fmt: Format | str,
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
        The array for the bits, of the shape of ``codes``, in any layout.

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
    fmt = as_format(fmt)
    return values_of(checked_codes(codes, fmt), fmt, None, out, threads)


class _How(NamedTuple):
    """The checked arguments of an encoder that are not arrays."""

    fmt: Format
    saturate: bool
    rounding: str
    overflow: str


def _checked(fmt: Format, saturate: bool, rounding: str, overflow: str) -> _How:
    """Return the arguments; raise unless they are known and go together."""
    saturate = flag("saturate", saturate)
    rounding = choice("rounding", rounding, ROUNDINGS)
    overflow = choice("overflow", overflow, _OVERFLOWS)
    integers = isinstance(fmt, IntFormat)
    if integers and rounding == "stochastic":
        expected = " or ".join(map(repr, ROUNDINGS[:-1]))
        raise ValueError(f"rounding: expected {expected} for {fmt}, found {rounding!r}")
    if overflow != "ieee" and (integers or saturate):
        why = f"for {fmt}" if integers else "with saturate=True"
        raise ValueError(f"overflow: expected 'ieee' {why}, found {overflow!r}")
    return _How(fmt, saturate, rounding, overflow)


def _encoded(
    values: Array,
    source: str,
    how: _How,
    rng: np.random.Generator | None,
    random_bits: npt.ArrayLike | None,
    bit_count: int | None,
    out: Array | None,
    threads: int,
) -> Array:
    """Encode values that are read as :func:`_source` has it."""
    fmt, dtype = how.fmt, how.fmt.code_dtype
    if random_bits is not None or bit_count is not None:
        words, count = _given_bits(how, rng, random_bits, bit_count, values.shape)
        assert isinstance(fmt, FloatFormat)
        kernel = _widened(given_bits_kernel(fmt, how.saturate, count), source)
        return apply_chunkwise(kernel, values, dtype, out=out, threads=threads, others=(words,))
    if isinstance(fmt, IntFormat):
        kernel = _widened(integer_kernel(fmt, how.saturate, how.rounding), source)
    elif how.rounding == "stochastic":
        if not isinstance(rng, np.random.Generator):
            raise wrong_type("rng", "a numpy.random.Generator", rng)
        integer("threads", threads)
        kernel = _widened(stochastic_kernel(fmt, how.saturate, rng), source)
        # In C order and on one thread, so that each element gets the bits it is due.
        return apply_chunkwise(kernel, values, dtype, out=out, order="C")
    else:
        kernel = table_encoder(fmt, how.saturate, how.rounding, source, how.overflow)
    return apply_chunkwise(kernel, values, dtype, out=out, threads=threads)


def check_random(rng: object, random_bits: Any, bit_count: object) -> None:
    """Raise TypeError unless the arguments of stochastic rounding are of their types, or None."""
    if rng is not None:
        require("rng", rng, np.random.Generator, "a numpy.random.Generator")
    if bit_count is not None:
        integer("bit_count", bit_count)
    if random_bits is not None:
        words = array_of("random_bits", random_bits)
        if words.dtype.kind != "u":
            raise wrong_array("random_bits", "unsigned integers", words, random_bits)


def _given_bits(
    how: _How,
    rng: object,
    random_bits: npt.ArrayLike | None,
    bit_count: int | None,
    shape: tuple[int, ...],
) -> tuple[Array, int]:
    """Return random bits of a shape, and how many count; raise if they are not to be used."""
    check_random(rng, random_bits, bit_count)
    if how.rounding != "stochastic":
        raise ValueError(
            f"random_bits: expected them with rounding='stochastic' only, found {how.rounding!r}"
        )
    if rng is not None:
        raise ValueError("rng: expected None with random_bits, found a generator")
    if bit_count is None:
        raise ValueError("bit_count: expected the number of random bits that count, found None")
    if random_bits is None:
        raise ValueError("random_bits: expected an array with bit_count, found None")
    words = np.asarray(random_bits)
    width, count = 8 * words.dtype.itemsize, integer("bit_count", bit_count)
    if not 1 <= count <= width:
        raise ValueError(f"bit_count: expected 1 to {width} for {words.dtype} bits, found {count}")
    try:
        return np.broadcast_to(words, shape), count
    except ValueError:
        raise ValueError(
            f"random_bits: expected shape {shape}, or one that broadcasts to it, found "
            f"{words.shape}"
        ) from None


@lru_cache(maxsize=64)
def _source(dtype: np.dtype[Any]) -> str:
    """Return how an input is read: as float16, bfloat16 or float32; empty if it is not."""
    if is_bfloat16(dtype):
        return "bfloat16"
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        return ""
    return "float16" if dtype.kind == "f" and dtype.itemsize == 2 else "float32"


def _widened(kernel: Kernels, source: str) -> Kernels:
    """Return a kernel that widens a source exactly, and applies a kernel for float32 or wider."""
    if source == "bfloat16":
        return lambda x, *rest: kernel(from_bits(x), *rest)
    if source == "float16":
        return lambda x, *rest: kernel(quietly(x, np.float32), *rest)
    return kernel

"""The cases of the test vectors: inputs at and around every boundary, and the right results."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, named
from npfp8.boundaries import boundary_bits
from npfp8.formats import FloatFormat, as_float_format
from npfp8.vectors.flags import NAN, flags_of, fractions
from npfp8.vectors.modes import DECODE, MODES
from npfp8.vectors.sources import SOURCES, Bits, Source

__all__ = ["Vectors", "boundary_inputs", "make_vectors"]


@dataclass(frozen=True, eq=False, repr=False)
class Vectors:
    """Test vectors of a format, a mode and a float type.

    Attributes
    ----------
    fmt : FloatFormat
    mode, source : str
        Keys of :data:`MODES`, or "decode", and of :data:`SOURCES`. Decoding, ``source`` is the
        type of the results.
    inputs : ndarray of uint32, uint16 or uint8
        The bits of the inputs: numbers, or codes to decode.
    expected : ndarray of uint8, uint16 or uint32
        The expected codes, or the bits of the expected numbers.
    third : ndarray of uint8, uint16 or uint32
        The last column: flags, or the results of an implementation.
    column : {"flags", "found"}
        The meaning of the last column.
    random_bits : ndarray of uint16, optional
        The random bits of each case, in stochastic rounding.

    Examples
    --------
    >>> from npfp8.vectors import make_vectors
    >>> make_vectors("E4M3FN", "nearest", "bfloat16")
    <Vectors E4M3FN-nearest-bfloat16.txt: 3118 cases, flags>
    """

    fmt: FloatFormat
    mode: str
    source: str
    inputs: Bits
    expected: Bits
    third: Bits
    column: str = "flags"
    random_bits: Bits | None = None

    def __repr__(self) -> str:
        return f"<Vectors {self.name}: {self.inputs.size} cases, {self.column}>"

    @property
    def stem(self) -> str:
        """The name of the file without its suffix.

        Examples
        --------
        >>> from npfp8.vectors import make_vectors
        >>> make_vectors("E5M2", "decode", "float16").stem
        'E5M2-decode-float16'
        """
        return f"{self.fmt}-{self.mode}-{self.source}"

    @property
    def name(self) -> str:
        """The name of the file in the form of text.

        Examples
        --------
        >>> from npfp8.vectors import make_vectors
        >>> make_vectors("E5M2", "decode", "float16").name
        'E5M2-decode-float16.txt'
        """
        return f"{self.stem}.txt"

    @property
    def codes(self) -> npt.NDArray[np.uint8]:
        """The codes of the format: those expected, or those to decode.

        Examples
        --------
        >>> from npfp8.vectors import make_vectors
        >>> make_vectors("E5M2", "decode", "float16").codes.size
        256
        """
        return self.inputs if self.mode == DECODE else self.expected


def boundary_inputs(fmt: FloatFormat | str, source: str) -> Bits:
    """Return the inputs of the test vectors, as bits of the source, ascending.

    They are every value of the format and every midpoint, numbers beyond the range, the
    numbers before and after each; values and midpoints moved by less than the last bit of
    bfloat16 and of float16; the eighths between neighbouring values; and the special values
    of the source (NaNs only if the format has one), with both signs.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.
    source : str
        A key of :data:`SOURCES`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the format or the source is unknown.

    Examples
    --------
    >>> from npfp8.vectors import boundary_inputs
    >>> inputs = boundary_inputs("E4M3FN", "float32")
    >>> 0x43E80000 in inputs.tolist()  # 464, the overflow threshold
    True
    """
    fmt, kind = as_float_format(fmt), named("source", source, SOURCES)
    bits = boundary_bits(fmt, kind.mantissa_bits, kind.infinity, kind.from_float64)
    if fmt.nan_code is not None:
        one = 1 << kind.mantissa_bits
        quiet = one >> 1
        nans = kind.infinity + np.array([1, quiet - 1, quiet, quiet + 1, one - 1])
        bits = np.concatenate([bits, nans])
    sign = 1 << (8 * kind.bits.itemsize - 1)
    return np.unique(np.concatenate([bits, bits + sign])).astype(kind.bits)


def make_vectors(fmt: FloatFormat | str, mode: str, source: str) -> Vectors:
    """Make the test vectors of a format, a mode and a float type.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.
    mode, source : str
        Keys of :data:`MODES`, or "decode", and of :data:`SOURCES`, in any case.

    Raises
    ------
    ValueError
        If the format, the mode or the source is unknown, or the source has no number for a
        value of the format that is to be decoded.

    Examples
    --------
    >>> from npfp8 import E4M3FN
    >>> from npfp8.vectors import make_vectors
    >>> vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    >>> case = list(vectors.inputs).index(0x43E80000)  # 464, a tie
    >>> hex(vectors.codes[case]), hex(vectors.third[case])
    ('0x7e', '0x1')
    >>> hex(make_vectors(E4M3FN, "decode", "float16").expected[0x7E])  # 448
    '0x5f00'
    """
    fmt = as_float_format(fmt)
    mode, source = choice("mode", mode, (*MODES, DECODE)), choice("source", source, SOURCES)
    kind = SOURCES[source]
    if mode == DECODE:
        return _decoded(fmt, source)
    how = MODES[mode]
    inputs, random_bits, rest = boundary_inputs(fmt, source), None, {}
    if how.bit_count is not None:
        inputs, random_bits = _with_random_bits(inputs, kind, fmt, how.bit_count)
        rest = {"random_bits": random_bits, "bit_count": how.bit_count}
    codes = kind.encode(
        inputs, fmt, how.saturate, rounding=how.rounding, overflow=how.overflow, **rest
    )
    flags = flags_of(kind.exact(inputs), codes, fmt, how, random_bits)
    return Vectors(fmt, mode, source, inputs, codes, flags, random_bits=random_bits)


def _decoded(fmt: FloatFormat, source: str) -> Vectors:
    kind = SOURCES[source]
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    if not kind.holds(fmt):
        raise ValueError(f"source: expected a type with every value of {fmt}, found {source!r}")
    flags = np.where(np.isnan(fmt.values), np.uint8(NAN), np.uint8(0))
    return Vectors(fmt, DECODE, source, codes, kind.decode(codes, fmt), flags)


def _with_random_bits(
    inputs: Bits, kind: Source, fmt: FloatFormat, count: int
) -> tuple[Bits, Bits]:
    """Repeat each input with no random bit set, all set, the fewest that carry, and one less."""
    fraction, _ = fractions(kind.exact(inputs), fmt, count)
    ones = (1 << count) - 1
    least = np.minimum((1 << count) - fraction, ones)
    choices = [np.zeros_like(least), np.maximum(least - 1, 0), least, np.full_like(least, ones)]
    # One integer per pair, as inputs have at most 32 bits and random bits at most 16.
    pairs = np.unique(np.tile(inputs.astype(np.int64), 4) << 16 | np.concatenate(choices))
    return (pairs >> 16).astype(inputs.dtype), (pairs & 0xFFFF).astype(np.uint16)

"""Test vectors of the codec in files: for hardware, simulators and kernels without Python.

A file has the cases of one format, one mode and one float type. In the direction *encode* the
cases are every number at which the rounding changes its result and the numbers next to it, the
overflow threshold, subnormals, zeros, infinities and NaNs; in the direction *decode* they are all
codes. Comment lines state the rules. They are followed by one case per line, in hexadecimal, like
TestFloat's::

    43E80000 7E 01

These are the bits of the input, the code, and flags; in stochastic rounding the random bits follow
the input. An implementation under test reads the input and writes its results in place of the
flags; :func:`check_results` checks such a file. The files are the same on every machine, and have
three written forms: text, memory files for ``$readmemh``, and C headers
(:mod:`npfp8.vector_text`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, named, path_of, require, require_iterable
from npfp8.arrays import Array, Float64Array
from npfp8.bfloat16 import from_bits, round_to_bfloat16, to_bits
from npfp8.boundaries import boundary_bits
from npfp8.codec import decode, decode_bfloat16, encode, encode_bfloat16
from npfp8.files import open_regular, replaced_file
from npfp8.formats import FLOAT_FORMATS, FloatFormat, as_float_format
from npfp8.mistakes import Explanation, differing, explain_codes
from npfp8.mistakes.decoders import explain_values
from npfp8.vector_text import FORMS, Column, read_memory, read_text

__all__ = [
    "DECODE",
    "DEFAULT_MODES",
    "MODES",
    "SOURCES",
    "VectorReport",
    "Vectors",
    "boundary_inputs",
    "check_results",
    "format_vectors",
    "make_vectors",
    "read_vectors",
    "write_all_vectors",
]

Bits = npt.NDArray[np.unsignedinteger[Any]]

_TITLE = "npfp8 test vectors 2"

#: Bytes of a file that are still read; the largest of the test vectors has less than a fourth.
_MAX_BYTES = 1 << 24

#: Flags of a case: they describe it, and are not checked.
INEXACT, UNDERFLOW, OVERFLOW, NAN = 0x01, 0x02, 0x04, 0x10

#: The mode of the direction from codes to numbers, which is exact: there is one.
DECODE = "decode"


class Mode(NamedTuple):
    """Arguments of :func:`npfp8.encode`, and their meaning in words."""

    saturate: bool
    rounding: str
    rule: str
    overflow: str = "ieee"
    bit_count: int | None = None


_ROUNDINGS = {
    "nearest": "to the nearest value, ties to the even significand",
    "nearest_away": "to the nearest value, ties away from zero",
    "nearest_toward_zero": "to the nearest value, ties toward zero",
    "toward_zero": "to the nearest value not larger in magnitude",
    "up": "to the nearest value not smaller (toward +infinity)",
    "down": "to the nearest value not larger (toward -infinity)",
    "odd": "an inexact number to the neighbouring value with the odd significand",
    "stochastic": "away from zero if the first {n} bits cut off plus the {n} random bits carry, "
    "else toward zero",
}
_SATURATING = "what lies beyond the largest finite value, infinity included, becomes that value"
_SPECIAL = (
    "what rounds beyond the largest finite value becomes infinity, NaN in a format without, the "
    "largest value in one with neither"
)
_IEEE = {
    "toward_zero": "a finite number beyond the largest finite value becomes that value",
    "odd": "a finite number beyond the largest finite value becomes that value",
    "up": "a finite number beyond the largest finite value becomes that value if it is negative, "
    "and infinity if it is positive",
    "down": "a finite number beyond the largest finite value becomes that value if it is "
    "positive, and -infinity if it is negative",
}


def _modes() -> Iterator[tuple[str, Mode]]:
    """List the modes: first those of the files that are written by default."""

    def mode(rounding: str, end: str, saturate: bool, overflow: str = "ieee") -> Mode:
        return Mode(saturate, rounding, f"{_ROUNDINGS[rounding]}; {end}", overflow)

    yield "nearest-saturating", mode("nearest", _SATURATING, True)
    yield "nearest", mode("nearest", _SPECIAL, False)
    yield "toward-zero", mode("toward_zero", _SATURATING, True)
    for rounding in ("nearest_away", "nearest_toward_zero"):
        name = rounding.replace("_", "-")
        yield f"{name}-saturating", mode(rounding, _SATURATING, True)
        yield name, mode(rounding, _SPECIAL, False)
    infinite = "infinity stays infinity (NaN in a format without)"
    for rounding in ("toward_zero", "up", "down", "odd"):
        name = rounding.replace("_", "-")
        if rounding != "toward_zero":
            yield f"{name}-saturating", mode(rounding, _SATURATING, True)
        yield f"{name}-ieee", mode(rounding, f"{_IEEE[rounding]}; {infinite}", False)
        yield f"{name}-special", mode(rounding, _SPECIAL, False, "special")
    for count in (8, 13, 16):
        start = _ROUNDINGS["stochastic"].format(n=count)
        for end, saturate in (("-saturating", True), ("", False)):
            rule = f"{start}; {_SATURATING if saturate else _SPECIAL}"
            yield f"stochastic-{count}{end}", Mode(saturate, "stochastic", rule, "ieee", count)


#: The rounding modes, by their part of a file's name.
MODES: Mapping[str, Mode] = MappingProxyType(dict(_modes()))

#: The modes that are written unless others are asked for.
DEFAULT_MODES = (*list(MODES)[:3], DECODE)


class Source(NamedTuple):
    """A float type: the dtype of its bits, and the parts of its special values."""

    bits: np.dtype[Any]
    infinity: int
    mantissa_bits: int
    to_float: Callable[[Bits], Array]
    from_float64: Callable[[Float64Array], Bits]
    encode: Callable[..., npt.NDArray[np.uint8]]
    decode: Callable[[npt.NDArray[np.uint8], FloatFormat], Bits]

    @property
    def smallest(self) -> float:
        """The smallest positive normal number."""
        one = np.array([1 << self.mantissa_bits], self.bits)
        return float(self.to_float(one)[0])


def _encode_floats(dtype: type[Any]) -> Callable[..., npt.NDArray[np.uint8]]:
    return lambda bits, *rest, **how: encode(bits.view(dtype), *rest, **how)


#: The float types, by name.
SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "float32": Source(
            np.dtype(np.uint32),
            0x7F800000,
            23,
            lambda bits: bits.view(np.float32),
            lambda x: x.astype(np.float32).view(np.uint32),
            _encode_floats(np.float32),
            lambda codes, fmt: decode(codes, fmt).view(np.uint32),
        ),
        "float16": Source(
            np.dtype(np.uint16),
            0x7C00,
            10,
            lambda bits: bits.view(np.float16),
            lambda x: x.astype(np.float16).view(np.uint16),
            _encode_floats(np.float16),
            lambda codes, fmt: decode(codes, fmt, np.float16).view(np.uint16),
        ),
        "bfloat16": Source(
            np.dtype(np.uint16),
            0x7F80,
            7,
            from_bits,
            lambda x: to_bits(round_to_bfloat16(x)),
            encode_bfloat16,
            decode_bfloat16,
        ),
    }
)


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


@dataclass(frozen=True)
class VectorReport:
    """The result of the comparison of a results file.

    Attributes
    ----------
    name : str
        ``FORMAT-MODE-SOURCE.txt``.
    cases, wrong : int
    first : str
        The first wrong case in words, or "".
    cause : str
        The one usual mistake that explains every result found, or "".
    partial : str
        If none does: the mistake that explains most of the wrong cases, or "".
    explained : int
        The number of wrong cases that ``cause``, or ``partial``, explains.
    contradicted : int
        The number of right cases that would be wrong with ``partial``.

    Examples
    --------
    >>> from npfp8.vectors import VectorReport
    >>> VectorReport("E4M3FN-nearest-bfloat16.txt", cases=3118, wrong=0).wrong
    0
    """

    name: str
    cases: int
    wrong: int
    first: str = ""
    cause: str = ""
    partial: str = ""
    explained: int = 0
    contradicted: int = 0

    def explanation(self) -> str:
        """Return the cause, or how much the most likely mistake explains; "" if nothing does.

        Examples
        --------
        >>> from npfp8.vectors import VectorReport
        >>> VectorReport("...", 3118, 7, partial="truncation", explained=4).explanation()
        'truncation explains 4 of 7 wrong cases'
        """
        explained = self.explained, self.contradicted
        return Explanation(self.wrong, self.cause, self.partial, *explained).text()


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
    flags = _flags(_exact(inputs, kind), codes, fmt, how, random_bits)
    return Vectors(fmt, mode, source, inputs, codes, flags, random_bits=random_bits)


def _exact(bits: Bits, kind: Source) -> Float64Array:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        return kind.to_float(bits).astype(np.float64)


def _decoded(fmt: FloatFormat, source: str) -> Vectors:
    kind = SOURCES[source]
    codes = np.arange(fmt.values.size, dtype=np.uint8)
    if not _holds(kind, fmt):
        raise ValueError(f"source: expected a type with every value of {fmt}, found {source!r}")
    flags = np.where(np.isnan(fmt.values), np.uint8(NAN), np.uint8(0))
    return Vectors(fmt, DECODE, source, codes, kind.decode(codes, fmt), flags)


def _holds(kind: Source, fmt: FloatFormat) -> bool:
    """Check whether a float type has every value of a format."""
    with np.errstate(over="ignore", under="ignore"):
        narrow = _exact(kind.from_float64(fmt.values), kind)
    return np.array_equal(narrow, fmt.values, equal_nan=True)


def _with_random_bits(
    inputs: Bits, kind: Source, fmt: FloatFormat, count: int
) -> tuple[Bits, Bits]:
    """Repeat each input with no random bit set, all set, the fewest that carry, and one less."""
    fraction, _ = _fractions(_exact(inputs, kind), fmt, count)
    ones = (1 << count) - 1
    least = np.minimum((1 << count) - fraction, ones)
    choices = [np.zeros_like(least), np.maximum(least - 1, 0), least, np.full_like(least, ones)]
    pairs = np.stack([np.tile(inputs.astype(np.int64), 4), np.concatenate(choices)], axis=1)
    pairs = np.unique(pairs, axis=0)
    return pairs[:, 0].astype(inputs.dtype), pairs[:, 1].astype(np.uint16)


def _fractions(
    x: Float64Array, fmt: FloatFormat, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the first bits that are cut off toward zero, and what lies beyond the range."""
    magnitude = np.where(np.isfinite(x), np.abs(x), 0.0)
    grid = fmt.grid
    below = np.clip(np.searchsorted(grid, magnitude, side="right") - 1, 0, fmt.max_code)
    part = (magnitude - grid[below]) / np.diff(grid)[below]  # exact: a division by a power of 2
    fraction = np.floor(np.clip(part, 0, 1 - 2.0**-53) * 2.0**count).astype(np.int64)
    return fraction, part >= 1


def _flags(
    x: Float64Array, codes: npt.NDArray[np.uint8], fmt: FloatFormat, how: Mode, bits: Bits | None
) -> npt.NDArray[np.uint8]:
    values = fmt.values[codes]
    nan = np.isnan(x)
    inexact = (values != x) & ~nan
    overflow = _overflows(x, fmt, how, bits) & inexact
    underflow = inexact & (np.abs(values) < fmt.min_normal)
    flags = INEXACT * inexact + UNDERFLOW * underflow + OVERFLOW * overflow + NAN * nan
    return flags.astype(np.uint8)


def _overflows(
    x: Float64Array, fmt: FloatFormat, how: Mode, bits: Bits | None
) -> npt.NDArray[np.bool_]:
    """Return where a number rounds beyond the largest value, were there larger exponents."""
    last, beyond = fmt.grid[-2:]
    with np.errstate(invalid="ignore"):  # NaN
        part = (np.abs(x) - last) / (beyond - last)
    odd = bool(last / (beyond - last) % 2 == 1)
    up = {
        "nearest": (part > 0.5) | ((part == 0.5) & odd),
        "nearest_away": part >= 0.5,
        "nearest_toward_zero": part > 0.5,
        "toward_zero": np.zeros(x.shape, bool),
        "up": (part > 0) & (x > 0),
        "down": (part > 0) & (x < 0),
        "odd": (part > 0) & (not odd),
    }
    if bits is None:
        return up[how.rounding] | (part >= 1)
    assert how.bit_count is not None
    fraction, whole = _fractions(x, fmt, how.bit_count)
    carries = fraction + bits.astype(np.int64) >= 1 << how.bit_count
    return (part >= 1) | (whole | carries) & (part > 0)


# Files


def _widths(vectors: Vectors | None, mode: str, source: str, column: str) -> dict[str, int]:
    """Return the columns of a file, and their bits."""
    wide = 8 * SOURCES[source].bits.itemsize
    if mode == DECODE:
        return {"input": 8, "expected": wide, column: wide if column == "found" else 8}
    count = MODES[mode].bit_count
    random_bits = {} if count is None else {"random": count}
    return {"input": wide, **random_bits, "expected": 8, column: 8}


def _comments(vectors: Vectors) -> list[str]:
    columns = " ".join(_widths(None, vectors.mode, vectors.source, vectors.column))
    lines = [
        _TITLE,
        f"format: {vectors.fmt}",
        f"mode: {vectors.mode}",
        f"source: {vectors.source}",
        f"columns: {columns}",
        f"cases: {vectors.inputs.size}",
    ]
    if vectors.mode == DECODE:
        return [
            *lines,
            "decoding: the value of each code in the float type named source, exact",
            "NaN: a NaN becomes a NaN; any NaN is right where one is expected",
            "flags: 10 the code is a NaN's; they are not compared",
        ]
    random_bits = MODES[vectors.mode].bit_count is not None
    return [
        *lines,
        f"rounding: {MODES[vectors.mode].rule}",
        *(["random: the random bits, as an integer"] if random_bits else []),
        "NaN: a NaN becomes a NaN; any NaN code is right where one is expected",
        "sign: kept, but by a NaN of the saturating modes, and by 0 where there is no -0; a",
        "  negative number in a format without sign becomes NaN, or 0 where there is none",
        "zero: in a format without zero it becomes the smallest value (saturating) or NaN",
        "flags: 01 the code's value is not the input, 02 so and below the smallest normal",
        "  number, 04 the input rounds beyond the largest finite value, 10 the input is NaN;",
        "  they say what happens and are not compared",
    ]


def format_vectors(vectors: Vectors, form: str = "text") -> str:
    """Return test vectors, or results, as the text of a file.

    Parameters
    ----------
    vectors : Vectors
    form : {"text", "memory", "c"}
        A key of :data:`npfp8.vector_text.FORMS`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the form is unknown.

    Examples
    --------
    >>> from npfp8.vectors import format_vectors, make_vectors
    >>> vectors = make_vectors("E4M3FN", "nearest-saturating", "float32")
    >>> text = format_vectors(vectors)
    >>> text.splitlines()[1]
    '# format: E4M3FN'
    >>> "43E80000 7E 01" in text, "43E800007E01" in format_vectors(vectors, "memory")
    (True, True)
    """
    require("vectors", vectors, Vectors, "test vectors")
    how = named("form", form, FORMS)
    values = {"input": vectors.inputs, "random": vectors.random_bits}
    values |= {"expected": vectors.expected, vectors.column: vectors.third}
    widths = _widths(vectors, vectors.mode, vectors.source, vectors.column)
    columns = []
    for name, bits in widths.items():
        column = values[name]
        assert column is not None
        columns.append(Column(name, bits, column))
    return how.write(vectors.stem.replace("-", "_"), _comments(vectors), columns)


def write_all_vectors(
    folder: str | Path,
    formats: Iterable[FloatFormat | str] | None = None,
    modes: Iterable[str] | None = None,
    sources: Iterable[str] | None = None,
    form: str = "text",
) -> list[Path]:
    """Write the files of formats, modes and float types to an existing folder.

    Parameters
    ----------
    folder : str or Path
    formats : iterable of FloatFormat or str, optional
        All named float formats, unless others are given.
    modes : iterable of str, optional
        Keys of :data:`MODES`, or "decode"; unless given, :data:`DEFAULT_MODES`. A float type
        without all values of a format is left out of its decoding.
    sources : iterable of str, optional
        Keys of :data:`SOURCES`; unless given, all.
    form : {"text", "memory", "c"}
        A key of :data:`npfp8.vector_text.FORMS`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as stated.
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from npfp8.vectors import write_all_vectors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for path in write_all_vectors(folder, ["E4M3FN"], ["up-ieee", "decode"], ["bfloat16"]):
    ...         print(path.name)
    E4M3FN-up-ieee-bfloat16.txt
    E4M3FN-decode-bfloat16.txt
    """
    folder, paths = path_of("folder", folder), []
    names: dict[str, list[Any]] = {}
    for name, given, usual in (
        ("formats", formats, FLOAT_FORMATS),
        ("modes", modes, DEFAULT_MODES),
        ("sources", sources, SOURCES),
    ):
        require_iterable(name, usual if given is None else given, "names")
        names[name] = list(usual if given is None else given)
    chosen = [as_float_format(fmt, "formats") for fmt in names["formats"]]
    kinds = [choice("sources", source, SOURCES) for source in names["sources"]]
    suffix = named("form", form, FORMS).suffix
    known = [choice("modes", mode, (*MODES, DECODE)) for mode in names["modes"]]
    for fmt in chosen:
        for mode in known:
            for source in kinds:
                if mode == DECODE and not _holds(SOURCES[source], fmt):
                    continue
                vectors = make_vectors(fmt, mode, source)
                paths.append(folder / f"{vectors.stem}{suffix}")
                with replaced_file(paths[-1]) as file:
                    file.write(format_vectors(vectors, form).encode())
    return paths


def read_vectors(path: str | Path) -> Vectors:
    """Read a file of test vectors or of results, strictly, in the form of text or of memory.

    Digits may be of either case, and line ends of either kind. A memory file without
    comments of this package, as a simulator writes it, has the results alone, one per word;
    its name must be that of the test vectors, such as ``E4M3FN-nearest-float32.mem``.

    Raises
    ------
    ValueError
        If it is anything else. The message names the file and the line, and what was
        found and expected; a file that ends too early is named as cut off.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> from npfp8.vectors import format_vectors, make_vectors, read_vectors
    >>> vectors = make_vectors("E4M3FN", "nearest", "bfloat16")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, vectors.name)
    ...     with open(path, "w") as file:
    ...         _ = file.write(format_vectors(vectors))
    ...     read_vectors(path)
    <Vectors E4M3FN-nearest-bfloat16.txt: 3118 cases, flags>
    """
    path = path_of("path", path)
    with open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{path}: expected at most {_MAX_BYTES} bytes, found more")
        try:
            text = data.decode("ascii").replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected ASCII text, found an error: {error}") from None
    try:
        return _parsed(text, path)
    except ValueError as error:
        between = "" if str(error).startswith("line ") else ":"
        raise ValueError(f"{path}{between} {error}") from None


def _parsed(text: str, path: Path) -> Vectors:
    memory = text.startswith("//") or path.suffix == FORMS["memory"].suffix
    mark, read = ("//", read_memory) if memory else ("#", read_text)
    lines = text.split("\n")
    comments = [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]
    if not comments or not lines[0].startswith(mark) or comments[0] != _TITLE:
        if memory and (alone := _results_alone(text, path.stem)) is not None:
            return alone
        raise ValueError(f"line 1: expected '{mark} {_TITLE}', found {lines[0][:80]!r}")

    def header(key: str, known: Iterable[str]) -> str:
        values = [line.removeprefix(f"{key}: ") for line in comments if line.startswith(f"{key}: ")]
        if len(values) != 1 or values[0] not in known:
            raise ValueError(
                f"'{mark} {key}: ': expected one of {', '.join(known)}, found {values}"
            )
        return values[0]

    fmt = FLOAT_FORMATS[header("format", FLOAT_FORMATS)]
    mode, source = header("mode", (*MODES, DECODE)), header("source", SOURCES)
    layouts = {
        " ".join(widths): (column, widths)
        for column in ("flags", "found")
        for widths in [_widths(None, mode, source, column)]
    }
    column, widths = layouts[header("columns", layouts)]
    right = make_vectors(fmt, mode, source)
    cases = int(header("cases", [str(right.inputs.size)]))
    _refuse_gaps(lines, mark, right)
    _, columns = read(text, widths, cases)
    found = {one.name: one.values for one in columns}
    return Vectors(
        *(fmt, mode, source, found["input"], found["expected"], found[column], column),
        random_bits=found.get("random"),
    )


def _refuse_gaps(lines: list[str], mark: str, right: Vectors) -> None:
    """Raise if a line is missing before the last one; a file that ends too early is cut off."""
    cases = [(i, line) for i, line in enumerate(lines, 1) if line and not line.startswith(mark)]
    if len(cases) >= right.inputs.size:
        return
    width = 2 * right.inputs.itemsize
    for (number, line), x in zip(cases[:-1], right.inputs.tolist(), strict=False):
        expected = f"{x:0{width}X}"
        if line[:width].upper() != expected:
            raise ValueError(
                f"line {number}: expected the input {expected}, found {line[:80]!r}; "
                f"{right.inputs.size - len(cases)} of {right.inputs.size} cases are missing"
            )


def _results_alone(text: str, stem: str) -> Vectors | None:
    """Read the results that a simulator wrote as memory; None if the name is not of vectors."""
    fmt, _, rest = stem.partition("-")
    mode, _, source = rest.rpartition("-")
    if fmt not in FLOAT_FORMATS or mode not in (*MODES, DECODE) or source not in SOURCES:
        return None
    right = make_vectors(fmt, mode, source)
    width = _widths(None, mode, source, "found")["found"]
    _, (found,) = read_memory(text, {"found": width}, right.inputs.size)
    return Vectors(
        *(right.fmt, mode, source, right.inputs, right.expected, found.values, "found"),
        random_bits=right.random_bits,
    )


# Comparison


def check_results(results: Vectors) -> VectorReport:
    """Compare the results of an implementation with the expected ones.

    Parameters
    ----------
    results : Vectors
        With the column "found".

    Raises
    ------
    ValueError
        If the column is another, or the inputs and the expected results are not all
        those of the test vectors, in their order.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from npfp8.vectors import check_results, make_vectors
    >>> vectors = make_vectors("E4M3FN", "nearest", "bfloat16")
    >>> check_results(replace(vectors, column="found", third=vectors.codes)).wrong
    0
    """
    require("results", results, Vectors, "test vectors")
    right = make_vectors(results.fmt, results.mode, results.source)
    if results.column != "found":
        columns = " ".join(_widths(None, right.mode, right.source, "found"))
        raise ValueError(
            f"{right.name}: expected the column 'found' (a line '# columns: {columns}', "
            f"and an implementation's results in the last), found {results.column!r}"
        )
    _require_same_cases(results, right)
    found = results.third
    if right.mode == DECODE:
        wrong, explain = _compare_numbers(right, found)
    else:
        wrong, explain = _compare_codes(right, found)
    if not wrong.any():
        return VectorReport(right.name, right.inputs.size, 0)
    explanation = explain()
    return VectorReport(
        right.name,
        right.inputs.size,
        int(wrong.sum()),
        _in_words(right, found, int(np.flatnonzero(wrong)[0])),
        explanation.cause,
        explanation.partial,
        explanation.explained,
        explanation.contradicted,
    )


def _require_same_cases(results: Vectors, right: Vectors) -> None:
    if results.inputs.size != right.inputs.size:
        raise ValueError(
            f"{right.name}: expected {right.inputs.size} cases, found {results.inputs.size}"
        )
    other = (results.inputs != right.inputs) | (results.expected != right.expected)
    if right.random_bits is not None:
        given = results.random_bits
        other |= True if given is None else given != right.random_bits
    if other.any():
        case = int(np.flatnonzero(other)[0])
        raise ValueError(
            f"{right.name} case {case + 1}: expected {_case(right, case)}, "
            f"found {_case(results, case)}"
        )


def _digits(bits: Bits, case: int) -> str:
    return f"{bits[case]:0{2 * bits.itemsize}X}"


def _case(vectors: Vectors, case: int) -> str:
    """Return a case without its last column, as a line of the file."""
    random_bits = [] if vectors.random_bits is None else [vectors.random_bits]
    columns = [vectors.inputs, *random_bits, vectors.expected]
    return " ".join(_digits(column, case) for column in columns)


def _in_words(right: Vectors, found: Bits, case: int) -> str:
    if right.mode == DECODE:
        value = f"({right.fmt.values[right.inputs[case]]!r})".replace("np.float64", "")
    else:
        value = f"({float(_exact(right.inputs, SOURCES[right.source])[case])!r})"
    bits = right.random_bits
    random_bits = "" if bits is None else f", random bits {bits[case]:X}"
    return (
        f"input {_digits(right.inputs, case)} {value}{random_bits}: "
        f"expected {_digits(right.expected, case)}, found {_digits(found, case)}"
    )


_Compared = tuple[npt.NDArray[np.bool_], Callable[[], Explanation]]


def _compare_codes(right: Vectors, found: npt.NDArray[np.uint8]) -> _Compared:
    how = MODES[right.mode]
    with np.errstate(invalid="ignore"):
        x = SOURCES[right.source].to_float(right.inputs).astype(np.float32)

    def explain() -> Explanation:
        return explain_codes(
            x,
            found,
            right.fmt,
            how.saturate,
            how.rounding,
            how.overflow,
            random_bits=right.random_bits,
            bit_count=how.bit_count,
        )

    return differing(right.codes, found, right.fmt), explain


def _compare_numbers(right: Vectors, found: Bits) -> _Compared:
    """Compare the bits of numbers. All NaNs count as equal."""
    kind = SOURCES[right.source]
    values = _exact(found, kind)
    wrong = (right.expected != found) & ~(np.isnan(right.fmt.values) & np.isnan(values))
    return wrong, lambda: explain_values(right.codes, values, right.fmt, kind.smallest)

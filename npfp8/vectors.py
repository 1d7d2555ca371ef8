"""Test vectors of the codec as plain text: for hardware, simulators and kernels without Python.

A file holds the cases of one format, one rounding mode and one input type: every
number at which the rounding changes its result and the numbers next to it, the
overflow threshold, subnormals, zeros, infinities and NaNs. Comment lines state the
rules. They are followed by one case per line, in hexadecimal, like TestFloat's::

    43E80000 7E 01

These are the bits of the input, the code, and flags. An implementation under test
reads the first column and writes its codes in place of the third;
:func:`check_results` checks such a file. The files are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, named, path_of, require
from npfp8.arrays import Array, Float64Array
from npfp8.bfloat16 import from_bits, round_to_bfloat16, to_bits
from npfp8.boundaries import boundary_bits, boundary_numbers
from npfp8.codec import encode, encode_bfloat16
from npfp8.files import open_regular, replaced_file
from npfp8.formats import FLOAT_FORMATS, FloatFormat, as_float_format
from npfp8.mistakes import differing, likely_mistake

__all__ = [
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

_TITLE = "# npfp8 test vectors 1"
_COLUMNS = {"flags": "# columns: input expected flags", "found": "# columns: input expected found"}

#: Bytes of a file that are still read; those of the test vectors have less than a 64th.
_MAX_BYTES = 1 << 24

#: Flags of a case: they describe it, and are not checked.
INEXACT, UNDERFLOW, OVERFLOW, NAN = 0x01, 0x02, 0x04, 0x10


class Mode(NamedTuple):
    """Arguments of :func:`npfp8.encode`, and their meaning in words."""

    saturate: bool
    rounding: str
    rule: str


#: The rounding modes, by their part of a file's name.
MODES = {
    "nearest-saturating": Mode(
        True,
        "nearest",
        "to the nearest value, ties to the even significand; what lies beyond the largest finite "
        "value, infinity included, becomes that value",
    ),
    "nearest": Mode(
        False,
        "nearest",
        "to the nearest value, ties to the even significand; what rounds beyond the largest "
        "finite value becomes infinity, NaN in a format without, the largest value in one with "
        "neither",
    ),
    "toward-zero": Mode(
        True,
        "toward_zero",
        "to the nearest value not larger in magnitude; what lies beyond the largest finite value, "
        "infinity included, becomes that value",
    ),
}


class Source(NamedTuple):
    """An input type: the dtype of its bits, and the parts of its special values."""

    bits: np.dtype[Any]
    infinity: int
    mantissa_bits: int
    to_float: Callable[[Bits], Array]
    from_float64: Callable[[Float64Array], Bits]
    encode: Callable[[Bits, FloatFormat, bool, str], npt.NDArray[np.uint8]]


def _encode_floats(dtype: type[Any]) -> Callable[..., npt.NDArray[np.uint8]]:
    return lambda bits, fmt, saturate, rounding: encode(
        bits.view(dtype), fmt, saturate, rounding=rounding
    )


#: The input types, by name.
SOURCES = {
    "float32": Source(
        np.dtype(np.uint32),
        0x7F800000,
        23,
        lambda bits: bits.view(np.float32),
        lambda x: x.astype(np.float32).view(np.uint32),
        _encode_floats(np.float32),
    ),
    "float16": Source(
        np.dtype(np.uint16),
        0x7C00,
        10,
        lambda bits: bits.view(np.float16),
        lambda x: x.astype(np.float16).view(np.uint16),
        _encode_floats(np.float16),
    ),
    "bfloat16": Source(
        np.dtype(np.uint16),
        0x7F80,
        7,
        from_bits,
        lambda x: to_bits(round_to_bfloat16(x)),
        lambda bits, fmt, saturate, rounding: encode_bfloat16(
            bits, fmt, saturate, rounding=rounding
        ),
    ),
}


@dataclass(frozen=True, eq=False, repr=False)
class Vectors:
    """Test vectors of a format, a mode and an input type.

    Attributes
    ----------
    fmt : FloatFormat
    mode, source : str
        Keys of :data:`MODES` and :data:`SOURCES`.
    inputs : ndarray of uint32 or uint16
        The bits of the inputs.
    codes : ndarray of uint8
        The expected codes.
    third : ndarray of uint8
        The third column: flags, or the codes of an implementation.
    column : {"flags", "found"}
        The meaning of the third column.

    Examples
    --------
    >>> from npfp8.vectors import make_vectors
    >>> make_vectors("E4M3FN", "nearest", "bfloat16")
    <Vectors E4M3FN-nearest-bfloat16.txt: 1586 cases, flags>
    """

    fmt: FloatFormat
    mode: str
    source: str
    inputs: Bits
    codes: npt.NDArray[np.uint8]
    third: npt.NDArray[np.uint8]
    column: str = "flags"

    def __repr__(self) -> str:
        return f"<Vectors {self.name}: {self.inputs.size} cases, {self.column}>"

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.fmt}-{self.mode}-{self.source}.txt"


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
        The one usual mistake that explains every code found, or "".

    Examples
    --------
    >>> from npfp8.vectors import VectorReport
    >>> VectorReport("E4M3FN-nearest-bfloat16.txt", cases=1586, wrong=0).wrong
    0
    """

    name: str
    cases: int
    wrong: int
    first: str = ""
    cause: str = ""


def boundary_inputs(fmt: FloatFormat | str, source: str) -> Bits:
    """Return the inputs of the test vectors, as bits of the source, ascending.

    They are every value of the format and every midpoint, the overflow threshold, all of
    these moved by less than the last bit of bfloat16 and of float16, the numbers before
    and after each, numbers beyond the range, and the special values of the source (NaNs
    only if the format has one), with both signs.

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
    numbers = boundary_numbers(fmt)
    bits = boundary_bits(numbers, kind.mantissa_bits, kind.infinity, kind.from_float64)
    if fmt.nan_code is not None:
        one = 1 << kind.mantissa_bits
        quiet = one >> 1
        nans = kind.infinity + np.array([1, quiet - 1, quiet, quiet + 1, one - 1])
        bits = np.concatenate([bits, nans])
    sign = 1 << (8 * kind.bits.itemsize - 1)
    return np.unique(np.concatenate([bits, bits + sign])).astype(kind.bits)


def make_vectors(fmt: FloatFormat | str, mode: str, source: str) -> Vectors:
    """Make the test vectors of a format, a mode and an input type.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.
    mode, source : str
        Keys of :data:`MODES` and :data:`SOURCES`, in any case.

    Raises
    ------
    ValueError
        If the format, the mode or the source is unknown.

    Examples
    --------
    >>> from npfp8 import E4M3FN
    >>> from npfp8.vectors import make_vectors
    >>> vectors = make_vectors(E4M3FN, "nearest-saturating", "float32")
    >>> case = list(vectors.inputs).index(0x43E80000)  # 464, a tie
    >>> hex(vectors.codes[case]), hex(vectors.third[case])
    ('0x7e', '0x1')
    """
    fmt = as_float_format(fmt)
    mode, source = choice("mode", mode, MODES), choice("source", source, SOURCES)
    how, kind = MODES[mode], SOURCES[source]
    inputs = boundary_inputs(fmt, source)
    codes = kind.encode(inputs, fmt, how.saturate, how.rounding)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        x = kind.to_float(inputs).astype(np.float64)
    return Vectors(fmt, mode, source, inputs, codes, _flags(x, codes, fmt, how.rounding))


def _flags(
    x: Float64Array, codes: npt.NDArray[np.uint8], fmt: FloatFormat, rounding: str
) -> npt.NDArray[np.uint8]:
    values, magnitude = fmt.values[codes], np.abs(x)
    nan = np.isnan(x)
    inexact = (values != x) & ~nan
    last, beyond = fmt.grid[-2:]
    threshold = beyond if rounding == "toward_zero" else (last + beyond) / 2
    overflow = magnitude > threshold
    if rounding == "toward_zero" or last / (beyond - last) % 2 == 1:
        overflow |= magnitude == threshold
    overflow &= inexact
    underflow = inexact & (np.abs(values) < fmt.min_normal)
    flags = INEXACT * inexact + UNDERFLOW * underflow + OVERFLOW * overflow + NAN * nan
    return flags.astype(np.uint8)


def format_vectors(vectors: Vectors) -> str:
    """Return test vectors, or results, as the text of a file.

    Examples
    --------
    >>> from npfp8.vectors import format_vectors, make_vectors
    >>> text = format_vectors(make_vectors("E4M3FN", "nearest-saturating", "float32"))
    >>> text.splitlines()[1]
    '# format: E4M3FN'
    >>> "43E80000 7E 01" in text
    True
    """
    require("vectors", vectors, Vectors, "test vectors")
    width = 2 * SOURCES[vectors.source].bits.itemsize
    header = [
        _TITLE,
        f"# format: {vectors.fmt}",
        f"# mode: {vectors.mode}",
        f"# source: {vectors.source}",
        _COLUMNS[vectors.column],
        f"# cases: {vectors.inputs.size}",
        f"# rounding: {MODES[vectors.mode].rule}",
        "# NaN: a NaN becomes a NaN; any NaN code is right where one is expected",
        "# sign: kept, but by a NaN of the saturating modes, and by 0 where there is no -0; a",
        "#   negative number in a format without sign becomes NaN, or 0 where there is none",
        "# zero: in a format without zero it becomes the smallest value (saturating) or NaN",
        "# flags: 01 the code's value is not the input, 02 so and below the smallest normal",
        "#   number, 04 the input rounds beyond the largest finite value, 10 the input is NaN;",
        "#   they say what happens and are not compared",
    ]
    lines = [
        f"{x:0{width}X} {code:02X} {third:02X}"
        for x, code, third in zip(
            vectors.inputs.tolist(), vectors.codes.tolist(), vectors.third.tolist(), strict=True
        )
    ]
    return "\n".join([*header, *lines]) + "\n"


def write_all_vectors(folder: str | Path) -> list[Path]:
    """Write the files of all formats, modes and input types to an existing folder.

    Raises
    ------
    OSError
        If a file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from npfp8.vectors import write_all_vectors
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     len(write_all_vectors(folder))
    135
    """
    folder, paths = path_of("folder", folder), []
    for fmt in FLOAT_FORMATS.values():
        for mode in MODES:
            for source in SOURCES:
                vectors = make_vectors(fmt, mode, source)
                paths.append(folder / vectors.name)
                with replaced_file(paths[-1]) as file:
                    file.write(format_vectors(vectors).encode())
    return paths


def read_vectors(path: str | Path) -> Vectors:
    """Read a file of test vectors or of results, strictly.

    Raises
    ------
    ValueError
        If it is anything else. The message names the file and the line, and what was
        found and expected.
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
    <Vectors E4M3FN-nearest-bfloat16.txt: 1586 cases, flags>
    """
    path = path_of("path", path)
    with open_regular(path) as file:
        data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{path}: expected at most {_MAX_BYTES} bytes, found more")
        try:
            lines = data.decode("ascii").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: expected ASCII text, found an error: {error}") from None
    comments = [line for line in lines if line.startswith("#")]
    body = lines[len(comments) :]
    if not comments or comments[0] != _TITLE:
        found = lines[0] if lines else ""
        raise ValueError(f"{path} line 1: expected {_TITLE!r}, found {found[:80]!r}")

    def header(key: str, known: Any) -> str:
        prefix = f"# {key}: "
        values = [line[len(prefix) :] for line in comments if line.startswith(prefix)]
        if len(values) != 1 or values[0] not in known:
            expected = ", ".join(known)
            raise ValueError(f"{path}: {prefix!r}: expected one of {expected}, found {values}")
        return values[0]

    fmt = FLOAT_FORMATS[header("format", FLOAT_FORMATS)]
    mode, source = header("mode", MODES), header("source", SOURCES)
    columns = {line.removeprefix("# columns: "): key for key, line in _COLUMNS.items()}
    column = columns[header("columns", columns)]
    header("cases", [str(len(body))])
    widths = (2 * SOURCES[source].bits.itemsize, 2, 2)
    rows = []
    for number, line in enumerate(body, len(comments) + 1):
        words = line.split(" ")
        if tuple(map(len, words)) != widths or set(line) - set("0123456789ABCDEF "):
            expected = " ".join("F" * width for width in widths)
            raise ValueError(
                f"{path} line {number}: expected hexadecimal digits as in {expected!r}, "
                f"found {line[:80]!r}"
            )
        rows.append([int(word, 16) for word in words])
    table = np.array(rows, np.uint32).reshape(-1, 3)
    inputs = table[:, 0].astype(SOURCES[source].bits)
    codes, third = (table[:, i].astype(np.uint8) for i in (1, 2))
    return Vectors(fmt, mode, source, inputs, codes, third, column)


def check_results(results: Vectors) -> VectorReport:
    """Compare the codes of an implementation with the expected ones.

    Parameters
    ----------
    results : Vectors
        With the column "found".

    Raises
    ------
    ValueError
        If the column is another, or the inputs and the expected codes are not all
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
        raise ValueError(
            f"{right.name}: expected the column 'found' (a line '# columns: input expected found', "
            f"and an implementation's codes in the third), found {results.column!r}"
        )
    if results.inputs.size != right.inputs.size:
        raise ValueError(
            f"{right.name}: expected {right.inputs.size} cases, found {results.inputs.size}"
        )
    other = (results.inputs != right.inputs) | (results.codes != right.codes)
    if other.any():
        case = int(np.flatnonzero(other)[0])
        raise ValueError(
            f"{right.name} case {case + 1}: expected {right.inputs[case]:X} "
            f"{right.codes[case]:02X}, found {results.inputs[case]:X} {results.codes[case]:02X}"
        )
    fmt, found = right.fmt, results.third
    wrong = differing(right.codes, found, fmt)
    if not wrong.any():
        return VectorReport(right.name, right.inputs.size, 0)
    case = int(np.flatnonzero(wrong)[0])
    how = MODES[right.mode]
    with np.errstate(all="ignore"):
        x = SOURCES[right.source].to_float(right.inputs).astype(np.float32)
        cause = likely_mistake(x, found, fmt, how.saturate, how.rounding)
    width = 2 * right.inputs.itemsize
    first = (
        f"input {right.inputs[case]:0{width}X} ({float(x[case])!r}): "
        f"expected {right.codes[case]:02X}, found {found[case]:02X}"
    )
    return VectorReport(right.name, right.inputs.size, int(wrong.sum()), first, cause)

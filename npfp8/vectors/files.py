"""Files of test vectors: their comments and columns, how they are written, and read back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from npfp8.arguments import choice, named, path_of, require, require_iterable
from npfp8.files import open_regular, replaced_file
from npfp8.formats import FLOAT_FORMATS, FloatFormat, as_float_format
from npfp8.vectors.cases import Vectors, make_vectors
from npfp8.vectors.columns import Column
from npfp8.vectors.modes import DECODE, DEFAULT_MODES, MODES
from npfp8.vectors.readers import read_memory, read_text
from npfp8.vectors.sources import SOURCES
from npfp8.vectors.writers import FORMS

__all__ = ["format_vectors", "read_vectors", "widths_of", "write_all_vectors"]

_TITLE = "npfp8 test vectors 2"

#: Bytes of a file that are still read; the largest of the test vectors has less than a fourth.
_MAX_BYTES = 1 << 24


def format_vectors(vectors: Vectors, form: str = "text") -> str:
    """Return test vectors, or results, as the text of a file.

    Parameters
    ----------
    vectors : Vectors
    form : {"text", "memory", "c"}
        A key of :data:`npfp8.vectors.writers.FORMS`.

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
    widths = widths_of(vectors.mode, vectors.source, vectors.column)
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
        A key of :data:`npfp8.vectors.writers.FORMS`.

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
                if mode == DECODE and not SOURCES[source].holds(fmt):
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
        for widths in [widths_of(mode, source, column)]
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
    width = widths_of(mode, source, "found")["found"]
    _, (found,) = read_memory(text, {"found": width}, right.inputs.size)
    return Vectors(
        *(right.fmt, mode, source, right.inputs, right.expected, found.values, "found"),
        random_bits=right.random_bits,
    )


def widths_of(mode: str, source: str, column: str) -> dict[str, int]:
    """Return the columns of a file, and their bits."""
    wide = 8 * SOURCES[source].bits.itemsize
    if mode == DECODE:
        return {"input": 8, "expected": wide, column: wide if column == "found" else 8}
    count = MODES[mode].bit_count
    random_bits = {} if count is None else {"random": count}
    return {"input": wide, **random_bits, "expected": 8, column: 8}


def _comments(vectors: Vectors) -> list[str]:
    columns = " ".join(widths_of(vectors.mode, vectors.source, vectors.column))
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

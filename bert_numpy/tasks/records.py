"""Rows of named values, from JSON Lines and from the Hugging Face hub's Parquet files."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bert_numpy.errors import BertNumpyError, parse_json, reading
from npfp8.files import open_regular

__all__ = ["RECORD_SUFFIXES", "check_text", "read_lines", "read_records"]

#: The files that :func:`read_records` reads.
RECORD_SUFFIXES = (".jsonl", ".parquet")

#: The most bytes of a text file, or of the decompressed wanted columns of a Parquet file; also the
#: most characters of all of its rows together, as equal texts may be stored once.
_MAX_BYTES = 1 << 28

#: The most rows of a Parquet file, and elements of the lists in them: a few bytes
#: can stand for any number of them.
_MAX_VALUES = 1_000_000

#: The number of rows in memory at a time.
_BATCH = 1024


def read_records(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a ``.jsonl`` or ``.parquet`` file, each with its place for errors.

    Parameters
    ----------
    path : Path
    names : sequence of str
        The wanted columns. No other columns of a Parquet file are read.

    Raises
    ------
    BertNumpyError
        If the file is missing, damaged, or larger than the module's limits; if a
        line is not a JSON object; or if a wanted column occurs twice, or its type is
        neither text, numbers nor lists and structures of them. For Parquet also if
        pyarrow (extra: data) is not installed.
    """
    return _json_lines(path) if path.suffix == ".jsonl" else _parquet(path, names)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file; only a line feed (or CR and LF) ends a line.

    A byte order mark at the start is left out.

    Raises
    ------
    BertNumpyError
        If the file is missing, not a regular file, larger than 256 MiB, or not
        UTF-8. The message then names the line.
    """
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > _MAX_BYTES else file.read(_MAX_BYTES + 1)
    if max(size, len(content)) > _MAX_BYTES:
        raise BertNumpyError(f"{path}: expected at most {_MAX_BYTES} bytes, found {size}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BertNumpyError(f"{path} line {line}: expected UTF-8, found {error.reason}") from None
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def check_text(text: str) -> str | None:
    """Describe why a text cannot be a model's input; None if it can.

    A text needs a character that is neither a space nor a control character, as
    tokenizers drop both. It must not have half of a character (a lone surrogate), which
    is not Unicode text.
    """
    categories = map(unicodedata.category, text)
    if not any(category[0] not in "CZ" for category in categories):
        found = repr(text)
        return f"expected text, found {found if len(found) < 80 else f'{found[:80]}...'}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"expected Unicode text, found {text[error.start]!r}"
    return None


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        place = f"{path} line {number}"
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise BertNumpyError(f"{place}: expected JSON, found an error: {error}") from None
        if not isinstance(value, dict):
            raise BertNumpyError(f"{place}: expected a JSON object, found {type(value).__name__}")
        yield place, value


def _parquet(path: Path, names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 (an extra)
    except ImportError:
        raise BertNumpyError(
            f"{path}: expected pyarrow, which reads Parquet, found none: "
            "pip install 'fp8-bert-numpy[data]'"
        ) from None
    # The library gets file objects, as it would wait for a pipe.
    with (
        reading(path),
        open_regular(path) as source,
        open_regular(path) as again,
        _parquet_errors(path, ArrowException),
    ):
        with parquet.ParquetFile(source) as file:
            wanted = _checked_columns(path, file, names)
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            texts = [leaf for leaf in leaves if leaf.partition(".")[0] in wanted]
        # A repeated text is in memory only once if the column is read as a dictionary.
        with parquet.ParquetFile(again, read_dictionary=texts) as file:
            yield from _parquet_rows(path, file, wanted)


@contextmanager
def _parquet_errors(path: Path, arrow_exception: type[Exception]) -> Iterator[None]:
    """Turn errors of pyarrow into a :class:`BertNumpyError` in one line."""
    try:
        yield
    except BertNumpyError:
        raise
    except (arrow_exception, OSError, UnicodeDecodeError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BertNumpyError(f"{path}: expected a Parquet file, found an error: {reason}") from None


def _parquet_rows(
    path: Path, file: Any, wanted: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a Parquet file, with the wanted columns alone."""
    first, size = 1, 0
    for batch in file.iter_batches(_BATCH, columns=wanted):
        columns = {
            name: _values(column, f"{path}: column {name!r}", first)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }
        for number in range(batch.num_rows):
            row = {name: values[number] for name, values in columns.items()}
            size += _size(row)
            if size > _MAX_BYTES:
                raise BertNumpyError(
                    f"{path} row {first + number}: expected at most {_MAX_BYTES} characters up to "
                    "here, found more"
                )
            yield f"{path} row {first + number}", row
        first += batch.num_rows


def _checked_columns(path: Path, file: Any, names: Sequence[str]) -> list[str]:
    """List the wanted columns that a Parquet file has, and check that they can be read.

    The schema and the sizes are at the end of the file; no data is read.
    """
    found = file.schema_arrow.names
    wanted = [name for name in names if name in found]
    if not wanted:
        raise BertNumpyError(
            f"{path}: expected columns {', '.join(names)}, found {', '.join(found) or 'none'}"
        )
    for name in wanted:
        if (count := found.count(name)) > 1:
            raise BertNumpyError(f"{path}: column {name!r}: expected once, found {count} times")
        kind = file.schema_arrow.field(name).type
        if not _is_readable(kind):
            raise BertNumpyError(
                f"{path}: column {name!r}: expected text, numbers, or lists or structures of "
                f"them, found {kind}"
            )
    metadata = file.metadata
    if metadata.num_rows > _MAX_VALUES:
        raise BertNumpyError(
            f"{path}: expected at most {_MAX_VALUES} rows, found {metadata.num_rows}"
        )
    chunks = [
        group.column(i)
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        for i in range(metadata.num_columns)
        if group.column(i).path_in_schema.partition(".")[0] in wanted
    ]
    for what, limit, total in (
        ("bytes", _MAX_BYTES, sum(chunk.total_uncompressed_size for chunk in chunks)),
        ("values", _MAX_VALUES, max((chunk.num_values for chunk in chunks), default=0)),
    ):
        if total > limit:
            raise BertNumpyError(
                f"{path}: expected at most {limit} {what} in columns {', '.join(wanted)}, "
                f"found {total}"
            )
    return wanted


def _is_readable(kind: Any) -> bool:
    """Check that an Arrow type has text, numbers, or lists or structures of them."""
    from pyarrow import types  # noqa: PLC0415 (an extra)

    if types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        names = {field.name for field in fields}
        return len(names) == len(fields) and all(_is_readable(field.type) for field in fields)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        return _is_readable(kind.value_type)
    return any(
        check(kind)
        for check in (
            *(types.is_string, types.is_large_string, types.is_integer, types.is_floating),
            *(types.is_boolean, types.is_null),
            getattr(types, "is_string_view", types.is_string),  # from pyarrow 16 on
        )
    )


def _size(value: Any) -> int:
    """Count the characters of all texts in a value."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str) else 0


def _values(array: Any, place: str, first: int) -> list[Any]:
    """Convert an array's values to Python; equal texts of a dictionary are one object."""
    from pyarrow import types  # noqa: PLC0415 (an extra)

    kind = array.type
    if types.is_dictionary(kind):
        values = _values(array.dictionary, place, first)
        return [None if i is None else values[i] for i in array.indices.to_pylist()]
    if types.is_struct(kind):
        fields = {
            kind.field(i).name: _values(array.field(i), place, first)
            for i in range(kind.num_fields)
        }
        return [
            {name: values[i] for name, values in fields.items()} if valid else None
            for i, valid in enumerate(array.is_valid().to_pylist())
        ]
    if types.is_list(kind) or types.is_large_list(kind):
        values = _values(array.values, place, first)
        offsets = array.offsets.to_pylist()
        return [
            values[offsets[i] : offsets[i + 1]] if valid else None
            for i, valid in enumerate(array.is_valid().to_pylist())
        ]
    try:
        return list(array.to_pylist())
    except UnicodeDecodeError as error:
        raise BertNumpyError(
            f"{place}: expected UTF-8, found {error.reason} after row {first - 1}"
        ) from None

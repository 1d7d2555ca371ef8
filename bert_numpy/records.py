"""Rows of named values: JSON Lines, and Parquet as the Hugging Face hub serves data sets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_numpy.errors import BertNumpyError

__all__ = ["RECORD_SUFFIXES", "read_lines", "read_records"]

#: The files that :func:`read_records` reads.
RECORD_SUFFIXES = (".jsonl", ".parquet")


def read_records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a ``.jsonl`` or ``.parquet`` file, each with its place, for errors.

    Raises
    ------
    BertNumpyError
        If the file is missing or damaged, a line is no JSON object, or Parquet
        is to be read and pyarrow (extra: data) is not installed.
    """
    return _json_lines(path) if path.suffix == ".jsonl" else _parquet(path)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; only a line feed (after a carriage return or not) ends one.

    Raises
    ------
    BertNumpyError
        If the file is missing or not UTF-8; names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BertNumpyError(f"{path}: no such file") from None
    except OSError as error:
        raise BertNumpyError(f"{path}: expected a file, found: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BertNumpyError(f"{path} line {line}: expected UTF-8, found {error.reason}") from None
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _json_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(read_lines(path), 1):
        place = f"{path} line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BertNumpyError(f"{place}: expected JSON, found an error: {error}") from None
        if not isinstance(value, dict):
            raise BertNumpyError(f"{place}: expected a JSON object, found {type(value).__name__}")
        yield place, value


def _parquet(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 (an extra)
    except ImportError:
        raise BertNumpyError(
            f"{path}: expected pyarrow, which reads Parquet, found none: "
            "pip install 'fp8-bert-numpy[data]'"
        ) from None
    if not path.exists():
        raise BertNumpyError(f"{path}: no such file")
    try:
        with parquet.ParquetFile(path) as file:
            first = 1
            for batch in file.iter_batches():  # so that a large file is never whole in memory
                for number, record in enumerate(batch.to_pylist(), first):
                    yield f"{path} row {number}", record
                first += batch.num_rows
    except (ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise BertNumpyError(f"{path}: expected a Parquet file, found an error: {reason}") from None

"""Files of texts: one text per line, or the sentences of a file in SST-2's layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bert_numpy.errors import BertNumpyError
from bert_numpy.tasks.glue import TASKS
from bert_numpy.tasks.records import RECORD_SUFFIXES, check_text, read_lines

__all__ = ["read_texts"]


def read_texts(path: Path) -> list[str]:
    """Read the texts of a file, in its order.

    Each line is a text. A file that begins with SST-2's header (columns
    ``sentence`` and ``label`` between tabs), or whose name ends like JSON Lines or
    Parquet, is read as a file of SST-2: its sentences are the texts.

    Raises
    ------
    BertNumpyError
        If the file is missing, empty or not UTF-8, or a text is blank. The message names
        the line.
    """
    if path.suffix in RECORD_SUFFIXES:
        return TASKS["sst2"].read([path]).texts
    lines = read_lines(path)
    if not lines:
        raise BertNumpyError(f"{path}: expected texts, a line each, found none")
    if _is_header(lines[0].split("\t")):
        return TASKS["sst2"].read([path]).texts
    for number, line in enumerate(lines, 1):
        if fault := check_text(line):
            raise BertNumpyError(f"{path} line {number}: {fault}")
    return lines


def _is_header(cells: Sequence[str]) -> bool:
    return {"sentence", "label"} <= set(cells)

"""Show and write the results of commands: tables, progress bars, JSON files."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from bert_numpy.errors import shown, writing
from bert_numpy.evaluation.evaluate import Evaluation, compare_with
from bert_numpy.finite import missing
from bert_numpy.progress import is_quiet, is_shown
from npfp8.arrays import Array
from npfp8.files import replaced_file

if TYPE_CHECKING:  # rich is imported where it is used: not every command draws
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "Outcome",
    "columns",
    "comparison_row",
    "counted",
    "listed",
    "note",
    "note_not_finite",
    "print_comparison",
    "print_lines",
    "print_operands",
    "print_rows",
    "progress_bar",
    "titled",
    "write_json",
    "write_text",
]


#: The most columns of a text or table, where that can be, and of a JSON value apart from its key.
WIDTH = 100


@dataclass(frozen=True)
class Outcome:
    """The results of a command: ``report`` for JSON, and ``show``, which prints them as text.

    Every file is written before anything is printed, as the reader may have gone.
    """

    report: dict[str, Any]
    show: Callable[[], None]


def print_lines(*lines: str) -> None:
    """Print texts, each on one line, with characters that a terminal obeys escaped."""
    for line in lines:
        print(shown(line))


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Align cells in columns, two spaces apart; the cells of the columns ``right`` to the right.

    >>> columns([["positive", "0.9", "a"], ["no", "0.05", "b"]], right=[1])
    ['positive   0.9  a', 'no        0.05  b']
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def titled(rows: Iterable[tuple[str, str]], whole: Sequence[str] = ()) -> list[str]:
    """Lay out texts beside their titles; a long one is wrapped unless its title is in ``whole``.

    >>> titled([("head", "none"), ("labels", "negative, " * 11)])[-1]
    '        negative, negative,'
    """
    rows = list(rows)
    width = WIDTH - 2 - max(len(title) for title, _ in rows)
    cells = []
    for title, text in rows:
        lines = [text]
        if title not in whole:
            lines = wrap(shown(text), width, break_long_words=False, break_on_hyphens=False)
        cells += list(zip_longest([title], lines, fillvalue=""))
    return columns(cells)


def counted(count: int, noun: str) -> str:
    """Count things in words: "1 text", "1,043 texts"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def note(text: str) -> None:
    """Print a note on standard error, unless the command is to be quiet."""
    if not is_quiet():
        _warn(text)


def _warn(text: str) -> None:
    """Print a line on standard error, if it can be written to."""
    with suppress(OSError):
        print(shown(text), file=sys.stderr)


def comparison_row(result: Evaluation, reference: Evaluation | None) -> dict[str, Any]:
    """Return a recipe's results as a JSON object, with the changes from a reference if given."""
    change = {} if reference is None else compare_with(reference, result)
    counts = result.counts.values()
    return {
        "format": result.recipe,
        "metrics": result.metrics,
        **change,
        "not_finite": result.not_finite,
        "weight_bytes": result.weight_bytes,
        "seconds": result.seconds,
        "quantized_elements": sum(count.elements for count in counts),
        "saturated_elements": sum(count.saturated for count in counts),
        "underflowed_elements": sum(count.underflowed for count in counts),
    }


def listed(predictions: Array) -> list[Any]:
    """Convert predictions for JSON: null where there is none."""
    none = missing(predictions).tolist()
    return [None if is_none else x for x, is_none in zip(predictions.tolist(), none, strict=True)]


def note_not_finite(evaluation: Evaluation) -> None:
    """Warn on standard error if some outputs are not finite; see :mod:`bert_numpy.finite`.

    A quiet command warns too.
    """
    if count := evaluation.not_finite:
        _warn(
            f"{evaluation.recipe}: {count} of {evaluation.predictions.size} predictions are none, "
            "as a number of the output is not finite (NaN or infinity): they count as wrong"
        )


def print_comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of a comparison as a table; no cell is ever cut.

    On a terminal that is too narrow for the table, the headers are broken into lines; without a
    terminal, if the table is wider than :data:`WIDTH` and is not with broken headers.
    """
    from rich.console import Console  # noqa: PLC0415 (see above)

    table, broken = (_comparison_table(rows, between) for between in (" ", "\n"))
    is_terminal = sys.stdout.isatty()
    is_wide = _width(table) > (Console().width if is_terminal else WIDTH)
    if is_wide and (is_terminal or _width(broken) <= WIDTH):
        table = broken
    print_lines(title)
    _print_table(table)


def _comparison_table(rows: Sequence[Mapping[str, Any]], between_words: str) -> Table:
    table = _table()
    change = "mean_abs_difference" if "mean_abs_difference" in rows[0] else "flips"
    metrics = list(rows[0]["metrics"])
    table.add_column("format", no_wrap=True)
    for header in (*metrics, change, "relative_logit_error", "weight_bytes", "seconds"):
        table.add_column(header.replace("_", between_words), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            shown(str(row["format"]).upper()),
            *(f"{100 * row['metrics'][name]:.2f}" for name in metrics),
            str(row[change]) if change == "flips" else f"{row[change]:.4f}",
            f"{row['relative_logit_error']:.4f}",
            f"{row['weight_bytes']:,}",
            f"{row['seconds']:.2f}",
        )
    return table


def print_operands(operands: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the descriptions of operands as a table, in groups by layer.

    They are those of :func:`bert_numpy.commands.figures.describe`; the columns leave out two of
    the percentiles, so that the table of a model of base size is at most 100 columns wide.
    """
    table = _table()
    table.add_column("operand", no_wrap=True)
    formats = list(next(iter(operands.values()))["formats"])
    for head in ("elements", "low", "high", "p99.9", *formats):
        table.add_column(head, justify="right", no_wrap=True)
    group = ""
    for name, row in operands.items():
        layer = _LAYER.match(name)
        label = f"layer {layer[1]}" if layer else ""
        if label and label != group:
            table.add_row(label)
        group = label
        ratios = [row["formats"][label]["sqnr"] for label in formats]
        table.add_row(
            shown(f"  {name[layer.end() :]}" if layer else name),
            f"{row['elements']:,}",
            *(f"{row[key]:.4g}" for key in ("low", "high", "p99.9")),
            *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
        )
    print_lines(
        "p99.9: the magnitude that 99.9 % of the elements do not exceed",
        f"{', '.join(formats)}: the signal-to-quantization-noise ratio in dB",
    )
    _print_table(table)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of cells; all columns but the first are numbers."""
    table = _table()
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(shown(cell) for cell in row))
    _print_table(table)


#: The part of an operand's name that is before its name in the layer.
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.")


def _print_table(table: Table) -> None:
    """Print a table with Python's own print: rich ends the process if nobody reads it."""
    console = _console(_width(table))
    with console.capture() as capture:
        console.print(table)
    print(capture.get(), end="")


def _table() -> Table:
    from rich.box import MARKDOWN  # noqa: PLC0415 (see above)
    from rich.table import Table  # noqa: PLC0415

    return Table(box=MARKDOWN, header_style="bold")


def _width(table: Table) -> int:
    """Measure how many columns a table takes if nothing is wrapped or cut."""
    return _console(1 << 16).measure(table).maximum


def _console(width: int) -> Console:
    from rich.console import Console  # noqa: PLC0415 (see above)

    # With the width alone, rich takes a terminal that calls itself dumb for 80 columns wide.
    # Names are text: [bold] and :smile: in them stand for themselves.
    return Console(width=width, height=100, markup=False, emoji=False, highlight=False)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Any]:
    """Show a progress bar on a terminal's standard error; yield the function that advances it."""
    if not is_shown():
        yield lambda count: None
        return
    from rich.console import Console  # noqa: PLC0415 (see above)
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(shown(label), total=total)
        yield lambda count: progress.advance(task, count)


def write_json(target: str, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON object or list to a file, whole or not at all; ``-`` is standard output.

    NaN (a correlation of constants) becomes null. A device or pipe, such as ``/dev/null``, is
    written into and not replaced. A list of numbers is on one line, however long, and so is
    whatever fits into one, and a record in a list unless it is very long.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    text = json_text(_without_nan(value)) + "\n"
    if target == "-":
        sys.stdout.write(text)
        return
    write_text(Path(target), text)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    with writing(path), replaced_file(path) as file:
        file.write(text.encode())


def json_text(value: Any, indent: int = 0) -> str:
    """Return a value as readable JSON: indented, with lists of numbers and short values in a line.

    >>> print(json_text({"logits": [1.5, None], "sites": {"a": {"elements": 3, "saturated": 0}}}))
    {
     "logits": [1.5, null],
     "sites": {"a": {"elements": 3, "saturated": 0}}
    }
    """
    if not isinstance(value, dict | list) or not value or _has_numbers_alone(value):
        return json.dumps(value, allow_nan=False)
    if indent:  # the outermost object is never one line, however short it is
        line = json.dumps(value, allow_nan=False)
        if indent + len(line) <= WIDTH:
            return line
    inner = [
        json.dumps(item, allow_nan=False)
        if _is_record(item, value)
        else json_text(item, indent + 1)
        for item in _items(value)
    ]
    if isinstance(value, dict):
        inner = [f"{json.dumps(str(key))}: {text}" for key, text in zip(value, inner, strict=True)]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    pad = "\n" + " " * indent
    return f"{begin}{pad} " + f",{pad} ".join(inner) + f"{pad}{end}"


#: Columns within which an object of numbers and texts in a list is written in one line.
_RECORD_WIDTH = 300


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _is_record(item: Any, container: Any) -> bool:
    """Check for an object of numbers and short texts in a list of such objects."""
    is_flat = isinstance(item, dict) and not any(isinstance(x, dict | list) for x in item.values())
    return is_flat and isinstance(container, list) and len(json.dumps(item)) <= _RECORD_WIDTH


def _has_numbers_alone(value: dict[str, Any] | list[Any]) -> bool:
    return isinstance(value, list) and all(
        item is None or isinstance(item, int | float) for item in value
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

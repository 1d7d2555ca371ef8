"""What the commands show and write: tables, progress bars, JSON files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_numpy.errors import shown, writing
from bert_numpy.evaluation.evaluate import Evaluation, compare_with
from bert_numpy.finite import missing
from npfp8.arrays import Array
from npfp8.files import replaced_file

if TYPE_CHECKING:  # rich is imported where it is used: not every command draws
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "Outcome",
    "comparison_row",
    "listed",
    "note",
    "note_not_finite",
    "print_comparison",
    "print_lines",
    "print_operands",
    "print_rows",
    "progress_bar",
    "write_json",
    "write_text",
]


@dataclass(frozen=True)
class Outcome:
    """What a command has found: ``report``, for JSON, and what prints it for a reader.

    Every file is written before it is printed: the reader may have gone.
    """

    report: dict[str, Any]
    show: Callable[[], None]


def print_lines(*lines: str) -> None:
    """Print texts, each on a line of its own, whatever characters they have."""
    for line in lines:
        print(shown(line))


def note(text: str) -> None:
    """Print a line on standard error, if it can be written to."""
    with suppress(OSError):
        print(shown(text), file=sys.stderr)


def comparison_row(result: Evaluation, reference: Evaluation | None) -> dict[str, Any]:
    """A recipe's results as a JSON object, with what changed against the reference if given."""
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
    """Predictions as JSON has them: null where there is none."""
    none = missing(predictions).tolist()
    return [None if is_none else x for x, is_none in zip(predictions.tolist(), none, strict=True)]


def note_not_finite(evaluation: Evaluation) -> None:
    """Say on standard error how many predictions are none, if any; see :mod:`bert_numpy.finite`."""
    if count := evaluation.not_finite:
        note(
            f"{evaluation.recipe}: {count} of {evaluation.predictions.size} predictions are none, "
            "as a number of the output is not finite (NaN or infinity): they count as wrong"
        )


def print_comparison(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows of a comparison as a table; no cell is ever cut.

    On a terminal that is too narrow for it the headers are broken into lines.
    """
    from rich.console import Console  # noqa: PLC0415 (see above)

    table = _comparison_table(rows, " ")
    if sys.stdout.isatty() and _width(table) > Console().width:
        table = _comparison_table(rows, "\n")
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
    """Print what :func:`bert_numpy.commands.figures.describe` says of each operand as a table."""
    table = _table()
    table.add_column("operand", no_wrap=True)
    formats = list(next(iter(operands.values()))["formats"])
    heads = ("elements", "low", "high", "p99", "p99.9", "p99.99", *(f"{f} dB" for f in formats))
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for name, row in operands.items():
        ratios = [row["formats"][label]["sqnr"] for label in formats]
        table.add_row(
            shown(name),
            f"{row['elements']:,}",
            *(f"{row[key]:.4g}" for key in heads[1:6]),
            *("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios),
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


def _print_table(table: Table) -> None:
    """Print a table by Python itself, as rich ends the process where nobody reads it."""
    console = _console(_width(table))
    with console.capture() as capture:
        console.print(table)
    print(capture.get(), end="")


def _table() -> Table:
    from rich.box import MARKDOWN  # noqa: PLC0415 (see above)
    from rich.table import Table  # noqa: PLC0415

    return Table(box=MARKDOWN, header_style="bold")


def _width(table: Table) -> int:
    """The columns that a table takes with nothing wrapped or cut."""
    return _console(1 << 16).measure(table).maximum


def _console(width: int) -> Console:
    from rich.console import Console  # noqa: PLC0415 (see above)

    # With the width alone, rich takes a terminal that calls itself dumb for 80 columns wide.
    # Names are text: [bold] and :smile: in them stand for themselves.
    return Console(width=width, height=100, markup=False, emoji=False, highlight=False)


@contextmanager
def progress_bar(total: int, label: str) -> Iterator[Any]:
    """A progress bar on a terminal's standard error; yields the function that advances it."""
    if not sys.stderr.isatty():
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

    NaN (a correlation of constants) becomes null. What is there and is no
    file, such as ``/dev/null`` or a pipe, is written into, not replaced.

    Raises
    ------
    BertNumpyError
        If the file cannot be written.
    """
    text = json.dumps(_without_nan(value), indent=1, allow_nan=False) + "\n"
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


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

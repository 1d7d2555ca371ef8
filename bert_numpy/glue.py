"""GLUE's tasks: where their texts and labels stand in the official TSV files.

The files are not CSV: a quotation mark is a character like any other, a line
ends at a line feed and nowhere else, and each task has columns of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError

__all__ = ["TASKS", "Examples", "Task", "label_order", "read_examples", "task_named"]


@dataclass(frozen=True)
class Task:
    """A GLUE task.

    Attributes
    ----------
    name : str
        As on the command line.
    folder : str
        The official folder's name.
    metrics : tuple of str
        Keys of :data:`bert_numpy.metrics.METRICS`, the main one first.
    text_columns : tuple of str or int
        One column, or two for pairs: by the header's names, or by number in a
        file without a header.
    label_column : str or int
    labels : tuple of str
        The names of the classes in GLUE's order; empty for regression.
    label_names_in_file : bool
        Whether the file names the classes, or numbers them.
    score_range : (float, float)
        For regression.
    dev, train : str
        File names.
    columns : int
        In a file without a header, how many columns a row has.
    drops_broken_rows : bool
        Whether the official training file is known to hold rows that lack
        columns or have a blank text (QQP's does; see issue 5 of GLUE-baselines):
        these are left out, as other readers do.
    """

    name: str
    folder: str
    metrics: tuple[str, ...]
    text_columns: tuple[str, ...] | tuple[int, ...]
    label_column: str | int
    labels: tuple[str, ...]
    label_names_in_file: bool = False
    score_range: tuple[float, float] = (0.0, 5.0)
    dev: str = "dev.tsv"
    train: str = "train.tsv"
    columns: int | None = None
    drops_broken_rows: bool = False

    @property
    def is_regression(self) -> bool:
        """Whether the labels are scores."""
        return not self.labels

    @property
    def outputs(self) -> int:
        """How many outputs the model's head must have."""
        return len(self.labels) or 1


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
_MNLI = Task(
    "mnli",
    "MNLI",
    ("accuracy",),
    _SENTENCES,
    "gold_label",
    ("entailment", "neutral", "contradiction"),
    label_names_in_file=True,
    dev="dev_matched.tsv",
)

#: The tasks by name.
TASKS = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("matthews_correlation",),
            (3,),
            1,
            ("unacceptable", "acceptable"),
            columns=4,
        ),
        Task("sst2", "SST-2", ("accuracy",), ("sentence",), "label", ("negative", "positive")),
        Task(
            "mrpc",
            "MRPC",
            ("accuracy", "f1"),
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
        ),
        Task("stsb", "STS-B", ("pearson", "spearmanr"), _SENTENCES, "score", ()),
        Task(
            "qqp",
            "QQP",
            ("accuracy", "f1"),
            ("question1", "question2"),
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            drops_broken_rows=True,
        ),
        _MNLI,
        replace(_MNLI, name="mnli-mm", dev="dev_mismatched.tsv"),
        Task(
            "qnli",
            "QNLI",
            ("accuracy",),
            ("question", "sentence"),
            "label",
            _ENTAILMENT,
            label_names_in_file=True,
        ),
        Task(
            "rte", "RTE", ("accuracy",), _SENTENCES, "label", _ENTAILMENT, label_names_in_file=True
        ),
        Task("wnli", "WNLI", ("accuracy",), _SENTENCES, "label", _ENTAILMENT[::-1]),
    )
}

_ALIASES = {"mnlimatched": "mnli", "mnlimm": "mnli-mm", "mnlimismatched": "mnli-mm"}


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and their labels, in the file's order.

    ``pairs`` is None for a task on single sentences; ``labels`` holds class
    numbers (int64) or scores (float64).
    """

    texts: list[str]
    pairs: list[str] | None
    labels: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Examples:
        """The examples of the given rows, in their order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in rows]
        return Examples([self.texts[i] for i in rows], pairs, self.labels[list(rows)])

    def sample(self, count: int) -> Examples:
        """``count`` examples spread evenly: rows ``floor(i * n / count)``, by integers alone.

        All of them if there are no more than ``count``.
        """
        return self.select(spread(len(self), count))


def spread(n: int, count: int) -> list[int]:
    """``count`` of ``n`` rows, evenly: ``floor(i * n / count)``; all if there are no more."""
    count = min(count, n)
    return [i * n // count for i in range(count)]


def task_named(name: str, others: Sequence[str] = ()) -> Task:
    """Look a task up by its name; case, ``-`` and ``_`` make no difference (``SST-2``).

    Raises
    ------
    BertNumpyError
        If there is none of that name; lists the names, and ``others`` that the
        caller knows.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    if (found := TASKS.get(_ALIASES.get(plain, plain))) is None:
        known = ", ".join((*TASKS, *others))
        raise BertNumpyError(f"task: expected one of {known}, found {name!r}")
    return found


class Foldered(Protocol):
    """A task, by its name and by the official name of its folder."""

    @property
    def name(self) -> str: ...

    @property
    def folder(self) -> str: ...


def find_file(data: Path, task: Foldered, name: str) -> Path:
    """The file ``name`` of a task in ``data``: the task's own folder, or one of all tasks.

    Raises
    ------
    BertNumpyError
        If it is in neither.
    """
    if not data.exists():
        raise BertNumpyError(f"{data}: no such file or folder")
    for path in (data / name, data / task.folder / name, data / task.name / name):
        if path.is_file():
            return path
    raise BertNumpyError(f"{data}: expected {name} or {task.folder}/{name}, found neither")


def read_examples(path: Path, task: Task) -> Examples:
    """Read a labelled file of a task.

    Raises
    ------
    BertNumpyError
        If the file is missing, empty or not UTF-8, or a row is malformed: names
        the file and line, what was found and what was expected.
    """
    rows = list(_rows(path, task))
    if not rows:
        raise BertNumpyError(f"{path}: expected examples, found none")
    texts, labels = zip(*rows, strict=True)
    pairs = [pair[1] for pair in texts] if len(task.text_columns) == 2 else None
    kind = np.float64 if task.is_regression else np.int64
    return Examples([pair[0] for pair in texts], pairs, np.array(labels, kind))


def _rows(path: Path, task: Task) -> Iterator[tuple[list[str], float]]:
    """The texts and the label of each row."""
    lines = _lines(path)
    wanted = (*task.text_columns, task.label_column)
    if task.columns is None:
        if not lines:
            raise BertNumpyError(f"{path}: expected a header and examples, found an empty file")
        header = lines[0].split("\t")
        if missing := [name for name in wanted if name not in header]:
            raise BertNumpyError(
                f"{path} line 1: expected columns {', '.join(map(str, wanted))}, found no "
                f"{missing[0]!r} in {header}"
            )
        columns = [header.index(str(name)) for name in wanted]
        width, first = len(header), 1
    else:
        columns, width, first = [int(number) for number in wanted], task.columns, 0
    drops_broken_rows = task.drops_broken_rows and path.name == task.train
    for number, line in enumerate(lines[first:], first + 1):
        cells = line.split("\t")
        place = f"{path} line {number}"
        short = len(cells) < width
        blank = not short and not all(cells[column].strip() for column in columns[:-1])
        if (short or blank) and drops_broken_rows:
            continue
        if len(cells) != width:
            raise BertNumpyError(f"{place}: expected {width} columns, found {len(cells)}")
        if blank:
            raise BertNumpyError(f"{place}: expected text, found a blank cell")
        *texts, label = (cells[column] for column in columns)
        yield texts, _parse_label(label, task, place)


def _lines(path: Path) -> list[str]:
    """The lines of a file; only a line feed (after a carriage return or not) ends one."""
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


def _parse_label(cell: str, task: Task, place: str) -> float:
    if task.is_regression:
        low, high = task.score_range
        try:
            score = float(cell)
        except ValueError:
            score = math.nan
        if not low <= score <= high:
            raise BertNumpyError(f"{place}: expected a score {low:g}..{high:g}, found {cell!r}")
        return score
    names = task.labels if task.label_names_in_file else [str(i) for i in range(len(task.labels))]
    if cell not in names:
        raise BertNumpyError(f"{place}: expected label {' or '.join(names)}, found {cell!r}")
    return names.index(cell)


def label_order(names: Sequence[str], task: Task) -> npt.NDArray[np.int64]:
    """The task's class of each output of a model's head.

    A checkpoint may have its classes in another order than GLUE. If its labels
    are named as the task's are, the names decide; otherwise the order is GLUE's.

    Parameters
    ----------
    names : sequence of str
        The head's labels, ``BertConfig.labels``.
    task : Task

    Raises
    ------
    BertNumpyError
        If the head has another number of outputs than the task.
    """
    if len(names) != task.outputs:
        raise BertNumpyError(
            f"task {task.name}: expected a model with {task.outputs} outputs, found {len(names)}: "
            f"{', '.join(names)}"
        )
    plain = [name.lower().replace("-", "_").replace(" ", "_") for name in names]
    if sorted(plain) == sorted(task.labels):
        return np.array([task.labels.index(name) for name in plain], np.int64)
    return np.arange(len(names), dtype=np.int64)

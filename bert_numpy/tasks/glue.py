"""GLUE's tasks, and the places of their texts and labels in the files.

The official files are TSV, not CSV: a quotation mark is a character like any
other, a line ends at a line feed and nowhere else, and the columns differ from task to
task. JSON Lines and Parquet have the hub's columns (data set nyu-mll/glue).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.finite import NO_CLASS, missing, rows_not_finite
from bert_numpy.model.config import BertConfig
from bert_numpy.progress import Progress
from bert_numpy.tasks.metrics import METRICS
from bert_numpy.tasks.records import RECORD_SUFFIXES, check_text, read_lines, read_records
from bert_numpy.tasks.task import Labels, Predictions, TestSet, even_rows
from bert_numpy.tasks.tokenization import Tokenizer, Window
from npfp8.arrays import Array, Float32Array, IntArray
from npfp8.names import suggestion

__all__ = [
    "TASKS",
    "Examples",
    "GlueTask",
    "label_order",
    "merge_examples",
    "read_examples",
    "read_test_set",
    "submission",
    "task_named",
]


@dataclass(frozen=True)
class GlueTask:
    """A :class:`~bert_numpy.tasks.task.Task` of GLUE.

    Attributes
    ----------
    name : str
        The name on the command line.
    folder : str
        The official folder's name.
    metrics : tuple of str
        Keys of :data:`bert_numpy.tasks.metrics.METRICS`, the main one first.
    text_columns : tuple of str or int
        One column, or two for pairs: names from the header, or numbers in a
        file without a header.
    label_column : str or int
    labels : tuple of str
        The names of the classes in GLUE's order; empty for regression.
    label_names_in_file : bool
        True if the file names the classes, False if it numbers them.
    score_range : (float, float)
        The least and the greatest score, for regression.
    dev, train, test : str
        The official files' names.
    fields : tuple of str
        The columns of the texts in JSON Lines and Parquet; the label's is ``label``.
    submission_name : str
        The stem of the file that GLUE's server takes; by default the folder's name.
    max_length : int
        The longest input, in tokens, unless another length is given.
    columns : int
        The number of columns of a file without a header.
    drops_broken_rows : bool
        True if the official training file is known to hold rows that lack
        columns or have a blank text (QQP's does; see issue 5 of GLUE-baselines).
        These rows are left out, as in other readers.
    head : str
        The name of the head that a model must have.
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
    test: str = "test.tsv"
    fields: tuple[str, ...] = ("sentence1", "sentence2")
    submission_name: str = ""
    max_length: int = 128
    columns: int | None = None
    drops_broken_rows: bool = False
    head: str = "sequence classification"

    @property
    def is_regression(self) -> bool:
        """True if the labels are scores."""
        return not self.labels

    @property
    def hub_config(self) -> str:
        """The task's part of the hub's data set; both of MNLI's tasks share one."""
        return self.name.removesuffix("-mm")

    @property
    def outputs(self) -> int:
        """The number of outputs that the model's head must have."""
        return len(self.labels) or 1

    @property
    def scores(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """The metrics by name: functions of labels and predictions."""
        return {name: METRICS[name] for name in self.metrics}

    @property
    def test_set(self) -> TestSet[Examples]:
        """The test set, whose labels only GLUE's server has."""
        name = f"{self.submission_name or self.folder}.tsv"
        read, write = partial(read_test_set, task=self), partial(submission, self)
        return TestSet(self.test, read, name, write)

    def read(self, paths: Sequence[Path]) -> Examples:
        """Read labelled files; see :func:`read_examples`."""
        return merge_examples([read_examples(path, self) for path in paths])

    def check_labels(self, config: BertConfig) -> None:
        """Raise :class:`BertNumpyError` if the outputs of a model's head do not fit the task."""
        label_order(config.labels, self, config.problem_type)

    def encode(
        self, tokenizer: Tokenizer, examples: Examples, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """Encode each text or pair as one input, truncated to ``max_length`` tokens."""
        encoded = tokenizer.encode(examples.texts, examples.pairs, max_length, progress)
        return [[Window(one)] for one in encoded]

    def predict(
        self,
        config: BertConfig,
        examples: Examples,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """Take the class of each example's largest logit, in GLUE's order, or its score."""
        order = label_order(config.labels, self, config.problem_type)
        rows = np.stack(logits)
        none = rows_not_finite(rows)
        if self.is_regression:
            return Predictions(rows, np.where(none, np.nan, rows[:, 0].astype(np.float64)))
        return Predictions(rows, np.where(none, NO_CLASS, order[rows.argmax(axis=1)]))


_ENTAILMENT = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
_MNLI = GlueTask(
    "mnli",
    "MNLI",
    ("accuracy",),
    _SENTENCES,
    "gold_label",
    ("entailment", "neutral", "contradiction"),
    label_names_in_file=True,
    dev="dev_matched.tsv",
    test="test_matched.tsv",
    fields=("premise", "hypothesis"),
    submission_name="MNLI-m",
)

#: The tasks by name.
TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "cola",
            "CoLA",
            ("matthews_correlation",),
            (3,),
            1,
            ("unacceptable", "acceptable"),
            fields=("sentence",),
            columns=4,
        ),
        GlueTask(
            "sst2",
            "SST-2",
            ("accuracy",),
            ("sentence",),
            "label",
            ("negative", "positive"),
            fields=("sentence",),
        ),
        GlueTask(
            "mrpc",
            "MRPC",
            ("accuracy", "f1"),
            ("#1 String", "#2 String"),
            "Quality",
            ("not_equivalent", "equivalent"),
        ),
        GlueTask("stsb", "STS-B", ("pearson", "spearmanr"), _SENTENCES, "score", ()),
        GlueTask(
            "qqp",
            "QQP",
            ("accuracy", "f1"),
            ("question1", "question2"),
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            fields=("question1", "question2"),
            drops_broken_rows=True,
        ),
        _MNLI,
        replace(
            _MNLI,
            name="mnli-mm",
            dev="dev_mismatched.tsv",
            test="test_mismatched.tsv",
            submission_name="MNLI-mm",
        ),
        GlueTask(
            "qnli",
            "QNLI",
            ("accuracy",),
            ("question", "sentence"),
            "label",
            _ENTAILMENT,
            label_names_in_file=True,
            fields=("question", "sentence"),
        ),
        GlueTask(
            "rte", "RTE", ("accuracy",), _SENTENCES, "label", _ENTAILMENT, label_names_in_file=True
        ),
        GlueTask("wnli", "WNLI", ("accuracy",), _SENTENCES, "label", _ENTAILMENT[::-1]),
    )
}

_ALIASES = {"mnlimatched": "mnli", "mnlimm": "mnli-mm", "mnlimismatched": "mnli-mm"}


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and their labels, in the file's order.

    ``pairs`` is None for a task on single sentences; ``labels`` holds class
    numbers (int64) or scores (float64). A test set has no labels, but ``ids``
    holds the number of each example on GLUE's server, in decimal.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: Labels | None
    ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: Sequence[int]) -> Examples:
        """Return the examples of the given rows, in their order."""
        return Examples(
            [self.texts[i] for i in rows],
            None if self.pairs is None else [self.pairs[i] for i in rows],
            None if self.labels is None else self.labels[list(rows)],
            tuple(self.ids[i] for i in rows) if self.ids else (),
        )

    def sample(self, count: int) -> Examples:
        """Return ``count`` examples spread evenly, by integers alone; see :func:`even_rows`."""
        return self.select(even_rows(len(self), count))


def task_named(name: str, others: Sequence[str] = ()) -> GlueTask:
    """Look a task up by its name; case, ``-`` and ``_`` make no difference (``SST-2``).

    Raises
    ------
    BertNumpyError
        If no task has that name. The message lists the names, and the ``others`` of the
        caller.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    if (found := TASKS.get(_ALIASES.get(plain, plain))) is None:
        known = (*TASKS, *others)
        raise BertNumpyError(
            f"task: expected one of {', '.join(known)}, found {name!r}{suggestion(name, known)}"
        )
    return found


def read_examples(path: Path, task: GlueTask) -> Examples:
    """Read a labelled file of a task: TSV or, by the file's ending, JSON Lines or Parquet.

    Raises
    ------
    BertNumpyError
        If the file is missing, empty or not UTF-8, or a row is malformed. The message names
        the file and the line, what was found and what was expected.
    """
    rows = list(_records(path, task) if path.suffix in RECORD_SUFFIXES else _rows(path, task))
    if not rows:
        raise BertNumpyError(f"{path}: expected examples, found none")
    texts, labels = zip(*rows, strict=True)
    pairs = [pair[1] for pair in texts] if len(task.text_columns) == 2 else None
    kind = np.float64 if task.is_regression else np.int64
    return Examples([pair[0] for pair in texts], pairs, np.array(labels, kind))


def merge_examples(parts: Sequence[Examples]) -> Examples:
    """Join the labelled examples of several files of one task."""
    texts = [text for part in parts for text in part.texts]
    pairs = [pair for part in parts for pair in part.pairs or ()]
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    return Examples(texts, None if parts[0].pairs is None else pairs, labels)


def _rows(path: Path, task: GlueTask) -> Iterator[tuple[list[str], float]]:
    """Yield the texts and the label of each row of an official file."""
    wanted = (*task.text_columns, task.label_column)
    drops_broken_rows = task.drops_broken_rows and path.name == task.train
    for place, cells in _cells(path, wanted, task.columns, drops_broken_rows):
        *texts, label = cells
        if fault := _fault(texts):
            if drops_broken_rows:
                continue
            raise BertNumpyError(f"{place}: {fault}")
        yield texts, _parse_label(label, task, place)


def _fault(texts: Sequence[str]) -> str | None:
    """Describe what is wrong with the texts of a row; None if nothing is."""
    if not all(text.strip() for text in texts):
        return "expected text, found a blank cell"
    return next(filter(None, map(check_text, texts)), None)


def _cells(
    path: Path, wanted: Sequence[str | int], width: int | None, drops_short: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Yield the wanted cells of a TSV file's rows, with places; no ``width``: it has a header."""
    lines = read_lines(path)
    first = 0
    columns = wanted
    if width is None:
        if not lines:
            raise BertNumpyError(f"{path}: expected a header and examples, found an empty file")
        header = lines[0].split("\t")
        if twice := [name for name in wanted if header.count(str(name)) > 1]:
            raise BertNumpyError(
                f"{path} line 1: expected one column {twice[0]!r}, found "
                f"{header.count(str(twice[0]))}"
            )
        if missing := [name for name in wanted if name not in header]:
            raise BertNumpyError(
                f"{path} line 1: expected columns {', '.join(map(str, wanted))}, found no "
                f"{missing[0]!r} in {header}"
            )
        columns = [header.index(str(name)) for name in wanted]
        width, first = len(header), 1
    for number, line in enumerate(lines[first:], first + 1):
        cells = line.split("\t")
        place = f"{path} line {number}"
        if len(cells) < width and drops_short:
            continue
        if len(cells) != width:
            raise BertNumpyError(f"{place}: expected {width} columns, found {len(cells)}")
        yield place, [cells[int(column)] for column in columns]


def _records(path: Path, task: GlueTask) -> Iterator[tuple[list[str], float]]:
    """Yield the texts and the label of each row of a JSON Lines or Parquet file."""
    drops_broken_rows = task.drops_broken_rows and path.name.startswith("train")
    for place, record in read_records(path, (*task.fields, "label")):
        if drops_broken_rows and not all(str(record.get(key) or "").strip() for key in task.fields):
            continue
        yield _texts(record, task, place), _label(record.get("label"), task, place)


def _texts(record: Mapping[str, Any], task: GlueTask, place: str) -> list[str]:
    texts = [record.get(key) for key in task.fields]
    for key, text in zip(task.fields, texts, strict=True):
        if not isinstance(text, str):
            found = repr(text) if key in record else "nothing"
            raise BertNumpyError(f"{place}: {key}: expected text, found {found}")
        if fault := check_text(text):
            raise BertNumpyError(f"{place}: {key}: {fault}")
    return [str(text) for text in texts]


def _label(value: Any, task: GlueTask, place: str) -> float:
    """Read a label of a record: a score, or a class by its number or its name."""
    if task.is_regression:
        number = isinstance(value, float | int) and not isinstance(value, bool)
        # A number too large for a float is also larger than any score.
        fits = number and abs(value) <= max(task.score_range)
        return _parse_label(repr(float(value) if fits else value), task, place)
    if isinstance(value, str) and value in task.labels:
        return task.labels.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(task.labels):
        return value
    names = ", ".join(f"{i} ({name})" for i, name in enumerate(task.labels))
    raise BertNumpyError(f"{place}: label: expected one of {names}, found {value!r}")


#: The columns that number the rows of an official test file.
_NUMBER_COLUMNS = ("index", "id", "idx")

#: The number of a row: decimal, with one spelling, within 64 bits.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


def read_test_set(paths: Sequence[Path], task: GlueTask) -> Examples:
    """Read a task's examples without labels, from one or several files.

    A TSV file has a column ``index`` (or ``id``, as in QQP, or ``idx``), at any
    place. JSON Lines and Parquet have ``idx`` in every row; if no row of a file
    has it, rows are numbered from 0 over all files.

    Raises
    ------
    BertNumpyError
        In the cases of :func:`read_examples`; if a number is not decimal or occurs
        twice; or if some rows have a number and others do not.
    """
    rows: dict[str, list[str]] = {}
    for path in paths:
        if path.suffix in RECORD_SUFFIXES:
            found = _test_records(path, task, len(rows))
        else:
            found = _test_rows(path, task)
        before = len(rows)
        for place, name, texts in found:
            if not _NUMBER.fullmatch(name):
                raise BertNumpyError(f"{place}: idx: expected a number, found {name!r}")
            if name in rows:
                raise BertNumpyError(f"{place}: expected a number of its own, found another {name}")
            rows[name] = texts
        if len(rows) == before:
            raise BertNumpyError(f"{path}: expected examples, found none")
    pairs = [texts[1] for texts in rows.values()] if len(task.text_columns) == 2 else None
    return Examples([texts[0] for texts in rows.values()], pairs, None, tuple(rows))


def _test_rows(path: Path, task: GlueTask) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the place, the number and the texts of each row of an official test file."""
    # Every test file has a header, even CoLA's, whose other files have none.
    header = next(iter(read_lines(path)), "").split("\t")
    number = next((name for name in _NUMBER_COLUMNS if name in header), header[0])
    names = task.fields if task.columns is not None else task.text_columns
    for place, (name, *texts) in _cells(path, (number, *names), None):
        if not _NUMBER.fullmatch(name) or _fault(texts):
            raise BertNumpyError(f"{place}: expected a number and text, found {[name, *texts]}")
        yield place, name, texts


def _test_records(path: Path, task: GlueTask, first: int) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the same for JSON Lines or Parquet; missing numbers are counted from ``first``."""
    numbered = None
    for row, (place, record) in enumerate(read_records(path, (*task.fields, "idx")), first):
        value = record.get("idx")
        if numbered is None:
            numbered = value is not None
        if numbered != (value is not None):
            expected = "a number, as in the rows before" if numbered else "none, as before"
            raise BertNumpyError(f"{place}: idx: expected {expected}, found {value!r}")
        if value is not None and type(value) is not int and not isinstance(value, str):
            raise BertNumpyError(f"{place}: idx: expected a number, found {value!r}")
        yield place, str(row if value is None else value), _texts(record, task, place)


def submission(task: GlueTask, ids: Sequence[str], predictions: Array) -> str:
    """Make the file for GLUE's server, with a number and a prediction per line.

    Classes are written as in the task's own files, by number or by name. Scores
    have three decimals and are clipped to the task's range.

    Raises
    ------
    BertNumpyError
        If a prediction is missing (:mod:`bert_numpy.finite`).

    Examples
    --------
    >>> submission(task_named("rte"), ["0", "1"], np.array([1, 0])).split()
    ['index', 'prediction', '0', 'not_entailment', '1', 'entailment']
    """
    none = missing(predictions)
    if none.any():
        raise BertNumpyError(
            f"task {task.name}: text {int(none.argmax()) + 1}: expected a prediction, found none: "
            "a number of the model's output is not finite"
        )
    if task.is_regression:
        shown = [f"{score:.3f}" for score in np.clip(predictions, *task.score_range)]
    elif task.label_names_in_file:
        shown = [task.labels[number] for number in predictions]
    else:
        shown = [str(number) for number in predictions]
    rows = [f"{name}\t{text}\n" for name, text in zip(ids, shown, strict=True)]
    return "index\tprediction\n" + "".join(rows)


def _parse_label(cell: str, task: GlueTask, place: str) -> float:
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


def label_order(names: Sequence[str], task: GlueTask, problem_type: str | None = None) -> IntArray:
    """Return the task's class of each output of a model's head.

    A checkpoint may have its classes in another order than GLUE. The names of
    its labels decide: the task's words in any order (in any case, with
    ``-``, ``_`` or spaces between them), or GLUE's numbers of the classes (``0``,
    ``1``). Labels without a name, ``LABEL_0`` and so on, are in GLUE's order. Any
    other name, even ``pos``, is refused, as a wrong guess would exchange the
    classes. The one output of a regression may have any name.

    Parameters
    ----------
    names : sequence of str
        The head's labels, ``BertConfig.labels``.
    task : GlueTask
    problem_type : str, optional
        ``BertConfig.problem_type``: the kind of the outputs, if the checkpoint names it.

    Returns
    -------
    ndarray of int64, (outputs,)
        Numbers in 0..outputs-1, each once.

    Raises
    ------
    BertNumpyError
        If the number of outputs, their kind or their labels do not fit the task. The
        message names what was found and what was expected.
    """
    if len(names) != task.outputs:
        raise BertNumpyError(
            f"task {task.name}: expected a model with {task.outputs} outputs, found {len(names)}: "
            f"{', '.join(names)}"
        )
    if problem_type is not None and (problem_type == "regression") != task.is_regression:
        kind = "regression" if task.is_regression else "classification"
        raise BertNumpyError(
            f"task {task.name}: expected a model for {kind}, found 'problem_type' "
            f"{problem_type!r} in its config.json"
        )
    numbers = range(len(names))
    if task.is_regression:
        return np.array(numbers, np.int64)
    plain = [re.sub(r"[\s_-]+", "_", name.strip().casefold()) for name in names]
    if plain == [f"label_{i}" for i in numbers]:
        return np.array(numbers, np.int64)
    for known in (list(task.labels), [str(i) for i in numbers]):
        if sorted(plain) == sorted(known):
            return np.array([known.index(name) for name in plain], np.int64)
    placeholders = ", ".join(f"LABEL_{i}" for i in numbers)
    raise BertNumpyError(
        f"task {task.name}: expected labels {', '.join(task.labels)} in any order, or "
        f"{placeholders} in GLUE's order, found {', '.join(names)}: which output is which class? "
        "Name them in 'id2label' of config.json"
    )

"""SQuAD v1.1: questions, their contexts and answers, from the official JSON files.

JSON Lines and Parquet have the hub's columns (data set rajpurkar/squad).

Source: Rajpurkar et al., *SQuAD: 100,000+ Questions for Machine Comprehension of Text*
(arXiv 1606.05250).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError, read_json
from bert_numpy.finite import rows_not_finite
from bert_numpy.model.config import BertConfig
from bert_numpy.progress import Progress
from bert_numpy.tasks.metrics import ANSWER_METRICS
from bert_numpy.tasks.records import RECORD_SUFFIXES, check_text, read_records
from bert_numpy.tasks.spans import Answer, best_answers
from bert_numpy.tasks.task import Labels, Predictions, even_rows
from bert_numpy.tasks.tokenization import Tokenizer, Window
from npfp8.arrays import Float32Array

__all__ = [
    "SQUAD",
    "Question",
    "Questions",
    "SpanTask",
    "merge_questions",
    "read_questions",
]

_VERSION = "1.1"


@dataclass(frozen=True)
class SpanTask:
    """A :class:`~bert_numpy.tasks.task.Task` whose answers are spans of a context.

    The numbers are the defaults of ``run_squad.py`` of the original BERT
    (github.com/google-research/bert).

    Attributes
    ----------
    name : str
        The name on the command line, and of the data's folder.
    dev, train : str
        The names of the files.
    max_length, doc_stride, max_query_length : int
        See :meth:`bert_numpy.Tokenizer.windows`.
    n_best, max_answer_length : int
        See :func:`bert_numpy.tasks.spans.best_answers`.
    hub_config, head, test_set
        See :class:`bert_numpy.tasks.task.Task`.
    """

    name: str
    dev: str
    train: str
    max_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    n_best: int = 20
    max_answer_length: int = 30
    hub_config: str = "plain_text"
    head: str = "question answering"
    test_set: None = None

    @property
    def folder(self) -> str:
        """The data's folder, among the folders of GLUE's tasks."""
        return self.name

    @property
    def scores(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """The metrics by name: functions of the right answers and the predicted texts."""
        return ANSWER_METRICS

    def read(self, paths: Sequence[Path]) -> Questions:
        """Read files of questions; see :func:`read_questions`."""
        return merge_questions([read_questions(path) for path in paths])

    def check_labels(self, config: BertConfig) -> None:
        """Accept every model: the outputs of the head for answers have no names."""

    def encode(
        self, tokenizer: Tokenizer, examples: Questions, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """Encode questions with windows on contexts: see :meth:`bert_numpy.Tokenizer.windows`."""
        return tokenizer.windows(
            [item.question for item in examples.items],
            [item.context for item in examples.items],
            max_length,
            self.doc_stride,
            self.max_query_length,
            progress,
        )

    def predict(
        self,
        config: BertConfig,
        examples: Questions,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """Find the text of the likeliest answer to each question, from its windows' logits."""
        remaining = iter(logits)
        answers: list[tuple[Answer, ...]] = []
        for question, parts in zip(examples.items, windows, strict=True):
            own = [next(remaining) for _ in parts]
            if rows_not_finite(np.concatenate(own)).any():
                answers.append(())
                continue
            limits = (self.n_best, self.max_answer_length)
            answers.append(best_answers(question.context, parts, own, *limits))
        texts = [best[0].text if best else None for best in answers]
        # Texts are objects: an array of str would lose a NUL at the end.
        return Predictions(np.concatenate(logits), np.array(texts, object), tuple(answers))


SQUAD = SpanTask("squad", "dev-v1.1.json", "train-v1.1.json")


@dataclass(frozen=True)
class Question:
    """A question on a context, and the answers that people gave, each a part of the context."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """Questions in the file's order."""

    items: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> tuple[str, ...]:
        """The questions' ids."""
        return tuple(item.id for item in self.items)

    @property
    def labels(self) -> Labels:
        """The right answers to each question: tuples of str, as objects."""
        return np.fromiter((item.answers for item in self.items), object, len(self))

    def select(self, rows: Sequence[int]) -> Questions:
        """Return the questions of the given rows, in their order."""
        return Questions(tuple(self.items[row] for row in rows))

    def sample(self, count: int) -> Questions:
        """Return ``count`` questions spread evenly, by integers alone; see :func:`even_rows`."""
        return self.select(even_rows(len(self), count))


def read_questions(path: Path) -> Questions:
    """Read a file in SQuAD's v1.1 layout or, by its ending, JSON Lines or Parquet.

    Every answer must be in its context at ``answer_start``. The
    metrics do not need that place, but wrong offsets show that the file
    was damaged, by another encoding or another form of Unicode.

    Raises
    ------
    BertNumpyError
        If the file is missing, is not JSON or has another version; if it has no question;
        or if anything in it is missing, of another type, blank or a duplicate. The message
        names the file and the place in it, what was found and what was expected.
    """
    nodes = _records(path) if path.suffix in RECORD_SUFFIXES else _official(path)
    questions: dict[str, Question] = {}
    for node, context, answers in nodes:
        name = node.text("id")
        if name in questions:
            raise node.error("id", "an id of its own", f"another {name!r}")
        right = tuple(_answers(answers, context))
        questions[name] = Question(name, node.text("question"), context, right)
    if not questions:
        raise BertNumpyError(f"{path}: expected questions, found none")
    return Questions(tuple(questions.values()))


def _official(path: Path) -> Iterator[tuple[_Node, str, list[_Node]]]:
    """Yield each question of an official file, with its context and its answers."""
    root = _Node(path, "", read_json(path))
    if (version := root.get("version", str)) != _VERSION:
        raise root.error("version", repr(_VERSION), repr(version))
    for article in root.items("data"):
        for paragraph in article.items("paragraphs"):
            context = paragraph.text("context")
            for node in paragraph.items("qas"):
                yield node, context, node.items("answers")


def _records(path: Path) -> Iterator[tuple[_Node, str, list[_Node]]]:
    """Yield each question of a JSON Lines or Parquet file, with its context and its answers.

    In these files the answers are one object of two lists, the texts and their places.
    """
    for place, record in read_records(path, ("id", "question", "context", "answers")):
        node = _Node(place, "", record)
        answers = _Node(place, "answers", node.get("answers", dict))
        columns = [answers.get(key, list) for key in ("text", "answer_start")]
        if len({len(column) for column in columns}) != 1 or not columns[0]:
            lengths = " and ".join(str(len(column)) for column in columns)
            raise answers.error("text", "as many texts as places, at least one", lengths)
        yield (
            node,
            node.text("context"),
            [
                _Node(place, f"answers[{i}]", {"text": text, "answer_start": start})
                for i, (text, start) in enumerate(zip(*columns, strict=True))
            ],
        )


def merge_questions(parts: Sequence[Questions]) -> Questions:
    """Join the questions of several files.

    Raises
    ------
    BertNumpyError
        If two questions have the same id, as their answers could not be told apart.
    """
    items = tuple(item for part in parts for item in part.items)
    if len({item.id for item in items}) < len(items):
        (twice, _), *_ = Counter(item.id for item in items).most_common(1)
        raise BertNumpyError(f"question {twice!r}: expected in one file, found in two")
    return Questions(items)


def _answers(nodes: list[_Node], context: str) -> Iterator[str]:
    for answer in nodes:
        text, start = answer.text("text"), answer.get("answer_start", int)
        there = context[start : start + len(text)] if start >= 0 else ""
        if there != text:
            raise answer.error("answer_start", f"where {text!r} begins", f"{start}, {there!r}")
        yield text


@dataclass(frozen=True)
class _Node:
    """An object in a JSON file, and its path: ``data[0].paragraphs[3]``."""

    file: Path | str
    place: str
    value: Mapping[str, Any]

    def error(self, key: str, expected: str, found: str) -> BertNumpyError:
        place = f"{self.place}.{key}".lstrip(".")
        return BertNumpyError(f"{self.file}: {place}: expected {expected}, found {found}")

    def get(self, key: str, kind: type) -> Any:
        value = self.value.get(key)
        if type(value) is not kind:
            found = repr(value) if key in self.value else "nothing"
            raise self.error(key, kind.__name__, found if len(found) < 80 else f"{found[:80]}...")
        return value

    def text(self, key: str) -> str:
        """Return a text with words in it, and without halves of characters."""
        value: str = self.get(key, str)
        if fault := check_text(value):
            place = f"{self.place}.{key}".lstrip(".")
            raise BertNumpyError(f"{self.file}: {place}: {fault}")
        return value

    def items(self, key: str) -> list[_Node]:
        """Return the objects of a list that is not empty."""
        values = self.get(key, list)
        if not values:
            raise self.error(key, "at least one", "none")
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(f"{key}[{number}]", "an object", type(value).__name__)
        place = f"{self.place}.{key}".lstrip(".")
        return [_Node(self.file, f"{place}[{i}]", value) for i, value in enumerate(values)]

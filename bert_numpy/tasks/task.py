"""The interface of a task: everything that jobs, commands and studies use of GLUE and SQuAD.

A task reads its files into examples and encodes them as windows, the inputs of the model.
A text or a pair of texts has one window, a question on a long context has several. Then
the task turns the logits of all windows into one prediction per example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from bert_numpy.model.config import BertConfig
from bert_numpy.progress import Progress
from bert_numpy.tasks.spans import Answer
from bert_numpy.tasks.tokenization import Tokenizer, Window
from npfp8.arrays import Array, Float32Array

__all__ = ["Data", "Labels", "Predictions", "Task", "TestSet", "even_rows"]

#: The class (int64), the score (float64), or the right answers (tuples, as objects) of every
#: example.
Labels = Array

_Self = TypeVar("_Self")


class Data(Protocol):
    """Examples of a task, in the file's order."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The name of each example in the file; empty if there are no names."""

    @property
    def labels(self) -> Labels | None:
        """The right predictions, (examples,); None in a test set."""

    def __len__(self) -> int: ...

    def select(self: _Self, rows: Sequence[int]) -> _Self:
        """Return the examples of the given rows, in their order."""

    def sample(self: _Self, count: int) -> _Self:
        """Return the examples of :func:`even_rows`."""


_Data = TypeVar("_Data", bound=Data)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A task's predictions, and the logits that they were made from.

    See :class:`bert_numpy.evaluation.evaluate.Evaluation` for all three.

    Attributes
    ----------
    logits : ndarray of float32, (examples, outputs); for questions (tokens, 2)
    predictions : ndarray, (examples,)
    answers : tuple of tuples of Answer
        The answers, for questions alone.
    """

    logits: Float32Array
    predictions: Array
    answers: tuple[tuple[Answer, ...], ...] = ()


@dataclass(frozen=True)
class TestSet(Generic[_Data]):
    """Examples without labels, whose predictions a server scores.

    Attributes
    ----------
    file : str
        The official file's name.
    read : callable
        Reads the set from its files.
    submission_file : str
        The name of the file that the server takes.
    submission : callable
        Makes that file's text from the examples' ids and the predictions.
    """

    file: str
    read: Callable[[Sequence[Path]], _Data]
    submission_file: str
    submission: Callable[[Sequence[str], Array], str]


class Task(Protocol[_Data]):
    """A task with examples of one type."""

    @property
    def name(self) -> str:
        """The name on the command line."""

    @property
    def folder(self) -> str:
        """The official folder's name."""

    @property
    def hub_config(self) -> str:
        """The part of the data set on the Hugging Face hub."""

    @property
    def dev(self) -> str:
        """The official development file's name."""

    @property
    def train(self) -> str:
        """The official training file's name."""

    @property
    def test_set(self) -> TestSet[_Data] | None:
        """The set whose predictions a server scores, if there is one."""

    @property
    def head(self) -> str:
        """The name of the head that a model must have."""

    @property
    def max_length(self) -> int:
        """The longest input, in tokens, unless another length is given."""

    @property
    def scores(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """The metrics by name, the main one first: functions of labels and predictions."""

    def read(self, paths: Sequence[Path]) -> _Data:
        """Read labelled examples from one or several files.

        Raises
        ------
        BertNumpyError
            If a file is missing or malformed.
        """

    def check_labels(self, config: BertConfig) -> None:
        """Raise :class:`BertNumpyError` if the outputs of a model's head do not fit the task."""

    def encode(
        self, tokenizer: Tokenizer, examples: _Data, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """Encode each example as at least one input of a model."""

    def predict(
        self,
        config: BertConfig,
        examples: _Data,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """Predict for each example, from the concatenated logits of all windows."""


def even_rows(n: int, count: int) -> list[int]:
    """Choose ``count`` of ``n`` rows evenly, ``floor(i * n / count)``; all if there are no more."""
    count = min(count, n)
    return [i * n // count for i in range(count)]

"""The interface of a task: all that a job, a command or a study knows of GLUE's tasks and SQuAD.

A task reads its files into examples, encodes them as the windows that the model
is run on (one for a text or a pair of texts, several for a question on a long
context), and turns the logits of all windows into one prediction per example.
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

#: Of every example its class (int64), its score (float64), or its right answers (tuples, as
#: objects).
Labels = Array

_Self = TypeVar("_Self")


class Data(Protocol):
    """Examples of a task, in the file's order."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The name that the file gives to each example; empty if it gives none."""

    @property
    def labels(self) -> Labels | None:
        """What is right, (examples,); None in a test set."""

    def __len__(self) -> int: ...

    def select(self: _Self, rows: Sequence[int]) -> _Self:
        """The examples of the given rows, in their order."""

    def sample(self: _Self, count: int) -> _Self:
        """The examples of :func:`even_rows`."""


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
        For questions alone.
    """

    logits: Float32Array
    predictions: Array
    answers: tuple[tuple[Answer, ...], ...] = ()


@dataclass(frozen=True)
class TestSet(Generic[_Data]):
    """Examples without labels, for whose predictions there is a server that scores them.

    Attributes
    ----------
    file : str
        The official file's name.
    read : callable
        Reads the set from its files.
    submission_file : str
        The name of the file that the server takes.
    submission : callable
        That file's text, from the examples' ids and the predictions.
    """

    file: str
    read: Callable[[Sequence[Path]], _Data]
    submission_file: str
    submission: Callable[[Sequence[str], Array], str]


class Task(Protocol[_Data]):
    """A task, of examples of one type."""

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
        """The set whose predictions a server takes, if there is one."""

    @property
    def head(self) -> str:
        """The name of the head that a model must have."""

    @property
    def max_length(self) -> int:
        """The longest input, in tokens, unless another length is asked for."""

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
        """Raise :class:`BertNumpyError` if the outputs of a model's head are not the task's."""

    def encode(
        self, tokenizer: Tokenizer, examples: _Data, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """The inputs of a model for each example; at least one."""

    def predict(
        self,
        config: BertConfig,
        examples: _Data,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """The prediction for each example, from the logits of all windows in a row."""


def even_rows(n: int, count: int) -> list[int]:
    """``count`` of ``n`` rows, evenly: ``floor(i * n / count)``; all if there are no more."""
    count = min(count, n)
    return [i * n // count for i in range(count)]

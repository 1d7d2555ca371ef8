"""Tasks of sentence encoders: what the vectors of texts say of one another.

``stsb-cosine`` holds the cosine of two sentences' vectors against STS-B's scores, as
sentence-transformers' ``EmbeddingSimilarityEvaluator`` does. :data:`EMBEDDINGS`
has texts without labels, and asks of each which other is nearest to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.finite import NO_CLASS, rows_not_finite
from bert_numpy.model.config import BertConfig
from bert_numpy.progress import Progress
from bert_numpy.tasks.glue import TASKS, Examples, GlueTask
from bert_numpy.tasks.task import Predictions
from bert_numpy.tasks.texts import read_texts
from bert_numpy.tasks.tokenization import Tokenizer, Window
from npfp8.arrays import Float32Array, Float64Array, IntArray
from npfp8.golden import tree_sum

__all__ = [
    "EMBEDDINGS",
    "STSB_COSINE",
    "EmbeddingTask",
    "SimilarityTask",
    "cosines",
    "neighbours",
]

#: Texts whose nearest others are looked for at a time.
_AT_A_TIME = 512

#: Cosines are compared by so many decimals: equal vectors stay equal whoever multiplies them.
_DECIMALS = 12


@dataclass(frozen=True)
class SimilarityTask:
    """A :class:`~bert_numpy.tasks.task.Task` on pairs of texts, each text with a vector of its own.

    Attributes
    ----------
    name : str
    pairs : GlueTask
        Whose files, scores and metrics these are.
    max_length : int
        By default as long as the encoder reads.
    head : str
    test_set : None
        A cosine is none of the scores that a server takes.
    """

    name: str
    pairs: GlueTask
    max_length: int = sys.maxsize
    head: str = "sentence embeddings"
    test_set: None = None

    @property
    def folder(self) -> str:
        """The official folder's name."""
        return self.pairs.folder

    @property
    def hub_config(self) -> str:
        """The part of the data set on the hub."""
        return self.pairs.hub_config

    @property
    def dev(self) -> str:
        """The official development file's name."""
        return self.pairs.dev

    @property
    def train(self) -> str:
        """The official training file's name."""
        return self.pairs.train

    @property
    def scores(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """The metrics by name: correlations, which need no scale of the scores."""
        return self.pairs.scores

    def read(self, paths: Sequence[Path]) -> Examples:
        """Read labelled files of pairs."""
        return self.pairs.read(paths)

    def check_labels(self, config: BertConfig) -> None:
        """Nothing: a vector has no labels."""

    def encode(
        self, tokenizer: Tokenizer, examples: Examples, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """The two inputs of a model for each pair: its texts, cut to ``max_length`` tokens."""
        assert examples.pairs is not None
        first = tokenizer.encode(examples.texts, None, max_length, progress)
        second = tokenizer.encode(examples.pairs, None, max_length)
        return [[Window(a), Window(b)] for a, b in zip(first, second, strict=True)]

    def predict(
        self,
        config: BertConfig,
        examples: Examples,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """The cosine of each pair's vectors; ``logits`` are both vectors, (examples, 2, width)."""
        vectors = np.stack(logits).reshape(len(windows), 2, -1)
        return Predictions(vectors, cosines(vectors[:, 0], vectors[:, 1]))


@dataclass(frozen=True)
class EmbeddingTask:
    """A :class:`~bert_numpy.tasks.task.Task` on texts without labels: which other is nearest."""

    name: str
    max_length: int = sys.maxsize
    head: str = "sentence embeddings"
    folder: str = ""
    hub_config: str = ""
    dev: str = ""
    train: str = ""
    test_set: None = None

    @property
    def scores(self) -> Mapping[str, Callable[[Any, Any], float]]:
        """None: nothing is right or wrong."""
        return {}

    def read(self, paths: Sequence[Path]) -> Examples:
        """Read files of texts; see :func:`bert_numpy.tasks.texts.read_texts`."""
        return Examples([text for path in paths for text in read_texts(path)], None, None)

    def check_labels(self, config: BertConfig) -> None:
        """Nothing: a vector has no labels."""

    def encode(
        self, tokenizer: Tokenizer, examples: Examples, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """The input of a model for each text, cut to ``max_length`` tokens."""
        encoded = tokenizer.encode(examples.texts, None, max_length, progress)
        return [[Window(one)] for one in encoded]

    def predict(
        self,
        config: BertConfig,
        examples: Examples,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """The row of the text nearest to each; ``logits`` are the vectors, (examples, width)."""
        vectors = np.stack(logits)
        return Predictions(vectors, neighbours(vectors, 1)[:, 0])


#: STS-B for encoders; :func:`bert_numpy.tasks.registry.task_for` finds it.
STSB_COSINE = SimilarityTask("stsb-cosine", TASKS["stsb"])

#: Texts of one's own. It is in no table, as it has no data set.
EMBEDDINGS = EmbeddingTask("embeddings")


def cosines(a: Float32Array, b: Float32Array) -> Float64Array:
    """The cosine of each row of ``a`` with that of ``b``, in float64 and a fixed order of sums.

    (n, width), (n, width) -> (n,). NaN where a vector is zero, which has no
    direction, or a number is not finite.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(tree_sum(np.square(x))) * np.sqrt(tree_sum(np.square(y)))
        found: Float64Array = tree_sum(x * y) / norms
    return np.where(np.isfinite(found), found, np.nan)


def neighbours(vectors: Float32Array, count: int) -> IntArray:
    """The rows of the ``count`` vectors nearest to each by cosine, the nearest first.

    Of equally near ones the earlier is first. A zero vector is as far from all.

    Parameters
    ----------
    vectors : ndarray of float32, (n, width)
    count : int
        At most ``n - 1``.

    Returns
    -------
    ndarray of int64, (n, count)
        :data:`bert_numpy.finite.NO_CLASS` for a vector that is not finite; it is
        farther from the others than all that are.
    """
    none = rows_not_finite(vectors)
    x = np.where(none[:, None], 0, vectors).astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.where(norms > 0, norms, 1)
    found = np.empty((len(x), count), np.int64)
    for start in range(0, len(x), _AT_A_TIME):
        rows = np.arange(start, min(start + _AT_A_TIME, len(x)))
        near = np.round(x[rows] @ x.T, _DECIMALS)
        near[:, none] = -np.inf
        near[np.arange(len(rows)), rows] = -np.inf  # itself
        least = np.partition(near, -count, axis=1)[:, -count]
        for row, of_row, bound in zip(rows.tolist(), near, least, strict=True):
            nearest = np.flatnonzero(of_row >= bound)
            nearest = nearest[nearest != row]  # there if the others are none
            order = np.argsort(-of_row[nearest], kind="stable")
            found[row] = nearest[order[:count]]
    found[none] = NO_CLASS
    return found

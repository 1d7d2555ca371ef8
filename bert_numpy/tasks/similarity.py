"""Tasks of sentence encoders, which compare the vectors of texts.

``stsb-cosine`` correlates the cosine of two sentences' vectors with STS-B's scores, like
sentence-transformers' ``EmbeddingSimilarityEvaluator``. :data:`EMBEDDINGS`
takes texts without labels, and finds the nearest other text of each.
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
from npfp8.arrays import Float32Array, Float64Array, IntArray, blas_product
from npfp8.golden import tree_sum

__all__ = [
    "EMBEDDINGS",
    "STSB_COSINE",
    "EmbeddingTask",
    "SimilarityTask",
    "cosines",
    "neighbours",
]

#: The number of texts whose neighbours are searched at a time.
_AT_A_TIME = 512

#: The decimals by which cosines are compared, so that equal vectors stay equal with every BLAS.
_DECIMALS = 12


@dataclass(frozen=True)
class SimilarityTask:
    """A :class:`~bert_numpy.tasks.task.Task` on pairs of texts, where each text gets a vector.

    Attributes
    ----------
    name : str
    pairs : GlueTask
        The task whose files, scores and metrics are used.
    max_length : int
        The longest input; by default the encoder's limit.
    head : str
    test_set : None
        There is none, as no server accepts a cosine as a score.
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
        """Accept every model, as a vector has no labels."""

    def encode(
        self, tokenizer: Tokenizer, examples: Examples, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """Encode the two texts of each pair, truncated to ``max_length`` tokens."""
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
        """Compute each pair's cosine; ``logits`` become both vectors, (examples, 2, width)."""
        vectors = np.stack(logits).reshape(len(windows), 2, -1)
        return Predictions(vectors, cosines(vectors[:, 0], vectors[:, 1]))


@dataclass(frozen=True)
class EmbeddingTask:
    """A :class:`~bert_numpy.tasks.task.Task` on texts without labels: find the nearest other."""

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
        """An empty mapping, as nothing is right or wrong."""
        return {}

    def read(self, paths: Sequence[Path]) -> Examples:
        """Read files of texts; see :func:`bert_numpy.tasks.texts.read_texts`."""
        return Examples([text for path in paths for text in read_texts(path)], None, None)

    def check_labels(self, config: BertConfig) -> None:
        """Accept every model, as a vector has no labels."""

    def encode(
        self, tokenizer: Tokenizer, examples: Examples, max_length: int, progress: Progress | None
    ) -> list[list[Window]]:
        """Encode each text, truncated to ``max_length`` tokens."""
        encoded = tokenizer.encode(examples.texts, None, max_length, progress)
        return [[Window(one)] for one in encoded]

    def predict(
        self,
        config: BertConfig,
        examples: Examples,
        windows: Sequence[Sequence[Window]],
        logits: Sequence[Float32Array],
    ) -> Predictions:
        """Find the row of the text nearest to each; ``logits`` are vectors, (examples, width)."""
        vectors = np.stack(logits)
        return Predictions(vectors, neighbours(vectors, 1)[:, 0])


#: STS-B for encoders; :func:`bert_numpy.tasks.registry.task_for` finds it.
STSB_COSINE = SimilarityTask("stsb-cosine", TASKS["stsb"])

#: The task for the user's own texts. It is in no table, as it has no data set.
EMBEDDINGS = EmbeddingTask("embeddings")


def cosines(a: Float32Array, b: Float32Array) -> Float64Array:
    """Compute the cosine of each row of ``a`` and ``b``, in float64 and a fixed order of sums.

    (n, width), (n, width) -> (n,). The cosine is NaN if a vector is zero, which has no
    direction, or if a number is not finite.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(tree_sum(np.square(x))) * np.sqrt(tree_sum(np.square(y)))
        found: Float64Array = tree_sum(x * y) / norms
    return np.where(np.isfinite(found), found, np.nan)


def neighbours(vectors: Float32Array, count: int) -> IntArray:
    """Find the rows of the ``count`` vectors nearest to each by cosine, the nearest first.

    On a tie the earlier row is first. A zero vector is equally far from all others.

    Parameters
    ----------
    vectors : ndarray of float32, (n, width)
    count : int
        At most ``n - 1``.

    Returns
    -------
    ndarray of int64, (n, count)
        The rows; :data:`bert_numpy.finite.NO_CLASS` for a vector that is not finite. Such a
        vector is farther from the others than every finite one.
    """
    none = rows_not_finite(vectors)
    x = np.where(none[:, None], 0, vectors).astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    x /= np.where(norms > 0, norms, 1)
    found = np.empty((len(x), count), np.int64)
    for start in range(0, len(x), _AT_A_TIME):
        rows = np.arange(start, min(start + _AT_A_TIME, len(x)))
        near = np.round(blas_product(x[rows], x.T), _DECIMALS)
        near[:, none] = -np.inf
        near[np.arange(len(rows)), rows] = -np.inf  # itself
        least = np.partition(near, -count, axis=1)[:, -count]
        for row, of_row, bound in zip(rows.tolist(), near, least, strict=True):
            nearest = np.flatnonzero(of_row >= bound)
            nearest = nearest[nearest != row]  # itself, if too few others are finite
            order = np.argsort(-of_row[nearest], kind="stable")
            found[row] = nearest[order[:count]]
    found[none] = NO_CLASS
    return found

"""The official metrics of GLUE and of SQuAD, as fractions of 1, for at least one example.

Sources: Wang et al., *GLUE* (arXiv 1804.07461), table 1, and Rajpurkar et al., *SQuAD*
(arXiv 1606.05250), section 6.1, as its ``evaluate-v1.1.py`` computes them. The
names are those of the GLUE and SQuAD metrics in Hugging Face's ``evaluate``.

A missing prediction (:mod:`bert_numpy.finite`: a class below 0, a NaN, None
for a text) is wrong in every metric; correlations then have no value.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bert_numpy.finite import NO_CLASS, missing
from npfp8.arrays import Array, blas_product

__all__ = [
    "ANSWER_METRICS",
    "METRICS",
    "accuracy",
    "answer_f1",
    "exact_match",
    "f1",
    "matthews_correlation",
    "normalize_answer",
    "pearson",
    "spearmanr",
]


def accuracy(labels: Array, predictions: Array) -> float:
    """Compute the fraction of predictions that equal their label."""
    return float(np.mean(labels == predictions))


def f1(labels: Array, predictions: Array) -> float:
    """Compute F1 of class 1 (Dice coefficient); 0 if class 1 neither occurs nor is predicted.

    A missing prediction counts as class 1 where that is wrong.
    """
    claimed = (predictions == 1) | (missing(predictions) & (labels != 1))
    hits = np.count_nonzero((labels == 1) & (predictions == 1))
    total = np.count_nonzero(labels == 1) + np.count_nonzero(claimed)
    return float(2 * hits / total) if total else 0.0


def matthews_correlation(labels: Array, predictions: Array) -> float:
    """Compute Matthews correlation for any number of classes; 0 if a side has only one class.

    Missing predictions form a separate class.
    """
    predictions = np.where(missing(predictions), NO_CLASS, predictions)
    classes = np.unique(np.concatenate([labels, predictions]))
    true = labels[:, None] == classes
    guess = predictions[:, None] == classes
    n = len(labels)
    t, p = true.sum(axis=0, dtype=np.int64), guess.sum(axis=0, dtype=np.int64)
    agree = np.count_nonzero(labels == predictions)
    covariance = agree * n - int(t @ p)
    spread = float(n * n - int(p @ p)) * float(n * n - int(t @ t))
    return float(covariance / np.sqrt(spread)) if spread else 0.0


def pearson(labels: Array, predictions: Array) -> float:
    """Compute Pearson's correlation; NaN if a side is constant, or not finite everywhere."""
    x = labels.astype(np.float64)
    y = predictions.astype(np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if x.min() == x.max() or y.min() == y.max():  # the mean of equal numbers may differ from them
        return float("nan")
    x, y = _centred(x), _centred(y)
    size = np.sqrt(blas_product(x, x) * blas_product(y, y))
    return float(np.clip(blas_product(x, y) / size, -1, 1))


def _centred(x: Array) -> Array:
    """Subtract the mean and scale, so that squares neither overflow nor vanish; not constant."""
    centred: Array = x - x.mean()
    return centred / np.abs(centred).max()


def spearmanr(labels: Array, predictions: Array) -> float:
    """Compute Spearman's correlation: Pearson's of the ranks, where equal values share a rank.

    That rank is the mean of theirs. The result is NaN where Pearson's is.
    """
    if not (np.isfinite(labels).all() and np.isfinite(predictions).all()):
        return float("nan")
    return pearson(_ranks(labels), _ranks(predictions))


def _ranks(values: Array) -> Array:
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    mean_rank: Array = last - (count - 1) / 2
    return mean_rank[position]


#: The metrics by name: functions of the labels and the predictions.
METRICS: dict[str, Callable[[Array, Array], float]] = {
    function.__name__: function
    for function in (accuracy, f1, matthews_correlation, pearson, spearmanr)
}


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Normalize a text like SQuAD: lower case, no ASCII punctuation or articles, single spaces.

    The steps have this order, so ``a.`` is an article, and so is ``t.h.e``. Letters,
    word boundaries and spaces are Unicode's; other punctuation stays.
    """
    plain = text.lower().translate(_WITHOUT_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answers: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> float:
    """Compute the fraction of predicted texts that equal an answer to their question, normalized.

    Parameters
    ----------
    answers : sequence of sequences of str
        The right answers to each question, at least one.
    predictions : sequence of str or None
    """
    return _best_of(lambda answer, text: float(answer == text), answers, predictions)


def answer_f1(answers: Sequence[Sequence[str]], predictions: Sequence[str | None]) -> float:
    """Compute the mean F1 of the words of predicted texts against their nearest answers.

    Texts are normalized. Words are counted as often as they occur; without a common word F1
    is 0, even if neither text has a word. The parameters are those of :func:`exact_match`.
    """
    return _best_of(_word_f1, answers, predictions)


def _word_f1(answer: str, text: str) -> float:
    words, others = text.split(), answer.split()
    common = (Counter(words) & Counter(others)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(others)
    return 2 * precision * recall / (precision + recall)


def _best_of(
    score: Callable[[str, str], float],
    answers: Sequence[Sequence[str]],
    predictions: Sequence[str | None],
) -> float:
    """Average the best score of each predicted text against the answers to its question."""
    scores = [
        0.0
        if text is None
        else max(score(normalize_answer(answer), normalize_answer(text)) for answer in right)
        for right, text in zip(answers, predictions, strict=True)
    ]
    return math.fsum(scores) / len(scores)


#: The metrics of answers by name: functions of the right answers and the predicted texts.
ANSWER_METRICS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str | None]], float]] = {
    "exact_match": exact_match,
    "f1": answer_f1,
}

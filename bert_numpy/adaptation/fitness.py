"""The fitness of prompts: how unsure the model is, and how far its features are from the source.

Lower is better. The fitness of a batch X with prompts p is equation 5 of arXiv 2404.01650,

    L = sum over the texts of H(softmax(logits))
      + weight * (texts / 64) * sum over the layers of (|mean - source mean|^2
                                                        + |deviation - source deviation|^2)

with the entropy H in nats and the squares that the authors' code has (commit 11080e7 of
``tta_library/foa.py``). The paper's weight is 0.4.
"""

from __future__ import annotations

import numpy as np

from bert_numpy.adaptation.statistics import FeatureStatistics, statistics_of
from bert_numpy.finite import require_finite
from npfp8.arrays import Array, Float64Array

__all__ = ["discrepancy", "entropies", "fitness"]

#: The batch size for which the weight of the discrepancy is stated.
_BATCH = 64


def entropies(logits: Array) -> Float64Array:
    """Compute the entropy of each text's softmax, in nats. (texts, labels) -> (texts,).

    Raises
    ------
    BertNumpyError
        If a logit is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.adaptation.fitness import entropies
    >>> entropies(np.array([[0.0, 0.0], [0.0, 800.0]])).round(6)
    array([0.693147, 0.      ])
    """
    require_finite("logits", logits)
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    weights = np.exp(x)
    total = weights.sum(axis=1)
    return np.log(total) - (weights * x).sum(axis=1) / total


def discrepancy(found: FeatureStatistics, source: FeatureStatistics) -> float:
    """Add the squared distances of means and of deviations, over all layers.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.adaptation.fitness import discrepancy
    >>> from bert_numpy.adaptation.statistics import statistics_of
    >>> one, two = (np.array([[[1.0]], [[x]]]) for x in (3.0, 5.0))
    >>> round(discrepancy(statistics_of(two), statistics_of(one)), 12)
    3.0
    """
    mean, deviation = found.mean - source.mean, found.deviation - source.deviation
    return float((mean * mean).sum() + (deviation * deviation).sum())


def fitness(
    logits: Array, features: Array, source: FeatureStatistics, weight: float = 0.4
) -> float:
    """Compute the fitness of a batch, in float64.

    Parameters
    ----------
    logits : ndarray, (texts, labels)
    features : ndarray, (texts, layers, hidden)
    source : FeatureStatistics
    weight : float
        The weight of the discrepancy for 64 texts; it is proportional to their number, as
        the sum of entropies is.

    Raises
    ------
    BertNumpyError
        If there are fewer than two texts, or a number is not finite.
    """
    found = statistics_of(features)
    share = weight * len(logits) / _BATCH
    return float(entropies(logits).sum()) + share * discrepancy(found, source)

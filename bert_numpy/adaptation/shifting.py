"""Back-to-source shifting: move the last layer's features by the distance of two means.

The features of texts from a shifted domain have another mean than those of the source. A
moving average follows the mean over the batches, and the difference of the source's mean
from it is added to the features before the classifier reads them.

Source: section 3.2 of arXiv 2404.01650, equations 7 to 9.
"""

from __future__ import annotations

from bert_numpy.engines.engine import Engine
from bert_numpy.model.packing import Batch
from npfp8.arrays import Float32Array, Float64Array

__all__ = ["moved_average", "shifted"]


def moved_average(
    average: Float64Array | None, mean: Float64Array, share: float = 0.1
) -> Float64Array:
    """Update a moving average with the mean of a batch; the first mean is the average itself.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.adaptation.shifting import moved_average
    >>> first = moved_average(None, np.array([2.0]))
    >>> first, moved_average(first, np.array([12.0]))
    (array([2.]), array([3.]))
    """
    return mean if average is None else (1 - share) * average + share * mean


def shifted(
    engine: Engine[Float32Array], layout: Batch, x: Float32Array, shift: Float32Array
) -> Float32Array:
    """Add a shift, (hidden,), to each text's first token: (tokens, hidden) -> a new array.

    The engine adds, so the sum is rounded to its precision.
    """
    first, moved = layout.packing.first, x.copy()
    moved[first] = engine.add(x[first], shift)
    return engine.output("last_hidden_state", moved)

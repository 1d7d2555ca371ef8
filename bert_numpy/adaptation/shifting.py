"""Back-to-source shifting: move the last layer's features by the distance of two means.

The features of texts from a shifted domain have another mean than those of the source. A
moving average follows the mean over the batches, and the difference of the source's mean
from it is added to the features before the classifier reads them.

Source: section 3.2 of arXiv 2404.01650, equations 7 to 9.
"""

from __future__ import annotations

from dataclasses import dataclass

from bert_numpy.adaptation.wrapping import WrappingEngine
from npfp8.arrays import Float32Array, Float64Array

__all__ = ["ShiftingEngine", "moved_average"]


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


@dataclass(frozen=True, eq=False)
class ShiftingEngine(WrappingEngine):
    """An engine that computes as ``inner`` does, and moves the features of the last layer.

    Attributes
    ----------
    shift : ndarray of float32, (hidden,)
        Added to the last hidden state of each text's first token, rounded to the precision.
    """

    shift: Float32Array

    def output(self, name: str, x: Float32Array) -> Float32Array:
        """Move the first tokens' rows of the last hidden states."""
        if name == "last_hidden_state":
            first, moved = self.layout.packing.first, x.copy()
            moved[first] = self.inner.add(x[first], self.shift)
            x = moved
        return self.inner.output(name, x)

"""AdamW, gradient clipping, and the learning rate over time.

Loshchilov and Hutter, *Decoupled Weight Decay Regularization* (arXiv 1711.05101); Kingma and
Ba, *Adam* (arXiv 1412.6980).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from npfp8.arrays import Array, chunks

__all__ = ["AdamW", "AdamWState", "clip_factor", "global_norm", "linear_rate"]

#: Elements per block, so that a block's temporaries stay in the cache.
_CHUNK = 1 << 14


@dataclass(frozen=True)
class AdamW:
    """The constants of AdamW.

    Attributes
    ----------
    beta1, beta2 : float
        The decays of the averages of the gradients and of their squares.
    eps : float
        Added to the root of the average of squares.
    weight_decay : float
        The share of a weight that a step with learning rate 1 takes off. Only arrays with at least
        two axes decay: biases and LayerNorm's parameters do not.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def decay(self, weight: Array) -> float:
        """Return the weight decay of an array."""
        return self.weight_decay if weight.ndim > 1 else 0.0


@dataclass(frozen=True, eq=False)
class AdamWState:
    """The averages of the gradients and of their squares, by parameter, after some steps.

    Attributes
    ----------
    step : int
        The number of steps so far.
    first, second : mapping of str to ndarray
        The decaying averages of the gradients, and of their squares.
    """

    step: int
    first: Mapping[str, Array]
    second: Mapping[str, Array]

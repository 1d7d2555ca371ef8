"""AdamW, gradient clipping, and the learning rate over time.

Kingma and Ba, *Adam* (arXiv 1412.6980); Loshchilov and Hutter, *Decoupled Weight Decay
Regularization* (arXiv 1711.05101).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from npfp8.arguments import number
from npfp8.arrays import Array, blas_product, chunks

__all__ = [
    "AdamW",
    "AdamWState",
    "adamw_start",
    "adamw_step",
    "clip_factor",
    "global_norm",
    "rate",
    "require_number",
]

#: Elements per block, so that a block's arrays stay in the cache.
_CHUNK = 1 << 13


def require_number(
    argument: str, value: object, holds: Callable[[float], bool], expected: str
) -> None:
    """Raise TypeError for what is no number, and ValueError for one that is not as expected.

    Examples
    --------
    >>> from bert_numpy.training.adamw import require_number
    >>> require_number("beta1", 1.5, lambda x: 0 <= x < 1, "0 <= number < 1")
    Traceback (most recent call last):
    ...
    ValueError: beta1: expected 0 <= number < 1, found 1.5
    """
    found = number(argument, value)
    if not holds(found):
        raise ValueError(f"{argument}: expected {expected}, found {found}")


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
        A step with learning rate r takes the share ``r weight_decay`` off each weight. Only
        arrays with at least two axes decay: biases and LayerNorm's parameters do not.

    Raises
    ------
    ValueError
        If a decay is not in [0, 1), if ``eps`` is not above 0 (a parameter without gradients
        would become NaN), or if the weight decay is negative.

    Examples
    --------
    >>> from bert_numpy.training.adamw import AdamW
    >>> AdamW(weight_decay=0)
    AdamW(beta1=0.9, beta2=0.999, eps=1e-08, weight_decay=0)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            require_number(name, getattr(self, name), lambda x: 0 <= x < 1, "0 <= number < 1")
        require_number("eps", self.eps, lambda x: x > 0, "a number above 0")
        require_number("weight_decay", self.weight_decay, lambda x: x >= 0, "at least 0")


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


def adamw_start(weights: Mapping[str, Array]) -> AdamWState:
    """Make the state before the first step: all averages are 0.

    Parameters
    ----------
    weights : mapping of str to ndarray
        The parameters that are trained.
    """
    first, second = (
        {name: np.zeros(w.shape, w.dtype) for name, w in weights.items()} for _ in range(2)
    )
    return AdamWState(0, first, second)


def adamw_step(
    weights: Mapping[str, Array],
    gradients: Mapping[str, Array],
    state: AdamWState,
    constants: AdamW,
    learning_rate: float,
    factor: float = 1.0,
) -> AdamWState:
    """Make one step, in place: the weights and the arrays of the state are overwritten.

    With ``g`` the gradient times ``factor``, ``m`` becomes ``beta1 m + (1 - beta1) g`` and ``v``
    becomes ``beta2 v + (1 - beta2) g^2``. After t steps from 0, they are the share
    ``1 - beta^t`` of an average, so they are divided by it; then ``w`` becomes
    ``(1 - r decay) w - r m / (sqrt(v) + eps)``, for the learning rate r.

    Parameters
    ----------
    weights, gradients : mapping of str to ndarray
        C-contiguous weights. A parameter without a gradient stays as it is.
    state : AdamWState
        The state before the step, which must not be used afterwards.
    constants : AdamW
    learning_rate : float
    factor : float
        Multiplies all gradients: see :func:`clip_factor`.

    Returns
    -------
    AdamWState
        The state after the step, in the same arrays.

    Raises
    ------
    ValueError
        If a weight is not C-contiguous.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.adamw import AdamW, adamw_start, adamw_step
    >>> weights, gradients = {"w": np.float32([1, 2])}, {"w": np.float32([4, -0.5])}
    >>> state = adamw_step(weights, gradients, adamw_start(weights), AdamW(), 0.1)
    >>> weights["w"], state.step  # the first step has the size of the learning rate
    (array([0.9, 2.1], dtype=float32), 1)
    """
    step = state.step + 1
    size = learning_rate / (1 - constants.beta1**step)
    root = 1 / math.sqrt(1 - constants.beta2**step)
    for name, gradient in gradients.items():
        weight = weights[name]
        if not weight.flags.c_contiguous:
            raise ValueError(f"{name}: expected a C-contiguous array to change in place")
        decay = constants.weight_decay if weight.ndim > 1 else 0.0
        flat = [x.reshape(-1) for x in (weight, gradient, state.first[name], state.second[name])]
        g, t = np.empty((2, min(_CHUNK, weight.size)), weight.dtype)
        for chunk in chunks(weight.size, _CHUNK):
            w, dw, m, v = (x[chunk] for x in flat)
            _step(w, dw, m, v, g[: w.size], t[: w.size], constants, factor)
            np.sqrt(v, out=t[: w.size])
            _move(w, m, t[: w.size], size, root, constants.eps, 1 - learning_rate * decay)
    return AdamWState(step, state.first, state.second)


def _step(
    w: Array, dw: Array, m: Array, v: Array, g: Array, t: Array, constants: AdamW, factor: float
) -> None:
    """Update the averages of a block, in place; ``g`` and ``t`` are overwritten."""
    np.multiply(dw, factor * (1 - constants.beta1), out=g)
    m *= constants.beta1
    m += g
    np.multiply(dw, factor * math.sqrt(1 - constants.beta2), out=g)
    np.square(g, out=g)
    v *= constants.beta2
    v += g


def _move(w: Array, m: Array, t: Array, size: float, root: float, eps: float, keep: float) -> None:
    """Move the weights of a block, in place; ``t`` has the roots and is overwritten."""
    t *= root
    t += eps
    np.divide(m, t, out=t)
    t *= size
    if keep != 1:
        w *= keep
    w -= t


def global_norm(gradients: Mapping[str, Array]) -> float:
    """Compute the Euclidean norm of all gradients together.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.adamw import global_norm
    >>> global_norm({"w": np.float32([[3, 0]]), "b": np.float32([4])})
    5.0
    """
    flat = (gradient.ravel(order="K") for gradient in gradients.values())  # without a copy
    return math.sqrt(sum(float(blas_product(g, g)) for g in flat))


def clip_factor(norm: float, largest: float) -> float:
    """Return the factor that brings gradients of a norm to at most the largest norm.

    Examples
    --------
    >>> from bert_numpy.training.adamw import clip_factor
    >>> clip_factor(4.0, 1.0), clip_factor(0.5, 1.0)
    (0.25, 1.0)
    """
    return largest / norm if norm > largest else 1.0


def rate(step: int, steps: int, warmup: float) -> float:
    """Return the share of the largest learning rate in a step, from 1 to ``steps``.

    It grows linearly up to 1 over the share ``warmup`` of the steps, and then falls linearly.
    The step after the last would have 0.

    Examples
    --------
    >>> from bert_numpy.training.adamw import rate
    >>> [rate(step, 8, 0.5) for step in range(1, 9)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = int(warmup * steps)
    return step / rising if step <= rising else (steps + 1 - step) / (steps - rising)

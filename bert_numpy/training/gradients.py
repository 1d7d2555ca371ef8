"""The gradients of the operations between the matrix products, one function per operation.

Each takes the gradient ``dy`` of the loss with respect to an operation's result, and returns the
gradients with respect to its operands: the rule of :class:`bert_numpy.engines.engine.Engine`,
differentiated. ``dy`` is never changed. Arrays may be float32 or float64, unless stated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from bert_numpy.engines.functions import golden_name, reciprocal_tail
from npfp8.arrays import Array, IntArray, chunks
from npfp8.golden import SMALLEST_NORM

__all__ = [
    "DERIVATIVES",
    "POOLINGS",
    "activation",
    "add",
    "bias",
    "concatenate",
    "layer_norm",
    "multiply",
    "normalize",
    "position_bias",
    "rows",
    "softmax",
]

#: Elements per block, where several passes go over an array.
_CHUNK = 1 << 14

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_SQRT_2_PI = math.sqrt(2 * math.pi)


def bias(dy: Array) -> Array:
    """Add up over all axes but the last: the gradient of b in ``y = x + b``. (..., N) -> (N,)."""
    return dy.reshape(-1, dy.shape[-1]).sum(axis=0)


def add(dy: Array, shape: tuple[int, ...]) -> Array:
    """Add up over the axes along which an operand of ``x + y`` was repeated.

    The gradient of a sum is ``dy`` for each operand. An operand that has 1 element along an axis
    contributed it to all elements there, so their gradients are added up.
    """
    if dy.shape == shape:
        return dy
    missing = dy.ndim - len(shape)
    repeated = [missing + i for i, n in enumerate(shape) if n == 1 != dy.shape[missing + i]]
    return dy.sum(axis=(*range(missing), *repeated)).reshape(shape)


def multiply(dy: Array, factor: float) -> Array:
    """Multiply ``dy`` by the same float32 number as x."""
    return dy * np.float32(factor)


def softmax(y: Array, dy: Array) -> Array:
    """Compute ``y (dy - sum(dy y))``, over the last axis.

    From ``d y_i / d x_j = y_i ([i = j] - y_j)``.
    """
    dx = dy * y
    dx -= y * dx.sum(axis=-1, keepdims=True)
    return dx


def layer_norm(x: Array, weight: Array, eps: float, dy: Array) -> tuple[Array, Array, Array]:
    """Compute the gradients of x, of the weight and of the bias. (..., N) -> (..., N), (N,), (N,).

    With ``n = (x - mean) / s`` and ``s = sqrt(variance + eps)``, the result is ``n w + b``. So
    ``db = sum(dy)`` and ``dw = sum(dy n)``, over all rows. For ``g = dy w``, the gradient of n,
    ``dx = (g - mean(g) - n mean(g n)) / s``: the mean and the deviation of a row depend on all of
    its elements, so that dx is orthogonal to a constant and (except for eps) to n.
    """
    normalized = x - x.mean(axis=-1, keepdims=True)
    variance = np.square(normalized).mean(axis=-1, keepdims=True)
    reciprocal = 1 / np.sqrt(variance + np.float32(eps))
    normalized *= reciprocal
    product = dy * normalized
    d_weight = bias(product)
    g = dy * weight
    product *= weight
    normalized *= product.mean(axis=-1, keepdims=True)
    g -= g.mean(axis=-1, keepdims=True)
    g -= normalized
    g *= reciprocal
    return g, d_weight, bias(dy)


def normalize(x: Array, y: Array, dy: Array) -> Array:
    """Compute ``(dy - y sum(dy y)) / norm``, over the last axis; ``dy / 1e-12`` below that norm."""
    norm = np.sqrt(np.square(x, dtype=np.float64).sum(axis=-1, keepdims=True))
    along = (dy * y).sum(axis=-1, keepdims=True) * (norm > SMALLEST_NORM)
    return ((dy - y * along) / np.maximum(norm, SMALLEST_NORM)).astype(dy.dtype)


def concatenate(widths: Sequence[int], dy: Array) -> list[Array]:
    """Cut ``dy`` into the gradients of parts of the given widths, along the last axis."""
    return np.split(dy, np.cumsum(widths)[:-1], axis=-1)


def rows(numbers: IntArray, count: int, dy: Array) -> Array:
    """Add up the gradients of each row of a table. (tokens,), (tokens, columns) -> (count, .).

    A row that occurs several times has several terms, one per token.
    """
    table = np.zeros((count, dy.shape[-1]), dy.dtype)
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    table[ordered[first]] = np.add.reduceat(dy[order], first, axis=0)
    return table


def position_bias(numbers: IntArray, count: int, dy: Array) -> Array:
    """Add up the gradients of each bucket of distances, in float64.

    (., queries, keys), (., heads, queries, keys) -> (count, heads).
    """
    flat = numbers.reshape(-1)
    by_head = np.moveaxis(dy, 1, 0)
    sums = [np.bincount(flat, head.reshape(-1), count) for head in by_head]
    return np.stack(sums, axis=1).astype(dy.dtype)


# Activations


def _gelu(x: Array, y: Array) -> Array:
    """Compute ``Phi(x) + x phi(x)``, within 1e-6: the derivative of ``x Phi(x)``.

    ``Phi`` is ``1 - Q(x)`` for x above 0, and otherwise ``Q(-x)``.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    buffers = np.empty((2, min(_CHUNK, flat.size)), flat.dtype)
    with np.errstate(over="ignore", under="ignore"):
        for chunk in chunks(flat.size, _CHUNK):
            part, result = flat[chunk], out[chunk]
            a, tail = buffers[:, : part.size]
            np.abs(part, out=a)
            reciprocal_tail(a, tail)
            np.reciprocal(tail, out=tail)
            np.square(part, out=a)
            a *= -0.5
            np.exp(a, out=a)
            a *= 1 / _SQRT_2_PI
            np.multiply(a, part, out=result)
            # Phi = 1/2 + sign(x) (1/2 - Q(|x|))
            np.subtract(0.5, tail, out=tail)
            np.copysign(tail, part, out=tail)
            result += tail
            result += 0.5
    return out.reshape(x.shape)


def _gelu_tanh(x: Array, y: Array) -> Array:
    """Compute ``(1 + t) / 2 + x (1 - t^2) u' / 2``, with ``t = tanh(u)`` as in the function."""
    square = x * x
    t = np.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * square * x))
    slope = _SQRT_2_OVER_PI * (1 + 3 * 0.044715 * square)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope


def _silu(x: Array, y: Array) -> Array:
    """Compute ``s (1 + x (1 - s))``, with ``s = sigmoid(x)``; as ``s + y (1 - s)``."""
    with np.errstate(over="ignore"):
        s = 1 / (1 + np.exp(-x))
    return s + y * (1 - s)


def _relu(x: Array, y: Array) -> Array:
    """Compute 1 above 0, and 0 elsewhere, also at 0."""
    return (x > 0).astype(x.dtype)


#: By the function's name in :data:`npfp8.golden.UNARY`: its derivative, from its argument and its
#: result.
DERIVATIVES: dict[str, Callable[[Array, Array], Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": _relu,
    "tanh": lambda x, y: 1 - y * y,
    "sigmoid": lambda x, y: y * (1 - y),
}


def activation(name: str, x: Array, y: Array, dy: Array) -> Array:
    """Multiply ``dy`` by the derivative of the function, from its argument and its result."""
    derivative = DERIVATIVES[golden_name(name)](x, y)
    derivative *= dy
    return derivative


# Poolings: each spreads the gradient of a text's vector over its tokens


def _to_all(x: Array, shares: Array, dy: Array) -> Array:
    """Give each token its share. (..., n, features), (..., n or 1, 1), (..., features)."""
    return np.broadcast_to(dy[..., None, :] * shares.astype(dy.dtype), x.shape)


def _mean(x: Array, places: IntArray, dy: Array) -> Array:
    return _to_all(x, np.array([[1 / x.shape[-2]]]), dy)


def _mean_sqrt_len(x: Array, places: IntArray, dy: Array) -> Array:
    return _to_all(x, np.array([[1 / math.sqrt(x.shape[-2])]]), dy)


def _weighted_mean(x: Array, places: IntArray, dy: Array) -> Array:
    weights = places[..., None]
    return _to_all(x, weights / weights.sum(axis=-2, keepdims=True), dy)


def _max(x: Array, places: IntArray, dy: Array) -> Array:
    """Give all to the token whose feature is the largest; the first one of several."""
    dx = np.zeros_like(x)
    np.put_along_axis(dx, x.argmax(axis=-2)[..., None, :], dy[..., None, :], axis=-2)
    return dx


def _last_token(x: Array, places: IntArray, dy: Array) -> Array:
    dx = np.zeros_like(x)
    dx[..., -1, :] = dy
    return dx


#: By the pooling's name in :data:`npfp8.golden.POOLINGS`: the gradient of the tokens, from the
#: tokens, their places, and the gradient of the vector.
POOLINGS: dict[str, Callable[[Array, IntArray, Array], Array]] = {
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "max": _max,
    "lasttoken": _last_token,
}

"""The functions between the matrix products, in float32 and plain NumPy.

They match Hugging Face to within rounding. The functions of :mod:`npfp8.golden` give the
same bits on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bert_numpy.engines.engine import Table, Weights
from bert_numpy.errors import BertNumpyError
from npfp8.arrays import Float32Array, IntArray, blas_product, chunks, scratch
from npfp8.golden import SMALLEST_NORM

__all__ = [
    "ACTIVATIONS",
    "POOLINGS",
    "activation",
    "gather",
    "gelu",
    "golden_name",
    "layer_norm",
    "linear",
    "normalize",
    "parameter",
    "parameters",
    "reciprocal_tail",
    "softmax",
]


# glibc gives freed memory back to the system, which maps and clears its pages at the next use,
# unless a block of half its size was freed before. So one is, close to the largest that counts;
# it takes no memory, as nothing is written to it. Other allocators are not affected.
np.empty(31 << 20, np.uint8)

#: Elements per block, where several passes go over an array.
_CHUNK = 1 << 15

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)

#: The coefficients of |x|^0 .. |x|^8 in GELU's tail, by scripts/fit_gelu.py.
_TAIL_ROOT = tuple(
    np.array(coefficient, np.float32)
    for coefficient in (
        1.09050773,
        0.108759059,
        0.0488425206,
        0.00936928113,
        0.00106936152,
        0.00012147464,
        0.000106394559,
        -1.82586627e-05,
        3.19752805e-06,
    )
)
#: NumPy takes the maximum of two arrays three times as fast as that of an array and a number.
_ZEROS = np.zeros(_CHUNK, np.float32)


def gelu(x: Float32Array) -> Float32Array:
    """Compute ``x Phi(x)`` within 2e-7 (absolute) + 2 ulp for finite x.

    ``Phi`` is the distribution function of the standard normal distribution. The formula is
    ``max(x, 0) - |x| Q(|x|)`` with the tail ``Q(a) = 1 / p(a)^8``, where p is a polynomial.
    No term loses digits to cancellation, and none needs a slow function.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    with np.errstate(over="ignore", under="ignore"):  # far out, where the tail is 0
        for chunk in chunks(flat.size, _CHUNK):
            part, result = flat[chunk], out[chunk]
            a = scratch(part.size, np.float32)
            np.abs(part, out=a)
            reciprocal_tail(a, result)
            np.divide(a, result, out=result)
            np.maximum(part, _ZEROS[: part.size], out=a)
            np.subtract(a, result, out=result)
    return out.reshape(x.shape)


def reciprocal_tail(a: Float32Array, out: Float32Array) -> None:
    """Write ``1 / Q(a)`` of the normal tail Q into ``out``, for ``a`` at least 0; may overflow.

    The error of Q is at most 7e-7.
    """
    np.multiply(a, _TAIL_ROOT[-1], out=out)
    for coefficient in _TAIL_ROOT[-2:0:-1]:
        np.add(out, coefficient, out=out)
        np.multiply(out, a, out=out)
    np.add(out, _TAIL_ROOT[0], out=out)
    for _ in range(3):
        np.square(out, out=out)


def _gelu_tanh(x: Any) -> Any:
    return type_of(x)(0.5) * x * (1 + np.tanh(_gelu_tanh_inner(x)))


def _gelu_tanh_inner(x: Any) -> Any:
    return type_of(x)(_SQRT_2_OVER_PI) * (x + type_of(x)(0.044715) * x * x * x)


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _relu(x: Any) -> Any:
    return np.maximum(x, 0)


def type_of(x: Any) -> Any:
    """Return the scalar type of an array, so that a constant does not change its precision."""
    return x.dtype.type


#: By ``hidden_act``: the float32 function, and its name in :data:`npfp8.golden.UNARY`.
ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "gelu": (gelu, "gelu"),
    "gelu_new": (_gelu_tanh, "gelu_tanh"),
    "gelu_pytorch_tanh": (_gelu_tanh, "gelu_tanh"),
    "relu": (_relu, "relu"),
    "silu": (_silu, "silu"),
}


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


#: Functions that are not accepted as ``hidden_act``: those of poolers and Dense modules.
_OTHERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tanh": (np.tanh, "tanh"),
    "sigmoid": (_sigmoid, "sigmoid"),
}


def activation(name: str, x: Float32Array) -> Float32Array:
    """Apply a function to each element: a ``hidden_act``, "tanh" or "sigmoid"."""
    result: Float32Array = _named(name)[0](x)
    return result


def golden_name(name: str) -> str:
    """Return the key of :data:`npfp8.golden.UNARY` for a name of :func:`activation`."""
    return _named(name)[1]


def _named(name: str) -> tuple[Callable[[Any], Any], str]:
    if name in _OTHERS:
        return _OTHERS[name]
    if name not in ACTIVATIONS:
        raise BertNumpyError(
            f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, found {name!r}"
        )
    return ACTIVATIONS[name]


def parameter(weights: Weights, name: str) -> Float32Array:
    """Return a parameter that is not quantized."""
    found = weights[name]
    assert isinstance(found, np.ndarray), name
    return found


def parameters(weights: Weights, name: str) -> tuple[Float32Array, Float32Array]:
    """Return the weight and the bias of a layer that is not quantized."""
    return parameter(weights, f"{name}.weight"), parameter(weights, f"{name}.bias")


def gather(weights: Weights, tables: Sequence[Table]) -> Float32Array:
    """Add rows of embedding tables in their order. (tokens,) each -> (tokens, columns)."""
    (name, *_, rows), *others = tables
    x = _rows_of(parameter(weights, name), rows)
    for name, *_, rows in others:
        x += _rows_of(parameter(weights, name), rows)
    return x


def _rows_of(table: Float32Array, rows: IntArray) -> Float32Array:
    """Return ``table[rows]``, in half the time, by indices of the machine's own width."""
    return np.take(table, rows.astype(np.intp, copy=False), axis=0)


def position_bias(weights: Weights, table: Table) -> Float32Array:
    """Look up rows of a table, heads first. (., queries, keys) -> (., heads, queries, keys)."""
    name, *_, rows = table
    by_head = np.ascontiguousarray(parameter(weights, name).T)  # (heads, rows)
    return np.ascontiguousarray(np.moveaxis(by_head[:, rows], 0, 1))


def linear(x: Float32Array, weight: Float32Array, bias: Float32Array) -> Float32Array:
    """Compute ``x @ weight.T + bias``. (..., K), (N, K), (N,) -> (..., N)."""
    y: Float32Array = blas_product(x, weight.T)
    y += bias  # in place, like the operations of the other functions here
    return y


def softmax(x: Float32Array) -> Float32Array:
    """Compute the softmax over the last axis."""
    shifted = x - np.maximum.reduce(x, axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= _sums("...i->...", shifted)
    return shifted


def layer_norm(
    x: Float32Array, weight: Float32Array, bias: Float32Array, eps: float
) -> Float32Array:
    """Normalise each row to mean 0 and variance 1, then scale by ``weight`` and add ``bias``."""
    size = np.float32(x.shape[-1])
    centred = x - _sums("...i->...", x) / size
    variance = _sums("...i,...i->...", centred, centred) / size
    centred /= np.sqrt(variance + np.float32(eps))
    centred *= weight
    centred += bias
    return centred


def _sums(subscripts: str, *x: Float32Array) -> Float32Array:
    """Add up each row, or the products of two arrays' numbers in it: (..., K) -> (..., 1).

    ``einsum`` takes half of the time of ``sum``, and makes no array of products. The sum of a row
    does not depend on the other rows.
    """
    sums: Float32Array = np.einsum(subscripts, *x)
    return sums[..., None]


def normalize(x: Float32Array) -> Float32Array:
    """Divide each row by its Euclidean norm; the squares neither overflow nor vanish."""
    norm = np.sqrt(np.square(x, dtype=np.float64).sum(axis=-1, keepdims=True))
    return (x / np.maximum(norm, SMALLEST_NORM)).astype(np.float32)


def _mean_sqrt_len(x: Float32Array, places: IntArray) -> Float32Array:
    return x.sum(axis=-2) / np.sqrt(np.float32(x.shape[-2]))


def _weighted_mean(x: Float32Array, places: IntArray) -> Float32Array:
    weights = places.astype(np.float32)[..., None]
    return (x * weights).sum(axis=-2) / weights.sum(axis=-2)


#: The float32 function of each pooling, by its name in :data:`npfp8.golden.POOLINGS`, which
#: has the rules.
POOLINGS: dict[str, Callable[[Float32Array, IntArray], Float32Array]] = {
    "mean": lambda x, places: x.mean(axis=-2),
    "mean_sqrt_len_tokens": _mean_sqrt_len,
    "weightedmean": _weighted_mean,
    "max": lambda x, places: x.max(axis=-2),
    "lasttoken": lambda x, places: x[..., -1, :].copy(),
}

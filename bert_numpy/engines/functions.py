"""What BERT computes between its matrix products, in float32 and in bfloat16.

An :class:`Arithmetic` is the set of these operations that a forward pass is
given. ``FLOAT32`` is plain NumPy. ``BFLOAT16`` is the paper's choice for
everything that is no GEMM: bfloat16 in, float32 inside, one rounding to
bfloat16 out (the arrays stay float32 arrays, of bfloat16 values).

``GOLDEN_FLOAT32`` and ``GOLDEN_BFLOAT16`` are the same two precisions with the
same bits on every machine, by :mod:`npfp8.golden`: float64 inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from npfp8 import golden
from npfp8.bfloat16 import round_to_bfloat16

__all__ = [
    "ACTIVATIONS",
    "BFLOAT16",
    "FLOAT32",
    "GOLDEN_BFLOAT16",
    "GOLDEN_FLOAT32",
    "Arithmetic",
    "gelu",
]

Float32Array = npt.NDArray[np.float32]

#: Elements worked on at a time where several passes go over an array.
_BLOCK = 1 << 15

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
_ZERO = np.array(0, np.float32)


@dataclass(frozen=True)
class Arithmetic:
    """The operations between the GEMMs. Each takes and returns float32 arrays.

    All are functions of a module or partial applications of one, which can be pickled.

    Attributes
    ----------
    name : str
        "float32" or "bfloat16": the precision of every result.
    round : callable (x) -> x
        To that precision, in place: what it is given is not needed any more.
    add : callable (x, y)
        The sum of two arrays (residuals, embeddings).
    multiply : callable (x, factor)
        The array times a number (the attention scores by 1/sqrt(d)).
    softmax : callable (x)
        Over the last axis.
    layer_norm : callable (x, weight, bias, eps)
        Over the last axis.
    activation : callable (name, x)
        A key of :data:`ACTIVATIONS`, by ``hidden_act``; or "tanh", the pooler's.
    mean : callable (x)
        Over the axis before the last: of the tokens of a text. In float32, as it
        is the model's answer.
    normalize : callable (x)
        Over the last axis, to a Euclidean norm of 1. In float32 too.
    """

    name: str
    round: Callable[[Float32Array], Float32Array]
    add: Callable[[Float32Array, Float32Array], Float32Array]
    multiply: Callable[[Float32Array, np.float32], Float32Array]
    softmax: Callable[[Float32Array], Float32Array]
    layer_norm: Callable[[Float32Array, Float32Array, Float32Array, float], Float32Array]
    activation: Callable[[str, Float32Array], Float32Array]
    mean: Callable[[Float32Array], Float32Array]
    normalize: Callable[[Float32Array], Float32Array]


def gelu(x: Float32Array) -> Float32Array:
    """``x Phi(x)`` with the normal distribution's Phi, within 2e-7 (absolute) + 2 ulp for finite x.

    ``max(x, 0) - |x| Q(|x|)``, with the tail ``Q(a) = 1 / p(a)^8``, p a polynomial:
    no term loses digits to cancellation, and none is a slow function.
    """
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    buffers = np.empty((2, min(_BLOCK, flat.size)), np.float32)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        result = out[start : start + _BLOCK]
        a, p = buffers[:, : block.size]
        np.abs(block, out=a)
        np.multiply(a, _TAIL_ROOT[-1], out=p)
        for coefficient in _TAIL_ROOT[-2:0:-1]:
            np.add(p, coefficient, out=p)
            np.multiply(p, a, out=p)
        np.add(p, _TAIL_ROOT[0], out=p)
        with np.errstate(over="ignore", under="ignore"):  # far out, where the tail is 0
            for _ in range(3):
                np.square(p, out=p)
            np.divide(a, p, out=p)
        np.maximum(block, _ZERO, out=result)
        np.subtract(result, p, out=result)
    return out.reshape(x.shape)


def _gelu_tanh(x: Any) -> Any:
    return type_of(x)(0.5) * x * (1 + np.tanh(_gelu_tanh_inner(x)))


def _gelu_tanh_inner(x: Any) -> Any:
    return type_of(x)(_SQRT_2_OVER_PI) * (x + type_of(x)(0.044715) * x * x * x)


def _silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def _relu(x: Any) -> Any:
    return np.maximum(x, 0)


def type_of(x: Any) -> Any:
    """The scalar type of an array, so that a constant does not change its precision."""
    return x.dtype.type


#: ``hidden_act`` to its float32 function and its name in :data:`npfp8.golden.UNARY`.
ACTIVATIONS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "gelu": (gelu, "gelu"),
    "gelu_new": (_gelu_tanh, "gelu_tanh"),
    "gelu_pytorch_tanh": (_gelu_tanh, "gelu_tanh"),
    "relu": (_relu, "relu"),
    "silu": (_silu, "silu"),
}


def _activation(name: str, x: Float32Array) -> Float32Array:
    function = _named(name)[0]
    with np.errstate(over="ignore"):  # where a square or an exp overflows the result is the limit
        return function(x)


def _golden_activation(precision: str, name: str, x: Float32Array) -> Float32Array:
    return golden.unary(_named(name)[1], x, precision)


def _named(name: str) -> tuple[Callable[[Any], Any], str]:
    if name == "tanh":
        return np.tanh, name
    if name not in ACTIVATIONS:
        raise BertNumpyError(
            f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, found {name!r}"
        )
    return ACTIVATIONS[name]


def _softmax(x: Float32Array) -> Float32Array:
    with np.errstate(invalid="ignore"):  # of infinity NaN comes, and is seen in the results
        shifted = x - x.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def _layer_norm(
    x: Float32Array, weight: Float32Array, bias: Float32Array, eps: float
) -> Float32Array:
    with np.errstate(invalid="ignore"):  # as in _softmax
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
    centred /= np.sqrt(variance + np.float32(eps))
    centred *= weight
    centred += bias
    return centred


def _mean(x: Float32Array) -> Float32Array:
    return x.mean(axis=-2)


def _normalize(x: Float32Array) -> Float32Array:
    # In float64, where no square of a float32 number overflows or vanishes.
    norm = np.sqrt(np.square(x, dtype=np.float64).sum(axis=-1, keepdims=True))
    return (x / np.maximum(norm, golden.SMALLEST_NORM)).astype(np.float32)


def _rounded(function: Callable[..., Float32Array]) -> Callable[..., Float32Array]:
    """The function with its result rounded to bfloat16, in place: the result is a new array."""
    return partial(_apply_and_round, function)


def _apply_and_round(function: Callable[..., Float32Array], *operands: Any) -> Float32Array:
    return _round_in_place(function(*operands))


def _bfloat16_activation(name: str, x: Float32Array) -> Float32Array:
    return _golden_activation("bfloat16", name, round_to_bfloat16(x))


def _unchanged(x: Float32Array) -> Float32Array:
    return x


def _round_in_place(x: Float32Array) -> Float32Array:
    contiguous = np.ascontiguousarray(x)
    return round_to_bfloat16(contiguous, out=contiguous)


FLOAT32 = Arithmetic(
    name="float32",
    round=_unchanged,
    add=np.add,
    multiply=np.multiply,
    softmax=_softmax,
    layer_norm=_layer_norm,
    activation=_activation,
    mean=_mean,
    normalize=_normalize,
)

#: Its unary functions are golden already: nothing is faster than a table.
BFLOAT16 = Arithmetic(
    name="bfloat16",
    round=_round_in_place,
    add=_rounded(np.add),
    multiply=_rounded(np.multiply),
    softmax=_rounded(_softmax),
    layer_norm=_rounded(_layer_norm),
    activation=_bfloat16_activation,
    mean=_mean,
    normalize=_normalize,
)

GOLDEN_FLOAT32 = Arithmetic(
    name="float32",
    round=FLOAT32.round,
    add=partial(golden.add, precision="float32"),
    multiply=partial(golden.multiply, precision="float32"),
    softmax=partial(golden.softmax, precision="float32"),
    layer_norm=partial(golden.layer_norm, precision="float32"),
    activation=partial(_golden_activation, "float32"),
    mean=golden.mean,
    normalize=golden.normalize,
)

GOLDEN_BFLOAT16 = Arithmetic(
    name="bfloat16",
    round=_round_in_place,
    add=golden.add,
    multiply=golden.multiply,
    softmax=golden.softmax,
    layer_norm=golden.layer_norm,
    activation=BFLOAT16.activation,
    mean=golden.mean,
    normalize=golden.normalize,
)

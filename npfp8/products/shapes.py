"""The shapes of products' operands, and the scales that factor out of their sums."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from npfp8.arrays import Array, Float32Array
from npfp8.tensor import QuantizedTensor

__all__ = ["check_shapes", "checked_factor", "scale_of"]


def check_shapes(a: QuantizedTensor | Array, b: QuantizedTensor | Array) -> None:
    """Raise ValueError unless the operands are matrices, or stacks of some, that fit."""
    for name, operand in (("a", a), ("b", b)):
        if operand.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 axes, found shape {operand.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"expected shapes (..., M, K) and (..., K, N), found {a.shape} and {b.shape}"
        )


def scale_of(x: QuantizedTensor, k_axis: int) -> Float32Array:
    """Return the scale of ``x`` with a K axis of length 1, to broadcast against the product."""
    if x.axis is None:
        return x.scale
    if x.axis == k_axis or x.block is not None:
        raise ValueError(
            "a scale that varies along K does not factor out of the sum: expected another axis, "
            f"or blocks of K, found axis {x.axis} and block {x.block} of shape {x.shape}"
        )
    return x.scale.reshape([-1 if i == x.axis else 1 for i in range(x.ndim)])


def checked_factor(scale_a: Float32Array, scale_b: Float32Array) -> Float32Array:
    """Return the product of two scales in float32; raise ValueError unless it is a scale, too."""
    if not scale_a.ndim and not scale_b.ndim:
        return _factor(float(scale_a), float(scale_b))
    return _factors(scale_a, scale_b)


@lru_cache(maxsize=1024)
def _factor(scale_a: float, scale_b: float) -> Float32Array:
    return _factors(np.asarray(scale_a, np.float32), np.asarray(scale_b, np.float32))


def _factors(scale_a: Float32Array, scale_b: Float32Array) -> Float32Array:
    with np.errstate(over="ignore", under="ignore"):
        scale = np.multiply(scale_a, scale_b)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("the product of the operands' scales overflows or underflows float32")
    return np.asarray(scale)

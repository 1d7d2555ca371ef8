"""Scales with a mantissa (NVFP4): from the magnitudes of a block and the tensor to its scale.

With ``g`` the largest magnitude of the tensor, ``b`` that of a block, ``M`` the largest value
of the elements' format and ``L`` that of the scales', implementations compute the scale of the
tensor, the codes of the scales and those of the elements in different orders of float32
operations. Each :class:`RatioRule` is one of these ways.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from npfp8.arrays import Array, Float32Array
from npfp8.codec import encode
from npfp8.codec.tables import values_of
from npfp8.formats import FloatFormat, Format

__all__ = ["RATIO_RULES", "RatioRule", "ratio_codes"]


@dataclass(frozen=True)
class RatioRule:
    """A way to compute the scales of blocks.

    Attributes
    ----------
    name : str
    tensor_scale : callable (float32, float, float) -> float32
        From ``g``, ``M`` and ``L`` to the number that is stored for the tensor.
    scale : callable
        ``(b, tensor_scale, M, scale_format)`` to the codes of the scales; ``tensor_scale`` is
        None in a format without.
    scaled : callable
        ``(x, s, tensor_scale)`` to the numbers that are encoded; ``s`` the values of the scales,
        one per element.
    block_scale : callable
        ``(s, tensor_scale)`` to the float32 scale of each block, by which codes are multiplied.
    description : str
        The rule in words, and its source.
    """

    name: str
    tensor_scale: Callable[[Float32Array, float, float], Float32Array]
    scale: Callable[[Float32Array, Float32Array | None, float, FloatFormat], Array]
    scaled: Callable[[Float32Array, Float32Array, Float32Array | None], Array]
    block_scale: Callable[[Float32Array, Float32Array], Float32Array]
    description: str


_TINY = np.finfo(np.float32).tiny


def _exact_tensor_scale(g: Float32Array, element_max: float, scale_max: float) -> Float32Array:
    scale = np.maximum(g / np.float32(element_max * scale_max), _TINY)
    return np.where(g == 0, np.float32(1), scale).astype(np.float32)


def _exact_scale(
    b: Float32Array, t: Float32Array | None, element_max: float, fmt: FloatFormat
) -> Array:
    # The quotient in float64 is on a boundary of the format only if the exact one is: both
    # sides of b = boundary * element_max * t have fewer than 53 bits.
    divisor = element_max * (1.0 if t is None else np.float64(t))
    return encode(b.astype(np.float64) / divisor, fmt)


def _exact_scaled(x: Float32Array, s: Float32Array, t: Float32Array | None) -> Array:
    divisor = s.astype(np.float64) * (1.0 if t is None else np.float64(t))
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = x / divisor
    return np.where(s == 0, 0.0, scaled)


def _product(s: Float32Array, t: Float32Array) -> Float32Array:
    with np.errstate(over="ignore", under="ignore"):
        return s * t


#: The rules, by name.
RATIO_RULES = {
    rule.name: rule
    for rule in (
        RatioRule(
            "exact",
            _exact_tensor_scale,
            _exact_scale,
            _exact_scaled,
            _product,
            "t = float32(g / (M L)), s = E4M3(b / (M t)), code = E2M1(x / (s t)): each rounded "
            "once from real numbers",
        ),
        RatioRule(
            "te",
            _exact_tensor_scale,
            _exact_scale,
            _exact_scaled,
            _product,
            "TODO",
        ),
    )
}


def ratio_codes(
    x: Float32Array,
    amax: Float32Array,
    tensor_scale: Float32Array | None,
    element: Format,
    scale_format: FloatFormat,
    rule: RatioRule,
    spread: Callable[[Array], Array],
) -> tuple[Array, Array]:
    """Return the codes of numbers, and of the scales of their blocks; see :func:`power_codes`."""
    scale_codes = rule.scale(amax, tensor_scale, element.max, scale_format)
    s = spread(values_of(scale_codes, scale_format, np.dtype(np.float32)))
    return encode(rule.scaled(x, s, tensor_scale), element), scale_codes

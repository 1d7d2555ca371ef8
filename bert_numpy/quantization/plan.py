"""Plans: the recipe and the static scales of every quantized product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bert_numpy.engines.site import Site
from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe
from npfp8 import BlockFormat, QuantizedTensor, quantize
from npfp8.arrays import Float32Array
from npfp8.blocks.quantize import tensor_scale_of
from npfp8.scaling import axis_and_block, dynamic_scale, scale_of_range

__all__ = ["Scale", "SitePlan", "quantize_operand", "static_sides"]


@dataclass(frozen=True, eq=False)
class Scale:
    """The static scale of one tensor, and the zero point if its format uses one.

    For a block format with a scale per tensor (NVFP4), ``scale`` is that number, as the
    format's rule stores it.
    """

    scale: Float32Array
    zero_point: int | None = None

    @staticmethod
    def of(low: float, high: float, operand: Operand) -> Scale:
        """Compute the scale that maps a range around 0 to an operand's format."""
        assert operand.fmt is not None
        if isinstance(operand.fmt, BlockFormat):
            return Scale(
                tensor_scale_of(np.maximum(np.float32(high), np.abs(np.float32(low))), operand.fmt)
            )
        scale, zero_point = scale_of_range(
            np.float32(low), np.float32(high), operand.fmt, operand.power_of_two
        )
        return Scale(scale, None if zero_point is None else int(zero_point))


@dataclass(frozen=True, eq=False)
class SitePlan:
    """A site's recipe with the scales from a calibration.

    Attributes
    ----------
    recipe : SiteRecipe
    a, b : Scale, optional
        The static scales; None for an operand that is not quantized, has only dynamic
        scales, is already quantized, or is the attention weights of tiles.
    smoothing : ndarray of float32, (K,), optional
        The divisors of the columns of ``a``; the weights are already multiplied by them.
    """

    recipe: SiteRecipe
    a: Scale | None = None
    b: Scale | None = None
    smoothing: Float32Array | None = None


def static_sides(recipe: Recipe, site: Site) -> dict[str, Operand]:
    """Return the operands of a site whose scales a calibration fixes, by "a" and "b".

    A weight's scale comes from the weight. Attention weights in tiles have the scale 1.
    """
    how = recipe.site(site)
    sides = {"a": how.a, "b": how.b}
    if not site.is_attention:
        del sides["b"]
    if site.kind == "context" and recipe.attention is not None:
        del sides["a"]
    return {side: operand for side, operand in sides.items() if operand.is_static}


def quantize_operand(
    x: Float32Array, operand: Operand, k_axis: int, static: Scale | None = None
) -> QuantizedTensor:
    """Quantize an operand with scales computed from itself.

    Parameters
    ----------
    x : ndarray of float32
    operand : Operand
    k_axis : int
        The axis that the product sums over: -1 for a left operand, -2 for a
        right one. A scale per token is one block along it.
    static : Scale, optional
        Block formats only: the scale of the tensor instead of one computed from ``x``.
    """
    assert operand.fmt is not None
    if isinstance(operand.fmt, BlockFormat):
        number = None if static is None else static.scale
        return quantize(x, operand.fmt, axis=k_axis, tensor_scale=number)
    axis, block = axis_and_block(operand.granularity, x.shape, k_axis, operand.block)
    scale, zero_point = dynamic_scale(x, operand.fmt, axis, block, operand.power_of_two)
    return quantize(x, operand.fmt, scale, axis, block, zero_point)

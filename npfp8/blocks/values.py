"""From numbers to the values of a block format, without codes on the way, for products.

The scales of blocks are found as always; what an element's code would decode to is found at
once. So an element is multiplied, rounded by a table of values, and multiplied by the scale of
its block, in a piece that stays in the cache, and what is lost is counted there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from npfp8.arrays import Array, Float32Array, Kernel, scratch
from npfp8.blocks.exponents import PowerRule, power_scales
from npfp8.blocks.formats import BlockFormat
from npfp8.blocks.pieces import block_amax, grids, like
from npfp8.blocks.quantize import block_scales, tensor_scale_of
from npfp8.blocks.ratios import RatioRule, ratio_scales
from npfp8.codec.tables import table_rounder
from npfp8.formats import FloatFormat, IntFormat

__all__ = ["ScaledBlocks", "scaled_blocks"]

_ZERO = np.float32(0)

#: The bits of a float32 without the sign.
_MAGNITUDE = np.int32(0x7FFFFFFF)

#: How far the product of a block's scale and its elements' factor, or the quotient, may be from
#: 1: TransformerEngine's is by seven roundings at most.
_NEAR = 2.0**-21

#: How far a number times its factor may then be from its quotient by the scale, in relation: three
#: more roundings, one of what both are compared with, and a reserve.
_MARGIN = 1.6 * _NEAR


@dataclass(frozen=True, eq=False)
class ScaledBlocks:
    """Finite numbers, and the scales of their blocks.

    Attributes
    ----------
    x : ndarray of float32
    fmt : BlockFormat
    axis : int
        The axis of the blocks, not negative.
    amax : ndarray of float32
        The largest magnitude of each block.
    scale_codes : ndarray of uint8
    tensor_scale : ndarray of float32, (), optional
        The number that is stored for the tensor.
    scales : ndarray of float32
        The values of these codes.
    scale : ndarray of float32
        The scale of each block, the tensor's included.
    factors : ndarray
        What each element is multiplied by, or divided, before it is rounded.
    """

    x: Float32Array
    fmt: BlockFormat
    axis: int
    amax: Float32Array
    scale_codes: Array
    tensor_scale: Float32Array | None
    scales: Float32Array
    scale: Float32Array
    factors: Array

    def values(self, dtype: type[np.floating[Any]]) -> tuple[Array, int, int]:
        """Return the elements, and how many numbers saturated and underflowed.

        Parameters
        ----------
        dtype : type
            float32 or float64. In either case the product of an element's value and its block's
            scale must be a number of float32.

        Returns
        -------
        values : ndarray
            The values of the codes times the scales of the blocks, without the tensor's. A zero
            may have either sign.
        saturated, underflowed : int
            As :func:`npfp8.blocks.counts.lost_in_blocks` counts them.
        """
        element, kernel, operation = self.fmt.element, _rounder(self.fmt), _operation(self.fmt)
        # A number saturates if its quotient by the scale is beyond `reach`. What it is multiplied
        # by makes nearly that quotient, or the very same where scales are powers of two.
        reach = np.float32(element.reach * (1 + 2.0**-20))
        margin = 0.0 if self.fmt.powers_of_two else _MARGIN
        ends = np.array([reach * (1 + sign * margin) for sign in (-1, 1)], np.float32)
        low, high = ends.view(np.int32)
        values = like(self.x, dtype)
        saturated = underflowed = 0
        arrays, per_block = (self.x, values), (self.factors, self.scales, self.scale)
        for x, found, factor, scale, whole in grids(arrays, per_block, self.axis, self.fmt.block):
            scaled = scratch(x.size, self.factors.dtype.type)
            operation(x, factor, out=scaled.reshape(x.shape))
            magnitudes = np.bitwise_and(scaled.view(np.int32), _MAGNITUDE, scratch(x.size, np.int32))
            beyond = _count(np.greater, magnitudes, high)
            if margin and beyond != _count(np.greater, magnitudes, low):
                with np.errstate(all="ignore"):  # a scale may be 0
                    beyond = int(np.count_nonzero((np.abs(x) / whole > reach) & (whole != 0)))
            saturated += beyond
            kernel(scaled, scaled)
            if zeros := _count(np.equal, scaled, _ZERO):
                underflowed += zeros - _count(np.equal, x, _ZERO)
            np.multiply(scaled.reshape(x.shape), scale, out=found)
        return values, saturated, underflowed


def _count(compare: np.ufunc, x: Array, limit: np.number[Any]) -> int:
    """Count the numbers that compare in one way with a limit."""
    return int(np.count_nonzero(compare(x, limit, out=scratch(x.size, np.bool_).reshape(x.shape))))


def scaled_blocks(
    x: Float32Array, fmt: BlockFormat, axis: int, tensor_scale: Float32Array | None = None
) -> ScaledBlocks | None:
    """Find the scales of blocks as :func:`npfp8.blocks.quantize.quantize_blocks` does.

    Parameters
    ----------
    x : ndarray of float32
    fmt : BlockFormat
    axis : int
        The axis of the blocks, not negative.
    tensor_scale : ndarray of float32, (), optional
        The number of the tensor; without it, it is computed from the numbers.

    Returns
    -------
    ScaledBlocks, optional
        None where codes tell more than values do (numbers that are not finite, a scale that is
        NaN, a rule that makes NaN of numbers), and for rare formats.
    """
    rule, element = fmt.how, fmt.element
    if isinstance(element, FloatFormat):
        usual = element.signed and element.has_zero
    else:
        usual = -element.min_code == element.max_code
    if not usual:
        return None
    number = None
    if isinstance(rule, PowerRule):
        if rule.quantize is not None or (rule.zero is not None and rule.zero(element) is not None):
            return None
        amax, (codes, factors), finite = power_scales(
            x, rule, element, fmt.scale_format, fmt.block, axis
        )
        scale = scales = block_scales(codes, None, fmt)
    else:
        amax = block_amax(x, axis, fmt.block)
        if fmt.tensor_scale:
            number = tensor_scale
            number = tensor_scale_of(amax.max(initial=0), fmt) if number is None else number
        codes, scales, factors, finite = ratio_scales(
            x, amax, number, rule, element, fmt.scale_format, fmt.block, axis
        )
        scale = scales if number is None else block_scales(codes, number, fmt)
    if not finite or factors.dtype != np.float32:
        return None
    with np.errstate(all="ignore"):
        ones = _operation(fmt)(scale, factors)
        far = ~(np.abs(ones - 1) <= _NEAR)
    if far.any():  # NVFP4's scale of a block is 0 where all of it is far below the tensor's
        if not isinstance(rule, RatioRule) or scales[far].any() or scale[far].any():
            return None
        factors = np.where(far, np.float32(np.inf if rule.divide else 0), factors)
    return ScaledBlocks(x, fmt, axis, amax, codes, number, scales, scale, factors)


def _operation(fmt: BlockFormat) -> np.ufunc:
    rule = fmt.how
    return np.divide if isinstance(rule, RatioRule) and rule.divide else np.multiply


def _rounder(fmt: BlockFormat) -> Kernel:
    """Return the kernel that rounds chunks of numbers to the values of elements."""
    element, rule = fmt.element, fmt.how
    if isinstance(element, FloatFormat):
        roundings = rule.roundings if isinstance(rule, PowerRule) else {}
        return table_rounder(element, roundings.get(element, "nearest"))
    return _integer_rounder(element)


def _integer_rounder(element: IntFormat) -> Kernel:
    step = np.float32(element.min_subnormal)

    def kernel(x: Array, results: Array) -> None:
        np.divide(x, step, out=results)
        np.rint(results, out=results)
        np.clip(results, element.min_code, element.max_code, out=results)
        np.multiply(results, step, out=results)

    return kernel

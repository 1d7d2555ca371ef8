"""From numbers to the values of a block format, without codes on the way, for products.

The scales of blocks are found as always; what an element's code would decode to is found at
once. So an element is multiplied, rounded, and multiplied by the scale of its block, in a piece
that stays in the cache, and what is lost is counted there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from npfp8.arrays import Array, Float32Array, scratch
from npfp8.blocks.exponents import PowerRule, power_scales
from npfp8.blocks.formats import BlockFormat
from npfp8.blocks.pieces import block_amax, grids, like
from npfp8.blocks.quantize import block_scales, tensor_scale_of
from npfp8.blocks.ratios import RatioRule, ratio_scales
from npfp8.formats import FloatFormat, IntFormat

__all__ = ["ScaledBlocks", "scaled_blocks"]

_ZERO = np.float32(0)

#: The bits of a float32 without the sign.
_MAGNITUDE = np.int32(0x7FFFFFFF)

#: The bits of its exponent.
_EXPONENT = np.int32(0x7F800000)

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
            The values of the codes times the scales of the blocks, without the tensor's. Every
            zero is +0.
        saturated, underflowed : int
            As :func:`npfp8.blocks.counts.lost_in_blocks` counts them.
        """
        element, operation = self.fmt.element, _operation(self.fmt)
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
            scaled = scratch(x.size, np.float32)
            operation(x, factor, out=scaled.reshape(x.shape))
            magnitudes = np.bitwise_and(
                scaled.view(np.int32), _MAGNITUDE, scratch(x.size, np.int32)
            )
            beyond = _count(np.greater, magnitudes, high)
            if margin and beyond != _count(np.greater, magnitudes, low):
                with np.errstate(all="ignore"):  # a scale may be 0
                    beyond = int(np.count_nonzero((np.abs(x) / whole > reach) & (whole != 0)))
            saturated += beyond
            _round(scaled, element)
            if zeros := x.size - int(np.count_nonzero(scaled.view(np.int32))):
                underflowed += zeros - _count(np.equal, x, _ZERO)
            numbers = scaled.reshape(x.shape)
            if dtype == np.float32:
                np.multiply(numbers, scale, out=found)
            else:  # NumPy would widen each product in a buffer
                found[...] = np.multiply(numbers, scale, out=numbers)
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
        usual = element.signed and element.has_zero and element.mantissa_bits > 0
    else:
        usual = -element.min_code == element.max_code
    if not usual:
        return None
    number = None
    if isinstance(rule, PowerRule):
        special_zero = rule.zero is not None and rule.zero(element) is not None
        if special_zero or rule.quantize is not None or element in rule.roundings:
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


def _round(x: Float32Array, element: FloatFormat | IntFormat) -> None:
    """Round a chunk of finite numbers to the values of a format, in place; every zero is +0.

    A number plus 1.5 * 2^23 steps is rounded to a whole number of steps, ties to even, and
    taking these away is exact. A step is that of the number's binade, and at least the smallest
    one: of an integer format it is the step of the binade of the largest value.
    """
    largest = np.float32(element.max)
    np.clip(x, -largest, largest, out=x)  # three times as fast as a maximum with one number
    step = np.float32(element.min_subnormal)
    if isinstance(element, FloatFormat):
        lowest = np.float32(element.min_normal)
    else:
        lowest = np.float32(2.0 ** math.frexp(element.max)[1])
    steps = np.bitwise_and(x.view(np.int32), _EXPONENT, scratch(x.size, np.int32)).view(np.float32)
    np.clip(steps, lowest, np.maximum(lowest, largest), out=steps)
    np.multiply(steps, np.float32(1.5 * 2**23) * (step / lowest), out=steps)
    np.add(x, steps, out=x)
    np.subtract(x, steps, out=x)

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
from npfp8.codec.tables import table_rounder, values_of
from npfp8.formats import FloatFormat, IntFormat

__all__ = ["ScaledBlocks", "scaled_blocks"]

#: How far the product of a block's scale and its elements' factor may be from 1.
_NEAR = 2.0**-19


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
    scale: Float32Array
    factors: Array

    def values(self, dtype: type[np.floating[Any]]) -> tuple[Array, int, int]:
        """Return the elements, and how many numbers saturated and underflowed.

        Parameters
        ----------
        dtype : type
            float32 or float64; every product of a code's value and a block's scale must be a
            number of it.

        Returns
        -------
        values : ndarray
            The values of the codes times the scales of the blocks, without the tensor's. A zero
            may have either sign.
        saturated, underflowed : int
            As :func:`npfp8.blocks.counts.lost_in_blocks` counts them.
        """
        element, block = self.fmt.element, self.fmt.block
        kernel, operation = _rounder(self.fmt, dtype), _operation(self.fmt)
        # A number saturates if its quotient by the scale is beyond `reach`. What it is multiplied
        # by makes nearly that quotient, or the very same where scales are powers of two.
        reach = np.float32(element.reach * (1 + 2.0**-20))
        margin = 0.0 if self.fmt.powers_of_two else 2 * _NEAR
        low, high = (np.array(reach * (1 + sign * margin), np.float32) for sign in (-1, 1))
        codes = self.scale_codes
        scales = values_of(codes, self.fmt.scale_format, np.dtype(dtype))
        values = like(self.x, dtype)
        saturated = underflowed = 0
        arrays, per_block = (self.x, values), (self.factors, scales, self.scale)
        for part, found, factor, scale, whole in grids(arrays, per_block, self.axis, block):
            scaled = scratch(part.size, self.factors.dtype.type)
            operation(part, factor, out=scaled.reshape(part.shape))
            direct = found.flags.c_contiguous
            target = found.reshape(-1) if direct else np.empty(part.size, dtype)
            kernel(scaled, target)
            flags = scratch(part.size, np.bool_)
            if zeros := np.count_nonzero(np.equal(target, 0, out=flags)):
                zeros -= np.count_nonzero(np.equal(part, 0, out=flags.reshape(part.shape)))
                underflowed += int(zeros)
            np.abs(scaled, out=scaled)
            beyond = np.count_nonzero(np.greater(scaled, high, out=flags))
            if margin and beyond != np.count_nonzero(np.greater(scaled, low, out=flags)):
                with np.errstate(all="ignore"):  # a scale of zeros may be 0
                    beyond = np.count_nonzero(np.abs(part) / whole > reach)
            saturated += int(beyond)
            np.multiply(target.reshape(part.shape), scale, out=found)
        return values, saturated, underflowed


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
    else:
        amax = block_amax(x, axis, fmt.block)
        if fmt.tensor_scale:
            number = tensor_scale
            number = tensor_scale_of(amax.max(initial=0), fmt) if number is None else number
        codes, scales, factors, finite = ratio_scales(
            x, amax, number, rule, element, fmt.scale_format, fmt.block, axis
        )
    if not finite or (isinstance(rule, RatioRule) and rule.one_type):
        return None
    scale = block_scales(codes, number, fmt)
    with np.errstate(all="ignore"):
        ones = _operation(fmt)(scale, factors)
        far = ~(np.abs(ones - 1) <= _NEAR)
    if far.any():  # NVFP4's scale of a block is 0 where all of it is far below the tensor's
        if not isinstance(rule, RatioRule) or scales[far].any() or scale[far].any():
            return None
        factors = np.where(far, np.float32(np.inf if rule.divide else 0), factors)
    return ScaledBlocks(x, fmt, axis, amax, codes, number, scale, factors)


def _operation(fmt: BlockFormat) -> np.ufunc:
    rule = fmt.how
    return np.divide if isinstance(rule, RatioRule) and rule.divide else np.multiply


def _rounder(fmt: BlockFormat, dtype: type[np.floating[Any]]) -> Kernel:
    """Return the kernel that rounds chunks of numbers to the values of elements."""
    element, rule = fmt.element, fmt.how
    if isinstance(element, FloatFormat):
        roundings = rule.roundings if isinstance(rule, PowerRule) else {}
        return table_rounder(element, roundings.get(element, "nearest"), np.dtype(dtype))
    return _integer_rounder(element, dtype)


def _integer_rounder(element: IntFormat, dtype: type[np.floating[Any]]) -> Kernel:
    step = element.min_subnormal

    def kernel(x: Array, results: Array) -> None:
        np.multiply(x, x.dtype.type(1 / step), out=results)
        np.rint(results, out=results)
        np.clip(results, element.min_code, element.max_code, out=results)
        np.multiply(results, dtype(step), out=results)

    return kernel

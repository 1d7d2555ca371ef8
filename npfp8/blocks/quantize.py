"""From numbers to the codes of elements and scales of a block format, and to scales in float32."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from npfp8.arrays import Array, Float32Array
from npfp8.blocks.formats import BlockFormat
from npfp8.blocks.pieces import block_amax
from npfp8.blocks.powers import PowerRule, power_codes
from npfp8.blocks.ratios import RatioRule, ratio_codes
from npfp8.codec.tables import values_of
from npfp8.scaling import as_float32

__all__ = [
    "BlockCodes",
    "block_scales",
    "checked_tensor_scale",
    "quantize_blocks",
    "tensor_divisor",
    "tensor_multiplier",
    "tensor_scale_of",
]


class BlockCodes(NamedTuple):
    """The codes of the elements and of the scales, and the number stored for the tensor."""

    codes: Array
    scale_codes: Array
    tensor_scale: Float32Array | None


def quantize_blocks(
    x: Float32Array,
    fmt: BlockFormat,
    axis: int,
    source: str = "float32",
    tensor_scale: Float32Array | None = None,
) -> BlockCodes:
    """Quantize an array by the rule of a block format.

    Parameters
    ----------
    x : ndarray of float32
    fmt : BlockFormat
    axis : int
        The axis of the blocks, not negative.
    source : {"float32", "float16", "bfloat16"}
        The type in which the numbers were given: some rules compute in it.
    tensor_scale : ndarray of float32, (), optional
        The number of the tensor; without it, it is computed from the numbers.
    """
    rule, parts = fmt.how, (fmt.element, fmt.scale_format, fmt.block, axis, source)
    if isinstance(rule, PowerRule):
        return BlockCodes(*power_codes(x, rule, *parts), None)
    amax = block_amax(x, axis, fmt.block)
    if not fmt.tensor_scale:
        tensor_scale = None
    elif tensor_scale is None:
        tensor_scale = tensor_scale_of(amax.max(initial=0), fmt, source)
    return BlockCodes(*ratio_codes(x, amax, tensor_scale, rule, *parts), tensor_scale)


def block_scales(
    scale_codes: Array, tensor_scale: Float32Array | None, fmt: BlockFormat
) -> Float32Array:
    """Return the float32 scale of each block, by which the values of codes are multiplied."""
    values: Float32Array = values_of(scale_codes, fmt.scale_format, np.dtype(np.float32))
    if tensor_scale is None:
        return values
    assert isinstance(fmt.how, RatioRule)
    with np.errstate(all="ignore"):
        return fmt.how.block_scale(values, tensor_scale, fmt.element.max, fmt.scale_format.max)


def tensor_scale_of(
    largest: Float32Array, fmt: BlockFormat, source: str = "float32"
) -> Float32Array:
    """Return the number that is stored for a tensor of a largest magnitude.

    ``source`` is the type in which the numbers were given.
    """
    assert isinstance(fmt.how, RatioRule)
    with np.errstate(all="ignore"):
        number = fmt.how.tensor_scale(largest, fmt.element.max, fmt.scale_format.max, source)
    return np.asarray(number, np.float32)


def tensor_multiplier(tensor_scale: Float32Array, fmt: BlockFormat) -> Float32Array:
    """Return the float32 number by which the number that is stored for a tensor multiplies."""
    assert isinstance(fmt.how, RatioRule)
    return fmt.how.multiplier(tensor_scale, fmt.element.max, fmt.scale_format.max)


def tensor_divisor(tensor_scale: Float32Array, fmt: BlockFormat) -> Float32Array:
    """Return the float32 number by which the number that is stored for a tensor divides."""
    assert isinstance(fmt.how, RatioRule)
    return fmt.how.divisor(tensor_scale, fmt.element.max, fmt.scale_format.max)


def checked_tensor_scale(tensor_scale: object, fmt: BlockFormat) -> Float32Array | None:
    """Return the number of a tensor as float32; raise unless it is as the format demands.

    Raises
    ------
    TypeError, ValueError
        If it is missing or not wanted, or is not one finite number that is not negative, or
        is not 0 but rounds to 0.
    """
    if tensor_scale is None or not fmt.tensor_scale:
        if (tensor_scale is None) == fmt.tensor_scale:
            wanted = "a number" if fmt.tensor_scale else "None"
            raise ValueError(f"tensor_scale: expected {wanted} for {fmt}, found {tensor_scale}")
        return None
    number = as_float32("tensor_scale", tensor_scale)  # type: ignore[arg-type]
    if number.ndim or not (np.isfinite(number) and number >= 0):  # ModelOpt stores 0 for zeros
        raise ValueError(f"tensor_scale: expected one finite number, not negative, found {number}")
    if number == 0 and np.asarray(tensor_scale) != 0:
        raise ValueError(f"tensor_scale: expected a number above 2^-150, found {tensor_scale}")
    return number

"""Counts of what a quantization to blocks lost: numbers that saturated, and that became zero."""

from __future__ import annotations

import numpy as np

from npfp8.arrays import Array, Float32Array, scratch
from npfp8.blocks.pieces import grids
from npfp8.formats import FloatFormat, Format

__all__ = ["lost_in_blocks"]


def lost_in_blocks(
    x: Float32Array, codes: Array, scales: Float32Array, fmt: Format, axis: int, block: int
) -> tuple[int, int]:
    """Count numbers that saturated or underflowed: :meth:`npfp8.QuantizedTensor.lost`.

    Parameters
    ----------
    x : ndarray of float32
    codes : ndarray, of the shape of ``x``
        Their codes, without a zero point.
    scales : ndarray of float32
        One per block.
    fmt : Format
        The format of the codes.
    axis, block : int
        The axis of the blocks, not negative, and their length.

    Returns
    -------
    saturated, underflowed : int

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import quantize
    >>> from npfp8.blocks.counts import lost_in_blocks
    >>> x = np.float32([7.9, 1.0, 0.1, 0.0])
    >>> q = quantize(x, "MXFP4")
    >>> lost_in_blocks(x, q.codes, q.scale, q.fmt, 0, 32)
    (1, 1)
    """
    floats = fmt if isinstance(fmt, FloatFormat) else None
    signed = floats is None or floats.signed  # negative numbers of others are NaN
    # A scale from the largest number itself may round to just beyond. INT4's reaches half a step
    # beyond its largest value, where a code is as near as any other.
    reach = fmt.reach * (1 + 2.0**-20)
    some_zero = not scales.all()  # a scale of zero makes its block zeros: none of it saturated
    saturated = underflowed = 0
    for of_x, of_codes, scale in grids((x, codes), (scales,), axis, block):
        magnitudes = np.abs(of_codes) if floats is None else of_codes & floats.magnitude_mask
        if some_zero:
            magnitudes *= scale != 0
        quotients = scratch(of_x.size, np.float32).reshape(of_x.shape)
        numbers = np.abs(of_x, out=quotients) if signed else of_x
        with np.errstate(all="ignore"):  # a scale may be 0 or NaN
            beyond = np.divide(numbers, scale, out=quotients) > reach
        beyond &= magnitudes >= fmt.max_code
        saturated += int(np.count_nonzero(beyond))
        if floats is None or floats.has_zero:
            underflowed += int(np.count_nonzero(of_x != 0)) - int(np.count_nonzero(magnitudes))
        if floats is not None and floats.sign_bit in floats.nan_codes:  # of zero's magnitude
            underflowed -= int(np.count_nonzero(of_codes == floats.sign_bit))
    return saturated, underflowed

"""Scales: from numbers or their range to the scale, and the zero point, of each group of them.

A group is what shares a scale: a tensor, an index of one axis, or a block of an axis
(:func:`axis_and_block`). Its range (:func:`group_extrema`, or a calibration's) becomes a
scale by one rule (:func:`scale_of_range`): the absolute maximum is mapped to the format's
largest value (:func:`absmax_scale`), rounded up to a power of two if asked for
(:func:`power_of_two_scale`); or, in a format with a zero point, the whole range to all
codes (:func:`affine_scale`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array
from npfp8.formats import Format, IntFormat

__all__ = [
    "absmax_scale",
    "affine_scale",
    "axis_and_block",
    "checked_scale",
    "dynamic_scale",
    "group_extrema",
    "power_of_two_scale",
    "scale_of_range",
    "scale_shape",
    "spread",
]

_MIN_NORMAL = np.finfo(np.float32).tiny


def dynamic_scale(
    x: Float32Array,
    fmt: Format,
    axis: int | None = None,
    block: int | None = None,
    power_of_two: bool = False,
) -> tuple[Float32Array, Array | None]:
    """The scales, and zero points or None, that an array has from itself.

    Parameters
    ----------
    x : ndarray of float32
    fmt, power_of_two
        As for :func:`scale_of_range`.
    axis, block : int, optional
        As for :func:`npfp8.quantize`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.scaling import dynamic_scale
    >>> dynamic_scale(np.float32([[448, 1], [-3.5, 0]]), E4M3FN, axis=0)
    (array([1.       , 0.0078125], dtype=float32), None)
    """
    return scale_of_range(*group_extrema(x, axis, block), fmt, power_of_two)


def scale_of_range(
    low: npt.ArrayLike, high: npt.ArrayLike, fmt: Format, power_of_two: bool = False
) -> tuple[Float32Array, Array | None]:
    """The scales, and zero points or None, that map ranges around 0 to a format.

    Parameters
    ----------
    low, high : array_like of float32
        ``low <= 0 <= high``, finite.
    fmt : FloatFormat or IntFormat
        With a zero point: :func:`affine_scale`; else the larger magnitude decides.
    power_of_two : bool
        Whether the scale is rounded up to a power of two; without a zero point only.
    """
    if isinstance(fmt, IntFormat) and fmt.has_zero_point:
        return affine_scale(low, high, fmt)
    scale = absmax_scale(np.maximum(high, np.negative(low)), fmt)
    return power_of_two_scale(scale) if power_of_two else scale, None


def axis_and_block(
    granularity: str, shape: tuple[int, ...], k_axis: int, block: int
) -> tuple[int | None, int | None]:
    """The axis and the block of a product's operand whose scales are of a granularity.

    Parameters
    ----------
    granularity : {"tensor", "channel", "token", "block"}
        One scale; one for each index of the axis that is not summed over; one for each
        row of a left operand (column of a right one), which is one block along the sum;
        or one for each run of ``block`` elements along the sum.
    shape : tuple of int
        The operand's.
    k_axis : {-1, -2}
        The axis that the product sums over: -1 for a left operand, -2 for a right one.
    block : int
        For "block".

    Returns
    -------
    axis, block : int or None
        As :func:`npfp8.quantize` takes them; the axis counts from the first.

    Examples
    --------
    >>> [axis_and_block(how, (8, 256), -1, 128) for how in ("tensor", "channel", "token", "block")]
    [(None, None), (0, None), (1, 256), (1, 128)]
    """
    axis, length = {
        "tensor": (None, None),
        "channel": (-3 - k_axis, None),
        "token": (k_axis, shape[k_axis]),
        "block": (k_axis, block),
    }[granularity]
    return None if axis is None else axis % len(shape), length


def absmax_scale(absmax: npt.ArrayLike, fmt: Format) -> Float32Array:
    """The float32 scale that maps an absolute maximum to the format's largest value.

    ``float32(absmax / fmt.max)``; 1 where ``absmax`` is 0; never below the
    smallest normal float32.

    Parameters
    ----------
    absmax : array_like of float32
        Non-negative and finite.
    fmt : FloatFormat or IntFormat

    Returns
    -------
    ndarray of float32, of the same shape

    Raises
    ------
    ValueError
        If ``absmax`` is negative, infinite or NaN; or the scale is beyond
        float32 (only where ``fmt.max`` is below 1).

    Examples
    --------
    >>> from npfp8 import E4M3FN
    >>> from npfp8.scaling import absmax_scale
    >>> float(absmax_scale(896.0, E4M3FN))
    2.0
    """
    with np.errstate(over="ignore", under="ignore"):
        largest = np.asarray(absmax, np.float32)
    bad = ~(np.isfinite(largest) & (largest >= 0))
    if bad.any():
        raise ValueError(f"absmax: expected finite and not negative, found {largest[bad][0]}")
    with np.errstate(over="ignore", under="ignore"):
        scale = np.maximum(largest / np.float32(fmt.max), _MIN_NORMAL)
    if not np.isfinite(scale).all():
        raise ValueError(f"absmax: {largest.max()} over {fmt}'s {fmt.max} is beyond float32")
    return np.asarray(np.where(largest == 0, np.float32(1), scale), np.float32)


def affine_scale(
    low: npt.ArrayLike, high: npt.ArrayLike, fmt: IntFormat
) -> tuple[Float32Array, Array]:
    """The float32 scale and the zero point that map a range to an integer format's whole range.

    ``scale = float32((high - low) / (max_code - min_code))`` and ``zero_point =
    min_code - round(low / scale)``, so that the real number 0 has a code
    (Jacob et al., arXiv 1712.05877, section 2.1).

    Parameters
    ----------
    low, high : array_like of float32
        ``low <= 0 <= high``, finite.
    fmt : IntFormat

    Returns
    -------
    scale : ndarray of float32
        1 for an empty range.
    zero_point : ndarray of the codes' dtype

    Raises
    ------
    ValueError
        If a range is not finite or does not contain 0, or the scale is beyond
        float32 (a format of few codes).

    Examples
    --------
    >>> from npfp8 import UINT8
    >>> from npfp8.scaling import affine_scale
    >>> scale, zero_point = affine_scale(-1.0, 4.1, UINT8)
    >>> round(float(scale), 6), int(zero_point)
    (0.02, 50)
    """
    lows, highs = np.asarray(low, np.float32), np.asarray(high, np.float32)
    bad = ~(np.isfinite(lows) & np.isfinite(highs) & (lows <= 0) & (highs >= 0))
    if bad.any():
        raise ValueError(f"range: expected finite, with 0, found {lows[bad][0]}..{highs[bad][0]}")
    width = (highs.astype(np.float64) - lows) / (fmt.max_code - fmt.min_code)
    with np.errstate(over="ignore"):
        scale = np.where(width == 0, 1.0, np.maximum(width, _MIN_NORMAL)).astype(np.float32)
    if not np.isfinite(scale).all():
        raise ValueError(f"range: the scale {width.max()} that maps it to {fmt} is beyond float32")
    zero_point = np.clip(fmt.min_code - np.rint(lows / scale), fmt.min_code, fmt.max_code)
    return np.asarray(scale), zero_point.astype(fmt.code_dtype)


def power_of_two_scale(scale: npt.ArrayLike) -> Float32Array:
    """The smallest powers of two that are not below the scales, but at most 2^127.

    Such a scale changes exponents alone, so scaling by it does not round.

    Examples
    --------
    >>> from npfp8.scaling import power_of_two_scale
    >>> power_of_two_scale([0.3, 0.5, 3.0])
    array([0.5, 0.5, 4. ], dtype=float32)
    """
    fraction, exponent = np.frexp(checked_scale(scale))
    exponent = np.minimum(exponent - (fraction == 0.5), 127)
    return np.asarray(np.ldexp(np.float32(1), exponent), np.float32)


def spread(per_scale: Array, shape: tuple[int, ...], axis: int | None, block: int | None) -> Array:
    """Reshape one value per scale so that it broadcasts against codes of shape ``shape``."""
    if axis is None:
        return per_scale
    if block is not None:
        # A block larger than the axis is the whole axis; it may not fit an index's dtype.
        return per_scale.take(np.arange(shape[axis]) // min(block, shape[axis] or 1), axis=axis)
    return per_scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def group_extrema(
    x: Float32Array, axis: int | None = None, block: int | None = None
) -> tuple[Float32Array, Float32Array]:
    """The least and the largest element of each group that shares a scale; at most and at least 0.

    Parameters
    ----------
    x : ndarray of float32
    axis, block : int, optional
        As for :func:`npfp8.quantize`; the results are of the scale's shape.
    """
    if axis is None:
        low, high = x.min(initial=0), x.max(initial=0)
    elif block is None:
        others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        low, high = x.min(axis=others, initial=0), x.max(axis=others, initial=0)
    elif not x.shape[axis]:
        low, high = np.zeros_like(x), np.zeros_like(x)
    else:
        starts = range(0, x.shape[axis], min(block, x.shape[axis]))
        low = np.minimum(np.minimum.reduceat(x, starts, axis=axis), np.float32(0))
        high = np.maximum(np.maximum.reduceat(x, starts, axis=axis), np.float32(0))
    return np.asarray(low), np.asarray(high)


def scale_shape(shape: tuple[int, ...], axis: int | None, block: int | None) -> tuple[int, ...]:
    """The shape of the scale of codes of ``shape``."""
    if block is not None and (axis is None or block < 1):
        raise ValueError(f"block: expected at least 1, with an axis; found {block}, axis {axis}")
    if axis is None:
        return ()
    if block is None:
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])


def checked_scale(scale: npt.ArrayLike) -> Float32Array:
    """The scale as float32; an error unless every one is positive, finite and normal."""
    given = np.asarray(scale)
    with np.errstate(over="ignore", under="ignore"):
        checked = given.astype(np.float32, copy=False)
    if checked.ndim == 0 and _MIN_NORMAL <= float(checked) < np.inf:  # the usual one, at once
        return checked
    bad = ~(np.isfinite(checked) & (checked >= _MIN_NORMAL))
    if bad.any():
        raise ValueError(f"scale: expected positive, finite, normal float32, found {given[bad][0]}")
    return checked

"""Scales: from numbers or their range to the scale, and the zero point, of each group of them.

The elements of a group share a scale. A group is a tensor, an index of one axis, or a
block of an axis (:func:`axis_and_block`). Its range comes from :func:`group_extrema` or
from a calibration, and becomes a scale by one rule (:func:`scale_of_range`): the absolute
maximum is mapped to the largest value of the format (:func:`absmax_scale`), and the scale
is rounded up to a power of two on request (:func:`power_of_two_scale`). In a format with a
zero point the whole range is mapped to all codes (:func:`affine_scale`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, flag, integer, wrong_array
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import is_bfloat16
from npfp8.formats import Format, IntFormat, as_format, as_int_format

__all__ = [
    "absmax_scale",
    "affine_scale",
    "as_float32",
    "axis_and_block",
    "checked_block",
    "checked_scale",
    "dynamic_scale",
    "finite_extrema",
    "group_extrema",
    "normalized_axis",
    "power_of_two_scale",
    "scale_of_range",
    "scale_shape",
    "spread",
]

_MIN_NORMAL = np.finfo(np.float32).tiny


def dynamic_scale(
    x: npt.ArrayLike,
    fmt: Format | str,
    axis: int | None = None,
    block: int | None = None,
    power_of_two: bool = False,
) -> tuple[Float32Array, Array | None]:
    """Compute the scales, and the zero points or None, of an array from its own range.

    Parameters
    ----------
    x : array_like of float32
    fmt, power_of_two
        As for :func:`scale_of_range`.
    axis, block : int, optional
        As for :func:`npfp8.quantize`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``x`` has a NaN or an infinity, or ``axis`` or ``block`` does not fit its shape.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.scaling import dynamic_scale
    >>> dynamic_scale(np.float32([[448, 1], [-3.5, 0]]), E4M3FN, axis=0)
    (array([1.       , 0.0078125], dtype=float32), None)
    """
    return scale_of_range(*finite_extrema(x, axis, block), fmt, power_of_two)


def scale_of_range(
    low: npt.ArrayLike, high: npt.ArrayLike, fmt: Format | str, power_of_two: bool = False
) -> tuple[Float32Array, Array | None]:
    """Compute the scales, and the zero points or None, that map ranges around 0 to a format.

    Parameters
    ----------
    low, high : array_like of float32
        ``low <= 0 <= high``, finite.
    fmt : FloatFormat, IntFormat or str
        A format with a zero point uses :func:`affine_scale`; for others the larger
        magnitude decides.
    power_of_two : bool
        Whether the scale is rounded up to a power of two. Ignored with a zero point.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If a range is not finite or does not contain 0.

    Examples
    --------
    >>> from npfp8.scaling import scale_of_range
    >>> scale_of_range(-3.0, 448.0, "E4M3FN")
    (array(1., dtype=float32), None)
    """
    fmt, power_of_two = as_format(fmt), flag("power_of_two", power_of_two)
    if isinstance(fmt, IntFormat) and fmt.has_zero_point:
        return affine_scale(low, high, fmt)
    lows, highs = _range(low, high)
    scale = absmax_scale(np.maximum(highs, -lows), fmt)
    return power_of_two_scale(scale) if power_of_two else scale, None


def axis_and_block(
    granularity: str, shape: tuple[int, ...], k_axis: int, block: int
) -> tuple[int | None, int | None]:
    """Return the axis and the block of the scales of an operand of a product.

    Parameters
    ----------
    granularity : {"tensor", "channel", "token", "block"}
        One scale; one per index of the axis that is not summed over; one per row of a
        left operand or column of a right one, which is one block along the sum; or one
        per run of ``block`` elements along the sum.
    shape : tuple of int
        The shape of the operand.
    k_axis : {-1, -2}
        The axis that the product sums over: -1 for a left operand, -2 for a right one.
    block : int
        The length of a block, for "block".

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


def absmax_scale(absmax: npt.ArrayLike, fmt: Format | str) -> Float32Array:
    """Compute the float32 scale that maps an absolute maximum to the largest value of a format.

    ``float32(absmax / fmt.max)``; 1 where ``absmax`` is 0; never below the
    smallest normal float32.

    An integer format with one more negative code than positive ones (INT4: -8..7) is taken as
    symmetric around 0, half a step wider than its largest value: the divisor is 7.5 for INT4, as
    in GPTQ's program (IST-DASLab/gptq, ``quant.py``) and in compressed-tensors
    (``calculate_qparams``). The largest positive number then saturates, by half a step, and all
    others have a finer step.

    Parameters
    ----------
    absmax : array_like of float32
        Non-negative and finite.
    fmt : FloatFormat, IntFormat or str
        A format or its name.

    Returns
    -------
    ndarray of float32, of the same shape

    Raises
    ------
    TypeError
        If ``absmax`` does not hold real numbers, or ``fmt`` is not a format or a name.
    ValueError
        If ``absmax`` is negative, infinite or NaN; or the scale is beyond
        float32 (only where ``fmt.max`` is below 1).

    Examples
    --------
    >>> from npfp8 import E4M3FN
    >>> from npfp8.scaling import absmax_scale
    >>> float(absmax_scale(896.0, E4M3FN)), float(absmax_scale(15.0, "INT4"))
    (2.0, 2.0)
    """
    fmt = as_format(fmt)
    largest = as_float32("absmax", absmax)
    bad = ~(np.isfinite(largest) & (largest >= 0))
    if bad.any():
        raise ValueError(f"absmax: expected finite and not negative, found {largest[bad][0]}")
    with np.errstate(over="ignore", under="ignore"):
        scale = np.maximum(largest / np.float32(fmt.reach), _MIN_NORMAL)
    if not np.isfinite(scale).all():
        raise ValueError(f"absmax: {largest.max()} over {fmt}'s {fmt.reach} is beyond float32")
    return np.asarray(np.where(largest == 0, np.float32(1), scale), np.float32)


def affine_scale(
    low: npt.ArrayLike, high: npt.ArrayLike, fmt: IntFormat | str
) -> tuple[Float32Array, Array]:
    """Compute the float32 scale and the zero point that map a range to all integer codes.

    ``scale = float32((high - low) / (max_code - min_code))`` and ``zero_point =
    min_code - round(low / scale)``, so that the real number 0 has a code
    (Jacob et al., arXiv 1712.05877, section 2.1).

    Parameters
    ----------
    low, high : array_like of float32
        ``low <= 0 <= high``, finite.
    fmt : IntFormat or str
        An integer format or its name.

    Returns
    -------
    scale : ndarray of float32
        1 for an empty range.
    zero_point : ndarray of the codes' dtype

    Raises
    ------
    TypeError
        If a range does not hold real numbers, or ``fmt`` is not an integer format.
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
    fmt = as_int_format(fmt)
    lows, highs = _range(low, high)
    width = (highs.astype(np.float64) - lows) / (fmt.max_code - fmt.min_code)
    with np.errstate(over="ignore"):
        scale = np.where(width == 0, 1.0, np.maximum(width, _MIN_NORMAL)).astype(np.float32)
    if not np.isfinite(scale).all():
        raise ValueError(f"range: the scale {width.max()} that maps it to {fmt} is beyond float32")
    zero_point = np.clip(fmt.min_code - np.rint(lows / scale), fmt.min_code, fmt.max_code)
    return np.asarray(scale), zero_point.astype(fmt.code_dtype)


def _range(low: npt.ArrayLike, high: npt.ArrayLike) -> tuple[Float32Array, Float32Array]:
    """Return the ends of ranges as float32; raise unless they are finite, around 0."""
    lows, highs = as_float32("low", low), as_float32("high", high)
    try:
        good = np.isfinite(lows) & np.isfinite(highs) & (lows <= 0) & (highs >= 0)
    except ValueError:
        raise ValueError(
            f"low and high: expected shapes that broadcast, found {lows.shape} and {highs.shape}"
        ) from None
    if not good.all():
        first, last = (np.broadcast_to(end, good.shape)[~good][0] for end in (lows, highs))
        raise ValueError(f"low and high: expected a finite range, with 0, found {first}..{last}")
    return lows, highs


def power_of_two_scale(scale: npt.ArrayLike) -> Float32Array:
    """Round scales up to powers of two, at most 2^127.

    Such a scale changes only exponents, so scaling by it does not round.

    Raises
    ------
    TypeError
        If ``scale`` does not hold real numbers.
    ValueError
        If a scale is not positive, finite and normal.

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
    x: npt.ArrayLike, axis: int | None = None, block: int | None = None
) -> tuple[Float32Array, Float32Array]:
    """Find the least and the largest element of each group that shares a scale, and 0.

    Parameters
    ----------
    x : array_like of float32
    axis, block : int, optional
        As for :func:`npfp8.quantize`.

    Returns
    -------
    low, high : ndarray of float32, of the shape of the scale
        ``low`` is at most 0, ``high`` at least 0.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``axis`` or ``block`` does not fit the shape.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.scaling import group_extrema
    >>> low, high = group_extrema(np.float32([[1, -2], [3, 4]]), axis=0)
    >>> low.tolist(), high.tolist()
    ([-2.0, 0.0], [1.0, 4.0])
    """
    x = as_float32("x", x)
    axis = normalized_axis(axis, x.ndim)
    block = checked_block(block, axis)
    if axis is None:
        low, high = x.min(initial=0), x.max(initial=0)
    elif block is None:
        others = tuple(i for i in range(x.ndim) if i != axis)
        low, high = x.min(axis=others, initial=0), x.max(axis=others, initial=0)
    elif not x.shape[axis]:
        low, high = np.zeros_like(x), np.zeros_like(x)
    else:
        starts = range(0, x.shape[axis], min(block, x.shape[axis]))
        low = np.minimum(np.minimum.reduceat(x, starts, axis=axis), np.float32(0))
        high = np.maximum(np.maximum.reduceat(x, starts, axis=axis), np.float32(0))
    return np.asarray(low), np.asarray(high)


def finite_extrema(
    x: npt.ArrayLike, axis: int | None, block: int | None
) -> tuple[Float32Array, Float32Array]:
    """Find the extrema of each group; raise ValueError if there is a NaN or an infinity."""
    low, high = group_extrema(x, axis, block)
    for ends in (low, high):
        if not np.isfinite(ends).all():
            found = ends[~np.isfinite(ends)][0]
            raise ValueError(f"x: expected finite numbers without a given scale, found {found}")
    return low, high


def normalized_axis(axis: int | None, ndim: int) -> int | None:
    """Return an axis as its non-negative equal; raise if there is none of ``ndim``."""
    if axis is None:
        return None
    axis = integer("axis", axis)
    if not -ndim <= axis < ndim:
        raise ValueError(f"axis: expected one of {ndim} axes, found {axis}")
    return axis % ndim


def checked_block(block: int | None, axis: int | None) -> int | None:
    """Return the length of a block as an int; raise unless it is positive, with an axis."""
    if block is None:
        return None
    block = integer("block", block)
    if axis is None or block < 1:
        raise ValueError(f"block: expected at least 1, with an axis; found {block}, axis {axis}")
    return block


def scale_shape(shape: tuple[int, ...], axis: int | None, block: int | None) -> tuple[int, ...]:
    """Return the shape of the scale of codes of ``shape``."""
    if axis is None:
        return ()
    if block is None:
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // block), *shape[axis + 1 :])


def checked_scale(scale: npt.ArrayLike) -> Float32Array:
    """Return scales as float32; raise unless all are positive, finite and normal."""
    checked = as_float32("scale", scale)
    if checked.ndim == 0 and _MIN_NORMAL <= float(checked) < np.inf:  # the usual one, at once
        return checked
    bad = ~(np.isfinite(checked) & (checked >= _MIN_NORMAL))
    if bad.any():
        raise ValueError(
            f"scale: expected positive, finite, normal float32, found {np.asarray(scale)[bad][0]}"
        )
    return checked


def as_float32(argument: str, x: npt.ArrayLike) -> Float32Array:
    """Return real numbers as float32, rounded where they are wider; raise for anything else."""
    given = array_of(argument, x)
    if given.dtype == object and given.size and all(type(one) is int for one in given.flat):
        given = _wide_integers(argument, given)
    if given.dtype.kind not in "fiu" and not is_bfloat16(given.dtype):
        raise wrong_array(argument, "real numbers", given, x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return given.astype(np.float32, copy=False)


def _wide_integers(argument: str, x: Array) -> Array:
    """Return integers beyond 64 bits as float64."""
    try:
        return x.astype(np.float64)
    except OverflowError:
        raise ValueError(f"{argument}: expected numbers, found an integer beyond float64") from None

"""What calibration remembers of an operand, and the ranges that observers make of it.

Memory does not grow with the number of samples: besides extrema there is a
histogram over the 65,536 bfloat16 values, to which elements are rounded. It is
exact in the sense that matters, since bfloat16 is what will be quantized: every
observer but the moving average is a function of these counts, so the order of
the batches does not show, and two calibrations can be merged.

All sums are tree sums and the logarithm is :mod:`npfp8.elementary`'s, so that a
range is the same on every machine if the histogram is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from npfp8 import FloatFormat, Format, IntFormat, quantize
from npfp8.bfloat16 import from_bits, round_to_bits
from npfp8.elementary import log
from npfp8.golden import tree_sum
from npfp8.tensor import absmax_scale, affine_scale, power_of_two_scale

__all__ = [
    "OBSERVERS",
    "Statistics",
    "clip_range",
    "follow",
    "is_affine",
    "look_at",
    "merge",
    "observe",
    "quantization_noise",
    "range_scale",
]

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

#: The weight of a new batch in the moving average.
MOMENTUM = 0.1

#: The largest bfloat16 value.
_LARGEST = np.float32(2.0**128 - 2.0**120)

#: Elements counted at a time: their bits as integers of the index's width stay in cache.
_BLOCK = 1 << 15

#: The thresholds that the searches try: absmax times i / 64.
_CANDIDATES = 64


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen of one operand.

    Attributes
    ----------
    low, high : float
        The least and the largest element; at most and at least 0.
    average_low, average_high : float
        The moving averages of the batches' least and largest elements.
    histogram : ndarray of int64, (65536,)
        How many elements round to each bfloat16 value, by its bits.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    histogram: npt.NDArray[np.int64]

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(self.high, -self.low)

    @property
    def count(self) -> int:
        """How many elements were seen."""
        return int(self.histogram.sum())


def observe(site: str, seen: Statistics | None, x: Float32Array) -> Statistics:
    """The statistics of what was seen before and of one more batch.

    Parameters
    ----------
    site : str
        For the message.
    seen : Statistics, optional
        None for the first batch.
    x : ndarray of float32
        The operand, of any shape.

    Raises
    ------
    BertNumpyError
        If an element is NaN or infinite; names the site.
    """
    histogram = np.zeros(1 << 16, np.int64) if seen is None else seen.histogram.copy()
    extrema = look_at(site, x, histogram)
    return replace(follow(seen, [extrema]), histogram=histogram)


def look_at(site: str, x: Float32Array, histogram: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Count the elements of ``x`` into ``histogram``; returns its extrema, at most and at least 0.

    Raises
    ------
    BertNumpyError
        As :func:`observe` does.
    """
    low, high = float(x.min(initial=0)), float(x.max(initial=0))
    if not (math.isfinite(low) and math.isfinite(high)):
        found = high if math.isfinite(low) else low
        raise BertNumpyError(f"calibration: site {site!r}: expected finite operands, found {found}")
    if max(high, -low) > _LARGEST:  # else it would round to infinity
        x = np.clip(x, -_LARGEST, _LARGEST)
    flat = x.reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        bits = round_to_bits(flat[start : start + _BLOCK])
        np.add.at(histogram, bits.astype(np.intp), 1)
    return low, high


def follow(seen: Statistics | None, extrema: Sequence[tuple[float, float]]) -> Statistics:
    """The statistics of what was seen before and of what :func:`look_at` made of more arrays.

    All but the histogram, which look_at has added to.
    """
    for low, high in extrema:
        if seen is None:
            seen = Statistics(low, high, low, high, np.zeros(0, np.int64))
            continue
        seen = Statistics(
            min(seen.low, low),
            max(seen.high, high),
            seen.average_low + MOMENTUM * (low - seen.average_low),
            seen.average_high + MOMENTUM * (high - seen.average_high),
            seen.histogram,
        )
    assert seen is not None, "no array"
    return seen


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both; the moving average, which depends on an order, is ``b``'s."""
    return Statistics(
        min(a.low, b.low),
        max(a.high, b.high),
        b.average_low,
        b.average_high,
        a.histogram + b.histogram,
    )


def clip_range(
    seen: Statistics, observer: str, fmt: Format, percentile: float = 99.99
) -> tuple[float, float]:
    """The range that an observer maps to a format's largest values; what is beyond saturates.

    Parameters
    ----------
    seen : Statistics
    observer : str
        A key of :data:`OBSERVERS`.
    fmt : FloatFormat or IntFormat
    percentile : float
        Of the magnitudes, for the observer of that name.

    Returns
    -------
    low, high : float
        Around 0. Symmetric formats use the larger magnitude of the two.

    Raises
    ------
    BertNumpyError
        If the observer is unknown, or has seen nothing.
    """
    if observer not in OBSERVERS:
        raise BertNumpyError(
            f"observer: expected one of {', '.join(OBSERVERS)}, found {observer!r}"
        )
    if not seen.count:
        raise BertNumpyError(f"observer {observer!r}: expected at least one element, found none")
    if observer == "moving_average":
        return min(seen.average_low, 0.0), max(seen.average_high, 0.0)
    threshold = OBSERVERS[observer](seen, fmt, percentile)
    if observer == "unit_scaling":  # not a range of the data: a scale
        return -threshold, threshold
    return max(seen.low, -threshold), min(seen.high, threshold)


def quantization_noise(
    seen: Statistics, observer: str, fmt: Format, percentile: float = 99.99
) -> tuple[float, float]:
    """The sums of squares of what was seen, and of what quantizing it changes.

    Parameters
    ----------
    seen : Statistics
    observer, fmt, percentile
        As for :func:`clip_range`.
    """
    values, counts = _values_and_counts(seen)
    low, high = clip_range(seen, observer, fmt, percentile)
    error = _round_trip(values, low, high, fmt)[1].astype(np.float64) - values
    signal = tree_sum(np.square(values.astype(np.float64)) * counts)
    return float(signal), float(tree_sum(np.square(error) * counts))


def _absmax(seen: Statistics, fmt: Format, percentile: float) -> float:
    return seen.absmax


def _percentile(seen: Statistics, fmt: Format, percentile: float) -> float:
    """The smallest magnitude that so many percent of the elements do not exceed."""
    counts = seen.histogram[: 1 << 15] + seen.histogram[1 << 15 :]  # by magnitude, rising
    needed = math.ceil(seen.count * percentile / 100)
    bits = int(np.searchsorted(np.cumsum(counts), needed))
    return float(from_bits(np.array([min(bits, 0x7F7F)], np.uint16))[0])


def _mse(seen: Statistics, fmt: Format, percentile: float) -> float:
    """The threshold of the least mean squared error of quantizing and dequantizing."""
    values, counts = _values_and_counts(seen)

    def squared_error(low: float, high: float) -> float:
        error = _round_trip(values, low, high, fmt)[1].astype(np.float64) - values
        return float(tree_sum(np.square(error) * counts))

    return _search(seen, squared_error)


def _entropy(seen: Statistics, fmt: Format, percentile: float) -> float:
    """The threshold of the least Kullback-Leibler divergence from clipped to quantized.

    After Migacz, *8-bit inference with TensorRT* (GTC 2017), for any format: the
    clipped distribution has what is beyond the threshold in its outermost bins;
    the quantized one spreads the elements of each code, without those beyond,
    evenly over the code's bins that are not empty.
    """
    values, counts = _values_and_counts(seen)

    def divergence(low: float, high: float) -> float:
        inside = (values >= np.float32(low)) & (values <= np.float32(high))
        kept, mass = values[inside], counts[inside]
        if not kept.size:
            return math.inf
        clipped = mass.copy()
        clipped[0] += tree_sum(np.where(values < kept[0], counts, 0.0))
        clipped[-1] += tree_sum(np.where(values > kept[-1], counts, 0.0))
        codes = _round_trip(kept, low, high, fmt)[0]
        per_code = np.bincount(codes, weights=mass, minlength=256)  # of integers: exact
        bins_per_code = np.bincount(codes, minlength=256)
        quantized = per_code[codes] / bins_per_code[codes]
        p, q = clipped / tree_sum(clipped), quantized / tree_sum(quantized)
        return float(tree_sum(p * (log(p) - log(q))))

    return _search(seen, divergence)


def _unit_scaling(seen: Statistics, fmt: Format, percentile: float) -> float:
    """The largest value of a format whose scale is the root mean square: codes of unit variance.

    Blake et al., *Unit Scaling* (arXiv 2303.11257); a choice for float formats,
    which have as many values below 1 as above.
    """
    values, counts = _values_and_counts(seen)
    mean_square = tree_sum(np.square(values.astype(np.float64)) * counts) / seen.count
    return math.sqrt(float(mean_square)) * fmt.max


#: The observers by name: what they make of statistics is the largest magnitude kept.
OBSERVERS: dict[str, Callable[[Statistics, Format, float], float]] = {
    "absmax": _absmax,
    "moving_average": _absmax,  # see clip_range: it has both ends of its own
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
    "unit_scaling": _unit_scaling,
}


def is_affine(fmt: Format) -> bool:
    """Whether a format is used with a zero point: unsigned integers."""
    return isinstance(fmt, IntFormat) and fmt.min_code >= 0


def _search(seen: Statistics, cost: Callable[[float, float], float]) -> float:
    """The threshold of the least cost; of equals the largest, which clips least."""
    best, threshold = math.inf, seen.absmax
    for i in range(_CANDIDATES, 0, -1):
        candidate = seen.absmax * i / _CANDIDATES
        found = cost(max(seen.low, -candidate), min(seen.high, candidate))
        if found < best:
            best, threshold = found, candidate
    return threshold


def _values_and_counts(seen: Statistics) -> tuple[Float32Array, Float64Array]:
    """The bfloat16 values that were seen, rising, and how often."""
    bits = np.flatnonzero(seen.histogram).astype(np.uint16)
    negative_first = np.concatenate([bits[bits >= 1 << 15][::-1], bits[bits < 1 << 15]])
    return from_bits(negative_first), seen.histogram[negative_first].astype(np.float64)


def range_scale(
    low: Any, high: Any, fmt: Format, power_of_two: bool = False
) -> tuple[Float32Array, npt.NDArray[Any] | None]:
    """The scales, and zero points or None, that map ranges around 0 to a format."""
    if is_affine(fmt):
        assert isinstance(fmt, IntFormat)
        return affine_scale(low, high, fmt)
    scale = absmax_scale(np.maximum(high, np.negative(low)), fmt)
    return power_of_two_scale(scale) if power_of_two else scale, None


def _round_trip(
    values: Float32Array, low: float, high: float, fmt: Format
) -> tuple[npt.NDArray[np.intp], Float32Array]:
    """The codes of values (as 0..255) under a range's scale, and what they dequantize to."""
    scale, zero_point = range_scale(low, high, fmt)
    q = quantize(values, fmt, scale, zero_point=zero_point)
    codes = q.codes.view(np.uint8).astype(np.intp)
    if isinstance(fmt, FloatFormat) and fmt.has_negative_zero:
        codes[codes == fmt.sign_bit] = 0  # -0 is 0
    return codes, q.dequantize()

"""The statistics that calibration keeps per operand, and the ranges that observers derive.

Memory does not grow with the number of samples: besides extrema, there is a
histogram over the 65,536 bfloat16 values, to which elements are rounded. This loses
nothing that matters, since the quantized values are bfloat16. Every
observer except the moving average is a function of these counts, so the order of
the batches has no effect, and two calibrations can be merged. Values that do
not occur take no memory.

All sums are tree sums, and the logarithm is that of :mod:`npfp8.elementary`. So equal
histograms give equal ranges on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from npfp8 import Format, IntFormat, quantize
from npfp8.arrays import Float32Array, Float64Array, IntArray, chunks, scratch
from npfp8.bfloat16 import add_half, from_bits, round_to_bits
from npfp8.elementary import log
from npfp8.golden import tree_sum
from npfp8.scaling import scale_of_range

__all__ = [
    "MOST_ELEMENTS",
    "OBSERVERS",
    "Statistics",
    "clip_range",
    "contradiction",
    "count",
    "follow",
    "look_at",
    "merge",
    "observe",
    "quantization_noise",
]


#: The least and the largest number that do not saturate, around 0.
Range = tuple[float, float]

#: The weight of a new batch in the moving average.
MOMENTUM = 0.1

#: The most elements counted per operand, so that every sum of counts is exact in float64.
MOST_ELEMENTS = 2**53

#: The largest bfloat16 value.
_LARGEST = np.float32(2.0**128 - 2.0**120)

#: Elements counted at a time: what they need stays in the cache. ``add.at`` goes over the counters
#: of these elements alone; ``bincount`` would make, and go over, all 65,536.
_CHUNK = 1 << 16

#: The bits of a float32 below those of a bfloat16.
_WIDTH = np.array(16, np.uint32)

#: The number of thresholds, absmax times i / 64, in the search for the least squared error.
_CANDIDATES = 64

#: Entropy calibration: equal bins of magnitudes from 0 to absmax, and the fewest that are kept.
_ENTROPY_BINS, _FEWEST_BINS = 2048, 128

#: Divergences that differ by less count as equal: the rounding of their sums explains it.
_EQUAL = 2.0**-40


@dataclass(frozen=True, eq=False, repr=False)
class Statistics:
    """The extrema and the histogram of one operand.

    Attributes
    ----------
    low, high : float
        The least and the largest element, or 0 if all elements are on one side of it.
    average_low, average_high : float
        The moving averages of the batches' least and largest elements.
    bits : ndarray of uint16, (values,)
        The bfloat16 values that elements round to, as bits in ascending order.
    counts : ndarray of int64, (values,)
        The number of elements that round to each of these values, at least 1.
    """

    low: float
    high: float
    average_low: float
    average_high: float
    bits: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.int64]

    def __repr__(self) -> str:
        return f"<Statistics {self.low:.6g}..{self.high:.6g}, {self.count} elements>"

    @property
    def absmax(self) -> float:
        """The largest magnitude."""
        return max(self.high, -self.low)

    @property
    def count(self) -> int:
        """The number of elements counted."""
        return int(self.counts.sum())

    @property
    def histogram(self) -> npt.NDArray[np.int64]:
        """The number of elements per bfloat16 value, by its bits: (65536,), a new array."""
        histogram = np.zeros(1 << 16, np.int64)
        histogram[self.bits] = self.counts
        return histogram

    def with_histogram(self, histogram: npt.NDArray[np.int64]) -> Statistics:
        """Return the same extrema with the counts of a histogram over all bfloat16 values."""
        bits = np.flatnonzero(histogram != 0)  # of booleans: a fifth of the time
        return replace(self, bits=bits.astype(np.uint16), counts=histogram[bits])


def observe(site: str, seen: Statistics | None, x: Float32Array) -> Statistics:
    """Count one more batch, which is one step of the moving averages.

    Parameters
    ----------
    site : str
        The site's name, for the message.
    seen : Statistics, optional
        The statistics of the earlier batches; None for the first.
    x : ndarray of float32
        The operand, of any shape.

    Raises
    ------
    BertNumpyError
        If an element is NaN or infinite; the message names the site.
    """
    histogram = np.zeros(1 << 16, np.int64) if seen is None else seen.histogram
    extrema = look_at(site, x, histogram)
    return follow(seen, extrema).with_histogram(histogram)


def look_at(site: str, x: Float32Array, histogram: IntArray) -> tuple[float, float]:
    """Count the elements of ``x`` in ``histogram``, and return the extrema of ``x`` and 0.

    Raises
    ------
    BertNumpyError
        If an element is NaN or infinite; the message names the site.
    """
    flat = x.ravel("K")  # no copy of split heads: their order makes no difference
    extrema = float(np.minimum.reduce(flat, initial=0)), float(np.maximum.reduce(flat, initial=0))
    count(site, flat, extrema, histogram)
    return extrema


def count(site: str, x: Float32Array, extrema: tuple[float, float], histogram: IntArray) -> None:
    """Count the elements of ``x``, whose extrema with 0 are given, as :func:`look_at` does."""
    low, high = extrema
    if not (math.isfinite(low) and math.isfinite(high)):
        found = high if math.isfinite(low) else low
        raise BertNumpyError(f"calibration: site {site!r}: expected finite operands, found {found}")
    if max(high, -low) > _LARGEST:  # it would round to infinity
        x = np.clip(x, -_LARGEST, _LARGEST)
    flat = x.ravel("K")
    for chunk in chunks(flat.size, _CHUNK):
        part = flat[chunk]
        bits, keys = scratch(part.size, np.uint32), scratch(part.size, np.intp)
        add_half(part, bits)
        keys[...] = np.right_shift(bits, _WIDTH, bits)
        np.add.at(histogram, keys, 1)


def follow(seen: Statistics | None, extrema: tuple[float, float]) -> Statistics:
    """Update the running extrema and the moving averages with the extrema of one more batch.

    The counts are left unchanged: :func:`look_at` adds to a separate histogram.
    """
    low, high = extrema
    if seen is None:
        return Statistics(low, high, low, high, np.zeros(0, np.uint16), np.zeros(0, np.int64))
    return replace(
        seen,
        low=min(seen.low, low),
        high=max(seen.high, high),
        average_low=seen.average_low + MOMENTUM * (low - seen.average_low),
        average_high=seen.average_high + MOMENTUM * (high - seen.average_high),
    )


def merge(a: Statistics, b: Statistics) -> Statistics:
    """Merge the statistics of two samples; the moving averages, which depend on order, are ``b``'s.

    Raises
    ------
    BertNumpyError
        If the two have more than :data:`MOST_ELEMENTS` elements together.
    """
    if a.count + b.count > MOST_ELEMENTS:
        raise BertNumpyError(
            f"expected at most {MOST_ELEMENTS} elements together, found {a.count + b.count}"
        )
    whole = replace(b, low=min(a.low, b.low), high=max(a.high, b.high))
    return whole.with_histogram(a.histogram + b.histogram)


def contradiction(seen: Statistics) -> tuple[str, str] | None:
    """Find a contradiction in statistics that were read from a file.

    Returns
    -------
    (str, str) or None
        The place, "range", "bits" or "counts", and what is expected there.
    """
    if not seen.bits.size:
        return "bits", "at least one value, found none"
    if (seen.bits & 0x7FFF > 0x7F7F).any():
        return "bits", "finite bfloat16 values"
    if not seen.low <= seen.average_low <= 0 <= seen.average_high <= seen.high:
        return "range", "4 numbers around 0, moving averages within the extrema"
    extrema = np.minimum(np.abs([seen.high, seen.low]), _LARGEST).astype(np.float32)
    positive, negative = seen.bits[seen.bits < 1 << 15], seen.bits[seen.bits >= 1 << 15] & 0x7FFF
    for bits, expected in zip((positive, negative), round_to_bits(extrema), strict=True):
        if bits.max(initial=0) != expected:
            return "bits", "the extrema to be the range's, rounded to bfloat16"
    return None


def clip_range(
    seen: Statistics, observer: str, fmt: Format, percentile: float = 99.99
) -> tuple[float, float]:
    """Return the range that an observer maps to a format's largest values; the rest saturates.

    Parameters
    ----------
    seen : Statistics
    observer : str
        A key of :data:`OBSERVERS`.
    fmt : FloatFormat or IntFormat
    percentile : float
        The percentile of the magnitudes, for the observer "percentile".

    Returns
    -------
    low, high : float
        A range around 0. Symmetric formats use the larger magnitude of the two.

    Raises
    ------
    BertNumpyError
        If the observer is unknown or there are no elements; or if the percentile's magnitude
        is 0 but some elements are not 0, as they would all saturate.
    """
    if observer not in OBSERVERS:
        raise BertNumpyError(
            f"observer: expected one of {', '.join(OBSERVERS)}, found {observer!r}"
        )
    if not seen.count:
        raise BertNumpyError(f"observer {observer!r}: expected at least one element, found none")
    return OBSERVERS[observer](seen, fmt, percentile)


def quantization_noise(
    seen: Statistics, observer: str, fmt: Format, percentile: float = 99.99
) -> tuple[float, float]:
    """Add up the squares of the elements, and the squares of their quantization errors.

    Parameters
    ----------
    seen : Statistics
    observer, fmt, percentile
        The same as for :func:`clip_range`.
    """
    values, counts = _values_and_counts(seen)
    low, high = clip_range(seen, observer, fmt, percentile)
    error = _round_trip(values, low, high, fmt).astype(np.float64) - values
    signal = tree_sum(np.square(values.astype(np.float64)) * counts)
    return float(signal), float(tree_sum(np.square(error) * counts))


def _absmax(seen: Statistics, fmt: Format, percentile: float) -> Range:
    return seen.low, seen.high


def _moving_average(seen: Statistics, fmt: Format, percentile: float) -> Range:
    return min(seen.average_low, 0.0), max(seen.average_high, 0.0)


def _percentile(seen: Statistics, fmt: Format, percentile: float) -> Range:
    """Clip at the smallest magnitude that ``percentile`` percent of the elements do not exceed.

    No scale maps a magnitude of 0 to a format's largest value, so a
    percentile among zeros is refused, unless every element is zero.
    """
    histogram = seen.histogram
    counts = histogram[: 1 << 15] + histogram[1 << 15 :]  # by magnitude, ascending
    needed = math.ceil(seen.count * percentile / 100)
    bits = int(np.searchsorted(np.cumsum(counts), needed))
    if bits == 0 and counts[0] < seen.count:
        share = 100 * int(counts[0]) / seen.count
        raise BertNumpyError(
            f"observer 'percentile': expected a percentile beyond the zeros, which are {share:.6g} "
            f"% of the elements, found {percentile}: all others would saturate"
        )
    return _up_to(seen, float(from_bits(np.array([min(bits, 0x7F7F)], np.uint16))[0]))


def _mse(seen: Statistics, fmt: Format, percentile: float) -> Range:
    """Clip at the threshold with the least mean squared error of quantizing and dequantizing."""
    values, counts = _values_and_counts(seen)

    def squared_error(low: float, high: float) -> float:
        error = _round_trip(values, low, high, fmt).astype(np.float64) - values
        return float(tree_sum(np.square(error) * counts))

    return _up_to(seen, _search(seen, squared_error))


def _entropy(seen: Statistics, fmt: Format, percentile: float) -> Range:
    """Clip at the threshold with the least Kullback-Leibler divergence: entropy calibration.

    Source: Migacz, *8-bit inference with TensorRT* (GTC 2017), followed step by step as in
    NVIDIA's pytorch-quantization (``_compute_amax_entropy`` in
    ``pytorch_quantization/calib/histogram.py``):

    1. Magnitudes are counted in 2,048 equal bins over [0, absmax]; here from the
       counts of bfloat16 values, see :func:`_magnitude_bins`.
    2. The first bin, which zeros fill, gets the count of the second.
    3. For i from 128 to 2048 the threshold is the edge ``i absmax / 2048``. The
       reference distribution is the first i bins, with everything beyond added to
       the last of them. The candidate is the first i bins alone, merged into
       levels; a level's count is spread evenly over its bins that are not empty.
    4. The threshold with the least divergence of the candidate from the reference is
       taken, the last one if several are equal. The divergence is infinite if the
       candidate is empty in a bin where the reference is not. (It is also infinite for
       an entirely empty candidate, for which pytorch-quantization compares with NaN.)

    INT8 has 128 equal levels; unsigned integers have 256 if all elements
    have one sign. The algorithm does not define levels for other formats;
    :func:`_level_edges` defines them here.
    """
    bins = _magnitude_bins(seen)
    bins[0] = bins[1]
    occupied = np.flatnonzero(bins)
    if not occupied.size:  # all magnitudes are in the bin of the zeros
        return seen.low, seen.high
    counts = bins[occupied]
    log_counts = log(counts)
    inside = np.concatenate([[0], np.cumsum(bins)])  # the count of the first i bins
    kinds = np.concatenate([[0], np.cumsum(bins > 0)])  # the number of them that are not empty
    total = float(inside[-1])
    kept = np.arange(_FEWEST_BINS, _ENTROPY_BINS + 1)
    kept = kept[(bins[kept - 1] > 0) | ((inside[kept] == total) & (kinds[kept] > 0))]  # finite
    edges = _level_edges(fmt, seen.low < 0 < seen.high)[kept - _FEWEST_BINS]
    sizes = np.diff(kinds[edges], axis=1)
    log_means = log(np.where(sizes > 0, np.diff(inside[edges], axis=1) / np.maximum(sizes, 1), 1.0))
    log_share = log(inside[kept] / 1.0) - log(np.array([total]))
    last = np.where(inside[kept] < total, bins[kept - 1] + total - inside[kept], 0.0)
    log_last = log(np.maximum(last, 1.0))
    divergences = np.empty(len(kept))
    for row, size in enumerate(kinds[kept]):
        log_candidate = np.repeat(log_means[row], sizes[row])  # for the bins that are not empty
        terms = counts[:size] * (log_counts[:size] - log_candidate)
        if last[row]:
            terms[-1] = last[row] * (log_last[row] - log_candidate[-1])
        # sum p log(p / q), p = count / total, q = level's mean / count inside
        divergences[row] = float(tree_sum(terms)) / total + float(log_share[row])
    equals = np.flatnonzero(divergences <= divergences.min() + _EQUAL)
    return _up_to(seen, seen.absmax * int(kept[equals[-1]]) / _ENTROPY_BINS)


def _magnitude_bins(seen: Statistics) -> Float64Array:
    """Spread the counts over 2,048 equal bins of magnitudes from 0 to absmax.

    A bfloat16 value stands for the numbers that round to it, between the midpoints to its
    neighbours. In the upper half of the range these intervals are 8 to 16 bins wide. If a
    count went into one bin, the bins would form a comb, and its gaps would decide. So each
    count is spread evenly over the bins of its interval. If no two neighbouring values
    occur, there are few values, and each stands for itself alone.
    """
    bits = (seen.bits & 0x7FFF).astype(np.int64)
    scale = _ENTROPY_BINS / (seen.absmax or 1.0)  # 1: all are zero
    value, below, above = (
        from_bits(np.clip(bits + step, 0, 0x7F7F).astype(np.uint16)).astype(np.float64) * scale
        for step in (0, -1, 1)
    )
    # No element exceeds absmax, but the bfloat16 value that absmax rounds to may exceed it.
    high = np.minimum((value + above) / 2, _ENTROPY_BINS)
    low = np.minimum((value + below) / 2, high)
    if not (np.diff(np.unique(bits)) == 1).any():
        low = high = np.minimum(value, _ENTROPY_BINS)
    first = np.minimum(low, _ENTROPY_BINS - 1).astype(np.intp)
    width = np.where(high > low, high - low, 1.0)
    bins = np.zeros(_ENTROPY_BINS)
    for place in range(int((np.ceil(high) - first).max(initial=1.0))):
        begin = first + place
        inside = np.minimum(high, begin + 1) - np.maximum(low, begin)
        share = np.where(high > low, inside / width, float(place == 0))
        chosen = share > 0
        np.add.at(bins, begin[chosen], seen.counts[chosen] * share[chosen])
    return bins


@lru_cache(maxsize=8)
def _level_edges(fmt: Format, both_signs: bool) -> npt.NDArray[np.int64]:
    """List the first bin of each of a format's levels per threshold, and the end of the last.

    With the threshold at the edge i, level k of n equal levels has the bins from
    ``ceil(k i / n)`` up to the beginning of the next level. Float formats have levels of
    different widths: a level has the bins whose centres are nearest to its value
    (the smaller value on a tie), where the edge i is the format's largest value.

    Returns
    -------
    ndarray of int64, (1921, levels + 1)
        One row per i from 128 to 2048.
    """
    i = np.arange(_FEWEST_BINS, _ENTROPY_BINS + 1, dtype=np.int64)[:, None]
    if isinstance(fmt, IntFormat):
        levels = (fmt.max_code - fmt.min_code + 2) // 2
        if fmt.has_zero_point and not both_signs:
            levels = fmt.max_code - fmt.min_code + 1
        edges = -(-np.arange(levels + 1) * i // levels)
    else:
        values = fmt.values[: fmt.max_code + 1]
        middles = (values[1:] + values[:-1]) / 2  # bin j is below one if j + 1/2 <= i middle / max
        below = np.floor((2 * middles * i + fmt.max) / (2 * fmt.max)).astype(np.int64)
        edges = np.concatenate([np.zeros_like(i), np.minimum(below, i), i], axis=1)
    edges.flags.writeable = False
    return edges


def _unit_scaling(seen: Statistics, fmt: Format, percentile: float) -> Range:
    """Choose the range that makes the scale equal to the root mean square: unit variance.

    This is not a range of the data. Source: Blake et al., *Unit Scaling* (arXiv 2303.11257).
    It suits float formats, which have as many values below 1 as above.
    """
    values, counts = _values_and_counts(seen)
    mean_square = tree_sum(np.square(values.astype(np.float64)) * counts) / seen.count
    largest = math.sqrt(float(mean_square)) * fmt.max
    return -largest, largest


#: The observers by name. Each computes a range from statistics, a format and a percentile.
OBSERVERS: dict[str, Callable[[Statistics, Format, float], Range]] = {
    "absmax": _absmax,
    "moving_average": _moving_average,
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
    "unit_scaling": _unit_scaling,
}


def _up_to(seen: Statistics, threshold: float) -> Range:
    """Clip the observed range at a magnitude."""
    return max(seen.low, -threshold), min(seen.high, threshold)


def _search(seen: Statistics, cost: Callable[[float, float], float]) -> float:
    """Find the threshold with the least cost; the largest one on a tie, as it clips least."""
    best, threshold = math.inf, seen.absmax
    for i in range(_CANDIDATES, 0, -1):
        candidate = seen.absmax * i / _CANDIDATES
        found = cost(max(seen.low, -candidate), min(seen.high, candidate))
        if found < best:
            best, threshold = found, candidate
    return threshold


def _values_and_counts(seen: Statistics) -> tuple[Float32Array, Float64Array]:
    """Return the bfloat16 values that occur, in ascending order, and their counts."""
    first_positive = int(np.searchsorted(seen.bits, 1 << 15))
    positive, negative = slice(None, first_positive), slice(first_positive, None)
    bits = np.concatenate([seen.bits[negative][::-1], seen.bits[positive]])
    counts = np.concatenate([seen.counts[negative][::-1], seen.counts[positive]])
    return from_bits(bits), counts.astype(np.float64)


def _round_trip(values: Float32Array, low: float, high: float, fmt: Format) -> Float32Array:
    """Quantize values with a range's scale, and dequantize them."""
    scale, zero_point = scale_of_range(low, high, fmt)
    return quantize(values, fmt, scale, zero_point=zero_point).dequantize()

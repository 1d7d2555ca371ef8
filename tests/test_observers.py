"""Observers: exact histograms, and the ranges from them, against plain definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from factories import assert_same_statistics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import Levels, code_values, entropy_divergences, equal_levels, levels_of_values

from bert_numpy import BertNumpyError
from bert_numpy.quantization.observers import (
    MOST_ELEMENTS,
    OBSERVERS,
    Statistics,
    clip_range,
    merge,
    observe,
    quantization_noise,
)
from npfp8 import E4M3FN, E5M2, INT8, UINT8, Format
from npfp8.bfloat16 import from_bits, round_to_bfloat16, round_to_bits

every_format = pytest.mark.parametrize("fmt", [E4M3FN, E5M2, INT8, UINT8], ids=str)


def seen_of(*batches: np.ndarray) -> Statistics:
    seen = None
    for batch in batches:
        seen = observe("site", seen, batch)
    assert seen is not None
    return seen


def normal(count: int, seed: int = 0, outliers: int = 0) -> np.ndarray:
    """Normal numbers, a few of them 30 times as large as the largest."""
    x = np.random.default_rng(seed).normal(0, 1, count).astype(np.float32)
    x[:outliers] = np.float32(100) * np.where(np.arange(outliers) % 2, -1, 1)
    return x


# Statistics


def test_every_bfloat16_value_has_its_own_bin() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(from_bits(bits))
    x = from_bits(bits[finite])
    found = observe("site", None, x).histogram
    np.testing.assert_array_equal(found, finite.astype(np.int64), strict=True)
    twice = observe("site", observe("site", None, x), x[::-1]).histogram
    np.testing.assert_array_equal(twice, 2 * found)


@pytest.mark.parametrize("size", [0, 1, 5000, (1 << 16) - 1, 1 << 16, (1 << 17) + 70_000])
def test_counts_are_those_of_the_rounded_bits(size: int) -> None:
    """In one or several chunks; any finite float32, half of them ties or next to one."""
    generator = np.random.default_rng(size)
    bits = generator.integers(0, 1 << 32, size, dtype=np.uint32)
    near = 0x8000 + generator.integers(-1, 2, (size + 1) // 2)
    bits[::2] = (bits[::2] & 0xFFFF0000) | near.astype(np.uint32)
    x = bits.view(np.float32)
    x = x[np.abs(x) <= np.float32(2.0**128 - 2.0**120)]  # the others are clipped
    expected = np.bincount(round_to_bits(x), minlength=1 << 16)
    np.testing.assert_array_equal(observe("site", None, x).histogram, expected, strict=True)
    strided = np.stack([x, x])[:, ::-1].T
    np.testing.assert_array_equal(observe("site", None, strided).histogram, 2 * expected)


@pytest.mark.parametrize("tokens", [3, 2000])
def test_layouts_do_not_matter(tokens: int) -> None:
    """Those of split heads, of transposed keys, and of what is no permutation of an array."""
    heads = normal(4 * tokens * 24).reshape(4, tokens, 3, 8).swapaxes(1, 2)
    for x in (heads, heads.swapaxes(-1, -2), heads[:, ::-1, 1:], heads[..., :1]):
        plain = observe("site", None, x.flatten())
        assert_same_statistics(observe("site", None, x), plain)


def test_elements_are_rounded_to_bfloat16() -> None:
    x = np.float32([1 + 2.0**-9, 1 + 2.0**-8, 1 + 3 * 2.0**-8, -0.0, 1e-45])
    found = observe("site", None, x)
    assert np.flatnonzero(found.histogram).tolist() == [0, 0x3F80, 0x3F82, 0x8000]
    assert found.histogram[0x3F80] == 2  # the tie goes to the even one
    assert (found.low, found.high) == (0.0, float(x[2]))  # of what was there, not of bins
    assert found.count == 5


@given(
    x=hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    cuts=st.lists(st.integers(0, 30), max_size=3),
    seed=st.integers(0, 9),
)
def test_split_and_order_do_not_matter(x: np.ndarray, cuts: list[int], seed: int) -> None:
    whole = seen_of(x)
    shuffled = np.random.default_rng(seed).permutation(x)
    parts = np.split(shuffled, sorted(cuts))
    several = seen_of(*parts)
    merged = seen_of(parts[0])
    for part in parts[1:]:
        merged = merge(merged, seen_of(part))
    for found in (several, merged):
        assert (found.low, found.high) == (whole.low, whole.high)
        np.testing.assert_array_equal(found.histogram, whole.histogram, strict=True)
        assert found.histogram.nbytes == (1 << 16) * 8
    assert whole.low == min(0.0, float(x.min()))
    assert whole.high == max(0.0, float(x.max()))
    assert whole.absmax == float(np.abs(x).max())


def test_memory_does_not_grow() -> None:
    seen = seen_of(normal(10))
    for seed in range(5):
        seen = observe("site", seen, normal(10_000, seed))
    assert seen.count == 50_010
    values = len(
        np.unique(
            round_to_bfloat16(
                np.concatenate([normal(10), *(normal(10_000, seed) for seed in range(5))])
            )
        )
    )
    assert (seen.bits.nbytes, seen.counts.nbytes) == (2 * values, 8 * values)


def test_what_was_seen_is_not_changed() -> None:
    first = seen_of(normal(10))
    kept = Statistics(**vars(first) | {"counts": first.counts.copy()})
    observe("site", first, normal(10, 1))
    merge(first, seen_of(normal(10, 2)))
    assert_same_statistics(first, kept)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("before", [None, 3.0])
def test_what_is_not_finite_is_named(bad: float, before: float | None) -> None:
    seen = None if before is None else seen_of(np.float32([before]))
    with pytest.raises(BertNumpyError) as error:
        observe("a site:b", seen, np.float32([[1, bad], [-2, 3]]))
    assert str(error.value) == (
        f"calibration: site 'a site:b': expected finite operands, found {bad}"
    )


@pytest.mark.parametrize("observer", OBSERVERS)
def test_observer_that_saw_nothing(observer: str) -> None:
    seen = seen_of(np.zeros((0, 4), np.float32))
    assert (seen.low, seen.high, seen.count) == (0.0, 0.0, 0)
    with pytest.raises(BertNumpyError) as error:
        clip_range(seen, observer, INT8)
    assert str(error.value) == (f"observer {observer!r}: expected at least one element, found none")


@pytest.mark.parametrize("observer", OBSERVERS)
@every_format
def test_observer_that_saw_zeros(fmt: Format, observer: str) -> None:
    low, high = clip_range(seen_of(np.zeros(5, np.float32)), observer, fmt)
    assert low == high == 0


def test_unknown_observer() -> None:
    with pytest.raises(BertNumpyError, match=r"observer: expected one of absmax, .*found 'max'"):
        clip_range(seen_of(normal(3)), "max", INT8)


# Ranges


@every_format
def test_absmax(fmt: Format) -> None:
    seen = seen_of(np.float32([0.1, -0.3]), np.float32([0.7, 0.2]))
    assert clip_range(seen, "absmax", fmt) == (float(np.float32(-0.3)), float(np.float32(0.7)))
    assert clip_range(seen_of(np.float32([2, 3])), "absmax", fmt) == (0.0, 3.0)


@every_format
def test_moving_average(fmt: Format) -> None:
    """A tenth of each new batch's extrema."""
    batches = [np.float32([-1, 2]), np.float32([-3, 1]), np.float32([4, 5]), np.float32([-2, -1])]
    low, high = -1.0, 2.0
    for least, largest in ((-3, 1), (0, 5), (-2, 0)):
        low, high = 0.9 * low + 0.1 * least, 0.9 * high + 0.1 * largest
    found = clip_range(seen_of(*batches), "moving_average", fmt)
    np.testing.assert_allclose(found, (low, high), rtol=1e-14)
    assert found != clip_range(seen_of(*batches[::-1]), "moving_average", fmt)


PERCENTILES = [1e-6, 1.0, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99, 100.0]


@settings(max_examples=50)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    percentile=st.sampled_from(PERCENTILES) | st.floats(0.01, 100),
)
def test_percentile(x: np.ndarray, percentile: float) -> None:
    """The threshold is the least sorted bfloat16 magnitude that covers the percentile."""
    magnitudes = sorted(np.abs(round_to_bfloat16(x)).tolist())
    needed = math.ceil(x.size * percentile / 100)
    threshold = magnitudes[needed - 1]
    if threshold == 0 and magnitudes[-1] > 0:
        with pytest.raises(BertNumpyError, match="expected a percentile beyond the zeros"):
            clip_range(seen_of(x), "percentile", INT8, percentile)
        return
    low, high = clip_range(seen_of(x), "percentile", INT8, percentile)
    assert (low, high) == (max(float(min(x.min(), 0)), -threshold), min(max(x.max(), 0), threshold))


@pytest.mark.parametrize("percentile", PERCENTILES)
def test_percentile_is_numpys(percentile: float) -> None:
    x = round_to_bfloat16(normal(4001))
    threshold = max(clip_range(seen_of(x), "percentile", E4M3FN, percentile), key=abs)
    method = "inverted_cdf"
    assert abs(threshold) == np.percentile(np.abs(x), percentile, method=method)


@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, INT8], ids=str)
def test_unit_scaling(fmt: Format) -> None:
    """The scale is the root mean square."""
    x = normal(1000) * np.float32(3)
    low, high = clip_range(seen_of(x), "unit_scaling", fmt)
    root = math.sqrt(np.square(round_to_bfloat16(x).astype(np.float64)).mean())
    assert low == -high
    assert high == pytest.approx(root * fmt.max, rel=1e-12)


# Searches, against one in plain float64


def values_of(fmt: Format) -> np.ndarray:
    finite = [x for x in code_values(fmt.name) if isinstance(x, Fraction)]
    return np.array(sorted({float(x) for x in finite if abs(x) <= fmt.max}))


def reference_codes(x: np.ndarray, low: float, high: float, fmt: Format) -> tuple[np.ndarray, ...]:
    """The codes' indices and the values, element by element, nearest and ties to even codes."""
    if fmt.has_zero_point:
        scale = float(np.float32((high - low) / 255))
        if high == low:
            scale = 1.0
        zero = float(np.rint(np.float32(-low) / np.float32(scale)))
        codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, 255).astype(int)
        return codes, (codes - zero) * scale
    largest = max(high, -low)
    scale = np.float32(largest) / np.float32(fmt.max) if largest else np.float32(1)
    table = values_of(fmt)
    scaled = (x / scale).astype(np.float64)
    middles = (table[1:] + table[:-1]) / 2
    lower, upper = (np.searchsorted(middles, scaled, side=side) for side in ("left", "right"))
    zero = int(np.flatnonzero(table == 0)[0])
    even = np.where(np.abs(lower - zero) % 2 == 0, lower, upper)
    return even, table[even] * float(scale)


def candidates(x: np.ndarray) -> list[tuple[float, float, float]]:
    absmax = float(np.abs(x).max())
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    thresholds = [absmax * i / 64 for i in range(64, 0, -1)]
    return [(t, max(low, -t), min(high, t)) for t in thresholds]


def mse_costs(x: np.ndarray, fmt: Format) -> dict[float, float]:
    return {
        t: float(np.square(reference_codes(x, low, high, fmt)[1] - x.astype(np.float64)).sum())
        for t, low, high in candidates(x)
    }


DATA = {
    "normal": normal(400),
    "outliers": normal(4000, outliers=2),
    "one side": np.abs(normal(300, 1)),
    "negative": -np.abs(normal(300, 2)),
    "skewed": np.exp(normal(300, 3)) - np.float32(0.5),
    "few values": np.repeat(np.float32([-1, 0, 2, 3.5]), [9, 50, 3, 1]),
    "one value": np.full(5, 0.3, np.float32),
}
every_data = pytest.mark.parametrize("data", DATA)


def check_best(found: tuple[float, float], costs: dict[float, float], x: np.ndarray) -> None:
    """Check that the range is the candidate's with the least cost, up to the last bits of sums."""
    matching = [t for t, low, high in candidates(x) if (low, high) == found]
    assert matching
    assert min(costs[t] for t in matching) <= min(costs.values()) * (1 + 1e-9) + 1e-13


@every_format
@every_data
def test_mse(data: str, fmt: Format) -> None:
    x = round_to_bfloat16(DATA[data])
    check_best(clip_range(seen_of(x), "mse", fmt), mse_costs(x, fmt), x)


# Entropy calibration, against NVIDIA's steps one after the other


def levels_for(fmt: Format, x: np.ndarray) -> Levels:
    if fmt.has_zero_point:
        return equal_levels(128 if x.min() < 0 < x.max() else 256)
    if fmt == INT8:
        return equal_levels(128)
    return levels_of_values([Fraction(value) for value in values_of(fmt) if value >= 0])


def threshold_of(found: tuple[float, float]) -> float:
    return max(found[1], -found[0])


def entropy_threshold(x: np.ndarray, absmax: float, fmt: Format) -> float:
    """The edge of the last of the least divergences; sums may differ in their last bits."""
    found = entropy_divergences(round_to_bfloat16(x).tolist(), levels_for(fmt, x), absmax)
    least = min(found.values())
    return absmax * max(kept for kept, value in found.items() if value <= least + 2.0**-40) / 2048


@every_format
@every_data
def test_entropy(data: str, fmt: Format) -> None:
    x = round_to_bfloat16(DATA[data])
    expected = entropy_threshold(x, float(np.abs(x).max()), fmt)
    low, high = clip_range(seen_of(x), "entropy", fmt)
    assert (low, high) == (max(min(x.min(), 0), -expected), min(max(x.max(), 0), expected))


@settings(max_examples=25, deadline=None)
@given(
    x=hnp.arrays(np.float32, st.integers(1, 25), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    repeats=st.integers(1, 40),
)
def test_entropy_of_anything(x: np.ndarray, repeats: int) -> None:
    """With some values often, some once; absmax is a float32, and its bfloat16 perhaps beyond."""
    x = np.concatenate([np.repeat(x[: len(x) // 2], repeats), x])
    absmax = float(np.abs(x).max())
    found = threshold_of(clip_range(seen_of(x), "entropy", INT8))
    expected = entropy_threshold(x, absmax, INT8) if absmax else 0.0
    assert found == expected


def test_zeros_do_not_decide_the_entropy() -> None:
    """The first bin has the second's count: a ReLU's zeros, half of all, change nothing."""
    x = np.maximum(normal(3000), 0)
    found = clip_range(seen_of(x), "entropy", INT8)
    assert found == clip_range(seen_of(x[x > 0]), "entropy", INT8)
    assert found == clip_range(
        seen_of(np.concatenate([x, np.zeros(10**6, np.float32)])), "entropy", INT8
    )


@pytest.mark.parametrize(("count", "least", "mean"), [(200_000, 0, 1.2), (1_000_000, 1.5, 3)])
def test_entropy_beats_absmax_where_tails_are_long(count: int, least: float, mean: float) -> None:
    """Student's t with 5 degrees of freedom: the more elements, the larger the gain, in dB."""
    gains = []
    for seed in range(8):
        x = np.random.default_rng(seed).standard_t(5, count).astype(np.float32)
        noise = [quantization_noise(seen_of(x), name, INT8) for name in ("absmax", "entropy")]
        absmax, entropy = (10 * math.log10(signal / error) for signal, error in noise)
        gains.append(entropy - absmax)
    assert min(gains) > least
    assert np.mean(gains) > mean


def test_entropy_keeps_an_outlier_behind_a_gap() -> None:
    """A bin that only the candidate lacks makes the divergence infinite, as in NVIDIA's."""
    x = normal(100_000, outliers=2)
    assert clip_range(seen_of(x), "entropy", INT8) == (-100.0, 100.0)


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_outliers_are_clipped(observer: str) -> None:
    x = normal(1_000_000, outliers=2)
    seen = seen_of(x)
    assert clip_range(seen, "absmax", INT8) == (-100.0, 100.0)
    low, high = clip_range(seen, observer, INT8)
    assert -50 < low < -1
    assert 1 < high < 50


@pytest.mark.parametrize("observer", [name for name in OBSERVERS if name != "moving_average"])
@every_format
def test_order_of_batches_changes_no_bit(fmt: Format, observer: str) -> None:
    batches = [normal(50, seed) * np.float32(1 + seed) for seed in range(5)]
    expected = clip_range(seen_of(*batches), observer, fmt)
    assert clip_range(seen_of(*batches[::-1]), observer, fmt) == expected
    assert clip_range(seen_of(np.concatenate(batches)), observer, fmt) == expected
    halves = seen_of(*batches[3:]), seen_of(*batches[:3])
    assert clip_range(merge(*halves), observer, fmt) == expected


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("x", [2.0**-149, 1e-40, 2.0**-126, 3.3e38, 3.4028235e38])
@every_format
def test_extreme_magnitudes(fmt: Format, x: float, observer: str) -> None:
    """Also where the nearest bfloat16 value is 0 or infinity."""
    low, high = clip_range(seen_of(np.float32([x, -x, x / 4])), observer, fmt)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= 0 <= high


def test_percentile_among_zeros_is_refused() -> None:
    """A scale of 1 would make every other element, far smaller or larger, something else."""
    x = np.zeros(1000, np.float32)
    x[:5] = [1e-3, -2e-3, 1e-3, 3e-3, 5e-3]
    with pytest.raises(BertNumpyError) as error:
        clip_range(seen_of(x), "percentile", INT8, 99.0)
    assert str(error.value) == (
        "observer 'percentile': expected a percentile beyond the zeros, which are 99.5 % of the "
        "elements, found 99.0: all others would saturate"
    )
    expected = float(round_to_bfloat16(np.float32([1e-3]))[0])
    assert threshold_of(clip_range(seen_of(x), "percentile", INT8, 99.51)) == expected


@pytest.mark.parametrize("observer", [name for name in OBSERVERS if name != "percentile"])
@every_format
def test_mostly_zeros(fmt: Format, observer: str) -> None:
    """Every other observer finds a range that is not 0."""
    x = np.zeros(100_000, np.float32)
    x[7] = -3e-3
    low, high = clip_range(seen_of(x), observer, fmt)
    assert low < 0 <= high


def test_more_elements_than_are_exact() -> None:
    seen = seen_of(np.ones(1, np.float32))
    most = Statistics(**vars(seen) | {"counts": np.int64([MOST_ELEMENTS - 1])})
    assert merge(most, seen).count == MOST_ELEMENTS
    with pytest.raises(BertNumpyError) as error:
        merge(most, merge(seen, seen))
    assert str(error.value) == (
        "expected at most 9007199254740992 elements together, found 9007199254740993"
    )

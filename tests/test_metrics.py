"""The GLUE metrics: by hand, and against scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_numpy.tasks.metrics import (
    ANSWER_METRICS,
    METRICS,
    _ranks,
    accuracy,
    f1,
    matthews_correlation,
    pearson,
    spearmanr,
)

Pair = tuple[np.ndarray, np.ndarray]
Metric = Callable[[np.ndarray, np.ndarray], float]


def classes(count: int) -> st.SearchStrategy[Pair]:
    """Labels and predictions of up to ``count`` classes, equally many of both."""

    def both(n: int) -> st.SearchStrategy[Pair]:
        numbers = hnp.arrays(np.int64, n, elements=st.integers(0, count - 1))
        return st.tuples(numbers, numbers)

    return st.integers(1, 40).flatmap(both)


def scores() -> st.SearchStrategy[Pair]:
    """Scores as in STS-B (0..5, often tied), and what a float32 head may give for them."""

    def both(n: int) -> st.SearchStrategy[Pair]:
        label = st.sampled_from([0.0, 0.6, 1.0, 2.2, 2.667, 4.0, 5.0]) | st.floats(0, 5)
        output = st.sampled_from([-1.0, 0.1, 0.25, 3.0]) | st.floats(
            *(-9.0, 9.0), width=32, allow_subnormal=False
        )
        return st.tuples(
            hnp.arrays(np.float64, n, elements=label), hnp.arrays(np.float64, n, elements=output)
        )

    return st.integers(2, 30).flatmap(both)


def test_accuracy_by_hand() -> None:
    assert accuracy(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])) == 0.75
    assert accuracy(np.array([1]), np.array([1])) == 1.0
    assert accuracy(np.array([1]), np.array([0])) == 0.0


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([1, 1, 0, 0], [1, 0, 1, 0], 0.5),
        ([1, 1, 1, 0], [1, 1, 0, 0], 0.8),
        ([1, 0, 0], [1, 1, 1], 0.5),
        ([1], [1], 1.0),
        ([0, 0], [0, 1], 0.0),
        ([1, 1], [0, 0], 0.0),
        ([0, 0], [0, 0], 0.0),
    ],
)
def test_f1_by_hand(labels: list[int], predictions: list[int], expected: float) -> None:
    assert f1(np.array(labels), np.array(predictions)) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        # tp 1, tn 1, fp 1, fn 1
        ([1, 0, 0, 1], [1, 0, 1, 0], 0.0),
        # tp 2, tn 1, fp 0, fn 1: 2 / sqrt(2 * 3 * 1 * 2)
        ([1, 1, 1, 0], [1, 1, 0, 0], 2 / math.sqrt(12)),
        ([0, 1], [0, 1], 1.0),
        ([0, 1], [1, 0], -1.0),
        ([0, 1, 2], [0, 1, 2], 1.0),
        # Every class twice, one wrong of six: (5 * 6 - 12) / sqrt((36 - 14) * (36 - 12))
        ([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 1], 18 / math.sqrt(22 * 24)),
        ([1, 1, 1], [0, 1, 0], 0.0),
        ([0, 1, 0], [1, 1, 1], 0.0),
        ([1], [1], 0.0),
        ([0], [1], 0.0),
    ],
)
def test_matthews_by_hand(labels: list[int], predictions: list[int], expected: float) -> None:
    found = matthews_correlation(np.array(labels), np.array(predictions))
    assert found == pytest.approx(expected, rel=1e-15)


def test_matthews_of_many_examples_does_not_overflow() -> None:
    """Products of counts of QQP's size pass 2^63."""
    n = 400_000
    labels = np.arange(n) % 2
    assert matthews_correlation(labels, labels) == 1.0
    assert matthews_correlation(labels, 1 - labels) == -1.0


def test_pearson_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert pearson(x, 10 - 2 * x) == -1.0
    assert pearson(x, np.array([1.0, 3.0, 2.0, 4.0])) == pytest.approx(0.8, rel=1e-15)
    assert pearson(x, np.array([1.0, -1.0, -1.0, 1.0])) == 0.0
    assert pearson(x, 1e-200 * x) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize(
    ("labels", "predictions", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], [1.0, 10.0, 100.0, 1000.0], 1.0),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], -1.0),
        # Ranks 1.5 1.5 3 4 against 1 2 3 4: 4.5 / sqrt(4.5 * 5)
        ([2.0, 2.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0], 4.5 / math.sqrt(4.5 * 5)),
        # Ranks 2 2 2 4 against 4 2 2 2
        ([1.0, 1.0, 1.0, 2.0], [9.0, 0.0, 0.0, 0.0], -1 / 3),
    ],
)
def test_spearman_by_hand(labels: list[float], predictions: list[float], expected: float) -> None:
    assert spearmanr(np.array(labels), np.array(predictions)) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("metric", [pearson, spearmanr])
@pytest.mark.parametrize(
    ("labels", "predictions"),
    [
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
        ([1.0, 2.0, 4.0], [0.1, 0.1, 0.1]),  # whose float64 mean is not 0.1
        ([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]),
        ([1.0], [1.0]),
        ([1.0, 2.0, 3.0], [1.0, math.nan, 2.0]),
        ([math.nan, 2.0, 3.0], [1.0, 3.0, 2.0]),
    ],
)
def test_correlation_without_a_value_is_nan(
    metric: Metric, labels: list[float], predictions: list[float]
) -> None:
    found = metric(np.array(labels), np.array(predictions))
    assert isinstance(found, float)
    assert math.isnan(found)


@given(classes(4))
def test_metrics_are_plain_floats_within_their_range(pair: Pair) -> None:
    for name, metric in METRICS.items():
        found = metric(*pair)
        assert type(found) is float, name
        assert math.isnan(found) or -1 <= found <= 1, name


@given(classes(5))
def test_accuracy_as_in_sklearn(sklearn_metrics: ModuleType, pair: Pair) -> None:
    assert accuracy(*pair) == pytest.approx(sklearn_metrics.accuracy_score(*pair), rel=1e-15)


@given(classes(2))
def test_f1_as_in_sklearn(sklearn_metrics: ModuleType, pair: Pair) -> None:
    expected = sklearn_metrics.f1_score(*pair, zero_division=0.0)
    assert f1(*pair) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("count", [2, 3, 5])
@given(data=st.data())
def test_matthews_as_in_sklearn(
    sklearn_metrics: ModuleType, count: int, data: st.DataObject
) -> None:
    labels, predictions = data.draw(classes(count))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")
        expected = sklearn_metrics.matthews_corrcoef(labels, predictions)
    found = matthews_correlation(labels, predictions)
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("metric", [pearson, spearmanr])
@given(pair=scores())
def test_correlations_as_in_scipy(scipy_stats: ModuleType, metric: Metric, pair: Pair) -> None:
    # Next to constant, though not constant, there are no digits to compare.
    assume(all(np.ptp(side) == 0 or np.ptp(side) > 1e-6 * np.abs(side).max() for side in pair))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy_stats.ConstantInputWarning)
        expected = (scipy_stats.pearsonr if metric is pearson else scipy_stats.spearmanr)(*pair)[0]
    assert metric(*pair) == pytest.approx(float(expected), rel=1e-7, abs=1e-9, nan_ok=True)


@given(scores(), st.data())
def test_order_of_examples_does_not_matter(pair: Pair, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(pair[0]))))
    labels, predictions = (side[order] for side in pair)
    assert spearmanr(labels, predictions) == pytest.approx(spearmanr(*pair), abs=1e-12, nan_ok=True)
    assert accuracy(labels, predictions) == accuracy(*pair)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_correlation_is_at_most_one(sign: int) -> None:
    """The quotient of this proportional pair rounds to 1 + 2^-52."""
    x = np.array([1.46, 1.96, 1.8, 1.32])
    y = np.array([0.5217753995620757, 0.7004656048915537, 0.6432847391861208, 0.4717421420698219])
    assert pearson(x, sign * y) == sign


def test_ranks_are_those_of_the_books() -> None:
    assert _ranks(np.array([20.0, 10.0, 30.0, 20.0])).tolist() == [2.5, 1.0, 4.0, 2.5]


@pytest.mark.parametrize("metric", ANSWER_METRICS.values())
def test_answers_to_other_questions(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="zip"):
        metric([["a"]], ["a", "b"])

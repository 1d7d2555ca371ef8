"""scripts/study_accumulators.py: the numbers of the sweep, and the counts of logits."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from bert_numpy.study.cells import Result


@pytest.fixture(scope="module")
def script() -> Any:
    path = ROOT / "scripts" / "study_accumulators.py"
    spec = importlib.util.spec_from_file_location("study_accumulators", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("magnitudes", [False, True])
def test_sweep(magnitudes: bool, script: Any) -> None:
    """Without fast accumulation an accumulator is never longer than 128, and not before."""
    rows = {k: script.swept(k, magnitudes) for k in (32, 128, 1024)}
    for k in (32, 128):
        assert 0 < rows[k]["hopper"] == rows[k]["hopper-fast"]
    long = rows[1024]
    assert long["float32"] < long["hopper"] < long["hopper-fast"]
    assert long["hopper"] < 1.5 * rows[128]["hopper"]
    assert long["float16"] < long["bfloat16"]
    assert long["float16_overflows_at_absmax"] == 1
    # E4M3 rounds to 4 bits, an error of 2^-4 at most in each operand; positive sums average it.
    low, high = (2.0**-8, 2.0**-6) if magnitudes else (2.0**-6, 2.0**-4)
    assert low < rows[32]["quantization"] < high


def test_logits_that_are_not_finite(script: Any) -> None:
    logits = np.float32([[1, 2], [2, 1], [3, 4], [0, 5]])
    reference = Result(np.arange(4), np.array([1, 0, 1, 1]), logits, {})
    changed = logits.copy()
    changed[1], changed[3, 0] = (1, 2), np.nan
    result = Result(np.arange(4), np.array([1, 1, 1, 0]), changed, {})
    found = script.change(result, reference)
    assert found["flips"] == 1
    assert found["not_finite"] == 1
    assert np.isclose(found["relative_logit_error"], np.sqrt(2 / 35))  # over 1+4+4+1+9+16
    # Of the three that are finite the changes are 0, sqrt(2) and 0.
    assert found["median_logit_error"] == 0
    other = script.change(
        Result(np.arange(4), result.predictions, logits * np.float32(1.5), {}), reference
    )
    norms = np.sqrt([5, 5, 25, 25])
    assert np.isclose(other["median_logit_error"], np.median(norms / 2) / np.sqrt(15))
    changed[:] = np.inf
    assert script.change(result, reference) == {"not_finite": 4}
    assert script.shown({"not_finite": 4})[1] == "not finite"

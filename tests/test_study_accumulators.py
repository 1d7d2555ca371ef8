"""scripts/study_accumulators.py: the numbers of the sweep, and the counts of logits."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from bert_numpy.study.cells import Result
from npfp8 import ACCUMULATORS


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


def test_cores(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every accumulator that returns float32 is there; the narrower ones lose more, and by K."""
    returning_float32 = {
        name for name, how in ACCUMULATORS.items() if how.is_tensor_core and how.emax == 127
    }
    assert set(script.CORES) == returning_float32
    few = {"ada": "E4M3FN", "blackwell": "E4M3FN", "blackwell-mxf4nvf4": "NVFP4",
           "hopper-16bit": "bfloat16"}  # fmt: skip
    monkeypatch.setattr(script, "CORES", few)
    monkeypatch.setattr(script, "PRODUCTS", ((64, 16, 64), (64, 2048, 64)))
    monkeypatch.setattr(script, "draw_cores", lambda rows, path: None)
    script.study_cores(argparse.Namespace(out=tmp_path))
    rows = {
        (row["accumulator"], row["size"][1]): row
        for row in json.loads((tmp_path / "cores.json").read_text())
    }
    assert list(rows) == [(name, k) for name in few for k in (16, 2048)]
    for name in few:
        short, long = rows[name, 16], rows[name, 2048]
        assert short["relative_error"] <= long["relative_error"]
        for row in (short, long):
            assert row["bfloat16_differs"] <= row["float32_differs"] <= 1
            assert (row["float32_differs"] > 0) == (row["relative_error"] > 0)
    # 13 fraction bits, 25, and 35 with exact groups of 16.
    errors = [rows[name, 2048]["relative_error"] for name in ("ada", "blackwell")]
    assert errors[0] > 2**-14 > 2**-20 > errors[1] > 0
    assert rows["blackwell-mxf4nvf4", 16]["float32_differs"] == 0
    lines = (tmp_path / "cores.md").read_text().splitlines()
    assert sum(line.startswith("| ada |") for line in lines) == 3

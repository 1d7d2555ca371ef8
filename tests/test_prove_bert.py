"""scripts/prove_bert_cuda.py without a GPU: a stand-in for torch._scaled_mm, right and wrong."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import bert_numpy
from bert_numpy import PRESETS
from bert_numpy.evaluation.job import Job, prepare, with_calibration
from npfp8 import E4M3FN, E5M2, QuantizedTensor, matmul

REVIEWS = ROOT / "bert_numpy" / "assets" / "reviews"


@pytest.fixture(scope="module")
def script(torch: ModuleType) -> ModuleType:
    path = ROOT / "scripts" / "prove_bert_cuda.py"
    spec = importlib.util.spec_from_file_location("prove_bert_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prove_bert_cuda"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def job() -> Job:
    made = prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=16, limit=3, batch_size=2)
    return with_calibration(made, [PRESETS["e4m3"]], golden=True)


def stand_in(torch: Any, mode_of: dict[bool, str]) -> Any:
    """`torch._scaled_mm` as docs/hopper.md says a Hopper GPU computes it."""

    def operand(x: Any, scale: Any) -> QuantizedTensor:
        fmt = {torch.float8_e4m3fn: E4M3FN, torch.float8_e5m2: E5M2}[x.dtype]
        assert all(size % 16 == 0 for size in x.shape)
        return QuantizedTensor(x.view(torch.uint8).numpy(), scale.numpy(), fmt)

    def scaled_mm(
        a: Any, b: Any, *, scale_a: Any, scale_b: Any, out_dtype: Any, use_fast_accum: bool,
        bias: Any = None,
    ) -> Any:  # fmt: skip
        assert a.stride(1) == b.stride(0) == 1  # a by rows, b by columns
        result = matmul(operand(a, scale_a), operand(b, scale_b), mode_of[use_fast_accum])
        if bias is not None:
            assert bias.dtype == out_dtype == torch.bfloat16
            result = result + bias.float().numpy()
        return torch.from_numpy(result).to(out_dtype)

    return scaled_mm


@pytest.mark.parametrize("recipe", ["e4m3", "mixed"])
def test_equal_arithmetic_is_found_equal(
    recipe: str, script: Any, job: Job, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = {True: "hopper-fast", False: "hopper"}
    monkeypatch.setattr(torch, "_scaled_mm", stand_in(torch, modes))
    result = script.proved(job, recipe, "hopper-fast", "cpu")
    counts = result["counts"]
    layers = bert_numpy.load("bert-tiny-sst2").config.num_hidden_layers
    batches = 2  # of 3 texts
    assert counts["linear: float32 product"]["calls"] == 6 * layers * batches
    assert {name for name in counts if ":" in name} == {
        *(f"{kind}: {dtype} product" for kind in ("linear", "scores", "context")
          for dtype in ("float32", "bfloat16")),
        "linear: output, bias in float32",
        "linear: output, torch's bfloat16 bias",
    }  # fmt: skip
    assert {*counts} >= {"codes", "add", "multiply", "softmax", "layer_norm", "gelu", "tanh"}
    assert not any(count["beyond"] for count in counts.values())
    for name, count in counts.items():
        assert count["different"] == 0 or ":" not in name
    assert result["logit_error_of_torch"] < result["logit_error_of_exact"]


@pytest.mark.parametrize("wrong", ["exact", "hopper"])
def test_other_arithmetic_is_found_out(
    wrong: str, script: Any, job: Job, torch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", stand_in(torch, {True: wrong}))
    counts = script.proved(job, "e4m3", "hopper-fast", "cpu")["counts"]
    different = {name for name, count in counts.items() if count["beyond"]}
    # K is 128 in most of its layers: up to there the Hopper modes are one.
    assert "linear: float32 product" in different
    assert ("scores: float32 product" in different) == (wrong == "exact")
    assert "codes" not in different


def test_tolerance(script: Any) -> None:
    """One unit in the last place of bfloat16, 2^-7 at 1; or 1e-6."""
    tally = script.Tally()
    ours = np.float32([1, 1, 1e-3, 0, 2])
    tally.close("x", ours, np.float32([1 + 2.0**-7, 1 - 2.0**-8, 1e-3 + 9e-7, 1e-6, 2]))
    assert (tally.counts["x"].different, tally.counts["x"].beyond) == (4, 0)
    assert tally.counts["x"].largest_ulps == 1
    tally.close("x", ours, np.float32([1 + 2.0**-6, 1, np.nan, 2e-6, 2 + 2.0**-6]))
    assert (tally.counts["x"].different, tally.counts["x"].beyond) == (8, 3)

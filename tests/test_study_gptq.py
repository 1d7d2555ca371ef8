"""scripts/study_gptq.py: the errors by token, and a run on a few reviews."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import load_script

import bert_numpy
from bert_numpy.errors import BertNumpyError
from bert_numpy.study.options import (
    add_samples_option,
    add_subject_options,
    subject_with_hessians,
)
from npfp8 import INT4, QuantizedTensor, quantize

study = load_script("study_gptq")

REVIEWS = Path(bert_numpy.__file__).parent / "assets" / "reviews"


def test_errors_of_tokens() -> None:
    """Two outputs of three tokens by hand: the codes 7 and 3 stand for 7 and 3.5."""
    weight = np.float32([[7, 3.5], [7, 3]])
    quantized = quantize(weight, INT4, np.float32([1, 1]), axis=0)
    np.testing.assert_array_equal(quantized.dequantize(), [[7, 4], [7, 3]])
    x = np.float32([[1, 0], [0, 2], [0, 4]])
    found = study.errors_of(x, weight, quantized, np.array([True, False, False]))
    outputs = np.sqrt([98, 4 * 21.25, 16 * 21.25])
    errors = np.array([0, 1, 2])
    assert found["share"] == pytest.approx(98 / (98 + 20 * 21.25))
    assert found["all"] == pytest.approx(np.sqrt(5 / np.sum(outputs**2)))
    assert found["others"] == pytest.approx(np.sqrt(5 / (20 * 21.25)))
    assert found["token"] == pytest.approx((errors / outputs).max())
    assert found["channel"] == pytest.approx(0.5 / 3.5)  # the first output; the second is exact


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPTQ has about half the error of all tokens, and each layer has a line."""
    options = ["bert-tiny-sst2", "--task", "sst2", "--data", str(REVIEWS), "--out", str(tmp_path)]
    options += ["--limit", "8", "--samples", "16", "--calibration-data", str(REVIEWS / "dev.tsv")]
    monkeypatch.setattr(sys, "argv", ["study_gptq.py", *options])
    study.main()
    found = json.loads((tmp_path / "gptq-bert-tiny-sst2-sst2-16.json").read_text())["rows"]
    assert [row["site"] for row in found] == [f"encoder.layer.{i}.output.dense" for i in (0, 1)]
    for row in found:
        assert row["GPTQ"]["all"] < row["nearest"]["all"] < row["nearest"]["token"]
        assert len({row[name]["share"] for name in study.RECIPES}) == 1
        assert all(0 < row[name]["logits"] < 1 for name in study.RECIPES)
    text = (tmp_path / "gptq-bert-tiny-sst2-sst2-16.md").read_text()
    assert text == study.markdown(found)
    assert len(text.splitlines()) == 4


def test_hessians_of_other_samples_have_another_file(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_subject_options(parser)
    add_samples_option(parser)
    common = ["some/model", "--task", "sst2", "--data", str(REVIEWS), "--out", str(tmp_path)]
    names = {"": "model-sst2", "--samples=256": "model-sst2", "--samples=8": "model-sst2-8"}
    for option, name in names.items():
        given = parser.parse_args([*common, *filter(None, [option])])
        subject, found = subject_with_hessians(given)
        assert found == name
        assert subject.calibration == str(tmp_path / f"hessians-{name}.safetensors")
        assert subject.model == "some/model"


def test_one_layer_alone() -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    site = "encoder.layer.1.intermediate.dense"
    quantized = bert_numpy.apply_recipe(model, study.at(study.RECIPES["nearest"], site))
    changed = [
        name for name, weight in quantized.weights.items() if isinstance(weight, QuantizedTensor)
    ]
    assert changed == [f"{site}.weight"]


def test_a_pattern_that_fits_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["bert-tiny-sst2", "--task", "sst2", "--data", str(REVIEWS), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["study_gptq.py", *options, "--sites", "nothing.*"])
    with pytest.raises(BertNumpyError, match=r"--sites: expected a pattern .* found 'nothing\.\*'"):
        study.main()

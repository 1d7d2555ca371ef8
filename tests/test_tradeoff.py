"""scripts/study_tradeoff.py: what it counts, its tables, and a run of a few examples."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from factories import write_checkpoint

import bert_numpy
from bert_numpy import PRESETS, Operand
from npfp8 import E4M3FN, INT8, MXFP4, NVFP4

study = load_script("study_tradeoff")

REVIEWS = Path(bert_numpy.__file__).parent / "assets" / "reviews"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Two runs into one folder, the second of which finds all of its cells."""
    out = tmp_path_factory.mktemp("tradeoff")
    options = ["bert-tiny-sst2", "--task", "sst2", "--data", str(REVIEWS), "--out", str(out)]
    options += ["--limit", "16", "--workers", "1", "--recipes", "w8a8-int,w4a16,w4a16-gptq,nvfp4"]
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            patch.setattr(sys, "argv", ["study_tradeoff.py", "run", *options])
            study.main()
            found.append(json.loads((out / "tradeoff-bert-tiny-sst2-sst2.json").read_text()))
            patch.setattr(study, "run_cell", None)
        few = [
            *options[:-1],
            "w4a16",
            "--samples",
            "4",
        ]  # its cells are there: it is not calibrated
        patch.setattr(sys, "argv", ["study_tradeoff.py", "run", *few])
        study.main()
        rows = json.loads((out / "samples-bert-tiny-sst2-sst2-4.json").read_text())["rows"]
        assert rows == [found[0]["rows"][0], found[0]["rows"][2]]
        (out / "samples-bert-tiny-sst2-sst2-4.json").unlink()
        patch.setattr(sys, "argv", ["study_tradeoff.py", "report", "--out", str(out)])
        if _has_matplotlib():
            study.main()
            assert (out / "tradeoff.md").read_text() == study.markdown(found[:1])
            assert (out / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    return found


def _has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def test_a_run(reports: list[dict[str, Any]]) -> None:
    report, again = reports
    assert report == again
    assert [row["recipe"] for row in report["rows"]] == [
        *("bf16", "w8a8-int", "w4a16", "w4a16-gptq", "nvfp4")
    ]
    assert report["examples"] == 16
    by_name = {row["recipe"]: row for row in report["rows"]}
    assert by_name["bf16"]["relative_logit_error"] == by_name["bf16"]["flips"] == 0
    errors = [by_name[name]["relative_logit_error"] for name in ("w8a8-int", "w4a16", "nvfp4")]
    assert 0 < errors[0] < min(errors[1:]) / 2
    assert (
        0 < by_name["w4a16-gptq"]["relative_logit_error"] < by_name["w4a16"]["relative_logit_error"]
    )
    for row in report["rows"]:
        assert row["difference"] == row["accuracy"] - by_name["bf16"]["accuracy"]
    assert by_name["w4a16"]["accuracy"] != by_name["bf16"]["accuracy"]
    assert [row["unit"] for row in report["rows"]] == ["BF16", "INT8", "BF16", "BF16", "FP4"]


def test_bytes_and_operations(reports: list[dict[str, Any]]) -> None:
    """BERT-tiny: two layers of 4 x 128 x 128 and 2 x 128 x 512 weights."""
    rows = {row["recipe"]: row for row in reports[0]["rows"]}
    parameters = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    inputs = 2 * (5 * 128 + 512)
    assert {row["parameters"] for row in rows.values()} == {parameters}
    assert {row["operations"] for row in rows.values()} == {2 * parameters}
    assert rows["bf16"]["weight_bytes"] == 2 * parameters
    assert rows["w4a16"]["weight_bytes"] == parameters // 2 + 4 * parameters // 128
    assert rows["w8a8-int"]["weight_bytes"] == parameters + 4 * 2 * (5 * 128 + 512)
    assert rows["nvfp4"]["weight_bytes"] == parameters // 2 + parameters // 16 + 4 * 12
    total = sum(x.size for x in bert_numpy.load("bert-tiny-sst2").weights.values())
    assert rows["bf16"]["file_bytes"] == 2 * total
    for name, row in rows.items():
        saved = rows["bf16"]["weight_bytes"] - row["weight_bytes"]
        assert rows["bf16"]["file_bytes"] - row["file_bytes"] == saved, name
    assert rows["bf16"]["input_bytes"] == rows["w4a16"]["input_bytes"] == 2 * inputs
    assert rows["w8a8-int"]["input_bytes"] == inputs + 4 * 12
    assert rows["nvfp4"]["input_bytes"] == inputs * 4.5 / 8


def test_a_shared_tensor_is_in_the_file_once(tmp_path: Path) -> None:
    shape = {"architectures": ["BertForMaskedLM"]}
    model = bert_numpy.load(write_checkpoint(tmp_path / "model", config_overrides=shape))
    stored = {id(weight): weight.size for weight in model.weights.values()}
    assert len(stored) < len(model.weights)
    assert study.sizes(model, PRESETS["bf16"])["file_bytes"] == 2 * sum(stored.values())


def test_bits_of_inputs() -> None:
    assert study.bits_of(Operand(), 64) == 16
    assert study.bits_of(Operand(INT8, "token"), 64) == 8.5
    assert study.bits_of(Operand(E4M3FN, "block", block=32), 64) == 9
    assert study.bits_of(Operand(E4M3FN), 64) == 8
    assert (study.bits_of(Operand(MXFP4), 64), study.bits_of(Operand(NVFP4), 64)) == (4.25, 4.5)


def test_least_times() -> None:
    """One token waits for the weights, many wait for the operations."""
    row = {"weight_bytes": 1e6, "input_bytes": 1e3, "operations": 1e6, "unit": "BF16"}
    assert study.read_per_token(row, 4) == 251e3
    assert study.seconds(row, 1, "H100") == pytest.approx(1.001e6 / 3.35e12)
    assert study.seconds(row, 1e6, "H100") == pytest.approx(1e12 / 989e12)
    assert study.seconds({**row, "unit": "FP8"}, 1e6, "H100") == pytest.approx(1e12 / 1979e12)
    assert math.isnan(study.seconds({**row, "unit": "FP4"}, 1, "H100"))


def test_work_table() -> None:
    """10 tokens in a text: one text waits for memory, 32 for the tensor core."""
    row = {"unit": "BF16", "weight_bytes": 1e6, "input_bytes": 1e3, "operations": 2e6}
    rows = [
        {**row, "recipe": "w4a16"},
        {**row, "recipe": "w4a16-gptq-stored"},  # the same bytes: the same line
        {**row, "recipe": "nvfp4", "unit": "FP4"},
    ]
    lines = study.work_table({"tokens": 10.0, "rows": rows}).splitlines()
    assert lines[2:] == [
        "| w4a16 | BF16 | 2.0 | 101 | 4 | 0.3 | 0.6 |",
        "| nvfp4 | FP4 | 2.0 | 101 | 4 | none | none |",
    ]


def test_units() -> None:
    found = {name: study.unit_of(recipe) for name, recipe in study.recipes().items()}
    assert {name for name, unit in found.items() if unit != "BF16"} == {
        *("w8a8-fp8", "w8a8-int", "mxfp4", "nvfp4")
    }
    assert found["w8a8-fp8"] == "FP8"
    assert found["mxfp4"] == found["nvfp4"] == "FP4"


def test_every_recipe_is_drawn_and_quantizes_linear_layers_alone() -> None:
    recipes = study.recipes()
    assert len(recipes) == 25
    for name, recipe in recipes.items():
        assert study.family(name) in (*study.MARKERS, "BF16")
        assert not recipe.scores.quantizes
        assert not recipe.context.quantizes
        assert recipe.arithmetic == "bfloat16"
        if name in PRESETS and name not in ("mxfp4", "nvfp4"):
            assert recipe == PRESETS[name]


def test_tables(reports: list[dict[str, Any]]) -> None:
    text = study.markdown(reports[:1])
    assert "| w4a16 |" in text
    assert "| 4.250 | 208,896 |" in text
    assert "<summary>bert-tiny-sst2, sst2, 16 examples</summary>" in text
    row = dict(reports[0]["rows"][1], difference=-0.25, interval=[-0.3, -0.1], flips=7)
    changed = {**reports[0], "rows": [reports[0]["rows"][0], row]}
    assert "| w8a8-int | **-25.00**, 7, " in study.summary_table([changed])
    assert "| **-25.00** | -30.00 to -10.00 | 7 |" in study.accuracy_table(changed)
    assert np.isfinite(changed["tokens"])


def test_samples(reports: list[dict[str, Any]]) -> None:
    """A recipe has a row if it ran with several sizes, and a cell for each size."""
    report = reports[0]
    assert report["samples"] == study.SAMPLES == 256
    assert study.samples_table([report]) == ""
    row = dict(report["rows"][3], difference=0.0125, flips=7, relative_logit_error=0.5)
    other = {**report, "samples": 4096, "rows": [report["rows"][0], row]}
    text = study.samples_table([report, other])
    assert text.splitlines()[1] == "| model, task | recipe | 256 examples | 4,096 examples |"
    assert text.splitlines()[3].startswith("| bert-tiny-sst2, sst2 | w4a16-gptq | ")
    assert text.splitlines()[3].endswith(" | +1.25, 7, 0.500 |")
    assert len(text.splitlines()) == 4

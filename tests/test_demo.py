"""The demo: the README shows its text, which is the same everywhere, and its sentences are true."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import bert_numpy
from bert_numpy import PRESETS, apply_recipe
from bert_numpy.assets import BASE_SIZE, REVIEWS
from bert_numpy.commands import demo, findings
from bert_numpy.commands.main import main
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.evaluation.job import prepare, run
from bert_numpy.evaluation.outliers import with_outliers

EMBEDDED = "bert-tiny-sst2"
Capture = pytest.CaptureFixture[str]


def in_the_readme() -> str:
    """The output of the demo that the README shows."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```\w*\n({EMBEDDED} on .*?)^```", text, re.DOTALL | re.MULTILINE)
    return str(block)


def without_trailing_blanks(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the demo as it is: run once, with no network, in less than 10 seconds."""
    folder = tmp_path_factory.mktemp("demo")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the demo opened a socket")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        begin = time.process_time()  # what it would take on one core, whatever else runs
        assert main(["demo", "--json", str(folder / "demo.json")]) == 0
        assert time.process_time() - begin < 10
    found: dict[str, Any] = json.loads((folder / "demo.json").read_text())
    return found


# What it prints


@pytest.mark.parametrize(
    "environment",
    [
        {"COLUMNS": "30", "NO_COLOR": "1"},
        {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"},
    ],
    ids=["narrow", "another kernel"],
)
def test_prints_what_the_readme_shows(environment: dict[str, str], tmp_path: Path) -> None:
    """From any folder, with other BLAS kernels and threads; nothing on standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "bert_numpy", "demo"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert without_trailing_blanks(done.stdout) == in_the_readme()


def test_no_printed_digit_is_near_another(report: dict[str, Any]) -> None:
    """The logits are golden, but the norms of their differences are sums in a BLAS's own order.

    These have a relative error below 2 n 2^-53 for n = 616 logits, 2e-13. So a printed digit is
    the same everywhere if no error is that close to the middle between two.
    """
    for rows in (report["rows"], *(step["rows"] for step in report["outliers"])):
        for row in rows:
            digits = row["relative_logit_error"] * 10**4
            assert abs(digits - np.floor(digits) - 0.5) > 1e-4, row["format"]


def test_golden_option_changes_nothing(capsys: Capture) -> None:
    printed = []
    for options in ([], ["--golden"]):
        assert main(["demo", "--formats", "int8", *options]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_other_formats(capsys: Capture, tmp_path: Path) -> None:
    target = tmp_path / "demo.json"
    assert main(["demo", "--formats", "e4m3-weights, bf16,bf16,", "--json", str(target)]) == 0
    result = json.loads(target.read_text())
    names = ["fp32", "e4m3-weights", "bf16"]
    assert [row["format"] for row in result["rows"]] == names
    for step in result["outliers"]:
        assert [row["format"] for row in step["rows"]] == names[1:]
    assert result["calibration_samples"] == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith(f"{EMBEDDED} on 308 reviews; nothing is trained.")
    assert "BF16 does not notice" in printed
    assert "INT8 collapses" not in printed
    assert "At base size, in real models, INT8 changes" in printed


def test_fp32_alone(capsys: Capture) -> None:
    """There is nothing to say but what is known of larger models."""
    assert main(["demo", "--formats", "fp32", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 1
    assert result["outliers"] == []
    assert main(["demo", "--formats", "fp32"]) == 0
    printed = capsys.readouterr().out
    assert "outlier channels" not in printed
    text = without_trailing_blanks(printed)
    assert "\n\nAt base size" in text
    assert "\n\n\n" not in text


def test_no_line_is_wide(capsys: Capture) -> None:
    """With formats of long names, each step with outliers is a row of its own."""
    assert main(["demo", "--formats", "e4m3-weights,int8-percentile,bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 88
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    steps = [row[:2] for row in rows if row[0] == "INT8-PERCENTILE" and len(row[1]) > 2]
    assert [size for _, size in steps] == ["none", "2^3", "2^6", "2^12"]


# What it computes


def test_report(report: dict[str, Any]) -> None:
    assert (report["model"], report["task"], report["examples"]) == (EMBEDDED, "sst2", 308)
    assert (report["calibration_samples"], report["golden"]) == (100, True)
    assert [row["format"] for row in report["rows"]] == ["fp32", "int8", "e4m3", "e5m2"]
    assert [step["exponent"] for step in report["outliers"]] == [0, *demo.EXPONENTS]
    assert report["base_size"] == json.loads(BASE_SIZE.read_text())


def test_bytes_of_linear_layers(report: dict[str, Any]) -> None:
    """Of the 12 layers, counted by hand: 4 of 128 x 128 and 2 of 128 x 512 in each of 2 layers."""
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    fp32, *others = (row["linear_bytes"] for row in report["rows"])
    assert fp32 == 4 * weights
    assert others == [weights + 12 * 4] * 3  # a byte each, and a float32 scale per layer
    for row in report["rows"]:
        saved = report["rows"][0]["weight_bytes"] - row["weight_bytes"]
        assert fp32 - row["linear_bytes"] == saved


def test_numbers_are_those_of_golden_runs(report: dict[str, Any]) -> None:
    """With outliers and without, in other batches: the same as the library's own functions."""
    job = prepare(EMBEDDED, "sst2", REVIEWS, batch_size=32)
    recipes = [PRESETS["fp32"], PRESETS["e4m3"]]
    reference, plain = run(job, recipes, golden=True)
    model = with_outliers(job.model, demo.EXPONENTS[-1], demo.CHANNELS)
    float32, outliers = run(replace(job, model=model), recipes, golden=True)
    last = report["outliers"][-1]
    for row, expected in (
        (report["rows"][0], reference),
        (report["rows"][2], plain),
        (report["outliers"][0]["rows"][1], plain),
        (last["rows"][1], outliers),
        (last["fp32"], float32),
    ):
        logits = expected.logits.astype("<f4").tobytes()
        assert row["logits_sha256"] == hashlib.sha256(logits).hexdigest()
        assert row["format"] == expected.recipe
        assert row["metrics"] == expected.metrics
        assert row["flips"] == compare_with(reference, expected)["flips"]
        assert row["classes"] == len(set(expected.predictions.tolist()))
    assert last["fp32"]["logits_sha256"] == report["rows"][0]["logits_sha256"]


def test_bytes_of_a_recipe_that_leaves_layers_out() -> None:
    model = bert_numpy.load(EMBEDDED)
    recipe = PRESETS["e4m3-weights"].skipping("*.output.dense")
    weights = 2 * (4 * 128 * 128 + 2 * 128 * 512)
    kept = 2 * (128 * 128 + 128 * 512)
    found = demo.linear_bytes(apply_recipe(model, recipe))
    assert found == weights - kept + 8 * 4 + 4 * kept


# Its sentences, for other numbers than today's


def row_of(
    name: str, flips: int, linear_bytes: int = 25, classes: int = 2, error: float = 0.0
) -> dict[str, Any]:
    row = {"format": name, "flips": flips, "linear_bytes": linear_bytes, "classes": classes}
    return row | {"relative_logit_error": error}


FP32 = row_of("fp32", 0, 100) | {"logits_sha256": "a"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], ""),
        (
            [row_of("int8", 3)],
            "INT8 changes 3 of 1,000 predictions; the linear layers take 25 % of FP32's bytes.",
        ),
        (
            [row_of("int8", 3), row_of("e4m3", 9), row_of("bf16", 1, 100)],
            "BF16 changes 1 of 1,000 predictions, INT8 3 and E4M3 9; the linear layers take 25 "
            "to 100 % of FP32's bytes.",
        ),
    ],
)
def test_finding_about_formats(rows: list[dict[str, Any]], expected: str) -> None:
    assert findings.format_finding([FP32, *rows], 1000) == expected


@pytest.mark.parametrize(
    ("flips", "errors", "classes", "expected"),
    [
        ([4, 4], [0.1, 0.1], 2, "X does not notice: 4 flips without outliers, 4 with."),
        (
            [4, 2, 9],
            [0.1, 0.125, 0],
            2,
            "X does not notice: 4 flips without outliers, 2 to 9 with.",
        ),
        ([0, 0], [0, 0], 2, "X does not notice: 0 flips without outliers, 0 with."),
        ([4, 4], [0.1, 0.126], 2, "X gets worse: 4 flips without outliers, up to 4 with."),
        ([4, 23, 1], [0.1, 0, 1], 2, "X gets worse: 4 flips without outliers, up to 23 with."),
        ([4, 24], [0.1, 1], 2, "X collapses: 4 flips without outliers, 24 with."),
        (
            [4, 50, 50],
            [0.1, 1, 1],
            1,
            "X collapses: 4 flips without outliers, 50 with, as every review gets the same label.",
        ),
    ],
)
def test_finding_about_outliers(
    flips: list[int], errors: list[float], classes: int, expected: str
) -> None:
    """Of 100 examples: an error that grows by a quarter is nothing, twenty flips are a collapse."""
    steps: list[dict[str, Any]] = [
        {"exponent": k, "rows": [row_of("x", count, classes=classes, error=error)]}
        for k, (count, error) in enumerate(zip(flips, errors, strict=True))
    ]
    steps[-1]["fp32"] = FP32
    text = findings.outlier_finding(steps, FP32, 100)
    assert text.startswith(f"{expected} FP32's logits with 2^{len(flips) - 1} are the same")
    steps[-1]["fp32"] = FP32 | {"logits_sha256": "b", "relative_logit_error": 1.23e-4}
    assert "differ by a relative error of 1.2e-04." in findings.outlier_finding(steps, FP32, 100)


def base_rows(model: str, int8: int, e4m3: int, loss: float) -> list[dict[str, Any]]:
    values = {"fp32": (0, 0.9), "int8": (int8, 0.9 - loss), "e4m3": (e4m3, 0.91)}
    return [
        {"model": model, "recipe": name, "examples": 2000, "flips": flips, "value": value}
        | {"metric": "exact_match"}
        for name, (flips, value) in values.items()
    ]


def test_finding_about_base_size() -> None:
    rows = [*base_rows("a", 1200, 4, 0.1), *base_rows("b", 30, 5, 0.2)]
    assert findings.base_size_finding(rows, True) == (
        "At base size real models do the same: INT8 changes 1,200 of 2,000 predictions of a and "
        "30 of 2,000 of b; E4M3 changes 4 and 5. The exact match of b is 90.00 in FP32, 70.00 in "
        "INT8 and 91.00 in E4M3."
    )
    more = [*rows, *base_rows("c", 3, 3, 0.0)]
    for other in (findings.base_size_finding(more, True), findings.base_size_finding(rows, False)):
        assert other.startswith("At base size, in real models, INT8 changes 1,200 of 2,000 ")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({"int8": 1, "e4m3": 0.1}, True),
        ({"int8": 1}, True),
        ({"e4m3": 1, "int8": 1}, False),
        ({"int8": 0.1, "e4m3": 0.1}, False),
        ({"e4m3": 0.1}, False),
        ({"int8-token": 1}, False),
        ({}, False),
    ],
)
def test_real_models_do_the_same_as_what_was_seen(errors: dict[str, float], expected: bool) -> None:
    """With outliers, a format whose error grows to 1 changes half of 100 predictions."""
    steps = [
        {"exponent": k, "rows": [row_of(x, 50 * (e == 1), error=e) for x, e in now.items()]}
        for k, now in enumerate((dict.fromkeys(errors, 0.1), errors))
    ]
    assert findings.int8_alone_collapses(steps if errors else [], 100) == expected

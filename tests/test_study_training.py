"""The studies of training: a run's record, that it is not repeated, tables and figures."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script

import bert_numpy
from bert_numpy.assets import REVIEWS
from bert_numpy.study.training import Course, lesson, mean_and_deviation, products_of
from bert_numpy.training.fit import Training, fit
from bert_numpy.training.products import FloatProducts

training = load_script("study_training")
qat = load_script("study_qat")

FEW = ["--limit", "48", "--batch", "8", "--epochs", "1"]


def call(monkeypatch: pytest.MonkeyPatch, script: Any, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["script", *arguments])
    script.main()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


def subject(out: Path) -> list[str]:
    return ["bert-tiny-sst2", "--task", "sst2", "--data", str(REVIEWS), "--out", str(out)]


def test_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: Path
) -> None:
    for name in ("float32", "delayed", "automatic"):
        call(monkeypatch, training, "run", *subject(out), *FEW, "--scaling", name)
    file = out / "sst2-delayed-0.json"
    record = json.loads(file.read_text())
    assert record["steps"] == 6
    assert record["skipped"] == 0
    assert set(record["results"]) == {"fp32", "e4m3"}
    site = "encoder.layer.1.output.dense"
    steps = [row[0] for row in record["counts"][f"{site}:a"]]
    assert sum(size > 0 for size in steps) == 1  # of 6 steps the first is counted
    assert f"{site}:db" in json.loads((out / "sst2-automatic-0.json").read_text())["factors"]
    # Again: nothing is run. The list has what is missing.
    before = file.stat().st_mtime_ns
    call(monkeypatch, training, "run", *subject(out), *FEW, "--scaling", "delayed")
    assert file.stat().st_mtime_ns == before
    capsys.readouterr()
    call(monkeypatch, training, "list", *subject(out), *FEW, "--seeds", "2")
    listed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert len(listed) == 2 * len(training.NAMES) - 3
    assert not any(
        row[row.index("--scaling") + 1 :][:3] == ["delayed", "--seed", "0"] for row in listed
    )


def test_the_report(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: Path,
) -> None:
    pytest.importorskip("matplotlib")
    call(monkeypatch, training, "report", "--out", str(out))
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "±" in line]
    assert [row[0] for row in rows] == ["| float32", "| delayed", "| automatic"]
    record = json.loads((out / "sst2-delayed-0.json").read_text())
    assert rows[1][1] == f"{100 * record['results']['fp32']['accuracy']:.2f} ± 0.00"
    for name in ("training.png", "training-counts.png", "training-sites.png", "training.md"):
        assert (out / name).stat().st_size > 100


def test_qat(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    for way in qat.WAYS:
        call(monkeypatch, qat, "run", *subject(tmp_path), *FEW, "--way", way, "--recipe", "int8")
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {f"bert-tiny-sst2-sst2-{way}-int8-0.json" for way in qat.WAYS}
    capsys.readouterr()
    call(monkeypatch, qat, "report", "--out", str(tmp_path))
    text = capsys.readouterr().out
    assert text.count("| int8 |") == 3
    found = json.loads((tmp_path / "bert-tiny-sst2-sst2-qat-int8-0.json").read_text())["results"]
    assert found["quantized"]["flips"] <= 48
    assert (tmp_path / "qat.png").stat().st_size > 1000
    call(monkeypatch, qat, "list", *subject(tmp_path), "--seeds", "1")
    assert capsys.readouterr().out.count("e4m3") == 3


def test_gradients_with_exact_sums(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--task", "sst2", "--data", str(REVIEWS), "--limit", "64"]
    call(monkeypatch, training, "sums", "bert-tiny-sst2", *data)
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].strip() for row in rows] == ["dynamic", "dynamic-pow2", "unit"]
    for _, blas, fp8 in rows:
        low, high = map(float, fp8.split(","))
        assert 0.05 < low <= high < 0.5
        assert float(blas.split(",")[0]) < low


def test_a_lesson_has_the_models_labels() -> None:
    """A fine-tuned model keeps its head, whose labels may be in another order than GLUE's."""
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=16)
    known = bert_numpy.load("bert-tiny-sst2")
    np.testing.assert_array_equal(
        learned.model.weights["classifier.weight"], known.weights["classifier.weight"]
    )
    result = learned.evaluated(learned.quantized(learned.model, "fp32"))
    assert result.metrics["accuracy"] > 0.6  # 12 of 16, one of them with logits 3e-4 apart
    assert isinstance(products_of("float32", learned, 8), FloatProducts)


def test_a_course_is_cut_into_parts() -> None:
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=40)
    course = Course(parts=2)
    run = Training(epochs=1, batch_size=8)
    products = products_of("dynamic", learned, 8, count_every=1)
    fitted = fit(
        learned.model, learned.train, learned.train_labels, run, products=products, watch=course
    )
    record = course.record()
    assert record["losses"] == pytest.approx(
        [np.mean(fitted.losses[:3]), np.mean(fitted.losses[3:])]
    )
    tokens = sum(len(one.input_ids) for one in learned.train)
    rows = record["counts"]["encoder.layer.0.output.dense:a"]
    assert sum(row[0] for row in rows) == tokens * learned.model.config.intermediate_size
    assert all(row[0] > 0 for row in rows)
    assert len(record["largest"]["encoder.layer.0.output.dense:dy"]) == 2
    assert min(record["largest"]["encoder.layer.0.output.dense:dy"]) > 0


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([1.0]) == (1.0, 0.0)
    assert mean_and_deviation([1.0, 3.0]) == pytest.approx((2, np.sqrt(2)))

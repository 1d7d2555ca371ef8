"""The studies of training: a run's record, that it is not repeated, tables and figures."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script

import bert_numpy
from bert_numpy.assets import REVIEWS
from bert_numpy.evaluation.evaluate import calibrate_on, compare_with
from bert_numpy.study.training import (
    Course,
    _outputs,
    add_run_options,
    lesson,
    mean_and_deviation,
    products_of,
    run_command,
    training_of,
)
from bert_numpy.tasks.glue import task_named
from bert_numpy.training.fake_quantization import FakeQuantizedProducts, quantized_model
from bert_numpy.training.fit import StepReport, Training, fit
from bert_numpy.training.fp8_products import FP8Products
from bert_numpy.training.heads import with_head
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.save import save_trained
from bert_numpy.training.unit_scaling import expected_magnitudes

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
    printed, _, course = capsys.readouterr().out.partition("sst2, over the run:")
    rows = [line.split(" | ") for line in printed.splitlines() if "±" in line]
    assert [row[0] for row in rows] == ["| float32", "| delayed", "| automatic"]
    record = json.loads((out / "sst2-delayed-0.json").read_text())
    assert rows[1][1] == f"{100 * record['results']['fp32']['accuracy']:.2f} ± 0.00"
    courses = [line.strip("|").split("|") for line in course.splitlines() if "sst2" not in line]
    found = {row[0].strip(): [cell.strip() for cell in row] for row in courses if len(row) > 1}
    assert list(found)[2:] == ["delayed", "automatic"]
    parts = np.sum([r for n, r in record["counts"].items() if n.endswith(":dy")], axis=0)
    assert parts[0, 2] > 0
    assert found["delayed"][2] == f"{100 * parts[0, 2] / parts[0, 0]:.2g},"  # only one is counted
    assert found["delayed"][3] == "100"
    site, most = found["delayed"][4].split(": ")
    elements, _, underflowed = np.sum(record["counts"][f"{site}:dy"], axis=0)
    assert most == f"{100 * underflowed / elements:.2g}"
    assert " to " in found["automatic"][5]
    for name in (
        "training.png",
        "training-counts.png",
        "training-sites.png",
        "training.md",
        "training-course.md",
    ):
        assert (out / name).stat().st_size > 100


def test_qat(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("matplotlib")
    few = ["--limit", "24", "--batch", "8", "--epochs", "1"]
    for way in qat.WAYS:
        options = ["--way", way, "--recipe", "int8", "--rate", "3e-3"]
        call(monkeypatch, qat, "run", *subject(tmp_path), *few, *options)
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == {f"bert-tiny-sst2-sst2-{way}-int8-0.json" for way in qat.WAYS}
    capsys.readouterr()
    call(monkeypatch, qat, "report", "--out", str(tmp_path))
    text = capsys.readouterr().out
    assert text.count("| int8 |") == 3
    ptq, more, found = (
        json.loads((tmp_path / f"bert-tiny-sst2-sst2-{way}-int8-0.json").read_text())["results"]
        for way in ("ptq", "more", "qat")
    )
    assert found["fp32"] == more["fp32"]  # trained as long, in float32
    # Again by hand, on the same machine:
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=24)
    run = Training(1, 8, 3e-3, frozen=("embeddings.*",))
    results = []
    for name in ("float32", "qat-int8"):
        products = products_of(name, learned, 8)
        results.append(
            fit(learned.model, learned.train, learned.train_labels, run, products=products)
        )
    plain = learned.evaluated(learned.quantized(results[0].model, "fp32"))
    assert isinstance(results[1].products, FakeQuantizedProducts)
    rounded = learned.evaluated(quantized_model(results[1].model, results[1].products))
    expected = {**rounded.metrics, "not_finite": 0, **compare_with(plain, rounded)}
    assert found["quantized"] == pytest.approx(expected)
    assert found["fp32"]["accuracy"] == plain.metrics["accuracy"]
    untrained = learned.evaluated(learned.quantized(learned.model, "fp32"))
    assert ptq["fp32"]["accuracy"] == untrained.metrics["accuracy"]
    assert (tmp_path / "qat.png").stat().st_size > 1000
    call(monkeypatch, qat, "list", *subject(tmp_path), "--seeds", "1")
    assert capsys.readouterr().out.count("e4m3") == 3


def test_gradients_with_exact_sums(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--task", "sst2", "--data", str(REVIEWS), "--limit", "32"]
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
    lines = (REVIEWS / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert len(lines) != len((REVIEWS / "train.tsv").read_text(encoding="utf-8").splitlines()) - 1
    whole = lesson("bert-tiny-sst2", "sst2", REVIEWS)
    assert whole.dev_labels.tolist() == [int(line.rpartition("\t")[2]) for line in lines]
    result = learned.evaluated(learned.quantized(learned.model, "fp32"))
    assert result.metrics["accuracy"] > 0.6  # 12 of 16, one of them with logits 3e-4 apart
    assert isinstance(products_of("float32", learned, 8), FloatProducts)
    exact = products_of("unit", learned, 8, count_every=3, accumulate="exact")
    assert isinstance(exact, FP8Products)
    assert (exact.accumulate, exact.count_every) == ("exact", 3)
    assert exact.expected == expected_magnitudes(learned.model.config, 8, learned.tokens)
    rounded = products_of("qat-int8", learned, 8)
    assert isinstance(rounded, FakeQuantizedProducts)
    assert rounded.recipe is bert_numpy.PRESETS["int8"]


def test_outputs_in_another_order_than_the_tasks(tmp_path: Path) -> None:
    known = bert_numpy.load("bert-tiny-sst2")
    swapped = with_head(known, "sequence classification", known.config.labels[::-1])
    save_trained(swapped, "bert-tiny-sst2", tmp_path / "swapped")
    given = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=8)
    found = lesson(tmp_path / "swapped", "sst2", REVIEWS, limit=8)
    np.testing.assert_array_equal(found.train_labels, 1 - given.train_labels)
    np.testing.assert_array_equal(found.dev_labels, given.dev_labels)
    how = task_named("mnli")
    names = (how.labels[2], *how.labels[:2])
    config = replace(known.config, labels=names)
    assert _outputs(how, config).tolist() == [names.index(name) for name in how.labels] == [1, 2, 0]


def test_a_calibration_is_spread_over_the_training_set() -> None:
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=20)
    found = learned.calibration(learned.model, samples=4)
    right = calibrate_on(learned.model, [learned.train[row] for row in (0, 5, 10, 15)])
    for name, seen in right.operands.items():
        assert (found.operands[name].low, found.operands[name].high) == (seen.low, seen.high)


def test_a_course_is_cut_into_parts() -> None:
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=40)
    course = Course(parts=2)
    run = Training(epochs=1, batch_size=8)
    products = products_of("dynamic", learned, 8, count_every=1)
    assert isinstance(products, FP8Products)
    largest: list[float] = []

    def watch(report: StepReport) -> None:
        course(report)
        assert isinstance(report.products, FP8Products)
        largest.append(report.products.seen["encoder.layer.0.output.dense:dy"].absmax)

    fitted = fit(
        learned.model, learned.train, learned.train_labels, run, products=products, watch=watch
    )
    record = course.record()
    assert record["losses"] == pytest.approx(
        [np.mean(fitted.losses[:3]), np.mean(fitted.losses[3:])]
    )
    tokens = sum(len(one.input_ids) for one in learned.train)
    rows = record["counts"]["encoder.layer.0.output.dense:a"]
    assert sum(row[0] for row in rows) == tokens * learned.model.config.intermediate_size
    assert all(row[0] > 0 for row in rows)
    found = record["largest"]["encoder.layer.0.output.dense:dy"]
    assert found == pytest.approx([max(largest[:3]), max(largest[3:])], rel=5e-3)
    counted = record["counts"]["encoder.layer.0.output.dense:a"]
    assert all(row[1] == 0 < row[2] for row in counted)  # underflows, but nothing saturates


def made_up(scaling: str, seed: int, accuracy: float, low: float, minutes: float) -> dict[str, Any]:
    """A record of a run whose numbers are all different."""
    counts: dict[str, Any] = {}
    if scaling != "float32":
        counts = {
            "x:a": [[1000, 30, 50], [0, 0, 0]],
            "y:a": [[1000, 10, 10], [2000, 0, 60]],
            "x:dy": [[400, 4, 0], [400, 12, 100]],
            "x:b": [[10**6, 9, 9], [10**6, 9, 9]],
        }
    return {
        **{"task": "mrpc", "scaling": scaling, "seed": seed, "steps": 2},
        **{"cpu_seconds": 60 * minutes, "losses": [0.9, 0.25], "counts": counts, "factors": {}},
        "results": {"fp32": {"accuracy": accuracy, "f1": 1}, "e4m3": {"accuracy": low, "f1": 1}},
    }


def test_the_table_of_scalings() -> None:
    records = [
        made_up("none", 1, 0.64, 0.5, 2),
        made_up("none", 0, 0.6, 0.52, 4),
        made_up("float32", 0, 0.7, 0.75, 1),
        made_up("float32", 1, 0.6, 0.65, 1),
    ]
    (found,) = training.by_run(records).values()
    *_, float32, none = training.table_of(found).splitlines()
    assert float32 == "| float32 | 65.00 ± 7.07 |  | 70.00 |  |  | 0.250 | 1.0 |"
    assert none == ("| none | 62.00 ± 2.83 | -10.00, +4.00 | 51.00 | 1, 3 | 2, 12 | 0.250 | 3.0 |")


def test_the_table_of_ways() -> None:
    """CoLA's metric is not the first of a record's keys, which are in the alphabet's order."""

    def record(way: str, seed: int, plain: float, quantized: float) -> dict[str, Any]:
        results = {"flips": 3 + seed, "matthews_correlation": quantized}
        return {
            **{"model": "m", "task": "cola", "recipe": "int8", "way": way, "seed": seed},
            "results": {
                "fp32": {"flips": 0, "matthews_correlation": plain},
                "quantized": {**results, "relative_logit_error": 0.25 + seed / 8},
            },
        }

    records = [record("qat", 1, 0.5, 0.6), record("ptq", 0, 0.5, 0.4), record("qat", 0, 0.4, 0.2)]
    (found,) = qat.grouped(records).values()
    *_, ptq, trained = qat.table_of(found).splitlines()
    assert ptq == "| int8 | quantized after training | 50.00 | 40.00 | -10.00 | 3 | 0.250 |"
    assert trained == (
        "| int8 | as many steps of quantization-aware training | 45.00 ± 7.07 | 40.00 ± 28.28 | "
        "-20.00, +10.00 | 3.5 | 0.312 |"
    )


def test_options_of_a_run() -> None:
    """A line of the list has all of its options, and they are the numbers of the training."""
    parser = argparse.ArgumentParser()
    add_run_options(parser, epochs=6, rate=3e-4)
    words = ["mine", "--task", "sst2", "--data", "D", "--out", "O"]
    plain = parser.parse_args(words)
    plain.seed = 0
    assert training_of(plain) == Training(6, 32, 3e-4, frozen=("embeddings.*",))
    options = ["--epochs", "0.5", "--batch", "8", "--rate", "1e-5", "--limit", "9"]
    given = parser.parse_args([*words, *options, "--frozen", "a b", "c*"])
    given.seed = 3
    assert training_of(given) == Training(0.5, 8, 1e-5, seed=3, frozen=("a b", "c*"))
    script, *line = shlex.split(run_command("script.py", given, seed=3))[1:]
    assert (script, line[0]) == ("script.py", "run")
    parser.add_argument("--seed", type=int)
    assert parser.parse_args(line[1:]) == given


def test_what_cannot_be_studied() -> None:
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=8)
    with pytest.raises(ValueError, match=r"scaling: expected one of .*; did you mean 'delayed'"):
        products_of("delay", learned, 8)
    with pytest.raises(ValueError, match=r"recipe: expected one of .*; did you mean 'int8'"):
        products_of("qat-int9", learned, 8)
    with pytest.raises(bert_numpy.BertNumpyError, match="expected a task with classes"):
        lesson("bert-tiny-sst2", "stsb", REVIEWS)
    assert learned.calibration(learned.model).samples == len(learned.train) == 8


def test_mean_and_deviation() -> None:
    assert mean_and_deviation([1.0]) == (1.0, 0.0)
    assert mean_and_deviation([1.0, 3.0]) == pytest.approx((2, np.sqrt(2)))

"""The commands: what they print and write, and how they end."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import (
    CONFIG,
    PAPER,
    assert_same_calibrations,
    random_tensors,
    write_checkpoint,
    write_tensors,
)
from oracles import assert_same_bits
from terminal import on_a_terminal

import bert_numpy
import npfp8
from bert_numpy import PRESETS, Model, ModelOutput, __main__
from bert_numpy.assets import REVIEWS
from bert_numpy.commands import report
from bert_numpy.commands.main import main
from bert_numpy.evaluation import evaluate as evaluation
from bert_numpy.evaluation import job
from bert_numpy.evaluation.job import prepare, run
from bert_numpy.quantization.calibration import load_calibration, save_calibration
from bert_numpy.quantization.recipe_json import save_recipe
from bert_numpy.tasks.glue import TASKS, read_examples

EMBEDDED = "bert-tiny-sst2"
POSITIVE = "a warm and funny film with a wonderful cast"
COMMANDS = ["demo", "compare", "evaluate", "predict", "info"]
Capture = pytest.CaptureFixture[str]

#: The fields of a row that the JSON of a comparison promises, and their types.
ROW_FIELDS = {
    "format": str,
    "metrics": dict,
    "relative_logit_error": float,
    "weight_bytes": int,
    "seconds": float,
}


def write_sst2(path: Path, start: int = 0, count: int = 30) -> Path:
    """Some of the embedded reviews, as another file in SST-2's layout."""
    lines = (REVIEWS / "dev.tsv").read_text().split("\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([lines[0], *lines[1 + start : 1 + start + count]]) + "\n")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_sst2(tmp_path / "SST-2" / "dev.tsv")
    write_sst2(tmp_path / "SST-2" / "train.tsv", start=40, count=40)
    return tmp_path / "SST-2"


def arguments(command: str, data: Path, *more: str, model: str | Path = EMBEDDED) -> list[str]:
    return [command, str(model), "--task", "sst2", "--data", str(data), *more]


def run_json(argv: Sequence[str], tmp_path: Path) -> dict[str, Any]:
    target = tmp_path / "result.json"
    assert main([*argv, "--json", str(target)]) == 0
    result = json.loads(target.read_text(encoding="utf-8"))
    assert isinstance(result, dict)
    return result


def table_of(text: str) -> list[list[str]]:
    """The cells of a printed table, the header's lines joined; every line must be whole."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({(line.count("|"), len(line)) for line in lines}) == 1
    assert all(line.endswith("|") for line in lines)
    rule = next(i for i, line in enumerate(lines) if set(line) == {"|", "-"})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    header = [" ".join(words).strip() for words in zip(*cells[:rule], strict=True)]
    return [header, *cells[rule + 1 :]]


def run_process(
    *argv: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "bert_numpy", *argv],
        cwd=cwd,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_console_script() -> None:
    (script,) = metadata.entry_points(group="console_scripts", name="bert-numpy")
    assert script.load() is __main__.main


# compare


def check_comparison(result: dict[str, Any], model: str, task: str, examples: int) -> None:
    assert (result["model"], result["task"], result["examples"]) == (model, task, examples)
    assert isinstance(result["rows"], list)
    change = ("flips", int) if task != "stsb" else ("mean_abs_difference", float)
    for row in result["rows"]:
        for name, kind in (*ROW_FIELDS.items(), change):
            assert type(row[name]) is kind, name
        assert ("flips" in row) != ("mean_abs_difference" in row)
        assert row["metrics"].keys() == set(TASKS[task].metrics)
        for value in row["metrics"].values():
            assert type(value) is float
            assert -1 <= value <= 1
    first = result["rows"][0]
    assert first["format"] == "fp32"
    assert first[change[0]] == 0
    assert first["relative_logit_error"] == 0.0
    assert first["quantized_elements"] == first["saturated_elements"] == 0


def test_compare(data: Path, tmp_path: Path, capsys: Capture) -> None:
    result = run_json(arguments("compare", data), tmp_path)
    check_comparison(result, EMBEDDED, "sst2", 30)
    assert [row["format"] for row in result["rows"]] == ["fp32", "int8", "e4m3", "e5m2"]
    header, *rows = table_of(capsys.readouterr().out)
    assert header[:2] == ["format", "accuracy"]
    for cells, row in zip(rows, result["rows"], strict=True):
        assert cells == [
            row["format"].upper(),
            f"{100 * row['metrics']['accuracy']:.2f}",
            str(row["flips"]),
            f"{row['relative_logit_error']:.4f}",
            f"{row['weight_bytes']:,}",
            f"{row['seconds']:.2f}",
        ]


def test_compare_is_the_job_that_it_says(data: Path, tmp_path: Path) -> None:
    options = ["--limit", "11", "--calibration-samples", "5", "--max-length", "9"]
    result = run_json(
        arguments("compare", data, *options, "--batch-size", "4", "--formats", "e5m2"), tmp_path
    )
    check_comparison(result, EMBEDDED, "sst2", 11)
    assert result["calibration_samples"] == 5
    work = prepare(
        EMBEDDED, "sst2", data, limit=11, calibration_samples=5, max_length=9, batch_size=4
    )
    assert result["truncated"] == work.truncated > 0
    reference, expected = run(work, [PRESETS["fp32"], PRESETS["e5m2"]])
    row = result["rows"][1]
    assert row["metrics"] == expected.metrics
    change = evaluation.compare_with(reference, expected)
    assert (row["flips"], row["relative_logit_error"]) == tuple(change.values())
    for name, field in (
        ("quantized_elements", "elements"),
        ("saturated_elements", "saturated"),
        ("underflowed_elements", "underflowed"),
    ):
        assert row[name] == sum(getattr(count, field) for count in expected.counts.values())


def test_batch_size(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results hardly depend on it, so it is looked for where the work is done."""
    sizes: list[int] = []

    def noted(model: Model, batch: dict[str, np.ndarray]) -> ModelOutput:
        sizes.append(len(batch["input_ids"]))
        return forward(model, **batch)

    forward = Model.__call__
    monkeypatch.setattr(Model, "__call__", lambda model, **batch: noted(model, batch))
    assert main(arguments("evaluate", data, "--limit", "11", "--batch-size", "4")) == 0
    assert sizes == [4, 4, 3]


def test_calibration_data(data: Path, tmp_path: Path) -> None:
    other = write_sst2(tmp_path / "other.tsv", start=100, count=3)
    (data / "train.tsv").unlink()
    more = ["--formats", "int8", "--calibration-data", str(other)]
    result = run_json(arguments("compare", data, *more), tmp_path)
    assert result["calibration_samples"] == 3


@pytest.mark.parametrize("place", ["folder", "parent", "file"])
def test_places_of_data(place: str, data: Path, tmp_path: Path) -> None:
    path = {"folder": data, "parent": data.parent, "file": data / "dev.tsv"}[place]
    assert run_json(arguments("compare", path, "--formats", "fp32"), tmp_path)["examples"] == 30


def test_json_instead_of_the_table(data: Path, capsys: Capture) -> None:
    assert main(arguments("compare", data, "--formats", "e4m3", "--json", "-")) == 0
    output = capsys.readouterr()
    assert output.err == ""
    check_comparison(json.loads(output.out), EMBEDDED, "sst2", 30)


@pytest.mark.parametrize(
    ("model", "task"),
    [("minilm-sst2", "sst2"), ("minilm-mrpc", "mrpc"), ("bert-tiny-stsb", "stsb")],
)
def test_compare_on_official_data(
    model: str, task: str, checkpoints: Path, glue: Path, tmp_path: Path, capsys: Capture
) -> None:
    argv = ["compare", str(checkpoints / model), "--task", task, "--data", str(glue)]
    argv += ["--limit", "24", "--calibration-samples", "24"]
    result = run_json(argv, tmp_path)
    check_comparison(result, str(checkpoints / model), task, 24)
    rows = {row["format"]: row for row in result["rows"]}
    assert 0 < rows["e4m3"]["relative_logit_error"] < rows["e5m2"]["relative_logit_error"]
    header, *cells = table_of(capsys.readouterr().out)
    assert header[: 2 + len(TASKS[task].metrics)] == [
        "format",
        *TASKS[task].metrics,
        "mean abs difference" if task == "stsb" else "flips",
    ]
    assert [row[0] for row in cells] == ["FP32", "INT8", "E4M3", "E5M2"]
    assert [row[-2] for row in cells] == [f"{row['weight_bytes']:,}" for row in result["rows"]]


# evaluate


@pytest.mark.parametrize("name", ["fp32", "bf16", "e4m3"])
def test_evaluate(name: str, data: Path, tmp_path: Path, capsys: Capture) -> None:
    result = run_json(arguments("evaluate", data, "--format", name), tmp_path)
    work = prepare(EMBEDDED, "sst2", data)
    (expected,) = run(work, [PRESETS[name]])
    assert (result["model"], result["task"], result["examples"]) == (EMBEDDED, "sst2", 30)
    assert result["format"] == name
    assert result["metrics"] == expected.metrics
    assert result["weight_bytes"] == expected.weight_bytes
    assert result["seconds"] > 0
    assert all(type(prediction) is int for prediction in result["predictions"])
    assert result["predictions"] == expected.predictions.tolist()
    logits = np.array(result["logits"])
    assert logits.shape == (30, 2)
    assert_same_bits(logits.astype(np.float32), expected.logits)
    line = capsys.readouterr().out
    assert line.startswith(f"{EMBEDDED}  sst2  {name}  30 examples  accuracy ")
    assert f"{100 * expected.metrics['accuracy']:.2f}" in line


def test_results_are_in_the_order_of_the_data(data: Path, tmp_path: Path) -> None:
    """Whatever order the batches had: each logit is that of its own text."""
    result = run_json(arguments("evaluate", data), tmp_path)
    model = bert_numpy.load(EMBEDDED)
    tokenizer = bert_numpy.load_tokenizer(EMBEDDED)
    examples = read_examples(data / "dev.tsv", TASKS["sst2"])
    for text, logits, prediction in zip(
        examples.texts, result["logits"], result["predictions"], strict=True
    ):
        expected = model(**tokenizer.batch([text])).logits
        assert expected is not None
        np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-4)
        assert prediction == int(expected[0, 1] > expected[0, 0])


def test_quantized_sites(data: Path, tmp_path: Path) -> None:
    sites = run_json(arguments("evaluate", data, "--format", "int8"), tmp_path)["sites"]
    assert len(sites) == 2 * (8 + 2)  # both operands of the attention's two products
    for count in sites.values():
        assert set(count) == {"elements", "saturated", "underflowed"}
        assert 0 <= count["saturated"] + count["underflowed"] <= count["elements"]


def test_regression(tmp_path: Path, capsys: Capture) -> None:
    model = write_checkpoint(tmp_path / "model", labels=("similarity",))
    rows = [f"the film\tthe {word}\t{i}.5" for i, word in enumerate(("movie", "plot", "actor"))]
    for name in ("dev.tsv", "train.tsv"):
        text = "\n".join(["sentence1\tsentence2\tscore", *rows])
        (tmp_path / name).write_text(text)
    argv = [str(model), "--task", "stsb", "--data", str(tmp_path)]
    check_comparison(run_json(["compare", *argv], tmp_path), str(model), "stsb", 3)
    assert table_of(capsys.readouterr().out)[0][3] == "mean abs difference"
    result = run_json(["evaluate", *argv, "--format", "e4m3"], tmp_path)
    assert result["predictions"] == [logit for (logit,) in result["logits"]]
    assert all(type(score) is float for score in result["predictions"])


def test_metric_without_a_value_is_null(tmp_path: Path, capsys: Capture) -> None:
    """JSON has no NaN: a correlation with constant scores is null."""
    model = write_checkpoint(tmp_path / "model", labels=("similarity",))
    text = "sentence1\tsentence2\tscore\nthe film\ta film\t2\nthe plot\tan actor\t2\n"
    (tmp_path / "dev.tsv").write_text(text)
    argv = ["evaluate", str(model), "--task", "stsb", "--data", str(tmp_path)]
    result = run_json(argv, tmp_path)
    assert result["metrics"] == {"pearson": None, "spearmanr": None}
    assert "pearson nan" in capsys.readouterr().out


# Golden runs and saved calibrations


def sha256_of(logits: list[list[float]]) -> str:
    return hashlib.sha256(np.array(logits, "<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["fp32", "e4m3"])
def test_golden_evaluation_in_any_batches(name: str, data: Path, tmp_path: Path) -> None:
    """The same bits for every size of batch, and with the saved scales instead of the data's."""
    saved = tmp_path / "calibration.json"
    argv = arguments("evaluate", data, "--format", name, "--golden")
    scales = ["--save-calibration", str(saved)] if name != "fp32" else []
    result = run_json([*argv, *scales], tmp_path)
    assert result["golden"] is True
    assert result["logits_sha256"] == sha256_of(result["logits"])
    (expected,) = run(prepare(EMBEDDED, "sst2", data), [PRESETS[name]], golden=True)
    assert_same_bits(np.array(result["logits"]).astype(np.float32), expected.logits)
    others = [["--batch-size", "7"]]
    if scales:
        (data / "train.tsv").unlink()
        others = [["--calibration", str(saved), *more] for more in others]
        others.append(["--calibration", str(saved), "--save-calibration", str(tmp_path / "again")])
    for more in others:
        other = run_json([*argv, *more], tmp_path)
        assert other["logits_sha256"] == result["logits_sha256"]
        assert other["predictions"] == result["predictions"]
        assert other.get("calibration_samples") == result["calibration_samples"]
    if scales:
        assert load_calibration(saved).golden
        assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_evaluation_that_is_not_golden(data: Path, tmp_path: Path) -> None:
    plain, golden = (
        run_json(arguments("evaluate", data, *more), tmp_path) for more in ([], ["--golden"])
    )
    assert plain["golden"] is False
    assert plain["logits_sha256"] == sha256_of(plain["logits"]) != golden["logits_sha256"]
    np.testing.assert_allclose(golden["logits"], plain["logits"], rtol=0, atol=1e-5)


def test_golden_comparison(data: Path, tmp_path: Path) -> None:
    for name in ("dev.tsv", "train.tsv"):
        write_sst2(data / name, count=8)
    argv = [*arguments("compare", data), "--formats", "bf16,e4m3"]
    result = run_json([*argv, "--golden"], tmp_path)
    assert result["golden"] is True
    check_comparison(result, EMBEDDED, "sst2", 8)
    assert run_json(argv, tmp_path)["golden"] is False
    reference, *others = run(
        prepare(EMBEDDED, "sst2", data, batch_size=3),
        [PRESETS[name] for name in ("fp32", "bf16", "e4m3")],
        golden=True,
    )
    for row, other in zip(result["rows"][1:], others, strict=True):
        change = evaluation.compare_with(reference, other)
        assert row["relative_logit_error"] == change["relative_logit_error"]  # to the last bit


@pytest.mark.parametrize("name", [*PAPER, "int8-outliers", "e4m3-block"])
def test_golden_prediction(name: str, data: Path, tmp_path: Path) -> None:
    """The logits are those of the same text in a golden evaluation with these scales."""
    train = data / "train.tsv"
    lines = (data / "dev.tsv").read_text().split("\n")
    text, _ = lines[1].split("\t")
    argv = ["predict", EMBEDDED, text, "--format", name]
    if PRESETS[name].calibrated:
        argv += ["--calibration-data", str(train)]
    result = run_json([*argv, "--golden"], tmp_path)
    assert result["golden"] is True
    assert run_json(argv, tmp_path)["golden"] is False
    whole = run_json(arguments("evaluate", data, "--format", name, "--golden"), tmp_path)
    assert list(result["logits"].values()) == whole["logits"][0]


def test_saved_calibration_is_the_runs(data: Path, tmp_path: Path) -> None:
    saved = tmp_path / "calibration.json"
    more = ["--formats", "int8", "--calibration-samples", "9", "--save-calibration", str(saved)]
    result = run_json(arguments("compare", data, *more), tmp_path)
    work = prepare(EMBEDDED, "sst2", data, calibration_samples=9)
    expected = evaluation.calibrate_on(work.model, work.calibration_texts)
    assert_same_calibrations(load_calibration(saved), expected)
    again = arguments("compare", data, "--formats", "int8", "--calibration", str(saved))
    other = run_json(again, tmp_path)
    assert other["calibration_samples"] == result["calibration_samples"] == 9
    errors = (item["rows"][1]["relative_logit_error"] for item in (other, result))
    assert len(set(errors)) == 1


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_no_calibration_to_save(
    command: str, name: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    saved = tmp_path / "calibration.json"
    option = "--format" if command == "evaluate" else "--formats"
    argv = arguments(command, data, option, name, "--save-calibration", str(saved))
    assert main(argv) == 2
    message = f"{saved}: expected a format that needs a calibration, found "
    assert only_line(capsys).startswith(message)
    assert not saved.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("scales", "expected 8 bytes of header length, found 6"),
        (
            "\x02\0\0\0\0\0\0\0{}",
            "metadata 'format': expected 'bert-numpy calibration 3', found ''",
        ),
    ],
)
def test_unreadable_calibration(
    text: str | None, message: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "calibration.json"
    if text is not None:
        path.write_text(text)
    argv = arguments("evaluate", data, "--format", "e4m3", "--golden", "--calibration", str(path))
    assert main(argv) == 2
    assert only_line(capsys).startswith(f"{path}: {message}")


def test_calibration_of_another_model(data: Path, tmp_path: Path, capsys: Capture) -> None:
    saved = tmp_path / "calibration.json"
    run_json(
        arguments("compare", data, "--formats", "e4m3", "--save-calibration", str(saved)), tmp_path
    )
    capsys.readouterr()
    deeper = {"num_hidden_layers": 3}
    model = write_checkpoint(tmp_path / "model", config_overrides=deeper)
    argv = arguments("evaluate", data, "--format", "e4m3", "--calibration", str(saved), model=model)
    assert main(argv) == 2
    line = only_line(capsys)
    assert line.startswith(
        f"{saved}: expected a calibration of this model, '{model}' (3 layers of 16, SHA-256 "
    )
    assert "), found one of 'bert-tiny-sst2' (2 layers of 128, SHA-256 " in line


def test_calibration_that_cannot_be_saved(data: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "missing" / "calibration.json"
    argv = arguments("evaluate", data, "--format", "e4m3", "--save-calibration", str(path))
    assert main(argv) == 2
    assert only_line(capsys).startswith(f"{path}: cannot be written: ")


# predict


def expected_logits(*texts: str) -> np.ndarray:
    model, tokenizer = bert_numpy.load(EMBEDDED), bert_numpy.load_tokenizer(EMBEDDED)
    logits = model(**tokenizer.batch(*[[text] for text in texts])).logits
    assert logits is not None
    return logits[0]


@pytest.mark.parametrize("texts", [[POSITIVE], [POSITIVE, "and so it is"]], ids=["one", "pair"])
def test_predict(texts: list[str], tmp_path: Path, capsys: Capture) -> None:
    result = run_json(["predict", EMBEDDED, *texts], tmp_path)
    logits = expected_logits(*texts)
    assert (result["model"], result["format"]) == (EMBEDDED, "fp32")
    found = [result["logits"][label] for label in ("negative", "positive")]
    assert_same_bits(np.array(found).astype(np.float32), logits)
    assert result["label"] == ("negative", "positive")[int(logits.argmax())]
    assert sum(result["probabilities"].values()) == pytest.approx(1)
    odds = float(logits[1]) - float(logits[0])
    assert result["probabilities"]["positive"] == pytest.approx(1 / (1 + math.exp(-odds)))
    output = capsys.readouterr()
    assert output.err == ""
    lines = [line.split() for line in output.out.splitlines()]
    assert [label for label, _ in lines] == list(result["probabilities"])
    assert lines[0][0] == result["label"]
    assert float(lines[0][1]) >= 0.5


def test_predict_tells_good_from_bad(capsys: Capture) -> None:
    for text, label in ((POSITIVE, "positive"), ("dull, lifeless and far too long", "negative")):
        assert main(["predict", EMBEDDED, text]) == 0
        assert capsys.readouterr().out.startswith(label)


@pytest.mark.parametrize("texts", [[POSITIVE], [POSITIVE, "and so it is"]], ids=["one", "pair"])
@pytest.mark.parametrize("name", ["bf16", "int8", "e4m3", "e5m2"])
def test_predict_quantized(name: str, texts: list[str], tmp_path: Path, capsys: Capture) -> None:
    result = run_json(["predict", EMBEDDED, *texts, "--format", name], tmp_path)
    assert result["format"] == name
    found = np.array(list(result["logits"].values()))
    error = np.abs(found - expected_logits(*texts)).max()
    assert 0 < error < 0.5
    from_where = (
        "" if name == "bf16" else f"scales: from the sentences of {REVIEWS / 'train.tsv'}\n"
    )
    assert capsys.readouterr().err == from_where


# Other accumulators


@pytest.mark.parametrize("command", ["compare", "evaluate", "predict"])
def test_accumulate(command: str, data: Path, tmp_path: Path) -> None:
    """In place of the recipe's, also of one from a file; and as the library does it."""
    sums = "hopper-fast"
    recipe = replace(PRESETS["e4m3"], name="mine", accumulate="float32")
    save_recipe(recipe, tmp_path / "mine.json")
    job = prepare(EMBEDDED, "sst2", data)
    reference, expected, exact = run(
        job,
        [PRESETS["fp32"], replace(recipe, accumulate=sums), replace(recipe, accumulate="exact")],
    )
    assert not np.array_equal(expected.logits, exact.logits)
    options = ["--formats" if command == "compare" else "--format", str(tmp_path / "mine.json")]
    if command == "predict":
        text = (data / "dev.tsv").read_text().split("\n")[1].split("\t")[0]
        argv = ["predict", EMBEDDED, text, "--calibration-data", str(data / "train.tsv")]
    else:
        argv = arguments(command, data)
    result = run_json([*argv, *options, "--accumulate", sums], tmp_path)
    row = result if command == "predict" else result["rows"][-1]
    assert (row["format"], row["accumulate"]) == ("mine", sums)
    if command == "compare":
        change = evaluation.compare_with(reference, expected)
        assert row["relative_logit_error"] == change["relative_logit_error"]
    elif command == "evaluate":
        assert_same_bits(np.array(result["logits"]).astype(np.float32), expected.logits)
    else:
        others = run_json([*argv, *options, "--accumulate", "exact"], tmp_path)
        assert others["logits"] != result["logits"]
        np.testing.assert_allclose(list(row["logits"].values()), expected.logits[0], atol=0.02)


@pytest.mark.parametrize("command", ["compare", "evaluate", "predict"])
def test_accumulation_that_a_format_cannot_have(
    command: str, data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before anything is computed."""
    monkeypatch.setattr(Model, "__call__", None)
    argv = ["predict", EMBEDDED, "a film"] if command == "predict" else arguments(command, data)
    option = "--formats" if command == "compare" else "--format"
    assert main([*argv, option, "int8", "--accumulate", "hopper"]) == 2
    assert only_line(capsys) == (
        "recipe int8: encoder.layer.0.attention.self.query:a: "
        "accumulate 'hopper': expected E4M3FN or E5M2, found INT8"
    )


@pytest.mark.parametrize("mode", ["hopper", "bfloat16"])
def test_accumulate_of_a_quantized_checkpoint(mode: str, data: Path, tmp_path: Path) -> None:
    """The codes and scales are the checkpoint's."""
    out = tmp_path / "quantized"
    command, model, *options = arguments("quantize", data, "--recipe", "e4m3")
    assert main([command, model, str(out), *options]) == 0
    plain = run_json(
        arguments("evaluate", data, "--format", "e4m3", "--accumulate", mode), tmp_path
    )
    stored = run_json(arguments("evaluate", data, "--accumulate", mode, model=out), tmp_path)
    assert stored["rows"][0]["accumulate"] == mode
    assert stored["logits_sha256"] == plain["logits_sha256"]


def test_predict_a_score(tmp_path: Path, capsys: Capture) -> None:
    model = write_checkpoint(tmp_path / "model", labels=("similarity",))
    result = run_json(["predict", str(model), "the film", "the movie"], tmp_path)
    assert result.keys() == {"model", "format", "accumulate", "golden", "logits"}
    score = result["logits"]["similarity"]
    assert capsys.readouterr().out == f"similarity  {score:.4f}\n"


# info


def test_info(tmp_path: Path, capsys: Capture) -> None:
    result = run_json(["info", EMBEDDED], tmp_path)
    model = bert_numpy.load(EMBEDDED)
    assert result["model"] == EMBEDDED
    assert Path(result["folder"]).is_dir()
    assert (result["hidden_size"], result["num_hidden_layers"]) == (128, 2)
    assert result["labels"] == ["negative", "positive"]
    assert result["weight_bytes_fp32"] == model.weight_bytes == 4 * result["parameters"]
    work = prepare(EMBEDDED, "sst2", REVIEWS, limit=1, calibration_samples=1)
    (quantized,) = run(work, [PRESETS["e4m3"]])
    assert result["weight_bytes_8bit"] == quantized.weight_bytes
    assert "decoded_weight_bytes" not in result  # which a float model has none of
    assert result["quantized_products"] == 16
    output = capsys.readouterr().out
    assert re.search(r"^parameters +4,386,178$", output, re.MULTILINE)
    assert re.search(r"^labels +negative, positive$", output, re.MULTILINE)
    assert re.search(
        r"^encoder +bert, 2 layers of width 128, 2 attention heads$", output, re.MULTILINE
    )
    assert re.search(r"^quantization +none: ", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("labels", "problem", "text"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, "3 classes, 0 to 2, which config.json does not"),
        (("LABEL_0",), None, "one score"),
        (("LABEL_0",), "regression", "one score"),
        (("stars",), "regression", "one score: stars"),
        (("a", "b"), "multi_label_classification", "a, b (several may apply)"),
    ],
)
def test_info_on_labels(
    labels: tuple[str, ...], problem: str | None, text: str, tmp_path: Path, capsys: Capture
) -> None:
    overrides = {} if problem is None else {"problem_type": problem}
    model = write_checkpoint(tmp_path / "model", labels=labels, config_overrides=overrides)
    result = run_json(["info", str(model)], tmp_path)
    assert result["labels"] == list(labels)
    output = capsys.readouterr().out
    assert re.search(rf"^labels +{re.escape(text)}", output, re.MULTILINE)
    assert "LABEL" not in output


def test_info_wraps_many_labels(tmp_path: Path, capsys: Capture) -> None:
    labels = [f"B-KIND-{i}" for i in range(40)]
    overrides = {"architectures": ["BertForTokenClassification"]}
    folder = tmp_path / ("a folder of a long name, " * 6 + "too long")
    model = write_checkpoint(folder, labels=labels, config_overrides=overrides)
    assert main(["info", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"folder        {model}" in lines
    first = next(i for i, line in enumerate(lines) if line.startswith("labels "))
    last = next(i for i, line in enumerate(lines) if line.startswith("quantization "))
    assert all(80 < len(line) <= 100 for line in lines[first : last - 1])
    assert ", ".join(labels) == " ".join(line[14:] for line in lines[first:last])


@pytest.mark.parametrize(
    ("labels", "problem", "shown"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), None, {"class 0", "class 1", "class 2"}),
        (("LABEL_0", "LABEL_1"), "multi_label_classification", {"class 0", "class 1"}),
        (("LABEL_0", "LABEL_1"), "regression", {"score 0", "score 1"}),
        (("LABEL_0",), None, {"score"}),
        (("LABEL_0", "bad"), None, {"LABEL_0", "bad"}),
    ],
)
def test_predict_names_classes(
    labels: tuple[str, ...], problem: str | None, shown: set[str], tmp_path: Path, capsys: Capture
) -> None:
    """In JSON the labels are those of config.json."""
    overrides = {} if problem is None else {"problem_type": problem}
    model = write_checkpoint(tmp_path / "model", labels=labels, config_overrides=overrides)
    result = run_json(["predict", str(model), "a film"], tmp_path)
    assert set(result["logits"]) == set(labels)
    lines = capsys.readouterr().out.splitlines()
    assert {re.split("  +", line)[0] for line in lines} == shown


def test_predict_names_classes_of_tokens(tmp_path: Path, capsys: Capture) -> None:
    overrides = {"architectures": ["BertForTokenClassification"]}
    labels = [f"LABEL_{i}" for i in range(12)]
    model = write_checkpoint(tmp_path / "model", labels=labels, config_overrides=overrides)
    result = run_json(["predict", str(model), "a good film"], tmp_path)
    rows = [re.split("  +", line)[:2] for line in capsys.readouterr().out.splitlines()]
    expected = [
        [one["token"], one["label"].replace("LABEL_", "class ")] for one in result["tokens"]
    ]
    assert rows == expected


def test_info_on_a_quantized_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "quantized"
    assert main(["quantize", EMBEDDED, str(out), "--format", "INT8-outliers", "-q"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == (f"written: {out}\n", "")
    result = run_json(["info", str(out)], tmp_path)
    assert result["format"] == "int8-outliers"
    assert result["decoded_weight_bytes"] == 0  # products of outliers take dequantized weights
    output = re.sub(r"\n {10,}", " ", capsys.readouterr().out)  # where a text is wrapped
    lines = dict(re.split(" {2,}", line.strip()) for line in output.splitlines())
    assert lines["decoded weights"] == "none: every product takes the codes"
    assert lines["quantization"].startswith("recipe int8-outliers, stored in the checkpoint;")
    assert lines["linear layers"] == (
        "inputs in INT8 per token, weights in INT8 per channel, outliers beyond 6 left out by "
        "element"
    )
    assert lines["P V"] == "P in INT8 per token, V in INT8 per tensor"
    assert "{" not in "".join(lines.values())


@pytest.mark.parametrize(("name", "size"), [("e4m3", 8), ("int8-token", 4), ("e5m2", 0)])
def test_info_on_decoded_weights(name: str, size: int, tmp_path: Path, capsys: Capture) -> None:
    """As many bytes as a run of the model keeps: float64 values, float32 of integers."""
    source, out = write_checkpoint(tmp_path / "source"), tmp_path / "out"
    model = bert_numpy.load(source)
    batch = bert_numpy.load_tokenizer(source).batch(["a warm film"])
    quantized = bert_numpy.apply_recipe(model, name, bert_numpy.calibrate(model, [batch]))
    bert_numpy.save_quantized(quantized, source, out)
    result = run_json(["info", str(out)], tmp_path)
    linear = 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert result["decoded_weight_bytes"] == size * linear
    assert result["decoded_weight_budget"] == 1 << 30
    loaded = bert_numpy.load(out)
    loaded(**batch)
    assert loaded.engine.keywords["kept"].nbytes == size * linear  # type: ignore[attr-defined]
    output = capsys.readouterr().out
    if size:
        text = f"{size * linear:,} bytes, kept after a run up to a total of 1,073,741,824"
        assert re.search(rf"^decoded weights +{text}$", output, re.MULTILINE)


def test_info_of_a_bare_encoder(tmp_path: Path, capsys: Capture) -> None:
    overrides = {"architectures": ["BertModel"]}
    model = write_checkpoint(tmp_path / "model", config_overrides=overrides)
    assert main(["info", str(model)]) == 0
    assert "none: a bare encoder" in capsys.readouterr().out


# Help.


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help(command: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    if not command:
        assert all(name in text for name in (*COMMANDS, *PRESETS))
        return
    options = re.findall(r"^  (?:-\w, )?--([\w-]+).*?(?:  |\n {20})(.*)$", text, re.MULTILINE)
    assert {"help", "json", "debug"} <= {name for name, _ in options}
    assert len(options) == len(re.findall(r"^  -", text, re.MULTILINE))
    for name, description in options:
        assert re.match(r" *[a-z-]", description), name
    if command[0] in ("compare", "evaluate"):
        assert all(task in text for task in TASKS)
        for default in ("256", "128", "32"):
            assert f"(default: {default})" in text


@pytest.mark.parametrize("argv", [["--version"], ["-V"], ["-qV"]])
def test_version(argv: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == npfp8.__version__


# Bad input: one line, exit code 2.


def broken_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def breaking(model: Path) -> None:
        tensors = random_tensors(CONFIG, 2, seed=0)
        change(tensors)
        write_tensors(model, tensors)

    return breaking


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


QUERY = "bert.encoder.layer.1.attention.self.query.weight"

#: What is done to a model's folder, and what the message says: the file first, the key, the fault.
BROKEN_MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing folder": (shutil.rmtree, r"{model}: expected a model folder, found no such folder"),
    "no weights": (
        lambda model: (model / "model.safetensors").unlink(),
        r"{model}: expected model.safetensors or .*, found neither",
    ),
    "truncated weights": (truncated, r"{model}/model.safetensors: expected .*, found"),
    "weights are text": (
        lambda model: (model / "model.safetensors").write_text("not a tensor at all"),
        r"{model}/model.safetensors: expected .*, found",
    ),
    "wrong shape": (
        broken_weights(lambda tensors: tensors.update({QUERY: np.zeros((16, 8), np.float32)})),
        rf"{{model}}/model.safetensors: tensor '{QUERY}': expected shape \(16, 16\).*"
        r"found \(16, 8\)",
    ),
    "missing key": (
        broken_weights(lambda tensors: tensors.pop(QUERY)),
        r"{model}/model.safetensors: tensor 'encoder.layer.1.attention.self.query.weight': "
        r"expected .*missing",
    ),
    "NaN": (
        broken_weights(lambda tensors: tensors[QUERY].__setitem__((3, 4), np.nan)),
        rf"{{model}}/model.safetensors: tensor '{QUERY}': expected finite .*nan at \[3, 4\]",
    ),
    "no config": (
        lambda model: (model / "config.json").unlink(),
        r"{model}/config.json: no such file",
    ),
    "config is no JSON": (
        lambda model: (model / "config.json").write_text("{\n'a':"),
        r"{model}/config.json: expected JSON, found",
    ),
    "missing config key": (
        lambda model: (model / "config.json").write_text('{"model_type": "bert"}'),
        r"{model}/config.json: key '\w+': expected .*found nothing",
    ),
    "no tokenizer": (
        lambda model: [(model / name).unlink() for name in ("vocab.txt", "tokenizer.json")],
        r"{model}: expected tokenizer.json, vocab.txt or vocab.json, found none of them",
    ),
    "tokenizer is text": (
        lambda model: (model / "tokenizer.json").write_text("no JSON"),
        r"{model}/tokenizer.json: expected a tokenizer, found",
    ),
}


def only_line(capsys: Capture) -> str:
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.endswith("\n")
    assert output.err.count("\n") == 1
    assert output.err.startswith("bert-numpy: ")
    assert "Traceback" not in output.err
    return output.err.removeprefix("bert-numpy: ").rstrip("\n")


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (command, fault)
        for command in ("compare", "evaluate", "predict", "info")
        for fault in BROKEN_MODELS
        if command != "info" or "tokenizer" not in fault  # which it does not read
    ],
)
def test_broken_model(
    command: str, fault: str, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    model = write_checkpoint(tmp_path / "model")
    breaking, message = BROKEN_MODELS[fault]
    breaking(model)
    argv = [command, str(model)]
    argv += {"predict": ["a film"], "info": []}.get(
        command, ["--task", "sst2", "--data", str(data)]
    )
    assert main(argv) == 2
    pattern = message.replace("{model}", re.escape(str(model)))
    assert re.match(pattern, only_line(capsys))


def test_file_as_model(data: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.bin"
    path.touch()
    assert main(["info", str(path)]) == 2
    assert only_line(capsys) == f"{path}: expected a model folder, found a file"


def test_model_of_another_size(data: Path, tmp_path: Path, capsys: Capture) -> None:
    model = write_checkpoint(tmp_path / "model", labels=("a", "b", "c"))
    assert main(arguments("compare", data, model=model)) == 2
    assert only_line(capsys) == "task sst2: expected a model with 2 outputs, found 3: a, b, c"


@pytest.mark.parametrize("command", ["compare", "evaluate", "predict"])
def test_bare_encoder(command: str, data: Path, tmp_path: Path, capsys: Capture) -> None:
    overrides = {"architectures": ["BertModel"]}
    model = write_checkpoint(tmp_path / "model", config_overrides=overrides)
    argv = arguments(command, data, model=model)
    assert main(["predict", str(model), "a film"] if command == "predict" else argv) == 2
    message = f"{model}: expected a BertForSequenceClassification, found BertModel"
    if command == "predict":
        message = (
            f"{model}: expected a model for sequence classification, question answering, masked "
            "language modelling, pre-training, next sentence prediction, token classification, "
            "sentence embeddings, found BertModel (none: a bare encoder)"
        )
    assert only_line(capsys) == message


def replaced(path: str, text: str) -> Callable[[Path], Any]:
    return lambda data: (data / path).write_text(text)


#: What is done to the data's folder, and what the message says.
BROKEN_DATA: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing folder": (shutil.rmtree, "{data}: no such file or folder"),
    "missing file": (
        lambda data: (data / "dev.tsv").unlink(),
        "{data}: expected one of dev.tsv, dev.jsonl, validation.jsonl, validation-*-of-*.parquet, "
        "here or in SST-2, found none of them",
    ),
    "no training file": (
        lambda data: (data / "train.tsv").unlink(),
        "{data}: expected one of train.tsv, train.jsonl, train-*-of-*.parquet, "
        "here or in SST-2, found none of them. The training examples are to calibrate on: in "
        "their place give a file of examples (--calibration-data) or a saved calibration "
        "(--calibration)",
    ),
    "empty file": (
        replaced("dev.tsv", ""),
        "{data}/dev.tsv: expected a header and examples, found an empty file",
    ),
    "empty training file": (
        replaced("train.tsv", "sentence\tlabel\n"),
        "{data}/train.tsv: expected examples, found none",
    ),
    "malformed row": (
        replaced("dev.tsv", "sentence\tlabel\ngood\t1\nbad\n"),
        "{data}/dev.tsv line 3: expected 2 columns, found 1",
    ),
    "malformed label": (
        replaced("train.tsv", "sentence\tlabel\ngood\tyes\n"),
        "{data}/train.tsv line 2: expected label 0 or 1, found 'yes'",
    ),
}


@pytest.mark.parametrize("fault", BROKEN_DATA)
def test_broken_data(fault: str, data: Path, capsys: Capture) -> None:
    breaking, message = BROKEN_DATA[fault]
    breaking(data)
    assert main(arguments("compare", data)) == 2
    assert only_line(capsys) == message.replace("{data}", str(data))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max-length", "513"], "max_length: expected 3..512, found 513"),
        (["--max-length", "2"], "max_length: expected 3..512, found 2"),
        (["--calibration-data", "/missing.tsv"], "/missing.tsv: no such file"),
        (["--calibration-data", "/"], "/: expected a file, found"),
    ],
)
def test_bad_values(more: list[str], message: str, data: Path, capsys: Capture) -> None:
    assert main(arguments("compare", data, *more)) == 2
    assert only_line(capsys).startswith(message)


@pytest.mark.parametrize("texts", [[""], [" \t"], [POSITIVE, ""], ["", POSITIVE]])
def test_blank_text(texts: list[str], capsys: Capture) -> None:
    assert main(["predict", EMBEDDED, *texts]) == 2
    blank = next(text for text in texts if not text.strip())
    assert only_line(capsys).endswith(f"expected words, found {blank!r}")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["convert"], "'convert' is not a command"),
        (["compare"], "MODEL"),
        (["evaluate", EMBEDDED, "--data", "."], "--task"),
        (["evaluate", EMBEDDED, "--task", "sst2"], "--data"),
        (["predict", EMBEDDED], "TEXT"),
        (["predict", EMBEDDED, "a", "--accumulate", "fast"], "expected one of exact, float32, "),
        (["info", EMBEDDED, "--limit", "3"], "unknown option --limit"),
        *(
            (
                ["compare", EMBEDDED, "--task", "sst2", "--data", ".", option, value],
                f"argument {option}: expected a whole number of at least 1, found '{value}'",
            )
            for option in ("--limit", "--calibration-samples", "--max-length", "--batch-size")
            for value in ("0", "-1", "1.5", "many")
        ),
    ],
)
def test_bad_options(argv: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err.splitlines()[-1]


def test_debug_shows_where(tmp_path: Path, capsys: Capture) -> None:
    assert main(["info", str(tmp_path / "none"), "--debug"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last):\n")
    assert "BertNumpyError: " in text.splitlines()[-1]


@pytest.mark.parametrize("debug", [False, True])
def test_bad_input_of_a_process(debug: bool, tmp_path: Path) -> None:
    done = run_process("info", "./none", *["--debug"] * debug, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    last = "./none: expected a model folder, found no such folder"
    if debug:
        assert done.stderr.startswith("Traceback")
        assert done.stderr.splitlines()[-1].endswith(last)
    else:
        assert done.stderr == f"bert-numpy: {last}\n"


def test_hub_that_cannot_be_asked(tmp_path: Path) -> None:
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = run_process("info", "nobody/nothing", cwd=tmp_path, environment=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("bert-numpy: nobody/nothing: expected a model folder or a hub id")
    assert done.stderr.count("\n") == 1


# Interrupts.


def test_interrupt(data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    target = data / "result.json"
    target.write_text("old")

    def interrupted(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(job, "evaluate_task", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(arguments("compare", data, "--json", str(target))) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert only_line(capsys) == "interrupted"
    assert target.read_text() == "old"


# Says when interrupts are taken care of, which is before anything of the package is imported.
_GUARDED = """
import signal, sys
from bert_numpy import __main__
set_handler, said = signal.signal, []
def told(*arguments):
    before = set_handler(*arguments)
    if not said:
        said.append(print("begun", file=sys.stderr, flush=True))
    return before
signal.signal = told
sys.exit(__main__.main())
"""


@contextmanager
def waiting_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that has begun to handle signals, and waits in the end for a reader of a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    argv = ["predict", EMBEDDED, "film", "--format", "e4m3", "--json", str(pipe)]
    with subprocess.Popen(
        [sys.executable, "-c", _GUARDED, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has its children ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 3.0])
@pytest.mark.parametrize("interrupts", [1, 2])
def test_interrupt_of_a_process(interrupts: int, delay: float, tmp_path: Path) -> None:
    """Among the imports, in the work, or while it waits for a reader of its results."""
    with waiting_process(tmp_path) as process:
        time.sleep(delay)
        for _ in range(10):
            # Between Python's look for a signal and the wait for a reader one goes unnoticed.
            for _ in range(interrupts):
                process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=6)
                break
    lines = [line for line in err.splitlines() if not line.startswith("scales: ")]
    assert (process.returncode, out, lines) == (130, "", ["bert-numpy: interrupted"])


def test_interrupts_until_a_process_ends(tmp_path: Path) -> None:
    """Also while Python takes its handlers away: the exit code stays that of an interrupt."""
    with waiting_process(tmp_path) as process:
        time.sleep(2)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "bert-numpy: interrupted"
    assert process.returncode == 130


# JSON files.

VALUE = {"rows": [1, 2.5, None], "name": "caf\u00e9"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("old", [None, 0o600, 0o666, 0o640])
def test_permissions_follow_the_umask_or_the_old_file(
    mask: int, old: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    if old is not None:
        path.write_text("old")
        path.chmod(old)
    with umask(mask):
        report.write_json(str(path), VALUE)
        assert os.umask(mask) == mask
    assert stat.S_IMODE(path.stat().st_mode) == (0o666 & ~mask if old is None else old)
    assert json.loads(path.read_text(encoding="utf-8")) == VALUE


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    report.write_json(str(path), {"a": [math.nan, (math.inf, 1.0)], "b": {"c": -math.inf}})
    assert json.loads(path.read_text()) == {"a": [None, [None, 1.0]], "b": {"c": None}}


def test_json_is_readable(data: Path, tmp_path: Path) -> None:
    """A list of numbers is on one line, whatever is short is, and the rest is indented."""
    value = {"numbers": list(range(200)), "short": {"a": [1, None]}, "rows": [["x" * 99], "b"]}
    path = tmp_path / "result.json"
    report.write_json(str(path), value | {"empty": [], "logits": [[0.5, -1e-9], [2, math.nan]]})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines == [
        "{",
        f' "numbers": {list(range(200))},',
        ' "short": {"a": [1, null]},',
        ' "rows": [',
        f'  ["{"x" * 99}"],' if len(lines) == 11 else "  [",
        *([] if len(lines) == 11 else [f'   "{"x" * 99}"', "  ],"]),
        '  "b"',
        " ],",
        ' "empty": [],',
        ' "logits": [[0.5, -1e-09], [2, null]]',
        "}",
    ]
    result = run_json(arguments("evaluate", data), tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith(' "predictions": [') for line in lines) == 1
    assert len(lines) < 3 * len(result) + len(result["logits"]) + len(result["sites"])


def test_records_in_json_are_lines(tmp_path: Path) -> None:
    """An answer with its place and numbers is one line; an object that is no list's is not."""
    answer = {"text": "a" * 90, "start": 3, "probability": 0.25}
    records = [answer, answer | {"text": "a" * 300}, {"format": "x" * 90, "metrics": {"f1": 0.5}}]
    path = tmp_path / "result.json"
    report.write_json(str(path), {"answers": records, "answer": answer})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"answers": records, "answer": answer}
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert lines.count(json.dumps(answer)) == 1
    assert lines.count('"start": 3') == 2
    assert lines.count('"metrics": {"f1": 0.5}') == 1


@pytest.mark.parametrize("place", ["missing/result.json", "."])
def test_file_that_cannot_be_written(place: str, tmp_path: Path, capsys: Capture) -> None:
    target = tmp_path / place
    assert main(["predict", EMBEDDED, POSITIVE, "--json", str(target)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bert-numpy: {target}: cannot be written: ")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    """A full disk, here a limit on the size of files, shows in the middle of writing."""
    target = tmp_path / "result.json"
    target.write_text("old")
    code = (
        "import resource, sys; from bert_numpy.commands.report import write_json; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "write_json(sys.argv[1], {'rows': list(range(100000))})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, target], capture_output=True, text=True, check=False
    )
    assert f"BertNumpyError: {target}: cannot be written: File too large" in done.stderr
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report.write_json(str(target), VALUE)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_pipe_is_written_into(tmp_path: Path) -> None:
    """A pipe, like a device, must not be replaced by a file (``--json /dev/null``)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    report.write_json(str(pipe), VALUE)
    reader.join(timeout=10)
    assert [json.loads(text) for text in seen] == [VALUE]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


# Tables and progress bars.


def made_up_row(name: str, change: str) -> dict[str, Any]:
    return {
        "format": name,
        "metrics": {"matthews_correlation": 0.30701, "spearmanr": math.nan},
        change: 12 if change == "flips" else 0.04567,
        "relative_logit_error": 0.12345,
        "weight_bytes": 1_317_544_140,
        "seconds": 1234.567,
    }


@pytest.mark.parametrize("terminal", [None, "dumb", "xterm"])
@pytest.mark.parametrize("columns", ["1", "40", "80", "300"])
@pytest.mark.parametrize("change", ["flips", "mean_abs_difference"])
def test_table_is_never_cut(
    change: str,
    columns: str,
    terminal: str | None,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TERM", terminal or "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal is not None)
    title = "/models/[bold]a[/bold]/" + "long/" * 30
    report.print_comparison(title, [made_up_row("fp32", change), made_up_row("e4m3", change)])
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert text.startswith(f"{title}\n")
    header, *rows = table_of(text)
    assert header == [
        *("format", "matthews correlation", "spearmanr", change.replace("_", " ")),
        *("relative logit error", "weight bytes", "seconds"),
    ]
    shown = "12" if change == "flips" else "0.0457"
    numbers = ["30.70", "nan", shown, "0.1235", "1,317,544,140", "1234.57"]
    assert rows == [["FP32", *numbers], ["E4M3", *numbers]]
    if terminal != "dumb":  # of unknown width
        wraps = any(line.startswith("|  ") for line in text.splitlines())
        assert wraps == (terminal is None or columns != "300")
        table = text.splitlines()[1:]
        assert wraps == (max(map(len, table)) <= 100)


def test_a_table_within_100_columns_is_not_broken(capsys: Capture) -> None:
    row = made_up_row("fp32", "flips") | {"metrics": {"accuracy": 0.9}}
    report.print_comparison("a model", [row])
    assert any(
        line.startswith("| format | accuracy |") for line in capsys.readouterr().out.splitlines()
    )


@pytest.mark.parametrize("color", ["0", "1"])
def test_no_progress_bars_in_a_log(
    color: str, data: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where colours are asked for, as CI services do."""
    monkeypatch.setenv("FORCE_COLOR", color)
    assert main(arguments("compare", data, "--formats", "e4m3")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_quiet(place: str, data: Path) -> None:
    """Neither notes nor progress, even on a terminal; the results are the same."""
    argv = ["predict", EMBEDDED, "a film", "--format", "e4m3"]
    loud, seen = on_a_terminal(argv)
    assert "scales: from the sentences" in seen
    quiet, seen = on_a_terminal(["-q", *argv] if place == "before" else [*argv, "--quiet"])
    assert (quiet, seen) == (loud, "")


def test_progress_bars_on_a_terminal(data: Path) -> None:
    out, seen = on_a_terminal(arguments("compare", data, "--formats", "e4m3", "--json", "-"))
    for shown in ("calibration", "40/40", "fp32", "e4m3", "30/30"):
        assert shown in seen
    check_comparison(json.loads(out), EMBEDDED, "sst2", 30)


def test_row_without_a_reference(data: Path) -> None:
    (result,) = run(prepare(EMBEDDED, "sst2", data, limit=3), [PRESETS["e4m3"]])
    row = report.comparison_row(result, None)
    assert "flips" not in row
    assert "relative_logit_error" not in row
    assert report.comparison_row(result, result)["flips"] == 0
    assert row["quantized_elements"] > row["saturated_elements"] + row["underflowed_elements"] >= 0


def test_submission(data: Path, tmp_path: Path, capsys: Capture) -> None:
    """Predictions as for the same texts in a development set, by the numbers of the test set."""
    lines = (data / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines]
    rows = [f"{3 * i}\t{text}" for i, text in enumerate(texts)]
    (data / "test.tsv").write_text("index\tsentence\n" + "\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    argv = arguments("submit", data, "--format", "e4m3", str(tmp_path / "out"))
    assert main(argv) == 0
    file = tmp_path / "out" / "SST-2.tsv"
    lines = capsys.readouterr().out.splitlines()
    expected = run_json(arguments("evaluate", data, "--format", "e4m3"), tmp_path)["predictions"]
    shown = [f"{3 * i}\t{prediction}" for i, prediction in enumerate(expected)]
    assert file.read_text().splitlines() == ["index\tprediction", *shown]
    assert lines[:2] == [f"written: {file}", f"{EMBEDDED}, sst2, e4m3, 30 predictions:"]
    counts = [[name, str(expected.count(i))] for i, name in enumerate(("negative", "positive"))]
    assert [line.split()[:2] for line in lines[2:]] == counts
    shares = [float(line.split()[2]) for line in lines[2:]]
    assert shares == [pytest.approx(100 * int(count) / 30, abs=0.05) for _, count in counts]
    assert len({len(line) for line in lines[2:]}) == 1  # in columns

    argv[-1] = str(tmp_path / "AX.tsv")
    assert main(argv) == 0
    assert (tmp_path / "AX.tsv").read_text() == file.read_text()
    argv[-1] = str(tmp_path / "none" / "AX.tsv")
    assert main(argv) == 2
    assert "AX.tsv: cannot be written: " in capsys.readouterr().err


def test_calibration_file(data: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "scales.safetensors"
    argv = arguments("evaluate", data, "--format", "e4m3", "--save-calibration", str(file))
    assert main(argv) == 0
    capsys.readouterr()
    calibration = load_calibration(file)
    name = "encoder.layer.1.output.dense:a"
    seen = calibration.operands[name]

    found = run_json(["calibration", str(file)], tmp_path)
    assert found["samples"] == 40
    assert set(found["operands"]) == set(calibration.operands)
    row = found["operands"][name]
    assert (row["elements"], row["low"], row["high"]) == (seen.count, seen.low, seen.high)
    assert 0 < row["p99"] <= row["p99.9"] <= row["p99.99"] <= max(-row["low"], row["high"])
    assert row["formats"]["E4M3"]["scale"] == np.float32(seen.absmax) / np.float32(448)
    assert row["formats"]["INT8"]["scale"] == np.float32(seen.absmax) / np.float32(127)
    assert 28 < row["formats"]["E4M3"]["sqnr"] < 34  # 4 significant bits, whatever the range
    text = capsys.readouterr().out
    header, *rows = table_of(text)
    assert header == ["operand", "elements", "low", "high", "p99.9", "INT8", "E4M3", "E5M2"]
    names, layer = [], ""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    for cells, line in zip(rows, lines, strict=True):
        if cells[0].startswith("layer "):
            layer = f"encoder.layer.{cells[0].removeprefix('layer ')}."
            assert not any(cells[1:])
        else:
            names.append(f"{layer if line.startswith('|   ') else ''}{cells[0]}")
    assert names == list(calibration.operands)
    assert max(map(len, text.splitlines())) <= 100

    many = {name.replace("layer.1.", f"layer.{n}."): seen for n in (10, 2, 1)
            for name, seen in calibration.operands.items() if "layer.1." in name}  # fmt: skip
    save_calibration(replace(calibration, operands=many), file)
    assert main(["calibration", str(file)]) == 0
    shown = re.findall(r"layer (\d+)", capsys.readouterr().out)
    assert shown == ["1", "2", "10"]

    assert main(["calibration", str(file), "--operand", "nothing*"]) == 2
    assert "expected operands that fit 'nothing*', found none" in capsys.readouterr().err


def test_calibration_figures(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra: plot)")
    file = tmp_path / "scales.safetensors"
    argv = arguments("evaluate", data, "--format", "e4m3", "--save-calibration", str(file))
    assert main(argv) == 0
    argv = ["calibration", str(file), "--operand", "*layer.0*context:*", "--plot"]
    drawn = []
    for name in ("a", "b"):
        assert main([*argv, str(tmp_path / name)]) == 0
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    site = "encoder.layer.0.attention.context"
    assert set(drawn[0]) == {"sqnr.png", f"{site}-a.png", f"{site}-b.png"}
    assert drawn[0] == drawn[1]
    assert all(content.startswith(b"\x89PNG") for content in drawn[0].values())


def test_figures_without_matplotlib(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "scales.safetensors"
    argv = arguments("evaluate", data, "--format", "e4m3", "--save-calibration", str(file))
    assert main(argv) == 0
    argv = ["calibration", str(file), "--plot", str(tmp_path)]
    code = (
        "import sys; sys.modules['matplotlib'] = None; from bert_numpy.commands.main import main; "
        f"sys.exit(main({argv!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "bert-numpy: figures: expected matplotlib, found none: pip install 'fp8-bert-numpy[plot]'\n"
    )

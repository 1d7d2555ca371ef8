"""Evaluation: batches, logits in the data's order, scores, comparisons, and whole jobs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import assert_same_calibrations, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Model, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.evaluation.evaluate import (
    Evaluation,
    batches,
    calibrate_on,
    compare_with,
    evaluate,
    evaluate_task,
    predict_logits,
)
from bert_numpy.evaluation.job import Job, evaluate_job, prepare, run
from bert_numpy.progress import Progress
from bert_numpy.tasks.glue import TASKS, Examples
from bert_numpy.tasks.squad import SQUAD, Questions
from bert_numpy.tasks.tokenization import EncodedText

WORDS = ["the", "film", "was", "very", "warm", "and", "funny", "not", "dull", "bad", "actor"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of 1 to 12 words."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(generator.choice(WORDS, generator.integers(1, 13)).tolist()) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return bert_numpy.load(folder)


@pytest.fixture(scope="module")
def encoded(folder: Path) -> list[EncodedText]:
    return bert_numpy.load_tokenizer(folder).encode(sentences(23))


def undecided(model: Model, encoded: list[EncodedText]) -> Model:
    """The model with a bias of the head that makes every class likely, as random ones are not."""
    bias = model.weights["classifier.bias"] - predict_logits(model, encoded).mean(axis=0)
    return replace(model, weights=dict(model.weights) | {"classifier.bias": bias})


def encoded_texts() -> st.SearchStrategy[list[EncodedText]]:
    text = st.lists(st.integers(1, 50), min_size=1, max_size=9).map(
        lambda ids: EncodedText(tuple(ids), tuple(i % 2 for i in ids), False)
    )
    return st.lists(text, max_size=30)


@given(encoded_texts(), st.integers(1, 12))
def test_batches_hold_every_text_once(encoded: list[EncodedText], size: int) -> None:
    found = list(batches(encoded, size))
    rows = [row for part, _ in found for row in part]
    assert sorted(rows) == list(range(len(encoded)))
    lengths = [len(encoded[row].input_ids) for row in rows]
    assert lengths == sorted(lengths, reverse=True)
    for part, arrays in found:
        assert len(part) == size or part is found[-1][0]
        longest = max(len(encoded[row].input_ids) for row in part)
        for array in arrays.values():
            assert array.shape == (len(part), longest)
        for row, ids, mask, types in zip(
            part,
            arrays["input_ids"].tolist(),
            arrays["attention_mask"].tolist(),
            arrays["token_type_ids"].tolist(),
            strict=True,
        ):
            length = sum(mask)
            assert mask == [1] * length + [0] * (longest - length)
            assert tuple(ids[:length]) == encoded[row].input_ids
            assert tuple(types[:length]) == encoded[row].token_type_ids


def test_texts_of_one_length_keep_their_order(encoded: list[EncodedText]) -> None:
    rows = [row for part, _ in batches(encoded, 4) for row in part]
    assert rows == sorted(rows, key=lambda row: (-len(encoded[row].input_ids), row))


@pytest.mark.parametrize("size", [1, 4, 23, 100])
def test_logits_are_in_the_order_of_the_data(
    model: Model, encoded: list[EncodedText], size: int
) -> None:
    found = predict_logits(model, encoded, size)
    assert found.dtype == np.float32
    expected = [model([text.input_ids], None, [text.token_type_ids]).logits[0] for text in encoded]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert len({tuple(row) for row in np.round(expected, 3).tolist()}) > 15  # an order to keep


def test_progress_counts_every_text(model: Model, encoded: list[EncodedText]) -> None:
    for function in (predict_logits, calibrate_on):
        done: list[int] = []
        function(model, encoded, 5, done.append)
        assert done == [5, 5, 5, 5, 3]


def test_calibrate_on_sees_every_text(model: Model, encoded: list[EncodedText]) -> None:
    found = calibrate_on(model, encoded, 4)
    expected = calibrate(model, [arrays for _, arrays in batches(encoded, 4)])
    assert_same_calibrations(found, expected)
    assert found.samples == 23
    assert calibrate_on(model, encoded[:5], 4).operands["classifier:a"].count == 5 * 16
    assert found.operands["classifier:a"].count == 23 * 16


def test_bare_encoder_has_no_logits(tmp_path: Path, encoded: list[EncodedText]) -> None:
    overrides = {"architectures": ["BertModel"]}
    bare = bert_numpy.load(write_checkpoint(tmp_path, config_overrides=overrides))
    with pytest.raises(BertNumpyError) as error:
        predict_logits(bare, encoded)
    assert str(error.value) == (
        f"{tmp_path}: expected a BertForSequenceClassification, found BertModel"
    )


def test_nothing_to_evaluate(model: Model) -> None:
    quantized = apply_recipe(model, PRESETS["fp32"])
    for run_ in (
        lambda: evaluate(quantized, TASKS["mrpc"], [], np.empty(0, np.int64)),
        lambda: evaluate_task(quantized, SQUAD, Questions(()), []),
    ):
        with pytest.raises(BertNumpyError, match="expected at least one example, found none"):
            run_()


@pytest.mark.parametrize("name", PRESETS)
def test_evaluate(name: str, model: Model, encoded: list[EncodedText]) -> None:
    labels = np.arange(23) % 2
    named = replace(model.config, labels=TASKS["mrpc"].labels)
    model = undecided(replace(model, config=named), encoded)
    calibration = calibrate_on(model, encoded, hessians=PRESETS[name].by_gptq)
    quantized = apply_recipe(model, PRESETS[name], calibration)
    result = evaluate(quantized, TASKS["mrpc"], encoded, labels, 4)
    assert result.recipe == name
    assert_same_bits(result.logits, predict_logits(quantized, encoded, 4))
    assert result.predictions.dtype == np.int64
    assert result.predictions.tolist() == [int(b > a) for a, b in result.logits.tolist()]
    hits = int((result.predictions == labels).sum())
    both = int((result.predictions & labels).sum())
    ones = int(result.predictions.sum() + labels.sum())
    assert result.metrics == {"accuracy": hits / 23, "f1": 2 * both / ones}
    assert result.weight_bytes == quantized.weight_bytes
    assert result.seconds > 0
    weights_alone = name.endswith("-weights") or name.startswith("w4a16")
    assert bool(result.counts) == (name not in ("fp32", "bf16") and not weights_alone)


@pytest.mark.parametrize(
    ("labels", "task", "order"),
    [
        (("positive", "negative"), "sst2", [1, 0]),
        (("LABEL_0", "LABEL_1"), "sst2", [0, 1]),
        (("contradiction", "entailment", "neutral"), "mnli", [2, 0, 1]),
    ],
)
def test_classes_are_the_tasks(
    labels: tuple[str, ...], task: str, order: list[int], tmp_path: Path, encoded: list[EncodedText]
) -> None:
    """A head may have its outputs in another order than GLUE numbers its classes."""
    model = undecided(bert_numpy.load(write_checkpoint(tmp_path, labels=labels)), encoded)
    outputs = predict_logits(model, encoded).argmax(axis=1)
    assert len(set(outputs.tolist())) == len(labels)
    truth = np.array([order[output] for output in outputs])
    result = evaluate(apply_recipe(model, PRESETS["fp32"]), TASKS[task], encoded, truth)
    assert result.predictions.tolist() == truth.tolist()
    assert result.metrics == {"accuracy": 1.0}


def test_regression(tmp_path: Path, encoded: list[EncodedText]) -> None:
    model = bert_numpy.load(write_checkpoint(tmp_path, labels=("similarity",)))
    labels = np.linspace(0, 5, 23)
    result = evaluate(apply_recipe(model, PRESETS["fp32"]), TASKS["stsb"], encoded, labels)
    assert result.predictions.dtype == np.float64
    np.testing.assert_array_equal(result.predictions, result.logits[:, 0].astype(np.float64))
    expected = np.corrcoef(labels, result.predictions)[0, 1]
    assert result.metrics["pearson"] == pytest.approx(expected)
    assert list(result.metrics) == ["pearson", "spearmanr"]


def test_head_that_does_not_fit(model: Model, encoded: list[EncodedText]) -> None:
    with pytest.raises(BertNumpyError, match="task mnli: expected a model with 3 outputs, found 2"):
        evaluate(apply_recipe(model, PRESETS["fp32"]), TASKS["mnli"], encoded, np.zeros(23))


def evaluation(logits: np.ndarray, predictions: np.ndarray) -> Evaluation:
    return Evaluation("any", logits, predictions, {}, weight_bytes=0, seconds=0.0)


def logits_of(outputs: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    element = st.floats(-20, 20, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)

    def both(n: int) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
        array = hnp.arrays(np.float32, (n, outputs), elements=element)
        return st.tuples(array.filter(np.any), array)

    return st.integers(1, 12).flatmap(both)


def relative_error(base: np.ndarray, other: np.ndarray) -> float:
    pairs = zip(base.reshape(-1).tolist(), other.reshape(-1).tolist(), strict=True)
    difference = math.fsum((y - x) ** 2 for x, y in pairs)
    return math.sqrt(difference / math.fsum(x * x for x in base.reshape(-1).tolist()))


@given(logits_of(3))
def test_comparison_of_classes(pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, other = (evaluation(logits, logits.argmax(axis=1)) for logits in pair)
    found = compare_with(base, other)
    assert found.keys() == {"flips", "relative_logit_error"}
    differ = [a != b for a, b in zip(base.predictions, other.predictions, strict=True)]
    assert type(found["flips"]) is int
    assert found["flips"] == sum(differ)
    expected = relative_error(*pair)
    assert found["relative_logit_error"] == pytest.approx(expected, rel=1e-12)
    assert compare_with(base, base) == {"flips": 0, "relative_logit_error": 0.0}


@given(logits_of(1))
def test_comparison_of_scores(pair: tuple[np.ndarray, np.ndarray]) -> None:
    base, other = (evaluation(logits, logits[:, 0].astype(np.float64)) for logits in pair)
    found = compare_with(base, other)
    assert found.keys() == {"mean_abs_difference", "relative_logit_error"}
    scores = zip(*(logits[:, 0].tolist() for logits in pair), strict=True)
    differences = [abs(y - x) for x, y in scores]
    expected = math.fsum(differences) / len(differences)
    assert found["mean_abs_difference"] == pytest.approx(expected, rel=1e-12)
    assert found["relative_logit_error"] == pytest.approx(relative_error(*pair), rel=1e-12)


def write_sst2(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{text}\t{i % 2}" for i, text in enumerate(texts)]
    path.write_text("\n".join(["sentence\tlabel", *rows]))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks' folders, with SST-2 in it."""
    folder = tmp_path_factory.mktemp("glue")
    write_sst2(folder / "SST-2" / "dev.tsv", sentences(20, seed=1))
    write_sst2(folder / "SST-2" / "train.tsv", sentences(30, seed=2))
    return folder


def ids_of(folder: Path, texts: list[str]) -> list[EncodedText]:
    return bert_numpy.load_tokenizer(folder).encode(texts, max_length=128)


@pytest.mark.parametrize("place", [".", "SST-2", "SST-2/dev.tsv"])
def test_prepare(place: str, folder: Path, data: Path) -> None:
    job = prepare(folder, "sst2", data / place)
    assert job.model.name == str(folder)
    assert job.task is TASKS["sst2"]
    assert job.examples.texts == sentences(20, seed=1)
    assert job.examples.labels.tolist() == [0, 1] * 10
    assert job.encoded == ids_of(folder, sentences(20, seed=1))
    assert job.calibration_texts == ids_of(folder, sentences(30, seed=2))
    assert job.truncated == 0


def test_sample_for_calibration(folder: Path, data: Path) -> None:
    job = prepare(folder, "SST-2", data, calibration_samples=4)
    chosen = [sentences(30, seed=2)[i] for i in (0, 7, 15, 22)]
    assert job.calibration_texts == ids_of(folder, chosen)


@pytest.mark.parametrize(("limit", "count"), [(1, 1), (7, 7), (20, 20), (21, 20), (1000, 20)])
def test_limit(limit: int, count: int, folder: Path, data: Path) -> None:
    job = prepare(folder, "sst2", data, limit=limit)
    assert job.examples.texts == sentences(20, seed=1)[:count]
    assert len(job.encoded) == len(job.examples.labels) == count
    assert len(job.calibration_texts) == 30


def test_calibration_data_of_another_place(folder: Path, data: Path, tmp_path: Path) -> None:
    other = write_sst2(tmp_path / "any name.tsv", sentences(5, seed=3))
    job = prepare(folder, "sst2", data, calibration_data=other)
    assert job.calibration_texts == ids_of(folder, sentences(5, seed=3))


def test_training_file_is_not_needed_without_calibration(folder: Path, tmp_path: Path) -> None:
    path = write_sst2(tmp_path / "dev.tsv", sentences(3))
    assert prepare(folder, "sst2", path, calibrated=False).calibration_texts == []
    with pytest.raises(BertNumpyError) as error:
        prepare(folder, "sst2", path)
    assert str(error.value) == (
        f"{tmp_path}: expected one of train.tsv, train.jsonl, train-*-of-*.parquet, "
        "here or in SST-2, found none of them. The training examples are to calibrate on: in their "
        "place give a file of examples (--calibration-data) or a saved calibration (--calibration)"
    )
    missing = tmp_path / "missing.tsv"
    with pytest.raises(BertNumpyError) as error:
        prepare(folder, "sst2", path, calibration_data=missing)
    assert str(error.value) == f"{missing}: no such file"


def test_any_file_may_be_evaluated(folder: Path, data: Path) -> None:
    job = prepare(folder, "sst2", data / "SST-2" / "train.tsv")
    assert len(job.examples) == 30


def test_cut_examples_are_counted(folder: Path, data: Path) -> None:
    whole = ids_of(folder, sentences(20, seed=1))
    job = prepare(folder, "sst2", data, max_length=6)
    assert job.truncated == sum(len(item.input_ids) > 6 for item in whole) > 0
    assert max(len(item.input_ids) for item in job.encoded) == 6
    assert max(len(item.input_ids) for item in job.calibration_texts) == 6


def test_wrong_head(data: Path, tmp_path: Path) -> None:
    three = write_checkpoint(tmp_path / "three", labels=("a", "b", "c"))
    with pytest.raises(BertNumpyError) as error:
        prepare(three, "sst2", data)
    assert str(error.value) == ("task sst2: expected a model with 2 outputs, found 3: a, b, c")
    overrides = {"architectures": ["BertForMaskedLM"]}
    bare = write_checkpoint(tmp_path / "bare", config_overrides=overrides)
    with pytest.raises(BertNumpyError) as error:
        prepare(bare, "sst2", data)
    assert str(error.value) == (
        f"{bare}: expected a BertForSequenceClassification, found BertForMaskedLM"
    )


@pytest.mark.parametrize("command", ["evaluate", "compare", "submit"])
def test_labels_that_do_not_tell_the_classes(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guess could exchange the classes: one line, before anything is computed."""
    folder = write_checkpoint(tmp_path / "model", labels=("pos", "neg"))
    target = [str(tmp_path / "x.tsv")] if command == "submit" else []
    if command == "submit":
        data = tmp_path / "test.tsv"
        data.write_text("index\tsentence\n0\ta warm film\n")
    assert main([command, str(folder), *target, "--task", "sst2", "--data", str(data)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "task sst2: expected labels negative, positive in any order" in line
    assert "found pos, neg" in line
    assert not (tmp_path / "x.tsv").exists()


def test_names_and_numbers_of_classes_are_one_result(data: Path, tmp_path: Path) -> None:
    """The same head under all names of its classes, and with its outputs exchanged."""
    found = []
    for number, names in enumerate(
        (("negative", "positive"), ("LABEL_0", "LABEL_1"), ("0", "1"), (" Negative", "POSITIVE"))
    ):
        folder = write_checkpoint(tmp_path / str(number), labels=names)
        prepared = prepare(folder, "sst2", data)
        (result,) = run(prepared, [PRESETS["fp32"]])
        found.append(result.predictions.tolist())
    model = bert_numpy.load(folder)
    weights = dict(model.weights)
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = np.ascontiguousarray(np.asarray(weights[name])[::-1])
    for names in (("positive", "negative"), ("1", "0"), ("POSITIVE ", "Negative")):
        exchanged = replace(model, weights=weights, config=replace(model.config, labels=names))
        quantized = apply_recipe(exchanged, PRESETS["fp32"])
        assert isinstance(prepared.examples, Examples)
        result = evaluate(quantized, TASKS["sst2"], prepared.encoded, prepared.examples.labels)
        found.append(result.predictions.tolist())
    assert len({*found[0]}) == 2
    assert all(predictions == found[0] for predictions in found)


def test_length_beyond_the_model(folder: Path, data: Path) -> None:
    with pytest.raises(BertNumpyError) as error:
        prepare(folder, "sst2", data, max_length=129)
    assert str(error.value) == "max_length: expected 3..128, found 129"


class Bars:
    """Stands in for progress bars: notes each one's label, total and steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, list[int]]] = []

    @contextmanager
    def __call__(self, total: int, label: str) -> Iterator[Progress]:
        steps: list[int] = []
        self.seen.append((label, total, steps))
        yield steps.append


@pytest.fixture(scope="module")
def job(folder: Path, data: Path) -> Job:
    return prepare(folder, "sst2", data, batch_size=8)


def test_run(job: Job) -> None:
    bars = Bars()
    results = list(run(job, [PRESETS["fp32"], PRESETS["e4m3"]], bars))
    assert bars.seen == [
        ("calibration", 30, [8, 8, 8, 6]),
        ("fp32", 20, [8, 8, 4]),
        ("e4m3", 20, [8, 8, 4]),
    ]
    calibration = calibrate_on(job.model, job.calibration_texts, 8)
    for result, name in zip(results, ("fp32", "e4m3"), strict=True):
        model = apply_recipe(job.model, PRESETS[name], calibration)
        expected = evaluate(model, job.task, job.encoded, job.examples.labels, 8)
        assert result.recipe == name
        assert_same_bits(result.logits, expected.logits)
        assert result.metrics == expected.metrics
        assert result.counts == expected.counts


def test_run_without_calibration(job: Job) -> None:
    bars = Bars()
    results = list(
        run(replace(job, calibration_texts=[]), [PRESETS["fp32"], PRESETS["bf16"]], bars)
    )
    assert [label for label, *_ in bars.seen] == ["fp32", "bf16"]
    assert [result.recipe for result in results] == ["fp32", "bf16"]


@pytest.mark.parametrize("golden", [False, True])
def test_a_result_stays_as_it_is_when_another_evaluation_runs(job: Job, golden: bool) -> None:
    model = apply_recipe(job.model, PRESETS["e4m3"], calibrate_on(job.model, job.encoded), golden)
    first = evaluate_job(job, model)
    before = {name: dict(vars(count)) for name, count in first.counts.items()}
    second = evaluate_job(job, model)
    part = evaluate_job(job.select([0]), model)
    assert {name: vars(count) for name, count in first.counts.items()} == before
    assert {name: vars(count) for name, count in second.counts.items()} == before
    assert all(0 < part.counts[name].elements < before[name]["elements"] for name in before)


def test_recipes_do_not_depend_on_each_other(job: Job) -> None:
    together = list(run(job, [PRESETS["int8"], PRESETS["e4m3"]]))[1]
    (alone,) = run(job, [PRESETS["e4m3"]])
    assert_same_bits(together.logits, alone.logits)
    assert together.counts == alone.counts

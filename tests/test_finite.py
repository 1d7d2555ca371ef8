"""NaN and infinity in outputs: counted in evaluations, refused everywhere else, in one line."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import CONFIG, random_tensors, write_checkpoint, write_tensors
from test_prediction import SECOND, TEXT, checkpoint
from watching import product_of

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Model, Operand, Recipe, SiteRecipe, apply_recipe
from bert_numpy.assets import REVIEWS
from bert_numpy.commands.main import main
from bert_numpy.commands.report import comparison_row, listed
from bert_numpy.errors import naming
from bert_numpy.evaluation.evaluate import compare_with, evaluate, evaluate_task, require_answers
from bert_numpy.evaluation.predict import predict_text
from bert_numpy.export.onnx import onnx_model
from bert_numpy.finite import NO_CLASS, missing, require_finite, rows_not_finite
from bert_numpy.quantization import engine as quantized_engine
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.study.cells import Result, compare_results
from bert_numpy.tasks.glue import TASKS, submission
from bert_numpy.tasks.metrics import (
    accuracy,
    answer_f1,
    exact_match,
    f1,
    matthews_correlation,
    pearson,
    spearmanr,
)
from bert_numpy.tasks.spans import best_answers
from bert_numpy.tasks.squad import SQUAD, merge_questions, read_questions
from bert_numpy.tasks.tokenization import Window
from npfp8 import E4M3FN, INT8, FloatFormat

NAN, INF = math.nan, math.inf


def broken(model: Model, name: str, value: float, rows: Any = slice(None)) -> Model:
    """The model with a value in a parameter."""
    weights = dict(model.weights)
    weight = np.array(weights[name])
    weight[rows] = value
    return replace(model, weights=weights | {name: weight})


def unquantized(model: Model, name: str = "fp32") -> Any:
    return apply_recipe(model, PRESETS[name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return bert_numpy.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return bert_numpy.load_tokenizer(folder)


# The rule


def test_rows_not_finite() -> None:
    x = np.array([[1, 2], [NAN, 1], [3, INF], [-INF, 0]], np.float32)
    assert rows_not_finite(x).tolist() == [False, True, True, True]
    assert rows_not_finite(np.zeros((2, 3, 4))).tolist() == [False, False]
    assert rows_not_finite(np.zeros((0, 2))).tolist() == []


def test_missing_of_every_kind_of_prediction() -> None:
    assert missing(np.array([0, NO_CLASS, 2])).tolist() == [False, True, False]
    assert missing(np.array([0.0, NAN, INF, -1.0])).tolist() == [False, True, True, False]
    assert missing(np.array(["", None, "a"], object)).tolist() == [False, True, False]
    assert listed(np.array([0, NO_CLASS])) == [0, None]
    assert listed(np.array([0.5, NAN])) == [0.5, None]
    assert listed(np.array(["a", None], object)) == ["a", None]


def test_require_finite_names_the_place() -> None:
    require_finite("x", np.zeros((2, 2)))
    with pytest.raises(
        BertNumpyError, match=r"^x: expected finite numbers, found inf at \(1, 0\)$"
    ):
        require_finite("x", np.array([[0, 0], [INF, NAN]]))


# Metrics


@pytest.mark.parametrize("none", [NO_CLASS, NAN])
def test_a_prediction_that_is_none_is_wrong(none: float) -> None:
    labels = np.array([1, 1, 0, 0, 1, 0])
    right = np.where(labels == 1, 1, 0)
    perfect = {accuracy: 1.0, f1: 1.0, matthews_correlation: 1.0}
    for metric, value in perfect.items():
        assert metric(labels, right) == value
        assert metric(labels, np.full(6, none)) == 0
    for where in range(6):
        some = right.astype(type(none))
        some[where] = none
        wrong = right.copy()
        wrong[where] = 1 - wrong[where]
        assert accuracy(labels, some) == accuracy(labels, wrong) == 5 / 6
        assert f1(labels, some) == f1(labels, wrong) < 1
        assert matthews_correlation(labels, some) < 1


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("metric", [pearson, spearmanr])
def test_correlations_have_no_value(metric: Any, bad: float) -> None:
    good = np.array([1.0, 2.0, 4.0, 8.0])
    some = np.array([1.0, bad, 4.0, 8.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(metric(good, some))
        assert math.isnan(metric(some, good))
        assert math.isnan(metric(good, np.full(4, bad)))
    assert metric(good, good) == pytest.approx(1)


def test_an_answer_that_is_none_is_not_even_an_empty_one() -> None:
    right = [["the"], ["film"]]  # "the" is empty once it is normalized
    assert exact_match(right, ["", "film"]) == 1
    assert exact_match(right, [None, "film"]) == 0.5
    assert answer_f1(right, [None, "film"]) == 0.5


# Evaluations


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_output_spoils_all_texts(model: Model, tokenizer: Any, value: float) -> None:
    bad = unquantized(broken(model, "classifier.bias", value, 1))
    labels = np.array([0, 1])
    result = evaluate(bad, TASKS["sst2"], tokenizer.encode([TEXT, SECOND]), labels)
    assert result.predictions.tolist() == [NO_CLASS, NO_CLASS]
    assert result.not_finite == 2
    assert result.metrics == {"accuracy": 0.0}
    assert comparison_row(result, None)["not_finite"] == 2
    good = evaluate(unquantized(model), TASKS["sst2"], tokenizer.encode([TEXT, SECOND]), labels)
    assert good.not_finite == 0
    change = compare_with(good, result)
    assert change["flips"] == 2
    assert math.isnan(change["relative_logit_error"])
    with pytest.raises(BertNumpyError, match=r"fp32: expected finite logits to compare with"):
        compare_with(result, good)
    with pytest.raises(BertNumpyError, match=r", fp32: text 1: expected finite numbers.* 2 of 2"):
        require_answers(model, result)
    require_answers(model, good)


def test_some_texts_alone(model: Model, tokenizer: Any) -> None:
    """A word that no other text has is infinite: its text is none, the others are as before."""
    word = tokenizer.backend.token_to_id("dull")
    bad = unquantized(broken(model, "embeddings.word_embeddings.weight", INF, word))
    encoded = tokenizer.encode([TEXT, "dull", "a film"])
    good = evaluate(unquantized(model), TASKS["sst2"], encoded, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(bad, TASKS["sst2"], encoded, np.where([1, 1, 1], good.predictions, 0))
    assert missing(result.predictions).tolist() == [False, True, False]
    assert result.metrics["accuracy"] == pytest.approx(2 / 3)
    assert compare_with(good, result)["flips"] == 1
    with pytest.raises(BertNumpyError, match="text 2: expected finite numbers"):
        require_answers(model, result)


def test_scores(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, labels=["score"])
    model, tokenizer = bert_numpy.load(tmp_path), bert_numpy.load_tokenizer(tmp_path)
    encoded = tokenizer.encode([TEXT, SECOND, "dull"])
    labels = np.array([1.0, 2.0, 3.0])
    result = evaluate(
        unquantized(broken(model, "classifier.bias", INF)), TASKS["stsb"], encoded, labels
    )
    assert np.isnan(result.predictions).all()
    assert result.not_finite == 3
    assert all(math.isnan(value) for value in result.metrics.values())
    good = evaluate(unquantized(model), TASKS["stsb"], encoded, labels)
    assert math.isnan(compare_with(good, result)["mean_abs_difference"])
    with pytest.raises(BertNumpyError, match="task stsb: text 1: expected a prediction"):
        submission(TASKS["stsb"], ["0", "1", "2"], result.predictions)
    with pytest.raises(BertNumpyError, match="text 1: logits: expected finite numbers, found inf"):
        predict_text(broken(model, "classifier.bias", INF), tokenizer, TEXT, SECOND)


def test_a_reference_of_zeros(model: Model, tokenizer: Any) -> None:
    good = evaluate(unquantized(model), TASKS["sst2"], tokenizer.encode([TEXT]), None)
    zero = dataclasses.replace(good, logits=np.zeros_like(good.logits))
    assert compare_with(zero, zero)["relative_logit_error"] == 0
    assert compare_with(zero, good)["relative_logit_error"] == INF


@pytest.mark.parametrize("task", ["sst2", "rte", "mnli"])
def test_submissions_are_refused(task: str) -> None:
    with pytest.raises(BertNumpyError, match="text 2: expected a prediction, found none"):
        submission(TASKS[task], ["0", "1"], np.array([0, NO_CLASS]))


def test_study_rows() -> None:
    labels = np.arange(6) % 2
    logits = np.ones((6, 2), np.float32)
    good = Result(labels, labels, logits, {"accuracy": accuracy})
    bad = Result(
        labels, np.where(labels, NO_CLASS, labels), logits * np.float32(INF), {"accuracy": accuracy}
    )
    row = compare_results(bad, good, 20)
    assert (row["not_finite"], row["flips"], row["accuracy"]) == (3, 3, 0.5)
    assert compare_results(good, good, 20)["not_finite"] == 0
    scores = np.linspace(0, 5, 6)
    some = np.where(np.arange(6) == 2, NAN, scores)
    row = compare_results(
        Result(scores, some, logits, {"pearson": pearson}),
        Result(scores, scores, logits, {"pearson": pearson}),
        50,
    )
    assert row["not_finite"] == 1
    assert math.isnan(row["difference"])
    assert all(map(math.isnan, row["interval"]))  # draws without the NaN would say nothing of it


# Answers

CONTEXT = "a warm film"


def window(tokenizer: Any) -> Window:
    ((found,),) = tokenizer.windows(["is it good"], [CONTEXT], 32, 8, 16)
    return found


@pytest.mark.parametrize("bad", [NAN, INF])
def test_spans_of_bad_logits_are_refused(tokenizer: Any, bad: float) -> None:
    one = window(tokenizer)
    logits = np.zeros((len(one.encoded.input_ids), 2), np.float32)
    logits[one.position + 1, 0] = bad
    with pytest.raises(BertNumpyError, match=f"or -infinity, found {bad}"):
        best_answers(CONTEXT, [one], [logits])


def test_spans_of_masked_logits(tokenizer: Any) -> None:
    one = window(tokenizer)
    logits = np.full((len(one.encoded.input_ids), 2), -INF, np.float32)
    with pytest.raises(BertNumpyError, match="expected a span of finite logits, found none"):
        best_answers(CONTEXT, [one], [logits])
    logits[one.position + 1] = 1
    best, *others = best_answers(CONTEXT, [one], [logits])
    assert (best.text, best.probability) == ("warm", 1.0)
    assert all(other.probability == 0 for other in others)


def squad_file(path: Path) -> Path:
    questions = [
        {"id": "one", "question": "is it good", "answers": [{"text": "the", "answer_start": 0}]},
        {"id": "two", "question": "is it dull", "answers": [{"text": "film", "answer_start": 9}]},
    ]
    context = "the warm film"
    data = [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]
    path.write_text(json.dumps({"version": "1.1", "data": data}))
    return path


def test_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "model", "ForQuestionAnswering")
    model, tokenizer = bert_numpy.load(folder), bert_numpy.load_tokenizer(folder)
    questions = merge_questions([read_questions(squad_file(tmp_path / "dev.json"))])
    windows = tokenizer.windows(
        [item.question for item in questions.items],
        [item.context for item in questions.items],
        64, 16, 16,
    )  # fmt: skip
    word = tokenizer.backend.token_to_id("dull")
    bad = unquantized(broken(model, "embeddings.word_embeddings.weight", NAN, word))
    result = evaluate_task(bad, SQUAD, questions, windows)
    assert missing(result.predictions).tolist() == [False, True]
    assert result.answers[1] == ()
    assert result.not_finite == 1
    good = evaluate_task(unquantized(model), SQUAD, questions, windows)
    assert compare_with(good, result)["flips"] == 1
    with pytest.raises(BertNumpyError, match="text 1: logits: expected finite numbers, found nan"):
        predict_text(broken(model, "qa_outputs.bias", NAN, 0), tokenizer, "is it good", CONTEXT)


# Predictions of every head


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    ("head", "parameter", "arguments"),
    [
        ("ForSequenceClassification", "classifier.bias", (TEXT, None)),
        ("multi-label ForSequenceClassification", "classifier.bias", (TEXT, None)),
        ("ForNextSentencePrediction", "cls.seq_relationship.bias", (TEXT, SECOND)),
        ("ForTokenClassification", "classifier.bias", (TEXT, None)),
        ("ForMaskedLM", "cls.predictions.decoder.bias", ("a [MASK] film", None)),
        ("ForPreTraining", "cls.predictions.decoder.bias", ("a [MASK] film", SECOND)),
        ("ForPreTraining", "cls.seq_relationship.bias", ("a [MASK] film", SECOND)),
        ("ForQuestionAnswering", "qa_outputs.bias", ("is it good", CONTEXT)),
        ("Model", "encoder.layer.1.output.LayerNorm.bias", (TEXT, None)),
        ("Model", "encoder.layer.1.output.LayerNorm.bias", (TEXT, SECOND)),
    ],
)
def test_predictions_are_refused(
    tmp_path: Path, head: str, parameter: str, arguments: Any, value: float
) -> None:
    several = {"problem_type": "multi_label_classification"} if head.startswith("multi") else {}
    folder = checkpoint(tmp_path, head.removeprefix("multi-label "), **several)
    model, tokenizer = bert_numpy.load(folder), bert_numpy.load_tokenizer(folder)
    predict_text(model, tokenizer, *arguments)
    bad = unquantized(broken(model, parameter, value, 0))
    with pytest.raises(BertNumpyError, match=r"^[^\n]*, fp32: text 1: .*expected finite numbers"):
        predict_text(bad, tokenizer, *arguments)  # a warning would be an error of its own


def embedding_model(folder: Path, model: Model, value: float, bias: float = 0.0) -> Model:
    last = "encoder.layer.1.output.LayerNorm"
    return broken(broken(model, f"{last}.weight", value), f"{last}.bias", bias)


def test_vectors_without_a_direction_are_not_compared(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "Model")
    model, tokenizer = bert_numpy.load(folder), bert_numpy.load_tokenizer(folder)
    zero = embedding_model(folder, model, 0.0)
    assert predict_text(zero, tokenizer, TEXT).report["norms"] == [0]
    with pytest.raises(BertNumpyError, match="text 1: expected a vector to compare, found zeros"):
        predict_text(zero, tokenizer, TEXT, SECOND)


@pytest.mark.parametrize("size", [1e-38, 1e-14, 1.0, 1e20, 1e37])
def test_cosines_do_not_depend_on_the_size(tmp_path: Path, size: float) -> None:
    folder = checkpoint(tmp_path, "Model")
    model, tokenizer = bert_numpy.load(folder), bert_numpy.load_tokenizer(folder)
    one, other = (
        predict_text(embedding_model(folder, model, x), tokenizer, TEXT, SECOND).report
        for x in (1.0, size)
    )
    assert other["cosine_similarity"] == pytest.approx(one["cosine_similarity"], abs=1e-4)
    # As a part of the model, too: the norm of a vector is 1, however large it was.
    large = replace(
        model, config=replace(model.config, pooling=replace(model.config.pooling, normalize=True))
    )
    vector = embedding_model(folder, large, max(size, 1e-10))(
        **tokenizer.batch([TEXT])
    ).sentence_embedding
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-5)


# The command line


def command(*arguments: Any) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return main([str(x) for x in arguments])


@pytest.fixture(scope="module")
def nan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of finite weights whose logits overflow."""
    folder = write_checkpoint(tmp_path_factory.mktemp("overflow"))
    config = CONFIG | {"architectures": ["BertForSequenceClassification"]}
    tensors = random_tensors(config, 2, 0)
    tensors["bert.encoder.layer.1.output.LayerNorm.weight"][:] = 3e38
    write_tensors(folder, tensors)
    return folder


DATA = ("--task", "sst2", "--data", REVIEWS, "--limit", 4)


def test_evaluate_and_compare_count(
    nan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.json"
    assert command("evaluate", nan_folder, *DATA, "--json", target) == 0
    report = json.loads(target.read_text())
    assert report["predictions"] == [None] * 4
    assert report["not_finite"] == report["rows"][0]["not_finite"] == 4
    assert report["metrics"] == {"accuracy": 0.0}
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "4 of 4 predictions" in error
    assert "not finite" in error
    assert command("compare", nan_folder, *DATA, "--formats", "bf16") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "expected finite logits to compare with" in error


def test_a_narrow_accumulator_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.json"
    narrow = ("--accumulate", "float16", "--calibration-samples", 8, "--formats", "e4m3")
    assert command("compare", "bert-tiny-sst2", *DATA, *narrow, "--json", target) == 0
    first, second = json.loads(target.read_text())["rows"]
    assert first["not_finite"] == 0
    assert second["not_finite"] > 0
    assert second["flips"] >= second["not_finite"]
    assert second["relative_logit_error"] is None
    assert f"{second['not_finite']} of 4 predictions" in capsys.readouterr().err


def test_the_others_refuse(
    nan_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "SST-2"
    data.mkdir()
    (data / "test.tsv").write_text("index\tsentence\n0\ta warm film\n1\ta dull film\n")
    out = tmp_path / "out"
    for arguments in (
        ("predict", nan_folder, "a warm film"),
        ("submit", nan_folder, out, "--task", "sst2", "--data", data),
        ("quantize", nan_folder, out, *DATA, "--recipe", "e4m3-weights"),
    ):
        assert command(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(nan_folder) in error
        assert "fp32: text 1: " in error
        assert "expected finite numbers, found" in error
        assert not out.exists()


def test_export_refuses_what_is_no_number(model: Model, onnx: Any) -> None:
    bad = unquantized(broken(model, "classifier.bias", NAN, 1))
    with pytest.raises(BertNumpyError, match=r"tensor 'classifier\.bias': expected finite numbers"):
        onnx_model(bad)
    overflowing = unquantized(broken(model, "classifier.weight", 3e38))
    with pytest.raises(BertNumpyError, match=r", fp32: logits of one token: expected finite num"):
        onnx_model(overflowing)


# Errors inside a product have the site's name

SITE = "encoder.layer.0.attention.scores"


@pytest.mark.parametrize(
    "error", [ValueError("x"), MemoryError("x"), OverflowError("x"), TypeError("x")]
)
def test_naming(error: Exception) -> None:
    with pytest.raises(BertNumpyError, match=r"^place: .*x$") as found, naming("place"):
        raise error
    assert found.value.__cause__ is error
    with pytest.raises(KeyError), naming("place"):
        raise KeyError("a mistake of the program")
    with pytest.raises(BertNumpyError, match=r"^own$"), naming("place"):
        raise BertNumpyError("own")


def test_errors_of_products_name_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.ones((2, 4), np.float32)
    tensor = Operand(INT8)
    site = SiteRecipe(tensor, tensor)
    recipe = Recipe("r", site, site, site)

    def gemm(a: Any, b: Any, scale: float = 1.0) -> Any:
        static = Scale(np.float32(scale))
        plan = SitePlan(site, static, static)
        return product_of(engine_of(recipe, {SITE: plan}), SITE, a, b)

    with pytest.raises(BertNumpyError, match=f"^{SITE}:a: encode: found NaN, and INT8"):
        gemm(np.float32([[NAN]]), np.float32([[1]]))
    with pytest.raises(BertNumpyError, match=f"^{SITE}: the product of the operands' scales"):
        gemm(x, x.T, 3e30)
    with pytest.raises(BertNumpyError, match=f"^{SITE}: expected shapes"):
        gemm(x, x)

    def out_of_memory(*_: Any) -> Any:
        raise MemoryError("Unable to allocate 8 EiB")

    monkeypatch.setattr(quantized_engine, "decoded_product", out_of_memory)
    with pytest.raises(BertNumpyError, match=f"^{SITE}: expected enough memory.*8 EiB"):
        gemm(x, x.T)


@pytest.mark.parametrize(
    "operand",
    [
        Operand(E4M3FN),
        Operand(INT8, "channel"),
        Operand(E4M3FN, observer="mse"),
        Operand(INT8, "block", dynamic=True, block=4),
    ],
    ids=["tensor", "channel", "mse", "block"],
)
@pytest.mark.parametrize("value", [NAN, INF])
def test_weights_that_cannot_be_quantized_are_named(
    model: Model, operand: Operand, value: float
) -> None:
    name = "encoder.layer.0.output.dense.weight"
    with pytest.raises(BertNumpyError, match=f"{name}.*expected finite"):
        apply_recipe(broken(model, name, value, 0), Recipe("r", SiteRecipe(Operand(), operand)))


def test_a_scale_beyond_float32_names_the_operand(model: Model, tokenizer: Any) -> None:
    small = SiteRecipe(Operand(FloatFormat(4, 3, bias=110, name="small")), Operand(E4M3FN))
    seen = bert_numpy.calibrate(model, [tokenizer.batch([TEXT])])
    operands = {
        name: replace(one, low=-1e38, high=1e38) if name.endswith(":a") else one
        for name, one in seen.operands.items()
    }
    with pytest.raises(BertNumpyError, match=r"layer.0.attention.self.query: absmax: .*float32"):
        apply_recipe(model, Recipe("r", small), replace(seen, operands=operands))


def test_a_scale_beyond_float32_names_the_weight(model: Model) -> None:
    small = FloatFormat(4, 3, bias=110, name="small")
    weights = SiteRecipe(Operand(), Operand(small))
    large = broken(model, "encoder.layer.0.output.dense.weight", 3e38)
    with pytest.raises(
        BertNumpyError, match=r"layer.0.output.dense.weight: absmax: .*beyond float32"
    ):
        apply_recipe(large, Recipe("r", weights))


def test_no_warning_of_overflow(tmp_path: Path) -> None:
    """In every arithmetic that is not golden, and of every activation."""
    for activation in ("gelu", "gelu_new", "relu", "silu"):
        folder = write_checkpoint(
            tmp_path / activation, config_overrides={"hidden_act": activation}
        )
        model, tokenizer = bert_numpy.load(folder), bert_numpy.load_tokenizer(folder)
        batch = tokenizer.batch([TEXT, SECOND])
        for name in list(model.weights):
            for value in (3e38, INF, NAN):
                bad = broken(model, name, value)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    for recipe in ("fp32", "bf16"):
                        unquantized(bad, recipe)(**batch)
    assert E4M3FN.max == 448

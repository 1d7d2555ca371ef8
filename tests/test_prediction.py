"""bert-numpy predict and info, by head: the output printed, and written as JSON."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint, write_encoder

from bert_numpy import Model, Tokenizer, load, load_tokenizer
from bert_numpy.commands.main import main
from bert_numpy.evaluation.evaluate import text_logits
from bert_numpy.tasks.spans import best_answers

Capture = pytest.CaptureFixture[str]

TEXT, SECOND = "the film is very funny", "a warm movie and good actors , not dull"
LABELS = ("O", "PER", "LOC")


def checkpoint(folder: Path, head: str, **overrides: Any) -> Path:
    config = {"architectures": [f"Bert{head}"], **overrides}
    write = write_encoder if head == "Model" else write_checkpoint
    return write(folder, config_overrides=config, labels=LABELS)


def predicted(folder: Path, *arguments: str) -> dict[str, Any]:
    target = folder / "report.json"
    assert main(["predict", str(folder), *arguments, "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["model"] == str(folder)
    return {k: v for k, v in report.items() if k not in ("model", "format", "accumulate", "golden")}


def loaded(folder: Path) -> tuple[Model, Tokenizer]:
    return load(folder), load_tokenizer(folder)


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x.astype(np.float64) - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def rows(capsys: Capture) -> list[list[str]]:
    return [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]


def test_several_labels(tmp_path: Path, capsys: Capture) -> None:
    problem = {"problem_type": "multi_label_classification"}
    folder = checkpoint(tmp_path, "ForSequenceClassification", **problem)
    report = predicted(folder, TEXT)
    model, tokenizer = loaded(folder)
    logits = model(**tokenizer.batch([TEXT])).logits[0].astype(np.float64)
    expected = dict(zip(LABELS, (1 / (1 + np.exp(-logits))).tolist(), strict=True))
    assert report["probabilities"] == pytest.approx(expected, rel=1e-5)
    assert sum(expected.values()) != pytest.approx(1, abs=0.01)
    assert report["label"] == LABELS[int(logits.argmax())]
    assert [label for label, _ in rows(capsys)] == sorted(LABELS, key=lambda x: -expected[x])


@pytest.mark.parametrize("problem", [None, "regression", "multi_label_classification"])
def test_one_output(tmp_path: Path, problem: str | None) -> None:
    """A score, or the probability of the one label, as transformers' pipeline has it."""
    overrides = {"architectures": ["BertForSequenceClassification"], "problem_type": problem}
    folder = write_checkpoint(tmp_path, config_overrides=overrides, labels=("toxic",))
    report = predicted(folder, TEXT)
    model, tokenizer = loaded(folder)
    (logit,) = model(**tokenizer.batch([TEXT])).logits[0].tolist()
    assert report["logits"] == {"toxic": logit}
    if problem != "multi_label_classification":
        assert report.keys() == {"logits"}
        return
    expected = pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    assert report["probabilities"] == {"toxic": expected}


def test_regression_on_several_outputs(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "ForSequenceClassification", problem_type="regression")
    assert predicted(folder, TEXT).keys() == {"logits"}


def test_answers(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint(tmp_path, "ForQuestionAnswering")
    context = " ".join([SECOND] * 20)  # longer than the model's input
    report = predicted(folder, "what is funny ?", context)
    model, tokenizer = loaded(folder)
    (windows,) = tokenizer.windows(["what is funny ?"], [context], 128, 128, 64)
    assert len(windows) > 1
    logits = text_logits(model, "question answering", [window.encoded for window in windows])
    expected = best_answers(context, windows, logits, 5, 30)
    assert report["answers"] == [vars(one) for one in expected]
    assert [text for _, text in rows(capsys)] == [one.text for one in expected]
    assert all(one.text and one.text in context for one in expected)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForPreTraining"])
@pytest.mark.parametrize("second", [None, SECOND])
def test_masks(tmp_path: Path, capsys: Capture, head: str, second: str | None) -> None:
    folder = checkpoint(tmp_path, head)
    text = "the [MASK] is very [MASK]"
    pair = [] if second is None else [second]
    report = predicted(folder, text, *pair)
    model, tokenizer = loaded(folder)
    batch = tokenizer.batch([text], pair or None)
    output = model(**batch)
    logits = (output.logits if head == "ForMaskedLM" else output.prediction_logits)[0]
    places = [place for place, token in enumerate(batch["input_ids"][0].tolist()) if token == 4]
    assert [mask["position"] for mask in report["masks"]] == places == [2, 5]
    for place, mask in zip(places, report["masks"], strict=True):
        order = np.argsort(-logits[place])[:5]
        assert [tokenizer.backend.token_to_id(one["token"]) for one in mask["tokens"]] == [*order]
        found = [one["probability"] for one in mask["tokens"]]
        assert found == pytest.approx(softmax(logits[place])[order].tolist(), rel=1e-5)
    listed = rows(capsys)
    assert [(row[0], row[1]) for row in listed[:10]] == [
        (str(mask["position"]), one["token"]) for mask in report["masks"] for one in mask["tokens"]
    ]
    if head == "ForPreTraining" and second is not None:
        expected = softmax(output.seq_relationship_logits[0]).tolist()
        names = ("follows", "does not follow")
        assert report["next_sentence"] == pytest.approx(dict(zip(names, expected, strict=True)))
        assert len(listed) == 12
    else:
        assert report.keys() == {"masks"}
        assert len(listed) == 10


def test_next_sentence(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint(tmp_path, "ForNextSentencePrediction")
    report = predicted(folder, TEXT, SECOND)
    model, tokenizer = loaded(folder)
    follows, not_ = softmax(model(**tokenizer.batch([TEXT], [SECOND])).logits[0]).tolist()
    assert report["next_sentence"] == pytest.approx({"follows": follows, "does not follow": not_})
    assert {name for name, _ in rows(capsys)} == {"follows", "does not follow"}


@pytest.mark.parametrize("second", [None, SECOND])
def test_tokens(tmp_path: Path, capsys: Capture, second: str | None) -> None:
    folder = checkpoint(tmp_path, "ForTokenClassification")
    pair = [] if second is None else [second]
    report = predicted(folder, TEXT, *pair)
    model, tokenizer = loaded(folder)
    logits = model(**tokenizer.batch([TEXT], pair or None)).logits[0]
    tokens = ["[CLS]", *TEXT.split(), "[SEP]"]
    tokens += [] if second is None else [*tokenizer.backend.encode(second).tokens[1:]]
    assert len(tokens) == len(logits)
    expected = [
        (token, LABELS[row.argmax()], softmax(row).max())
        for token, row in zip(tokens, logits, strict=True)
        if token not in ("[CLS]", "[SEP]")
    ]
    assert [(one["token"], one["label"]) for one in report["tokens"]] == [x[:2] for x in expected]
    found = [one["probability"] for one in report["tokens"]]
    assert found == pytest.approx([x[2] for x in expected], rel=1e-5)
    assert [tuple(row[:2]) for row in rows(capsys)] == [x[:2] for x in expected]


def test_embeddings(tmp_path: Path, capsys: Capture) -> None:
    folder = checkpoint(tmp_path, "Model")
    alone = predicted(folder, TEXT)
    model, tokenizer = loaded(folder)
    vectors = model(**tokenizer.batch([TEXT, SECOND])).sentence_embedding.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    assert not np.allclose(norms, 1)  # it does not normalize
    assert alone["norms"] == pytest.approx([norms[0]], rel=1e-5)
    np.testing.assert_allclose(alone["embeddings"], vectors[:1], rtol=1e-4, atol=1e-5)
    assert rows(capsys) == [["norm", f"{norms[0]:.4f}"]]
    both = predicted(folder, TEXT, SECOND)
    cosine = vectors[0] @ vectors[1] / norms.prod()
    assert both["cosine_similarity"] == pytest.approx(cosine, abs=1e-6)
    assert rows(capsys)[-1] == ["cosine similarity", f"{cosine:.4f}"]
    assert predicted(folder, TEXT, TEXT)["cosine_similarity"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("head", "texts"),
    [
        ("ForQuestionAnswering", (TEXT, SECOND)),
        ("ForMaskedLM", ("the [MASK]",)),
        ("ForPreTraining", ("the [MASK]", SECOND)),
        ("ForNextSentencePrediction", (TEXT, SECOND)),
        ("ForTokenClassification", (TEXT,)),
        ("Model", (TEXT, SECOND)),
    ],
)
def test_quantized(tmp_path: Path, head: str, texts: tuple[str, ...]) -> None:
    folder = checkpoint(tmp_path / "model", head)
    sample = tmp_path / "sample.tsv"
    sample.write_text(f"sentence\tlabel\n{TEXT}\t1\n{SECOND}\t0\n")
    options = ["--format", "e4m3", "--golden", "--calibration-data", str(sample)]
    golden = [predicted(folder, *texts, *options) for _ in range(2)]
    assert golden[0] == golden[1]
    assert golden[0].keys() == predicted(folder, *texts).keys()
    assert golden[0] != predicted(folder, *texts)


@pytest.mark.parametrize(
    ("head", "texts", "message"),
    [
        (
            "ForQuestionAnswering",
            (TEXT,),
            "question answering: expected a pair of texts, found one",
        ),
        ("ForNextSentencePrediction", (TEXT,), "prediction: expected a pair of texts, found one"),
        ("ForMaskedLM", (TEXT,), "modelling: expected [MASK] in the text, found none"),
        ("ForMultipleChoice", (TEXT,), "found BertForMultipleChoice (multiple choice)"),
        ("LMHeadModel", (TEXT,), "found BertLMHeadModel (none: a bare encoder)"),
    ],
)
def test_refusals(
    tmp_path: Path, capsys: Capture, head: str, texts: tuple[str, ...], message: str
) -> None:
    folder = checkpoint(tmp_path, head)
    if head == "ForMultipleChoice":
        checkpoint(tmp_path, "ForSequenceClassification")
        config = json.loads((folder / "config.json").read_text())
        config |= {
            "architectures": ["BertForMultipleChoice"],
            "id2label": {"0": "x"},
            "label2id": {"x": 0},
        }
        write_checkpoint(folder, labels=("x",))
        (folder / "config.json").write_text(json.dumps(config))
    assert main(["predict", str(folder), *texts]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bert-numpy: {folder}: ")
    assert line.endswith(message)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        ("ForSequenceClassification", "sequence classification"),
        ("ForMaskedLM", "masked language modelling"),
        ("Model", "sentence embeddings"),
    ],
)
def test_info(tmp_path: Path, capsys: Capture, head: str, name: str) -> None:
    folder = checkpoint(tmp_path, head)
    assert main(["info", str(folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["encoder"].startswith("bert, ")
    assert lines["architecture"] == f"Bert{head}"
    assert lines["head"] == name


@pytest.mark.parametrize("architectures", [None, []])
def test_info_on_a_class_that_is_not_named(
    tmp_path: Path, capsys: Capture, architectures: Any
) -> None:
    folder = write_checkpoint(tmp_path, config_overrides={"architectures": ["BertModel"]})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"architectures": architectures}))
    assert main(["info", str(folder)]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["architecture"] == "none (no 'architectures')"
    assert main(["predict", str(folder), TEXT]) == 2
    assert "found none (no 'architectures')" in capsys.readouterr().err

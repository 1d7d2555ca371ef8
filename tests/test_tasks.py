"""The interface of a task, which GLUE's tasks, their test sets and SQuAD share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint, write_encoder

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, apply_recipe
from bert_numpy.assets import REVIEWS
from bert_numpy.evaluation.evaluate import evaluate_task
from bert_numpy.evaluation.job import evaluate_job, prepare
from bert_numpy.tasks.glue import TASKS, Examples
from bert_numpy.tasks.metrics import ANSWER_METRICS, METRICS
from bert_numpy.tasks.registry import TASK_NAMES, any_task_named, require_test_set
from bert_numpy.tasks.squad import SQUAD, Question, Questions
from bert_numpy.tasks.task import Data, Task, even_rows
from bert_numpy.tasks.tokenization import Window

TEXTS = ["a warm and funny film", "dull", "bad acting , but very funny"]
SCORED = ("stsb", "stsb-cosine")


def examples_of(task: Task[Any]) -> Data:
    """Three examples, as the task would read them."""
    if task.name == "squad":
        return Questions(
            tuple(Question(f"q{i}", "what", t, ("film",)) for i, t in enumerate(TEXTS))
        )
    pairs = None if task.name in ("cola", "sst2") else TEXTS[::-1]
    return Examples(TEXTS, pairs, np.array([0, 1, 0], float if task.name in SCORED else int))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each number of labels, and one for questions."""
    made = {}
    for name in TASK_NAMES:
        labels = getattr(any_task_named(name), "labels", ("0", "1")) or ("score",)
        overrides = {"architectures": ["BertForQuestionAnswering"]} if name == "squad" else {}
        place = tmp_path_factory.mktemp(name)
        write = write_encoder if name == "stsb-cosine" else write_checkpoint
        made[name] = write(place, labels=labels, config_overrides=overrides)
    return made


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_goes_the_same_way(name: str, folders: dict[str, Path]) -> None:
    task = any_task_named(name)
    assert task.name == name
    examples = examples_of(task)
    model = apply_recipe(bert_numpy.load(folders[name]), PRESETS["fp32"])
    tokenizer = bert_numpy.load_tokenizer(folders[name])
    seen: list[int] = []
    windows = task.encode(tokenizer, examples, 20, seen.append)
    assert sum(seen) == len(windows) == len(examples) == 3
    assert all(len(window.encoded.input_ids) <= 20 for parts in windows for window in parts)
    result = evaluate_task(model, task, examples, windows)
    assert len(result.predictions) == 3
    assert list(result.metrics) == list(task.scores)
    for key, score in task.scores.items():
        assert result.metrics[key] == score(examples.labels, result.predictions)
    rows = [2, 0]
    some = evaluate_task(model, task, examples.select(rows), [windows[row] for row in rows])
    for found, row in zip(some.predictions, rows, strict=True):
        expected = result.predictions[row]
        assert found == (pytest.approx(expected, rel=1e-4) if name in SCORED else expected)


def test_metrics_and_their_order() -> None:
    assert SQUAD.scores == ANSWER_METRICS
    for task in TASKS.values():
        assert task.scores == {name: METRICS[name] for name in task.metrics}
        assert list(task.scores) == list(task.metrics)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_a_head_that_is_not_the_tasks(name: str, folders: dict[str, Path]) -> None:
    task = any_task_named(name)
    other = "sst2" if name == "squad" else "squad"
    model = apply_recipe(bert_numpy.load(folders[other]), PRESETS["fp32"])
    wanted = r"model for sentence embeddings \(.*\)" if name == "stsb-cosine" else r"BertFor\w+"
    with pytest.raises(BertNumpyError, match=rf"expected a {wanted}, found BertFor"):
        evaluate_task(model, task, examples_of(task), [[]])


def test_only_glue_has_test_sets() -> None:
    assert SQUAD.test_set is None
    with pytest.raises(
        BertNumpyError, match="task squad: expected a task of GLUE, as no other has a test set"
    ):
        require_test_set(SQUAD)
    names = {name: require_test_set(task).submission_file for name, task in TASKS.items()}
    assert names == {
        "cola": "CoLA.tsv",
        "sst2": "SST-2.tsv",
        "mrpc": "MRPC.tsv",
        "stsb": "STS-B.tsv",
        "qqp": "QQP.tsv",
        "mnli": "MNLI-m.tsv",
        "mnli-mm": "MNLI-mm.tsv",
        "qnli": "QNLI.tsv",
        "rte": "RTE.tsv",
        "wnli": "WNLI.tsv",
    }


def test_a_test_set_is_a_job_like_any_other(tmp_path: Path) -> None:
    lines = [f"{number}\t{text}" for number, text in zip((7, 3, 5), TEXTS, strict=True)]
    (tmp_path / "test.tsv").write_text("\n".join(["index\tsentence", *lines]))
    job = prepare("bert-tiny-sst2", "sst2", tmp_path, calibrated=False, test=True)
    assert (job.examples.ids, job.examples.labels) == (("7", "3", "5"), None)
    model = apply_recipe(job.model, PRESETS["fp32"])
    whole = evaluate_job(job, model)
    assert whole.metrics == {}
    part = job.select([2, 0])
    assert part.examples.ids == ("5", "7")
    assert evaluate_job(part, model).predictions.tolist() == whole.predictions[[2, 0]].tolist()
    text = require_test_set(job.task).submission(part.examples.ids, whole.predictions[[2, 0]])
    assert [line.split("\t")[0] for line in text.splitlines()] == ["index", "5", "7"]


def test_the_length_of_a_task_is_what_inputs_are_cut_to() -> None:
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    task = TASKS["sst2"]
    long = Examples([" ".join(["film"] * 300), "dull"], None, np.array([0, 1]))
    windows = task.encode(tokenizer, long, task.max_length, None)
    assert [len(parts[0].encoded.input_ids) for parts in windows] == [128, 3]
    job = prepare("bert-tiny-sst2", "sst2", REVIEWS / "dev.tsv", calibrated=False, limit=2)
    job = replace(job, windows=windows)
    assert (job.truncated, len(job.encoded)) == (1, 2)


def test_labels_of_questions_stay_apart() -> None:
    """Answers of equal number would become an array of two axes."""
    items = [Question(str(i), "what", "a b", ("a", "b")) for i in range(3)]
    labels = Questions(tuple(items)).labels
    assert labels.shape == (3,)
    assert labels.tolist() == [("a", "b")] * 3


def test_a_text_is_one_window() -> None:
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    windows = TASKS["sst2"].encode(tokenizer, Examples(TEXTS, None, None), 16, None)
    assert windows == [[Window(one)] for one in tokenizer.encode(TEXTS, None, 16)]


def test_even_rows() -> None:
    assert even_rows(10, 4) == [0, 2, 5, 7]
    assert even_rows(3, 4) == [0, 1, 2]
    assert even_rows(0, 4) == []

"""Finding a task's data; every layout of it holds the same examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from hub_server import HubServer, hub_server

from bert_numpy.assets import REVIEWS
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.job import prepare
from bert_numpy.tasks import records
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import (
    TASKS,
    Examples,
    GlueTask,
    read_examples,
    read_test_set,
    submission,
)
from bert_numpy.tasks.records import read_lines, read_records
from bert_numpy.tasks.squad import SQUAD, merge_questions, read_questions

#: The columns of nyu-mll/glue on the hub.
HUB_COLUMNS = {
    "cola": ("sentence",),
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "mnli": ("premise", "hypothesis"),
    "mnli-mm": ("premise", "hypothesis"),
    "qnli": ("question", "sentence"),
    "rte": ("sentence1", "sentence2"),
    "wnli": ("sentence1", "sentence2"),
}


def error_of(function: Callable[[], Any]) -> str:
    with pytest.raises(BertNumpyError) as caught:
        function()
    return str(caught.value)


def hub_records(examples: Examples, task: str) -> list[dict[str, Any]]:
    texts = zip(examples.texts, examples.pairs or examples.texts, strict=True)
    kind = float if TASKS[task].is_regression else int
    return [
        dict(zip(HUB_COLUMNS[task], pair, strict=False)) | {"label": kind(label), "idx": i}
        for i, (pair, label) in enumerate(zip(texts, examples.labels, strict=True))
    ]


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def pyarrow() -> Any:
    return pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra: data)")


def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    from pyarrow import Table, parquet  # noqa: PLC0415 (an extra)

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(Table.from_pylist(records), path)
    return path


def example_set(task: str) -> Examples:
    labels: Any = [0, 1, 1] if task != "stsb" else [0.0, 2.75, 5.0]
    pairs = ["x\u2028y", "\u00e9t\u00e9 \U0001f642", "z"] if len(HUB_COLUMNS[task]) == 2 else None
    return Examples(['a "b', "c\td", " e"], pairs, np.array(labels))


def assert_same_examples(a: Examples, b: Examples) -> None:
    assert (a.texts, a.pairs) == (b.texts, b.pairs)
    assert a.labels.dtype == b.labels.dtype
    np.testing.assert_array_equal(a.labels, b.labels)


def test_every_task_has_the_hubs_columns() -> None:
    assert {name: task.fields for name, task in TASKS.items()} == HUB_COLUMNS


@pytest.mark.parametrize("task", TASKS)
def test_json_lines(task: str, tmp_path: Path) -> None:
    examples = example_set(task)
    records = hub_records(examples, task)
    found = read_examples(write_lines(tmp_path / "dev.jsonl", records), TASKS[task])
    assert_same_examples(found, examples)
    if TASKS[task].labels:  # classes by their names
        for record in records:
            record["label"] = TASKS[task].labels[record["label"]]
        found = read_examples(write_lines(tmp_path / "dev.jsonl", records), TASKS[task])
        assert_same_examples(found, examples)


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("task", TASKS)
def test_parquet(task: str, tmp_path: Path) -> None:
    examples = example_set(task)
    path = write_parquet(tmp_path / "dev.parquet", hub_records(examples, task))
    assert_same_examples(read_examples(path, TASKS[task]), examples)


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("task", ["cola", "sst2", "mrpc", "stsb", "rte"])
def test_the_official_files_in_other_layouts(task: str, glue: Path, tmp_path: Path) -> None:
    examples = read_examples(*find_files(glue, TASKS[task], TASKS[task].dev), TASKS[task])
    records = hub_records(examples, task)
    for path in (
        write_lines(tmp_path / "a" / "validation.jsonl", records),
        write_parquet(tmp_path / "b" / task / "validation-00000-of-00001.parquet", records),
    ):
        top = tmp_path / path.relative_to(tmp_path).parts[0]
        assert find_files(top, TASKS[task], TASKS[task].dev) == [path]
        assert_same_examples(read_examples(path, TASKS[task]), examples)


_GOOD = {"sentence": "fine", "label": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "expected JSON, found an error"),
        ("{", "expected JSON, found an error"),
        ("[" * 100_000, "expected JSON, found an error"),
        ("[1]", "expected a JSON object, found list"),
        ('{"label": 1}', "sentence: expected text, found nothing"),
        ('{"sentence": null, "label": 1}', "sentence: expected text, found None"),
        ('{"sentence": 7, "label": 1}', "sentence: expected text, found 7"),
        ('{"sentence": " ", "label": 1}', "sentence: expected text, found ' '"),
        ('{"sentence": "x"}', "label: expected one of 0 (negative), 1 (positive), found None"),
        ('{"sentence": "x", "label": -1}', "label: expected one of 0 (negative)"),
        ('{"sentence": "x", "label": 2}', "label: expected one of 0 (negative)"),
        ('{"sentence": "x", "label": true}', "label: expected one of 0 (negative)"),
        ('{"sentence": "x", "label": 1.0}', "label: expected one of 0 (negative)"),
        ('{"sentence": "x", "label": "good"}', "(positive), found 'good'"),
    ],
)
def test_faults_of_json_lines(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(f"{json.dumps(_GOOD)}\n{line}\n")
    text = error_of(lambda: read_examples(path, TASKS["sst2"]))
    assert text.startswith(f"{path} line 2: ")
    assert message in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"sentence": "\\ud800 x", "label": 1}',
            "sentence: expected Unicode text, found '\\ud800'",
        ),
        (
            '{"sentence": "\\u0000\\u0001\\u200b ", "label": 1}',
            "sentence: expected text, found '\\x00",
        ),
        ('{"sentence": "x", "label": 1, "label": 0}', "JSON, found an error: key 'label' has two"),
        (
            '{"sentence": "x", "label": 1' + "0" * 5000 + "}",
            "expected JSON, found an error: Exceed",
        ),
        ('{"sentence": "x", "label": 1' + "0" * 400 + "}", "expected one of 0 (negative), 1 (pos"),
        ('{"sentence": ["x"], "label": 1}', "sentence: expected text, found ['x']"),
        ('{"sentence": "x", "label": [1]}', "label: expected one of 0 (negative)"),
        ('{"sentence": "x", "label": NaN}', "label: expected one of 0 (negative)"),
        ('{"sentence": ' + '{"a":' * 100_000 + "}", "expected JSON, found an error"),
    ],
)
def test_hostile_json_lines(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(f"{json.dumps(_GOOD)}\n{line}\n")
    text = error_of(lambda: read_examples(path, TASKS["sst2"]))
    assert text.startswith(f"{path} line 2: ")
    assert message in text


def test_a_score_that_no_float_holds(tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"sentence1": "a", "sentence2": "b", "label": 1' + "0" * 400 + "}\n")
    assert "line 1: expected a score 0..5, found '1000" in error_of(
        lambda: read_examples(path, TASKS["stsb"])
    )


@pytest.mark.parametrize("name", ["dev.tsv", "dev.jsonl"])
def test_byte_order_marks(name: str, tmp_path: Path) -> None:
    """UTF-8's is left out; UTF-16 is refused in one line."""
    text = "sentence\tlabel\nfine\t1\n" if name == "dev.tsv" else f"{json.dumps(_GOOD)}\n"
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_examples(path, TASKS["sst2"]).texts == ["fine"]
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        path.write_bytes(text.encode(encoding))
        message = error_of(lambda: read_examples(path, TASKS["sst2"]))
        assert message.startswith(f"{path} line 1: expected ")
        assert len(message.splitlines()) == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    """A pipe or a device is not waited for, and a large file is not read."""
    large = tmp_path / "large.tsv"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    assert error_of(lambda: read_lines(large)) == (
        f"{large}: expected at most 268435456 bytes, found {1 << 40}"
    )
    assert error_of(lambda: read_lines(tmp_path)) == f"{tmp_path}: expected a file, found a folder"
    if sys.platform == "win32":
        return
    os.mkfifo(tmp_path / "pipe.parquet")
    for path in (tmp_path / "pipe.parquet", Path("/dev/zero")):
        assert error_of(lambda: read_lines(path)) == (  # noqa: B023 (called at once)
            f"{path}: expected a file, found a pipe or a device"
        )
    loop = tmp_path / "loop.tsv"
    loop.symlink_to(loop.name)
    assert error_of(lambda: read_lines(loop)).startswith(f"{loop}: cannot be read: ")


@pytest.mark.usefixtures("pyarrow")
def test_a_pipe_is_no_parquet(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no pipes with names")
    path = tmp_path / "dev.parquet"
    os.mkfifo(path)
    assert error_of(lambda: read_examples(path, TASKS["sst2"])) == (
        f"{path}: expected a file, found a pipe or a device"
    )


def test_parquet_columns_that_nobody_uses(
    tmp_path: Path, pyarrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not read: neither dates that Python cannot hold, nor gigabytes."""
    from pyarrow import parquet  # noqa: PLC0415 (an extra)

    columns = {
        "sentence": ["a", "b", "a"],
        "label": [1, 0, 1],
        "nanoseconds": pyarrow.array([2**62 + 1] * 3, pyarrow.timestamp("ns")),
        "large": ["x" * 1_000_000] * 3,
    }
    monkeypatch.setattr(records, "_MAX_BYTES", 100_000)
    path = tmp_path / "dev.parquet"
    parquet.write_table(pyarrow.table(columns), path, use_dictionary=False)
    examples = read_examples(path, TASKS["sst2"])
    assert (examples.texts, examples.labels.tolist()) == (["a", "b", "a"], [1, 0, 1])
    assert [set(row) for _, row in read_records(path, ("label",))] == [{"label"}] * 3


@pytest.mark.parametrize("dictionary", [True, False])
def test_parquet_types_of_text(tmp_path: Path, pyarrow: Any, dictionary: bool) -> None:
    from pyarrow import parquet  # noqa: PLC0415 (an extra)

    texts = ["one", "two", "one"]
    kinds = [pyarrow.string(), pyarrow.large_string()]
    kinds += [pyarrow.dictionary(pyarrow.int8(), pyarrow.string())]
    for kind in kinds:
        table = pyarrow.table({"sentence": pyarrow.array(texts).cast(kind), "label": [1, 0, 1]})
        parquet.write_table(table, tmp_path / "dev.parquet", use_dictionary=dictionary)
        assert read_examples(tmp_path / "dev.parquet", TASKS["sst2"]).texts == texts


def hostile_tables(pyarrow: Any) -> Iterator[tuple[str, Any, str]]:
    good = {"sentence": ["a", "b"], "label": [1, 0]}
    kinds = {
        "nanoseconds": pyarrow.array([2**62 + 1] * 2, pyarrow.timestamp("ns")),
        "dates": pyarrow.array([0, 1], pyarrow.date32()),
        "bytes": pyarrow.array([b"a", b"b"]),
        "decimals": pyarrow.array([1, 0]).cast(pyarrow.decimal128(30, 2)),
        "maps": pyarrow.array([[("a", 1)]] * 2, pyarrow.map_(pyarrow.string(), pyarrow.int8())),
    }
    for name, values in kinds.items():
        for column in good:
            expected = f": column {column!r}: expected text, numbers, or lists or structures of"
            yield f"{name} for {column}", pyarrow.table({**good, column: values}), expected
    twice = [pyarrow.array(values) for values in (["a", "b"], ["c", "d"], [1, 0])]
    table = pyarrow.Table.from_arrays(twice, names=["sentence", "sentence", "label"])
    yield "a name twice", table, ": column 'sentence': expected once, found 2 times"
    broken = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary())
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, broken.buffers())
    expected = ": column 'sentence': expected UTF-8, found invalid start byte"
    yield "no UTF-8", pyarrow.table({**good, "sentence": broken}), expected
    yield "nulls", pyarrow.table({**good, "sentence": [None, "a"]}), " row 1: sentence: expected"
    yield "no label", pyarrow.table({"sentence": ["a"]}), " row 1: label: expected one of 0 "
    yield "neither", pyarrow.table({"a": ["a"]}), ": expected columns sentence, label, found a"
    yield "no rows", pyarrow.table({**good}).slice(0, 0), ": expected examples, found none"
    zeros = pyarrow.array([0] * 2_000_000, pyarrow.int8())
    rows = pyarrow.table({"sentence": zeros.cast(pyarrow.string()), "label": zeros})
    yield "many rows", rows, ": expected at most 1000000 rows, found 2000000"
    long = pyarrow.DictionaryArray.from_arrays(zeros.slice(0, 3000), ["x" * 1_000_000])
    table = pyarrow.table({"sentence": long, "label": zeros.slice(0, 3000)})
    expected = " row 269: expected at most 268435456 characters up to here, found more"
    yield "one text, many times", table, expected


def test_hostile_parquet(tmp_path: Path, pyarrow: Any) -> None:
    from pyarrow import parquet  # noqa: PLC0415 (an extra)

    for name, table, message in hostile_tables(pyarrow):
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(table, path)
        text = error_of(lambda: read_examples(path, TASKS["sst2"]))  # noqa: B023 (at once)
        assert text.startswith(f"{path}{message}"), name


def test_parquet_that_decompresses_to_gigabytes(
    tmp_path: Path, pyarrow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet  # noqa: PLC0415 (an extra)

    monkeypatch.setattr(records, "_MAX_BYTES", 2_000_000)
    table = pyarrow.table({"sentence": ["x" * 1_000_000] * 3, "label": [1] * 3})
    path = tmp_path / "dev.parquet"
    parquet.write_table(table, path, compression="gzip", use_dictionary=False)
    assert path.stat().st_size < 100_000
    message = f"{path}: expected at most 2000000 bytes in columns sentence, label, found 3000"
    assert error_of(lambda: read_examples(path, TASKS["sst2"])).startswith(message)


@pytest.mark.parametrize("label", ["5.1", "-0.1", "NaN", "Infinity", "true", '"x"', "null"])
def test_scores_out_of_range(label: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(f'{{"sentence1": "a", "sentence2": "b", "label": {label}}}\n')
    assert "line 1: expected a score 0..5, found" in error_of(
        lambda: read_examples(path, TASKS["stsb"])
    )


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
@pytest.mark.usefixtures("pyarrow")
def test_damaged_parquet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dev.parquet"
    path.write_bytes(content)
    text = error_of(lambda: read_examples(path, TASKS["sst2"]))
    assert text.startswith(f"{path}: expected a Parquet file, found an error: ")
    missing = tmp_path / "none.parquet"
    assert error_of(lambda: read_examples(missing, TASKS["sst2"])) == f"{missing}: no such file"
    good = write_parquet(tmp_path / "good.parquet", [_GOOD, {"sentence": " ", "label": 0}])
    assert error_of(lambda: read_examples(good, TASKS["sst2"])) == (
        f"{good} row 2: sentence: expected text, found ' '"
    )


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "dev.parquet"
    assert "pip install 'fp8-bert-numpy[data]'" in error_of(
        lambda: read_examples(path, TASKS["sst2"])
    )


# Where files are found


@pytest.mark.parametrize("place", [".", "SST-2", "sst2"])
@pytest.mark.parametrize(
    "name", ["dev.tsv", "dev.jsonl", "validation.jsonl", "validation-00000-of-00001.parquet"]
)
def test_find_files(place: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / place / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (tmp_path / "train.tsv").touch()
    (found,) = find_files(tmp_path, TASKS["sst2"], "dev.tsv")
    assert found.resolve() == path.resolve()


def test_the_official_file_comes_first(tmp_path: Path) -> None:
    for name in ("validation-00000-of-00001.parquet", "dev.jsonl", "dev.tsv"):
        (tmp_path / name).touch()
        assert find_files(tmp_path, TASKS["sst2"], "dev.tsv") == [tmp_path / name]


def test_shards(tmp_path: Path) -> None:
    names = [f"train-{i:05}-of-00003.parquet" for i in range(3)]
    for name in names[:2]:
        (tmp_path / name).touch()
    assert "expected 3 files as the name says, found 2" in error_of(
        lambda: find_files(tmp_path, TASKS["qqp"], "train.tsv")
    )
    (tmp_path / names[2]).touch()
    assert [path.name for path in find_files(tmp_path, TASKS["qqp"], "train.tsv")] == names


def test_finds_nothing(tmp_path: Path) -> None:
    assert error_of(lambda: find_files(tmp_path, TASKS["cola"], "dev.tsv")) == (
        f"{tmp_path}: expected one of dev.tsv, dev.jsonl, validation.jsonl, "
        "validation-*-of-*.parquet, here or in CoLA, found none of them"
    )
    for missing in (tmp_path / "missing", "missing", "./mis/sing"):
        assert error_of(lambda place=missing: find_files(place, TASKS["cola"], "dev.tsv")) == (
            f"{missing}: no such file or folder"
        )


@pytest.mark.parametrize("task", ["mnli", "mnli-mm"])
def test_both_mnli_sets_are_in_one_folder(task: str, tmp_path: Path) -> None:
    kind = "matched" if task == "mnli" else "mismatched"
    for folder, pattern in (
        ("MNLI", "dev_{}.tsv"),
        ("mnli", "validation_{}-00000-of-00001.parquet"),
    ):
        (tmp_path / folder).mkdir()
        for each in ("matched", "mismatched"):
            (tmp_path / folder / pattern.format(each)).touch()
    dev = TASKS[task].dev
    assert find_files(tmp_path, TASKS[task], dev) == [tmp_path / "MNLI" / f"dev_{kind}.tsv"]
    (found,) = find_files(tmp_path / "mnli", TASKS[task], dev)
    assert found.name == f"validation_{kind}-00000-of-00001.parquet"


# Questions


def question_records(path: Path, count: int) -> list[dict[str, Any]]:
    """The questions of an official file as the hub has them."""
    records = []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = {
                    "text": [answer["text"] for answer in qa["answers"]],
                    "answer_start": [answer["answer_start"] for answer in qa["answers"]],
                }
                records.append(
                    {
                        "id": qa["id"],
                        "title": article.get("title", ""),
                        "context": paragraph["context"],
                        "question": qa["question"],
                        "answers": answers,
                    }
                )
    return records[:count]


@pytest.mark.usefixtures("pyarrow")
def test_questions_in_other_layouts(shared: Path, tmp_path: Path) -> None:
    (official,) = sorted((shared / "data" / "squad").glob("dev-v1.1*.json"))
    wanted = read_questions(official)
    records = question_records(official, len(wanted))
    lines = write_lines(tmp_path / "dev-v1.1.jsonl", records)
    assert read_questions(lines) == wanted
    assert find_files(tmp_path, SQUAD, SQUAD.dev) == [lines]
    shards = [
        write_parquet(tmp_path / "plain_text" / f"train-0000{i}-of-00002.parquet", part)
        for i, part in enumerate((records[:400], records[400:]))
    ]
    assert find_files(tmp_path, SQUAD, SQUAD.train) == shards
    assert merge_questions([read_questions(path) for path in shards]) == wanted


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "answers: expected dict, found None"),
        ({"text": ["film"]}, "answers.answer_start: expected list, found nothing"),
        ({"text": [], "answer_start": []}, "as many texts as places, at least one, found 0 and 0"),
        ({"text": ["film"], "answer_start": []}, "at least one, found 1 and 0"),
        ({"text": ["film"], "answer_start": [3]}, "answers[0].answer_start: expected where 'film'"),
    ],
)
def test_faults_of_answers(answers: Any, message: str, tmp_path: Path) -> None:
    record = {"id": "a", "context": "a film", "question": "what?", "answers": answers}
    path = write_lines(tmp_path / "dev.jsonl", [record])
    text = error_of(lambda: read_questions(path))
    assert text.startswith(f"{path} line 1: ")
    assert message in text
    record["answers"] = {"text": ["film"], "answer_start": [2]}
    write_lines(path, [record, record])
    assert "line 2: id: expected an id of its own" in error_of(lambda: read_questions(path))
    path.write_text("")
    assert error_of(lambda: read_questions(path)) == f"{path}: expected questions, found none"


# Test sets and submissions

#: The headers of the official test files.
TEST_HEADERS = {
    "cola": "index sentence",
    "sst2": "index sentence",
    "mrpc": "index|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2",
    "qqp": "id question1 question2",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    "sentence1_parse sentence2_parse sentence1 sentence2",
    "qnli": "index question sentence",
    "rte": "index sentence1 sentence2",
    "wnli": "index sentence1 sentence2",
}
TEST_HEADERS["mnli-mm"] = TEST_HEADERS["mnli"]


def test_file(folder: Path, task: GlueTask, rows: list[dict[str, str]]) -> Path:
    header = TEST_HEADERS[task.name]
    columns = header.split("|" if "|" in header else " ")
    lines = ["\t".join(row.get(column, "-") for column in columns) for row in rows]
    path = folder / task.test
    path.write_text("\n".join(["\t".join(columns), *lines]) + "\n", encoding="utf-8")
    return path


test_file.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", TASKS)
def test_test_sets(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    columns = ("sentence",) if name == "cola" else task.text_columns
    number = TEST_HEADERS[name].split("|")[0].split(" ")[0]
    rows = [
        {number: str(i), **{str(column): f"{column} {i}" for column in columns}} for i in (4, 0, 11)
    ]
    found = read_test_set([test_file(tmp_path, task, rows)], task)
    assert found.ids == ("4", "0", "11")
    assert found.texts == [f"{columns[0]} {i}" for i in (4, 0, 11)]
    assert found.pairs == (None if len(columns) == 1 else [f"{columns[1]} {i}" for i in (4, 0, 11)])
    records = [
        {"idx": i, "label": -1} | {field: f"{field} {i}" for field in task.fields}
        for i in (4, 0, 11)
    ]
    found = read_test_set([write_lines(tmp_path / "test.jsonl", records)], task)
    assert (found.ids, len(found)) == (("4", "0", "11"), 3)


def test_faults_of_test_sets(tmp_path: Path) -> None:
    path = tmp_path / "test.tsv"
    task = TASKS["sst2"]
    for content, message in (
        ("", "expected a header and examples, found an empty file"),
        ("index\tsentence\n", "expected examples, found none"),
        ("index\ttext\n0\tx\n", "line 1: expected columns index, sentence, found no 'sentence'"),
        ("index\tsentence\n0\tx\ty\n", "line 2: expected 2 columns, found 3"),
        ("index\tsentence\n0\t \n", "line 2: expected a number and text"),
        ("index\tsentence\nx\ty\n", "line 2: expected a number and text"),
        ("index\tsentence\n1\tx\n1\ty\n", "line 3: expected a number of its own, found another 1"),
        ("index\tsentence\n01\tx\n", "line 2: expected a number and text"),
        ("index\tsentence\n-1\tx\n", "line 2: expected a number and text"),
        ("index\tsentence\n\u0661\tx\n", "line 2: expected a number and text"),
        (f"index\tsentence\n{'9' * 5000}\tx\n", "line 2: expected a number and text"),
        ("index\tsentence\n0\t\0\x01\n", "line 2: expected a number and text"),
        ("index\tsentence\n0\tx\t\n", "line 2: expected 2 columns, found 3"),
        ("index\tindex\tsentence\n0\t1\tx\n", "line 1: expected one column 'index', found 2"),
        ("index\tsentence\tsentence\n0\tx\ty\n", "line 1: expected one column 'sentence', fou"),
    ):
        path.write_text(content)
        assert message in error_of(lambda: read_test_set([path], task))


@pytest.mark.parametrize("task", ["sst2", "cola"])
@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("index\tsentence", "{}\t{}"),
        ("id\tsentence", "{}\t{}"),
        ("\tsentence", "{}\t{}"),
        ("index\tsentence\t", "{}\t{}\t"),
        ("sentence\tindex", "{1}\t{0}"),
        ("label\tsentence\tindex\tlabel", "x\t{1}\t{0}\ty"),
    ],
)
def test_headers_of_test_sets(task: str, header: str, row: str, tmp_path: Path) -> None:
    """The number is found by its name, or else is the first; other columns may be anything."""
    path = tmp_path / "test.tsv"
    lines = [header, *(row.format(*cells) for cells in ((4, "a"), (2, "b")))]
    path.write_text("\n".join(lines) + "\n")
    found = read_test_set([path], TASKS[task])
    assert (found.ids, found.texts) == (("4", "2"), ["a", "b"])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1, 1], "line 2: expected a number of its own, found another 1"),
        ([1, "1"], "line 2: expected a number of its own, found another 1"),
        ([1, None], "line 2: idx: expected a number, as in the rows before, found None"),
        ([None, 1], "line 2: idx: expected none, as before, found 1"),
        ([1.0], "line 1: idx: expected a number, found 1.0"),
        ([True], "line 1: idx: expected a number, found True"),
        (["1\t2"], "line 1: idx: expected a number, found '1\\t2'"),
        (["1\n"], "line 1: idx: expected a number, found '1\\n'"),
        ([-1], "line 1: idx: expected a number, found '-1'"),
        ([[1]], "line 1: idx: expected a number, found [1]"),
        ([10**30], "line 1: idx: expected a number, found '1000000"),
    ],
)
def test_numbers_of_records(numbers: list[Any], message: str, tmp_path: Path) -> None:
    rows = [{"sentence": "x", "idx": number} for number in numbers]
    path = write_lines(tmp_path / "test.jsonl", rows)
    assert message in error_of(lambda: read_test_set([path], TASKS["sst2"]))


def test_test_sets_in_several_files(tmp_path: Path) -> None:
    """Rows are numbered over all of them; a number of two rows is refused, wherever they are."""
    task = TASKS["sst2"]
    plain = [
        write_lines(tmp_path / f"{i}.jsonl", [{"sentence": f"{i}{j}"} for j in range(2)])
        for i in range(2)
    ]
    found = read_test_set(plain, task)
    assert (found.ids, found.texts) == (("0", "1", "2", "3"), ["00", "01", "10", "11"])
    same = write_lines(tmp_path / "same.jsonl", [{"sentence": "x", "idx": 3}])
    assert error_of(lambda: read_test_set([*plain, same], task)) == (
        f"{same} line 1: expected a number of its own, found another 3"
    )


def test_a_column_twice(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_text("sentence\tlabel\tsentence\na\t1\tb\n")
    assert error_of(lambda: read_examples(path, TASKS["sst2"])) == (
        f"{path} line 1: expected one column 'sentence', found 2"
    )
    path.write_text("sentence\tlabel\tother\tother\na\t1\tb\tc\n")
    assert read_examples(path, TASKS["sst2"]).texts == ["a"]


@pytest.mark.parametrize("text", ["\0", "\x01\x02", "\u200b", "\ufeff \u202e", "\x7f"])
def test_only_control_characters(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(f"sentence\tlabel\nfine\t1\n{text}\t1\n".encode())
    message = error_of(lambda: read_examples(path, TASKS["sst2"]))
    assert message.startswith(f"{path} line 3: expected text, found '\\")


@pytest.mark.parametrize(
    ("name", "predictions", "shown"),
    [
        ("sst2", [1, 0], ["1", "0"]),
        ("cola", [0, 1], ["0", "1"]),
        ("mrpc", [1, 0], ["1", "0"]),
        ("qqp", [1, 0], ["1", "0"]),
        ("wnli", [1, 0], ["1", "0"]),
        ("rte", [0, 1], ["entailment", "not_entailment"]),
        ("qnli", [0, 1], ["entailment", "not_entailment"]),
        ("mnli", [2, 1], ["contradiction", "neutral"]),
        ("mnli-mm", [0, 1], ["entailment", "neutral"]),
        ("stsb", [5.2, 1.23456], ["5.000", "1.235"]),
    ],
)
def test_submissions(name: str, predictions: list[Any], shown: list[str]) -> None:
    text = submission(TASKS[name], ["7", "8"], np.array(predictions))
    assert text == f"index\tprediction\n7\t{shown[0]}\n8\t{shown[1]}\n"


def test_a_test_set_is_glues(tmp_path: Path) -> None:
    assert error_of(lambda: prepare("bert-tiny-sst2", "squad", tmp_path, test=True)) == (
        "task squad: expected a task of GLUE, as no other has a test set"
    )


# The hub's data sets; the client is a process of its own, with a cache of its own


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


def client(hub: HubServer, cache: Path, *argv: str, **variables: str) -> dict[str, Any] | str:
    """A command's report, or its error."""
    done = subprocess.run(
        [sys.executable, "-m", "bert_numpy", *argv, "--json", "-"],
        env=hub.environment(cache, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def parquet_bytes(folder: Path, records: list[dict[str, Any]]) -> bytes:
    return write_parquet(folder / "part.parquet", records).read_bytes()


@pytest.mark.usefixtures("pyarrow")
def test_glue_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    reviews = {
        name: read_examples(REVIEWS / f"{name}.tsv", TASKS["sst2"]).select(range(12))
        for name in ("dev", "train")
    }
    parts = {
        name: parquet_bytes(tmp_path, hub_records(examples, "sst2"))
        for name, examples in reviews.items()
    }
    records = [
        {"sentence": text, "label": -1, "idx": i} for i, text in enumerate(reviews["dev"].texts)
    ]
    hub.add(
        "nyu-mll/glue",
        {
            "README.md": b"# GLUE",
            "sst2/validation-00000-of-00001.parquet": parts["dev"],
            "sst2/train-00000-of-00001.parquet": parts["train"],
            "sst2/test-00000-of-00001.parquet": parquet_bytes(tmp_path, records),
            "cola/validation-00000-of-00001.parquet": b"not asked for",
        },
        kind="dataset",
    )
    options = ("--task", "sst2", "--format", "e4m3")
    evaluate = ("evaluate", "bert-tiny-sst2", *options)
    local = tmp_path / "local"
    for name, examples in reviews.items():
        write_lines(local / f"{name}.jsonl", hub_records(examples, "sst2"))
    expected = client(hub, tmp_path / "cache", *evaluate, "--data", str(local))
    assert not hub.requests
    found = client(hub, tmp_path / "cache", *evaluate, "--data", "nyu-mll/glue")
    assert isinstance(found, dict), found
    assert isinstance(expected, dict), expected
    assert found["logits_sha256"] == expected["logits_sha256"]
    assert hub.fetched() == [
        "sst2/train-00000-of-00001.parquet",
        "sst2/validation-00000-of-00001.parquet",
    ]

    # Away from the hub the cache serves what it has, and says what it has not.
    hub.status = 503
    offline = {"HF_HUB_OFFLINE": "1"}
    again = client(hub, tmp_path / "cache", *evaluate, "--data", "nyu-mll/glue", **offline)
    assert isinstance(again, dict), again
    assert again["logits_sha256"] == expected["logits_sha256"]
    argv = ("evaluate", "bert-tiny-sst2", "--task", "cola", "--data", "nyu-mll/glue")
    text = client(hub, tmp_path / "cache", *argv, **offline)
    assert "from the hub: it is not whole in the cache, and HF_HUB_OFFLINE is set" in str(text)
    text = client(hub, tmp_path / "other", *evaluate, "--data", "nyu-mll/glue", **offline)
    assert str(text).startswith("bert-numpy: nyu-mll/glue: expected a dataset folder or a hub id, ")
    assert str(text).count("\n") == 1

    hub.status = 200
    out = tmp_path / "SST-2.tsv"
    argv = ("submit", "bert-tiny-sst2", *options, "--data", "nyu-mll/glue", str(out))
    assert isinstance(client(hub, tmp_path / "cache", *argv), dict)
    rows = [f"{i}\t{prediction}" for i, prediction in enumerate(expected["predictions"])]
    assert out.read_text().splitlines() == ["index\tprediction", *rows]


@pytest.mark.usefixtures("pyarrow")
def test_squad_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    model = write_checkpoint(
        tmp_path / "model", config_overrides={"architectures": ["BertForQuestionAnswering"]}
    )
    records = [
        {
            "id": str(i),
            "context": "a warm film",
            "question": "what film?",
            "answers": {"text": ["film"], "answer_start": [7]},
        }
        for i in range(5)
    ]
    content = parquet_bytes(tmp_path, records[:3]), parquet_bytes(tmp_path, records[3:])
    names = [f"plain_text/validation-0000{i}-of-00002.parquet" for i in range(2)]
    hub.add("rajpurkar/squad", dict(zip(names, content, strict=True)), kind="dataset")
    options = ("--task", "squad", "--max-length", "64", "--data")
    argv = ("evaluate", str(model), *options, "rajpurkar/squad")
    found = client(hub, tmp_path / "cache", *argv)
    assert isinstance(found, dict), found
    assert list(found["predictions"]) == ["0", "1", "2", "3", "4"]
    text = client(hub, tmp_path / "cache", *argv, "--format", "e4m3")  # there is no training part
    assert "rajpurkar/squad: expected one of train-v1.1.json, " in str(text)
    text = client(hub, tmp_path / "cache", *argv[:-1], "rajpurkar/none")
    assert str(text).startswith("bert-numpy: rajpurkar/none: expected a dataset folder or a hub id")

"""The GLUE readers: the official layouts, their contents, and the errors in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_numpy.errors import BertNumpyError
from bert_numpy.tasks.glue import (
    TASKS,
    Examples,
    label_order,
    read_examples,
    task_named,
)

PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")

HEADERS = {
    "sst2": "sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "rte": "index sentence1 sentence2 label",
    "qnli": "index question sentence label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "wnli": "index sentence1 sentence2 label",
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    "sentence1_parse sentence2_parse sentence1 sentence2 label1 label2 label3 label4 label5 "
    "gold_label",
}
HEADERS["mnli-mm"] = HEADERS["mnli"]
MNLI_TRAIN = HEADERS["mnli"].replace(" label2 label3 label4 label5", "")

NUMBERED = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")
LABELS = {
    "sst2": NUMBERED,
    "cola": NUMBERED,
    "mrpc": NUMBERED,
    "qqp": NUMBERED,
    "wnli": NUMBERED,
    "rte": ENTAILMENT,
    "qnli": ENTAILMENT,
    "mnli": NLI,
    "mnli-mm": NLI,
    "stsb": ("0.0", "5.0", "2.667"),
}
TEXT_COLUMNS = {
    "sst2": ["sentence"],
    "mrpc": ["#1 String", "#2 String"],
    "qnli": ["question", "sentence"],
    "qqp": ["question1", "question2"],
}
LABEL_COLUMNS = {
    "mrpc": "Quality",
    "stsb": "score",
    "qqp": "is_duplicate",
    "mnli": "gold_label",
    "mnli-mm": "gold_label",
}


def header_of(task: str) -> list[str]:
    header = HEADERS[task]
    return header.split("|" if "|" in header else " ")


def row_of(task: str, texts: list[str], label: str, header: list[str] | None = None) -> str:
    """A row in a task's layout, what is not read filled with what must not be taken for it."""
    if task == "cola":
        return "\t".join(["gj04", label, "*", texts[0]])
    columns = TEXT_COLUMNS.get(task, ["sentence1", "sentence2"])
    cells = dict.fromkeys(header or header_of(task), "neutral") | dict(
        zip(columns, texts, strict=True)
    )
    cells[LABEL_COLUMNS.get(task, "label")] = label
    return "\t".join(cells.values())


def file_of(folder: Path, task: str, rows: list[str], name: str = "dev.tsv") -> Path:
    lines = rows if task == "cola" else ["\t".join(header_of(task)), *rows]
    path = folder / name
    path.write_bytes("".join(f"{line}\n" for line in lines).encode())
    return path


def texts_of(task: str, *texts: str) -> list[str]:
    return list(texts[: 1 if task in ("sst2", "cola") else 2])


def read(folder: Path, task: str, rows: list[str]) -> Examples:
    return read_examples(file_of(folder, task, rows), TASKS[task])


def error_of(path: Path, task: str) -> str:
    with pytest.raises(BertNumpyError) as error:
        read_examples(path, TASKS[task])
    return str(error.value)


@pytest.mark.parametrize("task", TASKS)
def test_official_layout(task: str, tmp_path: Path) -> None:
    labels = [*LABELS[task], LABELS[task][0]]
    rows = [
        row_of(task, texts_of(task, f"first {i}", f"second {i}"), label)
        for i, label in enumerate(labels)
    ]
    examples = read(tmp_path, task, rows)
    n = len(labels)
    assert len(examples) == n
    assert examples.texts == [f"first {i}" for i in range(n)]
    if len(texts_of(task, "", "")) == 2:
        assert examples.pairs == [f"second {i}" for i in range(n)]
    else:
        assert examples.pairs is None
    if task == "stsb":
        assert examples.labels.dtype == np.float64
        assert examples.labels.tolist() == [0.0, 5.0, 2.667, 0.0]
    else:
        assert examples.labels.dtype == np.int64
        assert examples.labels.tolist() == [*range(n - 1), 0]


def test_numbers_and_names_of_classes_agree() -> None:
    """GLUE numbers WNLI's classes in the reverse of the order that RTE and QNLI have."""
    assert TASKS["wnli"].labels == ("not_entailment", "entailment")
    assert TASKS["rte"].labels == TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert TASKS["sst2"].labels == ("negative", "positive")
    assert TASKS["cola"].labels == ("unacceptable", "acceptable")


def test_official_metrics() -> None:
    assert {name: task.metrics for name, task in TASKS.items()} == {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("accuracy", "f1"),
        "stsb": ("pearson", "spearmanr"),
        "qqp": ("accuracy", "f1"),
        "mnli": ("accuracy",),
        "mnli-mm": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }


def test_mnli_train_has_twelve_columns(tmp_path: Path) -> None:
    header = MNLI_TRAIN.split()
    assert len(header) == 12
    row = row_of("mnli", ["a premise", "a hypothesis"], "contradiction", header)
    path = tmp_path / "train.tsv"
    path.write_text("\n".join(["\t".join(header), row]))
    examples = read_examples(path, TASKS["mnli"])
    assert (examples.texts, examples.pairs) == (["a premise"], ["a hypothesis"])
    assert examples.labels.tolist() == [2]


@pytest.mark.parametrize(
    "text",
    [
        'he said "no',
        '"quoted"',
        '"',
        "''",
        "back\\slash",
        "line\u2028separator",
        "paragraph\u2029separator",
        "next\x85line",
        "vertical\vtab",
        "form\ffeed",
        "file\x1cseparator",
        "carriage\rreturn inside",
        "caf\u00e9 \U0001f600",
        "  spaces kept  ",
        "\ufeffmark inside",
    ],
)
@pytest.mark.parametrize("task", ["sst2", "cola", "mrpc"])
def test_cell_is_literal(task: str, text: str, tmp_path: Path) -> None:
    texts = texts_of(task, text, "other")
    examples = read(tmp_path, task, [row_of(task, texts, "1"), row_of(task, texts, "0")])
    assert examples.texts == [text, text]
    assert examples.labels.tolist() == [1, 0]


@given(
    st.lists(
        st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1)
        .map(lambda text: f"x{text}")
        .flatmap(lambda text: st.tuples(st.just(text), st.sampled_from("01"))),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    newline: str,
    mark: bool,
    final_newline: bool,
) -> None:
    text = newline.join(["label\tsentence", *(f"{label}\t{text}" for text, label in rows)])
    path = tmp_path_factory.mktemp("data") / "dev.tsv"
    path.write_bytes(b"\xef\xbb\xbf" * mark + text.encode() + newline.encode() * final_newline)
    examples = read_examples(path, TASKS["sst2"])
    assert examples.texts == [text for text, _ in rows]
    assert examples.labels.tolist() == [int(label) for _, label in rows]


def test_bom_before_a_file_without_header(tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(b"\xef\xbb\xbfgj04\t1\t\tFine.\r\ngj04\t0\t*\tFine not.")
    examples = read_examples(path, TASKS["cola"])
    assert examples.texts == ["Fine.", "Fine not."]
    assert examples.labels.tolist() == [1, 0]


QQP_BROKEN = [
    "5\t1\t2\tone question",
    "6\t1\t2\tone question\tanother",
    "7",
    "",
    "8\t1\t2\t\tanother\t1",
    "9\t1\t2\tone question\t  \t0",
]


def qqp_rows() -> list[str]:
    good = [row_of("qqp", ["how?", "why?"], "1"), row_of("qqp", ["who?", "where?"], "0")]
    return [good[0], *QQP_BROKEN, good[1]]


def test_broken_rows_of_qqp_training_are_dropped(tmp_path: Path) -> None:
    path = file_of(tmp_path, "qqp", qqp_rows(), "train.tsv")
    examples = read_examples(path, TASKS["qqp"])
    assert examples.texts == ["how?", "who?"]
    assert examples.pairs == ["why?", "where?"]
    assert examples.labels.tolist() == [1, 0]


@pytest.mark.parametrize("broken", QQP_BROKEN)
def test_broken_rows_of_qqp_dev_are_errors(broken: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, "qqp", [broken])
    assert f"{path} line 2: expected " in error_of(path, "qqp")


def test_other_faults_of_qqp_training_are_errors(tmp_path: Path) -> None:
    rows = [row_of("qqp", ["how?", "why?"], "2")]
    assert "line 2: expected label 0 or 1, found '2'" in error_of(
        file_of(tmp_path, "qqp", rows, "train.tsv"), "qqp"
    )
    rows = [row_of("qqp", ["how?", "why?"], "1") + "\tmore"]
    assert "line 2: expected 6 columns, found 7" in error_of(
        file_of(tmp_path, "qqp", rows, "train.tsv"), "qqp"
    )


def test_broken_rows_of_other_training_are_errors(tmp_path: Path) -> None:
    path = file_of(tmp_path, "sst2", ["no label"], "train.tsv")
    assert error_of(path, "sst2") == f"{path} line 2: expected 2 columns, found 1"


def counted(path: Path, column: int, first_line: int) -> Counter[str]:
    """The cells of a column, found with nothing but bytes."""
    lines = path.read_bytes().rstrip(b"\r\n").split(b"\n")[first_line:]
    return Counter(line.rstrip(b"\r").split(b"\t")[column].decode() for line in lines)


@pytest.mark.parametrize("part", ["dev", "train"])
@pytest.mark.parametrize(
    ("task", "folder", "column", "first_line", "dev_count"),
    [
        ("sst2", "SST-2", 1, 1, 872),
        ("cola", "CoLA", 1, 0, 1043),
        ("mrpc", "MRPC", 0, 1, 408),
        ("rte", "RTE", 3, 1, 277),
        ("stsb", "STS-B", 9, 1, 1500),
    ],
)
def test_official_files(
    glue: Path, task: str, folder: str, column: int, first_line: int, dev_count: int, part: str
) -> None:
    path = glue / folder / f"{part}.tsv"
    examples = read_examples(path, TASKS[task])
    expected = counted(path, column, first_line)
    assert len(examples) == expected.total()
    if part == "dev":
        assert len(examples) == dev_count
    if task == "stsb":
        assert Counter(examples.labels.tolist()) == Counter(map(float, expected.elements()))
    else:
        names = LABELS[task]
        assert {names[k]: n for k, n in Counter(examples.labels.tolist()).items()} == expected


def test_official_texts(glue: Path) -> None:
    mrpc = read_examples(glue / "MRPC" / "dev.tsv", TASKS["mrpc"])
    assert mrpc.pairs is not None
    assert mrpc.pairs[0].startswith('"The foodservice pie business')
    cola = read_examples(glue / "CoLA" / "dev.tsv", TASKS["cola"])
    assert cola.texts[0] == "The sailors rode the breeze clear of the rocks."


@pytest.mark.parametrize("task", TASKS)
def test_missing_file(task: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    assert error_of(path, task) == f"{path}: no such file"


def test_folder_as_file(tmp_path: Path) -> None:
    assert error_of(tmp_path, "sst2").startswith(f"{tmp_path}: expected a file, found")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf"])
def test_empty_file(task: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(content)
    message = error_of(path, task)
    assert message.startswith(f"{path}: expected ")
    assert "examples, found " in message


@pytest.mark.parametrize("task", HEADERS)
def test_header_only(task: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, task, [])
    assert error_of(path, task) == f"{path}: expected examples, found none"


@pytest.mark.parametrize("task", HEADERS)
def test_missing_column(task: str, tmp_path: Path) -> None:
    header = header_of(task)
    for name in (
        *TEXT_COLUMNS.get(task, ["sentence1", "sentence2"]),
        LABEL_COLUMNS.get(task, "label"),
    ):
        path = tmp_path / "dev.tsv"
        path.write_text("\t".join("other" if cell == name else cell for cell in header) + "\n")
        message = error_of(path, task)
        assert message.startswith(f"{path} line 1: expected columns ")
        assert f"found no {name!r} in " in message


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("task", TASKS)
def test_wrong_number_of_columns(task: str, change: int, tmp_path: Path) -> None:
    texts = texts_of(task, "first", "second")
    good = row_of(task, texts, LABELS[task][0])
    bad = f"{good}\tmore" if change > 0 else good.rpartition("\t")[0]
    path = file_of(tmp_path, task, [good, bad])
    line = 2 if task == "cola" else 3
    width = good.count("\t") + 1
    assert error_of(path, task) == (
        f"{path} line {line}: expected {width} columns, found {width + change}"
    )


@pytest.mark.parametrize("label", ["", "2", "-1", "1.0", "positive", "Entailment", "01", "-", "1 "])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "stsb"])
def test_bad_label(task: str, label: str, tmp_path: Path) -> None:
    texts = texts_of(task, "first", "second")
    path = file_of(tmp_path, task, [row_of(task, texts, label)])
    line = 1 if task == "cola" else 2
    expected = " or ".join(LABELS[task])
    assert error_of(path, task) == f"{path} line {line}: expected label {expected}, found {label!r}"


@pytest.mark.parametrize("score", ["", "high", "nan", "inf", "-0.001", "5.001", "1,5", "1e3"])
def test_bad_score(score: str, tmp_path: Path) -> None:
    path = file_of(tmp_path, "stsb", [row_of("stsb", ["one", "two"], score)])
    assert error_of(path, "stsb") == f"{path} line 2: expected a score 0..5, found {score!r}"


@pytest.mark.parametrize("blank", ["", " ", "\u00a0", "\u3000 "])
@pytest.mark.parametrize("task", TASKS)
def test_blank_text(task: str, blank: str, tmp_path: Path) -> None:
    words = texts_of(task, "first", "second")
    line = 1 if task == "cola" else 2
    for i in range(len(words)):
        texts = [blank if i == j else text for j, text in enumerate(words)]
        path = file_of(tmp_path, task, [row_of(task, texts, LABELS[task][0])])
        assert error_of(path, task) == f"{path} line {line}: expected text, found a blank cell"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_invalid_utf8(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(mark + b"sentence\tlabel\ncaf\xc3\xa9\t1\ncaf\xe9\t1\n")
    assert error_of(path, "sst2").startswith(f"{path} line 3: expected UTF-8, found ")


def test_first_fault_is_named(tmp_path: Path) -> None:
    path = file_of(tmp_path, "sst2", ["good\t1", "bad\t7", "worse"])
    assert "line 3: expected label" in error_of(path, "sst2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sst2", "sst2"),
        ("SST-2", "sst2"),
        ("sst_2", "sst2"),
        ("CoLA", "cola"),
        ("STS-B", "stsb"),
        ("sts_b", "stsb"),
        ("MNLI", "mnli"),
        ("mnli-matched", "mnli"),
        ("mnli_matched", "mnli"),
        ("mnli-mm", "mnli-mm"),
        ("MNLI_MM", "mnli-mm"),
        ("mnli_mismatched", "mnli-mm"),
        *((name, name) for name in TASKS),
    ],
)
def test_task_names(name: str, expected: str) -> None:
    assert task_named(name).name == expected


@pytest.mark.parametrize(
    ("name", "suggested"), [("", ""), ("squad", ""), ("sst", "sst2"), ("sst22", "sst2")]
)
def test_unknown_task(name: str, suggested: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        task_named(name)
    message = str(error.value)
    assert message.startswith("task: expected one of ")
    assert all(known in message for known in TASKS)
    end = f"; did you mean {suggested!r}?" if suggested else ""
    assert message.endswith(f"found {name!r}{end}")


def numbered(n: int, pairs: bool = True) -> Examples:
    others = [f"pair {i}" for i in range(n)] if pairs else None
    return Examples([f"text {i}" for i in range(n)], others, np.arange(n))


@given(st.integers(1, 400), st.integers(1, 400))
def test_sample_is_spread_by_the_integer_rule(n: int, count: int) -> None:
    rows = list(range(n)) if count >= n else [i * n // count for i in range(count)]
    sample = numbered(n).sample(count)
    assert sample.labels.tolist() == rows
    assert sample.texts == [f"text {i}" for i in rows]
    assert sample.pairs == [f"pair {i}" for i in rows]
    assert len(set(rows)) == min(n, count)


def test_sample_by_hand() -> None:
    assert numbered(10).sample(4).labels.tolist() == [0, 2, 5, 7]
    assert numbered(67_349, pairs=False).sample(256).labels[[0, 1, 2, 255]].tolist() == [
        *(0, 263, 526, 67_085)
    ]


@pytest.mark.parametrize("pairs", [True, False])
def test_select_keeps_the_given_order(pairs: bool) -> None:
    chosen = numbered(5, pairs).select([3, 0, 3])
    assert chosen.texts == ["text 3", "text 0", "text 3"]
    assert chosen.pairs == (["pair 3", "pair 0", "pair 3"] if pairs else None)
    assert chosen.labels.tolist() == [3, 0, 3]


@pytest.mark.parametrize(
    ("names", "task", "expected"),
    [
        (("negative", "positive"), "sst2", [0, 1]),
        (("POSITIVE", "NEGATIVE"), "sst2", [1, 0]),
        (("LABEL_0", "LABEL_1"), "sst2", [0, 1]),
        (("label_0", "Label 1"), "sst2", [0, 1]),
        (("LABEL_0", "LABEL_1", "LABEL_2"), "mnli", [0, 1, 2]),
        (("0", "1"), "wnli", [0, 1]),
        (("1", "0"), "sst2", [1, 0]),
        (("2", "0", "1"), "mnli", [2, 0, 1]),
        ((" positive\t", "Negative "), "sst2", [1, 0]),
        (("contradiction", "entailment", "neutral"), "mnli", [2, 0, 1]),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), "mnli-mm", [2, 1, 0]),
        (("not_entailment", "entailment"), "rte", [1, 0]),
        (("Not-Entailment", "Entailment"), "qnli", [1, 0]),
        (("not entailment", "entailment"), "wnli", [0, 1]),
        (("Not  Equivalent", "EQUIVALENT"), "mrpc", [0, 1]),
        (("duplicate", "not-duplicate"), "qqp", [1, 0]),
        (("acceptable", "unacceptable"), "cola", [1, 0]),
        (("similarity",), "stsb", [0]),
        (("LABEL_0",), "stsb", [0]),
        (("positive",), "stsb", [0]),
    ],
)
def test_label_order(names: tuple[str, ...], task: str, expected: list[int]) -> None:
    order = label_order(names, TASKS[task])
    assert order.dtype == np.int64
    assert order.tolist() == expected


@pytest.mark.parametrize(
    ("names", "task"),
    [
        (("pos", "neg"), "sst2"),
        (("neg", "pos"), "sst2"),
        (("positive", "positive"), "sst2"),
        (("negative", "negative"), "sst2"),
        (("positive", "LABEL_1"), "sst2"),
        (("negative", "1"), "sst2"),
        (("LABEL_1", "LABEL_0"), "sst2"),
        (("LABEL_1", "LABEL_2"), "sst2"),
        (("LABEL_0", "LABEL_0"), "sst2"),
        (("1", "2"), "sst2"),
        (("0", "0"), "sst2"),
        (("", ""), "sst2"),
        (("Good review", "Bad review"), "sst2"),
        (("4 stars", "1 star"), "sst2"),
        (("entailment", "not_entailment"), "sst2"),
        (("negative", "positive"), "rte"),
        (("unacceptable", "acceptable"), "mrpc"),
        (("paraphrase", "no paraphrase"), "mrpc"),
        (("duplicate", "different"), "qqp"),
        (("entailment", "contradiction"), "rte"),
        (("notentailment", "entailment"), "qnli"),
        (("contradiction", "entailment", "not_entailment"), "mnli"),
        (("negative", "neutral", "positive"), "mnli"),
    ],
)
def test_labels_that_do_not_tell_the_order(names: tuple[str, ...], task: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        label_order(names, TASKS[task])
    message = str(error.value)
    wanted = ", ".join(TASKS[task].labels)
    assert message.startswith(f"task {task}: expected labels {wanted} in any order, or LABEL_0, ")
    assert f"found {', '.join(names)}: " in message
    assert "'id2label'" in message


@pytest.mark.parametrize("problem_type", [None, *PROBLEMS])
@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_outputs_of_another_kind(task: str, problem_type: str | None) -> None:
    """Scores are no logits of classes. Of independent labels, the likeliest is the answer."""
    names = ("similarity",) if task == "stsb" else ("positive", "negative")
    if problem_type is None or (problem_type == "regression") == (task == "stsb"):
        order = label_order(names, TASKS[task], problem_type)
        assert order.tolist() == ([0] if task == "stsb" else [1, 0])
        return
    with pytest.raises(BertNumpyError, match=f"found 'problem_type' '{problem_type}'"):
        label_order(names, TASKS[task], problem_type)


@pytest.mark.parametrize(
    ("names", "task", "outputs"),
    [
        (("a", "b", "c"), "sst2", 2),
        (("a", "b"), "mnli", 3),
        (("a", "b"), "stsb", 1),
        (("a",), "cola", 2),
    ],
)
def test_head_of_another_size(names: tuple[str, ...], task: str, outputs: int) -> None:
    with pytest.raises(BertNumpyError) as error:
        label_order(names, TASKS[task])
    assert str(error.value) == (
        f"task {task}: expected a model with {outputs} outputs, found {len(names)}: "
        f"{', '.join(names)}"
    )

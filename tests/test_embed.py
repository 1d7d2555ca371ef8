"""Sentence encoders: embed, calibrate, compare and quantize without a task, STS-B by cosine."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import (
    VOCABULARY,
    assert_same_calibrations,
    random_tensors,
    write_encoder,
    write_tensors,
)
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, apply_recipe, load, load_calibration
from bert_numpy.assets import REVIEWS
from bert_numpy.commands.main import main
from bert_numpy.evaluation.embed import embed, similarity
from bert_numpy.evaluation.job import calibrate_on_sentences, prepare, prepare_texts, run
from bert_numpy.finite import NO_CLASS
from bert_numpy.study.cells import Subject, calibrate_subject, cells_of, merged, run_cell
from bert_numpy.tasks.similarity import STSB_COSINE, cosines, neighbours
from bert_numpy.tasks.texts import read_texts
from bert_numpy.tasks.tokenization import load_tokenizer

Capture = pytest.CaptureFixture[str]

WORDS = [word for word in VOCABULARY if word.isalpha()]
#: More texts than a batch holds, of many lengths, so that their order is not the batches'.
TEXTS = [
    " ".join(WORDS[(7 * i + 3 * j * j) % len(WORDS)] for j in range(1 + 5 * i % 17))
    for i in range(40)
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def place(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an encoder, texts a line each, and pairs with scores."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(source, "model")
    Path("texts.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    pairs = enumerate(zip(TEXTS, TEXTS[::-1], strict=True))
    rows = [f"{a}\t{b}\t{i % 11 / 2}\n" for i, (a, b) in pairs]
    Path("STS-B").mkdir()
    for name in ("dev.tsv", "train.tsv"):
        Path("STS-B", name).write_text("sentence1\tsentence2\tscore\n" + "".join(rows))
    return tmp_path


def ran(line: str) -> dict[str, Any]:
    assert main([*line.split(), "--json", "report.json"]) == 0
    report = json.loads(Path("report.json").read_text())
    assert isinstance(report, dict)
    return report


def error_of(capsys: Capture, line: str) -> str:
    capsys.readouterr()
    assert main(line.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("bert-numpy: ")
    assert output.err.count("\n") == 1
    return output.err.removeprefix("bert-numpy: ").rstrip("\n")


def one_by_one(folder: Path, texts: list[str]) -> np.ndarray:
    """Each text's vector, run alone: without padding, batches or an order to restore."""
    model, tokenizer = load(folder), load_tokenizer(folder)
    rows = [model(**tokenizer.batch([text])).sentence_embedding for text in texts]
    return np.concatenate([row for row in rows if row is not None])


# The function


def test_vectors_are_in_the_texts_order(source: Path) -> None:
    vectors = bert_numpy.embed(load(source), load_tokenizer(source), TEXTS, batch_size=7)
    assert (vectors.dtype, vectors.shape) == (np.float32, (40, 16))
    # Batches differ by float32 sums in another order: at most some ulps of values around 1.
    np.testing.assert_allclose(vectors, one_by_one(source, TEXTS), rtol=0, atol=1e-5)


def test_golden_vectors_do_not_depend_on_the_batch(source: Path) -> None:
    tokenizer = load_tokenizer(source)
    model = apply_recipe(load(source), PRESETS["fp32"], golden=True)
    alone = np.concatenate([embed(model, tokenizer, [text]) for text in TEXTS[:9]])
    for size, threads in ((2, 1), (9, 2)):
        assert_same_bits(embed(model, tokenizer, TEXTS[:9], size, threads=threads), alone)


def test_what_cannot_be_embedded(source: Path) -> None:
    model, tokenizer = load(source), load_tokenizer(source)
    for texts, message in (([], "at least one text"), (["a", " "], "text 2: expected words")):
        with pytest.raises(BertNumpyError, match=message):
            embed(model, tokenizer, texts)
    with pytest.raises(BertNumpyError, match=r"max_length: expected 3\.\.128, found 129"):
        embed(model, tokenizer, ["a"], max_length=129)
    with pytest.raises(BertNumpyError, match="expected a model for sentence embeddings"):
        embed(load("bert-tiny-sst2"), tokenizer, ["a"])


def test_long_texts_are_cut_as_the_folder_says(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(source, folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    model, tokenizer = load(folder), load_tokenizer(folder)
    long = " ".join(WORDS[i % len(WORDS)] for i in range(300))
    first = " ".join(long.split()[:7])  # between [CLS] and [SEP]
    assert_same_bits(embed(model, tokenizer, [long]), embed(model, tokenizer, [first]))
    assert not np.array_equal(
        embed(model, tokenizer, [long]), embed(model, tokenizer, [long], max_length=8)
    )


# Files of texts


def test_a_line_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes("\ufeffa \u201cfilm\u201d\r\n\tsentence\tlabel\nlast".encode())
    assert read_texts(file) == ["a \u201cfilm\u201d", "\tsentence\tlabel", "last"]


def test_sentences_in_a_tasks_layout(tmp_path: Path) -> None:
    assert read_texts(REVIEWS / "train.tsv")[0] != "sentence\tlabel"
    assert len(read_texts(REVIEWS / "train.tsv")) == 100
    file = tmp_path / "x.jsonl"
    file.write_text('{"sentence": "a film", "label": 1}\n')
    assert read_texts(file) == ["a film"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": expected texts, a line each, found none"),
        (b"a\n\nb\n", " line 2: expected text, found ''"),
        (b"a\n \t\n", " line 2: expected text, found ' \\t'"),
        (b"a\n\xff\n", " line 2: expected UTF-8, found invalid start byte"),
        (b"sentence\tlabel\na\n", " line 2: expected 2 columns, found 1"),
    ],
)
def test_files_that_are_no_texts(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_bytes(content)
    with pytest.raises(BertNumpyError) as error:
        read_texts(file)
    assert str(error.value) == f"{file}{message}"


# embed


def test_every_file_has_the_same_vectors(place: Path, capsys: Capture) -> None:
    report = ran("embed model texts.txt --out v.npy")
    assert report == {
        **{"model": "model", "format": "fp32", "accumulate": "exact", "golden": False},
        **{"texts": 40, "truncated": 0, "width": 16, "out": "v.npy"},
    }
    assert capsys.readouterr().out == (
        "model, fp32, 40 texts, vectors of 16 numbers\nwritten: v.npy\n"
    )
    vectors = np.load("v.npy", allow_pickle=False)
    assert (vectors.dtype, vectors.shape) == (np.float32, (40, 16))
    np.testing.assert_allclose(vectors, one_by_one(Path("model"), TEXTS), rtol=0, atol=1e-5)
    assert main(["embed", "model", "texts.txt", "--out", "v.jsonl"]) == 0
    rows = [json.loads(line) for line in Path("v.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert all(row.keys() == {"text", "embedding"} for row in rows)
    assert_same_bits(np.array([row["embedding"] for row in rows], np.float32), vectors)
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    assert main(["embed", "model", "texts.txt", "--out", "v.parquet"]) == 0
    table = parquet.read_table("v.parquet")
    assert table.column_names == ["text", "embedding"]
    assert table["text"].to_pylist() == TEXTS
    assert_same_bits(np.array(table["embedding"].to_pylist(), np.float32), vectors)


def test_without_a_file_the_beginning_is_printed(place: Path, capsys: Capture) -> None:
    report = ran("embed model texts.txt")
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "model, fp32, 40 texts, vectors of 16 numbers"
    assert len(lines) == 6
    vectors = np.array(report["embeddings"], np.float32)
    assert vectors.shape == (40, 16)
    for line, vector, text in zip(lines[:5], vectors, TEXTS, strict=False):
        norm = np.linalg.norm(vector.astype(float))
        assert line.startswith(f"norm {norm:.4f}  {vector[0]:.4f}  {vector[1]:.4f}")
        assert line.endswith(text[:40] + "..." * (len(text) > 40))
    assert lines[-1] == "and 35 more; --out FILE writes all"


def test_texts_and_files_of_texts(place: Path) -> None:
    Path("few").write_text("a film\nwarm\n")
    assert main(["embed", "model", "dull", "few", "a good film", "--out", "v.jsonl"]) == 0
    texts = [json.loads(line)["text"] for line in Path("v.jsonl").read_text().splitlines()]
    assert texts == ["dull", "a film", "warm", "a good film"]


def test_quantized_vectors(place: Path, capsys: Capture) -> None:
    """The command gives the functions' vectors, and so does a written checkpoint."""
    model, tokenizer = load("model"), load_tokenizer("model")
    calibration = calibrate_on_sentences(model, tokenizer, Path("texts.txt"), golden=True)
    golden = apply_recipe(model, PRESETS["e4m3"], calibration, golden=True)
    expected = embed(golden, tokenizer, TEXTS)
    line = "embed model texts.txt --format e4m3 --golden --batch-size 5 --out v.npy"
    assert main([*line.split(), "--calibration-data", "texts.txt"]) == 0
    assert capsys.readouterr().err == "scales: from the sentences of texts.txt\n"
    assert_same_bits(np.load("v.npy"), expected)
    line = "calibrate model --golden --calibration-data texts.txt --out scales"
    assert main(line.split()) == 0
    for more in ("--calibration scales", "--calibration scales --accumulate exact"):
        assert main(f"embed model texts.txt --format e4m3 --golden --out w.npy {more}".split()) == 0
        assert_same_bits(np.load("w.npy"), expected)
    line = "quantize model q --format e4m3 --golden --calibration scales"
    assert main(line.split()) == 0
    assert main(["embed", "q", "texts.txt", "--golden", "--out", "s.npy"]) == 0
    assert_same_bits(np.load("s.npy"), expected)
    assert not np.array_equal(expected, embed(model, tokenizer, TEXTS))


def test_what_embed_refuses(place: Path, capsys: Capture) -> None:
    for line, message in (
        ("embed bert-tiny-sst2 film", "bert-tiny-sst2: expected a model for sentence embeddings"),
        ("embed model film --out v.csv", "v.csv: expected a name that ends in .npy, .jsonl, .parq"),
        ("embed model film --out v", "v: expected a name that ends in .npy, .jsonl, .parquet"),
        ("embed model texts.txt --out v.npy --calibration x", "--calibration: expected a format"),
        ("embed model film none.txt", "none.txt: no such file"),
        ("embed model film --max-length 129", "max_length: expected 3..128, found 129"),
        ("embed model texts.txt --out texts.txt", "texts.txt: cannot be written: --out would ove"),
        ("embed model film --out model/model.safetensors", "model/model.safetensors: cannot be wr"),
    ):
        assert error_of(capsys, line).startswith(message)
    assert main(["embed", "model", " "]) == 2
    assert capsys.readouterr().err == "bert-numpy: text 1: expected words, found ' '\n"
    os.mkfifo("pipe")
    assert error_of(capsys, "embed model pipe").startswith("pipe: ")
    assert sorted(os.listdir()) == ["STS-B", "model", "pipe", "texts.txt"]


def test_parquet_needs_its_extra(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert error_of(capsys, "embed model film --out v.parquet") == (
        "v.parquet: expected pyarrow, which writes Parquet, found none: "
        "pip install 'fp8-bert-numpy[data]'"
    )
    assert main(["embed", "model", "film", "--out", "v.npy"]) == 0


def broken(folder: Path) -> None:
    """Make the model overflow at one word."""
    tensors = random_tensors(json.loads((folder / "config.json").read_text()), 2, 0)
    tensors["embeddings.word_embeddings.weight"][VOCABULARY.index("dull")] = 3e38
    write_tensors(folder, tensors)


def test_no_file_has_vectors_that_are_none(place: Path, capsys: Capture) -> None:
    broken(Path("model"))
    Path("two").write_text("a film\ndull\n")
    assert error_of(capsys, "embed model two --out v.npy").startswith(
        "model, fp32: text 2: vector: expected finite numbers, found nan"
    )
    assert not os.path.exists("v.npy")
    assert "found NaN or infinity" in error_of(capsys, "compare model --texts two --formats bf16")
    found = embed(load("model"), load_tokenizer("model"), ["a film", "dull"])
    assert np.isfinite(found).all(axis=1).tolist() == [True, False]


@pytest.mark.parametrize("ending", ["npy", "jsonl", "parquet"])
def test_interrupted_writes_leave_nothing(
    ending: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    before = sorted(os.listdir())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    monkeypatch.setattr(Path, "rename", interrupted)
    assert main(f"embed model texts.txt --out v.{ending}".split()) == 130
    assert sorted(os.listdir()) == before


# calibrate


def test_a_calibration_on_texts(place: Path, capsys: Capture) -> None:
    report = ran(
        "calibrate model --calibration-data texts.txt --calibration-samples 9 --out scales"
    )
    assert report == {
        **{"model": "model", "task": None, "calibration_samples": 9, "golden": False},
        "out": "scales",
    }
    assert capsys.readouterr().err == "scales: from 9 sentences of texts.txt\n"
    model, tokenizer = load("model"), load_tokenizer("model")
    expected = calibrate_on_sentences(model, tokenizer, Path("texts.txt"), samples=9)
    assert_same_calibrations(load_calibration("scales"), expected)
    for line in (
        "predict model film --format e4m3",
        "compare model --task stsb --data STS-B --formats int8",
        "compare model --texts texts.txt --formats int8",
        "quantize model q --format e4m3",
    ):
        assert main([*line.split(), "--calibration", "scales"]) == 0
    assert main(["calibration", "scales"]) == 0


def test_a_calibration_on_the_sentences_of_the_package(place: Path) -> None:
    report = ran("calibrate model --out scales")
    model, tokenizer = load("model"), load_tokenizer("model")
    expected = calibrate_on_sentences(model, tokenizer, REVIEWS / "train.tsv")
    assert report["calibration_samples"] == expected.samples == 100
    assert_same_calibrations(load_calibration("scales"), expected)


def test_a_calibration_on_a_task(place: Path) -> None:
    """Each text of a pair is a separate sample, also in the calibration that evaluate saves."""
    report = ran("calibrate model --task stsb --data STS-B --calibration-samples 10 --out scales")
    assert (report["task"], report["calibration_samples"]) == ("stsb-cosine", 20)
    line = "evaluate model --task stsb --data STS-B --calibration-samples 10 --format int8"
    assert main([*line.split(), "--save-calibration", "same"]) == 0
    assert_same_calibrations(load_calibration("scales"), load_calibration("same"))


def test_a_quantized_checkpoint_is_not_calibrated(place: Path, capsys: Capture) -> None:
    assert main(["quantize", "model", "q", "--format", "e4m3"]) == 0
    for line in ("calibrate q --out x", "quantize q r --format e4m3"):
        assert error_of(capsys, line) == "q: expected a checkpoint that is not quantized yet"


def test_256_samples_everywhere(place: Path) -> None:
    Path("many").write_text("".join(f"{TEXTS[i % 40]}\n" for i in range(300)))
    assert ran("calibrate model --calibration-data many --out scales")["calibration_samples"] == 256
    report = ran("compare model --texts texts.txt --formats int8 --calibration-data many")
    assert report["calibration_samples"] == 256
    report = ran("quantize model q --format e4m3 --calibration-data many")
    assert report["calibration_samples"] == 256


# compare and quantize without a task


def test_comparison_of_vectors(place: Path, capsys: Capture) -> None:
    """The figures by their definitions, in loops."""
    line = "--texts texts.txt --calibration-data texts.txt --formats"
    report = ran(f"compare model {line} int8,e5m2 --save-calibration scales")
    assert (report["task"], report["examples"]) == ("embeddings", 40)
    assert [row["format"] for row in report["rows"]] == ["fp32", "int8", "e5m2"]
    out = capsys.readouterr().out
    assert out.startswith("model, embeddings, 40 examples\n")
    assert max(map(len, out.splitlines())) <= 100  # the headers are broken for it
    assert out.count("cosine") == out.count("neighbours") == 2
    base = np.array(ran("embed model texts.txt")["embeddings"])
    for row in report["rows"]:
        scales = "" if row["format"] == "fp32" else "--calibration scales"
        found = ran(f"embed model texts.txt --format {row['format']} {scales}")
        vectors = np.array(found["embeddings"])
        both = zip(base, vectors, strict=True)
        cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in both]
        kept = {1: [], 10: []}
        for i in range(40):
            near = []
            for x in (base, vectors):
                unit = x / np.linalg.norm(x, axis=1, keepdims=True)
                others = [j for j in range(40) if j != i]
                near.append(sorted(others, key=lambda j: -(unit[i] @ unit[j]))[:10])
            for k, share in kept.items():
                share.append(len({*near[0][:k]} & {*near[1][:k]}) / k)
        assert row["metrics"] == pytest.approx(
            {
                "mean_cosine": np.mean(cosine),
                "min_cosine": np.min(cosine),
                "neighbours_at_1": np.mean(kept[1]),
                "neighbours_at_10": np.mean(kept[10]),
            },
            abs=1e-6,
        )
        assert row["flips"] == 40 - sum(kept[1])
        error = np.linalg.norm(vectors - base) / np.linalg.norm(base)
        assert row["relative_logit_error"] == pytest.approx(error, abs=1e-6)
    fp32, int8, _ = (row["metrics"] for row in report["rows"])
    assert fp32 == pytest.approx(dict.fromkeys(fp32, 1))
    assert 0.5 < int8["min_cosine"] < int8["mean_cosine"] < 0.99999


def test_a_comparison_of_a_few_texts(place: Path, capsys: Capture) -> None:
    report = ran("compare model --texts texts.txt --limit 3 --formats bf16")
    assert report["examples"] == 3
    assert error_of(capsys, "compare model --texts texts.txt --limit 1") == (
        "texts.txt: expected at least 2 texts to compare, found 1"
    )
    assert "expected a model for sentence embeddings" in error_of(
        capsys, "compare bert-tiny-sst2 --texts texts.txt"
    )


def test_nearest_texts() -> None:
    x = np.float32([[1, 0], [2, 0], [0, 1], [1, 1], [-3, 0], [np.nan, 1], [0, 0]])
    assert neighbours(x, 6).tolist() == [
        [1, 3, 2, 6, 4, 5],
        [0, 3, 2, 6, 4, 5],
        [3, 0, 1, 4, 6, 5],
        [0, 1, 2, 6, 4, 5],
        [2, 6, 3, 0, 1, 5],
        [NO_CLASS] * 6,
        [0, 1, 2, 3, 4, 5],
    ]
    many = np.random.default_rng(0).standard_normal((1100, 8)).astype(np.float32)
    near = neighbours(many, 1)[:, 0]
    unit = many / np.linalg.norm(many, axis=1, keepdims=True)
    for row in (0, 511, 512, 1099):
        expected = max((j for j in range(1100) if j != row), key=lambda j: unit[j] @ unit[row])
        assert near[row] == expected
    full = np.argsort(-(unit.astype(float) @ unit[:600].T.astype(float)), axis=0)
    assert (neighbours(many, 10)[:600] == full[1:11].T).mean() > 0.999  # but for ties in float32
    twice = np.concatenate([many, many])  # each has its equal, which is nearest
    assert neighbours(twice, 1)[:, 0].tolist() == [*range(1100, 2200), *range(1100)]


def test_vectors_that_are_none_are_near_nothing() -> None:
    base = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    worse = base.copy()
    worse[3] = np.nan
    found = similarity(base, worse)
    assert np.isnan(found["mean_cosine"])
    assert np.isnan(found["min_cosine"])
    assert found["neighbours_at_1"] <= 0.95
    assert similarity(base, 2 * base) == pytest.approx(dict.fromkeys(found, 1))
    assert np.isnan(cosines(np.float32([[0, 0]]), np.float32([[1, 0]]))).all()


def test_quantize_reports_the_vectors(place: Path, capsys: Capture) -> None:
    report = ran("quantize model q --format e4m3 --texts texts.txt --calibration-data texts.txt")
    compared = ran("compare model --texts texts.txt --formats e4m3 --calibration-data texts.txt")
    for row, other in zip(report["rows"], compared["rows"], strict=True):
        assert row["metrics"] == pytest.approx(other["metrics"], abs=1e-6)
    card = Path("q/README.md").read_text()
    assert "calibrated on 40 texts" in card
    assert "| mean_cosine | min_cosine | neighbours_at_1 | neighbours_at_10 | flips |" in card
    assert ran("compare q --texts texts.txt")["rows"][0]["format"] == "e4m3"


def test_quantize_without_anything_to_compare(place: Path, capsys: Capture) -> None:
    """Any model: here a classifier, too."""
    for model in ("model", "bert-tiny-sst2"):
        report = ran(f"quantize {model} q-{model} --format e4m3 --save-calibration scales-{model}")
        assert (report["task"], report["examples"], report["rows"]) == (None, 0, [])
        assert capsys.readouterr().out.endswith(f"written: q-{model}\n")
        card = Path(f"q-{model}/README.md").read_text()
        assert "calibrated on 100 texts; nothing was trained" in card
        assert "| FP32 |" not in card
        line = f"quantize {model} p-{model} --format e4m3 --calibration scales-{model}"
        assert main(line.split()) == 0
        weights = [Path(f"{x}-{model}/model.safetensors").read_bytes() for x in "qp"]
        assert weights[0] == weights[1]


# STS-B by cosine


def test_stsb_by_cosine(place: Path, capsys: Capture) -> None:
    report = ran("evaluate model --task stsb --data STS-B")
    assert report["task"] == "stsb-cosine"
    assert list(report["metrics"]) == ["pearson", "spearmanr"]
    vectors = one_by_one(Path("model"), TEXTS).astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = (unit * unit[::-1]).sum(axis=1)
    np.testing.assert_allclose(report["predictions"], cosine, atol=1e-5)
    assert "logits" not in report
    scores = np.arange(40) % 11 / 2
    assert report["metrics"]["pearson"] == pytest.approx(
        np.corrcoef(scores, cosine)[0, 1], abs=1e-4
    )
    assert ran("evaluate model --task stsb-cosine --data STS-B")["metrics"] == report["metrics"]
    line = "submit model out --task stsb --data STS-B"
    Path("STS-B/test.tsv").write_text("index\tsentence1\tsentence2\n0\ta\tb\n")
    expected = "task stsb-cosine: expected a task of GLUE, as no other has a test set"
    assert error_of(capsys, line) == expected


def test_stsb_by_cosine_of_a_classifier(place: Path, capsys: Capture) -> None:
    message = error_of(capsys, "evaluate bert-tiny-sst2 --task stsb-cosine --data STS-B")
    assert message.startswith("bert-tiny-sst2: expected a model for sentence embeddings")


def test_stsb_by_cosine_in_every_command(place: Path) -> None:
    rows = ran("compare model --task stsb --data STS-B --formats int8")["rows"]
    assert rows[0]["mean_abs_difference"] == 0 < rows[1]["mean_abs_difference"] < 0.2
    report = ran("quantize model q --task stsb --data STS-B --format int8")
    assert report["rows"][1]["metrics"] == pytest.approx(rows[1]["metrics"], abs=1e-3)
    assert "Task stsb-cosine, development set, 40 examples." in Path("q/README.md").read_text()
    assert ran("evaluate q --task stsb --data STS-B")["format"] == "int8"


def test_stsb_by_cosine_in_the_studys_cells(place: Path) -> None:
    subject = Subject("model", "stsb", "STS-B", "scales")
    calibrate_subject(subject, 8)
    assert load_calibration("scales").samples == 16
    cells = cells_of(subject, PRESETS["int8"], Path("cells"), size=15)
    for cell in cells:
        run_cell(cell)
    result = merged(cells)
    (whole,) = run(prepare("model", "stsb", "STS-B", calibration="scales"), [PRESETS["int8"]])
    assert result.logits.shape == whole.logits.shape == (40, 2, 16)
    np.testing.assert_allclose(result.predictions, whole.predictions, atol=1e-5)
    assert result.metrics["pearson"](result.labels, result.predictions) == pytest.approx(
        whole.metrics["pearson"], abs=1e-4
    )


def test_the_texts_of_pairs_are_cut_one_by_one(place: Path) -> None:
    job = prepare("model", "stsb", "STS-B", calibrated=False, max_length=12)
    long = [len(text.split()) > 10 for text in TEXTS]
    assert job.truncated == sum(a or b for a, b in zip(long, long[::-1], strict=True)) < 40
    assert max(len(one.input_ids) for one in job.encoded) == 12
    assert prepare("model", "stsb", "STS-B", calibrated=False).truncated == 0


def test_a_job_on_nothing_calibrates_alone(place: Path) -> None:
    job = prepare_texts("model", None, calibration_samples=5)
    assert (len(job.examples), job.windows, len(job.calibration_texts)) == (0, [], 5)


def test_stsb_by_cosine_against_scipy_and_sentence_transformers(
    all_minilm: Path, glue: Path, scipy_stats: Any
) -> None:
    """all-MiniLM-L6-v2's model card has a figure for STS-B; SciPy has the definition."""
    job = prepare(all_minilm, "stsb", glue, calibrated=False, limit=150)
    assert job.task is STSB_COSINE
    (result,) = run(job, [PRESETS["fp32"]])
    a, b = result.logits[:, 0].astype(float), result.logits[:, 1].astype(float)
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(result.predictions, cosine, rtol=0, atol=1e-12)
    labels = job.examples.labels
    assert labels is not None
    for name, function in (("pearson", "pearsonr"), ("spearmanr", "spearmanr")):
        expected = getattr(scipy_stats, function)(cosine, labels).statistic
        assert result.metrics[name] == pytest.approx(expected, abs=1e-12)
    assert result.metrics["spearmanr"] > 0.8
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    evaluation = pytest.importorskip("sentence_transformers.evaluation")
    texts, pairs = job.examples.texts, job.examples.pairs  # type: ignore[attr-defined]
    evaluator = evaluation.EmbeddingSimilarityEvaluator(texts, pairs, labels / 5)
    peer = evaluator(sentence_transformers.SentenceTransformer(str(all_minilm), device="cpu"))
    assert peer["pearson_cosine"] == pytest.approx(result.metrics["pearson"], abs=1e-5)
    # One exchange of two of 150 ranks moves it by 6 * 2 / (150 * (150^2 - 1)) = 4e-6.
    assert peer["spearman_cosine"] == pytest.approx(result.metrics["spearmanr"], abs=2e-5)

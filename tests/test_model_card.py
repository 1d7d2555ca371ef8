"""Model cards: the metadata that the hub reads, and the sizes of the files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import write_checkpoint, write_encoder
from huggingface_hub import ModelCard, ModelCardData

import bert_numpy
from bert_numpy import PRESETS
from bert_numpy.cli import main
from bert_numpy.commands.model_card import PIPELINE_TAGS, model_card, stated_base
from bert_numpy.model.architectures import ARCHITECTURES, ENCODER, HEADS, SENTENCE_EMBEDDINGS

#: Heads for which the hub has no task.
WITHOUT_TASK = {"next sentence prediction", "replaced token detection"}

REPORT = {"model": "source", "task": None, "calibration_samples": 0, "golden": False, "rows": []}

RECIPE = PRESETS["e4m3-weights"]  # it needs no calibration


def metadata(text: str) -> dict[str, Any]:
    """What the hub reads; whatever it would not write back as it is, is refused."""
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    known = {"base_model", "base_model_relation", "library_name", "pipeline_tag", "tags"}
    found: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    assert found.keys() <= known
    assert ModelCardData(**found).to_dict() == found  # type: ignore[no-untyped-call]
    return found


def quantized(source: Path | str, target: Path) -> str:
    """The card of a checkpoint that the command line has quantized."""
    assert main(["quantize", str(source), str(target), "--format", RECIPE.name]) == 0
    return (target / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("class_name", "tag"),
    [
        ("BertForSequenceClassification", "text-classification"),
        ("BertForMultipleChoice", "multiple-choice"),
        ("BertForTokenClassification", "token-classification"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForPreTraining", "fill-mask"),
        ("BertForNextSentencePrediction", None),
        ("BertModel", "feature-extraction"),
    ],
)
def test_library_and_task_of_each_head(class_name: str, tag: str | None) -> None:
    config = replace(bert_numpy.load("bert-tiny-sst2").config, architecture=class_name)
    found = metadata(model_card(REPORT, RECIPE, config=config))
    assert found.get("pipeline_tag") == tag
    assert found["library_name"] == "transformers"
    assert found["tags"] == ["compressed-tensors", "fp8-bert-numpy"]


def test_every_head_has_a_task_or_none_on_purpose() -> None:
    of_families = [head for family in ARCHITECTURES.values() for head in family.heads.values()]
    heads = {head.name for head in (*HEADS.values(), ENCODER, SENTENCE_EMBEDDINGS, *of_families)}
    assert PIPELINE_TAGS.keys() | WITHOUT_TASK == heads
    assert not PIPELINE_TAGS.keys() & WITHOUT_TASK


def test_a_sentence_encoder(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source")
    found = metadata(quantized(source, tmp_path / "made"))
    assert found["library_name"] == "sentence-transformers"
    assert found["pipeline_tag"] == "sentence-similarity"
    assert "base_model" not in found


def test_the_embedded_model(tmp_path: Path) -> None:
    """Its own card names its base model. It is no quantized version of that one itself."""
    found = metadata(quantized("bert-tiny-sst2", tmp_path / "made"))
    assert found["base_model"] == "google/bert_uncased_L-2_H-128_A-2"
    assert "base_model_relation" not in found
    assert (found["library_name"], found["pipeline_tag"]) == ("transformers", "text-classification")


def test_a_model_of_the_hub() -> None:
    found = metadata(model_card(REPORT | {"model": "owner/name"}, RECIPE, "owner/name"))
    assert (found["base_model"], found["base_model_relation"]) == ("owner/name", "quantized")


@pytest.mark.parametrize(("dtype", "shards"), [("F32", 1), ("F16", 2)])
def test_sizes_are_those_of_the_files(dtype: str, shards: int, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", dtype=dtype, shards=shards)
    (source / "unused.safetensors").write_bytes(b"not read")
    card = quantized(source, tmp_path / "made")
    section = card.split("## Files\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.count("|") == 5]
    (_, names, dtypes, size), (title, made_names, made_dtypes, made_size) = rows[2:]
    files = [source / name.replace("\\", "") for name in names.split(", ")]
    assert len(files) == shards
    assert int(size.replace(",", "")) == sum(file.stat().st_size for file in files)
    assert dtypes == dtype
    assert (title, made_names) == (RECIPE.name, "model.safetensors")
    made = tmp_path / "made" / "model.safetensors"
    assert int(made_size.replace(",", "")) == made.stat().st_size
    assert {"F8\\_E4M3", "F8_E4M3"} & {*made_dtypes.split(", ")}
    assert str(tmp_path) not in card


def write_card(folder: Path, text: str) -> Path:
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("base", ["owner/name", "bert-base-uncased", "a.b-c/d_e.f"])
def test_the_base_model_of_a_card(base: str, tmp_path: Path) -> None:
    for value in (base, json.dumps(base), f"\n- {base}"):
        assert stated_base(write_card(tmp_path, f"---\nbase_model: {value}\n---\n# x\n")) == base


@pytest.mark.parametrize(
    "base",
    [
        *("/home/me/model", "./model", "../model", "~/model", "C:/model", "model", "a/b/c"),
        *("results/checkpoint-500", "[a/b, c/d]", "{a: b}", "3", "null", "''", "a/b\\n"),
        *('"a/b\\nlicense: mit"', "&x [*x]", "!!python/object:os.system x", "'"),
    ],
)
def test_no_base_model_of_what_is_no_id(base: str, tmp_path: Path) -> None:
    assert stated_base(write_card(tmp_path, f"---\nbase_model: {base}\n---\n# x\n")) is None


def test_no_base_model_of_a_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path, "---\nbase_model: models/mine\n---\n")
    assert stated_base(tmp_path) == "models/mine"
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert stated_base(tmp_path) is None
    monkeypatch.chdir(tmp_path)
    assert stated_base(write_card(tmp_path / "models", "---\nbase_model: models/mine\n---")) is None


@pytest.mark.parametrize("text", ["", "# no metadata", "---\n[1, 2]\n---\n", "---\nbase_model"])
def test_cards_without_a_base_model(text: str, tmp_path: Path) -> None:
    assert stated_base(write_card(tmp_path, text)) is None


def test_cards_that_cannot_be_read(tmp_path: Path) -> None:
    assert stated_base(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nbase_model: a/\xff\n---")
    assert stated_base(tmp_path) is None
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    assert stated_base(tmp_path) is None


def test_a_card_is_made_when_the_files_are_there(tmp_path: Path) -> None:
    model = bert_numpy.apply_recipe(bert_numpy.load("bert-tiny-sst2"), RECIPE)
    seen: list[set[str]] = []

    def card(made: Path) -> str:
        seen.append({path.name for path in made.iterdir()})
        return "# mine\n"

    bert_numpy.save_quantized(model, "bert-tiny-sst2", tmp_path / "made", card)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= seen[0]
    assert (tmp_path / "made" / "README.md").read_text() == "# mine\n"
    assert "README.md" in (tmp_path / "made" / "SHA256SUMS").read_text()


def test_a_card_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = bert_numpy.apply_recipe(bert_numpy.load("bert-tiny-sst2"), RECIPE)

    def card(made: Path) -> str:
        raise OSError(28, "No space left on device")

    with pytest.raises(bert_numpy.BertNumpyError, match="cannot be written: No space left"):
        bert_numpy.save_quantized(model, "bert-tiny-sst2", tmp_path / "made", card)
    assert not list(tmp_path.iterdir())


def test_names_in_the_metadata_are_quoted() -> None:
    text = model_card(REPORT | {"model": "owner/name"}, replace(RECIPE, name="a: b"), "null")
    assert metadata(text)["base_model"] == "null"

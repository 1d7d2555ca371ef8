"""The files of a sentence-transformers folder: the settings applied, and those refused by key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import write_checkpoint

from bert_numpy import BertNumpyError, load
from bert_numpy.checkpoints.pooling import pooling_files, read_pooling
from bert_numpy.model.config import Pooling

OLD, NEW = "sentence_transformers.models.", "sentence_transformers.base.modules."
TYPES = [f"{OLD}Transformer", f"{OLD}Pooling", f"{OLD}Normalize"]
PATHS = ["", "1_Pooling", "2_Normalize"]
MEAN = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLS = {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
SETTINGS = "config_sentence_transformers.json"


def listed(types: list[str], names: list[Any] | None = None) -> list[dict[str, Any]]:
    modules: list[dict[str, Any]] = [
        {"idx": i, "path": path, "type": kind}
        for i, (kind, path) in enumerate(zip(types, PATHS, strict=False))
    ]
    for module, name in zip(modules, names or [], strict=False):
        module["name"] = name
    return modules


def write(
    folder: Path, pooling: Any = MEAN, modules: Any = None, head: str = "BertModel", **files: Any
) -> Path:
    write_checkpoint(folder, config_overrides={"architectures": [head]})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modules = listed(TYPES) if modules is None else modules
    contents = {"modules.json": modules, "1_Pooling/config.json": pooling}
    contents |= {f"{name}.json": content for name, content in files.items()}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def refusal(folder: Path, file: str) -> str:
    with pytest.raises(BertNumpyError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / file}: ")
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("pooling", "mode"),
    [
        (MEAN, "mean"),
        (CLS, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        (MEAN | {"pooling_mode": None}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 16, "include_prompt": True}, "cls"),
        (MEAN | {"pooling_mode": "cls"}, "cls"),  # the name goes before the switches
        (CLS | {"pooling_mode": "mean", "pooling_mode_max_tokens": True}, "mean"),
        (MEAN | {"word_embedding_dimension": 16, "include_prompt": False}, "mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": ["weightedmean"]}, "weightedmean"),
        ({"pooling_mode": "mean_sqrt_len_tokens"} | MEAN, "mean_sqrt_len_tokens"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "lasttoken"),
    ],
)
def test_modes(tmp_path: Path, pooling: dict[str, Any], mode: str) -> None:
    assert load(write(tmp_path, pooling)).config.pooling == Pooling(mode, normalize=True)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        (MEAN | {"pooling_mode_cls_token": True}, ("cls", "mean")),
        (MEAN | {"pooling_mode_max_tokens": True}, ("max", "mean")),
        ({"pooling_mode_lasttoken": True} | MEAN, ("mean", "lasttoken")),
        (
            MEAN
            | {"pooling_mode_weightedmean_tokens": True}
            | {"pooling_mode_mean_sqrt_len_tokens": True},
            ("mean", "mean_sqrt_len_tokens", "weightedmean"),
        ),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
    ],
)
def test_several_modes(tmp_path: Path, pooling: dict[str, Any], modes: tuple[str, ...]) -> None:
    """In sentence-transformers' order of the switches, or in that of the list."""
    model = load(write(tmp_path, pooling))
    assert model.config.pooling == Pooling("+".join(modes), normalize=True)
    vectors = model([[2, 5, 3]]).sentence_embedding
    assert vectors is not None
    assert vectors.shape == (1, 16 * len(modes))


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode": "Mean"}, "found Mean"),
        ({"pooling_mode": "tokens"}, "expected one or more of the poolings cls, max, mean, mean_s"),
        ({"pooling_mode": []}, "found none"),
        ({"pooling_mode": ["cls", "cls"]}, "each once, found cls, cls"),
        ({"pooling_mode": ["cls", ["mean"]]}, "found cls, ['mean']"),
        ({"pooling_mode": {"cls": 1}}, "found {'cls': 1}"),
        ({"pooling_mode_mean_tokens": False}, "found none"),
        ({"pooling_mode_max_tokens": True}, "'pooling_mode_mean_tokens': expected true or false"),
        (
            MEAN | {"pooling_mode_max_tokens": 1},
            "'pooling_mode_max_tokens': expected true or false, found 1",
        ),
        (
            {"pooling_mode_mean_tokens": "true"},
            "'pooling_mode_mean_tokens': expected true or false, found 'true'",
        ),
        (MEAN | {"include_prompt": 1}, "'include_prompt': expected true or false, found 1"),
        (
            {"pooling_mode_cls_token": True},
            "'pooling_mode_mean_tokens': expected true or false, found nothing, which",
        ),
        (MEAN | {"pooling_mode_median": False}, "reads, found 'pooling_mode_median'"),
        (MEAN | {"weights": [1]}, "reads, found 'weights'"),
    ],
)
def test_other_modes(tmp_path: Path, pooling: dict[str, Any], message: str) -> None:
    assert message in refusal(write(tmp_path, pooling), "1_Pooling/config.json")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "types",
    [
        TYPES,
        [f"{NEW}transformer.Transformer", f"{NEW}pooling.Pooling", f"{NEW}normalize.Normalize"],
        ["sentence_transformers.models.Transformer.Transformer", *TYPES[1:]],
    ],
)
def test_names_of_modules_in_all_releases(tmp_path: Path, types: list[str], count: int) -> None:
    folder = write(tmp_path, modules=listed(types[:count], ["0", "1", "2"]))
    assert load(folder).config.pooling == Pooling("mean", normalize=count == 3)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (listed(["my.Transformer", *TYPES[1:]]), "module 0: expected the 'type' to be one of sent"),
        (listed([TYPES[0], "Pooling"]), "module 1: expected the 'type' to be one of sentence_tran"),
        (listed([*TYPES[:2], f"x.{TYPES[2]}"]), "module 2: expected the 'type' to be one of sent"),
        (listed(TYPES, ["0", "0", "1"]), "a 'name' of their own, found 0, 0, 1"),
        (listed(TYPES, ["0", 0]), "a 'name' of their own, found 0, 0"),
        (listed([TYPES[0], TYPES[2], TYPES[1]]), "found Transformer, Normalize, Pooling"),
        (listed([*TYPES[:2], f"{OLD}LayerNorm"]), "found Transformer, Pooling, LayerNorm"),
        (listed([TYPES[0], f"{OLD}Dense", TYPES[1]]), "found Transformer, Dense, Pooling"),
        (listed([f"{OLD}CLIPModel", TYPES[1]]), "found CLIPModel, Pooling"),
    ],
)
def test_other_modules(tmp_path: Path, modules: Any, message: str) -> None:
    assert message in refusal(write(tmp_path, modules=modules), "modules.json")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "dot"},
        {"prompts": {"query": "Find: "}},
        {"prompts": {"query": "", "document": None}, "default_prompt_name": "query"},
        {"default_prompt_name": "document"},
        {"prompts": {"q": ""}, "default_prompt_name": "q", "truncate_dim": None},
        {"model_type": "SentenceTransformer", "__version__": {"sentence_transformers": "9.9"}},
    ],
)
def test_settings_without_effect(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = write(tmp_path, config_sentence_transformers=settings)
    assert load(folder).config.pooling == Pooling("mean", normalize=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"prompts": {"query": "Find: "}, "default_prompt_name": "query"},
            "'default_prompt_name': expected nothing, or the name of an empty prompt",
        ),
        ({"prompts": {"q": " "}, "default_prompt_name": "q"}, "'default_prompt_name': "),
        ({"prompts": {"q": ""}, "default_prompt_name": "other"}, "found 'other'"),
        ({"default_prompt_name": 3}, "'default_prompt_name': "),
        ({"default_prompt_name": ["q"]}, "'default_prompt_name': "),
        ({"prompts": ["q"]}, "'prompts': expected an object, found ['q']"),
        ({"prompts": None}, "'prompts': expected an object, found None"),
        ({"truncate_dim": 8}, "'truncate_dim': expected nothing (vectors are not shortened)"),
        ({"model_type": "SparseEncoder"}, "expected 'SentenceTransformer', found 'SparseEncoder'"),
        ({"model_type": "CrossEncoder"}, "expected 'SentenceTransformer', found 'CrossEncoder'"),
    ],
)
def test_settings_that_change_the_vectors(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in refusal(write(tmp_path, config_sentence_transformers=settings), SETTINGS)


@pytest.mark.parametrize("name", ["sentence_bert_config", "sentence_xlm-roberta_config"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer_task", "fill-mask"),
        ("module_output_name", "sentence_embedding"),
        ("modality_config", {"text": {"method": "forward", "method_output_name": "logits"}}),
        ("model_args", {"num_hidden_layers": 1}),
        ("config_args", {"hidden_act": "relu"}),
        ("config_kwargs", {"hidden_act": "relu"}),
        ("processing_kwargs", {"text": {"max_length": 4}}),
        ("query_length", 32),
    ],
)
def test_settings_of_the_encoder(tmp_path: Path, name: str, key: str, value: Any) -> None:
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    usual = {"max_seq_length": 64, "do_lower_case": False, "config_args": {}, "query_length": None}
    usual |= {"transformer_task": "feature-extraction", "modality_config": text}
    folder = write(tmp_path, **{name: usual})
    assert load(folder).config.pooling is not None
    write(tmp_path, **{name: usual | {key: value}})
    assert f"key {key!r}: expected nothing" in refusal(folder, f"{name}.json")


@pytest.mark.parametrize("head", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_encoders(tmp_path: Path, head: str) -> None:
    assert load(write(tmp_path, head=head)).config.head.name == "sentence embeddings"


@pytest.mark.parametrize(
    "head", ["ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
)
def test_a_classifier_is_no_encoder(tmp_path: Path, head: str) -> None:
    message = refusal(write(tmp_path, head=f"Bert{head}"), "modules.json")
    assert f"in 'architectures' of config.json, found 'Bert{head}'" in message


def test_all_files_are_copied(tmp_path: Path) -> None:
    names = {SETTINGS.removesuffix(".json"): {}, "sentence_roberta_config": {}}
    folder = write(tmp_path, **names)
    assert sorted(pooling_files(folder)) == sorted(
        ["modules.json", "1_Pooling/config.json", *(f"{name}.json" for name in names)]
    )
    assert read_pooling(folder) == Pooling("mean", normalize=True)


def test_an_adapter_is_not_ignored(tmp_path: Path) -> None:
    """transformers loads the model that it names, and changes its weights."""
    folder = write_checkpoint(tmp_path)
    load(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    assert "adapter beside the weights" in refusal(folder, "adapter_config.json")

"""A model and its recipe in words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bert_numpy import PRESETS, load
from bert_numpy.commands.describe import describe_config, describe_recipe
from bert_numpy.model.config import BertConfig, Dense, Pooling
from npfp8.golden import POOLINGS


@pytest.fixture(scope="module")
def config() -> BertConfig:
    return load("bert-tiny-sst2").config


def test_pooling(config: BertConfig) -> None:
    for mode in ("cls", *POOLINGS):
        text = dict(describe_config(replace(config, pooling=Pooling(mode, False))))["pooling"]
        assert len(text.split(" ")) > 2, f"{mode}: a name, not words"
    dense = (Dense("2_Dense.linear", 1024, "tanh"), Dense("3_Dense.linear", 64, normalize=True))
    found = dict(describe_config(replace(config, pooling=Pooling("mean+max", True, dense))))
    assert found["head"] == "sentence embeddings"
    assert found["pooling"] == (
        "the mean of the tokens and the largest value of each feature, then divided by its norm, "
        "then a linear layer to 1,024 features (tanh), then a linear layer to 64 features, then "
        "divided by its norm"
    )
    assert "labels" not in found


def test_what_other_families_have(config: BertConfig) -> None:
    usual = dict(describe_config(config))
    assert not {"embeddings", "sharing", "positions", "pooling"} & set(usual)
    other = replace(
        config,
        embedding_size=64,
        num_hidden_groups=1,
        relative_attention_num_buckets=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        type_vocab_size=0,
    )
    found = dict(describe_config(other))
    assert found["embeddings"] == "width 64, projected to the encoder's"
    assert found["sharing"] == "1 set of parameters for all layers"
    assert found["positions"] == "absolute, and relative in 32 buckets"
    assert found["encoder"] == "bert, 1 layer of width 128, 1 attention head"
    assert "token type" in usual["input"]
    assert "token type" not in found["input"]


@pytest.mark.parametrize(
    ("name", "title", "text"),
    [
        ("e4m3", "linear layers", "inputs in E4M3FN per tensor, weights in E4M3FN per tensor"),
        ("e4m3", "sums", "exact"),
        ("e4m3-weights", "linear layers", "inputs not quantized, weights in E4M3FN per tensor"),
        ("e4m3-weights", "Q K^T", "not quantized"),
        (
            "w4a16-gptq",
            "linear layers",
            "inputs not quantized, weights in INT4 per block of 128, rounded by GPTQ",
        ),
        ("e4m3-block", "P V", "P in E4M3FN per block of 128, V in E4M3FN per block of 128"),
        ("mixed", "Q K^T", "Q in E5M2 per tensor, K in E4M3FN per tensor"),
        ("e4m3-smooth", "exceptions", "*.output.dense"),
    ],
)
def test_recipes(name: str, title: str, text: str) -> None:
    found = {key.strip(): value for key, value in describe_recipe(PRESETS[name])}
    assert found["quantization"].startswith(f"recipe {name}, ")
    assert found[title] == text


@pytest.mark.parametrize("name", PRESETS)
def test_every_recipe_has_words(name: str) -> None:
    for title, text in describe_recipe(PRESETS[name]):
        assert text, title
        assert not set("{}()=") & set(text), "code, not words"
    assert dict(describe_recipe(None))["quantization"].startswith("none")


def test_attention_in_tiles() -> None:
    found = {key.strip(): value for key, value in describe_recipe(PRESETS["e4m3-flash"])}
    expected = "tiles of 64 keys, weights times 2^8, row sums of unquantized weights"
    assert found["attention"] == expected
    assert "attention" not in dict(describe_recipe(PRESETS["e4m3"]))

"""config.json: what is read from it, and what is refused with the key, the finding and the wish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import CONFIG, VOCABULARY, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from bert_numpy import BertConfig, BertNumpyError, load
from bert_numpy.architectures import ENCODER
from bert_numpy.config import read_config, read_json

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
COUNTS = (*REQUIRED, "max_position_embeddings", "type_vocab_size")

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=5,
)


def write(folder: Path, without: str | None = None, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({k: v for k, v in (CONFIG | changes).items() if k != without}))
    return path


def refusal(path: Path) -> str:
    """The message of the error, which must name the file."""
    with pytest.raises(BertNumpyError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_every_key(tmp_path: Path) -> None:
    names = {"1": "good", "0": "bad", "2": "?"}  # in the order of the numbers, not of the file
    config = read_config(write(tmp_path, id2label=names, layer_norm_eps=1e-5, hidden_act="relu"))
    assert config == BertConfig(
        model_type="bert",
        architecture="BertForSequenceClassification",
        vocab_size=CONFIG["vocab_size"],
        embedding_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_act="relu",
        max_position_embeddings=128,
        type_vocab_size=2,
        pad_token_id=0,
        layer_norm_eps=1e-5,
        tie_word_embeddings=True,
        labels=("bad", "good", "?"),
        problem_type=None,
        pooling=None,
    )
    assert config.head.name == "sequence classification"


def test_more_than_ten_labels_keep_their_order(tmp_path: Path) -> None:
    names = {str(i): f"label {i}" for i in range(12)}
    config = read_config(write(tmp_path, id2label=names))
    assert config.labels == tuple(f"label {i}" for i in range(12))


@pytest.mark.parametrize(
    ("key", "attribute", "value"),
    [
        ("hidden_act", "hidden_act", "gelu"),
        ("max_position_embeddings", "max_position_embeddings", 512),
        ("type_vocab_size", "type_vocab_size", 2),
        ("layer_norm_eps", "layer_norm_eps", 1e-12),
        ("architectures", "architecture", "BertModel"),
        ("model_type", "architecture", "BertForSequenceClassification"),
        ("id2label", "labels", ("LABEL_0", "LABEL_1")),
    ],
)
def test_defaults_are_those_of_transformers(
    tmp_path: Path, key: str, attribute: str, value: Any
) -> None:
    assert getattr(read_config(write(tmp_path, without=key)), attribute) == value


def test_defaults_against_transformers(tmp_path: Path, transformers: Any) -> None:
    optional = ("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: CONFIG[key] for key in REQUIRED}))
    config, peer = read_config(path), transformers.BertConfig()
    assert [getattr(config, key) for key in optional] == [getattr(peer, key) for key in optional]
    assert config.labels == tuple(peer.id2label.values())


@pytest.mark.parametrize(
    "architectures", [None, [], ["BertModel"], ["BertLMHeadModel"], ["BertForX"]]
)
def test_other_architectures_are_bare_encoders(tmp_path: Path, architectures: Any) -> None:
    assert read_config(write(tmp_path, architectures=architectures)).head is ENCODER


def test_number_of_labels_without_names(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, num_labels=1)).labels == ("LABEL_0",)


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key(tmp_path: Path, key: str) -> None:
    assert f"key '{key}': expected int, found nothing" in refusal(write(tmp_path, without=key))


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", ["2", 2.0, True, False, [2], {}])
def test_count_of_another_type(tmp_path: Path, key: str, value: Any) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key '{key}': expected int, found {value!r}" in message


@pytest.mark.parametrize("key", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_count_below_one(tmp_path: Path, key: str, value: int) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key '{key}': expected at least 1, found {value}" in message


def test_heads_must_divide_the_hidden_size(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, hidden_size=16, num_attention_heads=3))
    assert "hidden_size to be a multiple of num_attention_heads, found 16 and 3" in message


@pytest.mark.parametrize("value", [True, "1e-12", -1e-12, float("nan"), float("inf"), 10**400])
def test_broken_layer_norm_eps(tmp_path: Path, value: Any) -> None:
    message = refusal(write(tmp_path, layer_norm_eps=value))
    assert f"key 'layer_norm_eps': expected 0..1, found {value!r}" in message


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("position_embedding_type", "relative_key", "absolute"),
        ("position_embedding_type", "relative_key_query", "absolute"),
        ("is_decoder", True, False),
        ("add_cross_attention", True, False),
    ],
)
def test_what_is_not_computed(tmp_path: Path, key: str, value: Any, expected: Any) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key '{key}': expected {expected!r}, found {value!r}" in message


@pytest.mark.parametrize("value", ["mobilebert", "xlm-roberta-xl", "Bert", None, 1, ["bert"]])
def test_other_model_types(tmp_path: Path, value: Any) -> None:
    message = refusal(write(tmp_path, model_type=value))
    found = "nothing" if value is None else repr(value)
    expected = "bert, distilbert, roberta, xlm-roberta, camembert, electra"
    assert message.endswith(f"key 'model_type': expected one of {expected}, found {found}")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("pad_token_id", len(VOCABULARY), f"0..{len(VOCABULARY) - 1}"),
        ("pad_token_id", -1, "at least 0"),
        ("pad_token_id", True, "int"),
        ("tie_word_embeddings", 1, "bool"),
        ("problem_type", "ranking", "one of regression, single_label_classification, "),
        ("problem_type", 1, "one of regression, single_label_classification, "),
    ],
)
def test_other_values(tmp_path: Path, key: str, value: Any, expected: str) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key {key!r}: expected {expected}" in message
    assert message.endswith(f"found {value!r}")


def test_no_padding_token(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, pad_token_id=None)).pad_token_id == 0


@pytest.mark.parametrize(
    "names",
    [
        {},
        [],
        ["negative", "positive"],
        "negative",
        {"0": "negative", "2": "positive"},
        {"1": "negative", "2": "positive"},
        {"00": "negative", "1": "positive"},
        {"negative": 0, "positive": 1},
    ],
)
def test_broken_id2label(tmp_path: Path, names: Any) -> None:
    message = refusal(write(tmp_path, id2label=names))
    assert f"key 'id2label': expected names for 0..n-1, found {names!r}" in message


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", True])
def test_broken_num_labels(tmp_path: Path, count: Any) -> None:
    message = refusal(write(tmp_path, num_labels=count))
    assert f"key 'num_labels': expected at least 1, found {count!r}" in message


@pytest.mark.parametrize("names", [["BertModel", "BertForMaskedLM"], "BertModel", [1], {"a": 1}])
def test_broken_architectures(tmp_path: Path, names: Any) -> None:
    message = refusal(write(tmp_path, architectures=names))
    assert f"key 'architectures': expected one name, found {names!r}" in message


@pytest.mark.parametrize("name", ["swish", "GELU", ""])
def test_unknown_activation(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, config_overrides={"hidden_act": name})
    with pytest.raises(BertNumpyError) as caught:
        load(folder)
    message = f"{folder / 'config.json'}: key 'hidden_act': expected one of gelu, "
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(f"found {name!r}")


def test_activation_of_another_type(tmp_path: Path) -> None:
    assert "key 'hidden_act': expected str, found 3" in refusal(write(tmp_path, hidden_act=3))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Expecting value"),
        (b"{", "line 1 column 2"),
        (b'{"vocab_size": 3,}', "line 1"),
        (b"\xff\xfe{}", "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b'{"vocab_size": ' + b"1" * 5000 + b"}", "digits"),
    ],
    ids=["empty", "cut", "comma", "not UTF-8", "deep", "long number"],
)
def test_no_json(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    message = refusal(path)
    assert "expected JSON" in message
    assert found in message


@pytest.mark.parametrize("content", ["[]", "null", '"bert"', "1"])
def test_no_json_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    kind = type(json.loads(content)).__name__
    assert f"expected a JSON object, found {kind}" in refusal(path)


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "config.json").endswith("config.json: no such file")


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    assert "expected a file" in refusal(tmp_path)


@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "id2label", "is_decoder"]), _JSON))
def test_any_values_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    path = write(tmp_path_factory.getbasetemp(), **changes)
    try:
        config = read_config(path)
    except BertNumpyError as error:
        refused = str(error)
    else:
        refused = ""
        assert config.hidden_size % config.num_attention_heads == 0
        assert 0 <= config.layer_norm_eps <= 1
        assert config.labels
    assert not refused or str(path) in refused


def test_read_json_keeps_what_it_reads(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"é": [1, 2.5, null]}', encoding="utf-8")
    assert read_json(path) == {"é": [1, 2.5, None]}

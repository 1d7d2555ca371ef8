"""config.json: the keys that are read, and refusals that name key, value and expectation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import CONFIG, VOCABULARY, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from bert_numpy import BertConfig, BertNumpyError, load
from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.errors import read_json
from bert_numpy.model.architectures import ARCHITECTURES, ENCODER
from bert_numpy.model.model import require_head

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


ALBERT = {"model_type": "albert", "architectures": ["AlbertModel"]}


def test_alberts_defaults_against_transformers(tmp_path: Path, transformers: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ALBERT | {key: CONFIG[key] for key in REQUIRED}))
    config, peer = read_config(path), transformers.AlbertConfig()
    optional = ("hidden_act", "max_position_embeddings", "type_vocab_size", "layer_norm_eps")
    for key in (*optional, "embedding_size", "num_hidden_groups", "pad_token_id"):
        assert getattr(config, key) == getattr(peer, key), key
    assert peer.inner_group_num == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("inner_group_num", 2, "expected 1, found 2"),
        ("inner_group_num", None, "expected 1, found None"),
        ("num_hidden_groups", 3, "expected at most num_hidden_layers, 2, found 3"),
        ("num_hidden_groups", 0, "expected at least 1, found 0"),
        ("num_hidden_groups", 1.0, "expected int, found 1.0"),
        ("num_hidden_groups", None, "expected int, found nothing"),
        ("num_hidden_layers", 1001, "expected at most 1000, found 1001"),
        ("embedding_size", 0, "expected at least 1, found 0"),
    ],
)
def test_alberts_keys(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = write(tmp_path, **ALBERT, **{key: value})
    assert refusal(path) == f"{path}: key {key!r}: {message}"
    if key != "num_hidden_layers" and key != "embedding_size":
        others = {"architectures": ["BertModel"]}
        assert read_config(write(tmp_path, **others, **{key: value})).num_hidden_groups == 0


MPNET = {"model_type": "mpnet", "architectures": ["MPNetModel"]}


def test_mpnets_defaults_against_transformers(tmp_path: Path, transformers: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MPNET | {key: CONFIG[key] for key in REQUIRED}))
    config, peer = read_config(path), transformers.MPNetConfig()
    optional = ("hidden_act", "max_position_embeddings", "layer_norm_eps")
    for key in (*optional, "relative_attention_num_buckets", "pad_token_id"):
        assert getattr(config, key) == getattr(peer, key), key
    assert config.type_vocab_size == 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (31, "expected at least 32, found 31"),  # transformers looks 32 up, whatever it says
        (32.0, "expected int, found 32.0"),
        (None, "expected int, found nothing"),
    ],
)
def test_mpnets_buckets(tmp_path: Path, value: Any, message: str) -> None:
    key = "relative_attention_num_buckets"
    path = write(tmp_path, **MPNET, **{key: value})
    assert refusal(path) == f"{path}: key {key!r}: {message}"
    config = read_config(write(tmp_path, architectures=["BertModel"], **{key: value}))
    assert config.relative_attention_num_buckets == 0


def test_mpnets_padding_is_not_the_files(tmp_path: Path) -> None:
    for value in (0, 5, None, 10**6):
        assert read_config(write(tmp_path, **MPNET, pad_token_id=value)).pad_token_id == 1


def test_as_many_layers_as_a_model_with_shared_ones_may_have(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, **ALBERT, num_hidden_layers=1000, num_hidden_groups=1000))
    assert list(config.layer_parameters) == list(range(1000))


@pytest.mark.parametrize(
    "architectures",
    [
        *(None, [], ["BertModel"], ["BertLMHeadModel"], ["BertForX"], ["BertPreTrainedModel"]),
        *(["BertForCausalLM"], ["BertForSequenceClassificationX"], ["HF_ColBERT"]),
    ],
)
def test_other_architectures_are_bare_encoders(tmp_path: Path, architectures: Any) -> None:
    config = read_config(write(tmp_path, architectures=architectures))
    assert config.head is ENCODER
    assert config.stated_architecture == (
        architectures[0] if architectures else "none (no 'architectures')"
    )


def test_a_class_that_is_not_named_is_not_reported_as_found(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, config_overrides={"architectures": ["BertModel"]})
    for architectures, found in (
        (["BertModel"], "BertModel"),
        (None, "none (no 'architectures')"),
        ([], "none (no 'architectures')"),
    ):
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(raw | {"architectures": architectures}))
        with pytest.raises(BertNumpyError) as caught:
            require_head(load(folder), "sequence classification")
        assert str(caught.value).endswith(
            f"expected a BertForSequenceClassification, found {found}"
        )


#: The class in ``architectures`` and the model type of a file that has no ``model_type``.
INFERRED = {
    "BertModel": "bert",
    "BertForMaskedLM": "bert",
    "BertLMHeadModel": "bert",
    "BertForX": "bert",
    "DistilBertForQuestionAnswering": "distilbert",
    "DistilBertModel": "distilbert",
    "RobertaModel": "roberta",
    "RobertaForSequenceClassification": "roberta",
    "XLMRobertaForTokenClassification": "xlm-roberta",
    "CamembertForCausalLM": "camembert",
    "ElectraForPreTraining": "electra",
    "AlbertForPreTraining": "albert",
    "AlbertModel": "albert",
    "MPNetForMaskedLM": "mpnet",
}

#: The keys of every model type, under all of their names.
ALL_SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "embedding_size": 16}


@pytest.mark.parametrize(("name", "expected"), INFERRED.items())
def test_model_type_of_a_class(tmp_path: Path, name: str, expected: str) -> None:
    config = read_config(write(tmp_path, "model_type", architectures=[name], **ALL_SIZES))
    assert (config.model_type, config.architecture) == (expected, name)
    given = read_config(write(tmp_path, model_type=expected, architectures=[name], **ALL_SIZES))
    assert given == config


@pytest.mark.parametrize(
    "name",
    [
        *(
            "MobileBertModel",
            "RobertaPreLayerNormForMaskedLM",
            "BertGenerationEncoder",
            "HF_ColBERT",
        ),
        *(
            "MyBertForMaskedLM",
            "ForMaskedLM",
            "MobileBertModel",
            "XLMRobertaXLModel",
            "RoBERTaModel",
        ),
    ],
)
def test_no_model_type_and_an_unknown_class(tmp_path: Path, name: str) -> None:
    message = refusal(write(tmp_path, "model_type", architectures=[name]))
    assert "key 'model_type': expected one of bert, distilbert, " in message
    assert message.endswith(f"found nothing, and 'architectures' is {name!r}")


@pytest.mark.parametrize("architectures", [None, []])
@pytest.mark.parametrize(
    "signs",
    [{"pad_token_id": 1}, {"bos_token_id": 0}, {"eos_token_id": 2}, {"embedding_size": 16}],
)
def test_neither_model_type_nor_class(
    tmp_path: Path, architectures: Any, signs: dict[str, int]
) -> None:
    """Google's files have neither, and no key that only others have."""
    plain = write(tmp_path, "model_type", architectures=architectures)
    assert read_config(plain).model_type == "bert"
    empty = dict.fromkeys(signs)
    path = write(tmp_path, "model_type", architectures=architectures, **empty)
    assert read_config(path).model_type == "bert"
    (key,) = signs
    message = refusal(write(tmp_path, "model_type", architectures=architectures, **signs))
    assert "key 'model_type': expected one of bert, " in message
    assert f"found nothing and no 'architectures', but {key!r}" in message


@pytest.mark.parametrize(
    ("model_type", "name", "expected"),
    [
        ("bert", "RobertaForSequenceClassification", "BertModel or BertFor..."),
        ("bert", "DistilBertModel", "BertModel or BertFor..."),
        ("bert", "AlbertForMaskedLM", "BertModel or BertFor..."),
        ("bert", "BertGenerationDecoder", "BertModel or BertFor..."),
        ("bert", "MyBertForSequenceClassification", "BertModel or BertFor..."),
        ("roberta", "BertModel", "RobertaModel or RobertaFor..."),
        ("roberta", "RobertaPreLayerNormModel", "RobertaModel or RobertaFor..."),
        ("distilbert", "BertForMaskedLM", "DistilBertModel or DistilBertFor..."),
        ("electra", "BertForMaskedLM", "ElectraModel or ElectraFor..."),
        ("albert", "BertForMaskedLM", "AlbertModel or AlbertFor..."),
        ("mpnet", "RobertaForMaskedLM", "MPNetModel or MPNetFor..."),
        ("xlm-roberta", "XLMRobertaXLModel", "XLMRobertaModel or XLMRobertaFor..."),
    ],
)
def test_class_of_another_model_type(
    tmp_path: Path, model_type: str, name: str, expected: str
) -> None:
    message = refusal(write(tmp_path, model_type=model_type, architectures=[name], **ALL_SIZES))
    assert message.endswith(
        f"key 'architectures': expected {expected}, as 'model_type' is {model_type!r}, "
        f"found {name!r}"
    )


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "Camembert"])
def test_robertas_are_one_architecture(tmp_path: Path, model_type: str, family: str) -> None:
    path = write(tmp_path, model_type=model_type, architectures=[f"{family}ForMaskedLM"])
    config = read_config(path)
    assert config.model_type == model_type
    assert config.head.name == "masked language modelling"


def test_number_of_labels_must_be_that_of_the_names(tmp_path: Path) -> None:
    names = {"0": "a", "1": "b", "2": "c"}
    assert read_config(write(tmp_path, id2label=names, num_labels=3)).labels == ("a", "b", "c")
    message = refusal(write(tmp_path, id2label=names, num_labels=2))
    assert "key 'num_labels': expected 3, as 'id2label' has so many, found 2" in message
    assert len(read_config(write(tmp_path, num_labels=None)).labels) == 2


@pytest.mark.parametrize(
    "numbers",
    [
        {"negative": 0, "positive": 1},
        {"positive": 1, "negative": 0},
        {"negative": 0},
        {"negative": "0", "positive": "1"},
        {"LABEL_0": 0, "LABEL_1": 1},
        {},
        None,
    ],
)
def test_label2id_that_agrees(tmp_path: Path, numbers: Any) -> None:
    names = {"0": "negative", "1": "positive"}
    path = write(tmp_path, id2label=names, label2id=numbers)
    assert read_config(path).labels == ("negative", "positive")


@pytest.mark.parametrize(
    ("names", "numbers", "expected"),
    [
        (("negative", "positive"), {"negative": 1, "positive": 0}, "0 for 'negative'"),
        (("negative", "positive"), {"positive": 0}, "1 for 'positive'"),
        (("negative", "positive"), {"other": 0}, "no label for 'other'"),
        (("negative", "positive"), {"negative": False}, "0 for 'negative'"),
        (("negative", "positive"), {"negative": 0.0}, "0 for 'negative'"),
        (("negative", "positive"), {"negative": None}, "0 for 'negative'"),
        (("negative", "positive"), {"LABEL_1": 0}, "1 for 'LABEL_1'"),
        (("LABEL_0", "LABEL_1"), {"positive": 0, "negative": 1}, "no label for 'positive'"),
        (None, {"positive": 0, "negative": 1}, "no label for 'positive'"),
        (None, {"negative": 0, "positive": 1}, "no label for 'negative'"),
        (("a", "b"), ["a", "b"], "an object"),
        (("a", "b"), "ab", "an object"),
    ],
)
def test_label2id_that_contradicts(
    tmp_path: Path, names: tuple[str, ...] | None, numbers: Any, expected: str
) -> None:
    """transformers follows id2label; a file that contradicts itself may mean the other one."""
    listed = None if names is None else {str(i): name for i, name in enumerate(names)}
    message = refusal(write(tmp_path, id2label=listed, label2id=numbers))
    assert f"key 'label2id': expected {expected}" in message


@pytest.mark.parametrize(
    "name", [None, True, 0.5, ["x"], {"x": 1}, "two\nlines", "two\r", "two\u2028"]
)
def test_label_that_is_no_line_of_text(tmp_path: Path, name: Any) -> None:
    message = refusal(write(tmp_path, id2label={"0": name, "1": "b"}))
    assert message.endswith(
        f"key 'id2label': expected each name to be a line of text, found {name!r}"
    )


def test_numbers_are_names(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, id2label={"0": 1, "1": 0})).labels == ("1", "0")


@pytest.mark.parametrize("names", [{"0": "a", "1": "a"}, {"0": 1, "1": "1"}, {"0": "", "1": ""}])
def test_two_labels_of_one_name(tmp_path: Path, names: dict[str, Any]) -> None:
    message = refusal(write(tmp_path, id2label=names))
    assert "key 'id2label': expected names that differ, found " in message
    assert message.endswith(" twice")


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
        ("position_embedding_type", None, "absolute"),
        ("add_cross_attention", True, False),
        ("is_decoder", "false", False),
        ("is_encoder_decoder", True, False),
        ("is_causal", True, False),
    ],
)
def test_what_is_not_computed(tmp_path: Path, key: str, value: Any, expected: Any) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key '{key}': expected {expected!r}, found {value!r}" in message


@pytest.mark.parametrize("value", ["mobilebert", "xlm-roberta-xl", "Bert", None, 1, ["bert"]])
def test_other_model_types(tmp_path: Path, value: Any) -> None:
    message = refusal(write(tmp_path, model_type=value))
    found = "nothing" if value is None else repr(value)
    expected = "bert, distilbert, roberta, xlm-roberta, camembert, electra, albert, mpnet"
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


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "modeling.BertModel"}),
        ("pruned_heads", {"0": [1]}),
        ("per_layer_config", {"0": {"intermediate_size": 8}}),
        ("configuration_files", ["config.4.0.0.json"]),
        ("transformers_weights", "other.safetensors"),
        ("attribute_map", {"hidden_act": "other"}),
    ],
)
def test_what_sends_the_reader_elsewhere(tmp_path: Path, key: str, value: Any) -> None:
    message = refusal(write(tmp_path, **{key: value}))
    assert f"key {key!r}: expected nothing (" in message
    assert message.endswith(f"), found {value!r}")
    for empty in (None, type(value)()):
        assert read_config(write(tmp_path, **{key: empty})) == read_config(write(tmp_path))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_no_padding_token(tmp_path: Path, model_type: str) -> None:
    """Only RoBERTa's positions depend on it: transformers fails there, too."""
    path = write(tmp_path, "architectures", model_type=model_type, pad_token_id=None, **ALL_SIZES)
    if model_type == "mpnet":
        assert read_config(path).pad_token_id == 1
    elif ARCHITECTURES[model_type].counts_positions:
        assert "key 'pad_token_id': expected int, found nothing" in refusal(path)
    else:
        assert read_config(path).pad_token_id == 0


ALIASES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}


@pytest.mark.parametrize(("name", "alias"), ALIASES.items())
def test_other_names_of_distilberts_keys(tmp_path: Path, name: str, alias: str) -> None:
    """Those of transformers' attribute_map; a contradiction depends on the order of reading."""
    kind = {"model_type": "distilbert", "architectures": ["DistilBertModel"]}
    without = dict.fromkeys(ALIASES.values())
    own = {key: value for key, value in ALL_SIZES.items() if key != "embedding_size"}
    path = tmp_path / "config.json"
    raw = {key: value for key, value in CONFIG.items() if key not in without} | kind | own
    path.write_text(json.dumps(raw))
    expected = read_config(path)
    for values in ({alias: raw[name]}, {name: raw[name], alias: raw[name]}):
        rest = {key: value for key, value in raw.items() if key != name}
        path.write_text(json.dumps(rest | values))
        assert read_config(path) == expected
    path.write_text(json.dumps(raw | {alias: 4}))
    assert refusal(path).endswith(
        f"keys {name!r} and {alias!r}: expected one value, found {raw[name]} and 4"
    )
    path.write_text(json.dumps(raw | {"intermediate_size": 4, "hidden_act": "relu"}))
    assert read_config(path) == expected  # these two are not in the map


@pytest.mark.parametrize("model_type", ["bert", "roberta", "electra", "albert"])
def test_distilberts_keys_mean_nothing_to_others(tmp_path: Path, model_type: str) -> None:
    given = {"model_type": model_type, "architectures": None, "embedding_size": 16}
    expected = read_config(write(tmp_path, **given))
    others = {"dim": 4, "n_layers": 1, "n_heads": 1, "hidden_dim": 4, "activation": "relu"}
    assert read_config(write(tmp_path, **given, **others)) == expected


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
        {" 0": "negative", "1": "positive"},
        {"0": "negative", "1.0": "positive"},
        {"0": "negative", "-1": "positive"},
        {"0": "negative", "\u0661": "positive"},
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

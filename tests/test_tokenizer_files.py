"""The files of a tokenizer: keys are applied or refused by name, hostile files are one error."""

from __future__ import annotations

import base64
import copy
import importlib
import json
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tokenizers
from conftest import ROOT
from factories import VOCABULARY, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from bert_numpy import BertNumpyError, Tokenizer, load_tokenizer
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.tasks.charsmap import check_charsmap
from bert_numpy.tasks.spans import best_answers

sys.path.insert(0, str(ROOT / "scripts"))

Json = dict[str, Any]

TEXT = "a good FILM, caf\u00e9 \u65e5\u672c <e> [MASK] monkeys"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", config_overrides={"vocab_size": 200})


def change(folder: Path, edit: Callable[[Json], object]) -> None:
    """Edit the folder's tokenizer.json."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    edit(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(BertNumpyError) as caught:
        load_tokenizer(folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def pieces(folder: Path, text: str = TEXT) -> list[str | None]:
    return load_tokenizer(folder).tokens(text)[1:-1]


# Keys


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["f", "##i", "##l", "##m", ",", "c", "##a", "##f", "##e"]),
        ({"do_lower_case": False}, ["[UNK]", ",", "[UNK]"]),
        ({"strip_accents": False}, ["f", "##i", "##l", "##m", ",", "[UNK]"]),
        (
            {"tokenize_chinese_chars": False},
            ["f", "##i", "##l", "##m", ",", "c", "##a", "##f", "##e"],
        ),
    ],
)
def test_the_normalizer_is_that_of_the_keys(
    folder: Path, name: str, keys: Json, expected: list[str]
) -> None:
    if name == "vocab.txt":
        (folder / "tokenizer.json").unlink()
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **keys})
    vocabulary = [word for word in VOCABULARY if word != "film"]
    numbered = {word: number for number, word in enumerate(vocabulary)}
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
    if name == "tokenizer.json":
        tokenizers.BertWordPieceTokenizer(numbered).save(str(folder / name))
    found = pieces(folder, "FILM, caf\u00e9 \u65e5\u672c")
    unknown = 1 if keys.get("tokenize_chinese_chars") is False else 2
    assert found == [*expected, *["[UNK]"] * unknown]


@pytest.mark.parametrize("place", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_added_tokens_have_ids_of_their_own(folder: Path, name: str, place: str) -> None:
    number, entry = len(VOCABULARY), dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    entry |= {"content": "<e>", "normalized": False, "special": True}
    if place == "tokenizer.json":
        change(folder, lambda raw: raw["added_tokens"].append({"id": number, **entry}))
    elif place == "added_tokens.json":
        write(folder, place, {"<e>": number})
    else:
        write(folder, "tokenizer_config.json", {place: {str(number): entry}})
    if name == "vocab.txt":
        if place == "tokenizer.json":
            pytest.skip("the file with the token would be gone")
        (folder / "tokenizer.json").unlink()
    assert number in load_tokenizer(folder).encode([TEXT])[0].input_ids
    assert "<e>" in pieces(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", {"<e>": 190}, "added_tokens.json: key '<e>': expected the id 1"),
        ("added_tokens.json", {"<e>": "7"}, "key '<e>': expected an id, a whole number"),
        ("added_tokens.json", {"<e>": -1}, "key '<e>': expected an id, a whole number"),
        ("added_tokens.json", {"<e>": 4_000_000_000}, "key '<e>': expected an id, a whole number"),
        ("added_tokens.json", {"a": 200, "b": 200}, "key 'b': expected an id of its own"),
        ("added_tokens.json", [], "expected a JSON object, found list"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {}}}, "expected ids as keys"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": "e"}}, "expected a token, a JSON"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"190": {"content": "<e>"}}},
            "key 'added_tokens_decoder': expected the id 1",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"7": {"content": "e", "colour": True}}},
            "expected single_word, lstrip, rstrip, normalized, special: true or false",
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "GPT2Tokenizer"},
            "key 'tokenizer_class': exp",
        ),
        ("tokenizer_config.json", {"tokenizer_class": 7}, "key 'tokenizer_class': expected one of"),
        ("config.json", {"tokenizer_class": "T5Tokenizer"}, "config.json: key 'tokenizer_class'"),
        ("tokenizer_config.json", {"padding_side": "left"}, "key 'padding_side': expected 'right'"),
        (
            "tokenizer_config.json",
            {"truncation_side": "up"},
            "expected 'right' or 'left', found 'up'",
        ),
        ("tokenizer_config.json", {"do_lower_case": 1}, "'do_lower_case': expected true or false"),
        ("tokenizer_config.json", {"do_lower_case": None}, "found null"),
        ("tokenizer_config.json", {"strip_accents": "no"}, "expected true, false or null"),
        ("tokenizer_config.json", {"add_prefix_space": 0}, "'add_prefix_space': expected true or"),
        ("tokenizer_config.json", {"from_slow": True}, "key 'from_slow': expected False"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "key 'split_special_tokens'"),
        (
            "tokenizer_config.json",
            {"tokenizer_file": "/x"},
            "key 'tokenizer_file': expected no such",
        ),
        ("tokenizer_config.json", {"vocab_file": None}, "key 'vocab_file': expected no such key"),
        (
            "tokenizer_config.json",
            {"model_input_names": ["input_ids"]},
            "expected a list with input_ids",
        ),
        ("tokenizer_config.json", {"model_max_length": "128"}, "expected a number of at least 3"),
        ("tokenizer_config.json", {"model_max_length": 2}, "expected a number of at least 3"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a", "b"]}}, "code of its own"),
        ("tokenizer_config.json", {"cls_token": 7}, "key 'cls_token': expected a token"),
        (
            "tokenizer_config.json",
            {"cls_token": "<c>"},
            "key 'post_processor': expected <c> $A [SEP]",
        ),
        (
            "special_tokens_map.json",
            {"sep_token": "<s>"},
            "expected [CLS] $A <s> $B <s> (cls_token",
        ),
        (
            "special_tokens_map.json",
            {"sep_token": ["<s>"]},
            "special_tokens_map.json: key 'sep_token'",
        ),
        (
            "special_tokens_map.json",
            {"mask_token": {"content": ""}},
            "expected a 'content' of 1..1000",
        ),
    ],
)
def test_a_key_that_is_refused(folder: Path, name: str, content: Any, message: str) -> None:
    if name == "config.json":
        content = json.loads((folder / name).read_text()) | content
    write(folder, name, content)
    assert message in refusal(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {"never_split": ["film"]},
        {"do_basic_tokenize": False},
        {"wordpieces_prefix": "@@"},
        {"clean_up_tokenization_spaces": True, "errors": "strict", "name_or_path": "/x"},
        {"use_fast": False, "stride": 3, "max_length": 4, "pad_to_multiple_of": 8},
        {"unknown": {"x": [1]}, "extra_special_tokens": {}, "model_max_length": int(1e30)},
        {"backend": "tokenizers", "is_local": True, "local_files_only": False},
    ],
)
def test_keys_without_effect(folder: Path, keys: Json) -> None:
    expected = load_tokenizer(folder).encode([TEXT])
    write(folder, "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast", **keys})
    assert load_tokenizer(folder).encode([TEXT]) == expected


@pytest.mark.parametrize("key", ["model_max_length", "max_len"])
def test_the_tokenizer_may_allow_less_than_the_model(folder: Path, key: str) -> None:
    write(folder, "tokenizer_config.json", {key: 9})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.model_max_length == 9
    with pytest.raises(BertNumpyError, match="text 1: expected at most 9 tokens, found 42"):
        tokenizer.encode(["a " * 40])


def test_cut_on_the_left(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"truncation_side": "left"})
    tokenizer = load_tokenizer(folder)
    (found,) = tokenizer.encode(["a b c d e"], None, 5)
    assert tokenizer.backend.decode(list(found.input_ids[1:-1])) == "c d e"
    change(
        folder,
        lambda raw: raw.update(
            truncation={
                "direction": "Left",
                "max_length": 9,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        ),
    )
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).truncation_side == "left"


def test_inputs_without_token_types(folder: Path) -> None:
    assert max(load_tokenizer(folder).encode(["a"], ["b"])[0].token_type_ids) == 1
    write(folder, "tokenizer_config.json", {"model_input_names": ["input_ids", "attention_mask"]})
    assert load_tokenizer(folder).encode(["a"], ["b"])[0].token_type_ids == (0,) * 5


def test_no_post_processor(folder: Path) -> None:
    """BertTokenizer of version 4 would add nothing, of version 5 [CLS] and [SEP]."""
    change(folder, lambda raw: raw.update(post_processor=None))
    assert "key 'post_processor': expected [CLS] $A [SEP] $B [SEP] (cls_token" in refusal(folder)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert len(load_tokenizer(folder).encode(["a b"])[0].input_ids) == 2


def test_a_token_beyond_the_model(tmp_path: Path) -> None:
    """The class names a mask token that the vocabulary lacks: it gets the first free id."""
    folder = write_checkpoint(tmp_path)
    words = [word for word in VOCABULARY if word != "[MASK]"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    config = json.loads((folder / "config.json").read_text()) | {"vocab_size": len(words)}
    write(folder, "config.json", config)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.mask_token_id is None
    assert len(tokenizer.encode(["a film"])[0].input_ids) == 4
    with pytest.raises(
        BertNumpyError, match=rf"text 2: expected ids below {len(words)} .*'\[MASK\]'"
    ):
        tokenizer.encode(["a", "a [MASK]"])


# Sentence-transformers


def test_texts_of_sentence_transformers(folder: Path) -> None:
    """They are stripped, lowered by str.lower, and cut."""
    write(folder, "tokenizer_config.json", {"do_lower_case": False})
    write(folder, "modules.json", [])
    for name in ("sentence_roberta_config.json", "sentence_bert_config.json"):
        write(folder, name, {"do_lower_case": True, "max_seq_length": 6})
        tokenizer = load_tokenizer(folder)
        assert tokenizer.tokens(" FILM ")[1:-1] == ["film"]
        assert tokenizer.model_max_length == 6
        (cut,) = tokenizer.encode(["a b c d e f"])
        assert (len(cut.input_ids), cut.truncated) == (6, True)
        (folder / name).unlink()
    assert load_tokenizer(folder).tokens("FILM")[1:-1] == ["[UNK]"]
    with pytest.raises(BertNumpyError, match="expected a tokenizer for question answering"):
        tokenizer.windows(["a"], ["b"], 6, 1, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"do_lower_case": "yes"}, "key 'do_lower_case': expected true or false, found 'yes'"),
        ({"max_seq_length": 1}, "key 'max_seq_length': expected a number of at least 3, found 1"),
        ({"tokenizer_args": {"use_fast": False}}, "key 'tokenizer_args': expected no such key"),
    ],
)
def test_bad_settings_of_sentence_transformers(folder: Path, content: Json, message: str) -> None:
    write(folder, "modules.json", [])
    write(folder, "sentence_bert_config.json", content)
    assert message in refusal(folder)


# Hostile files


def nested(depth: int) -> Json:
    part: Json = {"type": "Lowercase"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


def replaced(pattern: Json, content: str, times: int = 1) -> Json:
    part = {"type": "Replace", "pattern": pattern, "content": content}
    return {"type": "Sequence", "normalizers": [part] * times}


def template(pieces: list[Json], tokens: Json | None = None) -> Json:
    special = (
        {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}} if tokens is None else tokens
    )
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": pieces, "pair": pair, "special_tokens": special}


TEXT_A = {"Sequence": {"id": "A", "type_id": 0}}
CLS = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
BPE: Json = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}

HOSTILE: dict[str, tuple[Json, str]] = {
    "replacements that double": ({"normalizer": replaced({"String": "a"}, "aa", 30)}, "normalizer"),
    "a long replacement": ({"normalizer": replaced({"String": "a"}, "b" * 900)}, "normalizer"),
    "a very long one": ({"normalizer": replaced({"String": "a"}, "b" * 10**6)}, "content"),
    "a replacement of nothing": ({"normalizer": replaced({"String": ""}, "b")}, "pattern.String"),
    "long prefixes": (
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "Prepend", "prepend": "x" * 900}] * 9,
            }
        },
        "normalizer",
    ),
    "a prefix of nothing": ({"normalizer": {"type": "Prepend", "prepend": ""}}, "prepend"),
    "many normalizers": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 10_000}},
        "normalizer.normalizers",
    ),
    "deep normalizers": ({"normalizer": nested(40)}, "normalizer"),
    "deeper normalizers": ({"normalizer": nested(400)}, ""),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 30}},
        "pre_tokenizer",
    ),
    "a search that backtracks": (
        {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "pre_tokenizer.pattern.Regex",
    ),
    "another": ({"normalizer": replaced({"Regex": "(a|aa)*c"}, "b")}, "pattern.Regex"),
    "a search for nothing": ({"normalizer": replaced({"Regex": "a*"}, "b")}, "pattern.Regex"),
    "a back reference": ({"normalizer": replaced({"Regex": "\\1+"}, "b")}, "pattern.Regex"),
    "an unknown normalizer": ({"normalizer": {"type": "Shell", "command": "x"}}, "normalizer.type"),
    "no map": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
    "a map that is null": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": None}},
        "normalizer.precompiled_charsmap",
    ),
    "a map that is missing": (
        {"normalizer": {"type": "Precompiled"}},
        "normalizer.precompiled_charsmap",
    ),
    "a text twice": ({"post_processor": template([CLS, TEXT_A, TEXT_A])}, "post_processor.single"),
    "a component behind the template": (
        {
            "post_processor": {
                "type": "Sequence",
                "processors": [
                    template([CLS, TEXT_A]),
                    {
                        "type": "ByteLevel",
                        "add_prefix_space": True,
                        "trim_offsets": True,
                        "use_regex": True,
                    },
                ],
            }
        },
        "post_processor",
    ),
    "a long template": (
        {"post_processor": template([CLS] * 5000 + [TEXT_A])},
        "post_processor.single",
    ),
    "many ids of one token": (
        {
            "post_processor": template(
                [CLS, TEXT_A], {"[CLS]": {"id": "[CLS]", "ids": [2] * 10**5, "tokens": []}}
            )
        },
        "special_tokens.[CLS].ids",
    ),
    "a special token without an id": (
        {"post_processor": template([CLS, TEXT_A], {})},
        "special_tokens",
    ),
    "a far id": (
        {"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", -3], "cls": ["[CLS]", 2]}},
        "sep",
    ),
    "long words": (
        {
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "vocab": {"[UNK]": 0},
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 10**9,
            }
        },
        "max_input_chars_per_word",
    ),
    "random tokens": ({"model": BPE | {"dropout": 0.5}}, "model.dropout"),
    "a merge without its prefix": (
        {"model": BPE | {"continuing_subword_prefix": "##"}},
        "model.merges.0",
    ),
    "a merge of nothing": ({"model": BPE | {"merges": ["a x"]}}, ""),
    "no vocabulary": ({"model": BPE | {"vocab": {}}}, "model.vocab"),
    "an id that is a text": ({"model": BPE | {"vocab": {"a": "0"}}}, "model.vocab.a"),
    "an id below 0": ({"model": BPE | {"vocab": {"a": -1}}}, "model.vocab.a"),
    "an id of 4 billion": ({"model": BPE | {"vocab": {"a": 4_000_000_000}}}, "model.vocab.a"),
    "an id beyond the model": ({"model": BPE | {"vocab": {"a": 0, "b": 900, "ab": 2}}}, "900"),
    "no score": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", None]]}},
        "model.vocab",
    ),
    "a score of NaN": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("nan")]]}},
        "found NaN",
    ),
    "an infinite score": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a", float("inf")]]}},
        "found Infinity",
    ),
    "an empty piece": (
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0]]}},
        "model.vocab",
    ),
    "a missing unknown piece": (
        {"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}},
        "unk_id",
    ),
    "an unknown model": ({"model": {"type": "Lua", "vocab": {}}}, "model.type"),
    "no model": ({"model": None}, "model"),
    "deep decoders": ({"decoder": nested(60)}, "decoder"),
    "a large decoder": (
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 10**4}},
        "decoder",
    ),
    "an added token of nothing": (
        {"added_tokens": [{"id": 0, "content": ""}]},
        "added_tokens.0.content",
    ),
    "added tokens without flags": (
        {"added_tokens": [{"id": 0, "content": "a"}]},
        "added_tokens.0.single_word",
    ),
    "spaces that claim more": (
        {
            "added_tokens": [
                dict.fromkeys(("single_word", "normalized", "special"), False)
                | {"id": 0, "content": "\n", "lstrip": True, "rstrip": False}
            ]
        },
        "added_tokens.0",
    ),
    "no list of added tokens": ({"added_tokens": {"a": 0}}, "added_tokens"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizer_json(folder: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    parts, place = HOSTILE[name]
    change(folder, lambda raw: raw.update(parts))
    write(folder, "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    message = refusal(folder)
    assert message.startswith(f"{folder / 'tokenizer.json'}: expected ")
    assert place in message
    assert len(message) < 1000
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "part",
    [
        {
            "padding": {
                "strategy": {"Fixed": 2**40},
                "direction": "Right",
                "pad_to_multiple_of": 2**40,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        },
        {
            "truncation": {
                "direction": "Right",
                "max_length": 0,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        },
    ],
)
def test_padding_and_truncation_of_the_file_are_not_used(folder: Path, part: Json) -> None:
    expected = load_tokenizer(folder).encode([TEXT])
    change(folder, lambda raw: raw.update(part))
    assert load_tokenizer(folder).encode([TEXT]) == expected


def test_an_added_token_that_the_normalizer_deletes(folder: Path) -> None:
    """The library would find it between all characters."""
    token = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False)
    token |= {"id": len(VOCABULARY), "content": "\u0301", "normalized": True}
    change(folder, lambda raw: raw["added_tokens"].append(token))
    assert "expected added tokens of visible text" in refusal(folder)


def test_an_id_that_the_library_does_not_keep(folder: Path) -> None:
    change(folder, lambda raw: raw["added_tokens"][0].update(id=150))
    assert "key 'added_tokens': expected the id 0 for '[PAD]', found 150" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ufeff" + "\n".join(VOCABULARY), "expected text without a byte order mark"),
        ("\n".join(VOCABULARY).replace("[CLS]", "[cls]"), "expected the token '[CLS]' (cls_token)"),
        ("\n".join(VOCABULARY).replace("[UNK]", "[unk]"), "expected the token '[UNK]' (unk_token)"),
        ("a\n" * 500, "expected at most 200 tokens (vocab_size in config.json), found 500"),
        ("\n", "expected the token '[UNK]'"),
    ],
)
def test_hostile_vocabulary(folder: Path, content: str, message: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text(content, encoding="utf-8", newline="")
    assert message in refusal(folder)


def test_lines_that_end_as_on_windows(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    expected = load_tokenizer(folder).encode([TEXT])
    (folder / "vocab.txt").write_bytes("\r\n".join(VOCABULARY).encode())
    assert load_tokenizer(folder).encode([TEXT]) == expected


def test_of_equal_lines_the_last_is_the_token(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in [*VOCABULARY, "film"]))
    assert load_tokenizer(folder).encode(["film"])[0].input_ids[1] == len(VOCABULARY)


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ({"a": 0, "<s>": 1, "</s>": 2}, "#version: 0.2\n", "expected the token '<unk>'"),
        (
            {"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3},
            "#version: 0.2\na\n",
            "merges.txt: expected two tokens a line",
        ),
        (
            {"a": 0, "<s>": 1, "</s>": 2, "<unk>": 3},
            "#version: 0.2\na x\n",
            "expected a tokenizer, found an error",
        ),
        ({"a": True}, "#version: 0.2\n", "expected an id, a whole number"),
        ({"a": 999}, "#version: 0.2\n", "expected ids below 200"),
        (["a"], "#version: 0.2\n", "expected a JSON object, found list"),
        ({"a": 0}, None, "expected merges.txt beside it, found none"),
    ],
)
def test_hostile_merges(folder: Path, vocabulary: Any, merges: str | None, message: str) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink()
    write(folder, "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    write(folder, "vocab.json", vocabulary)
    if merges is not None:
        (folder / "merges.txt").write_text(merges)
    assert message in refusal(folder)


def test_a_class_without_its_files(folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    (folder / "tokenizer.json").unlink()
    assert "expected tokenizer.json or vocab.json, from which RobertaTokenizer" in refusal(folder)
    write(folder, "tokenizer_config.json", {"tokenizer_class": "XLMRobertaTokenizer"})
    assert "expected tokenizer.json, without which XLMRobertaTokenizer" in refusal(folder)


def test_panics_of_the_library_name_the_text(folder: Path) -> None:
    class Backend:
        """Panics at one text, as the library does."""

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 2

        def encode_batch(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
            if "bad" in texts:
                raise type("PanicException", (BaseException,), {})("index out of bounds")
            return [load_tokenizer(folder).backend.encode(text) for text in texts]

    with pytest.raises(BertNumpyError) as caught:
        Tokenizer(Backend(), 16).encode(["good", "bad", "good"])
    expected = "text 2: expected a text that the tokenizer can encode, found an error: index out of"
    assert str(caught.value).startswith(expected)


def charsmap(units: list[int], replacements: bytes) -> str:
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return base64.b64encode(len(trie).to_bytes(4, "little") + trie + replacements).decode()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("?", "expected base64"),
        (charsmap([0], b"")[:4], "expected a trie"),
        (charsmap([0xFFFFFFFF], b"x\0"), "stay within it"),
        (charsmap([0] * 256, b"\xff"), "UTF-8"),
    ],
)
def test_a_damaged_map_of_characters(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_charsmap(text)


def one_key_map(value: int, replacements: bytes) -> str:
    """A map with the key "a" alone."""
    units = [0] * 1024
    units[0] = 256 << 10  # the root's children: from 256 on
    child = 256 ^ ord("a")
    units[child] = ord("a") | 1 << 8 | (child ^ 768) << 10  # a leaf, whose value is at 768
    units[768] = 1 << 31 | value
    return charsmap(units, replacements)


def test_maps_of_characters() -> None:
    good = one_key_map(0, b"xyz\0")
    check_charsmap(good)
    assert normalizers.Precompiled(base64.b64decode(good)).normalize_str("banana") == "bxyznxyznxyz"
    for value, replacements in (
        (9, b"xyz\0"),
        (0, b"xyz"),
        (1, "\u00e9\0".encode()),
        (0, b"x" * 999 + b"\0"),
    ):
        with pytest.raises(ValueError, match="expected replacements"):
            check_charsmap(one_key_map(value, replacements))


# The variants of XLM-R's components


def of_xlm_roberta(folder: Path, **parts: Any) -> None:
    """The files of an XLM-R whose map of characters has the letter "a" alone."""
    vocabulary = [[token, 0.0] for token in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    vocabulary += [["\u2581", -3.0], ["b", -3.0], ["c", -3.0]]
    special = {"<s>": 0, "</s>": 2}
    pieces: list[Json] = [{"SpecialToken": {"id": "<s>", "type_id": 0}}]
    pieces += [{"Sequence": {"id": "A", "type_id": 0}}]
    end: Json = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    raw: Json = {
        "added_tokens": [],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": one_key_map(0, b"b\0")},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*pieces, end],
            "pair": [*pieces, end, end, {"Sequence": {"id": "B", "type_id": 0}}, end],
            "special_tokens": {
                token: {"id": token, "ids": [number], "tokens": [token]}
                for token, number in special.items()
            },
        },
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary},
    }
    write(folder, "tokenizer.json", raw | parts)
    write(folder, "tokenizer_config.json", {"model_max_length": 64})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}
    path.write_text(json.dumps(config | {"pad_token_id": 1, "type_vocab_size": 1}))


METASPACE: Json = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}


def in_order(*parts: Json) -> Json:
    return {"type": "Sequence", "normalizers": list(parts)}


MAP: Json = {"type": "Precompiled", "precompiled_charsmap": one_key_map(0, b"b\0")}


def test_every_variant_of_a_class_is_the_class(folder: Path) -> None:
    """A tab is no space to this map of characters, and no piece: only the class splits there."""
    characters = MAP
    ends = {"type": "Strip", "strip_left": False, "strip_right": True}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}
    variants: list[Json] = [
        {},
        {"normalizer": in_order(characters, {**spaces, "content": " "})},
        {"normalizer": in_order(characters, ends, spaces), "pre_tokenizer": METASPACE},
    ]
    for parts in variants:
        of_xlm_roberta(folder, **parts)
        (found,) = load_tokenizer(folder).encode(["a\tc  c"])
        assert found.input_ids == (0, 5, 6, 5, 7, 5, 7, 2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"normalizer": in_order(in_order(MAP))},
            "key 'normalizer.normalizers.0.type': expected no Sequence in a Sequence",
        ),
        (
            {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", 0.0]]}},
            "key 'model.unk_id': expected 3, as XLMRobertaTokenizer has it, found 0",
        ),
    ],
)
def test_what_version_5_does_not_read(folder: Path, parts: Json, message: str) -> None:
    of_xlm_roberta(folder, **parts)
    assert message in refusal(folder)


# Threads and copies


TEXTS = ["a very good film", "the plot was not funny and the actor was very dull", "a", "b c d e f"]


def lengths_of(tokenizer: Tokenizer) -> dict[int, Any]:
    return {n: tokenizer.encode(TEXTS, TEXTS[::-1], n) for n in range(3, 20)}


def test_threads_do_not_change_each_others_lengths(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    expected = lengths_of(tokenizer)
    windows = tokenizer.windows(TEXTS, TEXTS, 32, 2, 3)
    wrong: list[int] = []

    def work(seed: int) -> None:
        order = list(expected) * 20
        random.Random(seed).shuffle(order)
        for n in order:
            if tokenizer.encode(TEXTS, TEXTS[::-1], n) != expected[n]:
                wrong.append(n)
            if n % 5 == 0 and tokenizer.windows(TEXTS, TEXTS, 32, 2, 3) != windows:
                wrong.append(-n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("kind", [*range(pickle.HIGHEST_PROTOCOL + 1), "copy", "deepcopy"])
def test_copies_encode_alike(folder: Path, kind: int | str) -> None:
    """Also by the protocols that the library's own pickles do not know."""
    write(folder, "added_tokens.json", {"<e>": len(VOCABULARY)})
    write(folder, "tokenizer_config.json", {"strip_accents": False, "truncation_side": "left"})
    tokenizer = load_tokenizer(folder)
    if isinstance(kind, int):
        other = pickle.loads(pickle.dumps(tokenizer, kind))
    else:
        other = {"copy": copy.copy, "deepcopy": copy.deepcopy}[kind](tokenizer)
    assert other.backend is not tokenizer.backend
    assert lengths_of(other) == lengths_of(tokenizer)
    assert other.encode([TEXT]) == tokenizer.encode([TEXT])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_encodes_in_silence() -> None:
    code = f"""
import os
from bert_numpy import load_tokenizer
tokenizer = load_tokenizer({EMBEDDED!r})
texts = ["a film", "b"] * 500
expected = tokenizer.encode(texts)
child = os.fork()
if not child:
    os._exit(0 if tokenizer.encode(texts) == expected else 3)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert tokenizer.encode(texts) == expected
assert "TOKENIZERS_PARALLELISM" not in os.environ
raise SystemExit(status)
"""
    surroundings = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(
        command, capture_output=True, text=True, env=surroundings, timeout=120, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


# Cuts, against the library's own


def processors_tried() -> dict[str, Any]:
    return {
        "BERT": processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        "RoBERTa": processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
        "template": processors.TemplateProcessing(
            single="[CLS] $A [SEP]:1",
            pair="$A:1 [CLS] [SEP]:1 $B",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        ),
        "none": None,
        "bytes": processors.ByteLevel(trim_offsets=True),
    }


@given(
    kind=st.sampled_from(sorted(processors_tried())),
    counts=st.tuples(st.integers(1, 12), st.none() | st.integers(1, 12)),
    length=st.integers(4, 24),
    side=st.sampled_from(["right", "left"]),
)
def test_cuts_are_the_librarys(
    kind: str, counts: tuple[int, int | None], length: int, side: str
) -> None:
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if (processor := processors_tried()[kind]) is not None:
        backend.post_processor = processor
    first = " ".join("abcdefghijkl"[: counts[0]])
    second = None if counts[1] is None else " ".join("mnopqrstuvwx"[: counts[1]])
    tokenizer = Tokenizer(backend, 512, truncation_side=side)
    (found,) = tokenizer.encode([first], None if second is None else [second], length)
    assert backend.truncation is None
    fresh = tokenizers.Tokenizer.from_str(backend.to_str())
    fresh.enable_truncation(length, strategy="longest_first", direction=side)
    expected = fresh.encode(first, second)
    assert list(found.input_ids) == expected.ids
    assert list(found.token_type_ids) == expected.type_ids
    assert found.truncated == bool(expected.overflowing)


@given(
    question=st.integers(1, 6),
    context=st.integers(1, 26),
    extra=st.integers(1, 12),
    stride=st.integers(1, 14),
    kind=st.sampled_from(["BERT", "RoBERTa"]),
)
def test_windows_are_the_librarys(
    question: int, context: int, extra: int, stride: int, kind: str
) -> None:
    vocabulary = {word: number for number, word in enumerate(VOCABULARY)}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors_tried()[kind]
    asked, whole = " ".join("012345"[:question]), " ".join("abcdefghijklmnopqrstuvwxyz"[:context])
    length = backend.num_special_tokens_to_add(True) + question + extra
    (found,) = Tokenizer(backend, 512).windows([asked], [whole], length, stride, 9)
    step = min(stride, extra)
    fresh = tokenizers.Tokenizer.from_str(backend.to_str())
    fresh.enable_truncation(length, stride=extra - step, strategy="only_second")
    item = fresh.encode(asked, whole)
    expected = [item, *item.overflowing]
    assert [list(window.encoded.input_ids) for window in found] == [one.ids for one in expected]
    assert [list(window.encoded.token_type_ids) for window in found] == [
        one.type_ids for one in expected
    ]
    assert [window.first for window in found] == [step * n for n in range(len(expected))]


# Offsets

LEVELS = {
    f"bytes, {space}, {trim}, {order}": (space, trim, order)
    for space in (True, False)
    for trim in (True, False)
    for order in ("alone", "after words", "between")
}


def byte_level(space: bool, trim: bool, order: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=space)
    parts = {
        "alone": level,
        "after words": pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), level]),
        "between": pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), level, pre_tokenizers.Punctuation()]
        ),
    }
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = parts[order]
    backend.train_from_iterator(
        ["Amsterdam is the capital, said Rembrandt."] * 9,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim, add_prefix_space=not space
    )
    return backend


def metaspace() -> Any:
    words = ["Amsterdam", "is", "the", "capital", "said"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -3.0)]
    pieces += [(f"\u2581{word}", -4.0) for word in words]
    pieces += [(letter, -5.0) for letter in "abcdefghilmnprstA1 ,.fi"]
    backend = tokenizers.Tokenizer(models.Unigram(list(dict(pieces).items()), 3, False))
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return backend


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tokenizer]:
    """Tokenizers that put spaces before words in all the ways, as loaded."""
    backends = {name: byte_level(*how) for name, how in LEVELS.items()} | {"Unigram": metaspace()}
    found = {}
    for name, backend in backends.items():
        folder = tmp_path_factory.mktemp("reader")
        config = {"model_type": "roberta", "vocab_size": 400, "type_vocab_size": 1}
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        write(folder, "config.json", config | dict.fromkeys(sizes, 1) | {"pad_token_id": 1})
        backend.save(str(folder / "tokenizer.json"))
        found[name] = load_tokenizer(folder)
    return lambda name: found[name]


BYTES = {
    character: byte
    for byte, character in zip(
        [*range(33, 127), *range(161, 173), *range(174, 256)],
        [chr(n) for n in (*range(33, 127), *range(161, 173), *range(174, 256))],
        strict=True,
    )
}
BYTES |= {
    chr(256 + place): byte
    for place, byte in enumerate(byte for byte in range(256) if byte not in BYTES.values())
}

PIECES = st.sampled_from(
    [
        *("Amsterdam", "is", "the", "capital", ",", ".", " ", "  ", "\t", "\n", "\u00a0"),
        *(
            "\u65e5\u672c",
            "\u00e9",
            "e\u0301",
            "\U0001f600",
            "a",
            "\u3000",
            "x\u200by",
            "1",
            "\u0120",
            "\u2581",
        ),
    ]
)


@settings(max_examples=150)
@given(name=st.sampled_from([*LEVELS, "Unigram"]), parts=st.lists(PIECES, min_size=1, max_size=14))
def test_offsets_are_the_tokens_own_text(
    reader: Callable[[str], Tokenizer], name: str, parts: list[str]
) -> None:
    """Every letter is in a token's slice, and every slice is what its token stands for."""
    context = "".join(parts)
    if not context.strip():
        return
    tokenizer = reader(name)
    ((window, *_),) = tokenizer.windows(["a"], [context], 510, 400, 3)
    tokens = tokenizer.tokens("a", context)
    raw = tokenizer.backend.encode("a", context).offsets
    places = range(window.position, window.position + len(window.offsets))
    covered: set[int] = set()
    for place, (start, end) in zip(places, window.offsets, strict=True):
        token = tokens[place]
        assert token is not None
        covered |= set(range(start, end))
        text = context[start:end]
        assert text == text.lstrip()
        if name == "Unigram":
            if token.strip("\u2581") == "" and "\u2581" not in text:
                assert text == ""
            continue
        data = bytes(BYTES[character] for character in token)
        if data.strip(b" ") == b"":
            assert text == ""
        elif text == "":  # bytes of other white space
            assert context[slice(*raw[place])].isspace()
        else:  # bytes of a character, or whole characters
            stripped = data.lstrip(b" ")
            whole = text.encode()
            assert stripped in whole if len(text) == 1 else stripped.decode().lstrip() == text
    letters = {place for place, letter in enumerate(context) if not letter.isspace()}
    assert letters <= covered | (letters if name == "Unigram" else set())


@settings(max_examples=60)
@given(
    name=st.sampled_from([*LEVELS, "Unigram"]),
    parts=st.lists(PIECES, min_size=1, max_size=10),
    seed=st.integers(0, 99),
)
def test_answers_lose_no_letter(
    reader: Callable[[str], Tokenizer], name: str, parts: list[str], seed: int
) -> None:
    """Every answer begins and ends where a token's own text does, and none is empty."""
    context = "".join(parts)
    if not context.strip():
        return
    windows = reader(name).windows(["a"], [context], 14, 3, 3)[0]
    logits = [
        np.random.default_rng(seed).normal(size=(len(window.encoded.input_ids), 2))
        for window in windows
    ]
    answers = best_answers(context, windows, [one.astype(np.float32) for one in logits])
    raw = reader(name).backend.encode(context, add_special_tokens=False).offsets
    texts = [context[start:end] for start, end in raw]
    starts = {end - len(text.lstrip()) for (_, end), text in zip(raw, texts, strict=True)}
    ends = {start + len(text.rstrip()) for (start, _), text in zip(raw, texts, strict=True)}
    for answer in answers:
        assert answer.text == context[answer.start : answer.end]
        assert answer.text.strip() == answer.text != ""
        assert answer.start in starts
        letter = answer.start + len(answer.text.rstrip("\u0301"))  # whose accent is no token
        assert ends & {letter, answer.end}


# The grid


def test_a_share_of_the_grid(quiet_transformers: ModuleType) -> None:
    fuzz_tokenizer = importlib.import_module("fuzz_tokenizer")
    results = [fuzz_tokenizer.run(2, number) for number in range(60)]
    assert [found for kind, found, _ in results if kind == "failed"] == []
    kinds = [kind for kind, _, _ in results]
    assert kinds.count("equal") >= 25
    assert sum(ours for _, _, ours in results) >= 10

"""Text to ids: equal to transformers, with errors that name the text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint, write_tokenizer
from hypothesis import given
from hypothesis import strategies as st

import bert_numpy
from bert_numpy import BertNumpyError, Tokenizer, load_tokenizer
from bert_numpy.checkpoints.hub import EMBEDDED, resolve
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import read_examples, task_named
from bert_numpy.tasks.tokenization import EncodedText, pad

TEXTS = [
    "a warm and funny film",
    "A Warm AND fUnNy FILM",
    "Crème brûlée, naïve façade; ÀÉÎÕÜ ß ẞ İstanbul ǅ",
    "e\u0301 n\u0303 combining, \u1e69 and \u00c5 and \u212b",
    "我喜欢这部电影。東京タワー한국어",
    "mixed我in漢字words\U00020000\U0002f800",
    "good 😀 bad 👩‍👩‍👧‍👦 🇫🇷 ❤️",
    "tab\tnew\nline\rreturn\x0bvertical\x0cfeed\u00a0nbsp\u3000ideographic\u2028line",
    "null\x00byte \x01\x1f\x7f\x80\x9f control \ufffd replacement",
    "zero\u200bwidth\u200djoin\ufeffbom soft\u00adhyphen",
    "x" * 100,
    "x" * 101,
    "x" * 5000,
    "unbelievableness antidisestablishmentarianism",
    "...!!! ---- ((())) \"quotes\" 'single' `tick` $%^&*",
    "it's don't won't we'll 1,000.50 3.14e-10 50% #1 @name a/b c\\d",
    "«guillemets» „low” — em dash … ellipsis ¿que? ‽",
    "[CLS] [SEP] [PAD] [MASK] [UNK] [mask] [unused1] [CLS",
    "[MASK][MASK]word[SEP]word",
    "##ing ## #a",
    "العربية עברית हिन्दी ไทย Ελληνικά Русский",
    "\u200b",
    "\x00 .",
    "a",
    "?",
]

LENGTHS = [3, 4, 5, 6, 9, 16]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(EMBEDDED)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a vocabulary of 130 tokens."""
    return write_checkpoint(tmp_path_factory.mktemp("small"))


Peer = Callable[..., list[tuple[list[int], list[int]]]]


def peer_of(transformers: Any, folder: Path) -> Peer:
    """transformers' tokenizer: ids and type ids of each text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def encode(texts: list[str], pairs: list[str] | None = None, length: int | None = None) -> Any:
        truncation = {"truncation": "longest_first", "max_length": length} if length else {}
        encoded = tokenizer(texts, pairs, **truncation)
        return list(zip(encoded["input_ids"], encoded["token_type_ids"], strict=True))

    return encode


@pytest.fixture(scope="module")
def peer(transformers: Any) -> Peer:
    return peer_of(transformers, resolve(EMBEDDED))


def ids(encoded: list[EncodedText]) -> list[tuple[list[int], list[int]]]:
    return [(list(item.input_ids), list(item.token_type_ids)) for item in encoded]


def refusal(function: Callable[[], Any]) -> str:
    with pytest.raises(BertNumpyError) as caught:
        function()
    return str(caught.value)


def test_known_ids(tokenizer: Tokenizer) -> None:
    (alone,) = tokenizer.encode(["A warm, funny film!"])
    assert alone.input_ids == (101, 1037, 4010, 1010, 6057, 2143, 999, 102)
    assert alone.token_type_ids == (0,) * 8
    assert not alone.truncated
    (pair,) = tokenizer.encode(["film"], ["warm film"])
    assert pair.input_ids == (101, 2143, 102, 4010, 2143, 102)
    assert pair.token_type_ids == (0, 0, 0, 1, 1, 1)


@pytest.mark.parametrize("length", [None, *LENGTHS, 128, 512])
def test_hard_texts_as_transformers(tokenizer: Tokenizer, peer: Peer, length: int | None) -> None:
    assert ids(tokenizer.encode(TEXTS, max_length=length)) == peer(TEXTS, length=length)


@pytest.mark.parametrize("length", [None, *LENGTHS, 128, 512])
def test_hard_pairs_as_transformers(tokenizer: Tokenizer, peer: Peer, length: int | None) -> None:
    texts = [text for text in TEXTS for _ in TEXTS]
    pairs = TEXTS * len(TEXTS)
    expected = peer(texts, pairs, length=length)
    assert ids(tokenizer.encode(texts, pairs, max_length=length)) == expected


@given(
    text=st.text(min_size=1).filter(str.strip),
    pair=st.none() | st.text(min_size=1).filter(str.strip),
    length=st.integers(3, 40),
)
def test_any_text_as_transformers(
    tokenizer: Tokenizer, peer: Peer, text: str, pair: str | None, length: int
) -> None:
    pairs = None if pair is None else [pair]
    assert ids(tokenizer.encode([text], pairs, length)) == peer([text], pairs, length)


@pytest.mark.parametrize("name", ["sst2", "cola", "mrpc", "rte", "stsb"])
def test_glue_as_transformers(tokenizer: Tokenizer, peer: Peer, glue: Path, name: str) -> None:
    task = task_named(name)
    examples = read_examples(*find_files(glue, task, task.dev), task).sample(200)
    for length in (128, 24, 8):
        expected = peer(examples.texts, examples.pairs, length)
        assert ids(tokenizer.encode(examples.texts, examples.pairs, length)) == expected


@pytest.mark.parametrize("name", ["minilm-sst2", "bert-tiny-mlm"])
def test_other_checkpoints_as_transformers(checkpoints: Path, transformers: Any, name: str) -> None:
    peer = peer_of(transformers, checkpoints / name)
    assert ids(load_tokenizer(checkpoints / name).encode(TEXTS, max_length=64)) == peer(
        TEXTS, length=64
    )


def test_truncated_says_whether_tokens_were_cut(tokenizer: Tokenizer) -> None:
    text = "one two three four"  # 6 tokens with the special ones
    assert [tokenizer.encode([text], None, n)[0].truncated for n in (5, 6, 7)] == [
        True,
        False,
        False,
    ]
    cut = tokenizer.encode([text, "one"], ["five six", "two"], 7)
    assert [item.truncated for item in cut] == [True, False]


def test_the_longer_of_a_pair_is_cut_first(tokenizer: Tokenizer) -> None:
    (item,) = tokenizer.encode(["a a a a a a"], ["b"], 7)
    a, b = 1037, 1038
    assert item.input_ids == (101, a, a, a, 102, b, 102)


def test_a_cut_does_not_outlast_its_call(tokenizer: Tokenizer) -> None:
    text = "one two three four"
    whole = tokenizer.encode([text])
    assert tokenizer.encode([text], None, 4) != whole
    assert tokenizer.encode([text]) == whole


def test_the_files_own_padding_and_cut_are_ignored(tokenizer: Tokenizer) -> None:
    """This tokenizer.json asks for padding to 128 tokens and for truncation there."""
    settings = json.loads((resolve(EMBEDDED) / "tokenizer.json").read_text(encoding="utf-8"))
    assert settings["padding"]["strategy"] == {"Fixed": 128}
    lengths = [len(item.input_ids) for item in load_tokenizer(EMBEDDED).encode(["a", "a " * 200])]
    assert lengths == [3, 202]


def test_model_max_length_is_the_models(small: Path) -> None:
    assert load_tokenizer(small).model_max_length == 128


# vocab.txt


def vocabulary_only(folder: Path, settings: dict[str, Any] | None = None) -> Path:
    """The embedded checkpoint's vocabulary as vocab.txt, with its config and no tokenizer.json."""
    folder.mkdir()
    shutil.copy(resolve(EMBEDDED) / "config.json", folder)
    numbers = load_tokenizer(EMBEDDED).backend.get_vocab()
    lines = "".join(f"{token}\n" for token in sorted(numbers, key=numbers.__getitem__))
    (folder / "vocab.txt").write_text(lines, encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_vocabulary_gives_the_same_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    fallback = load_tokenizer(vocabulary_only(tmp_path / "x"))
    assert fallback.encode(TEXTS, max_length=512) == tokenizer.encode(TEXTS, max_length=512)
    pairs = TEXTS[::-1]
    assert fallback.encode(TEXTS, pairs, 16) == tokenizer.encode(TEXTS, pairs, 16)


def test_vocabulary_of_a_real_checkpoint(checkpoints: Path, tmp_path: Path) -> None:
    folder = checkpoints / "minilm-mrpc"
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    expected = load_tokenizer(folder).encode(TEXTS, max_length=512)
    assert load_tokenizer(tmp_path).encode(TEXTS, max_length=512) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
)
def test_tokenizer_config_as_transformers(
    transformers: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"tokenizer_class": "BertTokenizer", **settings}
    folder = vocabulary_only(tmp_path / "x", settings)
    got = ids(load_tokenizer(folder).encode(TEXTS, max_length=512))
    assert got == peer_of(transformers, folder)(TEXTS, length=512)
    assert got != ids(load_tokenizer(EMBEDDED).encode(TEXTS, max_length=512))


# errors


@pytest.mark.parametrize("text", ["", " ", "\t\n", "\u00a0\u3000", None, b"bytes", 7])
def test_no_text(tokenizer: Tokenizer, text: Any) -> None:
    assert refusal(lambda: tokenizer.encode(["a", text])) == (
        f"text 2: expected words, found {text!r}"
    )
    assert refusal(lambda: tokenizer.encode(["a", "b", "c"], ["a", "b", text])) == (
        f"text 3: expected words, found {text!r}"
    )


def test_lone_surrogate(tokenizer: Tokenizer) -> None:
    assert refusal(lambda: tokenizer.encode(["a", "b \udcff"])).startswith("text 2: expected words")


def test_too_long(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(["a " * 510])[0].input_ids) == 512
    message = refusal(lambda: tokenizer.encode(["a", "a " * 511]))
    assert message == "text 2: expected at most 512 tokens, found 513"
    assert len(tokenizer.encode(["a " * 511], max_length=512)[0].input_ids) == 512


@pytest.mark.parametrize("length", [-1, 0, 2, 513])
def test_bad_max_length(tokenizer: Tokenizer, length: int) -> None:
    message = refusal(lambda: tokenizer.encode(["a"], max_length=length))
    assert message == f"max_length: expected 3..512, found {length}"


@pytest.mark.parametrize("pairs", [[], ["a"], ["a", "b", "c"]])
def test_unequal_pairs(tokenizer: Tokenizer, pairs: list[str]) -> None:
    message = refusal(lambda: tokenizer.encode(["a", "b"], pairs))
    assert message == f"expected as many pairs as texts, found {len(pairs)}/2"


def test_one_text_is_no_list(tokenizer: Tokenizer) -> None:
    message = "expected a list of texts, found one text"
    assert refusal(lambda: tokenizer.encode("film")) == f"texts: {message}"
    assert refusal(lambda: tokenizer.encode(["a", "b"], "ab")) == f"pairs: {message}"


def test_no_tokenizer(small: Path, tmp_path: Path) -> None:
    shutil.copy(small / "config.json", tmp_path)
    message = refusal(lambda: load_tokenizer(tmp_path))
    assert (
        message
        == f"{tmp_path}: expected tokenizer.json, vocab.txt or vocab.json, found none of them"
    )


def test_no_config(small: Path, tmp_path: Path) -> None:
    shutil.copy(small / "tokenizer.json", tmp_path)
    assert refusal(lambda: load_tokenizer(tmp_path)) == f"{tmp_path / 'config.json'}: no such file"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[1]"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "WordPiece"}}'),
        ("vocab.txt", b""),
        ("vocab.txt", b"\xff\n"),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\na\n"),  # no [SEP]
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}'),
    ],
)
def test_corrupt_tokenizer(small: Path, tmp_path: Path, name: str, content: bytes) -> None:
    for other in ("config.json", "vocab.txt"):
        shutil.copy(small / other, tmp_path)
    (tmp_path / name).write_bytes(content)
    message = refusal(lambda: load_tokenizer(tmp_path))
    if name == "tokenizer_config.json":
        assert message.startswith(f"{tmp_path / name}: ")
    else:
        assert message.startswith(f"{tmp_path / name}: expected a tokenizer, found an error: ")


@given(data=st.data())
def test_damaged_tokenizer_loads_or_is_refused(
    small: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    shutil.copy(small / "config.json", folder)
    damaged = bytearray((small / "tokenizer.json").read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=3)):
        damaged[place] = data.draw(st.integers(32, 126))
    del damaged[data.draw(st.just(len(damaged)) | st.integers(0, len(damaged))) :]
    (folder / "tokenizer.json").write_bytes(damaged)
    try:
        loaded = load_tokenizer(folder)
    except BertNumpyError as error:
        refused = str(error)
    else:
        refused = ""
        assert loaded.model_max_length == 128
    assert not refused or str(folder / "tokenizer.json") in refused


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_vocabulary_larger_than_the_models(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write_tokenizer(tmp_path, [*VOCABULARY, "more", "and more"])
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    size = len(VOCABULARY)
    assert refusal(lambda: load_tokenizer(tmp_path)) == (
        f"{tmp_path / name}: expected at most {size} tokens (vocab_size in config.json), "
        f"found {size + 2}"
    )


def test_smaller_vocabulary_is_fine(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, config_overrides={"vocab_size": 136})
    assert load_tokenizer(tmp_path).encode(["film"])[0].input_ids[1:-1] == (
        VOCABULARY.index("film"),
    )


# pad


def test_pad() -> None:
    batch = pad([EncodedText((2, 7, 8, 3), (0, 0, 1, 1), False), EncodedText((2, 3), (0, 0), True)])
    assert {name: array.tolist() for name, array in batch.items()} == {
        "input_ids": [[2, 7, 8, 3], [2, 3, 0, 0]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]],
        "token_type_ids": [[0, 0, 1, 1], [0, 0, 0, 0]],
    }
    assert all(array.dtype == np.int64 for array in batch.values())


def test_pad_nothing(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]) == []
    assert refusal(lambda: pad([])) == "expected at least one text, found none"
    assert refusal(lambda: tokenizer.batch([])) == "expected at least one text, found none"


def test_batch_is_what_the_model_takes(small: Path) -> None:
    tokenizer, model = load_tokenizer(small), bert_numpy.load(small)
    batch = tokenizer.batch(["a film", "a very good movie"], ["b", "c d e"], max_length=7)
    assert batch["input_ids"].shape == (2, 7)
    assert model(**batch).logits.shape == (2, 2)

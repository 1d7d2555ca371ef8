"""The embedded review sentences: enough, balanced, varied, and nobody else's."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import bert_numpy
from bert_numpy.assets import REVIEWS
from bert_numpy.tasks.glue import TASKS, read_examples

FILES = ["dev.tsv", "train.tsv"]


def sentences(name: str) -> list[str]:
    return read_examples(REVIEWS / name, TASKS["sst2"]).texts


def plain(text: str) -> str:
    """Words alone: no case, no punctuation, as SST-2 writes neither as a person would."""
    return " ".join(re.sub(r"[^a-z0-9 ]", "", text.lower()).split())


def test_how_many() -> None:
    assert len(sentences("dev.tsv")) >= 300
    assert len(sentences("train.tsv")) == 100


@pytest.mark.parametrize("name", FILES)
def test_balance(name: str) -> None:
    labels = read_examples(REVIEWS / name, TASKS["sst2"]).labels
    assert set(labels.tolist()) == {0, 1}
    assert abs(labels.mean() - 0.5) <= 0.01


@pytest.mark.parametrize("name", FILES)
def test_classes_are_mixed(name: str) -> None:
    """No long run of one class: the first N examples are balanced too."""
    labels = read_examples(REVIEWS / name, TASKS["sst2"]).labels.tolist()
    for start in range(0, len(labels) - 30, 10):
        assert 5 <= sum(labels[start : start + 30]) <= 25


def test_no_sentence_twice() -> None:
    counts = Counter(plain(text) for name in FILES for text in sentences(name))
    assert [text for text, count in counts.items() if count > 1] == []


def test_none_from_sst2(glue: Path) -> None:
    theirs = {
        plain(text)
        for name in FILES
        for text in read_examples(glue / "SST-2" / name, TASKS["sst2"]).texts
    }
    assert len(theirs) > 50_000
    assert [text for name in FILES for text in sentences(name) if plain(text) in theirs] == []


def test_lengths_vary() -> None:
    lengths = [len(text.split()) for name in FILES for text in sentences(name)]
    assert min(lengths) <= 6
    assert max(lengths) >= 18
    assert max(Counter(lengths).values()) <= 0.15 * len(lengths)


def test_openings_vary() -> None:
    texts = [plain(text) for name in FILES for text in sentences(name)]
    openings = Counter(tuple(text.split()[:2]) for text in texts)
    assert max(openings.values()) <= 0.05 * len(texts)
    assert len(openings) >= 0.5 * len(texts)


def test_endings_vary() -> None:
    texts = [plain(text) for name in FILES for text in sentences(name)]
    endings = Counter(text.split()[-1] for text in texts)
    assert max(endings.values()) <= 0.05 * len(texts)


@pytest.mark.parametrize("name", FILES)
def test_plain_file(name: str) -> None:
    """ASCII, one header, two cells a row, no spaces around a sentence."""
    content = (REVIEWS / name).read_bytes()
    assert content.isascii()
    assert b"\r" not in content
    assert content.endswith(b"\n")
    header, *rows = content.decode().removesuffix("\n").split("\n")
    assert header == "sentence\tlabel"
    for row in rows:
        text, label = row.split("\t")
        assert label in ("0", "1")
        assert text == " ".join(text.split())


def test_no_sentence_is_cut() -> None:
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    encoded = tokenizer.encode([text for name in FILES for text in sentences(name)], None, 128)
    assert not any(item.truncated for item in encoded)
    unknown = tokenizer.backend.token_to_id("[UNK]")
    assert not any(unknown in item.input_ids for item in encoded)

"""BERT's WordPiece tokenizer in plain Python, for the page alone: WebAssembly has no `tokenizers`.

It agrees with the library on ordinary text, not on every Unicode string: a demonstration.
The packages themselves use the library.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bert_numpy.tasks.tokenization import EncodedText

__all__ = ["WordPiece"]

#: Characters of a word beyond which it is unknown.
_LONGEST_WORD = 100

#: The blocks of Chinese characters, each a word of its own, as BERT's own code lists them.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


class WordPiece:
    """A lower-case WordPiece vocabulary."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def read(cls, folder: Path) -> WordPiece:
        """Read the vocabulary of a folder's tokenizer.json."""
        description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return cls(description["model"]["vocab"])

    def encode(
        self, texts: Sequence[str], pairs: None = None, max_length: int = 128
    ) -> list[EncodedText]:
        """Encode texts as `bert_numpy.Tokenizer.encode` does; not pairs of them."""
        return [self._encoded(text, max_length) for text in texts]

    def _encoded(self, text: str, max_length: int) -> EncodedText:
        pieces = [piece for word in _words(text) for piece in self._pieces(word)]
        kept = ["[CLS]", *pieces[: max_length - 2], "[SEP]"]
        ids = tuple(self.vocabulary[piece] for piece in kept)
        return EncodedText(ids, (0,) * len(ids), len(pieces) > max_length - 2)

    def _pieces(self, word: str) -> list[str]:
        """Cut a word into the longest pieces of the vocabulary, from its beginning on."""
        pieces: list[str] = []
        start = 0
        while start < len(word) <= _LONGEST_WORD:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self.vocabulary), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(prefix + word[start:end])
            start = end
        return pieces or ["[UNK]"]


def _words(text: str) -> Iterator[str]:
    """Split a text, lower-case and without accents, at spaces and around punctuation."""
    spaced = "".join(map(_spaced, text))
    plain = "".join(c for c in unicodedata.normalize("NFD", spaced) if not _is(c, "Mn"))
    for word in plain.lower().split():
        start = 0
        for place, character in enumerate(word):
            if _is_punctuation(character):
                if start < place:
                    yield word[start:place]
                yield character
                start = place + 1
        if start < len(word):
            yield word[start:]


def _spaced(character: str) -> str:
    """Put spaces for white space and around Chinese characters; drop control characters."""
    if character in "\t\n\r" or _is(character, "Z"):
        return " "
    if character == "\ufffd" or _is(character, "C"):
        return ""
    if any(first <= ord(character) <= last for first, last in _CHINESE):
        return f" {character} "
    return character


def _is_punctuation(character: str) -> bool:
    ascii_symbol = character.isascii() and character.isprintable() and not character.isalnum()
    return ascii_symbol or _is(character, "P")


def _is(character: str, category: str) -> bool:
    return unicodedata.category(character).startswith(category)

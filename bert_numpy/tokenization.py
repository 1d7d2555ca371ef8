"""Text to token ids, through the ``tokenizers`` library."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from bert_numpy.config import read_config, read_json
from bert_numpy.errors import BertNumpyError
from bert_numpy.hub import resolve

__all__ = ["EncodedText", "Tokenizer", "Window", "load_tokenizer", "pad"]

IntArray = npt.NDArray[np.int64]

#: Bytes of a tokenizer's file; the library would run out of memory, and the process end.
_LARGEST_FILE = 1 << 28

#: [CLS] and [SEP], and one token to say something.
_SHORTEST = 3

#: In a str, half of a character: undecodable bytes of a command line come as these.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class EncodedText:
    """One text, or pair of texts, as the model reads it.

    ``input_ids`` and ``token_type_ids`` hold [CLS] first [SEP] (second [SEP]);
    ``truncated`` says whether tokens were cut off to keep the length.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Window:
    """A question with as much of its context as fits: [CLS] question [SEP] window [SEP].

    Attributes
    ----------
    encoded : EncodedText
        ``truncated`` says whether the question was cut.
    position : int
        Where in ``encoded.input_ids`` the window begins.
    first : int
        Which of the context's tokens stands there.
    offsets : tuple of (int, int)
        For each token of the window the characters of the context that it
        stands for: from the one up to and without the other.
    """

    encoded: EncodedText
    position: int
    first: int
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
    model_max_length : int
        The longest input of the model, special tokens included.
    """

    backend: Any
    model_max_length: int

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> list[EncodedText]:
        """Encode texts, or pairs of texts.

        Parameters
        ----------
        texts, pairs : sequences of str, of equal length
            No text may be blank.
        max_length : int, optional
            Cut longer inputs to so many tokens, the longer text of a pair
            first. Without it, an input longer than the model's is an error.

        Raises
        ------
        BertNumpyError
            If a text is blank or too long, or ``max_length`` is not between 3
            and the model's length.
        """
        limit = self.model_max_length
        if max_length is not None and not _SHORTEST <= max_length <= limit:
            raise BertNumpyError(f"max_length: expected {_SHORTEST}..{limit}, found {max_length}")
        _check_texts(texts, pairs)
        self.backend.no_padding()
        if max_length is None:
            self.backend.no_truncation()
        else:
            self.backend.enable_truncation(max_length, strategy="longest_first")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        encoded = []
        for number, item in enumerate(self.backend.encode_batch(inputs)):
            if len(item.ids) > limit:
                raise BertNumpyError(
                    f"text {number + 1}: expected at most {limit} tokens, found {len(item.ids)}"
                )
            encoded.append(
                EncodedText(tuple(item.ids), tuple(item.type_ids), bool(item.overflowing))
            )
        return encoded

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, IntArray]:
        """:meth:`encode`, padded to arrays: the keyword arguments of a call of the model."""
        return pad(self.encode(texts, pairs, max_length))

    def windows(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        max_length: int,
        doc_stride: int,
        max_query_length: int,
    ) -> list[list[Window]]:
        """Encode questions with their contexts, a long context in several windows that overlap.

        The windows are those of ``run_squad.py`` of the original BERT
        (github.com/google-research/bert): each is as long as fits, begins
        ``doc_stride`` tokens after the one before it, and the last one is the
        first that reaches the context's end.

        Parameters
        ----------
        questions, contexts : sequences of str, of equal length
            No text may be blank.
        max_length : int
            Of an input, in tokens, special ones included.
        doc_stride : int
            At least 1. Where it is more than fits, windows follow each other
            without a gap.
        max_query_length : int
            At least 1. A longer question is cut to so many tokens.

        Returns
        -------
        list of lists of Window
            For each question its windows, in the order of the context; at least one.

        Raises
        ------
        BertNumpyError
            If a text is blank, a context has no token, ``max_length`` is beyond
            the model's, or leaves no token for the context beside its question.
        """
        _check_texts(questions, contexts)
        for name, value in (("doc_stride", doc_stride), ("max_query_length", max_query_length)):
            if value < 1:
                raise BertNumpyError(f"{name}: expected at least 1, found {value}")
        self.backend.no_padding()
        self.backend.no_truncation()
        special = self.backend.num_special_tokens_to_add(True)  # of a pair
        whole = self.backend.encode_batch(list(questions), add_special_tokens=False)
        lengths = [_whole_characters(item, max_query_length) for item in whole]
        queries = [
            question
            if length == len(item.ids)
            else question[: item.offsets[length - 1][1] if length else 0]
            for question, item, length in zip(questions, whole, lengths, strict=True)
        ]
        least = max(lengths, default=0) + special + 1
        if not least <= max_length <= self.model_max_length:
            raise BertNumpyError(
                f"max_length: expected {least}..{self.model_max_length} for these questions, "
                f"found {max_length}"
            )
        found: list[list[Window]] = [[] for _ in questions]
        for length in sorted(set(lengths)):  # the overlap depends on the question's length
            rows = [row for row, other in enumerate(lengths) if other == length]
            room = max_length - special - length
            step = min(doc_stride, room)
            self.backend.enable_truncation(max_length, stride=room - step, strategy="only_second")
            pairs = [(queries[row], contexts[row]) for row in rows]
            for row, item in zip(rows, self.backend.encode_batch(pairs), strict=True):
                found[row] = [
                    _window(part, number * step, lengths[row] < len(whole[row].ids))
                    for number, part in enumerate((item, *item.overflowing))
                ]
        for number, parts in enumerate(found):
            if not parts[0].offsets:
                raise BertNumpyError(
                    f"text {number + 1}: expected a context with words, found {contexts[number]!r}"
                )
        return found


def _check_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Refuse what is no list of texts, texts without words, and pairs that lack a side."""
    if isinstance(texts, str) or isinstance(pairs, str):
        raise BertNumpyError("expected a list of texts, found one text")
    if pairs is not None and len(pairs) != len(texts):
        raise BertNumpyError(f"expected as many pairs as texts, found {len(pairs)}/{len(texts)}")
    for number, text in enumerate((*texts, *(pairs or ()))):
        if not text.strip() or _SURROGATE.search(text):
            raise BertNumpyError(f"text {number % len(texts) + 1}: expected words, found {text!r}")


def _whole_characters(item: Any, most: int) -> int:
    """How many of at most ``most`` tokens to keep of an encoded text, to cut no character in two.

    WordPiece takes the longest piece first, so the text up to the end of a
    token has the tokens there that it has in the whole text; but the pieces of
    a Hangul syllable may be tokens of their own.
    """
    length = min(len(item.ids), most)
    while 0 < length < len(item.ids) and item.offsets[length][0] < item.offsets[length - 1][1]:
        length -= 1
    return length


def _window(item: Any, first: int, cut: bool) -> Window:
    """A window from what the library encoded; its ``first`` token is the context's."""
    places = [place for place, text in enumerate(item.sequence_ids) if text == 1]
    return Window(
        EncodedText(tuple(item.ids), tuple(item.type_ids), cut),
        position=places[0] if places else len(item.ids),
        first=first,
        offsets=tuple(item.offsets[place] for place in places),
    )


def pad(encoded: Sequence[EncodedText]) -> dict[str, IntArray]:
    """Pad to the longest, on the right: ``input_ids``, ``attention_mask``, ``token_type_ids``."""
    if not encoded:
        raise BertNumpyError("expected at least one text, found none")
    shape = (len(encoded), max(len(item.input_ids) for item in encoded))
    names = ("input_ids", "attention_mask", "token_type_ids")
    arrays = {name: np.zeros(shape, np.int64) for name in names}
    for row, item in enumerate(encoded):
        length = len(item.input_ids)
        arrays["input_ids"][row, :length] = item.input_ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = item.token_type_ids
    return arrays


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``, or build BERT's tokenizer from its ``vocab.txt``.

    From the hub no weights are fetched; ``revision`` is as for :func:`bert_numpy.load`.

    Raises
    ------
    BertNumpyError
        If there is neither, the file is corrupt, or its vocabulary is larger
        than the model's.
    """
    folder = resolve(folder_or_hub_id, revision, weights=False)
    config = read_config(folder / "config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "vocab.txt"
    if not path.is_file():
        raise BertNumpyError(f"{folder}: expected tokenizer.json or vocab.txt, found neither")
    if (length := path.stat().st_size) > _LARGEST_FILE:
        raise BertNumpyError(f"{path}: expected at most {_LARGEST_FILE} bytes, found {length}")
    try:
        if path.name == "vocab.txt":
            backend = _from_vocabulary(path)
        else:
            backend = tokenizers.Tokenizer.from_file(str(path))
        backend.encode("\u13a0")  # a letter that few know: without an unknown token, an error
    except Exception as error:  # the library raises plain Exception
        raise BertNumpyError(f"{path}: expected a tokenizer, found an error: {error}") from None
    if (size := backend.get_vocab_size()) > config.vocab_size:
        raise BertNumpyError(
            f"{path}: expected at most {config.vocab_size} tokens (vocab_size in config.json), "
            f"found {size}"
        )
    return Tokenizer(backend, config.max_position_embeddings)


def _from_vocabulary(path: Path) -> Any:
    settings_file = path.parent / "tokenizer_config.json"
    settings = read_json(settings_file) if settings_file.is_file() else {}
    return tokenizers.BertWordPieceTokenizer(
        str(path),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )

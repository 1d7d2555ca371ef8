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

__all__ = ["EncodedText", "Tokenizer", "load_tokenizer", "pad"]

IntArray = npt.NDArray[np.int64]

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
        if isinstance(texts, str) or isinstance(pairs, str):
            raise BertNumpyError("expected a list of texts, found one text")
        if pairs is not None and len(pairs) != len(texts):
            raise BertNumpyError(
                f"expected as many pairs as texts, found {len(pairs)}/{len(texts)}"
            )
        for number, text in enumerate((*texts, *(pairs or ()))):
            if not text.strip() or _SURROGATE.search(text):
                raise BertNumpyError(
                    f"text {number % len(texts) + 1}: expected words, found {text!r}"
                )
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


def load_tokenizer(folder_or_hub_id: str | Path) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``, or build BERT's tokenizer from its ``vocab.txt``.

    Raises
    ------
    BertNumpyError
        If there is neither, the file is corrupt, or its vocabulary is larger
        than the model's.
    """
    folder = resolve(folder_or_hub_id)
    config = read_config(folder / "config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        path = folder / "vocab.txt"
    if not path.is_file():
        raise BertNumpyError(f"{folder}: expected tokenizer.json or vocab.txt, found neither")
    try:
        if path.name == "vocab.txt":
            backend = _from_vocabulary(path)
        else:
            backend = tokenizers.Tokenizer.from_file(str(path))
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

"""Text to token ids, through the ``tokenizers`` library."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
#: Called with the number of texts just encoded.
Progress = Callable[[int], None]

#: Bytes of a tokenizer's file; the library would run out of memory, and the process end.
_LARGEST_FILE = 1 << 28

#: Texts that the library is given in one call, between which progress is reported.
_AT_A_TIME = 4096

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
    pad_token_id : int
        Of the model, which may tell padding by it.
    token_types : bool
        Whether the model tells the second text of a pair from the first by a
        type; if not, all type ids are 0.
    mask_token_id : int, optional
        What a masked language model fills in; None if the vocabulary has none.
    """

    backend: Any
    model_max_length: int
    pad_token_id: int = 0
    token_types: bool = True
    mask_token_id: int | None = None

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
        progress: Progress | None = None,
    ) -> list[EncodedText]:
        """Encode texts, or pairs of texts.

        Parameters
        ----------
        texts, pairs : sequences of str, of equal length
            No text may be blank.
        max_length : int, optional
            Cut longer inputs to so many tokens, the longer text of a pair
            first. Without it, an input longer than the model's is an error.
        progress : callable, optional

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
        for start in range(0, len(inputs), _AT_A_TIME):
            part = inputs[start : start + _AT_A_TIME]
            for number, item in enumerate(self.backend.encode_batch(part), start):
                if len(item.ids) > limit:
                    raise BertNumpyError(
                        f"text {number + 1}: expected at most {limit} tokens, found {len(item.ids)}"
                    )
                encoded.append(self._encoded(item, bool(item.overflowing)))
            if progress is not None:
                progress(len(part))
        return encoded

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, IntArray]:
        """:meth:`encode`, padded to arrays: the keyword arguments of a call of the model."""
        return pad(self.encode(texts, pairs, max_length), self.pad_token_id)

    def windows(
        self,
        questions: Sequence[str],
        contexts: Sequence[str],
        max_length: int,
        doc_stride: int,
        max_query_length: int,
        progress: Progress | None = None,
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
        progress : callable, optional

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
        cut = [
            self._cut(question, item, max_query_length)
            for question, item in zip(questions, whole, strict=True)
        ]
        queries, lengths = [query for query, _ in cut], [length for _, length in cut]
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
                    self._window(
                        part, number * step, lengths[row] < len(whole[row].ids), contexts[row]
                    )
                    for number, part in enumerate((item, *item.overflowing))
                ]
            if progress is not None:
                progress(len(rows))
        for number, parts in enumerate(found):
            if not parts[0].offsets:
                raise BertNumpyError(
                    f"text {number + 1}: expected a context with words, found {contexts[number]!r}"
                )
        return found

    def _cut(self, text: str, item: Any, most: int) -> tuple[str, int]:
        """A text cut to at most ``most`` tokens, given how it is encoded whole; how many it has.

        The text up to the end of a token has the tokens there that it has in
        the whole text, but for a last token of spaces alone, which Unigram's
        normalizers strip: then the cut is made before it.
        """
        length = _whole_characters(item, most)
        while 0 < length < len(item.ids):
            part = text[: item.offsets[length - 1][1]]
            if len(self.backend.encode(part, add_special_tokens=False).ids) == length:
                return part, length
            length = _whole_characters(item, length - 1)
        return (text, length) if length else ("", 0)

    def _encoded(self, item: Any, truncated: bool) -> EncodedText:
        types = tuple(item.type_ids) if self.token_types else (0,) * len(item.ids)
        return EncodedText(tuple(item.ids), types, truncated)

    def _window(self, item: Any, first: int, cut: bool, context: str) -> Window:
        """A window from what the library encoded; its ``first`` token is the context's."""
        places = [place for place, text in enumerate(item.sequence_ids) if text == 1]
        return Window(
            self._encoded(item, cut),
            position=places[0] if places else len(item.ids),
            first=first,
            offsets=tuple(_without_space(item.offsets[place], context) for place in places),
        )


def _check_texts(texts: Sequence[str], pairs: Sequence[str] | None) -> None:
    """Refuse what is no list of texts, texts without words, and pairs that lack a side."""
    if isinstance(texts, str) or isinstance(pairs, str):
        raise BertNumpyError("expected a list of texts, found one text")
    if pairs is not None and len(pairs) != len(texts):
        raise BertNumpyError(f"expected as many pairs as texts, found {len(pairs)}/{len(texts)}")
    for number, text in enumerate((*texts, *(pairs or ()))):
        if not isinstance(text, str) or not text.strip() or _SURROGATE.search(text):
            raise BertNumpyError(f"text {number % len(texts) + 1}: expected words, found {text!r}")


def _whole_characters(item: Any, most: int) -> int:
    """How many of at most ``most`` tokens to keep of an encoded text, to cut no character in two.

    The pieces of a Hangul syllable may be tokens of their own, and the bytes of
    any character.
    """
    length = min(len(item.ids), most)
    while 0 < length < len(item.ids) and item.offsets[length][0] < item.offsets[length - 1][1]:
        length -= 1
    return length


def _without_space(offset: tuple[int, int], text: str) -> tuple[int, int]:
    """Of a token the characters without the space before it, which some tokenizers include."""
    start, end = offset
    return end - len(text[start:end].lstrip()), end


def pad(encoded: Sequence[EncodedText], pad_token_id: int = 0) -> dict[str, IntArray]:
    """Pad to the longest, on the right: ``input_ids``, ``attention_mask``, ``token_type_ids``."""
    if not encoded:
        raise BertNumpyError("expected at least one text, found none")
    shape = (len(encoded), max(len(item.input_ids) for item in encoded))
    names = ("input_ids", "attention_mask", "token_type_ids")
    arrays = {name: np.zeros(shape, np.int64) for name in names}
    arrays["input_ids"][:] = pad_token_id
    for row, item in enumerate(encoded):
        length = len(item.input_ids)
        arrays["input_ids"][row, :length] = item.input_ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = item.token_type_ids
    return arrays


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``, or build the tokenizer from its vocabulary.

    Without ``tokenizer.json``, a ``vocab.txt`` is BERT's WordPiece, and
    ``vocab.json`` with ``merges.txt`` RoBERTa's byte-level BPE.

    From the hub no weights are fetched; ``revision`` is as for :func:`bert_numpy.load`.

    Raises
    ------
    BertNumpyError
        If there is none of these, the file is corrupt, or its vocabulary is
        larger than the model's.
    """
    folder = resolve(folder_or_hub_id, revision, weights=False)
    config = read_config(folder / "config.json")
    builders = {
        "tokenizer.json": lambda path: tokenizers.Tokenizer.from_file(str(path)),
        "vocab.txt": _from_vocabulary,
        "vocab.json": _from_merges,
    }
    name = next((name for name in builders if (folder / name).is_file()), None)
    if name is None:
        raise BertNumpyError(
            f"{folder}: expected tokenizer.json, vocab.txt or vocab.json, found "
            + _found_instead(folder)
        )
    path = folder / name
    if (length := path.stat().st_size) > _LARGEST_FILE:
        raise BertNumpyError(f"{path}: expected at most {_LARGEST_FILE} bytes, found {length}")
    try:
        backend = builders[name](path)
        backend.encode("\u13a0")  # a letter that few know: without an unknown token, an error
    except Exception as error:  # the library raises plain Exception
        raise BertNumpyError(f"{path}: expected a tokenizer, found an error: {error}") from None
    if (size := backend.get_vocab_size()) > config.vocab_size:
        raise BertNumpyError(
            f"{path}: expected at most {config.vocab_size} tokens (vocab_size in config.json), "
            f"found {size}"
        )
    return Tokenizer(
        backend,
        config.max_length,
        config.pad_token_id,
        config.type_vocab_size > 1,
        backend.token_to_id(config.description.mask_token),
    )


def _found_instead(folder: Path) -> str:
    """What to say of a folder without a tokenizer; SentencePiece's own files are not read."""
    models = sorted(path.name for kind in ("*.model", "*.bpe.model") for path in folder.glob(kind))
    if not models:
        return "none of them"
    command = (
        'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
    return f"only {models[0]}, which is not read. Convert it: {command}"


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    settings: dict[str, Any] = read_json(path) if path.is_file() else {}
    return settings


def _from_vocabulary(path: Path) -> Any:
    settings = _settings(path.parent)
    return tokenizers.BertWordPieceTokenizer(
        str(path),
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )


def _from_merges(path: Path) -> Any:
    """RoBERTa's tokenizer: <s> first </s></s> second </s>."""
    spaced = _settings(path.parent).get("add_prefix_space", False)
    backend = tokenizers.ByteLevelBPETokenizer(
        str(path), str(path.parent / "merges.txt"), add_prefix_space=spaced
    )
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    backend.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    backend.post_processor = tokenizers.processors.RobertaProcessing(
        ("</s>", backend.token_to_id("</s>")),
        ("<s>", backend.token_to_id("<s>")),
        add_prefix_space=spaced,
    )
    return backend

"""Text to token ids, through the ``tokenizers`` library.

A call never changes a :class:`Tokenizer`: the library encodes every text whole, and
long encodings are truncated here. So threads can share a tokenizer, and it can be copied
and pickled.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.checkpoints.hub import check_name, resolve
from bert_numpy.errors import BertNumpyError
from bert_numpy.progress import Progress
from bert_numpy.tasks.cuts import context_offsets, longest_first, whole_characters, window_positions
from npfp8.arguments import integer, loaded, require, require_function, wrong_type
from npfp8.arrays import IntArray

if TYPE_CHECKING:  # these import the library, which a model that is given token ids can do without
    from bert_numpy.tasks.tokenizer_settings import Sentences

__all__ = ["EncodedText", "Tokenizer", "Window", "as_tokenizer", "load_tokenizer", "pad"]


#: The number of texts per call of the library; progress is reported between calls.
_AT_A_TIME = 4096

#: The shortest input: [CLS], one token and [SEP].
_SHORTEST = 3

#: The library's switch for its thread pool.
_PARALLEL = "TOKENIZERS_PARALLELISM"

#: Halves of characters in a str: undecodable bytes of a command line become these.
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, repr=False)
class EncodedText:
    """One text, or pair of texts, encoded as an input of the model.

    ``input_ids`` and ``token_type_ids`` hold [CLS] first [SEP] (second [SEP]);
    ``truncated`` is True if tokens were cut off to keep the length.
    """

    input_ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    truncated: bool

    def __repr__(self) -> str:
        ids = self.input_ids
        some = " ".join(map(str, ids if len(ids) <= 12 else (*ids[:10], "...", ids[-1])))
        return f"<EncodedText {len(ids)} tokens: {some}{', truncated' if self.truncated else ''}>"


@dataclass(frozen=True, repr=False)
class Window:
    """One input of a model: a whole text or pair, or a question with a part of its context.

    A question has as much of the context as fits: [CLS] question [SEP] window [SEP].
    The attributes other than ``encoded`` have a meaning only for questions.

    Attributes
    ----------
    encoded : EncodedText
        Its ``truncated`` is True if the text, or the question, was cut.
    position : int
        The index in ``encoded.input_ids`` at which the window begins.
    first : int
        The number, in the context, of the token there.
    offsets : tuple of (int, int)
        The characters of the context that each token of the window stands for, as a
        half-open range.
    """

    encoded: EncodedText
    position: int = 0
    first: int = 0
    offsets: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        context = f", {len(self.offsets)} of the context from {self.first} on"
        tokens = len(self.encoded.input_ids)
        return f"<Window {tokens} tokens{context if self.offsets else ''}>"


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A checkpoint's tokenizer. No call changes it, so threads may share it.

    Attributes
    ----------
    backend : tokenizers.Tokenizer
        It neither truncates nor pads, and its offsets include the spaces of their tokens.
    model_max_length : int
        The longest input, special tokens included: the limit of the model, or of the
        tokenizer's files if it is lower.
    pad_token_id : int
        The padding id of the model, which may recognise padding by it.
    token_types : bool
        True if the model has a type for the second text of a pair; otherwise all type
        ids are 0.
    mask_token_id : int, optional
        The token that a masked language model replaces; None if the vocabulary has none.
    vocab_size : int, optional
        The rows of the model's embeddings: a text with a token beyond them is refused.
    truncation_side : str
        "right" or "left": the end of a text at which :meth:`encode` truncates.
    sentences : Sentences, optional
        The changes of sentence-transformers to each text; None for other checkpoints.
    no_pairs : str
        The reason why pairs of texts are refused; empty if they are accepted.

    Examples
    --------
    >>> import bert_numpy
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> tokenizer
    <Tokenizer WordPiece: vocabulary 30522, at most 512 tokens>
    >>> tokenizer.tokens("a warm film")
    [None, 'a', 'warm', 'film', None]
    """

    backend: Any = field(repr=False)  # the library shows every token
    model_max_length: int
    pad_token_id: int = 0
    token_types: bool = True
    mask_token_id: int | None = None
    vocab_size: int | None = None
    truncation_side: str = "right"
    sentences: Sentences | None = None
    no_pairs: str = ""

    def __repr__(self) -> str:
        kind = type(self.backend.model).__name__
        size = self.backend.get_vocab_size() if self.vocab_size is None else self.vocab_size
        return f"<Tokenizer {kind}: vocabulary {size}, at most {self.model_max_length} tokens>"

    def __getstate__(self) -> dict[str, Any]:  # the library pickles by protocol 2 or later only
        return {**vars(self), "backend": self.backend.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        import tokenizers  # noqa: PLC0415 (see above)

        vars(self).update(state, backend=tokenizers.Tokenizer.from_str(state["backend"]))
        _share_with_forks()

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
            Truncate longer inputs to this number of tokens, the longer text of a pair
            first. Without it, an input longer than the model's limit is an error, except
            with a sentence-transformers folder, where it is truncated as by
            sentence-transformers.
        progress : callable, optional

        Raises
        ------
        BertNumpyError
            If a text is blank, too long or cannot be encoded, or if ``max_length`` is not
            between 3 and the model's limit.

        Examples
        --------
        >>> import bert_numpy
        >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
        >>> tokenizer.encode(["a warm film"])
        [<EncodedText 5 tokens: 101 1037 4010 2143 102>]
        """
        if max_length is not None:
            max_length = integer("max_length", max_length)
        if progress is not None:
            require_function("progress", progress)
        _check_texts(texts, pairs)
        limit = self.model_max_length
        special = self.backend.num_special_tokens_to_add(pairs is not None)
        least = max(_SHORTEST, special)
        if max_length is not None and not least <= max_length <= limit:
            raise BertNumpyError(f"max_length: expected {least}..{limit}, found {max_length}")
        if max_length is None and self.sentences is not None:
            max_length = limit
        encoded = []
        for start in range(0, len(texts), _AT_A_TIME):
            stop = start + _AT_A_TIME
            other = None if pairs is None else pairs[start:stop]
            items = self._whole(texts[start:stop], other, first=start)
            for number, item in enumerate(items, start):
                if max_length is None and len(item.ids) > limit:
                    raise BertNumpyError(
                        f"text {number + 1}: expected at most {limit} tokens, found {len(item.ids)}"
                    )
                kept = None
                if max_length is not None and len(item.ids) > max_length:
                    kept = longest_first(item, max_length, self.truncation_side)
                encoded.append(self._encoded(item, number, kept))
            if progress is not None:
                progress(len(items))
        return encoded

    def tokens(self, text: str, pair: str | None = None) -> list[str | None]:
        """List the token at each position of an encoded text or pair; None for special tokens.

        Raises
        ------
        BertNumpyError
            If a text is blank or cannot be encoded.

        Examples
        --------
        >>> import bert_numpy
        >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
        >>> tokenizer.tokens("dull", "and slow")
        [None, 'dull', None, 'and', 'slow', None]
        """
        require("text", text, str, "a text")
        require("pair", pair, (str, type(None)), "a text or None")
        pairs = None if pair is None else [pair]
        _check_texts([text], pairs)
        (item,) = self._whole([text], pairs)
        return [
            None if special else token
            for token, special in zip(item.tokens, item.special_tokens_mask, strict=True)
        ]

    def batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        max_length: int | None = None,
    ) -> dict[str, IntArray]:
        """Encode and pad texts or pairs to arrays: the keyword arguments of the model.

        Examples
        --------
        >>> import bert_numpy
        >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
        >>> batch = tokenizer.batch(["a warm film", "dull"])
        >>> batch["attention_mask"]
        array([[1, 1, 1, 1, 1],
               [1, 1, 1, 0, 0]])
        """
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
        """Encode questions with their contexts, a long context in several overlapping windows.

        The windows are those of ``run_squad.py`` of the original BERT
        (github.com/google-research/bert): each is as long as fits and begins
        ``doc_stride`` tokens after the previous one, and the last one is the
        first that reaches the end of the context.

        Parameters
        ----------
        questions, contexts : sequences of str, of equal length
            No text may be blank.
        max_length : int
            The length limit of an input in tokens, special tokens included.
        doc_stride : int
            The distance of windows, at least 1. If it is more than a window, windows follow
            each other without a gap.
        max_query_length : int
            At least 1. Longer questions are truncated to this number of tokens.
        progress : callable, optional

        Returns
        -------
        list of lists of Window
            The windows of each question, in the order of the context; at least one.

        Raises
        ------
        BertNumpyError
            If a text is blank, if a context has no token, or if ``max_length`` exceeds
            the model's limit or leaves no token for the context beside its question.

        Examples
        --------
        >>> import bert_numpy
        >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
        >>> context = "the film is warm and funny, the book is dull and slow"
        >>> windows = tokenizer.windows(["which is dull?"], [context], 16, 4, 8)
        >>> windows[0][1]
        <Window 16 tokens, 9 of the context from 4 on>
        """
        _check_texts(questions, contexts, ("questions", "contexts"))
        max_length = integer("max_length", max_length)
        if progress is not None:
            require_function("progress", progress)
        for name, value in (("doc_stride", doc_stride), ("max_query_length", max_query_length)):
            if integer(name, value) < 1:
                raise BertNumpyError(f"{name}: expected at least 1, found {value}")
        if self.sentences is not None:  # it changes texts, and so the offsets
            raise BertNumpyError(
                "windows: expected a tokenizer for question answering, found one for sentence "
                "embeddings (modules.json)"
            )
        special = self.backend.num_special_tokens_to_add(True)  # for a pair
        whole = self._whole(questions, special=False)
        cut = [
            self._cut(question, item, max_query_length)
            for question, item in zip(questions, whole, strict=True)
        ]
        least = max((length for _, length in cut), default=0) + special + 1
        if not least <= max_length <= self.model_max_length:
            raise BertNumpyError(
                f"max_length: expected {least}..{self.model_max_length} for these questions, "
                f"found {max_length}"
            )
        found: list[list[Window]] = []
        for start in range(0, len(questions), _AT_A_TIME):
            stop = start + _AT_A_TIME
            asked = [query for query, _ in cut[start:stop]]
            items = self._whole(asked, contexts[start:stop], first=start)
            for number, item in enumerate(items, start):
                shortened = cut[number][1] < len(whole[number].ids)
                found.append(
                    self._windows(item, number, contexts[number], max_length, doc_stride, shortened)
                )
            if progress is not None:
                progress(len(items))
        return found

    def _whole(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        special: bool = True,
        first: int = 0,
    ) -> list[Any]:
        """Encode whole texts or pairs by the library; ``first`` is the number of the first."""
        from bert_numpy.tasks.tokenizer_backend import library_errors  # noqa: PLC0415 (see above)

        if pairs is not None and self.no_pairs:
            raise BertNumpyError(self.no_pairs)
        if self.sentences is not None:
            texts = [self.sentences.prepared(text) for text in texts]
            pairs = None if pairs is None else [self.sentences.prepared(text) for text in pairs]
        inputs: list[Any] = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        message = "expected a text that the tokenizer can encode, found an error: "
        try:
            with library_errors(message):
                found: list[Any] = self.backend.encode_batch(inputs, add_special_tokens=special)
                return found
        except BertNumpyError as error:
            for number, one in enumerate(inputs, first + 1):  # find the text that failed
                with library_errors(f"text {number}: {message}"):
                    self.backend.encode_batch([one], add_special_tokens=special)
            raise error

    def _windows(
        self,
        item: Any,
        number: int,
        context: str,
        max_length: int,
        doc_stride: int,
        shortened: bool,
    ) -> list[Window]:
        """Make the windows on a whole context after its question."""
        offsets = context_offsets(item, context, self.backend)
        if not offsets:
            raise BertNumpyError(
                f"text {number + 1}: expected a context with words, found {context!r}"
            )
        position = item.sequence_ids.index(1)
        return [
            Window(
                self._encoded(item, number, kept, shortened),
                position,
                first,
                tuple(offsets[first:last]),
            )
            for kept, first, last in window_positions(item, max_length, doc_stride)
        ]

    def _cut(self, text: str, item: Any, most: int) -> tuple[str, int]:
        """Truncate a text to at most ``most`` tokens; ``item`` encodes it whole.

        Returns the truncated text and its number of tokens. The text up to the end of a
        token has the same tokens as in the whole text, except for a last token of spaces
        alone, which Unigram's normalizers strip: then the cut is made before it.
        """
        length = whole_characters(item, most)
        while 0 < length < len(item.ids):
            part = text[: item.offsets[length - 1][1]]
            if len(self._whole([part], special=False)[0].ids) == length:
                return part, length
            length = whole_characters(item, length - 1)
        return (text, length) if length else ("", 0)

    def _encoded(
        self, item: Any, number: int, kept: Sequence[int] | None, truncated: bool | None = None
    ) -> EncodedText:
        """Convert an encoding of the library, keeping only the positions ``kept`` (None: all)."""
        ids, types = item.ids, item.type_ids if self.token_types else [0] * len(item.ids)
        if kept is not None:
            ids, types = [ids[place] for place in kept], [types[place] for place in kept]
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            wrong = next(one for one in ids if one >= self.vocab_size)
            raise BertNumpyError(
                f"text {number + 1}: expected ids below {self.vocab_size} (vocab_size in "
                f"config.json), found {wrong} for {self.backend.id_to_token(wrong)!r}"
            )
        return EncodedText(
            tuple(ids), tuple(types), kept is not None if truncated is None else truncated
        )


def _check_texts(
    texts: Sequence[str], pairs: Sequence[str] | None, names: tuple[str, str] = ("texts", "pairs")
) -> None:
    """Refuse anything but lists of texts with words, and pairs that lack a side."""
    for name, given in zip(names, (texts, pairs), strict=True):
        if isinstance(given, str):
            raise BertNumpyError(f"{name}: expected a list of texts, found one text")
        if not isinstance(given, Sequence | np.ndarray) and (given is not None or name == names[0]):
            raise wrong_type(name, "a list of texts", given)
        if isinstance(given, np.ndarray) and given.ndim != 1:
            raise BertNumpyError(f"{name}: expected a list of texts, found shape {given.shape}")
    if pairs is not None and len(pairs) != len(texts):
        raise BertNumpyError(f"expected as many pairs as texts, found {len(pairs)}/{len(texts)}")
    for number, text in enumerate((*texts, *(() if pairs is None else pairs))):
        if not isinstance(text, str) or not text.strip() or _SURROGATE.search(text):
            raise BertNumpyError(f"text {number % len(texts) + 1}: expected words, found {text!r}")


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


def as_tokenizer(tokenizer: Tokenizer | str | Path, argument: str = "tokenizer") -> Tokenizer:
    """Return a tokenizer that is given as such, or by the name or folder of its model.

    Raises
    ------
    TypeError
        If it is neither.
    BertNumpyError
        As :func:`load_tokenizer`.

    Examples
    --------
    >>> from bert_numpy.tasks.tokenization import as_tokenizer
    >>> as_tokenizer("bert-tiny-sst2")
    <Tokenizer WordPiece: vocabulary 30522, at most 512 tokens>
    """
    return loaded(
        argument,
        tokenizer,
        Tokenizer,
        load_tokenizer,
        "a tokenizer, or the folder or name of its model",
    )


def load_tokenizer(folder_or_hub_id: str | Path, revision: str | None = None) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``, or build the tokenizer from its vocabulary.

    The tokenizer class decides how to build it: without ``tokenizer.json``, BERT's WordPiece
    is built from ``vocab.txt``, and RoBERTa's byte-level BPE from ``vocab.json`` with
    ``merges.txt``. ``tokenizer_config.json``, ``special_tokens_map.json``,
    ``added_tokens.json`` and ``sentence_bert_config.json`` are applied as in transformers and
    sentence-transformers.

    No weights are fetched from the hub; ``revision`` is the same as for
    :func:`bert_numpy.load`.

    Raises
    ------
    BertNumpyError
        If there is none of these files, if a file is corrupt, if a key is not supported, or
        if the vocabulary is larger than the model's.

    Examples
    --------
    >>> import bert_numpy
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> tokenizer.tokens("a warm film")
    [None, 'a', 'warm', 'film', None]
    """
    check_name(folder_or_hub_id, revision)
    folder = resolve(folder_or_hub_id, revision, weights=False)
    config = read_config(folder / "config.json")
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise BertNumpyError(
            f"{folder}: expected tokenizer.json, vocab.txt or vocab.json, found "
            + _found_instead(folder)
        )
    from bert_numpy.tasks.tokenizer_backend import build_backend  # noqa: PLC0415 (see above)
    from bert_numpy.tasks.tokenizer_settings import read_settings  # noqa: PLC0415

    settings = read_settings(folder, config.model_type)
    backend, side = build_backend(settings, config.vocab_size)
    sentences = settings.sentences
    own = settings.model_max_length
    if sentences is not None and sentences.max_length is not None:
        own = sentences.max_length
    typed = config.type_vocab_size > 1
    no_pairs = ""
    if typed and settings.token_types is None:
        error = settings.refusal(
            "model_input_names", f"a list beside {settings.name}Fast, for pairs of texts", None
        )
        no_pairs = str(error)
    mask = backend.token_to_id(settings.text("mask_token") or config.description.mask_token)
    _share_with_forks()
    return Tokenizer(
        backend,
        config.max_length if own is None else min(own, config.max_length),
        config.pad_token_id,
        typed and settings.token_types is not False,
        None if mask is None or mask >= config.vocab_size else mask,
        config.vocab_size,
        side,
        sentences,
        no_pairs,
    )


@functools.cache  # once per process
def _share_with_forks() -> None:
    """Let processes forked from this one use tokenizers, without parallel threads.

    The library has a thread pool, which a fork does not copy. It would print a warning in
    every child. Setting its environment variable during the fork prevents this.
    """
    if not hasattr(os, "register_at_fork"):
        return

    def before() -> None:
        if _PARALLEL not in os.environ:
            os.environ[_PARALLEL] = "false"
            changed.append(True)

    def after() -> None:
        if changed:
            changed.clear()
            del os.environ[_PARALLEL]

    changed: list[bool] = []
    os.register_at_fork(before=before, after_in_parent=after)


def _found_instead(folder: Path) -> str:
    """Describe a folder without a tokenizer; SentencePiece's own files are not read."""
    models = sorted(path.name for kind in ("*.model", "*.bpe.model") for path in folder.glob(kind))
    if not models:
        return "none of them"
    command = (
        'python -c "from transformers import AutoTokenizer as T; '
        f"T.from_pretrained('{folder}').save_pretrained('{folder}')\""
    )
    return f"only {models[0]}, which is not read. Convert it: {command}"

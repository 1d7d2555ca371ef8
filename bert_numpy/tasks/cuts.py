"""The places to cut encodings: at a length, at whole characters, and into overlapping windows.

An encoding is an object of the ``tokenizers`` library for a whole text or pair of texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["context_offsets", "longest_first", "whole_characters", "window_positions"]

#: The characters that stand for a space in tokens of byte-level BPE and of SentencePiece.
_SPACES = {b"ByteLevel": "\u0120", b"Metaspace": "\u2581"}


def longest_first(encoding: Any, length: int, side: str) -> list[int]:
    """List the positions of an encoding that remain when it is truncated to ``length``.

    The special tokens stay. The longer of two texts is truncated until both are equally
    long, then both are. An odd token is left to the longer text, or to the second if they
    are equal. This is "longest_first" in the library (utils/truncation.rs of
    github.com/huggingface/tokenizers).
    """
    texts = encoding.sequence_ids
    counts = [texts.count(0), texts.count(1)]
    room = length - (len(texts) - sum(counts))
    if counts[1] == 0:
        left = [min(counts[0], room), 0]
    else:
        short, long = sorted(counts)
        long = max(short, room - short)
        if short + long > room:
            short = room // 2
            long = room - short
        left = [long, short] if counts[0] > counts[1] else [short, long]
    kept = [place for place, text in enumerate(texts) if text is None]
    for text, most in enumerate(left):
        places = [place for place, other in enumerate(texts) if other == text]
        kept += places[len(places) - most :] if side == "left" else places[:most]
    return sorted(kept)


def whole_characters(encoding: Any, most: int) -> int:
    """Count the tokens to keep, at most ``most``, so that no character is cut in two.

    The parts of a Hangul syllable may be separate tokens, and so may the bytes of
    any character.
    """
    offsets = encoding.offsets
    length = min(len(offsets), most)
    while 0 < length < len(offsets) and offsets[length][0] < offsets[length - 1][1]:
        length -= 1
    return length


def window_positions(
    encoding: Any, max_length: int, doc_stride: int
) -> Iterator[tuple[list[int], int, int]]:
    """Yield the windows of ``Tokenizer.windows`` on a context after its question, in order.

    Yields
    ------
    list of int, int, int
        The positions of the encoding in the window, the number of its first token
        in the context, and the number of the first token after it.
    """
    places = [place for place, text in enumerate(encoding.sequence_ids) if text == 1]
    length = len(encoding.ids)
    room = max_length - (length - len(places))
    for first in range(0, len(places), min(doc_stride, room)):
        last = min(first + room, len(places))
        yield [*range(places[0]), *places[first:last], *range(places[-1] + 1, length)], first, last
        if last == len(places):
            break


def context_offsets(encoding: Any, context: str, backend: Any) -> list[tuple[int, int]]:
    """Find the characters that each token of a context, after its question, stands for."""
    marks = _space_marks(backend)
    offsets = [
        _without_space(token, offset, context, marks)
        for token, offset, text in zip(
            encoding.tokens, encoding.offsets, encoding.sequence_ids, strict=True
        )
        if text == 1
    ]
    return _with_combining(offsets, context)


def _space_marks(backend: Any) -> str:
    """Return the characters that stand for spaces in the tokens."""
    state = b"" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__()
    return "".join(mark for kind, mark in _SPACES.items() if kind in state)


def _without_space(token: str, offset: tuple[int, int], text: str, marks: str) -> tuple[int, int]:
    """Drop the space before a token, which some tokenizers include, from its characters.

    A token of a space alone has no characters left, even if the tokenizer inserted the
    space itself: then its offset is that of the next character.
    """
    start, end = offset
    own = text[start:end].lstrip()
    literal = own == token and token != _SPACES[b"ByteLevel"]  # that character has other tokens
    if not literal and marks and not token.strip(marks):
        end -= len(own)
        return end, end
    return end - len(own), end


def _with_combining(offsets: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """Extend offsets over the combining characters after each token, as its letter has them.

    Normalizers join them to the letter (NFC) or drop them (BERT's accents), and the library
    assigns their places to no token.
    """
    found = []
    for (start, end), (following, _) in zip(offsets, [*offsets, (len(text), 0)][1:], strict=True):
        last = end
        while start < end <= last < following and unicodedata.category(text[last])[0] == "M":
            last += 1
        found.append((start, last))
    return found

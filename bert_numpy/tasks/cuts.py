"""Where encodings are cut: to a length, at whole characters, and into windows that overlap.

An encoding is the ``tokenizers`` library's, of a whole text or pair of texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["context_offsets", "longest_first", "whole_characters", "window_positions"]

#: What stands for a space in the tokens of byte-level BPE, and of SentencePiece.
_SPACES = {b"ByteLevel": "\u0120", b"Metaspace": "\u2581"}


def longest_first(encoding: Any, length: int, side: str) -> list[int]:
    """The positions of an encoding that are left when it is cut to ``length``.

    The special tokens stay. The longer of two texts is cut until both are equally long, then
    both are; an odd token is left to the longer one, or else to the second. This is the
    library's "longest_first" (utils/truncation.rs of github.com/huggingface/tokenizers).
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
    """How many of at most ``most`` tokens to keep of an encoded text, to cut no character in two.

    The pieces of a Hangul syllable may be tokens of their own, and the bytes of
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
    """The windows on a context behind its question, in order, as ``Tokenizer.windows`` has them.

    Yields
    ------
    list of int, int, int
        The positions of the encoding that a window keeps; and which of the
        context's tokens is its first, and which the first behind it.
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
    """For each of a context's tokens, behind its question, the characters that it stands for."""
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
    """The characters that stand for spaces in the tokens."""
    state = b"" if backend.pre_tokenizer is None else backend.pre_tokenizer.__getstate__()
    return "".join(mark for kind, mark in _SPACES.items() if kind in state)


def _without_space(token: str, offset: tuple[int, int], text: str, marks: str) -> tuple[int, int]:
    """The characters of a token without the space before it, which some tokenizers include.

    A token that is nothing but a space has none, also where the tokenizer put the space
    there itself: then its offset is that of the next character.
    """
    start, end = offset
    own = text[start:end].lstrip()
    literal = own == token and token != _SPACES[b"ByteLevel"]  # whose bytes are other tokens
    if not literal and marks and not token.strip(marks):
        end -= len(own)
        return end, end
    return end - len(own), end


def _with_combining(offsets: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int]]:
    """The offsets with the combining characters behind each token, which are part of its letter.

    Normalizers join them to the letter (NFC) or drop them (BERT's accents), and the library
    gives their places to no token.
    """
    found = []
    for (start, end), (following, _) in zip(offsets, [*offsets, (len(text), 0)][1:], strict=True):
        last = end
        while start < end <= last < following and unicodedata.category(text[last])[0] == "M":
            last += 1
        found.append((start, last))
    return found

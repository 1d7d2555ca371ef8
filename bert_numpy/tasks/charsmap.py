"""The check of SentencePiece's precompiled character map, the normalizer of XLM-R and CamemBERT.

The map is a double-array trie over UTF-8 bytes. Its values are offsets into a list of
replacements that end in a zero byte. The ``tokenizers`` library follows the trie without
bounds checks: with a damaged map, some texts cause a panic or grow many times longer.
The layout is that of github.com/google/sentencepiece (normalizer.cc) and of Darts-clone.
"""

from __future__ import annotations

import base64
import binascii

import numpy as np
import numpy.typing as npt

from npfp8.arrays import IntArray

__all__ = ["check_charsmap"]

#: The most bytes of a replacement; the longest in SentencePiece's own maps has 33.
_LONGEST = 64

#: The most bytes of a key; a trie of characters has fewer.
_DEEPEST = 64

_UnitArray = npt.NDArray[np.uint32]


def check_charsmap(text: str) -> None:
    """Raise :class:`ValueError` unless every path through the map stays within it.

    Parameters
    ----------
    text : str
        The map in base64, as in ``tokenizer.json``.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"expected base64: {error}") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 4 <= size <= len(data) - 4:
        raise ValueError(f"expected a trie within {len(data)} bytes, found {size} bytes")
    trie = np.frombuffer(data[4 : 4 + size], "<u4")
    replacements = data[4 + size :]
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected replacements in UTF-8: {error}") from None
    values = _values(trie)
    ends = np.flatnonzero(np.frombuffer(replacements, np.uint8) == 0)
    if values.size:
        if int(values.max()) >= len(replacements) or not ends.size or values.max() > ends[-1]:
            raise ValueError("expected replacements that end within the map")
        lengths = ends[np.searchsorted(ends, values)] - values
        if int(lengths.max()) > _LONGEST:
            raise ValueError(
                f"expected replacements of at most {_LONGEST} bytes, found {lengths.max()}"
            )
        starts = np.frombuffer(replacements, np.uint8)[values]
        if ((starts & 0xC0) == 0x80).any():
            raise ValueError("expected replacements of whole characters")


def _offsets(units: _UnitArray) -> IntArray:
    """Return the distance from a node to its children, to be combined by exclusive or."""
    shift = (units & (1 << 9)) >> 6
    return ((units >> 10).astype(np.int64)) << shift.astype(np.int64)


def _values(trie: _UnitArray) -> IntArray:
    """List the values of all keys; raise ValueError if a path leaves the trie or does not end."""
    nodes = _offsets(trie[:1])  # the root's children begin here
    labels = np.arange(1, 256)
    found = []
    for _ in range(_DEEPEST):
        places = nodes[:, None] ^ labels
        if places.size and int(places.max()) >= trie.size:
            raise ValueError("expected a trie whose paths stay within it")
        units = trie[places]
        reached = (units & np.uint32(0x800000FF)) == labels  # the sign bit excludes leaves
        places, units = places[reached], units[reached]
        if not places.size:
            break
        nodes = places ^ _offsets(units)
        leaves = nodes[(units >> 8) & 1 == 1]
        if leaves.size and int(leaves.max()) >= trie.size:
            raise ValueError("expected a trie whose paths stay within it")
        found.append((trie[leaves] & np.uint32(0x7FFFFFFF)).astype(np.int64))
        nodes = np.unique(nodes)  # several keys share their last nodes
    else:
        raise ValueError(f"expected keys of at most {_DEEPEST} bytes")
    return np.concatenate(found) if found else np.zeros(0, np.int64)

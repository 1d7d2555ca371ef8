"""A test whether a pattern can fit a site, for any number of the layer."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

__all__ = ["fits_attention"]

_BEFORE, _AFTER = "encoder.layer.", (".attention.scores", ".attention.context")
_DIGITS = "0123456789"
_ALPHABET = set("".join([_BEFORE, *_AFTER, _DIGITS]))


def fits_attention(pattern: str) -> bool:
    """Test whether an :mod:`fnmatch` pattern fits an attention product in a layer of any number.

    The search follows the names ``encoder.layer.N.attention.scores`` and ``...context``, for
    every N from 0 on, character by character, and the pattern element by element. If it
    reaches the end of both together, a name fits.
    """
    elements = list(_elements(pattern))
    fitting = {
        element: {character for character in _ALPHABET if fnmatchcase(character, element)}
        for element in set(elements)
    }
    seen: set[tuple[tuple[str, int], int]] = set()
    waiting = [(("before", 0), 0)]
    while waiting:
        pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        place, element = pair
        if element == len(elements):
            if place in _ENDS:
                return True
            continue
        star = elements[element] == "*"
        if star:
            waiting.append((place, element + 1))
        for character, after in _steps(place):
            if character in fitting[elements[element]]:
                waiting.append((after, element if star else element + 1))
    return False


def _elements(pattern: str) -> Iterator[str]:
    """Split a pattern, as fnmatch reads it, into stars and parts that fit one character each."""
    start = 0
    while start < len(pattern):
        end = start + 1
        if pattern[start] == "[":
            first = start + 1 + pattern.startswith("!", start + 1)
            closing = pattern.find("]", first + 1)  # "]" may be the first character of a set
            end = closing + 1 or end
        yield pattern[start:end] if pattern[start:end] != "[" else "[[]"
        start = end


#: The places where the names end: after the last character that follows the number.
_ENDS = {(after, len(after)) for after in _AFTER}


def _steps(place: tuple[str, int]) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield each possible next character of a name, with the place that it leads to."""
    part, index = place
    if part == "before":
        if index < len(_BEFORE):
            yield _BEFORE[index], (part, index + 1)
        else:  # the number's first digit: 0 stands alone, other digits may be followed
            yield "0", ("number", 0)
            for digit in _DIGITS[1:]:
                yield digit, ("number", 1)
    elif part == "number":
        for after in _AFTER:
            yield after[0], (after, 1)
        for digit in _DIGITS if index else ():
            yield digit, place
    elif index < len(part):
        yield part[index], (part, index + 1)

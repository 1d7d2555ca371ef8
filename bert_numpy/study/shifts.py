"""Shifts of texts by stated rules: what a typist, a channel or a careless copy does to them.

Each rule takes a text, a strength and a generator of random numbers, and returns the text
after the shift. The strength is a probability, or a share of the words. The result depends
on nothing else, so the same seed gives the same texts on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["SHIFTS", "Shift", "shifted_texts"]

Generator = np.random.Generator


@dataclass(frozen=True)
class Shift:
    """A rule that changes texts.

    Attributes
    ----------
    rule : callable (text, strength, generator) -> text
    strengths : tuple of float
        The strengths of the study, from weak to strong.
    meaning : str
        The rule in words; "p" is the strength.
    """

    rule: Callable[[str, float, Generator], str]
    strengths: tuple[float, ...]
    meaning: str


#: The rows of a keyboard; each row is half a key to the right of the one above.
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """List the keys beside each letter: those in its row, and two each in the rows next to it."""
    place = {letter: (y, x) for y, row in enumerate(_ROWS) for x, letter in enumerate(row)}
    letter_at = {where: letter for letter, where in place.items()}
    beside = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, 0), (1, -1))
    return {
        letter: "".join(
            letter_at[y + dy, x + dx] for dy, dx in beside if (y + dy, x + dx) in letter_at
        )
        for letter, (y, x) in place.items()
    }


_NEIGHBOURS = _neighbours()

#: The characters that noise inserts.
_NOISE = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"


def _choice(letters: str, generator: Generator) -> str:
    return letters[int(generator.random() * len(letters))]


def _typos(text: str, strength: float, generator: Generator) -> str:
    typed = []
    for letter in text:
        beside = _NEIGHBOURS.get(letter.lower())
        if beside and generator.random() < strength:
            key = _choice(beside, generator)
            letter = key.upper() if letter.isupper() else key  # noqa: PLW2901
        typed.append(letter)
    return "".join(typed)


def _drops(text: str, strength: float, generator: Generator) -> str:
    kept = (x for x in text if not x.isalpha() or generator.random() >= strength)
    return "".join(kept)


def _casing(text: str, strength: float, generator: Generator) -> str:
    return "".join(
        x.swapcase() if x.isalpha() and generator.random() < strength else x for x in text
    )


def _order(text: str, strength: float, generator: Generator) -> str:
    words = text.split(" ")
    chosen = [i for i in range(len(words)) if generator.random() < strength]
    keys = [generator.random() for _ in chosen]
    moved = [words[i] for _, i in sorted(zip(keys, chosen, strict=True))]
    for i, word in zip(chosen, moved, strict=True):
        words[i] = word
    return " ".join(words)


def _noise(text: str, strength: float, generator: Generator) -> str:
    heard = []
    for x in text:
        heard.append(x)
        if generator.random() < strength:
            heard.append(_choice(_NOISE, generator))
    return "".join(heard)


#: The shifts by name.
SHIFTS = {
    "typos": Shift(
        _typos,
        (0.05, 0.1, 0.2),
        "each letter of a-z becomes a neighbour on the keyboard with probability p",
    ),
    "drops": Shift(_drops, (0.05, 0.1, 0.2), "each letter is left out with probability p"),
    "noise": Shift(
        _noise,
        (0.05, 0.1, 0.2),
        "behind each character a random letter, digit or mark is inserted with probability p",
    ),
    "order": Shift(
        _order,
        (0.25, 0.5, 1.0),
        "each word is chosen with probability p, and the chosen ones change places at random",
    ),
    "casing": Shift(
        _casing,
        (0.25, 0.5, 1.0),
        "each letter changes between upper and lower case with probability p",
    ),
}


def shifted_texts(texts: Sequence[str], name: str, strength: float, seed: int) -> list[str]:
    """Shift texts by a rule of :data:`SHIFTS`.

    Each text has a generator of its own, from the seed and the number of the text, so the
    other texts do not matter. A text of which nothing would be left is not changed.

    Examples
    --------
    >>> from bert_numpy.study.shifts import shifted_texts
    >>> shifted_texts(["a warm and funny film"], "typos", 0.2, seed=0)
    ['a wsrm and fujhg filn']
    >>> shifted_texts(["a warm and funny film"], "order", 1.0, seed=0)
    ['funny warm and a film']
    """
    rule = SHIFTS[name].rule
    found = []
    for number, text in enumerate(texts):
        generator = np.random.Generator(np.random.PCG64([seed, number]))
        changed = rule(text, strength, generator)
        found.append(changed if changed.strip() else text)
    return found

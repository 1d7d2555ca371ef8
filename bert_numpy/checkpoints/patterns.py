"""Regular expressions that cannot take forever, for the names in a checkpoint's config.

Python's engine tries alternatives one after the other, so a hostile pattern
takes exponential time. Here all alternatives are followed at once, as in Thompson,
*Regular Expression Search Algorithm*, CACM 11(6), 1968. A node of the pattern
maps the set of places in the name where it may begin to the set of places where it may
end. A set is the bits of an integer, bit ``i`` for the place before character ``i``. The
steps are counted, and a pattern that needs too many is refused.

The syntax is Python's, without flags and without the constructs that a set of places
cannot express (backreferences, conditions, possessive repeats, atomic groups).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["Budget", "Pattern", "compile_pattern"]

#: The limits of a pattern: its length in characters, and the depth of its groups.
_LONGEST = 1000
_DEEPEST = 20

#: The repeats ``*``, ``+``, ``?`` and ``{m,n}``. Lazy ones are treated alike.
_REPEAT = re.compile(r"([*+?]|\{(?:\d+(?:,\d*)?|,\d*)\})(\??)(\+?)")

#: The beginnings of special groups; a plain group has none.
_GROUP = re.compile(r"\?(:|P<[A-Za-z_]\w*>|<?[=!])")

#: The escapes for one of several characters, and the escapes for a place.
_CLASSES = frozenset("dDsSwW")
_PLACES = frozenset("AbBZ")

Places = int


@dataclass
class Budget:
    """The number of steps left: one per node of a pattern that is followed."""

    steps: int

    def spend(self) -> None:
        """Count a step.

        Raises
        ------
        ValueError
            If no step is left.
        """
        self.steps -= 1
        if self.steps < 0:
            raise ValueError("it takes too long to match")


@dataclass(frozen=True)
class _Name:
    """The text to match, and the budget of steps."""

    text: str
    budget: Budget
    #: By character class: the places of characters that it fits; computed once.
    places: dict[str, Places] = field(default_factory=dict)


#: A node: a function from the places where it may begin to the places where it may end.
_Node = Callable[[_Name, Places], Places]


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern; see :func:`compile_pattern`."""

    text: str
    node: _Node = field(repr=False, compare=False)

    def matches(self, name: str, budget: Budget) -> bool:
        """Check whether the pattern fits the beginning of a name, like ``re.match``.

        Raises
        ------
        ValueError
            If the budget is used up.
        """
        return bool(self.node(_Name(name, budget), 1))


def compile_pattern(text: str) -> Pattern:
    r"""Compile a regular expression.

    Raises
    ------
    ValueError
        If it is invalid, or has a construct that is not supported here.

    Examples
    --------
    >>> pattern = compile_pattern(r".*\.(query|key)$")
    >>> [pattern.matches(name, Budget(1000)) for name in ("layer.0.key", "layer.0.keys")]
    [True, False]
    """
    if len(text) > _LONGEST:
        raise ValueError(f"expected at most {_LONGEST} characters, found {len(text)}")
    reader = _Reader(text)
    node = reader.alternatives(0)
    if reader.place < len(text):
        raise ValueError(f"')' at {reader.place} closes no group")
    return Pattern(text, node)


@dataclass
class _Reader:
    """A position in a pattern."""

    text: str
    place: int = 0

    def peek(self) -> str:
        return self.text[self.place : self.place + 1]

    def take(self) -> str:
        if not (found := self.peek()):
            raise ValueError("the pattern ends too early")
        self.place += 1
        return found

    def alternatives(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise ValueError(f"expected at most {_DEEPEST} groups within each other")
        branches = [_sequence(list(self.sequence(depth)))]
        while self.peek() == "|":
            self.place += 1
            branches.append(_sequence(list(self.sequence(depth))))
        return branches[0] if len(branches) == 1 else _union(branches)

    def sequence(self, depth: int) -> Iterator[_Node]:
        while self.peek() not in ("", "|", ")"):
            node, is_place = self.item(depth)
            found = _REPEAT.match(self.text, self.place)
            if found is None:
                yield node
                continue
            if is_place:
                raise ValueError(f"nothing to repeat at {self.place}")
            if found[3]:
                raise ValueError(f"possessive repeats are not understood, as at {self.place}")
            self.place = found.end()
            if _REPEAT.match(self.text, self.place):
                raise ValueError(f"a repeat of a repeat at {self.place}")
            yield _repeat(node, *_counts(found[1]))

    def item(self, depth: int) -> tuple[_Node, bool]:
        """Read a node; the second result is True if it is a place between characters."""
        start = self.place
        character = self.take()
        if character == "(":
            return self.group(depth), False
        if character in "^$":
            return _at(character), True
        if character in "*+?":
            raise ValueError(f"nothing to repeat at {start}")
        return self.escape(start) if character == "\\" else (_one_of(self.one(start)), False)

    def one(self, start: int) -> str:
        """Read one character: itself, any (``.``) or a set."""
        character = self.text[start]
        if character == "[":
            return self.set_from(start)
        return character if character == "." else re.escape(character)

    def escape(self, start: int) -> tuple[_Node, bool]:
        escaped = self.take()
        if escaped in _PLACES:
            return _at(f"\\{escaped}"), True
        if escaped in _CLASSES or not escaped.isalnum():
            return _one_of(f"\\{escaped}"), False
        raise ValueError(f"\\{escaped} is not understood, at {start}")

    def set_from(self, start: int) -> str:
        """Read a set such as ``[a-z_]``, without constructs that may change their meaning."""
        if self.peek() == "^":
            self.place += 1
        first = self.place
        while self.peek() != "]" or self.place == first:
            if self.take() == "\\":
                self.take()
        self.place += 1
        text = self.text[start : self.place]
        if "[" in text[1:] or re.search(r"--|&&|\|\||~~", text):
            raise ValueError(f"the set {text} is not understood")
        try:
            re.compile(text)
        except re.error as error:
            raise ValueError(f"the set {text}: {error}") from None
        return text

    def group(self, depth: int) -> _Node:
        kind = ""
        if self.peek() == "?":
            found = _GROUP.match(self.text, self.place)
            if found is None:
                raise ValueError(f"this kind of group is not understood, at {self.place - 1}")
            kind = found[1]
            self.place = found.end()
        inside = self.alternatives(depth + 1)
        if self.peek() != ")":
            raise ValueError("a group is not closed")
        self.place += 1
        if kind in ("=", "!"):
            return _ahead(inside, kind == "=")
        if kind in ("<=", "<!"):
            return _behind(inside, kind == "<=")
        return inside


def _counts(repeat: str) -> tuple[int, int | None]:
    """Return the least and the greatest number of repeats; None for no limit."""
    if repeat in ("*", "+", "?"):
        return int(repeat == "+"), 1 if repeat == "?" else None
    low, comma, high = repeat[1:-1].partition(",")
    least = int(low or 0)
    most = int(high) if high else None if comma else least
    if most is not None and most < least:
        raise ValueError(f"expected the larger number last, found {repeat}")
    return least, most


# Nodes


def _one_of(text: str) -> _Node:
    """Make a node for one character that fits ``text``, a pattern of length 1."""
    fits = re.compile(text).fullmatch

    def node(name: _Name, begin: Places) -> Places:
        name.budget.spend()
        if text not in name.places:
            bits = (1 << i for i, character in enumerate(name.text) if fits(character))
            name.places[text] = sum(bits)
        return (begin & name.places[text]) << 1

    return node


def _at(text: str) -> _Node:
    r"""Make a node for a place between characters: ``^``, ``$``, ``\b``."""
    fits = re.compile(text).match

    def node(name: _Name, begin: Places) -> Places:
        name.budget.spend()
        return sum(1 << i for i in _bits(begin) if fits(name.text, i))

    return node


def _sequence(nodes: list[_Node]) -> _Node:
    def node(name: _Name, begin: Places) -> Places:
        name.budget.spend()
        for one in nodes:
            if not begin:
                break
            begin = one(name, begin)
        return begin

    return node


def _union(nodes: list[_Node]) -> _Node:
    def node(name: _Name, begin: Places) -> Places:
        end = 0
        for one in nodes:
            end |= one(name, begin)
        return end

    return node


def _repeat(inside: _Node, least: int, most: int | None) -> _Node:
    def node(name: _Name, begin: Places) -> Places:
        # A match goes forward or stays: after as many repeats as there are characters, and one
        # more, it reaches no new places.
        longest = len(name.text) + 1
        for _ in range(min(least, longest)):
            begin = inside(name, begin)
        end = begin
        for _ in range(longest if most is None else min(most - least, longest)):
            begin = inside(name, begin) & ~end
            if not begin:
                break
            end |= begin
        return end

    return node


def _ahead(inside: _Node, positive: bool) -> _Node:
    def node(name: _Name, begin: Places) -> Places:
        return sum(1 << i for i in _bits(begin) if bool(inside(name, 1 << i)) == positive)

    return node


def _behind(inside: _Node, positive: bool) -> _Node:
    def node(name: _Name, begin: Places) -> Places:
        end = 0
        for i in _bits(begin):
            fits = any(inside(name, 1 << j) >> i & 1 for j in range(i + 1))
            end |= (1 << i) if fits == positive else 0
        return end

    return node


def _bits(places: Places) -> Iterator[int]:
    for i in range(places.bit_length()):
        if places >> i & 1:
            yield i

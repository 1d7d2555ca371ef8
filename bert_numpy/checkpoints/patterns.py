"""Regular expressions that cannot take for ever: those of names in a checkpoint's config.

Python's engine tries alternatives one after the other, so that a hostile pattern
takes exponential time. Here all are followed at once: a node of the pattern maps
the set of places in the name where it may begin to the set of those where it may
end (Thompson, *Regular Expression Search Algorithm*, CACM 11(6), 1968). A set is
the bits of an integer, bit ``i`` for the place before character ``i``. The steps
are counted, and a pattern that needs too many is refused.

What is understood is Python's syntax less what a set of places cannot express
(backreferences, conditions, possessive repeats, atomic groups) and flags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["Budget", "Pattern", "compile_pattern"]

#: Characters of a pattern, and groups within groups.
_LONGEST = 1000
_DEEPEST = 20

#: The repeats ``*``, ``+``, ``?`` and ``{m,n}``, which may be lazy: that makes no difference here.
_REPEAT = re.compile(r"([*+?]|\{(?:\d+(?:,\d*)?|,\d*)\})(\??)(\+?)")

#: The beginnings of groups, by what they do; a plain group has none.
_GROUP = re.compile(r"\?(:|P<[A-Za-z_]\w*>|<?[=!])")

#: Escapes that stand for one of several characters, and for a place.
_CLASSES = frozenset("dDsSwW")
_PLACES = frozenset("AbBZ")

Places = int


@dataclass
class Budget:
    """The steps that may still be made: one for each node of a pattern that is followed."""

    steps: int

    def spend(self) -> None:
        """Count a step.

        Raises
        ------
        ValueError
            If none is left.
        """
        self.steps -= 1
        if self.steps < 0:
            raise ValueError("it takes too long to match")


@dataclass(frozen=True)
class _Name:
    """The text that is looked at, and the steps that are left."""

    text: str
    budget: Budget
    #: Where a character that a class of one stands for is; found once.
    places: dict[str, Places] = field(default_factory=dict)


#: A node: from the places where it may begin to those where it may end.
_Node = Callable[[_Name, Places], Places]


@dataclass(frozen=True)
class Pattern:
    """A pattern that is read; see :func:`compile_pattern`."""

    text: str
    node: _Node = field(repr=False, compare=False)

    def matches(self, name: str, budget: Budget) -> bool:
        """Whether the pattern fits the beginning of a name, as ``re.match`` says.

        Raises
        ------
        ValueError
            If the budget is spent.
        """
        return bool(self.node(_Name(name, budget), 1))


def compile_pattern(text: str) -> Pattern:
    r"""Read a regular expression.

    Raises
    ------
    ValueError
        If it is none, or has what is not understood here.

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
    """Where in a pattern one is."""

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
        """A node, and whether it is a place between characters."""
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
        """What stands for one character: itself, any (``.``) or a set."""
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
        """A set such as ``[a-z_]``, checked: whoever reads it again reads the same."""
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
    """The least and the most times; None for any number."""
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
    """One character that ``text``, of one character's length, fits."""
    fits = re.compile(text).fullmatch

    def node(name: _Name, begin: Places) -> Places:
        name.budget.spend()
        if text not in name.places:
            bits = (1 << i for i, character in enumerate(name.text) if fits(character))
            name.places[text] = sum(bits)
        return (begin & name.places[text]) << 1

    return node


def _at(text: str) -> _Node:
    r"""A place between characters: ``^``, ``$``, ``\b``."""
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
        # A match goes forward or stays: after one time more than there are characters nothing
        # that can be reached is new.
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

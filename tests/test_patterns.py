"""Patterns compared with Python's engine, and in bounded time where Python's is unbounded."""

from __future__ import annotations

import random
import re
import time

import pytest

from bert_numpy.checkpoints.patterns import Budget, compile_pattern

PIECES = (
    *("a", "b", ".", r"\.", "[ab]", "[^a]", "[a-c_]", "(a|b)", "(?:ab)", "(?:b|)", "(a|)", "_"),
    *("(?=a)", "(?!b)", "(?<=a)", "(?<!b)", "$", "^", r"\b", r"\B", r"\w", r"\D", r"\Z"),
)
REPEATS = ("", "", "", "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "*?", "+?", "??", "{", "{a}")


def test_as_python_has_it() -> None:
    """Repeats of single pieces only, as Python may not come to an end otherwise."""
    chance = random.Random(0)
    compared = 0
    for _ in range(2000):
        parts = [
            "".join(
                chance.choice(PIECES) + chance.choice(REPEATS) for _ in range(chance.randint(0, 4))
            )
            for _ in range(chance.randint(1, 3))
        ]
        text = "|".join(parts)
        try:
            expected = re.compile(text)
        except re.error:
            with pytest.raises(ValueError, match=r"\w"):
                compile_pattern(text)
            continue
        try:
            pattern = compile_pattern(text)
        except ValueError:  # a repeated place that Python takes
            assert re.search(r"\$|\^|\[bBZ]", text), text
            continue
        for _ in range(6):
            name = "".join(chance.choice("ab.c_1x") for _ in range(chance.randint(0, 8)))
            found = pattern.matches(name, Budget(100_000))
            assert found == (expected.match(name) is not None), (text, name)
            compared += 1
    assert compared > 3000


@pytest.mark.parametrize(
    "text",
    [
        *(
            "(a*)*b",
            "(a|a)*b",
            "(a|b|ab)*c",
            r"(\w{1,9}){9}-",
            ".*.*.*.*.*.*-",
            "(.*){1000000000}x",
        ),
        *("((((a*)*)*)*)*-", "(((a{1,9}){1,9}){1,9}){1,9}-", "((?:a|){100}){100}x", "(a+)+$b"),
        *(".*(?=.*(?=.*(?=.*-)))", "(?<=(?<=.*).*)-", "(?:(?=(a+))a)*-", "(x+x+)+y|(a?){60}a{60}b"),
    ],
)
def test_bounded_time(text: str) -> None:
    """Each takes Python minutes at least, or for ever."""
    begin = time.perf_counter()
    try:
        assert not compile_pattern(text).matches("a" * 60, Budget(1_000_000))
    except ValueError as error:
        assert str(error) == "it takes too long to match"  # noqa: PT017 (may come or not)
    assert time.perf_counter() - begin < 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(", "a group is not closed"),
        (")", r"'\)' at 0 closes no group"),
        ("*a", "nothing to repeat at 0"),
        ("a**", "a repeat of a repeat at 2"),
        ("a*+", "possessive repeats are not understood, as at 1"),
        ("a{2,1}", "expected the larger number last"),
        ("[a", "the pattern ends too early"),
        ("[b-a]", "the set"),
        ("[[a]", "the set"),
        ("a" + chr(92), "the pattern ends too early"),
        (r"(a)\1", "is not understood, at 3"),
        ("(?P=x)", "this kind of group is not understood"),
        ("(?i)a", "this kind of group is not understood"),
        ("(?>a)", "this kind of group is not understood"),
        ("(?(1)a|b)", "this kind of group is not understood"),
        ("(" * 100 + ")" * 100, "at most 20 groups within each other"),
        ("a" * 1001, "at most 1000 characters, found 1001"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_pattern(text)

"""Encoders that round in another way than asked for, or use random bits in another way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array
from npfp8.codec import ROUNDINGS, encode
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["TIES", "WORDS", "other_roundings"]

#: What the roundings to nearest do with ties, in the names of mistakes.
TIES = {
    "nearest": "ties rounded to even",
    "nearest_away": "ties rounded away from zero",
    "nearest_toward_zero": "ties rounded toward zero",
}
#: Every rounding, in the names of mistakes.
WORDS = {name: name.replace("_", " ") for name in ROUNDINGS}
WORDS["nearest_away"] = "nearest, ties away from zero,"
WORDS["nearest_toward_zero"] = "nearest, ties toward zero,"


def other_roundings(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that round in another way than asked for."""
    if rules.rounding == "stochastic":
        yield from _other_randomness(rules)
    for name, change in _named_roundings(rules):
        yield name, change
        if not rules.saturate:  # overflow is found first, and treated rightly
            yield name, _within(rules, change)
    if rules.saturate and rules.rounding == "nearest":
        name = "the first of the nearest values of a table, with one zero"
        yield name, lambda x: rules.unsigned_zero(rules.by(x, "nearest_toward_zero"))
        yield name, lambda x: rules.unsigned_zero(_ties_down(rules, x))


def _named_roundings(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders with each other rounding, which is named beside the right one."""
    asked, word = rules.rounding, WORDS[rules.rounding].rstrip(",")

    def by(rounding: str) -> Encoder:
        return lambda x: rules.by(x, rounding)

    if rules.nearest:
        yield "truncation", by("toward_zero")
        for other in ("nearest_away", "nearest_toward_zero", "nearest"):
            if other != asked:
                yield TIES[other], by(other)
        yield "ties rounded up", lambda x: _ties_up(rules, x)
        yield "ties rounded down", lambda x: _ties_down(rules, x)
        yield "ties rounded to odd", lambda x: _ties_to_odd(rules, x)
    else:
        yield f"nearest instead of {word} (rounding mode ignored)", by("nearest")
        for other in ("nearest_away", "nearest_toward_zero"):
            yield f"{WORDS[other]} instead of {word}", by(other)
        if asked != "toward_zero":
            yield f"toward zero instead of {word}", by("toward_zero")
    if asked == "up":
        yield "up and down exchanged for negative numbers", lambda x: _away(rules, x)
    for other in ("up", "down", "odd"):
        if other == asked:
            continue
        exchanged = {asked, other} == {"up", "down"}
        name = "up and down exchanged" if exchanged else f"{other} instead of {word}"
        yield name, by(other)
    if asked != "up":
        # Also up and down exchanged for negative numbers, but of "down", which is toward zero.
        name = (
            "up and down exchanged for positive numbers"
            if asked == "down"
            else f"away from zero instead of {word}"
        )
        yield name, lambda x: _away(rules, x)
    if asked == "odd":
        yield "nearest, ties to odd, instead of odd", lambda x: _ties_to_odd(rules, x)
        yield "odd also where the number is exact", lambda x: _always_odd(rules, x)


def _within(rules: Rules, change: Encoder) -> Encoder:
    """Let a mistake happen up to the largest value only."""
    return lambda x: np.where(np.abs(x) > rules.fmt.max, rules(x), change(x))


def _ties_up(rules: Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(np.signbit(x), toward, away)


def _ties_down(rules: Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(np.signbit(x), away, toward)


def _ties_to_odd(rules: Rules, x: Array) -> Codes:
    away, toward = rules.by(x, "nearest_away"), rules.by(x, "nearest_toward_zero")
    return np.where(rules.by(x, "nearest") == away, toward, away)


def _away(rules: Rules, x: Array) -> Codes:
    return np.where(np.signbit(x), rules.by(x, "down"), rules.by(x, "up"))


def _always_odd(rules: Rules, x: Array) -> Codes:
    codes = rules(x)
    changed = np.isfinite(rules.fmt.values[codes]) & (
        (codes & rules.magnitude) < rules.fmt.max_code
    )
    return np.where(changed & (x != 0), codes | np.uint8(1), codes)


def _other_randomness(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that use random bits in another way."""
    bits, count = rules.random_bits, rules.bit_count
    assert bits is not None
    assert count is not None
    ones = np.uint64((1 << count) - 1)

    def given(other: Any, others: int = count) -> Encoder:
        return lambda x: encode(
            x,
            rules.fmt,
            rules.saturate,
            rounding="stochastic",
            random_bits=np.asarray(other, np.uint64),
            bit_count=others,
        )

    wide = bits.astype(np.uint64)
    yield "random bits inverted", given(wide ^ ones)
    yield "random bits in the reverse order", given(_reversed(wide, count))
    yield "one random bit too few", given(wide >> np.uint64(1), count - 1)
    yield "one random bit too few", given(wide & (ones >> np.uint64(1)), count - 1)
    yield "one random bit too many, a zero", given(wide << np.uint64(1), count + 1)
    yield "random bits one place too low", given(wide, count + 1)
    yield "the same random bits for each number", given(np.full_like(wide, wide.flat[0]))


def _reversed(bits: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    result = np.zeros_like(bits)
    for i in range(count):
        result |= ((bits >> np.uint64(i)) & np.uint64(1)) << np.uint64(count - 1 - i)
    return result

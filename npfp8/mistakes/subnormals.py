"""Encoders that treat subnormals wrongly, those of the format or of the input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from npfp8.arrays import Array, Float64Array
from npfp8.mistakes.precision import to_guard_bits
from npfp8.mistakes.rounding import TIES, WORDS
from npfp8.mistakes.rules import NEAREST, Codes, Encoder, Rules

__all__ = ["wrong_subnormals"]


def wrong_subnormals(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat subnormals wrongly, those of the format or of the input."""
    if rules.fmt.has_zero:
        yield from _own(rules)
    for smallest in (2.0**-126, 2.0**-14):
        yield "subnormals of the input flushed to zero", _flushing(rules, smallest)


def _own(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat the subnormals of the format wrongly."""
    fmt = rules.fmt

    def below(change: Callable[[Array], Array]) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, change(x), rules(x))

    def flushed(x: Array) -> Codes:
        return rules(np.copysign(np.float32(0), x))

    yield "subnormals flushed to zero", below(flushed)
    yield (
        "subnormals flushed to zero",
        lambda x: np.where(np.abs(fmt.values[rules(x)]) < fmt.min_normal, flushed(x), rules(x)),
    )
    yield "subnormals off by one place", below(lambda x: rules(x.astype(np.float64) / 2))
    yield "subnormals off by one place", below(lambda x: rules(x.astype(np.float64) * 2))
    yield "leading one lost in subnormals", below(lambda x: rules(_without_leading_one(x)))
    if rules.rounding != "toward_zero":
        yield "subnormals truncated", below(rules.toward_zero)
    if rules.nearest:
        for other in NEAREST:
            if other != rules.rounding:
                yield f"{TIES[other]} in subnormals", below(partial(rules.by, rounding=other))
    elif rules.rounding != "toward_zero":
        name = f"nearest instead of {WORDS[rules.rounding]} in subnormals"
        yield name, below(lambda x: rules.by(x, "nearest"))
    if rules.rounding in _TO_INTEGER:
        yield "shift of the significand modulo 32 in subnormals", lambda x: _shifted(rules, x)
    yield "a missing sticky bit in subnormals", below(lambda x: rules(to_guard_bits(x, fmt, 1)))


#: Roundings of a positive number to an integer.
_TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "nearest": np.rint,
    "nearest_away": lambda x: np.floor(x + 0.5),
    "toward_zero": np.floor,
}


def _shifted(rules: Rules, x: Array) -> Codes:
    """Shift the 24 bits of a float32 by five bits of the distance, as a processor may do."""
    fmt = rules.fmt
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64) & 0x7FFFFFFF
    exponent, significand = (bits >> 23) - 127, (bits & 0x7FFFFF) | 0x800000
    shift = (23 - fmt.mantissa_bits + (1 - fmt.bias) - exponent) & 31
    kept = _TO_INTEGER[rules.rounding](np.ldexp(significand.astype(np.float64), -shift))
    codes = np.minimum(kept, fmt.max_code).astype(np.uint8) | rules.signs(x)
    return np.where((np.abs(x) < fmt.min_normal) & (x != 0), codes, rules(x))


def _flushing(rules: Rules, smallest: float) -> Encoder:
    return lambda x: rules(np.where(np.abs(x) < smallest, np.copysign(np.float32(0), x), x))


def _without_leading_one(x: Array) -> Float64Array:
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    leading = np.where(exact == 0, 0, np.ldexp(0.5, np.frexp(exact)[1]))
    return np.copysign(np.abs(exact) - leading, x)

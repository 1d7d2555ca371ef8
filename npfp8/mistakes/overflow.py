"""Encoders that treat numbers beyond the largest value wrongly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array
from npfp8.codec import encode
from npfp8.formats import FloatFormat
from npfp8.mistakes.binades import next_binade, unbounded_codes
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["clamped_codes", "other_overflows"]


def other_overflows(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat numbers beyond the largest value wrongly."""
    fmt = rules.fmt
    beyond = float(fmt.grid[-1])

    def specials(x: Array) -> Codes:
        if rules.directed:
            return encode(x, fmt, False, rounding=rules.rounding, overflow="special")
        return _switched(rules, False)(x)

    def ieee(x: Array) -> Codes:
        return _switched(rules, False)(x)

    saturated = _switched(rules, True)
    if rules.saturate:
        yield "overflow that does not saturate", ieee
        yield "overflow that does not saturate", specials
        yield (
            "rounding beyond the largest value not clamped",
            lambda x: np.where(np.abs(x) < beyond, specials(x), rules(x)),
        )
        yield (
            "rounding beyond the largest value not clamped",
            lambda x: np.where(np.abs(x) < next_binade(fmt), specials(x), rules(x)),
        )
        name = "infinity that does not saturate" if fmt.has_infinity else "infinity encoded as NaN"
        yield name, lambda x: np.where(np.isinf(x), specials(x), rules(x))
    else:
        yield "overflow that saturates", saturated
        yield "overflow that saturates", lambda x: np.where(np.isinf(x), rules(x), saturated(x))
        yield (
            "infinity clamped to the largest value",
            lambda x: np.where(np.isinf(x), saturated(x), rules(x)),
        )
        yield from _thresholds(rules, saturated, specials)
    if fmt.infinity_code is not None and fmt.nan_code is not None:
        yield "infinity encoded as NaN", lambda x: _nan_where(rules, x, np.isinf(x))
        yield (
            "overflow encoded as NaN",
            lambda x: _nan_where(rules, x, ~np.isnan(x) & (specials(x) != saturated(x))),
        )
    yield "overflow that wraps around", lambda x: _wrapped(rules, x)
    smaller = max(fmt.max_code + 1 - (1 << fmt.mantissa_bits), 0)
    yield "saturation at too small a value", lambda x: clamped_codes(rules(x), fmt, smaller)
    yield "saturation from too small a value on", lambda x: _from_largest_binade(rules, x)
    if rules.saturate and fmt.signed:
        yield (
            "sign lost where it saturates",
            lambda x: np.where(np.abs(x) > fmt.max, rules(np.abs(x)), rules(x)),
        )


def _switched(rules: Rules, saturate: bool) -> Encoder:
    """Make the encoder that saturates, or does not."""
    return replace(rules, saturate=saturate, overflow="ieee")


def _thresholds(
    rules: Rules, saturated: Encoder, specials: Encoder
) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders without saturation that overflow for other numbers, or to other codes."""
    fmt = rules.fmt
    beyond, tie = float(fmt.grid[-1]), float(fmt.grid[-2] + fmt.grid[-1]) / 2
    if rules.nearest or rules.rounding == "stochastic":
        yield (
            "overflow of every number beyond the largest value, before rounding",
            lambda x: np.where(np.abs(x) > fmt.max, rules.infinite(x), rules(x)),
        )
        yield (
            "overflow only from the value on that would follow the largest",
            lambda x: np.where(np.abs(x) < beyond, saturated(x), rules(x)),
        )
    if rules.nearest:

        def other_tie(x: Array) -> Codes:
            codes, limited = rules(x), saturated(x)
            other = np.where(codes == limited, rules.infinite(x), limited)
            return np.where(np.abs(x) == tie, other, codes)

        yield "tie above the largest value rounded the other way", other_tie
    if not rules.directed:
        return
    if rules.overflow == "ieee":
        yield "overflow to infinity or NaN whatever the rounding", specials
    else:
        yield (
            "overflow to the largest value, where the rounding does not go beyond it",
            _switched(rules, False),
        )
    if rules.rounding in ("up", "down"):

        def mirrored(x: Array) -> Codes:
            other = np.where(rules(x) == saturated(x), rules.infinite(x), saturated(x))
            return np.where(np.isfinite(x) & (np.abs(x) > fmt.max), other, rules(x))

        yield "overflow in the wrong direction", mirrored


def _nan_where(rules: Rules, x: Array, mask: npt.NDArray[np.bool_]) -> Codes:
    assert rules.fmt.nan_code is not None
    return np.where(mask, np.uint8(rules.fmt.nan_code), rules(x))


def _wrapped(rules: Rules, x: Array) -> Codes:
    """Let exponents go on beyond the largest one, and lose their upper bits."""
    whole = unbounded_codes(rules, rules.fmt, x)
    wrapped = (whole & int(rules.magnitude)).astype(np.uint8) | rules.signs(x)
    return np.where(np.isfinite(x) & (whole > rules.fmt.max_code), wrapped, rules(x))


def _from_largest_binade(rules: Rules, x: Array) -> Codes:
    largest = rules.fmt.max
    beyond = np.abs(x) >= 2.0 ** (np.frexp(largest)[1] - 1)
    return rules(np.where(beyond, np.copysign(np.float32(largest), x), x))


def clamped_codes(codes: Codes, fmt: FloatFormat, limit: int) -> Codes:
    """Replace the finite codes of a magnitude above the code ``limit`` by it."""
    sign = codes & np.uint8(fmt.sign_bit)
    too_large = np.isfinite(fmt.values[codes]) & ((codes & np.uint8(0xFF - fmt.sign_bit)) > limit)
    return np.where(too_large, sign | np.uint8(limit), codes)

"""Encoders that lose bits of a number before they round it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from npfp8.arrays import Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FloatFormat
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["lost_precision", "to_guard_bits"]


def lost_precision(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that lose bits of the number before they round it."""
    yield "double rounding through bfloat16", lambda x: rules(round_to_bfloat16(x))
    yield "double rounding through float16", lambda x: rules(x.astype(np.float16))
    if rules.rounding != "toward_zero":
        yield "truncation through float16", lambda x: _by_float16(rules, x)
    for kept in (1, 2, 3):
        yield "a missing sticky bit", _guarded(rules, kept)
    yield (
        "a missing sticky bit",
        lambda x: rules(np.where(np.isnan(x), x, _cut_to_bfloat16(x))),
    )


def _by_float16(rules: Rules, x: Float32Array) -> Codes:
    """Round to nearest float16, and cut off its lower bits."""
    largest = np.float32(rules.fmt.max)
    limited = np.clip(x, -largest, largest) if rules.saturate else x
    return rules.by(limited.astype(np.float16), "toward_zero")


def _guarded(rules: Rules, kept: int) -> Encoder:
    return lambda x: rules(to_guard_bits(x, rules.fmt, kept))


def _cut_to_bfloat16(x: Float32Array) -> Float32Array:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def to_guard_bits(x: Float32Array, fmt: FloatFormat, kept: int) -> Float32Array:
    """Cut off all bits but so many below the last of a format: near a tie, numbers become it."""
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    exponent = np.frexp(np.maximum(np.abs(exact), fmt.min_normal))[1] - 1
    last = np.ldexp(0.5**kept, exponent - fmt.mantissa_bits)
    cut = np.copysign(np.trunc(exact / last) * last, x)
    return np.where(np.isfinite(x), cut, x).astype(np.float32)

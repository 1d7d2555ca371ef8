"""Encoders that lose the carry of rounding from the mantissa into the exponent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array
from npfp8.mistakes.binades import next_binade, unbounded_codes
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["lost_carries"]


def lost_carries(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that lose the carry of rounding from the mantissa into the exponent."""
    fmt = rules.fmt
    if not fmt.mantissa_bits or not fmt.exponent_bits:
        return
    mantissa = np.uint8((1 << fmt.mantissa_bits) - 1)
    name = "carry into the exponent lost"

    def carried(x: Array) -> tuple[Codes, npt.NDArray[np.bool_]]:
        codes, below = rules(x), rules.toward_zero(x)
        finite = np.isfinite(fmt.values[codes]) & np.isfinite(x)
        return below, finite & (codes != below) & (below & mantissa == mantissa)

    def cleared(x: Array) -> Codes:
        below, carry = carried(x)
        return np.where(carry, below & ~mantissa, rules(x))

    def kept(x: Array) -> Codes:
        below, carry = carried(x)
        return np.where(carry, below, rules(x))

    def cleared_before_overflow(x: Array) -> Codes:
        # The binade of the largest value has places for the values that would follow it.
        below = unbounded_codes(rules.toward_zero, fmt, x)
        carry = (unbounded_codes(rules, fmt, x) != below) & (below & int(mantissa) == mantissa)
        carry &= np.abs(x) < next_binade(fmt)
        codes = np.minimum(below & ~int(mantissa), fmt.max_code).astype(np.uint8)
        return np.where(carry, codes | rules.signs(x), rules(x))

    def normal(change: Encoder) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, rules(x), change(x))

    def subnormal(change: Encoder) -> Encoder:
        return lambda x: np.where(np.abs(x) < fmt.min_normal, change(x), rules(x))

    for change in (cleared, kept, cleared_before_overflow):
        yield name, change
        yield name, normal(change)
    yield "carry from the subnormals lost", subnormal(cleared)
    yield "carry from the subnormals lost", subnormal(kept)

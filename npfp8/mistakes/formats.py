"""Encoders to a format of another bias, or to another format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from npfp8.arrays import Array
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E3M4FN,
    E4M3,
    E4M3B11FNUZ,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    P3109_K8P3,
    P3109_K8P4,
    FloatFormat,
)
from npfp8.mistakes.binades import next_binade, unbounded_codes
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["CONFUSED", "NAN_BIASED", "confused_with", "other_formats"]

#: The format with another bias and NaN that each OCP format is confused with, and back.
NAN_BIASED = {E4M3FN: E4M3FNUZ, E4M3FNUZ: E4M3FN, E5M2: E5M2FNUZ, E5M2FNUZ: E5M2}

#: Further formats that a format is confused with: one of another name, bias or division.
CONFUSED = {
    E4M3FN: (E4M3, E4M3B11FNUZ, E5M2, P3109_K8P4),
    E5M2: (E4M3FN, P3109_K8P3),
    E4M3FNUZ: (E4M3B11FNUZ, E5M2FNUZ),
    E5M2FNUZ: (E4M3FNUZ,),
    E4M3: (E4M3FN,),
    E3M4: (E3M4FN,),
    E3M4FN: (E3M4,),
    E2M3: (E3M2,),
    E3M2: (E2M3,),
    P3109_K8P4: (E4M3FN, E4M3FNUZ),
    P3109_K8P3: (E5M2, E5M2FNUZ),
    E2M1: (),
}


def confused_with(fmt: FloatFormat) -> tuple[FloatFormat, ...]:
    """Return the formats that a format is confused with, in the order in which they are tried."""
    biased = (NAN_BIASED[fmt],) if fmt in NAN_BIASED else ()
    return (*biased, *CONFUSED.get(fmt, ()))


def other_formats(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders to a format of another bias, or to another format."""
    fmt = rules.fmt
    for other in confused_with(fmt):
        yield f"{other} instead of {fmt}", replace(rules, fmt=other)
    yield "exponent bias off by one", lambda x: rules(_scaled(x, 2.0))
    yield "exponent bias off by one", lambda x: rules(_scaled(x, 0.5))
    for change in (1, -1):
        for bound in (next_binade(fmt), np.inf):
            yield "exponent field off by one", partial(_moved, rules, change=change, bound=bound)


def _moved(rules: Rules, x: Array, change: int, bound: float) -> Codes:
    """Change the exponent field of normal numbers, before what is too large is clamped."""
    fmt = rules.fmt
    moved = np.clip(unbounded_codes(rules, fmt, x) + (change << fmt.mantissa_bits), 0, fmt.max_code)
    normal = (np.abs(x) >= fmt.min_normal) & (np.abs(x) < bound)
    return np.where(normal, moved.astype(np.uint8) | rules.signs(x), rules(x))


def _scaled(x: Array, factor: float) -> Array:
    return np.where(np.isfinite(x), x.astype(np.float64) * factor, x)

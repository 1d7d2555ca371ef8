"""Encoders that treat NaN, signs or zeros wrongly; infinities are with overflow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from npfp8.arrays import Array, Float32Array
from npfp8.mistakes.rules import Codes, Encoder, Rules

__all__ = ["wrong_nans", "wrong_signs"]


def wrong_nans(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat NaN wrongly."""
    fmt = rules.fmt
    if fmt.nan_code is None:
        return

    def of_nan(codes: Callable[[Array], Array | np.uint8]) -> Encoder:
        return lambda x: np.where(np.isnan(x), codes(x), rules(np.where(np.isnan(x), 0, x)))

    largest, sign = np.uint8(fmt.max_code), np.uint8(fmt.sign_bit)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest | sign)
    yield "NaN clamped to the largest value", of_nan(lambda x: largest | rules.signs(x))
    for quiet in (largest, largest | sign):  # the others stay NaN, or become the other largest
        for other in (np.uint8(fmt.nan_code), largest ^ sign ^ (quiet & sign)):
            change = partial(_by_quietness, quiet=quiet, signalling=other)
            yield "NaN clamped to the largest value", of_nan(change)
    yield "NaN encoded as zero", of_nan(lambda x: np.uint8(0))
    if fmt.has_negative_zero:
        yield "NaN encoded as zero", of_nan(rules.signs)
    if fmt.infinity_code is not None:
        infinity = np.uint8(fmt.infinity_code)
        yield "NaN encoded as infinity", of_nan(lambda x: infinity)
        yield "NaN encoded as infinity", of_nan(lambda x: infinity | rules.signs(x))
    if fmt.exponent_bits and fmt.has_zero:
        ones = np.uint8(fmt.exponent_ones << fmt.mantissa_bits)
        name = "NaN encoded by the upper bits of its payload"
        yield name, of_nan(lambda x: ones | rules.signs(x) | _payload(x, fmt.mantissa_bits))


def _by_quietness(x: Float32Array, quiet: np.uint8, signalling: np.uint8) -> Codes:
    upper = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x400000)
    return np.where(upper != 0, quiet, signalling)


def _payload(x: Float32Array, count: int) -> Codes:
    bits = np.ascontiguousarray(x).view(np.uint32) & np.uint32(0x7FFFFF)
    return (bits >> np.uint32(23 - count)).astype(np.uint8)


def wrong_signs(rules: Rules) -> Iterator[tuple[str, Encoder]]:
    """Make the encoders that treat signs, or zeros, wrongly."""
    fmt = rules.fmt
    sign = np.uint8(fmt.sign_bit)
    if fmt.has_negative_zero:
        yield "-0 encoded as 0", lambda x: rules.unsigned_zero(rules(x))
        yield "-0 encoded as 0", lambda x: np.where(x == 0, np.uint8(0), rules(x))
        yield (
            "sign of underflow lost",
            lambda x: np.where(x != 0, rules.unsigned_zero(rules(x)), rules(x)),
        )
    elif fmt.signed and fmt.has_zero:
        yield (
            "-0 encoded as NaN",
            lambda x: np.where(np.signbit(x) & (rules(x) == 0), sign, rules(x)),
        )
        yield (
            "-0 encoded as NaN",
            lambda x: np.where(np.signbit(x) & (x == 0), sign, rules(x)),
        )
    if fmt.signed:
        yield (
            "sign lost",
            lambda x: np.where(np.isnan(fmt.values[rules(x)]), rules(x), rules(x) & ~sign),
        )
        yield "negative numbers in two's complement", lambda x: _twos_complement(rules, x)
    else:
        yield "negative numbers encoded by their magnitude", lambda x: rules(np.abs(x))
        yield (
            "negative numbers clamped to the smallest value",
            lambda x: np.where(np.signbit(x) & ~np.isnan(x), np.uint8(0), rules(x)),
        )
    if not fmt.has_zero:
        smallest = np.float64(fmt.min_positive)
        yield (
            "zero encoded as the smallest value",
            lambda x: np.where(x == 0, np.uint8(0), rules(np.where(x == 0, smallest, x))),
        )


def _twos_complement(rules: Rules, x: Array) -> Codes:
    codes = rules(x)
    magnitude = codes & rules.magnitude
    ones = np.uint8((1 << rules.fmt.bits) - 1)
    negative = (codes & np.uint8(rules.fmt.sign_bit) != 0) & ~np.isnan(rules.fmt.values[codes])
    return np.where(negative, (~magnitude + np.uint8(1)) & ones, codes)

"""Rounding to a format by integers: shifts of significands, as SoftFloat does it.

It shares no code with the package. A row of :data:`FACTS` is what a specification says of a
format. A number is a sign and an integer times a power of two; the step of the result is known
from its exponent, a shift leaves the significand, and the bits that were shifted out say how to
round. A carry out of the significand is a carry into the exponent, as the code is one integer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Facts(NamedTuple):
    """Widths and bias; the largest code; the codes of infinity, NaN and the quiet NaN."""

    e: int
    m: int
    bias: int
    largest: int
    infinity: int | None = None
    nan: int | None = None
    quiet: int | None = None
    signed: bool = True
    minus_zero: bool = True
    zero: bool = True

    @property
    def sign_bit(self) -> int:
        return 1 << (self.e + self.m)


FACTS = {
    "E4M3FN": Facts(4, 3, 7, 0x7E, None, 0x7F, 0x7F),
    "E5M2": Facts(5, 2, 15, 0x7B, 0x7C, 0x7F, 0x7E),
    "E4M3FNUZ": Facts(4, 3, 8, 0x7F, None, 0x80, 0x80, minus_zero=False),
    "E5M2FNUZ": Facts(5, 2, 16, 0x7F, None, 0x80, 0x80, minus_zero=False),
    "E4M3": Facts(4, 3, 7, 0x77, 0x78, 0x7F, 0x7C),
    "E3M4": Facts(3, 4, 3, 0x6F, 0x70, 0x7F, 0x78),
    "E4M3B11FNUZ": Facts(4, 3, 11, 0x7F, None, 0x80, 0x80, minus_zero=False),
    "E8M0FNU": Facts(8, 0, 127, 0xFE, None, 0xFF, 0xFF, signed=False, zero=False),
    "E2M3": Facts(2, 3, 1, 0x1F),
    "E3M2": Facts(3, 2, 3, 0x1F),
    "E2M1": Facts(2, 1, 1, 0x7),
    "E3M4FN": Facts(3, 4, 3, 0x7E, None, 0x7F, 0x7F),
    "P3109_K8P3": Facts(5, 2, 16, 0x7E, 0x7F, 0x80, 0x80, minus_zero=False),
    "P3109_K8P4": Facts(4, 3, 8, 0x7E, 0x7F, 0x80, 0x80, minus_zero=False),
    "UE4M3": Facts(4, 3, 7, 0x7E, None, 0x7F, 0x7F, signed=False),
}


class Numbers(NamedTuple):
    """Numbers by their parts: ``(-1)^negative * significand * 2^exponent``, or a special."""

    negative: Array
    significand: Array
    exponent: Array
    infinite: Array
    nan: Array


def parts_of(bits: Array, mantissa_bits: int, exponent_bits: int) -> Numbers:
    """Take the bits of numbers of an IEEE type apart."""
    bits = np.asarray(bits).astype(np.uint64)
    m, top = np.uint64(mantissa_bits), (1 << exponent_bits) - 1
    exponent = (bits >> m).astype(np.int64) & top
    mantissa = (bits & np.uint64((1 << mantissa_bits) - 1)).astype(np.int64)
    bias = (1 << (exponent_bits - 1)) - 1
    return Numbers(
        negative=bits >> np.uint64(mantissa_bits + exponent_bits) != 0,
        significand=mantissa | (exponent > 0).astype(np.int64) << mantissa_bits,
        exponent=np.maximum(exponent, 1) - bias - mantissa_bits,
        infinite=(exponent == top) & (mantissa == 0),
        nan=(exponent == top) & (mantissa != 0),
    )


def _cut(x: Numbers, facts: Facts) -> tuple[Array, Array, Array, Array]:
    """Return the code base, the significand cut off, the rest, and the bits it has.

    The rest is a number of ``shift`` bits: of a unit of the significand, ``rest / 2^shift``.
    """
    significand = np.where(x.infinite | x.nan, 0, x.significand)
    width = np.frexp(significand.astype(np.float64))[1].astype(np.int64)  # below 2^53: exact
    smallest = 1 - facts.bias if facts.zero else -facts.bias
    exponent = np.maximum(x.exponent + width - 1, smallest)
    exponent = np.where(significand == 0, smallest, exponent)
    shift = exponent - facts.m - x.exponent
    left = np.minimum(np.maximum(-shift, 0), 10)
    # Beyond 62 bits nothing is left but a rest that is less than a quarter.
    significand, shift = significand << left, np.minimum(np.maximum(shift, 0), 62)
    kept = significand >> shift
    base = (exponent - smallest) << facts.m
    return base, kept, significand - (kept << shift), shift


def codes(
    x: Numbers,
    name: str,
    rounding: str,
    saturate: bool,
    overflow: str = "ieee",
    random_bits: Array | None = None,
    bit_count: int = 0,
) -> Array:
    """Return the codes of numbers; where there is none, for a NaN, -1."""
    facts = FACTS[name]
    base, kept, rest, shift = _cut(x, facts)
    one = np.int64(1) << shift
    odd = kept % 2 == 1
    if rounding == "stochastic":
        # The first bits of the rest, by another shift; with the given ones, is there a carry?
        right = np.maximum(shift - bit_count, 0)
        left = np.maximum(bit_count - shift, 0)
        first = (rest >> right).astype(object) << left.astype(object)
        up = (first + random_bits.astype(object) >= 1 << bit_count).astype(bool)
    else:
        up = {
            "nearest": (2 * rest > one) | ((2 * rest == one) & odd),
            "nearest_away": 2 * rest >= one,
            "nearest_toward_zero": 2 * rest > one,
            "toward_zero": np.zeros(rest.shape, bool),
            "up": (rest > 0) & ~x.negative,
            "down": (rest > 0) & x.negative,
            "odd": (rest > 0) & ~odd,
        }[rounding]
    up &= shift > 0
    code = base + kept + up
    if not facts.zero:
        code = np.maximum(code - (1 << facts.m), 0)
    too_large = code > facts.largest
    special = next(c for c in (facts.infinity, facts.quiet, facts.largest) if c is not None)
    to_special = too_large.copy()
    if overflow == "ieee":
        if rounding in ("toward_zero", "odd"):
            to_special[:] = False
        elif rounding in ("up", "down"):
            to_special &= x.negative == (rounding == "down")
    code = np.where(too_large, facts.largest, code)
    code = np.where((to_special | x.infinite) & (not saturate), special, code)
    code = np.where(x.infinite & saturate, facts.largest, code)
    nan = facts.nan if saturate else facts.quiet
    zero = ~x.infinite & ~x.nan & (x.significand == 0)
    if facts.signed:
        signed = x.negative.copy()
        if not facts.minus_zero:
            signed &= (code != 0) & (code != facts.sign_bit)
        code = np.where(signed, code | facts.sign_bit, code)
    else:
        code = np.where(x.negative & ~zero & ~x.nan, 0 if nan is None else nan, code)
    if not facts.zero and not saturate:
        code = np.where(zero, nan, code)
    if nan is None:
        return np.where(x.nan, -1, code)
    own_sign = not saturate and facts.signed and facts.minus_zero
    return np.where(x.nan, nan | np.where(x.negative & own_sign, facts.sign_bit, 0), code)


def integer_codes(
    x: Numbers, low: int, high: int, fraction_bits: int, rounding: str
) -> tuple[Array, Array]:
    """Round to a multiple of ``2^-fraction_bits``; return codes and whether they saturated."""
    shift = np.clip(-x.exponent - fraction_bits, -30, 62)
    significand = x.significand << np.maximum(-shift, 0)
    shift = np.maximum(shift, 0)
    kept = significand >> shift
    rest, one, odd = significand - (kept << shift), np.int64(1) << shift, kept % 2 == 1
    up = {
        "nearest": (2 * rest > one) | ((2 * rest == one) & odd),
        "nearest_away": 2 * rest >= one,
        "nearest_toward_zero": 2 * rest > one,
        "toward_zero": np.zeros(rest.shape, bool),
        "up": (rest > 0) & ~x.negative,
        "down": (rest > 0) & x.negative,
        "odd": (rest > 0) & ~odd,
    }[rounding] & (shift > 0)
    whole = np.where(x.infinite, 1 << 40, kept + up)
    code = np.where(x.negative, -whole, whole)
    return np.clip(code, low, high), (code < low) | (code > high)

"""The right encoder that every mistake starts from, as asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, flag, integer
from npfp8.arrays import Array, Float32Array
from npfp8.codec import ROUNDINGS, encode
from npfp8.formats import FloatFormat, as_float_format

__all__ = ["NEAREST", "Codes", "Encoder", "Rules", "rules_of"]

Codes = npt.NDArray[np.uint8]
Encoder = Callable[[Float32Array], Array]

#: The roundings to nearest, which differ in ties.
NEAREST = ("nearest", "nearest_away", "nearest_toward_zero")


@dataclass(frozen=True, eq=False)
class Rules:
    """The behaviour of a correct encoder: the arguments of :func:`npfp8.encode`."""

    fmt: FloatFormat
    saturate: bool
    rounding: str
    overflow: str = "ieee"
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None
    bit_count: int | None = None

    def __call__(self, x: Array) -> Codes:
        """Encode as asked for."""
        return encode(
            x,
            self.fmt,
            self.saturate,
            rounding=self.rounding,
            overflow=self.overflow,
            random_bits=self.random_bits,
            bit_count=self.bit_count,
        )

    def by(self, x: Array, rounding: str, saturate: bool | None = None) -> Codes:
        """Encode by another rounding, and perhaps saturation."""
        saturate = self.saturate if saturate is None else saturate
        overflow = "ieee" if saturate else self.overflow
        return encode(x, self.fmt, saturate, rounding=rounding, overflow=overflow)

    def toward_zero(self, x: Array) -> Codes:
        """Encode toward zero, saturating."""
        return encode(x, self.fmt, rounding="toward_zero")

    def infinite(self, x: Array) -> Codes:
        """Return the codes of infinities of the signs of ``x`` that do not saturate."""
        infinities = np.copysign(np.float32(np.inf), x)
        return encode(infinities, self.fmt, False, rounding="nearest")

    @property
    def nearest(self) -> bool:
        """Whether it rounds to nearest, whatever the ties."""
        return self.rounding in NEAREST

    @property
    def directed(self) -> bool:
        """Whether it rounds neither to nearest nor stochastically."""
        return self.rounding not in (*NEAREST, "stochastic")

    @property
    def magnitude(self) -> np.uint8:
        """The bits of a code below the sign."""
        return np.uint8((self.fmt.sign_bit or 1 << self.fmt.bits) - 1)

    def signs(self, x: Array) -> Codes:
        """Return the sign bits of codes of ``x``."""
        return np.where(np.signbit(x), np.uint8(self.fmt.sign_bit), np.uint8(0))

    def unsigned_zero(self, codes: Codes) -> Codes:
        """Replace the code of the sign alone, -0 in most formats, by that of 0."""
        return np.where(codes == self.fmt.sign_bit, np.uint8(0), codes)


def rules_of(
    fmt: FloatFormat | str,
    saturate: bool,
    rounding: str,
    overflow: str,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> Rules:
    """Check the arguments of :func:`npfp8.encode`, and return the encoder that has them.

    Stochastic rounding needs given bits: a mistake is found by its codes, so the right ones
    must be known.
    """
    fmt, saturate = as_float_format(fmt), flag("saturate", saturate)
    rounding = choice("rounding", rounding, ROUNDINGS)
    overflow = choice("overflow", overflow, ("ieee", "special"))
    if saturate and overflow != "ieee":
        raise ValueError(f"overflow: expected 'ieee' with saturate=True, found {overflow!r}")
    if rounding == "stochastic":
        if random_bits is None or bit_count is None:
            raise ValueError("random_bits: expected given bits for stochastic rounding, found None")
        bit_count = integer("bit_count", bit_count)
    return Rules(fmt, saturate, rounding, overflow, random_bits, bit_count)

"""Number formats of eight bits, each described once; everything else follows.

A :class:`FloatFormat` states the few facts that a specification states (widths,
bias, which codes are special). The value of every code, the largest finite
value and the rounding boundaries are derived from those facts, never listed.

Sources: *FP8 Formats for Deep Learning* (arXiv 2209.05433), section 3 and
table 1; *OCP 8-bit Floating Point Specification (OFP8)* revision 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["E4M3FN", "E5M2", "INT8", "UINT8", "FloatFormat", "Format", "IntFormat"]


@dataclass(frozen=True)
class FloatFormat:
    """An 8-bit floating-point format: sign, exponent, mantissa, from high to low bits.

    A code with exponent field ``e`` and mantissa field ``m`` has the value
    ``(-1)^sign * 2^(e - bias) * (1 + m / 2^mantissa_bits)``, and for ``e == 0``
    the subnormal value ``(-1)^sign * 2^(1 - bias) * m / 2^mantissa_bits``,
    unless it is an infinity or one of ``nan_codes``.

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        Field widths; with the sign bit they make 8.
    bias : int
        Exponent bias.
    has_infinity : bool
        Whether the all-ones exponent with a zero mantissa is an infinity.
    nan_codes : tuple of int
        Every code that is a NaN, of both signs.
    name : str
        For messages and reports; two formats that differ in name only are equal.

    Raises
    ------
    ValueError
        If the widths do not make 8 bits, there is no NaN code below 0x80, or
        what encoding relies on does not hold: at most 5 mantissa bits, the
        range within bfloat16's, positive finite codes contiguous from 0.

    Examples
    --------
    >>> from npfp8 import E4M3FN, E5M2
    >>> E4M3FN.max, E4M3FN.min_normal, E4M3FN.min_subnormal
    (448.0, 0.015625, 0.001953125)
    >>> E5M2.max, E5M2.has_infinity
    (57344.0, True)
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    has_infinity: bool = False
    nan_codes: tuple[int, ...] = ()
    name: str = field(default="custom", compare=False)

    code_dtype = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        if not 1 <= self.mantissa_bits <= 5:
            raise ValueError(
                f"{self.name}: expected 1 to 5 mantissa bits, found {self.mantissa_bits}"
            )
        if 1 + self.exponent_bits + self.mantissa_bits != 8:
            raise ValueError(
                f"{self.name}: expected 1 + exponent_bits + mantissa_bits == 8, found "
                f"1 + {self.exponent_bits} + {self.mantissa_bits}"
            )
        if bad := [code for code in self.nan_codes if not 0 <= code <= 0xFF]:
            raise ValueError(f"{self.name}: expected NaN codes in 0..255, found {bad}")
        if not self.positive_nan_codes:
            raise ValueError(f"{self.name}: expected a NaN code below 0x80, found {self.nan_codes}")
        if not -126 < -self.bias - self.mantissa_bits < self.exponent_ones - self.bias < 127:
            raise ValueError(f"{self.name}: bias {self.bias} leads out of the range of bfloat16")
        finite = np.isfinite(self.values[:128])
        if not finite[: self.max_code + 1].all():
            raise ValueError(f"{self.name}: the positive finite codes are not contiguous from 0")

    @cached_property
    def values(self) -> npt.NDArray[np.float64]:
        """The value of each of the 256 codes, float64, read-only; exact."""
        codes = np.arange(256)
        mantissa_ones = (1 << self.mantissa_bits) - 1
        mantissa = codes & mantissa_ones
        exponent = (codes >> self.mantissa_bits) & self.exponent_ones
        normal = exponent > 0
        significand = np.where(normal, mantissa + (mantissa_ones + 1), mantissa)
        values = np.ldexp(
            significand.astype(np.float64),
            np.maximum(exponent, 1) - self.bias - self.mantissa_bits,
        )
        if self.has_infinity:
            values[(exponent == self.exponent_ones) & (mantissa == 0)] = np.inf
        values = np.where(codes & 0x80, -values, values)
        values[list(self.nan_codes)] = np.nan
        values.flags.writeable = False
        return values

    @property
    def exponent_ones(self) -> int:
        """The exponent field with every bit set."""
        return (1 << self.exponent_bits) - 1

    @cached_property
    def max_code(self) -> int:
        """The code of the largest finite value."""
        return int(np.flatnonzero(np.isfinite(self.values[:128]))[-1])

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return float(self.values[self.max_code])

    @cached_property
    def min_normal(self) -> float:
        """The smallest positive normal value."""
        return float(2.0 ** (1 - self.bias))

    @cached_property
    def min_subnormal(self) -> float:
        """The smallest positive value; every finite value is an integer multiple of it."""
        return float(2.0 ** (1 - self.bias - self.mantissa_bits))

    @cached_property
    def infinity_code(self) -> int | None:
        """The code of +infinity, or None where the format has none."""
        return self.max_code + 1 if self.has_infinity else None

    @cached_property
    def positive_nan_codes(self) -> tuple[int, ...]:
        """The NaN codes whose sign bit is clear, ascending."""
        return tuple(sorted(code for code in self.nan_codes if code < 0x80))

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class IntFormat:
    """An 8-bit integer format: its codes are the integers themselves.

    Parameters
    ----------
    min_code, max_code : int
        The range that encoding saturates to. INT8 leaves -128 unused so that
        it is symmetric: ``-x`` always encodes to minus the code of ``x``.
    dtype : str
        ``"int8"`` or ``"uint8"``.
    name : str
        For messages and reports.
    """

    min_code: int
    max_code: int
    dtype: str
    name: str = field(default="custom", compare=False)

    def __post_init__(self) -> None:
        if self.dtype not in ("int8", "uint8"):
            raise ValueError(f"{self.name}: expected dtype int8 or uint8, found {self.dtype!r}")
        limits = np.iinfo(self.dtype)
        if not limits.min <= self.min_code < self.max_code <= limits.max:
            raise ValueError(
                f"{self.name}: expected {limits.min} <= min_code < max_code <= {limits.max}, "
                f"found {self.min_code} and {self.max_code}"
            )

    @cached_property
    def code_dtype(self) -> np.dtype[np.int8 | np.uint8]:
        """Dtype of the code arrays."""
        return np.dtype(self.dtype)

    @property
    def max(self) -> float:
        """The largest value."""
        return float(self.max_code)

    @property
    def min_subnormal(self) -> float:
        """The step: every value is an integer multiple of it."""
        return 1.0

    def __str__(self) -> str:
        return self.name


#: What a quantized tensor can be made of.
Format = FloatFormat | IntFormat

#: OFP8 E4M3: no infinity, one NaN per sign, largest value 448.
E4M3FN = FloatFormat(4, 3, bias=7, nan_codes=(0x7F, 0xFF), name="E4M3FN")

#: OFP8 E5M2: IEEE 754 in eight bits, largest value 57344.
E5M2 = FloatFormat(
    5,
    2,
    bias=15,
    has_infinity=True,
    nan_codes=(0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF),
    name="E5M2",
)

#: Symmetric signed integers, -127..127.
INT8 = IntFormat(-127, 127, "int8", name="INT8")

#: Unsigned integers, 0..255, for asymmetric quantization with a zero point.
UINT8 = IntFormat(0, 255, "uint8", name="UINT8")

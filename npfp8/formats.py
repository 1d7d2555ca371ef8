"""Number formats of up to eight bits, each described once; everything else follows.

A :class:`FloatFormat` states the few facts that a specification states (widths,
bias, which codes are special). The value of every code, the largest finite
value and the rounding boundaries are derived from those facts, never listed.

Sources: *FP8 Formats for Deep Learning* (arXiv 2209.05433), section 3 and
table 1; *OCP 8-bit Floating Point Specification (OFP8)* revision 1.0; *OCP
Microscaling Formats (MX) Specification* version 1.0, section 5; *8-bit
Numerical Formats for Deep Neural Networks* (arXiv 2206.02915) for the FNUZ
formats; IEEE P3109's interim report on 8-bit formats (binary8p3, binary8p4); ml_dtypes for
the names of most.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import flag, integer, require, wrong_type
from npfp8.arrays import Float64Array
from npfp8.names import match, suggestion

__all__ = [
    "E2M1",
    "E2M3",
    "E3M2",
    "E3M4",
    "E3M4FN",
    "E4M3",
    "E4M3B11FNUZ",
    "E4M3FN",
    "E4M3FNUZ",
    "E5M2",
    "E5M2FNUZ",
    "E8M0FNU",
    "FIXED8",
    "FLOAT_FORMATS",
    "FORMATS",
    "INT4",
    "INT8",
    "P3109_K8P3",
    "P3109_K8P4",
    "UE4M3",
    "UINT4",
    "UINT8",
    "FloatFormat",
    "Format",
    "IntFormat",
    "as_float_format",
    "as_format",
    "as_int_format",
    "describe",
    "values",
]


@dataclass(frozen=True, repr=False)
class FloatFormat:
    """A floating-point format of at most 8 bits: sign, exponent, mantissa, from high to low.

    A code with exponent field ``e`` and mantissa field ``m`` has the value
    ``(-1)^sign * 2^(e - bias) * (1 + m / 2^mantissa_bits)``, and for ``e == 0``
    the subnormal value ``(-1)^sign * 2^(1 - bias) * m / 2^mantissa_bits``,
    unless it is an infinity or one of ``nan_codes``. A format of fewer than 8
    bits has its codes in the low bits of a uint8. Formats are immutable: copying or
    unpickling one makes it anew from the parameters, with its read-only tables.

    Parameters
    ----------
    exponent_bits, mantissa_bits : int
        The widths of the fields. Together with the sign bit, if there is one, at most 8.
    bias : int
        Exponent bias.
    has_infinity : bool
        Whether there are infinities. Their code, without the sign, has an all-ones exponent
        and a zero mantissa.
    nan_codes : tuple of int
        Every code that is a NaN, of both signs, in any order. They are kept in rising
        order, each once. If the code of -0 is among them (the FNUZ formats), the
        format has no negative zero.
    signed : bool
        Whether there is a sign bit.
    has_zero : bool
        Whether exponent field 0 holds zero and the subnormals. If not, 0 is an
        exponent like any other (E8M0FNU): code 0 is the smallest positive value, and
        in a signed format the sign bit alone is that value negated.
    name : str
        The name in messages and reports. Formats that differ only in name are equal.
    infinity_on_top : bool
        With ``has_infinity``: whether the code of the infinity, without the sign, has all
        bits set instead (IEEE P3109), so that the mantissas below it are numbers.

    Raises
    ------
    ValueError
        If the widths are not as stated; if the positive finite codes are not
        contiguous from 0, or the negative ones are not their mirror image; if a NaN
        has the code of the infinity; or if a rounding boundary is not a float32 of few
        enough bits for a table of 2^18 entries (which limits the exponents to about
        those of float32).
    TypeError
        If a width, the bias or the code of a NaN is not an integer.

    Examples
    --------
    >>> from npfp8 import E4M3FN, E5M2, FloatFormat
    >>> E4M3FN.max, E4M3FN.min_normal, E4M3FN.min_subnormal
    (448.0, 0.015625, 0.001953125)
    >>> E5M2.max, E5M2.has_infinity
    (57344.0, True)
    >>> FloatFormat(3, 2, bias=3, name="six bits").values.size
    64
    """

    exponent_bits: int
    mantissa_bits: int
    bias: int
    has_infinity: bool = False
    nan_codes: tuple[int, ...] = ()
    signed: bool = True
    has_zero: bool = True
    name: str = field(default="custom", compare=False)
    infinity_on_top: bool = False

    code_dtype = np.dtype(np.uint8)

    def __post_init__(self) -> None:
        self._normalize()
        if self.exponent_bits < 0 or self.mantissa_bits < 0 or not 2 <= self.bits <= 8:
            raise ValueError(
                f"{self.name}: expected field widths of 2 to 8 bits in all, found "
                f"{int(self.signed)} + {self.exponent_bits} + {self.mantissa_bits}"
            )
        if self.exponent_bits == 0 and (self.has_infinity or not self.has_zero):
            raise ValueError(f"{self.name}: expected exponent bits, found none")
        if abs(self.bias) > 1 << 16:  # far beyond float32, and within NumPy's exponents
            raise ValueError(f"{self.name}: expected a bias within float32, found {self.bias}")
        if bad := [code for code in self.nan_codes if not 0 <= code < 1 << self.bits]:
            raise ValueError(f"{self.name}: expected NaN codes of {self.bits} bits, found {bad}")
        if self.infinity_on_top and not self.has_infinity:
            raise ValueError(f"{self.name}: expected infinity_on_top with has_infinity only")
        if self.infinity_code in self.nan_codes:
            raise ValueError(f"{self.name}: expected a code for infinity, found it to be a NaN's")
        positive = self.values[: self._positive_codes]
        if not np.isfinite(positive[0]):
            raise ValueError(f"{self.name}: expected code 0 to be finite, found {positive[0]}")
        if self.max_code < 1 or not np.isfinite(positive[: self.max_code]).all():
            raise ValueError(
                f"{self.name}: expected positive finite codes contiguous from 0, two at least"
            )
        if self.signed:
            mirrored = -self.values[self.sign_bit :]
            first = int(self.has_zero)  # -0 may be a NaN's code instead
            if not np.array_equal(mirrored[first:], positive[first:], equal_nan=True):
                raise ValueError(f"{self.name}: expected specials alike in both signs")
        if self.key_shift < 14:
            raise ValueError(
                f"{self.name}: bias {self.bias} leads out of the range of the codec's float32 keys"
            )
        self._make_tables()

    def _normalize(self) -> None:
        """Make equal descriptions equal objects, as tables are kept by format."""
        set_field = object.__setattr__
        for name in ("exponent_bits", "mantissa_bits", "bias"):
            set_field(self, name, integer(name, getattr(self, name)))
        for name in ("has_infinity", "signed", "has_zero", "infinity_on_top"):
            set_field(self, name, flag(name, getattr(self, name)))
        require("name", self.name, str, "a str")
        try:
            codes = {index(code) for code in self.nan_codes}
        except TypeError:
            raise wrong_type("nan_codes", "a tuple of integers", self.nan_codes) from None
        set_field(self, "nan_codes", tuple(sorted(codes)))

    def _make_tables(self) -> None:
        """Compute all cached properties now: a fork could copy the lock of a thread that does."""
        for name, attribute in vars(FloatFormat).items():
            if isinstance(attribute, cached_property):
                getattr(self, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return FloatFormat, tuple(getattr(self, one.name) for one in fields(self))

    @cached_property
    def bits(self) -> int:
        """The width of a code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @cached_property
    def sign_bit(self) -> int:
        """The sign bit of a code; 0 if the format has none."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def has_zero_point(self) -> bool:
        """Whether the format is used with a zero point: no float format is."""
        return False

    @property
    def _positive_codes(self) -> int:
        """The number of codes without the sign bit."""
        return 1 << (self.bits - int(self.signed))

    @property
    def exponent_ones(self) -> int:
        """The exponent field with every bit set."""
        return (1 << self.exponent_bits) - 1

    @cached_property
    def values(self) -> Float64Array:
        """The exact value of each code, in the order of the codes; float64, read-only."""
        codes = np.arange(1 << self.bits)
        hidden = 1 << self.mantissa_bits
        mantissa = codes & (hidden - 1)
        exponent = (codes >> self.mantissa_bits) & self.exponent_ones
        normal = (exponent > 0) | (not self.has_zero)
        significand = np.where(normal, mantissa + hidden, mantissa)
        shift = np.where(normal, exponent, 1) - self.bias - self.mantissa_bits
        values = np.ldexp(significand.astype(np.float64), shift)
        if self.infinity_code is not None:
            values[codes & ~self.sign_bit == self.infinity_code] = np.inf
        values = np.where(codes & self.sign_bit, -values, values)
        values[list(self.nan_codes)] = np.nan
        values.flags.writeable = False
        return values

    @cached_property
    def max_code(self) -> int:
        """The code of the largest finite value."""
        return int(np.flatnonzero(np.isfinite(self.values[: self._positive_codes]))[-1])

    @cached_property
    def grid(self) -> Float64Array:
        """The exact values of codes 0 to ``max_code``, and the one that would follow; read-only."""
        exponent = self.max_code >> self.mantissa_bits
        if self.has_zero:
            exponent = max(exponent, 1)
        step = 2.0 ** (exponent - self.bias - self.mantissa_bits)
        grid = np.append(self.values[: self.max_code + 1], self.max + step)
        grid.flags.writeable = False
        return grid

    @cached_property
    def key_shift(self) -> int:
        """The number of low bits of a float32 that decide nothing but ties, at most 16.

        Every value of :attr:`grid` and every midpoint between two of them has
        that many low bits clear, and one more. 0 if one of them is not a float32.
        """
        midpoints = (self.grid[:-1] + self.grid[1:]) / 2  # exact: one more bit than the grid's
        boundaries = np.concatenate([self.grid[:-1], midpoints])
        with np.errstate(over="ignore", under="ignore"):
            narrow = boundaries.astype(np.float32)
        if not np.array_equal(narrow, boundaries):
            return 0
        used = int(np.bitwise_or.reduce(narrow.view(np.uint32)))
        trailing_zeros = (used & -used).bit_length() - 1
        return min(trailing_zeros - 1, 16)

    @cached_property
    def max(self) -> float:
        """The largest finite value."""
        return float(self.values[self.max_code])

    @cached_property
    def reach(self) -> float:
        """The value that a scale maps a largest magnitude to: :attr:`max`."""
        return self.max

    @cached_property
    def min_normal(self) -> float:
        """The smallest positive normal value; without exponent bits, where it would be."""
        return float(2.0 ** (int(self.has_zero) - self.bias))

    @cached_property
    def min_subnormal(self) -> float:
        """The smallest step: every finite value is a multiple of it."""
        return float(self.min_normal / 2**self.mantissa_bits)

    @cached_property
    def min_positive(self) -> float:
        """The smallest positive value."""
        return float(self.values[int(self.has_zero)])

    @cached_property
    def has_negative_zero(self) -> bool:
        """Whether -0 has a code of its own."""
        return self.signed and self.has_zero and self.sign_bit not in self.nan_codes

    @cached_property
    def infinity_code(self) -> int | None:
        """The code of +infinity; None if the format has none."""
        if not self.has_infinity:
            return None
        if self.infinity_on_top:
            return self._positive_codes - 1
        return self.exponent_ones << self.mantissa_bits

    @cached_property
    def nan_code(self) -> int | None:
        """The code of the positive NaN with the largest payload, else of the only NaN, or None."""
        positive = [code for code in self.nan_codes if not code & self.sign_bit]
        return max(positive or self.nan_codes, default=None)

    @cached_property
    def quiet_nan_code(self) -> int | None:
        """The positive NaN with only the top bit of the mantissa set, else :attr:`nan_code`."""
        quiet = self.exponent_ones << self.mantissa_bits | 1 << self.mantissa_bits >> 1
        return quiet if quiet in self.nan_codes else self.nan_code

    @cached_property
    def is_finite(self) -> npt.NDArray[np.bool_]:
        """Whether each code is a number, not an infinity or a NaN; read-only."""
        finite: npt.NDArray[np.bool_] = np.isfinite(self.values)
        finite.flags.writeable = False
        return finite

    @cached_property
    def magnitude_mask(self) -> np.uint8:
        """The bits of a code except the sign."""
        return np.uint8((self.sign_bit or 256) - 1)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        widths = f"{int(self.signed)}+{self.exponent_bits}+{self.mantissa_bits}"
        return f"<FloatFormat {self.name}: {widths} bits, bias {self.bias}, max {self.max:g}>"


@dataclass(frozen=True, repr=False)
class IntFormat:
    """An integer or fixed-point format of at most 8 bits: its codes are in two's complement.

    The value of a code is ``code / 2^fraction_bits``: the code itself, unless there are
    fraction bits.

    Parameters
    ----------
    min_code, max_code : int
        The range that encoding saturates to. INT8 leaves -128 unused so that
        it is symmetric: ``-x`` always encodes to minus the code of ``x``. INT4 has so few codes
        that it uses all of them.
    dtype : {"int8", "uint8"}
        The dtype of arrays of codes: one code in each byte, also if it has fewer bits.
    name : str
        The name in messages and reports. Formats that differ only in name are equal.
    fraction_bits : int
        The number of bits after the binary point, 0 to 16.

    Raises
    ------
    TypeError, ValueError
        If a limit is not an integer, or the limits are not within the dtype's range.

    Examples
    --------
    >>> from npfp8 import INT8, IntFormat, encode
    >>> INT8.max, INT8.min_subnormal
    (127.0, 1.0)
    >>> encode([-100, 3, 100], IntFormat(-2, 1, "int8", name="two bits"))
    array([-2,  1,  1], dtype=int8)
    """

    min_code: int
    max_code: int
    dtype: str
    name: str = field(default="custom", compare=False)
    fraction_bits: int = 0

    def __post_init__(self) -> None:
        for name in ("min_code", "max_code", "fraction_bits"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        require("name", self.name, str, "a str")
        require("dtype", self.dtype, str, "'int8' or 'uint8'")
        if self.dtype not in ("int8", "uint8"):
            raise ValueError(f"{self.name}: expected dtype int8 or uint8, found {self.dtype!r}")
        limits = np.iinfo(self.dtype)
        if not limits.min <= self.min_code < self.max_code <= limits.max:
            raise ValueError(
                f"{self.name}: expected {limits.min} <= min_code < max_code <= {limits.max}, "
                f"found {self.min_code} and {self.max_code}"
            )
        if not 0 <= self.fraction_bits <= 16:
            raise ValueError(
                f"{self.name}: expected fraction_bits of 0 to 16, found {self.fraction_bits}"
            )
        if self.fraction_bits and self.has_zero_point:
            raise ValueError(f"{self.name}: expected fraction_bits with negative codes only")

    def __reduce__(self) -> tuple[Any, ...]:
        return IntFormat, tuple(getattr(self, one.name) for one in fields(self))

    @cached_property
    def code_dtype(self) -> np.dtype[np.int8 | np.uint8]:
        """The dtype of arrays of codes."""
        return np.dtype(self.dtype)

    @cached_property
    def bits(self) -> int:
        """The width of a code: the fewest bits that hold both limits."""
        if self.dtype == "uint8":
            return self.max_code.bit_length()
        return 1 + max(self.max_code.bit_length(), (-self.min_code - 1).bit_length())

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code of :attr:`bits`; encoding may leave one unused."""
        if self.dtype == "uint8":
            return 0, (1 << self.bits) - 1
        return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1

    @cached_property
    def values(self) -> Float64Array:
        """The value of each code, in the order of the codes' bits; float64, read-only."""
        low, high = self.code_range
        codes = np.concatenate([np.arange(high + 1), np.arange(low, 0)])
        values: Float64Array = codes.astype(np.float64) * self.min_subnormal
        values.flags.writeable = False
        return values

    @property
    def has_zero_point(self) -> bool:
        """Whether the format is used with a zero point: it is if it has no negative numbers."""
        return self.min_code >= 0

    @property
    def max(self) -> float:
        """The largest value."""
        return self.max_code * self.min_subnormal

    @cached_property
    def reach(self) -> float:
        """The value that a scale maps a largest magnitude to.

        It is :attr:`max`; with one more negative code than positive ones, half a step more.
        """
        return self.max + (-self.min_code == self.max_code + 1) * self.min_subnormal / 2

    @property
    def min_subnormal(self) -> float:
        """The step: every value is an integer multiple of it."""
        return float(2.0**-self.fraction_bits)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        codes = f"{self.min_code}..{self.max_code}"
        fraction = f" / 2^{self.fraction_bits}" if self.fraction_bits else ""
        return f"<IntFormat {self.name}: {self.dtype} codes {codes}{fraction}>"


#: A format of the elements of a quantized tensor.
Format = FloatFormat | IntFormat


def _ieee_nans(*positive: int) -> tuple[int, ...]:
    return (*positive, *(code | 0x80 for code in positive))


#: OFP8 E4M3: no infinity, one NaN per sign, largest value 448.
E4M3FN = FloatFormat(4, 3, bias=7, nan_codes=(0x7F, 0xFF), name="E4M3FN")

#: OFP8 E5M2: IEEE 754 in eight bits, largest value 57344.
E5M2 = FloatFormat(
    5, 2, bias=15, has_infinity=True, nan_codes=_ieee_nans(0x7D, 0x7E, 0x7F), name="E5M2"
)

#: E4M3 with the code of -0 as its only NaN, no infinity; bias 8, largest value 240.
E4M3FNUZ = FloatFormat(4, 3, bias=8, nan_codes=(0x80,), name="E4M3FNUZ")

#: E5M2 with the code of -0 as its only NaN, no infinity; bias 16, largest value 57344.
E5M2FNUZ = FloatFormat(5, 2, bias=16, nan_codes=(0x80,), name="E5M2FNUZ")

#: E4M3 as IEEE 754 would have it: infinities and many NaNs, largest value 240.
E4M3 = FloatFormat(
    4, 3, bias=7, has_infinity=True, nan_codes=_ieee_nans(*range(0x79, 0x80)), name="E4M3"
)

#: E3M4 as IEEE 754 would have it; largest value 15.5.
E3M4 = FloatFormat(
    3, 4, bias=3, has_infinity=True, nan_codes=_ieee_nans(*range(0x71, 0x80)), name="E3M4"
)

#: E3M4 without infinity, one NaN per sign, largest value 30 (Shen et al., *Efficient
#: Post-training Quantization with FP8 Formats*, arXiv 2309.14592, table 1).
E3M4FN = FloatFormat(3, 4, bias=3, nan_codes=(0x7F, 0xFF), name="E3M4FN")

#: IEEE P3109's binary8p3, extended and signed: infinities at 0x7F and 0xFF, the only NaN in the
#: place of -0; largest value 49152.
P3109_K8P3 = FloatFormat(
    5, 2, bias=16, has_infinity=True, nan_codes=(0x80,), infinity_on_top=True, name="P3109_K8P3"
)

#: IEEE P3109's binary8p4, extended and signed, alike; largest value 224.
P3109_K8P4 = FloatFormat(
    4, 3, bias=8, has_infinity=True, nan_codes=(0x80,), infinity_on_top=True, name="P3109_K8P4"
)

#: E4M3FNUZ with bias 11; largest value 30.
E4M3B11FNUZ = FloatFormat(4, 3, bias=11, nan_codes=(0x80,), name="E4M3B11FNUZ")

#: OCP MX's scale: a power of two, no sign, no zero, one NaN.
E8M0FNU = FloatFormat(
    8, 0, bias=127, nan_codes=(0xFF,), signed=False, has_zero=False, name="E8M0FNU"
)

#: NVFP4's scale in PTX's words: E4M3FN without the sign, 7 bits, one NaN; largest value 448.
UE4M3 = FloatFormat(4, 3, bias=7, nan_codes=(0x7F,), signed=False, name="UE4M3")

#: OCP MX's FP6 with 3 mantissa bits; largest value 7.5; every code a number.
E2M3 = FloatFormat(2, 3, bias=1, name="E2M3")

#: OCP MX's FP6 with 2 mantissa bits; largest value 28; every code a number.
E3M2 = FloatFormat(3, 2, bias=3, name="E3M2")

#: OCP MX's FP4; largest value 6; every code a number.
E2M1 = FloatFormat(2, 1, bias=1, name="E2M1")

#: Symmetric signed integers, -127..127.
INT8 = IntFormat(-127, 127, "int8", name="INT8")

#: Unsigned integers, 0..255, for asymmetric quantization with a zero point.
UINT8 = IntFormat(0, 255, "uint8", name="UINT8")

#: Signed integers of 4 bits, -8..7, as ONNX and compressed-tensors have them.
INT4 = IntFormat(-8, 7, "int8", name="INT4")

#: Unsigned integers of 4 bits, 0..15, for asymmetric quantization with a zero point.
UINT4 = IntFormat(0, 15, "uint8", name="UINT4")

#: OCP MX's INT8: fixed point with 6 fraction bits, -1.984375 to 1.984375. The code -128 (-2) is
#: read and never written, as the specification allows and microxcaling does.
FIXED8 = IntFormat(-127, 127, "int8", name="FIXED8", fraction_bits=6)

#: The float formats above, by name.
FLOAT_FORMATS = {
    fmt.name: fmt
    for fmt in (
        E4M3FN,
        E5M2,
        E4M3FNUZ,
        E5M2FNUZ,
        E4M3,
        E3M4,
        E4M3B11FNUZ,
        E8M0FNU,
        E2M3,
        E3M2,
        E2M1,
        E3M4FN,
        P3109_K8P3,
        P3109_K8P4,
        UE4M3,
    )
}

#: Every format above, by name.
FORMATS: dict[str, Format] = {
    **FLOAT_FORMATS,
    **{fmt.name: fmt for fmt in (INT8, UINT8, FIXED8, INT4, UINT4)},
}


#: Names that others use for another format than the one that has the name here: they are
#: accepted only as the format itself spells them.
_AMBIGUOUS = {"e4m3": (E4M3FN, E4M3)}


def as_format(fmt: Format | str, argument: str = "fmt") -> Format:
    """Return a format that is given as such or by its name, in upper or lower case.

    Every function that takes a format looks it up here.

    Parameters
    ----------
    fmt : FloatFormat, IntFormat or str
        "e4m3" is refused, as it is the recipe of E4M3FN and, in lower case, the name of
        another format. Write "E4M3FN" (OCP, largest value 448) or "E4M3" (IEEE style, 240).
    argument : str
        The name of the argument, for the error.

    Returns
    -------
    FloatFormat or IntFormat

    Raises
    ------
    TypeError
        If ``fmt`` is neither a format nor a str.
    ValueError
        If no format has the name; suggests the nearest one.

    Examples
    --------
    >>> from npfp8.formats import as_format
    >>> as_format("e4m3fn")
    <FloatFormat E4M3FN: 1+4+3 bits, bias 7, max 448>
    >>> as_format("E4M3NF")
    Traceback (most recent call last):
    ...
    ValueError: fmt: expected a format (E4M3FN, E5M2, E4M3FNUZ, E5M2FNUZ, E4M3, E3M4, \
E4M3B11FNUZ, E8M0FNU, E2M3, E3M2, E2M1, E3M4FN, P3109_K8P3, P3109_K8P4, UE4M3, INT8, UINT8, \
FIXED8, INT4, UINT4), found 'E4M3NF'; did you mean 'E4M3FN'?
    """
    if isinstance(fmt, (FloatFormat, IntFormat)):
        return fmt
    if not isinstance(fmt, str):
        raise wrong_type(argument, "a format or its name, such as 'E4M3FN'", fmt)
    name = match(fmt, FORMATS)
    if name is None:
        raise ValueError(
            f"{argument}: expected a format ({', '.join(FORMATS)}), found {fmt!r}"
            f"{suggestion(fmt, FORMATS)}"
        )
    meanings = _AMBIGUOUS.get(name.casefold(), ())
    if meanings and fmt != name:
        which = " or ".join(f"{other.name!r} (largest value {other.max:g})" for other in meanings)
        raise ValueError(f"{argument}: expected {which}, found {fmt!r}, which may mean either")
    return FORMATS[name]


def as_float_format(fmt: FloatFormat | str, argument: str = "fmt") -> FloatFormat:
    """Return a float format that is given as such or by its name; see :func:`as_format`.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_format`; also for an integer format.

    Examples
    --------
    >>> from npfp8.formats import as_float_format
    >>> as_float_format("e5m2").max
    57344.0
    """
    if isinstance(fmt, FloatFormat):
        return fmt
    found = as_format(fmt, argument)
    if not isinstance(found, FloatFormat):
        raise TypeError(f"{argument}: expected a float format, found {found}")
    return found


def as_int_format(fmt: IntFormat | str, argument: str = "fmt") -> IntFormat:
    """Return an integer format that is given as such or by its name; see :func:`as_format`.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_format`; also for a float format.

    Examples
    --------
    >>> from npfp8.formats import as_int_format
    >>> as_int_format("uint8").max_code
    255
    """
    if isinstance(fmt, IntFormat):
        return fmt
    found = as_format(fmt, argument)
    if not isinstance(found, IntFormat):
        raise TypeError(f"{argument}: expected an integer format, found {found}")
    return found


def values(fmt: Format | str) -> Float64Array:
    """Return the value of every code of a format, in the order of the codes' bits.

    Parameters
    ----------
    fmt : FloatFormat, IntFormat or str
        A format or its name.

    Returns
    -------
    ndarray of float64, (2^bits,), read-only
        Exact; NaN for a NaN's code.

    Raises
    ------
    TypeError, ValueError
        As :func:`as_format`.

    Examples
    --------
    >>> from npfp8 import E2M1, values
    >>> values(E2M1)[:8]
    array([0. , 0.5, 1. , 1.5, 2. , 3. , 4. , 6. ])
    """
    return as_format(fmt).values


def describe(fmt: FloatFormat | str) -> dict[str, Any]:
    """Return the properties of a float format, as a specification tabulates them.

    Parameters
    ----------
    fmt : FloatFormat or str
        A float format or its name.

    Returns
    -------
    dict
        ``name``, ``bits``, ``signed``, ``exponent_bits``, ``mantissa_bits``,
        ``bias``, ``max``, ``min_normal``, ``min_subnormal`` (None where there
        are no subnormals), ``negative_zero``, ``infinity_codes``,
        ``nan_codes``, ``finite_values`` (the number of codes that are numbers; +0 and
        -0 count as two).

    Raises
    ------
    TypeError, ValueError
        As :func:`as_float_format`.

    Examples
    --------
    >>> from npfp8 import E5M2, describe
    >>> for key, value in describe(E5M2).items():
    ...     print(f"{key:<16}{value}")
    name            E5M2
    bits            8
    signed          True
    exponent_bits   5
    mantissa_bits   2
    bias            15
    max             57344.0
    min_normal      6.103515625e-05
    min_subnormal   1.52587890625e-05
    negative_zero   True
    infinity_codes  (124, 252)
    nan_codes       (125, 126, 127, 253, 254, 255)
    finite_values   248
    """
    fmt = as_float_format(fmt)
    return {
        "name": fmt.name,
        "bits": fmt.bits,
        "signed": fmt.signed,
        "exponent_bits": fmt.exponent_bits,
        "mantissa_bits": fmt.mantissa_bits,
        "bias": fmt.bias,
        "max": fmt.max,
        "min_normal": fmt.min_normal,
        "min_subnormal": fmt.min_subnormal if fmt.has_zero and fmt.mantissa_bits else None,
        "negative_zero": fmt.has_negative_zero,
        "infinity_codes": tuple(int(code) for code in np.flatnonzero(np.isinf(fmt.values))),
        "nan_codes": fmt.nan_codes,
        "finite_values": int(fmt.is_finite.sum()),
    }

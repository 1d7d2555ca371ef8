"""Scales that are powers of two (OCP MX): from the largest magnitude of a block to its exponent.

With ``a`` the largest magnitude of a block, ``M`` the largest value of the elements' format,
``emax`` the exponent of ``M`` and ``m`` its mantissa bits, a rule gives an exponent ``e``. The
scale is ``2^e``, within the range of the scales' format, and an element's code is that of
``x / 2^e``, which is exact.

A plain rule (``floor``, ``rceil``, ``ceil``, ``even``, ``trunc``) is this in real arithmetic,
with elements rounded to the nearest, ties to even. It takes finite numbers and any format. A
rule with the name of a party (:mod:`npfp8.blocks.parties`) does everything as that party's code
does it, and takes the formats and the types of numbers that the party takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, Kernel, lookup
from npfp8.blocks.pieces import block_amax, encode_blocks
from npfp8.codec.definition import integer_kernel
from npfp8.codec.tables import table_encoder
from npfp8.formats import E8M0FNU, FloatFormat, Format, IntFormat

__all__ = [
    "PLAIN_RULES",
    "Blocks",
    "PowerRule",
    "check_party",
    "emax_of",
    "mantissa_bits_of",
    "power_codes",
    "power_scales",
    "reciprocals",
]


class Blocks(NamedTuple):
    """The codes of the scales of blocks, and the factors that numbers are multiplied by."""

    scale_codes: npt.NDArray[np.uint8]
    factors: Array


@dataclass(frozen=True)
class PowerRule:
    """A rule for scales that are powers of two.

    Attributes
    ----------
    name : str
    blocks : callable (amax, element, scale_format, source) -> Blocks
        From the largest magnitudes, in float32, to the scales. ``source`` is the type in which
        the numbers were given.
    description : str
        The rule in words, and its source.
    roundings : dict of Format to str
        The rounding of elements, a name of :func:`npfp8.encode`, where it is not "nearest".
    elements : tuple of Format
        The formats of elements that the party has; empty for all.
    sources : tuple of str
        The types of numbers that the party takes.
    nan : callable (x, element, source) -> codes, optional
        The codes of numbers whose multiple is NaN: of a NaN, and of an infinity times 0.
        Without it, numbers have to be finite.
    skips_nan : bool
        Whether a NaN does not count for the largest magnitude.
    zero : callable (element) -> int or None, optional
        The code of a number whose multiple is 0, where it is not the signed zero.
    one_type : bool
        Whether the multiples are of the type of the numbers, where some more of them are 0.
    quantize : callable (scaled, element, source) -> scaled, optional
        A rounding of the multiples of numbers that is done before they are encoded.
    """

    name: str
    blocks: Callable[[Float32Array, Format, FloatFormat, str], Blocks]
    description: str
    elements: tuple[Format, ...] = ()
    sources: tuple[str, ...] = ("float32", "float16", "bfloat16")
    nan: Callable[[Float32Array, Format, str], Array] | None = None
    skips_nan: bool = False
    zero: Callable[[Format], int | None] | None = None
    quantize: Callable[[Array, Format, str], Array] | None = None
    one_type: bool = False
    roundings: Mapping[Format, str] = field(default_factory=dict, hash=False)


def _parts(x: Float32Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return floor(log2 x) and the 23 bits of the mantissa of positive, finite numbers; exact."""
    bits = x.view(np.int32)
    small = bits < 0x800000
    if small.any():  # subnormal numbers are integers times 2^-149
        whole = np.where(small, bits, 1).astype(np.float32).view(np.int32)
        bits = np.where(small, whole - (149 << 23), bits)
    return (bits >> 23) - 127, bits & 0x7FFFFF


@lru_cache(maxsize=64)
def _largest(fmt: Format) -> tuple[int, int]:
    """Return the exponent and the 23 bits of the mantissa of the largest value of a format."""
    exponent, mantissa = _parts(np.array(fmt.max, np.float32))
    return int(exponent), int(mantissa)


def emax_of(fmt: Format) -> int:
    """Return the exponent of the largest value of a format."""
    return _largest(fmt)[0]


def mantissa_bits_of(fmt: Format) -> int:
    """Return the mantissa bits of a format; of integers, those of the largest one."""
    if isinstance(fmt, FloatFormat):
        return fmt.mantissa_bits
    return fmt.max_code.bit_length() - 1


def reciprocals(exponents: Array, wide: bool = False) -> Array:
    """Return the reciprocal of each scale 2^e: in float32, or in float64 if one is beyond it.

    ``wide`` asks for float64 in any case.
    """
    factors = np.ldexp(1.0, -exponents)
    wide = wide or factors.max(initial=0) >= 2.0**128
    return factors if wide else factors.astype(np.float32)


def _sees_underflow(fmt: Format) -> bool:
    """Return whether a code may change if a multiple is rounded to a subnormal float32.

    It may if one is a boundary between two codes, and where negative numbers are NaN but -0
    is not.
    """
    return isinstance(fmt, FloatFormat) and (fmt.min_subnormal < 2.0**-125 or not fmt.signed)


def _floor(amax: Float32Array, fmt: Format) -> npt.NDArray[np.int32]:
    """Return floor(log2 a) - emax."""
    return _parts(amax)[0] - emax_of(fmt)


def _ceil(amax: Float32Array, fmt: Format) -> npt.NDArray[np.int32]:
    """Return ceil(log2 a) - emax."""
    exponent, mantissa = _parts(amax)
    return exponent + (mantissa > 0) - emax_of(fmt)


def _rceil(amax: Float32Array, fmt: Format) -> npt.NDArray[np.int32]:
    """Return the smallest e with a <= M 2^e."""
    exponent, mantissa = _parts(amax)
    emax, largest = _largest(fmt)
    return exponent + (mantissa > largest) - emax


def _trunc(amax: Float32Array, fmt: Format) -> npt.NDArray[np.int32]:
    """Return floor(log2(a / M))."""
    exponent, mantissa = _parts(amax)
    emax, largest = _largest(fmt)
    return exponent - (mantissa < largest) - emax


def _even(amax: Float32Array, fmt: Format) -> npt.NDArray[np.int32]:
    """Return the exponent of ``a`` rounded to m mantissa bits, ties up, minus emax."""
    exponent, mantissa = _parts(amax)
    half = 1 << (22 - mantissa_bits_of(fmt))
    return exponent + (mantissa + half >= 1 << 23) - emax_of(fmt)


def _plain(
    name: str,
    exponent: Callable[[Float32Array, Format], npt.NDArray[np.int32]],
    description: str,
) -> PowerRule:
    """Return the rule of an exponent, clipped to the range of the scales; 0 gets the smallest."""

    def blocks(
        amax: Float32Array, element: Format, scale_format: FloatFormat, source: str
    ) -> Blocks:
        smallest, largest = _ends(scale_format)
        if amax.all():
            found = exponent(amax, element)
        else:
            zero = amax == 0
            found = np.where(zero, smallest, exponent(np.where(zero, np.float32(1), amax), element))
        found = np.minimum(np.maximum(found, smallest), largest) - smallest
        codes = found.astype(np.uint8)
        return Blocks(codes, lookup(_factors(smallest, largest, _sees_underflow(element)), codes))

    return PowerRule(name, blocks, description)


@lru_cache(maxsize=64)
def _ends(fmt: FloatFormat) -> tuple[int, int]:
    """Return the exponents of the smallest and the largest scale."""
    return math.frexp(fmt.min_positive)[1] - 1, math.frexp(fmt.max)[1] - 1


@lru_cache(maxsize=64)
def _factors(smallest: int, largest: int, wide: bool) -> Array:
    """Return the reciprocals of all scales, as :func:`reciprocals` does, padded to 256."""
    return np.resize(reciprocals(np.arange(smallest, largest + 1), wide), 256)


#: The rules of real arithmetic.
PLAIN_RULES = (
    _plain(
        "floor",
        _floor,
        "floor(log2 a) - emax: OCP MX 1.0, section 6.3; values above M saturate",
    ),
    _plain("rceil", _rceil, "the smallest e with a <= M 2^e; no value saturates"),
    _plain("ceil", _ceil, "ceil(log2 a) - emax; no value saturates"),
    _plain("even", _even, "the exponent of a rounded to m mantissa bits, ties up, minus emax"),
    _plain("trunc", _trunc, "floor(log2(a / M)); the largest value saturates"),
)


def power_codes(
    x: Float32Array,
    rule: PowerRule,
    element: Format,
    scale_format: FloatFormat,
    block: int,
    axis: int,
    source: str = "float32",
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Return the codes of numbers, and of the scales of their blocks, by a rule.

    Parameters
    ----------
    x : ndarray of float32
    rule : PowerRule
    element, scale_format : Format, FloatFormat
    block, axis : int
        The length of the blocks, and their axis, not negative.
    source : {"float32", "float16", "bfloat16"}
        The type in which the numbers were given.

    Raises
    ------
    ValueError
        If the rule's party does not have the formats or does not take the numbers.
    """
    _, blocks, finite = power_scales(x, rule, element, scale_format, block, axis, source)
    with np.errstate(all="ignore"):
        kernel = _kernel(rule, element, source, finite)
        correct = _correction(rule, element, source, finite)
        codes = encode_blocks(x, blocks.factors, axis, block, kernel, element.code_dtype, correct)
    return codes, blocks.scale_codes


def power_scales(
    x: Float32Array,
    rule: PowerRule,
    element: Format,
    scale_format: FloatFormat,
    block: int,
    axis: int,
    source: str = "float32",
) -> tuple[Float32Array, Blocks, bool]:
    """Return the largest magnitudes of blocks, their scales, and whether all are finite.

    The parameters and errors are those of :func:`power_codes`.
    """
    check_party(rule, element, scale_format, source)
    amax = block_amax(x, axis, block)
    finite = bool(np.isfinite(amax).all())
    if not finite:
        if rule.nan is None:
            found = amax[~np.isfinite(amax)][0]
            raise ValueError(f"x: expected finite numbers for the rule {rule.name}, found {found}")
        if rule.skips_nan:
            nan = np.isnan(x)
            numbers = block_amax(np.where(nan, np.float32(0), x), axis, block)
            some = block_amax((~nan).astype(np.float32), axis, block) > 0
            amax = np.where(some, numbers, np.float32(np.nan))
    with np.errstate(all="ignore"):
        return amax, rule.blocks(amax, element, scale_format, source), finite


def check_party(
    rule: PowerRule, element: Format, scale_format: FloatFormat, source: str = "float32"
) -> None:
    """Raise ValueError for a format or a type that the rule's party does not have."""
    if not rule.elements:
        return
    if element not in rule.elements:
        known = ", ".join(map(str, rule.elements))
        raise ValueError(f"rule {rule.name}: expected elements {known}, found {element}")
    if scale_format != E8M0FNU:
        raise ValueError(f"rule {rule.name}: expected scales E8M0FNU, found {scale_format}")
    if source not in rule.sources:
        known = " or ".join(rule.sources)
        raise ValueError(f"x: expected {known} for the rule {rule.name}, found {source}")


def _kernel(rule: PowerRule, element: Format, source: str, finite: bool) -> Kernel:
    """Return the kernel that encodes the multiples of numbers; a NaN as a 0."""
    rounding = rule.roundings.get(element, "nearest")
    if isinstance(element, IntFormat):
        encode = integer_kernel(element, True, rounding)
    else:
        encode = table_encoder(element, True, rounding, "float32", numbers=True)
    if finite and rule.quantize is None:
        return encode

    def kernel(scaled: Array, codes: Array) -> None:
        scaled = np.where(np.isnan(scaled), np.float32(0), scaled)
        if rule.quantize is not None:
            scaled = rule.quantize(scaled, element, source)
        encode(scaled, codes)

    return kernel


def _correction(
    rule: PowerRule, element: Format, source: str, finite: bool
) -> Callable[[Float32Array, Array, Array], None] | None:
    """Return the function that sets the codes of a NaN and of 0 as the rule has them."""
    zero = None if rule.zero is None else rule.zero(element)
    if finite and zero is None:
        return None

    # What rounds to 0 in the type of the numbers: up to half of its smallest number.
    end = {"float16": 2.0**-25, "bfloat16": 2.0**-134}.get(source, 0.0) if rule.one_type else 0.0

    def correct(numbers: Float32Array, scaled: Array, codes: Array) -> None:
        if zero is not None:
            codes[np.abs(scaled) <= np.float32(end) if end else scaled == 0] = zero
        nan = np.isnan(scaled)
        if nan.any():
            assert rule.nan is not None
            codes[nan] = rule.nan(numbers[nan], element, source)

    return correct

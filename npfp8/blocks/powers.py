"""Scales that are powers of two (OCP MX): from the largest magnitude of a block to its exponent.

With ``a`` the largest magnitude of a block, ``M`` the largest value of the elements' format,
``emax`` the exponent of ``M`` and ``m`` its mantissa bits, a rule gives an exponent ``e``. The
scale is ``2^e``, within the range of the scales' format, and an element's code is that of
``x / 2^e``, which is exact.

A plain rule (``floor``, ``rceil``, ``ceil``, ``even``, ``trunc``) is this in real arithmetic,
with elements rounded to the nearest, ties to even. It takes finite numbers and any format. A
rule with the name of a party does everything as that party's code does it: what a NaN, an
infinity or a block of zeros becomes, and in which type it computes. It takes the formats and
input types that the party takes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, IntArray
from npfp8.codec import encode
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E5M2,
    FIXED8,
    FloatFormat,
    Format,
)

__all__ = ["POWER_RULES", "PowerRule", "power_codes"]


@dataclass(frozen=True)
class PowerRule:
    """A rule for the exponents of blocks.

    Attributes
    ----------
    name : str
    exponent : callable (ndarray of float32, Format) -> ndarray of int32
        From the largest magnitudes, positive and finite, to exponents; they are clipped to the
        range of the scales afterwards.
    description : str
        The rule in words, and its source.
    rounding : str
        The rounding of the elements: a name of :func:`npfp8.encode`.
    elements : tuple of Format
        The formats of elements that the party has; empty for all.
    sources : tuple of str
        The types of numbers that the party takes.
    """

    name: str
    exponent: Callable[[Float32Array, Format], IntArray]
    description: str
    rounding: str = "nearest"
    elements: tuple[Format, ...] = ()
    sources: tuple[str, ...] = ("float32", "float16", "bfloat16")


def _parts(x: Float32Array) -> tuple[Array, Array]:
    """Return floor(log2 x) and the 23 bits of the mantissa of positive, finite numbers; exact."""
    bits = x.view(np.int32)
    if (bits < 0x800000).any():  # subnormal numbers are integers times 2^-149
        small = bits < 0x800000
        whole = np.where(small, bits, 1).astype(np.float32).view(np.int32)
        bits = np.where(small, whole - (149 << 23), bits)
    return (bits >> 23) - 127, bits & 0x7FFFFF


def _largest(fmt: Format) -> tuple[int, int]:
    """Return the exponent and the 23 bits of the mantissa of the largest value of a format."""
    exponent, mantissa = _parts(np.array(fmt.max, np.float32))
    return int(exponent), int(mantissa)


def _mantissa_bits(fmt: Format) -> int:
    """Return the mantissa bits of a format; of integers, those of the largest one."""
    if isinstance(fmt, FloatFormat):
        return fmt.mantissa_bits
    return fmt.max_code.bit_length() - 1


def _floor(amax: Float32Array, fmt: Format) -> Array:
    return _parts(amax)[0] - _largest(fmt)[0]


def _ceil(amax: Float32Array, fmt: Format) -> Array:
    exponent, mantissa = _parts(amax)
    return exponent + (mantissa > 0) - _largest(fmt)[0]


def _rceil(amax: Float32Array, fmt: Format) -> Array:
    exponent, mantissa = _parts(amax)
    emax, largest = _largest(fmt)
    return exponent + (mantissa > largest) - emax


def _trunc(amax: Float32Array, fmt: Format) -> Array:
    exponent, mantissa = _parts(amax)
    emax, largest = _largest(fmt)
    return exponent - (mantissa < largest) - emax


def _even(amax: Float32Array, fmt: Format, mantissa_bits: int | None = None) -> Array:
    exponent, mantissa = _parts(amax)
    bits = _mantissa_bits(fmt) if mantissa_bits is None else mantissa_bits
    half = 1 << (22 - bits)
    return exponent + (mantissa + half >= 1 << 23) - _largest(fmt)[0]


def _compressed_tensors(amax: Float32Array, fmt: Format) -> Array:
    return _even(amax, fmt, 3 if fmt == E2M3 else 1)


_FLOATS = (E4M3FN, E5M2, E2M3, E3M2, E2M1)
_FP8 = (E4M3FN, E5M2)
_NOT_HALF = ("float32", "bfloat16")

#: The rules, by name.
POWER_RULES = {
    rule.name: rule
    for rule in (
        PowerRule(
            "floor",
            _floor,
            "floor(log2 a) - emax: OCP MX 1.0, section 6.3; values above M saturate",
        ),
        PowerRule("rceil", _rceil, "the smallest e with a <= M 2^e; no value saturates"),
        PowerRule("ceil", _ceil, "ceil(log2 a) - emax; no value saturates"),
        PowerRule(
            "even",
            _even,
            "floor(log2 of a rounded to m mantissa bits, ties up) - emax",
        ),
        PowerRule("trunc", _trunc, "floor(log2(a / M)); the largest value saturates"),
        PowerRule("torchao", _floor, "floor", elements=_FLOATS, sources=_NOT_HALF),
        PowerRule("torchao-rceil", _rceil, "rceil", elements=_FLOATS, sources=_NOT_HALF),
        PowerRule("torchao-ceil", _ceil, "ceil", elements=_FLOATS, sources=_NOT_HALF),
        PowerRule("torchao-even", _even, "even", elements=_FLOATS, sources=_NOT_HALF),
        PowerRule(
            "compressed-tensors",
            _compressed_tensors,
            "even with E2M1's mantissa bit for E4M3 too",
            elements=(E4M3FN, E2M3, E2M1),
        ),
        PowerRule("microxcaling", _floor, "floor", "nearest_away", elements=(*_FLOATS, FIXED8)),
        PowerRule("microxcaling-even", _floor, "floor", elements=(*_FLOATS, FIXED8)),
        PowerRule(
            "microxcaling-floor", _floor, "floor", "toward_zero", elements=(*_FLOATS, FIXED8)
        ),
        PowerRule("modelopt", _rceil, "rceil", "nearest_toward_zero", elements=(E4M3FN, E2M1)),
        PowerRule("quark", _even, "even", elements=(*_FLOATS, FIXED8)),
        PowerRule("quark-floor", _floor, "floor", elements=(*_FLOATS, FIXED8)),
        PowerRule("quark-ceil", _ceil, "ceil", elements=(*_FLOATS, FIXED8)),
        PowerRule("vllm", _trunc, "trunc", elements=(E4M3FN, E2M1)),
        PowerRule("te", _rceil, "rceil", elements=_FP8),
        PowerRule("triton", _rceil, "rceil", elements=(*_FP8, E2M1)),
        PowerRule("triton-floor", _floor, "floor", elements=(*_FP8, E2M1)),
        PowerRule("gfloat", _floor, "floor", elements=(*_FLOATS, FIXED8)),
    )
}


def power_codes(
    x: Float32Array,
    amax: Float32Array,
    element: Format,
    scale_format: FloatFormat,
    rule: PowerRule,
    spread: Callable[[Array], Array],
) -> tuple[Array, npt.NDArray[np.uint8]]:
    """Return the codes of numbers, and of the scales of their blocks.

    Parameters
    ----------
    x : ndarray of float32
    amax : ndarray of float32
        The largest magnitude of each block.
    element, scale_format : Format, FloatFormat
    rule : PowerRule
    spread : callable (ndarray) -> ndarray
        From one value per block to one per element.
    """
    zero = amax == 0
    exponents = rule.exponent(np.where(zero, np.float32(1), amax), element)
    ends = scale_format.min_positive, scale_format.max
    smallest, largest = (int(np.frexp(end)[1]) - 1 for end in ends)
    exponents = np.clip(np.where(zero, smallest, exponents), smallest, largest)
    scale_codes = (exponents - smallest).astype(np.uint8)
    scaled = np.ldexp(x, -spread(exponents).astype(np.int32))
    return encode(scaled, element, rounding=rule.rounding), scale_codes

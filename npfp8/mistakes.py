"""The usual mistakes of FP8 encoders, each planted in an otherwise correct encoder.

They were found in the field: in serving kernels (early saturation, ties rounded away
from zero), vector units of processors (NaN instead of clamping, an ignored rounding
mode) and libraries (double rounding through bfloat16). A good test catches each of
them. If one of them reproduces all codes of an implementation, it is the likely cause.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from npfp8.arguments import choice, flag
from npfp8.arrays import Array, Float32Array, require_array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.codec import encode
from npfp8.formats import E4M3FN, E4M3FNUZ, E5M2, E5M2FNUZ, FloatFormat, as_float_format

__all__ = [
    "NAN_BIASED",
    "Encoder",
    "clamped_codes",
    "differing",
    "encoder_mistakes",
    "likely_mistake",
]

Encoder = Callable[[Float32Array], Array]

#: The format with another bias and NaN that each OCP format is confused with, and back.
NAN_BIASED = {E4M3FN: E4M3FNUZ, E4M3FNUZ: E4M3FN, E5M2: E5M2FNUZ, E5M2FNUZ: E5M2}


def encoder_mistakes(
    fmt: FloatFormat | str, saturate: bool = True, rounding: str = "nearest"
) -> list[tuple[str, Encoder]]:
    """Return encoders with one usual mistake each, with the name of the mistake.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.
    saturate : bool
    rounding : {"nearest", "toward_zero"}
        The behaviour of a correct encoder; see :func:`npfp8.encode`.

    Returns
    -------
    list of (str, callable (ndarray of float32) -> ndarray of uint8)
        A name may occur twice, for two variants of a mistake. Some mistakes do not show
        in every format: a format without subnormals cannot flush them.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the format or the rounding is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import encoder_mistakes
    >>> name, wrong = encoder_mistakes(E4M3FN)[0]
    >>> name, wrong(np.float32([1.99])).tolist()  # 2.0 is 64
    ('truncation', [63])
    """
    fmt, saturate = as_float_format(fmt), flag("saturate", saturate)
    rounding = choice("rounding", rounding, ("nearest", "toward_zero"))

    def right(x: Float32Array) -> npt.NDArray[np.uint8]:
        return encode(x, fmt, saturate, rounding=rounding)

    def ties_away(x: Float32Array) -> npt.NDArray[np.uint8]:
        # A float64's last bit farther from 0, a tie is one no more, and no other number is.
        exact = x.astype(np.float64)
        farther = np.nextafter(exact, np.copysign(np.inf, exact))
        return encode(np.where(x == 0, exact, farther), fmt, saturate)

    def ties_toward_zero(x: Float32Array) -> npt.NDArray[np.uint8]:
        return encode(x, fmt, saturate, rounding="nearest_toward_zero")

    def flushed(x: Float32Array, magnitude: Array) -> npt.NDArray[np.uint8]:
        return np.where(magnitude < fmt.min_normal, right(np.copysign(np.float32(0), x)), right(x))

    def to_largest_binade(x: Float32Array) -> npt.NDArray[np.uint8]:
        beyond = np.abs(x) >= 2.0 ** (np.frexp(fmt.max)[1] - 1)
        return right(np.where(beyond, np.copysign(np.float32(fmt.max), x), x))

    def nan_clamped(x: Float32Array) -> npt.NDArray[np.uint8]:
        return right(np.where(np.isnan(x), np.float32(fmt.max), x))

    def zero_unsigned(x: Float32Array) -> npt.NDArray[np.uint8]:
        codes = right(x)
        return np.where(codes == fmt.sign_bit, np.uint8(0), codes)

    other = "nearest" if rounding == "toward_zero" else "toward_zero"
    mistakes = [
        (
            "truncation" if rounding == "nearest" else "rounding to nearest",
            lambda x: encode(x, fmt, saturate, rounding=other),
        ),
        *([("ties rounded away from zero", ties_away)] if rounding == "nearest" else []),
        *([("ties rounded toward zero", ties_toward_zero)] if rounding == "nearest" else []),
        (
            "overflow that does not saturate" if saturate else "overflow that saturates",
            lambda x: encode(x, fmt, not saturate, rounding=rounding),
        ),
        ("subnormals flushed to zero", lambda x: flushed(x, np.abs(x))),
        ("subnormals flushed to zero", lambda x: flushed(x, np.abs(fmt.values[right(x)]))),
        ("double rounding through bfloat16", lambda x: right(round_to_bfloat16(x))),
        ("double rounding through float16", lambda x: right(x.astype(np.float16))),
        ("a missing sticky bit", lambda x: right(_to_guard_bit(x, fmt))),
        (
            "a missing sticky bit",
            lambda x: right(np.where(np.isnan(x), x, _cut_to_bfloat16(x))),
        ),
        (
            "saturation at too small a value",
            lambda x: clamped_codes(
                right(x), fmt, max(fmt.max_code + 1 - (1 << fmt.mantissa_bits), 0)
            ),
        ),
        ("saturation from too small a value on", to_largest_binade),
        ("NaN clamped to the largest value", nan_clamped),
    ]
    if fmt in NAN_BIASED:
        taken = NAN_BIASED[fmt]
        mistakes.append(
            (f"{taken} instead of {fmt}", lambda x: encode(x, taken, saturate, rounding=rounding))
        )
    if fmt.has_negative_zero:
        mistakes.append(("-0 encoded as 0", zero_unsigned))
    return mistakes


def likely_mistake(
    x: Float32Array,
    found: npt.NDArray[np.uint8],
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
) -> str:
    """Return the name of the one mistake that explains every code found, or "".

    Parameters
    ----------
    x : ndarray of float32
        The numbers that were encoded.
    found : ndarray of uint8
        Their codes. All NaNs count as equal.
    fmt, saturate, rounding
        As for :func:`encoder_mistakes`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the shapes differ, or the format or the rounding is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import likely_mistake
    >>> likely_mistake(np.float32([1.99, 1.0]), np.uint8([63, 56]), E4M3FN)
    'truncation'
    """
    fmt = as_float_format(fmt)
    require_array("x", x, np.float32)
    require_array("found", found, np.uint8)
    if found.shape != x.shape:
        raise ValueError(f"found: expected shape {x.shape}, found {found.shape}")
    for name, mistaken in encoder_mistakes(fmt, saturate, rounding):
        if not differing(mistaken(x), found, fmt).any():
            return name
    return ""


def differing(
    codes: npt.NDArray[np.uint8], found: npt.NDArray[np.uint8], fmt: FloatFormat
) -> npt.NDArray[np.bool_]:
    """Return where codes differ. All NaNs count as equal."""
    nan = np.zeros(256, bool)
    nan[list(fmt.nan_codes)] = True
    return np.asarray((codes != found) & ~(nan[codes] & nan[found]))


def clamped_codes(
    codes: npt.NDArray[np.uint8], fmt: FloatFormat, limit: int
) -> npt.NDArray[np.uint8]:
    """Replace the finite codes of a magnitude above the code ``limit`` by it."""
    sign = codes & np.uint8(fmt.sign_bit)
    too_large = np.isfinite(fmt.values[codes]) & ((codes & np.uint8(0xFF - fmt.sign_bit)) > limit)
    return np.where(too_large, sign | np.uint8(limit), codes)


def _cut_to_bfloat16(x: Float32Array) -> Float32Array:
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _to_guard_bit(x: Float32Array, fmt: FloatFormat) -> Float32Array:
    """Cut off all bits below the one after the last of a format: numbers above a tie become it."""
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    exponent = np.frexp(np.maximum(np.abs(exact), fmt.min_normal))[1] - 1
    half = np.ldexp(0.5, exponent - fmt.mantissa_bits)
    return np.where(np.isfinite(x), np.trunc(exact / half) * half, x).astype(np.float32)

"""The usual mistakes of FP8 decoders, each planted in an otherwise correct decoder.

As for encoders (:mod:`npfp8.mistakes.encoders`), there is one list:
:func:`npfp8.testing.check_decoder`, :mod:`npfp8.vectors` and the kits of ``bert_numpy`` all name
what is in it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float64Array, require_array
from npfp8.formats import FloatFormat, as_float_format
from npfp8.mistakes.explanation import Explanation, best_explanation
from npfp8.mistakes.formats import confused_with

__all__ = ["decoder_mistakes", "differing_values", "explain_values"]

Decoder = Callable[[npt.NDArray[np.uint8]], Float64Array]


def decoder_mistakes(fmt: FloatFormat | str) -> list[tuple[str, Decoder]]:
    """Return decoders with one usual mistake each, with the name of the mistake.

    Parameters
    ----------
    fmt : FloatFormat or str
        The format, or its name.

    Returns
    -------
    list of (str, callable (ndarray of uint8) -> ndarray of float64)
        A name may occur more than once, for variants of a mistake. Some mistakes do not show
        in every format.

    Raises
    ------
    TypeError, ValueError
        If no float format has the name.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.mistakes.decoders import decoder_mistakes
    >>> dict(decoder_mistakes("E4M3FN"))["-0 decoded as 0"](np.uint8([0x80, 0xB8]))
    array([ 0., -1.])
    """
    fmt = as_float_format(fmt)
    others = [(f"{other} instead of {fmt}", other.values) for other in confused_with(fmt)]
    return [(name, _decoder(table)) for name, table in [*others, *_tables(fmt)]]


def _decoder(table: Float64Array) -> Decoder:
    return lambda codes: np.asarray(table[codes])


def _tables(fmt: FloatFormat) -> list[tuple[str, Float64Array]]:
    """List the values of all codes as each mistake has them."""
    values = fmt.values
    codes = np.arange(values.size)
    magnitudes = np.abs(values)
    negative = (codes & fmt.sign_bit) != 0
    sign = np.where(negative, -1.0, 1.0)
    nan, infinite = np.isnan(values), np.isinf(values)
    tables = [
        ("exponent bias off by one", values * 2),
        ("exponent bias off by one", values / 2),
    ]
    numbers = sign * _as_numbers(fmt)
    if fmt.has_zero:
        subnormal = magnitudes < fmt.min_normal
        tables += [
            (
                "subnormals flushed to zero",
                np.where(subnormal, np.copysign(0.0, values), values),
            ),
            (
                "leading one added to subnormals",
                np.where(subnormal, sign * (magnitudes + fmt.min_normal) / 2, values),
            ),
            (
                "leading one added to subnormals",
                np.where(subnormal, sign * (magnitudes + fmt.min_normal), values),
            ),
            ("subnormals off by one place", np.where(subnormal, values / 2, values)),
            ("subnormals off by one place", np.where(subnormal, values * 2, values)),
        ]
    if fmt.has_negative_zero:
        tables.append(("-0 decoded as 0", np.where(values == 0, 0.0, values)))
    if fmt.signed:
        tables.append(("sign lost", magnitudes))
        twos = np.where(negative, -np.append(values[:1], values[1:][::-1])[codes], values)
        tables.append(("negative codes read as two's complement", twos))
    if nan.any():
        tables += [
            ("NaN decoded as a number", np.where(nan, numbers, values)),
            ("NaN decoded as zero", np.where(nan, 0.0, values)),
            ("NaN decoded as zero", np.where(nan, sign * 0.0, values)),
            ("NaN decoded as infinity", np.where(nan, sign * np.inf, values)),
            ("NaN decoded as infinity", np.where(nan, np.inf, values)),
            ("NaN decoded as the largest value", np.where(nan, sign * fmt.max, values)),
        ]
    if infinite.any():
        tables += [
            ("infinity decoded as NaN", np.where(infinite, np.nan, values)),
            ("infinity decoded as a number", np.where(infinite, numbers, values)),
            ("infinity and NaN decoded as numbers", np.where(infinite | nan, numbers, values)),
            ("infinity decoded as the largest value", np.where(infinite, sign * fmt.max, values)),
        ]
    if fmt.exponent_bits:
        top = (codes >> fmt.mantissa_bits) & fmt.exponent_ones == fmt.exponent_ones
        mantissa = codes & ((1 << fmt.mantissa_bits) - 1)
        special = np.where(mantissa == 0, sign * np.inf, np.nan)
        name = "largest exponent read as that of infinity and NaN"
        tables.append((name, np.where(top, special, values)))
    return tables


def _as_numbers(fmt: FloatFormat) -> Float64Array:
    """Return the magnitude that each code would have if none was special."""
    codes = np.arange(fmt.values.size)
    mantissa = codes & ((1 << fmt.mantissa_bits) - 1)
    exponent = (codes >> fmt.mantissa_bits) & fmt.exponent_ones
    normal = (exponent > 0) | (not fmt.has_zero)
    significand = mantissa + (normal << fmt.mantissa_bits)
    shift = np.where(normal, exponent, 1) - fmt.bias - fmt.mantissa_bits
    return np.ldexp(significand.astype(np.float64), shift)


def differing_values(values: Array, found: Array) -> npt.NDArray[np.bool_]:
    """Return where values differ, also in the sign of a zero. All NaNs count as equal.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.mistakes.decoders import differing_values
    >>> differing_values(np.array([0.0, 1.0, np.nan]), np.array([-0.0, 1.0, np.nan]))
    array([ True, False, False])
    """
    same = (values == found) & (np.signbit(values) == np.signbit(found))
    return np.asarray(~(same | (np.isnan(values) & np.isnan(found))))


def explain_values(
    codes: npt.NDArray[np.uint8],
    found: Float64Array,
    fmt: FloatFormat | str,
    smallest: float = 0.0,
) -> Explanation:
    """Find the mistake that explains all values found, or else the one that explains most.

    Parameters
    ----------
    codes : ndarray of uint8
        The codes that were decoded.
    found : ndarray of float64
        Their values.
    fmt : FloatFormat or str
    smallest : float
        The smallest normal number of the type of the results: a processor may have flushed
        what is below it.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the shapes differ, or the format is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.mistakes.decoders import explain_values
    >>> explain_values(np.uint8([0, 0x38]), np.array([0, 2.0]), "E4M3FN").text()
    'exponent bias off by one'
    """
    fmt = as_float_format(fmt)
    require_array("codes", codes, np.uint8)
    require_array("found", found, np.float64)
    if found.shape != codes.shape:
        raise ValueError(f"found: expected shape {codes.shape}, found {found.shape}")
    right = fmt.values[codes]
    mistakes = [(name, decoder(codes)) for name, decoder in decoder_mistakes(fmt)]
    flushed = np.where(np.abs(right) < smallest, np.copysign(0.0, right), right)
    mistakes.append(("subnormals of the result flushed to zero", flushed))
    return best_explanation(right, found, iter(mistakes), differing_values)

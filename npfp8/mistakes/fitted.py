"""Mistakes with a parameter, which is read off the codes found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array
from npfp8.formats import FloatFormat
from npfp8.mistakes.overflow import clamped_codes
from npfp8.mistakes.rules import Codes, Rules, rules_of

__all__ = ["FittedEncoder", "fitted_encoders", "fitted_mistakes"]

FittedEncoder = Callable[[Float32Array, Codes], "Array | None"]


def fitted_mistakes(
    fmt: FloatFormat | str,
    saturate: bool = True,
    rounding: str = "nearest",
    overflow: str = "ieee",
    *,
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> list[tuple[str, FittedEncoder]]:
    """Return the mistakes that have a parameter, which is read off the codes found.

    Parameters
    ----------
    fmt, saturate, rounding, overflow, random_bits, bit_count
        As for :func:`encoder_mistakes`.

    Returns
    -------
    list of (str, callable (ndarray of float32, ndarray of uint8) -> ndarray of uint8 or None)
        Each takes the numbers and the codes found, and returns the codes of an encoder with
        the mistake, or None if the codes found do not look like it.

    Raises
    ------
    TypeError, ValueError
        As :func:`encoder_mistakes`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.mistakes import fitted_mistakes
    >>> x = np.float32([1, 2, 3, 100])
    >>> for name, fit in fitted_mistakes(E4M3FN):
    ...     codes = fit(x, np.uint8([56, 64, 64, 64]))  # at most 2
    ...     print(name, codes)
    saturation at too small a value [56 64 64 64]
    saturation from too small a value on None
    zero up to too large a value None
    """
    return fitted_encoders(rules_of(fmt, saturate, rounding, overflow, random_bits, bit_count))


def fitted_encoders(rules: Rules) -> list[tuple[str, FittedEncoder]]:
    """Return the mistakes with a parameter, made from the right encoder."""
    return [
        ("saturation at too small a value", lambda x, found: _limited(rules, x, found)),
        ("saturation from too small a value on", lambda x, found: _from(rules, x, found)),
        ("zero up to too large a value", lambda x, found: _up_to(rules, x, found)),
    ]


def _limited(rules: Rules, x: Array, found: Codes) -> Array | None:
    """Saturate at the largest value found."""
    fmt = rules.fmt
    magnitudes = found[fmt.is_finite[found]] & rules.magnitude
    limit = int(magnitudes.max(initial=0))
    return clamped_codes(rules(x), fmt, limit) if 0 < limit < fmt.max_code else None


def _from(rules: Rules, x: Array, found: Codes) -> Array | None:
    """Return the largest value from the smallest number on that wrongly became it."""
    fmt, right = rules.fmt, rules(x)
    largest = (found & rules.magnitude) == fmt.max_code
    early = largest & (found != right) & np.isfinite(x) & (np.abs(x) < fmt.max)
    if not early.any():
        return None
    beyond = np.abs(x) >= np.abs(x)[early].min()
    return np.where(beyond, rules.signs(x) | np.uint8(fmt.max_code), right)


def _up_to(rules: Rules, x: Array, found: Codes) -> Array | None:
    """Return zero up to the largest number that wrongly became it."""
    fmt, right = rules.fmt, rules(x)
    if not fmt.has_zero:
        return None
    zero = fmt.values[found] == 0
    early = zero & (fmt.values[right] != 0) & ~np.isnan(x)
    if not early.any():
        return None
    below = np.abs(x) <= np.abs(x)[early].max()
    return np.where(below, rules(np.copysign(np.float32(0), x)), right)

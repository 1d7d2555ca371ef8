"""The definition of rounding to a format, in code: slow, and the source of all tables.

:func:`codes_of` rounds to nearest (in three ways on a tie), toward zero, up, down and to odd,
by binary search in the values of the format. Stochastic rounding and the integer formats need
no table, and are also here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float64Array, Kernel
from npfp8.formats import FloatFormat, Format, IntFormat

__all__ = [
    "ROUNDINGS",
    "codes_of",
    "depends_on_overflow",
    "given_bits_kernel",
    "integer_kernel",
    "quietly",
    "refuse_nan",
    "stochastic_kernel",
]

#: The roundings of :func:`npfp8.encode`.
ROUNDINGS = (
    "nearest",
    "nearest_away",
    "nearest_toward_zero",
    "toward_zero",
    "up",
    "down",
    "odd",
    "stochastic",
)

#: The roundings whose overflow may be the largest finite value, without saturation.
_DIRECTED = ("toward_zero", "up", "down", "odd")


def depends_on_overflow(saturate: bool, rounding: str) -> bool:
    """Check whether the option ``overflow`` of :func:`npfp8.encode` changes any result."""
    return not saturate and rounding in _DIRECTED


def codes_of(
    x: Float64Array, fmt: FloatFormat, saturate: bool, rounding: str, overflow: str = "ieee"
) -> Array:
    """Encode float64 numbers by searching the grid of the format: slow, and the definition.

    This function defines all roundings but the stochastic one as :func:`encode`
    describes them. It makes the tables.

    Parameters
    ----------
    x : ndarray of float64
    fmt : FloatFormat
    saturate : bool
    rounding : str
        One of :data:`ROUNDINGS`, except "stochastic".
    overflow : {"ieee", "special"}

    Returns
    -------
    ndarray of uint8; 0 for a NaN if the format has none

    Examples
    --------
    >>> from npfp8 import E2M1
    >>> codes_of(np.array([2.5, -100.0]), E2M1, True, "nearest")
    array([ 4, 15], dtype=uint8)
    >>> codes_of(np.array([2.5, -100.0]), E2M1, True, "up")
    array([ 5, 15], dtype=uint8)
    """
    magnitude = np.abs(x)
    grid = fmt.grid
    # The significand of a value counts steps to the value above it.
    odd = np.append(grid[:-1] / np.diff(grid) % 2 == 1, False)
    if rounding in _DIRECTED:
        code = np.searchsorted(grid, magnitude, side="right") - 1
        code = np.maximum(code, 0)  # below the smallest value of a format without zero
        inexact = magnitude > grid[code]
        if rounding == "odd":
            code = code + (inexact & ~odd[code])
        elif rounding != "toward_zero":
            code = code + (inexact & ((x > 0) if rounding == "up" else (x < 0)))
    else:
        midpoints = (grid[:-1] + grid[1:]) / 2  # exact: one more bit than the grid's
        below = np.searchsorted(midpoints, magnitude, side="left")
        above = np.searchsorted(midpoints, magnitude, side="right")
        # `below` and `above` are equal but on a tie, which goes to the even significand.
        if rounding == "nearest":
            code = np.where(odd[below], above, below)
        else:
            code = above if rounding == "nearest_away" else below
    # With exponents that went on, the result would be larger than the largest value: that is
    # an overflow (IEEE 754-2019, 7.4).
    special = code > fmt.max_code
    if overflow == "ieee" and rounding in _DIRECTED:
        special &= {"up": x > 0, "down": x < 0}.get(rounding, False)
    code = np.minimum(code, fmt.max_code)
    return _signed_codes(code, x, special | np.isinf(x), fmt, saturate)


def _signed_codes(
    code: npt.NDArray[np.intp],
    x: Array,
    overflow: npt.NDArray[np.bool_],
    fmt: FloatFormat,
    saturate: bool,
) -> npt.NDArray[np.uint8]:
    """Complete the codes of magnitudes: overflow, sign and NaN."""
    negative, nan = np.signbit(x), np.isnan(x)
    nan_code, quiet = fmt.nan_code or 0, fmt.quiet_nan_code or 0
    too_large = fmt.max_code
    if not saturate:
        too_large = next(c for c in (fmt.infinity_code, fmt.quiet_nan_code, too_large) if c)
        if not fmt.has_zero:
            nan = nan | (x == 0)
    code = np.where(overflow, too_large, code)
    code[nan] = nan_code if saturate else quiet
    if fmt.signed:
        # Keep the sign bit off what it would change: a NaN as saturation has it,
        # and, where a NaN has the place of -0, zero and that NaN.
        keeps = ~nan if saturate else np.ones_like(nan)
        if fmt.sign_bit in fmt.nan_codes:
            keeps &= (code & (fmt.sign_bit - 1)) != 0
        code[negative & keeps] |= fmt.sign_bit
    else:
        below_range = negative & (x != 0) & ~nan
        code[below_range] = nan_code if saturate else quiet
    return code.astype(np.uint8)


def stochastic_kernel(fmt: FloatFormat, saturate: bool, rng: np.random.Generator) -> Kernel:
    """Round toward zero, then up with the probability of the fraction cut off, exactly."""
    steps = np.diff(fmt.grid)

    def kernel(x: Array, codes: Array) -> None:
        exact, code, rest = _toward_zero(x, fmt)
        step = steps[code]
        up = rest >= step
        rest[up] = 0.0  # decided; of the largest float64, the product below would overflow
        # Compare rest / step with a random number, 64 bits of both at a time, as
        # long as they are equal. All is exact: a product with 2^64, the quotient
        # by a power of two down to its integer, the remainder.
        undecided = np.arange(x.size)
        while undecided.size:
            scaled = rest[undecided] * 2.0**64
            digit = np.minimum(np.floor(scaled / step[undecided]), 2.0**64 - 2.0**11)
            rest[undecided] = np.fmod(scaled, step[undecided])
            drawn = rng.integers(0, 1 << 64, undecided.size, np.uint64)
            up[undecided] |= drawn < digit.astype(np.uint64)
            equal = drawn == digit.astype(np.uint64)
            undecided = undecided[equal & (rest[undecided] > 0) & ~up[undecided]]
        codes[...] = _rounded_up(code, up, exact, fmt, saturate)

    return kernel


def given_bits_kernel(
    fmt: FloatFormat, saturate: bool, bit_count: int
) -> Callable[[Array, Array, Array], None]:
    """Round toward zero, then away from it where the fraction and the given bits carry."""
    steps = np.diff(fmt.grid)
    mask = np.uint64((1 << bit_count) - 1)

    def kernel(x: Array, bits: Array, codes: Array) -> None:
        exact, code, rest = _toward_zero(x, fmt)
        step = steps[code]
        up = rest >= step
        rest[up] = 0.0
        # Exact: the quotient by a power of two, the product with one. A quotient that is too
        # small for a float64 is far below the bits that count.
        fraction = np.floor(rest / step * 2.0**bit_count).astype(np.uint64)
        # fraction + bits >= 2^bit_count, without a carry out of 64 bits.
        up |= fraction > (bits.astype(np.uint64) & mask ^ mask)
        codes[...] = _rounded_up(code, up, exact, fmt, saturate)

    return kernel


def _toward_zero(x: Array, fmt: FloatFormat) -> tuple[Float64Array, Array, Float64Array]:
    """Return the exact numbers, the codes of magnitudes toward zero, and what was cut off."""
    if x.dtype.itemsize == 8 and x.dtype.kind in "iu" and _exceeds(x, 1 << 53):
        raise ValueError("stochastic rounding: expected integers up to 2^53, found larger ones")
    exact = quietly(x, np.float64)
    if fmt.nan_code is None:
        refuse_nan(exact, fmt)
    magnitude = np.where(np.isfinite(exact), np.abs(exact), 0.0)
    code = codes_of(magnitude, fmt, True, "toward_zero").astype(np.intp)
    # Exact: either the code is that of 0, or the number is between it and its double.
    return exact, code, np.maximum(magnitude - fmt.grid[code], 0.0)


def _rounded_up(
    code: Array, up: Array, exact: Float64Array, fmt: FloatFormat, saturate: bool
) -> Array:
    """Return the codes of numbers whose magnitudes are rounded up where it is said."""
    code = code + up
    overflow = (code > fmt.max_code) | np.isinf(exact)
    return _signed_codes(code, exact, overflow, fmt, saturate)


def integer_kernel(fmt: IntFormat, saturate: bool, rounding: str = "nearest") -> Kernel:
    """Round to a multiple of the step, and saturate to the format's range."""

    def kernel(x: Array, codes: Array) -> None:
        low, high = fmt.min_code, fmt.max_code
        if fmt.fraction_bits and x.dtype.kind != "f":
            x = x.astype(np.float64)  # what this rounds is far beyond the range
        if x.dtype.kind == "f":
            refuse_nan(x, fmt)
            if fmt.fraction_bits:
                with np.errstate(over="ignore"):
                    x = x * x.dtype.type(1 << fmt.fraction_bits)
            x = np.rint(x) if rounding == "nearest" else _to_integer(x, rounding)
        elif x.dtype.kind in "iu":  # NumPy 2.0 refuses bounds beyond the type's own
            own = np.iinfo(x.dtype)
            low, high = max(low, own.min), min(high, own.max)
        clipped = np.clip(x, low, high)
        if not saturate and not np.array_equal(clipped, x):
            raise ValueError(
                f"encode: found a number outside {fmt}'s {fmt.min_code}..{fmt.max_code} "
                "with saturate=False"
            )
        codes[...] = clipped.astype(fmt.code_dtype)

    return kernel


def _to_integer(x: Array, rounding: str) -> Array:
    """Round to an integer, in any way but to nearest with ties to even."""
    if rounding in ("up", "down"):
        return np.asarray(np.ceil(x) if rounding == "up" else np.floor(x))
    whole = np.trunc(x)
    if rounding == "toward_zero":
        return whole
    with np.errstate(invalid="ignore"):  # of infinities
        rest = np.abs(x - whole)  # exact
        even = np.fmod(whole, 2) == 0
    if rounding == "odd":
        away = even & (rest > 0)
    else:
        away = rest >= 0.5 if rounding == "nearest_away" else rest > 0.5
    return np.asarray(whole + np.copysign(away, x), x.dtype)


def refuse_nan(x: Array, fmt: Format) -> None:
    """Raise ValueError for a NaN, for which the format has no code."""
    if x.dtype.kind == "f" and np.isnan(x).any():
        raise ValueError(f"encode: found NaN, and {fmt} has no code for it")


def quietly(x: Array, dtype: npt.DTypeLike) -> Array:
    """``x.astype(dtype)`` without a warning of signalling NaNs."""
    with np.errstate(invalid="ignore"):
        return x.astype(dtype)


def _exceeds(x: Array, limit: int) -> bool:
    return bool(x.max(initial=0) > limit or x.min(initial=0) < -limit)

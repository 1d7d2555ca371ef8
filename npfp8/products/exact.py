"""Sums of products of codes without any rounding, rounded once at the end.

Why a BLAS product can be exact
-------------------------------
Every finite value of a format is an integer multiple of its smallest subnormal
``q`` and at most ``max``. A product of two values is then a multiple of
``qa * qb``, and every partial sum of K products, in whatever order, is a
multiple of it no larger than ``K * max_a * max_b``. While::

    K * max_a * max_b <= 2^53 * qa * qb                                    (1)

each of them is a float64, so no addition rounds, and blocking, FMA, the number
of threads and the BLAS make no difference. E4M3FN by E4M3FN: ``q = 2^-9``,
``max = 448``, so K up to 171,196. For integers (1) holds with 2^24 already,
that is in float32, for K up to 1,024 (INT8 by INT8): longer sums are cut into
blocks of K that are added in float64, again exactly.

E5M2 spans too many binades for (1). Codes that do not satisfy it are cut by
magnitude into a high and a low part, so that each spans about half of the
binades: (1) then holds for each product of parts, for E5M2 by E5M2 up to K =
684,784. One operand is cut if that is enough for the magnitudes that it really
has, otherwise both. The products of the parts are added without error and
rounded once, see :func:`_round_sum`.

NaN and infinity count as 0 here (:mod:`npfp8.products.specials`).
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import flag, integer
from npfp8.arrays import Float32Array, Float64Array, blas_product, chunks, lookup
from npfp8.blocks.formats import BLOCK_FORMATS, BlockFormat
from npfp8.formats import Format, IntFormat, as_format
from npfp8.names import match
from npfp8.products.float32 import K_LIMIT
from npfp8.rounding import sum_to_odd
from npfp8.scaling import spread
from npfp8.tensor import QuantizedTensor

__all__ = [
    "code_span",
    "code_values",
    "exact_k_limit",
    "exact_product",
    "float32_product",
    "integer_sums",
    "whole_k_limit",
]

#: Bits of the largest sum that :func:`_round_sum` takes, in units of the smallest.
_SUM_BITS = 93

#: Elements worked on at a time where several passes go over an array.
_CHUNK = 1 << 14


class _Part(NamedTuple):
    """The values of a format whose magnitudes have the codes ``first`` to ``last``.

    ``span`` is the largest of them divided by the number of which all are multiples.
    """

    first: int
    last: int
    span: float


def exact_k_limit(
    fmt_a: Format | BlockFormat | str,
    fmt_b: Format | BlockFormat | str,
    *,
    parts: int = 2,
    zero_point: bool = False,
) -> int:
    """Return the largest K for which a sum of products is exact for all codes.

    Parameters
    ----------
    fmt_a, fmt_b : FloatFormat, IntFormat, BlockFormat or str
        The formats of the operands, or their names. The codes of a block format's scales
        count too: all that there are, in one row and one column.
    parts : {1, 2}
        The number of parts into which each operand may be cut: 1 is a single float64
        product, 2 is the limit of :func:`npfp8.matmul`. With a block format it is 2^24,
        whatever the scales are (:mod:`npfp8.products.blocks`).
    zero_point : bool
        Whether a zero point is subtracted from integer codes: their range doubles.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the type stated, or a name is unknown.

    Examples
    --------
    >>> from npfp8 import E4M3FN, E5M2, exact_k_limit
    >>> exact_k_limit(E4M3FN, E4M3FN, parts=1), exact_k_limit(E4M3FN, E5M2, parts=1)
    (171196, 10)
    >>> exact_k_limit(E5M2, E5M2)
    684784
    >>> exact_k_limit("NVFP4", "NVFP4", parts=1), exact_k_limit("MXFP4", "MXFP4")
    (1188, 16777216)
    """
    formats = _any_format(fmt_a, "fmt_a"), _any_format(fmt_b, "fmt_b")
    parts, zero_point = integer("parts", parts), flag("zero_point", zero_point)
    if parts not in (1, 2):
        raise ValueError(f"parts: expected 1 or 2, found {parts}")
    fmt_a, fmt_b = formats
    if not isinstance(fmt_a, BlockFormat) and not isinstance(fmt_b, BlockFormat):
        return _exact_k_limit(fmt_a, fmt_b, parts, zero_point)
    if parts == 2:
        return K_LIMIT
    return int(2**53 / math.prod(_full_span(fmt, zero_point) for fmt in formats))


def _any_format(fmt: Format | BlockFormat | str, argument: str) -> Format | BlockFormat:
    if isinstance(fmt, BlockFormat):
        return fmt
    name = match(fmt, BLOCK_FORMATS) if isinstance(fmt, str) else None
    return as_format(fmt, argument) if name is None else BLOCK_FORMATS[name]


def _full_span(fmt: Format | BlockFormat, zero_point: bool) -> float:
    """Return the largest value over what all are multiples of; of a block format all scales."""
    if isinstance(fmt, BlockFormat):
        return code_span(fmt.element) * code_span(fmt.scale_format)
    return code_span(fmt, zero_point)


def _exact_k_limit(fmt_a: Format, fmt_b: Format, parts: int, zero_point: bool) -> int:
    """Return the limit for arguments that are checked."""
    whole_a, cut_a = (_cut(fmt_a, *_full_range(fmt_a), n, zero_point) for n in (1, parts))
    whole_b, cut_b = (_cut(fmt_b, *_full_range(fmt_b), n, zero_point) for n in (1, parts))
    return min(_k_limit(cut_a, cut_b, 53), _k_limit(whole_a, whole_b, _SUM_BITS))


@lru_cache(maxsize=1024)
def whole_k_limit(fmt_a: Format, fmt_b: Format) -> int:
    """Return the largest K for which a float64 product is exact for all codes and zero points."""
    return _exact_k_limit(fmt_a, fmt_b, 1, zero_point=True)


def code_values(x: QuantizedTensor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the code values of ``x`` minus the zero point, with NaN and infinity as 0."""
    return _values(x, (...,), dtype)


def code_span(fmt: Format, zero_point: bool = False) -> float:
    """Return the largest value of a format over the number of which all are multiples."""
    return _cut(fmt, *_full_range(fmt), 1, zero_point)[0].span


def _k_limit(a: tuple[_Part, ...], b: tuple[_Part, ...], precision: int) -> int:
    """Return the largest K that satisfies (1), with 2^precision in it, for all pairs of parts."""
    return int(2**precision / (max(x.span for x in a) * max(y.span for y in b)))


@lru_cache(maxsize=1024)
def _cut(
    fmt: Format, first: int, last: int, parts: int, zero_point: bool = False
) -> tuple[_Part, ...]:
    """Cut the codes of magnitudes ``first`` to ``last`` into parts of about equal span."""
    if isinstance(fmt, IntFormat):
        limits = np.iinfo(fmt.dtype)  # a code outside the format's range is no error: INT8's -128
        span = limits.max - limits.min if zero_point else max(limits.max, -limits.min)
        return (_Part(first, last, float(span)),)

    def part(low: int, high: int) -> _Part:
        # All from `low` on are multiples of its step.
        exponent = max(low >> fmt.mantissa_bits, int(fmt.has_zero))
        step = 2.0 ** (exponent - fmt.bias - fmt.mantissa_bits)
        return _Part(low, high, float(fmt.values[high]) / step)

    binades = range(1 << fmt.mantissa_bits, last + 1, 1 << fmt.mantissa_bits)
    cuts = [(part(code, last), part(first, code - 1)) for code in binades if code > first]
    if parts == 1 or not cuts:
        return (part(first, last),)
    return min(cuts, key=lambda cut: max(cut[0].span, cut[1].span))


def _full_range(fmt: Format) -> tuple[int, int]:
    """Return the codes of the smallest magnitude of a format that is not zero, and the largest."""
    return int(isinstance(fmt, IntFormat) or fmt.has_zero), fmt.max_code


def _used_range(codes: npt.NDArray[Any], fmt: Format) -> tuple[int, int]:
    """Return the smallest and the largest magnitude among codes, without zeros and specials."""
    if isinstance(fmt, IntFormat) or not fmt.has_zero:
        return _full_range(fmt)
    magnitudes = np.bitwise_and(codes, fmt.magnitude_mask)
    magnitudes[magnitudes > fmt.max_code] = 0
    largest = int(magnitudes.max(initial=1))
    magnitudes -= np.uint8(1)  # 0 wraps to 255, out of the minimum's way
    return int(magnitudes.min(initial=largest - 1)) + 1, largest


def _plan(
    a: QuantizedTensor, b: QuantizedTensor, ks: slice, k: int
) -> tuple[tuple[_Part, ...], tuple[_Part, ...]]:
    """Cut each operand into parts, so that the fewest products are made and each is exact."""
    zero_point = a.zero_point is not None or b.zero_point is not None
    limit = _exact_k_limit(a.fmt, b.fmt, 2, zero_point)
    if k > limit:
        raise ValueError(f"{a.fmt} by {b.fmt}: expected K of at most {limit}, found {k}")
    whole_a = _cut(a.fmt, *_full_range(a.fmt), 1, zero_point)
    whole_b = _cut(b.fmt, *_full_range(b.fmt), 1, zero_point)
    if k <= _k_limit(whole_a, whole_b, 53):
        return whole_a, whole_b
    range_a = _used_range(a.codes[..., ks], a.fmt)
    range_b = _used_range(b.codes[..., ks, :], b.fmt)
    plans = (
        (_cut(a.fmt, *range_a, parts_a, zero_point), _cut(b.fmt, *range_b, parts_b, zero_point))
        for parts_a, parts_b in product((1, 2), repeat=2)
    )
    return next(plan for plan in plans if k <= _k_limit(*plan, 53))


def exact_product(a: QuantizedTensor, b: QuantizedTensor, ks: slice) -> Float32Array:
    """Compute the exact sums over ``ks``, rounded once to float32; specials count as 0."""
    k = len(range(*ks.indices(a.shape[-1])))
    parts_a, parts_b = _plan(a, b, ks, k)
    if isinstance(a.fmt, IntFormat) and isinstance(b.fmt, IntFormat):
        x, y = _values(a, (..., ks), np.float32), _values(b, (..., ks, slice(None)), np.float32)
        return integer_sums(x, y, _k_limit(parts_a, parts_b, 24))
    xs = [_values(a, (..., ks), np.float64, part) for part in parts_a]
    ys = [_values(b, (..., ks, slice(None)), np.float64, part) for part in parts_b]
    sums = [blas_product(x, y) for x in xs for y in ys]
    if len(sums) == 1:
        return sums[0].astype(np.float32)
    return _round_sum(sums, a.fmt.min_subnormal * b.fmt.min_subnormal)


def float32_product(a: QuantizedTensor, b: QuantizedTensor, ks: slice) -> Float32Array:
    """Compute the sums over ``ks`` by a float32 BLAS product; specials count as 0."""
    x, y = _values(a, (..., ks), np.float32), _values(b, (..., ks, slice(None)), np.float32)
    product: Float32Array = blas_product(x, y)
    return product


def integer_sums(x: Float32Array, y: Float32Array, block: int) -> Float32Array:
    """Compute float32 products, which are fast, over blocks of K short enough to be exact."""
    k = x.shape[-1]
    if k <= block:
        return blas_product(x, y)
    total = blas_product(x[..., :block], y[..., :block, :]).astype(np.float64)
    for start in range(block, k, block):
        end = start + block
        total += blas_product(x[..., start:end], y[..., start:end, :])
    return total.astype(np.float32)


def _round_sum(sums: list[Float64Array], quantum: float) -> Float32Array:
    """Add two to four arrays without error and round to float32 once.

    Each element is a multiple of ``quantum``, and their sum at most ``2^93 *
    quantum`` even if all signs were equal (:func:`exact_k_limit` ensures this).
    Fixed point in two limbs: with ``unit = 2^42 * quantum`` an element is
    ``high * unit + low``, ``high`` an integer and ``0 <= low < unit``. Added
    up, the lows stay multiples of ``quantum`` below ``2^44 * quantum`` and the
    highs integers of at most 2^51 + 4: all exact. After the carry, the two limbs
    are added and rounded to odd. Rounding this to float32 (29 bits less) gives the
    same as rounding the exact total.
    """
    unit = 2.0**42 * quantum
    flat = np.empty(sums[0].size, np.float32)
    for chunk in chunks(flat.size, _CHUNK):
        high, low = np.zeros((2, flat[chunk].size))
        for x in (array.reshape(-1)[chunk] for array in sums):
            whole = np.floor(x / unit)
            high += whole
            whole *= unit
            low += x - whole
        carry = np.floor(low / unit)
        high += carry
        high *= unit
        carry *= unit
        low -= carry

        flat[chunk] = sum_to_odd(high, low)
    return flat.reshape(sums[0].shape)


def _values(
    x: QuantizedTensor, window: tuple[Any, ...], dtype: npt.DTypeLike, part: _Part | None = None
) -> npt.NDArray[Any]:
    """Return the code values of ``x[window]``; NaN, infinity and values of other parts are 0."""
    first, last = part[:2] if part else _full_range(x.fmt)
    table = _value_table(x.fmt, np.dtype(dtype), first, last)
    values = lookup(table, x.codes[window].view(np.uint8))
    if x.zero_point is not None:
        zero_point = spread(x.zero_point, x.shape, x.axis, x.block)
        values -= np.broadcast_to(zero_point, x.shape)[window]
    return values


@lru_cache(maxsize=1024)
def _value_table(fmt: Format, dtype: np.dtype[Any], first: int, last: int) -> npt.NDArray[Any]:
    """Return the value of each code; 0 if its magnitude is not in ``first`` to ``last``."""
    if isinstance(fmt, IntFormat):
        return np.resize(fmt.values, 256).astype(dtype)
    magnitudes = np.arange(256, dtype=np.uint8) & fmt.magnitude_mask
    values = np.resize(fmt.values, 256)
    return np.where((first <= magnitudes) & (magnitudes <= last), values, 0).astype(dtype)

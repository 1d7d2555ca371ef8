"""Matrix products of quantized tensors, accumulated without any rounding.

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

NaN and infinity are taken out first and laid over the finite result: a BLAS may
skip a zero, and an infinity times a part that is zero must not become NaN.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.accumulators import ROUNDED, hopper_sums, rounded_sums
from npfp8.arrays import Float32Array, Float64Array, chunks
from npfp8.float_matmul import overlay_specials
from npfp8.formats import E4M3FN, E5M2, FloatFormat, Format, IntFormat
from npfp8.lookup import lookup
from npfp8.tensor import QuantizedTensor, spread

__all__ = ["ACCUMULATIONS", "exact_k_limit", "matmul"]

#: How :func:`matmul` can add products up.
ACCUMULATIONS = ("exact", "float32", "hopper", "hopper-fast", "float16", "bfloat16")

#: The bits of a NaN, and of one that an NVIDIA GPU computes.
_NAN, _HOPPER_NAN = np.uint32(0x7FC00000), np.uint32(0x7FFFFFFF)

#: Bits of the largest sum that :func:`_round_sum` takes, in units of the smallest.
_SUM_BITS = 93

_ALL = slice(None)

#: Elements worked on at a time where several passes go over an array.
_CHUNK = 1 << 14


def matmul(a: QuantizedTensor, b: QuantizedTensor, accumulate: str = "exact") -> Float32Array:
    """Matrix product of quantized tensors: what a tensor core with an ideal accumulator gives.

    The codes' values are multiplied and summed exactly over K; the sum is
    rounded to float32 (nearest, ties to even) and multiplied in float32 by the
    float32 product of the two scales.

    Parameters
    ----------
    a : QuantizedTensor of shape (..., M, K)
    b : QuantizedTensor of shape (..., K, N)
        The leading axes broadcast, as in :func:`numpy.matmul`. Scales may vary
        along any axis but K, along K only by block: then the products of the
        blocks, each rounded and scaled as above, are added in float32 from the
        first block to the last.
    accumulate : str
        What the sum over K is, before it is scaled:

        - "exact": as said above. Bit-reproducible, as are all but the next.
        - "float32": that of a float32 BLAS product; fast, but its bits depend
          on the BLAS, its threads and blocking.
        - "hopper-fast", "hopper": that of an H100's or H200's tensor cores, to
          the last bit, with fast accumulation and without
          (:mod:`npfp8.accumulators`, ``docs/hopper.md``). For E4M3FN and E5M2
          with scales that do not vary along K.
        - "float16", "bfloat16": rounded to that type after every product, from
          the first to the last of K: what too narrow an accumulator does.

    Returns
    -------
    ndarray of float32, shape (..., M, N)
        A NaN is the canonical 0x7FC00000, in the Hopper modes 0x7FFFFFFF, as on
        the GPU; infinities of E5M2 propagate as in IEEE 754; a sum that is
        exactly zero is +0.

    Raises
    ------
    TypeError
        If an operand is no QuantizedTensor.
    ValueError
        If the shapes do not fit, K exceeds :func:`exact_k_limit` where the sum
        is exact, a scale varies along K without blocks, or the Hopper modes are
        asked for what these tensor cores do not do.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, matmul, quantize
    >>> a = quantize(np.float32([[1, 2], [3, 4]]), E4M3FN, scale=1.0)
    >>> matmul(a, a)
    array([[ 7., 10.],
           [15., 22.]], dtype=float32)
    """
    _check_operands(a, b)
    if accumulate not in ACCUMULATIONS:
        names = ", ".join(map(repr, ACCUMULATIONS))
        raise ValueError(f"accumulate: expected one of {names}, found {accumulate!r}")
    a_k, b_k = a.ndim - 1, b.ndim - 2
    k = a.shape[a_k]
    # A block larger than K is all of K.
    a_block = min(a.block, max(k, 1)) if a.block and a.axis == a_k else None
    b_block = min(b.block, max(k, 1)) if b.block and b.axis == b_k else None
    if a_block and b_block and a_block != b_block:
        raise ValueError(f"blocks along K: expected equal ones, found {a_block} and {b_block}")
    block = a_block or b_block
    if accumulate.startswith("hopper"):
        _check_for_hopper(a, b, accumulate, block)
    if block is None:
        return _scaled_product(a, b, slice(None), accumulate, _scale_of(a, a_k), _scale_of(b, b_k))

    total: Float32Array | None = None
    for i, start in enumerate(range(0, k, block)):
        scale_a = a.scale[..., i : i + 1] if a_block else _scale_of(a, a_k)
        scale_b = b.scale[..., i : i + 1, :] if b_block else _scale_of(b, b_k)
        part = _scaled_product(a, b, slice(start, start + block), accumulate, scale_a, scale_b)
        with np.errstate(over="ignore", invalid="ignore"):
            total = part if total is None else total + part
    if total is None:  # K = 0
        return np.matmul(a.codes, b.codes).astype(np.float32)
    total[np.isnan(total)] = np.nan  # the sign of infinity minus infinity is the processor's
    return total


class _Part(NamedTuple):
    """The values of a format whose magnitudes have the codes ``first`` to ``last``.

    ``span`` is the largest of them over the number that all are multiples of.
    """

    first: int
    last: int
    span: float


def exact_k_limit(fmt_a: Format, fmt_b: Format, *, parts: int = 2, zero_point: bool = False) -> int:
    """The largest K for which a sum of products is exact, whatever the codes.

    Parameters
    ----------
    fmt_a, fmt_b : FloatFormat or IntFormat
    parts : {1, 2}
        Into how many parts each operand may be cut: 1 is a single float64
        product, 2 is the limit of :func:`matmul`.
    zero_point : bool
        Whether a zero point is subtracted from integer codes: their range doubles.

    Examples
    --------
    >>> from npfp8 import E4M3FN, E5M2, exact_k_limit
    >>> exact_k_limit(E4M3FN, E4M3FN, parts=1), exact_k_limit(E4M3FN, E5M2, parts=1)
    (171196, 10)
    >>> exact_k_limit(E5M2, E5M2)
    684784
    """
    whole_a, cut_a = (_cut(fmt_a, *_full_range(fmt_a), n, zero_point) for n in (1, parts))
    whole_b, cut_b = (_cut(fmt_b, *_full_range(fmt_b), n, zero_point) for n in (1, parts))
    return min(_k_limit(cut_a, cut_b, 53), _k_limit(whole_a, whole_b, _SUM_BITS))


def _k_limit(a: tuple[_Part, ...], b: tuple[_Part, ...], precision: int) -> int:
    """The largest K that satisfies (1) for all pairs of parts, with 2^precision in it."""
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
    """The magnitudes of a format: the codes of the smallest and of the largest but zero."""
    return int(isinstance(fmt, IntFormat) or fmt.has_zero), fmt.max_code


def _magnitudes(codes: npt.NDArray[Any], fmt: FloatFormat) -> npt.NDArray[np.uint8]:
    """The codes without their sign bit."""
    return codes & np.uint8((fmt.sign_bit or 256) - 1)


def _used_range(codes: npt.NDArray[Any], fmt: Format) -> tuple[int, int]:
    """The smallest and the largest magnitude among the codes; zeros and specials aside."""
    if isinstance(fmt, IntFormat) or not fmt.has_zero:
        return _full_range(fmt)
    magnitudes = _magnitudes(codes, fmt)
    magnitudes[magnitudes > fmt.max_code] = 0
    largest = int(magnitudes.max(initial=1))
    magnitudes -= np.uint8(1)  # 0 wraps to 255, out of the minimum's way
    return int(magnitudes.min(initial=largest - 1)) + 1, largest


def _plan(
    a: QuantizedTensor, b: QuantizedTensor, ks: slice, k: int
) -> tuple[tuple[_Part, ...], tuple[_Part, ...]]:
    """Into which parts to cut each operand: the fewest products of which each is exact."""
    zero_point = a.zero_point is not None or b.zero_point is not None
    limit = exact_k_limit(a.fmt, b.fmt, zero_point=zero_point)
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


def _check_operands(a: QuantizedTensor, b: QuantizedTensor) -> None:
    for name, operand in (("a", a), ("b", b)):
        if not isinstance(operand, QuantizedTensor):
            raise TypeError(f"{name}: expected a QuantizedTensor, found {type(operand).__name__}")
        if operand.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 axes, found shape {operand.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"expected shapes (..., M, K) and (..., K, N), found {a.shape} and {b.shape}"
        )


def _check_for_hopper(
    a: QuantizedTensor, b: QuantizedTensor, accumulate: str, block: int | None
) -> None:
    for name, operand in (("a", a), ("b", b)):
        if operand.fmt not in (E4M3FN, E5M2):
            raise ValueError(
                f"{name}: accumulate {accumulate!r} expects E4M3FN or E5M2, found {operand.fmt}"
            )
    if block is not None:
        raise ValueError(
            f"accumulate {accumulate!r}: expected scales that do not vary along K, "
            f"found blocks of {block}"
        )


def _scale_of(x: QuantizedTensor, k_axis: int) -> Float32Array:
    """The scale of ``x``, with a K axis of length 1 so that it broadcasts against the product."""
    if x.axis is None:
        return x.scale
    if x.axis == k_axis or x.block is not None:
        raise ValueError(
            "a scale that varies along K does not factor out of the sum: expected another axis, "
            f"or blocks of K, found axis {x.axis} and block {x.block} of shape {x.shape}"
        )
    return x.scale.reshape([-1 if i == x.axis else 1 for i in range(x.ndim)])


def _scaled_product(
    a: QuantizedTensor,
    b: QuantizedTensor,
    ks: slice,
    accumulate: str,
    scale_a: Float32Array,
    scale_b: Float32Array,
) -> Float32Array:
    """The product over the part ``ks`` of K, times its scale."""
    with np.errstate(over="ignore", under="ignore"):
        scale = np.multiply(scale_a, scale_b)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("the product of the operands' scales overflows or underflows float32")
    result, finite = _sums(a, b, ks, accumulate)
    result += np.float32(0)  # -0 becomes +0; which one a BLAS gives is its own affair
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(result, scale, out=result)
    if not finite:
        nan = np.isnan(result)
        result.view(np.uint32)[nan] = _HOPPER_NAN if accumulate.startswith("hopper") else _NAN
    return result


def _sums(
    a: QuantizedTensor, b: QuantizedTensor, ks: slice, accumulate: str
) -> tuple[Float32Array, bool]:
    """The sums over the part ``ks`` of K, and whether there is surely no NaN among them.

    A zero has either sign, a NaN any bits.
    """
    if accumulate in ROUNDED:
        x, y = a.code_values(np.float64), b.code_values(np.float64)
        return rounded_sums(x[..., ks], y[..., ks, :], accumulate), False
    if accumulate == "exact":
        result = _exact_product(a, b, ks)
    elif accumulate == "float32":
        result = np.matmul(
            _values(a, (..., ks), np.float32), _values(b, (..., ks, _ALL), np.float32)
        )
    else:
        result = hopper_sums(a, b, fast=accumulate == "hopper-fast")
    finite = _all_finite(a.codes[..., ks], a.fmt) and _all_finite(b.codes[..., ks, :], b.fmt)
    if not finite:
        overlay_specials(result, a.code_values()[..., ks], b.code_values()[..., ks, :])
    return result, finite


def _exact_product(a: QuantizedTensor, b: QuantizedTensor, ks: slice) -> Float32Array:
    """The exact sums over ``ks``, specials counted as 0, rounded once to float32."""
    k = len(range(*ks.indices(a.shape[-1])))
    parts_a, parts_b = _plan(a, b, ks, k)
    if isinstance(a.fmt, IntFormat) and isinstance(b.fmt, IntFormat):
        return _exact_integer_product(a, b, ks, k, _k_limit(parts_a, parts_b, 24))
    xs = [_values(a, (..., ks), np.float64, part) for part in parts_a]
    ys = [_values(b, (..., ks, _ALL), np.float64, part) for part in parts_b]
    sums = [np.matmul(x, y) for x in xs for y in ys]
    if len(sums) == 1:
        return sums[0].astype(np.float32)
    return _round_sum(sums, a.fmt.min_subnormal * b.fmt.min_subnormal)


def _exact_integer_product(
    a: QuantizedTensor, b: QuantizedTensor, ks: slice, k: int, block: int
) -> Float32Array:
    """Float32 products, the faster ones, over blocks of K short enough to be exact."""
    x, y = _values(a, (..., ks), np.float32), _values(b, (..., ks, _ALL), np.float32)
    if k <= block:
        return np.matmul(x, y)
    total = np.matmul(x[..., :block], y[..., :block, :]).astype(np.float64)
    for start in range(block, k, block):
        end = start + block
        total += np.matmul(x[..., start:end], y[..., start:end, :])
    return total.astype(np.float32)


def _round_sum(sums: list[Float64Array], quantum: float) -> Float32Array:
    """Add two to four arrays without error and round to float32 once.

    Each element is a multiple of ``quantum``, and their sum at most ``2^93 *
    quantum`` even if all signs were equal (:func:`exact_k_limit` sees to it).
    Fixed point in two limbs: with ``unit = 2^42 * quantum`` an element is
    ``high * unit + low``, ``high`` an integer and ``0 <= low < unit``. Added
    up, the lows stay multiples of ``quantum`` below ``2^44 * quantum`` and the
    highs integers of at most 2^51 + 4: all exact. Carried over, the two limbs
    go into one error-free addition, ``s + r``: ``s`` is the total rounded to
    float64 and ``r`` what that lost. Where ``r`` is not 0 and the last bit of
    ``s`` is 0, the neighbour of ``s`` on the side of ``r`` is the total rounded
    to odd, from which the rounding to float32 (29 bits less) is as good as one
    from the exact total.
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

        # Knuth's two-sum: high + low == s + r exactly, whatever their sizes.
        s = high + low
        back = s - high
        r = (high - (s - back)) + (low - back)
        bits = s.view(np.int64)
        to_odd = (r != 0) & (bits & 1 == 0)
        away_from_zero = (r > 0) == (s > 0)
        bits += to_odd * np.where(away_from_zero, 1, -1)
        flat[chunk] = s
    return flat.reshape(sums[0].shape)


def _values(
    x: QuantizedTensor, window: tuple[Any, ...], dtype: npt.DTypeLike, part: _Part | None = None
) -> npt.NDArray[Any]:
    """The code values of ``x[window]``; NaN, infinity and other parts' values are 0."""
    first, last = part[:2] if part else _full_range(x.fmt)
    table = _value_table(x.fmt, np.dtype(dtype), first, last)
    values = lookup(table, x.codes[window].view(np.uint8))
    if x.zero_point is not None:
        zero_point = spread(x.zero_point, x.shape, x.axis, x.block)
        values -= np.broadcast_to(zero_point, x.shape)[window]
    return values


@lru_cache(maxsize=1024)
def _value_table(fmt: Format, dtype: np.dtype[Any], first: int, last: int) -> npt.NDArray[Any]:
    """The value of each code; 0 where its magnitude is not in ``first`` to ``last``."""
    codes = np.arange(256, dtype=np.uint8)
    if isinstance(fmt, IntFormat):
        return codes.view(fmt.code_dtype).astype(dtype)
    magnitudes, values = _magnitudes(codes, fmt), np.resize(fmt.values, 256)
    return np.where((first <= magnitudes) & (magnitudes <= last), values, 0).astype(dtype)


def _all_finite(codes: npt.NDArray[Any], fmt: Format) -> bool:
    if isinstance(fmt, IntFormat):
        return True
    # Specials are above the largest finite code of each sign, or in the place of -0.
    if fmt.sign_bit in fmt.nan_codes and (codes == fmt.sign_bit).any():
        return False
    return bool(_magnitudes(codes, fmt).max(initial=0) <= fmt.max_code)

"""Operands of products decoded once: the values of codes, as a BLAS product takes them.

:func:`npfp8.matmul` decodes the codes of both operands and multiplies their values. What it
needs of an operand for that is a :class:`Decoded`. A model decodes a weight once and multiplies
it many times. An activation in bfloat16 needs no codes on the way: there are 65,536 bfloat16
values, so a table leads from each to the value of its code.

The product of two decoded operands is that of their codes, bit by bit. After the sums it makes
several passes over the result: to float32, times the scale, plus a bias, to bfloat16. These go
over rows that stay in the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arrays import (
    Array,
    Float32Array,
    Kernel,
    apply_chunkwise,
    bfloat16_kernel,
    blas_product,
    chunks,
)
from npfp8.bfloat16 import from_bits, round_finite, round_in_place
from npfp8.formats import Format, IntFormat
from npfp8.golden import unary
from npfp8.products.accumulator import Accumulator
from npfp8.products.exact import code_span, code_values, integer_sums, whole_k_limit
from npfp8.products.specials import overlay_specials
from npfp8.tensor import QuantizedTensor, quantize_bfloat16

__all__ = [
    "Decoded",
    "Lost",
    "check_shapes",
    "checked_factor",
    "decoded",
    "decoded_bfloat16",
    "decoded_product",
    "finished_sums",
    "product_dtype",
    "scale_of",
]

#: Results worked on at a time where several passes go over them: 512 KB in float32.
_CHUNK = 1 << 17


class Lost(NamedTuple):
    """How many numbers saturated, and how many underflowed: :meth:`QuantizedTensor.lost`."""

    saturated: int
    underflowed: int


@dataclass(frozen=True, eq=False)
class Decoded:
    """The values of an operand's codes, for products.

    Attributes
    ----------
    values : ndarray of float32 or float64, (..., M, K) or (..., K, N)
        The code values minus the zero point. NaN and infinity count as 0. The sign of a zero is
        not that of its code; no product depends on it.
    scale : ndarray of float32
        The scale, of a shape that broadcasts against the product.
    span : float
        The largest magnitude of the format over the number of which all values are multiples.
    specials : ndarray, optional
        The values with NaN and infinity, if there are any.
    """

    values: Array
    scale: Float32Array
    span: float
    specials: Array | None = None


def check_shapes(a: QuantizedTensor | Array, b: QuantizedTensor | Array) -> None:
    """Raise ValueError unless the operands are matrices, or stacks of some, that fit."""
    for name, operand in (("a", a), ("b", b)):
        if operand.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 axes, found shape {operand.shape}")
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"expected shapes (..., M, K) and (..., K, N), found {a.shape} and {b.shape}"
        )


def scale_of(x: QuantizedTensor, k_axis: int) -> Float32Array:
    """Return the scale of ``x`` with a K axis of length 1, to broadcast against the product."""
    if x.axis is None:
        return x.scale
    if x.axis == k_axis or x.block is not None:
        raise ValueError(
            "a scale that varies along K does not factor out of the sum: expected another axis, "
            f"or blocks of K, found axis {x.axis} and block {x.block} of shape {x.shape}"
        )
    return x.scale.reshape([-1 if i == x.axis else 1 for i in range(x.ndim)])


def checked_factor(scale_a: Float32Array, scale_b: Float32Array) -> Float32Array:
    """Return the product of two scales in float32; raise ValueError unless it is a scale, too."""
    if not scale_a.ndim and not scale_b.ndim:
        return _factor(float(scale_a), float(scale_b))
    return _factors(scale_a, scale_b)


@lru_cache(maxsize=1024)
def _factor(scale_a: float, scale_b: float) -> Float32Array:
    return _factors(np.asarray(scale_a, np.float32), np.asarray(scale_b, np.float32))


def _factors(scale_a: Float32Array, scale_b: Float32Array) -> Float32Array:
    with np.errstate(over="ignore", under="ignore"):
        scale = np.multiply(scale_a, scale_b)
    if not (np.isfinite(scale) & (scale > 0)).all():
        raise ValueError("the product of the operands' scales overflows or underflows float32")
    return np.asarray(scale)


def product_dtype(
    a: Format, b: Format, k: int, accumulator: Accumulator
) -> type[np.floating[Any]] | None:
    """Return the dtype in which BLAS products of all values make an accumulator's sums.

    Parameters
    ----------
    a, b : FloatFormat or IntFormat
    k : int
        The length of the sums.
    accumulator : Accumulator

    Returns
    -------
    dtype
        float32 for integers, and for the accumulator of a float32 BLAS product; otherwise float64.
        None if codes are needed: by a tensor core's accumulator, or where not every sum of
        products of the two formats fits a float64 (those of E5M2, :mod:`npfp8.products.exact`).

    Examples
    --------
    >>> from npfp8 import ACCUMULATORS, E4M3FN, E5M2, INT8
    >>> exact = ACCUMULATORS["exact"]
    >>> [product_dtype(fmt, fmt, 768, exact) for fmt in (E4M3FN, INT8, E5M2)]
    [<class 'numpy.float64'>, <class 'numpy.float32'>, None]
    """
    if accumulator.kind == "blas":
        return np.float32
    if accumulator.kind != "exact" or k > whole_k_limit(a, b):
        return None
    return np.float32 if isinstance(a, IntFormat) and isinstance(b, IntFormat) else np.float64


def decoded(x: QuantizedTensor, k_axis: int, dtype: type[np.floating[Any]]) -> Decoded:
    """Decode an operand whose scale does not vary along K.

    Parameters
    ----------
    x : QuantizedTensor, (..., M, K) or (..., K, N)
        Without a block format.
    k_axis : {-1, -2}
        The axis of K.
    dtype : type
        float32 or float64: what :func:`product_dtype` returns.

    Raises
    ------
    ValueError
        If a scale varies along K.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, quantize
    >>> decoded(quantize(np.float32([[1, -6]]), E4M3FN, 2.0), -1, np.float64).values
    array([[ 0.5, -3. ]])
    """
    specials = None if x.is_finite else x.code_values(dtype)
    span = code_span(x.fmt, x.zero_point is not None)
    one_block = x.axis == x.ndim + k_axis and x.block is not None and x.block >= x.shape[k_axis] > 0
    scale = x.scale if one_block else scale_of(x, x.ndim + k_axis)
    return Decoded(code_values(x, dtype), scale, span, specials)


def decoded_bfloat16(
    x: Float32Array,
    fmt: Format,
    scale: npt.ArrayLike,
    zero_point: int | None,
    dtype: type[np.floating[Any]],
    function: str | None = None,
) -> tuple[Decoded, Lost]:
    """Quantize bfloat16 values with one given scale and decode them, without codes on the way.

    Parameters
    ----------
    x : ndarray of float32
        bfloat16 values.
    fmt, scale, zero_point
        As :func:`npfp8.quantize_bfloat16` takes them.
    dtype : type
        float32 or float64: what :func:`product_dtype` returns.
    function : str, optional
        A key of :data:`npfp8.golden.UNARY`, the function whose results are quantized.

    Returns
    -------
    operand : Decoded
        ``decoded(quantize_bfloat16(y, fmt, scale, zero_point), axis, dtype)`` but for signs of
        zeros, where ``y`` is ``x``, or its function in bfloat16.
    lost : Lost
        The counts of that tensor's ``lost(y)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`npfp8.quantize_bfloat16`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> operand, lost = decoded_bfloat16(np.float32([1, 3, 1000]), E4M3FN, 2.0, None, np.float64)
    >>> operand.values, lost
    (array([  0.5,   1.5, 448. ]), Lost(saturated=1, underflowed=0))
    """
    if not isinstance(scale, np.ndarray):
        scale = np.asarray(scale)
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or not x.size or scale.ndim:
        return _by_codes(x, fmt, scale, zero_point, dtype, function)  # no numbers, or an error
    table = _bfloat16_table(fmt, float(scale), zero_point, np.dtype(dtype), function)
    if table is None:
        return _by_codes(x, fmt, scale, zero_point, dtype, function)
    saturated = underflowed = 0
    finite = True

    def kernel(part: Float32Array, results: Array) -> None:
        nonlocal saturated, underflowed, finite
        table.look_up(part, results)
        least, most = np.minimum.reduce(part), np.maximum.reduce(part)  # NaN if there is one
        if not (least >= table.low and most <= table.high):
            finite &= math.isfinite(least) and math.isfinite(most)
            if least < table.low:
                saturated += int(np.count_nonzero(part < table.low))
            if most > table.high:
                saturated += int(np.count_nonzero(part > table.high))
        underflowed += np.count_nonzero(results.view(table.bits) == table.negative_zero)

    found = apply_chunkwise(kernel, x, dtype)
    if not finite:
        return _by_codes(x, fmt, scale, zero_point, dtype, function)
    return Decoded(found, table.scale, table.span), Lost(saturated, int(underflowed))


def _by_codes(
    x: Float32Array,
    fmt: Format,
    scale: npt.ArrayLike,
    zero_point: int | None,
    dtype: type[np.floating[Any]],
    function: str | None,
) -> tuple[Decoded, Lost]:
    y = x if function is None else unary(function, x)
    q = quantize_bfloat16(y, fmt, scale, zero_point)
    return decoded(q, -1, dtype), Lost(*q.lost(y))


class _Table(NamedTuple):
    """The value of the code of each bfloat16, or of its function; and what is lost.

    A finite number below ``low`` or above ``high`` saturates. The value of one that underflows
    is -0, whose integer is ``negative_zero``, and every other zero is +0: the sign of a zero
    makes no difference to a product, and one comparison finds what was lost.
    """

    look_up: Kernel
    scale: Float32Array
    span: float
    low: np.float32
    high: np.float32
    bits: np.dtype[np.signedinteger[Any]]
    negative_zero: Array


@lru_cache(maxsize=256)
def _bfloat16_table(
    fmt: Format,
    scale: float,
    zero_point: int | None,
    dtype: np.dtype[np.floating[Any]],
    function: str | None,
) -> _Table | None:
    """Make the table; None if what saturates is not as :class:`_Table` says."""
    every = from_bits(np.arange(1 << 16, dtype=np.uint16))
    y = np.where(np.isfinite(every), every, np.float32(0))
    if function is not None:
        y = unary(function, y)
    q = quantize_bfloat16(y, fmt, scale, zero_point)
    if not q.is_finite:
        return None
    values = code_values(q, dtype)
    zero = values == 0
    values[zero] = np.where(y[zero] == 0, 0.0, -0.0)
    low, high = _range(fmt, scale, zero_point)
    upwards = np.r_[0xFF7F:0x7FFF:-1, 0:0x7F80]  # all finite ones
    x, beyond = every[upwards], ((y < low) | (y > high))[upwards]
    below, above = _run(beyond), _run(beyond[::-1])
    if below + above != np.count_nonzero(beyond):
        return None
    return _Table(
        bfloat16_kernel(values),
        q.scale,
        code_span(fmt, zero_point is not None),
        x[below],
        x[len(x) - 1 - above],
        bits := np.dtype(f"i{dtype.itemsize}"),
        np.asarray(np.iinfo(bits).min, bits),
    )


def _run(flags: npt.NDArray[np.bool_]) -> int:
    """Return the length of the run of True at the beginning."""
    return len(flags) if flags.all() else int(flags.argmin())


@lru_cache(maxsize=1024)
def _range(fmt: Format, scale: float, zero_point: int | None) -> tuple[np.float32, np.float32]:
    """Return the least and the largest bfloat16 that do not saturate."""
    x = from_bits(np.arange(0x7F81, dtype=np.uint16))  # from 0 to infinity
    low, high = (
        sign * x[-1 - quantize_bfloat16(sign * x, fmt, scale, zero_point).lost(sign * x)[0]]
        for sign in (np.float32(-1), np.float32(1))
    )
    return low, high


def decoded_product(
    a: Decoded,
    b: Decoded,
    accumulator: Accumulator,
    bias: Float32Array | None = None,
    to_bfloat16: bool = False,
) -> Float32Array:
    """Multiply decoded operands as :func:`npfp8.matmul` does their tensors; add a bias, and round.

    Parameters
    ----------
    a, b : Decoded, (..., M, K) and (..., K, N)
        Of the dtype of :func:`product_dtype`.
    accumulator : Accumulator
    bias : ndarray of float32, (N,), optional
        Added to the scaled sums in float32.
    to_bfloat16 : bool
        Whether the results are rounded to bfloat16 at the end.

    Returns
    -------
    ndarray of float32, (..., M, N)

    Raises
    ------
    ValueError
        If the shapes do not fit, or the product of the scales overflows or underflows.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import ACCUMULATORS, E4M3FN, quantize
    >>> a = quantize(np.float32([[1, 2], [3, 4]]), E4M3FN, scale=1.0)
    >>> x, y = (decoded(a, axis, np.float64) for axis in (-1, -2))
    >>> decoded_product(x, y, ACCUMULATORS["exact"], bias=np.float32([0, 1]))
    array([[ 7., 11.],
           [15., 23.]], dtype=float32)
    """
    x, y = a.values, b.values
    check_shapes(x, y)
    scale = checked_factor(a.scale, b.scale)
    if x.dtype == np.float32 and accumulator.kind == "exact":
        sums = integer_sums(x, y, int(2**24 / (a.span * b.span)))
    else:
        sums = blas_product(x, y)
    finite = a.specials is None and b.specials is None
    if not finite:
        sums = sums.astype(np.float32)
        overlay_specials(
            sums, x if a.specials is None else a.specials, y if b.specials is None else b.specials
        )
    nan_bits = None if finite else accumulator.nan_bits
    return finished_sums(sums, scale, nan_bits, bias, to_bfloat16)


def finished_sums(
    sums: Array,
    scale: Float32Array,
    nan_bits: np.uint32 | int | None,
    bias: Float32Array | None,
    to_bfloat16: bool,
) -> Float32Array:
    """Round sums to float32, scale them, add a bias and round to bfloat16; rows at a time.

    Parameters
    ----------
    sums : ndarray of float32 or float64, (..., M, N)
        In float32 and contiguous ones are changed in place.
    scale : ndarray of float32
        Of a shape that broadcasts against the sums.
    nan_bits : int, optional
        The bits of each NaN before the bias; None if there is none.
    bias : ndarray of float32, (N,), optional
        Added to the scaled sums in float32.
    to_bfloat16 : bool
        Whether the results are rounded to bfloat16 at the end.

    Returns
    -------
    ndarray of float32, (..., M, N)

    Examples
    --------
    >>> import numpy as np
    >>> finished_sums(np.array([[-0.0, 3.0]]), np.float32(0.5), None, np.float32([-0.0, 1]), True)
    array([[0. , 2.5]], dtype=float32)
    """
    # The product of permuted stacks lies in memory as they do, and its rows are copies then.
    in_place = sums.dtype == np.float32 and sums.flags.c_contiguous
    result = sums if in_place else np.empty(sums.shape, np.float32)
    if not sums.size:
        return result
    columns = sums.shape[-1]
    rows, found = sums.reshape(-1, columns), result.reshape(-1, columns)
    per_row = np.broadcast_to(scale, sums.shape).reshape(rows.shape) if scale.ndim else None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # Sums of finite numbers make no NaN with bits of its own; a bias may bring one.
        usual = nan_bits is None and (bias is None or math.isfinite(np.add.reduce(bias)))
        round_rows = round_finite if usual else round_in_place
        for chunk in chunks(len(rows), max(1, _CHUNK // columns)):
            part = found[chunk]
            if result is not sums:
                part[...] = rows[chunk]
            part += _ZERO  # every zero +0: the sign of a zero sum depends on the BLAS
            part *= scale if per_row is None else per_row[chunk]
            if nan_bits is not None:
                part.view(np.uint32)[np.isnan(part)] = nan_bits
            if bias is not None:
                part += bias
            if to_bfloat16:
                round_rows(part)
    return result


_ZERO = np.array(0, np.float32)

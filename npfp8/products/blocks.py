"""Products of block-scaled operands (MX, NVFP4): their scales are codes too, and belong to the sum.

The exact sum
-------------
An element is ``code value * block scale``: no more than 16 bits, so exact in float64, and
so is the product of two. The exact sum of these products over all of K is rounded to
float32 once, whatever the blocks of the two operands are, and multiplied by the float32
product of the tensors' scales.

When one BLAS product is exact
------------------------------
Let all elements of a row of ``a`` be multiples of the power of two ``u``, and those of a
column of ``b`` multiples of ``v``. Dividing the row by ``u`` and the column by ``v`` is exact
and changes no bit of any significand. The products are then integers, and so are their partial
sums, in whatever order; by the Cauchy-Schwarz inequality none is larger than the product of the
norms. While::

    (|row| / u) (|column| / v) <= 2^53                                      (1)

float64 holds them all, no addition rounds, and the float64 product of the elements as they
are, which differs by a power of two, is exact too: its exponents, of at most 600 in
magnitude, are far from float64's ends.

Let ``q`` be the smallest subnormal of the elements' format, ``max`` its largest value, and let
the scales of a row be multiples of the power of two ``s``. Then ``u = q s``, and the norm is at
most ``max`` times that of the scales of all elements: the scales alone decide, cheaply, whether
(1) holds. They are those that one row or column has, not all that E8M0 has: 2^-127 and 2^127 in
different rows do no harm. Where this bound is not enough, the norms are computed, and where
these are not, what the elements really are multiples of.

``max / q`` is 2^17.8 for E4M3, 448 for E3M2, 60 for E2M3, 12 for E2M1. NVFP4 by NVFP4 has
``12 * 448 / 2^-9`` with the scales if a row and a column have all of them, so (1) holds up to
K = 1188 for all codes. MXFP4 by MXFP4 with K = 1024 may have scales of 35 binades in a row
and a column together, MXFP8 E4M3 of 7. :func:`npfp8.exact_k_limit` states the K of all codes.

In float32
----------
If (1) holds with 2^24, a float32 product is exact, and takes half of the time. It does for usual
numbers in MXFP4. Where it fails for few rows, these are multiplied again in float64. Outliers
make the scales of some blocks larger than those of the others in a row, but these blocks are in
few places of K: if (1) with 2^24 holds for most parts of K, the products of these are float32's,
those of the others float64's, and all are added in float64, exactly.

Beyond (1)
----------
The norms of runs of K bound the partial sums more closely than those of whole rows and columns.
Where that is not enough either, the float64 sum and a bound of its error settle most elements,
and the others are added without error: :func:`npfp8.products.float32.rounded_product`, for any
scales and K up to 2^24. In all these ways the result is the exact sum rounded once, so it makes
no difference which one is taken.

Block by block
--------------
The accumulator "block-sums" takes the exact sum of each block times its two scales, rounds
it to float32, and adds the blocks in float32 from the first to the last: a product of
kernels that scale after each block. Narrow accumulators ("float16") add the codes' products
of each block up in their type; that sum times the scales is rounded to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, Float64Array, blas_product, chunks, lookup
from npfp8.blocks.formats import BlockFormat
from npfp8.blocks.quantize import checked_tensor_scale, quantize_blocks
from npfp8.blocks.values import ScaledBlocks, scaled_blocks
from npfp8.codec.tables import values_of
from npfp8.formats import Format
from npfp8.products.accumulator import Accumulator
from npfp8.products.exact import code_span
from npfp8.products.float32 import K_LIMIT, lowest_bits, rounded_product
from npfp8.products.operands import Lost, finished_sums
from npfp8.products.specials import overlay_specials
from npfp8.rounding import sum_to_odd
from npfp8.scaling import spread
from npfp8.tensor import QuantizedTensor, quantize

__all__ = [
    "PREPARED_BYTES",
    "Elements",
    "Prepared",
    "block_scaled_product",
    "operand_of",
    "overlay",
    "per_line",
    "prepared_blocks",
    "scales_of",
    "times_factors",
]

#: Results worked on at a time where each block of K has its own: temporaries stay in the cache.
_CHUNK = 1 << 16

#: The largest product of the spans of two formats' codes with which a float32 product of a part
#: of K is likely to be exact: that of MXINT8 by itself is 2^14, of E4M3 by itself 2^35.
_NARROW = 2.0**16

#: Elements of K in a part that has a float32 product of its own: whole blocks of MX and NVFP4, and
#: as many as make up for adding one more array.
_PART = 128

#: The share of the rows of a product in float32 that may be computed again in float64: it takes
#: twice as long.
_FEW = 0.25

#: Elements of K whose norms are multiplied to bound an error: a block, for most formats.
_RUN = 32

#: Sums over a part of K in an accumulator, and whether certainly none of them is NaN.
Sums = Callable[[QuantizedTensor, QuantizedTensor, slice, Accumulator], tuple[Float32Array, bool]]


def block_scaled_product(
    a: QuantizedTensor | Prepared,
    b: QuantizedTensor | Prepared,
    accumulator: Accumulator,
    factors: tuple[Float32Array, Float32Array],
    block: int | None,
    sums: Sums,
    bias: Float32Array | None = None,
    to_bfloat16: bool = False,
) -> Float32Array:
    """Multiply operands of which at least one is block-scaled.

    Parameters
    ----------
    a, b : QuantizedTensor or Prepared
        Of shapes that fit.
    accumulator : Accumulator
    factors : ndarray of float32, two
        What factors out of the sum of each operand: its tensor's scale, or the scales of
        one without blocks.
    block : int, optional
        The length of the blocks along K, for accumulators that work block by block.
    sums : callable
        The sums of the other kinds of accumulators.
    bias : ndarray of float32, (N,), optional
        Added to the scaled sums in float32.
    to_bfloat16 : bool
        Whether the results are rounded to bfloat16 at the end.
    """
    left, right = _prepared(a, -1), _prepared(b, -2)
    x, y = left.tensor, right.tensor
    k = x.shape[-1]
    if k > K_LIMIT:
        raise ValueError(f"expected K of at most {K_LIMIT}, found {k}")

    def result() -> Array:
        if accumulator.kind == "exact":
            return _exact_sums(left, right)
        if accumulator.kind == "blas":
            return _blas_sums(left, right)
        parts = (
            _exact_block_sums(left, right, block or k)
            if accumulator.kind == "blocks"
            else _narrow_block_sums(x, y, block or k, accumulator, sums)
        )
        return _added(parts, (*_lead(x, y), x.shape[-2], y.shape[-1]))

    finite = x.is_finite and y.is_finite and accumulator.kind == "exact"
    return times_factors(result, factors, finite, accumulator, bias, to_bfloat16)


def _prepared(x: QuantizedTensor | Prepared, axis: int) -> Prepared:
    return x if isinstance(x, Prepared) else Prepared(x, axis)


def times_factors(
    result: Callable[[], Array],
    factors: tuple[Float32Array, Float32Array],
    finite: bool,
    accumulator: Accumulator,
    bias: Float32Array | None = None,
    to_bfloat16: bool = False,
) -> Float32Array:
    """Multiply sums by what factors out of them; ``finite`` if none certainly is NaN.

    The sums may be exact ones in float64, which are rounded first. Then a bias is added, and
    the results are rounded to bfloat16, if asked for.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        factor = np.multiply(*factors)
    # The number of a tensor of zeros may be 0, and that of tiny ones an infinity.
    usual = all((np.isfinite(one) & (one > 0)).all() for one in factors)
    if usual and not (np.isfinite(factor) & (factor > 0)).all():
        raise ValueError("the product of the operands' scales overflows or underflows float32")
    nan_bits = None if usual and finite else accumulator.nan_bits
    return finished_sums(result(), np.asarray(factor), nan_bits, bias, to_bfloat16)


def _lead(a: QuantizedTensor, b: QuantizedTensor) -> tuple[int, ...]:
    return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])


class Elements(NamedTuple):
    """The elements of an operand, all that does not factor out of the sum.

    ``values``, of float64 or float32, are finite; ``specials`` are the values with NaN and
    infinity, None without any.
    """

    values: Array
    specials: Array | None


class _Lines(NamedTuple):
    """Bounds for the rows or the columns of an operand, known from its scales.

    ``norms`` are no less than the norms of the elements, and ``units`` are powers of two that
    all elements are multiples of, infinity if all are zeros. Their shapes broadcast against
    the operand's without its K axis. ``parts`` are the units in each part of K, K being the
    first axis. ``largest`` is no less than any magnitude.
    """

    norms: Float64Array
    units: Float64Array
    parts: Float64Array
    largest: float


#: The most bytes per element that a :class:`Prepared` keeps: in float32, and in float64.
PREPARED_BYTES = 12


@dataclass(frozen=True, eq=False)
class Prepared:
    """An operand with what its exact products need, whatever the other operand is.

    Each field is computed when it is first needed, and kept, so that a product of weights that
    have been prepared does not decode them again.

    Parameters
    ----------
    tensor : QuantizedTensor
    axis : {-1, -2}
        The axis that products sum over: -1 of a left operand, -2 of a right one.
    values : ndarray of float32 or float64, optional
        The elements, if they are known and finite.
    """

    tensor: QuantizedTensor
    axis: int
    values: Array | None = None

    @cached_property
    def wide(self) -> Elements:
        """The elements in float64."""
        if self.values is None and not self.fits_float32:
            return operand_of(self.tensor)
        values, specials = self._elements  # of float32: faster, see npfp8.arrays.lookup
        return Elements(values.astype(np.float64, copy=False), specials)

    @cached_property
    def narrow(self) -> Elements | None:
        """The elements in float32, if it holds them and the products of two."""
        if not self.fits_float32:
            return None
        values, specials = self._elements
        return Elements(values.astype(np.float32, copy=False), specials)

    @property
    def _elements(self) -> Elements:
        if self.values is None:
            return operand_of(self.tensor, np.float32)
        return Elements(self.values, None)

    @property
    def fits_float32(self) -> bool:
        """Whether all elements, and the products of two of them, are normal float32 numbers."""
        lines, x = self.lines, self.tensor
        inside = lines.largest <= 2.0**60 and lines.units.min(initial=np.inf) >= 2.0**-60
        return inside and (x.block is None or x.scale_codes is not None)  # scales of few bits

    @cached_property
    def lines(self) -> _Lines:
        """Bounds for the rows or the columns."""
        return _lines_of(self.tensor, self.axis)

    @cached_property
    def span(self) -> float:
        """The largest bound of a norm over its unit."""
        return float((self.lines.norms / self.lines.units).max(initial=0.0))

    @cached_property
    def wide_span(self) -> float:
        """The largest norm over its unit, from the elements."""
        return self._span_of(self.wide, self.lines.units)

    @cached_property
    def narrow_spans(self) -> tuple[Float64Array, Float64Array]:
        """The norms of the elements in float32, which there are, over their units.

        Of each row or column over all of K, and the largest of each part of K.
        """
        assert self.narrow is not None
        x, units = self.narrow.values, self.lines.parts
        if not x.size:
            return np.zeros(0), np.zeros(0)
        first = np.moveaxis(x, self.axis, 0)
        parts = (np.moveaxis(first[ks], 0, self.axis) for ks in chunks(len(first), _PART))
        squares = np.array([_squares(part, self.axis) for part in parts], np.float64)
        squares *= _slack(x, self.axis) ** 2
        whole = np.sqrt(squares.sum(0)) / units.min(0)
        return whole, (np.sqrt(squares) / units).reshape(len(squares), -1).max(1)

    @cached_property
    def element_units(self) -> Float64Array:
        """What the elements of each row or column really are multiples of."""
        x, axis = self.wide.values, self.axis
        if axis == -x.ndim or not x.size:
            return _least_unit(x, axis)
        parts = chunks(len(x), max(1, _CHUNK * len(x) // x.size))
        return np.concatenate([_least_unit(x[part], axis) for part in parts])

    @cached_property
    def element_span(self) -> float:
        """The largest norm over what the elements really are multiples of."""
        return self._span_of(self.wide, self.element_units)

    def _span_of(self, elements: Elements, units: Float64Array) -> float:
        x = elements.values
        norms = np.sqrt(_squares(x, self.axis)) * _slack(x, self.axis)
        return float((norms / units).max(initial=0.0))


def _squares(x: Array, axis: int) -> Array:
    """Return the sums of the squares over one of the last two axes."""
    squares: Array = np.einsum("...k,...k->..." if axis == -1 else "...kn,...kn->...n", x, x)
    return squares


def _least_unit(x: Float64Array, axis: int) -> Float64Array:
    """Return the largest power of two that all elements along an axis are multiples of."""
    least: Float64Array = lowest_bits(x).min(axis, initial=np.inf)
    return least


def _slack(x: Array, axis: int) -> float:
    """Return how many times less a computed norm may be, after 2 K - 1 roundings to nearest."""
    return 1 + x.shape[axis] * float(np.finfo(x.dtype).eps)


class _Codeless(QuantizedTensor):
    """A tensor in a block format whose codes are made when something asks for them.

    Until then the numbers must not change.
    """

    blocks: ScaledBlocks

    @cached_property
    def codes(self) -> Array:
        blocks = self.blocks
        return quantize_blocks(
            blocks.x, blocks.fmt, blocks.axis, tensor_scale=blocks.tensor_scale
        ).codes

    @property
    def shape(self) -> tuple[int, ...]:
        return self.blocks.x.shape

    @property
    def ndim(self) -> int:
        return self.blocks.x.ndim


def prepared_blocks(
    x: Float32Array, fmt: BlockFormat, axis: int, tensor_scale: Float32Array | None = None
) -> tuple[Prepared, Lost]:
    """Quantize numbers to blocks along K for an exact product, without codes on the way.

    Parameters
    ----------
    x : ndarray of float32, (..., M, K) or (..., K, N)
        It must not change while the operand is in use: its codes are made when they are needed.
    fmt : BlockFormat
    axis : {-1, -2}
        The axis of K.
    tensor_scale : ndarray of float32, (), optional
        The number of the tensor, of a format that has one. Without it, it is computed.

    Returns
    -------
    operand : Prepared
        ``Prepared(quantize(x, fmt, axis=axis, tensor_scale=tensor_scale), axis)``
    lost : Lost
        The counts of that tensor's ``lost(x)``.

    Raises
    ------
    TypeError, ValueError
        As :func:`npfp8.quantize`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import MXFP4
    >>> operand, lost = prepared_blocks(np.float32([[7.9, 1.0, 0.1]]), MXFP4, -1)
    >>> operand.wide.values, lost
    (array([[6., 1., 0.]]), Lost(saturated=1, underflowed=1))
    >>> operand.tensor.codes
    array([[7, 2, 0]], dtype=uint8)
    """
    blocks = None
    if isinstance(x, np.ndarray) and x.dtype == np.float32 and x.size and x.ndim + axis >= 0:
        number = None if tensor_scale is None else checked_tensor_scale(tensor_scale, fmt)
        blocks = scaled_blocks(x, fmt, x.ndim + axis, number)
    if blocks is not None:
        tensor = object.__new__(_Codeless)
        vars(tensor).update(
            blocks=blocks,
            scale=blocks.scale,
            fmt=fmt.element,
            axis=blocks.axis,
            zero_point=None,
            block=fmt.block,
            scale_codes=blocks.scale_codes,
            tensor_scale=blocks.tensor_scale,
            block_format=fmt,
            is_finite=True,
        )
        operand = Prepared(tensor, axis)
        if operand.fits_float32:
            narrow = _span_of_codes(tensor) ** 2 <= _NARROW
            values, *lost = blocks.values(np.float32 if narrow else np.float64)
            vars(operand)["values"] = values
            return operand, Lost(*lost)
    q = quantize(x, fmt, axis=axis, tensor_scale=tensor_scale)
    return Prepared(q, axis), Lost(*q.lost(x))


def operand_of(x: QuantizedTensor, dtype: type[np.floating[Any]] = np.float64) -> Elements:
    """Return the elements of an operand, which the dtype holds: code values times block scales."""
    values = x.code_values(dtype)
    if x.block is None:
        if x.is_finite:
            return Elements(values, None)
    else:
        with np.errstate(invalid="ignore"):  # infinity times 0
            _scale_blocks(values, scales_of(x).astype(dtype, copy=False), x)
    finite = np.isfinite(values)
    if x.is_finite or finite.all():
        return Elements(values, None)
    return Elements(np.where(finite, values, values.dtype.type(0)), values)


def scales_of(x: QuantizedTensor) -> Float64Array:
    """Return the scale of each block, without the tensor's."""
    if x.scale_codes is None:
        return x.scale.astype(np.float64)
    assert x.block_format is not None
    scales: Float64Array = values_of(
        x.scale_codes, x.block_format.scale_format, np.dtype(np.float64)
    )
    return scales


def _scale_blocks(values: Float64Array, scales: Float64Array, x: QuantizedTensor) -> None:
    """Multiply the elements by their blocks' scales, in place."""
    assert x.axis is not None
    assert x.block is not None
    axis, length = x.axis, x.shape[x.axis]
    block = min(x.block, length)
    if not values.size:
        return
    whole = length // block
    # The axis comes first; splitting it makes a view, whatever the layout.
    elements, per_block = np.moveaxis(values, axis, 0), np.moveaxis(scales, axis, 0)
    split = elements[: whole * block].reshape(whole, block, *elements.shape[1:])
    split *= per_block[:whole, None]
    rest = elements[whole * block :]
    rest *= per_block[whole:]


def per_line(x: QuantizedTensor, k_axis: int) -> tuple[Float64Array, Float64Array]:
    """Return the largest block scale of each row or column, and what all are multiples of.

    Of shapes that broadcast against the operand without its K axis.
    """
    if x.block is None:
        return np.ones(()), np.ones(())
    scales = scales_of(x)
    units = lowest_bits(scales).min(axis=k_axis, initial=np.inf, keepdims=True)
    magnitudes = np.where(np.isfinite(scales), np.abs(scales), 0.0)
    largest = magnitudes.max(axis=k_axis, initial=0.0, keepdims=True)
    if x.axis != k_axis:
        assert x.axis is not None
        index = np.arange(x.shape[x.axis]) // min(x.block, x.shape[x.axis] or 1)
        largest, units = largest.take(index, axis=x.axis), units.take(index, axis=x.axis)
    return largest.squeeze(k_axis), units.squeeze(k_axis)


def _lines_of(x: QuantizedTensor, axis: int) -> _Lines:
    """Return the bounds for the rows or the columns that an operand's scales give."""
    step = x.fmt.min_subnormal
    largest = _span_of_codes(x) * step
    k_axis = x.ndim + axis
    if x.block is None:
        norm = math.sqrt(x.shape[k_axis]) * largest
        return _Lines(np.full((), norm), np.full((), step), np.full(1, step), largest)
    assert x.axis is not None
    squares, powers, table = _squares_and_powers(x, k_axis)
    most = math.sqrt(squares.max(initial=0.0)) * largest
    count = min(x.block, x.shape[x.axis]) if x.axis == k_axis else 1  # elements of a scale
    norms = np.sqrt(squares.sum(0) * count) * largest
    run = _PART // x.block
    if x.axis == k_axis and _PART % x.block == 0 and len(powers) > run:
        parts = table[np.minimum.reduceat(powers, range(0, len(powers), run))] * step
        return _Lines(norms, parts.min(0), parts, most)
    units = table[powers.min(0, initial=len(table) - 1)] * step
    if x.axis != k_axis:
        axis, shape = x.axis - (x.axis > k_axis), x.shape[:k_axis] + x.shape[k_axis + 1 :]
        norms, units = (spread(one, shape, axis, x.block) for one in (norms, units))
    return _Lines(norms, units, units[None], most)


def _squares_and_powers(
    x: QuantizedTensor, k_axis: int
) -> tuple[Float64Array, Array, Float64Array]:
    """Return each scale's square, and what it is a multiple of as an index of a table.

    The table has powers of two in ascending order, infinity is the last. A NaN has the square
    0 and the power infinity, and so has a block of zeros, to which the rules of powers of two
    give the smallest scale: its elements are multiples of anything. The K axis is the first, as
    a reduction over another one is slow where it is short.
    """
    if x.scale_codes is None:
        scales = np.moveaxis(scales_of(x), k_axis, 0)
        table, powers = np.unique(np.append(lowest_bits(scales), np.inf), return_inverse=True)
        magnitudes = np.where(np.isfinite(scales), np.abs(scales), 0.0)
        return magnitudes * magnitudes, powers[:-1].reshape(scales.shape), table
    assert x.block_format is not None
    of_codes, indices, table = _scale_tables(x.block_format.scale_format)
    codes = np.ascontiguousarray(np.moveaxis(x.scale_codes, k_axis, 0))
    squares, powers = lookup(of_codes, codes), lookup(indices, codes)
    if x.block_format.powers_of_two and not codes.all():
        zeros = (codes == 0) & ~np.moveaxis(_blocks_with_numbers(x), k_axis, 0)
        squares[zeros], powers[zeros] = 0.0, len(table) - 1
    return squares, powers, table


@lru_cache(maxsize=64)
def _scale_tables(fmt: Format) -> tuple[Float64Array, npt.NDArray[np.uint8], Float64Array]:
    """Return the square of each code's value, the index of its power of two, and the powers."""
    values = np.resize(fmt.values, 256)
    table, powers = np.unique(np.append(lowest_bits(values), np.inf), return_inverse=True)
    squares = np.where(np.isfinite(values), values, 0.0) ** 2
    return squares, powers[:-1].astype(np.uint8), table


def _blocks_with_numbers(x: QuantizedTensor) -> npt.NDArray[np.bool_]:
    """Return for each block whether it has an element that is not 0."""
    if isinstance(x, _Codeless):
        numbers: npt.NDArray[np.bool_] = x.blocks.amax > 0
        return numbers
    assert x.axis is not None
    assert x.block is not None
    numbers = lookup(np.resize(x.fmt.values, 256) != 0, x.codes.view(np.uint8))
    starts = np.arange(0, x.shape[x.axis], x.block)
    return np.logical_or.reduceat(numbers, starts, axis=x.axis)


def _exact_sums(a: Prepared, b: Prepared) -> Array:
    """Compute the exact sums over K, not yet rounded to float32 or rounded once."""
    span = a.span * b.span
    sums = _narrow_sums(a, b) if span <= 2.0**53 else None
    if sums is not None:
        assert a.narrow is not None
        assert b.narrow is not None
        x, y = a.narrow, b.narrow
    else:
        if span > 2.0**53:
            span = a.wide_span * b.wide_span
        if span > 2.0**53:
            span = a.element_span * b.element_span
        x, y = a.wide, b.wide
        units = (lambda: a.element_units), (lambda: b.element_units)
        sums = _once_rounded(x.values, y.values, span, *units)
    if x.specials is not None or y.specials is not None:
        sums = _to_float32(sums)
        overlay(sums, *x, *y)
    return sums


def _narrow_sums(a: Prepared, b: Prepared) -> Array | None:
    """Compute the exact sums, which float64 holds, by float32 products if most are exact.

    Those of few rows that are not are computed again, and are rounded once.
    """
    if _span_of_codes(a.tensor) * _span_of_codes(b.tensor) > _NARROW:
        return None
    if a.narrow is None or b.narrow is None:
        return None
    x, y = a.narrow.values, b.narrow.values
    (whole_a, parts_a), (whole_b, parts_b) = a.narrow_spans, b.narrow_spans
    most_b = whole_b.max(initial=0.0)
    beyond = whole_a * most_b > 2.0**24
    few = x.ndim == y.ndim == 2 and np.count_nonzero(beyond) <= len(x) * _FEW
    if few or not beyond.any():
        sums = blas_product(x, y)
        if beyond.any():
            sums[beyond] = _to_float32(blas_product(x[beyond].astype(np.float64), b.wide.values))
        return sums
    exact = parts_a * parts_b <= 2.0**24
    return _sums_of_parts(x, y, exact) if np.count_nonzero(exact) > len(exact) / 2 else None


def _sums_of_parts(x: Float32Array, y: Float32Array, narrow: npt.NDArray[np.bool_]) -> Float64Array:
    """Add the products of parts of K in float64: ``narrow`` ones are exact in float32."""
    total: Float64Array | None = None
    for ks, exact in zip(chunks(x.shape[-1], _PART), narrow, strict=True):
        part_x, part_y = x[..., ks], y[..., ks, :]
        if exact:
            part = blas_product(part_x, part_y)
        else:
            part = blas_product(part_x.astype(np.float64), part_y.astype(np.float64))
        total = part.astype(np.float64, copy=False) if total is None else np.add(total, part, total)
    assert total is not None
    return total


def _once_rounded(
    x: Float64Array,
    y: Float64Array,
    span: float,
    units_x: Callable[[], Float64Array],
    units_y: Callable[[], Float64Array],
) -> Array:
    """Multiply finite matrices, exactly or rounded once to float32; ``span``: left side of (1).

    The units are those of the rows of ``x`` and of the columns of ``y``, beyond (1).
    """
    if span > 2.0**53:
        return rounded_product(x, y, units_x(), units_y(), _RUN)
    return blas_product(x, y)


def _to_float32(sums: Array) -> Float32Array:
    """Round sums to float32; every zero is +0: the sign of a zero sum depends on the BLAS."""
    with np.errstate(over="ignore", under="ignore"):
        result: Float32Array = sums.astype(np.float32, copy=False)
    result += np.float32(0)
    return result


def overlay(
    result: Float32Array,
    x: Array,
    special_x: Array | None,
    y: Array,
    special_y: Array | None,
) -> None:
    """Put the results of NaN and infinity into those of the finite values."""
    if special_x is not None or special_y is not None:
        overlay_specials(
            result, x if special_x is None else special_x, y if special_y is None else special_y
        )


def _span_of_codes(x: QuantizedTensor) -> float:
    return code_span(x.fmt, x.zero_point is not None)


def _blas_sums(a: Prepared, b: Prepared) -> Float32Array:
    """Compute the sums by a float32 BLAS product of the elements in float32."""
    (x, special_x), (y, special_y) = (
        operand.narrow or _rounded(operand.wide) for operand in (a, b)
    )
    result = blas_product(x, y)
    result += np.float32(0)
    overlay(result, x, special_x, y, special_y)
    return result


def _rounded(elements: Elements) -> Elements:
    """Round elements to float32, which may make infinities."""
    values, specials = elements
    with np.errstate(over="ignore", under="ignore"):
        rounded = (values if specials is None else specials).astype(np.float32)
    finite = np.isfinite(rounded)
    if finite.all():
        return Elements(rounded, None)
    return Elements(np.where(finite, rounded, np.float32(0)), rounded)


def _added(parts: Iterator[Float32Array], shape: tuple[int, ...]) -> Float32Array:
    """Add the results of blocks in float32, from the first to the last."""
    total: Float32Array | None = None
    for part in parts:
        if total is None:
            total = part.copy()
        else:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                total += part
    return np.zeros(shape, np.float32) if total is None else total


def _exact_block_sums(left: Prepared, right: Prepared, block: int) -> Iterator[Float32Array]:
    """Yield the exact sum of each block of K, scaled and rounded once to float32."""
    a, b, operands = left.tensor, right.tensor, (left.wide, right.wide)
    span = float(block)
    for operand in (a, b):
        scales = scales_of(operand) if operand.block is not None else np.ones(1)
        odd = np.where(np.isfinite(scales), np.abs(scales), 0.0) / lowest_bits(scales)
        span *= _span_of_codes(operand) * float(odd.max(initial=1.0))
    units: tuple[Float64Array, ...] = (np.empty(0),) * 2  # not needed below (1)
    if span > 2.0**53:
        units = lowest_bits(left.wide.values), lowest_bits(right.wide.values)
        span = 1 + 2.0**-20
        for (values, _), unit, k_axis in zip(operands, units, (-1, -2), strict=True):
            span *= _largest_span(values, unit, k_axis, block)
    size = math.prod(_lead(a, b)) * a.shape[-2] * b.shape[-1]
    for ks in _runs(a.shape[-1], block, max(1, _CHUNK // max(size, 1))):
        count = -(-(ks.stop - ks.start) // block)
        by_block = partial(_by_block, ks=ks, count=count, ndim=max(a.ndim, b.ndim))
        rows, columns = partial(by_block, axis=-1), partial(by_block, axis=-2)

        (x, special_x), (y, special_y) = operands
        x, special_x = rows(x), None if special_x is None else rows(special_x)
        y, special_y = columns(y), None if special_y is None else columns(special_y)
        unit_x, unit_y = partial(_least, rows, units[0], -1), partial(_least, columns, units[1], -2)
        part = _to_float32(_once_rounded(x, y, span, unit_x, unit_y))
        overlay(part, x, special_x, y, special_y)
        yield from part


def _least(
    part: Callable[[Float64Array], Float64Array], units: Float64Array, axis: int
) -> Float64Array:
    """Return the least unit of each row or column of a part."""
    least: Float64Array = part(units).min(axis, initial=np.inf)
    return least


def _by_block(x: Float64Array, axis: int, ks: slice, count: int, ndim: int) -> Float64Array:
    """Return the part ``ks`` of K, along ``axis``, as ``count`` blocks along a first axis."""
    x = x.reshape(*(1,) * (ndim - x.ndim), *x.shape)
    part = x[..., ks] if axis == -1 else x[..., ks, :]
    before, after = part.shape[: ndim + axis], part.shape[ndim + axis + 1 :]
    blocks = part.reshape(*before, count, part.shape[axis] // count, *after)
    return np.moveaxis(blocks, axis - 1, 0)


def _largest_span(x: Float64Array, units: Float64Array, axis: int, block: int) -> float:
    """Return the largest norm of a block over what all of the block are multiples of."""
    if not x.size:
        return 0.0
    starts = range(0, x.shape[axis], block)
    norms = np.sqrt(np.add.reduceat(x * x, starts, axis=axis))
    return float((norms / np.minimum.reduceat(units, starts, axis=axis)).max())


def _runs(k: int, block: int, count: int) -> Iterator[slice]:
    """Cut K into runs of ``count`` whole blocks or fewer, and a shorter last block of its own."""
    whole = k // block * block if block else 0
    for start in range(0, whole, count * block or 1):
        yield slice(start, min(start + count * block, whole))
    if whole < k:
        yield slice(whole, k)


def _narrow_block_sums(
    a: QuantizedTensor, b: QuantizedTensor, block: int, accumulator: Accumulator, sums: Sums
) -> Iterator[Float32Array]:
    """Yield the sum of each block of K in an accumulator, scaled and rounded to float32."""
    scales = [
        (scales_of(x), k_axis) if x.block is not None else None
        for x, k_axis in ((a, a.ndim - 1), (b, b.ndim - 2))
    ]
    for i, ks in enumerate(_runs(a.shape[-1], block, 1)):
        found, _ = sums(a, b, ks, accumulator)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scale = np.ones(())
            for per_block in scales:
                if per_block is not None:
                    scale = scale * per_block[0].take([i], axis=per_block[1])
            # A float32 and a code have 32 bits, 24 + 32 are more than float64's: in two parts.
            high = (scale.view(np.int64) & ~np.int64(0xFFFFFF)).view(np.float64)
            part = found.astype(np.float64)
            low = part * (scale - high)
            low[np.isnan(low)] = 0.0  # of an infinity: it is in the higher part
            rounded = sum_to_odd(part * high, low).astype(np.float32)
        rounded += np.float32(0)
        yield rounded

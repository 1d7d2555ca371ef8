"""Products with weights of few bits by look-up tables, equal to the exact product bit by bit.

A weight of 4 bits has 16 values, so two of them together have 256, and a product of a row of
activations with two rows of weights has in each column one of 256 results. A table of these
results takes the place of the multiplications: the codes of several weights, side by side in
one number, are the place of their partial sum (:mod:`npfp8.products.lookup_tables`). T-MAC
(arXiv 2407.00088) and LUT-GEMM (arXiv 2206.09557) make such tables from the activations, as here;
DeepGEMM (arXiv 2304.09049) makes one for all products of 2-bit codes. ``docs/look-up-products.md``
has the measurements, and says where this is faster than a matrix product and where it is not.

Why the result has the bits of :func:`npfp8.matmul`
---------------------------------------------------
The exact product is a number: the sum of the products of the codes' values over K (over a block of
K, if the scales vary along K), rounded once to float32, times the scale. The tables give the same
sum in another order:

1. Every value of a format is an integer multiple of the format's smallest subnormal, ``q``. The
   activations over ``q_a`` and the weights over ``q_b`` are integers.
2. An entry of a table is an integer, the sum of at most 16 products of integers. Each of these
   sums, and each sum of entries, is held by the dtype that it is computed in: its bound says so
   (:mod:`npfp8.products.lookup_tables`). So no addition rounds or wraps.
3. The weights' zero point ``z`` is subtracted afterwards: the sum of ``x (w - z)`` is that of
   ``x w`` less ``z`` times that of ``x``. All three are integers of at most
   ``K max_a (max_w + max_z)``.
4. This is at most 2^53, which is checked before; so float64 holds the sums, and their product
   with ``q_a q_b``, a power of two. The conversion to float32 is the one rounding.

With block formats the sums of the blocks are multiplied by their scales, which are codes too,
and added in float64. That is exact under condition (1) of :mod:`npfp8.products.blocks`, with the
scales that the rows and columns really have; other scales are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from npfp8.arguments import flag, integer, require, wrong_type
from npfp8.arrays import Array, Float32Array, Float64Array, chunks, require_array
from npfp8.formats import FloatFormat, Format
from npfp8.products import (
    ACCUMULATORS,
    blocks_along_k,
    check_shapes,
    factor_of,
    scaled_in_blocks,
    unequal_blocks,
)
from npfp8.products.blocks import operand_of, overlay, per_line, scales_of, times_factors
from npfp8.products.exact import code_span
from npfp8.products.lookup_tables import field_values, table_sums
from npfp8.products.specials import overlay_specials
from npfp8.tensor import QuantizedTensor

__all__ = ["LookupWeights", "lookup_matmul", "lookup_weights"]

#: The widest codes: two of them have 2^8 values, and a table is no longer than a layer is wide.
_WIDEST = 4

#: The most bits of a group: its indices are uint16.
_GROUP_BITS = 16

#: The cost of an entry of a table, and the additional cost of a look-up by an index of two bytes,
#: relative to a look-up by an index of one byte.
_ENTRY_COST, _WIDE_COST = 0.7, 0.1

_EXACT = ACCUMULATORS["exact"]


@dataclass(frozen=True, eq=False, repr=False)
class LookupWeights:
    """Weights whose codes are grouped along K, as :func:`lookup_matmul` looks them up.

    :func:`lookup_weights` makes them.

    Parameters
    ----------
    indices : ndarray of uint8, uint16 or intp, (G, N)
        For each group of rows the weights of a column as one number: the first in its lowest
        bits. intp ones are ``expanded``: places in the tables of all groups of a run.
    frame : QuantizedTensor, (K, N)
        The format, the scales and the zero points; its codes are not used.
    group : int
        The number of weights in a group; the last group of a run may have fewer.
    run : int
        The rows after which groups begin anew: a block of K, or K.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the type stated, or the numbers do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import lookup_weights, quantize
    >>> lookup_weights(quantize(np.ones((768, 3072)), "E2M1", axis=1))
    <LookupWeights (768, 3072) E2M1, 384 groups of 2, 1191936 bytes>
    """

    indices: Array
    frame: QuantizedTensor
    group: int
    run: int

    def __post_init__(self) -> None:
        require_array("indices", self.indices, np.uint8, np.uint16, np.intp)
        require("frame", self.frame, QuantizedTensor, "a QuantizedTensor")
        for name in ("group", "run"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        k, n = _matrix_shape("frame", self.frame)
        _checked_group(self.group, _checked_bits("frame", self.frame.fmt))
        if self.run < 1:
            raise ValueError(f"run: expected at least 1, found {self.run}")
        expected = (_group_count(k, self.group, self.run), n)
        if self.indices.shape != expected:
            raise ValueError(f"indices: expected shape {expected}, found {self.indices.shape}")

    def __repr__(self) -> str:
        groups = f"{len(self.indices)} groups of {self.group}{' expanded' * self.expanded}"
        return (
            f"<LookupWeights {self.frame.shape} {self._format_name}, {groups}, {self.nbytes} bytes>"
        )

    @property
    def _format_name(self) -> str:
        return str(self.frame.block_format or self.frame.fmt)

    @property
    def expanded(self) -> bool:
        """Whether the indices are places in tables: larger in memory, faster to look up."""
        return self.indices.dtype == np.intp

    @property
    def nbytes(self) -> int:
        """The bytes of the indices, the scales and the zero points."""
        return self.indices.nbytes + self.frame.nbytes - self.frame.codes.nbytes

    def unpack(self) -> QuantizedTensor:
        """Return the quantized tensor that the weights were made of.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8 import E2M1, QuantizedTensor, lookup_weights
        >>> q = QuantizedTensor(np.uint8([[1, 2], [3, 4], [5, 15]]), 0.5, E2M1)
        >>> lookup_weights(q).unpack().codes
        array([[ 1,  2],
               [ 3,  4],
               [ 5, 15]], dtype=uint8)
        """
        fmt, (k, n) = self.frame.fmt, self.frame.shape
        bits = fmt.bits
        indices = self.indices.astype(np.intp)
        if self.expanded:
            indices &= (1 << bits * self.group) - 1
        fields = indices[:, None] >> (bits * np.arange(self.group))[:, None] & (1 << bits) - 1
        codes = np.empty((k, n), np.uint8)
        per_run = -(-self.run // self.group)
        for i, rows in enumerate(chunks(k, self.run)):
            grouped = fields[i * per_run : (i + 1) * per_run]
            codes[rows] = grouped.reshape(len(grouped) * self.group, n)[: len(codes[rows])]
        return replace(self.frame, codes=_codes_of(codes, fmt))


def lookup_weights(
    b: QuantizedTensor,
    group: int | None = None,
    *,
    block: int | None = None,
    expanded: bool = False,
) -> LookupWeights:
    """Group the codes of weights, once, for any number of products with them.

    Parameters
    ----------
    b : QuantizedTensor, (K, N)
        Weights in a format of at most 4 bits whose codes are all numbers: E2M1, integers, MXFP4,
        NVFP4. Scales and zero points may be of the tensor, of columns, or of blocks of K.
    group : int, optional
        The number of weights that are looked up together, of at most 16 bits in all. Without
        it, the number that makes look-ups and tables together cheapest for this N.
    block : int, optional
        The length of blocks of K after which groups begin anew. It is needed if the other
        operand has scales by block, ``b`` has none, and those blocks are not whole groups.
    expanded : bool
        Whether to keep the place of each group in the tables, in 8 bytes, instead of its codes
        in 1 or 2. With one row of activations that is up to twice as fast.

    Returns
    -------
    LookupWeights

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``b`` is no matrix, its format is wider than 4 bits or has infinities or NaN, or a
        group does not fit 16 bits.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import IntFormat, QuantizedTensor, lookup_weights
    >>> two_bits = IntFormat(-2, 1, "int8", name="two bits")
    >>> q = QuantizedTensor(np.int8([[1], [-2], [0], [-1]]), 1.0, two_bits)
    >>> packed = lookup_weights(q, group=4)
    >>> packed, f"{packed.indices[0, 0]:08b}"
    (<LookupWeights (4, 1) two bits, 1 groups of 4, 5 bytes>, '11001001')
    """
    require("b", b, QuantizedTensor, "a QuantizedTensor")
    k, n = _matrix_shape("b", b)
    bits = _checked_bits("b", b.fmt)
    expanded = flag("expanded", expanded)
    if group is None:
        group = _cheapest_group(bits, n)
    else:
        _checked_group(group := integer("group", group), bits)
    own = b.block if b.block and b.axis == 0 else None
    if block is not None:
        block = integer("block", block)
        if block < 1:
            raise ValueError(f"block: expected at least 1, found {block}")
        if own and min(block, k) != min(own, k):
            raise ValueError(f"block: expected {own}, which the blocks of b are, found {block}")
    run = min(own or block or k, k) or 1
    fields = b.codes.view(np.uint8) & np.uint8((1 << bits) - 1)
    places = np.zeros((_group_count(k, group, run), n), np.intp)
    per_run = -(-run // group)
    for i, rows in enumerate(chunks(k, run)):
        part, groups = fields[rows], places[i * per_run : (i + 1) * per_run]
        for place in range(group):
            codes = part[place::group]
            groups[: len(codes)] |= codes.astype(np.intp) << bits * place
        if expanded:
            groups += (np.arange(len(groups)) << bits * group)[:, None]
    narrow = np.uint8 if bits * group <= 8 else np.uint16
    codes = np.broadcast_to(np.zeros((), b.codes.dtype), b.shape)
    indices = places if expanded else places.astype(narrow)
    return LookupWeights(indices, replace(b, codes=codes), group, run)


def lookup_matmul(a: QuantizedTensor, b: LookupWeights | QuantizedTensor) -> Float32Array:
    """Multiply by weights of few bits with look-up tables: the bits of :func:`npfp8.matmul`.

    Parameters
    ----------
    a : QuantizedTensor, (..., M, K)
        The activations, of a format of any width whose sums float64 holds: INT8, UINT8, E4M3FN,
        E5M2 and others. Scales may vary along any axis except K, and along K by block; zero
        points may too. A block format's blocks are along K.
    b : LookupWeights or QuantizedTensor, (K, N)
        The weights. Those that are not grouped yet are grouped for this call, which takes longer
        than the product.

    Returns
    -------
    ndarray of float32, (..., M, N)
        As ``matmul(a, b)`` with exact accumulation, bit by bit, NaN and infinities included.

    Raises
    ------
    TypeError
        If an operand is not of the type stated.
    ValueError
        If :func:`npfp8.matmul` refuses the operands; if :func:`lookup_weights` refuses ``b``; or
        if float64 may not hold the sums or the blocks do not fit the groups, which
        :func:`npfp8.matmul` would compute.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import lookup_matmul, lookup_weights, matmul, quantize
    >>> rng = np.random.default_rng(0)
    >>> a = quantize(rng.standard_normal((2, 64)), "E4M3FN")
    >>> b = quantize(rng.standard_normal((64, 5)), "E2M1", axis=1)
    >>> weights = lookup_weights(b)
    >>> np.array_equal(lookup_matmul(a, weights), matmul(a, b))
    True
    """
    require("a", a, QuantizedTensor, "a QuantizedTensor")
    if not isinstance(b, LookupWeights | QuantizedTensor):
        raise wrong_type("b", "LookupWeights or a QuantizedTensor", b)
    frame = b.frame if isinstance(b, LookupWeights) else b
    check_shapes(a, frame)
    a_block, b_block = blocks_along_k(a, frame)
    if a_block and b_block and a_block != b_block:
        raise unequal_blocks(a_block, b_block)
    weights = b if isinstance(b, LookupWeights) else lookup_weights(b, block=a_block)
    if (
        a_block
        and weights.run != a_block
        and (a_block % weights.group or weights.run < a.shape[-1])
    ):
        raise ValueError(
            f"b: expected groups within the blocks of {a_block} of a, found groups of "
            f"{weights.group} in runs of {weights.run}: lookup_weights takes block={a_block}"
        )
    if a.scale_codes is not None or frame.scale_codes is not None:
        return _block_scaled(a, weights, a_block or b_block)
    _check_span(a, weights)

    def sums(ks: slice) -> tuple[Float32Array, bool]:
        result = _integer_sums(a, weights, ks)
        unit = a.fmt.min_subnormal * frame.fmt.min_subnormal
        with np.errstate(over="ignore", under="ignore"):
            rounded: Float32Array = (result * unit).astype(np.float32)
        if not a.is_finite:
            overlay_specials(rounded, a.code_values()[..., ks], _values(weights)[ks])
        return rounded, a.is_finite

    return scaled_in_blocks(a, frame, sums, _EXACT)


def _matrix_shape(name: str, x: QuantizedTensor) -> tuple[int, int]:
    if x.ndim != 2:
        raise ValueError(f"{name}: expected a matrix (K, N), found shape {x.shape}")
    k, n = x.shape
    return k, n


def _checked_bits(name: str, fmt: Format) -> int:
    """Return the width of a format's codes; raise ValueError for a format without tables."""
    if fmt.bits > _WIDEST:
        raise ValueError(
            f"{name}: expected a format of at most {_WIDEST} bits, found {fmt} of {fmt.bits}: "
            "npfp8.matmul multiplies it"
        )
    if isinstance(fmt, FloatFormat) and not fmt.is_finite.all():
        raise ValueError(f"{name}: expected a format without infinity and NaN, found {fmt}")
    return fmt.bits


def _checked_group(group: int, bits: int) -> None:
    most = _GROUP_BITS // bits
    if not 1 <= group <= most:
        raise ValueError(f"group: expected 1 to {most} for weights of {bits} bits, found {group}")


def _group_count(k: int, group: int, run: int) -> int:
    """Return the number of groups of K rows: in whole runs, and in the last."""
    return k // run * -(-run // group) + -(-(k % run) // group)


def _cheapest_group(bits: int, n: int) -> int:
    """Return the length of groups with the least work for a weight: of look-ups and of tables."""

    def work(group: int) -> float:
        width = bits * group
        return (n * (1 + _WIDE_COST * (width > 8)) + _ENTRY_COST * 2**width) / group

    return min(range(1, _GROUP_BITS // bits + 1), key=work)


def _codes_of(fields: Array, fmt: Format) -> Array:
    """Return the codes whose bits are the numbers ``fields``."""
    if fmt.code_dtype == np.uint8:
        return fields
    # The sign is at the top of the field; shifts within int8 spread it.
    unused = 8 - fmt.bits
    return (fields << np.uint8(unused)).view(np.int8) >> np.int8(unused)


def _largest_weight(frame: QuantizedTensor) -> float:
    """Return the largest weight, zero point subtracted, over the smallest subnormal."""
    largest = float(np.abs(field_values(frame.fmt)).max())
    if frame.zero_point is not None:
        largest += float(np.abs(frame.zero_point.astype(np.float64)).max(initial=0.0))
    return largest


def _check_span(a: QuantizedTensor, weights: LookupWeights, scales: float = 1.0) -> None:
    """Raise ValueError if float64 may not hold a sum over K, in units of the smallest product."""
    k = a.shape[-1]
    span = code_span(a.fmt, a.zero_point is not None) * _largest_weight(weights.frame)
    if k * span * scales <= 2.0**53:
        return
    formats = f"{a.block_format or a.fmt} by {weights.frame.block_format or weights.frame.fmt}"
    if scales > 1:
        raise ValueError(
            f"{formats}: the scales of a row and of a column span {math.log2(scales):.0f} binades, "
            f"with which float64 does not hold a sum of {k} products: npfp8.matmul computes it"
        )
    raise ValueError(
        f"{formats}: expected K of at most {int(2.0**53 / span)} for look-up tables, found {k}"
    )


def _integer_sums(a: QuantizedTensor, weights: LookupWeights, ks: slice) -> Float64Array:
    """Compute the sums over ``ks``, in units of both smallest subnormals; specials count as 0."""
    frame, (start, stop, _) = weights.frame, ks.indices(a.shape[-1])
    x = a.code_values(np.float32)[..., start:stop]
    if not a.is_finite:
        x[~np.isfinite(x)] = 0
    x /= np.float32(a.fmt.min_subnormal)
    rows = x.reshape(math.prod(a.shape[:-1]), stop - start)
    per_run = -(-weights.run // weights.group)
    out = np.zeros((len(rows), weights.frame.shape[1]))
    # A part of K is a run, a piece of one, or all of the runs.
    for begin in range(start, stop, weights.run):
        end = min(begin + weights.run, stop)
        first = begin % weights.run // weights.group
        place = begin // weights.run * per_run + first
        indices = weights.indices[place : place + -(-(end - begin) // weights.group)]
        part = rows[:, begin - start : end - start]
        out += table_sums(part, indices, frame.fmt, weights.group, first)
    if frame.zero_point is not None:
        zero_point = frame.zero_point.astype(np.float64)
        if frame.block is not None and frame.axis == 0:
            zero_point = zero_point[start // frame.block]
        out -= rows.sum(axis=-1, dtype=np.float64, keepdims=True) * zero_point
    return out.reshape(*a.shape[:-1], weights.frame.shape[1])


def _values(weights: LookupWeights) -> Float64Array:
    values: Float64Array = weights.unpack().code_values(np.float64)
    return values


def _block_scaled(a: QuantizedTensor, weights: LookupWeights, block: int | None) -> Float32Array:
    """Compute a product with block scales, which are part of the exact sum."""
    frame, k = weights.frame, a.shape[-1]
    operands = (("a", a, a.ndim - 1), ("b", frame, 0))
    for name, x, k_axis in operands:
        if x.block is not None and x.axis != k_axis:
            raise ValueError(f"{name}: expected blocks along K, found them along axis {x.axis}")
    factors = factor_of(a, a.ndim - 1, True), factor_of(frame, 0, True)
    span = 1.0
    for _, x, k_axis in operands:
        largest, unit = per_line(x, k_axis)
        span *= max(1.0, float((largest / unit).max(initial=0.0)))
    _check_span(a, weights, span)

    def result() -> Float32Array:
        total = np.zeros((*a.shape[:-1], frame.shape[1]))
        scales_a, scales_b = (None if x.block is None else scales_of(x) for x in (a, frame))
        for i, ks in enumerate(chunks(k, block or max(k, 1))):
            part = _integer_sums(a, weights, ks)
            with np.errstate(invalid="ignore"):  # infinity times 0: an element of it is special
                if scales_a is not None:
                    part *= scales_a[..., i : i + 1]
                if scales_b is not None:
                    part *= scales_b[i]
                total += part
        total *= a.fmt.min_subnormal * frame.fmt.min_subnormal
        with np.errstate(over="ignore", under="ignore"):
            rounded = total.astype(np.float32)
        rounded += np.float32(0)
        if not (a.is_finite and frame.is_finite):
            x, y = operand_of(a), operand_of(weights.unpack())
            overlay(rounded, x.values, x.specials, y.values, y.specials)
        return rounded

    finite = a.is_finite and frame.is_finite
    return times_factors(result, factors, finite, _EXACT)

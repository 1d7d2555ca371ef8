"""Matrix products of quantized tensors, and of float32 arrays.

:func:`matmul` multiplies the codes' values and adds the products up as an
:class:`Accumulator` says: exactly (:mod:`npfp8.products.exact`) or as hardware does it
(:mod:`npfp8.products.tensor_cores`, :mod:`npfp8.products.sequential`). :func:`matmul_16bit`
multiplies float16 and bfloat16 numbers as tensor cores do; :func:`matmul_float32` is the
correctly rounded product of float32 numbers (:mod:`npfp8.products.float32`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npfp8.arguments import array_of, wrong_type
from npfp8.arrays import Array, Float32Array, chunks
from npfp8.products.accumulator import Accumulator
from npfp8.products.blocks import Prepared, block_scaled_product
from npfp8.products.exact import exact_k_limit, exact_product, float32_product
from npfp8.products.float32 import matmul_float32
from npfp8.products.operands import (
    check_shapes,
    checked_factor,
    decoded,
    decoded_product,
    product_dtype,
    scale_of,
)
from npfp8.products.sequential import sequential_sums
from npfp8.products.specials import overlay_specials
from npfp8.products.table import (
    ACCUMULATIONS,
    ACCUMULATORS,
    as_accumulator,
)
from npfp8.products.tensor_cores import tensor_core_sums
from npfp8.products.tensor_cores.rules import RULES
from npfp8.products.tensor_cores.terms import terms_of_codes, terms_of_floats
from npfp8.tensor import QuantizedTensor

__all__ = [
    "ACCUMULATIONS",
    "ACCUMULATORS",
    "Accumulator",
    "as_accumulator",
    "blocks_along_k",
    "check_shapes",
    "exact_k_limit",
    "factor_of",
    "matmul",
    "matmul_16bit",
    "matmul_float32",
    "prepared_product",
    "scaled_in_blocks",
    "scaled_product",
    "unequal_blocks",
]


def matmul(
    a: QuantizedTensor, b: QuantizedTensor, accumulate: str | Accumulator = "exact"
) -> Float32Array:
    """Multiply quantized matrices, as a tensor core with an ideal accumulator does.

    The values of the codes are multiplied and summed exactly over K; the sum is
    rounded to float32 (nearest, ties to even) and multiplied in float32 by the
    float32 product of the two scales. ``a @ b`` is the same.

    With block-scaled operands (MX, NVFP4), the block scales, which are codes too, are part
    of the sum: the products of ``code value * block scale`` are summed exactly over all of
    K, and the scale afterwards is the product of the tensors' scales alone.

    Parameters
    ----------
    a : QuantizedTensor of shape (..., M, K)
    b : QuantizedTensor of shape (..., K, N)
        The leading axes broadcast, as in :func:`numpy.matmul`. Scales may vary
        along any axis except K. Along K they may vary by block: the products of the
        blocks, each rounded and scaled as above, are added in float32 from the
        first block to the last. A block-scaled operand may be multiplied by any other:
        block-scaled with other blocks, along any axis, or not block-scaled.
    accumulate : str or Accumulator
        How the products are added up over K, before the sum is scaled: a key of
        :data:`npfp8.ACCUMULATORS` in any case, or a record of your own:

        - "exact": the exact sum, as above. Bit-reproducible, as are all except the next.
        - "float32": the sum of a float32 BLAS product. It is fast, but its bits depend
          on the BLAS, its threads and its blocking. Of block-scaled operands the elements
          are multiplied, ``code value * block scale`` in float32.
        - "hopper-fast", "hopper": the sum of the tensor cores of an H100 or H200, to
          the last bit, with and without fast accumulation (``docs/hopper.md``). For E4M3FN
          and E5M2 with scales that do not vary along K.
        - "ada", "blackwell", "cdna3" and the others of tensor cores: their sums, to the last
          bit, for the formats that they take (:mod:`npfp8.products.tensor_cores`,
          ``docs/tensor-cores.md``). Those of MX and NVFP4 ("blackwell-mxf8f6f4" and others)
          take operands in blocks along K alone; the blocks' scales are part of the sum.
          Those of 16-bit operands are for :func:`matmul_16bit`.
        - "float16", "bfloat16": the sum is rounded to that type after every product,
          from the first to the last of K, as in too narrow an accumulator. With blocks
          along K, each block has a sum of its own.
        - "block-sums": as "exact", but the exact sum of each block of K times the blocks'
          scales is rounded to float32, and the blocks are added in float32 from the first
          to the last, with block-scaled operands too (:mod:`npfp8.products.blocks`,
          ``docs/block-products.md``).

        All but "exact" and "float32" need equal blocks if both operands have blocks.

    Returns
    -------
    ndarray of float32, shape (..., M, N)
        A NaN is the canonical 0x7FC00000, in a tensor core's sums 0x7FFFFFFF (0x7FFFE000
        where they are float16), as on the GPU; infinities of E5M2 propagate as in IEEE 754; a
        sum that is exactly zero is +0.

    Raises
    ------
    TypeError
        If an operand is not a QuantizedTensor, or ``accumulate`` is neither a name nor an
        Accumulator.
    ValueError
        If the shapes do not fit, K exceeds :func:`exact_k_limit` where the sum
        is exact, a scale varies along K without blocks, blocks are not as the accumulator
        needs them, its name is unknown, or a tensor core's is used for formats or scales that
        it does not support.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, matmul, quantize
    >>> a = quantize(np.float32([[1, 2], [3, 4]]), E4M3FN, scale=1.0)
    >>> matmul(a, a)
    array([[ 7., 10.],
           [15., 22.]], dtype=float32)
    >>> a = quantize(np.repeat(np.float32([[2**30, 1, -(2**30)]]), 32, axis=1), "MXFP4")
    >>> b = quantize(np.ones((96, 1)), "MXFP4", axis=0)
    >>> matmul(a, b), matmul(a, b, "block-sums")
    (array([[32.]], dtype=float32), array([[0.]], dtype=float32))
    """
    _check_operands(a, b)
    known = ACCUMULATORS.get(accumulate) if isinstance(accumulate, str) else None
    accumulator = known or as_accumulator(accumulate)
    a_block, b_block = blocks_along_k(a, b)
    block_scaled = a.scale_codes is not None or b.scale_codes is not None
    any_blocks = block_scaled and accumulator.kind in ("exact", "blas")
    if a_block and b_block and a_block != b_block and not any_blocks:
        raise unequal_blocks(a_block, b_block)
    block = a_block or b_block
    if block or accumulator.formats is not None:
        accumulator.check(a.block_format or a.fmt, b.block_format or b.fmt, block)
    if accumulator.block is not None:
        return _block_scaled_in_a_tensor_core(a, b, accumulator)
    if block_scaled:
        factors = factor_of(a, a.ndim - 1, any_blocks), factor_of(b, b.ndim - 2, any_blocks)
        return block_scaled_product(a, b, accumulator, factors, block, _sums)

    dtype = product_dtype(a.fmt, b.fmt, a.shape[-1], accumulator)
    if dtype is not None and (not block or block == a.shape[-1]):
        return decoded_product(decoded(a, -1, dtype), decoded(b, -2, dtype), accumulator)

    def sums(ks: slice) -> tuple[Float32Array, bool]:
        return _sums(a, b, ks, accumulator)

    return scaled_in_blocks(a, b, sums, accumulator)


def prepared_product(
    a: QuantizedTensor | Prepared,
    b: QuantizedTensor | Prepared,
    bias: Float32Array | None = None,
    to_bfloat16: bool = False,
) -> Float32Array:
    """Multiply operands of which one is block-scaled as :func:`matmul` does, with exact sums.

    What has been :class:`npfp8.products.blocks.Prepared` for a product is not decoded again. A
    bias is added and the results are rounded as :func:`npfp8.products.operands.decoded_product`
    does it.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import quantize
    >>> from npfp8.products.blocks import Prepared
    >>> a = quantize(np.ones((1, 32)), "MXFP4")
    >>> prepared_product(a, Prepared(a.mT, -2))
    array([[32.]], dtype=float32)
    """
    x, y = (one.tensor if isinstance(one, Prepared) else one for one in (a, b))
    check_shapes(x, y)
    factors = factor_of(x, x.ndim - 1, True), factor_of(y, y.ndim - 2, True)
    how = ACCUMULATORS["exact"]
    return block_scaled_product(a, b, how, factors, None, _sums, bias, to_bfloat16)


def blocks_along_k(a: QuantizedTensor, b: QuantizedTensor) -> tuple[int | None, int | None]:
    """Return the length of each operand's blocks of K, at most K; None if it has none along K."""
    k = a.shape[-1]
    # A block larger than K is all of K.
    a_block = min(a.block, max(k, 1)) if a.block and a.axis == a.ndim - 1 else None
    b_block = min(b.block, max(k, 1)) if b.block and b.axis == b.ndim - 2 else None
    return a_block, b_block


def unequal_blocks(a_block: int, b_block: int) -> ValueError:
    """Return the error for operands whose blocks along K differ."""
    return ValueError(f"blocks along K: expected equal ones, found {a_block} and {b_block}")


def scaled_in_blocks(
    a: QuantizedTensor,
    b: QuantizedTensor,
    sums: Callable[[slice], tuple[Float32Array, bool]],
    accumulator: Accumulator,
) -> Float32Array:
    """Scale the sums of each block of K, or those of all of K, and add the blocks in float32.

    Parameters
    ----------
    a, b : QuantizedTensor
        Operands without a block format, whose blocks along K are equal if both have some.
    sums : callable
        The sums over a part of K, and whether certainly none of them is NaN.
    accumulator : Accumulator
        What the bits of a NaN are.
    """
    a_k, b_k = a.ndim - 1, b.ndim - 2
    a_block, b_block = blocks_along_k(a, b)
    block = a_block or b_block
    if block is None:
        return _scaled(sums, slice(None), scale_of(a, a_k), scale_of(b, b_k), accumulator)
    total: Float32Array | None = None
    for i, ks in enumerate(chunks(a.shape[a_k], block)):
        scale_a = a.scale[..., i : i + 1] if a_block else scale_of(a, a_k)
        scale_b = b.scale[..., i : i + 1, :] if b_block else scale_of(b, b_k)
        part = _scaled(sums, ks, scale_a, scale_b, accumulator)
        with np.errstate(over="ignore", invalid="ignore"):
            total = part if total is None else total + part
    if total is None:  # K = 0
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return np.zeros((*lead, a.shape[-2], b.shape[-1]), np.float32)
    total[np.isnan(total)] = np.nan  # the sign of infinity minus infinity is the processor's
    return total


#: Sums of codes do not overflow from this exponent on; infinities of two signs would make NaN.
_FLOAT32_EMAX = 127

QuantizedTensor._product = staticmethod(matmul)


def _check_operands(a: QuantizedTensor, b: QuantizedTensor) -> None:
    for name, operand in (("a", a), ("b", b)):
        if not isinstance(operand, QuantizedTensor):
            raise wrong_type(name, "a QuantizedTensor", operand)
    check_shapes(a, b)


def factor_of(x: QuantizedTensor, k_axis: int, any_blocks: bool) -> Float32Array:
    """Return the part of the scale of ``x`` that factors out of a sum with block scales."""
    if x.block is None or (x.axis != k_axis and not any_blocks):
        return scale_of(x, k_axis)
    return x.tensor_factor


def _block_scaled_in_a_tensor_core(
    a: QuantizedTensor, b: QuantizedTensor, accumulator: Accumulator
) -> Float32Array:
    """Compute the sums over all of K, scales included, times the tensors' factors."""
    for name, x, k_axis in (("a", a, a.ndim - 1), ("b", b, b.ndim - 2)):
        if x.axis != k_axis:
            raise ValueError(
                f"{name}: accumulate {accumulator.name!r}: expected blocks along K, "
                f"found blocks along axis {x.axis} of {x.ndim}"
            )
    assert a.block_format is not None
    assert b.block_format is not None
    scale_a, scale_b = a.block_format.scale_format, b.block_format.scale_format
    if scale_a != scale_b:
        raise ValueError(
            f"b: accumulate {accumulator.name!r}: expected scales in {scale_a}, which a has, "
            f"found {scale_b}"
        )
    result, _ = _sums(a, b, slice(None), accumulator)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _ended(result, accumulator, np.multiply(a.tensor_factor, b.tensor_factor))


def _ended(
    sums: Float32Array, accumulator: Accumulator, factor: Float32Array | None = None
) -> Float32Array:
    """End a product, in place: every zero +0, times a factor, NaN with the accumulator's bits."""
    sums += np.float32(0)  # the sign of a zero sum depends on the BLAS
    if factor is not None:
        sums *= factor
    nan = np.isnan(sums)
    if nan.any():
        sums.view(np.uint32)[nan] = accumulator.nan_bits
    return sums


def matmul_16bit(a: Array, b: Array, accumulate: str | Accumulator) -> Float32Array:
    """Multiply matrices of float16 or bfloat16 numbers as a tensor core does.

    Parameters
    ----------
    a : ndarray of float16, or of float32 with bfloat16 values, (..., M, K)
    b : ndarray of the same dtype, (..., K, N)
        The leading axes broadcast.
    accumulate : str or Accumulator
        A key of :data:`npfp8.ACCUMULATORS`, or a record of your own, that takes these numbers.

    Returns
    -------
    ndarray of float32, (..., M, N)
        Of float16 values, if the accumulator's name ends in "float16". A NaN has the bits of
        the accumulator; a zero is +0.

    Raises
    ------
    TypeError
        If an operand is neither float16 nor float32, or the two differ.
    ValueError
        If the shapes do not fit, a float32 is no bfloat16 value, or the accumulator does not
        take such operands.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import matmul_16bit
    >>> x = np.float16([[1024, 2**-14, 2**-15, 2**-15]])
    >>> [float(matmul_16bit(x, np.ones_like(x).T, f"{core}-16bit")[0, 0])
    ...  for core in ("ampere", "hopper")]
    [1024.0, 1024.0001220703125]
    """
    accumulator = as_accumulator(accumulate)
    a = array_of("a", a, np.float16, np.float32)
    b = array_of("b", b, np.float16, np.float32)
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected {a.dtype}, which a is, found {b.dtype}")
    check_shapes(a, b)
    half = a.dtype == np.float16
    name = "float16" if half else "bfloat16"
    if name not in accumulator.floats:
        known = ", ".join(repr(x.name) for x in ACCUMULATORS.values() if name in x.floats)
        raise ValueError(
            f"accumulate: expected one of {known} for {name} operands, found {accumulator.name!r}"
        )
    for argument, x in () if half else (("a", a), ("b", b)):
        others = (x.view(np.uint32) & 0xFFFF != 0) & ~np.isnan(x)
        if others.any():
            raise ValueError(f"{argument}: expected bfloat16 values, found {x[others][0]!s}")
    return _ended(
        tensor_core_sums(terms_of_floats(a), terms_of_floats(b), accumulator), accumulator
    )


def scaled_product(
    a: QuantizedTensor,
    b: QuantizedTensor,
    ks: slice,
    accumulator: Accumulator,
    scale_a: Float32Array,
    scale_b: Float32Array,
) -> Float32Array:
    """Compute the product over the part ``ks`` of K, times its scale."""

    def sums(ks: slice) -> tuple[Float32Array, bool]:
        return _sums(a, b, ks, accumulator)

    return _scaled(sums, ks, scale_a, scale_b, accumulator)


def _scaled(
    sums: Callable[[slice], tuple[Float32Array, bool]],
    ks: slice,
    scale_a: Float32Array,
    scale_b: Float32Array,
    accumulator: Accumulator,
) -> Float32Array:
    """Compute the sums over the part ``ks`` of K, times their scale."""
    scale = checked_factor(scale_a, scale_b)
    result, finite = sums(ks)
    result += np.float32(0)  # every zero +0: the sign of a zero sum depends on the BLAS
    with np.errstate(over="ignore", under="ignore"):
        np.multiply(result, scale, out=result)
    if not finite:
        nan = np.isnan(result)
        result.view(np.uint32)[nan] = accumulator.nan_bits
    return result


def _sums(
    a: QuantizedTensor, b: QuantizedTensor, ks: slice, accumulator: Accumulator
) -> tuple[Float32Array, bool]:
    """Compute the sums over the part ``ks`` of K, and whether certainly none of them is NaN.

    A zero may have either sign, and a NaN any bits.
    """
    if accumulator.kind == "sequential":
        x, y = a.code_values(np.float64), b.code_values(np.float64)
        return sequential_sums(x[..., ks], y[..., ks, :], accumulator), False
    if accumulator.kind in RULES:
        terms_a = terms_of_codes(a, -1, ks, accumulator)
        terms_b = terms_of_codes(b, -2, ks, accumulator)
        finite = a.is_finite and b.is_finite and accumulator.emax == _FLOAT32_EMAX
        return tensor_core_sums(terms_a, terms_b, accumulator), finite
    product = float32_product if accumulator.kind == "blas" else exact_product
    result = product(a, b, ks)
    finite = a.is_finite and b.is_finite
    if not finite:
        overlay_specials(result, a.code_values()[..., ks], b.code_values()[..., ks, :])
    return result, finite

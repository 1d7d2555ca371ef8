"""Quantized tensors: codes with their scales, and the functions that make them.

Scales are per tensor, per index of one axis, or per block of an axis. Their shapes are
those of ONNX's QuantizeLinear (opset 21). The scales of a block format (MX, NVFP4) are codes
themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, choice, dtype_of, integer, require, wrong_array
from npfp8.arrays import Array, Float32Array, lookup, require_array
from npfp8.bfloat16 import from_bits, is_bfloat16
from npfp8.blocks.counts import lost_in_blocks
from npfp8.blocks.formats import BLOCK_FORMATS, BlockFormat, as_block_format, with_rule
from npfp8.blocks.quantize import (
    block_scales,
    checked_tensor_scale,
    quantize_blocks,
    tensor_multiplier,
)
from npfp8.codec import ROUNDINGS, check_random, encode
from npfp8.codec.tables import checked_codes, values_of
from npfp8.formats import FORMATS, FloatFormat, Format, IntFormat, as_format
from npfp8.names import match, suggestion
from npfp8.scaling import (
    absmax_scale,
    affine_scale,
    as_float32,
    checked_block,
    checked_scale,
    finite_extrema,
    group_extrema,
    normalized_axis,
    power_of_two_scale,
    scale_shape,
    spread,
)

__all__ = [
    "QuantizedTensor",
    "absmax_scale",
    "affine_scale",
    "group_extrema",
    "power_of_two_scale",
    "quantize",
    "quantize_bfloat16",
    "spread",
]


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedTensor:
    """An array of codes of up to 8 bits whose values are ``(code value - zero_point) * scale``.

    ``a @ b`` is the exact product :func:`npfp8.matmul`. There is no other arithmetic:
    NumPy's functions raise TypeError. :meth:`dequantize` returns an array.

    Parameters
    ----------
    codes : ndarray of uint8 (int8 for INT8 and INT4)
        One code in each byte.
    scale : array_like of float32
        Positive, finite and normal (not subnormal). Its shape:

        - per tensor (``axis=None``): ``()``;
        - per index of ``axis``: ``(codes.shape[axis],)``;
        - per block: the shape of ``codes`` with ``codes.shape[axis]`` replaced
          by ``ceil(codes.shape[axis] / block)``.
    fmt : FloatFormat, IntFormat, BlockFormat or str
        The format of the codes. A name is stored as the format that it names; of a block
        format, the format of the elements is stored, and the rest as ``block_format``.
    axis : int, optional
        The axis along which the scale varies. A negative one counts from the end
        and is stored as its non-negative equal.
    zero_point : array_like of fmt's code dtype, optional
        The code of the real number 0, of the shape of ``scale``; IntFormat only.
    block : int, optional
        The number of elements of ``axis`` that share a scale.
    scale_codes : ndarray of uint8, optional
        Block formats only: the codes of the scales, of the shape of ``scale``. ``scale`` is
        then computed from them, and given as None. It may be subnormal, 0 or NaN.
    tensor_scale : float32, optional
        Block formats only: the number that is stored for the tensor if the format has one. It
        is a factor, a divisor or, by NVFP4's rule ``te``, the largest magnitude. ``scale``
        contains the factor, which :attr:`tensor_factor` is.
    block_format : BlockFormat, optional
        Stored if ``fmt`` is a block format.

    Raises
    ------
    TypeError, ValueError
        If a dtype, a shape or a scale is not as stated above.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, QuantizedTensor
    >>> q = QuantizedTensor(np.uint8([[0x38, 0xB8], [0x40, 0x00]]), 0.5, E4M3FN)
    >>> q
    <QuantizedTensor (2, 2) E4M3FN, scale 0.5>
    >>> q.dequantize()
    array([[ 0.5, -0.5],
           [ 1. ,  0. ]], dtype=float32)
    >>> q @ q.mT
    array([[0.5, 0.5],
           [0.5, 1. ]], dtype=float32)
    """

    #: NumPy leaves all operators to this class, and refuses its own functions.
    __array_ufunc__ = None

    #: The product that ``@`` is; :mod:`npfp8.products`, which builds on this module, sets it.
    _product: ClassVar[Callable[[Any, Any], Float32Array]]

    codes: Array
    scale: Float32Array
    fmt: Format
    axis: int | None = None
    zero_point: Array | None = None
    block: int | None = None
    scale_codes: Array | None = None
    tensor_scale: Float32Array | None = None
    block_format: BlockFormat | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # the way to normalise a field of a frozen dataclass
        blocks = _block_format(self.fmt)
        if blocks is None and self.block_format is not None:  # as replace() gives them
            blocks = as_block_format(self.block_format, "block_format")
            if as_format(self.fmt) != blocks.element:
                raise ValueError(f"fmt: expected {blocks.element} for {blocks}, found {self.fmt}")
        if blocks is not None:
            set_field(self, "block_format", blocks)
            set_field(self, "fmt", blocks.element)
            set_field(self, "block", blocks.block)
            set_field(self, "axis", -1 if self.axis is None else self.axis)
        set_field(self, "fmt", as_format(self.fmt))
        codes = checked_codes(self.codes, self.fmt)
        axis = normalized_axis(self.axis, codes.ndim)
        block = checked_block(self.block, axis)
        expected = scale_shape(codes.shape, axis, block)
        if blocks is not None:
            scale = self._block_scales(blocks, expected)
        else:
            _refuse_given(self.fmt, scale_codes=self.scale_codes, tensor_scale=self.tensor_scale)
            scale = checked_scale(self.scale)
        if scale.shape != expected:
            raise ValueError(
                f"scale: expected shape {expected} for codes of shape {codes.shape}, axis "
                f"{self.axis} and block {self.block}, found {scale.shape}"
            )
        if self.zero_point is not None:
            _check_zero_point(self.fmt)
            zero_point = array_of("zero_point", self.zero_point)
            if zero_point.dtype != codes.dtype or zero_point.shape != expected:
                raise ValueError(
                    f"zero_point: expected {codes.dtype} of shape {expected}, found "
                    f"{zero_point.dtype} of shape {zero_point.shape}"
                )
            set_field(self, "zero_point", zero_point)
        set_field(self, "codes", codes)
        set_field(self, "scale", scale)
        set_field(self, "axis", axis)
        set_field(self, "block", block)

    def _block_scales(self, blocks: BlockFormat, expected: tuple[int, ...]) -> Float32Array:
        """Check the scales of a block format, and return them as float32."""
        _refuse_given(blocks, zero_point=self.zero_point)
        scale_codes = checked_codes(self.scale_codes, blocks.scale_format, "scale_codes")
        if scale_codes.shape != expected:
            raise ValueError(
                f"scale_codes: expected shape {expected} for codes of shape "
                f"{np.shape(self.codes)}, axis {self.axis} and blocks of {blocks.block}, found "
                f"{scale_codes.shape}"
            )
        tensor_scale = checked_tensor_scale(self.tensor_scale, blocks)
        object.__setattr__(self, "scale_codes", scale_codes)
        object.__setattr__(self, "tensor_scale", tensor_scale)
        return block_scales(scale_codes, tensor_scale, blocks)

    def __repr__(self) -> str:
        if self.block_format is not None:
            tensor = ""
            if self.tensor_scale is not None:
                stored = self.block_format.how.stored  # type: ignore[union-attr]
                tensor = f", tensor scale {self.tensor_scale:.6g} ({stored})"
            return (
                f"<QuantizedTensor {self.shape} {self.block_format}, {self.scale.size} blocks of "
                f"{self.block} along axis {self.axis}{tensor}>"
            )
        if self.axis is None:
            scales = f"scale {float(self.scale):.6g}"
        else:
            blocks = "" if self.block is None else f" per block of {self.block}"
            scales = f"{self.scale.size} scales{blocks} along axis {self.axis}"
        if self.zero_point is not None:
            scales += (
                " and zero points" if self.zero_point.ndim else f", zero point {self.zero_point}"
            )
        return f"<QuantizedTensor {self.shape} {self.fmt}, {scales}>"

    def __matmul__(self, other: QuantizedTensor) -> Float32Array:
        if isinstance(other, QuantizedTensor):
            return type(self)._product(self, other)
        return self._refuse(other, "a QuantizedTensor @ {}")

    def __rmatmul__(self, other: object) -> Any:
        return self._refuse(other, "{} @ a QuantizedTensor")

    def _refuse(self, other: object, operation: str) -> Any:
        """Raise TypeError for the product with an array; leave other types to themselves."""
        if isinstance(other, np.ndarray | np.generic):
            raise TypeError(
                f"@: expected two quantized tensors, found {operation.format('an array')}: "
                "quantize the array, or dequantize the tensor"
            )
        return NotImplemented

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the codes."""
        return self.codes.shape

    @property
    def ndim(self) -> int:
        """The number of axes of the codes."""
        return self.codes.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """The bytes of the codes, the scales and the zero points, a byte for each code."""
        others = (self.scale if self.scale_codes is None else self.scale_codes, self.zero_point)
        parts = (self.codes, *others, self.tensor_scale)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def packed_nbytes(self) -> int:
        """The bytes that :attr:`nbytes` become with codes and zero points at their width.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8 import MXFP4, quantize
        >>> q = quantize(np.ones((8, 32)), MXFP4)
        >>> q.nbytes, q.packed_nbytes
        (264, 136)
        """
        codes = [self.codes] if self.zero_point is None else [self.codes, self.zero_point]
        packed = sum(-(-part.size * self.fmt.bits // 8) for part in codes)
        return self.nbytes - sum(part.nbytes for part in codes) + packed

    @property
    def tensor_factor(self) -> Float32Array:
        """The float32 number by which ``tensor_scale`` multiplies all values: 1 without one.

        Examples
        --------
        >>> import npfp8
        >>> q = npfp8.quantize([90.0] * 16, npfp8.NVFP4)  # the rule te: the largest magnitude
        >>> print(q.tensor_scale, q.tensor_factor)
        90.0 0.03348214
        """
        if self.tensor_scale is None:
            return np.ones((), np.float32)
        assert self.block_format is not None
        return tensor_multiplier(self.tensor_scale, self.block_format)

    @property
    def mT(self) -> QuantizedTensor:  # noqa: N802 (the array API's name)
        """The tensor with its last two axes swapped. It shares memory."""
        if self.ndim < 2:
            raise ValueError(f"mT: expected at least 2 axes, found shape {self.shape}")
        axis, last = self.axis, self.ndim - 1
        if axis is not None and axis >= last - 1:
            axis = 2 * last - 1 - axis

        def swap(x: Array) -> Array:
            return x.swapaxes(-1, -2) if x.ndim > 1 else x

        zero_point = None if self.zero_point is None else swap(self.zero_point)
        swapped = _as_made(
            swap(self.codes), swap(self.scale), self.fmt, axis, zero_point, self.block
        )
        if self.scale_codes is not None:
            vars(swapped).update(
                scale_codes=swap(self.scale_codes),
                tensor_scale=self.tensor_scale,
                block_format=self.block_format,
            )
        vars(swapped)["is_finite"] = self.is_finite
        return swapped

    @cached_property
    def is_finite(self) -> bool:
        """Whether no code is a NaN or an infinity; computed once, also for :attr:`mT`."""
        if self.scale_codes is not None and not np.isfinite(self.scale).all():
            return False
        fmt = self.fmt
        if isinstance(fmt, IntFormat) or fmt.is_finite.all():
            return True
        # Specials are above the largest finite code of each sign, or in the place of -0.
        if fmt.sign_bit in fmt.nan_codes and (self.codes == fmt.sign_bit).any():
            return False
        return bool((self.codes & fmt.magnitude_mask).max(initial=0) <= fmt.max_code)

    def lost(self, x: npt.ArrayLike) -> tuple[int, int]:
        """Count the numbers that saturated, and those that underflowed, in this tensor.

        A number saturated if it is beyond the range of the codes. It underflowed if it is
        not zero but has the code of zero, or a scale of zero.

        Parameters
        ----------
        x : array_like
            The numbers that were quantized, of the shape of the codes.

        Returns
        -------
        saturated, underflowed : int

        Raises
        ------
        TypeError
            If ``x`` does not hold real numbers.
        ValueError
            If it has another shape than the codes.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8 import E4M3FN, quantize
        >>> x = np.float32([1000.0, 1.0, 1e-6])
        >>> quantize(x, E4M3FN, scale=1.0).lost(x)
        (1, 1)
        """
        # The usual type is told from others at once: this is called for every product of a model.
        if not isinstance(x, np.ndarray) or x.dtype != np.float32:
            x = as_float32("x", x)
        if x.shape != self.shape:
            raise ValueError(f"x: expected shape {self.shape}, found {x.shape}")
        fmt, codes = self.fmt, self.codes
        if self.block is not None and self.zero_point is None:
            assert self.axis is not None
            return lost_in_blocks(x, codes, self.scale, fmt, self.axis, self.block)
        scale = (
            spread(self.scale, self.shape, self.axis, self.block)
            if self.axis is not None
            else self.scale
        )
        if self.zero_point is not None:
            # Beyond the range: a code at its end whose value is not within half a scale.
            assert isinstance(fmt, IntFormat)
            ends = (codes == fmt.max_code) | (codes == fmt.min_code)
            with np.errstate(over="ignore", invalid="ignore"):  # the largest value may be infinite
                off = np.abs(x - self.dequantize()) > 0.5000001 * scale
            zeros = codes == spread(self.zero_point, self.shape, self.axis, self.block)
            return int(np.count_nonzero(ends & off)), int(np.count_nonzero(zeros & (x != 0)))
        # Of the codes first, whose bytes are fewer. A float's sign bit is taken off.
        floats = fmt if isinstance(fmt, FloatFormat) else None
        magnitudes = np.abs(codes) if floats is None else codes & floats.magnitude_mask
        saturated = 0
        if magnitudes.max(initial=0) >= fmt.max_code:
            largest = magnitudes >= fmt.max_code
            scales = np.broadcast_to(scale, x.shape)[largest] if scale.ndim else scale
            signed = floats is None or floats.signed  # negative numbers of others are NaN
            with np.errstate(all="ignore"):  # a quotient may overflow, or x be NaN
                quotients = (np.abs(x[largest]) if signed else x[largest]) / scales
            # A scale from the largest element itself may round to just beyond. INT4's reaches
            # half a step beyond its largest value, where a code is as near as any other.
            saturated = int(np.count_nonzero(quotients > fmt.reach * (1 + 2.0**-20)))
        not_zero = int(np.count_nonzero(magnitudes))
        if not_zero == x.size or (floats is not None and not floats.has_zero):
            return saturated, 0
        if floats is not None and floats.sign_bit in floats.nan_codes:  # of zero's magnitude
            not_zero += int(np.count_nonzero(codes == floats.sign_bit))
        return saturated, int(np.count_nonzero(x != 0)) - not_zero

    def code_values(self, dtype: npt.DTypeLike = np.float32) -> Array:
        """Return the exact values of the codes minus the zero point, without the scale.

        Raises
        ------
        TypeError
            If ``dtype`` is not a float dtype, or cannot hold the values.

        Examples
        --------
        >>> import numpy as np
        >>> from npfp8 import E4M3FN, quantize
        >>> quantize([1.0, -6.0], E4M3FN, scale=2.0).code_values()
        array([ 0.5, -3. ], dtype=float32)
        """
        kind = dtype_of("dtype", dtype, "a float dtype")
        values = values_of(self.codes, self.fmt, kind)
        if self.zero_point is not None:
            zero_point = spread(self.zero_point, self.shape, self.axis, self.block)
            values -= zero_point.astype(values.dtype)
        return values

    def dequantize(self) -> Float32Array:
        """Return the values as float32: code value times scale, rounded once.

        A value beyond float32 becomes infinity.

        Examples
        --------
        >>> from npfp8 import E4M3FN, quantize
        >>> quantize([1.0, -6.0], E4M3FN, scale=2.0).dequantize()
        array([ 1., -6.], dtype=float32)
        """
        values: Float32Array = self.code_values()
        axis, block = self.axis, self.block
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            if axis is not None and block is not None and self.shape[axis] % block == 0 < self.size:
                # Whole blocks are multiplied without an array of one scale per element.
                grid = values.reshape(*self.shape[:axis], -1, block, *self.shape[axis + 1 :])
                np.multiply(grid, np.expand_dims(self.scale, axis + 1), out=grid)
                return grid.reshape(self.shape)
            scale = spread(self.scale, self.shape, axis, block)
            return np.multiply(values, scale, out=values)


def _as_made(
    codes: Array,
    scale: Float32Array,
    fmt: Format,
    axis: int | None,
    zero_point: Array | None,
    block: int | None,
) -> QuantizedTensor:
    """Make a tensor of parts that have been checked, without checking them again."""
    tensor = object.__new__(QuantizedTensor)
    vars(tensor).update(
        codes=codes,
        scale=scale,
        fmt=fmt,
        axis=axis,
        zero_point=zero_point,
        block=block,
        scale_codes=None,
        tensor_scale=None,
        block_format=None,
    )
    return tensor


def _block_format(fmt: object) -> BlockFormat | None:
    """Return the block format that is given as such or by its name; None for another format."""
    if isinstance(fmt, BlockFormat):
        return fmt
    if not isinstance(fmt, str) or match(fmt, FORMATS):
        return None
    if name := match(fmt, BLOCK_FORMATS):
        return BLOCK_FORMATS[name]
    known = (*FORMATS, *BLOCK_FORMATS)
    raise ValueError(
        f"fmt: expected a format ({', '.join(known)}), found {fmt!r}{suggestion(fmt, known)}"
    )


def _refuse_given(fmt: Format | BlockFormat, **arguments: object) -> None:
    """Raise ValueError for the first argument that is given, as the format is not used with it."""
    for name, value in arguments.items():
        if value is not None:
            kind = "a block format" if isinstance(fmt, BlockFormat) else "which has no blocks"
            found = f"shape {np.shape(value)}" if isinstance(value, np.ndarray) else repr(value)
            raise ValueError(f"{name}: expected None for {fmt}, {kind}, found {found}")


def _check_zero_point(fmt: Format) -> None:
    """Raise ValueError for a format that is not used with a zero point."""
    if not isinstance(fmt, IntFormat):
        raise ValueError(f"zero_point: expected None for {fmt}, a float format")
    if fmt.fraction_bits:
        raise ValueError(f"zero_point: expected None for {fmt}, a fixed-point format")


def quantize(
    x: npt.ArrayLike,
    fmt: Format | BlockFormat | str,
    scale: npt.ArrayLike | None = None,
    axis: int | None = None,
    block: int | None = None,
    zero_point: npt.ArrayLike | None = None,
    *,
    rule: str | None = None,
    tensor_scale: npt.ArrayLike | None = None,
    rounding: str = "nearest",
    rng: np.random.Generator | None = None,
    random_bits: npt.ArrayLike | None = None,
    bit_count: int | None = None,
) -> QuantizedTensor:
    """Quantize an array: ``encode(x / scale)``, one float32 division and one rounding.

    In a block format, scales and codes follow from the numbers by the format's rule.

    Parameters
    ----------
    x : array_like
        Numbers. Those wider than float32 are first rounded to float32.
    fmt : FloatFormat, IntFormat, BlockFormat or str
        The format of the codes, or a block format; or its name.
    scale : array_like of float32, optional
        The scale, of the shape that :class:`QuantizedTensor` states. Without
        it, the absolute maximum of each group of elements that share a scale
        is mapped to the largest value of the format (:func:`absmax_scale`).
    axis : int, optional
        None for one scale per tensor, otherwise the axis that has one scale per index; of a
        block format, the axis of the blocks, None for the last.
    block : int, optional
        With ``axis``: the length of the runs of elements along that axis that share
        a scale, separately at each index of the other axes. A block format states its own.
    zero_point : array_like of the codes' dtype, optional
        With ``scale``, of its shape, IntFormat only: the code of 0, added after
        rounding to an integer. :func:`affine_scale` computes both.
    rule : str, optional
        Block formats only: the rule instead of the format's own, a key of
        :data:`npfp8.POWER_RULES` or :data:`npfp8.RATIO_RULES`.
    tensor_scale : float32, optional
        Block formats only: the number of the tensor instead of the one that the rule computes,
        in the rule's meaning: for NVFP4's ``te`` the largest magnitude.
    rounding, rng, random_bits, bit_count
        As :func:`npfp8.encode` takes them. Not with a zero point, and not for block formats,
        whose rules state their rounding.

    Returns
    -------
    QuantizedTensor
        Numbers beyond the largest value saturate. With a given scale, a NaN becomes
        the NaN of the format, and is an error if the format has none.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If no scale is given and ``x`` has a NaN or an infinity, or a zero point
        is given; the given scale is not positive, finite, normal and of the right
        shape; or a rounding is unknown or not to be chosen.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import INT8, quantize
    >>> q = quantize(np.float32([[1.0, -2.0], [0.5, 0.25]]), INT8, axis=0)
    >>> q
    <QuantizedTensor (2, 2) INT8, 2 scales along axis 0>
    >>> q.codes
    array([[  64, -127],
           [ 127,   64]], dtype=int8)
    >>> q = quantize(np.float32([1.0, -2.0, 0.5, 6.5]), "MXFP4", rule="floor")
    >>> q, q.codes, q.scale_codes
    (<QuantizedTensor (4,) MXFP4, 1 blocks of 32 along axis 0>, array([ 2, 12,  1,  7], \
dtype=uint8), array([127], dtype=uint8))
    >>> bits = np.uint8([0, 64, 128, 192])  # 1/2, 1/4, 3/4 and 1/8 of the way to the next value
    >>> q = quantize(np.float32([2.125, 2.0625, 2.1875, 2.03125]), "E4M3FN", 2.0, \
rounding="stochastic", random_bits=bits, bit_count=8)
    >>> q.codes
    array([56, 56, 57, 56], dtype=uint8)
    """
    rounding = choice("rounding", rounding, ROUNDINGS)
    check_random(rng, random_bits, bit_count)
    if (blocks := _block_format(fmt)) is not None:
        _refuse_given(blocks, scale=scale, block=block, zero_point=zero_point)
        _refuse_given(blocks, rng=rng, random_bits=random_bits, bit_count=bit_count)
        if rounding != "nearest":
            expected = f"'nearest' for {blocks}, whose rules state it"
            raise ValueError(f"rounding: expected {expected}, found {rounding!r}")
        return _quantize_blocks(x, blocks, axis, rule, tensor_scale)
    assert not isinstance(fmt, BlockFormat)
    fmt = as_format(fmt)
    _refuse_given(fmt, rule=rule, tensor_scale=tensor_scale)
    values = as_float32("x", x)
    axis = normalized_axis(axis, values.ndim)
    block = checked_block(block, axis)
    shape = scale_shape(values.shape, axis, block)
    if scale is None:
        if zero_point is not None:
            raise ValueError("zero_point: expected a scale with it, found none")
        low, high = finite_extrema(values, axis, block)
        scales = absmax_scale(np.maximum(high, -low), fmt)
    else:
        scales = checked_scale(scale)
        if scales.shape != shape:
            raise ValueError(f"scale: expected shape {shape}, found {scales.shape}")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scaled = np.divide(values, spread(scales, values.shape, axis, block))
    if zero_point is None:
        codes = encode(
            scaled, fmt, rounding=rounding, rng=rng, random_bits=random_bits, bit_count=bit_count
        )
        return _as_made(codes, scales, fmt, axis, None, block)
    _check_zero_point(fmt)
    if rounding != "nearest" or random_bits is not None or bit_count is not None:
        raise ValueError(f"rounding: expected 'nearest' with a zero point, found {rounding!r}")
    assert isinstance(fmt, IntFormat)
    zeros = array_of("zero_point", zero_point)
    if zeros.dtype.kind not in "iu":
        raise wrong_array("zero_point", "integers", zeros, zero_point)
    if ((zeros < fmt.min_code) | (zeros > fmt.max_code)).any():
        raise ValueError(
            f"zero_point: expected integers in {fmt.min_code}..{fmt.max_code}, found {zeros}"
        )
    zeros = zeros.astype(fmt.code_dtype)
    if zeros.shape != shape:
        raise ValueError(f"zero_point: expected shape {shape}, found {zeros.shape}")
    with np.errstate(invalid="ignore"):
        shifted = np.rint(scaled) + spread(zeros, values.shape, axis, block).astype(np.float32)
    return _as_made(encode(shifted, fmt), scales, fmt, axis, zeros, block)


def _quantize_blocks(
    x: npt.ArrayLike,
    fmt: BlockFormat,
    axis: int | None,
    rule: str | None,
    tensor_scale: npt.ArrayLike | None,
) -> QuantizedTensor:
    if rule is not None:
        require("rule", rule, str, "the name of a rule")
        fmt = with_rule(fmt, rule)
    given = array_of("x", x)
    values = as_float32("x", given)
    if not values.ndim:
        raise ValueError("x: expected at least one axis for blocks, found a number")
    axis = normalized_axis(-1 if axis is None else axis, values.ndim)
    assert axis is not None
    number = None if tensor_scale is None else checked_tensor_scale(tensor_scale, fmt)
    source = "bfloat16" if is_bfloat16(given.dtype) else "float32"
    if given.dtype.type is np.float16:  # of either byte order
        source = "float16"
    codes, scale_codes, number = quantize_blocks(values, fmt, axis, source, number)
    scale = block_scales(scale_codes, number, fmt)
    tensor = _as_made(codes, scale, fmt.element, axis, None, fmt.block)
    vars(tensor).update(scale_codes=scale_codes, tensor_scale=number, block_format=fmt)
    return tensor


def quantize_bfloat16(
    x: Float32Array, fmt: Format | str, scale: npt.ArrayLike, zero_point: int | None = None
) -> QuantizedTensor:
    """Quantize bfloat16 values with one given scale by a table: twice as fast as `quantize`.

    There are 65,536 bfloat16 values: the division by the scale and the rounding to a
    code are done once for each of them, and looked up from then on.

    Parameters
    ----------
    x : ndarray of float32
        bfloat16 values, as :func:`npfp8.bfloat16.round_to_bfloat16` makes them. The
        lower 16 bits are not read.
    fmt : FloatFormat, IntFormat or str
        The format of the codes, or its name.
    scale : float32
        One number; positive, finite and normal.
    zero_point : int, optional
        As for :func:`quantize`.

    Returns
    -------
    QuantizedTensor
        The same as ``quantize(x, fmt, scale, zero_point=zero_point)``.

    Raises
    ------
    TypeError
        If ``x`` is not an array of float32, or another argument is not of the type stated.
    ValueError
        As :func:`quantize`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN
    >>> from npfp8.tensor import quantize_bfloat16
    >>> quantize_bfloat16(np.float32([1, 3, 1000]), E4M3FN, 2.0).codes
    array([ 48,  60, 126], dtype=uint8)
    """
    # The usual types are told from others at once: this is called for every product of a model.
    require_array("x", x, np.float32)
    if not isinstance(fmt, FloatFormat | IntFormat):
        fmt = as_format(fmt)
    usual = isinstance(scale, np.ndarray | np.generic) and scale.dtype == np.float32
    one = np.asarray(scale) if usual else checked_scale(scale)
    if one.ndim:
        raise ValueError(f"scale: expected one number, found shape {one.shape}")
    if zero_point is not None and type(zero_point) is not int:
        zero_point = integer("zero_point", zero_point)
    if not _has_nan(fmt) and np.isnan(x).any():
        raise ValueError(f"encode: found NaN, and {fmt} has no code for it")
    table, number = _bfloat16_codes(fmt, float(one), zero_point)
    zero = None if zero_point is None else np.asarray(zero_point, fmt.code_dtype)
    return _as_made(lookup(table, x), number, fmt, None, zero, None)


@lru_cache(maxsize=1024)
def _bfloat16_codes(
    fmt: Format, scale: float, zero_point: int | None
) -> tuple[Array, Float32Array]:
    """Return the code of each of the 65,536 bfloat16 values, and the scale in float32.

    The code is 0 for a NaN if the format has none.
    """
    x = from_bits(np.arange(1 << 16, dtype=np.uint16))
    if not _has_nan(fmt):
        x = np.where(np.isnan(x), np.float32(0), x)
    q = quantize(x, fmt, scale, zero_point=zero_point)
    q.codes.flags.writeable = q.scale.flags.writeable = False
    return q.codes, q.scale


def _has_nan(fmt: Format) -> bool:
    return isinstance(fmt, FloatFormat) and fmt.nan_code is not None

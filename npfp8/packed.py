"""Quantized tensors of block formats as the bytes of a file or a kernel, and back.

:mod:`npfp8.blocks.layouts` has the layouts, and functions of arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, choice, integer, require, wrong_type
from npfp8.arrays import Float32Array
from npfp8.blocks.formats import BlockFormat, as_block_format
from npfp8.blocks.layouts import (
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    CodeLayout,
    ScaleLayout,
    pack_codes,
    pack_scales,
    unpack_codes,
    unpack_scales,
)
from npfp8.blocks.layouts.codes import packed_length
from npfp8.blocks.quantize import checked_tensor_scale
from npfp8.scaling import checked_block, normalized_axis, scale_shape
from npfp8.tensor import QuantizedTensor

__all__ = ["PackedTensor", "pack_tensor", "unpack_tensor"]


@dataclass(frozen=True, eq=False, repr=False)
class PackedTensor:
    """The bytes of a quantized tensor of a block format, and what it takes to read them.

    Attributes
    ----------
    codes, scale_codes : ndarray of uint8
        The bytes of the codes, and those of the scales.
    fmt : BlockFormat
        The format. Its name is accepted.
    shape : tuple of int
        The shape of the tensor.
    axis : int
        The axis of its blocks.
    tensor_scale : float32, optional
        The number stored for the tensor, if the format has one.
    code_layout, scale_layout : CodeLayout and ScaleLayout, or str
        The layouts, or their names.

    Raises
    ------
    TypeError
        If an attribute is not of the type stated.
    ValueError
        If no block format or layout has the name, a length is negative, the axis does not exist,
        or the number of the tensor is missing, or given to a format without.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.packed import PackedTensor, unpack_tensor
    >>> packed = PackedTensor(np.uint8([0x21, 0x03]), np.uint8([127]), "MXFP4", (3,))
    >>> unpack_tensor(packed).dequantize()
    array([0.5, 1. , 1.5], dtype=float32)
    """

    codes: npt.NDArray[np.uint8]
    scale_codes: npt.NDArray[np.uint8]
    fmt: BlockFormat
    shape: tuple[int, ...]
    axis: int = -1
    tensor_scale: Float32Array | None = None
    code_layout: CodeLayout | str = "low-first"
    scale_layout: ScaleLayout | str = "linear"

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "fmt", as_block_format(self.fmt))
        for name in ("codes", "scale_codes"):
            set_field(self, name, array_of(name, getattr(self, name), np.uint8))
        if not isinstance(self.shape, tuple | list):
            raise wrong_type("shape", "a tuple of integers", self.shape)
        set_field(self, "shape", tuple(integer("shape", length) for length in self.shape))
        if min(self.shape, default=0) < 0:
            raise ValueError(f"shape: expected no negative length, found {self.shape}")
        set_field(self, "axis", normalized_axis(integer("axis", self.axis), len(self.shape)))
        set_field(self, "tensor_scale", checked_tensor_scale(self.tensor_scale, self.fmt))
        _check_layouts(self.code_layout, self.scale_layout)

    def __repr__(self) -> str:
        return (
            f"<PackedTensor {self.shape} {self.fmt}: {self.codes.size} bytes of codes "
            f"{_name(self.code_layout)}, {self.scale_codes.size} of scales "
            f"{_name(self.scale_layout)}>"
        )


def _check_layouts(code_layout: object, scale_layout: object) -> None:
    """Raise unless both are layouts or names that there are."""
    require("code_layout", code_layout, (str, CodeLayout), "a CodeLayout or a name")
    require("scale_layout", scale_layout, (str, ScaleLayout), "a ScaleLayout or a name")
    for name, layout, known in (
        ("code_layout", code_layout, CODE_LAYOUTS),
        ("scale_layout", scale_layout, SCALE_LAYOUTS),
    ):
        if isinstance(layout, str):
            choice(name, layout, known)


def _name(layout: CodeLayout | ScaleLayout | str) -> str:
    return layout if isinstance(layout, str) else layout.name


def pack_tensor(
    tensor: QuantizedTensor,
    code_layout: CodeLayout | str = "low-first",
    scale_layout: ScaleLayout | str = "linear",
) -> PackedTensor:
    """Pack a quantized tensor of a block format, along the axis of its blocks.

    Parameters
    ----------
    tensor : QuantizedTensor
    code_layout : CodeLayout or str
        As for :func:`npfp8.blocks.pack_codes`.
    scale_layout : ScaleLayout or str
        As for :func:`npfp8.blocks.pack_scales`.

    Returns
    -------
    PackedTensor

    Raises
    ------
    TypeError, ValueError
        If the tensor is not of a block format, or as the two functions.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import quantize
    >>> from npfp8.packed import pack_tensor, unpack_tensor
    >>> q = quantize(np.linspace(-6, 6, 192, dtype=np.float32).reshape(2, 96), "MXFP4")
    >>> packed = pack_tensor(q, scale_layout="128x4")
    >>> packed
    <PackedTensor (2, 96) MXFP4: 96 bytes of codes low-first, 512 of scales 128x4>
    >>> np.array_equal(unpack_tensor(packed).codes, q.codes)
    True
    """
    require("tensor", tensor, QuantizedTensor, "a quantized tensor")
    _check_layouts(code_layout, scale_layout)
    if tensor.block_format is None or tensor.scale_codes is None:
        raise ValueError(f"tensor: expected one of a block format, found {tensor}")
    assert tensor.axis is not None
    return PackedTensor(
        pack_codes(tensor.codes, tensor.fmt, code_layout, tensor.axis),
        pack_scales(tensor.scale_codes, scale_layout, tensor.axis),
        tensor.block_format,
        tensor.shape,
        tensor.axis,
        tensor.tensor_scale,
        code_layout,
        scale_layout,
    )


def unpack_tensor(packed: PackedTensor) -> QuantizedTensor:
    """Return the quantized tensor that bytes stand for.

    Parameters
    ----------
    packed : PackedTensor

    Raises
    ------
    TypeError
        If it is not a PackedTensor.
    ValueError
        If the bytes do not fit the shape.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.packed import PackedTensor, unpack_tensor
    >>> packed = PackedTensor(
    ...     np.uint8([0x21]), np.uint8([128]), "MXFP4", (2,), code_layout="high-first"
    ... )
    >>> unpack_tensor(packed).dequantize()
    array([2., 1.], dtype=float32)
    """
    require("packed", packed, PackedTensor, "a PackedTensor")
    fmt, shape, axis = packed.fmt, packed.shape, packed.axis
    nbytes = packed_length(shape[axis], fmt.element, packed.code_layout)
    expected = (*shape[:axis], nbytes, *shape[axis + 1 :])
    if packed.codes.shape != expected:
        raise ValueError(
            f"codes: expected shape {expected} for a tensor of shape {shape}, packed "
            f"{_name(packed.code_layout)} along axis {axis}, found {packed.codes.shape}"
        )
    codes = unpack_codes(packed.codes, fmt.element, shape[axis], packed.code_layout, axis)
    scales = scale_shape(shape, axis, checked_block(fmt.block, axis))
    return QuantizedTensor(
        codes,
        None,  # type: ignore[arg-type]
        fmt,  # type: ignore[arg-type]
        axis,
        scale_codes=unpack_scales(packed.scale_codes, scales, packed.scale_layout, axis),
        tensor_scale=packed.tensor_scale,
    )

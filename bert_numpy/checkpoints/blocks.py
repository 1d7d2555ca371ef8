"""Weights in block formats (MX, NVFP4) as the tensors of a checkpoint.

The codes of a row are packed without gaps, the first code in the lowest bits; 8-bit codes are
stored as they are. The codes of the scales are ``weight_scale``, (out, in / block): biased
exponents as ``U8``, or ``F8_E4M3``. The number of an NVFP4 tensor is the multiplier or the
divisor of the block scales:

- compressed-tensors (0.20, ``compressors/nvfp4/base.py``): codes of fewer than 8 bits are
  ``weight_packed``; a value is ``code * (scale / weight_global_scale)``. An input's number is
  ``input_global_scale``. Both have shape (1,).
- ModelOpt (0.47, ``export/quant_utils.py``): codes are ``weight``; a value is
  ``code * (scale * weight_scale_2)``. An input's number is ``input_scale``. Both have shape ().
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.tensors import companion, read_float32
from bert_numpy.errors import BertNumpyError
from npfp8 import (
    E4M3FN,
    E5M2,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
    FloatFormat,
    Format,
    QuantizedTensor,
)
from npfp8.arrays import Array, Float32Array
from npfp8.blocks.layouts import pack_codes, unpack_codes
from npfp8.blocks.ratios import RatioRule
from npfp8.storage import Fp8Array, StoredTensor

__all__ = [
    "BLOCK_LAYOUTS",
    "COMPRESSED_TENSORS",
    "CONVENTIONS",
    "MODELOPT",
    "BlockLayout",
    "Convention",
    "layout_of",
    "module_of",
    "packing_fault",
    "read_blocks",
    "read_tensor_scale",
    "stored_blocks",
    "stored_tensor_scale",
]


@dataclass(frozen=True)
class BlockLayout:
    """A block format's names in ``quantization_config``.

    Attributes
    ----------
    fmt : BlockFormat
        The format; its rule does not matter, as codes do not depend on it.
    name : str
        The layout's name. compressed-tensors has none for some formats. These get a name that
        it refuses, so it reads no wrong numbers.
    strategy, scale_dtype : str
        The values of these keys.
    """

    fmt: BlockFormat
    name: str
    strategy: str = "group"
    scale_dtype: str = "torch.uint8"

    @property
    def bits(self) -> int:
        """The number of bits of a code."""
        return self.fmt.element.bits if isinstance(self.fmt.element, FloatFormat) else 8


#: The layouts: those of compressed-tensors 0.20, then ours.
BLOCK_LAYOUTS = (
    BlockLayout(NVFP4, "nvfp4-pack-quantized", "tensor_group", "torch.float8_e4m3fn"),
    BlockLayout(MXFP4, "mxfp4-pack-quantized"),
    BlockLayout(MXFP6_E2M3, "mxfp6-pack-quantized"),
    BlockLayout(MXFP8_E4M3, "mxfp8-quantized"),
    BlockLayout(MXFP6_E3M2, "mxfp6-e3m2-pack-quantized"),
    BlockLayout(MXFP8_E5M2, "mxfp8-e5m2-quantized"),
    BlockLayout(MXINT8, "mxint8-quantized"),
)


@dataclass(frozen=True)
class Convention:
    """A program's names of the tensors, and the meaning of a tensor's number.

    Attributes
    ----------
    name : str
        Its ``quant_method``.
    packed, tensor_scale, input_scale : str
        The names of packed codes, and of the numbers of weights and inputs.
    shape : tuple of int
        The shape of these numbers.
    divides : bool
        True if the scales of the blocks are divided by the number, False if multiplied.
    """

    name: str
    packed: str
    tensor_scale: str
    input_scale: str
    shape: tuple[int, ...]
    divides: bool


COMPRESSED_TENSORS = Convention(
    "compressed-tensors", "weight_packed", "weight_global_scale", "input_global_scale", (1,), True
)
MODELOPT = Convention("modelopt", "weight", "weight_scale_2", "input_scale", (), False)

#: The conventions, by ``quant_method``.
CONVENTIONS = {convention.name: convention for convention in (COMPRESSED_TENSORS, MODELOPT)}

#: The safetensors dtypes of 8-bit codes and of scales.
_DTYPES: dict[Format, str] = {E4M3FN: "F8_E4M3", E5M2: "F8_E5M2", MXINT8.element: "I8"}


_TINY = np.finfo(np.float32).tiny


def layout_of(fmt: BlockFormat) -> BlockLayout | None:
    """Return the layout of a block format, by whatever rule; None if there is none."""
    return next((layout for layout in BLOCK_LAYOUTS if _facts(layout.fmt) == _facts(fmt)), None)


def _facts(fmt: BlockFormat) -> tuple[object, ...]:
    return fmt.element, fmt.block, fmt.scale_format, fmt.tensor_scale


def module_of(parameter: StoredTensor) -> str:
    """Return the name of the layer whose weight a tensor is, packed or not."""
    return parameter.key.rpartition(".")[0]


def packing_fault(fmt: BlockFormat, inputs: int) -> str | None:
    """Return what is wrong with a row's length if its codes do not fill whole bytes."""
    layout = layout_of(fmt)
    assert layout is not None
    if inputs * layout.bits % 8 == 0:
        return None
    multiple, bits = 8 // math.gcd(layout.bits, 8), layout.bits
    return f"expected a multiple of {multiple} inputs to pack codes of {bits} bits, found {inputs}"


# Writing


def stored_blocks(
    module: str, weight: QuantizedTensor, convention: Convention
) -> dict[str, Array | Fp8Array]:
    """Make the tensors of a layer's weight, (out, in), by key.

    Raises
    ------
    BertNumpyError
        If a scale is a NaN, as some rules make them of zeros; or as :func:`stored_tensor_scale`.
    """
    fmt, scale_codes = weight.block_format, weight.scale_codes
    assert fmt is not None
    assert scale_codes is not None
    layout = layout_of(fmt)
    assert layout is not None
    if not np.isfinite(weight.scale).all():
        raise BertNumpyError(f"{module}: expected finite scales of blocks to be written, found NaN")
    codes = np.ascontiguousarray(weight.codes)
    stored: dict[str, Array | Fp8Array] = {
        f"{module}.weight_scale": _as_stored(np.ascontiguousarray(scale_codes), fmt.scale_format)
    }
    if layout.bits < 8:
        stored[f"{module}.{convention.packed}"] = pack_codes(codes, fmt.element)
    else:
        stored[f"{module}.weight"] = _as_stored(codes, fmt.element)
    if weight.tensor_scale is not None:
        number = stored_tensor_scale(weight.tensor_scale, fmt, convention)
        stored[f"{module}.{convention.tensor_scale}"] = number
    return stored


def stored_tensor_scale(
    number: Float32Array, fmt: BlockFormat, convention: Convention
) -> Float32Array:
    """Convert the number of a tensor, as the format's rule stores it, to a convention's.

    The same kind of number stays as it is. A reciprocal, or a quotient if the rule stores the
    largest magnitude, is rounded to float32. A tensor of zeros, whose number makes no difference,
    gets 1, as compressed-tensors gives it.

    Raises
    ------
    BertNumpyError
        If the result is not a normal float32 number.
    """
    rule = _rule(fmt)
    largest = np.float32(fmt.element.max * fmt.scale_format.max)
    found = np.asarray(number, np.float32)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        if rule.stored == "absmax":
            found = largest / found if convention.divides else found / largest
        elif rule.divides != convention.divides:
            found = np.float32(1) / found
    if number == 0:
        found = np.float32(1)
    if not _TINY <= found < np.inf:
        raise BertNumpyError(
            f"the scale of the tensor, {number} by the rule {fmt.rule}: expected a number that "
            f"{convention.name} can store, found {found}"
        )
    return np.asarray(found, np.float32).reshape(convention.shape)


def _rule(fmt: BlockFormat) -> RatioRule:
    assert isinstance(fmt.how, RatioRule)  # formats with a scale per tensor have no other
    return fmt.how


def _as_stored(codes: Array, fmt: Format) -> Array | Fp8Array:
    return Fp8Array(codes, fmt) if isinstance(fmt, FloatFormat) and fmt in _DTYPES else codes


# Reading


def read_blocks(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    fmt: BlockFormat,
    shape: tuple[int, ...],
    convention: Convention,
    tensor_scale: Float32Array | None = None,
) -> QuantizedTensor:
    """Read a layer's weight.

    Parameters
    ----------
    parameter : StoredTensor
        Its codes.
    stored : mapping of str to StoredTensor
        All tensors of the checkpoint.
    fmt : BlockFormat
        Its format, with a rule.
    shape : tuple of int
        Its shape, (out, in), by the rest of the config.
    convention : Convention
    tensor_scale : ndarray of float32, (), optional
        The number of the tensor as the rule stores it, if it is known. The stored one must be
        what it comes to.

    Raises
    ------
    BertNumpyError
        If a tensor is missing, or has another dtype or shape; or if a number is impossible, or
        is the reciprocal of what the convention has. The message names the file and the key.
    """
    layout = layout_of(fmt)
    assert layout is not None
    outputs, inputs = shape
    name = convention.packed if layout.bits < 8 else "weight"
    module = module_of(parameter)
    if layout.bits < 8:
        if (fault := packing_fault(fmt, inputs)) is not None:
            raise BertNumpyError(f"{parameter.place}: {fault}")
        stored_shape, dtype = (outputs, inputs * layout.bits // 8), "U8"
    else:
        stored_shape, dtype = (outputs, inputs), _DTYPES[fmt.element]
    codes_at = companion(parameter, stored, f"{module}.{name}", (stored_shape,))
    codes = _read_bytes(codes_at, dtype)
    if layout.bits < 8:
        codes = unpack_codes(codes, fmt.element, inputs)
    elif isinstance(fmt.element, FloatFormat):
        _check_codes(codes_at, codes, fmt.element.is_finite, "finite numbers")
    else:
        codes = codes.view(np.int8)
    scales_at = companion(
        parameter, stored, f"{module}.weight_scale", ((outputs, -(-inputs // fmt.block)),)
    )
    scale_codes = _read_bytes(scales_at, _DTYPES.get(fmt.scale_format, "U8"))
    with np.errstate(invalid="ignore"):
        good = np.isfinite(fmt.scale_format.values) & (fmt.scale_format.values >= 0)
    _check_codes(scales_at, scale_codes, good, f"finite {fmt.scale_format} numbers of at least 0")
    at, recorded = scales_at, tensor_scale is not None
    if fmt.tensor_scale:
        at = companion(parameter, stored, f"{module}.{convention.tensor_scale}", ((1,), ()))
        tensor_scale = read_tensor_scale(at, fmt, convention, tensor_scale)
    weight = block_tensor(codes, fmt, scale_codes, tensor_scale)
    if not np.isfinite(weight.scale).all():
        raise BertNumpyError(
            f"{at.place}: expected finite products with the scales of blocks, found infinity"
        )
    if fmt.tensor_scale and not recorded:
        _check_direction(at, weight, convention)
    return weight


def _check_direction(at: StoredTensor, weight: QuantizedTensor, convention: Convention) -> None:
    """Refuse a number of which the reciprocal is right: all other numbers would be accepted.

    A tensor whose largest magnitude is 2688 has the number 1, and none has such weights.
    """
    fmt, number = weight.block_format, weight.tensor_scale
    assert fmt is not None
    assert number is not None
    largest = fmt.element.max * fmt.scale_format.max
    if convention.divides:
        good, expected = number >= 1, f"{largest:g} / absmax, at least 1"
    else:
        good, expected = number <= 1, f"absmax / {largest:g}, at most 1"
    if not good:
        raise BertNumpyError(
            f"{at.place}: expected {expected}, found {number}: perhaps it is the reciprocal"
        )


def read_tensor_scale(
    tensor: StoredTensor,
    fmt: BlockFormat,
    convention: Convention,
    expected: Float32Array | None = None,
) -> Float32Array:
    """Read the number of a tensor, as the format's rule stores it; see :func:`read_blocks`."""
    found = read_float32(tensor).reshape(())
    if not found >= _TINY:
        raise BertNumpyError(f"{tensor.place}: expected a positive, normal number, found {found}")
    if expected is None:
        assert _rule(fmt).divides == convention.divides  # the rule of those who wrote it
        return found
    stored = stored_tensor_scale(expected, fmt, convention).reshape(())
    if stored != found:
        raise BertNumpyError(
            f"{tensor.place}: expected {stored}, which the scale in config.json comes to, "
            f"found {found}"
        )
    return expected


def block_tensor(
    codes: Array, fmt: BlockFormat, scale_codes: Array, tensor_scale: Float32Array | None
) -> QuantizedTensor:
    """Make a quantized tensor from its bytes; the blocks are along the last axis."""
    parts: dict[str, Any] = {"scale_codes": scale_codes, "tensor_scale": tensor_scale}
    return QuantizedTensor(codes, None, fmt, -1, **parts)  # type: ignore[arg-type]


def _read_bytes(tensor: StoredTensor, dtype: str) -> npt.NDArray[np.uint8]:
    if tensor.dtype != dtype:
        raise BertNumpyError(
            f"{tensor.place}: expected dtype {dtype} by config.json, found {tensor.dtype}"
        )
    codes: npt.NDArray[np.uint8] = tensor.read_as(np.uint8)
    return codes


def _check_codes(
    tensor: StoredTensor, codes: npt.NDArray[np.uint8], good: npt.NDArray[np.bool_], expected: str
) -> None:
    """Refuse codes of other numbers than the expected ones."""
    if (bad := ~good[codes]).any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BertNumpyError(
            f"{tensor.place}: expected {expected}, found code 0x{codes[index]:02X} at {list(index)}"
        )

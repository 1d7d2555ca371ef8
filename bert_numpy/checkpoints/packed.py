"""Weights of integers packed into int32: compressed-tensors' layout ``pack-quantized``.

A row's codes are one stream of bits, from the lowest bit of its first word on. They are unsigned:
signed ones are stored with half of their range added (compressed-tensors 0.20,
``compressors/pack_quantized/helpers.py``). A layer's tensors are

- ``weight_packed``, int32, (out, in * bits / 32), the last word filled up;
- ``weight_shape``, int64: out and in;
- ``weight_scale``: (out, in / group) per group, (out, 1) per channel, (1,) per tensor;
- ``weight_zero_point``, of asymmetric weights: packed in the same way, but along the outputs,
  (out * bits / 32, in / group); one for a tensor is not packed;
- ``weight_g_idx``, int32, (in,), in checkpoints of earlier releases: the group of each input
  (GPTQ's order of activations, with groups of the inputs in that order).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.tensors import companion
from bert_numpy.errors import BertNumpyError
from npfp8 import INT4, INT8, UINT4, UINT8, Format, IntFormat
from npfp8.arrays import Array
from npfp8.blocks.layouts import pack_codes, unpack_codes
from npfp8.storage import StoredTensor

__all__ = [
    "INTEGERS",
    "PACK_QUANTIZED",
    "groups_of_inputs",
    "packed_codes",
    "packed_zero_points",
    "read_packed_codes",
    "read_packed_zero_points",
    "signed_codes",
    "unsigned_codes",
]

#: The layout's name.
PACK_QUANTIZED = "pack-quantized"

#: The formats of its weights. Those of 8 bits are read, but not written.
INTEGERS: tuple[Format, ...] = (INT4, UINT4, INT8, UINT8)

_UNSIGNED = {4: UINT4, 8: UINT8}


def unsigned_codes(codes: Array, fmt: IntFormat) -> npt.NDArray[np.uint8]:
    """Return an integer format's codes as codes of the unsigned format of the same width."""
    if codes.dtype == np.uint8:
        return codes
    return codes.view(np.uint8) + np.uint8(1 << (fmt.bits - 1))


def signed_codes(codes: Array, fmt: IntFormat) -> Array:
    """Return unsigned codes as a format's own; the inverse of :func:`unsigned_codes`."""
    if fmt.dtype == "uint8":
        return codes
    return (codes - np.uint8(1 << (fmt.bits - 1))).view(np.int8)


# Writing


def packed_codes(codes: Array, fmt: IntFormat) -> npt.NDArray[np.int32]:
    """Pack the codes of a weight, (out, in), into words along the inputs."""
    stream = pack_codes(unsigned_codes(codes, fmt), _UNSIGNED[fmt.bits])
    padded = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 4)))
    words: npt.NDArray[np.int32] = padded.view("<i4").astype(np.int32)
    return words


def packed_zero_points(zero_point: Array, fmt: IntFormat) -> npt.NDArray[np.int32]:
    """Pack zero points, (out, groups), into words along the outputs."""
    return np.ascontiguousarray(packed_codes(np.ascontiguousarray(zero_point.T), fmt).T)


# Reading


def read_packed_codes(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    module: str,
    fmt: IntFormat,
    shape: tuple[int, ...],
) -> Array:
    """Read a weight's codes, (out, in), and check the shape beside them.

    Raises
    ------
    BertNumpyError
        If a tensor is missing, or has another dtype, shape or content than the config says.
    """
    outputs, inputs = shape
    key = f"{module}.weight_packed"
    tensor = companion(parameter, stored, key, ((outputs, _words(inputs, fmt)),))
    codes = _unpacked(tensor, fmt, inputs)
    place = companion(parameter, stored, f"{module}.weight_shape", ((2,),))
    found = _integers(place).tolist()
    if found != [outputs, inputs]:
        raise BertNumpyError(
            f"{place.place}: expected {[outputs, inputs]} by config.json, found {found}"
        )
    return codes


def read_packed_zero_points(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    module: str,
    fmt: IntFormat,
    outputs: int,
    groups: int,
) -> Array:
    """Read zero points, (out, groups), as our codes.

    Raises
    ------
    BertNumpyError
        As :func:`read_packed_codes`.
    """
    key = f"{module}.weight_zero_point"
    tensor = companion(parameter, stored, key, ((_words(outputs, fmt), groups),))
    return np.ascontiguousarray(_unpacked(tensor, fmt, outputs, transposed=True).T)


def groups_of_inputs(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    module: str,
    inputs: int,
    size: int,
) -> npt.NDArray[np.int64]:
    """Read the group of each input, of groups of ``size`` inputs.

    If an entry is -1, the groups are not scattered: earlier releases of compressed-tensors fill
    the tensor of a new layer with -1.

    Raises
    ------
    BertNumpyError
        If the tensor is missing, of another dtype or shape, or a group has another number of
        inputs.
    """
    tensor = companion(parameter, stored, f"{module}.weight_g_idx", ((inputs,),))
    group_of = _integers(tensor)
    in_order = np.arange(inputs) // size
    if (group_of == -1).any():
        return in_order
    if not np.array_equal(np.sort(group_of), in_order):
        raise BertNumpyError(
            f"{tensor.place}: expected {size} inputs in each of {in_order[-1] + 1} groups by "
            "config.json, found others"
        )
    return group_of


def _integers(tensor: StoredTensor) -> npt.NDArray[np.int64]:
    """Read a tensor of int32 or int64."""
    dtypes = {"I32": "<i4", "I64": "<i8"}
    if tensor.dtype not in dtypes:
        raise BertNumpyError(f"{tensor.place}: expected dtype I32 or I64, found {tensor.dtype}")
    return tensor.read_as(dtypes[tensor.dtype]).astype(np.int64)


def _words(count: int, fmt: IntFormat) -> int:
    """Return the number of int32 words that hold ``count`` codes."""
    return -(-count * fmt.bits // 32)


def _unpacked(
    tensor: StoredTensor, fmt: IntFormat, count: int, *, transposed: bool = False
) -> Array:
    """Unpack ``count`` codes along the last axis, or along the first if ``transposed``."""
    if tensor.dtype != "I32":
        raise BertNumpyError(f"{tensor.place}: expected dtype I32, found {tensor.dtype}")
    words = tensor.read_as("<i4")
    stream = np.ascontiguousarray(words.T if transposed else words).view(np.uint8)
    unsigned = unpack_codes(stream, _UNSIGNED[fmt.bits])[:, :count]
    return signed_codes(np.ascontiguousarray(unsigned), fmt)

"""Tensors of FP8, FP6, FP4 and their scales in safetensors files, as NumPy arrays of codes.

The safetensors library reads these dtypes only for torch, as NumPy does not have them.
So the header and the bytes are read here, strictly: anything that the format does not
allow (https://github.com/huggingface/safetensors, README, section "Format") is refused.

In memory each code is a byte. In a file, the codes of F4, F6_E2M3 and F6_E3M2 are packed:
their bits are one stream in the order of the elements (the last axis fastest), each code and
each byte from its lowest bit. Of two F4 the first is in the low nibble, as torch's
float4_e2m1fn_x2 has it (Float4_e2m1fn_x2.h), which the library stores as F4 with a last axis
twice as long. No library reads or writes F6; the stream is that of Quark's Pack_fp6.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import reprlib
import struct
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import dtype_of, path_of, wrong_type
from npfp8.arrays import Array
from npfp8.blocks.layouts import pack_codes, unpack_codes
from npfp8.files import open_regular, replaced_file
from npfp8.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    FloatFormat,
    as_float_format,
)

__all__ = [
    "Bfloat16Array",
    "Fp8Array",
    "StoredTensor",
    "load_file",
    "read_header",
    "read_metadata",
    "save_file",
]

#: safetensors' names of the formats: those of Dtype in its tensor.rs (0.8) that are not NumPy's.
_FP8_NAMES = {
    E4M3FN: "F8_E4M3",
    E5M2: "F8_E5M2",
    E8M0FNU: "F8_E8M0",
    E4M3FNUZ: "F8_E4M3FNUZ",
    E5M2FNUZ: "F8_E5M2FNUZ",
    E2M1: "F4",
    E2M3: "F6_E2M3",
    E3M2: "F6_E3M2",
}
_FP8_FORMATS = {name: fmt for fmt, name in _FP8_NAMES.items()}

#: safetensors' name of each NumPy dtype; the data is little-endian.
_NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_NUMPY_NAMES = {np.dtype(dtype): name for name, dtype in _NUMPY_DTYPES.items()}

#: Bits of an element of each dtype that safetensors has a name for. A dtype that is not
#: here is newer than this table: its tensors have the bytes that the header gives them.
_BITS = {
    **{name: 8 * np.dtype(dtype).itemsize for name, dtype in _NUMPY_DTYPES.items()},
    **{name: fmt.bits for name, fmt in _FP8_FORMATS.items()},
    "BF16": 16,
}

#: The library's own limit on a header, in bytes.
_MAX_HEADER = 100_000_000

#: Digits of the largest number that the format has, a 64-bit one without sign.
_MAX_DIGITS = 20

#: Axes of an array in every release of NumPy.
_MAX_AXES = 32

#: Bytes that an array may have: 2^63 - 1 on a 64-bit machine, 2^31 - 1 on a 32-bit one.
_MAX_BYTES = sys.maxsize

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200


@dataclass(frozen=True, eq=False, repr=False)
class Fp8Array:
    """An FP8, FP6 or FP4 tensor of a file: codes and their format. It has no scale.

    Attributes
    ----------
    codes : ndarray of uint8
        One code in each byte.
    fmt : FloatFormat
        A name is stored as the format that it names.

    Raises
    ------
    TypeError
        If ``codes`` is not an array, or ``fmt`` is not a float format or a name.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.storage import Fp8Array
    >>> Fp8Array(np.uint8([[56, 192]]), "E4M3FN")
    <Fp8Array (1, 2) E4M3FN>
    """

    codes: npt.NDArray[np.uint8]
    fmt: FloatFormat

    def __post_init__(self) -> None:
        object.__setattr__(self, "fmt", as_float_format(self.fmt))
        if not isinstance(self.codes, np.ndarray):
            raise wrong_type("codes", "an array of uint8", self.codes)

    def __repr__(self) -> str:
        return f"<Fp8Array {self.codes.shape} {self.fmt}>"


@dataclass(frozen=True, eq=False, repr=False)
class Bfloat16Array:
    """bfloat16 numbers as their bits, to be written as BF16; :func:`load_file` returns the bits.

    Attributes
    ----------
    bits : ndarray of uint16

    Raises
    ------
    TypeError
        If ``bits`` is not an array.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.bfloat16 import to_bits
    >>> from npfp8.storage import Bfloat16Array
    >>> Bfloat16Array(to_bits(np.float32([1.0, -2.0])))
    <Bfloat16Array (2,)>
    """

    bits: npt.NDArray[np.uint16]

    def __post_init__(self) -> None:
        if not isinstance(self.bits, np.ndarray):
            raise wrong_type("bits", "an array of uint16", self.bits)

    def __repr__(self) -> str:
        return f"<Bfloat16Array {self.bits.shape}>"


@dataclass(frozen=True, repr=False)
class StoredTensor:
    """The place of a tensor: its file, key, dtype (safetensors' name), shape and byte range.

    The dtype may be a new one, that this module cannot read: such a tensor can be ignored, or
    copied as bytes. ``buffer`` is the file, mapped into memory
    when its header was read. Later reads are from the same file, even if another file has
    replaced it.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from npfp8.storage import read_header, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.safetensors")
    ...     save_file({"x": np.float32([1, 2])}, path)
    ...     tensor = read_header(path)["x"]
    >>> tensor.dtype, tensor.shape, tensor.nbytes
    ('F32', (2,), 8)
    >>> tensor.read_as("<f4")
    array([1., 2.], dtype=float32)
    """

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    buffer: mmap.mmap = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<StoredTensor {self.key} {self.shape} {self.dtype} in {self.file}>"

    @property
    def place(self) -> str:
        """The file and the key, for messages."""
        return f"{self.file}: tensor {self.key!r}"

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return self.end - self.begin

    def read_bytes(self) -> bytes:
        """Read the bytes as they are.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from npfp8.storage import read_header, save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "x.safetensors")
        ...     save_file({"x": np.float32([1, 2])}, path)
        ...     tensor = read_header(path)["x"]
        >>> len(tensor.read_bytes())
        8
        """
        return self.buffer[self.begin : self.end]

    def read_as(self, dtype: npt.DTypeLike) -> Array:
        """Read the bytes as a new array of ``dtype`` and the shape of the tensor.

        Raises
        ------
        TypeError
            If ``dtype`` is not a dtype.
        ValueError
            If its elements do not fill the bytes of the tensor.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from npfp8.storage import read_header, save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "x.safetensors")
        ...     save_file({"x": np.float32([1, 2])}, path)
        ...     tensor = read_header(path)["x"]
        >>> tensor.read_as("<f4")
        array([1., 2.], dtype=float32)
        """
        return self.view_as(dtype).copy()

    def view_as(self, dtype: npt.DTypeLike) -> Array:
        """View the bytes as an array without a copy: read-only, perhaps not aligned.

        While the array is in use, the file must not be written into or cut;
        replacing it, as :func:`save_file` does, is harmless.

        Raises
        ------
        TypeError
            If ``dtype`` is not a dtype.
        ValueError
            If its elements do not fill the bytes of the tensor.

        Examples
        --------
        >>> import os, tempfile
        >>> import numpy as np
        >>> from npfp8.storage import read_header, save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "x.safetensors")
        ...     save_file({"x": np.float32([1, 2])}, path)
        ...     tensor = read_header(path)["x"]
        >>> tensor.view_as("<f4").flags.writeable
        False
        """
        stored = dtype_of("dtype", dtype)
        if stored.itemsize * math.prod(self.shape) != self.nbytes:
            raise ValueError(
                f"dtype: expected one whose elements fill the {self.nbytes} bytes of shape "
                f"{self.shape}, found {stored}"
            )
        if not self.nbytes:  # which NumPy makes no view of
            return np.empty(self.shape, stored)
        count = math.prod(self.shape)
        return np.frombuffer(self.buffer, stored, count, self.begin).reshape(self.shape)


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Read and check the header of a safetensors file; the data is not read.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to StoredTensor
        The tensors by key, in the order of the header.

    Raises
    ------
    ValueError
        If the file is not a complete, valid safetensors file. The message names the file
        and, if one is at fault, the key, and what was found and expected. Also if it is
        not a regular file, or an array has more axes than NumPy allows.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from npfp8.storage import read_header, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.safetensors")
    ...     save_file({"x": np.zeros((2, 3), np.float32)}, path)
    ...     {key: tensor.shape for key, tensor in read_header(path).items()}
    {'x': (2, 3)}
    """
    return _read(path_of("path", path))[0]


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the metadata of a safetensors file: strings by name; {} if it has none.

    Raises
    ------
    ValueError, OSError
        As :func:`read_header`.

    Examples
    --------
    >>> import os, tempfile
    >>> from npfp8.storage import read_metadata, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.safetensors")
    ...     save_file({}, path, {"format": "pt"})
    ...     read_metadata(path)
    {'format': 'pt'}
    """
    return _read(path_of("path", path))[1]


def _read(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the header of a file: its tensors and its metadata."""
    with open_regular(file) as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{file}: expected 8 bytes of header length, found {len(prefix)}")
        try:
            buffer = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:  # which does not say of which file
            raise OSError(error.errno, error.strerror, str(file)) from None
        except (ValueError, OverflowError) as error:  # more than 2^31 bytes on a 32-bit machine
            raise ValueError(f"{file}: expected a file that can be mapped: {error}") from None
    size = len(buffer)
    (length,) = struct.unpack("<Q", prefix)
    if length > min(size - 8, _MAX_HEADER):
        raise ValueError(
            f"{file}: expected a header within {min(size - 8, _MAX_HEADER)} bytes, "
            f"found a length of {length}"
        )
    begin = 8 + length
    header = _parse(buffer[8:begin], file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(
            f"{file}: key '__metadata__': expected strings, found {_REPR.repr(metadata)}"
        )
    tensors = {key: _stored(file, key, info, begin, buffer) for key, info in header.items()}
    end = begin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            raise ValueError(
                f"{file}: tensor {_REPR.repr(tensor.key)}: expected data from byte {end - begin}, "
                f"where the last one ends, found {tensor.begin - begin}"
            )
        end = tensor.end
    if end != size:
        raise ValueError(f"{file}: expected {end} bytes by the header, found {size}")
    return tensors, metadata


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    """Parse the header as JSON. Long numbers and repeated names are refused at once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            (twice, times), *_ = Counter(key for key, _ in pairs).most_common(1)
            raise ValueError(f"key {_REPR.repr(twice)}: expected once, found {times} times")
        return found

    def integer(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"expected numbers of 64 bits, found one of {len(digits)} digits")
        return int(digits)

    if not text.startswith(b"{"):
        raise ValueError(f"{file}: expected a header that begins with '{{', found {text[:1]!r}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_int=integer)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = _REPR.repr(str(error))[1:-1]
        raise ValueError(f"{file}: expected a JSON header, found an error: {reason}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return dict(header)


def _stored(file: Path, key: str, info: Any, begin: int, buffer: mmap.mmap) -> StoredTensor:
    """Check one entry of the header."""
    place = f"{file}: tensor {_REPR.repr(key)}"
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"{place}: expected an object of dtype, shape and data_offsets, "
            f"found {_REPR.repr(info)}"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str):
        raise ValueError(f"{place}: expected the name of a dtype, found {_REPR.repr(dtype)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{place}: expected non-negative integers in shape and two in data_offsets, "
            f"found {_REPR.repr(shape)} and {_REPR.repr(offsets)}"
        )
    if not dtype:
        raise ValueError(f"{place}: expected the name of a dtype, found ''")
    if len(shape) > _MAX_AXES:
        raise ValueError(f"{place}: expected at most {_MAX_AXES} axes, found {len(shape)}")
    if dtype in _BITS:
        _check_size(place, dtype, shape, offsets)
    elif offsets[1] < offsets[0]:
        raise ValueError(f"{place}: expected data_offsets in order, found {offsets}")
    return StoredTensor(
        file, key, dtype, tuple(shape), begin + offsets[0], begin + offsets[1], buffer
    )


def _check_size(place: str, dtype: str, shape: list[int], offsets: list[int]) -> None:
    """Raise unless a shape has as many bytes as there are between the offsets."""
    bits = _BITS[dtype]
    # NumPy holds no shape whose lengths, 0 left out, multiply to more than an index has bits for.
    if bits * math.prod(length or 1 for length in shape) > 8 * _MAX_BYTES:
        raise ValueError(f"{place}: expected at most {_MAX_BYTES} bytes, found shape {shape}")
    nbytes, rest = divmod(bits * math.prod(shape), 8)
    if rest:
        raise ValueError(
            f"{place}: expected whole bytes of {dtype}, {bits} bits each, found shape {shape}"
        )
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"{place}: expected {nbytes} bytes for {dtype} of shape {shape}, "
            f"found data_offsets {offsets}"
        )


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def load_file(path: str | os.PathLike[str]) -> dict[str, Array | Fp8Array]:
    """Read a safetensors file.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to ndarray or Fp8Array
        ``F8_E4M3``, ``F8_E5M2``, ``F8_E8M0``, ``F8_E4M3FNUZ``, ``F8_E5M2FNUZ``, ``F4``,
        ``F6_E2M3`` and ``F6_E3M2`` tensors are :class:`Fp8Array`, one code in each byte;
        ``BF16`` ones are uint16 arrays of bits (:mod:`npfp8.bfloat16`).

    Raises
    ------
    ValueError
        As :func:`read_header`; or if a dtype is none of these and not one of NumPy's.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, encode
    >>> from npfp8.storage import Fp8Array, load_file, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "weights.safetensors")
    ...     save_file({"w": Fp8Array(encode([1.0, -2.0], E4M3FN), E4M3FN)}, path)
    ...     w = load_file(path)["w"]
    >>> w.codes, str(w.fmt)
    (array([ 56, 192], dtype=uint8), 'E4M3FN')
    """
    arrays: dict[str, Array | Fp8Array] = {}
    path = path_of("path", path)
    for key, tensor in read_header(path).items():
        if tensor.dtype in _FP8_FORMATS:
            arrays[key] = Fp8Array(_codes(tensor), _FP8_FORMATS[tensor.dtype])
        elif tensor.dtype == "BF16":
            arrays[key] = tensor.read_as("<u2").astype(np.uint16, copy=False)
        elif tensor.dtype in _NUMPY_DTYPES:
            stored = tensor.read_as(_NUMPY_DTYPES[tensor.dtype])
            arrays[key] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        else:
            known = ", ".join((*_NUMPY_DTYPES, "BF16", *_FP8_FORMATS))
            raise ValueError(
                f"{path}: tensor {_REPR.repr(key)}: expected dtype {known}, "
                f"found {_REPR.repr(tensor.dtype)[1:-1]}"
            )
    return arrays


def _codes(tensor: StoredTensor) -> npt.NDArray[np.uint8]:
    """Read codes, one in each byte."""
    fmt = _FP8_FORMATS[tensor.dtype]
    if fmt.bits == 8:
        return tensor.read_as(np.uint8)
    packed = np.frombuffer(tensor.read_bytes(), np.uint8)
    return unpack_codes(packed, fmt, math.prod(tensor.shape)).reshape(tensor.shape)


def _bytes_of(key: str, tensor: Fp8Array) -> Array:
    """Return the bytes of codes; raise unless they are whole."""
    codes, fmt = tensor.codes, tensor.fmt
    if fmt not in _FP8_NAMES or codes.dtype != np.uint8:
        raise TypeError(
            f"tensor {key!r}: expected uint8 codes of {', '.join(map(str, _FP8_NAMES))}, "
            f"found {codes.dtype} codes of {fmt}"
        )
    if fmt.bits == 8:
        return codes
    if codes.size * fmt.bits % 8:
        raise ValueError(
            f"tensor {key!r}: expected whole bytes of {_FP8_NAMES[fmt]}, {fmt.bits} bits each, "
            f"found shape {codes.shape}"
        )
    try:
        return pack_codes(codes.reshape(-1), fmt)
    except ValueError as error:
        raise ValueError(f"tensor {key!r}: {error}") from None


def save_file(
    tensors: Mapping[str, Array | Fp8Array | Bfloat16Array | StoredTensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file atomically. The same input gives the same bytes.

    Parameters
    ----------
    tensors : mapping of str to ndarray, Fp8Array, Bfloat16Array or StoredTensor
        A tensor of another file is copied byte for byte, whatever its dtype.
    path : path
    metadata : mapping of str to str, optional

    Raises
    ------
    TypeError
        If safetensors has no dtype for a tensor, the metadata are not strings, or an
        argument is not of the type stated.
    ValueError
        If a tensor is called ``__metadata__``, a code has more bits than its format, or the
        codes of a tensor of FP4 or FP6 do not fill whole bytes.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from npfp8.storage import Bfloat16Array, load_file, save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "x.safetensors")
    ...     save_file({"x": np.float32([1]), "y": Bfloat16Array(np.uint16([0x3F80]))}, path)
    ...     load_file(path)
    {'x': array([1.], dtype=float32), 'y': array([16256], dtype=uint16)}
    """
    path = path_of("path", path)
    _check_arguments(tensors, metadata)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    payload: list[Array | StoredTensor] = []
    end = 0
    # As the library does: by falling alignment, then by name, so that all are aligned.
    for key, tensor in sorted(tensors.items(), key=lambda item: (-_alignment(item[1]), item[0])):
        if key == "__metadata__":
            raise ValueError("tensor '__metadata__': expected a name that the format does not use")
        data: Array | StoredTensor
        if isinstance(tensor, Fp8Array):
            data = _bytes_of(key, tensor)
            name, shape = _FP8_NAMES[tensor.fmt], tensor.codes.shape
        elif isinstance(tensor, Bfloat16Array):
            if tensor.bits.dtype != np.uint16:
                raise TypeError(f"tensor {key!r}: expected uint16 bits, found {tensor.bits.dtype}")
            name, data = "BF16", tensor.bits.astype("<u2", copy=False)
            shape = data.shape
        elif isinstance(tensor, StoredTensor):
            name, data, shape = tensor.dtype, tensor, tensor.shape
        else:
            little = tensor.dtype.newbyteorder("<")
            if little not in _NUMPY_NAMES:
                raise TypeError(
                    f"tensor {key!r}: expected a dtype that safetensors has, found {tensor.dtype}"
                )
            name, data = _NUMPY_NAMES[little], tensor.astype(little, copy=False)
            shape = data.shape
        offsets = [end, end := end + data.nbytes]
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": offsets}
        payload.append(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replaced_file(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in payload:
            file.write(data.read_bytes() if isinstance(data, StoredTensor) else data.tobytes())


def _check_arguments(tensors: object, metadata: object) -> None:
    """Raise TypeError unless tensors and metadata are mappings of what a file can hold."""
    if not isinstance(tensors, Mapping):
        raise wrong_type("tensors", "a mapping", tensors)
    if not isinstance(metadata, Mapping | None):
        raise wrong_type("metadata", "a mapping", metadata)
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise wrong_type("tensors", "names of type str", key)
        if not isinstance(
            tensor, np.ndarray | np.generic | Fp8Array | Bfloat16Array | StoredTensor
        ):
            raise wrong_type(f"tensor {key!r}", "an array, or codes as an Fp8Array", tensor)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):  # which no reader takes
            raise TypeError(f"metadata {key!r}: expected strings, found {value!r}")


def _alignment(tensor: Array | Fp8Array | Bfloat16Array | StoredTensor) -> int:
    if isinstance(tensor, StoredTensor):
        return _BITS.get(tensor.dtype, 8) // 8 or 1  # of an unknown dtype: none to keep
    if isinstance(tensor, Bfloat16Array):
        return 2
    return 1 if isinstance(tensor, Fp8Array) else tensor.dtype.itemsize

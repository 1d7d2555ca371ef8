"""FP8 tensors in safetensors files, read and written as NumPy arrays of codes.

The safetensors library reads these dtypes for torch only; NumPy has none for
them. So the header and the bytes are read here, and strictly: nothing but what
the format allows (https://github.com/huggingface/safetensors, README, section
"Format") gets through.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.files import replaced_file
from npfp8.formats import E4M3FN, E5M2, E8M0FNU, FloatFormat

__all__ = [
    "Fp8Array",
    "StoredTensor",
    "load_file",
    "read_header",
    "read_metadata",
    "save_file",
]

#: safetensors' names of the FP8 formats.
_FP8_NAMES = {E4M3FN: "F8_E4M3", E5M2: "F8_E5M2", E8M0FNU: "F8_E8M0"}
_FP8_FORMATS = {name: fmt for fmt, name in _FP8_NAMES.items()}

#: safetensors' name of each NumPy dtype; the data is little-endian.
_NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
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

#: Bytes of an element of what a file may hold, as far as its size is checked here.
_ITEMSIZES = {
    **{name: np.dtype(dtype).itemsize for name, dtype in _NUMPY_DTYPES.items()},
    **dict.fromkeys(_FP8_FORMATS, 1),
    "BF16": 2,
    "C64": 8,
}

#: The library's own limit on a header, in bytes.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True, eq=False)
class Fp8Array:
    """Codes and their format: what an FP8 tensor is in a file. It has no scale.

    Attributes
    ----------
    codes : ndarray of uint8
    fmt : FloatFormat
    """

    codes: npt.NDArray[np.uint8]
    fmt: FloatFormat


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: its file, key, dtype (safetensors' name), shape and byte range."""

    file: Path
    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.end - self.begin

    def read_bytes(self) -> bytes:
        """Read the bytes as they are."""
        with self.file.open("rb") as stream:
            stream.seek(self.begin)
            return stream.read(self.nbytes)

    def read_as(self, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Read the bytes as an array of ``dtype`` and the tensor's shape."""
        stored = np.dtype(dtype)
        count = self.nbytes // stored.itemsize
        return np.fromfile(self.file, stored, count, offset=self.begin).reshape(self.shape)


def read_header(path: str | os.PathLike[str]) -> dict[str, StoredTensor]:
    """Read and check the header of a safetensors file; the data is not read.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to StoredTensor, by key, in the header's order

    Raises
    ------
    ValueError
        If the file is not a whole, valid safetensors file: names the file, the
        key if it is one's fault, what was found and what was expected.
    OSError
        If it cannot be read.
    """
    file = Path(path)
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        if len(prefix) < 8:
            raise ValueError(f"{file}: expected 8 bytes of header length, found {len(prefix)}")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, _MAX_HEADER):
            raise ValueError(
                f"{file}: expected a header within {min(size - 8, _MAX_HEADER)} bytes, "
                f"found a length of {length}"
            )
        text = stream.read(length)
    header = _parse(text, file)
    begin = 8 + length
    tensors = {
        key: _stored(file, key, info, begin)
        for key, info in header.items()
        if key != "__metadata__"
    }
    end = begin
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.begin, tensor.end)):
        if tensor.begin != end:
            raise ValueError(
                f"{file}: tensor {tensor.key!r}: expected data from byte {end - begin}, where the "
                f"last one ends, found {tensor.begin - begin}"
            )
        end = tensor.end
    if end != size:
        raise ValueError(f"{file}: expected {end} bytes by the header, found {size}")
    return tensors


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read a safetensors file's metadata: strings by name; {} where it has none.

    Raises
    ------
    ValueError
        As :func:`read_header`.
    """
    file = Path(path)
    read_header(file)
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        metadata = _parse(stream.read(length), file).get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(x, str) for x in metadata.values()):
        raise ValueError(f"{file}: key '__metadata__': expected strings, found {metadata!r}")
    return metadata


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(
                f"{file}: key {twice!r}: expected once, found {keys.count(twice)} times"
            )
        return dict(pairs)

    if not text.startswith(b"{"):
        raise ValueError(f"{file}: expected a header that begins with '{{', found {text[:1]!r}")
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file}: expected a JSON header, found an error: {error}") from None
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{file}: key '__metadata__': expected strings, found {metadata!r}")
    return dict(header)


def _stored(file: Path, key: str, info: Any, begin: int) -> StoredTensor:
    """One entry of the header, checked."""
    place = f"{file}: tensor {key!r}"
    if not isinstance(info, dict) or set(info) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"{place}: expected an object of dtype, shape and data_offsets, found {info!r}"
        )
    dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(dtype, str):
        raise ValueError(f"{place}: expected the name of a dtype, found {dtype!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{place}: expected non-negative integers in shape and two in data_offsets, "
            f"found {shape!r} and {offsets!r}"
        )
    if dtype not in _ITEMSIZES:
        raise ValueError(f"{place}: expected dtype {', '.join(_ITEMSIZES)}, found {dtype}")
    nbytes = _ITEMSIZES[dtype]
    for length in shape:
        nbytes *= length
    if offsets[1] - offsets[0] != nbytes:
        raise ValueError(
            f"{place}: expected {nbytes} bytes for {dtype} of shape {shape}, "
            f"found data_offsets {offsets}"
        )
    return StoredTensor(file, key, dtype, tuple(shape), begin + offsets[0], begin + offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def load_file(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any] | Fp8Array]:
    """Read a safetensors file.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to ndarray or Fp8Array
        ``F8_E4M3``, ``F8_E5M2`` and ``F8_E8M0`` tensors are :class:`Fp8Array`;
        ``BF16`` ones are uint16 arrays of bits (:mod:`npfp8.bfloat16`).

    Raises
    ------
    ValueError
        As :func:`read_header`; or a dtype that is none of these and not NumPy's.

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
    arrays: dict[str, npt.NDArray[Any] | Fp8Array] = {}
    for key, tensor in read_header(path).items():
        if tensor.dtype in _FP8_FORMATS:
            arrays[key] = Fp8Array(tensor.read_as(np.uint8), _FP8_FORMATS[tensor.dtype])
        elif tensor.dtype == "BF16":
            arrays[key] = tensor.read_as("<u2").astype(np.uint16, copy=False)
        elif tensor.dtype in _NUMPY_DTYPES:
            stored = tensor.read_as(_NUMPY_DTYPES[tensor.dtype])
            arrays[key] = stored.astype(stored.dtype.newbyteorder("="), copy=False)
        else:
            raise ValueError(f"{path}: tensor {key!r}: expected a real dtype, found {tensor.dtype}")
    return arrays


def save_file(
    tensors: Mapping[str, npt.NDArray[Any] | Fp8Array | StoredTensor],
    path: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file, whole or not at all. The same input gives the same bytes.

    Parameters
    ----------
    tensors : mapping of str to ndarray, Fp8Array or StoredTensor
        A tensor of another file is copied byte for byte, whatever its dtype.
    path : path
    metadata : mapping of str to str, optional

    Raises
    ------
    TypeError
        If safetensors has no dtype for a tensor.
    OSError
        If the file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    payload: list[npt.NDArray[Any] | StoredTensor] = []
    end = 0
    # As the library does: by falling alignment, then by name, so that all are aligned.
    for key, tensor in sorted(tensors.items(), key=lambda item: (-_alignment(item[1]), item[0])):
        data: npt.NDArray[Any] | StoredTensor
        if isinstance(tensor, Fp8Array):
            if tensor.fmt not in _FP8_NAMES or tensor.codes.dtype != np.uint8:
                raise TypeError(
                    f"tensor {key!r}: expected uint8 codes of {', '.join(map(str, _FP8_NAMES))}, "
                    f"found {tensor.codes.dtype} codes of {tensor.fmt}"
                )
            name, data = _FP8_NAMES[tensor.fmt], tensor.codes
        elif isinstance(tensor, StoredTensor):
            name, data = tensor.dtype, tensor
        else:
            little = tensor.dtype.newbyteorder("<")
            if little not in _NUMPY_NAMES:
                raise TypeError(f"tensor {key!r}: expected a real dtype, found {tensor.dtype}")
            name, data = _NUMPY_NAMES[little], tensor.astype(little, copy=False)
        offsets = [end, end := end + data.nbytes]
        header[key] = {"dtype": name, "shape": list(data.shape), "data_offsets": offsets}
        payload.append(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with replaced_file(Path(path)) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for data in payload:
            file.write(data.read_bytes() if isinstance(data, StoredTensor) else data.tobytes())


def _alignment(tensor: npt.NDArray[Any] | Fp8Array | StoredTensor) -> int:
    if isinstance(tensor, StoredTensor):
        return _ITEMSIZES[tensor.dtype]
    return 1 if isinstance(tensor, Fp8Array) else tensor.dtype.itemsize

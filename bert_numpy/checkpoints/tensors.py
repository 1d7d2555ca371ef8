"""Reading single or sharded safetensors checkpoints, as Hugging Face writes them.

Every header is checked twice: by the ``safetensors`` library, and by
:mod:`npfp8.storage`, which names the wrong key, accepts no variant
spelling, and reads the dtype that NumPy lacks (bfloat16). A file with a dtype that the
library does not support is checked by the second alone, because the library refuses the
whole file even if nothing reads that tensor. In WebAssembly, for which
the library has no build, the second checks every file alone.
"""

from __future__ import annotations

import os.path
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from bert_numpy.errors import BertNumpyError, read_json, reading
from npfp8 import bfloat16
from npfp8.arrays import Float32Array, chunks
from npfp8.files import is_plain_name, open_regular
from npfp8.storage import StoredTensor, read_header

__all__ = [
    "INDEX",
    "SINGLE",
    "companion",
    "missing_weights",
    "open_checkpoint",
    "read_float32",
    "read_weight_map",
]


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_FLOAT_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}

#: The dtypes that every release of the library from 0.4.3 on supports.
_LIBRARY_DTYPES = frozenset(
    [
        "BOOL",
        "U8",
        "I8",
        "F8_E5M2",
        "F8_E4M3",
        "I16",
        "U16",
        "F16",
        "BF16",
        "I32",
        "U32",
        "F32",
        "F64",
        "I64",
        "U64",
    ]
)

#: Elements per block of checking.
_CHUNK = 1 << 18


def read_float32(tensor: StoredTensor) -> Float32Array:
    """Read a tensor as float32 (exact for F32, F16 and BF16).

    A float32 tensor is not copied if the machine can use the file's bytes
    unchanged: the array is then a read-only view of the mapped file, whose pages the
    system may drop and read again.

    Raises
    ------
    BertNumpyError
        If it has another dtype, a NaN or an infinity.
    """
    if tensor.dtype not in _FLOAT_DTYPES:
        raise BertNumpyError(
            f"{tensor.place}: expected dtype F32, F16 or BF16, found {tensor.dtype}"
        )
    stored = tensor.view_as(_FLOAT_DTYPES[tensor.dtype])
    if not stored.flags.aligned:  # a file may begin its data at any byte
        stored = stored.copy()
    if tensor.dtype == "BF16":
        values = bfloat16.from_bits(stored.astype(np.uint16, copy=False))
    else:
        values = stored.astype(np.float32, copy=False)
    place_of_bad = _first_not_finite(values)
    if place_of_bad is not None:
        raise BertNumpyError(
            f"{tensor.place}: expected finite numbers, found {values[place_of_bad]} "
            f"at {list(place_of_bad)}"
        )
    return values


def companion(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    key: str,
    shapes: tuple[tuple[int, ...], ...],
) -> StoredTensor:
    """Return a tensor that belongs to a weight, checked to have one of the given shapes.

    Raises
    ------
    BertNumpyError
        If it is missing, or has another shape.
    """
    expected = " or ".join(map(str, shapes))
    if key not in stored:
        raise BertNumpyError(
            f"{parameter.file}: tensor {key!r}: expected shape {expected} by config.json, "
            "but missing"
        )
    tensor = stored[key]
    if tensor.shape not in shapes:
        raise BertNumpyError(
            f"{tensor.place}: expected shape {expected} by config.json, found {tensor.shape}"
        )
    return tensor


def _first_not_finite(values: Float32Array) -> tuple[int, ...] | None:
    """Find the index of the first NaN or infinity; block by block, to save memory."""
    flat = values.reshape(-1)
    for chunk in chunks(flat.size, _CHUNK):
        finite = np.isfinite(flat[chunk])
        if not finite.all():
            found = np.unravel_index(chunk.start + int(finite.argmin()), values.shape)
            return tuple(int(i) for i in found)
    return None


def open_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint folder; the data is not read yet.

    Symbolic links are followed wherever they lead, as the hub's cache consists
    of them. Paths in an index are not: it may only name files of its own folder.

    Parameters
    ----------
    folder : Path
        A folder with ``model.safetensors``, or with ``model.safetensors.index.json`` and
        the shards that it names.

    Returns
    -------
    dict of str to StoredTensor, by key

    Raises
    ------
    BertNumpyError
        If there is no such file, a file is corrupt or truncated, a key is
        duplicated or missing from its shard, or the index leads out of the folder.
    """
    if os.path.lexists(folder / SINGLE):
        return _read_header(folder / SINGLE)
    if os.path.lexists(folder / INDEX):
        return _read_shards(folder / INDEX)
    raise missing_weights(str(folder), [path.name for path in folder.glob("*")])


def missing_weights(place: str, names: Iterable[str]) -> BertNumpyError:
    """Make the error for a folder or a repository with these files but no safetensors."""
    pickles = sorted(
        name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")
    )
    if not pickles:
        return BertNumpyError(f"{place}: expected {SINGLE} or {INDEX}, found neither")
    return BertNumpyError(
        f"{place}: expected {SINGLE} or {INDEX}, found only {pickles[0]}, a pickle, which is not "
        "read, as it can run any code; convert it with transformers, if you trust it: "
        "AutoModelForX.from_pretrained(MODEL).save_pretrained(FOLDER) for the X of the "
        "architecture in config.json"
    )


def read_weight_map(index: Path) -> dict[str, str]:
    """Read the shard of each tensor from the index: names of files in the index's folder.

    Raises
    ------
    BertNumpyError
        If the index is not JSON, has no map, or leads out of the folder.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BertNumpyError(f"{index}: key 'weight_map': expected tensor names, found none")
    for key, name in weight_map.items():
        if not isinstance(name, str) or not is_plain_name(name):
            raise BertNumpyError(
                f"{index}: tensor {key!r}: expected a file name in this folder, found {name!r}"
            )
    return weight_map


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for key, name in read_weight_map(index).items():
        if name not in shards:
            shards[name] = _read_header(index.parent / name)
        if key not in shards[name]:
            raise BertNumpyError(f"{index.parent / name}: tensor {key!r}: expected, but missing")
        tensors[key] = shards[name][key]
    return tensors


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file."""
    with reading(path):
        open_regular(path).close()  # the library would wait for a pipe
        if sys.platform == "emscripten":
            return read_header(path)
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 (see above)

        try:
            with safe_open(path, framework="numpy"):
                pass  # opening checks the header against the file's size
        except SafetensorError as error:
            if (tensors := _newer_than_the_library(path)) is None:
                raise BertNumpyError(
                    f"{path}: expected a safetensors file, found: {error}"
                ) from None
            return tensors
        return read_header(path)


def _newer_than_the_library(path: Path) -> dict[str, StoredTensor] | None:
    """List a valid file's tensors if a dtype is newer than some releases of the library."""
    try:
        tensors = read_header(path)
    except ValueError:
        return None
    old = all(tensor.dtype in _LIBRARY_DTYPES for tensor in tensors.values())
    return None if old else tensors

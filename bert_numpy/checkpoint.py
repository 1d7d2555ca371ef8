"""Reading safetensors checkpoints, single or sharded, as Hugging Face writes them.

Every header is checked twice: by the ``safetensors`` library, and by
:mod:`npfp8.storage`, which says which key is wrong, lets no other spelling
through, and reads what NumPy lacks (bfloat16).
"""

from __future__ import annotations

import os.path
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bert_numpy.config import read_json
from bert_numpy.errors import BertNumpyError
from npfp8 import bfloat16
from npfp8.storage import StoredTensor, read_header

__all__ = ["open_checkpoint", "read_float32"]

Float32Array = npt.NDArray[np.float32]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOAT_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def read_float32(tensor: StoredTensor) -> Float32Array:
    """Read a tensor as float32 (exact for F32, F16 and BF16).

    Raises
    ------
    BertNumpyError
        If it is of another dtype, or has a NaN or an infinity.
    """
    place = f"{tensor.file}: tensor {tensor.key!r}"
    if tensor.dtype not in _FLOAT_DTYPES:
        raise BertNumpyError(f"{place}: expected dtype F32, F16 or BF16, found {tensor.dtype}")
    stored = tensor.read_as(_FLOAT_DTYPES[tensor.dtype])
    if tensor.dtype == "BF16":
        values = bfloat16.from_bits(stored.astype(np.uint16, copy=False))
    else:
        values = stored.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise BertNumpyError(
            f"{place}: expected finite numbers, found {values[index]} at {list(index)}"
        )
    return values


def open_checkpoint(folder: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a checkpoint folder; the data is not read yet.

    Parameters
    ----------
    folder : Path
        Holds ``model.safetensors``, or ``model.safetensors.index.json`` and the
        shards that it names.

    Returns
    -------
    dict of str to StoredTensor, by key

    Raises
    ------
    BertNumpyError
        If there is no such file, a file is corrupt or truncated, a key is
        duplicated or missing from its shard, or the index leads out of the folder.
    """
    if (folder / _SINGLE).is_file():
        return _read_header(folder / _SINGLE)
    if (folder / _INDEX).is_file():
        return _read_shards(folder / _INDEX)
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    found = f"only {pickles[0]}, a pickle, which is not read" if pickles else "neither"
    raise BertNumpyError(f"{folder}: expected {_SINGLE} or {_INDEX}, found {found}")


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BertNumpyError(f"{index}: key 'weight_map': expected tensor names, found none")
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for key, name in weight_map.items():
        if not isinstance(name, str) or not _is_plain_name(name):
            raise BertNumpyError(
                f"{index}: tensor {key!r}: expected a file name in this folder, found {name!r}"
            )
        if name not in shards:
            shards[name] = _read_header(index.parent / name)
        if key not in shards[name]:
            raise BertNumpyError(f"{index.parent / name}: tensor {key!r}: expected, but missing")
        tensors[key] = shards[name][key]
    return tensors


def _is_plain_name(name: str) -> bool:
    """Whether ``name`` names a file in its own folder, on any system."""
    parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
    return parts == (name, name) and name != ".."


def _read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that no file can have
        raise BertNumpyError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy"):
            pass  # opening checks the header against the file's size
    except SafetensorError as error:
        raise BertNumpyError(f"{path}: expected a safetensors file, found: {error}") from None
    try:
        return read_header(path)
    except ValueError as error:  # what the library lets through
        raise BertNumpyError(str(error)) from None

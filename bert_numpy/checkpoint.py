"""Reading safetensors checkpoints, single or sharded, as Hugging Face writes them.

The ``safetensors`` library checks every header strictly (sizes, offsets, gaps,
overlaps); this module adds what it does not say (which file, which key, a
duplicated key) and maps the data, so that bfloat16, which NumPy lacks, can be
read too.
"""

from __future__ import annotations

import json
import os.path
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from bert_numpy.config import read_json
from bert_numpy.errors import BertNumpyError
from npfp8 import bfloat16

__all__ = ["StoredTensor", "open_checkpoint"]

Float32Array = npt.NDArray[np.float32]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOAT_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


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

    def read(self) -> Float32Array:
        """Read the tensor as float32 (exact for F32, F16 and BF16).

        Raises
        ------
        BertNumpyError
            If it is of another dtype, or has a NaN or an infinity.
        """
        if self.dtype not in _FLOAT_DTYPES:
            raise BertNumpyError(
                f"{self.file}: tensor {self.key!r}: expected dtype F32, F16 or BF16, "
                f"found {self.dtype}"
            )
        count = int(np.prod(self.shape, dtype=np.int64))
        stored = np.fromfile(
            self.file, _FLOAT_DTYPES[self.dtype], count=count, offset=self.begin
        ).reshape(self.shape)
        if self.dtype == "BF16":
            values = bfloat16.from_bits(stored.astype(np.uint16, copy=False))
        else:
            values = stored.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise BertNumpyError(
                f"{self.file}: tensor {self.key!r}: expected finite numbers, found "
                f"{values[index]} at {list(index)}"
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
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: Mapping[str, Any] = json.loads(
            file.read(size), object_pairs_hook=lambda pairs: _unique(pairs, path)
        )
    return {
        key: _stored(path, key, info, 8 + size)
        for key, info in header.items()
        if key != "__metadata__"
    }


def _stored(path: Path, key: str, info: Any, start: int) -> StoredTensor:
    """The tensor that a header's entry describes; the file's data begins at ``start``."""
    # The library takes other spellings too, such as a list of the three values.
    if not isinstance(info, dict) or not isinstance(info["dtype"], str):
        raise BertNumpyError(
            f"{path}: tensor {key!r}: expected an object of dtype, shape and data_offsets, "
            f"found {info!r}"
        )
    begin, end = info["data_offsets"]
    return StoredTensor(path, key, info["dtype"], tuple(info["shape"]), start + begin, start + end)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BertNumpyError(
            f"{path}: key {twice!r}: expected once, found {keys.count(twice)} times"
        )
    return dict(pairs)

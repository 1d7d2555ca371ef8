"""A candidate's tensors under the kit's names, from a file or a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError, one_line, reading
from bert_numpy.kit.manifest import Kit, Tensor
from bert_numpy.kit.text import CASE, INDEX, WRITTEN, word_bits
from npfp8.arrays import Array
from npfp8.bfloat16 import from_bits
from npfp8.files import open_regular
from npfp8.formats import FORMATS
from npfp8.names import suggestion
from npfp8.storage import Fp8Array, load_file
from npfp8.vectors.readers import read_memory, read_text
from npfp8.vectors.writers import FORMS

__all__ = ["as_candidate", "load_candidate"]


def load_candidate(path: Path, kit: Kit) -> dict[str, Array]:
    """Read a safetensors file, or a folder of such files, ``.npy``, ``.txt`` and ``.mem`` files.

    The path of any other than a safetensors file within the folder is the tensor's name:
    ``model/0/logits.npy``. ``.txt`` and ``.mem`` files have a word a line, as
    :mod:`bert_numpy.kit.text` describes; those that it writes (``sum.expected.mem``) are passed
    over. The candidate need not have all tensors of the kit.

    Raises
    ------
    BertNumpyError
        If a file cannot be read, if a tensor occurs twice or does not belong to the
        kit, or if there is no tensor; or in the cases of :func:`as_candidate`.
    """
    found: dict[str, Any] = {}
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        if file.suffix == ".safetensors":
            tensors: Mapping[str, Any] = _read(file, load_file)
        elif file.suffix == ".npy":
            name = file.relative_to(path).with_suffix("").as_posix() if path.is_dir() else file.stem
            tensors = {name: _read(file, _load_npy)}
        elif file.suffix in _WORDS and not (path.is_dir() and _is_given(file)):
            name = _name_of_words(file, path, kit)
            tensors = {name: _read(file, lambda file, name=name: _load_words(file, name, kit))}
        elif path.is_dir():
            continue
        else:
            raise BertNumpyError(
                f"{file}: expected a .safetensors, .npy, .txt or .mem file, or a folder"
            )
        if twice := sorted(set(tensors) & set(found)):
            raise BertNumpyError(f"{file}: tensor {twice[0]!r}: expected once, found again")
        found |= tensors
    if not found:
        raise BertNumpyError(
            f"{path}: expected .safetensors, .npy, .txt or .mem files of results, found none"
        )
    return as_candidate(found, kit, str(path))


#: The ends of the names of files of words.
_WORDS = (FORMS["text"].suffix, FORMS["memory"].suffix)


def _is_given(file: Path) -> bool:
    """Return whether a file is one of those that come with a kit's text, which hold no results."""
    return file.name in (CASE, INDEX) or file.stem.endswith(WRITTEN)


def _name_of_words(file: Path, path: Path, kit: Kit) -> str:
    """Return the name of the tensor in a file of words: its path in the folder, or its end."""
    if path.is_dir():
        name = file.relative_to(path).with_suffix("").as_posix()
        if name not in kit.tensors:
            hint = suggestion(name, kit.tensors)
            raise BertNumpyError(f"{file}: expected the name of a tensor of the kit{hint}")
        return name
    parts = file.absolute().with_suffix("").parts
    for i in range(len(parts)):
        if (name := "/".join(parts[i:])) in kit.tensors:
            return name
    raise BertNumpyError(
        f"{file}: expected a path that ends in the name of a tensor of the kit, such as "
        f"{next(iter(kit.tensors))}{file.suffix}"
    )


def _load_words(file: Path, name: str, kit: Kit) -> Array:
    """Read a tensor's elements from a file of words.

    Numbers are the bits of float32 or bfloat16; codes have as many digits as their format needs,
    or two.
    """
    tensor, shape = kit.tensors[name], kit.arrays[name].shape
    with open_regular(file) as stream:
        data = stream.read()
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {number}: expected ASCII, found {data[error.start]:#x}") from None
    bits = word_bits(tensor)
    first = re.search(r"^[ \t]*([0-9A-Fa-f_]+)\b", text, re.MULTILINE)
    digits = len(first[1].replace("_", "")) if first else 0
    if tensor.kind in ("bfloat16", "float32") and digits in (4, 8):
        bits = 4 * digits
    elif tensor.kind == "codes" and digits == 2:
        bits = 8
    reader = read_memory if file.suffix == FORMS["memory"].suffix else read_text
    size = int(np.prod(shape, dtype=np.int64))
    _, (column,) = reader(text, {"word": bits}, size)
    words = column.values
    if tensor.kind in ("bfloat16", "float32") and bits == 32:
        words = words.view(np.float32)
    elif tensor.kind == "integers":
        words = words.view(np.int64)
    return words.reshape(shape)


def _read(file: Path, reader: Any) -> Any:
    with reading(file):
        return reader(file)


def _load_npy(file: Path) -> Array:
    with open_regular(file) as stream:
        try:
            return np.lib.format.read_array(stream, allow_pickle=False)
        except (
            *(EOFError, MemoryError, OverflowError, RecursionError, SyntaxError, TokenError),
        ) as error:
            raise ValueError(f"expected a NumPy file, found an error: {one_line(error)}") from None


def as_candidate(tensors: Mapping[str, Any], kit: Kit, place: str) -> dict[str, Array]:
    """Convert a candidate's tensors to the kit's form in memory, in the kit's order.

    Parameters
    ----------
    tensors : mapping of str to ndarray or Fp8Array
        Numbers as float32, bfloat16 (their bits as uint16, or ml_dtypes) or
        float16, provided that none is rounded by it; codes as uint8, int8, Fp8Array
        or an ml_dtypes type.
    kit : Kit
    place : str
        The candidate's place, for messages.

    Raises
    ------
    BertNumpyError
        If a name does not belong to the kit, or a shape or a dtype does not fit.
    """
    if unknown := sorted(set(tensors) - set(kit.tensors)):
        raise BertNumpyError(f"{place}: tensor {unknown[0]!r}: expected a name of the kit's")
    if not tensors:
        raise BertNumpyError(f"{place}: expected tensors of the kit's, found none")
    result = {}
    for name, tensor in kit.tensors.items():
        if name not in tensors:
            continue
        x = _converted(tensor, tensors[name], f"{place}: tensor {name!r}")
        expected = kit.arrays[name].shape
        if x.shape != expected:
            raise BertNumpyError(
                f"{place}: tensor {name!r}: expected shape {expected}, found {x.shape}"
            )
        result[name] = x
    return result


def _converted(tensor: Tensor, given: Any, place: str) -> Array:
    fmt = FORMATS.get(tensor.fmt)
    if isinstance(given, Fp8Array):
        if given.fmt != fmt:
            expected = tensor.fmt or tensor.kind
            raise BertNumpyError(f"{place}: expected {expected}, found {given.fmt}")
        return given.codes
    x = np.asarray(given)
    if tensor.kind == "codes" and fmt is not None and x.dtype.itemsize == 1:
        codes: Array = np.ascontiguousarray(x).view(fmt.code_dtype).reshape(x.shape)
        if fmt.values.size < 256 and codes.max(initial=0) >= fmt.values.size:
            raise BertNumpyError(
                f"{place}: expected codes below {fmt.values.size}, found {codes.max()}"
            )
        return codes
    if tensor.kind == "bytes" and x.dtype.itemsize == 1:
        return np.ascontiguousarray(x).view(np.uint8).reshape(x.shape)
    if tensor.kind == "integers" and x.dtype.kind in "iub":
        return x.astype(np.int64)
    if tensor.kind in ("bfloat16", "float32"):
        bfloat16 = x.dtype.kind == "V" or x.dtype.name == "bfloat16" or x.dtype == np.uint16
        if bfloat16 and x.dtype.itemsize == 2:
            return from_bits(np.ascontiguousarray(x).view(np.uint16).reshape(x.shape))
        if x.dtype in (np.float32, np.float16):
            with np.errstate(invalid="ignore"):
                return x.astype(np.float32)
    raise BertNumpyError(f"{place}: expected {tensor.fmt or tensor.kind}, found {x.dtype}")

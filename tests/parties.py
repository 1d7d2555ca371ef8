"""Parties' own code in the tests: its modules, and arrays in its forms."""

from __future__ import annotations

import warnings
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]


def party(name: str) -> ModuleType:
    """Import a party's module, or skip; its imports warn of much that is not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, exc_type=ImportError)


def as_torch(torch: ModuleType, x: Array, source: str = "") -> Any:
    """Return numbers in torch, in their type or another: no NaN's sign may change on the way.

    bfloat16 numbers are those of an ml_dtypes array, or float32 whose lower halves are 0.
    """
    if x.dtype.name == "bfloat16":
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    if source == "bfloat16":
        bits = (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x.astype(source or x.dtype))


def nibbles(packed: Any) -> Array:
    """Return the two codes in each byte of a row, the lower nibble first."""
    codes = np.asarray(packed).view(np.uint8)
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1)

"""Names of array types, and the one loop over pieces of an array that fit in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "Float32Array", "Float64Array", "chunks"]

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cut ``range(length)`` into slices of ``size`` elements; the last may reach beyond the end.

    Work that makes several passes over an array is done chunk by chunk, so that
    its temporaries stay in a core's cache. How many elements that are depends
    on the work: each module states its own.

    Examples
    --------
    >>> [list(range(5))[chunk] for chunk in chunks(5, 2)]
    [[0, 1], [2, 3], [4]]
    """
    for start in range(0, length, size):
        yield slice(start, start + size)

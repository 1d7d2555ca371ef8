"""How far a key is from a query, as one of 32 buckets: MPNet's relative positions.

Raffel et al., *Exploring the Limits of Transfer Learning with T5* (arXiv 1910.10683, section
2.1), which Song et al., *MPNet* (arXiv 2004.09297), took over. Half of the buckets are for
keys before the query, half for those behind it. Of each half eight are for one distance each,
0 to 7, and eight for distances that grow by a factor of sqrt(2), from 8 on; the last has no
end. transformers takes logarithms in float32; here the first distance of each bucket is an
integer, found by comparing squares, so that it is the same on every machine.
"""

from __future__ import annotations

import numpy as np

from npfp8.arrays import IntArray

__all__ = ["BUCKETS", "BUCKET_COUNT"]

#: As many as transformers uses, however many rows a checkpoint's table has.
BUCKET_COUNT = 32


def _first_distances(count: int) -> list[int]:
    """The first distance of each bucket of a half: 0 to 7, then 8 sqrt(2)^i, rounded up."""
    exact = count // 2
    first = list(range(exact))
    distance = exact
    for i in range(count - exact):
        while distance**2 < exact**2 * 2**i:
            distance += 1
        first.append(distance)
    return first


def _buckets() -> IntArray:
    half = BUCKET_COUNT // 2
    first = _first_distances(half)
    distances = np.arange(-first[-1], first[-1] + 1)
    bucket = np.searchsorted(first, np.abs(distances), side="right") - 1
    return np.where(distances > 0, bucket + half, bucket)


#: The bucket of ``key - query``, from the first distance of the last bucket on the left to that
#: on the right, -91 to 91; what is farther apart is in the same.
BUCKETS = _buckets()
BUCKETS.setflags(write=False)

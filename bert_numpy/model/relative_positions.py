"""MPNet's relative positions: the distance from a query to a key, as one of 32 buckets.

Source: Raffel et al., *Exploring the Limits of Transfer Learning with T5* (arXiv 1910.10683,
section 2.1), adopted by Song et al., *MPNet* (arXiv 2004.09297). Half of the buckets are for
keys before the query, half for keys after it. In each half, eight buckets hold one distance
each, 0 to 7; the bounds of the other eight grow by a factor of sqrt(2) from 8 on, and the last
has no end. transformers takes logarithms in float32. Here the first distance of each bucket is
an integer, found by comparing squares, so that it is the same on every machine.
"""

from __future__ import annotations

import numpy as np

from npfp8.arrays import IntArray

__all__ = ["BUCKETS", "BUCKET_COUNT"]

#: The number of buckets in transformers, for any number of rows in a checkpoint's table.
BUCKET_COUNT = 32


def _first_distances(count: int) -> list[int]:
    """List the first distance of each bucket of a half: 0 to 7, then 8 sqrt(2)^i, rounded up."""
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
#: on the right, -91 to 91. Larger distances fall into the same last buckets.
BUCKETS = _buckets()
BUCKETS.setflags(write=False)

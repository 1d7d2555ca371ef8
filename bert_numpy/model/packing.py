"""From a padded batch to a list of tokens and back: padding is left out, not masked.

Attention is then computed over exactly the tokens of a sequence. No large
negative number stands for a missing token, and the result for a sequence does not
depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from npfp8.arrays import Float32Array, IntArray

__all__ = ["AttentionGroup", "Batch", "Packing", "pack", "take_rows"]


_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class AttentionGroup:
    """Sequences that attend in one product: each has the same number of queries and of keys.

    ``rows`` (sequences,) are the numbers of the sequences in the batch; ``queries``
    (sequences, queries) and ``keys`` (sequences, keys) are row numbers of the packed
    (tokens, hidden) matrix, in ascending order.
    """

    rows: IntArray
    queries: IntArray
    keys: IntArray


@dataclass(frozen=True, eq=False)
class Packing:
    """The positions of a (batch, length) array that are computed.

    Attributes
    ----------
    shape : (batch, length)
    mask : ndarray of bool, (batch, length)
        True for tokens.
    tokens : ndarray of int, (tokens,)
        Flat positions in the padded array, ascending.
    first : ndarray of int, (batch,)
        The packed row of each sequence's position 0.
    groups : tuple of AttentionGroup
    """

    shape: tuple[int, int]
    mask: npt.NDArray[np.bool_]
    tokens: IntArray
    first: IntArray
    groups: tuple[AttentionGroup, ...]

    def take(self, padded: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Select the tokens. (batch, length) -> (tokens,)."""
        return padded.reshape(-1)[self.tokens]

    def unpack(self, packed: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """Pad with zeros. (tokens, hidden) -> (batch, length, hidden)."""
        batch, length = self.shape
        padded = np.zeros((batch * length, packed.shape[-1]), packed.dtype)
        padded[self.tokens] = packed
        return padded.reshape(batch, length, -1)


def take_rows(packed: npt.NDArray[_Scalar], rows: IntArray) -> npt.NDArray[_Scalar]:
    """Return ``packed[rows]``, as a view if the ascending ``rows`` have no gaps.

    They have none in batches that are sorted by length and padded at the end.

    Parameters
    ----------
    packed : ndarray, (tokens, hidden)
    rows : ndarray of int, (sequences, length)
        The rows of an :class:`AttentionGroup`: each is larger than the one before.
    """
    if (block := _without_gaps(rows)) is None:
        return packed[rows]
    return packed[block].reshape(*rows.shape, -1)


def _without_gaps(rows: IntArray) -> slice | None:
    """Return ascending rows as a slice, if they have no gaps."""
    first, last = int(rows[0, 0]), int(rows[-1, -1])
    return slice(first, last + 1) if last - first + 1 == rows.size else None


def pack(mask: npt.NDArray[np.bool_]) -> Packing:
    """Plan the computation of a batch.

    Parameters
    ----------
    mask : ndarray of bool, (batch, length)
        True for tokens. Keys are the tokens; queries are the tokens and
        position 0, which the pooler reads even if it is masked.

    Raises
    ------
    BertNumpyError
        If a row has no token.
    """
    keys = mask.sum(axis=1)
    if not keys.all():
        row = int(np.argmin(keys))
        raise BertNumpyError(
            f"attention_mask: expected a token in each row, found none in row {row}"
        )
    queries = keys + ~mask[:, 0]
    computed = mask.copy()
    computed[:, 0] = True
    row_of = (np.cumsum(computed) - 1).reshape(mask.shape)  # position -> packed row
    groups = []
    for counts in sorted(set(zip(queries.tolist(), keys.tolist(), strict=True))):
        rows = np.flatnonzero((queries == counts[0]) & (keys == counts[1]))
        places = row_of[rows]
        groups.append(
            AttentionGroup(
                rows=rows,
                queries=places[computed[rows]].reshape(-1, counts[0]),
                keys=places[mask[rows]].reshape(-1, counts[1]),
            )
        )
    return Packing(
        shape=(mask.shape[0], mask.shape[1]),
        mask=mask,
        tokens=np.flatnonzero(computed),
        first=row_of[:, 0],
        groups=tuple(groups),
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch as a :class:`bert_numpy.engines.engine.Layout`, with one array row per token.

    Attributes
    ----------
    input_ids, token_type_ids : ndarray of int, (batch, length)
    packing : Packing
    """

    input_ids: IntArray
    token_type_ids: IntArray
    packing: Packing

    def words(self) -> IntArray:
        """Return the ids: (tokens,)."""
        return self.packing.take(self.input_ids)

    def types(self) -> IntArray:
        """Return the types: (tokens,)."""
        return self.packing.take(self.token_type_ids)

    def places(self, padding: int | None) -> IntArray:
        """Return the position numbers: (tokens,)."""
        ids = self.input_ids
        if padding is None:
            return self.packing.take(np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
        counted = ids != padding
        return self.packing.take(np.cumsum(counted, axis=1) * counted + padding)

    def distances(self, numbers: IntArray) -> Iterator[IntArray]:
        """Yield one sequence's numbers for all, if all tokens lie at the same distances."""
        farthest = len(numbers) // 2
        places = self.places(None)
        for group in self.packing.groups:
            queries, keys = places[group.queries], places[group.keys]
            first = keys[:, :1]
            if all((x - first == x[0] - first[0]).all() for x in (queries, keys)):
                queries, keys = queries[:1], keys[:1]
            apart = keys[:, None, :] - queries[:, :, None]
            yield numbers[np.clip(apart, -farthest, farthest) + farthest]

    def split_heads(
        self, query: Float32Array, key: Float32Array, value: Float32Array, heads: int
    ) -> Iterator[tuple[Float32Array, Float32Array, Float32Array]]:
        """Group sequences of equal length."""
        for group in self.packing.groups:
            yield (
                _split(take_rows(query, group.queries), heads),
                _split(take_rows(key, group.keys), heads).swapaxes(-1, -2),
                _split(take_rows(value, group.keys), heads),
            )

    def merge_heads(self, parts: Sequence[Float32Array]) -> Float32Array:
        """Merge the groups: (tokens, heads d)."""
        heads, d = parts[0].shape[1], parts[0].shape[3]
        merged = np.empty((len(self.packing.tokens), heads, d), parts[0].dtype)
        for group, x in zip(self.packing.groups, parts, strict=True):
            rows, y = group.queries, x.swapaxes(1, 2)
            if (block := _without_gaps(rows)) is None:
                merged[rows] = y
            else:
                merged[block].reshape(y.shape)[...] = y
        return merged.reshape(-1, heads * d)

    def texts(self, x: Float32Array) -> Iterator[tuple[Float32Array, IntArray]]:
        """Group texts of equal length."""
        places = self.places(None)
        for group in self.packing.groups:
            of_keys = places[group.keys]
            yield x[group.keys], of_keys - of_keys[:, :1] + 1

    def join(self, parts: Sequence[Float32Array]) -> Float32Array:
        """Join the groups: (batch, features)."""
        joined = np.empty((self.packing.shape[0], parts[0].shape[-1]), parts[0].dtype)
        for group, x in zip(self.packing.groups, parts, strict=True):
            joined[group.rows] = x
        return joined

    def first(self, x: Float32Array) -> Float32Array:
        """Select the first row of each sequence: (batch, features)."""
        return x[self.packing.first]

    def padded(self, x: Float32Array) -> Float32Array:
        """Pad with zeros: (batch, length, features)."""
        return self.packing.unpack(x)

    def column(self, x: Float32Array, number: int, masked: float | None = None) -> Float32Array:
        """Pad one feature: (batch, length)."""
        column = self.packing.unpack(x[:, number : number + 1])[..., 0]
        if masked is not None:
            column[~self.packing.mask] = masked
        return column


def _split(x: Float32Array, heads: int) -> Float32Array:
    """Split heads. (sequences, length, hidden) -> (sequences, heads, length, hidden / heads)."""
    sequences, length, hidden = x.shape
    return x.reshape(sequences, length, heads, hidden // heads).swapaxes(1, 2)

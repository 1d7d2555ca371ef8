"""What each operation of a forward pass means.

The forward pass (:mod:`bert_numpy.model.encoder`) is written once, against an
:class:`Engine` and a :class:`Layout`, and never touches a number itself. What it hands
from one operation to the next is a value ``V``: an array for the engines that compute;
the name of an edge for the one that writes an ONNX graph; a number of features for
the one that finds out which parameters a model has.

A forward pass makes its engine anew from the model's weights and the batch's layout, so
whatever an engine counts on the way belongs to that run alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from bert_numpy.engines.site import Site
from npfp8 import QuantizedTensor
from npfp8.arrays import Float32Array, IntArray

__all__ = ["Engine", "Layout", "Table", "Weights"]

V = TypeVar("V")

#: Parameters by name: float32 arrays, or codes with scales where quantized.
Weights = Mapping[str, Float32Array | QuantizedTensor]

#: An embedding table: its name, rows and columns, and the row that each token takes; of
#: relative positions, that each query takes for each key.
Table = tuple[str, int, int, Any]


class Layout(Protocol[V]):
    """The tokens of a batch: their numbers, and how what belongs to them lies in arrays.

    Nothing here computes with an activation: its numbers are only put elsewhere.
    """

    def words(self) -> Any:
        """Each token's number in the vocabulary."""

    def types(self) -> Any:
        """Whether each token is of the first or of the second text: 0 or 1."""

    def places(self, padding: int | None) -> Any:
        """Each token's number of a position: 0, 1, ... in its row.

        With ``padding``, a token's id: ``padding + 1, padding + 2, ...`` over the
        tokens that have another id, and ``padding`` for those that have it, whatever
        the attention mask says (RoBERTa).
        """

    def distances(self, numbers: IntArray) -> Iterable[Any]:
        """Of each query and key the number of their distance: (1 or sequences, queries, keys).

        Once for each set of :meth:`split_heads`. ``numbers`` has those of ``key - query``, of
        -n to n, and the first and the last of them for what is farther apart.
        """

    def split_heads(self, query: V, key: V, value: V, heads: int) -> Iterable[tuple[V, V, V]]:
        """Q (sequences, heads, queries, d), K^T (..., d, keys) and V (..., keys, d).

        Once for each set of sequences that attend in one product.
        """

    def merge_heads(self, parts: Sequence[V]) -> V:
        """P V of all these sets, (sequences, heads, queries, d), as (tokens, heads d) again."""

    def texts(self, x: V) -> Iterable[tuple[V, Any]]:
        """The tokens that the attention mask has, once for each set of texts.

        (sequences, tokens, features); and each token's number of a position,
        (sequences, tokens), 1 for the first of a text.
        """

    def join(self, parts: Sequence[V]) -> V:
        """What became of :meth:`texts`, (sequences, features), as (batch, features)."""

    def first(self, x: V) -> V:
        """Of each text what is at position 0: (batch, features)."""

    def padded(self, x: V) -> V:
        """(tokens, features) as (batch, length, features): 0 where nothing was computed."""

    def column(self, x: V, number: int, masked: float | None = None) -> V:
        """One feature, (batch, length): padded, or ``masked`` where the attention mask is 0."""


class Engine(Generic[V]):
    """The operations of a forward pass; each method's text is its rule.

    An engine that changes some of them is given another, ``inner``, and leaves the rest to it.
    """

    inner: Engine[V]

    def gather(self, tables: Sequence[Table]) -> V:
        """Rows of embedding tables, added in float32 one after the other: (tokens, columns)."""
        return self.inner.gather(tables)

    def position_bias(self, table: Table) -> V:
        """A table's rows, rounded to the precision, heads first: (., heads, queries, keys)."""
        return self.inner.position_bias(table)

    def linears(self, sites: Sequence[Site], x: V) -> Iterable[V]:
        """``x W^T + b`` of several linear layers of one input, in turn. (..., K) -> (..., N)."""
        return self.inner.linears(sites, x)

    def product(self, site: Site, a: V, b: V) -> V:
        """``a b`` of two activations. (..., M, K), (..., K, N) -> (..., M, N)."""
        return self.inner.product(site, a, b)

    def add(self, x: V, y: V) -> V:
        """``x + y``, rounded once to the precision."""
        return self.inner.add(x, y)

    def multiply(self, x: V, factor: float) -> V:
        """``x`` times a float32 number, rounded once to the precision."""
        return self.inner.multiply(x, factor)

    def softmax(self, x: V) -> V:
        """Over the last axis, ``exp(x - max) / sum``, rounded once to the precision."""
        return self.inner.softmax(x)

    def layer_norm(self, name: str, x: V, eps: float) -> V:
        """Over the last axis, ``(x - mean) / sqrt(variance + eps) * weight + bias``."""
        return self.inner.layer_norm(name, x, eps)

    def activation(self, name: str, x: V, answer: bool = False) -> V:
        """A function of each number: a key of ``hidden_act``, or "tanh" or "sigmoid".

        In float32 if it is a part of the model's ``answer``.
        """
        return self.inner.activation(name, x, answer)

    def pool(self, mode: str, x: V, places: Any) -> V:
        """One vector of each text's tokens. (..., n, features), (..., n) -> (..., features).

        By :data:`npfp8.golden.POOLINGS`. In float32, as it is the model's answer.
        """
        return self.inner.pool(mode, x, places)

    def concatenate(self, parts: Sequence[V]) -> V:
        """Along the last axis."""
        return self.inner.concatenate(parts)

    def normalize(self, x: V) -> V:
        """Over the last axis, ``x / max(norm, 1e-12)``. In float32, too."""
        return self.inner.normalize(x)

    def output(self, name: str, x: V) -> V:
        """What the model gives back and no product has checked."""
        return self.inner.output(name, x)

    def counted(self) -> Mapping[str, Any]:
        """What quantization did to the operands of this run, by ``site:a`` and ``site:b``."""
        return self.inner.counted()

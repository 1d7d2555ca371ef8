"""The interface of engines: the meaning of each operation of a forward pass.

The forward pass (:mod:`bert_numpy.model.encoder`) is written once, against an
:class:`Engine` and a :class:`Layout`, and never touches a number itself. The operations
exchange values ``V``: arrays in the engines that compute, names of edges in the engine
that writes an ONNX graph, numbers of features in the engine that lists a model's
parameters.

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

#: An embedding table: its name, its numbers of rows and columns, and the row index of each
#: token (for relative positions, of each pair of query and key).
Table = tuple[str, int, int, Any]


class Layout(Protocol[V]):
    """The tokens of a batch: their ids, and the arrangement of their values in arrays.

    A layout only moves the numbers of activations; it never computes with them.
    """

    def words(self) -> Any:
        """Return the vocabulary id of each token."""

    def types(self) -> Any:
        """Return the type of each token: 0 in the first text, 1 in the second."""

    def places(self, padding: int | None) -> Any:
        """Return the position number of each token: 0, 1, ... in its row.

        With ``padding``, a token id, the tokens that have another id are numbered
        ``padding + 1, padding + 2, ...`` and those that have this id get ``padding``,
        regardless of the attention mask (RoBERTa).
        """

    def distances(self, numbers: IntArray) -> Iterable[Any]:
        """Look up a number per distance of key and query: (1 or sequences, queries, keys).

        Yields one array per set of :meth:`split_heads`. ``numbers`` holds the numbers for
        ``key - query`` from -n to n; larger distances get the first or the last of them.
        """

    def split_heads(self, query: V, key: V, value: V, heads: int) -> Iterable[tuple[V, V, V]]:
        """Split into Q (sequences, heads, queries, d), K^T (..., d, keys) and V (..., keys, d).

        Yields one triple per set of sequences that attend in one product.
        """

    def merge_heads(self, parts: Sequence[V]) -> V:
        """Merge P V of all sets, (sequences, heads, queries, d), into (tokens, heads d)."""

    def texts(self, x: V) -> Iterable[tuple[V, Any]]:
        """Yield the tokens that the attention mask keeps, one set of texts at a time.

        Each set is their features, (sequences, tokens, features), and their position
        numbers, (sequences, tokens), which are 1 for the first token of a text.
        """

    def join(self, parts: Sequence[V]) -> V:
        """Join the results per set of :meth:`texts`, (sequences, features): (batch, features)."""

    def first(self, x: V) -> V:
        """Select the value at position 0 of each text: (batch, features)."""

    def padded(self, x: V) -> V:
        """Pad (tokens, features) to (batch, length, features), 0 where nothing was computed."""

    def column(self, x: V, number: int, masked: float | None = None) -> V:
        """Pad one feature to (batch, length), with ``masked`` where the attention mask is 0."""


class Engine(Generic[V]):
    """The operations of a forward pass; the docstring of each method is its rule.

    An engine that changes only some operations has another engine, ``inner``, and leaves the
    rest to it.
    """

    inner: Engine[V]

    #: True if :meth:`attention` is an operation of this engine. Otherwise the pass composes it.
    fuses_attention: bool = False

    #: True if :meth:`activated_linear` is an operation of this engine. Otherwise the pass has two.
    fuses_activation: bool = False

    def gather(self, tables: Sequence[Table]) -> V:
        """Add rows of embedding tables in float32, in the tables' order: (tokens, columns)."""
        return self.inner.gather(tables)

    def position_bias(self, table: Table) -> V:
        """Look up rows, rounded to the precision, heads first: (., heads, queries, keys)."""
        return self.inner.position_bias(table)

    def linears(self, sites: Sequence[Site], x: V) -> Iterable[V]:
        """Yield ``x W^T + b`` of several linear layers of one input. (..., K) -> (..., N)."""
        return self.inner.linears(sites, x)

    def activated_linear(self, site: Site, activation: str, x: V) -> V:
        """Compute ``f(x) W^T + b``, an activation and the layer after it. (..., K) -> (..., N).

        The pass calls this only if ``fuses_activation``; others apply both, one by one.
        """
        return self.inner.activated_linear(site, activation, x)

    def product(self, site: Site, a: V, b: V) -> V:
        """Multiply two activations, ``a b``. (..., M, K), (..., K, N) -> (..., M, N)."""
        return self.inner.product(site, a, b)

    def add(self, x: V, y: V) -> V:
        """Add ``x + y``, rounded once to the precision."""
        return self.inner.add(x, y)

    def multiply(self, x: V, factor: float) -> V:
        """Multiply ``x`` by a float32 number, rounded once to the precision."""
        return self.inner.multiply(x, factor)

    def softmax(self, x: V) -> V:
        """Compute ``exp(x - max) / sum`` over the last axis, rounded once to the precision."""
        return self.inner.softmax(x)

    def attention(
        self, scores_site: Site, context_site: Site, q: V, k: V, v: V, factor: float, bias: V | None
    ) -> V:
        """Compute ``softmax(q k factor + bias) v``, as fused kernels do: (..., queries, d).

        ``q`` is (..., queries, d), ``k`` (..., d, keys), already transposed, and ``v``
        (..., keys, d). The pass calls this only if ``fuses_attention``. It composes the
        attention of other engines of ``product``, ``multiply``, ``add`` and ``softmax``.
        """
        return self.inner.attention(scores_site, context_site, q, k, v, factor, bias)

    def layer_norm(self, name: str, x: V, eps: float) -> V:
        """Compute ``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis."""
        return self.inner.layer_norm(name, x, eps)

    def activation(self, name: str, x: V, answer: bool = False) -> V:
        """Apply a function to each element: a key of ``hidden_act``, or "tanh" or "sigmoid".

        The result is in float32 if it is a part of the model's ``answer``.
        """
        return self.inner.activation(name, x, answer)

    def pool(self, mode: str, x: V, places: Any) -> V:
        """Pool the tokens of each text. (..., n, features), (..., n) -> (..., features).

        :data:`npfp8.golden.POOLINGS` has the rules. The result is the model's answer, so it
        stays in float32.
        """
        return self.inner.pool(mode, x, places)

    def concatenate(self, parts: Sequence[V]) -> V:
        """Concatenate along the last axis."""
        return self.inner.concatenate(parts)

    def normalize(self, x: V) -> V:
        """Compute ``x / max(norm, 1e-12)`` over the last axis, in float32."""
        return self.inner.normalize(x)

    def output(self, name: str, x: V) -> V:
        """Pass on an output of the model that no product has checked."""
        return self.inner.output(name, x)

    def counted(self) -> Mapping[str, Any]:
        """Return the counts of this run's quantized operands, by ``site:a`` and ``site:b``."""
        return self.inner.counted()

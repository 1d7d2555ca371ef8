"""Engines in plain NumPy: float32 (as Hugging Face), and bfloat16 around float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_numpy.engines import functions
from bert_numpy.engines.engine import Engine, Layout, Table, Weights
from bert_numpy.engines.site import Site
from npfp8 import golden
from npfp8.arrays import Float32Array, IntArray, blas_product
from npfp8.bfloat16 import as_bfloat16, round_in_place

__all__ = ["Bfloat16Engine", "FloatEngine"]


@dataclass(frozen=True, eq=False)
class FloatEngine(Engine[Float32Array]):
    """Float32 arithmetic on unquantized parameters, by NumPy and its BLAS."""

    weights: Weights
    layout: Layout[Float32Array]

    def gather(self, tables: Sequence[Table]) -> Float32Array:
        """Add rows of embedding tables: (tokens, columns)."""
        return functions.gather(self.weights, tables)

    def position_bias(self, table: Table) -> Float32Array:
        """Look up a table's rows, heads first: see :func:`functions.position_bias`."""
        return functions.position_bias(self.weights, table)

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Yield ``x @ w.T + b`` of each layer."""
        for site in sites:
            w, b = functions.parameters(self.weights, site.name)
            yield functions.linear(x, w, b)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Compute ``a @ b``."""
        return self.matmul(a, b)

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        """Compute ``x + y``."""
        return x + y

    def multiply(self, x: Float32Array, factor: float) -> Float32Array:
        """Compute ``x * factor``."""
        return x * np.float32(factor)

    def softmax(self, x: Float32Array) -> Float32Array:
        """Apply :func:`functions.softmax`."""
        return functions.softmax(x)

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Apply :func:`functions.layer_norm`."""
        weight, bias = functions.parameters(self.weights, name)
        return functions.layer_norm(x, weight, bias, eps)

    def activation(self, name: str, x: Float32Array, answer: bool = False) -> Float32Array:
        """Apply one of :data:`functions.ACTIVATIONS`, or "tanh" or "sigmoid"."""
        return functions.activation(name, x)

    def pool(self, mode: str, x: Float32Array, places: IntArray) -> Float32Array:
        """Apply one of :data:`functions.POOLINGS`."""
        return functions.POOLINGS[mode](x, places)

    def concatenate(self, parts: Sequence[Float32Array]) -> Float32Array:
        """Copy the parts into one array."""
        return np.concatenate(parts, axis=-1)

    def normalize(self, x: Float32Array) -> Float32Array:
        """Apply :func:`functions.normalize`."""
        return functions.normalize(x)

    def output(self, name: str, x: Float32Array) -> Float32Array:
        """Return ``x`` unchecked; its reader checks for NaN (:mod:`bert_numpy.finite`)."""
        return x

    def counted(self) -> Mapping[str, Any]:
        """Return no counts: nothing is quantized."""
        return {}

    # A quantized run also needs the parts of a product.

    def matmul(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Multiply two matrices in float32; the BLAS chooses the order of the sums."""
        return blas_product(a, b)

    def rounded(self, x: Float32Array) -> Float32Array:
        """Round ``x`` to the precision; ``x`` may be overwritten."""
        return x


@dataclass(frozen=True, eq=False)
class Bfloat16Engine(Engine[Float32Array]):
    """Float32 operations whose inputs and results are bfloat16 values in float32 arrays.

    Each result is rounded once to bfloat16, except those of heads and of the steps that make
    a sentence's vector, which stay float32.
    """

    inner: FloatEngine

    def position_bias(self, table: Table) -> Float32Array:
        """Round the inner engine's result."""
        return self.rounded(self.inner.position_bias(table))

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Round the inner engine's results, except a head's."""
        for site, y in zip(sites, self.inner.linears(sites, x), strict=True):
            yield y if site.kind == "head" else self.rounded(y)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Round the inner engine's result."""
        return self.rounded(self.inner.product(site, a, b))

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        """Round the sum."""
        return self.rounded(x + y)

    def multiply(self, x: Float32Array, factor: float) -> Float32Array:
        """Round the inner engine's result."""
        return self.rounded(self.inner.multiply(x, factor))

    def softmax(self, x: Float32Array) -> Float32Array:
        """Round the softmax."""
        return self.rounded(functions.softmax(x))

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Round the inner engine's result."""
        return self.rounded(self.inner.layer_norm(name, x, eps))

    def activation(self, name: str, x: Float32Array, answer: bool = False) -> Float32Array:
        """Look the function up in a table, which is exact and fast; an answer stays float32."""
        if answer:
            return self.inner.activation(name, x)
        return golden.unary(functions.golden_name(name), as_bfloat16(x))

    def matmul(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Multiply two matrices as ``inner`` does."""
        return self.inner.matmul(a, b)

    rounded = staticmethod(round_in_place)

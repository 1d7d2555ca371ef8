"""Plain NumPy: in float32, parity with Hugging Face; in bfloat16, the paper's unquantized rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_numpy.engines import functions
from bert_numpy.engines.engine import Engine, Layout, Table, Weights
from bert_numpy.engines.site import Site
from npfp8 import golden
from npfp8.arrays import Float32Array, IntArray
from npfp8.bfloat16 import round_in_place, round_to_bfloat16

__all__ = ["Bfloat16Engine", "FloatEngine"]


@dataclass(frozen=True, eq=False)
class FloatEngine(Engine[Float32Array]):
    """Float32: what the parameters are multiplied with, and nothing else."""

    weights: Weights
    layout: Layout[Float32Array]

    def gather(self, tables: Sequence[Table]) -> Float32Array:
        """Rows of embedding tables, added up: (tokens, columns)."""
        return functions.gather(self.weights, tables)

    def position_bias(self, table: Table) -> Float32Array:
        """See :func:`functions.position_bias`."""
        return functions.position_bias(self.weights, table)

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """``x @ w.T + b``."""
        for site in sites:
            w, b = functions.parameters(self.weights, site.name)
            yield functions.linear(x, w, b)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """``a @ b``."""
        return self.matmul(a, b)

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        """``x + y``."""
        return x + y

    def multiply(self, x: Float32Array, factor: float) -> Float32Array:
        """``x * factor``."""
        return x * np.float32(factor)

    def softmax(self, x: Float32Array) -> Float32Array:
        """See :func:`functions.softmax`."""
        return functions.softmax(x)

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """See :func:`functions.layer_norm`."""
        weight, bias = functions.parameters(self.weights, name)
        return functions.layer_norm(x, weight, bias, eps)

    def activation(self, name: str, x: Float32Array, answer: bool = False) -> Float32Array:
        """See :data:`functions.ACTIVATIONS`."""
        return functions.activation(name, x)

    def pool(self, mode: str, x: Float32Array, places: IntArray) -> Float32Array:
        """See :data:`functions.POOLINGS`."""
        return functions.POOLINGS[mode](x, places)

    def concatenate(self, parts: Sequence[Float32Array]) -> Float32Array:
        """A copy."""
        return np.concatenate(parts, axis=-1)

    def normalize(self, x: Float32Array) -> Float32Array:
        """See :func:`functions.normalize`."""
        return functions.normalize(x)

    def output(self, name: str, x: Float32Array) -> Float32Array:
        """As it is; whoever reads it looks whether it is finite (:mod:`bert_numpy.finite`)."""
        return x

    def counted(self) -> Mapping[str, Any]:
        """Nothing is quantized."""
        return {}

    # What a quantized run needs besides: the pieces of a product.

    def matmul(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """The float32 product of two matrices, in whatever order of sums the BLAS has."""
        return a @ b

    def rounded(self, x: Float32Array) -> Float32Array:
        """``x`` in the precision; it may be overwritten."""
        return x


@dataclass(frozen=True, eq=False)
class Bfloat16Engine(Engine[Float32Array]):
    """Bfloat16 in, float32 inside, one rounding to bfloat16 out: arrays of bfloat16 values.

    The results of heads, and of what leads to a sentence's vector, stay float32.
    """

    inner: FloatEngine

    def position_bias(self, table: Table) -> Float32Array:
        """Rounded."""
        return self.rounded(self.inner.position_bias(table))

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Rounded, but for a head's."""
        for site, y in zip(sites, self.inner.linears(sites, x), strict=True):
            yield y if site.kind == "head" else self.rounded(y)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Rounded."""
        return self.rounded(self.inner.product(site, a, b))

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        """Rounded."""
        return self.rounded(x + y)

    def multiply(self, x: Float32Array, factor: float) -> Float32Array:
        """Rounded."""
        return self.rounded(self.inner.multiply(x, factor))

    def softmax(self, x: Float32Array) -> Float32Array:
        """Rounded."""
        return self.rounded(functions.softmax(x))

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Rounded."""
        return self.rounded(self.inner.layer_norm(name, x, eps))

    def activation(self, name: str, x: Float32Array, answer: bool = False) -> Float32Array:
        """By a table, which is exact: nothing is faster than one."""
        if answer:
            return self.inner.activation(name, x)
        return golden.unary(functions.golden_name(name), round_to_bfloat16(x))

    def matmul(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """As ``inner`` has it."""
        return self.inner.matmul(a, b)

    rounded = staticmethod(round_in_place)

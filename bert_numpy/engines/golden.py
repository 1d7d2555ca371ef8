"""An engine that gives the same bits on every machine, by :mod:`npfp8.golden`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_numpy.engines import functions
from bert_numpy.engines.engine import Engine, Layout, Table, Weights
from bert_numpy.engines.site import Site
from bert_numpy.errors import NAMED, raise_named
from bert_numpy.finite import require_finite
from npfp8 import golden, matmul_float32
from npfp8.arrays import Float32Array, IntArray
from npfp8.bfloat16 import round_in_place, round_to_bfloat16

__all__ = ["GoldenEngine"]


@dataclass(frozen=True, eq=False)
class GoldenEngine(Engine[Float32Array]):
    """Golden arithmetic in a ``precision``, "float32" or "bfloat16", with float64 inside.

    A NaN or an infinity in an operand or a result of a product, or in an output of the model,
    is an error that names the place. The bits of a NaN would depend on the machine.
    """

    weights: Weights
    layout: Layout[Float32Array]
    precision: str = "float32"

    def gather(self, tables: Sequence[Table]) -> Float32Array:
        """Add rows of embedding tables in their order: (tokens, columns)."""
        return functions.gather(self.weights, tables)

    def position_bias(self, table: Table) -> Float32Array:
        """Apply :func:`functions.position_bias` and round."""
        return self.rounded(functions.position_bias(self.weights, table))

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Yield correctly rounded products, with the bias added in float32."""
        self.check(f"{sites[0].name}:a", x)
        for site in sites:
            weight, bias = functions.parameters(self.weights, site.name)
            y = self.matmul(x, weight.T)
            y += bias
            y = y if site.kind == "head" else self.rounded(y)
            self.check(site.name, y)
            yield y

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Return the correctly rounded product."""
        self.check(f"{site.name}:a", a)
        y = self.rounded(self.matmul(a, b))
        self.check(site.name, y)
        return y

    def add(self, x: Float32Array, y: Float32Array) -> Float32Array:
        """Apply :func:`npfp8.golden.add`."""
        return golden.add(x, y, self.precision)

    def multiply(self, x: Float32Array, factor: float) -> Float32Array:
        """Apply :func:`npfp8.golden.multiply`."""
        return golden.multiply(x, np.float32(factor), self.precision)

    def softmax(self, x: Float32Array) -> Float32Array:
        """Apply :func:`npfp8.golden.softmax`."""
        return golden.softmax(x, self.precision)

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Apply :func:`npfp8.golden.layer_norm`."""
        weight, bias = functions.parameters(self.weights, name)
        return golden.layer_norm(x, weight, bias, eps, self.precision)

    def activation(self, name: str, x: Float32Array, answer: bool = False) -> Float32Array:
        """Return the correctly rounded function; in bfloat16 the input is rounded, too."""
        precision = "float32" if answer else self.precision
        x = round_to_bfloat16(x) if precision == "bfloat16" else x
        return golden.unary(functions.golden_name(name), x, precision)

    def pool(self, mode: str, x: Float32Array, places: IntArray) -> Float32Array:
        """Apply :func:`npfp8.golden.pool`."""
        return golden.pool(mode, x, places)

    def concatenate(self, parts: Sequence[Float32Array]) -> Float32Array:
        """Copy the parts into one array."""
        return np.concatenate(parts, axis=-1)

    def normalize(self, x: Float32Array) -> Float32Array:
        """Apply :func:`npfp8.golden.normalize`."""
        return golden.normalize(x)

    def output(self, name: str, x: Float32Array) -> Float32Array:
        """Check that an output is finite."""
        self.check(name, x)
        return x

    def counted(self) -> Mapping[str, Any]:
        """Return no counts: nothing is quantized."""
        return {}

    # A quantized run also needs the parts of a product.

    def matmul(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Multiply two matrices exactly, and round once to float32."""
        return matmul_float32(a, b)

    def rounded(self, x: Float32Array) -> Float32Array:
        """Round ``x`` to the precision, in place."""
        return x if self.precision == "float32" else round_in_place(x)

    def check(self, name: str, x: Float32Array) -> None:
        """Refuse numbers that are not finite, and a processor that flushes subnormals."""
        try:
            golden.require_ieee754()
        except NAMED as error:
            raise_named(error, name)
        require_finite(name, x)

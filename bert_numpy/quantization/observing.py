"""The engine of a calibration: it computes as another engine does, and counts every operand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_numpy.engines.engine import Engine
from bert_numpy.engines.site import Site
from bert_numpy.errors import naming
from bert_numpy.quantization.observers import count, look_at
from npfp8.arrays import Float32Array, Float64Array, IntArray, blas_product

__all__ = ["Hessians", "Histograms", "ObservingEngine", "Sight"]


#: Columns from which the rows of a matrix are wide enough to be taken one by one.
_WIDE = 1 << 12

#: By operand: the number of elements per bfloat16 value. Sums of integers do not depend on
#: their order, so each thread has its own histograms for all of its batches.
Histograms = dict[str, IntArray]

#: By linear layer: ``x^T x`` of its inputs, (in, in).
Hessians = dict[str, Float64Array]


@dataclass(eq=False)
class Sight:
    """The extrema of every operand in one batch, over all of its arrays in this batch.

    ``histograms`` are added to, and ``hessians`` unless it is None: ``x^T x`` of a linear
    layer's input. ``same`` maps the name of a shared input to the first name for it: query, key
    and value have one input, and one Hessian under the first of their names.
    """

    histograms: Histograms
    hessians: Hessians | None = None
    extrema: dict[str, tuple[float, float]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    channels: dict[str, Float32Array] = field(default_factory=dict)

    def see(self, name: str, x: Float32Array, extrema: tuple[float, float] | None = None) -> None:
        """Count an array of an operand; attention has one array per length of sequences.

        ``extrema`` are those of the array and 0, if they are known.
        """
        histogram = self.histograms.get(name)
        if histogram is None:
            histogram = self.histograms[name] = np.zeros(1 << 16, np.int64)
        if extrema is None:
            extrema = look_at(name, x, histogram)
        else:
            count(name, x, extrema, histogram)
        low, high = extrema
        before = self.extrema.get(name, (0.0, 0.0))
        self.extrema[name] = min(before[0], low), max(before[1], high)

    def see_input(self, sites: Sequence[Site], x: Float32Array) -> None:
        """Count the input of several linear layers once for all of them."""
        first, *others = (site.name for site in sites)
        columns = x.reshape(-1, x.shape[-1])
        lowest, highest = (_of_columns(bound, columns) for bound in (np.minimum, np.maximum))
        extrema = float(np.minimum.reduce(lowest)), float(np.maximum.reduce(highest))
        self.see(f"{first}:a", x, extrema)
        largest = np.maximum(highest, np.abs(lowest))
        if self.hessians is not None:
            wide = columns.astype(np.float64)
            product = blas_product(wide.T, wide)
            known = self.hessians.get(first)
            self.hessians[first] = product if known is None else known + product
        before = self.channels.get(first)
        self.channels[first] = largest if before is None else np.maximum(before, largest)
        for name in others:
            self.same[f"{name}:a"] = f"{first}:a"
            self.extrema[f"{name}:a"] = self.extrema[f"{first}:a"]
            self.channels[name] = self.channels[first]


def _of_columns(bound: np.ufunc, x: Float32Array) -> Float32Array:
    """Compute the minimum or the maximum of each column and 0: (rows, K) -> (K,).

    Several rows of few columns are taken as one: to begin a row takes NumPy as long as 100 columns.
    """
    rows, columns = x.shape
    together = max(1, min(rows, _WIDE // columns))
    whole = rows // together * together
    wide = bound.reduce(x[:whole].reshape(-1, together * columns), axis=0, initial=0)
    found: Float32Array = bound.reduce(wide.reshape(together, columns), axis=0)
    return found if whole == rows else bound(found, bound.reduce(x[whole:], axis=0))


@dataclass(frozen=True, eq=False)
class ObservingEngine(Engine[Float32Array]):
    """An engine that computes as ``inner`` does and records every operand in ``sight``."""

    inner: Engine[Float32Array]
    sight: Sight

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterable[Float32Array]:
        """Record the one input of several layers once."""
        with naming(sites[0].name):
            self.sight.see_input(sites, x)
        return self.inner.linears(sites, x)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Record both operands."""
        with naming(site.name):
            self.sight.see(f"{site.name}:a", a)
            self.sight.see(f"{site.name}:b", b)
        return self.inner.product(site, a, b)

"""The engine of a calibration: it computes as another does, and looks at every operand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_numpy.engines.engine import Engine
from bert_numpy.engines.site import Site
from bert_numpy.errors import naming
from bert_numpy.quantization.observers import look_at
from npfp8.arrays import Float32Array, IntArray

__all__ = ["Histograms", "ObservingEngine", "Sight"]


#: By operand how many elements there were of each bfloat16 value. Sums of integers do not depend
#: on an order: each thread counts into its own, from batch to batch.
Histograms = dict[str, IntArray]


@dataclass(eq=False)
class Sight:
    """The extrema of every operand in one batch, over all arrays of it that the batch has.

    ``histograms`` are added to. ``same`` has the names of inputs that are those of
    an earlier name: query, key and value have one.
    """

    histograms: Histograms
    extrema: dict[str, tuple[float, float]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    channels: dict[str, Float32Array] = field(default_factory=dict)

    def see(self, name: str, x: Float32Array) -> None:
        """Look at an array of an operand; attention has one for each length of sequences."""
        histogram = self.histograms.get(name)
        if histogram is None:
            histogram = self.histograms[name] = np.zeros(1 << 16, np.int64)
        low, high = look_at(name, x, histogram)
        before = self.extrema.get(name, (0.0, 0.0))
        self.extrema[name] = min(before[0], low), max(before[1], high)

    def see_input(self, sites: Sequence[Site], x: Float32Array) -> None:
        """Look at the input of linear layers, once for all of them."""
        first, *others = (site.name for site in sites)
        self.see(f"{first}:a", x)
        columns = x.reshape(-1, x.shape[-1])
        lowest, highest = columns.min(axis=0, initial=0), columns.max(axis=0, initial=0)
        largest = np.maximum(highest, np.abs(lowest))
        before = self.channels.get(first)
        self.channels[first] = largest if before is None else np.maximum(before, largest)
        for name in others:
            self.same[f"{name}:a"] = f"{first}:a"
            self.extrema[f"{name}:a"] = self.extrema[f"{first}:a"]
            self.channels[name] = self.channels[first]


@dataclass(frozen=True, eq=False)
class ObservingEngine(Engine[Float32Array]):
    """Computes as ``inner`` does; ``sight`` is what it has seen."""

    inner: Engine[Float32Array]
    sight: Sight

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterable[Float32Array]:
        """Sees the one input of several layers once."""
        with naming(sites[0].name):
            self.sight.see_input(sites, x)
        return self.inner.linears(sites, x)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Sees both operands."""
        with naming(site.name):
            self.sight.see(f"{site.name}:a", a)
            self.sight.see(f"{site.name}:b", b)
        return self.inner.product(site, a, b)

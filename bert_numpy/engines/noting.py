"""An engine that watches a run: the operands and the result of every matrix product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.functions import parameter
from bert_numpy.engines.site import Site
from npfp8 import QuantizedTensor
from npfp8.arrays import Float32Array

__all__ = ["Note", "NotingEngine"]

Operand = Float32Array | QuantizedTensor

#: Called with a site's name, both operands, the bias (None for a product of two activations)
#: and the result.
Note = Callable[[str, Float32Array, Operand, Float32Array | None, Float32Array], object]


@dataclass(frozen=True, eq=False)
class NotingEngine(Engine[Float32Array]):
    """An engine that computes as ``inner`` does and calls ``note`` for each product, in order.

    The right operand is (..., K, N), as in the product. For a linear layer it is the transpose
    of the weight: codes with scales, if the weight is quantized.

    If ``inner`` fuses attention, no array of the scores or of the weights exists. Both sites
    are then noted with the result of the whole attention: that of the scores with Q, K^T and
    the bias of the positions, and that of the context with Q and V.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from bert_numpy import load
    >>> model, seen = load("bert-tiny-sst2"), []
    >>> def engine(weights, batch):
    ...     return NotingEngine(model.engine(weights, batch), weights, lambda *x: seen.append(x))
    >>> _ = replace(model, engine=engine)([[101, 102]])
    >>> site, a, b, bias, result = seen[0]
    >>> site, a.shape, b.shape, bias.shape, result.shape
    ('encoder.layer.0.attention.self.query', (2, 128), (128, 128), (128,), (2, 128))
    """

    inner: Engine[Float32Array]
    weights: Weights
    note: Note

    def linears(self, sites: Sequence[Site], x: Float32Array) -> list[Float32Array]:
        """Call ``note`` for each layer in turn."""
        found = list(self.inner.linears(sites, x))
        for site, y in zip(sites, found, strict=True):
            weight = self.weights[f"{site.name}.weight"]
            b = weight.mT if isinstance(weight, QuantizedTensor) else weight.T
            self.note(site.name, x, b, parameter(self.weights, f"{site.name}.bias"), y)
        return found

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Call ``note`` for the product."""
        y = self.inner.product(site, a, b)
        self.note(site.name, a, b, None, y)
        return y

    @property
    def fuses_attention(self) -> bool:  # type: ignore[override]
        """True if ``inner`` fuses attention."""
        return self.inner.fuses_attention

    def attention(
        self,
        scores_site: Site,
        context_site: Site,
        q: Float32Array,
        k: Float32Array,
        v: Float32Array,
        factor: float,
        bias: Float32Array | None,
    ) -> Float32Array:
        """Call ``note`` for both sites of an attention that ``inner`` fuses."""
        y = self.inner.attention(scores_site, context_site, q, k, v, factor, bias)
        self.note(scores_site.name, q, k, bias, y)
        self.note(context_site.name, q, v, None, y)
        return y

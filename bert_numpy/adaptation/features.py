"""The features of a model's layers: the first token's state at the end of each layer.

Source: section 3.1 of arXiv 2404.01650. A Vision Transformer normalises at the beginning of
a layer, so the paper takes the state behind the next normalisation. BERT's layers end with
theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bert_numpy.adaptation.wrapping import WrappingEngine
from npfp8.arrays import Float32Array

__all__ = ["FeatureEngine"]


@dataclass(frozen=True, eq=False)
class FeatureEngine(WrappingEngine):
    """An engine that computes as ``inner`` does, and keeps the features of each layer.

    Attributes
    ----------
    features : list of ndarray of float32, (batch, hidden)
        One array per layer, in order.
    """

    features: list[Float32Array] = field(default_factory=list)

    def layer_norm(self, name: str, x: Float32Array, eps: float) -> Float32Array:
        """Keep the first token's row, if this is the last operation of a layer."""
        y = self.inner.layer_norm(name, x, eps)
        if name.endswith(".output.LayerNorm") and ".attention." not in name:
            self.features.append(self.layout.first(y))
        return y

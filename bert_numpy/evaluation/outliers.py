"""Outlier channels put into a checkpoint without changing its function.

Large BERT models have a few activation channels far larger than all others, and
INT8 per tensor fails on them. Sources: Dettmers et al., arXiv 2208.07339; Bondarenko et
al., *Understanding and overcoming the challenges of efficient Transformer
quantization*, arXiv 2109.12948. A small model can be given such channels. Inside the
attention, two pairs of linear maps meet with nothing between them except sums:

    Q K^T: query channel j times 2^k, key channel j times 2^-k;
    P V, then the output's weights: value channel j times 2^k, column j times 2^-k.

Scaling by powers of two does not round (within float32's range of exponents). So
the products, and with them the float32 output, are the same to the last bit, up to the
order of sums. Only the range that a quantizer has to cover changes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bert_numpy.engines.engine import Weights
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.model import Model
from npfp8 import QuantizedTensor
from npfp8.arrays import Float32Array

__all__ = ["with_outliers"]


def with_outliers(model: Model, exponent: int, channels: int = 4) -> Model:
    """Add outlier channels: scale queries and values by 2^exponent, with the same function.

    Parameters
    ----------
    model : Model
        A float32 model.
    exponent : int
        The exponent of the factor; 0 changes nothing.
    channels : int
        The number of channels of each head, from the first on; at most its size.

    Raises
    ------
    BertNumpyError
        If a head has fewer channels, or a scaled weight is beyond float32's normal range.
    """
    size = model.config.hidden_size // model.config.num_attention_heads
    if not 0 < channels <= size:
        raise BertNumpyError(f"channels: expected 1..{size}, found {channels}")
    chosen = np.arange(model.config.hidden_size) % size < channels
    up = np.where(chosen, np.ldexp(np.float32(1), exponent), np.float32(1))
    down = np.where(chosen, np.ldexp(np.float32(1), -exponent), np.float32(1))
    weights = dict(model.weights)
    for layer in range(model.config.num_hidden_layers):
        attention = f"encoder.layer.{layer}.attention"
        _scale(weights, f"{attention}.self.query", up)
        _scale(weights, f"{attention}.self.key", down)
        _scale(weights, f"{attention}.self.value", up)
        name = f"{attention}.output.dense.weight"  # (out, in): the values' channels are columns
        weights[name] = _exact(name, weights, down)
    return replace(model, weights=weights, name=f"{model.name}, outliers 2^{exponent}")


def _scale(
    weights: dict[str, Float32Array | QuantizedTensor], site: str, factors: Float32Array
) -> None:
    weights[f"{site}.weight"] = _exact(f"{site}.weight", weights, factors[:, None])
    weights[f"{site}.bias"] = _exact(f"{site}.bias", weights, factors)


def _exact(name: str, weights: Weights, factors: Float32Array) -> Float32Array:
    """Multiply a weight by powers of two; an error if that would round."""
    weight = weights[name]
    assert isinstance(weight, np.ndarray), name
    with np.errstate(over="ignore", under="ignore"):
        scaled = weight * factors
        if not np.array_equal(scaled / factors, weight):
            raise BertNumpyError(
                f"{name}: expected float32's range to hold it times {factors.max()}"
            )
    return scaled

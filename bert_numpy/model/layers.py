"""The layers that encoder and heads are made of: parameters by name, products by the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from npfp8 import QuantizedTensor

if TYPE_CHECKING:
    from bert_numpy.model.model import Model

__all__ = ["array", "layer_norm", "linear"]

Float32Array = npt.NDArray[np.float32]


def linear(model: Model, site: str, x: Float32Array) -> Float32Array:
    """``x W^T + b``, by the policy. (..., in) -> (..., out)."""
    weight = model.weights[f"{site}.weight"]
    transposed = weight.mT if isinstance(weight, QuantizedTensor) else weight.T
    return model.policy.gemm(site, x, transposed, array(model, f"{site}.bias"))


def layer_norm(model: Model, site: str, x: Float32Array) -> Float32Array:
    """Normalise each row to mean 0 and variance 1, then scale and shift."""
    weight, bias = array(model, f"{site}.weight"), array(model, f"{site}.bias")
    return model.policy.arithmetic.layer_norm(x, weight, bias, model.config.layer_norm_eps)


def array(model: Model, name: str) -> Float32Array:
    """A parameter that is never quantized: an embedding, a bias or a LayerNorm's."""
    weight = model.weights[name]
    assert isinstance(weight, np.ndarray), name
    return weight

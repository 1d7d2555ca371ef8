"""The operations of a fused attention: the steps of a tile of keys, and the result after the last.

:mod:`bert_numpy.quantization.tiled_attention` has their arithmetic. The products of a tile are
``sum``, of the tile's part of the codes; the weights' codes are ``encode``, as their scale is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bert_numpy.quantization.tiled_attention import (
    accumulated,
    attention_weights,
    finished,
    rescaling,
    row_sum,
    running_maximum,
    scaled_scores,
)
from npfp8 import decode
from npfp8.arrays import Array
from npfp8.formats import FORMATS

__all__ = ["ATTENTION_OPERATIONS", "ATTENTION_RULES"]

Inputs = Mapping[str, Array]
Attributes = Mapping[str, Any]


def _scores(inputs: Inputs, attributes: Attributes) -> Array:
    scale = np.asarray(inputs["q_scale"] * inputs["k_scale"], np.float32)
    return scaled_scores(inputs["sum"], scale, attributes["factor"], inputs.get("bias"))


def _maximum(inputs: Inputs, attributes: Attributes) -> Array:
    return running_maximum(inputs["x"], inputs.get("before"))


def _weights(inputs: Inputs, attributes: Attributes) -> Array:
    return attention_weights(inputs["x"], inputs["maximum"], attributes["offset"])


def _rescaling(inputs: Inputs, attributes: Attributes) -> Array:
    return rescaling(inputs["before"], inputs["maximum"])


def _row_sum(inputs: Inputs, attributes: Attributes) -> Array:
    if "codes" in inputs:
        return row_sum(decode(inputs["codes"], FORMATS[attributes["fmt"]]))
    return row_sum(inputs["x"])


def _accumulated(inputs: Inputs, attributes: Attributes) -> Array:
    return accumulated(inputs["before"], inputs["rescale"], inputs["x"])


def _attention(inputs: Inputs, attributes: Attributes) -> Array:
    return finished(inputs["output"], inputs["total"], inputs["v_scale"])


#: The operations by name.
ATTENTION_OPERATIONS: dict[str, Callable[[Inputs, Attributes], Array]] = {
    "attention_scores": _scores,
    "running_maximum": _maximum,
    "attention_weights": _weights,
    "rescaling": _rescaling,
    "row_sum": _row_sum,
    "running_total": _accumulated,
    "running_output": _accumulated,
    "attention": _attention,
}

_PAGE = "docs/flash-attention.md"

#: Each operation in words, and the page that explains its arithmetic.
ATTENTION_RULES: dict[str, tuple[str, str]] = {
    "attention_scores": (
        "sum * float32(q_scale * k_scale) * factor, then + bias: one float32 rounding each",
        _PAGE,
    ),
    "running_maximum": (
        "the largest x of the last axis, or before if this is larger: for each query, the "
        "largest score of this tile of keys and of all tiles before it; of zeros +0",
        _PAGE,
    ),
    "attention_weights": ("2^offset exp(x - maximum), in float64, rounded once to float32", _PAGE),
    "rescaling": ("exp(before - maximum), in float64, rounded once to float32", _PAGE),
    "row_sum": (
        "the sum of x along the last axis; with codes, that of their values instead; in float64, "
        "rounded once to float32",
        _PAGE,
    ),
    "running_total": (
        "before * rescale + x, two float32 roundings; x is the tile's row sum, and before is that "
        "of the first tile, or the running total before this tile",
        _PAGE,
    ),
    "running_output": (
        "before * rescale + x, two float32 roundings; x is the sum of the products of the tile's "
        "weights and values, and before is that of the first tile, or the running output before "
        "this tile",
        _PAGE,
    ),
    "attention": ("output * ((1 / total) * v_scale): one float32 rounding each", _PAGE),
}

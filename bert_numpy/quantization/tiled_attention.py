"""Attention in FP8 as fused kernels compute it: over tiles of keys, with an online softmax.

Shah et al., *FlashAttention-3* (arXiv 2407.08608), section 3.3, and the program of its authors
(Dao-AILab/flash-attention, hopper/softmax.h). The matrix of attention weights is never whole:
a kernel goes over tiles of keys, and for each query keeps the largest score up to now, ``m``,
the sum of the weights, ``l``, and the sum of the weighted values, ``O``. A tile's weights are
relative to the ``m`` of its time; when a later tile has a larger score, ``l`` and ``O`` are
multiplied by ``exp(m_old - m_new)``. At the end ``O / l`` is the attention.

Weights lie between 0 and 1 and become codes without a scale of their own. E4M3FN has few
codes below 2^-6, so that kernels compute ``2^8 exp(x - m)``, which lies between 0 and 256: the
factor is in ``l``, too, and cancels.

One rule for each operation, so that every bit is defined; all in float32, each operation rounded
once, exponentials from float64::

    x = (q_codes k_codes) (q_scale k_scale) factor + bias
    m = max(m_old, x of this tile)
    p = 2^offset exp(x - m)                        p_codes = encode(p)
    a = exp(m_old - m)
    l = l a + sum of p                             or of the values of p_codes
    O = O a + p_codes v_codes
    attention = O ((1 / l) v_scale)                after the last tile

A kernel may contract or approximate where this rounds (``ex2.approx``, fused multiply-adds), so
that its bits differ from these in float32; its codes seldom do. FlashAttention-3 also goes from
the last tile to the first, and adds a tile's products to the rescaled ``O`` inside the tensor
core's accumulator. docs/flash-attention.md lists the differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.shown import shown
from npfp8 import QuantizedTensor, elementary, matmul, quantize
from npfp8.arrays import Float32Array, chunks
from npfp8.formats import FloatFormat
from npfp8.golden import tree_sum
from npfp8.names import match

__all__ = [
    "ROW_SUMS",
    "Tile",
    "TiledAttention",
    "accumulated",
    "attention_weights",
    "finished",
    "rescaling",
    "row_sum",
    "running_maximum",
    "scaled_scores",
    "steps",
]

#: Whether the row sum is of the weights before they become codes, or of their codes' values.
ROW_SUMS = ("unquantized", "quantized")

#: The largest offset. The weights have to stay below the largest value of their format.
MAX_OFFSET = 8

#: The most keys of a tile: their number fits into an index on every machine.
MAX_KEYS = 2**31 - 1


@dataclass(frozen=True)
class TiledAttention:
    """How a fused kernel computes attention.

    Attributes
    ----------
    keys : int
        The number of keys of a tile; the last one may have fewer. FlashAttention-3 has 128 to
        224 for FP8, by head size. With as many keys as a text has tokens, there is one tile.
    offset : int
        The weights are multiplied by ``2^offset``: 8 in FlashAttention-3, 0 without.
    row_sum : {"unquantized", "quantized"}
        The weights that are summed: as computed (FlashAttention-3), or rounded to codes.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from bert_numpy import PRESETS, TiledAttention
    >>> replace(PRESETS["e4m3"], name="mine", attention=TiledAttention(128))
    <Recipe mine: linear E4M3FN x E4M3FN, scores E4M3FN x E4M3FN, context E4M3FN x E4M3FN; \
rest bfloat16; attention in tiles of 128 keys>
    """

    keys: int = 64
    offset: int = 8
    row_sum: str = "unquantized"

    def __post_init__(self) -> None:
        for name, low, high in (("keys", 1, MAX_KEYS), ("offset", 0, MAX_OFFSET)):
            value = getattr(self, name)
            good = isinstance(value, Integral) and not isinstance(value, bool)
            if not (good and low <= value <= high):
                raise BertNumpyError(
                    f"attention: {name}: expected an integer of {low} to {high}, "
                    f"found {shown(value)}"
                )
            object.__setattr__(self, name, int(value))
        known = match(self.row_sum, ROW_SUMS) if isinstance(self.row_sum, str) else None
        if known is None:
            raise BertNumpyError(
                f"attention: row_sum: expected {' or '.join(map(repr, ROW_SUMS))}, "
                f"found {shown(self.row_sum)}"
            )
        object.__setattr__(self, "row_sum", known)


@dataclass(frozen=True, eq=False)
class Tile:
    """One tile of keys: what is computed of it, and what is kept after it. All of float32.

    Attributes
    ----------
    keys : slice
    scores, weights : ndarray, (..., queries, keys)
    codes : QuantizedTensor, (..., queries, keys)
        The weights as codes, with the scale 1.
    rescale : ndarray, (..., queries, 1), optional
        The factor of what was kept before; None in the first tile.
    maximum, total : ndarray, (..., queries, 1)
        The largest score up to now, and the sum of the weights relative to it.
    output : ndarray, (..., queries, d)
        The weights times the values' codes.
    """

    keys: slice
    scores: Float32Array
    weights: Float32Array
    codes: QuantizedTensor
    rescale: Float32Array | None
    maximum: Float32Array
    total: Float32Array
    output: Float32Array


def steps(
    q: QuantizedTensor,
    k: QuantizedTensor,
    v: QuantizedTensor,
    factor: float,
    bias: Float32Array | None,
    fmt: FloatFormat,
    how: TiledAttention,
    accumulate: str = "exact",
) -> Iterator[Tile]:
    """Yield the tiles from the first key to the last; :func:`finished` makes the result.

    Parameters
    ----------
    q, k, v : QuantizedTensor, (..., queries, d), (..., d, keys) and (..., keys, d)
        One scale per tensor.
    factor : float
        1/sqrt(d).
    bias : ndarray of float32, (..., queries, keys), optional
        Added to the scores.
    fmt : FloatFormat
        The format of the weights.
    how : TiledAttention
    accumulate : str
        The accumulator of both products; see :func:`npfp8.matmul`.
    """
    before: Tile | None = None
    one = np.float32(1)
    unscaled = QuantizedTensor(q.codes, one, q.fmt)
    for chunk in chunks(k.shape[-1], how.keys):
        keys = slice(chunk.start, min(chunk.stop, k.shape[-1]))
        part = QuantizedTensor(k.codes[..., keys], one, k.fmt)
        values = QuantizedTensor(v.codes[..., keys, :], one, v.fmt)
        total = matmul(unscaled, part, accumulate)
        scores = scaled_scores(
            total, q.scale * k.scale, factor, None if bias is None else bias[..., keys]
        )
        maximum = running_maximum(scores, None if before is None else before.maximum)
        rescale = None if before is None else rescaling(before.maximum, maximum)
        weights = attention_weights(scores, maximum, how.offset)
        codes = quantize(weights, fmt, one)
        summed = weights if how.row_sum == "unquantized" else codes.dequantize()
        old = (None, None) if before is None else (before.total, before.output)
        before = Tile(
            keys,
            scores,
            weights,
            codes,
            rescale,
            maximum,
            accumulated(old[0], rescale, row_sum(summed)),
            accumulated(old[1], rescale, matmul(codes, values, accumulate)),
        )
        yield before


def scaled_scores(
    total: Float32Array, scale: Float32Array, factor: float, bias: Float32Array | None
) -> Float32Array:
    """Scale the sums of a tile's codes, (..., queries, keys), and add the bias of the positions.

    ``scale`` is the product of both operands' scales, ``factor`` that of attention, 1/sqrt(d).
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        x = total * scale
        x *= np.float32(factor)
        if bias is not None:
            x += bias
    return x


def running_maximum(x: Float32Array, before: Float32Array | None) -> Float32Array:
    """Return the largest score up to now, (..., queries, 1); a zero is +0.

    NumPy does not define which of +0 and -0 is the larger.
    """
    maximum = x.max(axis=-1, keepdims=True)
    if before is not None:
        maximum = np.maximum(before, maximum)
    return maximum + np.float32(0)


def attention_weights(x: Float32Array, maximum: Float32Array, offset: int) -> Float32Array:
    """Compute ``2^offset exp(x - maximum)``. (..., queries, keys), (..., queries, 1) -> first."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        shifted = x.astype(np.float64)
        shifted -= maximum
        return (elementary.exp(shifted) * 2.0**offset).astype(np.float32)


def rescaling(before: Float32Array, maximum: Float32Array) -> Float32Array:
    """Compute ``exp(before - maximum)``, what sums relative to the earlier maximum become by."""
    return attention_weights(before, maximum, 0)


def row_sum(p: Float32Array) -> Float32Array:
    """Sum the weights of a tile, (..., queries, keys), in float64; (..., queries, 1) in float32."""
    return tree_sum(p.astype(np.float64))[..., None].astype(np.float32)


def accumulated(
    old: Float32Array | None, rescale: Float32Array | None, new: Float32Array
) -> Float32Array:
    """Return ``old rescale + new``, two roundings; ``new`` alone in the first tile."""
    if old is None or rescale is None:
        return new
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return old * rescale + new


def finished(output: Float32Array, total: Float32Array, v_scale: Float32Array) -> Float32Array:
    """Return ``output ((1 / total) v_scale)``: (..., queries, d)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return output * (np.float32(1) / total * v_scale)

"""The cases of a fused attention: tiles in which the largest score rises, falls, stays and ties.

Like all cases they follow from integer rules; see :mod:`bert_numpy.kit.cases`.
"""

from __future__ import annotations

import math

import numpy as np

from bert_numpy.kit.attention_steps import Operands, add_attention
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import random_bfloat16, random_codes
from bert_numpy.kit.manifest import Reference
from bert_numpy.quantization.tiled_attention import TiledAttention
from npfp8 import E4M3FN, E5M2, encode
from npfp8.arrays import Array
from npfp8.formats import FloatFormat

__all__ = ["add_attention_cases"]

#: The numbers of queries, features of a head, keys, and keys of a tile: 16, 16, and the other 5.
_QUERIES, _D, _KEYS, _TILE = 6, 8, 37, 16

#: Scales that are distinct, so that one in another's place, or twice, shows.
_SCALES = {"q": 0.023, "k": 0.019, "v": 0.0037}

_FACTOR = 1 / math.sqrt(_D)


def add_attention_cases(builder: Builder) -> None:
    """Add attention in three tiles with a bias, with 2^8 and without, and in one tile of E5M2."""
    given = _operands(builder, E4M3FN, with_bias=True)
    _add(builder, "tiles", given, E4M3FN, TiledAttention(_TILE, 8))
    # Its scores are those of the first: only what follows from them is another.
    plain = TiledAttention(_TILE, 0, "quantized")
    _add(builder, "plain", given, E4M3FN, plain, scores="tiles")
    given = _operands(builder, E5M2, with_bias=False)
    _add(builder, "whole", given, E5M2, TiledAttention(64, 8, "quantized"))


def _add(
    builder: Builder,
    case: str,
    given: Operands,
    fmt: FloatFormat,
    how: TiledAttention,
    scores: str | None = None,
) -> None:
    """Add a case; its scores and their maxima are those of the case ``scores``."""

    def name(what: str, tile: int | None) -> str:
        shared = what in ("sum", "scores", "maximum", "rescale")
        place = f"operator/attention-{scores or case if shared else case}"
        return f"{place}/{what}" if tile is None else f"{place}/{tile}/{what}"

    add_attention(builder, "operator", name, given, _FACTOR, fmt, how)


def _operands(builder: Builder, fmt: FloatFormat, *, with_bias: bool) -> Operands:
    """Give the codes of Q, K and V in a format, their scales, and a bias."""
    place = f"operator/attention-{fmt}".lower()

    def give(what: str, x: Array) -> Reference:
        return builder.give(f"{place}/{what}", "operator", x, fmt)

    q, k = _queries_and_keys(fmt)
    v = random_codes(203, (1, _KEYS, _D), fmt, 64 if fmt is E4M3FN else 32)
    scales = {
        f"{role}_scale": builder.give(
            f"operator/attention/{role}.scale", "operator", np.asarray(np.float32(scale))
        )
        for role, scale in _SCALES.items()
    }
    bias = None
    if with_bias:
        numbers = random_bfloat16(204, (1, _QUERIES, _KEYS), 4) / 4
        numbers[0, 3], numbers[0, 4] = 0, -np.abs(numbers[0, 4])
        numbers[0, 0, 25] = numbers[0, 0, 5]
        bias = builder.give(f"{place}/bias", "operator", numbers, kind="bfloat16")
    return Operands(give("q", q), give("k", k), give("v", v), **scales, bias=bias)


def _queries_and_keys(fmt: FloatFormat) -> tuple[Array, Array]:
    """Make codes of Q and K whose scores' largest is where each query's row is meant to have it.

    By query: 0, in the first tile, and equal in the second; 1, in the last; 2, larger in each
    tile; 3, everywhere, as all scores are 0; 4, below 0, in which an empty key would count; 5,
    by chance.
    """
    q = np.zeros((_QUERIES, _D))
    k = _values(201, (_D, _KEYS), fmt)
    for query in (0, 1, 2):
        q[query, 2 * query + 1 : 2 * query + 3] = 160, -160
    k[:7] = k[:7] / 2
    for query, key, height in ((0, 5, 300), (1, 35, 320), (2, 3, 120), (2, 20, 220), (2, 34, 300)):
        k[:, key] /= 8
        k[2 * query + 1 : 2 * query + 3, key] = height, -height
    k[:, 25] = k[:, 5]
    k[7] = np.abs(k[7]) / 2 + 80
    q[4, 7] = -144
    q[5] = _values(205, (_D,), fmt) / 2
    return encode(q.astype(np.float32)[None], fmt), encode(k.astype(np.float32)[None], fmt)


def _values(seed: int, shape: tuple[int, ...], fmt: FloatFormat) -> Array:
    """Generate values of E4M3FN between 28 and 224 in magnitude; E5M2 rounds them."""
    return E4M3FN.values[random_codes(seed, shape, E4M3FN, 32)] / 2

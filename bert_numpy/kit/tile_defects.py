"""The typical defects in the way of a fused attention over its tiles.

They compute the whole attention again, and are defects of its last operation. Each is a name and
its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bert_numpy.kit.attention_operations import Attributes, Inputs
from bert_numpy.kit.history import Made, Traced
from bert_numpy.kit.operand_defects import FOUND, Defective, Named
from bert_numpy.quantization.tiled_attention import (
    TiledAttention,
    accumulated,
    attention_weights,
    finished,
    rescaling,
    row_sum,
    scaled_scores,
)
from npfp8 import QuantizedTensor, matmul, quantize
from npfp8.arrays import Array, Float32Array, chunks
from npfp8.formats import FORMATS, FloatFormat

__all__ = [
    "WHOLE_TILES",
    "Kernel",
    "kernel_of",
    "made_by",
    "normalized_first",
    "tile_defects",
    "weights_in",
]

#: The numbers of keys of tiles that kernels have.
_SIZES = (8, 16, 32, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)

#: The keys of a whole tile, to which padding fills one up: None for as many as the first tile has.
#: A text that is shorter than a tile does not say how many these are, so there are others.
WHOLE_TILES = (None, 16, 32, 64, 128)

_ONE = np.float32(1)


def tile_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield "scale of v applied tile by tile", {"attention": _whole(_scaled_by_tile)}
    yield "last, shorter tile left out", {"attention": _in_tiles(_without_the_last_tile)}
    yield "last key left out", {"attention": _in_tiles(_without_the_last_key)}
    for change in (_one_key_later, _one_key_earlier):
        name = "key between two tiles counted twice"
        yield name, {"attention": _in_tiles(change)}
    yield "tiles from the last to the first", {"attention": _in_tiles(lambda tiles: tiles[::-1])}
    yield "one tile of all keys", {"attention": _in_tiles(lambda tiles: [np.concatenate(tiles)])}
    for size in _SIZES:
        yield f"tiles of {size} keys", {"attention": _in_tiles(_of(size))}
    for whole in WHOLE_TILES:
        name = "keys of padding in the maximum and in the sum of the weights"
        yield name, {"attention": _whole(_padded(whole))}
    yield "padding masked by a finite number, not by -infinity", {"attention": _masked}


# The attention


@dataclass(frozen=True)
class Kernel:
    """What an attention is computed from, and how.

    Attributes
    ----------
    q, k, v : QuantizedTensor, (..., queries, d), (..., d, keys) and (..., keys, d)
    factor : float
    bias : ndarray, (..., queries, keys), optional
    fmt : FloatFormat
        The format of the weights.
    how : TiledAttention
    accumulate : str
    tiles : list of ndarray of int
        The places of each tile's keys.
    """

    q: QuantizedTensor
    k: QuantizedTensor
    v: QuantizedTensor
    factor: float
    bias: Array | None
    fmt: FloatFormat
    how: TiledAttention
    accumulate: str
    tiles: Sequence[Array]

    def scores(self, keys: Array) -> Float32Array:
        """Compute the scores of the keys at some places."""
        q = QuantizedTensor(self.q.codes, _ONE, self.q.fmt)
        part = QuantizedTensor(self.k.codes[..., keys], _ONE, self.k.fmt)
        bias = None if self.bias is None else self.bias[..., keys]
        total = matmul(q, part, self.accumulate)
        return scaled_scores(total, self.q.scale * self.k.scale, self.factor, bias)

    def weighted(self, codes: QuantizedTensor, keys: Array) -> Float32Array:
        """Multiply codes of weights and of the values at some places."""
        values = QuantizedTensor(self.v.codes[..., keys, :], _ONE, self.v.fmt)
        return matmul(codes, values, self.accumulate)


def made_by(inputs: Inputs, role: str, operation: str) -> Made | None:
    """Return how an input came about if this is known, and by the operation."""
    if not isinstance(inputs, Traced):
        return None
    made = inputs.source(role)
    return made if made.operation == operation else None


def kernel_of(inputs: Inputs) -> Kernel | None:
    """Find what an attention is computed from, by its last operation's inputs."""
    if not isinstance(inputs, Traced):
        return None
    products = _by_tile(inputs, "output", "running_output")
    totals = _by_tile(inputs, "total", "running_total")
    codes = [made.inputs.source("a") for made in products]
    weights = [made.inputs.source("x") for made in codes]
    scores = [made.inputs.source("x") for made in weights]
    sums = [made.inputs.source("sum") for made in scores]
    steps = {"sum": [*products, *sums], "encode": codes, "attention_weights": weights}
    steps |= {"attention_scores": scores, "row_sum": totals}
    if any(made.operation != operation for operation, found in steps.items() for made in found):
        return None
    first, counts = sums[0], [made.inputs["b"].shape[-1] for made in sums]
    formats = {
        "q": first.attributes["a"]["fmt"],
        "k": first.attributes["b"]["fmt"],
        "v": products[0].attributes["b"]["fmt"],
    }
    parts = {
        "q": first.inputs["a"],
        "k": np.concatenate([made.inputs["b"] for made in sums], axis=-1),
        "v": np.concatenate([made.inputs["b"] for made in products], axis=-2),
    }
    scales = {
        "q": scores[0].inputs["q_scale"],
        "k": scores[0].inputs["k_scale"],
        "v": inputs["v_scale"],
    }
    biases = [made.inputs["bias"] for made in scores if "bias" in made.inputs]
    fmt = FORMATS[codes[0].attributes["fmt"]]
    if not isinstance(fmt, FloatFormat):
        return None
    how = TiledAttention(
        counts[0],
        weights[0].attributes["offset"],
        "quantized" if "codes" in totals[0].inputs else "unquantized",
    )
    ends = np.cumsum(counts)
    q, k, v = (QuantizedTensor(parts[x], scales[x], FORMATS[formats[x]]) for x in "qkv")
    return Kernel(
        q,
        k,
        v,
        scores[0].attributes["factor"],
        np.concatenate(biases, axis=-1) if biases else None,
        fmt,
        how,
        first.attributes.get("accumulate", "exact"),
        np.split(np.arange(ends[-1]), ends[:-1]),
    )


def _by_tile(inputs: Traced, role: str, operation: str) -> list[Made]:
    """List how the parts of a running sum came about, from the first tile to the last."""
    parts = []
    made = inputs.source(role)
    while made.operation == operation:
        parts.append(made.inputs.source("x"))
        made = made.inputs.source("before")
    return [made, *reversed(parts)]


def _whole(compute: Callable[[Kernel], Array | None]) -> Defective:
    """Make a whole attention that is computed in another way."""

    def attention(inputs: Inputs, attributes: Attributes) -> Array | None:
        kernel = kernel_of(inputs)
        return None if kernel is None else compute(kernel)

    return attention


def _attended(kernel: Kernel, v_scale_by_tile: bool = False) -> Float32Array:
    """Compute the attention; with the scale of v in each tile's product, or once at the end."""
    maximum: Float32Array | None = None
    total = output = rescale = None
    for keys in kernel.tiles:
        scores = kernel.scores(keys)
        largest = scores.max(axis=-1, keepdims=True)
        if maximum is not None:
            largest = np.maximum(maximum, largest)
            rescale = rescaling(maximum, largest)
        maximum = largest
        weights = attention_weights(scores, maximum, kernel.how.offset)
        codes = quantize(weights, kernel.fmt, _ONE)
        summed = codes.dequantize() if kernel.how.row_sum == "quantized" else weights
        product = kernel.weighted(codes, keys)
        if v_scale_by_tile:
            product = product * kernel.v.scale
        total = accumulated(total, rescale, row_sum(summed))
        output = accumulated(output, rescale, product)
    assert total is not None
    assert output is not None
    return finished(output, total, _ONE if v_scale_by_tile else kernel.v.scale)


def _scaled_by_tile(kernel: Kernel) -> Float32Array:
    return _attended(kernel, v_scale_by_tile=True)


def weights_in(fmt: FloatFormat, other: FloatFormat) -> Defective:
    """Make an attention whose weights become codes of another format."""

    def attention(kernel: Kernel) -> Array | None:
        return _attended(replace(kernel, fmt=other)) if kernel.fmt == fmt else None

    return _whole(attention)


def normalized_first(divide: Callable[[Array, Array], Array], with_offset: bool) -> Defective:
    """Make an attention whose weights, in one tile, are divided by their sum and then rounded."""

    def attention(kernel: Kernel) -> Array:
        keys = np.concatenate(kernel.tiles)
        scores = kernel.scores(keys)
        weights = attention_weights(scores, scores.max(axis=-1, keepdims=True), 0)
        offset = kernel.how.offset if with_offset else 0
        weights = np.ldexp(divide(weights, row_sum(weights)), offset)
        product = kernel.weighted(quantize(weights, kernel.fmt, _ONE), keys)
        return np.asarray(product * np.ldexp(kernel.v.scale, -offset), np.float32)

    return _whole(attention)


def _in_tiles(change: Callable[[list[Array]], list[Array] | None]) -> Defective:
    """Make an attention over other tiles; ``change`` gets the right ones' places of keys."""

    def attention(kernel: Kernel) -> Array | None:
        tiles = change(list(kernel.tiles))
        return _attended(replace(kernel, tiles=tiles)) if tiles else None

    return _whole(attention)


def _without_the_last_tile(tiles: list[Array]) -> list[Array] | None:
    return tiles[:-1] if len(tiles[-1]) < len(tiles[0]) else None


def _without_the_last_key(tiles: list[Array]) -> list[Array]:
    *others, last = tiles
    return [*others, last[:-1]] if len(last) > 1 else others


def _one_key_later(tiles: list[Array]) -> list[Array]:
    """End each tile one key later, where the next one has begun."""
    *others, last = tiles
    return [*(np.append(keys, keys[-1] + 1) for keys in others), last]


def _one_key_earlier(tiles: list[Array]) -> list[Array]:
    """Begin each tile one key earlier, where the last one has not ended."""
    first, *others = tiles
    return [first, *(np.insert(keys, 0, keys[0] - 1) for keys in others)]


def _of(size: int) -> Callable[[list[Array]], list[Array] | None]:
    def tiles(right: list[Array]) -> list[Array] | None:
        keys = np.concatenate(right)
        if len(right[0]) == size or len(keys) <= size:
            return None
        return [keys[part] for part in chunks(len(keys), size)]

    return tiles


def _padded(size: int | None) -> Callable[[Kernel], Array | None]:
    """Make an attention whose keys are filled up to whole tiles with zeros that count."""

    def attention(kernel: Kernel) -> Array | None:
        missing = _missing_keys(kernel, size)
        return _filled_up(kernel, missing, 0.0) if missing else None

    return attention


def _missing_keys(kernel: Kernel, size: int | None) -> int:
    """Return how many keys the last tile lacks; None is the first tile's size."""
    return -sum(map(len, kernel.tiles)) % (size or len(kernel.tiles[0]))


def _filled_up(kernel: Kernel, missing: int, score: float) -> Float32Array:
    """Compute the attention with so many more keys of zeros, to whose scores a number is added."""
    keys = sum(map(len, kernel.tiles))

    def filled(x: Array, axis: int, number: float = 0.0) -> Array:
        width = [(0, 0)] * x.ndim
        width[axis] = (0, missing)
        return np.pad(x, width, constant_values=number)

    bias = kernel.bias
    if bias is None and score:
        bias = np.full((*kernel.q.codes.shape[:-1], keys), -0.0, np.float32)  # x + -0 is x
    *others, last = kernel.tiles
    return _attended(
        replace(
            kernel,
            k=QuantizedTensor(filled(kernel.k.codes, -1), kernel.k.scale, kernel.k.fmt),
            v=QuantizedTensor(filled(kernel.v.codes, -2), kernel.v.scale, kernel.v.fmt),
            bias=None if bias is None else filled(bias, -1, score),
            tiles=[*others, np.append(last, np.arange(keys, keys + missing))],
        )
    )


def _masked(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Compute an attention whose keys of padding have one score, read off the candidate's result.

    Where the result is not given, the score is -1, as of ``mask - 1``.
    """
    kernel, found = kernel_of(inputs), inputs.get(FOUND)
    if kernel is None:
        return None
    counts = dict.fromkeys(filter(None, (_missing_keys(kernel, size) for size in WHOLE_TILES)))
    made: Float32Array | None = None
    for missing in counts:
        if found is None:
            return _filled_up(kernel, missing, -1.0)
        for score in _scores_of_padding(kernel, inputs, missing):
            made = _filled_up(kernel, missing, score)
            if np.array_equal(made, found):
                return made
    return made


def _scores_of_padding(kernel: Kernel, inputs: Inputs, missing: int) -> list[float]:
    """Estimate the score of keys of padding by what it adds to the sum of the weights.

    The median of the estimates, one for each element, is rounded to a few digits, and to halves
    and quarters beside it: if the sum is that of codes, the estimates are rough.
    """
    output, total, scale = (inputs[x].astype(np.float64) for x in ("output", "total", "v_scale"))
    maximum = kernel.scores(np.concatenate(kernel.tiles)).max(axis=-1, keepdims=True)
    more = np.ldexp(output * scale / inputs[FOUND] - total, -kernel.how.offset) / missing
    scores = np.log(more) + maximum
    scores = scores[np.isfinite(scores)]
    if not scores.size:
        return []
    score = float(np.median(scores))
    digits = [round(score, digits) for digits in range(5)]
    beside = [end(score * parts) / parts for parts in (1, 2, 4) for end in (np.floor, np.ceil)]
    return [x for x in dict.fromkeys([*digits, *map(float, beside)]) if x]  # 0: another defect

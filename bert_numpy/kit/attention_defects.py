"""The typical defects of a fused attention: in a step of a tile, and in the way over the tiles.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them. Those of
the way over the tiles compute the whole attention again, and are defects of its last operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bert_numpy.kit.attention_operations import ATTENTION_OPERATIONS, Attributes, Inputs
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
from npfp8 import E4M3FN, E5M2, QuantizedTensor, decode, encode, matmul, matmul_float32, quantize
from npfp8.arrays import Array, Float32Array, chunks
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat

__all__ = ["attention_defects"]

#: The numbers of keys of tiles that kernels have.
_SIZES = (8, 16, 32, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)

#: The keys of a whole tile, to which padding fills one up: None for as many as the first tile has.
#: A text that is shorter than a tile does not say how many these are, so there are others.
_WHOLE = (None, 16, 32, 64, 128)

_ONE = np.float32(1)


def attention_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield from _score_defects()
    yield from _weight_defects()
    yield from _code_defects()
    yield from _total_defects()
    yield from _running_defects()
    yield from _result_defects()
    yield from _tile_defects()


def _score_defects() -> Iterator[Named]:
    changes: dict[str, Callable[[_Scores], Float32Array]] = {
        "scale of q left out": lambda x: x.scaled(x.k_scale),
        "scale of q applied twice": lambda x: x.scaled(x.q_scale * x.k_scale * x.q_scale),
        "scale of k left out": lambda x: x.scaled(x.q_scale),
        "scale of k applied twice": lambda x: x.scaled(x.q_scale * x.k_scale * x.k_scale),
        "scale left out": lambda x: x.scaled(_ONE),
        "scales multiplied one after the other": lambda x: x.plus_bias(
            x.total * x.q_scale * x.k_scale * x.factor
        ),
        "1/sqrt(d) left out": lambda x: x.plus_bias(x.product),
        "1/sqrt(d) applied twice": lambda x: x.plus_bias(x.product * x.factor * x.factor),
        "1/sqrt(d) multiplied by the scales first": lambda x: x.plus_bias(
            x.total * (x.q_scale * x.k_scale * x.factor)
        ),
        "bias left out": lambda x: x.product * x.factor,
        "bias added before scaling": lambda x: x.plus_bias(x.total) * x.scale * x.factor,
        "bias added before 1/sqrt(d)": lambda x: x.plus_bias(x.product) * x.factor,
        "scores rounded to bfloat16": lambda x: round_to_bfloat16(x.right),
        "scores rounded to float16": lambda x: x.right.astype(np.float16),
    }
    for name, change in changes.items():
        yield name, {"attention_scores": _scores_by(change)}


def _weight_defects() -> Iterator[Named]:
    yield "maximum of the tile alone", {"running_maximum": _without_before}
    for size in _WHOLE:
        yield "keys of padding in the maximum", {"running_maximum": _padded_maximum(size)}
    yield "stale maximum", {"attention_weights": _by_the_maximum_before}
    yield (
        "softmax without taking the largest element off",
        {"attention_weights": _weights_by(lambda x, maximum, offset: (x, 0 * maximum, offset))},
    )
    yield (
        "offset of the weights left out",
        {"attention_weights": _weights_by(lambda x, maximum, offset: (x, maximum, 0))},
    )
    for other in (4, 8):
        yield f"weights times 2^{other}", {"attention_weights": _weights_times(other)}
    yield (
        "2^x instead of e^x",
        {"attention_weights": _powers_of_two, "rescaling": _rescaling_by_powers_of_two},
    )


def _code_defects() -> Iterator[Named]:
    name = "offset in the sum of the weights, but not in the weights"
    yield name, {"encode": _codes_without_offset}
    yield "weights not rounded to codes", {"sum": _product_of_weights(lambda p: p)}
    yield (
        "weights rounded to bfloat16, not to codes",
        {"sum": _product_of_weights(round_to_bfloat16)},
    )
    for fmt, other in ((E4M3FN, E5M2), (E5M2, E4M3FN)):
        yield f"weights in {other} instead of {fmt}", {"attention": _weights_in(fmt, other)}
    for divide in (lambda p, total: p / total, lambda p, total: p * (_ONE / total)):
        for with_offset in (False, True):
            yield (
                "weights rounded to codes after the division by their sum",
                {"attention": _normalized_first(divide, with_offset)},
            )


def _total_defects() -> Iterator[Named]:
    for fmt in (E4M3FN, E5M2):
        yield "sum of the weights' codes", {"row_sum": _sum_of_codes(fmt)}
    yield "sum of the weights before they become codes", {"row_sum": _sum_of_weights}
    yield "offset in the weights, but not in their sum", {"row_sum": _sum_without_offset}
    for size in _WHOLE:
        yield "keys of padding in the sum of the weights", {"row_sum": _padded_sum(size)}


def _running_defects() -> Iterator[Named]:
    for what, operation in (("sum", "running_total"), ("output", "running_output")):
        changes: dict[str, Callable[[Array, Array, Array], Array]] = {
            f"{what} of the tiles before not rescaled": lambda old, a, new: old + new,
            f"{what} rescaled by the inverse": lambda old, a, new: old / a + new,
            f"{what} of this tile rescaled, not that of the tiles before": lambda old, a, new: (
                old + new * a
            ),
            f"{what} of the tiles before left out": lambda old, a, new: new,
            f"{what} of this tile rescaled, too": lambda old, a, new: (old + new) * a,
            f"{what} rounded to bfloat16 after every tile": lambda old, a, new: round_to_bfloat16(
                old * a + new
            ),
        }
        for name, change in changes.items():
            yield name, {operation: _running_by(change)}
    yield (
        "rescaling and adding rounded once (fused multiply-add)",
        dict.fromkeys(("running_total", "running_output"), _running_by(_fused)),
    )
    yield "rescaling left out", {"rescaling": lambda inputs, how: np.ones_like(inputs["maximum"])}
    yield "rescaling by the inverse", {"rescaling": _inverse_rescaling}


def _result_defects() -> Iterator[Named]:
    changes: dict[str, Callable[[Array, Array, Array], Array]] = {
        "sum of the weights left out at the end": lambda o, total, scale: o * scale,
        "scale of v left out": lambda o, total, scale: o * (_ONE / total),
        "scale of v applied twice": lambda o, total, scale: o * (_ONE / total * scale) * scale,
        "scale of v multiplied after 1/sum": lambda o, total, scale: o * (_ONE / total) * scale,
    }
    for name, change in changes.items():
        yield name, {"attention": _result_by(change)}
    name = "division by the sum, not multiplication by its reciprocal"
    yield name, {"attention": _result_by(lambda o, total, scale: o / total * scale)}
    yield name, {"attention": _result_by(lambda o, total, scale: o * scale / total)}
    yield name, {"attention": _result_by(lambda o, total, scale: o * (scale / total))}
    name = "offset taken out, though it cancels"
    yield name, {"attention": _without_what_cancels}


def _tile_defects() -> Iterator[Named]:
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
    for whole in _WHOLE:
        name = "keys of padding in the maximum and in the sum of the weights"
        yield name, {"attention": _whole(_padded(whole))}
    yield "padding masked by a finite number, not by -infinity", {"attention": _masked}


# Scores


@dataclass(frozen=True)
class _Scores:
    """What scores are computed from, and how far they are right."""

    total: Array
    q_scale: Array
    k_scale: Array
    factor: np.float32
    bias: Array | None

    @property
    def scale(self) -> Array:
        return np.asarray(self.q_scale * self.k_scale)

    @property
    def product(self) -> Array:
        return np.asarray(self.total * self.scale)

    @property
    def right(self) -> Float32Array:
        return self.scaled(self.scale)

    def scaled(self, scale: Array | np.float32) -> Float32Array:
        return self.plus_bias(self.total * scale * self.factor)

    def plus_bias(self, x: Array) -> Float32Array:
        return x if self.bias is None else x + self.bias


def _scores_by(change: Callable[[_Scores], Array]) -> Defective:
    def scores(inputs: Inputs, attributes: Attributes) -> Array:
        total, q_scale, k_scale = (inputs[role] for role in ("sum", "q_scale", "k_scale"))
        factor = np.float32(attributes["factor"])
        given = _Scores(total, q_scale, k_scale, factor, inputs.get("bias"))
        return np.asarray(change(given), np.float32)

    return scores


# Weights


def _without_before(inputs: Inputs, attributes: Attributes) -> Array | None:
    if "before" not in inputs:
        return None
    return ATTENTION_OPERATIONS["running_maximum"]({"x": inputs["x"]}, attributes)


def _missing(inputs: Inputs, size: int | None) -> int:
    """Return how many keys a tile lacks, by the inputs of its maximum."""
    keys = inputs["x"].shape[-1]
    while size is None:
        made = _source(inputs, "before", "running_maximum") if "before" in inputs else None
        if made is None:
            size = inputs["x"].shape[-1]
        else:
            inputs = made.inputs
    return int(-keys % size)


def _padded_maximum(size: int | None) -> Defective:
    """Make the maximum of a tile filled up to ``size`` keys, whose scores are 0."""

    def maximum(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not _missing(inputs, size):
            return None
        right = ATTENTION_OPERATIONS["running_maximum"](inputs, attributes)
        return np.maximum(right, np.float32(0))

    return maximum


def _by_the_maximum_before(inputs: Inputs, attributes: Attributes) -> Array | None:
    made = _source(inputs, "maximum", "running_maximum")
    if made is None or "before" not in made.inputs:
        return None
    return attention_weights(inputs["x"], made.inputs["before"], attributes["offset"])


def _weights_by(change: Callable[[Array, Array, int], tuple[Array, Array, int]]) -> Defective:
    def weights(inputs: Inputs, attributes: Attributes) -> Array:
        return attention_weights(*change(inputs["x"], inputs["maximum"], attributes["offset"]))

    return weights


def _weights_times(offset: int) -> Defective:
    """Make weights with another offset than the attributes'."""
    return _weights_by(lambda x, maximum, _: (x, maximum, offset))


def _powers_of_two(inputs: Inputs, attributes: Attributes) -> Array:
    shifted = inputs["x"].astype(np.float64) - inputs["maximum"]
    return np.exp2(shifted + attributes["offset"]).astype(np.float32)


def _rescaling_by_powers_of_two(inputs: Inputs, attributes: Attributes) -> Array:
    return _powers_of_two({"x": inputs["before"], "maximum": inputs["maximum"]}, {"offset": 0})


def _inverse_rescaling(inputs: Inputs, attributes: Attributes) -> Array:
    return rescaling(inputs["maximum"], inputs["before"])


# Codes


def _codes_without_offset(inputs: Inputs, attributes: Attributes) -> Array | None:
    made = _source(inputs, "x", "attention_weights")
    if made is None:
        return None
    offset = made.attributes["offset"]
    return encode(np.ldexp(inputs["x"], -offset), FORMATS[attributes["fmt"]])


def _product_of_weights(change: Callable[[Array], Array]) -> Defective:
    """Make the product of a tile's weights as numbers, and the values."""

    def product(inputs: Inputs, attributes: Attributes) -> Array | None:
        made = _source(inputs, "a", "encode")
        if made is None or _source(made.inputs, "x", "attention_weights") is None:
            return None
        values = decode(inputs["b"], FORMATS[attributes["b"]["fmt"]])
        return matmul_float32(change(made.inputs["x"]), np.ascontiguousarray(values))

    return product


# Sums of weights


def _sum_of_codes(fmt: FloatFormat) -> Defective:
    def total(inputs: Inputs, attributes: Attributes) -> Array | None:
        return None if "codes" in inputs else row_sum(decode(encode(inputs["x"], fmt), fmt))

    return total


def _sum_of_weights(inputs: Inputs, attributes: Attributes) -> Array | None:
    return row_sum(inputs["x"]) if "codes" in inputs else None


def _sum_without_offset(inputs: Inputs, attributes: Attributes) -> Array | None:
    made = _source(inputs, "x", "attention_weights")
    if made is None:
        return None
    right = ATTENTION_OPERATIONS["row_sum"](inputs, attributes)
    return np.ldexp(right, -made.attributes["offset"])


def _padded_sum(size: int | None) -> Defective:
    """Make the sum of a tile filled up to ``size`` keys, whose scores are 0."""

    def total(inputs: Inputs, attributes: Attributes) -> Array | None:
        made = _source(inputs, "x", "attention_weights")
        largest = made and _source(made.inputs, "maximum", "running_maximum")
        if made is None or largest is None or not (missing := _missing(largest.inputs, size)):
            return None
        scores = np.zeros((*inputs["x"].shape[:-1], missing), np.float32)
        empty = attention_weights(scores, made.inputs["maximum"], made.attributes["offset"])
        if "codes" in inputs:
            fmt = FORMATS[attributes["fmt"]]
            values = [decode(inputs["codes"], fmt), decode(encode(empty, fmt), fmt)]
        else:
            values = [inputs["x"], empty]
        return row_sum(np.concatenate(values, axis=-1))

    return total


# Running sums


def _running_by(change: Callable[[Array, Array, Array], Array]) -> Defective:
    def running(inputs: Inputs, attributes: Attributes) -> Array:
        given = (inputs[role] for role in ("before", "rescale", "x"))
        return np.asarray(change(*given), np.float32)

    return running


def _fused(old: Array, factor: Array, new: Array) -> Array:
    """Compute ``old factor + new`` with one rounding.

    In float64 the product is exact. If the sum is not, its last bit becomes odd, toward the exact
    sum's side: rounding it to float32 then rounds the exact sum (Boldo and Melquiond, 2008).
    """
    product, addend = np.broadcast_arrays(
        old.astype(np.float64) * factor.astype(np.float64), new.astype(np.float64)
    )
    total = product + addend
    part = total - product
    rest = (product - (total - part)) + (addend - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.copysign(np.inf, rest))
    return np.where((rest != 0) & even, odd, total).astype(np.float32)


# The result


def _result_by(change: Callable[[Array, Array, Array], Array]) -> Defective:
    def result(inputs: Inputs, attributes: Attributes) -> Array:
        given = (inputs[role] for role in ("output", "total", "v_scale"))
        return np.asarray(change(*given), np.float32)

    return result


def _without_what_cancels(inputs: Inputs, attributes: Attributes) -> Array | None:
    kernel = _kernel(inputs)
    if kernel is None:
        return None
    return np.ldexp(ATTENTION_OPERATIONS["attention"](inputs, attributes), -kernel.how.offset)


# The way over the tiles


@dataclass(frozen=True)
class _Kernel:
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


def _source(inputs: Inputs, role: str, operation: str) -> Made | None:
    """Return how an input came about if this is known, and by the operation."""
    if not isinstance(inputs, Traced):
        return None
    made = inputs.source(role)
    return made if made.operation == operation else None


def _kernel(inputs: Inputs) -> _Kernel | None:
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
    return _Kernel(
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


def _whole(compute: Callable[[_Kernel], Array | None]) -> Defective:
    """Make a whole attention that is computed in another way."""

    def attention(inputs: Inputs, attributes: Attributes) -> Array | None:
        kernel = _kernel(inputs)
        return None if kernel is None else compute(kernel)

    return attention


def _attended(kernel: _Kernel, v_scale_by_tile: bool = False) -> Float32Array:
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


def _scaled_by_tile(kernel: _Kernel) -> Float32Array:
    return _attended(kernel, v_scale_by_tile=True)


def _weights_in(fmt: FloatFormat, other: FloatFormat) -> Defective:
    def attention(kernel: _Kernel) -> Array | None:
        return _attended(replace(kernel, fmt=other)) if kernel.fmt == fmt else None

    return _whole(attention)


def _normalized_first(divide: Callable[[Array, Array], Array], with_offset: bool) -> Defective:
    """Make an attention whose weights, in one tile, are divided by their sum and then rounded."""

    def attention(kernel: _Kernel) -> Array:
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

    def attention(kernel: _Kernel) -> Array | None:
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


def _padded(size: int | None) -> Callable[[_Kernel], Array | None]:
    """Make an attention whose keys are filled up to whole tiles with zeros that count."""

    def attention(kernel: _Kernel) -> Array | None:
        missing = _missing_keys(kernel, size)
        return _filled_up(kernel, missing, 0.0) if missing else None

    return attention


def _missing_keys(kernel: _Kernel, size: int | None) -> int:
    """Return how many keys the last tile lacks; None is the first tile's size."""
    return -sum(map(len, kernel.tiles)) % (size or len(kernel.tiles[0]))


def _filled_up(kernel: _Kernel, missing: int, score: float) -> Float32Array:
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
    kernel, found = _kernel(inputs), inputs.get(FOUND)
    if kernel is None:
        return None
    counts = dict.fromkeys(filter(None, (_missing_keys(kernel, size) for size in _WHOLE)))
    made: Float32Array | None = None
    for missing in counts:
        if found is None:
            return _filled_up(kernel, missing, -1.0)
        for score in _scores_of_padding(kernel, inputs, missing):
            made = _filled_up(kernel, missing, score)
            if np.array_equal(made, found):
                return made
    return made


def _scores_of_padding(kernel: _Kernel, inputs: Inputs, missing: int) -> list[float]:
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

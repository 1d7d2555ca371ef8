"""The typical defects of a fused attention: in a step of a tile, and in the way over the tiles.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them. Those of
the way over the tiles are in :mod:`bert_numpy.kit.tile_defects`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bert_numpy.kit.attention_operations import ATTENTION_OPERATIONS, Attributes, Inputs
from bert_numpy.kit.operand_defects import Defective, Named
from bert_numpy.kit.tile_defects import (
    WHOLE_TILES,
    kernel_of,
    made_by,
    normalized_first,
    tile_defects,
    weights_in,
)
from bert_numpy.quantization.tiled_attention import (
    attention_weights,
    rescaling,
    row_sum,
)
from npfp8 import E4M3FN, E5M2, decode, encode, matmul_float32
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat

__all__ = ["attention_defects"]

_ONE = np.float32(1)


def attention_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield from _score_defects()
    yield from _weight_defects()
    yield from _code_defects()
    yield from _total_defects()
    yield from _running_defects()
    yield from _result_defects()
    yield from tile_defects()


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
    for size in WHOLE_TILES:
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
        yield f"weights in {other} instead of {fmt}", {"attention": weights_in(fmt, other)}
    for divide in (lambda p, total: p / total, lambda p, total: p * (_ONE / total)):
        for with_offset in (False, True):
            yield (
                "weights rounded to codes after the division by their sum",
                {"attention": normalized_first(divide, with_offset)},
            )


def _total_defects() -> Iterator[Named]:
    for fmt in (E4M3FN, E5M2):
        yield "sum of the weights' codes", {"row_sum": _sum_of_codes(fmt)}
    yield "sum of the weights before they become codes", {"row_sum": _sum_of_weights}
    yield "offset in the weights, but not in their sum", {"row_sum": _sum_without_offset}
    for size in WHOLE_TILES:
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
        made = made_by(inputs, "before", "running_maximum") if "before" in inputs else None
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
    made = made_by(inputs, "maximum", "running_maximum")
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
    made = made_by(inputs, "x", "attention_weights")
    if made is None:
        return None
    offset = made.attributes["offset"]
    return encode(np.ldexp(inputs["x"], -offset), FORMATS[attributes["fmt"]])


def _product_of_weights(change: Callable[[Array], Array]) -> Defective:
    """Make the product of a tile's weights as numbers, and the values."""

    def product(inputs: Inputs, attributes: Attributes) -> Array | None:
        made = made_by(inputs, "a", "encode")
        if made is None or made_by(made.inputs, "x", "attention_weights") is None:
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
    made = made_by(inputs, "x", "attention_weights")
    if made is None:
        return None
    right = ATTENTION_OPERATIONS["row_sum"](inputs, attributes)
    return np.ldexp(right, -made.attributes["offset"])


def _padded_sum(size: int | None) -> Defective:
    """Make the sum of a tile filled up to ``size`` keys, whose scores are 0."""

    def total(inputs: Inputs, attributes: Attributes) -> Array | None:
        made = made_by(inputs, "x", "attention_weights")
        largest = made and made_by(made.inputs, "maximum", "running_maximum")
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
    kernel = kernel_of(inputs)
    if kernel is None:
        return None
    return np.ldexp(ATTENTION_OPERATIONS["attention"](inputs, attributes), -kernel.how.offset)

"""The operations of a kit: each tensor is the result of one operation.

A kit's manifest names, for each tensor, its operation, the operation's inputs
and its attributes. Each operation is defined twice: in words
(:data:`RULES`, which the manifest holds) for a reader without Python, and here
as a function ``(inputs, attributes) -> array`` over arrays of float32 (also for bfloat16
numbers), codes or integers. All arithmetic is :mod:`npfp8`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bert_numpy.kit.attention_operations import ATTENTION_OPERATIONS, ATTENTION_RULES
from bert_numpy.kit.block_operations import BLOCK_OPERATIONS, BLOCK_RULES
from npfp8 import QuantizedTensor, decode, encode, golden, matmul, matmul_float32, quantize
from npfp8.arrays import Array, chunks
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS
from npfp8.products import ACCUMULATORS, matmul_16bit, scaled_product
from npfp8.scaling import dynamic_scale, spread

__all__ = ["OPERATIONS", "RULES", "Attributes", "Inputs", "operand"]

Inputs = Mapping[str, Array]
Attributes = Mapping[str, Any]
Operation = Callable[[Inputs, Attributes], Array]


def _encode(inputs: Inputs, attributes: Attributes) -> Array:
    fmt = FORMATS[attributes["fmt"]]
    return encode(
        inputs["x"],
        fmt,
        attributes["saturate"],
        rounding=attributes.get("rounding", "nearest"),
        overflow=attributes.get("overflow", "ieee"),
    )


def _decode(inputs: Inputs, attributes: Attributes) -> Array:
    return decode(inputs["codes"], FORMATS[attributes["fmt"]])


def _dynamic_scale(inputs: Inputs, attributes: Attributes) -> tuple[Array, Array | None]:
    return dynamic_scale(
        inputs["x"],
        FORMATS[attributes["fmt"]],
        attributes.get("axis"),
        attributes.get("block"),
        attributes.get("power_of_two", False),
    )


def _scale(inputs: Inputs, attributes: Attributes) -> Array:
    return _dynamic_scale(inputs, attributes)[0]


def _zero_point(inputs: Inputs, attributes: Attributes) -> Array:
    zero_point = _dynamic_scale(inputs, attributes)[1]
    assert zero_point is not None
    return zero_point


def _quantize(inputs: Inputs, attributes: Attributes) -> Array:
    return quantize(
        inputs["x"],
        FORMATS[attributes["fmt"]],
        inputs["scale"],
        attributes.get("axis"),
        attributes.get("block"),
        inputs.get("zero_point"),
    ).codes


def operand(name: str, inputs: Inputs, attributes: Attributes) -> QuantizedTensor:
    """Make the operand of a role, "a" or "b" of a product or "x"; its default scale is 1."""
    how = attributes[name]
    codes, fmt = inputs[name], FORMATS[how["fmt"]]
    axis, block = how.get("axis"), how.get("block")
    zero_point = inputs.get(f"{name}_zero_point")
    scale = inputs.get(f"{name}_scale")
    if scale is None and zero_point is not None:
        scale = np.ones(zero_point.shape, np.float32)
    if scale is None:
        return QuantizedTensor(codes, np.float32(1), fmt)
    return QuantizedTensor(codes, scale, fmt, axis, zero_point, block)


def _sum(inputs: Inputs, attributes: Attributes) -> Array:
    a, b = (operand(name, inputs, attributes) for name in ("a", "b"))
    accumulate, block = attributes.get("accumulate", "exact"), attributes.get("block")
    if block is None:
        return matmul(a, b, accumulate)
    how, one = ACCUMULATORS[accumulate], np.ones((), np.float32)
    how.check(a.fmt, b.fmt, block)
    runs = chunks(a.shape[-1], block)
    return np.stack([scaled_product(a, b, ks, how, one, one) for ks in runs])


def _spread(scale: Array, how: Mapping[str, Any], k_axis: int, ndim: int, part: int) -> Array:
    """Reshape a scale to broadcast against the product, with K an axis of length 1."""
    if how.get("axis") is None:
        return scale
    if how.get("block") is not None:
        return scale.take([part], axis=k_axis)
    return scale.reshape([-1 if i == how["axis"] % ndim else 1 for i in range(ndim)])


def _scale_sum(inputs: Inputs, attributes: Attributes) -> Array:
    sums = inputs["sum"]
    parts = [sums] if attributes.get("block") is None else list(sums)
    total: Array | None = None
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for i, part in enumerate(parts):
            scales = [
                _spread(
                    inputs[f"{name}_scale"], attributes[name], k_axis, attributes[name]["ndim"], i
                )
                for name, k_axis in (("a", -1), ("b", -2))
            ]
            product = part * (scales[0] * scales[1])
            total = product if total is None else total + product
        assert total is not None
        if "bias" in inputs:
            total = total + inputs["bias"]
    return np.asarray(total, np.float32)


def _product(inputs: Inputs, attributes: Attributes) -> Array:
    a, b = (np.ascontiguousarray(inputs[name]) for name in ("a", "b"))
    if "accumulate" in attributes:
        a, b = round_to_bfloat16(a), round_to_bfloat16(b)
    how = attributes.get("accumulate", "exact")
    total = matmul_float32(a, b) if how == "exact" else matmul_16bit(a, b, how)
    if "bias" in inputs:
        with np.errstate(over="ignore", invalid="ignore"):
            total += inputs["bias"]
    return total


def _dequantize(inputs: Inputs, attributes: Attributes) -> Array:
    how = attributes["x"]
    if "scale_fmt" not in how:
        return operand("x", inputs, attributes).dequantize()
    x = inputs["x"]
    scale = spread(inputs["x_scale"], x.shape, how["axis"], how["block"])
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return decode(x, FORMATS[how["fmt"]]) * scale


def _add_float32(inputs: Inputs, attributes: Attributes) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        total = inputs["x"] + inputs["y"]
        return np.asarray(total + inputs["bias"] if "bias" in inputs else total)


def _round(inputs: Inputs, attributes: Attributes) -> Array:
    return round_to_bfloat16(inputs["x"])


def _divide(inputs: Inputs, attributes: Attributes) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        quotient = inputs["x"] / inputs["divisor"]
    return round_to_bfloat16(quotient) if attributes["precision"] == "bfloat16" else quotient


def _outliers(inputs: Inputs, attributes: Attributes) -> Array:
    x = inputs["x"]
    beyond = np.abs(x) > np.float32(attributes["threshold"])
    if "rows" in attributes:
        rows = beyond[..., attributes["rows"], :]
        beyond = np.broadcast_to(rows.any(axis=-2, keepdims=True), x.shape)
    return np.where(beyond if attributes["keep"] == "outliers" else ~beyond, x, np.float32(0))


def _pool(mode: str) -> Operation:
    def pool(inputs: Inputs, attributes: Attributes) -> Array:
        x = inputs["x"]
        weights = np.asarray(attributes.get("weights", 1))
        return golden.pool(mode, x, np.broadcast_to(weights, x.shape[:-1]))

    return pool


#: The operations by name. "given", for inputs from the kit, is not among them.
OPERATIONS: dict[str, Operation] = {
    "output": lambda x, how: x["x"],
    "encode": _encode,
    "decode": _decode,
    "scale": _scale,
    "zero_point": _zero_point,
    "quantize": _quantize,
    "sum": _sum,
    "scale_sum": _scale_sum,
    "product": _product,
    "dequantize": _dequantize,
    "add_float32": _add_float32,
    "round": _round,
    "divide": _divide,
    "outliers": _outliers,
    "add": lambda x, how: golden.add(x["x"], x["y"], how["precision"]),
    "multiply": lambda x, how: golden.multiply(x["x"], np.float32(how["factor"]), how["precision"]),
    "softmax": lambda x, how: golden.softmax(x["x"], how["precision"]),
    "layer_norm": lambda x, how: golden.layer_norm(
        x["x"], x["weight"], x["bias"], how["eps"], how["precision"]
    ),
    "activation": lambda x, how: golden.unary(how["function"], x["x"], how["precision"]),
    "mean": lambda x, how: golden.mean(x["x"], how["precision"]),
    "mean_sqrt_len_tokens": _pool("mean_sqrt_len_tokens"),
    "weightedmean": _pool("weightedmean"),
    "max": _pool("max"),
    "lasttoken": _pool("lasttoken"),
    "concatenate": lambda x, how: np.concatenate([x[name] for name in sorted(x)], axis=-1),
    "normalize": lambda x, how: golden.normalize(x["x"], how["precision"]),
    **BLOCK_OPERATIONS,
    **ATTENTION_OPERATIONS,
}

_EXACT = "docs/golden.md, Quantized products are exact"
_SUMS = "docs/golden.md, Sums"
_FUNCTIONS = "docs/golden.md, Functions"
_CODEC = "docs/codec.md, Rounding is comparing with boundaries"

#: Each operation in words, and the page that explains its arithmetic.
RULES: dict[str, tuple[str, str]] = {
    "given": ("an input: take it from the kit", "docs/kit.md"),
    "output": ("x, under the name that transformers has for it", "docs/kit.md"),
    "encode": (
        "the code of each number, rounded once as rounding says (nearest: ties to the even "
        "significand); with saturate, what is beyond the largest finite value becomes it; else "
        "it overflows as IEEE 754 has it for the rounding, or with overflow special to infinity "
        "or NaN",
        _CODEC,
    ),
    "decode": ("the value of each code", _CODEC),
    "scale": (
        "float32(largest magnitude / fmt.max) of each group of elements that share a scale, 1 "
        "where that is 0; with a zero point float32((high - low) / 255), low <= 0 <= high",
        "docs/kit.md",
    ),
    "zero_point": ("-round(low / scale), clipped to the codes", "docs/kit.md"),
    "quantize": (
        "encode(x / scale), saturating: one float32 division, one rounding; with a zero point "
        "round(x / scale) + zero_point, clipped",
        "docs/golden.md, Quantized products are exact",
    ),
    "sum": (
        "over k of (a[m, k] - a_zero_point) * (b[k, n] - b_zero_point), values of codes without "
        "scales: the exact sum rounded once to float32, to nearest even; with block one such sum "
        "for each run of so many k, stacked; with accumulate, what that accumulator makes of it",
        _EXACT,
    ),
    "scale_sum": (
        "sum * float32(a_scale * b_scale), the parts of blocks so scaled and added from the first "
        "to the last, then + bias: one float32 rounding each",
        _EXACT,
    ),
    "product": (
        "of float32 matrices, the exact sum rounded once to float32; with accumulate, of the "
        "matrices rounded to bfloat16, what that accumulator makes of it; then + bias, in float32",
        "docs/golden.md, Other products are correctly rounded",
    ),
    "dequantize": ("value of the code times scale, rounded once to float32", _EXACT),
    "add_float32": ("x + y, then + bias, one float32 rounding each", _EXACT),
    "round": ("float32 to bfloat16, to nearest even", _EXACT),
    "divide": ("x / divisor, rounded to the precision", "docs/kit.md"),
    "outliers": (
        "x where its magnitude is above the threshold (keep: outliers) or is not (keep: others), "
        "0 elsewhere; with rows, in the whole of a column that is above it in one of these rows",
        "docs/kit.md",
    ),
    "add": ("x + y, rounded once to the precision", _FUNCTIONS),
    "multiply": ("x * factor, a float32 number, rounded once to the precision", _FUNCTIONS),
    "softmax": (
        "over the last axis, exp(x - max) / sum, in float64, rounded once to the precision",
        _SUMS,
    ),
    "layer_norm": (
        "over the last axis, (x - mean) / sqrt(variance + eps) * weight + bias in float64, "
        "rounded once to the precision",
        _SUMS,
    ),
    "activation": ("the function, correctly rounded to bfloat16, or to float32", _FUNCTIONS),
    "mean": ("over the axis before the last, in float64, rounded once", _SUMS),
    "mean_sqrt_len_tokens": (
        "over the axis before the last, the sum over the square root of its length, in float64, "
        "rounded once",
        _SUMS,
    ),
    "weightedmean": (
        "over the axis before the last, the sum of x * weights over that of the weights, in "
        "float64, rounded once",
        _SUMS,
    ),
    "max": ("the largest along the axis before the last; of two zeros +0", _SUMS),
    "lasttoken": ("the last along the axis before the last", _SUMS),
    "concatenate": ("x0, x1, ... side by side, along the last axis", "docs/kit.md"),
    "normalize": ("over the last axis, x / max(norm, 1e-12) in float64, rounded once", _SUMS),
    **BLOCK_RULES,
    **ATTENTION_RULES,
}

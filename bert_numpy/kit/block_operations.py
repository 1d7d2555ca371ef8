"""The operations of block formats: scales that are codes, and the products of their operands.

Attributes describe a block format by its fields: ``fmt`` (the elements), ``block``,
``scale_fmt``, ``rule``, and ``tensor_scale`` where the format has one; and ``axis``, the axis
of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from npfp8 import BlockFormat, QuantizedTensor, encode, matmul
from npfp8.arrays import Array, Float32Array
from npfp8.blocks import PowerRule
from npfp8.blocks.layouts import (
    BLOCK_LAYOUTS,
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    pack_blocks,
    pack_codes,
    pack_scales,
    unpack_codes,
    unpack_scales,
)
from npfp8.blocks.quantize import (
    BlockCodes,
    block_scales,
    quantize_blocks,
    tensor_multiplier,
)
from npfp8.codec.tables import values_of
from npfp8.formats import FORMATS, FloatFormat, Format, IntFormat
from npfp8.scaling import spread

__all__ = [
    "BLOCK_OPERATIONS",
    "BLOCK_RULES",
    "block_format",
    "block_operand",
    "described",
    "encoded",
    "multiplier",
    "rules_in_words",
    "scaled_numbers",
]

Inputs = Mapping[str, Array]
Attributes = Mapping[str, Any]

_ONE = np.float32(1)


def block_format(attributes: Attributes) -> BlockFormat:
    """Return the block format that attributes describe.

    Raises
    ------
    ValueError
        If there is no such block format.
    """
    return _block_format(
        *(attributes[key] for key in ("fmt", "block", "scale_fmt", "rule")),
        attributes.get("tensor_scale", False),
    )


@lru_cache(maxsize=256)
def _block_format(
    element: str, block: int, scale_fmt: str, rule: str, tensor_scale: bool
) -> BlockFormat:
    scale = FORMATS[scale_fmt]
    assert isinstance(scale, FloatFormat)
    return BlockFormat(FORMATS[element], block, scale, rule, tensor_scale)


def described(fmt: BlockFormat, axis: int, **more: Any) -> dict[str, Any]:
    """Describe a block format and the axis of its blocks, as attributes."""
    how: dict[str, Any] = {
        "fmt": str(fmt.element),
        "axis": axis,
        "block": fmt.block,
        "scale_fmt": str(fmt.scale_format),
        "rule": fmt.rule,
    }
    return how | ({"tensor_scale": True} if fmt.tensor_scale else {}) | more


def _quantized(inputs: Inputs, attributes: Attributes) -> BlockCodes:
    x = inputs["x"]
    return quantize_blocks(
        x,
        block_format(attributes),
        range(x.ndim)[attributes["axis"]],
        attributes.get("source", "float32"),
        inputs.get("tensor_scale"),
    )


def _tensor_scale(inputs: Inputs, attributes: Attributes) -> Array:
    number = _quantized(inputs, attributes).tensor_scale
    assert number is not None
    return number


def _scale_codes(inputs: Inputs, attributes: Attributes) -> Array:
    return _quantized(inputs, attributes).scale_codes


def scaled_numbers(inputs: Inputs, attributes: Attributes) -> Float32Array:
    """Return the numbers whose codes are those of the elements: x over its block's scale."""
    fmt, x, axis = block_format(attributes), inputs["x"], attributes["axis"]
    values = values_of(inputs["scale_codes"], fmt.scale_format, np.dtype(np.float32))
    how = fmt.how
    with np.errstate(all="ignore"):
        if isinstance(how, PowerRule):
            scaled = x / spread(values, x.shape, axis, fmt.block)  # exact
        else:
            limits = fmt.element.max, fmt.scale_format.max
            factor = how.factor(values, inputs.get("tensor_scale"), *limits)
            factor = spread(factor, x.shape, axis, fmt.block)
            scaled = x / factor if how.divide else x * factor
    return np.asarray(scaled, np.float32)


def _block_codes(inputs: Inputs, attributes: Attributes) -> Array:
    """Return the codes by the rule; where a scale is not the rule's, those of the quotients."""
    fmt, x, scale_codes = block_format(attributes), inputs["x"], inputs["scale_codes"]
    right = _quantized(inputs, attributes)
    own = spread(right.scale_codes == scale_codes, x.shape, attributes["axis"], fmt.block)
    if own.all():
        return right.codes
    roundings = fmt.how.roundings if isinstance(fmt.how, PowerRule) else {}
    rounding = roundings.get(fmt.element, "nearest")
    numbers = np.where(own, np.float32(0), scaled_numbers(inputs, attributes))
    return np.where(own, right.codes, encoded(numbers, fmt.element, rounding))


def encoded(numbers: Array, element: Format, rounding: str = "nearest") -> Array:
    """Return the codes of numbers; that of 0 for a NaN if the format has none."""
    if isinstance(element, IntFormat) or element.nan_code is None:
        numbers = np.where(np.isnan(numbers), np.float32(0), numbers)
    return encode(numbers, element, rounding=rounding)


def _block_scales(inputs: Inputs, attributes: Attributes) -> Array:
    return block_scales(inputs["scale_codes"], inputs.get("tensor_scale"), block_format(attributes))


def block_operand(name: str, inputs: Inputs, attributes: Attributes) -> QuantizedTensor:
    """Make the operand of a role, "a" or "b", with the scales that belong to the sum."""
    how, codes = attributes[name], inputs[name]
    axis, block = how.get("axis"), how.get("block")
    if "scale_fmt" not in how:
        zero_point = inputs.get(f"{name}_zero_point")
        if block is None:
            shape = () if axis is None else (codes.shape[axis],)
            scale = np.ones(shape, np.float32)
        else:
            scale = inputs[f"{name}_scale"]
        return QuantizedTensor(codes, scale, FORMATS[how["fmt"]], axis, zero_point, block)
    fmt = block_format({**how, "tensor_scale": False})
    return QuantizedTensor(
        codes,
        None,  # type: ignore[arg-type]  # computed from the codes
        fmt.element,
        axis,
        scale_codes=inputs[f"{name}_scale_codes"],
        block_format=fmt,
    )


def _block_sum(inputs: Inputs, attributes: Attributes) -> Array:
    a, b = (block_operand(name, inputs, attributes) for name in ("a", "b"))
    return matmul(a, b, attributes.get("accumulate", "exact"))


def multiplier(name: str, inputs: Inputs, attributes: Attributes) -> Array:
    """Return the float32 number, or one per row or column, by which an operand's sums are scaled.

    It broadcasts against the sums.
    """
    how = attributes[name]
    if (scale := inputs.get(f"{name}_scale")) is not None:
        axis, ndim = how.get("axis"), how["ndim"]
        if axis is None:
            return scale
        return scale.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])
    number = inputs.get(f"{name}_tensor_scale")
    if number is None:
        return np.ones((), np.float32)
    return tensor_multiplier(number, block_format(how))


def _block_product(inputs: Inputs, attributes: Attributes) -> Array:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scale = multiplier("a", inputs, attributes) * multiplier("b", inputs, attributes)
        product = inputs["sum"] * scale
        return np.asarray(product + inputs["bias"] if "bias" in inputs else product, np.float32)


def _pack_codes(inputs: Inputs, attributes: Attributes) -> Array:
    return pack_codes(inputs["codes"], attributes["fmt"], attributes["layout"])


def _unpack_codes(inputs: Inputs, attributes: Attributes) -> Array:
    fmt, layout = attributes["fmt"], attributes["layout"]
    return unpack_codes(inputs["bytes"], fmt, attributes["length"], layout)


def _pack_scales(inputs: Inputs, attributes: Attributes) -> Array:
    return pack_scales(inputs["codes"], attributes["layout"])


def _unpack_scales(inputs: Inputs, attributes: Attributes) -> Array:
    return unpack_scales(inputs["codes"], tuple(attributes["shape"]), attributes["layout"])


def _pack_blocks(inputs: Inputs, attributes: Attributes) -> Array:
    fmt, layout = block_format(attributes), attributes["layout"]
    return pack_blocks(inputs["codes"], inputs["scale_codes"], fmt, layout, attributes["axis"])


def rules_in_words(attributes: Iterable[Attributes]) -> dict[str, dict[str, str]]:
    """Describe the rules and the layouts that attributes of operations name, for a manifest."""
    rules: dict[str, str] = {}
    layouts: dict[str, str] = {}
    known: dict[str, Any] = {**CODE_LAYOUTS, **SCALE_LAYOUTS, **BLOCK_LAYOUTS}
    for given in attributes:
        for how in (given, *(part for part in given.values() if isinstance(part, Mapping))):
            if "scale_fmt" in how:
                rule = block_format(how).how
                rules[f"{rule.name}, scales {how['scale_fmt']}"] = rule.description
        if "layout" in given:
            layouts[given["layout"]] = known[given["layout"]].description
    found = {"rules": rules, "layouts": layouts}
    return {name: dict(sorted(words.items())) for name, words in found.items() if words}


#: The operations by name.
BLOCK_OPERATIONS: dict[str, Callable[[Inputs, Attributes], Array]] = {
    "tensor_scale": _tensor_scale,
    "scale_codes": _scale_codes,
    "block_codes": _block_codes,
    "block_scales": _block_scales,
    "block_sum": _block_sum,
    "block_product": _block_product,
    "pack_codes": _pack_codes,
    "unpack_codes": _unpack_codes,
    "pack_scales": _pack_scales,
    "unpack_scales": _unpack_scales,
    "pack_blocks": _pack_blocks,
}

_FORMATS = "docs/block-formats.md"
_PRODUCTS = "docs/block-products.md"
_LAYOUTS = "docs/block-layouts.md"

#: Each operation in words, and the page that explains its arithmetic.
BLOCK_RULES: dict[str, tuple[str, str]] = {
    "tensor_scale": (
        "the float32 number that the rule stores for the tensor, from its largest magnitude",
        _FORMATS,
    ),
    "scale_codes": (
        "the code of the scale of each block, by the rule, from the block's largest magnitude "
        "and the tensor's number; blocks are runs of so many elements along the axis, the last "
        "may be shorter. In a rule's words, a or b is the block's largest magnitude, g the "
        "tensor's, s the scale, M and L the largest values of the formats of elements and "
        "scales, m the mantissa bits of elements, and emax is floor(log2 M). An exponent is "
        "clamped to those of the scales' codes, for a block of zeros to the smallest",
        _FORMATS,
    ),
    "block_codes": (
        "the code of each x over its block's scale, as the rule computes the quotient, rounded "
        "once to nearest, ties as the rule has it, saturating",
        _FORMATS,
    ),
    "block_scales": (
        "the float32 scale of each block: the value of its code, and with a tensor scale this "
        "times it, or divided by it, as the rule has it; it may be subnormal, 0 or NaN",
        _FORMATS,
    ),
    "block_sum": (
        "over k of a[m, k] * a_scale[m, k] * b[k, n] * b_scale[k, n], values of codes and of "
        "scale codes, without scales that are the same for all k: the exact sum rounded once to "
        "float32, to nearest even; with accumulate, what that accumulator makes of it",
        _PRODUCTS,
    ),
    "block_product": (
        "sum * float32(a's number * b's number), then + bias, one float32 rounding each; an "
        "operand's number is its scale, or the factor that its tensor scale stands for: by the "
        "rule itself, float32(1 / it), or it / (M L), or 1 if it has none",
        _PRODUCTS,
    ),
    "pack_codes": (
        "bytes that hold the codes along the last axis, by the layout; the last group of codes is "
        "filled up with code 0",
        _LAYOUTS,
    ),
    "unpack_codes": ("so many codes along the last axis, from bytes by the layout", _LAYOUTS),
    "pack_scales": (
        "the codes of scales, a row for each row of the tensor, in the order of the layout; rows "
        "and blocks are filled up with code 0 to whole tiles",
        _LAYOUTS,
    ),
    "unpack_scales": ("the codes of scales row by row, from the order of the layout", _LAYOUTS),
    "pack_blocks": (
        "for each block a byte, the exponent of its scale in two's complement, then its codes by "
        "the layout",
        _LAYOUTS,
    ),
}

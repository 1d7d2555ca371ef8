"""The typical defects of a backend for block formats: wrong rules, and scales of other blocks.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bert_numpy.kit.block_operations import (
    BLOCK_OPERATIONS,
    Attributes,
    Inputs,
    block_format,
    block_operand,
    encoded,
    multiplier,
    scaled_numbers,
)
from bert_numpy.kit.block_scale_defects import block_scale_defects
from bert_numpy.kit.operand_defects import FOUND, Defective, Named, operand_defects
from npfp8 import (
    ACCUMULATORS,
    E8M0FNU,
    POWER_RULES,
    RATIO_RULES,
    BlockFormat,
    decode,
    encode,
)
from npfp8.arrays import Array
from npfp8.blocks import RatioRule
from npfp8.blocks.layouts import SCALE_LAYOUTS, pack_scales, unpack_scales
from npfp8.formats import FORMATS
from npfp8.scaling import group_extrema, spread

__all__ = ["FOUND", "PLAIN_RULES", "Defective", "block_defects"]

#: The rules for powers of two that are no party's.
PLAIN_RULES = ("floor", "rceil", "ceil", "even", "trunc")


#: The layouts of codes that fill bytes, with what they mean for FP4.
_NIBBLES = {
    "low-first": " (the low nibble first)",
    "high-first": " (the high nibble first)",
    "split": "",
}


def block_defects(operations: Mapping[str, Defective]) -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once.

    Parameters
    ----------
    operations : mapping
        The operations as they are right.
    """
    yield from _tensor_scale_defects()
    for rule in {**POWER_RULES, **RATIO_RULES}:
        named = ("tensor_scale", "scale_codes", "block_codes", "block_scales", "block_product")
        yield f"the rule {rule}", {name: _by_rule(name, rule) for name in named}
    writing = ("tensor_scale", "scale_codes", "block_codes")
    rule = "compressed-tensors"  # whose scales depend on the type of the numbers
    changed = {name: _by_rule(name, rule, source="bfloat16") for name in writing}
    yield f"the rule {rule} computed in bfloat16", changed
    for source in ("float32", "float16", "bfloat16"):
        yield f"scales computed in {source}", {name: _in_type(name, source) for name in writing}
    yield from _element_defects()
    yield from _scale_defects(operations)
    yield from _layout_defects(operations)
    yield from block_scale_defects()
    yield from operand_defects(operations)
    for accumulator in ACCUMULATORS.values():
        if accumulator.reproducible and accumulator.scales_along_k:
            yield accumulator.description, {"block_sum": _accumulated(accumulator.name)}
    yield "float32 accumulation, one product after the other", {"block_sum": _in_order}
    yield "bias left out", {"block_product": _without_bias}
    yield "bias added before scaling", {"block_product": _bias_first}
    for order in (("a", "b"), ("b", "a")):
        name = "scales multiplied one after the other"
        yield name, {"block_product": _one_after_the_other(order)}


def _element_defects() -> Iterator[Named]:
    yield "multiplication by the reciprocal of the scale", {"block_codes": _times_reciprocal}
    yield "ties rounded away from zero", {"block_codes": _rounded("nearest_away")}
    yield "ties rounded toward zero", {"block_codes": _rounded("nearest_toward_zero")}
    yield "truncation", {"block_codes": _rounded("toward_zero")}


def _scale_defects(operations: Mapping[str, Defective]) -> Iterator[Named]:
    yield "zero blocks with a scale of 1", {"scale_codes": _zero_is_one}
    yield "blocks along another axis", {"scale_codes": _other_axis, "block_codes": _along_other}
    for block in (8, 16, 32, 64, 128):
        reading = {name: _reread(operations[name], block) for name in ("dequantize", "block_sum")}
        yield f"blocks of {block}", {"block_codes": _whole(block=block), **reading}
    for neighbour in (_shifted(1), _shifted(-1), _clamped(1), _clamped(-1)):
        yield from _everywhere("scales of the neighbouring blocks", operations, neighbour)
    for by in (1, -1):
        yield from _everywhere("scales of the neighbouring rows", operations, _other_row(by))
    yield "scales of blocks left out", _unscaled(operations)
    for operand in ("a", "b"):
        name = "scales of blocks left out"
        yield name, {"block_sum": _unscaled_sum(operations, (operand,))}
    for off in (127, 1, -1):
        name = "the bias of E8M0 left out" if off == 127 else f"a bias of E8M0 of {127 - off}"
        yield name, _bias(off)
    yield "the bias of E8M0 left out", {"block_scales": _signed_exponents}


def _tensor_scale_defects() -> Iterator[Named]:
    for operands in (("a", "b"), ("a",), ("b",)):
        yield "tensor scale inverted", _tensor_scale_by(_inverse, operands)
        yield "tensor scale left out", _tensor_scale_by(_left_out, operands)
    yield "tensor scale inverted", {"block_scales": _divided_scales, "block_product": _divided}


def _layout_defects(operations: Mapping[str, Defective]) -> Iterator[Named]:
    for layout in SCALE_LAYOUTS:
        packing = {name: _with(name, layout=layout) for name in ("pack_scales", "unpack_scales")}
        yield f"scales in the layout {layout}", packing
        for order in (_packed(layout), _unpacked(layout)) if layout != "linear" else ():
            yield from _laid_out(f"scales in the layout {layout}", operations, order)
    yield from _laid_out("scales in the order of columns", operations, _by_columns)
    for layout, meaning in _NIBBLES.items():
        packing = {name: _with(name, layout=layout) for name in ("pack_codes", "unpack_codes")}
        yield f"codes in the layout {layout}{meaning}", packing
    for shift in (0, 4):
        yield "codes elsewhere in bytes of their own", {"pack_codes": _shifted_codes(shift)}


def _by_rule(operation: str, rule: str, **more: str) -> Defective:
    """Make an operation by another rule.

    A candidate that has what a plain rule for powers of two makes is said to follow that, not
    a party's; and one that has what a rule makes in float32 not to compute in bfloat16.
    """
    change = _with(operation, **{"rule": rule, **more})

    def plainer(attributes: Attributes) -> Iterator[Defective]:
        if more:
            yield _with(operation, rule=rule)
        party = attributes.get("rule") in POWER_RULES and rule not in PLAIN_RULES
        if party and block_format(attributes).powers_of_two:
            yield from (_with(operation, rule=plain) for plain in PLAIN_RULES)

    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        found = change(inputs, attributes)
        if found is None or FOUND not in inputs:
            return found
        others = plainer(attributes)
        return None if any(_equals(x, inputs, attributes, found) for x in others) else found

    return function


def _equals(other: Defective, inputs: Inputs, attributes: Attributes, found: Array) -> bool:
    try:
        x = other(inputs, attributes)
    except ValueError:  # this rule does not take these numbers
        return False
    return x is not None and np.array_equal(x, found)


def _in_type(operation: str, source: str) -> Defective:
    """Make an operation of numbers that are taken to be of another type."""

    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("source", "float32") == source:
            return None
        return BLOCK_OPERATIONS[operation](inputs, {**attributes, "source": source})

    return function


def _with(operation: str, **changes: Any) -> Defective:
    """Make an operation with other attributes, also of its operands."""

    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        changed = dict(attributes)
        for name in ("a", "b") if operation == "block_product" else ("",):
            described = changed[name] if name else changed
            if "rule" in described or "rule" not in changes:
                changed |= {name: described | changes} if name else changes
        return None if changed == attributes else BLOCK_OPERATIONS[operation](inputs, changed)

    return function


def _whole(**changes: Any) -> Defective:
    """Make codes with other attributes, by the scales that these give."""

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        how = {**attributes, **changes}
        if how == attributes:
            return None
        scales = BLOCK_OPERATIONS["scale_codes"](inputs, how)
        return BLOCK_OPERATIONS["block_codes"]({**inputs, "scale_codes": scales}, how)

    return codes


# Elements


def _times_reciprocal(inputs: Inputs, attributes: Attributes) -> Array:
    fmt, x = block_format(attributes), inputs["x"]
    scale = BLOCK_OPERATIONS["block_scales"](inputs, attributes)
    factor = spread(np.float32(1) / scale, x.shape, attributes["axis"], fmt.block)
    return encoded(np.asarray(x * factor, np.float32), fmt.element)


def _rounded(rounding: str) -> Defective:
    def codes(inputs: Inputs, attributes: Attributes) -> Array:
        numbers = scaled_numbers(inputs, attributes)
        return encoded(numbers, block_format(attributes).element, rounding)

    return codes


def _shifted_codes(shift: int) -> Defective:
    def packed(inputs: Inputs, attributes: Attributes) -> Array | None:
        return inputs["codes"] << shift if attributes["layout"] == "ptx" else None

    return packed


# Scales of blocks


def _zero_is_one(inputs: Inputs, attributes: Attributes) -> Array:
    fmt = block_format(attributes)
    low, high = group_extrema(inputs["x"], attributes["axis"], fmt.block)
    one = encode(np.ones((), np.float32), fmt.scale_format)
    codes = BLOCK_OPERATIONS["scale_codes"](inputs, attributes)
    return np.where((low == 0) & (high == 0), one, codes)


def _across(inputs: Inputs, attributes: Attributes) -> dict[str, Any]:
    """Return the attributes with the other one of the last two axes."""
    ndim = inputs["x"].ndim
    last = range(ndim)[attributes["axis"]] == ndim - 1
    return {**attributes, "axis": ndim - 2 if last else ndim - 1}


def _along_other(inputs: Inputs, attributes: Attributes) -> Array | None:
    if inputs["x"].ndim < 2:
        return None
    return _whole(**_across(inputs, attributes))(inputs, attributes)


def _other_axis(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Compute scales along another axis, and transpose them."""
    if inputs["x"].ndim < 2:
        return None
    codes = BLOCK_OPERATIONS["scale_codes"](inputs, _across(inputs, attributes))
    return codes.swapaxes(-1, -2)


#: From scales and the axis of their blocks to other scales, of the same shape.
Change = Callable[[Array, int], Array]


def _shifted(by: int) -> Change:
    """Take the scale so many blocks before, the last ones for the first."""
    return lambda scales, axis: np.roll(scales, by, axis)


def _other_row(by: int) -> Change:
    """Take the scales of the row so many before, the last ones for the first."""

    def change(scales: Array, axis: int) -> Array:
        if scales.ndim < 2:
            raise ValueError("no rows")
        last = range(scales.ndim)[axis] == scales.ndim - 1
        return np.roll(scales, by, -2 if last else -1)

    return change


def _clamped(by: int) -> Change:
    """Take the scale so many blocks before, and for blocks that have none there, the nearest."""

    def change(scales: Array, axis: int) -> Array:
        count = scales.shape[axis]
        return scales.take(np.clip(np.arange(count) - by, 0, count - 1), axis=axis)

    return change


def _everywhere(name: str, operations: Mapping[str, Defective], change: Change) -> Iterator[Named]:
    """Yield the defect that scales are changed where they are used; also of one operand alone."""
    yield name, _scales_by(operations, change)
    for operand in ("a", "b"):
        yield name, {"block_sum": _sums_by(operations, change, (operand,))}


def _scales_by(operations: Mapping[str, Defective], change: Change) -> dict[str, Defective]:
    """Make operations that use changed scales."""

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        scales = change(inputs["scale_codes"], attributes["axis"])
        return BLOCK_OPERATIONS["block_codes"]({**inputs, "scale_codes": scales}, attributes)

    def dequantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        how = attributes["x"]
        if "scale_fmt" not in how:
            return None
        scales = change(inputs["x_scale"], how["axis"])
        return operations["dequantize"]({**inputs, "x_scale": scales}, attributes)

    sums = _sums_by(operations, change, ("a", "b"))
    return {"block_codes": codes, "dequantize": dequantize, "block_sum": sums}


def _sums_by(
    operations: Mapping[str, Defective], change: Change, operands: tuple[str, ...]
) -> Defective:
    """Make sums that use changed scales of some operands."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        scales = {
            role: change(inputs[role], attributes[name]["axis"])
            for name in operands
            if (role := f"{name}_scale_codes") in inputs
        }
        return operations["block_sum"]({**inputs, **scales}, attributes)

    return sums


def _reread(operation: Defective, block: int) -> Defective:
    """Make an operation that takes a new scale every so many elements, fewer than there are."""

    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        changed, how = dict(inputs), dict(attributes)
        roles = {"x": "x_scale", "a": "a_scale_codes", "b": "b_scale_codes"}
        for name, role in roles.items():
            described = attributes.get(name, {})
            if "scale_fmt" not in described:
                continue
            if described["block"] >= block:
                return None
            axis = described["axis"]
            places = np.arange(inputs[name].shape[axis]) // block
            changed[role] = inputs[role].take(places, axis=axis)
            how[name] = described | {"block": 1}
        return operation(changed, how) if how != attributes else None

    return function


def _unscaled(operations: Mapping[str, Defective]) -> dict[str, Defective]:
    """Make operations on codes and numbers as they are."""

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        return encoded(inputs["x"], block_format(attributes).element)

    def dequantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if "scale_fmt" not in attributes["x"]:
            return None
        ones = np.ones_like(inputs["x_scale"])
        return operations["dequantize"]({**inputs, "x_scale": ones}, attributes)

    sums = _unscaled_sum(operations, ("a", "b"))
    return {"block_codes": codes, "dequantize": dequantize, "block_sum": sums}


def _unscaled_sum(operations: Mapping[str, Defective], operands: tuple[str, ...]) -> Defective:
    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        how = {name: {"fmt": attributes[name]["fmt"]} for name in operands}
        return operations["block_sum"](inputs, {**attributes, **how})

    return sums


def _bias(off: int) -> dict[str, Defective]:
    """Make operations whose E8M0 has a bias that is smaller by ``off``."""

    def is_e8m0(attributes: Attributes) -> bool:
        return attributes.get("scale_fmt") == str(E8M0FNU)

    def written(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not is_e8m0(attributes):
            return None
        codes = BLOCK_OPERATIONS["scale_codes"](inputs, attributes).astype(np.int64)
        return (codes - off).astype(np.uint8)

    def elements(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not is_e8m0(attributes):
            return None
        numbers = np.ldexp(scaled_numbers(inputs, attributes), -off)
        return encoded(numbers, block_format(attributes).element)

    def scales(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not is_e8m0(attributes):
            return None
        return np.ldexp(BLOCK_OPERATIONS["block_scales"](inputs, attributes), off)

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        count = sum(map(is_e8m0, (attributes["a"], attributes["b"])))
        if not count:
            return None
        total = BLOCK_OPERATIONS["block_sum"](inputs, attributes).astype(np.float64)
        return np.ldexp(total, count * off).astype(np.float32)

    return {
        "scale_codes": written,
        "block_codes": elements,
        "block_scales": scales,
        "block_sum": sums,
    }


def _signed_exponents(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Read the code of a scale as a signed exponent."""
    if attributes["scale_fmt"] != str(E8M0FNU):
        return None
    exponents = inputs["scale_codes"].view(np.int8).astype(np.int32)
    return np.ldexp(np.float32(1), exponents)


# The scale of the tensor


def _inverse(number: Array, fmt: BlockFormat) -> Array:
    """Return the number that multiplies values where the right one divides them."""
    assert isinstance(fmt.how, RatioRule)
    limits = fmt.element.max * fmt.scale_format.max if fmt.how.stored == "absmax" else 1
    return np.asarray(np.float32(limits**2) * (np.float32(1) / number), np.float32)


def _left_out(number: Array, fmt: BlockFormat) -> Array:
    """Return the number that multiplies values by 1."""
    assert isinstance(fmt.how, RatioRule)
    limits = fmt.element.max * fmt.scale_format.max if fmt.how.stored == "absmax" else 1
    return np.asarray(limits, np.float32)


def _tensor_scale_by(
    change: Callable[[Array, BlockFormat], Array], operands: tuple[str, ...]
) -> dict[str, Defective]:
    """Make operations that use another number for the tensor; products, of some operands."""

    def product(inputs: Inputs, attributes: Attributes) -> Array | None:
        numbers = {
            role: change(inputs[role], block_format(attributes[name]))
            for name in operands
            if (role := f"{name}_tensor_scale") in inputs
        }
        if not numbers:
            return None
        return BLOCK_OPERATIONS["block_product"]({**inputs, **numbers}, attributes)

    def changed(operation: str) -> Defective:
        def function(inputs: Inputs, attributes: Attributes) -> Array | None:
            if "tensor_scale" not in inputs:
                return None
            number = change(inputs["tensor_scale"], block_format(attributes))
            return BLOCK_OPERATIONS[operation]({**inputs, "tensor_scale": number}, attributes)

        return function

    def written(inputs: Inputs, attributes: Attributes) -> Array:
        number = BLOCK_OPERATIONS["tensor_scale"](inputs, attributes)
        return np.asarray(1 / number if change is _inverse else 1, np.float32)

    names = ("scale_codes", "block_codes", "block_scales") if len(operands) > 1 else ()
    reading = {name: changed(name) for name in names}
    return reading | {"block_product": product} | ({"tensor_scale": written} if names else {})


def _divided_scales(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Divide the scales of blocks by a number that multiplies, or the other way round."""
    if "tensor_scale" not in inputs:
        return None
    number = inputs["tensor_scale"]
    values = decode(inputs["scale_codes"], FORMATS[attributes["scale_fmt"]])
    how = block_format(attributes).how
    assert isinstance(how, RatioRule)
    if how.stored == "absmax":
        return None
    return values * number if how.divides else values / number


def _divided(inputs: Inputs, attributes: Attributes) -> Array | None:
    if not {"a_tensor_scale", "b_tensor_scale"} & inputs.keys():
        return None
    product = multiplier("a", inputs, attributes) * multiplier("b", inputs, attributes)
    quotient = inputs["sum"] / product
    return quotient + inputs["bias"] if "bias" in inputs else quotient


# Layouts of scales


def _packed(layout: str) -> Change:
    """Take the bytes of a layout for scales row by row."""

    def change(places: Array, axis: int) -> Array:
        low, high = (pack_scales(part, layout, axis) for part in _halves(places))
        return _whole_numbers(low, high)

    return change


def _unpacked(layout: str) -> Change:
    """Take scales row by row for the bytes of a layout."""

    def change(places: Array, axis: int) -> Array:
        shape = places.shape
        low, high = (unpack_scales(part, shape, layout, axis) for part in _halves(places))
        return _whole_numbers(low, high)

    return change


def _halves(places: Array) -> tuple[Array, Array]:
    return (places & 0xFF).astype(np.uint8), (places >> 8).astype(np.uint8)


def _whole_numbers(low: Array, high: Array) -> Array:
    return low.astype(np.int64) | high.astype(np.int64) << 8


def _by_columns(places: Array, axis: int) -> Array:
    return places.swapaxes(-1, -2)


def _laid_out(name: str, operations: Mapping[str, Defective], change: Change) -> Iterator[Named]:
    """Yield the defect that scales are in another order; ``change`` orders their places."""

    def permuted(scales: Array, axis: int) -> Array:
        if scales.ndim < 2 or scales.size >= 1 << 16:
            raise ValueError("no matrix of scales that a layout could permute")
        matrix = np.moveaxis(scales, axis, -1)  # stored row by row, whatever the axis
        # Place 0 is what fills up tiles: code 0.
        places = np.arange(1, scales.size + 1).reshape(matrix.shape)
        order = change(places, -1).reshape(-1)[: scales.size]
        filled = np.concatenate([np.zeros(1, scales.dtype), matrix.reshape(-1)])
        return np.moveaxis(filled[order].reshape(matrix.shape), -1, axis)

    def written(inputs: Inputs, attributes: Attributes) -> Array | None:
        codes = BLOCK_OPERATIONS["scale_codes"](inputs, attributes)
        return permuted(codes, attributes["axis"])

    for defect, changed in _everywhere(name, operations, permuted):
        yield defect, changed | ({"scale_codes": written} if len(changed) > 1 else {})


# Sums


def _accumulated(accumulate: str) -> Defective:
    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("accumulate", "exact") == accumulate:
            return None
        try:
            return BLOCK_OPERATIONS["block_sum"](inputs, {**attributes, "accumulate": accumulate})
        except ValueError:  # these tensor cores do not accept the operands
            return None

    return sums


def _in_order(inputs: Inputs, attributes: Attributes) -> Array:
    """Add products of the scaled values in float32, one after the other."""
    a, b = (block_operand(name, inputs, attributes).dequantize() for name in ("a", "b"))
    total = np.zeros(np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape), np.float32)
    for k in range(a.shape[-1]):
        total += a[..., k, None] * b[..., k, None, :]
    return total


def _bias_first(inputs: Inputs, attributes: Attributes) -> Array | None:
    if "bias" not in inputs:
        return None
    rest = {role: x for role, x in inputs.items() if role != "bias"}
    return BLOCK_OPERATIONS["block_product"](
        rest | {"sum": inputs["sum"] + inputs["bias"]}, attributes
    )


def _one_after_the_other(order: tuple[str, str]) -> Defective:
    """Multiply sums by an operand's number, and the product by the other's."""

    def product(inputs: Inputs, attributes: Attributes) -> Array:
        total = inputs["sum"]
        for name in order:
            total = total * multiplier(name, inputs, attributes)
        return np.asarray(total + inputs["bias"] if "bias" in inputs else total, np.float32)

    return product


def _without_bias(inputs: Inputs, attributes: Attributes) -> Array | None:
    rest = {role: x for role, x in inputs.items() if role != "bias"}
    return BLOCK_OPERATIONS["block_product"](rest, attributes) if len(rest) < len(inputs) else None

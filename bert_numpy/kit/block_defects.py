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
    scaled_numbers,
)
from npfp8 import POWER_RULES, RATIO_RULES, encode
from npfp8.arrays import Array
from npfp8.codec.tables import values_of
from npfp8.scaling import group_extrema, spread

__all__ = ["block_defects"]

Defective = Callable[[Inputs, Attributes], "Array | None"]

#: The operations that quantize, and those that read codes with their scales.
_WRITING = ("tensor_scale", "scale_codes", "block_codes")
_READING = ("dequantize", "block_sum")

_FLOAT32 = np.dtype(np.float32)


def block_defects(operations: Mapping[str, Defective]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and defective operations; a name may occur more than once.

    Parameters
    ----------
    operations : mapping
        The operations as they are right.
    """
    for rule in (*POWER_RULES, *(rule for rule in RATIO_RULES if rule not in POWER_RULES)):
        named = (*_WRITING, "block_scales", "block_product")
        yield f"the rule {rule}", {name: _with(name, rule=rule) for name in named}
    yield "zero blocks with a scale of 1", {"scale_codes": _zero_is_one}
    yield "blocks along another axis", {"scale_codes": _other_axis, "block_codes": _along_other}
    for block in (8, 16, 32, 64, 128):
        reading = {name: _reread(operations[name], block) for name in _READING}
        written = {"block_codes": _whole(block=block)}
        yield f"blocks of {block} instead of the format's", {**written, **reading}
    for change in (_shifted(1), _shifted(-1), _clamped(1), _clamped(-1)):
        yield "scales of the neighbouring blocks", _scales_by(operations, change)
    yield "the bias of E8M0 left out", _bias(operations, 127)
    yield "the bias of E8M0 left out", _read_as_signed(operations)
    for off in (1, -1):
        yield f"a bias of E8M0 of {127 + off}", _bias(operations, -off)
    for change in (_reciprocal, _divisor):
        yield "tensor scale inverted", _tensor_scale_by(operations, change)
    yield "tensor scale left out", _tensor_scale_by(operations, _left_out)
    yield "scales of blocks left out", _scales_by(operations, _ones) | {"dequantize": _unscaled}


def _with(operation: str, **changes: Any) -> Defective:
    """Make an operation with other attributes."""

    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        if operation == "block_product":
            how = {
                name: attributes[name] | changes if "rule" in attributes[name] else attributes[name]
                for name in ("a", "b")
            }
        else:
            how = changes
        changed = {**attributes, **how}
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


# Scales of blocks


def _zero_is_one(inputs: Inputs, attributes: Attributes) -> Array:
    fmt, x = block_format(attributes), inputs["x"]
    low, high = group_extrema(x, attributes["axis"], fmt.block)
    one = encode(np.ones((), np.float32), fmt.scale_format)
    codes = BLOCK_OPERATIONS["scale_codes"](inputs, attributes)
    return np.where((low == 0) & (high == 0), one, codes)


def _other(inputs: Inputs, attributes: Attributes) -> dict[str, Any]:
    """Return the attributes with the other of the last two axes."""
    ndim = inputs["x"].ndim
    axis = range(ndim)[attributes["axis"]]
    return {**attributes, "axis": ndim - 2 if axis == ndim - 1 else ndim - 1}


def _along_other(inputs: Inputs, attributes: Attributes) -> Array | None:
    if inputs["x"].ndim < 2:
        return None
    return _whole(**_other(inputs, attributes))(inputs, attributes)


def _other_axis(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Compute scales along another axis, and lay them out as the kit has its own."""
    x = inputs["x"]
    if x.ndim < 2:
        return None
    codes = BLOCK_OPERATIONS["scale_codes"](inputs, _other(inputs, attributes))
    expected = BLOCK_OPERATIONS["scale_codes"](inputs, attributes).shape
    swapped = codes.swapaxes(-1, -2)
    return swapped if swapped.shape == expected else None


Change = Callable[[Array, int], Array]


def _shifted(by: int) -> Change:
    """Take the scale so many blocks before, the last ones for the first."""
    return lambda scales, axis: np.roll(scales, by, axis)


def _clamped(by: int) -> Change:
    """Take the scale so many blocks before, and the first for those that have none before."""

    def change(scales: Array, axis: int) -> Array:
        count = scales.shape[axis]
        return scales.take(np.clip(np.arange(count) - by, 0, count - 1), axis=axis)

    return change


def _scales_by(operations: Mapping[str, Defective], change: Change) -> dict[str, Defective]:
    """Make operations that use changed scales."""

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        scales = change(inputs["scale_codes"], attributes["axis"])
        return BLOCK_OPERATIONS["block_codes"]({**inputs, "scale_codes": scales}, attributes)

    def dequantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if "scale_fmt" not in attributes["x"]:
            return None
        scale = change(inputs["x_scale"], attributes["x"]["axis"])
        return operations["dequantize"]({**inputs, "x_scale": scale}, attributes)

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        scales = {
            role: change(inputs[role], attributes[name]["axis"])
            for name in ("a", "b")
            if (role := f"{name}_scale_codes") in inputs
        }
        return operations["block_sum"]({**inputs, **scales}, attributes)

    return {"block_codes": codes, "dequantize": dequantize, "block_sum": sums}


def _ones(scales: Array, axis: int) -> Array:
    raise LookupError


def _unscaled(inputs: Inputs, attributes: Attributes) -> Array | None:
    raise LookupError


def _reread(operation: Defective, block: int) -> Defective:
    raise LookupError

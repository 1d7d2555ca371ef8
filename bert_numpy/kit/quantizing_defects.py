"""Defects of the quantizing before a product: other scales, quotients and heads.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bert_numpy.kit.history import Made, Traced
from bert_numpy.kit.operand_defects import Alone, Defective, Named, Together
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs
from npfp8 import encode
from npfp8.arrays import Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat, IntFormat

__all__ = [
    "MAXIMA",
    "first_scale",
    "largest_scale",
    "over_another",
    "quantizing_defects",
    "to_float16",
]

#: What the largest magnitude is divided by for a scale, where a format's largest value is meant.
MAXIMA = {448.0: (240.0, 256.0, 224.0, 480.0), 240.0: (448.0, 120.0), 57344.0: (448.0, 240.0)}


def quantizing_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield from _scale_defects()
    yield from _head_defects()


def to_float16(x: Array) -> Array:
    """Round float32 numbers to float16."""
    return x.astype(np.float16).astype(np.float32)


def largest_scale(scale: Array) -> Array:
    """Return the largest of scales."""
    return np.asarray(scale.max())


def first_scale(scale: Array) -> Array:
    """Return the first of scales."""
    return np.asarray(scale.reshape(-1)[0])


def over_another(scale: Array, fmt: str, place: int) -> Array | None:
    """Return scales whose largest magnitudes, of bfloat16 numbers, are divided by another one."""
    largest = FORMATS[fmt]
    others = MAXIMA.get(largest.max, ()) if isinstance(largest, FloatFormat) else ()
    if place >= len(others):
        return None
    magnitude = round_to_bfloat16(np.asarray(scale * np.float32(largest.max), np.float32))
    exact = np.asarray(magnitude / np.float32(largest.max), np.float32)
    # Scales that are not of bfloat16 numbers are changed by the quotient.
    ratio = np.float32(largest.max / others[place])
    return np.asarray(
        np.where(exact == scale, magnitude / np.float32(others[place]), scale * ratio), np.float32
    )


# Scales and quotients


def _scale_defects() -> Iterator[Named]:
    for place in range(max(map(len, MAXIMA.values()))):
        name = "scale of the largest magnitude over another number than the format's largest"
        yield name, Alone(quantize=_rescaled(_by_maximum(place)))
        yield name, Alone(quantize=_rescaled(_times_ratio(place)))
    scales: dict[str, list[Callable[[Array, Array, str], Array | None]]] = {
        "scale applied twice": [lambda x, s, fmt: s * s],
        "scale rounded to bfloat16": [lambda x, s, fmt: round_to_bfloat16(s)],
        "scale rounded to float16": [lambda x, s, fmt: to_float16(s)],
        "scale rounded to a power of two": [
            lambda x, s, fmt: np.exp2(np.ceil(np.log2(s))),
            lambda x, s, fmt: np.exp2(np.floor(np.log2(s))),
            lambda x, s, fmt: np.exp2(np.rint(np.log2(s))),
        ],
        "scale of these numbers, not the given one": [_dynamic, *map(_dynamic_along, (-1, -2))],
    }
    for name, ways in scales.items():
        for change in ways:
            yield name, Alone(quantize=_rescaled(change))
    yield "scale of the other operand", Alone(quantize=_by_the_other_scale)
    yield "operands exchanged (queries for keys)", Alone(quantize=_exchanged)
    yield "quotient in float64", Alone(quantize=_wide_quotient)
    name = "numbers and scale rounded to bfloat16, and their quotient"
    yield name, Alone(quantize=_narrow_quotient)
    for per_channel in (largest_scale, first_scale):
        yield "one scale for all channels", {"quantize": _one_for_all(per_channel)}
    narrow = {"float16": to_float16, "bfloat16": round_to_bfloat16}
    for name, to in narrow.items():
        yield f"numbers rounded to {name} before they are quantized", Alone(quantize=_prepared(to))


def _rescaled(change: Callable[[Array, Array, str], Array | None]) -> Defective:
    """Make a quantization by another scale; ``change`` gets the numbers, scale and format."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("axis") is not None:
            return None
        scale = change(inputs["x"], inputs["scale"], attributes["fmt"])
        if scale is None:
            return None
        scale = np.asarray(scale, np.float32)
        if scale.ndim:
            how = {"x": np.asarray(inputs["x"] / scale, np.float32), "scale": np.float32(1)}
            return OPERATIONS["quantize"]({**inputs, **how}, attributes)
        return OPERATIONS["quantize"]({**inputs, "scale": scale}, attributes)

    return quantize


def _by_maximum(place: int) -> Callable[[Array, Array, str], Array | None]:
    return lambda x, scale, fmt: over_another(scale, fmt, place)


def _wide_quotient(inputs: Inputs, attributes: Attributes) -> Array | None:
    fmt = FORMATS[attributes["fmt"]]
    if attributes.get("axis") is not None:
        return None
    quotient = inputs["x"].astype(np.float64) / np.float64(inputs["scale"])
    if isinstance(fmt, FloatFormat):
        return encode(quotient, fmt)
    if not isinstance(fmt, IntFormat) or np.isnan(quotient).any():
        return None
    zero_point = int(inputs["zero_point"]) if "zero_point" in inputs else 0
    codes = np.clip(np.rint(quotient) + zero_point, fmt.min_code, fmt.max_code)
    return codes.astype(fmt.code_dtype)


def _narrow_quotient(inputs: Inputs, attributes: Attributes) -> Array | None:
    if attributes.get("axis") is not None:
        return None
    x, scale = (round_to_bfloat16(inputs[role]) for role in ("x", "scale"))
    how = {"x": round_to_bfloat16(np.asarray(x / scale)), "scale": np.float32(1)}
    return OPERATIONS["quantize"]({**inputs, **how}, attributes)


def _times_ratio(place: int) -> Callable[[Array, Array, str], Array | None]:
    def change(x: Array, scale: Array, fmt: str) -> Array | None:
        right = FORMATS[fmt]
        others = MAXIMA.get(right.max, ()) if isinstance(right, FloatFormat) else ()
        if place >= len(others):
            return None
        return np.asarray(scale * np.float32(right.max / others[place]))

    return change


def _dynamic(x: Array, scale: Array, fmt: str) -> Array | None:
    right = FORMATS[fmt]
    if not isinstance(right, FloatFormat) or not x.size:
        return None
    return np.asarray(np.abs(x).max() / np.float32(right.max))


def _dynamic_along(axis: int) -> Callable[[Array, Array, str], Array | None]:
    def change(x: Array, scale: Array, fmt: str) -> Array | None:
        right = FORMATS[fmt]
        if not isinstance(right, FloatFormat) or x.ndim < 2 or not x.size:
            return None
        return np.asarray(np.abs(x).max(axis=axis, keepdims=True) / np.float32(right.max))

    return change


def _by_the_other_scale(inputs: Inputs, attributes: Attributes) -> Array | None:
    made = _other_operand(inputs)
    if made is None or attributes.get("axis") is not None or made.inputs["scale"].ndim:
        return None
    return OPERATIONS["quantize"]({**inputs, "scale": made.inputs["scale"]}, attributes)


def _exchanged(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Quantize what the other operand of the product is made of."""
    made = _other_operand(inputs)
    if made is None:
        return None
    x = np.ascontiguousarray(made.inputs["x"].swapaxes(-1, -2))
    if x.shape != inputs["x"].shape:
        return None
    return OPERATIONS["quantize"]({**inputs, "x": x}, attributes)


def _other_operand(inputs: Inputs) -> Made | None:
    made = inputs.other_operand() if isinstance(inputs, Traced) else None
    return made if made is not None and made.operation == "quantize" else None


def _one_for_all(choose: Callable[[Array], Array]) -> Defective:
    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("axis") is None or inputs["scale"].size < 2:
            return None
        scale = np.broadcast_to(choose(inputs["scale"]), inputs["scale"].shape)
        scale = np.ascontiguousarray(scale)
        return OPERATIONS["quantize"]({**inputs, "scale": scale}, attributes)

    return quantize


def _prepared(change: Callable[[Array], Array]) -> Defective:
    """Make a quantization of numbers that are changed first."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array:
        x = np.asarray(change(inputs["x"]), np.float32)
        return OPERATIONS["quantize"]({**inputs, "x": x}, attributes)

    return quantize


# Heads


def _head_defects() -> Iterator[Named]:
    yield "heads split without a transposition", {"quantize": _split_by(_not_exchanged)}
    yield "heads interleaved", {"quantize": _split_by(_interleaved_heads)}
    yield "heads merged without a transposition", {"quantize": _merged_by(_not_merged)}
    yield "heads merged interleaved", {"quantize": _merged_by(_merged_interleaved)}
    for name, power in (
        ("1/sqrt(d) applied before quantizing", 0.5),
        ("the fourth root of 1/d applied before quantizing", 0.25),
    ):
        scaled = _scaled_heads(power, keys=power == 0.25)
        yield name, Together(quantize=scaled, multiply=lambda inputs, how: inputs["x"])
        yield name, Alone(quantize=_scaled_heads(power, keys=True))


def _split_by(change: Callable[[Array, int], Array]) -> Defective:
    """Make a quantization of heads; ``change`` gets (tokens, features) and the number of heads."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        view = inputs.view("x") if isinstance(inputs, Traced) else ""
        kind, _, heads = view.partition(":")
        if kind not in ("split_heads", "split_heads_transposed"):
            return None
        transposed, x = kind == "split_heads_transposed", inputs["x"]
        x = x.swapaxes(-1, -2) if transposed else x
        tokens = x[0].transpose(1, 0, 2).reshape(x.shape[2], -1)
        x = change(tokens, int(heads))
        x = np.ascontiguousarray(x.swapaxes(-1, -2) if transposed else x)
        return OPERATIONS["quantize"]({**inputs, "x": x}, attributes)

    return quantize


def _not_exchanged(x: Array, heads: int) -> Array:
    return x.reshape(1, heads, len(x), -1)


def _interleaved_heads(x: Array, heads: int) -> Array:
    return x.reshape(len(x), -1, heads).transpose(2, 0, 1)[None]


def _merged_by(change: Callable[[Array], Array]) -> Defective:
    """Make a quantization of merged heads; ``change`` gets (heads, tokens, features)."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced) or inputs.view("x") != "merge_heads":
            return None
        heads = inputs.viewed("x")
        x = np.ascontiguousarray(change(heads[0]).reshape(inputs["x"].shape))
        return OPERATIONS["quantize"]({**inputs, "x": x}, attributes)

    return quantize


def _not_merged(x: Array) -> Array:
    return x


def _merged_interleaved(x: Array) -> Array:
    return x.transpose(1, 2, 0)


def _scaled_heads(power: float, *, keys: bool) -> Defective:
    """Make a quantization of queries, and perhaps keys, times ``d^-power``."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced) or "attention.scores/" not in inputs.name:
            return None
        transposed = inputs.view("x").startswith("split_heads_transposed")
        if transposed and not keys:
            return None
        x = inputs["x"]
        factor = np.float32(x.shape[-2 if transposed else -1] ** -power)
        scaled = round_to_bfloat16(np.asarray(x * factor, np.float32))
        return OPERATIONS["quantize"]({**inputs, "x": scaled}, attributes)

    return quantize

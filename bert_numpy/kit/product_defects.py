"""Defects of a product with scales per tensor or channel: its sums, scales, bias and result.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them. Those of
the sums are in :mod:`bert_numpy.kit.sum_defects`, those of the operands' quantizing in
:mod:`bert_numpy.kit.quantizing_defects`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bert_numpy.kit.operand_defects import Alone, Defective, Named
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs
from bert_numpy.kit.quantizing_defects import (
    MAXIMA,
    first_scale,
    largest_scale,
    over_another,
    quantizing_defects,
    to_float16,
)
from bert_numpy.kit.sum_defects import sum_defects
from npfp8 import decode, encode
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat

__all__ = ["product_defects"]


def product_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield from sum_defects()
    yield from _scaling_defects()
    yield from quantizing_defects()
    yield from _result_defects()


# Scaling


def _scaling_defects() -> Iterator[Named]:
    one = np.float32(1)
    changes: dict[str, list[Callable[[Array, Array, Array, Array], Array]]] = {
        "scaled sum rounded to bfloat16 before the bias": [
            lambda t, a, b, c: round_to_bfloat16(t * (a * b)) + c
        ],
        "scaled sum rounded to float16 before the bias": [
            lambda t, a, b, c: to_float16(t * (a * b)) + c
        ],
        "bias rounded to bfloat16": [lambda t, a, b, c: t * (a * b) + round_to_bfloat16(c)],
        "bias rounded to float16": [lambda t, a, b, c: t * (a * b) + to_float16(c)],
        "bias added twice": [lambda t, a, b, c: t * (a * b) + c + c],
        "bias subtracted": [lambda t, a, b, c: t * (a * b) - c],
        "scaling and bias rounded once (fused multiply-add)": [
            lambda t, a, b, c: _wide(t) * (a * b) + c
        ],
    }
    for name, ways in changes.items():
        for change in ways:
            yield name, Alone(scale_sum=_scaled_by(change, with_bias=True))
    others: dict[str, list[Callable[[Array, Array, Array, Array], Array]]] = {
        "scale of the left operand left out": [lambda t, a, b, c: t * b + c],
        "scale of the right operand left out": [lambda t, a, b, c: t * a + c],
        "scale of the left operand for both": [lambda t, a, b, c: t * (a * a) + c],
        "scale of the right operand for both": [lambda t, a, b, c: t * (b * b) + c],
        "scale of the left operand applied twice": [
            lambda t, a, b, c: t * (a * a * b) + c,
            lambda t, a, b, c: t * (a * b) * a + c,
        ],
        "scale of the right operand applied twice": [
            lambda t, a, b, c: t * (a * b * b) + c,
            lambda t, a, b, c: t * (a * b) * b + c,
        ],
        "scale inverted": [
            lambda t, a, b, c: t / (a * b) + c,
            lambda t, a, b, c: t * ((one / a) * (one / b)) + c,
            lambda t, a, b, c: t * (one / a) * (one / b) + c,
            lambda t, a, b, c: t / a / b + c,
            lambda t, a, b, c: t / b / a + c,
        ],
        "scales multiplied one after the other": [lambda t, a, b, c: t * b * a + c],
        "scales multiplied in float64": [
            lambda t, a, b, c: (_wide(t) * (_wide(a) * b)).astype(np.float32) + c,
            lambda t, a, b, c: _wide(t) * (_wide(a) * b) + c,
        ],
        "scales rounded to bfloat16": [
            lambda t, a, b, c: t * (round_to_bfloat16(a) * round_to_bfloat16(b)) + c
        ],
        "one scale for all channels": [
            lambda t, a, b, c: t * (largest_scale(a) * largest_scale(b)) + c,
            lambda t, a, b, c: t * (first_scale(a) * first_scale(b)) + c,
        ],
    }
    for name, ways in others.items():
        for change in ways:
            yield name, Alone(scale_sum=_scaled_by(change))
    for place in range(max(map(len, MAXIMA.values()))):
        for which in (("a", "b"), ("a",), ("b",)):
            name = "scale of the largest magnitude over another number than the format's largest"
            yield name, Alone(scale_sum=_by_other_maximum(place, which))


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _along(name: str, inputs: Inputs, attributes: Attributes) -> Array:
    """Return an operand's scale, to broadcast against the product."""
    how, scale = attributes[name], inputs[f"{name}_scale"]
    if how.get("axis") is None:
        return scale
    axis = how["axis"] % how["ndim"]
    return scale.reshape([-1 if i == axis else 1 for i in range(how["ndim"])])


def _scaled_by(
    change: Callable[[Array, Array, Array, Array], Array], *, with_bias: bool = False
) -> Defective:
    """Make a scaled sum; ``change`` gets the sum, the scales and the bias."""

    def scale_sum(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("block") is not None or (with_bias and "bias" not in inputs):
            return None
        a, b = (_along(name, inputs, attributes) for name in ("a", "b"))
        bias = inputs.get("bias", np.float32(-0.0))  # -0 + x is x, zeros included
        return np.asarray(change(inputs["sum"], a, b, np.asarray(bias)), np.float32)

    return scale_sum


def _by_other_maximum(place: int, which: Sequence[str]) -> Defective:
    def scale_sum(inputs: Inputs, attributes: Attributes) -> Array | None:
        changed = dict(inputs)
        for name in which:
            scales = over_another(inputs[f"{name}_scale"], attributes[name]["fmt"], place)
            if scales is None:
                return None
            changed[f"{name}_scale"] = scales
        return OPERATIONS["scale_sum"](changed, attributes)

    return scale_sum


# Results


def _result_defects() -> Iterator[Named]:
    yield "results rounded to float16, not to bfloat16", {"round": _result(to_float16)}
    yield "results not rounded to bfloat16", Alone(round=_result(lambda x: x))
    yield "bfloat16 ties rounded up", Alone(round=_result(_half_up))
    yield "bfloat16 results rounded up", Alone(round=_result(np.ceil, to_steps=True))
    yield "bfloat16 results rounded down", Alone(round=_result(np.floor, to_steps=True))
    yield (
        "double rounding through TF32",
        Alone(round=_result(lambda x: round_to_bfloat16(_kept_bits(x, 13)))),
    )
    for fmt in ("E4M3FN", "E5M2", "E4M3FNUZ", "E5M2FNUZ"):
        name = f"results rounded to {fmt}"
        yield name, Alone(round=_result(_through_codes(fmt)))
        yield name, Alone(round=_result(_through_codes(fmt, scaled=True)))


def _result(change: Callable[[Array], Array], *, to_steps: bool = False) -> Defective:
    def rounded(inputs: Inputs, attributes: Attributes) -> Array:
        x = inputs["x"]
        return np.asarray(_by_steps(x, change) if to_steps else change(x), np.float32)

    return rounded


def _by_steps(x: Array, change: Callable[[Array], Array]) -> Float32Array:
    """Apply a function to numbers in units of bfloat16's last place."""
    wide = x.astype(np.float64)
    exponent = np.frexp(np.where(np.isfinite(wide), wide, 0.0))[1]
    unit = np.ldexp(1.0, np.maximum(exponent - 8, -133))
    return np.where(np.isfinite(wide), change(wide / unit) * unit, wide).astype(np.float32)


def _half_up(x: Array) -> Array:
    return _by_steps(x, lambda steps: np.floor(steps + 0.5))


def _kept_bits(x: Array, dropped: int) -> Float32Array:
    """Round float32 numbers to nearest even, ``dropped`` bits of the significand fewer."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    half = np.uint64((1 << (dropped - 1)) - 1)
    rounded = bits + half + (bits >> np.uint64(dropped) & np.uint64(1))
    kept = (rounded >> np.uint64(dropped) << np.uint64(dropped)).astype(np.uint32)
    return np.where(np.isnan(x), x, kept.view(np.float32).reshape(x.shape))


def _through_codes(fmt: str, *, scaled: bool = False) -> Callable[[Array], Array]:
    """Make a function that encodes numbers and decodes them; by the largest magnitude's scale."""

    def change(x: Array) -> Array:
        target = FORMATS[fmt]
        assert isinstance(target, FloatFormat)
        scale = np.abs(x).max() / np.float32(target.max) if scaled and x.size else np.float32(1)
        values = decode(encode(np.asarray(x / scale, np.float32), target), target)
        return round_to_bfloat16(np.asarray(values * scale, np.float32))

    return change

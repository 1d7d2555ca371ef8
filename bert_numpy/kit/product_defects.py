"""Defects of a product with scales per tensor or channel: its sums, scales, bias and result.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bert_numpy.kit.history import Made, Traced
from bert_numpy.kit.operand_defects import Alone, Defective, Named, Together
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs, operand
from bert_numpy.kit.spans import FLOAT32, Span
from npfp8 import decode, encode
from npfp8.arrays import Array, Float32Array, blas_product
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS, FloatFormat, IntFormat

__all__ = ["product_defects", "tolerant_sums"]

#: The runs of K that instructions and tiles have.
_RUNS = (4, 8, 16, 32, 64, 128, 256)

#: Those that are looked for behind other operations, too.
_USUAL_RUNS = (16, 32, 64, 128)

#: The numbers of interleaved sums of a vector unit.
_LANES = (2, 4, 8, 16, 32)

#: What the largest magnitude is divided by for a scale, where a format's largest value is meant.
_MAXIMA = {448.0: (240.0, 256.0, 224.0, 480.0), 240.0: (448.0, 120.0), 57344.0: (448.0, 240.0)}

_UNIT = 2.0**-24


def product_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    yield from _sum_defects()
    yield from _scaling_defects()
    yield from _quantizing_defects()
    yield from _head_defects()
    yield from _result_defects()


# Sums


def _sum_defects() -> Iterator[Named]:
    for run in _RUNS:
        for how, total in _ORDERS.items():
            name = f"exact sums of {run} along K, added in float32{how}"
            operations = {"sum": _in_runs(run, total)}
            usual = run in _USUAL_RUNS and total is _forward
            yield name, operations if usual else Alone(operations)
    name = "exact sums of the halves of K, added in float32"
    yield name, Alone(sum=_in_runs(0, _forward))
    for lanes in _LANES:
        name = f"float32 accumulation in {lanes} interleaved sums"
        yield name, Alone(sum=_interleaved(lanes))
    yield "float32 accumulation in pairs", Alone(sum=_in_runs(1, _in_pairs))
    name = "float32 accumulation, from the last product to the first"
    yield name, Alone(sum=_in_runs(1, _back))
    yield "right operand in the other order of storage", Alone(sum=_other_storage)
    yield "last element of K left out", Alone(sum=_without_the_last)
    yield "NaN codes read as numbers", Alone(sum=_without_nan)
    yield "integer accumulation in 16 bits, saturating", Alone(sum=_in_16_bits(saturate=True))
    yield "integer accumulation in 16 bits, wrapping", Alone(sum=_in_16_bits(saturate=False))
    parameters = {"sum": ("b",), "scale_sum": ("b_scale", "bias"), "layer_norm": ("weight", "bias")}
    name = "parameters of the layer before"
    yield name, {op: _of_layer_before(op, roles) for op, roles in parameters.items()}
    yield "last token instead of the first", {"product": _by_rows(lambda x: x[-1:])}
    name = "mean of the tokens instead of the first"
    yield name, {"product": _by_rows(_mean)}
    yield name, {"product": _by_rows(lambda x: round_to_bfloat16(_mean(x)))}


def _forward(parts: Sequence[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _back(parts: Sequence[Array]) -> Array:
    return _forward(parts[::-1])


def _in_pairs(parts: Sequence[Array]) -> Array:
    """Add neighbours, then neighbouring sums, until one is left."""
    while len(parts) > 1:
        even = len(parts) // 2 * 2
        pairs = [x + y for x, y in zip(parts[0:even:2], parts[1:even:2], strict=True)]
        parts = [*pairs, *parts[even:]]
    return parts[0]


def _in_halves(parts: Sequence[Array]) -> Array:
    """Add the second half to the first, until one is left."""
    while len(parts) > 1:
        half = -(-len(parts) // 2)
        parts = [
            *(x + y for x, y in zip(parts[: len(parts) - half], parts[half:], strict=True)),
            *parts[len(parts) - half : half],
        ]
    return parts[0]


_ORDERS: dict[str, Callable[[Sequence[Array]], Array]] = {
    "": _forward,
    ", from the last to the first": _back,
    ", in pairs": _in_pairs,
    ", the second half onto the first": _in_halves,
}


def _values(inputs: Inputs, attributes: Attributes) -> list[Array] | None:
    """Return the operands' values in float32, if each has one scale along K."""
    if attributes.get("block") is not None or attributes.get("accumulate", "exact") != "exact":
        return None
    zero_points = [f"{name}_zero_point" for name in ("a", "b")]
    if any(inputs[name].ndim for name in zero_points if name in inputs):
        return None
    return [operand(name, inputs, attributes).code_values() for name in ("a", "b")]


def _in_runs(run: int, total: Callable[[Sequence[Array]], Array]) -> Defective:
    """Make a sum of exact sums of so many elements of K, each rounded to float32; 0 for half."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        k = inputs["a"].shape[-1]
        length = run or -(-k // 2)
        if length >= k or (values := _values(inputs, attributes)) is None:
            return None
        if total is not _forward and k <= 2 * length:
            return None  # of two parts the order is no matter
        a, b = values
        if length == 1:
            parts = [a[..., i, None] * b[..., i, None, :] for i in range(k)]
        else:
            wide = a.astype(np.float64), b.astype(np.float64)
            parts = [
                blas_product(wide[0][..., i : i + length], wide[1][..., i : i + length, :]).astype(
                    np.float32
                )
                for i in range(0, k, length)
            ]
        return np.asarray(total(parts) + np.float32(0), np.float32)

    return sums


def _interleaved(lanes: int) -> Defective:
    """Make a sum of so many float32 sums, each of every ``lanes``-th product."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        k = inputs["a"].shape[-1]
        if k <= lanes or (values := _values(inputs, attributes)) is None:
            return None
        a, b = values
        shape = np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape)
        total = np.zeros((lanes, *shape), np.float32)
        for i in range(k):
            total[i % lanes] += a[..., i, None] * b[..., i, None, :]
        return np.asarray(_in_halves(list(total)) + np.float32(0), np.float32)

    return sums


def _other_storage(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Read an operand (K, N) that is stored by rows as one that is stored by columns."""
    b = inputs["b"]
    if b.ndim < 2 or "b_zero_point" in inputs:
        return None
    k, n = b.shape[-2:]
    other = np.ascontiguousarray(b).reshape(*b.shape[:-2], n, k).swapaxes(-1, -2)
    return OPERATIONS["sum"]({**inputs, "b": np.ascontiguousarray(other)}, attributes)


def _without_the_last(inputs: Inputs, attributes: Attributes) -> Array | None:
    if inputs["a"].shape[-1] < 2 or attributes.get("block") is not None:
        return None
    if any(attributes[name].get("axis") is not None for name in ("a", "b")):
        return None
    parts = {"a": inputs["a"][..., :-1], "b": inputs["b"][..., :-1, :]}
    parts = {name: np.ascontiguousarray(x) for name, x in parts.items()}
    return OPERATIONS["sum"]({**inputs, **parts}, attributes)


def _without_nan(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Read E4M3FN's code of NaN as 480."""
    if any(attributes[name]["fmt"] != "E4M3FN" for name in ("a", "b")):
        return None
    if attributes.get("block") is not None:
        return None
    a, b = (FORMATS["E4M3FN"].values[inputs[name]] for name in ("a", "b"))
    codes = (inputs["a"], inputs["b"])
    a, b = (
        np.where(np.isnan(x), np.where(code & 0x80, -480.0, 480.0), x)
        for x, code in zip((a, b), codes, strict=True)
    )
    return np.asarray(blas_product(a, b).astype(np.float32) + np.float32(0), np.float32)


def _in_16_bits(*, saturate: bool) -> Defective:
    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        formats = [FORMATS[attributes[name]["fmt"]] for name in ("a", "b")]
        if not all(isinstance(fmt, IntFormat) for fmt in formats):
            return None
        if (values := _values(inputs, attributes)) is None:
            return None
        a, b = (x.astype(np.int64) for x in values)
        total = np.zeros(np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape), np.int64)
        for k in range(a.shape[-1]):
            total = total + a[..., k, None] * b[..., k, None, :]
            if saturate:
                total = np.clip(total, -(2**15), 2**15 - 1)
        return total.astype(np.int16).astype(np.float32)

    return sums


def _of_layer_before(operation: str, roles: Sequence[str]) -> Defective:
    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced):
            return None
        others = {role: inputs.of_layer_before(role) for role in roles if role in inputs}
        changed = {role: x for role, x in others.items() if x is not None}
        return OPERATIONS[operation]({**inputs, **changed}, attributes) if changed else None

    return function


def _mean(x: Array) -> Array:
    return x.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)


def _by_rows(change: Callable[[Array], Array]) -> Defective:
    """Make the product of other rows than the first."""

    def product(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(inputs, Traced) or inputs.view("a") != "first_row":
            return None
        rows = np.ascontiguousarray(change(inputs.viewed("a")))
        return OPERATIONS["product"]({**inputs, "a": rows}, attributes)

    return product


def tolerant_sums() -> Iterator[list[Named]]:
    """Yield tiers of sums that may be any of a span's."""
    name = "float32 accumulation in another order, within its likely error"
    yield [(name, {"sum": _in_any_order})]


def _in_any_order(inputs: Inputs, attributes: Attributes) -> Span | None:
    """Bound float32 sums in any order, by the likely error of K roundings.

    The bound is ``sqrt(K) u sum|a_k b_k|`` (Higham and Mary, *A new approach to probabilistic
    rounding error analysis*, SIAM J. Sci. Comput. 41, 2019), not K u: a wrong element should not
    pass for a sum in another order.
    """
    values = _values(inputs, attributes)
    if values is None or not any(
        isinstance(FORMATS[attributes[name]["fmt"]], FloatFormat) for name in ("a", "b")
    ):
        return None
    exact = OPERATIONS["sum"](inputs, attributes)
    a, b = (np.nan_to_num(np.abs(x.astype(np.float64)), posinf=0.0) for x in values)
    bound = (np.sqrt(a.shape[-1]) + 1) * _UNIT * blas_product(a, b)
    bound = np.where(np.isfinite(exact), bound, 0.0)
    wide = exact.astype(np.float64)
    return Span(
        (wide - bound).astype(np.float32).astype(np.float64),
        (wide + bound).astype(np.float32).astype(np.float64),
        np.isnan(wide),
        FLOAT32,
    )


# Scaling


def _scaling_defects() -> Iterator[Named]:
    one = np.float32(1)
    changes: dict[str, list[Callable[[Array, Array, Array, Array], Array]]] = {
        "scaled sum rounded to bfloat16 before the bias": [
            lambda t, a, b, c: round_to_bfloat16(t * (a * b)) + c
        ],
        "scaled sum rounded to float16 before the bias": [
            lambda t, a, b, c: _to_float16(t * (a * b)) + c
        ],
        "bias rounded to bfloat16": [lambda t, a, b, c: t * (a * b) + round_to_bfloat16(c)],
        "bias rounded to float16": [lambda t, a, b, c: t * (a * b) + _to_float16(c)],
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
            lambda t, a, b, c: t * (_largest(a) * _largest(b)) + c,
            lambda t, a, b, c: t * (_first(a) * _first(b)) + c,
        ],
    }
    for name, ways in others.items():
        for change in ways:
            yield name, Alone(scale_sum=_scaled_by(change))
    for place in range(max(map(len, _MAXIMA.values()))):
        for which in (("a", "b"), ("a",), ("b",)):
            name = "scale of the largest magnitude over another number than the format's largest"
            yield name, Alone(scale_sum=_by_other_maximum(place, which))


def _to_float16(x: Array) -> Array:
    return x.astype(np.float16).astype(np.float32)


def _wide(x: Array) -> Array:
    return x.astype(np.float64)


def _largest(scale: Array) -> Array:
    return np.asarray(scale.max())


def _first(scale: Array) -> Array:
    return np.asarray(scale.reshape(-1)[0])


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
            scales = _over_another(inputs[f"{name}_scale"], attributes[name]["fmt"], place)
            if scales is None:
                return None
            changed[f"{name}_scale"] = scales
        return OPERATIONS["scale_sum"](changed, attributes)

    return scale_sum


def _over_another(scale: Array, fmt: str, place: int) -> Array | None:
    """Return scales whose largest magnitudes, of bfloat16 numbers, are divided by another one."""
    largest = FORMATS[fmt]
    others = _MAXIMA.get(largest.max, ()) if isinstance(largest, FloatFormat) else ()
    if place >= len(others):
        return None
    magnitude = round_to_bfloat16(np.asarray(scale * np.float32(largest.max), np.float32))
    exact = np.asarray(magnitude / np.float32(largest.max), np.float32)
    # Scales that are not of bfloat16 numbers are changed by the quotient.
    ratio = np.float32(largest.max / others[place])
    return np.asarray(
        np.where(exact == scale, magnitude / np.float32(others[place]), scale * ratio), np.float32
    )


# Quantizing


def _quantizing_defects() -> Iterator[Named]:
    for place in range(max(map(len, _MAXIMA.values()))):
        name = "scale of the largest magnitude over another number than the format's largest"
        yield name, Alone(quantize=_rescaled(_by_maximum(place)))
        yield name, Alone(quantize=_rescaled(_times_ratio(place)))
    scales: dict[str, list[Callable[[Array, Array, str], Array | None]]] = {
        "scale applied twice": [lambda x, s, fmt: s * s],
        "scale rounded to bfloat16": [lambda x, s, fmt: round_to_bfloat16(s)],
        "scale rounded to float16": [lambda x, s, fmt: _to_float16(s)],
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
    for per_channel in (_largest, _first):
        yield "one scale for all channels", {"quantize": _one_for_all(per_channel)}
    narrow = {"float16": _to_float16, "bfloat16": round_to_bfloat16}
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
    return lambda x, scale, fmt: _over_another(scale, fmt, place)


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
        others = _MAXIMA.get(right.max, ()) if isinstance(right, FloatFormat) else ()
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


# Results


def _result_defects() -> Iterator[Named]:
    yield "results rounded to float16, not to bfloat16", {"round": _result(_to_float16)}
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

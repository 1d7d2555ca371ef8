"""The typical defects of a backend, each with the defective operations.

A defect replaces one or more of :data:`bert_numpy.kit.operations.OPERATIONS`.
A tensor computed with it from a kit's own inputs is the result of a backend with that
very defect. So the defect is the likely cause of a candidate's tensor that equals it. The
caller must silence NumPy's warnings about overflow and NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from bert_numpy.kit.attention_defects import attention_defects
from bert_numpy.kit.block_defects import FOUND, Defective, block_defects
from bert_numpy.kit.block_operations import scaled_numbers
from bert_numpy.kit.embedding_defects import embedding_defects
from bert_numpy.kit.fitted_defects import fitted_defects
from bert_numpy.kit.function_defects import function_defects, tolerant_defects
from bert_numpy.kit.operand_defects import Elementwise
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs, operand
from bert_numpy.kit.product_defects import product_defects
from bert_numpy.kit.sum_defects import tolerant_sums
from npfp8 import E4M3FN, decode, golden
from npfp8.arrays import Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.codec import ROUNDINGS
from npfp8.formats import FLOAT_FORMATS, FORMATS, FloatFormat, IntFormat
from npfp8.mistakes import NAN_BIASED, Encoder, encoder_mistakes, fitted_mistakes
from npfp8.mistakes.decoders import decoder_mistakes
from npfp8.products import ACCUMULATORS, Accumulator
from npfp8.scaling import spread

__all__ = ["ACCUMULATED", "DEFECTS", "FOUND", "TOLERANT", "Defect"]

#: Operations that round to the precision of their attributes.
_ROUNDING = ("add", "multiply", "softmax", "layer_norm", "activation")


@dataclass(frozen=True, eq=False)
class Defect:
    """A defect: its name, and its defective operations (:data:`Defective`) by name."""

    name: str
    operations: Mapping[str, Any] = field(repr=False)


# Encoding


def _quotient(x: Array, scale: Array) -> Array:
    return np.asarray(x / scale, np.float32)


def _encoding(encode: Defective) -> dict[str, Defective]:
    """Make a defect of the encoder, for encoding numbers and for quantizing them."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(FORMATS[attributes["fmt"]], FloatFormat):
            return None
        x, scale = inputs["x"], inputs["scale"]
        if attributes.get("axis") is not None:
            scale = spread(scale, x.shape, attributes["axis"], attributes["block"])
        return encode({**inputs, "x": _quotient(x, scale)}, {"saturate": True, **attributes})

    def block_codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not isinstance(FORMATS[attributes["fmt"]], FloatFormat):
            return None
        numbers = np.asarray(scaled_numbers(inputs, attributes), np.float32)
        return encode({**inputs, "x": numbers}, {"saturate": True, **attributes})

    return {"encode": encode, "quantize": quantize, "block_codes": block_codes}


@lru_cache(maxsize=256)
def _mistakes(
    fmt: FloatFormat, saturate: bool, rounding: str, overflow: str
) -> Mapping[tuple[str, int], Encoder]:
    """Return the mistaken encoders by name and occurrence of the name."""
    known: dict[str, list[Encoder]] = {}
    for name, encoder in encoder_mistakes(fmt, saturate, rounding, overflow):
        known.setdefault(name, []).append(encoder)
    return {(name, i): encoder for name, some in known.items() for i, encoder in enumerate(some)}


def _mistake(name: str, occurrence: int) -> Defective:
    """Make the encoder with a mistake of :mod:`npfp8.mistakes`."""

    def encode(inputs: Inputs, attributes: Attributes) -> Array | None:
        fmt, x = FORMATS[attributes["fmt"]], inputs["x"]
        assert isinstance(fmt, FloatFormat)
        mistaken = _mistakes(fmt, *_behaviour(attributes)).get((name, occurrence))
        if mistaken is None:
            return None
        flat = np.ascontiguousarray(x).reshape(-1)
        return np.asarray(mistaken(flat), np.uint8).reshape(x.shape)

    return encode


def _fitted(name: str) -> Defective:
    """Make the encoder with a mistake whose parameter is read off the candidate's codes."""

    def encode(inputs: Inputs, attributes: Attributes) -> Array | None:
        fmt, x, found = FORMATS[attributes["fmt"]], inputs["x"], inputs.get(FOUND)
        if found is None or not isinstance(fmt, FloatFormat):
            return None
        return dict(fitted_mistakes(fmt, *_behaviour(attributes)))[name](x, found)

    return encode


def _behaviour(attributes: Attributes) -> tuple[bool, str, str]:
    """Return how an encoder saturates, rounds and overflows."""
    rounding, overflow = (attributes.get(*pair) for pair in _USUAL.items())
    return attributes["saturate"], rounding, overflow


_USUAL = {"rounding": "nearest", "overflow": "ieee"}


def _decoding(name: str, occurrence: int) -> dict[str, Defective]:
    """Make the decoder with a mistake of :mod:`npfp8.mistakes.decoders`."""

    def decode(inputs: Inputs, attributes: Attributes) -> Array | None:
        fmt = FORMATS[attributes["fmt"]]
        if not isinstance(fmt, FloatFormat):
            return None
        decoders = [decoder for other, decoder in decoder_mistakes(fmt) if other == name]
        if occurrence >= len(decoders):
            return None
        return decoders[occurrence](inputs["codes"]).astype(np.float32)

    return {"decode": decode}


def _integer(change: Callable[[Array, IntFormat, int], Array]) -> dict[str, Defective]:
    """Make a defect of integer quantization; ``change`` maps the quotient to a code as float."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        fmt = FORMATS[attributes["fmt"]]
        if not isinstance(fmt, IntFormat) or attributes.get("axis") is not None:
            return None
        zero_point = int(inputs["zero_point"]) if "zero_point" in inputs else 0
        codes = change(_quotient(inputs["x"], inputs["scale"]).astype(np.float64), fmt, zero_point)
        return codes.astype(np.int64).astype(fmt.code_dtype)

    return {"quantize": quantize}


def _clip(x: Array, fmt: IntFormat) -> Array:
    return np.clip(x, fmt.min_code, fmt.max_code)


def _added_half(x: Array) -> Array:
    """Add a half in float32, which rounds the number below it up to 1."""
    return np.floor(x.astype(np.float32) + np.float32(0.5)).astype(np.float64)


def _clipped_to_all_codes(x: Array, fmt: IntFormat, zero: int) -> Array:
    return np.clip(np.rint(x) + zero, np.iinfo(fmt.code_dtype).min, fmt.max_code)


def _half_away(x: Array) -> Array:
    return np.copysign(np.floor(np.abs(x) + 0.5), x)


def _wrap(x: Array) -> Array:
    return np.clip(x, -(2**40), 2**40)  # the cast to 8 bits drops the other bits


# Scales


def _quantize_with(change: Callable[[Array, Array], Array]) -> Defective:
    """Make a quantization with another quotient than x / scale, passed on with a scale of 1."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("axis") is not None:
            return None
        x = np.asarray(change(inputs["x"], inputs["scale"]), np.float32)
        return OPERATIONS["quantize"]({**inputs, "x": x, "scale": np.float32(1)}, attributes)

    return quantize


def _scale_sum_with(change: Callable[[Array, Array, Array], Array]) -> Defective:
    """Make a product with another scaling; ``change`` gets the sum and the two scales."""

    def scale_sum(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("block") is not None or any(
            attributes[name].get("axis") is not None for name in ("a", "b")
        ):
            return None
        total = change(inputs["sum"], inputs["a_scale"], inputs["b_scale"])
        return np.asarray(total + inputs["bias"] if "bias" in inputs else total, np.float32)

    return scale_sum


def _bias_first(inputs: Inputs, attributes: Attributes) -> Array | None:
    if "bias" not in inputs or attributes.get("block") is not None:
        return None
    rest = {name: x for name, x in inputs.items() if name != "bias"}
    return OPERATIONS["scale_sum"](rest | {"sum": inputs["sum"] + inputs["bias"]}, attributes)


def _without(operation: str, *roles: str) -> Defective:
    def function(inputs: Inputs, attributes: Attributes) -> Array | None:
        rest = {name: x for name, x in inputs.items() if name not in roles}
        return OPERATIONS[operation](rest, attributes) if len(rest) < len(inputs) else None

    return function


# Sums


def _summing(accumulator: Accumulator) -> dict[str, Defective]:
    """Make the products of an accumulator, without those of blocks, which block_defects has."""
    names = []
    if accumulator.formats is None or (accumulator.formats and accumulator.block is None):
        names.append("sum")
    if accumulator.kind == "exact" or "bfloat16" in accumulator.floats:
        names.append("product")
    return {name: _accumulated(name, accumulator.name) for name in names}


def _accumulated(operation: str, accumulate: str) -> Defective:
    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes.get("accumulate", "exact") == accumulate:
            return None
        try:
            return OPERATIONS[operation](inputs, {**attributes, "accumulate": accumulate})
        except ValueError:  # these tensor cores do not accept the operands
            return None

    return sums


def _in_order(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Add products in float32, one after the other."""
    if attributes.get("block") is not None:
        return None
    if any(
        inputs[f"{name}_zero_point"].ndim for name in ("a", "b") if f"{name}_zero_point" in inputs
    ):
        return None
    a, b = (operand(name, inputs, attributes).code_values() for name in ("a", "b"))
    total = np.zeros(np.broadcast_shapes(a[..., :1].shape, b[..., :1, :].shape), np.float32)
    for k in range(a.shape[-1]):
        total += a[..., k, None] * b[..., k, None, :]
    return total


def _sum_of(change: Callable[[str, Array, FloatFormat], Array | None]) -> Defective:
    """Make a sum of operands whose codes are changed."""

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        changed = dict(inputs)
        for name in ("a", "b"):
            fmt = FORMATS[attributes[name]["fmt"]]
            if not isinstance(fmt, FloatFormat):
                return None
            codes = change(name, inputs[name], fmt)
            if codes is None:
                return None
            changed[name] = codes
        return OPERATIONS["sum"](changed, attributes)

    return sums


def _not_transposed(inputs: Inputs, attributes: Attributes) -> Array | None:
    b = inputs["b"]
    if b.ndim < 2 or "b_zero_point" in inputs:
        return None
    other = np.ascontiguousarray(b.swapaxes(-1, -2)).reshape(b.shape)
    return OPERATIONS["sum"]({**inputs, "b": other}, attributes)


def _flush_codes(name: str, codes: Array, fmt: FloatFormat) -> Array:
    subnormal = np.abs(fmt.values[codes]) < fmt.min_normal
    return np.where(subnormal, codes & np.uint8(fmt.sign_bit), codes)


def _taken_for(fmt: FloatFormat) -> dict[str, Defective]:
    """Make operations that read a format's codes with its FNUZ or OCP variant's bias and NaN."""
    other = NAN_BIASED[fmt]

    def values(inputs: Inputs, attributes: Attributes) -> Array | None:
        return decode(inputs["codes"], other) if attributes["fmt"] == str(fmt) else None

    def sums(inputs: Inputs, attributes: Attributes) -> Array | None:
        names = [name for name in ("a", "b") if attributes[name]["fmt"] == str(fmt)]
        how = {**attributes, **{n: attributes[n] | {"fmt": str(other)} for n in names}}
        return OPERATIONS["sum"](inputs, how) if names else None

    return {"decode": values, "sum": sums}


# Results


def _after(change: Callable[[Array], Array], *operations: str) -> dict[str, Defective]:
    """Make operations whose results are changed."""

    def changed(operation: str) -> Defective:
        def function(inputs: Inputs, attributes: Attributes) -> Array:
            return np.asarray(change(OPERATIONS[operation](inputs, attributes)), np.float32)

        return function

    return {operation: changed(operation) for operation in operations}


def _instead_of_rounding(change: Callable[[Array], Array]) -> dict[str, Defective]:
    """Make operations with another conversion from float32 to bfloat16."""

    def elementwise(operation: str) -> Defective:
        def function(inputs: Inputs, attributes: Attributes) -> Array | None:
            if attributes["precision"] != "bfloat16":
                return None
            return change(OPERATIONS[operation](inputs, {**attributes, "precision": "float32"}))

        return function

    def rounded(inputs: Inputs, attributes: Attributes) -> Array:
        return change(inputs["x"])

    return {"round": rounded} | {operation: elementwise(operation) for operation in _ROUNDING}


def _bits(change: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Make a function that changes the bits of float32 numbers; a NaN stays a NaN."""

    def function(x: Array) -> Array:
        bits = np.ascontiguousarray(x).view(np.uint32)
        changed = change(bits).astype(np.uint32).view(np.float32).reshape(x.shape)
        return np.where(np.isnan(x), np.float32(np.nan), changed)

    return function


_UPPER = np.uint32(0xFFFF0000)


def _flush_float32(x: Array) -> Array:
    return np.where(np.abs(x) < np.float32(2.0**-126), np.copysign(np.float32(0), x), x)


def _other_gelu(inputs: Inputs, attributes: Attributes) -> Array | None:
    others = {"gelu": "gelu_tanh", "gelu_tanh": "gelu"}
    if attributes["function"] not in others:
        return None
    return golden.unary(others[attributes["function"]], inputs["x"], attributes["precision"])


def _overflowing_softmax(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Compute exp(x) / sum in float32, which is infinity over infinity for a large x."""
    x = inputs["x"].astype(np.float64)
    weights = golden.UNARY["exp"](x).astype(np.float32)
    total = golden.tree_sum(weights.astype(np.float64)).astype(np.float32)
    result = np.asarray(weights / total[..., None], np.float32)
    return round_to_bfloat16(result) if attributes["precision"] == "bfloat16" else result


def _sample_variance(inputs: Inputs, attributes: Attributes) -> Array | None:
    """Compute LayerNorm with the variance over n - 1."""
    x = inputs["x"].astype(np.float64)
    length = x.shape[-1]
    if length < 2:
        return None
    centred = x - (golden.tree_sum(x) / length)[..., None]
    variance = golden.tree_sum(np.square(centred)) / (length - 1)
    centred /= np.sqrt(variance + attributes["eps"])[..., None]
    result = centred * inputs["weight"].astype(np.float64) + inputs["bias"]
    if attributes["precision"] == "bfloat16":
        return round_to_bfloat16(result)
    return np.asarray(result, np.float32)


def _codec_defects() -> Iterator[Defect]:
    seen: dict[tuple[str, int], None] = {}
    known = product(FLOAT_FORMATS.values(), [(True, "ieee"), (False, "ieee"), (False, "special")])
    for (fmt, (saturate, overflow)), rounding in product(known, ROUNDINGS[:-1]):
        names = [name for name, _ in encoder_mistakes(fmt, saturate, rounding, overflow)]
        for i, name in enumerate(names):
            seen.setdefault((name, names[:i].count(name)))
    decoders: dict[tuple[str, int], None] = {}
    for fmt in FLOAT_FORMATS.values():
        names = [name for name, _ in decoder_mistakes(fmt)]
        for i, name in enumerate(names):
            decoders.setdefault((name, names[:i].count(name)))
    readers = {f"{NAN_BIASED[fmt]} instead of {fmt}": _taken_for(fmt) for fmt in NAN_BIASED}
    flushed = {
        "sum": _sum_of(_flush_codes),
        **_after(_flush_float32, "scale_sum", "round", "block_scales", "dequantize", *_ROUNDING),
    }
    for name, occurrence in seen:
        more = readers.get(name, {})
        if (name, occurrence) in decoders and "decode" not in more:
            more = {**more, **_decoding(name, occurrence)}
        if name == "subnormals flushed to zero" and occurrence == 0:
            more = {**more, **flushed}
        wrong = _encoding(_mistake(name, occurrence))
        wrong |= {operation: Elementwise(wrong[operation]) for operation in ("encode", "quantize")}
        yield Defect(name, {**wrong, **more})
    for name, occurrence in decoders:
        if (name, occurrence) not in seen:
            yield Defect(name, _decoding(name, occurrence))
    for name, _ in fitted_mistakes(E4M3FN):
        yield Defect(name, _encoding(_fitted(name)))
    yield Defect(
        "ties rounded away from zero",
        _integer(lambda x, fmt, zero: _clip(_half_away(x) + zero, fmt)),
    )
    yield Defect(
        "ties rounded up", _integer(lambda x, fmt, zero: _clip(_added_half(x) + zero, fmt))
    )
    yield Defect(
        "ties rounded up",
        _integer(lambda x, fmt, zero: _clip(np.floor(x + 0.5) + zero, fmt)),
    )
    yield Defect("clipping to one code beyond the smallest", _integer(_clipped_to_all_codes))
    yield Defect(
        "zero point off by one",
        _integer(lambda x, fmt, zero: _clip(np.rint(x) + zero + (zero != 0), fmt)),
    )
    yield Defect(
        "zero point off by one",
        _integer(lambda x, fmt, zero: _clip(np.rint(x) + zero - (zero != 0), fmt)),
    )
    yield Defect(
        "clipping before the zero point is added",
        _integer(lambda x, fmt, zero: _clip(np.rint(x), fmt) + zero),
    )
    yield Defect("truncation", _integer(lambda x, fmt, zero: _clip(np.trunc(x) + zero, fmt)))
    yield Defect(
        "overflow that does not saturate",
        _integer(lambda x, fmt, zero: _wrap(np.rint(x) + zero)),
    )


def _defects() -> Iterator[Defect]:
    yield from _codec_defects()
    yield Defect(
        "scale inverted",
        {
            "quantize": _quantize_with(lambda x, scale: x * scale),
            "scale_sum": _scale_sum_with(lambda total, a, b: total / (a * b)),
        },
    )
    yield Defect(
        "multiplication by the reciprocal of the scale",
        {"quantize": _quantize_with(lambda x, scale: x * (np.float32(1) / scale))},
    )
    yield Defect(
        "scale left out",
        {
            "quantize": _quantize_with(lambda x, scale: x),
            "scale_sum": _scale_sum_with(lambda total, a, b: total),
        },
    )
    yield Defect(
        "scales multiplied one after the other",
        {"scale_sum": _scale_sum_with(lambda total, a, b: total * a * b)},
    )
    yield Defect("bias added before scaling", {"scale_sum": _bias_first})
    yield Defect(
        "bias left out",
        {"scale_sum": _without("scale_sum", "bias"), "product": _without("product", "bias")},
    )
    yield Defect(
        "zero point left out",
        {
            "sum": _without("sum", "a_zero_point", "b_zero_point"),
            "quantize": _without("quantize", "zero_point"),
        },
    )
    yield Defect("right operand not transposed", {"sum": _not_transposed})
    for accumulator in ACCUMULATORS.values():
        if accumulator.reproducible and (operations := _summing(accumulator)):
            yield Defect(accumulator.description, operations)
    yield Defect("float32 accumulation, one product after the other", {"sum": _in_order})
    yield Defect(
        "double rounding through bfloat16",
        _after(round_to_bfloat16, "sum", "block_sum", "dequantize"),
    )
    yield Defect(
        "double rounding through float16",
        {
            **_after(
                lambda x: x.astype(np.float16), "sum", "scale_sum", "block_sum", "block_product"
            ),
            **_instead_of_rounding(
                lambda x: round_to_bfloat16(x.astype(np.float16).astype(np.float32))
            ),
        },
    )
    yield Defect(
        "bfloat16 results truncated", _instead_of_rounding(_bits(lambda bits: bits & _UPPER))
    )
    yield Defect(
        "bfloat16 ties rounded away from zero",
        _instead_of_rounding(_bits(lambda bits: (bits + np.uint32(0x8000)) & _UPPER)),
    )
    yield Defect(
        "a missing sticky bit",
        _instead_of_rounding(
            lambda x: round_to_bfloat16(_bits(lambda bits: bits & np.uint32(0xFFFF8000))(x))
        ),
    )
    yield Defect("GELU by tanh instead of erf, or the other way round", {"activation": _other_gelu})
    yield Defect(
        "softmax without taking the largest element off", {"softmax": _overflowing_softmax}
    )
    yield Defect("variance over n - 1", {"layer_norm": _sample_variance})


def _joined(defects: Iterable[Defect]) -> tuple[Defect, ...]:
    """Join each defect of block formats and of attention with one of its name elsewhere."""
    joined = list(defects)
    others = (
        block_defects(OPERATIONS),
        attention_defects(),
        product_defects(),
        function_defects(),
        embedding_defects(),
    )
    for name, operations in (item for found in others for item in found):
        for i, other in enumerate(joined):
            alike = type(operations) is dict and type(other.operations) is dict
            if alike and other.name == name and other.operations.keys().isdisjoint(operations):
                joined[i] = Defect(name, {**other.operations, **operations})
                break
        else:
            joined.append(Defect(name, operations))
    return tuple(joined)


#: Every known defect. A name may occur more than once, for several ways to be wrong.
DEFECTS = _joined(_defects())

#: Tiers of defects for what no other explains: those with a number that is fitted, then those
#: whose results are spans, the strictest first.
TOLERANT = tuple(
    tuple(Defect(name, operations) for name, operations in tier)
    for tier in (*fitted_defects(), *tolerant_defects(), *tolerant_sums())
)

#: By the name of an accumulator: the defect that it adds up every product that it takes.
ACCUMULATED = {
    accumulator.name: defect
    for accumulator in ACCUMULATORS.values()
    for defect in DEFECTS
    if defect.name == accumulator.description
}

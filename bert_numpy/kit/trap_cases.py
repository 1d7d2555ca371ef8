"""Small cases that have every trap of an operation: ties, cancellation, ends of ranges, specials.

They are small enough to be read, and to be the memory of a test bench. Like all cases they
follow from integer rules; see :mod:`bert_numpy.kit.cases`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import random_bfloat16, random_bits, random_codes
from bert_numpy.kit.manifest import Reference
from npfp8 import E4M3FN, E5M2, INT8, UINT8, encode
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import Format

__all__ = ["add_trap_cases"]

_LEVEL = "operator"
_BF16 = {"precision": "bfloat16"}

#: Numbers at which GELU by erf and by tanh, or one of them in float32, are different bfloat16s.
_APART = (
    *(0.5234375, 0.73046875, 0.76953125, 0.89453125, 0.95703125, 1.3984375, 2.078125, 2.75),
    *(2.765625, -0.3359375, -0.462890625, -0.50390625, -0.8046875, -0.94921875, -0.98828125),
    *(-3.46875, -4.4375, -4.6875, -5.125, -5.625, -5.9375, -6.75, -8.25),
)


def add_trap_cases(builder: Builder) -> None:
    """Add a small case of all traps for products, rounding, quantizing and the functions."""
    _add_ties(builder)
    _add_scale_vectors(builder)
    _add_scales_of_blocks(builder)
    _add_rounding(builder)
    _add_quotients(builder)
    _add_quantizing(builder)
    _add_functions(builder)


# Products

#: The codes of an operand, its scales, and their attributes.
_Operand = tuple[Array, Float32Array, dict[str, Any]]


def _add_product(
    builder: Builder,
    case: str,
    operands: dict[str, _Operand],
    bias: Float32Array | None = None,
    **how: Any,
) -> None:
    """Add a product of codes of E4M3FN: its sum, scaled sum, and the rounded one.

    Each operand, "a" and "b", is its codes, its scales, and their attributes.
    """
    place = f"operator/gemm-{case}"
    attributes: dict[str, Any] = dict(how)
    codes, factors = {}, {}
    for name, (x, scale, groups) in operands.items():
        codes[name] = builder.give(f"{place}/{name}", _LEVEL, x, E4M3FN)
        factors[f"{name}_scale"] = builder.give(f"{place}/{name}.scale", _LEVEL, scale)
        attributes[name] = {"fmt": str(E4M3FN), **groups, "ndim": 2}
    builder.compute(f"{place}/sum", _LEVEL, "sum", codes, attributes)
    inputs = {"sum": Reference(f"{place}/sum"), **factors}
    if bias is not None:
        inputs["bias"] = builder.give(f"{place}/bias", _LEVEL, bias)
    builder.compute(f"{place}/product", _LEVEL, "scale_sum", inputs, attributes)
    product = {"x": Reference(f"{place}/product")}
    builder.compute(f"{place}/result", _LEVEL, "round", product, kind="bfloat16")


def _add_ties(builder: Builder) -> None:
    """Add sums on and beside the ties of float32 and bfloat16; the scales are 1.

    A row is 2^8 times a sign, 2 or 0 (the parity), 2, and 2^-9 times -1, 0 or 1 (what is beside
    a tie). The columns make of it, above 2^16: ties of float32; ties of bfloat16 whose last term
    float32 drops, so that rounding twice and once differ; ties of bfloat16 whose last term
    float32 keeps; and the last term alone, after the large ones cancel.
    """
    rows = [
        (sign * 256.0, sign * parity * 2.0, sign * 2.0, sign * beside * 2.0**-9, sign * 256.0)
        for sign in (1, -1)
        for parity in (0, 1)
        for beside in (-1, 0, 1)
    ]
    columns = [
        (256.0, 2.0**-8, 2.0**-9, 2.0**-9, 0),
        (256.0, 256.0, 128.0, 2.0**-9, 0),
        (256.0, 256.0, 128.0, 16.0, 0),
        (256.0, 0, 0, 2.0**-9, -256.0),
    ]
    places = [0, 5, 11, 18, 31]  # among zeros of both signs, so that the terms come apart
    a, b = np.zeros((len(rows), 32), np.float32), np.zeros((32, len(columns)), np.float32)
    a[:, 1::4], b[2::3] = -0.0, -0.0
    a[:, places], b[places] = rows, np.transpose(columns)
    one = np.asarray(np.float32(1))
    a_codes, b_codes = encode(a, E4M3FN), encode(b, E4M3FN)
    _add_product(builder, "ties", {"a": (a_codes, one, {}), "b": (b_codes, one, {})})


def _add_scale_vectors(builder: Builder) -> None:
    """Add a product with a scale per row and per column, no two alike, to both ends of float32.

    The bias leaves a column as it is, adds -0, and cancels an element.
    """
    a, b = random_codes(61, (8, 16), E4M3FN), random_codes(62, (16, 8), E4M3FN)
    a[5, ::3] = 0x80
    left = np.array([2.0**-140, 1.1e-38, 1e34, 3e-45, 0.011, 0.25, 1.7, 3.1e-3], np.float32)
    right = np.array([0.013, 1.5e-3, 0.9, 2.5, 6.1e-5, 0.37, 4.3e-2, 11.0], np.float32)
    place = "operator/gemm-scale-vectors"
    # Numbers of 24 bits, as a bias in float32 has.
    bias = random_bfloat16(63, (8,)) * np.float32(1 + 2.0**-10 + 2.0**-23)
    bias[[0, 1, 4]] = 0.0, -0.0, -0.0
    operands: dict[str, _Operand] = {"a": (a, left, {"axis": 0}), "b": (b, right, {"axis": 1})}
    trial = Builder()
    _add_product(trial, "scale-vectors", operands)
    bias[2] = -trial.arrays[f"{place}/product"][4, 2]
    _add_product(builder, "scale-vectors", operands, bias)


def _add_scales_of_blocks(builder: Builder) -> None:
    """Add a product with a float32 scale per run of 16 of K, the last one shorter."""
    a, b = random_codes(64, (8, 40), E4M3FN), random_codes(65, (40, 8), E4M3FN)
    operands: dict[str, _Operand] = {
        "a": (a, distinct_scales(66, (8, 3)), {"axis": 1, "block": 16}),
        "b": (b, distinct_scales(67, (3, 8)), {"axis": 0, "block": 16}),
    }
    _add_product(builder, "scales-of-blocks", operands, block=16)


def distinct_scales(seed: int, shape: tuple[int, ...]) -> Float32Array:
    """Generate float32 numbers of 2^-8 to 2^-5, no two alike."""
    bits = random_bits(seed, shape) >> np.uint64(40)
    index = np.arange(bits.size, dtype=np.uint64).reshape(shape)
    fraction = (bits & np.uint64(0xFFFF)) << np.uint64(7) | index & np.uint64(0x7F)
    exponent = np.uint64(119) + index % np.uint64(3)
    return (exponent << np.uint64(23) | fraction).astype(np.uint32).view(np.float32)


# Rounding and quantizing


def _add_rounding(builder: Builder) -> None:
    """Add float32 numbers on, and one unit beside, the ties of bfloat16; and all specials."""
    uppers = [0, 1, 2, 0x7F, 0x80, 0x3F80, 0x3F81, 0x3FFF, 0x7F7E, 0x7F7F]
    lowers = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    bits = [upper << 16 | lower for upper in uppers for lower in lowers]
    bits += [0x7F800000, 0x7FC00000, 0x7F800001]  # cut off, the last NaN would be an infinity
    numbers = np.array([bits, [one | 0x80000000 for one in bits]], np.uint32).view(np.float32)
    x = builder.give("operator/round/x", _LEVEL, numbers)
    builder.compute("operator/round/result", _LEVEL, "round", {"x": x}, kind="bfloat16")


def _add_quotients(builder: Builder) -> None:
    """Add numbers whose float32 quotient by the scale is a tie, and whose exact one is not.

    So a quotient in float64 goes to one side of the tie, and so do many products with 1 / scale.
    """
    for fmt in (E4M3FN, E5M2, INT8):
        place = f"operator/quantize-{fmt}-quotients".lower()
        values = np.unique(fmt.values[np.isfinite(fmt.values)])
        middles = (values[:-1] + values[1:]) / 2
        scale = np.float32(0.023)
        x = (middles * np.float64(scale)).astype(np.float32)
        x = np.concatenate([x, *(np.nextafter(x, np.float32(sign * np.inf)) for sign in (-1, 1))])
        tie = np.isin(x / scale, middles.astype(np.float32))
        exact = np.isin(x.astype(np.float64) / np.float64(scale), middles)
        inputs = {
            "x": builder.give(f"{place}/x", _LEVEL, x[tie & ~exact]),
            "scale": builder.give(f"{place}/scale", _LEVEL, np.asarray(scale)),
        }
        builder.compute(f"{place}/codes", _LEVEL, "quantize", inputs, {"fmt": str(fmt)}, fmt=fmt)


def _add_quantizing(builder: Builder) -> None:
    """Add quantizing with the scales of the numbers' own range, and back, by row and by block."""
    x = random_bfloat16(68, (8, 24), 9)
    x[0] = 0.0
    x[1] *= np.float32(2.0**-126)
    x[2] = np.abs(x[2]) * np.float32(2.0**125)
    x[3, ::2] = -0.0
    x[4] = -np.abs(x[4])
    x[5] = np.float32(0.75)
    x = round_to_bfloat16(x)  # which also has fewer bits below its smallest normal number
    numbers = builder.give("operator/quantize-dynamic/x", _LEVEL, x, kind="bfloat16")
    for name, fmt, groups in (
        ("e4m3-rows", E4M3FN, {"axis": 0}),
        ("e4m3-blocks", E4M3FN, {"axis": 1, "block": 16}),
        ("int8-rows", INT8, {"axis": 0}),
        ("uint8-rows", UINT8, {"axis": 0}),
        ("uint8", UINT8, {}),
    ):
        _add_dynamic(builder, f"operator/quantize-dynamic-{name}", numbers, fmt, groups)


def _add_dynamic(
    builder: Builder, place: str, x: Reference, fmt: Format, groups: dict[str, Any]
) -> None:
    how = {"fmt": str(fmt), **groups}
    builder.compute(f"{place}/scale", _LEVEL, "scale", {"x": x}, how)
    scaling = {"scale": Reference(f"{place}/scale")}
    if fmt.has_zero_point:
        builder.compute(f"{place}/zero_point", _LEVEL, "zero_point", {"x": x}, how, fmt=fmt)
        scaling["zero_point"] = Reference(f"{place}/zero_point")
    builder.compute(f"{place}/codes", _LEVEL, "quantize", {"x": x, **scaling}, how, fmt=fmt)
    inputs = {"x": Reference(f"{place}/codes")}
    inputs |= {f"x_{role}": reference for role, reference in scaling.items()}
    builder.compute(f"{place}/values", _LEVEL, "dequantize", inputs, {"x": how})


# Functions


def _add_functions(builder: Builder) -> None:
    def give(name: str, x: Any) -> Reference:
        numbers = round_to_bfloat16(np.asarray(x, np.float32))
        return builder.give(f"operator/{name}", _LEVEL, numbers, kind="bfloat16")

    def compute(name: str, operation: str, inputs: dict[str, Reference], **how: Any) -> None:
        attributes = _BF16 | how
        kind = attributes["precision"]
        builder.compute(f"operator/{name}", _LEVEL, operation, inputs, attributes, kind=kind)

    numbers = {"x": give("activation-traps/x", _activation_inputs())}
    for function in ("gelu", "gelu_tanh", "silu", "tanh", "relu"):
        compute(f"activation-traps/{function}", "activation", numbers, function=function)
    compute(
        "activation-traps/gelu-float32",
        "activation",
        numbers,
        function="gelu",
        precision="float32",
    )
    rows = {"x": give("softmax-traps/x", _softmax_inputs())}
    compute("softmax-traps/result", "softmax", rows)
    compute("softmax-traps/result-float32", "softmax", rows, precision="float32")
    weight, bias = random_bfloat16(72, (24,)), random_bfloat16(73, (24,))
    weight[:3], bias[2:5] = (0, -1.5, -0.0), (-0.0, 0.0, 2.0**-130)
    inputs = {
        "x": give("layer_norm-traps/x", _layer_norm_inputs()),
        "weight": builder.give("operator/layer_norm-traps/weight", _LEVEL, weight),
        "bias": builder.give("operator/layer_norm-traps/bias", _LEVEL, bias),
    }
    compute("layer_norm-traps/result", "layer_norm", inputs, eps=1e-12)
    compute("layer_norm-traps/result-eps-1e-5", "layer_norm", inputs, eps=1e-5)
    compute("layer_norm-traps/result-float32", "layer_norm", inputs, eps=1e-12, precision="float32")


def _activation_inputs() -> list[float]:
    """List zeros, the tail of GELU down to its end, places where its forms round apart, specials.

    GELU by tanh differs from GELU by erf at most of them; computed in float32, both forms also
    differ from themselves.
    """
    tail = [2, 2.5, 3, 3.5, 4, 4.5, 5, 5.25, 5.5, 6, 7, 8, 9, 10, 11, 12, 13, 13.5, 14, 20, 100]
    small = [2.0**-133, 2.0**-126, 2.0**-60, 2.0**-9, 0.125, 0.5, 0.75, 1, 1.5]
    ends = [0.0, 3.3895314e38, np.inf]
    positive = [*ends, *small, *tail]
    return [*positive, *(-x for x in positive), *_APART, np.nan]


def _softmax_inputs() -> Float32Array:
    """Make rows of 8: equal ones, masked ones, far from 0, and with what float32 drops."""
    inf = np.inf
    ramp = np.arange(8.0)
    below = [0, -80, -86, -87.5, -88, -92, -103, -104]  # e^-87.3 is float32's smallest normal
    rows = [
        np.full(8, 0.1),
        np.full(8, -inf),
        [-inf, -3, *[-inf] * 6],
        [*[-inf] * 3, 5, -inf, 5, -inf, -inf],
        [*[0.25] * 7, -inf],
        1000 + 4 * ramp,
        -1000 - 4 * ramp,
        below,
        [0, 0, 1, np.nan, 2, 0, 0, 0],
        [0, 0, 1, inf, 2, 0, 0, 0],
        [0, -0.0, 2.0**-133, -(2.0**-133), 0, -0.0, 2.0**-60, 0],
        [3.3e38, -3.3e38, 3.3e38, 0, 0, 0, 0, -inf],
        [inf, -inf, 0, 0, 0, 0, 0, 0],
        ramp / 16,
    ]
    return np.array(rows, np.float32)


def _layer_norm_inputs() -> Float32Array:
    """Make rows of 24: constant, with a small variance far from 0, and at both ends of float32."""
    signs = np.where(np.arange(24) % 2, -1.0, 1.0)
    one = np.arange(24) == 7
    random = random_bfloat16(71, (2, 24)).astype(np.float64)
    rows = [
        np.full(24, 1.5),
        np.full(24, -0.1),
        np.zeros(24),
        np.full(24, -0.0),
        16384 + 64 * (1 + signs),  # float32 loses the variance in the mean of the squares
        16384 + 128.0 * one,
        -(2.0**100) * (1 + 2.0**-7 * one),
        signs,
        signs * 2.0**-20,  # the variance is about eps
        signs * 2.0**-30,
        signs * 2.0**-126,
        signs * 3.3e38,
        1e20 * random[0],  # squares are beyond float32
        3.3e38 * one,
        np.full(24, 3.3e38),  # so is their sum
        np.where(one, np.inf, random[1]),
        np.where(one, np.nan, random[1]),
        random[1],
    ]
    return np.array(rows, np.float32)

"""The cases of a kit that need no model: the codec's, and those of each single operator.

Their numbers come from an integer rule (splitmix64), never from a library's
random generator, whose streams may change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bert_numpy.kit.builder import Builder
from bert_numpy.kit.manifest import Reference
from npfp8 import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    INT8,
    UINT8,
)
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import from_bits, round_to_bfloat16
from npfp8.formats import FLOAT_FORMATS, Format, IntFormat
from npfp8.vectors import MODES, boundary_inputs

__all__ = ["add_codec_cases", "add_operator_cases"]


_BF16 = {"precision": "bfloat16"}

#: The modes of the codec's cases, of all those of the test vectors.
_CODEC_MODES = (
    *("nearest-saturating", "nearest", "toward-zero"),
    *("nearest-away", "toward-zero-special", "up-ieee", "down-ieee", "odd-ieee"),
)


def random_bits(seed: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Generate the numbers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) from a seed."""
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(
            0x9E3779B97F4A7C15
        )
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))).reshape(shape)


def random_codes(seed: int, shape: tuple[int, ...], fmt: Format, span: int = 256) -> Array:
    """Generate finite codes; those of a float format are among its ``span`` largest magnitudes."""
    bits = random_bits(seed, shape)
    if isinstance(fmt, IntFormat):
        count = fmt.max_code - fmt.min_code + 1
        return ((bits % np.uint64(count)).astype(np.int64) + fmt.min_code).astype(fmt.code_dtype)
    span = min(span, fmt.max_code + 1)
    magnitudes = fmt.max_code - (bits % np.uint64(span)).astype(np.int64)
    signs = (bits >> np.uint64(40) & np.uint64(1)).astype(np.int64) * fmt.sign_bit
    return (magnitudes | signs).astype(np.uint8)


def random_bfloat16(seed: int, shape: tuple[int, ...], binades: int = 6) -> Float32Array:
    """Generate bfloat16 numbers of magnitude below 4, spread evenly over the binades."""
    bits = random_bits(seed, shape)
    exponents = 128 - (bits >> np.uint64(20)) % np.uint64(binades)
    sign = bits >> np.uint64(50) & np.uint64(1)
    pattern = (sign << np.uint64(15)) | (exponents << np.uint64(7)) | (bits & np.uint64(0x7F))
    return from_bits(pattern.astype(np.uint16))


def add_codec_cases(builder: Builder) -> None:
    """Add each format's decoded codes, and encoded numbers on and beside every boundary."""
    for fmt in FLOAT_FORMATS.values():
        place = f"codec/{fmt}"
        codes = np.arange(fmt.values.size, dtype=np.uint8)
        given = builder.give(f"{place}/codes", "codec", codes, fmt)
        builder.compute(f"{place}/values", "codec", "decode", {"codes": given}, {"fmt": str(fmt)})
        x = boundary_inputs(fmt, "float32").view(np.float32)
        numbers = builder.give(f"{place}/x", "codec", x)
        for mode in _CODEC_MODES:
            how = MODES[mode]
            attributes = {"fmt": str(fmt), "saturate": how.saturate, "rounding": how.rounding}
            if how.overflow != "ieee":
                attributes["overflow"] = how.overflow
            builder.compute(
                f"{place}/{mode}", "codec", "encode", {"x": numbers}, attributes, fmt=fmt
            )


class _Gemm(NamedTuple):
    name: str
    a_fmt: Format
    b_fmt: Format
    a: Array
    b: Array
    a_scale: float = 0.0123
    b_scale: float = 0.037
    bias: bool = False
    zero_point: int | None = None


def _gemms() -> Iterator[_Gemm]:
    def codes(seed: int, m: int, n: int, fmt: Format, span: int = 256) -> Array:
        return random_codes(seed, (m, n), fmt, span)

    f, g = E4M3FN, E5M2
    yield _Gemm("e4m3", f, f, codes(1, 16, 64, f), codes(2, 64, 16, f), bias=True)
    yield _Gemm("square", f, f, codes(3, 8, 32, f), codes(4, 32, 32, f))
    yield _Gemm("k1", f, f, codes(5, 16, 1, f), codes(6, 1, 16, f))
    yield _Gemm("k17", f, f, codes(7, 8, 17, f), codes(8, 17, 8, f))
    # Magnitudes are similar: in such sums a narrow accumulator loses bits.
    yield _Gemm("k4096", f, f, codes(9, 4, 4096, f, 48), codes(10, 4096, 4, f, 48))
    ones = np.full((4, 4096), 0x38, np.uint8)
    yield _Gemm("k4096-ones", f, f, ones, np.ascontiguousarray(ones.T))
    cancelling = codes(11, 8, 256, f, 32)
    right = codes(12, 128, 8, f, 32)
    cancelling[:, 128:] = cancelling[:, :128]
    yield _Gemm("cancellation", f, f, cancelling, np.concatenate([right, right ^ np.uint8(0x80)]))
    tiny = random_codes(13, (8, 64), f) & np.uint8(0x87)
    yield _Gemm("subnormals", f, f, tiny, codes(14, 64, 8, f) & np.uint8(0x87))
    specials = codes(15, 8, 32, f)
    specials[0, 3], specials[1, 4], specials[2] = 0x7F, 0xFF, 0x80
    yield _Gemm("e4m3-nan", f, f, specials, codes(16, 32, 8, f))
    yield _Gemm("e4m3-e5m2", f, g, codes(17, 8, 64, f), codes(18, 64, 8, g))
    yield _Gemm("e5m2-e4m3", g, f, codes(19, 8, 64, g), codes(20, 64, 8, f))
    yield _Gemm("e5m2", g, g, codes(21, 8, 64, g), codes(22, 64, 8, g))
    infinite, other = codes(23, 8, 32, g), codes(24, 32, 8, g)
    infinite[0, 0], infinite[1, 1], infinite[2, 2], infinite[3, :2] = 0x7C, 0xFC, 0x7E, (0x7C, 0xFC)
    other[0, 0], other[1, 1] = 0x00, 0x7C
    yield _Gemm("e5m2-infinities", g, g, infinite, other)
    huge = np.full((4, 64), 0x7E, np.uint8)
    yield _Gemm("overflow", f, f, huge, np.ascontiguousarray(huge.T), 1e18, 1e18)
    yield _Gemm("int8", INT8, INT8, codes(25, 8, 64, INT8), codes(26, 64, 8, INT8), bias=True)
    zero = UINT8, INT8, codes(27, 8, 64, UINT8), codes(28, 64, 8, INT8)
    yield _Gemm("uint8-int8", *zero, zero_point=117)
    # These tell the accumulators of tensor cores apart, with the ones above: numbers whose sums
    # float16 holds, and formats that only some of them take.
    for name, a_fmt, b_fmt in (("e4m3-e5m2", f, g), ("e5m2-e4m3", g, f), ("e5m2", g, g)):
        # The exponents of E5M2 are cut at both ends of its range.
        left, right = codes(53, 4, 512, a_fmt), codes(54, 512, 4, b_fmt)
        masks = [np.uint8(0xBF if fmt is f else 0xB7) for fmt in (a_fmt, b_fmt)]
        yield _Gemm(f"{name}-small", a_fmt, b_fmt, left & masks[0], right & masks[1])
    h, i = E4M3FNUZ, E5M2FNUZ
    yield _Gemm("e4m3fnuz", h, h, codes(43, 8, 128, h), codes(44, 128, 8, h))
    yield _Gemm("e5m2fnuz-e4m3fnuz", i, h, codes(45, 8, 128, i), codes(46, 128, 8, h))
    for name, a_fmt, b_fmt, k in (
        ("e3m2", E3M2, E3M2, 1024),
        ("e2m3-e3m2", E2M3, E3M2, 4096),
        ("e2m1", E2M1, E2M1, 1024),
    ):
        yield _Gemm(name, a_fmt, b_fmt, codes(55, 8, 96, a_fmt), codes(56, 96, 8, b_fmt))
        # Positive, so that sums need more bits than float16 has; and than float32, but for E2M1.
        left, right = codes(47, 2, k, a_fmt, 16), codes(48, k, 2, b_fmt, 8)
        left[:, ::7] &= 7
        right[::7] &= 7
        signs = np.uint8(a_fmt.sign_bit), np.uint8(b_fmt.sign_bit)
        yield _Gemm(f"{name}-positive", a_fmt, b_fmt, left & ~signs[0], right & ~signs[1])


def _add_gemm(builder: Builder, case: _Gemm) -> None:
    place = f"operator/gemm-{case.name}"

    def give(what: str, x: Any, fmt: Format | None = None) -> Reference:
        return builder.give(f"{place}/{what}", "operator", np.asarray(x), fmt)

    inputs = {"a": give("a", case.a, case.a_fmt), "b": give("b", case.b, case.b_fmt)}
    attributes = {
        "a": {"fmt": str(case.a_fmt), "ndim": 2},
        "b": {"fmt": str(case.b_fmt), "ndim": 2},
    }
    if case.zero_point is not None:
        inputs["a_zero_point"] = give("a.zero_point", np.uint8(case.zero_point), UINT8)
    scales = {
        "a_scale": give("a.scale", np.float32(case.a_scale)),
        "b_scale": give("b.scale", np.float32(case.b_scale)),
    }
    builder.compute(f"{place}/sum", "operator", "sum", inputs, attributes)
    inputs = {"sum": Reference(f"{place}/sum"), **scales}
    if case.bias:
        bias = random_bfloat16(99, (case.b.shape[1],))
        inputs["bias"] = give("bias", bias)
    builder.compute(f"{place}/product", "operator", "scale_sum", inputs, attributes)
    product = {"x": Reference(f"{place}/product")}
    builder.compute(f"{place}/result", "operator", "round", product, kind="bfloat16")


def _add_bfloat16_products(builder: Builder) -> None:
    """Add products of numbers that are not quantized, of many binades."""
    for name, m, k, n in (("bfloat16", 8, 256, 8), ("bfloat16-k17", 4, 17, 4)):
        place = f"operator/gemm-{name}"
        inputs = {
            role: builder.give(
                f"{place}/{role}",
                "operator",
                random_bfloat16(seed, shape, 24),
                kind="bfloat16",
            )
            for role, seed, shape in (("a", 51, (m, k)), ("b", 52, (k, n)))
        }
        builder.compute(f"{place}/product", "operator", "product", inputs)
        product = {"x": Reference(f"{place}/product")}
        builder.compute(f"{place}/result", "operator", "round", product, kind="bfloat16")


def add_operator_cases(builder: Builder) -> None:
    """Add products, quantization, softmax, GELU, LayerNorm and the rest, with their extremes."""
    for case in _gemms():
        _add_gemm(builder, case)
    _add_bfloat16_products(builder)
    _add_quantize(builder)
    _add_elementwise(builder)


def _add_quantize(builder: Builder) -> None:
    x = _interesting_bfloat16()
    finite = x[np.isfinite(x)]
    cases: list[tuple[str, Float32Array, Format, float, int | None]] = [
        ("e4m3", x, E4M3FN, 0.0123, None),
        ("e5m2", x, E5M2, 0.0123, None),
        ("int8", finite, INT8, 0.0123, None),
        ("uint8", finite, UINT8, 0.0123, 117),
    ]
    # The quotients are ties, or next to a tie: here x / scale and x * (1 / scale) differ.
    for fmt in (E4M3FN, INT8):
        values = np.unique(fmt.values[np.isfinite(fmt.values)])
        ties = ((values[:-1] + values[1:]) / 2 * 0.0123).astype(np.float32)
        beside = [np.nextafter(ties, np.float32(sign * np.inf)) for sign in (-1, 1)]
        exact = ((values[:-1] + values[1:]) * 1.5).astype(np.float32)  # by 3 these are ties
        name = f"{fmt}-ties".lower()
        cases += [
            (name, np.concatenate([ties, *beside]), fmt, 0.0123, None),
            (f"{name}-by-3", exact, fmt, 3.0, None),
        ]
    for name, numbers, fmt, scale, zero_point in cases:
        place = f"operator/quantize-{name}"
        kind = "float32" if "ties" in name else "bfloat16"
        inputs = {
            "x": builder.give(f"{place}/x", "operator", numbers, kind=kind),
            "scale": builder.give(f"{place}/scale", "operator", np.asarray(np.float32(scale))),
        }
        if zero_point is not None:
            zero = np.asarray(zero_point, np.uint8)
            inputs["zero_point"] = builder.give(f"{place}/zero_point", "operator", zero, fmt)
        attributes = {"fmt": str(fmt)}
        builder.compute(f"{place}/codes", "operator", "quantize", inputs, attributes, fmt=fmt)


def _interesting_bfloat16() -> Float32Array:
    """List every third number of 2^-14..2^10, some of all binades, and specials, of both signs."""
    bits = np.concatenate(
        [
            np.arange(0, 0x7F80, 61),
            np.arange(0x3880, 0x4480, 3),
            [0, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0x7FC0],
        ]
    )
    bits = np.unique(np.concatenate([bits, bits + 0x8000])).astype(np.uint16)
    return from_bits(bits)


def _add_elementwise(builder: Builder) -> None:
    def give(name: str, x: Float32Array) -> Reference:
        return builder.give(f"operator/{name}", "operator", x, kind="bfloat16")

    def compute(name: str, operation: str, inputs: dict[str, Reference], **how: Any) -> None:
        attributes = _BF16 | how
        builder.compute(
            f"operator/{name}", "operator", operation, inputs, attributes, kind="bfloat16"
        )

    numbers = give("activation/x", _interesting_bfloat16())
    for function in ("gelu", "gelu_tanh", "silu", "tanh", "relu"):
        compute(f"activation/{function}", "activation", {"x": numbers}, function=function)

    rows = random_bfloat16(31, (12, 33), 8)
    rows[1], rows[2, 1:], rows[3, 5] = 0.0, -np.inf, np.inf
    rows[4, 7], rows[5], rows[6] = np.nan, 3.0e38, -3.0e38
    rows[7, ::2] = -np.inf
    rows[8] = rows[8] * np.float32(32)
    rows[9] = from_bits(np.arange(33, dtype=np.uint16))  # subnormals
    wide = {
        "softmax-n33": rows,
        "softmax-n1": random_bfloat16(32, (4, 1)),
        "softmax-n2": random_bfloat16(33, (16, 2), 8),
        "softmax-n512": random_bfloat16(34, (2, 512), 4),
    }
    for name, x in wide.items():
        compute(f"{name}/result", "softmax", {"x": give(f"{name}/x", x)})

    states = random_bfloat16(35, (12, 48))
    states[1], states[2], states[3, 0] = 1.5, 0.0, 3.0e38
    states[4, 3], states[5, 4], states[6] = np.nan, np.inf, states[6] * np.float32(2.0**-120)
    states[7] = round_to_bfloat16(np.float32(1000) + states[7])
    parameters = {
        "x": give("layer_norm/x", states),
        "weight": builder.give(
            "operator/layer_norm/weight", "operator", random_bfloat16(36, (48,))
        ),
        "bias": builder.give("operator/layer_norm/bias", "operator", random_bfloat16(37, (48,))),
    }
    compute("layer_norm/result", "layer_norm", parameters, eps=1e-12)

    x = _interesting_bfloat16()
    pair = {"x": give("add/x", x), "y": give("add/y", random_bfloat16(38, x.shape, 16))}
    compute("add/result", "add", pair)
    compute("multiply/result", "multiply", {"x": pair["x"]}, factor=float(np.float32(0.17677669)))

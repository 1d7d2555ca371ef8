"""The cases of block formats: quantizing by every rule that is confused, and the traps of each.

Like all cases they follow from integer rules; see :mod:`bert_numpy.kit.cases`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.kit.block_operations import described
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import random_bfloat16, random_bits, random_codes
from bert_numpy.kit.manifest import Reference
from npfp8 import (
    E2M1,
    E3M2,
    E4M3FN,
    E8M0FNU,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    BlockFormat,
)
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.blocks.formats import BLOCK_FORMATS, with_rule
from npfp8.blocks.layouts import BLOCK_LAYOUTS, unpack_codes
from npfp8.formats import Format

__all__ = ["add_block_cases"]

#: The rules of each format that are confused with each other.
_RULES: dict[str, Sequence[str]] = {
    "MXFP4": ("floor", "rceil", "ceil", "even", "trunc", "compressed-tensors", "microxcaling"),
    "MXFP8_E4M3": ("floor", "rceil", "ceil", "even", "compressed-tensors"),
    "NVFP4": ("te", "exact", "modelopt", "torchao", "compressed-tensors", "vllm"),
}


def add_block_cases(builder: Builder) -> None:
    """Add quantizing to each block format, reading its codes, its layouts, and its products."""
    _add_quantizing(builder)
    _add_parties(builder)
    _add_axes(builder)
    _add_reading(builder)
    _add_layouts(builder)
    _add_products(builder)


def _quantize(
    builder: Builder,
    place: str,
    x: Reference,
    fmt: BlockFormat,
    axis: int,
    source: str = "float32",
) -> None:
    names = {role: f"{place}/{role}" for role in ("tensor_scale", "scale_codes", "codes")}
    builder.quantize_blocks(names, "operator", x, fmt, axis, source=source)


def normal_numbers(seed: int, shape: tuple[int, ...]) -> Float32Array:
    """Generate numbers whose distribution is nearly normal: sums of four uniform ones."""
    bits = random_bits(seed, shape)
    parts = (bits >> np.uint64(16 * i) & np.uint64(0xFFFF) for i in range(4))
    total = sum(part.astype(np.int64) for part in parts) - 2 * 0xFFFF
    return (total / 2.0**15).astype(np.float32)


def _add_quantizing(builder: Builder) -> None:
    powers, ratios = _power_blocks(), _ratio_blocks()
    for fmt in BLOCK_FORMATS.values():
        ratio = fmt.tensor_scale
        x = builder.give(
            f"operator/blocks-of-{fmt.block}/x", "operator", ratios if ratio else powers
        )
        for rule in _RULES.get(fmt.name, ("floor", "rceil")):
            place = f"operator/quantize-{fmt}-{rule}".lower()
            _quantize(builder, place, x, with_rule(fmt, rule), 1)


#: The parties that have their own ways with a NaN, an infinity or -0.
_SPECIAL = {
    "MXFP4": ("torchao", "torchao-rceil", "microxcaling", "modelopt", "triton"),
    "MXFP8_E4M3": ("torchao", "torchao-rceil", "microxcaling", "modelopt", "triton", "te", "vllm"),
}


def _add_parties(builder: Builder) -> None:
    """Add what parties make of special numbers, and rules that compute in bfloat16."""
    rows = normal_numbers(104, (6, 32))
    rows[0, 3], rows[1, 4], rows[2, 5], rows[3, ::7] = np.nan, np.inf, -np.inf, -0.0
    rows[4], rows[5, :2] = -0.0, (np.nan, np.inf)
    x = builder.give("operator/blocks-special/x", "operator", rows)
    for name, rules in _SPECIAL.items():
        for rule in rules:
            place = f"operator/quantize-{name}-{rule}-special".lower()
            _quantize(builder, place, x, with_rule(BLOCK_FORMATS[name], rule), 1)
    numbers = round_to_bfloat16(normal_numbers(114, (128, 16)) * np.float32(0.02))
    x = builder.give("operator/blocks-bfloat16/x", "operator", numbers, kind="bfloat16")
    for rule in ("te", "compressed-tensors"):
        for source in ("float32", "bfloat16"):
            place = f"operator/quantize-nvfp4-{rule}-of-{source}"
            _quantize(builder, place, x, with_rule(NVFP4, rule), 1, source)


def _power_blocks() -> Float32Array:
    """Make blocks of 32 for scales that are powers of two."""
    rows = [*np.ldexp(normal_numbers(101, (8, 32)), np.arange(-5, 3)[:, None])]
    rows += [*round_to_bfloat16(normal_numbers(102, (8, 32)) * np.float32(0.02))]
    # The largest magnitude is where some rule doubles the scale, and beside it.
    fractions = np.abs(normal_numbers(103, (20, 32)))
    fractions = np.minimum(fractions / 4, np.float32(0.99)) * np.float32(1)
    edges = np.array([1, 1.5, 1.75, 1.875, 1.9375, 1.96875], np.float32)
    beside = [np.nextafter(edges, np.float32(end)) for end in (0, 4)]
    for i, edge in enumerate(np.stack([beside[0], edges, beside[1]], 1).reshape(-1)):
        largest = np.ldexp(edge, (-3, 0, 5, 20, -40)[i // 3 % 5])
        row = largest * fractions[i] * np.where(np.arange(32) % 3 == 1, -1, 1)
        row[i] = -largest if i % 2 else largest
        rows.append(row)
    for fmt in BLOCK_FORMATS.values():
        if fmt.powers_of_two:
            rows += _ties(fmt.element, 32)
    ramp = np.arange(1, 33, dtype=np.float32)
    signs = np.where(np.arange(32) % 2, np.float32(-1), np.float32(1))
    zeros = np.zeros(32, np.float32)
    rows += [zeros, zeros * signs, -zeros]
    rows += [ramp * signs / 32 * np.float32(scale) for scale in (3.4028235e38, 3e38, 2.0**127)]
    # Largest magnitudes that are subnormal, or whose scale would be below all others.
    tiny = (2.0**-149, 3 * 2.0**-148, 2.0**-127, 1.5 * 2.0**-127, 1.6 * 2.0**-127, 2.0**-126)
    rows += [ramp * signs / 32 * np.float32(scale) for scale in (*tiny, 1.75 * 2.0**-120)]
    return np.stack(rows).astype(np.float32)


def _ties(element: Format, block: int, scale: float = 1.0) -> list[Float32Array]:
    """List blocks of an element's midpoints, each after the largest value and next to others."""
    values = element.values[np.isfinite(element.values)]
    values = np.unique(values[values >= 0])
    midpoints = (values[:-1] + values[1:]) / 2
    length = block - 1
    rows = []
    for start in range(0, midpoints.size, length):
        part = midpoints[start : start + length]
        row = np.zeros(block)
        row[0], row[1 : part.size + 1] = element.max, part
        row[1::2] *= -1
        rows.append((row * scale).astype(np.float32))
    return rows


def _ratio_blocks() -> Float32Array:
    """Make blocks of 16 for scales with a mantissa; the largest number of all is 6 * 448 / 4."""
    top = np.float32(NVFP4.element.max * NVFP4.scale_format.max / 4)
    rows = [*np.ldexp(normal_numbers(111, (24, 16)), np.arange(-16, 8)[:, None])]
    rows += [*round_to_bfloat16(normal_numbers(112, (16, 16)) * np.float32(0.02))]
    # The largest magnitude is where the scale's code changes, and beside it.
    scales = NVFP4.scale_format.values[:127]
    midpoints = ((scales[:-1] + scales[1:]) / 2 * 6 / 4).astype(np.float32)[::6]
    fractions = np.minimum(np.abs(normal_numbers(113, (3 * midpoints.size, 16))) / 3, 0.99)
    beside = [np.nextafter(midpoints, np.float32(end)) for end in (0, np.inf)]
    for i, largest in enumerate(np.stack([beside[0], midpoints, beside[1]], 1).reshape(-1)):
        row = largest * fractions[i].astype(np.float32) * np.float32(-1 if i % 2 else 1)
        row[i % 16] = largest
        rows.append(row)
    for exponent in (-9, -3, 0, 5):
        rows += _ties(NVFP4.element, 16, 2.0**exponent / 4)
        rows += _ties(NVFP4.element, 16, 1.125 * 2.0**exponent / 4)
    zeros = np.zeros(16, np.float32)
    signs = np.where(np.arange(16) % 2, np.float32(-1), np.float32(1))
    rows += [zeros, zeros * signs, -zeros]
    rows += [signs * np.float32(scale) for scale in (2.0**-149, 2.0**-126, 2.0**-20, 2.0**-11)]
    rows.append(top * signs)
    return np.stack(rows).astype(np.float32)


def _add_axes(builder: Builder) -> None:
    """Add a matrix that has blocks along both axes, and whole tiles of scales; short blocks too."""
    binades = (random_bits(121, (128, 8)) % np.uint64(7)).astype(np.int64) - 3
    x = normal_numbers(122, (128, 128)) * np.ldexp(np.float32(1), binades).repeat(16, axis=1)
    matrix = builder.give(
        "operator/blocks-matrix/x", "operator", round_to_bfloat16(x), kind="bfloat16"
    )
    short = round_to_bfloat16(normal_numbers(123, (5, 40, 3)))
    ragged = builder.give("operator/blocks-short/x", "operator", short, kind="bfloat16")
    for fmt in (MXFP4, NVFP4):
        place = f"operator/quantize-{fmt}".lower()
        _quantize(builder, f"{place}-matrix", matrix, fmt, 1)
        _quantize(builder, f"{place}-short", ragged, fmt, 1)


def _reading() -> Iterator[tuple[str, BlockFormat, Array, Array, float | None]]:
    """Yield codes with scales of all kinds: a name, the format, codes, scales, the tensor's."""
    for fmt in BLOCK_FORMATS.values():
        codes = np.arange(fmt.element.values.size, dtype=np.uint8)
        blocks = -(-codes.size // fmt.block)
        powers = fmt.powers_of_two
        kinds = [0, 1, 2, 100, 126, 127, 128, 200, 253, 254, 255] if powers else [
            *(0x00, 0x01, 0x07, 0x08, 0x09, 0x30, 0x38, 0x39, 0x47, 0x7E, 0x7F, 0x55)
        ]  # fmt: skip
        rows = -(-len(kinds) // blocks)
        others = range(64, 64 + rows * blocks - len(kinds))  # no scale is there twice
        scales = np.array([*kinds, *others], np.uint8).reshape(rows, blocks)
        every = np.broadcast_to(codes, (rows, codes.size)).view(fmt.element.code_dtype)
        if not fmt.tensor_scale:
            yield f"{fmt}", fmt, every, scales, None
            continue
        for rule in ("te", "compressed-tensors"):
            yield f"{fmt}-{rule}", with_rule(fmt, rule), every, scales, 0.0123


def _add_reading(builder: Builder) -> None:
    for name, fmt, codes, scales, number in _reading():
        place = f"operator/dequantize-{name}".lower()
        how = described(fmt, 1)
        inputs = {
            "scale_codes": builder.give(
                f"{place}/scale_codes", "operator", scales, fmt.scale_format
            )
        }
        if number is not None:
            one = np.asarray(np.float32(number))
            inputs["tensor_scale"] = builder.give(f"{place}/tensor_scale", "operator", one)
        builder.compute(f"{place}/scale", "operator", "block_scales", inputs, how)
        inputs = {
            "x": builder.give(f"{place}/codes", "operator", codes, fmt.element),
            "x_scale": Reference(f"{place}/scale"),
        }
        builder.compute(f"{place}/values", "operator", "dequantize", inputs, {"x": how})


def _add_layouts(builder: Builder) -> None:
    """Add codes and scales that no two layouts put into the same bytes."""
    layouts: tuple[str, ...]
    for fmt, layouts in ((E2M1, ("low-first", "high-first", "ptx", "ptx-padded")),
                         (E3M2, ("low-first", "high-first", "split", "ptx-padded"))):  # fmt: skip
        place = f"operator/packed-{fmt}".lower()
        # The bytes are all distinct. The last group of codes is not whole.
        data = (np.arange(32 * fmt.bits) * 167 % 256).astype(np.uint8).reshape(4, -1)
        unpacked = unpack_codes(data, fmt)
        packed = builder.give(f"{place}/bytes", "operator", data)
        codes = builder.give(f"{place}/codes", "operator", unpacked[:, :-1], fmt)
        for layout in layouts:
            how: dict[str, Any] = {"fmt": str(fmt), "layout": layout}
            name = f"{place}/{layout}"
            builder.compute(name, "operator", "pack_codes", {"codes": codes}, how, kind="bytes")
            if not layout.startswith("ptx"):
                how["length"] = unpacked.shape[1]
                inputs = {"bytes": packed}
                builder.compute(f"{name}-codes", "operator", "unpack_codes", inputs, how, fmt=fmt)
    for rows, blocks, layouts in (
        (128, 8, ("128x4", "8x4", "4x4", "te-columnwise")),
        (160, 6, ("128x4", "8x4", "te-rowwise")),
    ):
        place = f"operator/scales-{rows}x{blocks}"
        index = np.arange(rows * blocks)
        # One byte has too few values for all places. In each of the two any 241 in a row are
        # distinct, and no two places have the same pair.
        for part, numbers in (("low", index % 251), ("high", index * 7 % 241)):
            matrix = numbers.astype(np.uint8).reshape(rows, blocks)
            given = builder.give(f"{place}/{part}", "operator", matrix, E8M0FNU)
            for layout in layouts:
                name, how = f"{place}/{part}-{layout}", {"fmt": "E8M0FNU", "layout": layout}
                inputs = {"codes": given}
                builder.compute(name, "operator", "pack_scales", inputs, how, fmt=E8M0FNU)
                how |= {"shape": [rows, blocks]}
                inputs = {"codes": Reference(name)}
                builder.compute(
                    f"{name}-back", "operator", "unpack_scales", inputs, how, fmt=E8M0FNU
                )
    for blocked in (MXFP4, MXFP6_E3M2):
        place = f"operator/packed-{blocked}".lower()
        bits, layout = next(
            codes
            for codes in BLOCK_LAYOUTS["quark"].codes
            if 1 << codes[0] == blocked.element.values.size
        )
        data = (np.arange(3 * 8 * bits) * 167 % 256).astype(np.uint8).reshape(3, -1)
        elements = unpack_codes(data, blocked.element, layout=layout)
        scales = distinct_scales(132, (3, 2), blocked)
        inputs = {
            "codes": builder.give(f"{place}/block-codes", "operator", elements, blocked.element),
            "scale_codes": builder.give(f"{place}/scale_codes", "operator", scales, E8M0FNU),
        }
        how = described(blocked, 1, layout="quark")
        builder.compute(f"{place}/quark", "operator", "pack_blocks", inputs, how, kind="bytes")


def distinct_scales(
    seed: int, shape: tuple[int, int], fmt: BlockFormat, near: int | None = None
) -> Array:
    """Generate codes of the scales of rows of blocks, no two alike, so that a wrong address shows.

    A scale counts in a sum only if the others of its row are not far larger. So ``near``
    rows (about 8 scales) share a run of codes around that of 1, in no order. If there are more
    scales than codes, a code comes again after a distance at which no layout has a neighbour.
    """
    rows, blocks = shape
    near = max(1, 8 // blocks) if near is None else near
    if not fmt.powers_of_two:
        order = np.argsort(random_bits(seed, (rows * blocks,)), kind="stable")
        assert order.size <= 0x7E
        return (order + 0x7F - max(order.size, 0x50)).astype(np.uint8).reshape(shape)
    if rows * blocks > _CODES:
        index = np.arange(rows * blocks) % _CODES
        return (index + 127 - _CODES // 2).astype(np.uint8).reshape(shape)
    runs = [
        np.argsort(random_bits(seed + 1000 * start, (min(near, rows - start) * blocks,)))
        + start * blocks
        for start in range(0, rows, near)
    ]
    index = np.concatenate(runs)
    return (index + 127 - index.size // 2).astype(np.uint8).reshape(shape)


#: A prime number of codes of scales: no distance of addresses in a layout is near a multiple.
_CODES = 149


class _Product(NamedTuple):
    name: str
    a_fmt: BlockFormat | Format
    b_fmt: BlockFormat | Format
    a: Array
    b: Array
    a_scales: Array
    b_scales: Array
    accumulate: str = "exact"
    bias: bool = False


def _product(name: str, m: int, k: int, n: int, a_fmt: Any, b_fmt: Any, **more: Any) -> _Product:
    """Make a product of random codes and scales."""
    seed = 140 + sum(name.encode()) % 97
    elements = [getattr(fmt, "element", fmt) for fmt in (a_fmt, b_fmt)]
    parts = []
    for i, (fmt, lines) in enumerate(((a_fmt, m), (b_fmt, n))):
        if not isinstance(fmt, BlockFormat):
            parts.append(np.asarray(np.float32(0.0123)))
            continue
        # In a row of mxfp6's they are further apart: it tells accumulators apart that way.
        near = lines if name == "mxfp6" else None
        codes = distinct_scales(seed + 10 + i, (lines, -(-k // fmt.block)), fmt, near)
        parts.append(codes if i == 0 else codes.T)
    a, b = random_codes(seed, (m, k), elements[0]), random_codes(seed + 1, (k, n), elements[1])
    return _Product(name, a_fmt, b_fmt, a, b, parts[0], parts[1], **more)


def _crowded(case: _Product, fmt: BlockFormat) -> _Product:
    """Let the largest products of each block come before the smallest, in the first sum."""
    assert fmt.element is E2M1
    case.a[0], case.b[:, 0] = 7, 7  # 6
    case.a[0, fmt.block - 1 :: fmt.block] = case.b[fmt.block - 1 :: fmt.block, 0] = 1  # 0.5
    return case


def _products() -> Iterator[_Product]:
    eight, four = MXFP8_E4M3, MXFP4
    yield _product("mxfp8", 16, 64, 16, eight, eight, bias=True)
    yield _product("mxfp6", 8, 64, 8, MXFP6_E2M3, MXFP6_E3M2)
    yield _product("mxfp4", 16, 96, 8, four, four, bias=True)
    yield _product("mxint8", 8, 64, 8, MXINT8, MXINT8)
    yield _product("mxfp8-mxfp4", 8, 64, 8, eight, four)
    yield _product("e4m3-mxfp4", 8, 64, 8, E4M3FN, four, bias=True)
    yield _product("mxfp4-short", 8, 40, 8, four, four)
    yield _product("mxfp4-tiles", 128, 128, 8, four, four)
    yield _product("nvfp4", 16, 64, 16, NVFP4, NVFP4, bias=True)
    yield _product("nvfp4-short", 8, 40, 8, NVFP4, NVFP4)
    divided = with_rule(NVFP4, "compressed-tensors")
    yield _product("nvfp4-divided", 8, 64, 8, divided, divided)
    for name, fmt in (("mxfp4-block-sums", four), ("nvfp4-block-sums", NVFP4)):
        yield _product(name, 8, 128, 8, fmt, fmt, accumulate="block-sums")
    # Scales of many binades: here the accumulators of tensor cores lose bits.
    for name, fmt in (("mxfp8", eight), ("mxfp6", MXFP6_E3M2), ("mxfp4", four)):
        wide = _product(f"{name}-wide", 8, 128, 8, fmt, fmt)
        wide.a_scales[:] = distinct_scales(152, (8, 4), fmt, near=8)
        wide.b_scales[:] = distinct_scales(153, (8, 4), fmt, near=8).T
        yield _crowded(wide, fmt) if fmt is four else wide
    wide = _product("nvfp4-wide", 8, 128, 8, NVFP4, NVFP4)
    for seed, scales in ((154, wide.a_scales), (155, wide.b_scales)):
        order = np.argsort(random_bits(seed, (0x7F,)))  # of all codes, also of subnormals and 0
        scales[:] = order[: scales.size].reshape(scales.shape)
    yield _crowded(wide, NVFP4)
    # The first and the third block cancel, and are 2^40 times the second.
    for name, accumulate in (("cancellation", "exact"), ("cancellation-block-sums", "block-sums")):
        case = _product(f"mxfp8-{name}", 8, 96, 8, eight, eight, accumulate=accumulate)
        case.a[:, 64:], case.b[64:] = case.a[:, :32], case.b[:32] ^ 0x80
        case.a_scales[:] = 147, 107, 147
        case.b_scales[:] = 127
        yield case
    small = _product("mxfp8-smallest-scales", 8, 64, 8, eight, eight)
    small.a_scales[:], small.b_scales[:] = (0, 1), distinct_scales(150, (8, 2), eight, near=8).T
    yield small
    large = _product("mxfp8-largest-scales", 8, 64, 8, eight, eight)
    large.a_scales[:] = 254, 240
    large.b_scales[:] = distinct_scales(151, (8, 2), eight, near=8).T - 9
    yield large
    special = _product("mxfp8-nan", 8, 64, 8, eight, eight)
    special.a_scales[1, 0] = special.b_scales[1, 2] = 255
    special.a[2, 3], special.a[3], special.a_scales[3] = 0x7F, 0, 0
    yield special
    infinite = _product("mxfp8-e5m2-infinities", 8, 64, 8, MXFP8_E5M2, MXFP8_E5M2)
    infinite.a[0, 0], infinite.a[1, :2], infinite.b[5, 3] = 0x7C, (0x7C, 0xFC), 0x7C
    infinite.a[4, 5] = 0
    yield infinite


def _add_products(builder: Builder) -> None:
    for case in _products():
        _add_product(builder, case)


def _add_product(builder: Builder, case: _Product) -> None:
    place = f"operator/block-gemm-{case.name}"
    attributes: dict[str, Any] = {}
    inputs: dict[str, Reference] = {}
    factors: dict[str, Reference] = {}

    def give(what: str, x: Array, fmt: Format | None = None) -> Reference:
        return builder.give(f"{place}/{what}", "operator", x, fmt)

    for name, fmt, codes, scales, axis in (
        ("a", case.a_fmt, case.a, case.a_scales, 1),
        ("b", case.b_fmt, case.b, case.b_scales, 0),
    ):
        if not isinstance(fmt, BlockFormat):
            inputs[name] = give(name, codes, fmt)
            factors[f"{name}_scale"] = give(f"{name}.scale", scales)
            attributes[name] = {"fmt": str(fmt), "ndim": 2}
            continue
        attributes[name] = described(fmt, axis, ndim=2)
        inputs[name] = give(name, codes, fmt.element)
        inputs[f"{name}_scale_codes"] = give(f"{name}.scale_codes", scales, fmt.scale_format)
        if fmt.tensor_scale:
            divides = fmt.rule == "compressed-tensors"
            number = np.asarray(np.float32(2688 / 3.7 if divides else 0.0123))
            factors[f"{name}_tensor_scale"] = give(f"{name}.tensor_scale", number)
    if case.accumulate != "exact":
        attributes["accumulate"] = case.accumulate
    builder.compute(f"{place}/sum", "operator", "block_sum", inputs, attributes)
    if case.bias:
        factors["bias"] = give("bias", random_bfloat16(99, (case.b.shape[1],)))
    if factors:
        inputs = {"sum": Reference(f"{place}/sum"), **factors}
        builder.compute(f"{place}/product", "operator", "block_product", inputs, attributes)

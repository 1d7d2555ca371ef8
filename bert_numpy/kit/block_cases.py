"""The cases of block formats: quantizing by every rule that is confused, and the traps of each.

Like all cases they follow from integer rules; see :mod:`bert_numpy.kit.cases`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bert_numpy.kit.builder import Builder
from bert_numpy.kit.cases import random_bits
from bert_numpy.kit.manifest import Reference
from npfp8 import MXFP4, NVFP4, BlockFormat
from npfp8.arrays import Array, Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.blocks.formats import BLOCK_FORMATS, with_rule
from npfp8.formats import Format

__all__ = ["add_block_cases", "described", "quantized"]

#: The rules of each format that are confused with each other.
_RULES: dict[str, Sequence[str]] = {
    "MXFP4": ("floor", "rceil", "ceil", "even", "trunc", "compressed-tensors", "microxcaling"),
    "MXFP8_E4M3": ("floor", "rceil", "ceil", "even", "compressed-tensors"),
    "NVFP4": ("te", "exact", "modelopt", "torchao", "compressed-tensors", "vllm"),
}


def add_block_cases(builder: Builder) -> None:
    """Add quantizing to each block format, blocks along each axis, and reading codes."""
    _add_quantizing(builder)
    _add_axes(builder)
    _add_reading(builder)


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


def quantized(
    builder: Builder,
    names: tuple[str, str, str],
    level: str,
    x: Reference,
    fmt: BlockFormat,
    axis: int,
    tensor_scale: Reference | None = None,
    **more: Any,
) -> dict[str, Reference]:
    """Add the steps of quantizing, and return their results by role.

    Parameters
    ----------
    builder : Builder
    names : (str, str, str)
        The names of the tensor scale, the scale codes and the codes.
    level : str
    x : Reference
    fmt : BlockFormat
    axis : int
    tensor_scale : Reference, optional
        The number of the tensor, if it is known before; without it, it is computed.
    more
        Further attributes.
    """
    how = described(fmt, axis, **more)
    inputs = {"x": x}
    if fmt.tensor_scale:
        if tensor_scale is None:
            builder.compute(names[0], level, "tensor_scale", inputs, how)
            tensor_scale = Reference(names[0])
        inputs["tensor_scale"] = tensor_scale
    builder.compute(names[1], level, "scale_codes", inputs, how, fmt=fmt.scale_format)
    inputs["scale_codes"] = Reference(names[1])
    builder.compute(names[2], level, "block_codes", inputs, how, fmt=fmt.element)
    return {role: inputs[role] for role in inputs if role != "x"} | {"codes": Reference(names[2])}


def _names(place: str) -> tuple[str, str, str]:
    return f"{place}/tensor_scale", f"{place}/scale_codes", f"{place}/codes"


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
            quantized(builder, _names(place), "operator", x, with_rule(fmt, rule), 1)


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
        quantized(builder, _names(f"{place}-matrix"), "operator", matrix, fmt, 1)
        quantized(builder, _names(f"{place}-short"), "operator", ragged, fmt, 1)


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
        scales = np.resize(np.array(kinds, np.uint8), (rows, blocks))
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

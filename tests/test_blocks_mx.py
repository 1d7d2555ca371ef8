"""MX's rules: bit for bit against the parties' own code, and against exact arithmetic."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import block_oracles as oracles
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.extra import numpy as hnp
from parties import as_torch, nibbles, party

import npfp8
from npfp8 import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    E5M2,
    FIXED8,
    INT8,
    MXFP4,
    MXFP8_E4M3,
    POWER_RULES,
    BlockFormat,
    FloatFormat,
    Format,
    quantize,
)
from npfp8.blocks.quantize import quantize_blocks

FLOATS = (E4M3FN, E5M2, E2M3, E3M2, E2M1)
ELEMENTS = (*FLOATS, FIXED8)
PLAIN = ("floor", "rceil", "ceil", "even", "trunc")
SOURCES = tuple(oracles.TYPES)

Array = oracles.Array


def codes_of(x: Array, element: Format, rule: str, source: str) -> tuple[Array, Array]:
    """Quantize blocks, numbers of a type in float32, along the last axis; as bytes."""
    fmt = BlockFormat(element, x.shape[-1], rule=rule)
    found = quantize_blocks(x, fmt, x.ndim - 1, source)
    return found.scale_codes.reshape(-1), found.codes.view(np.uint8)


def assert_equal(x: Array, element: Format, rule: str, source: str, theirs: Any) -> None:
    """Compare the codes of scales and elements, and show the first block that differs."""
    scales, codes = codes_of(x, element, rule, source)
    their_scales, their_codes = np.asarray(theirs[0]).reshape(-1), np.asarray(theirs[1])
    if their_codes.dtype.itemsize > 1:
        their_codes = their_codes.astype(np.uint8)
    their_codes = their_codes.view(np.uint8).reshape(codes.shape)
    differs = (scales != their_scales) | (codes != their_codes).any(axis=1)
    if differs.any():
        block = int(np.flatnonzero(differs)[0])
        where = codes[block] != their_codes[block]
        pytest.fail(
            f"{rule}, {element}, {source}: {differs.sum()} of {len(x)} blocks differ; the first: "
            f"amax {np.abs(x[block]).max()}, scale {scales[block]}, theirs {their_scales[block]}, "
            f"numbers {x[block][where][:4]}, codes {codes[block][where][:4]}, theirs "
            f"{their_codes[block][where][:4]}"
        )


def blocks_for(element: Format, source: str, special: str = "nan") -> Iterator[Array]:
    """Yield the blocks to compare with; special: with infinities ("inf"), with NaNs ("nan")."""
    yield oracles.normal_blocks(source)
    yield oracles.adversarial_blocks(element, source)
    if special:
        yield oracles.special_blocks(source, special == "nan")


# Exact arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", PLAIN)
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_plain_rules_are_exact_arithmetic(element: Format, rule: str) -> None:
    for source in SOURCES:
        x = oracles.adversarial_blocks(element, source, count=40)
        expected = [oracles.mx_block(block, element, rule) for block in x]
        scales = [exponent + 127 for exponent, _ in expected]
        assert_equal(x, element, rule, source, (scales, [codes for _, codes in expected]))


@hypothesis.given(
    hnp.arrays(np.float32, 4, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    st.sampled_from(PLAIN),
    st.sampled_from(ELEMENTS),
)
def test_plain_rules_on_any_block(x: Array, rule: str, element: Format) -> None:
    exponent, codes = oracles.mx_block(x, element, rule)
    assert_equal(x[None], element, rule, "float32", ([exponent + 127], [codes]))


@pytest.mark.parametrize("rule", PLAIN)
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_amax_of_half_types(element: Format, rule: str) -> None:
    for source in ("bfloat16", "float16"):
        bits = np.arange(1, 1 << 15, dtype=np.uint32)
        amax = (
            (bits << np.uint32(16)).view(np.float32)
            if source == "bfloat16"
            else bits.astype(np.uint16).view(np.float16).astype(np.float32)
        )
        amax = amax[np.isfinite(amax)]
        expected = oracles.plain_exponents(amax, element, rule).clip(-127, 127) + 127
        scales, _ = codes_of(amax[:, None], element, rule, source)
        np.testing.assert_array_equal(scales, expected)


@pytest.mark.parametrize("rule", PLAIN)
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_every_mantissa_of_float32(element: Format, rule: str) -> None:
    """All 14 upper bits, more than any threshold has, with the lower ones 0, 1 and the largest."""
    upper = np.arange(0x3F800000, 0x40000000, 1 << 9, dtype=np.uint32)[:, None]
    amax = (upper + np.uint32([0, 1, (1 << 9) - 1])).reshape(-1).view(np.float32)
    expected = oracles.plain_exponents(amax, element, rule) + 127
    scales, _ = codes_of(amax[:, None], element, rule, "float32")
    np.testing.assert_array_equal(scales, expected)


def test_a_reciprocal_gives_the_same_exponent_as_a_division() -> None:
    """So rceil has one answer, in the normal range: a / M, a * float32(1 / M) and exactly.

    All three rise with a: it is enough to look around the numbers where they change.
    """
    for element in FLOATS:
        threshold = np.float32(np.frexp(element.max)[0] * 2).view(np.uint32)
        near = np.arange(-1000, 1000) + np.int64([[0x3F800000], [threshold], [0x40000000]])
        amax = near.astype(np.uint32).reshape(-1).view(np.float32)
        exact = oracles.smallest_exponents(amax, element.max)
        assert exact[-1] - exact[0] == 1  # once from below 1 to beyond 2
        for quotient in (
            amax / np.float32(element.max),
            amax * np.float32(1 / element.max),
        ):
            np.testing.assert_array_equal(oracles.smallest_exponents(quotient, 1.0), exact)


def test_tiny_and_huge_blocks_have_the_scales_at_the_ends() -> None:
    tiny, huge = np.float32(2.0**-149), np.finfo(np.float32).max
    x = np.array([[tiny, 0], [huge, 1]], np.float32)
    q = quantize(x, BlockFormat(E5M2, 2, rule="floor"))
    assert q.scale_codes is not None
    assert q.scale_codes.tolist() == [[0], [127 + 127 - 15]]
    assert q.scale[0, 0] == np.float32(2.0**-127)
    wide = quantize(x[1:], BlockFormat(FIXED8, 2, rule="ceil"))
    assert wide.scale_codes is not None
    assert wide.scale_codes.tolist() == [[254]]  # 2^128 is none of the scales
    assert quantize(x[1:], BlockFormat(INT8, 2)).scale_codes.tolist() == [[127 + 121]]


def powers(bits: int, bias: int) -> FloatFormat:
    """Scales from 2^-bias on, without zero and NaN."""
    return FloatFormat(bits, 0, bias, signed=False, has_zero=False, name=f"E{bits}M0-{bias}")


#: Elements and scales of one's own, at the ends of what float32 holds and within.
OWN_ELEMENTS = (
    *(npfp8.E4M3FNUZ, npfp8.E5M2FNUZ, npfp8.P3109_K8P3, npfp8.E3M4FN, npfp8.UE4M3, npfp8.E8M0FNU),
    npfp8.IntFormat(-8, 7, "int8", "four bits"),
    npfp8.IntFormat(-127, 127, "int8", "a fraction", 16),
    FloatFormat(2, 3, 128, name="boundaries among the subnormal numbers of float32"),
    FloatFormat(4, 3, -100, name="huge"),
)
OWN_SCALES = (npfp8.E8M0FNU, powers(8, 133), powers(4, 7), powers(5, -90))


@pytest.mark.parametrize("element", OWN_ELEMENTS, ids=str)
@pytest.mark.parametrize("scale_format", OWN_SCALES, ids=str)
def test_plain_rules_with_formats_of_ones_own(element: Format, scale_format: FloatFormat) -> None:
    values = np.abs(element.values[np.isfinite(element.values)])
    grid = np.unique(values[values <= element.max])
    grid = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2])
    rng = np.random.default_rng(3)
    smallest, largest = -scale_format.bias, int(np.log2(scale_format.max))
    for rule in PLAIN:
        for block in (1, 3, 33):
            exponents = rng.integers(smallest - 8, largest + 8, (8, 1))
            with np.errstate(over="ignore", under="ignore"):
                x = np.ldexp(rng.choice(grid, (8, block)), exponents).astype(np.float32)
            x = (x.view(np.int32) + rng.integers(-1, 2, x.shape)).clip(0, 0x7F7FFFFF)
            x = x.astype(np.int32).view(np.float32) * rng.choice(np.float32([1, -1]), x.shape)
            q = quantize(x, BlockFormat(element, block, scale_format, rule))
            assert q.scale_codes is not None
            for row, scale, codes in zip(x, q.scale_codes, q.codes.view(np.uint8), strict=True):
                exponent, expected = oracles.mx_block(row, element, rule, (smallest, largest))
                assert scale.tolist() == [exponent - smallest], (rule, row)
                assert codes.tolist() == expected, (rule, row)


def test_multiples_that_float32_would_round_to_a_boundary() -> None:
    """The multiple is just above 2^-131, half of the smallest element; and negative, but not 0."""
    tiny = FloatFormat(2, 3, 128, name="tiny")
    x = np.float32([[2.0**-105, 2.0**-111 * (1 + 2.0**-20)]])  # the scale is 2^20
    q = quantize(x, BlockFormat(tiny, 2))
    assert q.codes.tolist() == [[24, 1]]
    q = quantize(np.float32([[1e30, -1e-30]]), BlockFormat(npfp8.UE4M3, 2))
    assert q.codes[0, 1] == npfp8.UE4M3.nan_code


# The parties' own code -------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["torchao", "torchao-rceil", "torchao-ceil", "torchao-even"])
@pytest.mark.parametrize("element", FLOATS, ids=str)
def test_torchao(torch: ModuleType, element: Format, rule: str) -> None:
    module = party("torchao.prototype.mx_formats.mx_tensor")
    modes = party("torchao.prototype.mx_formats.config").ScaleCalculationMode
    mode = getattr(modes, rule.partition("-")[2].upper() or "FLOOR")
    dtype = {
        E4M3FN: torch.float8_e4m3fn,
        E5M2: torch.float8_e5m2,
        E2M3: "fp6_e2m3",
        E3M2: "fp6_e3m2",
        E2M1: torch.float4_e2m1fn_x2,
    }[element]
    for source in ("float32", "bfloat16"):
        for x in blocks_for(element, source):
            scale, codes = module.to_mx(as_torch(torch, x, source), dtype, x.shape[1], mode)
            codes = codes.view(torch.uint8)
            theirs = scale.view(torch.uint8), nibbles(codes) if element == E2M1 else codes
            assert_equal(x, element, rule, source, theirs)


@pytest.mark.parametrize("element", [E4M3FN, E2M3, E2M1], ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_compressed_tensors(torch: ModuleType, element: Format, source: str) -> None:
    quantization = party("compressed_tensors.quantization")
    helpers = party("compressed_tensors.quantization.utils.helpers")
    name = {4: "MXFP4Packed", 6: "MXFP6Packed", 8: "MXFP8Quantization"}[element.bits]
    compressors = party(f"compressed_tensors.compressors.mxfp{element.bits}.base")
    arguments = quantization.QuantizationArgs(
        num_bits=element.bits,
        type="float",
        strategy="group",
        group_size=32,
        symmetric=True,
        scale_dtype=torch.uint8,
        zp_dtype=torch.uint8,
    )
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments)
    for x in blocks_for(element, source, "inf"):
        weight = as_torch(torch, x, source)
        groups = weight[:, None, :]
        scale, _ = helpers.calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        state = getattr(compressors, f"{name}Compressor").compress(
            {"weight": weight, "weight_scale": scale}, scheme
        )
        packed = state["weight" if element.bits == 8 else "weight_packed"].view(torch.uint8)
        if element.bits == 4:
            codes = nibbles(packed)
        elif element.bits == 6:
            three = packed.numpy().reshape(len(x), -1, 3).astype(np.uint32)
            words = three[..., 0] | three[..., 1] << 8 | three[..., 2] << 16
            codes = np.stack([words >> shift & 63 for shift in (0, 6, 12, 18)], axis=-1)
            codes = codes.astype(np.uint8)
        else:
            codes = packed.numpy()
        assert_equal(x, element, "compressed-tensors", source, (state["weight_scale"], codes))


@pytest.mark.parametrize("source", SOURCES)
def test_modelopt(torch: ModuleType, source: str) -> None:
    package = "modelopt.torch.quantization.qtensor"
    fp4, fp8 = party(f"{package}.mxfp4_tensor"), party(f"{package}.mxfp8_tensor")
    for x in blocks_for(E2M1, source):
        tensor, scale = fp4.MXFP4QTensor.quantize(as_torch(torch, x, source), x.shape[1])
        codes = nibbles(tensor._quantized_data.reshape(len(x), -1))
        assert_equal(x, E2M1, "modelopt", source, (scale, codes))
    for x in blocks_for(E4M3FN, source):
        tensor, scale = fp8.MXFP8QTensor.quantize(as_torch(torch, x, source))
        codes = tensor._quantized_data.view(torch.uint8)
        assert_equal(x, E4M3FN, "modelopt", source, (scale, codes))


@pytest.mark.parametrize("rule", ["microxcaling", "microxcaling-even", "microxcaling-floor"])
@pytest.mark.parametrize("element", ELEMENTS, ids=str)
def test_microxcaling(torch: ModuleType, element: Format, rule: str) -> None:
    """It returns numbers of the input's type; MICROXCALING names a checkout of its repository."""
    checkout = os.environ.get("MICROXCALING")
    if not checkout:
        pytest.skip("microxcaling is not on PyPI: MICROXCALING does not name a checkout")
    sys.path.insert(0, checkout)
    try:
        quantize_mx = importlib.import_module("mx.mx_ops")._quantize_mx
    finally:
        sys.path.remove(checkout)
    name = "int8" if element == FIXED8 else f"fp{element.bits}_{str(element)[:4].lower()}"
    for source in SOURCES:
        for x in blocks_for(element, source):
            theirs = quantize_mx(
                as_torch(torch, x, source),
                8,
                name,
                axes=[-1],
                block_size=x.shape[1],
                round=rule.partition("-")[2] or "nearest",
            )
            fmt = BlockFormat(element, x.shape[1], rule=rule)
            found = quantize_blocks(x, fmt, 1, source)
            tensor = npfp8.QuantizedTensor(found.codes, None, fmt, scale_codes=found.scale_codes)
            mine = oracles.to_type(tensor.dequantize(), source)
            assert_same_numbers(mine, theirs.float().numpy(), x, signs=element != FIXED8)


def assert_same_numbers(mine: Array, theirs: Array, x: Array, signs: bool = True) -> None:
    """Compare numbers; a NaN with any NaN."""
    differs = (mine != theirs) & ~(np.isnan(mine) & np.isnan(theirs))
    if signs:
        differs |= (np.signbit(mine) != np.signbit(theirs)) & ~np.isnan(theirs)
    if differs.any():
        block, place = np.argwhere(differs)[0]
        pytest.fail(
            f"{differs.sum()} numbers differ; the first: amax {np.abs(x[block]).max()}, "
            f"{x[block, place]} is {mine[block, place]}, theirs {theirs[block, place]}"
        )


@pytest.mark.parametrize("rule", ["quark", "quark-floor", "quark-ceil"])
@pytest.mark.parametrize("element", FLOATS, ids=str)
def test_quark(torch: ModuleType, element: Format, rule: str) -> None:
    """It returns numbers; the code of a scale, at least 1, is what it exports."""
    kernels = party("quark.torch.kernel.hw_emulation.hw_emulation_interface")
    even_round = party("quark.torch.quantization.utils").even_round
    to_e8m0 = party("quark.torch.utils.numerics").to_e8m0_uint8
    name = "fp4" if element == E2M1 else f"fp{element.bits}_{str(element)[:4].lower()}"
    mode = rule.partition("-")[2] or "even"
    emax = int(np.floor(np.log2(element.max)))
    for source in SOURCES:
        for x in blocks_for(element, source, ""):
            numbers = as_torch(torch, x, source)
            theirs = kernels.fake_quantize_mx(numbers, -1, x.shape[1], mode, mx_element_dtype=name)
            amax = numbers.abs().max(dim=-1).values
            if mode == "even":
                scale = even_round(amax, name)
            else:
                scale = torch.pow(2, getattr(torch, mode)(torch.log2(amax)) - emax)
            scale = scale.masked_fill(scale == 0, torch.finfo(torch.float32).eps).float()
            scales, codes = codes_of(x, element, rule, source)
            np.testing.assert_array_equal(scales, to_e8m0(scale).numpy())
            with np.errstate(all="ignore"):
                values = npfp8.decode(codes, element) * scale.numpy()[:, None]
            mine = oracles.to_type(values, source)
            assert_same_numbers(mine, theirs.float().numpy(), x)


@pytest.mark.parametrize("element", FLOATS, ids=str)
def test_gfloat(gfloat: ModuleType, element: Format) -> None:
    block = importlib.import_module("gfloat.block")
    name = f"format_info_mxfp{element.bits}_{str(element)[:4].lower()}"
    fmt = getattr(importlib.import_module("gfloat.formats"), name)
    for x in blocks_for(element, "float32", "nan" if element.bits == 8 else "inf"):
        some = x[:: max(1, len(x) // 200)]
        theirs = []
        for one in some:
            with np.errstate(all="ignore"):
                scale = block.compute_scale_amax(fmt.etype.emax, one)
                theirs.append(list(block.encode_block(fmt, scale, one / scale)))
        found = np.array(theirs, np.uint8)
        assert_equal(some, element, "gfloat", "float32", (found[:, 0].copy(), found[:, 1:].copy()))


# Kernels that do not run here, by their published rules ------------------------------------------

KERNELS = {
    "te": (oracles.te_block, (E4M3FN, E5M2), SOURCES),
    "triton": (
        lambda x, element: oracles.triton_block(x, element, True),
        (E4M3FN, E5M2, E2M1),
        SOURCES,
    ),
    "triton-floor": (
        lambda x, element: oracles.triton_block(x, element, False),
        (E4M3FN, E5M2, E2M1),
        SOURCES,
    ),
    "vllm": (oracles.vllm_block, (E4M3FN, E2M1), SOURCES),
}


@pytest.mark.parametrize("rule", KERNELS)
def test_kernels(rule: str) -> None:
    oracle, elements, sources = KERNELS[rule]
    assert set(elements) == set(POWER_RULES[rule].elements)
    for element in elements:
        for source in sources:
            x = oracles.adversarial_blocks(element, source, count=60)
            nan = rule != "vllm" or element != E4M3FN
            for numbers in (x, oracles.special_blocks(source, nan)[:60]):
                with np.errstate(all="ignore"):
                    expected = [oracle(block, element) for block in numbers]
                scales, codes = zip(*expected, strict=True)
                assert_equal(numbers, element, rule, source, (scales, codes))


# What a party does not have, and all else --------------------------------------------------------


@pytest.mark.parametrize("rule", PLAIN)
def test_plain_rules_refuse_what_is_not_finite(rule: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=rf"x: expected finite numbers for the rule {rule}"):
            quantize([1.0, bad], MXFP4, rule=rule)


def test_a_party_refuses_what_it_does_not_have() -> None:
    x = np.ones((2, 32), np.float32)
    with pytest.raises(ValueError, match="rule te: expected elements E4M3FN, E5M2, found E2M1"):
        quantize(x, MXFP4, rule="te")
    with pytest.raises(ValueError, match="x: expected float32 or bfloat16 for the rule torchao"):
        quantize(x.astype(np.float16), MXFP4, rule="torchao")
    with pytest.raises(ValueError, match="x: expected no NaN for the rule compressed-tensors"):
        quantize(x * np.nan, MXFP4, rule="compressed-tensors")
    with pytest.raises(ValueError, match="x: expected no NaN for the rule gfloat"):
        quantize(x * np.nan, MXFP4, rule="gfloat")
    narrow = BlockFormat(E2M1, 32, FloatFormat(5, 0, 15, has_zero=False, signed=False))
    with pytest.raises(ValueError, match="rule quark: expected scales E8M0FNU, found custom"):
        quantize(x, narrow, rule="quark")


@pytest.mark.parametrize("rule", POWER_RULES)
def test_rules_along_any_axis_and_with_a_short_last_block(rule: str) -> None:
    element = (POWER_RULES[rule].elements or (E2M1,))[-1]
    fmt = BlockFormat(element, 16, rule=rule)
    x = np.random.default_rng(0).standard_normal((5, 40, 3)).astype(np.float32)
    whole = np.zeros((5, 48, 3), np.float32)
    whole[:, :40] = x
    q, padded = quantize(x, fmt, axis=1), quantize(whole, fmt, axis=1)
    np.testing.assert_array_equal(q.scale_codes, padded.scale_codes)
    np.testing.assert_array_equal(q.codes, padded.codes[:, :40])
    last = quantize(np.ascontiguousarray(np.moveaxis(x, 1, -1)), fmt)
    np.testing.assert_array_equal(np.moveaxis(q.codes, 1, -1), last.codes)
    first = quantize(np.moveaxis(x, 1, 0), fmt, axis=0)
    np.testing.assert_array_equal(np.moveaxis(q.codes, 1, 0), first.codes)
    assert quantize(x[:0], fmt, axis=1).codes.shape == (0, 40, 3)


def test_what_bfloat16_changes() -> None:
    """A tie is 0.5 in 100 of bfloat16's numbers, and none of float32's: rules differ there."""
    x = oracles.to_type(np.random.default_rng(0).standard_normal((512, 512)) * 0.02, "bfloat16")
    floor = quantize_blocks(x, MXFP8_E4M3, 1, "bfloat16")

    def differing(rule: str) -> tuple[float, float]:
        fmt = BlockFormat(E4M3FN, 32, rule=rule)
        found = quantize_blocks(x, fmt, 1, "bfloat16")
        pairs = zip(found[:2], floor[:2], strict=True)
        scales, codes = (float(np.mean(one != other)) for one, other in reversed(list(pairs)))
        return scales, codes

    assert differing("torchao") == (0, 0)
    for rule, share in (("rceil", 0.134), ("even", 0.027), ("compressed-tensors", 0.140)):
        assert differing(rule)[0] == pytest.approx(share, abs=0.01), rule

"""Block formats in the kit: its operations, and defects named from a candidate's outputs alone.

The defects are written as others would write them, in a few lines of NumPy that share no code
with the package.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from factories import write_checkpoint

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, SiteRecipe, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.kit import open_kit, verify
from bert_numpy.kit.block_cases import add_block_cases
from bert_numpy.kit.block_operations import block_format
from bert_numpy.kit.builder import Builder
from bert_numpy.kit.candidate import load_candidate
from bert_numpy.kit.checks import check_entry
from bert_numpy.kit.defects import DEFECTS
from bert_numpy.kit.evaluation import Evaluation
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.manifest import LEVELS, Kit, manifest_of, write_kit
from npfp8 import BLOCK_FORMATS, POWER_RULES, RATIO_RULES, BlockFormat, quantize
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS
from npfp8.storage import Fp8Array, save_file

SITE = "model/0/encoder.layer.0.attention.self.query"
LAST = "model/0/encoder.layer.0.output.dense"
MATRIX = "operator/quantize-mxfp4-matrix"
EMBEDDED = ROOT / "bert_numpy" / "assets" / "bert-tiny-sst2-kit"


@pytest.fixture(scope="module")
def kit() -> Kit:
    builder = Builder()
    add_block_cases(builder)
    return builder.kit({"levels": ["operator"], "arithmetic": []})


WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("model"), config_overrides=WIDTHS)


def computed(kit, *levels):
    return {
        name: kit.arrays[name]
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given" and tensor.level in levels
    }


# An implementation that is right, in plain NumPy

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MIDPOINTS = (FP4[1:] + FP4[:-1]) / 2


def even(magnitude):
    """The code of FP4 that is nearest; on a tie the even one."""
    low = np.searchsorted(MIDPOINTS, magnitude)
    high = np.searchsorted(MIDPOINTS, magnitude, side="right")
    return np.where(low % 2 == 0, low, high)


def away(magnitude):
    return np.searchsorted(MIDPOINTS, magnitude, side="right")


def toward_zero(magnitude):
    return np.searchsorted(MIDPOINTS, magnitude)


def floor(amax):
    return np.floor(np.log2(amax)) - 2


def rceil(amax):
    return np.ceil(np.log2(amax / 6))


def ceil(amax):
    return np.ceil(np.log2(amax)) - 2


def half_up(amax):
    bits = amax.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(1 << 21)) >> np.uint32(23)).astype(np.float64) - 127 - 2


def trunc(amax):
    return np.floor(np.log2(amax / 6))


def blocks_of(x, block):
    return x.astype(np.float64).reshape(len(x), -1, block)


def exponents(x, rule=floor, block=32):
    amax = np.abs(blocks_of(x, block)).max(axis=2)
    with np.errstate(divide="ignore"):
        return np.where(amax == 0, -127, np.clip(rule(np.where(amax == 0, 1, amax)), -127, 127))


def elements(x, scale, block=32, nearest=even):
    quotients = blocks_of(x, block) / scale[..., None]
    codes = np.where(np.signbit(quotients), 8, 0) | nearest(np.abs(quotients))
    return codes.reshape(x.shape).astype(np.uint8)


def bytes_of(e):
    return (e + 127).astype(np.uint8)


def decoded(codes):
    return np.where(codes & 8, -1, 1) * FP4[codes & 7]


def e4m3(codes):
    """The values of codes of E4M3 without NaN."""
    codes = codes.astype(np.int64)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    return np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)


def causes(kit, **tensors):
    """The causes at each place where something goes wrong, by the end of its name."""
    report = verify(kit, tensors)
    roots = [item for item in report.differences if item.root]
    assert roots, report.text()
    return {item.name.rpartition("/")[2]: item.causes for item in roots}


def x_of(kit, name=MATRIX):
    return kit.inputs(f"{name}/scale_codes")["x"]


def test_the_implementation_of_these_tests_is_right(kit):
    x = x_of(kit)
    e = exponents(x)
    assert (bytes_of(e) == kit.arrays[f"{MATRIX}/scale_codes"]).all()
    assert (elements(x, 2.0**e) == kit.arrays[f"{MATRIX}/codes"]).all()


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_steps_are_quantize(name):
    """The steps of the kit give the tensors that quantize gives, in every rule and type."""
    fmt = BLOCK_FORMATS[name]
    rng = np.random.default_rng(22)
    x = (rng.normal(size=(6, 80)) * 2.0 ** rng.integers(-9, 9, (6, 1))).astype(np.float32)
    x[0, :40] = 0
    for rule in POWER_RULES if fmt.powers_of_two else RATIO_RULES:
        try:
            whole = quantize(x, fmt, axis=1, rule=rule)
        except ValueError:  # the party does not have the format
            continue
        builder = Builder()
        given = builder.give("x", "operator", x)
        names = {role: role for role in ("codes", "scale_codes", "tensor_scale")}
        blocks = whole.block_format
        builder.quantize_blocks(names, "operator", given, blocks, 1)
        for role in names:
            if getattr(whole, role) is not None:
                assert (builder.arrays[role] == getattr(whole, role)).all(), (rule, role)
        assert block_format(builder.tensors["codes"].attributes) == blocks


@pytest.mark.parametrize("found", [rceil, ceil, half_up, trunc])
def test_a_wrong_scale_rule_is_named(kit, found):
    name = {"half_up": "even"}.get(found.__name__, found.__name__)
    x = x_of(kit)
    e = exponents(x, found)
    scales, codes = bytes_of(e), elements(x, 2.0**e)
    both = causes(kit, **{f"{MATRIX}/scale_codes": scales, f"{MATRIX}/codes": codes})
    assert both["scale_codes"][0] == f"the rule {name}"
    # Elements alone are enough: nothing says what their scales were.
    assert causes(kit, **{f"{MATRIX}/codes": codes})["codes"][0] == f"the rule {name}"


def test_floor_for_rceil_is_named(kit):
    place = "operator/quantize-mxfp4-rceil"
    x = x_of(kit, place)
    with np.errstate(over="ignore"):
        e = exponents(x)
    found = causes(kit, **{f"{place}/scale_codes": bytes_of(e)})
    assert found["scale_codes"] == ("the rule floor",)


@pytest.mark.parametrize(
    ("nearest", "name"),
    [(away, "ties rounded away from zero"), (toward_zero, "ties rounded toward zero")],
)
def test_ties_are_named(kit, nearest, name):
    place = "operator/quantize-mxfp4-floor"
    x = x_of(kit, place)
    codes = elements(x, 2.0 ** exponents(x), nearest=nearest)
    assert name in causes(kit, **{f"{place}/codes": codes})["codes"]


def test_zero_blocks_with_a_scale_of_1_are_named(kit):
    place = "operator/quantize-mxfp4-floor"
    scales = kit.arrays[f"{place}/scale_codes"].copy()
    scales[(x_of(kit, place) == 0).all(axis=1)] = 127
    found = causes(kit, **{f"{place}/scale_codes": scales})
    assert found["scale_codes"] == ("zero blocks with a scale of 1",)


@pytest.mark.parametrize("block", [8, 16, 64, 128])
def test_a_wrong_block_length_is_named(kit, block):
    x = x_of(kit)
    codes = elements(x, 2.0 ** exponents(x, block=block), block)
    assert causes(kit, **{f"{MATRIX}/codes": codes})["codes"][0] == f"blocks of {block}"


def test_blocks_along_the_wrong_axis_are_named(kit):
    x = x_of(kit)
    down = np.ascontiguousarray(x.T)
    e = exponents(down)
    found = {f"{MATRIX}/codes": elements(down, 2.0**e).T, f"{MATRIX}/scale_codes": bytes_of(e)}
    for name, codes in found.items():
        named = causes(kit, **{name: np.ascontiguousarray(codes)})
        # In the order of memory, scales of (columns, blocks) are what they are, of other numbers.
        assert named[name.rpartition("/")[2]][0] == "blocks along another axis"


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("by", [-1, 1])
def test_scales_of_the_neighbour_are_named(kit, by, wraps):
    x = x_of(kit)
    scale = 2.0 ** exponents(x)
    places = np.arange(4) - by
    places = places % 4 if wraps else places.clip(0, 3)
    codes = elements(x, scale[:, places])
    name = "scales of the neighbouring blocks"
    assert causes(kit, **{f"{MATRIX}/codes": codes})["codes"] == (name,)
    place = "operator/dequantize-mxfp8_e4m3"
    values = kit.arrays["operator/dequantize-mxfp8_e4m3/values"]
    scales = kit.arrays[f"{place}/scale"]
    places = np.arange(8) - by
    places = places % 8 if wraps else places.clip(0, 7)
    with np.errstate(over="ignore"):
        wrong = np.float32(table(kit, place)) * scales[:, places].repeat(32, axis=1)
    assert (values[np.isfinite(values)] != wrong[np.isfinite(values)]).any()
    assert name in causes(kit, **{f"{place}/values": wrong})["values"]


def table(kit, place):
    codes = kit.arrays[f"{place}/codes"]
    magnitudes = np.where((codes & 0x7F) == 0x7F, np.nan, e4m3(codes & 0x7F))
    return np.where(codes & 0x80, -magnitudes, magnitudes)


def test_the_bias_of_e8m0_is_named(kit):
    x = x_of(kit)
    e = exponents(x)
    name = "the bias of E8M0 left out"
    unbiased = e.astype(np.int8).view(np.uint8)
    assert causes(kit, **{f"{MATRIX}/scale_codes": unbiased})["scale_codes"] == (name,)
    off = (e + 128).astype(np.uint8)
    found = causes(kit, **{f"{MATRIX}/scale_codes": off})["scale_codes"]
    assert found[0] == "a bias of E8M0 of 128"
    place = "operator/dequantize-mxfp4"
    codes = kit.arrays[f"{place}/scale_codes"]
    with np.errstate(over="ignore"):
        scale = np.where(codes == 255, np.nan, 2.0 ** codes.astype(np.float64)).astype(np.float32)
    assert causes(kit, **{f"{place}/scale": scale})["scale"] == (name,)
    with np.errstate(over="ignore", invalid="ignore"):
        values = (decoded(kit.arrays[f"{place}/codes"]) * scale).astype(np.float32)
    assert causes(kit, **{f"{place}/values": values})["values"] == (name,)


def by_rounded_logarithm(amax):
    return np.rint(np.log2(amax / 6))


def by_rounded_logarithm_of_amax(amax):
    return np.rint(np.log2(amax)) - 2


EXPONENTS = {
    by_rounded_logarithm: "the exponent of a scale as a rounded logarithm",
    by_rounded_logarithm_of_amax: "the exponent of a scale as a rounded logarithm",
    lambda amax: floor(amax) + 1: "the elements' largest exponent (emax) taken too small by 1",
    lambda amax: floor(amax) - 1: "the elements' largest exponent (emax) taken too large by 1",
}


@pytest.mark.parametrize("rule", EXPONENTS)
def test_another_exponent_of_scales_is_named(kit, rule):
    """By the codes of scales, and by the elements' alone.

    In these blocks, of which none is of zeros, another bias of E8M0 has the same codes.
    """
    e = exponents(x_of(kit), rule)
    name = EXPONENTS[rule]
    found = causes(kit, **{f"{MATRIX}/scale_codes": (e + 127).astype(np.uint8)})
    assert name in found["scale_codes"]
    assert all(other.startswith("a bias of E8M0 of") for other in {*found["scale_codes"]} - {name})
    codes = elements(x_of(kit), np.exp2(e))
    assert name in causes(kit, **{f"{MATRIX}/codes": codes})["codes"]


def test_scales_at_the_ends_of_their_range(kit):
    """Numbers beyond 2^127 have no double in float32: the exponent is larger all the same."""
    (small,) = (x.operations["scale_codes"] for x in DEFECTS if x.name.endswith("too small by 1"))
    (large,) = (x.operations["scale_codes"] for x in DEFECTS if x.name.endswith("too large by 1"))
    amax = np.float32([2.0**127, 3.0e38, 1, 2.0**-126, 2.0**-149, 0])
    x = np.repeat(amax, 32).reshape(-1, 32)
    how = {"fmt": "E4M3FN", "axis": 1, "block": 32, "scale_fmt": "E8M0FNU", "rule": "floor"}
    right = np.frexp(amax.astype(np.float64))[1] - 1 - 8
    for defect, off in ((small, 1), (large, -1)):
        expected = np.where(amax == 0, 0, np.clip(right + off + 127, 0, 254))
        assert (defect({"x": x}, how).reshape(-1) == expected).all()


def test_the_nan_of_e8m0_as_a_number_is_named(kit):
    place = "operator/dequantize-mxfp4"
    name = "the NaN of E8M0 read as 2^128, which is infinity in float32"
    codes = kit.arrays[f"{place}/scale_codes"]
    assert (codes == 255).any()
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (2.0 ** (codes.astype(np.float64) - 127)).astype(np.float32)
        values = (decoded(kit.arrays[f"{place}/codes"]) * scale).astype(np.float32)
    assert causes(kit, **{f"{place}/scale": scale})["scale"] == (name,)
    assert causes(kit, **{f"{place}/values": values})["values"] == (name,)


# Bytes


def test_nibbles_in_the_wrong_order_are_named(kit):
    codes = kit.arrays["operator/packed-e2m1/codes"]
    codes = np.pad(codes, ((0, 0), (0, 1)))
    high = (codes[:, ::2] << 4 | codes[:, 1::2]).astype(np.uint8)
    found = causes(kit, **{"operator/packed-e2m1/low-first": high})
    assert found["low-first"] == ("codes in the layout high-first (the high nibble first)",)
    swapped = (high << 4 | high >> 4).astype(np.uint8)
    assert (swapped == kit.arrays["operator/packed-e2m1/low-first"]).all()
    data = kit.arrays["operator/packed-e2m1/bytes"]
    wrong = np.stack([data >> 4, data & 15], axis=-1).reshape(len(data), -1)
    found = causes(kit, **{"operator/packed-e2m1/low-first-codes": wrong})
    assert found["low-first-codes"] == ("codes in the layout high-first (the high nibble first)",)


def test_bytes_of_packed_cases_are_distinct(kit):
    """A layout that permutes whole bytes cannot pass: each byte occurs once."""
    for fmt, count in (("e2m1", 128), ("e3m2", 192)):
        data = kit.arrays[f"operator/packed-{fmt}/bytes"]
        assert np.unique(data).size == data.size == count
    for shape in ("128x8", "160x6"):
        low, high = (kit.arrays[f"operator/scales-{shape}/{part}"] for part in ("low", "high"))
        assert np.unique(low.astype(int) << 8 | high).size == low.size


def test_fp6_in_three_bytes(kit):
    """By shifts, and the order of another packer is named."""
    codes = np.pad(kit.arrays["operator/packed-e3m2/codes"], ((0, 0), (0, 1))).astype(np.uint32)
    c = codes.reshape(len(codes), -1, 4)
    whole = c[..., 0] | c[..., 1] << 6 | c[..., 2] << 12 | c[..., 3] << 18
    right = np.stack([whole & 255, whole >> 8 & 255, whole >> 16], -1).astype(np.uint8)
    name = "operator/packed-e3m2/low-first"
    assert (right.reshape(len(codes), -1) == kit.arrays[name]).all()
    whole = c[..., 3] | c[..., 2] << 6 | c[..., 1] << 12 | c[..., 0] << 18
    wrong = np.stack([whole >> 16, whole >> 8 & 255, whole & 255], -1).astype(np.uint8)
    found = causes(kit, **{name: wrong.reshape(len(codes), -1)})["low-first"]
    assert found == ("codes in the layout high-first (the high nibble first)",)


def test_fp4_at_the_bottom_of_its_byte_is_named(kit):
    """PTX has it in bits 5 to 2."""
    codes = kit.arrays["operator/packed-e2m1/codes"]
    found = causes(kit, **{"operator/packed-e2m1/ptx": codes})["ptx"]
    assert found == ("codes elsewhere in bytes of their own",)


def swizzled(scales):
    """The bytes of whole 128x4 tiles, as cuBLAS documents their places."""
    rows, blocks = scales.shape
    out = np.empty(scales.size, scales.dtype)
    for r in range(rows):
        for c in range(blocks):
            tile = (r // 128) * (blocks // 4) + c // 4
            out[512 * tile + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] = scales[r, c]
    return out


def linear(data, shape):
    """Scales from the bytes of 128x4 tiles."""
    index = swizzled(np.arange(data.size).reshape(shape))
    out = np.empty(data.size, data.dtype)
    out[index] = data
    return out.reshape(shape)


@pytest.mark.parametrize("case", ["mxfp4", "nvfp4"])
def test_permuted_scales_are_named(kit, case):
    place = f"operator/quantize-{case}-matrix"
    scales = kit.arrays[f"{place}/scale_codes"]
    for wrong in (swizzled(scales).reshape(scales.shape), linear(scales.reshape(-1), scales.shape)):
        found = causes(kit, **{f"{place}/scale_codes": wrong})["scale_codes"]
        assert found == ("scales in the layout 128x4",)
    columns = scales.T.reshape(scales.shape)
    found = causes(kit, **{f"{place}/scale_codes": columns})["scale_codes"]
    assert "scales in the order of columns" in found


def test_a_layout_for_another_is_named(kit):
    low = "operator/scales-128x8/low"
    scales = kit.arrays[low]
    assert (swizzled(scales) == kit.arrays[f"{low}-128x4"].reshape(-1)).all()
    found = causes(kit, **{f"{low}-128x4": scales})["low-128x4"]
    assert "scales in the layout linear" in found
    tiles = scales.reshape(16, 8, 2, 4).swapaxes(1, 2).reshape(scales.shape)
    assert (tiles == kit.arrays[f"{low}-8x4"]).all()
    found = causes(kit, **{f"{low}-128x4": tiles})["low-128x4"]
    assert found == ("scales in the layout 8x4",)
    read = linear(kit.arrays[f"{low}-8x4"].reshape(-1), scales.shape)
    found = causes(kit, **{f"{low}-8x4-back": read})["low-8x4-back"]
    assert found == ("scales in the layout 128x4",)


#: The place of row r and block c in a tile of 128x4, and of tile (i, j) among m times n.
PLACES = {
    "not interleaved (each tile row by row)": lambda r, c: r * 4 + c,
    "not interleaved (each tile column by column)": lambda r, c: c * 128 + r,
    "by columns (r % 32, c, r // 32)": lambda r, c: r % 32 * 16 + c * 4 + r // 32,
    "by columns (r // 32, c, r % 32)": lambda r, c: r // 32 * 128 + c * 32 + r % 32,
    "by columns (c, r % 32, r // 32)": lambda r, c: c * 128 + r % 32 * 4 + r // 32,
    "in 4 groups of rows (r % 4, r // 4, c)": lambda r, c: r % 4 * 128 + r // 4 * 4 + c,
    "by columns (r % 4, c, r // 4)": lambda r, c: r % 4 * 128 + c * 32 + r // 4,
    "by columns (r // 4, c, r % 4)": lambda r, c: r // 4 * 16 + c * 4 + r % 4,
    "by columns (c, r % 4, r // 4)": lambda r, c: c * 128 + r % 4 * 32 + r // 4,
    "in the right order, but column after column of tiles": (
        lambda r, c: r % 32 * 16 + r // 32 * 4 + c
    ),
}


def tiled(scales, place, by_columns):
    """The bytes of whole tiles in another order."""
    rows, blocks = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    out = np.zeros(rows * blocks * 512, scales.dtype)
    for r, c in np.ndindex(scales.shape):
        i, j = r // 128, c // 4
        tile = j * rows + i if by_columns else i * blocks + j
        out[512 * tile + place(r % 128, c % 4)] = scales[r, c]
    return out.reshape(rows * 128, blocks * 4)


@pytest.mark.parametrize("order", PLACES)
def test_another_order_in_tiles_is_named(kit, order):
    """Of matrices that fill tiles, and that do not; written, and read."""
    for shape in ("128x8", "160x6"):
        low = f"operator/scales-{shape}/low"
        scales = kit.arrays[low]
        by_columns = order.endswith("of tiles")
        wrong = tiled(scales, PLACES[order], by_columns)
        name = f"scales in tiles of 128x4, {order}"
        if by_columns and shape == "128x8":
            assert (wrong == kit.arrays[f"{low}-128x4"]).all()  # one row of tiles
            continue
        assert name in causes(kit, **{f"{low}-128x4": wrong})["low-128x4"]
        places = tiled(1 + np.arange(scales.size).reshape(scales.shape), PLACES[order], by_columns)
        read = np.zeros(scales.size, np.uint8)
        read[places[places > 0] - 1] = kit.arrays[f"{low}-128x4"][places > 0]
        found = causes(kit, **{f"{low}-128x4-back": read.reshape(scales.shape)})
        assert name in found["low-128x4-back"]


# Products

TILES = "operator/block-gemm-mxfp4-tiles/sum"


def operands(kit, name, power=True):
    """Codes' values and scales, one for each element, of both operands."""
    given = kit.inputs(name)
    values = [decoded(given[role]) for role in ("a", "b")]
    block = values[0].shape[1] // given["a_scale_codes"].shape[1]
    scales = [given[f"{role}_scale_codes"] for role in ("a", "b")]
    return values, [2.0 ** (x.astype(float) - 127) if power else e4m3(x) for x in scales], block


def product(values, scales, block):
    (a, b), (s, t) = values, scales
    return ((a * s.repeat(block, 1)) @ (b * t.repeat(block, 0))).astype(np.float32)


def test_products_are_right_by_float64(kit):
    """Where float64 has the exact sum, which these cases are made for."""
    for name, power in ((TILES, True), ("operator/block-gemm-nvfp4/sum", False)):
        assert (product(*operands(kit, name, power)) == kit.arrays[name]).all()


def test_scales_of_a_product_read_in_another_order_are_named(kit):
    values, (s, t), block = operands(kit, TILES)
    wrong = linear(s.reshape(-1), s.shape)
    (found,) = causes(kit, **{TILES: product(values, [wrong, t], block)}).values()
    # The other operand has no whole tiles: its scales cannot be read so.
    assert found == ("scales in the layout 128x4",)
    wrong = [np.roll(s, 1, 1), np.roll(t, 1, 0)]
    (found,) = causes(kit, **{TILES: product(values, wrong, block)}).values()
    assert found == ("scales of the neighbouring blocks",)
    ones = [np.ones_like(s), np.ones_like(t)]
    (found,) = causes(kit, **{TILES: product(values, ones, block)}).values()
    assert found == ("scales of blocks left out",)


def test_a_product_added_up_otherwise_is_named(kit):
    """By blocks in float32, where the exact sum is asked for, and the other way round."""
    place = "operator/block-gemm-mxfp8-cancellation"
    exact, blocks = kit.arrays[f"{place}/sum"], kit.arrays[f"{place}-block-sums/sum"]
    assert (exact != blocks).any()
    (found,) = causes(kit, **{f"{place}/sum": blocks}).values()
    assert "exact sums of blocks of K, added in float32" in found
    assert verify(kit, {f"{place}/sum": blocks}, "accumulate-order").passed
    beyond = blocks * np.float32(1.01) + np.float32(2.0**40)
    assert not verify(kit, {f"{place}/sum": beyond}, "accumulate-order").passed


def test_tensor_scales_are_named(kit):
    name = "tensor scale inverted"
    place = "operator/block-gemm-nvfp4"
    given = kit.inputs(f"{place}/product")
    total, p, q = (given[role] for role in ("sum", "a_tensor_scale", "b_tensor_scale"))
    p, q = p / np.float32(2688), q / np.float32(2688)  # the rule stores largest magnitudes
    bias = given["bias"]
    assert (total * (p * q) + bias == kit.arrays[f"{place}/product"]).all()
    wrong = {f"{place}/product": total / (p * q) + bias}
    assert causes(kit, **wrong)["product"] == (name,)
    wrong = {f"{place}/product": total * np.float32(1) + bias}
    assert "tensor scale left out" in causes(kit, **wrong)["product"]
    place = "operator/dequantize-nvfp4-compressed-tensors"
    codes, number = (kit.inputs(f"{place}/scale")[r] for r in ("scale_codes", "tensor_scale"))
    s = e4m3(codes & 0x7F).astype(np.float32)
    s = np.where(codes & 0x7F == 0x7F, np.float32(np.nan), s)
    assert np.array_equal(s / number, kit.arrays[f"{place}/scale"], equal_nan=True)
    found = causes(kit, **{f"{place}/scale": s * number})["scale"]
    assert found[0] == name


def test_a_dialect_of_nvfp4_is_named(kit):
    """ModelOpt's formula in float32, where the kit has TransformerEngine's."""
    place = "operator/quantize-nvfp4-te"
    x = x_of(kit, place)
    amax = np.abs(x).max(axis=1)
    t = np.abs(x).max() / np.float32(6 * 448)
    grid = e4m3(np.arange(127))
    ratio = (amax / (np.float32(6) * t)).astype(np.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    low, high = np.searchsorted(middle, ratio), np.searchsorted(middle, ratio, side="right")
    s = np.where(low % 2 == 0, low, high)
    s = np.where(amax == 0, 0x38, np.maximum(s, 1)).astype(np.uint8)
    found = causes(kit, **{f"{place}/scale_codes": s[:, None]})["scale_codes"]
    assert "the rule modelopt" in found
    assert "the rule torchao" not in found


def of_sum(kit, name=f"{LAST}/sum"):
    """The codes, the codes of scales, and the attributes of a sum's operands."""
    given, how = kit.inputs(name), kit.tensors[name].attributes
    return [[given[role], given[f"{role}_scale_codes"], how[role]] for role in ("a", "b")]


def added(operands, run=None, backwards=False):
    """The sum in float64, which has these cases' exact sums; or runs of K added in float32."""
    values = []
    for (codes, scales, how), axis in zip(operands, (1, 0), strict=True):
        s = FORMATS[how["scale_fmt"]].values[scales].repeat(how["block"], axis)
        element = FORMATS[how["fmt"]]
        fraction = 2.0 ** -getattr(element, "fraction_bits", 0)
        plain = codes * fraction if element.name in ("INT8", "FIXED8") else element.values[codes]
        values.append(plain * s)
    a, b = values
    run = run or a.shape[1]
    parts = [(a[:, i : i + run] @ b[i : i + run]).astype(np.float32) for i in range(0, len(b), run)]
    total = np.float32(0)
    for part in reversed(parts) if backwards else parts:
        total = total + part
    return total


def read_as(operand, **changes):
    codes, scales, how = operand
    return [codes, scales, how | changes]


HIGH_FIRST = "codes in the layout high-first (the high nibble first)"


@pytest.mark.parametrize("recipe", ["mxfp4", "nvfp4", "mxfp8", "mxfp6", "mxint8"])
def test_operands_read_wrongly_are_named(recipe, small):
    kit, _, _ = recorded(recipe, model=small)
    others = computed(kit, *LEVELS)
    right = of_sum(kit)
    a, b = right
    assert (added(right) == kit.arrays[f"{LAST}/sum"]).all()
    fmt = FORMATS[a[2]["fmt"]].name
    other = {"E4M3FN": "E5M2", "E2M3": "E3M2", "FIXED8": "INT8"}.get(fmt)
    scales = {"E8M0FNU": "E4M3FN", "E4M3FN": "E8M0FNU"}[a[2]["scale_fmt"]]
    wrong = {f"scales read as {scales}": [read_as(x, scale_fmt=scales) for x in right]}
    if other:
        wrong[f"{other} instead of {fmt}"] = [a, read_as(b, fmt=other)]
    else:
        wrong[HIGH_FIRST] = [a, [b[0][np.arange(len(b[0])) ^ 1], *b[1:]]]
    rows = [a, [b[0], np.roll(b[1], 1, 1), b[2]]]
    wrong["scales of the neighbouring rows"] = rows
    # 8 tokens do not fill a tile: its bytes, read row by row, have code 0 in between.
    tile = np.zeros((128, -(-a[1].shape[1] // 4) * 4), np.uint8)
    tile[: len(a[1]), : a[1].shape[1]] = a[1]
    linear = swizzled(tile)[: a[1].size].reshape(a[1].shape)
    wrong["scales in the layout 128x4"] = [[a[0], linear, a[2]], b]
    for name, operands in wrong.items():
        with np.errstate(invalid="ignore"):
            sums = added(operands)
        assert causes(kit, **others | {f"{LAST}/sum": sums})["sum"] == (name,)


def test_one_operation_alone_is_wrong(small):
    """Others before it use the same operation; a candidate that has only its result is named too.

    So it is if it was made of the kit's inputs.
    """
    kit, _, _ = recorded("mxfp8", model=small)
    found = causes(kit, **{f"{LAST}/sum": round_to_bfloat16(added(of_sum(kit)))})["sum"]
    assert found == ("double rounding through bfloat16",)


def test_what_needs_to_be_in_one_operation_alone_goes_first(small):
    """In few blocks, a defect of all operations before may come to the same by chance."""
    kit, _, _ = recorded("mxfp4", model=small)
    place = "model/0/encoder.layer.0.intermediate.dense/a"
    x = kit.inputs(place)["x"]
    e = exponents(x, half_up)
    wrong = {place: elements(x, 2.0**e), f"{place}.scale_codes": bytes_of(e)}
    found = causes(kit, **wrong)["a.scale_codes"]
    assert found[0] == "the rule even"


def test_sums_in_other_parts_are_named(kit):
    place = "operator/block-gemm-mxfp8-cancellation/sum"
    right = of_sum(kit, place)
    for wrong, name in (
        (added(right, run=64), "exact sums of 64 along K, added in float32"),
        (
            added(right, run=32, backwards=True),
            "exact sums of blocks of K, added in float32 from the last one",
        ),
    ):
        assert (wrong != kit.arrays[place]).any()
        assert name in causes(kit, **{place: wrong})["sum"]


def test_the_end_of_a_block_scaled_product_is_named(small):
    kit, _, _ = recorded("nvfp4", model=small)
    others = computed(kit, *LEVELS)
    given = kit.inputs(f"{LAST}/product")
    total, p, q, bias = (
        given[role] for role in ("sum", "a_tensor_scale", "b_tensor_scale", "bias")
    )
    p, q = p / np.float32(2688), q / np.float32(2688)
    assert (total * (p * q) + bias == kit.arrays[f"{LAST}/product"]).all()
    wrong = others | {f"{LAST}/product": total * p * q + bias}
    name = "scales multiplied one after the other"
    assert causes(kit, **wrong)["product"] == (name,)
    # Where scales are small, a bias added before them is nearly lost.
    wrong = others | {f"{LAST}/product": (total + bias) * (p * q)}
    assert causes(kit, **wrong)["product"][0] == "bias added before scaling"


def test_weights_rounded_to_bfloat16_are_named(small):
    kit, _, _ = recorded("nvfp4-weights", model=small)
    name = next(name for name in kit.tensors if kit.tensors[name].operation == "dequantize")
    wrong = round_to_bfloat16(kit.arrays[name])
    (found,) = causes(kit, **{name: wrong}).values()
    assert found == ("double rounding through bfloat16",)


# Models


def recorded(recipe, accumulate="exact", model="bert-tiny-sst2"):
    """A kit of one short text through the embedded model, or another one."""
    model = bert_numpy.load(model)
    ids = np.array([[101, 2025, 3294, 6659, 102, 1037, 10520, 102]]) % model.config.vocab_size
    chosen = replace(PRESETS[recipe], accumulate=accumulate)
    calibration = calibrate(model, [{"input_ids": ids}], golden=True)
    golden = apply_recipe(model, chosen, calibration, golden=True)
    return make_kit(("layer", "model"), golden, {}, [{"input_ids": ids}]), golden, ids


RECIPES = ["mxfp8", "mxfp6", "mxfp4", "mxint8", "nvfp4", "mxfp4-weights", "nvfp4-weights",
           "mxfp4-mixed", "nvfp4-mixed"]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_block_scaled_model_verifies_itself(recipe, tmp_path):
    made, golden, ids = recorded(recipe)
    assert made.arrays["model/0/logits"].tobytes() == golden(input_ids=ids).logits.tobytes()
    write_kit(made, tmp_path / "kit")
    again = open_kit(tmp_path / "kit")
    assert manifest_of(again) == manifest_of(made)
    for profile in ("bit-exact", "accumulate-order", "statistical"):
        report = verify(again, computed(again, *LEVELS), profile)
        assert report.passed, report.text()
    operations = {tensor.operation for tensor in again.tensors.values()}
    assert ("block_sum" in operations) == (not recipe.endswith("weights"))
    assert "block_scales" in operations or not recipe.endswith("weights")


def test_block_sums_are_recorded():
    made, _, _ = recorded("nvfp4", "block-sums")
    how = made.tensors[f"{SITE}/sum"].attributes
    assert how["accumulate"] == "block-sums"
    assert verify(made, computed(made, *LEVELS)).passed


def test_operands_of_two_kinds_are_recorded():
    """Codes with a scale of the tensor, or of a token, times block-scaled ones."""
    model = bert_numpy.load("bert-tiny-sst2")
    inputs = {"input_ids": np.array([[101, 2025, 3294, 102]])}
    calibration = calibrate(model, [inputs], golden=True)
    for a in (Operand("E4M3FN"), Operand("INT8", "token"), Operand("UINT8")):
        how = SiteRecipe(a=a, b=Operand("MXFP4"))
        recipe = replace(PRESETS["mxfp4"], linear=how, name="two kinds")
        golden = apply_recipe(model, recipe, calibration, golden=True)
        made = make_kit(("layer", "model"), golden, {}, [inputs])
        assert made.tensors[f"{SITE}/sum"].operation == "block_sum"
        assert verify(made, computed(made, *LEVELS)).passed


def test_a_format_of_ones_own_is_recorded():
    model = bert_numpy.load("bert-tiny-sst2")
    inputs = {"input_ids": np.array([[101, 2025, 3294, 102]])}
    calibration = calibrate(model, [inputs], golden=True)
    for fmt in (
        BlockFormat("E3M2", 16, rule="ceil", name="mine"),
        BlockFormat("E4M3FN", 8, "UE4M3", rule="modelopt", tensor_scale=True, name="other"),
    ):
        how = SiteRecipe(a=Operand(fmt), b=Operand(fmt))
        recipe = replace(PRESETS["mxfp4"], linear=how, name=fmt.name)
        golden = apply_recipe(model, recipe, calibration, golden=True)
        made = make_kit(("layer", "model"), golden, {}, [inputs])
        assert block_format(made.tensors[f"{SITE}/a"].attributes) == fmt
        assert verify(made, computed(made, *LEVELS)).passed


def test_faults_in_a_model_are_named():
    """Each at one product of an MXFP4 model, by its own few lines of NumPy."""
    kit, _, _ = recorded("mxfp4")
    x = kit.inputs(f"{SITE}/a")["x"]
    for rule, name in ((rceil, "the rule rceil"), (half_up, "the rule even")):
        e = exponents(x, rule)
        wrong = {f"{SITE}/a": elements(x, 2.0**e), f"{SITE}/a.scale_codes": bytes_of(e)}
        assert causes(kit, **wrong)["a.scale_codes"][0] == name
    e = exponents(x)
    assert (elements(x, 2.0**e) == kit.arrays[f"{SITE}/a"]).all()
    found = causes(kit, **{f"{SITE}/a": elements(x, 2.0 ** np.roll(e, 1, 1))})
    assert found["a"] == ("scales of the neighbouring blocks",)
    values, (s, t), block = operands(kit, f"{SITE}/sum")
    assert (product(values, [s, t], block) == kit.arrays[f"{SITE}/sum"]).all()
    wrong = product(values, [s, np.roll(t, -1, 0)], block)
    assert causes(kit, **{f"{SITE}/sum": wrong})["sum"] == ("scales of the neighbouring blocks",)


def test_a_tensor_scale_in_a_model_is_named():
    kit, _, _ = recorded("nvfp4")
    given = kit.inputs(f"{SITE}/product")
    total, p, q, bias = (
        given[role] for role in ("sum", "a_tensor_scale", "b_tensor_scale", "bias")
    )
    p, q = p / np.float32(2688), q / np.float32(2688)
    assert (total * (p * q) + bias == kit.arrays[f"{SITE}/product"]).all()
    wrong = {f"{SITE}/product": total / (p * q) + bias}
    assert causes(kit, **wrong)["product"] == ("tensor scale inverted",)


@pytest.mark.parametrize("defect", ["the rule rceil", "scales of the neighbouring blocks"])
def test_logits_are_enough(defect, small):
    """Nothing else is given: the whole model is computed with the defect."""
    kit, _, _ = recorded("mxfp4", model=small)
    (one, *_) = (found for found in DEFECTS if found.name == defect)
    evaluation = Evaluation(kit, lambda name: None, one, "", np.zeros(0))
    with np.errstate(all="ignore"):
        logits = evaluation.value("model/0/logits")
    assert causes(kit, **{"model/0/logits": logits})["logits"][0] == defect


def test_export_and_verify_commands(tmp_path, capsys):
    kit, inputs = tmp_path / "kit", str(ROOT / "scripts" / "kit_inputs.json")
    command = ["golden", "export", "bert-tiny-sst2", str(kit), "--recipe", "mxfp8"]
    assert main([*command, "--inputs", inputs, "--level", "layer"]) == 0, capsys.readouterr()
    whole = str(kit / "tensors.safetensors")
    assert main(["golden", "verify", str(kit), whole]) == 0
    opened = open_kit(kit)
    codes = opened.arrays[f"{SITE}/a.scale_codes"]
    (tmp_path / "dumps" / SITE).mkdir(parents=True)
    np.save(tmp_path / "dumps" / SITE / "a.scale_codes.npy", np.roll(codes, 1, 1))
    assert main(["golden", "verify", str(kit), str(tmp_path / "dumps")]) == 1
    assert "a.scale_codes (scale_codes)" in capsys.readouterr().out


# Files


def test_candidates_with_packed_codes(kit, tmp_path):
    """safetensors' F4 and F6 have the bytes packed; they are read as codes."""
    places = ("operator/quantize-mxfp4-floor/codes", "operator/quantize-mxfp6_e3m2-floor/codes")
    codes = {name: Fp8Array(kit.arrays[name], kit.tensors[name].fmt) for name in places}
    save_file(codes, tmp_path / "x.safetensors")
    assert verify(kit, load_candidate(tmp_path / "x.safetensors", kit)).passed
    wrong = kit.arrays[places[0]] ^ np.uint8(1)
    save_file({places[0]: Fp8Array(wrong, "E2M1")}, tmp_path / "x.safetensors")
    assert not verify(kit, load_candidate(tmp_path / "x.safetensors", kit)).passed


def test_kits_of_earlier_versions_are_read_and_verified():
    """One of version 1, written before it had block formats: only names were added since."""
    earlier = open_kit(ROOT / "tests" / "kits" / "earlier")
    assert verify(earlier, computed(earlier, *LEVELS)).passed
    name = "operator/gemm-e4m3/product"
    given = earlier.inputs(name)
    wrong = given["sum"] / (given["a_scale"] * given["b_scale"]) + given["bias"]
    assert verify(earlier, {name: wrong}).first.causes == ("scale inverted",)
    manifest = json.loads((EMBEDDED / "manifest.json").read_text())
    assert manifest["format"] == "bert-numpy kit 1"


MXFP4 = {"fmt": "E2M1", "axis": 1, "block": 32, "scale_fmt": "E8M0FNU", "rule": "floor"}
NVFP4 = {"fmt": "E2M1", "axis": 1, "block": 16, "scale_fmt": "E4M3FN", "rule": "te",
         "tensor_scale": True}  # fmt: skip
NUMBERS, ONE = ("float32", "", (4, 64)), ("float32", "", ())
SCALES = ("codes", "E8M0FNU", (4, 2))
CODES = ("codes", "E2M1", (4, 64))
RIGHT = ("codes", "E2M1", (64, 8))
BELOW = ("codes", "E8M0FNU", (2, 8))
SUMS = ("float32", "", (4, 8))
FACTORS = {"a": MXFP4 | {"ndim": 2}, "b": MXFP4 | {"ndim": 2, "axis": 0}}
PRODUCT = {"a": CODES, "a_scale_codes": SCALES, "b": RIGHT, "b_scale_codes": BELOW}
LOW = {"fmt": "E2M1", "layout": "low-first"}
TILED = {"fmt": "E8M0FNU", "layout": "128x4"}


@pytest.mark.parametrize(
    ("operation", "attributes", "inputs", "result"),
    [
        ("scale_codes", MXFP4, {"x": NUMBERS}, SCALES),
        ("block_codes", MXFP4, {"x": NUMBERS, "scale_codes": SCALES}, CODES),
        ("tensor_scale", NVFP4, {"x": NUMBERS}, ONE),
        ("block_scales", MXFP4, {"scale_codes": SCALES}, ("float32", "", (4, 2))),
        ("block_sum", FACTORS, PRODUCT, SUMS),
        ("block_product", FACTORS, {"sum": SUMS}, SUMS),
        ("pack_codes", LOW, {"codes": CODES}, ("bytes", "", (4, 32))),
        ("unpack_codes", LOW | {"length": 64}, {"bytes": ("bytes", "", (4, 32))}, CODES),
        ("pack_scales", TILED, {"codes": SCALES}, ("codes", "E8M0FNU", (128, 4))),
        (
            "unpack_scales",
            TILED | {"shape": [4, 2]},
            {"codes": ("codes", "E8M0FNU", (128, 4))},
            SCALES,
        ),
        (
            "pack_blocks",
            MXFP4 | {"layout": "quark"},
            {"codes": CODES, "scale_codes": SCALES},
            ("bytes", "", (4, 34)),
        ),
    ],
)
def test_entries_of_block_operations(operation, attributes, inputs, result):
    """The right one passes; without any part, or with a part of another kind, it does not."""
    check_entry(operation, attributes, inputs, result, "kit")

    def refuse(attributes, inputs, result):
        with pytest.raises(BertNumpyError, match=r"^kit: ") as caught:
            check_entry(operation, attributes, inputs, result, "kit")
        assert "\n" not in str(caught.value)

    for key, right in attributes.items():
        refuse({k: v for k, v in attributes.items() if k != key}, inputs, result)
        for value in (None, "E9M9", 10**30, [], {}, {"fmt": "E2M1"}, True):
            if value is not right:
                refuse(attributes | {key: value}, inputs, result)
    for role, (kind, fmt, shape) in inputs.items():
        refuse(attributes, {k: v for k, v in inputs.items() if k != role}, result)
        refuse(attributes, inputs | {role: ("integers", "", shape)}, result)
        if result != ONE:  # which comes of any shape
            refuse(attributes, inputs | {role: (kind, fmt, (*shape, 3))}, result)
            refuse(attributes, inputs | {role: (kind, fmt, ())}, result)
    kind, fmt, shape = result
    refuse(attributes, inputs, (kind, fmt, (*shape, 1)))
    refuse(attributes, inputs, ("integers", "", shape))
    refuse(attributes | {"colour": "red"}, inputs, result)


def test_a_tensor_scale_is_given_if_the_format_has_one():
    inputs = {"x": NUMBERS, "tensor_scale": ONE}
    scales = ("codes", "E4M3FN", (4, 4))
    check_entry("scale_codes", NVFP4, inputs, scales, "kit")
    for how, given in ((NVFP4, {"x": NUMBERS}), (NVFP4 | {"tensor_scale": False}, inputs)):
        with pytest.raises(BertNumpyError, match="tensor_scale by the format"):
            check_entry("scale_codes", how, given, scales, "kit")
    with pytest.raises(BertNumpyError, match="expected attributes of a block format"):
        check_entry("scale_codes", NVFP4 | {"rule": "floor"}, inputs, scales, "kit")

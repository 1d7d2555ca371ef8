"""Layouts of codes, scales and blocks: permutations, told apart, undone, and the parties' own.

Test inputs have places that are all distinct: an array of indices, packed as its low and its
high byte. So a layout that puts one byte into another's place cannot pass.
"""

import copy
import itertools
import math
import pickle
import re
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from parties import party

import npfp8
from npfp8 import (
    E2M1,
    E2M3,
    E3M2,
    E4M3FN,
    FIXED8,
    INT4,
    INT8,
    UINT4,
    BlockFormat,
    FloatFormat,
    QuantizedTensor,
    quantize,
)
from npfp8.blocks import (
    BLOCK_FORMATS,
    BLOCK_LAYOUTS,
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    BlockLayout,
    CodeLayout,
    ScaleLayout,
    pack_blocks,
    pack_codes,
    pack_scales,
    unpack_blocks,
    unpack_codes,
    unpack_scales,
)
from npfp8.blocks.layouts import Group, Piece
from npfp8.packed import PackedTensor, pack_tensor, unpack_tensor
from npfp8.storage import load_file

#: A format of each width.
OF_WIDTH = {bits: FloatFormat(bits - 2, 1, 1, name=f"{bits} bits") for bits in range(3, 9)}
OF_WIDTH |= {2: FloatFormat(1, 0, 0, name="2 bits"), 4: E2M1, 6: E3M2, 8: E4M3FN}

#: Each layout of codes with each width that it has.
CODE_CASES = [(layout, group.bits) for layout in CODE_LAYOUTS.values() for group in layout.groups]
by_code_case = pytest.mark.parametrize(
    ("layout", "bits"), CODE_CASES, ids=[f"{layout.name}-{bits}" for layout, bits in CODE_CASES]
)
by_scale_layout = pytest.mark.parametrize("layout", SCALE_LAYOUTS.values(), ids=SCALE_LAYOUTS)


# Codes


def shuffled(bits, count):
    """Codes in which neighbours differ: all codes of the width, again and again, permuted."""
    codes = np.random.default_rng(bits).permutation(1 << bits).astype(np.uint8)
    return np.resize(codes, count)


def test_tables_have_the_names_of_their_records():
    for table in (CODE_LAYOUTS, SCALE_LAYOUTS, BLOCK_LAYOUTS):
        for name, layout in table.items():
            assert layout.name == name
            assert layout.description
            assert layout.source


@by_code_case
def test_each_bit_of_each_code_has_a_place_of_its_own(layout, bits):
    group = layout.group(bits)
    places = set()
    for code, bit in itertools.product(range(group.codes), range(bits)):
        codes = np.zeros(group.codes, np.uint8)
        codes[code] = 1 << bit
        packed = pack_codes(codes, OF_WIDTH[bits], layout)
        assert packed.shape == (group.nbytes,)
        (place,) = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
        places.add(int(place))
    assert len(places) == group.codes * bits


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_two_layouts_of_codes_agree(bits):
    codes = shuffled(bits, 48)
    layouts = [layout for layout, width in CODE_CASES if width == bits]
    found = [bytes(pack_codes(codes, OF_WIDTH[bits], layout)) for layout in layouts]
    if bits == 8:  # a code is a byte in all of them
        assert set(found) == {bytes(codes)}
    else:
        assert len(set(found)) == len(layouts)


@by_code_case
@given(data=st.data())
def test_codes_come_back(layout, bits, data):
    group = layout.group(bits)
    shape = data.draw(st.lists(st.integers(0, 3), max_size=2).map(tuple))
    length, axis = data.draw(st.integers(0, 70)), data.draw(st.integers(0, len(shape)))
    whole = (*shape[:axis], length, *shape[axis:])
    codes = shuffled(bits, math.prod(whole)).reshape(whole)
    axis -= data.draw(st.sampled_from([0, len(whole)]))
    packed = pack_codes(codes, OF_WIDTH[bits], layout.name, axis)
    expected = list(whole)
    expected[axis] = -(-length // group.codes) * group.nbytes
    assert packed.shape == tuple(expected)
    assert packed.dtype == np.uint8
    assert packed.flags.c_contiguous
    back = unpack_codes(packed, OF_WIDTH[bits], length, layout, axis)
    assert back.dtype == np.uint8
    assert np.array_equal(back, codes)
    padded = np.moveaxis(unpack_codes(packed, OF_WIDTH[bits], layout=layout, axis=axis), axis, -1)
    assert padded.shape[-1] == -(-length // group.codes) * group.codes
    assert not padded[..., length:].any()


@by_code_case
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_codes_of_any_strides(layout, bits, axis):
    codes = np.asfortranarray(shuffled(bits, 4 * 6 * 14).reshape(4, 6, 14))[::-1, ::2, 1::3]
    packed = pack_codes(codes, OF_WIDTH[bits], layout, axis)
    assert np.array_equal(packed, pack_codes(codes.copy(), OF_WIDTH[bits], layout, axis))
    strided = np.asfortranarray(packed)
    back = unpack_codes(strided, OF_WIDTH[bits], codes.shape[axis], layout, axis)
    assert np.array_equal(back, codes)


def stream_of(codes, bits, high_first):
    """The bytes of codes as one integer, written down digit by digit."""
    if high_first:
        text = "".join(f"{code:0{bits}b}" for code in codes)
        text += "0" * (-len(text) % 8)
        return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * bits // 8), "little")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("name", ["low-first", "high-first"])
def test_streams_of_bits_are_one_number(bits, name):
    codes = shuffled(bits, 24)
    found = bytes(pack_codes(codes, OF_WIDTH[bits], name))
    assert found == stream_of(codes.tolist(), bits, name == "high-first")


def test_stated_bytes():
    def found(codes, fmt, layout):
        return pack_codes(np.uint8(codes), fmt, layout).tolist()

    assert found([1, 2, 3, 4], E2M1, "low-first") == [0x21, 0x43]
    assert found([1, 2, 3, 4], E2M1, "high-first") == [0x12, 0x34]
    assert found([1, 2, 3], E2M1, "low-first") == [0x21, 0x03]
    six = [0b000001, 0b100010, 0b110011, 0b111100]
    assert found(six, E3M2, "low-first") == [0b10000001, 0b00111000, 0b11110011]
    assert found(six, E3M2, "split") == [0b00101111, 0b00010010, 0b00111100]
    assert found([1, 15], E2M1, "ptx") == [0b00000100, 0b00111100]
    assert found([1, 63], E2M3, "ptx") == [1, 63]
    assert found([1, 254], E4M3FN, "ptx") == [1, 254]
    assert found(range(16), E2M1, "ptx-padded") == [
        0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE, *[0] * 8
    ]  # fmt: skip
    assert found(range(16), E3M2, "ptx-padded")[12:] == [0] * 4


def test_signed_bytes_are_kept():
    codes = np.int8([-127, 0, 1, 127])
    for fmt in (INT8, FIXED8):
        packed = pack_codes(codes, fmt)
        assert packed.tolist() == [129, 0, 1, 127]
        assert unpack_codes(packed, fmt).dtype == np.int8
        assert np.array_equal(unpack_codes(packed, fmt), codes)


@pytest.mark.parametrize("layout", ["low-first", "high-first"])
def test_integers_of_4_bits_are_two_in_a_byte(layout):
    codes = np.arange(-8, 8, dtype=np.int8)
    packed = pack_codes(codes, INT4, layout)
    low, high = (0, 1) if layout == "low-first" else (1, 0)
    nibbles = codes.astype(int) % 16  # two's complement
    assert packed.tolist() == [16 * pair[high] + pair[low] for pair in nibbles.reshape(-1, 2)]
    assert unpack_codes(packed, INT4, layout=layout).dtype == np.int8
    assert np.array_equal(unpack_codes(packed, INT4, layout=layout), codes)
    assert np.array_equal(unpack_codes(packed, UINT4, layout=layout), nibbles)
    assert np.array_equal(pack_codes(np.uint8(nibbles), UINT4, layout), packed)
    assert unpack_codes(np.uint8([0xFF]), INT4, 1, layout).tolist() == [-1]


def test_bits_that_belong_to_no_code_are_not_read():
    assert unpack_codes(np.uint8([0xFF]), E2M1, layout="ptx").tolist() == [15]
    assert unpack_codes(np.uint8([0x21, 0xF3]), E2M1, 3).tolist() == [1, 2, 3]


def test_torch_has_the_first_in_the_low_nibble(torch, tmp_path):
    from safetensors.torch import save_file  # noqa: PLC0415

    packed = pack_codes(np.arange(16, dtype=np.uint8), E2M1)
    tensor = torch.from_numpy(packed).view(torch.float4_e2m1fn_x2)
    save_file({"x": tensor}, tmp_path / "x")
    assert np.array_equal(load_file(tmp_path / "x")["x"].codes, np.arange(16))


def test_fp4_equals_torchao(torch):
    kernels = party("torchao.prototype.mx_formats.kernels")
    codes = shuffled(4, 96).reshape(3, 32)
    theirs = kernels.pack_uint4(torch.from_numpy(codes)).numpy()
    assert np.array_equal(pack_codes(codes, E2M1), theirs)
    assert np.array_equal(kernels.unpack_uint4(torch.from_numpy(theirs)).numpy(), codes)


def test_fp4_equals_compressed_tensors(torch):
    helpers = party("compressed_tensors.compressors.nvfp4.helpers")
    codes = shuffled(4, 96).reshape(3, 32)
    values = torch.from_numpy(npfp8.decode(codes, E2M1))
    theirs = helpers.pack_fp4_to_uint8(values).numpy()
    assert np.array_equal(pack_codes(codes, E2M1), theirs)
    back = helpers.unpack_fp4_from_uint8(torch.from_numpy(theirs), 3, 32, torch.float32)
    assert np.array_equal(unpack_codes(theirs, E2M1), codes)
    assert np.array_equal(back.numpy(), npfp8.decode(codes, E2M1))


def quark(name, *widths):
    pack = party("quark.torch.utils.pack")
    return getattr(pack, name)(None, "", *widths)


@pytest.mark.parametrize("fmt", [E2M1, E3M2, E2M3], ids=str)
def test_codes_equal_quarks(fmt, torch):
    widths = (fmt.exponent_bits, fmt.mantissa_bits) if fmt.bits == 6 else ()
    packer = quark(f"Pack_fp{fmt.bits}", *widths)
    codes = shuffled(fmt.bits, 192).reshape(3, 64)
    values = torch.from_numpy(npfp8.decode(codes, fmt))
    theirs = packer.pack(values, False).numpy()
    assert np.array_equal(pack_codes(codes, fmt), theirs)
    back = packer.unpack(torch.from_numpy(theirs), False).numpy()
    assert np.array_equal(back, values.numpy())


# Scales


def places(shape, layout, axis=-1):
    """The index of the scale at each byte of a layout; -1 where there is none."""
    index = 1 + np.arange(math.prod(shape), dtype=np.uint16).reshape(shape)
    low, high = (
        pack_scales((index >> shift & 255).astype(np.uint8), layout, axis) for shift in (0, 8)
    )
    return (low + high.astype(np.int64) * 256 - 1), low.shape


def fits(layout, rows, blocks):
    return layout.pads or not (rows % layout.tile[0] or blocks % layout.tile[1])


@by_scale_layout
@given(data=st.data())
def test_a_layout_of_scales_is_a_permutation_that_is_undone(layout, data):
    tall, wide = layout.tile
    rows, blocks = data.draw(st.integers(1, 300)), data.draw(st.integers(1, 13))
    if not layout.pads:
        rows, blocks = tall * (rows % 40 + 1), wide * blocks
    lead = data.draw(st.sampled_from([(), (2,), (2, 1)]))
    axis = data.draw(st.sampled_from([-1, -2]))
    shape = (*lead, rows, blocks) if axis == -1 else (*lead, blocks, rows)
    found, stored = places(shape, layout, axis)
    count = math.prod(shape)
    padded = (-(-rows // tall) * tall, -(-blocks // wide) * wide)
    assert found.size == math.prod(lead) * math.prod(padded)
    assert sorted(stored[-2:]) == sorted(padded)
    assert np.array_equal(np.sort(found[found >= 0]), np.arange(count))
    codes = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    packed = pack_scales(codes, layout.name, axis)
    for flat in (packed, packed.reshape(-1)):
        back = unpack_scales(flat, shape, layout, axis)
        assert np.array_equal(back, codes)
        assert back.flags.c_contiguous


def test_no_two_layouts_of_scales_agree():
    shape = (132, 8)
    found = {}
    for axis, (name, layout) in itertools.product((-1, -2), SCALE_LAYOUTS.items()):
        bytes_of = places(shape if axis == -1 else shape[::-1], layout, axis)[0].tobytes()
        if axis == -1:
            assert bytes_of not in found, (name, found.get(bytes_of))
        found[bytes_of] = name
    codes = np.arange(64 * 4, dtype=np.uint8).reshape(64, 4)  # one tile, all bytes distinct
    few = [bytes(pack_scales(codes, layout)) for layout in ("linear", "128x4", "te-columnwise")]
    assert len({one[:256] for one in few}) == 3


def swizzled(shape, offset, size):
    """The index of the scale at each byte, by a formula of the byte of each (row, block)."""
    rows, blocks = shape
    found = np.full(size, -1)
    for r, c in itertools.product(range(rows), range(blocks)):
        place = offset(r, c)
        assert found[place] == -1
        found[place] = r * blocks + c
    return found


@pytest.mark.parametrize("shape", [(128, 4), (300, 9), (5, 3), (256, 16)])
def test_128x4_by_the_formula(shape):
    """cuBLAS: tiles row-major, in a tile (r % 32) * 16 + (r // 32) * 4 + c."""
    wide = -(-shape[1] // 4)

    def offset(r, c):
        tile = (r // 128) * wide + c // 4
        return tile * 512 + (r % 128 % 32) * 16 + (r % 128 // 32) * 4 + c % 4

    size = -(-shape[0] // 128) * wide * 512
    found, stored = places(shape, "128x4")
    assert np.array_equal(found.reshape(-1), swizzled(shape, offset, size))
    assert stored == (-(-shape[0] // 128) * 128, wide * 4)


@pytest.mark.parametrize("shape", [(8, 4), (11, 9), (16, 8)])
def test_8x4_by_the_formula(shape):
    wide = -(-shape[1] // 4)

    def offset(r, c):
        return ((r // 8) * wide + c // 4) * 32 + (r % 8) * 4 + c % 4

    found, _ = places(shape, "8x4")
    size = -(-shape[0] // 8) * wide * 32
    assert np.array_equal(found.reshape(-1), swizzled(shape, offset, size))


@pytest.mark.parametrize("shape", [(4, 4), (16, 8), (32, 16)])
def test_4x4_by_the_formula(shape):
    """vLLM's nvfp4_kv_cache_kernels.cu, swizzle_scale_offset."""
    blocks = shape[1]

    def offset(t, s):
        group = blocks // 4
        return (t // 4 * 4 + s // group) * blocks + s % group * 4 + t % 4

    found, stored = places(shape, "4x4")
    assert stored == shape
    assert np.array_equal(found.reshape(-1), swizzled(shape, offset, math.prod(shape)))


@pytest.mark.parametrize("shape", [(32, 4), (300, 9), (128, 4)])
def test_transformer_engines_forms(shape):
    """Row-major and filled up; column scaling: 4x128, and tiles of the transposed matrix."""
    rows, blocks = shape
    tall, wide = -(-rows // 128) * 128, -(-blocks // 4) * 4
    found, stored = places(shape, "te-rowwise")
    assert stored == (tall, wide)
    assert np.array_equal(
        found.reshape(-1), swizzled(shape, lambda r, c: r * wide + c, tall * wide)
    )
    # Column scaling: the scales of a weight (K, N) in blocks along K are (K / 32, N).
    columns = np.arange(rows * blocks).reshape(blocks, rows)
    index, stored = places((blocks, rows), "te-columnwise", axis=-2)
    assert stored == (wide, tall)
    assert np.array_equal(index[:blocks, :rows], columns)
    assert (index[blocks:] == -1).all()
    assert (index[:, rows:] == -1).all()
    tiles, _ = places((blocks, rows), "128x4", axis=-2)

    def offset(m, k):  # swizzle_col_scaling_kernel_impl: words of 4 bytes along k
        word = ((m // 128) * (wide // 4) + k // 4) * 128 + m % 128 // 32 + (m % 32) * 4
        return word * 4 + k % 4

    by_kernel = swizzled(shape, offset, tall * wide)  # numbered m * blocks + k
    known = np.where(by_kernel < 0, -1, by_kernel % blocks * rows + by_kernel // blocks)
    assert np.array_equal(tiles.reshape(-1), known)


@pytest.mark.parametrize("shape", [(128, 4), (300, 9), (1, 1), (256, 16)])
def test_128x4_equals_torchao(shape, torch):
    utils = party("torchao.prototype.mx_formats.utils")
    index = torch.arange(1, 1 + math.prod(shape), dtype=torch.int32).reshape(shape)
    theirs = utils.to_blocked(index)
    found, stored = places(shape, "128x4")
    assert np.array_equal(found.reshape(-1) + 1, theirs.numpy())
    codes = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    packed = torch.from_numpy(pack_scales(codes, "128x4").reshape(-1))
    assert np.array_equal(utils.from_blocked(packed, *shape).numpy(), codes)
    swizzled_dims = utils.hp_data_dims_to_swizzled_scale_dims_mx(shape[0], shape[1] * 32)
    assert math.prod(swizzled_dims) == math.prod(stored)


@pytest.mark.parametrize("tile", ["128x4", "8x4"])
@pytest.mark.parametrize("shape", [(128, 4), (300, 12), (24, 4)])
def test_tiles_are_undone_as_in_vllm(tile, shape):
    """convert_swizzled_to_linear and convert_swizzled_8x4_layout_to_linear, as reshapes."""
    rows, blocks = shape
    tall, wide = -(-rows // int(tile[:-2])), -(-blocks // 4)
    codes = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    packed = pack_scales(codes, tile)
    if tile == "128x4":
        linear = packed.reshape(1, tall, wide, 32, 4, 4).transpose(0, 1, 4, 3, 2, 5)
    else:
        linear = packed.reshape(1, tall, wide, 8, 4).transpose(0, 1, 3, 2, 4)
    linear = linear.reshape(tall * int(tile[:-2]), wide * 4)
    assert np.array_equal(linear[:rows, :blocks], codes)


def test_a_vector_is_a_row():
    codes = np.arange(1, 6, dtype=np.uint8)
    packed = pack_scales(codes, "8x4")
    assert packed.shape == (8, 8)
    assert np.array_equal(packed, pack_scales(codes[None], "8x4"))
    assert np.array_equal(unpack_scales(packed, (5,), "8x4"), codes)
    assert pack_scales(codes, "linear").tolist() == [codes.tolist()]


@by_scale_layout
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 4, 4)])
def test_no_scales(layout, shape):
    packed = pack_scales(np.zeros(shape, np.uint8), layout)
    assert packed.size == 0
    assert unpack_scales(packed, shape, layout).shape == shape


@by_scale_layout
@pytest.mark.parametrize("shape", [(128, 4), (128, 8), (4,), (0,)])
def test_scales_have_memory_of_their_own(layout, shape):
    """A fault that is planted in packed bytes is not one of the tensor that they came from."""
    if len(shape) == 1 and not layout.pads:
        return
    codes = np.arange(math.prod(shape), dtype=np.uint32).astype(np.uint8).reshape(shape)
    packed = pack_scales(codes, layout)
    frozen = np.frombuffer(packed.tobytes(), np.uint8)
    for one in (unpack_scales(packed, shape, layout), unpack_scales(frozen, shape, layout)):
        assert not np.shares_memory(one, packed)
        assert one.flags.writeable
    assert not np.shares_memory(packed, codes)
    assert packed.flags.c_contiguous


@by_scale_layout
@pytest.mark.parametrize("axis", [-1, -2, 0, 1])
def test_scales_of_any_strides(layout, axis):
    codes = np.random.default_rng(4).integers(0, 256, (8, 16, 32), np.uint8)
    strided = np.asfortranarray(codes)[::-1, ::2, ::-2]
    packed = pack_scales(strided, layout, axis)
    assert np.array_equal(packed, pack_scales(strided.copy(), layout, axis))
    assert np.array_equal(unpack_scales(packed, strided.shape, layout, axis), strided)


# Blocks


@pytest.mark.parametrize("name", ["MXFP4", "MXFP6_E3M2", "MXFP6_E2M3"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_blocks_equal_quarks(name, axis, torch):
    fmt = BLOCK_FORMATS[name]
    element = fmt.element
    widths = (element.exponent_bits, element.mantissa_bits) if element.bits == 6 else ()
    packer = quark(f"Pack_mxfp{element.bits}", *widths)
    codes = shuffled(element.bits, 96 * 64).reshape(96, 64)
    count = codes.shape[axis] // 32
    lead = codes.shape[1 - axis % 2]
    # Quark writes 2^-127 as 2^-126, and torch's log2 is exact for powers of two.
    scales = (np.arange(lead * count) % 254 + 1).astype(np.uint8).reshape(lead, count)
    values = npfp8.decode(np.moveaxis(codes, axis, -1), element).reshape(lead, count, 32)
    factors = np.ldexp(np.float32(1), scales.astype(int) - 127)[..., None]
    given = np.concatenate([factors, values], axis=-1).reshape(lead, -1)
    given = np.ascontiguousarray(np.moveaxis(given, -1, axis))
    theirs = packer.pack(torch.from_numpy(given), False, axis)
    ours = pack_blocks(codes, np.moveaxis(scales, -1, axis), fmt, axis=axis)
    assert np.array_equal(ours, theirs.numpy())
    back = packer.unpack(torch.from_numpy(ours), False, None, axis).numpy()
    assert np.array_equal(back, given)
    found, found_scales = unpack_blocks(ours, fmt, axis=axis)
    assert np.array_equal(found, codes)
    assert np.array_equal(np.moveaxis(found_scales, axis, -1), scales)


@pytest.mark.parametrize("name", ["MXFP4", "MXFP6_E3M2"])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 0])
def test_a_short_block_is_filled_up(name, length):
    fmt = BLOCK_FORMATS[name]
    codes = shuffled(fmt.element.bits, 2 * length).reshape(2, length)
    count = -(-length // 32)
    scales = np.arange(2 * count, dtype=np.uint8).reshape(2, count)
    packed = pack_blocks(codes, scales, fmt)
    assert packed.shape == (2, count * (1 + 4 * fmt.element.bits))
    found, found_scales = unpack_blocks(packed, fmt, length)
    assert np.array_equal(found, codes)
    assert np.array_equal(found_scales, scales)
    assert not unpack_blocks(packed, fmt)[0][:, length:].any()


def test_the_scale_of_a_block_is_its_exponent():
    codes, scales = np.zeros(64, np.uint8), np.uint8([0, 254])
    packed = pack_blocks(codes, scales, "MXFP4").view(np.int8)
    assert packed[::17].tolist() == [-127, 127]


# Tensors


def tensors(name, shape, axis):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    return quantize(x, name, axis=axis)


def same(a, b):
    assert np.array_equal(a.codes, b.codes)
    assert np.array_equal(a.scale_codes, b.scale_codes)
    assert np.array_equal(a.scale, b.scale)
    assert (a.fmt, a.axis, a.block, a.block_format) == (b.fmt, b.axis, b.block, b.block_format)
    assert (a.tensor_scale is None) == (b.tensor_scale is None)
    assert a.tensor_scale is None or a.tensor_scale == b.tensor_scale


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("code_layout", CODE_LAYOUTS)
@pytest.mark.parametrize("scale_layout", SCALE_LAYOUTS)
@pytest.mark.parametrize(("shape", "axis"), [((12, 256), -1), ((256, 8), 0), ((2, 256, 4), 1)])
def test_tensors_come_back(name, code_layout, scale_layout, shape, axis):
    q = tensors(name, shape, axis)
    bits = getattr(q.fmt, "bits", 8)
    blocks = shape[axis] // q.block
    rows = shape[-2 if axis % len(shape) == len(shape) - 1 else -1]
    if bits not in [group.bits for group in CODE_LAYOUTS[code_layout].groups]:
        with pytest.raises(ValueError, match=rf"layout {code_layout}: .*found a format of {bits}"):
            pack_tensor(q, code_layout, scale_layout)
        return
    if not fits(SCALE_LAYOUTS[scale_layout], rows, blocks):
        pytest.skip("not whole tiles")
    packed = pack_tensor(q, code_layout, scale_layout)
    same(unpack_tensor(packed), q)
    same(unpack_tensor(pickle.loads(pickle.dumps(packed))), q)
    assert repr(packed).startswith(f"<PackedTensor {shape} {name}: ")


def test_tensors_of_odd_lengths():
    for name, length in itertools.product(BLOCK_FORMATS, (1, 5, 33)):
        q = tensors(name, (3, length), -1)
        same(unpack_tensor(pack_tensor(q, scale_layout="128x4")), q)
        vector = tensors(name, (length,), -1)
        same(unpack_tensor(pack_tensor(vector)), vector)


def test_bytes_of_others_become_a_tensor():
    """By the shape: the scales in any shape of the right size."""
    q = tensors("NVFP4", (4, 32), -1)
    packed = pack_tensor(q, "high-first", "128x4")
    flat = replace(packed, scale_codes=packed.scale_codes.reshape(-1), fmt="nvfp4", shape=[4, 32])
    same(unpack_tensor(flat), q)


# The page


def rows(heading):
    """The cells of the tables under a heading of docs/block-layouts.md, by the first, a name."""
    page = (ROOT / "docs" / "block-layouts.md").read_text(encoding="utf-8")
    text = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if found := re.match(r"\| `([\w-]+)` \|(.*)\|$", line):
            yield found[1], [cell.strip() for cell in found[2].split("|")]


def test_the_page_shows_the_first_bytes():
    four, six = np.arange(1, 9, dtype=np.uint8), np.uint8([0x01, 0x22, 0x33, 0x3C])
    names = []
    for name, (shown, counts, _) in rows("Codes"):
        names.append(name)
        fmt, codes = (E3M2, six) if names.count(name) == 2 or name == "split" else (E2M1, four)
        first = bytes.fromhex(shown.strip("`"))
        assert pack_codes(codes, fmt, name).tobytes().startswith(first), name
        group = CODE_LAYOUTS[name].group(fmt.bits)
        assert counts == f"{group.codes} in {group.nbytes}"
    expected = [
        name
        for name, layout in CODE_LAYOUTS.items()
        for group in layout.groups
        if group.bits in (4, 6)
    ]
    assert sorted(names) == sorted(expected)


def test_the_page_shows_the_first_scales():
    shown = dict(rows("Scales"))
    assert list(shown) == list(SCALE_LAYOUTS)
    for name, (tile, first, _) in shown.items():
        layout = SCALE_LAYOUTS[name]
        assert tile == ("" if layout.tile == (1, 1) else "{} x {}".format(*layout.tile))
        index, _ = places((128, 8), layout)
        found = [divmod(int(one), 8) for one in index.reshape(-1)[:5]]
        assert first == " ".join(map(str, found)), name


# Records


@pytest.mark.parametrize(
    "layout",
    [*CODE_LAYOUTS.values(), *SCALE_LAYOUTS.values(), *BLOCK_LAYOUTS.values()],
    ids=lambda layout: layout.name,
)
def test_layouts_are_frozen_and_copied_as_equals(layout):
    for clone in (copy.copy(layout), copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        assert clone == layout
        assert hash(clone) == hash(layout)
    with pytest.raises(FrozenInstanceError):
        layout.name = "other"
    assert layout.name in repr(layout)
    assert len(repr(layout)) < 100


def test_layouts_of_ones_own():
    shifted = CodeLayout("one bit up", (Group(4, 1, 1, (Piece(0, 0, 0, 1, 4),)),))
    assert pack_codes(np.uint8([1, 15]), E2M1, shifted).tolist() == [2, 30]
    assert unpack_codes(np.uint8([2, 30]), E2M1, layout=shifted).tolist() == [1, 15]
    columns = ScaleLayout("by blocks", (0,), (0,), (1, 0))
    codes = np.uint8([[1, 2, 3], [4, 5, 6]])
    assert pack_scales(codes, columns).tolist() == codes.T.tolist()
    assert np.array_equal(unpack_scales(codes.T, (2, 3), columns), codes)
    mine = BlockLayout("mine", ((4, "high-first"),))
    assert pack_blocks(np.uint8([1, 2]), np.uint8([128]), "MXFP4", mine)[:2].tolist() == [1, 0x12]
    wide = BlockFormat(E2M1, 6, FloatFormat(3, 0, 3, signed=False, has_zero=False), name="six")
    packed = pack_blocks(np.arange(9, dtype=np.uint8), np.uint8([0, 7]), wide)
    assert packed.tolist() == [253, 0x10, 0x32, 0x54, 4, 0x76, 0x08, 0]
    assert unpack_blocks(packed, wide, 9)[1].tolist() == [0, 7]


# Errors

FP4 = np.zeros((4, 32), np.uint8)
ONE = np.zeros((4, 1), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_codes(np.uint8([16]), E2M1), r"^E2M1 codes: expected 0..15, found 16$"),
        (lambda: pack_codes(np.uint8([64]), E3M2, "split"), r"E3M2 codes: expected 0..63"),
        (lambda: pack_codes(FP4, E2M1, "split"), "layout split: expected codes of 6 bits, found"),
        (lambda: pack_codes(FP4, E2M1, "low-frist"), "did you mean 'low-first'"),
        (lambda: pack_codes(FP4, E2M1, axis=2), "axis: expected one of 2 axes, found 2"),
        (lambda: pack_codes(FP4, "mxfp4"), "format of the codes, E2M1, found the block format MX"),
        (lambda: unpack_codes(FP4, npfp8.NVFP4), "codes, E2M1, found the block format NVFP4"),
        (lambda: pack_codes(np.uint8(1), E2M1), "axis: expected one of 0 axes"),
        (lambda: unpack_codes(np.uint8([1, 2]), E3M2), "packed: expected a multiple of 3 bytes"),
        (lambda: unpack_codes(np.uint8([1, 2]), E2M1, 5), "length: expected 3..4 for 2 groups"),
        (lambda: unpack_codes(np.uint8([1, 2]), E2M1, 2), "length: expected 3..4 .*, found 2"),
        (lambda: unpack_codes(FP4[:0, 0], E2M1, 1), "length: expected 0..0 for 0 groups"),
        (lambda: pack_scales(FP4, "64x4"), "layout: expected one of 'linear', '128x4'"),
        (lambda: pack_scales(FP4[:3], "4x4"), "layout 4x4: expected multiples of 4 rows and 4 b"),
        (lambda: pack_scales(FP4[:, :6], "4x4"), "found 4 and 6"),
        (lambda: pack_scales(np.uint8(1)), "scale_codes: expected at least one axis"),
        (lambda: pack_scales(FP4, axis=5), "axis: expected one of 2 axes, found 5"),
        (lambda: unpack_scales(FP4, (4, 31)), "packed: expected 4096 bytes for .*, found 128"),
        (lambda: unpack_scales(FP4, ()), "shape: expected at least one axis, found none"),
        (lambda: unpack_scales(FP4, (10**12,) * 2), "expected 1000000000000000000000000 bytes"),
        (lambda: unpack_scales(FP4, (10**30, 4)), "packed: expected 4000.*, found 128"),
        (lambda: unpack_scales(FP4, (4, -1)), "shape: expected no negative length"),
        (lambda: unpack_scales(FP4, (3, 32), "4x4"), "layout 4x4: expected multiples"),
        (lambda: pack_blocks(FP4, ONE, "NVFP4"), "expected scales that are powers of two, found"),
        (lambda: pack_blocks(FP4, ONE, "MXFP8_E4M3"), "layout quark: expected codes of 4 or 6"),
        (lambda: pack_blocks(FP4 + 16, ONE, "MXFP4"), "E2M1 codes: expected 0..15"),
        (lambda: pack_blocks(FP4, ONE + 255, "MXFP4"), "scale_codes: .* 2.127, found code 255"),
        (lambda: pack_blocks(FP4, ONE.T, "MXFP4"), r"scale_codes: expected shape \(4, 1\) for"),
        (lambda: pack_blocks(FP4, ONE, "MXFP5"), "fmt: expected a block format"),
        (lambda: pack_blocks(FP4, ONE, BlockFormat(E2M1, 3)), "expected blocks of a multiple of 2"),
        (lambda: unpack_blocks(FP4, "MXFP4"), "packed: expected a multiple of 17 bytes"),
        (lambda: unpack_blocks(FP4[:, :17] + 128, "MXFP4"), "exponents of E8M0FNU, found -128"),
        (lambda: unpack_blocks(FP4[:, :17], "MXFP4", 33), "length: expected 1..32 for 1 blocks"),
        (lambda: pack_tensor(quantize(FP4, E4M3FN, 1.0)), "tensor: expected one of a block format"),
        (
            lambda: unpack_tensor(PackedTensor(FP4, ONE, "MXFP4", (4, 66))),
            r"codes: expected shape \(4, 33\) for a tensor of shape \(4, 66\), packed low-first",
        ),
        (lambda: unpack_tensor(PackedTensor(FP4, ONE, "MXFP4", (4, 64))), "packed: expected 8 byt"),
        (
            lambda: unpack_tensor(PackedTensor(FP4[0], ONE[0], "MXFP4", (1, 64))),
            r"codes: expected shape \(1, 32\) .* along axis 1, found \(32,\)",
        ),
        (lambda: PackedTensor(FP4, ONE, "MXFP4", (4, -64)), "shape: expected no negative length"),
        (
            lambda: PackedTensor(FP4, ONE, "MXFP4", (4, 64), code_layout="128x4"),
            "code_layout: expected one of 'low-first'",
        ),
        (
            lambda: PackedTensor(FP4, ONE, "MXFP4", (4, 64), scale_layout="low-first"),
            "scale_layout: expected one of 'linear'",
        ),
        (lambda: PackedTensor(FP4, ONE, "MXFP4", (4, 64), 2), "axis: expected one of 2 axes"),
        (lambda: Group(4, 2, 1, (Piece(0, 0, 0, 0, 4),)), "pieces: expected each of 4 bits of 2"),
        (
            lambda: Group(4, 2, 1, (Piece(0, 0, 0, 0, 4), Piece(1, 0, 0, 3, 4))),
            "pieces: expected places of their own",
        ),
        (lambda: Group(4, 1, 1, (Piece(0, 0, 0, 6, 4),)), "expected places of their own"),
        (lambda: Group(4, 1, 1, (Piece(0, 0, 1, 0, 4),)), "expected places of their own"),
        (lambda: Group(9, 1, 2, ()), r"bits: expected 1\.\.8, found 9"),
        (lambda: CodeLayout("x", (Group(1, 1, 1, (Piece(0, 0, 0, 0, 1),)),) * 2), "one group for"),
        (lambda: ScaleLayout("x", (0, 0), (0,), (0, 1, 2)), "rows: expected one 0 among positive"),
        (lambda: ScaleLayout("x", (0,), (4,), (0, 1)), "blocks: expected one 0"),
        (lambda: ScaleLayout("x", (0,), (0,), (0, 0)), r"order: expected a permutation of 0\.\.1"),
        (lambda: BlockLayout("x", ((4, "split"),)), "layout split: expected codes of 6 bits"),
        (lambda: BlockLayout("x", ((4, "none"),)), "codes: expected one of 'low-first'"),
    ],
)
def test_one_error_says_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "found" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack_codes(np.int8([1]), E2M1), "E2M1 codes: expected uint8, found int8"),
        (lambda: pack_codes([1], E2M1), "E2M1 codes: expected uint8, found int64"),
        (lambda: pack_codes(FP4, E2M1, 3), "layout: expected a CodeLayout or a name"),
        (lambda: pack_codes(FP4, E2M1, SCALE_LAYOUTS["8x4"]), "layout: expected a CodeLayout"),
        (lambda: pack_codes(FP4, E2M1, axis=None), "axis: expected an integer, found None"),
        (lambda: unpack_codes(np.int8([1]), E2M1), "packed: expected uint8, found int8"),
        (lambda: unpack_codes(FP4, E2M1, 1.0), "length: expected an integer, found float"),
        (lambda: pack_scales(FP4.astype(np.float32)), "scale_codes: expected uint8"),
        (lambda: unpack_scales(FP4, 128), "shape: expected a tuple of integers, found int"),
        (lambda: unpack_scales(FP4, (1.0,)), "shape: expected an integer, found float"),
        (lambda: pack_blocks(FP4, ONE, E2M1), "fmt: expected a block format or its name"),
        (lambda: pack_tensor(FP4), "tensor: expected a quantized tensor"),
        (lambda: unpack_tensor(FP4), "packed: expected a PackedTensor"),
        (lambda: Group(4, 1, 1, ((0, 0, 0),)), "pieces: expected a tuple of pieces"),
        (lambda: CodeLayout("x", []), "groups: expected a tuple of groups"),
        (lambda: CodeLayout(1, ()), "name: expected a str, found int"),
        (lambda: ScaleLayout("x", [0], (0,), (0, 1)), "rows: expected a tuple of integers"),
        (lambda: ScaleLayout("x", (0,), (0,), (0, 1), pads=1), "pads: expected True or False"),
        (lambda: BlockLayout("x", (4,)), "codes: expected a tuple of pairs"),
    ],
)
def test_wrong_types_are_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_tensor_made_of_bytes_is_checked():
    packed = pack_tensor(tensors("NVFP4", (4, 32), -1))
    with pytest.raises(ValueError, match="tensor_scale: expected a number for NVFP4, found None"):
        unpack_tensor(replace(packed, tensor_scale=None))
    assert isinstance(unpack_tensor(packed), QuantizedTensor)

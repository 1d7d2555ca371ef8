"""No wrong address of a scale or a packed code goes unseen: bytes are distinct where they can be.

A kernel that reads scales from wrong addresses passes every test whose bytes repeat. So each
case of a layout and of a block-scaled product is read here at wrong addresses of every usual
kind, and each of them has to change the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bert_numpy.kit import open_kit
from bert_numpy.kit.operations import OPERATIONS
from npfp8.blocks.layouts import SCALE_LAYOUTS

KIT = open_kit()


def results_of(operation: str) -> list[str]:
    return [name for name, tensor in KIT.tensors.items() if tensor.operation == operation]


def wrong_addresses(rows: int, blocks: int) -> Iterator[tuple[str, np.ndarray]]:
    """Where each byte of a matrix is read instead: permutations, and wrong pitches of rows."""
    size = rows * blocks
    index = np.arange(size)
    for shift in range(1, size):
        yield f"{shift} bytes further", (index + shift) % size
    row, block = np.divmod(index, blocks)
    yield "axes swapped", block * rows + row
    yield "back to front", size - 1 - index
    for pitch in range(2 * blocks + 1):
        if pitch != blocks:
            yield f"pitch {pitch}", (row * pitch + block) % size
    bits = [1 << i for i in range(max(rows, blocks).bit_length())]
    for bit in bits:
        other = row ^ bit
        yield f"rows exchanged by {bit}", np.where(other < rows, other, row) * blocks + block
        other = block ^ bit
        yield f"blocks exchanged by {bit}", row * blocks + np.where(other < blocks, other, block)
    for low in bits:
        for high in (bit for bit in bits if bit > low):
            swapped = np.where((row & low > 0) != (row & high > 0), row ^ low ^ high, row)
            yield (
                f"bits {low} and {high} of rows swapped",
                (np.where(swapped < rows, swapped, row) * blocks + block),
            )
    for first, step in ((128, 4), (8, 4), (4, 4), (32, 4)):  # the same place of the next tile
        yield f"the next {first} rows", (row + first) % rows * blocks + block
        yield f"the next {step} blocks", row * blocks + (block + step) % blocks
    for name, layout in SCALE_LAYOUTS.items():
        tiles = layout.tile
        if layout.pads or (rows % tiles[0] == 0 and blocks % tiles[1] == 0):
            order = _packed(index.reshape(rows, blocks), name)
            yield f"in {name}", np.resize(order[order >= 0], size)


def _packed(index: np.ndarray, layout: str) -> np.ndarray:
    """The index in a layout, -1 where it is filled up: two bytes of it are packed apart."""
    how = {"fmt": "E8M0FNU", "layout": layout}
    number = index + 1
    parts = [
        OPERATIONS["pack_scales"]({"codes": (number >> shift & 255).astype(np.uint8)}, how)
        for shift in (0, 8)
    ]
    return parts[0].reshape(-1).astype(np.int64) + (parts[1].reshape(-1).astype(np.int64) << 8) - 1


@pytest.mark.parametrize("name", results_of("pack_scales"))
def test_scales_of_a_layout(name):
    """Each of the two matrices alone shows every wrong address; together no two places agree."""
    (codes,) = KIT.inputs(name).values()
    right = KIT.arrays[name]
    attributes = KIT.tensors[name].attributes
    tried = 0
    for what, address in wrong_addresses(*codes.shape):
        wrong = codes.reshape(-1)[address].reshape(codes.shape)
        if np.array_equal(address, np.arange(codes.size)):
            continue  # this layout is row after row, or the matrix is too small for the change
        found = OPERATIONS["pack_scales"]({"codes": wrong}, attributes)
        assert not np.array_equal(found, right), what
        tried += 1
    assert tried > codes.size
    pair = [KIT.arrays[f"{name.rpartition('/')[0]}/{part}"].astype(int) for part in ("low", "high")]
    assert np.unique(pair[0] + 256 * pair[1]).size == codes.size
    for part in pair:
        windows = np.lib.stride_tricks.sliding_window_view(part.reshape(-1), 241)
        assert all(np.unique(window).size == 241 for window in windows)


#: Cases that need equal scales, and what for: their sums show less.
REPEATED = {
    "mxfp8-cancellation": "two blocks cancel",
    "mxfp8-cancellation-block-sums": "two blocks cancel",
    "mxfp8-smallest-scales": "the two smallest",
    "mxfp8-largest-scales": "the largest",
    "mxfp8-nan": "NaN, and the smallest",
}


def scale_inputs(name: str) -> list[str]:
    return [role for role in KIT.tensors[name].inputs if role.endswith("_scale_codes")]


@pytest.mark.parametrize("name", results_of("block_sum"))
def test_scales_of_a_product(name):
    case = name.split("/")[1].removeprefix("block-gemm-")
    inputs, tensor = KIT.inputs(name), KIT.tensors[name]
    for role in scale_inputs(name):
        codes = inputs[role]
        if case not in REPEATED:
            flat = (codes if role.startswith("a") else codes.T).reshape(-1)
            window = min(flat.size, 149)
            views = np.lib.stride_tricks.sliding_window_view(flat, window)
            assert all(np.unique(view).size == window for view in views), role
        if case in REPEATED:
            continue
        tried = 0
        for what, address in wrong_addresses(*codes.shape):
            if codes.size > 64 and what.endswith("bytes further") and tried > 64:
                continue  # the layouts' test has them all
            wrong = codes.reshape(-1)[address].reshape(codes.shape)
            if np.array_equal(address, np.arange(codes.size)):
                continue
            found = OPERATIONS["block_sum"]({**inputs, role: wrong}, tensor.attributes)
            assert not np.array_equal(found, KIT.arrays[name], equal_nan=True), (role, what)
            tried += 1
        assert tried >= codes.size - 1 or tried > 64


@pytest.mark.parametrize("name", results_of("block_sum"))
def test_every_scale_counts_in_a_product(name):
    """Another byte in any one place changes a sum."""
    case = name.split("/")[1].removeprefix("block-gemm-")
    if case in REPEATED or case.endswith(("infinities", "tiles")):
        pytest.skip("a special value hides others")
    inputs, tensor = KIT.inputs(name), KIT.tensors[name]
    for role in scale_inputs(name):
        for place in np.ndindex(inputs[role].shape):
            other = inputs[role].copy()
            other[place] = int(other[place]) + (1 if other[place] < 0x7E else -1)
            found = OPERATIONS["block_sum"]({**inputs, role: other}, tensor.attributes)
            assert not np.array_equal(found, KIT.arrays[name], equal_nan=True), (role, place)


@pytest.mark.parametrize("name", [*results_of("pack_codes"), *results_of("pack_blocks")])
def test_bytes_of_codes(name):
    """Of the bytes of the first order no two are alike; in others, few are; none may be moved."""
    packed = KIT.arrays[name]
    layout = KIT.tensors[name].attributes["layout"]
    if layout.startswith("ptx"):
        return  # a byte per code: of 16 values, or 64
    flat = packed.reshape(-1)
    distinct = np.unique(flat).size
    assert distinct >= (flat.size - len(packed) if layout == "low-first" else flat.size // 2)
    for shift in range(1, flat.size):
        assert not np.array_equal(np.roll(flat, shift), flat)


def test_vectors_of_scales_are_distinct():
    """Scales per row, per column and per block of K: no two alike in a case."""
    cases = 0
    for name in results_of("scale_sum"):
        inputs = KIT.inputs(name)
        scales = [inputs[role].reshape(-1) for role in ("a_scale", "b_scale")]
        if max(scale.size for scale in scales) > 1 and name.startswith("operator/"):
            together = np.concatenate(scales)
            assert np.unique(together).size == together.size, name
            cases += 1
    assert cases >= 2

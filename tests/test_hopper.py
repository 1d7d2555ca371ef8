"""Hopper's tensor cores, float16 and bfloat16 as accumulators, against recorded and exact sums."""

from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import BFLOAT16, FLOAT16, assert_same_bits, code_values, finite_codes, nearest
from safetensors.numpy import load_file

import npfp8
from npfp8 import (
    E2M1,
    E4M3,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    INT8,
    MXFP4,
    NVFP4,
    UINT8,
    Accumulator,
    FloatFormat,
    Format,
    QuantizedTensor,
    matmul,
    quantize,
)

MODES = ("hopper", "hopper-fast")
FORMATS = {"E4M3FN": E4M3FN, "E5M2": E5M2}
PAIRS = list(itertools.product(FORMATS.values(), repeat=2))
SIZES = (0, 1, 15, 16, 31, 32, 33, 64, 127, 128, 129, 160, 255, 256, 257)
EXCERPTS = Path(__file__).parent / "data" / "hopper.safetensors"

modes = pytest.mark.parametrize("mode", MODES)
pairs = pytest.mark.parametrize(("fmt_a", "fmt_b"), PAIRS, ids=str)


def tensor(fmt: Format, codes: Any, scale: Any = 1.0, **fields: Any) -> QuantizedTensor:
    """A tensor of codes, read-only, as no product may change it."""
    array = np.array(codes, np.uint8).view(fmt.code_dtype)
    array.flags.writeable = False
    return QuantizedTensor(array, scale, fmt, **fields)


def row(fmt: FloatFormat, values: list[float]) -> QuantizedTensor:
    """A tensor (1, K) of values that the format has."""
    x = quantize(np.float32([values]), fmt, 1.0)
    assert (x.code_values() == values).all()
    return x


def expected(a: QuantizedTensor, b: QuantizedTensor, mode: str) -> np.ndarray:
    """The oracle's product; NaN and infinities by IEEE 754, in any order."""
    finite = [np.where(x.fmt.is_finite[x.codes], x.codes, 0) for x in (a, b)]
    fast = mode == "hopper-fast"
    sums = oracles.hopper_sums(a.fmt.name, finite[0], b.fmt.name, finite[1], fast)
    x, y = (t.fmt.values[t.codes] for t in (a, b))
    with np.errstate(invalid="ignore"):
        special = (x[:, :, None] * y[None]).sum(axis=1)
    sums = np.where(np.isfinite(special), sums, special.astype(np.float32))
    sums.view(np.uint32)[np.isnan(special)] = 0x7FFFFFFF
    return sums


# What was recorded on hardware


@modes
def test_products_recorded_on_an_h200(shared: Path, mode: str) -> None:
    recorded = load_file(shared / "hardware" / "h200-scaled-mm.safetensors")
    sizes = {name.split(".")[1] for name in recorded}
    assert len(sizes) == 9
    for k in sizes:
        a, b = (tensor(E4M3FN, recorded[f"normal.{k}.{x}"]) for x in "ab")
        wanted = recorded[f"normal.{k}.fast{int(mode == 'hopper-fast')}"]
        assert_same_bits(matmul(a, b.mT, mode), wanted)


@modes
@pytest.mark.parametrize("kind", ["uniform", "special", "edge"])
@pairs
def test_products_recorded_on_an_h100(
    fmt_a: FloatFormat, fmt_b: FloatFormat, kind: str, mode: str
) -> None:
    """By torch._scaled_mm; E5M2 x E5M2 by the instruction itself (scripts/prove_hopper_cuda.py)."""
    recorded, key = load_file(EXCERPTS), f"{fmt_a}.{fmt_b}.{kind}"
    a, b = tensor(fmt_a, recorded[f"{key}.a"]), tensor(fmt_b, recorded[f"{key}.b"])
    assert_same_bits(matmul(a, b.mT, mode), recorded[f"{key}.{mode}"])


def test_the_oracle_is_the_hardware() -> None:
    """So that what agrees with the one agrees with the other."""
    recorded = load_file(EXCERPTS)
    for (fmt_a, fmt_b), kind, mode in itertools.product(PAIRS, ("uniform", "edge"), MODES):
        key = f"{fmt_a}.{fmt_b}.{kind}"
        a, b = recorded[f"{key}.a"], recorded[f"{key}.b"].T
        sums = oracles.hopper_sums(str(fmt_a), a, str(fmt_b), b, mode == "hopper-fast")
        assert_same_bits(sums, recorded[f"{key}.{mode}"])


# The rule, on numbers that can be followed by hand


@modes
@pytest.mark.parametrize(
    ("products", "total"),
    [
        ([(1, 1), (2**-6, 2**-7)], 1 + 2**-13),  # the last bit kept
        ([(1, 1), (2**-7, 2**-7)], 1),  # the first one lost
        ([(2**-7, 2**-7), (1, 1)], 1),  # wherever it is in the block
        ([(1, 1)] + 30 * [(2**-7, 2**-7)], 1),  # and each for itself
        ([(1, 1), (-(2**-7), 2**-7)], 1),  # toward zero, from both sides
        ([(-1, 1), (2**-7, 2**-7)], -1),
        ([(1, 1), (-1.5 * 2**-6, 2**-7)], 1 - 2**-13),
        # The exponent of 1.875 * 1.875 = 3.515625 is 0, the sum of its factors', and not 1.
        ([(1.875, 1.875), (2**-6, 2**-7), (2**-6, 2**-7)], 1.875**2 + 2**-12),
        # That sum has the exponent 1: it keeps multiples of 2^-12.
        ([(1.875, 1.875), (2**-6, 2**-7)], 1.875**2),
        # A subnormal factor counts with the exponent -6: that of 2^-9 * 256 is 2.
        ([(2**-9, 256), (2**-6, 2**-5)], 2**-1 + 2**-11),
        ([(2**-9, 256), (2**-6, 2**-6)], 2**-1),
        ([(0, 448), (2**-9, 2**-9)], 2**-18),  # zeros do not count at all
    ],
)
def test_one_block(products: list[tuple[float, float]], total: float, mode: str) -> None:
    a, b = (row(E4M3FN, list(values)) for values in zip(*products, strict=True))
    assert_same_bits(matmul(a, b.mT, mode), np.float32([[total]]))


@modes
@pytest.mark.parametrize(("at", "total"), [(2, 0), (31, 0), (32, 2**-14), (128, 2**-14)])
def test_what_a_block_cancels_is_not_in_the_way_of_the_next(
    at: int, total: float, mode: str
) -> None:
    x, y = np.zeros((2, 160), np.float32)
    x[:2], y[:2] = (1, -1), 1
    x[at] = y[at] = 2**-7
    a, b = row(E4M3FN, x.tolist()), row(E4M3FN, y.tolist())
    assert_same_bits(matmul(a, b.mT, mode), np.float32([[total]]))


def test_without_fast_accumulation_128_products_have_an_accumulator_of_their_own() -> None:
    x, y = np.zeros((2, 256), np.float32)
    x[0] = y[0] = 1
    for begin in (96, 128):  # in the same 128 as the 1, and not
        x[1:], y[1:] = 0, 0
        x[begin : begin + 32] = y[begin : begin + 32] = 2**-7
        a, b = row(E4M3FN, x.tolist()), row(E4M3FN, y.tolist())
        assert_same_bits(matmul(a, b.mT, "hopper-fast"), np.float32([[1]]))
        sums = 1 if begin == 96 else 1 + 2**-9
        assert_same_bits(matmul(a, b.mT, "hopper"), np.float32([[sums]]))
        assert_same_bits(matmul(a, b.mT), np.float32([[1 + 2**-9]]))


# Against the oracle


@modes
@pairs
def test_every_pair_of_codes(fmt_a: FloatFormat, fmt_b: FloatFormat, mode: str) -> None:
    """A product alone has at most 8 bits: it is exact, or special."""
    codes = np.arange(256)[:, None]
    a, b = tensor(fmt_a, codes), tensor(fmt_b, codes.T)
    assert_same_bits(matmul(a, b, mode), expected(a, b, mode))
    exact, nan = matmul(a, b), np.isnan(matmul(a, b))
    np.testing.assert_array_equal(matmul(a, b, mode)[~nan], exact[~nan])


@modes
@pytest.mark.parametrize("k", SIZES)
@pairs
def test_random_codes(fmt_a: FloatFormat, fmt_b: FloatFormat, k: int, mode: str) -> None:
    """All finite codes equally likely: exponents as wide apart as the formats have them."""
    rng = np.random.default_rng(k)
    a = tensor(fmt_a, rng.choice(finite_codes(fmt_a.name), (13, k)))
    b = tensor(fmt_b, rng.choice(finite_codes(fmt_b.name), (k, 21)))
    wanted = expected(a, b, mode)
    assert_same_bits(matmul(a, b, mode), wanted)
    assert_same_bits(matmul(b.mT, a.mT, mode), wanted.T)


@modes
@pairs
def test_mostly_zeros(fmt_a: FloatFormat, fmt_b: FloatFormat, mode: str) -> None:
    """So that the few products of a block are of every relation to each other."""
    rng = np.random.default_rng(6)
    a, b = (
        tensor(fmt, np.where(rng.random(shape) < 0.8, 0, rng.choice(finite_codes(fmt.name), shape)))
        for fmt, shape in ((fmt_a, (60, 90)), (fmt_b, (90, 60)))
    )
    assert_same_bits(matmul(a, b, mode), expected(a, b, mode))


@modes
@pairs
def test_normal_numbers(fmt_a: FloatFormat, fmt_b: FloatFormat, mode: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (
        tensor(fmt, quantize(rng.standard_normal(shape), fmt).codes)
        for fmt, shape in ((fmt_a, (40, 1000)), (fmt_b, (1000, 50)))
    )
    found = matmul(a, b, mode)
    assert_same_bits(found, expected(a, b, mode))
    assert (found != matmul(a, b)).mean() > 0.9  # the rule makes a difference here


@st.composite
def operands(draw: st.DrawFn) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Operands whose codes are from any part of their formats, specials among them."""
    m, k, n = draw(st.integers(1, 3)), draw(st.integers(0, 300)), draw(st.integers(1, 3))
    found = []
    for fmt, shape in zip(draw(st.sampled_from(PAIRS)), ((m, k), (k, n)), strict=True):
        low = draw(st.integers(0, 0x7F))
        high = draw(st.integers(low, 0x7F))
        signs = draw(st.sampled_from([(0,), (0x80,), (0, 0x80)]))
        elements = st.builds(lambda m, s: m | s, st.integers(low, high), st.sampled_from(signs))
        fill = st.sampled_from([low, high, 0, 0x80])
        found.append(tensor(fmt, draw(hnp.arrays(np.uint8, shape, elements=elements, fill=fill))))
    return found[0], found[1]


@settings(max_examples=150)
@given(operands(), st.sampled_from(MODES))
def test_any_codes(pair: tuple[QuantizedTensor, QuantizedTensor], mode: str) -> None:
    assert_same_bits(matmul(*pair, mode), expected(*pair, mode))


@modes
def test_specials(mode: str) -> None:
    plus, minus, nan, zero, one, bits = 0x7C, 0xFC, 0x7E, 0x00, 0x3C, np.uint32
    cases = [
        ([plus, one], [one, one], 0x7F800000),
        ([minus, one], [one, one], 0xFF800000),
        ([plus, plus], [one, minus], 0x7FFFFFFF),  # infinity minus infinity
        ([plus, one], [zero, one], 0x7FFFFFFF),
        ([nan | 0x80, one], [zero, one], 0x7FFFFFFF),
        ([one, one], [one, one | 0x80], 0x00000000),
        ([zero | 0x80, zero], [one, zero], 0x00000000),
    ]
    for (x, y, wanted), gap in itertools.product(cases, (0, 30, 200)):
        a, b = (np.zeros((1, gap + 2)) for _ in "ab")
        a[0, :: gap + 1], b[0, :: gap + 1] = x, y
        found = matmul(tensor(E5M2, a, 0.3), tensor(E5M2, b, 0.7).mT, mode)
        assert_same_bits(found, bits([[wanted]]).view(np.float32))


# Shapes and scales


@modes
@pytest.mark.parametrize("tile", [5, 64, 1 << 13])
@pytest.mark.parametrize(
    ("shape_a", "shape_b"),
    [
        ((2, 3, 9, 40), (40, 5)),
        ((2, 3, 5, 40), (40, 9)),
        ((9, 40), (2, 3, 40, 5)),
        ((2, 1, 5, 40), (3, 40, 9)),
        ((2, 3, 6, 40), (2, 3, 40, 6)),
        ((1, 1, 6, 40), (1, 40, 6)),
        ((2, 3, 40), (2, 40, 9)),
        ((9, 2, 40), (9, 40, 3)),
        ((2, 0, 5, 40), (40, 3)),
        ((0, 40), (40, 3)),
        ((3, 40), (2, 40, 0)),
    ],
    ids=str,
)
def test_leading_axes_and_tiles(
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    tile: int,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("npfp8.products.tiles._TILE", tile)
    rng = np.random.default_rng(1)
    a = tensor(E4M3FN, rng.choice(finite_codes("E4M3FN"), shape_a))
    b = tensor(E5M2, rng.choice(finite_codes("E5M2"), shape_b))
    lead = np.broadcast_shapes(shape_a[:-2], shape_b[:-2])
    every_a, every_b = (np.broadcast_to(x.codes, (*lead, *x.shape[-2:])) for x in (a, b))
    wanted = np.empty((*lead, shape_a[-2], shape_b[-1]), np.float32)
    narrow = wanted.copy()
    for index in np.ndindex(*lead):
        x, y = tensor(E4M3FN, every_a[index]), tensor(E5M2, every_b[index])
        wanted[index] = expected(x, y, mode)
        narrow[index] = matmul(x, y, "float16")
    assert_same_bits(matmul(a, b, mode), wanted)
    assert_same_bits(matmul(a, b, "float16"), narrow)


@pytest.mark.parametrize("mode", [*MODES, "float16", "bfloat16"])
def test_scales_multiply_the_sum(mode: str) -> None:
    rng = np.random.default_rng(2)
    codes_a, codes_b = rng.choice(finite_codes("E4M3FN"), (2, 6, 6))
    sums = matmul(tensor(E4M3FN, codes_a), tensor(E4M3FN, codes_b), mode)
    rows, columns = rng.uniform(0.01, 3, (2, 6)).astype(np.float32)
    a, b = tensor(E4M3FN, codes_a, rows, axis=0), tensor(E4M3FN, codes_b, columns, axis=1)
    assert_same_bits(matmul(a, b, mode), sums * (rows[:, None] * columns))
    a = tensor(E4M3FN, codes_a, rows[0])
    assert_same_bits(matmul(a, b, mode), sums * (rows[0] * columns))


# What is refused


@modes
@pytest.mark.parametrize("fmt", [INT8, UINT8, E4M3FNUZ, E5M2FNUZ, E4M3, E2M1], ids=str)
def test_formats_that_hopper_does_not_have(fmt: Format, mode: str) -> None:
    other, good = tensor(fmt, [[1]]), tensor(E4M3FN, [[1]])
    for a, b, name in ((other, good, "a"), (good, other, "b")):
        message = f"{name}: accumulate '{mode}': expected E4M3FN or E5M2, found {fmt}"
        with pytest.raises(ValueError, match=message):
            matmul(a, b, mode)


@modes
def test_blocks_along_k(mode: str) -> None:
    a = tensor(E4M3FN, np.zeros((2, 64)), np.ones((2, 2)), axis=1, block=32)
    plain = tensor(E4M3FN, np.zeros((2, 64)))
    for x, y in ((a, plain), (plain, a), (a, a)):
        with pytest.raises(ValueError, match=f"'{mode}': .* vary along K, found blocks of 32"):
            matmul(x, y.mT, mode)


# Accumulators of one's own


HOPPER_FAST = npfp8.ACCUMULATORS["hopper-fast"]

#: step, fraction_bits, steps_to_float32: other hardware's, toys, and the most that is taken.
FUSED = [(16, 13, None), (32, 13, None), (32, 13, 4), (4, 5, 1), (1, 2, None), (7, 10, 3)]
FUSED += [(1, 21, None), (127, 15, 2), (1000, 11, None)]


@pytest.mark.parametrize(("step", "fraction_bits", "steps"), FUSED)
@pairs
def test_a_record_of_ones_own_is_all_that_a_fused_accumulator_needs(
    fmt_a: FloatFormat, fmt_b: FloatFormat, step: int, fraction_bits: int, steps: int | None
) -> None:
    mine = replace(
        HOPPER_FAST,
        name="mine",
        step=step,
        fraction_bits=fraction_bits,
        precision=fraction_bits + 1,
        steps_to_float32=steps,
    )
    rng = np.random.default_rng(step)
    a = rng.choice(finite_codes(str(fmt_a)), (9, 203))
    b = rng.choice(finite_codes(str(fmt_b)), (203, 11))
    a[:3] = quantize(rng.normal(size=(3, 203)), fmt_a).codes  # of like magnitudes, so bits are lost
    sums = oracles.fused_sums(str(fmt_a), a, str(fmt_b), b, step, fraction_bits, steps)
    found = matmul(tensor(fmt_a, a), tensor(fmt_b, b), mine)
    assert_same_bits(found, sums + np.float32(0))
    assert (found != matmul(tensor(fmt_a, a), tensor(fmt_b, b), "hopper")).any() == (
        (step, fraction_bits, steps) != (32, 13, 4)
    )


def test_a_fused_accumulator_by_block_of_scales() -> None:
    """With scales along K each block has an accumulator of its own."""
    mine = replace(HOPPER_FAST, name="mine", scales_along_k=True)
    rng = np.random.default_rng(5)
    codes = [rng.choice(finite_codes("E4M3FN"), (5, 160)) for _ in "ab"]
    scales = [rng.uniform(0.5, 2, (5, 3)).astype(np.float32) for _ in "ab"]
    a, b = (
        tensor(E4M3FN, x, scale, axis=1, block=64) for x, scale in zip(codes, scales, strict=True)
    )
    wanted = np.zeros((5, 5), np.float32)
    for i, start in enumerate(range(0, 160, 64)):
        x, y = (c[:, start : start + 64] for c in codes)
        sums = oracles.hopper_sums("E4M3FN", x, "E4M3FN", y.T, True)
        wanted += sums * (scales[0][:, i, None] * scales[1][None, :, i])
    assert_same_bits(matmul(a, b.mT, mine), wanted)


def test_a_sequential_accumulator_of_ones_own() -> None:
    mine = Accumulator("mine", "sequential", precision=9, emin=-8, emax=20, nan_bits=0x7F800001)
    rng = np.random.default_rng(6)
    codes = rng.choice(finite_codes("E5M2"), (12, 20))
    codes[:6] &= 0x9F  # small ones, whose sums have subnormals' last place
    a = tensor(E5M2, codes)
    b = tensor(E4M3FN, rng.choice(finite_codes("E4M3FN"), (20, 12)))
    kind = oracles.Binary(9, -8, 20)
    rows, columns = a.code_values(np.float64), b.code_values(np.float64).T
    wanted = [[rounded_dot(x, y, kind) for y in columns] for x in rows]
    found = matmul(a, b, mine)
    assert np.isinf(found).any()
    assert np.isfinite(found).any()
    bits = np.where(np.isnan(found), np.uint32(mine.nan_bits), np.float32(wanted).view(np.uint32))
    np.testing.assert_array_equal(found.view(np.uint32), bits)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"kind": "mystery"},
            "kind: expected one of exact, blocks, blas, sequential, fused, groups, dot",
        ),
        ({"step": 0}, "expected step of 1 to 1024, found"),
        ({"step": 1025}, "expected step of 1 to 1024, found"),
        ({"fraction_bits": 0}, "expected fraction_bits of 1 to 35, found"),
        ({"fraction_bits": -2}, "expected fraction_bits of 1 to 35, found"),
        ({"fraction_bits": 36}, "expected fraction_bits of 1 to 35, found"),
        ({"step": 65, "fraction_bits": 35}, r"fraction_bits \+ 2 log2\(step\) of at most 47"),
        ({"precision": 1}, "expected precision of 2 to 24, found"),
        ({"precision": 25}, "expected precision of 2 to 24, found"),
        ({"least_exponent": -125}, "expected least_exponent of -200 to emin, found"),
        ({"order": (1, 0)}, "expected order to be a permutation of the k of whole steps, found"),
        ({"order": (1,) * 32}, "expected order to be a permutation of the k of whole steps, found"),
        ({"formats": (), "floats": ()}, "expected formats or floats, found"),
        ({"floats": ("float32",)}, "floats: expected one of 'float16', 'bfloat16', found"),
        ({"formats": (MXFP4,)}, "expected block, for block formats, found"),
        ({"block": 32}, "expected block formats with blocks of 32, found"),
        ({"block": 32, "formats": (MXFP4, NVFP4)}, "expected block formats with blocks of 32"),
        ({"block": 16, "formats": (NVFP4,)}, "expected block to be step, found"),
        ({"kind": "groups"}, "expected group of at least 1, and block, found"),
        ({"kind": "dot"}, "expected sum_bits of fraction_bits to 40, found"),
        ({"kind": "dot", "sum_bits": 41}, "expected sum_bits of fraction_bits to 40, found"),
        ({"kind": "dot", "sum_bits": 31, "apart": 3}, "expected apart of 1 or 2, found"),
        ({"steps_to_float32": 0}, "expected steps_to_float32 of at least 1, or None, found"),
        ({"formats": None}, "expected formats or floats, found"),
        ({"formats": (INT8,)}, "expected float formats of exponents from -16 to 15, found"),
        ({"formats": (E4M3FN, E8M0FNU)}, "expected float formats of exponents"),
        ({"kind": "sequential", "precision": 7}, "expected precision of 8 to 24, found"),
        ({"kind": "sequential", "precision": 25}, "expected precision of 8 to 24, found"),
        ({"kind": "sequential", "emin": 127}, "expected -126 <= emin < emax <= 127, found"),
    ],
)
def test_accumulators_whose_sums_could_not_be_exact(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(HOPPER_FAST, **changes)


def test_what_an_accumulator_takes() -> None:
    for accumulator in npfp8.ACCUMULATORS.values():
        takes_all = accumulator.formats is None
        assert takes_all == (accumulator.nan_bits == 0x7FC00000) != accumulator.is_tensor_core
        assert accumulator.scales_along_k == (takes_all or accumulator.block is not None)
        for fmt in accumulator.formats or ():
            accumulator.check(fmt, accumulator.formats[-1])
        if takes_all:
            accumulator.check(E4M3FN, E5M2)
            accumulator.check(INT8, UINT8, block=2)
    with pytest.raises(ValueError, match=r"^b: accumulate 'hopper': expected E4M3FN or E5M2"):
        npfp8.ACCUMULATORS["hopper"].check(E5M2, INT8)
    narrow = [x.name for x in npfp8.ACCUMULATORS.values() if x.narrow]
    assert [x for x in narrow if not x.endswith("float16")] == ["hopper", "hopper-fast", "ada"]
    assert [x.name for x in npfp8.ACCUMULATORS.values() if not x.reproducible] == ["float32"]
    assert tuple(npfp8.ACCUMULATORS) == npfp8.ACCUMULATIONS
    assert all(name == x.name for name, x in npfp8.ACCUMULATORS.items())


# float16 and bfloat16


def rounded_dot(x: list[Any], y: list[Any], kind: oracles.Binary) -> float:
    """One rounding of the exact sum per product."""
    total = 0.0
    for p, q in zip(x, y, strict=True):
        ieee = total + float(p) * float(q)
        if not np.isfinite(ieee):  # of an infinity or NaN
            total = ieee
        else:
            total = nearest(Fraction(total) + Fraction(p) * Fraction(q), kind)
    return total


def narrow_expected(a: QuantizedTensor, b: QuantizedTensor, mode: str) -> np.ndarray:
    kind = {"float16": FLOAT16, "bfloat16": BFLOAT16}[mode]
    x, y = (
        np.array(code_values(t.fmt.name), object)[t.codes.view(np.uint8)].tolist()
        for t in (a, b.mT)
    )
    sums = np.float32([[rounded_dot(p, q, kind) for q in y] for p in x])
    sums = sums.reshape(len(x), len(y))
    sums.view(np.uint32)[np.isnan(sums)] = 0x7FC00000
    return sums + np.float32(0)


@settings(max_examples=100)
@given(operands(), st.sampled_from(["float16", "bfloat16"]))
def test_narrow_sums(pair: tuple[QuantizedTensor, QuantizedTensor], mode: str) -> None:
    assert_same_bits(matmul(*pair, mode), narrow_expected(*pair, mode))


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
@pytest.mark.parametrize(("fmt_a", "fmt_b"), [*PAIRS, (INT8, INT8), (UINT8, E5M2)], ids=str)
def test_narrow_sums_of_random_codes(fmt_a: Format, fmt_b: Format, mode: str) -> None:
    rng = np.random.default_rng(4)
    for k in (1, 40, 300):
        a, b = (
            tensor(fmt, rng.choice(finite_codes(fmt.name), shape))
            for fmt, shape in ((fmt_a, (3, k)), (fmt_b, (k, 2)))
        )
        assert_same_bits(matmul(a, b, mode), narrow_expected(a, b, mode))


def test_narrow_sums_by_hand() -> None:
    def dot(x: list[float], y: list[float], mode: str) -> float:
        return float(matmul(row(E5M2, x), row(E5M2, y).mT, mode)[0, 0])

    assert dot([2048, 1, 1, 1], [1, 1, 1, 1], "float16") == 2048  # ties to even, each time
    assert dot([1, 1, 1, 2048], [1, 1, 1, 1], "float16") == 2052  # the order counts
    assert dot([256, 1, 1], [1, 1, 1], "bfloat16") == 256
    assert dot([2**-16, 2**-14], [2**-9, 2**-11], "float16") == 0  # half of the smallest, twice
    assert dot([2**-16, 2**-14], [2**-9, 2**-10], "float16") == 2**-24
    assert dot([57344, 8192, -8192], [1, 1, 1], "float16") == np.inf  # 65,536, and for good
    assert dot([57344, 8192], [1, 0.875], "float16") == 64512


@pytest.mark.parametrize("mode", ["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("x", "y"),
    [
        pytest.param([0x7C, 0x3C], [0x3C, 0xFC], id="infinity minus infinity"),
        pytest.param([0x7C], [0x00], id="infinity times 0"),
        pytest.param([0xFE], [0x3C], id="NaN times 1"),
    ],
)
def test_one_nan_of_narrow_sums(x: list[int], y: list[int], mode: str) -> None:
    """Not the processor's: that of x86 has the sign set."""
    a, b = (tensor(E5M2, np.array([codes], np.uint8)) for codes in (x, y))
    product = matmul(a, b.mT, mode)
    assert_same_bits(product.view(np.uint32), np.array([[0x7FC00000]], np.uint32))

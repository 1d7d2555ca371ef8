"""The sums of tensor cores: by the rules in fractions, product by product, and by hardware."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import assert_same_bits
from safetensors.numpy import load_file

import npfp8
from npfp8 import (
    ACCUMULATORS,
    E2M1,
    E4M3FN,
    E5M2,
    NVFP4,
    Accumulator,
    BlockFormat,
    FloatFormat,
    QuantizedTensor,
    matmul,
    matmul_16bit,
)
from npfp8.bfloat16 import from_bits
from npfp8.product_inputs import FLOAT_KINDS, KINDS, draw_codes, draw_floats, draw_operands
from npfp8.products import tensor_cores
from npfp8.products import tiles as products_tiles
from npfp8.products.float32 import lowest_bits
from npfp8.products.tensor_cores import steps
from npfp8.products.tensor_cores.steps import Products
from npfp8.products.tensor_cores.terms import terms_of_floats

CORES = {name: how for name, how in ACCUMULATORS.items() if how.is_tensor_core}
OF_CODES = [name for name, how in CORES.items() if how.formats and how.block is None]
OF_FLOATS = [name for name, how in CORES.items() if how.floats]
OF_BLOCKS = [name for name, how in CORES.items() if how.block is not None]
EXCERPTS = Path(__file__).parent / "data" / "tensor-cores.safetensors"

#: NVFP4's largest magnitude, in units of which its tensor's number multiplies.
ONE = np.float32(6 * 448)

#: An element: its value, a Fraction unless it is infinite or NaN, and its exponent.
Element = tuple[Any, int]


# The rules, in fractions


def power(e: int) -> Fraction:
    return Fraction(2) ** e


def exponent(x: Fraction) -> int:
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if abs(x) >= power(e) else e - 1


def cut(x: Fraction, unit: int, to: Callable[[Fraction], int] = math.trunc) -> Fraction:
    return to(x / power(unit)) * power(unit)


def rounded(x: Fraction, precision: int, emin: int, emax: int, nearest: bool) -> Any:
    if x == 0:
        return x
    unit = max(exponent(x), emin) - precision + 1
    x = cut(x, unit, round if nearest else math.trunc)
    return x if abs(x) < power(emax + 1) else math.copysign(math.inf, x)


def fused(total: Fraction, terms: list[Element], how: Accumulator, scales: Any) -> Fraction:
    shift = 0 if scales is None else scales[0][1]
    own = exponent_of_total(total, how)
    unit = max([own, *(e + shift for _, e in terms)]) - how.fraction_bits
    if not terms:
        unit = max(own, how.least_exponent) - how.fraction_bits
    return cut(total, unit) + sum(cut(p * power(shift), unit) for p, _ in terms)


def groups(total: Fraction, terms: list[Element], how: Accumulator, scales: Any) -> Fraction:
    """``terms`` has the zeros too: the groups are counted."""
    parts = []
    for start in range(0, len(terms), how.group):
        group = terms[start : start + how.group]
        significand, e = scales[start // how.block]
        some = significand != 0 and any(p != 0 for p, _ in group)
        whole = sum(p for p, _ in group) * significand * power(e)
        parts.append((whole if some else Fraction(0), e if some else how.least_exponent))
    unit = max([exponent_of_total(total, how), *(e for _, e in parts)]) - how.fraction_bits
    return cut(total, unit) + sum(cut(part, unit) for part, _ in parts)


def dot(total: Fraction, terms: list[Element], how: Accumulator, scales: Any) -> Fraction:
    """``terms`` has the zeros too: even and odd ones are told apart."""
    f, halves = how.fraction_bits, []
    for first in range(how.apart):
        some = [term for term in terms[first :: how.apart] if term[0] != 0]
        e = max((e for _, e in some), default=-5000)
        halves.append((sum((cut(p, e - f) for p, _ in some), Fraction(0)), e))
    e = max(e for _, e in halves)
    if how.apart == 2:
        whole = sum((cut(half, e - f, math.floor) for half, _ in halves), Fraction(0))
    else:
        whole = halves[0][0]
    own = exponent_of_total(total, how)
    e = max(e, own)
    kept = cut(total, e - f, math.floor)
    if how.apart == 2 and own < e - f - 1:
        kept = Fraction(0)
    whole = cut(whole, e - how.sum_bits - 1, math.floor) + kept
    if whole == 0:
        return whole
    return cut(whole, max(exponent(whole), how.emin) - how.sum_bits, math.floor)


def exponent_of_total(total: Fraction, how: Accumulator) -> int:
    return max(exponent(total), how.emin) if total else how.least_exponent


def one_sum(
    x: Sequence[Element], y: Sequence[Element], how: Accumulator, scales: list[Any] | None = None
) -> float:
    """The sum of products of a row and a column, as a float32 number.

    ``scales`` are the significand and the exponent of the two scales of each block.
    """
    pairs = list(zip(x, y, strict=True))
    if how.order:
        pairs += [((Fraction(0), 0),) * 2] * (-len(pairs) % len(how.order))
        runs = range(0, len(pairs), len(how.order))
        pairs = [pairs[start + k] for start in runs for k in how.order]
    rule = {"fused": fused, "groups": groups, "dot": dot}[how.kind]
    result, total = Fraction(0), Fraction(0)
    chunks = list(range(0, len(pairs), how.step))
    for number, start in enumerate(chunks, 1):
        terms, special = [], 0.0
        for (p, ep), (q, eq) in pairs[start : start + how.step]:
            if isinstance(p, Fraction) and isinstance(q, Fraction):
                both = p * q
                if how.kind == "dot" and abs(both) >= power(how.emax + 1):
                    special += math.copysign(math.inf, both)
                if both or how.kind != "fused":
                    terms.append((both, ep + eq))
            else:
                special += float(p) * float(q)
        of_step = None
        if scales is not None:
            blocks = -(-how.step // how.block)
            of_step = scales[start // how.block :][:blocks]
            if any(math.isnan(significand) for significand, _ in of_step):
                special = math.nan
        if math.isfinite(special) and isinstance(total, Fraction):
            total = rounded(
                rule(total, terms, how, of_step), how.precision, how.emin, how.emax, how.nearest
            )
        else:
            total = float(total) + special
        last = start == chunks[-1]
        if last or (how.steps_to_float32 and number % how.steps_to_float32 == 0):
            result = result + total if isinstance(total, Fraction) else float(result) + total
            if isinstance(result, Fraction):
                result = rounded(result, 24, -126, 127, True)
            total = Fraction(0)
    return float(result)


def elements(x: np.ndarray, emin: int) -> list[list[Element]]:
    """The rows of an array of numbers."""

    def one(value: float) -> Element:
        if not math.isfinite(value):
            return value, 0
        exact = Fraction(value)
        return exact, max(exponent(exact), emin) if exact else -5000

    return [[one(float(value)) for value in row] for row in x]


def of_codes(x: QuantizedTensor, how: Accumulator) -> list[list[Element]]:
    emin = 1 - x.fmt.bias if how.operand_emin is None else how.operand_emin
    return elements(x.code_values(np.float64), emin)


def checked(
    found: np.ndarray, rows: Any, columns: Any, how: Accumulator, scales: Any = None
) -> None:
    wanted = [
        [one_sum(x, y, how, scales and list(scales(i, j))) for j, y in enumerate(columns)]
        for i, x in enumerate(rows)
    ]
    bits = (np.float32(wanted) + np.float32(0)).view(np.uint32)
    bits[np.isnan(wanted)] = how.nan_bits
    np.testing.assert_array_equal(found.view(np.uint32), bits)


def pairs_of(formats: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """All pairs, again and again."""
    every = list(product(formats, repeat=2))
    while True:
        yield from every


@pytest.mark.parametrize("name", OF_CODES)
def test_the_rules_of_codes(name: str) -> None:
    how = CORES[name]
    assert how.formats is not None
    rng = np.random.default_rng(OF_CODES.index(name))
    formats = pairs_of(how.formats)
    for kind, k in product(KINDS, (1, how.step + 1, 2 * how.step + 7)):
        a, b = draw_operands(kind, next(formats), (2, k, 3), rng)
        checked(matmul(a, b.mT, how), of_codes(a, how), of_codes(b, how), how)


@pytest.mark.parametrize("name", OF_FLOATS)
def test_the_rules_of_16_bit_floats(name: str) -> None:
    how = CORES[name]
    rng = np.random.default_rng(OF_FLOATS.index(name))
    for kind, fmt, k in product(FLOAT_KINDS, how.floats, (1, how.step + 1, 4 * how.step + 3)):
        a, b = draw_floats(kind, fmt, (2, k, 3), rng)
        emin = -14 if fmt == "float16" else -126
        checked(matmul_16bit(a, b.T, how), elements(a, emin), elements(b, emin), how)


def block_scaled(
    kind: str, fmt: BlockFormat, shape: tuple[int, int], rng: np.random.Generator, spread: int = 9
) -> QuantizedTensor:
    """A matrix of a kind of codes; some scales are zero, subnormal or NaN.

    E8M0 scales are within a spread of binades around 1.
    """
    assert isinstance(fmt.element, FloatFormat)
    codes = draw_codes(kind, fmt.element, shape, rng)
    scales = rng.integers(0, 256, (shape[0], -(-shape[1] // fmt.block)), np.uint8)
    if kind != "special":
        e8m0 = fmt.scale_format.mantissa_bits == 0
        low, high = (127 - spread, 127 + spread) if e8m0 else (0, 127)
        scales = rng.integers(low, high, scales.shape, np.uint8)
    return QuantizedTensor(
        codes, None, fmt, scale_codes=scales, tensor_scale=ONE if fmt == NVFP4 else None
    )


@pytest.mark.parametrize("name", OF_BLOCKS)
def test_the_rules_of_blocks(name: str) -> None:
    how = CORES[name]
    assert how.formats is not None
    rng = np.random.default_rng(OF_BLOCKS.index(name))
    formats = pairs_of(how.formats)
    for kind, k in product(KINDS, (1, how.step + 1, 3 * how.step + 7)):
        fmts = next(formats)
        a, b = (block_scaled(kind, fmt, (3, k), rng) for fmt in fmts)
        if fmts[0].scale_format != fmts[1].scale_format:
            with pytest.raises(
                ValueError, match=r"^b: accumulate .*: expected scales in .*, which"
            ):
                matmul(a, b.mT, how)
            continue
        sides = [of_scales(x) for x in (a, b)]

        def scales(i: int, j: int, sides: Any = sides) -> Iterator[tuple[Any, int]]:
            for (p, ep), (q, eq) in zip(sides[0][i], sides[1][j], strict=True):
                yield p * q, ep + eq

        checked(matmul(a, b.mT, how), of_codes(a, how), of_codes(b, how), how, scales)


def of_scales(x: QuantizedTensor) -> list[list[tuple[Any, int]]]:
    """The significand and the exponent of each block's scale."""
    assert x.block_format is not None
    fmt = x.block_format.scale_format

    def one(value: float) -> tuple[Any, int]:
        if math.isnan(value):
            return value, 0
        e = max(exponent(Fraction(value)), 1 - fmt.bias) if value else 1 - fmt.bias
        return Fraction(value) / power(e), e

    return [[one(abs(float(fmt.values[code]))) for code in row] for row in x.scale_codes]


OWN = st.builds(
    dict,
    step=st.sampled_from([1, 2, 3, 8, 40]),
    fraction_bits=st.integers(1, 35),
    precision=st.integers(2, 24),
    emin=st.sampled_from([-126, -14, -3]),
    emax=st.sampled_from([127, 15, 6]),
    nearest=st.booleans(),
    least_exponent=st.sampled_from([-126, -133, -200]),
    steps_to_float32=st.sampled_from([None, 1, 2]),
    operand_emin=st.sampled_from([None, -14, -3]),
)


#: A NaN, from infinities of both signs, beside products beyond the type: it is not dropped.
BEYOND = {
    "step": 2,
    "fraction_bits": 1,
    "precision": 2,
    "emin": -126,
    "emax": 15,
    "nearest": False,
    "least_exponent": -126,
    "steps_to_float32": None,
    "operand_emin": None,
}


@settings(max_examples=40, deadline=None)
@given(OWN, st.sampled_from(["fused", "dot"]), st.sampled_from(sorted(KINDS)), st.integers(0, 99))
@example(BEYOND, "dot", "cancelling", 1)
def test_records_of_ones_own(fields: dict[str, Any], kind: str, data: str, seed: int) -> None:
    how = replace(CORES["hopper-fast"], name="mine", kind="fused", **fields)
    if kind == "dot":
        how = replace(how, kind="dot", sum_bits=min(how.fraction_bits + 5, 40), apart=1 + seed % 2)
    rng = np.random.default_rng(seed)
    a, b = draw_operands(data, (E4M3FN, E5M2), (2, 45, 2), rng)
    checked(matmul(a, b.mT, how), of_codes(a, how), of_codes(b, how), how)


# The hardware's results


def excerpts() -> list[str]:
    return sorted(key[: -len(".a")] for key in load_file(EXCERPTS) if key.endswith(".a"))


@pytest.mark.parametrize("key", excerpts())
def test_results_of_an_h100(key: str) -> None:
    """Recorded by scripts/prove_tensor_cores_cuda.py."""
    recorded = load_file(EXCERPTS)
    _, result, *types, _ = key.split(".")
    (name,) = (
        full.removeprefix(f"{key}.")
        for full in recorded
        if full.startswith(f"{key}.") and not full.endswith((".a", ".b"))
    )
    a, b, found = (recorded[f"{key}.{part}"] for part in ("a", "b", name))
    if types[0] in ("e4m3", "e5m2"):
        formats = {"e4m3": E4M3FN, "e5m2": E5M2}
        x, y = (QuantizedTensor(c, 1.0, formats[t]) for c, t in zip((a, b), types, strict=True))
        mine = matmul(x, y.mT, name)
    else:
        halves = [x.view(np.uint16) for x in (a, b)]
        p, q = (x.view(np.float16) if types[0] == "f16" else from_bits(x) for x in halves)
        mine = matmul_16bit(p, q.T, name)
    if result == "f16":
        bits = mine.astype(np.float16).view(np.uint16)
        bits[np.isnan(mine)] = 0x7FFF
        np.testing.assert_array_equal(found, bits)
    else:
        np.testing.assert_array_equal(found, mine.view(np.uint32))
    assert CORES[name].proven


# Shapes


@pytest.mark.parametrize("name", OF_CODES)
def test_shapes_and_tiles(name: str) -> None:
    """A result does not depend on the results beside it."""
    how, rng = CORES[name], np.random.default_rng(3)
    assert how.formats is not None
    fmts = how.formats[0], how.formats[-1]
    a, b = draw_operands("uniform", fmts, (97, 70, 131), rng)
    found = matmul(a, b.mT, how)
    for rows, columns in ((slice(0, 1), slice(130, 131)), (slice(60, 64), slice(3, 90))):
        x = QuantizedTensor(a.codes[rows], 1.0, fmts[0])
        y = QuantizedTensor(b.codes[columns], 1.0, fmts[1])
        assert_same_bits(matmul(x, y.mT, how), found[rows, columns])
    layers = QuantizedTensor(a.codes[:96].reshape(2, 3, 16, 70), 1.0, fmts[0])
    columns = QuantizedTensor(b.codes[:6].reshape(1, 3, 2, 70), 1.0, fmts[1])
    stacked = matmul(layers, columns.mT, how)
    for i, j in product(range(2), range(3)):
        rows = slice(48 * i + 16 * j, 48 * i + 16 * j + 16)
        assert_same_bits(stacked[i, j], found[rows, 2 * j : 2 * j + 2])
    for m, k, n in ((0, 5, 2), (3, 0, 2), (2, 5, 0)):
        empty = (QuantizedTensor(np.zeros(s, np.uint8), 1.0, f)
                 for s, f in zip(((m, k), (k, n)), fmts, strict=True))  # fmt: skip
        assert_same_bits(matmul(*empty, how), np.zeros((m, n), np.float32))


def products_of_all_kinds(how: Accumulator, seed: int) -> Iterator[Callable[[], np.ndarray]]:
    """Products of each kind of data; block scales are near each other, far apart, or anything."""
    rng = np.random.default_rng(seed)
    m, k, n = 20, 100, 30
    if how.floats:
        for kind, fmt in product(FLOAT_KINDS, how.floats):
            x, y = draw_floats(kind, fmt, (m, k, n), rng)
            yield partial(matmul_16bit, x, y.T, how)
        return
    assert how.formats is not None
    if how.block is None:
        for kind, fmts in zip(KINDS, pairs_of(how.formats), strict=False):
            a, b = draw_operands(kind, fmts, (m, k, n), rng)
            yield partial(matmul, a, b.mT, how)
        return
    for kind, fmt, spread in product(KINDS, how.formats, (1, 25, 127)):
        a, b = (block_scaled(kind, fmt, (rows, k), rng, spread) for rows in (m, n))
        yield partial(matmul, a, b.mT, how)


@pytest.mark.parametrize("name", CORES)
def test_all_ways_to_a_sum_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 and in float64; products cut off where they must be, or all; by tiles."""
    for run in products_of_all_kinds(CORES[name], 4):
        wanted = run()
        for module, field, value in (
            (tensor_cores, "narrow_rule", lambda how: None),
            (products_tiles, "_TILE", 13),
            (steps, "_FEW", 0),
            (steps, "_FEW", 10**9),
            (steps, "_POWERS", 3),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(module, field, value)
                assert_same_bits(run(), wanted)


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97])
def test_powers_of_the_largest_exponent_and_the_lowest_bit(k: int, zeros: float) -> None:
    """In bfloat16 numbers as far apart as float32 holds their products, and all alike."""
    rng = np.random.default_rng(k)
    for low, high in ((-36, 36), (36, 36), (-36, -36), (-2, 3)):
        sides = []
        for shape in ((7, k), (k, 9)):
            x = np.ldexp(1 + rng.integers(0, 128, shape) / 128, rng.integers(low, high + 1, shape))
            sides.append(np.where(rng.random(shape) < zeros, 0, x).astype(np.float32))
        every = sides[0][:, :, None].astype(np.float64) * sides[1]
        none = (every == 0).all(axis=1)
        exponents, lowest = (
            [np.frexp(number(x))[1] - 1 for x in sides] for number in (np.float64, lowest_bits)
        )
        step = Products(*map(terms_of_floats, sides)).step((slice(None),) * 3, slice(0, k))
        for name, (e, f), sign in (("exponents", exponents, 1), ("lowest", lowest, -1)):
            of_products = sign * (e[:, :, None] + f)
            largest = np.where(every == 0, -999, of_products).max(axis=1)
            wanted = np.where(none, 0, np.ldexp(1.0, largest)).astype(np.float32)
            assert_same_bits(step.powers(name)[0].view(np.float32), wanted)


def test_the_buffers_of_numpy_are_as_before() -> None:
    a, b = draw_operands("special", (E4M3FN, E5M2), (2, 40, 3), np.random.default_rng(0))
    before = np.getbufsize()
    matmul(a, b.mT, "blackwell")
    assert np.getbufsize() == before


def test_scales_of_tensors_are_applied_to_the_sum() -> None:
    rng = np.random.default_rng(5)
    a, b = draw_operands("normal", (E4M3FN, E4M3FN), (4, 50, 5), rng)
    scaled = QuantizedTensor(a.codes, np.float32([0.5, 3, 1, 7]), E4M3FN, 0)
    for name in ("blackwell", "ada", "hopper-fast-float16"):
        wanted = matmul(a, b.mT, name) * np.float32([[0.5], [3], [1], [7]])
        assert_same_bits(matmul(scaled, b.mT, name), wanted)
    x = npfp8.quantize(rng.standard_normal((4, 64)).astype(np.float32), NVFP4)
    y = npfp8.quantize(rng.standard_normal((3, 64)).astype(np.float32), NVFP4)
    bare = [QuantizedTensor(t.codes, None, NVFP4, scale_codes=t.scale_codes, tensor_scale=ONE)
            for t in (x, y)]  # fmt: skip
    assert bare[0].tensor_factor == 1
    sums = matmul(bare[0], bare[1].mT, "blackwell-mxf4nvf4")
    factor = x.tensor_factor * y.tensor_factor
    assert_same_bits(matmul(x, y.mT, "blackwell-mxf4nvf4"), sums * factor)


# What is refused


def test_what_16_bit_products_refuse() -> None:
    x = np.ones((2, 2), np.float16)
    with pytest.raises(TypeError, match=r"^b: expected float16, which a is, found float32$"):
        matmul_16bit(x, np.ones((2, 2), np.float32), "hopper-16bit")
    with pytest.raises(ValueError, match=r"^a: expected at least 2 axes, found shape \(2,\)$"):
        matmul_16bit(x[0], x, "hopper-16bit")
    with pytest.raises(ValueError, match=r"found \(2, 2\) and \(1, 2\)$"):
        matmul_16bit(x, x[:1], "hopper-16bit")
    with pytest.raises(ValueError, match=r"^b: expected bfloat16 values, found 1\.0000001$"):
        matmul_16bit(x.astype(np.float32), np.full((2, 2), np.float32(1.0000001)), "hopper-16bit")
    with pytest.raises(ValueError, match=r"'hopper-16bit', .* for float16 operands, found 'ada'$"):
        matmul_16bit(x, x, "ada")
    with pytest.raises(ValueError, match=r" for bfloat16 operands, found 'hopper-16bit-float16'$"):
        matmul_16bit(x.astype(np.float32), x.astype(np.float32), "hopper-16bit-float16")


def test_what_tensor_cores_refuse() -> None:
    rng = np.random.default_rng(6)
    a = block_scaled("normal", npfp8.MXFP8_E4M3, (2, 64), rng)
    with pytest.raises(ValueError, match=r"^b: accumulate 'blackwell-mxf8f6f4': expected blocks "
                       r"along K, found blocks along axis 1 of 2$"):  # fmt: skip
        matmul(a, QuantizedTensor(rng.integers(0, 9, (64, 64), np.uint8), None, npfp8.MXFP8_E4M3,
               scale_codes=np.full((64, 2), 127, np.uint8)), "blackwell-mxf8f6f4")  # fmt: skip
    plain = npfp8.quantize(np.ones((64, 2)), E4M3FN)
    with pytest.raises(ValueError, match=r"^b: accumulate 'blackwell-mxf4': expected MXFP4, found"):
        matmul(block_scaled("normal", npfp8.MXFP4, (2, 64), rng), plain, "blackwell-mxf4")
    with pytest.raises(ValueError, match=r"^a: accumulate 'cdna3': expected E4M3FNUZ or E5M2FNUZ"):
        matmul(plain.mT, plain, "cdna3")
    with pytest.raises(ValueError, match=r"^a: accumulate 'hopper-16bit': expected float16 or"):
        matmul(plain.mT, plain, "hopper-16bit")
    tiny = npfp8.quantize(np.ones((64, 2)), E2M1)
    assert_same_bits(matmul(tiny.mT, tiny, "blackwell"), matmul(tiny.mT, tiny))

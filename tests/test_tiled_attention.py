"""Attention over tiles of keys: its rule by rational arithmetic, its recipes, and its models."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from factories import VOCABULARY, write_checkpoint
from hypothesis import given as for_any
from hypothesis import strategies as st
from oracles import (
    BFLOAT16,
    FLOAT32,
    add32,
    assert_same_bits,
    code_values,
    finite_codes,
    hopper_sums,
    multiply32,
    nearest,
    nearest_code,
)
from watching import engine_for, noted

import bert_numpy
from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Calibration,
    Model,
    Operand,
    QuantizedModel,
    Recipe,
    SiteRecipe,
    apply_recipe,
    calibrate,
)
from bert_numpy.assets import REVIEWS
from bert_numpy.model.sites import site_named
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.recipe_json import load_recipe, recipe_json, recipe_of, save_recipe
from bert_numpy.quantization.tiled_attention import (
    ROW_SUMS,
    Tile,
    TiledAttention,
    attention_weights,
    finished,
    running_maximum,
    steps,
)
from bert_numpy.study.cells import calibrate_subject, subject_in
from npfp8 import E4M3FN, E5M2, FloatFormat, QuantizedTensor, golden, quantize_bfloat16
from npfp8.formats import FORMATS

FLASH = PRESETS["e4m3-flash"]
SCORES, CONTEXT = (f"encoder.layer.0.attention.{name}" for name in ("scores", "context"))
both_formats = pytest.mark.parametrize("fmt", [E4M3FN, E5M2], ids=str)


def flash(keys: int, offset: int = 8, row_sum: str = "unquantized", **fields: Any) -> Recipe:
    return replace(FLASH, attention=TiledAttention(keys, offset, row_sum), **fields)


# The rule, one query at a time, in rational arithmetic


def exponential(x: float) -> Fraction:
    """e to the power of x, to 60 digits; 0 where 2^8 of it are less than any float32 number."""
    if x < -200:
        return Fraction(0)
    with localcontext() as context:
        context.prec = 60
        return Fraction(Decimal(x).exp())


def folded(values: list[float]) -> float:
    """The sum in float64: the two halves of a power of two are added until one is left."""
    length = 1
    while length < len(values):
        length *= 2
    values = values + [0.0] * (length - len(values))
    while len(values) > 1:
        half = len(values) // 2
        values = [x + y for x, y in zip(values[:half], values[half:], strict=True)]
    return values[0]


@dataclass
class Row:
    """What is known of a query after a tile."""

    scores: list[float]
    weights: list[float]
    codes: list[int]
    rescale: float | None
    maximum: float
    total: float
    output: list[float]


def rule(
    q: list[int],
    k: list[list[int]],
    v: list[list[int]],
    fmt: str,
    scale: float,
    factor: float,
    bias: list[float] | None,
    how: TiledAttention,
) -> Iterator[Row]:
    """Follow the rule for one query: codes of (d,), of (keys, d) and of (keys, d).

    Every operation is in float32 and rounded once, and so is every sum of products.
    ``scale`` is the product of both scales.
    """
    values = [Fraction(x) if math.isfinite(x) else Fraction(0) for x in code_values(fmt)]
    before: Row | None = None
    for start in range(0, len(k), how.keys):
        tile = range(start, min(start + how.keys, len(k)))
        scores = []
        for key in tile:
            total = sum(values[x] * values[y] for x, y in zip(q, k[key], strict=True))
            x = multiply32(multiply32(nearest(total, FLOAT32), scale), factor)
            scores.append(x if bias is None else add32(x, bias[key]))
        maximum = max(scores) if before is None else max(before.maximum, *scores)
        weights = [nearest(exponential(x - maximum) * 2**how.offset, FLOAT32) for x in scores]
        codes = [nearest_code(fmt, p) for p in weights]
        summed = weights if how.row_sum == "unquantized" else [float(values[c]) for c in codes]
        row_sum = nearest(folded(summed), FLOAT32)
        output = []
        for j in range(len(v[0])):
            products = (values[c] * values[v[key][j]] for c, key in zip(codes, tile, strict=True))
            output.append(nearest(sum(products, Fraction(0)), FLOAT32))
        rescale = None
        if before is not None:
            rescale = nearest(exponential(before.maximum - maximum), FLOAT32)
            row_sum = add32(multiply32(before.total, rescale), row_sum)
            output = [
                add32(multiply32(old, rescale), new)
                for old, new in zip(before.output, output, strict=True)
            ]
        before = Row(scores, weights, codes, rescale, maximum, row_sum, output)
        yield before


def result_of(row: Row, v_scale: float) -> list[float]:
    """The attention: the output, divided by the row sum and scaled."""
    factor = multiply32(nearest(1 / Fraction(row.total), FLOAT32), v_scale)
    return [multiply32(x, factor) for x in row.output]


@dataclass(frozen=True)
class Operands:
    """Codes of one head and their scales; k is (d, keys), as the pass has it."""

    q: QuantizedTensor
    k: QuantizedTensor
    v: QuantizedTensor
    factor: float
    bias: np.ndarray | None = None

    @classmethod
    def random(
        cls,
        fmt: FloatFormat,
        shape: tuple[int, int, int],
        seed: int,
        scale: float = 0.05,
        biased: bool = False,
    ) -> Operands:
        """Codes of (queries, keys, d), between small and large numbers; scales that differ."""
        queries, keys, d = shape
        generator = np.random.default_rng(seed)
        values, name = code_values(str(fmt)), str(fmt)
        codes = np.uint8([c for c in finite_codes(name) if 2**-9 <= abs(values[c]) <= 30])
        scales = np.float32([scale, 0.37, 0.011])
        made = [
            QuantizedTensor(generator.choice(codes, size), x, fmt)
            for size, x in zip([(queries, d), (d, keys), (keys, d)], scales, strict=True)
        ]
        bias = generator.normal(0, 2, (queries, keys)).astype(np.float32) if biased else None
        return cls(*made, 1 / math.sqrt(d), bias)

    def tiles(self, how: TiledAttention, accumulate: str = "exact") -> list[Tile]:
        fmt = self.q.fmt
        assert isinstance(fmt, FloatFormat)
        arguments = (self.q, self.k, self.v, self.factor, self.bias, fmt, how, accumulate)
        return list(steps(*arguments))

    def result(self, how: TiledAttention) -> np.ndarray:
        last = self.tiles(how)[-1]
        return finished(last.output, last.total, self.v.scale)

    def permuted(self, order: np.ndarray) -> Operands:
        """The same with the keys in another order."""
        return replace(
            self,
            k=QuantizedTensor(self.k.codes[:, order], self.k.scale, self.k.fmt),
            v=QuantizedTensor(self.v.codes[order], self.v.scale, self.v.fmt),
            bias=None if self.bias is None else self.bias[:, order],
        )


def check_rule(given: Operands, how: TiledAttention) -> None:
    """Compare every number of every tile, and the result, with the rule."""
    fmt, keys = str(given.q.fmt), given.k.codes.shape[1]
    scale = multiply32(float(given.q.scale), float(given.k.scale))
    factor = float(np.float32(given.factor))
    tiles, result = given.tiles(how), given.result(how)
    assert [(tile.keys.start, tile.keys.stop) for tile in tiles] == [
        (start, min(start + how.keys, keys)) for start in range(0, keys, how.keys)
    ]
    k, v = given.k.codes.T.tolist(), given.v.codes.tolist()
    for i, q in enumerate(given.q.codes.tolist()):
        bias = None if given.bias is None else given.bias[i].tolist()
        rows = list(rule(q, k, v, fmt, scale, factor, bias, how))
        for tile, row in zip(tiles, rows, strict=True):
            assert_same_bits(tile.scores[i], np.float32(row.scores))
            assert_same_bits(tile.weights[i], np.float32(row.weights))
            assert tile.codes.codes[i].tolist() == row.codes
            assert (tile.codes.scale, tile.codes.fmt) == (1, given.q.fmt)
            if row.rescale is None:
                assert tile.rescale is None
            else:
                assert tile.rescale is not None
                assert_same_bits(tile.rescale[i], np.float32([row.rescale]))
            assert tile.maximum[i] == row.maximum
            assert_same_bits(tile.total[i], np.float32([row.total]))
            assert_same_bits(tile.output[i], np.float32(row.output))
        assert_same_bits(result[i], np.float32(result_of(rows[-1], float(given.v.scale))))


@both_formats
@pytest.mark.parametrize("row_sum", ROW_SUMS)
@pytest.mark.parametrize("offset", [0, 3, 8])
@pytest.mark.parametrize("keys", [1, 4, 7, 64])
def test_the_rule(keys: int, offset: int, row_sum: str, fmt: FloatFormat) -> None:
    given = Operands.random(fmt, (3, 19, 5), seed=keys, biased=keys != 4)
    check_rule(given, TiledAttention(keys, offset, row_sum))


@for_any(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4)),
    keys=st.integers(1, 10),
    offset=st.integers(0, 8),
    row_sum=st.sampled_from(ROW_SUMS),
    fmt=st.sampled_from([E4M3FN, E5M2]),
    exponent=st.integers(-12, 6),
    seed=st.integers(0, 2**32 - 1),
    biased=st.booleans(),
)
def test_the_rule_at_any_shape_and_span(
    shape: tuple[int, int, int],
    keys: int,
    offset: int,
    row_sum: str,
    fmt: FloatFormat,
    exponent: int,
    seed: int,
    biased: bool,
) -> None:
    """Spans of the scores reach from almost none to thousands, where all but one are nothing."""
    given = Operands.random(fmt, shape, seed, 2.0**exponent, biased)
    check_rule(given, TiledAttention(keys, offset, row_sum))


def test_several_heads_at_once_are_each_head_alone() -> None:
    heads = [Operands.random(E4M3FN, (4, 11, 8), seed, biased=True) for seed in range(6)]

    def stacked(name: str) -> QuantizedTensor:
        first = getattr(heads[0], name)
        codes = np.stack([getattr(head, name).codes for head in heads])
        return QuantizedTensor(codes.reshape(2, 3, *codes.shape[1:]), first.scale, first.fmt)

    biases = np.stack([head.bias for head in heads if head.bias is not None])
    q, k, v = (stacked(name) for name in ("q", "k", "v"))
    every = Operands(q, k, v, heads[0].factor, biases.reshape(2, 3, 4, 11))
    how = TiledAttention(4)
    alone = np.stack([head.result(how) for head in heads])
    assert_same_bits(every.result(how).reshape(alone.shape), alone)


@both_formats
def test_the_accumulator_adds_up_both_products(fmt: FloatFormat) -> None:
    given = Operands.random(fmt, (5, 70, 96), seed=3)
    how, name = TiledAttention(40), str(fmt)
    tiles = given.tiles(how, "hopper")
    output = None
    for tile in tiles:
        k, v = given.k.codes[:, tile.keys], given.v.codes[tile.keys]
        sums = hopper_sums(name, given.q.codes, name, k, fast=False)
        scores = sums * (given.q.scale * given.k.scale) * np.float32(given.factor)
        assert_same_bits(tile.scores, scores)
        new = hopper_sums(name, tile.codes.codes, name, v, fast=False)
        output = new if output is None else output * tile.rescale + new
        assert_same_bits(tile.output, output)
    exact = given.tiles(how)
    assert any((x.scores != y.scores).any() for x, y in zip(tiles, exact, strict=True))


# Tiles and one softmax


@pytest.mark.parametrize("keys", [20, 21, 400])
def test_one_tile_is_one_softmax(keys: int) -> None:
    """With all keys in a tile: the softmax's weights, times 2^8, before they are divided."""
    given = Operands.random(E4M3FN, (6, 20, 8), seed=1)
    (tile,) = given.tiles(TiledAttention(keys))
    assert tile.rescale is None
    assert_same_bits(tile.maximum, tile.scores.max(axis=-1, keepdims=True))
    assert (tile.weights.max(axis=-1) == 256).all()
    np.testing.assert_allclose(tile.total[..., 0], tile.weights.sum(-1), rtol=2.0**-20)
    # Three roundings to float32: of the weight, of the sum, and of the division.
    whole = golden.softmax(tile.scores, "float32")
    np.testing.assert_allclose(tile.weights / tile.total, whole, rtol=2.0**-22)
    assert_same_bits(given.result(TiledAttention(keys)), given.result(TiledAttention(20)))


@pytest.mark.parametrize("keys", [1, 2, 3, 5, 8, 13, 21, 34])
@pytest.mark.parametrize("offset", [0, 8])
def test_the_last_maximum_is_that_of_all_keys(keys: int, offset: int) -> None:
    """And the row sum is that of one tile, except for its roundings."""
    given = Operands.random(E4M3FN, (7, 34, 8), seed=2)
    (whole,) = given.tiles(TiledAttention(34, offset))
    tiles = given.tiles(TiledAttention(keys, offset))
    assert_same_bits(np.concatenate([tile.scores for tile in tiles], axis=-1), whole.scores)
    assert_same_bits(tiles[-1].maximum, whole.maximum)
    for before, after in itertools.pairwise(tiles):
        assert (after.maximum >= before.maximum).all()
        assert after.rescale is not None
        assert ((after.rescale == 1) == (after.maximum == before.maximum)).all()
    np.testing.assert_allclose(tiles[-1].total, whole.total, rtol=len(tiles) * 2.0**-22)


def test_weights_are_relative_to_the_maximum_of_their_time() -> None:
    """Those of the first tiles are larger than in one softmax, and fewer become nothing."""
    given = Operands.random(E4M3FN, (16, 48, 16), seed=5, scale=0.2)
    (whole,) = given.tiles(TiledAttention(48, 0))
    tiles = given.tiles(TiledAttention(8, 0))
    codes = np.concatenate([tile.codes.codes for tile in tiles], axis=-1)
    assert (codes >= whole.codes.codes).all()
    assert np.count_nonzero(codes == 0) < np.count_nonzero(whole.codes.codes == 0)


def test_the_order_of_keys_within_a_tile_changes_at_most_the_row_sum() -> None:
    given = Operands.random(E4M3FN, (6, 24, 8), seed=7, biased=True)
    how, generator = TiledAttention(8), np.random.default_rng(8)
    order = np.concatenate([start + generator.permutation(8) for start in (0, 8, 16)])
    for tile, other in zip(given.tiles(how), given.permuted(order).tiles(how), strict=True):
        inside = order[tile.keys] - tile.keys.start
        assert_same_bits(other.scores, tile.scores[:, inside])
        assert_same_bits(other.codes.codes, tile.codes.codes[:, inside])
        assert_same_bits(other.maximum, tile.maximum)
        assert_same_bits(other.output, tile.output)  # exact sums have no order
        np.testing.assert_allclose(other.total, tile.total, rtol=2.0**-22)


def test_after_the_largest_score_a_code_depends_on_its_key_alone() -> None:
    """Nothing is rescaled any more, in whatever order the other keys follow."""
    given = Operands.random(E4M3FN, (1, 32, 8), seed=9)
    (whole,) = given.tiles(TiledAttention(32))
    first = int(whole.scores[0].argmax())
    rest = np.delete(np.arange(32), first)
    for seed in range(4):
        order = np.concatenate([[first], np.random.default_rng(seed).permutation(rest)])
        tiles = given.permuted(order).tiles(TiledAttention(4))
        assert all(tile.rescale is None or (tile.rescale == 1).all() for tile in tiles)
        found = np.concatenate([tile.codes.codes[0] for tile in tiles])
        assert_same_bits(found[np.argsort(order)], whole.codes.codes[0])


# The offset


@both_formats
@pytest.mark.parametrize("offset", range(1, 9))
@pytest.mark.parametrize("row_sum", ROW_SUMS)
def test_an_offset_is_exact_where_nothing_underflows(
    offset: int, row_sum: str, fmt: FloatFormat
) -> None:
    """A normal code and its multiples by powers of two have one significand: no bit changes."""
    given = Operands.random(fmt, (6, 30, 4), seed=4, scale=0.001)
    plain = given.tiles(TiledAttention(7, 0, row_sum))
    assert min(tile.weights.min() for tile in plain) >= 2.0**-6  # E4M3's smallest normal number
    power = np.float32(2**offset)
    for tile, other in zip(plain, given.tiles(TiledAttention(7, offset, row_sum)), strict=True):
        assert_same_bits(other.weights, tile.weights * power)
        assert_same_bits(other.codes.dequantize(), tile.codes.dequantize() * power)
        assert_same_bits(other.total, tile.total * power)
        assert_same_bits(other.output, tile.output * power)
    without, with_it = (given.result(TiledAttention(7, x, row_sum)) for x in (0, offset))
    assert_same_bits(with_it, without)


def test_an_offset_keeps_small_weights() -> None:
    given = Operands.random(E4M3FN, (16, 64, 16), seed=11, scale=0.1)
    (plain,), (offset,) = (given.tiles(TiledAttention(64, x)) for x in (0, 8))
    lost, kept = (
        np.count_nonzero((tile.weights > 0) & (tile.codes.dequantize() == 0))
        for tile in (plain, offset)
    )
    assert kept < lost / 2
    normal = plain.weights > 2.0**-126  # of float32
    assert_same_bits(offset.weights[normal], 256 * plain.weights[normal])
    for tile in (plain, offset):  # half of the smallest subnormal number, 2^-9
        assert tile.weights[tile.codes.codes == 0].max() <= 2.0**-10
        assert tile.weights[tile.codes.codes > 0].min() > 2.0**-10


def test_weights_of_scores_that_are_not_finite() -> None:
    """Without a warning; a golden run refuses them."""
    x = np.float32([[np.nan, 1], [np.inf, 1], [-np.inf, 1]])
    found = attention_weights(x, x.max(axis=-1, keepdims=True), 8)
    assert np.isnan(found[0]).all()
    assert np.isnan(found[1, 0])
    assert found[1, 1] == 0
    assert found[2].tolist() == [0, 256]


def test_zeros_of_both_signs_have_one_maximum() -> None:
    """NumPy's maximum of +0 and -0 depends on their places, and on its SIMD code."""
    x = np.float32([[0.0, -0.0, 0.0, -0.0, 0.0, -0.0], [-0.0] * 6, [-0.0, -1, -2, -3, -4, -5]])
    assert_same_bits(running_maximum(x, None), np.zeros((3, 1), np.float32))
    assert_same_bits(running_maximum(-np.ones_like(x), x[:, -1:]), np.float32([[0], [0], [-1]]))


# The engine


def plans_of(fmt: FloatFormat) -> dict[str, SitePlan]:
    site = SiteRecipe(Operand(fmt), Operand(fmt))
    scales = [Scale(np.float32(x)) for x in (0.0123, 0.0071, 0.0213)]
    return {SCORES: SitePlan(site, *scales[:2]), CONTEXT: SitePlan(site, None, scales[2])}


def of_format(fmt: FloatFormat, recipe: Recipe) -> Recipe:
    site = SiteRecipe(Operand(fmt), Operand(fmt))
    return replace(recipe, linear=site, scores=site, context=site)


def random_bfloat16(generator: np.random.Generator, *shape: int) -> np.ndarray:
    bits = generator.normal(0, 3, shape).astype(np.float32).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32)


@both_formats
@pytest.mark.parametrize("golden_mode", [False, True])
@pytest.mark.parametrize("arithmetic", ["bfloat16", "float32"])
def test_the_engine_quantizes_and_rounds(
    arithmetic: str, golden_mode: bool, fmt: FloatFormat
) -> None:
    """Q, K and V by the scales of their sites; the result to the recipe's arithmetic; counts."""
    how, plans = TiledAttention(4, 3), plans_of(fmt)
    recipe = replace(of_format(fmt, FLASH), attention=how, arithmetic=arithmetic)
    engine: Any = engine_for(engine_of(recipe, plans, golden_mode))
    assert engine.fuses_attention
    generator = np.random.default_rng(12)
    shapes = [(1, 2, 3, 8), (1, 2, 8, 9), (1, 2, 9, 8), (1, 2, 3, 9)]
    q, k, v, bias = (random_bfloat16(generator, *shape) for shape in shapes)
    factor = 1 / math.sqrt(8)
    found = engine.attention(site_named(SCORES), site_named(CONTEXT), q, k, v, factor, bias)
    scales = (plans[SCORES].a, plans[SCORES].b, plans[CONTEXT].b)
    underflowed = 0
    for head in range(2):
        codes = []
        for scale, x in zip(scales, (q[0, head], k[0, head], v[0, head]), strict=True):
            assert scale is not None
            if arithmetic == "bfloat16":
                codes.append(quantize_bfloat16(x, fmt, scale.scale))
                continue
            quotients = [Fraction(y) / Fraction(float(scale.scale)) for y in x.ravel().tolist()]
            made = [nearest_code(str(fmt), nearest(y, FLOAT32)) for y in quotients]
            codes.append(QuantizedTensor(np.uint8(made).reshape(x.shape), scale.scale, fmt))
        given = Operands(*codes, factor, bias[0, head])
        check_rule(given, how)
        expected = given.result(how)
        if arithmetic == "bfloat16":
            rounded = [nearest(x, BFLOAT16) for x in expected.ravel().tolist()]
            expected = np.float32(rounded).reshape(expected.shape)
        assert_same_bits(found[0, head], expected)
        for tile in given.tiles(how):
            lost = (tile.weights > 0) & (tile.codes.dequantize() == 0)
            underflowed += np.count_nonzero(lost)
    counts = engine.counted()
    assert set(counts) == {f"{SCORES}:a", f"{SCORES}:b", f"{CONTEXT}:a", f"{CONTEXT}:b"}
    assert counts[f"{SCORES}:b"].elements == k.size
    weights = counts[f"{CONTEXT}:a"]
    assert (weights.elements, weights.saturated) == (2 * 3 * 9, 0)
    assert weights.underflowed == underflowed > 0


def test_other_recipes_do_not_fuse() -> None:
    assert not engine_for(engine_of(PRESETS["e4m3"], plans_of(E4M3FN))).fuses_attention


@pytest.mark.parametrize(
    ("operand", "value", "place"),
    [
        ("q", np.nan, f"{SCORES}:a"),
        ("q", np.inf, f"{SCORES}:a"),
        ("k", np.nan, SCORES),
        ("v", np.nan, CONTEXT),
        ("bias", np.inf, SCORES),
        ("bias", np.nan, SCORES),
    ],
)
def test_a_golden_run_names_what_is_not_finite(operand: str, value: float, place: str) -> None:
    shapes = {"q": (1, 1, 2, 4), "k": (1, 1, 4, 6), "v": (1, 1, 6, 4), "bias": (1, 1, 2, 6)}
    given = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    given[operand].flat[-1] = value
    arguments = (given["q"], given["k"], given["v"], 0.5, given["bias"])
    sites = site_named(SCORES), site_named(CONTEXT)
    engine = engine_for(engine_of(flash(4), plans_of(E4M3FN), True))
    with pytest.raises(BertNumpyError) as error:
        engine.attention(*sites, *arguments)
    assert str(error.value).startswith(f"{place}: expected finite numbers, found ")
    result = engine_for(engine_of(flash(4), plans_of(E4M3FN))).attention(*sites, *arguments)
    assert np.isnan(result).any() == (operand == "bias" or np.isnan(value))


# Models


def batch_of(*lengths: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), shape),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return bert_numpy.load(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def calibration(small: Model) -> Calibration:
    return calibrate(small, [batch_of(9, 40, 6)], golden=True)


@pytest.fixture(scope="module")
def tiny() -> tuple[Model, Calibration]:
    model = bert_numpy.load("bert-tiny-sst2")
    return model, calibrate(model, [batch_of(30, 12, seed=1)], golden=True)


@pytest.mark.parametrize("keys", [3, 8])
def test_a_text_has_the_same_bits_in_any_batch(keys: int, tiny: tuple[Model, Calibration]) -> None:
    model = apply_recipe(tiny[0], flash(keys), tiny[1], golden=True)
    lengths = (21, 5, 8, 21, 1)
    every = batch_of(*lengths, seed=3)
    together = model(**every)
    assert together.logits is not None
    for row, length in enumerate(lengths):
        alone = model(*(x[row : row + 1, :length] for x in every.values()))
        assert alone.logits is not None
        assert_same_bits(alone.logits[0], together.logits[row])
        assert_same_bits(alone.last_hidden_state[0], together.last_hidden_state[row, :length])


def test_a_tile_longer_than_every_text_is_one_tile(tiny: tuple[Model, Calibration]) -> None:
    batch = batch_of(21, 5, seed=3)
    whole, longer, tiles = (
        apply_recipe(tiny[0], flash(keys), tiny[1], golden=True)(**batch) for keys in (21, 64, 20)
    )
    assert_same_bits(whole.last_hidden_state, longer.last_hidden_state)
    assert (whole.last_hidden_state != tiles.last_hidden_state).any()


def test_a_watched_run_has_both_sites(small: Model, calibration: Calibration) -> None:
    """The notes hold Q, K, V and the result, and watching changes no bit."""
    model = apply_recipe(small, flash(4), calibration, golden=True)
    batch = batch_of(11)
    seen: dict[str, Any] = {}
    watched = noted(model, lambda name, *arrays: seen.update({name: arrays}))(**batch)
    assert_same_bits(watched.logits, model(**batch).logits)
    q, k, bias, y = seen[SCORES]
    again, v, none, same = seen[CONTEXT]
    assert q is again
    assert y is same
    assert (bias, none) == (None, None)
    scales = (model.plans[SCORES].a, model.plans[SCORES].b, model.plans[CONTEXT].b)
    for head in range(2):
        codes = []
        for x, scale in zip((q, k, v), scales, strict=True):
            assert scale is not None
            codes.append(quantize_bfloat16(x[0, head], E4M3FN, scale.scale))
        expected = Operands(*codes, 1 / math.sqrt(q.shape[-1])).result(TiledAttention(4))
        rounded = [nearest(x, BFLOAT16) for x in expected.ravel().tolist()]
        assert_same_bits(y[0, head], np.float32(rounded).reshape(expected.shape))


def test_tiles_are_close_to_the_float_model(tiny: tuple[Model, Calibration]) -> None:
    model, calibration = tiny
    batch = batch_of(30, 12, 7, seed=4)
    expected = model(**batch).logits
    assert expected is not None
    for recipe in (flash(5), flash(64), flash(5, 0, "quantized"), flash(8, accumulate="hopper")):
        found = apply_recipe(model, recipe, calibration)(**batch).logits
        assert found is not None
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert 0 < error < 0.2


def test_the_weights_need_no_calibration(small: Model, calibration: Calibration) -> None:
    """The scale of P is 1, so its statistics are neither needed nor kept."""
    operands = {
        name: seen
        for name, seen in calibration.operands.items()
        if not name.endswith(".attention.context:a")
    }
    without = replace(calibration, operands=operands)
    model = apply_recipe(small, FLASH, without)
    batch = batch_of(9, 4)
    whole = apply_recipe(small, FLASH, calibration)
    assert_same_bits(model(**batch).logits, whole(**batch).logits)
    assert model.plans[CONTEXT].a is None
    assert model.plans[CONTEXT].b is not None
    with pytest.raises(BertNumpyError, match=rf"operand '{CONTEXT}:a': expected statistics"):
        apply_recipe(small, PRESETS["e4m3"], without)


def test_a_quantized_checkpoint_keeps_the_tiles(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "float")
    model = bert_numpy.load(source)
    quantized = apply_recipe(model, flash(4), calibrate(model, [batch_of(9, 40, 6)]))
    bert_numpy.save_quantized(quantized, source, tmp_path / "quantized")
    loaded = bert_numpy.load(tmp_path / "quantized")
    assert isinstance(loaded, QuantizedModel)
    assert loaded.recipe == quantized.recipe
    batch = batch_of(17, 5)
    assert_same_bits(loaded(**batch).logits, quantized(**batch).logits)
    extra = json.loads((tmp_path / "quantized" / "config.json").read_text())["npfp8_config"]
    assert extra["recipe"]["attention"] == {"keys": 4, "offset": 8, "row_sum": "unquantized"}
    assert f"{CONTEXT}:b" in extra["scales"]
    assert f"{CONTEXT}:a" not in extra["scales"]


def test_onnx_has_no_tiles(small: Model, calibration: Calibration, onnx: ModuleType) -> None:
    with pytest.raises(BertNumpyError) as error:
        bert_numpy.export_onnx(apply_recipe(small, flash(32), calibration), "never.onnx")
    assert str(error.value) == (
        "recipe e4m3-flash: attention: expected None in ONNX, found TiledAttention(keys=32, "
        "offset=8, row_sum='unquantized')"
    )


# Recipes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keys": 0}, "keys: expected an integer of 1 to 2147483647, found 0"),
        ({"keys": 2**31}, "keys: expected an integer of 1 to 2147483647, found 2147483648"),
        ({"keys": 8.0}, "keys: expected an integer of 1 to 2147483647, found 8.0"),
        ({"keys": True}, "keys: expected an integer of 1 to 2147483647, found True"),
        ({"offset": -1}, "offset: expected an integer of 0 to 8, found -1"),
        ({"offset": 9}, "offset: expected an integer of 0 to 8, found 9"),
        ({"offset": "8"}, "offset: expected an integer of 0 to 8, found '8'"),
        ({"row_sum": "both"}, "row_sum: expected 'unquantized' or 'quantized', found 'both'"),
        ({"row_sum": None}, "row_sum: expected 'unquantized' or 'quantized', found None"),
    ],
)
def test_bad_tiles(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        TiledAttention(**fields)
    assert str(error.value) == f"attention: {message}"


def test_tiles_are_plain_data() -> None:
    how = TiledAttention(np.int64(16), np.int64(4), "QUANTIZED")  # type: ignore[arg-type]
    assert how == TiledAttention(16, 4, "quantized")
    assert type(how.keys) is int
    values = json.loads(recipe_json(replace(FLASH, attention=how)))["attention"]
    assert values == {"keys": 16, "offset": 4, "row_sum": "quantized"}


E4M3, INT8, TOKEN = Operand("E4M3FN"), Operand("INT8"), Operand("E4M3FN", "token")
EXPECTED = "expected a float format with one scale per tensor, found"


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (SiteRecipe(), f"a: {EXPECTED} None"),
        (SiteRecipe(E4M3), f"b: {EXPECTED} None"),
        (SiteRecipe(E4M3, INT8), f"b: {EXPECTED} INT8 with a scale per tensor"),
        (SiteRecipe(Operand("UINT8"), E4M3), f"a: {EXPECTED} UINT8 with a scale per tensor"),
        (SiteRecipe(Operand("MXFP4"), E4M3), f"a: {EXPECTED} MXFP4 with a scale per block"),
        (SiteRecipe(TOKEN, TOKEN), f"a: {EXPECTED} E4M3FN with a scale per token"),
        (
            SiteRecipe(E4M3, Operand("E4M3FN", "block")),
            f"b: {EXPECTED} E4M3FN with a scale per block",
        ),
    ],
)
def test_products_that_have_no_tiles(site: SiteRecipe, message: str, small: Model) -> None:
    with pytest.raises(BertNumpyError) as error:
        replace(FLASH, scores=site)
    assert str(error.value) == f"recipe e4m3-flash: attention: scores:{message}"
    overridden = replace(FLASH, overrides=(("*layer.1.*.scores", site),))
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(small, overridden)
    place = "encoder.layer.1.attention.scores"
    assert str(error.value) == f"recipe e4m3-flash: attention: {place}:{message}"


def test_only_the_last_override_counts(small: Model, calibration: Calibration) -> None:
    """A recipe without attention's products is complete if its overrides add them."""
    site = SiteRecipe(E4M3, E4M3)
    overrides = (("*", SiteRecipe()), ("*.attention.*", site), ("*.query", SiteRecipe()))
    recipe = Recipe("mine", site, overrides=overrides, attention=TiledAttention(4))
    found = apply_recipe(small, recipe, calibration)(**batch_of(9))
    assert np.isfinite(found.last_hidden_state).all()
    with pytest.raises(BertNumpyError, match=r"layer\.0\.attention\.scores:a: expected a float"):
        apply_recipe(small, FLASH.skipping("*.scores"), calibration)
    apply_recipe(small, FLASH.skipping("*.output.dense"), calibration)


@pytest.mark.parametrize(
    ("name", "largest"), [("E4M3FN", 8), ("E5M2", 8), ("E4M3FNUZ", 7), ("E3M4", 3), ("E2M1", 2)]
)
def test_the_offset_fits_the_format(name: str, largest: int) -> None:
    """The largest values are 448, 57344, 240, 15.5 and 6."""
    fmt = FORMATS[name]
    assert isinstance(fmt, FloatFormat)
    assert 2**largest <= fmt.max
    recipe = replace(of_format(fmt, PRESETS["e4m3"]), attention=TiledAttention(4, largest))
    if largest < 8:
        assert 2 ** (largest + 1) > fmt.max
        with pytest.raises(BertNumpyError) as error:
            replace(recipe, attention=TiledAttention(4, largest + 1))
        assert str(error.value) == (
            f"recipe e4m3: attention: offset: expected weights of at most {fmt.max:g}, the largest "
            f"value of {name}, found 2^{largest + 1}"
        )


def test_the_attention_of_a_recipe_is_a_record() -> None:
    with pytest.raises(TypeError, match=r"^attention: expected a TiledAttention, found .*str"):
        replace(FLASH, attention="tiles")  # type: ignore[arg-type]
    assert repr(FLASH).endswith("rest bfloat16; attention in tiles of 64 keys>")
    assert PRESETS["e4m3"].attention is None
    assert replace(FLASH, name="e4m3", attention=None) == PRESETS["e4m3"]


@pytest.mark.parametrize("how", [TiledAttention(), TiledAttention(16, 0, "quantized")])
def test_a_saved_recipe_is_loaded(how: TiledAttention, tmp_path: Path) -> None:
    recipe = replace(FLASH, attention=how)
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe
    values = json.loads((tmp_path / "recipe.json").read_text())
    assert set(values["attention"]) == {"keys", "offset", "row_sum"}
    assert recipe_of(values | {"attention": {}}).attention == TiledAttention()
    assert recipe_of(values | {"attention": None}).attention is None
    assert "attention" not in json.loads(recipe_json(PRESETS["e4m3"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": 8}, "recipe: key 'attention': key 'tile': expected one of keys, offset, row_sum"),
        ({"keys": "8"}, "recipe: key 'attention': key 'keys': expected int, found '8'"),
        ({"keys": 8.0}, "recipe: key 'attention': key 'keys': expected int, found 8.0"),
        ({"offset": True}, "recipe: key 'attention': key 'offset': expected int, found True"),
        ({"keys": 0}, "attention: keys: expected an integer of 1 to 2147483647, found 0"),
        ([8], "recipe: key 'attention': expected a JSON object, found [8]"),
        ("tiles", "recipe: key 'attention': expected a JSON object, found 'tiles'"),
    ],
)
def test_bad_files(values: Any, message: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        recipe_of(json.loads(recipe_json(FLASH)) | {"attention": values})
    assert str(error.value) == message


# The study


def test_the_study_compares_and_resumes(tmp_path: Path) -> None:
    """Its rows are of every recipe; a second run computes no cell again."""
    script = load_script("study_flash_attention")
    subject = subject_in(tmp_path, "bert-tiny-sst2", "sst2", str(REVIEWS), limit=6)
    calibrate_subject(subject, samples=12)
    chosen = list(script.recipes((4, 32)))
    rows = script.study(subject, chosen, 3, tmp_path / "cells")
    assert [row["recipe"] for row in rows] == [recipe.name for recipe in chosen]
    assert len(rows) == 3 + 2 * 5
    by_name = {row["recipe"]: row for row in rows}
    fp32, whole = by_name["fp32"], by_name["e4m3"]
    assert fp32["fp32"]["relative_logit_error"] == whole["one_softmax"]["relative_logit_error"] == 0
    # Q, K and V in bfloat16, attention in float32; then E4M3, of 4 significant bits.
    assert fp32["attention_error"] < 2.0**-20
    assert all(2.0**-8 < row["attention_error"] < 2.0**-4 for row in rows[1:])
    lost = [by_name[f"tiles of 4, 2^{x}, sums unquantized"]["underflowed"] for x in (8, 0)]
    assert lost[0] < lost[1]
    assert script.table(rows).count("\n") == len(rows) + 4
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()}
    assert len(cells) == len(rows)
    assert script.study(subject, chosen, 3, tmp_path / "cells") == rows
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").iterdir()} == cells
    few = list(script.recipes((4,), ["quantized"]))
    assert len(few) == 3 + 3
    found = {row["recipe"]: row["attention_error"] for row in script.alone(subject, few, 3)}
    for recipe in few:
        assert found[recipe.name] == by_name[recipe.name]["attention_error"]
    assert len(found) == len(few) + len(script.LARGEST)
    # In float64, one tile has the error of the recipe's, up to float32's roundings.
    tiles = by_name["tiles of 32, 2^8, sums unquantized"]["attention_error"]
    assert math.isclose(found["one tile, P up to 256"], tiles, rel_tol=0.02)
    assert found["one tile, P not codes"] < found["one tile, P up to 256"]

"""Recipes with block formats (MX, NVFP4): operands, files, products, scales and sizes."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint
from oracles import (
    BFLOAT16,
    FLOAT32,
    add32,
    assert_same_bits,
    code_values,
    multiply32,
    nearest,
    nearest_code,
)
from watching import noted, product_of

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Model, QuantizedModel, Recipe
from bert_numpy.assets import REVIEWS
from bert_numpy.calibration import sqnr
from bert_numpy.cli import main
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.counts import OperandCounts
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.plan import Scale, SitePlan, quantize_operand
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from bert_numpy.quantization.recipe_json import load_recipe, recipe_object, recipe_of, save_recipe
from npfp8 import (
    BLOCK_FORMATS,
    E4M3FN,
    MXFP4,
    NVFP4,
    BlockFormat,
    QuantizedTensor,
    quantize,
)
from npfp8.bfloat16 import round_to_bfloat16

every_format = pytest.mark.parametrize("fmt", BLOCK_FORMATS.values(), ids=str)
MINE = BlockFormat("E3M2", 24, rule="rceil", name="mine")
QUERY = "encoder.layer.0.attention.self.query"
SCORES = "encoder.layer.0.attention.scores"

#: Blocks of 32 do not fit: features of 40 and 72, heads of 20; sequences of other lengths.
WIDTHS = {"hidden_size": 40, "num_attention_heads": 2, "intermediate_size": 72}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    return bert_numpy.load(write_checkpoint(folder, config_overrides=WIDTHS))


def both(fmt: BlockFormat | str, name: str = "both", **fields: Any) -> Recipe:
    operand = Operand(fmt, **fields)
    site = SiteRecipe(operand, operand)
    return Recipe(name, site, site, site)


def batch_of(*lengths: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), shape),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
    }


def applied(model: Model, recipe: Recipe, golden: bool = False) -> QuantizedModel:
    calibration = bert_numpy.calibrate(model, [batch_of(9, 40, 6)], golden=True)
    return bert_numpy.apply_recipe(model, recipe, calibration, golden)


# Operands


@every_format
def test_a_block_format_states_its_scales(fmt: BlockFormat) -> None:
    for given in (fmt, fmt.name, fmt.name.lower()):
        operand = Operand(given)
        assert operand.fmt == operand.block_format == fmt
        assert operand.element == fmt.element
        assert (operand.granularity, operand.block, operand.dynamic) == ("block", fmt.block, True)
        assert operand.is_static == fmt.tensor_scale
        assert operand == Operand(fmt, "block", block=fmt.block) == Operand(fmt, dynamic=True)
        assert repr(operand) == f"Operand(fmt={fmt.name!r})"
        assert operand.rule is None
    assert Operand(fmt, rule=fmt.rule) == Operand(fmt)
    assert both(fmt).calibrated == fmt.tensor_scale
    weights = Recipe("weights", SiteRecipe(b=Operand(fmt)))
    assert not weights.calibrated


def test_a_rule_is_part_of_the_format() -> None:
    operand = Operand("MXFP4", rule="RCEIL")
    assert operand.rule == operand.fmt.rule == "rceil"  # type: ignore[union-attr]
    assert operand == Operand(replace(MXFP4, rule="rceil"))
    assert repr(operand) == "Operand(fmt='MXFP4', rule='rceil')"
    assert replace(operand, rule="floor") == Operand("MXFP4")
    assert replace(Operand("NVFP4"), rule="exact").fmt == replace(NVFP4, rule="exact")
    assert Operand(MINE).rule is None
    assert Operand(MINE, rule="floor").fmt == replace(MINE, rule="floor")
    assert Operand("INT8").block_format is None
    assert Operand("INT8").element is Operand("INT8").fmt
    assert Operand().element is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fmt": "MXFP5"}, r"fmt: expected a format \(E4M3FN, .* NVFP4\), found 'MXFP5'; did you"),
        ({"fmt": "MXFP4", "rule": "te-ceil"}, "rule: expected one of 'floor', .*'te-ceil'"),
        ({"fmt": "NVFP4", "rule": "floor"}, "rule: expected one of 'exact', .*'floor'"),
        ({"fmt": "MXFP4", "rule": 3}, "rule: expected one of 'floor', .*, found int"),
        ({"fmt": "INT8", "rule": "floor"}, "rule: expected None without a block format, found"),
        ({"rule": "floor"}, "rule: expected None without a block format, found 'floor'"),
        ({"fmt": "MXFP4", "granularity": "token"}, "granularity: expected 'block' for MXFP4, "),
        ({"fmt": "MXFP4", "granularity": "channel"}, "granularity: expected 'block' for MXFP4, "),
        ({"fmt": "NVFP4", "granularity": "tensor"}, "granularity: expected 'block' for NVFP4, "),
        ({"fmt": "NVFP4", "block": 32}, "block: expected 16 for NVFP4, found 32"),
        ({"fmt": "MXFP4", "block": 128}, "block: expected 32 for MXFP4, found 128"),
        ({"fmt": "MXFP4", "percentile": 50}, "percentile: expected 99.99 for MXFP4, whose scales"),
        ({"fmt": "MXFP4", "rule": "te"}, "rule te: expected elements E4M3FN, E5M2, found E2M1"),
        ({"fmt": replace(MXFP4, rule="te")}, "rule te: expected elements E4M3FN, E5M2, found E2M1"),
        ({"fmt": "MXFP6_E2M3", "rule": "vllm"}, "rule vllm: expected elements E4M3FN, E2M1, fo"),
        ({"fmt": "MXFP8"}, "fmt: expected a format .*, found 'MXFP8'; did you mean 'MXFP8_E4M3'"),
        ({"fmt": "MXINT8", "observer": "mse"}, "observer: expected 'absmax' for MXINT8, whose"),
        ({"fmt": "MXFP4", "power_of_two": True}, "power_of_two: expected False for MXFP4, whose"),
        ({"fmt": "NVFP4", "dynamic": False}, "dynamic: expected True for scales per token and"),
    ],
)
def test_bad_operands(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BertNumpyError, match=f"^operand: {message}"):
        Operand(**fields)


def test_a_product_of_two_activations_can_have_blocks() -> None:
    with pytest.raises(BertNumpyError, match="expected both per token, or both per block"):
        SiteRecipe(Operand("INT8", "block", block=32), Operand("INT8", "block", block=64))
    assert SiteRecipe(Operand("INT8", "token"), Operand("MXFP4")).quantizes
    assert SiteRecipe(Operand("MXFP8_E4M3"), Operand("NVFP4")).quantizes


def test_statistics_have_no_noise_of_blocks() -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    seen = bert_numpy.calibrate(model, [{"input_ids": [[5, 6, 7]]}]).operands[f"{QUERY}:a"]
    with pytest.raises(BertNumpyError, match="one scale per tensor, found MXFP4: the statistics"):
        sqnr(seen, Operand("MXFP4"))


# Files


def test_files_have_names_and_rules(tmp_path: Path) -> None:
    recipe = both("MXFP4", "mine", rule="even")
    values = recipe_object(recipe)
    assert values["linear"]["a"]["fmt"] == "MXFP4"
    assert values["linear"]["a"]["rule"] == "even"
    save_recipe(recipe, tmp_path / "mine.json")
    assert load_recipe(tmp_path / "mine.json") == recipe
    assert recipe_of({"name": "x", "scores": {"a": {"fmt": "mxfp4", "rule": "even"}}}) == Recipe(
        "x", scores=SiteRecipe(Operand(replace(MXFP4, rule="even")))
    )


def test_files_of_recipes_without_blocks_do_not_mention_rules() -> None:
    assert "rule" not in json.dumps(recipe_object(PRESETS["int8-smooth"]))
    assert "rule" not in json.dumps(recipe_object(PRESETS["mxfp4"]))


@pytest.mark.parametrize("rule", [None, "floor"])
def test_files_have_ones_own_block_formats_in_full(rule: str | None, tmp_path: Path) -> None:
    recipe = both(MINE, rule=rule)
    found = recipe_object(recipe)["context"]["b"]["fmt"]
    assert found == {
        "element": "E3M2",
        "block": 24,
        "scale_format": "E8M0FNU",
        "rule": rule or "rceil",
        "tensor_scale": False,
        "name": "mine",
    }
    save_recipe(recipe, tmp_path / "mine.json")
    assert load_recipe(tmp_path / "mine.json") == recipe
    assert recipe_of({"name": "x", "linear": {"b": {"fmt": {"element": "INT8", "block": 8}}}})


@pytest.mark.parametrize(
    ("fmt", "message"),
    [
        ({"block": 8}, "key 'fmt': key 'element': expected the name of a format, but missing"),
        ({"element": "E2M1"}, "key 'fmt': key 'block': expected a number, but missing"),
        ({"element": "E2M1", "block": 0}, "key 'fmt': custom: block: expected 1"),
        ({"element": "E2M1", "block": "8"}, "key 'block': expected int, found '8'"),
        ({"element": "E2M1", "block": True}, "key 'fmt': key 'block': expected int, found True"),
        ({"element": "E2", "block": 8}, "key 'fmt': element: expected a format"),
        ({"element": "E2M1", "block": 8, "size": 1}, "key 'fmt': key 'size': expected one of elem"),
        ({"element": "E2M1", "block": 8, "rule": "exact"}, "key 'fmt': rule: expected one of"),
    ],
)
def test_bad_block_formats_in_files(fmt: Any, message: str) -> None:
    with pytest.raises(BertNumpyError, match=message):
        recipe_of({"name": "x", "linear": {"a": {"fmt": fmt}}})


# Products: every one of a model, against exact numbers


def scale_of(fmt: BlockFormat, amax: float, tensor: float) -> tuple[float, float]:
    """The scale of a block by the rules "floor" and "exact", without the tensor's, and with."""
    if fmt.powers_of_two:
        largest = math.frexp(fmt.element.max)[1]
        exponent = math.frexp(amax)[1] - largest if amax else -127
        return (float(Fraction(2) ** min(max(exponent, -127), 127)),) * 2
    ratio = float(nearest(Fraction(amax) / (Fraction(fmt.element.max) * Fraction(tensor)), FLOAT32))
    # Two roundings, to float32 and to E4M3, differ from one only at a tie: not in these data.
    scale = float(code_values("E4M3FN")[nearest_code("E4M3FN", ratio)])
    return scale, scale * tensor


def values_of(x: np.ndarray, fmt: BlockFormat, axis: int, tensor: float) -> np.ndarray:
    """The values of codes times the scales of their blocks, as Fractions."""
    moved = np.moveaxis(x, axis, -1)
    found = np.zeros(moved.shape, object)
    for row in np.ndindex(moved.shape[:-1]):
        for start in range(0, moved.shape[-1], fmt.block):
            part = moved[row][start : start + fmt.block]
            scale, whole = scale_of(fmt, float(np.abs(part).max()), tensor)
            for i, value in enumerate(part.tolist()):
                scaled = float(Fraction(value) / Fraction(whole)) if whole else 0.0
                found[(*row, start + i)] = element(fmt, scaled) * Fraction(scale)
    return np.moveaxis(found, -1, axis)


@cache
def magnitudes(name: str) -> list[Fraction]:
    """The magnitudes of a small format in their order, so that even ones have even indices."""
    exponent_bits, mantissa_bits = int(name[1]), int(name[3])
    bias, steps = 2 ** (exponent_bits - 1) - 1, 2**mantissa_bits
    return [
        Fraction(2) ** (max(exponent, 1) - bias) * ((exponent > 0) + Fraction(mantissa, steps))
        for exponent in range(2**exponent_bits)
        for mantissa in range(steps)
    ]


def element(fmt: BlockFormat, x: float) -> Fraction:
    name = fmt.element.name
    if name == "FIXED8":
        return Fraction(min(max(round(Fraction(x) * 64), -127), 127), 64)
    if name in ("E4M3FN", "E5M2"):
        return Fraction(code_values(name)[nearest_code(name, x)])
    known, size = magnitudes(name), Fraction(abs(x))
    above = min(bisect_left(known, size), len(known) - 1)
    two = range(max(above - 1, 0), above + 1)
    near = min(two, key=lambda i: (abs(known[i] - size), i % 2))
    return known[near] if x > 0 else -known[near]


def exact_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The matrix product of Fractions, added up as integers: denominators are powers of two."""
    units = [max(value.denominator for value in x.flat) for x in (a, b)]
    whole = [np.vectorize(int, otypes=[object])(x * u) for x, u in zip((a, b), units, strict=True)]
    return np.matmul(*whole) * Fraction(1, units[0] * units[1])


def tensor_scale(fmt: BlockFormat, amax: float) -> float:
    return float(np.float32(amax) / np.float32(6 * 448)) if fmt.tensor_scale else 1.0


@every_format
def test_every_product_of_a_model(fmt: BlockFormat, small: Model) -> None:
    """Blocks along features, weights' inputs, the heads' dimensions, and a sequence's tokens."""
    fmt = replace(fmt, rule="exact") if fmt.tensor_scale else fmt
    batch = batch_of(5, 34)
    made = applied(small, both(fmt))
    calibration = bert_numpy.calibrate(small, [batch_of(9, 40, 6)], golden=True)
    products: list[tuple[str, tuple[Any, ...]]] = []

    def note(site: str, a: Any, b: Any, bias: Any, result: np.ndarray) -> None:
        kept = b if isinstance(b, QuantizedTensor) else b.copy()
        products.append((site, (a.copy(), kept, bias, result.copy())))

    noted(made, note)(**batch)
    sites = [(site, parts) for site, parts in products if site.startswith("encoder.")]
    assert {site for site, _ in sites} == set(encoder_sites(small.config))
    for site, (a, b, bias, found) in sites:
        if "layer.1" in site:
            continue
        amax = [calibration.operands[f"{site}:a"].absmax]
        weight = small.weights.get(f"{site}.weight")
        if weight is None:
            right = b
            amax.append(calibration.operands[f"{site}:b"].absmax)
        else:
            assert isinstance(weight, np.ndarray)
            right = weight.T  # the codes must be those of the float weights
            amax.append(float(np.abs(weight).max()))
        scales = [tensor_scale(fmt, x) for x in amax]
        values = (
            values_of(x, fmt, axis, scale)
            for x, axis, scale in zip((a, right), (-1, -2), scales, strict=True)
        )
        sums = exact_products(*values)
        scale = multiply32(*scales)
        expected = np.empty(sums.shape, np.float32)
        for index, exact in np.ndenumerate(sums):
            value = multiply32(nearest(exact, FLOAT32), scale)
            if bias is not None:
                value = add32(value, float(bias[index[-1]]))
            expected[index] = nearest(value, BFLOAT16)
        assert_same_bits(found, expected)


@every_format
def test_operands_are_left_as_they_are(fmt: BlockFormat) -> None:
    """Q, K^T, P and V are views of one array, whose memory lies in another order."""
    values = np.random.default_rng(0).normal(size=(7, 2 * 64)).astype(np.float32)
    heads = values.reshape(1, 7, 2, 64).swapaxes(1, 2)
    for x, axis in ((heads, -1), (heads.swapaxes(-1, -2), -2), (heads, -2), (values.T, -2)):
        before = x.copy()
        q = quantize_operand(x, Operand(fmt), axis)
        assert_same_bits(x, before)
        assert_same_bits(q.codes, quantize_operand(before, Operand(fmt), axis).codes)
        q.lost(x)
        assert_same_bits(x, before)


@pytest.mark.parametrize(
    ("name", "bound"),
    [("mxint8", 0.05), ("mxfp8", 0.1), ("mxfp6", 0.1), ("nvfp4", 0.35), ("mxfp4", 0.5)],
)
def test_a_model_answers_nearly_as_in_float32(name: str, bound: float) -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    batch = tokenizer.batch(["a warm and funny film", "dull, and far too long for what it is"])
    calibration = bert_numpy.calibrate(model, [batch], golden=True)
    expected = model(**batch).logits
    for golden in (False, True):
        found = bert_numpy.apply_recipe(model, name, calibration, golden)(**batch).logits
        assert np.linalg.norm(found - expected) < bound * np.linalg.norm(expected)


@pytest.mark.parametrize("fmt", [MXFP4, NVFP4, MINE], ids=str)
def test_weights_are_codes_along_their_inputs(fmt: BlockFormat, small: Model) -> None:
    made = applied(small, both(fmt))
    for site in encoder_sites(small.config):
        if (name := f"{site}.weight") not in small.weights:
            continue
        weight, original = made.weights[name], small.weights[name]
        assert isinstance(weight, QuantizedTensor)
        assert isinstance(original, np.ndarray)
        assert (weight.block_format, weight.axis, weight.block) == (fmt, 1, fmt.block)
        expected = quantize(original, fmt, axis=1)
        assert_same_bits(weight.codes, expected.codes)
        assert weight.scale_codes is not None
        assert_same_bits(weight.scale_codes, expected.scale_codes)
        assert (weight.tensor_scale is None) == (not fmt.tensor_scale)


def test_the_scale_of_a_tensor_is_the_calibrations(small: Model) -> None:
    calibration = bert_numpy.calibrate(small, [batch_of(9, 40, 6)], golden=True)
    made = bert_numpy.apply_recipe(small, both("NVFP4"), calibration)
    for site, plan in made.plans.items():
        for side, scale in (("a", plan.a), ("b", plan.b)):
            if side == "b" and not site.endswith(("scores", "context")):
                assert scale is None
                continue
            assert isinstance(scale, Scale)
            amax = np.float32(calibration.operands[f"{site}:{side}"].absmax)
            assert_same_bits(scale.scale, quantize([amax], NVFP4).tensor_scale)
            assert scale.zero_point is None
    with pytest.raises(BertNumpyError, match="recipe both: expected a calibration, found none"):
        bert_numpy.apply_recipe(small, both("NVFP4"))
    bert_numpy.apply_recipe(small, both("MXFP4"))
    bert_numpy.apply_recipe(small, PRESETS["nvfp4-weights"])


def test_an_activation_that_is_always_zero() -> None:
    """A calibration that saw only zeros gives a scale that quantizes zeros, and others."""
    operand = Operand("NVFP4")
    scale = Scale.of(0.0, 0.0, operand)
    plans = {SCORES: SitePlan(SiteRecipe(operand, operand), scale, scale)}
    engine = engine_of(both("NVFP4"), plans)
    x = np.zeros((4, 32), np.float32)
    assert_same_bits(product_of(engine, SCORES, x, x.T), np.zeros((4, 4), np.float32))
    assert np.isfinite(product_of(engine, SCORES, x + 1, x.T + 1)).all()


def test_blocks_whose_scale_underflows_are_counted() -> None:
    """NVFP4's block scale is 0 where a block is 2^-21 of the largest magnitude or less."""
    x = np.ones((1, 32), np.float32)
    x[0, 16:24], x[0, 24:] = 2.0**-30, 0
    q = quantize(x, NVFP4)
    assert q.scale[0, 1] == 0
    assert q.lost(x) == (0, 8)


# The rest of a run


@every_format
@pytest.mark.parametrize("golden", [False, True], ids=["fast", "golden"])
def test_a_sequence_does_not_depend_on_its_batch(
    golden: bool, fmt: BlockFormat, small: Model
) -> None:
    """V's blocks run over the tokens of one sequence, from its first one on."""
    made = applied(small, both(fmt), golden)
    lengths = (33, 5, 40, 33)
    batch = batch_of(*lengths, seed=3)
    together = made(**batch).last_hidden_state
    assert together is not None
    for row, length in enumerate(lengths):
        alone = made(input_ids=batch["input_ids"][row : row + 1, :length]).last_hidden_state
        assert_same_bits(together[row, :length], alone[0])
    again = made(**{name: x[::-1] for name, x in batch.items()}).last_hidden_state
    assert_same_bits(again[::-1], together)


def operands() -> Iterator[tuple[str, Operand, Operand]]:
    for name in ("MXFP4", "NVFP4"):
        four = Operand(name)
        yield f"{name} weights, E4M3 activations", Operand(E4M3FN), four
        yield f"{name} weights, E4M3 activations per token", Operand(E4M3FN, "token"), four
        yield f"{name} weights, MXFP8 activations", Operand("MXFP8_E4M3"), four
        yield f"{name} weights, UINT8 activations", Operand("UINT8"), four
        yield f"{name} activations, INT8 weights", four, Operand("INT8", "channel")
        yield f"{name} activations, INT8 weights per block", four, Operand("INT8", "block")


@pytest.mark.parametrize(("name", "a", "b"), list(operands()), ids=str)
def test_formats_together(name: str, a: Operand, b: Operand, small: Model) -> None:
    recipe = Recipe(name, SiteRecipe(a, b))
    batch = batch_of(9, 4, seed=5)
    expected = small(**batch).last_hidden_state
    for golden in (False, True):
        found = applied(small, recipe, golden)(**batch).last_hidden_state
        assert np.linalg.norm(found - expected) < 0.5 * np.linalg.norm(expected)


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4", "MXINT8"])
def test_migration_and_outliers(name: str, small: Model) -> None:
    """Both work as with other formats: blocks are of what is left, or of the divided columns."""
    batch = batch_of(9, 4, seed=5)
    expected = small(**batch).last_hidden_state
    operand = Operand(name)
    for how in (
        SiteRecipe(operand, operand, migration=0.5),
        SiteRecipe(operand, operand, outlier_threshold=1.5),
        SiteRecipe(operand, operand, outlier_threshold=1.5, outliers="column"),
    ):
        for golden in (False, True):
            found = applied(small, Recipe("x", how), golden)(**batch).last_hidden_state
            assert np.linalg.norm(found - expected) < 0.7 * np.linalg.norm(expected)


def test_counts_are_of_elements() -> None:
    """By the rule "floor" numbers above 1.5 times a power of two saturate; by "rceil" none do."""
    x = round_to_bfloat16(np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32))
    x[0, :32] = 0
    x[1, 0], x[1, 1] = 8.0, 1e-3
    for rule, some in (("floor", True), ("rceil", False)):
        saturated = underflowed = 0
        for row in range(6):
            for start in (0, 32):
                part = x[row, start : start + 32]
                amax = float(np.abs(part).max())
                if not amax:
                    continue
                scale = 2.0 ** (math.frexp(amax)[1] - 3)
                if rule == "rceil" and amax > 6 * scale:
                    scale *= 2
                saturated += int(np.count_nonzero(np.abs(part) > 6 * scale))
                underflowed += int(np.count_nonzero((np.abs(part) <= scale / 4) & (part != 0)))
        assert quantize(x, MXFP4, rule=rule).lost(x) == (saturated, underflowed)
        assert (saturated > 0) == some
        assert underflowed > 0
    tiny = bert_numpy.load("bert-tiny-sst2")
    counts = bert_numpy.apply_recipe(tiny, "mxfp4")(input_ids=[[5, 6, 7, 8]]).counts
    assert counts[f"{QUERY}:a"].elements == 4 * 128
    assert counts[f"{QUERY}:a"] != OperandCounts(4 * 128)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("mxfp8", 8.25),
        ("mxint8", 8.25),
        ("mxfp6", 6.25),
        ("mxfp4", 4.25),
        ("mxfp4-weights", 4.25),
        ("nvfp4", 4.5),
        ("nvfp4-mixed", 4.5),
    ],
)
def test_weights_have_the_bits_that_they_are_stored_in(name: str, bits: float) -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    made = applied(model, PRESETS[name])
    weights = {
        key: weight for key, weight in made.weights.items() if isinstance(weight, QuantizedTensor)
    }
    assert len(weights) == 12
    elements = sum(weight.size for weight in weights.values())
    of_tensors = 4 * len(weights) * name.startswith("nvfp4")
    others = model.weight_bytes - 4 * elements
    assert made.weight_bytes == others + elements * bits / 8 + of_tensors
    for weight in weights.values():
        assert weight.packed_nbytes * 8 == weight.size * bits + of_tensors / 12 * 8


def test_accumulators_that_cannot_take_blocks(small: Model) -> None:
    calibration = bert_numpy.calibrate(small, [batch_of(9, 4)])
    for name, found in (
        ("mxfp8", "query:a: accumulate 'hopper': expected one scale per tensor or channel, found"),
        ("mxfp4", "query:a: accumulate 'hopper': expected E4M3FN or E5M2, found E2M1"),
        ("nvfp4-mixed", "query:a: accumulate 'hopper': expected E4M3FN or E5M2, found E2M1"),
    ):
        recipe = replace(PRESETS[name], accumulate="hopper")
        with pytest.raises(BertNumpyError, match=re.escape(found)):
            bert_numpy.apply_recipe(small, recipe, calibration)


@pytest.mark.parametrize("accumulate", ["block-sums", "float32", "bfloat16"])
def test_other_accumulators(accumulate: str, small: Model) -> None:
    batch = batch_of(9, 4, seed=5)
    for fmt in ("MXFP8_E4M3", "NVFP4"):
        exact = applied(small, both(fmt))(**batch).last_hidden_state
        found = applied(small, replace(both(fmt), accumulate=accumulate))(**batch)
        assert found.last_hidden_state is not None
        error = np.linalg.norm(found.last_hidden_state - exact) / np.linalg.norm(exact)
        assert error < (0.3 if accumulate == "bfloat16" else 0.02)
    unlike = SiteRecipe(Operand("MXFP4"), Operand("NVFP4"))
    recipe = Recipe("unlike", unlike, accumulate=accumulate)
    if accumulate == "float32":
        applied(small, recipe)(**batch)
        return
    with pytest.raises(BertNumpyError, match=r"query: accumulate '.*': expected both operands in"):
        applied(small, recipe)
    per_token = SiteRecipe(Operand("INT8", "token"), Operand("NVFP4"))
    with pytest.raises(BertNumpyError, match="expected both operands in blocks of one length"):
        applied(small, Recipe("x", per_token, accumulate=accumulate))


def test_a_model_that_is_quantized_can_become_golden(small: Model) -> None:
    made = applied(small, both("NVFP4"))
    golden = bert_numpy.apply_recipe(made, both("NVFP4"), golden=True)
    batch = batch_of(9, 4)
    assert_same_bits(golden(**batch).logits, applied(small, both("NVFP4"), True)(**batch).logits)
    with pytest.raises(BertNumpyError, match="quantized by both"):
        bert_numpy.apply_recipe(made, both("NVFP4", rule="exact"))


# Commands


def test_compare_takes_block_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, target = tmp_path / "mine.json", tmp_path / "rows.json"
    save_recipe(both("MXFP4", "mine", rule="rceil"), mine)
    command = ["compare", "bert-tiny-sst2", "--task", "sst2", "--data", str(REVIEWS), "--golden"]
    formats = f"MXFP4,nvfp4,nvfp4-weights,{mine}"
    limits = ["--limit", "20", "--calibration-samples", "20", "--json", str(target)]
    assert main([*command, "--formats", formats, *limits]) == 0
    printed = capsys.readouterr().out
    rows = json.loads(target.read_text())["rows"]
    assert [row["format"] for row in rows] == ["fp32", "mxfp4", "nvfp4", "nvfp4-weights", "mine"]
    sizes = [row["weight_bytes"] for row in rows]
    assert sizes[1] == sizes[4] < sizes[2] == sizes[3] < sizes[0]
    assert all(f"{size:,}" in printed for size in sizes)
    errors = [row["relative_logit_error"] for row in rows]
    assert 0 < errors[1] < 1
    assert errors[1] != errors[4]


def test_what_is_stored_is_what_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Quantize, describe and predict: the folder gives what the recipe gives."""
    answers = []
    folder = str(tmp_path / "stored")
    assert main(["quantize", "bert-tiny-sst2", folder, "--format", "nvfp4-weights"]) == 0
    for command in (["bert-tiny-sst2", "--format", "nvfp4-weights"], [folder]):
        target = tmp_path / "answer.json"
        assert main(["predict", *command, "a warm and funny film", "--json", str(target)]) == 0
        answers.append(json.loads(target.read_text())["logits"])
    assert answers[0] == answers[1]
    capsys.readouterr()
    assert main(["info", folder]) == 0
    assert "inputs not quantized, weights in NVFP4 per block of 16" in capsys.readouterr().out


def test_commands_refuse_what_blocks_cannot(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "bert-tiny-sst2", "a film", "--format", "mxfp4", "--accumulate", "hopper"]
    assert main(command) == 2
    assert "accumulate 'hopper': expected E4M3FN or E5M2, found E2M1" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "bert-tiny-sst2", "a film", "--format", "mxpf4"])
    assert "did you mean 'mxfp4'?" in capsys.readouterr().err

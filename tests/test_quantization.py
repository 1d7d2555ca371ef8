"""Quantized inference: codes, scales, rounding points, counts, and its effect on real tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
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
from watching import engine_for, noted, product_of

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Calibration, Model, QuantizedModel, Recipe
from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.evaluation.job import prepare, run
from bert_numpy.model.packing import Batch
from bert_numpy.model.sites import encoder_sites, site_named
from bert_numpy.quantization import engine as engine_module
from bert_numpy.quantization.counts import OperandCounts, added
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.plan import Scale, SitePlan, quantize_operand
from bert_numpy.quantization.presets import preset
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from npfp8 import E4M3FN, E5M2, INT8, UINT8, Format, QuantizedTensor, matmul, quantize
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FORMATS as ALL_FORMATS
from npfp8.scaling import affine_scale, group_extrema

FORMATS = ["e4m3", "e5m2", "int8"]
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0}
SMALLEST = {"e4m3": 2.0**-9, "e5m2": 2.0**-16, "int8": 1.0}
CODE_DTYPES = {"e4m3": np.uint8, "e5m2": np.uint8, "int8": np.int8}
#: A quotient so little beyond the largest value does not count as saturated: its scale may be from
#: the element itself.
SLACK = 1 + 2.0**-20
ORACLE_NAMES = {"e4m3": "E4M3FN", "e5m2": "E5M2", "int8": "INT8"}
LINEAR_SITES = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
]


@dataclass
class Record:
    """Every product and every other operation of a run: name, operands, result."""

    products: dict[str, tuple[Any, Any, Any, np.ndarray]] = field(default_factory=dict)
    operations: list[tuple[str, tuple[Any, ...], np.ndarray]] = field(default_factory=list)

    def __call__(self, model: Model, batch: dict[str, np.ndarray]) -> bert_numpy.ModelOutput:
        def note(site: str, a: Any, b: Any, bias: Any, result: np.ndarray) -> None:
            self.products[site] = (a.copy(), b, bias, result.copy())

        def engine(weights: Weights, batch: Batch) -> Watching:
            return Watching(model.engine(weights, batch), self)

        return noted(replace(model, engine=engine), note)(**batch)


@dataclass(frozen=True, eq=False)
class Watching(Engine[np.ndarray]):
    """Computes as another engine does, and keeps what is between the products."""

    inner: Engine[np.ndarray]
    record: Record

    def watched(self, operation: str, *operands: Any) -> np.ndarray:
        kept = tuple(np.array(x) if isinstance(x, np.ndarray) else x for x in operands)
        result: np.ndarray = getattr(self.inner, operation)(*operands)
        self.record.operations.append((operation, kept, result.copy()))
        return result

    def add(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self.watched("add", x, y)

    def multiply(self, x: np.ndarray, factor: float) -> np.ndarray:
        return self.watched("multiply", x, factor)

    def softmax(self, x: np.ndarray) -> np.ndarray:
        return self.watched("softmax", x)

    def layer_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
        return self.watched("layer_norm", name, x, eps)

    def activation(self, name: str, x: np.ndarray, answer: bool = False) -> np.ndarray:
        return self.watched("activation", name, x, answer)

    def pool(self, mode: str, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        return self.watched("pool", mode, x, places)

    def normalize(self, x: np.ndarray) -> np.ndarray:
        return self.watched("normalize", x)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return bert_numpy.load(write_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def tiny() -> Model:
    return bert_numpy.load("bert-tiny-sst2")


def batch_of(lengths: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), shape),
        "attention_mask": (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int64),
        "token_type_ids": generator.integers(0, 2, shape),
    }


def quantized(model: Model, name: str, batch: dict[str, np.ndarray]) -> QuantizedModel:
    return bert_numpy.apply_recipe(model, PRESETS[name], bert_numpy.calibrate(model, [batch]))


def on_bfloat16_grid(x: np.ndarray) -> bool:
    assert x.dtype == np.float32
    return not (np.ascontiguousarray(x).view(np.uint32) & 0xFFFF).any()


@cache
def expected_code(name: str, x: float, scale: float) -> Fraction | float:
    """The value of the code of ``x``: one float32 division, then the nearest code."""
    scaled = nearest(Fraction(x) / Fraction(scale), FLOAT32) if x else x
    return code_values(ORACLE_NAMES[name])[nearest_code(ORACLE_NAMES[name], scaled)]


def expected_values(name: str, x: np.ndarray, scale: float) -> np.ndarray:
    codes = [expected_code(name, value, scale) for value in x.reshape(-1).tolist()]
    return np.array(codes, object).reshape(x.shape)


def expected_product(
    name: str,
    operands: tuple[np.ndarray, np.ndarray],
    scales: tuple[float, float],
    bias: np.ndarray | None,
) -> np.ndarray:
    """The paper's quantized product, step by step, in exact numbers rounded where it says."""
    a, b = (expected_values(name, x, s) for x, s in zip(operands, scales, strict=True))
    sums = np.matmul(a, b)  # of Fractions: exact
    scale = multiply32(*scales)
    result = np.empty(sums.shape, np.float32)
    for index, exact in np.ndenumerate(sums):
        value = multiply32(nearest(exact, FLOAT32), scale)
        if bias is not None:
            value = add32(value, float(bias[index[-1]]))
        result[index] = nearest(value, BFLOAT16)
    return result


def float32_matrix(*shape: int) -> st.SearchStrategy[np.ndarray]:
    element = st.floats(-8, 8, width=32) | st.floats(*(-1e6, 1e6), width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, shape, elements=element)


SCALE = st.floats(2.0**-12, 2.0**6, width=32, allow_subnormal=False)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=40)
@given(
    a=float32_matrix(2, 5),
    b=float32_matrix(5, 3),
    bias=st.none() | float32_matrix(3),
    scales=st.tuples(SCALE, SCALE),
)
def test_product_step_by_step(
    name: str,
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    scales: tuple[float, float],
) -> None:
    site = "encoder.layer.0.attention.scores"
    a, b = round_to_bfloat16(a), round_to_bfloat16(b)  # as operands are in a model
    float_scales = (np.array(scales[0], np.float32), np.array(scales[1], np.float32))
    plan = SitePlan(PRESETS[name].scores, *map(Scale, float_scales))
    found = product_of(engine_of(PRESETS[name], {site: plan}), site, a, b, bias)
    assert_same_bits(found, expected_product(name, (a, b), scales, bias))


@pytest.mark.parametrize("name", FORMATS)
def test_every_product_of_a_model(name: str, small: Model) -> None:
    """Layers and attention products alike, with the scales of the calibration."""
    batch = batch_of((5, 7))
    calibration = bert_numpy.calibrate(small, [batch])
    record = Record()
    record(bert_numpy.apply_recipe(small, PRESETS[name], calibration), batch)
    sites = encoder_sites(small.config)
    assert [site for site in record.products if site.startswith("encoder.")] == sites
    largest = np.float32(LARGEST[name])
    for site in sites:
        a, b, bias, found = record.products[site]
        absmax = [calibration.operands[f"{site}:a"].absmax]
        if f"{site}.weight" in small.weights:
            assert isinstance(b, QuantizedTensor)
            b = small.weights[f"{site}.weight"].T  # the codes must be those of the float weights
            absmax.append(float(np.abs(b).max()))
        else:
            absmax.append(calibration.operands[f"{site}:b"].absmax)
        scales = [float(np.float32(x) / largest) for x in absmax]
        assert_same_bits(found, expected_product(name, (a, b), (scales[0], scales[1]), bias))


@pytest.mark.parametrize("name", [*FORMATS, "bf16"])
def test_everything_between_products_is_bfloat16(name: str, small: Model) -> None:
    record = Record()
    record(quantized(small, name, batch_of((6, 3))), batch_of((5, 7), seed=1))
    for site, (a, b, _, result) in record.products.items():
        assert on_bfloat16_grid(a), site
        if site.endswith(("attention.scores", "attention.context")):
            assert on_bfloat16_grid(b), site
        if site.startswith("encoder."):
            assert on_bfloat16_grid(result), site
    names = {"add", "multiply", "softmax", "layer_norm", "activation"}
    assert {operation for operation, *_ in record.operations} == names
    for operation, operands, result in record.operations:
        assert on_bfloat16_grid(result), operation
        # Not so the head's product, nor a sum of float32 embeddings.
        if operation in ("multiply", "softmax", "layer_norm", "activation"):
            x = operands[1] if operation in ("layer_norm", "activation") else operands[0]
            assert on_bfloat16_grid(x) or operands[0] == "tanh", operation


@pytest.mark.parametrize("name", [*FORMATS, "bf16"])
def test_rounding_points_of_the_scores(name: str, small: Model) -> None:
    """Q K^T is rounded, then its product with float32(1 / sqrt(d)), then the softmax."""
    record = Record()
    record(quantized(small, name, batch_of((6,))), batch_of((6,)))
    factor = np.float32(1 / math.sqrt(8))
    scaled = [operands for operation, operands, _ in record.operations if operation == "multiply"]
    weighted = [item for item in record.operations if item[0] == "softmax"]
    for layer in range(2):
        site = f"encoder.layer.{layer}.attention"
        query = record.products[f"{site}.self.query"][3]
        key = record.products[f"{site}.self.key"][3]
        q, k_transposed, bias, scores = record.products[f"{site}.scores"]
        assert bias is None
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            assert_same_bits(q[0, head], query[:, part])
            assert_same_bits(k_transposed[0, head], key[:, part].T)
        assert_same_bits(scaled[layer][0], scores)
        assert np.float32(scaled[layer][1]) == factor
        expected = [
            nearest(multiply32(value, float(factor)), BFLOAT16)
            for value in scores.reshape(-1).tolist()
        ]
        assert_same_bits(weighted[layer][1][0].reshape(-1), np.array(expected, np.float32))
        assert_same_bits(record.products[f"{site}.context"][0], weighted[layer][2])


def test_residual_sums_are_rounded_once(small: Model) -> None:
    record = Record()
    record(quantized(small, "e4m3", batch_of((6,))), batch_of((4,)))
    sums = [item for item in record.operations if item[0] == "add"]
    assert len(sums) == 1 + 2 * 2
    for _, (x, y), result in sums:
        pairs = zip(x.reshape(-1).tolist(), y.reshape(-1).tolist(), strict=True)
        expected = [nearest(add32(*pair), BFLOAT16) for pair in pairs]
        assert_same_bits(result.reshape(-1), np.array(expected, np.float32))


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_codes(name: str, small: Model) -> None:
    model = quantized(small, name, batch_of((5,)))
    wanted = {f"encoder.layer.{i}.{site}.weight" for i in range(2) for site in LINEAR_SITES}
    assert {k for k, v in model.weights.items() if isinstance(v, QuantizedTensor)} == wanted
    assert model.weights.keys() == small.weights.keys()
    for key, weight in model.weights.items():
        original = small.weights[key]
        assert isinstance(original, np.ndarray)
        if not isinstance(weight, QuantizedTensor):
            assert weight is original
            continue
        scale = np.float32(np.abs(original).max()) / np.float32(LARGEST[name])
        assert weight.codes.dtype == CODE_DTYPES[name]
        assert weight.codes.shape == original.shape
        assert (weight.axis, weight.block, weight.zero_point) == (None, None, None)
        assert weight.scale.dtype == np.float32
        assert weight.scale == scale
        expected = expected_values(name, original, float(scale)).astype(np.float64)
        np.testing.assert_array_equal(weight.code_values(np.float64), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_weight_bytes_are_those_held(name: str, small: Model) -> None:
    model = quantized(small, name, batch_of((5,)))
    in_layers = 2 * (4 * 16 * 16 + 2 * 16 * 32)  # elements of quantized weights
    scales = 2 * len(LINEAR_SITES)
    assert model.weight_bytes == small.weight_bytes - 4 * in_layers + in_layers + 4 * scales


def test_float_model_is_not_changed(small: Model) -> None:
    before = {name: np.array(weight) for name, weight in small.weights.items()}
    model = quantized(small, "e4m3", batch_of((5,)))
    model(**batch_of((5,)))
    for name, weight in before.items():
        assert_same_bits(small.weights[name], weight)
    assert (model.config, model.name, model.recipe) == (small.config, small.name, PRESETS["e4m3"])


def test_fp32_is_the_float_model_bit_for_bit(tiny: Model) -> None:
    batch = {"input_ids": [[101, 2023, 3185, 2003, 2307, 102], [101, 6659, 102, 0, 0, 0]]}
    batch["attention_mask"] = [[1] * 6, [1] * 3 + [0] * 3]
    model = bert_numpy.apply_recipe(tiny, PRESETS["fp32"])
    expected, found = tiny(**batch), model(**batch)
    for name in ("last_hidden_state", "pooler_output", "logits"):
        assert_same_bits(getattr(found, name), getattr(expected, name))
    assert model.weights == tiny.weights
    assert found.counts == expected.counts == {}


def test_bf16_quantizes_nothing(small: Model) -> None:
    batch = batch_of((5, 8))
    model = bert_numpy.apply_recipe(small, PRESETS["bf16"])
    assert model.weights == small.weights
    output, expected = model(**batch), small(**batch).logits
    found = output.logits
    assert found is not None
    assert expected is not None
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.05
    assert output.counts == {}


def test_heads_are_float32(small: Model) -> None:
    record = Record()
    output = record(quantized(small, "e4m3", batch_of((5,))), batch_of((5, 3)))
    for site in ("pooler.dense", "classifier"):
        a, b, bias, result = record.products[site]
        assert_same_bits(b, small.weights[f"{site}.weight"].T)
        assert_same_bits(result, np.matmul(a, b) + bias)
    assert not on_bfloat16_grid(record.products["classifier"][3])
    assert_same_bits(output.logits, record.products["classifier"][3])


@pytest.mark.parametrize("name", FORMATS)
def test_recipe_needs_a_calibration(name: str, small: Model) -> None:
    with pytest.raises(BertNumpyError) as error:
        bert_numpy.apply_recipe(small, PRESETS[name])
    assert str(error.value) == f"recipe {name}: expected a calibration, found none"


@pytest.mark.parametrize("index", [0, 3, 15])
def test_calibration_that_misses_a_site(index: int, small: Model) -> None:
    whole = bert_numpy.calibrate(small, [batch_of((5,))])
    site = encoder_sites(small.config)[index]
    sides = "ab" if index == 3 else "a"
    for side in sides:
        missed = f"{site}:{side}"
        operands = {name: seen for name, seen in whole.operands.items() if name != missed}
        with pytest.raises(BertNumpyError) as error:
            bert_numpy.apply_recipe(small, PRESETS["e4m3"], replace(whole, operands=operands))
        assert str(error.value) == (
            f"calibration: operand {missed!r}: expected statistics, found none"
        )
    if index != 3:
        channels = {name: seen for name, seen in whole.channels.items() if name != site}
        part = replace(whole, channels=channels)
        with pytest.raises(BertNumpyError) as error:
            bert_numpy.apply_recipe(small, replace(PRESETS["e4m3-smooth"], overrides=()), part)
        assert str(error.value) == f"calibration: site {site!r}: expected channels, found none"


def test_presets() -> None:
    assert list(PRESETS)[:5] == ["fp32", "bf16", "int8", "e4m3", "e5m2"]
    for name, recipe in PRESETS.items():
        assert preset(name) is recipe
        assert recipe.name == name
        attends = name not in ("fp32", "bf16") and not name.endswith("-weights")
        attends &= not name.startswith("w4a16")
        assert recipe.site("encoder.layer.0.attention.scores").quantizes == attends
        assert recipe.site("encoder.layer.1.output.dense").quantizes == (
            name not in ("fp32", "bf16")
        )
        assert not recipe.site("pooler.dense").quantizes
        assert not recipe.site("classifier").quantizes
    with pytest.raises(BertNumpyError) as error:
        preset("fp16")
    assert str(error.value) == (
        f"format: expected one of {', '.join(PRESETS)}, found 'fp16'; did you mean 'bf16'?"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_padding_changes_no_bit(name: str, tiny: Model) -> None:
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    texts = ["a warm and funny film", "dull", "an hour of my life that nobody will give back to me"]
    batch = tokenizer.batch(texts)
    model = quantized(tiny, name, batch)
    together = model(**batch)
    more = {k: np.pad(v, ((0, 0), (0, 9)), constant_values=0) for k, v in batch.items()}
    more["input_ids"][:, -9:] = 2023  # what stands under the mask makes no difference
    padded = model(**more)
    assert_same_bits(padded.logits, together.logits)
    assert_same_bits(padded.last_hidden_state[:, :-9], together.last_hidden_state)
    assert not padded.last_hidden_state[:, -9:].any()
    for row, text in enumerate(texts):
        alone = model(**tokenizer.batch([text]))
        length = alone.last_hidden_state.shape[1]
        assert_same_bits(together.last_hidden_state[row, :length], alone.last_hidden_state[0])
        # The head's products are BLAS's, whose bits depend on how many rows there are: enough to
        # move a value to the next bfloat16 where the pooler rounds.
        np.testing.assert_allclose(together.logits[row], alone.logits[0], rtol=0, atol=1e-3)


def test_float32_accumulation_is_close_to_exact(small: Model) -> None:
    batch = batch_of((9, 6))
    calibration = bert_numpy.calibrate(small, [batch])
    exact = bert_numpy.apply_recipe(small, PRESETS["e4m3"], calibration)(**batch).logits
    recipe = replace(PRESETS["e4m3"], accumulate="float32")
    assert isinstance(recipe, Recipe)
    found = bert_numpy.apply_recipe(small, recipe, calibration)(**batch).logits
    np.testing.assert_allclose(found, exact, rtol=0, atol=0.02 * float(np.abs(exact).max()))


def counted(name: str, xs: list[np.ndarray], scale: float) -> OperandCounts:
    counts = OperandCounts()
    for x in xs:
        q = quantize(x, ALL_FORMATS[ORACLE_NAMES[name]], np.float32(scale))
        counts += OperandCounts(x.size, *q.lost(x))
    return counts


def boundary_values(name: str, scale: float) -> np.ndarray:
    """The largest that does not saturate, and that underflows; the float32 numbers next to them."""
    edges = np.array([SLACK * LARGEST[name] * scale, SMALLEST[name] / 2 * scale, 0], np.float32)
    near = [edges, np.nextafter(edges, np.float32(np.inf)), np.nextafter(edges, np.float32(0))]
    values = np.concatenate(near)
    return np.concatenate([values, -values])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-20, 8.0])
def test_counts_at_the_thresholds(name: str, scale: float) -> None:
    """Scales are powers of two, so that the division is exact and the thresholds are clear."""
    counts = counted(name, [boundary_values(name, scale)], scale)
    assert counts.elements == 18
    assert counts.saturated == 2  # what is next above the largest value, of either sign
    # Of either sign: half of the smallest value (a tie, to the even code, 0), what is next below
    # it, and the least float32 number above zero.
    assert counts.underflowed == 6


@pytest.mark.parametrize("name", FORMATS)
@given(
    xs=st.lists(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(max_dims=3, max_side=6),
            elements=st.floats(width=32, allow_nan=False)
            | st.floats(-600, 600, width=32)
            | st.just(0.0)
            | st.floats(-1, 1, width=32),
        ),
        min_size=1,
        max_size=3,
    ),
    scale=SCALE,
)
def test_counts_by_brute_force(name: str, xs: list[np.ndarray], scale: float) -> None:
    elements = saturated = underflowed = 0
    for value in np.concatenate([x.reshape(-1) for x in xs]).tolist():
        elements += 1
        exact = Fraction(abs(value)) / Fraction(scale) if math.isfinite(value) else math.inf
        scaled = nearest(exact, FLOAT32)
        saturated += scaled > float(np.float32(SLACK * LARGEST[name]))
        underflowed += value != 0 and scaled <= SMALLEST[name] / 2
    assert counted(name, xs, scale) == OperandCounts(elements, saturated, underflowed)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
@example([math.nan, 1e9, -math.inf, 1.0])
@given(st.lists(st.just(math.nan) | st.floats(width=32), min_size=1, max_size=8))
def test_nan_is_neither_saturated_nor_underflowed(name: str, values: list[float]) -> None:
    x = np.array(values, np.float32)
    numbers = counted(name, [x[~np.isnan(x)]], 1.0)
    assert counted(name, [x], 1.0) == replace(numbers, elements=x.size)


@pytest.mark.parametrize("name", FORMATS)
def test_division_that_overflows_is_saturated(name: str) -> None:
    x = np.array([3e38, -3e38, 1e-3], np.float32)
    counts = counted(name, [x], float(np.finfo(np.float32).tiny))
    assert (counts.elements, counts.saturated) == (3, 3)


def test_counts_of_a_run(small: Model) -> None:
    """Both operands of an attention product, the left one of a layer; of each run alone."""
    model = quantized(small, "e4m3", batch_of((5,)))
    batch = batch_of((5, 7), seed=3)
    first = model(**batch)
    names = []
    for site in encoder_sites(small.config):
        attends = site.endswith(("attention.scores", "attention.context"))
        names += [f"{site}:a", f"{site}:b"] if attends else [f"{site}:a"]
    assert sorted(first.counts) == sorted(names)
    elements = {name: count.elements for name, count in first.counts.items()}
    for layer in range(2):
        site = f"encoder.layer.{layer}"
        assert elements[f"{site}.attention.self.query:a"] == 12 * 16
        assert elements[f"{site}.attention.scores:a"] == 12 * 16
        assert elements[f"{site}.attention.scores:b"] == 12 * 16
        assert elements[f"{site}.attention.context:a"] == 2 * (5 * 5 + 7 * 7)
        assert elements[f"{site}.attention.context:b"] == 12 * 16
        assert elements[f"{site}.output.dense:a"] == 12 * 32
    second = model(**batch)
    assert second.counts == first.counts
    assert second.counts is not first.counts
    both = added([first.counts, second.counts])
    assert {name: count.elements for name, count in both.items()} == {
        name: 2 * count for name, count in elements.items()
    }
    assert {name: count.elements for name, count in first.counts.items()} == elements


def test_calibration_sample_does_not_saturate(small: Model) -> None:
    """But for what bfloat16 rounding and other sums add to its own range."""
    batch = batch_of((9, 8, 7))
    model = quantized(small, "e4m3", batch)
    counts = model(**batch).counts
    total = sum(count.elements for count in counts.values())
    assert total > 0
    assert sum(count.saturated for count in counts.values()) < 0.01 * total


def nan_in_value_bias(model: QuantizedModel) -> QuantizedModel:
    key = "encoder.layer.1.attention.self.value.bias"
    bias = np.array(model.weights[key])
    bias[0] = np.nan
    return replace(model, weights=dict(model.weights) | {key: bias})


def test_nan_has_no_code_in_int8(small: Model) -> None:
    model = nan_in_value_bias(quantized(small, "int8", batch_of((5,))))
    with pytest.raises(BertNumpyError) as error:
        model(**batch_of((5,)))
    assert str(error.value).startswith("encoder.layer.1.attention.context:b: ")
    assert "NaN" in str(error.value)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_nan_is_not_lost_in_fp8(name: str, small: Model) -> None:
    model = nan_in_value_bias(quantized(small, name, batch_of((5,))))
    logits = model(**batch_of((5,))).logits
    assert logits is not None
    assert np.isnan(logits).all()


# All presets

every_preset = pytest.mark.parametrize("name", PRESETS)
QUERY = "encoder.layer.0.attention.self.query"
#: Migration at every linear layer.
SMOOTH = replace(PRESETS["int8-smooth"], overrides=())


@pytest.fixture(scope="module")
def models(small: Model, tiny: Model) -> dict[str, tuple[Model, Calibration]]:
    return {
        name: (model, bert_numpy.calibrate(model, [batch_of((9, 6, 7))], golden=True))
        for name, model in (("small", small), ("tiny", tiny))
    }


@pytest.fixture
def operands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[QuantizedTensor, QuantizedTensor]]:
    """The operands of every product of codes, in order; none is decoded before."""
    kept: list[tuple[QuantizedTensor, QuantizedTensor]] = []

    def watched(a: QuantizedTensor, b: QuantizedTensor, accumulate: str) -> np.ndarray:
        kept.append((a, b))
        return matmul(a, b, accumulate)

    monkeypatch.setattr(engine_module, "matmul", watched)
    monkeypatch.setattr(engine_module.QuantizedEngine, "decoded_dtype", lambda *_: None)
    return kept


def relative_error(found: np.ndarray | None, expected: np.ndarray | None) -> float:
    assert found is not None
    assert expected is not None
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@every_preset
@pytest.mark.parametrize("which", ["small", "tiny"])
def test_every_preset_runs(
    which: str, name: str, models: dict[str, tuple[Model, Calibration]]
) -> None:
    model, calibration = models[which]
    batch = batch_of((9, 4), seed=5)
    expected = model(**batch).last_hidden_state
    for golden in (False, True):
        if PRESETS[name].by_gptq:  # whose codes are made in floating point, and then kept
            calibration = bert_numpy.calibrate(model, [batch_of((9, 6, 7))], hessians=True)
            made = bert_numpy.apply_recipe(model, PRESETS[name], calibration)
            made = bert_numpy.apply_recipe(made, PRESETS[name], golden=golden)
        else:
            made = bert_numpy.apply_recipe(model, PRESETS[name], calibration, golden)
        found = made(**batch)
        assert np.isfinite(found.last_hidden_state).all()
        # Entropy calibration clips much where it has seen few elements.
        assert relative_error(found.last_hidden_state, expected) < (1 if "entropy" in name else 0.5)
        again = made(**batch)
        assert_same_bits(again.logits, found.logits)


#: The format, and the axis and whether there are blocks, of the operands of each kind of product.
LAYOUTS = {
    "e4m3": ("E4M3FN", "E4M3FN", (None, False), (None, False), (None, False)),
    "mixed": ("E5M2", "E4M3FN", (None, False), (None, False), (None, False)),
    "int8-asymmetric": ("UINT8", "INT8", (None, False), (None, False), (None, False)),
    "int8-channel": ("INT8", "INT8", (None, False), (1, False), (None, False)),
    "int8-smooth": ("INT8", "INT8", (None, False), (1, False), (None, False)),
    "int8-token": ("INT8", "INT8", (-1, True), (1, False), (-2, True)),
    "e4m3-token": ("E4M3FN", "E4M3FN", (-1, True), (1, False), (-2, True)),
    "int8-outliers": ("INT8", "INT8", (-1, True), (1, False), (-2, True)),
    "e4m3-block": ("E4M3FN", "E4M3FN", (-1, True), (-2, True), (-2, True)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(
    name: str,
    models: dict[str, tuple[Model, Calibration]],
    operands: list[tuple[QuantizedTensor, QuantizedTensor]],
) -> None:
    """Query, key, value, scores, context and so on."""
    model, calibration = models["small"]
    bert_numpy.apply_recipe(model, PRESETS[name], calibration)(**batch_of((5,)))
    assert len(operands) == 16
    fmt_a, fmt_b, left, weights, keys = LAYOUTS[name]

    def layout(x: QuantizedTensor) -> tuple[int | None, bool]:
        return x.axis, x.block is not None

    def expected(axis_and_block: tuple[int | None, bool], ndim: int) -> tuple[int | None, bool]:
        axis, block = axis_and_block
        return None if axis is None else axis % ndim, block

    for number, (a, b) in enumerate(operands):
        kind = {3: "scores", 4: "context"}.get(number % 8, "linear")
        asymmetric = name == "int8-asymmetric" and kind != "scores"
        assert a.fmt.name == (fmt_a if name != "int8-asymmetric" or asymmetric else "INT8")
        assert b.fmt.name == fmt_b
        assert (a.zero_point is not None) == asymmetric
        assert b.zero_point is None
        assert layout(a) == expected(left, a.ndim)
        if kind == "linear":
            assert layout(b) == expected(weights, b.ndim)
        elif kind == "scores" or name.endswith("block"):
            assert layout(b) == expected(keys, b.ndim)
        else:
            assert layout(b) == (None, False)
        if name.endswith(("token", "outliers")):
            assert a.scale.shape == (*a.shape[:-1], 1)
        if name == "e4m3-block":
            assert a.block == 128


def test_zero_points_of_activations(
    models: dict[str, tuple[Model, Calibration]],
    operands: list[tuple[QuantizedTensor, QuantizedTensor]],
) -> None:
    """The range of the calibration is that of the codes; the attention's weights are at 0."""
    model, calibration = models["small"]
    made = bert_numpy.apply_recipe(model, PRESETS["int8-asymmetric"], calibration)
    made(**batch_of((9, 9)))
    for site, (a, _) in zip(encoder_sites(model.config), operands, strict=False):
        if a.zero_point is None:
            continue
        seen = calibration.operands[f"{site}:a"]
        assert a.codes.dtype == np.uint8
        scale = np.float32((seen.high - seen.low) / 255)
        assert a.scale == scale
        assert a.zero_point == np.rint(np.float32(-seen.low) / scale)
        if site.endswith("context"):
            assert a.zero_point == 0


@pytest.mark.parametrize("name", ["int8-channel", "e4m3-channel", "int8-token"])
def test_weights_per_channel(name: str, small: Model) -> None:
    model = quantized(small, name, batch_of((5,)))
    fmt = name.partition("-")[0]
    for key, weight in model.weights.items():
        original = small.weights[key]
        if not isinstance(weight, QuantizedTensor):
            assert weight is original
            continue
        assert isinstance(original, np.ndarray)
        assert (weight.axis, weight.scale.shape) == (0, (len(original),))
        assert_same_bits(weight.scale, np.abs(original).max(axis=1) / np.float32(LARGEST[fmt]))
        assert_same_bits(weight.codes, quantize(original, weight.fmt, axis=0).codes)


def test_weights_per_block(tiny: Model) -> None:
    block = Operand(INT8, "block", dynamic=True, block=48)
    how = SiteRecipe(block, block)
    model = bert_numpy.apply_recipe(tiny, Recipe("blocks", how, how, how))
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            original = tiny.weights[key]
            expected = quantize(original, INT8, axis=1, block=48)
            assert (weight.axis, weight.block) == (1, 48)
            assert_same_bits(weight.scale, expected.scale)
            assert_same_bits(weight.codes, expected.codes)
    assert any(isinstance(weight, QuantizedTensor) for weight in model.weights.values())


def test_scales_that_are_powers_of_two(
    models: dict[str, tuple[Model, Calibration]],
    operands: list[tuple[QuantizedTensor, QuantizedTensor]],
) -> None:
    model, calibration = models["small"]
    scales = []
    for name in ("e4m3-pow2", "e4m3"):
        operands.clear()
        bert_numpy.apply_recipe(model, PRESETS[name], calibration)(**batch_of((5,)))
        scales.append([float(x.scale) for pair in operands for x in pair])
    assert all(math.frexp(scale)[0] == 0.5 for scale in scales[0])
    assert not all(math.frexp(scale)[0] == 0.5 for scale in scales[1])
    for power, plain in zip(*scales, strict=True):
        assert plain <= power < 2 * plain


def test_weights_alone(models: dict[str, tuple[Model, Calibration]]) -> None:
    """Activations stay in bfloat16: the model is that of the dequantized weights."""
    model, _ = models["tiny"]
    for golden in (False, True):
        made = bert_numpy.apply_recipe(model, PRESETS["e4m3-weights"], golden=golden)
        held = made.weights
        dequantized = {
            key: weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            for key, weight in held.items()
        }
        assert sum(isinstance(weight, QuantizedTensor) for weight in held.values()) == 12
        plain = bert_numpy.apply_recipe(
            replace(model, weights=dequantized), PRESETS["bf16"], golden=golden
        )
        batch = batch_of((7, 3))
        found, expected = made(**batch), plain(**batch)
        if golden:
            assert_same_bits(found.logits, expected.logits)
            assert_same_bits(found.last_hidden_state, expected.last_hidden_state)
        assert relative_error(found.logits, expected.logits) < 1e-2
        assert found.counts == {}


# Outliers


def outlier_recipe(threshold: float, arithmetic: str = "bfloat16") -> Recipe:
    linear = replace(PRESETS["int8-outliers"].linear, outlier_threshold=threshold)
    return replace(PRESETS["int8-outliers"], linear=linear, arithmetic=arithmetic)


def operand_with_outliers(rows: int = 12, k: int = 40) -> np.ndarray:
    """Every third row has none."""
    rng = np.random.default_rng(3)
    a = rng.uniform(-5, 5, (rows, k))
    a[rng.random(a.shape) < 0.1] *= 20
    a[::3] = rng.uniform(-5, 5, a[::3].shape)
    a[0, :3], a[1, :3] = 6, (6, -6, 6.03125)  # at the threshold, and next to it
    return round_to_bfloat16(a.astype(np.float32))


@pytest.mark.parametrize("golden", [False, True])
def test_outliers_are_multiplied_apart(golden: bool) -> None:
    a = operand_with_outliers()
    weight = np.random.default_rng(4).normal(0, 1, (9, 40)).astype(np.float32)
    b = quantize(weight, INT8, axis=0).mT
    bias = np.linspace(-1, 1, 9, dtype=np.float32)
    recipe = outlier_recipe(6.0, "float32")
    kept = a.copy()
    weights = {f"{QUERY}.weight": b.mT, f"{QUERY}.bias": bias}
    plans = {QUERY: SitePlan(recipe.linear)}
    engine = engine_for(engine_of(recipe, plans, golden), weights, np.ones((1, len(a))))
    (found,) = engine.linears([site_named(QUERY)], a)
    assert_same_bits(a, kept)
    expected = np.empty(found.shape)
    for row, x in enumerate(a.astype(np.float64)):
        inside = np.where(np.abs(x) <= 6, x, 0.0)
        scale = np.float32(np.abs(inside).max()) / np.float32(127)
        codes = np.rint(inside.astype(np.float32) / scale)
        assert np.abs(codes).max() == 127
        near = codes.astype(np.float64) * float(scale)
        values = b.code_values(np.float64) * b.scale.astype(np.float64)
        expected[row] = near @ values + (x - inside) @ values + bias
    magnitude = np.abs(a).astype(np.float64) @ np.abs(b.dequantize()) + 1
    assert (np.abs(found - expected) <= 4 * 2.0**-23 * magnitude).all()
    plain = a.astype(np.float64) @ b.dequantize() + bias
    without = replace(recipe, linear=replace(recipe.linear, outlier_threshold=None))
    direct = engine_of(without, {QUERY: SitePlan(without.linear)}, golden)
    rows = np.abs(a).max(axis=1) > 6
    others = product_of(direct, QUERY, a, b, bias)
    errors = [np.abs(x - plain)[rows].mean() for x in (found, others)]
    assert errors[0] < errors[1] / 3
    counts = engine.counted()[f"{QUERY}:a"]
    assert (counts.elements, counts.saturated) == (a.size, 0)


@pytest.mark.parametrize("threshold", [0.5, 1.5, 6.0])
def test_a_row_with_outliers_changes_no_other(threshold: float) -> None:
    """Golden: alone, among others, in another order; with outliers and without."""
    a = operand_with_outliers()
    a[3] = 0  # a row of nothing, whose sum must keep its sign of zero
    weight = np.random.default_rng(4).normal(0, 1, (9, 40)).astype(np.float32)
    b = quantize(weight, INT8, axis=0).mT
    recipe = outlier_recipe(threshold)
    engine = engine_of(recipe, {QUERY: SitePlan(recipe.linear)}, golden=True)
    some_bias = np.float32([0, -0.0, *range(7)])
    for bias in (some_bias, None):
        together = product_of(engine, QUERY, a, b, bias)
        assert_same_bits(product_of(engine, QUERY, a[::-1], b, bias), together[::-1])
        for row in range(len(a)):
            alone = product_of(engine, QUERY, a[row : row + 1], b, bias)
            assert_same_bits(alone[0], together[row])


@pytest.mark.parametrize("which", ["small", "tiny"])
def test_outliers_of_a_model_in_any_batch(
    which: str, models: dict[str, tuple[Model, Calibration]]
) -> None:
    model, calibration = models[which]
    made = bert_numpy.apply_recipe(model, outlier_recipe(1.5), calibration, golden=True)
    lengths = (7, 3, 5, 7)
    batch = batch_of(lengths, seed=8)

    def run_rows(rows: list[int]) -> list[np.ndarray]:
        logits = made(**{key: value[rows] for key, value in batch.items()}).logits
        assert logits is not None
        return list(logits)

    together = run_rows([0, 1, 2, 3])
    for row, logits in zip([2, 0, 3, 1], run_rows([2, 0, 3, 1]), strict=True):
        assert_same_bits(logits, together[row])
    for row, length in enumerate(lengths):
        alone = {key: value[[row], :length] for key, value in batch.items()}
        logits = made(**alone).logits
        assert logits is not None
        assert_same_bits(logits[0], together[row])
    plain = bert_numpy.apply_recipe(model, PRESETS["int8-token"], calibration, golden=True)
    assert (plain(**batch).logits != np.array(together)).any()


def column_recipe(threshold: float) -> Recipe:
    recipe = PRESETS["int8-outliers-columns"]
    return replace(recipe, linear=replace(recipe.linear, outlier_threshold=threshold))


def test_outlier_columns_are_multiplied_apart() -> None:
    """All of a column with an outlier, as if its elements were each beyond the threshold."""
    a = operand_with_outliers()
    a[:, 5:] = np.clip(a[:, 5:], -6, 6)
    a[4, 9] = 6.03125
    weight = np.random.default_rng(4).normal(0, 1, (9, 40)).astype(np.float32)
    b = quantize(weight, INT8, axis=0).mT
    recipe = replace(column_recipe(6.0), arithmetic="float32")
    engine = engine_of(recipe, {QUERY: SitePlan(recipe.linear)}, golden=True)
    found = product_of(engine, QUERY, a, b)
    columns = [any(abs(x) > 6 for x in column) for column in a.T.tolist()]
    assert 1 <= sum(columns) <= 6
    assert columns[9]
    inside = a * ~np.array(columns)
    scale = np.abs(inside).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(inside / scale).astype(np.float64)
    values = b.dequantize().astype(np.float64)
    expected = (codes * scale) @ values + (a - inside).astype(np.float64) @ values
    magnitude = np.abs(a).astype(np.float64) @ np.abs(values) + 1
    assert (np.abs(found - expected) <= 4 * 2.0**-23 * magnitude).all()


def test_outlier_columns_are_of_a_sequence_without_its_masked_tokens() -> None:
    """Rows 0-1, 2-4 and 5 of three sequences; of the second, position 0 is masked."""
    mask = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])
    a = np.ones((6, 4), np.float32)
    a[1, 0], a[2, 1], a[3, 2], a[5, 3] = 9, -9, -9, 9
    b = quantize(np.eye(4, dtype=np.float32), INT8, axis=0).mT
    seen: list[np.ndarray] = []

    def spy(x: np.ndarray, *rest: Any) -> np.ndarray:
        seen.append(x)
        return quantize_operand(x, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "quantize_operand", spy)
        for recipe in (column_recipe(6.0), outlier_recipe(6.0)):
            engine = engine_of(recipe, {QUERY: SitePlan(recipe.linear)}, golden=True)
            engine_for(engine, {}, mask).product(site_named(QUERY), a, b)
    kept = np.ones((6, 4), np.float32)
    kept[:2, 0] = kept[2:5, 2] = kept[5, 3] = 0
    kept[2, 1] = -9  # masked: it makes no column one of outliers
    np.testing.assert_array_equal(seen[0], kept)
    by_element = np.where(np.abs(a) > 6, np.float32(0), a)  # whatever the batch is
    np.testing.assert_array_equal(seen[1], by_element)
    assert len(seen) == 2


@pytest.mark.parametrize("golden", [False, True])
def test_outlier_columns_of_a_model_in_any_batch(
    golden: bool, models: dict[str, tuple[Model, Calibration]]
) -> None:
    """Alone, padded on either side, with position 0 masked, and beside others."""
    model, calibration = models["tiny"]
    made = bert_numpy.apply_recipe(model, column_recipe(1.5), calibration, golden=golden)
    batch = batch_of((7, 3, 5, 7), seed=8)
    batch["attention_mask"] = np.array(batch["attention_mask"])
    batch["attention_mask"][3, :2] = 0
    together = made(**batch).logits
    assert together is not None
    for row in range(4):
        alone = made(**{key: value[[row]] for key, value in batch.items()}).logits
        assert alone is not None
        if golden:
            assert_same_bits(alone[0], together[row])
        np.testing.assert_allclose(alone[0], together[row], rtol=0.05, atol=0.02)
    by_element = bert_numpy.apply_recipe(model, outlier_recipe(1.5), calibration, golden=golden)
    assert (by_element(**batch).logits != together).any()


# Migration


@pytest.mark.parametrize("golden", [False, True])
def test_migration_that_quantizes_nothing_changes_no_bit(golden: bool) -> None:
    rng = np.random.default_rng(6)
    a = round_to_bfloat16(rng.normal(0, 3, (7, 24)).astype(np.float32))
    weight = rng.normal(0, 1, (24, 5)).astype(np.float32)
    s = np.exp2(rng.integers(-6, 7, 24)).astype(np.float32)
    recipe = SMOOTH
    plan = SitePlan(SiteRecipe(), smoothing=s)
    smooth, plain = (engine_of(recipe, plans, golden) for plans in ({QUERY: plan}, {}))
    found = product_of(smooth, QUERY, a, weight * s[:, None])
    assert_same_bits(found, product_of(plain, QUERY, a, weight))


def expected_smoothing(seen: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    columns = np.abs(weight).max(axis=0)
    exact = seen.astype(np.float64) ** alpha / columns.astype(np.float64) ** (1 - alpha)
    return np.exp2(np.rint(np.log2(exact))).astype(np.float32)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_migration_of_a_model(
    alpha: float,
    models: dict[str, tuple[Model, Calibration]],
    operands: list[tuple[QuantizedTensor, QuantizedTensor]],
) -> None:
    """Weights are multiplied, activations divided; the scale is from the divided columns."""
    model, calibration = models["small"]
    recipe = SMOOTH
    recipe = replace(recipe, linear=replace(recipe.linear, migration=alpha))
    made = bert_numpy.apply_recipe(model, recipe, calibration)
    record = Record()
    record(made, batch_of((6, 6)))
    sites = encoder_sites(model.config)
    for site, (a, b) in zip(sites, operands, strict=True):
        weight = model.weights.get(f"{site}.weight")
        if not isinstance(weight, np.ndarray):
            continue
        seen = calibration.channels[site]
        s = expected_smoothing(seen, weight, alpha)
        wanted = quantize(weight * s, INT8, axis=0)
        held = made.weights[f"{site}.weight"]
        assert isinstance(held, QuantizedTensor)
        assert_same_bits(held.codes, wanted.codes)
        assert_same_bits(held.scale, wanted.scale)
        assert_same_bits(b.codes, wanted.codes.T)
        assert a.scale == (seen / s).max() / np.float32(127)
        x, _, bias, product = record.products[site]
        assert_same_bits(a.codes, quantize(x / s, INT8, a.scale).codes)
        exact = x.astype(np.float64) @ weight.T + bias
        assert relative_error(product, exact) < 0.2
        near = a.dequantize().astype(np.float64) @ b.dequantize() + bias
        assert relative_error(product, near) < 2.0**-8


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.75, 1.0])
def test_migration_as_in_the_paper(
    alpha: float, models: dict[str, tuple[Model, Calibration]]
) -> None:
    """Query, key and value share the factors of the largest weights of all three."""
    model, calibration = models["small"]
    recipe = PRESETS["int8-smooth-paper"]
    recipe = replace(recipe, linear=replace(recipe.linear, migration=alpha))
    made = bert_numpy.apply_recipe(model, recipe, calibration)
    for layer in range(model.config.num_hidden_layers):
        place = f"encoder.layer.{layer}"
        attention = [f"{place}.attention.self.{name}" for name in ("query", "key", "value")]
        for sites in (attention, [f"{place}.intermediate.dense"]):
            weights = [np.asarray(model.weights[f"{site}.weight"]) for site in sites]
            largest = np.abs(np.concatenate(weights)).max(axis=0).astype(np.float64)
            seen = calibration.channels[sites[0]]
            expected = seen.astype(np.float64) ** alpha / largest ** (1 - alpha)
            for site, weight in zip(sites, weights, strict=True):
                plan = made.plans[site]
                assert plan.smoothing is not None
                np.testing.assert_allclose(plan.smoothing, expected, rtol=1e-6)
                assert_same_bits(plan.smoothing, made.plans[sites[0]].smoothing)
                held = made.weights[f"{site}.weight"]
                assert isinstance(held, QuantizedTensor)
                assert_same_bits(held.codes, quantize(weight * plan.smoothing, INT8).codes)
                assert plan.a is not None
                assert plan.a.scale == (seen / plan.smoothing).max() / np.float32(127)
        for name in ("attention.output.dense", "output.dense"):
            assert made.plans[f"{place}.{name}"].smoothing is None
    exponents = np.log2(made.plans[QUERY].smoothing)  # type: ignore[call-overload]
    assert (exponents != np.rint(exponents)).any()


def test_migration_of_the_paper_where_a_layer_is_left_out(
    models: dict[str, tuple[Model, Calibration]],
) -> None:
    """The value's weights do not count where it is not quantized, nor migrated by itself."""
    model, calibration = models["small"]
    recipe = PRESETS["int8-smooth-paper"].skipping("*.value")
    made = bert_numpy.apply_recipe(model, recipe, calibration)
    weights = [np.asarray(model.weights[f"{QUERY[:-5]}{name}.weight"]) for name in ("query", "key")]
    largest = np.abs(np.concatenate(weights)).max(axis=0).astype(np.float64)
    expected = np.sqrt(calibration.channels[QUERY] / largest)
    found = made.plans[QUERY].smoothing
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def with_loud_channels(model: Model) -> Model:
    weights = dict(model.weights)
    quieter = ("query.weight", "key.weight", "value.weight", "intermediate.dense.weight")
    for key, weight in model.weights.items():
        assert isinstance(weight, np.ndarray)
        loud = np.arange(weight.shape[-1]) % 8 == 3
        if key.endswith("LayerNorm.weight"):
            weights[key] = np.where(loud, 40 * weight, weight)
        elif key.endswith(quieter):  # so that they count no more than before
            weights[key] = np.where(loud, weight / 40, weight)
    return replace(model, weights=weights)


def test_migration_helps_with_loud_channels(tiny: Model) -> None:
    model = with_loud_channels(tiny)
    batch = batch_of((12, 9, 11))
    calibration = bert_numpy.calibrate(model, [batch])
    errors = {}
    for name in ("int8-channel", "int8-smooth"):
        record, plain = Record(), Record()
        made = bert_numpy.apply_recipe(model, PRESETS[name], calibration)
        record(made, batch)
        plain(model, batch)
        site = "encoder.layer.0.intermediate.dense"
        first = "encoder.layer.0.attention.self.query"
        errors[name] = [
            relative_error(record.products[x][3], plain.products[x][3]) for x in (first, site)
        ]
    for before, after in zip(errors["int8-channel"], errors["int8-smooth"], strict=True):
        assert after < before / 2


def test_migration_of_a_column_that_is_zero(small: Model) -> None:
    batch = batch_of((5,))
    key = f"{QUERY}.weight"
    weight = np.array(small.weights[key])
    weight[:, 4] = 0
    model = replace(small, weights=dict(small.weights) | {key: weight})
    calibration = bert_numpy.calibrate(model, [batch])
    channels = dict(calibration.channels)
    channels[QUERY] = channels[QUERY] * (np.arange(16) != 7)
    calibration = replace(calibration, channels=channels)
    made = bert_numpy.apply_recipe(model, SMOOTH, calibration)
    found = made.weights[key]
    assert isinstance(found, QuantizedTensor)
    assert not found.codes[:, 4].any()
    assert np.isfinite(made(**batch).logits).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_migration_of_extreme_columns(alpha: float, small: Model) -> None:
    """Columns of the smallest numbers there are, in the weights."""
    batch = batch_of((5,))
    key = f"{QUERY}.weight"
    weight = np.array(small.weights[key])
    weight[:, 4] = 2.0**-148
    model = replace(small, weights=dict(small.weights) | {key: weight})
    calibration = bert_numpy.calibrate(model, [batch])
    recipe = SMOOTH
    recipe = replace(recipe, linear=replace(recipe.linear, migration=alpha))
    made = bert_numpy.apply_recipe(model, recipe, calibration)
    assert np.isfinite(made(**batch).logits).all()


# Overrides


def test_pooler_and_head_by_override(small: Model) -> None:
    batch = batch_of((5, 7))
    recipe = PRESETS["int8"]
    heads = (("pooler.dense", recipe.linear), ("classifier", PRESETS["e4m3-token"].linear))
    recipe = replace(recipe, overrides=heads)
    calibration = bert_numpy.calibrate(small, [batch])
    made = bert_numpy.apply_recipe(small, recipe, calibration)
    record = Record()
    output = record(made, batch)
    for site, fmt in (("pooler.dense", INT8), ("classifier", E4M3FN)):
        weight = made.weights[f"{site}.weight"]
        assert isinstance(weight, QuantizedTensor)
        assert weight.fmt is fmt
        assert output.counts[f"{site}:a"].elements == 2 * 16
    a, _, bias, found = record.products["pooler.dense"]
    scales = (
        float(np.float32(calibration.operands["pooler.dense:a"].absmax) / np.float32(127)),
        float(made.weights["pooler.dense.weight"].scale),  # type: ignore[union-attr]
    )
    left = expected_values("int8", a, scales[0])
    right = expected_values("int8", small.weights["pooler.dense.weight"].T, scales[1])  # type: ignore[union-attr]
    factor = multiply32(*scales)
    for index, exact in np.ndenumerate(np.matmul(left, right)):
        value = add32(multiply32(nearest(exact, FLOAT32), factor), float(bias[index[-1]]))
        assert found[index] == value  # float32: no head's result is rounded to bfloat16
    assert_same_bits(output.logits, record.products["classifier"][3])
    assert relative_error(output.logits, small(**batch).logits) < 0.2


def test_skipped_sites_stay_as_they_are(small: Model) -> None:
    batch = batch_of((5, 7))
    calibration = bert_numpy.calibrate(small, [batch])
    recipe = SMOOTH.skipping("encoder.layer.0.*", "*.output.dense")
    kept = {
        name: seen
        for name, seen in calibration.operands.items()
        if ".layer.1." in name and ".output.dense" not in name
    }
    calibration = replace(calibration, operands=kept)  # no more than that is needed
    made = bert_numpy.apply_recipe(small, recipe, calibration)
    counts = made(**batch).counts
    for key, weight in made.weights.items():
        left_out = "encoder.layer.1" not in key or ".output.dense" in key
        if left_out or not key.endswith(".weight") or "LayerNorm" in key:
            assert weight is small.weights[key], key
        else:
            assert isinstance(weight, QuantizedTensor), key
    assert counts.keys() == kept.keys()
    nothing = bert_numpy.apply_recipe(small, PRESETS["int8"].skipping("*"))
    plain = bert_numpy.apply_recipe(small, PRESETS["bf16"])
    found = nothing(**batch)
    assert_same_bits(found.logits, plain(**batch).logits)
    assert found.counts == {}


# Other combinations than the presets


def dynamic(fmt: Format, granularity: str, block: int = 32) -> Operand:
    return Operand(fmt, granularity, dynamic=True, block=block)


@pytest.mark.parametrize("golden", [False, True])
@pytest.mark.parametrize(
    ("left", "weights", "keys", "values"),
    [
        ("token UINT8", "block 512", "token", "tensor"),
        ("block UINT8", "block", "block", "block"),
        ("token INT8", "block", "block", "block"),
        ("block INT8", "channel", "token", "tensor"),
        ("block INT8", "tensor", "tensor", "tensor"),
        ("tensor INT8", "block", "block", "block"),
    ],
)
def test_granularities_together(
    left: str,
    weights: str,
    keys: str,
    values: str,
    golden: bool,
    models: dict[str, tuple[Model, Calibration]],
) -> None:
    """Every pair that a recipe allows is one that can be multiplied."""
    model, calibration = models["tiny"]
    granularity, fmt = left.split()

    def operand(what: str) -> Operand:
        kind, _, block = what.partition(" ")
        if kind in ("tensor", "channel"):
            return Operand(INT8, kind)
        return dynamic(ALL_FORMATS["INT8"], kind, int(block or 32))

    a = Operand(INT8) if granularity == "tensor" else dynamic(ALL_FORMATS[fmt], granularity)
    try:
        recipe = Recipe(
            "together",
            SiteRecipe(a, operand(weights)),
            SiteRecipe(a, operand(keys)),
            SiteRecipe(a, operand(values)),
        )
    except BertNumpyError:
        return  # refused before any of it runs
    made = bert_numpy.apply_recipe(model, recipe, calibration, golden)
    batch = batch_of((9, 4), seed=5)
    found, expected = made(**batch), model(**batch)
    assert relative_error(found.last_hidden_state, expected.last_hidden_state) < 0.2


# Counts of every granularity


@pytest.mark.parametrize("granularity", ["tensor", "axis", "token", "block"])
@pytest.mark.parametrize("fmt", [E4M3FN, E5M2, INT8, UINT8], ids=str)
@pytest.mark.parametrize("shrunk", [1.0, 0.3])
def test_counts_by_granularity(fmt: Format, granularity: str, shrunk: float) -> None:
    """With scales too small by a factor, and numbers of many magnitudes."""
    rng = np.random.default_rng(11)
    x = rng.normal(0, 1, (3, 6, 20)) * np.exp2(rng.integers(-50, 3, (3, 6, 20)))
    x = round_to_bfloat16(x.astype(np.float32))
    x[rng.random(x.shape) < 0.1] = 0
    axis, block = {"tensor": (None, None), "axis": (1, None), "token": (2, 20), "block": (2, 8)}[
        granularity
    ]
    low, high = group_extrema(x, axis, block)
    if fmt is UINT8:
        scale, zero = affine_scale(low, high, UINT8)
    else:
        scale, zero = np.maximum(high, -low) / np.float32(fmt.max), None
    scale = (scale * np.float32(shrunk)).astype(np.float32)
    q = quantize(x, fmt, scale, axis, block, zero)
    counts = OperandCounts(x.size, *q.lost(x))
    saturated = underflowed = 0
    for index in np.ndindex(x.shape):
        where: tuple[int, ...] = ()
        if axis is not None:
            where = (index[axis],)
            if block is not None:
                where = (*index[:2], index[2] // block)
        scaled = nearest(Fraction(float(x[index])) / Fraction(float(scale[where])), FLOAT32)
        if zero is not None:
            code = round(Fraction(scaled)) + int(zero[where])
            # The half between two codes belongs to both.
            beyond = max(-int(zero[where]) - scaled, scaled - 255 + int(zero[where]))
            saturated += not 0 <= code <= 255 and beyond > 0.5001
            underflowed += bool(x[index] != 0 and min(max(code, 0), 255) == int(zero[where]))
        else:
            saturated += abs(scaled) > fmt.max * SLACK
            bits = nearest_code(fmt.name, scaled)
            underflowed += bool(x[index] != 0 and code_values(fmt.name)[bits] == 0)
    assert counts == OperandCounts(x.size, saturated, underflowed)
    assert (saturated > 0) == (shrunk < 1)
    assert underflowed > 0
    twice = OperandCounts(2 * x.size, 2 * saturated, 2 * underflowed)
    assert counts + OperandCounts(x.size, *q.lost(x)) == twice


#: Relative logit error on the development set, as measured by a separate simulation.
PUBLISHED_ERROR = {
    "sst2": {"int8": 0.224, "e4m3": 0.050, "e5m2": 0.091},
    "cola": {"int8": 0.374, "e4m3": 0.078, "e5m2": 0.161},
}


@pytest.mark.parametrize("task", PUBLISHED_ERROR)
def test_formats_on_a_real_task(task: str, checkpoints: Path, glue: Path) -> None:
    """128 examples, spread over the development set: E4M3 is best, then E5M2, then INT8."""
    job = prepare(checkpoints / f"minilm-{task}", task, glue, calibration_samples=128)
    n = len(job.examples)
    rows = [i * n // 128 for i in range(128)]
    job = job.select(rows)
    reference, *results = run(job, [PRESETS[name] for name in ("fp32", *FORMATS)])
    changes = {result.recipe: compare_with(reference, result) for result in results}
    errors = {name: change["relative_logit_error"] for name, change in changes.items()}
    assert errors["e4m3"] < errors["e5m2"] < errors["int8"]
    for name, published in PUBLISHED_ERROR[task].items():
        assert published / 2 < errors[name] < published * 2, name
    assert changes["e4m3"]["flips"] < changes["int8"]["flips"]
    for result in results:
        saturated = sum(count.saturated for count in result.counts.values())
        elements = sum(count.elements for count in result.counts.values())
        assert 0 < saturated < 1e-3 * elements


@pytest.mark.parametrize(
    ("name", "task", "published"),
    [
        ("minilm-sst2", "sst2", {"accuracy": 771 / 872}),
        ("minilm-cola", "cola", {"matthews_correlation": 0.3070}),
        ("minilm-mrpc", "mrpc", {"accuracy": 332 / 408, "f1": 0.8721}),
        ("bert-tiny-sst2", "sst2", {"accuracy": 714 / 872}),
    ],
)
def test_published_metrics(
    name: str, task: str, published: dict[str, float], checkpoints: Path, glue: Path
) -> None:
    job = prepare(checkpoints / name, task, glue, calibrated=False)
    (result,) = run(job, [PRESETS["fp32"]])
    assert result.metrics.keys() == published.keys()
    for metric, value in published.items():
        if metric == "accuracy":
            assert result.metrics[metric] == pytest.approx(value, rel=1e-12)
        else:
            assert round(result.metrics[metric], 4) == value

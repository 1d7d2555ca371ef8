"""Quantization-aware training: rounding forward, straight through back, the ranges' scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, Recipe, SiteRecipe, TiledAttention
from bert_numpy.assets import REVIEWS
from bert_numpy.engines.site import Site
from bert_numpy.model.sites import sites_of
from bert_numpy.quantization.plan import Scale
from bert_numpy.study.training import lesson
from bert_numpy.tasks.tokenization import pad
from bert_numpy.training.fake_quantization import (
    FakeQuantizedProducts,
    Range,
    fake_quantize,
    quantized_model,
)
from bert_numpy.training.fit import Training, fit
from bert_numpy.training.losses import cross_entropy
from bert_numpy.training.tape import tape
from npfp8 import IntFormat, matmul, quantize

LINEAR = Site("encoder.layer.0.output.dense", "linear", 0, 5)
SCORES = Site("encoder.layer.0.attention.scores", "scores", 0)
TRAINED = ["int8", "e4m3", "int8-channel", "int8-asymmetric", "e4m3-token", "mixed", "mxfp8"]


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("site", [LINEAR, SCORES], ids=lambda site: site.kind)
def test_forward_is_the_product_of_codes(name: str, site: Site) -> None:
    """Within the roundings of a float32 sum: the quantized engine multiplies the same values."""
    a, b = numbers(6, 64), numbers(64, 5, seed=1)
    products = FakeQuantizedProducts(PRESETS[name])
    y, (faked_a, faked_b) = products.forward(site, a, b)
    how = PRESETS[name].site(site)
    codes = []
    for x, operand, axis, faked in ((a, how.a, -1, faked_a), (b, how.b, -2, faked_b)):
        q = fake_codes(x, operand, axis)
        np.testing.assert_array_equal(faked.values, q.dequantize())
        codes.append(q)
    # K - 1 additions in any order, K products, and the roundings of both values and scales.
    x, z = (np.abs(one.dequantize().astype(np.float64)) for one in codes)
    assert (np.abs(y - matmul(*codes)) <= (64 + 8) * 2.0**-24 * (x @ z)).all()
    assert (y != a @ b).any()


def fake_codes(x: Any, operand: Operand, axis: int) -> Any:
    """The codes of an operand, with scales from itself."""
    from npfp8.scaling import scale_of_range  # noqa: PLC0415

    fmt: Any = operand.fmt
    if operand.block_format is not None:
        return quantize(x, fmt, axis=axis)
    if operand.granularity == "channel":
        return quantize(x, fmt, axis=1)
    if operand.granularity == "token":
        return quantize(x, fmt, axis=x.ndim + axis, block=x.shape[axis])
    scale, zero = scale_of_range(min(x.min(), 0), max(x.max(), 0), fmt)
    return quantize(x, fmt, scale, zero_point=zero)


def test_gradients_go_straight_through_where_nothing_is_clipped() -> None:
    a, b, dy = np.float32([[3.0, -200.0, 0.3]]), np.float32([[1], [0.5], [-1]]), np.float32([[2]])
    name = f"{LINEAR.name}:a"
    products = FakeQuantizedProducts(PRESETS["int8"], ranges={name: Range(-63.5, 127.0)})
    y, saved = products.forward(LINEAR, a, b)
    rounded_b = np.rint(b * 127) / 127
    np.testing.assert_allclose(y, np.float32([[3, -127, 0]]) @ rounded_b, rtol=1e-6)
    da, db = products.backward(LINEAR, saved, dy)
    np.testing.assert_allclose(da, (2 * rounded_b.T) * np.float32([[1, 0, 1]]), rtol=1e-6)
    np.testing.assert_array_equal(db, np.float32([[6], [-254], [0]]))


def test_keys_and_values_are_clipped_too() -> None:
    """The right operand of attention is an activation, with a range of its own."""
    name = f"{SCORES.name}:b"
    products = FakeQuantizedProducts(PRESETS["e4m3"], ranges={name: Range(-2.0, 2.0)})
    b = np.float32([[1, 3], [-2, -2.5]])
    _, saved = products.forward(SCORES, np.ones((1, 2), np.float32), b)
    _, db = products.backward(SCORES, saved, np.float32([[5, 7]]))
    np.testing.assert_array_equal(db, np.float32([[5, 0], [5, 0]]))


@pytest.mark.parametrize("fmt", ["INT8", "E4M3FN", "E5M2"])
def test_the_largest_element_of_a_range_passes(fmt: str) -> None:
    """In FP8 the end of the range, a product in float32, is now and then just below it."""
    operand, below = Operand(fmt), 0
    for x in numbers(300, 1, 1):
        scale = Scale.of(-abs(float(x[0, 0])), abs(float(x[0, 0])), operand)
        below += scale.scale * np.float32({"INT8": 127, "E4M3FN": 448, "E5M2": 57344}[fmt]) < abs(x)
        assert fake_quantize(x, operand, -1, scale).passes is None
    assert below or fmt == "INT8"


def test_a_derivative_of_clipping() -> None:
    """Beyond the range of each format, and at its ends."""
    x = np.float32([[-449, -448, 0, 1e-9, 448, 449]])
    found = fake_quantize(x, Operand("E4M3FN"), -1, Scale(np.float32(1)))
    assert found.passes is not None
    assert found.passes.tolist() == [[False, True, True, True, True, False]]
    x = np.float32([[-0.1, 0, 255, 255.1]])
    found = fake_quantize(x, Operand("UINT8"), -1, Scale(np.float32(1), 0))
    assert found.passes is not None
    assert found.passes.tolist() == [[False, True, True, False]]
    x = np.float32([[-100.1, -100, 0, 155, 155.1]])
    found = fake_quantize(x, Operand("UINT8"), -1, Scale(np.float32(1), 100))
    assert found.passes is not None
    assert found.passes.tolist() == [[False, True, True, True, False]]
    assert fake_quantize(x, Operand(), -1, None).values is x
    gradient = np.ones_like(x)
    assert fake_quantize(x, Operand("INT8"), -1, None).through(gradient) is gradient


def test_ranges_are_moving_averages() -> None:
    products = FakeQuantizedProducts(PRESETS["int8"], momentum=0.75)
    name = f"{LINEAR.name}:a"
    average: Any = None
    for step in range(4):
        extrema = []
        for part in range(2):  # two uses in one step
            a = numbers(4, 8, seed=10 * step + part) * (step + 1)
            extrema.append((min(a.min(), 0), max(a.max(), 0)))
            products.forward(LINEAR, a, numbers(8, 2))
        seen = np.array([min(low for low, _ in extrema), max(high for _, high in extrema)])
        average = seen if average is None else 0.75 * average + 0.25 * seen
        products = products.following()
        np.testing.assert_allclose(products.ranges[name], average, rtol=1e-6)
    assert f"{LINEAR.name}:b" not in products.ranges  # a weight's scale is its own
    products.forward(SCORES, numbers(4, 8), numbers(8, 4))
    assert f"{SCORES.name}:b" in products.following().ranges


@pytest.mark.parametrize("name", ["int8", "e4m3", "int8-asymmetric"])
def test_the_quantized_model_has_the_ranges_scales(name: str) -> None:
    """With the ranges of a calibration it is the model that apply_recipe makes."""
    model = bert_numpy.load("bert-tiny-sst2")
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    batch = tokenizer.batch(["a warm and funny film", "dull and slow"])
    calibration = bert_numpy.calibrate(model, [batch])
    ranges = {
        name: Range(float(min(found.low, 0)), float(max(found.high, 0)))
        for name, found in calibration.operands.items()
    }
    products = FakeQuantizedProducts(PRESETS[name], ranges=ranges)
    found = quantized_model(model, products)
    right = bert_numpy.apply_recipe(model, name, calibration)
    assert found.plans.keys() == right.plans.keys()
    np.testing.assert_array_equal(found(**batch).logits, right(**batch).logits)
    golden = quantized_model(model, products, golden=True)
    right = bert_numpy.apply_recipe(model, name, calibration, golden=True)
    np.testing.assert_array_equal(golden(**batch).logits, right(**batch).logits)
    missing = replace(products, ranges={})
    with pytest.raises(BertNumpyError, match="query:a: expected a range, found none"):
        quantized_model(model, missing)
    assert len(sites_of(model)) > len(found.plans)


def test_recipes_that_cannot_be_trained_with() -> None:
    for recipe in (
        PRESETS["int8-outliers"],
        PRESETS["int8-smooth"],
        replace(PRESETS["e4m3"], name="mine", attention=TiledAttention()),
        Recipe("over", overrides=(("*.key", SiteRecipe(Operand("INT8"), migration=0.5)),)),
        PRESETS["w4a16-gptq"],
        PRESETS["int8-mse"],
    ):
        with pytest.raises(BertNumpyError, match="without outliers, migration, tiles, GPTQ and"):
            FakeQuantizedProducts(recipe)
    FakeQuantizedProducts(PRESETS["int8-entropy"])  # of activations: moving averages instead


def test_a_block_format_has_the_tensors_scale_of_the_range() -> None:
    """NVFP4 has a scale per tensor beside those of its blocks, which a calibration fixes."""
    x, name = numbers(4, 32), f"{LINEAR.name}:a"
    found = {}
    for high in (1.0, 50.0):
        products = FakeQuantizedProducts(PRESETS["nvfp4"], ranges={name: Range(-high, high)})
        _, (faked, _) = products.forward(LINEAR, x, numbers(32, 5))
        scale = Scale.of(-high, high, PRESETS["nvfp4"].linear.a).scale
        right = quantize(x, "NVFP4", axis=-1, tensor_scale=scale).dequantize()
        np.testing.assert_array_equal(faked.values, right)
        found[high] = faked.values
    assert (found[1.0] != found[50.0]).any()


@pytest.mark.parametrize("name", ["int8", "int8-token", "mxfp8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_leaves_the_ranges(name: str, bad: float) -> None:
    """The step is lost, as its result is NaN, and the next one is as if it had not been."""
    products = FakeQuantizedProducts(PRESETS[name])
    x, weight = numbers(4, 32), numbers(32, 5)
    x[1, 2] = bad
    y, saved = products.forward(LINEAR, x, weight)
    assert np.isnan(y).all()
    assert np.isnan(products.backward(LINEAR, saved, np.ones_like(y))[1]).all()
    assert not products.following().ranges


@pytest.mark.parametrize("name", ["int8", "e4m3"])
def test_the_ranges_of_training_are_those_of_the_quantized_model(name: str) -> None:
    """The products of training are those of the model made of it, except codes beside a tie."""
    recipe = replace(PRESETS[name], name="mine", arithmetic="float32")
    model = bert_numpy.load("bert-tiny-sst2")
    batch = bert_numpy.load_tokenizer("bert-tiny-sst2").batch(["a warm and funny film", "dull"])
    products = FakeQuantizedProducts(recipe)
    tape(model, **batch, products=products)
    products = products.following()
    faked = tape(model, **batch, products=products).outputs["logits"]
    right = quantized_model(model, products)(**batch).logits
    plain = model(**batch).logits
    error = np.abs(faked - right).max()
    assert error < 0.2 * np.abs(plain - right).max()


def test_training_with_rounding_lowers_the_loss_of_the_rounded_model() -> None:
    """With weights of 2 bits: further than training in float32 and rounding afterwards."""
    two_bits = Operand(IntFormat(-1, 1, "int8"), "channel")
    recipe = Recipe("two bits", linear=SiteRecipe(b=two_bits), arithmetic="float32")
    learned = lesson("bert-tiny-sst2", "sst2", REVIEWS, limit=32)
    training = Training(epochs=4, batch_size=8, learning_rate=1e-3, frozen=("embeddings.*",))
    losses = {}
    for name, products in (("float32", None), ("rounded", FakeQuantizedProducts(recipe))):
        fitted = fit(
            learned.model, learned.train, learned.train_labels, training, products=products
        )
        batch = pad(learned.train, learned.model.config.pad_token_id)
        run = tape(fitted.model, **batch, products=FakeQuantizedProducts(recipe))
        losses[name] = cross_entropy(run.outputs["logits"], learned.train_labels)[0]
    assert losses["rounded"] < 0.5 * losses["float32"]

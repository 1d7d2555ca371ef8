"""The magnitudes that shapes let expect, against networks of random weights that compute them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import bert_numpy
from bert_numpy.engines.site import Site
from bert_numpy.model.architectures import ARCHITECTURES
from bert_numpy.model.sites import encoder_sites, expected_shapes, sites_of
from bert_numpy.training.heads import with_head
from bert_numpy.training.losses import cross_entropy
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.tape import tape
from bert_numpy.training.unit_scaling import activation_factors, expected_magnitudes
from npfp8.arrays import Array

BATCH, TOKENS = 64, 16


class Measuring(FloatProducts):
    """Products that note the root of the mean square of every operand and gradient."""

    found: dict[str, float]

    def __init__(self) -> None:
        object.__setattr__(self, "found", {})

    def note(self, site: Site, part: str, x: Array) -> None:
        self.found[f"{site.name}:{part}"] = float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, Any]:
        self.note(site, "a", a)
        self.note(site, "b", b)
        return super().forward(site, a, b)

    def backward(self, site: Site, saved: Any, dy: Array) -> tuple[Array, Array]:
        self.note(site, "dy", dy)
        return super().backward(site, saved, dy)


def unit_model(labels: int, activation: str) -> Any:
    """A model whose weights are what unit scaling assumes, with random texts and labels."""
    model = bert_numpy.load("bert-tiny-sst2")
    model = replace(model, config=replace(model.config, hidden_act=activation))
    model = with_head(model, "sequence classification", [str(i) for i in range(labels)])
    generator, weights = np.random.default_rng(0), {}
    for name, shape in expected_shapes(model.config).items():
        if "LayerNorm" in name or name.endswith("bias"):
            weights[name] = np.full(shape, "LayerNorm.weight" in name, np.float32)
        else:
            fan = 1.0 if "embeddings" in name else shape[1] ** -0.5
            weights[name] = (fan * generator.normal(size=shape)).astype(np.float32)
    model = replace(model, weights=weights)
    ids = generator.integers(0, model.config.vocab_size, (BATCH, TOKENS))
    return model, ids, generator.integers(0, labels, BATCH)


@pytest.mark.parametrize(("labels", "activation"), [(2, "gelu"), (9, "relu")])
def test_the_magnitudes_are_those_of_random_networks(labels: int, activation: str) -> None:
    """Within a factor of 5: the rules leave out the means of GELU, softmax and gradients."""
    model, ids, classes = unit_model(labels, activation)
    products = Measuring()
    taped = tape(model, ids, products=products)
    _, gradient = cross_entropy(taped.outputs["logits"], classes)
    taped.gradients({"logits": gradient})
    expected = expected_magnitudes(model.config, BATCH, TOKENS)
    names = {f"{site.name}:{part}" for site in sites_of(model) for part in ("a", "b", "dy")}
    assert expected.keys() == names == products.found.keys()
    ratios = {name: products.found[name] / expected[name] for name in names}
    far = {name: ratio for name, ratio in ratios.items() if not 0.2 < ratio < 5}
    assert not far
    assert 0.5 < math.exp(np.mean(np.log(list(ratios.values())))) < 2


def test_the_loss_of_tokens_is_a_mean_over_tokens() -> None:
    """Their gradient begins at the terms of the loss, and at the outputs of the head."""
    model, ids, _ = unit_model(2, "gelu")
    head = with_head(model, "token classification", [str(i) for i in range(5)])
    weight = normal_weight(head.weights["classifier.weight"].shape)
    head = replace(head, weights=dict(head.weights) | {"classifier.weight": weight})
    products = Measuring()
    taped = tape(head, ids, products=products)
    classes = np.random.default_rng(0).integers(0, 5, (BATCH, TOKENS))
    _, gradient = cross_entropy(taped.outputs["logits"], classes)
    taped.gradients({"logits": gradient})
    expected = expected_magnitudes(head.config, BATCH * TOKENS, TOKENS)
    assert expected.keys() == products.found.keys()
    ratios = [products.found[name] / value for name, value in expected.items()]
    assert 0.2 < min(ratios) < max(ratios) < 5
    language = with_head(model, "masked language modelling", ()).config
    found = expected_magnitudes(language, 32, 16)["cls.predictions.decoder:dy"]
    assert found == pytest.approx(math.sqrt(30521) / 30522 / 32)


def normal_weight(shape: tuple[int, ...]) -> Array:
    generator = np.random.default_rng(1)
    return (shape[1] ** -0.5 * generator.normal(size=shape)).astype(np.float32)


def test_heads_without_classes_have_no_magnitudes() -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    questions = with_head(model, "question answering", ["a", "b"]).config
    with pytest.raises(bert_numpy.BertNumpyError, match="head: expected one with logits of"):
        expected_magnitudes(questions, 32, 16)
    with pytest.raises(ValueError, match="tokens: expected a number above 0, found 0"):
        expected_magnitudes(model.config, 32, 0)


def test_the_factors_of_attention_and_of_residuals() -> None:
    """One layer by hand: two heads of 64 features, texts of 16 tokens, a sum before LayerNorm."""
    d, n, layer = 64, 16, "encoder.layer.0"
    found = expected_magnitudes(bert_numpy.load("bert-tiny-sst2").config, 32, n)
    attention = f"{layer}.attention"
    context, scores = found[f"{attention}.context:dy"], found[f"{attention}.scores:dy"]
    weights, values = found[f"{attention}.context:a"], found[f"{attention}.context:b"]
    assert weights == pytest.approx(1.31 / n)
    assert found[f"{attention}.output.dense:a"] == pytest.approx(weights * values * math.sqrt(n))
    assert found[f"{attention}.self.value:dy"] == pytest.approx(context * weights * math.sqrt(n))
    back = context * values * math.sqrt(d) * 1.65 / n  # through the weights' softmax
    assert scores == pytest.approx(back / math.sqrt(d))  # and the factor of the scores
    for mine, other in (("query", "b"), ("key", "a")):
        right = scores * found[f"{attention}.scores:{other}"] * math.sqrt(n)
        assert found[f"{attention}.self.{mine}:dy"] == pytest.approx(right)
    residual, inner = found[f"{layer}.output.dense:dy"], found[f"{layer}.intermediate.dense:dy"]
    of_sum = math.hypot(inner * math.sqrt(512 / 128), residual)
    size = math.hypot(found[f"{attention}.output.dense:a"], 1)
    assert found[f"{attention}.output.dense:dy"] == pytest.approx(of_sum / size)


def test_the_factors_of_shapes() -> None:
    """One change of a shape at a time, with the power that the paper gives it."""
    config = bert_numpy.load("bert-tiny-sst2").config
    base = expected_magnitudes(config, 32, 16)
    site = "encoder.layer.0.intermediate.dense"
    longer = expected_magnitudes(config, 64, 16)
    for name in base:
        assert longer[name] / base[name] == pytest.approx(0.5 if name.endswith(":dy") else 1)
    wide = expected_magnitudes(replace(config, intermediate_size=2048), 32, 16)
    assert wide["encoder.layer.0.output.dense:b"] == pytest.approx(2048**-0.5)
    assert wide[f"{site}:dy"] / wide["encoder.layer.0.output.dense:dy"] == pytest.approx(
        math.sqrt(128 / 2048) * activation_factors("gelu")[1]
    )
    context = "encoder.layer.0.attention.context"
    four = expected_magnitudes(config, 32, 64)
    assert four[f"{context}:a"] == pytest.approx(base[f"{context}:a"] / 4)
    assert base[f"{context}:a"] == pytest.approx(1.31 / 16)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("gelu", 0.588, 0.675),  # of the paper's library
        ("relu", math.sqrt((1 - 1 / math.pi) / 2), math.sqrt(0.5)),
        ("tanh", 0.6279, 0.6816),  # by numerical integration elsewhere
    ],
)
def test_factors_of_activations(name: str, forward: float, backward: float) -> None:
    found = activation_factors(name)
    assert found[0] == pytest.approx(forward, abs=6e-4)
    assert found[1] == pytest.approx(backward, rel=0.01)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("albert", {"embedding_size": 32, "num_hidden_groups": 1}),
        ("electra", {"embedding_size": 32}),
        ("roberta", {}),
        ("distilbert", {"type_vocab_size": 0}),
        ("mpnet", {"type_vocab_size": 0, "relative_attention_num_buckets": 32}),
    ],
)
def test_every_family(family: str, changes: dict[str, Any]) -> None:
    """The pass is the one description: every product has magnitudes."""
    known = bert_numpy.load("bert-tiny-sst2").config
    architecture = ARCHITECTURES[family].class_of("sequence classification")
    config = replace(known, model_type=family, architecture=architecture, **changes)
    expected = expected_magnitudes(config, 32, 16)
    pooler = config.head.pooler is not False
    names = {f"{site}:dy" for site in encoder_sites(config)}
    assert names <= expected.keys()
    assert ("pooler.dense:dy" in expected) == pooler
    assert all(0 < value < 100 for value in expected.values())

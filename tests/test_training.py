"""Training: gradients by central differences, losses, AdamW, the loop, and what is written."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
from factories import hard_batches, write_checkpoint, write_encoder
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits
from safetensors.numpy import load_file, save_file
from watching import arrays_of

from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Model,
    apply_recipe,
    calibrate,
    load,
    load_tokenizer,
    save_quantized,
)
from bert_numpy.engines.engine import Engine
from bert_numpy.engines.float import Bfloat16Engine, FloatEngine
from bert_numpy.engines.functions import ACTIVATIONS
from bert_numpy.engines.site import Site
from bert_numpy.model.architectures import ARCHITECTURES, HEADS
from bert_numpy.model.config import BertConfig, Dense, Pooling
from bert_numpy.model.model import batch_of
from bert_numpy.model.sites import WORDS, expected_shapes, sites_of
from bert_numpy.tasks.tokenization import EncodedText
from bert_numpy.training import gradients
from bert_numpy.training.adamw import (
    AdamW,
    adamw_start,
    adamw_step,
    clip_factor,
    global_norm,
    rate,
)
from bert_numpy.training.fake_quantization import FakeQuantizedProducts
from bert_numpy.training.fit import StepReport, Training, fit, shuffled_batches
from bert_numpy.training.fp8_products import FP8Products
from bert_numpy.training.heads import with_head
from bert_numpy.training.losses import LOSSES, cross_entropy, loss_of, mean_squared_error
from bert_numpy.training.products import FloatProducts
from bert_numpy.training.save import save_trained
from bert_numpy.training.scalings import SCALINGS
from bert_numpy.training.tape import TapeEngine, TapeLayout, tape
from bert_numpy.training.unit_scaling import expected_magnitudes
from npfp8 import golden, quantize
from npfp8.arrays import Array

GENERATOR = np.random.default_rng(0)
START = GENERATOR.bit_generator.state


@pytest.fixture(autouse=True)
def from_the_start() -> None:
    """Give each test the same random numbers, whichever tests run before it."""
    GENERATOR.bit_generator.state = START


def normal(*shape: int) -> Array:
    return GENERATOR.normal(size=shape)


# Operations: central differences in float64


def differences(function: Callable[[Array], Array], x: Array, dy: Array, h: float = 1e-6) -> Array:
    """The gradient of ``sum(function(x) dy)``, element by element."""
    found = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        plus, minus = x.copy(), x.copy()
        plus[i] += h
        minus[i] -= h
        found[i] = ((function(plus) - function(minus)) * dy).sum() / (2 * h)
    return found


def close(got: Array, expected: Array, tolerance: float = 1e-8) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= tolerance * max(np.abs(expected).max(), 1)


def softmax(x: Array) -> Array:
    powers = np.exp(x)
    return powers / powers.sum(axis=-1, keepdims=True)


def normalized(x: Array, eps: float = 0.01) -> Array:
    deviation = np.sqrt(x.var(axis=-1, keepdims=True) + float(np.float32(eps)))
    return (x - x.mean(axis=-1, keepdims=True)) / deviation


def test_softmax() -> None:
    x, dy = normal(3, 2, 5), normal(3, 2, 5)
    close(gradients.softmax(softmax(x), dy), differences(softmax, x, dy))


def test_layer_norm() -> None:
    x, weight, b, dy = normal(2, 3, 6), normal(6), normal(6), normal(2, 3, 6)
    dx, d_weight, d_bias = gradients.layer_norm(x, weight, 0.01, dy)
    close(dx, differences(lambda x: normalized(x) * weight + b, x, dy))
    close(d_weight, differences(lambda w: normalized(x) * w + b, weight, dy))
    close(d_bias, differences(lambda b: normalized(x) * weight + b, b, dy))


def test_layer_norm_is_blind_to_a_constant() -> None:
    """A gradient of the rows has no part along what normalising takes off."""
    x, dy = normal(4, 8), normal(4, 8)
    dx, *_ = gradients.layer_norm(x, normal(8), 0.0, dy)
    assert np.abs(dx.sum(axis=-1)).max() < 1e-12
    assert np.abs((dx * x).sum(axis=-1)).max() < 1e-12


def test_normalize() -> None:
    def length_one(x: Array) -> Array:
        return x / np.maximum(np.sqrt((x * x).sum(axis=-1, keepdims=True)), 1e-12)

    x, dy = normal(3, 5), normal(3, 5)
    close(gradients.normalize(x, length_one(x), dy), differences(length_one, x, dy))
    tiny = x * 1e-14
    found = gradients.normalize(tiny, length_one(tiny), dy)
    close(found * 1e-12, differences(length_one, tiny, dy, 1e-15) * 1e-12, 1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 1), (1, 1), (4,), (1,), (2, 3, 4)])
def test_add(shape: tuple[int, ...]) -> None:
    x, other = normal(*shape), normal(2, 3, 4)
    dy = normal(2, 3, 4)
    close(gradients.add(dy, shape), differences(lambda x: x + other, x, dy))


def test_multiply_and_bias() -> None:
    x, dy = normal(3, 4), normal(3, 4)
    close(gradients.multiply(dy, 0.3), differences(lambda x: x * float(np.float32(0.3)), x, dy))
    b = normal(4)
    close(gradients.bias(dy), differences(lambda b: x + b, b, dy))


def test_concatenate() -> None:
    parts, dy = [normal(2, n) for n in (3, 1, 4)], normal(2, 8)
    found = gradients.concatenate([3, 1, 4], dy)
    for i, part in enumerate(parts):
        close(
            found[i],
            differences(
                lambda x, i=i: np.concatenate([*parts[:i], x, *parts[i + 1 :]], axis=1), part, dy
            ),
        )


def test_rows() -> None:
    table, numbers, dy = normal(7, 3), np.array([2, 6, 2, 0, 2, 6]), normal(6, 3)
    close(gradients.rows(numbers, 7, dy), differences(lambda table: table[numbers], table, dy))


@pytest.mark.parametrize("sequences", [1, 3])
def test_position_bias(sequences: int) -> None:
    table, numbers = normal(5, 2), GENERATOR.integers(0, 5, (sequences, 4, 3))
    dy = normal(sequences, 2, 4, 3)

    def looked_up(table: Array) -> Array:
        return table[numbers].transpose(0, 3, 1, 2)

    close(gradients.position_bias(numbers, 5, dy), differences(looked_up, table, dy))


def gelu(x: Array) -> Array:
    return np.vectorize(lambda v: v * 0.5 * math.erfc(-v / math.sqrt(2)))(x)


#: Other forms of the functions than the package's.
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": lambda x: x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "relu": lambda x: (x + abs(x)) / 2,
    "tanh": np.tanh,
    "sigmoid": lambda x: (1 + np.tanh(x / 2)) / 2,
}


@pytest.mark.parametrize("name", gradients.DERIVATIVES)
def test_activations(name: str) -> None:
    function, h = FUNCTIONS[name], 1e-5
    x = np.concatenate([np.linspace(-12, 12, 4001), [1e-3, -1e-3]])
    y = function(x)
    expected = (function(x + h) - function(x - h)) / (2 * h)
    away = np.abs(x) > h  # where ReLU has a corner
    used = next((key for key, value in ACTIVATIONS.items() if value[1] == name), name)
    found = gradients.activation(used, x, y, np.full_like(x, 2.0)) / 2
    assert np.abs(found - expected)[away].max() < 1e-6
    single = gradients.activation(used, x.astype(np.float32), y.astype(np.float32), np.float32(1))
    assert single.dtype == np.float32
    # NumPy's tanh is within 4 units of 2^-24; 1 - t^2 doubles them, times x slope / 2 of up to 9.
    assert np.abs(single - expected)[away].max() < 5e-6


def test_relu_at_zero() -> None:
    """As torch's: the function is not differentiable there."""
    x = np.float32([-0.0, 0.0, 1e-45])
    assert gradients.DERIVATIVES["relu"](x, x).tolist() == [0, 0, 1]


def test_far_out() -> None:
    """No derivative is NaN where its parts overflow; large blocks are done piece by piece."""
    x = np.float32([-1e30, -200, -15, 0, 15, 200, 1e30])
    for name in ("gelu", "silu", "gelu_tanh", "relu"):
        with np.errstate(over="ignore"):
            y = ACTIVATIONS["gelu_new" if name == "gelu_tanh" else name][0](x)
        with np.errstate(all="ignore"):
            d = gradients.DERIVATIVES[name](x, y)
        if name != "gelu_tanh":  # whose cube overflows, as in the function
            assert_same_bits(d[[0, 1, -2, -1]] + 0, np.float32([0, 0, 1, 1]))
        assert np.abs(d[[2, 4]] - [0, 1]).max() < 1e-4
    long = np.linspace(-3, 3, (1 << 14) + 5, dtype=np.float32)
    again = gradients.DERIVATIVES["gelu"](long[::-1], long)[::-1]
    assert_same_bits(again, gradients.DERIVATIVES["gelu"](long, long))


def test_every_function_has_a_derivative() -> None:
    assert {golden_name for _, golden_name in ACTIVATIONS.values()} <= gradients.DERIVATIVES.keys()
    assert gradients.DERIVATIVES.keys() == FUNCTIONS.keys()
    assert gradients.POOLINGS.keys() == golden.POOLINGS.keys()


POOLINGS: dict[str, Callable[[Array, Array], Array]] = {
    "mean": lambda x, _: x.sum(axis=-2) / x.shape[-2],
    "mean_sqrt_len_tokens": lambda x, _: x.sum(axis=-2) / x.shape[-2] ** 0.5,
    "weightedmean": lambda x, p: sum(
        x[:, i] * p[:, i, None] / p.sum(axis=1, keepdims=True) for i in range(x.shape[1])
    ),
    "max": lambda x, _: np.sort(x, axis=-2)[..., -1, :],
    "lasttoken": lambda x, _: x[:, -1],
}


@pytest.mark.parametrize("mode", golden.POOLINGS)
def test_poolings(mode: str) -> None:
    x, places, dy = normal(2, 4, 3), np.array([[1, 2, 3, 4], [1, 2, 4, 5]]), normal(2, 3)
    found = gradients.POOLINGS[mode](x, places, dy)
    close(found, differences(lambda x: POOLINGS[mode](x, places), x, dy))


def test_gradients_are_not_changed() -> None:
    """No function writes into the gradient that it is given."""
    x, dy = normal(4, 6), normal(4, 6)
    dy.setflags(write=False)
    x.setflags(write=False)
    gradients.softmax(x, dy)
    gradients.layer_norm(x, x[0], 0.1, dy)
    gradients.normalize(x, x, dy)
    gradients.rows(np.arange(4), 5, dy)
    for name in ("gelu", "gelu_new", "relu", "silu", "tanh", "sigmoid"):
        gradients.activation(name, x, x, dy)


# The pass: central differences in float64, along a random direction of every parameter

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "embedding_size": 12,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "labels": ("a", "b", "c"),
}

#: Of each family, what differs.
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"type_vocab_size": 0},
    "roberta": {"pad_token_id": 1, "hidden_act": "silu"},
    "electra": {"embedding_size": 8},
    "albert": {"embedding_size": 8, "num_hidden_layers": 3, "num_hidden_groups": 2},
    "mpnet": {"type_vocab_size": 0, "pad_token_id": 1, "relative_attention_num_buckets": 32},
}


def config_of(family: str, head: str = "SequenceClassification", **options: Any) -> BertConfig:
    architecture = f"{ARCHITECTURES[family].class_name}{f'For{head}' if head else 'Model'}"
    return BertConfig(family, architecture, **SIZES | FAMILIES[family] | options)


def random_model(config: BertConfig, dtype: Any = np.float32) -> Model:
    """A model of random parameters; tied ones are one array."""
    generator = np.random.default_rng(1)
    weights = {
        name: generator.normal(0.9 if "LayerNorm.weight" in name else 0, 0.4, shape).astype(dtype)
        for name, shape in expected_shapes(config).items()
    }
    if (decoder := "cls.predictions.decoder.weight") in weights:
        weights[decoder] = weights[WORDS]
    return Model(config, weights)


def batch_for(config: BertConfig, name: str = "holes") -> dict[str, Array]:
    batch = dict(hard_batches(config.vocab_size, 110)[name])
    if config.type_vocab_size < 2:
        batch.pop("token_type_ids", None)
    if config.head.has_choices:
        batch = {key: x[:4].reshape(2, 2, -1) for key, x in batch.items()}
    return batch


def directional(model: Model, batch: Any, dys: dict[str, Array], name: str, h: float) -> Any:
    """The derivative of ``sum(outputs dys)`` along a direction of a parameter; the direction."""
    direction = np.random.default_rng(2).normal(size=model.weights[name].shape)

    def total(step: float) -> float:
        moved = model.weights[name] + step * direction
        of = {k: moved if w is model.weights[name] else w for k, w in model.weights.items()}
        found = arrays_of(replace(model, weights=of)(**batch))
        return sum(float((found[key][dy != 0] * dy[dy != 0]).sum()) for key, dy in dys.items())

    return (total(h) - total(-h)) / (2 * h), direction


FAMILY_CASES = [(family, head) for family in FAMILIES for head in ("SequenceClassification", "")]
FAMILY_CASES += [("bert", head) for head in HEADS if head != "SequenceClassification"]
FAMILY_CASES += [("mpnet", "MaskedLM"), ("albert", "PreTraining"), ("electra", "PreTraining")]


@pytest.mark.parametrize(("family", "head"), FAMILY_CASES)
@pytest.mark.parametrize("kind", ["holes", "position 0 masked"])
def test_every_parameter(
    family: str, head: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ACTIVATIONS, "gelu", (gelu, "gelu"))  # the package's is in float32
    config = config_of(family, head)
    description = config.description
    has_gelu = "gelu" in (description.pooler_activation, description.prediction_activation)
    tolerance = 2e-5 if has_gelu else 1e-6  # its derivative is exact to 1e-6
    model = random_model(config, np.float64)
    batch = batch_for(config, kind)
    run = tape(model, **batch)
    dys = {
        name: np.where(np.isfinite(y), GENERATOR.normal(size=y.shape), 0)
        for name, y in run.outputs.items()
    }
    found = run.gradients(dys)
    distinct = {id(w): name for name, w in reversed(model.weights.items())}
    assert sorted(found) == sorted(distinct.values())
    for name, gradient in found.items():
        assert gradient.dtype == np.float64
        expected, direction = directional(model, batch, dys, name, 1e-5)
        error = abs((gradient * direction).sum() - expected)
        assert error < tolerance * max(abs(expected), 1), name


@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_vectors(normalize: bool) -> None:
    """All poolings at once, Dense modules, and lengths of 1: in float32, as they are made."""
    modes = "+".join(("cls", *golden.POOLINGS))
    layers = (Dense("2_Dense.linear", 5, "tanh", normalize),)
    config = config_of("bert", "", pooling=Pooling(modes, normalize, layers))
    model = random_model(config)
    batch = batch_for(config)
    run = tape(model, **batch)
    dy = GENERATOR.normal(size=run.outputs["sentence_embedding"].shape)
    found = run.gradients({"sentence_embedding": dy.astype(np.float32)})
    assert sorted(found) == sorted(model.weights)
    for name in (WORDS, "2_Dense.linear.weight", "encoder.layer.1.output.dense.weight"):
        expected, direction = directional(model, batch, {"sentence_embedding": dy}, name, 3e-4)
        total = (found[name].astype(np.float64) * direction).sum()
        assert abs(total - expected) < 0.01 * max(abs(expected), 1), name


# Memory


def freed(arrays: list[Any]) -> list[bool]:
    """Tell which arrays of weak references are gone."""
    return [array() is None for array in arrays]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is in a circle of references stays in memory."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("name", ["float32", "int8", "delayed", "unit"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tape_is_freed_with_its_run(family: str, name: str) -> None:
    """Nor do the products of the next step keep an array of this one."""
    config = config_of(family)
    products: Any = FloatProducts()
    if name == "int8":
        products = FakeQuantizedProducts(PRESETS[name])
    elif name in SCALINGS:
        products = FP8Products(SCALINGS[name], expected=expected_magnitudes(config, 8, 32))
    run = tape(random_model(config), **batch_for(config), products=products)
    run.gradients({"logits": np.ones_like(run.outputs["logits"])})
    following = products.following()
    arrays = [ref(node.value) for step in run._tape.steps for node in step.results]
    assert not any(freed(arrays))
    del run, products
    assert all(freed(arrays))
    assert following is not None


@pytest.mark.usefixtures("no_collection")
def test_a_tape_of_sentences_is_freed() -> None:
    config = config_of("bert", "", pooling=Pooling("+".join(golden.POOLINGS), True))
    run = tape(random_model(config), **batch_for(config))
    arrays = [ref(node.value) for step in run._tape.steps for node in step.results]
    del run
    assert all(freed(arrays))


@pytest.mark.usefixtures("no_collection")
def test_training_frees_each_step() -> None:
    """When a step is over, no result of its products is left, and none of an earlier one."""
    made: list[Any] = []

    class Watching(FloatProducts):
        def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, Any]:
            y, saved = super().forward(site, a, b)
            made.append(ref(y))
            return y, saved

    left = []
    encoded = [EncodedText((1, *range(2, 30), 3), (0,) * 30, False)] * 8
    fit(
        random_model(config_of("bert")),
        encoded,
        np.zeros(8, np.int64),
        Training(epochs=3, batch_size=8),
        products=Watching(),
        watch=lambda report: left.append(len(made) - sum(freed(made))),
    )
    assert len(made) > 30
    assert left == [0, 0, 0]


# The tape


@pytest.fixture(scope="module")
def model() -> Model:
    return load("bert-tiny-sst2")


@pytest.fixture(scope="module")
def batch() -> dict[str, Array]:
    texts = ["a warm and funny film", "dull", "not a good plot , and very bad actors"]
    return load_tokenizer("bert-tiny-sst2").batch(texts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", [FloatEngine, lambda w, b: Bfloat16Engine(FloatEngine(w, b))])
def test_the_values_are_the_engines(family: str, engine: Any) -> None:
    """Bit for bit, for every kind of mask. (Products are float32: a bfloat16 one is rounded.)"""
    config = config_of(family, hidden_act="gelu")
    model = replace(random_model(config), engine=engine)
    for name in hard_batches(40, 110):
        given = batch_for(config, name)
        expected = arrays_of(replace(model, engine=FloatEngine)(**given))
        run = tape(model, **given)
        assert run.outputs.keys() == expected.keys()
        for key, y in run.outputs.items():
            if engine is FloatEngine:
                assert_same_bits(y, expected[key])
            else:
                assert 0 < np.abs(y - expected[key]).max() < 0.3


def test_every_operation_is_on_the_tape() -> None:
    """An operation left to an inner engine would hand nodes to it."""
    fused = {"attention", "activated_linear"}
    operations = {name for name, value in vars(Engine).items() if callable(value)} - fused
    operations = {name for name in operations if not name.startswith("_")}
    assert operations <= vars(TapeEngine).keys()
    assert not TapeEngine.fuses_attention
    assert not TapeEngine.fuses_activation
    moves = {"split_heads", "merge_heads", "texts", "join", "first", "padded", "column"}
    assert moves <= vars(TapeLayout).keys()


def test_parameters_that_are_not_trained(model: Model, batch: Any) -> None:
    dy = {"logits": np.float32([[1, -1], [2, 0], [0.5, 1]])}
    every = tape(model, **batch).gradients(dy)
    assert every.keys() == model.weights.keys()
    some = tape(model, **batch, trains=lambda name: "layer.1" in name)
    found = some.gradients(dy)
    assert found.keys() == {name for name in every if "layer.1" in name}
    for name, gradient in found.items():
        assert_same_bits(gradient, every[name])
    assert len(some._tape.steps) < len(tape(model, **batch)._tape.steps)
    assert tape(model, **batch, trains=lambda _: False).gradients(dy) == {}


def test_what_an_output_does_not_depend_on(model: Model, batch: Any) -> None:
    run = tape(model, **batch)
    found = run.gradients({"last_hidden_state": np.ones_like(run.outputs["last_hidden_state"])})
    assert found.keys() == {n for n in model.weights if not n.startswith(("pooler", "classifier"))}
    assert run.gradients({}) == {}


def test_gradients_add_up_over_outputs_and_repeat(model: Model, batch: Any) -> None:
    """A run can be gone back several times, and the way back is linear."""
    run = tape(model, **batch)
    a = {"logits": np.float32([[1, -1], [2, 0], [0.5, 1]])}
    b = {"pooler_output": GENERATOR.normal(size=(3, 128)).astype(np.float32)}
    first, second, both = run.gradients(a), run.gradients(b), run.gradients(a | b)
    again = run.gradients(a)
    for name, gradient in both.items():
        assert_same_bits(again[name], first[name])
        parts = first[name] + second.get(name, 0)
        assert np.abs(gradient - parts).max() <= 1e-5 * max(np.abs(parts).max(), 1)


def test_what_a_mask_hides_has_no_gradient() -> None:
    """Position 0 is computed even if it is masked, but its logits are then -infinity."""
    config = config_of("bert", "QuestionAnswering", hidden_act="gelu")
    given = batch_for(config, "position 0 masked")
    run = tape(random_model(config), **given)
    dy = GENERATOR.normal(size=given["attention_mask"].shape).astype(np.float32)
    hidden = {"start_logits": dy * given["attention_mask"]}
    assert (hidden["start_logits"] != dy).any()
    shown = run.gradients({"start_logits": dy})
    for name, gradient in run.gradients(hidden).items():
        assert_same_bits(shown[name], gradient)


def test_tied_parameters_have_one_gradient() -> None:
    config = config_of("bert", "MaskedLM", hidden_act="gelu")
    tied = random_model(config)
    decoder = "cls.predictions.decoder.weight"
    assert tied.weights[decoder] is tied.weights[WORDS]
    loose = replace(tied, weights=tied.weights | {decoder: tied.weights[WORDS].copy()})
    given = batch_for(config)
    dy = {"logits": GENERATOR.normal(size=(5, 24, 40)).astype(np.float32)}
    one, two = tape(tied, **given).gradients(dy), tape(loose, **given).gradients(dy)
    assert decoder not in one
    expected = two[WORDS] + two[decoder]
    assert np.abs(one[WORDS] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_quantized_model_is_refused(model: Model) -> None:
    name = "encoder.layer.0.attention.self.query.weight"
    codes = quantize(np.asarray(model.weights[name]), "E4M3FN", 1.0)
    with pytest.raises(BertNumpyError, match=f"{name}: expected float32 numbers to train"):
        tape(replace(model, weights=dict(model.weights) | {name: codes}), [[101, 102]])


@dataclass
class Seen:
    """Products that note what they are asked."""

    forwards: list[tuple[Site, Array, Array]] = field(default_factory=list)
    backwards: list[tuple[Site, Any]] = field(default_factory=list)
    followed: int = 0

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, int]:
        self.forwards.append((site, a, b))
        return FloatProducts().forward(site, a, b)[0], len(self.forwards) - 1

    def backward(self, site: Site, saved: int, dy: Array) -> tuple[Array, Array]:
        self.backwards.append((site, saved))
        dy.setflags(write=False)
        return FloatProducts().backward(site, self.forwards[saved][1:], dy)

    def following(self) -> Seen:
        return Seen(followed=self.followed + 1)


def test_products_are_asked(model: Model, batch: Any) -> None:
    """All sites, forward in the pass's order and back in the reverse one, with its operands."""
    seen = Seen()
    run = tape(model, **batch, products=seen)
    dy = {"logits": np.float32([[1, -1], [2, 0], [0.5, 1]])}
    found = run.gradients(dy)
    assert list(dict.fromkeys(site for site, *_ in seen.forwards)) == list(sites_of(model))
    assert [site for site, _ in seen.backwards] == [site for site, *_ in reversed(seen.forwards)]
    assert [saved for _, saved in seen.backwards] == [*range(len(seen.forwards))][::-1]
    for site, a, b in seen.forwards:
        if not site.is_attention:
            weight = model.weights[f"{site.name}.weight"]
            assert np.shares_memory(b, weight)
            assert b.shape == weight.shape[::-1]
            assert a.ndim == 2
        else:
            assert a.ndim == b.ndim == 4
            assert a.shape[:2] == b.shape[:2]
    (query, key, value), *_ = [
        [a for site, a, _ in seen.forwards if f"layer.{i}.attention.self" in site.name]
        for i in (0, 1)
    ]
    assert query is key is value
    for name, gradient in tape(model, **batch).gradients(dy).items():
        assert_same_bits(found[name], gradient)


# Losses


def test_cross_entropy() -> None:
    logits, labels = normal(3, 4, 5), GENERATOR.integers(-1, 5, (3, 4))
    labels[0, 0], labels[1, 1] = -100, 2

    def loss(x: Array) -> Array:
        terms = -np.log(softmax(x))
        picked = [terms[i][labels[i]] for i in np.ndindex(labels.shape) if labels[i] >= 0]
        return np.array(np.mean(picked))

    value, gradient = cross_entropy(logits, labels)
    assert value == pytest.approx(float(loss(logits)), rel=1e-12)
    close(gradient, differences(loss, logits, np.array(1.0)))
    shifted, same = cross_entropy(logits + 700, labels)
    assert shifted == pytest.approx(value)
    close(same, gradient, 1e-9)
    nothing, zero = cross_entropy(logits, np.full((3, 4), -1))
    assert (nothing, zero.any()) == (0.0, False)


def test_cross_entropy_with_minus_infinity() -> None:
    """A logit that a mask set to -infinity takes no part."""
    logits = np.float32([[1, -math.inf, 2]])
    value, gradient = cross_entropy(logits, np.array([2]))
    expected, of_two = cross_entropy(logits[:, [0, 2]], np.array([1]))
    assert value == expected
    assert_same_bits(gradient[:, [0, 2]], of_two)
    assert gradient[0, 1] == 0
    assert gradient.dtype == np.float32


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_mean_squared_error(shape: tuple[int, ...]) -> None:
    scores, labels = normal(*shape), normal(4)
    value, gradient = mean_squared_error(scores, labels)
    assert value == pytest.approx(np.mean((scores.ravel() - labels) ** 2))
    close(
        gradient,
        differences(lambda x: np.array(np.mean((x.ravel() - labels) ** 2)), scores, np.array(1.0)),
    )


def test_the_loss_of_a_head() -> None:
    scores = config_of("bert", labels=("score",))
    value, found = loss_of(scores)({"logits": np.float32([[3], [5]])}, np.array([2.0, 5.0]))
    assert (value, found["logits"].tolist()) == (0.5, [[1], [0]])
    classes = {"logits": np.zeros((2, 3), np.float32)}
    assert loss_of(config_of("bert"))(classes, np.array([0, 2]))[0] == pytest.approx(math.log(3))
    start, end = np.zeros((2, 4), np.float32), np.float32([[0, 0, 0, 9], [9, 0, 0, 0]])
    spans = {"start_logits": start, "end_logits": end}
    questions = loss_of(config_of("bert", "QuestionAnswering"))
    value, found = questions(spans, np.array([[0, 3], [2, 0]]))
    of_end = math.log(1 + 3 * math.exp(-9))
    assert value == pytest.approx((math.log(4) + of_end) / 2, rel=1e-6)
    assert found["start_logits"][1].tolist() == [0.0625, 0.0625, -0.1875, 0.0625]
    with pytest.raises(BertNumpyError, match=r"head: expected one of .*, found none"):
        loss_of(config_of("bert", ""))
    assert LOSSES.keys() <= {head.name for head in HEADS.values()}


# AdamW


def test_adamw() -> None:
    """Against the averages written out as sums over all gradients so far, in float64."""
    constants = AdamW(0.8, 0.9, 1e-3, 0.1)
    shapes = {"w": (3, 4), "b": (5,), "rare": (2, 2)}
    start = {name: normal(*shape).astype(np.float32) for name, shape in shapes.items()}
    weights = {name: w.copy() for name, w in start.items()}
    expected = {name: w.astype(np.float64) for name, w in start.items()}
    state = adamw_start(weights)
    seen: dict[str, list[Array]] = {name: [] for name in shapes}
    for step in range(1, 12):
        given = {name: normal(*shape).astype(np.float32) for name, shape in shapes.items()}
        learning_rate, factor = 0.1 / step, 0.5 if step % 2 else 1.0
        state = adamw_step(weights, given, state, constants, learning_rate, factor)
        assert state.step == step
        for name, gradient in given.items():
            seen[name].append(gradient.astype(np.float64) * factor)
            ages = np.arange(step)[::-1]
            first, second = (
                sum(w * g**power for w, g in zip(beta**ages, seen[name], strict=True))
                / sum(beta**ages)
                for beta, power in ((0.8, 1), (0.9, 2))
            )
            decay = 0 if name == "b" else 0.1
            expected[name] *= 1 - learning_rate * decay
            expected[name] -= learning_rate * first / (np.sqrt(second) + 1e-3)
            assert np.abs(weights[name] - expected[name]).max() < 3e-6


def test_adamw_goes_by_pieces() -> None:
    """An array of several blocks: as its parts alone. Without a gradient nothing changes."""
    whole = {"w": normal(30_001, 1).astype(np.float32), "other": np.ones((2, 2), np.float32)}
    dw = normal(30_001, 1).astype(np.float32)
    parts = [{"w": whole["w"][i : i + 7000].copy()} for i in range(0, 30_001, 7000)]
    adamw_step(whole, {"w": dw}, adamw_start(whole), AdamW(), 0.1)
    for number, part in enumerate(parts):
        piece = {"w": dw[number * 7000 : (number + 1) * 7000]}
        adamw_step(part, piece, adamw_start(part), AdamW(), 0.1)
    assert_same_bits(np.concatenate([part["w"] for part in parts]), whole["w"])
    assert_same_bits(whole["other"], np.ones((2, 2), np.float32))


def test_norms_and_rates() -> None:
    given = {"w": normal(40, 30).astype(np.float32), "b": normal(7).astype(np.float32)}
    every = np.concatenate([g.ravel() for g in given.values()]).astype(np.float64)
    norm = global_norm(given)
    assert norm == pytest.approx(np.sqrt((every**2).sum()), rel=1e-6)
    assert clip_factor(norm, norm / 4) * norm == pytest.approx(norm / 4)
    assert clip_factor(norm, norm) == clip_factor(0.0, 1.0) == 1.0
    rates = [rate(step, 20, 0.25) for step in range(1, 21)]
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert np.diff(rates[4:])[1:] == pytest.approx([-1 / 15] * 14)
    assert rates[-1] == pytest.approx(1 / 15)
    assert [rate(step, 2, 0.0) for step in (1, 2)] == [1.0, 0.5]
    assert [rate(step, 2, 1.0) for step in (1, 2)] == [0.5, 1.0]


# The loop


@given(st.lists(st.integers(1, 9), min_size=1, max_size=300), st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_has_every_row_once(lengths: list[int], batch_size: int, seed: int) -> None:
    count = -(-len(lengths) // batch_size)
    found = list(islice(shuffled_batches(np.array(lengths), batch_size, seed), 2 * count))
    again = list(islice(shuffled_batches(np.array(lengths), batch_size, seed), 2 * count))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    for epoch in (found[:count], found[count:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(len(lengths)))
        assert max(map(len, epoch)) <= batch_size


def test_batches_have_few_lengths_and_differ() -> None:
    lengths = np.arange(1280) % 64
    first, second = (list(islice(shuffled_batches(lengths, 8, seed), 160)) for seed in (0, 1))
    assert np.mean([len(set(lengths[rows])) for rows in first]) < 2.5
    assert [rows.tolist() for rows in first] != [rows.tolist() for rows in second]
    means = [lengths[rows].mean() for rows in first]
    assert abs(np.corrcoef(means, np.arange(160))[0, 1]) < 0.3  # not from short to long


def test_every_epoch_has_other_batches() -> None:
    """Texts of one length are not always together: they are sorted in pools of the shuffle."""
    batches = shuffled_batches(np.arange(1024), 2, seed=0)
    first, second = ({frozenset(rows.tolist()) for rows in islice(batches, 512)} for _ in range(2))
    assert len(first & second) < 0.3 * 512


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, list[EncodedText], Array]:
    """A small model, and texts whose class is the presence of a word."""
    folder = write_checkpoint(tmp_path_factory.mktemp("toy"))
    generator = np.random.default_rng(0)
    words = ["film", "movie", "plot", "actor", "an", "the", "is"]
    texts, labels = [], []
    for i in range(96):
        chosen = list(generator.choice(words, generator.integers(1, 8)))
        if i % 2:
            chosen.insert(int(generator.integers(0, len(chosen) + 1)), "good")
        texts.append(" ".join(chosen))
        labels.append(i % 2)
    return load(folder), load_tokenizer(folder).encode(texts), np.array(labels)


TOY = Training(epochs=6, batch_size=16, learning_rate=3e-3)


def test_it_learns(toy: Any) -> None:
    model, encoded, labels = toy
    before = {name: w.copy() for name, w in model.weights.items()}
    fitted = fit(model, encoded, labels, TOY)
    assert len(fitted.losses) == 36
    assert np.mean(fitted.losses[-6:]) < 0.1 < np.mean(fitted.losses[:6])
    assert fitted.skipped == ()
    right = [
        int(fitted.model([one.input_ids]).logits.argmax()) == label
        for one, label in zip(encoded, labels, strict=True)
    ]
    assert all(right)
    for name, w in before.items():  # the given model is as it was
        assert_same_bits(np.asarray(model.weights[name]), w)
        assert (fitted.model.weights[name] != w).any(), name


def test_the_same_seed_gives_the_same_model(toy: Any) -> None:
    one, two, other = (fit(*toy, replace(TOY, epochs=1, seed=seed)) for seed in (3, 3, 4))
    assert one.losses == two.losses != other.losses
    for name, w in one.model.weights.items():
        assert_same_bits(np.asarray(two.model.weights[name]), w)


def test_frozen_parameters_stay(toy: Any) -> None:
    frozen = ("embeddings.*", "*.bias")
    fitted = fit(*toy, replace(TOY, epochs=0.5, frozen=frozen))
    assert len(fitted.losses) == 3
    for name, w in fitted.model.weights.items():
        stays = name.startswith("embeddings.") or name.endswith(".bias")
        assert (w == toy[0].weights[name]).all() == stays, name


def test_the_course_of_the_training(toy: Any) -> None:
    reports = []

    def watch(report: StepReport) -> None:
        assert report.products.followed == report.step - 1
        reports.append((report, report.model.weights["classifier.bias"].copy()))

    fitted = fit(*toy, replace(TOY, epochs=1), products=Seen(), watch=watch)
    assert fitted.products.followed == 6
    assert [report.loss for report, _ in reports] == list(fitted.losses)
    assert [report.step for report, _ in reports] == [1, 2, 3, 4, 5, 6]
    assert {report.steps for report, _ in reports} == {6}
    rates = [report.learning_rate for report, _ in reports]
    assert rates == pytest.approx([3e-3 * rate(step, 6, 0.1) for step in range(1, 7)])
    assert all(report.norm > 0 for report, _ in reports)
    biases = [bias for _, bias in reports]
    assert all((a != b).any() for a, b in pairwise(biases))
    assert_same_bits(biases[-1], np.asarray(fitted.model.weights["classifier.bias"]))


def test_a_step_that_is_not_finite_changes_nothing(toy: Any) -> None:
    base = loss_of(toy[0].config)
    calls = []

    def loss(outputs: Any, labels: Array) -> Any:
        calls.append(1)
        value, found = base(outputs, labels)
        return value, {k: v * (math.nan if len(calls) == 2 else 1) for k, v in found.items()}

    weights = []
    fitted = fit(
        *toy,
        replace(TOY, epochs=0.5),
        loss=loss,
        watch=lambda report: weights.append(report.model.weights["classifier.bias"].copy()),
    )
    assert fitted.skipped == (2,)
    assert_same_bits(weights[0], weights[1])
    assert (weights[1] != weights[2]).any()
    assert np.isfinite(weights[2]).all()


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (2, 6), (0.5, 2), (0.1, 1)])
def test_a_last_batch_that_is_not_full_counts(toy: Any, epochs: float, steps: int) -> None:
    model, encoded, labels = toy
    training = Training(epochs=epochs, batch_size=4, learning_rate=0)
    fitted = fit(model, encoded[:10], labels[:10], training)
    assert len(fitted.losses) == steps
    if epochs == 1:  # with the rate 0 the model stays, and the losses are means of batches
        every = fit(model, encoded[:10], labels[:10], replace(training, batch_size=10)).losses[0]
        order = shuffled_batches(np.array([len(one.input_ids) for one in encoded[:10]]), 4, 0)
        sizes = [len(rows) for rows in islice(order, 3)]
        assert np.average(fitted.losses, weights=sizes) == pytest.approx(every, rel=1e-5)


def test_gradients_are_clipped(toy: Any) -> None:
    """Without memory, and with a large eps, a step of AdamW is the gradient over eps."""
    optimizer = AdamW(0.0, 0.0, 1e4, 0.0)
    steps = []
    for clip in (0.1, 0.2, 1e9):
        training = replace(TOY, epochs=1 / 6, warmup=0, learning_rate=1e4, clip=clip)
        training = replace(training, optimizer=optimizer)
        fitted = fit(*toy, training)
        assert len(fitted.losses) == 1
        moved = [fitted.model.weights[name] - w for name, w in toy[0].weights.items()]
        steps.append(math.sqrt(sum(float((x.astype(np.float64) ** 2).sum()) for x in moved)))
    assert steps[0] == pytest.approx(0.1, rel=1e-3)
    assert steps[1] == pytest.approx(0.2, rel=1e-3)
    assert steps[2] > 1


def test_steps_have_the_learning_rate_of_the_schedule(toy: Any) -> None:
    """With the optimizer of the test above and a small norm, a step is as long as its rate."""
    optimizer = AdamW(0.0, 0.0, 1e4, 0.0)
    training = Training(4 / 6, 16, 1e4, warmup=0.5, clip=0.01, optimizer=optimizer)
    seen = [{name: np.array(w, np.float64) for name, w in toy[0].weights.items()}]

    def watch(report: StepReport) -> None:
        seen.append({name: np.array(w, np.float64) for name, w in report.model.weights.items()})

    fit(*toy, training, watch=watch)
    steps = [
        math.sqrt(sum(float(np.square(b[name] - a[name]).sum()) for name in a))
        for a, b in pairwise(seen)
    ]
    assert steps == pytest.approx([0.005, 0.01, 0.01, 0.005], rel=1e-2)


def test_ties_last(toy: Any) -> None:
    model = with_head(toy[0], "masked language modelling", ())
    decoder = "cls.predictions.decoder.weight"
    assert model.weights[decoder] is model.weights[WORDS]
    longest = max(len(one.input_ids) for one in toy[1])
    labels = np.full((96, longest), -100)
    for row, one in enumerate(toy[1]):
        labels[row, : len(one.input_ids)] = one.input_ids

    fitted = fit(model, toy[1], labels, replace(TOY, epochs=2))
    assert fitted.losses[-1] < fitted.losses[0] / 1.3
    assert fitted.model.weights[decoder] is fitted.model.weights[WORDS]
    assert (fitted.model.weights[WORDS] != model.weights[WORDS]).any()


def test_examples_and_labels_must_fit(toy: Any) -> None:
    with pytest.raises(BertNumpyError, match="as many labels, found 96 and 3"):
        fit(toy[0], toy[1], np.zeros(3, int))
    with pytest.raises(BertNumpyError, match="found 0 and 0"):
        fit(toy[0], [], np.zeros(0, int))
    with pytest.raises(TypeError, match="labels: expected an array of numbers, a row per example"):
        fit(toy[0], toy[1], np.array(["good"] * 96))
    with pytest.raises(TypeError, match="products: expected an object with forward, backward"):
        fit(*toy, products=FloatProducts)  # type: ignore[arg-type] # the class


def test_labels_of_tokens_are_cut_to_the_batch(toy: Any) -> None:
    """Their rows are as long as the longest text, and a batch's logits as its own longest."""
    model, encoded, _ = toy
    model = with_head(model, "token classification", ["other", "good"])
    good = id_of_the_word(encoded)
    longest = max(len(one.input_ids) for one in encoded)
    labels = np.full((96, longest), -100)
    for row, one in enumerate(encoded):
        labels[row, : len(one.input_ids)] = np.array(one.input_ids) == good
    fitted = fit(model, encoded, labels, replace(TOY, epochs=12, learning_rate=1e-2))
    for row in range(8):
        found = fitted.model([encoded[row].input_ids]).logits[0].argmax(axis=-1)
        assert found.tolist() == labels[row, : len(found)].tolist()
    loss = loss_of(model.config)
    outputs = {"logits": np.zeros((2, 3, 2), np.float32)}
    value, _ = loss(outputs, np.array([[1, 0, 1, -1], [0, -1, -1, -1]]))
    assert value == pytest.approx(math.log(2))
    with pytest.raises(BertNumpyError, match="negative from token 3 on"):
        loss(outputs, np.array([[1, 0, 1, 0], [0, -1, -1, -1]]))


def test_spans_are_learned(toy: Any) -> None:
    """Questions: the first and the last token of "good", in the texts that have it."""
    model, encoded, _ = toy
    good = id_of_the_word(encoded)
    model = with_head(model, "question answering", ["start", "end"])
    labels = np.array(
        [[one.input_ids.index(good)] * 2 if i % 2 else [-1, -1] for i, one in enumerate(encoded)]
    )
    fitted = fit(model, encoded, labels, replace(TOY, epochs=12, learning_rate=1e-2))
    for row in range(1, 17, 2):
        found = fitted.model([encoded[row].input_ids])
        assert [int(x.argmax()) for x in (found.start_logits, found.end_logits)] == [*labels[row]]


def test_a_quantized_model_is_not_trained(model: Model, batch: Any, tmp_path: Path) -> None:
    encoded = load_tokenizer("bert-tiny-sst2").encode(["dull"])
    quantized = apply_recipe(model, "int8", calibrate(model, [batch]))
    with pytest.raises(BertNumpyError, match=r"query.weight: expected float32"):
        fit(quantized, encoded, np.array([0]))
    with pytest.raises(BertNumpyError, match=r"query.weight: expected float32"):
        save_trained(quantized, "bert-tiny-sst2", tmp_path / "out")


def id_of_the_word(encoded: list[EncodedText]) -> int:
    """The id that every second text has and no other: that of "good"."""
    even, odd = (set.union(*(set(one.input_ids) for one in encoded[i::2])) for i in (0, 1))
    (found,) = odd - even
    return found


def test_labels_must_fit_the_outputs() -> None:
    logits = np.zeros((2, 3), np.float32)
    for labels, message in (
        ([0, 3], "labels: expected numbers below 3, found 3"),
        ([0], r"labels: expected one per row of logits \(2, 3\), found \(1,\)"),
        ([[0, 1]], r"labels: expected one per row of logits \(2, 3\), found \(1, 2\)"),
    ):
        with pytest.raises(BertNumpyError, match=message):
            cross_entropy(logits, np.array(labels))
    with pytest.raises(TypeError, match="labels: expected integers, found float64"):
        cross_entropy(logits, np.array([0.0, 1.0]))
    with pytest.raises(TypeError, match="logits: expected floats, found int64"):
        cross_entropy(np.zeros((1, 2), np.int64), np.array([0]))
    with pytest.raises(BertNumpyError, match=r"labels: expected 6 scores, found \(2,\)"):
        mean_squared_error(logits, np.array([0.0, 1.0]))
    spans = {"start_logits": logits, "end_logits": logits}
    with pytest.raises(BertNumpyError, match="first and a last token"):
        loss_of(config_of("bert", "QuestionAnswering"))(spans, np.array([0, 1]))


def test_problems_of_classifiers() -> None:
    """transformers' ``problem_type`` decides; without it, one label stands for a score."""
    outputs = {"logits": np.float32([[3, 1]])}
    scores = config_of("bert", labels=("a", "b"), problem_type="regression")
    assert loss_of(scores)(outputs, np.array([[2.0, 1.0]]))[0] == 0.5
    classes = config_of("bert", labels=("a",), problem_type="single_label_classification")
    assert loss_of(classes)({"logits": np.float32([[3]])}, np.array([0]))[0] == 0
    several = config_of("bert", labels=("a", "b"), problem_type="multi_label_classification")
    with pytest.raises(BertNumpyError, match="problem_type: expected one label per text"):
        loss_of(several)


def test_parameters_stored_by_columns_are_trained(toy: Any) -> None:
    model, encoded, labels = toy
    right = fit(model, encoded, labels, replace(TOY, epochs=1))
    columns = {name: np.asfortranarray(w) for name, w in model.weights.items()}
    found = fit(replace(model, weights=columns), encoded, labels, replace(TOY, epochs=1))
    for name, w in right.model.weights.items():
        assert_same_bits(np.asarray(found.model.weights[name]), np.asarray(w))
    by_columns = {"w": np.asfortranarray(np.ones((2, 3), np.float32))}
    with pytest.raises(ValueError, match="w: expected a C-contiguous array"):
        adamw_step(by_columns, by_columns, adamw_start(by_columns), AdamW(), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: expected a number above 0, found 0"),
        ({"epochs": math.inf}, "epochs: expected a number above 0, found inf"),
        ({"epochs": math.nan}, "epochs: expected a number above 0, found nan"),
        ({"batch_size": 0}, "batch_size: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"learning_rate": -1e-3}, "learning_rate: expected at least 0, found -0.001"),
        ({"warmup": 1.5}, "warmup: expected a share from 0 to 1, found 1.5"),
        ({"warmup": -0.5}, "warmup: expected a share from 0 to 1, found -0.5"),
        ({"clip": 0.0}, "clip: expected a number above 0, found 0.0"),
        ({"frozen": "embeddings.*"}, "frozen: expected a tuple of patterns, found str"),
        ({"batch_size": 2.5}, "batch_size: expected an integer, found float"),
    ],
)
def test_numbers_of_a_training_in_range(options: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        Training(**options)


def test_constants_of_adamw_in_range() -> None:
    for options in ({"beta1": 1.0}, {"beta2": -0.1}, {"eps": 0.0}, {"weight_decay": math.nan}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected .*, found"):
            AdamW(**options)
    Training(warmup=1, clip=math.inf, learning_rate=0, optimizer=AdamW(0, 0, 1, 0))


def test_a_pattern_that_freezes_nothing(toy: Any) -> None:
    with pytest.raises(BertNumpyError, match=r"frozen: expected patterns of .* 'embedings"):
        fit(*toy, replace(TOY, frozen=("embedings.*",)))


def test_gradients_of_outputs_must_fit(model: Model, batch: Any) -> None:
    run = tape(model, **batch)
    with pytest.raises(BertNumpyError, match=r"of_outputs: expected some of .*, found 'logit'"):
        run.gradients({"logit": np.zeros((3, 2), np.float32)})
    with pytest.raises(BertNumpyError, match=r"logits: expected a gradient \(3, 2\), found"):
        run.gradients({"logits": np.zeros((2, 3), np.float32)})


# New heads, and files


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_new_heads(family: str, head: str) -> None:
    model = random_model(config_of(family, "MaskedLM", problem_type="regression"))
    name = ARCHITECTURES[family].head(f"{ARCHITECTURES[family].class_name}For{head}").name
    found = with_head(model, name, ["a", "b"], seed=1)
    assert found.config.head.name == name
    assert found.config.labels == ("a", "b")
    assert found.config.problem_type is None
    held = {name: w.shape for name, w in found.weights.items()}
    needs_pooler = found.config.head.pooler
    assert held == dict(expected_shapes(found.config, bool(needs_pooler)))
    for name, w in found.weights.items():
        if name.startswith(("embeddings", "encoder.")):
            assert w is model.weights[name]
        elif name == "cls.predictions.decoder.weight":  # tied
            assert w is found.weights[WORDS]
        elif "LayerNorm.weight" in name:
            assert (w == 1).all()
        else:
            assert w.any() != name.endswith("bias")
    same, other = (with_head(model, found.config.head.name, ["a"], seed) for seed in (1, 2))
    if "classifier.weight" in same.weights:
        assert (same.weights["classifier.weight"] != other.weights["classifier.weight"]).any()


def test_an_untied_decoder_has_numbers_of_its_own() -> None:
    model = random_model(config_of("bert", tie_word_embeddings=False))
    found = with_head(model, "masked language modelling", ())
    decoder = found.weights["cls.predictions.decoder.weight"]
    assert np.std(decoder) == pytest.approx(0.02, rel=0.1)
    assert not np.shares_memory(decoder, np.asarray(found.weights[WORDS]))


def test_a_pooler_is_kept(model: Model) -> None:
    found = with_head(model, "multiple choice", ())
    assert found.weights["pooler.dense.weight"] is model.weights["pooler.dense.weight"]
    deviation = with_head(model, "masked language modelling", ()).weights[
        "cls.predictions.transform.dense.weight"
    ]
    assert np.std(deviation) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    "head", ["sequence classification", "masked language modelling", "question answering"]
)
def test_saved_and_loaded(head: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    model = with_head(load(source), head, ["x", "y"])
    if (decoder := "cls.predictions.decoder.weight") in model.weights:
        model = replace(model, weights=dict(model.weights) | {decoder: model.weights[WORDS]})
    save_trained(model, source, tmp_path / "out")
    again = load(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert len(stored) == len({id(w) for w in model.weights.values()})
    if head == "sequence classification":  # as in the source
        assert stored.keys() == load_file(source / "model.safetensors").keys()
    assert again.config == model.config
    assert again.weights.keys() == model.weights.keys()
    for name, w in model.weights.items():
        assert_same_bits(np.asarray(again.weights[name]), np.asarray(w))
    assert load_tokenizer(tmp_path / "out").encode(["a film"]) == load_tokenizer(source).encode(
        ["a film"]
    )
    with pytest.raises(BertNumpyError, match="already exists"):
        save_trained(model, source, tmp_path / "out")


def write_encoder_with_dense(
    folder: Path, bias: bool = False, architecture: str = "BertModel"
) -> Path:
    """A sentence-transformers folder with a Dense module, whose folder has a name of its own."""
    write_encoder(folder, config_overrides={"architectures": [architecture]})
    modules = json.loads((folder / "modules.json").read_text())
    kinds = {"Dense": "projection", "Normalize": "3_Normalize"}
    modules += [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in kinds.items()
    ]
    named = [{"idx": i, "name": str(i)} | module for i, module in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(named))
    (folder / "projection").mkdir()
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    pooling = {"embedding_dimension": hidden, "pooling_mode": "mean"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    settings = {"in_features": hidden, "out_features": 5, "bias": bias}
    (folder / "projection" / "config.json").write_text(json.dumps(settings))
    tensors = {"linear.weight": normal(5, hidden).astype(np.float32)}
    tensors |= {"linear.bias": normal(5).astype(np.float32)} if bias else {}
    save_file(tensors, folder / "projection" / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("bias", "architecture"),
    [(False, "BertModel"), (True, "BertModel"), (True, "BertForMaskedLM")],
)
def test_sentence_encoders_are_written_whole(bias: bool, architecture: str, tmp_path: Path) -> None:
    """A Dense module without a bias may have learned one."""
    source = write_encoder_with_dense(tmp_path / "source", bias, architecture)
    model = load(source)
    moved = {name: np.asarray(w) + np.float32(0.25) for name, w in model.weights.items()}
    model = replace(model, weights=moved)
    save_trained(model, source, tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config == model.config
    assert again.weights.keys() == moved.keys()
    for name, w in moved.items():
        assert_same_bits(np.asarray(again.weights[name]), w)
    names = {path.name for path in source.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    stored = load_file(tmp_path / "out" / "model.safetensors").keys()
    unread = ("pooler.", "cls.")
    names = {name.removeprefix("bert.") for name in load_file(source / "model.safetensors")}
    assert stored == {name for name in names if not name.startswith(unread)}  # as of BertModel


def test_a_classifier_of_a_sentence_encoder(tmp_path: Path) -> None:
    """The modules after the encoder are not copied: the folder would be refused."""
    source = write_encoder_with_dense(tmp_path / "source")
    model = with_head(load(source), "sequence classification", ["a", "b"])
    save_trained(model, source, tmp_path / "out")
    assert load(tmp_path / "out").config == model.config
    assert not (tmp_path / "out" / "modules.json").exists()


def test_a_language_model_has_no_labels(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    model = with_head(load(source), "masked language modelling", ())
    save_trained(model, source, tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.weights["cls.predictions.decoder.weight"] is again.weights[WORDS]
    assert_same_bits(np.asarray(again.weights[WORDS]), np.asarray(model.weights[WORDS]))


def test_keys_of_the_sources_head_are_not_kept(tmp_path: Path) -> None:
    """Another number of labels, and another problem; the model's own are written."""
    overrides = {"problem_type": "single_label_classification", "num_labels": 2}
    source = write_checkpoint(tmp_path / "source", config_overrides=overrides)
    model = load(source)
    save_trained(model, source, tmp_path / "same")
    assert load(tmp_path / "same").config == model.config
    scores = with_head(model, "sequence classification", ["score"])
    save_trained(scores, source, tmp_path / "scores")
    assert load(tmp_path / "scores").config == scores.config
    raw = json.loads((tmp_path / "scores" / "config.json").read_text())
    assert (raw["id2label"], raw["label2id"]) == ({"0": "score"}, {"score": 0})


def test_a_source_that_names_no_class(tmp_path: Path) -> None:
    source = write_encoder(tmp_path / "source")
    (source / "modules.json").unlink()
    raw = json.loads((source / "config.json").read_text())
    del raw["architectures"]
    (source / "config.json").write_text(json.dumps(raw))
    save_trained(load(source), source, tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config.architecture == "BertModel"
    assert again.weights.keys() == load(source).weights.keys()


def test_what_would_be_another_model_is_not_written(tmp_path: Path) -> None:
    source, out = write_checkpoint(tmp_path / "source"), tmp_path / "out"
    model = load(source)
    other = replace(model, config=replace(model.config, hidden_act="relu"))
    with pytest.raises(BertNumpyError, match="with hidden_act 'relu', found 'gelu'"):
        save_trained(other, source, out)
    doubled = {name: np.asarray(w, np.float64) for name, w in model.weights.items()}
    with pytest.raises(BertNumpyError, match="expected float32 numbers to save, found float64"):
        save_trained(replace(model, weights=doubled), source, out)
    batch = {"input_ids": [[1, 2]]}
    calibration = calibrate(model, [batch])
    save_quantized(apply_recipe(model, "int8", calibration), source, tmp_path / "quantized")
    with pytest.raises(BertNumpyError, match="expected a checkpoint in float, found a quantized"):
        save_trained(model, tmp_path / "quantized", out)
    assert not out.exists()


def test_layouts_keep_the_precision() -> None:
    """A batch's moves have the dtype of what they move."""
    config = config_of("bert")
    batch = batch_of(config, **batch_for(config))
    x = normal(len(batch.words()), 12)
    triples = list(batch.split_heads(x, x, x, 3))
    assert_same_bits(batch.merge_heads([q for q, *_ in triples]), x)
    assert batch.join([tokens[:, 0] for tokens, _ in batch.texts(x)]).dtype == np.float64

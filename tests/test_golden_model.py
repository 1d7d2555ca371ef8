"""Golden mode of the whole model: the same bits in every batch and setting, and its refusals."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from factories import PAPER, assert_same_calibrations, write_checkpoint
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Calibration,
    Model,
    ModelOutput,
    QuantizedModel,
    apply_recipe,
    calibrate,
)
from bert_numpy.engines.functions import ACTIVATIONS
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.evaluation.evaluate import calibrate_on, predict_logits
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.calibration import load_calibration, save_calibration
from bert_numpy.quantization.observers import Statistics, observe
from bert_numpy.quantization.origin import Origin
from bert_numpy.tasks.glue import read_examples, task_named
from bert_numpy.tasks.tokenization import EncodedText
from npfp8 import ACCUMULATIONS
from npfp8.storage import load_file, read_metadata, save_file

REVIEWS = ROOT / "bert_numpy" / "assets" / "reviews"
RECIPES = PAPER
#: Recipes whose scales come from the batch, or that leave elements out.
OWN_SCALES = ["e4m3-token", "e4m3-block", "int8-outliers"]
every_recipe = pytest.mark.parametrize("recipe", RECIPES)

#: Random models by name; the embedded one is "tiny".
OVERRIDES: dict[str, dict[str, Any]] = {
    "small": {},
    "odd": {  # no width is a power of two
        "hidden_size": 21,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "num_hidden_layers": 3,
        "hidden_act": "gelu_new",
    },
    "wide": {"hidden_size": 128, "intermediate_size": 512},
}


@dataclass(frozen=True)
class Tokens:
    """One sequence: token ids, types, and which tokens there are."""

    ids: np.ndarray
    types: np.ndarray
    mask: np.ndarray

    @classmethod
    def random(cls, model: Model, length: int, seed: int, holes: Sequence[int] = ()) -> Tokens:
        generator = np.random.default_rng((seed, length))
        mask = np.ones(length, np.int64)
        mask[list(holes)] = 0
        ids = generator.integers(0, model.config.vocab_size, length)
        return cls(ids, generator.integers(0, 2, length), mask)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        name: bert_numpy.load(write_checkpoint(folder / name, config_overrides=overrides))
        for name, overrides in OVERRIDES.items()
    }
    return made | {"tiny": bert_numpy.load("bert-tiny-sst2")}


@pytest.fixture(scope="module")
def small(models: dict[str, Model]) -> Model:
    return models["small"]


@pytest.fixture(scope="module")
def reviews() -> list[EncodedText]:
    texts = read_examples(REVIEWS / "train.tsv", task_named("sst2")).sample(24).texts
    return bert_numpy.load_tokenizer("bert-tiny-sst2").encode(texts, None, 64)


def batch_of(sequences: Sequence[Tokens], length: int = 0) -> dict[str, np.ndarray]:
    """The sequences padded on the right, with ids of real tokens, to a common length."""
    length = length or max(len(item.ids) for item in sequences)
    padding = [(0, length - len(item.ids)) for item in sequences]

    def padded(arrays: list[np.ndarray], value: int) -> np.ndarray:
        pairs = zip(arrays, padding, strict=True)
        return np.stack([np.pad(x, pad, constant_values=value) for x, pad in pairs])

    return {
        "input_ids": padded([item.ids for item in sequences], 3),
        "attention_mask": padded([item.mask for item in sequences], 0),
        "token_type_ids": padded([item.types for item in sequences], 1),
    }


def random_batch(model: Model, lengths: Sequence[int] = (7, 4, 9)) -> dict[str, np.ndarray]:
    return batch_of([Tokens.random(model, length, seed=9) for length in lengths])


def with_recipe(model: Model, recipe: str, golden: bool = True) -> QuantizedModel:
    by_gptq = PRESETS[recipe].by_gptq  # whose codes are made first, in floating point
    batches = [random_batch(model)]
    calibration = calibrate(model, batches, golden=not by_gptq, hessians=by_gptq)
    if by_gptq:
        model = apply_recipe(model, PRESETS[recipe], calibration)
    return apply_recipe(model, PRESETS[recipe], calibration, golden)


def bits(x: np.ndarray | None) -> bytes:
    assert x is not None
    assert x.dtype == np.float32
    return np.ascontiguousarray(x).view(np.uint32).tobytes()


def results(model: Model, sequences: Sequence[Tokens], length: int = 0) -> list[bytes]:
    """The bits of each sequence's logits and of its tokens' hidden states."""
    output = model(**batch_of(sequences, length))
    assert output.logits is not None
    found = []
    for row, item in enumerate(sequences):
        there = output.last_hidden_state[row, : len(item.ids)][item.mask == 1]
        found.append(bits(output.logits[row]) + bits(there))
    return found


# The batch


def sequences_for(model: Model) -> list[Tokens]:
    """Make sequences of several lengths, two of them equal, and three with masked tokens."""
    plain = [Tokens.random(model, length, seed=1) for length in (1, 5, 12, 23)]
    plain.append(Tokens.random(model, 12, seed=2))
    holes = [(3, 4), (0,), (0, 2, 9)]
    return plain + [Tokens.random(model, 12, seed=3, holes=hole) for hole in holes]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        *(("small", recipe) for recipe in PRESETS),
        *(("odd", recipe) for recipe in (*PAPER, *OWN_SCALES)),
        *(("tiny", recipe) for recipe in (*PAPER, *OWN_SCALES)),
    ],
)
def test_batch_changes_no_bit(name: str, recipe: str, models: dict[str, Model]) -> None:
    model = with_recipe(models[name], recipe)
    sequences = sequences_for(model)
    longest = model.config.max_position_embeddings
    alone = [results(model, [item])[0] for item in sequences]
    assert len(set(alone)) == len(sequences)
    assert results(model, sequences) == alone
    assert results(model, sequences, longest) == alone
    assert results(model, sequences[::-1]) == alone[::-1]
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(sequences))[: 3 + seed]
        assert results(model, [sequences[i] for i in order]) == [alone[i] for i in order]
    others = [Tokens.random(model, length, seed=4) for length in (longest, 2, 12, 12, 30)]
    among = [*others[:2], *sequences, *others[2:]]
    assert results(model, among)[2 : 2 + len(sequences)] == alone


def test_float16_overflows_at_absmax_scales(models: dict[str, Model]) -> None:
    """448 times 448 is beyond 65504: golden products say where it first happened."""
    exact = with_recipe(models["wide"], "e4m3")
    model = apply_recipe(exact, replace(exact.recipe, accumulate="float16"), golden=True)
    with pytest.raises(BertNumpyError, match=r"^encoder\.layer\.0\..*: expected finite numbers"):
        model(**random_batch(model))


@pytest.mark.parametrize("mode", ["hopper", "hopper-fast", "bfloat16"])
def test_batch_changes_no_bit_of_other_accumulators(mode: str, models: dict[str, Model]) -> None:
    """Each sum's order is its own; and the bits are the mode's, not those of exact sums."""
    exact = with_recipe(models["wide"], "e5m2")
    model = apply_recipe(exact, replace(exact.recipe, accumulate=mode), golden=True)
    sequences = sequences_for(model)
    alone = [results(model, [item])[0] for item in sequences]
    assert results(model, sequences) == alone
    assert results(model, sequences[::-1], 30) == alone[::-1]
    assert not set(alone) & set(results(exact, sequences))


def test_batch_changes_bits_of_the_plain_engine(models: dict[str, Model]) -> None:
    """The comparison above can fail: BLAS rounds by the shape of a product."""
    model = models["wide"]
    sequences = sequences_for(model)
    alone = [results(model, [item])[0] for item in sequences]
    changed = [results(model, sequences[:n]) != alone[:n] for n in range(2, len(sequences) + 1)]
    golden = replace(model, engine=GoldenEngine)
    assert results(golden, sequences) == [results(golden, [item])[0] for item in sequences]
    if not any(changed):
        pytest.skip("this BLAS gives the same bits for every batch here")


def test_results_of_real_sequences(reviews: list[EncodedText], models: dict[str, Model]) -> None:
    """By the library's own batches, which go by length: the same logits for every size of batch."""
    calibration = calibrate_on(models["tiny"], reviews, golden=True)
    for recipe in RECIPES:
        model = apply_recipe(models["tiny"], PRESETS[recipe], calibration, golden=True)
        expected = predict_logits(model, reviews, 1)
        for size in (5, 32):
            assert_same_bits(predict_logits(model, reviews, size), expected)


# Every kind of model, and the fast engine's results

#: The largest difference from the fast engine's results, over their largest magnitude: where a sum
#: in another order is next to a tie, a value moves to the next bfloat16, and with it the next code.
CLOSE = {"fp32": 4e-6, "bf16": 0.02, "int8": 0.02, "e4m3": 0.05, "e5m2": 0.05}


def assert_close(recipe: str, found: np.ndarray | None, expected: np.ndarray | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert (found.dtype, found.shape) == (np.float32, expected.shape)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= CLOSE[recipe]


def check_kind_of_model(model: Model, recipe: str) -> ModelOutput:
    batch = random_batch(model, (6, 3, 1))
    found = with_recipe(model, recipe)(**batch)
    expected = with_recipe(model, recipe, golden=False)(**batch)
    for name in ("last_hidden_state", "pooler_output", "logits"):
        assert_close(recipe, getattr(found, name), getattr(expected, name))
    if recipe == "fp32":  # close, but not the same
        assert bits(found.last_hidden_state) != bits(expected.last_hidden_state)
    return found


@every_recipe
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, recipe: str, tmp_path: Path) -> None:
    overrides = {"hidden_act": activation}
    model = bert_numpy.load(write_checkpoint(tmp_path, config_overrides=overrides))
    check_kind_of_model(model, recipe)


@every_recipe
@pytest.mark.parametrize("architecture", ["BertModel", "BertLMHeadModel"])
@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "no pooler"])
def test_bare_encoders(pooler: bool, architecture: str, recipe: str, tmp_path: Path) -> None:
    overrides = {"architectures": [architecture]}
    model = bert_numpy.load(write_checkpoint(tmp_path, config_overrides=overrides))
    if not pooler:
        weights = {name: w for name, w in model.weights.items() if not name.startswith("pooler")}
        model = replace(model, weights=weights)
    found = check_kind_of_model(model, recipe)
    assert (found.pooler_output is not None) == pooler
    assert found.logits is None


@every_recipe
@pytest.mark.parametrize("labels", [("score",), ("a", "b", "c")], ids=["one", "three"])
def test_heads(labels: tuple[str, ...], recipe: str, tmp_path: Path) -> None:
    model = bert_numpy.load(write_checkpoint(tmp_path, labels=labels))
    logits = check_kind_of_model(model, recipe).logits
    assert logits is not None
    assert logits.shape == (3, len(labels))


def test_close_to_the_fast_engine(reviews: list[EncodedText], models: dict[str, Model]) -> None:
    """On real input, in the relative error of all logits: closer than the recipe is to FP32."""
    calibration = calibrate_on(models["tiny"], reviews, golden=True)

    def logits(recipe: str, golden: bool) -> np.ndarray:
        model = apply_recipe(models["tiny"], PRESETS[recipe], calibration, golden)
        return predict_logits(model, reviews).astype(np.float64)

    base = logits("fp32", golden=False)
    for recipe in RECIPES:
        fast, golden = logits(recipe, golden=False), logits(recipe, golden=True)
        error = np.linalg.norm(golden - fast) / np.linalg.norm(fast)
        cost = np.linalg.norm(fast - base) / np.linalg.norm(base)
        assert error < (1e-6 if recipe == "fp32" else cost / 2)


@every_recipe
def test_accumulation_in_float32(recipe: str, small: Model) -> None:
    calibration = calibrate(small, [random_batch(small)])
    other = replace(PRESETS[recipe], accumulate="float32")
    apply_recipe(small, other, calibration)
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(small, other, calibration, golden=True)
    names = " or ".join(repr(name) for name in ACCUMULATIONS if name != "float32")
    assert str(error.value) == (
        f"recipe {recipe}: golden products are accumulated {names}, found 'float32'"
    )


# What it refuses


def edited(model: QuantizedModel, key: str, value: float, element: int | None = 1) -> Model:
    """The model with one element of a parameter (or all) replaced, after calibration."""
    weight = model.weights[key]
    assert isinstance(weight, np.ndarray), key
    changed = np.array(weight)
    changed.reshape(-1)[slice(None) if element is None else element] = value
    return replace(model, weights=dict(model.weights) | {key: changed})


#: What is changed, to what, and the site and operand where golden mode stops. No weight of a
#: quantized product is among them, so that each applies to every recipe.
NOT_FINITE = [
    ("embeddings.LayerNorm.bias", np.nan, "encoder.layer.0.attention.self.query:a"),
    ("embeddings.LayerNorm.weight", np.inf, "encoder.layer.0.attention.self.query:a"),
    ("embeddings.position_embeddings.weight", -np.inf, "encoder.layer.0.attention.self.query:a"),
    ("encoder.layer.0.attention.self.query.bias", np.inf, "encoder.layer.0.attention.self.query"),
    ("encoder.layer.0.attention.self.key.bias", np.nan, "encoder.layer.0.attention.self.key"),
    ("encoder.layer.1.attention.self.value.bias", -np.inf, "encoder.layer.1.attention.self.value"),
    (
        "encoder.layer.1.attention.output.dense.bias",
        np.nan,
        "encoder.layer.1.attention.output.dense",
    ),
    (
        "encoder.layer.1.attention.output.LayerNorm.bias",
        np.inf,
        "encoder.layer.1.intermediate.dense:a",
    ),
    ("encoder.layer.0.intermediate.dense.bias", np.inf, "encoder.layer.0.intermediate.dense"),
    ("encoder.layer.1.output.dense.bias", np.nan, "encoder.layer.1.output.dense"),
    ("encoder.layer.0.output.LayerNorm.bias", np.nan, "encoder.layer.1.attention.self.query:a"),
    ("encoder.layer.1.output.LayerNorm.weight", np.inf, "last_hidden_state"),
    ("pooler.dense.weight", np.nan, "pooler.dense"),
    ("pooler.dense.bias", np.inf, "pooler.dense"),
    ("classifier.weight", np.inf, "classifier"),
    ("classifier.bias", np.nan, "classifier"),
]


def check_refusal(broken: Model, site: str) -> None:
    batch = random_batch(broken)
    with np.errstate(all="ignore"):
        with pytest.raises(BertNumpyError) as error:
            broken(**batch)
        assert str(error.value).startswith(f"{site}: expected finite numbers, found ")


@every_recipe
@pytest.mark.parametrize(("key", "value", "site"), NOT_FINITE)
def test_not_finite(key: str, value: float, site: str, recipe: str, small: Model) -> None:
    check_refusal(edited(with_recipe(small, recipe), key, value), site)


@every_recipe
@pytest.mark.parametrize(
    ("key", "value", "site"),
    [
        (
            "encoder.layer.0.attention.output.LayerNorm.weight",
            3e38,
            "encoder.layer.0.intermediate.dense:a",
        ),
        ("encoder.layer.1.output.LayerNorm.weight", 3e38, "last_hidden_state"),
        ("classifier.weight", 3e38, "classifier"),
    ],
)
def test_overflow(key: str, value: float, site: str, recipe: str, small: Model) -> None:
    """Large finite numbers overflow."""
    check_refusal(edited(with_recipe(small, recipe), key, value, element=None), site)


@pytest.mark.parametrize("recipe", ["fp32", "bf16"])
def test_scores_that_overflow(recipe: str, small: Model) -> None:
    """The other recipes would quantize, and so clip, the operands of this product."""
    model = with_recipe(small, recipe)
    for name in ("query", "key"):
        key = f"encoder.layer.1.attention.self.{name}.bias"
        model = replace(model, weights=edited(model, key, 1e30, element=None).weights)
    check_refusal(model, "encoder.layer.1.attention.scores")


@pytest.mark.parametrize("recipe", ["bf16", "int8", "e4m3", "e5m2"])
def test_rounding_that_overflows(recipe: str, small: Model) -> None:
    """The largest float32 numbers are infinity in bfloat16."""
    site = "encoder.layer.1.attention.self.query"
    largest = float(np.finfo(np.float32).max)
    check_refusal(edited(with_recipe(small, recipe), f"{site}.bias", largest), site)


def test_message_says_what_and_where(small: Model) -> None:
    broken = edited(with_recipe(small, "fp32"), "classifier.bias", -np.inf)
    with pytest.raises(BertNumpyError) as error:
        broken(**random_batch(small))
    assert str(error.value) == "classifier: expected finite numbers, found -inf at (0, 1)"


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "e4m3", "e5m2"])
@pytest.mark.parametrize(
    "key", ["embeddings.LayerNorm.bias", "encoder.layer.1.output.dense.bias", "classifier.bias"]
)
def test_fast_engine_passes_nan_on(key: str, recipe: str, small: Model) -> None:
    broken = edited(with_recipe(small, recipe, golden=False), key, np.nan)
    with np.errstate(all="ignore"):
        logits = broken(**random_batch(small)).logits
    assert logits is not None
    assert np.isnan(logits).any()


@contextmanager
def flush_to_zero() -> Iterator[None]:
    """Set FTZ in x86's MXCSR for this thread, as code built with -ffast-math does."""
    if platform.machine() != "x86_64" or not sys.platform.startswith("linux"):
        pytest.skip("sets the mode of x86-64 on Linux")
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("sets the mode through glibc's fenv")
    libm = ctypes.CDLL("libm.so.6")
    saved, changed = (ctypes.create_string_buffer(32) for _ in range(2))  # fenv_t: 28 + 4 bytes
    assert libm.fegetenv(saved) == 0
    try:
        libm.fegetenv(changed)
        ctypes.c_uint32.from_buffer(changed, 28).value |= 0x8000
        libm.fesetenv(changed)
        yield
    finally:
        libm.fesetenv(saved)


def outcome_when_flushed(call: Callable[[], object]) -> str:
    """The error's message, if any; nothing of pytest is done in that mode."""
    with flush_to_zero():
        try:
            call()
        except BertNumpyError as error:
            return str(error)
    return "none"


@every_recipe
def test_flush_to_zero(recipe: str, small: Model) -> None:
    model, fast = (with_recipe(small, recipe, golden) for golden in (True, False))
    batch = random_batch(small)
    message = outcome_when_flushed(lambda: model(**batch))
    assert message.startswith("encoder.layer.0.attention.self.query:a: golden arithmetic: expected")
    assert message.endswith("subnormal numbers are flushed to zero")
    assert outcome_when_flushed(lambda: fast(**batch)) == "none"
    model(**batch)  # and the mode is as it was


def test_flush_to_zero_in_calibration(small: Model) -> None:
    batches = [random_batch(small)]
    message = outcome_when_flushed(lambda: calibrate(small, batches, golden=True))
    assert "subnormal numbers are flushed to zero" in message
    assert outcome_when_flushed(lambda: calibrate(small, batches)) == "none"


# Calibration


def test_calibration_in_any_batches(reviews: list[EncodedText], models: dict[str, Model]) -> None:
    model = models["tiny"]
    whole = calibrate_on(model, reviews, len(reviews), golden=True)
    assert (whole.golden, whole.samples) == (True, len(reviews))
    interleaved = reviews[::2] + reviews[1::2]
    for size, order in ((1, reviews), (5, reviews), (5, reviews[::-1]), (7, interleaved)):
        found = calibrate_on(model, order, size, golden=True)
        assert_same_calibrations(without_averages(found), without_averages(whole))
    plain = calibrate_on(model, reviews)
    assert not plain.golden
    assert plain.operands.keys() == whole.operands.keys()
    highs = [[seen.high for seen in item.operands.values()] for item in (plain, whole)]
    assert highs[0] != highs[1]
    np.testing.assert_allclose(*highs, rtol=1e-5)
    for name, seen in whole.operands.items():
        assert seen.count == plain.operands[name].count


def without_averages(calibration: Calibration) -> Calibration:
    """Moving averages aside, which depend on the order of the batches."""
    operands = {
        name: replace(seen, average_low=0.0, average_high=0.0)
        for name, seen in calibration.operands.items()
    }
    return replace(calibration, operands=operands)


def a_calibration(golden: bool = True) -> Calibration:
    """Numbers that decimals cut short would change, and the limits."""
    values = [1 / 3, 1e-45, 0.0, 3.4e38, 0.1, 2.0**-126]
    operands = {}
    for i, x in enumerate(values):
        high = np.nextafter(np.float32(x), np.float32(3.402823e38))
        seen = observe("x", None, np.float32([-x, x / 2, 1e-45, high]))
        counts = seen.counts * 3
        counts[0] = 2**52 - 1  # whole rows of 3
        operands[f"site.{i}:a"] = replace(
            seen, average_low=-x / 3, average_high=x / 7, counts=counts
        )
    operands["site_2:b"] = observe("b", None, np.zeros((1, 3), np.float32))
    channels = {"site.0": np.abs(np.float32([1e-45, 0.0, operands["site.0:a"].absmax]))}
    return Calibration(operands, channels, 17, golden, an_origin())


def an_origin() -> Origin:
    return Origin("some model", (2, 16, 2, 32, 16, 100), 16 * "0af5")


@pytest.mark.parametrize("golden", [True, False])
def test_saved_calibration_is_loaded_to_the_last_bit(golden: bool, tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    saved = a_calibration(golden)
    save_calibration(saved, path)
    loaded = load_calibration(str(path))
    assert_same_calibrations(loaded, saved)
    assert loaded.golden is golden
    assert list(tmp_path.iterdir()) == [path]
    before = path.read_bytes()
    save_calibration(loaded, path)
    assert path.read_bytes() == before


def test_loaded_calibration_gives_the_same_model(small: Model, tmp_path: Path) -> None:
    batch = random_batch(small)
    calibration = calibrate(small, [batch], golden=True)
    save_calibration(calibration, tmp_path / "calibration.json")
    loaded = load_calibration(tmp_path / "calibration.json")
    for recipe in ("int8", "e4m3", "e5m2", "int8-smooth", "int8-asymmetric", "e4m3-mse"):
        found, expected = (
            apply_recipe(small, PRESETS[recipe], item, golden=True)(**batch)
            for item in (loaded, calibration)
        )
        assert_same_bits(found.last_hidden_state, expected.last_hidden_state)
        assert_same_bits(found.logits, expected.logits)


def test_failing_write_leaves_the_old_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(a_calibration(), path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BertNumpyError) as error:
        save_calibration(a_calibration(golden=False), path)
    assert str(error.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", [".", "missing/calibration.json"])
def test_calibration_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError) as error:
        save_calibration(a_calibration(), tmp_path / place)
    assert str(error.value).startswith(f"{tmp_path / place}: cannot be written: ")


GOOD_METADATA = {
    "format": "bert-numpy calibration 3",
    "samples": "3",
    "golden": "true",
    "model": "some model",
    "sizes": '{"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, '
    '"intermediate_size": 32, "embedding_size": 16, "vocab_size": 100}',
    "digest": 16 * "0af5",
}
GOOD_TENSORS = {
    "site:a/range": np.array([-1.5, 2.0, -1.0, 1.0]),
    "site:a/bits": np.array([0, 0x4000, 0xBFC0], np.uint16),
    "site:a/counts": np.array([5, 1, 2**40], np.int64),
    "site/channels": np.array([0.0, 2.0], np.float32),
}
RANGE = "tensor 'site:a/range': expected 4 "
BITS = "tensor 'site:a/bits': expected rising numbers"
COUNTS = "tensor 'site:a/counts': expected 3 positive numbers"
CHANNELS = "tensor 'site/channels': expected magnitudes"
FORMAT = "metadata 'format': expected 'bert-numpy calibration 3', found "
SIZES = "metadata 'sizes': expected a JSON object of the sizes num_hidden_layers, "
DIGEST = "metadata 'digest': expected 64 hexadecimal digits, found "
EXTREMA = "tensor 'site:a/bits': expected the extrema to be the range's, rounded to bfloat16"
AVERAGES = "tensor 'site:a/range': expected 4 numbers around 0, moving averages within the extrema"
NAMES = "expected OPERAND/range, OPERAND/bits, OPERAND/counts, SITE/channels or SITE/hessian"
LARGEST = (
    "tensor 'site/channels': expected the largest to be 2.0, the largest magnitude of 'site:a', "
    "found "
)
SAMPLES = "metadata 'samples': expected a number of at least 1, found "
GOLDEN = "metadata 'golden': expected true or false, found "


def not_1d(key: str, dtype: str, found: str) -> str:
    return f"tensor {key!r}: expected 1-D {dtype}, found {found}"


#: What is changed in the metadata and the tensors (None: left out), and the message's beginning.
MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"format {number}": (
            {"format": f"bert-numpy calibration {number}"},
            f"{FORMAT}'bert-numpy calibration {number}'. To make one: bert-numpy evaluate MODEL "
            "--task NAME --data DATA --format e4m3 --save-calibration {path}",
        )
        for number in (1, 2, 4)
    },
    "no format": ({"format": None}, f"{FORMAT}''"),
    "no model": ({"model": None}, "metadata 'model': expected the model's name, found ''"),
    "no digest": ({"digest": None}, f"{DIGEST}''"),
    **{
        f"digest {text[:8]!r}": ({"digest": text}, DIGEST)
        for text in ("", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 64 + "\n")
    },
    "no sizes": ({"sizes": None}, f"{SIZES}"),
    **{
        f"sizes {text[:24]!r}": ({"sizes": text}, SIZES)
        for text in (
            *("", "[]", "3", "{}", "{", "[" * 100_000, '{"hidden_size": 16}'),
            GOOD_METADATA["sizes"].replace("16", "-1", 1),
            GOOD_METADATA["sizes"].replace("16", "true", 1),
            GOOD_METADATA["sizes"].replace("16", "1.5", 1),
            GOOD_METADATA["sizes"].replace("16", "9" * 5000, 1),
            GOOD_METADATA["sizes"].replace("hidden_size", "hidden"),
        )
    },
    "no samples": ({"samples": None}, f"{SAMPLES}''"),
    **{
        f"samples {text!r}": ({"samples": text}, f"{SAMPLES}{text!r}")
        for text in ("0", "000", "-3", "1.5", "1e3", "many", "", " 3", "+3", "\u0663")
    },
    "no golden": ({"golden": None}, f"{GOLDEN}''"),
    **{
        f"golden {text!r}": ({"golden": text}, f"{GOLDEN}{text!r}")
        for text in ("1", "True", "yes", "")
    },
    "no range": ({"site:a/range": None}, not_1d("site:a/range", "float64", "nothing")),
    "no operand": (dict.fromkeys(GOOD_TENSORS), "expected statistics of at least one"),
    "only channels": (
        {key: None for key in GOOD_TENSORS if ":a" in key},
        "expected statistics of at least one",
    ),
    "channels too small": ({"site/channels": np.float32([0, 1])}, f"{LARGEST}1.0"),
    "channels too large": ({"site/channels": np.float32([0, 3])}, f"{LARGEST}3.0"),
    "channels of none": ({"site/channels": np.float32([])}, f"{LARGEST}0.0"),
    **{
        f"extrema of more digits {low}": (
            {"site:a/range": np.array([low, 2.0, -1.0, 1.0])},
            f"{RANGE}numbers around 0, float32 extrema",
        )
        for low in (-1.5 - 2**-40, -1.5 + 2**-40)
    },
    "a row that is not whole": (
        {"site:a/counts": np.array([5, 1, 3])},
        "tensor 'site:a/counts': expected 2 elements for each of 4 tokens, found 9",
    ),
    "more samples than tokens": (
        {"site:a/counts": np.array([1, 2, 1])},
        "tensor 'site:a/counts': expected 2 elements for each of 3 tokens, found 4",
    ),
    **{
        f"tensor {key[:24]!r}": ({key: np.float32([0])}, f"tensor {key!r}: {NAMES}")
        for key in (
            *("a", "", "/", "/range", "site/range", "site:c/range", "site:a/rang", "x:a:a/range"),
            *(
                "../x:a/range",
                "/x:a/range",
                "a/b:a/range",
                "..:a/range",
                ".a:a/range",
                "a.:a/range",
            ),
            *(
                "a..b/channels",
                "a b/channels",
                "\x1b[2J/channels",
                "\u202ea/channels",
                "a\n/channels",
            ),
            *("site:a/channels", "C:\\x/channels", "x" * 99 + "é:b/bits"),
        )
    },
    "no bits": ({"site:a/bits": None}, not_1d("site:a/bits", "uint16", "nothing")),
    "no counts": ({"site:a/counts": None}, not_1d("site:a/counts", "int64", "nothing")),
    **{
        f"{key} of {dtype}": (
            {key: GOOD_TENSORS[key].astype(dtype)},
            not_1d(key, GOOD_TENSORS[key].dtype.name, dtype),
        )
        for key, dtype in (
            ("site:a/range", "float32"),
            ("site:a/bits", "int64"),
            ("site:a/bits", "int16"),
            ("site:a/counts", "int32"),
            ("site:a/counts", "float64"),
            ("site/channels", "float64"),
        )
    },
    **{
        f"{key} of two axes": (
            {key: value[None]},
            not_1d(key, value.dtype.name, ""),
        )
        for key, value in GOOD_TENSORS.items()
    },
    "range of 3": ({"site:a/range": np.zeros(3)}, RANGE),
    "range of 5": ({"site:a/range": np.zeros(5)}, RANGE),
    **{
        f"range {values}": ({"site:a/range": np.array(values)}, RANGE)
        for values in (
            *([0.5, 2, 0, 1], [-2, -0.5, -1, 0], [1e39, 1e39, 0, 0], [-1e39, 1, 0, 0]),
            *([-1, 3.5e38, 0, 0], [-1, 1, -1e39, 0], [-1, 1, 0, 1e39]),
            *([np.nan, 1, 0, 0], [-1, np.nan, 0, 0], [-1, 1, np.nan, 0], [-1, 1, 0, np.inf]),
        )
    },
    **{
        f"average {low} {high}": ({"site:a/range": np.array([-1.5, 2.0, low, high])}, AVERAGES)
        for low, high in ((-1.6, 0), (0, 2.1), (0.1, 1), (-1, -0.1), (1, -1))
    },
    "no values": (
        {"site:a/bits": np.uint16([]), "site:a/counts": np.int64([])},
        "tensor 'site:a/bits': expected at least one value, found none",
    ),
    **{
        f"bits {bits}": ({"site:a/bits": np.uint16(bits)}, message)
        for bits, message in (
            *(
                ([0, 0x4000, last], "tensor 'site:a/bits': expected finite")
                for last in (0xFF80, 0xFFFF)
            ),
            *(([0, 0x7F80, 0xBFC0], "tensor 'site:a/bits': expected finite"),),
            *(([0, 0x4001, 0xBFC0], EXTREMA), ([0, 0x3FFF, 0xBFC0], EXTREMA)),
            *(([0, 0x4000, 0xBFC1], EXTREMA), ([0, 0x4000, 0x8000], EXTREMA)),
            *(([0, 1, 0x4000], EXTREMA), ([0x8000, 0x8001, 0xBFC0], EXTREMA)),
        )
    },
    **{
        f"counts {values}": (
            {"site:a/counts": np.int64(values)},
            "tensor 'site:a/counts': expected at most 9007199254740992 in all, "
            f"found {sum(values)}",
        )
        for values in ([2**62, 2**62, 2**62], [2**63 - 1, 1, 1], [2**53, 1, 1], [2**53 - 1, 1, 1])
    },
    "bits that fall": ({"site:a/bits": np.uint16([3, 2, 9])}, BITS),
    "bits that wrap": ({"site:a/bits": np.uint16([3, 0xFFFF, 1])}, BITS),
    "bits twice": ({"site:a/bits": np.uint16([3, 3, 9])}, BITS),
    "counts of 0": ({"site:a/counts": np.int64([1, 0, 2])}, COUNTS),
    "counts below 0": ({"site:a/counts": np.int64([1, -1, 2])}, COUNTS),
    "two counts": ({"site:a/counts": np.int64([1, 1])}, COUNTS),
    "four counts": ({"site:a/counts": np.int64([1, 1, 1, 1])}, COUNTS),
    **{
        f"channels {value}": ({"site/channels": np.float32([0, value])}, CHANNELS)
        for value in (-1.0, np.nan, np.inf)
    },
}


def write_calibration(path: Path, changes: dict[str, Any]) -> None:
    metadata, tensors = (
        {key: value for key, value in ({**good, **changes}).items() if value is not None}
        for good in (GOOD_METADATA, GOOD_TENSORS)
    )
    save_file(
        {key: value for key, value in tensors.items() if isinstance(value, np.ndarray)},
        path,
        {key: value for key, value in metadata.items() if isinstance(value, str)},
    )


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_calibration(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    changes, message = MALFORMED[fault]
    write_calibration(path, changes)
    with pytest.raises(BertNumpyError) as error:
        load_calibration(path)
    assert str(error.value).startswith(f"{path}: {message.replace('{path}', str(path))}")


def test_well_formed_calibration(tmp_path: Path) -> None:
    """The file that the malformed ones are made of."""
    path = tmp_path / "calibration.safetensors"
    write_calibration(path, {})
    bits, counts = np.uint16([0, 0x4000, 0xBFC0]), np.int64([5, 1, 2**40])
    operands = {"site:a": Statistics(-1.5, 2.0, -1.0, 1.0, bits, counts)}
    expected = Calibration(operands, {"site": np.float32([0, 2])}, 3, True, an_origin())
    loaded = load_calibration(path)
    assert_same_calibrations(loaded, expected)
    assert loaded.origin == expected.origin
    assert loaded.place == str(path)
    save_calibration(expected, tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == path.read_bytes()
    assert read_metadata(tmp_path / "saved") == GOOD_METADATA
    assert load_file(tmp_path / "saved").keys() == GOOD_TENSORS.keys()


def test_memory_of_a_calibration_is_its_files(tmp_path: Path) -> None:
    """5,000 operands of one value each: as histograms of all values they would take 2.6 GB."""
    path = tmp_path / "calibration.safetensors"
    parts = {
        "range": np.array([0.0, 2.0, 0.0, 2.0]),
        "bits": np.uint16([0x4000]),
        "counts": np.int64([3]),
    }
    changes: dict[str, Any] = {
        f"site.{i}:a/{key}": value for i in range(5000) for key, value in parts.items()
    }
    write_calibration(path, changes)
    tracemalloc.start()
    try:
        loaded = load_calibration(path)
        largest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(loaded.operands) == 5001
    assert loaded.operands["site.77:a"].count == 3
    assert largest < 100_000_000


def test_calibration_of_no_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError, match="expected a calibration that calibrate"):
        save_calibration(replace(a_calibration(), origin=None), tmp_path / "calibration")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0, 5, 8, 40, -1])
def test_truncated_calibration(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "calibration.safetensors"
    write_calibration(path, {})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BertNumpyError) as error:
        load_calibration(path)
    assert str(error.value).startswith(f"{path}: expected ")


def test_calibration_that_is_json(tmp_path: Path) -> None:
    """An earlier version wrote calibrations as JSON."""
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"format": "bert-numpy calibration 1", "samples": 3}))
    with pytest.raises(BertNumpyError) as error:
        load_calibration(path)
    assert str(error.value).startswith(f"{path}: ")


def test_calibration_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError) as error:
        load_calibration(tmp_path / "none.json")
    assert str(error.value) == f"{tmp_path / 'none.json'}: no such file"
    with pytest.raises(BertNumpyError) as error:
        load_calibration(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: expected a file, found")


def test_loaded_calibration_that_misses_a_site(small: Model, tmp_path: Path) -> None:
    whole = calibrate(small, [random_batch(small)], golden=True)
    site = encoder_sites(small.config)[7]
    rest = {name: seen for name, seen in whole.operands.items() if name != f"{site}:a"}
    save_calibration(replace(whole, operands=rest), tmp_path / "calibration.json")
    loaded = load_calibration(tmp_path / "calibration.json")
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(small, PRESETS["e4m3"], loaded, golden=True)
    assert str(error.value) == (f"calibration: operand '{site}:a': expected statistics, found none")


# Other settings of the machine, as processes

SCRIPT = ROOT / "scripts" / "prove_golden.py"
DIGESTS = ROOT / "tests" / "digests" / "golden.json"
SETTINGS = {
    "Prescott": {"OPENBLAS_CORETYPE": "Prescott", "OPENBLAS_NUM_THREADS": "1"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell", "OPENBLAS_NUM_THREADS": "2"},
}


@pytest.fixture(scope="module")
def prove_golden() -> Any:
    spec = importlib.util.spec_from_file_location("prove_golden", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(
    *arguments: str | Path, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env=os.environ | (variables or {}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def jobs(prove_golden: Any) -> dict[str, dict[str, Any] | None]:
    """The job's report under each setting; None where NumPy itself crashes."""
    simd = prove_golden.simd_features()
    plain = {"NPY_DISABLE_CPU_FEATURES": " ".join(simd)} if simd else {}
    settings = SETTINGS | {"no SIMD": plain}

    def job(variables: dict[str, str]) -> dict[str, Any] | None:
        done = run_script("job", variables=variables)
        if done.returncode and prove_golden.plain_product_crashes(
            [sys.executable], os.environ | variables
        ):
            return None
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(settings, pool.map(job, settings.values()), strict=True))


def reports(
    jobs: dict[str, dict[str, Any] | None], settings: Iterable[str]
) -> list[dict[str, Any]]:
    found = []
    for name in settings:
        report = jobs[name]
        if report is None:
            pytest.skip(f"NumPy {np.__version__} crashes in a product of its own with {name}")
        found.append(report)
    return found


def test_golden_digests_at_base_size(base_checkpoints: Path) -> None:
    """MPNet-base on four sentences; docs/golden.md has the settings that were run."""
    expected = json.loads(DIGESTS.with_name("golden-mpnet-sst2.json").read_text())
    done = run_script("job", "--model", base_checkpoints / "mpnet-sst2", "--samples", "4")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["golden"] == expected


@pytest.mark.parametrize("setting", [*SETTINGS, "no SIMD"])
def test_golden_digests_are_the_committed_ones(
    setting: str, jobs: dict[str, dict[str, Any] | None]
) -> None:
    report = reports(jobs, [setting])[0]
    expected = json.loads(DIGESTS.read_text())
    assert expected.keys() == {"calibration", *PAPER, "e4m3-flash-8"}
    assert report["golden"] == expected
    assert len(set(expected.values())) == len(expected)
    if setting == "no SIMD":
        assert report["simd"] == ""


def test_plain_digests_differ(jobs: dict[str, dict[str, Any] | None]) -> None:
    """The settings are such as change bits, and the digests see them."""
    plain = reports(jobs, SETTINGS)
    cores = [report["blas"] for report in plain]
    if platform.machine() != "x86_64" or not all("OpenBLAS" in core for core in cores):
        pytest.skip(f"NumPy's BLAS is not OpenBLAS on x86-64: {cores[0]}")
    if cores[0] == cores[1]:
        pytest.skip(f"OpenBLAS has one kernel for both settings: {cores[0]}")
    assert len({report["float32"] for report in plain}) == 2


def test_script_checks_digests(tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    others = ["--only-others", "--samples", "1", "--interpreter", f"here={sys.executable}"]
    assert run_script(*others, "--write", path).returncode == 0
    right = json.loads(path.read_text())
    assert right.keys() == json.loads(DIGESTS.read_text()).keys()
    assert run_script(*others, "--check", path).returncode == 0
    path.write_text(json.dumps(right | {"int8": "0" * 64}))
    done = run_script(*others, "--check", path, "--write", tmp_path / "no.json")
    assert done.returncode == 1
    here, summary = done.stdout.splitlines()
    assert here.startswith("here: golden ")
    assert here.endswith("DIFFERENT: int8")
    assert summary.startswith("1 settings: golden digests DIFFER")
    assert not (tmp_path / "no.json").exists()


@pytest.mark.parametrize("command", ["false", "/none/python"])
def test_script_fails_with_an_interpreter(command: str) -> None:
    done = run_script("--only-others", "--interpreter", f"broken={command}")
    assert done.returncode == 1
    assert done.stdout.startswith(("broken: failed with status 1", "broken: cannot run"))


def test_a_hidden_state_that_no_product_takes_is_refused(small: Model) -> None:
    name = f"encoder.layer.{small.config.num_hidden_layers - 1}.output.LayerNorm.weight"
    weights = {key: x for key, x in small.weights.items() if not key.startswith("pooler.")}
    weights[name] = np.full_like(weights[name], 3e38)
    overflowing = replace(small, weights=weights)
    golden = apply_recipe(overflowing, PRESETS["fp32"], golden=True)
    with pytest.raises(BertNumpyError, match="last_hidden_state: expected finite numbers"):
        golden(**random_batch(small))
    with pytest.raises(BertNumpyError, match="last_hidden_state: expected finite numbers"):
        calibrate(overflowing, [random_batch(small)], golden=True)

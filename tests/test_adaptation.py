"""Forward-only adaptation: prompts, fitness, shifting, the search, and shifts of texts."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from factories import hard_batches, relative
from hypothesis import given
from hypothesis import strategies as st
from oracles import assert_same_bits
from test_architectures import LONGEST, WORDS, saved

import bert_numpy
from bert_numpy import BertNumpyError, Model, apply_recipe, calibrate, load
from bert_numpy.adaptation import forward_only
from bert_numpy.adaptation.fitness import discrepancy, entropies, fitness
from bert_numpy.adaptation.forward_only import AdaptedBatch, ForwardOnly, adapt, first_prompts
from bert_numpy.adaptation.prompts import PromptEngine, with_prompts
from bert_numpy.adaptation.run import adapted_run
from bert_numpy.adaptation.search import CmaSearch, population_of
from bert_numpy.adaptation.shifting import moved_average, shifted
from bert_numpy.adaptation.statistics import (
    FeatureStatistics,
    load_statistics,
    save_statistics,
    source_statistics,
    statistics_of,
)
from bert_numpy.adaptation.wrapping import WrappingEngine
from bert_numpy.assets import REVIEWS
from bert_numpy.evaluation.evaluate import batches
from bert_numpy.model.model import batch_of
from bert_numpy.study import adaptation as study
from bert_numpy.study import adaptation_tables as tables
from bert_numpy.study.shifts import SHIFTS, shifted_texts
from bert_numpy.tasks.glue import Examples, task_named
from bert_numpy.threads import one_blas_thread

TEXTS = [
    "a warm and funny film",
    "dull",
    "not a good plot , and very bad actors",
    "two hours of my life , gone",
    "charming",
]
RECIPES = ("fp32", "bf16", "int8", "e4m3", "e4m3-flash", "int8-outliers", "int8-token", "mxfp4")


@cache
def tiny() -> Model:
    return load("bert-tiny-sst2")


@cache
def batch_of_texts() -> dict[str, np.ndarray]:
    return bert_numpy.load_tokenizer("bert-tiny-sst2").batch(TEXTS)


@cache
def quantized(recipe: str, golden: bool = False) -> Model:
    calibration = calibrate(tiny(), [batch_of_texts()], golden=golden)
    return apply_recipe(tiny(), recipe, calibration, golden=golden)


def some_prompts(count: int = 3, seed: int = 0, hidden: int = 128) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, hidden)).astype(np.float32)


# The run with prompts


def float64_logits(
    model: Model,
    ids: Sequence[int],
    prompts: np.ndarray,
    shift: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute BERT on one text with prompts, in float64, by the formulas of the papers.

    Returns the logits and the first token's state at the end of each layer.
    """
    w = {name: np.asarray(x, np.float64) for name, x in model.weights.items()}
    config = model.config

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.einsum("ik,nk->in", x, w[f"{name}.weight"]) + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + config.layer_norm_eps)
        return centred / deviation * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][list(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x)
    x = np.concatenate([x[:1], prompts.astype(np.float64), x[1:]])
    features = []
    d = config.hidden_size // config.num_attention_heads
    for i in range(config.num_hidden_layers):
        at = f"encoder.layer.{i}"
        q, k, v = (linear(f"{at}.attention.self.{n}", x) for n in ("query", "key", "value"))
        heads = []
        for h in range(config.num_attention_heads):
            part = slice(h * d, (h + 1) * d)
            scores = np.einsum("qd,kd->qk", q[:, part], k[:, part]) / math.sqrt(d)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            heads.append(np.einsum("qk,kd->qd", weights, v[:, part]))
        y = linear(f"{at}.attention.output.dense", np.concatenate(heads, axis=1))
        x = norm(f"{at}.attention.output.LayerNorm", x + y)
        y = linear(f"{at}.intermediate.dense", x)
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", y))
        features.append(x[0])
    first = x[:1] if shift is None else x[:1] + shift
    return linear("classifier", np.tanh(linear("pooler.dense", first)))[0], np.array(features)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("moved", [False, True])
def test_a_run_against_float64(count: int, moved: bool) -> None:
    batch, prompts = batch_of_texts(), some_prompts(count)
    shift = some_prompts(1, seed=1)[0] if moved else None
    run = adapted_run(tiny(), batch, prompts, shift)
    for row, (ids, mask) in enumerate(
        zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ):
        logits, features = float64_logits(tiny(), ids[mask == 1], prompts, shift)
        assert relative(run.logits[row], logits) < 1e-5
        assert relative(run.features[row], features) < 1e-5


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("golden", [False, True], ids=["fast", "golden"])
def test_without_prompts_and_shift_it_is_the_model(recipe: str, golden: bool) -> None:
    """To the last bit, and with the same counts; a shift by zero changes nothing either."""
    model = quantized(recipe, golden)
    static, zero = model(**batch_of_texts()), np.zeros(128, np.float32)
    for run in (
        adapted_run(model, batch_of_texts()),
        adapted_run(model, batch_of_texts(), some_prompts(0), zero),
    ):
        assert_same_bits(run.logits, static.logits)
        assert_same_bits(run.output.last_hidden_state, static.last_hidden_state)
        assert run.output.counts == static.counts
        assert_same_bits(run.features[:, -1], static.last_hidden_state[:, 0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_text_does_not_depend_on_its_batch(recipe: str) -> None:
    """In golden mode, with prompts and a shift: alone, or with others and padding."""
    model, batch = quantized(recipe, golden=True), batch_of_texts()
    prompts, shift = some_prompts(), some_prompts(1, seed=1)[0]
    whole = adapted_run(model, batch, prompts, shift)
    for row in range(len(TEXTS)):
        length = int(batch["attention_mask"][row].sum())
        one = {name: x[row : row + 1, :length] for name, x in batch.items()}
        alone = adapted_run(model, one, prompts, shift)
        assert_same_bits(alone.logits[0], whole.logits[row])
        assert_same_bits(alone.features[0], whole.features[row])
    assert whole.output.last_hidden_state.shape == (*batch["input_ids"].shape, 128)
    assert not whole.output.last_hidden_state[batch["attention_mask"] == 0].any()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_shift_moves_the_first_tokens_alone(recipe: str) -> None:
    model, shift = quantized(recipe), some_prompts(1, seed=1)[0]
    static = adapted_run(model, batch_of_texts(), some_prompts())
    moved = adapted_run(model, batch_of_texts(), some_prompts(), shift)
    assert_same_bits(moved.features, static.features)
    one, two = moved.output.last_hidden_state, static.output.last_hidden_state
    assert_same_bits(one[:, 1:], two[:, 1:])
    expected = two[:, 0] + shift
    expected = expected if recipe == "fp32" else rounded_to_bfloat16(expected)
    assert_same_bits(one[:, 0], expected)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("golden", [False, True], ids=["fast", "golden"])
def test_a_later_shift_is_that_of_a_run_of_its_own(recipe: str, golden: bool) -> None:
    """From the same hidden states, as often as wanted; the run's own answers stay."""
    model, shift = quantized(recipe, golden), some_prompts(1, seed=1)[0]
    static = adapted_run(model, batch_of_texts(), some_prompts())
    before = static.logits.copy()
    for factor in np.float32([1, -2]):
        moved = adapted_run(model, batch_of_texts(), some_prompts(), factor * shift)
        assert_same_bits(static.shifted(factor * shift), moved.logits)
        assert_same_bits(moved.shifted(0 * shift), before)
    assert_same_bits(static.logits, before)
    assert (moved.logits != before).any()


def test_one_run_per_batch_and_candidate() -> None:
    """The shift costs none: each run makes one engine."""
    made: list[int] = []

    def engine(weights: Any, batch: Any) -> Any:
        made.append(len(batch.input_ids))
        return tiny().engine(weights, batch)

    model, source = replace(tiny(), engine=engine), source_of("fp32")
    candidates = np.random.default_rng(0).standard_normal((3, 4, 256))
    for settings, runs in ((ForwardOnly(prompts=0), 1), (ForwardOnly(prompts=2), 5)):
        made.clear()
        found = list(adapt(model, source, stream(), settings, lambda *_: Scripted(candidates)))
        assert [step.shift is None for step in found] == [True, False, False]
        assert made == [size for size in (3, 2, 2) for _ in range(runs)]


def test_prompts_are_rounded_to_the_precision() -> None:
    """A bfloat16 engine has bfloat16 numbers in its layers, whatever the prompts are."""
    prompts = some_prompts()
    rounded = rounded_to_bfloat16(prompts)
    assert (prompts != rounded).all(axis=1).any()
    for golden in (False, True):
        for recipe in ("bf16", "e4m3"):
            model = quantized(recipe, golden)
            one, two = (adapted_run(model, batch_of_texts(), x) for x in (prompts, rounded))
            assert_same_bits(one.logits, two.logits)
    one, two = (adapted_run(tiny(), batch_of_texts(), x) for x in (prompts, rounded))
    assert (one.logits != two.logits).any()


def rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Round to bfloat16, ties to even, by the bits."""
    bits = x.view(np.uint32).astype(np.uint64)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert", "Electra", "Albert", "MPNet"])
def test_a_run_against_transformers(
    kind: str, torch: Any, quiet_transformers: Any, tmp_path: Path
) -> None:
    """transformers' own layers, on its embeddings with prompts between them."""
    saved(quiet_transformers, torch, tmp_path, kind, "ForSequenceClassification")
    model = load(tmp_path)
    cls = getattr(quiet_transformers, f"{kind}ForSequenceClassification")
    peer = cls.from_pretrained(tmp_path, attn_implementation="eager").eval()
    prompts = some_prompts(hidden=model.config.hidden_size)

    def insert(module: Any, arguments: Any, output: Any) -> Any:
        rows = torch.from_numpy(prompts).expand(len(output), -1, -1)
        return torch.cat([output[:, :1], rows, output[:, 1:]], dim=1)

    body = getattr(peer, peer.base_model_prefix)
    entry = body.embeddings
    if kind == "Electra":
        entry = body.embeddings_project
    elif kind == "Albert":
        entry = body.encoder.embedding_hidden_mapping_in
    entry.register_forward_hook(insert)
    if kind == "MPNet":
        bias = body.encoder.compute_position_bias

        def widened(x: Any, position_ids: Any = None, num_buckets: int = 32) -> Any:
            """The biases without prompts, with those of the first token for each prompt."""
            length = x.shape[1] - len(prompts)
            places = torch.tensor([0] * (len(prompts) + 1) + list(range(1, length)))
            return bias(x[:, :length], num_buckets=num_buckets)[:, :, places][:, :, :, places]

        body.encoder.compute_position_bias = widened
    for batch in hard_batches(WORDS, LONGEST).values():
        given = dict(batch)
        if model.config.type_vocab_size < 2:
            given.pop("token_type_ids", None)
        mask = given.get("attention_mask", np.ones_like(given["input_ids"]))
        ours = adapted_run(model, given, prompts)
        wide = np.concatenate(
            [mask[:, :1], np.ones((len(mask), len(prompts)), mask.dtype), mask[:, 1:]], axis=1
        )
        theirs = prompted_logits(torch, peer, kind, given, wide)
        assert relative(ours.logits, theirs) < 1e-5


def prompted_logits(
    torch: Any, peer: Any, kind: str, batch: Mapping[str, np.ndarray], mask: np.ndarray
) -> np.ndarray:
    """Run transformers' model with a mask for more tokens than it was given."""
    tensors = {name: torch.from_numpy(x) for name, x in batch.items() if name != "attention_mask"}
    body = getattr(peer, peer.base_model_prefix)
    minus = torch.finfo(torch.float32).min
    attention = (1 - torch.from_numpy(mask)[:, None, None, :].float()) * minus
    with torch.no_grad():
        x = body.embeddings(**tensors)
        if kind == "Electra":
            x = body.embeddings_project(x)
        if kind == "DistilBert":
            states = body.transformer(x, attention_mask=attention)
        elif kind == "MPNet":
            states = body.encoder(x, attention_mask=attention)
        else:
            states = body.encoder(x, attention_mask=attention)
        x = states[0]
        if kind == "DistilBert":
            x = peer.pre_classifier(x[:, 0])
            return peer.classifier(torch.relu(x)).numpy()
        if kind == "Bert":
            return peer.classifier(body.pooler(x)).numpy()
        if kind == "Albert":
            return peer.classifier(torch.tanh(body.pooler(x[:, 0]))).numpy()
        return peer.classifier(x).numpy()


def test_places_and_types_of_a_layout() -> None:
    """RoBERTa's numbering skips padding ids; a prompt has the number of the first token."""
    config = tiny().config
    ids = np.array([[7, 1, 9, 8], [7, 5, 1, 1]])
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]])
    batch = batch_of(config, ids, mask, np.array([[0, 0, 1, 1]] * 2))
    layout = with_prompts(batch, 2)
    assert layout.words().tolist() == [7, 0, 0, 1, 9, 8, 7, 0, 0, 5, 1]
    assert layout.types().tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    assert layout.places(None).tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0, 1, 2]
    assert layout.places(1).tolist() == [2, 2, 2, 1, 3, 4, 2, 2, 2, 3, 1]
    assert layout.rows.tolist() == [[1, 2], [7, 8]]
    x = np.arange(11, dtype=np.float32)[:, None]
    expected = [[0, 3, 4, 5], [6, 9, 10, 0]]
    assert layout.padded(x)[..., 0].tolist() == expected


def test_the_engines_leave_what_they_are_given() -> None:
    """An operation may still need the array that it has returned."""
    layout = with_prompts(batch_of(tiny().config, **batch_of_texts()), 3)
    inner = tiny().engine(tiny().weights, layout)
    given = np.ones((len(layout.words()), 128), np.float32)

    class Same(WrappingEngine):
        def layer_norm(self, name: str, x: np.ndarray, eps: float) -> np.ndarray:
            return given

    entered = PromptEngine(Same(inner, layout), layout, some_prompts(), "embeddings.LayerNorm")
    assert (entered.layer_norm("embeddings.LayerNorm", given, 0.0) != 1).any()
    assert (shifted(inner, layout, given, some_prompts(1)[0]) != 1).any()
    assert (given == 1).all()


def test_another_head_is_refused() -> None:
    config = replace(tiny().config, architecture="BertForQuestionAnswering")
    other = replace(tiny(), config=config)
    with pytest.raises(BertNumpyError, match="expected a BertForSequenceClassification"):
        adapted_run(other, batch_of_texts())


def test_prompts_do_not_count_for_the_length() -> None:
    config = tiny().config
    ids = np.full((1, config.max_length), 2204)
    assert adapted_run(tiny(), {"input_ids": ids}, some_prompts()).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("prompts", "shift", "expected"),
    [
        (np.zeros((3, 127), np.float32), None, r"prompts: expected float32 of shape \(prompts, 12"),
        (np.zeros((3, 128)), None, "found float64"),
        (np.zeros(128, np.float32), None, r"found float32 of shape \(128,\)"),
        (None, np.zeros((1, 128), np.float32), r"shift: expected float32 of shape \(128,\)"),
        (None, np.zeros(128), "shift: expected float32.* found float64"),
    ],
)
def test_what_a_run_refuses(prompts: Any, shift: Any, expected: str) -> None:
    with pytest.raises(BertNumpyError, match=expected):
        adapted_run(tiny(), batch_of_texts(), prompts, shift)


# Statistics, fitness, shifting


def features_of(texts: int, layers: int = 2, hidden: int = 3, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((texts, layers, hidden))
    return (3 * drawn + 1).astype(np.float32)


def test_statistics_against_python() -> None:
    x = features_of(5)
    found = statistics_of(x)
    for layer in range(2):
        for i in range(3):
            values = [float(v) for v in x[:, layer, i]]
            mean = math.fsum(values) / 5
            deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / 4)
            assert found.mean[layer, i] == pytest.approx(mean, rel=1e-12)
            assert found.deviation[layer, i] == pytest.approx(deviation, rel=1e-12)
    assert found.samples == 5


def test_source_statistics_do_not_depend_on_the_batches() -> None:
    """In golden mode, to the last bit: texts one by one with one more, or all at once."""
    model, batch = quantized("e4m3", golden=True), batch_of_texts()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in ([0, 1, 2], [3], [4])]
    one, two = source_statistics(model, [batch]), source_statistics(model, parts)
    assert_same_bits(one.mean, two.mean)
    assert_same_bits(one.deviation, two.deviation)
    expected = statistics_of(np.stack([adapted_run(model, batch).features[i] for i in range(5)]))
    assert_same_bits(one.mean, expected.mean)


@pytest.mark.parametrize("texts", [0, 1])
def test_statistics_need_two_texts(texts: int) -> None:
    with pytest.raises(BertNumpyError, match=f"at least 2 texts, found {texts}"):
        statistics_of(features_of(texts))
    one = {name: x[:texts] for name, x in batch_of_texts().items()}
    with pytest.raises(BertNumpyError, match=f"at least 2 texts, found {texts}"):
        source_statistics(tiny(), [one] if texts else [])


def test_a_file_of_statistics(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    kept = statistics_of(features_of(5))
    save_statistics(kept, path)
    read = load_statistics(path)
    assert_same_bits(read.mean, kept.mean)
    assert_same_bits(read.deviation, kept.deviation)
    assert read.samples == 5

    def refused(expected: str, **changed: Any) -> None:
        save_statistics(replace(kept, **changed), path)
        with pytest.raises(BertNumpyError, match=expected):
            load_statistics(path)

    refused("'samples': expected a number of at least 2", samples=1)
    refused("'mean': expected 2-D float64", mean=kept.mean.astype(np.float32))
    refused("'mean': expected finite numbers", mean=kept.mean * np.nan)
    refused("'deviation': expected the shape", deviation=kept.deviation[:1])
    refused("no negative numbers", deviation=-kept.deviation)
    refused("'mean': expected 2-D float64", mean=kept.mean[:0], deviation=kept.deviation[:0])
    for samples in ("-2", "2.0", "\u0662\u0663", "9" * 5000, ""):
        refused("'samples': expected a number of at least 2", samples=samples)
    bert_numpy.save_calibration(calibrate(tiny(), [batch_of_texts()]), path)
    with pytest.raises(BertNumpyError, match="metadata 'format': expected 'bert_numpy feature"):
        load_statistics(path)


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=4)
)
def test_entropies(logits: list[list[float]]) -> None:
    for row, found in zip(logits, entropies(np.array(logits, np.float32)), strict=True):
        weights = [math.exp(x - max(row)) for x in row]
        shares = [x / math.fsum(weights) for x in weights]
        expected = -math.fsum(p * math.log(p) for p in shares if p)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert -1e-15 <= found <= math.log(3) + 1e-12


def test_fitness_against_the_formula() -> None:
    """Equation 5, term by term; the weight is for 64 texts."""
    logits = np.random.default_rng(1).standard_normal((6, 2)).astype(np.float32)
    features, source = features_of(6), statistics_of(features_of(9, seed=3))
    expected = math.fsum(entropies(logits))
    for layer in range(2):
        for i in range(3):
            x = features[:, layer, i].astype(float)
            apart = (
                np.mean(x) - source.mean[layer, i],
                np.std(x, ddof=1) - source.deviation[layer, i],
            )
            expected += 0.4 * 6 / 64 * (apart[0] ** 2 + apart[1] ** 2)
    assert fitness(logits, features, source) == pytest.approx(expected, rel=1e-12)
    assert fitness(logits, features, source, 0) == pytest.approx(math.fsum(entropies(logits)))
    assert discrepancy(source, source) == 0
    bad = logits.copy()
    bad[2, 1] = np.inf
    with pytest.raises(BertNumpyError, match="logits: expected finite numbers"):
        fitness(bad, features, source)
    with pytest.raises(BertNumpyError, match="features: expected finite numbers"):
        fitness(logits, features * np.float32(np.nan), source)


def test_a_moving_average() -> None:
    found, weights = None, []
    for i in range(4):
        found = moved_average(found, np.eye(4)[i], 0.25)
        weights.append(found)
    assert found is not None
    assert found.tolist() == [0.75**3, 0.25 * 0.75**2, 0.25 * 0.75, 0.25]
    assert weights[0].tolist() == [1, 0, 0, 0]


# The loop


class Scripted:
    """A search with fixed candidates, which keeps what it is told."""

    def __init__(self, candidates: np.ndarray) -> None:
        self.candidates = candidates
        self.told: list[tuple[np.ndarray, list[float]]] = []

    def ask(self) -> list[np.ndarray]:
        return list(self.candidates[len(self.told)])

    def tell(self, candidates: Sequence[np.ndarray], fitness: Sequence[float]) -> None:
        self.told.append((np.array(candidates), list(fitness)))


def stream() -> list[dict[str, np.ndarray]]:
    batch = batch_of_texts()
    return [{name: x[rows] for name, x in batch.items()} for rows in ([0, 1, 2], [3, 4], [1, 4])]


@cache
def source_of(recipe: str) -> FeatureStatistics:
    return source_statistics(quantized(recipe), [batch_of_texts()])


@pytest.mark.parametrize("recipe", ["fp32", "int8", "e4m3"])
def test_the_loop_against_its_rules(recipe: str) -> None:
    """Step by step as in the authors' code, with a search whose candidates are known."""
    model, source = quantized(recipe), source_of(recipe)
    settings = ForwardOnly(prompts=2, weight=0.7, share=0.25, step=0.5, seed=9)
    candidates = np.random.default_rng(0).standard_normal((3, 4, 256))
    searches: list[Scripted] = []

    def search(dimension: int, given: ForwardOnly) -> Scripted:
        assert (dimension, given) == (256, settings)
        searches.append(Scripted(candidates))
        return searches[-1]

    found = list(adapt(model, source, stream(), settings, search))
    best, average = first_prompts(2, 128, 9), None
    for number, batch in enumerate(stream()):
        tried = [*candidates[number].astype(np.float32).reshape(4, 2, 128), best]
        runs = [adapted_run(model, batch, prompts) for prompts in tried]
        losses = [fitness(run.logits, run.features, source, 0.7) for run in runs]
        winner = losses.index(min(losses))
        step = found[number]
        assert step.fitness == tuple(losses)
        assert step.best == losses[winner]
        assert_same_bits(step.prompts, tried[winner])
        assert_same_bits(step.unshifted, runs[winner].logits)
        told, values = searches[0].told[number]
        assert_same_bits(told, np.array([*candidates[number], best.reshape(-1).astype(float)]))
        assert values == losses
        best = tried[winner]
        if average is None:
            assert step.shift is None
            assert_same_bits(step.logits, step.unshifted)
        else:
            shift = (0.5 * (source.mean[1] - average)).astype(np.float32)
            assert step.shift is not None
            np.testing.assert_allclose(step.shift, shift, rtol=1e-6, atol=1e-9)
            assert_same_bits(step.logits, adapted_run(model, batch, best, step.shift).logits)
        mean = np.mean([run.features[:, 1].astype(float).mean(axis=0) for run in runs], axis=0)
        average = mean if average is None else 0.75 * average + 0.25 * mean
    assert len(searches) == 1
    assert len(searches[0].told) == 3


@pytest.mark.parametrize("recipe", ["fp32", "int8", "e4m3"])
def test_adaptation_without_prompts_and_step_is_static(recipe: str) -> None:
    model = quantized(recipe)
    static = [model(**batch).logits for batch in stream()]
    found = list(adapt(model, source_of(recipe), stream(), ForwardOnly(prompts=0, step=0)))
    for batch, logits in zip(found, static, strict=True):
        assert_same_bits(batch.logits, logits)
        assert_same_bits(batch.unshifted, logits)
    moved = list(adapt(model, source_of(recipe), stream(), ForwardOnly(prompts=0)))
    assert_same_bits(moved[2].unshifted, static[2])
    assert (moved[2].logits != static[2]).any()


def test_the_settings_of_the_paper() -> None:
    assert ForwardOnly() == ForwardOnly(
        prompts=3, weight=0.4, sigma=1.0, population=None, share=0.1, step=1.0, seed=0
    )


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"prompts": -1}, "prompts: expected 0 or more, found -1"),
        ({"seed": -1}, "seed: expected 0 or more, found -1"),
        ({"population": 3}, "population: expected 4 or more, found 3"),
        ({"weight": -0.1}, "weight: expected 0 or more, found -0.1"),
        ({"weight": math.inf}, "weight: expected 0 or more, found inf"),
        ({"sigma": 0}, "sigma: expected more than 0, found 0"),
        ({"sigma": math.nan}, "sigma: expected more than 0, found nan"),
        ({"share": 1.01}, "share: expected 0 to 1, found 1.01"),
        ({"step": math.inf}, "step: expected a finite number, found inf"),
    ],
)
def test_settings_out_of_their_range(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(BertNumpyError, match=f"^{expected}$"):
        ForwardOnly(**changed)


def test_statistics_of_another_model_are_refused() -> None:
    """Before the first batch. One layer's would be compared with those of both."""
    kept = source_of("fp32")
    for rows in (slice(1), slice(None)):
        other = replace(kept, mean=kept.mean[rows, :64], deviation=kept.deviation[rows, :64])
        with pytest.raises(BertNumpyError, match="source: expected statistics of 2 layers of 128"):
            adapt(tiny(), other, [])
    one = replace(kept, mean=kept.mean[:1], deviation=kept.deviation[:1])
    with pytest.raises(BertNumpyError, match="found <FeatureStatistics of 5 texts, 1 layers"):
        adapt(tiny(), one, [])
    with pytest.raises(BertNumpyError, match=r"features: expected shape .* found \(5, 3\)"):
        statistics_of(features_of(5)[:, 0])


def test_a_search_needs_the_package_cma(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(BertNumpyError, match=r"expected cma, found none: pip install .*adaptation"):
        adapt(tiny(), source_of("fp32"), stream())
    assert len(list(adapt(tiny(), source_of("fp32"), stream(), ForwardOnly(prompts=0)))) == 3


def test_the_first_of_equal_candidates_is_kept() -> None:
    """Prompts that differ below the precision have the same fitness."""
    model, source = quantized("e4m3"), source_of("e4m3")
    first = rounded_to_bfloat16(some_prompts(2)).astype(float).reshape(-1)
    candidates = np.array([[9 * first, first, first * (1 + 2.0**-12)]])
    (found,) = adapt(
        model, source, stream()[:1], ForwardOnly(prompts=2), lambda *_: Scripted(candidates)
    )
    assert found.fitness[1] == found.fitness[2]
    assert found.best == found.fitness[1]
    assert_same_bits(found.prompts, first.astype(np.float32).reshape(2, 128))


def test_the_search_that_an_adaptation_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def search(*given: Any) -> Scripted:
        made.append(given)
        return Scripted(np.ones((1, 1, 256)))

    monkeypatch.setattr(forward_only, "CmaSearch", search)
    settings = ForwardOnly(prompts=2, sigma=0.25, population=7, seed=3)
    list(adapt(tiny(), source_of("fp32"), stream()[:1], settings))
    assert made == [(256, 0.25, 7, 3)]


def test_the_model_is_not_changed() -> None:
    model = quantized("e4m3")
    before = model(**batch_of_texts()).logits
    candidates = np.random.default_rng(0).standard_normal((3, 2, 384))
    list(adapt(model, source_of("e4m3"), stream(), search=lambda *_: Scripted(candidates)))
    assert_same_bits(model(**batch_of_texts()).logits, before)


def test_a_batch_of_one_text_is_refused() -> None:
    one = {name: x[:1] for name, x in batch_of_texts().items()}
    with pytest.raises(BertNumpyError, match="at least 2 texts, found 1"):
        list(adapt(tiny(), source_of("fp32"), [one], ForwardOnly(prompts=0)))


def test_first_prompts() -> None:
    """Within Xavier's bound and all over it, decided by the seed."""
    drawn = first_prompts(3, 128, 0)
    bound = math.sqrt(6 / 256)
    assert drawn.dtype == np.float32
    assert drawn.shape == (3, 128)
    assert 0.95 * bound < np.abs(drawn).max() <= bound
    assert abs(drawn.mean()) < bound / 10
    assert_same_bits(drawn, first_prompts(3, 128, 0))
    assert (drawn != first_prompts(3, 128, 1)).any()


# CMA-ES


def test_the_population() -> None:
    assert [population_of(n) for n in (1, 10, 384, 1152, 2304)] == [4, 10, 21, 25, 27]


def test_the_first_generation(cma: Any) -> None:
    """Around zero with the standard deviation that is asked for; as many as are asked for."""
    drawn = np.array(CmaSearch(600, 0.5, population=50, seed=2).ask())
    assert drawn.shape == (50, 600)
    assert abs(drawn.mean()) < 5 * 0.5 / math.sqrt(drawn.size)
    assert drawn.std() == pytest.approx(0.5, rel=0.02)


def test_cma_leaves_numpys_global_generator(cma: Any) -> None:
    """Making a search does not seed it."""
    np.random.seed(7)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    CmaSearch(5)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_cma_finds_a_minimum(cma: Any) -> None:
    """The nearest point to a target; with the best of the last generation in every one."""
    target = np.linspace(-1, 1, 12)
    search, best = CmaSearch(12, seed=1), np.full(12, 9.0)
    first = math.inf
    for _ in range(150):
        candidates = [*search.ask(), best]
        losses = [float(((x - target) ** 2).sum()) for x in candidates]
        assert len(candidates) == population_of(12) + 1
        search.tell(candidates, losses)
        best = candidates[losses.index(min(losses))]
        first = min(first, *losses)
    assert min(losses) < 1e-6
    assert first == min(losses)


def test_cma_is_decided_by_its_seed(cma: Any) -> None:
    """Whatever NumPy's global generator is at: it is used for a check alone."""

    def asked(seed: int, state: int) -> np.ndarray:
        search, found = CmaSearch(40, seed=seed), []
        for _ in range(6):
            np.random.seed(state)  # noqa: NPY002
            candidates = list(search.ask())
            found.append(np.array(candidates))
            search.tell(candidates, [float((x**2).sum()) for x in candidates])
        return np.array(found)

    assert_same_bits(asked(1, 0), asked(1, 7))
    assert (asked(1, 0) != asked(2, 0)).any()


def test_an_adaptation_is_decided_by_its_seed(cma: Any) -> None:
    def run(seed: int) -> list[AdaptedBatch]:
        settings = ForwardOnly(seed=seed, population=5)
        return list(adapt(quantized("e4m3"), source_of("e4m3"), stream(), settings))

    one, two, other = run(0), run(0), run(1)
    for a, b in zip(one, two, strict=True):
        assert_same_bits(a.logits, b.logits)
        assert_same_bits(a.prompts, b.prompts)
        assert a.fitness == b.fitness
        assert len(a.fitness) == 6
    assert set(one[0].fitness).isdisjoint(other[0].fitness)  # first prompts, and candidates


def test_the_search_lowers_the_fitness(cma: Any) -> None:
    """Of one batch again and again: that of the whole generation, not only of its best."""
    batch = batch_of_texts()
    source = source_statistics(tiny(), [batch])
    noisy = dict(batch, input_ids=np.where(batch["input_ids"] > 999, 2000, batch["input_ids"]))
    found = list(adapt(tiny(), source, [noisy] * 15, ForwardOnly(population=10)))
    first, last = (np.mean(x.fitness[:-1]) for x in (found[0], found[-1]))
    # 0.60 to 0.82 with seven seeds: another LAPACK's eigenvectors may mean other candidates.
    assert last < 0.95 * first
    assert all(b.best <= a.best for a, b in itertools.pairwise(found))


# Shifts of texts


def test_every_shift_changes_more_the_stronger_it_is() -> None:
    texts = (REVIEWS / "dev.tsv").read_text(encoding="utf-8").split("\n")[1:60]
    for name, shift in SHIFTS.items():
        changed = [
            sum(a != b for a, b in zip(texts, shifted_texts(texts, name, p, 0), strict=True))
            for p in (0.0, *shift.strengths)
        ]
        assert changed[0] == 0, name
        assert changed == sorted(changed), name
        assert changed[-1] > len(texts) / 2, name
        assert list(shift.strengths) == sorted(shift.strengths)


def test_the_rules_of_shifts() -> None:
    """What each may change, on many texts."""
    texts = ["The Quick brown fox , jumps over 12 lazy dogs !"] * 200
    keep = texts[0]
    letters = "".join(x for x in keep if x.isalpha())
    for text in shifted_texts(texts, "typos", 0.3, 1):
        assert len(text) == len(keep)
        for old, new in zip(keep, text, strict=True):
            if old != new:
                assert old.isalpha()
                assert new.isupper() == old.isupper()
                assert new.lower() in NEIGHBOURS[old.lower()]
    for text in shifted_texts(texts, "drops", 0.3, 1):
        rest = iter(keep)
        assert all(x in rest for x in text)  # a subsequence
        assert [x for x in text if not x.isalpha()] == [x for x in keep if not x.isalpha()]
    for text in shifted_texts(texts, "casing", 0.3, 1):
        assert text.lower() == keep.lower()
    for text in shifted_texts(texts, "order", 0.5, 1):
        assert sorted(text.split(" ")) == sorted(keep.split(" "))
    for text in shifted_texts(texts, "noise", 0.3, 1):
        rest = iter(text)
        assert all(x in rest for x in keep)
    upper = shifted_texts([keep], "casing", 1.0, 0)[0]
    assert upper == keep.swapcase()
    assert len(letters) < len(keep)


#: A keyboard, from the letters that touch each key: written by hand for some of them.
NEIGHBOURS = {
    **{"q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj"},
    **{"i": "uojk", "o": "ipkl", "p": "ol", "a": "qwsz", "s": "wedxza", "d": "erfcxs"},
    **{"f": "rtgvcd", "g": "tyhbvf", "h": "yujnbg", "j": "uikmnh", "k": "iolmj", "l": "opk"},
    **{"z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk"},
}


def test_the_share_of_changed_letters() -> None:
    """A probability of 0.2, within five standard deviations of 20,000 letters."""
    text = "abcdefghij" * 2000
    typed = shifted_texts([text], "typos", 0.2, 3)[0]
    dropped = shifted_texts([text], "drops", 0.2, 3)[0]
    noisy = shifted_texts([text], "noise", 0.2, 3)[0]
    for count in (
        sum(a != b for a, b in zip(text, typed, strict=True)),
        len(text) - len(dropped),
        len(noisy) - len(text),
    ):
        assert abs(count - 4000) < 5 * math.sqrt(20000 * 0.2 * 0.8)


def test_a_typo_may_be_any_neighbour_of_any_letter() -> None:
    text = "abcdefghijklmnopqrstuvwxyz" * 400
    typed = shifted_texts([text], "typos", 0.5, 0)[0]
    found: dict[str, set[str]] = {letter: set() for letter in NEIGHBOURS}
    for old, new in zip(text, typed, strict=True):
        if old != new:
            found[old].add(new)
    assert found == {letter: set(keys) for letter, keys in NEIGHBOURS.items()}
    typed = shifted_texts(["Q" * 2000], "typos", 0.2, 0)[0]
    assert abs(typed.count("Q") - 1600) < 5 * math.sqrt(2000 * 0.2 * 0.8)


def test_noise_is_behind_any_character() -> None:
    """Also behind blanks, but once at most; with every character of its list, evenly."""
    marks = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'-"
    noisy = shifted_texts(["X " * 22000], "noise", 0.5, 0)[0]
    assert "".join(x for x in noisy if x not in marks) == "X " * 22000
    assert noisy[0] == "X"
    pairs = [(old, new) for old, new in itertools.pairwise(noisy) if new in marks]
    assert {old for old, _ in pairs} == {"X", " "}
    for old in "X ":
        count = sum(pair[0] == old for pair in pairs)
        assert abs(count - 11000) < 5 * math.sqrt(22000 * 0.25)
    for mark in marks:
        count = sum(pair[1] == mark for pair in pairs)
        assert abs(count - 500) < 5 * math.sqrt(500), mark


def test_any_order_of_the_chosen_words_is_as_likely() -> None:
    """All words at a strength of 1; each with probability p at others."""
    found = shifted_texts(["a b c"] * 6000, "order", 1.0, 0)
    orders = {" ".join(x): found.count(" ".join(x)) for x in itertools.permutations("abc")}
    assert sum(orders.values()) == 6000
    assert all(abs(count - 1000) < 5 * math.sqrt(1000) for count in orders.values()), orders
    swapped = shifted_texts(["a b"] * 6000, "order", 0.5, 0).count("b a")
    assert abs(swapped - 750) < 5 * math.sqrt(750)  # both are chosen, and they change places


def test_texts_that_every_machine_gets() -> None:
    text = "The Quick brown fox jumps over 12 lazy dogs"
    expected = {
        "typos": "Yhd Qykci brown fpx jumps ocsr 12 lazy dogs",
        "drops": "e ui ron fox jums over 12 laz gs",
        "noise": "Tnhe0 Qcu2ictk brownp fox jumep;s over 12 lazy deo4gs",
        "order": "fox dogs brown 12 jumps over Quick The lazy",
        "casing": "tHe quiCK BroWn fox jumPs over 12 lazY DOgs",
    }
    assert {name: shifted_texts([text], name, 0.3, 2)[0] for name in SHIFTS} == expected


def test_the_page_has_the_rules_and_strengths() -> None:
    page = (ROOT / "docs" / "adaptation.md").read_text(encoding="utf-8")
    for name, shift in SHIFTS.items():
        strengths = ", ".join(str(p) for p in shift.strengths)
        assert f"| {name} | {strengths} | {shift.meaning} |" in page


def test_a_shift_is_decided_by_its_seed_and_the_number_of_the_text() -> None:
    texts = [f"text number {i} of a longer list" for i in range(20)]
    for name in SHIFTS:
        found = shifted_texts(texts, name, 0.5, 4)
        assert shifted_texts(texts[:7], name, 0.5, 4) == found[:7]
        assert shifted_texts(["x", *texts[1:]], name, 0.5, 4)[1:] == found[1:]
        assert shifted_texts(texts, name, 0.5, 5) != found
    assert shifted_texts(["a"], "drops", 1.0, 0) == ["a"]


def test_casing_does_not_reach_an_uncased_model() -> None:
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    one, two = tokenizer.batch(TEXTS), tokenizer.batch(shifted_texts(TEXTS, "casing", 1.0, 0))
    assert_same_bits(one["input_ids"], two["input_ids"])


# The study


def test_the_names_of_cells() -> None:
    """Long runs have left files of these names. They do not depend on a folder.

    The number of words of a long text is not in them, so it stays as it is.
    """
    assert study.LONG == 12
    cell = study.AdaptationCell(
        *("bert-tiny-sst2", "sst2", "glue/SST-2", "fp32", "typos", 0.1, 0), source="long"
    )
    others = {
        "A": cell,
        "B": replace(cell, seed=1, settings=ForwardOnly(seed=1)),
        "C": replace(cell, candidates=22),
        "D": replace(cell, limit=384),
        "E": replace(cell, model="minilm-sst2"),
    }
    assert {one.file(Path("cells")).stem: name for name, one in others.items()} == {
        "6df425f9a2b9a2166d75fc79": "A",
        "9cbc0119370119ce380460af": "B",
        "092e545748e59e210b385215": "C",
        "928c6af48a1eb27444ce4d26": "D",
        "88bc7dc59e866fe4341517e4": "E",
    }
    moved = replace(cell, model="build/bert-tiny-sst2", data="elsewhere")
    assert moved.file(Path("cells")) == cell.file(Path("cells"))


def test_the_study(cma: Any, tmp_path: Path) -> None:
    """Its answers are those of the pieces; it can be resumed; its tables are of its files."""
    base = study.AdaptationCell(
        *("bert-tiny-sst2", "sst2", str(REVIEWS), "", "none", 0.0, 0),
        samples=8,
        limit=70,
        settings=ForwardOnly(population=4),
    )
    cells = study.cells_of(base, ["fp32"], ["none", "drops"], [2], 2)
    assert [(c.shift, c.strength, c.seed, c.settings.seed) for c in cells] == [
        *(("none", 0.0, 0, 0), ("none", 0.0, 1, 1), ("drops", 0.2, 0, 0), ("drops", 0.2, 1, 1)),
    ]
    files = [study.run_cell(cell, tmp_path) for cell in cells]
    assert len(set(files)) == 4
    times = [file.stat().st_mtime_ns for file in files]
    assert [study.run_cell(cell, tmp_path).stat().st_mtime_ns for cell in cells] == times
    with np.load(files[0]) as arrays:
        static, labels = arrays["static"], arrays["labels"]
        assert arrays["both"].shape == (1, 70, 2)
        assert arrays["fitness"].shape == (2, 5)
    job = study.prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=8, limit=70)
    expected = np.concatenate([tiny()(**study.pad([one])).logits for one in job.encoded])
    np.testing.assert_allclose(static[0], expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == job.examples.labels.tolist()
    rows = tables.rows_of(cells, tmp_path)
    assert [(row["shift"], row["cells"]) for row in rows] == [
        *(("none", 2), ("drops", 2), ("all shifts", 2)),
    ]
    right = float((expected.argmax(axis=1) == labels).mean())
    assert rows[0]["static"] == pytest.approx(right)
    with np.load(files[2]) as one, np.load(files[3]) as two:
        shares = [(x["both"][-1].argmax(axis=1) == labels).mean() for x in (one, two)]
    assert rows[1]["both"]["accuracy"] == pytest.approx(np.mean(shares))
    lines = tables.table(rows).splitlines()
    assert lines[0] == ("| recipe | texts | static | shifting alone | prompts alone | both (FOA) |")
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        *(["| fp32", "clean"], ["| fp32", "drops 0.2"], ["| fp32", "all shifts"]),
    ]


def test_the_answers_of_a_cell(cma: Any) -> None:
    """Those of the adaptation to its stream, in the order of the data, and its fitness."""
    cell = study.AdaptationCell(
        *("bert-tiny-sst2", "sst2", str(REVIEWS), "e4m3", "drops", 0.2, 3),
        samples=8,
        limit=70,
        settings=ForwardOnly(population=4, seed=3),
    )
    job = study.prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=256, limit=70)
    order = np.random.Generator(np.random.PCG64([3, 2])).permutation(70)
    texts = shifted_texts(job.examples.texts, "drops", 0.2, 6)
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    given = [tokenizer.batch([texts[i] for i in part]) for part in (order[:64], order[64:])]
    with one_blas_thread():
        found = study.answers(cell)
        calibration = study.calibrate_on(job.model, job.calibration_texts)
        model = apply_recipe(job.model, "e4m3", calibration)
        source = study.source_of(cell)
        plain = list(adapt(model, source, given, ForwardOnly(prompts=0)))
        searched = list(adapt(model, source, given, cell.settings))
    assert (plain[1].logits != plain[1].unshifted).all()
    expected = {
        "static": [x.unshifted for x in plain],
        "shifted": [x.logits for x in plain],
        "prompts": [x.unshifted for x in searched],
        "both": [x.logits for x in searched],
    }
    assert found.keys() == {*expected, "fitness", "static_fitness", "labels"}
    for name, logits in expected.items():
        assert found[name].shape == (1, 70, 2)
        np.testing.assert_allclose(found[name][0, order], np.concatenate(logits), atol=1e-4)
    np.testing.assert_allclose(found["fitness"], [x.fitness for x in searched], rtol=1e-4)
    np.testing.assert_allclose(found["static_fitness"], [x.best for x in plain], rtol=1e-4)


def test_both_texts_of_pairs_are_shifted() -> None:
    """With seeds of their own; the labels and a clean cell's texts stay."""
    texts, pairs = ["warm and funny"] * 3, ["dull and slow", "warm and funny", "a film"]
    examples = Examples(texts, pairs, np.array([0, 1, 1]))
    job: Any = SimpleNamespace(examples=examples, task=task_named("mrpc"))
    cell = study.AdaptationCell("bert-tiny-sst2", "mrpc", "", "fp32", "typos", 0.3, 2)
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    for shift, one, two in (
        ("none", texts, pairs),
        ("typos", shifted_texts(texts, "typos", 0.3, 4), shifted_texts(pairs, "typos", 0.3, 5)),
    ):
        found = study._encoded(job, replace(cell, shift=shift))
        expected = tokenizer.encode(one, two)
        assert [x.input_ids for x in found] == [x.input_ids for x in expected]
    assert one[1] != two[1]


def test_texts_are_cut_at_the_tasks_length() -> None:
    examples = Examples(["film " * 300], None, np.array([0]))
    job: Any = SimpleNamespace(examples=examples, task=task_named("sst2"))
    (found,) = study._encode(job, examples, "bert-tiny-sst2")
    assert len(found.input_ids) == task_named("sst2").max_length


def test_the_candidates_of_a_model_with_other_labels() -> None:
    """A model that has the task's labels in another order: class 0 is the task's 1."""
    cell = study.AdaptationCell("", "sst2", "", "fp32", "none", 0.0, 0, candidates=2)
    batch, labels = batch_of_texts(), np.array([1, 0, 0, 0, 1])
    one, two = (
        study._tried(cell, tiny(), source_of("fp32"), [(batch, labels)], np.array(classes))
        for classes in ([0, 1], [1, 0])
    )
    assert one["right"].shape == (1, 2)
    assert one["right"].max() > 0.5
    np.testing.assert_allclose(one["right"] + two["right"], 1)
    assert_same_bits(one["entropy"], two["entropy"])


def test_the_passes_of_a_study(cma: Any, tmp_path: Path) -> None:
    """The first pass is that of a study with one pass, batch by batch; fitness is per text."""
    base = study.AdaptationCell(
        *("bert-tiny-sst2", "sst2", str(REVIEWS), "fp32", "typos", 0.1, 0),
        samples=8,
        limit=70,
        settings=ForwardOnly(population=4),
    )
    cells = [base, replace(base, passes=3)]
    for cell in cells:
        study.run_cell(cell, tmp_path)
    with np.load(cells[0].file(tmp_path)) as one, np.load(cells[1].file(tmp_path)) as three:
        assert_same_bits(three["both"][:1], one["both"])
        assert_same_bits(three["fitness"][:2], one["fitness"])
        last = float(three["fitness"][4].min() + three["fitness"][5].min())
        static = float(one["static_fitness"].sum())
        right = float((three["both"][2].argmax(axis=1) == three["labels"]).mean())
        first = float((one["both"][0].argmax(axis=1) == one["labels"]).mean())
        # So that a mix-up of the passes shows; their accuracies may happen to be the same.
        assert three["fitness"][0].min() + three["fitness"][1].min() != last
    rows = tables.pass_rows(cells[1:], tmp_path)
    assert rows[0]["both"] == pytest.approx(first)
    assert [row["pass"] for row in rows] == [1, 2, 3]
    assert rows[2]["best fitness"] == pytest.approx(last / 70)
    assert rows[2]["static fitness"] == pytest.approx(static / 70)
    assert rows[2]["both"] == pytest.approx(right)
    assert tables.pass_table(rows).splitlines()[-1].startswith("| 3 | ")


def test_the_candidates_of_a_study(tmp_path: Path) -> None:
    """The terms against the run of each drawn prompt, and the correlations against NumPy's."""
    cell = study.AdaptationCell(
        *("bert-tiny-sst2", "sst2", str(REVIEWS), "int8", "noise", 0.1, 5),
        samples=8,
        limit=70,
        candidates=6,
        settings=ForwardOnly(sigma=0.5, seed=5),
    )
    file = study.run_cell(cell, tmp_path)
    with np.load(file) as arrays:
        terms = {name: arrays[name] for name in arrays.files}
    assert {x.shape for x in terms.values()} == {(2, 6)}
    assert (terms["right"] * [[64], [6]] % 1 < 1e-9).all()
    job = study.prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=256, limit=70)
    few = study.prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=8, limit=70)
    texts = shifted_texts(job.examples.texts, "noise", 0.1, 10)
    order = np.random.Generator(np.random.PCG64([5, 2])).permutation(70)
    generator = np.random.Generator(np.random.PCG64([5, 3]))
    drawn = 0.5 * generator.standard_normal((12, 3, 128)).astype(np.float32)
    with one_blas_thread():  # as the study: another sum in a product may be another INT8 code
        calibration = study.calibrate_on(job.model, job.calibration_texts)
        model = apply_recipe(job.model, "int8", calibration)
        source = source_statistics(model, (x for _, x in batches(few.calibration_texts, 64)))
    for number, part in enumerate((order[:64], order[64:])):
        batch = bert_numpy.load_tokenizer("bert-tiny-sst2").batch([texts[i] for i in part])
        with one_blas_thread():
            run = adapted_run(model, batch, drawn[6 * number])
        found = {name: x[number, 0] for name, x in terms.items()}
        assert found["entropy"] == pytest.approx(entropies(run.logits).sum())
        total = fitness(run.logits, run.features, source)
        assert found["entropy"] + found["discrepancy"] == pytest.approx(total)
        right = (run.logits.argmax(axis=1) == job.examples.labels[part]).mean()
        assert found["right"] == pytest.approx(right)
    (row,) = tables.candidate_rows([cell], tmp_path)
    expected = [
        np.corrcoef(terms["entropy"][i], terms["right"][i])[0, 1]
        for i in range(2)
        if terms["right"][i].std()
    ]
    assert row["entropy"]["correlation"] == pytest.approx(np.mean(expected))
    assert row["spread"] == pytest.approx(terms["right"].std(axis=1).mean())
    assert tables.candidate_table([row]).splitlines()[-1].startswith("| int8 | noise 0.1 | ")


def test_the_sources_of_a_study() -> None:
    """Training texts, long ones among them, or the texts that will be shifted."""
    cell = study.AdaptationCell(
        "bert-tiny-sst2", "sst2", str(REVIEWS), "fp32", "typos", 0.1, 0, samples=9, limit=20
    )
    job = study.prepare("bert-tiny-sst2", "sst2", REVIEWS, calibration_samples=9, limit=20)
    lines = (REVIEWS / "train.tsv").read_text(encoding="utf-8").split("\n")[1:]
    texts = [line.split("\t")[0] for line in lines if line]
    long = [text for text in texts if len(text.split()) >= study.LONG]
    assert 9 < len(long) < len(texts)
    chosen = [long[i * len(long) // 9] for i in range(9)]
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    expected = {
        "train": study.pad(job.calibration_texts),
        "long": tokenizer.batch(chosen),
        "dev": study.pad(job.encoded),
    }
    for name, batch in expected.items():
        found = study.source_of(replace(cell, source=name))
        kept = source_statistics(tiny(), [batch])
        assert found.samples == kept.samples
        np.testing.assert_allclose(found.mean, kept.mean, rtol=1e-4, atol=1e-5)


def test_the_interval_keeps_a_texts_cells_together() -> None:
    """Copies of the same cell add no knowledge; the interval is that of one."""
    one = np.random.default_rng(0).integers(-1, 2, (1, 300)).astype(float)
    assert tables.interval(one) == tables.interval(np.repeat(one, 5, axis=0))
    low, high = tables.interval(one)
    error = one.std() / math.sqrt(300)
    assert low == pytest.approx(one.mean() - 1.96 * error, abs=0.25 * error)
    assert high == pytest.approx(one.mean() + 1.96 * error, abs=0.25 * error)

"""Calibration: what it sees of a forward pass, and the scales that it gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint

import bert_numpy
from bert_numpy import BertNumpyError, Calibration, Model, calibrate
from bert_numpy.model import encoder_sites
from bert_numpy.policy import Policy
from npfp8 import E4M3FN, E5M2, INT8, Format

Batch = dict[str, np.ndarray]

HEAD_SITES = ["pooler.dense", "classifier"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return bert_numpy.load(write_checkpoint(tmp_path_factory.mktemp("model")))


def random_batch(seed: int, lengths: tuple[int, ...] = (7, 4, 9)) -> Batch:
    generator = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    mask = np.arange(shape[1]) < np.array(lengths)[:, None]
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), shape),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": generator.integers(0, 2, shape),
    }


def recorded_absmax(model: Model, batches: list[Batch]) -> dict[str, tuple[float, float]]:
    """The largest magnitude of both operands of each product, seen by a policy of this test."""
    seen: dict[str, list[tuple[float, float]]] = {}

    def gemm(site: str, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        seen.setdefault(site, []).append((float(abs(a).max()), float(abs(b).max())))
        return model.policy.gemm(site, a, b, bias)

    watched = replace(model, policy=Policy(gemm, model.policy.arithmetic))
    for batch in batches:
        watched(**batch)
    return {
        site: (max(left for left, _ in pairs), max(right for _, right in pairs))
        for site, pairs in seen.items()
    }


def test_absmax_of_every_product(model: Model) -> None:
    batches = [random_batch(seed) for seed in range(3)]
    found = calibrate(model, batches)
    assert list(found.absmax) == encoder_sites(model.config) + HEAD_SITES
    assert found.absmax == recorded_absmax(model, batches)
    assert found.samples == 9


def test_right_operand_of_a_layer_is_its_weight(model: Model) -> None:
    absmax = calibrate(model, [random_batch(0)]).absmax
    linear = [site for site in absmax if f"{site}.weight" in model.weights]
    assert len(linear) == 6 * 2 + 2
    for site in linear:
        weight = model.weights[f"{site}.weight"]
        assert isinstance(weight, np.ndarray)
        assert absmax[site][1] == float(np.abs(weight).max()), site


def test_attention_weights_are_within_one(model: Model) -> None:
    absmax = calibrate(model, [random_batch(0)]).absmax
    for layer in range(2):
        left, _ = absmax[f"encoder.layer.{layer}.attention.context"]
        assert 1 / 9 <= left <= 1  # a row of 9 weights sums to 1


def test_batches_are_merged(model: Model) -> None:
    batches = [random_batch(seed, lengths) for seed, lengths in enumerate([(5,), (8, 3), (6, 6)])]
    parts = [calibrate(model, [batch]) for batch in batches]
    for order in (batches, batches[::-1]):
        whole = calibrate(model, iter(order))
        assert whole.samples == 5
        for site, absmax in whole.absmax.items():
            for side in (0, 1):
                assert absmax[side] == max(part.absmax[site][side] for part in parts)
    by_part = [{site: absmax[0] for site, absmax in part.absmax.items()} for part in parts]
    assert len({min(range(3), key=lambda i: -by_part[i][site]) for site in by_part[0]}) > 1


def test_padding_is_not_seen(model: Model) -> None:
    """Ids under the mask may be anything: here, a token with an enormous embedding."""
    weights = dict(model.weights)
    words = np.array(weights["embeddings.word_embeddings.weight"])
    words[0] = np.linspace(-1e4, 1e4, words.shape[1])
    loud = replace(model, weights=weights | {"embeddings.word_embeddings.weight": words})
    quiet = random_batch(1)
    quiet["input_ids"] = np.maximum(quiet["input_ids"], 1)
    padded = quiet | {"input_ids": np.where(quiet["attention_mask"] == 1, quiet["input_ids"], 0)}
    assert calibrate(loud, [padded]).absmax == calibrate(loud, [quiet]).absmax


def test_model_is_left_as_it_was(model: Model) -> None:
    policy, weights = model.policy, {name: np.array(w) for name, w in model.weights.items()}
    calibrate(model, [random_batch(0)])
    assert model.policy is policy
    for name, weight in weights.items():
        np.testing.assert_array_equal(model.weights[name], weight)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "site",
    [
        "encoder.layer.0.attention.self.query",
        "encoder.layer.1.attention.output.dense",
        "encoder.layer.1.intermediate.dense",
        "classifier",
    ],
)
def test_weight_that_is_not_finite(model: Model, site: str, value: float) -> None:
    weight = np.array(model.weights[f"{site}.weight"])
    weight[1, 3] = value
    broken = replace(model, weights=dict(model.weights) | {f"{site}.weight": weight})
    with pytest.raises(BertNumpyError) as error:
        calibrate(broken, [random_batch(0)])
    assert str(error.value).startswith(
        f"calibration: site {site!r}: expected finite operands, found "
    )


@pytest.mark.parametrize(
    ("parameter", "site"),
    [
        ("embeddings.LayerNorm.bias", "encoder.layer.0.attention.self.query"),
        ("encoder.layer.0.attention.self.query.bias", "encoder.layer.0.attention.scores"),
        ("encoder.layer.0.attention.self.value.bias", "encoder.layer.0.attention.context"),
        ("encoder.layer.1.output.LayerNorm.weight", "pooler.dense"),
    ],
)
def test_activation_that_is_nan(model: Model, parameter: str, site: str) -> None:
    values = np.array(model.weights[parameter])
    values[2] = np.nan
    broken = replace(model, weights=dict(model.weights) | {parameter: values})
    with pytest.raises(BertNumpyError) as error:
        calibrate(broken, [random_batch(0)])
    assert str(error.value) == f"calibration: site {site!r}: expected finite operands, found nan"


def test_no_batches(model: Model) -> None:
    with pytest.raises(BertNumpyError) as error:
        calibrate(model, [])
    assert str(error.value) == "calibration: expected at least one sample, found none"


@pytest.mark.parametrize(("fmt", "largest"), [(E4M3FN, 448), (E5M2, 57344), (INT8, 127)], ids=str)
def test_scales(fmt: Format, largest: float) -> None:
    calibration = Calibration({"site": (3.7, 0.011), "still": (0.0, 2.0)}, samples=1)
    left, right = calibration.scales("site", fmt)
    for scale, absmax in ((left, 3.7), (right, 0.011)):
        assert scale.dtype == np.float32
        assert scale.shape == ()
        assert scale == np.float32(absmax) / np.float32(largest)
    left, right = calibration.scales("still", fmt)
    assert left == 1
    assert right == np.float32(2) / np.float32(largest)


def test_scales_of_a_site_that_was_not_seen() -> None:
    with pytest.raises(BertNumpyError) as error:
        Calibration({"one": (1.0, 1.0)}, samples=1).scales("another", E4M3FN)
    assert str(error.value) == "calibration: site 'another': expected absmax, found none"


def test_sample_in_training_set_is_enough_for_its_own_range(glue: Path) -> None:
    """The scales come from the sample alone: with all of it seen, nothing of it saturates."""
    model = bert_numpy.load("bert-tiny-sst2")
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    lines = (glue / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")[1:65]
    batch = tokenizer.batch([line.split("\t")[0] for line in lines])
    calibration = calibrate(model, [batch])
    assert calibration.samples == 64
    for site, (left, right) in recorded_absmax(model, [batch]).items():
        scale_left, scale_right = calibration.scales(site, E4M3FN)
        assert left / scale_left == pytest.approx(448, rel=1e-6)
        assert right / scale_right == pytest.approx(448, rel=1e-6)

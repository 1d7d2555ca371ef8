"""Calibration: the statistics of a forward pass, and the scales from them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import (
    CONFIG,
    VOCABULARY,
    assert_same_calibrations,
    assert_same_statistics,
    random_tensors,
    write_checkpoint,
    write_tensors,
)
from oracles import BFLOAT16, assert_same_bits, nearest
from watching import noted

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Calibration, Model, Recipe, apply_recipe, calibrate
from bert_numpy.engines.site import Site
from bert_numpy.evaluation.outliers import with_outliers
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.calibration import (
    load_calibration,
    merge_calibrations,
    save_calibration,
)
from bert_numpy.quantization.observers import Statistics, observe
from bert_numpy.quantization.observing import Sight
from bert_numpy.quantization.origin import origin_of
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from npfp8 import E4M3FN, E5M2, INT8, UINT8, Format

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


def recorded_operands(
    model: Model, batches: list[Batch]
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Both operands of each product."""
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def note(site: str, a: np.ndarray, b: np.ndarray, *_: Any) -> None:
        seen.setdefault(site, []).append((a.copy(), b.copy()))

    watched = noted(model, note)
    for batch in batches:
        watched(**batch)
    return seen


def recorded_absmax(model: Model, batches: list[Batch]) -> dict[str, tuple[float, float]]:
    """The largest magnitude of both operands of each product."""
    return {
        site: (
            max(float(abs(a).max()) for a, _ in pairs),
            max(float(abs(b).max()) for _, b in pairs),
        )
        for site, pairs in recorded_operands(model, batches).items()
    }


def attends(site: str) -> bool:
    return site.endswith((".attention.scores", ".attention.context"))


def operands_of(sites: list[str]) -> list[str]:
    """List the operands that a calibration counts at some sites, in order."""
    pairs = ([f"{site}:a", f"{site}:b"] if attends(site) else [f"{site}:a"] for site in sites)
    return [name for pair in pairs for name in pair]


def test_absmax_of_every_product(model: Model) -> None:
    batches = [random_batch(seed) for seed in range(3)]
    found = calibrate(model, batches)
    sites = encoder_sites(model.config) + HEAD_SITES
    assert list(found.operands) == operands_of(sites)
    assert list(found.channels) == [site for site in sites if not attends(site)]
    recorded = recorded_absmax(model, batches)
    for name, seen in found.operands.items():
        site, _, side = name.rpartition(":")
        assert seen.absmax == recorded[site]["ab".index(side)], name
    assert (found.samples, found.golden) == (9, False)


def test_weights_are_not_seen_but_columns_of_activations_are(model: Model) -> None:
    batches = [random_batch(seed) for seed in range(2)]
    found = calibrate(model, batches)
    linear = [site for site in found.channels if f"{site}.weight" in model.weights]
    assert linear == list(found.channels)
    assert len(linear) == 6 * 2 + 2
    operands = recorded_operands(model, batches)
    for site in linear:
        assert f"{site}:b" not in found.operands
        columns = np.concatenate([a.reshape(-1, a.shape[-1]) for a, _ in operands[site]])
        assert_same_bits(found.channels[site], np.abs(columns).max(axis=0))
        assert found.channels[site].max() == found.operands[f"{site}:a"].absmax


@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 3), (31, 128), (33, 128), (100, 512), (2, 5000), (0, 7), (4, 9, 100)]
)
def test_extrema_of_columns(shape: tuple[int, ...]) -> None:
    """Where several rows are taken as one, none is left out; the plain way is the oracle."""
    for seed in range(5):
        x = np.random.default_rng(seed).normal(seed - 2, 1, shape).astype(np.float32)
        sight = Sight({})
        sight.see_input([Site("one", "linear", 0, 1), Site("two", "linear", 0, 1)], x)
        expected = np.abs(x.reshape(-1, shape[-1])).max(axis=0, initial=0)
        extrema = (float(x.min(initial=0)), float(x.max(initial=0)))
        for name in ("one", "two"):
            assert_same_bits(sight.channels[name], expected)
            assert sight.extrema[f"{name}:a"] == extrema
    for place in range(len(x := np.zeros((67, 128), np.float32))):
        x[place, place] = 3
        sight = Sight({})
        sight.see_input([Site("one", "linear", 0, 1)], -x)
        assert np.flatnonzero(sight.channels["one"]).tolist() == [place]
        x[place, place] = 0


def test_histograms_are_of_every_element(model: Model) -> None:
    """By the bits of the nearest bfloat16 value, which an oracle rounds to."""
    batches = [random_batch(seed, (3, 2)) for seed in range(2)]
    found = calibrate(model, batches)
    operands = recorded_operands(model, batches)
    for name in ("encoder.layer.0.attention.scores:b", "encoder.layer.1.output.dense:a"):
        site, _, side = name.rpartition(":")
        values = [pair["ab".index(side)].reshape(-1) for pair in operands[site]]
        expected = np.zeros(1 << 16, np.int64)
        for value in np.concatenate(values).tolist():
            rounded = np.float32(nearest(value, BFLOAT16))
            expected[int(rounded.view(np.uint32)) >> 16] += 1
        np.testing.assert_array_equal(found.operands[name].histogram, expected)


def test_attention_weights_are_within_one(model: Model) -> None:
    operands = calibrate(model, [random_batch(0)]).operands
    for layer in range(2):
        weights = operands[f"encoder.layer.{layer}.attention.context:a"]
        assert 1 / 9 <= weights.high <= 1  # a row of 9 weights sums to 1
        assert weights.low == 0


def test_batches_are_merged(model: Model) -> None:
    batches = [random_batch(seed, lengths) for seed, lengths in enumerate([(5,), (8, 3), (6, 6)])]
    parts = [calibrate(model, [batch]) for batch in batches]
    for order in (batches, batches[::-1]):
        whole = calibrate(model, iter(order))
        assert whole.samples == 5
        for name, seen in whole.operands.items():
            of_parts = [part.operands[name] for part in parts]
            assert seen.low == min(part.low for part in of_parts)
            assert seen.high == max(part.high for part in of_parts)
            total = sum(part.histogram for part in of_parts)
            np.testing.assert_array_equal(seen.histogram, total)
        for site, largest in whole.channels.items():
            expected = np.max([part.channels[site] for part in parts], axis=0)
            assert_same_bits(largest, expected)
    by_part = [{name: seen.absmax for name, seen in part.operands.items()} for part in parts]
    assert len({min(range(3), key=lambda i: -by_part[i][name]) for name in by_part[0]}) > 1
    merged = merge_calibrations(merge_calibrations(parts[0], parts[1]), parts[2])
    whole = calibrate(model, batches)
    for name, seen in merged.operands.items():  # the averages are of an order
        averages = vars(whole.operands[name]) | {
            "average_low": seen.average_low,
            "average_high": seen.average_high,
        }
        assert_same_statistics(seen, Statistics(**averages))
        assert seen.average_high == parts[2].operands[name].average_high
    assert merged.samples == 5


def test_merging_wants_the_same_sites(model: Model) -> None:
    whole = calibrate(model, [random_batch(0)])
    operands = dict(list(whole.operands.items())[1:])
    channels = dict(list(whole.channels.items())[1:])
    for other in (replace(whole, operands=operands), replace(whole, channels=channels)):
        for pair in ((whole, other), (other, whole)):
            with pytest.raises(BertNumpyError) as error:
                merge_calibrations(*pair)
            assert str(error.value) == "calibrations: expected the same sites in both"


@pytest.mark.parametrize(("a", "b"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_merged_calibration_is_golden_if_both_are(a: bool, b: bool, model: Model) -> None:
    whole = calibrate(model, [random_batch(0)])
    merged = merge_calibrations(replace(whole, golden=a), replace(whole, golden=b))
    assert merged.golden is (a and b)


def test_padding_is_not_seen(model: Model) -> None:
    """Ids under the mask may be anything: here, a token with an enormous embedding."""
    weights = dict(model.weights)
    words = np.array(weights["embeddings.word_embeddings.weight"])
    words[0] = np.linspace(-1e4, 1e4, words.shape[1])
    loud = replace(model, weights=weights | {"embeddings.word_embeddings.weight": words})
    quiet = random_batch(1)
    quiet["input_ids"] = np.maximum(quiet["input_ids"], 1)
    padded = quiet | {"input_ids": np.where(quiet["attention_mask"] == 1, quiet["input_ids"], 0)}
    assert_same_calibrations(calibrate(loud, [padded]), calibrate(loud, [quiet]))


def test_model_is_left_as_it_was(model: Model) -> None:
    engine, weights = model.engine, {name: np.array(w) for name, w in model.weights.items()}
    calibrate(model, [random_batch(0)])
    assert model.engine is engine
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
    with np.errstate(invalid="ignore"):
        if site == "classifier":  # what comes out of it, nothing takes
            calibration = calibrate(broken, [random_batch(0)])
        else:
            with pytest.raises(BertNumpyError, match=r"calibration: site '.*': expected finite"):
                calibrate(broken, [random_batch(0)])
            calibration = calibrate(model, [random_batch(0)])
    assert calibration.samples == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["e4m3", "int8-mse", "e4m3-channel", "e4m3-block", "e4m3-smooth"])
def test_weight_that_cannot_be_quantized(model: Model, name: str, value: float) -> None:
    for site in ("encoder.layer.1.output.dense", "classifier"):
        weight = np.array(model.weights[f"{site}.weight"])
        weight[1, 3] = value
        broken = replace(model, weights=dict(model.weights) | {f"{site}.weight": weight})
        recipe = replace(PRESETS[name], overrides=(("classifier", PRESETS[name].linear),))
        calibration = replace(calibrate(model, [random_batch(0)]), origin=None)
        with np.errstate(invalid="ignore"), pytest.raises(BertNumpyError, match=f"{site}.weight"):
            apply_recipe(broken, recipe, calibration)


@pytest.mark.parametrize(
    ("parameter", "site"),
    [
        ("embeddings.LayerNorm.bias", "encoder.layer.0.attention.self.query:a"),
        ("encoder.layer.0.attention.self.query.bias", "encoder.layer.0.attention.scores:a"),
        ("encoder.layer.0.attention.self.value.bias", "encoder.layer.0.attention.context:b"),
        ("encoder.layer.1.output.LayerNorm.weight", "pooler.dense:a"),
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
    x = {
        "site:a": np.float32([0.25, -3.7]),
        "site:b": np.float32([0.011]),
        "still:a": np.zeros(3, np.float32),
    }
    seen = {name: observe(name, None, values) for name, values in x.items()}
    calibration = Calibration(seen, {}, samples=1)
    for name, absmax in (("site:a", 3.7), ("site:b", 0.011)):
        found = calibration.scale(name, Operand(fmt))
        assert found.zero_point is None
        assert found.scale.dtype == np.float32
        assert found.scale.shape == ()
        assert found.scale == np.float32(absmax) / np.float32(largest)
    assert calibration.scale("still:a", Operand(fmt)).scale == 1


def test_scale_and_zero_point() -> None:
    x = np.float32([-1, 0.5, 4.1])
    calibration = Calibration({"site:a": observe("site:a", None, x)}, {}, samples=1)
    found = calibration.scale("site:a", Operand(UINT8))
    assert found.scale == np.float32((float(np.float32(4.1)) + 1) / 255)
    assert found.zero_point == 50
    assert isinstance(found.zero_point, int)


def test_scale_of_an_operand_that_was_not_seen() -> None:
    seen = {"one:a": observe("one:a", None, np.ones(1, np.float32))}
    with pytest.raises(BertNumpyError) as error:
        Calibration(seen, {}, samples=1).scale("one:b", Operand(E4M3FN))
    assert str(error.value) == ("calibration: operand 'one:b': expected statistics, found none")


def test_sample_in_training_set_is_enough_for_its_own_range(glue: Path) -> None:
    """The scales come from the sample alone: with all of it seen, nothing of it saturates."""
    model = bert_numpy.load("bert-tiny-sst2")
    tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    lines = (glue / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")[1:65]
    batch = tokenizer.batch([line.split("\t")[0] for line in lines])
    calibration = calibrate(model, [batch])
    assert calibration.samples == 64
    for site, pair in recorded_absmax(model, [batch]).items():
        for name, absmax in zip(operands_of([site]), pair, strict=False):
            scale = calibration.scale(name, Operand(E4M3FN)).scale
            assert absmax / scale == pytest.approx(448, rel=1e-6)


# The moving average


def test_one_step_of_the_average_for_each_batch(model: Model) -> None:
    """Attention makes an array for each length of sequences: together they are one operand."""
    batches = [random_batch(seed, (7, 4, 9, 4, 2)) for seed in range(3)]
    found = calibrate(model, batches)
    extrema: dict[str, list[tuple[float, float]]] = {}
    for batch in batches:
        for site, pairs in recorded_operands(model, [batch]).items():
            for side, arrays in zip("ab", zip(*pairs, strict=True), strict=True):
                low = min(0.0, *(float(x.min()) for x in arrays))
                high = max(0.0, *(float(x.max()) for x in arrays))
                extrema.setdefault(f"{site}:{side}", []).append((low, high))
    assert len(recorded_operands(model, batches[:1])["encoder.layer.0.attention.scores"]) == 4
    for name, seen in found.operands.items():
        (low, high), *others = extrema[name]
        for least, largest in others:
            low, high = 0.9 * low + 0.1 * least, 0.9 * high + 0.1 * largest
        np.testing.assert_allclose((seen.average_low, seen.average_high), (low, high), rtol=1e-12)


@pytest.mark.parametrize("lengths", [(9, 9), (9, 2, 5), (1, 9)])
def test_average_over_one_batch_is_its_extrema(model: Model, lengths: tuple[int, ...]) -> None:
    for seen in calibrate(model, [random_batch(0, lengths)]).operands.values():
        assert (seen.average_low, seen.average_high) == (seen.low, seen.high)


# Whose calibration it is


def changed(model: Model, **config: Any) -> Model:
    return replace(model, config=replace(model.config, **config))


def with_weight(model: Model, name: str, value: float) -> Model:
    weights = dict(model.weights)
    weights[name] = np.array(weights[name])
    weights[name].flat[1] = value
    return replace(model, weights=weights)


OTHERS = {
    "a weight": lambda model: with_weight(model, "encoder.layer.1.output.dense.weight", 0.5),
    "a bias": lambda model: with_weight(model, "encoder.layer.0.output.dense.bias", 0.5),
    "the head": lambda model: with_weight(model, "classifier.weight", 0.5),
    "an embedding": lambda model: with_weight(model, "embeddings.word_embeddings.weight", 0.5),
    "LayerNorm": lambda model: with_weight(model, "embeddings.LayerNorm.weight", 0.5),
    "zero's sign": lambda model: with_weight(model, "encoder.layer.0.output.dense.bias", -0.0),
    "another activation": lambda model: changed(model, hidden_act="relu"),
    "heads": lambda model: changed(model, num_attention_heads=4),
    "epsilon": lambda model: changed(model, layer_norm_eps=1e-5),
    "names exchanged": lambda model: replace(
        model,
        weights=dict(model.weights)
        | {
            "encoder.layer.0.attention.self.query.weight": model.weights[
                "encoder.layer.0.attention.self.key.weight"
            ],
            "encoder.layer.0.attention.self.key.weight": model.weights[
                "encoder.layer.0.attention.self.query.weight"
            ],
        },
    ),
    "outliers": lambda model: with_outliers(model, 1),
}


@pytest.mark.parametrize("which", OTHERS)
@pytest.mark.parametrize("recipe", ["fp32", "int8", "e4m3-token"])
def test_calibration_of_another_model(
    which: str, recipe: str, model: Model, tmp_path: Path
) -> None:
    """Whatever the recipe takes of it; from memory, or from a file, which the error names."""
    model = with_weight(model, "encoder.layer.0.output.dense.bias", 0.0)
    calibration = calibrate(model, [random_batch(0)])
    other = replace(OTHERS[which](model), name="the other")
    save_calibration(calibration, tmp_path / "c.safetensors")
    loaded = load_calibration(tmp_path / "c.safetensors")
    for place, given in (("calibration", calibration), (tmp_path / "c.safetensors", loaded)):
        with pytest.raises(BertNumpyError) as error:
            apply_recipe(other, PRESETS[recipe], given)
        assert str(error.value) == (
            f"{place}: expected a calibration of this model, {origin_of(other)}, "
            f"found one of {calibration.origin}"
        )
        assert "'the other' (2 layers of 16, SHA-256 " in str(error.value)
    with pytest.raises(BertNumpyError, match="expected both of one model, found '"):
        merge_calibrations(calibration, calibrate(other, [random_batch(0)]))


def test_the_same_parameters_are_the_same_model(tmp_path: Path) -> None:
    """Stored in float16, in shards, in another folder, with other labels, or mapped."""
    first = write_checkpoint(tmp_path / "first", dtype="F16")
    halves = bert_numpy.load(first)
    tensors = {
        name: tensor.astype(np.float16).astype(np.float32)
        for name, tensor in random_tensors(CONFIG, 2, 0).items()
    }
    moved_to = write_checkpoint(tmp_path / "moved", labels=("no", "yes"))
    (moved_to / "model.safetensors").unlink()
    write_tensors(moved_to, tensors, shards=2)
    moved = bert_numpy.load(tmp_path / "moved")
    assert origin_of(moved).digest == origin_of(halves).digest
    assert origin_of(moved).name != origin_of(halves).name
    batch = random_batch(0)
    save_calibration(calibrate(halves, [batch]), tmp_path / "c")
    loaded = load_calibration(tmp_path / "c")
    found = apply_recipe(moved, PRESETS["int8"], loaded)(**batch).logits
    assert_same_bits(found, apply_recipe(halves, PRESETS["int8"], loaded)(**batch).logits)
    copied = replace(halves, name="a copy", weights=copy.deepcopy(dict(halves.weights)))
    apply_recipe(copied, PRESETS["int8"], loaded)
    assert merge_calibrations(loaded, calibrate(moved, [batch])).samples == 6


def test_digest_is_of_every_parameter_and_not_of_an_order(model: Model) -> None:
    digests = {origin_of(with_weight(model, name, 0.375)).digest for name in model.weights}
    assert len(digests | {origin_of(model).digest}) == len(model.weights) + 1
    backwards = replace(model, weights=dict(reversed(list(model.weights.items()))))
    assert origin_of(backwards) == origin_of(model)
    name = "encoder.layer.0.output.dense.weight"
    strided = np.asfortranarray(model.weights[name])
    assert origin_of(replace(model, weights=dict(model.weights) | {name: strided})) == (
        origin_of(model)
    )


@pytest.mark.parametrize(
    ("tensor", "key"),
    [
        ("classifier:a", "samples"),
        ("encoder.layer.1.output.dense:a", "encoder.layer.1.output.dense:a"),
        ("encoder.layer.1.attention.scores:a", "encoder.layer.1.attention.scores:a"),
        ("encoder.layer.0.attention.context:b", "encoder.layer.0.attention.scores:b"),
    ],
)
def test_counts_that_contradict_each_other(
    tensor: str, key: str, model: Model, tmp_path: Path
) -> None:
    """Each is possible alone: every layer sees all tokens, and at least one of each sample."""
    calibration = calibrate(model, [random_batch(0)])
    path = tmp_path / "c.safetensors"
    save_calibration(calibration, path)
    load_calibration(path)
    if key == "samples":
        calibration = replace(calibration, samples=21)
    else:
        seen = calibration.operands[key]
        operands = {**calibration.operands, key: replace(seen, counts=2 * seen.counts)}
        calibration = replace(calibration, operands=operands)
    save_calibration(calibration, path)
    with pytest.raises(BertNumpyError) as error:
        load_calibration(path)
    assert str(error.value).startswith(f"{path}: tensor '")
    assert f"{tensor}/counts': expected " in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_contradict_the_digest(model: Model, tmp_path: Path) -> None:
    calibration = calibrate(model, [random_batch(0)])
    assert calibration.origin is not None
    sizes = tuple(size + 1 for size in calibration.origin.sizes)
    other = replace(calibration, origin=replace(calibration.origin, sizes=sizes))
    save_calibration(other, tmp_path / "c.safetensors")
    loaded = load_calibration(tmp_path / "c.safetensors")
    with pytest.raises(BertNumpyError, match=r"expected a calibration of this model, .*\(2 layers"):
        apply_recipe(model, PRESETS["int8"], loaded)
    with pytest.raises(BertNumpyError, match="expected both of one model"):
        merge_calibrations(calibration, loaded)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c, seen: {"operands": {**c.operands, "encoder.layer.2.output.dense:a": seen}},
            "operand 'encoder.layer.2.output.dense:a': {model} has no such operand",
        ),
        (
            lambda c, seen: {"operands": {**c.operands, "classifier:b": seen}},
            "operand 'classifier:b': {model} has no such operand",
        ),
        (
            lambda c, seen: {"channels": {**c.channels, "encoder": np.ones(16, np.float32)}},
            "channels of 'encoder': {model} has no such layer",
        ),
        (
            lambda c, seen: {
                "channels": {**c.channels, "embeddings.LayerNorm": np.ones(16, np.float32)}
            },
            "channels of 'embeddings.LayerNorm': {model} has no such layer",
        ),
        (
            lambda c, seen: {"channels": {**c.channels, "classifier": np.ones(17, np.float32)}},
            "channels of 'classifier': expected 16 numbers, as {model} has inputs there, "
            "found shape (17,)",
        ),
    ],
)
@pytest.mark.parametrize("by_hand", [False, True])
def test_calibration_with_what_the_model_has_not(
    change: Any, message: str, by_hand: bool, model: Model
) -> None:
    calibration = calibrate(model, [random_batch(0)])
    calibration = replace(calibration, **change(calibration, calibration.operands["classifier:a"]))
    if by_hand:
        calibration = replace(calibration, origin=None)
    for recipe in ("int8", "int8-smooth", "e4m3-token"):
        with pytest.raises(BertNumpyError) as error:
            apply_recipe(model, PRESETS[recipe], calibration)
        assert str(error.value) == "calibration: " + message.format(model=model.name)


def test_merging_channels_of_two_widths(model: Model) -> None:
    whole = calibrate(model, [random_batch(0)])
    other = replace(whole, channels={**whole.channels, "classifier": np.ones(17, np.float32)})
    with pytest.raises(BertNumpyError) as error:
        merge_calibrations(whole, other)
    assert str(error.value) == (
        "calibrations: channels of 'classifier': expected as many in both, found 16 and 17"
    )


def test_merging_more_elements_than_are_exact(model: Model) -> None:
    whole = calibrate(model, [random_batch(0)])
    name = "classifier:a"
    seen = whole.operands[name]
    counts = seen.counts.copy()
    counts[0] = 2**53 - seen.count
    many = replace(whole, operands={**whole.operands, name: replace(seen, counts=counts)})
    with pytest.raises(BertNumpyError) as error:
        merge_calibrations(many, many)
    assert str(error.value).startswith(
        f"calibrations: operand {name!r}: expected at most 9007199254740992 elements together, "
    )


@pytest.mark.parametrize("name", ["encoder.layer.0.attention.context:a", "classifier:a"])
def test_percentile_among_zeros_names_the_operand(name: str, model: Model) -> None:
    calibration = calibrate(model, [random_batch(0)])
    mostly = observe(name, None, np.float32([0] * 19 + [1]))
    calibration = replace(calibration, operands={**calibration.operands, name: mostly})
    recipe = PRESETS["int8-percentile"]
    site = SiteRecipe(Operand(INT8, observer="percentile", percentile=90), recipe.linear.b)
    recipe = replace(recipe, context=site, overrides=(("classifier", site),))
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(model, recipe, calibration)
    assert str(error.value) == (
        f"calibration: operand {name!r}: observer 'percentile': expected a percentile beyond the "
        "zeros, which are 95 % of the elements, found 90: all others would saturate"
    )


def test_weight_that_is_mostly_zeros(model: Model) -> None:
    name = "encoder.layer.0.output.dense.weight"
    weight = np.zeros_like(np.asarray(model.weights[name]))
    weight[0, 0] = 0.5
    sparse = replace(model, weights=dict(model.weights) | {name: weight})
    most = Operand(INT8, observer="percentile", percentile=99)
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(sparse, Recipe("most", SiteRecipe(b=most)))
    assert str(error.value).startswith(f"{name}: observer 'percentile': expected a percentile beyo")

"""GPTQ against optimal brain quantization by explicit inverses, and what it is for: outputs."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from factories import write_checkpoint
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Gptq, Operand, SiteRecipe
from bert_numpy.assets import REVIEWS
from bert_numpy.commands.main import main
from bert_numpy.engines.noting import NotingEngine
from bert_numpy.evaluation.job import prepare, run
from bert_numpy.model.sites import sites_of
from bert_numpy.quantization.gptq import gptq, inverse_factor, output_error
from bert_numpy.quantization.presets import w4a16
from bert_numpy.quantization.recipe_json import recipe_json, recipe_of
from npfp8 import E4M3FN, INT4, INT8, UINT4, QuantizedTensor, quantize
from npfp8.scaling import dynamic_scale

FORMATS = [INT4, UINT4, INT8, E4M3FN]


def inputs(seed: int, tokens: int, columns: int) -> np.ndarray:
    """Inputs that depend on each other, of unlike sizes."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((columns, columns)) * generator.uniform(0.1, 2, columns)
    return generator.standard_normal((tokens, columns)) @ mixing


def rounded(x: np.ndarray, fmt, scale: np.float32, zero: int) -> tuple[int, float]:
    """One number's code and value."""
    zero_point = zero if fmt.has_zero_point else None
    q = quantize(np.float32(x), fmt, scale, zero_point=zero_point)
    return int(q.codes), float(q.dequantize())


def slowly(weight, hessian, fmt, axis, block, how) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales by the equations of optimal brain quantization, row by row.

    The inverse is computed anew for the columns that are left. The columns move by the Lagrange
    condition: the error of the outputs is least while column j stays at its rounded value.
    """
    columns = weight.shape[1]
    size = columns if block is None else block
    damped = hessian.copy()
    live = np.diag(hessian) > 0
    mean = np.diag(hessian)[live].mean() if live.any() else 1.0
    for j in range(columns):
        damped[j, j] = (hessian[j, j] if live[j] else mean) + how.dampening * mean
    turns = list(range(columns))
    if how.order == "activations":
        turns.sort(key=lambda j: -damped[j, j])
    scale, zeros = dynamic_scale(weight, fmt, axis, block)
    scale = scale.copy()
    codes = np.zeros(weight.shape, np.int64)
    moved = weight.astype(np.float64)
    for place, j in enumerate(turns):
        left = turns[place:]
        if how.order == "stored" and block is not None and j % block == 0:
            group = moved[:, j : j + block].astype(np.float32)
            fresh, fresh_zeros = dynamic_scale(group, fmt, 1, block)
            scale[:, j // size] = fresh[:, 0]
            if zeros is not None:
                zeros[:, j // size] = fresh_zeros[:, 0]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        for row in range(len(weight)):
            where = {None: (), 0: (row,), 1: (row, j // size)}[axis]
            zero = 0 if zeros is None else int(zeros[where])
            codes[row, j], value = rounded(moved[row, j], fmt, scale[where], zero)
            moved[row, left] += (value - moved[row, j]) / inverse[0, 0] * inverse[0]
    return codes, scale


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("order", ["stored", "activations"])
@pytest.mark.parametrize(("axis", "block"), [(None, None), (0, None), (1, 4), (1, 5), (1, 100)])
def test_codes_are_those_of_optimal_brain_quantization(fmt, order, axis, block):
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((5, 12)).astype(np.float32)
    x = inputs(4, 40, 12)
    x[:, 7] = 0  # an input that this sample does not have
    how = Gptq(order)
    found = gptq(weight, x.T @ x, fmt, axis, block, how)
    codes, scale = slowly(weight, x.T @ x, fmt, axis, block, how)
    np.testing.assert_allclose(found.scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(found.codes.astype(np.int64), codes)
    assert found.fmt == fmt
    assert (found.zero_point is not None) == fmt.has_zero_point


def test_columns_are_put_off_without_a_difference():
    """More columns than are done together, so that the late product is used."""
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((2, 150)).astype(np.float32)
    x = inputs(1, 400, 150)
    for order, axis, block in (("stored", 1, 64), ("activations", 0, None)):
        how = Gptq(order)
        found = gptq(weight, x.T @ x, INT4, axis, block, how)
        codes, _ = slowly(weight, x.T @ x, INT4, axis, block, how)
        np.testing.assert_array_equal(found.codes.astype(np.int64), codes)


def test_columns_of_zero_input_are_rounded_to_nearest():
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    x = inputs(0, 30, 16)
    x[:, [2, 9]] = 0
    found = gptq(weight, x.T @ x, INT4, 0, None)
    nearest = quantize(weight, INT4, axis=0)
    np.testing.assert_array_equal(found.codes[:, [2, 9]], nearest.codes[:, [2, 9]])
    assert (found.codes != nearest.codes).any()
    everything = gptq(weight, np.zeros((16, 16)), INT4, 0, None)
    np.testing.assert_array_equal(everything.codes, nearest.codes)


def test_independent_inputs_leave_the_nearest_codes():
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    hessian = np.diag(np.arange(1.0, 17.0))
    for how in (Gptq(), Gptq("stored")):
        found = gptq(weight, hessian, UINT4, 1, 8, how)
        scale, zeros = dynamic_scale(weight, UINT4, 1, 8)
        nearest = quantize(weight, UINT4, scale, 1, 8, zeros)
        np.testing.assert_array_equal(found.codes, nearest.codes)
        assert_same_bits(found.dequantize(), nearest.dequantize())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("order", ["stored", "activations"])
@pytest.mark.parametrize("fmt", [INT4, UINT4], ids=str)
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
def test_outputs_change_less_than_by_rounding(seed, order, fmt, size):
    """Of fixed seeds, as 0.9 holds for nearly all random matrices; no theorem says for all."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((8, 64)).astype(np.float32)
    x = size * inputs(seed + 1, 256, 64)
    hessian = x.T @ x
    scale, zeros = dynamic_scale(weight, fmt, 1, 32)
    nearest = quantize(weight, fmt, scale, 1, 32, zeros)
    best = gptq(weight, hessian, fmt, 1, 32, Gptq(order))
    before, after = (output_error(weight, q, hessian) for q in (nearest, best))
    assert after < 0.9 * before
    y = x @ weight.T.astype(np.float64)
    direct = np.linalg.norm(x @ best.dequantize().T.astype(np.float64) - y) / np.linalg.norm(y)
    assert after == pytest.approx(direct, rel=1e-6)


def test_the_scale_of_the_hessian_makes_no_difference():
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    x = inputs(0, 30, 16)
    x[:, 3] = 0
    found = [gptq(weight, 2.0**e * (x.T @ x), INT4, 0, None).codes for e in (-40, 0, 40)]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[1])


def test_inverse_factor():
    x = inputs(0, 50, 20)
    matrix = x.T @ x + 0.01 * np.eye(20)
    factor = inverse_factor(matrix)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ matrix, np.eye(20), atol=1e-7)
    assert (np.diag(factor) > 0).all()
    for bad in (-np.eye(3), np.full((3, 3), np.nan), np.full((3, 3), np.inf)):
        with pytest.raises(ValueError, match="hessian: expected finite and positive definite"):
            inverse_factor(bad)
    with pytest.raises(ValueError, match=r"hessian: expected shape \(4, 4\) for 4 inputs"):
        gptq(np.zeros((2, 4), np.float32), np.eye(3), INT4, 0, None)


def test_powers_of_two():
    weight = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    x = inputs(0, 30, 16)
    for order in ("stored", "activations"):
        found = gptq(weight, x.T @ x, INT4, 1, 8, Gptq(order), power_of_two=True)
        assert (np.frexp(found.scale)[0] == 0.5).all()


# Recipes


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"order": "best"}, "gptq: order: expected 'activations' or 'stored', found 'best'"),
        ({"order": 3}, "gptq: order: expected 'activations' or 'stored', found 3"),
        ({"dampening": 0}, "gptq: dampening: expected more than 0 and at most 1, found 0"),
        ({"dampening": True}, "gptq: dampening: expected more than 0 and at most 1, found True"),
        ({"dampening": float("nan")}, "gptq: dampening: expected more than 0 and at most 1"),
    ],
)
def test_impossible_settings(how, message):
    with pytest.raises(BertNumpyError, match=message):
        Gptq(**how)
    if not isinstance(how.get("order", ""), str) or how.get("dampening") is True:
        message = "recipe: key 'linear': key 'gptq': key '.*': expected (str|int or float), found"
    with pytest.raises(BertNumpyError, match=message):
        recipe_of({"name": "x", "linear": {"b": {"fmt": "INT4"}, "gptq": how}})


def test_possible_settings():
    assert Gptq("Stored", 1) == Gptq("stored", 1.0)
    assert Gptq() == Gptq("activations", 0.01)


def test_recipes_that_gptq_has_no_place_in():
    with pytest.raises(BertNumpyError, match="gptq: expected b in a format without blocks of its"):
        SiteRecipe(b=Operand("MXFP4"), gptq=Gptq())
    with pytest.raises(BertNumpyError, match=r"gptq: expected b in a format .* found None"):
        SiteRecipe(gptq=Gptq())
    with pytest.raises(BertNumpyError, match="gptq: expected the observer 'absmax' of b"):
        SiteRecipe(b=Operand("INT4", observer="mse"), gptq=Gptq())
    both = SiteRecipe(Operand("INT8"), Operand("INT8"), gptq=Gptq())
    with pytest.raises(BertNumpyError, match="recipe x: scores: gptq is for products with weights"):
        bert_numpy.Recipe("x", scores=both)
    with pytest.raises(TypeError, match="gptq: expected a Gptq, found str"):
        SiteRecipe(b=Operand("INT4"), gptq="yes")


def test_settings_travel_as_json():
    for recipe in (
        *(recipe for name, recipe in PRESETS.items() if name.startswith("w4a16")),
        w4a16(32, asymmetric=True, gptq=Gptq("stored", 0.05)),
    ):
        assert recipe_of(json.loads(recipe_json(recipe))) == recipe
        assert ("gptq" in json.loads(recipe_json(recipe))["linear"]) == recipe.by_gptq
        assert recipe.calibrated == recipe.by_gptq
    assert w4a16(32, asymmetric=True, gptq=Gptq("stored")).name == "w4a16-g32-asym-gptq-stored"
    assert PRESETS["w4a16-gptq"] == w4a16(gptq=Gptq())
    assert repr(PRESETS["w4a16-gptq"]) == (
        "<Recipe w4a16-gptq: linear - x INT4 by GPTQ; rest bfloat16>"
    )


# Models


@pytest.fixture(scope="module")
def job():
    return prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=64, calibration_samples=32)


@pytest.fixture(scope="module")
def calibration(job):
    batches = [{"input_ids": np.array([text.input_ids])} for text in job.calibration_texts]
    return bert_numpy.calibrate(job.model, batches, hessians=True)


def test_hessians_are_those_of_the_inputs(job, calibration):
    """Against the inputs that another engine notes; query, key and value have one Hessian."""
    seen: dict[str, list[np.ndarray]] = {}

    def engine(weights, batch):
        def note(site, a, *_):
            seen.setdefault(site, []).append(a.reshape(-1, a.shape[-1]))

        return NotingEngine(job.model.engine(weights, batch), weights, note)

    for text in job.calibration_texts:
        replace(job.model, engine=engine)(input_ids=np.array([text.input_ids]))
    layers = {site.name for site in sites_of(job.model) if not site.is_attention}
    assert set(calibration.hessians) == {
        name for name in layers if not name.endswith((".self.key", ".self.value"))
    }
    for site, hessian in calibration.hessians.items():
        x = np.concatenate(seen[site]).astype(np.float64)
        np.testing.assert_allclose(hessian, np.einsum("ni,nj->ij", x, x), rtol=1e-9, atol=1e-9)
        assert_same_bits(hessian, hessian.T)


@pytest.mark.parametrize("name", ["w4a16-gptq", "w4a16-asym-gptq"])
def test_every_layer_of_a_model(job, calibration, name):
    nearest = bert_numpy.apply_recipe(job.model, name.removesuffix("-gptq"))
    best = bert_numpy.apply_recipe(job.model, name, calibration)
    assert best.weight_bytes == nearest.weight_bytes
    for key, weight in job.model.weights.items():
        site = key.removesuffix(".weight")
        q = best.weights[key]
        if not isinstance(q, QuantizedTensor):
            assert q is weight
            continue
        shared = f"{site.rpartition('.')[0]}.query" if ".self." in site else site
        hessian = calibration.hessians[shared]
        assert output_error(weight, q, hessian) < output_error(
            weight, nearest.weights[key], hessian
        )


def test_scales_of_powers_of_two_in_a_model(job, calibration):
    how = w4a16(gptq=Gptq()).linear
    recipe = bert_numpy.Recipe("p2", replace(how, b=replace(how.b, power_of_two=True)))
    made = bert_numpy.apply_recipe(job.model, recipe, calibration)
    scales = [x.scale for x in made.weights.values() if isinstance(x, QuantizedTensor)]
    assert len(scales) == 12
    assert all((np.frexp(scale)[0] == 0.5).all() for scale in scales)


def test_smoothed_inputs(job, calibration):
    """The Hessian is that of the divided inputs: by powers of two, the codes' order stays exact."""
    recipe = replace(
        w4a16(gptq=Gptq("stored")), linear=replace(w4a16(gptq=Gptq("stored")).linear, migration=0.5)
    )
    made = bert_numpy.apply_recipe(job.model, recipe, calibration)
    name = "encoder.layer.0.intermediate.dense"
    smoothing = made.plans[name].smoothing.astype(np.float64)
    hessian = calibration.hessians[name]
    divided = hessian / smoothing[:, None] / smoothing
    weight = (job.model.weights[f"{name}.weight"] * smoothing).astype(np.float32)
    expected = gptq(weight, divided, INT4, 1, 128, Gptq("stored"))
    np.testing.assert_array_equal(made.weights[f"{name}.weight"].codes, expected.codes)


def test_jobs_calibrate_with_hessians_where_a_recipe_takes_them(job):
    found = list(run(job, ["fp32", "w4a16", "w4a16-gptq"]))
    assert [one.recipe for one in found] == ["fp32", "w4a16", "w4a16-gptq"]


def test_a_calibration_with_hessians_in_a_file(job, calibration, tmp_path):
    path = tmp_path / "with.safetensors"
    bert_numpy.save_calibration(calibration, path)
    loaded = bert_numpy.load_calibration(path)
    assert loaded.hessians.keys() == calibration.hessians.keys()
    for site, hessian in calibration.hessians.items():
        assert_same_bits(loaded.hessians[site], hessian)
    first, second = (
        bert_numpy.apply_recipe(job.model, "w4a16-gptq", one) for one in (calibration, path)
    )
    for key, weight in first.weights.items():
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(second.weights[key].codes, weight.codes)
    merged = bert_numpy.merge_calibrations(calibration, loaded)
    for site, hessian in calibration.hessians.items():
        assert_same_bits(merged.hessians[site], 2 * hessian)


def test_bad_hessians_in_a_file(calibration, tmp_path):
    from npfp8.storage import load_file, read_metadata, save_file  # noqa: PLC0415

    path = tmp_path / "with.safetensors"
    bert_numpy.save_calibration(calibration, path)
    tensors, metadata = load_file(path), read_metadata(path)
    key = "encoder.layer.0.attention.output.dense/hessian"
    good = tensors[key]
    negative, infinite = good.copy(), good.copy()
    negative[0] = -1
    infinite[5] = np.inf
    for bad, message in (
        (good[:-1], "expected 8256 finite numbers, the upper triangle for the 128 numbers"),
        (infinite, "expected 8256 finite numbers"),
        (negative, "expected no negative diagonal"),
        (good.astype(np.float32), "expected 1-D float64, found float32"),
    ):
        save_file({**tensors, key: bad}, path, metadata)
        with pytest.raises(BertNumpyError, match=f"with.safetensors: tensor '{key}': {message}"):
            bert_numpy.load_calibration(path)


def test_what_gptq_needs(job, calibration):
    with pytest.raises(BertNumpyError, match="recipe w4a16-gptq: expected a calibration, found"):
        bert_numpy.apply_recipe(job.model, "w4a16-gptq")
    without = replace(calibration, hessians={})
    with pytest.raises(BertNumpyError, match="query': expected a Hessian for GPTQ, found none"):
        bert_numpy.apply_recipe(job.model, "w4a16-gptq", without)
    other = replace(calibration, hessians={"encoder.layer.0.output.dense": np.eye(3)}, origin=None)
    with pytest.raises(BertNumpyError, match=r"Hessian of .*expected 512 rows and columns"):
        bert_numpy.apply_recipe(job.model, "w4a16-gptq", other)
    unknown = replace(calibration, hessians={"encoder.layer.9.output.dense": np.eye(3)})
    with pytest.raises(BertNumpyError, match=r"layer.9.output.dense': .* has no such layer"):
        bert_numpy.apply_recipe(job.model, "w4a16-gptq", unknown)
    with pytest.raises(BertNumpyError, match="calibrations: expected the same sites in both"):
        bert_numpy.merge_calibrations(calibration, without)


def test_golden_mode_takes_made_codes_and_makes_none(job, calibration):
    batches = [{"input_ids": np.array([job.calibration_texts[0].input_ids])}]
    with pytest.raises(BertNumpyError, match="hessians: expected False in golden mode"):
        bert_numpy.calibrate(job.model, batches, golden=True, hessians=True)
    message = "recipe w4a16-gptq: expected weights not rounded by GPTQ in golden mode"
    with pytest.raises(BertNumpyError, match=message):
        bert_numpy.apply_recipe(job.model, "w4a16-gptq", calibration, golden=True)
    with pytest.raises(BertNumpyError, match=message):
        list(run(job, ["w4a16-gptq"], golden=True))
    made = bert_numpy.apply_recipe(job.model, "w4a16-gptq", calibration)
    golden = bert_numpy.apply_recipe(made, "w4a16-gptq", golden=True)
    logits = golden(**batches[0]).logits
    np.testing.assert_allclose(logits, made(**batches[0]).logits, atol=0.05)


def test_a_sample_twice_has_twice_the_hessians(tmp_path):
    model = bert_numpy.load(write_checkpoint(tmp_path / "model"))
    ids = np.array([[2, 10, 11, 12, 3]])
    calibration = bert_numpy.calibrate(model, [{"input_ids": ids}] * 2, hessians=True)
    once = bert_numpy.calibrate(model, [{"input_ids": ids}], hessians=True)
    for site, hessian in calibration.hessians.items():
        np.testing.assert_allclose(hessian, 2 * once.hessians[site], rtol=1e-12)


def test_the_command_that_calibrates(tmp_path, capsys):
    path = tmp_path / "scales.safetensors"
    options = ["--calibration-samples", "8", "--hessians"]
    assert main(["calibrate", "bert-tiny-sst2", "--out", str(path), *options]) == 0
    found = bert_numpy.load_calibration(path)
    assert len(found.hessians) == 10
    use = ["--format", "w4a16-gptq", "--calibration", str(path)]
    assert main(["predict", "bert-tiny-sst2", "a warm and funny film", *use]) == 0
    assert main(["calibrate", "bert-tiny-sst2", "--out", str(path), "--golden", *options]) == 2
    assert "--hessians: expected no --golden with it" in capsys.readouterr().err
    plain = tmp_path / "plain.safetensors"
    assert main(["calibrate", "bert-tiny-sst2", "--out", str(plain), *options[:2]]) == 0
    assert not bert_numpy.load_calibration(plain).hessians
    assert main(["predict", "bert-tiny-sst2", "a film", *use[:-1], str(plain)]) == 2
    error = capsys.readouterr().err
    assert "expected a Hessian for GPTQ, found none: calibrate with hessians=True" in error

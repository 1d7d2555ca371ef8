"""Checkpoints in block formats: written as others write them, read as others read them."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint
from oracles import assert_same_bits
from test_quantized_checkpoint import (
    assert_same_linear_layers,
    assert_same_models,
    assert_same_outputs,
    batch,
    changed_config,
    compressed,
    distance,
    float32_values,
    linear_layers,
    loaded_by_transformers,
    logits_of,
    parameters_of,
    quantized,
    runs_of_layers,
    written,
)
from watching import product_of

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, QuantizedModel, Recipe, SiteRecipe
from bert_numpy.checkpoints.blocks import BLOCK_LAYOUTS
from bert_numpy.checkpoints.load import stored_recipe
from bert_numpy.checkpoints.quantized import check_writable, save_quantized
from bert_numpy.commands.main import main
from npfp8 import E4M3FN, E5M2, INT8, MXFP4, NVFP4, BlockFormat, QuantizedTensor, bfloat16
from npfp8.blocks import POWER_RULES, RATIO_RULES, PowerRule
from npfp8.storage import Fp8Array, load_file, read_header, save_file

WIDE = {"hidden_size": 128, "intermediate_size": 256}

#: The parameters of the two linear layers that stay float32 in the checkpoints of others.
LAYERS = 12

#: Two float32 runs of these models: either is up to 8e-6 of the logits from float64, by its BLAS.
ROUNDINGS = 1e-4


def both(fmt: str, rule: str | None = None) -> SiteRecipe:
    return SiteRecipe(Operand(fmt, rule=rule), Operand(fmt, rule=rule))


def weights(fmt: str, rule: str | None = None) -> Recipe:
    return Recipe(f"{fmt} {rule}", SiteRecipe(b=Operand(fmt, rule=rule)), arithmetic="float32")


def takes(rule: PowerRule) -> bool:
    return not rule.elements or MXFP4.element in rule.elements


MIXED = Recipe(
    "all of them",
    both("NVFP4"),
    overrides=(
        ("*.0.attention.self.query", both("MXFP8_E4M3")),
        ("*.0.attention.self.key", SiteRecipe(Operand("MXFP8_E4M3"), Operand("MXFP6_E2M3"))),
        ("*.0.attention.self.value", SiteRecipe(Operand("MXFP8_E5M2"), Operand("MXFP8_E5M2"))),
        ("*.0.attention.output.dense", both("MXINT8")),
        ("*.0.intermediate.dense", SiteRecipe(Operand(E4M3FN), Operand(E4M3FN, "channel"))),
        ("*.0.output.dense", SiteRecipe(Operand(E4M3FN), Operand("NVFP4"))),
        ("*.1.attention.self.*", SiteRecipe(Operand("NVFP4"), Operand(INT8, "channel"))),
        ("*.1.attention.output.dense", SiteRecipe()),
        ("pooler.dense", SiteRecipe(b=Operand("MXFP6_E3M2", rule="ceil"))),
        ("classifier", both("MXFP4", "modelopt")),
    ),
)


# Written and read again


@pytest.mark.parametrize(
    "recipe",
    [
        *(PRESETS[name] for name in ("mxfp8", "mxfp8-e5m2", "mxfp6", "mxfp6-e3m2", "mxfp4")),
        *(PRESETS[name] for name in ("nvfp4", "mxint8", "mxfp4-weights", "nvfp4-weights")),
        *(PRESETS[name] for name in ("mxfp4-mixed", "nvfp4-mixed")),
        *(replace(weights("NVFP4", rule), linear=both("NVFP4", rule)) for rule in RATIO_RULES),
        *(weights("MXFP4", name) for name, rule in POWER_RULES.items() if takes(rule)),
        MIXED,
    ],
    ids=lambda recipe: recipe.name,
)
def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    loaded = bert_numpy.load(folder)
    assert_same_blocks(loaded, model)
    assert_same_outputs(loaded, model)
    assert stored_recipe(folder) == recipe


def assert_same_blocks(actual: QuantizedModel, expected: QuantizedModel) -> None:
    """The same model, and the same codes of scales and numbers of tensors."""
    assert_same_models(actual, expected)
    for name, weight in expected.weights.items():
        found = actual.weights[name]
        if not isinstance(weight, QuantizedTensor) or weight.block_format is None:
            continue
        assert isinstance(found, QuantizedTensor)
        assert found.block_format == weight.block_format
        assert_same_bits(found.scale_codes, weight.scale_codes)
        assert (found.tensor_scale is None) == (weight.tensor_scale is None)
        if weight.tensor_scale is not None:
            assert_same_bits(found.tensor_scale, weight.tensor_scale)


@pytest.mark.parametrize("layout", ["compressed-tensors", "modelopt"])
@pytest.mark.parametrize("rule", RATIO_RULES)
def test_numbers_of_tensors_of_every_rule(layout: str, rule: str, tmp_path: Path) -> None:
    """The file has the reciprocal, or the quotient, rounded once; we read the rule's own."""
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, replace(weights("NVFP4", rule), linear=both("NVFP4", rule)))
    save_quantized(model, source, tmp_path / "out", layout=layout)
    loaded = bert_numpy.load(tmp_path / "out")
    assert_same_blocks(loaded, model)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    site = "encoder.layer.0.attention.self.query"
    names = {
        "compressed-tensors": ("weight_global_scale", "input_global_scale"),
        "modelopt": ("weight_scale_2", "input_scale"),
    }[layout]
    plan = model.plans[site].a
    assert plan is not None
    for name, number in zip(
        names, (model.weights[f"{site}.weight"].tensor_scale, plan.scale), strict=True
    ):
        kinds = {"multiplier": 1 / np.float64(number), "divisor": np.float64(number)}
        kinds["absmax"] = 2688 / np.float64(number)
        divisor = kinds[RATIO_RULES[rule].stored]
        exact = divisor if layout == "compressed-tensors" else 1 / divisor
        found = stored[f"bert.{site}.{name}"]
        assert found.dtype == np.float32
        assert found.shape == ((1,) if layout == "compressed-tensors" else ())
        assert found == np.float32(exact)


def test_a_tensor_of_zeros(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    tensors = load_file(source / "model.safetensors")
    key = "bert.encoder.layer.0.output.dense.weight"
    tensors[key] = np.zeros_like(tensors[key])
    save_file(tensors, source / "model.safetensors")
    for rule in ("te", "compressed-tensors", "exact"):
        model = quantized(source, weights("NVFP4", rule))
        save_quantized(model, source, tmp_path / rule)
        assert_same_blocks(bert_numpy.load(tmp_path / rule), model)
        assert load_file(tmp_path / rule / "model.safetensors")[f"{key}_global_scale"] == 1


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp6", "mxfp8"])
def test_a_last_block_that_is_shorter(name: str, tmp_path: Path) -> None:
    """Others compute with whole blocks only; here a shorter one has its scale."""
    shape = {"hidden_size": 40, "intermediate_size": 84, "num_attention_heads": 2}
    model, folder = written(tmp_path, PRESETS[name], config_overrides=shape)
    loaded = bert_numpy.load(folder)
    assert_same_blocks(loaded, model)
    assert_same_outputs(loaded, model)


def test_golden_round_trip(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, PRESETS["nvfp4"], golden=True)
    save_quantized(model, source, tmp_path / "out")
    loaded = bert_numpy.load(tmp_path / "out")
    golden = bert_numpy.apply_recipe(loaded, loaded.recipe, golden=True)
    assert_same_outputs(golden, model)


# What is in the files

#: As compressed-tensors 0.20.0 writes them; ``test_config_groups`` compares.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "nvfp4": {
        **{"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group"},
        **{"group_size": 16, "dynamic": False, "scale_dtype": "torch.float8_e4m3fn"},
    },
    **{
        name: {
            **{"num_bits": bits, "type": "float", "symmetric": True, "strategy": "group"},
            **{"group_size": 32, "dynamic": False, "scale_dtype": "torch.uint8"},
        }
        for name, bits in (("mxfp4", 4), ("mxfp6", 6), ("mxfp8", 8))
    },
}
FORMATS = {
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp6": "mxfp6-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}
INPUTS = {
    "nvfp4": {"dynamic": "local", "observer": "static_minmax"},
    **{name: {"dynamic": True} for name in ("mxfp4", "mxfp6", "mxfp8")},
}


@pytest.mark.parametrize("name", FORMATS)
def test_config_of_compressed_tensors(name: str, tmp_path: Path) -> None:
    _, folder = written(tmp_path, PRESETS[name], config_overrides=WIDE)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = {
        "targets": ["Linear"],
        "weights": ARGUMENTS[name],
        "input_activations": {**ARGUMENTS[name], **INPUTS[name]},
        "output_activations": None,
        "format": FORMATS[name],
    }
    assert section["config_groups"] == {"group_0": scheme}
    assert section["format"] == FORMATS[name]
    assert section["quant_method"] == "compressed-tensors"
    assert section["quantization_status"] == "compressed"
    assert section["dequantize"] is True


def test_tensors_of_compressed_tensors(tmp_path: Path) -> None:
    """The numbers of the file, by the layout's definition and without this package's code."""
    rule = "compressed-tensors"
    recipe = Recipe("ct", both("NVFP4", rule), arithmetic="float32")
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    name = "encoder.layer.0.intermediate.dense"
    header = read_header(folder / "model.safetensors")
    found = {
        key.removeprefix(f"bert.{name}."): (tensor.dtype, tensor.shape)
        for key, tensor in header.items()
        if f"{name}." in key
    }
    assert found == {
        "weight_packed": ("U8", (256, 64)),
        "weight_scale": ("F8_E4M3", (256, 8)),
        "weight_global_scale": ("F32", (1,)),
        "input_global_scale": ("F32", (1,)),
        "bias": ("F32", (256,)),
    }
    source = load_file(tmp_path / "source" / "model.safetensors")[f"bert.{name}.weight"]
    stored = load_file(folder / "model.safetensors")
    number = stored[f"bert.{name}.weight_global_scale"]
    assert abs(number / (2688 / np.abs(source).max()) - 1) < 2e-7
    values = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    packed = stored[f"bert.{name}.weight_packed"]
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(256, 128)
    scales = E4M3FN.values[stored[f"bert.{name}.weight_scale"].codes].astype(np.float32)
    expected = values[codes] * np.repeat(scales / number, 16, axis=1)
    assert_same_bits(expected, model.weights[f"{name}.weight"].dequantize())


def test_tensors_of_modelopt(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, Recipe("mo", both("NVFP4", "modelopt"), arithmetic="float32"))
    save_quantized(model, source, tmp_path / "out", layout="modelopt")
    name = "encoder.layer.0.intermediate.dense"
    header = read_header(tmp_path / "out" / "model.safetensors")
    found = {
        key.removeprefix(f"bert.{name}."): (tensor.dtype, tensor.shape)
        for key, tensor in header.items()
        if f"{name}." in key
    }
    assert found == {
        "weight": ("U8", (256, 64)),
        "weight_scale": ("F8_E4M3", (256, 8)),
        "weight_scale_2": ("F32", ()),
        "input_scale": ("F32", ()),
        "bias": ("F32", (256,)),
    }
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    section = raw["quantization_config"]
    operand = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    assert section["config_groups"] == {
        "group_0": {"input_activations": operand, "weights": operand, "targets": ["Linear"]}
    }
    assert (section["quant_method"], section["quant_algo"]) == ("modelopt", "NVFP4")
    assert {"bert.pooler.dense", "classifier"} < set(section["ignore"])
    assert not [key for key in section["ignore"] if ".layer." in key]
    beside = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert beside == {
        "quant_algo": "NVFP4",
        "group_size": 16,
        "kv_cache_quant_algo": None,
        "exclude_modules": section["ignore"],
    }
    assert "hf_quant_config.json" in (tmp_path / "out" / "SHA256SUMS").read_text()


@pytest.mark.parametrize(
    ("recipe", "algorithm"),
    [
        (PRESETS["e4m3"], "FP8"),
        (PRESETS["nvfp4"], "NVFP4"),
        (PRESETS["nvfp4-weights"], "W4A16_NVFP4"),
        (PRESETS["mxfp8"], "MXFP8"),
        (PRESETS["mxfp4-weights"], "mxfp4"),
        (
            replace(
                PRESETS["nvfp4"],
                name="several",
                overrides=(("*.self.*", PRESETS["e4m3"].linear), ("pooler.dense", both("NVFP4"))),
            ),
            "MIXED_PRECISION",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_recipes_of_modelopt(recipe: Recipe, algorithm: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    check_writable(bert_numpy.load(source).config, recipe, source, "modelopt")
    model = quantized(source, recipe)
    save_quantized(model, source, tmp_path / "out", layout="modelopt")
    loaded = bert_numpy.load(tmp_path / "out")
    assert_same_blocks(loaded, model)
    assert_same_outputs(loaded, model)
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["quant_algo"] == algorithm
    changed_config(lambda raw: (raw.pop("npfp8_config"), raw.update(dtype="bfloat16"))[0])(
        tmp_path / "out"
    )
    foreign = bert_numpy.load(tmp_path / "out")
    for name, weight in model.weights.items():
        found = foreign.weights[name]
        assert isinstance(found, QuantizedTensor) == isinstance(weight, QuantizedTensor)
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found.codes, weight.codes)
            assert np.allclose(found.scale, weight.scale, rtol=3e-7, atol=0)
    for site, plan in foreign.plans.items():
        assert str(plan.recipe.a.fmt) == str(model.plans[site].recipe.a.fmt)


@pytest.mark.parametrize(
    ("recipe", "layout", "message"),
    [
        *(
            (PRESETS[name], "modelopt", f"recipe {name}: .*query: expected E4M3FN with inputs")
            for name in ("mxfp4", "mxfp6", "mxint8", "e5m2", "int8", "e4m3-channel")
        ),
        (PRESETS["fp32"], "modelopt", "recipe fp32: expected quantized weights, found none"),
        (PRESETS["e4m3-smooth"], "modelopt", "recipe e4m3-smooth: .*query: expected E4M3FN with"),
        (
            Recipe("mine", SiteRecipe(b=Operand(BlockFormat("E2M1", 8, name="mine")))),
            "compressed-tensors",
            "recipe mine: .*query: weight: expected E4M3FN, .*, MXINT8 to be written, found mine",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_recipes_that_cannot_be_written(
    recipe: Recipe, layout: str, message: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, recipe)
    with pytest.raises(BertNumpyError, match=message):
        check_writable(model.config, recipe, source, layout)
    with pytest.raises(BertNumpyError, match=message):
        save_quantized(model, source, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("mxfp4", {"hidden_size": 36, "intermediate_size": 65}, "a multiple of 2 inputs to pack"),
        ("nvfp4", {"hidden_size": 36, "intermediate_size": 65}, "codes of 4 bits, found 65"),
        ("mxfp6", {"hidden_size": 36, "intermediate_size": 66}, "a multiple of 4 inputs to pack"),
    ],
)
def test_rows_that_do_not_fill_bytes(
    name: str, shape: dict[str, int], message: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path, config_overrides={**shape, "num_attention_heads": 2})
    model = bert_numpy.load(source)
    with pytest.raises(BertNumpyError, match=rf"recipe {name}: .*output\.dense: .*{message}"):
        check_writable(model.config, PRESETS[name], source)


def test_a_wrong_layout(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, PRESETS["mxfp4-weights"])
    with pytest.raises(ValueError, match=r"layout: expected .*'compressed-tensors'.*'model-opt'"):
        save_quantized(model, source, tmp_path / "out", layout="model-opt")
    with pytest.raises(TypeError, match="layout: expected"):
        save_quantized(model, source, tmp_path / "out", layout=3)  # type: ignore[arg-type]
    save_quantized(model, source, tmp_path / "out", layout="ModelOpt")


def test_another_source_is_refused(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    other = write_checkpoint(tmp_path / "other", config_overrides=WIDE, seed=1)
    model = quantized(source, PRESETS["nvfp4-weights"])
    with pytest.raises(BertNumpyError, match=r"expected the weights that .* was made of, found"):
        save_quantized(model, other, tmp_path / "out")


# Read by transformers


@pytest.mark.parametrize(
    ("fmt", "rule"),
    [
        ("MXFP4", "compressed-tensors"),
        ("MXFP4", "floor"),
        ("MXFP6_E2M3", "floor"),
        ("MXFP8_E4M3", "rceil"),
        ("NVFP4", "compressed-tensors"),
        ("NVFP4", "vllm"),
    ],
)
def test_weights_in_transformers(
    fmt: str,
    rule: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """transformers makes bfloat16 numbers of codes: exact in MX, rounded once more in NVFP4."""
    model, folder = written(tmp_path, weights(fmt, rule), config_overrides=WIDE)
    theirs = loaded_by_transformers(transformers, folder)
    found = parameters_of(theirs)
    rounded = {}
    for name, weight in model.weights.items():
        values = float32_values(weight)
        rounded[name] = values
        if isinstance(weight, QuantizedTensor):
            rounded[name] = bfloat16.round_to_bfloat16(values)
            if fmt != "NVFP4":
                assert_same_bits(rounded[name], values)
        assert_same_bits(found[name], rounded[name])
    plain = replace(bert_numpy.load(tmp_path / "source"), weights=rounded)
    assert distance(logits_of(theirs, torch), plain(**batch()).logits) < ROUNDINGS
    own = distance(logits_of(theirs, torch), model(**batch()).logits)
    assert own < (quantization_of(model, tmp_path) / 10 if fmt == "NVFP4" else ROUNDINGS)


def quantization_of(model: QuantizedModel, folder: Path) -> float:
    """Measure how far a model is from the one that it was made of."""
    reference = bert_numpy.load(folder / "source")(**batch()).logits
    return distance(model(**batch()).logits, reference)


@pytest.mark.parametrize("rule", ["te", "modelopt", "torchao", "exact"])
def test_rules_whose_number_is_converted(
    rule: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """One more rounding in float32: a bfloat16 number may be the other neighbour, seldom."""
    model, folder = written(tmp_path, weights("NVFP4", rule), config_overrides=WIDE)
    found = parameters_of(loaded_by_transformers(transformers, folder))
    different = count = 0
    for name, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            values = weight.dequantize()
            assert np.allclose(found[name], values, rtol=2.0**-8 * 1.001, atol=0)
            different += int((found[name] != bfloat16.round_to_bfloat16(values)).sum())
            count += values.size
    assert count == 2 * (4 * 128 * 128 + 2 * 128 * 256)
    assert different <= count / 1000


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8", "nvfp4"])
def test_inputs_in_transformers(
    name: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """With the hook, in bfloat16, it quantizes the inputs of layers too.

    The result of a layer is rounded to bfloat16. NVFP4's scales of inputs are computed in it:
    some differ by a step of E4M3 (measured: results differ by at most 2.6 %).
    """
    recipe = linear_layers(PRESETS[name])
    how = both(str(recipe.linear.a.fmt), "compressed-tensors")
    recipe = replace(recipe, linear=how, arithmetic="bfloat16")
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    config = transformers.CompressedTensorsConfig(dequantize=False)
    theirs = loaded_by_transformers(
        transformers, folder, dtype=torch.bfloat16, quantization_config=config
    )
    logits = logits_of(theirs, torch)
    found = parameters_of(theirs)
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found[key], bfloat16.round_to_bfloat16(weight.dequantize()))
    assert np.isfinite(logits).all()
    errors = errors_of_layers(theirs, model, torch)
    assert max(errors.values()) < (1e-1 if name == "nvfp4" else 4e-3)


def errors_of_layers(theirs: Any, ours: QuantizedModel, torch: ModuleType) -> dict[str, float]:
    """Compute the relative error of each layer of theirs for the input that it has in their run."""
    runs = runs_of_layers(theirs, torch)
    errors = {}
    for site in (site for site in ours.plans if site in runs):
        x, expected = runs[site]
        weight, bias = (ours.weights[f"{site}.{name}"] for name in ("weight", "bias"))
        errors[site] = distance(expected, product_of(ours.engine, site, x, weight.mT, bias))
    assert len(errors) == LAYERS
    return errors


def test_several_layouts_in_transformers(
    tmp_path: Path, torch: ModuleType, transformers: ModuleType, compressed_tensors: ModuleType
) -> None:
    """Groups of several layouts are read in bfloat16: FP8's scales are rounded to it."""
    rule = "compressed-tensors"
    recipe = replace(
        weights("NVFP4", rule),
        overrides=(
            ("*.self.*", SiteRecipe(b=Operand(E4M3FN))),
            ("*.attention.output.dense", SiteRecipe(b=Operand("MXFP8_E4M3", rule=rule))),
        ),
    )
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["format"] == "mixed-precision"
    assert "dequantize" not in section
    theirs = loaded_by_transformers(transformers, folder, dtype=torch.bfloat16)
    assert np.isfinite(logits_of(theirs, torch)).all()
    found = parameters_of(theirs)
    for name, weight in model.weights.items():
        if not isinstance(weight, QuantizedTensor):
            continue
        values = weight.dequantize()
        if weight.block_format is not None:
            assert_same_bits(found[name], bfloat16.round_to_bfloat16(values))
        else:
            assert np.allclose(found[name], values, rtol=2.0**-7, atol=0)


@pytest.mark.parametrize("name", ["mxfp8-e5m2", "mxfp6-e3m2", "mxint8"])
def test_formats_that_others_do_not_have(
    name: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """compressed-tensors would take E5M2 for E4M3, and E3M2 for E2M3: it refuses the layout."""
    recipe = PRESETS[name]
    _, folder = written(tmp_path, recipe, config_overrides=WIDE)
    layout = next(layout for layout in BLOCK_LAYOUTS if layout.fmt == recipe.linear.b.fmt)
    with pytest.raises((ValueError, KeyError), match=layout.name):
        loaded_by_transformers(transformers, folder)


# Made by compressed-tensors


def set_scales(name: str, layer: Any, scheme: Any) -> None:
    """Set a layer's scales, and a tensor's number, as compressed-tensors computes them."""
    from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)

    weight, number = layer.weight.detach(), None
    if scheme.weights.strategy == "tensor_group":
        number = ct.utils.generate_gparam(weight.amin(), weight.amax())
        layer.weight_global_scale.data.copy_(number)
    if hasattr(layer, "input_global_scale"):
        layer.input_global_scale.data.fill_(700.5)
    blocks = weight.unflatten(-1, (-1, scheme.weights.group_size))
    low, high = blocks.amin(-1), blocks.amax(-1)
    scale, _ = ct.utils.calculate_qparams(low, high, scheme.weights, global_scale=number)
    layer.weight_scale.data.copy_(scale)


SCHEMES = {
    "NVFP4": ("NVFP4", "NVFP4"),
    "NVFP4A16": (None, "NVFP4"),
    "MXFP4": ("MXFP4", "MXFP4"),
    "MXFP4A16": (None, "MXFP4"),
    "MXFP6A16": (None, "MXFP6_E2M3"),
    "MXFP6A8": ("MXFP8_E4M3", "MXFP6_E2M3"),
    "MXFP8A16": (None, "MXFP8_E4M3"),
    "MXFP8": ("MXFP8_E4M3", "MXFP8_E4M3"),
    "MXFP4XFP8": (None, "MXFP4"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_made_by_compressed_tensors(
    scheme: str,
    dtype: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """Their weights, in float32 and in the bfloat16 of their loader, are ours to the last bit."""
    folder = compressed(tmp_path, scheme, dtype, torch, transformers, set_scales)
    model = bert_numpy.load(folder)
    assert isinstance(model, QuantizedModel)
    assert model.recipe.arithmetic == dtype
    blocks = {name: x for name, x in model.weights.items() if isinstance(x, QuantizedTensor)}
    assert len(blocks) == LAYERS
    how = model.recipe.site("encoder.layer.0.attention.self.query")
    rule = "compressed-tensors"
    inputs, format_ = SCHEMES[scheme]
    assert how.b == Operand(format_, rule=rule)
    if scheme == "MXFP4XFP8":
        assert how.a == Operand(E4M3FN, "block", block=128)
    else:
        assert how.a == (Operand(inputs, rule=rule) if inputs else Operand())
    if scheme == "NVFP4":
        plan = model.plans["encoder.layer.0.attention.self.query"].a
        assert plan is not None
        assert plan.scale == np.float32(700.5)
    stored = load_file(folder / "model.safetensors")
    for name, weight in blocks.items():
        assert_same_bits(weight.dequantize(), dequantized_there(stored, name, scheme, torch))
    theirs = loaded_by_transformers(transformers, folder, dtype=torch.bfloat16)
    logits_of(theirs, torch)
    found = parameters_of(theirs)
    for name, weight in blocks.items():
        assert_same_bits(found[name], bfloat16.round_to_bfloat16(weight.dequantize()))
    assert np.isfinite(model(**batch()).logits).all()
    if inputs is None and scheme != "MXFP4XFP8" and dtype == "float32":
        config = transformers.CompressedTensorsConfig(dequantize=True)
        there = loaded_by_transformers(
            transformers, folder, dtype=torch.float32, quantization_config=config
        )
        bfloat16_ = scheme == "NVFP4A16"  # weights are rounded to it
        bound = quantization_of(model, tmp_path) / 10 if bfloat16_ else ROUNDINGS
        assert distance(logits_of(there, torch), model(**batch()).logits) < bound
        assert_same_linear_layers(there, model, torch, 4e-3 if bfloat16_ else 1e-5)


def dequantized_there(
    stored: dict[str, Any], name: str, scheme: str, torch: ModuleType
) -> np.ndarray:
    """Compute a weight in float32 by compressed-tensors' public functions."""
    from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)
    from compressed_tensors.compressors.mxfp6 import helpers as fp6  # noqa: PLC0415
    from compressed_tensors.compressors.nvfp4 import helpers as fp4  # noqa: PLC0415

    def tensor(key: str) -> Any:
        x = stored[f"bert.{name}{key}"]
        if isinstance(x, Fp8Array):
            return torch.from_numpy(x.codes).view(torch.float8_e4m3fn).float()
        return torch.from_numpy(x)

    arguments = ct.preset_name_to_scheme(scheme, ["Linear"]).weights
    if arguments.num_bits == 4:
        packed = tensor("_packed")
        codes = fp4.unpack_fp4_from_uint8(packed, len(packed), 2 * packed.shape[1], torch.float32)
    elif arguments.num_bits == 6:
        packed = tensor("_packed")
        columns = 4 * packed.shape[1] // 3
        codes = fp6.unpack_fp6_from_uint8(packed, len(packed), columns, torch.float32)
    else:
        codes = tensor("")
    scale, number = tensor("_scale"), None
    if arguments.strategy == "tensor_group":
        number = tensor("_global_scale")
    else:
        scale = torch.exp2(scale.float() - 127)
    found = ct.dequantize(codes, scale, args=arguments, dtype=torch.float32, global_scale=number)
    values: np.ndarray = found.numpy()
    return values


# Made by ModelOpt


@pytest.fixture(scope="module")
def modelopt(torch: ModuleType, transformers: ModuleType) -> ModuleType:
    """ModelOpt, with all that it imports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: ModuleType = pytest.importorskip(
            "modelopt.torch.quantization",
            reason="modelopt, or a package that it imports, is not installed",
            exc_type=ImportError,
        )
    return found


def exported(
    folder: Path, recipe: str, dtype: str, torch: ModuleType, transformers: ModuleType, mtq: Any
) -> Path:
    """A checkpoint that ModelOpt quantized and exported."""
    from modelopt.torch.export import export_hf_checkpoint  # noqa: PLC0415 (a peer)

    source = write_checkpoint(folder / "source", config_overrides=WIDE)
    model = transformers.BertForSequenceClassification.from_pretrained(
        source, dtype=getattr(torch, dtype)
    ).eval()

    def run(made: Any) -> None:
        with torch.no_grad():
            made(**{name: torch.from_numpy(x) for name, x in batch().items()})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = mtq.quantize(model, copy.deepcopy(getattr(mtq, recipe)), run)
        export_hf_checkpoint(made, export_dir=folder / "out")
    shutil.copyfile(source / "vocab.txt", folder / "out" / "vocab.txt")
    return folder / "out"


def by_modelopt(stored: dict[str, Any], name: str, torch: ModuleType) -> np.ndarray:
    """Compute a weight in float32 by ModelOpt's own classes."""
    from modelopt.torch.quantization import qtensor  # noqa: PLC0415 (a peer)

    key = name if name.startswith("classifier") else f"bert.{name}"
    weight, scale = stored[key], stored[f"{key}_scale"]
    if isinstance(scale, Fp8Array):
        codes = torch.from_numpy(weight)
        shape = (len(codes), 2 * codes.shape[1])
        made = qtensor.NVFP4QTensor(shape, torch.float32, codes)
        found = made.dequantize(
            dtype=torch.float32,
            scale=torch.from_numpy(scale.codes).view(torch.float8_e4m3fn),
            double_scale=torch.from_numpy(stored[f"{key}_scale_2"]),
            block_sizes={-1: 16},
        )
    elif isinstance(weight, Fp8Array):
        codes = torch.from_numpy(weight.codes).view(torch.float8_e4m3fn)
        made = qtensor.MXFP8QTensor(codes.shape, torch.float32, codes)
        found = made.dequantize(dtype=torch.float32, scale=torch.from_numpy(scale))
    else:
        codes = torch.from_numpy(weight)
        shape = (len(codes), 2 * codes.shape[1])
        made = qtensor.MXFP4QTensor(shape, torch.float32, codes)
        scales = {"scale": torch.from_numpy(scale), "block_sizes": {-1: 32}}
        found = made.dequantize(dtype=torch.float32, **scales)
    values: np.ndarray = found.reshape(len(codes), -1).numpy()
    return values


EXPORTS = {
    "NVFP4_DEFAULT_CFG": ("NVFP4", "NVFP4"),
    "W4A16_NVFP4_CFG": (None, "NVFP4"),
    "MXFP8_DEFAULT_CFG": ("MXFP8_E4M3", "MXFP8_E4M3"),
    "MXFP4_DEFAULT_CFG": (None, "MXFP4"),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recipe", EXPORTS)
def test_made_by_modelopt(
    recipe: str,
    dtype: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    modelopt: ModuleType,
) -> None:
    folder = exported(tmp_path, recipe, dtype, torch, transformers, modelopt)
    model = bert_numpy.load(folder)
    assert isinstance(model, QuantizedModel)
    assert model.recipe.arithmetic == dtype
    stored = load_file(folder / "model.safetensors")
    blocks = {name: x for name, x in model.weights.items() if isinstance(x, QuantizedTensor)}
    assert len(blocks) == LAYERS + 2  # it does not leave out the pooler and the classifier
    for name, weight in blocks.items():
        # Its table has +0 for the code of -0.
        assert_same_bits(weight.dequantize() + 0, by_modelopt(stored, name, torch) + 0)
    how = model.recipe.site("encoder.layer.0.attention.self.query")
    inputs, fmt = EXPORTS[recipe]
    assert how.b == Operand(fmt, rule="modelopt")
    assert how.a == (Operand(inputs, rule="modelopt") if inputs else Operand())
    if inputs == "NVFP4":
        plan = model.plans["classifier"].a
        assert plan is not None
        assert plan.scale == stored["classifier.input_scale"]
    assert np.isfinite(model(**batch()).logits).all()
    section = json.loads((folder / "config.json").read_text())
    del section["quantization_config"]  # as older releases write it
    (folder / "config.json").write_text(json.dumps(section))
    assert_same_blocks(bert_numpy.load(folder), model)


# What cannot be read


def without_ours(
    change: Callable[[dict[str, Any]], Any] = lambda _: None,
) -> Callable[[Path], None]:
    """Remove our section, and change the other."""

    def apply(raw: dict[str, Any]) -> None:
        raw.pop("npfp8_config", None)
        change(raw["quantization_config"])

    return changed_config(apply)


def scheme_of(side: str, **changes: Any) -> Callable[[Path], None]:
    return without_ours(lambda config: config["config_groups"]["group_0"][side].update(changes))


PLACE = "bert.encoder.layer.1.output.dense"


def tensor(
    key: str, change: Callable[[Any], Any], ours: bool = False, new: str = ""
) -> Callable[[Path], None]:
    """Change a tensor, remove it (None), or give it another name."""

    def apply(folder: Path) -> None:
        if not ours:
            without_ours()(folder)
        tensors = load_file(folder / "model.safetensors")
        value = change(tensors.pop(f"{PLACE}.{key}"))
        if value is not None:
            tensors[f"{PLACE}.{new or key}"] = value
        save_file(tensors, folder / "model.safetensors")

    return apply


def to(*values: float) -> Callable[[Any], np.ndarray]:
    return lambda found: np.array(values, found.dtype).reshape(found.shape)


def with_code(code: int) -> Callable[[Any], Any]:
    def change(found: Any) -> Any:
        codes = found.codes if isinstance(found, Fp8Array) else found
        codes[3, 1] = code
        return found

    return change


CONFIG = "config.json: key 'quantization_config': "
GROUP = f"{CONFIG}key 'config_groups': key 'group_0': "
FILE = f"model.safetensors: tensor '{PLACE}."
ALGO = "one of FP8, NVFP4, W4A16_NVFP4, MXFP8, mxfp4, MIXED_PRECISION"

BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    *(
        (name, scheme_of("weights", **{key: value}), f"{GROUP}key 'weights': key {key!r}: {text}")
        for name, key, value, text in (
            ("nvfp4", "group_size", 64, "expected 16 or 32, found 64"),
            ("nvfp4", "group_size", None, "expected 16 or 32, found nothing"),
            ("nvfp4", "group_size", 16.0, "expected 16 or 32, found 16.0"),
            ("nvfp4", "group_size", 32, "expected 'group', found 'tensor_group'"),
            ("mxfp6", "group_size", 16, "expected 32, found 16"),
            ("mxfp8", "group_size", 64, "expected 32, found 64"),
            ("nvfp4", "strategy", "group", "expected 'tensor_group', found 'group'"),
            ("mxfp4", "strategy", "tensor_group", "expected 'group', found 'tensor_group'"),
            ("mxfp4", "strategy", "nibble", "expected 'group', found 'nibble'"),
            ("nvfp4", "symmetric", False, "expected True, found False"),
            ("nvfp4", "dynamic", True, "expected False, found True"),
            ("nvfp4", "dynamic", "local", "expected False, found 'local'"),
            ("nvfp4", "num_bits", 5, "expected 4 or 6 or 8, found 5"),
            ("nvfp4", "num_bits", 4.0, "expected 4 or 6 or 8, found 4.0"),
            ("nvfp4", "scale_dtype", "torch.uint8", "expected 'float8_e4m3fn', found"),
            ("mxfp4", "scale_dtype", "float32", "expected 'uint8', found 'float32'"),
            ("mxfp4", "actorder", "group", "expected nothing or 'weight'"),
            ("mxfp4", "block_structure", [1, 32], "expected nothing: this is not implemented"),
            ("mxfp4", "zero", 0.5, "expected nothing: this is not implemented"),
        )
        if not (value == 32 and key == "group_size")
    ),
    ("nvfp4", scheme_of("weights", group_size=32), "key 'strategy': expected 'group', found 'ten"),
    (
        "mxfp4",
        scheme_of("weights", type="int"),
        "key 'scale_dtype': expected one of float32, float16, bfloat16, found 'torch.uint8'",
    ),
    ("nvfp4", scheme_of("input_activations", dynamic=True), "'dynamic': expected 'local', found T"),
    ("nvfp4", scheme_of("input_activations", dynamic=False), "'dynamic': expected 'local', found"),
    ("mxfp4", scheme_of("input_activations", dynamic="local"), "'dynamic': expected True, found"),
    *(
        (
            name,
            without_ours(lambda config, x=x: config["config_groups"]["group_0"].update(format=x)),
            f"{GROUP}key 'format': expected {expected}",
        )
        for name, x, expected in (
            ("nvfp4", "mxfp4-pack-quantized", "'nvfp4-pack-quantized'"),
            ("mxfp8", "float-quantized", "'mxfp8-quantized'"),
            ("e4m3", "mxfp8-quantized", "'float-quantized' or 'int-quantized' or"),
        )
    ),
    (
        "nvfp4",
        without_ours(lambda config: config.update(format="nvfp4")),
        f"{CONFIG}key 'format': expected one of float-quantized, int-quantized, naive-quantized, p",
    ),
    (
        "nvfp4",
        tensor("weight_packed", lambda x: x.view(np.int8)),
        f"{FILE}weight_packed': expected dtype U8 by config.json, found I8",
    ),
    (
        "nvfp4",
        tensor("weight_packed", lambda x: x[:, :-1].copy()),
        f"{FILE}weight_packed': expected shape (128, 128) by config.json, found (128, 127)",
    ),
    (
        "mxfp6",
        tensor("weight_packed", lambda x: x[1:]),
        "expected shape (128, 192) by config.json, found (127, 192)",
    ),
    (
        "nvfp4",
        tensor("weight_packed", lambda _: None),
        "tensor 'encoder.layer.1.output.dense.weight': expected shape (128, 256), but missing",
    ),
    (
        "nvfp4",
        tensor("weight_packed", lambda x: x, new="weight"),
        f"{FILE}weight_packed': expected shape (128, 128) by config.json, but missing",
    ),
    (
        "mxfp8",
        tensor("weight", lambda x: Fp8Array(x.codes, E5M2)),
        f"{FILE}weight': expected dtype F8_E4M3 by config.json, found F8_E5M2",
    ),
    (
        "mxfp8",
        tensor("weight", lambda x: x.codes),
        "expected dtype F8_E4M3 by config.json, found U8",
    ),
    (
        "mxfp8",
        tensor("weight", with_code(0x7F)),
        f"{FILE}weight': expected finite numbers, found code 0x7F at [3, 1]",
    ),
    (
        "nvfp4",
        tensor("weight_scale", lambda _: None),
        f"{FILE}weight_scale': expected shape (128, 16) by config.json, but missing",
    ),
    (
        "nvfp4",
        tensor("weight_scale", lambda x: Fp8Array(x.codes[:, 1:], E4M3FN)),
        f"{FILE}weight_scale': expected shape (128, 16) by config.json, found (128, 15)",
    ),
    (
        "nvfp4",
        tensor("weight_scale", lambda x: x.codes),
        "expected dtype F8_E4M3 by config.json, found U8",
    ),
    (
        "mxfp4",
        tensor("weight_scale", lambda x: x.astype(np.float32)),
        "expected dtype U8 by config.json, found F32",
    ),
    (
        "nvfp4",
        tensor("weight_scale", with_code(0x7F)),
        f"{FILE}weight_scale': expected finite E4M3FN "
        "numbers of at least 0, found code 0x7F at [3, 1]",
    ),
    ("nvfp4", tensor("weight_scale", with_code(0x81)), "of at least 0, found code 0x81 at [3, 1]"),
    (
        "mxfp4",
        tensor("weight_scale", with_code(0xFF)),
        f"{FILE}weight_scale': expected finite E8M0FNU "
        "numbers of at least 0, found code 0xFF at [3, 1]",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", lambda _: None),
        f"{FILE}weight_global_scale': expected shape (1,) or () by config.json, but missing",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", lambda x: np.repeat(x, 2)),
        "expected shape (1,) or () by config.json, found (2,)",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(0)),
        f"{FILE}weight_global_scale': expected a positive, normal number, found 0",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(1e-45)),
        "expected a positive, normal number, found",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(-1)),
        "expected a positive, normal number, found -1.0",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(np.nan)),
        f"{FILE}weight_global_scale': expected finite numbers, found nan at [0]",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(np.inf)),
        "expected finite numbers, found inf at [0]",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", to(1.2e-38)),
        f"{FILE}weight_global_scale': expected finite "
        "products with the scales of blocks, found infinity",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", lambda x: 1 / x),
        f"{FILE}weight_global_scale': expected 2688 / absmax, at least 1, found 0.000",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", lambda x: x.astype(np.int32)),
        "expected dtype F32, F16 or BF16, found I32",
    ),
    (
        "nvfp4",
        tensor("input_global_scale", lambda _: None),
        f"{FILE}input_global_scale': expected shape (1,) or () by config.json, but missing",
    ),
    (
        "nvfp4",
        tensor("input_global_scale", to(0)),
        f"{FILE}input_global_scale': expected a positive, n",
    ),
    (
        "nvfp4",
        tensor("weight_global_scale", lambda x: x * 2, ours=True),
        f"{FILE}weight_global_scale'",
    ),
    (
        "nvfp4",
        tensor("input_global_scale", lambda x: x * 2, ours=True),
        "which the scale in config.json comes to, found",
    ),
    (
        "nvfp4",
        changed_config(lambda raw: raw["npfp8_config"]["scales"].popitem()),
        "key 'npfp8_config",
    ),
    (
        "nvfp4",
        changed_config(lambda raw: raw["npfp8_config"]["scales"].clear()),
        "config.json: key 'npfp8_config': key 'scales': expected a scale of "
        "'encoder.layer.0.attention.self.query:b', found none",
    ),
    (
        "nvfp4",
        changed_config(lambda raw: raw["quantization_config"].update(quant_method="modelopt")),
        "key 'quantization_config': expected what the recipe in 'npfp8_config' comes to, found",
    ),
    (
        "mxfp4",
        changed_config(lambda raw: raw["quantization_config"]["ignore"].append("re:(")),
        "config.json: key 'quantization_config': key 'ignore': expected a regular expression, fou",
    ),
    (
        "mxfp4",
        changed_config(lambda raw: raw.update(hidden_size=10**400)),
        "config.json: key 'hidden_size': expected at most 2147483647, found 1000",
    ),
    (
        "e4m3",
        tensor("weight", lambda x: x, new="weight_packed"),
        f"tensor '{PLACE}.weight': expected by config.json, but missing; ",
    ),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN)
def test_unreadable(
    name: str, change: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    _, folder = written(tmp_path, PRESETS[name], config_overrides=WIDE)
    change(folder)
    with pytest.raises(BertNumpyError) as caught:
        bert_numpy.load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


def test_both_names_of_a_weight(tmp_path: Path) -> None:
    _, folder = written(tmp_path, PRESETS["nvfp4"], config_overrides=WIDE)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{PLACE}.weight"] = np.zeros((128, 256), np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BertNumpyError, match=r"weight_packed': expected one, as both are the same"):
        bert_numpy.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda config: config.update(quant_algo="NVFP4_AWQ"),
            f"key 'quant_algo': expected {ALGO}",
        ),
        (
            lambda config: config.pop("quant_algo"),
            f"{CONFIG}key 'quant_algo': expected {ALGO}, found",
        ),
        (lambda config: config.update(quant_algo=4), "key 'quant_algo': expected"),
        (
            lambda config: config.update(group_size=32),
            f"{CONFIG}key 'group_size': expected 16 for NV",
        ),
        (
            lambda config: config.update(group_size=True),
            "key 'group_size': expected 16 for NVFP4, fou",
        ),
        (
            lambda config: config.update(ignore="lm_head"),
            f"{CONFIG}key 'ignore': expected a list of n",
        ),
        (
            lambda config: config.update(ignore=["a" * 2000]),
            "key 'ignore': expected a name, found 'aa",
        ),
        (lambda config: config.update(ignore=[]), "tensor 'bert.pooler.dense.weight"),
        (
            lambda config: config.update(kv_cache_scheme={"num_bits": 8}),
            "key 'kv_cache_scheme': expect",
        ),
        (
            lambda config: config.update(pre_quant_scale=True),
            "key 'pre_quant_scale': expected nothing",
        ),
        (
            lambda config: config.update(quant_algo="MIXED_PRECISION"),
            "key 'quantized_layers': expected a JSON object, found nothing",
        ),
        (
            lambda config: config.update(
                quant_algo="MIXED_PRECISION",
                quantized_layers={"classifier": {"quant_algo": "INT4"}},
            ),
            f"key 'quantized_layers': key 'classifier': key 'quant_algo': expected {ALGO[:-17]}",
        ),
    ],
)
def test_unreadable_of_modelopt(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, PRESETS["nvfp4-weights"])
    save_quantized(model, source, tmp_path / "out", layout="modelopt")
    without_ours(lambda config: (config.update(quant_algo="NVFP4"), change(config)))(
        tmp_path / "out"
    )
    with pytest.raises(BertNumpyError) as caught:
        bert_numpy.load(tmp_path / "out")
    assert message in str(caught.value)
    assert str(tmp_path / "out") in str(caught.value)


def test_a_number_that_is_inverted_in_modelopts_layout(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, PRESETS["nvfp4-weights"])
    save_quantized(model, source, tmp_path / "out", layout="modelopt")
    tensor("weight_scale_2", lambda x: 1 / x)(tmp_path / "out")
    message = (
        rf"{PLACE}.weight_scale_2': expected absmax / 2688, at most 1, found \d+\.\d+: perhaps"
    )
    with pytest.raises(BertNumpyError, match=message):
        bert_numpy.load(tmp_path / "out")


def test_codes_that_config_json_does_not_describe(tmp_path: Path) -> None:
    """The name is the stored one."""
    _, folder = written(tmp_path, PRESETS["mxfp4"], config_overrides=WIDE)
    config = json.loads((folder / "config.json").read_text())
    inner = {key: config.pop(key) for key in ("quantization_config", "npfp8_config")}
    (folder / "config.json").write_text(json.dumps(config | {"text_config": inner}))
    message = (
        r"attention.self.query.weight': expected shape .*; 'bert.encoder.layer.0.attention.self."
        r"query.weight_scale' is of a quantized layout that is not read, or that config.json does"
    )
    with pytest.raises(BertNumpyError, match=message):
        bert_numpy.load(folder)


@pytest.mark.parametrize("name", ["bert.pooler*", "*pooler.*", "bert.pooler", "*.pooler.dense"])
def test_names_with_wildcards(name: str, tmp_path: Path) -> None:
    """A name also stands for all layers inside a module of that name."""
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = quantized(source, PRESETS["nvfp4-weights"])
    save_quantized(model, source, tmp_path / "out", layout="modelopt")
    (tmp_path / "out" / "hf_quant_config.json").unlink()
    without_ours(lambda config: config.update(ignore=[name, "classifier"]))(tmp_path / "out")
    assert_weights(bert_numpy.load(tmp_path / "out"), model)


def assert_weights(actual: Any, expected: QuantizedModel) -> None:
    for name, weight in expected.weights.items():
        found = actual.weights[name]
        assert isinstance(found, QuantizedTensor) == isinstance(weight, QuantizedTensor)
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found.codes, weight.codes)


@pytest.mark.parametrize("preset", ["NVFP4A16", "MXFP4A16", "MXFP8A16", "MXFP6A16"])
def test_presets_by_name(preset: str, tmp_path: Path) -> None:
    fmt = SCHEMES[preset][1]
    model, folder = written(tmp_path, weights(fmt, "compressed-tensors"), config_overrides=WIDE)
    without_ours(lambda config: config.update(config_groups={preset: ["Linear"]}))(folder)
    assert_weights(bert_numpy.load(folder), model)


#: What older and newer releases write.
VARIANTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format in the groups alone": lambda config: config.update(format="mixed-precision"),
    "format of all alone": lambda config: config["config_groups"]["group_0"].pop("format"),
    "no dtype of scales": lambda config: arguments(config).pop("scale_dtype"),
    "short dtype of scales": lambda config: arguments(config).update(
        scale_dtype=arguments(config)["scale_dtype"].removeprefix("torch.")
    ),
    "all keys": lambda config: arguments(config).update(
        block_structure=None, actorder=None, observer="minmax", observer_kwargs={}, zp_dtype=None
    ),
    "upper case": lambda config: arguments(config).update(type="FLOAT"),
    "empty objects": lambda config: config.update(sparsity_config={}, transform_config={}),
}


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["config_groups"]["group_0"]["weights"]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("fmt", [NVFP4, MXFP4], ids=str)
def test_variants(fmt: BlockFormat, variant: str, tmp_path: Path) -> None:
    recipe = weights(str(fmt), "compressed-tensors")
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    without_ours(VARIANTS[variant])(folder)
    loaded = bert_numpy.load(folder)
    assert_weights(loaded, model)
    assert loaded.recipe.site("encoder.layer.0.attention.self.query").b == recipe.linear.b


def test_zero_points(tmp_path: Path) -> None:
    """Zeros, as some releases write them, are no difference; others are refused."""
    recipe = weights("NVFP4", "compressed-tensors")
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)
    without_ours()(folder)
    tensors = load_file(folder / "model.safetensors")
    zeros = np.zeros((128, 16), np.uint8)
    tensors[f"{PLACE}.weight_zero_point"] = Fp8Array(zeros, E4M3FN)
    save_file(tensors, folder / "model.safetensors")
    assert_weights(bert_numpy.load(folder), model)
    zeros[1, 2] = 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BertNumpyError, match=r"weight_zero_point': expected zeros: the layer is"):
        bert_numpy.load(folder)


def test_the_command_writes_modelopts_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    lines = [f"{'a good film' if i % 2 else 'dull'}\t{i % 2}\n" for i in range(20)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    task = ["--task", "sst2", "--data", str(tmp_path), "--quiet"]
    command = ["quantize", str(source), str(tmp_path / "out"), *task]
    assert main([*command, "--format", "nvfp4-weights", "--layout", "ModelOpt"]) == 0
    assert "- modelopt\n" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "hf_quant_config.json").is_file()
    assert bert_numpy.load(tmp_path / "out").recipe == PRESETS["nvfp4-weights"]
    capsys.readouterr()
    command = ["quantize", str(source), str(tmp_path / "other"), *task]
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--format", "e4m3", "--layout", "gguf"])
    assert "argument --layout: expected one of compressed-tensors, modelopt, found 'gguf'" in (
        capsys.readouterr().err
    )
    assert main([*command, "--format", "int8", "--layout", "modelopt"]) == 2
    assert "recipe int8: encoder.layer.0.attention.self.query: expected E4M3FN with inputs" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "other").exists()

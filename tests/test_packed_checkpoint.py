"""Checkpoints of packed integers: written as compressed-tensors writes them, and read."""

from __future__ import annotations

import json
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
    assert_same_models,
    assert_same_outputs,
    batch,
    changed_config,
    compressed,
    distance,
    loaded_by_transformers,
    logits_of,
    parameters_of,
    set_scales,
    written,
)

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Gptq, Operand, Recipe, SiteRecipe
from bert_numpy.checkpoints.load import stored_recipe
from bert_numpy.checkpoints.packed import packed_codes, packed_zero_points
from bert_numpy.checkpoints.quantization_config import _PRESETS, read_quantization
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.quantization.presets import w4a16
from npfp8 import INT4, INT8, UINT4, UINT8, QuantizedTensor
from npfp8.storage import Bfloat16Array, load_file, read_header, save_file

WIDE = {"hidden_size": 128, "intermediate_size": 256}

#: Rows and columns that fill no whole words of 8 codes, nor groups of 32.
ODD = {"hidden_size": 36, "intermediate_size": 52, "num_attention_heads": 4}

SITE = "encoder.layer.0.output.dense"

MIXED = Recipe(
    "all of them",
    SiteRecipe(b=Operand("INT4", "block", block=32)),
    overrides=(
        ("*.0.attention.self.query", SiteRecipe(b=Operand("UINT4", "block", block=64))),
        ("*.0.attention.self.key", SiteRecipe(b=Operand("UINT4", "channel"))),
        ("*.0.attention.self.value", SiteRecipe(b=Operand("INT4"))),
        ("*.0.attention.output.dense", SiteRecipe(b=Operand("UINT4"))),
        ("*.0.intermediate.dense", SiteRecipe(b=Operand("UINT4", "token"))),
        ("*.1.attention.self.query", SiteRecipe(b=Operand("INT8", "channel"))),
        ("*.1.attention.self.key", SiteRecipe(Operand("INT8"), Operand("INT4", "channel"))),
        ("*.1.attention.self.value", SiteRecipe(b=Operand("E4M3FN"))),
        ("*.1.output.dense", SiteRecipe()),
        ("classifier", SiteRecipe(b=Operand("UINT4", "channel"))),
    ),
)


def stream(rows: np.ndarray, bits: int) -> np.ndarray:
    """Codes of each row as one number, the first in its lowest bits, cut into words of 32."""
    words = -(-rows.shape[1] * bits // 32)
    found = []
    for row in rows.tolist():
        number = sum(code << (i * bits) for i, code in enumerate(row))
        found.append([number >> (32 * i) & 0xFFFFFFFF for i in range(words)])
    return np.array(found, np.uint32).reshape(len(rows), words).view(np.int32)


@pytest.mark.parametrize("fmt", [INT4, UINT4, INT8, UINT8], ids=str)
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 32, 33])
def test_bits(fmt: Any, columns: int) -> None:
    generator = np.random.default_rng(columns)
    codes = generator.integers(fmt.min_code, fmt.max_code + 1, (3, columns)).astype(fmt.code_dtype)
    half = 1 << (fmt.bits - 1)
    unsigned = codes.astype(int) + (half if fmt.min_code else 0)
    found = packed_codes(codes, fmt)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, stream(unsigned, fmt.bits))
    zeros = packed_zero_points(codes, fmt)
    np.testing.assert_array_equal(zeros, stream(unsigned.T, fmt.bits).T)
    assert zeros.flags.c_contiguous


@pytest.mark.parametrize(
    "recipe",
    [
        *(PRESETS[name] for name in ("w4a16", "w4a16-asym", "w4a16-channel", "w4a16-gptq")),
        w4a16(32, asymmetric=True, gptq=Gptq("stored")),
        MIXED,
    ],
    ids=lambda recipe: recipe.name,
)
@pytest.mark.parametrize("sizes", [WIDE, ODD], ids=["wide", "odd"])
def test_round_trip(recipe: Recipe, sizes: dict[str, int], tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=sizes)
    model = bert_numpy.load(source)
    batches = [{"input_ids": np.array([[2, 10, 11, 12, 13, 3]])}]
    calibration = bert_numpy.calibrate(model, batches, hessians=True)
    quantized = bert_numpy.apply_recipe(model, recipe, calibration)
    save_quantized(quantized, source, tmp_path / "out")
    loaded = bert_numpy.load(tmp_path / "out")
    assert_same_models(loaded, quantized)
    assert_same_outputs(loaded, quantized)
    assert stored_recipe(tmp_path / "out") == recipe


def test_what_is_written(tmp_path: Path) -> None:
    model, folder = written(tmp_path, PRESETS["w4a16-asym"], config_overrides=WIDE)
    header = read_header(folder / "model.safetensors")
    found = {
        key.rpartition(".")[2]: (tensor.dtype, tensor.shape)
        for key, tensor in header.items()
        if f"{SITE}.weight" in key
    }
    assert found == {
        "weight_packed": ("I32", (128, 32)),
        "weight_scale": ("F32", (128, 2)),
        "weight_shape": ("I64", (2,)),
        "weight_zero_point": ("I32", (16, 2)),
    }
    tensors = load_file(folder / "model.safetensors")
    weight = model.weights[f"{SITE}.weight"]
    assert isinstance(weight, QuantizedTensor)
    np.testing.assert_array_equal(
        tensors[f"bert.{SITE}.weight_packed"], stream(weight.codes.astype(int), 4)
    )
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert section["format"] == "pack-quantized"
    assert section["config_groups"]["group_0"]["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": 128,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
    }
    assert section["config_groups"]["group_0"]["input_activations"] is None


def test_the_order_of_gptq_is_said(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    model = bert_numpy.load(source)
    batches = [{"input_ids": np.array([[2, 10, 11, 12, 13, 3]])}]
    calibration = bert_numpy.calibrate(model, batches, hessians=True)
    for how, block, order in (
        (Gptq(), 128, "weight"),
        (Gptq("stored"), 128, None),
        (Gptq(), None, None),  # earlier releases refuse an order without groups
    ):
        recipe = w4a16(block, gptq=how)
        quantized = bert_numpy.apply_recipe(model, recipe, calibration)
        save_quantized(quantized, source, tmp_path / recipe.name)
        section = json.loads((tmp_path / recipe.name / "config.json").read_text())
        groups = section["quantization_config"]["config_groups"]
        assert groups["group_0"]["weights"]["actorder"] == order


# Read from others' files


def foreign(
    folder: Path,
    change: Callable[[dict[str, Any], dict[str, Any]], Any] = lambda arguments, tensors: None,
    recipe: str = "w4a16-asym",
) -> tuple[bert_numpy.QuantizedModel, Path]:
    """Our checkpoint without our section, as another program writes one; arguments changed."""
    model, out = written(folder, PRESETS[recipe], config_overrides=WIDE)
    tensors = load_file(out / "model.safetensors")

    def others(config: dict[str, Any]) -> None:
        del config["npfp8_config"]
        section = config["quantization_config"]
        change(section["config_groups"]["group_0"]["weights"], tensors)

    changed_config(others)(out)
    save_file(tensors, out / "model.safetensors")
    return model, out


@pytest.mark.parametrize("name", ["w4a16", "w4a16-asym", "w4a16-channel", "w4a16-g32"])
def test_without_our_section(name: str, tmp_path: Path) -> None:
    model, folder = foreign(tmp_path, recipe=name)
    loaded = bert_numpy.load(folder)
    for key, weight in model.weights.items():
        found = loaded.weights[key]
        if isinstance(weight, QuantizedTensor):
            assert isinstance(found, QuantizedTensor)
            assert_same_bits(found.codes, weight.codes)
            assert_same_bits(found.dequantize(), weight.dequantize())
    assert loaded.recipe.site(SITE) == model.recipe.site(SITE)


@pytest.mark.parametrize("said", [True, False])
def test_several_layouts_without_our_section(said: bool, tmp_path: Path) -> None:
    """In a file of mixed precision a group names its layout; without a name the bits decide."""
    model, folder = written(tmp_path, MIXED, config_overrides=WIDE)

    def others(config: dict[str, Any]) -> None:
        del config["npfp8_config"]
        assert config["quantization_config"]["format"] == "mixed-precision"
        for group in config["quantization_config"]["config_groups"].values():
            group["format"] = group["format"] if said else None

    changed_config(others)(folder)
    found = bert_numpy.load(folder)
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found.weights[key].codes, weight.codes)
            assert_same_bits(found.weights[key].dequantize(), weight.dequantize())


@pytest.mark.parametrize("name", ["W4A16", "w4a16_asym"])
def test_schemes_by_name(name: str, tmp_path: Path) -> None:
    model, folder = foreign(tmp_path, recipe=name.lower().replace("_", "-"))
    group = {name: ["Linear"]}
    changed_config(lambda raw: raw["quantization_config"].update(config_groups=group))(folder)
    found = bert_numpy.load(folder)
    assert found.recipe.site(SITE) == model.recipe.site(SITE)
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found.weights[key].dequantize(), weight.dequantize())


def test_scales_in_bfloat16(tmp_path: Path) -> None:
    """Public checkpoints have scales in the model's own dtype; shapes may be int32."""

    def narrow(arguments: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key, value in tensors.items():
            if key.endswith("_scale"):
                bits = (value.view(np.uint32) >> 16).astype(np.uint16)
                tensors[key] = Bfloat16Array(bits)
            elif key.endswith("_shape"):
                tensors[key] = value.astype(np.int32)

    model, folder = foreign(tmp_path, narrow)
    found = bert_numpy.load(folder).weights[f"{SITE}.weight"]
    weight = model.weights[f"{SITE}.weight"]
    assert isinstance(found, QuantizedTensor)
    assert isinstance(weight, QuantizedTensor)
    assert_same_bits(found.codes, weight.codes)
    cut = (weight.scale.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    assert_same_bits(found.scale, cut)


@pytest.mark.parametrize("order", ["group", "Dynamic", True])
def test_groups_of_scattered_inputs(order: Any, tmp_path: Path) -> None:
    """Each input has the scale and the zero point of its group in weight_g_idx."""
    generator = np.random.default_rng(0)
    expected: dict[str, np.ndarray] = {}

    def scattered(arguments: dict[str, Any], tensors: dict[str, Any]) -> None:
        arguments["actorder"] = order
        for key in [key for key in tensors if key.endswith(".weight_shape")]:
            inputs = int(tensors[key][1])
            group_of = generator.permutation(np.arange(inputs) // 128)
            tensors[key.replace("shape", "g_idx")] = group_of.astype(np.int32)
            expected[key.removesuffix("_shape").removeprefix("bert.")] = group_of

    model, folder = foreign(tmp_path, scattered)
    loaded = bert_numpy.load(folder)
    assert len(expected) == 12
    for key, group_of in expected.items():
        weight, found = model.weights[key], loaded.weights[key]
        assert isinstance(weight, QuantizedTensor)
        assert isinstance(found, QuantizedTensor)
        assert weight.zero_point is not None
        codes, zeros = weight.codes.astype(np.float32), weight.zero_point.astype(np.float32)
        for column, (values, group) in enumerate(zip(found.dequantize().T, group_of, strict=True)):
            assert_same_bits(values, (codes[:, column] - zeros[:, group]) * weight.scale[:, group])
    logits = loaded(np.array([[2, 10, 11, 3]])).logits
    assert np.isfinite(logits).all()


def with_order(change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, Any], Any], None]:
    def changed(arguments: dict[str, Any], tensors: dict[str, Any]) -> None:
        arguments["actorder"] = "group"
        for key in [key for key in tensors if key.endswith(".weight_shape")]:
            group_of = (np.arange(int(tensors[key][1])) // 128).astype(np.int32)
            tensors[key.replace("shape", "g_idx")] = change(group_of)

    return changed


@pytest.mark.parametrize("count", [1, None])
def test_groups_that_are_not_scattered_after_all(count: int | None, tmp_path: Path) -> None:
    """A single entry of -1 says so, in either integer dtype."""

    def unused(group_of: np.ndarray) -> np.ndarray:
        group_of[:count] = -1
        return group_of if count else group_of.astype(np.int64)

    model, folder = foreign(tmp_path, with_order(unused))
    loaded = bert_numpy.load(folder)
    for key, weight in model.weights.items():
        found = loaded.weights[key]
        if isinstance(weight, QuantizedTensor):
            assert isinstance(found, QuantizedTensor)
            assert_same_bits(found.dequantize(), weight.dequantize())


def test_scattered_groups_of_codes_that_are_not_packed(tmp_path: Path) -> None:
    """Earlier releases wrote weight_g_idx in every layout with groups."""
    recipe = Recipe("int8", SiteRecipe(b=Operand("INT8", "block", block=32)))
    model, folder = written(tmp_path, recipe, config_overrides=WIDE)

    def others(config: dict[str, Any]) -> None:
        del config["npfp8_config"]
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["actorder"] = "group"

    changed_config(others)(folder)
    with pytest.raises(BertNumpyError, match="weight_g_idx': expected shape"):
        bert_numpy.load(folder)
    tensors, group_of = load_file(folder / "model.safetensors"), {}
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            groups = np.random.default_rng(1).permutation(np.arange(weight.shape[1]) // 32)
            tensors[f"bert.{key}_g_idx"] = groups.astype(np.int32)
            group_of[key] = groups
    save_file(tensors, folder / "model.safetensors")
    loaded = bert_numpy.load(folder)
    for key, groups in group_of.items():
        weight, found = model.weights[key], loaded.weights[key]
        assert isinstance(weight, QuantizedTensor)
        assert isinstance(found, QuantizedTensor)
        assert_same_bits(found.codes, weight.codes)
        assert_same_bits(found.scale, weight.scale[:, groups])


KEY = f"bert.{SITE}"


def with_tensor(name: str, change: Callable[[Any], Any]) -> Callable[[Any, dict[str, Any]], None]:
    def changed(arguments: Any, tensors: dict[str, Any]) -> None:
        tensors[f"{KEY}.{name}"] = change(tensors.get(f"{KEY}.{name}"))

    return changed


def without(name: str) -> Callable[[Any, dict[str, Any]], None]:
    return lambda arguments, tensors: tensors.pop(f"{KEY}.{name}")


def with_argument(**changed: Any) -> Callable[[dict[str, Any], Any], None]:
    return lambda arguments, tensors: arguments.update(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("weight_scale"), r"weight_scale': expected shape \(128, 2\) by config.json, but"),
        (without("weight_shape"), r"weight_shape': expected shape \(2,\) by config.json, but miss"),
        (without("weight_zero_point"), r"weight_zero_point': expected shape \(16, 2\) by config"),
        (
            with_tensor("weight_shape", lambda x: np.int64([128, 255])),
            r"weight_shape': expected \[128, 256\] by config.json, found \[128, 255\]",
        ),
        (
            with_tensor("weight_shape", lambda x: x[::-1].copy()),
            r"weight_shape': expected \[128, 256\] by config.json, found \[256, 128\]",
        ),
        (
            with_tensor("weight_shape", lambda x: np.float32([128, 256])),
            "weight_shape': expected dtype I32 or I64, found F32",
        ),
        (
            with_tensor("weight_packed", lambda x: x[:, :-1].copy()),
            r"weight_packed': expected shape \(128, 32\) by config.json, found \(128, 31\)",
        ),
        (
            with_tensor("weight_packed", lambda x: x.view(np.uint32)),
            "weight_packed': expected dtype I32, found U32",
        ),
        (
            with_tensor("weight_zero_point", lambda x: x.astype(np.int8)),
            "weight_zero_point': expected dtype I32, found I8",
        ),
        (
            with_tensor("weight_scale", lambda x: -x),
            "weight_scale': .*expected positive, finite, normal float32",
        ),
        (with_argument(num_bits=3), "key 'num_bits': expected 4 or 8, found 3"),
        (with_argument(group_size=64), r"weight_scale': expected shape \(\d+, \d\) by config"),
        (with_argument(actorder="up"), "key 'actorder': expected nothing, 'weight', or 'group' f"),
        (with_argument(actorder="group"), "weight_g_idx': expected shape"),
        (
            with_argument(actorder="group", strategy="channel", group_size=None),
            "key 'actorder': expected nothing or 'weight' without groups of inputs",
        ),
        (
            with_argument(
                actorder="group", strategy="block", group_size=None, block_structure=[2, 128]
            ),
            "key 'actorder': expected nothing or 'weight' without groups of inputs",
        ),
        (with_order(lambda x: x[:-1].copy()), "weight_g_idx': expected shape"),
        (with_order(lambda x: x.astype(np.float32)), "weight_g_idx': expected dtype I32 or I64"),
        (with_order(lambda x: x * 0 + 1), "weight_g_idx': expected 128 inputs in each of 1 groups"),
        (
            with_order(lambda x: np.concatenate([x[-1:], x[1:]])),
            r"output.dense.weight_g_idx': expected 128 inputs in each of 2 groups by config.json",
        ),
        (with_argument(symmetric=True), None),
    ],
)
def test_bad_input(change: Any, message: str | None, tmp_path: Path) -> None:
    _, folder = foreign(tmp_path, change)
    if message is None:  # symmetric, with zero points that are not zero
        message = "weight_zero_point': expected"
    with pytest.raises(BertNumpyError, match=message):
        bert_numpy.load(folder)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"num_bits": 4}, "key 'num_bits': expected 8, found 4"),
        ({"actorder": "group"}, "key 'actorder': expected nothing, 'weight', or 'group' for weig"),
    ],
)
def test_what_is_of_weights_alone(argument: Any, message: str, tmp_path: Path) -> None:
    _, folder = foreign(tmp_path, recipe="int8-channel")

    def change(config: dict[str, Any]) -> None:
        group = config["quantization_config"]["config_groups"]["group_0"]
        group["input_activations"].update(argument)

    changed_config(change)(folder)
    with pytest.raises(BertNumpyError, match=f"key 'input_activations': {message}"):
        bert_numpy.load(folder)


def named(layout: str, of_group: str | None = None) -> Callable[[Path], None]:
    """Another layout, for all groups, or of the one group there is."""

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["format"] = layout
        config["quantization_config"]["config_groups"]["group_0"]["format"] = of_group

    return changed_config(change)


def test_packed_and_plain_codes_are_told_apart(tmp_path: Path) -> None:
    _, folder = foreign(tmp_path / "a", recipe="w4a16-channel")
    named("int-quantized")(folder)
    with pytest.raises(BertNumpyError, match=r"of a quantized layout that config\.json does not"):
        bert_numpy.load(folder)
    _, folder = foreign(tmp_path / "b", recipe="int8-channel")
    named("pack-quantized")(folder)
    with pytest.raises(BertNumpyError, match=r"weight_packed': expected shape .* but missing"):
        bert_numpy.load(folder)


@pytest.mark.parametrize(
    "layouts", [("int-quantized",), ("mixed-precision", "int-quantized")], ids=len
)
def test_codes_of_4_bits_that_are_not_packed(layouts: tuple[str, ...], tmp_path: Path) -> None:
    """int-quantized has a byte for each code, as compressed-tensors writes W4A8."""
    model, folder = foreign(tmp_path, recipe="w4a16-channel")
    tensors = load_file(folder / "model.safetensors")
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            for part in ("packed", "shape"):
                del tensors[f"bert.{key}_{part}"]
            tensors[f"bert.{key}"] = weight.codes
    save_file(tensors, folder / "model.safetensors")
    named(*layouts)(folder)
    found = bert_numpy.load(folder).weights[f"{SITE}.weight"]
    assert isinstance(found, QuantizedTensor)
    weight = model.weights[f"{SITE}.weight"]
    assert isinstance(weight, QuantizedTensor)
    assert_same_bits(found.codes, weight.codes)
    tensors[f"bert.{SITE}.weight"] = weight.codes + np.int8(1)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BertNumpyError, match=r"dense.weight': expected -8\.\.7, found 8"):
        bert_numpy.load(folder)


def test_a_model_of_other_codes_is_still_refused(tmp_path: Path) -> None:
    """GPTQ's codes cannot be checked against the source; everything else is."""
    source = write_checkpoint(tmp_path / "source", config_overrides=WIDE)
    other = write_checkpoint(tmp_path / "other", config_overrides=WIDE, seed=1)
    model = bert_numpy.load(source)
    batches = [{"input_ids": np.array([[2, 10, 11, 12, 13, 3]])}]
    calibration = bert_numpy.calibrate(model, batches, hessians=True)
    for name in ("w4a16", "w4a16-gptq"):
        made = bert_numpy.apply_recipe(model, name, calibration)
        with pytest.raises(BertNumpyError, match=r"expected the weights that .* was made of"):
            save_quantized(made, other, tmp_path / name)


def test_the_command_line(tmp_path: Path) -> None:
    from bert_numpy.assets import REVIEWS  # noqa: PLC0415
    from bert_numpy.commands.main import main  # noqa: PLC0415

    out, mine = tmp_path / "out", tmp_path / "mine.json"
    bert_numpy.save_recipe(w4a16(32, gptq=Gptq("stored", 0.1)), mine)
    data = ["--task", "sst2", "--data", str(REVIEWS), "--limit", "4"]
    options = [*data, "--calibration-samples", "4"]
    assert not main(["quantize", "bert-tiny-sst2", str(out), "--format", str(mine), *options])
    assert bert_numpy.load(out).recipe == bert_numpy.load_recipe(mine)
    assert not main(["evaluate", str(out), *data])


# Peers


@pytest.mark.parametrize(
    ("recipe", "sizes"),
    [
        *((PRESETS[name], WIDE) for name in PRESETS if name.startswith("w4a16")),
        (w4a16(4, asymmetric=True), ODD),
        (w4a16(4), ODD),
        (w4a16(None, asymmetric=True), ODD),
        (w4a16(None), ODD),
    ],
    ids=lambda value: value.name if isinstance(value, Recipe) else "odd" if value == ODD else "",
)
def test_transformers(
    recipe: Recipe,
    sizes: dict[str, int],
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """transformers with compressed-tensors has our weights to the last bit, and our logits."""
    source = write_checkpoint(tmp_path / "source", config_overrides=sizes)
    float_model = bert_numpy.load(source)
    ids = np.array([[2, 10, 11, 12, 13, 3]])
    calibration = bert_numpy.calibrate(float_model, [{"input_ids": ids}], hessians=True)
    recipe = replace(recipe, arithmetic="float32")
    model = bert_numpy.apply_recipe(float_model, recipe, calibration)
    save_quantized(model, source, tmp_path / "out")
    theirs = loaded_by_transformers(transformers, tmp_path / "out")
    logits = logits_of(theirs, torch)
    found = parameters_of(theirs)
    for key, weight in model.weights.items():
        if isinstance(weight, QuantizedTensor):
            assert_same_bits(found[key], weight.dequantize())
    exact = model(**batch()).logits
    # Sums of float32 in another order, beside what the rounding of the weights changes.
    assert distance(logits, exact) < distance(float_model(**batch()).logits, exact) / 1000


def test_schemes_of_compressed_tensors(compressed_tensors: ModuleType) -> None:
    """A group that is a scheme's name has the arguments that the package has for the name."""
    from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)

    section = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    for name in _PRESETS:
        whole = ct.preset_name_to_scheme(name, ["Linear"]).model_dump(mode="json")
        found = [
            read_quantization(
                {"quantization_config": {**section, "config_groups": group}},
                "config.json",
                {SITE: f"bert.{SITE}"},
                lambda site: True,
            )
            for group in ({name: ["Linear"]}, {"group_0": whole})
        ]
        assert vars(found[0]) == vars(found[1]), name


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16_ASYM", "W8A16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_made_by_compressed_tensors(
    scheme: str,
    dtype: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """Its files load with the values that it has itself, and its codes are ours."""
    values: dict[str, np.ndarray] = {}

    def noting(name: str, layer: Any, found: Any) -> None:
        from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)

        set_scales(name, layer, found)
        zeros = getattr(layer, "weight_zero_point", None)
        made = ct.fake_quantize(layer.weight.detach(), layer.weight_scale, zeros, found.weights)
        values[name] = made.detach().float().numpy()

    folder = compressed(tmp_path, scheme, dtype, torch, transformers, noting)
    loaded = bert_numpy.load(folder)
    assert len(values) == 12
    for key, theirs in values.items():
        ours = loaded.weights[f"{key.removeprefix('bert.')}.weight"]
        assert isinstance(ours, QuantizedTensor)
        assert ours.block == 128
        if dtype == "float32":
            assert_same_bits(ours.dequantize() + np.float32(0), theirs + np.float32(0))
        else:  # the product is rounded to bfloat16 there
            np.testing.assert_allclose(ours.dequantize(), theirs, rtol=2.0**-8, atol=0)
    if dtype == "float32" and scheme != "W8A16":
        preset = {"W4A16": "w4a16", "W4A16_ASYM": "w4a16-asym"}[scheme]
        mine = bert_numpy.apply_recipe(bert_numpy.load(tmp_path / "source"), preset)
        for key in values:
            name = f"{key.removeprefix('bert.')}.weight"
            first, second = loaded.weights[name], mine.weights[name]
            assert isinstance(first, QuantizedTensor)
            assert isinstance(second, QuantizedTensor)
            np.testing.assert_allclose(first.scale, second.scale, rtol=2.0**-22)
            different = np.count_nonzero(first.codes != second.codes)
            assert different <= first.size / 1000

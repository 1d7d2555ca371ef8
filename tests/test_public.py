"""The public Python API: names for objects, one error per wrong type, short reprs, examples."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bert_numpy
import npfp8
from bert_numpy import PRESETS, BertNumpyError, Operand, Recipe, SiteRecipe
from bert_numpy.assets import REVIEWS
from bert_numpy.model.config import Pooling
from bert_numpy.quantization.recipe_json import recipe_json, recipe_of
from npfp8.blocks.layouts import BLOCK_LAYOUTS, CODE_LAYOUTS, SCALE_LAYOUTS
from npfp8.formats import FORMATS, as_format
from npfp8.mistakes import Explanation

#: The public modules. ``bert_numpy.cli`` is left out: it is the command line.
MODULES = (
    *("npfp8", "npfp8.bfloat16", "npfp8.blocks.layouts", "npfp8.golden", "npfp8.interop"),
    *("npfp8.packed", "npfp8.random_bits", "npfp8.storage"),
    *("npfp8.testing", "npfp8.vectors"),
    *(
        "bert_numpy",
        "bert_numpy.adaptation",
        "bert_numpy.calibration",
        "bert_numpy.job",
        "bert_numpy.kit",
    ),
    *("bert_numpy.kit.manifest", "bert_numpy.model", "bert_numpy.pytest_plugin"),
    "bert_numpy.threads",
)

#: The names on the page of bert_numpy.training, by its modules. The others are for contributors.
TRAINING = {
    "adamw": ("AdamW",),
    "fake_quantization": ("FakeQuantizedProducts", "quantized_model"),
    "fit": ("Fitted", "StepReport", "Training", "fit"),
    "fp8_products": ("FP8Products",),
    "heads": ("with_head",),
    "losses": ("cross_entropy", "loss_of", "mean_squared_error"),
    "products": ("FloatProducts",),
    "save": ("save_trained",),
    "tape": ("Taped", "tape"),
    "unit_scaling": ("expected_magnitudes",),
}

#: The methods of ``bert_numpy.training.products.Products``: the tape calls them, with its own
#: arrays, at every product. The examples are those of the classes.
OF_THE_TAPE = ("forward", "backward", "following")


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public function and class once, by its module and name."""
    seen = set()
    names = {module: import_module(module).__all__ for module in MODULES}
    names |= {f"bert_numpy.training.{module}": some for module, some in TRAINING.items()}
    for module, some in names.items():
        for name in some:
            thing = getattr(import_module(module), name)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and id(thing) not in seen:
                seen.add(id(thing))
                yield f"{module}.{name}", thing


def public_methods(cls: type) -> Iterator[tuple[str, Any]]:
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        is_of_tape = cls.__name__.endswith("Products") and name in OF_THE_TAPE
        if not name.startswith("_") and inspect.isfunction(function) and not is_of_tape:
            yield name, function


NAMES = dict(public_names())
METHODS = {
    f"{name}.{method}": function
    for name, thing in NAMES.items()
    if inspect.isclass(thing)
    for method, function in public_methods(thing)
}

# Examples


@pytest.mark.parametrize("name", [*NAMES, *METHODS])
def test_every_public_name_has_an_example(name: str) -> None:
    """``pytest --doctest-modules`` runs them. Constants and formats have a line of text only."""
    text = inspect.getdoc((NAMES | METHODS)[name]) or ""
    assert re.search(r"^Examples\n-+\n(?:.*\n)*?>>> ", text, re.M), name


def test_the_lists_are_not_empty() -> None:
    assert {"npfp8.encode", "bert_numpy.apply_recipe", "bert_numpy.job.run"} <= NAMES.keys()
    assert {"bert_numpy.Tokenizer.batch", "npfp8.QuantizedTensor.dequantize"} <= METHODS.keys()


# Wrong types


class Wrong:
    """An object that no argument takes."""


@pytest.fixture(scope="module")
def model() -> Any:
    return bert_numpy.load("bert-tiny-sst2")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bert_numpy.load_tokenizer("bert-tiny-sst2")


@pytest.fixture(scope="module")
def calibration(model: Any, tokenizer: Any) -> Any:
    return bert_numpy.calibrate(model, [tokenizer.batch(["a warm film", "dull"])])


def training_arguments(model: Any, tokenizer: Any, path: str) -> dict[str, dict[str, Any]]:
    """Arguments for training, as the fixture below has them."""
    place = "bert_numpy.training"
    tape = import_module(f"{place}.tape").tape
    products = import_module(f"{place}.fake_quantization").FakeQuantizedProducts
    scalings = import_module(f"{place}.scalings").SCALINGS
    training = import_module(f"{place}.fit").Training(epochs=1)
    logits = np.zeros((1, 2), np.float32)
    return {
        f"{place}.adamw.AdamW": {},
        f"{place}.fake_quantization.FakeQuantizedProducts": {"recipe": PRESETS["int8"]},
        f"{place}.fake_quantization.quantized_model": {
            "model": model,
            "products": products(PRESETS["fp32"]),
        },
        f"{place}.fit.Training": {},
        f"{place}.fit.Training.trains": {"self": training, "name": "classifier.bias"},
        f"{place}.fit.fit": {
            "model": model,
            "encoded": tokenizer.encode(["a film"]),
            "labels": np.array([1]),
            "training": training,
        },
        f"{place}.fp8_products.FP8Products": {"scaling": scalings["dynamic"]},
        f"{place}.heads.with_head": {"model": model, "head": "multiple choice", "labels": ["a"]},
        f"{place}.losses.cross_entropy": {"logits": logits, "labels": np.array([1])},
        f"{place}.losses.loss_of": {"config": model.config},
        f"{place}.losses.mean_squared_error": {"scores": logits[0], "labels": np.ones(2)},
        f"{place}.products.FloatProducts": {},
        f"{place}.save.save_trained": {
            "model": model,
            "source": "bert-tiny-sst2",
            "target": path,
        },
        f"{place}.tape.Taped.gradients": {
            "self": tape(model, [[101, 102]]),
            "of_outputs": {"logits": logits},
        },
        f"{place}.tape.tape": {"model": model, "input_ids": [[101, 102]]},
        f"{place}.unit_scaling.expected_magnitudes": {
            "config": model.config,
            "batch_size": 8,
            "tokens": 16.0,
        },
    }


def layouts_and_block_formats() -> dict[str, dict[str, Any]]:
    """Arguments for block formats and layouts, as the fixture below has them."""
    layouts, packing = import_module("npfp8.blocks.layouts"), import_module("npfp8.packed")
    codes, scales = np.zeros((2, 32), np.uint8), np.zeros((2, 1), np.uint8)
    packed = packing.PackedTensor(codes[:, :16], scales, "MXFP4", (2, 32))
    place = "npfp8.blocks.layouts"
    piece = layouts.Piece(0, 0, 0, 0, 4)
    return {
        "npfp8.BlockFormat": {"element": "E2M1", "block": 32},
        f"{place}.Group": {"bits": 4, "codes": 1, "nbytes": 1, "pieces": (piece,)},
        f"{place}.CodeLayout": {"name": "mine", "groups": ()},
        f"{place}.CodeLayout.group": {"self": layouts.CODE_LAYOUTS["ptx"], "bits": 4},
        f"{place}.ScaleLayout": {"name": "mine", "rows": (0,), "blocks": (0,), "order": (0, 1)},
        f"{place}.BlockLayout": {"name": "mine", "codes": ((4, "ptx"),)},
        f"{place}.BlockLayout.group": {"self": layouts.BLOCK_LAYOUTS["quark"], "bits": 4},
        f"{place}.pack_codes": {"codes": codes, "fmt": "E2M1"},
        f"{place}.unpack_codes": {"packed": codes, "fmt": "E2M1"},
        f"{place}.pack_scales": {"scale_codes": scales},
        f"{place}.unpack_scales": {"packed": scales, "shape": (2, 1), "layout": "linear"},
        f"{place}.pack_blocks": {"codes": codes, "scale_codes": scales, "fmt": "MXFP4"},
        f"{place}.unpack_blocks": {"packed": codes[:, :17], "fmt": "MXFP4"},
        "npfp8.packed.PackedTensor": {
            "codes": codes[:, :16],
            "scale_codes": scales,
            "fmt": "NVFP4",
            "shape": (2, 32),
            "tensor_scale": 1.0,
        },
        "npfp8.packed.pack_tensor": {"tensor": packing.unpack_tensor(packed)},
        "npfp8.packed.unpack_tensor": {"packed": packed},
    }


@pytest.fixture(scope="module")
def valid(
    model: Any, tokenizer: Any, calibration: Any, tmp_path_factory: Any
) -> dict[str, dict[str, Any]]:
    """For each public function and method, arguments (and, as "self", an object) it works with.

    Arguments that are left out have defaults. The calls are not made whole, so files need not
    be there.
    """
    kits = import_module("bert_numpy.kit")
    jobs, vectors = import_module("bert_numpy.job"), import_module("npfp8.vectors")
    plugin = import_module("bert_numpy.pytest_plugin")
    x, codes = np.ones((2, 2), np.float32), np.full((2, 2), 56, np.uint8)
    q = npfp8.quantize(x, "E4M3FN", 1.0)
    four_bits = npfp8.quantize(x, "E2M1", 1.0)
    quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    kit = kits.open_kit()
    name = "codec/E4M3FN/values"
    given = {name: kit.arrays[name]}
    job = jobs.prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=2, calibration_samples=2)
    path = str(tmp_path_factory.mktemp("public") / "file")
    recipe, site = PRESETS["e4m3"], "encoder.layer.0.attention.scores"
    results = vectors.make_vectors("E4M3FN", "nearest", "bfloat16")
    results = replace(results, third=results.codes, column="found")
    layer = {"x": x, "weight": x[0], "bias": x[0], "eps": 1e-5}
    stored = import_module("npfp8.storage")
    stored.save_file({"x": x}, path)
    tensor = stored.read_header(path)["x"]
    adaptation = import_module("bert_numpy.adaptation")
    reviews = tokenizer.batch(["a warm film", "dull"])
    source = adaptation.source_statistics(model, [reviews])
    encoder = replace(model, config=replace(model.config, pooling=Pooling("mean", True)))
    seen = calibration.operands[f"{site}:a"]
    kinds = {"fmt": "E4M3FN"}
    return {
        "npfp8.encode": {
            "x": x,
            "rounding": "stochastic",
            "rng": np.random.default_rng(0),
            **kinds,
        },
        "npfp8.encode_bfloat16": {
            "bits": np.uint16([1]),
            "rounding": "stochastic",
            "random_bits": np.uint16([1]),
            "bit_count": 8,
            **kinds,
        },
        "npfp8.random_bits.philox4x32": {
            "counter": np.zeros(4, np.uint32),
            "key": np.zeros(2, np.uint32),
        },
        "npfp8.random_bits.philox_words": {"seed": 0, "offset": np.arange(3)},
        "npfp8.random_bits.cvt_rs_bits": {"words": np.uint32([1]), "destination": "e4m3x4"},
        "npfp8.decode": {"codes": codes, **kinds},
        "npfp8.decode_bfloat16": {"codes": codes, **kinds},
        "npfp8.describe": kinds,
        "npfp8.values": kinds,
        "npfp8.absmax_scale": {"absmax": 1.0, **kinds},
        "npfp8.quantize": {"x": x, "fmt": "INT8", "scale": 1.0, "zero_point": 0},
        "npfp8.quantize_bfloat16": {"x": x, "scale": 1.0, **kinds},
        "npfp8.matmul": {"a": q, "b": q},
        "npfp8.matmul_float32": {"a": x, "b": x},
        "npfp8.matmul_16bit": {"a": x, "b": x, "accumulate": "hopper-16bit"},
        "npfp8.lookup_matmul": {"a": q, "b": four_bits},
        "npfp8.lookup_weights": {"b": four_bits},
        "npfp8.LookupWeights": {
            "indices": np.zeros((1, 2), np.uint8),
            "frame": four_bits,
            "group": 2,
            "run": 2,
        },
        "npfp8.LookupWeights.unpack": {"self": npfp8.lookup_weights(four_bits)},
        "npfp8.exact_k_limit": {"fmt_a": "INT8", "fmt_b": "INT8"},
        "npfp8.QuantizedTensor": {"codes": codes, "scale": 1.0, "fmt": "UINT8"},
        "npfp8.QuantizedTensor.lost": {"self": q, "x": x},
        "npfp8.QuantizedTensor.code_values": {"self": q},
        "npfp8.QuantizedTensor.dequantize": {"self": q},
        "npfp8.FloatFormat": {"exponent_bits": 3, "mantissa_bits": 2, "bias": 3},
        "npfp8.IntFormat": {"min_code": -7, "max_code": 7, "dtype": "int8"},
        "npfp8.Accumulator": {"name": "mine", "kind": "exact"},
        "npfp8.Accumulator.check": {
            "self": npfp8.ACCUMULATORS["exact"],
            "fmt_a": "INT8",
            "fmt_b": "INT8",
        },
        **layouts_and_block_formats(),
        **training_arguments(model, tokenizer, path),
        "npfp8.bfloat16.from_bits": {"bits": np.uint16([1])},
        "npfp8.bfloat16.to_bits": {"x": x},
        "npfp8.bfloat16.round_to_bfloat16": {"x": x},
        "npfp8.bfloat16.add_half": {"x": x, "out": np.empty(x.shape, np.uint32)},
        "npfp8.bfloat16.as_bfloat16": {"x": x},
        "npfp8.bfloat16.round_finite": {"x": x.copy()},
        "npfp8.bfloat16.round_in_place": {"x": x},
        "npfp8.bfloat16.round_to_bits": {"x": x},
        "npfp8.golden.add": {"x": x, "y": x},
        "npfp8.golden.layer_norm": layer,
        "npfp8.golden.mean": {"x": x},
        "npfp8.golden.multiply": {"x": x, "factor": 0.5},
        "npfp8.golden.normalize": {"x": x},
        "npfp8.golden.pool": {"mode": "max", "x": x, "places": np.array([1, 2])},
        "npfp8.golden.require_ieee754": {},
        "npfp8.golden.softmax": {"x": x},
        "npfp8.golden.tree_sum": {"x": x},
        "npfp8.golden.unary": {"name": "gelu", "x": x},
        "npfp8.interop.to_ml_dtypes": {"codes": codes, **kinds},
        "npfp8.interop.from_ml_dtypes": {"array": codes},
        "npfp8.storage.Fp8Array": {"codes": codes, **kinds},
        "npfp8.storage.Bfloat16Array": {"bits": np.uint16([1])},
        "npfp8.storage.StoredTensor.read_bytes": {"self": tensor},
        "npfp8.storage.StoredTensor.read_as": {"self": tensor, "dtype": "<f4"},
        "npfp8.storage.StoredTensor.view_as": {"self": tensor, "dtype": "<f4"},
        "npfp8.storage.load_file": {"path": path},
        "npfp8.storage.read_header": {"path": path},
        "npfp8.storage.read_metadata": {"path": path},
        "npfp8.storage.save_file": {"tensors": {"x": x}, "path": path},
        "npfp8.testing.arrays_near_boundaries": {"shape": 2, **kinds},
        "npfp8.testing.boundary_values": kinds,
        "npfp8.testing.check_block_quantizer": {
            "fn": abs,
            "fmt": "MXFP4",
            "rule": "floor",
            "source": "float32",
        },
        "npfp8.testing.check_decoder": {"decoder": abs, **kinds},
        "npfp8.testing.check_encoder": {"encoder": abs, **kinds},
        "npfp8.testing.codes": kinds,
        "npfp8.testing.edge_cases": kinds,
        "npfp8.testing.finite_values": kinds,
        "npfp8.vectors.VectorReport.explanation": {
            "self": vectors.VectorReport("E4M3FN-nearest-bfloat16.txt", 9, Explanation(0))
        },
        "npfp8.vectors.boundary_inputs": {"source": "float32", **kinds},
        "npfp8.vectors.check_results": {"results": results},
        "npfp8.vectors.format_vectors": {"vectors": results},
        "npfp8.vectors.make_vectors": {"mode": "nearest", "source": "float32", **kinds},
        "npfp8.vectors.read_vectors": {"path": path},
        "npfp8.vectors.write_all_vectors": {"folder": path},
        "bert_numpy.Operand": {},
        "bert_numpy.Gptq": {},
        "bert_numpy.TiledAttention": {},
        "bert_numpy.SiteRecipe": {"outlier_threshold": 6.0, "migration": 0.5},
        "bert_numpy.Recipe": {"name": "mine"},
        "bert_numpy.Recipe.site": {"self": recipe, "site": site},
        "bert_numpy.Recipe.check_overrides": {"self": recipe, "sites": []},
        "bert_numpy.Recipe.check_accumulation": {"self": recipe, "sites": [site]},
        "bert_numpy.Recipe.skipping": {"self": recipe},
        "bert_numpy.Calibration.scale": {
            "self": calibration,
            "name": f"{site}:a",
            "operand": Operand("INT8"),
        },
        "bert_numpy.apply_recipe": {"model": model, "recipe": "e4m3", "calibration": calibration},
        "bert_numpy.calibrate": {"model": model, "batches": []},
        "bert_numpy.embed": {"model": encoder, "tokenizer": tokenizer, "texts": ["a"]},
        "bert_numpy.export_onnx": {"model": quantized, "path": path},
        "bert_numpy.load": {"folder_or_hub_id": "bert-tiny-sst2"},
        "bert_numpy.load_tokenizer": {"folder_or_hub_id": "bert-tiny-sst2"},
        "bert_numpy.load_calibration": {"path": path},
        "bert_numpy.load_recipe": {"path": path},
        "bert_numpy.merge_calibrations": {"a": calibration, "b": calibration},
        "bert_numpy.save_calibration": {"calibration": calibration, "path": path},
        "bert_numpy.save_quantized": {
            "model": quantized,
            "source": "bert-tiny-sst2",
            "target": path,
        },
        "bert_numpy.save_recipe": {"recipe": recipe, "path": path},
        "bert_numpy.Tokenizer.encode": {"self": tokenizer, "texts": ["a film"]},
        "bert_numpy.Tokenizer.tokens": {"self": tokenizer, "text": "a film"},
        "bert_numpy.Tokenizer.batch": {"self": tokenizer, "texts": ["a film"]},
        "bert_numpy.Tokenizer.windows": {
            "self": tokenizer,
            "questions": ["a film?"],
            "contexts": ["a film"],
            "max_length": 16,
            "doc_stride": 4,
            "max_query_length": 8,
        },
        "bert_numpy.adaptation.ForwardOnly": {"population": 5},
        "bert_numpy.adaptation.adapt": {
            "model": model,
            "source": source,
            "batches": [reviews],
            "settings": adaptation.ForwardOnly(prompts=0),
        },
        "bert_numpy.adaptation.adapted_run": {"model": model, "batch": reviews},
        "bert_numpy.adaptation.load_statistics": {"path": path},
        "bert_numpy.adaptation.save_statistics": {"statistics": source, "path": path},
        "bert_numpy.adaptation.source_statistics": {"model": model, "batches": [reviews]},
        "bert_numpy.adaptation.statistics_of": {"features": np.ones((2, 1, 3))},
        "bert_numpy.calibration.sqnr": {"seen": seen, "operand": Operand("INT8")},
        "bert_numpy.job.Job.select": {"self": job, "rows": [0]},
        "bert_numpy.job.calibrate_on_sentences": {
            "model": model,
            "tokenizer": tokenizer,
            "file": REVIEWS / "train.tsv",
        },
        "bert_numpy.job.evaluate_job": {"job": job, "model": quantized},
        "bert_numpy.job.prepare": {"model": "bert-tiny-sst2", "task": "sst2", "data": REVIEWS},
        "bert_numpy.job.run": {"job": job, "recipes": ["e4m3"]},
        "bert_numpy.job.with_calibration": {"job": job, "recipes": ["e4m3"]},
        "bert_numpy.model.encoder_sites": {"config": model.config},
        "bert_numpy.model.model_sites": {"model": model},
        "bert_numpy.model.require_head": {"model": model, "name": "classification"},
        "bert_numpy.threads.default_threads": {},
        "bert_numpy.threads.map_in_order": {"function": type, "items": [1], "threads": 1},
        "bert_numpy.threads.one_blas_thread": {},
        "bert_numpy.kit.Kit.inputs": {"self": kit, "name": name},
        "bert_numpy.kit.Kit.sources": {"self": kit, "names": [name], "known": bool},
        "bert_numpy.kit.Kit.cases": {"self": kit, "operation": "decode"},
        "bert_numpy.kit.Kit.case": {"self": kit, "name": name},
        "bert_numpy.kit.Kit.operations": {"self": kit},
        "bert_numpy.kit.Report.as_json": {"self": kits.verify(kit, given)},
        "bert_numpy.kit.Report.text": {"self": kits.verify(kit, given)},
        "bert_numpy.kit.open_kit": {},
        "bert_numpy.kit.verify": {"kit": kit, "candidate": given},
        "bert_numpy.kit.manifest.apply_view": {"x": x, "view": ""},
        "bert_numpy.kit.manifest.manifest_of": {"kit": kit},
        "bert_numpy.kit.manifest.sha256": {"tensor": kit.tensors[name], "x": kit.arrays[name]},
        "bert_numpy.kit.manifest.write_kit": {"kit": kit, "folder": path},
        "bert_numpy.pytest_plugin.GoldenKit.cases": {
            "self": plugin.GoldenKit(kit),
            "operation": "decode",
        },
        "bert_numpy.pytest_plugin.GoldenKit.check": {
            "self": plugin.GoldenKit(kit),
            "candidate": given,
        },
    }


#: Classes that functions make, or that are plain records of what these are given.
MADE = {
    "npfp8.blocks.layouts.Piece",
    *("npfp8.storage.StoredTensor", "npfp8.vectors.VectorReport", "npfp8.vectors.Vectors"),
    *("bert_numpy.adaptation.AdaptedBatch", "bert_numpy.adaptation.AdaptedRun"),
    "bert_numpy.adaptation.FeatureStatistics",
    *("bert_numpy.BertConfig", "bert_numpy.BertNumpyError", "bert_numpy.Calibration"),
    *("bert_numpy.Model", "bert_numpy.ModelOutput", "bert_numpy.QuantizedModel"),
    *("bert_numpy.Tokenizer", "bert_numpy.job.Job", "bert_numpy.kit.Kit"),
    *("bert_numpy.kit.Report", "bert_numpy.kit.manifest.Case"),
    *("bert_numpy.kit.manifest.Reference", "bert_numpy.kit.manifest.Tensor"),
    "bert_numpy.pytest_plugin.GoldenKit",
    *("bert_numpy.training.fit.Fitted", "bert_numpy.training.fit.StepReport"),
    "bert_numpy.training.tape.Taped",
}

#: A fixture of pytest is called by pytest.
NOT_CALLED = {"bert_numpy.pytest_plugin.golden_kit"}


def arguments_of(thing: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(thing).parameters.values()
    return [x.name for x in parameters if x.kind not in kinds and x.name != "self"]


CALLED = {name: thing for name, thing in (NAMES | METHODS).items() if name not in MADE | NOT_CALLED}
CASES = [(name, argument) for name, thing in CALLED.items() for argument in arguments_of(thing)]


def test_every_public_function_has_arguments_to_try(valid: dict[str, Any]) -> None:
    assert set(valid) == {*CALLED}


def call(name: str, arguments: dict[str, Any]) -> Any:
    given = dict(arguments)
    subject = (given.pop("self"),) if "self" in given else ()
    found = CALLED[name](*subject, **given)
    return list(found) if inspect.isgenerator(found) else found


@pytest.mark.parametrize(("name", "argument"), CASES, ids=[f"{n}:{a}" for n, a in CASES])
def test_a_wrong_type_is_named(name: str, argument: str, valid: dict[str, Any]) -> None:
    """A TypeError, or the error that the function documents, which begins with the argument."""
    if name.startswith("npfp8.interop."):
        pytest.importorskip("ml_dtypes")
    with pytest.raises((TypeError, ValueError)) as caught:
        call(name, valid[name] | {argument: Wrong()})
    message = str(caught.value)
    assert re.search(rf"\b{argument}\b", message), message
    assert "expected" in message, message
    assert "\n" not in message
    if isinstance(caught.value, ValueError):  # documented, as for a name or a shape
        assert isinstance(caught.value, BertNumpyError) or "found" in message, message


@pytest.mark.parametrize("found", [None, 3, 1.5, True, b"E4M3FN", ["E4M3FN"], float, object()])
@pytest.mark.parametrize("function", [npfp8.encode, npfp8.quantize, npfp8.absmax_scale])
def test_a_format_that_is_none(function: Callable[..., Any], found: Any) -> None:
    kind = "None" if found is None else type(found).__name__
    expected = f"^fmt: expected a format or its name, such as 'E4M3FN', found {kind}$"
    with pytest.raises(TypeError, match=expected):
        function([1.0], found)


# Names


@pytest.mark.parametrize("name", FORMATS)
def test_formats_by_name(name: str) -> None:
    assert as_format(name) is as_format(FORMATS[name]) is FORMATS[name]
    if name != "E4M3":
        assert as_format(name.lower()) is FORMATS[name]


@pytest.mark.parametrize("name", ["e4m3", "E4m3"])
def test_a_name_of_two_formats_is_refused(name: str) -> None:
    """E4M3FN is what the recipe e4m3 means; E4M3 is another format, of another range."""
    expected = re.escape("fmt: expected 'E4M3FN' (largest value 448) or 'E4M3' (largest value 240)")
    with pytest.raises(ValueError, match=f"^{expected}, found {name!r}"):
        as_format(name)
    with pytest.raises(BertNumpyError, match="operand: fmt: expected 'E4M3FN'"):
        Operand(name)


def test_an_unknown_name_has_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"^fmt: .*, found 'E5M3FN'; did you mean 'E4M3FN'\?$"):
        npfp8.encode(1.0, "E5M3FN")
    with pytest.raises(BertNumpyError, match=r"^recipe: .*, found 'int9'; did you mean 'int8'\?$"):
        bert_numpy.apply_recipe(bert_numpy.load("bert-tiny-sst2"), "int9")


def test_names_stand_for_objects_in_npfp8() -> None:
    x = np.float32([[0.3, -700.0], [1.5, 2.0]])
    for fmt in (npfp8.E4M3FN, npfp8.E5M2, npfp8.INT8):
        name = fmt.name.lower()
        assert np.array_equal(npfp8.encode(x, name), npfp8.encode(x, fmt))
        by_name, by_object = (npfp8.quantize(x, how, axis=0) for how in (name, fmt))
        assert by_name.fmt is by_object.fmt is fmt
        assert np.array_equal(by_name.codes, by_object.codes)
        assert np.array_equal(npfp8.values(name), npfp8.values(fmt), equal_nan=True)
    a = npfp8.quantize(x, "E4M3FN")
    assert np.array_equal(npfp8.matmul(a, a, "HOPPER"), npfp8.matmul(a, a, "hopper"))
    assert npfp8.QuantizedTensor(a.codes, a.scale, "e4m3fn").fmt is npfp8.E4M3FN


def test_names_stand_for_objects_in_bert_numpy(
    model: Any, tokenizer: Any, calibration: Any, tmp_path: Path
) -> None:
    batch = tokenizer.batch(["a warm film"])
    bert_numpy.save_calibration(calibration, tmp_path / "scales.safetensors")
    bert_numpy.save_recipe(PRESETS["e4m3"], tmp_path / "mine.json")
    expected = bert_numpy.apply_recipe(model, PRESETS["e4m3"], calibration)(**batch).logits
    for recipe in ("e4m3", "E4M3", tmp_path / "mine.json", str(tmp_path / "mine.json")):
        for given in (calibration, tmp_path / "scales.safetensors"):
            found = bert_numpy.apply_recipe(model, recipe, given)
            assert np.array_equal(found(**batch).logits, expected)
    assert Operand("int8") == Operand(npfp8.INT8)
    text = recipe_json(PRESETS["e4m3"])
    assert recipe_of(json.loads(text.replace("E4M3FN", "e4m3fn"))) == PRESETS["e4m3"]
    with pytest.raises(BertNumpyError, match=r"expected 'E4M3FN' .* or 'E4M3'"):
        recipe_of(json.loads(text.replace("E4M3FN", "e4m3")))
    assert Recipe("mine", arithmetic="FLOAT32", accumulate="Hopper").accumulate == "hopper"
    kits = import_module("bert_numpy.kit")
    given = {"codec/E4M3FN/values": npfp8.values("E4M3FN").astype(np.float32)}
    assert kits.verify("bert-tiny-sst2", given).passed


# a @ b


@pytest.fixture
def operands() -> tuple[npfp8.QuantizedTensor, npfp8.QuantizedTensor]:
    rng = np.random.default_rng(0)
    a = npfp8.quantize(rng.standard_normal((3, 2, 5)), "E4M3FN", axis=1)
    return a, npfp8.quantize(rng.standard_normal((5, 4)), "E5M2")


def test_the_operator_is_the_exact_product(operands: Any) -> None:
    a, b = operands
    assert np.array_equal(a @ b, npfp8.matmul(a, b))
    with pytest.raises(ValueError, match="expected shapes"):
        _ = b @ a


@pytest.mark.parametrize("other", [np.ones((5, 5)), np.float32(2), np.ones((5, 5), object)])
def test_the_operator_and_arrays(operands: Any, other: Any) -> None:
    """NumPy does not take the product over, from neither side."""
    _, b = operands
    with pytest.raises(TypeError, match=r"^@: .*, found a QuantizedTensor @ an array"):
        _ = b @ other
    with pytest.raises(TypeError, match=r"^@: .*, found an array @ a QuantizedTensor"):
        _ = other @ b


@pytest.mark.parametrize("other", [[[1.0]], 2.0, None, "b"])
def test_the_operator_and_others(operands: Any, other: Any) -> None:
    _, b = operands
    for product in (lambda: b @ other, lambda: other @ b):
        with pytest.raises(TypeError, match=r"unsupported operand type.*QuantizedTensor"):
            product()


def test_the_operator_leaves_room_for_other_types(operands: Any) -> None:
    class Other:
        def __rmatmul__(self, left: Any) -> str:
            return "other"

    assert operands[1] @ Other() == "other"


@pytest.mark.parametrize("function", [np.add, np.multiply, np.matmul, np.exp])
def test_functions_of_numpy_refuse_quantized_tensors(operands: Any, function: Any) -> None:
    arguments = (operands[1],) * function.nin
    with pytest.raises(TypeError, match="QuantizedTensor"):
        function(*arguments)


# Reprs


@pytest.fixture(scope="module")
def shown(model: Any, tokenizer: Any, calibration: Any) -> list[Any]:
    """Large things, of every class that has a repr of its own."""
    kits, jobs = import_module("bert_numpy.kit"), import_module("bert_numpy.job")
    storage, vectors = import_module("npfp8.storage"), import_module("npfp8.vectors")
    x = np.ones((200, 300), np.float32)
    batch = tokenizer.batch(["a warm film"] * 40)
    quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    kit = kits.open_kit()
    wrong = {name: a + 1 for name, a in kit.arrays.items() if name.endswith("/values")}
    job = jobs.prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=30, calibration_samples=20)
    many = ("label",) * 1000
    codes = npfp8.quantize(x, "E4M3FN").codes
    return [
        *FORMATS.values(),
        npfp8.FloatFormat(3, 2, bias=3),
        *npfp8.ACCUMULATORS.values(),
        npfp8.quantize(x, "E4M3FN"),
        npfp8.quantize(x, "INT8", axis=0),
        npfp8.quantize(x, "INT8", axis=1, block=7),
        npfp8.quantize(x, "UINT8", scale=1.0, zero_point=3),
        *npfp8.BLOCK_FORMATS.values(),
        *(npfp8.quantize(x, name) for name in npfp8.BLOCK_FORMATS),
        *(
            layout
            for table in (CODE_LAYOUTS, SCALE_LAYOUTS, BLOCK_LAYOUTS)
            for layout in table.values()
        ),
        import_module("npfp8.packed").pack_tensor(npfp8.quantize(x, "MXFP4")),
        storage.Fp8Array(codes, npfp8.E4M3FN),
        storage.Bfloat16Array(x.astype(np.uint16)),
        vectors.make_vectors("E4M3FN", "nearest", "bfloat16"),
        *PRESETS.values(),
        *(recipe.linear for recipe in PRESETS.values()),
        PRESETS["e4m3"].skipping(*("x" * 300)),
        calibration,
        *calibration.operands.values(),
        model,
        quantized,
        model.config,
        replace(model.config, labels=many),
        quantized(**batch),
        tokenizer,
        *tokenizer.encode(["a film " * 200], max_length=400),
        *tokenizer.windows(["which?"], ["a film " * 200], 128, 64, 16)[0],
        job,
        *jobs.run(job, ["fp32"]),
        kit,
        *list(kit.cases("decode"))[:3],
        kits.verify(kit, wrong),
    ]


def test_reprs_are_one_short_line(shown: list[Any]) -> None:
    for thing in shown:
        text = repr(thing)
        assert "\n" not in text, text
        assert len(text) < 200, text
        assert type(thing).__name__ in text


def test_reprs_say_what_a_thing_is(model: Any) -> None:
    q = npfp8.quantize(np.ones((4, 6)), "INT8", axis=1, block=4)
    assert repr(q) == "<QuantizedTensor (4, 6) INT8, 8 scales per block of 4 along axis 1>"
    q = npfp8.quantize(np.ones((4, 6)), "UINT8", scale=0.5, zero_point=3)
    assert repr(q) == "<QuantizedTensor (4, 6) UINT8, scale 0.5, zero point 3>"
    assert repr(npfp8.E5M2) == "<FloatFormat E5M2: 1+5+2 bits, bias 15, max 57344>"
    assert repr(npfp8.ACCUMULATORS["hopper"]) == (
        "<Accumulator hopper: fused, step 32, fraction_bits 13, precision 14, "
        "steps_to_float32 4, E4M3FN E5M2 only>"
    )
    assert repr(replace(PRESETS["e4m3"], accumulate="hopper").skipping("pooler.dense")) == (
        "<Recipe e4m3: linear E4M3FN x E4M3FN, scores E4M3FN x E4M3FN, "
        "context E4M3FN x E4M3FN; 1 override; rest bfloat16; accumulate hopper>"
    )
    assert repr(PRESETS["fp32"]) == "<Recipe fp32: nothing quantized; rest float32>"
    assert "4,386,178 parameters" in repr(model)


@pytest.mark.parametrize("recipe", PRESETS.values(), ids=list(PRESETS))
def test_reprs_of_operands_make_them_again(recipe: Recipe) -> None:
    for site in (recipe.linear, recipe.scores, recipe.context):
        names = {"Operand": Operand, "SiteRecipe": SiteRecipe, "Gptq": bert_numpy.Gptq}
        made = eval(repr(site), names)
        assert made == site


# Values from elsewhere


class Unreadable:
    """An object whose conversion to an array fails, as that of a torch tensor with a gradient."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("not now")


ODD = {
    "matrix": np.ones((2, 3), np.float32),
    "nothing": np.empty((0, 3), np.float32),
    "one": np.array(2.0, np.float32),
    "words": np.array(["a", "b"]),
    "objects": np.array([[None, "a"]], object),
    "unreadable": Unreadable(),
    "large": 10**400,
    "rows": [[1, 2], [3]],
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize(("name", "argument"), CASES, ids=[f"{n}:{a}" for n, a in CASES])
def test_no_error_comes_from_the_depths(
    name: str, argument: str, odd: Any, valid: dict[str, Any]
) -> None:
    """A value is accepted, or refused by a check that states what it expects."""
    if name.startswith("npfp8.interop."):
        pytest.importorskip("ml_dtypes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            call(name, valid[name] | {argument: odd})
        except (TypeError, ValueError, AssertionError) as error:
            message = str(error)
            assert "expected" in message or "beyond float32" in message, message


@pytest.mark.parametrize("odd", [np.ones(3), None, 5, "sideways"])
def test_modes_are_names(odd: Any) -> None:
    for function, argument in (
        (lambda x: npfp8.encode(1.0, "E5M2", rounding=x), "rounding"),
        (lambda x: npfp8.golden.softmax(np.float32([1]), x), "precision"),
        (lambda x: Operand("INT8", "" if x is None else x), "granularity"),  # None: not given
        (lambda x: Operand("INT8", observer=x), "observer"),
        (lambda x: SiteRecipe(outliers=x), "outliers"),
        (lambda x: SiteRecipe(smoothing=x), "smoothing"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"{argument}: expected .*, found"):
            function(odd)


def test_modes_are_names_in_any_case() -> None:
    x = np.float32([0.3, -700.0])
    toward_zero = npfp8.encode(x, "E4M3FN", rounding="toward_zero")
    assert np.array_equal(npfp8.encode(x, "E4M3FN", rounding="Toward_Zero"), toward_zero)
    assert Operand("INT8", "Token", observer="MSE") == Operand("INT8", "token", observer="mse")
    assert SiteRecipe(migration=0.5, smoothing="Paper").smoothing == "paper"


class Path2:
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_paths_of_other_libraries(model: Any, calibration: Any, tmp_path: Path) -> None:
    folder, scales = Path2(Path("bert-tiny-sst2")), Path2(tmp_path / "scales.safetensors")
    bert_numpy.save_calibration(calibration, scales)
    assert bert_numpy.load(folder).name == "bert-tiny-sst2"
    assert bert_numpy.load_tokenizer(folder).model_max_length == 512
    assert bert_numpy.load_calibration(scales).samples == calibration.samples
    quantized = bert_numpy.apply_recipe(model, "e4m3", scales)
    bert_numpy.save_quantized(quantized, folder, Path2(tmp_path / "q"))
    with pytest.raises(BertNumpyError, match=f"^{re.escape(str(tmp_path))}/no: no such file"):
        bert_numpy.load_recipe(Path2(tmp_path / "no"))


def test_scalars_of_arrays_are_numbers() -> None:
    x, one = np.float32([[1.0, 3.0]]), np.array(0.5, np.float32)
    golden = npfp8.golden
    assert np.array_equal(golden.multiply(x, one), golden.multiply(x, 0.5))
    ones = np.ones(2, np.float32)
    expected = golden.layer_norm(x, ones, ones, 0.5)
    assert np.array_equal(golden.layer_norm(x, ones, ones, np.array(0.5)), expected)
    assert npfp8.quantize(x, "E4M3FN", 10**30).scale == np.float32(1e30)
    blocks = npfp8.quantize(x, "E4M3FN", axis=np.int8(-1), block=np.uint8(1))
    assert type(blocks.block) is int
    assert blocks.axis == 1
    assert npfp8.quantize([1.0, 2000.0], "E4M3FN", 1.0).lost([1.0, 2000.0]) == (1, 0)


def test_subclasses_of_arrays_give_arrays() -> None:
    """np.matrix multiplies in a way of its own, and has two axes always."""
    x = np.float32([[1.0, 3.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        matrix = np.matrix(x)
    for function in (
        lambda x: npfp8.golden.unary("gelu", x),
        npfp8.golden.normalize,
        npfp8.golden.softmax,
        lambda x: npfp8.matmul_float32(x, x.T),
        lambda x: npfp8.quantize_bfloat16(x, "INT8", 1.0).codes,
    ):
        assert type(function(matrix)) is np.ndarray
        assert np.array_equal(function(matrix), function(x))


def test_scales_and_their_ranges() -> None:
    scaling = npfp8.scaling
    x = np.float32([[1, -2], [3, 4]])
    for axis, error in ((3, ValueError), (-3, ValueError), (1.5, TypeError), ("a", TypeError)):
        with pytest.raises(error, match=r"^axis: expected .*, found"):
            scaling.dynamic_scale(x, "INT8", axis)
    with pytest.raises(ValueError, match=r"^x: expected finite numbers"):
        scaling.dynamic_scale([np.nan], "INT8")
    for low, high, name in ((None, 1.0, "low"), (-1.0, "x", "high")):
        with pytest.raises(TypeError, match=f"^{name}: expected real numbers, found"):
            scaling.scale_of_range(low, high, "INT8")
    with pytest.raises(ValueError, match=r"^low and high: expected a finite range, with 0, found"):
        scaling.affine_scale([-1.0, 1.0], 2.0, "UINT8")
    with pytest.raises(ValueError, match=r"^low and high: expected shapes that broadcast"):
        scaling.affine_scale([-1.0, -1.0], [1.0, 1.0, 1.0], "UINT8")
    with pytest.raises(TypeError, match=r"^power_of_two: expected True or False, found"):
        scaling.scale_of_range(-1.0, 1.0, "INT8", x)
    with pytest.raises(TypeError, match=r"^x: expected .*, found an integer beyond 64 bits"):
        npfp8.encode(10**30, "E4M3FN")


def test_results_are_not_written_into_read_only_arrays() -> None:
    out = np.zeros(2, np.uint8)
    out.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out: expected an array that can be written"):
        npfp8.encode([1.0, 2.0], "E4M3FN", out=out)


@pytest.mark.parametrize("batch", [{}, {"attention_mask": [[1]]}, {"input_ids": [[1]], "ids": 1}])
def test_batches_have_the_arguments_of_a_model(model: Any, batch: Any) -> None:
    with pytest.raises(BertNumpyError, match=r"^batches: expected input_ids, .*, found"):
        bert_numpy.calibrate(model, [batch])


def test_heads_have_names(model: Any) -> None:
    require_head = import_module("bert_numpy.model").require_head
    with pytest.raises(ValueError, match=r"^name: expected one of 'sequence .*, found 'sequences'"):
        require_head(model, "sequences")


def test_lists_of_overrides() -> None:
    pairs = [("pooler.dense", SiteRecipe(Operand("INT8"), Operand("INT8")))]
    assert Recipe("mine", overrides=pairs) == Recipe("mine", overrides=tuple(pairs))
    assert hash(Recipe("mine", overrides=pairs)) == hash(Recipe("mine", overrides=tuple(pairs)))

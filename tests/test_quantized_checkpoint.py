"""Quantized checkpoints: written atomically, read back to the bit, exchanged with others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint
from oracles import assert_same_bits
from watching import arrays_of, product_of

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, QuantizedModel, Recipe, SiteRecipe
from bert_numpy.checkpoints.load import stored_recipe
from bert_numpy.checkpoints.quantized import check_target, save_quantized
from bert_numpy.commands.main import main
from bert_numpy.engines.float import FloatEngine
from npfp8 import E4M3FN, E5M2, INT8, UINT8, IntFormat, QuantizedTensor, bfloat16
from npfp8.formats import FORMATS
from npfp8.storage import Fp8Array, load_file, read_header, save_file

Tensors = dict[str, Any]

E4M3 = PRESETS["e4m3"]
SMALL = {"hidden_size": 32, "intermediate_size": 64}
#: Of 128 and its multiples, as blocks need.
WIDE = {"hidden_size": 128, "intermediate_size": 256}

#: Each way to store a weight, an input, and what the layout has no place for.
RECIPES = [
    *(PRESETS[name] for name in ("e4m3", "e5m2", "int8", "mixed", "e4m3-channel", "e4m3-token")),
    *(PRESETS[name] for name in ("int8-asymmetric", "int8-outliers", "e4m3-weights", "e4m3-pow2")),
    replace(PRESETS["int8-mse"], name="float32", arithmetic="float32"),
    Recipe("weights", SiteRecipe(Operand(UINT8), Operand(UINT8))),
    Recipe("rows", SiteRecipe(*[Operand(E4M3FN, "token", dynamic=True)] * 2)),
    Recipe("inputs", replace(E4M3.linear, b=Operand()), overrides=(("*.key", E4M3.linear),)),
    replace(
        PRESETS["int8-channel"],
        name="head",
        overrides=(
            ("*layer.1.*.dense", PRESETS["e4m3-token"].linear),
            ("*.layer.1.attention.scores", SiteRecipe()),
            ("*.layer.1.attention.context", PRESETS["mixed"].context),
            ("pooler.dense", E4M3.linear),
            ("classifier", SiteRecipe(Operand(E5M2), Operand(E4M3FN, "channel"))),
        ),
    ),
]


def batch(seed: int = 1, rows: int = 4, length: int = 12) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.arange(length) < generator.integers(3, length + 1, rows)[:, None]
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), (rows, length)),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": generator.integers(0, 2, (rows, length)),
    }


def quantized(source: Path | str, recipe: Recipe, golden: bool = False) -> QuantizedModel:
    model = bert_numpy.load(source)
    calibration = bert_numpy.calibrate(model, [batch(seed) for seed in range(3)], golden)
    return bert_numpy.apply_recipe(model, recipe, calibration, golden)


def written(
    tmp_path: Path, recipe: Recipe = E4M3, **checkpoint: Any
) -> tuple[QuantizedModel, Path]:
    """A quantized model of random weights, and the folder that it was written to."""
    source = write_checkpoint(tmp_path / "source", **{"config_overrides": SMALL, **checkpoint})
    model = quantized(source, recipe)
    save_quantized(model, source, tmp_path / "out", "# A card\n")
    return model, tmp_path / "out"


def assert_same_models(actual: QuantizedModel, expected: QuantizedModel) -> None:
    assert isinstance(actual, QuantizedModel)
    assert actual.recipe == expected.recipe
    assert actual.config == expected.config
    assert actual.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        found = actual.weights[name]
        if not isinstance(weight, QuantizedTensor):
            assert_same_bits(found, weight)
            continue
        assert (found.fmt, found.axis, found.block) == (weight.fmt, weight.axis, weight.block)
        assert_same_bits(found.codes, weight.codes)
        assert_same_bits(found.scale, weight.scale)
        if weight.zero_point is None:
            assert found.zero_point is None
        else:
            assert_same_bits(found.zero_point, weight.zero_point)
    assert actual.plans.keys() == expected.plans.keys()
    for site, plan in expected.plans.items():
        assert actual.plans[site].recipe == plan.recipe
        for found, scale in ((actual.plans[site].a, plan.a), (actual.plans[site].b, plan.b)):
            assert (found is None) == (scale is None), site
            if scale is not None:
                assert_same_bits(found.scale, scale.scale)
                assert found.zero_point == scale.zero_point


def assert_same_outputs(actual: QuantizedModel, expected: QuantizedModel) -> None:
    output, wanted = actual(**batch()), expected(**batch())
    assert output.counts == wanted.counts
    assert arrays_of(output).keys() == arrays_of(wanted).keys()
    for name, value in arrays_of(wanted).items():
        assert_same_bits(getattr(output, name), value)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_round_trip(recipe: Recipe, tmp_path: Path) -> None:
    model, folder = written(tmp_path, recipe)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, model)
    assert_same_outputs(loaded, model)


def test_round_trip_of_blocks(tmp_path: Path) -> None:
    model, folder = written(tmp_path, PRESETS["e4m3-block"], config_overrides=WIDE)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, model)
    assert_same_outputs(loaded, model)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"dtype": "F16"},
        {"dtype": "BF16", "shards": 3},
        {"config_overrides": {**SMALL, "architectures": ["BertModel"]}},
        {"config_overrides": {**SMALL, "architectures": ["BertForQuestionAnswering"]}},
        {"config_overrides": {**SMALL, "torch_dtype": "bfloat16"}, "labels": ("score",)},
    ],
    ids=["float16", "bfloat16", "encoder", "answers", "regression"],
)
def test_round_trip_of_checkpoints(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    model, folder = written(tmp_path, PRESETS["mixed"], **checkpoint)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, model)
    assert_same_outputs(loaded, model)
    stored = {}
    for path in (tmp_path / "source").glob("*.safetensors"):
        stored |= read_header(path)
    again = read_header(folder / "model.safetensors")
    for key, tensor in stored.items():
        if again[key].dtype not in ("F8_E4M3", "F8_E5M2"):
            assert again[key].dtype == tensor.dtype
            assert again[key].read_bytes() == tensor.read_bytes()


def test_round_trip_of_sentence_embeddings(tmp_path: Path) -> None:
    """The pooling comes along, and the vectors are the same bits."""
    encoder = {**SMALL, "architectures": ["BertModel"]}
    source = write_checkpoint(tmp_path / "source", config_overrides=encoder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"type": f"sentence_transformers.models.{k}", "path": p} for p, k in modules]
    (source / "modules.json").write_text(json.dumps(listed))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode": ["median"]}')
    with pytest.raises(BertNumpyError, match=r"config.json: expected one or more of the poolings"):
        bert_numpy.load(source)
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model = quantized(source, E4M3)
    save_quantized(model, source, tmp_path / "out")
    loaded = bert_numpy.load(tmp_path / "out")
    assert loaded.config.pooling is not None
    assert_same_models(loaded, model)
    assert_same_outputs(loaded, model)
    assert stored_recipe(tmp_path / "out") == E4M3
    assert "  1_Pooling/config.json\n" in (tmp_path / "out" / "SHA256SUMS").read_text()


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "int8-asymmetric", "e4m3-token"])
def test_golden_round_trip(name: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=SMALL)
    model = quantized(source, PRESETS[name], golden=True)
    save_quantized(model, source, tmp_path / "out")
    loaded = bert_numpy.load(tmp_path / "out")
    golden = bert_numpy.apply_recipe(loaded, loaded.recipe, golden=True)
    assert_same_models(golden, model)
    assert_same_outputs(golden, model)
    whole = golden(**batch()).logits
    assert_same_bits(whole[:1], golden(**{key: x[:1] for key, x in batch().items()}).logits)


def test_same_input_same_files(tmp_path: Path) -> None:
    model, folder = written(tmp_path)
    save_quantized(model, tmp_path / "source", tmp_path / "again", "# A card\n")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_files(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "README.md", "SHA256SUMS"),
        *("tokenizer.json", "vocab.txt"),
    }
    sums = dict(
        reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    assert sums == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in names - {"SHA256SUMS"}
    }
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    assert os.stat(folder).st_mode & 0o777 == 0o777 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("name", ["e4m3", "e4m3-channel", "e4m3-block", "int8"])
def test_size(name: str, tmp_path: Path) -> None:
    """At most 0.27 of the float32 file for the encoder's linear weights, scales included."""
    _, folder = written(tmp_path, PRESETS[name], config_overrides=WIDE)

    def nbytes(path: Path, *endings: str) -> int:
        return sum(
            tensor.nbytes
            for key, tensor in read_header(path).items()
            if ".encoder." in key and "LayerNorm" not in key and key.endswith(endings)
        )

    codes = nbytes(folder / "model.safetensors", ".weight", "_scale", "_zero_point")
    floats = nbytes(tmp_path / "source" / "model.safetensors", ".weight")
    assert floats / 4 < codes <= 0.27 * floats


def test_a_quantized_model_keeps_its_recipe(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    loaded = bert_numpy.load(folder)
    with pytest.raises(
        BertNumpyError, match="out: expected a model in float32 to apply int8 to, f"
    ):
        bert_numpy.apply_recipe(loaded, PRESETS["int8"])
    with pytest.raises(
        BertNumpyError, match="out: expected a model in float32 to calibrate, found"
    ):
        bert_numpy.calibrate(loaded, [batch()])


# Written whole or not at all


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_killed_at_any_moment(tmp_path: Path) -> None:
    """A process that is killed before its n-th call of the system, for every n."""
    model, folder = written(tmp_path)
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    target = tmp_path / "killed" / "out"
    outcomes = []
    for step in range(500):
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        child = os.fork()
        if child == 0:
            left = step

            def hook(event: str, _: object) -> None:
                nonlocal left
                if event.startswith(("open", "os.", "shutil.", "tempfile.")) and event != "os.kill":
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left -= 1

            try:
                sys.addaudithook(hook)
                save_quantized(model, tmp_path / "source", target, "# A card\n")
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if target.exists():
            assert {path.name: path.read_bytes() for path in target.iterdir()} == expected
        outcomes.append(target.exists())
        if not os.WIFSIGNALED(status):
            break
    assert not os.WIFSIGNALED(status)
    assert outcomes == sorted(outcomes)
    assert 10 < outcomes.count(False) < len(outcomes)


def test_a_target_with_an_impossible_name(tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError, match="cannot be written: "):
        check_target(tmp_path / ("x" * 300))


def test_an_error_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = written(tmp_path)
    (tmp_path / "new").mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BertNumpyError, match=r"new/out: cannot be written: No space left"):
        save_quantized(model, tmp_path / "source", tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


def test_targets(tmp_path: Path) -> None:
    model, folder = written(tmp_path)
    source = tmp_path / "source"
    (tmp_path / "empty").mkdir()
    save_quantized(model, source, tmp_path / "empty")
    assert_same_models(bert_numpy.load(tmp_path / "empty"), model)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for target, fault in (
        (folder, "empty"),
        (tmp_path / "file", "a folder"),
        (tmp_path / "link", "a folder"),
    ):
        with pytest.raises(BertNumpyError) as caught:
            save_quantized(model, source, target)
        assert str(caught.value) == (
            f"{target} already exists and is not {fault}. Choose another folder; existing output "
            "is never overwritten"
        )
    with pytest.raises(BertNumpyError, match="missing: expected a folder to write into"):
        save_quantized(model, source, tmp_path / "missing" / "out")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (PRESETS["fp32"], "recipe fp32: expected quantized weights, found none"),
        (
            PRESETS["e4m3-smooth"],
            r"recipe e4m3-smooth: encoder\.layer\.0\.attention\.self\.query: expected no migration",
        ),
        (
            replace(
                E4M3,
                name="inputs",
                overrides=(("*.1.output.dense", SiteRecipe(Operand(E4M3FN), migration=0.5)),),
            ),
            r"recipe inputs: encoder\.layer\.1\.output\.dense: expected no migration",
        ),
        (
            Recipe("fnuz", SiteRecipe(b=Operand(FORMATS["E4M3FNUZ"]))),
            "recipe fnuz: .*query: weight: expected E4M3FN, INT8, UINT8, .* to be written, found",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_recipes_that_cannot_be_written(recipe: Recipe, message: str, tmp_path: Path) -> None:
    with pytest.raises(BertNumpyError, match=message):
        written(tmp_path, recipe)
    assert not (tmp_path / "out").exists()


# Read by others


def loaded_by_transformers(transformers: ModuleType, folder: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes = json.loads((folder / "config.json").read_text())["architectures"]
        return getattr(transformers, classes[0]).from_pretrained(folder, **options).eval()


def logits_of(model: Any, torch: ModuleType) -> np.ndarray:
    """And, as compressed-tensors does it on the first run, decompressed weights."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = {name: torch.from_numpy(x) for name, x in batch().items()}
        return model(**inputs).logits.float().numpy()


def runs_of_layers(theirs: Any, torch: ModuleType) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the input and the output of each of their linear layers in a run, by site."""
    runs: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def seen(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            runs[name.removeprefix("bert.")] = inputs[0].float().numpy(), output.float().numpy()

        return hook

    hooks = [
        module.register_forward_hook(seen(name))
        for name, module in theirs.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    logits_of(theirs, torch)
    for hook in hooks:
        hook.remove()
    return runs


def assert_same_linear_layers(
    theirs: Any, ours: QuantizedModel, torch: ModuleType, bound: float = 1e-5
) -> None:
    """Each linear layer, given what it is given in their run: so that none passes on another's.

    Codes and scales of such inputs are the same, sums are in another order (measured:
    at most 7e-7 of the largest result). In INT8 an element beyond the range is -127 here
    and -128 there, and one with a zero point is rounded there after it is added: one
    token of a layer may be off by that.
    """
    runs = runs_of_layers(theirs, torch)
    sites = [site for site in ours.plans if site in runs]
    assert len(sites) >= 12  # the attention's products are no layers of theirs
    for site in sites:
        x, expected = runs[site]
        weight, bias = (ours.weights[f"{site}.{name}"] for name in ("weight", "bias"))
        result = product_of(ours.engine, site, x, weight.mT, bias)
        tokens = np.abs(result - expected).max(axis=-1) / np.abs(expected).max()
        assert (tokens > bound).sum() <= isinstance(ours.recipe.site(site).a.fmt, IntFormat), site
        assert tokens.max() <= 2e-2, site


def parameters_of(model: Any) -> dict[str, np.ndarray]:
    return {
        name.removeprefix("bert."): parameter.detach().float().numpy()
        for name, parameter in model.named_parameters()
    }


def float32_values(weight: np.ndarray | QuantizedTensor) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight


def linear_layers(recipe: Recipe) -> Recipe:
    """Make the recipe that transformers with compressed-tensors computes."""
    return replace(recipe, scores=SiteRecipe(), context=SiteRecipe(), arithmetic="float32")


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        *((recipe, SMALL) for recipe in RECIPES if recipe.name in ("weights", "head", "mixed")),
        *((PRESETS[name], WIDE) for name in ("e4m3", "int8", "int8-asymmetric", "e4m3-weights")),
        *((PRESETS[name], WIDE) for name in ("e4m3-channel", "e4m3-token", "e4m3-block")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_transformers(
    recipe: Recipe,
    config: dict[str, Any],
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """Our weights are exact, each layer is equal up to the order of sums, and logits are close.

    A sum that is off by one float32 step may become another code in the next layer, so the
    logits, most often within 6e-6, have room for a few steps of E4M3.
    """
    recipe = replace(linear_layers(recipe), overrides=recipe.overrides[-2:])
    model, folder = written(tmp_path, recipe, config_overrides=config)
    theirs = loaded_by_transformers(transformers, folder)
    logits = logits_of(theirs, torch)
    found = parameters_of(theirs)
    for name, weight in model.weights.items():
        assert_same_bits(found[name], float32_values(weight))
    said = all(
        how.a.fmt in (None, E4M3FN, INT8, UINT8)
        for site in model.plans
        if (how := recipe.site(site))
    )
    if said:
        assert_same_linear_layers(theirs, model, torch)
        assert distance(logits, model(**batch()).logits) < 5e-2


def test_an_encoder_out_of_a_classifier(
    tmp_path: Path, torch: ModuleType, transformers: ModuleType, compressed_tensors: ModuleType
) -> None:
    """Names in the config fit without the ``bert.`` of the file too."""
    model, folder = written(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModel.from_pretrained(folder).eval()
        with torch.no_grad():
            theirs(**{name: torch.from_numpy(x) for name, x in batch().items()})
    found = parameters_of(theirs)
    for name in ("encoder.layer.1.output.dense.weight", "pooler.dense.weight"):
        assert_same_bits(found[name], float32_values(model.weights[name]))


def test_e5m2_weights_are_refused(
    tmp_path: Path, torch: ModuleType, transformers: ModuleType, compressed_tensors: ModuleType
) -> None:
    """An 8-bit float is E4M3 to compressed-tensors; it would read wrong numbers."""
    _, folder = written(tmp_path, PRESETS["e5m2"])
    with pytest.raises(ValueError, match="float-quantized"):
        loaded_by_transformers(transformers, folder)


def test_torch_reads_float8(tmp_path: Path, torch: ModuleType) -> None:
    from safetensors.torch import load_file as load_tensors  # noqa: PLC0415 (needs torch)

    model, folder = written(tmp_path, PRESETS["mixed"])
    tensors = load_tensors(folder / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    weight = tensors[f"bert.{name}"]
    assert weight.dtype == torch.float8_e4m3fn
    assert_same_bits(weight.view(torch.uint8).numpy(), model.weights[name].codes)
    scale = tensors[f"bert.{name}_scale"]
    assert (scale.dtype, scale.shape) == (torch.float32, (1,))
    assert_same_bits((weight.float() * scale).numpy(), model.weights[name].dequantize())
    _, folder = written(tmp_path / "e5m2", PRESETS["e5m2"])
    tensors = load_tensors(folder / "model.safetensors")
    assert tensors[f"bert.{name}"].dtype == torch.float8_e5m2


# Made by others


def set_scales(name: str, layer: Any, scheme: Any) -> None:
    """Set a layer's scales and zero points as compressed-tensors computes them."""
    from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)

    low, high = extrema_of_groups(layer.weight.detach(), scheme.weights)
    scale, zero_point = ct.utils.calculate_qparams(low, high, scheme.weights)
    layer.weight_scale.data.copy_(scale.reshape(layer.weight_scale.shape))
    layer.weight_zero_point.data.copy_(zero_point.reshape(layer.weight_scale.shape))
    if hasattr(layer, "input_scale"):
        layer.input_scale.data.fill_(0.02)
        layer.input_zero_point.data.fill_(0 if scheme.input_activations.symmetric else 3)


def compressed(
    folder: Path,
    scheme: str | dict[str, Any],
    dtype: str,
    torch: ModuleType,
    transformers: ModuleType,
    set_scales: Callable[[str, Any, Any], None] = set_scales,
) -> Path:
    """A checkpoint that compressed-tensors made of random weights, as llm-compressor has it do."""
    from compressed_tensors import quantization as ct  # noqa: PLC0415 (a peer)
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415

    source = write_checkpoint(folder / "source", config_overrides=WIDE)
    model = transformers.BertForSequenceClassification.from_pretrained(
        source, dtype=getattr(torch, dtype)
    ).eval()
    if isinstance(scheme, str):
        group = ct.preset_name_to_scheme(scheme, ["Linear"])
    else:
        group = ct.QuantizationScheme(targets=["Linear"], **scheme)
    config = ct.QuantizationConfig(
        config_groups={"group_0": group},
        ignore=["classifier", "re:.*pooler.*"],
        quantization_status="frozen",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ct.apply_quantization_config(model, config)
        for name, module in model.named_modules():
            if (found := getattr(module, "quantization_scheme", None)) is not None:
                set_scales(name, module, found)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        model.save_pretrained(folder / "out")
        compressor.update_config(str(folder / "out"))
    shutil.copyfile(source / "vocab.txt", folder / "out" / "vocab.txt")
    return folder / "out"


def extrema_of_groups(weight: Any, arguments: Any) -> tuple[Any, Any]:
    rows, columns = {
        "tensor": tuple(weight.shape),
        "channel": (1, weight.shape[1]),
        "group": (1, arguments.group_size),
        "block": tuple(arguments.block_structure or ()),
    }[arguments.strategy]
    blocks = weight.unfold(0, rows, rows).unfold(1, columns, columns)
    return blocks.amin((2, 3)), blocks.amax((2, 3))


_BLOCKS = {
    "weights": {"type": "float", "strategy": "block", "block_structure": [64, 128]},
    "input_activations": {
        **{"type": "float", "strategy": "group", "group_size": 128, "dynamic": True},
    },
}
_ASYMMETRIC = {
    "weights": {"strategy": "channel", "symmetric": False},
    "input_activations": {"strategy": "tensor", "symmetric": False},
}


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        *(("FP8_DYNAMIC", "bfloat16"), ("FP8", "float32"), ("FP8_BLOCK", "float32")),
        *((_BLOCKS, "bfloat16"), ("INT8", "float32"), (_ASYMMETRIC, "float32")),
    ],
    ids=lambda value: str(value)[:12],
)
def test_made_by_compressed_tensors(
    scheme: Any,
    dtype: str,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """Their weights are exact, and in float32 their layers are equal up to the order of sums."""
    folder = compressed(tmp_path, scheme, dtype, torch, transformers)
    model = bert_numpy.load(folder)
    assert isinstance(model, QuantizedModel)
    assert model.recipe.arithmetic == dtype
    assert sum(isinstance(weight, QuantizedTensor) for weight in model.weights.values()) == 12
    if dtype == "bfloat16":  # theirs are rounded to it
        theirs = loaded_by_transformers(transformers, folder)
        logits_of(theirs, torch)
        found = parameters_of(theirs)
        for name, weight in model.weights.items():
            assert_same_bits(found[name], bfloat16.round_to_bfloat16(float32_values(weight)))
    theirs = loaded_by_transformers(transformers, folder, dtype=torch.float32)
    logits = logits_of(theirs, torch)
    found = parameters_of(theirs)
    for name, weight in model.weights.items():
        assert_same_bits(found[name], float32_values(weight))
    foreign_config = changed_config(lambda raw: raw.update(dtype="float32"))
    foreign_config(folder)
    ours = bert_numpy.load(folder)
    assert isinstance(ours, QuantizedModel)
    exact = ours(**batch()).logits
    quantization = distance(bert_numpy.load(tmp_path / "source")(**batch()).logits, exact)
    if scheme == "INT8":  # absmax / 127.5 there and absmax / 127 here: as far as INT8 is off
        assert_same_linear_layers(theirs, ours, torch, 2e-2)
        assert distance(logits, exact) < 2 * quantization
    else:
        assert_same_linear_layers(theirs, ours, torch)
        assert distance(logits, exact) < quantization / 10


def fine_grained(folder: Path, **config: Any) -> tuple[Path, Tensors]:
    """A checkpoint with FP8 blocks of 128 by 128, as DeepSeek-V3's; made by hand."""
    shape = {"hidden_size": 160, "intermediate_size": 328, "num_attention_heads": 4}
    source = write_checkpoint(folder, config_overrides=shape)
    tensors = load_file(source / "model.safetensors")
    generator = np.random.default_rng(3)
    for key in [key for key in tensors if ".encoder." in key and "LayerNorm" not in key]:
        if not key.endswith(".weight"):
            continue
        rows, columns = tensors[key].shape
        codes = generator.integers(0, 256, (rows, columns), np.uint8)
        codes[codes & 0x7F == 0x7F] = 0
        blocks = (-(-rows // 128), -(-columns // 128))
        scales = generator.uniform(1e-4, 3e-4, blocks).astype(np.float32)
        tensors[key] = Fp8Array(codes, E4M3FN)
        tensors[f"{key}_scale_inv"] = scales
    save_file(tensors, source / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    raw["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        **config,
    }
    (source / "config.json").write_text(json.dumps(raw))
    return source, tensors


def test_fine_grained_blocks(tmp_path: Path) -> None:
    folder, tensors = fine_grained(tmp_path)
    model = bert_numpy.load(folder)
    coded = {name for name, x in model.weights.items() if isinstance(x, QuantizedTensor)}
    assert coded == {
        key.removeprefix("bert.") for key, x in tensors.items() if isinstance(x, Fp8Array)
    }
    for name in coded:
        stored, scales = tensors[f"bert.{name}"], tensors[f"bert.{name}_scale_inv"]
        rows, columns = stored.codes.shape
        spread = np.kron(scales, np.ones((128, 128), np.float32))[:rows, :columns]
        values = E4M3FN.values[stored.codes].astype(np.float32) * spread
        assert_same_bits(model.weights[name].dequantize(), values)
    assert model.recipe.site("encoder.layer.0.output.dense").a == Operand(
        E4M3FN, "block", dynamic=True
    )
    as_floats = replace(bert_numpy.load(folder), engine=FloatEngine)
    expected = replace(
        as_floats, weights={name: float32_values(x) for name, x in model.weights.items()}
    )
    logits, reference = model(**batch()).logits, expected(**batch()).logits
    assert 0 < distance(logits, reference) < 0.1


# What cannot be read


def changed_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        change(raw)
        (folder / "config.json").write_text(json.dumps(raw))

    return apply


def foreign(change: Callable[[dict[str, Any]], None] = lambda _: None) -> Callable[[Path], None]:
    """Without our section; a change of ``quantization_config``."""

    def apply(raw: dict[str, Any]) -> None:
        raw.pop("npfp8_config", None)
        change(raw["quantization_config"])

    return changed_config(apply)


def changed_tensor(
    key: str, change: Callable[[Any], Any], ours: bool = True
) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        if not ours:
            foreign()(folder)
        tensors = load_file(folder / "model.safetensors")
        name = f"bert.encoder.layer.1.output.dense.{key}"
        value = change(tensors.pop(name, None))
        if value is not None:
            tensors[name] = value
        save_file(tensors, folder / "model.safetensors")

    return apply


def to(*values: Any, dtype: str = "float32") -> Callable[[Any], np.ndarray]:
    return lambda _: np.array(values, dtype)


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["config_groups"]["group_0"]
    return found


def nan_code(weight: Fp8Array) -> Fp8Array:
    weight.codes[2, 3] = 0xFF
    return weight


SCALE = "model.safetensors: tensor 'bert.encoder.layer.1.output.dense.weight_scale': expected "
INPUT = "model.safetensors: tensor 'bert.encoder.layer.1.output.dense.input_scale': expected "
WEIGHT = "model.safetensors: tensor 'bert.encoder.layer.1.output.dense.weight': expected "
CONFIG = "config.json: key 'quantization_config'"
OWN = "config.json: key 'npfp8_config'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_tensor("weight_scale", to(np.nan)), SCALE + "finite numbers, found nan at [0]"),
        (changed_tensor("weight_scale", to(np.inf)), SCALE + "finite numbers, found inf at [0]"),
        (changed_tensor("weight_scale", to(0)), SCALE[:-9] + "scale: expected positive, finite, n"),
        (changed_tensor("weight_scale", to(-1)), SCALE[:-9] + "scale: expected positive, finite, "),
        (changed_tensor("weight_scale", to(1e-40)), SCALE[:-9] + "scale: expected positive, finit"),
        (changed_tensor("weight_scale", to(1, 1)), SCALE + "shape (1,) or () or (1, 1) by config"),
        (
            changed_tensor("weight_scale", to(1, dtype="int32")),
            SCALE + "dtype F32, F16 or BF16, found I32",
        ),
        (changed_tensor("weight_scale", lambda _: None), SCALE + "shape (1,) or () or (1, 1) by "),
        (changed_tensor("input_scale", to(np.nan)), INPUT + "finite numbers, found nan"),
        (changed_tensor("input_scale", to(0)), INPUT + "positive and normal, found 0.0"),
        (changed_tensor("input_scale", to(-3)), INPUT + "positive and normal, found -3.0"),
        (changed_tensor("input_scale", to([1])), INPUT + "shape (1,) or () by config.json, found"),
        (changed_tensor("input_scale", lambda _: None), INPUT + "shape (1,) or () by config.json"),
        (changed_tensor("weight", nan_code), WEIGHT + "finite numbers, found code 0xFF at [2, 3]"),
        (
            changed_tensor("weight", lambda x: x.codes.astype(np.float32)),
            WEIGHT + "dtype F8_E4M3 by config.json, found F32",
        ),
        (
            changed_tensor("weight", lambda x: Fp8Array(x.codes, E5M2)),
            WEIGHT + "dtype F8_E4M3 by config.json, found F8_E5M2",
        ),
        (
            changed_tensor("weight", lambda x: Fp8Array(x.codes.T, E4M3FN)),
            WEIGHT + "shape (32, 64) by config.json, found (64, 32)",
        ),
        (
            changed_tensor("weight_zero_point", to(1, dtype="int8"), ours=False),
            "weight_zero_point': expected zeros: the layer is quantized symmetrically",
        ),
        (
            changed_config(lambda raw: raw.pop("quantization_config")),
            f"{CONFIG}: expected a JSON object, found nothing",
        ),
        (
            changed_config(lambda raw: raw.update(quantization_config=[1])),
            f"{CONFIG}: expected a JSON object, found [1]",
        ),
        (
            changed_config(lambda raw: raw["quantization_config"].update(ignore=[])),
            f"{CONFIG}: expected what the recipe in 'npfp8_config' comes to, found another",
        ),
        (
            changed_config(lambda raw: raw["npfp8_config"].update(version=2)),
            f"{OWN}: key 'version': expected 1, found 2",
        ),
        (
            changed_config(lambda raw: raw["npfp8_config"].update(recipe={"name": 3})),
            f"{OWN}: recipe: key 'name': expected str, found 3",
        ),
        (
            changed_config(
                lambda raw: raw["npfp8_config"]["recipe"]["linear"].update(migration=0.5)
            ),
            f"{OWN}: recipe e4m3: encoder.layer.0.attention.self.query: expected no migration",
        ),
        (
            changed_config(
                lambda raw: raw["npfp8_config"]["recipe"].update(overrides=[["nowhere", {}]])
            ),
            "config.json: recipe e4m3: override 'nowhere': expected to fit a site",
        ),
        (
            changed_config(lambda raw: raw["npfp8_config"].update(scales={})),
            f"{OWN}: key 'scales': expected a scale of 'encoder.layer.0.attention.scores:a', f",
        ),
        *(
            (
                changed_config(
                    lambda raw, value=value: raw["npfp8_config"]["scales"].update(
                        {"encoder.layer.0.attention.scores:a": value}
                    )
                ),
                f"{OWN}: key 'scales': key 'encoder.layer.0.attention.scores:a': expected a "
                f"positive, normal float32, found {value!r}",
            )
            for value in (float("nan"), float("inf"), 0.0, -1.0, 1e-40, 1e39, 1, "1")
        ),
        (
            changed_config(
                lambda raw: raw["npfp8_config"].update(
                    zero_points={"encoder.layer.0.attention.scores:a": 256}
                )
            ),
            f"{OWN}: key 'zero_points': key 'encoder.layer.0.attention.scores:a': expected 0..255",
        ),
        (
            changed_config(
                lambda raw: raw["npfp8_config"].update(
                    zero_points={"encoder.layer.0.attention.scores:a": 1}
                )
            ),
            f"{OWN}: key 'zero_points': expected no zero point of 'encoder.layer.0.attention.sc",
        ),
        (
            foreign(lambda config: config.update(quant_method="gptq")),
            f"{CONFIG}: key 'quant_method': expected 'compressed-tensors', 'modelopt' or 'fp8'",
        ),
        (foreign(lambda config: config.pop("quant_method")), "'quant_method': expected"),
        (
            foreign(lambda config: config.update(format="marlin-24")),
            f"{CONFIG}: key 'format': expected one of float-quantized, int-quantized, naive-quan",
        ),
        (
            foreign(lambda config: config.update(quantization_status="done")),
            f"{CONFIG}: key 'quantization_status': expected one of initialized, calibration, fro",
        ),
        (
            foreign(lambda config: config.update(kv_cache_scheme={"num_bits": 8})),
            f"{CONFIG}: key 'kv_cache_scheme': expected nothing: this is not implemented",
        ),
        (foreign(lambda config: config.update(ignore=3)), "'ignore': expected a list of names"),
        (
            foreign(lambda config: config.update(config_groups=[])),
            f"{CONFIG}: key 'config_groups': expected a JSON object, found []",
        ),
        (
            foreign(lambda config: group(config).update(targets=["re:("])),
            "key 'config_groups': expected a regular expression, found 're:('",
        ),
        *(
            (
                foreign(lambda config, x=x: group(config).update(targets=[x])),
                f"key 'config_groups': expected a regular expression, found {x!r}: {reason}",
            )
            for x, reason in (
                (r"re:(.)\1", "\\1 is not understood, at 3"),
                ("re:" + "a" * 1001, "expected at most 1000 characters, found 1001"),
                ("re:" + "(" * 500 + ")" * 500, "expected at most 20 groups within each other"),
                ("re:" + ".*(?=" * 7 + "-" + ")" * 7, "it takes too long to match"),
            )
        ),
        *(
            (foreign(lambda config, x=x: config.update(x)), f"{CONFIG}: {message}")
            for x, message in (
                (
                    {"sparsity_config": {"format": "sparse-24-bitmask"}},
                    "key 'sparsity_config': key 'format': expected 'dense', found 'sparse-24-bitma",
                ),
                ({"sparsity_config": [1]}, "key 'sparsity_config': expected a JSON object, found"),
                (
                    {"transform_config": {"config_groups": {"u": {}}}},
                    "key 'transform_config': key 'config_groups': expected nothing: this is not im",
                ),
                (
                    {"config_groups": {"W3A16": ["Linear"]}},
                    "key 'config_groups': key 'W3A16': expected a JSON object; or a list, of a gr",
                ),
            )
        ),
        (
            foreign(lambda config: group(config).update(weights=None)),
            "key 'group_0': key 'weights': expected a JSON object, found nothing",
        ),
        *(
            (
                foreign(lambda config, key=key, x=x: group(config)["weights"].update({key: x})),
                f"key 'group_0': key 'weights': key {key!r}: expected {expected}, found {x!r}",
            )
            for key, x, expected in (
                ("num_bits", 5, "4 or 6 or 8"),
                ("type", "bfloat", "'float' or 'int'"),
                ("symmetric", False, "True"),
                ("strategy", "tensor_group", "'tensor' or 'channel' or 'group' or 'block'"),
                ("dynamic", True, "False"),
                ("actorder", "group", "nothing or 'weight' without groups of integers"),
                ("actorder", 1, "nothing, 'weight', or 'group' for weights"),
                ("scale_dtype", "torch.float64", "one of float32, float16, bfloat16"),
                ("group_size", 128, "nothing, of strategy 'tensor'"),
                ("group_size", 2**31, "1..2147483647"),
                ("block_structure", [8, 8], "nothing: this is not implemented"),
                ("zero_point_in_float", True, "nothing: this is not implemented"),
            )
        ),
        (
            foreign(lambda config: group(config)["weights"].update(strategy="group")),
            "key 'weights': key 'group_size': expected at least 1, found nothing",
        ),
        (
            foreign(
                lambda config: group(config)["weights"].update(
                    strategy="block", block_structure=[128]
                )
            ),
            "key 'weights': key 'block_structure': expected two numbers of at least 1 and of 31",
        ),
        (
            foreign(lambda config: group(config)["input_activations"].update(dynamic=True)),
            "key 'input_activations': key 'strategy': expected 'token' or 'group', found 'tensor'",
        ),
        (
            foreign(
                lambda config: group(config).update(
                    weights={"type": "float", "strategy": "block", "block_structure": [8, 8]},
                    input_activations={"type": "float", "strategy": "token", "dynamic": True},
                )
            ),
            "key 'group_0': a and b: per-token and per-block scales must match: expected both per",
        ),
        (
            foreign(lambda config: group(config).update(targets=["classifier"])),
            "tensor 'bert.encoder.layer.0.attention.self.query.weight': expected dtype F32, F16 or",
        ),
        (
            foreign(lambda config: config.update(ignore=[])),
            "tensor 'bert.pooler.dense.weight_scale': expected shape (1,) or () or (1, 1) by conf",
        ),
    ],
)
def test_unreadable(change: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    change(folder)
    with pytest.raises(BertNumpyError) as caught:
        bert_numpy.load(folder)
    assert message in str(caught.value)
    assert str(folder) in str(caught.value)


#: What older and newer releases of compressed-tensors, llm-compressor and transformers write.
SPELLINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "frozen": lambda config: config.update(quantization_status="frozen"),
    "no status": lambda config: config.pop("quantization_status"),
    "initialized": lambda config: config.update(quantization_status="initialized"),
    "dense": lambda config: config.update(
        sparsity_config={"format": "dense", "global_sparsity": 0.0, "targets": [], "ignore": None}
    ),
    "no sparsity": lambda config: config.update(sparsity_config={}),
    "no transforms": lambda config: config.update(transform_config={"config_groups": {}}),
    "no transform": lambda config: config.update(transform_config={}),
    "ratio": lambda config: config.update(global_compression_ratio=1.5, version="0.12.2"),
    "naive": lambda config: config.update(format="naive-quantized"),
    "format per group": lambda config: (
        config.update(format="mixed-precision"),
        group(config).update(format="float-quantized"),
    )[0],
    "an observer": lambda config: group(config)["weights"].update(
        observer="minmax", observer_kwargs={"averaging_constant": 0.01}
    ),
    "an observer of inputs": lambda config: group(config)["input_activations"].update(
        observer="static_minmax", observer_kwargs={}
    ),
    "dtypes": lambda config: group(config)["weights"].update(
        scale_dtype="torch.bfloat16", zp_dtype="torch.float8_e4m3fn"
    ),
    "actorder": lambda config: group(config)["weights"].update(actorder="static"),
    "no actorder": lambda config: group(config)["weights"].update(actorder=False),
    "upper case": lambda config: group(config)["weights"].update(type="FLOAT", strategy="TENSOR"),
    "fewer keys": lambda config: group(config).update(
        weights={"type": "float"}, input_activations={"type": "float"}
    ),
    "preset": lambda config: config.update(config_groups={"fp8": ["Linear"]}),
    "names": lambda config: config.update(
        ignore=["bert.pooler.dense", "classifier", "re:.*lm_head", "re:^(?!.*dense|.*self).*"]
    ),
    "a class of all": lambda config: group(config).update(targets=["Module"]),
    "alternatives": lambda config: group(config).update(
        targets=[r"re:bert\.encoder\.layer\.\d+\.(attention|intermediate|output)(\.\w+)*$"]
    ),
    "a group without effect": lambda config: config["config_groups"].update(
        UNQUANTIZED=["classifier"]
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_releases(spelling: str, tmp_path: Path) -> None:
    model, folder = written(tmp_path, linear_layers(E4M3))
    foreign(SPELLINGS[spelling])(folder)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, replace(model, recipe=loaded.recipe))
    assert_same_outputs(loaded, model)


@pytest.mark.parametrize("method", ["compressed-tensors", "sparseml", None])
@pytest.mark.parametrize("nested", [False, True])
def test_the_old_key(method: str | None, nested: bool, tmp_path: Path) -> None:
    """``compression_config``, flat, or with the section and a sparsity_config inside."""
    model, folder = written(tmp_path, linear_layers(E4M3))

    def rename(raw: dict[str, Any]) -> None:
        config = raw.pop("quantization_config") | {"quant_method": method}
        del raw["npfp8_config"]
        inner = {"quantization_config": config, "sparsity_config": {"format": "dense"}}
        raw["compression_config"] = inner if nested else config

    changed_config(rename)(folder)
    assert stored_recipe(folder) is not None
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, replace(model, recipe=loaded.recipe))


def test_nested_section(tmp_path: Path) -> None:
    """The section is nested, and transformers unwraps it."""
    model, folder = written(tmp_path, linear_layers(E4M3))

    def nest(raw: dict[str, Any]) -> None:
        del raw["npfp8_config"]
        raw["quantization_config"] = {"quantization_config": raw["quantization_config"]}

    changed_config(nest)(folder)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, replace(model, recipe=loaded.recipe))


def test_of_several_groups_the_package_s_choice(tmp_path: Path) -> None:
    """A name before a pattern before a class; of patterns the first in the alphabet."""
    _, folder = written(tmp_path, linear_layers(E4M3))

    def regroup(config: dict[str, Any]) -> None:
        token = {"type": "float", "strategy": "token", "dynamic": True}
        one = {"weights": group(config)["weights"], "input_activations": None}
        config["config_groups"] = {
            "a": {**one, "targets": ["Linear"]},
            "b": {**one, "input_activations": token, "targets": ["re:.*query$", "re:bert.*key$"]},
            "c": {**one, "input_activations": {"type": "float"}, "targets": ["re:.*self.*"]},
            "d": {**one, "targets": ["bert.encoder.layer.0.attention.self.value"]},
        }

    foreign(regroup)(folder)
    recipe = bert_numpy.load(folder).recipe
    layer = "encoder.layer.0.attention"
    assert recipe.site(f"{layer}.self.query").a == Operand(E4M3FN, "token", dynamic=True)
    assert recipe.site(f"{layer}.self.key").a == Operand(E4M3FN)  # ".*self.*" < "bert.*key$"
    assert recipe.site(f"{layer}.self.value").a == Operand()
    assert recipe.site(f"{layer}.output.dense").a == Operand()


def test_codes_without_a_section(tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    changed_config(lambda raw: (raw.pop("quantization_config"), raw.pop("npfp8_config"))[0])(folder)
    with pytest.raises(BertNumpyError, match="found F8_E4M3: codes of a quantized weight, of whi"):
        bert_numpy.load(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {key.replace("key.weight", "key.weight_packed"): x for key, x in tensors.items()}
    save_file(
        {
            key: x.codes.astype(np.float32) if isinstance(x, Fp8Array) else x
            for key, x in renamed.items()
            if not key.endswith("weight_packed_scale")
        },
        folder / "model.safetensors",
    )
    with pytest.raises(BertNumpyError, match=r"but missing; '.*key.weight_packed' is of a quanti"):
        bert_numpy.load(folder)


@pytest.mark.parametrize("function", [bert_numpy.load, stored_recipe])
def test_more_layers_than_memory(function: Callable[[Path], Any], tmp_path: Path) -> None:
    _, folder = written(tmp_path)
    changed_config(lambda raw: raw.update(num_hidden_layers=10**9))(folder)
    message = r"config.json: key 'num_hidden_layers': expected fewer than the \d+ tensors that"
    with pytest.raises(BertNumpyError, match=message):
        function(folder)


def test_blocks_larger_than_memory(tmp_path: Path) -> None:
    """A block of more rows and columns than there are is the whole matrix."""
    folder, tensors = fine_grained(tmp_path, weight_block_size=[2**31 - 1, 2**31 - 1])
    one = {key: x[:1, :1] if key.endswith("_scale_inv") else x for key, x in tensors.items()}
    save_file(one, folder / "model.safetensors")
    model = bert_numpy.load(folder)
    name = "encoder.layer.1.output.dense.weight"
    stored = one[f"bert.{name}"]
    values = E4M3FN.values[stored.codes].astype(np.float32) * one[f"bert.{name}_scale_inv"]
    assert_same_bits(model.weights[name].dequantize(), values)


def test_readable_without_our_section(tmp_path: Path) -> None:
    """The layout describes the linear layers completely."""
    model, folder = written(tmp_path, linear_layers(E4M3))
    foreign()(folder)
    loaded = bert_numpy.load(folder)
    assert_same_models(loaded, replace(model, recipe=loaded.recipe))
    assert_same_outputs(loaded, model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_scheme": "static"}, "key 'activation_scheme': expected 'dynamic', found 'st"),
        ({"fmt": "e5m2"}, "key 'fmt': expected 'e4m3', found 'e5m2'"),
        ({"scale_fmt": "ue8m0"}, "key 'scale_fmt': expected 'float', found 'ue8m0'"),
        ({"weight_block_size": None}, "key 'weight_block_size': expected two numbers of at least"),
        ({"weight_block_size": [128, 0]}, "key 'weight_block_size': expected two numbers of at l"),
        ({"weight_block_size": [64, 128]}, "weight_scale_inv': expected shape (3, 2) by config.js"),
    ],
)
def test_unreadable_blocks(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = fine_grained(tmp_path, **config)
    with pytest.raises(BertNumpyError) as caught:
        bert_numpy.load(folder)
    assert message in str(caught.value)


# The command


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    folder = tmp_path / "SST-2"
    folder.mkdir()
    words = ("warm", "funny", "dull", "good", "bad", "very", "film", "plot")
    for name in ("train", "dev"):
        lines = [f"{words[i % 8]} {words[i * 3 % 7]}\t{i % 2}\n" for i in range(20)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    return folder


def run_json(*argv: str | Path, file: Path) -> dict[str, Any]:
    assert main([*map(str, argv), "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.parametrize("golden", [False, True])
def test_command(golden: bool, reviews: Path, tmp_path: Path, capsys: Any) -> None:
    source, out = write_checkpoint(tmp_path / "source", config_overrides=SMALL), tmp_path / "out"
    options = ["--task", "sst2", "--data", reviews, *(["--golden"] if golden else [])]
    report = run_json("quantize", source, out, *options, "--recipe", "e4m3", file=tmp_path / "q")
    direct = run_json("evaluate", source, *options, "--format", "e4m3", file=tmp_path / "d")
    assert report["rows"][1]["metrics"] == direct["metrics"]
    assert [row["format"] for row in report["rows"]] == ["fp32", "e4m3"]
    for arguments in ([], ["--format", "stored"]):
        stored = run_json("evaluate", out, *options, *arguments, file=tmp_path / "s")
        assert stored["format"] == "e4m3"
        for key in ("logits_sha256", "logits", "predictions", "metrics", "weight_bytes", "sites"):
            assert stored[key] == direct[key], key
    compared = run_json("compare", out, *options, file=tmp_path / "c")
    assert [(row["format"], row["flips"]) for row in compared["rows"]] == [("e4m3", 0)]
    card = (out / "README.md").read_text()
    row = report["rows"][1]
    assert (
        f"| e4m3 | {100 * row['metrics']['accuracy']:.2f} | {row['flips']} | "
        f"{row['relative_logit_error']:.4f} | {row['weight_bytes']:,} |"
    ) in card
    assert "# source, quantized: e4m3" in card
    assert str(tmp_path) not in card
    assert json.loads(card.split("```json\n")[1].split("```")[0])["name"] == "e4m3"
    info = run_json("info", out, file=tmp_path / "i")
    plain = run_json("info", source, file=tmp_path / "i")
    assert info["format"] == "e4m3"
    for key in ("parameters", "weight_bytes_fp32", "weight_bytes_8bit", "quantized_products"):
        assert info[key] == plain[key]
    answer = run_json("predict", out, "a warm film", file=tmp_path / "p")
    batch_ = bert_numpy.load_tokenizer(out).batch(["a warm film"])
    model = bert_numpy.load(out)
    model = bert_numpy.apply_recipe(model, model.recipe, golden=False)
    assert list(answer["logits"].values()) == model(**batch_).logits[0].tolist()


def test_saved_calibration(reviews: Path, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", config_overrides=SMALL)
    options = ["--task", "sst2", "--data", reviews, "--recipe", "int8"]
    saved = ["--save-calibration", tmp_path / "calibration"]
    run_json("quantize", source, tmp_path / "a", *options, *saved, file=tmp_path / "q")
    given = ["--calibration", tmp_path / "calibration"]
    (reviews / "train.tsv").unlink()
    run_json("quantize", source, tmp_path / "b", *options, *given, file=tmp_path / "q")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_refused_commands(reviews: Path, tmp_path: Path, capsys: Any) -> None:
    _, out = written(tmp_path)
    source = tmp_path / "source"
    options = ["--task", "sst2", "--data", str(reviews)]
    for argv, message in (
        (["evaluate", out, *options, "--format", "e4m3"], "out: expected format 'stored' of a qu"),
        (["evaluate", out, *options, "--format", "fp32"], "out: expected format 'stored' of a qu"),
        (["compare", out, *options, "--formats", "int8"], "out: expected format 'stored' of a qu"),
        (["predict", out, "a film", "--format", "int8"], "out: expected format 'stored' of a qua"),
        (["evaluate", source, *options, "--format", "stored"], "source: expected a quantized che"),
        (["compare", source, *options, "--formats", "e4m3,stored"], "source: expected a quantiz"),
        (
            ["quantize", out, tmp_path / "new", *options, "--recipe", "e4m3"],
            "out: expected a checkpoint that is not quantized yet",
        ),
        (
            ["quantize", source, out, *options, "--recipe", "e4m3"],
            "out already exists and is not empty. Choose",
        ),
        (
            ["quantize", source, tmp_path / "new", *options, "--recipe", "e4m3-smooth"],
            "recipe e4m3-smooth: encoder.layer.0.attention.self.query: expected no migration",
        ),
    ):
        assert main([str(argument) for argument in argv]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_card_of_a_hub_id() -> None:
    from bert_numpy.commands.model_card import model_card  # noqa: PLC0415

    row = {"metrics": {"pearson": 0.5}, "mean_abs_difference": 0.0, "relative_logit_error": 0.0}
    row["weight_bytes"] = 1000
    report = {"model": "owner/name", "task": "stsb", "examples": 3, "rows": [row, row]}
    report |= {"calibration_samples": 0, "golden": True}
    card = model_card(report, PRESETS["e4m3-token"], "owner/name")
    assert card.startswith('---\nbase_model: "owner/name"\n')
    assert "| e4m3-token | 50.00 | 0.0000 | 0.0000 | 1,000 |" in card
    assert "golden" in card


@pytest.mark.parametrize("name", ["e4m3", "int8"])
def test_a_real_checkpoint(
    name: str,
    checkpoints: Path,
    tmp_path: Path,
    torch: ModuleType,
    transformers: ModuleType,
    compressed_tensors: ModuleType,
) -> None:
    """transformers leaves out the attention's products and bfloat16: a little is between us."""
    source = checkpoints / "bert-tiny-sst2"
    model = quantized(source, PRESETS[name])
    save_quantized(model, source, tmp_path / "out")
    assert_same_models(bert_numpy.load(tmp_path / "out"), model)
    theirs = logits_of(loaded_by_transformers(transformers, tmp_path / "out"), torch)
    ours = model(**batch()).logits
    assert_same_bits(theirs.argmax(axis=1), ours.argmax(axis=1))
    assert distance(theirs, ours) < 0.06

"""The ONNX graph: valid, of any batch and length, and computing what the quantized model does."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from factories import VOCABULARY, write_checkpoint
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Operand, QuantizedModel, Recipe, SiteRecipe
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.commands.main import main
from bert_numpy.export.onnx import export_onnx, onnx_model
from bert_numpy.quantization.recipe import FORMATS
from npfp8 import E4M3FN, UINT8

E4M3 = PRESETS["e4m3"]
#: Weights by block; a head in 8 bits, by channel; both operands with zero points.
OTHERS = [
    Recipe("blocks", SiteRecipe(b=Operand(E4M3FN, "block", dynamic=True, block=16))),
    replace(E4M3, name="head", overrides=(("[pc]*", PRESETS["int8-channel"].linear),)),
    Recipe("affine", SiteRecipe(Operand(UINT8), Operand(UINT8, "channel"))),
    replace(E4M3, name="float32", arithmetic="float32"),
]
NOT_EXPORTED = ("int8-outliers", "int8-outliers-columns", "e4m3-block")


def batch(seed: int = 1, rows: int = 5, length: int = 11) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    mask = np.arange(length) < generator.integers(3, length + 1, rows)[:, None]
    return {
        "input_ids": generator.integers(0, len(VOCABULARY), (rows, length)),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": generator.integers(0, 2, (rows, length)),
    }


def quantized(folder: Path, recipe: Recipe, **config: Any) -> QuantizedModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = bert_numpy.load(write_checkpoint(folder, config_overrides={**shape, **config}))
    calibration = bert_numpy.calibrate(model, [batch(seed) for seed in range(3)])
    return bert_numpy.apply_recipe(model, recipe, calibration)


def run_reference(proto: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (a peer)

    names = [output.name for output in proto.graph.output]
    return dict(zip(names, ReferenceEvaluator(proto).run(names, inputs), strict=True))


def run_runtime(
    onnxruntime: ModuleType, proto: Any, inputs: dict[str, np.ndarray], optimized: bool
) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    if not optimized:
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, inputs)[0]
    return found


def distance(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


#: Products of dequantized float32 numbers are rounded where ours are exact, so a result
#: may be a neighbour in bfloat16, 2^-8 off, and a code of it another: a few of these.
TOLERANCE = 0.02


@pytest.mark.parametrize(
    "recipe",
    [*(x for name, x in PRESETS.items() if name not in NOT_EXPORTED), *OTHERS],
    ids=lambda recipe: recipe.name,
)
def test_logits(recipe: Recipe, tmp_path: Path, onnx: ModuleType, onnxruntime: ModuleType) -> None:
    model = quantized(tmp_path, recipe)
    proto = onnx_model(model)
    inputs = batch()
    expected = model(**inputs).logits
    reference = run_reference(proto, inputs)["logits"]
    assert distance(reference, expected) < TOLERANCE
    assert_same_bits(reference.argmax(axis=1), expected.argmax(axis=1))
    plain = run_runtime(onnxruntime, proto, inputs, optimized=False)
    assert distance(plain, expected) < TOLERANCE
    if recipe.linear.b.fmt is None or recipe.linear.b.fmt.code_dtype == np.uint8:
        # Of INT8 it makes integer kernels, which differ by processor; docs/onnx.md.
        if recipe.linear.b.fmt is not None:
            need_optimized_fp8(onnxruntime)
        optimized = run_runtime(onnxruntime, proto, inputs, optimized=True)
        assert distance(optimized, expected) < TOLERANCE


def need_optimized_fp8(onnxruntime: ModuleType) -> None:
    version = onnxruntime.__version__
    if tuple(map(int, version.split(".")[:2])) < (1, 32):
        pytest.skip(f"onnxruntime {version} makes integer products of FP8 codes, and refuses them")


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 128)])
def test_any_batch_and_length(shape: tuple[int, int], tmp_path: Path, onnx: ModuleType) -> None:
    model = quantized(tmp_path, E4M3)
    inputs = (
        batch(2, *shape) if shape[1] > 3 else {name: np.ones(shape, np.int64) for name in batch()}
    )
    found = run_reference(onnx_model(model), inputs)["logits"]
    assert distance(found, model(**inputs).logits) < TOLERANCE


def test_padding_does_not_matter(tmp_path: Path, onnx: ModuleType) -> None:
    """The mask gives padding an exact 0."""
    proto = onnx_model(quantized(tmp_path, E4M3))
    row = {name: np.ones((1, 6), np.int64) for name in batch()}
    row["input_ids"] = np.arange(5, 11)[None]
    padded = {name: np.pad(x, [(0, 0), (0, 9)]) for name, x in row.items()}
    padded["input_ids"][0, 6:] = 30  # any token, as it is masked
    logits = [run_reference(proto, inputs)["logits"] for inputs in (row, padded)]
    assert distance(*logits) < TOLERANCE


@pytest.mark.parametrize("name", ["e4m3", "bf16"])
def test_question_answering(name: str, tmp_path: Path, onnx: ModuleType) -> None:
    model = quantized(tmp_path, PRESETS[name], architectures=["BertForQuestionAnswering"])
    found, expected = run_reference(onnx_model(model), batch()), model(**batch())
    assert found.keys() == {"start_logits", "end_logits"}
    for key, logits in found.items():
        ours = getattr(expected, key)
        assert_same_bits(np.isneginf(logits), np.isneginf(ours))
        finite = np.isfinite(ours)
        assert distance(logits[finite], ours[finite]) < TOLERANCE


@pytest.mark.parametrize("act", ["gelu_new", "relu", "silu"])
def test_encoder_and_activations(act: str, tmp_path: Path, onnx: ModuleType) -> None:
    model = quantized(tmp_path, E4M3, architectures=["BertModel"], hidden_act=act)
    found, expected = run_reference(onnx_model(model), batch()), model(**batch())
    assert found.keys() == {"last_hidden_state", "pooler_output"}
    for key, values in found.items():
        assert distance(values, getattr(expected, key)) < TOLERANCE


def test_graph(tmp_path: Path, onnx: ModuleType) -> None:
    """Codes are initializers of FP8; every operand of every product of the encoder is quantized."""
    model = quantized(tmp_path, E4M3)
    export_onnx(model, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert proto.SerializeToString(deterministic=True) == (tmp_path / "model.onnx").read_bytes()
    assert [(item.domain, item.version >= 19) for item in proto.opset_import] == [("", True)]
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert len(initializers) == len(proto.graph.initializer)
    for name, weight in model.weights.items():
        tensor = initializers[name]
        if isinstance(weight, np.ndarray):
            values = onnx.numpy_helper.to_array(tensor)
            assert_same_bits(values, weight.T if name.endswith(HEADS) else weight)
        else:
            assert tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN
            assert tensor.raw_data == weight.codes.T.tobytes()
            assert onnx.numpy_helper.to_array(initializers[f"{name}_scale"]) == weight.scale
    makers = {node.output[0]: node for node in proto.graph.node}
    products = [node for node in proto.graph.node if node.op_type == "MatMul"]
    assert len(products) == 2 * 8 + 2
    for node in products[:-2]:
        assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}
    counts = Counter(node.op_type for node in proto.graph.node)
    assert counts["QuantizeLinear"] == 2 * (4 + 4)  # query, key and value share one
    assert counts["DequantizeLinear"] == 2 * (6 + 4 + 4)
    properties = {item.key: item.value for item in proto.metadata_props}
    assert json.loads(properties["recipe"])["name"] == "e4m3"


HEADS = ("pooler.dense.weight", "classifier.weight")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (PRESETS["int8-outliers"], "int8-outliers: .*query: expected no outlier_threshold in ONNX"),
        (PRESETS["e4m3-block"], "e4m3-block: .*query: expected no inputs by block in ONNX"),
        (
            Recipe("e3m4", SiteRecipe(b=Operand(FORMATS["E3M4"]))),
            "recipe e3m4: .*query: expected one of E4M3FN, .*, UINT8 in ONNX",
        ),
        (
            Recipe("u8", SiteRecipe(Operand(UINT8, "token", dynamic=True))),
            "u8: .*query: expected no dynamic scales with zero points in ONNX",
        ),
        (
            Recipe("p2", SiteRecipe(Operand(E4M3FN, "token", dynamic=True, power_of_two=True))),
            "p2: .*query: expected no dynamic scales of powers of two in ONNX",
        ),
        (
            replace(E4M3, name="fast", accumulate="hopper-fast"),
            "recipe fast: accumulate: expected 'exact' or 'float32' in ONNX, found 'hopper-fast'",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_not_exported(recipe: Recipe, message: str, tmp_path: Path, onnx: ModuleType) -> None:
    with pytest.raises(BertNumpyError, match=message):
        onnx_model(quantized(tmp_path, recipe))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BertNumpyError, match=r"pip install 'fp8-bert-numpy\[onnx\]'"):
        export_onnx(quantized(tmp_path, E4M3), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


# The command


def write_reviews(folder: Path) -> Path:
    folder.mkdir()
    words = ("warm", "funny", "dull", "good", "bad", "very", "film", "plot")
    lines = [f"{words[i % 8]} {words[i * 3 % 7]}\t{i % 2}\n" for i in range(20)]
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))
    return folder


def test_command(tmp_path: Path, onnx: ModuleType, capsys: Any) -> None:
    """From data, from a calibration file, and from a quantized checkpoint: the same file."""
    data = write_reviews(tmp_path / "SST-2")
    source = write_checkpoint(tmp_path / "source", config_overrides={"hidden_size": 32})
    saved = str(tmp_path / "calibration")
    files = [tmp_path / f"{i}.onnx" for i in range(3)]
    options = ["--task", "sst2", "--data", str(data), "--save-calibration", saved]
    recipe = ["--recipe", "e4m3"]
    assert main(["export-onnx", str(source), str(files[0]), *recipe, *options]) == 0
    given = ["--calibration", saved]
    assert main(["export-onnx", str(source), str(files[1]), *recipe, *given]) == 0
    folder = str(tmp_path / "fp8")
    assert main(["quantize", str(source), folder, *recipe, *options[:4], *given]) == 0
    assert main(["export-onnx", folder, str(files[2])]) == 0
    assert len({file.read_bytes() for file in files}) == 1
    capsys.readouterr()
    assert main(["export-onnx", str(source), str(files[0]), *recipe]) == 2
    assert "e4m3: expected --calibration FILE, or --task and --data" in capsys.readouterr().err
    missing = tmp_path / "missing" / "x.onnx"
    assert main(["export-onnx", str(source), str(missing), *recipe, *given]) == 2
    assert f"{missing}: cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["e4m3", "int8"])
def test_a_real_checkpoint(
    name: str, checkpoints: Path, tmp_path: Path, onnx: ModuleType, onnxruntime: ModuleType
) -> None:
    """The same predictions, also of the quantized checkpoint's model."""
    source = checkpoints / "bert-tiny-sst2"
    model, tokenizer = bert_numpy.load(source), bert_numpy.load_tokenizer(source)
    inputs = tokenizer.batch(["a warm and funny film", "two hours of my life, gone", "dull"])
    calibration = bert_numpy.calibrate(model, [inputs])
    fp8 = bert_numpy.apply_recipe(model, PRESETS[name], calibration)
    save_quantized(fp8, source, tmp_path / "out")
    stored = bert_numpy.load(tmp_path / "out")
    assert isinstance(stored, QuantizedModel)
    proto = onnx_model(stored)
    expected = fp8(**inputs).logits

    def check(logits: np.ndarray) -> None:
        assert_same_bits(logits.argmax(axis=1), expected.argmax(axis=1))
        assert distance(logits, expected) < TOLERANCE

    check(run_reference(proto, inputs)["logits"])
    check(run_runtime(onnxruntime, proto, inputs, optimized=False))
    if name == "e4m3":
        need_optimized_fp8(onnxruntime)
    check(run_runtime(onnxruntime, proto, inputs, optimized=True))

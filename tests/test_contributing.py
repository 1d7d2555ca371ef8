"""Adding a variant by CONTRIBUTING's steps: a toy of each kind, without changing the packages.

A toy is put into the table of its kind for one test, and compared with independent
arithmetic in the test.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import oracles
import pytest
from factories import VOCABULARY, relative, write_checkpoint, write_tensors, write_tokenizer
from oracles import FLOAT32, assert_same_bits, finite_codes, nearest
from watching import noted

import bert_numpy
from bert_numpy import (
    PRESETS,
    BertNumpyError,
    Model,
    Operand,
    Recipe,
    SiteRecipe,
    apply_recipe,
    calibrate,
    load_recipe,
    save_recipe,
)
from bert_numpy.checkpoints.quantized import save_quantized
from bert_numpy.commands.main import main
from bert_numpy.engines.engine import Engine
from bert_numpy.engines.site import Site
from bert_numpy.evaluation.job import prepare, run
from bert_numpy.export.onnx import onnx_model
from bert_numpy.kit.compare import verify
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.manifest import open_kit, write_kit
from bert_numpy.kit.operations import OPERATIONS
from bert_numpy.model import heads
from bert_numpy.model.architectures import ARCHITECTURES, HEADS, Architecture, Head
from bert_numpy.model.encoder import Pass, activation, linear
from bert_numpy.model.sites import expected_shapes, model_sites
from bert_numpy.quantization.observers import OBSERVERS, Statistics
from bert_numpy.quantization.presets import preset
from bert_numpy.tasks.glue import TASKS, GlueTask
from bert_numpy.tasks.registry import OTHERS
from bert_numpy.training.fp8_products import FP8Products
from bert_numpy.training.scalings import Scaling, Seen, TensorState, ratio_scale
from npfp8 import (
    ACCUMULATORS,
    E2M1,
    E4M3FN,
    POWER_RULES,
    RATIO_RULES,
    BlockFormat,
    FloatFormat,
    Format,
    QuantizedTensor,
    decode,
    encode,
    matmul,
    quantize,
)
from npfp8.blocks import (
    CODE_LAYOUTS,
    SCALE_LAYOUTS,
    CodeLayout,
    PowerRule,
    RatioRule,
    ScaleLayout,
)
from npfp8.blocks.exponents import Blocks
from npfp8.blocks.layouts import Group, Piece
from npfp8.formats import FORMATS
from npfp8.packed import pack_tensor, unpack_tensor

TINY = "bert-tiny-sst2"
IDS = np.array([[101, 2025, 3294, 6659, 102], [101, 2204, 3185, 102, 0]])
BATCH = {"input_ids": IDS, "attention_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])}
QUERY = "encoder.layer.0.attention.self.query"


def recipe_of(fmt: Format, name: str = "mine", **changes: Any) -> Recipe:
    """A recipe of one's own: both operands of every product of the encoder in a format."""
    site = SiteRecipe(Operand(fmt), Operand(fmt))
    return replace(Recipe(name, site, site, site), **changes)


def kit_of(model: Model, recipe: Recipe, inputs: dict[str, np.ndarray], folder: Path) -> Any:
    """A kit of a golden run of one sequence, written, read and computed again step by step."""
    calibration = calibrate(model, [inputs], golden=True)
    golden = apply_recipe(model, recipe, calibration, golden=True)
    write_kit(make_kit(("layer", "model"), golden, {}, [inputs]), folder)
    kit = open_kit(folder)
    found = {
        name: OPERATIONS[tensor.operation](kit.inputs(name), tensor.attributes)
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given"
    }
    assert len(found) > 50
    assert verify(kit, found).passed
    assert_same_bits(kit.arrays["model/0/logits"], golden(**inputs).logits)
    return kit


# A format: one FloatFormat

#: 7 bits: sign, 3 of the exponent, 3 of the mantissa; infinity, one NaN of each sign.
TOY = FloatFormat(3, 3, bias=2, has_infinity=True, nan_codes=tuple(
    code | sign for code in range(0x39, 0x40) for sign in (0, 0x40)
), name="TOY")  # fmt: skip


def toy_value(code: int) -> Fraction | float:
    """The value of a code, by its fields."""
    sign = -1 if code & 0x40 else 1
    exponent, mantissa = code >> 3 & 7, code & 7
    if exponent == 7:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return sign * Fraction(mantissa, 8) / 2
    return sign * (1 + Fraction(mantissa, 8)) * Fraction(2) ** (exponent - 2)


TOY_VALUES = [toy_value(code) for code in range(128)]
TOY_FINITE = [code for code, value in enumerate(TOY_VALUES) if isinstance(value, Fraction)]


def toy_code(x: float) -> int:
    """The nearest of all finite codes, of two the even one; saturating."""
    magnitude = min(TOY_FINITE[: len(TOY_FINITE) // 2], key=lambda code: (
        abs(TOY_VALUES[code] - abs(Fraction(x))), code % 2
    ))  # fmt: skip
    return magnitude | (0x40 if math.copysign(1, x) < 0 else 0)


def test_a_format() -> None:
    values = np.array([float(value) for value in TOY_VALUES])
    np.testing.assert_array_equal(TOY.values, values)
    assert (TOY.bits, TOY.max, TOY.min_subnormal) == (7, 30.0, 1 / 16)
    codes = np.arange(128, dtype=np.uint8)
    np.testing.assert_array_equal(decode(codes, TOY), values.astype(np.float32))
    finite = np.unique(values[np.isfinite(values)])
    middles = (finite[1:] + finite[:-1]) / 2
    around = [np.nextafter(middles.astype(np.float32), np.float32(to)) for to in (-99, 99)]
    random = np.random.default_rng(0).normal(0, 8, 500)
    x = np.concatenate([finite, middles, *around, random, [1e30, -1e30, 0.0, -0.0]])
    x = x.astype(np.float32)
    assert encode(x, TOY).tolist() == [toy_code(float(one)) for one in x]


def test_quantized_tensors_of_a_format() -> None:
    rng = np.random.default_rng(1)
    x, y = (rng.normal(0, 3, shape).astype(np.float32) for shape in ((5, 17), (17, 4)))
    a, b = quantize(x, TOY, np.float32(0.25)), quantize(y, TOY, np.float32(0.5))
    for given, q in ((x, a), (y, b)):
        expected = [toy_code(float(one / q.scale)) for one in given.flat]
        assert q.codes.reshape(-1).tolist() == expected
    rows = [[TOY_VALUES[code] for code in row] for row in a.codes]
    columns = [[TOY_VALUES[code] for code in column] for column in b.codes.T]
    sums = [[nearest(sum(p * q for p, q in zip(r, c, strict=True)), FLOAT32) for c in columns]
            for r in rows]  # fmt: skip
    assert_same_bits(matmul(a, b), np.float32(sums) * np.float32(0.125) + np.float32(0))


def test_a_recipe_with_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python at once; by name in files, and in kits, if it is in the table."""
    recipe = recipe_of(TOY)
    model = bert_numpy.load(TINY)
    quantized = apply_recipe(model, recipe, calibrate(model, [BATCH]))
    weight = quantized.weights[f"{QUERY}.weight"]
    assert isinstance(weight, QuantizedTensor)
    original = np.asarray(model.weights[f"{QUERY}.weight"])
    assert weight.scale == np.float32(np.abs(original).max()) / np.float32(30)
    expected = [toy_code(float(one / weight.scale)) for one in original[:4].flat]
    assert weight.codes[:4].reshape(-1).tolist() == expected
    logits = quantized(**BATCH).logits
    assert logits is not None
    assert np.isfinite(logits).all()
    save_recipe(recipe, tmp_path / "mine.json")
    with pytest.raises(BertNumpyError, match=r"expected null or one of E4M3FN, .* found 'TOY'"):
        load_recipe(tmp_path / "mine.json")
    monkeypatch.setitem(FORMATS, "TOY", TOY)
    assert preset(str(tmp_path / "mine.json")) == recipe
    kit = kit_of(model, recipe, {"input_ids": IDS[:1]}, tmp_path / "kit")
    assert "TOY" in {tensor.fmt for tensor in kit.tensors.values()}


# A block format: one BlockFormat. A rule of scales: one PowerRule

#: TOY in blocks of 5, with scales from 2^-7 to 2^8.
TOY_BLOCKS = {
    "element": TOY,
    "block": 5,
    "scale_format": FloatFormat(4, 0, bias=7, signed=False, has_zero=False, name="TOY scales"),
    "name": "TOY blocks",
}


def roomy(amax: np.ndarray, element: Format, scale_format: FloatFormat, source: str) -> Blocks:
    """The codes of the toy's scales, and the factors of blocks: twice the scale of floor."""
    exponents = np.where(amax == 0, -7, np.frexp(amax)[1] - np.frexp(element.max)[1] + 1)
    codes = np.clip(exponents + 7, 0, 15).astype(np.uint8)
    return Blocks(codes, np.exp2(7.0 - codes).astype(np.float32))


ROOMY = PowerRule("roomy", roomy, "twice the scale of floor")


def toy_exponent(block: np.ndarray) -> int:
    """The exponent of a block's scale by the toy rule, within the range of the scales."""
    largest = max(abs(Fraction(float(x))) for x in block)
    if not largest:
        return -7
    exponent = -4  # of 2^4, which is that of TOY's 30, and one more
    while Fraction(2) ** (exponent + 4) > largest:
        exponent -= 1
    while Fraction(2) ** (exponent + 5) <= largest:
        exponent += 1
    return min(max(exponent + 1, -7), 8)


def test_a_block_format_and_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POWER_RULES, "roomy", ROOMY)
    mine = BlockFormat(**TOY_BLOCKS, rule="roomy")
    rng = np.random.default_rng(8)
    x = (rng.normal(0, 1, (30, 17)) * 2.0 ** rng.integers(-14, 14, (30, 1))).astype(np.float32)
    x[3, 5:10] = 0
    q = quantize(x, mine)
    assert (q.fmt, q.block_format, q.scale_codes.shape) == (TOY, mine, (30, 4))  # type: ignore[union-attr]
    for row, codes, values, scales in zip(x, q.codes, q.dequantize(), q.scale_codes, strict=True):  # type: ignore[arg-type]
        for i, scale in enumerate(scales):
            part = slice(5 * i, 5 * i + 5)
            exponent = toy_exponent(row[part])
            assert scale == exponent + 7
            factor = Fraction(2) ** exponent
            expected = [toy_code(float(Fraction(float(one)) / factor)) for one in row[part]]
            assert codes[part].tolist() == expected
            assert values[part].tolist() == [float(TOY_VALUES[code] * factor) for code in expected]


def test_a_rule_of_scales_with_a_mantissa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales in E4M3: the largest number over 30; the smallest positive scale in place of 0."""
    plain = RatioRule(
        "plain",
        "multiplier",
        lambda g, largest, largest_scale, source="float32": np.float32(1),
        lambda b, t, largest, fmt, source: np.maximum(encode(b / np.float32(largest), fmt), 1),
        lambda s, t, largest, largest_scale: s,
        lambda s, t, largest, largest_scale: s,
        "s = E4M3(b / M), at least the smallest",
        divide=True,
    )
    monkeypatch.setitem(RATIO_RULES, "plain", plain)
    mine = BlockFormat(TOY, 3, E4M3FN, rule="plain", name="mine")
    x = np.random.default_rng(9).normal(0, 9, (20, 8)).astype(np.float32)
    x[4, 3:6] = 0
    q = quantize(x, mine)
    scales = [Fraction(float(value)) for value in decode(np.arange(127, dtype=np.uint8), E4M3FN)]
    for row, codes, values, found in zip(x, q.codes, q.dequantize(), q.scale_codes, strict=True):  # type: ignore[arg-type]
        for i, scale_code in enumerate(found):
            part = slice(3 * i, 3 * i + 3)
            ratio = Fraction(float(np.abs(row[part]).max() / np.float32(30)))
            assert scale_code == max(
                1, min(range(127), key=lambda code: (abs(scales[code] - ratio), code % 2))
            )
            s = float(scales[scale_code])
            assert codes[part].tolist() == [
                toy_code(float(one / np.float32(s))) for one in row[part]
            ]
            assert values[part].tolist() == [float(TOY_VALUES[code]) * s for code in codes[part]]


def test_a_recipe_with_a_block_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POWER_RULES, "roomy", ROOMY)
    mine = BlockFormat(**TOY_BLOCKS, rule="roomy")
    model = bert_numpy.load(TINY)
    recipe = recipe_of(mine)
    quantized = apply_recipe(model, recipe, calibrate(model, [BATCH]))
    weight = quantized.weights[f"{QUERY}.weight"]
    assert isinstance(weight, QuantizedTensor)
    assert weight.block_format == mine
    original = np.asarray(model.weights[f"{QUERY}.weight"])
    expected = [toy_exponent(one) + 7 for one in original[0, :125].reshape(25, 5)]
    assert np.moveaxis(weight.scale_codes, weight.axis, -1)[0, :25].tolist() == expected  # type: ignore[arg-type]
    logits, usual = quantized(**BATCH).logits, model(**BATCH).logits
    assert logits is not None
    assert usual is not None
    assert 0 < np.abs(logits - usual).max() < 2


# A layout of bytes: one CodeLayout, one ScaleLayout

#: TOY's seven bits: the sign at the top of a byte, the rest at its bottom.
APART = CodeLayout("apart", (Group(7, 1, 1, (Piece(0, 0, 0, 0, 6), Piece(0, 6, 0, 7, 1))),))

#: Pairs of rows, each pair block by block.
PAIRS = ScaleLayout("pairs", rows=(0, 2), blocks=(0,), order=(0, 2, 1))


def test_a_layout_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODE_LAYOUTS, "apart", APART)
    monkeypatch.setitem(SCALE_LAYOUTS, "pairs", PAIRS)
    rng = np.random.default_rng(9)
    q = quantize(rng.standard_normal((3, 12)).astype(np.float32), BlockFormat(**TOY_BLOCKS))
    packed = pack_tensor(q, "Apart", "pairs")
    expected = [[code % 64 + 128 * (code // 64) for code in row] for row in q.codes.tolist()]
    assert packed.codes.tolist() == expected
    first, second, third = q.scale_codes.tolist()  # type: ignore[union-attr]
    pairs = [*zip(first, second, strict=True), *((scale, 0) for scale in third)]
    assert packed.scale_codes.reshape(-1).tolist() == [scale for pair in pairs for scale in pair]
    back = unpack_tensor(packed)
    assert np.array_equal(back.codes, q.codes)
    assert np.array_equal(back.scale_codes, q.scale_codes)  # type: ignore[arg-type]


# An accumulator: one Accumulator

COARSE = replace(
    ACCUMULATORS["hopper-fast"],
    name="coarse",
    step=8,
    fraction_bits=7,
    precision=8,
    steps_to_float32=2,
)


def coarse_product(a: QuantizedTensor, b: QuantizedTensor) -> np.ndarray:
    """The product by whole numbers, as tests/oracles.py has it."""
    sums = oracles.fused_sums("E4M3FN", a.codes, "E4M3FN", b.codes, 8, 7, 2)
    product: np.ndarray = (sums + np.float32(0)) * (a.scale * b.scale)
    return product


def test_an_accumulator() -> None:
    rng = np.random.default_rng(2)
    codes = [rng.choice(finite_codes("E4M3FN"), shape).astype(np.uint8)
             for shape in ((6, 83), (83, 7))]  # fmt: skip
    codes[0][:3] = quantize(rng.normal(size=(3, 83)), E4M3FN).codes
    a, b = (QuantizedTensor(x, np.float32(1), E4M3FN) for x in codes)
    found = matmul(a, b, COARSE)
    assert_same_bits(found, coarse_product(a, b))
    assert (found != matmul(a, b, "hopper-fast")).any()


def test_a_recipe_with_an_accumulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BertNumpyError, match=r"accumulate: expected 'exact' or .* found 'coarse'"):
        recipe_of(E4M3FN, accumulate="coarse")
    monkeypatch.setitem(ACCUMULATORS, "coarse", COARSE)
    recipe = recipe_of(E4M3FN, accumulate="coarse", arithmetic="float32")
    save_recipe(recipe, tmp_path / "mine.json")
    assert load_recipe(tmp_path / "mine.json") == recipe
    model = bert_numpy.load(TINY)
    calibration = calibrate(model, [BATCH])
    quantized = apply_recipe(model, recipe, calibration)
    seen: list[tuple[Any, ...]] = []
    noted(quantized, lambda *product: seen.append(product))(**BATCH)
    a, weight, bias, found = next(rest for site, *rest in seen if site == QUERY)
    scale = quantized.plans[QUERY].a
    assert scale is not None
    expected = coarse_product(quantize(a, E4M3FN, scale.scale), weight) + bias
    assert_same_bits(found, expected)
    kit = kit_of(model, recipe, {"input_ids": IDS[:1]}, tmp_path / "kit")
    assert kit.tensors[f"model/0/{QUERY}/sum"].attributes["accumulate"] == "coarse"


# An observer: one function


def test_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(seen: Statistics, fmt: Format, percentile: float) -> tuple[float, float]:
        return seen.low / 2, seen.high / 2

    monkeypatch.setitem(OBSERVERS, "half", half)
    operand = Operand(E4M3FN, observer="half")
    recipe = Recipe("mine", SiteRecipe(operand, Operand(E4M3FN)))
    model = bert_numpy.load(TINY)
    calibration = calibrate(model, [BATCH])
    plan = apply_recipe(model, recipe, calibration).plans[QUERY]
    assert plan.a is not None
    largest = calibration.operands[f"{QUERY}:a"].absmax
    assert plan.a.scale == np.float32(largest / 2) / np.float32(448)


# A recipe: one Recipe


def test_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The named ones are the package's and cannot be changed; one's own is a value, or a file."""
    mine = recipe_of(E2M1).skipping("encoder.layer.0.*")
    with pytest.raises(TypeError):
        PRESETS["mine"] = mine  # type: ignore[index]
    save_recipe(mine, tmp_path / "mine.json")
    assert preset(str(tmp_path / "mine.json")) == mine
    model = bert_numpy.load(TINY)
    quantized = apply_recipe(model, mine, calibrate(model, [BATCH]))
    layers = {name.split(".")[2] for name in quantized.plans}
    assert layers == {"1"}
    kept = tmp_path / "calibration.safetensors"
    bert_numpy.save_calibration(calibrate(model, [BATCH]), kept)
    options = ["--format", str(tmp_path / "mine.json"), "--calibration", str(kept)]
    printed = []
    for more in (options, ["--format", "fp32"]):
        assert main(["predict", TINY, "a warm film", *more]) == 0
        printed.append(capsys.readouterr().out)
    assert "positive" in printed[0]
    assert printed[0] != printed[1]


# An engine: a class that changes some operations and leaves the rest to another


@dataclass(frozen=True, eq=False)
class UniformEngine(Engine[np.ndarray]):
    """Every token attends to all alike."""

    inner: Engine[np.ndarray]

    def softmax(self, x: np.ndarray) -> np.ndarray:
        return np.full_like(x, 1 / x.shape[-1])


def test_a_scaling() -> None:
    """The scale of the mean largest magnitude of all steps before, in training with FP8Products."""

    def choose(how: Scaling, state: TensorState, fmt: Format, absmax: float, _: float) -> float:
        return state.scale

    def follow(how: Scaling, state: TensorState, fmt: Format, seen: Seen) -> TensorState:
        mean = (state.factor * state.steps + seen.absmax) / (state.steps + 1)
        return replace(state, factor=mean, scale=ratio_scale(how, E4M3FN, mean))

    products = FP8Products(Scaling("mean", choose, follow))
    site = Site(QUERY, "linear", 0, 2)
    for step, size in enumerate((2.0, 4.0, 9.0, 1.0)):
        x = np.float32([[size, 0.3]])
        y, _ = products.forward(site, x, np.eye(2, dtype=np.float32))
        scale = np.float32(np.mean((2.0, 4.0, 9.0)[:step]) / 448 if step else 1)
        weight = np.float32(1 / 448 if step else 1)
        rounded = [decode(encode(z / s, E4M3FN), E4M3FN) for z, s in ((x, scale), (1, weight))]
        np.testing.assert_array_equal(y, rounded[0] * rounded[1] * (scale * weight))
        products = products.following()


def test_an_engine() -> None:
    """The engine acts as if all queries were 0, also around a quantized engine with counts."""
    model = bert_numpy.load(TINY)
    queries = {name: 0 * np.asarray(weight) if ".query." in name else weight
               for name, weight in model.weights.items()}  # fmt: skip
    calibration = calibrate(model, [BATCH])
    for recipe in (PRESETS["fp32"], PRESETS["e4m3"]):
        plain = apply_recipe(model, recipe, calibration)
        uniform = replace(plain, engine=lambda w, b, m=plain: UniformEngine(m.engine(w, b)))
        found = uniform(**BATCH)
        usual = plain(**BATCH)
        assert found.counts.keys() == usual.counts.keys()
        assert bool(found.counts) == (recipe.name == "e4m3")
        assert np.abs(found.logits - usual.logits).max() > 1e-3
        if recipe.name == "fp32":
            expected = Model(model.config, queries)(**BATCH).logits
            np.testing.assert_allclose(found.logits, expected, rtol=1e-5, atol=1e-6)


# An encoder family: one Architecture. A head: one Head and one function.

#: BERT under other names: no types, a position counted over tokens that are no padding, small
#: embeddings, RELU in the pooler, and a head of its own.
TIDY = Architecture(
    "Tidy",
    "tidy.",
    keys={
        "hidden_size": "width",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "inner_width",
        "embedding_size": "narrow_width",
    },
    fixed={"type_vocab_size": 0, "hidden_act": "silu"},
    defaults={"embedding_size": 128},
    names=(
        ("embeddings.word_embeddings", "words"),
        ("embeddings.position_embeddings", "places"),
        ("embeddings.LayerNorm", "words_norm"),
        ("embeddings_project", "widen"),
        ("encoder.layer.*.attention.self.query", "blocks.*.q"),
        ("encoder.layer.*.attention.self.key", "blocks.*.k"),
        ("encoder.layer.*.attention.self.value", "blocks.*.v"),
        ("encoder.layer.*.attention.output.dense", "blocks.*.o"),
        ("encoder.layer.*.attention.output.LayerNorm", "blocks.*.norm1"),
        ("encoder.layer.*.intermediate.dense", "blocks.*.up"),
        ("encoder.layer.*.output.dense", "blocks.*.down"),
        ("encoder.layer.*.output.LayerNorm", "blocks.*.norm2"),
        ("pooler.dense", "summary"),
    ),
    pooler_activation="relu",
    counts_positions=True,
)

WIDTH, NARROW, INNER, DEPTH, POSITIONS, PAD = 16, 8, 24, 2, 20, 3
TIDY_CONFIG = {
    "architectures": ["TidyForRanking"],
    "model_type": "tidy",
    "vocab_size": len(VOCABULARY),
    "width": WIDTH,
    "depth": DEPTH,
    "heads": 2,
    "inner_width": INNER,
    "narrow_width": NARROW,
    "max_position_embeddings": POSITIONS,
    "layer_norm_eps": 1e-6,
    "pad_token_id": PAD,
    "id2label": {"0": "low", "1": "middle", "2": "high"},
}


def ranking(run: Pass[Any], pooled: Any) -> dict[str, Any]:
    """Logits of the labels, by way of one more layer."""
    inner = activation(run, "tanh", linear(run, "ranker.inner", pooled, 6))
    return {"logits": linear(run, "ranker.out", inner, len(run.config.labels))}


def tidy_tensors() -> dict[str, np.ndarray]:
    """Random parameters under the names of the toy's files."""
    rng = np.random.default_rng(4)
    shapes: dict[str, tuple[int, ...]] = {
        "tidy.words.weight": (len(VOCABULARY), NARROW),
        "tidy.places.weight": (POSITIONS, NARROW),
    }
    layers = {"widen": (WIDTH, NARROW), "summary": (WIDTH, WIDTH)}
    norms = {"words_norm": NARROW}
    for i in range(DEPTH):
        layers |= {f"blocks.{i}.{name}": (WIDTH, WIDTH) for name in "qkvo"}
        layers |= {f"blocks.{i}.up": (INNER, WIDTH), f"blocks.{i}.down": (WIDTH, INNER)}
        norms |= {f"blocks.{i}.norm1": WIDTH, f"blocks.{i}.norm2": WIDTH}
    named = {f"tidy.{name}": shape for name, shape in layers.items()}
    named |= {"ranker.inner": (6, WIDTH), "ranker.out": (3, 6)}
    for name, shape in named.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, size in norms.items():
        shapes |= {f"tidy.{name}.weight": (size,), f"tidy.{name}.bias": (size,)}
    return {
        name: (("norm" in name and "weight" in name) + rng.normal(0, 0.3, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def tidy_logits(tensors: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """The toy's forward pass of one sequence without padding, in float64: (labels,)."""
    w = {name: x.astype(np.float64) for name, x in tensors.items()}

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    places = np.where(ids == PAD, PAD, PAD + np.cumsum(ids != PAD))
    x = w["tidy.words.weight"][ids] + w["tidy.places.weight"][places]
    x = dense("tidy.widen", norm("tidy.words_norm", x))
    for i in range(DEPTH):
        block, d = f"tidy.blocks.{i}", WIDTH // 2
        q, k, v = (dense(f"{block}.{name}", x) for name in "qkv")
        parts = []
        for head in (slice(0, d), slice(d, None)):
            scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(d))
            parts.append(scores / scores.sum(-1, keepdims=True) @ v[:, head])
        x = norm(f"{block}.norm1", x + dense(f"{block}.o", np.concatenate(parts, -1)))
        inner = dense(f"{block}.up", x)
        x = norm(f"{block}.norm2", x + dense(f"{block}.down", inner / (1 + np.exp(-inner))))
    pooled = np.maximum(dense("tidy.summary", x[0]), 0)
    return dense("ranker.out", np.tanh(dense("ranker.inner", pooled)))


@pytest.fixture
def tidy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the toy family with the toy head, both in their tables."""
    monkeypatch.setitem(ARCHITECTURES, "tidy", TIDY)
    monkeypatch.setitem(HEADS, "Ranking", Head("ranking", pooler=True))
    monkeypatch.setitem(heads.OF_POOLED, "ranking", ranking)
    folder = tmp_path / "tidy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TIDY_CONFIG))
    write_tokenizer(folder)
    write_tensors(folder, tidy_tensors())
    return folder


def tidy_batch() -> dict[str, np.ndarray]:
    """Rows of several lengths; a token in the middle has the padding's number."""
    mask = np.array([[1] * 9, [1] * 5 + [0] * 4, [1] * 7 + [0] * 2])
    ids = np.random.default_rng(5).integers(5, len(VOCABULARY), mask.shape)
    ids[0, 4] = PAD
    return {"input_ids": np.where(mask, ids, PAD), "attention_mask": mask}


def test_a_family_and_a_head(tidy: Path) -> None:
    model, batch = bert_numpy.load(tidy), tidy_batch()
    assert model.config.head.name == "ranking"
    assert list(expected_shapes(model.config))[-4:] == [
        *("ranker.inner.weight", "ranker.inner.bias", "ranker.out.weight", "ranker.out.bias")
    ]
    assert model_sites(model)[-2:] == ["ranker.inner", "ranker.out"]
    found = model(**batch).logits
    assert found is not None
    for ids, mask, logits in zip(*batch.values(), found, strict=True):
        expected = tidy_logits(tidy_tensors(), ids[mask != 0])
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["fp32", "e4m3", "int8-smooth", "e4m3-token"])
def test_a_family_quantized(recipe: str, tidy: Path, tmp_path: Path) -> None:
    """Also golden, where a batch changes nothing, and as a checkpoint."""
    model, batch = bert_numpy.load(tidy), tidy_batch()
    calibration = calibrate(model, [batch], golden=True)
    plain = model(**batch)
    golden = apply_recipe(model, PRESETS[recipe], calibration, golden=True)
    fast = apply_recipe(model, PRESETS[recipe], calibration)
    found = golden(**batch)
    assert found.logits is not None
    states, others = found.last_hidden_state, plain.last_hidden_state
    error = np.linalg.norm(states - others) / np.linalg.norm(others)
    assert error < 1e-6 if recipe == "fp32" else 0.01 < error < 0.15
    assert relative(fast(**batch).last_hidden_state, states) < 0.02
    for row, (ids, mask) in enumerate(zip(*batch.values(), strict=True)):
        alone = golden(ids[None, mask != 0])
        assert alone.logits is not None
        assert_same_bits(alone.logits[0], found.logits[row])
    if recipe in ("e4m3", "e4m3-token"):
        assert sum("encoder.layer.1." in operand for operand in found.counts) == 10
        save_quantized(golden, tidy, tmp_path / "written")
        again = apply_recipe(loaded := bert_numpy.load(tmp_path / "written"), loaded.recipe,
                             golden=True)  # type: ignore[attr-defined]  # fmt: skip
        assert_same_bits(again(**batch).logits, found.logits)


@pytest.mark.parametrize("recipe", ["fp32", "e4m3"])
def test_a_family_in_onnx(recipe: str, tidy: Path, onnx: ModuleType) -> None:
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 (a peer)

    model, batch = bert_numpy.load(tidy), tidy_batch()
    quantized = apply_recipe(model, PRESETS[recipe], calibrate(model, [batch]))
    inputs = batch | {"token_type_ids": np.zeros_like(batch["input_ids"])}
    proto = onnx_model(quantized)
    (found,) = ReferenceEvaluator(proto).run(["logits"], inputs)
    expected = quantized(**batch).logits
    assert expected is not None
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < (1e-5 if recipe == "fp32" else 0.02)


@pytest.mark.parametrize("recipe", ["bf16", "e4m3", "int8-asymmetric"])
def test_a_kit_of_a_family(recipe: str, tidy: Path, tmp_path: Path) -> None:
    ids = tidy_batch()["input_ids"][:1]
    kit = kit_of(bert_numpy.load(tidy), PRESETS[recipe], {"input_ids": ids}, tmp_path / "kit")
    steps = ("embeddings_project/product", "encoder.layer.1.output.dense/product")
    for step in (*steps, "ranker.inner/product", "ranker.inner/tanh"):
        assert f"model/0/{step}" in kit.tensors


# A task: one GlueTask, or a class of one's own with a task's attributes

LENGTHS = GlueTask(
    "length", "Length", ("accuracy", "f1"), ("text",), "label", ("short", "long"), fields=("text",)
)


@pytest.mark.parametrize("table", [TASKS, OTHERS], ids=["GLUE's", "the others"])
def test_a_task(
    table: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(table, "length", LENGTHS)
    (tmp_path / "Length").mkdir()
    texts = ["a film", "warm", "a warm and funny film , and a very good plot", "dull", "bad actor"]
    labels = [0, 0, 1, 0, 1]
    rows = "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True))
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "Length" / name).write_text(f"text\tlabel\n{rows}")
    folder = write_checkpoint(tmp_path / "model", labels=("long", "short"))
    job = prepare(folder, "length", tmp_path)
    plain, quantized = run(job, [PRESETS["fp32"], PRESETS["e4m3"]])
    batch = bert_numpy.load_tokenizer(folder).batch(texts)
    logits = bert_numpy.load(folder)(**batch).logits
    assert logits is not None
    expected = 1 - logits.argmax(axis=1)  # the model names the long ones first
    assert plain.predictions.tolist() == expected.tolist()
    assert plain.metrics["accuracy"] == np.mean(expected == labels)
    assert quantized.counts
    options = ["--task", "length", "--data", str(tmp_path), "--format", "fp32"]
    assert main(["evaluate", str(folder), *options]) == 0
    assert "f1" in capsys.readouterr().out

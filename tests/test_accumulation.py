"""Accumulators in recipes, in golden runs and kits; and their names, from a candidate alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bert_numpy
import npfp8
from bert_numpy import PRESETS, BertNumpyError, Operand, Recipe, SiteRecipe, apply_recipe, calibrate
from bert_numpy.commands.main import main
from bert_numpy.kit import open_kit, verify
from bert_numpy.kit.accumulation import Products
from bert_numpy.kit.defects import ACCUMULATED
from bert_numpy.kit.evaluation import Evaluation
from bert_numpy.kit.export import make_kit
from bert_numpy.kit.manifest import Kit
from bert_numpy.kit.operations import OPERATIONS
from bert_numpy.quantization.recipe import BFLOAT16_ACCUMULATORS
from bert_numpy.quantization.recipe_json import recipe_json, recipe_of
from npfp8 import ACCUMULATORS, BlockFormat
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import as_format

IDS = {"input_ids": np.array([[101, 2025, 3294, 6659, 2000, 3737, 102]])}
SUMS = ("sum", "block_sum", "product")


@pytest.fixture(scope="module")
def kit() -> Kit:
    return open_kit()


@pytest.fixture(scope="module")
def model() -> bert_numpy.Model:
    return bert_numpy.load("bert-tiny-sst2")


def alike(fmt: Any, **more: Any) -> Recipe:
    site = SiteRecipe(Operand(fmt), Operand(fmt))
    return Recipe("mine", site, site, site, **more)


def alike_both(operand: Operand, **more: Any) -> Recipe:
    site = SiteRecipe(operand, operand)
    return Recipe("mine", site, site, site, **more)


def golden(model: bert_numpy.Model, recipe: Recipe) -> Any:
    return apply_recipe(model, recipe, calibrate(model, [IDS], golden=True), golden=True)


def operand_of(name: str) -> Any:
    """A format that an accumulator takes; E4M3FN if it takes all."""
    formats = ACCUMULATORS[name].formats
    return "E4M3FN" if formats is None else formats[-1]


# Recipes


TAKING_CODES = [x.name for x in ACCUMULATORS.values() if x.formats is None or x.formats]


@pytest.mark.parametrize("name", TAKING_CODES)
def test_every_accumulator_multiplies_a_model(name: str, model: bert_numpy.Model) -> None:
    """Through JSON; with the sums that npfp8 makes of the operands; and a golden kit explains it.

    float16 overflows with scales of absmax, which is an error that names the site.
    """
    recipe = alike(operand_of(name), accumulate=name)
    recipe = recipe_of(json.loads(recipe_json(recipe)))
    assert recipe.accumulate == name
    if not ACCUMULATORS[name].reproducible:
        with pytest.raises(BertNumpyError, match="golden products are accumulated"):
            golden(model, recipe)
        return
    quantized = golden(model, recipe)
    if name.endswith("float16") and ACCUMULATORS[name].precision == 11:
        try:
            quantized(**IDS)
        except BertNumpyError as error:
            assert "expected finite numbers, found inf" in str(error)  # noqa: PT017
            return
    made = make_kit(("layer", "model"), quantized, {}, [IDS])
    place = "model/0/encoder.layer.0.intermediate.dense/sum"
    attributes = made.tensors[place].attributes
    assert attributes.get("accumulate", "exact") == name
    assert made.arrays["model/0/logits"].tobytes() == quantized(**IDS).logits.tobytes()


@pytest.mark.parametrize("name", BFLOAT16_ACCUMULATORS)
@pytest.mark.parametrize("preset", ["bf16", "e4m3", "e4m3-weights", "int8-outliers"])
def test_the_rest_has_an_accumulator(name: str, preset: str, model: bert_numpy.Model) -> None:
    """Every product that is not of codes is the accumulator's, of operands in bfloat16."""
    recipe = replace(PRESETS[preset], accumulate_rest=name)
    assert recipe_of(json.loads(recipe_json(recipe))) == recipe
    assert f"accumulate_rest {name}" in repr(recipe)
    quantized = golden(model, recipe)
    made = make_kit(("layer", "model"), quantized, {}, [IDS])
    products = [n for n, t in made.tensors.items() if t.operation == "product"]
    assert {"model/0/pooler.dense/product", "model/0/classifier/product"} <= set(products)
    for place in products:
        inputs = made.inputs(place)
        a, b = (np.ascontiguousarray(inputs[x]) for x in ("a", "b"))
        found = npfp8.matmul_16bit(round_to_bfloat16(a), round_to_bfloat16(b), name)
        found = found + inputs["bias"] if "bias" in inputs else found
        assert found.tobytes() == made.arrays[place].tobytes()
    fast = apply_recipe(model, recipe, calibrate(model, [IDS]))
    assert np.abs(fast(**IDS).logits - quantized(**IDS).logits).max() < 0.1
    for profile in ("bit-exact", "accumulate-order"):
        every = {n: x for n, x in made.arrays.items() if made.tensors[n].operation != "given"}
        assert verify(made, every, profile).passed


@pytest.mark.parametrize("block", [16, 48])
@pytest.mark.parametrize("name", ["exact", "block-sums", "bfloat16"])
def test_sums_of_blocks_by_an_accumulator(name: str, block: int, model: bert_numpy.Model) -> None:
    """Where scales vary along K, each block has its own sum, the accumulator's, before the scales.

    In the kit of a golden run each sum is that of the block's codes alone, and the product is
    what the model went on with; for the case of exact sums, by float64, which has them.
    """
    operand = Operand("E4M3FN", "block", block=block)
    quantized = golden(model, alike_both(operand, accumulate=name))
    made = make_kit(("layer", "model"), quantized, {}, [IDS])
    place = "model/0/encoder.layer.0.intermediate.dense/sum"
    attributes = made.tensors[place].attributes
    assert (attributes["block"], attributes.get("accumulate", "exact")) == (block, name)
    a, b = made.inputs(place).values()
    runs = range(0, a.shape[-1], block)
    assert made.arrays[place].shape == (len(runs), a.shape[0], b.shape[1])
    for start, found in zip(runs, made.arrays[place], strict=True):
        x, y = a[:, start : start + block], b[start : start + block]
        one = np.float32(1)
        operands = (npfp8.QuantizedTensor(z, one, npfp8.E4M3FN) for z in (x, y))
        assert found.tobytes() == npfp8.matmul(*operands, name).tobytes()
        if name == "exact":
            exact = npfp8.decode(x, npfp8.E4M3FN).astype(np.float64) @ npfp8.decode(y, npfp8.E4M3FN)
            assert found.tobytes() == exact.astype(np.float32).tobytes()
    assert made.arrays["model/0/logits"].tobytes() == quantized(**IDS).logits.tobytes()
    every = {n: x for n, x in made.arrays.items() if made.tensors[n].operation != "given"}
    assert verify(made, every).passed
    # Of one block each, sums of blocks are exact ones; another accumulator's have another name.
    other = "exact" if name == "bfloat16" else "bfloat16"
    how = {**attributes, "accumulate": other}
    (first, *_) = verify(made, {place: OPERATIONS["sum"](made.inputs(place), how)}).differences
    assert ACCUMULATED[other].name in first.causes


@pytest.mark.parametrize("name", ["hopper", "hopper-fast"])
def test_blocks_that_an_accumulator_does_not_take(name: str, kit: Kit) -> None:
    """A sum of a kit has the limits of matmul: Hopper has one scale for the whole sum."""
    place = "operator/gemm-e4m3/sum"
    how = {**kit.tensors[place].attributes, "accumulate": name, "block": 16}
    with pytest.raises(ValueError, match="expected scales that do not vary along K, found blocks"):
        OPERATIONS["sum"](kit.inputs(place), how)


def test_a_file_without_an_accumulator_for_the_rest_stays_as_it_was() -> None:
    assert "accumulate_rest" not in recipe_json(PRESETS["e4m3"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (alike("E4M3FN", accumulate="cdna3"), "'cdna3': expected E4M3FNUZ or E5M2FNUZ, found E4M3"),
        (alike("E4M3FNUZ", accumulate="hopper"), "'hopper': expected E4M3FN or E5M2, found E4M3FN"),
        (alike("MXFP4", accumulate="blackwell"), "'blackwell': expected one scale per tensor or"),
        (
            alike("E2M1", accumulate="blackwell-mxf4"),
            "'blackwell-mxf4': expected MXFP4, found E2M1",
        ),
        (alike("NVFP4", accumulate="blackwell-mxf4"), "expected MXFP4, found NVFP4"),
        (alike("MXFP8_E4M3", accumulate="blackwell-mxf4"), "expected MXFP4, found MXFP8"),
        (
            alike("MXFP4", accumulate="blackwell-mxf4nvf4"),
            "expected NVFP4 or MXFP4 in blocks of 16",
        ),
        (
            alike("E4M3FN", accumulate="hopper-16bit"),
            "'hopper-16bit': expected float16 or bfloat16, found E4M3FN; for products that are "
            "not of codes, name it in accumulate_rest",
        ),
    ],
)
def test_operands_that_an_accumulator_does_not_take(
    recipe: Recipe, message: str, model: bert_numpy.Model
) -> None:
    with pytest.raises(BertNumpyError) as caught:
        golden(model, recipe)
    text = str(caught.value)
    assert text.startswith("recipe mine: encoder.layer.0.attention.self.query:a: accumulate '")
    assert message in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"accumulate_rest": "hopper"}, "accumulate_rest: expected None or 'hopper-16bit' or"),
        ({"accumulate_rest": "hopper-16bit-float16"}, "found 'hopper-16bit-float16'"),
        ({"accumulate_rest": 5}, "found 5"),
        (
            {"accumulate_rest": "hopper-16bit", "arithmetic": "float32"},
            "'hopper-16bit': expected the arithmetic 'bfloat16' with it, found 'float32'",
        ),
    ],
)
def test_accumulators_that_the_rest_cannot_have(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BertNumpyError) as caught:
        Recipe("mine", **fields)
    assert message in str(caught.value)


def test_formats_of_ones_own() -> None:
    """MX in blocks of 16 is an object in JSON; each of Blackwell's MX formats fits."""
    fmt = {"element": "E2M1", "block": 16, "scale_format": "E8M0FNU", "name": "four"}
    site = {"a": {"fmt": fmt}, "b": {"fmt": fmt}}
    recipe = recipe_of({"name": "mine", "linear": site, "accumulate": "blackwell-mxf4nvf4"})
    recipe.check_accumulation(["encoder.layer.0.output.dense"])
    for known in ACCUMULATORS["blackwell-mxf8f6f4"].formats or ():
        assert isinstance(known, BlockFormat)
        one = alike(known, accumulate="blackwell-mxf8f6f4")
        one.check_accumulation(["encoder.layer.0.output.dense"])


# Commands


def test_commands_take_both_accumulators(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "kit"
    sums = ["--accumulate", "blackwell", "--accumulate-rest", "blackwell-16bit"]
    texts = tmp_path / "inputs.json"
    texts.write_text('["a warm film"]')
    export = ["golden", "export", "bert-tiny-sst2", str(out), "--level", "model", "--level"]
    assert main([*export, "layer", "--inputs", str(texts), *sums]) == 0
    made = open_kit(out)
    assert made.header["recipe"]["accumulate"] == "blackwell"
    assert made.tensors["model/0/classifier/product"].attributes == {
        "accumulate": "blackwell-16bit"
    }
    report = tmp_path / "report.json"
    predict = ["predict", "bert-tiny-sst2", "a warm film", "--format", "e4m3", "--json"]
    assert main([*predict, str(report), *sums]) == 0
    found = json.loads(report.read_text())
    assert (found["accumulate"], found["accumulate_rest"]) == ("blackwell", "blackwell-16bit")
    capsys.readouterr()
    command = ["predict", "bert-tiny-sst2", "a film", "--format", "fp32", *sums[2:]]
    assert main(command) == 2
    assert (
        "--accumulate-rest: expected a format with bfloat16, found fp32" in capsys.readouterr().err
    )


# The kit names an accumulator


def planted(kit: Kit, name: str, *levels: str) -> dict[str, np.ndarray]:
    evaluation = Evaluation(kit, lambda _: None, ACCUMULATED[name], "", np.zeros(0))
    with np.errstate(all="ignore"):
        return {
            place: evaluation.value(place)
            for place, tensor in kit.tensors.items()
            if tensor.operation != "given" and tensor.level in levels
        }


#: Accumulators with the same numbers, or whose sums are the same for these operands.
ALIKE = {"hopper-16bit": {"blackwell-16bit"}, "blackwell-16bit": {"hopper-16bit"}}


@pytest.mark.parametrize("name", [name for name in ACCUMULATED if name != "exact"])
@pytest.mark.parametrize("what", ["all", "results"])
def test_each_planted_accumulator_is_named(name: str, what: str, kit: Kit) -> None:
    """From all tensors of the operators' cases, and from their results in bfloat16 alone."""
    found = planted(kit, name, "operator")
    if what == "results":
        blocks = {p for p in found if p.startswith("operator/block-gemm-") and p.endswith("sum")}
        found = {p: x for p, x in found.items() if p.endswith("/result") or p in blocks}
    report = verify(kit, found)
    products = report.products
    assert bool(products) != report.passed  # no result in bfloat16 may differ
    assert products or what == "results"
    for item in products:
        assert name in item.accumulators
        assert not item.told_apart_by
        if what == "all":
            assert set(item.accumulators) - {name} <= ALIKE.get(name, set())


def test_nothing_is_said_of_the_kits_own_sums(kit: Kit) -> None:
    """Nor of another fault, after which the products are right for the operands they had."""
    assert verify(kit, kit.arrays).products == ()
    name = "model/0/encoder.layer.0.attention.self.query"
    codes = kit.arrays[f"{name}/a"].copy()
    codes[2, 5] ^= 1
    inputs = kit.inputs(f"{name}/sum")
    how = kit.tensors[f"{name}/sum"].attributes
    fmt = how["a"]["fmt"]
    a = npfp8.QuantizedTensor(codes, np.float32(1), as_format(fmt))
    b = npfp8.QuantizedTensor(inputs["b"], np.float32(1), as_format(fmt))
    found = {f"{name}/a": codes, f"{name}/sum": npfp8.matmul(a, b)}
    report = verify(kit, found)
    assert not report.passed
    assert report.products == ()
    broken = kit.arrays[f"{name}/sum"].copy()
    broken[0, 0] *= 2
    assert verify(kit, {f"{name}/sum": broken}).products == ()


def test_what_would_tell_several_apart(kit: Kit) -> None:
    """A case of few products has several explanations; the report asks for one that has one."""
    found = planted(kit, "hopper-fast", "operator")
    place = "operator/gemm-e4m3/sum"
    (item,) = verify(kit, {place: found[place]}).products
    assert {"hopper", "hopper-fast"} <= set(item.accumulators)
    assert item.told_apart_by
    asked = {name: found[name] for name in (place, *item.told_apart_by)}
    (item,) = verify(kit, asked).products
    assert item.accumulators == ("hopper-fast",)
    text = verify(kit, asked).text()
    assert f"products of E4M3FN x E4M3FN ({item.tensors} tensors): those of hopper-fast" in text
    assert verify(kit, asked).as_json()["products"][0]["accumulators"] == ("hopper-fast",)


@pytest.mark.parametrize("name", ["ada", "hopper-fast", "hopper", "blackwell"])
def test_a_whole_run_is_named(name: str, model: bert_numpy.Model) -> None:
    """A model that ran with an accumulator and went on with what it got, against exact sums."""
    rest = {"ada": "ampere-16bit", "blackwell": "blackwell-16bit"}.get(name, "hopper-16bit")
    made = {
        sums: make_kit(
            ("layer", "model"), golden(model, replace(PRESETS["e4m3"], **how)), {}, [IDS]
        )
        for sums, how in {"exact": {}, "other": {"accumulate": name}}.items()
    }
    kit, other = made["exact"], made["other"]
    found: Mapping[str, Any] = {
        place: other.arrays[place]
        for place, tensor in kit.tensors.items()
        if tensor.operation != "given"
    }
    (item,) = verify(kit, found).products
    assert isinstance(item, Products)
    assert name in item.accumulators
    # The reverse: the kit is of the accumulator, and the candidate adds exactly.
    reverse = {place: kit.arrays[place] for place in found}
    (item,) = verify(other, reverse).products
    assert "exact" in item.accumulators
    products = replace(PRESETS["bf16"], accumulate_rest=rest)
    plain = make_kit(("layer", "model"), golden(model, products), {}, [IDS])
    outputs = {p: x for p, x in plain.arrays.items() if plain.tensors[p].operation == "product"}
    changed = replace(products, accumulate_rest="cdna3-16bit")
    right = make_kit(("layer", "model"), golden(model, changed), {}, [IDS])
    sources = {p: plain.arrays[p] for p, t in plain.tensors.items() if t.operation != "given"}
    (item,) = verify(right, {**sources, **outputs}).products
    assert rest in item.accumulators


def test_cases_tell_accumulators_apart(kit: Kit) -> None:
    """Every two that take the operands, unless their sums cannot differ."""
    groups: dict[str, list[str]] = {}
    for name, tensor in kit.tensors.items():
        if tensor.operation in SUMS and tensor.level == "operator":
            formats = json.dumps(
                [
                    [tensor.attributes[side].get(key) for key in ("fmt", "block")]
                    for side in ("a", "b")
                    if side in tensor.attributes
                ]
            )
            groups.setdefault(f"{tensor.operation} {formats}", []).append(name)
    assert len(groups) > 20
    for group, names in groups.items():
        made: dict[str, list[bytes]] = {}
        for accumulate, defect in ACCUMULATED.items():
            operation = kit.tensors[names[0]].operation
            if operation not in defect.operations:
                continue
            sums = []
            for name in names:
                attributes = kit.tensors[name].attributes
                with np.errstate(all="ignore"):
                    x = defect.operations[operation](kit.inputs(name), attributes)
                own = attributes.get("accumulate", "exact") == accumulate
                sums.append(kit.arrays[name] if own else x)
            if all(x is not None for x in sums):
                made[accumulate] = [np.nan_to_num(x).tobytes() for x in sums]
        same = {
            frozenset(pair)
            for pair in itertools.combinations(made, 2)
            if made[pair[0]] == made[pair[1]]
        }
        # One scale per tensor makes one block. Of FP4, 2^17 products are needed to lose a bit.
        allowed = {
            frozenset({"exact", "block-sums"}),
            frozenset({"hopper-16bit", "blackwell-16bit"}),
        }
        if group.startswith("sum") and group.count("E2M1") == 2:
            allowed |= {frozenset({x, "blackwell"}) for x in ("exact", "block-sums")}
        assert same <= allowed, group

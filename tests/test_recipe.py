"""Recipes: their checks, the choice of a recipe for each site, and their files."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_checkpoint

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, Model, Recipe, apply_recipe, calibrate
from bert_numpy.model.sites import model_sites, sites_of
from bert_numpy.quantization import recipe_json
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.observers import OBSERVERS
from bert_numpy.quantization.presets import preset
from bert_numpy.quantization.recipe import Operand, SiteRecipe
from bert_numpy.quantization.recipe_json import load_recipe, save_recipe
from bert_numpy.quantization.site_patterns import fits_attention
from npfp8 import E4M3FN, E5M2, INT8, UINT8
from npfp8.formats import FORMATS

every_preset = pytest.mark.parametrize("name", PRESETS)
INT8_BOTH = SiteRecipe(Operand(INT8), Operand(INT8))
TOKEN = Operand(INT8, "token")
BLOCK = Operand(INT8, "block")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return bert_numpy.load(write_checkpoint(tmp_path_factory.mktemp("model")))


# Files


def loaded(values: Any, folder: Path) -> Recipe:
    path = folder / "recipe.json"
    path.write_text(json.dumps(values))
    return load_recipe(path)


@every_preset
def test_saved_recipe_is_loaded(name: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    save_recipe(PRESETS[name], first)
    found = load_recipe(first)
    assert found == PRESETS[name]
    save_recipe(found, second)
    assert first.read_bytes() == second.read_bytes()
    assert preset(str(first)) == PRESETS[name]
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_a_recipe_that_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "none" / "recipe.json"
    with pytest.raises(BertNumpyError, match=r"recipe\.json: cannot be written: "):
        save_recipe(PRESETS["e4m3"], path)


def test_saved_overrides_are_loaded(tmp_path: Path) -> None:
    recipe = replace(
        PRESETS["int8-outliers"],
        overrides=(("pooler.*", INT8_BOTH), ("*.layer.0.*", SiteRecipe())),
        accumulate="float32",
    )
    save_recipe(recipe, tmp_path / "recipe.json")
    assert load_recipe(tmp_path / "recipe.json") == recipe


def test_a_file_is_plain(tmp_path: Path) -> None:
    """Formats by name, in plain JSON, for other programs to read and write."""
    save_recipe(PRESETS["int8-smooth"], tmp_path / "recipe.json")
    values = json.loads((tmp_path / "recipe.json").read_text())
    assert values["name"] == "int8-smooth"
    assert values["linear"]["a"]["fmt"] == "INT8"
    assert values["linear"]["b"]["granularity"] == "channel"
    assert values["linear"]["migration"] == 0.5
    assert values["scores"]["migration"] is None
    (pattern, how), *rest = values["overrides"]
    assert (pattern, how["migration"], how["b"], rest) == (
        "*.output.dense",
        None,
        values["linear"]["b"],
        [],
    )


def test_what_is_not_given_has_its_default(tmp_path: Path) -> None:
    assert loaded({"name": "x"}, tmp_path) == Recipe("x")
    site = {"a": {"fmt": "E4M3FN"}, "b": {"fmt": "INT8", "granularity": "channel"}}
    found = loaded({"name": "y", "linear": site, "overrides": [["pooler.dense", {}]]}, tmp_path)
    linear = SiteRecipe(Operand(E4M3FN), Operand(INT8, "channel"))
    assert found == Recipe("y", linear, overrides=(("pooler.dense", SiteRecipe()),))
    assert found.arithmetic == "bfloat16"
    assert found.accumulate == "exact"
    assert not found.scores.quantizes


def test_a_file_has_the_fields_and_their_types() -> None:
    """A field of the dataclass is a key of the file, without another line."""

    @dataclass(frozen=True)
    class Wider(Operand):
        rounds: int = 3
        share: float | None = None

    values = recipe_json._plain(Wider(E4M3FN, share=1))
    assert values["rounds"] == 3
    assert recipe_json._build(Wider, values, "operand") == Wider(E4M3FN, share=1)
    for key, expected in (("rounds", "int"), ("share", "int or float or NoneType")):
        with pytest.raises(BertNumpyError) as error:
            recipe_json._build(Wider, values | {key: "1"}, "operand")
        assert str(error.value) == f"operand: key {key!r}: expected {expected}, found '1'"


def in_operand(**values: Any) -> dict[str, Any]:
    return {"name": "x", "linear": {"a": values}}


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def in_site(**values: Any) -> dict[str, Any]:
    return {"name": "x", "linear": values}


#: The file's content, and what of the message must be there after the file's name.
BAD_FILES: dict[str, tuple[Any, list[str]]] = {
    "a list": ([], ["expected"]),
    "no name": ({}, ["name", "missing"]),
    "name is a number": ({"name": 1}, ["key 'name': expected str, found 1"]),
    "name is null": ({"name": None}, ["key 'name': expected str, found None"]),
    "unknown key": ({"name": "x", "lineal": {}}, ["key 'lineal': expected one of", "linear"]),
    "unknown key of a site": (in_site(c={}), ["'linear'", "key 'c': expected one of a, b,"]),
    "unknown key of an operand": (
        in_operand(format="INT8"),
        ["'linear'", "'a'", "key 'format': expected one of", "fmt"],
    ),
    "site is a string": ({"name": "x", "scores": "INT8"}, ["'scores'", "JSON object", "'INT8'"]),
    "operand is null": (in_site(a=None), ["'linear'", "'a'", "JSON object", "None"]),
    **{
        f"fmt {value!r}": (in_operand(fmt=value), ["'fmt'", "expected null or one of", "INT8"])
        for value in ("FP16", "e4m4", "", 8, True, ["INT8"], {"INT8": 1})
    },
    "granularity": (in_operand(granularity="row"), ["granularity: expected one of tensor,"]),
    "granularity is null": (in_operand(granularity=None), ["'granularity': expected str"]),
    "observer": (in_operand(observer="max"), ["observer: expected one of absmax,"]),
    **{
        f"percentile {value}": (in_operand(percentile=value), ["percentile: expected 0..100"])
        for value in (0, -1, 100.5, 1e9)
    },
    "percentile is true": (in_operand(percentile=True), ["'percentile': expected int or float"]),
    "percentile is text": (in_operand(percentile="99"), ["'percentile': expected int or float"]),
    **{
        f"block {value}": (in_operand(block=value), ["block: expected at least 1"])
        for value in (0, -8, -(2**31), -(10**400))
    },
    **{
        f"block 10^{power}": (in_operand(block=10**power), ["block: expected at most 2147483647"])
        for power in (10, 19, 400)
    },
    "block of many digits": (in_operand(block="B"), ["'block': expected int, found 'B'"]),
    "observer of many": (in_operand(observer="x" * 10**6), ["observer: expected one of absmax,"]),
    "outliers": (in_site(outliers="row", outlier_threshold=6), ["outliers: expected 'element' or"]),
    "outliers is 1": (in_site(outliers=1), ["'outliers': expected str, found 1"]),
    "columns of no outliers": (
        in_site(outliers="column"),
        ["outliers 'column': expected outlier_threshold with it, found none"],
    ),
    "smoothing": (in_site(smoothing="none", migration=0.5), ["smoothing: expected 'power_of_two'"]),
    "smoothing nothing": (
        in_site(smoothing="paper"),
        ["smoothing 'paper': expected migration with it, found none"],
    ),
    "threshold is true": (in_site(outlier_threshold=True), ["'outlier_threshold': expected int"]),
    "threshold that is 0 in float32": (
        in_site(outlier_threshold=1e-46),
        ["more than 0 and finite"],
    ),
    "threshold beyond float32": (in_site(outlier_threshold=3.5e38), ["more than 0 and finite"]),
    "a nest": (in_site(a=nest(900)), ["'a'", "expected a JSON object, found [[[[[["]),
    "block is 1.5": (in_operand(block=1.5), ["'block': expected int, found 1.5"]),
    "block is true": (in_operand(block=True), ["'block': expected int, found True"]),
    "dynamic is 1": (in_operand(dynamic=1), ["'dynamic': expected bool, found 1"]),
    "power_of_two is null": (in_operand(power_of_two=None), ["'power_of_two': expected bool"]),
    "dynamic per tensor": (in_operand(fmt="INT8", dynamic=True), ["dynamic", "the batch"]),
    "static per token": (
        in_operand(fmt="INT8", granularity="token", dynamic=False),
        ["dynamic", "calibration"],
    ),
    "dynamic is null": (in_operand(dynamic=None), ["'dynamic': expected bool, found None"]),
    "threshold is text": (in_site(outlier_threshold="6"), ["'outlier_threshold': expected int or"]),
    "threshold of 0": (in_site(outlier_threshold=0), ["outlier_threshold: expected more than 0"]),
    "migration of 1.5": (in_site(migration=1.5), ["migration: expected 0..1, found 1.5"]),
    "migration is true": (in_site(migration=True), ["'migration': expected int or float"]),
    "arithmetic": ({"name": "x", "arithmetic": "float16"}, ["arithmetic: expected 'bfloat16' or"]),
    "accumulate": ({"name": "x", "accumulate": "fast"}, ["accumulate: expected 'exact' or"]),
    "arithmetic is a number": ({"name": "x", "arithmetic": 32}, ["'arithmetic': expected str"]),
    **{
        f"overrides {value!r}": ({"name": "x", "overrides": value}, ["'overrides': expected"])
        for value in (
            *({}, {"pooler": {}}, "pooler", None, 1, ["pooler"], [["pooler"]], [[1, {}]]),
            *([["pooler", {}, {}]], [{"pooler": {}}]),
        )
    },
    "override of a site that is none": (
        {"name": "x", "overrides": [["pooler", []]]},
        ["'overrides'", "'pooler'", "JSON object"],
    ),
    "override of an unknown key": (
        {"name": "x", "overrides": [["*", {"c": 1}]]},
        ["'overrides'", "'*'", "key 'c'"],
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_bad_files(fault: str, tmp_path: Path) -> None:
    values, parts = BAD_FILES[fault]
    with pytest.raises(BertNumpyError) as error:
        loaded(values, tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'recipe.json'}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "x", "linear": {"a": {"percentile": NaN}}}',
        '{"name": "x", "linear": {"outlier_threshold": NaN}}',
        '{"name": "x", "linear": {"migration": NaN}}',
        '{"name": "x", "linear": {"a": {"percentile": Infinity}}}',
        '{"name": "x", "linear": {"migration": -Infinity}}',
        '{"name": "x"',
        "",
        "name: x",
    ],
)
def test_bad_text(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(BertNumpyError) as error:
        load_recipe(path)
    assert str(error.value).startswith(f"{path}: ")


def test_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    for read in (load_recipe, lambda path: preset(str(path))):
        with pytest.raises(BertNumpyError) as error:
            read(path)
        assert str(error.value) == f"{path}: no such file"


# What cannot be


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"granularity": "head"}, "operand: granularity: expected one of tensor, channel, token"),
        ({"observer": "minmax"}, "operand: observer: expected one of absmax, moving_average"),
        ({"percentile": 0}, "operand: percentile: expected 0..100, found 0"),
        ({"block": 0}, "operand: block: expected at least 1, found 0"),
        ({"block": 2**31}, "operand: block: expected at most 2147483647, found 2147483648"),
        ({"block": 10**5000}, "operand: block: expected at most 2147483647, found "),
        ({"block": True}, "operand: block: expected at least 1, found True"),
        ({"block": 2.0}, "operand: block: expected at least 1, found 2.0"),
        ({"percentile": math.nan}, "operand: percentile: expected 0..100, found nan"),
        ({"percentile": math.inf}, "operand: percentile: expected 0..100, found inf"),
        ({"percentile": True}, "operand: percentile: expected 0..100, found True"),
        ({"percentile": "99"}, "operand: percentile: expected 0..100, found '99'"),
        ({"fmt": "INT9"}, "operand: fmt: expected a format (E4M3FN, E5M2, "),
        ({"fmt": 8}, "operand: fmt: expected a format, its name, or None, found 8"),
        ({"dynamic": 1}, "operand: dynamic: expected True or False, found 1"),
        ({"granularity": ["token"]}, "operand: granularity: expected one of tensor, channel"),
        ({"fmt": INT8, "dynamic": True}, "which would depend on the batch, found True"),
        ({"fmt": INT8, "granularity": "channel", "dynamic": True}, "dynamic: expected False"),
        (
            {"fmt": INT8, "granularity": "token", "dynamic": False},
            "which no calibration can know, found False",
        ),
        ({"fmt": INT8, "granularity": "block", "dynamic": False}, "dynamic: expected True"),
        ({"fmt": UINT8, "power_of_two": True}, "power_of_two: expected False for a format with a"),
    ],
)
def test_bad_operands(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        Operand(**values)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("granularity", "dynamic"),
    [("tensor", False), ("channel", False), ("token", True), ("block", True)],
)
def test_the_granularity_says_whether_scales_are_dynamic(granularity: str, dynamic: bool) -> None:
    """Given or not; without a format both can be given, and are kept."""
    found = Operand(INT8, granularity)
    assert found.dynamic is dynamic
    assert found == Operand(INT8, granularity, dynamic)
    assert Operand(None, granularity).dynamic is False
    assert Operand(None, granularity, True).dynamic is True


def test_presets_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PRESETS["mine"] = PRESETS["e4m3"]  # type: ignore[index]


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("name", FORMATS)
def test_good_operands(name: str, observer: str) -> None:
    operand = Operand(FORMATS[name], observer=observer, percentile=100, block=1)
    assert SiteRecipe(operand, operand).quantizes
    assert SiteRecipe(b=operand).quantizes
    assert SiteRecipe(operand).quantizes
    assert not SiteRecipe().quantizes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"a": Operand(INT8, "channel")}, "operand a: granularity: expected no 'channel'"),
        (
            {"outlier_threshold": 0.0},
            "outlier_threshold: expected more than 0 and finite, found 0.0",
        ),
        ({"outlier_threshold": -6}, "outlier_threshold: expected more than 0 and finite, found -6"),
        ({"outlier_threshold": 10**400}, "outlier_threshold: expected more than 0 and finite"),
        ({"outlier_threshold": 10**5000}, "outlier_threshold: expected more than 0 and finite"),
        ({"outlier_threshold": True}, "outlier_threshold: expected more than 0 and finite"),
        ({"outlier_threshold": "6"}, "outlier_threshold: expected more than 0 and finite"),
        ({"outlier_threshold": math.inf}, "outlier_threshold: expected more than 0 and finite"),
        ({"migration": True}, "migration: expected 0..1, found True"),
        ({"migration": math.nan}, "migration: expected 0..1, found nan"),
        ({"migration": 1.01}, "migration: expected 0..1, found 1.01"),
        ({"migration": -0.1}, "migration: expected 0..1, found -0.1"),
        *(
            (
                {"migration": 0.5, "a": Operand(INT8, observer=observer)},
                f"migration: expected the observer 'absmax', found {observer!r}",
            )
            for observer in OBSERVERS
            if observer != "absmax"
        ),
        (
            {"a": BLOCK, "b": replace(BLOCK, block=64)},
            "a and b: per-token and per-block scales must match",
        ),
    ],
)
def test_bad_sites(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BertNumpyError) as error:
        SiteRecipe(**values)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("product", ["scores", "context"])
@pytest.mark.parametrize(
    ("site", "message"),
    [
        (SiteRecipe(Operand(INT8), Operand(INT8), migration=0.5), "for products with weights"),
        (SiteRecipe(TOKEN, Operand(INT8), 6.0), "for products with weights"),
        (SiteRecipe(Operand(INT8), Operand(INT8, "channel")), "'channel' is for weights"),
    ],
)
def test_bad_attention_products(product: str, site: SiteRecipe, message: str) -> None:
    """In the recipe and as an override alike."""
    with pytest.raises(BertNumpyError) as error:
        Recipe("bad", **{product: site})  # type: ignore[arg-type]
    assert str(error.value).startswith(f"recipe bad: {product}: ")
    assert message in str(error.value)
    assert Recipe("good", linear=site).linear is site


def test_values_have_no_scale_per_token() -> None:
    with pytest.raises(BertNumpyError) as error:
        Recipe("bad", context=SiteRecipe(TOKEN, TOKEN))
    assert str(error.value) == (
        "recipe bad: context: V cannot have a scale per token: the sum over tokens does not "
        "factor; expected 'tensor' or 'block'"
    )
    assert Recipe("good", scores=SiteRecipe(TOKEN, TOKEN)).scores.b is TOKEN
    assert Recipe("good", context=SiteRecipe(BLOCK, BLOCK)).context.b is BLOCK


@pytest.mark.parametrize(
    "site",
    [
        SiteRecipe(Operand(INT8), Operand(INT8), migration=0.5),
        SiteRecipe(TOKEN, Operand(INT8), 6.0),
        SiteRecipe(TOKEN, TOKEN),
        SiteRecipe(Operand(INT8), Operand(INT8, "channel")),
    ],
    ids=["migration", "outliers", "V per token", "channel"],
)
def test_an_override_cannot_do_what_a_product_cannot(site: SiteRecipe, small: Model) -> None:
    """An override that fits an attention product is held to the rules of those."""
    calibration = bert_numpy.calibrate(small, [{"input_ids": [[2, 3, 4]]}])

    def apply() -> None:
        recipe = Recipe("bad", overrides=(("encoder.layer.1.attention.context", site),))
        apply_recipe(small, recipe, calibration)

    with pytest.raises(BertNumpyError):
        apply()


# Sites


def test_sites_of_the_encoder() -> None:
    recipe = PRESETS["int8-channel"]
    assert recipe.site("encoder.layer.3.attention.scores") is recipe.scores
    assert recipe.site("encoder.layer.11.attention.context") is recipe.context
    for name in ("attention.self.query", "attention.output.dense", "output.dense"):
        assert recipe.site(f"encoder.layer.0.{name}") is recipe.linear
    for name in ("pooler.dense", "classifier"):
        assert recipe.site(name) == SiteRecipe()


@pytest.mark.parametrize("name", ["int8-smooth", "int8-smooth-paper", "e4m3-smooth"])
def test_migration_is_where_layer_norm_feeds(name: str) -> None:
    recipe = PRESETS[name]
    for site in ("attention.self.query", "attention.self.value", "intermediate.dense"):
        assert recipe.site(f"encoder.layer.0.{site}").migration == 0.5
    for site in ("attention.output.dense", "output.dense"):
        how = recipe.site(f"encoder.layer.0.{site}")
        assert how == replace(recipe.linear, migration=None, smoothing="power_of_two")
        assert how.a.fmt is not None


def test_the_last_override_that_fits_holds() -> None:
    e4m3, e5m2 = PRESETS["e4m3"].linear, PRESETS["e5m2"].linear
    recipe = replace(
        PRESETS["int8"],
        overrides=(
            ("encoder.layer.?.output.dense", e4m3),
            ("encoder.layer.1.*", e5m2),
            ("*.scores", SiteRecipe()),
            ("classifier", e4m3),
        ),
    )
    assert recipe.site("encoder.layer.0.output.dense") is e4m3
    assert recipe.site("encoder.layer.1.output.dense") is e5m2
    assert recipe.site("encoder.layer.10.output.dense") is recipe.linear
    assert recipe.site("encoder.layer.0.attention.output.dense") is recipe.linear
    assert recipe.site("encoder.layer.1.attention.scores") == SiteRecipe()
    assert recipe.site("classifier") is e4m3
    assert recipe.site("Classifier") == SiteRecipe()
    assert recipe.site("pooler.dense") == SiteRecipe()


def test_skipping() -> None:
    recipe = replace(PRESETS["e4m3"], overrides=(("classifier", INT8_BOTH),))
    found = recipe.skipping("encoder.layer.0.*", "*.context")
    assert found.overrides[:1] == recipe.overrides
    assert found.name == recipe.name
    assert not found.site("encoder.layer.0.attention.self.key").quantizes
    assert not found.site("encoder.layer.1.attention.context").quantizes
    assert found.site("encoder.layer.1.attention.scores").quantizes
    assert found.site("classifier") is INT8_BOTH
    assert not found.skipping("*").site("classifier").quantizes
    assert recipe.skipping() == recipe
    assert recipe.overrides == (("classifier", INT8_BOTH),)


@pytest.mark.parametrize(
    "pattern", ["encoder.layer.2.*", "pooler", "", "Encoder*", "encoder.layer.0.attention"]
)
def test_override_that_fits_no_site(pattern: str, small: Model) -> None:
    recipe = PRESETS["bf16"].skipping("classifier", pattern, "*")
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(small, recipe)
    assert str(error.value) == (
        f"recipe bf16: override {pattern!r}: expected to fit a site, such as "
        "encoder.layer.0.attention.self.query"
    )
    names = model_sites(small)
    assert names[-2:] == ["pooler.dense", "classifier"]
    PRESETS["bf16"].skipping(*names, "*", "pooler.*").check_overrides(sites_of(small))


# How products are added up


@pytest.mark.parametrize("mode", ["hopper", "bfloat16"])
@pytest.mark.parametrize("name", PRESETS)
def test_what_an_accumulation_can_do(name: str, mode: str, small: Model) -> None:
    """A recipe is applied, or refused, as npfp8.matmul does it with such operands."""
    recipe = replace(PRESETS[name], accumulate=mode)
    batch = {"input_ids": np.arange(12).reshape(1, 12)}
    calibration = calibrate(small, [batch], hessians=True)
    operands = [operand for site in (recipe.linear, recipe.scores) for operand in (site.a, site.b)]
    weights_alone = recipe.linear.a.fmt is None
    other = not {operand.element for operand in operands} <= {E4M3FN, E5M2, None}
    refused = mode.startswith("hopper") and not weights_alone
    refused &= other or any(operand.dynamic for operand in operands)
    if not refused:
        apply_recipe(small, recipe, calibration)(**batch)
        return
    with pytest.raises(BertNumpyError) as error:
        apply_recipe(small, recipe, calibration)
    granularity = recipe.linear.a.granularity
    found = f"granularity {granularity!r}"
    if other:
        found = "expected E4M3FN or E5M2, found "
    assert f"recipe {name}: encoder.layer.0.attention.self.query:a: accumulate '{mode}': " in str(
        error.value
    )
    assert found in str(error.value)
    # The products are what refuses: with the check left out, npfp8 says so.
    plain = apply_recipe(small, PRESETS[name], calibration)
    engine = engine_of(recipe, plain.plans)
    with pytest.raises(ValueError, match=f"accumulate '{mode}'"):
        replace(plain, engine=engine)(**batch)


def test_accumulation_of_a_site_that_is_not_quantized_is_free(small: Model) -> None:
    """An operand without codes makes no product of codes; an override can take a site out."""
    int8, e4m3 = Operand(INT8), PRESETS["e4m3"]
    mixed = replace(e4m3, scores=SiteRecipe(int8, int8), accumulate="hopper")
    calibration = calibrate(small, [{"input_ids": [[1, 2, 3]]}])
    with pytest.raises(BertNumpyError, match=r"layer\.0\.attention\.scores:a: accumulate 'hopper'"):
        apply_recipe(small, mixed, calibration)
    apply_recipe(small, mixed.skipping("*.scores"), calibration)
    apply_recipe(small, replace(mixed, scores=SiteRecipe(int8, Operand())), calibration)


# Whether there must be a calibration


def needs_calibration(recipe: Recipe, model: Model) -> bool:
    message = ""
    try:
        apply_recipe(model, recipe)
    except BertNumpyError as error:
        message = str(error)
    assert message in ("", f"recipe {recipe.name}: expected a calibration, found none")
    return bool(message)


@every_preset
def test_calibrated(name: str, small: Model) -> None:
    assert PRESETS[name].calibrated == needs_calibration(PRESETS[name], small)


@pytest.mark.parametrize(
    ("recipe", "calibrated"),
    [
        (Recipe("x", overrides=(("pooler.dense", INT8_BOTH),)), True),
        (Recipe("x", overrides=(("pooler.dense", SiteRecipe(b=Operand(INT8))),)), False),
        (Recipe("x", overrides=(("*.scores", SiteRecipe(b=Operand(INT8))),)), True),
        (Recipe("x", scores=SiteRecipe(TOKEN, TOKEN)), False),
        (Recipe("x", scores=SiteRecipe(TOKEN, Operand(INT8))), True),
        (Recipe("x", context=SiteRecipe(b=Operand(INT8))), True),
        (Recipe("x", linear=SiteRecipe(TOKEN, Operand(INT8), migration=0.5)), True),
        (Recipe("x", linear=SiteRecipe(TOKEN, Operand(INT8), 6.0)), False),
        (Recipe("x", linear=SiteRecipe(BLOCK, BLOCK)), False),
    ],
)
def test_calibrated_by_part(recipe: Recipe, calibrated: bool, small: Model) -> None:
    assert recipe.calibrated == calibrated == needs_calibration(recipe, small)


def test_the_papers_presets() -> None:
    """They differ from the presets beside them in what the papers do, and in nothing else."""
    outliers, columns = PRESETS["int8-outliers"], PRESETS["int8-outliers-columns"]
    assert replace(columns.linear, outliers="element") == outliers.linear
    assert (columns.scores, columns.context) == (outliers.scores, outliers.context)
    paper, int8 = PRESETS["int8-smooth-paper"], PRESETS["int8"]
    assert replace(paper.linear, smoothing="power_of_two", migration=None) == int8.linear
    assert (paper.scores, paper.context) == (int8.scores, int8.context)
    entropy = PRESETS["int8-entropy"]
    assert [x.observer for x in (entropy.linear.a, entropy.linear.b)] == ["entropy", "absmax"]
    assert [x.observer for x in (entropy.scores.b, entropy.context.b)] == ["entropy", "entropy"]


# Patterns that fit an attention product, whatever the layer's number


FITTING = [
    *("*", "*.scores", "encoder.*", "?ncoder.layer.*.context", "*[t]*", "*.attention.[cs]*"),
    *(f"encoder.layer.{n}.attention.context" for n in ("0", "9", "10", "99", "100", "1000000")),
    *(f"encoder.layer.{n}.attention.scores" for n in ("1?0", "10?", "[0-9]*", "1[!0]0", "*7", "?")),
    *(f"encoder.layer.{n}.attention.*" for n in ("????????", "[1-9][0-9]", "1*2*3", "[!a-z]")),
    *("*12345678901234567890*scores", "encoder.layer.1[0-9][0-9].attention*", "*.layer.[]1]*t"),
]
NOT_FITTING = [
    *("", "?", "pooler*", "*.dense", "*.output.*", "encoder.layer.*.attention.self.*", "scores"),
    *(f"encoder.layer.{n}.attention.context" for n in ("", "00", "01", "a", "1a", "[a-z]", "-1")),
    *("encoder.layer.[0].attention.scores.*", "*scores?", "Encoder.*", "*[0-9]", "*.SCORES"),
    *("encoder.layer.1.attention.scores\n", "encoder.layer.[1.attention.scores", "*[!s-t]"),
    *("encoder.layer.[]*", "*z*", "encoder.layer.0[0-9]*.attention.scores", "[", "[]", "[!]"),
]


@pytest.mark.parametrize("pattern", [*FITTING, *NOT_FITTING])
def test_patterns_of_attention(pattern: str) -> None:
    assert fits_attention(pattern) is (pattern in FITTING)
    recipe = Recipe("x", overrides=((pattern, SiteRecipe(b=Operand(INT8))),))
    assert recipe.calibrated is (pattern in FITTING)


def test_patterns_against_every_number_of_four_digits() -> None:
    generator = random.Random(0)
    parts = ["1", "0", "?", "*", "[0-9]", "[!0]", "[!a-z]", "[]1]", "[!]]", "99", "[", "[1-3]"]
    ends = [".attention.scores", ".attention.*", "*t", ".attention.?[co]*", ".self", "[!s]"]
    names = [
        f"encoder.layer.{number}.attention.{product}"
        for number, product in itertools.product(range(10_000), ("scores", "context"))
    ]
    found = []
    for _ in range(60):
        middle = "".join(generator.choices(parts, k=generator.randint(1, 2)))
        pattern = f"encoder.layer.{middle}{generator.choice(ends)}"
        expected = any(fnmatchcase(name, pattern) for name in names)
        assert fits_attention(pattern) is expected, pattern
        found.append(expected)
    assert 10 < sum(found) < 50


def test_long_patterns_take_no_time() -> None:
    assert fits_attention("*" * 1000 + "1" + "?" * 1000 + "*.scores")
    assert not fits_attention("*1?" * 500 + "x")

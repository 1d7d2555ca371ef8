"""How a checkpoint's ``config.json`` says what is quantized, to a recipe and back.

Three sections are understood:

- ``quantization_config`` with ``quant_method`` "compressed-tensors": the layout of
  the package of this name (formats ``float-quantized``, ``int-quantized`` and
  ``naive-quantized``), which transformers, vLLM and llm-compressor read. It has
  linear layers alone: codes and scales of weights, scales of their inputs.
- ``quantization_config`` with ``quant_method`` "fp8" and ``weight_block_size``: FP8
  weights with a scale for each block of rows and columns, ``weight_scale_inv``, as
  DeepSeek-V3's (DeepSeek-AI, arXiv 2412.19437, section 3.3).
- ``npfp8_config``, which others ignore: the whole recipe, and the static scales
  that the first has no place for. With it the first one is checked, not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import npfp8
from bert_numpy.errors import BertNumpyError
from bert_numpy.policy import Scale, SitePlan
from bert_numpy.recipe import Operand, Recipe, SiteRecipe, recipe_object, recipe_of
from npfp8 import E4M3FN, E5M2, INT8, UINT8, Format

__all__ = [
    "StoredQuantization",
    "compressed_tensors_config",
    "npfp8_config",
    "read_quantization",
    "says_input",
]

COMPRESSED_TENSORS = "compressed-tensors"
EXTRA_KEY = "npfp8_config"

_VERSION = 1

#: What compressed-tensors calls the formats of weights and inputs: the type, and
#: whether it is symmetric. An integer with a zero point is stored as int8, 128 below ours.
_KINDS: dict[Format, tuple[str, bool]] = {
    E4M3FN: ("float", True),
    INT8: ("int", True),
    UINT8: ("int", False),
}
_NAMED = {kind: fmt for fmt, kind in _KINDS.items()}

#: The layout's name by a weight's format. There is none for E5M2: an 8-bit float is
#: E4M3 to the package. So E5M2 gets a name that it refuses, and reads no wrong number.
_LAYOUTS: dict[Format, str] = {
    E4M3FN: "float-quantized",
    INT8: "int-quantized",
    UINT8: "int-quantized",
    E5M2: "e5m2-quantized",
}
_READABLE_LAYOUTS = ("float-quantized", "int-quantized", "naive-quantized", "mixed-precision")

#: What makes a pattern of a hostile file take forever: repeats of repeats, and many repeats.
_REPEATS = re.compile(r"[*+{]")
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_MOST_REPEATS = 3

#: The first part of a tensor's name where a head's checkpoint holds an encoder.
_BASE_PREFIXES = ("bert", "distilbert", "roberta", "electra")


@dataclass(frozen=True, eq=False)
class StoredQuantization:
    """What ``config.json`` says of the quantized tensors of a checkpoint.

    Attributes
    ----------
    recipe : Recipe
    scale_name : str
        What a weight's scale is called.
    rows : mapping of str to int
        By site: how many rows of a weight share the scales of a block. 1 where
        a site is missing.
    scales : mapping of str to Scale
        The static scales that are not tensors, by ``site:a`` and ``site:b``.
    """

    recipe: Recipe
    scale_name: str = "weight_scale"
    rows: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)


# Writing


def compressed_tensors_config(recipe: Recipe, modules: Mapping[str, str]) -> dict[str, Any]:
    """The ``quantization_config`` of a recipe.

    Parameters
    ----------
    recipe : Recipe
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.

    Raises
    ------
    BertNumpyError
        If no weight is quantized, or a layer is quantized so that others would
        read its weight wrongly.
    """
    schemes: dict[str, dict[str, Any]] = {}
    for site in modules:
        how = recipe.site(site)
        place = f"recipe {recipe.name}: {site}"
        if how.quantizes and how.migration is not None:
            raise BertNumpyError(
                f"{place}: expected no migration: the layout of compressed-tensors has no "
                "place for divided inputs, so others would read the weights wrongly"
            )
        if how.b.fmt is None:
            continue
        if how.b.fmt not in _LAYOUTS:
            raise BertNumpyError(
                f"{place}: weight: expected {', '.join(map(str, _LAYOUTS))} to be written, "
                f"found {how.b.fmt}"
            )
        schemes[site] = {
            "weights": _arguments(how.b, True),
            "input_activations": _arguments(how.a, False) if says_input(how) else None,
            "output_activations": None,
            "format": _LAYOUTS[how.b.fmt],
        }
    if not schemes:
        raise BertNumpyError(f"recipe {recipe.name}: expected quantized weights, found none")
    # Schemes are dicts, which cannot be counted; their text can.
    (usual, _), *_ = Counter(map(repr, schemes.values())).most_common()
    targets: dict[str, list[str]] = {usual: ["Linear"]}
    for site, scheme in schemes.items():
        if repr(scheme) != usual:
            targets.setdefault(repr(scheme), []).append(_pattern(modules[site]))
    by_text = {repr(scheme): scheme for scheme in schemes.values()}
    formats = {scheme["format"] for scheme in schemes.values()}
    return {
        "quant_method": COMPRESSED_TENSORS,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": names, **by_text[text]}
            for i, (text, names) in enumerate(targets.items())
        },
        "ignore": [_pattern(name) for site, name in modules.items() if site not in schemes],
        "kv_cache_scheme": None,
    }


def npfp8_config(
    recipe: Recipe, plans: Mapping[str, SitePlan], modules: Mapping[str, str]
) -> dict[str, Any]:
    """The ``npfp8_config`` of a quantized model: its recipe and the scales without a tensor."""
    scales, zero_points = {}, {}
    for site, plan in plans.items():
        for name, scale in ((f"{site}:a", plan.a), (f"{site}:b", plan.b)):
            if scale is None or (site in modules and says_input(plan.recipe)):
                continue
            scales[name] = float(scale.scale)  # as a double, which restores every float32
            if scale.zero_point is not None:
                zero_points[name] = scale.zero_point
    return {
        "version": _VERSION,
        "producer": f"fp8-bert-numpy {npfp8.__version__}",
        "recipe": recipe_object(recipe),
        "scales": scales,
        "zero_points": zero_points,
    }


def says_input(how: SiteRecipe) -> bool:
    """Whether compressed-tensors' layout says how a linear layer's input is quantized."""
    return how.b.fmt is not None and how.a.fmt in _KINDS


def _arguments(operand: Operand, weight: bool) -> dict[str, Any]:
    """An operand as compressed-tensors' ``QuantizationArgs``."""
    assert operand.fmt is not None
    kind, symmetric = _KINDS.get(operand.fmt, ("float", True))
    granularity = operand.granularity
    strategy = {"block": "group", "token": "channel" if weight else "token"}.get(
        granularity, granularity
    )
    return {
        "num_bits": 8,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": operand.block if strategy == "group" else None,
        "block_structure": None,
        "dynamic": operand.dynamic and not weight,
        "actorder": None,
    }


def _pattern(module: str) -> str:
    """A target that fits a layer whether or not the encoder is inside a model with a head."""
    first, _, rest = module.partition(".")
    return f"re:(.*\\.)?{re.escape(rest if first in _BASE_PREFIXES else module)}$"


# Reading


def read_quantization(
    raw: Mapping[str, Any], place: str, modules: Mapping[str, str], is_coded: Callable[[str], bool]
) -> StoredQuantization:
    """What a quantized checkpoint's ``config.json`` says.

    Parameters
    ----------
    raw : mapping
        The JSON object.
    place : str
        The file, for messages.
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.
    is_coded : callable
        Whether a site's weight is stored as codes; asked where the config does
        not say it.

    Raises
    ------
    BertNumpyError
        If a section is malformed, or asks for what is not implemented; names
        the key.
    """
    reader = _Reader(f"{place}: key 'quantization_config'")
    config = reader.mapping(raw.get("quantization_config"))
    method = config.get("quant_method")
    if EXTRA_KEY in raw:
        return _own(raw, place, modules)
    if method == COMPRESSED_TENSORS:
        stored = _compressed_tensors(config, reader, modules)
    elif method == "fp8":
        stored = _fine_grained(config, reader, modules, is_coded)
    else:
        raise reader.error("quant_method", f"{COMPRESSED_TENSORS!r} or 'fp8'", method)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    recipe = replace(stored.recipe, arithmetic="bfloat16" if dtype == "bfloat16" else "float32")
    return replace(stored, recipe=recipe)


@dataclass(frozen=True)
class _Reader:
    """Where in the file one is, and the errors that say so."""

    place: str

    def at(self, key: str) -> _Reader:
        return _Reader(f"{self.place}: key {key!r}")

    def error(self, key: str, expected: str, found: Any) -> BertNumpyError:
        shown = "nothing" if found is None else repr(found)
        return BertNumpyError(f"{self.place}: key {key!r}: expected {expected}, found {shown}")

    def mapping(self, value: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            shown = "nothing" if value is None else repr(value)
            raise BertNumpyError(f"{self.place}: expected a JSON object, found {shown}")
        return value

    def names(self, values: Mapping[str, Any], key: str) -> list[str]:
        """A list of strings; empty where there is none."""
        names = values.get(key) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.error(key, "a list of names", names)
        return names

    def absent(self, values: Mapping[str, Any], *keys: str) -> None:
        """Refuse what would change the result and is not implemented."""
        for key in keys:
            if values.get(key):
                raise self.error(key, "nothing: this is not implemented", values[key])


def _own(raw: Mapping[str, Any], place: str, modules: Mapping[str, str]) -> StoredQuantization:
    reader = _Reader(f"{place}: key {EXTRA_KEY!r}")
    extra = reader.mapping(raw[EXTRA_KEY])
    if extra.get("version") != _VERSION:
        raise reader.error("version", str(_VERSION), extra.get("version"))
    try:
        recipe = recipe_of(extra.get("recipe"))
        expected = compressed_tensors_config(recipe, modules)
    except BertNumpyError as error:
        raise BertNumpyError(f"{reader.place}: {error}") from None
    if raw["quantization_config"] != expected:
        raise BertNumpyError(
            f"{place}: key 'quantization_config': expected what the recipe in {EXTRA_KEY!r} "
            "comes to, found another"
        )
    scales = reader.at("scales").mapping(extra.get("scales"))
    zero_points = reader.at("zero_points").mapping(extra.get("zero_points"))
    found = {}
    for name, value in scales.items():
        zero_point = zero_points.get(name)
        if type(value) is not float or not _is_scale(value):
            raise reader.at("scales").error(name, "a positive, normal float32", value)
        if zero_point is not None and not (type(zero_point) is int and 0 <= zero_point <= 255):
            raise reader.at("zero_points").error(name, "0..255", zero_point)
        found[name] = Scale(np.asarray(value, np.float32), zero_point)
    return StoredQuantization(recipe, scales=found)


def _is_scale(value: float) -> bool:
    limits = np.finfo(np.float32)
    return float(limits.tiny) <= value <= float(limits.max)


def _compressed_tensors(
    config: Mapping[str, Any], reader: _Reader, modules: Mapping[str, str]
) -> StoredQuantization:
    if (status := config.get("quantization_status")) != "compressed":
        raise reader.error("quantization_status", "'compressed'", status)
    _check_layout(config, reader)
    reader.absent(config, "kv_cache_scheme", "sparsity_config", "transform_config")
    ignore = reader.names(config, "ignore")
    groups = reader.at("config_groups")
    hows: list[tuple[list[str], SiteRecipe, int]] = []
    for name, group in groups.mapping(config.get("config_groups")).items():
        inside = groups.at(name)
        scheme = inside.mapping(group)
        if scheme.get("format") is not None:
            _check_layout(scheme, inside)
        inside.absent(scheme, "output_activations")
        b, rows = _operand(inside.at("weights"), scheme.get("weights"), True)
        a = Operand()
        if scheme.get("input_activations") is not None:
            a, _ = _operand(inside.at("input_activations"), scheme["input_activations"], False)
        try:
            how = SiteRecipe(a, b)
        except BertNumpyError as error:
            raise BertNumpyError(f"{inside.place}: {error}") from None
        hows.append((inside.names(scheme, "targets"), how, rows))
    by_site, rows_of = {}, {}
    for site, module in modules.items():
        if any(_fit(name, module, reader.at("ignore")) for name in ignore):
            continue
        # As the package does: a name before a pattern before a class, then as they come.
        fits = [
            (fit, number)
            for number, (targets, _, _) in enumerate(hows)
            for target in targets
            if (fit := _fit(target, module, groups))
        ]
        if fits:
            _, how, rows = hows[min(fits)[1]]
            by_site[site] = how
            rows_of[site] = rows
    return StoredQuantization(_recipe(COMPRESSED_TENSORS, by_site), rows=rows_of)


def _check_layout(values: Mapping[str, Any], reader: _Reader) -> None:
    if values.get("format") not in _READABLE_LAYOUTS:
        raise reader.error("format", f"one of {', '.join(_READABLE_LAYOUTS)}", values.get("format"))


def _operand(reader: _Reader, values: Any, weight: bool) -> tuple[Operand, int]:
    """An operand from compressed-tensors' ``QuantizationArgs``, and the rows of a block."""
    arguments = reader.mapping(values)

    def get(key: str, expected: tuple[Any, ...], default: Any = None) -> Any:
        found = arguments.get(key, default)
        if not any(type(found) is type(one) and found == one for one in expected):
            raise reader.error(key, " or ".join(map(repr, expected)), found)
        return found

    get("num_bits", (8,), 8)
    kind = get("type", ("float", "int"), "int")
    symmetric = get("symmetric", (True, False) if kind == "int" else (True,), True)
    fmt = _NAMED[kind, symmetric]
    strategy = arguments.get("strategy") or ("group" if arguments.get("group_size") else "tensor")
    dynamic = get("dynamic", (False,) if weight else (True, False), False)
    reader.absent(arguments, "actorder")
    strategies: tuple[str, ...] = ("tensor", "channel", "group", "block")
    if not weight:  # one scale of a whole batch would make a sequence's result depend on others
        strategies = ("token", "group") if dynamic else ("tensor",)
    if strategy not in strategies:
        raise reader.error("strategy", " or ".join(map(repr, strategies)), strategy)
    if strategy in ("tensor", "channel", "token"):
        return Operand(fmt, strategy, dynamic=strategy == "token"), 1
    if strategy == "group":
        rows, columns = 1, arguments.get("group_size")
        if type(columns) is not int or columns < 1:
            raise reader.error("group_size", "at least 1", columns)
    else:
        rows, columns = _block(reader, arguments, "block_structure")
    return Operand(fmt, "block", dynamic=True, block=columns), rows


def _block(reader: _Reader, values: Mapping[str, Any], key: str) -> tuple[int, int]:
    """The rows and columns of a block."""
    found = values.get(key)
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(type(length) is int and length > 0 for length in found)
    ):
        raise reader.error(key, "two numbers of at least 1", found)
    return found[0], found[1]


def _fit(target: str, module: str, reader: _Reader) -> int:
    """1 if a target is a linear layer's name, 2 if it is a pattern of it, 3 if its class; or 0."""
    if target == "Linear":
        return 3
    if not target.startswith("re:"):
        return int(target == module)
    pattern = target.removeprefix("re:")
    if _REPEATED_GROUP.search(pattern) or len(_REPEATS.findall(pattern)) > _MOST_REPEATS:
        raise BertNumpyError(
            f"{reader.place}: expected a pattern with at most {_MOST_REPEATS} repeats, and none "
            f"of a group, as others can take forever to match, found {target!r}"
        )
    try:
        return 2 if re.match(pattern, module) else 0
    except (re.error, OverflowError, RecursionError) as error:
        raise BertNumpyError(
            f"{reader.place}: expected a regular expression, found {target!r}: {error}"
        ) from None


def _fine_grained(
    config: Mapping[str, Any],
    reader: _Reader,
    modules: Mapping[str, str],
    is_coded: Callable[[str], bool],
) -> StoredQuantization:
    """Which layers are quantized is not in every such config: those whose weights are codes."""
    for key, expected in (
        ("activation_scheme", "dynamic"),
        ("fmt", "e4m3"),
        ("scale_fmt", "float"),
    ):
        if (found := config.get(key, expected)) != expected:
            raise reader.error(key, repr(expected), found)
    rows, columns = _block(reader, config, "weight_block_size")
    operand = Operand(E4M3FN, "block", dynamic=True, block=columns)
    coded = [site for site in modules if is_coded(site)]
    recipe = _recipe("fp8", dict.fromkeys(coded, SiteRecipe(operand, operand)))
    return StoredQuantization(recipe, "weight_scale_inv", dict.fromkeys(coded, rows))


def _recipe(name: str, by_site: Mapping[str, SiteRecipe]) -> Recipe:
    """A recipe that quantizes linear layers, each as given; none that is not."""
    return Recipe(name, overrides=tuple(by_site.items()))

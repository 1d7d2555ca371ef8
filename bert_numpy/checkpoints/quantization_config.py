"""The quantization section of a checkpoint's ``config.json``, to a recipe and back.

Four sections are understood:

- ``quantization_config`` with ``quant_method`` "compressed-tensors": the layout of
  the package of this name (formats ``float-quantized``, ``int-quantized``,
  ``naive-quantized``, ``pack-quantized`` and those of :mod:`bert_numpy.checkpoints.blocks`), which
  transformers, vLLM and llm-compressor read. It covers
  linear layers alone: codes and scales of weights, scales of their inputs. Older
  releases call the section ``compression_config``, or put another
  ``quantization_config`` into it, beside a ``sparsity_config``.
- ``quantization_config`` with ``quant_method`` "fp8" and ``weight_block_size``: FP8
  weights with one scale per block of rows and columns, ``weight_scale_inv``, as in
  DeepSeek-V3 (DeepSeek-AI, arXiv 2412.19437, section 3.3).
- ``quantization_config`` with ``quant_method`` "modelopt", see
  :mod:`bert_numpy.checkpoints.modelopt`.
- ``npfp8_config``, which others ignore: the whole recipe, and the static scales
  that have no place in the first section. If it is present, the first section is only
  checked against it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

import npfp8
from bert_numpy.checkpoints.blocks import (
    BLOCK_LAYOUTS,
    COMPRESSED_TENSORS,
    MODELOPT,
    Convention,
    layout_of,
)
from bert_numpy.checkpoints.config_file import EXTRA_KEY, quantization_key
from bert_numpy.checkpoints.config_reader import ConfigReader
from bert_numpy.checkpoints.modelopt import modelopt_config, read_modelopt
from bert_numpy.checkpoints.packed import INTEGERS, PACK_QUANTIZED
from bert_numpy.checkpoints.patterns import Budget, Pattern, compile_pattern
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.architectures import ARCHITECTURES
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.recipe import AnyFormat, Operand, Recipe, SiteRecipe
from bert_numpy.quantization.recipe_json import recipe_object, recipe_of
from npfp8 import (
    E4M3FN,
    E5M2,
    INT4,
    INT8,
    MXFP4,
    MXFP6_E2M3,
    MXFP8_E4M3,
    MXINT8,
    NVFP4,
    UINT4,
    UINT8,
    BlockFormat,
    Format,
)
from npfp8.arrays import Float32Array
from npfp8.blocks.formats import with_rule

__all__ = [
    "DEQUANTIZE",
    "WRITTEN",
    "StoredQuantization",
    "compressed_tensors_config",
    "npfp8_config",
    "read_quantization",
    "says_input",
]

#: The key that makes transformers 5 dequantize the codes while loading, instead of before the
#: first call; the inputs of layers are then not quantized.
DEQUANTIZE = "dequantize"

_VERSION = 1

#: The names of the formats of weights and inputs in compressed-tensors: the type, whether it is
#: symmetric, and its bits. An integer with a zero point is stored as int8, 128 below ours (8 if
#: it has 4 bits).
_KINDS: dict[Format, tuple[str, bool, int]] = {
    E4M3FN: ("float", True, 8),
    INT8: ("int", True, 8),
    UINT8: ("int", False, 8),
    INT4: ("int", True, 4),
    UINT4: ("int", False, 4),
}
_NAMED = {kind: fmt for fmt, kind in _KINDS.items()}

#: The layout's name by a weight's format. There is none for E5M2: compressed-tensors takes every
#: 8-bit float for E4M3. So E5M2 gets a name that it refuses, and it reads no wrong numbers.
_LAYOUTS: dict[Format, str] = {
    E4M3FN: "float-quantized",
    INT8: "int-quantized",
    UINT8: "int-quantized",
    INT4: PACK_QUANTIZED,
    UINT4: PACK_QUANTIZED,
    E5M2: "e5m2-quantized",
}
_PLAIN_LAYOUTS = ("float-quantized", "int-quantized", "naive-quantized")

#: The layouts of block formats that compressed-tensors has, by their number of bits and block.
_BLOCKS = {
    (layout.bits, layout.fmt.block): layout
    for layout in BLOCK_LAYOUTS
    if layout.fmt in (NVFP4, MXFP4, MXFP6_E2M3, MXFP8_E4M3)
}
_READABLE_LAYOUTS = (
    *_PLAIN_LAYOUTS,
    PACK_QUANTIZED,
    *(x.name for x in _BLOCKS.values()),
    "mixed-precision",
)

#: The states in which compressed-tensors writes a model. They do not tell whether the weights
#: are codes: old releases write codes as "frozen", so the dtype decides.
_STATUSES = ("initialized", "calibration", "frozen", "compressed", "decompressed")

#: The keys of an operand in compressed-tensors. Observers no longer matter once there are scales.
_ARGUMENTS = frozenset(
    (
        *("num_bits", "type", "symmetric", "strategy", "group_size", "block_structure"),
        *("dynamic", "actorder", "scale_dtype", "zp_dtype", "observer", "observer_kwargs"),
    )
)
_SCHEME = frozenset(("targets", "weights", "input_activations", "output_activations", "format"))

_SCALE_DTYPES = ("float32", "float16", "bfloat16")

_TOKENS = {"strategy": "token", "dynamic": True}
_GROUPS_OF_128 = {"type": "float", "strategy": "group", "group_size": 128, "dynamic": True}
_BLOCKS_OF_128 = {"type": "float", "strategy": "block", "block_structure": [128, 128]}

_INT4 = {"num_bits": 4, "strategy": "group", "group_size": 128}
_NVFP4 = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
_MX = {"type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "uint8"}
_MXFP4, _MXFP6, _MXFP8 = ({"num_bits": bits, **_MX} for bits in (4, 6, 8))

#: The schemes that compressed-tensors takes from the name of a group, which only lists targets.
_PRESETS: dict[str, dict[str, Any]] = {
    "UNQUANTIZED": {},
    "FP8": {"weights": {"type": "float"}, "input_activations": {"type": "float"}},
    "FP8_DYNAMIC": {
        "weights": {"type": "float", "strategy": "channel"},
        "input_activations": {"type": "float", **_TOKENS},
    },
    "FP8_BLOCK": {"weights": _BLOCKS_OF_128, "input_activations": _GROUPS_OF_128},
    "W8A8": {"weights": {"strategy": "channel"}, "input_activations": _TOKENS},
    "INT8": {"weights": {"strategy": "channel"}, "input_activations": _TOKENS},
    "W4A16": {"weights": _INT4},
    "W4A16_ASYM": {"weights": {**_INT4, "symmetric": False}},
    "W8A16": {"weights": {**_INT4, "num_bits": 8}},
    "NVFP4A16": {"weights": _NVFP4},
    "NVFP4": {"weights": _NVFP4, "input_activations": {**_NVFP4, "dynamic": "local"}},
    "MXFP4A16": {"weights": _MXFP4},
    "MXFP4": {"weights": _MXFP4, "input_activations": {**_MXFP4, "dynamic": True}},
    "MXFP4XFP8": {"weights": _MXFP4, "input_activations": _GROUPS_OF_128},
    "MXFP6A16": {"weights": _MXFP6},
    "MXFP6A8": {"weights": _MXFP6, "input_activations": {**_MXFP8, "dynamic": True}},
    "MXFP8A16": {"weights": _MXFP8},
    "MXFP8": {"weights": _MXFP8, "input_activations": {**_MXFP8, "dynamic": True}},
}

#: Class names that are targets of every linear layer: its class, vLLM's, and their base.
_LINEAR_CLASSES = ("Linear", "LinearBase", "Module")

#: The longest block along an axis, within the length of an array's axis on every machine.
_LONGEST_BLOCK = 2**31 - 1

#: The steps for all patterns of a config: a hundred patterns and layers take about a tenth.
_STEPS = 3_000_000

#: The first parts of the encoder's tensor names in checkpoints of models with a head.
_BASE_PREFIXES = tuple({kind.prefix.removesuffix("."): None for kind in ARCHITECTURES.values()})


@dataclass(frozen=True, eq=False)
class StoredQuantization:
    """The description of a checkpoint's quantized tensors in ``config.json``.

    Attributes
    ----------
    recipe : Recipe
    scale_name : str
        The name of a weight's scale.
    rows : mapping of str to int
        By site: the number of weight rows that share the scales of a block. It is 1 for
        a missing site.
    packed : frozenset of str
        The sites whose weights are packed into int32.
    scattered : mapping of str to int
        By site: the number of inputs of a group, if the groups are those of ``weight_g_idx``. The
        recipe has blocks of 1 there.
    scales : mapping of str to Scale
        The static scales that are not tensors, by ``site:a`` and ``site:b``.
    convention : Convention
        The names of the tensors of block formats.
    ours : bool
        Whether the description is this project's, which has every scale of a tensor.
    """

    recipe: Recipe
    scale_name: str = "weight_scale"
    rows: Mapping[str, int] = field(default_factory=dict)
    packed: frozenset[str] = frozenset()
    scattered: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)
    convention: Convention = COMPRESSED_TENSORS
    ours: bool = False


# Writing


def compressed_tensors_config(
    recipe: Recipe, modules: Mapping[str, str], absent: Iterable[str] = ()
) -> dict[str, Any]:
    """Make the ``quantization_config`` of a recipe.

    Parameters
    ----------
    recipe : Recipe
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.
    absent : iterable of str
        Layers that transformers' classes may create although the checkpoint does not have
        them; they have no codes.

    Raises
    ------
    BertNumpyError
        If no weight is quantized, or if a layer is quantized in a way that makes other
        programs read its weight wrongly.
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
        if (layout := _layout_name(how.b.fmt)) is None:
            known = (*_LAYOUTS, *(layout.fmt for layout in BLOCK_LAYOUTS))
            raise BertNumpyError(
                f"{place}: weight: expected {', '.join(map(str, known))} to be written, "
                f"found {how.b.fmt}"
            )
        schemes[site] = {
            "weights": _arguments(how.b, True) | _order(how),
            "input_activations": _arguments(how.a, False) if says_input(how) else None,
            "output_activations": None,
            "format": layout,
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
        "quant_method": COMPRESSED_TENSORS.name,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": names, **by_text[text]}
            for i, (text, names) in enumerate(targets.items())
        },
        "ignore": [
            *(_pattern(name) for site, name in modules.items() if site not in schemes),
            *_unlike(map(_pattern, absent), [modules[site] for site in schemes], "recipe"),
        ],
        "kv_cache_scheme": None,
    }


def npfp8_config(
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    modules: Mapping[str, str],
    tensor_scales: Mapping[str, Float32Array],
) -> dict[str, Any]:
    """Make a quantized model's ``npfp8_config``: its recipe and the scales without a tensor.

    The scales of tensors in block formats are here too, as the recipe's rules store them: the
    tensors are perhaps their reciprocals, which round once more. Those of weights,
    ``tensor_scales``, are by site.
    """
    scales = {f"{site}:b": float(number) for site, number in tensor_scales.items()}
    zero_points = {}
    for site, plan in plans.items():
        for name, scale in ((f"{site}:a", plan.a), (f"{site}:b", plan.b)):
            is_block = plan.recipe.a.block_format is not None
            if scale is None or (site in modules and says_input(plan.recipe) and not is_block):
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


def _layout_name(fmt: AnyFormat) -> str | None:
    """Return the name of a weight's layout by its format; None if there is none."""
    if isinstance(fmt, Format):
        return _LAYOUTS.get(fmt)
    layout = layout_of(fmt)
    return None if layout is None else layout.name


def says_input(how: SiteRecipe) -> bool:
    """Check whether compressed-tensors can describe the quantization of a layer's input."""
    if how.b.fmt is None:
        return False
    if isinstance(how.a.fmt, BlockFormat):
        return layout_of(how.a.fmt) in _BLOCKS.values()
    return how.a.fmt in _KINDS


def _arguments(operand: Operand, weight: bool) -> dict[str, Any]:
    """Convert an operand to compressed-tensors' ``QuantizationArgs``."""
    if isinstance(operand.fmt, BlockFormat):
        return _block_arguments(operand.fmt, weight)
    assert operand.fmt is not None
    kind, symmetric, bits = _KINDS.get(operand.fmt, ("float", True, 8))
    granularity = operand.granularity
    strategy = {"block": "group", "token": "channel" if weight else "token"}.get(
        granularity, granularity
    )
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": operand.block if strategy == "group" else None,
        "block_structure": None,
        "dynamic": operand.dynamic and not weight,
        "actorder": None,
    }


def _block_arguments(fmt: BlockFormat, weight: bool) -> dict[str, Any]:
    """Make the arguments that compressed-tensors 0.20 writes for a block format."""
    layout = layout_of(fmt)
    assert layout is not None
    arguments = {
        "num_bits": layout.bits,
        "type": "int" if layout.fmt == MXINT8 else "float",
        "symmetric": True,
        "strategy": layout.strategy,
        "group_size": fmt.block,
        "dynamic": False if weight else "local" if fmt.tensor_scale else True,
        "scale_dtype": layout.scale_dtype,
    }
    if fmt.tensor_scale and not weight:
        arguments["observer"] = "static_minmax"
    return arguments


def _order(how: SiteRecipe) -> dict[str, Any]:
    """Return compressed-tensors' name of GPTQ's order, which changes nothing for a reader.

    Its earlier releases refuse an order without groups.
    """
    named = how.gptq is not None and how.gptq.order != "stored" and how.b.granularity == "block"
    return {"actorder": "weight"} if named else {}


def _pattern(module: str) -> str:
    """Make a target that fits a layer of an encoder with or without a head around it."""
    first, _, rest = module.partition(".")
    return f"re:(.*\\.)?{re.escape(rest if first in _BASE_PREFIXES else module)}$"


# Reading


def read_quantization(
    raw: Mapping[str, Any], place: str, modules: Mapping[str, str], is_coded: Callable[[str], bool]
) -> StoredQuantization:
    """Read the description of the quantization from a checkpoint's ``config.json``.

    Parameters
    ----------
    raw : mapping
        The JSON object.
    place : str
        The file, for messages.
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.
    is_coded : callable
        A function that tells whether a site's weight is stored as codes; it is called if
        the config does not tell.

    Raises
    ------
    BertNumpyError
        If a section is malformed, or demands something that is not implemented. The
        message names the key.
    """
    key = quantization_key(raw) or "quantization_config"
    reader = ConfigReader(f"{place}: key {key!r}")
    config = reader.mapping(raw.get(key))
    if EXTRA_KEY in raw:
        return _own(raw, place, modules)
    _check_sparsity(ConfigReader(place), raw)
    if "quantization_config" in config:  # beside a sparsity_config
        _check_sparsity(reader, config)
        reader = reader.at("quantization_config")
        config = reader.mapping(config["quantization_config"])
    method = config.get("quant_method")
    # Only compressed-tensors uses the old key; its first releases had another name.
    if method == COMPRESSED_TENSORS.name or (
        key == "compression_config" and method in (None, "sparseml")
    ):
        stored = _compressed_tensors(config, reader, modules)
    elif method == MODELOPT.name:
        by_site = read_modelopt(config, reader, modules, Budget(_STEPS))
        stored = StoredQuantization(_recipe(MODELOPT.name, by_site), convention=MODELOPT)
    elif method == "fp8":
        stored = _fine_grained(config, reader, modules, is_coded)
    else:
        raise reader.error("quant_method", "'compressed-tensors', 'modelopt' or 'fp8'", method)
    dtype = raw.get("dtype", raw.get("torch_dtype"))
    recipe = replace(stored.recipe, arithmetic="bfloat16" if dtype == "bfloat16" else "float32")
    return replace(stored, recipe=recipe)


def _check_sparsity(reader: ConfigReader, values: Mapping[str, Any]) -> None:
    """Refuse weights that are stored without their zeros, that is, with a format but "dense"."""
    if config := values.get("sparsity_config"):
        inside = reader.at("sparsity_config")
        if (layout := inside.mapping(config).get("format")) not in (None, "dense"):
            raise inside.error("format", "'dense'", layout)


def _own(raw: Mapping[str, Any], place: str, modules: Mapping[str, str]) -> StoredQuantization:
    reader = ConfigReader(f"{place}: key {EXTRA_KEY!r}")
    extra = reader.mapping(raw[EXTRA_KEY])
    if extra.get("version") != _VERSION:
        raise reader.error("version", str(_VERSION), extra.get("version"))
    section = raw.get("quantization_config")
    method = section.get("quant_method") if isinstance(section, Mapping) else None
    convention = MODELOPT if method == MODELOPT.name else COMPRESSED_TENSORS
    try:
        recipe = recipe_of(extra.get("recipe"))
        expected = WRITTEN[convention](recipe, modules)
    except BertNumpyError as error:
        raise BertNumpyError(f"{reader.place}: {error}") from None
    coded = [name for site, name in modules.items() if recipe.site(site).b.fmt is not None]
    if _without_others(section, expected["ignore"], coded, place) != expected:
        raise BertNumpyError(
            f"{place}: key 'quantization_config': expected what the recipe in {EXTRA_KEY!r} "
            "comes to, found another"
        )
    scales = reader.at("scales").mapping(extra.get("scales"))
    zero_points = reader.at("zero_points").mapping(extra.get("zero_points"))
    found = {}
    for name, value in scales.items():
        zero_point = zero_points.get(name)
        if type(value) is not float or not _is_scale(value, _has_tensor_scale(recipe, name)):
            raise reader.at("scales").error(name, "a positive, normal float32", value)
        if zero_point is not None and not (type(zero_point) is int and 0 <= zero_point <= 255):
            raise reader.at("zero_points").error(name, "0..255", zero_point)
        found[name] = Scale(np.asarray(value, np.float32), zero_point)
    integers = frozenset(site for site in modules if recipe.site(site).b.fmt in (INT4, UINT4))
    return StoredQuantization(
        recipe, packed=integers, scales=found, convention=convention, ours=True
    )


#: The functions that make the section, by the convention of its tensors.
WRITTEN: Mapping[Convention, Callable[..., dict[str, Any]]] = {
    COMPRESSED_TENSORS: compressed_tensors_config,
    MODELOPT: modelopt_config,
}


def _without_others(stored: Any, expected: Sequence[str], coded: Sequence[str], place: str) -> Any:
    """Remove the ignored names, and the key, that make no difference here.

    The ignored layers that a checkpoint does not have depend on the release that wrote it.
    """
    names = stored.get("ignore") if isinstance(stored, Mapping) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return stored
    if isinstance(stored.get(DEQUANTIZE), bool):
        stored = {key: value for key, value in stored.items() if key != DEQUANTIZE}
    where = f"{place}: key 'quantization_config'"
    others = set(_unlike([name for name in names if name not in expected], coded, where))
    return {**stored, "ignore": [name for name in names if name not in others]}


def _unlike(targets: Iterable[str], modules: Sequence[str], place: str) -> list[str]:
    """List the targets that fit none of the given layers."""
    reader, budget = ConfigReader(place).at("ignore"), Budget(_STEPS)
    found = []
    for name in targets:
        target = _Targets([name], reader, budget)
        if all(target.best(module) is None for module in modules):
            found.append(name)
    return found


def _is_scale(value: float, of_blocks: bool) -> bool:
    """Check for a scale's value; the scale of a tensor in blocks may be subnormal, or 0."""
    limits = np.finfo(np.float32)
    return (0 if of_blocks else float(limits.tiny)) <= value <= float(limits.max)


def _has_tensor_scale(recipe: Recipe, name: str) -> bool:
    """Check whether ``site:a`` or ``site:b`` is in a block format with a scale per tensor."""
    site, _, side = name.rpartition(":")
    if side not in ("a", "b"):
        return False
    try:
        fmt = getattr(recipe.site(site), side).block_format
    except ValueError:  # no such site
        return False
    return fmt is not None and fmt.tensor_scale


def _compressed_tensors(
    config: Mapping[str, Any], reader: ConfigReader, modules: Mapping[str, str]
) -> StoredQuantization:
    if (status := config.get("quantization_status")) not in (None, *_STATUSES):
        raise reader.error("quantization_status", f"one of {', '.join(_STATUSES)}", status)
    reader.absent(config, "kv_cache_scheme", "moe_sparsity_config")
    _check_sparsity(reader, config)
    transforms = reader.at("transform_config").mapping(config.get("transform_config") or {})
    reader.at("transform_config").absent(transforms, "config_groups")
    groups = reader.at("config_groups")
    schemes = groups.mapping(config.get("config_groups", {}))
    if schemes:
        _check_layout(config, reader)
    how_of: dict[str, _Scheme] = {}  # by target: from the last group that has it
    for name, group in schemes.items():
        inside = groups.at(name)
        targets, how = _scheme(inside, name, group, config.get("format"))
        how_of |= dict.fromkeys(targets, how)
    budget = Budget(_STEPS)
    ignored = _Targets(reader.names(config, "ignore"), reader.at("ignore"), budget)
    wanted = _Targets(how_of, groups, budget)
    found: dict[str, _Scheme] = {}
    for site, module in modules.items():
        if ignored.best(module) is not None:
            continue
        target = wanted.best(module)
        if target is not None and how_of[target].how.b.fmt is not None:
            found[site] = how_of[target]
    return StoredQuantization(
        _recipe(COMPRESSED_TENSORS.name, {site: scheme.how for site, scheme in found.items()}),
        rows={site: scheme.rows for site, scheme in found.items()},
        packed=frozenset(site for site, scheme in found.items() if scheme.packed),
        scattered={
            site: scheme.scattered for site, scheme in found.items() if scheme.scattered is not None
        },
    )


@dataclass(frozen=True)
class _Scheme:
    """A group's recipe, and how its weights are stored; see :class:`StoredQuantization`."""

    how: SiteRecipe
    rows: int = 1
    packed: bool = False
    scattered: int | None = None


def _scheme(reader: ConfigReader, name: str, group: Any, layout: Any) -> tuple[list[str], _Scheme]:
    """Read the targets of a group, and its scheme; ``layout`` is that of groups that name none."""
    if isinstance(group, list):
        if (preset := _PRESETS.get(name.upper())) is None:
            expected = f"a JSON object; or a list, of a group called {', '.join(_PRESETS)}"
            raise BertNumpyError(f"{reader.place}: expected {expected}, found a list")
        group = preset | {"targets": group}
    scheme = reader.mapping(group)
    if scheme.get("format") is not None:
        _check_layout(scheme, reader)
    reader.absent(scheme, "output_activations", *sorted(scheme.keys() - _SCHEME))
    targets = reader.names(scheme, "targets")
    a, b, rows, scattered = Operand(), Operand(), 1, None
    weights, inputs = scheme.get("weights"), scheme.get("input_activations")
    if weights is not None or inputs is not None:
        layout = scheme.get("format") or layout
        b, rows = _operand(reader.at("weights"), weights, True)
        _check_format(reader, layout, b)
        b, scattered = _without_order(reader.at("weights"), weights, b, rows)
    if inputs is not None:
        a, _ = _operand(reader.at("input_activations"), inputs, False)
    four = b.fmt in (INT4, UINT4)
    packed = layout == PACK_QUANTIZED or (layout == "mixed-precision" and four)
    try:
        return targets, _Scheme(SiteRecipe(a, b), rows, packed, scattered)
    except BertNumpyError as error:
        raise BertNumpyError(f"{reader.place}: {error}") from None


#: The names of GPTQ's order of activations with groups in that order, which needs ``weight_g_idx``;
#: compressed-tensors 0.20 has no longer any.
_SCATTERED = ("group", "dynamic", True)


def _without_order(
    reader: ConfigReader, values: Any, operand: Operand, rows: int
) -> tuple[Operand, int | None]:
    """Return an operand with a scale per input, and the inputs of a group, if these scatter."""
    order = reader.mapping(values).get("actorder")
    if not _is_one_of(order, _SCATTERED):
        return operand, None
    if operand.granularity != "block" or operand.block_format is not None or rows > 1:
        raise reader.error("actorder", "nothing or 'weight' without groups of inputs", order)
    return replace(operand, block=1), operand.block


def _check_layout(values: Mapping[str, Any], reader: ConfigReader) -> None:
    if values.get("format") not in _READABLE_LAYOUTS:
        raise reader.error("format", f"one of {', '.join(_READABLE_LAYOUTS)}", values.get("format"))


def _check_format(reader: ConfigReader, layout: Any, weight: Operand) -> None:
    """Refuse a layout that compressed-tensors reads a weight of such a scheme by, and fails."""
    if layout == "mixed-precision" or weight.fmt is None:
        return
    expected: tuple[str, ...] = _PLAIN_LAYOUTS
    if weight.fmt in INTEGERS:
        expected = (*expected, PACK_QUANTIZED)
    if weight.block_format is not None:
        expected = (str(_layout_name(weight.block_format)),)
    if layout not in expected:
        raise reader.error("format", " or ".join(map(repr, expected)), layout)


def _operand(reader: ConfigReader, values: Any, weight: bool) -> tuple[Operand, int]:
    """Read an operand and the rows of a block from compressed-tensors' ``QuantizationArgs``."""
    arguments = reader.mapping(values)
    get = partial(_one_of, reader, arguments)
    kind = get("type", ("float", "int"), "int")
    bits = get("num_bits", (4, 6, 8) if kind == "float" else (4, 8) if weight else (8,), 8)
    symmetric = get("symmetric", (True, False) if kind == "int" else (True,), True)
    # "weight", or "static", is an order in GPTQ that leaves the columns in place.
    order = arguments.get("actorder")
    known = (None, False, "weight", "static", *(_SCATTERED if weight else ()))
    if not _is_one_of(order, known):
        raise reader.error("actorder", "nothing, 'weight', or 'group' for weights", order)
    reader.absent(arguments, *sorted(arguments.keys() - _ARGUMENTS))
    scales = str(arguments.get("scale_dtype")).removeprefix("torch.")
    if kind == "float" and (bits < 8 or scales == "uint8"):
        return _block_operand(reader, arguments, bits, weight), 1
    return _plain_operand(reader, arguments, _NAMED[kind, symmetric, bits], weight)


def _plain_operand(
    reader: ConfigReader, arguments: Mapping[str, Any], fmt: Format, weight: bool
) -> tuple[Operand, int]:
    """Read an operand with float scales, and the rows of a block."""
    dynamic = _one_of(reader, arguments, "dynamic", (False,) if weight else (True, False), False)
    scales, size = arguments.get("scale_dtype"), arguments.get("group_size")
    named = str(scales).removeprefix("torch.")
    if scales is not None and named not in _SCALE_DTYPES:
        raise reader.error("scale_dtype", f"one of {', '.join(_SCALE_DTYPES)}", scales)
    if size is not None and not (type(size) is int and (size == -1 or _is_length(size))):
        raise reader.error("group_size", f"1..{_LONGEST_BLOCK}", size)
    strategy = arguments.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    strategy = strategy.lower() if isinstance(strategy, str) else strategy
    strategies: tuple[str, ...] = ("tensor", "channel", "group", "block")
    if not weight:  # with one scale per batch, a sequence's result would depend on the others
        strategies = ("token", "group") if dynamic else ("tensor",)
    if strategy not in strategies:
        raise reader.error("strategy", " or ".join(map(repr, strategies)), strategy)
    if strategy != "group" and size not in (None, -1):
        raise reader.error("group_size", f"nothing, of strategy {strategy!r}", size)
    if strategy != "block":
        reader.absent(arguments, "block_structure")
    if strategy in ("tensor", "channel", "token"):
        return Operand(fmt, strategy), 1
    if strategy == "group":
        if size in (None, -1):
            raise reader.error("group_size", "at least 1", size)
        rows, columns = 1, size
    else:
        rows, columns = _block(reader, arguments, "block_structure")
    return Operand(fmt, "block", block=columns), rows


def _one_of(
    reader: ConfigReader,
    arguments: Mapping[str, Any],
    key: str,
    expected: tuple[Any, ...],
    default: Any = None,
) -> Any:
    """Return the value of a key, which must be one of the expected ones."""
    found = arguments.get(key, default)
    if not _is_one_of(found, expected):
        raise reader.error(key, " or ".join(map(repr, expected)), found)
    return found.lower() if isinstance(found, str) else found


def _is_one_of(found: Any, expected: tuple[Any, ...]) -> bool:
    """Check for a value of the same type; like compressed-tensors, ignore the case of letters."""
    lower = found.lower() if isinstance(found, str) else found
    return any(type(lower) is type(one) and lower == one for one in expected)


def _block_operand(
    reader: ConfigReader, arguments: Mapping[str, Any], bits: int, weight: bool
) -> Operand:
    """Read an operand in a block format, whose scales and codes have compressed-tensors' rule."""
    reader.absent(arguments, "block_structure")
    get = partial(_one_of, reader, arguments)
    size = get("group_size", tuple(block for width, block in _BLOCKS if width == bits))
    layout = _BLOCKS[bits, size]
    get("symmetric", (True,), True)
    get("strategy", (layout.strategy,), "group")
    local = "local" if layout.fmt.tensor_scale else True
    get("dynamic", (False,) if weight else (local,), False)
    scales = arguments.get("scale_dtype")
    expected = layout.scale_dtype.removeprefix("torch.")
    if scales is not None and str(scales).removeprefix("torch.") != expected:
        raise reader.error("scale_dtype", repr(expected), scales)
    return Operand(with_rule(layout.fmt, COMPRESSED_TENSORS.name))


def _block(reader: ConfigReader, values: Mapping[str, Any], key: str) -> tuple[int, int]:
    """Read the rows and columns of a block."""
    found = values.get(key)
    if isinstance(found, str) and re.fullmatch(r"\d{1,9}x\d{1,9}", found):  # from old releases
        found = [int(length) for length in found.split("x")]
    if not isinstance(found, list) or len(found) != 2 or not all(map(_is_length, found)):
        raise reader.error(key, "two numbers of at least 1 and of 31 bits", found)
    return found[0], found[1]


def _is_length(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _LONGEST_BLOCK


class _Targets:
    """Names, patterns (``re:``) and classes of layers, parsed once."""

    def __init__(self, targets: Iterable[str], reader: ConfigReader, budget: Budget) -> None:
        self.reader, self.budget = reader, budget
        names = sorted(set(targets))
        self.names = frozenset(names)
        self.classes = [name for name in names if name in _LINEAR_CLASSES]
        self.patterns: list[tuple[str, Pattern]] = []
        for name in names:
            if name.startswith("re:"):
                try:
                    self.patterns.append((name, compile_pattern(name.removeprefix("re:"))))
                except ValueError as error:
                    raise self.error(name, error) from None

    def best(self, module: str) -> str | None:
        """Find the target that applies to a linear layer; None if there is none.

        The order is that of compressed-tensors: a name goes before a pattern and a pattern
        before a class; of several patterns or classes, the first in the alphabet applies.
        """
        if module in self.names:
            return module
        for name, pattern in self.patterns:
            try:
                if pattern.matches(module, self.budget):
                    return name
            except ValueError as error:
                raise self.error(name, error) from None
        return self.classes[0] if self.classes else None

    def error(self, name: str, reason: ValueError) -> BertNumpyError:
        return BertNumpyError(
            f"{self.reader.place}: expected a regular expression, found {name!r}: {reason}"
        )


def _fine_grained(
    config: Mapping[str, Any],
    reader: ConfigReader,
    modules: Mapping[str, str],
    is_coded: Callable[[str], bool],
) -> StoredQuantization:
    """Read an "fp8" config; the quantized layers are those whose weights are codes."""
    for key, expected in (
        ("activation_scheme", "dynamic"),
        ("fmt", "e4m3"),
        ("scale_fmt", "float"),
    ):
        if (found := config.get(key, expected)) != expected:
            raise reader.error(key, repr(expected), found)
    rows, columns = _block(reader, config, "weight_block_size")
    operand = Operand(E4M3FN, "block", block=columns)
    coded = [site for site in modules if is_coded(site)]
    recipe = _recipe("fp8", dict.fromkeys(coded, SiteRecipe(operand, operand)))
    return StoredQuantization(recipe, "weight_scale_inv", dict.fromkeys(coded, rows))


def _recipe(name: str, by_site: Mapping[str, SiteRecipe]) -> Recipe:
    """Make a recipe that quantizes only the given linear layers."""
    return Recipe(name, overrides=tuple(by_site.items()))

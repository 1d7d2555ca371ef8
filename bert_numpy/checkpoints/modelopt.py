"""ModelOpt's section of ``config.json`` (and ``hf_quant_config.json``), to a recipe and back.

One name, ``quant_algo``, describes how all layers are quantized, except those in ``ignore``. In
``MIXED_PRECISION``, ``quantized_layers`` names the layers, each with its own ``quant_algo``.
``hf_quant_config.json`` holds the same under other names (``exclude_modules``); older releases
write it alone. Read from NVIDIA Model-Optimizer 0.47: ``export/convert_hf_config.py`` and
``process_layer_quant_config`` in ``export/quant_utils.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import npfp8
from bert_numpy.checkpoints.blocks import MODELOPT
from bert_numpy.checkpoints.config_reader import ConfigReader
from bert_numpy.checkpoints.patterns import Budget, Pattern, compile_pattern
from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.recipe import AnyFormat, Operand, Recipe, SiteRecipe
from npfp8 import E4M3FN, MXFP4, MXFP8_E4M3, NVFP4, BlockFormat

__all__ = ["hf_quant_config", "modelopt_config", "read_modelopt", "section_of_file"]

#: By name: the formats of inputs and weights. Inputs by FP8 and NVFP4 have a static scale per
#: tensor. "mxfp4" does not tell whether inputs are quantized, so here they are not.
ALGORITHMS: dict[str, tuple[AnyFormat | None, AnyFormat]] = {
    "FP8": (E4M3FN, E4M3FN),
    "NVFP4": (NVFP4, NVFP4),
    "W4A16_NVFP4": (None, NVFP4),
    "MXFP8": (MXFP8_E4M3, MXFP8_E4M3),
    "mxfp4": (None, MXFP4),
}
_MIXED = "MIXED_PRECISION"

#: Keys of a layer that change its result.
_OTHERS = ("has_zero_point", "pre_quant_scale", "lora_rank")


# Writing


def modelopt_config(
    recipe: Recipe, modules: Mapping[str, str], absent: Iterable[str] = ()
) -> dict[str, Any]:
    """Make the ``quantization_config`` of a recipe.

    Parameters
    ----------
    recipe : Recipe
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.
    absent : iterable of str
        Layers that the checkpoint does not have, which are ignored too.

    Raises
    ------
    BertNumpyError
        If no weight is quantized, or a layer is quantized in a way that has no name.
    """
    algorithms = {}
    for site in modules:
        how = recipe.site(site)
        if how.b.fmt is not None or how.migration is not None:
            algorithms[site] = _algorithm(how, f"recipe {recipe.name}: {site}")
    if not algorithms:
        raise BertNumpyError(f"recipe {recipe.name}: expected quantized weights, found none")
    section: dict[str, Any] = {"quant_method": MODELOPT.name}
    names = set(algorithms.values())
    if len(names) == 1:
        (name,) = names
        section |= _layer(name)
        if (scheme := _scheme(name)) is not None:
            section["config_groups"] = {"group_0": {**scheme, "targets": ["Linear"]}}
    else:
        section["quant_algo"] = _MIXED
        section["quantized_layers"] = {
            modules[site]: _layer(name) for site, name in algorithms.items()
        }
    section["ignore"] = sorted({modules[site] for site in modules.keys() - algorithms} | {*absent})
    section["producer"] = {"name": "fp8-bert-numpy", "version": npfp8.__version__}
    return section


def hf_quant_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """Make the content of ``hf_quant_config.json`` from the section of ``config.json``."""
    same = ("quant_algo", "group_size", "quantized_layers")
    quantization = {key: section[key] for key in same if key in section}
    return {
        "producer": section["producer"],
        "quantization": {
            **quantization,
            "kv_cache_quant_algo": None,
            "exclude_modules": section["ignore"],
        },
    }


def _algorithm(how: SiteRecipe, place: str) -> str:
    """Name the way in which a layer is quantized."""
    found = (_shown(how.a), _shown(how.b))
    if how.migration is None:
        for name, formats in ALGORITHMS.items():
            if found == tuple(map(str, formats)):
                return name
    known = ", ".join(f"{b} with inputs {a or '-'} ({name})" for name, (a, b) in ALGORITHMS.items())
    raise BertNumpyError(
        f"{place}: expected {known} for the layout of ModelOpt, found {how.b.fmt} with inputs "
        f"{how.a.fmt or '-'}"
    )


def _shown(operand: Operand) -> str:
    """Name an operand's format; with its granularity if ModelOpt has no name for that."""
    if isinstance(operand.fmt, BlockFormat) or operand.granularity == "tensor":
        return str(operand.fmt)
    return f"{operand.fmt} {operand.granularity}"


def _layer(name: str) -> dict[str, Any]:
    fmt = ALGORITHMS[name][1]
    size = {"group_size": fmt.block} if isinstance(fmt, BlockFormat) and name.isupper() else {}
    return {"quant_algo": name, **size}


def _scheme(name: str) -> dict[str, Any] | None:
    """Describe the operands as ModelOpt does for some names; None for the others."""
    if name not in ("FP8", "NVFP4", "W4A16_NVFP4"):
        return None
    found = {}
    for key, fmt in zip(("input_activations", "weights"), ALGORITHMS[name], strict=True):
        if isinstance(fmt, BlockFormat):
            found[key] = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": fmt.block}
        elif fmt is not None:
            found[key] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return found


# Reading


def section_of_file(raw: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Make the section of ``config.json`` from the content of ``hf_quant_config.json``.

    Raises
    ------
    BertNumpyError
        If there is no object ``quantization``.
    """
    reader = ConfigReader(place).at("quantization")
    inner = dict(reader.mapping(raw.get("quantization")))
    ignore = reader.names(inner, "exclude_modules")
    return {**inner, "quant_method": MODELOPT.name, "ignore": ignore}


def read_modelopt(
    config: Mapping[str, Any], reader: ConfigReader, modules: Mapping[str, str], budget: Budget
) -> dict[str, SiteRecipe]:
    """Read the recipe of each quantized layer, by site.

    Parameters
    ----------
    config : mapping
        The section.
    reader : ConfigReader
        Its place.
    modules : mapping of str to str
        Every linear layer: its site, and its name in the checkpoint.
    budget : Budget
        The steps for all patterns.

    Raises
    ------
    BertNumpyError
        If the section is malformed, or demands something that is not implemented.
    """
    reader.absent(config, "kv_cache_scheme", "kv_cache_quant_algo", *_OTHERS)
    algorithm = config.get("quant_algo")
    if algorithm == _MIXED:
        layers = reader.at("quantized_layers")
        listed = layers.mapping(config.get("quantized_layers"))
        return {
            site: _read_layer(layers.at(module), listed[module])
            for site, module in modules.items()
            if module in listed
        }
    how = _read_layer(reader, config)
    ignored = [_wildcards(name, reader) for name in reader.names(config, "ignore")]
    try:
        return {
            site: how
            for site, module in modules.items()
            if not any(pattern.matches(module, budget) for pattern in ignored)
        }
    except ValueError as error:
        raise BertNumpyError(f"{reader.place}: key 'ignore': {error}") from None


def _read_layer(reader: ConfigReader, values: Any) -> SiteRecipe:
    layer = reader.mapping(values)
    name = layer.get("quant_algo")
    known = {name.upper(): formats for name, formats in ALGORITHMS.items()}
    if not isinstance(name, str) or name.upper() not in known:
        raise reader.error("quant_algo", f"one of {', '.join((*ALGORITHMS, _MIXED))}", name)
    reader.absent(layer, *_OTHERS)
    inputs, weights = known[name.upper()]
    if isinstance(weights, BlockFormat):
        size = layer.get("group_size", weights.block)
        if type(size) is not int or size != weights.block:
            raise reader.error("group_size", f"{weights.block} for {name}", size)
    return SiteRecipe(_operand(inputs), _operand(weights))


def _operand(fmt: AnyFormat | None) -> Operand:
    return Operand(fmt, rule=MODELOPT.name if isinstance(fmt, BlockFormat) else None)


def _wildcards(name: str, reader: ConfigReader) -> Pattern:
    """Compile a name with ``*``, which also fits all layers inside a module of that name."""
    try:
        return compile_pattern(rf"{'.*'.join(map(re.escape, name.split('*')))}(\..*)?$")
    except ValueError as error:
        raise BertNumpyError(
            f"{reader.place}: key 'ignore': expected a name, found {name!r}: {error}"
        ) from None

"""Quantized checkpoints: folders that others can read, written atomically, restored bit by bit.

The quantized weight of a linear layer is stored as codes (``F8_E4M3``, ``F8_E5M2``, ``I8``)
under its usual name, with ``weight_scale`` in float32: (1,) per tensor, (out, 1) per
output channel, (out, in / block) per block. Codes of 4 bits are packed
(:mod:`bert_numpy.checkpoints.packed`). A static scale of its input is
``input_scale``, (1,). Integers with a zero point are stored as int8, 128 below
ours, with ``weight_zero_point`` and ``input_zero_point``. All this is the layout
of compressed-tensors; :mod:`bert_numpy.checkpoints.quantization_config` describes the rest,
and :mod:`bert_numpy.checkpoints.blocks` the tensors of block formats.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.blocks import (
    BLOCK_LAYOUTS,
    COMPRESSED_TENSORS,
    CONVENTIONS,
    MODELOPT,
    Convention,
    layout_of,
    module_of,
    packing_fault,
    read_blocks,
    read_tensor_scale,
    stored_blocks,
    stored_tensor_scale,
)
from bert_numpy.checkpoints.config_file import (
    EXTRA_KEY,
    HF_QUANT_CONFIG,
    quantization_key,
    read_config,
)
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.modelopt import hf_quant_config, section_of_file
from bert_numpy.checkpoints.packed import (
    PACK_QUANTIZED,
    groups_of_inputs,
    packed_codes,
    packed_zero_points,
    read_packed_codes,
    read_packed_zero_points,
)
from bert_numpy.checkpoints.parameters import find_parameters, read_parameters
from bert_numpy.checkpoints.pooling import pooling_files, read_dense, read_pooling
from bert_numpy.checkpoints.quantization_config import (
    DEQUANTIZE,
    WRITTEN,
    StoredQuantization,
    npfp8_config,
    read_quantization,
    says_input,
)
from bert_numpy.checkpoints.tensors import companion, open_checkpoint, read_float32
from bert_numpy.errors import BertNumpyError, naming, read_json, reading, writing
from bert_numpy.model.architectures import HEADS
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model
from bert_numpy.model.sites import WORDS, expected_shapes, linear_sites, sites_of
from bert_numpy.quantization.convert import QuantizedModel, planned_model
from bert_numpy.quantization.plan import Scale, SitePlan, static_sides
from bert_numpy.quantization.recipe import Operand, Recipe
from npfp8 import (
    E4M3FN,
    E5M2,
    INT4,
    INT8,
    UINT4,
    UINT8,
    FloatFormat,
    Format,
    IntFormat,
    QuantizedTensor,
    quantize,
)
from npfp8.arguments import choice, path_of, require, wrong_type
from npfp8.arrays import Array, Float32Array
from npfp8.files import check_folder, created_folder, open_regular, require_absent
from npfp8.scaling import axis_and_block
from npfp8.storage import Fp8Array, StoredTensor, save_file

__all__ = [
    "TOKENIZER_FILES",
    "check_target",
    "check_writable",
    "linear_modules",
    "load_quantized",
    "save_quantized",
    "side_files",
    "stored_quantization",
]

#: The safetensors dtype of each format's codes, where they are not packed.
_CODE_DTYPES: dict[Format, str] = {
    E4M3FN: "F8_E4M3",
    E5M2: "F8_E5M2",
    **dict.fromkeys((INT8, UINT8, INT4, UINT4), "I8"),
}

#: The files that a tokenizer may consist of, for all architectures.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)

#: The size limit, in bytes, of copied files; the largest known tokenizer file has 35 MB.
_MAX_SIDE_FILE = 1 << 28

_MANIFEST = "SHA256SUMS"


def linear_modules(config: BertConfig, parameters: Mapping[str, StoredTensor]) -> dict[str, str]:
    """Map the site of every linear layer to its name in a checkpoint.

    A decoder that shares the tensor of the word embeddings is left out: it has no codes.
    """
    words = parameters[WORDS].key
    keys = {site.name: parameters[f"{site.name}.weight"].key for site in linear_sites(config)
            if f"{site.name}.weight" in parameters}  # fmt: skip
    return {name: key.rpartition(".")[0] for name, key in keys.items() if key != words}


def _check_dense(config: BertConfig, recipe: Recipe) -> None:
    """Refuse a recipe that quantizes a Dense module, whose file others read as plain numbers."""
    for layer in () if config.pooling is None else config.pooling.dense:
        if recipe.site(layer.site).quantizes:
            raise BertNumpyError(
                f"recipe {recipe.name}: {layer.site}: expected no quantization: "
                "sentence-transformers has no place for codes in a Dense module"
            )


# Writing


def _absent_modules(config: BertConfig, modules: Mapping[str, str]) -> list[str]:
    """List the linear layers in classes of the model's family that the checkpoint lacks.

    transformers creates them if another class than the checkpoint's loads it: ``AutoModel``
    creates the pooler that the encoder of a sentence-transformers folder lacks.
    """
    kind = config.description
    classes = ("Model", *(f"For{task}" for task in HEADS | dict(kind.heads)))
    names = set()
    for name in classes:
        other = replace(config, architecture=f"{kind.class_name}{name}", pooling=None)
        for site in linear_sites(other):
            names |= set(kind.stored_names(f"{site.name}.weight", other.head))
    stored = {name.removeprefix(kind.prefix) for name in modules.values()}
    return sorted({name.removesuffix(".weight") for name in names} - stored)


def _written_modules(
    config: BertConfig, recipe: Recipe, parameters: Mapping[str, StoredTensor]
) -> dict[str, str]:
    """List a checkpoint's linear layers; refuse a recipe that quantizes a shared matrix."""
    _check_dense(config, recipe)
    modules = linear_modules(config, parameters)
    decoder = "cls.predictions.decoder"
    tied = f"{decoder}.weight" in parameters and decoder not in modules
    if tied and recipe.site(decoder).b.fmt is not None:
        raise BertNumpyError(
            f"recipe {recipe.name}: {decoder}: expected no quantization: the checkpoint holds the "
            "matrix once, with the word embeddings, which are not quantized"
        )
    for site in modules:
        fmt, tensor = recipe.site(site).b.block_format, parameters[f"{site}.weight"]
        if fmt and layout_of(fmt) and (fault := packing_fault(fmt, tensor.shape[1])):
            raise BertNumpyError(f"recipe {recipe.name}: {site}: {fault}")
    return modules


def check_target(target: Path) -> None:
    """Raise :class:`BertNumpyError` if the new folder ``target`` cannot be written."""
    with writing(target):
        try:
            require_absent(target)
        except FileExistsError:
            fault = "is not empty" if target.is_dir() else "is not a folder"
            raise BertNumpyError(
                f"{target} already exists and {fault}. Choose another folder; existing output is "
                "never overwritten"
            ) from None
        if not os.path.isdir(os.path.dirname(os.path.abspath(target))):
            raise BertNumpyError(f"{target.parent}: expected a folder to write into, found none")
        check_folder(target)


def check_writable(
    config: BertConfig, recipe: Recipe, source: str | Path, layout: str = COMPRESSED_TENSORS.name
) -> None:
    """Raise :class:`BertNumpyError` if the layout cannot express a checkpoint's recipe."""
    convention = CONVENTIONS[choice("layout", layout, CONVENTIONS)]
    parameters = find_parameters(config, open_checkpoint(resolve(source)))
    modules = _written_modules(config, recipe, parameters)
    WRITTEN[convention](recipe, modules, _absent_modules(config, modules))


def side_files(folder: Path) -> list[str]:
    """List a checkpoint's files to copy beside quantized weights, as paths in its folder.

    These are the existing files of the tokenizer and of a sentence-transformers folder.
    Copies may be published, so each must be a file of the folder itself: links are followed
    only within the folder or, if it is a snapshot in the hub's cache, within its repository
    there. JSON files must contain JSON.

    Raises
    ------
    BertNumpyError
        If one is a link that leads elsewhere, is not a file, or is too large.
    """
    root = _repository(folder)
    found = []
    for name in (*TOKENIZER_FILES, *pooling_files(folder)):
        path = folder / name
        if not os.path.lexists(path):
            continue
        final = Path(os.path.realpath(path))
        if not final.is_relative_to(root):
            raise BertNumpyError(
                f"{path}: expected a file of the model's folder, as it is copied into a folder to "
                f"be published; found a link to {final}: put a copy in its place, or remove it"
            )
        with reading(path), open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
        if size > _MAX_SIDE_FILE:
            raise BertNumpyError(
                f"{path}: expected at most {_MAX_SIDE_FILE} bytes to copy, found {size}"
            )
        if path.suffix == ".json":
            read_json(path, object)
        found.append(name)
    return found


def _repository(folder: Path) -> Path:
    """Return the folder that must hold a checkpoint's files: its own, or its repository's cache."""
    own = Path(os.path.realpath(folder))
    is_snapshot = own.parent.name == "snapshots" and own.parent.parent.name.startswith("models--")
    return own.parent.parent if is_snapshot else own


def save_quantized(
    model: QuantizedModel,
    source: str | Path,
    target: str | Path,
    card: str | Callable[[Path], str] | None = None,
    layout: str = COMPRESSED_TENSORS.name,
) -> None:
    """Write a quantized model as a Hugging Face checkpoint; loading it gives the same bits.

    Parameters
    ----------
    model : QuantizedModel
        A model that :func:`bert_numpy.apply_recipe` made from ``source``.
    source : str or Path
        The checkpoint in float32 (or float16, or bfloat16) that ``model`` was made from.
        Tensors that are not quantized are copied from it byte for byte, and so are the files
        of the tokenizer and of a sentence-transformers folder.
    target : str or Path
        The folder to create. It is written atomically: an interrupted process leaves it
        unchanged. It must not exist, or must be an empty folder.
    card : str or callable (Path) -> str, optional
        The model card, ``README.md``; or a function that makes it, which is called with the
        folder once all other files are in it.
    layout : {"compressed-tensors", "modelopt"}
        The names of tensors and of the keys in ``config.json``. ModelOpt has names for few
        recipes: E4M3 with static scales, NVFP4, MXFP8, and weights alone in NVFP4 or MXFP4.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, or ``layout`` is no such name.
    BertNumpyError
        If ``target`` is not empty or cannot be written; if the layout cannot express
        the recipe, see :func:`compressed_tensors_config`; if the model was not made from
        ``source``; or in the cases of :func:`side_files`.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> import os, tempfile
    >>> quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "e4m3")
    ...     bert_numpy.save_quantized(quantized, "bert-tiny-sst2", path)
    ...     bert_numpy.load(path).recipe.name
    'e4m3'
    """
    require("model", model, QuantizedModel, "a quantized model, as apply_recipe returns it")
    require("source", source, (str, os.PathLike), "the folder or the name of a checkpoint")
    if not isinstance(card, str | None) and not callable(card):
        raise wrong_type("card", "the text of a model card, a function, or None", card)
    convention = CONVENTIONS[choice("layout", layout, CONVENTIONS)]
    folder, target = resolve(source), path_of("target", target)
    check_target(target)
    parameters = find_parameters(model.config, open_checkpoint(folder))
    raw = read_json(folder / "config.json")
    modules = _written_modules(model.config, model.recipe, parameters)
    absent = _absent_modules(model.config, modules)
    section = WRITTEN[convention](model.recipe, modules, absent)
    if convention is COMPRESSED_TENSORS and _needs_dequantizing(model, section):
        section[DEQUANTIZE] = True
    raw["quantization_config"] = section
    tensor_scales = {
        site: weight.tensor_scale
        for site in modules
        if isinstance(weight := model.weights[f"{site}.weight"], QuantizedTensor)
        and weight.tensor_scale is not None
    }
    raw[EXTRA_KEY] = npfp8_config(model.recipe, model.plans, modules, tensor_scales)
    _require_source(model, folder, parameters)
    copied = side_files(folder)
    # Scales are float32, and transformers creates them with the dtype that it finds here.
    raw.pop("torch_dtype", None)
    raw["dtype"] = "float32"
    tensors: dict[str, Array | Fp8Array | StoredTensor] = {}
    for name, parameter in parameters.items():
        with naming(name):
            tensors |= _stored_weight(parameter, model.weights[name], convention)
            plan = model.plans.get(name.removesuffix(".weight"))
            if plan is not None and plan.a is not None and says_input(plan.recipe):
                module = module_of(parameter)
                tensors |= _stored_input(module, plan.a, plan.recipe.a, convention)
    with writing(target), created_folder(target) as made:
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        _write(made / "config.json", json.dumps(raw, indent=2) + "\n")
        if convention is MODELOPT:
            _write(made / HF_QUANT_CONFIG, json.dumps(hf_quant_config(section), indent=4) + "\n")
        for name in copied:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, made / name)
        if card is not None:
            _write(made / "README.md", card if isinstance(card, str) else card(made))
        _write(made / _MANIFEST, _manifest(made))


def _needs_dequantizing(model: QuantizedModel, section: Mapping[str, Any]) -> bool:
    """Check whether transformers must make numbers of the codes while it loads them.

    compressed-tensors would do so in a hook before the first call. sentence-transformers 6 calls
    an encoder in a way that skips the hook. And the hook makes bfloat16 numbers of block formats,
    which do not fit to float32 inputs. But transformers 5.24 reads all layers by the first group
    of the config, so groups in block formats and others are left to the hook. For the hook, it
    makes an empty model first, with packed zero points of another shape than the file's, and then
    refuses the file.
    """
    groups = section["config_groups"].values()
    names = {layout.name for layout in BLOCK_LAYOUTS}
    needed = [
        group["format"] in names
        or (group["format"] == PACK_QUANTIZED and not group["weights"]["symmetric"])
        for group in groups
    ]
    return all(needed) and len(needed) == 1 if any(needed) else model.config.pooling is not None


def _require_source(
    model: QuantizedModel, folder: Path, parameters: Mapping[str, StoredTensor]
) -> None:
    """Refuse a source that the model was not made from, as the files would mix the two.

    The source's weights must be the model's, bit for bit. If the model has codes, they must
    be the source's weights quantized with the model's scales.
    """
    config = read_config(folder / "config.json")
    config = replace(config, pooling=read_pooling(folder, config))
    if config != model.config:
        raise BertNumpyError(
            f"{folder / 'config.json'}: expected the config of the checkpoint that {model.name} "
            "was made of, found another"
        )
    for name, parameter in parameters.items():
        weight, values = model.weights[name], read_float32(parameter)
        if isinstance(weight, QuantizedTensor):
            how = model.recipe.site(name.removesuffix(".weight"))
            # GPTQ's codes are not those of the weights alone.
            same = weight.shape == values.shape if how.gptq else _same_codes(values, weight)
        else:
            same = np.array_equal(values.view(np.uint32), weight.view(np.uint32))
        if not same:
            raise BertNumpyError(
                f"{parameter.place}: expected the weights that {model.name} was made of, found "
                "others"
            )
    for name, values in read_dense(folder, config).items():
        if not np.array_equal(values, np.asarray(model.weights[name])):
            raise BertNumpyError(
                f"{folder}: {name}: expected the weights that {model.name} was made of, found "
                "others"
            )


def _same_codes(values: Float32Array, weight: QuantizedTensor) -> bool:
    """Check whether a weight's codes are those of some numbers."""
    if weight.block_format is None:
        codes = quantize(
            values, weight.fmt, weight.scale, weight.axis, weight.block, weight.zero_point
        ).codes
        return np.array_equal(codes, weight.codes)
    found = quantize(
        values, weight.block_format, axis=weight.axis, tensor_scale=weight.tensor_scale
    )
    assert found.scale_codes is not None
    assert weight.scale_codes is not None
    return np.array_equal(found.codes, weight.codes) and np.array_equal(
        found.scale_codes, weight.scale_codes
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _manifest(folder: Path) -> str:
    """List the SHA-256 of every file in the format of ``sha256sum``."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        lines.append(f"{digest.hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _stored_weight(
    parameter: StoredTensor, weight: Array | QuantizedTensor, convention: Convention
) -> Mapping[str, Array | Fp8Array | StoredTensor]:
    """Make the tensors of one parameter, by key."""
    if not isinstance(weight, QuantizedTensor):
        return {parameter.key: parameter}
    if weight.block_format is not None:
        return stored_blocks(module_of(parameter), weight, convention)
    shape = {None: convention.shape, 0: (-1, 1), 1: weight.scale.shape}[weight.axis]
    stored: dict[str, Array | Fp8Array | StoredTensor] = {
        f"{parameter.key}_scale": weight.scale.reshape(shape)
    }
    fmt, zero_point = weight.fmt, weight.zero_point
    if isinstance(fmt, FloatFormat):
        stored[parameter.key] = Fp8Array(weight.codes, fmt)
        return stored
    if fmt.bits < 8:
        stored[f"{parameter.key}_packed"] = packed_codes(weight.codes, fmt)
        stored[f"{parameter.key}_shape"] = np.array(weight.shape, np.int64)
    else:
        stored[parameter.key] = _to_int8(weight.codes, fmt)
    if zero_point is not None:
        zeros = zero_point.reshape(shape)
        packs = fmt.bits < 8 and weight.axis is not None
        stored[f"{parameter.key}_zero_point"] = (
            packed_zero_points(zeros, fmt) if packs else _to_int8(zeros, fmt)
        )
    return stored


def _stored_input(
    module: str, scale: Scale, operand: Operand, convention: Convention
) -> dict[str, Array]:
    if operand.block_format is not None:
        number = stored_tensor_scale(scale.scale, operand.block_format, convention)
        return {f"{module}.{convention.input_scale}": number}
    stored: dict[str, Array] = {f"{module}.input_scale": scale.scale.reshape(convention.shape)}
    if scale.zero_point is not None:
        assert isinstance(operand.fmt, IntFormat)
        zero_point = np.array([scale.zero_point], np.uint8)
        stored[f"{module}.input_zero_point"] = _to_int8(zero_point, operand.fmt)
    return stored


def _to_int8(codes: Array, fmt: IntFormat) -> npt.NDArray[np.int8]:
    """Convert codes to int8: signed ones unchanged, unsigned ones less half of their range."""
    signed = codes if codes.dtype == np.int8 else codes - np.uint8(1 << (fmt.bits - 1))
    return signed.view(np.int8)


def _from_int8(codes: npt.NDArray[np.int8], fmt: IntFormat, place: str) -> Array:
    """Convert int8 to a format's codes: the inverse of :func:`_to_int8`."""
    half = 1 << (fmt.bits - 1)
    if ((codes < -half) | (codes >= half)).any():
        bad = int(codes[(codes < -half) | (codes >= half)][0])
        raise BertNumpyError(f"{place}: expected {-half}..{half - 1}, found {bad}")
    return codes if fmt.dtype == "int8" else codes.view(np.uint8) + np.uint8(half)


# Reading


def stored_quantization(
    config: BertConfig, folder: Path, parameters: Mapping[str, StoredTensor]
) -> StoredQuantization:
    """Read a quantized checkpoint's config; see :func:`read_quantization`."""
    path = folder / "config.json"

    def is_coded(site: str) -> bool:
        return parameters[f"{site}.weight"].dtype == "F8_E4M3"

    modules = linear_modules(config, parameters)
    raw = read_json(path)
    if quantization_key(raw) is None and EXTRA_KEY not in raw:
        path = folder / HF_QUANT_CONFIG
        raw = {**raw, "quantization_config": section_of_file(read_json(path), str(path))}
    return read_quantization(raw, str(path), modules, is_coded)


def load_quantized(config: BertConfig, folder: Path, place: str) -> QuantizedModel:
    """Load a quantized checkpoint: ours, or another program's in a supported layout.

    Raises
    ------
    BertNumpyError
        If a section of the config, a code, a scale or a zero point is missing
        or invalid. The message names the file and the key.
    """
    stored = open_checkpoint(folder)
    parameters = find_parameters(config, stored, packed=True)
    quantization = stored_quantization(config, folder, parameters)
    recipe = quantization.recipe
    modules = linear_modules(config, parameters)
    coded = {
        f"{site}.weight": operand
        for site in modules
        if (operand := recipe.site(site).b).fmt is not None
    }
    plain = {key: parameters[key] for key in parameters if key not in coded}
    for parameter in plain.values():
        _require_unpacked(parameter)
    shapes = expected_shapes(config.stored_together, "pooler.dense.weight" in parameters)
    source = _Source(folder, stored, quantization)
    floats = read_parameters(config, stored, plain)
    weights: dict[str, Float32Array | QuantizedTensor] = {}
    weights |= read_dense(folder, config)
    for key, parameter in parameters.items():
        if key not in coded:
            weights[key] = floats[key]
            continue
        weights[key] = _read_weight(parameter, source, coded[key], key, shapes[key])
    plans: dict[str, SitePlan] = {}
    sites = sites_of(Model(config, weights))
    try:
        _check_dense(config, recipe)
        recipe.check_overrides(sites)
    except BertNumpyError as error:
        raise BertNumpyError(f"{folder / 'config.json'}: {error}") from None
    for site in sites:
        name, how = site.name, recipe.site(site)
        if not how.quantizes:
            continue
        scales: dict[str, Scale] = {}
        for side, operand in static_sides(recipe, site).items():
            if name in modules and says_input(how):
                scales[side] = _read_input(parameters[f"{name}.weight"], source, operand, name)
            else:
                scales[side] = source.given(f"{name}:{side}", operand)
        plans[name] = SitePlan(how, scales.get("a"), scales.get("b"))
    return planned_model(config, weights, recipe, plans, place)


@dataclass(frozen=True)
class _Source:
    """A checkpoint's folder, tensors and description."""

    folder: Path
    stored: Mapping[str, StoredTensor]
    quantization: StoredQuantization

    def given(self, name: str, operand: Operand) -> Scale:
        """Return a static scale from the config."""
        assert operand.element is not None
        place = f"{self.folder / 'config.json'}: key {EXTRA_KEY!r}"
        if name not in self.quantization.scales:
            raise BertNumpyError(f"{place}: key 'scales': expected a scale of {name!r}, found none")
        scale = self.quantization.scales[name]
        if (scale.zero_point is not None) != operand.element.has_zero_point:
            expected = "a zero point" if operand.element.has_zero_point else "no zero point"
            raise BertNumpyError(f"{place}: key 'zero_points': expected {expected} of {name!r}")
        return scale

    def recorded(self, name: str, operand: Operand) -> Float32Array | None:
        """Return the number of a tensor from our section; None if there is no such section."""
        return self.given(name, operand).scale if self.quantization.ours else None


def _require_unpacked(parameter: StoredTensor) -> None:
    """Refuse packed codes in the place of a weight that is not in a block format."""
    if parameter.key.endswith(".weight_packed"):
        key = parameter.key.removesuffix("_packed")
        raise BertNumpyError(
            f"{parameter.file}: tensor {key!r}: expected by config.json, but missing; "
            f"{parameter.key!r} is of a quantized layout that config.json does not describe"
        )


def _read_weight(
    parameter: StoredTensor, source: _Source, operand: Operand, key: str, shape: tuple[int, ...]
) -> QuantizedTensor:
    """Read a linear layer's weight, (out, in), with its scales in our layout."""
    fmt, stored, site = operand.element, source.stored, key.removesuffix(".weight")
    assert fmt is not None
    if operand.block_format is not None:
        return _read_blocks(parameter, source, operand, site, shape)
    packed = site in source.quantization.packed
    if not packed:
        _require_unpacked(parameter)
    rows = source.quantization.rows.get(site, 1)
    outputs, inputs = shape
    scattered = source.quantization.scattered.get(site)
    granularity = "channel" if operand.granularity == "token" else operand.granularity
    if granularity == "block":
        columns = -(-inputs // (scattered or operand.block))
        shapes: tuple[tuple[int, ...], ...] = ((-(-outputs // rows), columns),)
    elif granularity == "channel":
        shapes = ((outputs, 1), (outputs,))
    else:
        shapes = ((1,), (), (1, 1))
    module = module_of(parameter)
    tensor = companion(parameter, stored, f"{module}.{source.quantization.scale_name}", shapes)
    scale = read_float32(tensor)
    group_of: npt.NDArray[np.int64] | None = None
    if scattered is not None:
        group_of = groups_of_inputs(parameter, stored, module, inputs, scattered)
    if packed:
        assert isinstance(fmt, IntFormat)
        codes = read_packed_codes(parameter, stored, module, fmt, shape)
    else:
        codes = _read_codes(parameter, fmt)
    if packed and fmt.has_zero_point and granularity != "tensor":
        assert isinstance(fmt, IntFormat)
        count = columns if granularity == "block" else 1
        zero_point: Array | None = read_packed_zero_points(
            parameter, stored, module, fmt, outputs, count
        )
    else:
        zero_point = _read_zero_point(parameter, stored, f"{module}.weight_zero_point", fmt, shapes)

    def arranged(values: Array) -> Array:
        if granularity == "tensor":
            return values.reshape(())
        if operand.granularity == "token":
            return values.reshape(outputs, 1)  # one block along the sum
        if granularity == "channel":
            return values.reshape(outputs)
        by_row = values[np.arange(outputs) // min(rows, outputs)]
        return by_row if group_of is None else by_row[:, group_of]

    axis, block = axis_and_block(operand.granularity, (outputs, inputs), -1, operand.block)
    try:
        return QuantizedTensor(
            codes,
            arranged(scale),
            fmt,
            axis,
            None if zero_point is None else arranged(zero_point),
            block,
        )
    except ValueError as error:
        raise BertNumpyError(f"{tensor.place}: {error}") from None


def _read_blocks(
    parameter: StoredTensor,
    source: _Source,
    operand: Operand,
    site: str,
    shape: tuple[int, ...],
) -> QuantizedTensor:
    """Read a linear layer's weight in a block format."""
    fmt = operand.block_format
    assert fmt is not None
    scales = ((shape[0], -(-shape[1] // fmt.block)),)
    zero_point = f"{module_of(parameter)}.weight_zero_point"
    _read_zero_point(parameter, source.stored, zero_point, fmt.element, scales)
    number = source.recorded(f"{site}:b", operand) if fmt.tensor_scale else None
    return read_blocks(parameter, source.stored, fmt, shape, source.quantization.convention, number)


def _read_input(parameter: StoredTensor, source: _Source, operand: Operand, site: str) -> Scale:
    """Read the static scale of a linear layer's input."""
    stored, convention = source.stored, source.quantization.convention
    if (fmt := operand.block_format) is not None:
        key = f"{module_of(parameter)}.{convention.input_scale}"
        tensor = companion(parameter, stored, key, ((1,), ()))
        number = source.recorded(f"{site}:a", operand)
        return Scale(read_tensor_scale(tensor, fmt, convention, number))
    assert isinstance(operand.fmt, Format)
    module = module_of(parameter)
    tensor = companion(parameter, stored, f"{module}.input_scale", ((1,), ()))
    scale = read_float32(tensor).reshape(())
    zero_point = _read_zero_point(
        parameter, stored, f"{module}.input_zero_point", operand.fmt, ((1,), ())
    )
    if not scale >= np.finfo(np.float32).tiny:
        raise BertNumpyError(f"{tensor.place}: expected positive and normal, found {scale}")
    return Scale(scale, None if zero_point is None else int(zero_point.reshape(())))


def _read_zero_point(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    key: str,
    fmt: Format,
    shapes: tuple[tuple[int, ...], ...],
) -> Array | None:
    """Read a zero point as our code; None for a symmetric format, which may store only zeros."""
    if not fmt.has_zero_point and key not in stored:
        return None
    tensor = companion(parameter, stored, key, shapes)
    if fmt.has_zero_point:
        if tensor.dtype != "I8":
            raise BertNumpyError(f"{tensor.place}: expected dtype I8, found {tensor.dtype}")
        assert isinstance(fmt, IntFormat)
        return _from_int8(tensor.read_as(np.int8), fmt, tensor.place)
    if any(tensor.read_bytes()):
        raise BertNumpyError(
            f"{tensor.place}: expected zeros: the layer is quantized symmetrically"
        )
    return None


def _read_codes(parameter: StoredTensor, fmt: Format) -> Array:
    if parameter.dtype != _CODE_DTYPES[fmt]:
        raise BertNumpyError(
            f"{parameter.place}: expected dtype {_CODE_DTYPES[fmt]} by config.json, found "
            f"{parameter.dtype}"
        )
    if not isinstance(fmt, FloatFormat):
        return _from_int8(parameter.read_as(np.int8), fmt, parameter.place)
    codes = parameter.read_as(np.uint8)
    if (bad := ~np.isfinite(fmt.values)[codes]).any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BertNumpyError(
            f"{parameter.place}: expected finite numbers, found code 0x{codes[index]:02X} at "
            f"{list(index)}"
        )
    return codes

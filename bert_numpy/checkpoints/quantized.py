"""Quantized checkpoints: folders that others can read, written atomically, restored bit by bit.

The quantized weight of a linear layer is stored as codes (``F8_E4M3``, ``F8_E5M2``, ``I8``)
under its usual name, with ``weight_scale`` in float32: (1,) per tensor, (out, 1) per
output channel, (out, in / block) per block. A static scale of its input is
``input_scale``, (1,). Integers with a zero point are stored as int8, 128 below
ours, with ``weight_zero_point`` and ``input_zero_point``. All this is the layout
of compressed-tensors; :mod:`bert_numpy.checkpoints.quantization_config` describes the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.config_file import EXTRA_KEY, read_config
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.parameters import find_parameters, read_parameters
from bert_numpy.checkpoints.pooling import pooling_files, read_dense, read_pooling
from bert_numpy.checkpoints.quantization_config import (
    DEQUANTIZE,
    StoredQuantization,
    compressed_tensors_config,
    npfp8_config,
    read_quantization,
    says_input,
)
from bert_numpy.checkpoints.tensors import open_checkpoint, read_float32
from bert_numpy.errors import BertNumpyError, read_json, reading, writing
from bert_numpy.model.architectures import HEADS
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model
from bert_numpy.model.sites import WORDS, linear_sites, sites_of
from bert_numpy.quantization.convert import QuantizedModel, planned_model
from bert_numpy.quantization.plan import Scale, SitePlan
from bert_numpy.quantization.recipe import Operand, Recipe
from npfp8 import E4M3FN, E5M2, INT8, UINT8, FloatFormat, Format, QuantizedTensor, quantize
from npfp8.arguments import path_of, require, wrong_type
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

#: The safetensors dtype of each format's codes.
_CODE_DTYPES: dict[Format, str] = {E4M3FN: "F8_E4M3", E5M2: "F8_E5M2", INT8: "I8", UINT8: "I8"}

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
    return {name: key.removesuffix(".weight") for name, key in keys.items() if key != words}


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


def check_writable(config: BertConfig, recipe: Recipe, source: str | Path) -> None:
    """Raise :class:`BertNumpyError` if the layout cannot express a checkpoint's recipe."""
    parameters = find_parameters(config, open_checkpoint(resolve(source)))
    modules = _written_modules(config, recipe, parameters)
    compressed_tensors_config(recipe, modules, _absent_modules(config, modules))


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

    Raises
    ------
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
    folder, target = resolve(source), path_of("target", target)
    check_target(target)
    parameters = find_parameters(model.config, open_checkpoint(folder))
    raw = read_json(folder / "config.json")
    modules = _written_modules(model.config, model.recipe, parameters)
    absent = _absent_modules(model.config, modules)
    raw["quantization_config"] = compressed_tensors_config(model.recipe, modules, absent)
    if model.config.pooling is not None:
        # sentence-transformers 6 calls an encoder in a way that skips the decompressing hook.
        raw["quantization_config"][DEQUANTIZE] = True
    raw[EXTRA_KEY] = npfp8_config(model.recipe, model.plans, modules)
    _require_source(model, folder, parameters)
    copied = side_files(folder)
    # Scales are float32, and transformers creates them with the dtype that it finds here.
    raw.pop("torch_dtype", None)
    raw["dtype"] = "float32"
    tensors: dict[str, Array | Fp8Array | StoredTensor] = {}
    for name, parameter in parameters.items():
        tensors |= _stored_weight(parameter, model.weights[name])
        plan = model.plans.get(name.removesuffix(".weight"))
        if plan is not None and plan.a is not None and says_input(plan.recipe):
            tensors |= _stored_input(parameter.key.removesuffix("weight"), plan.a)
    with writing(target), created_folder(target) as made:
        save_file(tensors, made / "model.safetensors", {"format": "pt"})
        _write(made / "config.json", json.dumps(raw, indent=2) + "\n")
        for name in copied:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, made / name)
        if card is not None:
            _write(made / "README.md", card if isinstance(card, str) else card(made))
        _write(made / _MANIFEST, _manifest(made))


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
            codes = quantize(
                values, weight.fmt, weight.scale, weight.axis, weight.block, weight.zero_point
            ).codes
            same = np.array_equal(codes, weight.codes)
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
    parameter: StoredTensor, weight: Array | QuantizedTensor
) -> dict[str, Array | Fp8Array | StoredTensor]:
    """Make the tensors of one parameter, by key."""
    if not isinstance(weight, QuantizedTensor):
        return {parameter.key: parameter}
    shape = {None: (1,), 0: (-1, 1), 1: weight.scale.shape}[weight.axis]
    stored: dict[str, Array | Fp8Array | StoredTensor] = {
        parameter.key: Fp8Array(weight.codes, weight.fmt)
        if isinstance(weight.fmt, FloatFormat)
        else _to_int8(weight.codes),
        f"{parameter.key}_scale": weight.scale.reshape(shape),
    }
    if weight.zero_point is not None:
        stored[f"{parameter.key}_zero_point"] = _to_int8(weight.zero_point).reshape(shape)
    return stored


def _stored_input(prefix: str, scale: Scale) -> dict[str, Array]:
    stored: dict[str, Array] = {f"{prefix}input_scale": scale.scale.reshape(1)}
    if scale.zero_point is not None:
        stored[f"{prefix}input_zero_point"] = _to_int8(np.array([scale.zero_point], np.uint8))
    return stored


def _to_int8(codes: Array) -> npt.NDArray[np.int8]:
    """Convert codes to int8: INT8 codes unchanged, UINT8 codes less 128."""
    return codes if codes.dtype == np.int8 else (codes ^ np.uint8(0x80)).view(np.int8)


def _to_uint8(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    return codes.view(np.uint8) ^ np.uint8(0x80)


# Reading


def stored_quantization(
    config: BertConfig, folder: Path, parameters: Mapping[str, StoredTensor]
) -> StoredQuantization:
    """Read a quantized checkpoint's config; see :func:`read_quantization`."""
    path = folder / "config.json"

    def is_coded(site: str) -> bool:
        return parameters[f"{site}.weight"].dtype == "F8_E4M3"

    modules = linear_modules(config, parameters)
    return read_quantization(read_json(path), str(path), modules, is_coded)


def load_quantized(config: BertConfig, folder: Path, place: str) -> QuantizedModel:
    """Load a quantized checkpoint: ours, or another program's in a supported layout.

    Raises
    ------
    BertNumpyError
        If a section of the config, a code, a scale or a zero point is missing
        or invalid. The message names the file and the key.
    """
    stored = open_checkpoint(folder)
    parameters = find_parameters(config, stored)
    quantization = stored_quantization(config, folder, parameters)
    recipe = quantization.recipe
    modules = linear_modules(config, parameters)
    coded = {
        f"{site}.weight": operand
        for site in modules
        if (operand := recipe.site(site).b).fmt is not None
    }
    plain = {key: parameters[key] for key in parameters if key not in coded}
    floats = read_parameters(config, stored, plain)
    weights: dict[str, Float32Array | QuantizedTensor] = {}
    weights |= read_dense(folder, config)
    for key, parameter in parameters.items():
        if key not in coded:
            weights[key] = floats[key]
            continue
        rows = quantization.rows.get(key.removesuffix(".weight"), 1)
        weights[key] = _read_weight(parameter, stored, coded[key], quantization.scale_name, rows)
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
        for side, operand in (("a", how.a), ("b", how.b)):
            if not operand.is_static or (side == "b" and name in modules):
                continue
            if name in modules and says_input(how):
                scales[side] = _read_input(parameters[f"{name}.weight"], stored, operand)
            else:
                scales[side] = _given(quantization, f"{name}:{side}", operand, folder)
        plans[name] = SitePlan(how, scales.get("a"), scales.get("b"))
    return planned_model(config, weights, recipe, plans, place)


def _read_weight(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    operand: Operand,
    scale_name: str,
    rows: int,
) -> QuantizedTensor:
    """Read a linear layer's weight, (out, in), with its scales in our layout."""
    fmt = operand.element
    assert fmt is not None
    outputs, inputs = parameter.shape
    granularity = "channel" if operand.granularity == "token" else operand.granularity
    if granularity == "block":
        columns = -(-inputs // operand.block)
        shapes: tuple[tuple[int, ...], ...] = ((-(-outputs // rows), columns),)
    elif granularity == "channel":
        shapes = ((outputs, 1), (outputs,))
    else:
        shapes = ((1,), (), (1, 1))
    prefix = parameter.key.removesuffix("weight")
    tensor = _companion(parameter, stored, f"{prefix}{scale_name}", shapes)
    scale = read_float32(tensor)
    zero_point = _read_zero_point(parameter, stored, f"{prefix}weight_zero_point", fmt, shapes)
    codes = _read_codes(parameter, fmt)

    def arranged(values: Array) -> Array:
        if granularity == "tensor":
            return values.reshape(())
        if operand.granularity == "token":
            return values.reshape(outputs, 1)  # one block along the sum
        if granularity == "channel":
            return values.reshape(outputs)
        return values[np.arange(outputs) // min(rows, outputs)]

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


def _read_input(
    parameter: StoredTensor, stored: Mapping[str, StoredTensor], operand: Operand
) -> Scale:
    """Read the static scale of a linear layer's input."""
    assert isinstance(operand.fmt, Format)
    prefix = parameter.key.removesuffix("weight")
    tensor = _companion(parameter, stored, f"{prefix}input_scale", ((1,), ()))
    scale = read_float32(tensor).reshape(())
    zero_point = _read_zero_point(
        parameter, stored, f"{prefix}input_zero_point", operand.fmt, ((1,), ())
    )
    if not scale >= np.finfo(np.float32).tiny:
        raise BertNumpyError(f"{tensor.place}: expected positive and normal, found {scale}")
    return Scale(scale, None if zero_point is None else int(zero_point.reshape(())))


def _given(quantization: StoredQuantization, name: str, operand: Operand, folder: Path) -> Scale:
    """Return a static scale from the config."""
    assert operand.element is not None
    place = f"{folder / 'config.json'}: key {EXTRA_KEY!r}"
    if name not in quantization.scales:
        raise BertNumpyError(f"{place}: key 'scales': expected a scale of {name!r}, found none")
    scale = quantization.scales[name]
    if (scale.zero_point is not None) != operand.element.has_zero_point:
        expected = "a zero point" if operand.element.has_zero_point else "no zero point"
        raise BertNumpyError(f"{place}: key 'zero_points': expected {expected} of {name!r}")
    return scale


def _companion(
    parameter: StoredTensor,
    stored: Mapping[str, StoredTensor],
    key: str,
    shapes: tuple[tuple[int, ...], ...],
) -> StoredTensor:
    """Return a tensor that belongs to a weight, checked to have one of the given shapes."""
    expected = " or ".join(map(str, shapes))
    if key not in stored:
        raise BertNumpyError(
            f"{parameter.file}: tensor {key!r}: expected shape {expected} by config.json, "
            "but missing"
        )
    tensor = stored[key]
    if tensor.shape not in shapes:
        raise BertNumpyError(
            f"{tensor.place}: expected shape {expected} by config.json, found {tensor.shape}"
        )
    return tensor


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
    tensor = _companion(parameter, stored, key, shapes)
    if fmt.has_zero_point:
        if tensor.dtype != "I8":
            raise BertNumpyError(f"{tensor.place}: expected dtype I8, found {tensor.dtype}")
        return _to_uint8(tensor.read_as(np.int8))
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
        codes = parameter.read_as(np.int8)
        return codes if fmt == INT8 else _to_uint8(codes)
    codes = parameter.read_as(np.uint8)
    if (bad := ~np.isfinite(fmt.values)[codes]).any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BertNumpyError(
            f"{parameter.place}: expected finite numbers, found code 0x{codes[index]:02X} at "
            f"{list(index)}"
        )
    return codes

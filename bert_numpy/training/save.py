"""Writing a trained model as a checkpoint folder."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.checkpoints.config_file import is_quantized, read_config
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.pooling import pooling_files, read_pooling
from bert_numpy.checkpoints.quantized import check_target, side_files
from bert_numpy.errors import BertNumpyError, read_json, writing
from bert_numpy.model.model import Model
from bert_numpy.model.sites import WORDS
from bert_numpy.training.tape import float_parameter
from npfp8.arguments import path_of, require
from npfp8.arrays import Float32Array
from npfp8.files import created_folder
from npfp8.storage import save_file

__all__ = ["save_trained"]

#: The beginnings of the names of an encoder's tensors, which have the family's prefix before them
#: if there is a head.
_ENCODER = ("embeddings", "encoder.", "transformer.", "pooler.")

#: The list of modules of a sentence-transformers folder.
_MODULES = "modules.json"


def save_trained(model: Model, source: str | Path, target: str | Path) -> None:
    """Write a float32 model as a Hugging Face checkpoint; loading it gives the same bits.

    A sentence encoder becomes a sentence-transformers folder, with its pooling and its Dense
    modules.

    Parameters
    ----------
    model : Model
        A model that was trained from ``source``, perhaps with another head. Its parameters are
        float32.
    source : str or Path
        The checkpoint that the training began with. Its ``config.json``, with the model's class
        and labels, and its tokenizer's files go into the new folder.
    target : str or Path
        The folder to create. It is written atomically. It must not exist, or must be an empty
        folder.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If ``target`` is not empty or cannot be written; if ``source`` is quantized, or its config
        is not that of the model; or if a parameter is not float32.

    Examples
    --------
    >>> import os, tempfile
    >>> import bert_numpy
    >>> from bert_numpy.training.heads import with_head
    >>> from bert_numpy.training.save import save_trained
    >>> model = with_head(bert_numpy.load("bert-tiny-sst2"), "question answering", ["0", "1"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_trained(model, "bert-tiny-sst2", os.path.join(folder, "mine"))
    ...     bert_numpy.load(os.path.join(folder, "mine")).config.architecture
    'BertForQuestionAnswering'
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    require("source", source, (str, os.PathLike), "the folder or the name of a checkpoint")
    folder, target = resolve(source), path_of("target", target)
    check_target(target)
    if is_quantized(folder):
        raise BertNumpyError(f"{folder}: expected a checkpoint in float, found a quantized one")
    copied, modules = side_files(folder), []
    if model.config.pooling is None:  # of a sentence encoder's folder, the encoder is used alone
        copied = [name for name in copied if name not in pooling_files(folder)]
    else:
        modules = read_json(folder / _MODULES, list)
    tensors = _tensors(model, modules)
    with writing(target), created_folder(target) as made:
        _write_json(made / "config.json", _config(model, read_json(folder / "config.json")))
        for name in copied:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, made / name)
        for path, found in tensors.items():
            if path:  # a Dense module without a bias may have learned one
                settings = made / path / "config.json"
                _write_json(settings, read_json(settings) | {"bias": True})
            save_file(found, made / path / "model.safetensors", {"format": "pt"})
        _check_config(model, folder, made)


def _tensors(model: Model, modules: list[Any]) -> dict[str, dict[str, Float32Array]]:
    """Name the parameters as in files, by the folder of each file; a tied decoder is stored once.

    The folder of a Dense module, such as ``2_Dense``, is that of its number in ``modules.json``.
    """
    config = model.config
    has_head = config.architecture != f"{config.description.class_name}Model"
    has_prefix = has_head and config.pooling is None
    found: dict[str, dict[str, Float32Array]] = {"": {}}
    for name in model.weights:
        weight = float_parameter(model.weights, name)
        if weight.dtype != np.float32:
            raise BertNumpyError(f"{name}: expected float32 numbers to save, found {weight.dtype}")
        if name != WORDS and config.tie_word_embeddings and weight is model.weights[WORDS]:
            continue
        module, _, part = name.partition("_Dense.")
        if part:
            found.setdefault(modules[int(module)]["path"], {})[part] = weight
            continue
        *_, stored = config.description.stored_names(name, config.head)
        prefix = config.description.prefix if has_prefix and stored.startswith(_ENCODER) else ""
        found[""][prefix + stored] = weight
    return found


def _config(model: Model, raw: dict[str, Any]) -> dict[str, Any]:
    """Put the model's class and labels into the raw config of its source."""
    labels = list(model.config.labels)
    changed: dict[str, Any] = {"architectures": [model.config.architecture], "dtype": "float32"}
    if labels:
        changed["id2label"] = {str(i): label for i, label in enumerate(labels)}
        changed["label2id"] = {label: i for i, label in enumerate(labels)}
    if model.config.problem_type:
        changed["problem_type"] = model.config.problem_type
    dropped = ("num_labels", "id2label", "label2id", "problem_type", "torch_dtype")
    return {key: value for key, value in raw.items() if key not in dropped} | changed


def _check_config(model: Model, source: Path, made: Path) -> None:
    """Refuse a folder that would be loaded as another model."""
    found = read_config(made / "config.json")
    found = replace(found, pooling=read_pooling(made, found))
    for field in fields(found):
        mine, read = (getattr(config, field.name) for config in (model.config, found))
        is_open = field.name == "architecture_found" or (field.name == "labels" and not mine)
        if mine != read and not is_open:
            raise BertNumpyError(
                f"{source}: expected the checkpoint that the model was trained from, with "
                f"{field.name} {mine!r}, found {read!r}"
            )


def _write_json(path: Path, content: Any) -> None:
    path.write_text(f"{json.dumps(content, indent=2)}\n", encoding="utf-8", newline="\n")

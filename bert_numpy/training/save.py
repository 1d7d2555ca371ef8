"""Writing a trained model as a checkpoint folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.quantized import check_target, side_files
from bert_numpy.engines.functions import parameter
from bert_numpy.errors import BertNumpyError, read_json, writing
from bert_numpy.model.model import Model
from bert_numpy.model.sites import WORDS
from npfp8.arguments import path_of, require
from npfp8.arrays import Float32Array
from npfp8.files import created_folder
from npfp8.storage import save_file

__all__ = ["save_trained"]

#: The beginnings of the names of an encoder's tensors, which have the family's prefix before them
#: if there is a head.
_ENCODER = ("embeddings", "encoder.", "transformer.", "pooler.")


def save_trained(model: Model, source: str | Path, target: str | Path) -> None:
    """Write a float32 model as a Hugging Face checkpoint; loading it gives the same bits.

    Parameters
    ----------
    model : Model
        A model that was trained from ``source``, perhaps with another head.
    source : str or Path
        The checkpoint that the training began with. Its ``config.json``, with the model's class
        and labels, and its tokenizer's files go into the new folder.
    target : str or Path
        The folder to create. It is written atomically. It must not exist, or must be an empty
        folder.

    Raises
    ------
    BertNumpyError
        If ``target`` is not empty or cannot be written; or if the model is a sentence encoder,
        whose modules this function does not write.

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
    if model.config.pooling is not None:
        raise BertNumpyError(f"{model.name}: expected no sentence encoder, found its pooling")
    folder, target = resolve(source), path_of("target", target)
    check_target(target)
    copied = side_files(folder)
    with writing(target), created_folder(target) as made:
        save_file(_tensors(model), made / "model.safetensors", {"format": "pt"})
        text = json.dumps(_config(model, read_json(folder / "config.json")), indent=2)
        (made / "config.json").write_text(f"{text}\n", encoding="utf-8", newline="\n")
        for name in copied:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, made / name)


def _tensors(model: Model) -> dict[str, Float32Array]:
    """Give the parameters the names of transformers; a tied decoder is stored once."""
    config = model.config
    has_head = config.architecture != f"{config.description.class_name}Model"
    tensors = {}
    for name in model.weights:
        weight = parameter(model.weights, name)
        if name != WORDS and config.tie_word_embeddings and weight is model.weights[WORDS]:
            continue
        *_, stored = config.description.stored_names(name, config.head)
        prefix = config.description.prefix if has_head and stored.startswith(_ENCODER) else ""
        tensors[prefix + stored] = weight
    return tensors


def _config(model: Model, raw: dict[str, Any]) -> dict[str, Any]:
    """Put the model's class and labels into the raw config of its source."""
    labels = list(model.config.labels)
    changed = {
        "architectures": [model.config.architecture],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "dtype": "float32",
    }
    if model.config.problem_type:
        changed["problem_type"] = model.config.problem_type
    dropped = ("num_labels", "problem_type", "torch_dtype")
    return {key: value for key, value in raw.items() if key not in dropped} | changed

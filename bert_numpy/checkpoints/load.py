"""Loading a model: config, then weights, then the forward pass that uses them.

The modules for quantized checkpoints are imported only for these: they are half of the package.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bert_numpy.checkpoints.config_file import is_quantized, read_config
from bert_numpy.checkpoints.hub import check_name, resolve
from bert_numpy.checkpoints.parameters import find_parameters, read_weights
from bert_numpy.checkpoints.pooling import read_dense, read_pooling
from bert_numpy.checkpoints.tensors import open_checkpoint
from bert_numpy.engines.functions import ACTIVATIONS
from bert_numpy.errors import BertNumpyError, key_error
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model
from npfp8.arguments import loaded

if TYPE_CHECKING:
    from bert_numpy.quantization.recipe import Recipe

__all__ = ["as_model", "load", "stored_recipe"]

#: The file that makes transformers load another model and change its weights.
_ADAPTER = "adapter_config.json"


def load(folder_or_hub_id: str | Path, revision: str | None = None) -> Model:
    """Load a checkpoint of BERT or a relative, quantized or not.

    Parameters
    ----------
    folder_or_hub_id : str or Path
        A folder with ``config.json`` and ``model.safetensors`` (or its shards
        and their index), ``"bert-tiny-sst2"`` (comes with the package), or a
        repository of the Hugging Face hub. Only the required files of a repository are
        fetched, into the hub's cache.
    revision : str, optional
        A branch, tag or commit of the repository on the hub; by default "main".

    Returns
    -------
    Model
        A float32 model with the head of the class that wrote the checkpoint (see
        :data:`bert_numpy.model.architectures.HEADS`), or with the pooling of a
        sentence-transformers folder. For another class of the same family, such as
        ``BertLMHeadModel``, it is the bare encoder (see ``model.config.head``). If the
        checkpoint is quantized, it is a :class:`QuantizedModel` with the checkpoint's
        recipe. Weights stored as float32 are mapped, not read
        into memory: while the model is used, the file must not be overwritten
        or truncated (but another file may take its place).

    Raises
    ------
    BertNumpyError
        If anything is missing, corrupt or different from the config. The message names
        the file and the key, the value found and the value expected.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> model([[101, 2204, 3185, 102]]).logits.shape
    (1, 2)
    """
    check_name(folder_or_hub_id, revision)
    folder = resolve(folder_or_hub_id, revision)
    config = _read_config(folder)
    if config.hidden_act not in ACTIVATIONS:
        key = config.description.keys.get("hidden_act", "hidden_act")
        expected = f"one of {', '.join(ACTIVATIONS)}"
        raise key_error(folder / "config.json", key, expected, config.hidden_act)
    given = os.fspath(folder_or_hub_id)
    name = given if revision is None else f"{given}@{revision}"
    if is_quantized(folder):
        from bert_numpy.checkpoints.quantized import load_quantized  # noqa: PLC0415

        return load_quantized(config, folder, name)
    weights = read_weights(config, open_checkpoint(folder)) | read_dense(folder, config)
    return Model(config, weights, name=name)


def as_model(model: Model | str | Path, argument: str = "model") -> Model:
    """Return a model that is given as such, or by the name or folder that :func:`load` takes.

    Raises
    ------
    TypeError
        If it is neither.
    BertNumpyError
        As :func:`load`.

    Examples
    --------
    >>> from bert_numpy.checkpoints.load import as_model
    >>> as_model("bert-tiny-sst2").name
    'bert-tiny-sst2'
    """
    return loaded(argument, model, Model, load, "a model, its folder, or its name")


def stored_recipe(folder_or_hub_id: str | Path, revision: str | None = None) -> Recipe | None:
    """Read the recipe of a quantized checkpoint, without its weights; None if not quantized.

    Raises
    ------
    BertNumpyError
        In the same cases as :func:`load`.
    """
    folder = resolve(folder_or_hub_id, revision)
    if not is_quantized(folder):
        return None
    from bert_numpy.checkpoints.quantized import stored_quantization  # noqa: PLC0415

    config = _read_config(folder)
    parameters = find_parameters(config, open_checkpoint(folder), packed=True)
    return stored_quantization(config, folder, parameters).recipe


def _read_config(folder: Path) -> BertConfig:
    """Read the hyperparameters, and the pooling of a sentence-transformers folder."""
    if (folder / _ADAPTER).is_file():
        raise BertNumpyError(
            f"{folder / _ADAPTER}: expected no adapter beside the weights, found one: it is not "
            "applied. Merge it into the model's weights (merge_and_unload of peft), or remove it"
        )
    config = read_config(folder / "config.json")
    return replace(config, pooling=read_pooling(folder, config))

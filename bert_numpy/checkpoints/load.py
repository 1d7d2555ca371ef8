"""Loading a model: config, then weights, then the forward pass that uses them.

What quantized checkpoints need is imported for these alone: it is half of the package.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bert_numpy.checkpoints.config_file import is_quantized, read_config
from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.parameters import find_parameters, read_weights
from bert_numpy.checkpoints.pooling import read_dense, read_pooling
from bert_numpy.checkpoints.tensors import open_checkpoint
from bert_numpy.engines.functions import ACTIVATIONS
from bert_numpy.errors import BertNumpyError, key_error
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model

if TYPE_CHECKING:
    from bert_numpy.quantization.recipe import Recipe

__all__ = ["load", "stored_recipe"]

#: The file by which transformers loads another model and changes its weights.
_ADAPTER = "adapter_config.json"


def load(folder_or_hub_id: str | Path, revision: str | None = None) -> Model:
    """Load a checkpoint of BERT or a relative, quantized or not.

    Parameters
    ----------
    folder_or_hub_id : str or Path
        A folder with ``config.json`` and ``model.safetensors`` (or its shards
        and their index), ``"bert-tiny-sst2"`` (comes with the package), or a
        repository of the Hugging Face hub, of which only what is needed is
        fetched, into the hub's cache.
    revision : str, optional
        A branch, tag or commit of the repository on the hub; by default "main".

    Returns
    -------
    Model
        In float32, with the head of the class that wrote the checkpoint (see
        :data:`bert_numpy.model.architectures.HEADS`), or the pooling of a
        sentence-transformers folder. Of another class of the same family, such as
        ``BertLMHeadModel``, the bare encoder (``model.config.head`` says so). A
        :class:`QuantizedModel` that runs by its own recipe if the checkpoint is
        quantized. Weights that the file has in float32 are mapped, not read
        into memory: while the model is used the file must not be written into
        or cut (another may take its place).

    Raises
    ------
    BertNumpyError
        If anything is missing, corrupt or not as the config says; names the
        file and key, what was found and what was expected.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> model([[101, 2204, 3185, 102]]).logits.shape
    (1, 2)
    """
    folder = resolve(folder_or_hub_id, revision)
    config = _read_config(folder)
    if config.hidden_act not in ACTIVATIONS:
        key = config.description.keys.get("hidden_act", "hidden_act")
        expected = f"one of {', '.join(ACTIVATIONS)}"
        raise key_error(folder / "config.json", key, expected, config.hidden_act)
    name = str(folder_or_hub_id) if revision is None else f"{folder_or_hub_id}@{revision}"
    if is_quantized(folder):
        from bert_numpy.checkpoints.quantized import load_quantized  # noqa: PLC0415

        return load_quantized(config, folder, name)
    weights = read_weights(config, open_checkpoint(folder)) | read_dense(folder, config)
    return Model(config, weights, name=name)


def stored_recipe(folder_or_hub_id: str | Path, revision: str | None = None) -> Recipe | None:
    """The recipe that a checkpoint is quantized by; None if it is not. No weight is read.

    Raises
    ------
    BertNumpyError
        As :func:`load` does.
    """
    folder = resolve(folder_or_hub_id, revision)
    if not is_quantized(folder):
        return None
    from bert_numpy.checkpoints.quantized import stored_quantization  # noqa: PLC0415

    config = _read_config(folder)
    parameters = find_parameters(config, open_checkpoint(folder))
    return stored_quantization(config, folder, parameters).recipe


def _read_config(folder: Path) -> BertConfig:
    """The hyperparameters, and a sentence-transformers folder's pooling."""
    if (folder / _ADAPTER).is_file():
        raise BertNumpyError(
            f"{folder / _ADAPTER}: expected no adapter beside the weights, found one: it is not "
            "applied. Merge it into the model's weights (merge_and_unload of peft), or remove it"
        )
    config = read_config(folder / "config.json")
    return replace(config, pooling=read_pooling(folder, config))

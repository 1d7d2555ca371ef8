"""Loading a model: config, then weights, then the forward pass that uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bert_numpy.checkpoint import open_checkpoint
from bert_numpy.config import read_config
from bert_numpy.elementwise import ACTIVATIONS
from bert_numpy.errors import BertNumpyError
from bert_numpy.hub import resolve
from bert_numpy.model import Model
from bert_numpy.policy import FLOAT32_POLICY
from bert_numpy.pooling import read_pooling
from bert_numpy.weights import read_weights

__all__ = ["load"]


def load(folder_or_hub_id: str | Path) -> Model:
    """Load a checkpoint of BERT or a relative.

    Parameters
    ----------
    folder_or_hub_id : str or Path
        A folder with ``config.json`` and ``model.safetensors`` (or its shards
        and their index), ``"bert-tiny-sst2"`` (comes with the package), or a
        repository of the Hugging Face hub.

    Returns
    -------
    Model
        In float32, with the head of the class that wrote the checkpoint (see
        :data:`bert_numpy.architectures.HEADS`), or the pooling of a
        sentence-transformers folder; any other is loaded as a bare encoder.

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
    folder = resolve(folder_or_hub_id)
    config = replace(read_config(folder / "config.json"), pooling=read_pooling(folder))
    if config.hidden_act not in ACTIVATIONS:
        key = config.description.keys.get("hidden_act", "hidden_act")
        raise BertNumpyError(
            f"{folder / 'config.json'}: key {key!r}: expected one of "
            f"{', '.join(ACTIVATIONS)}, found {config.hidden_act!r}"
        )
    weights = read_weights(config, open_checkpoint(folder))
    return Model(config, weights, FLOAT32_POLICY, name=str(folder_or_hub_id))

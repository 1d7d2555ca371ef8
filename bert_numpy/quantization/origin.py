"""The identity of a model's function, which a calibration is checked against before use.

Two models are the same if every parameter has the same float32 value and if the settings that
do not show in the parameters are equal. The place and the name of a checkpoint, the names of
its labels and the dtype of its stored values make no difference.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.model.model import Model

__all__ = ["SIZES", "Origin", "origin_of"]

#: The config's sizes, which decide the products and their shapes.
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "embedding_size",
    "vocab_size",
)

#: The other settings that change an activation.
_SETTINGS = ("model_type", "hidden_act", "layer_norm_eps", "pad_token_id")


@dataclass(frozen=True)
class Origin:
    """The model that a calibration was made with.

    Attributes
    ----------
    name : str
        The model's name, for messages only.
    sizes : tuple of int
        The sizes in the order of :data:`SIZES`.
    digest : str
        SHA-256, in hexadecimal, of the settings, and of the name, the shape and the float32
        values of every parameter.
    """

    name: str
    sizes: tuple[int, ...]
    digest: str

    def __str__(self) -> str:
        layers, hidden = self.sizes[:2]
        return f"{self.name!r} ({layers} layers of {hidden}, SHA-256 {self.digest[:12]})"


#: The origins computed so far. Models are frozen, so an origin stays true while its model lives.
_KNOWN: WeakKeyDictionary[Model, Origin] = WeakKeyDictionary()


def origin_of(model: Model) -> Origin:
    """Identify a float32 model; the result is computed once per model.

    Raises
    ------
    BertNumpyError
        If a weight is quantized.
    """
    known = _KNOWN.get(model)
    if known is None:
        sizes = tuple(getattr(model.config, name) for name in SIZES)
        known = _KNOWN[model] = Origin(model.name, sizes, _digest(model))
    return known


def _digest(model: Model) -> str:
    settings = {name: getattr(model.config, name) for name in (*SIZES, *_SETTINGS)}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    of_values: dict[int, str] = {}  # tied parameters are one array
    for name, weight in sorted(model.weights.items()):
        if not isinstance(weight, np.ndarray):
            raise BertNumpyError(f"{model.name}: {name}: expected float32, found codes")
        if id(weight) not in of_values:
            values = np.ascontiguousarray(weight, "<f4")
            of_values[id(weight)] = hashlib.sha256(values.data).hexdigest()
        total.update(json.dumps([name, weight.shape, of_values[id(weight)]]).encode())
    return total.hexdigest()

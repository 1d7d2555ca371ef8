"""A model: hyperparameters, parameters, and the engine that computes.

Padding is not computed: the tokens of a batch are packed into one (tokens, hidden)
matrix for everything except attention, which takes sequences of equal length together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.float import FloatEngine
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.model.encoder import Pass
from bert_numpy.model.heads import outputs
from bert_numpy.model.packing import Batch, pack
from npfp8 import QuantizedTensor
from npfp8.arguments import array_of, require
from npfp8.arrays import Float32Array, IntArray

__all__ = [
    "EngineOf",
    "Model",
    "ModelOutput",
    "batch_of",
    "has_pooler",
    "require_head",
    "stored_bytes",
]


#: Makes the engine of one run from the parameters and the batch.
EngineOf = Callable[[Weights, Batch], Engine[Float32Array]]


@dataclass(frozen=True, eq=False, repr=False)
class ModelOutput:
    """The outputs of a model, under the names of transformers.

    For multiple choice, ``batch`` counts texts: examples times choices.
    A number may be NaN or infinite if the model overflows: see :mod:`bert_numpy.finite`.

    Attributes
    ----------
    last_hidden_state : ndarray of float32, (batch, length, hidden_size)
        Zero at positions that the attention mask leaves out (except position
        0, which the pooler reads).
    pooler_output : ndarray of float32, (batch, hidden_size), or None
        The output of the pooler, or of the layer that a classifier has in its place;
        None if the checkpoint has neither.
    logits : ndarray of float32, or None
        The shape depends on the head: sequence classification (batch, labels); multiple
        choice (examples, choices); next sentence prediction (batch, 2); token
        classification (batch, length, labels); masked language modelling (batch, length,
        vocab_size); replaced token detection (batch, length). Logits per token
        are zero where the hidden states are.
    start_logits, end_logits : ndarray of float32, (batch, length), or None
        The logits of each position for being the first, and the last, token of the answer.
        They are -infinity at positions that the attention mask leaves out: a softmax
        gives them 0, and no sum with them is ever the largest. None without
        a question answering head.
    prediction_logits, seq_relationship_logits, sop_logits : ndarray of float32, or None
        The logits of pre-training: (batch, length, vocab_size), then (batch, 2) for BERT
        or (batch, labels) for ALBERT.
    sentence_embedding : ndarray of float32, (batch, features), or None
        The vectors of the texts, for a sentence-transformers folder.
    counts : mapping of str to OperandCounts
        The counts of this run's quantized activations, by ``site:a`` and ``site:b``;
        empty without quantization.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> model([[101, 2204, 3185, 102]])
    <ModelOutput last_hidden_state (1, 4, 128), pooler_output (1, 128), logits (1, 2)>
    """

    last_hidden_state: Float32Array
    pooler_output: Float32Array | None = None
    logits: Float32Array | None = None
    start_logits: Float32Array | None = None
    end_logits: Float32Array | None = None
    prediction_logits: Float32Array | None = None
    seq_relationship_logits: Float32Array | None = None
    sop_logits: Float32Array | None = None
    sentence_embedding: Float32Array | None = None
    counts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        arrays = {name: x for name, x in vars(self).items() if isinstance(x, np.ndarray)}
        return f"<ModelOutput {', '.join(f'{name} {x.shape}' for name, x in arrays.items())}>"


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A BERT: hyperparameters, parameters, and the engine that computes.

    Attributes
    ----------
    config : BertConfig
    weights : mapping of str to array or QuantizedTensor
    engine : callable (weights, batch) -> Engine
        Makes the engine of each run: float32 by default.
    name : str
        The origin of the model, for reports.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> model
    <Model bert-tiny-sst2: BertForSequenceClassification, 2 layers of 128, 4,386,178 parameters>
    >>> model([[101, 2204, 3185, 102]]).logits.shape
    (1, 2)
    """

    config: BertConfig
    weights: Weights = field(repr=False)
    engine: EngineOf = field(default=FloatEngine, repr=False)
    name: str = "model"

    def __repr__(self) -> str:
        config = self.config
        count = sum({id(weight): weight.size for weight in self.weights.values()}.values())
        return (
            f"<{type(self).__name__} {self.name}: {config.architecture}, "
            f"{config.num_hidden_layers} layers of {config.hidden_size}, {count:,} parameters>"
        )

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
    ) -> ModelOutput:
        """Run the model on a batch.

        Parameters
        ----------
        input_ids : array_like of int, (batch, length)
            Token ids, padded to a common length. For multiple choice, all
            arguments are (examples, choices, length).
        attention_mask : array_like of int or bool, (batch, length), optional
            1 for tokens, 0 for padding; all tokens by default. Each row needs at least
            one token; any pattern is accepted, not just padding on the right.
        token_type_ids : array_like of int, (batch, length), optional
            0 for the first text, 1 for the second; all 0 by default, and in
            models that have only one type or none.

        Raises
        ------
        BertNumpyError
            If a dtype, a shape or an id is not as expected.
        """
        batch = batch_of(self.config, input_ids, attention_mask, token_type_ids)
        engine = self.engine(self.weights, batch)
        with np.errstate(all="ignore"):  # readers of the outputs check that they are finite
            found = outputs(Pass(self.config, engine, batch), has_pooler(self))
        if self.config.head.has_choices and "logits" in found:
            found["logits"] = found["logits"].reshape(np.shape(input_ids)[:2])
        return ModelOutput(**found, counts=engine.counted())

    @property
    def weight_bytes(self) -> int:
        """The bytes of all parameters, each tie once.

        Quantized ones count as they are stored: codes at their width, and the scales. In memory
        each code takes a byte.
        """
        return sum({id(weight): stored_bytes(weight) for weight in self.weights.values()}.values())


def stored_bytes(weight: Float32Array | QuantizedTensor) -> int:
    """Return the bytes of a parameter as it is stored, with its scales."""
    return weight.packed_nbytes if isinstance(weight, QuantizedTensor) else weight.nbytes


def batch_of(
    config: BertConfig,
    input_ids: npt.ArrayLike,
    attention_mask: npt.ArrayLike | None = None,
    token_type_ids: npt.ArrayLike | None = None,
) -> Batch:
    """Check and pack the arguments of a model, those of :meth:`Model.__call__`.

    Raises
    ------
    BertNumpyError
        If a dtype, a shape or an id is not as expected.
    """
    choices = config.head.has_choices
    ids = _checked_ids("input_ids", input_ids, config.vocab_size, choices)
    length = ids.shape[-1]
    if length > config.max_length:
        raise BertNumpyError(
            f"input_ids: expected at most {config.max_length} tokens "
            f"(max_position_embeddings), found {length}"
        )
    types = np.zeros_like(ids)
    if token_type_ids is not None:
        limit = max(config.type_vocab_size, 1)
        types = _checked_ids("token_type_ids", token_type_ids, limit, choices)
    mask = np.ones_like(ids)
    if attention_mask is not None:
        mask = _checked_ids("attention_mask", attention_mask, 2, choices)
    for name, given in (("token_type_ids", types), ("attention_mask", mask)):
        if given.shape != ids.shape:
            raise BertNumpyError(f"{name}: expected shape {ids.shape}, found {given.shape}")
    ids, types, mask = (given.reshape(-1, length) for given in (ids, types, mask))
    return Batch(ids, types, pack(mask != 0))


def has_pooler(model: Model) -> bool:
    """Check for the layer that transforms the first token's state for a classifier."""
    return "pooler.dense.weight" in model.weights


def require_head(model: Model, name: str) -> None:
    """Raise :class:`BertNumpyError` if a model does not have the head of the given name.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If no model has a head of the name.
    BertNumpyError
        If the model has another head.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> from bert_numpy.model import require_head
    >>> require_head(model, "question answering")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    bert_numpy.errors.BertNumpyError: bert-tiny-sst2: expected a BertForQuestionAnswering, found
    BertForSequenceClassification
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    require("name", name, str, "the name of a head")
    config = model.config
    if config.head.name != name:
        expected = config.description.class_of(name)
        raise BertNumpyError(
            f"{model.name}: expected a {expected}, found {config.stated_architecture}"
        )


def _checked_ids(name: str, values: npt.ArrayLike, limit: int, choices: bool = False) -> IntArray:
    """Convert to int64, checking for numbers in 0..limit-1: (batch, length), or with choices."""
    try:
        given = values if isinstance(values, np.ndarray) else array_of(name, values)
    except ValueError:
        raise BertNumpyError(f"{name}: expected rows of one length, found several") from None
    if given.ndim != 2 + choices or not given.size:
        shape = "(batch, choices, length)" if choices else "(batch, length)"
        raise BertNumpyError(f"{name}: expected shape {shape}, found {given.shape}")
    if given.dtype.kind not in "iub":
        raise BertNumpyError(f"{name}: expected integers, found {given.dtype}")
    bad = (given < 0) | (given >= limit)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise BertNumpyError(
            f"{name}: expected 0..{limit - 1}, found {given[place]} at row "
            f"{', '.join(map(str, place[:-1]))}, column {place[-1]}"
        )
    return given.astype(np.int64, copy=False)

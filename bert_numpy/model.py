"""BERT's forward pass: one token from its id to the logits, top to bottom.

Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers* (arXiv
1810.04805), as transformers computes it. Padding is not computed: the tokens of
a batch are packed into one (tokens, hidden) matrix for everything but
attention, where sequences of equal length go together.

There is this one pass. A :class:`~bert_numpy.policy.Policy` says how matrices
are multiplied and in which precision the rest is done; with another policy the
same pass calibrates, or runs quantized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bert_numpy.config import BertConfig
from bert_numpy.errors import BertNumpyError
from bert_numpy.packing import Packing, pack
from bert_numpy.policy import Policy
from bert_numpy.weights import Weights
from npfp8 import QuantizedTensor

__all__ = ["Model", "ModelOutput", "encoder_sites", "model_sites"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What the model gives back; names as in transformers.

    Attributes
    ----------
    last_hidden_state : ndarray of float32, (batch, length, hidden_size)
        Zero at positions that the attention mask leaves out (but for position
        0, which the pooler reads).
    pooler_output : ndarray of float32, (batch, hidden_size), or None
        None where the checkpoint has no pooler.
    logits : ndarray of float32, (batch, labels), or None
        None without a classification head.
    start_logits, end_logits : ndarray of float32, (batch, length), or None
        Of each position to be the first, and the last, token of the answer.
        -infinity at positions that the attention mask leaves out: a softmax
        gives them 0, and no sum with them is ever the largest. None without
        a question answering head.
    """

    last_hidden_state: Float32Array
    pooler_output: Float32Array | None = None
    logits: Float32Array | None = None
    start_logits: Float32Array | None = None
    end_logits: Float32Array | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A BERT: hyperparameters, parameters, and the policy that it computes by.

    Attributes
    ----------
    config : BertConfig
    weights : mapping of str to array or QuantizedTensor
    policy : Policy
    name : str
        Where it came from, for reports.
    """

    config: BertConfig
    weights: Weights = field(repr=False)
    policy: Policy
    name: str = "model"

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
            Token ids, padded to a common length.
        attention_mask : array_like of int or bool, (batch, length), optional
            1 for tokens, 0 for padding; all tokens by default. At least one
            token a row; any pattern, not just padding on the right.
        token_type_ids : array_like of int, (batch, length), optional
            0 for the first text, 1 for the second; all 0 by default.

        Raises
        ------
        BertNumpyError
            If a dtype, a shape or an id is not as expected.
        """
        ids = _checked_ids("input_ids", input_ids, self.config.vocab_size)
        if ids.shape[1] > self.config.max_position_embeddings:
            raise BertNumpyError(
                f"input_ids: expected at most {self.config.max_position_embeddings} tokens "
                f"(max_position_embeddings), found {ids.shape[1]}"
            )
        types = np.zeros_like(ids)
        if token_type_ids is not None:
            types = _checked_ids("token_type_ids", token_type_ids, self.config.type_vocab_size)
        mask = np.ones_like(ids)
        if attention_mask is not None:
            mask = _checked_ids("attention_mask", attention_mask, 2)
        for name, array in (("token_type_ids", types), ("attention_mask", mask)):
            if array.shape != ids.shape:
                raise BertNumpyError(f"{name}: expected shape {ids.shape}, found {array.shape}")
        return forward(self, ids, types, pack(mask != 0))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they are held: codes and scales where quantized."""
        return sum(weight.nbytes for weight in self.weights.values())


def forward(
    model: Model, input_ids: IntArray, token_type_ids: IntArray, packing: Packing
) -> ModelOutput:
    """Token ids to hidden states to logits."""
    x = embeddings(model, packing.take(input_ids), packing.take(token_type_ids), packing.positions)
    for i in range(model.config.num_hidden_layers):
        x = layer(model, f"encoder.layer.{i}", x, packing)  # (tokens, hidden)
    model.policy.check("last_hidden_state", x)

    pooled = logits = starts = ends = None
    if "pooler.dense.weight" in model.weights:
        pooled = pooler(model, x[packing.first])  # (batch, hidden)
        if model.config.has_classifier:
            logits = linear(model, "classifier", pooled)  # (batch, labels)
    if model.config.has_qa_outputs:
        starts, ends = span_logits(model, x, packing)  # (batch, length) each
    return ModelOutput(packing.unpack(x), pooled, logits, starts, ends)


def embeddings(
    model: Model, input_ids: IntArray, token_type_ids: IntArray, positions: IntArray
) -> Float32Array:
    """The sum of word, type and position embeddings, normalised. (tokens,) -> (tokens, hidden)."""
    site = "embeddings"
    words = array(model, f"{site}.word_embeddings.weight")[input_ids]
    types = array(model, f"{site}.token_type_embeddings.weight")[token_type_ids]
    places = array(model, f"{site}.position_embeddings.weight")[positions]
    arithmetic = model.policy.arithmetic
    return layer_norm(model, f"{site}.LayerNorm", arithmetic.add(words + types, places))


def layer(model: Model, site: str, x: Float32Array, packing: Packing) -> Float32Array:
    """One Transformer layer: attention, then the feed-forward network, each with its residual."""
    arithmetic = model.policy.arithmetic
    context = attention(model, f"{site}.attention", x, packing)
    projected = linear(model, f"{site}.attention.output.dense", context)
    x = layer_norm(model, f"{site}.attention.output.LayerNorm", arithmetic.add(projected, x))

    inner = linear(model, f"{site}.intermediate.dense", x)  # (tokens, intermediate)
    inner = arithmetic.activation(model.config.hidden_act, inner)
    projected = linear(model, f"{site}.output.dense", inner)
    return layer_norm(model, f"{site}.output.LayerNorm", arithmetic.add(projected, x))


def attention(model: Model, site: str, x: Float32Array, packing: Packing) -> Float32Array:
    """Multi-head self-attention: softmax(Q K^T / sqrt(d)) V. (tokens, hidden) -> the same."""
    gemm, arithmetic = model.policy.gemm, model.policy.arithmetic
    heads = model.config.num_attention_heads
    scale = np.float32(1 / math.sqrt(model.config.hidden_size // heads))
    query = linear(model, f"{site}.self.query", x)
    key = linear(model, f"{site}.self.key", x)
    value = linear(model, f"{site}.self.value", x)

    context = np.empty_like(query)
    for group in packing.groups:  # sequences of equal length: (group, length) token numbers
        q = split_heads(query[group.queries], heads)  # (group, heads, queries, d)
        k = split_heads(key[group.keys], heads)  # (group, heads, keys, d)
        v = split_heads(value[group.keys], heads)
        scores = gemm(f"{site}.scores", q, k.swapaxes(-1, -2), None)
        weights = arithmetic.softmax(arithmetic.multiply(scores, scale))
        mixed = gemm(f"{site}.context", weights, v, None)  # (group, heads, queries, d)
        context[group.queries] = merge_heads(mixed)
    return context


def pooler(model: Model, first: Float32Array) -> Float32Array:
    """The first token's hidden state through a tanh layer. (batch, hidden) -> the same."""
    return model.policy.arithmetic.tanh(linear(model, "pooler.dense", first))


def span_logits(
    model: Model, x: Float32Array, packing: Packing
) -> tuple[Float32Array, Float32Array]:
    """Start and end logits of each token. (tokens, hidden) -> 2 x (batch, length)."""
    logits = packing.unpack(linear(model, "qa_outputs", x))  # (batch, length, 2)
    logits[~packing.mask] = -np.inf
    return logits[..., 0], logits[..., 1]


def linear(model: Model, site: str, x: Float32Array) -> Float32Array:
    """``x W^T + b``, by the policy. (..., in) -> (..., out)."""
    weight = model.weights[f"{site}.weight"]
    transposed = weight.mT if isinstance(weight, QuantizedTensor) else weight.T
    return model.policy.gemm(site, x, transposed, array(model, f"{site}.bias"))


def layer_norm(model: Model, site: str, x: Float32Array) -> Float32Array:
    """Normalise each row to mean 0 and variance 1, then scale and shift."""
    weight, bias = array(model, f"{site}.weight"), array(model, f"{site}.bias")
    return model.policy.arithmetic.layer_norm(x, weight, bias, model.config.layer_norm_eps)


def split_heads(x: Float32Array, heads: int) -> Float32Array:
    """(group, length, hidden) -> (group, heads, length, hidden / heads)."""
    group, length, hidden = x.shape
    return x.reshape(group, length, heads, hidden // heads).swapaxes(1, 2)


def merge_heads(x: Float32Array) -> Float32Array:
    """(group, heads, length, d) -> (group, length, heads * d)."""
    group, heads, length, d = x.shape
    return x.swapaxes(1, 2).reshape(group, length, heads * d)


def array(model: Model, name: str) -> Float32Array:
    """A parameter that is never quantized: an embedding, a bias or a LayerNorm's."""
    weight = model.weights[name]
    assert isinstance(weight, np.ndarray), name
    return weight


def encoder_sites(config: BertConfig) -> list[str]:
    """The name of every matrix product of the encoder, in the order of the data flow."""
    products = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.scores",
        "attention.context",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    layers = range(config.num_hidden_layers)
    return [f"encoder.layer.{i}.{product}" for i in layers for product in products]


def model_sites(model: Model) -> list[str]:
    """The name of every matrix product of a model: the encoder's, the pooler's and the head's."""
    heads = [
        name.removesuffix(".weight")
        for name in model.weights
        if name.endswith(".weight") and not name.startswith(("embeddings.", "encoder."))
    ]
    return encoder_sites(model.config) + heads


def _checked_ids(name: str, values: npt.ArrayLike, limit: int) -> IntArray:
    """``values`` as a (batch, length) int64 array of numbers in 0..limit-1."""
    try:
        given = np.asarray(values)
    except ValueError:
        raise BertNumpyError(f"{name}: expected rows of one length, found several") from None
    if given.ndim != 2 or not given.size:
        raise BertNumpyError(f"{name}: expected shape (batch, length), found {given.shape}")
    if given.dtype.kind not in "iub":
        raise BertNumpyError(f"{name}: expected integers, found {given.dtype}")
    bad = (given < 0) | (given >= limit)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise BertNumpyError(
            f"{name}: expected 0..{limit - 1}, found {given[row, column]} at row {row}, "
            f"column {column}"
        )
    return given.astype(np.int64, copy=False)

"""BERT's forward pass: one token from its id to the last hidden state, top to bottom.

Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers* (arXiv
1810.04805), as transformers computes it; its relatives differ in what
:mod:`bert_numpy.model.architectures` says. Padding is not computed: the tokens of
a batch are packed into one (tokens, hidden) matrix for everything but
attention, where sequences of equal length go together.

There is this one pass. A :class:`~bert_numpy.quantization.policy.Policy` says how matrices
are multiplied and in which precision the rest is done; with another policy the
same pass calibrates, or runs quantized.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bert_numpy.checkpoints.parameters import Weights
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from bert_numpy.model.heads import OF_POOLED, OF_TOKENS
from bert_numpy.model.layers import array, layer_norm, linear
from bert_numpy.model.packing import Packing, pack, take_rows
from bert_numpy.quantization.policy import Policy

__all__ = ["Model", "ModelOutput", "encoder_sites", "model_sites", "require_head"]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """What the model gives back; names as in transformers.

    Of multiple choice, batch is the number of texts: all choices of all examples.
    A number may be NaN or infinite, if the model overflows: :mod:`bert_numpy.finite`.

    Attributes
    ----------
    last_hidden_state : ndarray of float32, (batch, length, hidden_size)
        Zero at positions that the attention mask leaves out (but for position
        0, which the pooler reads).
    pooler_output : ndarray of float32, (batch, hidden_size), or None
        Of the pooler, or of the layer that a classifier has in its place; None
        where the checkpoint has neither.
    logits : ndarray of float32, or None
        Of sequence classification (batch, labels); multiple choice (examples,
        choices); next sentence prediction (batch, 2); token classification
        (batch, length, labels); masked language modelling (batch, length,
        vocab_size); replaced token detection (batch, length). Those of tokens
        are zero where the hidden states are.
    start_logits, end_logits : ndarray of float32, (batch, length), or None
        Of each position to be the first, and the last, token of the answer.
        -infinity at positions that the attention mask leaves out: a softmax
        gives them 0, and no sum with them is ever the largest. None without
        a question answering head.
    prediction_logits, seq_relationship_logits : ndarray of float32, or None
        Of pre-training: (batch, length, vocab_size) and (batch, 2).
    sentence_embedding : ndarray of float32, (batch, hidden_size), or None
        Of a sentence-transformers folder.
    """

    last_hidden_state: Float32Array
    pooler_output: Float32Array | None = None
    logits: Float32Array | None = None
    start_logits: Float32Array | None = None
    end_logits: Float32Array | None = None
    prediction_logits: Float32Array | None = None
    seq_relationship_logits: Float32Array | None = None
    sentence_embedding: Float32Array | None = None


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
            Token ids, padded to a common length. For multiple choice, all
            arguments are (examples, choices, length).
        attention_mask : array_like of int or bool, (batch, length), optional
            1 for tokens, 0 for padding; all tokens by default. At least one
            token a row; any pattern, not just padding on the right.
        token_type_ids : array_like of int, (batch, length), optional
            0 for the first text, 1 for the second; all 0 by default, and in
            models that know only one type or none.

        Raises
        ------
        BertNumpyError
            If a dtype, a shape or an id is not as expected.
        """
        config = self.config
        choices = config.head.name == "multiple choice"
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
        output = forward(self, ids, types, pack(mask != 0))
        if choices and output.logits is not None:
            return replace(output, logits=output.logits.reshape(np.shape(input_ids)[:2]))
        return output

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they are held: codes and scales where quantized, ties once."""
        return sum({id(weight): weight.nbytes for weight in self.weights.values()}.values())


def forward(
    model: Model, input_ids: IntArray, token_type_ids: IntArray, packing: Packing
) -> ModelOutput:
    """Token ids to hidden states to a task's outputs.

    Overflows and NaN give no warnings of NumPy: whoever reads the outputs looks
    whether they are finite (:mod:`bert_numpy.finite`).
    """
    policy = model.policy.for_batch(model.policy, packing)
    if policy is not model.policy:
        model = replace(model, policy=policy)
    with np.errstate(all="ignore"):
        positions = position_ids(model.config, input_ids)
        tokens = (packing.take(ids) for ids in (input_ids, token_type_ids, positions))
        x = embeddings(model, *tokens)
        for i in range(model.config.num_hidden_layers):
            x = layer(model, f"encoder.layer.{i}", x, packing)  # (tokens, hidden)
        model.policy.check("last_hidden_state", x)

        head, pooled = model.config.head.name, None
        outputs: dict[str, Float32Array] = {}
        if "pooler.dense.weight" in model.weights:
            pooled = pooler(model, x[packing.first])  # (batch, hidden)
            if head in OF_POOLED:
                outputs |= OF_POOLED[head](model, pooled)
        if head in OF_TOKENS:
            outputs |= OF_TOKENS[head](model, x, packing)
        return ModelOutput(packing.unpack(x), pooled, **outputs)


def position_ids(config: BertConfig, input_ids: IntArray) -> IntArray:
    """Which position embedding each token takes. (batch, length) -> the same.

    Its place in the row; for RoBERTa, its place among the tokens that are not
    ``[PAD]``, whatever the attention mask says, from ``pad_token_id + 1`` on.
    """
    if not config.description.counts_positions:
        return np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    counted = input_ids != config.pad_token_id
    return np.cumsum(counted, axis=1) * counted + config.pad_token_id


def embeddings(
    model: Model, input_ids: IntArray, token_type_ids: IntArray, positions: IntArray
) -> Float32Array:
    """The sum of word, type and position embeddings, normalised. (tokens,) -> (tokens, hidden).

    DistilBERT has no types; ELECTRA's embeddings may be smaller than its hidden
    states, and are projected.
    """
    site = "embeddings"
    x = array(model, f"{site}.word_embeddings.weight")[input_ids]
    if model.config.type_vocab_size:
        x += array(model, f"{site}.token_type_embeddings.weight")[token_type_ids]
    places = array(model, f"{site}.position_embeddings.weight")[positions]
    x = layer_norm(model, f"{site}.LayerNorm", model.policy.arithmetic.add(x, places))
    if model.config.embedding_size != model.config.hidden_size:
        x = linear(model, "embeddings_project", x)
    return x


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
        q = split_heads(take_rows(query, group.queries), heads)  # (group, heads, queries, d)
        k = split_heads(take_rows(key, group.keys), heads)  # (group, heads, keys, d)
        v = split_heads(take_rows(value, group.keys), heads)
        scores = gemm(f"{site}.scores", q, k.swapaxes(-1, -2), None)
        weights = arithmetic.softmax(arithmetic.multiply(scores, scale))
        mixed = gemm(f"{site}.context", weights, v, None)  # (group, heads, queries, d)
        context[group.queries] = merge_heads(mixed)
    return context


def pooler(model: Model, first: Float32Array) -> Float32Array:
    """The first token's hidden state through a layer of its own. (batch, hidden) -> the same."""
    activation = model.config.description.pooler_activation
    x = linear(model, "pooler.dense", first)
    return model.policy.arithmetic.activation(activation, x)


def split_heads(x: Float32Array, heads: int) -> Float32Array:
    """(group, length, hidden) -> (group, heads, length, hidden / heads)."""
    group, length, hidden = x.shape
    return x.reshape(group, length, heads, hidden // heads).swapaxes(1, 2)


def merge_heads(x: Float32Array) -> Float32Array:
    """(group, heads, length, d) -> (group, length, heads * d)."""
    group, heads, length, d = x.shape
    return x.swapaxes(1, 2).reshape(group, length, heads * d)


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
    """The name of every matrix product of a model, in the order of the data flow."""
    linear_layers = [
        name.removesuffix(".weight")
        for name, weight in model.weights.items()
        if name.endswith(".weight")
        and len(weight.shape) == 2
        and not name.startswith("embeddings.")
    ]
    before = [site for site in linear_layers if site == "embeddings_project"]
    heads = [site for site in linear_layers if not site.startswith(("encoder.", *before))]
    return before + encoder_sites(model.config) + heads


def require_head(model: Model, name: str) -> None:
    """Raise :class:`BertNumpyError` if a model has not the head of the given name."""
    config = model.config
    if config.head.name != name:
        expected = config.description.class_of(name)
        raise BertNumpyError(
            f"{model.name}: expected a {expected}, found {config.stated_architecture}"
        )


def _checked_ids(name: str, values: npt.ArrayLike, limit: int, choices: bool = False) -> IntArray:
    """``values`` as an int64 array of numbers in 0..limit-1: (batch, length), or with choices."""
    try:
        given = np.asarray(values)
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

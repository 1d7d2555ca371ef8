"""What stands on the encoder: from hidden states to a task's outputs.

A head reads the pooler's output (batch, hidden), or the hidden states of the
computed tokens (tokens, hidden), or both. Its functions return fields of
:class:`bert_numpy.ModelOutput`. What belongs to a token is padded again: 0
where the attention mask leaves a position out, but for position 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bert_numpy.model.layers import layer_norm, linear
from bert_numpy.model.packing import Packing

if TYPE_CHECKING:
    from bert_numpy.model.model import Model

__all__ = ["OF_POOLED", "OF_TOKENS"]

Float32Array = npt.NDArray[np.float32]
Outputs = dict[str, Float32Array]


def classification(model: Model, pooled: Float32Array) -> Outputs:
    """Logits of the labels, or scores: (batch, labels); of a choice one: (batch, 1)."""
    return {"logits": linear(model, "classifier", pooled)}


def next_sentence(model: Model, pooled: Float32Array) -> Outputs:
    """Logits of the second text to follow the first, and not to: (batch, 2)."""
    return {"logits": linear(model, "cls.seq_relationship", pooled)}


def pre_training_pooled(model: Model, pooled: Float32Array) -> Outputs:
    """As :func:`next_sentence`, under the name that pre-training has for it."""
    return {"seq_relationship_logits": next_sentence(model, pooled)["logits"]}


def token_classification(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """Logits of the labels for each token: (batch, length, labels)."""
    return {"logits": packing.unpack(linear(model, "classifier", x))}


def question_answering(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """Start and end logits of each token: (batch, length) each; -infinity where masked."""
    logits = packing.unpack(linear(model, "qa_outputs", x))  # (batch, length, 2)
    logits[~packing.mask] = -np.inf
    return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


def masked_language_model(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """Logits of the vocabulary for each token: (batch, length, vocab_size)."""
    site = "cls.predictions"
    name = model.config.description.prediction_activation or model.config.hidden_act
    x = model.policy.arithmetic.activation(name, linear(model, f"{site}.transform.dense", x))
    x = layer_norm(model, f"{site}.transform.LayerNorm", x)  # (tokens, embedding_size)
    return {"logits": packing.unpack(linear(model, f"{site}.decoder", x))}


def pre_training_tokens(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """As :func:`masked_language_model`, under the name that pre-training has for it."""
    return {"prediction_logits": masked_language_model(model, x, packing)["logits"]}


def replaced_tokens(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """ELECTRA's discriminator: a logit of each token to have been replaced, (batch, length)."""
    site = "discriminator_predictions"
    x = linear(model, f"{site}.dense", x)
    x = model.policy.arithmetic.activation(model.config.hidden_act, x)
    return {"logits": packing.unpack(linear(model, f"{site}.dense_prediction", x))[..., 0]}


def sentence_embedding(model: Model, x: Float32Array, packing: Packing) -> Outputs:
    """One vector a text: (batch, hidden). Of the model's answer nothing is rounded to bfloat16."""
    pooling, arithmetic = model.config.pooling, model.policy.arithmetic
    assert pooling is not None
    if pooling.mode == "cls":
        vectors = x[packing.first]
    else:
        vectors = np.empty((packing.shape[0], x.shape[-1]), np.float32)
        for group in packing.groups:  # sequences of equal length
            vectors[group.rows] = arithmetic.mean(x[group.keys])
    if pooling.normalize:
        vectors = arithmetic.normalize(vectors)
    model.policy.check("sentence_embedding", vectors)
    return {"sentence_embedding": vectors}


#: By the head's name: what is computed of the pooler's output.
OF_POOLED: dict[str, Callable[[Model, Float32Array], Outputs]] = {
    "sequence classification": classification,
    "multiple choice": classification,
    "next sentence prediction": next_sentence,
    "pre-training": pre_training_pooled,
}

#: By the head's name: what is computed of the tokens' hidden states.
OF_TOKENS: dict[str, Callable[[Model, Float32Array, Packing], Outputs]] = {
    "token classification": token_classification,
    "question answering": question_answering,
    "masked language modelling": masked_language_model,
    "pre-training": pre_training_tokens,
    "replaced token detection": replaced_tokens,
    "sentence embeddings": sentence_embedding,
}

"""The heads: from hidden states to a task's outputs.

A head reads the pooler's output (batch, hidden), or the hidden states of the tokens
(tokens, hidden), or both. Its functions return fields of :class:`bert_numpy.ModelOutput`.
Outputs per token are padded again, with 0 at the positions that the attention mask leaves
out (except position 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bert_numpy.model.config import Dense
from bert_numpy.model.encoder import Pass, activation, encode, layer_norm, linear, pooler

__all__ = ["answers", "outputs"]

V = TypeVar("V")
Outputs = dict[str, V]


def outputs(run: Pass[V], has_pooler: bool) -> Outputs[V]:
    """Run the whole forward pass: the last hidden states, then the pooler and the head."""
    return answers(run, encode(run), has_pooler)


def answers(run: Pass[V], x: V, has_pooler: bool) -> Outputs[V]:
    """Run what follows the last hidden states, (tokens, hidden): the pooler and the head."""
    name = run.config.head.name
    found = {"last_hidden_state": run.layout.padded(x)}
    if has_pooler:
        pooled = found["pooler_output"] = pooler(run, x)
        if name in OF_POOLED:
            found |= OF_POOLED[name](run, pooled)
    if name in OF_TOKENS:
        found |= OF_TOKENS[name](run, x)
    return found


def classification(run: Pass[V], pooled: V) -> Outputs[V]:
    """Compute logits (or regression scores), (batch, labels)."""
    return {"logits": linear(run, "classifier", pooled, len(run.config.labels))}


def multiple_choice(run: Pass[V], pooled: V) -> Outputs[V]:
    """Compute one logit per choice of each example: (batch, 1)."""
    return {"logits": linear(run, "classifier", pooled, 1)}


def next_sentence(run: Pass[V], pooled: V) -> Outputs[V]:
    """Compute logits for "the second text follows the first" and "it does not": (batch, 2)."""
    return {"logits": linear(run, "cls.seq_relationship", pooled, 2)}


def pre_training_pooled(run: Pass[V], pooled: V) -> Outputs[V]:
    """Compute :func:`next_sentence` under the name of its logits in pre-training."""
    return {"seq_relationship_logits": next_sentence(run, pooled)["logits"]}


def sentence_order(run: Pass[V], pooled: V) -> Outputs[V]:
    """Compute ALBERT's logits for "the texts are in order" and "swapped": (batch, labels)."""
    return {"sop_logits": linear(run, "cls.sop_classifier", pooled, len(run.config.labels))}


def token_classification(run: Pass[V], x: V) -> Outputs[V]:
    """Compute logits of the labels for each token: (batch, length, labels)."""
    logits = linear(run, "classifier", x, len(run.config.labels))
    return {"logits": run.layout.padded(logits)}


def question_answering(run: Pass[V], x: V) -> Outputs[V]:
    """Compute start and end logits per token, (batch, length) each; -infinity where masked."""
    logits = linear(run, "qa_outputs", x, 2)
    names = ("start_logits", "end_logits")
    return {name: run.layout.column(logits, i, -math.inf) for i, name in enumerate(names)}


def masked_language_model(run: Pass[V], x: V) -> Outputs[V]:
    """Compute logits of the vocabulary for each token: (batch, length, vocab_size)."""
    config, site = run.config, "cls.predictions"
    x = linear(run, f"{site}.transform.dense", x, config.embedding_size)
    x = activation(run, config.description.prediction_activation or config.hidden_act, x)
    x = layer_norm(run, f"{site}.transform.LayerNorm", x)
    logits = linear(run, f"{site}.decoder", x, config.vocab_size)
    return {"logits": run.layout.padded(logits)}


def pre_training_tokens(run: Pass[V], x: V) -> Outputs[V]:
    """Compute :func:`masked_language_model` under the name of its logits in pre-training."""
    return {"prediction_logits": masked_language_model(run, x)["logits"]}


def replaced_tokens(run: Pass[V], x: V) -> Outputs[V]:
    """Compute ELECTRA's logit for "this token was replaced" per token: (batch, length)."""
    site = "discriminator_predictions"
    x = linear(run, f"{site}.dense", x, run.config.hidden_size)
    x = activation(run, run.config.hidden_act, x)
    logits = linear(run, f"{site}.dense_prediction", x, 1)
    return {"logits": run.layout.column(logits, 0)}


def sentence_embedding(run: Pass[V], x: V) -> Outputs[V]:
    """Compute one vector per text, (batch, features): in float32, like every model output."""
    pooling = run.config.pooling
    assert pooling is not None
    vectors = pooled_tokens(run, pooling.modes, x)
    if pooling.normalize:
        vectors = run.engine.normalize(vectors)
    for layer in pooling.dense:
        vectors = dense(run, layer, vectors)
    return {"sentence_embedding": run.engine.output("sentence_embedding", vectors)}


def pooled_tokens(run: Pass[V], modes: Sequence[str], x: V) -> V:
    """Pool the tokens of each text by each mode, side by side: (batch, modes * hidden)."""
    engine, layout = run.engine, run.layout
    vectors = [
        layout.first(x)
        if mode == "cls"
        else layout.join([engine.pool(mode, *text) for text in layout.texts(x)])
        for mode in modes
    ]
    return vectors[0] if len(vectors) == 1 else engine.concatenate(vectors)


def dense(run: Pass[V], layer: Dense, x: V) -> V:
    """Apply a linear layer after the pooling. (batch, features) -> (batch, outputs)."""
    x = linear(run, layer.site, x, layer.outputs)
    if layer.activation is not None:
        x = run.engine.activation(layer.activation, x, answer=True)
    return run.engine.normalize(x) if layer.normalize else x


#: By the head's name: the function of the pooler's output.
OF_POOLED: dict[str, Callable[[Pass[Any], Any], Outputs[Any]]] = {
    "sequence classification": classification,
    "multiple choice": multiple_choice,
    "next sentence prediction": next_sentence,
    "pre-training": pre_training_pooled,
    "sentence order pre-training": sentence_order,
}

#: By the head's name: the function of the tokens' hidden states.
OF_TOKENS: dict[str, Callable[[Pass[Any], Any], Outputs[Any]]] = {
    "token classification": token_classification,
    "question answering": question_answering,
    "masked language modelling": masked_language_model,
    "pre-training": pre_training_tokens,
    "sentence order pre-training": pre_training_tokens,
    "replaced token detection": replaced_tokens,
    "sentence embeddings": sentence_embedding,
}

"""The forward pass: from token ids to the last hidden states, top to bottom.

Devlin et al., *BERT: Pre-training of Deep Bidirectional Transformers* (arXiv
1810.04805), as transformers computes it. :mod:`bert_numpy.model.architectures` lists
the differences of its relatives.

This is the only pass. The engine (:mod:`bert_numpy.engines.engine`) gives its operations
their meaning: with another engine the same pass calibrates, runs quantized, is recorded,
becomes an ONNX graph, or lists the names and shapes of the parameters. The layout decides
where the tokens of a batch lie. So nothing here computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bert_numpy.engines.engine import Engine, Layout
from bert_numpy.engines.site import Site
from bert_numpy.errors import NAMED, raise_named
from bert_numpy.model.config import BertConfig
from bert_numpy.model.relative_positions import BUCKETS

__all__ = ["Pass", "activation", "encode", "layer_norm", "linear", "pooler"]

V = TypeVar("V")


@dataclass(frozen=True)
class Pass(Generic[V]):
    """One run of the forward pass, and its present place in the model.

    Attributes
    ----------
    config : BertConfig
    engine : Engine
    layout : Layout
    prefix : str
        The beginning of the parameters' names.
    layer : int, optional
        The number of the Transformer layer.
    """

    config: BertConfig
    engine: Engine[V]
    layout: Layout[V]
    prefix: str = ""
    layer: int | None = None

    def site(self, name: str, outputs: int = 0, kind: str | None = None) -> Site:
        """Describe a matrix product: by default a Transformer layer's linear one, or a head's."""
        kind = kind or ("head" if self.layer is None else "linear")
        return Site(self.prefix + name, kind, self.layer, outputs)

    def inside(self, layer: int) -> Pass[V]:
        """Move the run into a Transformer layer."""
        number = self.config.layer_parameters[layer]
        return Pass(self.config, self.engine, self.layout, f"encoder.layer.{number}.", layer)


def encode(run: Pass[V]) -> V:
    """Compute the last hidden states of all tokens: (tokens, hidden)."""
    x = embeddings(run)
    biases = position_biases(run)
    for i in range(run.config.num_hidden_layers):
        x = layer(run.inside(i), x, biases)
    return run.engine.output("last_hidden_state", x)


def embeddings(run: Pass[V]) -> V:
    """Add word, type and position embeddings, and normalise the sum: (tokens, hidden).

    DistilBERT has no types. The embeddings of ELECTRA and ALBERT may be smaller than the
    hidden states, so they are projected.
    """
    config, layout, size = run.config, run.layout, run.config.embedding_size
    site = "embeddings"
    tables = [(f"{site}.word_embeddings.weight", config.vocab_size, size, layout.words())]
    if types := config.type_vocab_size:
        tables.append((f"{site}.token_type_embeddings.weight", types, size, layout.types()))
    places = layout.places(config.position_padding)
    positions = (f"{site}.position_embeddings.weight", config.max_position_embeddings, size, places)
    x = run.engine.add(run.engine.gather(tables), run.engine.gather([positions]))
    x = layer_norm(run, f"{site}.LayerNorm", x)
    if config.projects_embeddings:
        x = linear(run, "embeddings_project", x, config.hidden_size, kind="projection")
    return x


def position_biases(run: Pass[V]) -> Sequence[V]:
    """Look up the biases added to every layer's scores: (1 or sequences, heads, queries, keys).

    There is one array per set of sequences that attend in one product. Only MPNet has these
    biases: each of its heads has one number per bucket of distances.
    """
    config, engine = run.config, run.engine
    if not (rows := config.relative_attention_num_buckets):
        return ()
    name, heads = "encoder.relative_attention_bias", config.num_attention_heads
    buckets = run.layout.distances(BUCKETS)
    return [engine.position_bias((f"{name}.weight", rows, heads, which)) for which in buckets]


def layer(run: Pass[V], x: V, biases: Sequence[V] = ()) -> V:
    """Run one Transformer layer: attention, then the feed-forward network, each with a residual."""
    x = residual(run, "attention.output", attention(run, x, biases), x)
    inner = linear(run, "intermediate.dense", x, run.config.intermediate_size)
    return residual(run, "output", inner, x, run.config.hidden_act)


def attention(run: Pass[V], x: V, biases: Sequence[V] = ()) -> V:
    """Compute multi-head attention, softmax(Q K^T / sqrt(d) + bias) V: (tokens, hidden) -> same."""
    layout, hidden = run.layout, run.config.hidden_size
    heads = run.config.num_attention_heads
    names = [f"attention.self.{name}" for name in ("query", "key", "value")]
    query, key, value = linears(run, [run.site(name, hidden) for name in names], x)
    factor = 1 / math.sqrt(hidden // heads)
    parts = []
    for i, (q, k, v) in enumerate(layout.split_heads(query, key, value, heads)):
        parts.append(attend(run, q, k, v, factor, biases[i] if biases else None))
    return layout.merge_heads(parts)


def attend(run: Pass[V], q: V, k: V, v: V, factor: float, bias: V | None) -> V:
    """Compute ``softmax(q k factor + bias) v`` of one set: (sequences, heads, queries, d).

    ``k`` is already transposed. An engine that fuses attention computes all of it at once.
    """
    engine = run.engine
    scores_site = run.site("attention.scores", kind="scores")
    context_site = run.site("attention.context", kind="context")
    if engine.fuses_attention:
        return engine.attention(scores_site, context_site, q, k, v, factor, bias)
    scores = product(run, scores_site, q, k)  # (sequences, heads, queries, keys)
    scores = engine.multiply(scores, factor)
    if bias is not None:
        scores = engine.add(scores, bias)
    return product(run, context_site, engine.softmax(scores), v)


def residual(run: Pass[V], name: str, x: V, before: V, function: str | None = None) -> V:
    """Apply an activation and a linear layer, add ``before`` and normalise: (tokens, hidden)."""
    layer, hidden = f"{name}.dense", run.config.hidden_size
    if function is not None and run.engine.fuses_activation:
        projected = activated_linear(run, run.site(layer, hidden), function, x)
    else:
        x = x if function is None else activation(run, function, x)
        projected = linear(run, layer, x, hidden)
    return layer_norm(run, f"{name}.LayerNorm", run.engine.add(projected, before))


def pooler(run: Pass[V], x: V) -> V:
    """Pass the first token's hidden state through the pooler. (tokens, .) -> (batch, .)."""
    pooled = linear(run, "pooler.dense", run.layout.first(x), run.config.hidden_size)
    return activation(run, run.config.description.pooler_activation, pooled)


def linear(run: Pass[V], name: str, x: V, outputs: int, kind: str | None = None) -> V:
    """Compute ``x W^T + b``. (..., in) -> (..., outputs)."""
    return linears(run, [run.site(name, outputs, kind)], x)[0]


def linears(run: Pass[V], sites: Sequence[Site], x: V) -> list[V]:
    """Compute several linear layers of one input; an error names the layer in which it arose."""
    found: list[V] = []
    try:
        found.extend(run.engine.linears(sites, x))
    except NAMED as error:
        raise_named(error, sites[len(found)].name)
    return found


def activated_linear(run: Pass[V], site: Site, function: str, x: V) -> V:
    """Compute a linear layer of an activation, both at once."""
    try:
        return run.engine.activated_linear(site, function, x)
    except NAMED as error:
        raise_named(error, site.name)


def product(run: Pass[V], site: Site, a: V, b: V) -> V:
    """Multiply two activations, ``a b``."""
    try:
        return run.engine.product(site, a, b)
    except NAMED as error:
        raise_named(error, site.name)


def layer_norm(run: Pass[V], name: str, x: V) -> V:
    """Normalise each row to mean 0 and variance 1, then scale and shift it."""
    return run.engine.layer_norm(run.prefix + name, x, run.config.layer_norm_eps)


def activation(run: Pass[V], name: str, x: V) -> V:
    """Apply the function of the given name to each element."""
    return run.engine.activation(name, x)

"""The hyperparameters of an encoder and its head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bert_numpy.errors import shown
from bert_numpy.model.architectures import ARCHITECTURES, SENTENCE_EMBEDDINGS, Architecture, Head

__all__ = ["BertConfig", "Dense", "Pooling"]


@dataclass(frozen=True)
class Dense:
    """A linear layer that sentence-transformers puts after the pooling.

    ``site`` is the layer's name, ``N_Dense.linear`` for module N of ``modules.json``; ``outputs``
    is the number of features of its result, and ``activation`` the function applied to them
    (None for the identity). If ``normalize`` is true, the vector is then divided by its
    Euclidean norm.
    """

    site: str
    outputs: int
    activation: str | None = None
    normalize: bool = False


@dataclass(frozen=True)
class Pooling:
    """The way in which sentence-transformers makes one vector of a text's hidden states.

    ``mode`` is "cls" (the first token's hidden state) or a key of
    :data:`npfp8.golden.POOLINGS`; several modes are joined by "+", and their vectors are put
    side by side. If ``normalize`` is true, the vector is divided by its Euclidean norm.
    The layers of ``dense`` come last.
    """

    mode: str
    normalize: bool
    dense: tuple[Dense, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        """The single modes, in the order of their vectors."""
        return tuple(self.mode.split("+"))


@dataclass(frozen=True, repr=False)
class BertConfig:
    """The hyperparameters of a BERT or a relative, under the keys of BERT's ``config.json``.

    ``labels`` holds the names of the head's outputs in their order (from
    ``id2label``), and ``architecture`` names the class that wrote the checkpoint.
    ``type_vocab_size`` is 0 if there are no token types. ``pooling`` is that of a
    sentence-transformers folder. ``architecture_found`` is False if the file
    does not name a class; ``architecture`` is then the bare encoder's.
    ``num_hidden_groups`` is the number of different layers (ALBERT); it is 0 if each
    layer has its own parameters. ``relative_attention_num_buckets`` is the number of rows in
    the table of relative positions (MPNet); it is 0 if there is no table.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> model.config  # doctest: +NORMALIZE_WHITESPACE
    <BertConfig BertForSequenceClassification: 2 layers of 128, 2 heads, vocabulary 30522,
    labels negative, positive>
    >>> model.config.max_length
    512
    """

    model_type: str
    architecture: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float
    tie_word_embeddings: bool
    labels: tuple[str, ...]
    problem_type: str | None = None
    pooling: Pooling | None = None
    architecture_found: bool = True
    num_hidden_groups: int = 0
    relative_attention_num_buckets: int = 0

    def __repr__(self) -> str:
        few = len(self.labels) <= 4
        labels = ", ".join(map(shown, self.labels)) if few else f"{len(self.labels)} of them"
        return (
            f"<BertConfig {self.architecture}: {self.num_hidden_layers} layers of "
            f"{self.hidden_size}, {self.num_attention_heads} heads, vocabulary "
            f"{self.vocab_size}{f', labels {labels}' if self.labels else ''}>"
        )

    @property
    def stated_architecture(self) -> str:
        """The class that the file names, for messages; "none" if it does not name one."""
        return self.architecture if self.architecture_found else "none (no 'architectures')"

    @cached_property
    def description(self) -> Architecture:
        """The differences between the model type and BERT."""
        return ARCHITECTURES[self.model_type]

    @cached_property
    def head(self) -> Head:
        """The head on top of the encoder."""
        return SENTENCE_EMBEDDINGS if self.pooling else self.description.head(self.architecture)

    @cached_property
    def stored_together(self) -> BertConfig:
        """The part of the model in the checkpoint's own files, without Dense modules."""
        pooling = self.pooling
        return self if pooling is None else replace(self, pooling=replace(pooling, dense=()))

    @cached_property
    def projects_embeddings(self) -> bool:
        """True if a linear layer turns embeddings into hidden states."""
        different = self.embedding_size != self.hidden_size
        return different or self.description.projects_embeddings

    @cached_property
    def layer_parameters(self) -> Sequence[int]:
        """The number of the layer whose parameters each layer uses, grouped as in transformers."""
        layers, groups = self.num_hidden_layers, self.num_hidden_groups
        return [int(i / (layers / groups)) for i in range(layers)] if groups else range(layers)

    @cached_property
    def max_length(self) -> int:
        """The longest input, in tokens; RoBERTa reserves the first positions for the padding."""
        first = 0 if self.position_padding is None else self.position_padding + 1
        return self.max_position_embeddings - first

    @cached_property
    def position_padding(self) -> int | None:
        """The token id that gets no position number, where such a one exists (RoBERTa)."""
        return self.pad_token_id if self.description.counts_positions else None

"""A new head for a task, on the encoder of another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bert_numpy.model.model import Model
from bert_numpy.model.sites import WORDS, expected_shapes
from npfp8.arguments import integer, require, require_iterable
from npfp8.arrays import Float32Array

__all__ = ["with_head"]

#: The standard deviation of a new weight, BERT's ``initializer_range``.
_DEVIATION = 0.02

_DECODER = "cls.predictions.decoder.weight"


def with_head(model: Model, head: str, labels: Sequence[str], seed: int = 0) -> Model:
    """Put a new head on a model's encoder.

    Parameters that the model has are kept: the encoder's, and the pooler's if there is one. New
    weights are normal with deviation 0.02, new biases 0, and the weights of a new LayerNorm 1. The
    decoder of a masked language model is the word embeddings, if the config ties them.

    Parameters
    ----------
    model : Model
    head : str
        The name of a head, such as "sequence classification".
    labels : sequence of str
        The names of the head's outputs; one for a score.
    seed : int

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If no head of the model's family has the name.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.training.heads import with_head
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> with_head(model, "token classification", ["O", "B", "I"])([[101, 102]]).logits.shape
    (1, 2, 3)
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    require("head", head, str, "the name of a head")
    require_iterable("labels", labels, "a sequence of names")
    for label in labels:
        require("labels", label, str, "a sequence of names")
    config = replace(
        model.config,
        architecture=model.config.description.class_of(head),
        labels=tuple(labels),
        problem_type=None,
        pooling=None,
    )
    generator = np.random.default_rng(integer("seed", seed))
    weights = {
        name: model.weights[name] if _is_kept(model, name) else _new(name, shape, generator)
        for name, shape in expected_shapes(config).items()
    }
    if config.tie_word_embeddings and _DECODER in weights:
        weights[_DECODER] = weights[WORDS]
    return replace(model, config=config, weights=weights)


def _is_kept(model: Model, name: str) -> bool:
    return name.startswith(("embeddings", "encoder.", "pooler.")) and name in model.weights


def _new(name: str, shape: tuple[int, ...], generator: np.random.Generator) -> Float32Array:
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    if "LayerNorm" in name:
        return np.ones(shape, np.float32)
    return generator.normal(0, _DEVIATION, shape).astype(np.float32)

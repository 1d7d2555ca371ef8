"""The loop of training: batches by a seed, a step per batch, and the model that results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bert_numpy.model.model import Model
from bert_numpy.tasks.tokenization import EncodedText
from bert_numpy.training.adamw import AdamW
from bert_numpy.training.products import FloatProducts, Products
from npfp8.arrays import Array

__all__ = ["Fitted", "Loss", "StepReport", "Training", "fit"]

#: A loss: from a model's outputs by name, and the labels of a batch, to the mean loss and to
#: its gradient with respect to the outputs that it reads.
Loss = Callable[[Mapping[str, Array], Array], tuple[float, Mapping[str, Array]]]


@dataclass(frozen=True)
class Training:
    """The numbers of a training run.

    Attributes
    ----------
    epochs : float
        The passes over the data; 0.5 is one over half of it.
    batch_size : int
    learning_rate : float
        The largest learning rate, at the end of the warm-up.
    warmup : float
        The share of the steps in which the rate grows from 0; then it falls linearly to 0.
    clip : float
        The largest global norm of the gradients; larger ones are scaled down. 0 for any norm.
    seed : int
        Determines the order of the examples.
    frozen : tuple of str
        Patterns of the names of parameters that stay as they are, such as ``embeddings.*``.
    optimizer : AdamW
    """

    epochs: float = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    frozen: tuple[str, ...] = ()
    optimizer: AdamW = field(default_factory=AdamW)


@dataclass(frozen=True, eq=False)
class StepReport:
    """One step of training, told to whoever watches it.

    Attributes
    ----------
    step, steps : int
        The number of the step, from 1, and of all.
    loss : float
        The mean loss of the batch, before the step.
    norm : float
        The global norm of the gradients, before clipping.
    learning_rate : float
    products : Products
        The products of this step, with all that they counted.
    weights : mapping of str to ndarray
        The parameters after the step. They are overwritten by the next.
    """

    step: int
    steps: int
    loss: float
    norm: float
    learning_rate: float
    products: Products
    weights: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model, and the course of its training.

    Attributes
    ----------
    model : Model
    losses : tuple of float
        The mean loss of each step's batch.
    products : Products
        Those of the step that would follow.
    """

    model: Model
    losses: tuple[float, ...]
    products: Products


def fit(
    model: Model,
    encoded: Sequence[EncodedText],
    labels: Array,
    loss: Loss,
    training: Training | None = None,
    products: Products | None = None,
    watch: Callable[[StepReport], None] | None = None,
) -> Fitted:
    """Train a copy of a model on encoded examples and their labels."""
    products = products or FloatProducts()
    raise NotImplementedError

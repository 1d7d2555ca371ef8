"""The loop of training: batches by a seed, a step per batch, and the model that results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from bert_numpy.engines.functions import parameter
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.model import Model
from bert_numpy.tasks.tokenization import EncodedText, pad
from bert_numpy.training.adamw import (
    AdamW,
    adamw_start,
    adamw_step,
    clip_factor,
    global_norm,
    rate,
)
from bert_numpy.training.losses import Loss, loss_of
from bert_numpy.training.products import FloatProducts, Products
from bert_numpy.training.tape import tape
from npfp8.arrays import Array, IntArray

__all__ = ["Fitted", "StepReport", "Training", "fit", "shuffled_batches"]

#: Batches that are sorted by length together, after the shuffle.
_POOL = 64


@dataclass(frozen=True)
class Training:
    """The numbers of a training run.

    Attributes
    ----------
    epochs : float
        The passes over the data; with a half, the last one ends in the middle.
    batch_size : int
    learning_rate : float
        The largest learning rate, at the end of the warm-up.
    warmup : float
        The share of the steps in which the rate grows from 0; then it falls linearly to 0.
    clip : float
        The largest global norm of the gradients, to which larger ones are scaled down.
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

    def trains(self, name: str) -> bool:
        """Tell whether a parameter is trained.

        Examples
        --------
        >>> from bert_numpy.training.fit import Training
        >>> Training(frozen=("embeddings.*",)).trains("embeddings.LayerNorm.bias")
        False
        """
        return not any(fnmatchcase(name, pattern) for pattern in self.frozen)


@dataclass(frozen=True, eq=False)
class StepReport:
    """One step of training, told to whoever watches.

    Attributes
    ----------
    step, steps : int
        The number of the step, from 1, and of all.
    loss : float
        The mean loss of the batch, before the step.
    norm : float
        The global norm of the gradients, before they are clipped.
    learning_rate : float
    products : Products
        The products of this step, with all that they counted.
    model : Model
        The model after the step. The next step overwrites its parameters.
    """

    step: int
    steps: int
    loss: float
    norm: float
    learning_rate: float
    products: Products
    model: Model


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model, and the course of its training.

    Attributes
    ----------
    model : Model
    losses : tuple of float
        The mean loss of each step's batch, before the step.
    skipped : tuple of int
        The numbers of the steps whose gradients were not finite. They changed nothing.
    products : Products
        Those of the step that would follow.
    """

    model: Model
    losses: tuple[float, ...]
    skipped: tuple[int, ...]
    products: Products


def fit(
    model: Model,
    encoded: Sequence[EncodedText],
    labels: Array,
    training: Training | None = None,
    *,
    loss: Loss | None = None,
    products: Products | None = None,
    watch: Callable[[StepReport], object] | None = None,
) -> Fitted:
    """Train a copy of a model on encoded examples and their labels.

    The same arguments give the same model, up to the rounding of the BLAS. Nothing is dropped
    at random: the pass has no dropout.

    Parameters
    ----------
    model : Model
        A model of float parameters. Its engine computes everything but the matrix products.
    encoded : sequence of EncodedText
    labels : ndarray, (examples, ...)
        The labels that the loss takes: see :func:`bert_numpy.training.losses.loss_of`.
    training : Training, optional
    loss : callable, optional
        By default the one of the model's head.
    products : Products, optional
        The matrix products of the first step, by default of float32 numbers. Each step's
        products give those of the next, by :meth:`Products.following`.
    watch : callable (StepReport), optional
        Called after each step.

    Returns
    -------
    Fitted

    Raises
    ------
    BertNumpyError
        If a parameter is quantized, if there are no examples, or not as many labels.

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.fit import Training, fit
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(["a dull film", "warm"])
    >>> fitted = fit(model, encoded, np.array([1, 0]), Training(epochs=4, learning_rate=1e-4))
    >>> len(fitted.losses), fitted.losses[-1] < fitted.losses[0]
    (4, True)
    """
    training = training or Training()
    loss = loss or loss_of(model.config)
    products = products or FloatProducts()
    if not len(encoded) == len(labels) > 0:
        raise BertNumpyError(
            f"training: expected examples and as many labels, found {len(encoded)} and "
            f"{len(labels)}"
        )
    trained = copied(model)
    weights = {name: parameter(trained.weights, name) for name in trained.weights}
    state = adamw_start({name: w for name, w in weights.items() if training.trains(name)})
    losses: list[float] = []
    skipped: list[int] = []
    steps = math.ceil(training.epochs * math.ceil(len(encoded) / training.batch_size))
    lengths = np.array([len(one.input_ids) for one in encoded])
    order = shuffled_batches(lengths, training.batch_size, training.seed)
    for step, rows in zip(range(1, steps + 1), order, strict=False):
        batch = pad([encoded[row] for row in rows], model.config.pad_token_id)
        run = tape(trained, **batch, products=products, trains=training.trains)
        value, of_outputs = loss(run.outputs, labels[rows])
        gradients = run.gradients(of_outputs)
        norm = global_norm(gradients)
        learning_rate = training.learning_rate * rate(step, steps, training.warmup)
        if math.isfinite(norm):
            factor = clip_factor(norm, training.clip)
            state = adamw_step(weights, gradients, state, training.optimizer, learning_rate, factor)
        else:
            skipped.append(step)
        losses.append(value)
        if watch is not None:
            watch(StepReport(step, steps, value, norm, learning_rate, products, trained))
        products = products.following()
    return Fitted(trained, tuple(losses), tuple(skipped), products)


def copied(model: Model) -> Model:
    """Copy a model's parameters; those that share an array share its copy."""
    copies = {
        id(model.weights[name]): np.array(parameter(model.weights, name)) for name in model.weights
    }
    return replace(model, weights={name: copies[id(w)] for name, w in model.weights.items()})


def shuffled_batches(lengths: IntArray, batch_size: int, seed: int) -> Iterator[IntArray]:
    """Yield the rows of each batch, epoch after epoch without end, in an order by the seed.

    Every epoch is a new shuffle, and has each row once. Rows are shuffled, sorted by length in
    pools of 64 batches, and cut into batches, which are shuffled again. So a batch has rows of
    few different lengths, which attend in few products, and yet every epoch has other batches.

    Examples
    --------
    >>> import numpy as np
    >>> from itertools import islice
    >>> from bert_numpy.training.fit import shuffled_batches
    >>> batches = shuffled_batches(np.array([4, 9, 4, 9]), batch_size=2, seed=0)
    >>> sorted(sorted(rows.tolist()) for rows in islice(batches, 2))
    [[0, 2], [1, 3]]
    """
    generator = np.random.default_rng(seed)
    while True:
        shuffled = generator.permutation(len(lengths))
        pool = _POOL * batch_size
        batches = []
        for start in range(0, len(shuffled), pool):
            rows = shuffled[start : start + pool]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        for number in generator.permutation(len(batches)):
            yield batches[number]

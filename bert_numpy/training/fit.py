"""The loop of training: batches by a seed, a step per batch, and the model that results."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

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
    require_number,
)
from bert_numpy.training.losses import Loss, loss_of
from bert_numpy.training.products import FloatProducts, Products, require_products
from bert_numpy.training.tape import float_parameter, tape
from npfp8.arguments import (
    array_of,
    integer,
    require,
    require_function,
    require_iterable,
    wrong_array,
)
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
        The share of the steps, from 0 to 1, in which the rate grows from 0; then it falls
        linearly to 0.
    clip : float
        The largest global norm of the gradients, to which larger ones are scaled down.
    seed : int
        Determines the order of the examples.
    frozen : tuple of str
        Patterns of the names of parameters that stay as they are, such as ``embeddings.*``.
    optimizer : AdamW

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> from bert_numpy.training.fit import Training
    >>> Training(epochs=1, frozen=("embeddings.*",)).batch_size
    32
    """

    epochs: float = 3
    batch_size: int = 32
    learning_rate: float = 3e-4
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    frozen: tuple[str, ...] = ()
    optimizer: AdamW = field(default_factory=AdamW)

    def __post_init__(self) -> None:
        require_number("epochs", self.epochs, lambda x: 0 < x < math.inf, "a number above 0")
        for name, least in (("batch_size", 1), ("seed", 0)):
            if integer(name, getattr(self, name)) < least:
                raise ValueError(f"{name}: expected at least {least}, found {getattr(self, name)}")
        require_number("learning_rate", self.learning_rate, lambda x: x >= 0, "at least 0")
        require_number("warmup", self.warmup, lambda x: 0 <= x <= 1, "a share from 0 to 1")
        require_number("clip", self.clip, lambda x: x > 0, "a number above 0")
        require("frozen", self.frozen, tuple, "a tuple of patterns")
        require("optimizer", self.optimizer, AdamW, "an AdamW")

    def trains(self, name: str) -> bool:
        """Tell whether a parameter is trained.

        Examples
        --------
        >>> from bert_numpy.training.fit import Training
        >>> Training(frozen=("embeddings.*",)).trains("embeddings.LayerNorm.bias")
        False
        """
        require("name", name, str, "the name of a parameter")
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

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.fit import Training, fit
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(["dull", "warm"])
    >>> def watch(report):
    ...     print(f"step {report.step} of {report.steps}, rate {report.learning_rate:.1e}")
    >>> _ = fit(model, encoded, np.array([0, 1]), Training(epochs=2), watch=watch)
    step 1 of 2, rate 3.0e-04
    step 2 of 2, rate 1.5e-04
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

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.fit import Training, fit
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(["dull", "warm"])
    >>> fitted = fit(model, encoded, np.array([0, 1]), Training(epochs=1))
    >>> fitted.model.name, len(fitted.losses), fitted.skipped
    ('bert-tiny-sst2', 1, ())
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
        By default the one of the model's head. Its outputs are those of the batch, padded to its
        longest text.
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
        If a parameter is quantized, if there are no examples, or not as many labels; if a
        pattern of frozen parameters fits none; or as the loss does.

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
    training = Training() if training is None else training
    products = FloatProducts() if products is None else products
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    texts = "encoded texts, as Tokenizer.encode returns them"
    require_iterable("encoded", encoded, texts)
    for one in encoded:
        require("encoded", one, EncodedText, texts)
    require("training", training, Training, "a Training")
    require_function("loss", loss, optional=True)
    require_products(products)
    require_function("watch", watch, optional=True)
    loss = loss_of(model.config) if loss is None else loss
    labels = array_of("labels", labels)
    if not labels.ndim or labels.dtype.kind not in "iuf":
        expected = "an array of numbers, a row per example"
        raise wrong_array("labels", expected, labels, labels)
    if not len(encoded) == len(labels) > 0:
        raise BertNumpyError(
            f"training: expected examples and as many labels, found {len(encoded)} and "
            f"{len(labels)}"
        )
    for pattern in training.frozen:
        if not any(fnmatchcase(name, pattern) for name in model.weights):
            raise BertNumpyError(f"frozen: expected patterns of parameters, found {pattern!r}")
    trained = copied(model)
    weights = {name: float_parameter(trained.weights, name) for name in trained.weights}
    state = adamw_start({name: w for name, w in weights.items() if training.trains(name)})
    losses: list[float] = []
    skipped: list[int] = []
    steps = math.ceil(training.epochs * math.ceil(len(encoded) / training.batch_size))
    lengths = np.array([len(one.input_ids) for one in encoded])
    order = shuffled_batches(lengths, training.batch_size, training.seed)
    for step, rows in zip(range(1, steps + 1), order, strict=False):
        batch = pad([encoded[row] for row in rows], model.config.pad_token_id)
        value, gradients = gradients_of(trained, batch, labels[rows], loss, products, training)
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


def gradients_of(
    model: Model,
    batch: Mapping[str, Array],
    labels: Array,
    loss: Loss,
    products: Products,
    training: Training,
) -> tuple[float, dict[str, Array]]:
    """Compute the loss of a batch and its gradients. The tape's arrays are freed on return."""
    run = tape(model, **batch, products=products, trains=training.trains)
    value, of_outputs = loss(run.outputs, labels)
    return value, run.gradients(of_outputs)


def copied(model: Model) -> Model:
    """Copy a model's parameters in C order; those that share an array share its copy."""
    copies = {
        id(model.weights[name]): np.array(float_parameter(model.weights, name), order="C")
        for name in model.weights
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

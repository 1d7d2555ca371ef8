"""Losses: the mean loss of a batch, and its gradient with respect to the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
from npfp8.arguments import array_of, require, wrong_array
from npfp8.arrays import Array, IntArray

__all__ = [
    "LOSSES",
    "Loss",
    "cross_entropy",
    "loss_of",
    "mean_squared_error",
]

#: A loss: from a model's outputs by name, and the labels of a batch, to the mean loss and to its
#: gradient with respect to each output that it reads.
Loss = Callable[[Mapping[str, Array], Array], tuple[float, Mapping[str, Array]]]


def cross_entropy(logits: Array, labels: IntArray) -> tuple[float, Array]:
    """Compute the mean of ``-log softmax(logits)[label]``, and its gradient.

    The gradient of one term is ``softmax(logits)``, minus 1 at the label.

    Parameters
    ----------
    logits : ndarray of float32, (..., classes)
        A logit may be -infinity, unless it is a label's.
    labels : ndarray of int, (...)
        Numbers of classes; where negative, there is no term.

    Returns
    -------
    loss : float
        0 if there is no term.
    gradient : ndarray, (..., classes)

    Raises
    ------
    TypeError
        If the logits are not floats, or the labels not integers.
    BertNumpyError
        If the labels have another shape, or are beyond the classes.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.losses import cross_entropy
    >>> loss, gradient = cross_entropy(np.float32([[0, 0]]), np.array([1]))
    >>> round(loss, 4), gradient
    (0.6931, array([[ 0.5, -0.5]], dtype=float32))
    """
    logits, labels = _floats("logits", logits), array_of("labels", labels)
    if labels.dtype.kind not in "iu":
        raise wrong_array("labels", "integers", labels, labels)
    if not logits.ndim or labels.shape != logits.shape[:-1]:
        raise BertNumpyError(
            f"labels: expected one per row of logits {logits.shape}, found {labels.shape}"
        )
    if labels.max(initial=-1) >= logits.shape[-1]:
        raise BertNumpyError(
            f"labels: expected numbers below {logits.shape[-1]}, found {labels.max()}"
        )
    rows = logits.reshape(-1, logits.shape[-1])
    terms = np.flatnonzero(labels.reshape(-1) >= 0)
    chosen = labels.reshape(-1)[terms]
    shifted = (rows[terms] - rows[terms].max(axis=-1, keepdims=True)).astype(np.float64)
    share = np.exp(shifted)
    total = share.sum(axis=-1)
    count = max(len(terms), 1)
    each = np.log(total) - shifted[np.arange(len(terms)), chosen]
    share /= total[:, None]
    share[np.arange(len(terms)), chosen] -= 1
    gradient = np.zeros_like(rows)
    gradient[terms] = share / count
    return float(each.sum()) / count, gradient.reshape(logits.shape)


def mean_squared_error(scores: Array, labels: Array) -> tuple[float, Array]:
    """Compute the mean of ``(score - label)^2``, and its gradient, ``2 (score - label) / n``.

    Parameters
    ----------
    scores : ndarray of float32, (n,) or (n, 1)
    labels : ndarray, (n,)

    Raises
    ------
    TypeError
        If the scores are not floats, or the labels not numbers.
    BertNumpyError
        If there are not as many labels as scores.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.losses import mean_squared_error
    >>> mean_squared_error(np.float32([[3], [5]]), np.array([2.0, 5.0]))
    (0.5, array([[1.],
           [0.]], dtype=float32))
    """
    scores, labels = _floats("scores", scores), array_of("labels", labels)
    if labels.dtype.kind not in "iuf":
        raise wrong_array("labels", "real numbers", labels, labels)
    if labels.size != scores.size:
        raise BertNumpyError(f"labels: expected {scores.size} scores, found {labels.shape}")
    error = scores.astype(np.float64) - labels.reshape(scores.shape)
    return float(np.square(error).mean()), (2 / error.size * error).astype(scores.dtype)


def _floats(argument: str, value: Array) -> Array:
    array = array_of(argument, value)
    if array.dtype.kind != "f":
        raise wrong_array(argument, "floats", array, value)
    return array


def _classes(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Cross entropy of the logits of texts or choices."""
    loss, gradient = cross_entropy(outputs["logits"], labels)
    return loss, {"logits": gradient}


def _tokens(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Cross entropy of the logits of tokens.

    Labels are (batch, length) for the longest text of all, and logits end with the batch's.
    """
    length = outputs["logits"].shape[1]
    if labels.ndim != 2 or (labels[:, length:] >= 0).any():
        raise BertNumpyError(
            f"labels: expected one per token, negative from token {length} on, as the batch's "
            f"texts end there; found {labels.shape}"
        )
    return _classes(outputs, labels[:, :length])


def _scores(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Mean squared error of the one logit of each text."""
    loss, gradient = mean_squared_error(outputs["logits"], labels)
    return loss, {"logits": gradient}


def _spans(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Mean of the cross entropies of the first and of the last token. Labels are (batch, 2)."""
    if labels.ndim != 2 or labels.shape[1] != 2:
        raise BertNumpyError(
            f"labels: expected positions of a first and a last token, (batch, 2), found "
            f"{labels.shape}"
        )
    losses, found = 0.0, {}
    for i, name in enumerate(("start_logits", "end_logits")):
        loss, gradient = cross_entropy(outputs[name], labels[:, i])
        losses += loss / 2
        found[name] = gradient / 2
    return losses, found


#: By the head's name: its loss.
LOSSES: dict[str, Loss] = {
    "sequence classification": _classes,
    "multiple choice": _classes,
    "next sentence prediction": _classes,
    "token classification": _tokens,
    "masked language modelling": _tokens,
    "question answering": _spans,
}


def loss_of(config: BertConfig) -> Loss:
    """Return the loss of a model's head.

    Labels are numbers of classes, for each text or example; for each token, (examples, length) of
    the longest text, negative where there is none; for questions, the positions of the first and
    the last token, (examples, 2), negative where there is none. A classifier of one label, or
    whose ``problem_type`` is "regression", has scores and the mean squared error.

    Parameters
    ----------
    config : BertConfig

    Returns
    -------
    callable (mapping of outputs, labels) -> (loss, mapping of gradients)

    Raises
    ------
    BertNumpyError
        If no loss is known for the head or the problem.

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.losses import loss_of
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> loss, _ = loss_of(model.config)({"logits": np.float32([[0, 0]])}, np.array([0]))
    >>> round(loss, 4)
    0.6931
    """
    require("config", config, BertConfig, "a BertConfig, such as model.config")
    head, problem = config.head.name, config.problem_type
    if head not in LOSSES:
        raise BertNumpyError(f"head: expected one of {', '.join(LOSSES)}, found {head}")
    if head != "sequence classification":
        return LOSSES[head]
    if problem == "multi_label_classification":
        raise BertNumpyError(f"problem_type: expected one label per text, found {problem}")
    is_score = problem == "regression" or (problem is None and len(config.labels) == 1)
    return _scores if is_score else LOSSES[head]

"""Losses: the mean loss of a batch, and its gradient with respect to the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.model.config import BertConfig
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

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.losses import cross_entropy
    >>> loss, gradient = cross_entropy(np.float32([[0, 0]]), np.array([1]))
    >>> round(loss, 4), gradient
    (0.6931, array([[ 0.5, -0.5]], dtype=float32))
    """
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

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.training.losses import mean_squared_error
    >>> mean_squared_error(np.float32([[3], [5]]), np.array([2.0, 5.0]))
    (0.5, array([[1.],
           [0.]], dtype=float32))
    """
    error = scores.astype(np.float64) - labels.reshape(scores.shape)
    return float(np.square(error).mean()), (2 / error.size * error).astype(scores.dtype)


def _classes(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Cross entropy of the logits: of texts, choices, or tokens."""
    loss, gradient = cross_entropy(outputs["logits"], labels)
    return loss, {"logits": gradient}


def _scores(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Mean squared error of the one logit of each text."""
    loss, gradient = mean_squared_error(outputs["logits"], labels)
    return loss, {"logits": gradient}


def _spans(outputs: Mapping[str, Array], labels: Array) -> tuple[float, Mapping[str, Array]]:
    """Mean of the cross entropies of the first and of the last token. Labels are (batch, 2)."""
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
    "token classification": _classes,
    "masked language modelling": _classes,
    "question answering": _spans,
}


def loss_of(config: BertConfig) -> Loss:
    """Return the loss of a model's head; a single label stands for a score.

    Labels are numbers of classes, for each text, example or token (negative where there is
    none); scores; or, for questions, the positions of the first and the last token, (batch, 2).

    Raises
    ------
    BertNumpyError
        If no loss is known for the head.

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
    head = config.head.name
    if head not in LOSSES:
        raise BertNumpyError(f"head: expected one of {', '.join(LOSSES)}, found {head}")
    is_score = head == "sequence classification" and len(config.labels) == 1
    return _scores if is_score else LOSSES[head]

"""Running a model over a data set, and comparing recipes on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.calibration import Calibration, calibrate
from bert_numpy.errors import BertNumpyError
from bert_numpy.glue import Task, label_order
from bert_numpy.metrics import METRICS
from bert_numpy.model import Model
from bert_numpy.policy import OperandCounts
from bert_numpy.quantization import QuantizedModel
from bert_numpy.tokenization import EncodedText, pad

__all__ = [
    "Evaluation",
    "batches",
    "calibrate_on",
    "compare_with",
    "evaluate",
    "predict_logits",
]

Float32Array = npt.NDArray[np.float32]
#: Called with the number of sequences just done.
Progress = Callable[[int], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A recipe's results on a data set.

    Attributes
    ----------
    recipe : str
    logits : ndarray of float32, (examples, outputs)
        In the data's order; outputs in the model's.
    predictions : ndarray, (examples,)
        The task's class numbers (int64), or scores (float64).
    metrics : dict of str to float
    weight_bytes : int
        See :attr:`bert_numpy.Model.weight_bytes`.
    seconds : float
        For the forward passes alone.
    counts : dict of str to OperandCounts
        Saturated and underflowed elements by operand.
    """

    recipe: str
    logits: Float32Array
    predictions: npt.NDArray[Any]
    metrics: dict[str, float]
    weight_bytes: int
    seconds: float
    counts: Mapping[str, OperandCounts] = field(default_factory=dict)


def batches(
    encoded: Sequence[EncodedText], batch_size: int
) -> Iterator[tuple[list[int], dict[str, npt.NDArray[np.int64]]]]:
    """Batches of similar length, the longest first: their rows, and the model's arguments."""
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row].input_ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, pad([encoded[row] for row in rows])


def predict_logits(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Float32Array:
    """The logits of every text, in order. Returns float32 (texts, outputs)."""
    logits = np.empty((len(encoded), len(model.config.labels)), np.float32)
    for rows, batch in batches(encoded, batch_size):
        output = model(**batch).logits
        if output is None:
            raise BertNumpyError(
                f"{model.name}: expected a BertForSequenceClassification, found "
                f"{model.config.architecture}"
            )
        logits[rows] = output
        if progress is not None:
            progress(len(rows))
    return logits


def calibrate_on(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    golden: bool = False,
) -> Calibration:
    """Calibrate on encoded texts; see :func:`bert_numpy.calibrate`."""

    def reported() -> Iterator[dict[str, npt.NDArray[np.int64]]]:
        for rows, batch in batches(encoded, batch_size):
            yield batch
            if progress is not None:
                progress(len(rows))

    return calibrate(model, reported(), golden)


def evaluate(
    model: QuantizedModel,
    task: Task,
    encoded: Sequence[EncodedText],
    labels: npt.NDArray[Any],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a model, by its recipe, over a data set and score it.

    Parameters
    ----------
    model : QuantizedModel
        As :func:`bert_numpy.apply_recipe` makes it; the recipe ``fp32`` too.
    task : Task
    encoded : sequence of EncodedText
    labels : ndarray, (examples,)
        Class numbers or scores, as :func:`bert_numpy.glue.read_examples` gives them.
    batch_size : int
    progress : callable, optional

    Raises
    ------
    BertNumpyError
        If the model's head does not fit the task.
    """
    order = label_order(model.config.labels, task)
    begin = time.perf_counter()
    logits = predict_logits(model, encoded, batch_size, progress)
    seconds = time.perf_counter() - begin
    if task.is_regression:
        predictions: npt.NDArray[Any] = logits[:, 0].astype(np.float64)
    else:
        predictions = order[logits.argmax(axis=1)]
    return Evaluation(
        model.recipe.name,
        logits,
        predictions,
        {name: METRICS[name](labels, predictions) for name in task.metrics},
        model.weight_bytes,
        seconds,
        model.counts,
    )


def compare_with(reference: Evaluation, result: Evaluation) -> dict[str, float]:
    """What a recipe changed on the same data: usually, against FP32.

    Returns
    -------
    dict
        ``relative_logit_error``, ``norm(logits - reference) / norm(reference)``
        over the whole data set; and ``flips``, how many predicted classes
        differ, or for scores ``mean_abs_difference``.
    """
    base = reference.logits.astype(np.float64)
    error = float(np.linalg.norm(result.logits - base) / np.linalg.norm(base))
    if result.predictions.dtype.kind == "f":
        difference = np.abs(result.predictions - reference.predictions)
        return {"mean_abs_difference": float(difference.mean()), "relative_logit_error": error}
    flips = int(np.count_nonzero(result.predictions != reference.predictions))
    return {"flips": flips, "relative_logit_error": error}

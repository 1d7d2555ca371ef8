"""Running a model over a data set, and comparing recipes on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.finite import missing
from bert_numpy.model.model import Model, ModelOutput, require_head
from bert_numpy.progress import Progress
from bert_numpy.quantization.calibration import Calibration, calibrate
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.counts import Counts, added
from bert_numpy.tasks.glue import Examples
from bert_numpy.tasks.spans import Answer
from bert_numpy.tasks.task import Data, Labels, Task
from bert_numpy.tasks.tokenization import EncodedText, Window, pad
from bert_numpy.threads import default_threads, map_in_order
from npfp8.arrays import Array, Float32Array, IntArray

__all__ = [
    "Evaluation",
    "batches",
    "calibrate_on",
    "check_model",
    "compare_with",
    "evaluate",
    "evaluate_task",
    "outputs",
    "predict_logits",
    "require_answers",
    "text_logits",
]

_Data = TypeVar("_Data", bound=Data)


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A recipe's results on a data set.

    Attributes
    ----------
    recipe : str
    logits : ndarray of float32, (examples, outputs)
        The logits: examples in the data's order, outputs in the model's. For questions
        (tokens, 2): start and end logits of every token of every window, without padding.
        For sentence embeddings the vectors: (examples, width), or (examples, 2, width)
        for pairs.
    predictions : ndarray, (examples,)
        The task's class numbers (int64), scores (float64), or answers (str, as objects).
        If an output is not finite: :data:`bert_numpy.finite.NO_CLASS`, NaN, or None.
    metrics : dict of str to float
    weight_bytes : int
        See :attr:`bert_numpy.Model.weight_bytes`.
    seconds : float
        The time of the forward passes alone.
    counts : dict of str to OperandCounts
        Saturated and underflowed elements by operand, in this evaluation alone.
    answers : tuple of tuples of Answer
        For questions: the most likely answers to each, the best first; none if
        a logit is not finite.
    """

    recipe: str
    logits: Float32Array
    predictions: Array
    metrics: dict[str, float]
    weight_bytes: int
    seconds: float
    counts: Counts = field(default_factory=dict)
    answers: tuple[tuple[Answer, ...], ...] = ()

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"<Evaluation {self.recipe}: {len(self.predictions)} examples, {metrics}>"

    @property
    def not_finite(self) -> int:
        """The number of predictions that are missing because a logit is NaN or infinite."""
        return int(np.count_nonzero(missing(self.predictions)))


def batches(
    encoded: Sequence[EncodedText], batch_size: int, pad_token_id: int = 0
) -> Iterator[tuple[list[int], dict[str, IntArray]]]:
    """Yield batches of similar length, the longest first: their rows, and the model's arguments."""
    order = sorted(range(len(encoded)), key=lambda row: -len(encoded[row].input_ids))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, pad([encoded[row] for row in rows], pad_token_id)


def outputs(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Iterator[tuple[list[int], ModelOutput]]:
    """Yield the rows of each batch and the model's output for them, the longest first.

    Batches are shared by ``threads`` threads, by default one per core;
    the order does not depend on their number. Memory is that of ``threads`` batches.
    """

    def run(
        rows_and_batch: tuple[list[int], dict[str, IntArray]],
    ) -> tuple[list[int], ModelOutput]:
        rows, batch = rows_and_batch
        return rows, model(**batch)

    given = batches(encoded, batch_size, model.config.pad_token_id)
    for rows, output in map_in_order(run, given, threads or default_threads()):
        yield rows, output
        if progress is not None:
            progress(len(rows))


def _class_logits(output: ModelOutput, row: int, length: int) -> Float32Array:
    assert output.logits is not None
    logits: Float32Array = output.logits[row]
    return logits


def _span_logits(output: ModelOutput, row: int, length: int) -> Float32Array:
    assert output.start_logits is not None
    assert output.end_logits is not None
    return np.stack([output.start_logits[row, :length], output.end_logits[row, :length]], axis=1)


def _vector(output: ModelOutput, row: int, length: int) -> Float32Array:
    assert output.sentence_embedding is not None
    vector: Float32Array = output.sentence_embedding[row]
    return vector


#: By head: the function that takes a text's logits from its row of a batch's output.
_LOGITS: dict[str, Callable[[ModelOutput, int, int], Float32Array]] = {
    "sequence classification": _class_logits,
    "question answering": _span_logits,
    "sentence embeddings": _vector,
}


def text_logits(
    model: Model,
    head: str,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
) -> list[Float32Array]:
    """Compute the logits of every text, in order, finite or not, with the given head.

    Returns
    -------
    list of ndarray of float32
        For sequence classification (outputs,); for question answering the start
        and end logits of every token, (tokens, 2), without padding; for sentence
        embeddings the vector, (width,).

    Raises
    ------
    BertNumpyError
        If the model has another head.
    """
    return _logits_and_counts(model, head, encoded, batch_size, progress, threads)[0]


def _logits_and_counts(
    model: Model,
    head: str,
    encoded: Sequence[EncodedText],
    batch_size: int,
    progress: Progress | None,
    threads: int | None = None,
) -> tuple[list[Float32Array], Counts]:
    """Compute the logits of every text, and the quantization counts of all batches together."""
    require_head(model, head)
    logits: dict[int, Float32Array] = {}
    counts: list[Counts] = []
    for rows, output in outputs(model, encoded, batch_size, progress, threads):
        counts.append(output.counts)
        for place, row in enumerate(rows):
            logits[row] = _LOGITS[head](output, place, len(encoded[row].input_ids))
    return [logits[row] for row in range(len(encoded))], added(counts)


def predict_logits(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Float32Array:
    """Compute :func:`text_logits` of a classifier as one float32 array, (texts, outputs)."""
    rows = text_logits(model, "sequence classification", encoded, batch_size, progress, threads)
    return np.array(rows, np.float32).reshape(len(encoded), len(model.config.labels))


def calibrate_on(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    golden: bool = False,
    hessians: bool = False,
) -> Calibration:
    """Calibrate on encoded texts; see :func:`bert_numpy.calibrate`."""

    def reported() -> Iterator[dict[str, IntArray]]:
        for rows, batch in batches(encoded, batch_size, model.config.pad_token_id):
            yield batch
            if progress is not None:
                progress(len(rows))

    return calibrate(model, reported(), golden, hessians=hessians)


def check_model(model: Model, task: Task[Any]) -> None:
    """Raise :class:`BertNumpyError` if a model's head or labels do not fit the task."""
    require_head(model, task.head)
    task.check_labels(model.config)


def evaluate(
    model: QuantizedModel,
    task: Task[Examples],
    encoded: Sequence[EncodedText],
    labels: Labels | None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Run :func:`evaluate_task` on encoded texts.

    Parameters
    ----------
    model, batch_size, progress
        The same as in :func:`evaluate_task`.
    task : Task
        A task of GLUE.
    encoded : sequence of EncodedText
    labels : ndarray, (examples,), or None
        Class numbers or scores from :func:`bert_numpy.tasks.glue.read_examples`;
        without them there are predictions, but no metrics.

    Raises
    ------
    BertNumpyError
        In the same cases as :func:`evaluate_task`.
    """
    examples = Examples([""] * len(encoded), None, labels)
    windows = [[Window(one)] for one in encoded]
    return evaluate_task(model, task, examples, windows, batch_size, progress)


def evaluate_task(
    model: QuantizedModel,
    task: Task[_Data],
    examples: _Data,
    windows: Sequence[Sequence[Window]],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a model by its recipe over a task's examples, and score its predictions.

    Parameters
    ----------
    model : QuantizedModel
        A model from :func:`bert_numpy.apply_recipe`; its recipe may be ``fp32``, too.
    task : Task
    examples : Data
        The examples from ``task.read``. Without labels there are predictions, but no metrics.
    windows : sequence of sequences of Window
        The encoded examples from ``task.encode``.
    batch_size : int
    progress : callable, optional
        Called with the number of windows just done.

    Raises
    ------
    BertNumpyError
        If the model's head does not fit the task, or there is no example.
    """
    if not windows:  # no metric has a value for nothing
        raise BertNumpyError("evaluation: expected at least one example, found none")
    check_model(model, task)
    encoded = [window.encoded for parts in windows for window in parts]
    begin = time.perf_counter()
    logits, counts = _logits_and_counts(model, task.head, encoded, batch_size, progress)
    seconds = time.perf_counter() - begin
    found = task.predict(model.config, examples, windows, logits)
    labels = examples.labels
    scores = {} if labels is None else task.scores
    return Evaluation(
        model.recipe.name,
        found.logits,
        found.predictions,
        {name: score(labels, found.predictions) for name, score in scores.items()},
        model.weight_bytes,
        seconds,
        counts,
        found.answers,
    )


def require_answers(model: Model, evaluation: Evaluation) -> None:
    """Refuse an evaluation with missing predictions, where every prediction is needed.

    Raises
    ------
    BertNumpyError
        If a prediction is missing. The message names the model, the recipe and the first
        text without a prediction.
    """
    none = missing(evaluation.predictions)
    if none.any():
        raise BertNumpyError(
            f"{model.name}, {evaluation.recipe}: text {int(none.argmax()) + 1}: expected finite "
            f"numbers, found NaN or infinity, as in {np.count_nonzero(none)} of {none.size} "
            "predictions"
        )


class Compared(Protocol):
    """Logits and predictions of a data set, from any source."""

    @property
    def logits(self) -> Float32Array: ...

    @property
    def predictions(self) -> Array: ...


def compare_with(reference: Compared, result: Compared) -> dict[str, float]:
    """Compare a recipe's results with a reference, usually FP32, on the same data.

    Returns
    -------
    dict
        ``relative_logit_error`` is ``norm(logits - reference) / norm(reference)``
        over the whole data set, NaN if a logit of the result is not finite.
        ``flips`` is the number of predicted classes or answers that differ; a missing one
        always differs. Scores have ``mean_abs_difference`` instead, NaN if one is missing.

    Raises
    ------
    BertNumpyError
        If the reference has a number that is not finite.
    """
    bad = ~np.isfinite(reference.logits)
    if bad.any() or missing(reference.predictions).any():
        raise BertNumpyError(
            f"{getattr(reference, 'recipe', 'reference')}: expected finite logits to compare with, "
            f"found NaN or infinity in {np.count_nonzero(bad)} of {bad.size}"
        )
    base = reference.logits.astype(np.float64)
    distance = float(np.linalg.norm(result.logits - base))
    size = float(np.linalg.norm(base))
    error = distance / size if size else math.inf if distance else 0.0
    error = error if np.isfinite(result.logits).all() else math.nan
    if result.predictions.dtype.kind == "f":
        difference = np.abs(result.predictions - reference.predictions)
        return {"mean_abs_difference": float(difference.mean()), "relative_logit_error": error}
    flips = int(np.count_nonzero(result.predictions != reference.predictions))
    return {"flips": flips, "relative_logit_error": error}

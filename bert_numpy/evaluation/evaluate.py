"""Running a model over a data set, and comparing recipes on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from bert_numpy.finite import NO_CLASS, missing, rows_not_finite
from bert_numpy.model.model import Model, ModelOutput, require_head
from bert_numpy.quantization.calibration import Calibration, calibrate
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.counts import Counts, OperandCounts, added
from bert_numpy.tasks.glue import Task, label_order
from bert_numpy.tasks.metrics import ANSWER_METRICS, METRICS
from bert_numpy.tasks.spans import Answer, best_answers
from bert_numpy.tasks.squad import Questions, SpanTask
from bert_numpy.tasks.tokenization import EncodedText, Window, pad
from bert_numpy.threads import default_threads, map_in_order

__all__ = [
    "Evaluation",
    "batches",
    "calibrate_on",
    "compare_with",
    "evaluate",
    "evaluate_answers",
    "outputs",
    "predict_logits",
    "predict_span_logits",
    "require_answers",
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
        In the data's order; outputs in the model's. For questions (tokens, 2):
        start and end logits of every token of every window, padding left out.
    predictions : ndarray, (examples,)
        The task's class numbers (int64), scores (float64), or answers (str, as objects).
        Where an output is not finite: :data:`bert_numpy.finite.NO_CLASS`, NaN, or None.
    metrics : dict of str to float
    weight_bytes : int
        See :attr:`bert_numpy.Model.weight_bytes`.
    seconds : float
        For the forward passes alone.
    counts : dict of str to OperandCounts
        Saturated and underflowed elements by operand, of this evaluation alone.
    answers : tuple of tuples of Answer
        For questions: the most likely answers to each, the best first; none where
        a logit is not finite.
    """

    recipe: str
    logits: Float32Array
    predictions: npt.NDArray[Any]
    metrics: dict[str, float]
    weight_bytes: int
    seconds: float
    counts: Mapping[str, OperandCounts] = field(default_factory=dict)
    answers: tuple[tuple[Answer, ...], ...] = ()

    @property
    def not_finite(self) -> int:
        """How many predictions are none, because a logit is NaN or infinite."""
        return int(np.count_nonzero(missing(self.predictions)))


def batches(
    encoded: Sequence[EncodedText], batch_size: int, pad_token_id: int = 0
) -> Iterator[tuple[list[int], dict[str, npt.NDArray[np.int64]]]]:
    """Batches of similar length, the longest first: their rows, and the model's arguments."""
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
    counts: list[Counts] | None = None,
) -> Iterator[tuple[list[int], ModelOutput]]:
    """The rows of each batch and what the model gives for them, the longest first.

    Batches are spread over ``threads``, by default as many as there are cores;
    the order is the same for every number. Memory is that of ``threads`` batches.
    """

    def run(
        rows_and_batch: tuple[list[int], dict[str, npt.NDArray[np.int64]]],
    ) -> tuple[list[int], ModelOutput]:
        rows, batch = rows_and_batch
        return rows, model(**batch)

    given = batches(encoded, batch_size, model.config.pad_token_id)
    for rows, output in map_in_order(run, given, threads or default_threads()):
        if counts is not None:
            counts.append(output.counts)
        yield rows, output
        if progress is not None:
            progress(len(rows))


def predict_logits(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
    counts: list[Counts] | None = None,
) -> Float32Array:
    """The logits of every text, in order, finite or not. Returns float32 (texts, outputs)."""
    logits = np.empty((len(encoded), len(model.config.labels)), np.float32)
    require_head(model, "sequence classification")
    for rows, output in outputs(model, encoded, batch_size, progress, threads, counts):
        logits[rows] = output.logits
    return logits


def predict_span_logits(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    threads: int | None = None,
    counts: list[Counts] | None = None,
) -> list[Float32Array]:
    """Start and end logits of every token of every text, in order. Each float32 (tokens, 2).

    As the model gives them, finite or not.
    """
    logits: dict[int, Float32Array] = {}
    require_head(model, "question answering")
    for rows, output in outputs(model, encoded, batch_size, progress, threads, counts):
        assert output.start_logits is not None
        assert output.end_logits is not None
        for row, *pair in zip(rows, output.start_logits, output.end_logits, strict=True):
            logits[row] = np.stack(pair, axis=1)[: len(encoded[row].input_ids)]
    return [logits[row] for row in range(len(encoded))]


def calibrate_on(
    model: Model,
    encoded: Sequence[EncodedText],
    batch_size: int = 32,
    progress: Progress | None = None,
    golden: bool = False,
) -> Calibration:
    """Calibrate on encoded texts; see :func:`bert_numpy.calibrate`."""

    def reported() -> Iterator[dict[str, npt.NDArray[np.int64]]]:
        for rows, batch in batches(encoded, batch_size, model.config.pad_token_id):
            yield batch
            if progress is not None:
                progress(len(rows))

    return calibrate(model, reported(), golden)


def evaluate(
    model: QuantizedModel,
    task: Task,
    encoded: Sequence[EncodedText],
    labels: npt.NDArray[Any] | None,
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
    labels : ndarray, (examples,), or None
        Class numbers or scores, as :func:`bert_numpy.tasks.glue.read_examples` gives
        them; without them there are predictions, but no metrics.
    batch_size : int
    progress : callable, optional

    Raises
    ------
    BertNumpyError
        If the model's head does not fit the task, or there is no text.
    """
    _check_some(encoded)
    order = label_order(model.config.labels, task, model.config.problem_type)
    counts: list[Counts] = []
    begin = time.perf_counter()
    logits = predict_logits(model, encoded, batch_size, progress, counts=counts)
    seconds = time.perf_counter() - begin
    none = rows_not_finite(logits)
    if task.is_regression:
        predictions: npt.NDArray[Any] = np.where(none, np.nan, logits[:, 0].astype(np.float64))
    else:
        predictions = np.where(none, NO_CLASS, order[logits.argmax(axis=1)])
    return Evaluation(
        model.recipe.name,
        logits,
        predictions,
        {}
        if labels is None
        else {name: METRICS[name](labels, predictions) for name in task.metrics},
        model.weight_bytes,
        seconds,
        added(counts),
    )


def evaluate_answers(
    model: QuantizedModel,
    task: SpanTask,
    questions: Questions,
    windows: Sequence[Sequence[Window]],
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Evaluation:
    """Answer questions with a model, by its recipe, and score the answers.

    Parameters
    ----------
    model : QuantizedModel
        As :func:`bert_numpy.apply_recipe` makes it; the recipe ``fp32`` too.
    task : SpanTask
    questions : Questions
    windows : sequence of sequences of Window
        Of each question, as :meth:`bert_numpy.Tokenizer.windows` makes them.
    batch_size : int
    progress : callable, optional
        Called with numbers of windows.

    Raises
    ------
    BertNumpyError
        If the model has no question answering head, or there is no question.
    """
    _check_some(windows)
    encoded = [window.encoded for parts in windows for window in parts]
    counts: list[Counts] = []
    begin = time.perf_counter()
    logits = predict_span_logits(model, encoded, batch_size, progress, counts=counts)
    seconds = time.perf_counter() - begin
    remaining = iter(logits)
    answers: list[tuple[Answer, ...]] = []
    for question, parts in zip(questions.items, windows, strict=True):
        of_windows = [next(remaining) for _ in parts]
        if rows_not_finite(np.concatenate(of_windows)).any():
            answers.append(())
            continue
        limits = (task.n_best, task.max_answer_length)
        answers.append(best_answers(question.context, parts, of_windows, *limits))
    texts = [best[0].text if best else None for best in answers]
    right = [question.answers for question in questions.items]
    return Evaluation(
        model.recipe.name,
        np.concatenate(logits),
        np.array(texts, object),  # a str array would lose a NUL at the end
        {name: metric(right, texts) for name, metric in ANSWER_METRICS.items()},
        model.weight_bytes,
        seconds,
        added(counts),
        tuple(answers),
    )


def require_answers(model: Model, evaluation: Evaluation) -> None:
    """Refuse an evaluation of which a prediction is none, where every one is needed.

    Raises
    ------
    BertNumpyError
        Names the model, the recipe and the first text that has none.
    """
    none = missing(evaluation.predictions)
    if none.any():
        raise BertNumpyError(
            f"{model.name}, {evaluation.recipe}: text {int(none.argmax()) + 1}: expected finite "
            f"numbers, found NaN or infinity, as in {np.count_nonzero(none)} of {none.size} "
            "predictions"
        )


def _check_some(examples: Sequence[Any]) -> None:
    """Refuse what no metric has a value for."""
    if not examples:
        raise BertNumpyError("evaluation: expected at least one example, found none")


class Predicted(Protocol):
    """Logits and predictions of a data set, however they were put together."""

    @property
    def logits(self) -> Float32Array: ...

    @property
    def predictions(self) -> npt.NDArray[Any]: ...


def compare_with(reference: Predicted, result: Predicted) -> dict[str, float]:
    """What a recipe changed on the same data: usually, against FP32.

    Returns
    -------
    dict
        ``relative_logit_error``, ``norm(logits - reference) / norm(reference)``
        over the whole data set, NaN if a logit of the result is not finite; and
        ``flips``, how many predicted classes or answers differ, one that is none
        from all, or for scores ``mean_abs_difference``, NaN with such a score.

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

"""The study's independent cells: (model, task, recipe, part of the examples).

A cell is pure: its result depends only on its description and the
files that the description names. The result is written to the cell's own file, named by a
digest of the description. So a study can be interrupted, resumed and
spread over processes and machines. The results are joined in the order of the examples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import calibrate_on, compare_with
from bert_numpy.evaluation.job import Job, evaluate_job, prepare
from bert_numpy.finite import missing
from bert_numpy.quantization.calibration import Calibration, load_calibration, save_calibration
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from bert_numpy.tasks.task import Labels
from npfp8.arrays import Array, Float32Array
from npfp8.files import replaced_file

__all__ = [
    "Cell",
    "Result",
    "Subject",
    "bootstrap_interval",
    "calibrate_subject",
    "cells_of",
    "compare_results",
    "merged",
    "run_cell",
    "subject_in",
]


@dataclass(frozen=True)
class Subject:
    """A model on a task's data.

    Attributes
    ----------
    model, task, data : str
        See :func:`bert_numpy.evaluation.job.prepare`.
    calibration : str
        The calibration's file.
    calibration_data : str, optional
        The file to make it from; by default the training file beside the data.
    limit : int, optional
        The number of examples to use, from the first on; by default all.
    """

    model: str
    task: str
    data: str
    calibration: str
    calibration_data: str | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Cell:
    """A recipe on the examples ``start`` to ``stop`` of a subject, with its result in ``file``."""

    subject: Subject
    recipe: Recipe
    start: int
    stop: int
    folder: str

    @property
    def file(self) -> Path:
        """The result's file, named by a digest of everything that decides the result."""
        calibration = Path(self.subject.calibration)
        content = calibration.read_bytes() if self.recipe.calibrated else b""
        subject = (self.subject.model, self.subject.task, self.subject.data)
        description = json.dumps([subject, recipe_json(self.recipe), self.start, self.stop])
        digest = hashlib.sha256(description.encode() + hashlib.sha256(content).digest())
        return Path(self.folder) / f"{digest.hexdigest()[:24]}.npz"


@dataclass(frozen=True, eq=False)
class Result:
    """The results of a recipe on a subject.

    Attributes
    ----------
    labels : ndarray
        Classes, scores, or the right answers to each question, as objects.
    predictions : ndarray
        Classes, scores, or texts as objects.
    logits : ndarray of float32
        The logits of all examples, concatenated.
    metrics : mapping of str to callable (labels, predictions)
        The metrics of the task.
    """

    labels: Labels
    predictions: Array
    logits: Float32Array
    metrics: Mapping[str, Callable[[Any, Any], float]]


def subject_in(
    folder: Path,
    model: str,
    task: str,
    data: str,
    calibration_data: str | None = None,
    limit: int | None = None,
) -> Subject:
    """Make a subject whose calibration is in a study's folder, where every script looks for it."""
    calibration = folder / f"calibration-{Path(model).name}-{task}.safetensors"
    return Subject(model, task, data, str(calibration), calibration_data, limit)


def calibrate_subject(subject: Subject, samples: int = 256, *, hessians: bool = False) -> None:
    """Calibrate in float32 and write the calibration's file, unless it exists.

    With ``hessians``, it also has what GPTQ takes.
    """
    if not Path(subject.calibration).exists():
        job = prepare(
            subject.model,
            subject.task,
            subject.data,
            calibration_data=subject.calibration_data,
            calibration_samples=samples,
        )
        calibration = calibrate_on(
            job.model, job.calibration_texts, job.batch_size, hessians=hessians
        )
        save_calibration(calibration, subject.calibration)


def cells_of(subject: Subject, recipe: Recipe, folder: Path, size: int = 512) -> list[Cell]:
    """List a recipe's cells on a subject, of ``size`` examples each."""
    count = len(_job(subject).examples)
    return [
        Cell(subject, recipe, start, min(start + size, count), str(folder))
        for start in range(0, count, size)
    ]


def run_cell(cell: Cell) -> str:
    """Compute a cell and write its file, unless it exists, and return the file's name."""
    file = cell.file
    if not file.exists():
        job = _job(cell.subject).select(range(cell.start, cell.stop))
        result = evaluate_job(job, _quantized(cell.subject, cell.recipe))
        predictions = result.predictions
        if predictions.dtype == object:  # texts: as JSON, since a NumPy string drops trailing NULs
            text = json.dumps(predictions.tolist()).encode()
            predictions = np.frombuffer(text, np.uint8)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as stream:
            np.savez(stream, logits=result.logits, predictions=predictions)
    return str(file)


def merged(cells: Sequence[Cell]) -> Result:
    """Join the results of a recipe's cells, in the order of the examples.

    Raises
    ------
    BertNumpyError
        If a cell has not been run.
    """
    logits, predictions = [], []
    for cell in cells:
        file = cell.file  # computed once, as it reads the calibration
        if not file.exists():
            raise BertNumpyError(f"{file}: no such file: the cell has not been run")
        with np.load(file) as arrays:
            logits.append(arrays["logits"])
            found = arrays["predictions"]
        if found.dtype == np.uint8:
            found = np.array(json.loads(found.tobytes()), object)
        predictions.append(found)
    job = _job(cells[0].subject)
    if job.examples.labels is None:
        raise BertNumpyError(f"{job.task.name}: expected examples with labels, found none")
    return Result(
        job.examples.labels, np.concatenate(predictions), np.concatenate(logits), job.task.scores
    )


def compare_results(
    result: Result, reference: Result, resamples: int = 1000
) -> dict[str, float | int | list[float]]:
    """Compute a recipe's metrics, and compare it with the reference, usually FP32.

    Returns
    -------
    dict
        The metrics; ``not_finite``, the number of missing predictions; ``flips`` or
        ``mean_abs_difference``; ``relative_logit_error``; and for the first metric
        ``difference`` and ``interval``, the 95 % bootstrap interval of the difference,
        which is NaN if the difference is NaN.
    """
    row: dict[str, Any] = {
        name: metric(result.labels, result.predictions) for name, metric in result.metrics.items()
    }
    row["not_finite"] = int(np.count_nonzero(missing(result.predictions)))
    row |= compare_with(reference, result)
    name, metric = next(iter(result.metrics.items()))
    row["difference"] = row[name] - metric(reference.labels, reference.predictions)
    if math.isnan(row["difference"]):  # draws without the NaN would give a wrong interval
        row["interval"] = [math.nan, math.nan]
    elif result.labels.dtype == object:
        row["interval"] = list(
            bootstrap_interval(_mean, _scored(result), _scored(reference), resamples)
        )
    else:
        row["interval"] = list(bootstrap_interval(metric, result, reference, resamples))
    return row


def _scored(result: Result) -> Result:
    """Replace each answer by its score; the mean of the scores is the metric.

    This avoids normalising every text again in each of the bootstrap's draws.
    """
    metric = next(iter(result.metrics.values()))
    pairs = zip(result.labels, result.predictions, strict=True)
    scores = np.array([metric([right], [given]) for right, given in pairs])
    return replace(result, labels=scores, predictions=scores)


def _mean(labels: Labels, predictions: Array) -> float:
    return float(predictions.mean())


def bootstrap_interval(
    metric: Callable[..., float], result: Result, reference: Result, resamples: int = 1000
) -> tuple[float, float]:
    """Compute the 95 % percentile interval of a metric's difference by the bootstrap.

    Source: Efron and Tibshirani, *An Introduction to the Bootstrap*, chapter 13. Examples
    are drawn with replacement. Both recipes are scored on the same draw, so that errors
    common to both cancel.
    """
    generator = np.random.default_rng(0)
    count = len(result.labels)
    differences = []
    for _ in range(resamples):
        rows = generator.integers(0, count, count)
        labels = result.labels[rows]
        difference = metric(labels, result.predictions[rows])
        difference -= metric(labels, reference.predictions[rows])
        if math.isfinite(difference):  # a correlation of constants is NaN
            differences.append(difference)
    if not differences:
        return math.nan, math.nan
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _job(subject: Subject) -> Job:
    return prepare(subject.model, subject.task, subject.data, calibrated=False, limit=subject.limit)


@lru_cache(maxsize=2)
def _quantized(subject: Subject, recipe: Recipe) -> QuantizedModel:
    calibration: Calibration | None = None
    if recipe.calibrated:
        calibration = load_calibration(subject.calibration)
    return apply_recipe(_job(subject).model, recipe, calibration)

"""An evaluation from names to results: model, task and data, sample, recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bert_numpy.calibration import Calibration, load_calibration, save_calibration
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation import Evaluation, Progress, calibrate_on, evaluate
from bert_numpy.glue import Examples, Task, find_file, label_order, read_examples, task_named
from bert_numpy.loading import load
from bert_numpy.model import Model
from bert_numpy.quantization import apply_recipe
from bert_numpy.recipe import Recipe
from bert_numpy.tokenization import EncodedText, load_tokenizer

__all__ = ["Job", "ProgressBar", "prepare", "run"]

#: Makes a progress bar: called with a total and a label.
ProgressBar = Callable[[int, str], AbstractContextManager[Progress]]


@dataclass(frozen=True, eq=False)
class Job:
    """A model, the examples that it is evaluated on, and what it is calibrated by.

    ``calibration`` is a given one; without it ``calibration_texts`` are run.
    """

    model: Model
    task: Task
    examples: Examples
    encoded: list[EncodedText]
    calibration_texts: list[EncodedText]
    batch_size: int
    calibration: Calibration | None = None

    @property
    def truncated(self) -> int:
        """How many examples were cut to the length limit."""
        return sum(item.truncated for item in self.encoded)


def prepare(
    model: str | Path,
    task: str,
    data: str | Path,
    *,
    calibrated: bool = True,
    calibration: str | Path | None = None,
    calibration_data: str | Path | None = None,
    calibration_samples: int = 256,
    limit: int | None = None,
    max_length: int = 128,
    batch_size: int = 32,
) -> Job:
    """Load and check everything that a run needs, before any of it starts.

    Parameters
    ----------
    model : str or Path
        See :func:`bert_numpy.load`.
    task : str
        A GLUE task's name.
    data : str or Path
        The task's folder, a folder of tasks' folders, or a file to evaluate on.
    calibrated : bool
        Whether a calibration is needed.
    calibration : str or Path, optional
        A file that :func:`save_calibration` wrote, instead of the training sample.
    calibration_data : str or Path, optional
        A file in the task's layout; by default the training file beside ``data``.
    calibration_samples : int
        How many of its examples to use; see :meth:`Examples.sample`.
    limit : int, optional
        Evaluate only the first so many examples.
    max_length : int
        In tokens; longer inputs are cut.
    batch_size : int

    Raises
    ------
    BertNumpyError
        If anything is missing, malformed or does not fit together.
    """
    task_ = task_named(task)
    place = Path(data)
    path = place if place.is_file() else find_file(place, task_, task_.dev)
    examples = read_examples(path, task_)
    if limit is not None and limit < len(examples):
        examples = examples.select(range(limit))
    sample = None
    given = load_calibration(calibration) if calibrated and calibration is not None else None
    if calibrated and given is None:
        source = find_file(path.parent, task_, task_.train) if calibration_data is None else None
        sample = read_examples(source or Path(str(calibration_data)), task_)
        sample = sample.sample(calibration_samples)
    loaded = load(model)
    if not loaded.config.has_classifier:
        raise BertNumpyError(
            f"{loaded.name}: expected a BertForSequenceClassification, found "
            f"{loaded.config.architecture}"
        )
    label_order(loaded.config.labels, task_)
    tokenizer = load_tokenizer(model)
    return Job(
        loaded,
        task_,
        examples,
        tokenizer.encode(examples.texts, examples.pairs, max_length),
        [] if sample is None else tokenizer.encode(sample.texts, sample.pairs, max_length),
        batch_size,
        given,
    )


def run(
    job: Job,
    recipes: list[Recipe],
    progress_bar: ProgressBar | None = None,
    *,
    golden: bool = False,
    calibration_output: str | Path | None = None,
) -> Iterator[Evaluation]:
    """Calibrate if a recipe needs it, then evaluate each recipe in turn.

    Parameters
    ----------
    job : Job
    recipes : list of Recipe
    progress_bar : callable, optional
    golden : bool
        Whether to calibrate and to run in golden arithmetic.
    calibration_output : str or Path, optional
        Where to save the calibration.

    Raises
    ------
    BertNumpyError
        If a calibration is to be saved and no recipe needs one, or as
        :func:`bert_numpy.calibrate` and :func:`evaluate` do.
    """
    bar = progress_bar or _no_bar
    calibration = job.calibration
    if calibration is None and any(recipe.calibrated for recipe in recipes):
        with bar(len(job.calibration_texts), "calibration") as advance:
            calibration = calibrate_on(
                job.model, job.calibration_texts, job.batch_size, advance, golden
            )
    if calibration_output is not None:
        if calibration is None:
            names = ", ".join(recipe.name for recipe in recipes)
            raise BertNumpyError(
                f"{calibration_output}: expected a format that needs a calibration, found {names}"
            )
        save_calibration(calibration, calibration_output)
    for recipe in recipes:
        model = apply_recipe(job.model, recipe, calibration, golden)
        with bar(len(job.examples), recipe.name) as advance:
            yield evaluate(
                model, job.task, job.encoded, job.examples.labels, job.batch_size, advance
            )


@contextmanager
def _no_bar(total: int, label: str) -> Iterator[Progress]:
    yield lambda count: None

"""An evaluation from names to results: model, task and data, sample, recipes."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.load import load
from bert_numpy.errors import BertNumpyError, reading
from bert_numpy.evaluation.evaluate import (
    Evaluation,
    calibrate_on,
    check_model,
    evaluate_task,
)
from bert_numpy.model.model import Model
from bert_numpy.model.sites import model_sites
from bert_numpy.progress import Progress, ProgressBar, no_bar
from bert_numpy.quantization.calibration import (
    Calibration,
    how_to_make,
    load_calibration,
    save_calibration,
)
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import TASKS, Examples
from bert_numpy.tasks.registry import any_task_named, require_test_set, task_for
from bert_numpy.tasks.similarity import EMBEDDINGS
from bert_numpy.tasks.task import Data, Task
from bert_numpy.tasks.texts import read_texts
from bert_numpy.tasks.tokenization import EncodedText, Tokenizer, Window, load_tokenizer
from npfp8.files import open_regular

__all__ = [
    "Job",
    "calibrate_on_sentences",
    "evaluate_job",
    "keep_calibration",
    "prepare",
    "prepare_texts",
    "require_regular",
    "run",
    "saved_calibration",
    "with_calibration",
]


@dataclass(frozen=True, eq=False)
class Job:
    """A model, the examples that it is evaluated on, and what it is calibrated by.

    ``windows`` has for each example what the model is run on, as the task encodes
    it. ``calibration`` is a given one; without it ``calibration_texts`` are run.
    """

    model: Model
    task: Task[Any]
    examples: Data
    windows: list[list[Window]]
    calibration_texts: list[EncodedText]
    batch_size: int
    calibration: Calibration | None = None

    def select(self, rows: Sequence[int]) -> Job:
        """The same with only the examples of the given rows."""
        windows = [self.windows[row] for row in rows]
        return replace(self, examples=self.examples.select(rows), windows=windows)

    @property
    def encoded(self) -> list[EncodedText]:
        """All that the model is run on, in the examples' order."""
        return _flat(self.windows)

    @property
    def truncated(self) -> int:
        """How many examples were cut to the length limit; a context in windows is not cut."""
        return sum(any(part.encoded.truncated for part in parts) for parts in self.windows)


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
    max_length: int | None = None,
    batch_size: int = 32,
    test: bool = False,
    revision: str | None = None,
    progress_bar: ProgressBar | None = None,
) -> Job:
    """Load and check everything that a run needs, before any of it starts.

    Parameters
    ----------
    model : str or Path
        See :func:`bert_numpy.load`.
    task : str
        A task's name; of a sentence encoder ``stsb`` is ``stsb-cosine``.
    data : str or Path
        The task's folder, a folder of tasks' folders, a data set's id on the
        hub, or a file to evaluate on; see :func:`bert_numpy.tasks.files.find_files`.
    calibrated : bool
        Whether a calibration is needed.
    calibration : str or Path, optional
        A file that :func:`save_calibration` wrote, instead of the training sample.
    calibration_data : str or Path, optional
        A file in the task's layout; by default the training file beside ``data``.
    calibration_samples : int
        How many of its examples to use; see :meth:`Examples.sample`. Of a
        question all windows are used.
    limit : int, optional
        Evaluate only the first so many examples.
    max_length : int, optional
        In tokens; longer inputs are cut, contexts of questions into windows.
        By default 128, 384 for SQuAD, and a sentence encoder's own length for
        embeddings; never more than the model's.
    batch_size : int
    test : bool
        Whether to take a GLUE task's test set, which has no labels.
    revision : str, optional
        Of a model on the hub; see :func:`bert_numpy.load`.
    progress_bar : callable, optional

    Raises
    ------
    BertNumpyError
        If anything is missing, malformed or does not fit together.
    """
    task_ = any_task_named(task)
    examples = _read_examples(data, task_, limit, test)
    given = saved_calibration(calibration) if calibrated and calibration is not None else None
    sample = None
    if calibrated and given is None:
        sample = _read_training(data, task_, calibration_data).sample(calibration_samples)
    loaded = load(model, revision)
    task_ = task_for(task_, loaded.config)
    check_model(loaded, task_)
    tokenizer = load_tokenizer(model, revision)
    length = _length(task_, tokenizer, max_length)
    calibration_texts: list[EncodedText] = []
    with (progress_bar or no_bar)(len(examples) + len(sample or ()), "texts") as advance:
        windows = task_.encode(tokenizer, examples, length, advance)
        if sample is not None:
            calibration_texts = _flat(task_.encode(tokenizer, sample, length, advance))
    return Job(loaded, task_, examples, windows, calibration_texts, batch_size, given)


def prepare_texts(
    model: str | Path,
    texts: str | Path | None,
    *,
    calibrated: bool = True,
    calibration: str | Path | None = None,
    calibration_data: str | Path | None = None,
    calibration_samples: int = 256,
    limit: int | None = None,
    max_length: int | None = None,
    batch_size: int = 32,
    revision: str | None = None,
    progress_bar: ProgressBar | None = None,
) -> Job:
    """:func:`prepare` without a task: on texts of one's own, with none that is right.

    Parameters
    ----------
    texts : str or Path, optional
        A file of two texts at least (see :func:`bert_numpy.tasks.texts.read_texts`), whose
        vectors are compared: for sentence encoders. Without it the job can calibrate any
        model, and has no examples.
    calibration_data : str or Path, optional
        Such a file too; by default the training sentences in
        :data:`bert_numpy.assets.REVIEWS`.
    max_length : int, optional
        In tokens. By default 128 to calibrate on, and a sentence encoder's own
        length for ``texts``; never more than the model's.
    model, calibrated, calibration, calibration_samples, limit, batch_size, revision, progress_bar
        As there.

    Raises
    ------
    BertNumpyError
        If anything is missing, malformed or does not fit together.
    """
    examples = Examples([], None, None)
    if texts is not None:
        examples = EMBEDDINGS.read([Path(texts)])
        examples = examples.select(range(min(limit or len(examples), len(examples))))
        if len(examples) < 2:
            raise BertNumpyError(f"{texts}: expected at least 2 texts to compare, found 1")
    given = saved_calibration(calibration) if calibrated and calibration is not None else None
    sample: list[str] = []
    if calibrated and given is None:
        sample = _sentences(calibration_data or REVIEWS / "train.tsv", calibration_samples)
    loaded = load(model, revision)
    if texts is not None:
        check_model(loaded, EMBEDDINGS)
    tokenizer = load_tokenizer(model, revision)
    with (progress_bar or no_bar)(len(examples) + len(sample), "texts") as advance:
        length = _length(EMBEDDINGS, tokenizer, max_length)
        windows = EMBEDDINGS.encode(tokenizer, examples, length, advance)
        length = _length(_SENTENCES, tokenizer, max_length)
        encoded = tokenizer.encode(sample, None, length, advance)
    return Job(loaded, EMBEDDINGS, examples, windows, encoded, batch_size, given)


#: The task whose length is that of sentences to calibrate on.
_SENTENCES = TASKS["sst2"]


def _length(task: Task[Any], tokenizer: Tokenizer, wanted: int | None) -> int:
    """What inputs are cut to: a task's length, or the model's where that is less, or as wanted."""
    return min(task.max_length, tokenizer.model_max_length) if wanted is None else wanted


def _sentences(file: str | Path, samples: int) -> list[str]:
    """Texts of a file to calibrate on, evenly spread."""
    require_regular(Path(file))
    return Examples(read_texts(Path(file)), None, None).sample(samples).texts


def _flat(windows: Sequence[Sequence[Window]]) -> list[EncodedText]:
    return [window.encoded for parts in windows for window in parts]


def _read_examples(data: str | Path, task: Task[Any], limit: int | None, test: bool) -> Data:
    """The examples to evaluate on: of ``data`` if it is a file, else of the file in it."""
    file: str = task.dev
    read: Callable[[Sequence[Path]], Data] = task.read
    if test:
        test_set = require_test_set(task)
        file, read = test_set.file, test_set.read
    given = Path(data)
    examples = read([given] if given.is_file() else find_files(data, task, file))
    if limit is not None and limit < len(examples):
        return examples.select(range(limit))
    return examples


def _read_training(data: str | Path, task: Task[Any], file: str | Path | None) -> Data:
    """The examples to choose from for a calibration: of a file, or of that beside the data."""
    examples: Data
    if file is not None:
        require_regular(Path(file))
        examples = task.read([Path(file)])
        return examples
    given = Path(data)
    try:
        paths = find_files(given.parent if given.is_file() else data, task, task.train)
    except BertNumpyError as error:
        raise BertNumpyError(
            f"{error}. The training examples are to calibrate on: in their place give a file of "
            "examples (--calibration-data) or a saved calibration (--calibration)"
        ) from None
    examples = task.read(paths)
    return examples


def require_regular(path: Path) -> None:
    """Refuse a pipe or a device: only of a whole file can examples be chosen evenly."""
    with reading(path):
        open_regular(path).close()


def saved_calibration(path: str | Path) -> Calibration:
    """As :func:`bert_numpy.load_calibration`, which cannot know how one is made."""
    if not os.path.exists(path):  # unlike Path.exists, False for a name that no file can have
        raise BertNumpyError(f"{path}: no such file. To make one: {how_to_make(path)}")
    return load_calibration(path)


def calibrate_on_sentences(
    model: Model,
    tokenizer: Tokenizer,
    file: Path,
    progress_bar: ProgressBar | None = None,
    *,
    samples: int = 256,
    paired: bool = False,
    golden: bool = False,
) -> Calibration:
    """Calibrate on texts of a file; see :func:`bert_numpy.tasks.texts.read_texts`.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
    file : Path
        Such as the training file in :data:`bert_numpy.assets.REVIEWS`.
    progress_bar : callable, optional
    samples : int
        How many of them to use; see :meth:`Examples.sample`.
    paired : bool
        Whether each sentence is given with the one after it, as pairs of texts.
    golden : bool

    Raises
    ------
    BertNumpyError
        If the file is not as expected.
    """
    texts = _sentences(file, samples)
    pairs = [*texts[1:], texts[0]] if paired else None
    encoded = tokenizer.encode(texts, pairs, _length(_SENTENCES, tokenizer, None))
    with (progress_bar or no_bar)(len(encoded), "calibration") as advance:
        return calibrate_on(model, encoded, progress=advance, golden=golden)


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
        If a calibration is to be saved and no recipe needs one; a recipe cannot
        accumulate as it says; or as :func:`bert_numpy.calibrate` and
        :func:`evaluate` do.
    """
    bar = progress_bar or no_bar
    for recipe in recipes:  # before the first of them has taken its time
        recipe.check_accumulation(model_sites(job.model))
    job = with_calibration(job, recipes, bar, golden=golden)
    calibration = job.calibration
    if calibration_output is not None:
        keep_calibration(calibration, recipes, calibration_output)
    for recipe in recipes:
        with bar(len(job.encoded), recipe.name) as advance:
            model = apply_recipe(job.model, recipe, calibration, golden)
            yield evaluate_job(job, model, advance)


def keep_calibration(
    calibration: Calibration | None, recipes: Sequence[Recipe], path: str | Path
) -> None:
    """Save a calibration.

    Raises
    ------
    BertNumpyError
        If there is none, as no recipe needs one; or it cannot be written.
    """
    if calibration is None:
        names = ", ".join(recipe.name for recipe in recipes)
        raise BertNumpyError(f"{path}: expected a format that needs a calibration, found {names}")
    save_calibration(calibration, path)


def with_calibration(
    job: Job,
    recipes: list[Recipe],
    progress_bar: ProgressBar | None = None,
    *,
    golden: bool = False,
) -> Job:
    """The job with a calibration, if it has none and a recipe needs one.

    A quantized model needs none: it has its scales.
    """
    if (
        job.calibration is not None
        or isinstance(job.model, QuantizedModel)
        or not any(recipe.calibrated for recipe in recipes)
    ):
        return job
    with (progress_bar or no_bar)(len(job.calibration_texts), "calibration") as advance:
        calibration = calibrate_on(
            job.model, job.calibration_texts, job.batch_size, advance, golden
        )
    return replace(job, calibration=calibration)


def evaluate_job(job: Job, model: QuantizedModel, progress: Progress | None = None) -> Evaluation:
    """Evaluate a model on a job's examples."""
    return evaluate_task(model, job.task, job.examples, job.windows, job.batch_size, progress)

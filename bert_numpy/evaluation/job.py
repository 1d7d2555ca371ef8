"""An evaluation from names to results: model, task and data, sample, recipes."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.load import as_model, load
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
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe, refuse_gptq
from bert_numpy.quantization.presets import as_recipe
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import TASKS, Examples
from bert_numpy.tasks.registry import any_task_named, require_test_set, task_for
from bert_numpy.tasks.similarity import EMBEDDINGS
from bert_numpy.tasks.task import Data, Task
from bert_numpy.tasks.texts import read_texts
from bert_numpy.tasks.tokenization import (
    EncodedText,
    Tokenizer,
    Window,
    as_tokenizer,
    load_tokenizer,
)
from npfp8.arguments import flag, integer, require, require_function, wrong_type
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


@dataclass(frozen=True, eq=False, repr=False)
class Job:
    """A model, the examples to evaluate it on, and its calibration or the texts for one.

    ``windows`` holds the encoded inputs of each example, as the task makes them.
    ``calibration`` is an existing calibration; without it ``calibration_texts`` are run.

    Examples
    --------
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import prepare
    >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
    >>> job
    <Job bert-tiny-sst2 on sst2: 8 examples, 4 texts to calibrate on>
    """

    model: Model
    task: Task[Any]
    examples: Data
    windows: list[list[Window]]
    calibration_texts: list[EncodedText]
    batch_size: int
    calibration: Calibration | None = None

    def __repr__(self) -> str:
        made = f"{len(self.calibration_texts)} texts to calibrate on"
        given = made if self.calibration is None else "with a calibration"
        return (
            f"<Job {self.model.name} on {self.task.name}: {len(self.examples)} examples, {given}>"
        )

    def select(self, rows: Sequence[int]) -> Job:
        """Return the same job with only the examples of the given rows.

        Examples
        --------
        >>> from bert_numpy.assets import REVIEWS
        >>> from bert_numpy.job import prepare
        >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
        >>> job.select([0, 2])
        <Job bert-tiny-sst2 on sst2: 2 examples, 4 texts to calibrate on>
        """
        rows = [integer("rows", row) for row in _listed("rows", rows, "row numbers")]
        windows = [self.windows[row] for row in rows]
        return replace(self, examples=self.examples.select(rows), windows=windows)

    @property
    def encoded(self) -> list[EncodedText]:
        """All encoded inputs, in the order of the examples."""
        return _flat(self.windows)

    @property
    def truncated(self) -> int:
        """The number of examples cut to the length limit; a context split into windows is whole."""
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
    """Load and check everything that a run needs before it starts.

    Parameters
    ----------
    model : str or Path
        See :func:`bert_numpy.load`.
    task : str
        A task's name; for a sentence encoder ``stsb`` means ``stsb-cosine``.
    data : str or Path
        The task's folder, a folder of tasks' folders, a data set's id on the
        hub, or a file to evaluate on; see :func:`bert_numpy.tasks.files.find_files`.
    calibrated : bool
        True if a calibration is needed.
    calibration : str or Path, optional
        A file that :func:`save_calibration` wrote, instead of the training sample.
    calibration_data : str or Path, optional
        A file in the task's layout; by default the training file beside ``data``.
    calibration_samples : int
        The number of its examples to use; see :meth:`Examples.sample`. All windows of
        a chosen question are used.
    limit : int, optional
        Evaluate only this number of examples, from the first on.
    max_length : int, optional
        The length limit in tokens; longer inputs are truncated, and contexts of questions
        are split into windows. The default is 128, 384 for SQuAD, and a sentence encoder's
        own length for embeddings; never more than the model's.
    batch_size : int
    test : bool
        True to take a GLUE task's test set, which has no labels.
    revision : str, optional
        The revision of a model on the hub; see :func:`bert_numpy.load`.
    progress_bar : callable, optional

    Raises
    ------
    BertNumpyError
        If anything is missing, malformed or does not fit together.

    Examples
    --------
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import prepare
    >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
    >>> len(job.examples)
    8
    """
    _check_names(model, data, revision, calibration=calibration, calibration_data=calibration_data)
    integer("calibration_samples", calibration_samples)
    integer("batch_size", batch_size)
    _check_numbers(limit=limit, max_length=max_length)
    require("task", task, str, "the name of a task")
    calibrated, test = flag("calibrated", calibrated), flag("test", test)
    require_function("progress_bar", progress_bar, "a function or None", optional=True)
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
    """Prepare a job without a task, on texts of the user's own without labels.

    Parameters
    ----------
    texts : str or Path, optional
        For sentence encoders: a file of at least two texts, whose vectors are compared (see
        :func:`bert_numpy.tasks.texts.read_texts`). Without it the job can calibrate any
        model, and has no examples.
    calibration_data : str or Path, optional
        A file of texts, too; by default the training sentences in
        :data:`bert_numpy.assets.REVIEWS`.
    max_length : int, optional
        The length limit in tokens. The default is 128 for the calibration, and a sentence
        encoder's own length for ``texts``; never more than the model's.
    model, calibrated, calibration, calibration_samples, limit, batch_size, revision, progress_bar
        The same as in :func:`prepare`.

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


#: The task whose length limit is used for calibration sentences.
_SENTENCES = TASKS["sst2"]


def _length(task: Task[Any], tokenizer: Tokenizer, wanted: int | None) -> int:
    """Return the length limit: as wanted, or else the lower of the task's and the model's."""
    return min(task.max_length, tokenizer.model_max_length) if wanted is None else wanted


def _sentences(file: str | Path, samples: int) -> list[str]:
    """Read a file's texts to calibrate on, evenly spread over the file."""
    require_regular(Path(file))
    return Examples(read_texts(Path(file)), None, None).sample(samples).texts


def _flat(windows: Sequence[Sequence[Window]]) -> list[EncodedText]:
    return [window.encoded for parts in windows for window in parts]


def _read_examples(data: str | Path, task: Task[Any], limit: int | None, test: bool) -> Data:
    """Read the examples to evaluate on: from ``data`` if it is a file, else from its file."""
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
    """Read the examples to sample for a calibration: from ``file``, or from beside the data."""
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
    """Refuse a pipe or a device: an even sample needs the whole file."""
    with reading(path):
        open_regular(path).close()


def saved_calibration(path: str | Path) -> Calibration:
    """Load a calibration; if the file is missing, the error shows the command that writes one."""
    if not os.path.exists(path):  # unlike Path.exists, False for impossible file names
        raise BertNumpyError(f"{path}: no such file. To make one: {how_to_make(path)}")
    return load_calibration(path)


def calibrate_on_sentences(
    model: Model | str | Path,
    tokenizer: Tokenizer | str | Path,
    file: str | Path,
    progress_bar: ProgressBar | None = None,
    *,
    samples: int = 256,
    paired: bool = False,
    golden: bool = False,
    hessians: bool = False,
) -> Calibration:
    """Calibrate on texts of a file; see :func:`bert_numpy.tasks.texts.read_texts`.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
    file : Path
        A file of texts, such as the training file in :data:`bert_numpy.assets.REVIEWS`.
    progress_bar : callable, optional
    samples : int
        The number of texts to use; see :meth:`Examples.sample`.
    paired : bool
        True to give each sentence together with the next one, as a pair of texts.
    golden, hessians : bool
        As for :func:`bert_numpy.calibrate`.

    Raises
    ------
    BertNumpyError
        If the file is missing or malformed.

    Examples
    --------
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import calibrate_on_sentences
    >>> name = "bert-tiny-sst2"
    >>> calibrate_on_sentences(name, name, REVIEWS / "train.tsv", samples=4)
    <Calibration of bert-tiny-sst2: 4 samples, 22 operands>
    """
    model, tokenizer = as_model(model), as_tokenizer(tokenizer)
    require("file", file, (str, Path), "a path")
    integer("samples", samples)
    paired, golden = flag("paired", paired), flag("golden", golden)
    hessians = flag("hessians", hessians)
    require_function("progress_bar", progress_bar, "a function or None", optional=True)
    texts = _sentences(file, samples)
    pairs = [*texts[1:], texts[0]] if paired else None
    encoded = tokenizer.encode(texts, pairs, _length(_SENTENCES, tokenizer, None))
    with (progress_bar or no_bar)(len(encoded), "calibration") as advance:
        return calibrate_on(model, encoded, progress=advance, golden=golden, hessians=hessians)


def run(
    job: Job,
    recipes: Sequence[Recipe | str | Path],
    progress_bar: ProgressBar | None = None,
    *,
    golden: bool = False,
    calibration_output: str | Path | None = None,
) -> Iterator[Evaluation]:
    """Calibrate if a recipe needs it, then evaluate each recipe in turn.

    Parameters
    ----------
    job : Job
    recipes : sequence of Recipe, str or Path
        Recipes, names of :data:`bert_numpy.PRESETS`, or JSON files.
    progress_bar : callable, optional
    golden : bool
        True to calibrate and to run in golden arithmetic.
    calibration_output : str or Path, optional
        The file to save the calibration to.

    Raises
    ------
    BertNumpyError
        If a calibration is to be saved but no recipe needs one; if a recipe's
        accumulator cannot take its products; or in the cases of
        :func:`bert_numpy.calibrate` and :func:`evaluate_task`.

    Examples
    --------
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import prepare, run
    >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
    >>> [evaluation.recipe for evaluation in run(job, ["fp32", "e4m3"])]
    ['fp32', 'e4m3']
    """
    require("job", job, Job, "a job, as prepare returns it")
    recipes = _recipes(recipes)
    golden = flag("golden", golden)
    require_function("progress_bar", progress_bar, "a function or None", optional=True)
    require("calibration_output", calibration_output, (str, Path, type(None)), "a path or None")
    return _evaluations(job, recipes, progress_bar or no_bar, golden, calibration_output)


def _evaluations(
    job: Job,
    recipes: list[Recipe],
    bar: ProgressBar,
    golden: bool,
    calibration_output: str | Path | None,
) -> Iterator[Evaluation]:
    """Yield the evaluations of :func:`run`, whose arguments are checked."""
    for recipe in recipes:  # check all before the first one takes its time
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
        If there is no calibration because no recipe needs one, or it cannot be written.
    """
    if calibration is None:
        names = ", ".join(recipe.name for recipe in recipes)
        raise BertNumpyError(f"{path}: expected a format that needs a calibration, found {names}")
    save_calibration(calibration, path)


def with_calibration(
    job: Job,
    recipes: Sequence[Recipe | str | Path],
    progress_bar: ProgressBar | None = None,
    *,
    golden: bool = False,
) -> Job:
    """Add a calibration to the job, if it has none and a recipe needs one.

    A quantized model needs no calibration, as it has its scales.

    Examples
    --------
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import prepare, with_calibration
    >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
    >>> with_calibration(job, ["e4m3"]).calibration
    <Calibration of bert-tiny-sst2: 4 samples, 22 operands>
    """
    require("job", job, Job, "a job, as prepare returns it")
    recipes = _recipes(recipes)
    golden = flag("golden", golden)
    require_function("progress_bar", progress_bar, "a function or None", optional=True)
    if (
        job.calibration is not None
        or isinstance(job.model, QuantizedModel)
        or not any(recipe.calibrated for recipe in recipes)
    ):
        return job
    if golden:
        refuse_gptq(recipes)
    with (progress_bar or no_bar)(len(job.calibration_texts), "calibration") as advance:
        hessians = any(recipe.by_gptq for recipe in recipes)
        calibration = calibrate_on(
            job.model, job.calibration_texts, job.batch_size, advance, golden, hessians
        )
    return replace(job, calibration=calibration)


def evaluate_job(job: Job, model: QuantizedModel, progress: Progress | None = None) -> Evaluation:
    """Evaluate a model on a job's examples.

    Examples
    --------
    >>> import bert_numpy
    >>> from bert_numpy.assets import REVIEWS
    >>> from bert_numpy.job import evaluate_job, prepare
    >>> job = prepare("bert-tiny-sst2", "sst2", REVIEWS, limit=8, calibration_samples=4)
    >>> model = bert_numpy.apply_recipe(job.model, "bf16")
    >>> list(evaluate_job(job, model).metrics)
    ['accuracy']
    """
    require("job", job, Job, "a job, as prepare returns it")
    require("model", model, QuantizedModel, "a quantized model, as apply_recipe returns it")
    require_function("progress", progress, "a function or None", optional=True)
    return evaluate_task(model, job.task, job.examples, job.windows, job.batch_size, progress)


def _recipes(recipes: Sequence[Recipe | str | Path]) -> list[Recipe]:
    """Look up recipes."""
    return [as_recipe(recipe, "recipes") for recipe in _listed("recipes", recipes, "recipes")]


def _listed(argument: str, values: Any, what: str) -> list[Any]:
    """Return a sequence as a list; raise TypeError for anything else."""
    one = isinstance(values, str) or (isinstance(values, np.ndarray) and not values.ndim)
    if one or not isinstance(values, Sequence | np.ndarray):
        raise wrong_type(argument, f"a list of {what}", values)
    return list(values)


def _check_names(model: object, data: object, revision: object, **files: object) -> None:
    """Raise TypeError unless all are names or paths; a revision and files may be None."""
    require("model", model, (str, Path), "the folder or the name of a model")
    require("data", data, (str, Path), "the path or the hub id of data")
    require("revision", revision, (str, type(None)), "a branch, tag or commit, or None")
    for name, file in files.items():
        require(name, file, (str, Path, type(None)), "a path or None")


def _check_numbers(**numbers: object) -> None:
    """Raise TypeError unless all are integers or None."""
    for name, number in numbers.items():
        if number is not None:
            integer(name, number)

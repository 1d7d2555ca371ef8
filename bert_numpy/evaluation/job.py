"""An evaluation from names to results: model, task and data, sample, recipes."""

from __future__ import annotations

import os.path
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bert_numpy.checkpoints.load import load
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import (
    Evaluation,
    Progress,
    calibrate_on,
    evaluate,
    evaluate_answers,
)
from bert_numpy.model.model import Model, require_head
from bert_numpy.model.sites import model_sites
from bert_numpy.quantization.calibration import (
    Calibration,
    how_to_make,
    load_calibration,
    save_calibration,
)
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import (
    Examples,
    Task,
    TestSet,
    label_order,
    merge_examples,
    read_examples,
    read_test_sets,
    task_named,
)
from bert_numpy.tasks.squad import SQUAD, Questions, SpanTask, merge_questions, read_questions
from bert_numpy.tasks.tokenization import EncodedText, Tokenizer, Window, load_tokenizer
from npfp8.files import open_regular

__all__ = [
    "Job",
    "ProgressBar",
    "any_task_named",
    "calibrate_on_sentences",
    "evaluate_job",
    "keep_calibration",
    "prepare",
    "require_regular",
    "run",
    "saved_calibration",
    "with_calibration",
]

#: Makes a progress bar: called with a total and a label.
ProgressBar = Callable[[int, str], AbstractContextManager[Progress]]


@dataclass(frozen=True, eq=False)
class Job:
    """A model, the examples that it is evaluated on, and what it is calibrated by.

    ``encoded`` holds what the model is run on: the examples, or the windows of
    all questions, which ``windows`` has question by question. ``calibration``
    is a given one; without it ``calibration_texts`` are run.
    """

    model: Model
    task: Task | SpanTask
    examples: Examples | Questions | TestSet
    encoded: list[EncodedText]
    calibration_texts: list[EncodedText]
    batch_size: int
    calibration: Calibration | None = None
    windows: list[list[Window]] = field(default_factory=list)

    def select(self, rows: Sequence[int]) -> Job:
        """The same with only the examples of the given rows."""
        encoded = [self.encoded[row] for row in rows] if not self.windows else []
        assert not isinstance(self.examples, TestSet), "a test set is taken whole"
        windows = [self.windows[row] for row in rows] if self.windows else []
        encoded += [window.encoded for parts in windows for window in parts]
        return replace(self, examples=self.examples.select(rows), encoded=encoded, windows=windows)

    @property
    def truncated(self) -> int:
        """How many examples were cut to the length limit; a context in windows is not cut."""
        inputs = [parts[0].encoded for parts in self.windows] or self.encoded
        return sum(item.truncated for item in inputs)


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
        A GLUE task's name, or ``squad``.
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
        By default 128, and 384 for SQuAD.
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
    file = Path(data)
    given_file = file.is_file()
    examples: Examples | Questions | TestSet
    if test:
        if not isinstance(task_, Task):
            raise BertNumpyError(f"task {task_.name}: expected one of GLUE's for its test set")
        paths = [file] if given_file else find_files(data, task_, task_.test)
        examples = read_test_sets(paths, task_)
    else:
        examples = _read([file] if given_file else find_files(data, task_, task_.dev), task_)
    if not isinstance(examples, TestSet) and limit is not None and limit < len(examples):
        examples = examples.select(range(limit))
    sample = None
    given = saved_calibration(calibration) if calibrated and calibration is not None else None
    if calibrated and given is None:
        if calibration_data is None:
            sources = _training_files(file.parent if given_file else data, task_)
        else:
            sources = [Path(calibration_data)]
            require_regular(sources[0])
        sample = _read(sources, task_).sample(calibration_samples)
    loaded = load(model, revision)
    _check_head(loaded, task_)
    tokenizer = load_tokenizer(model, revision)
    calibration_texts: list[EncodedText] = []
    with (progress_bar or _no_bar)(len(examples) + len(sample or ()), "texts") as advance:
        encoded, windows = _encode(tokenizer, examples, max_length, advance)
        if sample is not None:
            calibration_texts, _ = _encode(tokenizer, sample, max_length, advance)
    return Job(loaded, task_, examples, encoded, calibration_texts, batch_size, given, windows)


def _training_files(data: str | Path, task: Task | SpanTask) -> list[Path]:
    try:
        return find_files(data, task, task.train)
    except BertNumpyError as error:
        raise BertNumpyError(
            f"{error}. The training examples are to calibrate on: in their place give a file of "
            "examples (--calibration-data) or a saved calibration (--calibration)"
        ) from None


def require_regular(path: Path) -> None:
    """Refuse a pipe or a device: only of a whole file can examples be chosen evenly."""
    try:
        open_regular(path).close()
    except FileNotFoundError:
        raise BertNumpyError(f"{path}: no such file") from None
    except OSError as error:
        raise BertNumpyError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        text = str(error)
        raise BertNumpyError(text if str(path) in text else f"{path}: {text}") from None


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
    """Calibrate on sentences of a file in SST-2's layout.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
    file : Path
        Such as the training file in :data:`bert_numpy.assets.REVIEWS`.
    progress_bar : callable, optional
    samples : int
        How many of its sentences to use; see :meth:`Examples.sample`.
    paired : bool
        Whether each sentence is given with the one after it, as pairs of texts.
    golden : bool

    Raises
    ------
    BertNumpyError
        If the file is not as expected.
    """
    require_regular(file)
    texts = read_examples(file, task_named("sst2")).sample(samples).texts
    pairs = [*texts[1:], texts[0]] if paired else None
    encoded = tokenizer.encode(texts, pairs, min(128, tokenizer.model_max_length))
    with (progress_bar or _no_bar)(len(encoded), "calibration") as advance:
        return calibrate_on(model, encoded, progress=advance, golden=golden)


def any_task_named(name: str) -> Task | SpanTask:
    """A task of GLUE's or SQuAD by its name.

    Raises
    ------
    BertNumpyError
        If there is none of that name.
    """
    return SQUAD if name.lower() == SQUAD.name else task_named(name, others=[SQUAD.name])


def _read(paths: Sequence[Path], task: Task | SpanTask) -> Examples | Questions:
    if isinstance(task, SpanTask):
        return merge_questions([read_questions(path) for path in paths])
    return merge_examples([read_examples(path, task) for path in paths])


def _check_head(model: Model, task: Task | SpanTask) -> None:
    """Refuse a model whose head is not the task's."""
    answers = isinstance(task, SpanTask)
    require_head(model, "question answering" if answers else "sequence classification")
    if isinstance(task, Task):
        label_order(model.config.labels, task, model.config.problem_type)


def _encode(
    tokenizer: Tokenizer,
    examples: Examples | Questions | TestSet,
    max_length: int | None,
    progress: Progress,
) -> tuple[list[EncodedText], list[list[Window]]]:
    """What the model is run on and, of questions, each one's windows."""
    if not isinstance(examples, Questions):
        limit = 128 if max_length is None else max_length
        return tokenizer.encode(examples.texts, examples.pairs, limit, progress), []
    windows = tokenizer.windows(
        [item.question for item in examples.items],
        [item.context for item in examples.items],
        SQUAD.max_length if max_length is None else max_length,
        SQUAD.doc_stride,
        SQUAD.max_query_length,
        progress,
    )
    return [window.encoded for parts in windows for window in parts], windows


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
    bar = progress_bar or _no_bar
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
    with (progress_bar or _no_bar)(len(job.calibration_texts), "calibration") as advance:
        calibration = calibrate_on(
            job.model, job.calibration_texts, job.batch_size, advance, golden
        )
    return replace(job, calibration=calibration)


def evaluate_job(job: Job, model: QuantizedModel, progress: Progress | None = None) -> Evaluation:
    """Evaluate a model on a job's examples, whatever their kind."""
    task, examples = job.task, job.examples
    if isinstance(task, SpanTask) and isinstance(examples, Questions):
        return evaluate_answers(model, task, examples, job.windows, job.batch_size, progress)
    assert isinstance(task, Task)
    labels = examples.labels if isinstance(examples, Examples) else None
    return evaluate(model, task, job.encoded, labels, job.batch_size, progress)


@contextmanager
def _no_bar(total: int, label: str) -> Iterator[Progress]:
    yield lambda count: None

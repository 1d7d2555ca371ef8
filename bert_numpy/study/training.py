"""Runs of training: a task's files to a trained model, what its products lost, and records."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.checkpoints.load import load
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import Evaluation, calibrate_on, evaluate
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.quantization.counts import OperandCounts
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import GlueTask, label_order, task_named
from bert_numpy.tasks.tokenization import EncodedText, load_tokenizer
from bert_numpy.training.fake_quantization import FakeQuantizedProducts
from bert_numpy.training.fit import StepReport, Training
from bert_numpy.training.fp8_products import FP8Products
from bert_numpy.training.heads import with_head
from bert_numpy.training.products import FloatProducts, Products
from bert_numpy.training.scalings import SCALINGS
from bert_numpy.training.unit_scaling import expected_magnitudes
from npfp8.arguments import named
from npfp8.arrays import Array
from npfp8.files import replaced_file

__all__ = [
    "FLOAT32",
    "Course",
    "Lesson",
    "add_run_options",
    "lesson",
    "main_metric",
    "mean_and_deviation",
    "products_of",
    "read_records",
    "run_command",
    "stopwatch",
    "training_of",
    "write_record",
    "write_report",
]

#: The name of training without quantization.
FLOAT32 = "float32"


@dataclass(frozen=True, eq=False)
class Lesson:
    """A model to train on a task, with the encoded examples.

    Attributes
    ----------
    model : Model
    task : GlueTask
    train, dev : list of EncodedText
    train_labels, dev_labels : ndarray
        Numbers of the model's outputs for training, and of GLUE's classes for evaluation.
    """

    model: Model
    task: GlueTask
    train: list[EncodedText]
    train_labels: Array
    dev: list[EncodedText]
    dev_labels: Array

    def evaluated(self, model: QuantizedModel) -> Evaluation:
        """Evaluate a quantized model on the development set."""
        return evaluate(model, self.task, self.dev, self.dev_labels)

    def calibration(self, model: Model, samples: int = 256) -> Calibration:
        """Calibrate on texts spread evenly over the training set."""
        samples = min(samples, len(self.train))
        rows = np.arange(samples) * len(self.train) // samples
        return calibrate_on(model, [self.train[row] for row in rows])

    def quantized(self, model: Model, recipe: str, samples: int = 256) -> QuantizedModel:
        """Quantize a trained model after its training."""
        how = PRESETS[recipe]
        calibration = self.calibration(model, samples) if how.calibrated else None
        return apply_recipe(model, how, calibration)

    @property
    def tokens(self) -> float:
        """The tokens of a text of the training set, on average."""
        return float(np.mean([len(one.input_ids) for one in self.train]))


def lesson(
    model: str | Path, task: str, data: str | Path, *, seed: int = 0, limit: int | None = None
) -> Lesson:
    """Load a model and a task's training and development sets.

    Parameters
    ----------
    model : str or Path
        A checkpoint. If its head is not that of the task, it gets a new one.
    task : str
        A task of GLUE with classes.
    data : str or Path
        The folder of the task's files for training and evaluation.
    seed : int
        For the new head's parameters.
    limit : int, optional
        The number of examples of each set, spread evenly; by default all.

    Raises
    ------
    BertNumpyError
        If a file is missing or wrong, or the task has scores instead of classes.
    """
    found, how = load(model), task_named(task)
    if how.is_regression:
        raise BertNumpyError(f"task {task}: expected a task with classes, found one with scores")
    try:
        how.check_labels(found.config)
        fits = found.config.head.name == how.head
    except BertNumpyError:
        fits = False
    if not fits:
        found = with_head(found, how.head, how.labels, seed)
    tokenizer = load_tokenizer(model)
    sets: list[tuple[list[EncodedText], Array]] = []
    for name in (how.train, how.dev):
        examples = how.read(find_files(data, how, name))
        if limit is not None:
            examples = examples.sample(min(limit, len(examples)))
        windows = how.encode(tokenizer, examples, how.max_length, None)
        assert examples.labels is not None
        sets.append(([window.encoded for (window,) in windows], examples.labels))
    (train, classes), (dev, dev_labels) = sets
    outputs = _outputs(how, found.config)
    return Lesson(found, how, train, outputs[classes], dev, dev_labels)


def _outputs(task: GlueTask, config: BertConfig) -> Array:
    """Return the model's output of each of GLUE's classes."""
    return np.argsort(label_order(config.labels, task, config.problem_type))


def products_of(
    name: str,
    learned: Lesson,
    batch_size: int,
    count_every: int = 16,
    accumulate: str = "float32",
) -> Products:
    """Make the products of a way of training, by its name.

    Parameters
    ----------
    name : str
        "float32", a key of :data:`bert_numpy.training.scalings.SCALINGS`, or "qat-" and a recipe.
    learned : Lesson
        For the shapes on which unit scaling depends.
    batch_size, count_every : int
    accumulate : str
        How the products of FP8 codes are summed.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name == FLOAT32:
        return FloatProducts()
    if name.startswith("qat-"):
        return FakeQuantizedProducts(named("recipe", name.removeprefix("qat-"), PRESETS))
    scaling = named("scaling", name, SCALINGS)
    expected = expected_magnitudes(learned.model.config, batch_size, learned.tokens)
    return FP8Products(scaling, accumulate=accumulate, expected=expected, count_every=count_every)


@dataclass(eq=False)
class Course:
    """A watcher of a run: losses, and how large each tensor was and what it lost, in parts.

    Attributes
    ----------
    parts : int
        The parts of the run that are told apart.
    report : callable (str), optional
        Told a line from time to time.
    """

    parts: int = 48
    report: Callable[[str], object] | None = None
    begun: float = field(default_factory=time.perf_counter)
    losses: list[list[float]] = field(default_factory=list)
    counts: dict[str, list[OperandCounts]] = field(default_factory=dict)
    largest: dict[str, list[float]] = field(default_factory=dict)

    def __call__(self, step: StepReport) -> None:
        """Note a step."""
        part = (step.step - 1) * self.parts // step.steps
        while len(self.losses) <= part:
            self.losses.append([])
        self.losses[part].append(step.loss)
        products = step.products
        if isinstance(products, FP8Products):
            for name, counts in products.counts.items():
                row = self.counts.setdefault(name, [OperandCounts()] * self.parts)
                row[part] = row[part] + counts
            for name, seen in products.seen.items():
                known = self.largest.setdefault(name, [0.0] * self.parts)
                known[part] = max(known[part], seen.absmax)
        if self.report is not None and step.step % 200 == 0:
            seconds = time.perf_counter() - self.begun
            recent = np.mean(self.losses[-1])
            self.report(f"step {step.step} of {step.steps}, loss {recent:.3f}, {seconds:.0f} s")

    def record(self) -> dict[str, Any]:
        """Return the course as JSON: mean losses; counts and largest magnitudes by tensor."""
        return {
            "losses": [float(np.mean(part)) for part in self.losses if part],
            "counts": {
                name: [[one.elements, one.saturated, one.underflowed] for one in row]
                for name, row in self.counts.items()
            },
            "largest": {
                name: [float(f"{x:.3g}") for x in row] for name, row in self.largest.items()
            },
        }


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean of some runs' results, and their standard deviation (0 for one).

    Examples
    --------
    >>> mean_and_deviation([0.25, 0.75])
    (0.5, 0.3535533905932738)
    """
    deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(deviation)


def main_metric(record: Mapping[str, Any], name: str) -> float:
    """Return a result's main metric, in percent: the first one of the record's task.

    Examples
    --------
    >>> main_metric({"task": "mrpc", "results": {"fp32": {"f1": 0.8, "accuracy": 0.75}}}, "fp32")
    75.0
    """
    metric = task_named(record["task"]).metrics[0]
    return 100 * float(record["results"][name][metric])


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a run's record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(record, indent=None, sort_keys=True))


def _write(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write(f"{text}\n".encode())


def read_records(folder: Path, key: str) -> list[dict[str, Any]]:
    """Read the records of a folder that have a key, in the order of their files' names."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [record for record in found if isinstance(record, dict) and key in record]


def write_report(
    folder: Path, name: str, tables: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Print tables under their titles, and write them and any rows of records beside the runs."""
    text = "\n\n".join(f"{title}:\n\n{table}" for title, table in tables.items())
    print(text)
    _write(folder / f"{name}.md", text)
    if rows:
        _write(folder / f"{name}.json", json.dumps(rows, indent=1, sort_keys=True))


def stopwatch() -> Callable[[], dict[str, float]]:
    """Start to measure time; the result returns the seconds so far, and those of the processor."""
    begin, cpu = time.perf_counter(), time.process_time()
    return lambda: {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }


# The scripts' options


def add_run_options(command: argparse.ArgumentParser, *, epochs: float, rate: float) -> None:
    """Add the options of a run, with the defaults of its epochs and its learning rate."""
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--task", required=True)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--epochs", type=float, default=epochs)
    command.add_argument("--batch", type=int, default=32)
    command.add_argument("--rate", type=float, default=rate)
    command.add_argument("--frozen", nargs="*", default=["embeddings.*"])
    command.add_argument("--limit", type=int)


def training_of(arguments: argparse.Namespace) -> Training:
    """Return the numbers of a training by the options of its run."""
    return Training(
        epochs=arguments.epochs,
        batch_size=arguments.batch,
        learning_rate=arguments.rate,
        seed=arguments.seed,
        frozen=tuple(arguments.frozen),
    )


def run_command(script: str, arguments: argparse.Namespace, **chosen: object) -> str:
    """Return the command of one run: the options of all, and those chosen for this one."""
    options = {"task": arguments.task, "data": arguments.data, "out": arguments.out, **chosen}
    options |= {"epochs": arguments.epochs, "rate": arguments.rate, "batch": arguments.batch}
    if arguments.limit:
        options["limit"] = arguments.limit
    words = [sys.executable, script, "run", arguments.model]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return shlex.join([*words, "--frozen", *arguments.frozen])

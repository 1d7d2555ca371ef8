"""The commands that run a model over a task's data: compare, evaluate, submit."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

from bert_numpy.commands.jobs import (
    COMPARED,
    accumulated,
    chosen_recipe,
    compared,
    compared_recipes,
    header,
    prepared,
    results_of,
    sums_of,
    title,
)
from bert_numpy.commands.options import (
    AddCommand,
    add_accumulate,
    add_data,
    add_format,
    add_formats,
    add_golden,
    add_limit,
    add_model,
    add_texts,
    refuse,
)
from bert_numpy.commands.outputs import submission_file
from bert_numpy.commands.report import (
    Outcome,
    columns,
    comparison_row,
    counted,
    listed,
    note_not_finite,
    print_comparison,
    print_lines,
    write_json,
    write_text,
)
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import Evaluation, require_answers
from bert_numpy.evaluation.job import Job
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.registry import require_test_set
from bert_numpy.tasks.similarity import EMBEDDINGS
from bert_numpy.tasks.squad import SQUAD
from bert_numpy.tasks.task import Task
from npfp8.arrays import Array

__all__ = ["add_evaluation_commands"]


def add_evaluation_commands(command: AddCommand) -> None:
    """Add the commands."""
    compare = command(
        "compare",
        _compare,
        "Compare formats on a task, or by the vectors of texts.",
        "./my-model --task sst2 --data glue/SST-2 --formats int8,e4m3",
        "./my-encoder --texts texts.txt",
    )
    add_model(compare)
    add_golden(compare)
    add_formats(compare, f"{COMPARED}, or stored")
    add_accumulate(compare)
    add_data(compare, required=False)
    add_texts(compare)
    add_limit(compare)

    evaluate = command(
        "evaluate",
        _evaluate,
        "Evaluate one format on a task's development set.",
        "./my-model --task sst2 --data glue/SST-2 --format e4m3 --golden",
        "./my-qa-model --task squad --data squad --predictions answers.json",
    )
    add_model(evaluate)
    add_golden(evaluate)
    add_format(evaluate, default="fp32")
    add_accumulate(evaluate)
    add_data(evaluate)
    add_limit(evaluate)
    evaluate.add_argument(
        "--predictions",
        metavar="FILE",
        section="output",
        values="file",
        help="squad: write the answers to FILE, in the layout that its official script reads",
    )

    submit = command(
        "submit",
        _submit,
        "Write a GLUE test set's predictions for its server.",
        "./my-model SST-2.tsv --task sst2 --data glue/SST-2 --format e4m3",
    )
    add_model(submit)
    submit.add_argument(
        "out",
        metavar="OUT",
        section="output",
        values="file",
        help="the file to write; in a folder it gets the name that the server expects",
    )
    submit.set_defaults(out_kind="submission")
    add_golden(submit)
    add_format(submit, default="fp32")
    add_accumulate(submit)
    add_data(submit)


def _compare(arguments: argparse.Namespace) -> Outcome:
    recipes = compared_recipes(arguments.formats, arguments.model, arguments.revision)
    recipes = accumulated(recipes, arguments)
    if arguments.texts is None and arguments.task is None and arguments.data is None:
        raise BertNumpyError(
            f"{arguments.model}: expected --task NAME and --data DATA to compare on, or texts to "
            "embed, --texts FILE"
        )
    return _comparison(arguments, prepared(arguments, recipes), recipes)


def _comparison(arguments: argparse.Namespace, job: Job, recipes: list[Recipe]) -> Outcome:
    reference = None
    rows = []
    results = results_of(arguments, job, recipes)
    for recipe, result in zip(recipes, results, strict=True):
        reference = reference or result
        rows.append(compared(job, result, reference) | sums_of(recipe))
        note_not_finite(result)
    report = header(job, arguments.golden) | {"rows": rows}
    return Outcome(report, lambda: print_comparison(title(job), rows))


def _evaluate(arguments: argparse.Namespace) -> Outcome:
    if arguments.task.lower() != SQUAD.name:
        refuse(arguments, ["predictions"], f"task squad, found {arguments.task}")
    (recipe,) = accumulated([chosen_recipe(arguments)], arguments)
    job = prepared(arguments, [recipe])
    (result,) = results_of(arguments, job, [recipe])
    note_not_finite(result)
    row = comparison_row(result, None) | sums_of(recipe)
    report = {
        **header(job, arguments.golden),
        **row,
        "rows": [row],  # as `compare` writes them, so that one reader serves both
        **_outputs(job, result),
        "logits_sha256": hashlib.sha256(result.logits.astype("<f4").tobytes()).hexdigest(),
        "sites": {name: vars(count) for name, count in result.counts.items()},
    }
    if arguments.predictions is not None:
        # The official script counts a question without a prediction as wrong, too.
        given = {key: text for key, text in report["predictions"].items() if text is not None}
        write_json(arguments.predictions, given)
    metrics = "  ".join(f"{name} {100 * value:.2f}" for name, value in result.metrics.items())
    count = counted(len(job.examples), "example")
    line = (
        f"{job.model.name}  {job.task.name}  {recipe.name}  {count}  "
        f"{metrics}  {result.seconds:.2f} s"
    )
    return Outcome(report, lambda: print_lines(line))


def _submit(arguments: argparse.Namespace) -> Outcome:
    (recipe,) = accumulated([chosen_recipe(arguments)], arguments)
    job = prepared(arguments, [recipe], test=True)
    test_set = require_test_set(job.task)
    path = Path(submission_file(arguments.out, job.task))
    (result,) = results_of(arguments, job, [recipe])
    require_answers(job.model, result)
    write_text(path, test_set.submission(job.examples.ids, result.predictions))
    report = header(job, arguments.golden) | {"format": recipe.name, "file": str(path)}
    lines = [
        f"written: {path}",
        f"{job.model.name}, {job.task.name}, {recipe.name}, "
        f"{counted(len(job.examples), 'prediction')}:",
        *_distribution(job.task, result.predictions),
    ]
    return Outcome(report, lambda: print_lines(*lines))


def _distribution(task: Task[Any], predictions: Array) -> list[str]:
    """Count the predictions by label in aligned lines; for scores, describe their range."""
    labels = getattr(task, "labels", ())
    if not labels:
        low, mean, high = predictions.min(), predictions.mean(), predictions.max()
        return [f"  scores from {low:.4f} to {high:.4f}, mean {mean:.4f}"]
    counts = [int((predictions == number).sum()) for number in range(len(labels))]
    rows = [
        (f"  {label}", f"{count:,}", f"{100 * count / predictions.size:.1f} %")
        for label, count in zip(labels, counts, strict=True)
    ]
    return columns(rows, right=[1, 2])


def _outputs(job: Job, result: Evaluation) -> dict[str, Any]:
    """Return the predictions and logits of each example; for questions, the answers by id.

    For pairs of vectors it is their cosines alone: ``embed`` writes vectors.
    """
    predictions = listed(result.predictions)
    if job.task.head == EMBEDDINGS.head:
        return {"predictions": predictions}
    if not result.answers:
        # As doubles, which restore every float32.
        return {"predictions": predictions, "logits": result.logits.tolist()}
    n_best = [[vars(answer) for answer in best] for best in result.answers]
    return {
        "predictions": dict(zip(job.examples.ids, predictions, strict=True)),
        "n_best": dict(zip(job.examples.ids, n_best, strict=True)),
    }

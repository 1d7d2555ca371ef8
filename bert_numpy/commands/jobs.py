"""From the options of a command to recipes, calibrations and jobs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_numpy.assets import REVIEWS
from bert_numpy.checkpoints.load import stored_recipe
from bert_numpy.commands.options import STORED, check_scales, refuse, require_together
from bert_numpy.commands.report import comparison_row, counted, note, progress_bar
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.embed import similarity
from bert_numpy.evaluation.evaluate import Evaluation
from bert_numpy.evaluation.job import (
    Job,
    calibrate_on_sentences,
    prepare,
    prepare_texts,
    run,
    saved_calibration,
)
from bert_numpy.model.model import Model
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.convert import QuantizedModel, refuse_gptq
from bert_numpy.quantization.presets import preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.similarity import EMBEDDINGS
from bert_numpy.tasks.tokenization import Tokenizer

__all__ = [
    "COMPARED",
    "accumulated",
    "calibrated_on_sentences",
    "chosen_recipe",
    "compared",
    "compared_recipes",
    "header",
    "prepared",
    "results_of",
    "sentence_scales",
    "sums_of",
    "title",
]

#: The formats of a comparison, unless others are asked for.
COMPARED = "fp32,int8,e4m3,e5m2"


def chosen_recipe(arguments: argparse.Namespace, default: str = "fp32") -> Recipe:
    """Return the recipe of ``--format``, or a quantized checkpoint's own."""
    name, model = arguments.format, arguments.model
    own = stored_recipe(model, arguments.revision)
    if own is None:
        return _named_recipe(default if name is None else name, model)
    if name not in (None, STORED):
        raise BertNumpyError(
            f"{model}: expected format 'stored' of a quantized checkpoint, found {name!r}"
        )
    return own


def _named_recipe(name: str, model: str) -> Recipe:
    """Return the recipe of a name or file, for a checkpoint that is not quantized."""
    if name == STORED:
        raise BertNumpyError(f"{model}: expected a quantized checkpoint for format 'stored'")
    return preset(name)


def compared_recipes(names: str | None, model: str, revision: str | None = None) -> list[Recipe]:
    """Return the recipes of a list with commas, fp32 first, each once; or a checkpoint's own."""
    wanted = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    if wanted == []:
        raise BertNumpyError(f"--formats: expected names between commas, found {names!r}")
    own = stored_recipe(model, revision)
    if own is not None and all(name == STORED for name in wanted or ()):
        return [own]
    if own is not None:
        raise BertNumpyError(
            f"{model}: expected format 'stored' of a quantized checkpoint, found {names!r}"
        )
    compared = ["fp32", *(COMPARED.split(",") if wanted is None else wanted)]
    return [_named_recipe(name, model) for name in dict.fromkeys(compared)]


def accumulated(recipes: list[Recipe], arguments: argparse.Namespace) -> list[Recipe]:
    """Apply ``--accumulate`` and ``--accumulate-rest`` to recipes, in place of their own."""
    if arguments.accumulate is not None:
        _check_accumulate(arguments, recipes)
        recipes = [replace(recipe, accumulate=arguments.accumulate) for recipe in recipes]
    rest = arguments.accumulate_rest
    if rest is None:
        return recipes
    if not any(recipe.arithmetic == "bfloat16" for recipe in recipes):
        names = ", ".join(recipe.name for recipe in recipes)
        refuse(arguments, ["accumulate_rest"], f"a format with bfloat16, found {names}")
    return [
        replace(recipe, accumulate_rest=rest) if recipe.arithmetic == "bfloat16" else recipe
        for recipe in recipes
    ]


def sums_of(recipe: Recipe) -> dict[str, str]:
    """Return the accumulators of a recipe, for a report; that of the rest if there is one."""
    rest = recipe.accumulate_rest
    return {"accumulate": recipe.accumulate} | ({} if rest is None else {"accumulate_rest": rest})


def _check_accumulate(arguments: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Refuse ``--accumulate`` if no product is of codes."""
    sites = [site for recipe in recipes for _, site in recipe.overrides]
    for recipe in recipes:
        sites += [recipe.linear, recipe.scores, recipe.context]
    if not any(site.a.fmt is not None and site.b.fmt is not None for site in sites):
        names = ", ".join(recipe.name for recipe in recipes)
        refuse(arguments, ["accumulate"], f"a format with products of codes, found {names}")


def prepared(arguments: argparse.Namespace, recipes: list[Recipe], test: bool = False) -> Job:
    """Prepare the job that the options of :func:`bert_numpy.commands.options.add_data` describe.

    Without a task it is on ``--texts``, or has no examples and can only be calibrated.

    Raises
    ------
    BertNumpyError
        As :func:`bert_numpy.evaluation.job.prepare` and ``prepare_texts``; or if an option is
        of no use.
    """
    require_together(arguments)
    stored = stored_recipe(arguments.model, arguments.revision) is not None
    check_scales(arguments, recipes, stored=stored)
    options: dict[str, Any] = {
        "calibrated": not stored and any(recipe.calibrated for recipe in recipes),
        "calibration": getattr(arguments, "calibration", None),
        "calibration_data": arguments.calibration_data,
        "calibration_samples": arguments.calibration_samples,
        "limit": getattr(arguments, "limit", None),
        "max_length": arguments.max_length,
        "batch_size": arguments.batch_size,
        "revision": arguments.revision,
        "progress_bar": progress_bar,
    }
    if arguments.task is not None:
        refuse(arguments, ["texts"], f"no --task with it, found {arguments.task}")
        return prepare(arguments.model, arguments.task, arguments.data, test=test, **options)
    texts = getattr(arguments, "texts", None)
    if texts is None:
        refuse(arguments, ["limit"], "--task or --texts with it, found neither")
    job = prepare_texts(arguments.model, texts, **options)
    if job.calibration_texts:
        _note_sentences(arguments, len(job.calibration_texts))
    return job


def results_of(
    arguments: argparse.Namespace, job: Job, recipes: list[Recipe]
) -> Iterator[Evaluation]:
    """Evaluate each recipe on a job in turn, with ``--golden`` and ``--save-calibration``."""
    return run(
        job,
        recipes,
        progress_bar,
        golden=arguments.golden,
        calibration_output=getattr(arguments, "save_calibration", None),
    )


def compared(job: Job, result: Evaluation, reference: Evaluation) -> dict[str, Any]:
    """Return the row of a recipe's results; for vectors its metrics are their similarity."""
    row = comparison_row(result, reference)
    if job.task is EMBEDDINGS:
        row["metrics"] = similarity(reference.logits, result.logits)
    return row


def header(job: Job, golden: bool) -> dict[str, Any]:
    """Return the keys that every report on a job begins with."""
    samples = job.calibration.samples if job.calibration else len(job.calibration_texts)
    return {
        "model": job.model.name,
        "task": job.task.name,
        "examples": len(job.examples),
        "truncated": job.truncated,
        "calibration_samples": samples,
        "golden": golden,
    }


def title(job: Job) -> str:
    """Name the model, the task and the number of examples."""
    return f"{job.model.name}, {job.task.name}, {counted(len(job.examples), 'example')}"


def sentence_scales(
    arguments: argparse.Namespace,
    recipe: Recipe,
    model: Model,
    tokenizer: Tokenizer,
    *,
    paired: bool = False,
) -> Calibration | None:
    """Return the calibration by the options of ``add_sentence_scales``; None if none is needed."""
    if not recipe.calibrated or isinstance(model, QuantizedModel):
        return None
    if arguments.calibration is not None:
        return saved_calibration(arguments.calibration)
    golden = arguments.golden
    if golden:
        refuse_gptq([recipe])
    return calibrated_on_sentences(
        arguments, model, tokenizer, paired=paired, golden=golden, hessians=recipe.by_gptq
    )


def calibrated_on_sentences(
    arguments: argparse.Namespace,
    model: Model,
    tokenizer: Tokenizer,
    *,
    paired: bool = False,
    golden: bool = False,
    hessians: bool = False,
) -> Calibration:
    """Calibrate on sentences by these options, and note which sentences they are.

    Raises
    ------
    BertNumpyError
        As :func:`bert_numpy.evaluation.job.calibrate_on_sentences`.
    """
    calibration = calibrate_on_sentences(
        model,
        tokenizer,
        _sentences(arguments),
        progress_bar,
        samples=arguments.calibration_samples,
        paired=paired,
        golden=golden,
        hessians=hessians,
    )
    _note_sentences(arguments, calibration.samples)
    return calibration


def _note_sentences(arguments: argparse.Namespace, count: int) -> None:
    """Note on standard error which sentences the scales come from."""
    which = f"{count}" if count == arguments.calibration_samples else "the"
    note(f"scales: from {which} sentences of {_sentences(arguments)}")


def _sentences(arguments: argparse.Namespace) -> Path:
    return Path(arguments.calibration_data or REVIEWS / "train.tsv")

"""The command ``demo``: the project's claim in a few seconds, with what the package carries.

It shows the embedded model in each format, then the same function with outlier channels, as
large BERTs have them, and says what was seen. Every number is computed in golden arithmetic
(docs/golden.md), so that the text is the same on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bert_numpy.assets import BASE_SIZE, REVIEWS
from bert_numpy.checkpoints.hub import EMBEDDED
from bert_numpy.commands.findings import (
    base_size_finding,
    format_finding,
    format_name,
    int8_alone_collapses,
    outlier_finding,
)
from bert_numpy.commands.jobs import COMPARED, compared_recipes, header
from bert_numpy.commands.options import AddCommand, add_formats
from bert_numpy.commands.report import (
    Outcome,
    comparison_row,
    note_not_finite,
    print_lines,
    print_rows,
    progress_bar,
)
from bert_numpy.errors import read_json
from bert_numpy.evaluation.evaluate import Evaluation
from bert_numpy.evaluation.job import Job, prepare, run, with_calibration
from bert_numpy.evaluation.outliers import with_outliers
from bert_numpy.model.model import Model, stored_bytes
from bert_numpy.model.sites import sites_of
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.quantization.recipe import Recipe

__all__ = ["add_demo_command", "linear_bytes"]

#: With outliers, unless ``--formats`` names others.
WITH_OUTLIERS = "int8,e4m3"

#: The outlier channels per attention head, and k for each size that they have: 2^k times theirs.
CHANNELS = 4
EXPONENTS = (3, 6, 12)

#: On one core, larger batches than elsewhere take less time. The results do not depend on it.
BATCH_SIZE = 64

_WIDTH = 88

Row = Mapping[str, Any]


def add_demo_command(command: AddCommand) -> None:
    """Add the command."""
    demo = command(
        "demo",
        _demo,
        "Show what INT8 and FP8 do to the embedded model, and why.",
        "",
        "--formats int8-token,e4m3-token",
    )
    demo.add_argument(
        "--golden",
        action="store_true",
        section="recipe",
        help="always on: the demo computes the same bits on every machine",
    )
    add_formats(demo, f"{COMPARED}; {WITH_OUTLIERS} with outliers")


def _demo(arguments: argparse.Namespace) -> Outcome:
    formats = arguments.formats
    recipes = compared_recipes(formats, EMBEDDED)
    _, *tried = compared_recipes(formats or WITH_OUTLIERS, EMBEDDED)
    calibrated = any(recipe.calibrated for recipe in recipes)
    job = prepare(EMBEDDED, "sst2", REVIEWS, calibrated=calibrated, batch_size=BATCH_SIZE)
    job = with_calibration(job, recipes, progress_bar, golden=True)
    results = _results(job, recipes)
    report = header(job, golden=True) | {
        "rows": [
            row | {"linear_bytes": linear_bytes(apply_recipe(job.model, recipe, job.calibration))}
            for row, recipe in zip(_rows(results, results[0]), recipes, strict=True)
        ],
        "outliers": _steps(job, tried, results) if tried else [],
        "base_size": read_json(BASE_SIZE, list),
    }
    return Outcome(report, lambda: _show(report))


def linear_bytes(model: Model) -> int:
    """Count the bytes of the weights of the encoder's linear layers, their scales included."""
    linear = [site.name for site in sites_of(model) if site.kind == "linear"]
    return sum(stored_bytes(model.weights[f"{name}.weight"]) for name in linear)


def _steps(job: Job, recipes: list[Recipe], results: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Evaluate recipes on the same function with larger and larger outlier channels.

    The first step has none: its results are among those given. FP32 takes the most time, and is
    run at the last step alone, to show that the function is the same.
    """
    reference = results[0]
    names = [recipe.name for recipe in recipes]
    found = [result for result in results if result.recipe in names]
    steps: list[dict[str, Any]] = [{"exponent": 0, "rows": _rows(found, reference)}]
    for exponent in EXPONENTS:
        model = with_outliers(job.model, exponent, CHANNELS)
        changed = replace(job, model=model, calibration=None)
        steps.append({"exponent": exponent, "rows": _rows(_results(changed, recipes), reference)})
    (steps[-1]["fp32"],) = _rows(_results(changed, [PRESETS["fp32"]]), reference)
    return steps


def _results(job: Job, recipes: list[Recipe]) -> list[Evaluation]:
    results = list(run(job, recipes, progress_bar, golden=True))
    for result in results:
        note_not_finite(result)
    return results


def _rows(results: Sequence[Evaluation], reference: Evaluation) -> list[dict[str, Any]]:
    """Describe results as ``compare`` does, with how many classes they predict, and a digest."""
    return [
        {
            **comparison_row(result, reference),
            "classes": len(np.unique(result.predictions)),
            "logits_sha256": hashlib.sha256(result.logits.astype("<f4").tobytes()).hexdigest(),
        }
        for result in results
    ]


def _show(report: Row) -> None:
    rows, steps, examples = report["rows"], report["outliers"], report["examples"]
    samples = report["calibration_samples"]
    calibrated = f", calibrated on {samples} others and converted" if samples else ""
    _print_text(
        f"{report['model']} on {examples} reviews{calibrated}; nothing is trained. Flips are "
        "predictions that differ from FP32's. Every digit is the same on every machine."
    )
    print_rows(
        ["format", "flips", "relative logit error", "bytes of linear layers"],
        [[format_name(row), *_change(row), f"{row['linear_bytes']:,}"] for row in rows],
    )
    if len(rows) > 1:
        _print_text(format_finding(rows, examples), "")
    if steps:
        _print_text(
            f"The same function with outlier channels, as large BERTs have them: {CHANNELS} "
            "channels per attention head are 2^k times as large, and the weights that they meet "
            "undo it.",
        )
        print_rows(*_steps_table(steps))
        _print_text(outlier_finding(steps, rows[0], examples), "")
    same = int8_alone_collapses(steps, examples)
    _print_text(base_size_finding(report["base_size"], same))


def _steps_table(steps: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Lay out the steps: a column per format and number; or, if they are too many, a row."""
    names = [format_name(row) for row in steps[0]["rows"]]
    heads = ["outliers", *(f"{name} {what}" for name in names for what in ("flips", "error"))]
    if sum(map(len, heads)) + 3 * len(heads) + 1 <= _WIDTH:
        cells = [[cell for row in step["rows"] for cell in _change(row)] for step in steps]
        return heads, [[_size(step), *line] for step, line in zip(steps, cells, strict=True)]
    return ["format", "outliers", "flips", "relative logit error"], [
        [name, _size(step), *_change(step["rows"][place])]
        for place, name in enumerate(names)
        for step in steps
    ]


def _size(step: Row) -> str:
    return f"2^{step['exponent']}" if step["exponent"] else "none"


def _change(row: Row) -> tuple[str, str]:
    return f"{row['flips']:,}", f"{row['relative_logit_error']:.4f}"


def _print_text(*paragraphs: str) -> None:
    """Print paragraphs in lines of some width; an empty one is an empty line."""
    for text in paragraphs:
        print_lines(*textwrap.wrap(text, _WIDTH, break_on_hyphens=False) or [""])

"""Fill the paper's tables: every model and task, every recipe; one run that can be resumed.

    python scripts/reproduce_paper.py --out DIR MODEL:TASK:DATA[:CALIBRATION_DATA] ...
        [--recipes [TASK=]LIST]... [--limit N] [--cell N] [--workers N | --scheduler ADDRESS]

The cells (a recipe on a part of a task's examples) are pure and independent. They
run as tasks of dask.distributed (extra: study), on a local cluster of processes
or on the scheduler at ADDRESS, whose workers need this package and the same
paths. Each cell writes a file in DIR/cells and is not run again if its file exists. So an
interrupted run, or one whose workers were lost, continues where it stopped. The
tables do not depend on the number of workers: each has one BLAS thread, and the
results are joined in the order of the examples.

`--recipes squad=fp32,int8,e4m3` is the list for one task, `--recipes LIST` the list for
all others; by default they are all presets but those by GPTQ, whose calibrations are other ones
(study_tradeoff.py). The script writes DIR/results.json, .csv and .md, and figures as PNG files:
headline.png (the first metric by format), difference.png (by recipe), and a model's
operands. publish_results.py puts results.json into the documentation.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_numpy.commands.figures import draw_histogram, draw_sqnr
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.calibration import load_calibration
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.study.cells import (
    Subject,
    calibrate_subject,
    cells_of,
    compare_results,
    merged,
    subject_in,
)
from bert_numpy.study.cluster import add_cluster_options, connect, run_cells
from bert_numpy.study.figures import draw_differences, draw_headline
from bert_numpy.study.tables import accuracy_tables, headline, summary

#: The operand whose elements are drawn: the output of GELU.
HISTOGRAM = "encoder.layer.1.output.dense:a"


def recipes_by_task(lists: Sequence[str], tasks: Sequence[str]) -> dict[str, list[Recipe]]:
    """List the recipes per task, FP32 first, from texts like ``fp32,int8`` and ``squad=fp32``.

    Raises
    ------
    BertNumpyError
        If a list is for a task outside the study, or a recipe is unknown.
    """
    named = {"": ",".join(name for name, recipe in PRESETS.items() if not recipe.by_gptq)}
    for text in lists:
        task, _, names = text.rpartition("=")
        if task and task not in tasks:
            raise BertNumpyError(f"--recipes {text}: expected one of {', '.join(tasks)}")
        named[task] = names
    return {
        task: [
            preset(name) for name in dict.fromkeys(f"fp32,{named.get(task, named[''])}".split(","))
        ]
        for task in tasks
    }


def run_study(
    subjects: Sequence[Subject],
    recipes: Mapping[str, Sequence[Recipe]],
    out: Path,
    client: Any,
    size: int,
) -> list[dict[str, Any]]:
    """Run the missing cells, and return a row per subject and recipe of its task."""
    calibrating = client.map(calibrate_subject, subjects, pure=False)
    client.gather(calibrating)
    folder = out / "cells"
    cells = {
        (subject, recipe.name): cells_of(subject, recipe, folder, size)
        for subject in subjects
        for recipe in recipes[subject.task]
    }
    run_cells([cell for part in cells.values() for cell in part], client)
    rows = []
    for subject in subjects:
        reference = merged(cells[subject, "fp32"])
        for recipe in recipes[subject.task]:
            row = compare_results(merged(cells[subject, recipe.name]), reference)
            named = {"model": Path(subject.model).name, "task": subject.task, "recipe": recipe.name}
            rows.append({**named, "examples": len(reference.labels), **row})
    return rows


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Make the headline's table, the summary, and a table per model and task."""
    return f"{headline(rows)}\n{summary(rows)}{accuracy_tables(rows)}"


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows as CSV with one line per row and all columns of all tasks."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="+", metavar="MODEL:TASK:DATA[:CALIBRATION_DATA]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--recipes",
        action="append",
        default=[],
        metavar="[TASK=]LIST",
        help="names, or .json files, of one task or of all others; by default every name",
    )
    parser.add_argument("--limit", type=int, help="only the first so many examples of each task")
    add_cluster_options(parser)
    arguments = parser.parse_args()

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    subjects = []
    for text in arguments.subjects:
        model, task, data, *other = text.split(":")
        subjects.append(subject_in(out, model, task, data, *other or [None], arguments.limit))
    recipes = recipes_by_task(arguments.recipes, [subject.task for subject in subjects])

    with connect(arguments.workers, arguments.scheduler) as client:
        rows = run_study(subjects, recipes, out, client, arguments.cell)
    for row in rows:
        if row["not_finite"]:
            print(
                f"{row['model']} {row['task']} {row['recipe']}: {row['not_finite']} of "
                f"{row['examples']} predictions are none: NaN or infinity",
                file=sys.stderr,
            )
    write_json(str(out / "results.json"), rows)
    write_text(out / "results.csv", comma_separated(rows))
    write_text(out / "results.md", markdown(rows))
    draw_headline(rows, out / "headline.png")
    draw_differences(rows, out / "difference.png")
    for subject in subjects:
        stem = f"{Path(subject.model).name}-{subject.task}"
        operands = load_calibration(subject.calibration).operands
        draw_sqnr(
            {n: s for n, s in operands.items() if n.startswith("encoder.")},
            out / f"sqnr-{stem}.png",
        )
        draw_histogram(HISTOGRAM, operands[HISTOGRAM], out / f"histogram-{stem}.png")
    print(markdown(rows))


if __name__ == "__main__":
    main()

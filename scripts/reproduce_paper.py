"""Fill the paper's tables: every model and task, every recipe; one run that can be resumed.

    python scripts/reproduce_paper.py --out DIR MODEL:TASK:DATA[:CALIBRATION_DATA] ...
        [--recipes LIST] [--limit N] [--cell N] [--workers N | --scheduler ADDRESS]

The cells (a recipe on a part of a task's examples) are pure and independent, and
run as tasks of dask.distributed (extra: study): on a local cluster of processes,
or on the scheduler at ADDRESS, whose workers need this package and the same
paths. Each cell writes a file in DIR/cells; what is there is not run again, so a
run that was cut off, or whose workers were lost, goes on where it stopped. The
tables do not depend on the number of workers: each has one BLAS thread, and the
results are put together in the examples' order.

Writes DIR/results.json, .csv and .md, and figures as PNG files.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.commands.figures import draw_histogram, draw_sqnr, save_figure, subplots
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.quantization.calibration import load_calibration
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.study.cells import Subject, calibrate_subject, cells_of, compare_results, merged
from bert_numpy.study.cluster import add_cluster_options, connect, run_cells

#: The operand whose elements are drawn: what GELU gives.
HISTOGRAM = "encoder.layer.1.output.dense:a"


def run_study(
    subjects: Sequence[Subject], recipes: Sequence[Recipe], out: Path, client: Any, size: int
) -> list[dict[str, Any]]:
    """Run what has not been run yet; returns a row for each subject and recipe."""
    calibrating = client.map(calibrate_subject, subjects, pure=False)
    client.gather(calibrating)
    folder = out / "cells"
    cells = {
        (subject, recipe.name): cells_of(subject, recipe, folder, size)
        for subject in subjects
        for recipe in recipes
    }
    run_cells([cell for part in cells.values() for cell in part], client)
    rows = []
    for subject in subjects:
        reference = merged(cells[subject, "fp32"])
        for recipe in recipes:
            row = compare_results(merged(cells[subject, recipe.name]), reference)
            named = {"model": Path(subject.model).name, "task": subject.task, "recipe": recipe.name}
            rows.append({**named, "examples": len(reference.labels), **row})
    return rows


# Tables


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table of all: what each recipe changes against FP32, on every model."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [
        "Difference of the first metric from FP32 in points (in bold where its 95 % interval does "
        "not reach zero) / flips, of scores the mean absolute difference / relative logit error:",
        "",
        f"| recipe | {' | '.join(models)} |",
        "| --- |" + " ---: |" * len(models),
    ]
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        cells = [recipe]
        for row in (row for row in rows if row["recipe"] == recipe):
            low, high = row["interval"]
            points = f"{100 * row['difference']:+.2f}"
            change = row.get("flips", f"{row.get('mean_abs_difference', 0):.3f}")
            shown = f"**{points}**" if low > 0 or high < 0 else points
            cells.append(f"{shown} / {change} / {row['relative_logit_error']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary, and a table for each model and task."""
    text = io.StringIO(summary(rows))
    text.seek(0, io.SEEK_END)
    for key in dict.fromkeys((row["model"], row["task"]) for row in rows):
        part = [row for row in rows if (row["model"], row["task"]) == key]
        change = "flips" if "flips" in part[0] else "mean_abs_difference"
        metrics = [
            name
            for name in part[0]
            if name
            not in {"model", "task", "recipe", "examples", "relative_logit_error", change}
            | {"difference", "interval", "not_finite"}
        ]
        heads = ["recipe", *metrics, "difference (95 % interval)", change, "relative logit error"]
        print(f"### {key[0]}, {key[1]}, {part[0]['examples']} examples\n", file=text)
        print(f"| {' | '.join(head.replace('_', ' ') for head in heads)} |", file=text)
        print("| --- |" + " ---: |" * (len(heads) - 1), file=text)
        for row in part:
            low, high = (100 * x for x in row["interval"])
            none = f" ({row['not_finite']} not finite)" if row["not_finite"] else ""
            cells = [row["recipe"] + none, *(f"{100 * row[name]:.2f}" for name in metrics)]
            cells.append(f"{100 * row['difference']:+.2f} ({low:+.2f}..{high:+.2f})")
            cells.append(f"{row[change]:.4f}" if change != "flips" else str(row[change]))
            cells.append(f"{row['relative_logit_error']:.4f}")
            print(f"| {' | '.join(cells)} |", file=text)
        print(file=text)
    return text.getvalue()


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a row, all columns of all tasks."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# Figures


def draw_drop(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The first metric's difference from FP32, by recipe, with its interval."""
    recipes = [name for name in dict.fromkeys(row["recipe"] for row in rows) if name != "fp32"]
    keys = list(dict.fromkeys((row["model"], row["task"]) for row in rows))
    figure, axes = subplots(ncols=len(keys), figsize=(3 * len(keys) + 1.5, 5), sharey=True)
    for axis, key in zip(np.atleast_1d(axes), keys, strict=True):
        for place, recipe in enumerate(recipes):
            row = next(
                row for row in rows if (row["model"], row["task"], row["recipe"]) == (*key, recipe)
            )
            low, high = (100 * x for x in row["interval"])
            colour = "tab:red" if recipe.startswith("int8") else "tab:blue"
            axis.plot([low, high], [place, place], color=colour, alpha=0.4)
            axis.plot(100 * row["difference"], place, "o", color=colour, markersize=4)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(f"{key[0]}\n{key[1]}", fontsize=9)
        axis.set_xlabel("points against FP32")
    np.atleast_1d(axes)[0].set_yticks(range(len(recipes)), recipes)
    np.atleast_1d(axes)[0].invert_yaxis()
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="+", metavar="MODEL:TASK:DATA[:CALIBRATION_DATA]")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", default=",".join(PRESETS), help="names, or .json files")
    parser.add_argument("--limit", type=int, help="only the first so many examples of each task")
    parser.add_argument("--cell", type=int, default=512, metavar="N", help="examples in a cell")
    add_cluster_options(parser)
    arguments = parser.parse_args()

    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    names = ["fp32", *(name for name in arguments.recipes.split(",") if name != "fp32")]
    recipes = [preset(name) for name in names]
    subjects = []
    for text in arguments.subjects:
        model, task, data, *other = text.split(":")
        calibration = out / f"calibration-{Path(model).name}-{task}.safetensors"
        subjects.append(
            Subject(model, task, data, str(calibration), *other or [None], limit=arguments.limit)
        )

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
    draw_drop(rows, out / "difference.png")
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

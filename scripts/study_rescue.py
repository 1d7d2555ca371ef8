"""Measure how far INT8 recovers on a task with its most sensitive sites in bfloat16.

    python scripts/study_rescue.py MODEL --task cola --data DIR --out DIR
        --ranking SENSITIVITY.json [--places output.dense] [--kept 0 1 2 4 6 12]
        [--recipes int8,int8-channel] [--calibration-data DATA] [--limit N]
        [--cell N] [--workers N | --scheduler ADDRESS]

The ranking comes from study_sensitivity.py. The numbers of --kept say how many of its sites
at --places, from the first on, are kept in bfloat16. Each recipe and number gets a row with
the metrics, the 95 % interval of the difference from FP32, flips and the relative logit
error. The runs are cells of a study (see reproduce_paper.py); with the same --out the
calibration and the cells of reproduce_paper.py are used. The script writes
DIR/rescue-MODEL-TASK.json and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError, read_json
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.study.cells import Subject, calibrate_subject, compare_results
from bert_numpy.study.cluster import add_cluster_options, connect, results_of
from bert_numpy.study.options import add_subject_options, subject_of
from bert_numpy.study.sites import ranked
from bert_numpy.study.tables import rescue_table


def study(
    subject: Subject,
    recipes: Sequence[Recipe],
    ranking: Sequence[str],
    kept: Sequence[int],
    out: Path,
    client: Any,
    size: int = 512,
) -> list[dict[str, Any]]:
    """Run the missing cells, and return a row per recipe and number of sites kept.

    Raises
    ------
    BertNumpyError
        If more sites are to be kept than the ranking has.
    """
    for count in kept:
        if not 0 <= count <= len(ranking):
            raise BertNumpyError(f"--kept: expected 0..{len(ranking)} sites, found {count}")
    calibrate_subject(subject)
    runs = [(recipe, count) for recipe in recipes for count in kept]
    reference, *results = results_of(
        subject,
        [PRESETS["fp32"], *(recipe.skipping(*ranking[:count]) for recipe, count in runs)],
        out / "cells",
        client,
        size,
    )
    return [
        {
            "model": Path(subject.model).name,
            "task": subject.task,
            "recipe": recipe.name,
            "kept": count,
            "sites": list(ranking[:count]),
            "examples": len(reference.labels),
            **compare_results(result, reference),
        }
        for (recipe, count), result in zip(runs, results, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--ranking", type=Path, required=True, metavar="SENSITIVITY.json")
    parser.add_argument("--places", nargs="+", default=["output.dense"], metavar="PLACE")
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 1, 2, 4, 6, 12], metavar="N")
    parser.add_argument("--recipes", default="int8,int8-channel", metavar="LIST")
    add_cluster_options(parser)
    arguments = parser.parse_args()

    out: Path = arguments.out
    subject = subject_of(arguments)
    ranking = ranked(read_json(arguments.ranking), arguments.places)
    recipes = [preset(name) for name in arguments.recipes.split(",")]
    with connect(arguments.workers, arguments.scheduler) as client:
        rows = study(subject, recipes, ranking, arguments.kept, out, client, arguments.cell)
    name = f"rescue-{Path(subject.model).name}-{subject.task}"
    write_json(str(out / f"{name}.json"), rows)
    write_text(out / f"{name}.md", rescue_table(rows))
    print(rescue_table(rows))


if __name__ == "__main__":
    main()

"""Find the sites that quantization hurts: kinds of sites and single sites, alone and left out.

    python scripts/study_sensitivity.py MODEL --task mrpc --data DIR --out DIR
        [--calibration-data DATA] [--recipe int8] [--runs groups,alone,without,steps]
        [--places output.dense ...] [--budget 5] [--limit N]
        [--cell N] [--workers N | --scheduler ADDRESS]

Sites that are not quantized stay in bfloat16. `--runs` chooses the runs:

- groups: all sites of a kind (GELU's outputs, query, key and value, ...) alone, and all others.
- alone: each site alone. This ranks the sites.
- without: all sites except one. This does not rank them, since their errors partly cancel.
- steps: the worst sites are kept in bfloat16 until no more than --budget predictions change.
  The number is searched by doubling and halving: it is enough, while one site less is not.

`--places` ranks and keeps only the sites at some places in the layers.
The runs are cells of a study (see reproduce_paper.py): they are spread over processes,
and resumed where they stopped. With the same --out the calibration and the cells of
reproduce_paper.py are used. The script writes DIR/sensitivity-MODEL-TASK.json and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.load import load
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.study.cells import Subject, calibrate_subject
from bert_numpy.study.cluster import add_cluster_options, connect, results_of
from bert_numpy.study.options import add_subject_options, subject_of
from bert_numpy.study.sites import by_place, fewest, grouped, only
from bert_numpy.study.tables import sensitivity_tables

RUNS = ("groups", "alone", "without", "steps")


def study(
    subject: Subject,
    base: Recipe,
    out: Path,
    client: Any,
    size: int = 512,
    runs: Collection[str] = RUNS,
    places: Collection[str] = (),
    budget: int = 5,
) -> dict[str, Any]:
    """Run the requested cells that have no file yet, and return the report.

    Raises
    ------
    BertNumpyError
        If a run or a place does not exist, or if steps are requested without a ranking.
    """
    for run in runs:
        if run not in RUNS:
            raise BertNumpyError(f"--runs: expected some of {', '.join(RUNS)}, found {run!r}")
    if "steps" in runs and "alone" not in runs:
        raise BertNumpyError("--runs steps: expected alone with it, which ranks the sites")
    every = encoder_sites(load(subject.model).config)
    at_place = by_place(every)
    for place in places:
        if place not in at_place:
            raise BertNumpyError(
                f"--places: expected some of {', '.join(at_place)}, found {place!r}"
            )
    sites = [site for place in places or at_place for site in at_place[place]]
    calibrate_subject(subject)

    def changes(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
        """Compare each recipe with FP32."""
        reference, *results = results_of(
            subject, [PRESETS["fp32"], *recipes], out / "cells", client, size
        )
        return [compare_with(reference, result) | {"n": len(result.labels)} for result in results]

    def both(
        kind: str, names: Sequence[str], parts: Sequence[Sequence[str]], what: Collection[str]
    ):
        """Make rows for names quantized alone, and left out."""
        alone = changes([only(base, part) for part in parts]) if "alone" in what else None
        without = changes([base.skipping(*part) for part in parts]) if "without" in what else None
        return [
            {kind: name, "sites": len(part)}
            | ({"alone": alone[i]} if alone else {})
            | ({"without": without[i]} if without else {})
            for i, (name, part) in enumerate(zip(names, parts, strict=True))
        ]

    (whole,) = changes([base])
    groups: list[dict[str, Any]] = []
    if "groups" in runs:
        found = grouped(every)
        groups = both("group", [*found], [*found.values()], ("alone", "without"))
        groups.sort(key=lambda row: -row["alone"]["relative_logit_error"])
    rows: list[dict[str, Any]] = []
    if {"alone", "without"} & set(runs):
        rows = both("site", sites, [[site] for site in sites], runs)
        if "alone" in runs:
            rows.sort(key=lambda row: -row["alone"]["relative_logit_error"])
    ranking = [str(row["site"]) for row in rows]
    steps: dict[int, dict[str, Any]] = {}

    def enough(count: int) -> bool:
        (steps[count],) = changes([base.skipping(*ranking[:count])])
        return bool(steps[count]["flips"] <= budget)

    least = None
    if "steps" in runs and "flips" in whole:  # scores have no predictions that flip
        least = fewest(enough, len(ranking))
    return {
        "model": Path(subject.model).name,
        "task": subject.task,
        "examples": whole["n"],
        "recipe": base.name,
        "budget": budget,
        "all": whole,
        "groups": groups,
        "sites": rows,
        "steps": [{"kept": ranking[:count], **steps[count]} for count in sorted(steps)],
        "suggestion": None if least is None else ranking[:least],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--runs", default=",".join(RUNS), metavar="LIST")
    parser.add_argument("--places", nargs="+", default=[], metavar="PLACE")
    parser.add_argument("--budget", type=int, default=5, metavar="FLIPS")
    add_cluster_options(parser)
    arguments = parser.parse_args()

    out: Path = arguments.out
    subject = subject_of(arguments)
    with connect(arguments.workers, arguments.scheduler) as client:
        report = study(
            subject,
            preset(arguments.recipe),
            out,
            client,
            arguments.cell,
            arguments.runs.split(","),
            arguments.places,
            arguments.budget,
        )
    name = f"sensitivity-{report['model']}-{report['task']}"
    text = sensitivity_tables(report)
    write_json(str(out / f"{name}.json"), report)
    write_text(out / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()

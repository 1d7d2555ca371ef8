"""Which sites quantization hurts: one site at a time, and all but one.

    python scripts/study_sensitivity.py MODEL --task mrpc --data DIR --out DIR
        [--recipe int8] [--budget 5] [--limit N] [--workers N | --scheduler ADDRESS]

Each site is quantized alone, and all sites but it, by a recipe; the rest stays
in bfloat16. Sites are ranked by the error that each makes alone: what leaving one
out saves is no ranking, since the sites' errors partly cancel. Then the worst are
kept in bfloat16, one more at a time, until no more than --budget predictions
change: the smallest such set in this order is the suggestion.
The runs are cells of a study (see reproduce_paper.py): spread over processes,
and resumed where they stopped. Writes DIR/sensitivity.json and .md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.load import load
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.recipe import PRESETS, Recipe, preset
from bert_numpy.study.cells import Subject, calibrate_subject, cells_of, merged
from bert_numpy.study.cluster import add_cluster_options, connect, run_cells
from npfp8.files import replaced_file


def markdown(report: dict[str, Any]) -> str:
    """The ranking as a table, and the suggestion."""
    whole = report["all"]
    unit = "flips" if "flips" in whole else "mean_abs_difference"
    lines = [
        f"{report['model']}, {report['task']}, {report['examples']} examples, {report['recipe']}: "
        f"all sites {whole[unit]} {unit.replace('_', ' ')}, relative logit error "
        f"{whole['relative_logit_error']:.4f}",
        "",
        f"| site | alone: {unit} | error | all but it: {unit} | error |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in report["sites"]:
        cells = [row["site"]]
        for part in (row["alone"], row["without"]):
            number = part[unit]
            cells += [str(number) if unit == "flips" else f"{number:.4f}"]
            cells += [f"{part['relative_logit_error']:.4f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if report["suggestion"] is not None:
        lines += ["", f"Kept in bfloat16 for at most {report['budget']} flips: "]
        lines[-1] += ", ".join(report["suggestion"]) or "none"
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--budget", type=int, default=5, metavar="FLIPS")
    parser.add_argument("--limit", type=int)
    add_cluster_options(parser)
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    subject = Subject(
        arguments.model,
        arguments.task,
        arguments.data,
        str(arguments.out / "calibration.safetensors"),
        limit=arguments.limit,
    )
    calibrate_subject(subject)
    base = preset(arguments.recipe)
    sites = encoder_sites(load(arguments.model).config)

    def only(site: str) -> Recipe:
        rest = base.skipping("encoder.*")
        return replace(rest, overrides=(*rest.overrides, (site, base.site(site))))

    with connect(arguments.workers, arguments.scheduler) as client:

        def changes(recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
            """What each recipe changes against float32."""
            every = [
                cells_of(subject, recipe, str(arguments.out / "cells"))
                for recipe in (PRESETS["fp32"], *recipes)
            ]
            run_cells([cell for cells in every for cell in cells], client)
            reference, *results = (merged(cells) for cells in every)
            return [compare_with(reference, result) for result in results]

        skipped = [base.skipping(site) for site in sites]
        whole, *parts = changes([base, *map(only, sites), *skipped])
        rows = [
            {"site": site, "alone": alone, "without": without}
            for site, alone, without in zip(
                sites, parts[: len(sites)], parts[len(sites) :], strict=True
            )
        ]
        rows.sort(key=lambda row: -row["alone"]["relative_logit_error"])
        ranked = [str(row["site"]) for row in rows]
        steps = [
            {"kept": ranked[:count], **change}
            for count, change in enumerate(
                changes([base.skipping(*ranked[:count]) for count in range(len(ranked) + 1)])
            )
        ]
    enough = [step["kept"] for step in steps if step.get("flips", math.inf) <= arguments.budget]
    report = {
        "model": Path(arguments.model).name,
        "task": arguments.task,
        "examples": merged(cells_of(subject, base, str(arguments.out / "cells"))).logits.shape[0],
        "recipe": base.name,
        "budget": arguments.budget,
        "all": whole,
        "sites": rows,
        "steps": steps,
        "suggestion": enough[0] if enough else None,
    }
    text = markdown(report)
    for name, content in (
        ("sensitivity.json", json.dumps(report, indent=1) + "\n"),
        ("sensitivity.md", text),
    ):
        with replaced_file(arguments.out / name) as file:
            file.write(content.encode())
    print(text)


if __name__ == "__main__":
    main()

"""Which sites quantization hurts: one site at a time, and all but one.

    python scripts/study_sensitivity.py MODEL --task mrpc --data DIR --out DIR
        [--recipe int8] [--budget 5] [--limit N]

Each site is quantized alone, and all sites but it, by a recipe; the rest stays
in bfloat16. Sites are ranked by what leaving them out saves. Then the sites that
save most are kept in bfloat16, one more at a time, until no more than --budget
predictions change: the smallest such set in this order is the suggestion.
Writes DIR/sensitivity.json and .md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_numpy.evaluation import Evaluation, calibrate_on, compare_with
from bert_numpy.job import evaluate_job, prepare
from bert_numpy.model import encoder_sites
from bert_numpy.quantization import apply_recipe
from bert_numpy.recipe import PRESETS, Recipe, preset
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
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    job = prepare(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    calibration = calibrate_on(job.model, job.calibration_texts, job.batch_size)
    base = preset(arguments.recipe)
    sites = encoder_sites(job.model.config)

    def evaluated(recipe: Recipe) -> Evaluation:
        return evaluate_job(job, apply_recipe(job.model, recipe, calibration))

    reference = evaluated(PRESETS["fp32"])

    def change(recipe: Recipe) -> dict[str, Any]:
        result = compare_with(reference, evaluated(recipe))
        return {key: result[key] for key in ("flips", "mean_abs_difference") if key in result} | {
            "relative_logit_error": result["relative_logit_error"]
        }

    whole = change(base)
    print("all sites:", whole, flush=True)
    rows = []
    for site in sites:
        alone = replace(base.skipping("encoder.*"), name=site)
        alone = replace(alone, overrides=(*alone.overrides, (site, base.site(site))))
        rows.append({"site": site, "alone": change(alone), "without": change(base.skipping(site))})
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: row["without"]["relative_logit_error"])

    kept: list[str] = []
    steps = []
    suggestion = None
    if "flips" in whole:
        for row in [None, *rows]:
            if row is not None:
                kept.append(str(row["site"]))
            step = {"kept": list(kept), **change(base.skipping(*kept))}
            steps.append(step)
            print(len(kept), step["flips"], flush=True)
            if step["flips"] <= arguments.budget:
                suggestion = list(kept)
                break
    report = {
        "model": job.model.name,
        "task": job.task.name,
        "examples": len(job.examples),
        "recipe": base.name,
        "budget": arguments.budget,
        "all": whole,
        "sites": rows,
        "steps": steps,
        "suggestion": suggestion,
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

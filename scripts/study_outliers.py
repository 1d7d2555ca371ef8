"""Show why INT8 loses where FP8 holds, by one function with ever larger outlier channels.

    python scripts/study_outliers.py MODEL --task mrpc --data DIR --out DIR [--limit N]

Query and value channels of each head are scaled by 2^k, key channels and the
attention output's columns by 2^-k (bert_numpy/evaluation/outliers.py). The checkpoint's
float32 output stays the same, but its activations get the outlier channels of
large models. The report has the metrics, flips and relative logit error
against float32 per k and recipe. The script writes DIR/outliers.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_numpy.colors import color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.evaluation.evaluate import calibrate_on, compare_with
from bert_numpy.evaluation.job import evaluate_job, prepare
from bert_numpy.evaluation.outliers import with_outliers
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.presets import PRESETS
from npfp8.files import replaced_file

#: How the curve of a recipe is drawn, by what its name adds to its format's.
STYLES = {"": "o-", "channel": "s--", "percentile": "^:", "token": "D-."}

RECIPES = ("int8", "int8-channel", "int8-percentile", "int8-token", "e4m3", "e4m3-token", "e5m2")


def draw(rows: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """Draw the relative logit error and a metric by the outliers' size, a curve per recipe."""
    figure, (above, below) = subplots(nrows=2, sharex=True, figsize=(WIDTH, 6.2))
    for name in dict.fromkeys(row["recipe"] for row in rows):
        part = [row for row in rows if row["recipe"] == name]
        exponents = [row["exponent"] for row in part]
        style: dict[str, Any] = {"color": color_of(name), "markersize": 4}
        kind = STYLES.get(name.partition("-")[2], "o-")
        if any(row["relative_logit_error"] for row in part):  # not float32's own, on a log scale
            above.plot(exponents, [row["relative_logit_error"] for row in part], kind, **style)
        below.plot(exponents, [100 * row[metric] for row in part], kind, label=name, **style)
    above.set_yscale("log")
    above.set_ylabel("relative logit error", fontsize=9)
    below.set_ylabel(f"{metric.replace('_', ' ')}, %", fontsize=9)
    below.set_xlabel("k: outlier channels are $2^k$ times as large", fontsize=9)
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--channels", type=int, default=4, help="of each head")
    parser.add_argument("--exponents", type=int, nargs="+", default=[0, 2, 4, 6, 8, 10, 12, 14])
    arguments = parser.parse_args()

    arguments.out.mkdir(parents=True, exist_ok=True)
    job = prepare(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    rows: list[dict[str, Any]] = []
    reference = evaluate_job(job, apply_recipe(job.model, PRESETS["fp32"]))
    for exponent in arguments.exponents:
        model = with_outliers(job.model, exponent, arguments.channels)
        calibration = calibrate_on(model, job.calibration_texts, job.batch_size)
        for name in ("fp32", *RECIPES):
            result = evaluate_job(job, apply_recipe(model, PRESETS[name], calibration))
            rows.append(
                {"exponent": exponent, "recipe": name}
                | result.metrics
                | compare_with(reference, result)
            )
            print(rows[-1], flush=True)

    metric = next(iter(reference.metrics))
    change = "flips" if "flips" in rows[0] else "mean_abs_difference"
    names = ["fp32", *RECIPES]
    lines = [
        f"{job.model.name}, {job.task.name}, {len(job.examples)} examples: {change} "
        f"(relative logit error) against float32, by the outliers' size",
        "",
        "| recipe | " + " | ".join(f"2^{k}" for k in arguments.exponents) + " |",
        "| --- |" + " ---: |" * len(arguments.exponents),
    ]
    for name in names:
        part = [row for row in rows if row["recipe"] == name]
        cells = [
            (f"{row[change]:.3f}" if change != "flips" else str(row[change]))
            + f" ({row['relative_logit_error']:.3f})"
            for row in part
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    draw(rows, metric, arguments.out / "outliers.png")
    text = "\n".join(lines) + "\n"
    for name, content in (
        ("outliers.json", json.dumps(rows, indent=1) + "\n"),
        ("outliers.md", text),
    ):
        with replaced_file(arguments.out / name) as file:
            file.write(content.encode())
    print(text)


if __name__ == "__main__":
    main()

"""Compare post-training quantization with quantization-aware training.

    python scripts/study_qat.py run MODEL --task sst2 --data GLUE/SST-2 --out DIR
        --way ptq|more|qat --recipe int8 --seed 0 [--epochs 1] [--rate 3e-5] [--limit N]
    python scripts/study_qat.py list MODEL --task sst2 --data GLUE/SST-2 --out DIR
        [--recipes int8,e4m3] [--seeds 3]
    python scripts/study_qat.py report --out DIR

MODEL is fine-tuned on the task. The ways are: "ptq" quantizes it as it is, calibrated on 256 texts
of the training set; "more" first trains it for some more steps in float32; "qat" trains it for as
many steps with fake quantization, and quantizes it with the ranges that its training has followed.
So "more" shows what the steps alone are worth. The reference of flips and errors is MODEL in
float32; for "more" and "qat", the model trained in float32 with the same seed.

``run`` writes DIR/MODEL-TASK-WAY-RECIPE-SEED.json, unless it is there; ``list`` prints such a
command per line; ``report`` writes DIR/qat.md, qat.json and the figure qat.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.colors import COLORS, color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.evaluation.evaluate import Evaluation, compare_with
from bert_numpy.study.training import (
    FLOAT32,
    Lesson,
    add_run_options,
    lesson,
    main_metric,
    mean_and_deviation,
    products_of,
    read_records,
    run_command,
    stopwatch,
    training_of,
    write_record,
    write_report,
)
from bert_numpy.training.fake_quantization import FakeQuantizedProducts, quantized_model
from bert_numpy.training.fit import Fitted, Training, fit

#: The ways to a quantized model, with their names in tables.
WAYS = {
    "ptq": "quantized after training",
    "more": "more steps in float32, then quantized",
    "qat": "as many steps of quantization-aware training",
}


def record_file(out: Path, model: str, task: str, way: str, recipe: str, seed: int) -> Path:
    return out / f"{Path(model).name}-{task}-{way}-{recipe}-{seed}.json"


def trained(learned: Lesson, training: Training, name: str) -> Fitted:
    """Train a copy of the model with the products of the given name."""
    products = products_of(name, learned, training.batch_size)
    return fit(learned.model, learned.train, learned.train_labels, training, products=products)


def compared(evaluation: Evaluation, reference: Evaluation) -> dict[str, Any]:
    return {
        **evaluation.metrics,
        "not_finite": evaluation.not_finite,
        **compare_with(reference, evaluation),
    }


def measure(
    learned: Lesson, training: Training, way: str, recipe: str
) -> dict[str, dict[str, Any]]:
    """Return the results of one way: those of the reference in float32, and quantized.

    For "qat" there are two ways to quantize, by the ranges followed, and by a calibration.
    """
    model = learned.model if way == "ptq" else trained(learned, training, FLOAT32).model
    reference = learned.evaluated(learned.quantized(model, "fp32"))
    found = {"fp32": compared(reference, reference)}
    if way != "qat":
        found["quantized"] = compared(
            learned.evaluated(learned.quantized(model, recipe)), reference
        )
        return found
    fitted = trained(learned, training, f"qat-{recipe}")
    assert isinstance(fitted.products, FakeQuantizedProducts)
    found["trained in float32 arithmetic"] = compared(
        learned.evaluated(learned.quantized(fitted.model, "fp32")), reference
    )
    by_ranges = quantized_model(fitted.model, fitted.products)
    found["quantized"] = compared(learned.evaluated(by_ranges), reference)
    found["calibrated"] = compared(
        learned.evaluated(learned.quantized(fitted.model, recipe)), reference
    )
    return found


def run(arguments: argparse.Namespace) -> None:
    names = (arguments.model, arguments.task, arguments.way, arguments.recipe, arguments.seed)
    file = record_file(arguments.out, *names)
    if file.exists():
        return
    learned = lesson(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    watch = stopwatch()
    results = measure(learned, training_of(arguments), arguments.way, arguments.recipe)
    record = {
        "model": Path(arguments.model).name,
        "task": arguments.task,
        "way": arguments.way,
        "recipe": arguments.recipe,
        "seed": arguments.seed,
        "epochs": arguments.epochs,
        "rate": arguments.rate,
        **watch(),
        "results": results,
    }
    write_record(file, record)
    print(f"{file.stem}: {results} in {record['seconds']:.0f} s", file=sys.stderr)


def list_runs(arguments: argparse.Namespace) -> None:
    for way in WAYS:
        for recipe in arguments.recipes.split(","):
            for seed in range(1 if way == "ptq" else arguments.seeds):
                names = (arguments.model, arguments.task, way, recipe, seed)
                if not record_file(arguments.out, *names).exists():
                    print(run_command(__file__, arguments, way=way, recipe=recipe, seed=seed))


Grouped = dict[tuple[str, str], dict[tuple[str, str], list[Mapping[str, Any]]]]


def grouped(records: Sequence[Mapping[str, Any]]) -> Grouped:
    """Sort records by model and task, then by recipe and way."""
    found: Grouped = {}
    recipes = list(dict.fromkeys(record["recipe"] for record in records))
    for model, task in dict.fromkeys((record["model"], record["task"]) for record in records):
        for recipe in recipes:
            for way in WAYS:
                wanted = (model, task, recipe, way)
                chosen = [
                    r for r in records if (r["model"], r["task"], r["recipe"], r["way"]) == wanted
                ]
                if chosen:
                    ordered = sorted(chosen, key=lambda r: r["seed"])
                    found.setdefault((model, task), {})[recipe, way] = ordered
    return found


def table_of(found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Make the table of a model and task."""
    lines = [
        "| recipe | way | in float32, % | quantized, % | difference by seed | flips | "
        "relative logit error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (recipe, way), records in found.items():
        floats = [main_metric(r, "fp32") for r in records]
        values = [main_metric(r, "quantized") for r in records]
        flips = [r["results"]["quantized"]["flips"] for r in records]
        errors = [r["results"]["quantized"]["relative_logit_error"] for r in records]
        differences = ", ".join(f"{y - x:+.2f}" for x, y in zip(floats, values, strict=True))
        shown = [
            "{:.2f} ± {:.2f}".format(*mean_and_deviation(x)) if len(x) > 1 else f"{x[0]:.2f}"
            for x in (floats, values)
        ]
        lines.append(
            f"| {recipe} | {WAYS[way]} | {shown[0]} | {shown[1]} | {differences} | "
            f"{np.mean(flips):.3g} | {np.mean(errors):.3f} |"
        )
    return "\n".join(lines)


def draw(groups: Grouped, path: Path) -> None:
    """Draw the quantized accuracy of each way and seed; a panel per model."""
    columns = min(len(groups), 2)
    rows = -(-len(groups) // columns)
    figure, panels = subplots(
        nrows=rows, ncols=columns, figsize=(WIDTH, 1.9 * rows + 0.3), squeeze=False, sharey=True
    )
    for panel, ((model, task), found) in zip(panels.flat, groups.items(), strict=False):
        for place, ((recipe, _), records) in enumerate(found.items()):
            floats = [main_metric(r, "fp32") for r in records]
            values = [main_metric(r, "quantized") for r in records]
            beside = [place - 0.18] * len(floats), [place + 0.18] * len(values)
            panel.plot(floats, beside[0], "|", color=COLORS["FP32"], markersize=8)
            panel.plot(values, beside[1], "o", color=color_of(recipe), markersize=4, alpha=0.7)
        panel.set_yticks(range(len(found)), [f"{recipe}, {way}" for recipe, way in found])
        panel.set_ylim(len(found) - 0.4, -0.6)
        panel.set_title(f"{model}, {task}", fontsize=9)
        panel.set_xlabel("accuracy, %; black: the same model in float32", fontsize=8)
        panel.grid(axis="x", alpha=0.3)
    for unused in list(panels.flat)[len(groups) :]:
        unused.set_visible(False)
    save_figure(figure, path)


def report(arguments: argparse.Namespace) -> None:
    groups = grouped(read_records(arguments.out, "way"))
    tables = {f"{model}, {task}": table_of(found) for (model, task), found in groups.items()}
    rows = [r for found in groups.values() for records in found.values() for r in records]
    write_report(arguments.out, "qat", tables, rows)
    draw(groups, arguments.out / "qat.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("list", list_runs)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        add_run_options(command, epochs=1, rate=3e-5)
        if name == "run":
            command.add_argument("--way", choices=WAYS, required=True)
            command.add_argument("--recipe", required=True)
            command.add_argument("--seed", type=int, default=0)
        else:
            command.add_argument("--recipes", default="int8,e4m3")
            command.add_argument("--seeds", type=int, default=3)
    command = commands.add_parser("report")
    command.set_defaults(run=report)
    command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

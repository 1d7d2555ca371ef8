"""Compare W8A8-FP8, W8A8-INT, W4A16-INT, MXFP4 and NVFP4 with BF16: accuracy, bytes, operations.

    python scripts/study_tradeoff.py run MODEL --task mrpc --data DIR --out DIR
        [--calibration-data DATA] [--samples N] [--limit N] [--workers N] [--recipes NAME,...]
    python scripts/study_tradeoff.py report --out DIR

After Kurtic et al., *"Give Me BF16 or Give Me Death"? Accuracy-Performance Trade-Offs in LLM
Quantization* (arXiv 2411.02355): the encoder's linear layers are quantized, and everything else
is bfloat16. The recipes are

- w8a8-fp8 and w8a8-int: a scale per output channel of a weight and per token of an input, E4M3
  or INT8;
- w4a16...: weights in INT4, in groups of 128, 64 or 32 inputs or per output channel, symmetric or
  with zero points (asym), rounded to nearest or by GPTQ, inputs in bfloat16;
- mxfp4 and nvfp4: both operands; mxfp4-weights and nvfp4-weights: weights alone.

`run` calibrates on 256 training examples in float32 (with Hessians for GPTQ), evaluates every
recipe on the development set, each in a process on a core of its own, and compares it with BF16.
Results are kept in DIR/cells; a run that was interrupted goes on where it stopped. It writes
DIR/tradeoff-MODEL-TASK.json; with --samples, another number of training examples, it writes
DIR/samples-MODEL-TASK-N.json. `report` reads all such files and writes DIR/tradeoff.md and
DIR/tradeoff.png (extra: plot).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.colors import COLORS, color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.evaluation.job import Job, prepare
from bert_numpy.model.model import Model, stored_bytes
from bert_numpy.model.sites import linear_sites
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.gptq import Gptq
from bert_numpy.quantization.presets import PRESETS, w4a16
from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe
from bert_numpy.study.cells import (
    Cell,
    Subject,
    calibrate_subject,
    cells_of,
    compare_results,
    merged,
    run_cell,
)
from bert_numpy.study.options import (
    SAMPLES,
    add_samples_option,
    add_subject_options,
    subject_with_hessians,
)
from bert_numpy.threads import default_threads
from npfp8 import E4M3FN, INT8, MXFP4, NVFP4, BlockFormat, IntFormat

#: Dense tensor-core operations per second, by the kind of operands, and bytes per second of
#: memory: NVIDIA's *H100 Tensor Core GPU Datasheet*, SXM (which gives twice the operations, for
#: sparse operands). It has no operations on FP4.
HARDWARE: Mapping[str, Mapping[str, float]] = {
    "H100": {"BF16": 989e12, "FP8": 1979e12, "INT8": 1979e12, "bytes": 3.35e12},
}

#: The table of speeds leaves out models with no more weights than this, beside larger ones.
SMALL = 1_000_000

#: Texts in a batch, for bytes and operations per token.
BATCHES = (1, 32)


def linear(name: str, a: Operand, b: Operand) -> Recipe:
    return Recipe(name, SiteRecipe(a, b))


def recipes() -> dict[str, Recipe]:
    """Return the recipes by name; the first is the reference."""
    found = [
        PRESETS["bf16"],
        linear("w8a8-fp8", Operand(E4M3FN, "token"), Operand(E4M3FN, "channel")),
        linear("w8a8-int", Operand(INT8, "token"), Operand(INT8, "channel")),
        *(
            w4a16(block, asymmetric=asymmetric, gptq=gptq)
            for block in (None, 128, 64, 32)
            for asymmetric in (False, True)
            for gptq in (None, Gptq())
        ),
        w4a16(gptq=Gptq("stored")),
        w4a16(asymmetric=True, gptq=Gptq("stored")),
        linear("mxfp4", Operand(MXFP4), Operand(MXFP4)),
        linear("nvfp4", Operand(NVFP4), Operand(NVFP4)),
        PRESETS["mxfp4-weights"],
        PRESETS["nvfp4-weights"],
    ]
    return {recipe.name: recipe for recipe in found}


# Bytes and operations


def layers_of(model: Model) -> list[str]:
    """Name the encoder's linear layers, which the recipes quantize."""
    return [site.name for site in linear_sites(model.config) if site.kind == "linear"
            and f"{site.name}.weight" in model.weights]  # fmt: skip


def sizes(model: Model, recipe: Recipe) -> dict[str, float]:
    """Compute the bytes of a model's linear layers and of its file, and its work per token.

    A weight that is not quantized counts 2 bytes, as in bfloat16, in the file too.
    """
    how = recipe.linear
    alone = Recipe(recipe.name, SiteRecipe(b=how.b))  # sizes depend on no scale's value
    made = apply_recipe(model, alone)
    layers = layers_of(model)
    weights = [made.weights[f"{name}.weight"] for name in layers]

    def stored(weight: Any) -> int:
        return weight.size * 2 if isinstance(weight, np.ndarray) else stored_bytes(weight)

    shapes = [model.weights[f"{name}.weight"].shape for name in layers]
    parameters = sum(out * inputs for out, inputs in shapes)
    tied = {id(weight): weight for weight in made.weights.values()}.values()
    return {
        "parameters": parameters,
        "weight_bytes": sum(map(stored, weights)),
        "file_bytes": sum(map(stored, tied)),
        "input_bytes": sum(inputs * bits_of(how.a, inputs) / 8 for _, inputs in shapes),
        "operations": 2 * parameters,
    }


def bits_of(operand: Operand, length: int) -> float:
    """Return the bits of an element of an input, with its share of a scale."""
    fmt = operand.fmt
    if fmt is None:
        return 16
    if isinstance(fmt, BlockFormat):
        return fmt.element.bits + fmt.scale_format.bits / fmt.block
    return fmt.bits + {"token": 32 / length, "block": 32 / operand.block}.get(
        operand.granularity, 0
    )


def unit_of(recipe: Recipe) -> str:
    """Name the kind of operands that a recipe's products have: both sides have to be narrow."""
    a, b = recipe.linear.a, recipe.linear.b
    if a.element is None or b.element is None:
        return "BF16"
    if a.element.bits == b.element.bits == 4:
        return "FP4"
    return "INT8" if isinstance(a.element, IntFormat) else "FP8"


def read_per_token(row: Mapping[str, Any], tokens: float) -> float:
    """Return the bytes that the products of one token read, if so many tokens share a weight."""
    return float(row["weight_bytes"] / tokens + row["input_bytes"])


def seconds(row: Mapping[str, Any], tokens: float, machine: str) -> float:
    """Return the least time of the linear layers for some tokens; NaN if no unit does the work.

    It is the longer of the time to read the operands and the time of the operations.
    """
    rates = HARDWARE[machine]
    if row["unit"] not in rates:
        return float("nan")
    reading = tokens * read_per_token(row, tokens) / rates["bytes"]
    return max(reading, tokens * row["operations"] / rates[row["unit"]])


# Runs


def study(
    subject: Subject, names: Sequence[str], out: Path, workers: int, samples: int = SAMPLES
) -> dict[str, Any]:
    """Run the missing cells, and return a row per recipe."""
    every = recipes()
    chosen = [every[name] for name in dict.fromkeys(["bf16", *names])]
    calibrate_subject(subject, samples, hessians=any(recipe.by_gptq for recipe in chosen))
    cells = {recipe.name: cells_of(subject, recipe, out / "cells", 1 << 30) for recipe in chosen}
    run_cells([cell for found in cells.values() for cell in found], workers)
    results = {name: merged(found) for name, found in cells.items()}
    job = prepare(subject.model, subject.task, subject.data, calibrated=False, limit=subject.limit)
    rows = []
    for recipe in chosen:
        row = compare_results(results[recipe.name], results["bf16"])
        rows.append(
            {"recipe": recipe.name, **row, "unit": unit_of(recipe), **sizes(job.model, recipe)}
        )
    return {
        "model": Path(subject.model).name,
        "task": subject.task,
        "samples": samples,
        "metric": next(iter(results["bf16"].metrics)),
        "examples": len(results["bf16"].predictions),
        "tokens": mean_tokens(job),
        "rows": rows,
    }


def mean_tokens(job: Job) -> float:
    lengths = [len(window.encoded.input_ids) for windows in job.windows for window in windows]
    return float(np.mean(lengths))


def run_cells(cells: Iterable[Cell], workers: int) -> None:
    """Run the cells that have no file yet, each on a core of its own; slow ones first."""
    wanted = [cell for cell in cells if not cell.file.exists()]
    wanted.sort(key=lambda cell: not cell.recipe.by_gptq)
    if workers == 1 or len(wanted) < 2:
        for cell in wanted:
            run_cell(cell)
        return
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    context = multiprocessing.get_context("spawn")
    free = context.Queue()
    for core in cores:
        free.put(core)
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the processes are the parallelism
    with ProcessPoolExecutor(workers, context, alone, (free if cores else None,)) as pool:
        futures = {pool.submit(run_cell, cell): cell for cell in wanted}
        for number, future in enumerate(as_completed(futures), 1):
            future.result()
            print(f"{number} of {len(wanted)}: {futures[future].recipe.name}", flush=True)


def alone(free: Any) -> None:
    """Keep this process on one core, so that it starts no other threads."""
    if free is not None:
        os.sched_setaffinity(0, {free.get()})


# Report


def family(name: str) -> str:
    """Return the group of recipes that a recipe is drawn with."""
    if name.startswith("w4a16"):
        return "W4A16-INT, GPTQ" if "gptq" in name else "W4A16-INT, nearest"
    return {
        "w8a8-fp8": "W8A8-FP8",
        "w8a8-int": "W8A8-INT",
        "mxfp4": "MXFP4",
        "nvfp4": "NVFP4",
        "mxfp4-weights": "MXFP4, weights alone",
        "nvfp4-weights": "NVFP4, weights alone",
    }.get(name, "BF16")


#: By family: the marker, and whether it is filled.
MARKERS = {
    "W8A8-FP8": ("o", True),
    "W8A8-INT": ("s", True),
    "W4A16-INT, nearest": ("v", False),
    "W4A16-INT, GPTQ": ("^", True),
    "MXFP4": ("D", True),
    "MXFP4, weights alone": ("D", False),
    "NVFP4": ("P", True),
    "NVFP4, weights alone": ("P", False),
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table whose first column is aligned to the left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def accuracy_table(report: Mapping[str, Any]) -> str:
    metric = report["metric"]
    lines = []
    for row in report["rows"]:
        low, high = row["interval"]
        certain = low > 0 or high < 0
        shown = f"{100 * row['difference']:+.2f}"
        first = row["recipe"] == "bf16"
        change = f"{row['flips']}" if "flips" in row else f"{row['mean_abs_difference']:.4f}"
        lines.append(
            [
                row["recipe"],
                f"{100 * row[metric]:.2f}",
                "" if first else f"**{shown}**" if certain else shown,
                "" if first else f"{100 * low:+.2f} to {100 * high:+.2f}",
                "" if first else change,
                "" if first else f"{row['relative_logit_error']:.4f}",
                f"{8 * row['weight_bytes'] / row['parameters']:.3f}",
                f"{row['weight_bytes']:,}",
                f"{row['file_bytes']:,}",
            ]
        )
    header = [
        *("recipe", f"{metric.replace('_', ' ')}, %", "points from BF16", "95 % interval", "flips"),
        *("logit error", "bits per weight", "linear layers, bytes", "file, bytes"),
    ]
    return table(header, lines)


def work_table(report: Mapping[str, Any]) -> str:
    """Show what decides the speed; one line for all recipes of the same bytes and operations."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for row in report["rows"]:
        counts = [count * report["tokens"] for count in BATCHES]
        cells = [
            row["unit"],
            f"{row['operations'] / 1e6:,.1f}",
            *(f"{read_per_token(row, count) / 1e3:,.0f}" for count in counts),
            *(
                "none" if np.isnan(time) else f"{1e6 * time:,.1f}"
                for machine in HARDWARE
                for time in (seconds(row, count, machine) for count in counts)
            ),
        ]
        lines.setdefault(tuple(cells), []).append(row["recipe"].replace("-gptq", ""))
    header = [
        *("recipe", "products of", "operations per token, million"),
        *(f"read per token, kB, {texts(count)}" for count in BATCHES),
        *(f"{machine}, µs, {texts(count)}" for machine in HARDWARE for count in BATCHES),
    ]
    named = [
        [", ".join(dict.fromkeys(name.replace("-stored", "") for name in names)), *cells]
        for cells, names in lines.items()
    ]
    return table(header, named)


def texts(count: int) -> str:
    return "1 text" if count == 1 else f"{count} texts"


def samples_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Show what a sample of another size gives; only recipes that ran with several sizes."""
    found: dict[tuple[str, str, str], dict[int, str]] = {}
    for report in reports:
        for row in report["rows"][1:]:  # the first is the reference
            by_size = found.setdefault((report["model"], report["task"], row["recipe"]), {})
            shown = f"{100 * row['difference']:+.2f}, {row['flips']}"
            by_size[report["samples"]] = f"{shown}, {row['relative_logit_error']:.3f}"
    several = {key: by_size for key, by_size in found.items() if len(by_size) > 1}
    sizes = sorted({size for by_size in several.values() for size in by_size})
    if not sizes:
        return ""
    header = ["model, task", "recipe", *(f"{size:,} examples" for size in sizes)]
    return "\n" + table(
        header,
        [
            [f"{model}, {task}", recipe, *(by_size.get(size, "") for size in sizes)]
            for (model, task, recipe), by_size in several.items()
        ],
    )


def summary_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Show the difference from BF16, the flips and the logit error of every recipe and model."""
    names = dict.fromkeys(row["recipe"] for report in reports for row in report["rows"])
    lines = []
    for name in names:
        if name == "bf16":
            continue
        cells = [name]
        for report in reports:
            row = next((row for row in report["rows"] if row["recipe"] == name), None)
            if row is None:
                cells.append("")
                continue
            low, high = row["interval"]
            points = f"{100 * row['difference']:+.2f}"
            points = f"**{points}**" if low > 0 or high < 0 else points
            change = row.get("flips", "")
            cells.append(f"{points}, {change}, {row['relative_logit_error']:.3f}")
        lines.append(cells)
    return table(["recipe", *(f"{r['model']}, {r['task']}" for r in reports)], lines)


def markdown(reports: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        "Points from BF16 (bold where the 95 % interval does not reach zero), flips, relative "
        f"logit error:\n\n{summary_table(reports)}"
    ]
    for report in reports:
        title = f"{report['model']}, {report['task']}, {report['examples']} examples"
        parts.append(
            f"<details>\n<summary>{title}</summary>\n\n{accuracy_table(report)}\n</details>\n"
        )
    shown: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        if report["rows"][0]["parameters"] > SMALL or len(reports) == 1:
            shown.setdefault(report["model"].partition("-")[0], report)
    for report in shown.values():
        parts.append(
            f"{report['model']}, texts of {report['tokens']:.0f} tokens ({report['task']}):\n\n"
            f"{work_table(report)}"
        )
    return "\n".join(parts)


def draw(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the logit error by bits per weight: a panel per model and task."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415 (an extra)

    columns = min(len(reports), 3)
    lines = -(-len(reports) // columns)
    figure, axes = subplots(
        nrows=lines,
        ncols=columns,
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(WIDTH, 2.5 * lines + 1.1),
    )
    panels = list(axes.flat)
    for unused in panels[len(reports) :]:
        unused.set_visible(False)
    for panel, report in zip(panels, reports, strict=False):
        for name, (marker, filled) in MARKERS.items():
            rows = [row for row in report["rows"] if family(row["recipe"]) == name]
            colour = color_of({"W8A8-FP8": "E4M3", "W8A8-INT": "INT8"}.get(name, name))
            panel.plot(
                [8 * row["weight_bytes"] / row["parameters"] for row in rows],
                [row["relative_logit_error"] for row in rows],
                marker,
                color=colour,
                markerfacecolor=colour if filled else "none",
                markersize=5,
                label=name,
            )
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("")
        panel.set_title(f"{report['model']}, {report['task']}", fontsize=9)
        panel.grid(alpha=0.3)
        bf16 = next(row for row in report["rows"] if row["recipe"] == "bf16")
        score = 100 * bf16[report["metric"]]
        panel.text(
            0.97,
            0.95,
            f"BF16: {score:.1f} %",
            transform=panel.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color=COLORS["BF16"],
        )
    for panel in axes[:, 0]:
        panel.set_ylabel("relative logit error", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("bits per weight", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    save_figure(figure, path)


def run(arguments: argparse.Namespace) -> None:
    subject, stem = subject_with_hessians(arguments)
    names = arguments.recipes.split(",") if arguments.recipes else list(recipes())
    report = study(subject, names, arguments.out, arguments.workers, arguments.samples)
    name = f"{'tradeoff' if arguments.samples == SAMPLES else 'samples'}-{stem}.json"
    write_json(str(arguments.out / name), report)
    print(accuracy_table(report))


def write_report(arguments: argparse.Namespace) -> None:
    files = sorted(arguments.out.glob("tradeoff-*-*.json"))
    reports = [json.loads(file.read_text()) for file in files]
    others = [json.loads(file.read_text()) for file in arguments.out.glob("samples-*-*-*.json")]
    text = markdown(reports) + samples_table([*reports, *others])
    write_text(arguments.out / "tradeoff.md", text)
    draw(reports, arguments.out / "tradeoff.png")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.set_defaults(run=run)
    add_subject_options(one)
    add_samples_option(one)
    one.add_argument("--workers", type=int, default=default_threads())
    one.add_argument("--recipes", help="names with commas between; by default all")
    every = commands.add_parser("report")
    every.set_defaults(run=write_report)
    every.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

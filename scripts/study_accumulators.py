"""Measure the effect of the accumulator on accuracy: on a task, and on synthetic data by K.

    python scripts/study_accumulators.py model MODEL --task sst2 --data DIR --out DIR [--limit N]
        [--recipe e4m3] [--modes exact,...] [--workers N | --scheduler ADDRESS]
    python scripts/study_accumulators.py sweep --out DIR
    python scripts/study_accumulators.py cores --out DIR

`model` evaluates a recipe with each accumulation of `npfp8.matmul` and compares the
predictions and logits with FP32's and with those of exact sums. The runs are cells of
a study (see reproduce_paper.py): they are spread over processes, and resumed where they
stopped.

`sweep` multiplies matrices of normal numbers, and of their magnitudes, in E4M3 for K
from 16 to 16,384, and compares each accumulation with exact sums. It draws the errors
beside the error from the quantization of the operands. The numbers are quantized with
a scale of 1, so that float16 does not overflow at once. The overflows with absmax
scales, which use E4M3's whole range, are counted separately.

`cores` does so for every accumulator of a tensor core that returns float32, in formats that
it takes, with absmax scales: the share of float32 and of bfloat16 results that are not those of
exact sums, and the relative error; also of products of the sizes of a linear layer of base size.

All write DIR/*.json and DIR/*.md; the sweep also writes DIR/accumulators.png (extra: plot).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.colors import color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.study.cells import Result, Subject, calibrate_subject, cells_of, merged
from bert_numpy.study.cluster import add_cluster_options, connect, run_cells
from npfp8 import ACCUMULATORS, E4M3FN, matmul, matmul_16bit, matmul_float32, quantize
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.files import replaced_file
from npfp8.products import ACCUMULATIONS

#: The size of the sweep's products: SIZE x SIZE.
SIZE = 128
SIZES = tuple(1 << i for i in range(4, 15))

#: The curves of the figure: the key of a row, what it is called, and how it is drawn.
CURVES = (
    ("quantization", "quantization to E4M3", "-"),
    ("bfloat16", "bfloat16", "P--"),
    ("float16", "float16", "x:"),
    ("hopper-fast", "hopper-fast", "o-"),
    ("hopper", "hopper", "s-."),
    ("float32", "float32", "v-"),
)
INEXACT = ("float32", "hopper", "hopper-fast", "float16", "bfloat16")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table whose first column is aligned to the left."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def write(folder: Path, name: str, report: Any, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, content in (
        (f"{name}.json", json.dumps(report, indent=1) + "\n"),
        (f"{name}.md", text),
    ):
        with replaced_file(folder / file_name) as file:
            file.write(content.encode())
    print(text)


# A model


def change(result: Result, reference: Result) -> dict[str, float | int]:
    """Compute flips and errors over the examples with finite logits, and count the others.

    Few examples near a decision dominate the relative error of all logits. The median is
    that of the examples' errors over the root mean square of the reference's norms.
    """
    labels, logits = np.asarray(result.labels), result.logits
    finite = np.isfinite(logits).all(axis=1)
    kept = [
        Result(labels[finite], x.predictions[finite], x.logits[finite], x.metrics)
        for x in (reference, result)
    ]
    found = {"not_finite": int((~finite).sum())}
    if not finite.any():
        return found
    base, other = (x.logits.astype(np.float64) for x in kept)
    typical = np.sqrt(np.square(base).sum(axis=1).mean())
    median = float(np.median(np.linalg.norm(other - base, axis=1)) / typical)
    return {**compare_with(*kept), "median_logit_error": median, **found}


def metrics_of(result: Result) -> dict[str, float]:
    """Compute the task's metrics; a prediction that is not finite is wrong."""
    labels = np.asarray(result.labels)
    return {name: float(f(labels, result.predictions)) for name, f in result.metrics.items()}


def in_percent(metrics: Mapping[str, float]) -> list[str]:
    return [f"{100 * value:.2f}" for value in metrics.values()]


def shown(changed: dict[str, float | int]) -> list[str]:
    if "flips" not in changed:
        return ["", "not finite", ""]
    errors = (changed["relative_logit_error"], changed["median_logit_error"])
    return [str(changed["flips"]), *(f"{error:.4f}" for error in errors)]


def study_model(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    subject = Subject(
        arguments.model,
        arguments.task,
        arguments.data,
        str(arguments.out / f"calibration-{arguments.task}.safetensors"),
        limit=arguments.limit,
    )
    calibrate_subject(subject)
    modes = [mode for mode in ACCUMULATIONS if mode in arguments.modes.split(",")]
    base = preset(arguments.recipe)
    recipes = [PRESETS["fp32"], *(replace(base, accumulate=mode) for mode in modes)]
    every = [cells_of(subject, recipe, arguments.out / "cells", 32) for recipe in recipes]
    with connect(arguments.workers, arguments.scheduler) as client:
        run_cells([cell for cells in every for cell in cells], client)
    reference, *results = (merged(cells) for cells in every)
    by_mode = dict(zip(modes, results, strict=True))
    rows = [
        {
            "accumulate": mode,
            "metrics": metrics_of(result),
            "fp32": change(result, reference),
            "exact": change(result, by_mode["exact"]),
        }
        for mode, result in by_mode.items()
    ]
    report = {
        "model": Path(arguments.model).name,
        "task": arguments.task,
        "recipe": base.name,
        "examples": len(reference.predictions),
        "metrics": metrics_of(reference),
        "rows": rows,
    }
    errors = ["flips", "error", "median"]
    header = ["accumulate", *report["metrics"]]
    header += [f"{name} from {whose}" for whose in ("FP32", "exact") for name in errors]
    lines = [["FP32", *in_percent(report["metrics"]), *[""] * 6]]
    lines += [
        [
            row["accumulate"],
            *in_percent(row["metrics"]),
            *shown(row["fp32"]),
            *shown(row["exact"]),
        ]
        for row in rows
    ]
    title = f"{report['model']}, {report['examples']} examples, {base.name}:\n\n"
    write(arguments.out, f"model-{arguments.task}", report, title + table(header, lines))


# K


def relative(found: np.ndarray, reference: np.ndarray) -> float:
    """Return the error's norm over the reference's, in float64; not finite if a result is not."""
    with np.errstate(invalid="ignore"):
        error = found.astype(np.float64) - reference
        return float(np.linalg.norm(error) / np.linalg.norm(reference))


def swept(k: int, magnitudes: bool) -> dict[str, Any]:
    """Compute the errors of every accumulation for sums of ``k`` products."""
    rng = np.random.default_rng([k, magnitudes])
    x, y = rng.standard_normal((SIZE, k)), rng.standard_normal((k, SIZE))
    if magnitudes:
        x, y = np.abs(x), np.abs(y)
    a, b = (quantize(z.astype(np.float32), E4M3FN, 1.0) for z in (x, y))
    exact = matmul(a, b).astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = matmul(quantize(x, E4M3FN), quantize(y, E4M3FN), "float16")
        errors = {mode: relative(matmul(a, b, mode), exact) for mode in INEXACT}
    return {
        "k": k,
        "magnitudes": magnitudes,
        "quantization": relative(exact, x @ y),
        **errors,
        "float16_overflows_at_absmax": float(np.mean(~np.isfinite(narrow))),
    }


# Tensor cores


#: By accumulator: the format of both operands, or "bfloat16".
CORES = {
    "ada": "E4M3FN",
    "hopper": "E4M3FN",
    "hopper-fast": "E4M3FN",
    "hopper-mma-sync": "E4M3FN",
    "blackwell": "E4M3FN",
    "cdna3": "E4M3FNUZ",
    "blackwell-mxf8f6f4": "MXFP8_E4M3",
    "blackwell-mxf4": "MXFP4",
    "blackwell-mxf4nvf4": "NVFP4",
    "ampere-16bit": "bfloat16",
    "hopper-16bit": "bfloat16",
    "blackwell-16bit": "bfloat16",
    "cdna3-16bit": "bfloat16",
}

#: The sizes (M, K, N) of products: by K, and the linear layers of BERT base on 128 tokens.
BASE = ((128, 768, 768), (128, 768, 3072), (128, 3072, 768))
PRODUCTS = (*((64, k, 64) for k in SIZES), *BASE)


def against_exact(name: str, size: tuple[int, int, int]) -> dict[str, Any]:
    """Compare an accumulator's products of normal numbers with exact sums."""
    m, k, n = size
    rng = np.random.default_rng([m, k, n])
    x = rng.standard_normal((m, k)).astype(np.float32)
    y = rng.standard_normal((k, n)).astype(np.float32)
    if CORES[name] == "bfloat16":
        x, y = round_to_bfloat16(x), round_to_bfloat16(y)
        found, exact = matmul_16bit(x, y, name), matmul_float32(x, y)
    else:
        a, b = quantize(x, CORES[name]), quantize(y, CORES[name], axis=0)
        if ACCUMULATORS[name].block is None:
            b = quantize(y, CORES[name])
        found, exact = matmul(a, b, name), matmul(a, b)
    narrow = [round_to_bfloat16(z) for z in (found, exact)]
    return {
        "accumulator": name,
        "operands": CORES[name],
        "size": list(size),
        "float32_differs": float(np.mean(found != exact)),
        "bfloat16_differs": float(np.mean(narrow[0] != narrow[1])),
        "relative_error": relative(found, exact.astype(np.float64)),
    }


def study_cores(arguments: argparse.Namespace) -> None:
    rows = [against_exact(name, size) for name in CORES for size in PRODUCTS]
    parts = []
    for key, title, form in (
        ("bfloat16_differs", "bfloat16 results that differ from those of exact sums", "{:.2%}"),
        ("float32_differs", "float32 results that differ from exact sums", "{:.1%}"),
        ("relative_error", "error of float32 results, over exact sums", "{:.1e}"),
    ):
        header = ["accumulator", "operands", *(_size(size) for size in PRODUCTS)]
        lines = [
            [name, fmt, *(form.format(row[key]) for row in rows if row["accumulator"] == name)]
            for name, fmt in CORES.items()
        ]
        parts.append(f"{title}:\n\n{table(header, lines)}")
    write(arguments.out, "cores", rows, "\n".join(parts))
    draw_cores(rows, arguments.out / "tensor-core-results.png")


def _size(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size)) if size in BASE else f"{size[1]:,}"


def draw_cores(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the share of bfloat16 results that each accumulator changes, by K."""
    figure, panel = subplots(figsize=(WIDTH, 3.6))
    styles = itertools.cycle(("o-", "s--", "v-.", "D:", "x-", "P--", "^-."))
    for name, style in zip(CORES, styles, strict=False):
        chosen = [row for row in rows if row["accumulator"] == name and row["size"][0] == 64]
        shares = [100 * row["bfloat16_differs"] for row in chosen]
        label = f"{name} ({CORES[name]})"
        ks = [row["size"][1] for row in chosen]
        panel.plot(ks, shares, style, markersize=4, linewidth=1.2, label=label)
    panel.set_xscale("log", base=2)
    panel.set_yscale("symlog", linthresh=0.01)
    panel.set_ylim(-0.002, 100)
    panel.set_xlabel("K, the number of products in a sum", fontsize=9)
    panel.set_ylabel("bfloat16 results that differ, %", fontsize=9)
    panel.grid(alpha=0.3)
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=7)
    save_figure(figure, path)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the error of each accumulation by K, and the error that quantization makes."""
    figure, panels = subplots(nrows=2, sharex=True, sharey=True, figsize=(WIDTH, 6.2))
    for panel, magnitudes in zip(panels, (False, True), strict=True):
        chosen = [row for row in rows if row["magnitudes"] == magnitudes]
        ks = [row["k"] for row in chosen]
        for name, label, style in CURVES:
            panel.plot(
                ks,
                [row[name] or math.nan for row in chosen],  # a log axis has no place for 0
                style,
                color=color_of(label),
                linewidth=4 if name == "quantization" else 1.5,
                alpha=0.4 if name == "quantization" else 1,
                markersize=5,
                label=label,
            )
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_title(
            "magnitudes of normal numbers" if magnitudes else "normal numbers", fontsize=9
        )
        panel.set_ylabel("relative error of the product", fontsize=9)
        panel.grid(alpha=0.3)
    panels[1].set_xlabel("K, the number of products in a sum", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def study_k(arguments: argparse.Namespace) -> None:
    rows = [swept(k, magnitudes) for magnitudes in (False, True) for k in SIZES]
    header = ["K", "quantization", *INEXACT, "float16 at absmax: overflows"]
    parts = []
    for magnitudes, title in ((False, "Normal numbers"), (True, "Magnitudes of normal numbers")):
        lines = [
            [
                f"{row['k']:,}",
                *(f"{row[name]:.1e}" for name in ("quantization", *INEXACT)),
                f"{row['float16_overflows_at_absmax']:.0%}",
            ]
            for row in rows
            if row["magnitudes"] == magnitudes
        ]
        parts.append(f"{title}:\n\n{table(header, lines)}")
    write(arguments.out, "sweep", rows, "\n".join(parts))
    draw(rows, arguments.out / "accumulators.png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model")
    model.set_defaults(run=study_model)
    model.add_argument("model", metavar="MODEL")
    model.add_argument("--task", required=True)
    model.add_argument("--data", required=True)
    model.add_argument("--recipe", default="e4m3")
    model.add_argument(
        "--modes",
        default=",".join(("exact", *INEXACT)),
        help="accumulators that take the formats of the recipe",
    )
    model.add_argument("--limit", type=int)
    add_cluster_options(model)
    sweep = commands.add_parser("sweep")
    sweep.set_defaults(run=study_k)
    cores = commands.add_parser("cores")
    cores.set_defaults(run=study_cores)
    for command in (model, sweep, cores):
        command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

"""Measure what attention over tiles of keys, as FlashAttention-3 computes it, costs in accuracy.

    python scripts/study_flash_attention.py MODEL --task mrpc --data DIR --out DIR
        [--calibration-data DATA] [--limit N] [--tiles 16,32,64,128]

It evaluates FP32; E4M3 with one softmax over all keys, whose weights have a static scale; and E4M3
over tiles of keys, with and without the offset of 2^8, with row sums of the weights or of their
codes. One softmax and tiles with the offset also run with Hopper's accumulator. Each run is kept
in DIR/cells, in a file named by everything that decides its result; a run whose file exists is
not repeated.

The script writes DIR/flash-MODEL-TASK.json and .md: the metrics, flips and relative logit error
against FP32 and against one softmax, and the share of the attention weights that are not zero but
get the code of zero.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.commands.report import write_json, write_text
from bert_numpy.evaluation.evaluate import compare_with
from bert_numpy.evaluation.job import Job, evaluate_job, prepare
from bert_numpy.quantization.calibration import load_calibration
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.counts import Counts, OperandCounts
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from bert_numpy.quantization.tiled_attention import ROW_SUMS, TiledAttention
from bert_numpy.study.cells import Subject, calibrate_subject
from bert_numpy.study.options import add_subject_options, subject_of
from npfp8.arrays import Array, Float32Array
from npfp8.files import replaced_file

TILES = (16, 32, 64, 128)
OFFSETS = (8, 0)

#: The accumulator of the runs that are not exact.
NARROW = "hopper"


@dataclass(frozen=True, eq=False)
class Run:
    """The result of a recipe on a subject; what is kept of the counts is P's."""

    recipe: str
    logits: Float32Array
    predictions: Array
    metrics: dict[str, float]
    weights: OperandCounts


def recipes(tiles: Sequence[int]) -> Iterator[Recipe]:
    """Yield the recipes of the study: FP32, one softmax, and tiles."""
    e4m3 = PRESETS["e4m3"]
    yield PRESETS["fp32"]
    yield e4m3
    yield replace(e4m3, name=f"e4m3 {NARROW}", accumulate=NARROW)
    for keys in tiles:
        for offset in OFFSETS:
            for row_sum in ROW_SUMS:
                how = TiledAttention(keys, offset, row_sum)
                yield replace(e4m3, name=name_of(how), attention=how)
        how = TiledAttention(keys)
        yield replace(e4m3, name=f"{name_of(how)} {NARROW}", attention=how, accumulate=NARROW)


def name_of(how: TiledAttention) -> str:
    """Name a row of the tables."""
    return f"tiles of {how.keys}, 2^{how.offset}, sums {how.row_sum}"


def weights_of(counts: Counts) -> OperandCounts:
    """Add up the counts of the attention weights of all layers."""
    found = (x for name, x in counts.items() if name.endswith(".attention.context:a"))
    return sum(found, OperandCounts())


def run(job: Job, subject: Subject, recipe: Recipe, folder: Path) -> Run:
    """Evaluate a recipe, or read the file of the run that did."""
    calibration = Path(subject.calibration)
    description = json.dumps(
        [subject.model, subject.task, subject.data, subject.limit, recipe_json(recipe)]
    )
    digest = hashlib.sha256(description.encode() + calibration.read_bytes()).hexdigest()
    file = folder / f"{digest[:24]}.npz"
    if not file.exists():
        quantized = apply_recipe(job.model, recipe, load_calibration(calibration))
        result = evaluate_job(job, quantized)
        counts = weights_of(result.counts)
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(file) as stream:
            np.savez(
                stream,
                logits=result.logits,
                predictions=json.dumps(result.predictions.tolist()),
                metrics=json.dumps(result.metrics),
                counts=[counts.elements, counts.saturated, counts.underflowed],
            )
    with np.load(file) as arrays:
        predictions = json.loads(str(arrays["predictions"]))
        texts = any(isinstance(one, str) for one in predictions)
        return Run(
            recipe.name,
            arrays["logits"],
            np.array(predictions, object if texts else None),
            json.loads(str(arrays["metrics"])),
            OperandCounts(*arrays["counts"].tolist()),
        )


def study(subject: Subject, tiles: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Run the missing recipes, and return a row per recipe."""
    calibrate_subject(subject)
    job = prepare(subject.model, subject.task, subject.data, calibrated=False, limit=subject.limit)
    runs = [run(job, subject, recipe, folder) for recipe in recipes(tiles)]
    fp32, whole = runs[:2]
    lengths = [len(one.input_ids) for one in job.encoded]
    return [
        {
            "model": Path(subject.model).name,
            "task": subject.task,
            "recipe": found.recipe,
            "examples": len(found.predictions),
            "tokens": {"mean": float(np.mean(lengths)), "longest": max(lengths)},
            "metrics": found.metrics,
            "fp32": compare_with(fp32, found),
            "one_softmax": compare_with(whole, found),
            "underflowed": found.weights.underflowed / max(found.weights.elements, 1),
        }
        for found in runs
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Make a Markdown table of the rows of a subject."""
    first = rows[0]
    metric = next(iter(first["metrics"]))
    header = [
        "attention",
        metric,
        "flips",
        "logit error",
        "flips, one softmax",
        "logit error, one softmax",
        "P to zero",
    ]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in rows:
        lines.append(
            [
                row["recipe"],
                f"{100 * row['metrics'][metric]:.1f}",
                *(
                    text
                    for reference in ("fp32", "one_softmax")
                    for text in (
                        str(row[reference]["flips"]),
                        f"{row[reference]['relative_logit_error']:.4f}",
                    )
                ),
                "" if row["recipe"] == "fp32" else f"{row['underflowed']:.2%}",
            ]
        )
    title = (
        f"{first['model']}, {first['task']}, {first['examples']} examples of "
        f"{first['tokens']['mean']:.0f} tokens on average, at most {first['tokens']['longest']}:"
    )
    return f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--tiles", default=",".join(map(str, TILES)), metavar="LIST")
    arguments = parser.parse_args()
    subject = subject_of(arguments)
    tiles = [int(keys) for keys in arguments.tiles.split(",")]
    rows = study(subject, tiles, arguments.out / "cells")
    name = f"flash-{Path(subject.model).name}-{subject.task}"
    write_json(str(arguments.out / f"{name}.json"), rows)
    write_text(arguments.out / f"{name}.md", table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()

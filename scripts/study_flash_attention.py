"""Measure what attention over tiles of keys, as FlashAttention-3 computes it, costs in accuracy.

    python scripts/study_flash_attention.py MODEL --task mrpc --data DIR --out DIR
        [--calibration-data DATA] [--limit N] [--tiles 16,32,64,128]
        [--row-sums unquantized,quantized] [--texts 16] [--exact] [--alone]

It evaluates FP32; E4M3 with one softmax over all keys, whose weights have a static scale; and E4M3
over tiles of keys, with and without the offset of 2^8, with row sums of the weights or of their
codes. One softmax and tiles with the offset also run with Hopper's accumulator. Each run is kept
in DIR/cells, in a file named by everything that decides its result; a run whose file exists is
not repeated.

The script writes DIR/flash-MODEL-TASK.json and .md: the metrics, flips and relative logit error
against FP32 and against one softmax, and the share of the attention weights that are not zero but
get the code of zero. The attention error is that of the operation alone: Q, K and V of the first
--texts texts in the float32 model go through the attention of each recipe, and the results of all
layers are compared with attention in float64, by the norm of the difference over the norm. With
--alone nothing else is measured, except one tile in float64 whose weights are not codes, or codes
of weights with other largest values, and the files are DIR/flash-alone-MODEL-TASK.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.commands.report import write_json, write_text
from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.site import Site
from bert_numpy.evaluation.evaluate import batches, compare_with
from bert_numpy.evaluation.job import Job, evaluate_job, prepare
from bert_numpy.model.encoder import Pass, attend
from bert_numpy.model.packing import Batch
from bert_numpy.quantization.calibration import load_calibration
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.counts import Counts, OperandCounts
from bert_numpy.quantization.presets import PRESETS
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.quantization.recipe_json import recipe_json
from bert_numpy.quantization.tiled_attention import ROW_SUMS, TiledAttention
from bert_numpy.study.cells import Subject, calibrate_subject
from bert_numpy.study.options import add_subject_options, subject_of
from npfp8 import E4M3FN, quantize, quantize_bfloat16
from npfp8.arrays import Array, Float32Array, Float64Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.files import replaced_file

TILES = (16, 32, 64, 128)
OFFSETS = (8, 0)

#: Largest weights: two values of codes of E4M3, and two numbers between; None is no code.
LARGEST = (256, 448, 200, 150, None)

#: The accumulator of the runs that are not exact.
NARROW = "hopper"


class Run(NamedTuple):
    """The result of a recipe on a subject; what is kept of the counts is P's."""

    recipe: str
    logits: Float32Array
    predictions: Array
    metrics: dict[str, float]
    weights: OperandCounts


def recipes(tiles: Sequence[int], row_sums: Sequence[str] = ROW_SUMS) -> Iterator[Recipe]:
    """Yield the recipes of the study: FP32, one softmax, and tiles."""
    e4m3 = PRESETS["e4m3"]
    yield PRESETS["fp32"]
    yield e4m3
    yield replace(e4m3, name=f"e4m3 {NARROW}", accumulate=NARROW)
    for keys in tiles:
        for offset in OFFSETS:
            for row_sum in row_sums:
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


# The operation alone


class Call(NamedTuple):
    """The operands of one attention; see :class:`bert_numpy.engines.engine.Engine`."""

    scores_site: Site
    batch: Batch
    q: Float32Array
    k: Float32Array
    v: Float32Array
    factor: float
    bias: Float32Array | None

    def by(self, engine: Engine[Float32Array]) -> Float32Array:
        """Compute it by an engine, as the forward pass does."""
        prefix = self.scores_site.name.removesuffix("attention.scores")
        place: Any = Pass(None, engine, self.batch, prefix, self.scores_site.layer)  # type: ignore[arg-type]
        return attend(place, self.q, self.k, self.v, self.factor, self.bias)

    def exact(self) -> Float64Array:
        """Compute it in float64."""
        x = self.q.astype(np.float64) @ self.k.astype(np.float64) * self.factor
        x = x if self.bias is None else x + self.bias
        p = np.exp(x - x.max(axis=-1, keepdims=True))
        found: Float64Array = p @ self.v.astype(np.float64) / p.sum(axis=-1, keepdims=True)
        return found


class CallingEngine(Engine[Float32Array]):
    """An engine that computes as ``inner`` does and keeps the operands of every attention."""

    fuses_attention = True

    def __init__(self, inner: Engine[Float32Array], batch: Batch, calls: list[Call]) -> None:
        self.inner, self.batch, self.calls = inner, batch, calls

    def attention(
        self,
        scores_site: Site,
        context_site: Site,
        q: Float32Array,
        k: Float32Array,
        v: Float32Array,
        factor: float,
        bias: Float32Array | None,
    ) -> Float32Array:
        """Keep the operands, rounded to bfloat16 as a quantized model has them."""
        call = Call(scores_site, self.batch, q, k, v, factor, bias)
        q, k, v = (round_to_bfloat16(x) for x in (q, k, v))
        self.calls.append(call._replace(q=q, k=k, v=v))
        return call.by(self.inner)


def calls_of(job: Job, texts: int) -> list[Call]:
    """Run the float32 model on the first texts, one at a time, and keep what attention is given."""
    calls: list[Call] = []

    def calling(weights: Weights, batch: Batch) -> CallingEngine:
        return CallingEngine(job.model.engine(weights, batch), batch, calls)

    model = replace(job.model, engine=calling)
    for _, batch in batches(job.encoded[:texts], 1, job.model.config.pad_token_id):
        model(**batch)
    return calls


def attention_error(
    job: Job, subject: Subject, recipe: Recipe, calls: Sequence[Call], exact: Sequence[Float64Array]
) -> float:
    """Return the norm of the error of a recipe's attention, over the norm of the exact results."""
    model = apply_recipe(job.model, recipe, load_calibration(subject.calibration))
    errors = [
        np.square(call.by(model.engine(model.weights, call.batch)) - right).sum()
        for call, right in zip(calls, exact, strict=True)
    ]
    return float(np.sqrt(sum(errors) / sum(np.square(right).sum() for right in exact)))


def attention_errors(
    job: Job, subject: Subject, chosen: Sequence[Recipe], texts: int
) -> dict[str, float]:
    """Return the error of each recipe's attention, by the recipe's name."""
    calls = calls_of(job, texts)
    exact = [call.exact() for call in calls]
    return {x.name: attention_error(job, subject, x, calls, exact) for x in chosen}


def largest_weight_errors(job: Job, subject: Subject, texts: int) -> dict[str, float]:
    """Return the error of one tile in float64, by the largest value of the weights.

    It shows how much depends on whether the largest weight of a row is the value of a code.
    """
    model = apply_recipe(job.model, PRESETS["e4m3"], load_calibration(subject.calibration))
    squares: dict[str, list[float]] = {}
    for call in calls_of(job, texts):
        names = [call.scores_site.name, call.scores_site.name.replace("scores", "context")]
        scores, context = (model.plans[name] for name in names)
        scales = (scores.a, scores.b, context.b)
        q, k, v = (
            quantize_bfloat16(x, E4M3FN, scale.scale).dequantize().astype(np.float64)
            for x, scale in zip((call.q, call.k, call.v), scales, strict=True)
            if scale is not None
        )
        x = q @ k * call.factor
        x = x if call.bias is None else x + call.bias
        p, exact = np.exp(x - x.max(axis=-1, keepdims=True)), call.exact()
        for largest in LARGEST:
            scaled = p if largest is None else quantize(p * largest, E4M3FN, 1).dequantize()
            whole = p.sum(axis=-1, keepdims=True) * (largest or 1)
            error = np.square(scaled.astype(np.float64) @ v / whole - exact).sum()
            name = "one tile, P not codes" if largest is None else f"one tile, P up to {largest}"
            squares.setdefault(name, []).append(error)
        squares.setdefault("", []).append(np.square(exact).sum())
    whole = sum(squares.pop(""))
    return {name: float(np.sqrt(sum(errors) / whole)) for name, errors in squares.items()}


# The study


def study(
    subject: Subject, chosen: Sequence[Recipe], texts: int, folder: Path
) -> list[dict[str, Any]]:
    """Run the missing recipes, and return a row per recipe; the first two are references."""
    calibrate_subject(subject)
    job = job_of(subject)
    runs = [run(job, subject, recipe, folder) for recipe in chosen]
    fp32, whole = runs[:2]
    errors = attention_errors(job, subject, chosen, texts)
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
            "texts": texts,
            "attention_error": errors[found.recipe],
        }
        for found in runs
    ]


def alone(subject: Subject, chosen: Sequence[Recipe], texts: int) -> list[dict[str, Any]]:
    """Return a row per recipe that has the error of the attention and nothing else."""
    calibrate_subject(subject)
    job = job_of(subject)
    errors = attention_errors(job, subject, chosen, texts)
    errors |= largest_weight_errors(job, subject, texts)
    model = Path(subject.model).name
    return [
        {"model": model, "task": subject.task, "recipe": name, "texts": texts, "attention_error": x}
        for name, x in errors.items()
    ]


def job_of(subject: Subject) -> Job:
    """Load the model and the examples."""
    return prepare(subject.model, subject.task, subject.data, calibrated=False, limit=subject.limit)


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
        "attention error",
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
                f"{row['attention_error']:.4f}",
            ]
        )
    title = (
        f"{first['model']}, {first['task']}, {first['examples']} examples of "
        f"{first['tokens']['mean']:.0f} tokens on average, at most {first['tokens']['longest']}:"
    )
    return f"{title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def table_alone(rows: Sequence[dict[str, Any]]) -> str:
    """Make a Markdown table of the errors of the attention alone."""
    first = rows[0]
    lines = [f"| {row['recipe']} | {row['attention_error']:.4f} |\n" for row in rows]
    title = f"{first['model']}, {first['task']}, {first['texts']} texts:\n\n"
    return title + "| attention | attention error |\n| --- | ---: |\n" + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--tiles", default=",".join(map(str, TILES)), metavar="LIST")
    parser.add_argument("--row-sums", default=",".join(ROW_SUMS), metavar="LIST")
    parser.add_argument("--exact", action="store_true", help="leave out Hopper's accumulator")
    parser.add_argument("--alone", action="store_true", help="measure the attention alone")
    parser.add_argument("--texts", type=int, default=16, metavar="N")
    arguments = parser.parse_args()
    subject = subject_of(arguments)
    tiles = [int(keys) for keys in arguments.tiles.split(",")]
    every = recipes(tiles, arguments.row_sums.split(","))
    chosen = [x for x in every if not arguments.exact or x.accumulate == "exact"]
    name = f"{Path(subject.model).name}-{subject.task}"
    if arguments.alone:
        rows = alone(subject, chosen, arguments.texts)
        name, text = f"flash-alone-{name}", table_alone(rows)
    else:
        rows = study(subject, chosen, arguments.texts, arguments.out / "cells")
        name, text = f"flash-{name}", table(rows)
    write_json(str(arguments.out / f"{name}.json"), rows)
    write_text(arguments.out / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()

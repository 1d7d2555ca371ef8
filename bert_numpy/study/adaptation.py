"""The study of forward-only adaptation: cells of answers under shifts of texts, and its tables.

A cell is pure, as those of :mod:`bert_numpy.study.cells`: its answers depend on its
description alone, and its file is named by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.adaptation.fitness import discrepancy, entropies
from bert_numpy.adaptation.forward_only import AdaptedBatch, ForwardOnly, adapt
from bert_numpy.adaptation.run import adapted_run
from bert_numpy.adaptation.statistics import FeatureStatistics, source_statistics, statistics_of
from bert_numpy.evaluation.evaluate import batches, calibrate_on
from bert_numpy.evaluation.job import Job, prepare
from bert_numpy.model.model import Model
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.study.shifts import SHIFTS, shifted_texts
from bert_numpy.study.tables import folded
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import GlueTask, label_order
from bert_numpy.tasks.tokenization import EncodedText, load_tokenizer, pad
from bert_numpy.threads import one_blas_thread
from npfp8.arrays import Array, IntArray
from npfp8.files import replaced_file

__all__ = [
    "LONG",
    "WAYS",
    "AdaptationCell",
    "answers",
    "candidate_rows",
    "candidate_table",
    "cells_of",
    "interval",
    "page",
    "pass_rows",
    "pass_table",
    "row_of",
    "rows_of",
    "run_cell",
    "source_of",
    "table",
]

_BATCH = 64

#: The words that a training text of the source "long" has at least. Most of SST-2's training
#: texts are phrases of sentences: 9 words on average, where its development set has 20.
LONG = 12

#: The ways of answering, by the name of their logits in a cell's file.
WAYS = {"static": "static", "shifted": "shift", "prompts": "prompts", "both": "both"}


@dataclass(frozen=True)
class AdaptationCell:
    """A recipe, a shift and a seed, with everything else that decides the answers."""

    model: str
    task: str
    data: str
    recipe: str
    shift: str
    strength: float
    seed: int
    source: str = "train"
    samples: int = 256
    passes: int = 1
    limit: int | None = None
    candidates: int = 0
    settings: ForwardOnly = field(default_factory=ForwardOnly)

    def file(self, folder: Path) -> Path:
        """Return the result's file, named by a digest of the cell."""
        description = asdict(self) | {"model": Path(self.model).name, "data": ""}
        if not self.candidates:
            del description["candidates"]
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        return folder / f"{digest[:24]}.npz"


def cells_of(
    base: AdaptationCell,
    recipes: Sequence[str],
    shifts: Sequence[str],
    levels: Sequence[int],
    seeds: int,
) -> list[AdaptationCell]:
    """List the cells of a study: every recipe, shift, strength and seed."""
    found = []
    for recipe in recipes:
        for name in shifts:
            strengths = [0.0] if name == "none" else [SHIFTS[name].strengths[i] for i in levels]
            for strength in strengths:
                for seed in range(seeds):
                    found.append(
                        replace(
                            base,
                            recipe=recipe,
                            shift=name,
                            strength=strength,
                            seed=seed,
                            settings=replace(base.settings, seed=seed),
                        )
                    )
    return found


def run_cell(cell: AdaptationCell, folder: Path) -> Path:
    """Compute a cell and write its file, unless it exists."""
    file = cell.file(folder)
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with one_blas_thread():
            arrays = answers(cell)
        with replaced_file(file) as stream:
            np.savez(stream, **arrays)
    return file


def answers(cell: AdaptationCell) -> dict[str, Any]:
    """Answer a cell's texts in all ways; the logits are (passes, texts, labels).

    A cell with ``candidates`` has no search. Random prompts are tried on each batch, and the
    terms of their fitness are kept with the numbers of right answers: (batches, candidates).
    """
    job = _job(cell.model, cell.task, cell.data, cell.samples, cell.limit)
    model = _quantized(cell.model, cell.task, cell.data, cell.samples, cell.limit, cell.recipe)
    source = source_of(replace(cell, shift="none", strength=0.0, seed=0, settings=ForwardOnly()))
    encoded = _encoded(job, cell)
    order = np.random.Generator(np.random.PCG64([cell.seed, 2])).permutation(len(encoded))
    parts = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
    stream = [pad([encoded[i] for i in part], model.config.pad_token_id) for part in parts]

    labels = job.examples.labels
    assert isinstance(job.task, GlueTask)
    assert labels is not None
    classes = label_order(model.config.labels, job.task)
    if cell.candidates:
        rights = [labels[part] for part in parts]
        return _tried(cell, model, source, list(zip(stream, rights, strict=True)), classes)

    def run(settings: ForwardOnly) -> Iterator[AdaptedBatch]:
        return adapt(model, source, stream * cell.passes, settings)

    plain = list(run(replace(cell.settings, prompts=0)))
    found = {"static": [x.unshifted for x in plain], "shifted": [x.logits for x in plain]}
    arrays: dict[str, Any] = {}
    if cell.settings.prompts:
        searched = list(run(cell.settings))
        found |= {"prompts": [x.unshifted for x in searched], "both": [x.logits for x in searched]}
        arrays["fitness"] = np.array([x.fitness for x in searched])
    arrays["static_fitness"] = np.array([x.best for x in plain])
    for name, logits in found.items():
        whole = np.concatenate(logits).reshape(cell.passes, len(order), -1)
        arrays[name] = np.empty_like(whole)
        arrays[name][:, order[:, None], classes] = whole  # texts and classes in the data's order
    return arrays | {"labels": labels}


def _tried(
    cell: AdaptationCell,
    model: Model,
    source: FeatureStatistics,
    stream: Sequence[tuple[dict[str, IntArray], Array]],
    classes: IntArray,
) -> dict[str, Any]:
    """Try random prompts on each batch, with the first candidates' distribution of a search."""
    generator = np.random.Generator(np.random.PCG64([cell.seed, 3]))
    shape = (cell.settings.prompts, model.config.hidden_size)
    found: dict[str, list[float]] = {"entropy": [], "discrepancy": [], "right": []}
    for batch, labels in stream:
        for _ in range(cell.candidates):
            prompts = cell.settings.sigma * generator.standard_normal(shape)
            run = adapted_run(model, batch, prompts.astype(np.float32))
            found["entropy"].append(float(entropies(run.logits).sum()))
            apart = discrepancy(statistics_of(run.features), source)
            found["discrepancy"].append(cell.settings.weight * len(labels) / _BATCH * apart)
            found["right"].append(float((classes[run.logits.argmax(axis=1)] == labels).mean()))
    return {name: np.reshape(x, (len(stream), cell.candidates)) for name, x in found.items()}


@lru_cache(maxsize=2)
def _job(model: str, task: str, data: str, samples: int, limit: int | None) -> Job:
    return prepare(model, task, data, calibration_samples=samples, limit=limit)


@lru_cache(maxsize=2)
def _quantized(
    model: str, task: str, data: str, samples: int, limit: int | None, recipe: str
) -> Model:
    """Quantize by a recipe, with a calibration on 256 texts whatever the statistics have."""
    job = _job(model, task, data, 256, limit)
    calibration = calibrate_on(job.model, job.calibration_texts)
    return apply_recipe(job.model, recipe, calibration)


@lru_cache(maxsize=8)
def source_of(cell: AdaptationCell) -> FeatureStatistics:
    """Take the statistics of the source from the texts that the cell names."""
    job = _job(cell.model, cell.task, cell.data, cell.samples, cell.limit)
    model = _quantized(cell.model, cell.task, cell.data, cell.samples, cell.limit, cell.recipe)
    texts = job.calibration_texts
    if cell.source == "dev":
        texts = job.encoded
    elif cell.source == "long":
        examples = job.task.read(find_files(cell.data, job.task, job.task.train))
        rows = [i for i, text in enumerate(examples.texts) if len(text.split()) >= LONG]
        texts = _encode(job, examples.select(rows).sample(cell.samples), cell.model)
    return source_statistics(model, (x for _, x in batches(texts, _BATCH)))


def _encoded(job: Job, cell: AdaptationCell) -> list[EncodedText]:
    """Shift the texts, the second ones of pairs with another seed, and encode them."""
    examples: Any = job.examples
    if cell.shift != "none":
        texts = shifted_texts(examples.texts, cell.shift, cell.strength, 2 * cell.seed)
        pairs = examples.pairs
        if pairs is not None:
            pairs = shifted_texts(pairs, cell.shift, cell.strength, 2 * cell.seed + 1)
        examples = replace(examples, texts=texts, pairs=pairs)
    return _encode(job, examples, cell.model)


def _encode(job: Job, examples: Any, model: str) -> list[EncodedText]:
    tokenizer = load_tokenizer(model)
    length = min(job.task.max_length, tokenizer.model_max_length)
    windows = job.task.encode(tokenizer, examples, length, None)
    return [window.encoded for parts in windows for window in parts]


# The tables


def correct(file: Path, number: int = -1) -> dict[str, Array]:
    """Read which texts a cell answers correctly in a pass, by way: (texts,) of bool."""
    with np.load(file) as arrays:
        labels = arrays["labels"]
        return {
            name: arrays[name][number].argmax(axis=1) == labels
            for name in WAYS
            if name in arrays.files
        }


def interval(differences: Array, resamples: int = 2000) -> list[float]:
    """Compute the 95 % bootstrap interval of a mean over texts.

    ``differences`` is (cells, texts): a text is drawn with all of its cells, because their
    answers are not independent.
    """
    per_text = differences.mean(axis=0)
    generator = np.random.Generator(np.random.PCG64(0))
    rows = generator.integers(0, len(per_text), (resamples, len(per_text)))
    low, high = np.percentile(per_text[rows].mean(axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def row_of(cells: Sequence[AdaptationCell], folder: Path) -> dict[str, Any]:
    """Compare the ways of answering over cells that differ in their seed, or in more."""
    read = [correct(cell.file(folder)) for cell in cells]
    static = np.array([x["static"] for x in read])
    row: dict[str, Any] = {
        "model": Path(cells[0].model).name,
        "task": cells[0].task,
        "recipe": cells[0].recipe,
        "texts": static.shape[1],
        "cells": len(cells),
        "static": float(static.mean()),
    }
    for name in WAYS:
        if name == "static" or name not in read[0]:
            continue
        found = np.array([x[name] for x in read])
        difference = found.astype(float) - static
        seeds = [difference[[c.seed == s for c in cells]].mean() for s in {c.seed for c in cells}]
        row[name] = {
            "accuracy": float(found.mean()),
            "difference": float(difference.mean()),
            "interval": interval(difference),
            "seeds": [float(min(seeds)), float(max(seeds))],
        }
    return row


def rows_of(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Make a row per recipe, shift and strength, and one per recipe over all of its shifts."""
    groups: dict[tuple[str, str, float], list[AdaptationCell]] = {}
    for cell in cells:
        groups.setdefault((cell.recipe, cell.shift, cell.strength), []).append(cell)
        if cell.shift != "none":
            groups.setdefault((cell.recipe, "all shifts", 0.0), []).append(cell)
    return [
        {"shift": shift, "strength": strength, **row_of(found, folder)}
        for (_, shift, strength), found in groups.items()
    ]


def pass_rows(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Follow a search over the passes of a stream: accuracies, and fitness per text.

    There is a row for the passes 1, 2, 5, 10, 20, ... and the last one, each a mean over the
    cells.
    """
    count = cells[0].passes
    chosen = {x for x in (1, 2, 5, 10, 20, 50, 100, 200, 500) if x < count} | {count}
    rows = []
    for number in sorted(chosen):
        read = [correct(cell.file(folder), number - 1) for cell in cells]
        row: dict[str, Any] = {"pass": number}
        row |= {name: float(np.mean([x[name] for x in read])) for name in WAYS if name in read[0]}
        for name, key in (("static fitness", "static_fitness"), ("best fitness", "fitness")):
            found = []
            for cell in cells:
                with np.load(cell.file(folder)) as arrays:
                    steps = np.split(arrays[key], count)[number - 1]
                    texts = len(arrays["labels"])
                best = steps.min(axis=1) if steps.ndim > 1 else steps
                found.append(best.sum() / texts)
            row[name] = float(np.mean(found))
        rows.append(row)
    return rows


def pass_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of :func:`pass_rows` as a Markdown table; accuracies in percent."""
    ways = [name for name in WAYS if name in rows[0]]
    heads = ["pass", *(WAYS[name] for name in ways), "fitness, static", "fitness, best"]
    lines = [heads, ["---:"] * len(heads)]
    for row in rows:
        cells = [str(row["pass"]), *(f"{100 * row[name]:.2f}" for name in ways)]
        cells += [f"{row[name]:.3f}" for name in ("static fitness", "best fitness")]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def candidate_rows(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Correlate the terms of the fitness with the accuracy, over the candidates of a batch.

    There is a row per recipe, shift and strength. A correlation is a mean over batches and
    seeds; a good fitness has a negative one. ``spread`` is the mean standard deviation of the
    accuracy over the candidates.
    """
    groups: dict[tuple[str, str, float], list[AdaptationCell]] = {}
    for cell in cells:
        groups.setdefault((cell.recipe, cell.shift, cell.strength), []).append(cell)
    rows = []
    for (recipe, shift, strength), found in groups.items():
        read: dict[str, list[Array]] = {"entropy": [], "discrepancy": [], "right": []}
        for cell in found:
            with np.load(cell.file(folder)) as arrays:
                for name, values in read.items():
                    values.append(arrays[name])
        terms = {name: np.concatenate(x) for name, x in read.items()}
        right = terms.pop("right")
        terms["fitness"] = terms["entropy"] + terms["discrepancy"]
        row: dict[str, Any] = {"recipe": recipe, "shift": shift, "strength": strength}
        row["spread"] = float(right.std(axis=1).mean())
        for name, term in terms.items():
            each = _correlations(term, right)
            row[name] = {"correlation": float(each.mean()), "interval": interval(each[None])}
        rows.append(row)
    return rows


def _correlations(x: Array, y: Array) -> Array:
    """Compute the correlation of each row that is not constant. (n, k), (n, k) -> (m,)."""
    x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    varies = size > 0
    return (x * y).sum(axis=1)[varies] / size[varies]


def candidate_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows of :func:`candidate_rows` as a Markdown table."""
    names = ("entropy", "discrepancy", "fitness")
    heads = ["recipe", "shift", "spread of the accuracy", *names]
    lines = [heads, ["---", "---", *["---:"] * 4]]
    for row in rows:
        named = row["shift"] + (f" {row['strength']:g}" if row["strength"] else "")
        cells = [row["recipe"], named, f"{100 * row['spread']:.2f}"]
        for name in names:
            low, high = row[name]["interval"]
            cells.append(f"{row[name]['correlation']:+.2f} ({low:+.2f} to {high:+.2f})")
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows for the documentation: the whole first, and every shift folded."""
    whole = [row for row in rows if row["shift"] in ("none", "all shifts")]
    every = [row for row in rows if row["shift"] != "all shifts"]
    return f"{table(whole)}\n{folded('Every shift and strength', table(every))}"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as a Markdown table, in percent and points."""
    ways = [name for name in WAYS if name != "static" and any(name in row for row in rows)]
    heads = ["recipe", "shift", "static", *(WAYS[name] for name in ways)]
    lines = [heads, ["---", "---", *["---:"] * (1 + len(ways))]]
    for row in rows:
        named = row["shift"] + (f" {row['strength']:g}" if row["strength"] else "")
        cells = [row["recipe"], named, f"{100 * row['static']:.2f}"]
        for name in ways:
            found = row[name]
            low, high = (100 * x for x in found["interval"])
            text = f"{100 * found['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)

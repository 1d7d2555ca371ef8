"""The study of forward-only adaptation: cells of answers under shifts of texts.

A cell is pure, as those of :mod:`bert_numpy.study.cells`: its answers depend on its
description alone, and its file is named by it. The last bits are an exception: they depend on
BLAS and LAPACK, and a search that starts from others goes another way. So cells from two
machines can differ in a few answers.

The tables are in :mod:`bert_numpy.study.adaptation_tables`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
from bert_numpy.tasks.files import find_files
from bert_numpy.tasks.glue import GlueTask, label_order
from bert_numpy.tasks.tokenization import EncodedText, load_tokenizer, pad
from bert_numpy.threads import one_blas_thread
from npfp8.arrays import Array, IntArray
from npfp8.files import replaced_file

__all__ = [
    "LONG",
    "AdaptationCell",
    "answers",
    "cells_of",
    "order_of",
    "parts_of",
    "run_cell",
    "source_of",
]

_BATCH = 64

#: The words that a training text of the source "long" has at least. Most of SST-2's training
#: texts are phrases of sentences: 9 words on average, where its development set has 20.
LONG = 12


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


def order_of(count: int, seed: int) -> IntArray:
    """Draw the order in which the texts of a cell arrive: (count,)."""
    return np.random.Generator(np.random.PCG64([seed, 2])).permutation(count)


def parts_of(order: IntArray) -> list[IntArray]:
    """Split texts in order into batches of 64; the last one may be smaller."""
    return [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]


def answers(cell: AdaptationCell) -> dict[str, Any]:
    """Answer a cell's texts in all ways; the logits are (passes, texts, labels).

    A cell with ``candidates`` has no search. Random prompts are tried on each batch, and the
    terms of their fitness are kept with the numbers of right answers: (batches, candidates).
    """
    job = _job(cell.model, cell.task, cell.data, cell.samples, cell.limit)
    model = _quantized(cell.model, cell.task, cell.data, cell.samples, cell.limit, cell.recipe)
    source = source_of(replace(cell, shift="none", strength=0.0, seed=0, settings=ForwardOnly()))
    encoded = _encoded(job, cell)
    order = order_of(len(encoded), cell.seed)
    parts = parts_of(order)
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

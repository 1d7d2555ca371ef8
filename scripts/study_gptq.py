"""Quantize one linear layer after the other by GPTQ, and see which tokens have the error.

    python scripts/study_gptq.py MODEL --task sst2 --data DIR --out DIR
        [--sites PATTERN] [--samples 256] [--limit 64] [--calibration-data DATA]

GPTQ (Frantar et al., arXiv 2210.17323) makes the sum of the squared errors of a layer's outputs
small. A token with large outputs has a large share in this sum. For each layer that fits the
pattern (by default the last of each block), this script quantizes its weight alone, to INT4 in
groups of 128, rounded to nearest and by GPTQ in both orders. The rest of the model is bfloat16.
On --limit texts of the development set, in float32, it measures

- the share of [CLS] and [SEP] in the squares of the layer's outputs;
- the error of the outputs, relative to them: of all tokens together, of the others without
  [CLS] and [SEP], the largest of one token, and the largest of one output channel in the others;
- the relative error of the model's logits.

It writes DIR/gptq-MODEL-TASK.json and .md. The Hessians come from --samples training texts and
are kept in DIR, where scripts/study_tradeoff.py finds them, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bert_numpy.commands.report import write_json, write_text
from bert_numpy.engines.noting import NotingEngine
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.job import Job, evaluate_job, prepare
from bert_numpy.model.sites import linear_sites
from bert_numpy.quantization.calibration import Calibration, load_calibration
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.gptq import Gptq
from bert_numpy.quantization.presets import w4a16
from bert_numpy.quantization.recipe import Recipe, SiteRecipe
from bert_numpy.study.cells import calibrate_subject
from bert_numpy.study.options import (
    add_samples_option,
    add_subject_options,
    subject_with_hessians,
)
from npfp8 import QuantizedTensor
from npfp8.arrays import Float32Array, Float64Array, blas_product

#: By the name in the tables.
RECIPES: Mapping[str, Recipe] = {
    "nearest": w4a16(),
    "GPTQ": w4a16(gptq=Gptq()),
    "GPTQ, stored": w4a16(gptq=Gptq("stored")),
}


def at(recipe: Recipe, site: str) -> Recipe:
    """Return a recipe that quantizes this layer alone, as another quantizes all."""
    return replace(
        recipe, name="one-layer", linear=SiteRecipe(), overrides=((site, recipe.linear),)
    )


def inputs(job: Job, sites: list[str]) -> tuple[dict[str, Float32Array], np.ndarray[Any, Any]]:
    """Run the float32 model; return the input of each layer, (tokens, in), and all token ids."""
    found: dict[str, list[Float32Array]] = {site: [] for site in sites}
    ids: list[int] = []

    def note(site: str, a: Float32Array, *rest: object) -> None:
        if site in found:
            found[site].append(a)

    def engine(weights: Any, batch: Any) -> NotingEngine:
        return NotingEngine(job.model.engine(weights, batch), weights, note)

    model = replace(job.model, engine=engine)
    for windows in job.windows:
        for window in windows:
            ids += window.encoded.input_ids
            model([window.encoded.input_ids], None, [window.encoded.token_type_ids])
    return {site: np.concatenate(parts) for site, parts in found.items()}, np.array(ids)


def errors_of(
    x: Float32Array, weight: Float32Array, quantized: QuantizedTensor, ends: np.ndarray[Any, Any]
) -> dict[str, float]:
    """Compute the errors of a layer's outputs; ``ends`` marks [CLS] and [SEP]."""
    wide = x.astype(np.float64)
    outputs = blas_product(wide, weight.T.astype(np.float64))
    errors = blas_product(wide, (weight.astype(np.float64) - quantized.dequantize()).T)

    def relative(some: Any, axis: int | None = None) -> Any:
        return _norm(errors[some], axis) / _norm(outputs[some], axis)

    return {
        "share": float(np.sum(outputs[ends] ** 2) / np.sum(outputs**2)),
        "all": float(relative(slice(None))),
        "others": float(relative(~ends)),
        "token": float(np.max(relative(slice(None), 1))),
        "channel": float(np.max(relative(~ends, 0))),
    }


def _norm(x: Float64Array, axis: int | None) -> Any:
    return np.sqrt(np.sum(x**2, axis))


def rows_of(job: Job, calibration: Calibration, sites: list[str]) -> Iterator[dict[str, Any]]:
    """Measure each layer with each recipe."""
    seen, ids = inputs(job, sites)
    ends = np.isin(ids, [job.windows[0][0].encoded.input_ids[place] for place in (0, -1)])
    reference = evaluate_job(job, apply_recipe(job.model, "bf16")).logits
    for site in sites:
        row: dict[str, Any] = {"site": site}
        for name, recipe in RECIPES.items():
            model = apply_recipe(job.model, at(recipe, site), calibration)
            weight, quantized = (m.weights[f"{site}.weight"] for m in (job.model, model))
            assert isinstance(weight, np.ndarray)
            assert isinstance(quantized, QuantizedTensor)
            change = evaluate_job(job, model).logits - reference
            logits = float(np.linalg.norm(change) / np.linalg.norm(reference))
            row[name] = errors_of(seen[site], weight, quantized, ends) | {"logits": logits}
        yield row


def markdown(rows: list[dict[str, Any]]) -> str:
    """Show one line per layer; a cell has what each recipe gives, in their order."""
    shown = {
        **{"all": "all tokens", "others": "others", "token": "worst token"},
        **{"channel": "worst channel of the others", "logits": "logits"},
    }
    lines = [["layer", "share of [CLS] and [SEP]", *shown.values()], ["---", *["---:"] * 6]]
    for row in rows:
        cells = [row["site"], f"{row['nearest']['share']:.3f}"]
        cells += [" / ".join(f"{row[name][what]:.3f}" for name in RECIPES) for what in shown]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.set_defaults(limit=64)
    add_samples_option(parser)
    parser.add_argument("--sites", default="*layer.*[0-9].output.dense", metavar="PATTERN")
    given = parser.parse_args()
    subject, stem = subject_with_hessians(given)
    job = prepare(subject.model, subject.task, subject.data, calibrated=False, limit=subject.limit)
    names = [site.name for site in linear_sites(job.model.config) if site.kind == "linear"]
    sites = [name for name in names if fnmatchcase(name, given.sites)]
    if not sites:
        raise BertNumpyError(
            f"--sites: expected a pattern that fits a linear layer such as {names[0]}, "
            f"found {given.sites!r}"
        )
    calibrate_subject(subject, given.samples, hessians=True)
    rows = []
    for row in rows_of(job, load_calibration(subject.calibration), sites):
        print(markdown([row]).splitlines()[-1], flush=True)
        rows.append(row)
    write_json(str(given.out / f"gptq-{stem}.json"), {"model": stem, "rows": rows})
    write_text(given.out / f"gptq-{stem}.md", markdown(rows))


if __name__ == "__main__":
    main()

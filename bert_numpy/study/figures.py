"""The study's figures, by matplotlib (extra: study)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.commands.figures import save_figure, subplots
from bert_numpy.study.channels import INPUTS, RATIO
from bert_numpy.study.tables import HEADLINE, first_metric, results_by_model

__all__ = ["draw_differences", "draw_headline", "draw_outliers"]

#: One colour per kind of format: dark enough on the figures' white ground.
_INT, _FLOAT, _REFERENCE = "tab:red", "tab:blue", "black"


def _colour(recipe: str) -> str:
    return _INT if recipe.partition("-")[0] == "int8" else _FLOAT


def draw_headline(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the first metric by format, a panel per model and task, with intervals.

    The intervals are those of the difference. The ground is white, so that the figure can be
    read on dark pages, too.
    """
    models = results_by_model(rows)
    figure, axes = subplots(ncols=len(models), figsize=(2.3 * len(models) + 1.4, 3.0))
    recipes = list(HEADLINE)
    panels = np.atleast_1d(axes)
    for axis, ((model, _), found) in zip(panels, models.items(), strict=True):
        reference = found["fp32"]
        metric = first_metric(reference)
        centre = 100 * reference[metric]
        axis.axvline(centre, color=_REFERENCE, linewidth=0.8, linestyle="--")
        for place, recipe in enumerate(recipes):
            row = found.get(recipe)
            if row is None or row[metric] is None:
                continue
            colour = _REFERENCE if recipe == "fp32" else _colour(recipe)
            ends = [centre + 100 * x for x in row["interval"] if x is not None]
            axis.plot(ends, [place] * len(ends), color=colour, alpha=0.45, linewidth=3)
            axis.plot(100 * row[metric], place, "o", color=colour, markersize=6)
            axis.annotate(
                f"{100 * row[metric]:.1f}",
                (100 * row[metric], place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        axis.set_title(f"{model}\n{metric.replace('_', ' ').capitalize()}, %", fontsize=10)
        axis.set_yticks(range(len(recipes)), [])
        axis.set_ylim(len(recipes) - 0.6, -0.8)
        axis.margins(x=0.15)
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(
        range(len(recipes)), [label.replace(", ", ",\n") for label in HEADLINE.values()]
    )
    save_figure(figure, path)


def draw_differences(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the first metric's difference from FP32, by recipe, with its interval."""
    recipes = [name for name in dict.fromkeys(row["recipe"] for row in rows) if name != "fp32"]
    models = results_by_model(rows)
    figure, axes = subplots(ncols=len(models), figsize=(3 * len(models) + 1.5, 5), sharey=True)
    for axis, ((model, task), found) in zip(np.atleast_1d(axes), models.items(), strict=True):
        for place, recipe in enumerate(recipes):
            row = found.get(recipe)
            if row is None or row["difference"] is None:
                continue
            low, high = (100 * x for x in row["interval"])
            axis.plot([low, high], [place, place], color=_colour(recipe), alpha=0.4)
            axis.plot(100 * row["difference"], place, "o", color=_colour(recipe), markersize=4)
        axis.axvline(0, color="black", linewidth=0.5)
        axis.set_title(f"{model}\n{task}", fontsize=9)
        axis.set_xlabel("points against FP32")
    np.atleast_1d(axes)[0].set_yticks(range(len(recipes)), recipes)
    np.atleast_1d(axes)[0].invert_yaxis()
    save_figure(figure, path)


def draw_outliers(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the largest channel over the median channel, by layer and input: a panel per model."""
    figure, axes = subplots(
        nrows=len(reports), figsize=(9, 1.9 * len(reports) + 0.6), squeeze=False
    )
    for axis, report in zip(axes[:, 0], reports, strict=True):
        layers = sorted({row["layer"] for row in report["inputs"]})
        ratios = np.full((len(INPUTS), len(layers)), np.nan)
        for row in report["inputs"]:
            place = (list(INPUTS).index(row["place"]), layers.index(row["layer"]))
            ratio = row["top"][0]["ratio"]
            ratios[place] = np.nan if ratio is None else ratio
        axis.imshow(np.log2(ratios), aspect="auto", cmap="Reds", vmin=0)
        dark = np.nanmax(np.log2(ratios)) / 2
        for (i, j), ratio in np.ndenumerate(ratios):
            if np.isfinite(ratio):
                colour = "white" if np.log2(ratio) > dark else "black"
                axis.text(j, i, f"{ratio:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(INPUTS)), INPUTS.values(), fontsize=8)
        axis.set_xticks(range(len(layers)), layers, fontsize=8)
        axis.set_title(
            f"{report['model']}: the largest channel over the median channel "
            f"(outlier: above {RATIO:g})",
            fontsize=9,
        )
    axes[-1, 0].set_xlabel("layer")
    save_figure(figure, path)

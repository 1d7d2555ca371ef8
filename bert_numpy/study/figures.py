"""The study's figures, by matplotlib (extra: study)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from bert_numpy.colors import COLORS, color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.study.channels import INPUTS, RATIO
from bert_numpy.study.tables import HEADLINE, first_metric, results_by_model

__all__ = ["draw_differences", "draw_headline", "draw_outliers"]


def draw_headline(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the first metric by format, with the intervals of the difference from FP32.

    There is a panel for each model and task; the number beside a row is the metric.
    """
    models = results_by_model(rows)
    figure, panels = _panels(len(models), list(HEADLINE.values()), row=0.27)
    for panel, ((model, _), found) in zip(panels, models.items(), strict=True):
        reference = found["fp32"]
        metric = first_metric(reference)
        centre = 100 * reference[metric]
        panel.axvline(centre, color=COLORS["FP32"], linewidth=0.8, linestyle="--")
        for place, recipe in enumerate(HEADLINE):
            row = found.get(recipe)
            if row is None or row[metric] is None:
                continue
            value = 100 * row[metric]
            ends = [centre + 100 * x for x in row["interval"] if x is not None]
            _draw_interval(panel, place, value, ends, recipe)
            beside = panel.get_yaxis_transform()
            panel.text(1.02, place, f"{value:.1f}", transform=beside, va="center", fontsize=8)
        panel.set_title(model, fontsize=9)
        panel.set_xlabel(f"{_words(metric)}, %", fontsize=9)
    save_figure(figure, path)


def draw_differences(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the first metric's difference from FP32, by recipe, with its interval."""
    recipes = [name for name in dict.fromkeys(row["recipe"] for row in rows) if name != "fp32"]
    models = results_by_model(rows)
    figure, panels = _panels(len(models), recipes, row=0.17)
    for panel, ((model, _), found) in zip(panels, models.items(), strict=True):
        panel.axvline(0, color=COLORS["FP32"], linewidth=0.8, linestyle="--")
        for place, recipe in enumerate(recipes):
            row = found.get(recipe)
            if row is None or row["difference"] is None:
                continue
            ends = [100 * x for x in row["interval"] if x is not None]
            _draw_interval(panel, place, 100 * row["difference"], ends, recipe)
        metric = _words(first_metric(next(iter(found.values()))))
        panel.set_title(model, fontsize=9)
        panel.set_xlabel(f"{metric}:\npoints from FP32", fontsize=9)
    save_figure(figure, path)


def _panels(count: int, labels: Sequence[str], row: float) -> tuple[Any, list[Any]]:
    """Make a panel per model, two or three side by side, with a labelled row per recipe.

    Parameters
    ----------
    count : int
        How many panels.
    labels : sequence of str
        What the rows are called.
    row : float
        The height of a row in inches.
    """
    columns = min(count, 2 if count <= 4 else 3)
    lines = -(-count // columns)
    height = lines * (row * len(labels) + 0.8)
    figure, axes = subplots(
        nrows=lines, ncols=columns, sharey=True, squeeze=False, figsize=(WIDTH, height)
    )
    figure.get_layout_engine().set(
        h_pad=0.09
    )  # a panel's title is nearer to it than to the one above
    panels = list(axes.flat)
    for unused in panels[count:]:
        unused.set_visible(False)
    for panel in panels[:count]:
        panel.set_yticks(range(len(labels)), [label.replace(", ", ",\n") for label in labels])
        panel.set_ylim(len(labels) - 0.4, -0.6)
        panel.margins(x=0.1)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", alpha=0.3)
    return figure, panels[:count]


def _draw_interval(
    panel: Any, place: int, value: float, ends: Sequence[float], recipe: str
) -> None:
    """Draw a value as a dot in its format's colour, and its interval as a pale bar."""
    colour = color_of(recipe)
    panel.plot(ends, [place] * len(ends), color=colour, alpha=0.4, linewidth=3)
    panel.plot(value, place, "o", color=colour, markersize=5)


def _words(metric: str) -> str:
    """Spell a metric's key as words: ``exact_match`` as ``Exact match``."""
    return metric.replace("_", " ").capitalize()


def draw_outliers(reports: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the largest channel over the median channel, by layer and input: a panel per model."""
    figure, axes = subplots(
        nrows=len(reports), figsize=(WIDTH, 1.65 * len(reports) + 0.6), squeeze=False, sharex=True
    )
    for axis, report in zip(axes[:, 0], reports, strict=True):
        layers = sorted({row["layer"] for row in report["inputs"]})
        ratios = np.full((len(INPUTS), len(layers)), np.nan)
        for row in report["inputs"]:
            place = (list(INPUTS).index(row["place"]), layers.index(row["layer"]))
            ratio = row["top"][0]["ratio"]
            ratios[place] = np.nan if ratio is None else ratio
        axis.imshow(np.log2(ratios), aspect="auto", cmap="Greys", vmin=0)
        dark = 0.6 * np.nanmax(np.log2(ratios))
        for (i, j), ratio in np.ndenumerate(ratios):
            if np.isfinite(ratio):
                colour = "white" if np.log2(ratio) > dark else "black"
                axis.text(j, i, f"{ratio:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axis.set_yticks(range(len(INPUTS)), [fill(name, 20) for name in INPUTS.values()])
        axis.set_xticks(range(len(layers)), layers)
        axis.tick_params(length=0)
        axis.set_title(report["model"], fontsize=9)
    figure.suptitle(
        f"the largest channel over the median channel (outlier: above {RATIO:g})", fontsize=9
    )
    axes[-1, 0].set_xlabel("layer", fontsize=9)
    save_figure(figure, path)

"""The tables and the figure of the study of forward-only adaptation, from the files of cells.

Accuracies are shares of the texts, and differences are from the static model. A row is a
mapping as in the study's JSON files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.adaptation.forward_only import ForwardOnly
from bert_numpy.colors import color_of
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.study.adaptation import LONG, AdaptationCell, cells_of, order_of, parts_of
from bert_numpy.study.shifts import SHIFTS
from bert_numpy.study.tables import folded, markdown_table
from bert_numpy.tasks.glue import task_named
from npfp8.arrays import Array

__all__ = [
    "WAYS",
    "AdaptationStudy",
    "candidate_page",
    "candidate_rows",
    "candidate_table",
    "compared",
    "comparison_page",
    "draw",
    "interval",
    "page",
    "pass_rows",
    "pass_table",
    "row_of",
    "rows_of",
    "seed_table",
    "share_table",
    "study_from_json",
    "table",
]

Row = Mapping[str, Any]

#: The ways of answering, by the name of their logits in a cell's file.
WAYS = {
    "static": "static",
    "shifted": "shifting alone",
    "prompts": "prompts alone",
    "both": "both (FOA)",
}

#: The ways of choosing one of the random prompts of a batch, and their heads in the table.
CHOICES = {
    "random": "at random",
    "entropy": "lowest entropy",
    "discrepancy": "lowest discrepancy",
    "fitness": "lowest fitness",
}

#: The texts of the source, by the name of the source in a cell.
_SOURCES = {
    "train": "{} training texts",
    "long": f"{{}} training texts of at least {LONG} words",
    "dev": "all of these texts before their shift",
}

#: The name of the mean over all shifts and strengths in a row.
_ALL = "all shifts"


@dataclass(frozen=True)
class AdaptationStudy:
    """The cells of one run of the script: see :func:`.adaptation.cells_of`."""

    base: AdaptationCell
    recipes: tuple[str, ...]
    shifts: tuple[str, ...]
    levels: tuple[int, ...]
    seeds: int

    @property
    def cells(self) -> list[AdaptationCell]:
        """The cells, in the order of the tables."""
        return cells_of(self.base, self.recipes, self.shifts, self.levels, self.seeds)


def study_from_json(found: Mapping[str, Any]) -> AdaptationStudy:
    """Read a study from what ``asdict`` made of it."""
    base = dict(found["base"])
    base["settings"] = ForwardOnly(**base["settings"])
    lists = {name: tuple(found[name]) for name in ("recipes", "shifts", "levels")}
    return AdaptationStudy(base=AdaptationCell(**base), seeds=found["seeds"], **lists)


# Accuracies


def predictions(file: Path, number: int = -1) -> tuple[dict[str, Array], Array]:
    """Read the predicted classes of a pass by way, (texts,) each, and the labels, (texts,)."""
    with np.load(file) as arrays:
        found = {name: arrays[name][number].argmax(axis=1) for name in WAYS if name in arrays.files}
        return found, arrays["labels"]


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
    """Compare the ways of answering over cells that differ in their seed, or in more.

    ``first`` is the share of texts with the first label of the task, such as "negative",
    among the labels and among the answers of each way.
    """
    read = [predictions(cell.file(folder)) for cell in cells]
    labels = np.array([labels for _, labels in read])
    static = np.array([found["static"] for found, _ in read]) == labels
    row: dict[str, Any] = {
        "model": Path(cells[0].model).name,
        "task": cells[0].task,
        "recipe": cells[0].recipe,
        "texts": static.shape[1],
        "cells": len(cells),
        "static": float(static.mean()),
        "first": {"labels": float((labels == 0).mean())},
    }
    seeds = [cell.seed for cell in cells]
    for name in WAYS:
        if name not in read[0][0]:
            continue
        answers = np.array([found[name] for found, _ in read])
        row["first"][name] = float((answers == 0).mean())
        if name == "static":
            continue
        right = answers == labels
        difference = right.astype(float) - static
        by_seed = [difference[np.equal(seeds, seed)].mean() for seed in sorted(set(seeds))]
        row[name] = {
            "accuracy": float(right.mean()),
            "difference": float(difference.mean()),
            "interval": interval(difference),
            "seeds": [float(x) for x in by_seed],
        }
    return row


def _groups(
    cells: Iterable[AdaptationCell],
) -> dict[tuple[str, str, float], list[AdaptationCell]]:
    """Group cells by recipe, shift and strength."""
    groups: dict[tuple[str, str, float], list[AdaptationCell]] = {}
    for cell in cells:
        groups.setdefault((cell.recipe, cell.shift, cell.strength), []).append(cell)
    return groups


def rows_of(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Make a row per recipe, shift and strength, and one per recipe over all of its shifts."""
    rows = []
    for recipe in dict.fromkeys(cell.recipe for cell in cells):
        own = [cell for cell in cells if cell.recipe == recipe]
        groups = {key[1:]: found for key, found in _groups(own).items()}
        if shifted := [cell for cell in own if cell.shift != "none"]:
            groups[_ALL, 0.0] = shifted
        rows += [
            {"shift": shift, "strength": strength, **row_of(found, folder)}
            for (shift, strength), found in groups.items()
        ]
    return rows


def _named(row: Row) -> str:
    """Name the texts of a row: a shift with its strength, or "clean"."""
    if row["shift"] == "none":
        return "clean"
    return row["shift"] + (f" {row['strength']:g}" if row["strength"] else "")


def _ways(rows: Sequence[Row]) -> list[str]:
    return [name for name in WAYS if name != "static" and any(name in row for row in rows)]


def _points(difference: float, ends: Sequence[float]) -> str:
    """Write a difference in points with its interval; in bold if zero is outside."""
    low, high = (100 * x for x in ends)
    text = f"{100 * difference:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def table(rows: Sequence[Row], first: str = "recipe") -> str:
    """Write the accuracies of the static model and the differences, in percent and points.

    ``first`` is the key of the first column.
    """
    ways = _ways(rows)
    heads = [first, "texts", "static", *(WAYS[name] for name in ways)]
    lines = []
    for row in rows:
        cells = [row[first], _named(row), f"{100 * row['static']:.2f}"]
        found = [row[name] for name in ways]
        lines.append([*cells, *(_points(x["difference"], x["interval"]) for x in found)])
    return markdown_table(heads, lines, left=2)


def seed_table(rows: Sequence[Row], first: str = "recipe") -> str:
    """Write the least and the greatest difference among the seeds, in points."""
    ways = _ways(rows)
    heads = [first, "texts", *(WAYS[name] for name in ways)]
    lines = []
    for row in rows:
        found = [row[name]["seeds"] for name in ways]
        ranges = [f"{100 * min(x):+.2f} to {100 * max(x):+.2f}" for x in found]
        lines.append([row[first], _named(row), *ranges])
    return markdown_table(heads, lines, left=2)


def share_table(rows: Sequence[Row], first: str = "recipe") -> str:
    """Write the shares of the first label among the answers, in percent."""
    names = [name for name in WAYS if name in rows[0]["first"]]
    heads = [first, "texts", *(WAYS[name] for name in names)]
    lines = [
        [row[first], _named(row), *(f"{100 * row['first'][name]:.1f}" for name in names)]
        for row in rows
    ]
    return markdown_table(heads, lines, left=2)


def page(study: AdaptationStudy, rows: Sequence[Row], passes: Sequence[Row] = ()) -> str:
    """Write the rows of a study for the documentation: the whole first, and the rest folded.

    ``passes`` are the rows of :func:`pass_rows`, if there are several passes.
    """
    source = _SOURCES[study.base.source].format(study.base.samples)
    head = f"{_headed(study.base, rows)}. The statistics of the source come from {source}.\n\n"
    if passes:
        head += f"{pass_table(passes)}\nThe last pass:\n\n"
    return f"{head}{_tables(rows, study.base.task, 'recipe')}"


def _headed(base: AdaptationCell, rows: Sequence[Row]) -> str:
    """Say what the accuracies are of: the model, the task, the texts and the seeds."""
    seeds = max(len(row[name]["seeds"]) for row in rows for name in _ways([row]))
    texts = rows[0]["texts"]
    batches = len(parts_of(order_of(texts, 0)))
    counted = f"{texts} texts in {batches} batch{'es' * (batches > 1)}"
    return f"{Path(base.model).name} on {base.task}, {counted}, {seeds} seed{'s' * (seeds > 1)}"


def _tables(rows: Sequence[Row], task: str, first: str) -> str:
    whole = [row for row in rows if row["shift"] in ("none", _ALL)]
    every = [row for row in rows if row["shift"] != _ALL]
    label = task_named(task).labels[0].replace("_", " ")
    share = 100 * rows[0]["first"]["labels"]
    parts = [
        table(whole, first),
        folded("Every shift and strength", table(every, first)),
        folded("The range of the differences over the seeds", seed_table(rows, first)),
        folded(
            f"Texts that are called {label}, in percent ({share:.1f} are)",
            share_table(rows, first),
        ),
    ]
    if all(len(row[name]["seeds"]) == 1 for row in rows for name in _ways(rows)):
        del parts[2]
    return "\n".join(parts)


# Studies that differ in their settings


def compared(studies: Sequence[AdaptationStudy], folder: Path) -> list[dict[str, Any]]:
    """Make the rows of studies over the cells that all of them have.

    Two cells are the same here if their recipe, shift, strength and seed are.
    ``settings`` says how a study differs from the first one.
    """

    def key(cell: AdaptationCell) -> tuple[str, str, float, int]:
        return cell.recipe, cell.shift, cell.strength, cell.seed

    lists = [study.cells for study in studies]
    common = set.intersection(*({key(cell) for cell in cells} for cells in lists))
    several = len({recipe for recipe, *_ in common}) > 1
    rows = []
    for cells, name in zip(lists, _differences([study.base for study in studies]), strict=True):
        for row in rows_of([cell for cell in cells if key(cell) in common], folder):
            rows.append({"settings": f"{name}, {row['recipe']}" if several else name, **row})
    return rows


def _differences(bases: Sequence[AdaptationCell]) -> list[str]:
    """Name studies by the settings in which they differ from the first one."""
    flat = []
    for base in bases:
        found = asdict(replace(base, data="", model=Path(base.model).name))
        flat.append({**found.pop("settings"), **found})
    first = flat[0]
    changing = [name for name in first if any(one[name] != first[name] for one in flat)]
    return [
        ", ".join(
            f"{name} {other[name]:g}" if isinstance(other[name], float) else f"{name} {other[name]}"
            for name in changing
            if other is first or other[name] != first[name]
        )
        for other in flat
    ]


def comparison_page(studies: Sequence[AdaptationStudy], rows: Sequence[Row]) -> str:
    """Write the rows of :func:`compared` for the documentation."""
    base = studies[0].base
    recipes = ", ".join(dict.fromkeys(row["recipe"] for row in rows))
    return f"{_headed(base, rows)}, {recipes}.\n\n{_tables(rows, base.task, 'settings')}"


# Passes


def pass_rows(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Follow a search over the passes of a stream: accuracies, and fitness per text.

    There is a row for the passes 1, 2, 5, 10, 20, ... and the last one, each a mean over the
    cells.
    """
    count = cells[0].passes
    chosen = {x for x in (1, 2, 5, 10, 20, 50, 100, 200, 500) if x < count} | {count}
    rows = []
    for number in sorted(chosen):
        read = [predictions(cell.file(folder), number - 1) for cell in cells]
        row: dict[str, Any] = {"pass": number}
        for name in read[0][0]:
            row[name] = float(np.mean([(found[name] == labels).mean() for found, labels in read]))
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


def pass_table(rows: Sequence[Row]) -> str:
    """Write the rows of :func:`pass_rows` as a Markdown table; accuracies in percent."""
    ways = [name for name in WAYS if name in rows[0]]
    heads = ["pass", *(WAYS[name] for name in ways), "fitness, static", "fitness, best"]
    lines = []
    for row in rows:
        cells = [str(row["pass"]), *(f"{100 * row[name]:.2f}" for name in ways)]
        lines.append([*cells, *(f"{row[x]:.3f}" for x in ("static fitness", "best fitness"))])
    return markdown_table(heads, lines, left=0)


# Random prompts


def candidate_rows(cells: Sequence[AdaptationCell], folder: Path) -> list[dict[str, Any]]:
    """Compare the terms of the fitness with the accuracy, over the candidates of a batch.

    There is a row per recipe, shift and strength. A correlation is a mean over batches and
    seeds; a good fitness has a negative one. ``spread`` is the mean standard deviation of the
    accuracy over the candidates. If the folder has the cells of a search on the same texts,
    ``differences`` are the accuracies of :data:`CHOICES` minus that of the static model.
    """
    rows = []
    for (recipe, shift, strength), found in _groups(cells).items():
        read: dict[str, list[Array]] = {"entropy": [], "discrepancy": [], "right": []}
        for cell in found:
            with np.load(cell.file(folder)) as arrays:
                for name, values in read.items():
                    values.append(arrays[name])
        terms = {name: np.concatenate(x) for name, x in read.items()}
        right = terms.pop("right")
        terms["fitness"] = terms["entropy"] + terms["discrepancy"]
        row: dict[str, Any] = {"recipe": recipe, "shift": shift, "strength": strength}
        row |= {"batches": len(right), "spread": float(right.std(axis=1).mean())}
        for name, term in terms.items():
            each = _correlations(term, right)
            row[name] = {"correlation": float(each.mean()), "interval": interval(each[None])}
        if (static := _static(found, folder)) is not None:
            sizes, rights = static
            chosen = {name: right[range(len(right)), x.argmin(1)] for name, x in terms.items()}
            chosen["random"] = right.mean(axis=1)
            row["differences"] = {}
            for name in CHOICES:
                each = (chosen[name] - rights) * sizes / sizes.mean()  # the mean is over texts
                row["differences"][name] = {
                    "difference": float(each.mean()),
                    "interval": interval(each[None]),
                }
        rows.append(row)
    return rows


def _static(cells: Sequence[AdaptationCell], folder: Path) -> tuple[Array, Array] | None:
    """Find the static model's share of right answers per batch, with the batches' sizes.

    Returns None if a cell of a search on the same texts is missing.
    """
    sizes, rights = [], []
    for cell in cells:
        file = replace(cell, candidates=0).file(folder)
        if not file.exists():
            return None
        found, labels = predictions(file, 0)
        for part in parts_of(order_of(len(labels), cell.seed)):
            sizes.append(len(part))
            rights.append((found["static"] == labels)[part].mean())
    return np.array(sizes), np.array(rights)


def _correlations(x: Array, y: Array) -> Array:
    """Compute the correlation of each row that is not constant. (n, k), (n, k) -> (m,)."""
    x, y = (z - z.mean(axis=1, keepdims=True) for z in (x, y))
    size = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    varies = size > 0
    return (x * y).sum(axis=1)[varies] / size[varies]


def candidate_table(rows: Sequence[Row]) -> str:
    """Write the correlations of :func:`candidate_rows` as a Markdown table."""
    names = ("entropy", "discrepancy", "fitness")
    lines = []
    for row in rows:
        cells = [row["recipe"], _named(row), f"{100 * row['spread']:.2f}"]
        for name in names:
            low, high = row[name]["interval"]
            text = f"{row[name]['correlation']:+.2f} ({low:+.2f} to {high:+.2f})"
            cells.append(f"**{text}**" if low > 0 or high < 0 else text)
        lines.append(cells)
    return markdown_table(["recipe", "texts", "spread of the accuracy", *names], lines, left=2)


def choice_table(rows: Sequence[Row]) -> str:
    """Write the differences of :func:`candidate_rows` as a Markdown table, in points."""
    lines = []
    for row in rows:
        found = [row["differences"][name] for name in CHOICES]
        points = [_points(x["difference"], x["interval"]) for x in found]
        lines.append([row["recipe"], _named(row), *points])
    return markdown_table(["recipe", "texts", *CHOICES.values()], lines, left=2)


def candidate_page(study: AdaptationStudy, rows: Sequence[Row]) -> str:
    """Write the rows of :func:`candidate_rows` for the documentation.

    The correlations come first, then the accuracy of prompts that are chosen from the
    candidates, minus that of the static model.
    """
    base = study.base
    head = f"{Path(base.model).name} on {base.task}, {base.candidates} prompts on each of "
    text = f"{head}{rows[0]['batches']} batches.\n\n{candidate_table(rows)}"
    if chosen := [row for row in rows if "differences" in row]:
        text += (
            "\nThe accuracy with one of the prompts of each batch, minus that of the static "
            f"model, in points:\n\n{choice_table(chosen)}"
        )
    return text


# The figure


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the accuracy by the strength of each shift, a line per recipe and way."""
    clean = {row["recipe"]: row for row in rows if row["shift"] == "none"}
    names = [name for name in SHIFTS if any(row["shift"] == name for row in rows)]
    figure, panels = subplots(ncols=len(names), sharey=True, figsize=(WIDTH, 3.2), squeeze=False)
    styles = {"static": "--", "shifted": "-", "both": ":"}
    for panel, name in zip(panels[0], names, strict=True):
        for recipe in dict.fromkeys(row["recipe"] for row in rows):
            part = [row for row in rows if (row["recipe"], row["shift"]) == (recipe, name)]
            part = [*([clean[recipe]] if recipe in clean else []), *part]
            strengths = [row["strength"] for row in part]
            for way, style in styles.items():
                if way in part[0]:
                    values = [_accuracy(row, way) for row in part]
                    look = {"color": color_of(recipe), "label": f"{recipe}, {WAYS[way]}"}
                    panel.plot(strengths, values, style, linewidth=1.2, **look)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("strength p", fontsize=8)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("accuracy, %", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def _accuracy(row: Row, way: str) -> float:
    return 100 * float(row["static"] if way == "static" else row[way]["accuracy"])

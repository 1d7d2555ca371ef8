"""The study's results as Markdown, from the rows that the scripts write as JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bert_numpy.study.channels import INPUTS, RATIO, THRESHOLD, recurring_channels

__all__ = [
    "HEADLINE",
    "accuracy_tables",
    "first_metric",
    "headline",
    "outlier_sites",
    "outlier_summary",
    "rescue_table",
    "results_by_model",
    "sensitivity_tables",
    "summary",
]

Row = Mapping[str, Any]

#: The recipes of the headline's table and figure, with their names there.
HEADLINE = {
    "fp32": "FP32",
    "int8": "INT8",
    "int8-channel": "INT8, weights per channel",
    "int8-token": "INT8 per token",
    "e4m3": "E4M3",
    "e5m2": "E5M2",
}

#: The keys of a row that are not metrics.
_NO_METRICS = {
    "model",
    "task",
    "recipe",
    "kept",
    "sites",
    "examples",
    "relative_logit_error",
    "flips",
    "mean_abs_difference",
    "difference",
    "interval",
    "not_finite",
}


def results_by_model(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, Row]]:
    """Sort rows by model and task, then by recipe; a later row replaces an earlier one."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["task"]), {})[row["recipe"]] = row
    return found


def first_metric(row: Row) -> str:
    """Return the name of a row's first metric, the one of its difference and interval."""
    return _metrics(row)[0]


def _metrics(row: Row) -> list[str]:
    return [name for name in row if name not in _NO_METRICS]


def _change(row: Row) -> str:
    """Return a row's measure of changed predictions: flips, or a mean difference for scores."""
    return "flips" if "flips" in row else "mean_abs_difference"


def _number(x: float | None, form: str) -> str:
    """Format a number, or write "none" for JSON's null, which stands for what is not finite."""
    return "none" if x is None or not math.isfinite(x) else format(x, form)


def _points(x: float | None, form: str = ".2f") -> str:
    """Format a share as percent."""
    return _number(None if x is None else 100 * x, form)


def _interval(row: Row) -> str:
    low, high = row["interval"]
    return f"{_points(row['difference'], '+.2f')} ({_points(low, '+.2f')}..{_points(high, '+.2f')})"


def _or_infinity(x: float | None) -> float:
    return math.inf if x is None else x


def _is_certain(row: Row) -> bool:
    """Check that the interval of the difference does not contain zero."""
    low, high = (math.nan if x is None else x for x in row["interval"])
    return bool(low > 0 or high < 0)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Make a Markdown table with its first ``left`` columns aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *rows))


def headline(rows: Sequence[Row]) -> str:
    """Make the paper's comparison, a line per model and task: metric, flips, error by format."""
    lines = []
    for (model, task), recipes in results_by_model(rows).items():
        any_row = next(iter(recipes.values()))
        metric = first_metric(any_row)
        cells = [f"{model}, {task}: {metric.replace('_', ' ')}, {any_row['examples']:,} examples"]
        for recipe in HEADLINE:
            row = recipes.get(recipe)
            if row is None:
                cells.append("")
                continue
            points = _points(row[metric])
            shown = f"**{points}**" if _is_certain(row) else points
            change = row.get("flips", f"{row.get('mean_abs_difference', 0):.3f}")
            error = _number(row["relative_logit_error"], ".3f")
            cells.append(points if recipe == "fp32" else f"{shown} / {change} / {error}")
        lines.append(cells)
    return _table(["model, task", *HEADLINE.values()], lines)


def summary(rows: Sequence[Row]) -> str:
    """Make one table of what each recipe changes against FP32 on every model."""
    models = results_by_model(rows)
    lines = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        cells = [recipe]
        for recipes in models.values():
            row = recipes.get(recipe)
            if row is None:
                cells.append("")
                continue
            points = _points(row["difference"], "+.2f")
            change = row.get("flips", f"{row.get('mean_abs_difference', 0):.3f}")
            shown = f"**{points}**" if _is_certain(row) else points
            cells.append(f"{shown} / {change} / {_number(row['relative_logit_error'], '.3f')}")
        lines.append(cells)
    return (
        "Difference of the first metric from FP32 in points (in bold where its 95 % interval does "
        "not reach zero) / flips, of scores the mean absolute difference / relative logit error:"
        "\n\n" + _table(["recipe", *(model for model, _ in models)], lines) + "\n"
    )


def accuracy_tables(rows: Sequence[Row], level: int = 3) -> str:
    """Make a table per model and task: every recipe's metrics, interval, flips and error.

    ``level`` is the level of the heading above each table.
    """
    text = io.StringIO()
    for (model, task), recipes in results_by_model(rows).items():
        any_row = next(iter(recipes.values()))
        metrics, change = _metrics(any_row), _change(any_row)
        heads = ["recipe", *metrics, "difference (95 % interval)", change, "relative logit error"]
        lines = []
        for row in recipes.values():
            none = f" ({row['not_finite']} not finite)" if row["not_finite"] else ""
            cells = [row["recipe"] + none, *(_points(row[name]) for name in metrics)]
            cells.append(_interval(row))
            cells.append(f"{row[change]:.4f}" if change != "flips" else str(row[change]))
            cells.append(_number(row["relative_logit_error"], ".4f"))
            lines.append(cells)
        print(f"{'#' * level} {model}, {task}, {any_row['examples']} examples\n", file=text)
        print(_table([head.replace("_", " ") for head in heads], lines), file=text)
    return text.getvalue()


def outlier_summary(reports: Sequence[Row]) -> str:
    """Make a table of the outlier channels of each model, a line per kind of input.

    Parameters
    ----------
    reports : sequence of mappings
        Each has ``model`` and ``inputs``, the rows of
        :func:`bert_numpy.study.channels.outlier_channels`.
    """
    lines = []
    for report in reports:
        for place, described in INPUTS.items():
            rows = [row for row in report["inputs"] if row["place"] == place]
            if not rows:
                continue
            worst = max(rows, key=lambda row: _or_infinity(row["top"][0]["ratio"]))
            largest = worst["top"][0]
            counts = [len(row["outliers"]) for row in rows]
            above = [row["above_threshold"] for row in rows]
            per_token = [row["per_token"] for row in rows]
            often = recurring_channels(rows, place)
            recurring = ", ".join(f"{i} ({count})" for i, count in [*often.items()][:6])
            more = f" and {len(often) - 6} more" if len(often) > 6 else ""
            lines.append(
                [
                    report["model"],
                    described,
                    f"{largest['absmax']:.1f} ({_number(largest['ratio'], '.0f')} x; channel "
                    f"{largest['channel']}, layer {worst['layer']})",
                    f"{min(counts)}..{max(counts)} of {worst['channels']:,}",
                    f"{min(above)}..{max(above)}",
                    f"{min(per_token):.2f}..{max(per_token):.2f}",
                    recurring + more or "none",
                    " / ".join(
                        _number(min(_or_infinity(row[name]) for row in rows), ".1f")
                        for name in ("int8", "e4m3")
                    ),
                ]
            )
    heads = ["model", "input", "largest channel (to the median)", f"above {RATIO:g} x median"]
    heads += [
        f"above {THRESHOLD:g}",
        "outlier elements per token",
        "channels in half of the layers (in how many)",
    ]
    return _table([*heads, "lowest SQNR, dB: INT8 / E4M3"], lines, left=2)


def outlier_sites(report: Row) -> str:
    """Make a table of the largest channels of every input of one model."""
    lines = [
        [
            f"{row['layer']}",
            INPUTS[row["place"]],
            ", ".join(
                f"{x['channel']}: {x['absmax']:.2f} ({_number(x['ratio'], '.1f')} x)"
                for x in row["top"]
            ),
            f"{row['median']:.2f}",
            f"{len(row['outliers'])}",
            f"{row['above_threshold']}",
            _number(row["int8"], ".1f"),
            _number(row["e4m3"], ".1f"),
        ]
        for row in report["inputs"]
    ]
    heads = ["layer", "input", "largest channels: absmax (to the median)", "median"]
    heads += [f"above {RATIO:g} x median", f"above {THRESHOLD:g}", "INT8, dB", "E4M3, dB"]
    return f"{report['model']}:\n\n" + _table(heads, lines, left=2)


def sensitivity_tables(report: Row, most: int | None = None) -> str:
    """Make tables of a sensitivity study: groups, ranking, and sites to keep in bfloat16.

    Parameters
    ----------
    report : mapping
        A report of ``scripts/study_sensitivity.py``.
    most : int, optional
        The number of ranked sites to show; by default all.
    """
    whole = report["all"]
    unit = _change(whole)
    named = unit.replace("_", " ")

    def numbers(part: Row | None) -> list[str]:
        if part is None:
            return []
        number = str(part[unit]) if unit == "flips" else f"{part[unit]:.4f}"
        return [number, _number(part["relative_logit_error"], ".4f")]

    number, error = numbers(whole)
    text = [
        f"{report['model']}, {report['task']}, {report['examples']} examples, {report['recipe']}: "
        f"all sites {number} {named}, relative logit error {error}\n"
    ]
    for kind, key in (("groups", "group"), ("sites", "site")):
        rows = report[kind][: most if key == "site" else None]
        if not rows:
            continue
        heads = [key]
        for part, label in (("alone", "alone"), ("without", "all but it")):
            heads += [f"{label}: {named}", "error"] if part in rows[0] else []
        lines = [
            [row[key], *numbers(row.get("alone")), *numbers(row.get("without"))] for row in rows
        ]
        text.append(_table(heads, lines))
    kept = report["suggestion"]
    if kept is not None:
        sites = f": {', '.join(kept)}" if kept else ""
        text.append(
            f"Kept in bfloat16 for at most {report['budget']} flips: "
            f"{len(kept)} of {len(report['sites'])} sites{sites}\n"
        )
    return "\n".join(text)


def rescue_table(rows: Sequence[Row]) -> str:
    """Make a table of the effect of keeping sensitive sites in bfloat16.

    It has a line per recipe and number of sites.

    Parameters
    ----------
    rows : sequence of mappings
        The rows of ``scripts/study_rescue.py``.
    """
    lines = [
        [
            f"{row['model']}, {row['task']}",
            row["recipe"],
            str(row["kept"]),
            _points(row[first_metric(row)]),
            _interval(row),
            str(row[_change(row)]) if "flips" in row else _number(row[_change(row)], ".4f"),
            _number(row["relative_logit_error"], ".4f"),
        ]
        for row in rows
    ]
    heads = ["model, task", "recipe", "sites in bfloat16", "first metric"]
    heads += ["difference (95 % interval)", "flips", "relative logit error"]
    return _table(heads, lines, left=2)

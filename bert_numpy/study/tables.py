"""The study's results as Markdown, from the rows that the scripts write as JSON."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bert_numpy.study.channels import INPUTS, RATIO, THRESHOLD, recurring_channels

__all__ = [
    "HEADLINE",
    "accuracy_tables",
    "block_tables",
    "first_metric",
    "folded",
    "headline",
    "markdown_table",
    "outlier_sites",
    "outlier_summary",
    "rescue_table",
    "results_by_model",
    "rule_tables",
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

#: The recipes that differ in MXFP4's rule for scales alone.
RULES = ("fp32", "mxfp4", "mxfp4-rceil", "mxfp4-even")

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


def _interval(row: Row) -> list[str]:
    """Show the difference from float32 and its interval, as two cells."""
    low, high = (_points(x, "+.2f") for x in row["interval"])
    return [_points(row["difference"], "+.2f"), f"{low} to {high}"]


#: The heads of the two cells.
_INTERVAL = ["difference", "95 % interval"]


def _or_infinity(x: float | None) -> float:
    return math.inf if x is None else x


def _is_certain(row: Row) -> bool:
    """Check that the interval of the difference does not contain zero."""
    low, high = (math.nan if x is None else x for x in row["interval"])
    return bool(low > 0 or high < 0)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Make a Markdown table with its first ``left`` columns aligned to the left."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *rows))


def folded(title: str, text: str) -> str:
    """Write Markdown that a reader unfolds by its title."""
    return f"<details>\n<summary>{title}</summary>\n\n{text.rstrip()}\n\n</details>\n"


def _change_of(row: Row) -> str:
    return str(row["flips"]) if "flips" in row else f"{row.get('mean_abs_difference', 0):.3f}"


def _error_of(row: Row) -> str:
    return _number(row["relative_logit_error"], ".3f")


def _bold_if_certain(points: str, row: Row) -> str:
    return f"**{points}**" if _is_certain(row) else points


_FLIPS = "Flips; for scores, the mean absolute difference"
_ERROR = "Relative logit error"


def headline(rows: Sequence[Row]) -> str:
    """Compare the formats as the paper does: a table each of metric, flips and error.

    Each has a line per model and task.
    """
    models = results_by_model(rows)

    def table(
        head: str,
        about: Callable[[Row], str],
        cell: Callable[[Row], str],
        recipes: Sequence[str] = [recipe for recipe in HEADLINE if recipe != "fp32"],
    ) -> str:
        lines = [
            [
                model,
                about(next(iter(found.values()))),
                *(cell(found[recipe]) if recipe in found else "" for recipe in recipes),
            ]
            for (model, _), found in models.items()
        ]
        return markdown_table(
            ["model", head, *(HEADLINE[recipe] for recipe in recipes)], lines, left=2
        )

    metrics = table(
        "metric",
        lambda row: first_metric(row).replace("_", " "),
        lambda row: _bold_if_certain(_points(row[first_metric(row)]), row),
        list(HEADLINE),
    )
    flips = table("examples", lambda row: f"{row['examples']:,}", _change_of)
    errors = table("task", lambda row: str(row["task"]), _error_of)
    return (
        "Metric in percent; bold where the 95 % interval of its difference from FP32 does not "
        f"reach zero:\n\n{metrics}\n{_FLIPS}:\n\n{flips}\n{_ERROR}:\n\n{errors}"
    )


def summary(rows: Sequence[Row]) -> str:
    """Say what each recipe changes against FP32 on every model: differences, flips, errors.

    The flips and the errors are folded.
    """

    def difference(row: Row) -> str:
        return _bold_if_certain(_points(row["difference"], "+.2f"), row)

    models = results_by_model(rows)
    recipes = dict.fromkeys(row["recipe"] for row in rows)

    def table(cell: Callable[[Row], str]) -> str:
        lines = [
            [recipe, *(cell(found[recipe]) if recipe in found else "" for found in models.values())]
            for recipe in recipes
        ]
        return markdown_table(["recipe", *(model for model, _ in models)], lines)

    return (
        "Difference of the first metric from FP32, in points; bold where its 95 % interval does "
        f"not reach zero:\n\n{table(difference)}\n"
        + folded(_FLIPS, table(_change_of))
        + "\n"
        + folded(_ERROR, table(_error_of))
        + "\n"
    )


def accuracy_tables(rows: Sequence[Row]) -> str:
    """Write a folded table for each model and task: every recipe's metrics, flips and error."""
    text = io.StringIO()
    for (model, task), recipes in results_by_model(rows).items():
        any_row = next(iter(recipes.values()))
        metrics, change = _metrics(any_row), _change(any_row)
        heads = ["recipe", *metrics, *_INTERVAL, change, "relative logit error"]
        lines = []
        for row in recipes.values():
            none = f" ({row['not_finite']} not finite)" if row["not_finite"] else ""
            cells = [row["recipe"] + none, *(_points(row[name]) for name in metrics)]
            cells += _interval(row)
            cells.append(f"{row[change]:.4f}" if change != "flips" else str(row[change]))
            cells.append(_number(row["relative_logit_error"], ".4f"))
            lines.append(cells)
        table = markdown_table([head.replace("_", " ") for head in heads], lines)
        print(folded(f"{model}, {task}, {any_row['examples']} examples", table), file=text)
    return text.getvalue()


def block_tables(rows: Sequence[Row]) -> str:
    """Compare block formats with others: the summary of each family of models."""
    return _by_family([row for row in rows if row["recipe"] not in RULES[2:]])


def rule_tables(rows: Sequence[Row]) -> str:
    """Compare the rules for scales: the summary of each family whose models have all of them."""
    every = {key for key, found in results_by_model(rows).items() if set(RULES) <= found.keys()}
    chosen = [row for row in rows if (row["model"], row["task"]) in every]
    return _by_family([row for row in chosen if row["recipe"] in RULES])


def _by_family(rows: Sequence[Row]) -> str:
    """Write the summary of the models whose names are alike before the last hyphen."""
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["model"].rpartition("-")[0], []).append(row)
    return "\n".join(f"**{name}.** {summary(found)}" for name, found in families.items())


def outlier_summary(reports: Sequence[Row]) -> str:
    """Show the outlier channels of each model: the largest ones, and how many there are.

    Both tables have a line per kind of input.

    Parameters
    ----------
    reports : sequence of mappings
        Each has ``model`` and ``inputs``, the rows of
        :func:`bert_numpy.study.channels.outlier_channels`.
    """
    largest_lines, count_lines = [], []
    for report in reports:
        for place, described in INPUTS.items():
            rows = [row for row in report["inputs"] if row["place"] == place]
            if not rows:
                continue
            worst = max(rows, key=lambda row: _or_infinity(row["top"][0]["ratio"]))
            largest = worst["top"][0]
            largest_lines.append(
                [
                    report["model"],
                    described,
                    f"{largest['absmax']:.1f}",
                    _number(largest["ratio"], ".0f"),
                    str(largest["channel"]),
                    str(worst["layer"]),
                    *(
                        _number(min(_or_infinity(row[name]) for row in rows), ".1f")
                        for name in ("int8", "e4m3")
                    ),
                ]
            )
            counts = [len(row["outliers"]) for row in rows]
            above = [row["above_threshold"] for row in rows]
            per_token = [row["per_token"] for row in rows]
            often = recurring_channels(rows, place)
            recurring = ", ".join(f"{i} ({count})" for i, count in [*often.items()][:6])
            more = f" and {len(often) - 6} more" if len(often) > 6 else ""
            count_lines.append(
                [
                    report["model"],
                    described,
                    f"{worst['channels']:,}",
                    f"{min(counts)} to {max(counts)}",
                    f"{min(above)} to {max(above)}",
                    f"{min(per_token):.2f} to {max(per_token):.2f}",
                    recurring + more or "none",
                ]
            )
    heads = ["model", "input", "largest channel", "times the median", "channel", "layer"]
    heads += ["lowest SQNR of INT8, dB", "of E4M3, dB"]
    counts_heads = ["model", "input", "channels", f"above {RATIO:g} x median"]
    counts_heads += [f"above {THRESHOLD:g}", "outlier elements per token"]
    counts_heads += ["channels in half of the layers (in how many)"]
    return f"{markdown_table(heads, largest_lines, left=2)}\n" + folded(
        "How many channels are outliers, from the layer with the fewest to the one with the most",
        markdown_table(counts_heads, count_lines, left=2),
    )


def outlier_sites(report: Row) -> str:
    """Show the largest channels of every input of one model: two folded tables per kind."""
    text = [f"{report['model']}:\n"]
    for place, described in INPUTS.items():
        rows = [row for row in report["inputs"] if row["place"] == place]
        if not rows:
            continue
        count = max(len(row["top"]) for row in rows)
        largest = [
            [
                str(row["layer"]),
                *(
                    cell
                    for x in row["top"]
                    for cell in (
                        str(x["channel"]),
                        f"{x['absmax']:.2f}",
                        _number(x["ratio"], ".1f"),
                    )
                ),
            ]
            for row in rows
        ]
        others = [
            [
                str(row["layer"]),
                f"{row['median']:.2f}",
                str(len(row["outliers"])),
                str(row["above_threshold"]),
                _number(row["int8"], ".1f"),
                _number(row["e4m3"], ".1f"),
            ]
            for row in rows
        ]
        heads = ["layer", *["channel", "absmax", "times the median"] * count]
        other_heads = ["layer", "median", f"above {RATIO:g} x median", f"above {THRESHOLD:g}"]
        tables = (
            markdown_table(heads, largest),
            markdown_table([*other_heads, "INT8, dB", "E4M3, dB"], others),
        )
        text.append(folded(described, "\n".join(tables)))
    return "\n".join(text)


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
        text.append(markdown_table(heads, lines))
    kept = report["suggestion"]
    if kept is not None:
        title = (
            f"Kept in bfloat16 for at most {report['budget']} flips: "
            f"{len(kept)} of {len(report['sites'])} sites"
        )
        sites = "".join(f"- {site}\n" for site in kept)
        text.append(folded(title, sites) if kept else f"{title}\n")
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
            *_interval(row),
            str(row[_change(row)]) if "flips" in row else _number(row[_change(row)], ".4f"),
            _number(row["relative_logit_error"], ".4f"),
        ]
        for row in rows
    ]
    heads = ["model, task", "recipe", "sites in bfloat16", "first metric"]
    heads += [*_INTERVAL, "flips", "relative logit error"]
    return markdown_table(heads, lines, left=2)

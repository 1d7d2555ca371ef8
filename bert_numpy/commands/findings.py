"""Sentences about the demo's numbers: pure functions of the rows of its JSON report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "base_size_finding",
    "format_finding",
    "format_name",
    "int8_alone_collapses",
    "outlier_finding",
]

#: A format does not notice outliers if its logit error grows by at most a quarter. Otherwise it
#: collapses if outliers change at least a fifth of the predictions.
UNNOTICED, COLLAPSED = 1.25, 0.2

#: The effects of outliers on a format.
_NOTHING, _WORSE, _COLLAPSES = "nothing", "worse", "collapses"

Row = Mapping[str, Any]


def format_finding(rows: Sequence[Row], examples: int) -> str:
    """Say how many predictions each format changes, the fewest first, and what it saves.

    Parameters
    ----------
    rows : sequence of mappings
        FP32's first: ``format``, ``flips``, ``linear_bytes``.
    examples : int
    """
    reference, *others = rows
    if not others:
        return ""
    first, *rest = sorted(others, key=lambda row: row["flips"])
    counts = [f"{format_name(first)} changes {first['flips']:,} of {examples:,} predictions"]
    counts += [f"{format_name(row)} {row['flips']:,}" for row in rest]
    shares = sorted(round(100 * row["linear_bytes"] / reference["linear_bytes"]) for row in others)
    share = f"{shares[0]}" if shares[0] == shares[-1] else f"{shares[0]} to {shares[-1]}"
    return f"{_listed(counts)}; the linear layers take {share} % of FP32's bytes."


def outlier_finding(steps: Sequence[Row], reference: Row, examples: int) -> str:
    """Say what outliers do to each format, to FP32, and why.

    Parameters
    ----------
    steps : sequence of mappings
        ``exponent`` and ``rows`` (``format``, ``flips``, ``relative_logit_error``, ``classes``;
        the same formats in each) by the size of the outliers, from none to the largest, which
        also has FP32's row as ``fp32`` (with ``logits_sha256``).
    reference : mapping
        FP32's row without outliers.
    examples : int
    """
    verdicts = [_verdict(plain, others, examples) for plain, *others in _by_format(steps)]
    largest, float32 = f"2^{steps[-1]['exponent']}", steps[-1]["fp32"]
    if float32["logits_sha256"] == reference["logits_sha256"]:
        same = f"FP32's logits with {largest} are the same to the last bit."
    else:
        same = (
            f"FP32's logits with {largest} differ by a relative error of "
            f"{float32['relative_logit_error']:.1e}."
        )
    why = (
        "INT8's steps are equal, so a channel 2^k times as large leaves k bits fewer to all "
        "others; a floating-point format's steps shrink with the value."
    )
    return " ".join([*verdicts, same, why])


def int8_alone_collapses(steps: Sequence[Row], examples: int) -> bool:
    """Check whether with outliers INT8 collapses and E4M3 does not notice, if it is among them.

    The arguments are those of :func:`outlier_finding`; there may be no steps.
    """
    effects = {
        plain["format"]: _effect(plain, rest, examples) for plain, *rest in _by_format(steps)
    }
    return effects.get("int8") == _COLLAPSES and effects.get("e4m3", _NOTHING) == _NOTHING


def base_size_finding(rows: Sequence[Row], same: bool) -> str:
    """Say what INT8 and E4M3 do to models of BERT-base's size.

    Parameters
    ----------
    rows : sequence of mappings
        ``model``, ``recipe`` ("fp32", "int8", "e4m3"), ``examples``, ``flips``, ``metric`` and
        its ``value``; all three recipes for each model.
    same : bool
        Whether the small model with outliers has shown the same.
    """
    models: dict[str, dict[str, Row]] = {}
    for row in rows:
        models.setdefault(row["model"], {})[row["recipe"]] = row
    int8, e4m3 = ([found[name] for found in models.values()] for name in ("int8", "e4m3"))
    worse = all(a["flips"] > b["flips"] for a, b in zip(int8, e4m3, strict=True))
    first, *rest = (f"{row['flips']:,} of {row['examples']:,}" for row in int8)
    counts = [f"{first} predictions", *rest]
    changed = _listed([f"{c} of {name}" for c, name in zip(counts, models, strict=True)])
    most = max(models.values(), key=lambda found: found["fp32"]["value"] - found["int8"]["value"])
    kept = _listed([f"{row['flips']:,}" for row in e4m3])
    fp32, low, high = (f"{100 * most[name]['value']:.2f}" for name in ("fp32", "int8", "e4m3"))
    metric = most["fp32"]["metric"].replace("_", " ")
    return (
        f"At base size{' real models do the same:' if same and worse else ', in real models,'} "
        f"INT8 changes {changed}; E4M3 changes {kept}. The {metric} of "
        f"{most['fp32']['model']} is {fp32} in FP32, {low} in INT8 and {high} in E4M3."
    )


def _by_format(steps: Sequence[Row]) -> Iterator[tuple[Row, ...]]:
    """List each format's rows in the order of the steps."""
    return zip(*(step["rows"] for step in steps), strict=True)


def _effect(plain: Row, others: Sequence[Row], examples: int) -> str:
    """Classify what outliers do to one format: its row without them, and its rows with them."""
    error = max(row["relative_logit_error"] for row in others)
    if error <= UNNOTICED * plain["relative_logit_error"]:
        return _NOTHING
    most = max(row["flips"] for row in others)
    return _COLLAPSES if most - plain["flips"] >= COLLAPSED * examples else _WORSE


def _verdict(plain: Row, others: Sequence[Row], examples: int) -> str:
    """Say what outliers do to one format, with its numbers of flips."""
    before, flips = plain["flips"], [row["flips"] for row in others]
    most, effect = max(flips), _effect(plain, others, examples)
    name = format_name(plain)
    if effect == _NOTHING:
        after = f"{most:,}" if most == min(flips) else f"{min(flips):,} to {most:,}"
        return f"{name} does not notice: {before:,} flips without outliers, {after} with."
    if effect == _WORSE:
        return f"{name} gets worse: {before:,} flips without outliers, up to {most:,} with."
    worst = others[flips.index(most)]
    label = ", as every review gets the same label" if worst["classes"] == 1 else ""
    return f"{name} collapses: {before:,} flips without outliers, {most:,} with{label}."


def format_name(row: Row) -> str:
    """Return the name of a row's format as it is shown."""
    return str(row["format"]).upper()


def _listed(parts: Sequence[str]) -> str:
    """Join parts by commas, and the last by "and"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last

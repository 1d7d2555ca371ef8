"""A report as one HTML page with pictures in SVG; it loads nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import shown
from bert_numpy.kit.compare import Difference, Report, differing_elements
from bert_numpy.kit.manifest import Kit

__all__ = ["html_report"]

_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:72em}td,th{padding:2px 8px;text-align:left}"
    "table{border-collapse:collapse}tr:nth-child(even){background:#f3f3f3}svg{display:block}"
    ".bad{color:#b00020}.good{color:#1b6e2a}code{font-size:12px}"
)

#: The most cells per side in the picture of a tensor.
_CELLS = 48


def html_report(kit: Kit, report: Report, candidate: Mapping[str, Any]) -> str:
    """Make a self-contained page: the differences, the error by site, the first wrong tensor."""
    differing = {item.name: item for item in report.differences}
    by_case: dict[str, list[tuple[str, Difference | None]]] = {}
    for name in report.compared:
        case = "/".join(name.split("/")[:2]) if name.startswith("model/") else name.split("/")[0]
        by_case.setdefault(case, []).append((name, differing.get(name)))
    state = "good" if report.passed else "bad"
    parts = [
        f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Kit</title>"
        f"<style>{_STYLE}</style><h1 class={state}>{'passed' if report.passed else 'failed'}</h1>",
        f"<pre>{html.escape(report.text())}</pre>",
    ]
    for case, sites in by_case.items():
        parts += [f"<h2>{_text(case)}: share of elements that differ</h2>", _bars(sites)]
    if report.first is not None:
        name = report.first.name
        mask = differing_elements(kit, name, candidate[name])
        parts += [f"<h2>Where {_text(name)} differs</h2>", _map(mask)]
        parts += ["<h2>Tensors that differ</h2>", _table(report)]
    return "\n".join([*parts, "</html>\n"])


def _text(text: str) -> str:
    """Escape a text from a file for HTML."""
    return html.escape(shown(text))


def _map(mask: npt.NDArray[np.bool_]) -> str:
    """Draw where a tensor differs: rows by columns, with several elements per cell if large."""
    flat = mask.reshape(-1, mask.shape[-1]) if mask.ndim else mask.reshape(1, 1)
    rows, columns = (min(n, _CELLS) for n in flat.shape)
    size = 10
    cells = []
    for i, band in enumerate(np.array_split(flat, rows)):
        for j, cell in enumerate(np.array_split(band, columns, axis=1)):
            share = float(cell.mean())
            if share:
                cells.append(
                    f'<rect x="{j * size}" y="{i * size}" width="{size}" height="{size}" '
                    f'fill="#b00020" fill-opacity="{0.2 + 0.8 * share:.2f}"/>'
                )
    width, height = columns * size, rows * size
    frame = f'<rect width="{width}" height="{height}" fill="#eee"/>'
    return f'<svg width="{width}" height="{height}">{frame}{"".join(cells)}</svg>'


def _bars(sites: Sequence[tuple[str, Difference | None]]) -> str:
    """Draw one bar per tensor, in the order of the data flow."""
    row, left, width = 12, 430, 400
    shapes = []
    for i, (name, item) in enumerate(sites):
        y = i * row
        label = _text(name if len(name) < 68 else f"...{name[-65:]}")
        shapes.append(
            f'<text x="{left - 6}" y="{y + 9}" font-size="9" text-anchor="end">{label}</text>'
        )
        share = 0.0 if item is None else item.different / max(item.elements, 1)
        colour = "#1b6e2a" if item is None else "#b00020" if item.root else "#e08a00"
        length = 2 if item is None else max(3, share * width)
        shapes.append(
            f'<rect x="{left}" y="{y + 1}" width="{length:.1f}" height="{row - 3}" '
            f'fill="{colour}"/>'
        )
        if item is not None:
            noise = "" if item.sqnr is None else f", {item.sqnr:.1f} dB"
            distance = "NaN" if item.ulp is None else f"{item.ulp:g} ulp"
            shapes.append(
                f'<text x="{left + length + 4:.1f}" y="{y + 9}" font-size="9">'
                f"{100 * share:.2g} %, {distance}{noise}</text>"
            )
    return f'<svg width="{left + width + 170}" height="{len(sites) * row}">{"".join(shapes)}</svg>'


def _table(report: Report) -> str:
    rows = ["<tr><th>tensor<th>differ<th>ulp<th>first at<th>expected<th>found<th>cause"]
    for item in report.differences:
        cause: Any = ", or ".join(item.causes) or "no known one"
        cells = (
            f"<code>{_text(item.name)}</code>",
            f"{item.different} of {item.elements}",
            "NaN" if item.ulp is None else f"{item.ulp:g}",
            str(list(item.index)),
            _text(item.expected),
            _text(item.found),
            _text(cause) if item.root else "(what it is computed from differs)",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    return f"<table>{''.join(rows)}</table>"

"""A report as one HTML page with pictures in SVG; it loads nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import shown
from bert_numpy.kit.compare import Difference, Report, differing_elements, ulps
from bert_numpy.kit.coverage import by_level
from bert_numpy.kit.manifest import Kit
from bert_numpy.kit.network import LEGEND, STATES, network_pictures

__all__ = ["html_report", "percent"]

_STYLE = """
:root{color-scheme:light}
body{font:14px/1.4 sans-serif;margin:1.5em auto;padding:0 1em;max-width:72em;color:#222;
background:#fff;overflow-wrap:anywhere}
h1{margin-bottom:.3em}h2{margin-top:1.6em}
td,th{padding:2px 8px;text-align:left;vertical-align:top}td.n{text-align:right}
table{border-collapse:collapse}tr:nth-child(even){background:#f3f3f3}
.wide{overflow-x:auto;overflow-wrap:normal}.wide code{white-space:nowrap}
pre{background:#f6f6f6;padding:.8em;white-space:pre-wrap}code{font-size:12px}
.FAILED{color:#b00020}.passed{color:#1b6e2a}.consistent{color:#8a5a00}
.network{display:flex;flex-wrap:wrap;align-items:flex-start;gap:10px}
.network svg{max-width:100%;height:auto}
.legend span{display:inline-block;margin-right:1.2em}.legend svg{vertical-align:-2px}
.bar{display:grid;grid-template-columns:minmax(0,30em) minmax(8em,1fr) 18em;gap:0 10px;
align-items:center}.bar svg{width:100%;height:9px}
svg.map{max-width:100%;height:auto}
@media(max-width:50em){.bar{grid-template-columns:1fr 13em}.bar code{grid-column:1/3}}
"""

#: The most cells per side in the picture of a tensor.
_CELLS = 48

#: The most bars, rows of the table, and pictures of the network.
_BARS, _ROWS, _PICTURES = 100, 300, 6


def html_report(kit: Kit, report: Report, candidate: Mapping[str, Any]) -> str:
    """Make a self-contained page: the verdict, where in the network it goes wrong, the differences.

    Parameters
    ----------
    kit : Kit
    report : Report
        The comparison of the candidate with this kit.
    candidate : mapping of str to ndarray
    """
    state = report.verdict.split()[0].rstrip(":")
    parts = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>{_text(report.verdict)}</title><style>{_STYLE}</style>"
        f'<h1 class="{state}">{_text(report.verdict)}</h1>',
        f"<pre>{html.escape(report.text())}</pre>",
        "<h2>What was given</h2>",
        _coverage(report),
    ]
    pictures = _network(kit, report)
    if pictures:
        parts += ["<h2>Where in the network</h2>", LEGEND, *pictures]
    if report.first is not None:
        name = report.first.name
        mask = differing_elements(kit, name, candidate[name])
        parts += [
            f"<h2>Where {_text(name)} differs</h2>",
            _map(mask),
            "<h2>Share of elements that differ</h2>",
            _bars(report.differences),
            "<h2>Tensors that differ</h2>",
            _table(report),
        ]
    return "\n".join([*parts, "</html>\n"])


def percent(share: float) -> str:
    """Write a share as people write percentages: two digits, and never an exponent.

    >>> [percent(x) for x in (1, 0.9999, 0.123, 0.0123, 0.000234, 0.0000001, 0)]
    ['100 %', '99.99 %', '12 %', '1.2 %', '0.02 %', 'less than 0.01 %', '0 %']
    """
    value = 100 * share
    if value in (0, 100):
        return f"{value:.0f} %"
    if value < 0.01:
        return "less than 0.01 %"
    if value >= 99.5:  # not 100: something is equal
        return f"{min(value, 99.99):.2f} %"
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2f} %"


def _text(text: str) -> str:
    """Escape a text from a file for HTML."""
    return html.escape(shown(text))


def _coverage(report: Report) -> str:
    """List the numbers of tensors given, by level, and the operations of which some are missing."""
    rows = ["<tr><th>level<th>given<th>of<th>operations of which tensors are missing"]
    for level, items in by_level(report.coverage).items():
        given, missing = (sum(len(x) for x in xs) for xs in zip(*((item.given, item.missing)
                          for item in items), strict=True))  # fmt: skip
        which = ", ".join(f"{item.operation} ({len(item.missing)})"
                          for item in items if item.missing)  # fmt: skip
        rows.append(
            f"<tr><td>{level}<td class=n>{given:,}<td class=n>{given + missing:,}<td>"
            f"{'all' if not given else _text(which) or 'none'}"
        )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _network(kit: Kit, report: Report) -> list[str]:
    """Draw the network for each input of which something is given, those that differ first."""
    pictures = network_pictures(kit, report)
    differing = {_case(item.name) for item in report.differences}
    given = {_case(name) for item in report.coverage for name in item.given}
    cases = sorted((case for case in pictures if case in given), key=lambda x: x not in differing)
    parts = [
        f'<h3>{_text(case)}</h3><div class="network">{pictures[case]}</div>'
        for case in cases[:_PICTURES]
    ]
    if len(cases) > _PICTURES:
        parts.append(f"<p>and {len(cases) - _PICTURES} more inputs</p>")
    return parts


def _case(name: str) -> str:
    return "/".join(name.split("/")[:2])


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
    shape = " x ".join(f"{n:,}" for n in flat.shape)
    return (
        f"<p>{shape} elements, rows from top to bottom; {percent(float(mask.mean()))} differ.</p>"
        f'<svg class="map" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"{frame}{''.join(cells)}</svg>"
    )


def _bars(differences: tuple[Difference, ...]) -> str:
    """Draw one bar per tensor that differs, in the order of the data flow."""
    rows = []
    for item in differences[:_BARS]:
        share = item.different / max(item.elements, 1)
        colour = STATES["root" if item.root else "differs"][0]
        noise = "" if item.sqnr is None else f", {item.sqnr:.1f} dB"
        distance = "a NaN" if item.ulp is None else ulps(item.ulp)
        rows.append(
            f'<div class="bar"><code>{_text(item.name)}</code>'
            '<svg viewBox="0 0 100 9" preserveAspectRatio="none">'
            '<rect width="100" height="9" fill="#eee"/>'
            f'<rect width="{max(1, 100 * share):.1f}" height="9" fill="{colour}"/></svg>'
            f"<span>{percent(share)}, {distance}{noise}</span></div>"
        )
    if len(differences) > _BARS:
        rows.append(f"<p>and {len(differences) - _BARS:,} more</p>")
    return "\n".join(rows)


def _table(report: Report) -> str:
    rows = [
        "<tr><th>tensor<th>differ<th>largest distance<th>first at<th>expected<th>found<th>cause"
    ]
    for item in report.differences[:_ROWS]:
        cause = ", or ".join(item.causes) or "no known one"
        cells = (
            f"<code>{_text(item.name)}</code>",
            f"{item.different:,} of {item.elements:,}",
            "a NaN" if item.ulp is None else ulps(item.ulp),
            str(list(item.index)),
            _text(item.expected),
            _text(item.found),
            _text(cause) if item.root else "(what it is computed from differs)",
        )
        rows.append("<tr>" + "".join(f"<td>{cell}" for cell in cells))
    if len(report.differences) > _ROWS:
        rows.append(f"<tr><td>and {len(report.differences) - _ROWS:,} more")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'

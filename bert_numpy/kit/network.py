"""A picture of a model in SVG: where in the network a candidate first differs from the kit."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass

from bert_numpy.errors import shown
from bert_numpy.kit.compare import Report
from bert_numpy.kit.manifest import Kit

__all__ = ["LEGEND", "STATES", "network_pictures"]

#: The states of a tensor: a colour, a sign for those who see no colours, and the words.
STATES = {
    "ok": ("#1b6e2a", "", "equal"),
    "root": ("#b00020", "\N{MULTIPLICATION SIGN}", "goes wrong here"),
    "differs": ("#e08a00", "~", "follows from something wrong"),
    "missing": ("none", "", "not given"),
}

#: A site inside a layer, with the layer's own number where layers share their parameters.
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.([^@]+?)(?:@(\d+))?$")

_WIDTH, _ROW, _CELL, _LEFT = 300, 20, 15, 142


@dataclass(frozen=True)
class _Site:
    """A row of the picture: a site's tensors in the order of the data flow."""

    label: str
    tensors: tuple[tuple[str, str], ...]  # names and states


def states_of(kit: Kit, report: Report) -> dict[str, str]:
    """Return the state of each computed tensor of a kit."""
    differing = {item.name: "root" if item.root else "differs" for item in report.differences}
    compared = set(report.compared)
    return {
        name: differing.get(name, "ok" if name in compared else "missing")
        for name, tensor in kit.tensors.items()
        if tensor.operation != "given"
    }


def network_pictures(kit: Kit, report: Report) -> dict[str, str]:
    """Draw the network once for each input of a kit, as HTML with one SVG per part.

    The parts are the embeddings, each layer, and the head. A row is a site, such as a linear
    layer, and a square in it is a tensor, coloured by its state. The first tensor that goes wrong
    is framed and named.

    Parameters
    ----------
    kit : Kit
    report : Report

    Returns
    -------
    dict of str to str
        The pictures by the input, ``model/0`` and so on.
    """
    states = states_of(kit, report)
    first = next((item.name for item in report.differences if item.root), None)
    cases: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in states:
        parts = name.split("/", 2)
        if parts[0] == "model" and len(parts) > 2:
            group, site = _place(parts[2])
            sites = cases.setdefault("/".join(parts[:2]), {}).setdefault(group, {})
            sites.setdefault(site, []).append(name)
    return {
        case: "".join(
            _part(
                group,
                [
                    _Site(site, tuple((name, states[name]) for name in names))
                    for site, names in sites.items()
                ],
                first,
            )
            for group, sites in groups.items()
        )
        for case, groups in cases.items()
    }


def _place(path: str) -> tuple[str, str]:
    """Return the part of the network and the site of a tensor of a model.

    >>> _place("encoder.layer.1.output.dense/sum")
    ('layer 1', 'output.dense')
    """
    site, slash, _ = path.rpartition("/")
    if not slash:
        return "head", path
    if layer := _LAYER.match(site):
        return f"layer {layer[3] or layer[1]}", layer[2]
    if site.startswith("embeddings"):
        return "embeddings", site
    return "head", site


def _part(title: str, sites: Iterable[_Site], first: str | None) -> str:
    """Draw a part of the network: its sites from top to bottom, a line for the data flow."""
    shapes: list[str] = []
    y = 30
    for site in sites:
        own, rows = _row(site, y, first)
        shapes += own
        y += rows * _ROW
    names = {name for site in sites for name, _ in site.tensors}
    height, frame = y + 6, ' stroke="#ccc"'
    if first in names:
        frame = ' stroke="#b00020" stroke-width="2"'
    return (
        f'<svg class="part" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{_text(title)}">'
        f'<rect x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="6" fill="#fafafa" '
        f"{frame}/>"
        f'<text x="10" y="19" font-size="13" font-weight="bold">{_text(title)}</text>'
        f"{''.join(shapes)}</svg>"
    )


def _row(site: _Site, y: int, first: str | None) -> tuple[list[str], int]:
    """Draw a site and return its shapes and the number of rows that they take."""
    per_row = (_WIDTH - _LEFT - 8) // (_CELL + 3)
    label = site.label if len(site.label) <= 22 else f"\N{HORIZONTAL ELLIPSIS}{site.label[-21:]}"
    shapes = [
        f'<text x="{_LEFT - 8}" y="{y + 12}" font-size="11" text-anchor="end">{_text(label)}</text>'
    ]
    marked = None
    for number, (name, state) in enumerate(site.tensors):
        line, column = divmod(number, per_row)
        x, top = _LEFT + column * (_CELL + 3), y + line * _ROW
        colour, sign, words = STATES[state]
        border = ' stroke="#999" stroke-dasharray="2 2"' if state == "missing" else ""
        what = name.rpartition("/")[2]
        shapes.append(
            f'<g><title>{_text(what)}: {words}</title><rect x="{x}" y="{top}" width="{_CELL}" '
            f'height="{_CELL}" rx="2" fill="{colour}"{border}/>'
        )
        if sign:
            shapes.append(
                f'<text x="{x + _CELL / 2}" y="{top + 12}" font-size="13" fill="#fff" '
                f'text-anchor="middle">{sign}</text>'
            )
        shapes.append("</g>")
        if name == first:
            marked = x, top, what
    rows = -(-len(site.tensors) // per_row)
    if marked is not None:
        x, top, what = marked
        shapes.append(
            f'<rect x="{x - 2.5}" y="{top - 2.5}" width="{_CELL + 5}" height="{_CELL + 5}" rx="4" '
            f'fill="none" stroke="#000" stroke-width="2"/>'
            f'<text x="{_WIDTH - 8}" y="{y + rows * _ROW + 12}" font-size="11" font-weight="bold" '
            f'fill="#b00020" text-anchor="end">\N{UPWARDS ARROW} first: {_text(what)}</text>'
        )
        rows += 1
    return shapes, rows


def _text(text: str) -> str:
    return html.escape(shown(text))


def _legend() -> str:
    """Explain the colours."""
    items = []
    for colour, sign, words in STATES.values():
        border = ' stroke="#999" stroke-dasharray="2 2"' if colour == "none" else ""
        items.append(
            f'<span><svg width="15" height="15"><rect x="0.5" y="0.5" width="14" height="14" '
            f'rx="2" fill="{colour}"{border}/><text x="7.5" y="12" font-size="13" fill="#fff" '
            f'text-anchor="middle">{sign}</text></svg> {words}</span>'
        )
    return f'<p class="legend">{" ".join(items)}</p>'


LEGEND = _legend()

"""A calibration's statistics per operand, as numbers and as figures by matplotlib (extra: plot)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.colors import COLORS
from bert_numpy.errors import BertNumpyError, shown, writing
from bert_numpy.quantization.calibration import observed_scale, sqnr
from bert_numpy.quantization.observers import Statistics, clip_range
from bert_numpy.quantization.recipe import Operand
from npfp8 import E4M3FN, E5M2, INT8, Format, absmax_scale
from npfp8.bfloat16 import from_bits
from npfp8.files import replaced_file, require_distinct_names, same_file

__all__ = [
    "FORMATS",
    "WIDTH",
    "describe",
    "draw_figures",
    "draw_histogram",
    "draw_sqnr",
    "save_figure",
    "subplots",
]

#: The formats that the figures compare.
FORMATS: dict[str, Format] = {"INT8": INT8, "E4M3": E4M3FN, "E5M2": E5M2}

#: Inches that a figure is wide: its text, of 8 points or more, can be read on a phone too.
WIDTH = 6.4

#: Pixels per inch: a figure is sharp where a page shows it 800 pixels wide or more.
DPI = 160


def subplots(**options: Any) -> tuple[Any, Any]:
    """Make a figure and its axes, drawn into memory; nothing is shown.

    Raises
    ------
    BertNumpyError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (an extra)
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise BertNumpyError(
            "figures: expected matplotlib, found none: pip install 'fp8-bert-numpy[plot]'"
        ) from None
    figure = Figure(figsize=options.pop("figsize", None), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(**options)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all; the same figure gives the same bytes.

    Its ground is white, with a margin, so that it can be read on dark pages too.

    Raises
    ------
    BertNumpyError
        If it cannot be written.
    """
    with warnings.catch_warnings(), writing(path), replaced_file(path) as file:
        warnings.simplefilter("ignore")  # of letters that the font lacks
        figure.savefig(
            file,
            format="png",
            dpi=DPI,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.12,
            metadata={"Software": None},
        )


def describe(seen: Statistics) -> dict[str, Any]:
    """Summarize an operand: elements, extrema, percentiles of magnitudes, and each format's noise.

    Each format has the scale from the absolute maximum and the signal-to-quantization-noise
    ratio with it in dB (None if there is no noise).
    """
    formats = {}
    for label, fmt in FORMATS.items():
        ratio = sqnr(seen, Operand(fmt))
        scale = float(observed_scale(seen, Operand(fmt)).scale)
        formats[label] = {"scale": scale, "sqnr": ratio if math.isfinite(ratio) else None}
    percentiles = {
        f"p{percentile:g}": max(map(abs, clip_range(seen, "percentile", E4M3FN, percentile)))
        for percentile in (99.0, 99.9, 99.99)
    }
    return {
        "elements": seen.count,
        "low": seen.low,
        "high": seen.high,
        **percentiles,
        "formats": formats,
    }


def draw_figures(
    operands: Mapping[str, Statistics],
    folder: Path,
    others: Sequence[str | Path],
    progress: Callable[[int], None],
) -> None:
    """Draw ``sqnr.png`` and a histogram of each operand into a folder, made if it is missing.

    Parameters
    ----------
    operands : mapping of str to Statistics
    folder : Path
    others : sequence of str or Path
        Files that must not be overwritten.
    progress : callable
        Called with 1 after each operand.

    Raises
    ------
    BertNumpyError
        If an operand's name is no file name, two operands would have one file, a file is
        one of ``others``, or a figure cannot be written. All but the last is checked first.
    """
    names = {name: f"{name.replace(':', '-')}.png" for name in operands}
    try:
        require_distinct_names({"the figure of all": "sqnr.png", **names})
    except ValueError as error:
        raise BertNumpyError(f"figures: operand {error}") from None
    for name in ("sqnr.png", *names.values()):
        if any(same_file(folder / name, other) for other in others):
            raise BertNumpyError(f"{folder / name}: expected a figure's place, found another file")
    subplots()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    draw_sqnr(operands, folder / "sqnr.png")
    for name, seen in operands.items():
        draw_histogram(name, seen, folder / names[name])
        progress(1)


def draw_sqnr(operands: Mapping[str, Statistics], path: Path) -> None:
    """Draw the signal-to-quantization-noise ratio of every operand, by format."""
    names = list(operands)
    figure, axis = subplots(figsize=(WIDTH, 0.17 * len(names) + 1.1))
    for label, fmt in FORMATS.items():
        ratios = [sqnr(operands[name], Operand(fmt)) for name in names]
        axis.plot(ratios, range(len(names)), "o", markersize=4, color=COLORS[label], label=label)
    short = [_label(name.removeprefix("encoder.")) for name in names]
    axis.set_yticks(range(len(names)), short)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlabel(
        "signal-to-quantization-noise ratio, dB\n(one scale per tensor, from the absolute maximum)",
        fontsize=9,
    )
    figure.legend(loc="outside upper right", ncols=len(FORMATS), frameon=False, fontsize=9)
    axis.grid(alpha=0.3)
    save_figure(figure, path)


def draw_histogram(name: str, seen: Statistics, path: Path) -> None:
    """Draw an operand's elements below the values that each format has for them, by absmax."""
    magnitudes, counts = np.abs(from_bits(seen.bits)), seen.counts
    largest = max(seen.absmax, 2.0**-100)
    edges = np.geomspace(largest * 2.0**-24, largest * 1.1, 97)
    figure, (lines, axis) = subplots(
        nrows=2, sharex=True, height_ratios=(1, 3), figsize=(WIDTH, 3.8)
    )
    for level, (label, fmt) in enumerate(FORMATS.items()):
        scale = float(absmax_scale(np.float32(largest), fmt))
        grid = np.unique(np.abs(_finite_values(fmt))) * scale
        grid = grid[(grid >= edges[0]) & (grid <= edges[-1])]
        lines.plot(grid, np.full(grid.size, level), "|", markersize=11, color=COLORS[label])
    lines.set_yticks(range(len(FORMATS)), [f"values of {label}" for label in FORMATS])
    lines.set_ylim(len(FORMATS) - 0.4, -0.6)
    lines.tick_params(length=0, which="both")
    lines.spines[["left", "bottom"]].set_visible(False)
    axis.hist(magnitudes, edges, weights=counts, color="silver")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel(f"magnitude of {_label(name)}", fontsize=9)
    axis.set_ylabel("elements", fontsize=9)
    save_figure(figure, path)


def _label(name: str) -> str:
    """Make a name a figure's text, in which dollar signs would begin formulas."""
    return shown(name).replace("$", r"\$")


def _finite_values(fmt: Format) -> Sequence[float]:
    return fmt.values[np.isfinite(fmt.values)].tolist()

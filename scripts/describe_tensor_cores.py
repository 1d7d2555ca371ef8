"""Write the table of docs/tensor-cores.md from the accumulators' records, and draw its figure.

    python scripts/describe_tensor_cores.py [--check]

``--check`` writes nothing, and exits with 1 if the page has another table. The figure needs
matplotlib.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bert_numpy.colors import COLORS
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from npfp8 import ACCUMULATORS, Accumulator
from npfp8.files import replaced_file

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "tensor-cores.md"
FIGURE = DOCS / "figures" / "tensor-cores.png"

#: The lines between which the page has the table.
MARKS = (
    "<!-- scripts/describe_tensor_cores.py writes this table. -->",
    "<!-- The table ends here. -->",
)

ROWS = [how for how in ACCUMULATORS.values() if how.is_tensor_core]


def operands(how: Accumulator) -> str:
    return ", ".join([*map(str, how.formats or ()), *how.floats])


def result(how: Accumulator) -> str:
    """Say to what the sum of a step is rounded."""
    kind = {24: "float32", 11: "float16"}.get(how.precision, f"{how.precision} bits")
    return f"{kind}, {'nearest even' if how.nearest else 'toward zero'}"


def table() -> list[str]:
    """Return the lines of the table."""
    lines = [
        "| `accumulate` | operands | rule | K a step | F | after a step | compared with |",
        "| --- | --- | --- | ---: | ---: | --- | --- |",
    ]
    for how in ROWS:
        whom = "hardware, here" if how.proven else "MMA-Sim"
        cells = (f"`{how.name}`", operands(how), how.kind, how.step, how.fraction_bits)
        lines.append("| " + " | ".join(map(str, (*cells, result(how), whom))) + " |")
    return lines


def with_table(text: str) -> str:
    """Return the page's text with the table of the records."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not after:
        raise ValueError(f"{PAGE}: expected the lines {MARKS}")
    return before + "\n".join([MARKS[0], "", *table(), "", MARKS[1]]) + after


def draw() -> None:
    """Draw for each accumulator how far below the largest term its bits reach."""
    figure, axes = subplots(figsize=(WIDTH, 0.27 * len(ROWS) + 0.9))
    for place, how in enumerate(reversed(ROWS)):
        kept, color = how.fraction_bits, COLORS["E4M3"]
        axes.barh(place, kept, height=0.62, color=color, alpha=0.35)
        axes.barh(place, how.precision - 1, height=0.3, color=color)
    axes.set_yticks(range(len(ROWS)), [how.name for how in reversed(ROWS)], fontsize=8)
    widths = (7, "bfloat16", "right"), (10, "float16", "left"), (23, "float32", "left")
    for bits, name, side in widths:
        axes.axvline(bits, color=COLORS["BF16"], linewidth=0.8, linestyle="--")
        axes.text(bits, len(ROWS) - 0.3, name, fontsize=8, ha=side, va="bottom")
    axes.set_xlabel(
        "bits after the leading one: of the largest term, to which all terms of a step\n"
        "are cut off (light), and of the sum after the step (dark)",
        fontsize=8,
    )
    axes.set_xlim(0, 36)
    save_figure(figure, FIGURE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    if arguments.check:
        sys.exit(with_table(text) != text)
    with replaced_file(PAGE) as file:
        file.write(with_table(text).encode())
    draw()


if __name__ == "__main__":
    main()

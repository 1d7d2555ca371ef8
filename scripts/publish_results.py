"""Put the study's results at base size into README, docs/, notebook 4 and the package.

    python scripts/publish_results.py [--accuracy RESULTS.json ...] [--outliers OUTLIERS.json ...]
        [--sensitivity SENSITIVITY.json ...] [--rescue RESCUE.json ...] [--blocks RESULTS.json ...]
    python scripts/publish_results.py --check

docs/data/results-base.json is the one source of the tables and figures. Each option
replaces its part by the contents of all given files; other parts stay. Then every part
of a page between `<!-- base size, NAME: begin -->` and `<!-- base size, NAME: end -->`
is rewritten, and so are the figures, also where a notebook shows one. A block without
results is empty. The package gets the rows that ``bert-numpy demo`` quotes.
--check writes nothing; the exit code is 1 if a page differs from the results.

The files are those of reproduce_paper.py (results.json; --blocks has those of the block
formats, of all sizes of models), measure_outliers.py, study_sensitivity.py and
study_rescue.py.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from bert_numpy.commands.report import write_text
from bert_numpy.errors import BertNumpyError, read_json
from bert_numpy.study.figures import draw_differences, draw_headline, draw_outliers
from bert_numpy.study.tables import (
    accuracy_tables,
    block_tables,
    first_metric,
    headline,
    outlier_sites,
    outlier_summary,
    rescue_table,
    results_by_model,
    rule_tables,
    sensitivity_tables,
    summary,
)

ROOT = Path(__file__).resolve().parent.parent

#: Paths relative to the repository's root.
DATA = Path("docs/data/results-base.json")
EXCERPT = Path("bert_numpy/assets/base-size.json")
PAGES = ("README.md", "docs/index.md", "docs/results.md", "notebooks/4-fp8-ptq-step-by-step.ipynb")

#: The parts of the data, and the type of a part's file: a list of entries, or one entry.
PARTS = {"accuracy": list, "outliers": list, "sensitivity": dict, "rescue": list, "blocks": list}
OPTIONS = ("--accuracy", "--outliers", "--sensitivity", "--rescue", "--blocks")

#: The recipes that the demo quotes, for models that have results of all of them.
QUOTED = ("fp32", "int8", "e4m3")

#: The number of sites shown of a ranking.
MOST_SITES = 10

Data = Mapping[str, list[Any]]

#: The figures: the part that they draw, the function, and the alternative text.
FIGURES: dict[str, tuple[str, Callable[[Any, Path], None], str]] = {
    "accuracy-base.png": ("accuracy", draw_headline, "Accuracy by format at base size"),
    "difference-base.png": ("accuracy", draw_differences, "Difference from FP32 by recipe"),
    "outlier-channels-base.png": ("outliers", draw_outliers, "The largest channel by site"),
}

#: A block's part of the data, and its tables.
TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "headline": ("accuracy", headline),
    "summary": ("accuracy", summary),
    "recipes": ("accuracy", accuracy_tables),
    "outliers": ("outliers", outlier_summary),
    "outlier sites": ("outliers", lambda reports: outlier_sites(reports[0])),
    "sensitivity": (
        "sensitivity",
        lambda reports: "\n".join(sensitivity_tables(report, MOST_SITES) for report in reports),
    ),
    "rescue": ("rescue", rescue_table),
    "block formats": ("blocks", block_tables),
    "rules": ("blocks", rule_tables),
}

_BLOCK = re.compile(
    r"(<!-- base size, ([\w .-]+): begin -->\n)(.*?)(<!-- base size, \2: end -->)", re.DOTALL
)

#: How a notebook's cell shows a figure's file.
_SHOWN = re.compile(r'^Image\("([\w./-]+\.png)"', re.MULTILINE)


def read_data(path: Path) -> dict[str, list[Any]]:
    """Read the published results; a part that the file does not have is empty.

    Raises
    ------
    BertNumpyError
        If the file is missing or damaged.
    """
    found = read_json(path)
    return {part: found.get(part, []) for part in PARTS}


def data_text(data: Data) -> str:
    """Format the results as JSON with one entry per line."""
    parts = []
    for part, entries in data.items():
        lines = _lines(entries, "  ")
        parts.append(f' "{part}": [\n{lines}\n ]' if entries else f' "{part}": []')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def excerpt_text(data: Data) -> str:
    """Format the rows that the demo quotes as JSON, with the first metric of each.

    They are those of models whose predictions are classes or answers: scores have no flips.
    """
    names = ("model", "task", "recipe", "examples", "flips")
    rows = []
    for recipes in results_by_model(data["accuracy"]).values():
        quoted = [recipes[name] for name in QUOTED if name in recipes and "flips" in recipes[name]]
        for row in quoted if len(quoted) == len(QUOTED) else []:
            metric = first_metric(row)
            rows.append({n: row[n] for n in names} | {"metric": metric, "value": row[metric]})
    return f"[\n{_lines(rows, ' ')}\n]\n"


def _lines(entries: Iterable[Any], indent: str) -> str:
    return ",\n".join(f"{indent}{json.dumps(entry, allow_nan=False)}" for entry in entries)


def block(name: str, data: Data, folder: Path) -> str:
    """Make the text of a block on a page in ``folder``, a path relative to the root.

    Raises
    ------
    BertNumpyError
        If no block has the name.
    """
    if name in FIGURES:
        part, _, alt = FIGURES[name]
        target = os.path.relpath(Path("docs/figures") / name, folder)
        return f"\n![{alt}]({Path(target).as_posix()})\n\n" if data[part] else ""
    if name in TABLES:
        part, render = TABLES[name]
        return f"\n{render(data[part]).rstrip()}\n\n" if data[part] else ""
    raise BertNumpyError(f"block: expected one of {', '.join([*FIGURES, *TABLES])}, found {name!r}")


def filled(text: str, data: Data, folder: Path) -> str:
    """Rewrite every block in a page's text.

    Raises
    ------
    BertNumpyError
        If a block has no end, or an unknown name.
    """
    found = _BLOCK.findall(text)
    if not len(found) == text.count("<!-- base size, ") / 2:
        raise BertNumpyError("block: expected an end of the same name behind each begin")
    return _BLOCK.sub(lambda m: f"{m[1]}{block(m[2], data, folder)}{m[4]}", text)


def page(path: Path, data: Data) -> str:
    """Make the text of a page or notebook with these results; ``path`` is relative to the root."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return filled(text, data, path.parent)
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            cell["source"] = filled(source, data, path.parent).splitlines(keepends=True)
        elif shown := _SHOWN.search(source):
            image = (ROOT / path.parent / shown[1]).read_bytes()
            cell["outputs"][0]["data"]["image/png"] = base64.b64encode(image).decode()
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in OPTIONS:
        parser.add_argument(option, nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()

    data = read_data(ROOT / DATA)
    for part, kind in PARTS.items():
        files = getattr(arguments, part)
        if files:
            contents = [read_json(file, kind) for file in files]
            data[part] = contents if kind is dict else [row for rows in contents for row in rows]
    if not arguments.check:
        for name, (part, draw, _) in FIGURES.items():
            if data[part]:
                draw(data[part], ROOT / "docs" / "figures" / name)
                print(f"docs/figures/{name}")
    pages = {name: page(Path(name), data) for name in PAGES}
    pages |= {str(DATA): data_text(data), str(EXCERPT): excerpt_text(data)}
    changed = [n for n, text in pages.items() if (ROOT / n).read_text("utf-8") != text]
    if arguments.check:
        for name in changed:
            print(f"{name}: is not what {DATA} gives: python scripts/publish_results.py")
        sys.exit(1 if changed else 0)
    for name in changed:
        write_text(ROOT / name, pages[name])
        print(name)


if __name__ == "__main__":
    main()

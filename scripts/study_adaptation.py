"""Measure forward-only adaptation of a classifier under shifts of its texts.

    python scripts/study_adaptation.py MODEL --task sst2 --data DIR --out DIR
        [--recipes fp32,int8,e4m3] [--shifts none,typos,drops,noise,order] [--level 0 1 2]
        [--seeds 3] [--source long] [--samples 256] [--passes 1] [--limit N] [--prompts 3]
        [--weight 0.4] [--sigma 1] [--population N] [--candidates N] [--workers N] [--name NAME]
        [--figure FILE]
    python scripts/study_adaptation.py --compare NAME NAME [NAME ...] --out DIR --name NAME

Each cell is a recipe, a shift of one strength and a seed. The seed decides the shifted texts,
their order, and the search. The texts arrive in batches of 64, and each cell answers them in
four ways: the static model, shifted features alone, prompts alone, and both.

- The statistics of the source come from --samples training texts: of any length, or, with
  --source long, of at least 12 words. With --source dev they come from all texts of the
  development set before their shift, as in the authors' code.
- With --passes the texts arrive several times, and the answers of the last time count.
- With --candidates nothing is searched: so many random prompts are tried on each batch, and
  the terms of their fitness are correlated with their accuracy. If the folder also has the
  cells of a search on the same texts, the prompts are compared with the static model.

Every cell is a file of its own in DIR/cells, so the study can be interrupted and resumed. The
script writes DIR/NAME.json and .md: accuracies, differences from the static model with 95 %
bootstrap intervals over texts, their range over seeds, and the shares of the first label. With
--figure it also draws the accuracies by the strength of each shift (the extra plot).

With --compare nothing is computed: the studies of these names in DIR are put into one table,
by the settings in which they differ, over the cells that all of them have.

The search needs the package cma (the extra adaptation).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_numpy.adaptation.forward_only import ForwardOnly
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError, read_json
from bert_numpy.study.adaptation import AdaptationCell, run_cell
from bert_numpy.study.adaptation_tables import (
    AdaptationStudy,
    candidate_page,
    candidate_rows,
    compared,
    comparison_page,
    draw,
    page,
    pass_rows,
    rows_of,
    study_from_json,
)
from bert_numpy.study.shifts import SHIFTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", nargs="?")
    parser.add_argument("--task")
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", default="fp32,int8,e4m3", metavar="LIST")
    parser.add_argument("--shifts", default="none,typos,drops,noise,order", metavar="LIST")
    parser.add_argument("--level", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--source", choices=("train", "long", "dev"), default="train")
    parser.add_argument("--samples", type=int, default=256, metavar="N")
    parser.add_argument("--passes", type=int, default=1, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N")
    parser.add_argument("--candidates", type=int, default=0, metavar="N")
    parser.add_argument("--prompts", type=int, default=3, metavar="N")
    parser.add_argument("--weight", type=float, default=0.4)
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--population", type=int, metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="N")
    parser.add_argument("--name", help="the stem of the results' files")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    parser.add_argument("--compare", nargs="+", metavar="NAME")
    given = parser.parse_args()
    if given.compare:
        if not given.name:
            parser.error("--compare needs --name")
        compare(given.compare, given.out, given.name)
    elif not (given.model and given.task and given.data):
        parser.error("MODEL, --task and --data are needed, or --compare")
    elif given.figure and (given.candidates or given.shifts == "none"):
        parser.error("--figure needs shifts and no --candidates")
    else:
        study(given)


def compare(names: Sequence[str], out: Path, name: str) -> None:
    """Write the table of studies whose files are in a folder."""
    found = [read_json(out / f"{one}.json") for one in names]
    studies = [study_from_json(one["study"]) for one in found]
    rows = compared(studies, out / "cells")
    text = comparison_page(studies, rows)
    write_json(str(out / f"{name}.json"), {"studies": list(names), "rows": rows})
    write_text(out / f"{name}.md", text)
    print(text)


def study(given: argparse.Namespace) -> None:
    """Compute the cells that are missing, and write the files of the study."""
    for name in (shifts := given.shifts.split(",")):
        if name != "none" and name not in SHIFTS:
            raise BertNumpyError(f"--shifts: expected none or {', '.join(SHIFTS)}, found {name!r}")
    settings = ForwardOnly(given.prompts, given.weight, given.sigma, given.population)
    base = AdaptationCell(
        *(given.model, given.task, given.data, "", "none", 0.0, 0, given.source),
        *(given.samples, given.passes, given.limit, given.candidates, settings),
    )
    recipes = tuple(given.recipes.split(","))
    asked = AdaptationStudy(base, recipes, tuple(shifts), tuple(given.level), given.seeds)
    cells = asked.cells
    folder = given.out / "cells"
    missing = [cell for cell in cells if not cell.file(folder).exists()]
    print(f"{len(cells)} cells, {len(missing)} of them to run", flush=True)
    if given.workers > 1:
        with ProcessPoolExecutor(given.workers) as pool:
            running = [pool.submit(run_cell, cell, folder) for cell in missing]
            for number, one in enumerate(running, 1):
                print(f"{number}/{len(missing)} {one.result().name}", flush=True)
    else:
        for number, cell in enumerate(missing, 1):
            print(f"{number}/{len(missing)} {run_cell(cell, folder).name}", flush=True)
    rows = candidate_rows(cells, folder) if given.candidates else rows_of(cells, folder)
    name = given.name or f"adaptation-{Path(given.model).name}-{given.task}"
    report: dict[str, Any] = {"study": asdict(asked), "rows": rows}
    if given.passes > 1:
        report["passes"] = pass_rows(cells, folder)
    if given.candidates:
        text = candidate_page(asked, rows)
    else:
        text = page(asked, rows, report.get("passes", ()))
    write_json(str(given.out / f"{name}.json"), report)
    write_text(given.out / f"{name}.md", text)
    if given.figure:
        draw(rows, given.figure)
    print(text)


if __name__ == "__main__":
    main()

"""Measure forward-only adaptation of a classifier under shifts of its texts.

    python scripts/study_adaptation.py MODEL --task sst2 --data DIR --out DIR
        [--recipes fp32,int8,e4m3] [--shifts none,typos,drops,noise,order] [--level 0 1 2]
        [--seeds 3] [--source long] [--samples 256] [--passes 1] [--limit N] [--prompts 3]
        [--weight 0.4] [--sigma 1] [--population N] [--candidates N] [--workers N] [--name NAME]

Each cell is a recipe, a shift of one strength and a seed. The seed decides the shifted texts,
their order, and the search. The texts arrive in batches of 64, and each cell answers them in
four ways: the static model, shifted features alone, prompts alone, and both.

- The statistics of the source come from --samples training texts: of any length, or, with
  --source long, of at least 12 words. With --source dev they come from all texts of the
  development set before their shift, as in the authors' code.
- With --passes the texts arrive several times, and the answers of the last time count.
- With --candidates nothing is searched: so many random prompts are tried on each batch, and
  the terms of their fitness are correlated with their accuracy.

Every cell is a file of its own in DIR/cells, so the study can be interrupted and resumed. The
script writes DIR/NAME.json and .md: accuracies, and differences from the static model with
95 % bootstrap intervals over texts and the range over seeds. It needs the package cma.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

from bert_numpy.adaptation.forward_only import ForwardOnly
from bert_numpy.commands.report import write_json, write_text
from bert_numpy.errors import BertNumpyError
from bert_numpy.study.adaptation import (
    AdaptationCell,
    candidate_rows,
    candidate_table,
    cells_of,
    page,
    pass_rows,
    pass_table,
    rows_of,
    run_cell,
)
from bert_numpy.study.shifts import SHIFTS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
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
    given = parser.parse_args()

    for name in (shifts := given.shifts.split(",")):
        if name != "none" and name not in SHIFTS:
            raise BertNumpyError(f"--shifts: expected none or {', '.join(SHIFTS)}, found {name!r}")
    settings = ForwardOnly(given.prompts, given.weight, given.sigma, given.population)
    base = AdaptationCell(
        *(given.model, given.task, given.data, "", "none", 0.0, 0, given.source),
        *(given.samples, given.passes, given.limit, given.candidates, settings),
    )
    cells = cells_of(base, given.recipes.split(","), shifts, given.level, given.seeds)
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
    write_json(str(given.out / f"{name}.json"), {"settings": asdict(base), "rows": rows})
    text = candidate_table(rows) if given.candidates else page(rows)
    if given.passes > 1:
        text += f"\n{pass_table(pass_rows(cells, folder))}"
    write_text(given.out / f"{name}.md", text)
    print(text)


if __name__ == "__main__":
    main()

"""Time golden inference beside fast, in one run, and print where its time goes.

    python scripts/benchmark_golden.py MODEL --task sst2 --data DIR [--limit N] [--json FILE]

The recipes take turns, batch by batch, so that a slow moment of the machine
affects all. Each time is the sum over the batches of the best of several rounds.
Calibration is not timed.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import platform
import pstats
import time
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.evaluation.evaluate import batches, calibrate_on
from bert_numpy.evaluation.job import prepare
from bert_numpy.model.model import Model
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.presets import PRESETS
from npfp8.files import replaced_file

#: The runs to time, by name: the recipe, and whether golden. All are compared with the first.
RUNS = {
    f"{recipe}{' golden' * golden}": (recipe, golden)
    for recipe in ("fp32", "e4m3", "int8", "e5m2", "bf16")
    for golden in (False, True)
}


def best_seconds(
    models: dict[str, Model], inputs: list[dict[str, Any]], rounds: int
) -> dict[str, float]:
    """Return the seconds for all batches, by model."""
    best = {name: [float("inf")] * len(inputs) for name in models}
    for _ in range(rounds):
        for i, batch in enumerate(inputs):
            for name, model in models.items():
                begin = time.perf_counter()
                model(**batch)
                best[name][i] = min(best[name][i], time.perf_counter() - begin)
    return {name: sum(times) for name, times in best.items()}


def print_profile(model: Model, inputs: list[dict[str, Any]], name: str) -> None:
    """Print the functions that take the most time themselves, each with its share."""
    profile = cProfile.Profile()
    profile.enable()
    for batch in inputs:
        model(**batch)
    profile.disable()
    stats = pstats.Stats(profile)
    functions = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:12]  # type: ignore[attr-defined]
    print(f"\nwhere the time of {name} goes (profiled: small calls count for too much):")
    for (file, line, function), (_, calls, own, _, _) in functions:
        place = "" if line == 0 else f"{Path(file).name}:{line} "
        print(f"{100 * own / stats.total_tt:5.1f} %  {calls:>7,} calls  {place}{function}")  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    job = prepare(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    calibration = calibrate_on(job.model, job.calibration_texts[:64])
    models = {
        name: apply_recipe(job.model, PRESETS[recipe], calibration, golden)
        for name, (recipe, golden) in RUNS.items()
    }
    inputs = [batch for _, batch in batches(job.encoded, arguments.batch_size)]
    for model in models.values():  # builds the tables
        model(**inputs[-1])
    seconds = best_seconds(models, inputs, arguments.rounds)
    reference = seconds[next(iter(RUNS))]
    print(f"{job.model.name}, {len(job.examples)} examples, batches of {arguments.batch_size}")
    print(f"{platform.machine()}, NumPy {np.__version__}")
    print("| recipe | seconds | / fp32 |\n| --- | --- | --- |")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / reference:.2f} |")
    print_profile(models["e4m3 golden"], inputs, "golden e4m3")
    if arguments.json:
        with replaced_file(arguments.json) as file:
            file.write(json.dumps({"numpy": np.__version__, "seconds": seconds}, indent=1).encode())


if __name__ == "__main__":
    main()

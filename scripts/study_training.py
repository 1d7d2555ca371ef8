r"""Train in FP8 by every scaling, and compare with training in float32.

    python scripts/study_training.py run MODEL --task sst2 --data GLUE/SST-2 --out DIR
        --scaling dynamic --seed 0 [--epochs 6] [--rate 3e-4] [--frozen 'embeddings.*'] [--limit N]
    python scripts/study_training.py list MODEL --task sst2 --data GLUE/SST-2 --out DIR [--seeds 3]
    python scripts/study_training.py report --out DIR
    python scripts/study_training.py sums MODEL --task sst2 --data GLUE/SST-2

``run`` trains a model by one scaling ("float32" for none), evaluates it in float32 and, calibrated,
in E4M3, and writes DIR/TASK-SCALING-SEED.json; a run that is there is not repeated. ``list`` prints
such a command per line, for several processes (``| xargs -d '\n' -P 8 -I{} sh -c {}``).
``report`` writes DIR/training.md, training.json and three figures; and training-course.md, with the
gradients of the first of the 48 parts of a run and of the rest. ``sums`` measures by how much
gradients with products summed by the BLAS differ from those with exact products.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.colors import COLORS
from bert_numpy.commands.figures import WIDTH, save_figure, subplots
from bert_numpy.study.training import (
    FLOAT32,
    Course,
    add_run_options,
    lesson,
    main_metric,
    mean_and_deviation,
    products_of,
    read_records,
    run_command,
    stopwatch,
    training_of,
    write_record,
    write_report,
)
from bert_numpy.tasks.tokenization import pad
from bert_numpy.threads import default_threads
from bert_numpy.training.fit import fit
from bert_numpy.training.losses import loss_of
from bert_numpy.training.products import FloatProducts, Products
from bert_numpy.training.scalings import SCALINGS
from bert_numpy.training.tape import tape

NAMES = (FLOAT32, *SCALINGS)

#: The records of runs by task and scaling.
Runs = dict[str, dict[str, list[Mapping[str, Any]]]]

#: The tensors of a linear layer or a product of activations.
PARTS = {
    "a": "activations, E4M3",
    "b": "weights, keys and values, E4M3",
    "dy": "gradients, E5M2",
    "db": "gradients of weights, E4M3",
}


def record_file(out: Path, task: str, scaling: str, seed: int) -> Path:
    return out / f"{task}-{scaling}-{seed}.json"


def run(arguments: argparse.Namespace) -> None:
    file = record_file(arguments.out, arguments.task, arguments.scaling, arguments.seed)
    if file.exists():
        return
    learned = lesson(
        arguments.model,
        arguments.task,
        arguments.data,
        seed=arguments.seed,
        limit=arguments.limit,
    )
    training = training_of(arguments)
    products = products_of(arguments.scaling, learned, training.batch_size)
    course = Course(report=lambda line: print(f"{file.stem}: {line}", file=sys.stderr, flush=True))
    watch = stopwatch()
    fitted = fit(
        learned.model, learned.train, learned.train_labels, training,
        products=products, watch=course,
    )  # fmt: skip
    times, found = watch(), {}
    for recipe in ("fp32", "e4m3"):
        evaluation = learned.evaluated(learned.quantized(fitted.model, recipe))
        found[recipe] = {**evaluation.metrics, "not_finite": evaluation.not_finite}
    factors = {}
    states = getattr(fitted.products, "states", {})
    for name, state in states.items():
        if state.factor != 1:
            factors[name] = state.factor
    record = {
        "task": arguments.task,
        "scaling": arguments.scaling,
        "seed": arguments.seed,
        "epochs": training.epochs,
        "steps": len(fitted.losses),
        "skipped": len(fitted.skipped),
        **times,
        "threads": default_threads(),
        "results": found,
        "factors": factors,
        **course.record(),
    }
    write_record(file, record)
    print(f"{file.stem}: {found} in {times['seconds']:.0f} s", file=sys.stderr)


def list_runs(arguments: argparse.Namespace) -> None:
    for seed in range(arguments.seeds):
        for scaling in NAMES:
            if not record_file(arguments.out, arguments.task, scaling, seed).exists():
                print(run_command(__file__, arguments, scaling=scaling, seed=seed))


def by_run(records: Sequence[Mapping[str, Any]]) -> Runs:
    """Sort the records by task and scaling, in the order of the table of scalings."""
    found: Runs = {}
    for task in dict.fromkeys(record["task"] for record in records):
        for name in NAMES:
            chosen = [r for r in records if (r["task"], r["scaling"]) == (task, name)]
            if chosen:
                found.setdefault(task, {})[name] = sorted(chosen, key=lambda r: r["seed"])
    return found


def shares(record: Mapping[str, Any], part: str) -> tuple[float, float]:
    """Return the shares of saturated and underflowed elements of one kind of tensor in a run."""
    rows = [row for name, row in record["counts"].items() if name.endswith(f":{part}")]
    total = np.sum([np.sum(row, axis=0) for row in rows], axis=0) if rows else np.zeros(3)
    return (total[1] / total[0], total[2] / total[0]) if total[0] else (np.nan, np.nan)


def percent(x: float) -> str:
    if not np.isfinite(x):
        return ""
    return "0" if x == 0 else "100" if x > 0.995 else f"{100 * x:.2g}"


def table_of(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Make a task's table: the accuracy of each scaling, and the shares that were lost."""
    base = {r["seed"]: main_metric(r, "fp32") for r in runs.get(FLOAT32, ())}
    lines = [
        "| scaling | accuracy in float32, % | difference by seed | accuracy in E4M3, % | "
        "activations: saturated, underflowed, % | gradients: saturated, underflowed, % | "
        "last loss | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, records in runs.items():
        mean, deviation = mean_and_deviation([main_metric(r, "fp32") for r in records])
        low, _ = mean_and_deviation([main_metric(r, "e4m3") for r in records])
        differences = [
            f"{main_metric(r, 'fp32') - base[r['seed']]:+.2f}" for r in records if r["seed"] in base
        ]
        lost = [
            ", ".join(percent(float(np.mean(x))) for x in zip(*pairs, strict=True))
            for pairs in ([shares(r, part) for r in records] for part in ("a", "dy"))
        ]
        loss = np.mean([r["losses"][-1] for r in records])
        minutes = np.mean([r["cpu_seconds"] for r in records]) / 60
        if name == FLOAT32:
            differences, lost = [""], ["", ""]
        lines.append(
            f"| {name} | {mean:.2f} ± {deviation:.2f} | {', '.join(differences)} | {low:.2f} | "
            f"{lost[0]} | {lost[1]} | {loss:.3f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def share(counts: Any, kind: int) -> str:
    return percent(counts[kind] / counts[0]) if counts[0] else ""


def course_of(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Make a task's table of gradients in the first part of a run and in the rest."""
    lines = [
        "| scaling | saturated in the first part, in the rest, % | underflowed in the first part, "
        "in the rest, % | of all that underflows, in the first part, % | the site with the most, % "
        "of its gradients | FP8-LM's factor at the end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, records in runs.items():
        sites = [site for site in records[0]["counts"] if site.endswith(":dy")]
        if not sites:
            continue
        by_site = {
            site: np.sum([record["counts"][site] for record in records], axis=0) for site in sites
        }
        parts = np.sum([*by_site.values()], axis=0)
        first, rest = parts[0], parts[1:].sum(axis=0)
        total = first + rest
        lost = {site: part.sum(axis=0) for site, part in by_site.items()}
        most = max(sites, key=lambda site: lost[site][2] / max(lost[site][0], 1))
        factors = sorted({x for record in records for x in record["factors"].values()})
        cells = [
            *(f"{share(first, i)}, {share(rest, i)}" for i in (1, 2)),
            percent(first[2] / total[2]) if total[2] else "",
            f"{most.removesuffix(':dy')}: {share(lost[most], 2)}",
            f"{factors[0]:.2f} to {factors[-1]:.2f}" if factors else "",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_accuracy(runs: Runs, path: Path) -> None:
    """Draw every run's accuracy by scaling; a panel per task."""
    names = [name for name in NAMES if any(name in found for found in runs.values())]
    figure, panels = subplots(
        ncols=len(runs), figsize=(WIDTH, 0.24 * len(names) + 1), sharey=True, squeeze=False
    )
    for panel, (task, found) in zip(panels[0], runs.items(), strict=True):
        for place, name in enumerate(names):
            values = [main_metric(r, "fp32") for r in found.get(name, ())]
            if not values:
                continue
            colour = COLORS["FP32" if name == FLOAT32 else "E4M3"]
            panel.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.7)
            panel.plot([np.mean(values)], [place], "|", color=colour, markersize=14)
        if FLOAT32 in found:
            centre = np.mean([main_metric(r, "fp32") for r in found[FLOAT32]])
            panel.axvline(centre, color=COLORS["FP32"], linewidth=0.8, linestyle="--")
        panel.set_yticks(range(len(names)), names)
        panel.set_ylim(len(names) - 0.4, -0.6)
        panel.set_title(task, fontsize=9)
        panel.set_xlabel("accuracy, %", fontsize=9)
        panel.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def totals(records: Sequence[Mapping[str, Any]], tensors: Sequence[str]) -> Any:
    """Add up the counts of some tensors over runs: (parts of the run with a count, 3)."""
    rows = [record["counts"][name] for record in records for name in tensors]
    total = np.sum(rows, axis=0)
    return total[total[:, 0] > 0]


def draw_counts(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the shares of saturated and of underflowed elements over the steps, by scaling."""
    parts = ("a", "dy")
    figure, panels = subplots(
        nrows=2, ncols=len(parts), figsize=(WIDTH, 5.2), sharex=True, sharey="row", squeeze=False
    )
    styles = ("o-", "s--", "v-.", "D:", "x-", "P--", "^-.", "*:", "h-")
    chosen = [(name, records) for name, records in runs.items() if name != FLOAT32]
    for (name, records), style in zip(chosen, styles, strict=False):
        for column, part in enumerate(parts):
            tensors = [n for n in records[0]["counts"] if n.endswith(f":{part}")]
            total = totals(records, tensors)
            steps = np.linspace(0, 1, len(total))
            every = max(len(total) // 6, 1)
            for line, index in enumerate((1, 2)):
                y = 100 * total[:, index] / total[:, 0]
                panels[line, column].plot(
                    steps, y, style, label=name, markersize=3, linewidth=1, markevery=every
                )
    for column, part in enumerate(parts):
        panels[0, column].set_title(PARTS[part], fontsize=9)
        panels[1, column].set_xlabel("share of the steps", fontsize=9)
        for line, top in enumerate((1, 100)):
            panels[line, column].set_yscale("symlog", linthresh=1e-4)
            panels[line, column].set_ylim(0, top)
            panels[line, column].grid(alpha=0.3)
    panels[0, 0].set_ylabel("saturated, %", fontsize=9)
    panels[1, 0].set_ylabel("underflowed, %", fontsize=9)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_sites(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draw the share of underflowed gradients by site and time, for three of the scalings."""
    chosen = [name for name in ("none", "delayed", "unit") if name in runs] or list(runs)[-1:]
    figure, panels = subplots(ncols=len(chosen), figsize=(WIDTH, 4.2), sharey=True, squeeze=False)
    for panel, name in zip(panels[0], chosen, strict=True):
        sites = [n for n in runs[name][0]["counts"] if n.endswith(":dy")]
        total = np.array([totals(runs[name], [site]) for site in sites])
        share = 100 * total[:, :, 2] / total[:, :, 0]
        extent = (0, 1, len(sites), 0)
        panel.imshow(share, aspect="auto", cmap="Greys", vmin=0, vmax=100, extent=extent)
        labels = [n.removesuffix(":dy").removeprefix("encoder.layer.") for n in sites]
        panel.set_yticks(np.arange(len(sites)) + 0.5, labels)
        panel.tick_params(labelsize=7)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("share of the steps", fontsize=9)
    figure.suptitle("gradients that underflow, %: white 0, black 100", fontsize=9)
    save_figure(figure, path)


def report(arguments: argparse.Namespace) -> None:
    runs = by_run(read_records(arguments.out, "scaling"))
    rows = [
        {key: value for key, value in record.items() if key not in ("counts", "losses", "largest")}
        for found in runs.values()
        for records in found.values()
        for record in records
    ]
    tables = {task: table_of(found) for task, found in runs.items()}
    write_report(arguments.out, "training", tables, rows)
    courses = {f"{task}, over the run": course_of(found) for task, found in runs.items()}
    write_report(arguments.out, "training-course", courses, [])
    draw_accuracy(runs, arguments.out / "training.png")
    longest = max(runs.values(), key=lambda found: max(r[0]["steps"] for r in found.values()))
    draw_counts(longest, arguments.out / "training-counts.png")
    draw_sites(longest, arguments.out / "training-sites.png")


def distance(found: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """Return the relative error of all gradients of a batch together."""
    square = sum(float(np.square(x, dtype=np.float64).sum()) for x in right.values())
    error = sum(
        float(np.square(found[name] - x, dtype=np.float64).sum()) for name, x in right.items()
    )
    return float(np.sqrt(error / square))


def sums(arguments: argparse.Namespace) -> None:
    """Print how far gradients are from exact ones, if the BLAS adds up the products of codes.

    The measure is the median of some batches, and beside it the largest. The error of FP8 itself,
    the difference of gradients of exact products of codes from those in float32, is the last.
    """
    learned = lesson(arguments.model, arguments.task, arguments.data, limit=arguments.limit)
    rows = sorted(range(len(learned.train)), key=lambda row: len(learned.train[row].input_ids))
    loss = loss_of(learned.model.config)

    def gradients(chosen: Sequence[int], products: Products) -> Mapping[str, Any]:
        batch = pad([learned.train[row] for row in chosen], learned.model.config.pad_token_id)
        taped = tape(learned.model, **batch, products=products)
        _, dy = loss(taped.outputs, learned.train_labels[chosen])
        return taped.gradients(dy)

    print("| scaling | sums by the BLAS: median, largest | FP8: median, largest |")
    print("| --- | --- | --- |")
    for name in ("dynamic", "dynamic-pow2", "unit"):
        fast = products_of(name, learned, 32, count_every=0)
        exact = products_of(name, learned, 32, count_every=0, accumulate="exact")
        errors = []
        for start in range(0, len(rows) - 31, 32):
            chosen = rows[start : start + 32]
            right = gradients(chosen, exact)
            in_float32 = gradients(chosen, FloatProducts())
            errors.append((distance(gradients(chosen, fast), right), distance(right, in_float32)))
        blas, fp8 = zip(*errors, strict=True)
        cells = (f"{np.median(x):.2g}, {max(x):.2g}" for x in (blas, fp8))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("sums")
    command.set_defaults(run=sums)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("--task", required=True)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--limit", type=int, default=512)
    for name, function in (("run", run), ("list", list_runs)):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        add_run_options(command, epochs=6, rate=3e-4)
        if name == "run":
            command.add_argument("--scaling", choices=NAMES, required=True)
            command.add_argument("--seed", type=int, default=0)
        else:
            command.add_argument("--seeds", type=int, default=3)
    command = commands.add_parser("report")
    command.set_defaults(run=report)
    command.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()

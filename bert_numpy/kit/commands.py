"""The command ``bert-numpy golden``: export a kit, verify a candidate, write test vectors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bert_numpy.calibration import Calibration, load_calibration
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation import calibrate_on
from bert_numpy.glue import read_examples, task_named
from bert_numpy.hub import EMBEDDED, resolve
from bert_numpy.job import prepare
from bert_numpy.kit.candidate import load_candidate
from bert_numpy.kit.export import make_kit, model_files, read_inputs, sequence
from bert_numpy.kit.html import html_report
from bert_numpy.kit.manifest import LEVELS, open_kit, write_kit
from bert_numpy.kit.verify import PROFILES, verify
from bert_numpy.loading import load, stored_recipe
from bert_numpy.quantization import apply_recipe
from bert_numpy.recipe import Recipe, preset
from bert_numpy.report import write_text
from bert_numpy.tokenization import EncodedText, load_tokenizer
from npfp8.files import created_folder
from npfp8.vectors import check_results, read_vectors, write_all_vectors

__all__ = ["add_golden_commands"]

_ASSETS = Path(__file__).parent.parent / "assets"

#: Sentences to calibrate on, unless others are asked for.
_REVIEWS = _ASSETS / "reviews" / "train.tsv"

#: Adds a command: its name, its function and a summary.
AddCommand = Callable[
    [str, Callable[[argparse.Namespace], dict[str, Any]], str], argparse.ArgumentParser
]


def add_golden_commands(command: AddCommand) -> None:
    """Add the sub-commands of ``golden``."""
    export = command("export", _export, "Write a kit of golden outputs: a folder.")
    add = export.add_argument
    add("model", metavar="MODEL", help="a folder, or a hub id")
    add("out", metavar="OUT", help="the folder to make")
    add("--revision", metavar="NAME", help="of a hub id: a branch, tag or commit")
    add("--recipe", "--format", metavar="NAME", help="a format's name or file (default: e4m3)")
    add("--inputs", metavar="FILE", help="a JSON list of texts, or of objects; see docs/kit.md")
    add("--task", metavar="NAME", help="take the inputs from a task's data instead")
    add("--data", metavar="DATA", help="the task's folder or file")
    add("--limit", type=int, metavar="N", default=2, help="of the task's data")
    add("--level", action="append", choices=LEVELS, help="again for several; all by default")
    add("--calibration", metavar="FILE", help="what --save-calibration wrote")
    add(
        "--calibration-data",
        metavar="FILE",
        default=str(_REVIEWS),
        help="sentences to calibrate on, in SST-2's layout",
    )

    compare = command("verify", _verify, "Compare a candidate's dumps with a kit.")
    add = compare.add_argument
    add("kit", metavar="KIT", help=f"a kit's folder, or {EMBEDDED} for the one that is here")
    add("candidate", metavar="CANDIDATE", help="a safetensors file, or a folder of .npy files")
    add("--profile", choices=PROFILES, default=PROFILES[0], help="what is tolerated")
    add("--min-sqnr", type=float, metavar="DB", default=20.0, help="of the profile statistical")
    add("--max-flips", type=int, metavar="N", default=0, help="of the profile statistical")
    add("--html", metavar="FILE", help="write the report as a page with pictures")

    vectors = command("vectors", _vectors, "Write the codec's test vectors as plain text.")
    vectors.add_argument("out", metavar="OUT", help="the folder to make")
    check = command("check-vectors", _check_vectors, "Compare results with the test vectors.")
    check.add_argument("files", metavar="FILE", nargs="+", help="with the codes found in column 3")


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    levels = [level for level in LEVELS if level in (arguments.level or LEVELS)]
    out = Path(arguments.out)
    if not {"layer", "model"} & set(levels):
        kit = make_kit(levels)
    else:
        own: Recipe | None = stored_recipe(arguments.model, arguments.revision)
        recipe = own or preset(arguments.recipe or "e4m3")
        model = load(arguments.model, arguments.revision)
        inputs = _inputs(arguments)
        needed = own is None and recipe.calibrated
        calibration = _calibration(arguments, model) if needed else None
        golden = apply_recipe(model, recipe, calibration, golden=True)
        files = model_files(resolve(arguments.model, arguments.revision))
        kit = make_kit(levels, golden, files, inputs)
    write_kit(kit, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    if arguments.json != "-":
        print(f"{out}: {len(kit.tensors)} tensors, {size:,} bytes")
    return {"kit": str(out), "levels": levels, "tensors": len(kit.tensors), "bytes": size}


def _inputs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The sequences to run: of a file, or of a task's data."""
    if (arguments.inputs is None) == (arguments.task is None):
        raise BertNumpyError("expected --inputs FILE, or --task NAME and --data DATA")
    if arguments.inputs is not None:
        path = Path(arguments.inputs)
        return read_inputs(path, load_tokenizer(arguments.model, arguments.revision))
    if arguments.data is None:
        raise BertNumpyError("--task: expected --data DATA with it, found none")
    job = prepare(
        arguments.model,
        arguments.task,
        arguments.data,
        calibrated=False,
        limit=arguments.limit,
        revision=arguments.revision,
    )
    return [sequence(encoded) for encoded in job.encoded[: arguments.limit]]


def _calibration(arguments: argparse.Namespace, model: Any) -> Calibration:
    if arguments.calibration is not None:
        calibration = load_calibration(arguments.calibration)
        if not calibration.golden:
            print("scales: from a calibration that is not golden", file=sys.stderr)
        return calibration
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    texts = read_examples(Path(arguments.calibration_data), task_named("sst2")).texts
    encoded: list[EncodedText] = tokenizer.encode(texts, None, min(128, tokenizer.model_max_length))
    print(f"scales: from the sentences of {arguments.calibration_data}", file=sys.stderr)
    return calibrate_on(model, encoded, golden=True)


def _verify(arguments: argparse.Namespace) -> dict[str, Any]:
    kit = open_kit(arguments.kit)
    candidate = load_candidate(Path(arguments.candidate), kit)
    report = verify(
        kit,
        candidate,
        arguments.profile,
        min_sqnr=arguments.min_sqnr,
        max_flips=arguments.max_flips,
    )
    if arguments.html is not None:
        write_text(Path(arguments.html), html_report(kit, report, candidate))
    if arguments.json != "-":
        print(report.text())
    return {"kit": str(arguments.kit), **report.as_json()}


def _vectors(arguments: argparse.Namespace) -> dict[str, Any]:
    out = Path(arguments.out)
    with created_folder(out) as folder:
        names = [path.name for path in write_all_vectors(folder)]
    if arguments.json != "-":
        print(f"{out}: {len(names)} files")
    return {"folder": str(out), "files": names}


def _check_vectors(arguments: argparse.Namespace) -> dict[str, Any]:
    reports = []
    for file in arguments.files:
        try:
            report = check_results(read_vectors(Path(file)))
        except FileNotFoundError:
            raise BertNumpyError(f"{file}: no such file") from None
        except ValueError as error:
            text = str(error)
            raise BertNumpyError(text if str(file) in text else f"{file}: {text}") from None
        reports.append(report)
        if arguments.json != "-":
            print(f"{file}: {report.wrong} of {report.cases} cases are wrong")
            if report.wrong:
                print(f"  {report.first}\n  cause: {report.cause or 'no known one'}")
    return {
        "passed": not any(report.wrong for report in reports),
        "files": [asdict(report) for report in reports],
    }

"""The command ``bert-numpy golden``: export a kit and verify a candidate.

The commands of test vectors are in :mod:`bert_numpy.commands.vectors`.

Modules that only one of them needs are imported there, so that all other commands start sooner.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.hub import EMBEDDED, kit_folder, resolve
from bert_numpy.checkpoints.load import load
from bert_numpy.commands.jobs import accumulated, calibrated_on_sentences, chosen_recipe
from bert_numpy.commands.kit_list import add_kit, add_kit_list_commands
from bert_numpy.commands.kit_text import add_text_command
from bert_numpy.commands.options import (
    AddCommand,
    add_accumulate,
    add_format,
    add_model,
    add_sentence_scales,
    add_task,
    check_scales,
    finite,
    natural,
    positive,
    refuse,
    require_together,
)
from bert_numpy.commands.parser import one_of
from bert_numpy.commands.report import Outcome, counted, note, print_lines, progress_bar, write_text
from bert_numpy.commands.vectors import add_vector_commands
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.job import prepare, saved_calibration
from bert_numpy.kit.manifest import LEVELS, PROFILES, TENSORS, open_kit, write_kit
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.convert import QuantizedModel, apply_recipe
from bert_numpy.tasks.tokenization import load_tokenizer

__all__ = ["add_golden_commands"]


def add_golden_commands(command: AddCommand) -> None:
    """Add the sub-commands of ``golden``."""
    _add_export(command)
    _add_verify(command)
    add_kit_list_commands(command)
    add_text_command(command)
    add_vector_commands(command)


def _add_export(command: AddCommand) -> None:
    export = command(
        "export",
        _export,
        "Write a kit, a folder of golden outputs.",
        f"{EMBEDDED} kit --inputs inputs.json",
        "./my-model kit --task sst2 --data glue/SST-2 --limit 2 --level model",
    )
    add = export.add_argument
    add_model(export)
    add("out", metavar="OUT", section="output", values="folder", help="the folder to make")
    export.set_defaults(out_kind="folder")
    add_format(export, default="e4m3")
    add_accumulate(export)
    add(
        "--inputs",
        metavar="FILE",
        section="input",
        values="file",
        help="a JSON list of texts, or of objects; see docs/kit.md",
    )
    add_task(export, required=False, description="take the inputs from a task's data instead")
    add(
        "--data",
        metavar="DATA",
        section="input",
        values="file",
        help="the task's folder or file, or a data set on the hub",
    )
    add(
        "--limit",
        type=positive,
        metavar="N",
        default=2,
        section="input",
        help="only the first N examples of it",
    )
    add(
        "--level",
        action="append",
        type=one_of(LEVELS),
        choices=LEVELS,
        metavar="LEVEL",
        section="output",
        help=f"export only this level, repeated for several: {', '.join(LEVELS)}",
    )
    add_sentence_scales(export)


def _add_verify(command: AddCommand) -> None:
    compare = command(
        "verify",
        _verify,
        "Compare a candidate's dumps with a kit.",
        f"{EMBEDDED} my-backend.safetensors",
        "kit dumps --require codec --require operator",
        "kit dumps --complete --html report.html",
    )
    add = compare.add_argument
    add_kit(compare)
    add(
        "candidate",
        metavar="CANDIDATE",
        values="file",
        help="a safetensors file, or a folder of .npy, .txt or .mem files",
    )
    add(
        "--profile",
        type=one_of(PROFILES),
        choices=PROFILES,
        metavar="PROFILE",
        default=PROFILES[0],
        section="recipe",
        help=f"the differences that are tolerated: {', '.join(PROFILES)}",
    )
    add(
        "--min-sqnr",
        type=finite,
        metavar="DB",
        default=20.0,
        section="recipe",
        help="statistical: the least signal-to-noise ratio of a tensor",
    )
    add(
        "--max-flips",
        type=natural,
        metavar="N",
        default=0,
        section="recipe",
        help="statistical: at most N rows of logits with another largest element (default: 0)",
    )
    add(
        "--require",
        action="append",
        type=one_of(LEVELS),
        choices=LEVELS,
        metavar="LEVEL",
        section="recipe",
        help="fail if a computed tensor of this level is not given, repeated for several: "
        f"{', '.join(LEVELS)}",
    )
    add(
        "--complete",
        action="store_true",
        section="recipe",
        help="fail if any computed tensor of the kit is not given",
    )
    add(
        "--html",
        metavar="FILE",
        section="output",
        values="file",
        help="write the report as a page with pictures",
    )


def _export(arguments: argparse.Namespace) -> Outcome:
    from bert_numpy.kit.export import make_kit, model_files  # noqa: PLC0415
    from bert_numpy.kit.scales import CHOSEN, with_telling_scales  # noqa: PLC0415

    levels = [level for level in LEVELS if level in (arguments.level or LEVELS)]
    out = Path(arguments.out)
    if not {"layer", "model"} & set(levels):
        refuse(arguments, _OF_A_MODEL, f"--level layer or model with it, found {levels[0]}")
        kit = make_kit(levels)
    else:
        (recipe,) = accumulated([chosen_recipe(arguments, default="e4m3")], arguments)
        model = load(arguments.model, arguments.revision)
        check_scales(arguments, [recipe], stored=isinstance(model, QuantizedModel))
        inputs = _inputs(arguments)
        needed = recipe.calibrated and not isinstance(model, QuantizedModel)
        calibration = _calibration(arguments, model) if needed else None
        golden = apply_recipe(model, recipe, calibration, golden=True)
        chooses = calibration is not None and arguments.calibration is None
        if chooses:  # these scales are the kit's own: no model and no file has them
            golden = with_telling_scales(golden, inputs[0])
        files = model_files(resolve(arguments.model, arguments.revision))
        with progress_bar(len(inputs), "inputs") as advance:
            kit = make_kit(levels, golden, files, inputs, advance)
        if chooses:
            kit = replace(kit, header={**kit.header, "scales": CHOSEN})
    write_kit(kit, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    report = {"kit": str(out), "levels": levels, "tensors": len(kit.tensors), "bytes": size}
    return Outcome(
        report,
        lambda: print_lines(f"{out}: {counted(len(kit.tensors), 'tensor')}, {size:,} bytes"),
    )


#: The options of an export that only a model's levels use.
_OF_A_MODEL = (
    *("format", "accumulate", "accumulate_rest", "revision", "inputs", "task", "data", "limit"),
    *("calibration", "calibration_data", "calibration_samples"),
)


def _inputs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Read the sequences to run, from a file or a task's data."""
    from bert_numpy.kit.export import read_inputs, sequence  # noqa: PLC0415

    require_together(arguments)
    if (arguments.inputs is None) == (arguments.task is None):
        raise BertNumpyError("expected --inputs FILE, or --task NAME and --data DATA")
    if arguments.inputs is not None:
        refuse(arguments, ["limit"], "--task with it, found --inputs")
        path = Path(arguments.inputs)
        return read_inputs(path, load_tokenizer(arguments.model, arguments.revision))
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
        calibration = saved_calibration(arguments.calibration)
        if not calibration.golden:
            note("scales: from a calibration that is not golden")
        return calibration
    tokenizer = load_tokenizer(arguments.model, arguments.revision)
    return calibrated_on_sentences(arguments, model, tokenizer, golden=True)


def _verify(arguments: argparse.Namespace) -> Outcome:
    if arguments.profile != "statistical":
        expected = f"--profile statistical with it, found {arguments.profile}"
        refuse(arguments, ["min_sqnr", "max_flips"], expected)
    from bert_numpy.kit.candidate import load_candidate  # noqa: PLC0415
    from bert_numpy.kit.compare import verify  # noqa: PLC0415

    kit = open_kit(arguments.kit)
    candidate = load_candidate(Path(arguments.candidate), kit)
    report = verify(
        kit,
        candidate,
        arguments.profile,
        min_sqnr=arguments.min_sqnr,
        max_flips=arguments.max_flips,
        require=arguments.require or (),
        complete=arguments.complete,
        progress_bar=progress_bar,
    )
    if arguments.html is not None:
        from bert_numpy.kit.html import html_report  # noqa: PLC0415

        write_text(Path(arguments.html), html_report(kit, report, candidate))
    lines = report.text().splitlines()
    is_the_kit = _is_the_kit(Path(arguments.candidate), kit_folder(arguments.kit))
    if is_the_kit:
        lines.append("note: the candidate is the kit itself, which shows nothing about a backend")
    found = {"kit": str(arguments.kit), "candidate_is_the_kit": is_the_kit, **report.as_json()}
    return Outcome(found, lambda: print_lines(*lines))


def _is_the_kit(candidate: Path, folder: Path) -> bool:
    """Check whether a candidate is the kit itself: its folder, or its file of tensors."""
    return any(own.exists() and candidate.samefile(own) for own in (folder, folder / TENSORS))

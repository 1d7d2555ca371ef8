"""The commands that write scales, or a model with them: calibrate, quantize, export-onnx."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.blocks import COMPRESSED_TENSORS, CONVENTIONS
from bert_numpy.checkpoints.hub import is_local, resolve
from bert_numpy.checkpoints.load import load, stored_recipe
from bert_numpy.checkpoints.quantized import check_writable, save_quantized, side_files
from bert_numpy.commands.jobs import (
    calibrated_on_sentences,
    chosen_recipe,
    compared,
    header,
    prepared,
    results_of,
    title,
)
from bert_numpy.commands.model_card import model_card
from bert_numpy.commands.options import (
    AddCommand,
    add_data,
    add_format,
    add_golden,
    add_limit,
    add_model,
    add_out,
    add_texts,
    check_scales,
    refuse,
    require_together,
)
from bert_numpy.commands.parser import one_of
from bert_numpy.commands.report import (
    Outcome,
    counted,
    print_comparison,
    print_lines,
    progress_bar,
)
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.evaluate import require_answers
from bert_numpy.evaluation.job import (
    keep_calibration,
    require_regular,
    saved_calibration,
    with_calibration,
)
from bert_numpy.model.model import Model
from bert_numpy.quantization.calibration import Calibration
from bert_numpy.quantization.convert import apply_recipe
from bert_numpy.quantization.presets import PRESETS, preset
from bert_numpy.quantization.recipe import Recipe
from bert_numpy.tasks.tokenization import load_tokenizer

__all__ = ["add_quantization_commands"]


def add_quantization_commands(command: AddCommand) -> None:
    """Add the commands."""
    calibrate = command(
        "calibrate",
        _calibrate,
        "Calibrate on a task, or on texts, and save the calibration.",
        "./my-model --task sst2 --data glue/SST-2 --out scales.safetensors",
        "./my-encoder --calibration-data texts.txt --out scales.safetensors",
    )
    add_model(calibrate)
    add_out(calibrate, "the file to write; --calibration reads it", required=True)
    calibrate.add_argument(
        "--hessians",
        action="store_true",
        section="calibration",
        help="keep what GPTQ takes, too: the file is larger, and its sums depend on the machine",
    )
    add_golden(calibrate)
    add_data(calibrate, required=False, saved=False)

    quantize = command(
        "quantize",
        _quantize,
        "Write a quantized checkpoint that other libraries read too.",
        "./my-model ./my-model-fp8 --format e4m3 --task sst2 --data glue/SST-2",
        "./my-encoder ./my-encoder-fp8 --format e4m3 --calibration-data texts.txt",
    )
    add_model(quantize)
    quantize.add_argument(
        "out", metavar="OUT", section="output", values="folder", help="the folder to make"
    )
    quantize.set_defaults(out_kind="folder")
    quantize.add_argument(
        "--layout",
        type=one_of(tuple(CONVENTIONS)),
        choices=tuple(CONVENTIONS),
        default=COMPRESSED_TENSORS.name,
        metavar="LAYOUT",
        section="output",
        help="the names of tensors and keys: those of compressed-tensors, which transformers and "
        "vLLM read, or of modelopt, for FP8, NVFP4 and MXFP8",
    )
    add_golden(quantize)
    add_format(quantize, default=None)
    add_data(quantize, required=False)
    add_texts(quantize)
    add_limit(quantize)

    export = command(
        "export-onnx",
        _export_onnx,
        "Write a quantized model as an ONNX file.",
        "./my-model my-model.onnx --format e4m3 --calibration scales.safetensors",
    )
    add_model(export)
    export.add_argument(
        "out", metavar="OUT.onnx", section="output", values="file", help="the file to write"
    )
    export.set_defaults(out_kind="file")
    add_golden(export)
    add_format(export, default="fp32")
    add_data(export, required=False)


#: A recipe that needs a calibration; the calibration is the same for all of them.
_ANY = PRESETS["e4m3"]


def _calibrate(arguments: argparse.Namespace) -> Outcome:
    _require_float(arguments)
    if arguments.golden:
        refuse(arguments, ["hessians"], "no --golden with it, found one")
    recipe = PRESETS["w4a16-gptq"] if arguments.hessians else _ANY
    job = prepared(arguments, [recipe])
    job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
    keep_calibration(job.calibration, [recipe], arguments.out)
    found = header(job, arguments.golden)
    report = {key: found[key] for key in ("model", "calibration_samples", "golden")}
    report |= {"task": arguments.task and job.task.name, "out": arguments.out}
    line = f"written: {arguments.out}, from {counted(found['calibration_samples'], 'sample')}"
    return Outcome(report, lambda: print_lines(line))


def _require_float(arguments: argparse.Namespace) -> None:
    if stored_recipe(arguments.model, arguments.revision) is not None:
        raise BertNumpyError(f"{arguments.model}: expected a checkpoint that is not quantized yet")


def _quantize(arguments: argparse.Namespace) -> Outcome:
    recipe, fp32 = preset(arguments.format), PRESETS["fp32"]
    _require_float(arguments)
    source = resolve(arguments.model, arguments.revision)
    side_files(source)
    job = prepared(arguments, [recipe])
    check_writable(job.model.config, recipe, source, arguments.layout)
    job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
    model = apply_recipe(job.model, recipe, job.calibration, arguments.golden)
    rows: list[dict[str, Any]] = []
    if len(job.examples):
        reference, result = results_of(arguments, job, [fp32, recipe])
        for evaluation in (reference, result):
            require_answers(job.model, evaluation)
        rows = [compared(job, evaluation, reference) for evaluation in (reference, result)]
    elif arguments.save_calibration is not None:
        keep_calibration(job.calibration, [recipe], arguments.save_calibration)
    report = header(job, arguments.golden) | {"out": arguments.out, "rows": rows}
    if not rows:
        report["task"] = None
    base_model = None if is_local(arguments.model) else arguments.model
    save_quantized(
        model,
        source,
        arguments.out,
        lambda made: model_card(
            report,
            recipe,
            base_model,
            config=model.config,
            source=source,
            made=made,
            layout=arguments.layout,
        ),
        arguments.layout,
    )

    def show() -> None:
        if rows:
            print_comparison(title(job), rows)
        print_lines(f"written: {arguments.out}")

    return Outcome(report, show)


def _export_onnx(arguments: argparse.Namespace) -> Outcome:
    from bert_numpy.export.onnx import export_onnx  # noqa: PLC0415 (other commands start sooner)

    recipe = chosen_recipe(arguments)
    require_together(arguments)
    stored = stored_recipe(arguments.model, arguments.revision) is not None
    check_scales(arguments, [recipe], stored=stored)
    needed = recipe.calibrated and not stored
    made = needed and arguments.calibration is None
    _refuse_unused(arguments, recipe, needed=needed, made=made)
    if arguments.task is None:
        model, calibration = _of_sentences(arguments, recipe, made)
    else:
        model, calibration = _of_a_task(arguments, recipe)
    export_onnx(apply_recipe(model, recipe, calibration), arguments.out)
    if arguments.save_calibration is not None:
        keep_calibration(calibration, [recipe], arguments.save_calibration)
    report = {"model": model.name, "format": recipe.name, "out": arguments.out}
    return Outcome(report, lambda: print_lines(f"written: {arguments.out}"))


def _refuse_unused(
    arguments: argparse.Namespace, recipe: Recipe, *, needed: bool, made: bool
) -> None:
    """Refuse the options of a calibration that an export does not make."""
    if not made:
        expected = f"a calibration to make, found {'--calibration' if needed else recipe.name}"
        refuse(arguments, ["task", "data", "golden"], expected)
    if arguments.task is None:
        refuse(arguments, ["max_length", "batch_size"], "--task with it, found none")
        if arguments.calibration_data is None:
            expected = "--task or --calibration-data with it, found neither"
            refuse(arguments, ["calibration_samples"], expected)


def _of_a_task(arguments: argparse.Namespace, recipe: Recipe) -> tuple[Model, Calibration | None]:
    """Return the model to export, and its calibration on a task's data."""
    from bert_numpy.export.onnx import check_exportable  # noqa: PLC0415

    job = prepared(arguments, [recipe])
    check_exportable(job.model, recipe)
    job = with_calibration(job, [recipe], progress_bar, golden=arguments.golden)
    return job.model, job.calibration


def _of_sentences(
    arguments: argparse.Namespace, recipe: Recipe, made: bool
) -> tuple[Model, Calibration | None]:
    """Return the model to export, and its calibration: saved, or on sentences; or None."""
    from bert_numpy.export.onnx import check_exportable  # noqa: PLC0415

    model = load(arguments.model, arguments.revision)
    calibration = None
    if arguments.calibration is not None:
        calibration = saved_calibration(arguments.calibration)
    if arguments.calibration_data is not None:
        require_regular(Path(arguments.calibration_data))
    check_exportable(model, recipe)
    if calibration is None and arguments.calibration_data is not None:
        tokenizer = load_tokenizer(arguments.model, arguments.revision)
        calibration = calibrated_on_sentences(
            arguments, model, tokenizer, golden=arguments.golden, hessians=recipe.by_gptq
        )
    elif made:
        raise BertNumpyError(
            f"{recipe.name}: expected --calibration FILE, or --task and --data to calibrate on, or "
            "sentences, --calibration-data FILE"
        )
    return model, calibration

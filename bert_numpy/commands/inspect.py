"""The commands that describe a checkpoint or a calibration: info, calibration."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.hub import EMBEDDED, resolve
from bert_numpy.checkpoints.load import load
from bert_numpy.commands.describe import describe_config, describe_recipe
from bert_numpy.commands.figures import describe, draw_figures
from bert_numpy.commands.options import AddCommand, add_model
from bert_numpy.commands.report import (
    Outcome,
    counted,
    print_lines,
    print_operands,
    progress_bar,
    titled,
)
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.job import saved_calibration
from bert_numpy.model.model import stored_bytes
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.convert import QuantizedModel
from bert_numpy.quantization.decoded_weights import DECODED_BUDGET, decoded_nbytes
from npfp8 import ACCUMULATORS

__all__ = ["add_inspection_commands"]


def add_inspection_commands(command: AddCommand) -> None:
    """Add the commands."""
    add_model(command("info", _info, "Describe a checkpoint.", EMBEDDED, "./my-model --json -"))
    calibration = command(
        "calibration",
        _calibration,
        "Describe and plot a saved calibration.",
        "scales.safetensors --operand 'encoder.layer.0.*'",
    )
    calibration.add_argument(
        "file",
        metavar="FILE",
        values="file",
        help="a file that calibrate or --save-calibration wrote",
    )
    calibration.add_argument(
        "--operand",
        metavar="PATTERN",
        default="*",
        section="input",
        help="only operands whose names fit, such as '*.scores:*'",
    )
    calibration.add_argument(
        "--plot",
        metavar="DIR",
        section="output",
        values="folder",
        help="draw the noise of each format, and the values of each operand (extra: plot)",
    )


def _info(arguments: argparse.Namespace) -> Outcome:
    model = load(arguments.model, arguments.revision)
    sites = encoder_sites(model.config)
    quantizable = [
        stored_bytes(model.weights[f"{site}.weight"])
        for site in sites
        if f"{site}.weight" in model.weights
    ]
    saved = sum(nbytes - nbytes // 4 - 4 for nbytes in quantizable)  # codes and a scale are left
    own = model.recipe if isinstance(model, QuantizedModel) else None
    parameters = sum(math.prod(weight.shape) for weight in model.weights.values())
    report: dict[str, Any] = {
        "model": model.name,
        "folder": str(resolve(arguments.model, arguments.revision)),
        **asdict(model.config),
        "architecture": model.config.stated_architecture,
        "head": model.config.head.name,
        "format": "fp32" if own is None else own.name,
        "parameters": parameters,
        "weight_bytes_fp32": 4 * parameters,
        "weight_bytes_8bit": model.weight_bytes - (saved if own is None else 0),
        "quantized_products": len(sites),
    }
    decoded = []
    if isinstance(model, QuantizedModel):
        accumulator = ACCUMULATORS[model.recipe.accumulate]
        nbytes = decoded_nbytes(model.weights, model.plans, accumulator)
        report |= {"decoded_weight_bytes": nbytes, "decoded_weight_budget": DECODED_BUDGET}
        text = f"{nbytes:,} bytes, kept after a run up to a total of {DECODED_BUDGET:,}"
        decoded = [("decoded weights", text if nbytes else "none: every product takes the codes")]
    del report["architecture_found"]  # the architecture says it
    if model.config.pooling is not None and not model.config.pooling.dense:
        del report["pooling"]["dense"]
    weights = f"{report['weight_bytes_8bit']:,} bytes"
    if own is None:
        weights = (
            f"{report['weight_bytes_fp32']:,} bytes in float32, {weights} with linear layers in "
            "8 bits"
        )
    rows = [
        ("model", model.name),
        ("folder", report["folder"]),
        *describe_config(model.config),
        *describe_recipe(own),
        ("parameters", f"{parameters:,}"),
        ("weights", weights),
        *decoded,
        ("products", f"{len(sites)} that a recipe can quantize"),
    ]
    return Outcome(report, lambda: print_lines(*titled(rows, whole=("model", "folder"))))


def _calibration(arguments: argparse.Namespace) -> Outcome:
    calibration = saved_calibration(arguments.file)
    operands = {
        name: seen
        for name, seen in sorted(calibration.operands.items(), key=_by_layer)
        if fnmatchcase(name, arguments.operand)
    }
    if not operands:
        raise BertNumpyError(
            f"{arguments.file}: expected operands that fit {arguments.operand!r}, found none"
        )
    described = {name: describe(seen) for name, seen in operands.items()}
    if arguments.plot is not None:
        outputs = [arguments.file, *([arguments.json] if arguments.json not in (None, "-") else [])]
        with progress_bar(len(operands), "figures") as advance:
            draw_figures(operands, Path(arguments.plot), outputs, advance)

    def show() -> None:
        print_lines(f"{arguments.file}: {counted(calibration.samples, 'sample')}")
        print_operands(described)

    report = {
        "file": str(arguments.file),
        "samples": calibration.samples,
        "golden": calibration.golden,
        "operands": described,
    }
    return Outcome(report, show)


def _by_layer(operand: tuple[str, object]) -> list[str | int]:
    """Return a sorting key with which layer 2 comes before layer 10."""
    parts = re.split(r"(\d+)", operand[0])  # texts and numbers in turn, beginning with a text
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]

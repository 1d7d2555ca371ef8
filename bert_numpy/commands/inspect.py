"""The commands that describe a file: info, calibration."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bert_numpy.checkpoints.hub import resolve
from bert_numpy.checkpoints.load import load
from bert_numpy.commands.figures import describe, draw_figures
from bert_numpy.commands.options import AddCommand, add_model
from bert_numpy.commands.report import Outcome, print_lines, print_operands, progress_bar
from bert_numpy.errors import BertNumpyError
from bert_numpy.evaluation.job import saved_calibration
from bert_numpy.model.sites import encoder_sites
from bert_numpy.quantization.convert import QuantizedModel

__all__ = ["add_inspection_commands"]


def add_inspection_commands(command: AddCommand) -> None:
    """Add the commands."""
    add_model(command("info", _info, "Describe a checkpoint."))
    calibration = command("calibration", _calibration, "Describe and plot a saved calibration.")
    calibration.add_argument("file", metavar="FILE", help="what --save-calibration wrote")
    calibration.add_argument(
        "--operand", metavar="PATTERN", default="*", help="only these, such as '*.scores:*'"
    )
    calibration.add_argument(
        "--plot",
        metavar="DIR",
        help="draw the operands' noise by format and each one's elements (extra: plot)",
    )


def _info(arguments: argparse.Namespace) -> Outcome:
    model = load(arguments.model, arguments.revision)
    sites = encoder_sites(model.config)
    quantizable = [
        model.weights[f"{site}.weight"].nbytes
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
    del report["architecture_found"]  # the architecture says it
    if model.config.pooling is not None and not model.config.pooling.dense:
        del report["pooling"]["dense"]
    lines, width = [], 2 + max(map(len, report))
    for key, value in report.items():
        text = ", ".join(value) if isinstance(value, tuple) else value
        lines.append(f"{key:<{width}}{f'{text:,}' if type(text) is int else text}")
    return Outcome(report, lambda: print_lines(*lines))


def _calibration(arguments: argparse.Namespace) -> Outcome:
    calibration = saved_calibration(arguments.file)
    operands = {
        name: seen
        for name, seen in calibration.operands.items()
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
        print_lines(f"{arguments.file}: {calibration.samples} samples")
        print_operands(described)

    report = {
        "file": str(arguments.file),
        "samples": calibration.samples,
        "golden": calibration.golden,
        "operands": described,
    }
    return Outcome(report, show)

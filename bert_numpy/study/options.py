"""The common options of scripts that study one model on one task."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bert_numpy.study.cells import Subject, subject_in

__all__ = [
    "SAMPLES",
    "add_samples_option",
    "add_subject_options",
    "subject_of",
    "subject_with_hessians",
]

#: The training examples of the calibration, unless --samples says otherwise.
SAMPLES = 256


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the model, the task, its data, and the folder of the study."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration-data", metavar="DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)


def add_samples_option(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of training examples of the calibration."""
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N")


def subject_of(arguments: argparse.Namespace) -> Subject:
    """Make the subject that these options describe, and create the study's folder."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    return subject_in(
        arguments.out,
        arguments.model,
        arguments.task,
        arguments.data,
        arguments.calibration_data,
        arguments.limit,
    )


def subject_with_hessians(arguments: argparse.Namespace) -> tuple[Subject, str]:
    """Make the subject of a study with Hessians; return its name, too.

    The name is MODEL-TASK, and -SAMPLES if they are not the usual ones. Scripts find each
    other's Hessians by it.
    """
    subject = subject_of(arguments)
    size = "" if arguments.samples == SAMPLES else f"-{arguments.samples}"
    name = f"{Path(subject.model).name}-{subject.task}{size}"
    file = arguments.out / f"hessians-{name}.safetensors"
    return replace(subject, calibration=str(file)), name

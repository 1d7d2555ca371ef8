"""The common options of scripts that study one model on one task."""

from __future__ import annotations

import argparse
from pathlib import Path

from bert_numpy.study.cells import Subject, subject_in

__all__ = ["add_subject_options", "subject_of"]


def add_subject_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the model, the task, its data, and the folder of the study."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration-data", metavar="DATA")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int)


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

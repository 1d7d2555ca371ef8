"""The former module of evaluation jobs: see :mod:`bert_numpy.evaluation.job`."""

from bert_numpy.evaluation.job import (
    Job,
    calibrate_on_sentences,
    evaluate_job,
    prepare,
    run,
    with_calibration,
)

__all__ = [
    "Job",
    "calibrate_on_sentences",
    "evaluate_job",
    "prepare",
    "run",
    "with_calibration",
]

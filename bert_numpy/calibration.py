"""The former module of calibration: see :mod:`bert_numpy.quantization.calibration`."""

from bert_numpy.quantization.calibration import (
    Calibration,
    calibrate,
    load_calibration,
    merge_calibrations,
    save_calibration,
    sqnr,
)

__all__ = [
    "Calibration",
    "calibrate",
    "load_calibration",
    "merge_calibrations",
    "save_calibration",
    "sqnr",
]

"""Data that comes with the package: a small fine-tuned BERT and labelled review sentences."""

from pathlib import Path

__all__ = ["ASSETS", "REVIEWS"]

ASSETS = Path(__file__).parent

#: Review sentences in SST-2's layout; the training file is for calibration.
REVIEWS = ASSETS / "reviews"

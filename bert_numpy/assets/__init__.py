"""Data that comes with the package: a small fine-tuned BERT and labelled review sentences."""

from pathlib import Path

__all__ = ["ASSETS", "BASE_SIZE", "REVIEWS"]

ASSETS = Path(__file__).parent

#: Review sentences in SST-2's layout; the training file is for calibration.
REVIEWS = ASSETS / "reviews"

#: What INT8 and E4M3 do at base size, as JSON; scripts/publish_results.py writes it.
BASE_SIZE = ASSETS / "base-size.json"

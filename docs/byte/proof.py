"""The computations behind the page's proof, each a generator of dicts: run by worker.js in Pyodide.

It stands beside `npfp8`, `bert_numpy`, `scripts` and `tests/digests` in the page's archive
(`scripts/make_byte_page.py`), and runs the same functions as the scripts do elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from wordpiece import WordPiece

from bert_numpy import PRESETS, Calibration, Model, apply_recipe, load
from bert_numpy.assets import ASSETS
from bert_numpy.evaluation.evaluate import calibrate_on
from bert_numpy.tasks.tokenization import pad
from scripts import prove_codec, prove_golden

DIGESTS = Path(__file__).parent / "tests" / "digests"
MODEL = "bert-tiny-sst2"

#: Reviews that the golden job calibrates on, and runs.
SAMPLES = 24


def machine() -> dict[str, str]:
    """Name the machine that this runs on."""
    return {
        "machine": platform.machine(),
        "bits": str(8 * struct.calcsize("P")),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": sys.platform,
    }


def codec_digests(block: int) -> Iterator[dict[str, Any]]:
    """Encode the 2^24 float32 numbers of a block, in every format and mode, and compare."""
    lines = (DIGESTS / "codec.txt").read_text().splitlines()
    known = dict(line.rsplit(maxsplit=1) for line in lines)
    for line in prove_codec.digests_of(block, frozenset()):
        name, found = line.rsplit(maxsplit=1)
        yield {"name": name, "found": found, "expected": known[name]}


def golden_digests() -> Iterator[dict[str, Any]]:
    """Run the golden job: calibrate the embedded model, then every recipe, and compare."""
    known = json.loads((DIGESTS / "golden.json").read_text())
    for name, found in prove_golden.golden_digests(load(MODEL), tokenizer(), SAMPLES):
        yield {"name": name, "found": found, "expected": known[name]}


def sentence(text: str, recipes: list[str]) -> Iterator[dict[str, Any]]:
    """Classify a sentence by every recipe in golden mode: label, logits and their SHA-256."""
    model, calibration = calibrated()
    batch = pad(tokenizer().encode([text]))
    for recipe in recipes:
        logits = apply_recipe(model, PRESETS[recipe], calibration, golden=True)(**batch).logits
        assert logits is not None
        yield {
            "name": recipe,
            "label": model.config.labels[int(logits[0].argmax())],
            "logits": logits[0].tolist(),
            "sha256": hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest(),
            "tokens": int(batch["attention_mask"].sum()),
        }


@lru_cache(maxsize=1)
def tokenizer() -> WordPiece:
    """Read the page's tokenizer for the embedded model."""
    return WordPiece.read(ASSETS / MODEL)


@lru_cache(maxsize=1)
def calibrated() -> tuple[Model, Calibration]:
    """Load the embedded model and calibrate it on the same reviews as the golden job."""
    model = load(MODEL)
    texts = prove_golden.encoded("train.tsv", tokenizer(), SAMPLES)
    return model, calibrate_on(model, texts, golden=True)

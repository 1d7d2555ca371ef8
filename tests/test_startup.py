"""The time to the first answer, and the modules that it must not import."""

from __future__ import annotations

import subprocess
import sys
import time

#: Imported by other commands alone, or by none.
HEAVY = (
    "rich",
    "matplotlib",
    "onnx",
    "numpy.ma",
    "requests",
    "httpx",
    "torch",
    "transformers",
    "shtab",
)

PREDICT = ["predict", "bert-tiny-sst2", "a warm and funny film"]


def test_predict_imports_no_more_than_it_needs() -> None:
    code = f"""
import sys, numpy
before = set(sys.modules)  # NumPy 1.26 imports numpy.ma itself
from bert_numpy.commands.main import main
assert main({PREDICT!r}) in (None, 0)
found = set({HEAVY!r}) & (set(sys.modules) - before)
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_npfp8_imports_numpy_alone() -> None:
    code = """
import sys, numpy
import npfp8
outside = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
found = {"bert_numpy", "safetensors", "tokenizers", "rich", "hypothesis"} & outside
assert not found, found
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_predict_starts_quickly() -> None:
    """The goal is 0.7 s on an idle machine: docs/performance.md; here it may be a busy one."""
    command = [sys.executable, "-m", "bert_numpy", *PREDICT]
    least = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        least = min(least, time.perf_counter() - begin)
        assert done.stdout.startswith("positive")
    assert least < 5

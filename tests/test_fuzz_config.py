"""The configuration fuzzer's share of every run; the script itself makes any number of folders."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "fuzz_config.py"


@pytest.mark.usefixtures("torch", "transformers")
def test_changed_configurations_are_refused_or_computed_as_transformers_does() -> None:
    """No silent difference, no refusal without the key's name, and most folders still load."""
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "60", "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (totals,) = (line for line in finished.stdout.splitlines() if line.startswith("folders "))
    equal, refused, alone, wrong = map(int, totals.split()[1:])
    assert equal + refused + alone == 60
    assert wrong == 0
    assert equal >= 20
    assert refused >= 10


@pytest.fixture(scope="module")
def fuzzer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_config", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_config"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_label_sets(fuzzer: ModuleType) -> None:
    assert list(fuzzer.check_orders()) == []


TABLES = ROOT / "docs" / "configuration-keys.md"


def test_every_key_of_transformers_is_documented(transformers: Any, fuzzer: ModuleType) -> None:
    text = TABLES.read_text(encoding="utf-8")
    keys: set[str] = set()
    for kind in fuzzer.KINDS:
        keys |= set(getattr(transformers, f"{kind}Config")().to_dict())
    keys -= set(transformers.GenerationConfig().to_dict())
    assert len(keys) > 30
    assert sorted(key for key in keys if f"`{key}`" not in text) == []


def test_every_key_that_is_changed_is_documented(fuzzer: ModuleType) -> None:
    text = TABLES.read_text(encoding="utf-8")
    keys = {*fuzzer.NO_EFFECT, *fuzzer.MAY_BE_REFUSED, *(key for _, key, _ in fuzzer.SENTENCES)}
    keys -= {"pooling_mode_median"}  # nobody reads it
    assert sorted(key for key in keys if f"`{key}`" not in text) == []

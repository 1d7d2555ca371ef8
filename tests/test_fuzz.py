"""The fuzzer's share of every run; the script itself runs any number of cases."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPT = ROOT / "scripts" / "fuzz_checkpoint.py"


@pytest.mark.skipif(sys.platform == "win32", reason="the cases have pipes and links")
def test_damaged_files_are_refused_or_read_right() -> None:
    finished = subprocess.run(
        [sys.executable, SCRIPT, "--cases", "400", "--seed", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "400 cases, seed 1: 0 failures" in finished.stdout

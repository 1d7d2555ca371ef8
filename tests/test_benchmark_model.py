"""scripts/benchmark_model.py: its goals, its peers, and a run on single texts."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPTS))  # it imports its neighbours
    try:
        return importlib.import_module("benchmark_model")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("model", "name", "cores", "pair", "shown"),
    [
        ("minilm-sst2", "sst2", 2, "e4m3 float32", "goal at least 0.6"),
        ("minilm-sst2", "1x16", 2, "e4m3 float32", "no goal"),
        ("minilm-sst2", "1x16", 1, "e4m3 float32", "goal at least 0.65"),
        ("base", "1x128", 1, "e4m3 float32", "goal at least 0.6"),
        ("mpnet-sst2", "sst2", 2, "e4m3 float32", "goal at least 0.52"),
        ("bert-tiny", "sst2", 2, "float32 calibration", "goal at most 1.4"),
        ("base", "sst2", 2, "e4m3-float32 torch-fake-fp8-folded", "goal at least 1.5"),
        ("base", "sst2", 2, "float32 onnxruntime", "goal at least 0.8"),
        ("minilm-sst2", "sst2", 2, "float32 onnxruntime", "no goal"),
        ("minilm-sst2", "sst2", 2, "nvfp4 e4m3", "goal at least 0.8"),
    ],
)
def test_goals(script, model, name, cores, pair, shown) -> None:
    found = script.goals(model, name, cores)
    assert str(found[tuple(pair.split())]) == shown


def test_goals_name_peers(script) -> None:
    for goal in script.GOALS:
        assert {goal.peer, goal.than} <= script.PEERS.keys()
        assert goal.peer != goal.than
    assert next(iter(script.PEERS)) == "float32"
    assert len(script.MARKERS) == len(set(script.MARKERS)) >= len(script.PEERS)
    assert script.OURS["e4m3-float32"][0].accumulate == "float32"


def test_ratios(script) -> None:
    """Of rounds, not of medians: 4, 2 and 3 times as fast."""
    seconds = {"float32": [1.0, 1.0, 2.0], "e4m3": [4.0, 2.0, 6.0], "calibration": [2.0, 2.0, 2.0]}
    found = script.summary(seconds, 100, script.goals("bert-tiny", "sst2", 2))
    ratios = {(one["peer"], one["than"]): one["ratio"] for one in found["goals"]}
    assert ratios == {("e4m3", "float32"): 1 / 3, ("float32", "calibration"): 2}
    assert found["peers"]["e4m3"]["tokens_per_second"] == 25


def test_a_run_on_one_core(script, tmp_path: Path) -> None:
    """The process and its BLAS have one core, whatever the machine has."""
    report = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPTS / "benchmark_model.py"), "--inputs", "1x16"]
    command += ["--peers", "float32", "e4m3", "--rounds", "1", "--cores", "1"]
    command += ["--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "e4m3 / float32: " in done.stdout
    found = json.loads(report.read_text())
    assert found["cores"] == 1
    (result,) = found["results"].values()
    assert [one["goal"] for one in result["goals"]] == [0.5]
    assert result["tokens"] == 64 * 16
    most = len(os.sched_getaffinity(0))
    for bad in (0, most + 1):
        with pytest.raises(SystemExit, match=f"--cores: expected 1 to {most}, found {bad}"):
            script.keep_to(bad)


def test_runners_run_their_recipes(script) -> None:
    folder = script.resolve("bert-tiny-sst2")
    inputs = script.read_inputs("2x16", None, 2, 2, folder)[:1]
    names = ("float32", "e4m3", "e4m3-golden")
    right, fast, golden = (script.PEERS[name](folder, inputs)(inputs) for name in names)
    np.testing.assert_array_equal(right, script.load(folder)(**inputs[0]).last_hidden_state)
    assert 0.01 < np.linalg.norm(fast - right) / np.linalg.norm(right) < 0.2
    assert np.linalg.norm(fast - golden) < 0.5 * np.linalg.norm(fast - right)


def test_startup_has_the_cpu_time_of_the_process(script) -> None:
    found = script.startup_seconds(1)
    assert set(found["bert-numpy predict"]) == {
        "median_seconds",
        "least_seconds",
        "median_cpu_seconds",
    }
    whole = found["bert-numpy predict"]["median_cpu_seconds"]
    assert found["python -c pass"]["median_cpu_seconds"] < whole

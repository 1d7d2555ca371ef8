"""scripts/benchmark_parts.py: parts that add up to the whole, and functions that are put back."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from oracles import assert_same_bits

import npfp8
from bert_numpy.engines.float import Bfloat16Engine, FloatEngine
from npfp8 import arrays, bfloat16
from npfp8.products import operands

SCRIPT = Path(__file__).parents[1] / "scripts" / "benchmark_parts.py"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))  # it imports its neighbours
    try:
        return importlib.import_module("benchmark_parts")
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def sample(script):
    folder = script.folders(["bert-tiny"], Path())
    return next(folder)[1], script.read_inputs("2x16", None, 2, 2, Path("bert-tiny-sst2"))[:2]


@pytest.mark.parametrize("recipe", ["float32", "e4m3", "e4m3-golden", "mxfp8", "nvfp4"])
def test_counting_changes_no_bit(script, sample, recipe: str) -> None:
    folder, inputs = sample
    run = script.runner(recipe, folder, inputs)
    expected = run(inputs)
    with script.counted(script.PARTS) as account:
        found = run(inputs)
    for one, other in zip(found, expected, strict=True):
        assert_same_bits(one.last_hidden_state, other.last_hidden_state)
    # Eight products a layer, pooler and classifier. NVFP4 multiplies some in parts, and golden
    # layer normalisation sums rows by products.
    products, least = account.calls["products of the BLAS"], len(inputs) * (2 * 8 + 2)
    assert products > least if recipe in ("nvfp4", "e4m3-golden") else products == least
    assert not account.inside


def test_parts_add_up(script, sample) -> None:
    folder, inputs = sample
    runs = {name: script.runner(name, folder, inputs) for name in ("float32", "calibration")}
    found = script.compare(runs, inputs, layers=2, rounds=2)
    for name, one in found.items():
        own = [part["microseconds"] for part in one["parts"].values()]
        assert min(own) > 0
        assert one["microseconds"] == pytest.approx(sum(own))
        assert {script.REST, "products of the BLAS"} <= one["parts"].keys()
        assert one["parts"].keys() <= {*script.PARTS, script.REST}
        assert ("histograms of a calibration" in one["parts"]) == (name == "calibration")
        assert one["without_clocks"] > 0


def test_own_time_is_without_the_time_of_others(script, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outer call of 10 seconds with inner ones of 2 and 3; the clock says what it is told."""
    now = [0.0]
    monkeypatch.setattr(time, "thread_time", lambda: now[0])
    account = script.Account()

    def passing(seconds: float) -> None:
        now[0] += seconds

    inner = account.counting("inner", passing)

    def outside() -> None:
        now[0] += 5
        inner(2)
        inner(3)

    def fails() -> None:
        inner(1)
        raise KeyError(5)

    account.counting("outer", outside)()
    with pytest.raises(KeyError, match="5"):
        account.counting("outer", fails)()
    assert account.seconds == {"inner": 6, "outer": 5}
    assert account.calls == {"inner": 3, "outer": 2}
    assert account.inside == []


def test_functions_are_replaced_wherever_they_are_held(script) -> None:
    before = {name: script.resolve_name(name) for names in script.PARTS.values() for name in names}
    with script.counted({"a": ["npfp8.bfloat16:round_in_place"]}) as account:
        assert operands.round_in_place is bfloat16.round_in_place
        assert bfloat16.round_in_place is not before["npfp8.bfloat16:round_in_place"]
        Bfloat16Engine.rounded(np.zeros(3, np.float32))  # a static method
        Bfloat16Engine(None).rounded(np.zeros(3, np.float32))
    assert account.calls == {"a": 2}
    with script.counted(script.PARTS):
        assert operands.blas_product is not before["npfp8.arrays:blas_product"]
        assert FloatEngine.add is not before["bert_numpy.engines.float:FloatEngine.add"]
    with pytest.raises(AttributeError), script.counted({**script.PARTS, "a": ["npfp8:nothing"]}):
        pass
    after = {name: script.resolve_name(name) for names in script.PARTS.values() for name in names}
    assert after == before
    assert operands.blas_product is arrays.blas_product
    assert isinstance(vars(Bfloat16Engine)["rounded"], staticmethod)


def test_no_function_belongs_to_two_parts(script) -> None:
    functions = [script.resolve_name(name) for names in script.PARTS.values() for name in names]
    assert len(set(functions)) == len(functions)
    assert script.REST not in script.PARTS


def test_both_ends_of_a_product(script) -> None:
    """Pass by pass is the plain version, of ties, signed zeros and numbers beyond bfloat16 too."""
    sums = np.concatenate([[0.0, -0.0, 257.0, 259.0, -257.0, 3e38, 1e39, 2.0**-140], np.arange(92)])
    bias, scale = np.zeros(10, np.float32), np.asarray(1, np.float32)
    with np.errstate(over="ignore"):
        found = script.end_by_passes(sums.reshape(-1, 10), scale, bias)
        expected = npfp8.bfloat16.round_to_bfloat16(sums.astype(np.float32) + np.float32(0))
    assert_same_bits(found.reshape(-1), expected)
    ends = script.compare_ends(33, 17, 1)
    assert (ends["rows"], ends["columns"]) == (33, 17)
    assert ends["by_passes"] > 0
    assert ends["in_cache"] > 0


def test_a_difference_between_the_ends_is_an_error(script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "finished_sums", lambda sums, *_: np.ones(sums.shape, np.float32))
    with pytest.raises(SystemExit, match="the two ends of a product differ in 6"):
        script.compare_ends(2, 3, 1)


def test_a_run(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(SCRIPT), "--inputs", "1x16", "--recipes", "float32", "e4m3"]
    command += ["--rounds", "1", "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "| part | float32 | e4m3 |" in done.stdout
    assert "times as fast in the cache as pass by pass" in done.stdout
    (result,) = json.loads(report.read_text())["results"].values()
    assert list(result["recipes"]) == ["float32", "e4m3"]
    assert (result["ends"]["rows"], result["ends"]["columns"]) == (16, 512)
    for name, one in result["recipes"].items():
        assert f"{one['microseconds']:.2f}" in done.stdout
        assert ("rounding to bfloat16" in one["parts"]) == (name == "e4m3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rounds", "0"], "--rounds: expected at least 1, found 0"),
        (["--batch-size", "-1"], "--batch-size: expected at least 1, found -1"),
        (["--recipes", "torch"], "invalid choice: 'torch'"),
        (["--inputs", "sst2"], "sst2: expected --data"),
    ],
)
def test_options_that_do_not_fit(
    script, options: list[str], message: str, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_parts.py", *options])
    with pytest.raises(SystemExit) as error:
        script.main()
    assert message in str(error.value) + capsys.readouterr().err

"""The study: cells that can be interrupted and spread, their joined results, outlier channels."""

from __future__ import annotations

import argparse
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles import assert_same_bits

import bert_numpy
from bert_numpy import PRESETS, BertNumpyError, apply_recipe
from bert_numpy.evaluation.outliers import with_outliers
from bert_numpy.quantization.calibration import load_calibration, sqnr
from bert_numpy.quantization.recipe import Operand
from bert_numpy.study.cells import (
    Result,
    Subject,
    bootstrap_interval,
    calibrate_subject,
    cells_of,
    compare_results,
    merged,
    run_cell,
)
from bert_numpy.study.cluster import add_cluster_options, connect, run_cells
from bert_numpy.tasks.metrics import accuracy
from npfp8 import E4M3FN, E5M2, INT8

REVIEWS = Path(bert_numpy.__file__).parent / "assets" / "reviews"
EXAMPLES = 26


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    file = tmp_path_factory.mktemp("calibration") / "reviews.safetensors"
    found = Subject("bert-tiny-sst2", "sst2", str(REVIEWS), str(file), limit=EXAMPLES)
    calibrate_subject(found, samples=20)
    return found


def test_cells_cover_the_examples_in_order(subject: Subject, tmp_path: Path) -> None:
    cells = cells_of(subject, PRESETS["e4m3"], tmp_path, size=10)
    assert [(cell.start, cell.stop) for cell in cells] == [(0, 10), (10, 20), (20, 26)]
    with pytest.raises(BertNumpyError, match="the cell has not been run"):
        merged(cells)
    for cell in reversed(cells):
        run_cell(cell)
    result = merged(cells)
    (whole,) = cells_of(subject, PRESETS["e4m3"], tmp_path, size=100)
    run_cell(whole)
    np.testing.assert_array_equal(result.labels, merged([whole]).labels)
    np.testing.assert_allclose(result.logits, merged([whole]).logits, rtol=1e-4, atol=1e-4)
    assert len(result.predictions) == EXAMPLES


def test_a_cell_that_is_there_is_not_run_again(subject: Subject, tmp_path: Path) -> None:
    (cell,) = cells_of(subject, PRESETS["int8"], tmp_path)
    run_cell(cell)
    before = cell.file.stat().st_mtime_ns
    run_cell(cell)
    assert cell.file.stat().st_mtime_ns == before


def test_the_file_of_a_cell_depends_on_all_that_decides_it(
    subject: Subject, tmp_path: Path
) -> None:
    cells = cells_of(subject, PRESETS["e4m3"], tmp_path, size=10)
    others = [
        replace(cells[0], recipe=PRESETS["e5m2"]),
        replace(cells[0], recipe=PRESETS["e4m3"].skipping("*.scores")),
        replace(cells[0], subject=replace(subject, model="another")),
    ]
    files = {cell.file for cell in (*cells, *others)}
    assert len(files) == len(cells) + len(others)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(Path(subject.calibration).read_bytes())
    moved = replace(cells[0], subject=replace(subject, calibration=str(copy)))
    assert moved.file == cells[0].file  # its content decides, not its place
    copy.write_bytes(b"something else")
    assert moved.file != cells[0].file


def result_of(predictions: list[int], labels: list[int]) -> Result:
    logits = np.float32(predictions) + np.float32(1)
    return Result(np.array(labels), np.array(predictions), logits, {"accuracy": accuracy})


def test_comparison() -> None:
    labels = [0, 1] * 50
    reference = result_of(labels, labels)
    row = compare_results(result_of([1 - labels[0], *labels[1:]], labels), reference)
    assert row["accuracy"] == 0.99
    assert row["flips"] == 1
    assert row["difference"] == pytest.approx(-0.01)
    low, high = row["interval"]  # type: ignore[misc]
    assert -0.04 <= low <= -0.01 <= high == 0
    same = compare_results(reference, reference)
    assert same["interval"] == [0, 0]
    assert same["relative_logit_error"] == 0


def test_interval_covers_the_difference() -> None:
    """About 95 % of 60 samples with a difference of -0.1 by design cover it."""
    generator = np.random.default_rng(5)
    inside = 0
    for _ in range(60):
        labels = generator.integers(0, 2, 400)
        wrong = generator.random((2, 400)) < [[0.2], [0.1]]
        ours, theirs = (
            result_of(np.where(part, 1 - labels, labels).tolist(), labels.tolist())
            for part in wrong
        )
        low, high = bootstrap_interval(accuracy, ours, theirs, resamples=200)
        inside += low <= -0.1 <= high
    assert inside >= 50


def test_interval_is_that_of_the_answers_that_differ() -> None:
    """Of 4000 answers, 1000 are wrong in both, and 200 more in one: a draw has 200 +- 13.8 of them.

    The normal distribution's percentiles 2.5 and 97.5 are 1.96 deviations away, 5 and 95 only
    1.645; draws of their own for each recipe would deviate by three times as much.
    """
    labels = np.zeros(4000, int)
    theirs = (np.arange(4000) < 1000).astype(int)
    ours = (np.arange(4000) < 1200).astype(int)
    results = (result_of(one.tolist(), labels.tolist()) for one in (ours, theirs))
    found = 4000 * np.array(bootstrap_interval(accuracy, *results, resamples=2000))
    deviation = np.sqrt(200 * (1 - 200 / 4000))
    np.testing.assert_allclose(found, -200 + deviation * np.array([-1.96, 1.96]), atol=2.5)


def test_signal_to_noise(subject: Subject) -> None:
    """E4M3 has about 31.5 dB for smooth data, as its noise is relative, and E5M2 about 6 less."""
    operands = load_calibration(subject.calibration).operands
    ratios = {
        name: [sqnr(seen, Operand(fmt)) for fmt in (E4M3FN, E5M2)]
        for name, seen in operands.items()
        if name.startswith("encoder.")
    }
    for name, (e4m3, e5m2) in ratios.items():
        assert 30.5 < e4m3 < 33, name
        assert 5 < e4m3 - e5m2 < 7, name
    context = sqnr(operands["encoder.layer.1.output.dense:a"], Operand(INT8))
    assert context < ratios["encoder.layer.1.output.dense:a"][0]  # GELU's long tail


def test_a_cluster_has_workers() -> None:
    """Without one it would wait for ever."""
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_cluster_options(parser)
    with pytest.raises(argparse.ArgumentError, match="expected a whole number of at least 1"):
        parser.parse_args(["--workers", "0"])


@pytest.mark.usefixtures("distributed")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="it reads Linux's /proc")
def test_what_a_worker_starts_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later settings have no effect: a worker imports NumPy as soon as it starts."""
    wanted = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    wanted |= {"BLIS_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
    wanted |= {"MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
    for name in wanted:
        monkeypatch.delenv(name, raising=False)
    with connect(workers=1) as client, client.cluster:
        text = client.submit(lambda: Path("/proc/self/environ").read_text()).result()
    found = dict(one.partition("=")[::2] for one in text.split("\0"))
    assert found | wanted == found


@pytest.mark.usefixtures("distributed")
def test_cluster_whose_worker_is_killed(subject: Subject, tmp_path: Path) -> None:
    recipes = [PRESETS[name] for name in ("fp32", "int8", "e4m3", "int8-token")]
    alone = [
        cell for recipe in recipes for cell in cells_of(subject, recipe, tmp_path / "alone", 7)
    ]
    for cell in alone:
        run_cell(cell)
    spread = [replace(cell, folder=str(tmp_path / "spread")) for cell in alone]
    with connect(workers=2) as client, client.cluster as cluster:
        killer = threading.Timer(0.3, os.kill, (cluster.workers[0].process.pid, signal.SIGKILL))
        killer.start()
        run_cells(spread, client)
        killer.join()
    parts = len(alone) // len(recipes)
    for start in range(0, len(alone), parts):
        window = slice(start, start + parts)
        np.testing.assert_allclose(
            merged(spread[window]).logits, merged(alone[window]).logits, rtol=1e-4, atol=1e-4
        )


# Outlier channels


def test_outliers_change_no_bit_of_the_golden_float32_output() -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    batch = {"input_ids": [[101, 2204, 3185, 102], [101, 2919, 2143, 102]]}
    expected = apply_recipe(model, PRESETS["fp32"], golden=True)(**batch).logits
    for exponent in (1, 8, -5):
        changed = with_outliers(model, exponent)
        found = apply_recipe(changed, PRESETS["fp32"], golden=True)(**batch).logits
        assert_same_bits(found, expected)
        weight = "encoder.layer.0.attention.self.query.weight"
        assert not np.array_equal(changed.weights[weight], model.weights[weight])
    assert math.isclose(
        np.abs(with_outliers(model, 8).weights[weight]).max() / np.abs(model.weights[weight]).max(),
        256,
        rel_tol=0.9,
    )


def test_outliers_that_float32_cannot_hold() -> None:
    model = bert_numpy.load("bert-tiny-sst2")
    with pytest.raises(BertNumpyError, match=r"expected float32's range to hold it"):
        with_outliers(model, 127)
    with pytest.raises(BertNumpyError, match=r"channels: expected 1\.\.64, found 65"):
        with_outliers(model, 1, channels=65)

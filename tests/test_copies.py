"""Models in several hands: copied, pickled, sent to other processes, shared by threads."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from factories import scored

import bert_numpy
import npfp8
from bert_numpy import PRESETS, Model, QuantizedModel, apply_recipe
from bert_numpy import threads as threading_of_blas
from bert_numpy.evaluation.evaluate import predict_logits
from bert_numpy.quantization import policy as policies
from bert_numpy.quantization.policy import FLOAT32_POLICY, OperandCounts, Policy, float32_policy
from bert_numpy.tasks.glue import TASKS

TEXTS = ["a warm and funny film", "dull", "not a good plot , and very bad actors"]

#: Presets that differ in kind: granularities, observers, zero points, outliers, migration.
KINDS = [
    "fp32",
    "bf16",
    "e4m3",
    "mixed",
    "int8-asymmetric",
    "int8-channel",
    "int8-token",
    "e4m3-block",
    "int8-outliers",
    "int8-smooth",
    "e4m3-pow2",
    "e4m3-weights",
]
by_kind = pytest.mark.parametrize("name", KINDS)
by_mode = pytest.mark.parametrize("golden", [False, True], ids=["fast", "golden"])

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "oldest protocol": lambda x: pickle.loads(pickle.dumps(x, 0)),
}

Counts = dict[str, OperandCounts]

#: Apple's frameworks, its BLAS among them, are not safe to use in a forked child.
METHODS = ("spawn",) if sys.platform == "darwin" else ("fork", "spawn")
forks = pytest.mark.skipif(
    not hasattr(os, "fork") or "fork" not in METHODS, reason="no fork here, or no BLAS after one"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return bert_numpy.load("bert-tiny-sst2")


@pytest.fixture(scope="module")
def batch() -> dict[str, Any]:
    return bert_numpy.load_tokenizer("bert-tiny-sst2").batch(TEXTS)


@pytest.fixture(scope="module")
def encoded() -> list[Any]:
    return bert_numpy.load_tokenizer("bert-tiny-sst2").encode(TEXTS * 5)


@pytest.fixture(scope="module")
def calibration(model: Model, batch: dict[str, Any]) -> bert_numpy.Calibration:
    return bert_numpy.calibrate(model, [batch])


def quantized(model: Model, name: str, calibration: Any, golden: bool = False) -> QuantizedModel:
    return apply_recipe(model, PRESETS[name], calibration, golden)


def plain(counts: Counts) -> dict[str, dict[str, int]]:
    return {name: dict(vars(count)) for name, count in counts.items()}


def doubled(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {name: {key: 2 * n for key, n in one.items()} for name, one in counts.items()}


def run_in_child(model: QuantizedModel, batch: dict[str, Any]) -> tuple[bytes, Any, int]:
    return model(**batch).logits.tobytes(), plain(model.counts), os.getpid()


@by_mode
@by_kind
def test_a_copy_computes_the_same_and_counts_on_its_own(
    model: Model, calibration: Any, batch: Any, name: str, golden: bool
) -> None:
    original = quantized(model, name, calibration, golden)
    bits = original(**batch).logits.tobytes()
    before = plain(original.counts)
    for way in WAYS.values():
        clone = way(original)
        assert plain(clone.counts) == before
        assert clone(**batch).logits.tobytes() == bits
        assert plain(clone.counts) == doubled(before)
        assert plain(original.counts) == before
    assert original(**batch).logits.tobytes() == bits
    assert plain(original.counts) == doubled(before)
    assert bool(before) == (name not in ("fp32", "bf16", "e4m3-weights"))


def test_replace_keeps_the_counts_or_takes_others(
    model: Model, calibration: Any, batch: Any
) -> None:
    original = quantized(model, "e4m3", calibration)
    renamed = dataclasses.replace(original, name="other")
    assert renamed.counts is original.counts
    renamed(**batch)
    assert original.counts
    mine: Counts = {}
    counting = dataclasses.replace(original, counts=mine)
    before = plain(original.counts)
    counting(**batch)
    assert plain(mine) == plain(original.counts) == before


@by_mode
@pytest.mark.parametrize("method", METHODS)
def test_another_process(
    model: Model, calibration: Any, batch: Any, golden: bool, method: str
) -> None:
    """The same bits there, and counts that stay there."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    names = [name for name in KINDS if golden or name not in ("fp32",)]
    models = [quantized(model, name, calibration, golden) for name in names]
    alone = [(one(**batch).logits.tobytes(), plain(one.counts)) for one in models]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.starmap(run_in_child, [(one, batch) for one in models])
    for one, (bits, counts), (there, counted, process) in zip(models, alone, found, strict=True):
        assert process != os.getpid()
        assert there == bits
        assert counted == doubled(counts)
        assert plain(one.counts) == counts


def child(function: Any) -> int:
    """The exit code of a forked child that runs a function; 99 if it hangs."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        return 99
    assert process.exitcode is not None
    return process.exitcode


@forks
def test_fork_while_locks_are_held(
    model: Model, calibration: Any, encoded: Any, batch: Any
) -> None:
    """A child works although a thread that is not in it held the locks, or used the threads."""
    original = quantized(model, "e4m3", calibration)
    expected = original(**batch).logits.tobytes()
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with threading_of_blas.one_blas_thread(), policies._COUNTING, threading_of_blas._lock:
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)

    def work() -> None:
        assert threading_of_blas._users == 0
        assert original(**batch).logits.tobytes() == expected
        predict_logits(original, encoded, 4, threads=2)
        with threading_of_blas.one_blas_thread():
            pass
        assert threading_of_blas._users == 0

    try:
        assert child(work) == 0
    finally:
        release.set()
        holder.join()
    assert threading_of_blas._users == 0


@forks
def test_the_blas_threads_come_back_in_a_child() -> None:
    found = threading_of_blas._blas_threads()
    if found is None:
        pytest.skip("this NumPy has no OpenBLAS")
    before = found[0]()

    def work() -> None:
        assert found[0]() == before

    with threading_of_blas.one_blas_thread():
        assert found[0]() == 1
        assert child(work) == 0
    assert found[0]() == before


@pytest.mark.parametrize("policy", [FLOAT32_POLICY, float32_policy(golden=True)])
def test_policies_and_plain_models(model: Model, batch: Any, policy: Policy) -> None:
    plain_model = dataclasses.replace(model, policy=policy)
    bits = plain_model(**batch).logits.tobytes()
    for way in WAYS.values():
        assert way(plain_model)(**batch).logits.tobytes() == bits
        assert dataclasses.replace(model, policy=way(policy))(**batch).logits.tobytes() == bits


@by_kind
def test_recipes_calibrations_and_evaluations(
    model: Model, calibration: Any, encoded: Any, name: str
) -> None:
    recipe = PRESETS[name]
    result = scored(
        quantized(model, name, calibration), TASKS["sst2"], encoded, np.zeros(15, np.int64)
    )
    for way in WAYS.values():
        assert way(recipe) == recipe
        assert hash(way(recipe)) == hash(recipe)
        assert way(result).metrics == result.metrics
        assert plain(way(result).counts) == plain(result.counts)
        assert way(calibration).samples == calibration.samples


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("fmt", [npfp8.E4M3FN, npfp8.E8M0FNU, npfp8.INT8, npfp8.UINT8], ids=str)
def test_formats_and_tensors(fmt: npfp8.Format, way: str) -> None:
    clone = WAYS[way](fmt)
    assert (clone, str(clone), hash(clone)) == (fmt, str(fmt), hash(fmt))
    assert not clone.values.flags.writeable
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    q = npfp8.quantize(x, fmt, axis=1, block=2)
    again = WAYS[way](q)
    assert np.array_equal(again.codes, q.codes)
    assert np.array_equal(again.dequantize(), q.dequantize())
    assert again.fmt == q.fmt


def test_tables_cannot_be_written() -> None:
    for fmt in (npfp8.E4M3FN, npfp8.E2M1):
        for table in (fmt.values, fmt.grid, fmt.is_finite, npfp8.values(fmt)):
            with pytest.raises(ValueError, match="read-only"):
                table[0] = 0


@pytest.mark.parametrize("name", ["e4m3", "int8-token"])
def test_evaluations_have_counts_of_their_own(
    model: Model, calibration: Any, encoded: Any, name: str
) -> None:
    """One after the other, and several at once; the model's are the sum of all."""
    one = quantized(model, name, calibration)

    def evaluation(_: int) -> Any:
        return scored(one, TASKS["sst2"], encoded, np.zeros(15, np.int64), 4)

    first = evaluation(0)
    expected = plain(first.counts)
    assert expected
    assert plain(one.counts) == expected
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(evaluation, range(3)))
    assert [plain(result.counts) for result in results] == [expected] * 3
    assert plain(first.counts) == expected
    assert plain(one.counts) == doubled(doubled(expected))
    assert len({id(count) for result in results for count in result.counts.values()}) == 3 * len(
        expected
    )


def test_copies_while_threads_count(model: Model, calibration: Any, batch: Any) -> None:
    """A copy is one moment's: no count is beyond the run's, and nothing raises."""
    busy = quantized(model, "e4m3", calibration)
    once = quantized(model, "e4m3", calibration)
    once(**batch)
    elements = {name: count.elements for name, count in once.counts.items()}
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            busy.counts.clear()
            busy(**batch)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(60):
            for name, count in WAYS["deepcopy"](busy).counts.items():
                assert count.saturated <= count.elements <= elements[name]
    finally:
        stop.set()
        worker.join()

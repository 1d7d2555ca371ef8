"""Models that are copied, pickled, sent to other processes, or shared by threads."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import bert_numpy
import npfp8
from bert_numpy import PRESETS, Model, QuantizedModel, apply_recipe
from bert_numpy import threads as threading_of_blas
from bert_numpy.engines.float import FloatEngine
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.evaluation.evaluate import evaluate, outputs, predict_logits
from bert_numpy.model.model import EngineOf
from bert_numpy.quantization.counts import Counts, added
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
    "mxfp4",
    "nvfp4",
]
by_kind = pytest.mark.parametrize("name", KINDS)
by_mode = pytest.mark.parametrize("golden", [False, True], ids=["fast", "golden"])

WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "oldest protocol": lambda x: pickle.loads(pickle.dumps(x, 0)),
}

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


def bits_and_counts(model: QuantizedModel, batch: dict[str, Any]) -> tuple[bytes, Any]:
    output = model(**batch)
    return output.logits.tobytes(), plain(output.counts)


def run_in_child(model: QuantizedModel, batch: dict[str, Any]) -> tuple[bytes, Any, int]:
    return (*bits_and_counts(model, batch), os.getpid())


@by_mode
@by_kind
def test_a_copy_computes_and_counts_the_same(
    model: Model, calibration: Any, batch: Any, name: str, golden: bool
) -> None:
    original = quantized(model, name, calibration, golden)
    first = original(**batch)
    bits, counts = first.logits.tobytes(), plain(first.counts)
    for way in WAYS.values():
        assert bits_and_counts(way(original), batch) == (bits, counts)
    assert bits_and_counts(original, batch) == (bits, counts)
    assert plain(first.counts) == counts
    assert bool(counts) == (name not in ("fp32", "bf16", "e4m3-weights"))


@by_mode
@pytest.mark.parametrize("name", ["e4m3", "int8-token", "fp32"])
def test_an_output_is_a_value(
    model: Model, calibration: Any, batch: Any, name: str, golden: bool
) -> None:
    """No later run changes what an earlier one has given, nor does who has it change the model."""
    original = quantized(model, name, calibration, golden)
    state = {field.name: getattr(original, field.name) for field in dataclasses.fields(original)}
    first = original(**batch)
    bits, counts = first.logits.tobytes(), plain(first.counts)
    smaller = original(**{key: value[:1] for key, value in batch.items()})
    assert (first.logits.tobytes(), plain(first.counts)) == (bits, counts)
    if counts:
        assert smaller.counts.keys() == first.counts.keys()
        assert plain(smaller.counts) != counts
        count = next(iter(first.counts.values()))
        with pytest.raises(dataclasses.FrozenInstanceError):
            count.elements = 0  # type: ignore[misc]
        first.counts.clear()  # type: ignore[attr-defined]
    first.logits[...] = 0
    assert bits_and_counts(original, batch) == (bits, counts)
    for field in dataclasses.fields(original):
        assert getattr(original, field.name) is state[field.name]
    assert not hasattr(original, "counts")


@by_kind
def test_copies_of_an_output(model: Model, calibration: Any, batch: Any, name: str) -> None:
    output = quantized(model, name, calibration)(**batch)
    for way in WAYS.values():
        clone = way(output)
        assert clone.counts == output.counts
        for field in dataclasses.fields(output):
            value, copied = getattr(output, field.name), getattr(clone, field.name)
            if isinstance(value, np.ndarray):
                assert copied.tobytes() == value.tobytes()
            else:
                assert copied == value


def test_replace_counts_the_same(model: Model, calibration: Any, batch: Any) -> None:
    original = quantized(model, "e4m3", calibration)
    renamed = dataclasses.replace(original, name="other")
    assert renamed.name == "other"
    expected = bits_and_counts(original, batch)
    assert expected[1]
    assert bits_and_counts(renamed, batch) == expected


@by_mode
@pytest.mark.parametrize("method", METHODS)
def test_another_process(
    model: Model, calibration: Any, batch: Any, golden: bool, method: str
) -> None:
    """The same bits and counts there."""
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    names = [name for name in KINDS if golden or name not in ("fp32",)]
    models = [quantized(model, name, calibration, golden) for name in names]
    alone = [bits_and_counts(one, batch) for one in models]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.starmap(run_in_child, [(one, batch) for one in models])
    for one, here, (*there, process) in zip(models, alone, found, strict=True):
        assert process != os.getpid()
        assert tuple(there) == here
        assert bits_and_counts(one, batch) == here


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
    expected = bits_and_counts(original, batch)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with threading_of_blas.one_blas_thread(), threading_of_blas._lock:
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(60)

    def work() -> None:
        assert threading_of_blas._users == 0
        assert bits_and_counts(original, batch) == expected
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


@pytest.mark.parametrize(
    "engine", [FloatEngine, GoldenEngine, partial(GoldenEngine, precision="bfloat16")]
)
def test_engines_and_plain_models(model: Model, batch: Any, engine: EngineOf) -> None:
    plain_model = dataclasses.replace(model, engine=engine)
    bits = plain_model(**batch).logits.tobytes()
    for way in WAYS.values():
        assert way(plain_model)(**batch).logits.tobytes() == bits
        assert dataclasses.replace(model, engine=way(engine))(**batch).logits.tobytes() == bits


@by_kind
def test_recipes_calibrations_and_evaluations(
    model: Model, calibration: Any, encoded: Any, name: str
) -> None:
    recipe = PRESETS[name]
    result = evaluate(
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
    """One after the other, and several at once; they are the sum of its batches'."""
    one = quantized(model, name, calibration)

    def evaluation(_: int) -> Any:
        return evaluate(one, TASKS["sst2"], encoded, np.zeros(15, np.int64), 4)

    first = evaluation(0)
    expected = plain(first.counts)
    assert expected
    runs = [output.counts for _, output in outputs(one, encoded, 4)]
    assert len(runs) > 1
    assert plain(added(runs)) == expected
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(evaluation, range(3)))
    assert [plain(result.counts) for result in results] == [expected] * 3
    assert plain(first.counts) == expected
    results[0].counts.clear()
    assert [plain(result.counts) for result in results[1:]] == [expected] * 2
    assert plain(evaluation(0).counts) == expected


@pytest.mark.parametrize("name", ["e4m3", "int8-outliers-columns"])
def test_threads_share_a_model(model: Model, calibration: Any, batch: Any, name: str) -> None:
    """Batches of several sizes at once, and copies meanwhile: each run as if it were alone."""
    shared = quantized(model, name, calibration, golden=True)
    parts = [batch, *({key: x[row:][:1] for key, x in batch.items()} for row in range(3))]
    alone = [bits_and_counts(shared, part) for part in parts]
    assert len({str(counts) for _, counts in alone}) > 1
    stop = threading.Event()

    def run_all(_: int) -> bool:
        return [bits_and_counts(shared, part) for part in parts] == alone

    def keep_running() -> None:
        while not stop.is_set():
            shared(**batch)

    worker = threading.Thread(target=keep_running)
    worker.start()
    try:
        for _ in range(10):
            clone = WAYS["deepcopy"](shared)
            assert bits_and_counts(clone, batch) == alone[0]
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run_all, range(20)))
    finally:
        stop.set()
        worker.join()

"""Batches on several threads: the same results, in order, in bounded memory."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from watching import noted

import bert_numpy
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.evaluation.evaluate import batches, outputs, predict_logits
from bert_numpy.quantization.counts import added
from bert_numpy.quantization.observers import observe
from bert_numpy.threads import _blas_threads, default_threads, map_in_order, one_blas_thread

TEXTS = [f"{'a warm and funny film ' * (1 + i % 7)} {i}" for i in range(50)]


@pytest.fixture(scope="module")
def model() -> bert_numpy.Model:
    return bert_numpy.load("bert-tiny-sst2")


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_map_in_order(threads: int) -> None:
    """In order, although the first takes longest; no item is taken long before its turn."""
    taken: list[int] = []
    later = threading.Event()

    def items():
        for i in range(20):
            taken.append(i)
            yield i

    def square(i: int) -> int:
        if threads > 1 and i == 0:
            assert later.wait(30)
        elif i == 1:
            later.set()
        return i * i

    found = []
    for result in map_in_order(square, items(), threads):
        found.append(result)
        assert len(taken) <= len(found) + threads + 1
    assert found == [i * i for i in range(20)]


def test_map_in_order_passes_errors_on() -> None:
    def fail_at_3(i: int) -> int:
        if i == 3:
            raise KeyError(i)
        return i

    results = map_in_order(fail_at_3, range(10), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    assert list(map_in_order(fail_at_3, [], 2)) == []


def test_one_blas_thread_is_undone() -> None:
    """Also when uses of it overlap and one ends by an error."""
    found = _blas_threads()
    if found is None:
        pytest.skip("this NumPy has no OpenBLAS")
    get, _ = found
    before = get()
    with one_blas_thread():
        with pytest.raises(ZeroDivisionError), one_blas_thread():
            raise ZeroDivisionError
        assert get() == 1
    assert get() == before
    assert default_threads() >= 1


@pytest.mark.parametrize("recipe", ["fp32", "e4m3", "int8"])
def test_threads_do_not_change_results(model: bert_numpy.Model, recipe: str) -> None:
    """Nor what is counted. In float32 one and several threads may differ as BLAS orders do."""
    encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(TEXTS)
    batch = bert_numpy.load_tokenizer("bert-tiny-sst2").batch(TEXTS)
    calibration = bert_numpy.calibrate(model, [batch])
    runs = []
    for threads in (2, 3, 1):
        quantized = bert_numpy.apply_recipe(model, bert_numpy.PRESETS[recipe], calibration, True)
        given = [output for _, output in outputs(quantized, encoded, 7, threads=threads)]
        logits = b"".join(output.logits.tobytes() for output in given)
        runs.append((logits, added(output.counts for output in given)))
    assert runs[0] == runs[1] == runs[2]
    assert bool(runs[0][1]) == (recipe != "fp32")
    fast = bert_numpy.apply_recipe(model, bert_numpy.PRESETS[recipe], calibration)
    several = [predict_logits(fast, encoded, batch_size=7, threads=n) for n in (2, 3)]
    assert several[0].tobytes() == several[1].tobytes()
    if recipe == "fp32":
        np.testing.assert_allclose(several[0], fast(**batch).logits, rtol=0, atol=1e-5)


def test_calibration_is_the_plain_one(model: bert_numpy.Model) -> None:
    """Batches on threads, an input looked at once for three layers: as one by one."""
    encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(TEXTS)
    inputs = [batch for _, batch in batches(encoded, 7)]
    operands, channels = {}, {}

    def note(site, a, b, bias, result):
        operands[f"{site}:a"] = observe(site, operands.get(f"{site}:a"), a)
        if site.endswith((".scores", ".context")):
            operands[f"{site}:b"] = observe(site, operands.get(f"{site}:b"), b)
        else:
            largest = np.abs(a).max(axis=tuple(range(a.ndim - 1)))
            channels[site] = np.maximum(channels.get(site, largest), largest)

    observing = noted(replace(model, engine=GoldenEngine), note)
    for batch in inputs:
        observing(**batch)
    for threads in (1, 3):
        found = bert_numpy.calibrate(model, inputs, golden=True, threads=threads)
        assert list(found.operands) == list(operands)
        for name, seen in found.operands.items():
            plain = operands[name]
            none = {"bits": 0, "counts": 0}
            assert replace(seen, **none).__dict__ == replace(plain, **none).__dict__, name
            assert (seen.histogram == plain.histogram).all()
        assert {site: x.tobytes() for site, x in found.channels.items()} == {
            site: x.tobytes() for site, x in channels.items()
        }

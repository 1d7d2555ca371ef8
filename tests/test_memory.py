"""Memory: a float32 checkpoint is mapped, and no second copy of it is held."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import ROOT
from factories import entry, safetensors_bytes, write_checkpoint

from bert_numpy import load
from bert_numpy.checkpoints.tensors import open_checkpoint, read_float32


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = ROOT / "scripts" / "benchmark_memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is read as on POSIX")
def test_peak_of_loading_and_running(tmp_path: Path, benchmark: ModuleType) -> None:
    """200 MB, nearly all of it one tensor: a copy of it, or a mask, would be seen."""
    path = benchmark.write_model(tmp_path, hidden=256, layers=1, vocabulary=192_000)
    size = path.stat().st_size
    assert size > 195e6
    peaks = benchmark.measure(tmp_path)
    shutil.rmtree(tmp_path)
    assert peaks["peak"] - peaks["peak before"] < 1.1 * size
    if sys.platform == "linux":
        assert peaks["private"] - peaks["private before"] < 0.1 * size


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its allocator gives memory back")
def test_a_batch_reuses_the_memory_of_the_last() -> None:
    """The system maps no pages for a batch like the last one; 1,000 pages were 4 MB."""
    code = """
import resource
import numpy as np
import bert_numpy
model = bert_numpy.load("bert-tiny-sst2")
ids = np.full((32, 25), 2204)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(ids)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 50


def test_float32_is_a_view_and_the_rest_are_copies(tmp_path: Path) -> None:
    for dtype, copied in (("F32", False), ("F16", True), ("BF16", True)):
        folder = write_checkpoint(tmp_path / dtype, dtype=dtype)
        for tensor in open_checkpoint(folder).values():
            values = read_float32(tensor)
            assert values.flags.aligned
            assert values.flags.writeable == (copied or tensor.begin % 4 != 0)


@pytest.mark.parametrize("shift", range(8))
def test_data_at_any_byte(tmp_path: Path, shift: int) -> None:
    """A header of any length; what does not lie at a multiple of 4 bytes is copied."""
    values = np.arange(6, dtype="<f4").reshape(2, 3)
    header = {"a": entry(0, 24, [2, 3]), "__metadata__": {"x": "x" * shift}}
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, values.tobytes()))
    tensor = open_checkpoint(tmp_path)["a"]
    found = read_float32(tensor)
    assert np.array_equal(found, values)
    assert found.flags.aligned
    assert found.flags.writeable == bool(tensor.begin % 4)


def test_a_file_that_takes_the_place_of_a_loaded_one(tmp_path: Path) -> None:
    """The loaded model keeps the old weights, as whoever writes atomically expects."""
    folder = write_checkpoint(tmp_path / "model", seed=1)
    other = write_checkpoint(tmp_path / "other", seed=2)
    model = load(folder)
    before = model([[2, 5, 3]]).logits
    (other / "model.safetensors").replace(folder / "model.safetensors")
    assert np.array_equal(model([[2, 5, 3]]).logits, before)
    assert not np.array_equal(load(folder)([[2, 5, 3]]).logits, before)


def test_one_file_is_open_for_all_its_tensors(tmp_path: Path) -> None:
    """A checkpoint of many tensors stays below the limit on open files."""
    folder = write_checkpoint(tmp_path / "model", config_overrides={"num_hidden_layers": 8})
    code = (
        "import resource, sys, bert_numpy\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))\n"
        "print(len(bert_numpy.load(sys.argv[1]).weights))"
    )
    if sys.platform == "win32":
        pytest.skip("the limit on open files is set as on POSIX")
    found = subprocess.run(
        [sys.executable, "-c", code, folder], check=True, capture_output=True, text=True
    )
    assert int(found.stdout) > 100

"""Writers that are killed: the target is the old file or the new one, whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from factories import write_checkpoint

from bert_numpy import calibrate, load
from bert_numpy.calibration import load_calibration, save_calibration
from npfp8.storage import load_file, save_file

# Writes files of equal numbers, 1, 2, 3 and so on, until it is killed.
_SAVE_FILE = """
import sys
import numpy as np
from npfp8.storage import save_file
number = 0
while True:
    number += 1
    tensors = {f"t{i}": np.full(50_000, number, np.float32) for i in range(20)}
    save_file(tensors, sys.argv[1], {"number": str(number)})
    if number == 1:
        print("begun", flush=True)
"""

# The same with calibrations: of 1, 2, 3 samples and so on.
_SAVE_CALIBRATION = """
import sys
from dataclasses import replace
from bert_numpy.calibration import load_calibration, save_calibration
calibration = load_calibration(sys.argv[1])
while True:
    calibration = replace(calibration, samples=calibration.samples + 1)
    save_calibration(calibration, sys.argv[1])
    if calibration.samples == 2:
        print("begun", flush=True)
"""


def kill_while_writing(code: str, path: Path, delay: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.kill()
    process.wait()
    process.stdout.close()


DELAYS = [0.0, 0.01, 0.035]


@pytest.mark.parametrize("delay", DELAYS)
def test_save_file(tmp_path: Path, delay: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t0": np.zeros(3, np.float32)}, path)
    kill_while_writing(_SAVE_FILE, path, delay)
    values = {float(x) for tensor in load_file(path).values() for x in np.unique(tensor)}
    assert len(values) == 1
    left = {file.name for file in tmp_path.iterdir()} - {path.name}
    assert len(left) <= 1  # what was being written, under a name of its own
    assert all(name.startswith(".x.safetensors.") for name in left)


@pytest.mark.parametrize("delay", DELAYS[::2])
def test_save_calibration(tmp_path: Path, delay: float) -> None:
    model = load(write_checkpoint(tmp_path / "model"))
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "calibration"
    before = calibrate(model, [{"input_ids": np.array([[2, 5, 6, 3]])}])
    save_calibration(before, path)
    kill_while_writing(_SAVE_CALIBRATION, path, delay)
    after = load_calibration(path)
    assert after.samples > 1
    assert after.operands.keys() == before.operands.keys()
    for name, seen in before.operands.items():
        assert np.array_equal(after.operands[name].histogram, seen.histogram)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_kill_at_any_write(tmp_path: Path) -> None:
    """Dead before the n-th change of a file: the old one is there until the last."""
    path = tmp_path / "x"
    code = """
import os, signal, sys
import numpy as np
from npfp8 import files, storage

class Dying:
    def __init__(self, file): self.file = file
    def __enter__(self): self.file.__enter__(); return self
    def __exit__(self, *error): step(); return self.file.__exit__(*error)
    def write(self, data): step(); self.file.write(data); self.file.flush()

def step():
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)

fdopen, replace = os.fdopen, files.Path.replace
for left in range(9):
    storage.save_file({"a": np.zeros(9)}, f"{sys.argv[1]}{left}")
    child = os.fork()
    if not child:
        os.fdopen = lambda *a: Dying(fdopen(*a))
        files.Path.replace = lambda *a: (step(), replace(*a), step())
        storage.save_file({"a": np.ones(9), "b": np.ones(9)}, f"{sys.argv[1]}{left}")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", code, path]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    outcomes = []
    for step, status in enumerate(map(int, finished.stdout.split())):
        tensors = load_file(f"{path}{step}")
        new = "b" in tensors
        assert all(np.array_equal(x, np.full(9, float(new))) for x in tensors.values())
        outcomes.append((status != 0, new))
    killed = [new for was_killed, new in outcomes if was_killed]
    assert killed == sorted(killed)  # first the old one, then the new one
    assert set(killed) == {False, True}
    assert outcomes[-1] == (False, True)

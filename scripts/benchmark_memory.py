"""Measure the peak memory of loading a float32 checkpoint and running one sentence.

It is compared with the size of the file. Pages of the mapped file count as memory of
the process, although the system can drop them at any time. The memory that it cannot
drop is "private" (Linux only).

The script writes random weights of BERT-large's size (1.3 GB), or of the size in the
options, into a temporary folder, and loads them in a separate process.
"""

from __future__ import annotations

import argparse
import json
import math
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bert_numpy.checkpoints.config_file import read_config
from bert_numpy.model.sites import expected_shapes

#: Loads the folder of its argument and prints its memory in bytes, as JSON.
CHILD = """
import json, resource, sys
import numpy as np
import bert_numpy

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def measure(suffix):
    if sys.platform == "linux":  # where getrusage also counts what was this process before
        found["peak" + suffix], found["private" + suffix] = status("VmHWM"), status("RssAnon")
    else:
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak" + suffix] = size * (1 if sys.platform == "darwin" else 1024)

found = {}
measure(" before")
model = bert_numpy.load(sys.argv[1])
measure(" loaded")
ids = np.arange(32)[None] % model.config.vocab_size
assert np.isfinite(model(ids).last_hidden_state).all()
measure("")
print(json.dumps(found))
"""


def write_model(folder: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    """Write a checkpoint of random weights, tensor by tensor, and return the weights' file."""
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }
    (folder / "config.json").write_text(json.dumps(config))
    shapes = expected_shapes(read_config(folder / "config.json"))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(0)
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            values = generator.standard_normal(shape, np.float32)
            values *= np.float32(0.02)
            values += np.float32(name.endswith("LayerNorm.weight"))
            file.write(values.astype("<f4", copy=False).tobytes())
    return path


def measure(folder: Path) -> dict[str, Any]:
    """Measure bytes of memory: before loading, after it, and (no suffix) after a sentence."""
    finished = subprocess.run(
        [sys.executable, "-c", CHILD, folder], check=True, capture_output=True, text=True
    )
    return dict(json.loads(finished.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=1024, help="a multiple of 64")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=30_522)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = write_model(Path(name), arguments.hidden, arguments.layers, arguments.vocabulary)
        size = path.stat().st_size
        print(f"{'file':<15} {size / 1e6:8.1f} MB")
        for what, peak in measure(Path(name)).items():
            print(f"{what:<15} {peak / 1e6:8.1f} MB  {peak / size:.3f} of the file")


if __name__ == "__main__":
    main()

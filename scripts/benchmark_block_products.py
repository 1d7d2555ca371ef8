"""Time the products of block formats beside that of E4M3 with one scale, in one run.

    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_block_products.py [--rounds N] [--json FILE]

Each number is the speed relative to the exact product of two E4M3FN tensors of the same
shape, whose milliseconds are in the column before: the best of several rounds each, which
take turns, so that a slow moment of the machine affects all. "any scales" are codes of
normal numbers with scales of any code: those of MX span 254 binades in each row.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npfp8 import BLOCK_FORMATS, E4M3FN, BlockFormat, QuantizedTensor, matmul, quantize
from npfp8.files import replaced_file

#: M, K, N: the linear layers of BERT-base and of MiniLM, and a square.
SHAPES = ((512, 768, 768), (384, 1536, 384), (1024, 1024, 1024))

MODES = ("exact", "block-sums", "float32")


def any_scales(x: QuantizedTensor, rng: np.random.Generator) -> QuantizedTensor:
    """Return the same codes with other scales: every code of a number is equally likely."""
    assert x.block_format is not None
    numbers = np.flatnonzero(x.block_format.scale_format.is_finite)
    codes = rng.choice(numbers, x.scale.shape).astype(np.uint8)
    return QuantizedTensor(
        x.codes, None, x.block_format, x.axis, scale_codes=codes, tensor_scale=x.tensor_scale
    )


def best_milliseconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the least time of each run; one more round, not counted, builds the tables."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], (time.perf_counter() - begin) * 1e3)
    return best


def runs_of(
    shape: tuple[int, int, int], fmt: BlockFormat, scales: str, rng: np.random.Generator
) -> dict[str, Callable[[], Any]]:
    """Return the products to time, by name: that of E4M3FN, and those of a block format."""
    m, k, n = shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    y = (0.02 * rng.standard_normal((n, k))).astype(np.float32)
    a, b = quantize(x, fmt), quantize(y, fmt)
    if scales == "any scales":
        a, b = any_scales(a, rng), any_scales(b, rng)
    c, d = quantize(x, E4M3FN), quantize(y, E4M3FN)
    runs: dict[str, Callable[[], Any]] = {"E4M3FN": lambda: matmul(c, d.mT)}
    return runs | {mode: lambda mode=mode: matmul(a, b.mT, mode) for mode in MODES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    print(f"{platform.machine()}, NumPy {np.__version__}")
    print("| M x K x N | format | data | E4M3FN, ms | " + " | ".join(MODES) + " |")
    print("| --- | --- | --- | ---: " + "| ---: " * len(MODES) + "|")
    rng = np.random.default_rng(0)
    found = []
    for shape in SHAPES:
        for fmt in BLOCK_FORMATS.values():
            for scales in ("normal", "any scales"):
                best = best_milliseconds(runs_of(shape, fmt, scales, rng), arguments.rounds)
                rates = " | ".join(f"{best['E4M3FN'] / best[mode]:.2f}" for mode in MODES)
                size = " x ".join(map(str, shape))
                print(f"| {size} | {fmt} | {scales} | {best['E4M3FN']:.1f} | {rates} |", flush=True)
                found.append({"shape": shape, "format": str(fmt), "data": scales, "ms": best})
    if arguments.json:
        with replaced_file(arguments.json) as file:
            file.write(json.dumps({"numpy": np.__version__, "results": found}, indent=1).encode())


if __name__ == "__main__":
    main()

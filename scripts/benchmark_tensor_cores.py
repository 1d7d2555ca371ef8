"""Time the accumulators of matrix products on one core, in millions of multiply-adds a second.

    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_tensor_cores.py [--rounds N] [--only NAME ...]

Each number is the best of several rounds of processor time, after one that warms up. The
accumulator of a line takes turns with the exact product of the same operands and with a float32
product of their values by NumPy's BLAS, so that a slow moment of the machine affects all three.
For 16-bit operands, the exact product is that of `matmul_float32`.

At the end comes the table of docs/tensor-cores.md: a row for each accumulator and its operands,
with the shapes and kinds of data side by side.

`compare_mmasim.py --time` times MMA-Sim beside each accumulator.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from npfp8 import (
    ACCUMULATORS,
    E4M3FN,
    E5M2,
    Accumulator,
    BlockFormat,
    matmul,
    matmul_16bit,
    matmul_float32,
    quantize,
)
from npfp8.files import replaced_file
from npfp8.product_inputs import draw_codes, draw_floats

#: Leading axis, M, K, N: a linear layer, and the two products of attention.
SHAPES = ((1, 512, 1536, 512), (12, 128, 64, 128), (12, 128, 128, 64))

#: "any": codes of any exponent; 16-bit floats of sixteen binades.
DATA = ("normal", "any")


def operands(how: Accumulator) -> Iterator[Any]:
    """Yield the format, or the 16-bit type, of both operands."""
    if how.floats:
        yield from how.floats
    elif how.formats is None or E4M3FN in how.formats:
        yield from (E4M3FN, E5M2)
    else:
        yield from how.formats


def drawn(data: str, fmt: Any, shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """Draw an operand (layers, rows, K); codes are of normal numbers quantized by absmax."""
    rows = math.prod(shape[:-1]), shape[-1]
    if isinstance(fmt, str):
        kind = "normal" if data == "normal" else "wide"
        return draw_floats(kind, fmt, (*rows, 1), rng)[0].reshape(shape)
    x = quantize(rng.standard_normal(shape), fmt)
    if data == "normal":
        return x
    element = fmt.element if isinstance(fmt, BlockFormat) else fmt
    return replace(x, codes=draw_codes("uniform", element, rows, rng).reshape(shape))


def products(how: Accumulator, a: Any, b: Any) -> dict[str, Callable[[], Any]]:
    """Return the products to time; the accumulator's is the first."""
    if isinstance(a, np.ndarray):
        x, y = a.astype(np.float32), b.astype(np.float32)
        return {
            how.name: partial(matmul_16bit, a, b.swapaxes(-1, -2), how.name),
            "exact": partial(matmul_float32, x, y.swapaxes(-1, -2)),
            "float32": partial(np.matmul, x, y.swapaxes(-1, -2)),
        }
    return {name: partial(matmul, a, b.mT, name) for name in (how.name, "exact", "float32")}


def best_seconds(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the least processor time of each; they take turns."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.process_time()
            run()
            if number:
                best[name] = min(best[name], time.process_time() - begin)
    return best


def side_by_side(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table with the shapes and kinds of data of a row side by side."""
    columns = [f"{shape}, {DATA[0]} | {DATA[1]}" for shape in ("linear", "Q Kᵀ", "P V")]
    yield f"| accumulator | operands | {' | '.join(columns)} | of exact | of float32 |"
    yield "| --- | --- |" + " ---: |" * 8
    rows: dict[tuple[str, str], dict[Any, dict[str, Any]]] = {}
    for result in found:
        row = rows.setdefault((result["accumulator"], result["operands"]), {})
        row[tuple(result["shape"]), result["data"]] = result
    for (name, fmt), row in rows.items():
        speeds = [
            math.prod(shape) / 1e6 / row[shape, data]["seconds"][name]
            for shape in SHAPES
            for data in DATA
        ]
        best = row[SHAPES[0], DATA[0]]["seconds"]
        ratios = [best[other] / best[name] for other in ("exact", "float32")]
        cells = [f"{speed:,.0f}" for speed in speeds] + [f"{ratio:.3f}" for ratio in ratios]
        yield f"| `{name}` | {fmt} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ACCUMULATORS)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()

    print(f"{platform.machine()}, NumPy {np.__version__}")
    print("| accumulator | operands | data | M x K x N | M/s | of exact | of float32 |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: |")
    found = []
    names = arguments.only or [n for n, how in ACCUMULATORS.items() if how.is_tensor_core]
    for how in map(ACCUMULATORS.__getitem__, names):
        for fmt in operands(how):
            for data in DATA:
                for layers, m, k, n in SHAPES:
                    rng = np.random.default_rng(0)
                    a, b = (drawn(data, fmt, (layers, rows, k), rng) for rows in (m, n))
                    best = best_seconds(products(how, a, b), arguments.rounds)
                    work = layers * m * k * n / 1e6
                    seconds = best[how.name]
                    ratios = [best[name] / seconds for name in ("exact", "float32")]
                    size = f"{layers} of " * (layers > 1) + f"{m} x {k} x {n}"
                    print(f"| `{how.name}` | {fmt} | {data} | {size} | {work / seconds:,.0f} | "
                          f"{ratios[0]:.3f} | {ratios[1]:.3f} |", flush=True)  # fmt: skip
                    found.append({"accumulator": how.name, "operands": str(fmt), "data": data,
                                  "shape": [layers, m, k, n], "seconds": best})  # fmt: skip
    print("", *side_by_side(found), sep="\n")
    if arguments.json:
        with replaced_file(arguments.json) as file:
            file.write(json.dumps({"numpy": np.__version__, "results": found}, indent=1).encode())


if __name__ == "__main__":
    main()

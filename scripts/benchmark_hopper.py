"""Time `matmul` in its accumulation modes, on one core, and print a table of multiply-adds.

    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_hopper.py [--rounds N]

The table has millions of multiply-adds per second of processor time, the best of several
rounds. The modes take turns, so that a slow moment of the machine affects all.
"""

from __future__ import annotations

import argparse
import platform
import time
from typing import Any

import numpy as np

from npfp8 import E4M3FN, E5M2, QuantizedTensor, matmul, quantize
from npfp8.products import ACCUMULATIONS

#: Leading axis, M, K, N: linear layers, and the two products of attention.
SHAPES = (
    (1, 512, 384, 512),
    (1, 512, 1536, 512),
    (1, 512, 4096, 512),
    (12, 128, 32, 128),
    (12, 128, 128, 32),
    (96, 24, 32, 24),
)
PAIRS = ((E4M3FN, E4M3FN), (E4M3FN, E5M2), (E5M2, E5M2))


def operand(kind: str, fmt: Any, shape: tuple[int, ...], rng: Any) -> QuantizedTensor:
    """Quantize normal numbers by their absolute maximum, or draw codes of any exponent."""
    if kind == "normal":
        return quantize(rng.standard_normal(shape), fmt)
    codes = rng.integers(0, fmt.max_code + 1, shape, np.uint8)
    codes |= rng.integers(0, 2, shape, np.uint8) << 7
    return QuantizedTensor(codes, 1.0, fmt)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    print(f"{platform.machine()}, NumPy {np.__version__}")
    print("| operands | data | M x K x N | " + " | ".join(ACCUMULATIONS) + " |")
    print("| --- | --- | --- " + "| ---: " * len(ACCUMULATIONS) + "|")
    rng = np.random.default_rng(0)
    for fmt_a, fmt_b in PAIRS:
        for kind in ("normal", "any code"):
            for layers, m, k, n in SHAPES if fmt_a is fmt_b is E4M3FN else SHAPES[:2]:
                a = operand(kind, fmt_a, (layers, m, k), rng)
                b = operand(kind, fmt_b, (layers, k, n), rng)
                best = dict.fromkeys(ACCUMULATIONS, float("inf"))
                for _ in range(arguments.rounds):
                    for mode in ACCUMULATIONS:
                        begin = time.process_time()
                        matmul(a, b, mode)
                        best[mode] = min(best[mode], time.process_time() - begin)
                rates = " | ".join(f"{layers * m * k * n / s / 1e6:,.0f}" for s in best.values())
                shape = f"{layers} of {m} x {k} x {n}" if layers > 1 else f"{m} x {k} x {n}"
                print(f"| {fmt_a} x {fmt_b} | {kind} | {shape} | {rates} |", flush=True)


if __name__ == "__main__":
    main()

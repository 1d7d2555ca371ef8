"""Time the codec beside ml_dtypes and torch, in one run, and print the ratios.

    python scripts/benchmark_codec.py [--json FILE] [--quick]

Encoding saturates: npfp8 does so by itself and torch by clamp and cast. ml_dtypes
never saturates, so only its cast is timed, to its advantage. Each time is the best
of several rounds that take turns, so that a slow moment of the machine affects all.
With 2 threads torch gets 2 and npfp8 gets `threads=2`; ml_dtypes has no threads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

import npfp8
from npfp8 import E4M3FN, E5M2, FloatFormat
from npfp8.files import replaced_file
from npfp8.interop import ML_DTYPES_NAMES

SIZES = [1 << 10, 1 << 14, 1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28]  # bytes of floats
SOURCES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def best_times(
    contestants: dict[str, Callable[[], Any]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the seconds per call of each contestant's best round, within ``seconds`` each."""
    repeats = {}
    for name, call in contestants.items():
        call()
        begin = clock()
        call()
        repeats[name] = max(1, int(seconds / 20 / (clock() - begin + 1e-9)))
    best = dict.fromkeys(contestants, float("inf"))
    for _ in range(10):
        for name, call in contestants.items():
            time.sleep(0.01)  # torch's threads keep spinning for a while after their work
            begin = clock()
            for _ in range(repeats[name]):
                call()
            best[name] = min(best[name], (clock() - begin) / repeats[name])
    return best


def contest(
    fmt: FloatFormat, source: str, nbytes: int, threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Time a contest; return one row for encoding and one for decoding."""
    torch.set_num_threads(threads)
    size = nbytes // (4 if source == "float32" else 2)
    numbers = np.random.default_rng(0).standard_normal(size, np.float32) * np.float32(50)
    theirs = torch.from_numpy(numbers).to(SOURCES[source])
    dtype = getattr(ml_dtypes, ML_DTYPES_NAMES[fmt])
    torch_dtype = getattr(torch, ML_DTYPES_NAMES[fmt])
    x = numbers if source == "float32" else numbers.astype(ml_dtypes.bfloat16)
    codes = npfp8.encode(x, fmt)
    ml_codes, torch_codes = codes.view(dtype), torch.from_numpy(codes).view(torch_dtype)
    contests = {
        "encode": {
            "npfp8": lambda: npfp8.encode(x, fmt, threads=threads),
            "ml_dtypes": lambda: x.astype(dtype),
            "torch": lambda: theirs.clamp(-fmt.max, fmt.max).to(torch_dtype),
        }
    }
    if source == "float32":
        contests["decode"] = {
            "npfp8": lambda: npfp8.decode(codes, fmt, threads=threads),
            "ml_dtypes": lambda: ml_codes.astype(np.float32),
            "torch": lambda: torch_codes.to(torch.float32),
        }
    rows = []
    for what, contestants in contests.items():
        times = best_times(contestants, seconds)
        row = {"what": what, "fmt": str(fmt), "source": source, "bytes": nbytes, "threads": threads}
        row |= {f"{name}_us": 1e6 * value for name, value in times.items()}
        row |= {f"over_{name}": times[name] / times["npfp8"] for name in ("ml_dtypes", "torch")}
        rows.append(row)
    return rows


def parsed(description: str, quick: str) -> argparse.Namespace:
    """Parse the arguments of a benchmark, which say where rows go and whether it is a quick one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser.parse_args()


def write_rows(path: Path | None, versions: str, rows: list[dict[str, Any]]) -> None:
    """Write the rows of a benchmark, if there is a file for them."""
    if path:
        with replaced_file(path) as file:
            file.write(json.dumps({"versions": versions, "rows": rows}, indent=1).encode())


def main() -> None:
    arguments = parsed(__doc__, "E4M3FN from float32, fewer sizes")
    formats, sources, sizes = [E4M3FN, E5M2], list(SOURCES), SIZES
    if arguments.quick:
        formats, sources, sizes = formats[:1], sources[:1], SIZES[::2]

    versions = (
        f"numpy {np.__version__}, ml_dtypes {ml_dtypes.__version__}, torch {torch.__version__}"
    )
    print(f"{platform.processor() or platform.machine()}, {versions}")
    print("| what | format | source | bytes | threads | npfp8 us | GB/s | / ml_dtypes | / torch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for fmt, source, nbytes, threads in itertools.product(formats, sources, sizes, (1, 2)):
        for row in contest(fmt, source, nbytes, threads, 0.1 if arguments.quick else 0.3):
            rows.append(row)
            speed = nbytes / row["npfp8_us"] / 1e3
            print(
                f"| {row['what']} | {fmt} | {source} | {nbytes:,} | {threads} | "
                f"{row['npfp8_us']:,.1f} | {speed:.2f} | {row['over_ml_dtypes']:.1f} | "
                f"{row['over_torch']:.2f} |",
                flush=True,
            )
    write_rows(arguments.json, versions, rows)


if __name__ == "__main__":
    main()

"""Time products by look-up tables beside matrix products of the BLAS, in one run.

    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_lookup.py sizes [--json FILE]
    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_lookup.py ways
    OPENBLAS_NUM_THREADS=1 python scripts/benchmark_lookup.py parts

``sizes`` times linear layers of BERT-base: the float64 and the float32 product of arrays that are
decoded already, ``npfp8.matmul`` of codes, and ``npfp8.lookup_matmul`` of grouped weights. ``ways``
times the ways to look partial sums up in NumPy that were tried, and ``parts`` what a look-up and an
addition cost. Every way's result is compared with the exact one first.

A number is the median of several rounds, in which all ways take turns. The clock is the processor
time of the thread, so other processes do not count except by the caches that they share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from npfp8 import (
    E2M1,
    Format,
    IntFormat,
    QuantizedTensor,
    lookup_matmul,
    lookup_weights,
    matmul,
    quantize,
)
from npfp8.files import replaced_file
from npfp8.products.lookup_tables import field_values

#: K and N of BERT-base: attention, intermediate, output.
LAYERS = ((768, 768), (768, 3072), (3072, 768))

ROWS = (1, 2, 4, 16, 64, 256)

INT2, INT3, INT4 = (
    IntFormat(-(1 << bits - 1), (1 << bits - 1) - 1, "int8", f"INT{bits}") for bits in (2, 3, 4)
)

Runs = dict[str, Callable[[], Any]]


def medians(runs: Runs, rounds: int, seconds: float = 3.0) -> dict[str, float]:
    """Return the median milliseconds of each run; the first round is not counted."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            run()
            if number:
                found[name].append((time.thread_time() - begin) * 1e3)
        if number >= 5 and time.perf_counter() > end:
            break
    return {name: statistics.median(times) for name, times in found.items()}


def random_weights(fmt: Format, k: int, n: int, rng: np.random.Generator) -> QuantizedTensor:
    """Return weights with one scale per column, quantized from normal numbers."""
    return quantize(rng.standard_normal((k, n)), fmt, axis=1)


def layer_runs(m: int, k: int, n: int, activation: str, fmt: Format) -> Runs:
    """Return the products of one layer, by name."""
    rng = np.random.default_rng(0)
    a = quantize(rng.standard_normal((m, k)), activation)
    b = random_weights(fmt, k, n, rng)
    x, y = a.code_values(np.float64), b.code_values(np.float64)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    packed, expanded = lookup_weights(b), lookup_weights(b, expanded=True)
    expected = matmul(a, b)
    for weights in (packed, expanded):
        assert np.array_equal(lookup_matmul(a, weights), expected)
    return {
        "float64": lambda: x @ y,
        "float32": lambda: x32 @ y32,
        "matmul": lambda: matmul(a, b),
        "look-up": lambda: lookup_matmul(a, packed),
        "expanded": lambda: lookup_matmul(a, expanded),
    }


def sizes(rounds: int, target: Path | None) -> None:
    """Print the table of layers: milliseconds of the float64 product, and speeds relative to it."""
    print(
        "| rows | K x N | activations | weights | float64, ms | float32 | matmul | look-up | "
        "expanded | look-up / matmul |"
    )
    print("| ---: | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    found = []
    kinds = [("INT8", INT2), ("INT8", INT3), ("INT8", INT4), ("E4M3FN", INT2), ("E4M3FN", E2M1)]
    for k, n in LAYERS:
        for activation, fmt in kinds:
            for m in ROWS:
                took = medians(layer_runs(m, k, n, activation, fmt), rounds)
                rates = {name: took["float64"] / one for name, one in took.items()}
                cells = [
                    f"{rates[name]:.2f}" for name in ("float32", "matmul", "look-up", "expanded")
                ]
                cells.append(f"{took['matmul'] / took['look-up']:.2f}")
                print(
                    f"| {m} | {k} x {n} | {activation} | {fmt} | {took['float64']:.2f} | "
                    + " | ".join(cells)
                    + " |",
                    flush=True,
                )
                found.append(
                    {
                        "rows": m,
                        "layer": (k, n),
                        "activation": activation,
                        "weight": str(fmt),
                        "ms": took,
                    }
                )
    if target:
        report = {"numpy": np.__version__, "load": os.getloadavg(), "results": found}
        with replaced_file(target) as file:
            file.write(json.dumps(report, indent=1).encode())


# The ways that were tried, for one row of INT8 activations


def grouped(fields: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Return the indices of groups along K, whose length the group divides."""
    return sum(fields[i::group].astype(np.intp) << bits * i for i in range(group))


def columns_of(fmt: Format, group: int) -> np.ndarray:
    """Return all columns of a group of weights, (group, 2^(bits * group))."""
    bits = fmt.bits
    places = np.arange(1 << bits * group)
    return np.array(
        [field_values(fmt)[places >> bits * i & (1 << bits) - 1] for i in range(group)], np.float32
    )


def by_tables(x: np.ndarray, fields: np.ndarray, fmt: Format, group: int, dtype: Any) -> Runs:
    """Return look-ups of the partial sums of groups of packed weights."""
    bits, columns = fmt.bits, columns_of(fmt, group)
    indices = grouped(fields, bits, group)
    (groups, n), entries = indices.shape, columns.shape[1]
    packed = indices.astype(np.uint8 if bits * group <= 8 else np.uint16)
    begins = (np.arange(groups) * entries)[:, None]
    places = indices + begins
    at_once = max(1, (3 << 14) // n)
    total_dtype = np.int32 if np.issubdtype(dtype, np.integer) else dtype

    def tables() -> np.ndarray:
        return (x.reshape(groups, group) @ columns).astype(dtype, copy=False)

    def kernel(keys_of: Callable[[int, int], np.ndarray]) -> np.ndarray:
        flat, found = tables().reshape(-1), np.empty((at_once, n), dtype)
        total = np.zeros(n, total_dtype)
        for start in range(0, groups, at_once):
            keys = keys_of(start, start + at_once)
            flat.take(keys, None, found[: len(keys)], "clip")
            total += np.add.reduce(found[: len(keys)], axis=0, dtype=dtype)
        return total

    def widened(start: int, end: int) -> np.ndarray:
        keys = packed[start:end].astype(np.intp)
        keys += begins[start:end]
        return keys

    def row_by_row() -> np.ndarray:
        total = np.zeros(n, total_dtype)
        for table, row in zip(tables(), packed, strict=True):
            total += table[row]
        return total

    name = f"groups of {group}, {np.dtype(dtype)}"
    runs: Runs = {
        name: lambda: kernel(widened),
        f"{name}, expanded": lambda: kernel(lambda start, end: places[start:end]),
    }
    if dtype == np.int16:
        runs |= {
            f"{name}, table[row] for each group": row_by_row,
            f"{name}, take_along_axis": lambda: np.take_along_axis(
                tables(), packed.astype(np.intp), 1
            ).sum(axis=0, dtype=np.int32),
        }
    return runs


def by_planes(x: np.ndarray, fields: np.ndarray, fmt: IntFormat) -> Callable[[], np.ndarray]:
    """Return T-MAC's way: a table of 8 activations, looked up once for each bit of the weights."""
    bits = fmt.bits
    shifted = fields ^ (1 << bits - 1)  # the code less the smallest one
    planes = [grouped(shifted >> bit & 1, 1, 8) for bit in range(bits)]
    packed = [plane.astype(np.uint8) for plane in planes]
    columns = (np.arange(256)[None, :] >> np.arange(8)[:, None] & 1).astype(np.float32)
    (groups, n) = planes[0].shape
    begins = (np.arange(groups) * 256)[:, None]
    at_once = max(1, (3 << 14) // n)

    def run() -> np.ndarray:
        flat = (x.reshape(groups, 8) @ columns).astype(np.int16).reshape(-1)
        total = np.full(n, fmt.min_code * int(x.sum()), np.int32)
        found = np.empty((at_once, n), np.int16)
        for bit, plane in enumerate(packed):
            part = np.zeros(n, np.int32)
            for start in range(0, groups, at_once):
                keys = plane[start : start + at_once].astype(np.intp)
                keys += begins[start : start + len(keys)]
                flat.take(keys, None, found[: len(keys)], "clip")
                part += np.add.reduce(found[: len(keys)], axis=0, dtype=np.int16)
            total += part << bit
        return total

    return run


def by_products(x: np.ndarray, fields: np.ndarray, fmt: Format) -> Callable[[], np.ndarray]:
    """Return DeepGEMM's way: one table of all products, looked up by both codes of each pair."""
    entries = len(field_values(fmt))
    table = np.multiply.outer(np.arange(-128, 128), field_values(fmt)).astype(np.int16).reshape(-1)
    k, n = fields.shape
    at_once = max(1, (3 << 14) // n)

    def run() -> np.ndarray:
        begins = (x.astype(np.intp) + 128) * entries
        total, found = np.zeros(n, np.int32), np.empty((at_once, n), np.int16)
        for start in range(0, k, at_once):
            keys = fields[start : start + at_once].astype(np.intp)
            keys += begins[start : start + len(keys), None]
            table.take(keys, None, found[: len(keys)], "clip")
            total += np.add.reduce(found[: len(keys)], axis=0, dtype=np.int16)
        return total

    return run


def by_translate(x: np.ndarray, fields: np.ndarray, fmt: Format) -> Callable[[], np.ndarray]:
    """Return look-ups by ``bytes.translate``: the low and the high byte of each partial sum."""
    bits = fmt.bits
    group = 8 // bits
    rows = [row.astype(np.uint8).tobytes() for row in grouped(fields, bits, group)]
    columns, n = columns_of(fmt, group), fields.shape[1]

    def run() -> np.ndarray:
        tables = (x.reshape(len(rows), group) @ columns).astype(np.int16) + np.int16(1 << 14)
        parts = [part.astype(np.uint8) for part in (tables & 255, tables >> 8)]
        total = np.full(n, -len(rows) << 14, np.int64)
        for shift, part in zip((0, 8), parts, strict=True):
            even, odd = np.zeros((2, n // 2), np.uint32)
            for row, table in zip(rows, part, strict=True):
                pairs = np.frombuffer(row.translate(table.tobytes()), np.uint16)
                even += pairs & np.uint16(255)
                odd += pairs >> np.uint16(8)
            total += np.stack([even, odd], axis=1).reshape(-1).astype(np.int64) << shift
        return total

    return run


def by_rows(
    x: np.ndarray, fields: np.ndarray, fmt: Format, dtype: Any, block: int
) -> Callable[[], np.ndarray]:
    """Return look-ups that copy the entries of all rows, for blocks of columns."""
    bits = fmt.bits
    group = 8 // bits
    columns, packed = columns_of(fmt, group), grouped(fields, bits, group).astype(np.uint8)
    (m, k), n = x.shape, fields.shape[1]
    by_group = np.ascontiguousarray(x.T).reshape(k // group, group, m)
    largest = np.abs(x).reshape(m, -1, group).sum(axis=2).max() * np.abs(columns).max()
    longest = int(32767 // largest)

    def run() -> np.ndarray:
        tables = np.matmul(columns.T, by_group).astype(dtype, copy=False)
        total = np.zeros((n, m), np.int32 if np.issubdtype(dtype, np.integer) else dtype)
        for start in range(0, n, block):
            part = total[start : start + block]
            held, found = np.zeros((2, *part.shape), dtype)
            for place, table in enumerate(tables):
                table.take(packed[place, start : start + block], 0, found, "clip")
                held += found
                if dtype == np.int16 and place % longest == longest - 1:
                    part += held
                    held[...] = 0
            part += held
        return total.T

    return run


def ways_of_rows(rounds: int) -> None:
    """Print the milliseconds of each way, for 64 rows."""
    m, k, n = 64, 768, 3072
    rng = np.random.default_rng(0)
    x = quantize(rng.standard_normal((m, k)), "INT8").code_values()
    b = random_weights(INT2, k, n, rng)
    y = b.code_values(np.float64)
    y32, x64, fields = y.astype(np.float32), x.astype(np.float64), b.codes.view(np.uint8) & 3
    runs: Runs = {}
    for dtype in (np.int16, np.int32, np.float32, np.float64):
        runs[str(np.dtype(dtype))] = by_rows(x, fields, INT2, dtype, n)
    for block in (512, 1024):
        runs[f"int16, blocks of {block} columns"] = by_rows(x, fields, INT2, np.int16, block)
    for name, run in runs.items():
        assert np.array_equal(run(), x64 @ y), name
    products: Runs = {"float64 product": lambda: x64 @ y, "float32 product": lambda: x @ y32}
    took = medians(products | runs, rounds, seconds=10)
    print("\n| 64 rows, INT2 | ms | speed, float64 product = 1 |\n| --- | ---: | ---: |")
    for name, one in took.items():
        print(f"| {name} | {one:.2f} | {took['float64 product'] / one:.2f} |")


def ways(rounds: int) -> None:
    """Print the milliseconds of each way, for one row, K = 768 and N = 3072."""
    k, n = 768, 3072
    rng = np.random.default_rng(0)
    a = quantize(rng.standard_normal((1, k)), "INT8")
    x = a.code_values()[0]
    for fmt in (INT2, INT4):
        b = random_weights(fmt, k, n, rng)
        y = b.code_values(np.float64)
        y32, x64, bits = y.astype(np.float32), x.astype(np.float64), fmt.bits
        fields = b.codes.view(np.uint8) & np.uint8((1 << bits) - 1)
        expected = x64 @ y
        narrow, usual, wide = {2: (3, 4, 6), 4: (1, 2, 3)}[bits]
        lookups: Runs = {}
        for dtype in (np.int16, np.int32, np.float32, np.float64):
            lookups |= by_tables(x, fields, fmt, usual, dtype)
        for group in (narrow, wide):
            lookups |= by_tables(x, fields, fmt, group, np.int16)
        lookups["bit planes of 8 (T-MAC)"] = by_planes(x, fields, fmt)
        lookups["products of codes (DeepGEMM)"] = by_products(x, fields, fmt)
        lookups["bytes.translate"] = by_translate(x, fields, fmt)
        for name, run in lookups.items():
            assert np.array_equal(run(), expected), name
        runs: Runs = {
            "float64 product": lambda x64=x64, y=y: x64 @ y,
            "float32 product": lambda x=x, y32=y32: x @ y32,
        }
        took = medians(runs | lookups, rounds, seconds=10)
        print(f"\n| one row, {fmt} | ms | speed, float64 product = 1 |\n| --- | ---: | ---: |")
        for name, one in took.items():
            print(f"| {name} | {one:.2f} | {took['float64 product'] / one:.2f} |")
    ways_of_rows(rounds)


def parts(rounds: int) -> None:
    """Print what the steps of a group of 4 two-bit weights cost for N = 3072, by rows."""
    n, rng = 3072, np.random.default_rng(0)
    packed = rng.integers(0, 256, n).astype(np.uint8)
    keys = packed.astype(np.intp)
    print("| rows | keys, ns | look-ups, ns | additions, ns | ns per product of 2-bit weights |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for rows in (1, 4, 16, 64):
        table = rng.integers(-500, 500, (256, rows)).astype(np.int16)
        found, held = np.empty((n, rows), np.int16), np.zeros((n, rows), np.int16)
        wide = np.empty(n, np.intp)

        def many(run: Callable[[], Any]) -> Callable[[], None]:
            return lambda: [run() for _ in range(100)] and None

        took = medians(
            {
                "keys": many(lambda wide=wide: np.copyto(wide, packed)),
                "take": many(lambda t=table, out=found: t.take(keys, 0, out, "clip")),
                "add": many(lambda x=held, y=found: np.add(x, y, out=x)),
            },
            rounds,
        )
        each = [one * 1e4 / n for one in took.values()]  # ms of 100 to ns of one column
        cells = " | ".join(
            f"{one / count:.3f}" for one, count in zip(each, (1, rows, rows), strict=True)
        )
        print(f"| {rows} | {cells} | {sum(each) / rows / 4:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sizes", "ways", "parts"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    if arguments.what == "sizes":
        sizes(arguments.rounds, arguments.json)
    else:
        {"ways": ways, "parts": parts}[arguments.what](arguments.rounds)


if __name__ == "__main__":
    main()

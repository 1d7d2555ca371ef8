"""Time block formats beside torchao and compressed-tensors on the CPU, in one run.

    python scripts/benchmark_blocks.py [--json FILE] [--quick]

Each party quantizes a matrix in blocks along its last axis by its own rule, and npfp8 by the
rule of its name, so that all make the same bytes; then the matrix is dequantized. Along axis 0
the parties are given the transpose, made contiguous. Each time is the best of several rounds
that take turns, so that a slow moment of the machine affects all. With one thread it is the
time of the processor, which other programs of the machine hardly change. npfp8 uses one core;
with 2 threads the parties get 2.
"""

from __future__ import annotations

import itertools
import platform
import time
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from benchmark_codec import best_times, parsed, write_rows

import npfp8
from npfp8 import E2M1, E2M3, E3M2, E4M3FN, E5M2, MXINT8, NVFP4, BlockFormat

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.mxfp6.base import MXFP6PackedCompressor
    from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
    from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

SIZES = [1 << 10, 1 << 11, 1 << 12]  # rows and columns
SOURCES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: torchao's names of elements.
TORCHAO = {
    E4M3FN: torch.float8_e4m3fn,
    E5M2: torch.float8_e5m2,
    E2M3: "fp6_e2m3",
    E3M2: "fp6_e3m2",
    E2M1: torch.float4_e2m1fn_x2,
}
COMPRESSED_TENSORS = {
    E4M3FN: MXFP8QuantizationCompressor,
    E2M3: MXFP6PackedCompressor,
    E2M1: MXFP4PackedCompressor,
}

#: A party's function that quantizes, and one that dequantizes what it gave.
Party = tuple[Callable[[], Any], Callable[[Any], Any]]


def torchao_of(fmt: BlockFormat, x: torch.Tensor) -> Party | None:
    """Return torchao's functions, or None for a format that it does not have."""
    if fmt == NVFP4:
        return (
            lambda: NVFP4Tensor.to_nvfp4(x, 16, x.abs().max().float() / (448 * 6)),
            lambda found: found.dequantize(torch.float32),
        )
    if fmt.element not in TORCHAO:
        return None
    element = TORCHAO[fmt.element]
    return (
        lambda: to_mx(x, element, fmt.block),
        lambda found: to_dtype(found[1], found[0], element, fmt.block, torch.float32),
    )


def compressed_tensors_of(fmt: BlockFormat, x: torch.Tensor) -> Party | None:
    """Return compressed-tensors' functions, or None for a format that it does not have."""
    if fmt.element not in COMPRESSED_TENSORS:
        return None
    two_levels = fmt == NVFP4
    compressor = NVFP4PackedCompressor if two_levels else COMPRESSED_TENSORS[fmt.element]
    arguments = QuantizationArgs(
        num_bits=fmt.element.bits,
        type="float",
        strategy="tensor_group" if two_levels else "group",
        group_size=fmt.block,
        symmetric=True,
        scale_dtype=torch.float8_e4m3fn if two_levels else torch.uint8,
        zp_dtype=torch.uint8,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)

    def quantize() -> Any:
        groups = x.reshape(len(x), -1, fmt.block)
        low, high = groups.amin(-1), groups.amax(-1)
        number = generate_gparam(low.min(), high.max()) if two_levels else None
        scale, _ = calculate_qparams(low, high, arguments, number)
        weight = {"weight": x, "weight_scale": scale}
        if two_levels:
            weight["weight_global_scale"] = number
        return compressor.compress(weight, scheme)

    return quantize, lambda found: compressor.decompress(found, scheme)


PARTIES = {"torchao": torchao_of, "compressed-tensors": compressed_tensors_of}


def contest(
    fmt: BlockFormat, source: str, size: int, axis: int, threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Time a contest with each party; return a row for each that has the format."""
    torch.set_num_threads(threads)
    numbers = np.random.default_rng(0).standard_normal((size, size), np.float32)
    matrix = torch.from_numpy(numbers).to(SOURCES[source])
    x = numbers if source == "float32" else numbers.astype(ml_dtypes.bfloat16)
    rows = []
    for name, party_of in PARTIES.items():
        party = party_of(fmt, matrix if axis else matrix.T.contiguous())
        if party is None:
            continue
        quantize, dequantize = party
        tensor, theirs = npfp8.quantize(x, fmt, axis=axis, rule=name), quantize()
        contests = {
            "quantize": {
                "npfp8": lambda name=name: npfp8.quantize(x, fmt, axis=axis, rule=name),
                name: quantize,
            },
            "dequantize": {
                "npfp8": tensor.dequantize,
                name: lambda dequantize=dequantize, theirs=theirs: dequantize(theirs),
            },
        }
        for what, contestants in contests.items():
            clock = time.thread_time if threads == 1 else time.perf_counter
            times = best_times(contestants, seconds, clock)
            rows.append(
                {
                    "what": what,
                    "fmt": str(fmt),
                    "source": source,
                    "size": size,
                    "axis": axis,
                    "threads": threads,
                    "party": name,
                    "npfp8_ns": 1e9 * times["npfp8"] / size**2,
                    "party_ns": 1e9 * times[name] / size**2,
                    "ratio": times[name] / times["npfp8"],
                }
            )
    return rows


def main() -> None:
    arguments = parsed(__doc__, "float32, one size, last axis")
    formats = [fmt for fmt in npfp8.BLOCK_FORMATS.values() if fmt != MXINT8]  # neither has it
    sources, sizes, axes = list(SOURCES), SIZES, (1, 0)
    if arguments.quick:
        sources, sizes, axes = sources[:1], sizes[1:2], (1,)

    versions = f"numpy {np.__version__}, torch {torch.__version__}"
    print(f"{platform.processor() or platform.machine()}, {versions}; ns per element")
    print("| what | format | source | size | axis | threads | party | npfp8 | party | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows = []
    for fmt, source, size, axis, threads in itertools.product(
        formats, sources, sizes, axes, (1, 2)
    ):
        for row in contest(fmt, source, size, axis, threads, 0.1 if arguments.quick else 0.3):
            rows.append(row)
            print(
                f"| {row['what']} | {fmt} | {source} | {size} | {axis} | {threads} | "
                f"{row['party']} | {row['npfp8_ns']:.2f} | {row['party_ns']:.2f} | "
                f"{row['ratio']:.1f} |",
                flush=True,
            )
    write_rows(arguments.json, versions, rows)


if __name__ == "__main__":
    main()

"""Compare the accumulators of tensor cores with MMA-Sim, bit for bit, or time both.

    python scripts/compare_mmasim.py [--tiles N] [--instructions TEXT ...] [--json FILE]
    OPENBLAS_NUM_THREADS=1 python scripts/compare_mmasim.py --time [--rounds N]

MMA-Sim (`mmasim` on PyPI, by Microsoft; arXiv 2511.10909) describes the instructions of the
devices on which its authors ran them. Every instruction with FP8, FP6, FP4 or 16-bit operands
that both packages have is compared in every pair of types, on tiles of all kinds of data of
`npfp8.product_inputs`. Instructions that differ in their shape alone are compared once.

A result is "different" if its bits are not the same, NaN included. Two differences have a
reason that is known; they are counted apart, by the reason. The exit code is 1 if any other
result differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import mmasim.amd
import mmasim.nv_ptx
import numpy as np
import torch
from mmasim.amd.isa_mfma import arch_mfma_suffix
from mmasim.nv_ptx import isa_mma, isa_tcgen05mma, isa_wgmma

from npfp8 import ACCUMULATORS, BlockFormat, QuantizedTensor, matmul, matmul_16bit
from npfp8.bfloat16 import to_bits
from npfp8.files import replaced_file
from npfp8.formats import FORMATS, FloatFormat
from npfp8.product_inputs import FLOAT_KINDS, KINDS, draw_floats, draw_operands

Array = Any

#: MMA-Sim's classes of instructions, and the names of their instructions by device.
CLASSES = {
    "mma": (mmasim.nv_ptx.MMA, isa_mma.mma_shape_and_type),
    "mma, block-scaled": (mmasim.nv_ptx.MMABlockScale, isa_mma.mma_block_scale_shape_and_type),
    "wgmma": (mmasim.nv_ptx.WGMMA, isa_wgmma.wgmma_shape_and_type),
    "tcgen05.mma": (mmasim.nv_ptx.TCGen05MMA, isa_tcgen05mma.tcgen05mma_shape_and_type),
    "tcgen05.mma, block-scaled": (
        mmasim.nv_ptx.TCGen05MMABlockScale,
        isa_tcgen05mma.tcgen05mma_block_scale_shape_and_type,
    ),
    "mfma": (mmasim.amd.MFMA, arch_mfma_suffix),
}

#: MMA-Sim's types of operands and scales that npfp8 has, and npfp8's names.
TYPES = {
    "e4m3": "E4M3FN", "e5m2": "E5M2", "e3m2": "E3M2", "e2m3": "E2M3", "e2m1": "E2M1",
    "fp8": "E4M3FNUZ", "bf8": "E5M2FNUZ", "f16": "float16", "bf16": "bfloat16",
    "ue8m0": "E8M0FNU", "ue4m3": "E4M3FN",
}  # fmt: skip

TORCH_TYPES = {
    "E4M3FN": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2, "E8M0FNU": torch.float8_e8m0fnu,
    "E4M3FNUZ": torch.float8_e4m3fnuz, "E5M2FNUZ": torch.float8_e5m2fnuz,
}  # fmt: skip

#: The accumulator of each device, for 8-bit and narrower operands and for 16-bit ones.
NARROW = {"Ada Lovelace": "ada", "Hopper": "hopper-fast", "Blackwell": "blackwell",
          "RTX Blackwell": "blackwell", "CDNA3": "cdna3"}  # fmt: skip
WIDE = {"Turing": "ampere-16bit", "Ampere": "ampere-16bit", "Ada Lovelace": "ampere-16bit",
        "Hopper": "hopper-16bit", "Blackwell": "blackwell-16bit",
        "RTX Blackwell": "blackwell-16bit", "CDNA3": "cdna3-16bit"}  # fmt: skip

#: The known reasons of differences. MMA-Sim takes 0 for the exponent of an infinity or a NaN
#: (`torch.frexp`), so that CDNA3's rule drops such an accumulator below larger products.
DROPPED = "MMA-Sim drops an accumulator that is NaN or infinite"
MINUS_ZERO = "MMA-Sim has -0 where npfp8 has +0"

#: M, N of the tiles, and K.
SHAPES = ((16, 8), (8, 24), (1, 33), (5, 7))
SIZES = (1, 16, 31, 32, 48, 64, 96, 100, 128, 160, 256, 512)


class Row(NamedTuple):
    """An instruction of MMA-Sim, its types as npfp8 names them, and npfp8's accumulator.

    ``scale`` and ``block`` are the format and the length of block scales, if it has any.
    """

    kind: str
    device: str
    name: str
    accumulator: str
    result: str
    a: str
    b: str
    scale: str = ""
    block: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.device} {self.name}"

    def operation(self) -> Any:
        """Return MMA-Sim's instruction."""
        return CLASSES[self.kind][0](self.device, self.name)

    @property
    def is_16bit(self) -> bool:
        """Whether its operands are float16 or bfloat16."""
        return self.a not in FORMATS

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of data."""
        return tuple(FLOAT_KINDS if self.is_16bit else KINDS)


def row_of(kind: str, device: str, name: str) -> Row | str:
    """Return what an instruction is compared with, or the reason why npfp8 has nothing."""
    if kind == "mfma":
        if device != "CDNA3":
            return f"{device}: no fused steps"
        types = [part for part in name.split("_")[2:] if not part.endswith("b")]
        result, a, b, scale, block = "f32", types[0], types[-1], "", 0
    else:
        parts = [part for part in name.split(".")[1:] if not part.startswith("kind::")]
        block = int(parts.pop(0)[5:]) if parts[0].startswith("block") else 0
        result, a, b = parts[:3]
        scale = TYPES[parts[-1]] if block else ""
    if a not in TYPES:
        return f"{a} operands"
    if name in isa_mma.mma_shape_and_type_from_sm_70 and kind == "mma":
        return "Volta: steps of 4 products, cut off at 23 bits"
    if block:
        found = next(k for k in ("mxf8f6f4", "mxf4nvf4", "mxf4") if f"kind::{k}." in name)
        # With blocks of 32, mxf4nvf4 is mxf4.
        accumulator = "blackwell-mxf4" if (found, block) == ("mxf4nvf4", 32) else ""
        accumulator = accumulator or f"blackwell-{found}"
    else:
        accumulator = (WIDE if a in ("f16", "bf16") else NARROW)[device]
        accumulator += "-float16" if result == "f16" else ""
    return Row(kind, device, name, accumulator, result, TYPES[a], TYPES[b], scale, block)


def all_instructions() -> tuple[list[Row], Counter[str]]:
    """Return the instructions to compare, and the numbers of those that npfp8 has not, by reason.

    Of instructions that MMA-Sim computes alike, with operands of the same types, the first one
    is taken.
    """
    rows: dict[tuple[Any, ...], Row] = {}
    missing: Counter[str] = Counter()
    for kind, (make, names) in CLASSES.items():
        for device, of_device in names.items():
            for name in of_device:
                row = row_of(kind, device, name)
                if isinstance(row, str):
                    missing[row] += 1
                    continue
                found = next((part for part in name.split(".") if part.startswith("kind::")), "")
                # The shapes of tcgen05.mma and wgmma are too many to make each instruction.
                shape = name.split(".")[0].rpartition("k")[2] if kind != "mfma" else name
                key = (*row._replace(name=f"{found}.{shape}"),)
                if key in rows:
                    continue
                numbers = vars(make(device, name).arithmetic_op)
                alike = (*row._replace(name=found), *sorted(numbers.items()))
                rows[key] = rows.setdefault(alike, row)
    return list(dict.fromkeys(rows.values())), missing


# MMA-Sim


@cache
def operation(row: Row) -> Any:
    return row.operation()


def torch_operand(x: Any, row: Row) -> torch.Tensor:
    """Return an operand (rows, K) as MMA-Sim takes it."""
    if not isinstance(x, QuantizedTensor):
        half = x.dtype == np.float16
        bits = x.view(np.int16) if half else to_bits(x).view(np.int16)
        return torch.from_numpy(bits.copy()).view(torch.float16 if half else torch.bfloat16)
    element, codes = x.fmt, x.codes
    assert isinstance(element, FloatFormat)
    if row.accumulator.startswith("blackwell-mxf4"):
        return torch.from_numpy(codes[:, ::2] << 4 | codes[:, 1::2])
    if element.bits == 4:
        return torch.from_numpy(codes << 2)
    codes = torch.from_numpy(codes.copy())
    return codes.view(TORCH_TYPES[element.name]) if element.bits == 8 else codes


def torch_scales(x: QuantizedTensor, row: Row) -> torch.Tensor:
    assert x.scale_codes is not None
    return torch.from_numpy(np.array(x.scale_codes)).view(TORCH_TYPES[row.scale])


def filled(x: torch.Tensor, step: int) -> torch.Tensor:
    """Append columns of zeros, up to whole steps."""
    bits = x.view({1: torch.uint8, 2: torch.int16}[x.itemsize])
    return torch.nn.functional.pad(bits, (0, -x.shape[1] % step)).view(x.dtype)


def chained(row: Row, a: Any, b: Any, keep: bool = False) -> Array:
    """Multiply (M, K) by (N, K) by MMA-Sim's instruction, one step of products after another.

    K is filled up with zeros to whole steps, as a kernel does it for the hardware.

    ``keep`` adds an accumulator that is NaN or infinite to the products as IEEE 754 does.
    """
    instruction = operation(row)
    step, packed = instruction.arithmetic_op.L_max, row.accumulator.startswith("blackwell-mxf4")
    x, y = (filled(torch_operand(side, row), step // (2 if packed else 1)) for side in (a, b))
    y = y.T
    scales = None
    if row.block:
        blocks = step // row.block
        scales = [filled(torch_scales(side, row), blocks) for side in (a, b)]
        scales[1] = scales[1].T
    dtype = torch.float32 if row.result == "f32" else torch.float16
    total = zero = torch.zeros((len(x), y.shape[1]), dtype=dtype)
    for start in range(0, a.shape[1], step):
        ks = slice(start // 2, (start + step) // 2) if packed else slice(start, start + step)
        operands, rest = (x[:, ks], y[ks]), ()
        if scales:
            blocks = slice(start // row.block, (start + step) // row.block)
            rest = (scales[0][:, blocks], scales[1][blocks])
        found = instruction(*operands, total, *rest)
        special = ~total.isfinite()
        if keep and special.any():
            found = torch.where(special, total + instruction(*operands, zero, *rest), found)
        total = found
    sums = total.numpy().astype(np.float32)
    sums.view(np.uint32)[np.isnan(sums)] = 0x7FFFFFFF if row.result == "f32" else 0x7FFFE000
    return sums


# npfp8, and the comparison


def draw(row: Row, kind: str, shape: tuple[int, int, int], rng: np.random.Generator) -> Any:
    """Draw operands (M, K) and (N, K); with block scales, K is filled up with zeros."""
    if row.is_16bit:
        return draw_floats(kind, row.a, shape, rng)
    operands = draw_operands(kind, (FORMATS[row.a], FORMATS[row.b]), shape, rng)
    if not row.block:
        return operands
    return tuple(block_scaled(x, row, kind, rng) for x in operands)


def block_scaled(
    x: QuantizedTensor, row: Row, kind: str, rng: np.random.Generator
) -> QuantizedTensor:
    """Give an operand the scales of blocks: near each other, far apart, or of any code."""
    scale = FORMATS[row.scale]
    assert isinstance(x.fmt, FloatFormat)
    assert isinstance(scale, FloatFormat)
    codes = np.pad(x.codes, ((0, 0), (0, -x.shape[1] % row.block)))
    shape = len(codes), codes.shape[1] // row.block
    spread = (2, 12, 24, 64)[rng.integers(4)] * (1 << scale.mantissa_bits)
    one = scale.bias << scale.mantissa_bits
    scales = np.clip(one + rng.integers(-spread, spread + 1, shape), 0, scale.max_code)
    if rng.random() < 0.25:  # any scale
        scales = rng.integers(0, scale.max_code + 1, shape)
    if kind == "special":
        scales[rng.random(shape) < 0.1] = scale.nan_code
    if scale.sign_bit and rng.random() < 0.5:  # which the instruction ignores
        scales |= rng.integers(0, 2, shape) * scale.sign_bit
    fmt = BlockFormat(x.fmt, row.block, scale, rule="floor" if row.scale == "E8M0FNU" else "exact")
    return QuantizedTensor(codes, None, fmt, axis=-1, scale_codes=scales.astype(np.uint8))


def product(row: Row, a: Any, b: Any) -> Array:
    if row.is_16bit:
        return matmul_16bit(a, b.T, row.accumulator)
    return matmul(a, b.mT, row.accumulator)


def compared(row: Row, number: int, seed: int) -> tuple[Counter[str], str]:
    """Compare one tile; return counts, and words for the first difference without a reason."""
    rng = np.random.default_rng([seed, number, zlib.crc32(str(row).encode())])
    kind = row.kinds[number % len(row.kinds)]
    (m, n), k = SHAPES[rng.integers(len(SHAPES))], SIZES[rng.integers(len(SIZES))]
    a, b = draw(row, kind, (m, k, n), rng)
    ours, theirs = product(row, a, b), chained(row, a, b)
    counts = Counter(tiles=1, results=ours.size, special=int((~np.isfinite(ours)).sum()))
    different = ours.view(np.uint32) != theirs.view(np.uint32)
    if different.any() and row.device == "CDNA3":
        minus_zero = different & (theirs.view(np.uint32) == 1 << 31) & (ours.view(np.uint32) == 0)
        kept = chained(row, a, b, keep=True) + np.float32(0)
        dropped = different & ~minus_zero & (ours.view(np.uint32) == kept.view(np.uint32))
        counts[MINUS_ZERO], counts[DROPPED] = int(minus_zero.sum()), int(dropped.sum())
        different &= ~minus_zero & ~dropped
    counts["different"] = int(different.sum())
    if not different.any():
        return counts, ""
    i, j = np.argwhere(different)[0]
    x, y = (int(values.view(np.uint32)[i, j]) for values in (ours, theirs))
    return counts, f"{kind} {m}x{k}x{n} at {i, j}: npfp8 {x:#010x}, MMA-Sim {y:#010x}"


def compare(row: Row, tiles: int, seed: int) -> tuple[Counter[str], str]:
    """Compare tiles of one instruction. Called in a separate process."""
    torch.set_num_threads(1)
    total: Counter[str] = Counter()
    first = ""
    for number in range(tiles):
        counts, words = compared(row, number, seed)
        total.update(counts)
        first = first or words
    return total, first


def compare_all(rows: list[Row], tiles: int, seed: int, processes: int) -> list[Counter[str]]:
    """Compare all instructions; print a line for each."""
    found = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        results = pool.map(compare, rows, itertools.repeat(tiles), itertools.repeat(seed))
        for row, (counts, first) in zip(rows, results, strict=True):
            print(f"{row}, {row.accumulator}: {words_of(counts)}", flush=True)
            if first:
                print(f"  {first}", flush=True)
            found.append(counts)
    return found


def words_of(counts: Counter[str]) -> str:
    words = f"{counts['tiles']:,} tiles, {counts['results']:,} results"
    words += f" ({counts['special']:,} NaN or infinite), {counts['different']:,} different"
    return words + "".join(f"; {counts[why]:,} explained: {why}"
                           for why in (DROPPED, MINUS_ZERO) if counts[why])  # fmt: skip


def by_accumulator(rows: list[Row], found: list[Counter[str]]) -> Iterator[str]:
    """Yield the lines of a table of all accumulators."""
    heads = "accumulator", "instructions", "tiles", "results", "NaN or infinite"
    yield "| " + " | ".join((*heads, "different", "explained")) + " |"
    yield "| ---" + " | ---:" * 6 + " |"
    for name in ACCUMULATORS:
        of_it = [counts for row, counts in zip(rows, found, strict=True) if row.accumulator == name]
        if of_it:
            total = sum(of_it, Counter[str]())
            numbers = (len(of_it), total["tiles"], total["results"], total["special"],
                       total["different"], total[DROPPED] + total[MINUS_ZERO])  # fmt: skip
            yield f"| `{name}` | " + " | ".join(f"{number:,}" for number in numbers) + " |"


# Time


def best_seconds(runs: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Return the least processor time of each; they take turns, after a round that warms up."""
    best = [float("inf")] * len(runs)
    for number in range(rounds + 1):
        for i, run in enumerate(runs):
            begin = time.process_time()
            run()
            if number:
                best[i] = min(best[i], time.process_time() - begin)
    return best


def time_all(rows: list[Row], shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Time all instructions; print a line for each."""
    torch.set_num_threads(1)
    m, k, n = shape
    print(f"{m} x {k} x {n}, normal numbers, one core; millions of multiply-adds a second")
    print("| accumulator | instruction | npfp8 | MMA-Sim | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    found = []
    for row in rows:
        a, b = draw(row, "normal", shape, np.random.default_rng(0))
        runs = [partial(run, row, a, b) for run in (product, chained)]
        ours, theirs = (m * k * n / seconds / 1e6 for seconds in best_seconds(runs, rounds))
        ratio = f"{ours:,.0f} | {theirs:,.1f} | {ours / theirs:,.0f}"
        print(f"| `{row.accumulator}` | {row} | {ratio} |", flush=True)
        found.append({"npfp8": ours, "mmasim": theirs})
    return found


def ratios_by_accumulator(rows: list[Row], found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table: how many times as fast as MMA-Sim, by accumulator."""
    yield "| accumulator | times as fast as MMA-Sim: least | median | most |"
    yield "| --- | ---: | ---: | ---: |"
    ratios: dict[str, list[float]] = {}
    for row, speeds in zip(rows, found, strict=True):
        ratios.setdefault(row.accumulator, []).append(speeds["npfp8"] / speeds["mmasim"])
    for name, some in ratios.items():
        yield f"| `{name}` | {min(some):,.0f} | {np.median(some):,.0f} | {max(some):,.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=200, help="tiles of each instruction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instructions", nargs="+", metavar="TEXT", default=[""],
                        help="those with one of the texts in their line")  # fmt: skip
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--time", action="store_true", help="time both instead")
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 256),
                        metavar=("M", "K", "N"), help="of the products that are timed")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    arguments = parser.parse_args()

    versions = {name: importlib.metadata.version(name) for name in ("mmasim", "torch", "numpy")}
    print(f"{platform.machine()}, " + ", ".join(map(" ".join, versions.items())))
    rows, missing = all_instructions()
    chosen = [row for row in rows if any(text in f"{row}, {row.accumulator}"
                                         for text in arguments.instructions)]  # fmt: skip
    if arguments.time:
        found: list[Any] = time_all(chosen, tuple(arguments.shape), arguments.rounds)
        print("", *ratios_by_accumulator(chosen, found), sep="\n")
    else:
        found = compare_all(chosen, arguments.tiles, arguments.seed, arguments.processes)
        print("", *by_accumulator(chosen, found), sep="\n")
        total = sum(found, Counter[str]())
        print(f"{len(chosen)} instructions and pairs of types: {words_of(total)}")
        print("not in npfp8:", "; ".join(f"{why} ({count})" for why, count in missing.items()))
    if arguments.json:
        lines = [{**row._asdict(), **values} for row, values in zip(chosen, found, strict=True)]
        record = {"versions": versions, "instructions": lines, "not in npfp8": missing}
        with replaced_file(arguments.json) as file:
            file.write(json.dumps(record, indent=1).encode())
    if any(values.get("different") for values in found):
        sys.exit(1)


if __name__ == "__main__":
    main()

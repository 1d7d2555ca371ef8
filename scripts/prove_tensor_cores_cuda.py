"""Compare Hopper's accumulators with the instructions of an H100 or H200, bit for bit.

    python scripts/prove_tensor_cores_cuda.py [--json FILE] [--record FILE] [--repeats N]

The script needs an H100 or H200, CuPy and nvcc. Each accumulator of Hopper but the two that
`prove_hopper_cuda.py` proves is compared with the instructions that it stands for:

- "hopper-fast-float16": `wgmma` of FP8 operands with float16 results;
- "hopper-16bit": `wgmma` and `mma.sync` of float16 and bfloat16 with float32 results;
- "hopper-16bit-float16": the same of float16 with float16 results;
- "hopper-mma-sync": `mma.sync` of FP8 operands with float32 results.

The tiles have 4,096 results, K from 16 to 16,384, and ten kinds of data
(`npfp8.product_inputs`). The exit code is 1 if a result differs. `--record` writes small
excerpts as safetensors, for test data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from safetensors.numpy import save

from npfp8 import QuantizedTensor, matmul, matmul_16bit
from npfp8.bfloat16 import to_bits
from npfp8.files import replaced_file
from npfp8.formats import FORMATS
from npfp8.product_inputs import FLOAT_KINDS, KINDS, draw_floats, draw_operands

SHAPES = ((64, 64), (16, 256), (256, 16), (128, 32), (32, 128))

#: Every multiple of 16 up to 768, then 52 more.
SIZES = (*range(16, 769, 16), *(16 * round(48 * (16384 / 768) ** (i / 52)) for i in range(1, 53)))


class Instruction(NamedTuple):
    """An instruction, its types as PTX has them, and the accumulator that it is compared with."""

    name: str
    result: str
    a: str
    b: str
    accumulator: str

    @property
    def kernel(self) -> str:
        """The name of its kernel."""
        return f"{self.name}_{self.result}_{self.a}_{self.b}"

    @property
    def is_fp8(self) -> bool:
        """Whether its operands are codes."""
        return self.a in FP8


FP8 = {"e4m3": FORMATS["E4M3FN"], "e5m2": FORMATS["E5M2"]}
FLOATS = {"f16": "float16", "bf16": "bfloat16"}
INSTRUCTIONS = (
    *(Instruction("wgmma", "f16", *pair, "hopper-fast-float16")
      for pair in itertools.product(FP8, repeat=2)),
    *(Instruction(name, "f32", kind, kind, "hopper-16bit")
      for name, kind in itertools.product(("wgmma", "mma"), FLOATS)),
    *(Instruction(name, "f16", "f16", "f16", "hopper-16bit-float16") for name in ("wgmma", "mma")),
    *(Instruction("mma", "f32", *pair, "hopper-mma-sync")
      for pair in itertools.product(FP8, repeat=2)),
)  # fmt: skip


class Case(NamedTuple):
    """A tile: its instruction, the kind of its data, its size and a seed."""

    instruction: Instruction
    kind: str
    k: int
    seed: int

    def operands(self) -> tuple[Any, Any]:
        """Make operands (M, K) and (N, K); the second is transposed, as for the GPU."""
        how = self.instruction
        number = INSTRUCTIONS.index(how)
        rng = np.random.default_rng(
            [self.seed, self.k, [*KINDS, *FLOAT_KINDS].index(self.kind), number]
        )
        m, n = SHAPES[rng.integers(len(SHAPES))]
        if how.is_fp8:
            return draw_operands(self.kind, (FP8[how.a], FP8[how.b]), (m, self.k, n), rng)
        return draw_floats(self.kind, FLOATS[how.a], (m, self.k, n), rng)


def result_of(how: Instruction, a: Any, b: Any) -> np.ndarray:
    """Compute the product by npfp8, as the bits of the result's type."""
    product = (
        matmul(a, b.mT, how.accumulator) if how.is_fp8 else matmul_16bit(a, b.T, how.accumulator)
    )
    if how.result == "f32":
        return product.view(np.uint32)
    halves = product.astype(np.float16).view(np.uint16)
    halves[np.isnan(product)] = 0x7FFF
    return halves


def expected(case: Case) -> tuple[Case, np.ndarray, np.ndarray, np.ndarray]:
    """Compute the bytes of the operands, and npfp8's result. Called in a separate process."""
    a, b = case.operands()
    return case, bytes_of(a), bytes_of(b), result_of(case.instruction, a, b)


def bytes_of(x: Any) -> np.ndarray:
    """Return an operand's rows as bytes."""
    if isinstance(x, QuantizedTensor):
        return x.codes
    halves = x.view(np.uint16) if x.dtype == np.float16 else to_bits(x)
    return np.ascontiguousarray(halves).view(np.uint8)


# The GPU

#: All instructions take 32 bytes of K at a time, in the same places whatever the types are.
KERNELS = r"""
typedef unsigned char u8;
typedef unsigned long long u64;

// Core matrices of 8 rows by 16 bytes, two beside each other along K: no swizzle.
__device__ u64 descriptor(const void *tile)
{
    u64 address = __cvta_generic_to_shared(tile);
    return (address & 0x3FFFF) >> 4 | (u64)(128 >> 4) << 16 | (u64)(256 >> 4) << 32;
}

__device__ void load(u8 *tile, const u8 *source, int rows, int limit, int k, int begin)
{
    for (int i = threadIdx.x; i < rows * 32; i += blockDim.x) {
        int r = i / 32, c = i % 32;
        tile[(r / 8 * 2 + c / 16) * 128 + r % 8 * 16 + c % 16] =
            r < limit && begin + c < k ? source[(u64)r * k + begin + c] : 0;
    }
}

// Two results of 16 bits share a register; k counts bytes.
#define STORE(WIDTH, ROW, COLUMN)                                                             \
    for (int i = 0; i < 4; i++) {                                                             \
        int r = ROW + i / 2 * 8 + lane / 4, c = COLUMN + lane % 4 * 2 + i % 2;                \
        unsigned bits = WIDTH == 32 ? acc[i] : acc[i / 2] >> i % 2 * 16 & 0xFFFF;             \
        if (r < m && c < n) d[(u64)r * n + c] = bits;                                         \
    }

#define WGMMA(NAME, TYPES, WIDTH, NUMBERS, EXTRA)                                             \
extern "C" __global__ void __launch_bounds__(128) wgmma_##NAME(                               \
    const u8 *a, const u8 *b, unsigned *d, int m, int n, int k)                               \
{                                                                                             \
    __shared__ __align__(1024) u8 tile_a[64 * 32], tile_b[8 * 32];                            \
    int row = blockIdx.y * 64, column = blockIdx.x * 8, lane = threadIdx.x % 32;              \
    unsigned acc[4] = {0, 0, 0, 0};                                                           \
    for (int begin = 0; begin < k; begin += 32) {                                             \
        __syncthreads();                                                                      \
        load(tile_a, a + (u64)row * k, 64, m - row, k, begin);                                \
        load(tile_b, b + (u64)column * k, 8, n - column, k, begin);                           \
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");                          \
        __syncthreads();                                                                      \
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");                               \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;"                                  \
            "wgmma.mma_async.sync.aligned.m64n8" TYPES                                        \
            " {" NUMBERS "}, %4, %5, p, 1, 1" EXTRA "; }"                                     \
            : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])                          \
            : "l"(descriptor(tile_a)), "l"(descriptor(tile_b)), "r"(begin) : "memory");       \
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");                        \
        asm volatile("wgmma.wait_group.sync.aligned 0;"                                       \
            : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3]) :: "memory");            \
    }                                                                                         \
    STORE(WIDTH, row + threadIdx.x / 32 * 16, column)                                         \
}

#define MMA(NAME, TYPES, WIDTH, NUMBERS)                                                      \
extern "C" __global__ void __launch_bounds__(32) mma_##NAME(                                  \
    const u8 *a, const u8 *b, unsigned *d, int m, int n, int k)                               \
{                                                                                             \
    int row = blockIdx.y * 16, column = blockIdx.x * 8, lane = threadIdx.x;                   \
    unsigned acc[4] = {0, 0, 0, 0};                                                           \
    for (int begin = 0; begin < k; begin += 32) {                                             \
        unsigned x[4] = {0, 0, 0, 0}, y[2] = {0, 0};                                          \
        for (int i = 0; i < 4; i++)                                                           \
            for (int j = 0; j < 4; j++) {                                                     \
                int r = row + lane / 4 + i % 2 * 8, c = begin + i / 2 * 16 + lane % 4 * 4 + j;\
                if (r < m && c < k) x[i] |= (unsigned)a[(u64)r * k + c] << 8 * j;             \
            }                                                                                 \
        for (int i = 0; i < 2; i++)                                                           \
            for (int j = 0; j < 4; j++) {                                                     \
                int r = column + lane / 4, c = begin + i * 16 + lane % 4 * 4 + j;             \
                if (r < n && c < k) y[i] |= (unsigned)b[(u64)r * k + c] << 8 * j;             \
            }                                                                                 \
        asm volatile("mma.sync.aligned.m16n8" TYPES                                           \
            " {" NUMBERS "}, {%4, %5, %6, %7}, {%8, %9}, {" NUMBERS "};"                      \
            : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])                          \
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));              \
    }                                                                                         \
    STORE(WIDTH, row, column)                                                                 \
}
"""


def source() -> str:
    """Write the kernels of all instructions."""
    lines = [KERNELS]
    for how in INSTRUCTIONS:
        types, shape = f"{how.result}.{how.a}.{how.b}", "k32" if how.is_fp8 else "k16"
        name, width = types.replace(".", "_"), how.result[1:]
        numbers = "%0, %1" if how.result == "f16" else "%0, %1, %2, %3"
        if how.name == "wgmma":
            extra = "" if how.is_fp8 else ", 0, 0"
            lines.append(f'WGMMA({name}, "{shape}.{types}", {width}, "{numbers}", "{extra}")')
        else:
            types = f"{shape}.row.col.{types}.{how.result}"
            lines.append(f'MMA({name}, "{types}", {width}, "{numbers}")')
    return "\n".join(lines)


def kernels() -> Callable[[Instruction, np.ndarray, np.ndarray], np.ndarray]:
    """Compile the kernels; the function runs one on operands (M, bytes) and (N, bytes)."""
    import cupy  # noqa: PLC0415 (--help works without it)

    with tempfile.TemporaryDirectory() as folder:
        text, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        text.write_text(source())
        target = "-gencode=arch=compute_90a,code=sm_90a"
        subprocess.run(["nvcc", "-O2", target, "-cubin", "-o", binary, text], check=True)
        sass = subprocess.run(["cuobjdump", "-sass", binary], check=True, capture_output=True)
        mnemonics = re.findall(rb"(?:QGMMA|HGMMA|HMMA|QMMA|F2FP)[.\w]*", sass.stdout)
        print("instructions:", *sorted({name.decode() for name in mnemonics}))
        module = cupy.RawModule(path=str(binary))
        functions = {how: module.get_function(how.kernel) for how in INSTRUCTIONS}
        for function in functions.values():
            _ = function.attributes  # loads the module while its file is there

    def run(how: Instruction, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        (m, k), n = a.shape, len(b)
        d = cupy.full((m, n), 12345, cupy.uint32)
        rows, threads = (64, 128) if how.name == "wgmma" else (16, 32)
        sizes = [np.int32(i) for i in (m, n, k)]
        grid = (-(-n // 8), -(-m // rows))
        functions[how](grid, (threads,), (cupy.asarray(a), cupy.asarray(b), d, *sizes))
        return d.get().astype(np.uint32 if how.result == "f32" else np.uint16)

    return run


def cases(repeats: int) -> Iterator[Case]:
    for seed, k, how in itertools.product(range(repeats), SIZES, INSTRUCTIONS):
        for kind in KINDS if how.is_fp8 else FLOAT_KINDS:
            yield Case(how, kind, k, seed)


def excerpts(run: Any) -> dict[str, np.ndarray]:
    """Make small operands and the GPU's results, for every instruction."""
    tensors = {}
    for number, how in enumerate(INSTRUCTIONS):
        kinds = ("uniform", "special", "edge") if how.is_fp8 else ("wide", "special", "tiny")
        for kind, k in zip(kinds, (144, 48, 160), strict=True):
            rng = np.random.default_rng([99, number, k])
            a, b = (
                draw_operands(kind, (FP8[how.a], FP8[how.b]), (8, k, 16), rng)
                if how.is_fp8
                else draw_floats(kind, FLOATS[how.a], (8, k, 16), rng)
            )
            key = f"{how.name}.{how.result}.{how.a}.{how.b}.{kind}"
            tensors[f"{key}.a"], tensors[f"{key}.b"] = bytes_of(a), bytes_of(b)
            tensors[f"{key}.{how.accumulator}"] = run(how, bytes_of(a), bytes_of(b))
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write excerpts")
    parser.add_argument("--repeats", type=int, default=3, help="tiles of each instruction, kind, K")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    arguments = parser.parse_args()

    import cupy  # noqa: PLC0415

    device = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    print(f"{device}, CuPy {cupy.__version__}")
    run = kernels()
    if arguments.record:
        with replaced_file(arguments.record) as file:
            file.write(save(excerpts(run), {"source": device}))
    tiles, results, special, wrong = (Counter[str]() for _ in range(4))
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        for case, a, b, values in pool.map(expected, cases(arguments.repeats), chunksize=8):
            how = case.instruction
            key = f"{how.name}.{how.result}.{how.a}.{how.b} {how.accumulator}"
            found = run(how, a, b)
            tiles[key] += 1
            results[key] += found.size
            infinity = 0x7F800000 if how.result == "f32" else 0x7C00
            special[key] += int((values & infinity == infinity).sum())
            count = int((found != values).sum())
            if count and not wrong[key]:
                i, j = np.argwhere(found != values)[0]
                print(f"  {case}: {count} differ, first at {i, j}: npfp8 {values[i, j]:#x}, "
                      f"GPU {found[i, j]:#x}", flush=True)  # fmt: skip
            wrong[key] += count
    for key in tiles:
        print(f"{key}: {tiles[key]} tiles, {results[key]} results ({special[key]} infinite or "
              f"NaN), {wrong[key]} differ")  # fmt: skip
    print(f"{results.total()} results, {wrong.total()} differ")
    if arguments.json:
        rows = {key: {"tiles": tiles[key], "results": results[key], "special": special[key],
                      "wrong": wrong[key]} for key in tiles}  # fmt: skip
        with replaced_file(arguments.json) as file:
            file.write(json.dumps({"device": device, "instructions": rows}, indent=1).encode())
    if wrong.total():
        sys.exit(1)


if __name__ == "__main__":
    main()

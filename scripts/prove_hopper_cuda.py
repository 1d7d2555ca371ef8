"""Compare `matmul(a, b, accumulate="hopper")` and "hopper-fast" with a Hopper GPU, bit for bit.

    python scripts/prove_hopper_cuda.py [--json FILE] [--record FILE]

The script needs an H100 or H200, torch, CuPy and nvcc. It has five parts:

1. It runs `torch._scaled_mm` on random and adversarial tiles of 4,096 results, for
   E4M3 x E4M3, E4M3 x E5M2 and E5M2 x E4M3, K from 16 to 16,384. If the
   library splits K (a small result, a large K; its kernels' names show it), it
   adds up parts of K. Then the tile is compared as a part of a larger product
   that the library does not split.
2. It does the same with a kernel of our own around `wgmma.mma_async` (PTX ISA), also
   for E5M2 x E5M2, which torch refuses.
3. It finds where `torch._scaled_mm` splits K, and whether its results are float32 sums of
   our results for equal parts of K.
4. It finds the formula with which the library applies its scales and its bias.
5. It checks whether `mma.sync`, the older instruction, adds up in the same way.

The exit code is 1 if a result of 1 or 2 differs. `--record` writes small excerpts as
safetensors, for test data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
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
import torch
from safetensors.numpy import save

from npfp8 import E4M3FN, E5M2, QuantizedTensor, matmul
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.files import replaced_file
from npfp8.product_inputs import KINDS, draw_codes, draw_operands

FORMATS = {"E4M3FN": E4M3FN, "E5M2": E5M2}
PAIRS = tuple(itertools.product(FORMATS, repeat=2))
MODES = ("hopper", "hopper-fast")
SHAPES = ((64, 64), (16, 256), (256, 16), (128, 32), (32, 128))

#: Every multiple of 16 up to 768, then 52 more.
SIZES = (*range(16, 769, 16), *(16 * round(48 * (16384 / 768) ** (i / 52)) for i in range(1, 53)))


#: A product of operands (M, K) and (N, K), in one of the modes.
Product = Callable[[QuantizedTensor, QuantizedTensor, str], np.ndarray]


class Case(NamedTuple):
    """A tile: its formats, the kind of its data, its size and a seed."""

    fmt_a: str
    fmt_b: str
    kind: str
    k: int
    seed: int

    def operands(self) -> tuple[QuantizedTensor, QuantizedTensor]:
        """Make operands (M, K) and (N, K); the second is transposed, as for the GPU."""
        rng = np.random.default_rng([self.seed, self.k, [*KINDS].index(self.kind)])
        m, n = SHAPES[rng.integers(len(SHAPES))]
        fmt_a, fmt_b = FORMATS[self.fmt_a], FORMATS[self.fmt_b]
        return draw_operands(self.kind, (fmt_a, fmt_b), (m, self.k, n), rng)


def normal(rng: Any, shape: tuple[int, int]) -> QuantizedTensor:
    """Draw normally distributed numbers as E4M3FN with scale 1."""
    return QuantizedTensor(draw_codes("normal", E4M3FN, shape, rng), 1.0, E4M3FN)


def expected(case: Case) -> tuple[Case, QuantizedTensor, QuantizedTensor, list[np.ndarray]]:
    """Compute the case, its operands and npfp8's results. Called in a separate process."""
    a, b = case.operands()
    return case, a, b, [matmul(a, b.mT, mode) for mode in MODES]


# The GPU


DTYPES = {"E4M3FN": torch.float8_e4m3fn, "E5M2": torch.float8_e5m2}

#: Sizes (M, N) of larger products around a tile, tried until the library does not split K.
LARGER = ((1024, 1024), (2048, 4096), (4096, 8192))


def torch_product(a: QuantizedTensor, b: QuantizedTensor, mode: str, **options: Any) -> np.ndarray:
    """Call `torch._scaled_mm`; by default with unit scales and a float32 result."""
    x, y = (torch.from_numpy(t.codes).cuda() for t in (a, b))
    return scaled_mm(x, y, a.fmt.name, b.fmt.name, mode, **options).float().cpu().numpy()


def scaled_mm(
    x: torch.Tensor, y: torch.Tensor, fmt_a: str, fmt_b: str, mode: str, **options: Any
) -> torch.Tensor:
    one = torch.ones((), device="cuda")
    options = {"scale_a": one, "scale_b": one, "out_dtype": torch.float32, **options}
    x, y = x.view(DTYPES[fmt_a]), y.view(DTYPES[fmt_b])
    return torch._scaled_mm(x, y.t(), use_fast_accum=mode == "hopper-fast", **options)


class Call(NamedTuple):
    """The properties by which the library chooses its kernel."""

    fmt_a: str
    fmt_b: str
    mode: str
    m: int
    n: int
    k: int


def kernels_of(calls: list[Call]) -> list[tuple[str, ...]]:
    """List the names of the kernels that each call starts."""
    operands = {
        size: torch.zeros(size, dtype=torch.uint8, device="cuda")
        for call in calls
        for size in ((call.m, call.k), (call.n, call.k))
    }
    found: list[tuple[str, ...]] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for call in calls:
            x, y = operands[call.m, call.k], operands[call.n, call.k]
            scaled_mm(x, y, call.fmt_a, call.fmt_b, call.mode)
        torch.cuda.synchronize()
    events = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    for event in sorted(events, key=lambda event: event.time_range.start):
        if "splitKreduce" in event.name:
            found[-1] += (event.name.split("<")[0],)
        elif "nvjet" in event.name or "cutlass" in event.name or "gemm" in event.name:
            found.append((event.name,))
    if len(found) != len(calls):
        raise RuntimeError(f"{len(calls)} products, {len(found)} kernels: {Counter(found)}")
    return found


def is_split(kernels: tuple[str, ...]) -> bool:
    return len(kernels) > 1 or "splitK" in kernels[0]


def unsplit_sizes() -> tuple[dict[Call, tuple[int, int]], list[Call], Counter[str]]:
    """Find the size for each call of a tile, the calls that are split, and all kernels' names.

    The size is the tile's own, or the first of :data:`LARGER` that is not split.
    """
    left = [
        Call(*pair, mode, m, n, k)
        for pair, mode, (m, n), k in itertools.product(PAIRS, MODES, SHAPES, SIZES)
        if pair != ("E5M2", "E5M2")
    ]
    sizes: dict[Call, tuple[int, int]] = {}
    split: list[Call] = []
    names: Counter[str] = Counter()
    for larger in (None, *LARGER):
        resized = [call._replace(m=larger[0], n=larger[1]) if larger else call for call in left]
        kernels = kernels_of(resized)
        names.update(name for group in kernels for name in group)
        for call, used, group in zip(left, resized, kernels, strict=True):
            if not is_split(group):
                sizes[call] = used.m, used.n
        left = [call for call in left if call not in sizes]
        split = split or left
    if left:
        raise RuntimeError(f"split in every size: {left[:3]}")
    return sizes, split, names


def unsplit_product(sizes: dict[Call, tuple[int, int]]) -> Product:
    """Make the product of a tile, within a larger one if the library would split K."""

    def product(a: QuantizedTensor, b: QuantizedTensor, mode: str) -> np.ndarray:
        (m, k), n = a.shape, b.shape[0]
        rows, columns = sizes[Call(a.fmt.name, b.fmt.name, mode, m, n, k)]
        x, y = (torch.from_numpy(t.codes).cuda() for t in (a, b))
        x, y = x.repeat(rows // m, 1), y.repeat(columns // n, 1)
        result = scaled_mm(x, y, a.fmt.name, b.fmt.name, mode)
        return result[-m:, -n:].cpu().numpy()

    return product


def explain_splits(split: list[Call]) -> list[str]:
    """Find the fewest equal parts of K that give the results of some split calls."""
    lines = []
    calls = [call for call in split if call.fmt_a == call.fmt_b == "E4M3FN"]
    for call in calls[:: max(1, len(calls) // 40)]:
        rng = np.random.default_rng(call.k)
        a, b = normal(rng, (call.m, call.k)), normal(rng, (call.n, call.k))
        found = np.ascontiguousarray(torch_product(a, b, call.mode)[:16, :16])
        steps = math.ceil(call.k / 128)
        fits = None
        for parts in range(1, 33):
            length = 128 * math.ceil(steps / parts)
            total = np.zeros(found.shape, np.float32)
            for begin in range(0, call.k, length):
                x, y = (t.codes[:16, begin : begin + length] for t in (a, b))
                part = QuantizedTensor(x, 1.0, E4M3FN), QuantizedTensor(y, 1.0, E4M3FN).mT
                total += matmul(*part, call.mode)
            if not differences(found, total):
                fits = parts
                break
        lines.append(f"{call.mode}, {call.m} x {call.k} x {call.n}: {fits} parts")
    return lines


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

#define WGMMA(NAME, TYPES)                                                                    \
extern "C" __global__ void __launch_bounds__(128) wgmma_##NAME(                               \
    const u8 *a, const u8 *b, float *d, int m, int n, int k, int fast)                        \
{                                                                                             \
    __shared__ __align__(1024) u8 tile_a[64 * 32], tile_b[8 * 32];                            \
    int row = blockIdx.y * 64, column = blockIdx.x * 8, lane = threadIdx.x % 32;              \
    float acc[4] = {0, 0, 0, 0}, sum[4] = {0, 0, 0, 0};                                       \
    int keep = 0;                                                                             \
    for (int begin = 0; begin < k; begin += 32) {                                             \
        __syncthreads();                                                                      \
        load(tile_a, a + (u64)row * k, 64, m - row, k, begin);                                \
        load(tile_b, b + (u64)column * k, 8, n - column, k, begin);                           \
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");                          \
        __syncthreads();                                                                      \
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");                               \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %6, 0;"                                  \
            "wgmma.mma_async.sync.aligned.m64n8k32.f32." TYPES                                \
            " {%0, %1, %2, %3}, %4, %5, p, 1, 1; }"                                           \
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                          \
            : "l"(descriptor(tile_a)), "l"(descriptor(tile_b)), "r"(keep) : "memory");        \
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");                        \
        asm volatile("wgmma.wait_group.sync.aligned 0;"                                       \
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3]) :: "memory");            \
        keep = 1;                                                                             \
        if (begin + 32 >= k || (!fast && begin / 32 % 4 == 3)) {                              \
            for (int i = 0; i < 4; i++) sum[i] = fast ? acc[i] : sum[i] + acc[i];             \
            keep = 0;                                                                         \
        }                                                                                     \
    }                                                                                         \
    for (int i = 0; i < 4; i++) {                                                             \
        int r = row + threadIdx.x / 32 * 16 + i / 2 * 8 + lane / 4;                           \
        int c = column + lane % 4 * 2 + i % 2;                                                \
        if (r < m && c < n) d[(u64)r * n + c] = sum[i];                                       \
    }                                                                                         \
}

#define MMA(NAME, TYPES)                                                                      \
extern "C" __global__ void __launch_bounds__(32) mma_##NAME(                                  \
    const u8 *a, const u8 *b, float *d, int m, int n, int k, int fast)                        \
{                                                                                             \
    int row = blockIdx.y * 16, column = blockIdx.x * 8, lane = threadIdx.x;                   \
    float acc[4] = {0, 0, 0, 0};                                                              \
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
        asm volatile("mma.sync.aligned.m16n8k32.row.col.f32." TYPES ".f32"                    \
            " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                \
            : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])                          \
            : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));              \
    }                                                                                         \
    for (int i = 0; i < 4; i++) {                                                             \
        int r = row + i / 2 * 8 + lane / 4, c = column + lane % 4 * 2 + i % 2;                \
        if (r < m && c < n) d[(u64)r * n + c] = acc[i];                                       \
    }                                                                                         \
}

WGMMA(E4M3FN_E4M3FN, "e4m3.e4m3")
WGMMA(E4M3FN_E5M2, "e4m3.e5m2")
WGMMA(E5M2_E4M3FN, "e5m2.e4m3")
WGMMA(E5M2_E5M2, "e5m2.e5m2")
MMA(E4M3FN_E4M3FN, "e4m3.e4m3")
MMA(E4M3FN_E5M2, "e4m3.e5m2")
MMA(E5M2_E4M3FN, "e5m2.e4m3")
MMA(E5M2_E5M2, "e5m2.e5m2")
"""


def own_kernels() -> tuple[Product, Product]:
    """Compile products by `wgmma.mma_async` and by `mma.sync`."""
    import cupy  # noqa: PLC0415 (--help works without it)

    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text(KERNELS)
        target = "-gencode=arch=compute_90a,code=sm_90a"
        subprocess.run(["nvcc", "-O2", target, "-cubin", "-o", binary, source], check=True)
        sass = subprocess.run(["cuobjdump", "-sass", binary], check=True, capture_output=True)
        mnemonics = re.findall(rb"(?:QGMMA|HMMA|QMMA|F2FP)[.\w]*", sass.stdout)
        print("instructions:", *sorted({name.decode() for name in mnemonics}))
        module = cupy.RawModule(path=str(binary))

        def product(instruction: str, rows: int, threads: int) -> Product:
            functions = {
                pair: module.get_function(f"{instruction}_{'_'.join(pair)}") for pair in PAIRS
            }

            def run(a: QuantizedTensor, b: QuantizedTensor, mode: str) -> np.ndarray:
                (m, k), n = a.shape, b.shape[0]
                d = cupy.full((m, n), 12345.0, cupy.float32)
                x, y = cupy.asarray(a.codes), cupy.asarray(b.codes)
                sizes = [np.int32(i) for i in (m, n, k, mode == "hopper-fast")]
                grid = (-(-n // 8), -(-m // rows))
                functions[a.fmt.name, b.fmt.name](grid, (threads,), (x, y, d, *sizes))
                return d.get()

            return run

        return product("wgmma", 64, 128), product("mma", 16, 32)


# The parts


def differences(found: np.ndarray, wanted: np.ndarray) -> int:
    return int((found.view(np.uint32) != wanted.view(np.uint32)).sum())


def report(name: str, case: Case, mode: str, found: np.ndarray, wanted: np.ndarray) -> None:
    wrong = found.view(np.uint32) != wanted.view(np.uint32)
    index = tuple(int(i[0]) for i in np.nonzero(wrong))
    bits = (int(x[index].view(np.uint32)) for x in (wanted, found))
    print(f"  {name} {mode} {case}: {wrong.sum()} differ, first at {index}: npfp8 0x%08X, "
          "GPU 0x%08X" % tuple(bits))  # fmt: skip


class Tally(NamedTuple):
    """The numbers of tiles, results, differences, and of NaNs and infinities."""

    tiles: Counter[str]
    results: Counter[str]
    wrong: Counter[str]
    special: Counter[str]


def cases(sizes: tuple[int, ...], repeats: int, pairs: Any) -> Iterator[Case]:
    for seed, k, kind, (fmt_a, fmt_b) in itertools.product(range(repeats), sizes, KINDS, pairs):
        yield Case(fmt_a, fmt_b, kind, k, seed)


def compare_tiles(plan: list[tuple[Case, list[tuple[str, Product]]]], processes: int) -> Tally:
    """Compare every case with each of its products, in both modes."""
    tally = Tally(Counter(), Counter(), Counter(), Counter())
    products = dict(plan)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for case, a, b, wanted in pool.map(expected, products, chunksize=8):
            for name, product in products[case]:
                key = f"{name} {case.fmt_a} x {case.fmt_b}"
                tally.tiles[key] += 1
                for mode, values in zip(MODES, wanted, strict=True):
                    found = product(a, b, mode)
                    tally.results[key] += found.size
                    tally.special[key] += int((~np.isfinite(values)).sum())
                    if wrong := differences(found, values):
                        tally.wrong[key] += wrong
                        if tally.wrong[key] == wrong:
                            report(name, case, mode, found, values)
    return tally


def compare_scales() -> list[str]:
    """Find the formulas that give the bits of `torch._scaled_mm` with scales and bias."""
    rng = np.random.default_rng(11)
    m, k, n = 256, 64, 512
    a, b = normal(rng, (m, k)), normal(rng, (n, k))
    bias = round_to_bfloat16(rng.standard_normal(n).astype(np.float32) * 100)
    lines = []
    f32, f64 = np.float32, np.float64

    def formulas(c: Any, sa: Any, sb: Any) -> dict[str, np.ndarray]:
        return {
            "c * f32(sa * sb)": c * (sa * sb),
            "f32(c * sa) * sb": (c * sa) * sb,
            "f32(c * sb) * sa": (c * sb) * sa,
            "one rounding": (c.astype(f64) * (sa.astype(f64) * sb.astype(f64))).astype(f32),
        }

    for mode, per_row, out, with_bias in itertools.product(
        MODES, (False, True), ("float32", "bfloat16"), (False, True)
    ):
        name = f"{mode}, scales per {'row' if per_row else 'tensor'}, {out}, bias {with_bias}"
        counts: Counter[str] = Counter()
        total = 0
        c = matmul(a, b.mT, mode)
        try:
            for _ in range(16):
                sa = rng.uniform(0.5, 2, (m, 1) if per_row else ()).astype(f32) * f32(0.013)
                sb = rng.uniform(0.5, 2, (1, n) if per_row else ()).astype(f32) * f32(0.017)
                options: dict[str, Any] = {
                    "scale_a": torch.from_numpy(np.asarray(sa)).cuda(),
                    "scale_b": torch.from_numpy(np.asarray(sb)).cuda(),
                    "out_dtype": getattr(torch, out),
                }
                if with_bias:
                    options["bias"] = torch.from_numpy(bias).cuda().to(torch.bfloat16)
                found = torch_product(a, b, mode, **options)
                total += found.size
                candidates = formulas(c, np.asarray(sa), np.asarray(sb))
                if with_bias:
                    exact = (c.astype(f64) * (f64(sa) * f64(sb)) + bias).astype(f32)
                    candidates = {
                        "one rounding, bias too": exact,
                        **{f"({key}) + bias": value + bias for key, value in candidates.items()},
                        **{
                            f"bf16({key}) + bias": round_to_bfloat16(value) + bias
                            for key, value in candidates.items()
                        },
                    }
                for key, value in candidates.items():
                    rounded = value if out == "float32" else round_to_bfloat16(value)
                    counts[key] += rounded.size - differences(found, rounded)
        except (RuntimeError, ValueError) as error:
            lines.append(f"{name}: refused: {str(error).splitlines()[0][:150]}")
            continue
        best = ", ".join(f"{key}: {n_equal}" for key, n_equal in counts.most_common(6))
        lines.append(f"{name}: of {total} equal to {best}")
    return lines


def mma_sync_sums(a: QuantizedTensor, b: QuantizedTensor) -> np.ndarray:
    """Compute `mma.sync` of a Hopper GPU for FP8 operands (M, K) and (N, K), in float64.

    The GPU lacks this instruction. It converts the operands to float16 in place,
    and two float16 instructions add up 16 products each, first those of the even pairs
    of K, then those of the odd pairs. They cut off at 2^(e - 25), not at
    2^(e - 13), and start from zero. Their float32 result is added to the
    accumulator (nearest, ties to even).
    """
    x, y = (t.code_values(np.float64) for t in (a, b))
    ex, ey = (np.frexp(np.maximum(np.abs(v), 2.0**-14))[1] - 1 for v in (x, y))
    pairs = np.arange(32).reshape(8, 2, 2).swapaxes(0, 1).reshape(2, 16)
    sums = np.zeros((len(x), len(y)), np.float32)
    for begin in range(0, x.shape[1], 32):
        acc = np.zeros(sums.shape)
        for ks in begin + pairs:
            products = x[:, None, ks] * y[None, :, ks]
            exponents = np.where(products != 0, ex[:, None, ks] + ey[None, :, ks], -100)
            e = np.maximum(exponents.max(-1), np.where(acc != 0, np.frexp(acc)[1] - 1, -100))
            unit = np.ldexp(1.0, e - 25)
            acc = (np.trunc(products / unit[..., None]).sum(-1) + np.trunc(acc / unit)) * unit
            last = np.ldexp(1.0, np.frexp(acc)[1] - 24)
            acc = np.trunc(acc / last) * last
        sums += acc.astype(np.float32)
    return sums + np.float32(0)


def compare_mma_sync(mma: Product, wgmma: Product) -> list[str]:
    """Count how often `mma.sync` differs from `wgmma`, and from :func:`mma_sync_sums`."""
    lines = []
    rng = np.random.default_rng(5)
    for pair in PAIRS:
        total = from_wgmma = from_rule = 0
        for kind, k in itertools.product(("uniform", "normal", "edge", "sparse"), (32, 64, 192)):
            a, b = (
                QuantizedTensor(draw_codes(kind, fmt, (64, k), rng), 1.0, fmt)
                for fmt in map(FORMATS.__getitem__, pair)
            )
            found = mma(a, b, "hopper-fast")
            total += found.size
            from_wgmma += differences(found, wgmma(a, b, "hopper-fast"))
            from_rule += differences(found, mma_sync_sums(a, b))
        lines.append(
            f"{' x '.join(pair)}: of {total} results {from_wgmma} differ from wgmma's, "
            f"{from_rule} from the rule of mma_sync_sums"
        )
    return lines


def excerpts(wgmma: Product) -> dict[str, np.ndarray]:
    """Make small operands and results for every pair of formats, by torch if it takes the pair."""
    tensors = {}
    for (fmt_a, fmt_b), (kind, k) in itertools.product(
        PAIRS, (("uniform", 144), ("special", 48), ("edge", 160))
    ):
        a, b = Case(fmt_a, fmt_b, kind, k, 99).operands()
        a = QuantizedTensor(a.codes[:8], 1.0, a.fmt)
        b = QuantizedTensor(b.codes[:16], 1.0, b.fmt)
        if kind == "special":  # put in one of each, regardless of the seed
            a.codes[0, 5], b.codes[1, 7] = a.fmt.nan_code, b.fmt.nan_code | 0x80
            for x, row in ((a, 2), (b, 3), (b, 4)):
                if x.fmt.infinity_code:
                    x.codes[row, row] = x.fmt.infinity_code | (row % 2 << 7)
        key = f"{fmt_a}.{fmt_b}.{kind}"
        tensors[f"{key}.a"], tensors[f"{key}.b"] = a.codes, b.codes
        product = wgmma if (fmt_a, fmt_b) == ("E5M2", "E5M2") else torch_product
        for mode in MODES:
            tensors[f"{key}.{mode}"] = product(a, b, mode)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write excerpts")
    parser.add_argument("--repeats", type=int, default=4, help="tiles of each kind, K and formats")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    arguments = parser.parse_args()

    import cupy  # noqa: PLC0415

    device = torch.cuda.get_device_name()
    print(
        f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}, CuPy {cupy.__version__}"
    )
    result: dict[str, Any] = {"device": device, "torch": torch.__version__}
    wgmma, mma = own_kernels()
    if arguments.record:
        source = f"torch {torch.__version__} _scaled_mm (E5M2.E5M2: wgmma), {device}, unit scales"
        with replaced_file(arguments.record) as file:
            file.write(save(excerpts(wgmma), {"source": source}))

    sizes, split, names = unsplit_sizes()
    result["kernels"] = dict(names)
    print(
        f"{len(sizes)} formats, modes and sizes, {len(names)} kernels; K is split in {len(split)}"
    )
    for shape in SHAPES:
        sizes_split = {call.k for call in split if (call.m, call.n) == shape}
        whole = {call.k for call in sizes if (call.m, call.n) == shape} - sizes_split
        print(f"  results of {shape}: split from K = {min(sizes_split, default=None)} on, "
              f"whole up to {max(whole)}")  # fmt: skip
    both = [("torch", unsplit_product(sizes)), ("wgmma", wgmma)]
    plan = [
        (case, (both if case.seed == 0 else both[:1]) if case[:2] != ("E5M2", "E5M2") else both[1:])
        for case in cases(SIZES, arguments.repeats, PAIRS)
    ]
    tally = compare_tiles(plan, arguments.processes)
    for key, tiles in tally.tiles.items():
        print(f"{key}: {tiles} tiles, {tally.results[key]} results ({tally.special[key]} infinite "
              f"or NaN), {tally.wrong[key]} differ")  # fmt: skip
    result["tiles"] = {key: {name: counter[key] for name, counter in tally._asdict().items()}
                       for key in tally.tiles}  # fmt: skip
    for part, lines in (
        ("splits", lambda: explain_splits(split)),
        ("scales", compare_scales),
        ("mma.sync", lambda: compare_mma_sync(mma, wgmma)),
    ):
        result[part] = lines()
        print(f"{part}:", *result[part], sep="\n  ", flush=True)
    if arguments.json:
        with replaced_file(arguments.json) as file:
            file.write(json.dumps(result, indent=1).encode())
    if tally.wrong.total():
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Prove the codec on every float32: all 2^32 bit patterns, every format, both modes.

    python scripts/prove_codec.py --write tests/digests/codec.txt    # all: about 20 minutes
    python scripts/prove_codec.py --check tests/digests/codec.txt --share 8
    python scripts/prove_codec.py --check tests/digests/codec.txt --no-peers
    python scripts/prove_codec.py --write tests/digests/codec.txt --format UE4M3  # adds its lines

The other roundings, with saturation and with both options of overflow:

    F=tests/digests/roundings.txt
    python scripts/prove_codec.py --roundings --write $F --workers 16    # 70 minutes of one core
    python scripts/prove_codec.py --roundings --check $F --share 8 --sample 5
    python scripts/prove_codec.py --roundings --share 8 --sample 5       # by integers alone

For each block of 2^24 bit patterns, every format and both modes of `encode`
are compared with ml_dtypes and torch, if these have the format, and the
SHA-256 of the codes is written to a file or compared with one. A peer may differ
only for the inputs that `peer_codes` names. A format that no peer has is compared
with a peer's format that has the same codes for a part of the numbers.

NaN inputs are replaced by 0 for formats that have no NaN (encode refuses them).

No peer has the other roundings at this speed. They are compared with the integers of
tests/integer_rounding.py where the codes change. The numbers of a block are in order and of one
sign, and rounding never changes the order of two numbers, so the numbers that become the same
code are neighbours: if the first and the last one of a run of equal codes are right, all of it
is right. One digest stands for the two or three ways of a rounding, in this order: saturating,
overflow as IEEE 754 has it, and overflow to the specials.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import itertools
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8 import (
    E3M4,
    E3M4FN,
    E4M3FN,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0FNU,
    P3109_K8P3,
    P3109_K8P4,
    UE4M3,
    FloatFormat,
    encode,
)
from npfp8.codec import ROUNDINGS
from npfp8.codec.definition import depends_on_overflow
from npfp8.files import replaced_file
from npfp8.formats import FLOAT_FORMATS
from npfp8.interop import ML_DTYPES_NAMES

Float32Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.uint8]

BLOCKS = 256
BLOCK_SIZE = 1 << 24

#: The blocks of both signs with zero and the subnormals, the overflow thresholds of the formats,
#: infinity and NaN.
EDGE_BLOCKS = [
    sign | block for sign in (0x00, 0x80) for block in (0x00, 0x40, 0x41, 0x43, 0x47, 0x7E, 0x7F)
]

#: Formats that no peer has: another one with the same fields and bias, whose codes are the same
#: up to the smaller of the two largest values, and for the numbers that both have signs for.
RELATIVES = {
    E3M4FN: E3M4,
    P3109_K8P3: E5M2FNUZ,
    P3109_K8P4: E4M3FNUZ,
    UE4M3: E4M3FN,
}

#: The roundings that are not to nearest, ties to even, and that need no random bits.
OTHERS = tuple(how for how in ROUNDINGS if how not in ("nearest", "stochastic"))

TORCH_NAMES = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def block_of(index: int) -> Float32Array:
    """Return the float32 numbers whose upper 8 bits are ``index``."""
    return np.arange(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE, dtype=np.uint32).view(np.float32)


def digests_of(
    index: int, peers: frozenset[str], formats: Iterable[FloatFormat] | None = None
) -> Iterator[str]:
    """Make the lines of a block: format, mode, block, SHA-256. Exit if a peer differs."""
    x = block_of(index)
    formats = FLOAT_FORMATS.values() if formats is None else formats
    for fmt, saturate in itertools.product(formats, (True, False)):
        numbers = np.where(np.isnan(x), np.float32(0), x) if fmt.nan_code is None else x
        codes = encode(numbers, fmt, saturate)
        for name, theirs, excepted in peer_codes(numbers, fmt, saturate, peers):
            wrong = (codes != theirs) & ~excepted
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                sys.exit(
                    f"{fmt} saturate={saturate}: {np.count_nonzero(wrong)} differ from {name} in "
                    f"block {index:02x}, first for bits 0x{numbers.view(np.uint32)[i]:08X} "
                    f"({numbers[i]}): 0x{codes[i]:02X}, {name} has 0x{theirs[i]:02X}"
                )
        mode = "saturate" if saturate else "overflow"
        yield f"{fmt} {mode} {index:02x} {hashlib.sha256(codes.data).hexdigest()}"


def peer_codes(
    x: Float32Array, fmt: FloatFormat, saturate: bool, peers: frozenset[str]
) -> Iterator[tuple[str, Codes, npt.NDArray[np.bool_]]]:
    """Yield the name, the codes and the allowed exceptions of each peer.

    Neither peer saturates every format, so for that mode they get clipped
    numbers. The exceptions are then NaN, whose sign they keep, and, in a
    format without sign or zero, numbers below its smallest one.
    """
    nan = np.isnan(x)
    given, excepted = x, np.zeros(x.shape, bool)
    if saturate:
        low = np.float32(-fmt.max if fmt.signed else 0 if fmt.has_zero else fmt.min_positive)
        given = np.clip(x, low, np.float32(fmt.max))
        excepted = nan | ((x < 0) & (not fmt.signed))
    other = RELATIVES.get(fmt, fmt)
    if other != fmt:
        largest = np.float32(min(fmt.max, other.max))
        excepted |= nan | (np.abs(given) > largest) | (np.signbit(given) & (not fmt.signed))
    if "ml_dtypes" in peers:
        import ml_dtypes  # noqa: PLC0415

        with np.errstate(all="ignore"):
            theirs = given.astype(getattr(ml_dtypes, ML_DTYPES_NAMES[other])).view(np.uint8)
        # It rounds numbers between 2^-127 and the tie above (float32 subnormals) up to 2^-126.
        beside = (given > 2.0**-127) & (given < 1.5 * 2.0**-127) & (fmt == E8M0FNU)
        yield "ml_dtypes", theirs, excepted | beside
    if "torch" in peers and ML_DTYPES_NAMES[other] in TORCH_NAMES:
        import torch  # noqa: PLC0415

        torch.set_num_threads(1)
        dtype = getattr(torch, ML_DTYPES_NAMES[other])
        theirs = torch.from_numpy(given).to(dtype).view(torch.uint8).numpy()
        # torch's E5M2 NaN has all bits set, ours (and ml_dtypes') one; its E4M3FN always saturates.
        differs = nan if fmt == E5M2 else np.zeros(x.shape, bool)
        if fmt == E4M3FN and not saturate:
            differs = np.abs(x) > 464
        yield "torch", theirs, excepted | differs


def nan_codes_are_as_stated(index: int) -> None:
    """Check the codes of NaN, which are excepted above, by the stated rule."""
    x = block_of(index)
    nan, negative = np.isnan(x), np.signbit(x)
    for fmt in FLOAT_FORMATS.values():
        if fmt.nan_code is None or fmt.quiet_nan_code is None:
            continue
        sign = np.where(negative & bool(fmt.nan_code != 0x80), fmt.sign_bit, 0)
        if (encode(x, fmt)[nan] != fmt.nan_code).any():
            sys.exit(f"{fmt}: a NaN of block {index:02x} is not 0x{fmt.nan_code:02X}")
        if (encode(x, fmt, False)[nan] != (fmt.quiet_nan_code | sign)[nan]).any():
            sys.exit(f"{fmt} saturate=False: a NaN of block {index:02x} is not as stated")


def ways_of(rounding: str) -> list[tuple[bool, str]]:
    """Return the ways of a rounding that may differ: saturation, and the option of overflow."""
    ways = [(True, "ieee"), (False, "ieee")]
    return ways + [(False, "special")] * depends_on_overflow(False, rounding)


@lru_cache(maxsize=1)
def oracle() -> ModuleType:
    """Import the integers to compare with."""
    place = Path(__file__).parent.parent / "tests" / "integer_rounding.py"
    spec = importlib.util.spec_from_file_location("integer_rounding", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def require_right_runs(
    bits: npt.NDArray[np.uint32],
    codes: Codes,
    what: str,
    right: Callable[..., npt.NDArray[np.int64]],
) -> None:
    """Exit unless the first and the last number of each run of equal codes have the right code."""
    changes = np.flatnonzero(codes[1:] != codes[:-1])
    places = np.concatenate([[0], changes, changes + 1, [codes.size - 1]])
    wrong = places[codes[places] != right(oracle().parts_of(bits[places], 23, 8))]
    if wrong.size:
        sys.exit(f"{what}: the code of 0x{bits[wrong[0]]:08X} is not 0x{codes[wrong[0]]:02X}")


def rounding_digests_of(index: int, chosen: Iterable[tuple[FloatFormat, str]]) -> Iterator[str]:
    """Make the lines of a block: format, rounding, block, half of a SHA-256. Exit at a mistake."""
    x = block_of(index)
    for fmt, rounding in chosen:
        numbers = np.where(np.isnan(x), np.float32(0), x) if fmt.nan_code is None else x
        digest = hashlib.sha256()
        for saturate, overflow in ways_of(rounding):
            codes = encode(numbers, fmt, saturate, rounding=rounding, overflow=overflow)
            require_right_runs(
                numbers.view(np.uint32),
                codes,
                f"{fmt} {rounding} saturate={saturate} overflow={overflow}",
                lambda parts, fmt=fmt, how=(rounding, saturate, overflow): oracle().codes(
                    parts, fmt.name, *how
                ),
            )
            digest.update(codes.data)
        yield f"{fmt} {rounding} {index:02x} {digest.hexdigest()[:32]}"


def prove_block(task: tuple[int, frozenset[str], tuple[FloatFormat, ...]]) -> list[str]:
    index, peers, formats = task
    nan_codes_are_as_stated(index)
    return list(digests_of(index, peers, formats))


def prove_roundings(task: tuple[int, tuple[tuple[FloatFormat, str], ...]]) -> list[str]:
    return list(rounding_digests_of(*task))


def sampled(
    index: int, pairs: list[tuple[FloatFormat, str]], sample: int | None, seed: int
) -> tuple[tuple[FloatFormat, str], ...]:
    """Choose ``sample`` of the formats with a rounding for a block, by the seed; all for None."""
    if sample is None or sample >= len(pairs):
        return tuple(pairs)
    places = np.random.default_rng([seed, index]).choice(len(pairs), sample, replace=False)
    return tuple(pairs[place] for place in sorted(places))


def chosen_blocks(share: int | None, seed: int) -> list[int]:
    """Choose all blocks, or the edge blocks and ``share`` others by the seed."""
    if share is None:
        return list(range(BLOCKS))
    others = [index for index in range(BLOCKS) if index not in EDGE_BLOCKS]
    rotation = np.random.default_rng(seed).permutation(others)[:share]
    return sorted({*EDGE_BLOCKS, *rotation.tolist()})


def parsed() -> argparse.Namespace:
    """Parse the arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", type=Path, metavar="FILE", help="write the digests")
    action.add_argument("--check", type=Path, metavar="FILE", help="compare with them")
    parser.add_argument("--share", type=int, metavar="N", help="the edge blocks and N others only")
    parser.add_argument("--seed", type=int, help="chooses the others (default: another every run)")
    parser.add_argument(
        "--format",
        action="append",
        choices=FLOAT_FORMATS,
        help="this format only, and others so given; --write keeps the lines of the rest",
    )
    parser.add_argument("--no-peers", action="store_true", help="compare with the file only")
    parser.add_argument(
        "--roundings",
        action="store_true",
        help="the roundings other than nearest, against integers, instead of nearest",
    )
    parser.add_argument(
        "--rounding", action="append", choices=OTHERS, help="with --roundings: this one only"
    )
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="with --roundings: of each block N pairs of a format and a rounding, by the seed",
    )
    parser.add_argument("--workers", "--processes", type=int, default=2, metavar="N")
    arguments = parser.parse_args()
    if not (arguments.roundings or arguments.write or arguments.check):
        parser.error("expected --write, --check or --roundings")
    if not arguments.roundings and (arguments.rounding or arguments.sample):
        parser.error("--rounding and --sample: expected --roundings with them")
    if arguments.write and arguments.sample:
        parser.error("--sample: expected --check with it, or neither")
    return arguments


def main() -> None:
    arguments = parsed()
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    blocks = chosen_blocks(arguments.share, seed)
    wanted = () if arguments.no_peers or arguments.roundings else ("ml_dtypes", "torch")
    peers = frozenset(name for name in wanted if importlib.util.find_spec(name))
    compared = "integers" if arguments.roundings else f"peers: {', '.join(sorted(peers)) or 'none'}"
    print(f"{len(blocks)} blocks of 2^24, seed {seed}, {compared}")
    known = set(arguments.check.read_text().splitlines()) if arguments.check else None
    formats = tuple(FLOAT_FORMATS[name] for name in arguments.format or FLOAT_FORMATS)
    prove: Callable[[Any], list[str]]
    tasks: list[Any]
    if arguments.roundings:
        pairs = list(itertools.product(formats, arguments.rounding or OTHERS))
        replaced = {(str(fmt), rounding) for fmt, rounding in pairs}
        prove = prove_roundings
        tasks = [(index, sampled(index, pairs, arguments.sample, seed)) for index in blocks]
    else:
        modes = ("saturate", "overflow")
        replaced = set(itertools.product(map(str, formats), modes))
        prove = prove_block
        tasks = [(index, peers, formats) for index in blocks]

    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415 (WebAssembly has none)

    lines: list[str] = []
    begin = time.perf_counter()
    with ProcessPoolExecutor(arguments.workers) as pool:
        for done, found in enumerate(pool.map(prove, tasks), 1):
            lines += found
            if known is not None and (strange := [line for line in found if line not in known]):
                sys.exit(f"not in {arguments.check}: {strange[0]}")
            if done % 16 == 0 or done == len(blocks):
                print(
                    f"{done}/{len(blocks)} blocks, {time.perf_counter() - begin:.0f} s", flush=True
                )
    if arguments.write:
        if arguments.write.exists() and (arguments.format or arguments.rounding):
            before = [line.split() for line in arguments.write.read_text().splitlines()]
            lines += [" ".join(line) for line in before if (line[0], line[1]) not in replaced]
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(arguments.write) as file:
            file.write(("\n".join(sorted(lines)) + "\n").encode())
    print(f"all as expected: {len(lines)} digests")


if __name__ == "__main__":
    main()

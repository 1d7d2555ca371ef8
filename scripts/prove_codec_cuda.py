"""Compare the codec with NVIDIA's own conversion instructions, on all 2^32 float32 numbers.

    python scripts/prove_codec_cuda.py --check tests/digests/codec.txt
    python scripts/prove_codec_cuda.py --write digests.txt

The script needs a GPU of compute capability 8.9 or newer and CuPy, but nothing of this
package. The GPU runs `cvt.rn.satfinite.e4m3x2.f32` and `.e5m2x2.f32` (PTX ISA)
on every bit pattern. The SHA-256 of its codes, per block of 2^24, is
compared with the digests that scripts/prove_codec.py wrote for the saturating
mode. The exit code is 1 on any difference.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

BLOCKS = 256
BLOCK_SIZE = 1 << 24

SOURCE = r"""
extern "C" __global__ void NAME(unsigned int begin, unsigned short *codes)
{
    unsigned int pair = blockIdx.x * blockDim.x + threadIdx.x;
    float low = __uint_as_float(begin + 2 * pair), high = __uint_as_float(begin + 2 * pair + 1);
    unsigned short both;
    asm("cvt.rn.satfinite.TYPEx2.f32 %0, %1, %2;" : "=h"(both) : "f"(high), "f"(low));
    codes[pair] = both;
}
"""


def digests(name: str, instruction_type: str) -> list[str]:
    """Make the lines of the digest file for one format: name, mode, block, SHA-256."""
    import cupy  # noqa: PLC0415 (--help works without it)

    source = SOURCE.replace("NAME", "convert").replace("TYPE", instruction_type)
    kernel = cupy.RawKernel(source, "convert")
    codes = cupy.empty(BLOCK_SIZE // 2, cupy.uint16)
    threads = 256
    lines = []
    for index in range(BLOCKS):
        codes.fill(0xAAAA)
        begin = cupy.uint32(index * BLOCK_SIZE)
        kernel((codes.size // threads,), (threads,), (begin, codes))
        digest = hashlib.sha256(codes.get().tobytes()).hexdigest()
        lines.append(f"{name} saturate {index:02x} {digest}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", type=Path, metavar="FILE", help="compare with the digests")
    action.add_argument("--write", type=Path, metavar="FILE", help="write the GPU's digests")
    arguments = parser.parse_args()

    import cupy  # noqa: PLC0415

    device = cupy.cuda.runtime.getDeviceProperties(0)
    print(f"{device['name'].decode()}, compute capability {device['major']}.{device['minor']}")
    lines = digests("E4M3FN", "e4m3") + digests("E5M2", "e5m2")
    if arguments.write:
        arguments.write.write_text("\n".join(lines) + "\n")
        return
    known = set(arguments.check.read_text().splitlines())
    wrong = [line for line in lines if line not in known]
    print(f"{len(lines) - len(wrong)} of {len(lines)} blocks of 2^24 equal")
    if wrong:
        print("\n".join(wrong[:5]))
        sys.exit(1)


if __name__ == "__main__":
    main()

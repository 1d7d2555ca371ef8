"""Run a kit's E4M3 products through `torch._scaled_mm` on a GPU and verify its sums.

    python scripts/verify_scaled_mm_cuda.py [--kit KIT] [--json FILE]

The script needs a GPU of compute capability 8.9 or newer and torch. Each of the kit's sums
of E4M3 codes is computed twice, with fast accumulation and without, with scales of 1
and a float32 result. A tile is put into a larger product, with zeros around it, because
the library splits K if a result is small. Then, for each of the two:

- the sums are verified with the kit in the profiles bit-exact (whose diagnosis should
  name the tensor core's accumulator) and accumulate-order;
- and compared with `npfp8.matmul` in the modes "hopper-fast" and "hopper".

The exit code is 1 if a sum differs from the mode of a Hopper GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.kit import Kit, open_kit, verify
from npfp8 import E4M3FN, QuantizedTensor, matmul

Array = npt.NDArray[Any]
#: ``(a codes (M, K), b codes (K, N), fast) -> float32 (M, N)``.
Product = Callable[[Array, Array, bool], Array]

MODES = {True: "hopper-fast", False: "hopper"}

#: Rows and columns of the larger product around a tile; K is padded to a multiple of 16.
ROOM = 1024


def padded(codes: Array, rows: int, columns: int) -> Array:
    """Append zeros to codes."""
    out = np.zeros((rows, columns), np.uint8)
    out[: codes.shape[0], : codes.shape[1]] = codes
    return out


def scaled_mm(a: Array, b: Array, fast: bool) -> Array:
    """Multiply E4M3 codes on the GPU."""
    import torch  # noqa: PLC0415 (not where a stand-in is tested)

    k = -(-a.shape[1] // 16) * 16
    left = torch.from_numpy(padded(a, ROOM, k)).cuda().view(torch.float8_e4m3fn)
    right = torch.from_numpy(padded(np.ascontiguousarray(b.T), ROOM, k)).cuda()
    one = torch.ones((), dtype=torch.float32, device="cuda")
    result = torch._scaled_mm(
        left,
        right.view(torch.float8_e4m3fn).t(),
        scale_a=one,
        scale_b=one,
        out_dtype=torch.float32,
        use_fast_accum=fast,
    )
    return result.cpu().numpy()[: a.shape[0], : b.shape[1]]


def verify_products(kit: Kit, product: Product) -> dict[str, Any]:
    """Compute the kit's E4M3 sums by ``product``, and report what they agree with."""
    cases = [
        case
        for case in kit.cases("sum")
        if case.attributes["a"]["fmt"] == case.attributes["b"]["fmt"] == "E4M3FN"
        and case.inputs["a"].ndim == case.inputs["b"].ndim == 2
        and "block" not in case.attributes  # a sum for each run of K
    ]
    report: dict[str, Any] = {"cases": len(cases)}
    for fast, mode in MODES.items():
        found = {case.name: product(case.inputs["a"], case.inputs["b"], fast) for case in cases}
        unlike = []
        for case in cases:
            a, b = (
                QuantizedTensor(case.inputs[name], np.float32(1), E4M3FN) for name in ("a", "b")
            )
            modelled = matmul(a, b, mode)
            if not np.array_equal(modelled.view(np.uint32), found[case.name].view(np.uint32)):
                unlike.append(case.name)
        exact = verify(kit, found)
        report[mode] = {
            "unlike_mode": unlike,
            "bit_exact": exact.as_json(),
            "unknown_cause": [d.name for d in exact.differences if d.root and not d.causes],
            "accumulate_order": dict(verify(kit, found, "accumulate-order").failures),
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kit", default="bert-tiny-sst2")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = verify_products(open_kit(arguments.kit), scaled_mm)
    for mode in MODES.values():
        found = report[mode]
        print(
            f"{mode}: {report['cases']} cases, {len(found['unlike_mode'])} unlike the mode, "
            f"{len(found['bit_exact']['differences'])} unlike the kit's exact sums, "
            f"{len(found['unknown_cause'])} of them with no known cause, "
            f"{len(found['accumulate_order'])} beyond what an order of float32 sums explains"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(report[mode]["unlike_mode"] for mode in MODES.values()))


if __name__ == "__main__":
    sys.exit(main())

"""What quantization did to the elements of an operand: how many saturated, how many vanished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8 import FloatFormat, QuantizedTensor
from npfp8.scaling import spread

__all__ = ["Counts", "OperandCounts", "added"]

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OperandCounts:
    """Elements of one operand of a site, over a run or several."""

    elements: int = 0
    saturated: int = 0  # beyond the largest finite value
    underflowed: int = 0  # not zero, but the code of zero

    @staticmethod
    def of(x: Float32Array, q: QuantizedTensor) -> OperandCounts:
        """The counts of the elements of ``x`` that became ``q``."""
        return OperandCounts(x.size, *_saturated_and_underflowed(x, q))

    def __add__(self, other: OperandCounts) -> OperandCounts:
        return OperandCounts(
            self.elements + other.elements,
            self.saturated + other.saturated,
            self.underflowed + other.underflowed,
        )


#: By ``site:a`` and ``site:b``.
Counts = Mapping[str, OperandCounts]


def added(runs: Iterable[Counts]) -> dict[str, OperandCounts]:
    """The counts of several runs together."""
    total: dict[str, OperandCounts] = {}
    for counts in runs:
        for name, count in counts.items():
            total[name] = total[name] + count if name in total else count
    return total


def _saturated_and_underflowed(x: Float32Array, q: QuantizedTensor) -> tuple[int, int]:
    fmt = q.fmt
    if q.zero_point is not None:
        # Beyond the range: a code at its end whose value is not within half a scale.
        ends = (q.codes == fmt.max_code) | (q.codes == 0)
        off = np.abs(x - q.dequantize()) > 0.5000001 * spread(q.scale, q.shape, q.axis, q.block)
        zeros = q.codes == spread(q.zero_point, q.shape, q.axis, q.block)
        return int(np.count_nonzero(ends & off)), int(np.count_nonzero(zeros & (x != 0)))
    # Of the codes first, whose bytes are fewer. A float's sign bit is taken off.
    floats = fmt if isinstance(fmt, FloatFormat) else None
    if floats is None:
        magnitudes = np.abs(q.codes)
    else:
        magnitudes = q.codes & np.uint8((floats.sign_bit or 256) - 1)
    saturated = 0
    if magnitudes.max(initial=0) >= fmt.max_code:
        largest = magnitudes >= fmt.max_code
        scales = spread(q.scale, q.shape, q.axis, q.block)
        if scales.ndim:
            scales = np.broadcast_to(scales, x.shape)[largest]
        signed = floats is None or floats.signed  # negative numbers of others are NaN
        with np.errstate(over="ignore"):
            quotients = (np.abs(x[largest]) if signed else x[largest]) / scales
        # A scale from the largest element itself may round to just beyond.
        saturated = int(np.count_nonzero(quotients > fmt.max * (1 + 2.0**-20)))
    not_zero = int(np.count_nonzero(magnitudes))
    if not_zero == x.size or (floats is not None and not floats.has_zero):
        return saturated, 0
    if floats is not None and floats.sign_bit in floats.nan_codes:  # a NaN of zero's magnitude
        not_zero += int(np.count_nonzero(q.codes == floats.sign_bit))
    return saturated, int(np.count_nonzero(x != 0)) - not_zero

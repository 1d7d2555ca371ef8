"""What quantization did to the elements of an operand: how many saturated, how many vanished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Counts", "OperandCounts", "added"]


@dataclass(frozen=True)
class OperandCounts:
    """Elements of one operand of a site, over a run or several."""

    elements: int = 0
    saturated: int = 0  # beyond the largest finite value
    underflowed: int = 0  # not zero, but the code of zero

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

"""Counts of the elements that quantization saturated or rounded to zero."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["Counts", "OperandCounts", "added"]


@dataclass(frozen=True)
class OperandCounts:
    """Counts of the elements of one operand of a site, over one or several runs."""

    elements: int = 0
    saturated: int = 0  # beyond the largest finite value
    underflowed: int = 0  # not zero, but rounded to the code of zero

    def __add__(self, other: OperandCounts) -> OperandCounts:
        return OperandCounts(
            self.elements + other.elements,
            self.saturated + other.saturated,
            self.underflowed + other.underflowed,
        )


#: The counts by ``site:a`` and ``site:b``.
Counts = Mapping[str, OperandCounts]


def added(runs: Iterable[Counts]) -> dict[str, OperandCounts]:
    """Add up the counts of several runs."""
    total: dict[str, OperandCounts] = {}
    for counts in runs:
        for name, count in counts.items():
            total[name] = total[name] + count if name in total else count
    return total

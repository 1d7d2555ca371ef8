"""The modes of the test vectors: a rounding and what becomes of an overflow, in words too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["DECODE", "DEFAULT_MODES", "MODES", "Mode"]

#: The mode of the direction from codes to numbers, which is exact: there is one.
DECODE = "decode"


class Mode(NamedTuple):
    """Arguments of :func:`npfp8.encode`, and their meaning in words."""

    saturate: bool
    rounding: str
    rule: str
    overflow: str = "ieee"
    bit_count: int | None = None


_ROUNDINGS = {
    "nearest": "to the nearest value, ties to the even significand",
    "nearest_away": "to the nearest value, ties away from zero",
    "nearest_toward_zero": "to the nearest value, ties toward zero",
    "toward_zero": "to the nearest value not larger in magnitude",
    "up": "to the nearest value not smaller (toward +infinity)",
    "down": "to the nearest value not larger (toward -infinity)",
    "odd": "an inexact number to the neighbouring value with the odd significand",
    "stochastic": "away from zero if the first {n} bits cut off plus the {n} random bits carry, "
    "else toward zero",
}
_SATURATING = "what lies beyond the largest finite value, infinity included, becomes that value"
_SPECIAL = (
    "what rounds beyond the largest finite value becomes infinity, NaN in a format without, the "
    "largest value in one with neither"
)
_IEEE = {
    "toward_zero": "a finite number beyond the largest finite value becomes that value",
    "odd": "a finite number beyond the largest finite value becomes that value",
    "up": "a finite number beyond the largest finite value becomes that value if it is negative, "
    "and infinity if it is positive",
    "down": "a finite number beyond the largest finite value becomes that value if it is "
    "positive, and -infinity if it is negative",
}


def _modes() -> Iterator[tuple[str, Mode]]:
    """List the modes: first those of the files that are written by default."""

    def mode(rounding: str, end: str, saturate: bool, overflow: str = "ieee") -> Mode:
        return Mode(saturate, rounding, f"{_ROUNDINGS[rounding]}; {end}", overflow)

    yield "nearest-saturating", mode("nearest", _SATURATING, True)
    yield "nearest", mode("nearest", _SPECIAL, False)
    yield "toward-zero", mode("toward_zero", _SATURATING, True)
    for rounding in ("nearest_away", "nearest_toward_zero"):
        name = rounding.replace("_", "-")
        yield f"{name}-saturating", mode(rounding, _SATURATING, True)
        yield name, mode(rounding, _SPECIAL, False)
    infinite = "infinity stays infinity (NaN in a format without)"
    for rounding in ("toward_zero", "up", "down", "odd"):
        name = rounding.replace("_", "-")
        if rounding != "toward_zero":
            yield f"{name}-saturating", mode(rounding, _SATURATING, True)
        yield f"{name}-ieee", mode(rounding, f"{_IEEE[rounding]}; {infinite}", False)
        yield f"{name}-special", mode(rounding, _SPECIAL, False, "special")
    for count in (8, 13, 16):
        start = _ROUNDINGS["stochastic"].format(n=count)
        for end, saturate in (("-saturating", True), ("", False)):
            rule = f"{start}; {_SATURATING if saturate else _SPECIAL}"
            yield f"stochastic-{count}{end}", Mode(saturate, "stochastic", rule, "ieee", count)


#: The rounding modes, by their part of a file's name.
MODES: Mapping[str, Mode] = MappingProxyType(dict(_modes()))

#: The modes that are written unless others are asked for.
DEFAULT_MODES = (*list(MODES)[:3], DECODE)

"""Defects with a number that is read off the candidate's own tensor.

They are looked for after all others, as a number that is free explains more than one that is not.
Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bert_numpy.kit.operand_defects import FOUND, Alone, Named
from bert_numpy.kit.operations import OPERATIONS, Attributes, Inputs
from npfp8.arrays import Array
from npfp8.formats import FORMATS, FloatFormat, IntFormat

__all__ = ["fitted_defects"]

#: A scale is fitted to no fewer differing codes than these: one or two fit by chance.
_LEAST = 8


def fitted_defects() -> Iterator[list[Named]]:
    """Yield tiers of names and defective operations."""
    yield [
        ("a larger scale than the given one, as with a floor under it", _scaled(larger=True)),
        ("a smaller scale than the given one, as with a limit to it", _scaled(larger=False)),
    ]


def _scaled(*, larger: bool) -> Alone:
    """Make a quantization by the one scale that makes every code of the candidate's, if any."""

    def quantize(inputs: Inputs, attributes: Attributes) -> Array | None:
        if FOUND not in inputs or attributes.get("axis") is not None or inputs["scale"].ndim:
            return None
        right = OPERATIONS["quantize"]({**inputs}, attributes)
        found = inputs[FOUND]
        if right.shape != found.shape or (right != found).sum() < _LEAST:
            return None
        for scale in _scales(inputs, attributes):
            if (scale > inputs["scale"]) == larger:
                codes = OPERATIONS["quantize"]({**inputs, "scale": scale}, attributes)
                if np.array_equal(codes, found):
                    return codes
        return None

    return Alone(quantize=quantize)


def _scales(inputs: Inputs, attributes: Attributes) -> Iterator[Array]:
    """Yield scales that may make the candidate's codes, those of few digits first.

    The quotient of a number and the scale lies between the middles to the values beside its
    code's. So each number bounds the scale.
    """
    low, high = _quotients(inputs, attributes)
    x = np.abs(inputs["x"].astype(np.float64))
    use = np.isfinite(x) & (x > 0) & (high > 0)
    with np.errstate(divide="ignore"):
        least, most = (x[use] / high[use]).max(initial=0), (x[use] / low[use]).min(initial=np.inf)
    if not 0 < least <= most < np.inf:
        return
    middle = (least + most) / 2
    short = [float(f"{middle:.{digits}g}") for digits in range(1, 10)]
    for scale in dict.fromkeys([*short, middle]):
        if least <= scale <= most:
            yield np.asarray(scale, np.float32)


def _quotients(inputs: Inputs, attributes: Attributes) -> tuple[Array, Array]:
    """Return the least and the largest magnitude of a quotient that has the candidate's code."""
    fmt, codes = FORMATS[attributes["fmt"]], inputs[FOUND]
    if isinstance(fmt, IntFormat):
        zero_point = int(inputs["zero_point"]) if "zero_point" in inputs else 0
        whole = np.abs(codes.astype(np.float64) - zero_point)
        ends = (codes == fmt.min_code) | (codes == fmt.max_code)
        return np.maximum(whole - 0.5, 0), np.where(ends, np.inf, whole + 0.5)
    assert isinstance(fmt, FloatFormat)
    values = fmt.grid[:-1]
    middles = (values[1:] + values[:-1]) / 2
    place = np.searchsorted(values, np.abs(fmt.values[codes]))  # behind all for a NaN
    padded = np.concatenate([[0], middles, [np.inf, np.inf]])
    return padded[place], padded[np.minimum(place + 1, padded.size - 1)]

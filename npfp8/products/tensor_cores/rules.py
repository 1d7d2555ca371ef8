"""The rules by which tensor cores add the products of a step to their accumulator.

Each takes the accumulator and the products of a step, for a tile of results, and returns the
next accumulator. The numbers are an :class:`~npfp8.products.accumulator.Accumulator`'s; F is
its ``fraction_bits``.

They are written in float64 and for all operands and records. Most products go another way to
the same bits, :mod:`npfp8.products.tensor_cores.narrow`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from npfp8.arrays import Array, Float64Array
from npfp8.products.accumulator import Accumulator
from npfp8.products.rounding import round_to_nearest, round_toward_zero
from npfp8.products.tensor_cores.steps import Cut, Int64Array, Step, exponent_of, power_of_two

__all__ = ["RULES", "Rule", "toward_zero"]

#: Below and above the exponents of all products that are not zero, and of all accumulators.
_NO_PRODUCT, _INFINITE = -600, 600

#: The accumulator is float64 here, and float32 in :mod:`npfp8.products.tensor_cores.narrow`.
Rule = Callable[[Any, Step, Accumulator], Array]


def add_fused(total: Float64Array, step: Step, how: Accumulator) -> Float64Array:
    """Cut off the products and the accumulator alike, add them, and round the sum.

    ``e`` is the largest exponent of all of them, and of a zero accumulator
    ``least_exponent``. Everything is cut off toward zero to multiples of ``2^(e - F)`` and
    added exactly.

    With block scales (``mxf8f6f4``), their exponents are part of each product's.
    """
    unit = np.maximum(step.largest(), _exponent(total, how)) - how.fraction_bits
    per_unit = power_of_two(-unit)
    terms = step.truncated(per_unit, toward_zero(how))
    terms += np.trunc(total * per_unit)
    terms *= power_of_two(unit)
    return _rounded(terms, step, how)


def add_groups(total: Float64Array, step: Step, how: Accumulator) -> Float64Array:
    """Add the products of each group exactly; then the groups' sums as :func:`add_fused` does.

    A group's sum is multiplied by the significands of its two scales, and its exponent is the
    sum of their exponents, whatever its products' are: ``least_exponent`` where all of its
    products are zero, or a scale is.
    """
    groups = list(step.runs(how.group))
    largest = np.maximum.reduce([_exponent_of_group(group, how) for group in groups])
    unit = np.maximum(largest, _exponent(total, how)) - how.fraction_bits
    per_unit = power_of_two(-unit)
    terms = np.trunc(total * per_unit)
    for group in groups:
        sums = group.sums()
        sums *= per_unit
        terms += np.trunc(sums, out=sums)
    terms *= power_of_two(unit)
    return _rounded(terms, step, how)


def add_dot(total: Float64Array, step: Step, how: Accumulator) -> Float64Array:
    """Add the products to each other, cut off; then that sum to the accumulator, both floored.

    The products of even and of odd k are two such sums if ``apart`` is 2. They are floored at
    ``2^(e - F)``, ``e`` their larger exponent, before they are added.

    With ``e`` now the larger exponent of this sum and of the accumulator, the sum is floored
    at ``2^(e - sum_bits - 1)`` and the accumulator at ``2^(e - F)``; if ``apart`` is 2, an
    accumulator below ``2^(e - F - 1)`` is dropped. What they add up to is floored at
    ``sum_bits`` after its leading bit and rounded to nearest. A product beyond the largest
    number of the accumulator's type is infinite.
    """
    halves = step.halves(how.apart)
    exponents = [np.maximum(half.largest(), _NO_PRODUCT, dtype=np.int64) for half in halves]
    sums = []
    for half, exponent in zip(halves, exponents, strict=True):
        unit = exponent - how.fraction_bits
        sums.append(half.truncated(power_of_two(-unit), toward_zero(how)))
        sums[-1] *= power_of_two(unit)
    e = np.maximum.reduce(exponents)
    dot = sums[0]
    if len(sums) == 2:
        dot = np.add(*(_floor(half, e - how.fraction_bits) for half in sums))
    own = _exponent(total, how)
    e = np.maximum(e, own)
    kept = _floor(total, e - how.fraction_bits)
    if how.apart == 2:
        kept[own < e - how.fraction_bits - 1] = 0.0
    overflow = step.overflows(how.emax) if (e >= how.emax).any() else None
    terms = _floor(dot, e - (how.sum_bits + 1))
    terms += kept
    terms = _floor(terms, np.clip(exponent_of(terms), how.emin, how.emax + 1) - how.sum_bits)
    if overflow is not None:
        terms += overflow
    return _rounded(terms, step, how)


def toward_zero(how: Accumulator) -> Cut:
    """Return how a rule's products are cut off."""
    return lambda step, per_unit: step.cut_toward_zero(per_unit, how.fraction_bits)


def _exponent_of_group(group: Step, how: Accumulator) -> Array:
    exponent, some = group.scale_exponents(), group.some()
    return exponent if some is None else np.where(some, exponent, how.least_exponent)


def _exponent(total: Float64Array, how: Accumulator) -> Int64Array:
    """Return the exponent of the accumulator, as its type has it; a large one if it is infinite."""
    exponent: Int64Array = exponent_of(total)
    np.maximum(exponent, how.emin, out=exponent)
    np.minimum(exponent, _INFINITE, out=exponent)
    zero = total == 0
    if zero.any():
        exponent[zero] = how.least_exponent
    return exponent


def _floor(x: Float64Array, unit: Int64Array) -> Float64Array:
    floored = x * power_of_two(-unit)
    np.floor(floored, out=floored)
    floored *= power_of_two(unit)
    return floored


def _rounded(terms: Float64Array, step: Step, how: Accumulator) -> Float64Array:
    specials = step.specials()
    if specials is not None:
        terms += specials
    (round_to_nearest if how.nearest else round_toward_zero)(
        terms, how.precision, how.emin, how.emax
    )
    return terms


RULES: dict[str, Rule] = {"fused": add_fused, "groups": add_groups, "dot": add_dot}

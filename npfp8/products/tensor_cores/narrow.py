"""The rules "fused" and "dot" for usual operands, in float32 and int32 as far as they hold all.

The results are those of :mod:`npfp8.products.tensor_cores.rules`, bit for bit. What is less:

- The accumulator is float32. Exponents are never taken apart from their numbers: a float32
  without its sign and fraction is ``2^e``, and the integers of such bits are compared, and
  subtracted to divide. Let "power" be the int32 bits of a power of two in float32.
- Nothing here has an exponent out of the range of normal float32 numbers. Operands are within
  ``2^+-36`` (:class:`~npfp8.products.tensor_cores.terms.Terms` in float32). With 8 significant
  bits in a bfloat16, or as float16 or codes, all products are multiples of 2^-86. Cutting off
  at a unit, or flooring, or rounding leaves a multiple of 2^-86 what it is, and so an
  accumulator that is not zero is at least 2^-86. ``e`` is raised to :data:`_SMALLEST` at
  least, below all of these, which only changes steps in which all terms are zero.
- So an accumulator is never subnormal in float32, and the exponent ``least_exponent`` of a
  zero, at most -126, is never the largest. In a float16 accumulator it may be.

A product has at most 22 significant bits, in float16, so float32 holds it. It is a multiple of
its own lowest bit in any unit; where it is far below the unit, it may become a subnormal number
or zero, and is cut off to zero all the same.

The fused rule with few fraction bits
-------------------------------------
In units of ``2^(e - f)`` a product is below 2^(f + 2), the accumulator below 2^(f + 1) and
their sum below ``(2 step + 1) 2^(f + 1)``. Where that is at most 2^24 (FP8 on Hopper and Ada:
below 2^21), the cut-off terms are integers that float32 adds exactly in any order, so the
products of a step go through a few float32 operations over a tile of results, with no table
and no branch: the speed does not depend on the data. Cutting the sum off is clearing bits.

With more fraction bits the sum is added in float64, see
:mod:`npfp8.products.tensor_cores.steps`; cut off there, it is a float32 number.
"""

from __future__ import annotations

import numpy as np

from npfp8.arrays import Array, Float32Array, Float64Array
from npfp8.products.accumulator import Accumulator
from npfp8.products.rounding import round_to_nearest
from npfp8.products.tensor_cores.rules import Rule, toward_zero
from npfp8.products.tensor_cores.steps import Powers, Step

__all__ = ["narrow_rule"]

#: Below the exponents of accumulators and products that are not zero; 2^35, the largest number
#: of units in the power of an accumulator, over this one is still a float32.
_SMALLEST = -90

#: One place of the exponent of a float32, and the exponent of 1.
_PLACE, _BIAS = 1 << 23, 127

_FLOAT16 = {"precision": 11, "emin": -14, "emax": 15}
_FLOAT32 = {"emin": -126, "emax": 127}


def narrow_rule(how: Accumulator) -> Rule | None:
    """Return the rule of an accumulator for operands in float32, if there is one here."""

    def rounds(**numbers: int) -> bool:
        return all(getattr(how, name) == number for name, number in numbers.items())

    if how.fraction_bits < 2:  # 2^(f - 128), of an infinite accumulator, must be normal
        return None
    if how.kind == "fused" and rounds(**(_FLOAT16 if how.nearest else _FLOAT32)):
        return add_fused
    if how.kind == "dot" and how.nearest and rounds(**_FLOAT32, precision=24):
        return add_dot if how.sum_bits <= _SUM_BITS else None
    return None


#: A unit ``2^(e - sum_bits - 1)`` must be a normal float32, with ``e`` from _SMALLEST on.
_SUM_BITS = 34


def add_fused(total: Float32Array, step: Step, how: Accumulator) -> Float32Array:
    """Return the next accumulator, as :func:`npfp8.products.tensor_cores.rules.add_fused`."""
    e = step.powers()
    # In a float16 accumulator, subnormal numbers and 0 have exponents that may count.
    may_count = how.emin > _FLOAT32["emin"] and e.min(initial=_power(0)) < _power(how.emin)
    np.maximum(e, _power_of(total), out=e)
    np.maximum(e, _power(_SMALLEST), out=e)
    if may_count:
        own = np.where(total == 0, _power(how.least_exponent), _power(how.emin))
        np.maximum(e, own, out=e)
    per_unit = _inverse(e, how.fraction_bits)
    e -= how.fraction_bits * _PLACE
    unit = e.view(np.float32)
    total = np.multiply(total, per_unit)
    np.trunc(total, out=total)
    if (2 * how.step + 1) << (how.fraction_bits + 1) <= 1 << 24:
        terms: Array = step.products()
        terms *= per_unit
        np.trunc(terms, out=terms)
        terms = np.add.reduce(terms, axis=0)
    else:
        terms = step.truncated(per_unit, toward_zero(how))
    terms += total
    if not how.nearest:
        terms = _cut_bits(terms, how.precision)
        terms *= unit
        return _with_specials(terms, step)
    terms *= unit
    terms = _with_specials(terms, step)
    _round_to_float16(terms)
    return terms.astype(np.float32, copy=False)


def add_dot(total: Float32Array, step: Step, how: Accumulator) -> Float32Array:
    """Return the next accumulator, as :func:`npfp8.products.tensor_cores.rules.add_dot`.

    No product or sum is beyond the accumulator's type, and none below: the last floor is that
    to ``sum_bits + 1`` significant bits.
    """
    dot, products = _sum_of_products(step, how)
    e = np.maximum(products, _power_of(total))
    # The sum is in units of 2^(products - F), from here on of 2^(e - sum_bits - 1).
    fine = how.sum_bits + 1 - how.fraction_bits
    products -= e
    products += _power(fine)
    _floor(dot, products)
    # In float64, as a small accumulator in a large unit may be too small for float32.
    kept = total.astype(np.float64)
    kept *= _inverse(e, how.fraction_bits)
    if how.apart == 2:
        dropped = (kept < 0) & (kept > -0.5)
        if dropped.any():
            kept[dropped] = 0.0
    np.floor(kept, out=kept)
    kept *= 1 << fine
    dot += kept
    _floor_bits(dot, how.sum_bits + 1)
    terms = dot.astype(np.float32)  # rounds to nearest
    e -= (how.sum_bits + 1) * _PLACE
    terms *= e.view(np.float32)
    return _with_specials(terms, step)


def _sum_of_products(step: Step, how: Accumulator) -> tuple[Float64Array, Powers]:
    """Return the sum of cut-off products, in units F below the largest power, and this power."""
    largest = step.powers()
    np.maximum(largest, _power(_SMALLEST), out=largest)
    per_unit = _inverse(largest, how.fraction_bits)
    if how.apart == 1:
        return step.truncated(per_unit, toward_zero(how)), largest

    def cut(step: Step, per_unit: Float32Array) -> Float64Array:
        """Cut off to the unit of each half, and floor to the larger of them."""
        total = np.zeros(per_unit.shape)
        for half in step.halves(how.apart):
            power = _powers(half.largest())
            of_half = _inverse(power, how.fraction_bits)
            part = half.cut_toward_zero(of_half, how.fraction_bits)
            # 2^(the exponent of the half - the larger one)
            power += per_unit.view(np.int32)
            power -= _power(how.fraction_bits)
            _floor(part, power)
            total += part
        return total

    # What loses no bit in the larger unit, loses none in the smaller.
    return step.truncated(per_unit, cut), largest


def _floor(x: Float64Array, power: Powers) -> None:
    """Multiply integers by powers, and floor, in place; the powers may be below float32's.

    From there on, the floors of integers below 2^126 are the same: 0 or -1.
    """
    np.maximum(power, _power(-126), out=power)
    x *= power.view(np.float32)
    np.floor(x, out=x)


def _floor_bits(x: Float64Array, precision: int) -> None:
    """Floor numbers to some significant bits, in place: away from zero if they are negative.

    As the bits of a float64 are in the order of its magnitude, a carry into the exponent is
    right. Infinity and the NaN of a processor have no bit to drop.
    """
    bits = x.view(np.int64)
    dropped = (1 << 53 - precision) - 1
    carry = bits >> 63
    carry &= dropped
    bits += carry
    bits &= ~dropped


def _cut_bits(x: Array, precision: int) -> Float32Array:
    """Cut numbers of float32 or float64 off to some significant bits; they are overwritten."""
    integer, bits = (np.int32, 24) if x.dtype == np.float32 else (np.int64, 53)
    x.view(integer)[...] &= -1 << bits - precision
    return x.astype(np.float32, copy=False)


def _round_to_float16(x: Array) -> None:
    """Round numbers of float32 or float64 to the nearest float16, in place.

    See :func:`npfp8.products.rounding.round_to_nearest`. The step of float32 at 1.5 times
    2^(e + 13) is that of float16 at 2^e.
    """
    if x.dtype == np.float64:
        round_to_nearest(x, _FLOAT16["precision"], _FLOAT16["emin"], _FLOAT16["emax"])
        return
    power = _power_of(x)
    np.maximum(power, _power(_FLOAT16["emin"]), out=power)
    power += (24 - _FLOAT16["precision"]) * _PLACE + _PLACE // 2
    c = power.view(np.float32)
    x += c
    x -= c
    x *= np.float32(2.0**112)  # the ranges of the two types end together
    x /= np.float32(2.0**112)


def _with_specials(terms: Array, step: Step) -> Array:
    specials = step.specials()
    if specials is not None:
        terms += specials.astype(terms.dtype)
    return terms


def _power(exponent: int) -> int:
    return (exponent + _BIAS) * _PLACE


def _inverse(powers: Powers, fraction_bits: int) -> Float32Array:
    """Return 2^F over the numbers of these powers."""
    # The constant is beyond int32. It wraps around, and so does the difference: back.
    constant = np.array(_power(fraction_bits) + _power(0)).astype(np.int32)
    return (constant - powers).view(np.float32)


def _power_of(x: Float32Array) -> Powers:
    """Return the power that a number starts with: of zero 0, of infinity and NaN the largest."""
    return x.view(np.int32) & (0xFF * _PLACE)


def _powers(exponents: Array) -> Powers:
    """Return the powers of exponents, from :data:`_SMALLEST` on."""
    powers = np.maximum(exponents, _SMALLEST).astype(np.int32)
    powers += _BIAS
    powers <<= 23
    return powers

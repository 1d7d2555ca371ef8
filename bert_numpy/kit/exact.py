"""The exact sums of a kit's products, as integers: what a hardware accumulator holds.

A product's ``sum`` in the kit is the exact sum of all products of K, rounded once to float32. An
accumulator that is wide enough holds it before it is rounded: an integer, in units of a power of
two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bert_numpy.kit.manifest import Tensor
from npfp8 import decode
from npfp8.arrays import Array, chunks
from npfp8.formats import FORMATS, Format
from npfp8.scaling import spread

__all__ = ["ExactSum", "exact_sum"]

Inputs = Mapping[str, Array]

#: int64 or, where they do not suffice, Python's integers.
Integers = npt.NDArray[Any]


class ExactSum(NamedTuple):
    """Exact sums: ``integers * 2**unit``, wherever ``known``.

    Attributes
    ----------
    unit : int
        The exponent of the unit.
    integers : ndarray of int64 or object
        0 where the sum is not known.
    known : ndarray of bool
        False where an operand makes the sum NaN or infinite.
    """

    unit: int
    integers: Integers
    known: npt.NDArray[np.bool_]

    @property
    def bits(self) -> int:
        """The bits of a two's complement accumulator that holds every one of these sums."""
        numbers = [int(number) for number in self.integers.reshape(-1)]
        return 1 + max((n if n >= 0 else ~n).bit_length() for n in [0, *numbers])


class _Numbers(NamedTuple):
    """Finite numbers as integers in a unit, and where the others are (0 there)."""

    unit: int
    integers: Integers
    finite: npt.NDArray[np.bool_]


def exact_sum(tensor: Tensor, inputs: Inputs) -> ExactSum | None:
    """Return the exact sums that a product's tensor is rounded from; None if it is none.

    Parameters
    ----------
    tensor : Tensor
    inputs : mapping of str to ndarray
        The operation's inputs by role, in their views.
    """
    how = tensor.attributes
    if how.get("accumulate", "exact") != "exact":
        return None
    if tensor.operation == "product":
        a, b = (_integers(inputs[name]) for name in ("a", "b"))
        return _products(a, b)
    if tensor.operation == "block_sum":
        a, b = (_scaled(name, inputs, how[name]) for name in ("a", "b"))
        return _products(a, b)
    if tensor.operation != "sum":
        return None
    a, b = (_codes(name, inputs, how[name]) for name in ("a", "b"))
    if (block := how.get("block")) is None:
        return _products(a, b)
    parts = [
        _products(_part(a, (..., ks)), _part(b, (..., ks, slice(None))))
        for ks in chunks(a.integers.shape[-1], block)
    ]
    integers = np.stack([part.integers for part in parts])
    return ExactSum(parts[0].unit, integers, np.stack([part.known for part in parts]))


def _part(numbers: _Numbers, index: Any) -> _Numbers:
    return _Numbers(numbers.unit, numbers.integers[index], numbers.finite[index])


def _codes(name: str, inputs: Inputs, how: Mapping[str, Any]) -> _Numbers:
    """Return the values of an operand's codes, less its zero point, in the format's unit."""
    fmt = FORMATS[how["fmt"]]
    x = decode(inputs[name], fmt).astype(np.float64)
    zero_point = inputs.get(f"{name}_zero_point")
    if zero_point is not None:
        shape = [1] * x.ndim
        if zero_point.ndim:
            shape[how["axis"]] = -1
        x = x - zero_point.astype(np.float64).reshape(shape)
    return _integers(x, _unit(fmt))


def _scaled(name: str, inputs: Inputs, how: Mapping[str, Any]) -> _Numbers:
    """Return the values of an operand's codes times the scales of their blocks."""
    numbers = _codes(name, inputs, how)
    if "scale_fmt" in how:
        values = decode(inputs[f"{name}_scale_codes"], FORMATS[how["scale_fmt"]])
    elif how.get("block") is not None:
        values = inputs[f"{name}_scale"]
    else:
        return numbers
    scales = _integers(values.astype(np.float64))
    shape, axis = numbers.integers.shape, how["axis"] % numbers.integers.ndim
    factors = spread(scales.integers, shape, axis, how["block"])
    finite = numbers.finite & spread(scales.finite, shape, axis, how["block"])
    integers = numbers.integers.astype(object) * factors.astype(object)
    return _Numbers(numbers.unit + scales.unit, np.where(finite, integers, 0), finite)


def _unit(fmt: Format) -> int:
    """Return the exponent of a format's smallest positive value, which all are multiples of."""
    values = fmt.values[np.isfinite(fmt.values)]
    mantissa, exponent = np.frexp(values[values > 0].min())
    assert mantissa == 0.5, fmt
    return int(exponent) - 1


def _integers(x: Array, unit: int | None = None) -> _Numbers:
    """Write numbers as integers, in a unit or in the largest one in which all are integers."""
    finite = np.isfinite(x)
    x = np.where(finite, x, 0).astype(np.float64)
    mantissas, exponents = np.frexp(x)
    odd = np.ldexp(mantissas, 53).astype(np.int64)
    lowest = np.frexp((odd & -odd).astype(np.float64))[1] - 1  # the place of the lowest bit set
    steps = np.where(odd == 0, 0, exponents - 53 + lowest)
    if unit is None:
        unit = int(steps[odd != 0].min(initial=0 if not odd.any() else 1 << 20))
    odd >>= np.where(odd == 0, 0, lowest)
    shifts = steps - unit
    integers = [int(n) << int(s) if n else 0 for n, s in zip(odd.flat, shifts.flat, strict=True)]
    whole = np.array(integers, object).reshape(x.shape)
    if max(map(abs, integers), default=0) < 1 << 62:
        whole = whole.astype(np.int64)
    return _Numbers(unit, whole, finite)


def _products(a: _Numbers, b: _Numbers) -> ExactSum:
    """Sum the products over K, the last axis of ``a`` and the one before the last of ``b``."""
    left, right = a.integers, b.integers
    k = left.shape[-1]
    largest = [max((abs(int(n)) for n in x.flat), default=0) for x in (left, right)]
    if largest[0] * largest[1] * k >= 1 << 62:
        left, right = left.astype(object), right.astype(object)
    total: Integers = np.zeros((), left.dtype)
    for i in range(k):
        total = total + left[..., i, None] * right[..., i, None, :]
    known = np.logical_and.reduce(a.finite, -1, keepdims=True) & np.logical_and.reduce(
        b.finite, -2, keepdims=True
    )
    return ExactSum(a.unit + b.unit, np.where(known, total, 0), known)

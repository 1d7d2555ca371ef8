"""Runs of codes along an axis, and the checks that all functions of layouts share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from npfp8.arguments import integer, loaded, named
from npfp8.arrays import Array
from npfp8.blocks.formats import BLOCK_FORMATS, BlockFormat
from npfp8.formats import Format, as_format
from npfp8.names import match
from npfp8.scaling import normalized_axis

__all__ = [
    "axis_of",
    "bits_of",
    "checked_length",
    "element_format",
    "filled",
    "layout_of",
    "runs_of",
    "whole_groups",
    "with_length",
]

_Layout = TypeVar("_Layout")


def layout_of(given: _Layout | str, kind: type[_Layout], known: Mapping[str, _Layout]) -> _Layout:
    """Return a layout that is given as such or by its name."""
    expected = f"a {kind.__name__} or a name ({', '.join(known)})"
    return loaded("layout", given, kind, lambda name: named("layout", name, known), expected)


def element_format(fmt: Format | str) -> Format:
    """Return the format of codes; raise for a block format, and say which its elements have."""
    known = BLOCK_FORMATS.get(match(fmt, BLOCK_FORMATS) or "") if isinstance(fmt, str) else fmt
    if isinstance(known, BlockFormat):
        raise ValueError(
            f"fmt: expected the format of the codes, {known.element}, found the block format "
            f"{known}"
        )
    return as_format(fmt)


def bits_of(fmt: Format) -> int:
    """Return the width of the codes of a format."""
    return fmt.bits


def axis_of(axis: object, ndim: int) -> int:
    """Return an axis as its non-negative equal."""
    number = normalized_axis(integer("axis", axis), ndim)
    assert number is not None
    return number


def runs_of(x: Array, axis: int) -> Array:
    """Return an array with three axes: those before an axis as one, the axis, those after it."""
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    return x.reshape(before, x.shape[axis], after)


def with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    """Return a shape with another length of one axis."""
    return (*shape[:axis], length, *shape[axis + 1 :])


def filled(runs: Array, multiple: int) -> Array:
    """Fill the middle axis up with zeros to a multiple of a number."""
    before, length, after = runs.shape
    if not (missing := -length % multiple):
        return runs
    return np.concatenate([runs, np.zeros((before, missing, after), runs.dtype)], axis=1)


def whole_groups(nbytes: int, size: int, axis: int, fmt: Format | BlockFormat) -> int:
    """Return the number of groups of ``size`` bytes; raise unless they are whole."""
    count, rest = divmod(nbytes, size)
    if rest:
        raise ValueError(
            f"packed: expected a multiple of {size} bytes along axis {axis} for {fmt}, "
            f"found {nbytes}"
        )
    return count


def checked_length(length: object, count: int, size: int, what: str) -> int:
    """Return the number of codes, all that there are if None is given."""
    last = count * size
    if length is None:
        return last
    found = integer("length", length)
    first = max(last - size + 1, 0)
    if not first <= found <= last:
        raise ValueError(f"length: expected {first}..{last} for {count} {what}, found {found}")
    return found

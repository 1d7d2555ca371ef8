"""Columns of unsigned integers: what a table as text is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import integer, require, wrong_array

__all__ = ["IDENTIFIER", "Column", "c_width", "hex_digits"]

Unsigned = npt.NDArray[np.unsignedinteger[Any]]

#: A name that C accepts.
IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, eq=False)
class Column:
    """A column of a table: unsigned integers of a fixed number of bits.

    Parameters
    ----------
    name : str
        A name that C accepts for a field.
    bits : int
        The width, 1 to 64.
    values : ndarray of unsigned integers, (cases,)
        Each of at most so many bits.

    Raises
    ------
    TypeError
        If a parameter is not of the type stated.
    ValueError
        If the name is not one of C, the width is out of range, or a value is wider.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.vectors.columns import Column
    >>> Column("code", 8, np.uint8([0x38, 0x7E])).digits
    2
    """

    name: str
    bits: int
    values: Unsigned

    def __post_init__(self) -> None:
        require("name", self.name, str, "a str")
        if not IDENTIFIER.fullmatch(self.name):
            raise ValueError(f"name: expected a name of C, found {self.name!r}")
        object.__setattr__(self, "bits", integer("bits", self.bits))
        if not 1 <= self.bits <= 64:
            raise ValueError(f"bits of {self.name}: expected 1 to 64, found {self.bits}")
        require("values", self.values, np.ndarray, "an array")
        if self.values.dtype.kind != "u" or self.values.ndim != 1:
            expected = "unsigned integers of one axis"
            raise wrong_array("values", expected, self.values, self.values)
        largest = int(self.values.max(initial=0))
        if largest >> self.bits:
            raise ValueError(
                f"values of {self.name}: expected at most {self.bits} bits, found {largest:#x}"
            )

    @property
    def digits(self) -> int:
        """The number of hexadecimal digits of a value."""
        return hex_digits(self.bits)


def hex_digits(bits: int) -> int:
    """Return how many hexadecimal digits so many bits have."""
    return -(-bits // 4)


def c_width(bits: int) -> int:
    """Return the bits of C's smallest unsigned type that holds so many."""
    return next(width for width in (8, 16, 32, 64) if bits <= width)

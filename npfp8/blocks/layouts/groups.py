"""Groups: the places of the bits of codes in bytes, and whole groups as bytes and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import integer, wrong_type
from npfp8.arrays import Array

__all__ = ["Bytes", "Group", "Piece", "packed_groups", "unpacked_groups"]

Bytes = npt.NDArray[np.uint8]


class Piece(NamedTuple):
    """Neighbouring bits of a code that stay neighbours in a byte.

    Attributes
    ----------
    code, low : int
        The number of the code in its group, and the lowest of the bits.
    byte, shift : int
        The number of the byte in the group, and the place of the lowest bit there.
    width : int
        The number of bits.

    Examples
    --------
    >>> from npfp8.blocks.layouts import CODE_LAYOUTS
    >>> for piece in CODE_LAYOUTS["low-first"].group(4).pieces:
    ...     print(piece)
    Piece(code=0, low=0, byte=0, shift=0, width=4)
    Piece(code=1, low=0, byte=0, shift=4, width=4)
    """

    code: int
    low: int
    byte: int
    shift: int
    width: int


@dataclass(frozen=True)
class Group:
    """The smallest run of codes that fills whole bytes.

    Attributes
    ----------
    bits : int
        The width of a code.
    codes, nbytes : int
        The number of codes, and of the bytes that they take.
    pieces : tuple of Piece
        The places of all bits of all codes. Bits of the bytes in no piece are 0, and are not
        read.

    Raises
    ------
    TypeError
        If a number is not an integer.
    ValueError
        If a bit of a code has no place or several, or a bit of a byte is that of two codes.

    Examples
    --------
    >>> from npfp8.blocks.layouts import Group, Piece
    >>> Group(bits=4, codes=1, nbytes=1, pieces=(Piece(0, 0, 0, 2, 4),)).codes
    1
    """

    bits: int
    codes: int
    nbytes: int
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        for name, last in (("bits", 8), ("codes", 1 << 16), ("nbytes", 1 << 16)):
            value = integer(name, getattr(self, name))
            object.__setattr__(self, name, value)
            if not 1 <= value <= last:
                raise ValueError(f"{name}: expected 1..{last}, found {value}")
        try:
            pieces = tuple(Piece(*(integer("pieces", part) for part in one)) for one in self.pieces)
        except TypeError:
            raise wrong_type("pieces", "a tuple of pieces of integers", self.pieces) from None
        object.__setattr__(self, "pieces", pieces)
        taken = [(one.code, one.low + i) for one in pieces for i in range(one.width)]
        wanted = [(code, bit) for code in range(self.codes) for bit in range(self.bits)]
        if sorted(taken) != wanted:
            raise ValueError(
                f"pieces: expected each of {self.bits} bits of {self.codes} codes once, "
                f"found {len(taken)} of {len(wanted)} bits, or another"
            )
        places = [8 * one.byte + one.shift + i for one in pieces for i in range(one.width)]
        crossing = any(one.shift < 0 or one.shift + one.width > 8 for one in pieces)
        outside = any(not 0 <= one.byte < self.nbytes for one in pieces)
        if crossing or outside or len(set(places)) < len(places):
            raise ValueError(
                f"pieces: expected places of their own in {self.nbytes} bytes, found {pieces}"
            )


def packed_groups(runs: Array, group: Group) -> Bytes:
    """Pack codes along the middle axis, whose length is a multiple of the group's."""
    before, length, after = runs.shape
    count = length // group.codes
    groups = runs.reshape(before, count, group.codes, after)
    out = np.zeros((before, count, group.nbytes, after), np.uint8)
    for code, low, byte, shift, width in group.pieces:
        part = groups[:, :, code] >> np.uint8(low)
        if low + width < group.bits:
            part &= np.uint8((1 << width) - 1)
        out[:, :, byte] |= part << np.uint8(shift)
    return out.reshape(before, count * group.nbytes, after)


def unpacked_groups(runs: Bytes, group: Group) -> Bytes:
    """Undo :func:`packed_groups`."""
    before, length, after = runs.shape
    count = length // group.nbytes
    groups = runs.reshape(before, count, group.nbytes, after)
    out = np.zeros((before, count, group.codes, after), np.uint8)
    for code, low, byte, shift, width in group.pieces:
        part = (groups[:, :, byte] >> np.uint8(shift)) & np.uint8((1 << width) - 1)
        out[:, :, code] |= part << np.uint8(low)
    return out.reshape(before, count * group.codes, after)

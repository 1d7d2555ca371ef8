"""Layouts of codes: the place of each bit of each code in bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, integer, require, wrong_type
from npfp8.arrays import Array
from npfp8.blocks.layouts.groups import Bytes, Group, Piece, packed_groups, unpacked_groups
from npfp8.blocks.layouts.runs import (
    axis_of,
    bits_of,
    checked_length,
    element_format,
    filled,
    layout_of,
    runs_of,
    whole_groups,
    with_length,
)
from npfp8.codec.tables import checked_codes
from npfp8.formats import Format, IntFormat

__all__ = ["CODE_LAYOUTS", "CodeLayout", "pack_codes", "packed_length", "unpack_codes"]


@dataclass(frozen=True, repr=False)
class CodeLayout:
    """The place of each bit of each code in bytes.

    Attributes
    ----------
    name : str
    groups : tuple of Group
        One for each width of codes that the layout has.
    description, source : str
        The layout in words, and who defines it.

    Raises
    ------
    TypeError
        If an attribute is not of the type stated.
    ValueError
        If two groups have the same width.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import CodeLayout, Group, Piece, pack_codes
    >>> top = Group(4, 1, 1, (Piece(code=0, low=0, byte=0, shift=4, width=4),))
    >>> mine = CodeLayout("a nibble at the top of each byte", (top,))
    >>> pack_codes(np.uint8([1, 15]), "E2M1", mine)
    array([ 16, 240], dtype=uint8)
    """

    name: str
    groups: tuple[Group, ...]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "description", "source"):
            require(name, getattr(self, name), str, "a str")
        if not isinstance(self.groups, tuple) or not all(isinstance(g, Group) for g in self.groups):
            raise wrong_type("groups", "a tuple of groups", self.groups)
        if len({group.bits for group in self.groups}) < len(self.groups):
            raise ValueError(f"{self.name}: expected one group for each width, found several")

    def group(self, bits: int) -> Group:
        """Return the group of codes of a width.

        Raises
        ------
        TypeError
            If ``bits`` is not an integer.
        ValueError
            If the layout has no codes of this width.

        Examples
        --------
        >>> from npfp8.blocks.layouts import CODE_LAYOUTS
        >>> group = CODE_LAYOUTS["low-first"].group(6)
        >>> group.codes, group.nbytes
        (4, 3)
        """
        bits = integer("bits", bits)
        for group in self.groups:
            if group.bits == bits:
                return group
        widths = " or ".join(str(group.bits) for group in self.groups)
        raise ValueError(
            f"layout {self.name}: expected codes of {widths} bits, found a format of {bits}"
        )

    def __repr__(self) -> str:
        widths = ", ".join(str(group.bits) for group in self.groups)
        return f"<CodeLayout {self.name}: codes of {widths} bits>"


def _group(
    bits: int, codes: int, nbytes: int, place: Callable[[int, int], tuple[int, int]]
) -> Group:
    """Make a group from the (byte, bit) of each (code, bit)."""
    pieces: list[Piece] = []
    for code in range(codes):
        for bit in range(bits):
            byte, shift = place(code, bit)
            last = pieces[-1] if bit else None
            if last and (last.byte, last.shift + last.width) == (byte, shift):
                pieces[-1] = last._replace(width=last.width + 1)
            else:
                pieces.append(Piece(code, bit, byte, shift, 1))
    return Group(bits, codes, nbytes, tuple(pieces))


def _low_first(bits: int, codes: int = 0, nbytes: int = 0) -> Group:
    whole = math.lcm(bits, 8)
    return _group(
        bits,
        codes or whole // bits,
        nbytes or whole // 8,
        lambda code, bit: divmod(code * bits + bit, 8),
    )


def _high_first(bits: int) -> Group:
    def place(code: int, bit: int) -> tuple[int, int]:
        byte, below_top = divmod(code * bits + bits - 1 - bit, 8)
        return byte, 7 - below_top

    whole = math.lcm(bits, 8)
    return _group(bits, whole // bits, whole // 8, place)


def _split(code: int, bit: int) -> tuple[int, int]:
    if bit >= 4:
        return 0, 6 - 2 * code + bit - 4
    return 1 + code // 2, 4 * (1 - code % 2) + bit


#: The layouts of codes, by name.
CODE_LAYOUTS = {
    layout.name: layout
    for layout in (
        CodeLayout(
            "low-first",
            tuple(_low_first(bits) for bits in range(2, 9)),
            "One stream of bits, each code from its lowest bit, each byte from its lowest: two "
            "FP4 in a byte, the first in the low nibble; four FP6 in three bytes",
            "torch float4_e2m1fn_x2 (Float4_e2m1fn_x2.h); torchao 0.18 pack_uint4; "
            "compressed-tensors 0.20 pack_fp4_to_uint8; ModelOpt; TransformerEngine; vLLM; "
            "Quark 0.13 Pack_fp4 and Pack_fp6",
        ),
        CodeLayout(
            "high-first",
            tuple(_high_first(bits) for bits in range(2, 9)),
            "One stream of bits, each code from its highest bit, each byte from its highest: two "
            "FP4 in a byte, the first in the high nibble",
            "FLUX.2's NVFP4 checkpoint (sglang issue 23625); Triton before #5197",
        ),
        CodeLayout(
            "split",
            (_group(6, 4, 3, _split),),
            "Four FP6 in three bytes: a byte of the four upper pairs of bits, then two bytes of "
            "lower nibbles, the first code at the top of each byte",
            "Quark 0.13 Pack_mxfp6",
        ),
        CodeLayout(
            "ptx",
            tuple(
                _group(bits, 1, 1, lambda _, bit, shift=shift: (0, bit + shift))  # type: ignore[misc]
                for bits, shift in ((4, 2), (6, 0), (8, 0))
            ),
            "A byte for each code: FP8 whole, FP6 in bits 5 to 0, FP4 in bits 5 to 2",
            "PTX ISA 9.0, mma and tcgen05.mma with kind::f8f6f4; MMA-Sim 2.1 helper.py",
        ),
        CodeLayout(
            "ptx-padded",
            (_low_first(4, 16, 16), _low_first(6, 16, 16)),
            "16 codes in 16 bytes: the codes as low-first, then 8 (FP4) or 4 (FP6) bytes of 0",
            "PTX ISA 9.0, b4x16_p64 and b6x16_p32 of tcgen05.cp and ldmatrix",
        ),
    )
}


def packed_length(length: int, fmt: Format, layout: CodeLayout | str) -> int:
    """Return the number of bytes of a number of codes along their axis."""
    group = layout_of(layout, CodeLayout, CODE_LAYOUTS).group(bits_of(fmt))
    return -(-length // group.codes) * group.nbytes


def pack_codes(
    codes: npt.ArrayLike,
    fmt: Format | str,
    layout: CodeLayout | str = "low-first",
    axis: int = -1,
) -> Bytes:
    """Pack codes into bytes along an axis.

    Parameters
    ----------
    codes : array_like of uint8 (int8 for INT8 and INT4)
        One code in each byte.
    fmt : FloatFormat, IntFormat or str
        Their format, or its name: of a block format, that of the elements.
    layout : CodeLayout or str
        The layout, or a key of :data:`CODE_LAYOUTS`.
    axis : int
        The axis along which neighbours share bytes.

    Returns
    -------
    ndarray of uint8
        In the shape of ``codes`` except along ``axis``: there, ``nbytes`` for each group of
        codes that has begun. The last group is filled up with code 0.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If a code has more bits than the format, the layout has no codes of the format's width,
        or the axis does not exist.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import pack_codes
    >>> [f"{byte:02x}" for byte in pack_codes(np.uint8([1, 2, 3]), "E2M1")]
    ['21', '03']
    >>> [f"{byte:02x}" for byte in pack_codes(np.uint8([1, 2, 3]), "E2M1", "high-first")]
    ['12', '30']
    >>> pack_codes(np.uint8([1, 2, 3, 4]), "E3M2").size
    3
    """
    fmt = element_format(fmt)
    group = layout_of(layout, CodeLayout, CODE_LAYOUTS).group(bits_of(fmt))
    patterns = checked_codes(codes, fmt).view(np.uint8)
    if isinstance(fmt, IntFormat) and fmt.bits < 8:  # without the copies of a negative code's sign
        patterns = patterns & np.uint8((1 << fmt.bits) - 1)
    number = axis_of(axis, patterns.ndim)
    packed = packed_groups(filled(runs_of(patterns, number), group.codes), group)
    return packed.reshape(with_length(patterns.shape, number, packed.shape[1]))


def unpack_codes(
    packed: npt.ArrayLike,
    fmt: Format | str,
    length: int | None = None,
    layout: CodeLayout | str = "low-first",
    axis: int = -1,
) -> Array:
    """Return the codes that :func:`pack_codes` has packed.

    Parameters
    ----------
    packed : array_like of uint8
    fmt, layout, axis
        As for :func:`pack_codes`.
    length : int, optional
        The number of codes along the axis; without it, all that the bytes hold, those of the
        padding too.

    Returns
    -------
    ndarray of uint8 (int8 for INT8 and INT4)
        One code in each byte.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the bytes are not whole groups, or ``length`` codes do not take as many; or as
        :func:`pack_codes`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import unpack_codes
    >>> unpack_codes(np.uint8([0x21, 0x03]), "E2M1", 3)
    array([1, 2, 3], dtype=uint8)
    """
    fmt = element_format(fmt)
    group = layout_of(layout, CodeLayout, CODE_LAYOUTS).group(bits_of(fmt))
    data = array_of("packed", packed, np.uint8)
    number = axis_of(axis, data.ndim)
    count = whole_groups(data.shape[number], group.nbytes, axis, fmt)
    length = checked_length(length, count, group.codes, f"groups of {group.codes} codes")
    codes = np.ascontiguousarray(unpacked_groups(runs_of(data, number), group)[:, :length])
    if isinstance(fmt, IntFormat) and fmt.bits < 8 and fmt.dtype == "int8":
        sign = np.uint8(1 << (fmt.bits - 1))
        codes = (codes ^ sign) - sign  # a negative code's sign into all higher bits
    return codes.reshape(with_length(data.shape, number, length)).view(fmt.code_dtype)

"""Layouts: the bytes in which codes and the codes of scales are kept, and the way back.

Everywhere else in this package a code is a byte of its own, and the scales have the order of
their blocks. Files and kernels pack codes of fewer than 8 bits, and put scales into the order in
which hardware reads them. A layout is a record in a table:

- a :class:`CodeLayout` says where each bit of a code goes (:func:`pack_codes`);
- a :class:`ScaleLayout` is an order of the scales of a matrix (:func:`pack_scales`);
- a :class:`BlockLayout` keeps each block's scale and codes together (:func:`pack_blocks`).

Functions take the name of a layout or a record of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, flag, integer, loaded, named, require, wrong_type
from npfp8.arrays import Array
from npfp8.blocks.formats import BlockFormat, as_block_format
from npfp8.codec.tables import checked_codes
from npfp8.formats import FloatFormat, Format, as_format
from npfp8.scaling import normalized_axis, scale_shape

__all__ = [
    "BLOCK_LAYOUTS",
    "CODE_LAYOUTS",
    "SCALE_LAYOUTS",
    "BlockLayout",
    "CodeLayout",
    "Group",
    "Piece",
    "ScaleLayout",
    "pack_blocks",
    "pack_codes",
    "pack_scales",
    "unpack_blocks",
    "unpack_codes",
    "unpack_scales",
]

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


@dataclass(frozen=True, repr=False)
class ScaleLayout:
    """An order of the scales of a matrix: one per row and block.

    The index of a row is split into digits, outermost first, and so is that of a block along
    the row. ``order`` lists all digits from the slowest to the fastest.

    Attributes
    ----------
    name : str
    rows, blocks : tuple of int
        The number of values of each digit; 0 for the one digit that grows with the matrix.
    order : tuple of int
        The digits' numbers, those of rows first: a permutation.
    pads : bool
        Whether rows and blocks are filled up with zeros to whole tiles. If not, others are
        refused.
    description, source : str
        The layout in words, and who defines it.

    Raises
    ------
    TypeError
        If an attribute is not of the type stated.
    ValueError
        If the digits or their order are not as stated.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import ScaleLayout, pack_scales
    >>> pairs = ScaleLayout("two rows together", rows=(0, 2), blocks=(0,), order=(0, 2, 1))
    >>> pack_scales(np.uint8([[1, 2], [3, 4]]), pairs)
    array([[1, 3],
           [2, 4]], dtype=uint8)
    """

    name: str
    rows: tuple[int, ...]
    blocks: tuple[int, ...]
    order: tuple[int, ...]
    pads: bool = True
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "description", "source"):
            require(name, getattr(self, name), str, "a str")
        for name in ("rows", "blocks", "order"):
            require(name, getattr(self, name), tuple, "a tuple of integers")
            digits = tuple(integer(name, digit) for digit in getattr(self, name))
            object.__setattr__(self, name, digits)
        object.__setattr__(self, "pads", flag("pads", self.pads))
        for name in ("rows", "blocks"):
            digits = getattr(self, name)
            if digits.count(0) != 1 or min(digits) < 0:
                raise ValueError(f"{name}: expected one 0 among positive integers, found {digits}")
        count = len(self.rows) + len(self.blocks)
        if sorted(self.order) != list(range(count)):
            raise ValueError(f"order: expected a permutation of 0..{count - 1}, found {self.order}")

    @property
    def tile(self) -> tuple[int, int]:
        """The numbers that rows and blocks are multiples of."""
        return math.prod(filter(None, self.rows)), math.prod(filter(None, self.blocks))

    def __repr__(self) -> str:
        return f"<ScaleLayout {self.name}: tiles of {self.tile[0]} rows and {self.tile[1]} blocks>"


#: The layouts of scales, by name.
SCALE_LAYOUTS = {
    layout.name: layout
    for layout in (
        ScaleLayout(
            "linear",
            (0,),
            (0,),
            (0, 1),
            description="Row after row",
            source="compressed-tensors 0.20, ModelOpt 0.47, vLLM's checkpoints",
        ),
        ScaleLayout(
            "128x4",
            (0, 4, 32),
            (0, 4),
            (0, 3, 2, 1, 4),
            description="Tiles of 128 rows and 4 blocks, row after row of tiles; in a tile, "
            "row r and block c are at byte (r % 32) * 16 + (r // 32) * 4 + c",
            source="cuBLAS, '1D block scaling factors layout'; torchao 0.18 to_blocked; vLLM "
            "convert_swizzled_to_linear; TransformerEngine swizzle.cu, for row scaling as it is "
            "and for column scaling with the blocks along the other axis",
        ),
        ScaleLayout(
            "8x4",
            (0, 8),
            (0, 4),
            (0, 2, 1, 3),
            description="Tiles of 8 rows and 4 blocks, row after row of tiles, each row by row",
            source="vLLM convert_swizzled_8x4_layout_to_linear; FlashInfer's 8x4 layout",
        ),
        ScaleLayout(
            "4x4",
            (0, 4),
            (4, 0),
            (0, 2, 3, 1),
            pads=False,
            description="Of 4 rows (tokens) and S blocks (a multiple of 4): row t and block s are "
            "at row s // (S / 4) of the four, byte (s % (S / 4)) * 4 + t",
            source="vLLM's KV cache, scales of V: nvfp4_kv_cache_kernels.cu "
            "swizzle_scale_offset, dequant_nvfp4_kv_cache",
        ),
        ScaleLayout(
            "te-rowwise",
            (0, 128),
            (0, 4),
            (0, 1, 2, 3),
            description="Row after row, filled up to multiples of 128 rows and 4 blocks",
            source="TransformerEngine, get_scale_shape of MXFP8Quantizer and NVFP4Quantizer: "
            "scale_inv before its kernels put it into 128x4 tiles",
        ),
        ScaleLayout(
            "te-columnwise",
            (0, 128),
            (0, 4),
            (2, 3, 0, 1),
            description="Block after block, filled up to multiples of 4 blocks and 128 rows: "
            "with the blocks along axis -2, the scales in their own order",
            source="TransformerEngine, get_scale_shape(columnwise=True) of MXFP8Quantizer",
        ),
    )
}


@dataclass(frozen=True, repr=False)
class BlockLayout:
    """Blocks one after the other, each of its scale and its codes.

    The scale, a power of two, is one byte: its exponent in two's complement.

    Attributes
    ----------
    name : str
    codes : tuple of (int, str)
        The name of the layout of the codes for each width that there is.
    description, source : str
        The layout in words, and who defines it.

    Raises
    ------
    TypeError
        If an attribute is not of the type stated.
    ValueError
        If no layout has a name.

    Examples
    --------
    >>> from npfp8.blocks.layouts import BlockLayout
    >>> BlockLayout("mine", ((4, "high-first"),))
    <BlockLayout mine: codes of 4 bits>
    """

    name: str
    codes: tuple[tuple[int, str], ...]
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "description", "source"):
            require(name, getattr(self, name), str, "a str")
        try:
            pairs = tuple((integer("codes", bits), name) for bits, name in self.codes)
        except (TypeError, ValueError):
            raise wrong_type("codes", "a tuple of pairs: bits and a layout", self.codes) from None
        for bits, name in pairs:
            named("codes", name, CODE_LAYOUTS).group(bits)
        object.__setattr__(self, "codes", pairs)

    def group(self, bits: int) -> Group:
        """Return the group of codes of a width; see :meth:`CodeLayout.group`.

        Examples
        --------
        >>> from npfp8.blocks.layouts import BLOCK_LAYOUTS
        >>> BLOCK_LAYOUTS["quark"].group(6).nbytes
        3
        """
        bits = integer("bits", bits)
        for width, name in self.codes:
            if width == bits:
                return CODE_LAYOUTS[name].group(bits)
        widths = " or ".join(str(width) for width, _ in self.codes)
        raise ValueError(
            f"layout {self.name}: expected codes of {widths} bits, found a format of {bits}"
        )

    def __repr__(self) -> str:
        widths = ", ".join(str(width) for width, _ in self.codes)
        return f"<BlockLayout {self.name}: codes of {widths} bits>"


#: The layouts of blocks, by name.
BLOCK_LAYOUTS = {
    layout.name: layout
    for layout in (
        BlockLayout(
            "quark",
            ((4, "low-first"), (6, "split")),
            "The exponent of the scale without a bias, then the codes: 17 bytes for 32 FP4, 25 "
            "for 32 FP6",
            "Quark 0.13 Pack_mxfp4 and Pack_mxfp6; it writes 2^-127 as 2^-126 (safe_log2)",
        ),
    )
}

_Layout = TypeVar("_Layout", CodeLayout, ScaleLayout, BlockLayout)


def _layout(given: _Layout | str, kind: type[_Layout], known: Mapping[str, _Layout]) -> _Layout:
    """Return a layout that is given as such or by its name."""
    expected = f"a {kind.__name__} or a name ({', '.join(known)})"
    return loaded("layout", given, kind, lambda name: named("layout", name, known), expected)


def _bits(fmt: Format) -> int:
    return fmt.bits if isinstance(fmt, FloatFormat) else 8


def _axis(axis: object, ndim: int) -> int:
    """Return an axis as its non-negative equal."""
    number = normalized_axis(integer("axis", axis), ndim)
    assert number is not None
    return number


def _runs(x: Array, axis: int) -> Array:
    """Return an array with three axes: those before an axis as one, the axis, those after it."""
    before, after = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    return x.reshape(before, x.shape[axis], after)


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _filled(runs: Array, multiple: int) -> Array:
    """Fill the middle axis up with zeros to a multiple of a number."""
    before, length, after = runs.shape
    if not (missing := -length % multiple):
        return runs
    return np.concatenate([runs, np.zeros((before, missing, after), runs.dtype)], axis=1)


def _packed(runs: Array, group: Group) -> Bytes:
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


def _unpacked(runs: Bytes, group: Group) -> Bytes:
    """Undo :func:`_packed`."""
    before, length, after = runs.shape
    count = length // group.nbytes
    groups = runs.reshape(before, count, group.nbytes, after)
    out = np.zeros((before, count, group.codes, after), np.uint8)
    for code, low, byte, shift, width in group.pieces:
        part = (groups[:, :, byte] >> np.uint8(shift)) & np.uint8((1 << width) - 1)
        out[:, :, code] |= part << np.uint8(low)
    return out.reshape(before, count * group.codes, after)


def _whole(nbytes: int, size: int, axis: int, fmt: Format | BlockFormat) -> int:
    """Return the number of groups of ``size`` bytes; raise unless they are whole."""
    count, rest = divmod(nbytes, size)
    if rest:
        raise ValueError(
            f"packed: expected a multiple of {size} bytes along axis {axis} for {fmt}, "
            f"found {nbytes}"
        )
    return count


def _checked_length(length: object, count: int, size: int, what: str) -> int:
    """Return the number of codes, all that there are if None is given."""
    last = count * size
    if length is None:
        return last
    found = integer("length", length)
    first = max(last - size + 1, 0)
    if not first <= found <= last:
        raise ValueError(f"length: expected {first}..{last} for {count} {what}, found {found}")
    return found


def pack_codes(
    codes: npt.ArrayLike,
    fmt: Format | str,
    layout: CodeLayout | str = "low-first",
    axis: int = -1,
) -> Bytes:
    """Pack codes into bytes along an axis.

    Parameters
    ----------
    codes : array_like of uint8 (int8 for INT8)
        One code in each byte.
    fmt : FloatFormat, IntFormat or str
        Their format, or its name.
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
    fmt = as_format(fmt)
    group = _layout(layout, CodeLayout, CODE_LAYOUTS).group(_bits(fmt))
    patterns = checked_codes(codes, fmt).view(np.uint8)
    number = _axis(axis, patterns.ndim)
    packed = _packed(_filled(_runs(patterns, number), group.codes), group)
    return packed.reshape(_with_length(patterns.shape, number, packed.shape[1]))


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
    ndarray of uint8 (int8 for INT8)
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
    fmt = as_format(fmt)
    group = _layout(layout, CodeLayout, CODE_LAYOUTS).group(_bits(fmt))
    data = array_of("packed", packed, np.uint8)
    number = _axis(axis, data.ndim)
    count = _whole(data.shape[number], group.nbytes, axis, fmt)
    length = _checked_length(length, count, group.codes, f"groups of {group.codes} codes")
    codes = np.ascontiguousarray(_unpacked(_runs(data, number), group)[:, :length])
    return codes.reshape(_with_length(data.shape, number, length)).view(fmt.code_dtype)


def _matrix(scale_codes: Array, axis: object) -> tuple[Array, int]:
    """Return scales as rows of blocks along the last axis, and the axis of the blocks."""
    if not scale_codes.ndim:
        raise ValueError("scale_codes: expected at least one axis, found a number")
    number = _axis(axis, scale_codes.ndim)
    moved = np.moveaxis(scale_codes, number, -1)
    return (moved if moved.ndim > 1 else moved[None]), number


def _digits(layout: ScaleLayout, rows: int, blocks: int) -> tuple[int, ...]:
    """Return the number of values of each digit for a padded matrix."""
    free = [total // tile for total, tile in zip((rows, blocks), layout.tile, strict=True)]
    return (
        *(digit or free[0] for digit in layout.rows),
        *(digit or free[1] for digit in layout.blocks),
    )


def _padded(layout: ScaleLayout, rows: int, blocks: int) -> tuple[int, int]:
    """Return the numbers of rows and blocks in whole tiles."""
    tall, wide = layout.tile
    if not layout.pads and (rows % tall or blocks % wide):
        raise ValueError(
            f"layout {layout.name}: expected multiples of {tall} rows and {wide} blocks, found "
            f"{rows} and {blocks}"
        )
    return -(-rows // tall) * tall, -(-blocks // wide) * wide


def pack_scales(
    scale_codes: npt.ArrayLike, layout: ScaleLayout | str = "128x4", axis: int = -1
) -> Bytes:
    """Put the codes of scales into the order of a layout.

    Parameters
    ----------
    scale_codes : array_like of uint8
        Of matrices, as :class:`npfp8.QuantizedTensor` has them; a vector is a row. Axes before
        the last two count matrices.
    layout : ScaleLayout or str
        The layout, or a key of :data:`SCALE_LAYOUTS`.
    axis : int
        The axis of the blocks. The last other axis is that of the rows.

    Returns
    -------
    ndarray of uint8, (..., rows, blocks)
        In whole tiles, filled up with zeros. The bytes in their order are the layout; the
        shape is that of the filled matrix: (..., blocks, rows) if the blocks vary slowest.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the axis does not exist, the layout is unknown, or it does not fill up and the
        matrix is not of whole tiles.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import pack_scales
    >>> scale_codes = np.arange(10, dtype=np.uint8).reshape(2, 5)
    >>> packed = pack_scales(scale_codes, "8x4")
    >>> packed.shape, packed.reshape(-1)[:8]
    ((8, 8), array([0, 1, 2, 3, 5, 6, 7, 8], dtype=uint8))
    """
    how = _layout(layout, ScaleLayout, SCALE_LAYOUTS)
    matrices, _ = _matrix(array_of("scale_codes", scale_codes, np.uint8), axis)
    *lead, rows, blocks = matrices.shape
    tall, wide = _padded(how, rows, blocks)
    if (tall, wide) != (rows, blocks):
        filled = np.zeros((*lead, tall, wide), np.uint8)
        filled[..., :rows, :blocks] = matrices
        matrices = filled
    split = matrices.reshape(*lead, *_digits(how, tall, wide))
    order = (*range(len(lead)), *(len(lead) + digit for digit in how.order))
    return split.transpose(order).reshape(*lead, *_stored_shape(how, tall, wide))


def _stored_shape(layout: ScaleLayout, rows: int, blocks: int) -> tuple[int, int]:
    by_rows = layout.order[0] < len(layout.rows)
    return (rows, blocks) if by_rows else (blocks, rows)


def unpack_scales(
    packed: npt.ArrayLike,
    shape: tuple[int, ...],
    layout: ScaleLayout | str = "128x4",
    axis: int = -1,
) -> Bytes:
    """Return the codes of scales that :func:`pack_scales` has put into an order.

    Parameters
    ----------
    packed : array_like of uint8
        In any shape of the right size: implementations differ in it.
    shape : tuple of int
        The shape of the codes of the scales.
    layout, axis
        As for :func:`pack_scales`.

    Returns
    -------
    ndarray of uint8, of the shape stated

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the number of bytes is another one than the shape takes; or as :func:`pack_scales`.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import pack_scales, unpack_scales
    >>> scale_codes = np.arange(10, dtype=np.uint8).reshape(2, 5)
    >>> unpack_scales(pack_scales(scale_codes, "128x4"), (2, 5))
    array([[0, 1, 2, 3, 4],
           [5, 6, 7, 8, 9]], dtype=uint8)
    """
    how = _layout(layout, ScaleLayout, SCALE_LAYOUTS)
    data = array_of("packed", packed, np.uint8)
    if not isinstance(shape, tuple | list):
        raise wrong_type("shape", "a tuple of integers", shape)
    wanted = tuple(integer("shape", length) for length in shape)
    if min(wanted, default=0) < 0:
        raise ValueError(f"shape: expected no negative length, found {wanted}")
    # The shape of the matrices, from an array without memory of its own.
    matrices, number = _matrix(np.broadcast_to(np.uint8(0), wanted), axis)
    *lead, rows, blocks = matrices.shape
    tall, wide = _padded(how, rows, blocks)
    if data.size != math.prod((*lead, tall, wide)):
        raise ValueError(
            f"packed: expected {math.prod((*lead, tall, wide))} bytes for scales of shape "
            f"{wanted} in the layout {how.name}, found {data.size}"
        )
    digits = _digits(how, tall, wide)
    split = data.reshape(*lead, *(digits[digit] for digit in how.order))
    places = np.argsort(how.order)
    order = (*range(len(lead)), *(len(lead) + int(place) for place in places))
    linear = split.transpose(order).reshape(*lead, tall, wide)[..., :rows, :blocks]
    return np.ascontiguousarray(np.moveaxis(linear, -1, number) if len(wanted) > 1 else linear[0])


def pack_blocks(
    codes: npt.ArrayLike,
    scale_codes: npt.ArrayLike,
    fmt: BlockFormat | str,
    layout: BlockLayout | str = "quark",
    axis: int = -1,
) -> Bytes:
    """Pack blocks along an axis: each block's scale, then its codes.

    Parameters
    ----------
    codes : array_like of uint8
        One code in each byte.
    scale_codes : array_like of uint8
        One per block: in the shape of ``codes``, except along ``axis``.
    fmt : BlockFormat or str
        Their format, whose scales are powers of two; or its name.
    layout : BlockLayout or str
        The layout, or a key of :data:`BLOCK_LAYOUTS`.
    axis : int
        The axis of the blocks.

    Returns
    -------
    ndarray of uint8
        In the shape of ``codes``, except along ``axis``. The last block is filled up with
        code 0.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If a code has more bits than its format, a scale is a NaN, shapes do not fit each
        other, or the layout does not have the format.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import pack_blocks
    >>> packed = pack_blocks(np.uint8([1, 2]), np.uint8([127 - 3]), "MXFP4")
    >>> packed.size, packed[:3].view(np.int8)
    (17, array([-3, 33,  0], dtype=int8))
    """
    fmt, group = _block_group(fmt, layout)
    patterns = checked_codes(codes, fmt.element).view(np.uint8)
    number = _axis(axis, patterns.ndim)
    scales = checked_codes(scale_codes, fmt.scale_format, "scale_codes")
    expected = scale_shape(patterns.shape, number, fmt.block)
    if scales.shape != expected:
        raise ValueError(
            f"scale_codes: expected shape {expected} for blocks of {fmt.block} along axis {axis}, "
            f"found {scales.shape}"
        )
    exponents = _runs(scales, number).astype(np.int64) - fmt.scale_format.bias
    beyond = (exponents < -128) | (exponents > 127)
    beyond |= _runs(scales, number) > fmt.scale_format.max_code
    if beyond.any():
        raise ValueError(
            f"scale_codes: expected powers of two from 2^-128 to 2^127, found code "
            f"{_runs(scales, number)[beyond][0]}"
        )
    before, count, after = exponents.shape
    size = fmt.block // group.codes * group.nbytes
    packed = np.empty((before, count, 1 + size, after), np.uint8)
    packed[:, :, 0] = exponents.astype(np.int8).view(np.uint8)
    elements = _packed(_filled(_runs(patterns, number), fmt.block), group)
    packed[:, :, 1:] = elements.reshape(before, count, size, after)
    return packed.reshape(_with_length(patterns.shape, number, count * (1 + size)))


def unpack_blocks(
    packed: npt.ArrayLike,
    fmt: BlockFormat | str,
    length: int | None = None,
    layout: BlockLayout | str = "quark",
    axis: int = -1,
) -> tuple[Bytes, Bytes]:
    """Return the codes and the codes of the scales that :func:`pack_blocks` has packed.

    Parameters
    ----------
    packed : array_like of uint8
    fmt, layout, axis
        As for :func:`pack_blocks`.
    length : int, optional
        The number of codes along the axis; without it, all that the blocks hold.

    Returns
    -------
    codes, scale_codes : ndarray of uint8

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the bytes are not whole blocks, or ``length`` codes do not take as many; if the
        format has no code for a scale; or if the layout has not the format.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.blocks.layouts import pack_blocks, unpack_blocks
    >>> packed = pack_blocks(np.uint8([1, 2]), np.uint8([127 - 3]), "MXFP4")
    >>> unpack_blocks(packed, "MXFP4", 2)
    (array([1, 2], dtype=uint8), array([124], dtype=uint8))
    """
    fmt, group = _block_group(fmt, layout)
    data = array_of("packed", packed, np.uint8)
    number = _axis(axis, data.ndim)
    size = 1 + fmt.block // group.codes * group.nbytes
    count = _whole(data.shape[number], size, axis, fmt)
    length = _checked_length(length, count, fmt.block, f"blocks of {fmt.block} codes")
    before, _, after = (runs := _runs(data, number)).shape
    blocks = runs.reshape(before, count, size, after)
    exponents = np.ascontiguousarray(blocks[:, :, 0]).view(np.int8).astype(np.int64)
    scales = exponents + fmt.scale_format.bias
    beyond = (scales < 0) | (scales > fmt.scale_format.max_code)
    if beyond.any():
        raise ValueError(
            f"packed: expected exponents of {fmt.scale_format}, found {exponents[beyond][0]}"
        )
    elements = _unpacked(blocks[:, :, 1:].reshape(before, count * (size - 1), after), group)
    codes = np.ascontiguousarray(elements[:, :length])
    return (
        codes.reshape(_with_length(data.shape, number, length)).view(fmt.element.code_dtype),
        scales.astype(np.uint8).reshape(_with_length(data.shape, number, count)),
    )


def _block_group(fmt: BlockFormat | str, layout: BlockLayout | str) -> tuple[BlockFormat, Group]:
    """Return a block format and the group of its codes; raise unless the layout has it."""
    fmt = as_block_format(fmt)
    how = _layout(layout, BlockLayout, BLOCK_LAYOUTS)
    group = how.group(_bits(fmt.element))
    if not fmt.powers_of_two:
        raise ValueError(f"layout {how.name}: expected scales that are powers of two, found {fmt}")
    if fmt.block % group.codes:
        raise ValueError(
            f"layout {how.name}: expected blocks of a multiple of {group.codes}, found {fmt.block}"
        )
    return fmt, group

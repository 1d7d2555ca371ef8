"""Layouts of blocks: each block's scale and codes together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, integer, named, require, wrong_type
from npfp8.blocks.formats import BlockFormat, as_block_format
from npfp8.blocks.layouts.codes import CODE_LAYOUTS
from npfp8.blocks.layouts.groups import Bytes, Group, packed_groups, unpacked_groups
from npfp8.blocks.layouts.runs import (
    axis_of,
    bits_of,
    checked_length,
    filled,
    layout_of,
    runs_of,
    whole_groups,
    with_length,
)
from npfp8.codec.tables import checked_codes
from npfp8.scaling import scale_shape

__all__ = ["BLOCK_LAYOUTS", "BlockLayout", "pack_blocks", "unpack_blocks"]


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
    number = axis_of(axis, patterns.ndim)
    scales = checked_codes(scale_codes, fmt.scale_format, "scale_codes")
    expected = scale_shape(patterns.shape, number, fmt.block)
    if scales.shape != expected:
        raise ValueError(
            f"scale_codes: expected shape {expected} for blocks of {fmt.block} along axis {axis}, "
            f"found {scales.shape}"
        )
    exponents = runs_of(scales, number).astype(np.int64) - fmt.scale_format.bias
    beyond = (exponents < -128) | (exponents > 127)
    beyond |= runs_of(scales, number) > fmt.scale_format.max_code
    if beyond.any():
        raise ValueError(
            f"scale_codes: expected powers of two from 2^-128 to 2^127, found code "
            f"{runs_of(scales, number)[beyond][0]}"
        )
    before, count, after = exponents.shape
    size = fmt.block // group.codes * group.nbytes
    packed = np.empty((before, count, 1 + size, after), np.uint8)
    packed[:, :, 0] = exponents.astype(np.int8).view(np.uint8)
    elements = packed_groups(filled(runs_of(patterns, number), fmt.block), group)
    packed[:, :, 1:] = elements.reshape(before, count, size, after)
    return packed.reshape(with_length(patterns.shape, number, count * (1 + size)))


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
    number = axis_of(axis, data.ndim)
    size = 1 + fmt.block // group.codes * group.nbytes
    count = whole_groups(data.shape[number], size, axis, fmt)
    length = checked_length(length, count, fmt.block, f"blocks of {fmt.block} codes")
    runs = runs_of(data, number)
    before, _, after = runs.shape
    blocks = runs.reshape(before, count, size, after)
    exponents = np.ascontiguousarray(blocks[:, :, 0]).view(np.int8).astype(np.int64)
    scales = exponents + fmt.scale_format.bias
    beyond = (scales < 0) | (scales > fmt.scale_format.max_code)
    if beyond.any():
        raise ValueError(
            f"packed: expected exponents of {fmt.scale_format}, found {exponents[beyond][0]}"
        )
    elements = unpacked_groups(blocks[:, :, 1:].reshape(before, count * (size - 1), after), group)
    codes = np.ascontiguousarray(elements[:, :length])
    return (
        codes.reshape(with_length(data.shape, number, length)).view(fmt.element.code_dtype),
        scales.astype(np.uint8).reshape(with_length(data.shape, number, count)),
    )


def _block_group(fmt: BlockFormat | str, layout: BlockLayout | str) -> tuple[BlockFormat, Group]:
    """Return a block format and the group of its codes; raise unless the layout has it."""
    fmt = as_block_format(fmt)
    how = layout_of(layout, BlockLayout, BLOCK_LAYOUTS)
    group = how.group(bits_of(fmt.element))
    if not fmt.powers_of_two:
        raise ValueError(f"layout {how.name}: expected scales that are powers of two, found {fmt}")
    if fmt.block % group.codes:
        raise ValueError(
            f"layout {how.name}: expected blocks of a multiple of {group.codes}, found {fmt.block}"
        )
    return fmt, group

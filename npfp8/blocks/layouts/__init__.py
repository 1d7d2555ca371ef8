"""Layouts: the bytes in which codes and the codes of scales are kept, and the way back.

Everywhere else in this package a code is a byte of its own, and the scales have the order of
their blocks. Files and kernels pack codes of fewer than 8 bits, and put scales into the order in
which hardware reads them. A layout is a record in a table:

- a :class:`CodeLayout` says where each bit of a code goes (:func:`pack_codes`);
- a :class:`ScaleLayout` is an order of the scales of a matrix (:func:`pack_scales`);
- a :class:`BlockLayout` keeps each block's scale and codes together (:func:`pack_blocks`).

Functions take the name of a layout or a record of one's own.
"""

from npfp8.blocks.layouts.blocks import BLOCK_LAYOUTS, BlockLayout, pack_blocks, unpack_blocks
from npfp8.blocks.layouts.codes import CODE_LAYOUTS, CodeLayout, pack_codes, unpack_codes
from npfp8.blocks.layouts.groups import Group, Piece
from npfp8.blocks.layouts.scales import SCALE_LAYOUTS, ScaleLayout, pack_scales, unpack_scales

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

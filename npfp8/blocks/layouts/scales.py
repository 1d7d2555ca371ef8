"""Layouts of scales: orders of the scales of a matrix, one per row and block."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, flag, integer, require, wrong_type
from npfp8.blocks.layouts.groups import Bytes
from npfp8.blocks.layouts.runs import axis_of, layout_of

__all__ = ["SCALE_LAYOUTS", "ScaleLayout", "pack_scales", "unpack_scales"]


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


def _matrices(shape: tuple[int, ...], axis: object, argument: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of scales as rows of blocks along the last axis, and the blocks' axis."""
    if not shape:
        raise ValueError(f"{argument}: expected at least one axis, found none")
    number = axis_of(axis, len(shape))
    moved = (*shape[:number], *shape[number + 1 :], shape[number])
    return (moved if len(moved) > 1 else (1, *moved)), number


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
    how = layout_of(layout, ScaleLayout, SCALE_LAYOUTS)
    given = array_of("scale_codes", scale_codes, np.uint8)
    shape, number = _matrices(given.shape, axis, "scale_codes")
    *lead, rows, blocks = shape
    tall, wide = _padded(how, rows, blocks)
    filled = np.zeros((*lead, tall, wide), np.uint8)
    filled[..., :rows, :blocks] = np.moveaxis(given, number, -1).reshape(shape)
    split = filled.reshape(*lead, *_digits(how, tall, wide))
    order = (*range(len(lead)), *(len(lead) + digit for digit in how.order))
    stored = split.transpose(order).reshape(*lead, *_stored_shape(how, tall, wide))
    return np.ascontiguousarray(stored)


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
    how = layout_of(layout, ScaleLayout, SCALE_LAYOUTS)
    data = array_of("packed", packed, np.uint8)
    if not isinstance(shape, tuple | list):
        raise wrong_type("shape", "a tuple of integers", shape)
    wanted = tuple(integer("shape", length) for length in shape)
    if min(wanted, default=0) < 0:
        raise ValueError(f"shape: expected no negative length, found {wanted}")
    (*lead, rows, blocks), number = _matrices(wanted, axis, "shape")
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
    return np.moveaxis(linear if len(wanted) > 1 else linear[0], -1, number).copy(order="C")

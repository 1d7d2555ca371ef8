"""The typical defects of the scales of blocks: their exponents, their NaN and their places.

Each is a name and its defective operations, as :mod:`bert_numpy.kit.defects` has them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bert_numpy.kit.block_operations import BLOCK_OPERATIONS, Attributes, Inputs, block_format
from bert_numpy.kit.operand_defects import Defective, Named
from npfp8 import E8M0FNU, Format, decode
from npfp8.arrays import Array
from npfp8.blocks.layouts import ScaleLayout, pack_scales, unpack_scales
from npfp8.formats import FORMATS
from npfp8.scaling import group_extrema, spread

__all__ = ["block_scale_defects"]

#: The largest code of E8M0 that is a number.
_TOP = 254


def block_scale_defects() -> Iterator[Named]:
    """Yield names and defective operations; a name may occur more than once."""
    logarithms: list[Callable[[Array, Format], Array]] = [
        lambda amax, element: np.rint(np.log2(amax / element.max)),
        lambda amax, element: np.rint(np.log2(amax)) - np.floor(np.log2(element.max)),
    ]
    for exponent in logarithms:
        yield (
            "the exponent of a scale as a rounded logarithm",
            {"scale_codes": _exponents(exponent)},
        )
    for off, how in ((1, "small"), (-1, "large")):
        name = f"the elements' largest exponent (emax) taken too {how} by 1"
        yield name, {"scale_codes": _times_power(off)}
    name = "the NaN of E8M0 read as 2^128, which is infinity in float32"
    yield name, {"block_scales": _infinite_scales, "dequantize": _infinite_values}
    for name, layout in _tiles():
        yield name, {"pack_scales": _packed(layout), "unpack_scales": _unpacked(layout)}


# Exponents


def _powers_of_two(attributes: Attributes) -> bool:
    return bool(block_format(attributes).powers_of_two)


def _largest(x: Array, attributes: Attributes) -> Array:
    """Return the largest magnitude of each block."""
    low, high = group_extrema(x, attributes["axis"], block_format(attributes).block)
    return np.maximum(np.abs(low), np.abs(high))


def _exponents(exponent: Callable[[Array, Format], Array]) -> Defective:
    """Make the codes of scales of another exponent, from the largest magnitude and the format.

    Blocks of zeros, and those with a NaN or an infinity, have the right code.
    """

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not _powers_of_two(attributes):
            return None
        right = BLOCK_OPERATIONS["scale_codes"](inputs, attributes)
        amax = _largest(inputs["x"], attributes).astype(np.float64)
        usual = np.isfinite(amax) & (amax > 0)
        exponents = exponent(np.where(usual, amax, 1.0), block_format(attributes).element)
        return np.where(usual, np.clip(exponents + 127, 0, _TOP), right).astype(np.uint8)

    return codes


def _times_power(power: int) -> Defective:
    """Make the codes of scales that are larger by ``2^power``: those of numbers that are so."""

    def codes(inputs: Inputs, attributes: Attributes) -> Array | None:
        if not _powers_of_two(attributes):
            return None
        x = inputs["x"]
        with np.errstate(over="ignore", under="ignore"):
            other = np.ldexp(x, power)
        over = np.isinf(other) & np.isfinite(x)
        found = BLOCK_OPERATIONS["scale_codes"](
            {**inputs, "x": np.where(over, x, other)}, attributes
        )
        if not over.any():
            return found
        right = BLOCK_OPERATIONS["scale_codes"](inputs, attributes)
        beyond = _largest(over.astype(np.float32), attributes) > 0
        return np.where(beyond, np.minimum(right + power, _TOP), found).astype(np.uint8)

    return codes


# NaN


def _infinite(codes: Array) -> Array:
    """Read codes of E8M0 as ``2^(code - 127)`` in float32, 255 too."""
    values = decode(codes, E8M0FNU)
    return np.where(codes == E8M0FNU.nan_code, np.float32(np.inf), values)


def _infinite_scales(inputs: Inputs, attributes: Attributes) -> Array | None:
    is_e8m0 = attributes.get("scale_fmt") == str(E8M0FNU)
    return _infinite(inputs["scale_codes"]) if is_e8m0 else None


def _infinite_values(inputs: Inputs, attributes: Attributes) -> Array | None:
    how = attributes["x"]
    if how.get("scale_fmt") != str(E8M0FNU):
        return None
    x = inputs["x"]
    scale = spread(_infinite(inputs["x_scale"]), x.shape, how["axis"], how["block"])
    return decode(x, FORMATS[how["fmt"]]) * scale


# Tiles


def _tiles() -> Iterator[tuple[str, ScaleLayout]]:
    """Yield other orders of tiles of 128 rows and 4 blocks.

    The digits of a row r are that of its tile, r // 32 and r % 32, or r // 4 and r % 4; those
    of a block that of its tile, and c. In the right order, r % 32 is the slowest in a tile, then
    r // 32, then c.
    """
    tall, wide = (0, 4, 32), (0, 32, 4)
    orders = {
        "not interleaved (each tile row by row)": (tall, (0, 3, 1, 2, 4)),
        "not interleaved (each tile column by column)": (tall, (0, 3, 4, 1, 2)),
        "by columns (r % 32, c, r // 32)": (tall, (0, 3, 2, 4, 1)),
        "by columns (r // 32, c, r % 32)": (tall, (0, 3, 1, 4, 2)),
        "by columns (c, r % 32, r // 32)": (tall, (0, 3, 4, 2, 1)),
        "in 4 groups of rows (r % 4, r // 4, c)": (wide, (0, 3, 2, 1, 4)),
        "by columns (r % 4, c, r // 4)": (wide, (0, 3, 2, 4, 1)),
        "by columns (r // 4, c, r % 4)": (wide, (0, 3, 1, 4, 2)),
        "by columns (c, r % 4, r // 4)": (wide, (0, 3, 4, 2, 1)),
        "in the right order, but column after column of tiles": (tall, (3, 0, 2, 1, 4)),
    }
    for name, (rows, order) in orders.items():
        yield f"scales in tiles of 128x4, {name}", ScaleLayout(name, rows, (0, 4), order)


def _packed(layout: ScaleLayout) -> Defective:
    def packed(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes["layout"] != "128x4":
            return None
        right = BLOCK_OPERATIONS["pack_scales"](inputs, attributes)
        return pack_scales(inputs["codes"], layout).reshape(right.shape)

    return packed


def _unpacked(layout: ScaleLayout) -> Defective:
    def unpacked(inputs: Inputs, attributes: Attributes) -> Array | None:
        if attributes["layout"] != "128x4":
            return None
        return unpack_scales(inputs["codes"], tuple(attributes["shape"]), layout)

    return unpacked

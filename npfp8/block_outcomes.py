"""The bytes that quantizers give for one tensor: read from what a function returned, compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of
from npfp8.arrays import Array, Float32Array
from npfp8.blocks.formats import BlockFormat
from npfp8.blocks.layouts import unpack_codes
from npfp8.blocks.layouts.runs import bits_of
from npfp8.blocks.quantize import quantize_blocks
from npfp8.formats import FloatFormat, Format
from npfp8.tensor import QuantizedTensor

__all__ = ["Outcome", "compared", "given_as", "outcome_by_rule", "outcome_of", "same", "unpacked"]


class Outcome(NamedTuple):
    """The codes, the scales and the number of the tensor; all codes as bytes.

    ``packed`` are the codes as they were returned.
    """

    codes: Array
    scales: Array
    number: Float32Array | None
    packed: Array | None = None


def outcome_by_rule(x: Float32Array, fmt: BlockFormat, source: str, axis: int = 1) -> Outcome:
    """Quantize a tensor by the rule of a format."""
    codes, scales, number = quantize_blocks(x, fmt, axis, source)
    return Outcome(codes.view(np.uint8), scales, number)


def given_as(x: Float32Array, source: str) -> Array:
    """Return a copy of a tensor in the type of its numbers: what a quantizer is given."""
    if source == "bfloat16":
        import ml_dtypes  # noqa: PLC0415

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(source)


def outcome_of(given: Any, x: Float32Array, fmt: BlockFormat) -> Outcome:
    """Read what a quantizer returned; raise AssertionError if it is nothing to compare."""
    if isinstance(given, QuantizedTensor):
        _require_format(given, fmt)
        given = (given.codes, given.scale_codes, given.tensor_scale)
    wanted = "(codes, scale_codes) or (codes, scale_codes, tensor_scale)"
    if not isinstance(given, tuple | list):
        raise AssertionError(f"expected {wanted}, found {type(given).__name__}")
    if len(given) not in (2, 3):
        raise AssertionError(f"expected {wanted}, found {len(given)} results")
    codes, scales = _bytes("codes", given[0]), _bytes("scale_codes", given[1])
    number = _number(given[2]) if fmt.tensor_scale and len(given) == 3 else None
    blocks = (len(x), x.shape[1] // fmt.block)
    if scales.size != blocks[0] * blocks[1]:
        raise AssertionError(
            f"scale_codes: expected shape {blocks}, one per {fmt.block} elements of a row, "
            f"found {scales.shape}"
        )
    packed = codes
    if codes.shape != x.shape:
        bits = bits_of(fmt.element)
        length = x.shape[1] * bits // 8
        if bits == 8 or codes.shape != (len(x), length):
            also = "" if bits == 8 else f", or {(len(x), length)} packed"
            raise AssertionError(f"codes: expected shape {x.shape}{also}, found {codes.shape}")
        codes = unpacked(codes, "low-first", fmt, x.shape[1])
    return Outcome(codes, scales.reshape(blocks), number, packed)


def _require_format(given: QuantizedTensor, fmt: BlockFormat) -> None:
    """Raise AssertionError unless elements, blocks and scales are those of a format."""
    found = given.block_format

    def parts(one: BlockFormat) -> tuple[object, ...]:
        return one.element, one.block, one.scale_format, one.tensor_scale

    if found is None or parts(found) != parts(fmt):
        raise AssertionError(f"expected a tensor in {fmt}, found {given}")


def _bytes(name: str, given: Any) -> Array:
    """Return codes as bytes."""
    try:
        array = np.ascontiguousarray(array_of(name, given))
    except (TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise AssertionError(f"{reason}; give the bytes, as uint8") from error
    wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1
    if wide and array.size:
        low, high = array.min(), array.max()
        if low < -128 or high > 255:
            raise AssertionError(f"{name}: expected bytes, found numbers from {low} to {high}")
    if wide:
        array = (array & 0xFF).astype(np.uint8)
    if array.dtype.itemsize != 1 or array.dtype == bool:
        raise AssertionError(f"{name}: expected bytes, found {array.dtype}")
    return array.view(np.uint8)


def _number(given: Any) -> Float32Array | None:
    """Return the number of a tensor in float32."""
    if given is None:
        return None
    try:
        one = array_of("tensor_scale", given)
        one = one.astype(np.float64, casting="safe" if one.dtype.kind == "c" else "unsafe")
    except (TypeError, ValueError) as error:
        raise AssertionError(f"tensor_scale: expected one number, found {given!r}") from error
    if one.size != 1:
        raise AssertionError(f"tensor_scale: expected one number, found {one.size}")
    with np.errstate(over="ignore"):
        return one.reshape(()).astype(np.float32)


def unpacked(packed: Array, layout: str, fmt: BlockFormat, length: int) -> Array:
    """Return packed codes of the format's elements, a byte each."""
    return unpack_codes(packed, fmt.element, length, layout).view(np.uint8)


def _nan_codes(fmt: Format) -> tuple[int, ...]:
    return tuple(fmt.nan_codes) if isinstance(fmt, FloatFormat) else ()


def _unequal(expected: Array, found: Array, fmt: Format) -> npt.NDArray[np.bool_]:
    """Return where codes differ. All NaNs count as equal."""
    differs = expected != found
    if (nan := _nan_codes(fmt)) and differs.any():
        differs &= ~(np.isin(expected, nan) & np.isin(found, nan))
    return np.asarray(differs)


def compared(
    expected: Outcome, found: Outcome, fmt: BlockFormat
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], bool]:
    """Return which scales, codes and whether the numbers of the tensor differ.

    Codes do not count in blocks whose scales are NaN.
    """
    scales = _unequal(expected.scales, found.scales, fmt.scale_format)
    codes = _unequal(expected.codes, found.codes, fmt.element)
    if nan := _nan_codes(fmt.scale_format):
        lost = np.isin(expected.scales, nan) & np.isin(found.scales, nan)
        codes &= ~lost.repeat(fmt.block, axis=1)
    number = False
    if expected.number is not None and found.number is not None:
        number = not np.array_equal(expected.number, found.number, equal_nan=True)
    return scales, codes, number


def same(expected: Outcome, found: Outcome, fmt: BlockFormat) -> bool:
    """Return whether all bytes of two outcomes agree; their numbers are not compared."""
    if _unequal(expected.scales, found.scales, fmt.scale_format).any():
        return False
    scales, codes, _ = compared(expected, found, fmt)
    return not (scales.any() or codes.any())

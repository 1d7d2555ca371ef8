"""The tables of the codec, made by its definition, and the kernels that look codes up."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8.arguments import array_of, wrong_array
from npfp8.arrays import Array, Kernel, lookup, require_array, scratch, table_kernel
from npfp8.bfloat16 import from_bits, is_bfloat16, to_bits
from npfp8.codec.definition import codes_of, depends_on_overflow, refuse_nan
from npfp8.formats import FloatFormat, Format, IntFormat
from npfp8.rounding import float64_to_float32, integer_to_float64

__all__ = ["checked_codes", "table_encoder", "values_of"]

#: Numbers of a chunk that are looked at before all are.
_FEW = 64


def checked_codes(codes: npt.ArrayLike | None, fmt: Format, argument: str = "") -> Array:
    """Return codes as an array; raise unless they are codes of the format.

    Parameters
    ----------
    codes : array_like
    fmt : Format
    argument : str
        The name of the argument, for the error; without it, that of the format.

    Raises
    ------
    TypeError
        If they have another dtype than the format's codes.
    ValueError
        If a code has more bits than the format.
    """
    argument = argument or f"{fmt} codes"
    patterns = array_of(argument, codes)
    if patterns.dtype != fmt.code_dtype:
        raise wrong_array(argument, str(fmt.code_dtype), patterns, codes)
    known = fmt.values.size
    if known == 256:
        return patterns
    low, high = fmt.code_range if isinstance(fmt, IntFormat) else (0, known - 1)
    for found in (patterns.max(initial=0), patterns.min(initial=0)):
        if not low <= found <= high:
            raise ValueError(f"{argument}: expected {low}..{high}, found {found}")
    return patterns


def values_of(
    codes: Array,
    fmt: Format,
    dtype: np.dtype[Any] | None,
    out: Array | None = None,
    threads: int = 1,
) -> Array:
    """Return the values of checked codes as a float dtype; for None, as the bits of bfloat16."""
    if dtype is not None and is_bfloat16(dtype):
        if out is None:
            return values_of(codes, fmt, None, None, threads).view(dtype)
        require_array("out", out, dtype)
        values_of(codes, fmt, None, out.view(np.uint16), threads)
        return out
    return lookup(_value_table(fmt, dtype), codes.view(np.uint8), out=out, threads=threads)


@lru_cache(maxsize=64)
def _value_table(fmt: Format, dtype: np.dtype[Any] | None) -> Array:
    """Return the value of each of the 256 codes as a float dtype; for None, as bfloat16 bits.

    Raises TypeError if the dtype cannot hold a value.
    """
    exact = np.resize(fmt.values, 256)
    is_float = dtype is None or dtype.kind == "f"
    with np.errstate(all="ignore"):
        if dtype is None:
            table = to_bits(exact.astype(np.float32))
            back = from_bits(table)
        else:
            table = back = exact.astype(dtype if is_float else np.float16)
    if not is_float or not np.array_equal(back.astype(np.float64), exact, equal_nan=True):
        name = "bfloat16" if dtype is None else dtype
        raise TypeError(
            f"dtype: expected a float dtype that holds every value of {fmt} exactly, found {name}"
        )
    table.flags.writeable = False
    return table


def table_encoder(
    fmt: FloatFormat,
    saturate: bool,
    rounding: str,
    source: str,
    overflow: str = "ieee",
    numbers: bool = False,
) -> Kernel:
    """Return the kernel that encodes chunks of a source by a table.

    ``numbers`` says that there are no NaNs: none is looked for.
    """
    if not depends_on_overflow(saturate, rounding):
        overflow = "ieee"  # one table for both
    kernel = _table_kernel(fmt, saturate, rounding, source, overflow)
    if numbers or fmt.nan_code is not None:
        return kernel

    def strict(x: Array, codes: Array) -> None:
        refuse_nan(from_bits(x) if source == "bfloat16" else x, fmt)
        kernel(x, codes)

    return strict


@lru_cache(maxsize=256)
def _table_kernel(
    fmt: FloatFormat, saturate: bool, rounding: str, source: str, overflow: str
) -> Kernel:
    """Return the kernel without the check for NaN; equal formats of different names share it."""
    if source == "float32":
        return _float32_kernel(fmt, saturate, rounding, overflow)
    find = table_kernel(_code_table(fmt, saturate, rounding, source, overflow))
    return lambda x, codes: find(x.view(np.uint16), codes)


def _float32_kernel(fmt: FloatFormat, saturate: bool, rounding: str, overflow: str) -> Kernel:
    """Return the kernel for float32, and for inputs that are first rounded to odd to float32."""
    find = table_kernel(_code_table(fmt, saturate, rounding, "float32", overflow))
    shift = np.array(fmt.key_shift, np.uint32)
    low = np.array((1 << fmt.key_shift) - 1, np.uint32)
    # Where the value that would follow the largest one is beyond float32 (E8M0FNU), rounding
    # to odd leaves no float32 that stands for it. An infinity overflows to the same code.
    out_of_reach = overflow == "special" and fmt.grid[-1] > np.finfo(np.float32).max

    def kernel(x: Array, codes: Array) -> None:
        if x.dtype.kind != "f":
            x = integer_to_float64(x)
        if x.dtype != np.float32:
            if out_of_reach:
                x = np.where(np.abs(x) >= fmt.grid[-1], np.copysign(np.inf, x), x)
            x = float64_to_float32(x)
        bits = x.view(np.uint32)
        keys = scratch(x.size, np.uint32)
        if _all_clear(bits[:_FEW], low) and _all_clear(bits, low):  # as in bfloat16 models
            np.right_shift(bits, shift, keys)
        else:
            # To odd: adding `low` carries into the last bit kept if a low bit is set.
            np.bitwise_and(bits, low, keys)
            np.add(keys, low, keys)
            np.bitwise_or(keys, bits, keys)
            np.right_shift(keys, shift, keys)
        find(keys, codes)

    return kernel


def _all_clear(bits: npt.NDArray[np.uint32], mask: npt.NDArray[np.uint32]) -> bool:
    """Return whether no number has one of some bits."""
    return not int(np.bitwise_or.reduce(bits)) & int(mask)


@lru_cache(maxsize=64)
def _code_table(
    fmt: FloatFormat, saturate: bool, rounding: str, source: str, overflow: str
) -> npt.NDArray[np.uint8]:
    """Return the code of every bit pattern of float16 or bfloat16, or of every key of float32."""
    shift = fmt.key_shift if source == "float32" else 16
    keys = np.arange(1 << (32 - shift), dtype=np.uint32)
    if source == "float16":
        numbers = keys.astype(np.uint16).view(np.float16)
    else:
        numbers = (keys << np.uint32(shift)).view(np.float32)
    with np.errstate(invalid="ignore"):  # the table has signalling NaNs too
        table = codes_of(numbers.astype(np.float64), fmt, saturate, rounding, overflow)
    table.flags.writeable = False
    return table

"""The float types of the test vectors, and their numbers as bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float64Array
from npfp8.bfloat16 import from_bits, round_to_bfloat16, to_bits
from npfp8.codec import decode, decode_bfloat16, encode, encode_bfloat16
from npfp8.formats import FloatFormat

__all__ = ["SOURCES", "Bits", "Source"]

Bits = npt.NDArray[np.unsignedinteger[Any]]


class Source(NamedTuple):
    """A float type: the dtype of its bits, and the parts of its special values."""

    bits: np.dtype[Any]
    infinity: int
    mantissa_bits: int
    to_float: Callable[[Bits], Array]
    from_float64: Callable[[Float64Array], Bits]
    encode: Callable[..., npt.NDArray[np.uint8]]
    decode: Callable[[npt.NDArray[np.uint8], FloatFormat], Bits]

    @property
    def smallest(self) -> float:
        """The smallest positive normal number."""
        one = np.array([1 << self.mantissa_bits], self.bits)
        return float(self.to_float(one)[0])

    def exact(self, bits: Bits) -> Float64Array:
        """Return the numbers of bits in float64."""
        with np.errstate(invalid="ignore"):  # signalling NaNs
            return self.to_float(bits).astype(np.float64)

    def holds(self, fmt: FloatFormat) -> bool:
        """Check whether the type has every value of a format."""
        with np.errstate(over="ignore", under="ignore"):
            narrow = self.exact(self.from_float64(fmt.values))
        return np.array_equal(narrow, fmt.values, equal_nan=True)


def _encode_floats(dtype: type[Any]) -> Callable[..., npt.NDArray[np.uint8]]:
    return lambda bits, *rest, **how: encode(bits.view(dtype), *rest, **how)


#: The float types, by name.
SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        "float32": Source(
            np.dtype(np.uint32),
            0x7F800000,
            23,
            lambda bits: bits.view(np.float32),
            lambda x: x.astype(np.float32).view(np.uint32),
            _encode_floats(np.float32),
            lambda codes, fmt: decode(codes, fmt).view(np.uint32),
        ),
        "float16": Source(
            np.dtype(np.uint16),
            0x7C00,
            10,
            lambda bits: bits.view(np.float16),
            lambda x: x.astype(np.float16).view(np.uint16),
            _encode_floats(np.float16),
            lambda codes, fmt: decode(codes, fmt, np.float16).view(np.uint16),
        ),
        "bfloat16": Source(
            np.dtype(np.uint16),
            0x7F80,
            7,
            from_bits,
            lambda x: to_bits(round_to_bfloat16(x)),
            encode_bfloat16,
            decode_bfloat16,
        ),
    }
)

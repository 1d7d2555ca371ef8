"""Test your own codec: hypothesis strategies and ready checks. Needs the package hypothesis.

Three lines test your encoder and decoder::

    from npfp8 import E4M3FN, testing
    testing.check_encoder(my_encode, E4M3FN)   # float32 array -> uint8 array
    testing.check_decoder(my_decode, E4M3FN)   # uint8 array -> float array

A check raises AssertionError with the bits of the input, the expected and the found
code, and the name of the mistake if it is a usual one.

:func:`check_block_quantizer` names the rule that a quantizer of a block format follows.
"""

from __future__ import annotations

from collections.abc import Callable

import hypothesis.extra.numpy as hypothesis_numpy
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from npfp8.arguments import flag, integer, require_function
from npfp8.arrays import Array, Float32Array
from npfp8.boundaries import boundary_bits, boundary_numbers
from npfp8.codec import decode, encode
from npfp8.dialects import check_block_quantizer
from npfp8.formats import FloatFormat, as_float_format
from npfp8.mistakes import Encoder, differing, likely_mistake

__all__ = [
    "arrays_near_boundaries",
    "boundary_values",
    "check_block_quantizer",
    "check_decoder",
    "check_encoder",
    "codes",
    "edge_cases",
    "finite_values",
]

Decoder = Callable[[npt.NDArray[np.uint8]], Array]


def codes(fmt: FloatFormat | str) -> st.SearchStrategy[int]:
    """Draw codes of a format, including those of NaN and infinity.

    Examples
    --------
    >>> from hypothesis import HealthCheck, given, settings
    >>> from npfp8 import E4M3FN, testing
    >>> @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    ... @given(testing.codes(E4M3FN))
    ... def test_range(code):
    ...     assert 0 <= code < 256
    >>> test_range()
    """
    return st.integers(0, as_float_format(fmt).values.size - 1)


def finite_values(fmt: FloatFormat | str) -> st.SearchStrategy[float]:
    """Draw the finite values of a format as floats, including -0.0 if it has one.

    Examples
    --------
    >>> from hypothesis import HealthCheck, given, settings
    >>> from npfp8 import E4M3FN, testing
    >>> @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    ... @given(testing.finite_values(E4M3FN))
    ... def test_range(x):
    ...     assert abs(x) <= 448
    >>> test_range()
    """
    fmt = as_float_format(fmt)
    return st.sampled_from(fmt.values[fmt.is_finite].tolist())


def boundary_values(fmt: FloatFormat | str) -> st.SearchStrategy[float]:
    """Draw float32 numbers on and beside the boundaries at which rounding changes its result.

    They are the values, the midpoints, the overflow threshold and the float32 numbers
    next to each, and zeros, infinities, NaN, and the smallest and the largest float32.

    Examples
    --------
    >>> from hypothesis import HealthCheck, given, settings
    >>> from npfp8 import E4M3FN, encode, testing
    >>> @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    ... @given(testing.boundary_values(E4M3FN))
    ... def test_codes(x):
    ...     assert 0 <= encode(x, E4M3FN) < 256
    >>> test_codes()
    """
    return st.sampled_from(edge_cases(fmt).tolist())


def arrays_near_boundaries(
    fmt: FloatFormat | str, shape: int | tuple[int, ...]
) -> st.SearchStrategy[Float32Array]:
    """Draw float32 arrays of a shape, of boundary values and of any float32 numbers.

    Examples
    --------
    >>> from hypothesis import HealthCheck, given, settings
    >>> from npfp8 import E4M3FN, encode, testing
    >>> @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    ... @given(testing.arrays_near_boundaries(E4M3FN, (2, 3)))
    ... def test_shape(x):
    ...     assert encode(x, E4M3FN).shape == (2, 3)
    >>> test_shape()
    """
    fmt = as_float_format(fmt)
    lengths = shape if isinstance(shape, tuple) else (shape,)
    shape = tuple(integer("shape", length) for length in lengths)
    anything = st.floats(width=32)
    elements = st.one_of(boundary_values(fmt), anything)
    return hypothesis_numpy.arrays(np.float32, shape, elements=elements)


def edge_cases(fmt: FloatFormat | str) -> Float32Array:
    """Return all numbers that :func:`boundary_values` draws from.

    Parameters
    ----------
    fmt : FloatFormat or str

    Returns
    -------
    ndarray of float32, of some thousands of elements

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import testing
    >>> bool(np.isin(np.float32([448, 464, np.inf]), testing.edge_cases("E4M3FN")).all())
    True
    """
    fmt = as_float_format(fmt)
    numbers = boundary_numbers(fmt, finer=True)
    bits = boundary_bits(numbers, 23, 0x7F800000, lambda x: x.astype(np.float32).view(np.uint32))
    positive = np.append(bits.astype(np.uint32).view(np.float32), np.float32(np.nan))
    return np.concatenate([positive, -positive])


def check_encoder(encoder: Encoder, fmt: FloatFormat | str, saturate: bool = True) -> None:
    """Check an encoder against the one of this package, over the whole range of float32.

    The inputs are :func:`edge_cases`, every bfloat16 and every float16 value,
    and float32 numbers spread evenly over all bit patterns: some 400,000.

    Parameters
    ----------
    encoder : callable (ndarray of float32) -> ndarray of uint8
        It rounds to nearest, ties to even, and is called with 1-D arrays.
    fmt : FloatFormat or str
        The format, or its name.
    saturate : bool
        The mode of :func:`npfp8.encode` that it must agree with. If the format has a
        NaN, the inputs include NaN; any NaN code is accepted as the result.

    Raises
    ------
    AssertionError
        If a code differs.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E4M3FN, encode, testing
    >>> testing.check_encoder(lambda x: encode(x, E4M3FN), E4M3FN)
    >>> def truncating(x):
    ...     return encode(x, E4M3FN, rounding="toward_zero")
    >>> testing.check_encoder(truncating, E4M3FN)
    Traceback (most recent call last):
    ...
    AssertionError: E4M3FN encoder: 38517 of 405468 codes differ; first for 0.0009765626164153218 \
(bits 0x3A800001): expected 0x01, found 0x00. It looks like truncation
    """
    require_function("encoder", encoder)
    fmt, saturate = as_float_format(fmt), flag("saturate", saturate)
    x = _inputs(fmt)
    expected = encode(x, fmt, saturate)
    found = np.asarray(encoder(x))
    if found.dtype != np.uint8 or found.shape != x.shape:
        raise AssertionError(
            f"{fmt} encoder: expected uint8 of shape {x.shape}, found {found.dtype} of shape "
            f"{found.shape}"
        )
    if fmt.values.size < 256 and (too_wide := found >= fmt.values.size).any():
        index = int(np.flatnonzero(too_wide)[0])
        raise AssertionError(f"{fmt} encoder: found {found[index]:#04x}, more than {fmt.bits} bits")
    wrong = differing(expected, found, fmt)
    if not wrong.any():
        return
    index = int(np.flatnonzero(wrong)[0])
    with np.errstate(all="ignore"):
        cause = likely_mistake(x, found, fmt, saturate)
    raise AssertionError(
        f"{fmt} encoder: {np.count_nonzero(wrong)} of {x.size} codes differ; first for "
        f"{x[index]} (bits 0x{x.view(np.uint32)[index]:08X}): expected 0x{expected[index]:02X}, "
        f"found 0x{found[index]:02X}{cause and '. It looks like '}{cause}"
    )


def check_decoder(decoder: Decoder, fmt: FloatFormat | str) -> None:
    """Check a decoder over every code.

    Parameters
    ----------
    decoder : callable (ndarray of uint8) -> ndarray of floats
        It is called with a 1-D array.
    fmt : FloatFormat or str
        The format, or its name.

    Raises
    ------
    AssertionError
        If a value differs, including the sign of a zero, or only one of two is NaN.

    Examples
    --------
    >>> from npfp8 import E5M2, decode, testing
    >>> testing.check_decoder(lambda codes: decode(codes, E5M2), E5M2)
    >>> testing.check_decoder(lambda codes: decode(codes, E5M2) * 2, E5M2)
    Traceback (most recent call last):
    ...
    AssertionError: E5M2 decoder: code 0x01: expected 1.52587890625e-05, found 3.0517578125e-05
    """
    require_function("decoder", decoder)
    fmt = as_float_format(fmt)
    patterns = np.arange(fmt.values.size, dtype=np.uint8)
    expected = decode(patterns, fmt, np.float64)
    found = np.asarray(decoder(patterns)).astype(np.float64)
    if found.shape != expected.shape:
        raise AssertionError(f"{fmt} decoder: expected shape {expected.shape}, found {found.shape}")
    same = (found == expected) & (np.signbit(found) == np.signbit(expected))
    wrong = ~(same | (np.isnan(found) & np.isnan(expected)))
    if wrong.any():
        code = int(np.flatnonzero(wrong)[0])
        raise AssertionError(
            f"{fmt} decoder: code 0x{code:02X}: expected {expected[code]}, found {found[code]}"
        )


def _inputs(fmt: FloatFormat) -> Float32Array:
    """Return the inputs of :func:`check_encoder`; without NaN if the format has none."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    bfloat16 = (halves << np.uint32(16)).view(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        float16 = halves.astype(np.uint16).view(np.float16).astype(np.float32)
    # An odd stride visits exponents, mantissas and low bits evenly.
    spread = (np.arange(1 << 18, dtype=np.uint64) * np.uint64(16411)).astype(np.uint32)
    x = np.concatenate([edge_cases(fmt), bfloat16, float16, spread.view(np.float32)])
    return x[~np.isnan(x)] if fmt.nan_code is None else x

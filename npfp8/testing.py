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
from typing import Any

import hypothesis.extra.numpy as hypothesis_numpy
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from npfp8.arguments import array_of, choice, flag, integer, require_function, wrong_array
from npfp8.arrays import Array, Float32Array
from npfp8.boundaries import boundary_bits
from npfp8.codec import ROUNDINGS, decode, encode
from npfp8.dialects import check_block_quantizer
from npfp8.formats import FloatFormat, as_float_format
from npfp8.mistakes import Encoder, Explanation, differing, explain_codes
from npfp8.mistakes.decoders import differing_values, explain_values

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

    They are the numbers of :func:`edge_cases`.

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

    They are those of the test vectors (:func:`npfp8.vectors.boundary_inputs`) and of the
    kits of ``bert_numpy``, and one NaN of each sign.

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
    bits = boundary_bits(fmt, 23, 0x7F800000, lambda x: x.astype(np.float32).view(np.uint32))
    positive = np.append(bits.astype(np.uint32).view(np.float32), np.float32(np.nan))
    return np.concatenate([positive, -positive])


def check_encoder(
    encoder: Encoder,
    fmt: FloatFormat | str,
    saturate: bool = True,
    *,
    rounding: str = "nearest",
    overflow: str = "ieee",
    random_bits: npt.NDArray[np.unsignedinteger[Any]] | None = None,
    bit_count: int | None = None,
) -> None:
    """Check an encoder against the one of this package, over the whole range of float32.

    The inputs are :func:`edge_cases`, every bfloat16 and every float16 value,
    and float32 numbers spread evenly over all bit patterns: some 400,000.

    Parameters
    ----------
    encoder : callable (ndarray of float32) -> ndarray of uint8
        It is called with 1-D arrays.
    fmt : FloatFormat or str
        The format, or its name.
    saturate, rounding, overflow
        The mode of :func:`npfp8.encode` that it must agree with. If the format has a
        NaN, the inputs include NaN; any NaN code is accepted as the result.
    random_bits, bit_count
        For stochastic rounding: at least as many words as there are inputs, of which the
        low ``bit_count`` bits decide; and then the encoder takes the numbers and the words,
        as many of each.

    Raises
    ------
    AssertionError
        If a code differs. The message names the usual mistake that explains every code, or
        else the one that explains most of the wrong ones.
    TypeError, ValueError
        If an argument is not as stated.

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
    AssertionError: E4M3FN encoder: 35241 of 398874 codes differ; first for 0.0009765626164153218 \
(bits 0x3A800001): expected 0x01, found 0x00. It looks like truncation
    >>> testing.check_encoder(truncating, E4M3FN, rounding="toward_zero")
    >>> testing.check_encoder(lambda x: encode(x, E4M3FN), E4M3FN, rounding="up")
    Traceback (most recent call last):
    ...
    AssertionError: E4M3FN encoder: 113917 of 398874 codes differ; first for 1.401298464324817e-45 \
(bits 0x00000001): expected 0x01, found 0x00. It looks like nearest instead of up (rounding mode \
ignored)
    """
    require_function("encoder", encoder)
    fmt, saturate = as_float_format(fmt), flag("saturate", saturate)
    x = _inputs(fmt)
    rounding = choice("rounding", rounding, ROUNDINGS)
    how: dict[str, Any] = {"rounding": rounding, "overflow": overflow}
    words = None if random_bits is None else _words(random_bits, x.size)
    if bit_count is not None:
        bit_count = integer("bit_count", bit_count)
    if rounding == "stochastic":
        if words is None:
            raise ValueError("random_bits: expected an array for stochastic rounding, found None")
        how |= {"random_bits": words, "bit_count": bit_count}
        found = np.asarray(encoder(x, words))  # type: ignore[call-arg]
    else:
        found = np.asarray(encoder(x))
    expected = encode(x, fmt, saturate, **how)
    _require_codes(found, x.shape, fmt)
    wrong = differing(expected, found, fmt)
    if not wrong.any():
        return
    index = int(np.flatnonzero(wrong)[0])
    cause = explain_codes(x, found, fmt, saturate, **how)
    raise AssertionError(
        f"{fmt} encoder: {np.count_nonzero(wrong)} of {x.size} codes differ; first for "
        f"{x[index]} (bits 0x{x.view(np.uint32)[index]:08X}): expected 0x{expected[index]:02X}, "
        f"found 0x{found[index]:02X}{_in_words(cause)}"
    )


def _words(
    random_bits: npt.NDArray[np.unsignedinteger[Any]], size: int
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Return as many random words as there are inputs."""
    words = array_of("random_bits", random_bits).reshape(-1)
    if words.dtype.kind != "u":
        raise wrong_array("random_bits", "unsigned integers", words, random_bits)
    if words.size < size:
        raise ValueError(f"random_bits: expected at least {size} words, found {words.size}")
    return words[:size]


def _require_codes(found: Array, shape: tuple[int, ...], fmt: FloatFormat) -> None:
    if found.dtype != np.uint8 or found.shape != shape:
        raise AssertionError(
            f"{fmt} encoder: expected uint8 of shape {shape}, found {found.dtype} of shape "
            f"{found.shape}"
        )
    if fmt.values.size < 256 and (too_wide := found >= fmt.values.size).any():
        index = int(np.flatnonzero(too_wide)[0])
        raise AssertionError(f"{fmt} encoder: found {found[index]:#04x}, more than {fmt.bits} bits")


def _in_words(explanation: Explanation) -> str:
    if explanation.cause:
        return f". It looks like {explanation.cause}"
    return f". Most likely: {explanation.text()}" if explanation.partial else ""


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
        If a value differs, including the sign of a zero, or only one of two is NaN. The
        message names the usual mistake that explains every value, or else most of them.

    Examples
    --------
    >>> from npfp8 import E5M2, decode, testing
    >>> testing.check_decoder(lambda codes: decode(codes, E5M2), E5M2)
    >>> testing.check_decoder(lambda codes: decode(codes, E5M2) * 2, E5M2)
    Traceback (most recent call last):
    ...
    AssertionError: E5M2 decoder: code 0x01: expected 1.52587890625e-05, found 3.0517578125e-05. \
It looks like exponent bias off by one
    """
    require_function("decoder", decoder)
    fmt = as_float_format(fmt)
    patterns = np.arange(fmt.values.size, dtype=np.uint8)
    expected = decode(patterns, fmt, np.float64)
    found = np.asarray(decoder(patterns))
    dtype, found = found.dtype, found.astype(np.float64)
    if found.shape != expected.shape:
        raise AssertionError(f"{fmt} decoder: expected shape {expected.shape}, found {found.shape}")
    wrong = differing_values(expected, found)
    if wrong.any():
        code = int(np.flatnonzero(wrong)[0])
        smallest = float(np.finfo(dtype).tiny) if dtype.kind == "f" else 0.0
        cause = explain_values(patterns, found, fmt, smallest)
        raise AssertionError(
            f"{fmt} decoder: code 0x{code:02X}: expected {expected[code]}, found {found[code]}"
            f"{_in_words(cause)}"
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

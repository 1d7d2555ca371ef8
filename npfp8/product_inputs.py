"""Operands of matrix products that tell accumulators apart.

Normal numbers alone do not: an accumulator that drops what is far below the largest term, or
that forgets an infinity, agrees with others on them. Each kind of data here makes another part
of a rule count.
"""

from __future__ import annotations

import numpy as np

from npfp8.arguments import choice
from npfp8.arrays import Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.formats import FloatFormat
from npfp8.tensor import QuantizedTensor, quantize

__all__ = ["FLOAT_KINDS", "KINDS", "draw_codes", "draw_floats", "draw_operands"]

#: The kinds of codes, and what they are for.
KINDS = {
    "normal": "normal numbers, scaled by their absolute maximum",
    "uniform": "codes of any exponent",
    "narrow": "magnitudes of one binade",
    "growing": "positive numbers: the accumulator outgrows the products",
    "largest": "the largest codes",
    "cancelling": "numbers whose second half of K cancels the first",
    "subnormal": "subnormals, and few others",
    "edge": "few large products among many that are at the edge of being cut off",
    "sparse": "nine zeros in ten",
    "special": "NaN and infinities among codes of any exponent",
}

#: The kinds of 16-bit floats.
FLOAT_KINDS = {
    "normal": "normal numbers",
    "bits": "any finite bits",
    "wide": "normal numbers of sixteen binades",
    "growing": "magnitudes of normal numbers",
    "huge": "products around the largest number of the result",
    "tiny": "products around the smallest number of the result",
    "cancelling": "numbers whose second half of K cancels the first",
    "subnormal": "subnormals",
    "sparse": "nine zeros in ten",
    "special": "NaN and infinities among normal numbers",
}


def draw_codes(
    kind: str, fmt: FloatFormat, shape: tuple[int, int], rng: np.random.Generator
) -> Array:
    """Draw codes of a kind of data; "cancelling" is "uniform" for a single operand.

    Parameters
    ----------
    kind : str
        A key of :data:`KINDS`.
    fmt : FloatFormat
    shape : tuple of int, (M, K)
    rng : numpy.random.Generator

    Returns
    -------
    ndarray of uint8, (M, K)

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import E2M1
    >>> draw_codes("largest", E2M1, (1, 4), np.random.default_rng(0))
    array([[ 7, 14, 14, 14]], dtype=uint8)
    """
    kind = choice("kind", kind, KINDS)
    mantissas, top = 1 << fmt.mantissa_bits, fmt.max_code >> fmt.mantissa_bits
    one, k = fmt.bias << fmt.mantissa_bits, shape[1]
    signs = rng.integers(0, 2, shape, np.uint8) * np.uint8(fmt.sign_bit)

    def below(limit: int) -> Array:
        return rng.integers(0, limit, shape, np.uint8)

    def often(probability: float) -> Array:
        return rng.random(shape) < probability

    any_code = below(fmt.max_code + 1) | signs
    if kind == "normal":
        codes = quantize(rng.standard_normal(shape), fmt).codes
    elif kind == "narrow":
        codes = one + below(mantissas) | signs
    elif kind == "growing":
        codes = np.minimum(one + below(3 * mantissas), fmt.max_code)
    elif kind == "largest":
        codes = fmt.max_code - below(2) | signs
    elif kind == "subnormal":
        codes = np.where(often(0.01), below(one), below(mantissas + 2) | signs)
    elif kind == "edge":
        exponents = np.where(often(1 / 24), top, np.maximum(top - 3 - below(7).astype(int), 0))
        codes = np.minimum(exponents * mantissas + below(mantissas), fmt.max_code) | signs
    elif kind == "sparse":
        codes = np.where(often(0.9), signs, any_code)
    elif kind == "special":  # an infinity in one row of three, a NaN in one of six
        infinity = any_code if fmt.infinity_code is None else fmt.infinity_code | signs
        codes = np.where(often(0.4 / k), infinity, any_code)
        if fmt.nan_code is not None:
            nan = np.uint8(fmt.nan_code)
            codes = np.where(often(0.2 / k), nan if nan == fmt.sign_bit else nan | signs, codes)
    else:
        codes = any_code
    codes = codes.astype(np.uint8)
    if fmt.sign_bit in fmt.nan_codes and kind != "special":
        codes[codes == fmt.sign_bit] = 1
    return codes


def draw_operands(
    kind: str,
    fmts: tuple[FloatFormat, FloatFormat],
    shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> tuple[QuantizedTensor, QuantizedTensor]:
    """Draw the operands (M, K) and (N, K), of scale 1, of a product of codes.

    Parameters
    ----------
    kind : str
        A key of :data:`KINDS`.
    fmts : tuple of FloatFormat
    shape : tuple of int, (M, K, N)
    rng : numpy.random.Generator
    """
    m, k, n = shape
    a, b = (draw_codes(kind, fmt, (rows, k), rng) for fmt, rows in zip(fmts, (m, n), strict=True))
    if kind == "cancelling":
        half, fmt = k // 2, fmts[1]
        order = rng.permutation(half)
        a[:, half : 2 * half] = a[:, order]
        b[:, half : 2 * half] = b[:, order] ^ fmt.sign_bit
        b[:, rng.integers(k)] ^= 1
        b[~fmt.is_finite[b]] = 1
    one = np.ones((), np.float32)
    return QuantizedTensor(a, one, fmts[0]), QuantizedTensor(b, one, fmts[1])


def draw_floats(
    kind: str, name: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw the operands (M, K) and (N, K) of a product of 16-bit floats.

    Parameters
    ----------
    kind : str
        A key of :data:`FLOAT_KINDS`.
    name : {"float16", "bfloat16"}
    shape : tuple of int, (M, K, N)
    rng : numpy.random.Generator

    Returns
    -------
    a, b : ndarray of float16, or of float32 with bfloat16 values
    """
    kind = choice("kind", kind, FLOAT_KINDS)
    half = choice("name", name, ("float16", "bfloat16")) == "float16"
    m, k, n = shape
    exponents = 0x7C00 if half else 0x7F80

    def of_bits(bits: Array) -> Array:
        with np.errstate(invalid="ignore"):
            return (
                bits.view(np.float16) if half else (bits.astype(np.uint32) << 16).view(np.float32)
            )

    def rounded(x: Array) -> Array:
        with np.errstate(over="ignore", under="ignore"):
            if half:
                return np.clip(x, -65504, 65504).astype(np.float16)
            return round_to_bfloat16(np.clip(x, -3.38e38, 3.38e38).astype(np.float32))

    def one(rows: int) -> Array:
        if kind == "bits":
            bits = rng.integers(0, 1 << 16, (rows, k), np.uint16)
            bits[bits & exponents == exponents] &= 0x83FF
            return of_bits(bits)
        x = rng.standard_normal((rows, k))
        if kind == "wide":
            x *= 2.0 ** rng.integers(-12, 4, x.shape)
        elif kind == "growing":
            x = np.abs(x)
        elif kind == "huge":
            x *= 2.0 ** (6 if half else 62)
        elif kind == "tiny":
            x *= 2.0 ** (-12 if half else -70)
        elif kind == "subnormal":
            x *= 2.0 ** (-17 if half else -130)
        elif kind == "sparse":
            x[rng.random(x.shape) < 0.9] = 0.0
        elif kind == "special":
            x[rng.random(x.shape) < 0.4 / k] = np.inf
            x[rng.random(x.shape) < 0.4 / k] = -np.inf
            x[rng.random(x.shape) < 0.2 / k] = np.nan
            return x.astype(np.float16) if half else round_to_bfloat16(x.astype(np.float32))
        return rounded(x)

    a, b = one(m), one(n)
    if kind == "cancelling":
        run = k // 2
        order = rng.permutation(run)
        a[:, run : 2 * run] = a[:, order]
        b[:, run : 2 * run] = -b[:, order]
        b[:, rng.integers(k)] *= b.dtype.type(1.5)
        b = rounded(b)
    return a, b

"""Numbers that tell block quantizers apart, and what quantizers make of them by other arithmetic.

MX: integers and fractions, one block at a time, without npfp8's arithmetic.
"""

from __future__ import annotations

import bisect
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8 import Format
from npfp8.formats import FloatFormat

Array = npt.NDArray[Any]

#: Mantissa bits, and the exponents of the smallest subnormal and the largest number.
TYPES = {"float32": (23, -149, 127), "float16": (10, -24, 15), "bfloat16": (7, -133, 127)}


def to_type(x: npt.ArrayLike, source: str) -> npt.NDArray[np.float32]:
    """Round to a type, to nearest even; the result in float32."""
    with np.errstate(all="ignore"):
        x = np.asarray(x, np.float64).astype(np.float32)
        if source == "float16":
            return x.astype(np.float16).astype(np.float32)
        if source == "bfloat16":
            bits = x.view(np.uint32)
            rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
            return np.where(np.isnan(x), x, (rounded & np.uint32(0xFFFF0000)).view(np.float32))
    return x


def midpoints(element: Format) -> npt.NDArray[np.float64]:
    """Return the positive values of a format, the midpoints between them, and numbers beyond."""
    values = np.unique(np.abs(element.values[np.isfinite(element.values)]))
    values = values[values <= element.max]
    middle = (values[1:] + values[:-1]) / 2
    beyond = element.max * np.array([1 + 2.0**-6, 1.0625, 1.125, 1.25, 1.5, 1.75, 2])
    return np.concatenate([values, middle, beyond])


def normal_blocks(source: str, count: int = 64, block: int = 32) -> npt.NDArray[np.float32]:
    """Return random blocks, of several scales."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, count, block))
    return to_type(x * np.array([1, 0.02, 1e-3, 40])[:, None, None], source).reshape(-1, block)


def adversarial_blocks(
    element: Format, source: str, block: int = 32, count: int = 4000
) -> npt.NDArray[np.float32]:
    """Return finite blocks of ties, thresholds of all rules, powers of two, zeros, huge and tiny.

    For each exponent that a largest magnitude can have, and each mantissa at which a rule
    changes (and the numbers next to it), a block with that magnitude, of numbers that are values
    and midpoints of the elements, and next to them, under scales that rules may choose; ``count``
    of these blocks by chance.
    """
    rng = np.random.default_rng(1)
    bits, smallest, largest = TYPES[source]
    step = 2.0**-bits
    fractions = [1, 1.25, 1.5, 1.75, 1.875, 1.9375, 1.96875, 1.984375, element.max, 4 / 3, 5 / 3]
    mantissas = [float(np.frexp(value)[0]) * 2 for value in fractions]
    steps = [0, 1, -1, 2, -2, 3, 5, 11, 12, 22, 23, -22, -23, -44, -45, 60]
    exponents = np.arange(smallest, largest + 1)
    leads = np.array([m + n * step for m in mantissas for n in steps] + [2 - step])
    amax = to_type(np.ldexp(leads[None, :], exponents[:, None]), source)
    amax = np.unique(amax[np.isfinite(amax) & (amax > 0)])
    amax = rng.permutation(amax)[:count]
    grid = midpoints(element)
    emax = int(np.floor(np.log2(element.max)))
    shape = (amax.size, block - 1)
    scale = np.frexp(amax)[1][:, None] - 1 - emax + rng.integers(-1, 2, shape)
    x = np.ldexp(rng.choice(grid, shape), scale.clip(-1000, 1000))
    x = x * (1 + step * rng.integers(-1, 2, shape) * rng.integers(0, 2, shape))
    x = to_type(x, source)
    x = np.where(np.abs(x) > amax[:, None], 0, x) * rng.choice([-1.0, 1.0], shape)
    x[rng.random(shape) < 0.05] *= 0
    signed = amax * rng.choice([-1.0, 1.0], amax.size)
    blocks = np.concatenate([signed[:, None], x], axis=1)
    blocks = rng.permuted(blocks, axis=1)
    special = np.zeros((3, block))
    special[1], special[2, ::2] = -0.0, -0.0
    return to_type(np.concatenate([blocks, special]), source)


def special_blocks(source: str, nan: bool = True, block: int = 32) -> npt.NDArray[np.float32]:
    """Return blocks with infinities, and NaNs of both signs, among numbers of all sizes."""
    rng = np.random.default_rng(2)
    count = 200
    x = rng.standard_normal((count, block)) * np.exp2(rng.integers(-10, 10, (count, 1)))
    x = to_type(x, source)
    x[rng.random(x.shape) < 0.1] = 0
    x[rng.random(x.shape) < 0.1] *= -0.0
    kinds = rng.integers(0, 16, x.shape)
    kinds[::3] = np.where(kinds[::3] > 1, 9, kinds[::3])  # of some blocks few are special
    x[kinds == 0], x[kinds == 1] = np.inf, -np.inf
    if nan:
        found = x.view(np.uint32)
        found[kinds == 2], found[kinds == 3] = 0x7FC00000, 0xFFC00000
        found[0] = 0x7FC00000
    return x


def mx_block(
    x: Array, element: Format, rule: str, ends: tuple[int, int] = (-127, 127)
) -> tuple[int, list[int]]:
    """Quantize one block of finite numbers by a plain rule, in integers and fractions.

    Returns
    -------
    exponent : int
        That of the scale, within the ends.
    codes : list of int
        The codes of the elements, as bytes.
    """
    numbers = [Fraction(float(one)) for one in x]
    amax = max(abs(number) for number in numbers)
    largest = Fraction(element.max)
    if amax == 0:
        exponent = ends[0]
    else:
        emax = _log2(largest)
        exponent = {
            "floor": lambda: _log2(amax) - emax,
            "ceil": lambda: -_log2(1 / amax) - emax,
            "rceil": lambda: -_log2(largest / amax),
            "trunc": lambda: _log2(amax / largest),
            "even": lambda: _even(amax, element) - emax,
        }[rule]()
    exponent = max(ends[0], min(ends[1], exponent))
    scale = Fraction(2) ** exponent
    codes = [
        nearest_code(abs(number) / scale, element, bool(np.signbit(one)))
        for number, one in zip(numbers, x, strict=True)
    ]
    return exponent, codes


def _log2(x: Fraction) -> int:
    """Return floor(log2 x)."""
    exponent = x.numerator.bit_length() - x.denominator.bit_length()
    return exponent if Fraction(2) ** exponent <= x else exponent - 1


def _mantissa_bits(element: Format) -> int:
    if isinstance(element, FloatFormat):
        return element.mantissa_bits
    return element.max_code.bit_length() - 1


def _even(amax: Fraction, element: Format) -> int:
    bits = _mantissa_bits(element)
    exponent = _log2(amax)
    return exponent + (amax / Fraction(2) ** exponent >= 2 - Fraction(1, 2 ** (bits + 1)))


@cache
def _values(element: Format) -> list[Fraction]:
    """Return the values of the positive codes, which rise."""
    return [Fraction(float(value)) for value in element.values[: element.max_code + 1]]


def nearest_code(magnitude: Fraction, element: Format, negative: bool = False) -> int:
    """Return the nearest value's code, on a tie the even significand; beyond the largest, its code.

    Negative numbers of a format without sign are NaN, or 0 if it has none.
    """
    if not isinstance(element, FloatFormat):
        whole = round(magnitude * 2**element.fraction_bits)
        whole = max(element.min_code, -whole) if negative else min(element.max_code, whole)
        return whole & 0xFF
    values = _values(element)
    above = min(max(bisect.bisect_left(values, magnitude), 1), len(values) - 1)
    low, high = values[above - 1 : above + 1]
    middle = (low + high) / 2
    tie_goes_up = low / (high - low) % 2 == 1  # the significand of the lower one is odd
    nearest = above - (magnitude < middle or (magnitude == middle and not tie_goes_up))
    if not element.signed:
        return (element.nan_code or 0) if negative and magnitude else nearest
    keeps = nearest or element.sign_bit not in element.nan_codes  # a NaN in the place of -0
    return nearest | (element.sign_bit if negative and keeps else 0)


def smallest_exponents(amax: Array, largest: float) -> npt.NDArray[np.int64]:
    """Return the smallest e with a <= largest * 2^e, by its definition, in float64; exact."""
    amax = amax.astype(np.float64)
    exponents = np.frexp(amax)[1].astype(np.int64) - np.frexp(largest)[1] - 1
    for _ in range(2):
        exponents += amax > np.ldexp(largest, exponents)
    assert (amax <= np.ldexp(largest, exponents)).all()
    assert (amax > np.ldexp(largest, exponents - 1)).all()
    return exponents


def plain_exponents(amax: Array, element: Format, rule: str) -> npt.NDArray[np.int64]:
    """Return a plain rule's exponents of positive, finite numbers, each as a smallest exponent."""
    largest = element.max
    emax = int(np.frexp(largest)[1]) - 1
    bits = _mantissa_bits(element)
    below = np.nextafter(1.0, 0)  # a < 2^(e + 1) is a <= 2^(e + 1) - a bit, for float32 numbers
    return {
        "floor": lambda: smallest_exponents(amax, 2 * below) - emax,
        "ceil": lambda: smallest_exponents(amax, 1.0) - emax,
        "rceil": lambda: smallest_exponents(amax, largest),
        "trunc": lambda: smallest_exponents(amax, 2 * largest * below),
        "even": lambda: smallest_exponents(amax, (2 - 2.0 ** -(bits + 1)) * below) - emax,
    }[rule]()


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def te_block(x: Array, element: Format) -> tuple[int, list[int]]:
    """Quantize one block as TransformerEngine's kernel: float_to_e8m0, exp2f_rcp, satfinite."""
    amax = np.float32(0)
    for one in x:
        amax = np.fmax(amax, np.abs(one))
    scale = np.float32(amax) * np.float32(1 / element.max)
    exponent, mantissa = _bits(scale) >> 23, _bits(scale) & 0x7FFFFF
    if np.isinf(scale):
        exponent = 254
    elif mantissa and exponent != 254 and not (exponent == 0 and mantissa <= 0x400000):
        exponent += 1
    factor = np.float32(1) if exponent == 0 else np.float32(2.0 ** (127 - exponent))
    return exponent, [_nvidia_code(np.float32(one) * factor, element) for one in x]


def triton_block(x: Array, element: Format, up: bool) -> tuple[int, list[int]]:
    """Quantize one block as Triton's _compute_quant_and_scale; its maximum skips NaNs."""
    numbers = [np.abs(one) for one in x if not np.isnan(one)]
    largest = element.max if up else 2.0 ** _log2(Fraction(element.max))
    scale = np.float32(max(numbers, default=np.float32(np.nan))) / np.float32(largest)
    bits = 0x7FFFFFFF if np.isnan(scale) else _bits(scale)
    bits = (bits + (0x7FFFFF if up else 0)) & 0x7F800000
    if np.isnan(scale):
        bits = 0 if up else 0x7F800000
    rounded = np.uint32(bits).view(np.float32)
    factor = np.float32(0) if rounded == 0 else np.float32(1) / rounded
    return bits >> 23, [_nvidia_code(np.float32(one) * factor, element) for one in x]


def vllm_block(x: Array, element: Format) -> tuple[int, list[int]]:
    """Quantize one block as vLLM: cvt_warp_fp16_to_fp4 with UE8M0, _mxfp8_e4m3_quantize_torch."""
    numbers = [np.abs(one) for one in x if not np.isnan(one)]
    if element.bits == 4:
        scale = np.float32(max(numbers, default=np.float32(np.nan))) * np.float32(1 / 6)
        code = 255 if np.isnan(scale) else _bits(scale) >> 23
        rounded = np.uint32(code << 23).view(np.float32)
        factor = np.float32(0) if rounded == 0 else np.float32(1) / rounded
        return code, [_nvidia_code(np.float32(one) * factor, element) for one in x]
    amax = max(float(max(numbers)), 2.0**-126)
    exponent = 127 if np.isinf(amax) else int(np.floor(np.float32(np.log2(amax))))
    scale = np.float32(2.0**exponent)
    return exponent + 127, [_nvidia_code(np.float32(one) / scale, element) for one in x]


def _nvidia_code(x: np.float32, element: Format) -> int:
    """Round to the nearest code, saturate, and make of a NaN FP8's NaN or FP4's largest value."""
    if np.isnan(x):
        return 7 if element.bits == 4 else 0x7F
    magnitude = Fraction(element.max) if np.isinf(x) else abs(Fraction(float(x)))
    return nearest_code(min(magnitude, Fraction(element.max)), element, bool(np.signbit(x)))

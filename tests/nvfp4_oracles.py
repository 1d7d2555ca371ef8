"""NVFP4's dialects from their published rules, in exact fractions rounded where they round.

Nothing here uses NumPy's arithmetic or npfp8: a number is a Python float that is a float32
number, and every operation is done in fractions and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from oracles import BFLOAT16, FLOAT16, FLOAT32, Binary, code_values, multiply32, nearest
from oracles import nearest_code as e4m3

Array = npt.NDArray[Any]

#: The magnitudes of E2M1, by code.
E2M1 = [Fraction(k, 2) for k in (0, 1, 2, 3, 4, 6, 8, 12)]
_LARGEST = float(FLOAT32.max)
_TINY = 2.0**-126


class Quantized(NamedTuple):
    codes: Array
    scale_codes: Array
    values: Array


def divide32(x: float, y: float) -> float:
    """The float32 quotient of two float32 numbers."""
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and math.isinf(y)) or (x == 0 == y):
        return math.nan
    sign = math.copysign(1, x) * math.copysign(1, y)
    if y == 0 or math.isinf(x):
        return sign * math.inf
    if x == 0 or math.isinf(y):
        return sign * 0.0
    return nearest(Fraction(x) / Fraction(y), FLOAT32)


def minimum(x: float, y: float) -> float:
    """The smaller of two numbers; a NaN if one is."""
    return math.nan if math.isnan(x) or math.isnan(y) else min(x, y)


def e2m1(x: float, keeps_zero_sign: bool, nan: int = 0) -> int:
    """The nearest code of E2M1, ties to even, saturating."""
    if math.isnan(x):
        return nan
    magnitude = abs(Fraction(x)) if math.isfinite(x) else Fraction(100)
    # Codes alternate in their last mantissa bit: the even code wins a tie.
    code = min(range(8), key=lambda c: (abs(min(magnitude, Fraction(6)) - E2M1[c]), c % 2))
    negative = math.copysign(1, x) < 0 and (x != 0 or keeps_zero_sign)
    return code | 8 * negative


def e2m1_value(code: int) -> float:
    return math.copysign(float(E2M1[code & 7]), -1 if code & 8 else 1)


def scale_code(x: float) -> int:
    """The code of a scale; a NaN is 0x7F."""
    return 0x7F if math.isnan(x) else e4m3("E4M3FN", x)


def scale_value(code: int) -> float:
    return float(code_values("E4M3FN")[code])


def _blocks(x: Array) -> Iterator[tuple[tuple[int, int], list[float]]]:
    for i, row in enumerate(x):
        for j in range(0, len(row), 16):
            yield (i, j // 16), row[j : j + 16].tolist()


def _quantize(
    x: Array, block: Callable[[list[float]], tuple[int, Sequence[int], Sequence[float]]]
) -> Quantized:
    rows, columns = x.shape
    codes = np.zeros(x.shape, np.uint8)
    scales = np.zeros((rows, -(-columns // 16)), np.uint8)
    values = np.zeros(x.shape, np.float32)
    for (i, j), numbers in _blocks(x):
        at = slice(16 * j, 16 * j + len(numbers))
        scales[i, j], codes[i, at], values[i, at] = block(numbers)
    return Quantized(codes, scales, values)


def te(x: Array, amax: float) -> Quantized:
    """TransformerEngine's reference_nvfp4.py, and its kernel that dequantizes."""
    encode = minimum(divide32(2688.0, amax), _LARGEST) or 1.0
    decode = divide32(1.0, encode)
    multiplier = multiply32(encode, nearest(Fraction(1, 6), FLOAT32))

    def block(numbers: list[float]) -> tuple[int, list[int], list[float]]:
        scale = scale_code(minimum(multiply32(max(map(abs, numbers)), multiplier), 448.0))
        s = scale_value(scale)
        factor = minimum(divide32(1.0, multiply32(s, decode)), _LARGEST)
        codes = [e2m1(multiply32(number, factor), False) for number in numbers]
        final = multiply32(multiply32(s, amax), nearest(Fraction(1, 2688), FLOAT32))
        return scale, codes, [multiply32(e2m1_value(code), final) for code in codes]

    return _quantize(x, block)


def _reciprocal_ftz(x: float) -> float:
    found = divide32(1.0, math.copysign(0.0, x) if abs(x) < _TINY else x)
    return math.copysign(0.0, found) if abs(found) < _TINY else found


def vllm(x: Array, divisor: float) -> Quantized:
    """vLLM's nvfp4_utils.cuh with reciprocals that are rounded once, and its dequantization."""

    def block(numbers: list[float]) -> tuple[int, list[int], list[float]]:
        amax = max(map(abs, numbers))
        scale = scale_code(multiply32(divisor, multiply32(amax, _reciprocal_ftz(6.0))))
        s = scale_value(scale)
        factor = _reciprocal_ftz(multiply32(s, _reciprocal_ftz(divisor))) if s else 0.0
        codes = [e2m1(multiply32(number, factor), True, 7) for number in numbers]
        final = divide32(s, divisor)
        return scale, codes, [multiply32(e2m1_value(code), final) for code in codes]

    return _quantize(x, block)


def exact(x: Array, t: float) -> Quantized:
    """Scales and codes of real numbers, each rounded once."""

    def block(numbers: list[float]) -> tuple[int, list[int], list[float]]:
        ratio = Fraction(max(map(abs, numbers))) / (6 * Fraction(t))
        positive = [Fraction(value) for value in code_values("E4M3FN")[:0x7F]]
        ratio = min(ratio, Fraction(448))
        scale = min(range(0x7F), key=lambda c: (abs(ratio - positive[c]), c % 2))
        s = positive[scale]
        codes = []
        for number in numbers:
            quotient = abs(Fraction(number)) / (s * Fraction(t)) if s else Fraction(0)
            code = min(range(8), key=lambda c: (abs(min(quotient, 6) - E2M1[c]), c % 2))
            codes.append(code | 8 * (math.copysign(1, number) < 0))
        final = multiply32(float(s), t)
        return scale, codes, [multiply32(e2m1_value(code), final) for code in codes]

    return _quantize(x, block)


# Numbers

KINDS: dict[str, Binary] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}


def tensors() -> dict[str, npt.NDArray[np.float32]]:
    """Finite tensors, (rows, multiple of 16): random ones, and made of boundaries of all kinds."""
    rng = np.random.default_rng(0)

    def normal(scale: float, rows: int = 64) -> Array:
        return rng.normal(0, scale, (rows, 128))

    def signs(shape: tuple[int, int]) -> Array:
        return rng.choice([1.0, -1.0], shape)

    def powers(low: int, high: int, rows: int = 64) -> Array:
        """One power of two for each block."""
        return np.exp2(rng.integers(low, high, (rows, 8))).repeat(16, axis=1)

    boundaries = np.array([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 0.125])
    ties = rng.choice(boundaries, (64, 128)) * signs((64, 128))
    ties[:, ::16] = 6
    near = ties * (1 + rng.integers(-2, 3, ties.shape) * 2.0**-23)
    # Blocks whose ratios are the values of E4M3, and the midpoints between them.
    scales = np.array([float(value) for value in code_values("E4M3FN")[:0x7F]])
    ratios = np.concatenate([scales[1:], (scales[1:] + scales[:-1]) / 2])
    unit = rng.uniform(-1, 1, (ratios.size, 16))
    unit[:, 5] = 1
    at_scales = np.vstack([unit * ratios[:, None] * 6, np.full((1, 16), 2688.0)])
    zeros = normal(1.0)
    zeros[:, :16] = 0
    zeros[3] = -0.0
    huge = normal(1.0)
    huge[::4, 16:32] = 3e38
    small = np.ldexp(1.0, rng.integers(-149, -120, (64, 128))) * signs((64, 128))
    small[rng.random(small.shape) < 0.1] = -0.0
    one = np.zeros((1, 32))
    one[0, 7], one[0, 20] = 2.0**-149, -0.0
    found = {
        "normal": normal(0.02),
        "wide": normal(1.0) * powers(-60, 60),
        "underflow of scales": normal(1.0) * powers(-20, 1),
        "ties": ties * powers(-8, 9),
        "next to ties": near * powers(-8, 9),
        "all ties": ties,
        "powers of two": np.exp2(rng.integers(-30, 5, (64, 128))) * signs((64, 128)),
        "at scales": at_scales,
        "at scales of a small tensor": at_scales * 2.0**-30,
        "zero blocks": zeros,
        "zeros": np.zeros((2, 32)),
        "huge blocks": huge,
        "largest": np.full((2, 32), _LARGEST),
        "subnormal": small,
        "smallest": one,
        "g so small that the number of the tensor overflows": normal(1e-36),
        "around the smallest normal": normal(1e-38),
    }
    with np.errstate(over="ignore", under="ignore"):
        return {name: x.astype(np.float32) for name, x in found.items()}

"""Counts of what quantization to blocks lost, against the definition number by number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npfp8 import BLOCK_FORMATS, FIXED8, MXFP4, NVFP4, BlockFormat, FloatFormat, quantize
from npfp8.blocks.counts import lost_in_blocks
from npfp8.formats import E4M3FN, E4M3FNUZ, E8M0FNU, INT4, as_format

FORMATS = [*(fmt.element for fmt in BLOCK_FORMATS.values()), E4M3FNUZ, E8M0FNU, INT4]
UNSIGNED = FloatFormat(5, 3, 15, signed=False, name="UE5M3")


def plain_lost(x, codes, scales, fmt, axis, block):
    """Saturated: beyond the largest value, with its code. Underflowed: not 0, but a value of 0."""
    floats = isinstance(fmt, FloatFormat)
    saturated = underflowed = 0
    reach = np.float32(fmt.reach * (1 + 2.0**-20))
    for index in np.ndindex(x.shape):
        place = tuple(i // block if j == axis else i for j, i in enumerate(index))
        scale, number, code = scales[place], x[index], int(codes[index])
        magnitude = code & int(fmt.magnitude_mask) if floats else abs(code)
        if scale == 0:
            magnitude = 0
        if magnitude >= fmt.max_code:
            with np.errstate(all="ignore"):
                signed = not floats or fmt.signed
                quotient = (abs(number) if signed else number) / scale
            saturated += bool(quotient > reach)
        nan = floats and code == fmt.sign_bit and fmt.sign_bit in fmt.nan_codes
        has_zero = not floats or fmt.has_zero
        underflowed += bool(has_zero and number != 0 and magnitude == 0 and not nan)
    return saturated, underflowed


def numbers(rng, shape):
    """Numbers of some binades, zeros of both signs, and some that are not finite."""
    x = rng.standard_normal(shape).astype(np.float32) * np.float32(2) ** rng.integers(
        -12, 12, shape
    )
    for one in (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38):
        x[rng.random(shape) < 0.02] = one
    return x


@pytest.mark.parametrize("fmt", [*FORMATS, UNSIGNED], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_codes_and_scales_of_any_kind(fmt, axis):
    """Scales of 0, of either sign, NaN, infinite, subnormal; any codes, any axis, any layout."""
    rng = np.random.default_rng(axis)
    shape = (3, 21, 10)
    x = numbers(rng, shape)
    codes = rng.choice(np.arange(fmt.values.size), shape).astype(np.uint8)
    codes[rng.random(shape) < 0.3] = fmt.max_code
    codes[x == 0] = 0
    if not isinstance(fmt, FloatFormat):
        codes = codes.view(np.int8)
    for block in (4, 7, 100):
        scales = np.abs(
            numbers(rng, [-(-n // block) if i == axis else n for i, n in enumerate(shape)])
        )
        scales[rng.random(scales.shape) < 0.1] *= -1
        known = plain_lost(x, codes, scales, fmt, axis, block)
        assert lost_in_blocks(x, codes, scales, fmt, axis, block) == known
        turned = [np.asfortranarray(part) for part in (x, codes, scales)]
        assert lost_in_blocks(*turned, fmt, axis, block) == known
        usual = np.where(np.isfinite(scales) & (scales != 0), scales, np.float32(1))
        known = plain_lost(x, codes, usual, fmt, axis, block)
        assert lost_in_blocks(x, codes, usual, fmt, axis, block) == known
    assert sum(known)


@given(st.integers(0, 2**32 - 1), st.sampled_from(list(BLOCK_FORMATS.values())))
def test_quantized_numbers(seed, fmt):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 40)).astype(np.float32) * np.float32(2.0 ** rng.integers(-6, 6))
    q = quantize(x, fmt)
    known = plain_lost(x, q.codes, q.scale, q.fmt, 1, fmt.block)
    assert lost_in_blocks(x, q.codes, q.scale, q.fmt, 1, fmt.block) == known == q.lost(x)


@pytest.mark.parametrize("fmt", [MXFP4, NVFP4, BlockFormat(E4M3FN, 5)], ids=str)
def test_more_than_a_piece(fmt):
    x = np.random.default_rng(1).standard_normal((70, 4000)).astype(np.float32)
    q = quantize(x, fmt)
    whole = lost_in_blocks(x, q.codes, q.scale, q.fmt, 1, fmt.block)
    rows = [
        lost_in_blocks(x[i : i + 1], q.codes[i : i + 1], q.scale[i : i + 1], q.fmt, 1, fmt.block)
        for i in range(70)
    ]
    assert whole == tuple(sum(column) for column in zip(*rows, strict=True))
    assert whole[0]


def test_the_formats_are_not_all_alike():
    assert as_format("FIXED8") is FIXED8
    assert {isinstance(fmt, FloatFormat) for fmt in FORMATS} == {True, False}

"""Numbers beyond the largest value, as if the exponents of codes went on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from npfp8.arrays import Array, IntArray
from npfp8.formats import FloatFormat
from npfp8.mistakes.rules import Codes

__all__ = ["next_binade", "unbounded_codes"]


def next_binade(fmt: FloatFormat) -> float:
    """Return the power of two above the largest value."""
    return float(2.0 ** np.frexp(fmt.max)[1])


def unbounded_codes(encoder: Callable[[Array], Codes], fmt: FloatFormat, x: Array) -> IntArray:
    """Return the codes of magnitudes if exponents went on beyond the largest one."""
    exact = np.where(np.isfinite(x), x, 0).astype(np.float64)
    # Rounded two binades lower, where nothing overflows.
    excess = np.maximum(np.frexp(exact)[1] - (np.frexp(fmt.max)[1] - 2), 0)
    codes = encoder(np.ldexp(exact, -excess)).astype(np.int64)
    return (codes & ~fmt.sign_bit) + (excess.astype(np.int64) << fmt.mantissa_bits)

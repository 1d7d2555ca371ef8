"""NaN and infinity in matrix products: left out first, then put into the finite result.

A BLAS may skip a zero, and an infinity times a part that is zero must not become NaN.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from npfp8.arrays import Array, Float32Array, blas_product

__all__ = ["overlay_specials"]


def overlay_specials(result: Float32Array, x: Array, y: Array) -> None:
    """Put the results of NaN and infinity into the product ``result`` of the finite values.

    They follow IEEE 754, whatever the order of the sum: a NaN, an infinity times 0, and
    infinities of both signs give NaN. A BLAS is not used, as it may skip a zero.

    Parameters
    ----------
    result : ndarray of float32, (..., M, N)
        Changed in place.
    x, y : ndarray, (..., M, K) and (..., K, N)
        The operands, or arrays of the same signs and specials.
    """

    def count(left: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> Float32Array:
        """Count how often both hold along K; only compared with 0, so rounding does not matter."""
        return blas_product(left.astype(np.float32), right.astype(np.float32))

    if np.isfinite(x).all() and np.isfinite(y).all():
        return
    everywhere_x, everywhere_y = np.ones(x.shape, bool), np.ones(y.shape, bool)
    nan = count(np.isnan(x), everywhere_y) + count(everywhere_x, np.isnan(y))
    nan += count(np.isinf(x), y == 0) + count(x == 0, np.isinf(y))
    plus = count(x == np.inf, y > 0) + count(x == -np.inf, y < 0)
    plus += count(x > 0, y == np.inf) + count(x < 0, y == -np.inf)
    minus = count(x == np.inf, y < 0) + count(x == -np.inf, y > 0)
    minus += count(x > 0, y == -np.inf) + count(x < 0, y == np.inf)
    result[plus > 0] = np.inf
    result[minus > 0] = -np.inf
    result[(nan > 0) | ((plus > 0) & (minus > 0))] = np.nan

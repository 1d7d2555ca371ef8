"""Matrix products of float32 numbers, correctly rounded: the same bits from every BLAS.

The product of two float32 numbers is exact in float64 (24 + 24 bits), so a
float64 BLAS product errs only by its K - 1 additions. In whatever order they
are done, with or without FMA, with any blocking and any number of threads, the
computed sum ``c`` is within

    error = K * 2^-53 * |row of a| * |column of b|                          (1)

of the exact one (Higham, *Accuracy and Stability of Numerical Algorithms*,
section 3.1, with the Cauchy-Schwarz inequality for the sum of the |products|).
If ``c - error`` and ``c + error`` round to the same float32, so does the exact
sum, and that float32 is the answer. This settles all but some in 10^4 elements;
in the rest the exact sum is near the midpoint of two float32 numbers (or is
one, or is near 0), and it is computed without error:

* The products of the row and the column are split, as in Rump, Ogita and Oishi,
  *Accurate floating-point summation* (SIAM J. Sci. Comput. 31, 2008): adding
  and subtracting a large power of two splits off their upper bits. These are
  multiples of one unit, and few enough to add up exactly in any order. The rest
  is treated in the same way until nothing is left.
* These few exact sums are added by ``math.fsum`` (correctly rounded) and the
  result is made odd if the remainder, again by ``fsum``, shows that it is not
  exact. Rounding to odd and then to float32, 29 bits less, is rounding once
  (:mod:`npfp8.rounding`); rounding to nearest twice would go wrong at
  2^30 + 2^6 + 2^-32.

The BLAS may decide which elements need the second way. It cannot change the results.

An element is also certain if no addition can round. With ``u`` a power of two of which
all elements of the row are multiples and ``v`` one for the column, every partial sum is a
multiple of ``u v``, and by the same inequality at most ``|row of a| * |column of b|``.
If that is at most ``2^53 u v``, float64 holds them all, and (1) becomes 0.
"""

from __future__ import annotations

import math

import numpy as np

from npfp8.arrays import Float32Array, Float64Array, blas_product, chunks, require_array
from npfp8.products.specials import overlay_specials

__all__ = ["K_LIMIT", "lowest_bits", "matmul_float32", "rounded_product"]

#: Elements of the result that are checked, or products that are split, at a time.
_CHUNK = 1 << 17

#: The bits of a float64's mantissa.
_MANTISSA = (1 << 52) - 1

#: Largest K: the cut-off parts of so many products must add up exactly, see _exact_sums.
K_LIMIT = 1 << 24


def matmul_float32(a: Float32Array, b: Float32Array) -> Float32Array:
    """Multiply matrices of float32; every element is the exact sum, rounded once.

    Parameters
    ----------
    a : ndarray of float32, (..., M, K)
    b : ndarray of float32, (..., K, N)
        The leading axes broadcast, as in :func:`numpy.matmul`. K up to 2^24.

    Returns
    -------
    ndarray of float32, (..., M, N)
        Rounded to nearest, ties to even; zero is +0, be the sum exactly zero or
        a negative one that underflows. Infinities and NaN propagate as in IEEE
        754; a NaN is the canonical 0x7FC00000.

    Raises
    ------
    TypeError
        If an operand is no array of float32.
    ValueError
        If the shapes do not fit, or K is too large.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import matmul_float32
    >>> a = np.float32([[2**30, 2**6, 2**-32]])  # in float32 2^30 + 2^6 is a tie
    >>> int(matmul_float32(a, np.ones((3, 1), np.float32))[0, 0]) - 2**30
    128
    """
    for name, operand in (("a", a), ("b", b)):
        require_array(name, operand, np.float32)
        if operand.ndim < 2:
            raise ValueError(f"{name}: expected at least 2 axes, found shape {operand.shape}")
    a, b = np.asarray(a), np.asarray(b)  # an np.matrix multiplies in ways of its own
    k = a.shape[-1]
    if k != b.shape[-2]:
        raise ValueError(
            f"expected shapes (..., M, K) and (..., K, N), found {a.shape} and {b.shape}"
        )
    if k > K_LIMIT:
        raise ValueError(f"expected K of at most {K_LIMIT}, found {k}")
    x, y = _finite(a), _finite(b)
    row_unit, column_unit = _units(x, _precision(a), -1), _units(y, _precision(b), -2)
    result = rounded_product(x, y, row_unit, column_unit)
    if x is not a or y is not b:
        overlay_specials(result, a, b)
    return result


def rounded_product(
    x: Float64Array,
    y: Float64Array,
    row_unit: Float64Array,
    column_unit: Float64Array,
    run: int | None = None,
) -> Float32Array:
    """Multiply matrices whose products of two elements float64 holds; rounded once to float32.

    Parameters
    ----------
    x : ndarray of float64, (..., M, K)
        Finite; every product of two elements is 0 or exact, of magnitude 2^-600 to 2^520.
    y : ndarray of float64, (..., K, N)
    row_unit : ndarray of float64, (..., M)
        For each row, a power of two of which all its elements are multiples; infinity for a
        row of zeros.
    column_unit : ndarray of float64, (..., N)
        The same for each column.
    run : int, optional
        The number of elements of K whose norms are multiplied in (1), run by run; all of K
        without. With scales of many binades, the sum over the runs is far less than the
        product of the norms of all of the row and all of the column.

    Returns
    -------
    ndarray of float32, (..., M, N)
        A zero is +0.
    """
    k = x.shape[-1]
    sums = blas_product(x, y)
    # (1), enlarged by 2 / K and 2^-20 for the roundings of the norms and of c +- error.
    larger = (k + 2) * 2.0**-53 * (1 + 2.0**-20)
    if run is None:
        row = np.sqrt(np.sum(x * x, axis=-1)) * larger
        column = np.sqrt(np.sum(y * y, axis=-2))
        # An element is exact if (1) is at most (k + 2) u v. Skip the try if none can be.
        lowest = (row / row_unit).min(initial=np.inf), (column / column_unit).min(initial=np.inf)
        some_exact = lowest[0] * lowest[1] <= k + 2
    else:
        starts = range(0, k, run)
        row = np.sqrt(np.add.reduceat(x * x, starts, axis=-1)) * larger
        column = np.sqrt(np.add.reduceat(y * y, starts, axis=-2))
        some_exact = True
    result = np.empty(sums.shape, np.float32)
    lines = math.prod(sums.shape[:-2]) * sums.shape[-1]
    for rows in chunks(sums.shape[-2], max(1, _CHUNK // max(1, lines))):
        window = (..., rows, slice(None))
        if run is None:
            error = row[..., rows, None] * column[..., None, :]
        else:
            error = blas_product(row[window], column)
        if some_exact:
            exact = row_unit[..., rows, None] * column_unit[..., None, :] * (k + 2)
            error[error <= exact] = 0.0
        _round_settled(sums[window], error, result[window], x[window], y)
    return result


def _precision(x: Float32Array) -> int:
    """Return the significant bits that all elements need: 24 in general, 8 for bfloat16 values."""
    used = int(np.bitwise_or.reduce(x.view(np.uint32), axis=None)) & 0x7FFFFF | 0x800000
    return 24 - (used & -used).bit_length() + 1


def _units(x: Float64Array, precision: int, axis: int) -> Float64Array:
    """Along K, a power of two that all elements are multiples of; infinity if all are 0."""
    magnitude = np.abs(x)
    magnitude[magnitude == 0] = np.inf
    smallest = magnitude.min(axis=axis, initial=np.inf)
    # smallest >= 2^(exponent - 1), but subnormal numbers have no finer steps than 2^-126.
    exponent = np.maximum(np.frexp(np.minimum(smallest, 2.0**128))[1], -125)
    return np.where(smallest == np.inf, np.inf, np.ldexp(1.0, exponent - precision))


def lowest_bits(x: Float32Array | Float64Array) -> Float64Array:
    """Return the largest power of two that each number is a multiple of.

    Zero, NaN and the infinities give infinity.
    """
    magnitude = np.abs(x, dtype=np.float64)
    bits = magnitude.view(np.int64)
    # The bits minus one end where the lowest bit was, so what both share is the rest.
    rest = (bits & (bits - 1)).view(np.float64)
    power_of_two = (bits & _MANTISSA) == 0  # this bit is not among them
    with np.errstate(invalid="ignore"):  # of NaN and infinity
        lowest = np.where(power_of_two, magnitude, magnitude - rest)
    lowest[~(np.isfinite(lowest) & (lowest > 0))] = np.inf
    return lowest


def _finite(x: Float32Array) -> Float64Array:
    """As float64, with NaN and infinity replaced by 0."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = x.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.all():
        wide[~finite] = 0.0
    return wide


def _round_settled(
    sums: Float64Array, error: Float64Array, out: Float32Array, x: Float64Array, y: Float64Array
) -> None:
    """Round ``sums`` where their ``error`` leaves no doubt, and compute the others exactly."""
    with np.errstate(over="ignore", under="ignore"):
        low = (sums - error).astype(np.float32)
        np.add(sums, error, out=error)
        out[...] = error  # the upper end
    low += np.float32(0)  # -0, of a sum that is 0 or underflows, to +0
    out += np.float32(0)
    doubtful = low != out
    if not doubtful.any():
        return
    shape = out.shape[:-2]
    rows = np.broadcast_to(x, (*shape, *x.shape[-2:]))
    columns = np.broadcast_to(y, (*shape, *y.shape[-2:])).swapaxes(-1, -2)
    *lead, row, column = np.nonzero(doubtful)
    exact = []
    for chunk in chunks(len(row), max(1, _CHUNK // x.shape[-1])):
        place = tuple(index[chunk] for index in lead)
        of_rows, of_columns = (*place, row[chunk]), (*place, column[chunk])
        exact.append(_exact_sums(rows[of_rows] * columns[of_columns]))
    out[doubtful] = np.concatenate(exact)


def _exact_sums(terms: Float64Array) -> Float32Array:
    """Sum each row of float64 numbers, rounded once to float32. ``terms`` is overwritten.

    The terms are 0 or of magnitude 2^-600 to 2^520.

    A row's largest magnitude is below ``2^e``. With ``K <= 2^k`` terms and
    ``sigma = 2^(e + k + 1)``, ``(sigma + term) - sigma`` is the term rounded to a
    multiple of ulp(sigma / 2) = 2^(e + k - 52): ``sigma + term`` is between
    sigma / 2 and 2 sigma. The subtraction is exact (Sterbenz), and so is the
    remainder, of at most 2^(e + k - 52). The K rounded terms are each at most
    2^e, their sums at most 2^(e + k), multiples of that unit: exact in any
    order. A step reduces the largest magnitude by 2^(52 - k) or more.

    What is left after a step is at most ``2^(2k + e - 52) = sigma 2^(k - 53)``. A row is
    done when the sum of its parts is so far from where float32 rounds to another number
    that neither this nor the error of adding the parts makes a difference; else when nothing
    is left, and then its parts are added without error.
    """
    count = (terms.shape[-1] - 1).bit_length()
    result = np.empty(len(terms), np.float32)
    rows = np.arange(len(terms))
    sums = np.zeros((0, len(terms)))
    while True:
        largest = np.abs(terms).max(axis=-1, keepdims=True)
        if not largest.any():
            break
        exponent = np.frexp(largest)[1]  # largest < 2^exponent
        sigma = np.ldexp(1.0, exponent + (count + 1))
        upper = (terms + sigma) - sigma
        terms -= upper
        sums = np.concatenate([sums, upper.sum(axis=-1)[None]])
        total, error = sums.sum(axis=0), np.abs(sums).sum(axis=0) * (len(sums) * 2.0**-52)
        error += sigma[:, 0] * 2.0 ** (count - 53)
        error *= 1 + 2.0**-20
        with np.errstate(over="ignore", under="ignore"):
            low, high = (total - error).astype(np.float32), (total + error).astype(np.float32)
        going_on = low != high
        if not going_on.all():
            result[rows] = high + np.float32(0)  # of those that go on it is written over
            terms, rows, sums = terms[going_on], rows[going_on], sums[:, going_on]
            if not len(rows):
                break
    rounded = np.zeros(len(rows))
    for i, parts in enumerate(sums.T.tolist()):
        rounded[i] = _fsum_to_odd(parts)
    with np.errstate(over="ignore", under="ignore"):
        result[rows] = rounded.astype(np.float32) + np.float32(0)
    return result


def _fsum_to_odd(parts: list[float]) -> float:
    """Return the exact sum of a few numbers, rounded to odd to float64."""
    total = math.fsum(parts)
    rest = math.fsum([*parts, -total])
    if rest == 0.0 or int(np.float64(total).view(np.int64)) & 1:
        return total
    return math.nextafter(total, math.inf if rest > 0 else -math.inf)

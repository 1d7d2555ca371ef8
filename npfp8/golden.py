"""The operations of a Transformer between its products, with the same bits on every machine.

Sums have a fixed order (:func:`tree_sum`), functions are those of
:mod:`npfp8.elementary`, and everything else is one elementwise IEEE 754 operation
at a time. No BLAS, SIMD level, NumPy version or shape of the batch can change a
bit; a result depends only on its own row. In bfloat16, softmax and layer normalisation try
a quicker way first, and keep the rows whose rounding no order of the sums could change.

Inputs are float32 arrays, usually of bfloat16 values. The computation is in float64.
The result is a float32 array, rounded once to the ``precision``, "bfloat16" or
"float32". A NaN among the results is 0x7FC00000, which is 0x7FC0 in bfloat16.
``docs/golden.md`` has the argument at length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from npfp8 import elementary
from npfp8.arguments import choice, integer, named, number, wrong_type
from npfp8.arrays import (
    Float32Array,
    Float64Array,
    IntArray,
    bfloat16_kernel,
    blas_product,
    chunks,
    lookup,
    require_array,
    scratch,
)
from npfp8.bfloat16 import from_bits, round_finite

__all__ = [
    "POOLINGS",
    "UNARY",
    "add",
    "layer_norm",
    "mean",
    "multiply",
    "normalize",
    "pool",
    "require_ieee754",
    "softmax",
    "tree_sum",
    "unary",
]

_Pooling = Callable[[Float64Array, Float64Array], Float64Array]

#: Elements per chunk of two temporaries in float64 (256 kB each), which stay in the cache of a
#: core; twice as many where there is one.
_CHUNK = 1 << 15

#: The functions of :func:`unary`, by name.
UNARY = {
    function.__name__: function
    for function in (
        elementary.exp,
        elementary.gelu,
        elementary.gelu_tanh,
        elementary.relu,
        elementary.sigmoid,
        elementary.silu,
        elementary.tanh,
    )
}

PRECISIONS = ("bfloat16", "float32")

#: The smallest divisor of :func:`normalize`: a vector of zeros stays one.
SMALLEST_NORM = 1e-12

#: The lower half of a float32 that is a midpoint of bfloat16, the bits of the upper half, and its
#: last one.
_HALF, _UPPER = np.uint32(0x8000), np.uint32(0xFFFF0000)
_LAST_PLACE, _HALF_16 = np.uint32(0x10000), np.uint16(0x8000)

#: exp(x) of larger numbers is not in the table of softmax, and of smaller ones it is 0. A row of
#: this sum has a number above -214, next to which these are 0 in bfloat16.
_TABLE_END, _LEAST_SUM = 350.0, 1e-87
#: See :func:`_softmax_by_table`.
_DOUBTFUL = 2.0**-36

#: The quick layer normalisation is for means up to this many deviations, and adds up blocks of
#: this length.
_LARGEST_MEAN, _BLOCK = 4.0, 32

# For require_ieee754: products with a subnormal result or operand, and sums that to nearest are
# 1 or -1, some of them as ties. Long enough for the SIMD loops that data takes, and a rest.
_QUARTER_ULP = np.finfo(np.float32).eps / 4
_SMALL = np.tile(np.array([0x00800000, 0x00400000], np.uint32), 19).view(np.float32)
_FACTORS = _SMALL, np.tile(np.array([0.5, 1], np.float32), 19)
_PRODUCTS = np.full(_SMALL.size, 0x00400000, np.uint32).tobytes()
_ONES = np.tile(np.array([1, 1, -1, -1], np.float32), 19)
_TERMS = _ONES, np.tile(np.array([_QUARTER_ULP, -_QUARTER_ULP], np.float32), 38)
_SUMS = _ONES.tobytes()


def tree_sum(x: npt.NDArray[np.floating], axis: int = -1) -> npt.NDArray[np.floating]:
    """Sum along an axis in a fixed order: fold in half until one element is left.

    The axis is treated as padded with zeros to a power of two, ``n``; then
    ``x[:n/2] + x[n/2:]``, and so on. Zeros appended to ``x`` change no bit of
    the sum. The error is at most ``log2(n)`` roundings of each partial sum;
    a running sum has ``n``.

    Parameters
    ----------
    x : ndarray of float32 or float64, of at least one axis
    axis : int

    Returns
    -------
    ndarray of the same dtype, without the axis
        A sum that is zero is +0, and so is the sum of nothing.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``x`` does not have the axis.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import tree_sum
    >>> x = np.float64([1e16, 1.0, -1e16, 1.0])
    >>> float(tree_sum(x))  # (1e16 - 1e16) + (1 + 1)
    2.0
    """
    require_array("x", x, np.float32, np.float64)
    axis = integer("axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: expected one of {x.ndim} axes, found {axis}")
    moved = np.moveaxis(x, axis, 0)
    return _folded(moved, np.empty_like(moved[1:]))


def unary(name: str, x: Float32Array, precision: str = "bfloat16") -> Float32Array:
    """Apply a function of :data:`UNARY`.

    Parameters
    ----------
    name : str
        "exp", "gelu", "gelu_tanh", "relu", "sigmoid", "silu" or "tanh", in any case.
    x : ndarray of float32
        For the precision "bfloat16", bfloat16 values: the lower 16 bits are not read.
    precision : {"bfloat16", "float32"}
        bfloat16 results are correctly rounded, by a table that the tests check
        at all 65,536 inputs. float32 results are rounded from float64; about one in a
        million is the other neighbouring float32.

    Raises
    ------
    TypeError
        If the name is not a str, or ``x`` is not an array of float32.
    ValueError
        If the name or the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import unary
    >>> unary("gelu", np.float32([-1, 0, 1]))
    array([-0.15820312,  0.        ,  0.83984375], dtype=float32)
    """
    function = named("name", name, UNARY)
    precision = _precision(precision)
    values = _checked("x", x)
    if precision == "bfloat16":
        return lookup(_bfloat16_table(function.__name__), values)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        wide = values.astype(np.float64)
    return _rounded(function(wide), precision)


@lru_cache(maxsize=16)
def _bfloat16_table(name: str) -> Float32Array:
    """Return the results of a function for all 65,536 bfloat16 values, rounded once."""
    with np.errstate(invalid="ignore"):  # the table has signalling NaNs too
        x = from_bits(np.arange(1 << 16, dtype=np.uint16)).astype(np.float64)
    table = _rounded(UNARY[name](x), "bfloat16")
    table.flags.writeable = False
    return table


def add(x: Float32Array, y: Float32Array, precision: str = "bfloat16") -> Float32Array:
    """Compute ``x + y``, rounded once if both operands have the precision asked for.

    For bfloat16 the sum is first rounded to float32. For bfloat16 operands (p = 8 bits)
    this changes nothing, as float32 has more than 2 p + 2 bits (Figueroa, *When is double
    rounding innocuous?*, SIGNUM 30, 1995).

    Parameters
    ----------
    x, y : ndarray of float32
        Their shapes broadcast.
    precision : {"bfloat16", "float32"}

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the shapes do not broadcast, or the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import add
    >>> add(np.float32([1.0]), np.float32([0.00390625]))  # a tie, to the even significand
    array([1.], dtype=float32)
    """
    precision = _precision(precision)
    x, y = _checked("x", x), _checked("y", y)
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.asarray(np.add(x, y, order="C"))
    except ValueError:
        raise ValueError(
            f"x and y: expected shapes that broadcast, found {x.shape} and {y.shape}"
        ) from None
    total = _with_canonical_nan(total)
    if precision == "bfloat16":
        round_finite(total)
    return total


def multiply(
    x: Float32Array, factor: float | np.float32, precision: str = "bfloat16"
) -> Float32Array:
    """Compute ``x * factor`` with a float32 number, rounded once: it is exact in float64.

    Parameters
    ----------
    x : ndarray of float32
    factor : float
        A number that float32 holds exactly.
    precision : {"bfloat16", "float32"}

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If ``factor`` is not a float32 number, or the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import multiply
    >>> multiply(np.float32([1.0, 3.0]), 0.125)
    array([0.125, 0.375], dtype=float32)
    """
    precision = _precision(precision)
    factor = number("factor", factor, "a float32 number")
    with np.errstate(over="ignore", under="ignore"):
        exact = np.float32(factor)
    if float(exact) != float(factor):
        raise ValueError(f"factor: expected a float32 number, found {factor!r}")
    x = _checked("x", x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return _rounded_once(
            np.asarray(np.multiply(x, exact, order="C")),
            precision,
            lambda which: x.reshape(-1)[which].astype(np.float64) * np.float64(exact),
        )


def softmax(x: Float32Array, precision: str = "bfloat16") -> Float32Array:
    """Compute the softmax over the last axis in float64: ``exp(x - max)`` over its tree sum.

    Parameters
    ----------
    x : ndarray of float32, (..., n)
        n is at least 1. A row with a NaN or +infinity gives NaN; -infinity counts as exp = 0.
    precision : {"bfloat16", "float32"}

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the last axis is empty, or the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import softmax
    >>> softmax(np.float32([[0.0, 0.0, -np.inf]]))
    array([[0.5, 0.5, 0. ]], dtype=float32)
    """
    precision = _precision(precision)
    rows, out = _rows(x)
    quick = _softmax_by_table if precision == "bfloat16" else None
    _fill(out, rows, quick, partial(_softmax, precision=precision))
    return out.reshape(x.shape)


def _softmax(rows: Float32Array, precision: str) -> Float32Array:
    with np.errstate(under="ignore", invalid="ignore"):
        weights, others = _columns(rows)
        weights -= weights.max(axis=0)
        elementary.exp(weights, out=weights)
        weights /= _folded(weights, others)
    return _rounded(weights, precision).T


def _softmax_by_table(rows: Float32Array, out: Float32Array) -> IntArray:
    """Compute :func:`softmax` in bfloat16; return the indices of the rows in doubt.

    ``exp(x) / sum(exp(x))`` with the exponentials from a table, and :func:`_softmax`, are both
    within 2^-37 (relative) of the exact quotient, whatever the order of the sum. So they are on
    the same side of every midpoint of bfloat16 that is farther away than 2^-36. Other rows are in
    doubt, and those with a number too large for the table, or with nothing but small ones.
    """
    if np.bitwise_or.reduce(rows.view(np.uint32), axis=None) & ~_UPPER:  # not bfloat16
        return np.arange(len(rows))
    weights = scratch(rows.size, np.float64).reshape(rows.shape)
    bfloat16_kernel(_exponentials())(rows.reshape(-1), weights.reshape(-1))
    with np.errstate(under="ignore", invalid="ignore", divide="ignore"):
        sums = np.einsum("ij->i", weights)
        weights /= sums[:, None]
        out[...] = weights
    midpoints = _round_midpoints_up(out)
    doubtful = sums >= _LEAST_SUM
    np.logical_not(doubtful, out=doubtful)
    if midpoints.size:
        exact = weights.reshape(-1)[midpoints]
        close = _settle(out, midpoints, exact) <= _DOUBTFUL * exact
        doubtful[midpoints[close] // rows.shape[1]] = True
    return np.flatnonzero(doubtful)


@lru_cache(maxsize=1)
def _exponentials() -> Float64Array:
    """Return exp of all 65,536 bfloat16 values: 0 below the table's range, NaN above it."""
    with np.errstate(invalid="ignore"):  # the table has signalling NaNs too
        x = from_bits(np.arange(1 << 16, dtype=np.uint16)).astype(np.float64)
        table = elementary.exp(x)
        table[x < -_TABLE_END] = 0
        table[~(x <= _TABLE_END)] = np.nan
    table.flags.writeable = False
    return table


def layer_norm(
    x: Float32Array,
    weight: Float32Array,
    bias: Float32Array,
    eps: float,
    precision: str = "bfloat16",
) -> Float32Array:
    """Normalise over the last axis (layer normalisation, Ba et al., arXiv 1607.06450).

    The computation is in float64:

    ``(x - mean) / sqrt(variance + eps) * weight + bias`` with tree sums. The
    variance is the mean of the squares of ``x - mean``.

    Parameters
    ----------
    x : ndarray of float32, (..., n)
    weight, bias : ndarray of float32, (n,)
    eps : float
    precision : {"bfloat16", "float32"}

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the last axis is empty, ``weight`` or ``bias`` does not have its length, or the
        precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import layer_norm
    >>> layer_norm(np.float32([[1.0, 3.0]]), np.float32([1, 2]), np.float32([0, 0]), eps=0.0)
    array([[-1.,  2.]], dtype=float32)
    """
    precision = _precision(precision)
    eps = number("eps", eps)
    rows, out = _rows(x)
    length = rows.shape[-1]
    scale, shift = (_checked(name, y) for name, y in (("weight", weight), ("bias", bias)))
    if not scale.shape == shift.shape == (length,):
        raise ValueError(
            f"weight and bias: expected shape ({length},), found {scale.shape} and {shift.shape}"
        )
    with np.errstate(invalid="ignore"):  # a signalling NaN
        factors, terms = (y.astype(np.float64) for y in (scale, shift))
    rule = partial(_layer_norm, factors, terms, float(eps), precision)
    quick = None
    if precision == "bfloat16" and eps >= 0 and np.isfinite(factors + terms).all():
        quick = partial(_quick_layer_norm, factors, terms, float(eps), _difference(factors))
    _fill(out, rows, quick, rule)
    return out.reshape(x.shape)


def _layer_norm(
    factors: Float64Array, terms: Float64Array, eps: float, precision: str, rows: Float32Array
) -> Float32Array:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        centred, others = _columns(rows)
        centred -= _folded(centred, others) / len(centred)
        squares = np.square(centred, out=others)
        variance = _folded(squares, squares) / len(centred)
        centred /= np.sqrt(variance + eps)
        centred *= factors[:, None]
        centred += terms[:, None]
    return _rounded(centred, precision).T


def _quick_layer_norm(
    factors: Float64Array,
    terms: Float64Array,
    eps: float,
    difference: Float64Array,
    rows: Float32Array,
    out: Float32Array,
) -> IntArray:
    """Compute :func:`layer_norm` in bfloat16, in float64 with sums in any order.

    Return the indices of the rows in doubt. Those are rows with a mean that is large next to
    their deviation, and with results that the ``difference`` from :func:`_layer_norm` might take
    to another side of a midpoint of bfloat16: results that are close to one, and those that are
    too small for float32 to tell.
    """
    length = rows.shape[1]
    values = scratch(rows.size, np.float64).reshape(rows.shape)
    with np.errstate(all="ignore"):
        values[...] = rows
        mean = _row_sums(values)
        mean /= length
        values -= mean[:, None]
        deviation = _row_sums(values, squares=True)
        deviation /= length
        deviation += eps
        np.sqrt(deviation, out=deviation)
        values *= (1.0 / deviation)[:, None]
        values *= factors
        values += terms
        out[...] = values
        deviation *= _LARGEST_MEAN
        doubtful = np.abs(mean) < deviation
        limit = np.float32(2.0**26 * difference.max())
    np.logical_not(doubtful, out=doubtful)
    midpoints = _round_midpoints_up(out)
    magnitudes = np.abs(out.reshape(-1), out=scratch(out.size, np.float32))
    small = np.flatnonzero(magnitudes <= limit)
    if small.size:  # few, as long as the factors are alike
        small = small[magnitudes[small] <= 2.0**26 * difference[small % length]]
        doubtful[small // length] = True
    if midpoints.size:
        exact = values.reshape(-1)[midpoints]
        distance = _settle(out, midpoints, exact)
        close = distance <= difference[midpoints % length] + 2.0**-50 * np.abs(exact)
        doubtful[midpoints[close] // length] = True
    return np.flatnonzero(doubtful)


def _row_sums(x: Float64Array, squares: bool = False) -> Float64Array:
    """Sum rows, or their squares, block by block in any order. (rows, n) -> (rows,)."""
    block = math.gcd(x.shape[1], _BLOCK)
    blocks = x.reshape(-1, block)
    if squares:
        parts = np.einsum("ij,ij->i", blocks, blocks)
    else:
        parts = blas_product(blocks, np.ones(block))
    parts = parts.reshape(len(x), -1)
    return blas_product(parts, np.ones(parts.shape[1]))


def _difference(factors: Float64Array) -> Float64Array:
    """Return by how much columns of layer normalisation may differ if sums have another order.

    Let ``u = 2^-53``, and s be the most additions that a number takes part in, here and in
    :func:`_layer_norm` together, and 24 for the roundings of other operations. Two means differ
    by at most ``s u`` times the root mean square, two variances by ``s u`` (relative). A norm,
    ``(x - mean) / sqrt(variance + eps)``, is at most sqrt(n), so two differ by at most
    ``s u (rms / sqrt(variance + eps) + sqrt(n) / 2)``.
    """
    length = len(factors)
    block = math.gcd(length, _BLOCK)
    steps = block + length // block + length.bit_length() + 24
    return 2.0**-53 * steps * (_LARGEST_MEAN + 1 + math.sqrt(length) / 2) * np.abs(factors)


def mean(x: Float32Array, precision: str = "float32") -> Float32Array:
    """Compute the mean over the axis before the last, of a tree sum in float64.

    Parameters
    ----------
    x : ndarray of float32, (..., n, features)
        n is at least 1.
    precision : {"bfloat16", "float32"}

    Returns
    -------
    ndarray of float32, (..., features)

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If there is no row, or the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import mean
    >>> mean(np.float32([[1.0, 2.0], [3.0, 4.0]]))
    array([2., 3.], dtype=float32)
    """
    x = _checked("x", x)
    return _pooled(POOLINGS["mean"], x, np.ones(x.shape[:-1], np.int64), precision)


#: The functions that make one vector of the vectors of n tokens, by their names in
#: sentence-transformers. Their arguments are float64 arrays: the tokens (..., n, features) and
#: their places (..., n, 1).
POOLINGS: dict[str, _Pooling] = {
    "mean": lambda x, places: tree_sum(x, axis=-2) / x.shape[-2],
    "mean_sqrt_len_tokens": lambda x, places: tree_sum(x, axis=-2) / np.sqrt(x.shape[-2]),
    "weightedmean": lambda x, places: tree_sum(x * places, axis=-2) / places.sum(axis=-2),
    "max": lambda x, places: x.max(axis=-2) + 0.0,  # of two zeros, +0
    "lasttoken": lambda x, places: x[..., -1, :],
}


def pool(mode: str, x: Float32Array, places: IntArray) -> Float32Array:
    """Make one vector of the vectors of several tokens, in float64, rounded once to float32.

    Parameters
    ----------
    mode : str
        A key of :data:`POOLINGS`, in any case: "mean"; "mean_sqrt_len_tokens", the sum over
        the square root of n; "weightedmean", with ``places`` as weights; "max" of each
        feature, where a zero is +0; "lasttoken".
    x : ndarray of float32, (..., n, features)
        n is at least 1.
    places : ndarray of int, (..., n)
        The number of each token's position, from 1 on. A sum below 2^53 is exact.

    Returns
    -------
    ndarray of float32, (..., features)

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If there is no row, ``places`` has another shape, or the mode is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import pool
    >>> pool("max", np.float32([[1.0, 4.0], [3.0, 2.0]]), np.array([1, 2]))
    array([3., 4.], dtype=float32)
    """
    return _pooled(named("mode", mode, POOLINGS), x, places, "float32")


def _pooled(pooling: _Pooling, x: Float32Array, places: IntArray, precision: str) -> Float32Array:
    precision = _precision(precision)
    x = _checked("x", x)
    if x.ndim < 2 or not x.shape[-2]:
        raise ValueError(f"x: expected at least one row of features, found shape {x.shape}")
    if not isinstance(places, np.ndarray) or places.dtype.kind not in "iu":
        raise wrong_type("places", "an array of integers", places)
    if places.shape != x.shape[:-1]:
        raise ValueError(f"places: expected shape {x.shape[:-1]}, found {places.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        wide = pooling(x.astype(np.float64), places.astype(np.float64)[..., None])
        return _rounded(wide, precision)


def normalize(x: Float32Array, precision: str = "float32") -> Float32Array:
    """Divide each vector along the last axis by its Euclidean norm, of a tree sum in float64.

    A norm below 1e-12 counts as 1e-12, as in torch.

    Parameters
    ----------
    x : ndarray of float32, (..., n)
    precision : {"bfloat16", "float32"}

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    ValueError
        If the precision is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8.golden import normalize
    >>> normalize(np.float32([[3.0, 4.0]]))
    array([[0.6, 0.8]], dtype=float32)
    """
    precision = _precision(precision)
    with np.errstate(invalid="ignore"):
        wide = _checked("x", x).astype(np.float64)
        norm = np.sqrt(tree_sum(np.square(wide)))[..., None]
        return _rounded(wide / np.maximum(norm, SMALLEST_NORM), precision)


def require_ieee754() -> None:
    """Check that the processor is in the default mode of IEEE 754, which this module needs.

    Raises
    ------
    FloatingPointError
        If subnormal numbers are flushed to zero, or rounding is not to nearest.
        Some libraries set these modes for the whole thread (``-ffast-math``).

    Examples
    --------
    >>> from npfp8.golden import require_ieee754
    >>> require_ieee754()
    """
    # Their bits are compared, as a comparison of numbers may itself flush.
    if np.multiply(*_FACTORS).tobytes() != _PRODUCTS:
        raise FloatingPointError(
            "golden arithmetic: expected IEEE 754, found that subnormal numbers are flushed to zero"
        )
    if np.add(*_TERMS).tobytes() != _SUMS:
        raise FloatingPointError(
            "golden arithmetic: expected rounding to nearest, found another rounding mode"
        )


def _rounded(x: Float64Array, precision: str) -> Float32Array:
    """Round once; a NaN becomes the canonical one."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = x.astype(np.float32, order="C")
    return _rounded_once(result, precision, lambda which: x.reshape(-1)[which])


def _rounded_once(
    x: Float32Array, precision: str, exact: Callable[[IntArray], npt.NDArray[np.floating]]
) -> Float32Array:
    """Round numbers to the precision that are rounded to float32 already, in place.

    Float32 has all midpoints of bfloat16. So the first rounding takes no number beyond a
    midpoint. Those that it takes to one are few; ``exact`` returns the numbers at these flat
    indices as they were before. A NaN becomes the canonical one.
    """
    x = _with_canonical_nan(x)
    if precision == "bfloat16":
        midpoints = _round_midpoints_up(x)
        if midpoints.size:
            _settle(x, midpoints, exact(midpoints))
    return x


def _with_canonical_nan(x: Float32Array) -> Float32Array:
    """Make every NaN the canonical one, in place."""
    if np.isnan(np.maximum.reduce(x, axis=None, initial=-np.inf)):  # a maximum with NaN is one
        x[np.isnan(x)] = np.float32(np.nan)
    return x


def _round_midpoints_up(x: Float32Array) -> IntArray:
    """Round to bfloat16 in place, midpoints away from 0; return the flat indices of these."""
    bits = x.view(np.uint32)
    midpoints = np.flatnonzero(bits.astype(np.uint16) == _HALF_16)
    bits += _HALF
    bits &= _UPPER
    return midpoints


def _settle(x: Float32Array, midpoints: IntArray, exact: npt.NDArray[np.floating]) -> Float64Array:
    """Round to bfloat16 what float32 had rounded to these midpoints; return their distances.

    ``x`` has been through :func:`_round_midpoints_up`. A distance is that of an exact number
    from its midpoint. A tie goes to the even one.
    """
    bits = x.reshape(-1).view(np.uint32)
    up = bits[midpoints]
    middle = (up - _HALF).view(np.float32)
    distance = np.abs(exact) - np.abs(middle)
    down = (distance < 0) | ((distance == 0) & (up & _LAST_PLACE != 0))
    bits[midpoints[down]] -= _LAST_PLACE
    return np.abs(distance)


def _checked(name: str, x: Float32Array) -> Float32Array:
    require_array(name, x, np.float32)
    return np.asarray(x)


def _precision(precision: str) -> str:
    return choice("precision", precision, PRECISIONS)


def _rows(x: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Return ``x`` as (rows, n), and an empty array of that shape."""
    values = np.ascontiguousarray(_checked("x", x))
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x: expected a last axis of at least 1, found shape {x.shape}")
    rows = values.reshape(-1, x.shape[-1])
    return rows, np.empty_like(rows)


def _columns(rows: Float32Array) -> tuple[Float64Array, Float64Array]:
    """Return rows as columns in float64, (n, rows), and as much memory beside them.

    Each step of a sum over n, and of a division by it, then goes over contiguous memory,
    however short the rows are. Both arrays live until the next call.
    """
    columns, others = scratch(2 * rows.size, np.float64).reshape(2, *rows.shape[::-1])
    columns[...] = rows.T
    return columns, others


def _folded(x: npt.NDArray[Any], memory: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Compute :func:`tree_sum` over the first axis: (n, ...) -> (...).

    The partial sums are kept in ``memory``, of at least n - 1 elements along this axis. It may
    be ``x``.
    """
    length = len(x)
    if not length:
        return np.zeros(x.shape[1:], x.dtype)
    while length > 1:
        half = 1 << (length - 1).bit_length() - 1
        rest = length - half
        np.add(x[:rest], x[half:length], out=memory[:rest])
        if x is not memory:
            memory[rest:half] = x[rest:half]
            x = memory
        length = half
    # Of -0 and padded zeros the sum is +0; before, which of them does not show.
    return np.asarray(x[0] + x.dtype.type(0))


def _fill(
    out: Float32Array,
    rows: Float32Array,
    quick: Callable[[Float32Array, Float32Array], IntArray] | None,
    rule: Callable[[Float32Array], Float32Array],
) -> None:
    """Fill ``out`` with a function of each row by its rule.

    If there is a ``quick`` way, the rule is for the rows that it leaves in doubt. It takes
    rows and the array for their results.
    """
    size = max(1, _CHUNK // rows.shape[1])
    doubtful = np.arange(len(rows))
    if quick is not None and rows.shape[1] <= _CHUNK:
        found = [
            chunk.start + quick(rows[chunk], out[chunk]) for chunk in chunks(len(rows), 2 * size)
        ]
        doubtful = np.concatenate(found) if found else doubtful
    for chunk in chunks(len(doubtful), size):
        which = doubtful[chunk]
        out[which] = rule(rows[which])

"""GPTQ: codes of a weight that change the layer's outputs least, chosen column by column.

Frantar et al., *GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers* (arXiv 2210.17323), and the program of its authors (IST-DASLab/gptq, ``gptq.py``).

Let ``x`` be a layer's inputs over a sample, (tokens, in), and ``w`` one row of its weight. If
``q`` takes the place of ``w``, the squared error of this output over the sample is
``(w - q) H (w - q)^T`` with the Hessian ``H = x^T x``. It is the same for all rows. The columns
are rounded one after the other. After column j, with the error ``w_j - q_j``, the columns that
are not rounded yet move to where the output's error is least::

    w_k  -=  (w_j - q_j) [R^-1]_jk / [R^-1]_jj              for all k after j

where ``R`` are the rows and columns of ``H`` from j on (optimal brain quantization, Frantar and
Alistarh, arXiv 2208.11580, equation 3). No inverse but the first has to be computed: if
``H^-1 = U^T U`` with an upper triangular ``U``, the factor above is ``U_jk / U_jj``.

This module differs from the authors' program in three ways:

- A column whose input is 0 in the whole sample is rounded to nearest, and does not count in the
  mean that the dampening is a share of. The program sets the column's weights to 0, although
  another text may have an input there.
- A group's scale comes from the weights as all columns before the group have moved them. The
  program moves the columns behind each run of 128 only once the run is done, so it misses moves
  where a group is shorter than 128.
- Everything is computed in float64, except the codes and their values.

The inverse is LAPACK's, so the codes may differ between machines. Golden mode therefore refuses
to make them, but runs a model that has them.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

import numpy as np

from bert_numpy.errors import BertNumpyError
from bert_numpy.quantization.shown import shown
from npfp8 import Format, QuantizedTensor, quantize
from npfp8.arrays import Array, Float32Array, Float64Array, blas_product
from npfp8.names import match
from npfp8.scaling import dynamic_scale

__all__ = ["Gptq", "gptq", "inverse_factor", "output_error"]

ORDERS = ("activations", "stored")

#: Columns whose moves are put off for the columns behind them, which they reach in one product.
_TOGETHER = 128


@dataclass(frozen=True)
class Gptq:
    """How GPTQ rounds a weight.

    Attributes
    ----------
    order : {"activations", "stored"}
        "activations" begins with the columns that have the largest inputs, while all others can
        still move. Groups stay as they are stored, and have the scales of the weights before any
        move (compressed-tensors calls this order "weight"; the authors' program ``--act-order
        --static-groups``). "stored" goes from the first column to the last; a group's scale comes
        from its weights as they are when its turn comes.
    dampening : float
        The share of the mean of the Hessian's diagonal that is added to the diagonal. Inputs that
        are always 0 do not count in the mean.

    Examples
    --------
    >>> from dataclasses import replace
    >>> from bert_numpy import PRESETS, Gptq
    >>> linear = replace(PRESETS["w4a16"].linear, gptq=Gptq("stored"))
    >>> replace(PRESETS["w4a16"], name="mine", linear=linear)
    <Recipe mine: linear - x INT4 by GPTQ; rest bfloat16>
    """

    order: str = "activations"
    dampening: float = 0.01

    def __post_init__(self) -> None:
        known = match(self.order, ORDERS) if isinstance(self.order, str) else None
        if known is None:
            raise BertNumpyError(
                f"gptq: order: expected {' or '.join(map(repr, ORDERS))}, found {shown(self.order)}"
            )
        object.__setattr__(self, "order", known)
        share = self.dampening
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise BertNumpyError(
                f"gptq: dampening: expected more than 0 and at most 1, found {shown(share)}"
            )


def gptq(
    weight: Float32Array,
    hessian: Float64Array,
    fmt: Format,
    axis: int | None,
    block: int | None,
    how: Gptq = Gptq(),
    power_of_two: bool = False,
) -> QuantizedTensor:
    """Quantize a weight by GPTQ.

    Parameters
    ----------
    weight : ndarray of float32, (out, in)
    hessian : ndarray of float64, (in, in)
        ``x^T x`` of the layer's inputs, or any positive multiple of it.
    fmt : FloatFormat or IntFormat
        The format of the codes; one with a zero point gets zero points.
    axis, block : int, optional
        As :func:`npfp8.quantize` takes them for ``weight``; blocks are along axis 1.
    how : Gptq
    power_of_two : bool
        Whether scales are rounded up to powers of two.

    Raises
    ------
    ValueError
        If the Hessian is not a matrix of the weight's inputs, or is not positive definite even
        with the dampening.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.quantization.gptq import gptq, output_error
    >>> from npfp8 import INT4, quantize
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 32)) @ rng.standard_normal((32, 32))
    >>> weight = rng.standard_normal((8, 32)).astype(np.float32)
    >>> nearest = quantize(weight, INT4, axis=1, block=16)
    >>> best = gptq(weight, x.T @ x, INT4, 1, 16)
    >>> [round(output_error(weight, q, x.T @ x), 3) for q in (nearest, best)]
    [0.074, 0.054]
    """
    columns = weight.shape[1]
    damped = _dampened(hessian, how.dampening, columns)
    by_turn = np.arange(columns)
    if how.order == "activations":
        by_turn = np.argsort(-np.diag(damped), kind="stable")
    # Each row here is a column of the weight: a step works on rows, which are contiguous.
    moved = weight.T.astype(np.float64)[by_turn]
    factor = inverse_factor(damped[np.ix_(by_turn, by_turn)])
    scale, zero_point = dynamic_scale(weight, fmt, axis, block, power_of_two)
    late = how.order == "stored" and block is not None
    together = min(block, columns) if late and block is not None else _TOGETHER
    codes = np.empty(weight.shape, fmt.code_dtype)
    for start in range(0, columns, together):
        stop = min(start + together, columns)
        if late:
            group = moved[start:stop].T.astype(np.float32)
            fresh, zeros = dynamic_scale(group, fmt, axis, block, power_of_two)
            scale[:, start // together] = fresh[:, 0]
            if zero_point is not None and zeros is not None:
                zero_point[:, start // together] = zeros[:, 0]
        errors = np.empty((stop - start, len(weight)))
        for turn in range(start, stop):
            column = by_turn[turn]
            q = _column(moved[turn], fmt, _part(scale, column, block), axis,
                        _part(zero_point, column, block))  # fmt: skip
            codes[:, column] = q.codes
            error = (moved[turn] - q.dequantize()) / factor[turn, turn]
            moved[turn + 1 : stop] -= factor[turn, turn + 1 : stop, None] * error
            errors[turn - start] = error
        moved[stop:] -= blas_product(np.ascontiguousarray(factor[start:stop, stop:].T), errors)
    return QuantizedTensor(codes, scale, fmt, axis, zero_point, block)


def _column(
    x: Float64Array, fmt: Format, scale: Array | None, axis: int | None, zero_point: Array | None
) -> QuantizedTensor:
    """Round one column of a weight: one scale for all of it, or one per output."""
    return quantize(
        x.astype(np.float32), fmt, scale, None if axis is None else 0, zero_point=zero_point
    )


def _part(values: Array | None, column: int, block: int | None) -> Array | None:
    """Return the values for a column: those of its block, if there is one per block."""
    return values if values is None or block is None else values[:, column // block]


def _dampened(hessian: Float64Array, share: float, columns: int) -> Float64Array:
    """Return a Hessian with more on its diagonal; inputs that are always 0 get the mean."""
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian: expected shape {(columns, columns)} for {columns} inputs, found "
            f"{hessian.shape}"
        )
    diagonal = np.diag(hessian)
    used = diagonal > 0
    mean = float(diagonal[used].mean()) if used.any() else 1.0
    damped = hessian.astype(np.float64)
    places = np.arange(columns)
    damped[places, places] = np.where(used, diagonal, mean) + share * mean
    return damped


def inverse_factor(matrix: Float64Array) -> Float64Array:
    """Return the upper triangular ``U`` with ``U^T U`` the inverse of a positive definite matrix.

    With the rows and columns in reverse order, ``matrix = L L^T``; the inverse of ``L``, reversed
    again, is ``U``. So there is one inverse, of a triangular matrix.

    Raises
    ------
    ValueError
        If the matrix is not positive definite, or not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.quantization.gptq import inverse_factor
    >>> inverse_factor(np.diag([4.0, 0.25]))
    array([[0.5, 0. ],
           [0. , 2. ]])
    """
    try:
        lower = np.linalg.cholesky(matrix[::-1, ::-1])
    except np.linalg.LinAlgError:
        lower = np.full_like(matrix, np.nan)
    if not np.isfinite(lower).all():
        raise ValueError("hessian: expected finite and positive definite, with the dampening")
    inverse: Float64Array = np.triu(np.linalg.inv(lower)[::-1, ::-1]) + 0.0
    return inverse


def output_error(
    weight: Float32Array, quantized: QuantizedTensor | Float32Array, hessian: Float64Array
) -> float:
    """Compute the error of a layer's outputs over a sample, relative to the outputs.

    ``sqrt(sum (w - q) H (w - q)^T / sum w H w^T)``, which is the Frobenius norm of the outputs'
    error over that of the outputs.

    Parameters
    ----------
    weight : ndarray of float32, (out, in)
    quantized : QuantizedTensor or ndarray of float32, (out, in)
    hessian : ndarray of float64, (in, in)

    Examples
    --------
    >>> import numpy as np
    >>> from bert_numpy.quantization.gptq import output_error
    >>> round(output_error(np.float32([[1, 2]]), np.float32([[1, 1]]), np.diag([1.0, 2.0])), 4)
    0.4714
    """
    values = quantized.dequantize() if isinstance(quantized, QuantizedTensor) else quantized
    wide = weight.astype(np.float64)

    def squared(x: Float64Array) -> float:
        return float((blas_product(x, hessian) * x).sum())

    return float(np.sqrt(max(squared(wide - values), 0.0) / squared(wide)))

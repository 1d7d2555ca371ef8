"""The rule for outputs with a NaN or an infinity: such an output is no answer.

An output is the row of logits of a text, its scores or its vector, or the logits
of all windows of a question. If one of its numbers is not finite:

- The evaluation of a data set goes on and counts such outputs in
  ``Evaluation.not_finite``. The prediction is missing (:data:`NO_CLASS`, a score of
  NaN, None for an answer's text): it is wrong in every metric and differs from every
  other prediction. Correlations and differences of scores are then NaN.
- Everything that is written for others or printed for a single text is refused: a
  prediction, a submission, a quantized checkpoint. A reference is refused, too,
  because nothing could be compared with it.

Inside a model, NaN and infinity are noticed only when they reach an output; golden
arithmetic refuses them at the first product.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bert_numpy.errors import BertNumpyError
from npfp8.arrays import Array

__all__ = ["NO_CLASS", "missing", "require_finite", "rows_not_finite"]

#: The class number of an output that is not finite.
NO_CLASS = -1


def rows_not_finite(x: Array) -> npt.NDArray[np.bool_]:
    """Find the rows, along the first axis, that have a NaN or an infinity. (n, ...) -> (n,)."""
    return np.asarray(~np.isfinite(x).all(axis=tuple(range(1, x.ndim))))


def missing(predictions: Array) -> npt.NDArray[np.bool_]:
    """Find the missing ones of class numbers, scores or texts (as objects). (n,) -> (n,)."""
    if predictions.dtype == object:
        return np.array([text is None for text in predictions], bool)
    if predictions.dtype.kind == "f":
        return ~np.isfinite(predictions)
    return np.asarray(predictions < 0)


def require_finite(place: str, x: Array) -> None:
    """Raise :class:`BertNumpyError`, naming the first number that is not finite."""
    finite = np.isfinite(x)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        where = f" at {index}" if index else ""
        raise BertNumpyError(f"{place}: expected finite numbers, found {x[index]}{where}")

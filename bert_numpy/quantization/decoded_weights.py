"""The weights of a quantized model as its products take them, decoded once."""

from __future__ import annotations

from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from npfp8 import QuantizedTensor
from npfp8.products.operands import Decoded, decoded

__all__ = ["DECODED_BUDGET", "DecodedWeights"]

#: The most bytes of decoded weights that a model keeps by default.
DECODED_BUDGET = 1 << 30


class DecodedWeights:
    """Decoded weights, made when a product first needs them and kept within a budget.

    The codes of a weight take one byte each and their values four or eight. Without the values
    every run decodes all weights again, which costs single texts more than their products. A
    weight that no longer fits the budget is decoded at each of its products. Copies and pickles
    of this object are empty.

    Parameters
    ----------
    budget : int
        The most bytes of the values kept.

    Examples
    --------
    >>> import numpy as np
    >>> from npfp8 import quantize
    >>> weight = quantize(np.ones((2, 3), np.float32), "E4M3FN")
    >>> kept = DecodedWeights()
    >>> operand = kept.decoded("layer", weight, np.float64)
    >>> operand.values.shape, operand is kept.decoded("layer", weight, np.float64), kept.nbytes
    ((3, 2), True, 48)
    """

    def __init__(self, budget: int = DECODED_BUDGET) -> None:
        self.budget = budget
        self.nbytes = 0
        self._kept: dict[str, tuple[QuantizedTensor, Decoded]] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[DecodedWeights], tuple[int]]:
        return DecodedWeights, (self.budget,)

    def decoded(self, name: str, weight: QuantizedTensor, dtype: type[np.floating[Any]]) -> Decoded:
        """Return the operand of products with the transpose of a weight.

        Parameters
        ----------
        name : str
            The layer's name: another weight of the same name replaces the one kept.
        weight : QuantizedTensor, (N, K)
        dtype : type
            float32 or float64.

        Returns
        -------
        Decoded, (K, N)
        """
        found = self._kept.get(name)
        if found is not None and found[0] is weight and found[1].values.dtype == dtype:
            return found[1]
        operand = decoded(weight.mT, -2, dtype)
        nbytes = operand.values.nbytes
        with self._lock:
            if (before := self._kept.pop(name, None)) is not None:
                self.nbytes -= before[1].values.nbytes
            if self.nbytes + nbytes <= self.budget:
                # By rows of K: a BLAS multiplies a few rows by them up to twice as fast.
                operand = replace(operand, values=np.ascontiguousarray(operand.values))
                self._kept[name] = weight, operand
                self.nbytes += nbytes
        return operand

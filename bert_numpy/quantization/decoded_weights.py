"""The weights of a quantized model as its products take them, decoded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.engines.engine import Weights
from bert_numpy.quantization.plan import SitePlan
from bert_numpy.quantization.recipe import SiteRecipe
from npfp8 import Accumulator, BlockFormat, Format, QuantizedTensor
from npfp8.arrays import as_right_operand
from npfp8.products.blocks import PREPARED_BYTES, Prepared
from npfp8.products.operands import Decoded, decoded, product_dtype

__all__ = [
    "DECODED_BUDGET",
    "DType",
    "DecodedWeights",
    "decoded_nbytes",
    "format_to_decode",
    "is_prepared",
    "site_dtype",
]

#: The dtype of decoded operands.
DType = type[np.floating[Any]]

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
        self._kept: dict[str, _Kept] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[DecodedWeights], tuple[int]]:
        return DecodedWeights, (self.budget,)

    def get(self, name: str, weight: QuantizedTensor) -> Decoded | Prepared | None:
        """Return the operand of a weight, (K, N), if it is kept."""
        found = self._kept.get(name)
        return found.operand if found is not None and found.weight is weight else None

    def decoded(self, name: str, weight: QuantizedTensor, dtype: DType) -> Decoded:
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
        operand: Decoded = self._operand(
            name, weight, dtype, lambda: _decoded(weight, dtype), np.dtype(dtype).itemsize
        )
        return operand

    def prepared(self, name: str, weight: QuantizedTensor) -> Prepared:
        """Return the same of a weight with a block format; it counts as all that it may hold."""
        operand: Prepared = self._operand(
            name, weight, None, lambda: Prepared(weight.mT, -2), PREPARED_BYTES
        )
        return operand

    def _operand(
        self,
        name: str,
        weight: QuantizedTensor,
        dtype: DType | None,
        make: Callable[[], Any],
        bytes_each: int,
    ) -> Any:
        found = self._kept.get(name)
        if found is not None and found.weight is weight and found.dtype is dtype:
            return found.operand
        kept = _Kept(weight, dtype, make(), weight.size * bytes_each)
        with self._lock:
            if (before := self._kept.pop(name, None)) is not None:
                self.nbytes -= before.nbytes
            if self.nbytes + kept.nbytes <= self.budget:
                self._kept[name] = kept
                self.nbytes += kept.nbytes
        return kept.operand


def _decoded(weight: QuantizedTensor, dtype: DType) -> Decoded:
    operand = decoded(weight.mT, -2, dtype)
    if dtype is not np.float64:
        return operand
    return replace(operand, values=as_right_operand(operand.values))


class _Kept(NamedTuple):
    weight: QuantizedTensor
    dtype: DType | None
    operand: Decoded | Prepared
    nbytes: int


def site_dtype(
    how: SiteRecipe, b: Format | BlockFormat | None, k: int, accumulator: Accumulator
) -> DType | None:
    """Return the dtype in which a site's decoded operands are multiplied; None if codes are.

    Parameters
    ----------
    how : SiteRecipe
    b : Format, BlockFormat or None
        The format of the right operand.
    k : int
        The length of the sums.
    accumulator : Accumulator

    Examples
    --------
    >>> from bert_numpy import PRESETS
    >>> from npfp8 import ACCUMULATORS, E4M3FN
    >>> how, exact = PRESETS["e4m3"].linear, ACCUMULATORS["exact"]
    >>> site_dtype(how, E4M3FN, 128, exact), site_dtype(how, None, 128, exact)
    (<class 'numpy.float64'>, None)
    """
    a = how.a
    if not isinstance(a.fmt, Format) or not isinstance(b, Format) or a.granularity == "block":
        return None
    return None if how.outlier_threshold is not None else product_dtype(a.fmt, b, k, accumulator)


def format_to_decode(weight: QuantizedTensor) -> Format | None:
    """Return the format of a weight, (N, K); None if scales vary along K."""
    in_blocks = weight.block is not None and weight.block < weight.shape[-1]
    return None if weight.block_format is not None or in_blocks else weight.fmt


def is_prepared(how: SiteRecipe, weight: QuantizedTensor, accumulator: Accumulator) -> bool:
    """Return whether a weight in a block format is multiplied by an operand with exact sums."""
    blocks = weight.block_format is not None and accumulator.kind == "exact"
    return blocks and how.a.fmt is not None and how.outlier_threshold is None


def decoded_nbytes(
    weights: Weights, plans: Mapping[str, SitePlan], accumulator: Accumulator
) -> int:
    """Return the bytes of all weights that a model would keep decoded, without decoding one.

    Parameters
    ----------
    weights : mapping of str to ndarray or QuantizedTensor
        The model's weights by name.
    plans : mapping of str to SitePlan
    accumulator : Accumulator
        The one of the recipe.
    """
    total = 0
    for name, plan in plans.items():
        weight = weights.get(f"{name}.weight")
        if isinstance(weight, QuantizedTensor):
            k = weight.shape[-1]
            dtype = site_dtype(plan.recipe, format_to_decode(weight), k, accumulator)
            if is_prepared(plan.recipe, weight, accumulator):
                total += weight.size * PREPARED_BYTES
            elif dtype is not None:
                total += weight.size * np.dtype(dtype).itemsize
    return total

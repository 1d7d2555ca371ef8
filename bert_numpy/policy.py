"""Gemm policies: what a matrix product of the forward pass means.

A policy is the one thing in which a float, a calibrating and a quantized run
differ. Its ``gemm(site, a, b, bias)`` gets the site's name, the left operand
(..., M, K), the right one (..., K, N) and the bias (N,) or None, and returns
float32 (..., M, N).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_numpy.elementwise import BFLOAT16, FLOAT32, Arithmetic
from bert_numpy.errors import BertNumpyError
from bert_numpy.recipe import Recipe
from npfp8 import FloatFormat, QuantizedTensor, matmul, quantize

__all__ = ["ARITHMETICS", "FLOAT32_POLICY", "OperandCounts", "Policy", "quantized_policy"]

Float32Array = npt.NDArray[np.float32]
Operand = Float32Array | QuantizedTensor
Gemm = Callable[[str, Float32Array, Operand, Float32Array | None], Float32Array]

ARITHMETICS = {arithmetic.name: arithmetic for arithmetic in (FLOAT32, BFLOAT16)}


@dataclass(frozen=True, eq=False)
class Policy:
    """How matrices are multiplied, and the arithmetic of all the rest."""

    gemm: Gemm
    arithmetic: Arithmetic


def float32_gemm(site: str, a: Float32Array, b: Operand, bias: Float32Array | None) -> Float32Array:
    """A plain float32 product."""
    assert isinstance(b, np.ndarray), site
    product = np.matmul(a, b)
    if bias is not None:
        product += bias
    return product


#: Parity with Hugging Face: float32 throughout.
FLOAT32_POLICY = Policy(float32_gemm, FLOAT32)


@dataclass
class OperandCounts:
    """What quantization did to the elements of one operand of a site, over a run."""

    elements: int = 0
    saturated: int = 0  # beyond the largest finite value
    underflowed: int = 0  # not zero, but the code of zero

    def add(self, x: Float32Array, q: QuantizedTensor) -> None:
        """Count the elements of ``x`` that became ``q``, a tensor of one scale."""
        fmt = q.fmt
        self.elements += x.size
        largest = np.maximum(x.max(initial=0), -x.min(initial=0))
        with np.errstate(over="ignore"):
            if not largest / q.scale <= fmt.max:  # beyond, or a NaN hides what is
                self.saturated += int(np.count_nonzero(np.abs(x) / q.scale > fmt.max))
        # A float's zero has two codes, which differ in the sign bit.
        codes = q.codes & 0x7F if isinstance(fmt, FloatFormat) else q.codes
        self.underflowed += int(np.count_nonzero(x) - np.count_nonzero(codes))


def quantized_policy(
    recipe: Recipe,
    scales: Mapping[str, tuple[Float32Array, Float32Array]],
    counts: dict[str, OperandCounts],
) -> Policy:
    """The paper's quantized inference.

    At a site with scales both operands become 8-bit codes (weights are codes
    already), the codes are multiplied exactly, scaled, and the bias added in
    float32. At other sites the product is float32. Every result is rounded to
    the recipe's arithmetic, but for a head's, which are the model's answer.

    Parameters
    ----------
    recipe : Recipe
    scales : mapping of str to pair of float32
        Static scales of the left and the right operand, by site.
    counts : dict
        Filled with :class:`OperandCounts` by ``site:a`` and ``site:b``.
    """
    arithmetic = ARITHMETICS[recipe.arithmetic]

    def quantized(name: str, x: Operand, scale: Float32Array) -> QuantizedTensor:
        if isinstance(x, QuantizedTensor):
            return x
        assert recipe.fmt is not None
        try:
            q = quantize(x, recipe.fmt, scale)
        except ValueError as error:
            raise BertNumpyError(f"{name}: {error}") from None
        counts.setdefault(name, OperandCounts()).add(x, q)
        return q

    def gemm(site: str, a: Float32Array, b: Operand, bias: Float32Array | None) -> Float32Array:
        if site not in scales:
            product = float32_gemm(site, a, b, bias)
            return arithmetic.round(product) if site.startswith("encoder.") else product
        scale_a, scale_b = scales[site]
        qa, qb = quantized(f"{site}:a", a, scale_a), quantized(f"{site}:b", b, scale_b)
        product = matmul(qa, qb, recipe.accumulate)
        if bias is not None:
            product += bias
        return arithmetic.round(product)

    return Policy(gemm, arithmetic)

"""Gemm policies: what a matrix product of the forward pass means.

A policy is the one thing in which a float, a calibrating, a quantized and a
golden run differ. Its ``gemm(site, a, b, bias)`` gets the site's name, the left operand
(..., M, K), the right one (..., K, N) and the bias (N,) or None, and returns
float32 (..., M, N).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_numpy.elementwise import (
    BFLOAT16,
    FLOAT32,
    GOLDEN_BFLOAT16,
    GOLDEN_FLOAT32,
    Arithmetic,
)
from bert_numpy.errors import BertNumpyError
from bert_numpy.recipe import PRESETS, Recipe
from npfp8 import (
    FloatFormat,
    QuantizedTensor,
    matmul,
    matmul_float32,
    quantize,
    quantize_bfloat16,
)
from npfp8.golden import require_ieee754

__all__ = ["FLOAT32_POLICY", "OperandCounts", "Policy", "float32_policy", "quantized_policy"]

Float32Array = npt.NDArray[np.float32]
Operand = Float32Array | QuantizedTensor
Gemm = Callable[[str, Float32Array, Operand, Float32Array | None], Float32Array]


@dataclass(frozen=True, eq=False)
class Policy:
    """How matrices are multiplied, and the arithmetic of all the rest.

    ``check(site, x)`` is called with what the model gives back and no product has checked.
    """

    gemm: Gemm
    arithmetic: Arithmetic
    check: Callable[[str, Float32Array], None] = lambda site, x: None


@dataclass(frozen=True, eq=False)
class _Numerics:
    """How to compute what no format prescribes, and what to make sure of at each product."""

    matmul: Callable[[Float32Array, Float32Array], Float32Array]
    arithmetics: Mapping[str, Arithmetic]
    check: Callable[[str, Float32Array], None]


def _refuse_non_finite(site: str, x: Float32Array) -> None:
    """Golden outputs have no NaN: which one it is, and what becomes of it, is the machine's."""
    finite = np.isfinite(x)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise BertNumpyError(f"{site}: expected finite numbers, found {x[index]} at {index}")


def _check_golden(site: str, x: Float32Array) -> None:
    try:
        require_ieee754()
    except FloatingPointError as error:
        raise BertNumpyError(f"{site}: {error}") from None
    _refuse_non_finite(site, x)


_FAST = _Numerics(np.matmul, {"float32": FLOAT32, "bfloat16": BFLOAT16}, check=lambda site, x: None)
_GOLDEN = _Numerics(
    matmul_float32, {"float32": GOLDEN_FLOAT32, "bfloat16": GOLDEN_BFLOAT16}, _check_golden
)


def float32_policy(golden: bool = False) -> Policy:
    """Float32 throughout: parity with Hugging Face, or the same bits on every machine."""
    return quantized_policy(PRESETS["fp32"], {}, {}, golden)


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
        # Of the codes first, whose bytes are fewer. A float's sign bit is taken
        # off: its zero has two codes.
        magnitudes = q.codes & 0x7F if isinstance(fmt, FloatFormat) else np.abs(q.codes)
        if magnitudes.max(initial=0) >= fmt.max_code:
            with np.errstate(over="ignore"):
                largest = np.abs(x[magnitudes >= fmt.max_code]) / q.scale
            self.saturated += int(np.count_nonzero(largest > fmt.max))
        not_zero = int(np.count_nonzero(magnitudes))
        if not_zero < x.size:
            self.underflowed += int(np.count_nonzero(x != 0)) - not_zero


def quantized_policy(
    recipe: Recipe,
    scales: Mapping[str, tuple[Float32Array, Float32Array]],
    counts: dict[str, OperandCounts],
    golden: bool = False,
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
    golden : bool
        The same bits on every machine: products that are not quantized are
        correctly rounded, the arithmetic is :mod:`npfp8.golden`'s, and NaN or
        infinity in an operand or a result is an error that names the site.

    Raises
    ------
    BertNumpyError
        If golden products are asked for from a recipe that accumulates in float32.
    """
    numerics = _GOLDEN if golden else _FAST
    arithmetic = numerics.arithmetics[recipe.arithmetic]
    if golden and recipe.accumulate != "exact":
        raise BertNumpyError(
            f"recipe {recipe.name}: golden products are accumulated 'exact', "
            f"found {recipe.accumulate!r}"
        )

    to_codes = quantize_bfloat16 if recipe.arithmetic == "bfloat16" else quantize

    def quantized(name: str, x: Operand, scale: Float32Array) -> QuantizedTensor:
        if isinstance(x, QuantizedTensor):
            return x
        assert recipe.fmt is not None
        try:
            q = to_codes(x, recipe.fmt, scale)
        except ValueError as error:
            raise BertNumpyError(f"{name}: {error}") from None
        counts.setdefault(name, OperandCounts()).add(x, q)
        return q

    def gemm(site: str, a: Float32Array, b: Operand, bias: Float32Array | None) -> Float32Array:
        numerics.check(f"{site}:a", a)
        if site in scales:
            scale_a, scale_b = scales[site]
            qa, qb = quantized(f"{site}:a", a, scale_a), quantized(f"{site}:b", b, scale_b)
            product = matmul(qa, qb, recipe.accumulate)
        else:
            assert isinstance(b, np.ndarray), site
            product = numerics.matmul(a, b)
        if bias is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                product += bias
        if site.startswith("encoder."):
            product = arithmetic.round(product)
        numerics.check(site, product)
        return product

    return Policy(gemm, arithmetic, numerics.check)


#: Parity with Hugging Face.
FLOAT32_POLICY = float32_policy()

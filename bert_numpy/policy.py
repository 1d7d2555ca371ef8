"""Gemm policies: what a matrix product of the forward pass means.

A policy is the one thing in which a float, a calibrating, a quantized and a
golden run differ. Its ``gemm(site, a, b, bias)`` gets the site's name, the left operand
(..., M, K), the right one (..., K, N) and the bias (N,) or None, and returns
float32 (..., M, N).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Lock, local

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
from bert_numpy.observers import range_scale
from bert_numpy.packing import Packing
from bert_numpy.recipe import PRESETS, Operand, Recipe, SiteRecipe
from npfp8 import (
    FloatFormat,
    QuantizedTensor,
    matmul,
    matmul_float32,
    quantize,
    quantize_bfloat16,
)
from npfp8.golden import require_ieee754
from npfp8.matmul import ACCUMULATIONS
from npfp8.tensor import group_extrema, spread

__all__ = [
    "FLOAT32_POLICY",
    "OperandCounts",
    "Operandlike",
    "Policy",
    "Scale",
    "SitePlan",
    "float32_policy",
    "quantize_operand",
    "quantized_policy",
]

Float32Array = npt.NDArray[np.float32]
Operandlike = Float32Array | QuantizedTensor
Gemm = Callable[[str, Float32Array, Operandlike, Float32Array | None], Float32Array]


@dataclass(frozen=True, eq=False)
class Policy:
    """How matrices are multiplied, and the arithmetic of all the rest.

    ``check(site, x)`` is called with what the model gives back and no product has checked.
    ``for_batch(packing)`` makes the policy for a batch, where products depend on which rows
    are one sequence; without it all rows of an operand are of one sequence.
    """

    gemm: Gemm
    arithmetic: Arithmetic
    check: Callable[[str, Float32Array], None] = lambda site, x: None
    for_batch: Callable[[Packing], Policy] | None = None


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

    @staticmethod
    def of(x: Float32Array, q: QuantizedTensor) -> OperandCounts:
        """The counts of the elements of ``x`` that became ``q``."""
        return OperandCounts(x.size, *_saturated_and_underflowed(x, q))

    def add(self, other: OperandCounts) -> None:
        """Add another's counts; also from several threads."""
        with _COUNTING:
            self.elements += other.elements
            self.saturated += other.saturated
            self.underflowed += other.underflowed


#: Held while counts are changed: batches may run on several threads.
_COUNTING = Lock()


def _saturated_and_underflowed(x: Float32Array, q: QuantizedTensor) -> tuple[int, int]:
    fmt = q.fmt
    if q.zero_point is not None:
        # Beyond the range: a code at its end whose value is not within half a scale.
        ends = (q.codes == fmt.max_code) | (q.codes == 0)
        off = np.abs(x - q.dequantize()) > 0.5000001 * spread(q.scale, q.shape, q.axis, q.block)
        zeros = q.codes == spread(q.zero_point, q.shape, q.axis, q.block)
        return int(np.count_nonzero(ends & off)), int(np.count_nonzero(zeros & (x != 0)))
    # Of the codes first, whose bytes are fewer. A float's sign bit is taken
    # off: its zero has two codes.
    magnitudes = q.codes & 0x7F if isinstance(fmt, FloatFormat) else np.abs(q.codes)
    saturated = 0
    if magnitudes.max(initial=0) >= fmt.max_code:
        largest = magnitudes >= fmt.max_code
        scales = spread(q.scale, q.shape, q.axis, q.block)
        if scales.ndim:
            scales = np.broadcast_to(scales, x.shape)[largest]
        with np.errstate(over="ignore"):
            quotients = np.abs(x[largest]) / scales
        # A scale from the largest element itself may round to just beyond.
        saturated = int(np.count_nonzero(quotients > fmt.max * (1 + 2.0**-20)))
    not_zero = int(np.count_nonzero(magnitudes))
    if not_zero == x.size:
        return saturated, 0
    return saturated, int(np.count_nonzero(x != 0)) - not_zero


@dataclass(frozen=True, eq=False)
class Scale:
    """A static scale of one tensor, and the zero point of a format that is used with one."""

    scale: Float32Array
    zero_point: int | None = None

    @staticmethod
    def of(low: float, high: float, operand: Operand) -> Scale:
        """The scale that maps a range around 0 to an operand's format."""
        assert operand.fmt is not None
        scale, zero_point = range_scale(
            np.float32(low), np.float32(high), operand.fmt, operand.power_of_two
        )
        return Scale(scale, None if zero_point is None else int(zero_point))


@dataclass(frozen=True, eq=False)
class SitePlan:
    """A site's recipe with what a calibration has made of it.

    Attributes
    ----------
    recipe : SiteRecipe
    a, b : Scale, optional
        The static scales; None for an operand that is not quantized, has scales
        of its own, or is quantized already.
    smoothing : ndarray of float32, (K,), optional
        What the columns of ``a`` are divided by; the weights are multiplied already.
    """

    recipe: SiteRecipe
    a: Scale | None = None
    b: Scale | None = None
    smoothing: Float32Array | None = None


def quantize_operand(x: Float32Array, operand: Operand, k_axis: int) -> QuantizedTensor:
    """Quantize an operand with scales of its own.

    Parameters
    ----------
    x : ndarray of float32
    operand : Operand
    k_axis : int
        The axis that the product sums over: -1 for a left operand, -2 for a
        right one. A scale per token is one block along it.
    """
    assert operand.fmt is not None
    axis, block = {
        "tensor": (None, None),
        "channel": (-3 - k_axis, None),
        "token": (k_axis, x.shape[k_axis]),
        "block": (k_axis, operand.block),
    }[operand.granularity]
    axis = None if axis is None else axis % x.ndim
    low, high = group_extrema(x, axis, block)
    scale, zero_point = range_scale(low, high, operand.fmt, operand.power_of_two)
    return quantize(x, operand.fmt, scale, axis, block, zero_point)


def quantized_policy(
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    counts: dict[str, OperandCounts],
    golden: bool = False,
    packing: Packing | None = None,
) -> Policy:
    """The paper's quantized inference.

    At a site with a plan the operands become 8-bit codes (weights are codes
    already), the codes are multiplied exactly, added up as the recipe says,
    scaled, and the bias added in float32. At other sites, and where only one
    operand is quantized, the product is float32. Every result is rounded to the
    recipe's arithmetic, but for a head's, which are the model's answer.

    Parameters
    ----------
    recipe : Recipe
    plans : mapping of str to SitePlan
        By site.
    counts : dict
        Filled with :class:`OperandCounts` by ``site:a`` and ``site:b``.
    golden : bool
        The same bits on every machine: products that are not quantized are
        correctly rounded, the arithmetic is :mod:`npfp8.golden`'s, and NaN or
        infinity in an operand or a result is an error that names the site.
    packing : Packing, optional
        Which rows are one sequence; by default all are.

    Raises
    ------
    BertNumpyError
        If golden products are asked for from a recipe that accumulates in float32,
        whose bits are the BLAS's affair.
    """
    numerics = _GOLDEN if golden else _FAST
    arithmetic = numerics.arithmetics[recipe.arithmetic]
    if golden and recipe.accumulate == "float32":
        expected = " or ".join(repr(mode) for mode in ACCUMULATIONS if mode != "float32")
        raise BertNumpyError(
            f"recipe {recipe.name}: golden products are accumulated {expected}, found 'float32'"
        )
    last = local()  # what was quantized last, of each thread

    def quantized(
        name: str, x: Operandlike, operand: Operand, static: Scale | None, k_axis: int
    ) -> Operandlike:
        if isinstance(x, QuantizedTensor) or operand.fmt is None:
            return x
        # Query, key and value have one input, and where it was calibrated one scale.
        scale = None if static is None else (float(static.scale), static.zero_point)
        how = (operand, scale, k_axis)
        if getattr(last, "x", None) is x and last.how == how:
            counts.setdefault(name, OperandCounts()).add(last.counts)
            return last.q
        try:
            if static is None:
                q = quantize_operand(x, operand, k_axis)
            elif recipe.arithmetic == "bfloat16":
                q = quantize_bfloat16(x, operand.fmt, static.scale, static.zero_point)
            else:
                q = quantize(x, operand.fmt, static.scale, zero_point=static.zero_point)
        except ValueError as error:
            raise BertNumpyError(f"{name}: {error}") from None
        last.x, last.how, last.q, last.counts = x, how, q, OperandCounts.of(x, q)
        counts.setdefault(name, OperandCounts()).add(last.counts)
        return q

    def multiply(a: Operandlike, b: Operandlike) -> Float32Array:
        if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
            return matmul(a, b, recipe.accumulate)
        return numerics.matmul(_float32(a), _float32(b))

    def planned(site: str, plan: SitePlan, a: Float32Array, b: Operandlike) -> Float32Array:
        if plan.smoothing is not None:
            a = arithmetic.round(a / plan.smoothing)
        outliers = None
        if plan.recipe.outlier_threshold is not None:
            beyond = _outliers(a, plan.recipe.outlier_threshold, plan.recipe.outliers, packing)
            outliers, a = np.where(beyond, a, np.float32(0)), np.where(beyond, np.float32(0), a)
        qa = quantized(f"{site}:a", a, plan.recipe.a, plan.a, -1)
        qb = quantized(f"{site}:b", b, plan.recipe.b, plan.b, -2)
        product = multiply(qa, qb)
        if outliers is not None:
            # Also where a row has none, so that -0 + 0 is the same in every batch.
            product += numerics.matmul(outliers, _float32(qb)) if outliers.any() else np.float32(0)
        return product

    def gemm(site: str, a: Float32Array, b: Operandlike, bias: Float32Array | None) -> Float32Array:
        numerics.check(f"{site}:a", a)
        plan = plans.get(site)
        product = multiply(a, b) if plan is None else planned(site, plan, a, b)
        if bias is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                product += bias
        if site.startswith(("encoder.", "embeddings_project")):
            product = arithmetic.round(product)
        numerics.check(site, product)
        return product

    if not any(plan.recipe.outliers == "column" for plan in plans.values()):
        return Policy(gemm, arithmetic, numerics.check)
    again = partial(quantized_policy, recipe, plans, counts, golden)
    return Policy(gemm, arithmetic, numerics.check, for_batch=again)


def _outliers(
    a: Float32Array, threshold: float, unit: str, packing: Packing | None
) -> npt.NDArray[np.bool_]:
    """Find the elements that are kept out of the quantized product.

    Parameters
    ----------
    a : ndarray of float32, (tokens, K), or (batch, K) of the first tokens alone
    threshold : float
    unit : {"element", "column"}
        Whether an outlier leaves alone, or with its whole column of its sequence.
    packing : Packing, optional
        Which rows are a sequence's. A token that is masked (only position 0 is computed
        all the same) makes no column one of outliers.
    """
    beyond = np.abs(a) > np.float32(threshold)
    if unit == "element":
        return beyond
    if packing is None:
        return np.broadcast_to(beyond.any(axis=-2, keepdims=True), beyond.shape)
    if len(beyond) != len(packing.tokens):
        return beyond  # each row is all that there is of its sequence
    of_tokens = beyond & packing.take(packing.mask)[:, None]
    columns = np.logical_or.reduceat(of_tokens, packing.first, axis=0)
    return np.repeat(columns, np.diff(packing.first, append=len(beyond)), axis=0)


def _float32(x: Operandlike) -> Float32Array:
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


#: Parity with Hugging Face.
FLOAT32_POLICY = float32_policy()

"""Gemm policies: what a matrix product of the forward pass means.

A policy is the one thing in which a float, a calibrating, a quantized and a
golden run differ. Its ``gemm(site, a, b, bias)`` gets the site's name, the left operand
(..., M, K), the right one (..., K, N) and the bias (N,) or None, and returns
float32 (..., M, N).

Policies are data: the products of a quantized model are a :class:`QuantizedGemm`,
whose fields say all that it does, so that models can be copied, pickled and sent
to other processes. Several threads may use one policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock, local
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.functions import (
    BFLOAT16,
    FLOAT32,
    GOLDEN_BFLOAT16,
    GOLDEN_FLOAT32,
    Arithmetic,
)
from bert_numpy.errors import BertNumpyError
from bert_numpy.finite import require_finite
from bert_numpy.model.packing import Packing
from bert_numpy.quantization.recipe import PRESETS, Operand, Recipe, SiteRecipe
from npfp8 import (
    FloatFormat,
    QuantizedTensor,
    matmul,
    matmul_float32,
    quantize,
    quantize_bfloat16,
)
from npfp8.golden import require_ieee754
from npfp8.products import ACCUMULATORS
from npfp8.scaling import group_extrema, scale_of_range, spread

__all__ = [
    "FLOAT32_POLICY",
    "OperandCounts",
    "Operandlike",
    "Policy",
    "QuantizedGemm",
    "Scale",
    "SitePlan",
    "add_counts",
    "copy_of_counts",
    "counting_into",
    "float32_policy",
    "naming",
    "quantize_operand",
    "quantized_policy",
]

Float32Array = npt.NDArray[np.float32]
Operandlike = Float32Array | QuantizedTensor
#: Called with a site's name, its left and right operand and its bias; see the module's docstring.
Gemm = Callable[[str, Float32Array, Operandlike, Float32Array | None], Float32Array]


def _in_any_batch(policy: Policy, packing: Packing) -> Policy:
    """The policy itself: its products do not depend on which rows are one sequence."""
    return policy


def _unchecked(site: str, x: Float32Array) -> None:
    """Accept all numbers: NaN and infinity are looked for in the model's outputs."""


@dataclass(frozen=True, eq=False)
class Policy:
    """How matrices are multiplied, and the arithmetic of all the rest.

    ``check(site, x)`` is called with what the model gives back and no product has checked.
    ``for_batch(policy, packing)`` gives the policy of one batch, where products depend on
    which rows are one sequence; in others it is the same one.
    """

    gemm: Gemm
    arithmetic: Arithmetic
    check: Callable[[str, Float32Array], None] = _unchecked
    for_batch: Callable[[Policy, Packing], Policy] = _in_any_batch


@dataclass(frozen=True, eq=False)
class _Numerics:
    """How to compute what no format prescribes, and what to make sure of at each product."""

    matmul: Callable[[Float32Array, Float32Array], Float32Array]
    arithmetics: Mapping[str, Arithmetic]
    check: Callable[[str, Float32Array], None]


def _check_golden(site: str, x: Float32Array) -> None:
    """Golden outputs have no NaN: which one it is, and what becomes of it, is the machine's."""
    with naming(site):
        require_ieee754()
    require_finite(site, x)


_FAST = _Numerics(np.matmul, {"float32": FLOAT32, "bfloat16": BFLOAT16}, _unchecked)
_GOLDEN = _Numerics(
    matmul_float32, {"float32": GOLDEN_FLOAT32, "bfloat16": GOLDEN_BFLOAT16}, _check_golden
)


@contextmanager
def naming(site: str) -> Iterator[None]:
    """Turn an error that any function raises within it into one that names the site.

    Raises
    ------
    BertNumpyError
        For what npfp8 and NumPy raise: scales that overflow, K beyond a limit, NaN
        for integers, shapes that do not fit, too little memory.
    """
    try:
        yield
    except BertNumpyError:
        raise
    except _NAMED as error:
        raise _with_site(error, site) from error


#: The errors of npfp8 and NumPy that are no mistake of this package's.
_NAMED = (ArithmeticError, MemoryError, TypeError, ValueError)


def _with_site(error: Exception, site: str) -> BertNumpyError:
    """The error of a function that knows no sites, with the site's name."""
    lacks = "expected enough memory, found none left. " if isinstance(error, MemoryError) else ""
    return BertNumpyError(f"{site}: {lacks}{error}")


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


def add_counts(total: dict[str, OperandCounts], counts: Mapping[str, OperandCounts]) -> None:
    """Add counts by operand to others; also from several threads."""
    for name, count in counts.items():
        total.setdefault(name, OperandCounts()).add(count)


def copy_of_counts(counts: Mapping[str, OperandCounts]) -> dict[str, OperandCounts]:
    """Copy counts that other threads may be adding to."""
    with _COUNTING:
        return {name: replace(count) for name, count in list(counts.items())}


#: Held while counts are changed: batches may run on several threads.
_COUNTING = Lock()


def _unlock_after_fork() -> None:
    """Make the lock anew: the thread that held it is not in the child process."""
    global _COUNTING  # noqa: PLW0603
    _COUNTING = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_after_fork)


def _saturated_and_underflowed(x: Float32Array, q: QuantizedTensor) -> tuple[int, int]:
    fmt = q.fmt
    if q.zero_point is not None:
        # Beyond the range: a code at its end whose value is not within half a scale.
        ends = (q.codes == fmt.max_code) | (q.codes == 0)
        off = np.abs(x - q.dequantize()) > 0.5000001 * spread(q.scale, q.shape, q.axis, q.block)
        zeros = q.codes == spread(q.zero_point, q.shape, q.axis, q.block)
        return int(np.count_nonzero(ends & off)), int(np.count_nonzero(zeros & (x != 0)))
    # Of the codes first, whose bytes are fewer. A float's sign bit is taken off.
    floats = fmt if isinstance(fmt, FloatFormat) else None
    if floats is None:
        magnitudes = np.abs(q.codes)
    else:
        magnitudes = q.codes & np.uint8((floats.sign_bit or 256) - 1)
    saturated = 0
    if magnitudes.max(initial=0) >= fmt.max_code:
        largest = magnitudes >= fmt.max_code
        scales = spread(q.scale, q.shape, q.axis, q.block)
        if scales.ndim:
            scales = np.broadcast_to(scales, x.shape)[largest]
        signed = floats is None or floats.signed  # negative numbers of others are NaN
        with np.errstate(over="ignore"):
            quotients = (np.abs(x[largest]) if signed else x[largest]) / scales
        # A scale from the largest element itself may round to just beyond.
        saturated = int(np.count_nonzero(quotients > fmt.max * (1 + 2.0**-20)))
    not_zero = int(np.count_nonzero(magnitudes))
    if not_zero == x.size or (floats is not None and not floats.has_zero):
        return saturated, 0
    if floats is not None and floats.sign_bit in floats.nan_codes:  # a NaN of zero's magnitude
        not_zero += int(np.count_nonzero(q.codes == floats.sign_bit))
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
        scale, zero_point = scale_of_range(
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
    scale, zero_point = scale_of_range(low, high, operand.fmt, operand.power_of_two)
    return quantize(x, operand.fmt, scale, axis, block, zero_point)


def quantized_policy(
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    counts: dict[str, OperandCounts],
    golden: bool = False,
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

    Raises
    ------
    BertNumpyError
        If golden products are asked for from a recipe that accumulates in float32,
        whose bits are the BLAS's affair.
    """
    if golden and not ACCUMULATORS[recipe.accumulate].reproducible:
        expected = " or ".join(repr(x.name) for x in ACCUMULATORS.values() if x.reproducible)
        raise BertNumpyError(
            f"recipe {recipe.name}: golden products are accumulated {expected}, "
            f"found {recipe.accumulate!r}"
        )
    gemm = QuantizedGemm(recipe, plans, counts, golden)
    by_columns = any(plan.recipe.outliers == "column" for plan in plans.values())
    for_batch = _with_packing if by_columns else _in_any_batch
    return Policy(gemm, gemm.arithmetic, gemm.numerics.check, for_batch)


def _with_packing(policy: Policy, packing: Packing) -> Policy:
    """The policy that looks for columns of outliers in each sequence of a batch."""
    gemm = policy.gemm
    assert isinstance(gemm, QuantizedGemm)
    return replace(policy, gemm=replace(gemm, packing=packing))


class _Last(local):
    """The operand that was quantized last, of each thread. A copy starts without one."""

    x: Float32Array | None = None
    how: tuple[Any, ...] = ()
    q: QuantizedTensor
    counts: OperandCounts

    def __reduce__(self) -> tuple[type[_Last], tuple[()]]:
        return _Last, ()


@dataclass(frozen=True, eq=False)
class QuantizedGemm:
    """The products of :func:`quantized_policy`, whose arguments it has."""

    recipe: Recipe
    plans: Mapping[str, SitePlan] = field(repr=False)
    counts: dict[str, OperandCounts] = field(repr=False)
    golden: bool = False
    packing: Packing | None = None  # of the batch; without it all rows are one sequence
    _last: _Last = field(default_factory=_Last, init=False, repr=False)

    @property
    def numerics(self) -> _Numerics:
        """The operations of the mode, fast or golden."""
        return _GOLDEN if self.golden else _FAST

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic of everything but products."""
        return self.numerics.arithmetics[self.recipe.arithmetic]

    def __call__(
        self, site: str, a: Float32Array, b: Operandlike, bias: Float32Array | None
    ) -> Float32Array:
        """The product at a site; see :data:`Gemm`. All errors name the site."""
        try:  # as `naming` does, in no time
            self.numerics.check(f"{site}:a", a)
            plan = self.plans.get(site)
            product = self.multiply(a, b) if plan is None else self.planned(site, plan, a, b)
            if bias is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    product += bias
            if site.startswith(("encoder.", "embeddings_project")):
                product = self.arithmetic.round(product)
            self.numerics.check(site, product)
        except BertNumpyError:
            raise
        except _NAMED as error:
            raise _with_site(error, site) from error
        return product

    def planned(self, site: str, plan: SitePlan, a: Float32Array, b: Operandlike) -> Float32Array:
        """The product at a site with a plan, without the bias and not yet rounded."""
        if plan.smoothing is not None:
            a = self.arithmetic.round(a / plan.smoothing)
        outliers = None
        if plan.recipe.outlier_threshold is not None:
            beyond = _outliers(a, plan.recipe.outlier_threshold, plan.recipe.outliers, self.packing)
            outliers, a = np.where(beyond, a, np.float32(0)), np.where(beyond, np.float32(0), a)
        qa = self.quantized(f"{site}:a", a, plan.recipe.a, plan.a, -1)
        qb = self.quantized(f"{site}:b", b, plan.recipe.b, plan.b, -2)
        product = self.multiply(qa, qb)
        if outliers is not None:
            # Also where a row has none, so that -0 + 0 is the same in every batch.
            others = self.numerics.matmul(outliers, _float32(qb)) if outliers.any() else None
            product += np.float32(0) if others is None else others
        return product

    def quantized(
        self, name: str, x: Operandlike, operand: Operand, static: Scale | None, k_axis: int
    ) -> Operandlike:
        """An operand as its plan has it, and counted; unchanged if it is not to be quantized."""
        if isinstance(x, QuantizedTensor) or operand.fmt is None:
            return x
        # Query, key and value have one input, and where it was calibrated one scale.
        last = self._last
        scale = None if static is None else (float(static.scale), static.zero_point)
        how = (operand, scale, k_axis)
        if last.x is not x or last.how != how:
            with naming(name):
                if static is None:
                    q = quantize_operand(x, operand, k_axis)
                elif self.recipe.arithmetic == "bfloat16":
                    q = quantize_bfloat16(x, operand.fmt, static.scale, static.zero_point)
                else:
                    q = quantize(x, operand.fmt, static.scale, zero_point=static.zero_point)
                last.x, last.how, last.q, last.counts = x, how, q, OperandCounts.of(x, q)
        self.counts.setdefault(name, OperandCounts()).add(last.counts)
        return last.q

    def multiply(self, a: Operandlike, b: Operandlike) -> Float32Array:
        """The product of codes as the recipe accumulates it, or a float32 product."""
        if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
            return matmul(a, b, self.recipe.accumulate)
        return self.numerics.matmul(_float32(a), _float32(b))


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


def counting_into(policy: Policy, counts: dict[str, OperandCounts]) -> Policy:
    """The policy with its counts in another dictionary; itself if it is not a quantized one."""
    gemm = policy.gemm
    if not isinstance(gemm, QuantizedGemm) or gemm.counts is counts:
        return policy
    return replace(policy, gemm=replace(gemm, counts=counts))


def _float32(x: Operandlike) -> Float32Array:
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


#: Parity with Hugging Face.
FLOAT32_POLICY = float32_policy()

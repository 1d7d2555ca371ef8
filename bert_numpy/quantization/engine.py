"""The paper's quantized inference: products of codes; another engine does everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt

from bert_numpy.engines.engine import Engine, Weights
from bert_numpy.engines.float import Bfloat16Engine, FloatEngine
from bert_numpy.engines.functions import golden_name
from bert_numpy.engines.golden import GoldenEngine
from bert_numpy.engines.site import Site
from bert_numpy.errors import NAMED, BertNumpyError, naming, raise_named
from bert_numpy.model.model import EngineOf
from bert_numpy.model.packing import Batch, Packing
from bert_numpy.quantization.counts import Counts, OperandCounts
from bert_numpy.quantization.decoded_weights import (
    DECODED_BUDGET,
    DecodedWeights,
    DType,
    format_to_decode,
    is_prepared,
    site_dtype,
)
from bert_numpy.quantization.plan import Scale, SitePlan, quantize_operand
from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe
from bert_numpy.quantization.tiled_attention import finished, steps
from npfp8 import (
    ACCUMULATORS,
    Accumulator,
    BlockFormat,
    FloatFormat,
    Format,
    QuantizedTensor,
    matmul,
    quantize,
    quantize_bfloat16,
)
from npfp8.arrays import Float32Array
from npfp8.bfloat16 import round_to_bfloat16
from npfp8.products import matmul_16bit, prepared_product
from npfp8.products.blocks import Prepared, prepared_blocks
from npfp8.products.operands import (
    Decoded,
    decoded,
    decoded_bfloat16,
    decoded_product,
)

__all__ = ["QuantizedEngine", "engine_of"]

#: An operand of a product: numbers, codes with scales, or the values of codes.
Operandlike = Float32Array | QuantizedTensor | Decoded | Prepared

#: The codes and counts of one input by its operand and scale: several layers may share them.
Made = dict[tuple[object, ...], tuple[QuantizedTensor | Decoded | Prepared, OperandCounts]]

#: The plan of a site whose product is not quantized.
_NOTHING = SitePlan(SiteRecipe())


def engine_of(
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    golden: bool = False,
    budget: int = DECODED_BUDGET,
) -> EngineOf:
    """Return a function that makes the engine of each run; it can be pickled.

    Parameters
    ----------
    recipe : Recipe
    plans : mapping of str to SitePlan
        The plans by site.
    golden : bool
        True for the same bits on every machine: products that are not quantized are
        correctly rounded, :mod:`npfp8.golden` does the arithmetic, and NaN or
        infinity in an operand or a result is an error that names the site.
    budget : int
        The most bytes of decoded weights that are kept between runs. The bits do not depend
        on it.

    Raises
    ------
    BertNumpyError
        If ``golden`` is set for a recipe that accumulates in float32, because those
        bits depend on the BLAS.
    """
    if golden and not ACCUMULATORS[recipe.accumulate].reproducible:
        expected = " or ".join(repr(x.name) for x in ACCUMULATORS.values() if x.reproducible)
        raise BertNumpyError(
            f"recipe {recipe.name}: golden products are accumulated {expected}, "
            f"found {recipe.accumulate!r}"
        )
    kept = DecodedWeights(budget)
    return partial(_engine, recipe=recipe, plans=plans, golden=golden, kept=kept)


def _engine(
    weights: Weights,
    batch: Batch,
    *,
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    golden: bool,
    kept: DecodedWeights,
) -> QuantizedEngine:
    if golden:
        rest = GoldenEngine(weights, batch, recipe.arithmetic)
        return QuantizedEngine(rest, weights, batch, recipe, plans, kept, rest.check)
    plain = FloatEngine(weights, batch)
    inner = Bfloat16Engine(plain) if recipe.arithmetic == "bfloat16" else plain
    return QuantizedEngine(inner, weights, batch, recipe, plans, kept)


@dataclass(frozen=True, eq=False)
class QuantizedEngine(Engine[Float32Array]):
    """An engine that quantizes products by a recipe; ``inner`` does everything else.

    At a site with a plan the operands become codes (weights are codes already). The
    codes are multiplied exactly, accumulated as the recipe demands, and scaled; then the
    bias is added in float32. If only one operand is quantized, the product is float32, or
    of bfloat16 numbers if the recipe has an accumulator for the rest.
    Every result is rounded to the recipe's arithmetic, except the head's: the model's
    output stays in float32.

    If the recipe has an ``attention``, both products and the softmax between them are one
    operation (:mod:`bert_numpy.quantization.tiled_attention`), in float32 until its result.

    An operand whose codes nobody asks for is decoded at once (:mod:`npfp8.products.operands`);
    :attr:`kept` has the decoded weights of all runs.
    """

    fuses_activation = True

    inner: FloatEngine | Bfloat16Engine | GoldenEngine
    weights: Weights
    batch: Batch
    recipe: Recipe
    plans: Mapping[str, SitePlan]
    kept: DecodedWeights
    check: Callable[[str, Float32Array], None] | None = None  # run on operands and results
    counts: dict[str, OperandCounts] = field(default_factory=dict)

    @property
    def accumulator(self) -> Accumulator:
        """The accumulator of products of codes."""
        return ACCUMULATORS[self.recipe.accumulate]

    def counted(self) -> Counts:
        """Return the counts up to now."""
        return dict(self.counts)

    def linears(self, sites: Sequence[Site], x: Float32Array) -> Iterator[Float32Array]:
        """Quantize the one input of several layers once per distinct operand and scale."""
        made: Made | None = {} if len(sites) > 1 else None
        checked = False
        for site in sites:
            plan = self.plans.get(site.name)
            if plan is None and self.recipe.accumulate_rest is None:
                yield from self.inner.linears([site], x)
                continue
            if not checked:
                self.checked(f"{site.name}:a", x)
                checked = True
            yield self.linear(site, plan or _NOTHING, x, made)

    def activated_linear(self, site: Site, activation: str, x: Float32Array) -> Float32Array:
        """Look up the codes' values of the activation of ``x``, where its scale is known."""
        plan = self.plans.get(site.name)
        if (
            self.recipe.arithmetic == "bfloat16"
            and plan is not None
            and plan.a is not None
            and plan.smoothing is None
        ):
            self.checked(f"{site.name}:a", x)  # the activation of a finite number is finite
            return self.linear(site, plan, x, None, activation)
        (result,) = self.linears([site], self.activation(activation, x))
        return result

    def linear(
        self,
        site: Site,
        plan: SitePlan,
        x: Float32Array,
        made: Made | None,
        activation: str | None = None,
    ) -> Float32Array:
        """Compute a linear layer, of the activation of ``x`` if one is named."""
        weight, bias = (self.weights[f"{site.name}.{part}"] for part in ("weight", "bias"))
        assert isinstance(bias, np.ndarray)
        b = self.weight(site.name, weight, plan)
        return self.planned(site, plan, x, b, bias, made, activation)

    def weight(
        self, name: str, weight: Float32Array | QuantizedTensor, plan: SitePlan
    ) -> Operandlike:
        """Return a layer's weight as the right operand of its product. (N, K) -> (K, N)."""
        if not isinstance(weight, QuantizedTensor):
            return weight.T
        if (kept := self.kept.get(name, weight)) is not None:
            return kept  # the recipe decided how when it was made
        if is_prepared(plan.recipe, weight, self.accumulator):
            return self.kept.prepared(name, weight)
        dtype = self.decoded_dtype(plan, format_to_decode(weight), weight.shape[-1])
        return weight.mT if dtype is None else self.kept.decoded(name, weight, dtype)

    def decoded_dtype(self, plan: SitePlan, b: Format | BlockFormat | None, k: int) -> DType | None:
        """Return the dtype in which a site's decoded operands are multiplied; None for others."""
        return site_dtype(plan.recipe, b, k, self.accumulator)

    def product(self, site: Site, a: Float32Array, b: Float32Array) -> Float32Array:
        """Multiply two activations, quantized if the site has a plan."""
        plan = self.plans.get(site.name)
        if plan is None and self.recipe.accumulate_rest is None:
            return self.inner.product(site, a, b)
        self.checked(f"{site.name}:a", a)
        return self.planned(site, plan or _NOTHING, a, b)

    @property
    def fuses_attention(self) -> bool:  # type: ignore[override]
        """True if the recipe has attention in tiles."""
        return self.recipe.attention is not None

    def attention(
        self,
        scores_site: Site,
        context_site: Site,
        q: Float32Array,
        k: Float32Array,
        v: Float32Array,
        factor: float,
        bias: Float32Array | None,
    ) -> Float32Array:
        """Compute attention over tiles of keys, as the recipe's ``attention`` says."""
        scores, context = scores_site.name, context_site.name
        how, beside = self.plans[scores], self.plans[context]
        fmt = beside.recipe.a.fmt
        assert self.recipe.attention is not None
        assert isinstance(fmt, FloatFormat)  # the recipe has checked it
        self.checked(f"{scores}:a", q)
        q_codes = self.codes(f"{scores}:a", q, how.recipe.a, how.a, -1)
        k_codes = self.codes(f"{scores}:b", k, how.recipe.b, how.b, -2)
        v_codes = self.codes(f"{context}:b", v, beside.recipe.b, beside.b, -2)
        assert isinstance(q_codes, QuantizedTensor)
        assert isinstance(k_codes, QuantizedTensor)
        assert isinstance(v_codes, QuantizedTensor)
        arguments = (factor, bias, fmt, self.recipe.attention, self.recipe.accumulate)
        with naming(context):
            for tile in steps(q_codes, k_codes, v_codes, *arguments):
                self.checked(scores, tile.scores)
                self.checked(f"{context}:a", tile.weights)
                counts = OperandCounts(tile.weights.size, *tile.codes.lost(tile.weights))
                self.count(f"{context}:a", counts)
            result = self.inner.rounded(finished(tile.output, tile.total, v_codes.scale))
        self.checked(context, result)
        return result

    def planned(
        self,
        site: Site,
        plan: SitePlan,
        a: Float32Array,
        b: Operandlike,
        bias: Float32Array | None = None,
        made: Made | None = None,
        activation: str | None = None,
    ) -> Float32Array:
        """Multiply at a site with a plan. (..., M, K), (..., K, N), (N,) -> (..., M, N)."""
        rest = self.inner
        if activation is not None and not isinstance(b, Decoded):
            a, activation = rest.activation(activation, a), None
        if plan.smoothing is not None:
            a, made = rest.rounded(a / plan.smoothing), None
        outliers = None
        if plan.recipe.outlier_threshold is not None:
            (outliers, a), made = _apart(a, plan, self.batch.packing), None
        if isinstance(b, Decoded):
            dtype: DType | None = b.values.dtype.type
        elif not isinstance(b, np.ndarray) or plan.recipe.b.granularity == "block":
            dtype = None
        else:
            dtype = self.decoded_dtype(plan, plan.recipe.b.fmt, a.shape[-1])
        qa = self.codes(f"{site.name}:a", a, plan.recipe.a, plan.a, -1, made, dtype, activation)
        qb = self.codes(f"{site.name}:b", b, plan.recipe.b, plan.b, -2, None, dtype)
        rounds = site.kind != "head"
        if isinstance(qa, Decoded) and isinstance(qb, Decoded):
            accumulator, bfloat16 = self.accumulator, self.recipe.arithmetic == "bfloat16"
            product = decoded_product(qa, qb, accumulator, bias, rounds and bfloat16)
            self.checked(site.name, product)
            return product
        if isinstance(qa, Prepared) and isinstance(qb, Prepared) and outliers is None:
            bfloat16 = self.recipe.arithmetic == "bfloat16"
            product = prepared_product(qa, qb, bias, rounds and bfloat16)
            self.checked(site.name, product)
            return product
        product = self.codes_product(qa, qb)
        if outliers is not None:
            # Added even to rows without outliers, so that -0 + 0 is the same in every batch.
            others = self.rest_product(outliers, qb) if outliers.any() else None
            product += np.float32(0) if others is None else others
        if bias is not None:
            product += bias
        product = rest.rounded(product) if rounds else product
        self.checked(site.name, product)
        return product

    def checked(self, name: str, x: Float32Array) -> None:
        """Check an operand or a result, in golden mode."""
        if self.check is not None:
            self.check(name, x)

    def codes(
        self,
        name: str,
        x: Operandlike,
        operand: Operand,
        static: Scale | None,
        k_axis: int,
        made: Made | None = None,
        dtype: DType | None = None,
        activation: str | None = None,
    ) -> Operandlike:
        """Quantize and count an operand by its plan; return it unchanged if it has no format.

        With a ``dtype``, the codes are decoded, or not made at all; then an ``activation`` is
        applied first.
        """
        if not isinstance(x, np.ndarray) or operand.fmt is None:
            return x
        how = (operand, static and (float(static.scale), static.zero_point), dtype)
        if made is None or how not in made:
            try:
                q, lost = self.quantized(x, operand, static, k_axis, dtype, activation)
                counts = OperandCounts(x.size, *lost)
            except NAMED as error:
                raise_named(error, name)
            if made is not None:
                made[how] = q, counts
        else:
            q, counts = made[how]
        self.count(name, counts)
        return q

    def count(self, name: str, counts: OperandCounts) -> None:
        """Add to the counts of an operand."""
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def quantized(
        self,
        x: Float32Array,
        operand: Operand,
        static: Scale | None,
        k_axis: int,
        dtype: DType | None,
        activation: str | None,
    ) -> tuple[QuantizedTensor | Decoded | Prepared, tuple[int, int]]:
        """Quantize with the scales of the calibration, or with scales from ``x`` itself.

        Return also how many numbers saturated and underflowed.
        """
        fmt = operand.fmt
        assert fmt is not None
        if isinstance(fmt, BlockFormat) and self.accumulator.kind == "exact":
            number = None if static is None else static.scale
            return prepared_blocks(x, fmt, k_axis, number)
        if static is None or isinstance(fmt, BlockFormat):
            q = quantize_operand(x, operand, k_axis, static)
        elif self.recipe.arithmetic != "bfloat16":
            q = quantize(x, fmt, static.scale, zero_point=static.zero_point)
        elif dtype is None:
            q = quantize_bfloat16(x, fmt, static.scale, static.zero_point)
        else:
            function = activation and golden_name(activation)
            return decoded_bfloat16(x, fmt, static.scale, static.zero_point, dtype, function)
        lost = q.lost(x)
        if dtype is not None:
            return decoded(q, k_axis, dtype), lost
        return q, lost

    def codes_product(self, a: Operandlike, b: Operandlike) -> Float32Array:
        """Multiply codes with the recipe's accumulator, and others as :meth:`rest_product`."""
        if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
            return matmul(a, b, self.recipe.accumulate)
        if isinstance(a, QuantizedTensor | Prepared) and isinstance(b, QuantizedTensor | Prepared):
            return prepared_product(a, b)
        return self.rest_product(a, b)

    def rest_product(self, a: Operandlike, b: Operandlike) -> Float32Array:
        """Multiply dequantized operands: with the recipe's accumulator, or in float32."""
        x, y = _float32(a), _float32(b)
        if self.recipe.accumulate_rest is None:
            return self.inner.matmul(x, y)
        return matmul_16bit(round_to_bfloat16(x), round_to_bfloat16(y), self.recipe.accumulate_rest)


def _apart(a: Float32Array, plan: SitePlan, packing: Packing) -> tuple[Float32Array, Float32Array]:
    """Split an operand into its outliers and the rest, each with zeros in the other's place."""
    threshold = plan.recipe.outlier_threshold
    assert threshold is not None
    beyond = _outliers(a, threshold, plan.recipe.outliers, packing)
    return np.where(beyond, a, np.float32(0)), np.where(beyond, np.float32(0), a)


def _outliers(
    a: Float32Array, threshold: float, unit: str, packing: Packing
) -> npt.NDArray[np.bool_]:
    """Find the elements that are kept out of the quantized product.

    Parameters
    ----------
    a : ndarray of float32, (tokens, K), or (batch, K) of the first tokens alone
    threshold : float
    unit : {"element", "column"}
        Whether an outlier is removed alone, or with the whole column of its sequence.
    packing : Packing
        The rows of each sequence. A masked token (only position 0 is computed although
        masked) does not make its columns outliers.
    """
    beyond = np.abs(a) > np.float32(threshold)
    if unit == "element":
        return beyond
    if len(beyond) != len(packing.tokens):
        return beyond  # each row is a whole sequence
    of_tokens = beyond & packing.take(packing.mask)[:, None]
    columns = np.logical_or.reduceat(of_tokens, packing.first, axis=0)
    return np.repeat(columns, np.diff(packing.first, append=len(beyond)), axis=0)


def _float32(x: Operandlike) -> Float32Array:
    assert not isinstance(x, Decoded)  # both operands have formats then
    x = x.tensor if isinstance(x, Prepared) else x
    return x.dequantize() if isinstance(x, QuantizedTensor) else x

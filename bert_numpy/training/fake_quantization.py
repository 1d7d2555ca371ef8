"""Quantization-aware training: products of rounded operands, with straight-through gradients.

Fake quantization rounds a tensor to the values that its codes would have, and goes on in float32
(Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference*, arXiv 1712.05877). Rounding has no useful derivative; the *straight-through estimator*
(Bengio et al., arXiv 1308.3432) takes that of clipping instead: 1 within the range of the codes
and 0 beyond it. So the weights learn to give good results after rounding.

The operands are those of a :class:`~bert_numpy.quantization.recipe.Recipe`. A weight's scale
comes from the weight, as in post-training quantization. A static scale of an activation comes from
moving averages of its extrema over the steps, as in Jacob et al.; :func:`quantized_model` gives
the same scales to the quantized model, which needs no calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError
from bert_numpy.model.model import Model
from bert_numpy.model.sites import sites_of
from bert_numpy.quantization.convert import QuantizedModel, planned_model, quantize_weight
from bert_numpy.quantization.plan import Scale, SitePlan, quantize_operand, static_sides
from bert_numpy.quantization.recipe import Operand, Recipe
from bert_numpy.training.adamw import require_number
from npfp8 import BlockFormat, IntFormat, quantize
from npfp8.arguments import flag, require
from npfp8.arrays import Array, Float32Array, blas_product

__all__ = ["FakeQuantizedProducts", "Range", "fake_quantize", "quantized_model"]


class Range(NamedTuple):
    """The moving averages of a tensor's extrema: ``low <= 0 <= high``."""

    low: float
    high: float

    def followed(self, other: Range, momentum: float) -> Range:
        """Return the averages after one more step.

        Examples
        --------
        >>> Range(-1.0, 2.0).followed(Range(-2.0, 4.0), 0.75)
        Range(low=-1.25, high=2.5)
        """
        return Range(
            *(momentum * old + (1 - momentum) * new for old, new in zip(self, other, strict=True))
        )

    def around(self, other: Range) -> Range:
        """Return the extrema of both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


class Faked(NamedTuple):
    """A fake-quantized operand, and where its gradient passes; None for everywhere."""

    values: Float32Array
    passes: Array | None

    def through(self, gradient: Array) -> Array:
        """Return the operand's gradient from that of its rounded values."""
        return gradient if self.passes is None else gradient * self.passes


def fake_quantize(x: Float32Array, operand: Operand, k_axis: int, scale: Scale | None) -> Faked:
    """Round an operand to the values of its codes.

    Parameters
    ----------
    x : ndarray of float32
    operand : Operand
    k_axis : {-1, -2}
        The axis that the product sums over: -1 for a left operand, -2 for a right one.
    scale : Scale, optional
        The static scale; None for scales from ``x``, beyond which nothing is. For a block format
        it is the scale of the tensor: the blocks' own scales still come from ``x``, and the
        gradient passes everywhere.

    Examples
    --------
    >>> from bert_numpy import Operand
    >>> x, scale = np.float32([[1.06, 500]]), Scale(np.float32(1))
    >>> found = fake_quantize(x, Operand("E4M3FN"), -1, scale)
    >>> found.values.tolist(), found.passes.tolist()
    ([[1.0, 448.0]], [[True, False]])
    """
    fmt = operand.fmt
    if fmt is None:
        return Faked(x, None)
    if scale is None or isinstance(fmt, BlockFormat):
        return Faked(quantize_operand(x, operand, k_axis, scale).dequantize(), None)
    values = quantize(x, fmt, scale.scale, zero_point=scale.zero_point).dequantize()
    if isinstance(fmt, IntFormat):
        zero = scale.zero_point or 0
        low, high = (scale.scale * np.float32(end - zero) for end in (fmt.min_code, fmt.max_code))
    else:
        high = scale.scale * np.float32(fmt.max)
        low = -high
    # A scale from the largest element itself may round to just below it.
    slack = np.float32(1 + 2.0**-20)
    passes = (x >= low * slack) & (x <= high * slack)
    return Faked(values, None if passes.all() else passes)


@dataclass(frozen=True, eq=False)
class FakeQuantizedProducts:
    """Products of fake-quantized operands, with the ranges of one step.

    Attributes
    ----------
    recipe : Recipe
        It decides which operands are rounded, and to which format. Its arithmetic and its
        accumulator are left to the quantized model.
    momentum : float
        The weight of the past in the moving averages of extrema.
    ranges : mapping of str to Range
        The averages by tensor, ``site:a`` and ``site:b``, at the beginning of the step. A tensor
        without one takes its own extrema.
    seen : dict of str to Range
        The extrema that this step has seen.

    Raises
    ------
    BertNumpyError
        If the recipe leaves out outliers, migrates, computes attention in tiles, or chooses the
        codes or scales of weights by a calibration's Hessian or by a search: rounding in training
        and afterwards would differ.

    Examples
    --------
    >>> from bert_numpy import PRESETS
    >>> products = FakeQuantizedProducts(PRESETS["int8"])
    >>> site = Site("encoder.layer.0.output.dense", "linear", 0, 1)
    >>> a, b = np.float32([[127, 0.4]]), np.float32([[127], [-0.6]])
    >>> y, saved = products.forward(site, a, b)
    >>> float(y[0, 0])  # 127 * 127 + 0 * -1
    16129.0
    >>> products.backward(site, saved, np.float32([[1]]))[0].tolist()
    [[127.0, -1.0]]
    >>> products.following().ranges["encoder.layer.0.output.dense:a"]
    Range(low=0.0, high=127.0)
    """

    recipe: Recipe
    momentum: float = 0.99
    ranges: Mapping[str, Range] = field(default_factory=dict)
    seen: dict[str, Range] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        require("recipe", self.recipe, Recipe, "a Recipe, such as bert_numpy.PRESETS['int8']")
        require_number("momentum", self.momentum, lambda x: 0 <= x <= 1, "a share from 0 to 1")
        require("ranges", self.ranges, Mapping, "a mapping of names to ranges")
        recipe = self.recipe
        linear = (recipe.linear, *(how for _, how in recipe.overrides))
        if (
            recipe.attention is not None
            or any(how.b.observer != "absmax" or how.gptq is not None for how in linear)
            or any(
                how.outlier_threshold is not None or how.migration is not None
                for how in (*linear, recipe.scores, recipe.context)
            )
        ):
            raise BertNumpyError(
                f"recipe {recipe.name}: expected one without outliers, migration, tiles, GPTQ and "
                "observers of weights to train with"
            )

    def forward(self, site: Site, a: Array, b: Array) -> tuple[Array, Any]:
        """Compute the product of the rounded operands, and keep them."""
        how, static = self.recipe.site(site), static_sides(self.recipe, site)
        rounded_a = self._faked(f"{site.name}:a", a, how.a, -1, "a" in static)
        rounded_b = self._faked(f"{site.name}:b", b, how.b, -2, "b" in static)
        return blas_product(rounded_a.values, rounded_b.values), (rounded_a, rounded_b)

    def backward(self, site: Site, saved: Any, dy: Array) -> tuple[Array, Array]:
        """Compute both gradients of the rounded operands, passed through to the operands."""
        a, b = saved
        da = blas_product(dy, b.values.swapaxes(-1, -2))
        db = blas_product(a.values.swapaxes(-1, -2), dy)
        return a.through(da), b.through(db)

    def following(self) -> FakeQuantizedProducts:
        """Return the products of the next step, whose ranges have followed this one's."""
        ranges = dict(self.ranges)
        for name, seen in self.seen.items():
            known = ranges.get(name)
            ranges[name] = seen if known is None else known.followed(seen, self.momentum)
        return replace(self, ranges=ranges)

    def _faked(self, name: str, x: Array, operand: Operand, k_axis: int, static: bool) -> Faked:
        """Round an operand; a static one by its range, which is noted."""
        if operand.fmt is None:
            return Faked(x, None)
        own = Range(float(x.min(initial=0)), float(x.max(initial=0)))
        if not np.isfinite(own).all():  # nor are the step's gradients, so it changes nothing
            return Faked(np.full_like(x, np.nan), None)
        if not static:
            return fake_quantize(x, operand, k_axis, None)
        self.seen[name] = self.seen[name].around(own) if name in self.seen else own
        return fake_quantize(x, operand, k_axis, Scale.of(*self.ranges.get(name, own), operand))


def quantized_model(
    model: Model, products: FakeQuantizedProducts, golden: bool = False
) -> QuantizedModel:
    """Quantize a trained model with the ranges that its training has followed.

    Parameters
    ----------
    model : Model
        In float32.
    products : FakeQuantizedProducts
        Those of the step after the last.
    golden : bool
        As for :func:`bert_numpy.apply_recipe`.

    Raises
    ------
    TypeError
        If an argument is not of the type stated.
    BertNumpyError
        If a site has no range.

    Examples
    --------
    >>> import bert_numpy
    >>> import numpy as np
    >>> from bert_numpy.training.fake_quantization import FakeQuantizedProducts, quantized_model
    >>> from bert_numpy.training.fit import Training, fit
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> encoded = bert_numpy.load_tokenizer("bert-tiny-sst2").encode(["a dull film", "warm"])
    >>> products = FakeQuantizedProducts(bert_numpy.PRESETS["int8"])
    >>> fitted = fit(model, encoded, np.array([0, 1]), Training(epochs=1), products=products)
    >>> quantized_model(fitted.model, fitted.products).recipe.name
    'int8'
    """
    require("model", model, Model, "a float32 model")
    require("products", products, FakeQuantizedProducts, "FakeQuantizedProducts")
    flag("golden", golden)
    recipe, weights, plans = products.recipe, dict(model.weights), {}
    for site in sites_of(model):
        how = recipe.site(site)
        if not how.quantizes:
            continue
        name = f"{site.name}.weight"
        weight = weights.get(name)
        if isinstance(weight, np.ndarray) and how.b.fmt is not None:
            weights[name] = quantize_weight(name, weight, how.b)
        static = {}
        for side, operand in static_sides(recipe, site).items():
            found = products.ranges.get(f"{site.name}:{side}")
            if found is None:
                raise BertNumpyError(f"{site.name}:{side}: expected a range, found none")
            static[side] = Scale.of(*found, operand)
        plans[site.name] = SitePlan(how, static.get("a"), static.get("b"))
    return planned_model(model.config, weights, recipe, plans, model.name, golden=golden)

"""From a float model and its calibration to a quantized model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bert_numpy.engines.engine import Weights
from bert_numpy.engines.site import Site
from bert_numpy.errors import BertNumpyError, naming
from bert_numpy.model.config import BertConfig
from bert_numpy.model.model import Model
from bert_numpy.model.sites import sites_of, sites_of_input
from bert_numpy.quantization.calibration import (
    Calibration,
    as_calibration,
    check_calibration,
    observed_scale,
)
from bert_numpy.quantization.engine import engine_of
from bert_numpy.quantization.gptq import gptq
from bert_numpy.quantization.observers import observe
from bert_numpy.quantization.plan import Scale, SitePlan, quantize_operand, static_sides
from bert_numpy.quantization.presets import as_recipe
from bert_numpy.quantization.recipe import Operand, Recipe, SiteRecipe
from npfp8 import BlockFormat, Format, QuantizedTensor, quantize
from npfp8.arguments import flag, require
from npfp8.arrays import Float32Array, Float64Array
from npfp8.elementary import exp, log
from npfp8.scaling import axis_and_block

__all__ = ["QuantizedModel", "apply_recipe", "planned_model", "refuse_gptq"]


@dataclass(frozen=True, eq=False, repr=False)
class QuantizedModel(Model):
    """A model quantized by a recipe.

    Attributes
    ----------
    recipe : Recipe
    plans : mapping of str to SitePlan
        The recipe and the static scales of every quantized product.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    >>> quantized  # doctest: +NORMALIZE_WHITESPACE
    <QuantizedModel bert-tiny-sst2: BertForSequenceClassification, 2 layers of 128, 4,386,178
    parameters, by the recipe e4m3>
    >>> quantized.weight_bytes < model.weight_bytes
    True
    """

    recipe: Recipe = field(kw_only=True)
    plans: Mapping[str, SitePlan] = field(kw_only=True, repr=False)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, by the recipe {self.recipe.name}>"


def apply_recipe(
    model: Model,
    recipe: Recipe | str | Path,
    calibration: Calibration | str | Path | None = None,
    golden: bool = False,
) -> QuantizedModel:
    """Quantize a model without training: convert its weights and fix the scales.

    Parameters
    ----------
    model : Model
        A float32 model, left unchanged. A model that is already quantized is accepted
        only with its own recipe; use this to switch golden mode or the accumulation
        (``accumulate``, ``accumulate_rest``). Its codes and scales are kept.
    recipe : Recipe, str or Path
        A recipe, the name of one of :data:`bert_numpy.PRESETS`, or a JSON file.
    calibration : Calibration, str or Path, optional
        A calibration, or a file that :func:`bert_numpy.save_calibration` wrote.
        Required if the recipe has static scales of activations, or migrates. It must have
        been made with a model that has the same parameters.
    golden : bool
        True if the model must compute the same bits on every machine and in every
        batch. For a calibration that does not depend on the machine either, make it
        with ``golden`` too, or load it from a file.

    Returns
    -------
    QuantizedModel
        A model that holds its quantized weights as codes only.

    Raises
    ------
    BertNumpyError
        If a calibration is required but is missing, lacks a site or Hessians, or belongs to
        another model. If weights are to be rounded by GPTQ in golden mode. If an override's
        pattern fits no site, or a site's products cannot be accumulated as the recipe demands.
        If the model is quantized by another recipe.

    Examples
    --------
    >>> import bert_numpy
    >>> model = bert_numpy.load("bert-tiny-sst2")
    >>> tokenizer = bert_numpy.load_tokenizer("bert-tiny-sst2")
    >>> batches = [tokenizer.batch(["a warm and funny film", "dull and slow"])]
    >>> calibration = bert_numpy.calibrate(model, batches)
    >>> quantized = bert_numpy.apply_recipe(model, "e4m3", calibration)
    >>> output = quantized(**tokenizer.batch(["a warm and funny film"]))
    >>> model.config.labels[output.logits.argmax()]
    'positive'
    """
    require("model", model, Model, "a model, as bert_numpy.load returns it")
    recipe, golden = as_recipe(recipe), flag("golden", golden)
    if calibration is not None:
        calibration = as_calibration(calibration)
    if isinstance(model, QuantizedModel):
        sums = {"accumulate": recipe.accumulate, "accumulate_rest": recipe.accumulate_rest}
        if recipe != replace(model.recipe, **sums):  # type: ignore[arg-type]
            raise BertNumpyError(
                f"{model.name}: expected a model in float32 to apply {recipe.name} to, found one "
                f"that is quantized by {model.recipe.name}"
            )
        return planned_model(
            model.config, model.weights, recipe, model.plans, model.name, golden=golden
        )
    if golden:
        refuse_gptq([recipe])
    if calibration is not None:
        check_calibration(calibration, model)
    sites = sites_of(model)
    recipe.check_overrides(sites)
    weights = dict(model.weights)
    plans = {}
    for site in sites:
        how = recipe.site(site)
        if not how.quantizes:
            continue
        weight = weights.get(f"{site.name}.weight")
        smoothing = None
        if isinstance(weight, np.ndarray):
            if how.migration is not None:
                smoothing = _smoothing(_needed(calibration, recipe), model, recipe, site)
                with np.errstate(over="ignore"):  # an infinity is refused, or shows in the results
                    weight = weight * smoothing
            if how.b.fmt is not None:
                name = f"{site.name}.weight"
                weights[name] = (
                    quantize_weight(name, weight, how.b)
                    if how.gptq is None
                    else _by_gptq(model, site, weight, how, _needed(calibration, recipe), smoothing)
                )
            elif smoothing is not None:
                weights[f"{site.name}.weight"] = weight
        with naming(site.name):
            static = {
                name: _needed(calibration, recipe).scale(f"{site.name}:{name}", operand)
                for name, operand in static_sides(recipe, site).items()
            }
        if smoothing is not None and "a" in static:
            largest = (_needed(calibration, recipe).channels[site.name] / smoothing).max()
            with naming(f"{site.name}:a"):
                static["a"] = Scale.of(-largest, largest, how.a)
        plans[site.name] = SitePlan(how, static.get("a"), static.get("b"), smoothing)
    return planned_model(model.config, weights, recipe, plans, model.name, golden=golden)


def refuse_gptq(recipes: Iterable[Recipe]) -> None:
    """Raise :class:`BertNumpyError` if a recipe rounds weights by GPTQ, for golden mode."""
    for recipe in recipes:
        if recipe.by_gptq:
            raise BertNumpyError(
                f"recipe {recipe.name}: expected weights not rounded by GPTQ in golden mode, as "
                "their codes depend on the machine's BLAS: write a quantized checkpoint first, and "
                "load it"
            )


def planned_model(
    config: BertConfig,
    weights: Weights,
    recipe: Recipe,
    plans: Mapping[str, SitePlan],
    name: str,
    *,
    golden: bool = False,
) -> QuantizedModel:
    """Make a quantized model from its codes and scales.

    Raises
    ------
    BertNumpyError
        If a site's products cannot be accumulated as the recipe demands.
    """
    recipe.check_accumulation(plans)
    engine = engine_of(recipe, plans, golden)
    return QuantizedModel(config, weights, engine, name, recipe=recipe, plans=plans)


def quantize_weight(name: str, weight: Float32Array, operand: Operand) -> QuantizedTensor:
    """Quantize a linear layer's weight, (out_features, in_features), as it is stored.

    A scale per tensor is chosen by the operand's observer. Scales per channel and per
    block come from the absolute maximum, which needs no histogram.
    """
    assert operand.fmt is not None
    with naming(name):
        if operand.granularity != "tensor" or operand.observer == "absmax":
            return quantize_operand(weight.T, operand, -2).mT
        try:
            scale = observed_scale(observe(name, None, weight), operand)
        except BertNumpyError as error:
            text = str(error)
            raise BertNumpyError(text if name in text else f"{name}: {text}") from None
        assert not isinstance(operand.fmt, BlockFormat)  # its observer is the absolute maximum
        return quantize(weight, operand.fmt, scale.scale, zero_point=scale.zero_point)


def _by_gptq(
    model: Model,
    site: Site,
    weight: Float32Array,
    how: SiteRecipe,
    calibration: Calibration,
    smoothing: Float32Array | None,
) -> QuantizedTensor:
    """Quantize a linear layer's weight by GPTQ, for the inputs divided by ``smoothing``."""
    alike = [other.name for other in sites_of_input(model, site)]
    known = [name for name in alike if name in calibration.hessians]
    if not known:
        raise BertNumpyError(
            f"{calibration.place}: site {site.name!r}: expected a Hessian for GPTQ, found none: "
            "calibrate with hessians=True, or bert-numpy calibrate --hessians"
        )
    hessian = calibration.hessians[known[0]]
    if smoothing is not None:
        hessian = hessian / np.outer(smoothing, smoothing)
    assert isinstance(how.b.fmt, Format)
    assert how.gptq is not None
    axis, block = axis_and_block(how.b.granularity, weight.shape, -1, how.b.block)
    with naming(f"{site.name}.weight"):
        return gptq(weight, hessian, how.b.fmt, axis, block, how.gptq, how.b.power_of_two)


def _needed(calibration: Calibration | None, recipe: Recipe) -> Calibration:
    if calibration is None:
        raise BertNumpyError(f"recipe {recipe.name}: expected a calibration, found none")
    return calibration


def _smoothing(calibration: Calibration, model: Model, recipe: Recipe, site: Site) -> Float32Array:
    """Compute SmoothQuant's factors, as described in :class:`bert_numpy.SiteRecipe`.

    The factor is 1 for a column that is 0 in the activations or in the weights.
    """
    if site.name not in calibration.channels:
        raise BertNumpyError(f"calibration: site {site.name!r}: expected channels, found none")
    how = recipe.site(site)
    assert how.migration is not None
    paper = how.smoothing == "paper"
    sharing = _one_input(model, recipe, site) if paper else [site]
    columns = np.max([_column_maxima(model, other.name) for other in sharing], axis=0)
    activations = calibration.channels[site.name].astype(np.float64)
    usable = (activations > 0) & (columns > 0)
    a, w = np.where(usable, activations, 1.0), np.where(usable, columns, 1.0)
    exponent = how.migration * log(a) - (1 - how.migration) * log(w)
    if paper:
        return np.clip(exp(exponent), 2.0**-126, 2.0**127).astype(np.float32)
    powers = np.clip(np.rint(exponent / math.log(2)), -126, 127).astype(np.int32)
    return np.ldexp(np.float32(1), powers).astype(np.float32)


def _one_input(model: Model, recipe: Recipe, site: Site) -> list[Site]:
    """List the layers that share a site's input and factors: query, key and value, or itself."""
    return [
        other
        for other in sites_of_input(model, site)
        if recipe.site(other).migration is not None and recipe.site(other).smoothing == "paper"
    ]


def _column_maxima(model: Model, site: str) -> Float64Array:
    weight = model.weights[f"{site}.weight"]
    assert isinstance(weight, np.ndarray), site
    largest: Float64Array = np.abs(weight).max(axis=0).astype(np.float64)
    return largest
